// Package fill remembers the progress of sending whole disks as tile images:
// which tiles are in the store, and which of their blocks have changed since.
//
// It promises that after a crash at any moment no tile is forgotten that Note
// was told of durably, and no change that Flush made durable. Its memory is a
// byte and a few bits for each tile, and a record for each image.
package fill

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"

	"holdfast/internal/capture/durable"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const op = "capture.fill"

// Tile is one line of tiles.log, JSON, one object a line, in version 2 of the
// format. A torn last line is ignored, and of several lines of a tile the last counts.
//
//	2026-11-22  version 2: no hash of the content (the filter has it); the changes are in bitmaps
type Tile struct {
	V      int           `json:"v"`
	Disk   uint16        `json:"disk"`
	Tile   uint32        `json:"tile"`
	Era    int           `json:"era"`            // tracking since the image was unbroken in this era
	Zero   bool          `json:"zero,omitempty"` // all zero, nothing is stored
	Data   int64         `json:"data,omitempty"` // bytes of the tile that the host called allocated
	UID    string        `json:"uid,omitempty"`
	Gen    dr.Generation `json:"gen,omitempty"`
	N      uint64        `json:"n,omitempty"`
	Size   int64         `json:"size,omitempty"`
	BLAKE3 cut.Hash      `json:"blake3,omitzero"`
}

// Ref refers to the tile's image.
func (t Tile) Ref() cut.TileRef {
	return cut.TileRef{Disk: t.Disk, Tile: t.Tile, UID: t.UID, Gen: t.Gen, N: t.N, Size: t.Size, BLAKE3: t.BLAKE3}
}

const (
	version   = 2
	blockBits = cut.Block
	pageBytes = 4096 // of a bitmap, written at a time
)

// Log is the progress of all disks that are being sent. It is for one
// goroutine at a time.
type Log struct {
	dir   string
	f     *os.File
	disks map[uint16]*disk
}

type disk struct {
	eras   []uint8          // by tile: era of its last line modulo 255 plus 1; 0 = none
	images map[uint32]Tile  // those that are not zero
	data   int64            // sum of Data
	dirty  []byte           // bit for each 64 KiB block
	pages  map[int]struct{} // of dirty, not yet durable
}

// Open reads the log in a directory, or begins one.
func Open(dir string) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, durable.Error(op, dir, err)
	}
	l := &Log{dir: dir, disks: map[uint16]*disk{}}
	path := filepath.Join(dir, "tiles.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, durable.Error(op, path, err)
	}
	l.f = f
	if err := l.read(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *Log) read() error {
	br := bufio.NewReaderSize(l.f, 64<<10)
	var end int64 // of the last whole line
	for {
		line, err := br.ReadBytes('\n')
		if err != nil {
			break // a torn line, or the end
		}
		end += int64(len(line))
		var t Tile
		if json.Unmarshal(bytes.TrimSpace(line), &t) == nil && t.V == version {
			if err := l.put(t); err != nil {
				return err
			}
		}
	}
	// What a crash left of a line must not be glued to the next one.
	if err := l.f.Truncate(end); err != nil {
		return durable.Error(op, l.f.Name(), err)
	}
	_, err := l.f.Seek(end, 0)
	return durable.Error(op, l.f.Name(), err)
}

func (l *Log) bitmap(index uint16) string {
	return filepath.Join(l.dir, "changed-"+strconv.Itoa(int(index)))
}

func (l *Log) disk(index uint16) (*disk, error) {
	if d := l.disks[index]; d != nil {
		return d, nil
	}
	d := &disk{images: map[uint32]Tile{}, pages: map[int]struct{}{}}
	raw, err := os.ReadFile(l.bitmap(index))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, dr.Errorf(dr.KindUnavailable, op, "read changes: %w", err)
	}
	d.dirty = raw
	l.disks[index] = d
	return d, nil
}

func eraByte(era int) uint8 { return uint8(era%255) + 1 }

func (l *Log) put(t Tile) error {
	d, err := l.disk(t.Disk)
	if err != nil {
		return err
	}
	if n := int(t.Tile) + 1; n > len(d.eras) {
		d.eras = append(d.eras, make([]uint8, n-len(d.eras))...)
	}
	if old, ok := d.images[t.Tile]; ok {
		d.data -= old.Data
	}
	delete(d.images, t.Tile)
	d.eras[t.Tile] = eraByte(t.Era)
	if !t.Zero {
		d.images[t.Tile] = t
		d.data += t.Data
	}
	return nil
}

// Note logs a tile. Without sync a crash may forget it, which costs looking at the tile again.
func (l *Log) Note(t Tile, sync bool) error {
	t.V = version
	line, err := json.Marshal(t)
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "encode tile: %w", err)
	}
	if _, err = l.f.Write(append(line, '\n')); err == nil && sync {
		err = l.f.Sync()
	}
	if err != nil {
		return durable.Error(op, l.f.Name(), err)
	}
	return l.put(t)
}

// State says whether a tile was noted, and whether that was in this era.
func (l *Log) State(index uint16, tile uint32, era int) (noted, current bool) {
	d := l.disks[index]
	if d == nil || int(tile) >= len(d.eras) || d.eras[tile] == 0 {
		return false, false
	}
	return true, d.eras[tile] == eraByte(era)
}

// Image returns a noted tile's image, false if it is all zero.
func (l *Log) Image(index uint16, tile uint32) (Tile, bool) {
	d := l.disks[index]
	if d == nil {
		return Tile{}, false
	}
	t, ok := d.images[tile]
	return t, ok
}

// Refs lists the images of a disk, in no order.
func (l *Log) Refs(index uint16) iter.Seq[cut.TileRef] {
	return func(yield func(cut.TileRef) bool) {
		if d := l.disks[index]; d != nil {
			for _, t := range d.images {
				if !yield(t.Ref()) {
					return
				}
			}
		}
	}
}

// Data is the sum of Tile.Data of a disk's images.
func (l *Log) Data(index uint16) int64 {
	if d := l.disks[index]; d != nil {
		return d.data
	}
	return 0
}

// Empty reports whether nothing of a disk was noted.
func (l *Log) Empty(index uint16) bool {
	d := l.disks[index]
	return d == nil || len(d.eras) == 0
}

// Change marks a range of a disk as changed since its tiles were sent.
func (l *Log) Change(index uint16, off, n int64) error {
	d, err := l.disk(index)
	if err != nil {
		return err
	}
	for b := off / blockBits; b*blockBits < off+n; b++ {
		i := int(b / 8)
		if i >= len(d.dirty) {
			d.dirty = append(d.dirty, make([]byte, i+1-len(d.dirty))...)
		}
		if bit := byte(1) << (b % 8); d.dirty[i]&bit == 0 {
			d.dirty[i] |= bit
			d.pages[i/pageBytes] = struct{}{}
		}
	}
	return nil
}

// Flush makes the changes durable. A bit too many costs a look at its block.
func (l *Log) Flush() error {
	for index, d := range l.disks {
		if len(d.pages) == 0 {
			continue
		}
		path := l.bitmap(index)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			for p := range d.pages {
				if err == nil {
					_, err = f.WriteAt(d.dirty[p*pageBytes:min((p+1)*pageBytes, len(d.dirty))], int64(p*pageBytes))
				}
			}
			err = errors.Join(err, f.Sync(), f.Close())
		}
		if err == nil {
			err = durable.SyncDir(l.dir)
		}
		if err != nil {
			return durable.Error(op, path, err)
		}
		clear(d.pages)
	}
	return nil
}

// Changes lists the changed ranges of a disk of size bytes, ascending and joined.
func (l *Log) Changes(index uint16, size int64) iter.Seq2[int64, int64] {
	return func(yield func(off, n int64) bool) {
		d := l.disks[index]
		if d == nil {
			return
		}
		var off, n int64
		for b := int64(0); b < int64(len(d.dirty))*8 && b*blockBits < size; b++ {
			if d.dirty[b/8] == 0 {
				b |= 7
				continue
			}
			if d.dirty[b/8]&(1<<(b%8)) == 0 {
				continue
			}
			if n > 0 && off+n == b*blockBits {
				n += blockBits
				continue
			}
			if n > 0 && !yield(off, n) {
				return
			}
			off, n = b*blockBits, blockBits
		}
		if n > 0 {
			yield(off, min(n, size-off))
		}
	}
}

// Close closes the log.
func (l *Log) Close() error { return l.f.Close() }

// Remove deletes what Open(dir) made.
func Remove(dir string) error { return durable.Error(op, dir, os.RemoveAll(dir)) }
