package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/extmap"
	"holdfast/internal/objstore"
)

// View is one recovery point, readable: the VM's disks as of the cut. It is
// safe for concurrent use. It reads the bucket as needed and keeps a bounded
// cache; memory grows neither with disk sizes nor, beyond a fifth of a byte each,
// with the number of changed extents. Close it.
type View struct {
	store   *Store
	machine dr.MachineID
	info    CutInfo // of the newest element
	first   CutInfo // of the oldest element
	epoch   uint32  // key epoch of the newest element
	disks   []*viewDisk
	objects []*object // cuts, parts, data segments and tiles; record.seg and cacheKey.seg index it
	byKey   map[string]int32
	frames  *cache
	chunks  *cache

	prefetch sync.WaitGroup
	stop     context.CancelFunc
	ctx      context.Context // of prefetches
	gate     chan struct{}   // bounds prefetches

	gets      atomic.Int64
	bytesRead atomic.Int64
}

type viewDisk struct {
	cut.Disk
	over  *extmap.Map      // everything above the tile images
	tiles map[uint32]int32 // tile number → object
}

// ranges calls fn for what lies over the tile images in [off, end), clipped.
func (d *viewDisk) ranges(off, end int64, fn func(record) error) error {
	err := d.over.Walk(off, end-off, func(e extmap.Extent) error {
		if e.Seg == extmap.SegGap {
			return nil
		}
		return fn(recordOf(e))
	})
	return mapError("", err)
}

// object is one segment of a view. Cuts and parts are open from the start,
// others when they are first read.
type object struct {
	name cut.ObjectName
	key  string
	size int64
	hash cut.Hash // of the whole object as its referrer knows it; zero for cuts
	// chain is a cut's chain hash, where a run refers to the cut's data.
	chain cut.Hash

	mu   sync.Mutex
	seg  *cut.Segment
	tile []record // of a tile: its runs, sorted
	last atomic.Int64
}

// DiskInfo describes a disk of a view.
type DiskInfo struct {
	ID    string
	Index uint16
	Size  int64
}

// OpenPoint opens a recovery point. Every cut and part that it needs is opened
// and the presence and size of every other object is checked, so that damage that can
// be seen without reading all data refuses the point now (dr.CodePointRefused,
// naming the object). Data that is damaged inside fails when it is read, or in Check.
// A seed is no recovery point.
func (s *Store) OpenPoint(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64) (*View, error) {
	v, err := s.OpenPosition(ctx, m, gen, n)
	if err == nil && v.info.Commit.Seed {
		v.Close()
		return nil, dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "store.OpenPoint", "%s of machine %s is a seed, not a recovery point: the source has not been compared with it yet", dr.PointName(gen, n), m)
	}
	return v, err
}

// OpenPosition is OpenPoint for any position of the history, also a seed.
func (s *Store) OpenPosition(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64) (*View, error) {
	cuts, err := s.pointCuts(ctx, m, gen, n, true)
	if err != nil {
		return nil, err
	}
	v, err := s.open(ctx, m, cuts)
	if err != nil && isDamage(err) && cuts[0].seg.Header().Kind == cut.KindMap {
		// What a checkpoint refers to may have been rewritten and deleted since.
		if cuts, err = s.pointCuts(ctx, m, gen, n, false); err != nil {
			return nil, err
		}
		v, err = s.open(ctx, m, cuts)
	}
	if err != nil {
		return nil, refusePoint(gen, n, err)
	}
	return v, nil
}

// OpenSpan opens the net effect of consecutive elements of a history's path:
// what the last one's disks have that the position before the first one did not.
// Everything else reads as zero.
func (s *Store) OpenSpan(ctx context.Context, m dr.MachineID, path []CutName) (*View, error) {
	cuts := make([]*cutSegment, len(path))
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(s.cfg.Parallel)
	for i, c := range path {
		eg.Go(func() (err error) {
			cuts[i], err = s.openCut(ectx, m, c)
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	for i := 1; i < len(cuts); i++ {
		if err := linkError(m, &cuts[i-1].info, &cuts[i].info); err != nil {
			return nil, err
		}
	}
	return s.open(ctx, m, cuts)
}

func (s *Store) open(ctx context.Context, m dr.MachineID, cuts []*cutSegment) (*View, error) {
	last := cuts[len(cuts)-1]
	v := &View{
		store: s, machine: m, info: last.info, first: cuts[0].info, epoch: last.seg.Header().KeyEpoch, byKey: map[string]int32{},
		frames: newCache(s.cfg.FrameCache), chunks: newCache(s.cfg.ChunkCache), gate: make(chan struct{}, 4),
	}
	v.ctx, v.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, d := range v.info.Commit.Disks {
		v.disks = append(v.disks, &viewDisk{Disk: d, tiles: map[uint32]int32{}})
	}
	if err := v.load(ctx, cuts); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// load builds the extent map: per element first its tile images, then its own
// extents and those of its parts.
func (v *View) load(ctx context.Context, cuts []*cutSegment) (err error) {
	parts, err := v.openParts(ctx, cuts)
	if err != nil {
		return err
	}
	builders := make([]*extmap.Builder, len(v.disks))
	defer func() {
		for _, b := range builders {
			if b != nil {
				err = errors.Join(err, b.Close())
			}
		}
	}()
	for i := range v.disks {
		memory := max(extmap.MinMemory, v.store.cfg.MapMemory/int64(len(v.disks)))
		if builders[i], err = extmap.NewBuilder(extmap.Config{Dir: v.store.cfg.TempDir, Memory: memory}); err != nil {
			return err
		}
	}
	for ci, c := range cuts {
		if err := v.addElement(ctx, c.seg, parts[ci], builders); err != nil {
			return mapError(c.seg.Name().Key(), err)
		}
	}
	for i, d := range v.disks {
		if d.over, err = builders[i].Build(ctx); err != nil {
			return mapError("", err)
		}
	}
	return v.checkObjects(ctx)
}

// addElement lays one element over all older ones: first its tile images, which
// replace what was there, then of a cut its ranges and those of its parts, of a
// run or checkpoint its map.
func (v *View) addElement(ctx context.Context, seg *cut.Segment, parts []int32, builders []*extmap.Builder) error {
	clears := map[uint16][]extmap.Range{}
	for _, t := range seg.Commit().Tiles {
		if d, err := v.diskByIndex(t.Disk); err == nil { // else a disk that the point no longer has
			name := cut.TileName(v.machine, t)
			d.tiles[t.Tile] = v.add(&object{name: name, key: name.Key(), size: t.Size, hash: t.BLAKE3})
			clears[t.Disk] = append(clears[t.Disk], extmap.Range{Off: int64(t.Tile) * cut.TileSize, Len: cut.TileSize})
		}
	}
	if seg.Header().Kind == cut.KindCut {
		own := v.add(&object{name: seg.Name(), key: seg.Name().Key(), size: seg.Size(), seg: seg})
		for _, id := range append([]int32{own}, parts...) {
			err := v.addLayer(ctx, clears, builders, func(yield func(placed, error) bool) {
				for _, e := range v.objects[id].seg.Extents() {
					x := placed{e.Disk, extmap.Extent{Off: e.Off, Len: e.Len, Seg: id, Frame: e.Frame, FrameOff: e.FrameOff}}
					if e.Zero {
						x.Extent = extmap.Extent{Off: e.Off, Len: e.Len, Seg: extmap.SegZero}
					}
					if !yield(x, nil) {
						return
					}
				}
			})
			if err != nil {
				return err
			}
			clears = nil
		}
		return nil
	}
	ids := make([]int32, 0, len(seg.Commit().Segments))
	for _, ref := range seg.Commit().Segments {
		name := cut.SegmentName(v.machine, ref)
		o := &object{name: name, key: name.Key(), size: ref.Size, hash: ref.Hash}
		if ref.Class == cut.ClassCut {
			o.hash, o.chain = cut.Hash{}, ref.Hash
		}
		ids = append(ids, v.add(o))
	}
	return v.addLayer(ctx, clears, builders, func(yield func(placed, error) bool) {
		for e, err := range seg.Map(ctx) {
			x := placed{e.Disk, extmap.Extent{Off: e.Off, Len: e.Len, Seg: extmap.SegZero}}
			if err == nil && !e.Zero {
				x.Seg, x.Frame, x.FrameOff = ids[e.Segment], e.Frame, e.FrameOff
			}
			if !yield(x, err) {
				return
			}
		}
	})
}

// placed is an extent of a disk.
type placed struct {
	disk uint16
	extmap.Extent
}

// addLayer lays extents, which come in order of disk and offset, and the clearing
// of tiles over the maps of all disks.
func (v *View) addLayer(ctx context.Context, clears map[uint16][]extmap.Range, builders []*extmap.Builder, all iter.Seq2[placed, error]) error {
	next, stop := iter.Pull2(all)
	defer stop()
	x, err, more := next()
	for i, d := range v.byNumber() {
		err := builders[i].AddLayer(ctx, clears[d.Index], func(yield func(extmap.Extent, error) bool) {
			for more && (err != nil || x.disk <= d.Index) {
				e := x.Extent
				skip := err == nil && (x.disk < d.Index || e.Off >= d.Size)
				e.Len = min(e.Len, d.Size-e.Off)
				if !skip && !yield(e, err) || err != nil {
					return
				}
				x, err, more = next()
			}
		})
		if err != nil {
			return err
		}
	}
	return err
}

// byNumber yields the disks in order of their index, with their place in disks.
func (v *View) byNumber() iter.Seq2[int, *viewDisk] {
	order := make([]int, len(v.disks))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return int(v.disks[a].Index) - int(v.disks[b].Index) })
	return func(yield func(int, *viewDisk) bool) {
		for _, i := range order {
			if !yield(i, v.disks[i]) {
				return
			}
		}
	}
}

// mapError maps the failures of an extent map: a full or bad temporary
// directory, or extents that no writer makes.
func mapError(key string, err error) error {
	var known *dr.Error
	switch {
	case err == nil, errors.As(err, &known), isContextError(err):
		return err
	case errors.Is(err, extmap.ErrInvalid) && key != "":
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.OpenPoint", "object %s: %w", key, err)
	}
	return dr.New(dr.KindExhausted, dr.CodeNoSpace, "store.OpenPoint", "keep the map of a recovery point in a temporary file: %w", err)
}

// add makes an object known; one that is known already keeps its number.
func (v *View) add(o *object) int32 {
	if id, ok := v.byKey[o.key]; ok {
		return id
	}
	v.byKey[o.key] = int32(len(v.objects))
	o.last.Store(-2)
	v.objects = append(v.objects, o)
	return int32(len(v.objects) - 1)
}

// openParts opens the parts of all cuts; the result is by cut.
func (v *View) openParts(ctx context.Context, cuts []*cutSegment) ([][]int32, error) {
	ids := make([][]int32, len(cuts))
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(v.store.cfg.Parallel)
	for ci, c := range cuts {
		for _, p := range c.seg.Commit().Parts {
			name := cut.PartName(v.machine, c.info.Gen, c.info.N, p)
			o := &object{name: name, key: name.Key(), size: p.Size, hash: p.BLAKE3}
			ids[ci] = append(ids[ci], v.add(o))
			eg.Go(func() error {
				_, err := o.open(ectx, v)
				return err
			})
		}
	}
	return ids, eg.Wait()
}

// checkObjects lists the folders of the objects that are opened only when they are
// read, and compares.
func (v *View) checkObjects(ctx context.Context) error {
	want := map[string]int64{}
	prefixes := map[string]bool{}
	for _, o := range v.objects {
		if o.seg == nil {
			want[o.key] = o.size
			prefixes[o.key[:strings.LastIndexByte(o.key, '/')+1]] = true
		}
	}
	for prefix := range prefixes {
		err := v.store.cfg.Bucket.List(ctx, prefix, func(i objstore.Info) error {
			if size, ok := want[i.Key]; ok {
				delete(want, i.Key)
				if size != i.Size {
					return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.OpenPoint", "object %s has %d bytes, want %d", i.Key, i.Size, size)
				}
			}
			return nil
		})
		if err != nil {
			return storeError("store.OpenPoint", prefix, err)
		}
	}
	for key := range want {
		return dr.New(dr.KindCorrupt, dr.CodeObjectMissing, "store.OpenPoint", "object %s is missing", key)
	}
	return nil
}

// open opens the segment once; a failed attempt is not remembered.
func (o *object) open(ctx context.Context, v *View) (*cut.Segment, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seg != nil {
		return o.seg, nil
	}
	seg, err := cut.Open(ctx, &countedSource{source{v.store.cfg.Bucket, o.key, o.size}, v}, o.name, v.store.cfg.Keys)
	if err != nil {
		return nil, err
	}
	if err := o.expect(seg); err != nil {
		return nil, err
	}
	o.seg = seg
	return seg, nil
}

// expect checks what the referrer knows of a cut.
func (o *object) expect(seg *cut.Segment) error {
	if !o.chain.IsZero() && seg.ChainHash() != o.chain {
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.View", "object %s is not the one that was there: chain hash %s, want %s", o.key, seg.ChainHash(), o.chain)
	}
	return nil
}

// runs returns a tile's records, sorted.
func (o *object) runs(ctx context.Context, v *View, id int32) ([]record, error) {
	seg, err := o.open(ctx, v)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tile == nil {
		o.tile = make([]record, 0, len(seg.Extents()))
		for _, e := range seg.Extents() {
			o.tile = append(o.tile, record{off: e.Off, len: e.Len, seg: id, frame: e.Frame, frameOff: e.FrameOff})
		}
	}
	return o.tile, nil
}

type countedSource struct {
	source
	view *View
}

func (s *countedSource) ReadRange(ctx context.Context, off, length int64) ([]byte, error) {
	s.view.gets.Add(1)
	s.view.bytesRead.Add(length)
	return s.source.ReadRange(ctx, off, length)
}

// Close stops prefetching and gives back the maps. Idempotent.
func (v *View) Close() error {
	v.stop()
	v.prefetch.Wait()
	var err error
	for _, d := range v.disks {
		if d.over != nil {
			err = errors.Join(err, d.over.Close())
		}
	}
	return err
}

// Info is the point's cut.
func (v *View) Info() CutInfo { return v.info }

// Machine is the replica's id.
func (v *View) Machine() dr.MachineID { return v.machine }

// VM is the captured configuration.
func (v *View) VM() cut.VMRecord { return v.info.Commit.VM }

// Disks lists the point's disks in the order of the cut.
func (v *View) Disks() []DiskInfo {
	ds := make([]DiskInfo, len(v.disks))
	for i, d := range v.disks {
		ds[i] = DiskInfo{ID: d.ID, Index: d.Index, Size: d.Size}
	}
	return ds
}

// Reads returns how often and how much was read from the bucket.
func (v *View) Reads() (gets, bytes int64) { return v.gets.Load(), v.bytesRead.Load() }

func (v *View) disk(id string) (*viewDisk, error) {
	for _, d := range v.disks {
		if d.ID == id {
			return d, nil
		}
	}
	return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "store.View", "recovery point %s has no disk %q", dr.PointName(v.info.Gen, v.info.N), id)
}

// ReadAt fills p from the disk at off. The range must lie inside the disk.
func (v *View) ReadAt(ctx context.Context, diskID string, p []byte, off int64) error {
	return v.readAt(ctx, diskID, p, off, false)
}

// ReadOnce is ReadAt for who reads a disk in order and comes back to nothing:
// whole frames are decoded into p and do not displace others in the cache.
func (v *View) ReadOnce(ctx context.Context, diskID string, p []byte, off int64) error {
	return v.readAt(ctx, diskID, p, off, true)
}

func (v *View) readAt(ctx context.Context, diskID string, p []byte, off int64, once bool) error {
	d, err := v.disk(diskID)
	if err != nil {
		return err
	}
	if off < 0 || off > d.Size-int64(len(p)) {
		return dr.New(dr.KindInvalid, "", "store.View", "range %d+%d is outside disk %q of %d bytes", off, len(p), diskID, d.Size)
	}
	return v.walk(ctx, d, off, int64(len(p)), func(r record) error {
		dst := p[r.off-off : r.end()-off : r.end()-off]
		if r.seg == segZero {
			clear(dst)
			return nil
		}
		if once && r.frameOff == 0 && !v.frames.has(cacheKey{r.seg, r.frame}) {
			if done, err := v.decodeInto(ctx, r.seg, r.frame, dst); done || err != nil {
				return err
			}
		}
		frame, err := v.frame(ctx, r.seg, r.frame)
		if err != nil {
			return err
		}
		if int64(r.frameOff)+r.len > int64(len(frame)) {
			return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.View", "object %s: an extent reaches beyond frame %d", v.objects[r.seg].key, r.frame)
		}
		copy(dst, frame[r.frameOff:])
		return nil
	})
}

// Extents reports [off, off+length) of a disk in ascending order without gaps:
// whether each range is known to read as zeroes. Neighbours are merged.
func (v *View) Extents(ctx context.Context, diskID string, off, length int64, fn func(off, length int64, zero bool) error) error {
	d, err := v.disk(diskID)
	if err != nil {
		return err
	}
	if off < 0 || length < 0 || off > d.Size-length {
		return dr.New(dr.KindInvalid, "", "store.View", "range %d+%d is outside disk %q of %d bytes", off, length, diskID, d.Size)
	}
	var cur record
	err = v.walk(ctx, d, off, length, func(r record) error {
		if cur.len > 0 && (cur.seg == segZero) == (r.seg == segZero) {
			cur.len += r.len
			return nil
		}
		if cur.len > 0 {
			if err := fn(cur.off, cur.len, cur.seg == segZero); err != nil {
				return err
			}
		}
		cur = r
		return nil
	})
	if err == nil && cur.len > 0 {
		err = fn(cur.off, cur.len, cur.seg == segZero)
	}
	return err
}

// walk calls fn for consecutive runs that cover the range exactly.
func (v *View) walk(ctx context.Context, d *viewDisk, off, length int64, fn func(record) error) error {
	return mapError("", d.over.Walk(off, length, func(e extmap.Extent) error {
		if e.Seg == extmap.SegGap {
			return v.walkTiles(ctx, d, e.Off, e.End(), fn)
		}
		return fn(recordOf(e))
	}))
}

// walkTiles covers [off, end) from tile images; where there is none, or a tile
// says nothing, the disk is zero.
func (v *View) walkTiles(ctx context.Context, d *viewDisk, off, end int64, fn func(record) error) error {
	for off < end {
		number := uint32(off / cut.TileSize)
		tileEnd := min(end, (int64(number)+1)*cut.TileSize)
		id, ok := d.tiles[number]
		if !ok {
			if err := fn(record{off: off, len: tileEnd - off, seg: segZero}); err != nil {
				return err
			}
			off = tileEnd
			continue
		}
		run, err := v.objects[id].runs(ctx, v, id)
		if err != nil {
			return err
		}
		for i := find(run, off); off < tileEnd; {
			r := record{off: off, len: tileEnd - off, seg: segZero}
			if i < len(run) {
				if run[i].off <= off {
					r = run[i].from(off).until(min(run[i].end(), tileEnd))
					i++
				} else {
					r.len = min(tileEnd, run[i].off) - off
				}
			}
			if err := fn(r); err != nil {
				return err
			}
			off = r.end()
		}
	}
	return nil
}

// frame returns a decoded frame from the cache or the bucket.
func (v *View) frame(ctx context.Context, id int32, index uint32) ([]byte, error) {
	return v.frames.get(ctx, cacheKey{id, index}, func(ctx context.Context) ([]byte, error) {
		seg, f, err := v.describe(ctx, id, index)
		if err != nil {
			return nil, err
		}
		sealed, err := v.stored(ctx, id, f.Off, int64(f.CLen))
		if err != nil {
			return nil, err
		}
		return seg.DecodeFrame(int(index), sealed, make([]byte, 0, f.RawLen))
	})
}

// decodeInto decodes a frame into dst if it has exactly that length.
func (v *View) decodeInto(ctx context.Context, id int32, index uint32, dst []byte) (bool, error) {
	seg, f, err := v.describe(ctx, id, index)
	if err != nil || int(f.RawLen) != len(dst) {
		return false, err
	}
	sealed, err := v.stored(ctx, id, f.Off, int64(f.CLen))
	if err != nil {
		return false, err
	}
	got, err := seg.DecodeFrame(int(index), sealed, dst[:0])
	if err == nil && len(got) > 0 && &got[0] != &dst[0] { // it is never so, and must not go unseen
		copy(dst, got)
	}
	return true, err
}

func (v *View) describe(ctx context.Context, id int32, index uint32) (*cut.Segment, cut.Frame, error) {
	o := v.objects[id]
	seg, err := o.open(ctx, v)
	if err != nil {
		return nil, cut.Frame{}, err
	}
	all := seg.Frames()
	if int(index) >= len(all) {
		return nil, cut.Frame{}, dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.View", "object %s has no frame %d", o.key, index)
	}
	return seg, all[index], nil
}

// stored returns bytes of an object by way of the chunk cache.
func (v *View) stored(ctx context.Context, id int32, off, length int64) ([]byte, error) {
	size := v.store.cfg.ChunkSize
	first, last := off/size, (off+length-1)/size
	v.readAhead(id, first, last)
	if first == last {
		c, err := v.chunk(ctx, id, first)
		if err != nil {
			return nil, err
		}
		return cutRange(v.objects[id].key, c, off-first*size, length)
	}
	out := make([]byte, 0, length)
	for i := first; i <= last; i++ {
		c, err := v.chunk(ctx, id, i)
		if err != nil {
			return nil, err
		}
		from, to := max(off, i*size)-i*size, min(off+length, (i+1)*size)-i*size
		part, err := cutRange(v.objects[id].key, c, from, to-from)
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	return out, nil
}

func cutRange(key string, c []byte, off, length int64) ([]byte, error) {
	if off+length > int64(len(c)) {
		return nil, dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.View", "object %s ends inside a frame", key)
	}
	return c[off : off+length : off+length], nil
}

func (v *View) chunk(ctx context.Context, id int32, index int64) ([]byte, error) {
	o := v.objects[id]
	return v.chunks.get(ctx, cacheKey{id, uint32(index)}, func(ctx context.Context) ([]byte, error) {
		off := index * v.store.cfg.ChunkSize
		length := min(v.store.cfg.ChunkSize, o.size-off)
		if length <= 0 {
			return nil, dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.View", "object %s ends before byte %d", o.key, off)
		}
		p := make([]byte, length)
		v.gets.Add(1)
		v.bytesRead.Add(length)
		return p, readRange(ctx, v.store.cfg.Bucket, o.key, p, off)
	})
}

// readAhead fetches the next chunks of an object that is being read in order.
func (v *View) readAhead(id int32, first, last int64) {
	o := v.objects[id]
	before := o.last.Swap(last)
	if before != first && before != first-1 {
		return
	}
	for i := last + 1; i <= last+4 && i*v.store.cfg.ChunkSize < o.size; i++ {
		if v.chunks.has(cacheKey{id, uint32(i)}) {
			continue
		}
		select {
		case v.gate <- struct{}{}:
		default:
			return
		}
		v.prefetch.Go(func() {
			defer func() { <-v.gate }()
			// An error here is found again by the read that needs the chunk.
			_, _ = v.chunk(v.ctx, id, i)
		})
	}
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// String names the view in logs.
func (v *View) String() string {
	return fmt.Sprintf("%s at %s", v.machine, dr.PointName(v.info.Gen, v.info.N))
}
