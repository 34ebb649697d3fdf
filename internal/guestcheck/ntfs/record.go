package ntfs

import (
	"bytes"
	"cmp"
	"io"
	"math"
	"slices"
	"unicode/utf16"
)

const (
	maxExtents  = 4096    // records of one file
	maxRuns     = 1 << 20 // of one file
	maxListSize = 1 << 20 // bytes of an attribute list; Windows stops at 256 KiB
)

// node is a file or a directory.
type node struct {
	number uint64
	dir    bool
	attrs  []attr
}

// attr is an attribute, whole if it was spread over records.
type attr struct {
	kind     uint32
	name     string
	flags    uint16
	resident []byte // nil if not resident
	lowest   int64  // VCN of the first run
	next     int64  // VCN after the last
	runs     []run
	size     int64 // bytes
	init     int64 // bytes that were ever written; zeros follow
	unit     int64 // clusters of a compression unit; 0 = not compressed
}

// run is n clusters in a row; lcn < 0 is a hole.
type run struct{ vcn, lcn, n int64 }

const (
	flagCompressed = 0x0001
	flagEncrypted  = 0x4000
)

func (a *attr) length() int64 {
	if a.resident != nil {
		return int64(len(a.resident))
	}
	return a.size
}

func (n *node) find(kind uint32, name string) *attr {
	for k := range n.attrs {
		if a := &n.attrs[k]; a.kind == kind && a.name == name {
			return a
		}
	}
	return nil
}

// tag is that of the reparse point, or 0.
func (n *node) tag() uint32 {
	a := n.find(attrReparse, "")
	switch {
	case a == nil:
		return 0
	case len(a.resident) >= 4:
		return max(1, le.Uint32(a.resident))
	}
	return math.MaxUint32 // not resident: large, and none that could be followed
}

// file reads a record with what belongs to it in other records. A sequence of 0 fits all.
func (f *FS) file(number uint64, sequence uint16) (*node, error) {
	b, err := f.readRecord(number)
	if err != nil {
		return nil, err
	}
	if base := le.Uint64(b[32:]) & refMask; base != 0 {
		return nil, corrupt("record %d belongs to record %d", number, base)
	}
	if s := le.Uint16(b[16:]); sequence != 0 && s != sequence {
		return nil, corrupt("record %d was used again", number)
	}
	n := &node{number: number, dir: le.Uint16(b[22:])&2 != 0}
	parts, err := f.parse(b)
	if err != nil {
		return nil, err
	}
	// The file table's own list is read by as much of the table as is known so far.
	grow := func() error {
		if n.attrs, err = merge(parts); err != nil || number != recordMFT {
			return err
		}
		a := n.find(attrData, "")
		if a == nil || a.resident != nil {
			return corrupt("the file table has no data")
		}
		f.mft = &stream{f: f, runs: a.runs, size: a.size, init: a.init}
		return nil
	}
	k := slices.IndexFunc(parts, func(a attr) bool { return a.kind == attrList })
	if k < 0 || number == recordMFT {
		if err := grow(); err != nil {
			return nil, err
		}
	}
	if k < 0 {
		return n, nil
	}
	list := parts[k]
	if parts = slices.Delete(parts, k, k+1); list.resident == nil {
		if list.resident, err = f.content(&list, maxListSize); err != nil {
			return nil, err
		}
	}
	extents, err := listed(list.resident, number)
	if err != nil {
		return nil, err
	}
	runs := 0
	for _, x := range extents {
		b, err := f.readRecord(x)
		if err != nil {
			return nil, err
		}
		if le.Uint64(b[32:])&refMask != number {
			return nil, corrupt("record %d is no part of record %d", x, number)
		}
		more, err := f.parse(b)
		if err != nil {
			return nil, err
		}
		for _, a := range more {
			if runs += len(a.runs); runs > maxRuns {
				return nil, corrupt("record %d is in more than %d pieces", number, maxRuns)
			}
		}
		parts = append(parts, more...)
		if number == recordMFT {
			if err := grow(); err != nil {
				return nil, err
			}
		}
	}
	return n, grow()
}

const refMask = 1<<48 - 1

// listed returns the other records of an attribute list, in its order.
func listed(b []byte, base uint64) ([]uint64, error) {
	var out []uint64
	seen := map[uint64]bool{base: true}
	for len(b) >= 26 {
		n := int(le.Uint16(b[4:]))
		if n < 26 || n > len(b) {
			return nil, corrupt("the attribute list of record %d", base)
		}
		if r := le.Uint64(b[16:]) & refMask; !seen[r] {
			seen[r] = true
			if out = append(out, r); len(out) > maxExtents {
				return nil, corrupt("record %d has more than %d further records", base, maxExtents)
			}
		}
		b = b[n:]
	}
	return out, nil
}

// merge joins the pieces of attributes that are spread over records.
func merge(parts []attr) ([]attr, error) {
	sorted := slices.Clone(parts)
	slices.SortStableFunc(sorted, func(a, b attr) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name), cmp.Compare(a.lowest, b.lowest))
	})
	var out []attr
	for _, a := range sorted {
		if a.resident != nil || a.lowest == 0 {
			a.runs = slices.Clip(a.runs)
			out = append(out, a)
			continue
		}
		if len(out) == 0 {
			return nil, corrupt("an attribute of type %X has no start", a.kind)
		}
		o := &out[len(out)-1]
		if o.kind != a.kind || o.name != a.name || o.resident != nil || o.next != a.lowest {
			return nil, corrupt("an attribute of type %X has a gap at cluster %d", a.kind, a.lowest)
		}
		o.runs, o.next = append(o.runs, a.runs...), a.next
	}
	return out, nil
}

func (f *FS) readRecord(number uint64) ([]byte, error) {
	if number >= uint64(math.MaxInt64/f.record) || int64(number+1)*f.record > f.mft.size {
		return nil, corrupt("record %d lies outside of the file table", number)
	}
	b := make([]byte, f.record)
	if err := read(f.mft, b, int64(number)*f.record); err != nil {
		return nil, err
	}
	if string(b[:4]) != "FILE" {
		return nil, corrupt("record %d has no signature", number)
	}
	if err := fixup(b, len(b)); err != nil {
		return nil, corrupt("record %d: %v", number, err)
	}
	if le.Uint16(b[22:])&1 == 0 {
		return nil, corrupt("record %d is not in use", number)
	}
	return b, nil
}

// fixup puts the last two bytes of each 512 back, which hold a number that
// proves that all of the record was written.
func fixup(b []byte, size int) error {
	at, n := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if n == 0 || at < 8 || at+2*n > len(b) {
		return corrupt("its update sequence")
	}
	stride := 512
	if n-1 != size/stride { // records of disks with larger sectors
		if stride = 0; n > 1 {
			stride = size / (n - 1)
		}
	}
	if stride < 512 || stride*(n-1) != size {
		return corrupt("its update sequence")
	}
	for k := 1; k < n; k++ {
		end := b[k*stride-2 : k*stride]
		if !bytes.Equal(end, b[at:at+2]) {
			return corrupt("it was written in part only")
		}
		copy(end, b[at+2*k:at+2*k+2])
	}
	return nil
}

// parse returns the attributes of a record.
func (f *FS) parse(rec []byte) ([]attr, error) {
	var out []attr
	used := min(int(le.Uint32(rec[24:])), len(rec))
	for at := int(le.Uint16(rec[20:])); ; {
		if at < 40 || at+4 > used {
			return nil, corrupt("the attributes of a record have no end")
		}
		kind := le.Uint32(rec[at:])
		if kind == math.MaxUint32 {
			return out, nil
		}
		if at+24 > used {
			return nil, corrupt("an attribute of type %X", kind)
		}
		n := int(le.Uint32(rec[at+4:]))
		if n < 24 || n > used-at {
			return nil, corrupt("an attribute of type %X has %d bytes", kind, n)
		}
		a, err := f.parseAttr(rec[at:at+n], kind)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
		at += n
	}
}

func (f *FS) parseAttr(b []byte, kind uint32) (attr, error) {
	a := attr{kind: kind, flags: le.Uint16(b[12:])}
	if n, at := int(b[9]), int(le.Uint16(b[10:])); n > 0 {
		if at+2*n > len(b) {
			return a, corrupt("the name of an attribute of type %X", kind)
		}
		a.name = string(utf16.Decode(units(b[at : at+2*n])))
	}
	if b[8] == 0 {
		n, at := int(le.Uint32(b[16:])), int(le.Uint16(b[20:]))
		if n > len(b) || at > len(b)-n {
			return a, corrupt("the value of an attribute of type %X", kind)
		}
		a.resident = b[at : at+n : at+n]
		return a, nil
	}
	if len(b) < 64 {
		return a, corrupt("an attribute of type %X", kind)
	}
	a.lowest = int64(le.Uint64(b[16:]))
	if a.lowest == 0 { // later pieces have no sizes
		a.size, a.init = int64(le.Uint64(b[48:])), int64(le.Uint64(b[56:]))
	}
	if a.lowest < 0 || a.lowest > 1<<48 || a.size < 0 || a.init < 0 {
		return a, corrupt("an attribute of type %X", kind)
	}
	if a.flags&flagCompressed != 0 {
		if b[34] == 0 || b[34] > 8 || f.cluster<<b[34] > maxUnit {
			return a, corrupt("compression units of 2^%d clusters", b[34])
		}
		a.unit = 1 << b[34]
	}
	at := int(le.Uint16(b[32:]))
	if at < 64 || at > len(b) {
		return a, corrupt("the runs of an attribute of type %X", kind)
	}
	var err error
	a.runs, a.next, err = f.parseRuns(b[at:], a.lowest)
	return a, err
}

// parseRuns unpacks a list of runs: each has a byte of two lengths, the number
// of clusters, and the distance to the run before.
func (f *FS) parseRuns(b []byte, vcn int64) ([]run, int64, error) {
	var out []run
	lcn := int64(0)
	for len(b) > 0 && b[0] != 0 {
		nl, no := int(b[0]&15), int(b[0]>>4)
		if nl == 0 || nl > 8 || no > 8 || 1+nl+no > len(b) {
			return nil, 0, corrupt("a run of clusters")
		}
		n := signed(b[1 : 1+nl])
		r := run{vcn, -1, n}
		if no > 0 {
			lcn += signed(b[1+nl : 1+nl+no])
			if r.lcn = lcn; lcn < 0 || n > f.clusters || lcn > f.clusters-n {
				return nil, 0, corrupt("a run of %d clusters at %d", n, lcn)
			}
		}
		if n <= 0 || n > 1<<48 || vcn > 1<<48 {
			return nil, 0, corrupt("a run of %d clusters", n)
		}
		out = append(out, r)
		vcn += n
		b = b[1+nl+no:]
	}
	return out, vcn, nil
}

func signed(b []byte) int64 {
	v := int64(int8(b[len(b)-1]))
	for k := len(b) - 2; k >= 0; k-- {
		v = v<<8 | int64(b[k])
	}
	return v
}

// reader reads an attribute's content.
func (f *FS) reader(a *attr) (io.ReaderAt, error) {
	switch {
	case a.flags&flagEncrypted != 0:
		return nil, ErrEncrypted
	case a.resident != nil:
		return bytes.NewReader(a.resident), nil
	case a.size > 0 && a.next < (a.size-1)/f.cluster+1:
		return nil, corrupt("%d bytes in %d clusters", a.size, a.next)
	}
	return &stream{f: f, runs: a.runs, size: a.size, init: min(a.init, a.size), unit: a.unit}, nil
}
