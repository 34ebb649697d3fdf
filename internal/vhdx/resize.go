package vhdx

import (
	"fmt"
)

// Resize grows the disk of a file, which must not be open elsewhere. The new part
// reads as zeros. It is one step: after a crash the disk has the old or the new
// size. A file with children must not be resized; the caller knows them.
func Resize(path string, size int64) error {
	f, err := Open(path, OpenOptions{Write: true})
	if err != nil {
		return err
	}
	err = f.Resize(size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Resize grows the disk, see the function of that name.
func (f *File) Resize(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return inFile(f.path, f.resize(size))
}

func (f *File) resize(size int64) error {
	if err := f.writable(); err != nil {
		return err
	}
	m := f.meta
	m.size = size
	switch {
	case size == f.meta.size:
		return nil
	case size < f.meta.size || size > MaxSize || size%int64(m.logical) != 0:
		return fmt.Errorf("resize from %d to %d bytes: %w", f.meta.size, size, ErrRange)
	}
	if err := f.touch(); err != nil {
		return err
	}
	if err := f.commit(); err != nil {
		return err
	}
	if err := f.clearTail(); err != nil {
		return err
	}
	reg := f.reg
	if err := f.growBAT(m, &reg); err != nil {
		return f.fail(err)
	}
	// Size and, if the BAT moved, both region tables change in one log entry.
	at := reg.metadata.off + m.sizeAt
	for i := range int64(8) { // the item may cross a page
		page, err := f.pages.change(at + i)
		if err != nil {
			return f.fail(err)
		}
		page[(at+i)%pageSize] = byte(uint64(size) >> (8 * i))
	}
	if reg != f.reg {
		if err := f.changeRegions(reg); err != nil {
			return f.fail(err)
		}
	}
	if err := f.commit(); err != nil {
		return err
	}
	f.meta, f.reg, f.allocated = m, reg, -1
	return f.flush()
}

// clearTail zeroes what lies in the last block behind the disk's end.
func (f *File) clearTail() error {
	used := f.meta.size % f.meta.blockSize
	if used == 0 {
		return nil
	}
	e, err := f.payload(f.meta.blocks() - 1)
	if err != nil || !e.hasSpace() {
		return err
	}
	f.unsynced.Store(true)
	if err := f.s.Zero(e.off+used, f.meta.blockSize-used); err != nil {
		return err
	}
	if e.state != statePartial {
		return nil
	}
	// The new sectors are the parent's business, and behind its end they are zeros.
	base, err := f.bitmapAt(f.meta.blocks() - 1)
	if err != nil {
		return err
	}
	sector := int64(f.meta.logical)
	for i := used / sector; i < f.meta.blockSize/sector; i++ {
		page, err := f.pages.change(base + i/8)
		if err != nil {
			return err
		}
		page[(base+i/8)%pageSize] &^= 1 << (i % 8)
	}
	return nil
}

// growBAT writes the entries of the new blocks, where nobody looks before the size
// changes, moving the BAT to the end of the file if it has to grow.
func (f *File) growBAT(m metadata, reg *regions) error {
	old, need := f.meta.batEntries()*8, m.batEntries()*8
	if need > reg.bat.length {
		n := roundUp(need, mib)
		at, err := f.allocate(n)
		if err != nil {
			return err
		}
		buf := make([]byte, mib)
		for off := int64(0); off < old; off += mib {
			k := min(mib, old-off)
			if err := f.s.ReadAt(buf[:k], reg.bat.off+off); err != nil {
				return err
			}
			if err := f.s.WriteAt(buf[:k], at+off); err != nil {
				return err
			}
		}
		reg.bat = region{at, n}
	} else if err := writeZeros(f.s, reg.bat.off+old, need-old); err != nil {
		return err
	}
	f.unsynced.Store(true)
	f.pages.forget()
	if f.meta.layout() != Fixed {
		return f.s.Sync()
	}
	from, to := f.meta.blocks(), m.blocks()
	base := f.end
	if err := f.s.Truncate(base + (to-from)*m.blockSize); err != nil {
		return err
	}
	f.end = base + (to-from)*m.blockSize
	if err := fillFixed(f.s, m, reg.bat.off, from, to, base); err != nil {
		return err
	}
	return f.s.Sync()
}

// changeRegions writes the place of the BAT into both region tables, leaving the rest as it is.
func (f *File) changeRegions(reg regions) error {
	table := make([]byte, tableSize)
	good := false
	for _, at := range []int64{regionA, regionB} {
		if err := f.s.ReadAt(table, at); err != nil {
			return err
		}
		if good = string(table[:4]) == "regi" && le.Uint32(table[4:]) == checksum(table); good {
			break
		}
	}
	if !good {
		return damaged("region table", regionA, "no valid region table")
	}
	for i := range int(le.Uint32(table[8:])) {
		p := table[16+32*i:]
		if GUID(p[:16]) == regionBAT {
			le.PutUint64(p[16:], uint64(reg.bat.off))
			le.PutUint32(p[24:], uint32(reg.bat.length))
		}
	}
	putChecksum(table)
	for _, at := range []int64{regionA, regionB} {
		for off := int64(0); off < tableSize; off += pageSize {
			copy(f.pages.fresh(at + off)[:], table[off:])
		}
	}
	return nil
}

// Reparent changes where a closed differencing file looks for its parent: SetParent with Open and Close.
func Reparent(path string, l Locator) error {
	f, err := Open(path, OpenOptions{Write: true})
	if err != nil {
		return err
	}
	err = f.SetParent(l)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// SetParent changes where a differencing file looks for its parent: the paths of l
// are taken, the linkage stays. It is one step, as Resize is; the disk's data and
// DataWriteGuid stay.
func (f *File) SetParent(l Locator) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return inFile(f.path, f.setParent(l))
}

func (f *File) setParent(l Locator) error {
	if err := f.writable(); err != nil {
		return err
	}
	if !f.meta.hasParent {
		return failure("metadata", -1, ErrUnsupported, "the file has no parent")
	}
	l.Linkage, l.Linkage2 = f.meta.parent.Linkage, f.meta.parent.Linkage2
	return f.setLocator(l)
}

// setLocator replaces the whole parent locator and makes that durable.
func (f *File) setLocator(l Locator) error {
	if err := l.check(); err != nil {
		return err
	}
	b := l.encode()
	if err := f.commit(); err != nil {
		return err
	}
	at, err := f.itemRoom(int64(len(b)))
	if err != nil {
		return err
	}
	if err := f.putBytes(f.reg.metadata.off+at, b); err != nil {
		return f.fail(err)
	}
	place := le.AppendUint32(le.AppendUint32(nil, uint32(at)), uint32(len(b)))
	if err := f.putBytes(f.reg.metadata.off+f.meta.locatorEntry+16, place); err != nil {
		return f.fail(err)
	}
	if err := f.flush(); err != nil {
		return err
	}
	f.meta.parent, f.meta.free = l, max(f.meta.free, at+int64(len(b)))
	return nil
}

// itemRoom finds n bytes of the metadata region that no item but the parent locator uses.
func (f *File) itemRoom(n int64) (int64, error) {
	table := make([]byte, tableSize)
	if err := f.s.ReadAt(table, f.reg.metadata.off); err != nil {
		return 0, err
	}
	items, err := decodeItems(table, f.reg.metadata.off, f.reg.metadata.length)
	if err != nil {
		return 0, err
	}
	var used []region
	ends := []int64{tableSize}
	for _, it := range items {
		if it.length > 0 && it.entryAt != f.meta.locatorEntry {
			used = append(used, region{it.at, it.length})
			ends = append(ends, roundUp(it.at+it.length, 8))
		}
	}
next:
	for _, at := range ends {
		if at+n > f.reg.metadata.length {
			continue
		}
		for _, u := range used {
			if u.overlaps(at, n) {
				continue next
			}
		}
		return at, nil
	}
	return 0, failure("metadata", f.reg.metadata.off, ErrUnsupported, "no room for a parent locator of %d bytes", n)
}

// putBytes changes bytes of the file through pages.
func (f *File) putBytes(off int64, b []byte) error {
	for len(b) > 0 {
		page, err := f.pages.change(off)
		if err != nil {
			return err
		}
		n := copy(page[off%pageSize:], b)
		off, b = off+int64(n), b[n:]
	}
	return nil
}
