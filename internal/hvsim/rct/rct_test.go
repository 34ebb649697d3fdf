package rct_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/hvsim/rct"
)

const size, gran = 1 << 20, 4096

// TestAgainstModel compares answers with a list of what was written when: every written byte is reported, nothing else but its granule's.
func TestAgainstModel(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d.rct")
	tr := rct.New(path, size, gran)
	rng := rand.New(rand.NewPCG(1, 2))
	type period struct {
		id   string
		seq  uint64
		gran [size / gran]bool
	}
	var model []*period
	for n := range 300 {
		switch k := rng.IntN(10); {
		case k == 0:
			id := string(rune('a' + n%26))
			seq, err := tr.Freeze(id + string(rune('0'+n/26)))
			if err != nil {
				t.Fatal(err)
			}
			model = append(model, &period{id: id + string(rune('0'+n/26)), seq: seq})
		case k == 1 && len(model) > 1: // one is forgotten: it becomes part of the one before
			i := rng.IntN(len(model))
			keep := map[uint64]bool{}
			for j, p := range model {
				keep[p.seq] = j != i
			}
			if err := tr.Keep(keep); err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				for g, on := range model[i].gran {
					model[i-1].gran[g] = model[i-1].gran[g] || on
				}
			}
			model = append(model[:i:i], model[i+1:]...)
		case k == 2: // the program ends and begins again
			if err := tr.Save(); err != nil {
				t.Fatal(err)
			}
			var err error
			if tr, err = rct.Load(path, size, gran); err != nil {
				t.Fatal(err)
			}
		default:
			off := rng.Int64N(size - 20000)
			l := 1 + rng.Int64N(20000)
			if err := tr.Mark(off, l); err != nil {
				t.Fatal(err)
			}
			if len(model) > 0 {
				for g := off / gran; g <= (off+l-1)/gran; g++ {
					model[len(model)-1].gran[g] = true
				}
			}
		}
		if len(model) == 0 {
			continue
		}
		from, to := rng.IntN(len(model)), 0
		end := uint64(0)
		if to = from + rng.IntN(len(model)-from) + 1; to < len(model) {
			end = model[to].seq
		}
		if seq, ok := tr.Seq(model[from].id); !ok || seq != model[from].seq {
			t.Fatalf("point %s: %d %v", model[from].id, seq, ok)
		}
		var got, want [size / gran]bool
		for off := int64(0); off < size; {
			list, n, err := tr.Changes(model[from].seq, end, off, size-off, 3)
			if err != nil || n <= 0 {
				t.Fatalf("changes: %d, %v", n, err)
			}
			for _, e := range list {
				for g := e.Off / gran; g < e.End()/gran; g++ {
					got[g] = true
				}
			}
			off += n
		}
		for _, p := range model[from:to] {
			for g, on := range p.gran {
				want[g] = want[g] || on
			}
		}
		if got != want {
			t.Fatalf("step %d: answers differ", n)
		}
	}
}

func TestUnknownPoints(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d.rct")
	tr := rct.New(path, size, gran)
	seq, err := tr.Freeze("p")
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	// The first mark takes the file away: a program that ends now has lost it.
	if err := tr.Mark(0, 1); err != nil {
		t.Fatal(err)
	}
	if again, err := rct.Load(path, size, gran); err != nil {
		t.Fatal(err)
	} else if _, ok := again.Seq("p"); ok {
		t.Error("a point whose marks are lost is known")
	}
	if err := tr.Resize(2 * size); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tr.Changes(seq, 0, 0, size, 10); !errors.Is(err, rct.ErrUnknown) {
		t.Errorf("after a resize: %v", err)
	}
	if err := os.WriteFile(path, []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := rct.Load(path, size, gran); err != nil || again.Latest() != "" {
		t.Errorf("a damaged file: %v", err)
	}
}
