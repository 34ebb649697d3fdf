package cut

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"holdfast/internal/dr"
)

// Layout of a segment; docs/store-format.md has the tables.
//
//	header | frames | digest table or map | index | commit | header again | footer
//
// Everything from the end of the frames on is the tail, which is all that Open reads.
const (
	headerSize  = 128
	footerSize  = 128
	headerMagic = "HOLDFSEG"
	footerMagic = "HOLDFEND"

	// FormatVersion is the version of segments that this program writes.
	FormatVersion = 1

	suiteV1      = 1 // BLAKE3, AES-256-GCM with random nonces, HKDF-SHA256
	minFrameLog2 = 12
	maxFrameLog2 = 16
	sealOverhead = 12 + 16 // nonce and tag

	featureSeed   = 1 << 0 // the commit is a seed: never a recovery point
	featuresKnown = featureSeed

	tileBlocks = TileSize / Block
	digestSize = 16
)

var le = binary.LittleEndian

func crc(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// encode returns the stored header. The header must be valid.
func (h Header) encode(frameLog2 int, check [8]byte) []byte {
	b := make([]byte, headerSize)
	copy(b, headerMagic)
	le.PutUint16(b[8:], FormatVersion)
	b[10] = suiteV1
	b[11] = byte(frameLog2)
	b[12] = byte(h.Kind)
	le.PutUint16(b[14:], uint16(h.K))
	id, _ := machineBytes(h.Machine)
	copy(b[16:], id[:])
	copy(b[32:], h.Segment[:])
	le.PutUint64(b[48:], h.N)
	le.PutUint32(b[56:], uint32(h.Gen))
	le.PutUint32(b[60:], h.KeyEpoch)
	if h.Kind.hasMap() {
		le.PutUint64(b[64:], h.From)
	} else {
		le.PutUint32(b[64:], h.Attempt)
		le.PutUint32(b[68:], h.Tile)
	}
	le.PutUint16(b[72:], h.Disk)
	b[74] = byte(len(h.UID))
	copy(b[76:76+MaxUID], h.UID)
	copy(b[112:120], check[:])
	if h.Seed {
		le.PutUint32(b[120:], featureSeed)
	}
	le.PutUint32(b[124:], crc(b[:124]))
	return b
}

// problem says what is wrong with the header, "" if nothing.
func (h Header) problem() string {
	_, ok := machineBytes(h.Machine)
	switch {
	case !ok:
		return "the machine id is not a lower-case UUID"
	case h.Gen == 0:
		return "generation 0 does not exist"
	case h.Kind < KindCut || h.Kind > KindData:
		return "unknown " + h.Kind.String()
	case h.K < 0 || h.K > 0xffff:
		return "the part number is outside 0..65535"
	case h.Kind != KindPart && h.Attempt != 0 || h.Kind != KindPart && h.Kind != KindData && h.K != 0:
		return "only parts have an attempt, only parts and data a number"
	case h.Kind != KindTile && (h.Disk != 0 || h.Tile != 0):
		return "only tile images have a disk and a tile"
	case h.Kind != KindRun && h.From != 0:
		return "only runs go on from a position"
	case h.Kind == KindRun && !validRun(h.From, h.N):
		return "the run ends before it begins"
	case h.Seed && !h.Kind.hasCommit():
		return "only cuts, runs and maps can be a seed"
	case (h.Kind == KindCut || h.Kind == KindPart) != (h.UID == ""):
		return "cuts and parts have no uid, other segments have one"
	case h.UID != "" && !validUID(h.UID):
		return "the uid is not 1 to 36 characters of a-z, 0-9 and '-'"
	case h.Kind == KindTile && int64(h.Tile) >= MaxDisk/TileSize:
		return "the tile is beyond the greatest disk"
	}
	return ""
}

type storedHeader struct {
	Header
	frameLog2 int
	check     [8]byte
}

// decodeHeader parses a stored header found at offset off of the object.
func decodeHeader(op, object string, off int64, b []byte) (h storedHeader, err error) {
	const section = "header"
	if len(b) != headerSize || string(b[:8]) != headerMagic {
		return h, corrupt(op, object, section, off, "not a segment")
	}
	if le.Uint32(b[124:]) != crc(b[:124]) {
		return h, corrupt(op, object, section, off, "checksum does not match")
	}
	if v := le.Uint16(b[8:]); v != FormatVersion {
		return h, unsupported(op, object, "segment format version %d; this program knows %d", v, FormatVersion)
	}
	if b[10] != suiteV1 {
		return h, unsupported(op, object, "cipher suite %d; this program knows %d", b[10], suiteV1)
	}
	features := le.Uint32(b[120:])
	if f := features &^ featuresKnown; f != 0 {
		return h, unsupported(op, object, "required feature bits %#x are unknown to this program", f)
	}
	uidLen := int(b[74])
	if uidLen > MaxUID || b[13] != 0 || b[75] != 0 || !isZero(b[76+uidLen:76+MaxUID]) {
		return h, corrupt(op, object, section, off, "reserved bytes are in use")
	}
	h.Header = Header{
		Kind:     Kind(b[12]),
		Machine:  machineID([16]byte(b[16:32])),
		Gen:      dr.Generation(le.Uint32(b[56:])),
		N:        le.Uint64(b[48:]),
		Segment:  [16]byte(b[32:48]),
		KeyEpoch: le.Uint32(b[60:]),
		Attempt:  le.Uint32(b[64:]),
		K:        int(le.Uint16(b[14:])),
		Disk:     le.Uint16(b[72:]),
		Tile:     le.Uint32(b[68:]),
		UID:      string(b[76 : 76+uidLen]),
		Seed:     features&featureSeed != 0,
	}
	if h.Kind.hasMap() {
		h.Attempt, h.Tile, h.From = 0, 0, le.Uint64(b[64:])
	}
	h.frameLog2, h.check = int(b[11]), [8]byte(b[112:120])
	if p := h.problem(); p != "" {
		return h, corrupt(op, object, section, off, "%s", p)
	}
	if h.frameLog2 < minFrameLog2 || h.frameLog2 > maxFrameLog2 || (h.Kind == KindTile || h.Kind.hasMap()) && h.frameLog2 != maxFrameLog2 {
		return h, corrupt(op, object, section, off, "frame size 2^%d is not allowed", h.frameLog2)
	}
	return h, nil
}

// footer is the last thing in a segment: where the sections are and what the frames must add up to.
type footer struct {
	size      int64  // of the object
	tail      int64  // end of the frames
	tableLen  uint32 // of the digest table or the map
	indexLen  uint32
	commitLen uint32
	frames    uint32
	extents   uint32 // of the map, if there is one, else of the index
	dataBytes int64
	zeroBytes int64
	tagRoot   Hash // BLAKE3 of all frames' tags in order
}

func (f footer) encode() []byte {
	b := make([]byte, footerSize)
	copy(b, footerMagic)
	le.PutUint64(b[8:], uint64(f.size))
	le.PutUint64(b[16:], uint64(f.tail))
	le.PutUint32(b[24:], f.tableLen)
	le.PutUint32(b[28:], f.indexLen)
	le.PutUint32(b[32:], f.commitLen)
	le.PutUint32(b[36:], f.frames)
	le.PutUint32(b[40:], f.extents)
	le.PutUint64(b[48:], uint64(f.dataBytes))
	le.PutUint64(b[56:], uint64(f.zeroBytes))
	copy(b[64:], f.tagRoot[:])
	le.PutUint32(b[124:], crc(b[:124]))
	return b
}

// checkFooter is the part of parsing a footer that holds for every format version.
func checkFooter(op, object string, size int64, b []byte) error {
	off := size - footerSize
	switch {
	case string(b[:8]) != footerMagic:
		return corrupt(op, object, "footer", off, "the object does not end as a segment does; it may be cut short")
	case le.Uint32(b[124:]) != crc(b[:124]):
		return corrupt(op, object, "footer", off, "checksum does not match")
	case le.Uint64(b[8:]) != uint64(size):
		return corrupt(op, object, "footer", off, "the object has %d bytes, its footer says %d", size, le.Uint64(b[8:]))
	}
	return nil
}

// decodeFooter parses a footer that passed checkFooter.
func decodeFooter(op, object string, size int64, kind Kind, b []byte) (f footer, err error) {
	bad := func(format string, args ...any) (footer, error) {
		return footer{}, corrupt(op, object, "footer", size-footerSize, format, args...)
	}
	f = footer{
		size:      size,
		tableLen:  le.Uint32(b[24:]),
		indexLen:  le.Uint32(b[28:]),
		commitLen: le.Uint32(b[32:]),
		frames:    le.Uint32(b[36:]),
		extents:   le.Uint32(b[40:]),
		tagRoot:   Hash(b[64:96]),
	}
	tail, data, zero := le.Uint64(b[16:]), le.Uint64(b[48:]), le.Uint64(b[56:])
	if tail < headerSize || tail > uint64(size) || data > uint64(MaxDisk)*2 || zero > uint64(MaxDisk)*(1<<12) {
		return bad("lengths are out of range")
	}
	f.tail, f.dataBytes, f.zeroBytes = int64(tail), int64(data), int64(zero)
	if f.tail+int64(f.tableLen)+int64(f.indexLen)+int64(f.commitLen)+headerSize+footerSize != size {
		return bad("the sections do not add up to the object's %d bytes", size)
	}
	table := kind.hasMap() || kind == KindTile && f.frames != 0
	if f.indexLen == 0 || (f.commitLen != 0) != kind.hasCommit() || (f.tableLen != 0) != table || kind.hasMap() && f.frames != 0 {
		return bad("a %s does not have these sections", kind)
	}
	if f.frames > MaxFrames || int64(f.frames)*(sealOverhead+1) > f.tail-headerSize || f.extents > MaxExtents {
		return bad("%d frames and %d extents do not fit the object", f.frames, f.extents)
	}
	if !bytes.Equal(b[44:48], make([]byte, 4)) || !isZero(b[96:124]) {
		return bad("reserved bytes are in use")
	}
	return f, nil
}

// frameAAD is what a frame is bound to besides its key: its place in the
// segment, the first range that it holds, its plaintext length and its codec.
func frameAAD(dst []byte, segment [16]byte, index uint32, f Frame) []byte {
	dst = append(dst[:0], segment[:]...)
	dst = le.AppendUint32(dst, index)
	dst = le.AppendUint16(dst, f.disk)
	dst = le.AppendUint64(dst, uint64(f.lba))
	dst = le.AppendUint32(dst, f.RawLen)
	return append(dst, byte(f.Codec))
}

// sectionAAD is what sections are bound to: the stored header and footer, and
// thereby the object's identity, size and layout and all frames' tags.
func sectionAAD(header, footer []byte) []byte { return append(bytes.Clone(header), footer...) }
