package cut

import (
	"bytes"
	"context"
	"crypto/cipher"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"

	"holdfast/internal/dr"
)

const (
	// TailGuess is how much Open reads first; one read is enough for nearly every segment.
	TailGuess = 64 << 10
	// verifyChunk is how much Verify reads at once.
	verifyChunk = 4 << 20

	minSegment = 2*headerSize + footerSize + sealOverhead + sectionFixed + 2
)

// Segment is an opened segment: its description is in memory, its frames are
// not. It does not change and is safe for concurrent use. What its methods
// return by reference must not be changed.
type Segment struct {
	src     Source
	object  string
	header  storedHeader
	raw     []byte // the stored header
	footer  footer
	data    cipher.AEAD
	frames  []Frame
	extents []Extent
	commit  *Commit
	digests [][digestSize]byte
	digest  DigestKey
	chain   Hash
	table   cipher.AEAD // of the map
	mapped  []byte      // the sealed map, if it came with the first read
	aad     []byte      // of the sections
	packed  sync.Pool   // of *[]byte: buffers between decryption and decompression
}

// Format shows the segment's name and none of its keys.
func (s *Segment) Format(f fmt.State, _ rune) { io.WriteString(f, "segment "+s.object) }

// Open reads the description of a segment: its tail and nothing else, with one
// read in the usual case. The object must be the one that belongs under name.
// Of a run or map it is the tail without the map, however long that is.
//
// Errors: damage is dr.CodeObjectCorrupt, a newer format dr.CodeFormatUnsupported,
// a key that is not the segment's dr.CodeKeyMismatch; errors of src and keys
// are passed on. The memory used is a fixed multiple of the tail's stored size.
func Open(ctx context.Context, src Source, name ObjectName, keys Keyring) (*Segment, error) {
	const op = "cut.Open"
	s := &Segment{src: src, object: name.Key()}
	switch name.Class {
	case ClassCut, ClassPart, ClassTile, ClassRun, ClassMap, ClassData:
	default:
		return nil, invalid(op, "object %q is a %s, not a segment", s.object, name.Class)
	}
	tail, err := s.readTail(ctx, op, name)
	if err != nil {
		return nil, err
	}
	key, err := keys.EpochKey(ctx, s.header.Machine, s.header.KeyEpoch)
	if err != nil {
		return nil, fmt.Errorf("find key of epoch %d for object %q: %w", s.header.KeyEpoch, s.object, err)
	}
	if check, err := key.check(s.header.Segment); err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "make keys of object %q: %w", s.object, err)
	} else if check != s.header.check {
		return nil, dr.New(dr.KindForbidden, dr.CodeKeyMismatch, op, "object %q is not sealed with the key given for epoch %d", s.object, s.header.KeyEpoch)
	}
	if s.data, err = key.aead(s.header.Segment, purposeData); err == nil {
		s.digest, err = key.digestKey(s.header.Segment)
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "make keys of object %q: %w", s.object, err)
	}
	if s.header.Kind.hasMap() {
		if s.table, err = key.aead(s.header.Segment, purposeMap); err != nil {
			return nil, dr.Errorf(dr.KindInternal, op, "make keys of object %q: %w", s.object, err)
		}
	} else {
		s.chain = blake3.Sum256(tail)
	}
	if err := s.decodeTail(op, tail, key); err != nil {
		return nil, err
	}
	return s, nil
}

// read returns exactly n bytes from off.
func (s *Segment) read(ctx context.Context, op string, off, n int64) ([]byte, error) {
	b, err := s.src.ReadRange(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("read %d bytes at %d of object %q: %w", n, off, s.object, err)
	}
	if int64(len(b)) != n {
		return nil, corrupt(op, s.object, "content", off, "got %d bytes, want %d", len(b), n)
	}
	return b, nil
}

// readTail reads the tail, without the map if there is one, and parses the header and footer in it.
func (s *Segment) readTail(ctx context.Context, op string, name ObjectName) ([]byte, error) {
	size := s.src.Size()
	if size < minSegment {
		return nil, corrupt(op, s.object, "footer", 0, "%d bytes are too few for a segment", size)
	}
	from := max(0, size-TailGuess)
	b, err := s.read(ctx, op, from, size-from)
	if err != nil {
		return nil, err
	}
	foot := b[len(b)-footerSize:]
	if err := checkFooter(op, s.object, size, foot); err != nil {
		return nil, err
	}
	s.raw = bytes.Clone(b[len(b)-footerSize-headerSize : len(b)-footerSize])
	if s.header, err = decodeHeader(op, s.object, size-footerSize-headerSize, s.raw); err != nil {
		return nil, err
	}
	if own := s.header.Name(); own != name {
		return nil, corrupt(op, s.object, "header", size-footerSize-headerSize, "it belongs under the name %q", own)
	}
	if s.footer, err = decodeFooter(op, s.object, size, s.header.Kind, foot); err != nil {
		return nil, err
	}
	tail := s.footer.tail
	if s.header.Kind.hasMap() {
		if tail >= from {
			s.mapped = bytes.Clone(b[tail-from:][:s.footer.tableLen])
		}
		tail += int64(s.footer.tableLen)
	}
	if tail >= from {
		return b[tail-from:], nil
	}
	rest, err := s.read(ctx, op, tail, from-tail)
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(rest), b...), nil
}

// decodeTail opens and parses the sections.
func (s *Segment) decodeTail(op string, tail []byte, key EpochKey) error {
	s.aad = sectionAAD(s.raw, tail[len(tail)-footerSize:])
	start := s.footer.size - int64(len(tail))
	off := start
	section := func(name, purpose string, n uint32) ([]byte, error) {
		b := tail[off-start:][:n]
		at := off
		off += int64(n)
		aead, err := key.aead(s.header.Segment, purpose)
		if err != nil {
			return nil, dr.Errorf(dr.KindInternal, op, "make keys of object %q: %w", s.object, err)
		}
		plain, err := aead.Open(nil, nil, b, s.aad)
		if err != nil {
			return nil, corrupt(op, s.object, name, at, "it does not verify")
		}
		raw, err := unpackSection(plain, len(b))
		if err != nil {
			return nil, corrupt(op, s.object, name, at, "%v", err)
		}
		return raw, nil
	}
	var digests []byte
	var err error
	if s.header.Kind == KindTile && s.footer.tableLen != 0 {
		if digests, err = section("digest table", purposeTable, s.footer.tableLen); err != nil {
			return err
		}
	}
	indexAt := off
	index, err := section("index", purposeIndex, s.footer.indexLen)
	if err != nil {
		return err
	}
	counts := s.footer
	if s.header.Kind.hasMap() {
		counts.extents = 0
	}
	if s.frames, s.extents, err = decodeIndex(index, counts, s.header.frameLog2); err != nil {
		return corrupt(op, s.object, "index", indexAt, "%v", err)
	}
	switch s.header.Kind {
	case KindTile:
		if err := s.decodeTile(digests); err != nil {
			return corrupt(op, s.object, "index", indexAt, "%v", err)
		}
	case KindCut, KindRun, KindMap:
		at := off
		commit, err := section("commit", purposeCommit, s.footer.commitLen)
		if err != nil {
			return err
		}
		if s.commit, err = decodeCommit(commit, s.header.Header, s.extents); err != nil {
			return corrupt(op, s.object, "commit", at, "%v", err)
		}
		if s.header.Kind.hasMap() {
			s.chain = s.commit.Run.Hash
		}
	}
	return nil
}

// decodeTile checks that the extents are the blocks of the tile and expands the digest table.
func (s *Segment) decodeTile(table []byte) error {
	if len(table)%digestSize != 0 || len(table) > tileBlocks*digestSize {
		return fmt.Errorf("a digest table of %d bytes is not possible", len(table))
	}
	s.digests = make([][digestSize]byte, tileBlocks)
	for i := range len(table) / digestSize {
		copy(s.digests[i][:], table[i*digestSize:])
	}
	if len(s.extents) != len(s.frames) {
		return fmt.Errorf("a tile image has one extent per frame")
	}
	start, used := int64(s.header.Tile)*TileSize, make([]bool, tileBlocks)
	for i, e := range s.extents {
		in := e.Off - start
		if e.Zero || e.Disk != s.header.Disk || in < 0 || in+e.Len > TileSize || in%Block+e.Len > Block || e.Frame != uint32(i) ||
			int64(s.frames[i].RawLen) != e.Len || used[in/Block] {
			return fmt.Errorf("the range %d+%d is not a block of the tile", e.Off, e.Len)
		}
		used[in/Block] = true
	}
	for i, d := range s.digests {
		if used[i] == (d == [digestSize]byte{}) {
			return fmt.Errorf("block %d has a digest without data or data without a digest", i)
		}
	}
	return nil
}

// Name returns the object's name.
func (s *Segment) Name() ObjectName { return s.header.Name() }

// Header returns the segment's header.
func (s *Segment) Header() Header { return s.header.Header }

// Size returns the object's size in bytes.
func (s *Segment) Size() int64 { return s.footer.size }

// Commit returns the commit of a cut, run or map, nil for other kinds.
func (s *Segment) Commit() *Commit { return s.commit }

// ChainHash is the BLAKE3 of the object's tail. For a cut it is what the next
// cut's Prev.Hash must be; through the footer's tag root it covers all data too.
// Of a run or map it is the chain hash of the cut that it reaches.
func (s *Segment) ChainHash() Hash { return s.chain }

// Ref returns the reference to a cut. Of a run or map it is the position that it
// reaches, that is the cut that stood there, and never the object itself: what
// goes on from there is the same whichever of them a reader uses.
func (s *Segment) Ref() Ref { return Ref{Gen: s.header.Gen, N: s.header.N, Hash: s.chain} }

// Frames returns the frames in stored order.
func (s *Segment) Frames() []Frame { return s.frames }

// Extents returns the extents in order of disk and offset. They do not overlap.
func (s *Segment) Extents() []Extent { return s.extents }

// MapExtents is how many extents Map yields.
func (s *Segment) MapExtents() int {
	if !s.header.Kind.hasMap() {
		return 0
	}
	return int(s.footer.extents)
}

// DataBytes is the plaintext that the segment carries; of a run or map, that its map points to.
func (s *Segment) DataBytes() int64 { return s.footer.dataBytes }

// ZeroBytes is the sum of the ranges that the writer found or was told to be zero.
func (s *Segment) ZeroBytes() int64 { return s.footer.zeroBytes }

// Digests returns the digests of all 1024 blocks of a tile image, nil for other
// kinds. A block of zeros, also one beyond the disk's end, has the digest of zeros.
func (s *Segment) Digests() [][16]byte { return s.digests }

// DigestKey returns the key of Digests.
func (s *Segment) DigestKey() DigestKey { return s.digest }

// DecodeFrame decrypts, verifies and decompresses frame i, whose stored bytes
// are ciphertext. The result uses dst's memory if that is large enough;
// ciphertext is not changed and must not overlap dst.
func (s *Segment) DecodeFrame(i int, ciphertext []byte, dst []byte) ([]byte, error) {
	const op = "cut.DecodeFrame"
	if i < 0 || i >= len(s.frames) {
		return nil, invalid(op, "object %q has no frame %d", s.object, i)
	}
	f := s.frames[i]
	bad := func(what string) ([]byte, error) {
		return nil, corrupt(op, s.object, fmt.Sprintf("frame %d", i), f.Off, "%s", what)
	}
	if len(ciphertext) != int(f.CLen) {
		return bad(fmt.Sprintf("got %d bytes, want %d", len(ciphertext), f.CLen))
	}
	aad := frameAAD(make([]byte, 0, 64), s.header.Segment, uint32(i), f)
	if f.Codec == CodecNone {
		if cap(dst) < int(f.RawLen) {
			dst = make([]byte, 0, f.RawLen)
		}
		plain, err := s.data.Open(dst[:0], nil, ciphertext, aad)
		if err != nil {
			return bad("it does not verify")
		}
		return plain, nil
	}
	buf, ok := s.packed.Get().(*[]byte)
	if !ok {
		b := make([]byte, 0, Block)
		buf = &b
	}
	defer s.packed.Put(buf)
	packed, err := s.data.Open((*buf)[:0], nil, ciphertext, aad)
	if err != nil {
		return bad("it does not verify")
	}
	plain, err := unpack(f.Codec, packed, dst, int(f.RawLen))
	if err != nil {
		return bad(err.Error())
	}
	return plain, nil
}

// ReadFrame reads and decodes frame i; see DecodeFrame.
func (s *Segment) ReadFrame(ctx context.Context, i int, dst []byte) ([]byte, error) {
	const op = "cut.ReadFrame"
	if i < 0 || i >= len(s.frames) {
		return nil, invalid(op, "object %q has no frame %d", s.object, i)
	}
	b, err := s.read(ctx, op, s.frames[i].Off, int64(s.frames[i].CLen))
	if err != nil {
		return nil, err
	}
	return s.DecodeFrame(i, b, dst)
}

// Verify reads the whole object and checks every byte of it that Open has not
// checked: the header at the front, every frame, the frames' tag root, the
// digests of a tile image and the map. It needs some 4 MiB of memory, for a map as much as Map.
func (s *Segment) Verify(ctx context.Context) error {
	const op = "cut.Verify"
	front, err := s.read(ctx, op, 0, headerSize)
	if err != nil {
		return err
	}
	if !bytes.Equal(front, s.raw) {
		return corrupt(op, s.object, "header", 0, "it differs from its copy in the tail")
	}
	v := verifier{s: s, tags: blake3.New(), sum: s.digest.NewDigester()}
	for first := 0; first < len(s.frames); {
		last, n := first, int64(0)
		for last < len(s.frames) && n < verifyChunk {
			n += int64(s.frames[last].CLen)
			last++
		}
		b, err := s.read(ctx, op, s.frames[first].Off, n)
		if err != nil {
			return err
		}
		for ; first < last; first++ {
			c := b[:s.frames[first].CLen]
			if err := v.frame(first, c); err != nil {
				return err
			}
			b = b[len(c):]
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if s.header.Kind.hasMap() {
		for _, err := range s.Map(ctx) {
			if err != nil {
				return err
			}
		}
	}
	var root Hash
	v.tags.Sum(root[:0])
	if root != s.footer.tagRoot {
		return corrupt(op, s.object, "footer", s.footer.size-footerSize, "the frames do not add up to its tag root")
	}
	return nil
}

type verifier struct {
	s    *Segment
	tags *blake3.Hasher
	sum  *Digester
	dst  []byte
}

func (v *verifier) frame(i int, c []byte) (err error) {
	v.tags.Write(c[len(c)-16:])
	if v.dst, err = v.s.DecodeFrame(i, c, v.dst); err != nil || v.s.header.Kind != KindTile {
		return err
	}
	e := v.s.extents[i]
	block := make([]byte, Block)
	copy(block[e.Off%Block:], v.dst)
	if b := (e.Off % TileSize) / Block; v.sum.Sum(block) != v.s.digests[b] {
		return corrupt("cut.Verify", v.s.object, "digest table", v.s.footer.tail, "block %d has another digest", b)
	}
	return nil
}
