package guestimage

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"holdfast/internal/ledger"
)

// compileGuest compiles the guest program from its embedded sources, in a
// module of its own: no module cache, no network and no repository is needed.
func compileGuest(ctx context.Context, dir string, source map[string][]byte) ([]byte, error) {
	work := filepath.Join(dir, "src")
	defer os.RemoveAll(work)
	for name, text := range source {
		path := filepath.Join(work, "internal", "ledger", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte("module "+ledger.ModulePath+"\n\ngo 1.26\n"), 0o644); err != nil {
		return nil, err
	}
	out := filepath.Join(work, "guest.bin")
	cmd := exec.CommandContext(ctx, goTool(), "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./internal/ledger/guest")
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local", "GOPROXY=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile guest program: %s: %w", bytes.TrimSpace(text), err)
	}
	return os.ReadFile(out)
}

func goTool() string {
	if path, err := exec.LookPath("go"); err == nil {
		return path
	}
	name := "/usr/local/go/bin/go"
	if runtime.GOOS == "windows" {
		name = "go.exe"
	}
	return name
}

// makeInitrd packs the guest's root file system.
func makeInitrd(ctx context.Context, program []byte, kernel, agent string) ([]byte, error) {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	a := newArchive(z)
	a.dirs("bin", "dev", "disk/data", "disk/sys", "etc/qemu", "lib/modules", "proc", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/run")
	a.device("dev/console", 5, 1)
	a.device("dev/null", 1, 3)
	a.file("init", program, 0o755)
	a.link("ledger", "/init")
	for _, name := range []string{"shutdown", "poweroff", "halt"} {
		a.link("sbin/"+name, "/init")
	}
	a.file("etc/qemu/fsfreeze-hook", []byte("#!/bin/sh\n/ledger console \""+string(ledger.KindFreeze)+" phase=$1\"\n"), 0o755)
	a.file("etc/udhcpc.script", []byte(udhcpcScript), 0o755)
	a.file("etc/passwd", []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644)
	a.file("etc/group", []byte("root:x:0:\n"), 0o644)
	if err := addBusybox(ctx, a); err != nil {
		return nil, err
	}
	if err := addModules(a, kernel); err != nil {
		return nil, err
	}
	if err := addTree(a, filepath.Join(agent, "root")); err != nil {
		return nil, err
	}
	if err := a.finish(); err != nil {
		return nil, fmt.Errorf("pack initramfs: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

const udhcpcScript = `#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ifconfig "$interface" "$ip" netmask "${subnet:-255.255.255.0}"
[ -n "$router" ] && route add default gw "${router%% *}"
`

func addBusybox(ctx context.Context, a *archive) error {
	const path = "/bin/busybox"
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read busybox (install package busybox-static): %w", err)
	}
	a.file("bin/busybox", b, 0o755)
	list, err := runIn(ctx, "/", path, "--list")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(list) {
		if !slices.Contains([]string{"busybox", "init", "poweroff", "halt", "shutdown", "reboot"}, name) {
			a.link("bin/"+name, "/bin/busybox")
		}
	}
	return nil
}

func addModules(a *archive, kernel string) error {
	entries, err := os.ReadDir(kernel)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "vmlinuz" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(kernel, e.Name()))
		if err != nil {
			return err
		}
		a.file("lib/modules/"+e.Name(), b, 0o644)
	}
	return nil
}

func addTree(a *archive, root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			a.dirs(filepath.ToSlash(rel))
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		a.file(filepath.ToSlash(rel), b, 0o755)
		return nil
	})
}
