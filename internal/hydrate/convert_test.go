package hydrate

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store/storetest"
)

// Every format is read back by qemu-img and compared with the source.
func TestRestoreAsEveryFormat(t *testing.T) {
	t.Parallel()
	r := storetest.New(t, mem.New(), 9<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 40 {
		p := make([]byte, 64<<10)
		for j := range p {
			p[j] = byte(rng.Uint32() >> (i % 8))
		}
		r.Write(0, rng.Int64N(9<<20/(64<<10))*(64<<10), p)
	}
	r.Base()
	pt := r.Points[0]
	v, err := r.Store().OpenPoint(t.Context(), r.Machine, pt.Ref.Gen, pt.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	dir := t.TempDir()
	for _, f := range Formats() {
		path := filepath.Join(dir, "disk."+string(f))
		var complete atomic.Bool // Progress is called concurrently
		if err := RestoreAs(t.Context(), v, "vda", path, f, RestoreOptions{Progress: func(done, total int64) { complete.CompareAndSwap(false, done == total && total == 9<<20) }}); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if !complete.Load() {
			t.Errorf("%s: progress did not come to the end", f)
		}
		back := filepath.Join(dir, "back-"+string(f))
		name := map[Format]string{FormatVHD: "vpc"}[f]
		if name == "" {
			name = string(f)
		}
		if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-f", name, "-O", "raw", path, back).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", f, err, out)
		}
		got, err := os.ReadFile(back)
		if err != nil || !bytes.Equal(got, pt.Flat[0]) {
			t.Errorf("%s reads back as something else (%d bytes, %v)", f, len(got), err)
		}
		if err := RestoreAs(t.Context(), v, "vda", path, f, RestoreOptions{}); dr.KindOf(err) != dr.KindConflict {
			t.Errorf("%s: an existing file was accepted: %v", f, err)
		}
	}
	if err := RestoreAs(t.Context(), v, "vdz", filepath.Join(dir, "x.qcow2"), FormatQcow2, RestoreOptions{}); dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("a disk that does not exist: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.part")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestParseFormat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, path string
		want       Format
	}{{"", "a.qcow2", FormatQcow2}, {"", "a.VHDX", FormatVHDX}, {"", "a.img", FormatRaw}, {"vhd", "a.raw", FormatVHD}} {
		if got, err := ParseFormat(c.name, c.path); err != nil || got != c.want {
			t.Errorf("%q %q: %v %v", c.name, c.path, got, err)
		}
	}
	if _, err := ParseFormat("vmdk", "a"); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("vmdk: %v", err)
	}
}
