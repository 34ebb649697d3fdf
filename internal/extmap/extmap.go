// Package extmap owns the map of one disk from ranges to the places where
// their content is stored: sorted, free of overlaps, and made by laying layers
// of changes over each other. It promises a memory bound that does not depend
// on the number of extents beyond a seventh of a byte for each: a disk of 4 TiB
// in 67 million extents is a temporary file of 1 GiB and 10 MiB of memory.
//
// A [Builder] takes layers from oldest to newest and makes a [Map]; a Map is
// read by any number of goroutines and never changes. Small maps have no file.
//
// # What is kept
//
// All offsets and lengths are bytes. Extents begin at multiples of [Unit] and
// end below [MaxDisk]. One that does not end at a multiple of Unit is the end of
// a disk: it hides all of its last unit, so that what an older layer had behind
// it in that unit is a gap. Ranges of zeroes have any length and are one record
// each. Extents that continue each other, in the same frame or both zero, are
// joined, so that equal content gives equal maps however it was laid.
//
// A record has 16 bytes, little-endian words:
//
//	word 0   bits 26..63 offset in units, 24..25 kind (0 data, 1 zeroes, 2 clear)
//	         data only: bits 20..23 place in the frame in units, 0..15 length-1
//	word 1   data: bits 32..63 segment, 0..31 frame; others: length in bytes
//
// "Clear" (nothing known, whatever older layers say) exists while layers are
// merged only. The format lives as long as the process and has no version.
//
// # Failures
//
// Temporary files have no name (Windows: they are deleted on close), so that a
// crash leaves none behind. Files are written, never mapped for writing: a full
// disk is an error of the Builder. Every 64 records have a checksum (26 bits of a
// CRC-32C) in memory that each read compares, and a fault of the memory map (an unreadable or lost page)
// is caught: both are [ErrDamaged], never a wrong place and never the end of the
// process. The answer to it is to build the map again.
package extmap

import (
	"errors"
	"fmt"
	"os"
)

const (
	Unit                = 4 << 10  // granularity of offsets and of places in frames
	MaxData             = 64 << 10 // bytes of a frame, and of a data extent at most
	MaxDisk       int64 = 1 << 50  // end of the last extent at most
	SegZero       int32 = -1       // Extent.Seg of a range of zeroes
	SegGap        int32 = -2       // Extent.Seg of a range that the map says nothing about; only in what Walk gives
	MinMemory           = 4 << 20  // least Config.Memory, bytes
	defaultMemory       = int64(64 << 20)
)

var (
	// ErrClosed is the error of a Map or Builder after Close.
	ErrClosed = errors.New("extent map is closed")
	// ErrInvalid is the error of arguments that break the rules: an extent that
	// can't be, extents out of order, a window outside the disk.
	ErrInvalid = errors.New("invalid argument")
	// ErrDamaged says that the temporary file does not hold what was written to
	// it. Build the map again; the file system may need attention.
	ErrDamaged = errors.New("temporary file is damaged")
)

// Extent maps the range [Off, Off+Len) of a disk to bytes [FrameOff,
// FrameOff+Len) of frame Frame of segment Seg, or to zeroes.
type Extent struct {
	Off, Len int64
	Seg      int32  // >= 0, SegZero or SegGap
	Frame    uint32 // 0 if Seg < 0
	// FrameOff is in bytes: a multiple of Unit in the map; anything in an extent
	// that Walk clipped to a window. 0 if Seg < 0.
	FrameOff uint32
}

// End returns Off+Len.
func (e Extent) End() int64 { return e.Off + e.Len }

// validate tells whether e may be part of a layer.
func (e Extent) validate() error {
	switch {
	case e.Off < 0 || e.Off%Unit != 0 || e.Len <= 0 || e.Off > MaxDisk || e.Len > MaxDisk-e.Off:
	case e.Seg == SegZero:
		return nil
	case e.Seg < 0 || e.Len > MaxData || e.FrameOff%Unit != 0 || int64(e.FrameOff) > MaxData-e.Len:
	default:
		return nil
	}
	return fmt.Errorf("extent %d+%d of segment %d, frame %d+%d: %w", e.Off, e.Len, e.Seg, e.Frame, e.FrameOff, ErrInvalid)
}

// Range is the range [Off, Off+Len) of a disk.
type Range struct {
	Off, Len int64
}

// Config says where and how maps are built.
type Config struct {
	// Dir is where temporary files are made; empty means os.TempDir(), which on
	// many systems is memory. 16 bytes per extent of the map, while it is open;
	// up to three times that while it is built.
	Dir string
	// Memory bounds, in bytes, what a Builder keeps in memory, free space of the
	// garbage collector included; 0 means 64 MiB. Not in it: 8 bytes for
	// every 64 records in files, and 80 KiB for every run of a merge (some dozens at most).
	Memory int64
	// NoMap reads the file of a finished map by system calls. A Find then takes
	// one to two microseconds instead of about 0.6, but the pages that were read
	// do not count as resident memory of this process; mapped ones do until the
	// system takes them back. On Windows files are never mapped.
	NoMap bool

	// Tests replace these.
	create func(dir string) (backing, error)
	small  int64 // records up to which a map has no file
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	if c.Memory != 0 && c.Memory < MinMemory {
		return fmt.Errorf("extent map memory of %d bytes is less than %d: %w", c.Memory, MinMemory, ErrInvalid)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Dir == "" {
		c.Dir = os.TempDir()
	}
	if c.Memory == 0 {
		c.Memory = defaultMemory
	}
	if c.small == 0 {
		c.small = smallMap
	}
	if c.create == nil {
		c.create = func(dir string) (backing, error) {
			f, err := createTemp(dir)
			if err != nil {
				return nil, err // not f: a nil *os.File is not a nil backing
			}
			return f, nil
		}
	}
	return c
}
