package vhdxfiles

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/hypervisor/hyperv"
)

func TestPaths(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	d := New(Config{Root: root})
	for host, want := range map[string]string{`C:\a\b.vhdx`: "C/a/b.vhdx", `c:/a/b.vhdx`: "C/a/b.vhdx", `C:\`: "C", `C:\..\x`: "", `x`: "", `\\srv\share\x`: "", `C:\a:b`: ""} {
		got, err := d.Local(host)
		if want == "" {
			if err == nil {
				t.Errorf("%s is %s", host, got)
			}
			continue
		}
		if err != nil || got != filepath.Join(root, filepath.FromSlash(want)) {
			t.Errorf("%s is %s, %v", host, got, err)
		}
	}
	for local, want := range map[string]string{filepath.Join(root, "C", "a", "b"): `C:\a\b`, filepath.Join(root, "other"): "", filepath.Dir(root): ""} {
		if got, err := d.HostPath(local); got != want || (err == nil) != (want != "") {
			t.Errorf("%s is %q, %v", local, got, err)
		}
	}
}

// TestNoticesWriters: a disk that is open for reading fails once somebody opens its file for writing.
func TestNoticesWriters(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	d := New(Config{Root: t.TempDir()})
	w, err := d.Create(ctx, `C:\x\a.vhdx`, hyperv.CreateDisk{Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{7}, 5000)
	if err := errors.Join(w.WriteAt(ctx, want, 3), w.Flush(ctx), w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(ctx, `C:\x\a.vhdx`, hyperv.CreateDisk{Size: 4 << 20}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created over a file: %v", err)
	}
	r, err := d.Open(ctx, `C:\x\a.vhdx`, false)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := r.ReadAt(ctx, got, 3); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read: %v", err)
	}
	w, err = d.Open(ctx, `C:\x\a.vhdx`, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ReadAt(ctx, got, 3); !errors.Is(err, hyperv.ErrInUse) {
		t.Errorf("read of a file that is written: %v", err)
	}
	if err := errors.Join(w.Close(), r.Close(), d.Remove(ctx, `C:\x\a.vhdx`), d.Remove(ctx, `C:\x\a.vhdx`)); err != nil {
		t.Error(err)
	}
	if _, err := d.Open(ctx, `C:\x\a.vhdx`, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open a removed file: %v", err)
	}
}

// TestSerialLog: the end of what a simulated guest wrote, beside its hosts' directories.
func TestSerialLog(t *testing.T) {
	t.Parallel()
	const vm = "01234567-89ab-cdef-0123-456789abcdef"
	dir := t.TempDir()
	d := New(Config{Root: filepath.Join(dir, "HV1")})
	if _, err := d.SerialLog(t.Context(), vm, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "run", "01234567"), 0o755), os.WriteFile(filepath.Join(dir, "run", "01234567", "serial.log"), []byte("hello\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int]string{0: "", 3: "lo\n", 100: "hello\n"} {
		if b, err := d.SerialLog(t.Context(), vm, limit); err != nil || string(b) != want {
			t.Errorf("%d bytes: %q, %v", limit, b, err)
		}
	}
	for _, bad := range []string{"", "0123", "../../../x", "0123456/x"} {
		if _, err := d.SerialLog(t.Context(), bad, 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
