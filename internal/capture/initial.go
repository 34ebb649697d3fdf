package capture

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"github.com/zeebo/blake3"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

func readerAt(b []byte) io.ReaderAt { return bytes.NewReader(b) }
func sum256(b []byte) [32]byte      { return sha256.Sum256(b) }

// The initial replication sends tile images from frozen images, in rounds: an
// image is never held longer than HoldLimit, and a round that ends, or dies,
// loses nothing, because the tiles sent are logged and the changes since the
// first round's token are put into the first cut. Losing that token (the VM
// crashed) costs reading the logged tiles again, and sending those that differ.

// tileLog is one line of initial.log, in version 1 of the format: JSON, one
// object a line, synced one by one. A torn last line is ignored.
type tileLog struct {
	V      int           `json:"v"` // 1
	Disk   uint16        `json:"disk"`
	Tile   uint32        `json:"tile"`
	Era    int           `json:"era"`
	Zero   bool          `json:"zero,omitempty"` // the tile is all zero and was not stored
	Plain  cut.Hash      `json:"plain"`          // BLAKE3 of the content
	UID    string        `json:"uid,omitempty"`
	Gen    dr.Generation `json:"gen,omitempty"`
	N      uint64        `json:"n,omitempty"`
	Size   int64         `json:"size,omitempty"`
	BLAKE3 cut.Hash      `json:"blake3"`
}

type tileID struct {
	disk uint16
	tile uint32
}

func (r *Replicator) readTileLog() (map[tileID]tileLog, error) {
	tiles := map[tileID]tileLog{}
	raw, err := os.ReadFile(r.path("initial.log"))
	if errors.Is(err, os.ErrNotExist) {
		return tiles, nil
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "capture.initial", "read tile log: %w", err)
	}
	sc := bufio.NewScanner(bytes.NewReader(raw))
	for sc.Scan() {
		var t tileLog
		if json.Unmarshal(sc.Bytes(), &t) == nil && t.V == 1 {
			tiles[tileID{t.Disk, t.Tile}] = t
		}
	}
	return tiles, nil
}

// round is one frozen image of the initial replication.
type round struct {
	r     *Replicator
	c     hypervisor.Cut
	info  hypervisor.CutInfo
	disks []cut.Disk
	fs    filters
	era   int
	log   *os.File
	tiles map[tileID]tileLog
	fresh map[tileID]bool // tiles as of this image
	until time.Time
	start time.Time
	done  int64
	total int64
}

// errHold ends a round whose image has been held long enough.
var errHold = errors.New("the image has been held long enough")

// initial replicates until the first cut is sealed.
func (r *Replicator) initial(ctx context.Context, a Assignment) error {
	r.set(func(s *Status) { s.Phase, s.Note = PhaseInitial, "" })
	for {
		err := r.initialRound(ctx, a)
		if !errors.Is(err, errHold) {
			return err
		}
	}
}

func (r *Replicator) beginRound(ctx context.Context, a Assignment) (hypervisor.Cut, *initial, error) {
	st := r.snapshot()
	ini := st.Initial
	if ini == nil {
		ini = &initial{Era: 1}
		if err := os.Remove(r.path("initial.log")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, diskError("capture.initial", r.path("initial.log"), err)
		}
	}
	next := *ini
	req := hypervisor.CutRequest{VM: a.VM, Disks: a.Disks, Base: ini.Token, Tag: r.tag(0)}
	c, err := r.cfg.Source.BeginCut(ctx, req)
	if dr.CodeOf(err) == dr.CodeTrackingLost {
		r.cfg.Log.Warn("change tracking was lost during the initial replication: tiles already sent are compared", "err", err)
		next.Token, next.Era = "", ini.Era+1
		req.Base = ""
		c, err = r.cfg.Source.BeginCut(ctx, req)
	}
	if err != nil {
		return nil, nil, err
	}
	if next.Token == "" {
		next.Token = c.Info().Token
	}
	err = r.change(func(s *state) error {
		s.Initial = &next
		return nil
	})
	if err != nil {
		return nil, nil, errors.Join(err, c.Abort(context.WithoutCancel(ctx)))
	}
	return c, &next, nil
}

func (r *Replicator) initialRound(ctx context.Context, a Assignment) (err error) {
	r.cutting.Lock()
	defer r.cutting.Unlock()
	start := time.Now()
	c, ini, err := r.beginRound(ctx, a)
	if err != nil {
		return err
	}
	crashed := func() bool { return errors.Is(err, errCrash) }
	sealed := false
	defer func() {
		switch {
		case sealed || crashed():
		case c.Info().Token == ini.Token:
			// The first round's token is what later rounds take changes since.
			err = errors.Join(err, c.End(context.WithoutCancel(ctx)))
		default:
			err = errors.Join(err, c.Abort(context.WithoutCancel(ctx)))
		}
	}()
	if err := r.step("initial.begun"); err != nil {
		return err
	}
	rd := &round{r: r, c: c, info: c.Info(), era: ini.Era, fresh: map[tileID]bool{}, until: start.Add(r.cfg.HoldLimit), start: time.Now()}
	if rd.disks, err = r.disksOf(rd.info); err != nil {
		return err
	}
	if rd.tiles, err = r.readTileLog(); err != nil {
		return err
	}
	if rd.fs, err = r.openFilters(rd.disks); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rd.fs.close()) }()
	for _, f := range rd.fs {
		// What an earlier round put may not have reached the disk: unknown costs
		// bytes once, wrong would cost data.
		if err := f.reset(len(rd.tiles) == 0); err != nil {
			return err
		}
		if err := f.begin(); err != nil {
			return diskError("capture.filter", f.f.Name(), err)
		}
	}
	if rd.log, err = os.OpenFile(r.path("initial.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return diskError("capture.initial", r.path("initial.log"), err)
	}
	defer func() { err = errors.Join(err, rd.log.Close()) }()
	if err := rd.sendTiles(ctx); err != nil {
		return err
	}
	e, err := rd.seal(ctx, a, start)
	if err != nil {
		return err
	}
	if err := c.End(ctx); err != nil {
		return err
	}
	sealed = true
	for _, f := range rd.fs {
		if err := f.commit(e.Ref); err != nil {
			return diskError("capture.filter", f.f.Name(), err)
		}
	}
	return r.finishInitial(e)
}

// finishInitial makes the first cut the tip.
func (r *Replicator) finishInitial(e *entry) error {
	if err := r.change(func(s *state) error { s.Tip, s.TipToken, s.Initial, s.Resync = e.Ref, e.Token, nil, ""; return nil }); err != nil {
		return err
	}
	if err := r.step("tip.saved"); err != nil {
		return err
	}
	r.set(func(s *Status) { s.Cycles++; s.Percent, s.ETA, s.Phase = 100, 0, PhaseDelta })
	r.tipAt = e.Time
	r.enqueue(e)
	return nil
}

func tileCount(size int64) uint32 { return uint32((size + cut.TileSize - 1) / cut.TileSize) }

// sendTiles sends every tile that is not logged, or not in this era with the same content.
func (rd *round) sendTiles(ctx context.Context) error {
	for _, d := range rd.disks {
		rd.total += d.Size
	}
	for i, d := range rd.disks {
		for t := range tileCount(d.Size) {
			length := min(cut.TileSize, d.Size-int64(t)*cut.TileSize)
			id := tileID{d.Index, t}
			have, logged := rd.tiles[id]
			if logged && have.Era == rd.era {
				rd.progress(length)
				continue
			}
			if time.Now().After(rd.until) {
				return errHold
			}
			if err := rd.sendTile(ctx, rd.info.Disks[i].ID, d, t, length, have, logged); err != nil {
				return err
			}
			rd.fresh[id] = true
			rd.progress(length)
		}
	}
	return nil
}

func (rd *round) progress(n int64) {
	rd.done += n
	rd.r.progress(rd.start, rd.done, rd.total)
}

// sendTile reads a tile and stores its image, unless it is all zero or the
// store has the same content from an earlier era.
func (rd *round) sendTile(ctx context.Context, diskID string, d cut.Disk, tile uint32, length int64, have tileLog, logged bool) (err error) {
	r := rd.r
	off := int64(tile) * cut.TileSize
	rs, err := ranges(ctx, rd.c, diskID, off, length, func(hypervisor.Range) bool { return true })
	if err != nil {
		return err
	}
	entry := tileLog{V: 1, Disk: d.Index, Tile: tile, Era: rd.era, Zero: true}
	f := rd.fs[d.Index]
	plain := newPlainHash()
	if len(rs) == 1 && rs[0].Zero {
		// Nothing to read and nothing to send. Not even synced: a lost line costs a look.
		f.putZeroes(off, length)
		plain.zeroes(length)
		entry.Plain = plain.sum()
		if !logged || have.Plain == entry.Plain {
			return rd.note(entry, false)
		}
	}
	var key cut.EpochKey
	var st state
	err = r.change(func(s *state) error {
		var kerr error
		key, kerr = r.key(s)
		st = *s
		return kerr
	})
	if err != nil {
		return err
	}
	path := r.path("tile.tmp")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return diskError("capture.initial", path, err)
	}
	seg, err := newSegment(path, cut.WriterConfig{
		Header: cut.Header{Kind: cut.KindTile, Machine: r.cfg.Machine, Gen: st.Gen, N: 0, KeyEpoch: st.Epoch, Disk: d.Index, Tile: tile}, Key: key, Codec: r.cfg.Codec,
	})
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			seg.abandon()
		}
		os.Remove(path)
	}()
	plain = newPlainHash()
	err = readRanges(ctx, rd.c, diskID, widen(rs, d.Size), func(o, n int64, p []byte) error {
		if p == nil {
			f.putZeroes(o, n)
			plain.zeroes(n)
			return nil
		}
		for at := int64(0); at < n; at += cut.Unit {
			unit := p[at:min(at+cut.Unit, n)]
			v := f.sum(unit)
			if v != entryZero {
				entry.Zero = false
				plain.data(unit)
			} else {
				plain.zeroes(int64(len(unit)))
			}
			f.put((o+at)/cut.Unit, v)
		}
		return seg.Data(ctx, d.Index, o, p)
	})
	if err != nil {
		return err
	}
	dropPages(f.m)
	entry.Plain = plain.sum()
	if logged && have.Plain == entry.Plain {
		have.Era = rd.era
		return rd.note(have, true)
	}
	if !entry.Zero {
		closed = true
		sealed, err := seg.finish(nil)
		if err != nil {
			return err
		}
		if err := r.step("initial.tile-sealed"); err != nil {
			return err
		}
		if err := rd.put(ctx, path, sealed, st.Epoch); err != nil {
			return err
		}
		entry.UID, entry.Gen, entry.N, entry.Size, entry.BLAKE3 = sealed.Name.UID, sealed.Name.Gen, sealed.Name.N, sealed.Size, sealed.BLAKE3
		if err := r.step("initial.tile-put"); err != nil {
			return err
		}
	}
	return rd.note(entry, true)
}

func (rd *round) put(ctx context.Context, path string, sealed cut.Sealed, epoch uint32) error {
	if err := rd.r.sendKey(ctx, epoch); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return diskError("capture.initial", path, err)
	}
	defer f.Close()
	return rd.r.cfg.Sink.Put(ctx, sealed.Name.Key(), f, sealed.Size, sealed.SHA256)
}

// note logs a tile, durably if sync is set.
func (rd *round) note(t tileLog, sync bool) error {
	line, err := json.Marshal(t)
	if err != nil {
		return dr.Errorf(dr.KindInternal, "capture.initial", "encode tile: %w", err)
	}
	if _, err = rd.log.Write(append(line, '\n')); err == nil && sync {
		err = rd.log.Sync()
	}
	if err != nil {
		return diskError("capture.initial", rd.log.Name(), err)
	}
	rd.tiles[tileID{t.Disk, t.Tile}] = t
	return rd.r.step("initial.tile-logged")
}

// plainHash is the hash of a tile's content, the same however it was read:
// units of zeroes count by their number, whether they came as data or as a hole.
type plainHash struct {
	h    *blake3.Hasher
	zero int64 // bytes of zeroes not yet in the hash
}

func newPlainHash() *plainHash { return &plainHash{h: blake3.New()} }

func (p *plainHash) zeroes(n int64) { p.zero += n }

func (p *plainHash) data(unit []byte) {
	p.flush()
	p.tag('D', int64(len(unit)))
	p.h.Write(unit)
}

func (p *plainHash) flush() {
	if p.zero > 0 {
		p.tag('Z', p.zero)
		p.zero = 0
	}
}

func (p *plainHash) tag(kind byte, n int64) {
	var b [9]byte
	b[0] = kind
	binary.LittleEndian.PutUint64(b[1:], uint64(n))
	p.h.Write(b[:])
}

func (p *plainHash) sum() cut.Hash {
	p.flush()
	return cut.Hash(p.h.Sum(nil))
}

// seal makes cut 0: all tiles, and what has changed since the first round in
// those that an earlier round sent.
func (rd *round) seal(ctx context.Context, a Assignment, start time.Time) (_ *entry, err error) {
	r := rd.r
	vm, err := r.vmRecord(ctx, a.VM)
	if err != nil {
		return nil, err
	}
	late := func(disk uint16) func(hypervisor.Range) bool {
		return func(x hypervisor.Range) bool { return x.Changed }
	}
	var bytes int64
	changed := map[uint16][]hypervisor.Range{}
	for i, d := range rd.disks {
		if !rd.info.Incremental {
			break // every tile is as of this image
		}
		all, err := ranges(ctx, rd.c, rd.info.Disks[i].ID, 0, d.Size, late(d.Index))
		if err != nil {
			return nil, err
		}
		for _, x := range splitByTile(all) {
			if rd.fresh[tileID{d.Index, uint32(x.Off / cut.TileSize)}] {
				continue
			}
			changed[d.Index] = append(changed[d.Index], x)
			bytes += x.Len
		}
	}
	s, err := r.newSealer(bytes)
	if err != nil {
		return nil, err
	}
	sealed := false
	defer func() {
		if !sealed {
			s.abandon(err)
		}
	}()
	for i, d := range rd.disks {
		f := rd.fs[d.Index]
		err := readRanges(ctx, rd.c, rd.info.Disks[i].ID, widen(changed[d.Index], d.Size), func(o, n int64, p []byte) error {
			if p == nil {
				f.putZeroes(o, n)
				return s.zero(d.Index, o, n)
			}
			for at := int64(0); at < n; at += cut.Unit {
				f.put((o+at)/cut.Unit, f.sum(p[at:min(at+cut.Unit, n)]))
			}
			return s.data(ctx, d.Index, o, p)
		})
		if err != nil {
			return nil, err
		}
	}
	commit := &cut.Commit{
		Base: true, Time: rd.info.Time.UTC(), Consistency: rd.info.Consistency, Note: rd.info.Note, Disks: rd.disks, VM: vm,
		Stats: cut.Stats{Read: time.Since(start)},
	}
	for _, d := range rd.disks {
		commit.Stats.DirtyBytes += d.Size
		for t := range tileCount(d.Size) {
			x := rd.tiles[tileID{d.Index, t}]
			if x.Zero {
				continue
			}
			commit.Tiles = append(commit.Tiles, cut.TileRef{Disk: d.Index, Tile: t, UID: x.UID, Gen: x.Gen, N: x.N, Size: x.Size, BLAKE3: x.BLAKE3})
			commit.Stats.StoredBytes += x.Size
		}
	}
	e, err := s.finish(commit, rd.info.Token, time.Since(start))
	if err != nil {
		return nil, err
	}
	sealed = true
	return e, r.step("initial.sealed")
}

// splitByTile cuts ranges at tile boundaries.
func splitByTile(rs []hypervisor.Range) []hypervisor.Range {
	var out []hypervisor.Range
	for _, x := range rs {
		for x.Len > 0 {
			n := min(x.Len, (x.Off/cut.TileSize+1)*cut.TileSize-x.Off)
			y := x
			y.Len = n
			out = append(out, y)
			x.Off += n
			x.Len -= n
		}
	}
	return out
}
