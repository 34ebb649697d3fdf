package mshrl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Log is a closed log, open for reading. Methods are safe for concurrent use.
type Log struct {
	name   string
	r      io.ReaderAt
	close  func() error
	h      Header
	blocks int64 // count of metadata blocks
	// marks are the offsets of every stride-th metadata block, counted from the
	// last one, which comes first: with all of them, a long log would need much memory.
	marks  []int64
	stride int64
}

// maxMarks bounds marks. Even.
const maxMarks = 1 << 16

// Open opens a log file and walks through all its metadata. A log that was not closed
// is ErrOpen. Close the log after use.
func Open(path string) (*Log, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("mshrl: %w", err)
	}
	st, err := f.Stat()
	if err == nil {
		var l *Log
		if l, err = open(f, st.Size(), path, maxMarks); err == nil {
			l.close = f.Close
			return l, nil
		}
	}
	return nil, errors.Join(err, f.Close())
}

// OpenReader is Open for what is not a file; size is in bytes. The reader stays the caller's.
func OpenReader(r io.ReaderAt, size int64) (*Log, error) { return open(r, size, "log", maxMarks) }

// ReadHeader reads the header of a log, which need not be closed.
func ReadHeader(r io.ReaderAt, size int64) (Header, error) { return readHeader(r, size, "log") }

func readHeader(r io.ReaderAt, size int64, name string) (Header, error) {
	p := make([]byte, headerSize)
	if size < headerSize {
		return Header{}, fmt.Errorf("mshrl: %s: %w: it has %d bytes", name, ErrNotLog, size)
	}
	if err := readFull(r, p, 0); err != nil {
		return Header{}, fmt.Errorf("mshrl: %s: read header: %w", name, err)
	}
	h, err := decodeHeader(p)
	if err != nil {
		return h, fmt.Errorf("mshrl: %s: %w", name, err)
	}
	return h, nil
}

// readFull reads all of p; a reader may say EOF together with the last byte.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// open reads the header and walks from the last metadata block to the first ([MS-HRL] 2.5).
func open(r io.ReaderAt, size int64, name string, limit int) (*Log, error) {
	h, err := readHeader(r, size, name)
	if err != nil {
		return nil, err
	}
	l := &Log{name: name, r: r, h: h, stride: 1}
	switch {
	case h.EOL == 0:
		return nil, l.fail(fmt.Errorf("%w (error code %d)", ErrOpen, h.ErrorCode))
	case h.ErrorCode != 0:
		return nil, l.fail(fmt.Errorf("%w: code %#x", ErrFailed, uint32(h.ErrorCode)))
	case h.EOL > size:
		return nil, l.fail(fmt.Errorf("%w: it ends at %d, the file at %d", ErrCorrupt, h.EOL, size))
	case h.EOL < headerSize || h.EOL > headerSize && h.EOL < headerSize+int64(h.MetadataSize):
		return nil, l.fail(fmt.Errorf("%w: it ends at %d", ErrCorrupt, h.EOL))
	}
	var entries uint64
	if h.EOL > headerSize {
		for loc := h.EOL - int64(h.MetadataSize); ; {
			b, err := l.block(loc)
			if err != nil {
				return nil, l.fail(err)
			}
			entries += uint64(b.valid)
			l.mark(loc, limit)
			if b.back == 0 {
				break
			}
			loc -= b.back
		}
	}
	if entries != h.Entries {
		return nil, l.fail(fmt.Errorf("%w: it has %d entries, its header says %d", ErrCorrupt, entries, h.Entries))
	}
	return l, nil
}

// mark notes the next block of the walk. When there are too many marks, every second goes.
func (l *Log) mark(loc int64, limit int) {
	if l.blocks%l.stride == 0 {
		if len(l.marks) == limit {
			for i := 0; i < limit/2; i++ {
				l.marks[i] = l.marks[2*i]
			}
			l.marks = l.marks[:limit/2]
			l.stride *= 2
		}
		if l.blocks%l.stride == 0 {
			l.marks = append(l.marks, loc)
		}
	}
	l.blocks++
}

// block reads the head of the metadata block at loc.
func (l *Log) block(loc int64) (blockHeader, error) {
	var p [blockHeaderSize]byte
	if err := readFull(l.r, p[:], loc); err != nil {
		return blockHeader{}, fmt.Errorf("read metadata block at %d: %w", loc, err)
	}
	return decodeBlockHeader(p[:], loc, l.h.MetadataSize)
}

func (l *Log) fail(err error) error { return fmt.Errorf("mshrl: %s: %w", l.name, err) }

// Header returns the log's header.
func (l *Log) Header() Header { return l.h }

// Size returns the bytes that the log takes, up to its end.
func (l *Log) Size() int64 { return l.h.EOL }

// Close closes the file. Idempotent.
func (l *Log) Close() error {
	if l.close == nil {
		return nil
	}
	err := l.close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Entries calls fn for every write, the oldest first, and ends with the first
// error, its own or fn's. Writes overlap: the later one counts.
func (l *Log) Entries(fn func(Entry) error) error {
	data := int64(headerSize) // where the next block's data begins
	buf := make([]byte, l.h.MetadataSize)
	for i := len(l.marks) - 1; i >= 0; i-- {
		// The blocks from this mark back to the next older one, which was already done.
		locs := []int64{l.marks[i]}
		last := l.blocks
		if i+1 < len(l.marks) {
			last = int64(i+1) * l.stride
		}
		for n := int64(i)*l.stride + 1; n < last; n++ {
			loc := locs[len(locs)-1]
			b, err := l.block(loc)
			if err != nil {
				return l.fail(err)
			}
			if b.back == 0 {
				return l.fail(fmt.Errorf("%w: it changed while it was read", ErrCorrupt))
			}
			locs = append(locs, loc-b.back)
		}
		for _, loc := range slices.Backward(locs) {
			var err error
			if data, err = l.replayBlock(loc, data, buf, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// replayBlock calls fn for the entries of one block, whose data begins at data, and returns where the block ends.
func (l *Log) replayBlock(loc, data int64, buf []byte, fn func(Entry) error) (int64, error) {
	if err := readFull(l.r, buf, loc); err != nil {
		return 0, l.fail(fmt.Errorf("read metadata block at %d: %w", loc, err))
	}
	b, err := decodeBlockHeader(buf, loc, l.h.MetadataSize)
	if err != nil {
		return 0, l.fail(err)
	}
	// All lengths must add up before the first entry is handed out: a wrong one
	// would make all data behind it somebody else's.
	list := make([]Entry, b.valid)
	for i := range list {
		e, err := decodeEntry(buf[blockHeaderSize+i*entrySize:])
		if err != nil {
			return 0, l.fail(fmt.Errorf("entry %d of the metadata block at %d: %w", i, loc, err))
		}
		if i > 0 && e.Time.Before(list[i-1].Time) {
			return 0, l.fail(fmt.Errorf("%w: entry %d of the metadata block at %d is older than the one before it", ErrCorrupt, i, loc))
		}
		e.Location = data
		data += e.Len
		list[i] = e
	}
	if data != loc {
		return 0, l.fail(fmt.Errorf("%w: the data before the metadata block at %d ends at %d", ErrCorrupt, loc, data))
	}
	for _, e := range list {
		if e.Len == 0 {
			continue
		}
		if err := fn(e); err != nil {
			return 0, err
		}
	}
	return loc + int64(l.h.MetadataSize), nil
}

// ReadData reads len(p) bytes of an entry's data, beginning skip bytes into it.
// The checksum, if the log records one, is checked when all of the data is read at once; see Verify.
func (l *Log) ReadData(e Entry, p []byte, skip int64) error {
	if skip < 0 || int64(len(p)) > e.Len-skip {
		return l.fail(fmt.Errorf("read %d bytes at %d of an entry of %d bytes", len(p), skip, e.Len))
	}
	if err := readFull(l.r, p, e.Location+skip); err != nil {
		return l.fail(fmt.Errorf("read data at %d: %w", e.Location+skip, err))
	}
	if e.hasSum && int64(len(p)) == e.Len {
		return l.checkSum(e, sum(p))
	}
	return nil
}

func (l *Log) checkSum(e Entry, s uint32) error {
	if ^s != e.sum {
		return l.fail(fmt.Errorf("%w: data at %d has checksum %#x, not %#x", ErrCorrupt, e.Location, ^s, e.sum))
	}
	return nil
}

// Verify checks the data of an entry against its checksum, if the log records one.
func (l *Log) Verify(e Entry) error {
	if !e.hasSum {
		return nil
	}
	var s uint32
	buf := make([]byte, min(e.Len, copyBuffer))
	for skip := int64(0); skip < e.Len; skip += copyBuffer {
		part := buf[:min(copyBuffer, e.Len-skip)]
		if err := readFull(l.r, part, e.Location+skip); err != nil {
			return l.fail(fmt.Errorf("read data at %d: %w", e.Location+skip, err))
		}
		s += sum(part)
	}
	return l.checkSum(e, s)
}

const copyBuffer = 1 << 20

// Replay writes all data to w in order, each entry after its checksum was checked. size is the
// disk's size in bytes: an entry behind its end is ErrCorrupt. After an error w holds the writes before it.
func (l *Log) Replay(w io.WriterAt, size int64) error {
	buf := make([]byte, copyBuffer)
	return l.Entries(func(e Entry) error {
		if e.Off+e.Len > size {
			return l.fail(fmt.Errorf("%w: it writes %d bytes at %d of a disk of %d bytes", ErrCorrupt, e.Len, e.Off, size))
		}
		if e.Len > copyBuffer {
			if err := l.Verify(e); err != nil {
				return err
			}
		}
		for skip := int64(0); skip < e.Len; skip += copyBuffer {
			part := buf[:min(copyBuffer, e.Len-skip)]
			if err := l.ReadData(e, part, skip); err != nil {
				return err
			}
			if _, err := w.WriteAt(part, e.Off+skip); err != nil {
				return l.fail(fmt.Errorf("replay at %d: %w", e.Off+skip, err))
			}
		}
		return nil
	})
}

// CheckDisk compares the DataWriteGuid that the log recorded with the disk's
// present one. Another one, or none recorded, is ErrOffline: the log does not
// tell all that changed ([MS-HRL] 2.2).
func (l *Log) CheckDisk(dataWrite GUID) error {
	switch l.h.DataWriteGUID {
	case GUID{}:
		return l.fail(fmt.Errorf("%w: the log records no DataWriteGuid", ErrOffline))
	case dataWrite:
		return nil
	}
	return l.fail(fmt.Errorf("%w: the log was written for DataWriteGuid %s, the disk has %s", ErrOffline, l.h.DataWriteGUID, dataWrite))
}

// Chain checks that logs, the oldest first, follow each other without a gap.
func Chain(logs ...*Log) error {
	seen := map[GUID]string{}
	for i, l := range logs {
		if other, ok := seen[l.h.UniqueID]; ok {
			return fmt.Errorf("mshrl: %w: %s and %s have the same id %s", ErrChain, other, l.name, l.h.UniqueID)
		}
		seen[l.h.UniqueID] = l.name
		if i > 0 && l.h.PreviousID != logs[i-1].h.UniqueID {
			return fmt.Errorf("mshrl: %w: %s follows %s, not %s (%s)", ErrChain, l.name, l.h.PreviousID, logs[i-1].h.UniqueID, logs[i-1].name)
		}
	}
	return nil
}

// ResyncPercent is the share of a disk that its logs may take before copying the
// disk is the better way: Azure Site Recovery resynchronizes a VM whose logs reach it.
const ResyncPercent = 50

// ResyncDue reports whether logs of logBytes in all call for resynchronizing a disk of diskBytes.
func ResyncDue(logBytes, diskBytes int64) bool {
	return logBytes >= diskBytes/100*ResyncPercent+diskBytes%100*ResyncPercent/100
}

// ResyncDue reports it for this log alone.
func (l *Log) ResyncDue(diskBytes int64) bool { return ResyncDue(l.h.EOL, diskBytes) }
