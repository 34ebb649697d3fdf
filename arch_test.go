package holdfast_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// floors is the only place where the layering is written down: a package
// imports strictly lower floors. A subpackage stands on its parent's floor and
// may import its parent (adapters satisfy the parent's contract); one that is
// listed itself stands higher than its parent, with all below it.
var floors = map[string]int{
	"dr": 0, "extent": 0, "objstore": 0, "nbd": 0, "sqldb": 0, "ledger": 0, "pace": 0, "extmap": 0,
	"cim": 0, "vhd": 0, "vhdx": 0, "mshrl": 0,
	"job": 1, "agentapi": 1, "armwire": 1, "cut": 1, "hypervisor": 1, "retry": 1, "hvsim": 1, "vmm": 1, "azsim": 1, "pageblob": 1, "reach": 1,
	"hypervisor/azure": 2,
	"vaultdb":          2, "authn": 2, "store": 2, "capture": 2, "upload": 2, "armclient": 2, "keyfile": 2, "readiness": 2, "planner": 2,
	"hydrate": 3, "compact": 3, "seed": 3, "guestcheck": 3,
	"recovery": 4,
	"vault":    5, "agent": 5, "winservice": 5,
	"armapi": 6, "portal": 6, "agentgate": 6,
	"guesttest": 99, "oracle": 99, "winetest": 99, // imported by tests only
}

// dataPlane never imports controlPlane: capture, upload and a started instant
// boot keep running while the vault is down.
var (
	dataPlane = []string{"extent", "nbd", "hypervisor", "capture", "upload", "hydrate", "recovery", "agent", "cut", "store", "objstore",
		"pace", "extmap", "retry", "compact", "keyfile", "seed", "cim", "vhd", "vhdx", "mshrl", "hvsim", "readiness", "planner", "winservice",
		"azsim", "pageblob", "reach", "guestcheck"}
	controlPlane = map[string]bool{"job": true, "sqldb": true, "vaultdb": true, "vault": true, "armapi": true, "armwire": true, "portal": true, "authn": true, "agentgate": true}
)

// adapters are imported by cmd, the demo and tests only.
var adapters = []string{"hypervisor/libvirt", "hypervisor/sim", "objstore/file", "objstore/mem", "objstore/fault", "objstore/s3", "objstore/azure",
	"hypervisor/hyperv", "hypervisor/azure", "hypervisor/hyperv/vhdxfiles", "hypervisor/hyperv/virtdisk", "cim/wsman", "cim/com"}

// floorOf finds the floor of a package by its path below internal.
func floorOf(rel string) (int, bool) {
	for {
		if f, ok := floors[rel]; ok {
			return f, true
		}
		i := strings.LastIndexByte(rel, '/')
		if i < 0 {
			return 0, false
		}
		rel = rel[:i]
	}
}

func TestImportsGoDown(t *testing.T) {
	doc := map[string]bool{}
	walk(t, "internal", func(path string, test bool, imports []string, hasDoc bool) {
		dir := filepath.ToSlash(filepath.Dir(path))
		if test {
			return
		}
		doc[dir] = doc[dir] || hasDoc
		rel := strings.TrimPrefix(dir, "internal/")
		from, _, _ := strings.Cut(rel, "/")
		floor, ok := floorOf(rel)
		if !ok {
			t.Errorf("%s is on no floor: add it to floors", dir)
		}
		testHelper := strings.HasSuffix(dir, "test") || strings.Contains(dir, "test/")
		for _, imp := range imports {
			if imp == "testing" && !testHelper {
				t.Errorf("%s imports testing in production code", path)
			}
			full, ok := strings.CutPrefix(imp, "holdfast/internal/")
			if !ok || testHelper {
				continue
			}
			to, _, _ := strings.Cut(full, "/")
			if below, _ := floorOf(full); to != from && below >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d): arrows only go down", path, floor, imp, below)
			}
			for _, d := range dataPlane {
				if from == d && controlPlane[to] {
					t.Errorf("%s: the data plane imports the control plane (%s)", path, imp)
				}
			}
			for _, a := range adapters {
				if full == a && rel != a && !strings.HasPrefix(rel, a+"/") {
					t.Errorf("%s imports the adapter %s: only cmd wires adapters", path, imp)
				}
			}
		}
	})
	for dir, ok := range doc {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// TestForbiddenNames keeps buckets named after nothing out of the tree.
func TestForbiddenNames(t *testing.T) {
	walk(t, ".", func(path string, _ bool, _ []string, _ bool) {
		switch filepath.Base(filepath.Dir(path)) {
		case "util", "utils", "common", "types", "manager", "helpers":
			t.Errorf("%s: a package is named for what it owns", path)
		}
	})
}

func walk(t *testing.T, root string, fn func(path string, test bool, imports []string, hasDoc bool)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || name == "conformance" || (strings.HasPrefix(name, ".") && path != ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		var imports []string
		for _, spec := range f.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			imports = append(imports, imp)
		}
		fn(path, strings.HasSuffix(path, "_test.go"), imports, f.Doc.Text() != "")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
