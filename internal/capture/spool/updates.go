package spool

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"

	"holdfast/internal/capture/durable"
	"holdfast/internal/capture/filter"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const (
	updatesFile  = "filter.upd"
	updateHead   = 15
	updateSums   = 0
	updateZeroes = 1
)

// Updates writes what a cut changes in the filters into its draft, as it comes.
//
// Records of filter.upd: disk u16, kind u8 (0 sums, 1 zeroes), block u64, count
// u32, then count sums u64 for kind 0. Little endian. The file lives as long as the entry.
type Updates struct {
	f *os.File
	w *bufio.Writer
}

// NewUpdates makes the file in a draft.
func NewUpdates(draft string) (*Updates, error) {
	path := filepath.Join(draft, updatesFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, durable.Error(op, path, err)
	}
	return &Updates{f: f, w: bufio.NewWriterSize(f, 64<<10)}, nil
}

func (u *Updates) head(disk uint16, kind byte, block, count int64) {
	var h [updateHead]byte
	binary.LittleEndian.PutUint16(h[0:], disk)
	h[2] = kind
	binary.LittleEndian.PutUint64(h[3:], uint64(block))
	binary.LittleEndian.PutUint32(h[11:], uint32(count))
	u.w.Write(h[:]) // bufio keeps the first error for Finish
}

// Sums notes the entries of blocks from block on.
func (u *Updates) Sums(disk uint16, block int64, sums []uint64) {
	u.head(disk, updateSums, block, int64(len(sums)))
	var b [8]byte
	for _, v := range sums {
		binary.LittleEndian.PutUint64(b[:], v)
		u.w.Write(b[:])
	}
}

// Zeroes notes count blocks of zeroes.
func (u *Updates) Zeroes(disk uint16, block, count int64) {
	for count > 0 {
		n := min(count, 1<<30)
		u.head(disk, updateZeroes, block, n)
		block, count = block+n, count-n
	}
}

// Finish makes the file durable and closes it.
func (u *Updates) Finish() error {
	return durable.Error(op, u.f.Name(), errors.Join(u.w.Flush(), u.f.Sync(), u.f.Close()))
}

// Abandon closes the file.
func (u *Updates) Abandon() { u.f.Close() }

// From is the position from which the entry brings a disk's filter to the entry.
func (e *Entry) From(disk uint16) cut.Ref {
	if m, ok := e.Marks[disk]; ok {
		return m
	}
	return e.Prev
}

// Apply brings a disk's filter from e.From(disk) to the entry.
func (e *Entry) Apply(disk uint16, t *filter.Table) error {
	if err := t.Begin(); err != nil {
		return err
	}
	if e.Updates {
		if err := e.readUpdates(disk, t); err != nil {
			return err
		}
	}
	return t.Commit(e.Ref)
}

func (e *Entry) readUpdates(disk uint16, t *filter.Table) error {
	path := filepath.Join(e.dir, updatesFile)
	f, err := os.Open(path)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "read updates: %w", err)
	}
	defer f.Close()
	br := bufio.NewReaderSize(f, 64<<10)
	blocks := (t.Size() + cut.Unit - 1) / cut.Unit
	var head [updateHead]byte
	var raw [8]byte
	patch := t.NewPatch()
	for {
		if _, err := io.ReadFull(br, head[:]); errors.Is(err, io.EOF) {
			return patch.Flush()
		} else if err != nil {
			return dr.Errorf(dr.KindCorrupt, op, "read %s: %w", path, err)
		}
		block := int64(binary.LittleEndian.Uint64(head[3:]))
		count := int64(binary.LittleEndian.Uint32(head[11:]))
		mine := binary.LittleEndian.Uint16(head[0:]) == disk
		if block < 0 || (mine && block+count > blocks) {
			return dr.Errorf(dr.KindCorrupt, op, "%s names block %d of %d", path, block+count, blocks)
		}
		if head[2] == updateZeroes {
			if mine {
				if err := errors.Join(patch.Flush(), t.StoreZero(block, count)); err != nil {
					return err
				}
				patch = t.NewPatch()
			}
			continue
		}
		for i := range count {
			if _, err := io.ReadFull(br, raw[:]); err != nil {
				return dr.Errorf(dr.KindCorrupt, op, "read %s: %w", path, err)
			}
			if mine {
				if err := patch.Set(block+i, binary.LittleEndian.Uint64(raw[:])); err != nil {
					return err
				}
			}
		}
	}
}
