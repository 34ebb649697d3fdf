package ntfs

// entry is a name in a directory.
type entry struct {
	number   uint64
	sequence uint16
	name     []uint16
	short    bool // the 8.3 name of a file that has a long one
}

const (
	maxDirBlocks  = 1 << 15 // of a directory
	maxDirEntries = 1 << 19
	maxKept       = 1 << 17 // entries that are kept for further look-ups
)

// entries reads a directory's index: a tree whose root is in the record.
func (f *FS) entries(n *node) ([]entry, error) {
	f.mu.Lock()
	kept, ok := f.dirs[n.number]
	f.mu.Unlock()
	if ok {
		return kept, nil
	}
	if !n.dir {
		return nil, corrupt("it is no directory")
	}
	out, err := f.walk(n)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept+len(out) > maxKept {
		clear(f.dirs)
		f.kept = 0
	}
	if _, ok := f.dirs[n.number]; !ok && len(out) <= maxKept {
		f.dirs[n.number], f.kept = out, f.kept+len(out)
	}
	return out, nil
}

func (f *FS) walk(n *node) ([]entry, error) {
	root := n.find(attrIndexRoot, "$I30")
	if root == nil || len(root.resident) < 32 {
		return nil, corrupt("the directory has no index")
	}
	size := int64(le.Uint32(root.resident[8:]))
	var out []entry
	todo, err := index(root.resident[16:], &out)
	if err != nil {
		return nil, err
	}
	if len(todo) == 0 {
		return out, nil
	}
	alloc := n.find(attrIndexAlloc, "$I30")
	if alloc == nil || alloc.resident != nil || size < 512 || size > 64<<10 || size&(size-1) != 0 {
		return nil, corrupt("the directory's index has no blocks")
	}
	r, err := f.reader(alloc)
	if err != nil {
		return nil, err
	}
	unit := f.cluster
	if size < f.cluster {
		unit = 512
	}
	seen := map[int64]bool{}
	for len(todo) > 0 {
		vcn := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[vcn] || vcn < 0 || vcn > alloc.size/unit || len(seen) >= maxDirBlocks || len(out) > maxDirEntries {
			return nil, corrupt("the directory's index at block %d", vcn)
		}
		seen[vcn] = true
		b := make([]byte, size)
		if err := read(r, b, vcn*unit); err != nil {
			return nil, err
		}
		if string(b[:4]) != "INDX" || int64(le.Uint64(b[16:])) != vcn {
			return nil, corrupt("the directory's block %d", vcn)
		}
		if err := fixup(b, len(b)); err != nil {
			return nil, err
		}
		more, err := index(b[24:], &out)
		if err != nil {
			return nil, err
		}
		if todo = append(todo, more...); len(todo) > maxDirBlocks {
			return nil, corrupt("the directory's index has too many blocks")
		}
	}
	return out, nil
}

// index reads the entries of one block, from its header on, and returns the blocks below.
func index(b []byte, out *[]entry) (below []int64, err error) {
	at, end := int64(le.Uint32(b)), int64(le.Uint32(b[4:]))
	if end > int64(len(b)) {
		return nil, corrupt("a directory's block is too long")
	}
	for {
		if at < 16 || at+16 > end {
			return nil, corrupt("a directory's block has no end")
		}
		e := b[at:end]
		n, key, flags := int64(le.Uint16(e[8:])), int64(le.Uint16(e[10:])), le.Uint16(e[12:])
		if n < 16 || n > int64(len(e)) || 16+key > n {
			return nil, corrupt("an entry of a directory")
		}
		if flags&1 != 0 {
			if n < 24 {
				return nil, corrupt("an entry of a directory")
			}
			below = append(below, int64(le.Uint64(e[n-8:])))
		}
		if flags&2 != 0 {
			return below, nil
		}
		if key < 66 || 66+2*int64(e[16+64]) > key {
			return nil, corrupt("a name in a directory")
		}
		ref := le.Uint64(e)
		*out = append(*out, entry{number: ref & refMask, sequence: uint16(ref >> 48), name: units(e[16+66 : 16+66+2*int64(e[16+64])]), short: e[16+65] == 2})
		at += n
	}
}
