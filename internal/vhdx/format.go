package vhdx

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf16"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40

	// MaxSize is the largest virtual disk, in bytes.
	MaxSize = 64 * tib
	// MinBlock and MaxBlock bound the block size, a power of two.
	MinBlock, MaxBlock = mib, 256 * mib

	pageSize    = 4096
	headerA     = 64 * kib
	headerB     = 128 * kib
	regionA     = 192 * kib
	regionB     = 256 * kib
	tableSize   = 64 * kib
	maxEntries  = 2047
	bitmapBlock = mib
	chunkBits   = int64(1) << 23 // sectors that one bitmap block covers
	maxLog      = 64 * mib       // larger logs are refused; Windows makes 1 MiB
	maxFile     = 2 * MaxSize    // no honest file is larger
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	regionBAT      = mustGUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
	regionMetadata = mustGUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")

	itemFileParameters = mustGUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
	itemSize           = mustGUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
	itemDiskID         = mustGUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
	itemLogicalSector  = mustGUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
	itemPhysicalSector = mustGUID("CDA348C7-445D-4471-9CC9-E9885251C556")
	itemParentLocator  = mustGUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
	locatorVHDX        = mustGUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
)

// States of payload blocks, [MS-VHDX] 2.5.1.1, and of bitmap blocks (only the first and full), 2.5.1.2.
const (
	stateNotPresent = 0
	stateUndefined  = 1
	stateZero       = 2
	stateUnmapped   = 3
	stateFull       = 6
	statePartial    = 7
)

// checksum is the CRC-32C of b with the field at offset 4 taken as zero.
func checksum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:4])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(c, castagnoli, b[8:])
}

func putChecksum(b []byte) { le.PutUint32(b[4:], checksum(b)) }

// header is [MS-VHDX] 2.2.2.
type header struct {
	sequence             uint64
	fileWrite, dataWrite GUID
	log                  GUID
	logVersion, version  uint16
	logLength, logOffset int64
}

func (h header) encode() []byte {
	b := make([]byte, pageSize)
	copy(b, "head")
	le.PutUint64(b[8:], h.sequence)
	copy(b[16:], h.fileWrite[:])
	copy(b[32:], h.dataWrite[:])
	copy(b[48:], h.log[:])
	le.PutUint16(b[64:], h.logVersion)
	le.PutUint16(b[66:], h.version)
	le.PutUint32(b[68:], uint32(h.logLength))
	le.PutUint64(b[72:], uint64(h.logOffset))
	putChecksum(b)
	return b
}

// decodeHeader reports false if signature or checksum are wrong.
func decodeHeader(b []byte) (header, bool) {
	if string(b[:4]) != "head" || le.Uint32(b[4:]) != checksum(b) {
		return header{}, false
	}
	return header{
		sequence: le.Uint64(b[8:]), fileWrite: GUID(b[16:32]), dataWrite: GUID(b[32:48]), log: GUID(b[48:64]),
		logVersion: le.Uint16(b[64:]), version: le.Uint16(b[66:]),
		logLength: int64(le.Uint32(b[68:])), logOffset: int64(le.Uint64(b[72:])),
	}, true
}

// region is an entry of the region table: a range of the file.
type region struct{ off, length int64 }

func (r region) end() int64 { return r.off + r.length }

func (r region) overlaps(off, n int64) bool { return off < r.end() && r.off < off+n }

// aligned reports whether the range is one that the format allows for a region or the log.
func (r region) aligned() bool {
	return r.off >= mib && r.off%mib == 0 && r.length > 0 && r.length%mib == 0 && r.off <= maxFile
}

type regions struct{ bat, metadata region }

func (r regions) encode() []byte {
	b := make([]byte, tableSize)
	copy(b, "regi")
	le.PutUint32(b[8:], 2)
	for i, e := range []struct {
		id GUID
		region
	}{{regionBAT, r.bat}, {regionMetadata, r.metadata}} {
		p := b[16+32*i:]
		copy(p, e.id[:])
		le.PutUint64(p[16:], uint64(e.off))
		le.PutUint32(p[24:], uint32(e.length))
		le.PutUint32(p[28:], 1)
	}
	putChecksum(b)
	return b
}

// decodeRegions reads a region table whose checksum was found right, [MS-VHDX] 2.2.3.
// taken is the log: no region may overlap it or another one.
func decodeRegions(b []byte, at int64, taken region) (regions, error) {
	var out regions
	n := le.Uint32(b[8:])
	if n > maxEntries {
		return out, damaged("region table", at, "%d entries, at most %d are allowed", n, maxEntries)
	}
	seen := map[GUID]bool{}
	used := []region{taken}
	for i := range int(n) {
		p := b[16+32*i:]
		off := at + 16 + 32*int64(i)
		id := GUID(p[:16])
		r := region{off: int64(le.Uint64(p[16:])), length: int64(le.Uint32(p[24:]))}
		if seen[id] {
			return out, damaged("region table", off, "region %s stands twice", id)
		}
		seen[id] = true
		if !r.aligned() {
			return out, damaged("region table", off, "region %s has offset %d and length %d", id, r.off, r.length)
		}
		for _, u := range used {
			if u.overlaps(r.off, r.length) {
				return out, damaged("region table", off, "region %s overlaps another one or the log", id)
			}
		}
		used = append(used, r)
		switch {
		case id == regionBAT:
			out.bat = r
		case id == regionMetadata:
			out.metadata = r
		case le.Uint32(p[28:])&1 != 0:
			return out, failure("region table", off, ErrUnsupported, "unknown required region %s", id)
		}
	}
	if out.bat.length == 0 || out.metadata.length == 0 {
		return out, damaged("region table", at, "the BAT or the metadata region is missing")
	}
	return out, nil
}

// metadata is what the metadata region tells, [MS-VHDX] 2.6.
type metadata struct {
	blockSize       int64
	leaveAllocated  bool
	hasParent       bool
	size            int64
	id              GUID
	logical, physic int
	parent          Locator
	// Places inside the region, to change items later.
	sizeAt, locatorEntry int64
	free                 int64 // first byte behind all items
}

// item flags, [MS-VHDX] 2.6.1.2
const (
	flagUser, flagVirtualDisk, flagRequired = 1, 2, 4
)

func (m metadata) encode() []byte {
	b := make([]byte, mib)
	copy(b, "metadata")
	n, at := 0, int(tableSize)
	add := func(id GUID, flags uint32, value []byte) {
		p := b[32+32*n:]
		copy(p, id[:])
		le.PutUint32(p[16:], uint32(at))
		le.PutUint32(p[20:], uint32(len(value)))
		le.PutUint32(p[24:], flags)
		copy(b[at:], value)
		at += (len(value) + 7) &^ 7
		n++
	}
	params := uint64(m.blockSize)
	if m.leaveAllocated {
		params |= 1 << 32
	}
	if m.hasParent {
		params |= 2 << 32
	}
	add(itemFileParameters, flagRequired, le.AppendUint64(nil, params))
	add(itemSize, flagRequired|flagVirtualDisk, le.AppendUint64(nil, uint64(m.size)))
	add(itemDiskID, flagRequired|flagVirtualDisk, m.id[:])
	add(itemLogicalSector, flagRequired|flagVirtualDisk, le.AppendUint32(nil, uint32(m.logical)))
	add(itemPhysicalSector, flagRequired|flagVirtualDisk, le.AppendUint32(nil, uint32(m.physic)))
	if m.hasParent {
		add(itemParentLocator, flagRequired, m.parent.encode())
	}
	le.PutUint16(b[10:], uint16(n))
	return b
}

type item struct {
	id         GUID
	user       bool
	at, length int64 // in the region
	entryAt    int64 // in the region
}

// decodeItems reads the metadata table (64 KiB) of a region of the given length.
func decodeItems(b []byte, at, length int64) ([]item, error) {
	if string(b[:8]) != "metadata" {
		return nil, damaged("metadata", at, "the signature is wrong")
	}
	n := int(le.Uint16(b[10:]))
	if n > maxEntries {
		return nil, damaged("metadata", at, "%d entries, at most %d are allowed", n, maxEntries)
	}
	known := map[GUID]int64{itemFileParameters: 8, itemSize: 8, itemDiskID: 16, itemLogicalSector: 4, itemPhysicalSector: 4, itemParentLocator: 0}
	type key struct {
		id   GUID
		user bool
	}
	seen := map[key]bool{}
	var out []item
	users := 0
	for i := range n {
		p := b[32+32*i:]
		off := at + 32 + 32*int64(i)
		flags := le.Uint32(p[24:])
		it := item{id: GUID(p[:16]), user: flags&flagUser != 0, at: int64(le.Uint32(p[16:])), length: int64(le.Uint32(p[20:])), entryAt: 32 + 32*int64(i)}
		if k := (key{it.id, it.user}); seen[k] {
			return nil, damaged("metadata", off, "item %s stands twice", it.id)
		} else {
			seen[k] = true
		}
		if it.length > mib || it.length > 0 && (it.at < tableSize || it.at+it.length > length) || it.length == 0 && it.at != 0 {
			return nil, damaged("metadata", off, "item %s lies at %d with length %d", it.id, it.at, it.length)
		}
		want, ok := known[it.id]
		if !ok || it.user {
			if flags&flagRequired != 0 {
				return nil, failure("metadata", off, ErrUnsupported, "unknown required item %s", it.id)
			}
		} else if want != 0 && it.length != want || it.length == 0 {
			return nil, damaged("metadata", off, "item %s has %d bytes", it.id, it.length)
		}
		if it.user {
			users++
		}
		out = append(out, it)
	}
	if users > 1024 {
		return nil, damaged("metadata", at, "%d user items, at most 1024 are allowed", users)
	}
	return out, apart(out, at)
}

// apart refuses items that overlap.
func apart(items []item, at int64) error {
	items = slices.SortedFunc(slices.Values(items), func(a, b item) int { return cmp.Compare(a.at, b.at) })
	end := int64(0)
	for _, it := range items {
		if it.length > 0 && it.at < end {
			return damaged("metadata", at+it.entryAt, "item %s overlaps another one", it.id)
		}
		end = max(end, it.at+it.length)
	}
	return nil
}

// readMetadata reads table and items of the region.
func readMetadata(r readerAt, reg region) (metadata, error) {
	var m metadata
	table := make([]byte, tableSize)
	if err := r.ReadAt(table, reg.off); err != nil {
		return m, err
	}
	items, err := decodeItems(table, reg.off, reg.length)
	if err != nil {
		return m, err
	}
	m.free = tableSize
	found := map[GUID]bool{}
	for _, it := range items {
		m.free = max(m.free, it.at+it.length)
		if it.user {
			continue
		}
		switch it.id {
		case itemFileParameters, itemSize, itemDiskID, itemLogicalSector, itemPhysicalSector, itemParentLocator:
		default:
			continue
		}
		found[it.id] = true
		v := make([]byte, it.length)
		if err := r.ReadAt(v, reg.off+it.at); err != nil {
			return m, err
		}
		switch it.id {
		case itemFileParameters:
			m.blockSize = int64(le.Uint32(v))
			flags := le.Uint32(v[4:])
			m.leaveAllocated, m.hasParent = flags&1 != 0, flags&2 != 0
		case itemSize:
			m.size, m.sizeAt = int64(le.Uint64(v)), it.at
		case itemDiskID:
			m.id = GUID(v)
		case itemLogicalSector:
			m.logical = int(le.Uint32(v))
		case itemPhysicalSector:
			m.physic = int(le.Uint32(v))
		case itemParentLocator:
			m.locatorEntry = it.entryAt
			if m.parent, err = decodeLocator(v, reg.off+it.at); err != nil {
				return m, err
			}
		}
	}
	for _, id := range []GUID{itemFileParameters, itemSize, itemDiskID, itemLogicalSector, itemPhysicalSector} {
		if !found[id] {
			return m, damaged("metadata", reg.off, "item %s is missing", id)
		}
	}
	if m.hasParent && !found[itemParentLocator] {
		return m, damaged("metadata", reg.off, "a differencing file without parent locator")
	}
	return m, m.check(reg.off)
}

func (m metadata) check(at int64) error {
	switch {
	case m.blockSize < MinBlock || m.blockSize > MaxBlock || bits.OnesCount64(uint64(m.blockSize)) != 1:
		return damaged("metadata", at, "block size %d", m.blockSize)
	case m.logical != 512 && m.logical != 4096:
		return damaged("metadata", at, "logical sector size %d", m.logical)
	case m.physic != 512 && m.physic != 4096:
		return damaged("metadata", at, "physical sector size %d", m.physic)
	case m.size <= 0 || m.size > MaxSize || m.size%int64(m.logical) != 0:
		return damaged("metadata", at, "virtual size %d", m.size)
	}
	return nil
}

func (m metadata) chunkRatio() int64 { return chunkBits * int64(m.logical) / m.blockSize }

func (m metadata) blocks() int64 { return (m.size + m.blockSize - 1) / m.blockSize }

// batEntries is the number of entries that the BAT needs, [MS-VHDX] 2.5.
func (m metadata) batEntries() int64 {
	n, ratio := m.blocks(), m.chunkRatio()
	if m.hasParent {
		return (n + ratio - 1) / ratio * (ratio + 1)
	}
	return n + (n-1)/ratio
}

func (m metadata) layout() Layout {
	switch {
	case m.hasParent:
		return Differencing
	case m.leaveAllocated:
		return Fixed
	}
	return Dynamic
}

func (l Locator) encode() []byte {
	type pair struct{ k, v string }
	pairs := []pair{{"parent_linkage", "{" + l.Linkage.String() + "}"}}
	if !l.Linkage2.IsZero() {
		pairs = append(pairs, pair{"parent_linkage2", "{" + l.Linkage2.String() + "}"})
	}
	for _, p := range []pair{{"relative_path", l.Relative}, {"volume_path", l.Volume}, {"absolute_win32_path", l.Absolute}} {
		if p.v != "" {
			pairs = append(pairs, p)
		}
	}
	b := make([]byte, 20+12*len(pairs))
	copy(b, locatorVHDX[:])
	le.PutUint16(b[18:], uint16(len(pairs)))
	for i, p := range pairs {
		k, v := encodeUTF16(p.k), encodeUTF16(p.v)
		e := b[20+12*i:]
		le.PutUint32(e, uint32(len(b)))
		le.PutUint32(e[4:], uint32(len(b)+len(k)))
		le.PutUint16(e[8:], uint16(len(k)))
		le.PutUint16(e[10:], uint16(len(v)))
		b = append(append(b, k...), v...)
	}
	return b
}

// check refuses paths that the 16-bit lengths of the locator cannot hold.
func (l Locator) check() error {
	for _, s := range []string{l.Relative, l.Volume, l.Absolute} {
		if n := len(encodeUTF16(s)); n > 1<<16-2 || strings.ContainsRune(s, 0) {
			return fmt.Errorf("a parent path of %d bytes: %w", n, ErrRange)
		}
	}
	return nil
}

// decodeLocator reads [MS-VHDX] 2.6.2.6. Unknown keys are ignored.
func decodeLocator(b []byte, at int64) (Locator, error) {
	var l Locator
	if len(b) < 20 {
		return l, damaged("parent locator", at, "%d bytes", len(b))
	}
	if id := GUID(b[:16]); id != locatorVHDX {
		return l, failure("parent locator", at, ErrUnsupported, "unknown locator type %s", id)
	}
	n := int(le.Uint16(b[18:]))
	if 20+12*n > len(b) {
		return l, damaged("parent locator", at, "%d entries in %d bytes", n, len(b))
	}
	seen := map[string]bool{}
	total := 0
	for i := range n {
		e := b[20+12*i:]
		if total += int(le.Uint16(e[8:])) + int(le.Uint16(e[10:])); total > len(b) {
			return l, damaged("parent locator", at, "entries overlap")
		}
		k, ok1 := decodeUTF16(b, le.Uint32(e), le.Uint16(e[8:]))
		v, ok2 := decodeUTF16(b, le.Uint32(e[4:]), le.Uint16(e[10:]))
		off := at + 20 + 12*int64(i)
		if !ok1 || !ok2 {
			return l, damaged("parent locator", off, "entry %d lies outside the item", i)
		}
		if seen[k] {
			return l, damaged("parent locator", off, "key %q stands twice", k)
		}
		seen[k] = true
		var err error
		switch k {
		case "parent_linkage":
			l.Linkage, err = ParseGUID(v)
		case "parent_linkage2":
			l.Linkage2, err = ParseGUID(v)
		case "relative_path":
			l.Relative = v
		case "volume_path":
			l.Volume = v
		case "absolute_win32_path":
			l.Absolute = v
		}
		if err != nil {
			return l, damaged("parent locator", off, "%s is no GUID: %q", k, v)
		}
	}
	if !seen["parent_linkage"] {
		return l, damaged("parent locator", at, "parent_linkage is missing")
	}
	return l, nil
}

func encodeUTF16(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, u)
	}
	return b
}

func decodeUTF16(b []byte, off uint32, n uint16) (string, bool) {
	if n%2 != 0 || int64(off)+int64(n) > int64(len(b)) {
		return "", false
	}
	u := make([]uint16, n/2)
	for i := range u {
		u[i] = le.Uint16(b[int(off)+2*i:])
	}
	return string(utf16.Decode(u)), true
}
