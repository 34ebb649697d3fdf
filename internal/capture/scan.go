package capture

import (
	"context"
	"errors"
	"slices"

	"holdfast/internal/capture/filter"
	"holdfast/internal/capture/frozen"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Comparing finds the true differences between a disk and the chain. What the
// local filter knows is compared by 4 KiB; a tile that it does not know by two levels of
// digests of what the store has, 64 MiB and 64 KiB. The store's data is not read.

const (
	tileBlocks   = cut.TileSize / cut.Block
	blockUnits   = cut.Block / cut.Unit
	rootsAtATime = 64
)

// compare compares tiles of a disk with what the chain has, from a tile on,
// until it is time to stop, and takes what differs. It returns the first tile that is not compared.
func (b *build) compare(ctx context.Context, d cut.Disk, tile uint32) (uint32, error) {
	var known []hypervisor.Range // of the window that the tile is in
	var end int64
	final := b.until.IsZero()
	for ; int64(tile)*cut.TileSize < d.Size; tile++ {
		if !final && (b.stopBulk(b.tiles > 0) || b.tiles > 0 && b.s.Size() >= b.budget()) {
			return tile, nil
		}
		off := int64(tile) * cut.TileSize
		n := min(cut.TileSize, d.Size-off)
		if off >= end {
			var err error
			end = min(off+frozen.Window, d.Size)
			if known, err = frozen.Ranges(ctx, b.c, d.ID, off, end-off, frozen.All); err != nil {
				return tile, err
			}
		}
		if err := b.compareTile(ctx, d, tile, frozen.Widen(frozen.Clip(known, off, off+n), d.Size)); err != nil {
			return tile, err
		}
		b.tiles++
		b.r.compared(b, d, tile, n)
		if err := b.r.step("scan.tile"); err != nil {
			return tile, err
		}
	}
	return tile, nil
}

// budget is how large the cut of a round may get, bytes.
func (b *build) budget() int64 { return max(b.r.spool.Limit()/4, b.r.cfg.PartSize) }

// compareTile takes what differs in one tile. rs are its ranges.
func (b *build) compareTile(ctx context.Context, d cut.Disk, tile uint32, rs []hypervisor.Range) error {
	t := b.tables[d.Index]
	off := int64(tile) * cut.TileSize
	n := min(cut.TileSize, d.Size-off)
	count := (n + cut.Unit - 1) / cut.Unit
	if len(rs) == 1 && rs[0].Zero && t.Blank(off/cut.Unit, count) {
		return nil
	}
	if b.have == nil {
		b.have = make([]uint64, cut.TileSize/cut.Unit)
	}
	have := b.have[:count]
	if err := t.Load(off/cut.Unit, have); err != nil {
		return err
	}
	if len(rs) == 1 && rs[0].Zero && !slices.ContainsFunc(have, func(v uint64) bool { return v != filter.Zero }) {
		return nil
	}
	for _, v := range have {
		if v == filter.Unknown && b.r.cfg.Digests != nil && !b.after.Scan.Full {
			return b.compareDigests(ctx, d, tile, rs, have)
		}
	}
	return b.read.Read(ctx, d.ID, rs, func(off, n int64, p []byte) error {
		if p == nil {
			return b.s.Trim(ctx, t, d.Index, off, n, nil)
		}
		i := off/cut.Unit - int64(tile)*(cut.TileSize/cut.Unit)
		return b.s.TrimData(ctx, t, d.Index, off, p, have[i:i+(n+cut.Unit-1)/cut.Unit])
	})
}

// compareDigests compares one tile with the digests of what the store has. The
// local filter knows it in part at most.
func (b *build) compareDigests(ctx context.Context, d cut.Disk, tile uint32, rs []hypervisor.Range, have []uint64) error {
	root, err := b.root(ctx, d, tile)
	if err != nil {
		return err
	}
	x := newTileSums(b.tables[d.Index], d, tile)
	if root.Zero {
		if err := x.fill(ctx, b.read, rs, cut.DigestKey{}, false); err != nil {
			return err
		}
		return b.takeBlocks(ctx, d, tile, rs, have, x, make([][16]byte, tileBlocks))
	}
	if err := x.fill(ctx, b.read, rs, root.Key, true); err != nil {
		return err
	}
	if root.Key.Root(x.digests) == root.Root {
		return b.takeBlocks(ctx, d, tile, rs, have, x, x.digests)
	}
	key := root.Key
	for range 3 {
		made, sums, err := b.r.cfg.Digests.Blocks(ctx, b.after.Scan.At, d.Index, tile)
		if err != nil || len(sums) != tileBlocks {
			return digestsError(d, tile, err)
		}
		if made == key {
			return b.takeBlocks(ctx, d, tile, rs, have, x, sums)
		}
		// The tile has got another image meanwhile, whose digests have another key.
		key = made
		if err := x.fill(ctx, b.read, rs, key, true); err != nil {
			return err
		}
	}
	return digestsError(d, tile, errors.New("their key changes all the time"))
}

// root returns the digest of a tile as the chain has it. What lies beyond the
// disk's end at that time is zero.
func (b *build) root(ctx context.Context, d cut.Disk, tile uint32) (TileRoot, error) {
	if x, ok := b.roots[tileID{d.Index, tile}]; ok {
		return x, nil
	}
	at := b.after.Scan.At
	if at.IsZero() {
		return TileRoot{}, errShipFirst
	}
	count := min(rootsAtATime, uint32((d.Size+cut.TileSize-1)/cut.TileSize)-tile)
	roots, err := b.r.cfg.Digests.Roots(ctx, at, d.Index, tile, count)
	if err != nil || len(roots) > int(count) {
		return TileRoot{}, digestsError(d, tile, err)
	}
	b.roots = map[tileID]TileRoot{}
	for i := range count {
		b.roots[tileID{d.Index, tile + i}] = TileRoot{Tile: tile + i, Zero: true}
	}
	for i, x := range roots {
		if x.Tile != tile+uint32(i) {
			return TileRoot{}, digestsError(d, tile, dr.Errorf(dr.KindInvalid, "capture.scan", "the answer has tile %d in place %d", x.Tile, i))
		}
		b.roots[tileID{d.Index, x.Tile}] = x
	}
	return b.roots[tileID{d.Index, tile}], nil
}

// errShipFirst says that digests are needed and that the cut they are to be of
// is not in the store yet.
var errShipFirst = errors.New("the spool has to be empty before digests can be compared")

func digestsError(d cut.Disk, tile uint32, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, errCrash) {
		return err
	}
	if err == nil {
		err = errors.New("the answer has another length than asked for")
	}
	return dr.New(dr.KindUnavailable, dr.CodeDigestsUnavailable, "capture.scan", "ask for the digests of tile %d of disk %s: %w", tile, d.ID, err)
}

// takeBlocks goes over the blocks of a tile: what is certainly the same is
// noted in the filter, the rest goes into the cut.
func (b *build) takeBlocks(ctx context.Context, d cut.Disk, tile uint32, rs []hypervisor.Range, have []uint64, x *tileSums, sums [][16]byte) error {
	t := b.tables[d.Index]
	first := int64(tile) * cut.TileSize
	var differ []hypervisor.Range
	for i := 0; i*blockUnits < len(have); i++ {
		lo, hi := i*blockUnits, min((i+1)*blockUnits, len(have))
		known, same := 0, true
		for u := lo; u < hi; u++ {
			if have[u] != filter.Unknown {
				known++
				same = same && have[u] == x.sums[u]
			}
		}
		// A block that is known in part was changed after the cut whose digests
		// are compared, so only one that is not known at all may go by its digest.
		if known == 0 {
			same = sums[i] == x.digests[i] && x.zero(lo, hi) == (sums[i] == [16]byte{})
		} else if known < hi-lo {
			same = false
		}
		if same {
			continue
		}
		differ = append(differ, frozen.Clip(rs, first+int64(lo)*cut.Unit, min(first+int64(hi)*cut.Unit, d.Size))...)
	}
	// What is the same is true of the chain already, whether this cut is committed or not.
	at := 0
	for _, r := range append(differ, hypervisor.Range{Off: first + int64(len(have))*cut.Unit}) {
		if to := int((r.Off - first) / cut.Unit); to > at {
			if err := t.Store(first/cut.Unit+int64(at), x.sums[at:to]); err != nil {
				return err
			}
		}
		at = max(at, int((r.Off+r.Len-first+cut.Unit-1)/cut.Unit))
	}
	return b.read.Read(ctx, d.ID, differ, func(off, n int64, p []byte) error { return b.s.Trim(ctx, t, d.Index, off, n, p) })
}

// tileSums are the filter entries and the block digests of a tile's content.
type tileSums struct {
	t       *filter.Table
	disk    cut.Disk
	first   int64 // byte that the tile begins at
	sums    []uint64
	digests [][16]byte
	block   []byte // a block that comes in pieces
}

func newTileSums(t *filter.Table, d cut.Disk, tile uint32) *tileSums {
	first := int64(tile) * cut.TileSize
	n := min(cut.TileSize, d.Size-first)
	return &tileSums{t: t, disk: d, first: first, sums: make([]uint64, (n+cut.Unit-1)/cut.Unit), digests: make([][16]byte, tileBlocks)}
}

// zero reports whether units [lo, hi) are all zero.
func (x *tileSums) zero(lo, hi int) bool {
	for _, v := range x.sums[lo:hi] {
		if v != filter.Zero {
			return false
		}
	}
	return true
}

// fill reads the tile and makes its sums; digests with key only if they are wanted.
func (x *tileSums) fill(ctx context.Context, r *frozen.Reader, rs []hypervisor.Range, key cut.DigestKey, digests bool) error {
	clear(x.digests)
	for i := range x.sums {
		x.sums[i] = filter.Zero
	}
	digester := key.NewDigester()
	partial := int64(-1) // number of the block that is being gathered
	flush := func() {
		if partial >= 0 {
			x.digests[partial] = digester.Sum(x.block)
			clear(x.block)
			partial = -1
		}
	}
	err := r.Read(ctx, x.disk.ID, rs, func(off, n int64, p []byte) error {
		if p == nil {
			return nil
		}
		x.t.Sums(x.sums[:(off-x.first)/cut.Unit], p)
		for len(p) > 0 && digests {
			b := (off - x.first) / cut.Block
			start := x.first + b*cut.Block
			k := min(int64(len(p)), start+cut.Block-off)
			switch {
			case off == start && (k == cut.Block || off+k == x.disk.Size):
				flush()
				x.digests[b] = digester.Sum(p[:k])
			default:
				if partial != b {
					flush()
					partial = b
				}
				if x.block == nil {
					x.block = make([]byte, cut.Block)
				}
				copy(x.block[off-start:], p[:k])
			}
			off, p = off+k, p[k:]
		}
		return nil
	})
	flush()
	return err
}
