package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"

	"holdfast/internal/hvsim"
)

func page(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("../../docs/hvsim.md")
	must(t, err)
	return string(raw)
}

// block returns the page's only code block of a language.
func block(t *testing.T, text, language string) string {
	t.Helper()
	list := regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(list) != 1 {
		t.Fatalf("the page has %d blocks of %s", len(list), language)
	}
	return list[0][1]
}

// freePort returns a free port that nobody gets who asks for any port.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := fmt.Sprint(20000 + rand.IntN(10000))
		if ln, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			must(t, ln.Close())
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// TestPage runs the commands of docs/hvsim.md as they stand there, on another port.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the page's Go program")
	}
	t.Parallel()
	text := page(t)
	port := freePort(t)
	dir := t.TempDir()
	module, err := filepath.Abs("../..")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "faults.json"), []byte(block(t, text, "json")), 0o644))
	// The Go program belongs into the module; an overlay puts it there without touching it.
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(strings.ReplaceAll(block(t, text, "go"), "5985", port)), 0o644))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(module, "cmd/hvsim/example/main.go"): filepath.Join(dir, "main.go")}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644))
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", filepath.Join(dir, "example"), "./cmd/hvsim/example")
	build.Dir = module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the page's Go program: %v\n%s", err, out)
	}
	var s *sim
	ran := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^ {4}(\S.+)$`).FindAllStringSubmatch(text, -1) {
		line := m[1]
		word, rest, _ := strings.Cut(line, " ")
		ran[filepath.Base(word)]++
		if word == "hvsim" {
			if s != nil && s.end(syscall.SIGINT) != 0 {
				t.Fatal(s.err.String())
			}
			args := strings.Fields(strings.ReplaceAll(rest, "--dir hv", ""))
			for i, a := range args {
				if a == "faults.json" {
					args[i] = filepath.Join(dir, a)
				}
			}
			s = launch(t, filepath.Join(dir, "hv"), append(args, "--listen", "127.0.0.1:"+port)...)
			s.wait("Ctrl-C ends it.")
			if n := strings.Count(s.out.String(), " 3 VMs"); n != 1 {
				t.Errorf("%s: %s", line, s.out.String())
			}
			continue
		}
		cmd := exec.Command("/bin/sh", "-c", strings.ReplaceAll(line, "5985", port))
		cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "no_proxy=*"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		if filepath.Base(word) == "python3" && !strings.Contains(string(out), "vm-0003 runs") {
			t.Errorf("%s: %s", line, out)
		}
		if word == "curl" && !strings.Contains(string(out), "IdentifyResponse") && !strings.Contains(string(out), "vm-0003") {
			t.Errorf("%s: %s", line, out)
		}
		if word == "kill" {
			s.wait("4 faults are in force now")
		}
		if strings.HasSuffix(word, "python3") { // while it is served
			example := exec.Command("./example")
			example.Dir = dir
			if out, err := example.CombinedOutput(); err != nil || !strings.Contains(string(out), "vm-0003 2") {
				t.Errorf("the page's Go program: %v\n%s", err, out)
			}
		}
	}
	if ran["hvsim"] != 4 || ran["curl"] != 2 || ran["python3"] != 1 || ran["kill"] != 1 {
		t.Errorf("the page has the commands %v", ran)
	}
}

// TestPageIsComplete: the page names every flag, every word of a fault and every code.
func TestPageIsComplete(t *testing.T) {
	t.Parallel()
	text := page(t)
	command(nil, nil).Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(text, "--"+f.Name) {
			t.Errorf("the page does not name --%s", f.Name)
		}
	})
	fault, err := json.Marshal(hvsim.Fault{})
	must(t, err)
	var words map[string]any
	must(t, json.Unmarshal(fault, &words))
	for w := range words {
		if !strings.Contains(text, "`"+w+"`") {
			t.Errorf("the page does not explain a fault's %s", w)
		}
	}
	for _, c := range codes {
		if !strings.Contains(text, "`"+string(c)+"`") {
			t.Errorf("the page does not name the code %s", c)
		}
	}
}
