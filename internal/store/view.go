package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// View is one recovery point, readable: the VM's disks as of the cut. It is
// safe for concurrent use. It reads the bucket as needed and keeps a bounded
// cache; memory grows with the number of changed extents, not with disk sizes.
type View struct {
	store   *Store
	machine dr.MachineID
	info    CutInfo
	disks   []*viewDisk
	objects []*object // cuts, parts and tiles; record.seg and cacheKey.seg index it
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
	run   []record         // everything above the tile images
	tiles map[uint32]int32 // tile number → object
}

// object is one segment of a view. Cuts and parts are open from the start,
// tiles when they are first read.
type object struct {
	name cut.ObjectName
	key  string
	size int64
	hash cut.Hash // of the whole object as its referrer knows it; zero for cuts

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
// and the presence and size of every tile is checked, so that damage that can
// be seen without reading all data refuses the point now (dr.CodePointRefused,
// naming the object). Data that is damaged inside fails when it is read, or in Check.
func (s *Store) OpenPoint(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64) (*View, error) {
	cuts, err := s.pointCuts(ctx, m, gen, n)
	if err != nil {
		return nil, err
	}
	v := &View{
		store: s, machine: m, info: cuts[len(cuts)-1].info,
		frames: newCache(s.cfg.FrameCache), chunks: newCache(s.cfg.ChunkCache), gate: make(chan struct{}, 4),
	}
	v.ctx, v.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, d := range v.info.Commit.Disks {
		v.disks = append(v.disks, &viewDisk{Disk: d, tiles: map[uint32]int32{}})
	}
	if err := v.load(ctx, cuts); err != nil {
		v.Close()
		return nil, refusePoint(gen, n, err)
	}
	return v, nil
}

// load builds the extent map: per cut first its tile images, then its own
// extents and those of its parts.
func (v *View) load(ctx context.Context, cuts []*cutSegment) error {
	byIndex := map[uint16]*viewDisk{}
	for _, d := range v.disks {
		byIndex[d.Index] = d
	}
	parts, err := v.openParts(ctx, cuts)
	if err != nil {
		return err
	}
	runs := map[*viewDisk][][]record{}
	for ci, c := range cuts {
		commit := c.info.Commit
		for _, t := range commit.Tiles {
			d := byIndex[t.Disk]
			if d == nil {
				continue // a disk that the point no longer has
			}
			name := cut.TileName(v.machine, t)
			d.tiles[t.Tile] = v.add(&object{name: name, key: name.Key(), size: t.Size, hash: t.BLAKE3})
			off := int64(t.Tile) * cut.TileSize
			for i, r := range runs[d] {
				runs[d][i] = drop(r, off, off+cut.TileSize)
			}
		}
		name := cut.CutName(v.machine, c.info.Gen, c.info.N)
		own := v.add(&object{name: name, key: name.Key(), size: c.info.Size, seg: c.seg})
		segs := []int32{own}
		segs = append(segs, parts[ci]...)
		fresh := map[*viewDisk][]record{}
		for _, id := range segs {
			for _, e := range v.objects[id].seg.Extents() {
				d := byIndex[e.Disk]
				if d == nil || e.Off >= d.Size {
					continue
				}
				r := record{off: e.Off, len: min(e.Len, d.Size-e.Off), seg: id, frame: e.Frame, frameOff: e.FrameOff}
				if e.Zero {
					r.seg = segZero
				}
				fresh[d] = append(fresh[d], r)
			}
		}
		for d, run := range fresh {
			runs[d] = append(runs[d], normalise(run))
		}
	}
	for d, rs := range runs {
		d.run = overlayAll(rs)
	}
	return v.checkTiles(ctx)
}

func (v *View) add(o *object) int32 {
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
		for _, p := range c.info.Commit.Parts {
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

// checkTiles lists the tile images of the generations in use and compares.
func (v *View) checkTiles(ctx context.Context) error {
	want := map[string]int64{}
	prefixes := map[string]bool{}
	for _, o := range v.objects {
		if o.name.Class == cut.ClassTile {
			want[o.key] = o.size
			prefixes[cut.TilePrefix(v.machine, o.name.Gen)] = true
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
	o.seg = seg
	return seg, nil
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
		run := make([]record, 0, len(seg.Extents()))
		for _, e := range seg.Extents() {
			r := record{off: e.Off, len: e.Len, seg: id, frame: e.Frame, frameOff: e.FrameOff}
			if e.Zero {
				r.seg = segZero
			}
			run = append(run, r)
		}
		o.tile = normalise(run)
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

// Close stops prefetching. Idempotent.
func (v *View) Close() error {
	v.stop()
	v.prefetch.Wait()
	return nil
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
	d, err := v.disk(diskID)
	if err != nil {
		return err
	}
	if off < 0 || off > d.Size-int64(len(p)) {
		return dr.New(dr.KindInvalid, "", "store.View", "range %d+%d is outside disk %q of %d bytes", off, len(p), diskID, d.Size)
	}
	return v.walk(ctx, d, off, int64(len(p)), func(r record) error {
		dst := p[r.off-off : r.end()-off]
		if r.seg == segZero {
			clear(dst)
			return nil
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
	end := off + length
	for i := find(d.run, off); off < end; {
		gapEnd := end
		if i < len(d.run) {
			r := d.run[i]
			if r.off <= off {
				if err := fn(r.from(off).until(min(r.end(), end))); err != nil {
					return err
				}
				off = min(r.end(), end)
				i++
				continue
			}
			gapEnd = min(end, r.off)
		}
		if err := v.walkTiles(ctx, d, off, gapEnd, fn); err != nil {
			return err
		}
		off = gapEnd
	}
	return nil
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
	o := v.objects[id]
	return v.frames.get(ctx, cacheKey{id, index}, func(ctx context.Context) ([]byte, error) {
		seg, err := o.open(ctx, v)
		if err != nil {
			return nil, err
		}
		all := seg.Frames()
		if int(index) >= len(all) {
			return nil, dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.View", "object %s has no frame %d", o.key, index)
		}
		f := all[index]
		sealed, err := v.stored(ctx, id, f.Off, int64(f.CLen))
		if err != nil {
			return nil, err
		}
		return seg.DecodeFrame(int(index), sealed, make([]byte, 0, f.RawLen))
	})
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
