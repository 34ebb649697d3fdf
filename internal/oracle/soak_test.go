package oracle

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// TestSoak replicates a VM for a day of virtual time at five-minute cycles, with
// retention, maintenance every half an hour, and a network that is away for an
// hour: memory stays flat, the store stays within the modelled amplification, and
// what is listed at the end is the truth.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("a day of virtual time takes about 20 s")
	}
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		const size = 24 << 20
		rng := rand.New(rand.NewPCG(24, 24))
		w := newWorld(t, rng, size)
		w.sums = map[string]map[string][32]byte{}
		fill := make([]byte, size/2)
		for i := range fill {
			fill[i] = byte(rng.Uint32())
		}
		if err := w.vm.Write("vda", 0, fill); err != nil {
			t.Fatal(err)
		}
		w.start(nil)
		a := w.assignment()
		a.CopyFrequency = 5 * time.Minute
		w.run.Assign(a)
		if _, _, err := w.run.AwaitInitial(t.Context()); err != nil {
			t.Fatal(err)
		}
		base := w.size()
		c := compact.New(compact.Config{Bucket: w.bucket, Store: w.store(), Keys: store.NewKeyring(w.bucket, w.priv), Compactor: "vault", Grace: time.Hour, SegmentSize: 4 << 20, SmallObject: 64 << 10})
		rules := compact.Rules{Fine: 2 * time.Hour, Hourly: 12 * time.Hour}
		var wrote, most int64
		var early uint64
		for hour := 0; hour < 24; hour++ {
			if hour == 9 {
				w.cutNetwork(true)
			}
			if hour == 10 {
				w.cutNetwork(false)
				w.run.Kick()
			}
			for step := range 12 {
				w.writeBlocks(12)
				time.Sleep(5 * time.Minute)
				if step%6 != 5 {
					continue
				}
				rep, err := c.Maintain(t.Context(), w.machine, rules)
				if err != nil {
					t.Fatal(err)
				}
				wrote += rep.Wrote
				most = max(most, w.size())
			}
			if hour == 5 {
				early = heap()
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := w.drain(ctx); err != nil {
			t.Fatal(err)
		}
		late := heap()
		shipped := w.run.Status().Cycles
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		points := w.checkSums()
		sent := int64(24*12*12) * cut.Unit
		t.Logf("%d cycles, %d points at the end; %d KiB changed, %d KiB rewritten (amplification %.2f); store %.2f times the initial replica at most; heap %d KiB after 6 h, %d KiB after 24 h",
			shipped, points, sent>>10, wrote>>10, 1+float64(wrote)/float64(sent), float64(most)/float64(base), early>>10, late>>10)
		if shipped < 250 || points < 24 {
			t.Errorf("%d cycles and %d points in a day", shipped, points)
		}
		if amp := 1 + float64(wrote)/float64(sent); amp > 2.8 {
			t.Errorf("write amplification %.2f, want at most 2.8", amp)
		}
		if late > early+early/2+(32<<20) {
			t.Errorf("the heap grew from %d to %d bytes", early, late)
		}
	})
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// size is the bytes in the store.
func (w *world) size() (n int64) {
	w.t.Helper()
	err := w.bucket.List(context.Background(), "", func(i objstore.Info) error { n += i.Size; return nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) cutNetwork(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = nil
	if away {
		w.fault = func(string) (error, error) {
			return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "oracle.Put", "the network is away"), nil
		}
	}
}

// writeBlocks writes random blocks of 4 KiB, most of them to a tenth of the disk.
func (w *world) writeBlocks(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := make([]byte, cut.Unit)
	for range n {
		at := w.rng.Int64N(w.vm.Size("vda") / cut.Unit)
		if w.rng.IntN(10) > 0 {
			at /= 10
		}
		for i := range p {
			p[i] = byte(w.rng.Uint32())
		}
		if err := w.vm.Write("vda", at*cut.Unit, p); err != nil {
			w.t.Fatal(err)
		}
	}
}

// checkSums compares every listed point with the hash of the truth.
func (w *world) checkSums() int {
	w.t.Helper()
	chain := w.chain()
	for _, p := range chain.Points {
		v, err := w.store().OpenPoint(context.Background(), w.machine, p.Gen, p.N)
		if err != nil {
			w.t.Fatal(err)
		}
		got := make([]byte, v.Disks()[0].Size)
		if err := v.ReadAt(context.Background(), "vda", got, 0); err != nil {
			w.t.Fatal(err)
		}
		if err := v.Close(); err != nil {
			w.t.Fatal(err)
		}
		w.mu.Lock()
		want, known := w.sums[p.Commit.Token]["vda"]
		w.mu.Unlock()
		if !known || sha256.Sum256(got) != want {
			w.t.Errorf("point %s is not the source at its cut", dr.PointName(p.Gen, p.N))
		}
	}
	return len(chain.Points)
}

// warm makes the decoders that package cut shares, outside of any synctest bubble.
func warm(t *testing.T) {
	r := storetest.New(t, mem.New(), 1<<20)
	r.Write(0, 0, make([]byte, cut.Unit))
	if err := r.Compare(t.Context(), r.Store(), r.Base()); err != nil {
		t.Fatal(err)
	}
}
