package capture

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/capture/durable"
	"holdfast/internal/capture/fill"
	"holdfast/internal/capture/filter"
	"holdfast/internal/capture/frozen"
	"holdfast/internal/capture/seal"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Disks that the chain does not have are sent as tile images from frozen
// images, in rounds: an image is never held longer than HoldLimit, and a round
// that ends, or dies, loses nothing, because tiles are logged when they are stored, and
// each round notes what changed in them since the round before. The cut that takes the
// disks over lists the tiles and carries what was noted. When tracking is lost, the
// tiles are compared with the filter, and what differs is noted.

// tileParallel is how many tiles are on their way at a time: one is read and
// sealed while another is sent.
const tileParallel = 2

func mkdir(dir string) error { return durable.Error("capture.open", dir, os.MkdirAll(dir, 0o700)) }

func tileCount(size int64) uint32 { return uint32((size + cut.TileSize - 1) / cut.TileSize) }

// adjustFill takes in the sizes of the disks that are being sent.
func (im *image) adjustFill() error {
	if len(im.fill) == 0 {
		return nil
	}
	replan := false
	err := im.r.change(func(s *state) error {
		for i := range s.Fill.Disks {
			d := &s.Fill.Disks[i]
			x := im.disk(d.ID)
			if x.Size < d.Size {
				return dr.New(dr.KindPrecondition, dr.CodeDiskShrunk, "capture.fill", "disk %s has shrunk from %d to %d bytes while it was sent", d.ID, d.Size, x.Size).
					WithHint("exclude the disk from replication, and include it again after that")
			}
			if x.Size > d.Size {
				replan, s.Fill.Complete = s.Fill.Complete, false
				d.Size = x.Size
			}
		}
		im.fill = slices.Clone(s.Fill.Disks)
		im.st.Fill = s.Fill.clone()
		return nil
	})
	if err == nil && replan {
		err = errReplan
	}
	return err
}

// prepareFill opens the log and the filters of the disks that are being sent,
// and notes what changed in their tiles.
func (im *image) prepareFill(ctx context.Context) (err error) {
	r := im.r
	if im.log, err = fill.Open(r.path("fill")); err != nil {
		return err
	}
	mark := im.st.Fill.Mark
	var again []uint16 // disks whose tracking was lost
	for _, d := range im.fill {
		t, err := r.table(d)
		if err != nil {
			return err
		}
		im.tables[d.Index] = t
		if !t.Usable(mark) {
			// Without what the filter knew, sent tiles can't be compared any more.
			if err := t.Reset(im.log.Empty(d.Index)); err != nil {
				return err
			}
			if err := t.Commit(mark); err != nil {
				return err
			}
		} else {
			t.Stale()
		}
		if im.log.Empty(d.Index) {
			continue
		}
		if !im.info.Incremental || im.disk(d.ID).Whole {
			again = append(again, d.Index)
			continue
		}
		for off := int64(0); off < d.Size; off += frozen.Window {
			rs, err := frozen.Ranges(ctx, im.c, d.ID, off, min(frozen.Window, d.Size-off), frozen.Changed)
			if err != nil {
				return err
			}
			for _, x := range rs {
				if err := im.noteChange(d.Index, x.Off, x.Len); err != nil {
					return err
				}
			}
		}
	}
	if err := im.log.Flush(); err != nil {
		return err
	}
	if len(again) > 0 {
		if err := im.fillLost(again); err != nil {
			return err
		}
	}
	return r.step("initial.changes")
}

// noteChange notes a change as far as it lies in tiles that are sent.
func (im *image) noteChange(disk uint16, off, n int64) error {
	for end := off + n; off < end; {
		tile := uint32(off / cut.TileSize)
		stop := min((int64(tile)+1)*cut.TileSize, end)
		if noted, _ := im.log.State(disk, tile, 0); noted {
			if err := im.log.Change(disk, off, stop-off); err != nil {
				return err
			}
		}
		off = stop
	}
	return nil
}

// fillLost begins a new era for disks whose tracking was lost since the last
// round: tiles of earlier eras have to be compared.
func (im *image) fillLost(disks []uint16) error {
	replan := false
	err := im.r.change(func(s *state) error {
		if s.Fill == nil {
			return nil
		}
		replan, s.Fill.Complete = s.Fill.Complete, false
		for _, index := range disks {
			s.Fill.Eras[index]++
		}
		im.st.Fill = s.Fill.clone()
		return nil
	})
	if err == nil && replan {
		return errReplan
	}
	return err
}

// tileJob is one tile to be sent or compared.
type tileJob struct {
	d     cut.Disk
	tile  uint32
	noted bool // of an earlier era
	rs    []hypervisor.Range
	data  int64
}

// sender sends tiles of one image.
type sender struct {
	*image
	mu      sync.Mutex // guards log
	meter   *meter
	readers chan *frozen.Reader
	total   int64
}

// sendTiles sends tiles until there is none left or it is time to stop.
func (im *image) sendTiles(ctx context.Context) error {
	r := im.r
	s := &sender{image: im, meter: r.newMeter(), readers: make(chan *frozen.Reader, tileParallel)}
	for range tileParallel {
		s.readers <- frozen.NewReader(im.c)
	}
	r.set(func(st *Status) {
		if len(im.live) == 0 {
			st.Phase = PhaseInitial
		}
	})
	if err := s.measure(ctx); err != nil {
		return err
	}
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(tileParallel)
	var stopped atomic.Bool
	sent := 0
	err := s.each(ectx, func(j tileJob) (bool, error) {
		if im.stopBulk(sent > 0) || ectx.Err() != nil {
			stopped.Store(true)
			return false, nil
		}
		if len(j.rs) == 1 && j.rs[0].Zero && !j.noted {
			return true, s.noteZero(j)
		}
		first := sent == 0
		sent++
		eg.Go(func() error { // which may have waited for the tile before
			if im.stopBulk(!first) {
				stopped.Store(true)
				return nil
			}
			return s.send(ectx, j)
		})
		return true, nil
	})
	if werr := eg.Wait(); werr != nil {
		err = werr // the reason, where err may be its consequence
	}
	if err != nil || stopped.Load() {
		return err
	}
	return r.change(func(st *state) error {
		if st.Fill != nil && slices.Equal(st.Fill.Disks, im.fill) {
			st.Fill.Complete = true
		}
		return nil
	})
}

// measure finds out how much there is to send.
func (s *sender) measure(ctx context.Context) error {
	for _, d := range s.fill {
		for off := int64(0); off < d.Size; off += frozen.Window {
			err := s.c.Extents(ctx, d.ID, off, min(frozen.Window, d.Size-off), func(x hypervisor.Range) error {
				if !x.Zero {
					s.total += x.Len
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	s.progress(0)
	return nil
}

// each calls fn for the tiles that are not sent, or not compared in this era:
// disk by disk, or by turns where the disks go together.
func (s *sender) each(ctx context.Context, fn func(tileJob) (bool, error)) error {
	type cursor struct {
		d   cut.Disk
		rs  []hypervisor.Range
		end int64 // of the window that rs describes
	}
	cursors := make([]*cursor, len(s.fill))
	most := uint32(0)
	for i, d := range s.fill {
		cursors[i] = &cursor{d: d}
		most = max(most, tileCount(d.Size))
	}
	one := func(c *cursor, tile uint32) (bool, error) {
		off := int64(tile) * cut.TileSize
		n := min(cut.TileSize, c.d.Size-off)
		s.mu.Lock()
		noted, current := s.log.State(c.d.Index, tile, s.st.Fill.Eras[c.d.Index])
		s.mu.Unlock()
		if n <= 0 || current {
			return true, nil
		}
		if off >= c.end {
			c.end = min(off+frozen.Window, c.d.Size)
			rs, err := frozen.Ranges(ctx, s.c, c.d.ID, off, c.end-off, func(hypervisor.Range) bool { return true })
			if err != nil {
				return false, err
			}
			for i := range rs {
				rs[i].Changed = false
			}
			c.rs = join(rs)
		}
		j := tileJob{d: c.d, tile: tile, noted: noted, rs: frozen.Widen(frozen.Clip(c.rs, off, off+n), c.d.Size)}
		for _, x := range j.rs {
			if !x.Zero {
				j.data += x.Len
			}
		}
		return fn(j)
	}
	if s.a.InitialSerial {
		for _, c := range cursors {
			for tile := range tileCount(c.d.Size) {
				if ok, err := one(c, tile); err != nil || !ok {
					return err
				}
			}
		}
		return nil
	}
	for tile := range most {
		for _, c := range cursors {
			if ok, err := one(c, tile); err != nil || !ok {
				return err
			}
		}
	}
	return nil
}

// join joins neighbours that differ in nothing but Changed, which is cleared.
func join(rs []hypervisor.Range) []hypervisor.Range {
	out := rs[:0]
	for _, x := range rs {
		if n := len(out); n > 0 && out[n-1].Off+out[n-1].Len == x.Off && out[n-1].Zero == x.Zero {
			out[n-1].Len += x.Len
			continue
		}
		out = append(out, x)
	}
	return out
}

// noteZero logs a tile of zeroes: there is nothing to read and nothing to send.
// Not even synced: a lost line costs a look.
func (s *sender) noteZero(j tileJob) error {
	off := int64(j.tile) * cut.TileSize
	n := min(cut.TileSize, j.d.Size-off)
	if err := s.tables[j.d.Index].StoreZero(off/cut.Unit, (n+cut.Unit-1)/cut.Unit); err != nil {
		return err
	}
	return s.note(fill.Tile{Disk: j.d.Index, Tile: j.tile, Zero: true}, false)
}

// note logs a tile.
func (s *sender) note(t fill.Tile, sync bool) error {
	s.mu.Lock()
	t.Era = s.st.Fill.Eras[t.Disk]
	err := s.log.Note(t, sync)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.progress(t.Data)
	if !sync {
		return nil
	}
	return s.r.step("initial.tile-logged")
}

// send sends a tile, or compares one that was sent in an earlier era.
func (s *sender) send(ctx context.Context, j tileJob) error {
	read := <-s.readers
	defer func() { s.readers <- read }()
	t := s.tables[j.d.Index]
	off := int64(j.tile) * cut.TileSize
	first := off / cut.Unit
	x := newTileSums(t, j.d, j.tile)
	if j.noted {
		have := make([]uint64, len(x.sums))
		if err := t.Load(first, have); err != nil {
			return err
		}
		if !slices.Contains(have, filter.Unknown) {
			if err := x.fill(ctx, read, j.rs, cut.DigestKey{}, false); err != nil {
				return err
			}
			return s.compared(j, x, have)
		}
	}
	sealed, err := s.sealTile(ctx, j, read, x)
	if err != nil {
		t.Stale()
		return err
	}
	entry := fill.Tile{Disk: j.d.Index, Tile: j.tile, Zero: sealed == nil, Data: j.data}
	if sealed != nil {
		entry.UID, entry.Gen, entry.N, entry.Size, entry.BLAKE3 = sealed.Name.UID, sealed.Name.Gen, sealed.Name.N, sealed.Size, sealed.BLAKE3
	}
	// What the filter says of a tile is durable before the log says that the tile is sent.
	if err := t.Store(first, x.sums); err != nil {
		t.Stale()
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	if err := s.r.step("initial.tile-stored"); err != nil {
		return err
	}
	return s.note(entry, true)
}

// compared notes what differs in a tile of an earlier era from what was sent.
func (s *sender) compared(j tileJob, x *tileSums, have []uint64) error {
	s.mu.Lock()
	err := error(nil)
	for i := range have {
		if have[i] != x.sums[i] && err == nil {
			err = s.log.Change(j.d.Index, x.first+int64(i)*cut.Unit, cut.Unit)
		}
	}
	if err == nil {
		err = s.log.Flush()
	}
	entry, ok := s.log.Image(j.d.Index, j.tile)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if !ok {
		entry = fill.Tile{Disk: j.d.Index, Tile: j.tile, Zero: true}
	}
	return s.note(entry, true)
}

// sealTile seals a tile's image and stores it; nil if all is zero. x gets the filter's entries.
func (s *sender) sealTile(ctx context.Context, j tileJob, read *frozen.Reader, x *tileSums) (_ *cut.Sealed, err error) {
	r := s.r
	var key cut.EpochKey
	var st state
	err = r.change(func(c *state) error {
		var kerr error
		key, kerr = r.key(c)
		st = *c
		return kerr
	})
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(r.cfg.Dir, "tile-*.tmp")
	if err != nil {
		return nil, durable.Error("capture.fill", r.cfg.Dir, err)
	}
	path := f.Name()
	f.Close()
	os.Remove(path)
	seg, err := seal.NewSegment(path, cut.WriterConfig{
		Header: cut.Header{Kind: cut.KindTile, Machine: r.cfg.Machine, Gen: st.Gen, N: st.nextN(), KeyEpoch: st.Epoch, Disk: j.d.Index, Tile: j.tile}, Key: key, Codec: r.codec(s.a),
	})
	if err != nil {
		return nil, err
	}
	closed := false
	defer func() {
		if !closed {
			seg.Abandon()
		}
		os.Remove(path)
	}()
	for i := range x.sums {
		x.sums[i] = filter.Zero
	}
	zero := true
	err = read.Read(ctx, j.d.ID, j.rs, func(off, n int64, p []byte) error {
		if p == nil {
			return nil
		}
		at := (off - x.first) / cut.Unit
		sums := x.t.Sums(x.sums[:at], p)[at:]
		for _, v := range sums {
			zero = zero && v == filter.Zero
		}
		return seg.Error(seg.Data(ctx, j.d.Index, off, p))
	})
	if err != nil || zero {
		return nil, err
	}
	closed = true
	sealed, err := seg.Finish(nil, false) // no later process looks at the file
	if err != nil {
		return nil, err
	}
	if err := r.step("initial.tile-sealed"); err != nil {
		return nil, err
	}
	if err := s.put(ctx, path, sealed, st.Epoch); err != nil {
		return nil, err
	}
	return &sealed, r.step("initial.tile-put")
}

func (s *sender) put(ctx context.Context, path string, sealed cut.Sealed, epoch uint32) error {
	release, err := s.r.acquire(ctx, s.a, transferTurn, true)
	if err != nil {
		return err
	}
	defer release()
	if err := s.r.sendKey(ctx, epoch); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return durable.Error("capture.fill", path, err)
	}
	defer f.Close()
	return s.r.cfg.Sink.Put(ctx, sealed.Name.Key(), f, sealed.Size, sealed.SHA256)
}

// progress publishes how far sending has come.
func (s *sender) progress(n int64) {
	var done int64
	s.mu.Lock()
	for _, d := range s.fill {
		done += s.log.Data(d.Index)
	}
	s.mu.Unlock()
	s.meter.show(n, done, max(s.total, done))
}

// cancelInitial gives up what is being sent: the host keeps no checkpoint, this
// directory no progress. Images in the store are leftovers.
func (r *Replicator) cancelInitial(ctx context.Context, a Assignment) error {
	st := r.snapshot()
	if st.Fill == nil {
		return nil
	}
	r.cutting.Lock()
	defer r.cutting.Unlock()
	if st.Tip.Ref.IsZero() {
		if err := r.cfg.Source.Forget(ctx, a.VM, nil); err != nil && dr.CodeOf(err) != dr.CodeVMNotFound {
			return err
		}
	}
	if err := r.change(func(s *state) error { s.Fill = nil; return nil }); err != nil {
		return err
	}
	var err error
	for _, d := range st.Fill.Disks {
		if rerr := os.Remove(r.tablePath(d.Index)); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return errors.Join(durable.Error("capture.cancel", r.path("filter"), err), fill.Remove(r.path("fill")))
}

// meter measures how fast something big goes; times in which nothing was under way do not count.
type meter struct {
	r    *Replicator
	last time.Time
}

// newMeter begins a stretch of work.
func (r *Replicator) newMeter() *meter { return &meter{r: r, last: time.Now()} }

// show publishes progress after n more bytes.
func (m *meter) show(n, done, total int64) {
	now := time.Now()
	m.r.set(func(s *Status) {
		sp := &m.r.speed
		sp.bytes += float64(n)
		sp.took += now.Sub(m.last)
		if sp.took > 10*time.Minute { // what was long ago counts less
			sp.bytes, sp.took = sp.bytes/2, sp.took/2
		}
		m.last = now
		s.BytesDone, s.BytesTotal, s.Percent, s.ETA = done, total, 100, 0
		if total > 0 {
			s.Percent = 100 * float64(done) / float64(total)
		}
		if sp.bytes > 0 && sp.took > 2*time.Second && done < total {
			s.ETA = time.Duration(float64(total-done) / sp.bytes * float64(sp.took)).Round(time.Second)
		}
	})
}

// speed is what a meter has seen lately.
type speed struct {
	bytes float64
	took  time.Duration
}
