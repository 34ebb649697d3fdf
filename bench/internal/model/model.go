// Package model measures what only a long history shows, on histories that are
// written for it: opening a point among thousands of cuts, what keeping a
// retention costs, and the memory of extent maps. It promises that what the
// maintained store gives back is what was written.
package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/zeebo/blake3"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/extmap"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
)

// interval between the cuts of a history.
const interval = 5 * time.Minute

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func cutTime(n uint64) time.Time { return began.Add(time.Duration(n) * interval) }

// history is a machine with one disk in a store in memory, and the disk's content.
type history struct {
	*replica.Writer
	bucket *mem.Bucket
	flat   []byte
	rng    *rand.Rand
	fill   *rand.ChaCha8
}

// newHistory begins with a base whose first blocks hold noise.
func newHistory(ctx context.Context, size, blocks int64, seed uint64) (*history, error) {
	h := &history{bucket: mem.New(), flat: make([]byte, size), rng: rand.New(rand.NewPCG(seed, 7)), fill: rand.NewChaCha8([32]byte{byte(seed)})}
	var err error
	if h.Writer, err = replica.NewWriter(ctx, h.bucket, cut.CodecNone, size); err != nil {
		return nil, err
	}
	h.Time = cutTime
	h.fill.Read(h.flat[:blocks*cut.Unit])
	var buf bytes.Buffer
	for off := int64(0); off < size; off += cut.TileSize {
		body := h.flat[off:min(off+cut.TileSize, size)]
		err := h.Tile(ctx, 0, uint32(off/cut.TileSize), &buf, func(w *cut.Writer, base int64) error { return w.Data(ctx, 0, base, body) })
		if err != nil {
			return nil, err
		}
	}
	return h, h.Cut(ctx, nil)
}

// cycle writes n blocks, 90 % of them to a tenth of the disk, and commits a cut.
func (h *history) cycle(ctx context.Context, n int) error {
	blocks := int64(len(h.flat)) / cut.Unit
	dirty := map[int64]bool{}
	for range n {
		at := h.rng.Int64N(blocks)
		if h.rng.IntN(10) > 0 {
			at /= 10
		}
		dirty[at] = true
		h.fill.Read(h.flat[at*cut.Unit:][:cut.Unit])
	}
	return h.Cut(ctx, func(w *cut.Writer) error {
		for at := range blocks {
			if !dirty[at] {
				continue
			}
			if err := w.Data(ctx, 0, at*cut.Unit, h.flat[at*cut.Unit:][:cut.Unit]); err != nil {
				return err
			}
		}
		return nil
	})
}

// compactor is one for which every grace has passed.
func (h *history) compactor(cfg compact.Config) *compact.Compactor {
	keys := store.NewKeyring(h.bucket, h.Key)
	cfg.Bucket, cfg.Keys, cfg.Store = h.bucket, keys, store.New(store.Config{Bucket: h.bucket, Keys: keys})
	cfg.Compactor, cfg.Grace, cfg.LeftoverGrace = "bench", 1, 1
	cfg.Now = func() time.Time { return time.Now().AddDate(100, 0, 0) }
	return compact.New(cfg)
}

// Opened is what opening a point and reading its first block took.
type Opened struct {
	meter.Usage
	Requests, Bytes int64
}

// Opening is the result of Open.
type Opening struct {
	Plain, PlainSlow           Opened // every cut is opened; slow: 20 ms a request
	Checkpoint, CheckpointSlow Opened // after maintenance
	Few, FewSlow               Opened // a point with ten cuts, the same disk
	Maintain                   meter.Usage
}

// Delay of the slow store, for each request.
const Delay = 20 * time.Millisecond

// Open measures opening the newest of so many cuts, with and without what
// maintenance leaves, and of ten.
func Open(ctx context.Context, cuts int, seed uint64) (o Opening, err error) {
	h, err := newHistory(ctx, 64<<20, 1024, seed)
	if err != nil {
		return o, err
	}
	both := func(fast, slow *Opened) error {
		if *fast, err = h.open(ctx, 0); err == nil {
			*slow, err = h.open(ctx, Delay)
		}
		return err
	}
	for h.Tip() < 10 {
		if err := h.cycle(ctx, 16); err != nil {
			return o, err
		}
	}
	if err := both(&o.Few, &o.FewSlow); err != nil {
		return o, err
	}
	for h.Tip() < uint64(cuts) {
		if err := h.cycle(ctx, 16); err != nil {
			return o, err
		}
	}
	if err := both(&o.Plain, &o.PlainSlow); err != nil {
		return o, err
	}
	o.Maintain, err = meter.Self(func() error {
		_, err := h.compactor(compact.Config{}).Maintain(ctx, h.Machine, compact.Rules{Fine: 100 * 365 * 24 * time.Hour})
		return err
	})
	if err != nil {
		return o, err
	}
	return o, both(&o.Checkpoint, &o.CheckpointSlow)
}

// open opens the newest point and compares its first block.
func (h *history) open(ctx context.Context, delay time.Duration) (o Opened, err error) {
	counted := &replica.Counting{Reader: h.bucket, Delay: delay}
	got := make([]byte, cut.Unit)
	o.Usage, err = meter.Self(func() error {
		v, err := h.Open(ctx, counted, h.Tip())
		if err != nil {
			return err
		}
		return errors.Join(v.ReadAt(ctx, rawhost.DiskID, got, 0), v.Close())
	})
	if err == nil && !bytes.Equal(got, h.flat[:cut.Unit]) {
		err = errors.New("the first block differs from what was written")
	}
	o.Requests, o.Bytes = counted.Gets.Load()+counted.Lists.Load(), counted.Bytes.Load()
	return o, err
}

// Kept is the result of Retain.
type Kept struct {
	Disk     int64 // data on the disk, bytes
	Shipped  int64 // by the cuts, stored bytes
	Rewrote  int64 // stored by maintenance
	Most     int64 // the store's greatest size after a pass
	Last     int64 // and its last
	Points   int
	Cycles   int
	Compared int           // points whose every byte was compared
	CPU      time.Duration // of maintenance
}

// Rules of the modelled retention: a day of every point, then hourly and daily ones.
var Rules = compact.Rules{Fine: 24 * time.Hour, Hourly: 3 * 24 * time.Hour, Daily: 30 * 24 * time.Hour}

// perCycle is the share of the disk that a guest writes in a cycle: 1/1024, which
// is a quarter of the disk a day if nothing were written twice.
const perCycle = 1024

// Retain plays cycles of five minutes with maintenance each hour on a disk of the given size.
func Retain(ctx context.Context, size int64, cycles int, seed uint64) (k Kept, err error) {
	blocks := size / cut.Unit
	h, err := newHistory(ctx, size, blocks*6/10, seed)
	if err != nil {
		return k, err
	}
	k.Disk, k.Cycles = blocks*6/10*cut.Unit, cycles
	base := h.Bytes
	sums := map[uint64][32]byte{}
	// The thresholds of real disks, made smaller as the disk is.
	c := h.compactor(compact.Config{SegmentSize: 4 << 20, SmallObject: 64 << 10})
	for i := range cycles {
		if err := h.cycle(ctx, int(max(1, blocks/perCycle))); err != nil {
			return k, err
		}
		if i%(max(1, cycles/20)) == 0 {
			sums[h.Tip()] = blake3.Sum256(h.flat)
		}
		if i%12 != 11 {
			continue
		}
		u, err := meter.Self(func() error {
			rep, err := c.Maintain(ctx, h.Machine, Rules)
			k.Rewrote += rep.Wrote
			if err == nil && len(rep.Refused) > 0 {
				err = fmt.Errorf("maintenance found damage: %v", rep.Refused)
			}
			return err
		})
		if err != nil {
			return k, err
		}
		k.CPU += u.CPU
		k.Last = h.bucket.Used()
		k.Most = max(k.Most, k.Last)
	}
	k.Shipped = h.Bytes - base
	sums[h.Tip()] = blake3.Sum256(h.flat)
	chain, err := h.Store(h.bucket).Chain(ctx, h.Machine)
	if err != nil {
		return k, err
	}
	if len(chain.Refused) > 0 {
		return k, fmt.Errorf("points are refused after maintenance: %v", chain.Refused)
	}
	k.Points = len(chain.Points)
	for _, p := range chain.Points {
		if want, ok := sums[p.N]; ok {
			if err := h.compare(ctx, p.N, want); err != nil {
				return k, err
			}
			k.Compared++
		}
	}
	return k, nil
}

func (h *history) compare(ctx context.Context, n uint64, want [32]byte) error {
	v, err := h.Open(ctx, objstore.Reader(h.bucket), n)
	if err != nil {
		return err
	}
	defer v.Close()
	sum := blake3.New()
	p := make([]byte, 4<<20)
	for off := int64(0); off < int64(len(h.flat)); off += int64(len(p)) {
		p = p[:min(int64(len(p)), int64(len(h.flat))-off)]
		if err := v.ReadAt(ctx, rawhost.DiskID, p, off); err != nil {
			return err
		}
		sum.Write(p)
	}
	if [32]byte(sum.Sum(nil)) != want {
		return fmt.Errorf("point %d differs from what was written", n)
	}
	return nil
}

// Map is the result of ExtentMap.
type Map struct {
	Memory, File float64 // bytes for each extent
	Build        meter.Usage
	Find         time.Duration // one look-up at a random place, mean
}

// ExtentMap builds the map of a disk with so many extents, one in each 64 KiB, below dir.
func ExtentMap(ctx context.Context, dir string, extents int64, seed uint64) (r Map, err error) {
	b, err := extmap.NewBuilder(extmap.Config{Dir: dir})
	if err != nil {
		return r, err
	}
	defer b.Close()
	var m *extmap.Map
	r.Build, err = meter.Self(func() error {
		if err := b.AddLayer(ctx, nil, evenly(extents)); err != nil {
			return err
		}
		m, err = b.Build(ctx)
		return err
	})
	if err != nil {
		return r, err
	}
	defer m.Close()
	memory, file := m.Footprint()
	r.Memory, r.File = float64(memory)/float64(extents), float64(file)/float64(extents)
	rng := rand.New(rand.NewPCG(seed, 8))
	const finds = 100_000
	start := time.Now()
	for range finds {
		at := rng.Int64N(extents)
		if got, err := m.Find(at * extmap.MaxData); err != nil || got != at {
			return r, fmt.Errorf("extent %d was looked up as %d: %w", at, got, err)
		}
	}
	r.Find = time.Since(start) / finds
	return r, nil
}

func evenly(n int64) iter.Seq2[extmap.Extent, error] {
	return func(yield func(extmap.Extent, error) bool) {
		for i := range n {
			e := extmap.Extent{Off: i * extmap.MaxData, Len: (i*7%8 + 1) * extmap.Unit, Seg: int32(i % 1000), Frame: uint32(i / 1000), FrameOff: uint32(i % 8 * extmap.Unit)}
			if !yield(e, nil) {
				return
			}
		}
	}
}
