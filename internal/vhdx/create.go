package vhdx

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
)

const (
	defaultBlock      = 32 * mib
	defaultBlockChild = 2 * mib
	logSize           = mib
	creator           = "Holdfast"
)

// CreateSpec describes a new file. Zero values take the defaults of Windows.
type CreateSpec struct {
	Size           int64 // bytes, a multiple of the logical sector
	BlockSize      int64 // power of two from 1 to 256 MiB; 0 = 32 MiB, differencing 2 MiB
	LogicalSector  int   // 512 or 4096; 0 = 512
	PhysicalSector int   // 512 or 4096; 0 = 4096
	ID             GUID  // virtual disk id; zero = a new one
	Fixed          bool
	Parent         *Locator // makes a differencing file
	NoSync         bool     // see OpenOptions
}

func (s CreateSpec) metadata() (metadata, error) {
	m := metadata{blockSize: s.BlockSize, leaveAllocated: s.Fixed, hasParent: s.Parent != nil, size: s.Size, id: s.ID,
		logical: s.LogicalSector, physic: s.PhysicalSector}
	if m.blockSize == 0 {
		m.blockSize = defaultBlock
		if m.hasParent {
			m.blockSize = defaultBlockChild
		}
	}
	if m.logical == 0 {
		m.logical = 512
	}
	if m.physic == 0 {
		m.physic = 4096
	}
	if m.id.IsZero() {
		m.id = NewGUID()
	}
	switch {
	case m.logical != 512 && m.logical != 4096, m.physic != 512 && m.physic != 4096:
		return m, fmt.Errorf("sectors of %d and %d bytes: %w", m.logical, m.physic, ErrRange)
	case m.blockSize < MinBlock || m.blockSize > MaxBlock || bits.OnesCount64(uint64(m.blockSize)) != 1:
		return m, fmt.Errorf("blocks of %d bytes: %w", m.blockSize, ErrRange)
	case m.size <= 0 || m.size > MaxSize || m.size%int64(m.logical) != 0:
		return m, fmt.Errorf("a disk of %d bytes with sectors of %d: %w", m.size, m.logical, ErrRange)
	case s.Fixed && m.hasParent:
		return m, fmt.Errorf("a fixed differencing disk: %w", ErrUnsupported)
	}
	if m.hasParent {
		m.parent = *s.Parent
		if m.parent.Linkage.IsZero() {
			return m, fmt.Errorf("a parent locator without linkage: %w", ErrRange)
		}
		return m, m.parent.check()
	}
	return m, nil
}

// Create makes a new file and opens it for writing. It fails with an error that
// wraps os.ErrExist if the path is taken. When it fails, it leaves nothing.
func Create(path string, spec CreateSpec) (*File, error) {
	m, err := spec.metadata()
	if err != nil {
		return nil, inFile(path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return nil, inFile(path, err)
	}
	s := newOSFile(f, spec.NoSync)
	err = s.lock()
	if err == nil {
		err = format(s, m)
	}
	if err == nil && !spec.NoSync {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, inFile(path, errors.Join(err, s.Close(), os.Remove(path)))
	}
	out, err := openStorage(path, s, true)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return out, nil
}

// format writes an empty disk. The headers come last: without them it is no disk.
func format(s storage, m metadata) error {
	h := header{sequence: 1, fileWrite: NewGUID(), dataWrite: NewGUID(), version: 1, logOffset: mib, logLength: logSize}
	reg := regions{metadata: region{h.logOffset + h.logLength, mib}}
	reg.bat = region{reg.metadata.end(), max(mib, roundUp(m.batEntries()*8, mib))}
	end := reg.bat.end()
	if m.layout() == Fixed {
		end += m.blocks() * m.blockSize
	}
	if err := s.Truncate(end); err != nil {
		return err
	}
	if err := s.WriteAt(m.encode(), reg.metadata.off); err != nil {
		return err
	}
	if m.layout() == Fixed {
		if err := fillFixed(s, m, reg.bat.off, 0, m.blocks(), reg.bat.end()); err != nil {
			return err
		}
	}
	table := reg.encode()
	id := make([]byte, 520)
	copy(id, "vhdxfile")
	copy(id[8:], encodeUTF16(creator))
	for _, w := range []struct {
		off int64
		b   []byte
	}{{regionA, table}, {regionB, table}, {0, id}} {
		if err := s.WriteAt(w.b, w.off); err != nil {
			return err
		}
	}
	if err := s.Sync(); err != nil {
		return err
	}
	for _, at := range []int64{headerA, headerB} {
		if err := s.WriteAt(h.encode(), at); err != nil {
			return err
		}
		h.sequence++
	}
	return s.Sync()
}

// fillFixed writes the BAT entries of the blocks [from, to) which lie one after the other from base on.
func fillFixed(s storage, m metadata, bat, from, to, base int64) error {
	ratio := m.chunkRatio()
	var buf []byte
	start := from + from/ratio
	for b := from; b < to; b++ {
		if b > from && b%ratio == 0 {
			buf = le.AppendUint64(buf, 0) // the bitmap's entry
		}
		buf = le.AppendUint64(buf, entry{stateFull, base + (b-from)*m.blockSize}.encode())
		if int64(len(buf)) >= mib || b == to-1 {
			if err := s.WriteAt(buf, bat+8*start); err != nil {
				return err
			}
			start, buf = start+int64(len(buf)/8), buf[:0]
		}
	}
	return nil
}

// CreateChild makes a differencing file on a parent: same size, sectors and virtual
// disk id, its linkage the parent's DataWriteGuid. Of spec it uses BlockSize, NoSync
// and the paths of Parent (nil: relative and absolute path as this system sees them).
// The parent must not be written afterwards.
func CreateChild(path, parentPath string, spec CreateSpec) (*File, error) {
	p, err := Open(parentPath, OpenOptions{})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	in := p.brief()
	spec.Size, spec.LogicalSector, spec.PhysicalSector, spec.ID, spec.Fixed = in.Size, in.LogicalSector, in.PhysicalSector, in.ID, false
	l := Locator{Relative: relativePath(path, parentPath), Absolute: absolute(parentPath)}
	if spec.Parent != nil {
		l = *spec.Parent
	}
	l.Linkage, l.Linkage2 = in.DataWrite, GUID{}
	spec.Parent = &l
	return Create(path, spec)
}

// relativePath is the Windows path from the child's directory to the parent, "" if there is none.
func relativePath(child, parent string) string {
	rel, err := filepath.Rel(filepath.Dir(absolute(child)), absolute(parent)) // fails between volumes
	if err != nil {
		return ""
	}
	rel = strings.ReplaceAll(rel, "/", `\`)
	if !strings.HasPrefix(rel, `..\`) {
		rel = `.\` + rel
	}
	return rel
}
