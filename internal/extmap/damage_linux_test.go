package extmap

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDamage changes the file under a finished map. Everything that meets the
// damage fails with ErrDamaged, everything else still answers rightly, and
// the process lives: a shortened file makes a mapping fault.
func TestDamage(t *testing.T) {
	t.Parallel()
	const n = 3000
	for _, shape := range []string{"mapped", "file"} {
		for name, harm := range map[string]func(f *os.File) error{
			"emptied":   func(f *os.File) error { return f.Truncate(0) },
			"shortened": func(f *os.File) error { return f.Truncate(20_000) },
			"zeroes":    func(f *os.File) error { _, err := f.WriteAt(make([]byte, 4096), 8192); return err },
			"a bit":     func(f *os.File) error { _, err := f.WriteAt([]byte{0x81}, 5000); return err },
			"the last":  func(f *os.File) error { _, err := f.WriteAt([]byte{0x81}, n*recordSize-1); return err },
		} {
			t.Run(shape+"/"+name, func(t *testing.T) {
				t.Parallel()
				b := newTestBuilder(t, shape)
				if err := b.AddLayer(t.Context(), nil, evenly(n, 5)); err != nil {
					t.Fatal(err)
				}
				m := build(t, b)
				if (m.run.mapped != nil) != (shape == "mapped") {
					t.Fatalf("mapped: %t", m.run.mapped != nil)
				}
				whole, err := collect(m.All())
				if err != nil {
					t.Fatal(err)
				}
				f := m.run.file.(*os.File)
				if err := harm(f); err != nil {
					t.Fatal(err)
				}
				failed, good := 0, -1
				for i, want := range whole {
					pos, err := m.Find(want.Off)
					if err != nil {
						failed++
						if !errors.Is(err, ErrDamaged) {
							t.Fatal(err)
						}
						if err := m.Walk(want.Off, want.Len, func(Extent) error { return errors.New("called") }); !errors.Is(err, ErrDamaged) {
							t.Fatalf("walk: %v", err)
						}
						if good >= 0 { // what was read last is not taken for the block before it
							if pos, err := m.Find(whole[good].Off + 1); err != nil || pos != int64(good) {
								t.Fatalf("extent %d after a failure: %d %v", good, pos, err)
							}
						}
						continue
					}
					got, err := m.At(pos)
					if err != nil || pos != int64(i) || got != want {
						t.Fatalf("extent %d: found %d, %v %v, want %v", i, pos, got, err, want)
					}
					good = i
				}
				if failed == 0 {
					t.Error("the damage had no effect")
				}
				got, err := collect(m.All())
				if !errors.Is(err, ErrDamaged) || len(got) >= n || !slices.Equal(got, whole[:len(got)]) {
					t.Errorf("all gave %d: %v", len(got), err)
				}
				if _, err := m.LiveBySegment(t.Context()); !errors.Is(err, ErrDamaged) {
					t.Errorf("live: %v", err)
				}
				if err := b.AddMap(t.Context(), m); err != nil {
					t.Fatal(err)
				}
				if err := b.AddLayer(context.Background(), nil, scattered(10, 1<<20, 1, 1)); err == nil {
					_, err = b.Build(t.Context())
					if !errors.Is(err, ErrDamaged) {
						t.Errorf("build upon it: %v", err)
					}
				} else if !errors.Is(err, ErrDamaged) {
					t.Errorf("layer upon it: %v", err)
				}
			})
		}
	}
}

// TestFilesAreGivenBack looks at the process's descriptors and mappings.
func TestFilesAreGivenBack(t *testing.T) {
	dir := t.TempDir()
	held := func() (n int) {
		for _, pattern := range []string{"/proc/self/fd/*", "/proc/self/map_files/*"} {
			links, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range links {
				if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir) {
					n++
				}
			}
		}
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return n + strings.Count(string(maps), dir)
	}
	b, err := NewBuilder(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	shapes["mapped"](b)
	for i := range 60 {
		if err := b.AddLayer(t.Context(), nil, scattered(500, 1<<30, int32(i), uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	if held() < 2 {
		t.Errorf("%d files while building", held())
	}
	m := build(t, b)
	if held() < 2 { // descriptor and mapping
		t.Errorf("%d files of a map", held())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("the directory shows %v %v", left, err)
	}
	if err := errors.Join(b.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	if n := held(); n != 0 {
		t.Errorf("%d files are held after all", n)
	}
}
