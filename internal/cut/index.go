package cut

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// The index is a stream of bytes and unsigned varints:
//
//	frames:  count, then per frame: codec u8, frame size - raw length, stored length
//	extents: count, then per extent in order of disk and offset: flags u8,
//	         [disk], units from the end of the extent before (from 0 on another disk),
//	         length (units, or bytes), [frame, units into the frame]
//
// A data extent without an explicit place follows the data extent before it:
// at the next unit of its frame's plaintext or, where that ends, at the start of the next frame.
const (
	extZero    = 1 << 0 // no data
	extPlaced  = 1 << 1 // the place in the frames is explicit
	extBytes   = 1 << 2 // the length is in bytes: the end of a disk
	extDisk    = 1 << 3 // another disk than the extent before (the first: than disk 0)
	extKnown   = extZero | extPlaced | extBytes | extDisk
	minExtent  = 3 // bytes
	minFrame   = 3 // bytes
	prealloced = 1 << 12
)

func roundUp(n int64) int64 { return (n + Unit - 1) &^ (Unit - 1) }

func compareExtents(a, b Extent) int {
	return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Off, b.Off))
}

// sortExtents sorts extents for the index. Overlaps are an error, because readers could not know which content is meant.
func sortExtents(ext []Extent) error {
	if !slices.IsSortedFunc(ext, compareExtents) {
		slices.SortFunc(ext, compareExtents)
	}
	for i := 1; i < len(ext); i++ {
		if a, b := ext[i-1], ext[i]; a.Disk == b.Disk && roundUp(a.End()) > b.Off {
			return fmt.Errorf("disk %d: the ranges %d+%d and %d+%d overlap", a.Disk, a.Off, a.Len, b.Off, b.Len)
		}
	}
	return nil
}

// place is where an extent without explicit place is.
type place struct {
	frame uint32
	off   int64
}

// after returns the place behind an extent in a frame of rawLen bytes.
func after(e Extent, rawLen uint32) place {
	if off := roundUp(int64(e.FrameOff) + e.Len); off < int64(rawLen) {
		return place{e.Frame, off}
	}
	return place{e.Frame + 1, 0}
}

// encodeIndex writes frames and sorted extents.
func encodeIndex(frames []Frame, ext []Extent, frameSize uint32) []byte {
	b := make([]byte, 0, 16+len(frames)*6+len(ext)*6)
	b = binary.AppendUvarint(b, uint64(len(frames)))
	for _, f := range frames {
		b = append(b, byte(f.Codec))
		b = binary.AppendUvarint(b, uint64(frameSize-f.RawLen))
		b = binary.AppendUvarint(b, uint64(f.CLen))
	}
	b = binary.AppendUvarint(b, uint64(len(ext)))
	var disk uint16
	var end int64
	var next place
	for _, e := range ext {
		var flags byte
		if e.Disk != disk {
			flags |= extDisk
		}
		if e.Len%Unit != 0 {
			flags |= extBytes
		}
		if e.Zero {
			flags |= extZero
		} else if next != (place{e.Frame, int64(e.FrameOff)}) {
			flags |= extPlaced
		}
		b = append(b, flags)
		if flags&extDisk != 0 {
			b = binary.AppendUvarint(b, uint64(e.Disk))
			disk, end = e.Disk, 0
		}
		b = binary.AppendUvarint(b, uint64(e.Off-end)/Unit)
		if flags&extBytes != 0 {
			b = binary.AppendUvarint(b, uint64(e.Len))
		} else {
			b = binary.AppendUvarint(b, uint64(e.Len)/Unit)
		}
		if flags&extPlaced != 0 {
			b = binary.AppendUvarint(b, uint64(e.Frame))
			b = binary.AppendUvarint(b, uint64(e.FrameOff)/Unit)
		}
		end = roundUp(e.End())
		if !e.Zero {
			next = after(e, frames[e.Frame].RawLen)
		}
	}
	return b
}

// cursor reads an index. The first failure sticks.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(format string, args ...any) uint64 {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
		c.b = nil
	}
	return 0
}

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		return byte(c.fail("it ends early"))
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

// uint reads a varint of at most limit.
func (c *cursor) uint(what string, limit uint64) uint64 {
	v, n := binary.Uvarint(c.b)
	switch {
	case n <= 0:
		return c.fail("it ends early or has a bad number at its %s", what)
	case v > limit:
		return c.fail("%s %d is above %d", what, v, limit)
	}
	c.b = c.b[n:]
	return v
}

// int reads a signed varint of at most limit on both sides.
func (c *cursor) int(what string, limit int64) int64 {
	v, n := binary.Varint(c.b)
	switch {
	case n <= 0:
		return int64(c.fail("it ends early or has a bad number at its %s", what))
	case v > limit || v < -limit:
		return int64(c.fail("%s %d is outside %d..%d", what, v, -limit, limit))
	}
	c.b = c.b[n:]
	return v
}

// searchExtent returns the index of the extent of sorted ones that off lies in or behind, -1 if there is none on the disk.
func searchExtent(ext []Extent, disk uint16, off int64) int {
	i, found := slices.BinarySearchFunc(ext, Extent{Disk: disk, Off: off}, compareExtents)
	if !found {
		i--
	}
	if i < 0 || ext[i].Disk != disk {
		return -1
	}
	return i
}

// decodeIndex parses an index and checks everything that a reader relies on:
// frames fill the space between header and tail exactly, extents are sorted,
// do not overlap, lie inside their frames, and every frame has its first extent.
func decodeIndex(raw []byte, f footer, frameLog2 int) ([]Frame, []Extent, error) {
	c := &cursor{b: raw}
	frames := decodeFrames(c, f, frameLog2)
	if c.err != nil {
		return nil, nil, c.err
	}
	count := c.uint("number of extents", MaxExtents)
	if c.err == nil && (count != uint64(f.extents) || count*minExtent > uint64(len(c.b))) {
		c.fail("%d extents do not match the footer's %d or the %d bytes of the index", count, f.extents, len(c.b))
	}
	if c.err != nil {
		return nil, nil, c.err
	}
	ext := make([]Extent, 0, count)
	d := extentDecoder{frames: frames}
	for range count {
		e := d.next(c)
		if c.err != nil {
			return nil, nil, fmt.Errorf("extent %d: %w", len(ext), c.err)
		}
		ext = append(ext, e)
	}
	if len(c.b) != 0 {
		return nil, nil, fmt.Errorf("%d bytes follow the last extent", len(c.b))
	}
	for i := range frames {
		if frames[i].lba < 0 {
			return nil, nil, fmt.Errorf("frame %d has no first extent", i)
		}
	}
	return frames, ext, nil
}

func decodeFrames(c *cursor, f footer, frameLog2 int) []Frame {
	count := c.uint("number of frames", MaxFrames)
	if c.err != nil || count != uint64(f.frames) || count*minFrame > uint64(len(c.b)) {
		c.fail("%d frames do not match the footer's %d or the %d bytes of the index", count, f.frames, len(c.b))
		return nil
	}
	frames := make([]Frame, 0, count)
	off, size := int64(headerSize), uint64(1)<<frameLog2
	for i := range count {
		codec := Codec(c.byte())
		raw := size - c.uint("raw length", size-1)
		clen := c.uint("stored length", raw+sealOverhead)
		if c.err == nil && (codec < CodecNone || codec > CodecMinLZ || clen <= sealOverhead || (codec == CodecNone) != (clen == raw+sealOverhead)) {
			c.fail("%s of %d bytes in %d is not possible", codec, raw, clen)
		}
		if c.err != nil {
			c.err = fmt.Errorf("frame %d: %w", i, c.err)
			return nil
		}
		frames = append(frames, Frame{Off: off, CLen: uint32(clen), RawLen: uint32(raw), Codec: codec, lba: -1})
		off += int64(clen)
	}
	if off != f.tail {
		c.fail("the frames end at offset %d, the tail begins at %d", off, f.tail)
	}
	return frames
}

type extentDecoder struct {
	frames []Frame
	disk   uint16
	end    int64
	at     place
}

func (d *extentDecoder) next(c *cursor) (e Extent) {
	flags := c.byte()
	if c.err == nil && (flags&^byte(extKnown) != 0 || flags&extZero != 0 && flags&extPlaced != 0) {
		c.fail("flags %#x are not possible", flags)
	}
	if flags&extDisk != 0 {
		disk := uint16(c.uint("disk", 0xffff))
		if c.err == nil && disk <= d.disk {
			c.fail("disk %d follows disk %d", disk, d.disk)
		}
		d.disk, d.end = disk, 0
	}
	e = Extent{Disk: d.disk, Zero: flags&extZero != 0}
	e.Off = d.end + int64(c.uint("distance", uint64(MaxDisk)/Unit))*Unit
	if flags&extBytes != 0 {
		e.Len = int64(c.uint("length", uint64(MaxDisk)))
		if c.err == nil && e.Len%Unit == 0 {
			c.fail("length %d needs no bytes", e.Len)
		}
	} else {
		e.Len = int64(c.uint("length", uint64(MaxDisk)/Unit)) * Unit
	}
	if c.err == nil && (e.Len == 0 || e.End() > MaxDisk) {
		c.fail("range %d+%d is not possible", e.Off, e.Len)
	}
	d.end = roundUp(e.End())
	if e.Zero || c.err != nil {
		return e
	}
	if flags&extPlaced != 0 {
		d.at = place{uint32(c.uint("frame", MaxFrames)), int64(c.uint("frame offset", Block/Unit)) * Unit}
	}
	if c.err != nil {
		return e
	}
	if int64(d.at.frame) >= int64(len(d.frames)) || d.at.off+e.Len > int64(d.frames[d.at.frame].RawLen) {
		c.fail("%d bytes at %d of frame %d are outside the frame", e.Len, d.at.off, d.at.frame)
		return e
	}
	f := &d.frames[d.at.frame]
	e.Frame, e.FrameOff = d.at.frame, uint32(d.at.off)
	if e.FrameOff == 0 {
		if f.lba >= 0 {
			c.fail("frame %d begins twice", e.Frame)
		}
		f.disk, f.lba = e.Disk, e.Off
	}
	d.at = after(e, f.RawLen)
	return e
}
