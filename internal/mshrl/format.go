// Package mshrl reads and writes Hyper-V Replica log files (.hrl), as published
// in [MS-HRL] v6.0: the sequence of writes that a virtual disk received between two instants.
//
// The format, all numbers little-endian, structures packed ([MS-HRL] 2.1–2.4):
//
//	0      header, 4096 bytes
//	4096   { data of up to n entries, then the metadata block that describes them } …
//	EOL    the end: the last metadata block ends here
//
//	header ([MS-HRL] 2.2)                    metadata block ([MS-HRL] 2.3, 2.4)
//	  0  8  cookie "msctlog" NUL                0  8  distance back to the previous block, 0 = first
//	  8  4  version 0x00020000                  8  4  count of valid entries
//	 12  4  creation time                      12  4  checksum of these 32 bytes
//	 16  4  creator application "ct"           16 16  0
//	 20  4  creator version                    32     entries of 32 bytes, 127 in a block of 4096:
//	 24  8  original size                       +0  8  byte offset on the disk
//	 32  8  current size                        +8  4  checksum of the entry
//	 40  4  checksum of the header             +12  4  length of the data
//	 44  8  EOL, 0 = not closed                +16  4  time
//	 52  4  error code                         +20  1  operation, 1 = write
//	 56  4  size of a metadata block           +21  4  checksum of the data
//	 60 16  unique id                          +25  1  location, 0
//	 76 16  unique id of the previous log      +26  6  0
//	 92  4  time of the last change
//	 96  8  count of all entries
//	104  4  file type 0
//	108  2  flags 0
//	110 16  DataWriteGuid of the VHDX
//	126     0
//
// Times are seconds since 2000-01-01 00:00 UTC. A checksum is the one's complement
// of the sum of all bytes but its own ([MS-HRL] 2.6).
//
// Where the published example ([MS-HRL] 3) says more than the text, the example
// counts: a log begins with an empty metadata block; data follows data without
// padding, so lengths that do not add up are damage; the checksums of its entries
// hold with 0 as checksum of the data, so 0 means "not recorded"; the
// printed checksum of its file header does not hold for the printed fields, so a
// wrong one is reported (Header.ChecksumOK) and not refused. The example lists a
// block's entries newest first, the text reads as if the oldest stood first. The
// latter is taken; as the other way round every write would get another one's
// data, a block whose times go backwards is refused. No file of a real host has been read yet.
//
// It promises: a log that was not closed is ErrOpen and never half a log; a log whose
// structure does not add up to the last byte is ErrCorrupt; reading never writes;
// memory stays bounded however long the log is, except for the result of Changed, which has a limit.
package mshrl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// The reasons for which a log cannot be used. Every one of them but a failed
// read or write calls for a resynchronization of the disk.
var (
	ErrNotLog    = errors.New("not a Hyper-V Replica log")
	ErrVersion   = errors.New("log format version is not supported")
	ErrOpen      = errors.New("log was not closed cleanly")
	ErrCorrupt   = errors.New("log is damaged")
	ErrFailed    = errors.New("log records an error of its writer")
	ErrChain     = errors.New("logs do not follow each other")
	ErrOffline   = errors.New("disk may have been changed while its changes were not tracked")
	ErrTooRagged = errors.New("log has too many separate ranges")
)

const (
	headerSize      = 4096
	blockHeaderSize = 32
	entrySize       = 32
	version2        = 0x00020000
	opWrite         = 1

	// DefaultMetadataSize is the size of metadata blocks that Hyper-V writes, in bytes.
	DefaultMetadataSize = 4096
	maxMetadataSize     = 1 << 20 // of a file that is read; the format has no limit
)

var cookie = [8]byte{'m', 's', 'c', 't', 'l', 'o', 'g'}

// epoch is the beginning of the format's time.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// seconds converts a time to the format's, cut to what it can hold (2000 to 2136).
func seconds(t time.Time) uint32 {
	s := t.Unix() - epoch.Unix()
	return uint32(min(max(s, 0), math.MaxUint32))
}

func fromSeconds(s uint32) time.Time { return epoch.Add(time.Duration(s) * time.Second) }

// GUID is a GUID as its 16 bytes on disk: the first three groups little-endian.
type GUID [16]byte

// String renders it as 01234567-89ab-cdef-0123-456789abcdef.
func (g GUID) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[0:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// Header is a log's header.
type Header struct {
	UniqueID   GUID // of this log
	PreviousID GUID // of the log before it; zero = the first
	// DataWriteGUID is the VHDX's DataWriteGuid when the log was written: while a
	// disk has another one, it was written to with tracking off.
	DataWriteGUID GUID

	Created      time.Time // full seconds; 2000 to 2136
	LastModified time.Time // likewise
	Creator      string    // at most 4 bytes; Hyper-V writes "ct"
	CreatorVer   uint32
	MetadataSize uint32 // bytes of a metadata block: a multiple of 512; 0 = DefaultMetadataSize for Create

	// What follows is filled by reading and ignored by Create.

	OriginalSize, CurrentSize uint64 // bytes of the file
	EOL                       int64  // offset behind the last metadata block; 0 = not closed
	Entries                   uint64 // count of all entries
	ErrorCode                 int32  // of the log's writer; 0 = none
	// ChecksumOK tells whether the header's checksum holds. See the package comment.
	ChecksumOK bool
}

// checksum of a buffer but for the 4 bytes at skip; skip < 0 skips none.
func checksum(p []byte, skip int) uint32 {
	s := sum(p)
	if skip >= 0 {
		s -= sum(p[skip : skip+4])
	}
	return ^s
}

func sum(p []byte) uint32 {
	var s uint32
	for _, b := range p {
		s += uint32(b)
	}
	return s
}

// encode renders the header with its checksum.
func (h Header) encode() []byte {
	p := make([]byte, headerSize)
	le := binary.LittleEndian
	copy(p, cookie[:])
	le.PutUint32(p[8:], version2)
	le.PutUint32(p[12:], seconds(h.Created))
	copy(p[16:20], h.Creator)
	le.PutUint32(p[20:], h.CreatorVer)
	le.PutUint64(p[24:], h.OriginalSize)
	le.PutUint64(p[32:], h.CurrentSize)
	le.PutUint64(p[44:], uint64(h.EOL))
	le.PutUint32(p[52:], uint32(h.ErrorCode))
	le.PutUint32(p[56:], h.MetadataSize)
	copy(p[60:], h.UniqueID[:])
	copy(p[76:], h.PreviousID[:])
	le.PutUint32(p[92:], seconds(h.LastModified))
	le.PutUint64(p[96:], h.Entries)
	copy(p[110:], h.DataWriteGUID[:])
	le.PutUint32(p[40:], checksum(p, 40))
	return p
}

// decodeHeader reads a header and checks it as far as it can be without the file.
func decodeHeader(p []byte) (Header, error) {
	var h Header
	le := binary.LittleEndian
	if [8]byte(p[:8]) != cookie {
		return h, fmt.Errorf("%w: it begins with %q", ErrNotLog, p[:8])
	}
	if v := le.Uint32(p[8:]); v != version2 {
		return h, fmt.Errorf("%w: %d.%d", ErrVersion, v>>16, v&0xffff)
	}
	h.Created = fromSeconds(le.Uint32(p[12:]))
	n := 0
	for n < 4 && p[16+n] != 0 {
		n++
	}
	h.Creator = string(p[16 : 16+n])
	h.CreatorVer = le.Uint32(p[20:])
	h.OriginalSize = le.Uint64(p[24:])
	h.CurrentSize = le.Uint64(p[32:])
	h.ChecksumOK = le.Uint32(p[40:]) == checksum(p, 40)
	eol := le.Uint64(p[44:])
	h.ErrorCode = int32(le.Uint32(p[52:]))
	h.MetadataSize = le.Uint32(p[56:])
	h.UniqueID = GUID(p[60:76])
	h.PreviousID = GUID(p[76:92])
	h.LastModified = fromSeconds(le.Uint32(p[92:]))
	h.Entries = le.Uint64(p[96:])
	h.DataWriteGUID = GUID(p[110:126])
	if t := le.Uint32(p[104:]); t != 0 {
		return h, fmt.Errorf("%w: file type %d is no .hrl", ErrNotLog, t)
	}
	if eol > math.MaxInt64 {
		return h, fmt.Errorf("%w: its end is at %d", ErrCorrupt, eol)
	}
	h.EOL = int64(eol)
	return h, checkMetadataSize(h.MetadataSize)
}

// checkMetadataSize refuses sizes of metadata blocks that hold no entry or that no buffer is made for.
func checkMetadataSize(n uint32) error {
	if n < 512 || n > maxMetadataSize || n%512 != 0 {
		return fmt.Errorf("%w: its metadata blocks have %d bytes", ErrCorrupt, n)
	}
	return nil
}

// blockHeader is the head of a metadata block.
type blockHeader struct {
	back  int64  // distance to the previous block, 0 = none
	valid uint32 // entries
}

func (b blockHeader) encode(p []byte) {
	le := binary.LittleEndian
	clear(p[:blockHeaderSize])
	le.PutUint64(p, uint64(b.back))
	le.PutUint32(p[8:], b.valid)
	le.PutUint32(p[12:], checksum(p[:blockHeaderSize], 12))
}

// decodeBlockHeader reads and checks the head of the block at loc.
func decodeBlockHeader(p []byte, loc int64, metadataSize uint32) (blockHeader, error) {
	le := binary.LittleEndian
	if got, want := le.Uint32(p[12:]), checksum(p[:blockHeaderSize], 12); got != want {
		return blockHeader{}, fmt.Errorf("%w: metadata block at %d has checksum %#x, not %#x", ErrCorrupt, loc, want, got)
	}
	back := le.Uint64(p)
	b := blockHeader{back: int64(back), valid: le.Uint32(p[8:])}
	if b.valid > (metadataSize-blockHeaderSize)/entrySize {
		return b, fmt.Errorf("%w: metadata block at %d claims %d entries", ErrCorrupt, loc, b.valid)
	}
	// The previous block ends where this one's data begins, behind the header: so the walk backwards ends.
	if back != 0 && (back > uint64(loc) || b.back < int64(metadataSize) || loc-b.back < headerSize) {
		return b, fmt.Errorf("%w: metadata block at %d has its previous one %d bytes before it", ErrCorrupt, loc, back)
	}
	return b, nil
}

// Entry is one write.
type Entry struct {
	Off, Len int64     // bytes on the disk
	Time     time.Time // full seconds
	Location int64     // where its data begins in the log file

	sum    uint32 // of the data
	hasSum bool
}

func (e Entry) encode(p []byte) {
	le := binary.LittleEndian
	clear(p[:entrySize])
	le.PutUint64(p, uint64(e.Off))
	le.PutUint32(p[12:], uint32(e.Len))
	le.PutUint32(p[16:], seconds(e.Time))
	p[20] = opWrite
	le.PutUint32(p[21:], e.sum)
	le.PutUint32(p[8:], checksum(p[:entrySize], 8))
}

// decodeEntry reads an entry. Its checksum may or may not cover the data's checksum:
// the text of [MS-HRL] 2.4 says it does, the example leaves it open.
func decodeEntry(p []byte) (Entry, error) {
	le := binary.LittleEndian
	p = p[:entrySize]
	got := le.Uint32(p[8:])
	if got != checksum(p, 8) && got != checksum(p, 8)+sum(p[21:25]) {
		return Entry{}, fmt.Errorf("%w: an entry has checksum %#x, not %#x", ErrCorrupt, checksum(p, 8), got)
	}
	if p[20] != opWrite {
		return Entry{}, fmt.Errorf("%w: an entry has operation %d", ErrCorrupt, p[20])
	}
	e := Entry{Len: int64(le.Uint32(p[12:])), Time: fromSeconds(le.Uint32(p[16:])), sum: le.Uint32(p[21:])}
	off := le.Uint64(p)
	if off > uint64(math.MaxInt64-e.Len) {
		return Entry{}, fmt.Errorf("%w: an entry writes at %d", ErrCorrupt, off)
	}
	e.Off, e.hasSum = int64(off), e.sum != 0
	return e, nil
}
