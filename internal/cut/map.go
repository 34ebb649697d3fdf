package cut

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"
)

// MapExtent is a range of a disk and where its content is.
type MapExtent struct {
	Disk     uint16
	Off, Len int64  // Off is a multiple of Unit; so is Len, except at the end of the disk. Data is at most Block long, a zero range has any length
	Zero     bool   // the range reads as zero; the fields below are zero
	Segment  int    // number in the Segments of the run's commit
	Frame    uint32 // of that segment, whose plaintext holds the whole range
	FrameOff uint32 // offset in that plaintext, a multiple of Unit
}

// End returns Off+Len.
func (e MapExtent) End() int64 { return e.Off + e.Len }

// The raw map is a stream of extents in order of disk and offset; their number is in the footer:
//
//	flags u8, [disk], units from the end of the extent before (from 0 on another
//	disk), length (units, or bytes), [segment], [frame delta, units into the frame]
//
// A data extent without an explicit place follows the data extent before it of
// the same segment, as the ranges of a cut do in its frames: at the next unit of
// that frame, as far as it can reach, else at the start of the next one. With
// scattered writes this takes a third less than places relative to the extent before.
const (
	mapSegment  = 1 << 4 // another segment than the data extent before (the first: than segment 0)
	mapKnown    = extKnown | mapSegment
	maxMapEntry = 1 + 6*binary.MaxVarintLen64
	mapWindow   = 1 << 20  // that a reader has to remember to decompress
	mapChunk    = 64 << 10 // that is decompressed at a time
)

// mapState is what an extent of a map is relative to.
type mapState struct {
	sizes   map[uint16]int64 // of the disks
	size    int64            // of disk
	disk    uint16
	end     int64 // of the extent before, rounded up
	segment int
	expect  []place // per segment: where the next data extent is expected
}

func newMapState(segments int, sizes map[uint16]int64) mapState {
	return mapState{sizes: sizes, size: sizes[0], expect: make([]place, segments)}
}

// check says what is wrong with an extent that is not before s.end. Its disk is s.disk.
func (s *mapState) check(e MapExtent) error {
	switch {
	case e.Len <= 0 || e.Off < 0 || e.Off%Unit != 0 || e.Len > s.size || e.Off > s.size-e.Len || e.Len%Unit != 0 && e.End() != s.size:
		return fmt.Errorf("range %d+%d of disk %d does not fit the VM's disks", e.Off, e.Len, e.Disk)
	case e.Zero && (e.Segment != 0 || e.Frame != 0 || e.FrameOff != 0):
		return fmt.Errorf("the zero range %d+%d of disk %d has a place", e.Off, e.Len, e.Disk)
	case e.Zero:
		return nil
	case e.Segment < 0 || e.Segment >= len(s.expect) || e.Frame >= MaxFrames:
		return fmt.Errorf("frame %d of segment %d does not exist", e.Frame, e.Segment)
	case e.FrameOff%Unit != 0 || int64(e.FrameOff)+e.Len > Block:
		return fmt.Errorf("%d bytes at %d are not in one frame", e.Len, e.FrameOff)
	}
	return nil
}

// turn makes the state stand at the start of a disk.
func (s *mapState) turn(disk uint16) { s.disk, s.end, s.size = disk, 0, s.sizes[disk] }

// advance makes e the extent before.
func (s *mapState) advance(e MapExtent) {
	s.end = roundUp(e.End())
	if e.Zero {
		return
	}
	s.segment = e.Segment
	s.expect[e.Segment] = after(Extent{Len: e.Len, Frame: e.Frame, FrameOff: e.FrameOff}, Block)
}

type mapEncoder struct{ mapState }

// append checks and encodes an extent. After an error the encoder is of no more use.
func (m *mapEncoder) append(b []byte, e MapExtent) ([]byte, error) {
	if e.Disk < m.disk || e.Disk == m.disk && e.Off < m.end {
		return b, fmt.Errorf("range %d+%d of disk %d comes after offset %d of disk %d was reached", e.Off, e.Len, e.Disk, m.end, m.disk)
	}
	var flags byte
	if e.Disk != m.disk {
		flags |= extDisk
		m.turn(e.Disk)
	}
	if err := m.check(e); err != nil {
		return b, err
	}
	if e.Len%Unit != 0 {
		flags |= extBytes
	}
	var next place
	if e.Zero {
		flags |= extZero
	} else {
		if e.Segment != m.segment {
			flags |= mapSegment
		}
		if next = m.expect[e.Segment]; next != (place{e.Frame, int64(e.FrameOff)}) {
			flags |= extPlaced
		}
	}
	b = append(b, flags)
	if flags&extDisk != 0 {
		b = binary.AppendUvarint(b, uint64(e.Disk))
	}
	b = binary.AppendUvarint(b, uint64(e.Off-m.end)/Unit)
	if flags&extBytes != 0 {
		b = binary.AppendUvarint(b, uint64(e.Len))
	} else {
		b = binary.AppendUvarint(b, uint64(e.Len)/Unit)
	}
	if flags&mapSegment != 0 {
		b = binary.AppendUvarint(b, uint64(e.Segment))
	}
	if flags&extPlaced != 0 {
		b = binary.AppendVarint(b, int64(e.Frame)-int64(next.frame))
		b = binary.AppendUvarint(b, uint64(e.FrameOff)/Unit)
	}
	m.advance(e)
	return b, nil
}

type mapDecoder struct{ mapState }

// next decodes and checks an extent.
func (m *mapDecoder) next(c *cursor) (e MapExtent) {
	flags := c.byte()
	if c.err == nil && (flags&^byte(mapKnown) != 0 || flags&extZero != 0 && flags&(extPlaced|mapSegment) != 0) {
		c.fail("flags %#x are not possible", flags)
	}
	if flags&extDisk != 0 {
		disk := uint16(c.uint("disk", 0xffff))
		if c.err == nil && disk <= m.disk {
			c.fail("disk %d follows disk %d", disk, m.disk)
		}
		m.turn(disk)
	}
	e.Disk, e.Zero = m.disk, flags&extZero != 0
	e.Off = m.end + int64(c.uint("distance", uint64(MaxDisk)/Unit))*Unit
	if flags&extBytes != 0 {
		e.Len = int64(c.uint("length", uint64(MaxDisk)))
		if c.err == nil && e.Len%Unit == 0 {
			c.fail("length %d needs no bytes", e.Len)
		}
	} else {
		e.Len = int64(c.uint("length", uint64(MaxDisk)/Unit)) * Unit
	}
	if !e.Zero {
		m.place(c, flags, &e)
	}
	if c.err == nil {
		if err := m.check(e); err != nil {
			c.fail("%w", err)
			return e
		}
		m.advance(e)
	}
	return e
}

// place reads where the data of e begins.
func (m *mapDecoder) place(c *cursor, flags byte, e *MapExtent) {
	e.Segment = m.segment
	if flags&mapSegment != 0 {
		e.Segment = int(c.uint("segment", MaxExtents))
		if c.err == nil && e.Segment == m.segment {
			c.fail("segment %d is not another one", e.Segment)
		}
	}
	if c.err == nil && e.Segment >= len(m.expect) {
		c.fail("segment %d does not exist", e.Segment)
	}
	if c.err != nil {
		return
	}
	next := m.expect[e.Segment]
	frame := int64(next.frame)
	if flags&extPlaced != 0 {
		frame += c.int("frame", MaxFrames)
		next.off = int64(c.uint("frame offset", Block/Unit)) * Unit
	}
	if c.err == nil && (frame < 0 || frame >= MaxFrames) {
		c.fail("frame %d does not exist", frame)
		return
	}
	e.Frame, e.FrameOff = uint32(frame), uint32(next.off)
}

// Map returns the extents of a run or map in order of disk and offset. They do
// not overlap, lie inside the disks of the commit, and name its segments; whether a
// segment really has that range there says Segment.CheckExtent of that segment.
//
// The map is read when the iteration begins, if it was not small enough to come
// with Open, verified as a whole against the key, and checked extent by extent: nothing that is
// not possible is yielded. An error ends the iteration and what came before it must not be
// used. The memory in use is twice the stored size of the map and some 2 MiB,
// however many extents there are. The method may be called again and by several goroutines.
func (s *Segment) Map(ctx context.Context) iter.Seq2[MapExtent, error] {
	return func(yield func(MapExtent, error) bool) {
		const op = "cut.Map"
		if !s.header.Kind.hasMap() {
			yield(MapExtent{}, invalid(op, "object %q is a %s and has no map", s.object, s.header.Kind))
			return
		}
		plain, err := s.openMap(ctx, op)
		if err != nil {
			yield(MapExtent{}, err)
			return
		}
		if err := s.eachExtent(ctx, plain, yield); err != nil && !errors.Is(err, errStopped) {
			if ctx.Err() == nil {
				err = corrupt(op, s.object, "map", s.footer.tail, "%v", err)
			}
			yield(MapExtent{}, err)
		}
	}
}

// openMap returns the verified plaintext of the map section.
func (s *Segment) openMap(ctx context.Context, op string) ([]byte, error) {
	sealed, err := s.mapped, error(nil)
	if sealed == nil {
		if sealed, err = s.read(ctx, op, s.footer.tail, int64(s.footer.tableLen)); err != nil {
			return nil, err
		}
	}
	plain, err := s.table.Open(nil, nil, sealed, s.aad)
	if err != nil {
		return nil, corrupt(op, s.object, "map", s.footer.tail, "it does not verify")
	}
	return plain, nil
}

var errStopped = errors.New("stopped by the caller")

// eachExtent decodes the plaintext of a map section.
func (s *Segment) eachExtent(ctx context.Context, plain []byte, yield func(MapExtent, error) bool) error {
	sizes, err := s.commit.diskSizes()
	if err != nil {
		return err
	}
	raw, err := openMapStream(plain)
	if err != nil {
		return err
	}
	defer raw.close()
	d := mapDecoder{newMapState(len(s.commit.Segments), sizes)}
	var sum Counts
	for i := range s.footer.extents {
		if len(raw.b) < maxMapEntry {
			if err := raw.fill(); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		e := d.next(&raw.cursor)
		if raw.err != nil {
			return fmt.Errorf("extent %d: %w", i, raw.err)
		}
		if e.Zero {
			sum.ZeroBytes += e.Len
		} else {
			sum.DataBytes += e.Len
		}
		if !yield(e, nil) {
			return errStopped
		}
	}
	if err := raw.fill(); err != nil {
		return err
	}
	switch {
	case len(raw.b) != 0 || raw.left != 0:
		return fmt.Errorf("%d bytes follow the last extent", int64(len(raw.b))+raw.left)
	case sum.DataBytes != s.footer.dataBytes || sum.ZeroBytes != s.footer.zeroBytes:
		return fmt.Errorf("its extents have %d bytes of data and %d of zeros, the footer says %d and %d", sum.DataBytes, sum.ZeroBytes, s.footer.dataBytes, s.footer.zeroBytes)
	}
	return nil
}

// mapStream decompresses a raw map piece by piece. The cursor is at what was not used yet.
type mapStream struct {
	cursor
	src  io.Reader
	buf  []byte
	left int64 // raw bytes not yet in buf
	zstd *zstd.Decoder
}

// openMapStream parses the plaintext of a map section. Unlike other sections
// it is never in memory as a whole, so that its length needs no relation to what is stored.
func openMapStream(plain []byte) (*mapStream, error) {
	if len(plain) < sectionFixed {
		return nil, fmt.Errorf("%d bytes are too few", len(plain))
	}
	m := &mapStream{left: int64(le.Uint32(plain)), buf: make([]byte, 0, mapChunk)}
	packed := plain[sectionFixed:]
	if m.left > sectionMax || int64(le.Uint32(plain[5:])) != int64(len(packed)) {
		return nil, fmt.Errorf("it claims %d raw and %d packed bytes, and has %d", m.left, le.Uint32(plain[5:]), len(packed))
	}
	switch codec := Codec(plain[4]); codec {
	case CodecNone:
		m.src = bytes.NewReader(packed)
	case CodecZstd:
		var err error
		m.zstd, err = zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(mapWindow), zstd.WithDecoderMaxMemory(sectionMax))
		if err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
		m.src = m.zstd
	default:
		return nil, fmt.Errorf("a map is not packed with %s", codec)
	}
	return m, nil
}

// fill reads on until the buffer is full or the map ends. At the end it makes
// sure that nothing follows.
func (m *mapStream) fill() error {
	m.buf = append(m.buf[:0], m.b...)
	n := int(min(int64(cap(m.buf)-len(m.buf)), m.left))
	if n > 0 {
		at := len(m.buf)
		m.buf = m.buf[:at+n]
		if _, err := io.ReadFull(m.src, m.buf[at:]); err != nil {
			return fmt.Errorf("decompress: %w", err)
		}
		m.left -= int64(n)
		if m.left == 0 {
			var one [1]byte
			if k, err := m.src.Read(one[:]); k != 0 || err != io.EOF {
				return fmt.Errorf("decompress: more follows than the %d bytes that there should be, or less: %v", n, err)
			}
		}
	}
	m.b = m.buf
	return nil
}

func (m *mapStream) close() {
	if m.zstd != nil {
		m.zstd.Close()
	}
}

// CheckExtent says whether the segment holds the range of e, and where e says
// that it does: an error means that the run that e came from is damaged or that
// this is not the segment that it means.
func (s *Segment) CheckExtent(e MapExtent) error {
	const op = "cut.CheckExtent"
	i := searchExtent(s.extents, e.Disk, e.Off)
	if i >= 0 {
		x := s.extents[i]
		if !x.Zero && !e.Zero && e.End() <= x.End() && e.Frame == x.Frame && int64(e.FrameOff) == int64(x.FrameOff)+e.Off-x.Off {
			return nil
		}
	}
	return corrupt(op, s.object, "index", s.footer.tail, "range %d+%d of disk %d is not at %d of frame %d", e.Off, e.Len, e.Disk, e.FrameOff, e.Frame)
}
