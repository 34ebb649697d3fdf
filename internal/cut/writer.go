package cut

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"holdfast/internal/dr"
)

const maxWorkers = 64

// WriterConfig says what segment is written and how.
type WriterConfig struct {
	Header
	Key       EpochKey // of Header.Machine and Header.KeyEpoch
	Codec     Codec    // CodecDefault is zstd
	Workers   int      // goroutines that encode, 1..64; 0 means 2
	FrameLog2 int      // greatest plaintext of a frame, 12..16; 0 means 16; always 16 in tile images
}

// Validate checks ranges; it does not know defaults.
func (c WriterConfig) Validate() error {
	const op = "cut.WriterConfig"
	if p := c.Header.problem(); p != "" {
		return invalid(op, "segment header: %s", p)
	}
	switch {
	case c.Codec > CodecMinLZ:
		return invalid(op, "unknown %s", c.Codec)
	case c.Workers < 1 || c.Workers > maxWorkers:
		return invalid(op, "%d workers are outside 1..%d", c.Workers, maxWorkers)
	case c.FrameLog2 < minFrameLog2 || c.FrameLog2 > maxFrameLog2:
		return invalid(op, "frame size 2^%d is outside 2^%d..2^%d", c.FrameLog2, minFrameLog2, maxFrameLog2)
	case c.Kind == KindTile && c.FrameLog2 != maxFrameLog2:
		return invalid(op, "tile images have frames of 2^%d", maxFrameLog2)
	case c.Kind.hasMap():
		return invalid(op, "a %s is written by a RunWriter", c.Kind)
	case c.Key == EpochKey{}:
		return invalid(op, "there is no epoch key")
	}
	return nil
}

// Writer writes one segment. Its methods are for one goroutine, except Stored.
// Memory is bounded by about (2*Workers+1) * 2 frames, whatever is written,
// plus 40 bytes per extent.
//
// In a cut, part or data segment, ranges may come in any order but must not overlap; they are
// packed into frames in the order in which they come, and runs of zeros are kept as ranges without data.
// In a tile image, ranges must come in ascending order; what does not come is zero.
//
// An error of any method is final: Close then returns it. Every Writer must be
// ended by Close or Abort, which leave no goroutine behind. A destination that
// blocks forever blocks them too. What an unsuccessful Writer has written is not a segment.
type Writer struct {
	cfg    WriterConfig
	frame  int // bytes of plaintext
	header []byte
	sink   *sink
	pipe   *pipeline
	cur    *job
	count  uint32 // frames begun

	ext    []Extent
	next   int64 // KindTile: the least offset allowed
	counts Counts

	err    error
	ended  bool
	closed bool
	sealed Sealed
}

// NewWriter returns a writer of the segment that cfg describes. Nothing is
// written and no goroutine started before there is a frame to write.
func NewWriter(w io.Writer, cfg WriterConfig) (*Writer, error) {
	if cfg.Codec == CodecDefault {
		cfg.Codec = CodecZstd
	}
	if cfg.Workers == 0 {
		cfg.Workers = 2
	}
	if cfg.FrameLog2 == 0 {
		cfg.FrameLog2 = maxFrameLog2
	}
	if cfg.Segment == ([16]byte{}) {
		rand.Read(cfg.Segment[:]) // crypto/rand.Read never fails
	}
	if (cfg.Kind == KindTile || cfg.Kind == KindData) && cfg.UID == "" {
		cfg.UID = NewUID()
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	check, err := cfg.Key.check(cfg.Segment)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, "cut.NewWriter", "make segment keys: %w", err)
	}
	return &Writer{cfg: cfg, frame: 1 << cfg.FrameLog2, header: cfg.Header.encode(cfg.FrameLog2, check), sink: newSink(w)}, nil
}

// Header returns the segment's header with everything filled in.
func (w *Writer) Header() Header { return w.cfg.Header }

// Name returns the only name under which the segment will be valid.
func (w *Writer) Name() ObjectName { return w.cfg.Header.Name() }

// Format shows the segment's name and none of its keys.
func (w *Writer) Format(f fmt.State, _ rune) { io.WriteString(f, "writer of "+w.Name().Key()) }

// Extents returns the number of ranges so far.
func (w *Writer) Extents() int { return len(w.ext) }

// Stored returns about how many bytes the object would have if it was closed
// now without a commit, never less. It falls a little while frames turn out
// smaller than their plaintext.
func (w *Writer) Stored() int64 {
	const fixed = 2*headerSize + footerSize + 2*(sectionFixed+sealOverhead) + 64
	n := fixed + w.sink.stored.Load() + int64(len(w.ext))*12 + int64(w.count)*8
	if w.pipe != nil {
		n += w.pipe.inFlight.Load()
	}
	if w.cur != nil {
		n += int64(len(w.cur.raw)) + sealOverhead
	}
	if w.cfg.Kind == KindTile {
		n += tileBlocks * digestSize
	}
	return n
}

// fail makes err final.
func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = fmt.Errorf("write %s %q: %w", w.cfg.Kind, w.Name(), err)
	}
	return w.err
}

// admit checks a range given to Data or Zero.
func (w *Writer) admit(disk uint16, off, n int64) error {
	const op = "cut.Writer"
	switch {
	case w.err != nil:
		return w.err
	case w.closed:
		return invalid(op, "write to %s %q, which is closed", w.cfg.Kind, w.Name())
	case w.ended:
		return w.fail(invalid(op, "its content was said to be complete"))
	case off < 0 || off%Unit != 0 || n < 0 || n > MaxDisk || off > MaxDisk-n:
		return w.fail(invalid(op, "range %d+%d of disk %d does not begin at a multiple of %d or is outside 0..%d", off, n, disk, Unit, MaxDisk))
	case len(w.ext) > MaxExtents-(1<<16) || w.count > MaxFrames-(1<<16):
		return w.fail(invalid(op, "%d ranges and %d frames are too many for one segment", len(w.ext), w.count))
	}
	if w.cfg.Kind == KindTile {
		start := int64(w.cfg.Tile) * TileSize
		if disk != w.cfg.Disk || off < start || off+n > start+TileSize {
			return w.fail(invalid(op, "range %d+%d of disk %d is outside the tile", off, n, disk))
		}
		if off < w.next {
			return w.fail(invalid(op, "range %d+%d comes after offset %d was reached", off, n, w.next))
		}
		w.next = off + roundUp(n)
	}
	return nil
}

// Data adds the content of a range. off must be a multiple of Unit and so must
// len(p), except at the end of the disk. p is not kept. Data waits while all
// buffers are in use; ctx ends the wait.
func (w *Writer) Data(ctx context.Context, disk uint16, off int64, p []byte) error {
	// Larger pieces only make the limit on extents less exact.
	for len(p) > TileSize {
		if err := w.Data(ctx, disk, off, p[:TileSize]); err != nil {
			return err
		}
		off, p = off+TileSize, p[TileSize:]
	}
	if err := w.admit(disk, off, int64(len(p))); err != nil {
		return err
	}
	if w.cfg.Kind == KindTile {
		return w.tileData(ctx, off, p)
	}
	for len(p) > 0 {
		n, zero := run(p)
		if zero {
			w.addZero(disk, off, int64(n))
		} else if err := w.addData(ctx, disk, off, p[:n]); err != nil {
			return err
		}
		off, p = off+int64(n), p[n:]
	}
	return nil
}

// Zero adds a range that reads as zero. off must be a multiple of Unit and so
// must n, except at the end of the disk.
func (w *Writer) Zero(disk uint16, off, n int64) error {
	if err := w.admit(disk, off, n); err != nil {
		return err
	}
	if w.cfg.Kind == KindTile {
		w.counts.ZeroBytes += n
	} else if n > 0 {
		w.addZero(disk, off, n)
	}
	return nil
}

// run returns the length of the run of units at the front of p that are all zero or all not.
func run(p []byte) (n int, zero bool) {
	for n < len(p) {
		end := min(n+Unit, len(p))
		z := isZero(p[n:end])
		if n > 0 && z != zero {
			break
		}
		n, zero = end, z
	}
	return n, zero
}

func (w *Writer) addZero(disk uint16, off, n int64) {
	w.counts.ZeroBytes += n
	if i := len(w.ext) - 1; i >= 0 && w.ext[i].Zero && w.ext[i].Disk == disk && w.ext[i].End() == off {
		w.ext[i].Len += n
		return
	}
	w.ext = append(w.ext, Extent{Disk: disk, Off: off, Len: n, Zero: true})
}

// addData puts p, which is not zero, into frames.
func (w *Writer) addData(ctx context.Context, disk uint16, off int64, p []byte) error {
	w.counts.DataBytes += int64(len(p))
	for len(p) > 0 {
		if w.cur != nil {
			w.padCurrent()
			if len(w.cur.raw) == w.frame {
				w.flush()
			}
		}
		if w.cur == nil {
			if err := w.begin(ctx, disk, off); err != nil {
				return err
			}
		}
		n := min(len(p), w.frame-len(w.cur.raw))
		at := uint32(len(w.cur.raw))
		w.cur.raw = append(w.cur.raw, p[:n]...)
		if i := len(w.ext) - 1; i >= 0 && !w.ext[i].Zero && w.ext[i].Disk == disk && w.ext[i].End() == off && w.ext[i].Frame == w.cur.index && at != 0 {
			w.ext[i].Len += int64(n)
		} else {
			w.ext = append(w.ext, Extent{Disk: disk, Off: off, Len: int64(n), Frame: w.cur.index, FrameOff: at})
		}
		off, p = off+int64(n), p[n:]
	}
	return nil
}

// padCurrent fills the current frame up to the next unit, behind the end of a disk.
func (w *Writer) padCurrent() {
	if n := len(w.cur.raw) % Unit; n != 0 {
		w.cur.raw = append(w.cur.raw, make([]byte, Unit-n)...)
	}
}

// tileData adds p to the blocks of a tile image. A block becomes a frame when a later one begins.
func (w *Writer) tileData(ctx context.Context, off int64, p []byte) error {
	w.counts.ZeroBytes += int64(len(p)) // until a block is found to carry them
	for len(p) > 0 {
		in := off - int64(w.cfg.Tile)*TileSize
		block, at := int(in/Block), int(in%Block)
		if w.cur != nil && w.cur.block != block {
			w.flushBlock()
		}
		n := min(len(p), Block-at)
		if w.cur == nil {
			if isZero(p[:n]) {
				off, p = off+int64(n), p[n:]
				continue
			}
			if err := w.begin(ctx, w.cfg.Disk, 0); err != nil {
				return err
			}
			w.cur.block = block
		}
		w.cur.raw = append(w.cur.raw, make([]byte, at-len(w.cur.raw))...)
		w.cur.raw = append(w.cur.raw, p[:n]...)
		off, p = off+int64(n), p[n:]
	}
	return nil
}

// flushBlock makes a frame of the current block, less zero units at both ends.
func (w *Writer) flushBlock() {
	j := w.cur
	for isZero(j.raw[j.lead:min(j.lead+Unit, len(j.raw))]) { // the block is not all zero
		j.lead += Unit
	}
	for {
		last := (len(j.raw) - 1) &^ (Unit - 1)
		if !isZero(j.raw[last:]) {
			break
		}
		j.raw = j.raw[:last]
	}
	off, n := int64(w.cfg.Tile)*TileSize+int64(j.block)*Block+int64(j.lead), int64(len(j.raw)-j.lead)
	j.frame.lba = off
	w.ext = append(w.ext, Extent{Disk: w.cfg.Disk, Off: off, Len: n, Frame: j.index})
	w.counts.DataBytes += n
	w.counts.ZeroBytes = max(0, w.counts.ZeroBytes-n)
	w.flush()
}

// begin makes an empty current frame whose first range begins at off.
func (w *Writer) begin(ctx context.Context, disk uint16, off int64) error {
	if w.pipe == nil {
		if err := w.start(); err != nil {
			return w.fail(err)
		}
	}
	j, err := w.pipe.get(ctx)
	if err != nil {
		return w.fail(err)
	}
	j.index, j.frame = w.count, Frame{disk: disk, lba: off}
	w.count++
	w.cur = j
	return nil
}

func (w *Writer) start() error {
	e := encoder{codec: w.cfg.Codec, segment: w.cfg.Segment, digests: w.cfg.Kind == KindTile}
	var err error
	if e.data, err = w.cfg.Key.aead(w.cfg.Segment, purposeData); err != nil {
		return err
	}
	if e.digest, err = w.cfg.Key.digestKey(w.cfg.Segment); err != nil {
		return err
	}
	if e.codec == CodecZstd {
		if e.zstd, err = newZstd(w.cfg.Workers); err != nil {
			return err
		}
	}
	w.pipe = startPipeline(w.cfg.Workers, w.header, w.sink, e)
	return nil
}

func (w *Writer) flush() {
	w.pipe.put(w.cur)
	w.cur = nil
}

// Abort gives the segment up and ends its goroutines. It does nothing after Close.
func (w *Writer) Abort() {
	if !w.closed {
		w.fail(dr.Errorf(dr.KindCanceled, "cut.Writer", "given up"))
		w.end()
		w.closed = true
	}
}

// End completes the content, so that a commit can tell what it amounts to:
// only Close or Abort may follow. It may be left out.
func (w *Writer) End() (Counts, error) {
	w.end()
	return w.counts, w.err
}

// end stops the pipeline.
func (w *Writer) end() {
	if w.ended {
		return
	}
	w.ended = true
	if w.pipe == nil {
		return
	}
	if w.cur != nil && w.err == nil {
		if w.cfg.Kind == KindTile {
			w.flushBlock()
		} else {
			w.flush()
		}
	}
	if err := w.pipe.close(); err != nil {
		w.fail(err)
	}
	w.counts.RawFrames, w.counts.IncompressibleBytes = w.pipe.rawFrames, w.pipe.rawBytes
}

// Close completes the segment: commit is required for a cut and must be nil
// otherwise. The destination is neither flushed nor closed. A second Close
// returns what the first one did.
func (w *Writer) Close(commit *Commit) (Sealed, error) {
	if w.closed {
		return w.sealed, w.err
	}
	w.end()
	w.closed = true
	if w.err != nil {
		return Sealed{}, w.err
	}
	s, err := w.finish(commit)
	if err != nil {
		return Sealed{}, w.fail(err)
	}
	w.sealed = s
	return s, nil
}

// sections are the plaintexts of the sealed parts of the tail.
type sections struct{ digest, mapped, index, commit []byte }

// footer returns the footer of a segment with these sections whose frames end at tail.
func (s sections) footer(tail int64, c Counts) footer {
	f := footer{
		tail: tail, tableLen: sealedLen(s.digest) + sealedLen(s.mapped), indexLen: sealedLen(s.index), commitLen: sealedLen(s.commit),
		dataBytes: c.DataBytes, zeroBytes: c.ZeroBytes,
	}
	f.size = f.tail + int64(f.tableLen) + int64(f.indexLen) + int64(f.commitLen) + headerSize + footerSize
	return f
}

func (w *Writer) finish(commit *Commit) (Sealed, error) {
	var frames []Frame
	tags := blake3.New()
	if w.pipe != nil {
		frames, tags = w.pipe.frames, w.pipe.tags
	}
	if w.sink.off == 0 {
		if err := w.sink.write(w.header); err != nil {
			return Sealed{}, err
		}
	}
	plain, err := w.sections(commit, frames)
	if err != nil {
		return Sealed{}, err
	}
	f := plain.footer(w.sink.off, w.counts)
	f.frames, f.extents = uint32(len(frames)), uint32(len(w.ext))
	tags.Sum(f.tagRoot[:0])
	tail, err := plain.seal(w.cfg.Key, w.cfg.Segment, w.header, f)
	if err != nil {
		return Sealed{}, err
	}
	if err := w.sink.write(tail); err != nil {
		return Sealed{}, err
	}
	s := Sealed{Name: w.Name(), ChainHash: blake3.Sum256(tail), Frames: len(frames), Extents: len(w.ext), Counts: w.counts}
	w.sink.sum(&s)
	return s, nil
}

func sealedLen(plain []byte) uint32 {
	if plain == nil {
		return 0
	}
	return uint32(len(plain) + sealOverhead)
}

func (w *Writer) sections(commit *Commit, frames []Frame) (s sections, err error) {
	const op = "cut.Writer"
	if (commit != nil) != (w.cfg.Kind == KindCut) {
		return s, invalid(op, "cuts have a commit and other segments have none")
	}
	if err := sortExtents(w.ext); err != nil {
		return s, dr.Errorf(dr.KindInvalid, op, "sort ranges: %w", err)
	}
	var enc *zstd.Encoder
	if w.cfg.Codec == CodecZstd || w.cfg.Codec == CodecMinLZ {
		if enc, err = newZstd(1); err != nil {
			return s, err
		}
	}
	if s.index, err = packSection(encodeIndex(frames, w.ext, uint32(w.frame)), enc); err != nil {
		return s, err
	}
	if commit != nil {
		raw, err := encodeCommit(commit, w.cfg.Header, w.ext)
		if err != nil {
			return s, dr.Errorf(dr.KindInvalid, op, "commit: %w", err)
		}
		if s.commit, err = packSection(raw, enc); err != nil {
			return s, err
		}
	}
	if w.cfg.Kind == KindTile && len(frames) > 0 {
		s.digest, err = packSection(encodeDigests(w.pipe.digests), enc)
	}
	return s, err
}

// encodeDigests returns the table up to the last block that is not zero.
func encodeDigests(d map[int][digestSize]byte) []byte {
	last := 0
	for i := range d {
		last = max(last, i)
	}
	b := make([]byte, (last+1)*digestSize)
	for i, v := range d {
		copy(b[i*digestSize:], v[:])
	}
	return b
}

// seal returns the object's tail.
func (s sections) seal(key EpochKey, segment [16]byte, header []byte, f footer) ([]byte, error) {
	foot := f.encode()
	aad := sectionAAD(header, foot)
	tail := make([]byte, 0, f.size-f.tail)
	for _, x := range []struct {
		plain   []byte
		purpose string
	}{{s.digest, purposeTable}, {s.mapped, purposeMap}, {s.index, purposeIndex}, {s.commit, purposeCommit}} {
		if x.plain == nil {
			continue
		}
		aead, err := key.aead(segment, x.purpose)
		if err != nil {
			return nil, err
		}
		tail = aead.Seal(tail, nil, x.plain, aad)
	}
	tail = append(append(tail, header...), foot...)
	if int64(len(tail)) != f.size-f.tail {
		return nil, dr.Errorf(dr.KindInternal, "cut.Writer", "the tail has %d bytes, want %d", len(tail), f.size-f.tail)
	}
	return tail, nil
}
