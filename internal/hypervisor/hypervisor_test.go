package hypervisor

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
)

// TestMerge compares with a map of bytes.
func TestMerge(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() (list []extent.Extent, in [200]bool) {
		for pos := int64(rng.IntN(20)); pos < 190; pos += int64(1 + rng.IntN(30)) {
			n := int64(1 + rng.IntN(30))
			n = min(n, 200-pos)
			list = append(list, extent.Extent{Off: pos, Len: n})
			for i := range n {
				in[pos+i] = true
			}
			pos += n
		}
		return list, in
	}
	for range 2000 {
		changed, isChanged := random()
		zero, isZero := random()
		c0, z0 := slices.Clone(changed), slices.Clone(zero)
		off := rng.Int64N(200)
		n := rng.Int64N(200 - off)
		pos := off
		var last Range
		if err := Merge(off, n, changed, zero, func(r Range) error {
			if r.Off != pos || r.Len <= 0 || (last.Len > 0 && last.Changed == r.Changed && last.Zero == r.Zero) {
				t.Fatalf("range %+v after %+v at %d", r, last, pos)
			}
			for i := range r.Len {
				if isChanged[r.Off+i] != r.Changed || isZero[r.Off+i] != r.Zero {
					t.Fatalf("byte %d: %+v, changed %v, zero %v", r.Off+i, r, isChanged[r.Off+i], isZero[r.Off+i])
				}
			}
			pos, last = r.Off+r.Len, r
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if pos != off+n {
			t.Fatalf("ended at %d of %d", pos, off+n)
		}
		if !slices.Equal(c0, changed) || !slices.Equal(z0, zero) {
			t.Fatal("the arguments were changed")
		}
	}
}

func TestValidTag(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{"a": true, "A-9": true, "": false, "a b": false, "a/b": false, "ä": false, "a.b": false, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false} {
		if ValidTag(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func TestBootSpecValidate(t *testing.T) {
	t.Parallel()
	good := func() BootSpec {
		return BootSpec{Name: "n", Owner: "o", Disks: []BootDisk{{ID: "a", Size: 1, Path: "/a"}, {ID: "b", Size: 1, Path: "/b"}}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*BootSpec){
		"name": func(s *BootSpec) { s.Name = "" }, "owner": func(s *BootSpec) { s.Owner = "" }, "disks": func(s *BootSpec) { s.Disks = nil },
		"cpus": func(s *BootSpec) { s.CPUs = -1 }, "memory": func(s *BootSpec) { s.MemoryMB = -1 }, "id": func(s *BootSpec) { s.Disks[1].ID = "a" },
		"size": func(s *BootSpec) { s.Disks[0].Size = 0 }, "relative": func(s *BootSpec) { s.Disks[0].Path = "a" }, "path": func(s *BootSpec) { s.Disks[1].Path = "/a" },
	} {
		s := good()
		change(&s)
		if err := s.Validate(); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateGroup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reqs []CutRequest
		ok   bool
	}{"none": {nil, false}, "one": {[]CutRequest{{VM: "a"}}, true}, "two": {[]CutRequest{{VM: "a"}, {VM: "b"}}, true}, "twice": {[]CutRequest{{VM: "a"}, {VM: "a"}}, false}} {
		if err := ValidateGroup(c.reqs); (err == nil) != c.ok || (!c.ok && dr.KindOf(err) != dr.KindInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
