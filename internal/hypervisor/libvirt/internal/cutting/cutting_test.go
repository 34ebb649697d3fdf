package cutting

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
)

func TestScratchCheck(t *testing.T) {
	t.Parallel()
	const step = 8 << 20
	for name, c := range map[string]struct {
		used, allocated, most, free int64
		want                        dr.Code
		after                       int64
	}{
		"little used":       {1 << 20, step, 64 << 20, 0, "", step},
		"used up, space":    {7 << 20, step, 64 << 20, 1 << 30, "", 2 * step},
		"used up, no space": {7 << 20, step, 64 << 20, 2*step - 1, dr.CodeScratchFull, step},
		"exactly enough":    {7 << 20, step, 64 << 20, 2 * step, "", 2 * step},
		"last step":         {7 << 20, step, step + 1<<20, 2 << 20, "", step + 1<<20},
		"can't grow more":   {64 << 20, 64 << 20, 64 << 20, 0, "", 64 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s := scratch{path: filepath.Join(t.TempDir(), "s"), allocated: c.allocated, most: c.most}
			f, err := os.Create(s.path)
			if err == nil {
				err = errors.Join(f.Truncate(c.used), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			err = s.check(step, func(string) (int64, error) { return c.free, nil })
			if dr.CodeOf(err) != c.want || s.allocated != c.after {
				t.Errorf("%v, %d allocated, want code %q and %d", err, s.allocated, c.want, c.after)
			}
			if st, err := os.Stat(s.path); err != nil || st.Size() != c.used {
				t.Errorf("the file's size has become %d, %v", st.Size(), err)
			}
		})
	}
	gone := scratch{path: filepath.Join(t.TempDir(), "gone"), allocated: 1, most: 2}
	if err := gone.check(1, func(string) (int64, error) { return 0, nil }); err != nil {
		t.Errorf("a job that is ending: %v", err)
	}
	blind := scratch{path: filepath.Join(t.TempDir(), "blind"), allocated: 1, most: 2}
	if err := os.WriteFile(blind.path, []byte("xx"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := blind.check(1, func(string) (int64, error) { return 0, errors.New("no answer") }); dr.CodeOf(err) != dr.CodeScratchFull {
		t.Errorf("free space unknown: %v", err)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	c := &cut{}
	c.info.Disks = []hypervisor.CutDisk{{ID: "vda", Size: 1 << 40}, {ID: "sdb", Size: 512}}
	want := map[string]int64{"vda": 1 << 40, "sdb": 512}
	if got := parseSizes(c.describeSizes()); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if s := c.describeSizes(); s != "holdfast 1 vda=1099511627776 sdb=512" { // kept in checkpoints on hosts
		t.Errorf("the format has changed: %q", s)
	}
	for _, s := range []string{"", "backup of monday", "holdfast 10 vda=5", "holdfast"} {
		if got := parseSizes(s); got != nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func FuzzSizes(f *testing.F) {
	f.Add("holdfast 1 vda=5")
	f.Add("holdfast 1 vda=-5 =3 x= ==")
	f.Fuzz(func(t *testing.T, s string) {
		for id, n := range parseSizes(s) {
			if n < 0 {
				t.Errorf("%s=%d", id, n)
			}
		}
	})
}

func TestDirPrefix(t *testing.T) {
	t.Parallel()
	if p := dirPrefix("6f3c1d5e-0000-4000-8000-00000000abcd"); p != "6f3c1d5e0000-" {
		t.Error(p)
	}
	if n := len(filepath.Base(filepath.Dir(SampleSocket("/d")))); n != len("6f3c1d5e0000-")+12 {
		t.Errorf("the sample's directory has %d characters", n)
	}
}

func TestLostDisk(t *testing.T) {
	t.Parallel()
	for msg, want := range map[string]string{
		"checkpoint inconsistent: missing or broken bitmap 'hf-b' for disk 'vda'": "vda",
		"something for disk 'vda'": "", "missing or broken bitmap": "", "missing or broken bitmap 'x' for disk 'vd": "",
	} {
		if got := lostDisk(golibvirt.Error{Message: msg}); got != want {
			t.Errorf("%s: %q", msg, got)
		}
	}
}

func TestDropFromCheckpoint(t *testing.T) {
	t.Parallel()
	const doc = `<domaincheckpoint><name>hf-a</name><disks><disk name='vda' checkpoint='bitmap' bitmap='hf-a'/><disk name='vdb' checkpoint='bitmap' bitmap='hf-a'/><disk name='hdc' checkpoint='no'/></disks></domaincheckpoint>`
	root, err := domxml.Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		msg  string
		want bool
	}{{"bitmap 'hf-a' not found in backing chain of 'hdc'", false}, {"something else", false}, {"bitmap 'hf-a' not found in backing chain of 'vdb'", true}, {"bitmap 'hf-a' not found in backing chain of 'vda'", false}} {
		if got := dropFromCheckpoint(root, c.msg); got != c.want {
			t.Errorf("%s: %t", c.msg, got)
		}
		if c.want && (strings.Count(root.String(), "bitmap=") != 1 || strings.Contains(root.String(), "name='vdb' checkpoint='bitmap'")) {
			t.Errorf("%s left\n%s", c.msg, root)
		}
	}
}
