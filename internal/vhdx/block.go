package vhdx

import (
	"encoding/binary"
	"math/bits"
)

// entry is a BAT entry of a payload block or of a sector bitmap block.
type entry struct {
	state int
	off   int64 // bytes; only meaningful with space of its own
}

// hasSpace reports whether the block's data stand in the file.
func (e entry) hasSpace() bool { return e.state == stateFull || e.state == statePartial }

func (e entry) encode() uint64 { return uint64(e.off/mib)<<20 | uint64(e.state) }

// payloadIndex and bitmapIndex are places in the BAT, [MS-VHDX] 2.5.
func (f *File) payloadIndex(block int64) int64 { return block + block/f.meta.chunkRatio() }

func (f *File) bitmapIndex(block int64) int64 {
	r := f.meta.chunkRatio()
	return block/r*(r+1) + r
}

// bat reads and checks an entry of n bytes of space.
func (f *File) bat(index, n int64, bitmap bool) (entry, error) {
	at := f.reg.bat.off + 8*index
	page, err := f.pages.get(at)
	if err != nil {
		return entry{}, err
	}
	return f.decodeEntry(le.Uint64(page[at%pageSize:]), at, n, bitmap)
}

func (f *File) decodeEntry(v uint64, at, n int64, bitmap bool) (entry, error) {
	e := entry{state: int(v & 7), off: int64(v>>20) * mib}
	switch {
	case e.state == statePartial && (bitmap || !f.meta.hasParent), e.state == 4, e.state == 5, bitmap && e.state != 0 && e.state != stateFull:
		return e, damaged("BAT", at, "state %d is not allowed here", e.state)
	case !e.hasSpace():
		e.off = 0
	case e.off < mib || e.off+n > f.end && !f.grown(e.off+n):
		return e, damaged("BAT", at, "a block of %d bytes at %d, the file has %d", n, e.off, f.end)
	case f.reg.bat.overlaps(e.off, n) || f.reg.metadata.overlaps(e.off, n) || (region{f.hdr.logOffset, f.hdr.logLength}).overlaps(e.off, n):
		return e, damaged("BAT", at, "a block at %d overlaps a region or the log", e.off)
	}
	return e, nil
}

// grown reports whether a file that is only read has at least size bytes by now: a
// merge into it may have made it longer since it was opened.
func (f *File) grown(size int64) bool {
	if f.write {
		return false
	}
	now, err := f.s.Size()
	return err == nil && now >= size
}

func (f *File) payload(block int64) (entry, error) {
	return f.bat(f.payloadIndex(block), f.meta.blockSize, false)
}

// setBAT changes an entry in memory. f.mu must be held for writing.
func (f *File) setBAT(index int64, e entry) error {
	at := f.reg.bat.off + 8*index
	page, err := f.pages.change(at)
	if err != nil {
		return err
	}
	le.PutUint64(page[at%pageSize:], e.encode())
	return nil
}

// setPayload changes a payload block's entry and keeps the account of space.
func (f *File) setPayload(block int64, was, now entry) error {
	if err := f.setBAT(f.payloadIndex(block), now); err != nil {
		return err
	}
	if f.allocated >= 0 && was.hasSpace() != now.hasSpace() {
		if now.hasSpace() {
			f.allocated += f.meta.blockSize
		} else {
			f.allocated -= f.meta.blockSize
		}
	}
	if was.hasSpace() && !now.hasSpace() {
		f.freed = append(f.freed, was.off)
	}
	return nil
}

// entries walks all entries of the BAT that count, without the page cache.
func (f *File) entries(fn func(index int64, bitmap bool, v uint64) error) error {
	total, ratio := f.meta.batEntries(), f.meta.chunkRatio()
	buf := make([]byte, min(mib, roundUp(total*8, pageSize)))
	for i := int64(0); i < total; {
		n := min(int64(len(buf))/8, total-i)
		if err := f.s.ReadAt(buf[:n*8], f.reg.bat.off+i*8); err != nil {
			return err
		}
		f.pages.patch(buf[:n*8], f.reg.bat.off+i*8)
		for k := range n {
			if v := le.Uint64(buf[k*8:]); v != 0 {
				if err := fn(i+k, (i+k)%(ratio+1) == ratio, v); err != nil {
					return err
				}
			}
		}
		i += n
	}
	return nil
}

// patch lays changed pages over bytes that were read from the file.
func (c *pageCache) patch(b []byte, off int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, p := range c.dirty {
		if from, to := max(at, off), min(at+pageSize, off+int64(len(b))); from < to {
			copy(b[from-off:to-off], p[from-at:to-at])
		}
	}
}

func (f *File) countAllocated() (int64, error) {
	n := int64(0)
	err := f.entries(func(_ int64, bitmap bool, v uint64) error {
		if s := v & 7; !bitmap && (s == stateFull || s == statePartial) {
			n += f.meta.blockSize
		}
		return nil
	})
	return n, err
}

// Check reads the whole BAT: states and places of all blocks, and that no two lie
// in the same place. Opening checks only what it needs.
func (f *File) Check() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return inFile(f.path, ErrClosed)
	}
	used := make([]uint64, (f.end/mib+64)/64)
	return inFile(f.path, f.entries(func(index int64, bitmap bool, v uint64) error {
		n := f.meta.blockSize
		if bitmap {
			n = bitmapBlock
		}
		at := f.reg.bat.off + 8*index
		e, err := f.decodeEntry(v, at, n, bitmap)
		if err != nil || !e.hasSpace() {
			return err
		}
		for m := e.off / mib; m < (e.off+n)/mib; m++ {
			if used[m/64]&(1<<(m%64)) != 0 {
				return damaged("BAT", at, "the block at %d overlaps another one", e.off)
			}
			used[m/64] |= 1 << (m % 64)
		}
		if e.state == statePartial {
			ratio := f.meta.chunkRatio()
			sb := index/(ratio+1)*(ratio+1) + ratio
			if m, err := f.bat(sb, bitmapBlock, true); err != nil {
				return err
			} else if m.state != stateFull {
				return damaged("BAT", at, "a partially present block without sector bitmap")
			}
		}
		return nil
	}))
}

// source is where the bytes of a run come from.
type source int

const (
	fromFile source = iota
	fromParent
	zeros
)

// run is a part of a block, in bytes from the block's begin; off is its place in the file.
type run struct {
	from, to int64
	src      source
	off      int64
}

// runs tells the source of the bytes [from, to) of a block. f.mu must be held.
func (f *File) runs(block, from, to int64, fn func(run) error) error {
	e, err := f.payload(block)
	if err != nil {
		return err
	}
	switch {
	case e.state == stateFull:
		return fn(run{from, to, fromFile, e.off + from})
	case e.state == stateNotPresent && f.meta.hasParent:
		return fn(run{from: from, to: to, src: fromParent})
	case e.state != statePartial:
		return fn(run{from: from, to: to, src: zeros})
	}
	sector := int64(f.meta.logical)
	base, err := f.bitmapAt(block)
	if err != nil {
		return err
	}
	for from < to {
		here, n, err := f.bitRun(base, from/sector, (to+sector-1)/sector)
		if err != nil {
			return err
		}
		end := min(to, (from/sector+n)*sector)
		r := run{from: from, to: end, src: fromParent}
		if here {
			r.src, r.off = fromFile, e.off+from
		}
		if err := fn(r); err != nil {
			return err
		}
		from = end
	}
	return nil
}

// bitmapAt returns the place in the file of the bitmap bytes of a block.
func (f *File) bitmapAt(block int64) (int64, error) {
	index := f.bitmapIndex(block)
	e, err := f.bat(index, bitmapBlock, true)
	if err != nil {
		return 0, err
	}
	if e.state != stateFull && !f.write {
		f.pages.forget() // of two pages one may be from before a merge, the other from after it
		if e, err = f.bat(index, bitmapBlock, true); err != nil {
			return 0, err
		}
	}
	if e.state != stateFull {
		return 0, damaged("BAT", f.reg.bat.off+8*index, "a partially present block without sector bitmap")
	}
	return e.off + block%f.meta.chunkRatio()*f.bitmapBytes(), nil
}

// bitmapBytes is the size of a block's part of the bitmap.
func (f *File) bitmapBytes() int64 { return f.meta.blockSize / int64(f.meta.logical) / 8 }

// bitRun returns the bit at index from (of the bitmap at base) and how many bits up to index end equal it.
func (f *File) bitRun(base, from, end int64) (here bool, n int64, err error) {
	for at := from; at < end; {
		byteAt := base + at/8
		page, err := f.pages.get(byteAt)
		if err != nil {
			return false, 0, err
		}
		rest := page[byteAt%pageSize:]
		if at == from {
			here = rest[0]>>(at%8)&1 == 1
		}
		limit := min(end-at, int64(len(rest))*8-at%8)
		k := sameBits(rest, at%8, limit, here)
		n, at = n+k, at+k
		if k < limit {
			break
		}
	}
	return here, n, nil
}

// sameBits counts the bits from bit first on, at most limit, that equal v.
func sameBits(b []byte, first, limit int64, v bool) int64 {
	n := int64(0)
	for n < limit {
		i := first + n
		if i%8 == 0 && i/8+8 <= int64(len(b)) && limit-n >= 64 {
			w := binary.LittleEndian.Uint64(b[i/8:])
			if v {
				w = ^w
			}
			if w == 0 {
				n += 64
				continue
			}
			return n + int64(bits.TrailingZeros64(w))
		}
		if (b[i/8]>>(i%8)&1 == 1) != v {
			break
		}
		n++
	}
	return n
}

// setBits marks the sectors [from, to) of a block as standing in this file.
func (f *File) setBits(base, from, to int64) error {
	for i := from; i < to; {
		at := base + i/8
		page, err := f.pages.change(at)
		if err != nil {
			return err
		}
		for ; i < to && (base+i/8)&^(pageSize-1) == at&^(pageSize-1); i++ {
			p := (base + i/8) % pageSize
			if i%8 == 0 && to-i >= 8 {
				page[p] = 0xff
				i += 7
				continue
			}
			page[p] |= 1 << (i % 8)
		}
	}
	return nil
}

// clearBits forgets all sectors of a block.
func (f *File) clearBits(base int64) error {
	for at, end := base, base+f.bitmapBytes(); at < end; {
		page, err := f.pages.change(at)
		if err != nil {
			return err
		}
		next := min(end, at&^(pageSize-1)+pageSize)
		clear(page[at%pageSize : at%pageSize+next-at])
		at = next
	}
	return nil
}

// allocate finds space for a block; the space reads as zeros.
func (f *File) allocate(n int64) (int64, error) {
	if k := len(f.free); k > 0 && n == f.meta.blockSize {
		off := f.free[k-1]
		f.free = f.free[:k-1]
		return off, nil
	}
	off := f.end
	if err := f.s.Truncate(off + n); err != nil {
		return 0, err
	}
	f.end = off + n
	return off, nil
}

// giveBack is for space that nothing refers to because writing to it failed.
func (f *File) giveBack(off int64) {
	f.freed = append(f.freed, off)
}

// room commits when the next change of one block might not fit one log entry:
// it touches at most a page of the BAT for the block, one for its bitmap and 16 of bitmap.
func (f *File) room() error {
	if f.pages.changes()+20 > maxEntryPages {
		return f.commit()
	}
	return nil
}

// put writes bytes of one block with all changes of structures this needs.
// f.mu must be held for writing, sectors be whole where the parent shows through.
func (f *File) put(block, in int64, p []byte) error {
	e, err := f.payload(block)
	if err != nil {
		return err
	}
	if e.state == stateFull {
		f.unsynced.Store(true)
		return f.s.WriteAt(p, e.off+in)
	}
	if err := f.room(); err != nil {
		return err
	}
	whole := in == 0 && int64(len(p)) == min(f.meta.blockSize, f.meta.size-block*f.meta.blockSize)
	was := e
	if !was.hasSpace() {
		if e.off, err = f.allocate(f.meta.blockSize); err != nil {
			return err
		}
	}
	f.unsynced.Store(true)
	if err := f.s.WriteAt(p, e.off+in); err != nil {
		if !was.hasSpace() {
			f.giveBack(e.off)
		}
		return err
	}
	e.state = stateFull
	if f.meta.hasParent && !whole && (was.state == stateNotPresent || was.state == statePartial) {
		full, err := f.present(block, in, int64(len(p)), was.state == stateNotPresent)
		if err != nil {
			return f.fail(err)
		}
		if !full {
			e.state = statePartial
		}
	}
	if e == was {
		return nil
	}
	if err := f.setPayload(block, was, e); err != nil {
		return f.fail(err)
	}
	return nil
}

// present sets the bits of a range and reports whether all bits of the block are set now.
func (f *File) present(block, in, n int64, first bool) (bool, error) {
	index := f.bitmapIndex(block)
	sb, err := f.bat(index, bitmapBlock, true)
	if err != nil {
		return false, err
	}
	if sb.state != stateFull {
		if sb.off, err = f.allocate(bitmapBlock); err != nil {
			return false, err
		}
		sb.state = stateFull
		if err := f.setBAT(index, sb); err != nil {
			return false, err
		}
	}
	base := sb.off + block%f.meta.chunkRatio()*f.bitmapBytes()
	if first {
		// Bits of an earlier life of the block, or of a write that a crash cut off.
		if err := f.clearBits(base); err != nil {
			return false, err
		}
	}
	sector := int64(f.meta.logical)
	if err := f.setBits(base, in/sector, (in+n+sector-1)/sector); err != nil {
		return false, err
	}
	total := min(f.meta.blockSize, f.meta.size-block*f.meta.blockSize) / sector
	here, k, err := f.bitRun(base, 0, total)
	return here && k == total, err
}

// drop makes a whole block read as zeros and gives its space back.
// f.mu must be held for writing.
func (f *File) drop(block int64) error {
	e, err := f.payload(block)
	if err != nil {
		return err
	}
	switch {
	case f.meta.layout() == Fixed:
		if e.state != stateFull {
			return nil
		}
		f.unsynced.Store(true)
		return f.s.Zero(e.off, f.meta.blockSize)
	case !e.hasSpace() && (e.state != stateNotPresent || !f.meta.hasParent):
		return nil // reads as zeros already
	}
	if err := f.room(); err != nil {
		return err
	}
	if err := f.setPayload(block, e, entry{state: stateZero}); err != nil {
		return f.fail(err)
	}
	return nil
}
