package compact

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"math"
	"slices"

	"github.com/zeebo/blake3"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/store"
)

// tileID is a tile of a disk.
type tileID struct {
	disk uint16
	tile uint32
}

// folding is one run being made.
type folding struct {
	*Compactor
	m       dr.MachineID
	to      store.CutInfo
	uid     string
	view    *store.View
	key     cut.EpochKey
	report  *Report
	folded  map[tileID]cut.TileRef
	rewrite map[int]bool // objects whose data in effect is copied
	fresh   []cut.MapExtent
	refs    []cut.SegmentRef
	refOf   map[int]int // object of the view → refs
	k       int         // data segments written
}

// fold makes the run of one group.
func (c *Compactor) fold(ctx context.Context, m dr.MachineID, g group, rules Rules, r *Report) (err error) {
	f, err := c.open(ctx, m, g.elements, g.uid, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.view.Close()) }()
	if g.base {
		if err := f.foldTiles(ctx, rules.Fold); err != nil {
			return err
		}
	}
	if err := f.choose(ctx, rules.MinLive); err != nil {
		return err
	}
	if err := f.copyData(ctx); err != nil {
		return err
	}
	if err := c.step("run"); err != nil {
		return err
	}
	cfg := cut.RunConfig{Kind: cut.KindRun, Cuts: stands(g.elements)}
	if !g.base {
		cfg.From = f.view.First().Commit.Prev
	}
	if err := f.publish(ctx, cfg); err != nil {
		return err
	}
	r.Runs++
	return c.step("published")
}

// writeMap writes a checkpoint of the newest point.
func (c *Compactor) writeMap(ctx context.Context, m dr.MachineID, r *Report) (err error) {
	h, err := c.cfg.Store.Names(ctx, m)
	if err != nil || len(h.Path) == 0 {
		return err
	}
	tip := h.Path[len(h.Path)-1]
	v, err := c.cfg.Store.OpenPosition(ctx, m, tip.Gen, tip.N)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	f := c.folding(m, v, cut.NewUID(), r)
	if err := f.choose(ctx, 0); err != nil { // a checkpoint refers to everything as it is
		return err
	}
	if f.key, err = c.cfg.Keys.EpochKey(ctx, m, v.Epoch()); err != nil {
		return err
	}
	if err := c.step("map"); err != nil {
		return err
	}
	return f.publish(ctx, cut.RunConfig{Kind: cut.KindMap, Cuts: uint64(len(h.Path))})
}

// stands counts the cuts that elements stand for.
func stands(elements []store.CutInfo) (n uint64) {
	for _, x := range elements {
		if x.Commit.Run != nil {
			n += x.Commit.Run.Cuts
		} else {
			n++
		}
	}
	return n
}

func (c *Compactor) folding(m dr.MachineID, v *store.View, uid string, r *Report) *folding {
	return &folding{Compactor: c, m: m, to: v.Info(), uid: uid, view: v, report: r,
		folded: map[tileID]cut.TileRef{}, rewrite: map[int]bool{}, refOf: map[int]int{}}
}

func (c *Compactor) open(ctx context.Context, m dr.MachineID, elements []store.CutInfo, uid string, r *Report) (*folding, error) {
	names := make([]store.CutName, len(elements))
	for i, e := range elements {
		names[i] = e.CutName
	}
	v, err := c.cfg.Store.OpenSpan(ctx, m, names)
	if err != nil {
		return nil, err
	}
	f := c.folding(m, v, uid, r)
	if f.key, err = c.cfg.Keys.EpochKey(ctx, m, v.Epoch()); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return f, nil
}

// pieces calls fn for what the run says itself: all ranges that no folded tile covers.
func (f *folding) pieces(fn func(disk uint16, p store.Piece) error) error {
	for _, d := range f.view.Disks() {
		for tile := uint32(0); int64(tile)*cut.TileSize < d.Size; tile++ {
			if _, ok := f.folded[tileID{d.Index, tile}]; ok {
				continue
			}
			off := int64(tile) * cut.TileSize
			err := f.view.Pieces(d.Index, off, min(off+cut.TileSize, d.Size), func(p store.Piece) error { return fn(d.Index, p) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// foldTiles writes new images of the tiles of which expired changes cover a share.
func (f *folding) foldTiles(ctx context.Context, share float64) error {
	for _, d := range f.view.Disks() {
		for tile := uint32(0); int64(tile)*cut.TileSize < d.Size; tile++ {
			off := int64(tile) * cut.TileSize
			length := min(cut.TileSize, d.Size-off)
			covered := int64(0)
			err := f.view.Pieces(d.Index, off, off+length, func(p store.Piece) error { covered += p.Len; return nil })
			if err != nil {
				return err
			}
			if covered == 0 || float64(covered) < share*float64(length) {
				continue
			}
			if err := f.foldTile(ctx, d, tile, off, length); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *folding) foldTile(ctx context.Context, d store.DiskInfo, tile uint32, off, length int64) error {
	if err := f.step("tile"); err != nil {
		return err
	}
	h := cut.Header{Kind: cut.KindTile, Machine: f.m, Gen: f.to.Gen, N: f.to.N, KeyEpoch: f.view.Epoch(), Disk: d.Index, Tile: tile}
	seg, err := f.newSegment(h)
	if err != nil {
		return err
	}
	for o := int64(0); o < length; o += 1 << 20 {
		p := make([]byte, min(1<<20, length-o))
		if err := f.view.ReadAt(ctx, d.ID, p, off+o); err != nil {
			return err
		}
		if err := seg.add(ctx, d.Index, off+o, p); err != nil {
			return err
		}
	}
	sealed, _, err := seg.store(ctx)
	if err != nil {
		return err
	}
	f.folded[tileID{d.Index, tile}] = cut.TileRef{Disk: d.Index, Tile: tile, UID: sealed.Name.UID, Gen: f.to.Gen, N: f.to.N, Size: sealed.Size, BLAKE3: sealed.BLAKE3}
	f.report.Tiles++
	return nil
}

// choose decides for each object whether the run refers to it or copies what is in effect.
func (f *folding) choose(ctx context.Context, minLive float64) error {
	live := map[int]int64{}
	err := f.pieces(func(_ uint16, p store.Piece) error {
		if !p.Zero() {
			live[p.Object] += p.Len
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range slices.Sorted(maps.Keys(live)) {
		o, err := f.view.Object(ctx, i)
		if err != nil {
			return err
		}
		if minLive > 0 && (o.Size < f.cfg.SmallObject || float64(live[i]) < minLive*float64(o.DataBytes)) {
			f.rewrite[i] = true
			continue
		}
		f.refOf[i] = len(f.refs)
		f.refs = append(f.refs, cut.SegmentRef{Class: o.Name.Class, Gen: o.Name.Gen, N: o.Name.N, Attempt: o.Name.Attempt, K: o.Name.K, UID: o.Name.UID, Size: o.Size, Hash: o.Hash})
	}
	return nil
}

// copyData writes what is in effect of the objects that are not worth keeping.
func (f *folding) copyData(ctx context.Context) error {
	var seg *segment
	var size int64
	finish := func() error {
		if seg == nil {
			return nil
		}
		sealed, opened, err := seg.store(ctx)
		if err != nil {
			return err
		}
		ref := len(f.refs)
		f.refs = append(f.refs, cut.SegmentRef{Class: cut.ClassData, Gen: f.to.Gen, N: f.to.N, UID: sealed.Name.UID, K: sealed.Name.K, Size: sealed.Size, Hash: sealed.BLAKE3})
		for _, e := range opened.Extents() {
			f.fresh = append(f.fresh, cut.MapExtent{Disk: e.Disk, Off: e.Off, Len: e.Len, Zero: e.Zero, Segment: ref, Frame: e.Frame, FrameOff: e.FrameOff})
		}
		seg, size = nil, 0
		return nil
	}
	err := f.pieces(func(disk uint16, p store.Piece) error {
		if p.Zero() || !f.rewrite[p.Object] {
			return nil
		}
		if seg == nil {
			if err := f.step("data"); err != nil {
				return err
			}
			var err error
			seg, err = f.newSegment(cut.Header{Kind: cut.KindData, Machine: f.m, Gen: f.to.Gen, N: f.to.N, KeyEpoch: f.view.Epoch(), UID: f.uid, K: f.k})
			if err != nil {
				return err
			}
			f.k++
		}
		raw, err := f.view.Piece(ctx, p)
		if err != nil {
			return err
		}
		if err := seg.add(ctx, disk, p.Off, raw); err != nil {
			return err
		}
		f.report.Rewrote += p.Len
		if size += p.Len; size < f.cfg.SegmentSize {
			return nil
		}
		return finish()
	})
	return errors.Join(err, finish())
}

// publish writes the run or checkpoint, which makes it what readers use.
func (f *folding) publish(ctx context.Context, cfg cut.RunConfig) error {
	cfg.Machine, cfg.KeyEpoch, cfg.Key, cfg.UID = f.m, f.view.Epoch(), f.key, f.uid
	cfg.At, cfg.Commit, cfg.Segments = f.to.Ref, f.to.Commit, f.refs
	cfg.Made, cfg.Software = f.cfg.Now(), f.cfg.Software
	tiles := map[tileID]cut.TileRef{}
	for _, t := range f.view.Tiles() {
		tiles[tileID{t.Disk, t.Tile}] = t
	}
	maps.Copy(tiles, f.folded)
	cfg.Tiles = slices.SortedFunc(maps.Values(tiles), func(a, b cut.TileRef) int {
		return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Tile, b.Tile))
	})
	var buf bytes.Buffer
	w, err := cut.NewRunWriter(&buf, cfg)
	if err != nil {
		return err
	}
	fresh := f.fresh
	before := func(disk uint16, off int64) error { // what was copied and comes before a place
		for len(fresh) > 0 && (fresh[0].Disk < disk || fresh[0].Disk == disk && fresh[0].Off < off) {
			if err := w.Add(fresh[0]); err != nil {
				return err
			}
			fresh = fresh[1:]
		}
		return nil
	}
	err = f.pieces(func(disk uint16, p store.Piece) error {
		e := cut.MapExtent{Disk: disk, Off: p.Off, Len: p.Len, Zero: p.Zero()}
		if !e.Zero {
			if f.rewrite[p.Object] {
				return nil
			}
			e.Segment, e.Frame, e.FrameOff = f.refOf[p.Object], p.Frame, p.FrameOff
		}
		if err := before(disk, p.Off); err != nil {
			return err
		}
		return w.Add(e)
	})
	if err == nil {
		err = before(math.MaxUint16, math.MaxInt64)
	}
	if err != nil {
		return err
	}
	sealed, err := w.Seal()
	if err != nil {
		return err
	}
	return f.put(ctx, sealed.Name.Key(), buf.Bytes())
}

// segment is a segment being written in memory, with the hash of what went in.
type segment struct {
	*cut.Writer
	f          *folding
	buf        *bytes.Buffer
	in         *blake3.Hasher
	start, end int64 // first and last byte added
}

func (f *folding) newSegment(h cut.Header) (*segment, error) {
	if h.UID == "" {
		h.UID = cut.NewUID()
	}
	buf := &bytes.Buffer{}
	w, err := cut.NewWriter(buf, cut.WriterConfig{Header: h, Key: f.key})
	if err != nil {
		return nil, err
	}
	return &segment{Writer: w, f: f, buf: buf, in: blake3.New(), start: -1}, nil
}

func (s *segment) add(ctx context.Context, disk uint16, off int64, p []byte) error {
	s.in.Write(p)
	if s.start < 0 {
		s.start = off
	}
	s.end = off + int64(len(p))
	return s.Data(ctx, disk, off, p)
}

// store seals the segment, reads it back and compares, and puts it into the bucket.
func (s *segment) store(ctx context.Context) (cut.Sealed, *cut.Segment, error) {
	sealed, err := s.Close(nil)
	if err != nil {
		return sealed, nil, err
	}
	seg, err := cut.Open(ctx, cut.Bytes(s.buf.Bytes()), sealed.Name, s.f.cfg.Keys)
	if err != nil {
		return sealed, nil, err
	}
	if err := s.compare(ctx, seg); err != nil {
		return sealed, nil, err
	}
	return sealed, seg, s.f.put(ctx, sealed.Name.Key(), s.buf.Bytes())
}

// compare decodes what was written and compares it with what went in: the old
// objects will be deleted.
func (s *segment) compare(ctx context.Context, seg *cut.Segment) error {
	out := blake3.New()
	zero := make([]byte, cut.Block)
	zeroes := func(n int64) {
		for ; n > 0; n -= cut.Block {
			out.Write(zero[:min(n, cut.Block)])
		}
	}
	var frame []byte
	have := -1
	at := s.start
	for _, e := range seg.Extents() {
		if seg.Header().Kind == cut.KindTile {
			zeroes(e.Off - at) // an image leaves zeroes out
			at = e.End()
		}
		if e.Zero {
			zeroes(e.Len)
			continue
		}
		if have != int(e.Frame) {
			var err error
			if frame, err = seg.ReadFrame(ctx, int(e.Frame), frame); err != nil {
				return err
			}
			have = int(e.Frame)
		}
		out.Write(frame[e.FrameOff : int64(e.FrameOff)+e.Len])
	}
	if seg.Header().Kind == cut.KindTile {
		zeroes(s.end - at)
	}
	if !bytes.Equal(out.Sum(nil), s.in.Sum(nil)) {
		return dr.New(dr.KindInternal, dr.CodeObjectCorrupt, "compact.Maintain", "object %s does not hold what was written to it; it was not stored and nothing was deleted", seg.Name().Key())
	}
	return nil
}

func (f *folding) put(ctx context.Context, key string, raw []byte) error {
	sum := sha256.Sum256(raw)
	f.report.Wrote += int64(len(raw))
	return storeError(key, f.cfg.Bucket.PutNew(ctx, key, bytes.NewReader(raw), int64(len(raw)), &sum))
}
