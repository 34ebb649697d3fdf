package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrUnsafe says that a file can't be rewritten in place; the text says why.
var ErrUnsafe = errors.New("can't be rewritten in place")

// Write is a change of the device.
type Write struct {
	Off  int64
	Data []byte
}

const (
	// roWritable are the read-only compatible features that a change of a file's
	// size and content leaves alone; a system must not write with others.
	roWritable = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | roBigalloc | roMetadataCsum | 0x2000 | 0x8000 | 0x10000
	maxRewrite = 16 << 20 // bytes of a file
)

// Rewrite returns the writes, in order, that give a regular file another
// content. Nothing is allocated: the new content must end in the block the old
// one ended in; one that is shorter is filled up with newlines to reach it.
// A journal that a mount would replay is written back and emptied first, as a
// mount would do it. Open the file system again after the writes.
func (f *FS) Rewrite(name string, content []byte) ([]Write, error) {
	i, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	refuse := func(why string) ([]Write, error) { return nil, fmt.Errorf("%s %w: %s", name, ErrUnsafe, why) }
	switch {
	case !i.regular():
		return refuse("it is not a regular file")
	case i.flags&flagInlineData != 0:
		return refuse("its content lies in the inode")
	case i.flags&(flagEncrypted|flagCompressed|flagVerity) != 0:
		return refuse("it is encrypted, compressed or sealed")
	case f.rocompat&^roWritable != 0:
		return refuse(fmt.Sprintf("the file system has features %#x", f.rocompat&^roWritable))
	case i.size == 0:
		return refuse("it is empty and has no block")
	case i.size > maxRewrite:
		return refuse(fmt.Sprintf("it has over %d bytes", maxRewrite))
	case binary.LittleEndian.Uint16(f.sb[0x3A:])&2 != 0:
		return refuse("the file system is marked as having errors")
	}
	last := (i.size - 1) / f.bs
	if int64(len(content)) > (last+1)*f.bs {
		return refuse(fmt.Sprintf("%d bytes do not fit into its %d", len(content), (last+1)*f.bs))
	}
	for int64(len(content)) <= last*f.bs {
		content = append(slices.Clip(content), '\n')
	}
	runs, err := f.runs(i)
	if err != nil {
		return nil, err
	}
	out, err := f.flushJournal()
	if err != nil {
		return nil, err
	}
	c := &file{f, runs, i.size}
	for b := int64(0); b <= last; b++ {
		r, _ := c.find(uint64(b))
		if r == nil || r.hole {
			return refuse("it has holes")
		}
		data := make([]byte, f.bs)
		copy(data, content[b*f.bs:])
		out = append(out, Write{int64(r.physical+uint64(b)-r.logical) * f.bs, data})
	}
	block, off, err := f.inodePlace(i.n)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	raw := slices.Clone(i.raw)
	le.PutUint32(raw[4:], uint32(len(content)))
	if f.rocompat&roMetadataCsum != 0 {
		lo, hi, wide := f.inodeCsum(&inode{n: i.n, raw: raw})
		le.PutUint16(raw[0x7C:], lo)
		if wide {
			le.PutUint16(raw[0x82:], hi)
		}
	}
	return append(out, Write{int64(block)*f.bs + off, raw}), nil
}

// flushJournal returns the writes that a mount's recovery would make.
func (f *FS) flushJournal() ([]Write, error) {
	if !f.Dirty() {
		return nil, nil
	}
	var out []Write
	for _, n := range slices.Sorted(maps.Keys(f.replay)) {
		b := make([]byte, f.bs)
		if err := f.readReplayed(f.replay[n], b); err != nil {
			return nil, err
		}
		out = append(out, Write{int64(n) * f.bs, b})
	}
	le, be := binary.LittleEndian, binary.BigEndian
	j := slices.Clone(f.journalSB)
	be.PutUint32(j[0x18:], f.journalSeq+1)
	be.PutUint32(j[0x1C:], 0)
	if be.Uint32(j[4:]) == jbdSuperV2 && be.Uint32(j[0x28:])&(jbdCsum2|jbdCsum3) != 0 {
		be.PutUint32(j[0xFC:], 0)
		be.PutUint32(j[0xFC:], crc(^uint32(0), j))
	}
	sb := slices.Clone(f.sb[:])
	le.PutUint32(sb[0x60:], f.incompat&^incompatRecover)
	if f.rocompat&roMetadataCsum != 0 {
		le.PutUint32(sb[0x3FC:], crc(^uint32(0), sb[:0x3FC]))
	}
	return append(out, Write{f.journalAt, j}, Write{1024, sb}), nil
}
