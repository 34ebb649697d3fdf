package capture_test

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

// When the history is damaged, sending everything again begins anew: the new
// points need nothing of it, and what was whole before stays.
func TestFullResyncHealsDamage(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{"in one cut": 3 << 20, "in rounds": 2*cut.TileSize + 1<<20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if size > cut.TileSize && testing.Short() {
				t.Skip("compares 130 MiB again and again")
			}
			w := newWorld(t, 31, size, 1<<20)
			w.open(1, cut.Ref{})
			w.write(30)
			a := w.assignment()
			r := w.start(a, func(c *capture.Config) { c.HoldLimit = time.Nanosecond })
			w.drain(r)
			w.write(5)
			damaged := w.drain(r)
			w.write(5)
			w.drain(r)
			key := cut.CutObject(w.machine, damaged.Gen, damaged.N)
			raw, err := objstore.ReadAll(t.Context(), w.bucket, key, 1<<30)
			if err == nil {
				err = w.bucket.Delete(t.Context(), key)
			}
			if err != nil {
				t.Fatal(err)
			}
			raw = bytes.Clone(raw)
			raw[len(raw)-200] ^= 1
			if err := w.bucket.PutNew(t.Context(), key, bytes.NewReader(raw), int64(len(raw)), nil); err != nil {
				t.Fatal(err)
			}
			a.ResyncRequest, a.ResyncFull = "1", true
			r.Assign(a)
			for range 5 {
				w.write(5)
				w.drain(r)
			}
			r.stop(t)
			s := w.store()
			chain, err := s.Chain(context.Background(), w.machine)
			if err != nil {
				t.Fatal(err)
			}
			whole := slices.ContainsFunc(chain.Points, func(p store.CutInfo) bool { return p.N == damaged.N-1 })
			if len(chain.Refused) < 1 || len(chain.Points) < 3 || !whole || chain.Points[len(chain.Points)-1].N < damaged.N+3 {
				t.Fatalf("%d points from %d on, refused %v", len(chain.Points), chain.Points[0].N, chain.Refused)
			}
			bases := 0
			for _, c := range chain.Path {
				if c.Commit.Base {
					bases++
				}
			}
			if bases != 2 {
				t.Errorf("%d elements of the path are complete by themselves, want the first and the new one", bases)
			}
			for _, p := range chain.Points {
				v, err := s.OpenPoint(t.Context(), w.machine, p.Gen, p.N)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range v.Disks() {
					at, err := w.flat[p.Commit.Token][d.ID].differs(t.Context(), v, d)
					if err != nil {
						t.Fatal(err)
					}
					if at >= 0 {
						t.Errorf("point %s: disk %s differs from the source at byte %d", dr.PointName(p.Gen, p.N), d.ID, at)
					}
				}
				v.Close()
			}
		})
	}
}
