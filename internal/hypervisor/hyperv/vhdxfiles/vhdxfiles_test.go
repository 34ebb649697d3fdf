package vhdxfiles

import (
	"bytes"
	"errors"
	"io/fs"
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
