package cut

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"holdfast/internal/dr"
)

// These tests hold the key and seal what no writer would: the decoders behind the seal must not trust it either.

func FuzzIndex(f *testing.F) {
	frames := []Frame{{CLen: 4096 + 28, RawLen: 4096, Codec: CodecNone}, {CLen: 999, RawLen: 65536, Codec: CodecZstd}}
	ext := []Extent{
		{Disk: 0, Off: 0, Len: 4096, Frame: 1, FrameOff: 0}, {Disk: 0, Off: 8192, Len: 1 << 30, Zero: true},
		{Disk: 9, Off: 4096, Len: 4096, Frame: 0}, {Disk: 9, Off: 1 << 40, Len: 100, Frame: 1, FrameOff: 4096},
	}
	f.Add(encodeIndex(frames, ext, Block), uint32(2), uint32(4), int64(headerSize+4096+28+999))
	f.Add(encodeIndex(nil, nil, Block), uint32(0), uint32(0), int64(headerSize))
	f.Fuzz(func(t *testing.T, raw []byte, nf, ne uint32, tail int64) {
		fr, ex, err := decodeIndex(raw, footer{frames: nf, extents: ne, tail: tail}, maxFrameLog2)
		if err != nil {
			return
		}
		for i, e := range ex {
			if e.Len <= 0 || e.Off%Unit != 0 || e.End() > MaxDisk || i > 0 && ex[i-1].Disk == e.Disk && ex[i-1].End() > e.Off {
				t.Fatalf("extent %d: %+v after %+v", i, e, ex[max(0, i-1)])
			}
			if !e.Zero && int64(e.FrameOff)+e.Len > int64(fr[e.Frame].RawLen) {
				t.Fatalf("extent %+v is outside frame %+v", e, fr[e.Frame])
			}
		}
		fr2, ex2, err := decodeIndex(encodeIndex(fr, ex, Block), footer{frames: nf, extents: ne, tail: tail}, maxFrameLog2)
		if err != nil || !reflect.DeepEqual(fr, fr2) || !reflect.DeepEqual(ex, ex2) {
			t.Fatalf("the index does not survive a round trip: %v", err)
		}
	})
}

func hostileCommit() *Commit {
	return &Commit{Gen: 3, N: 42, Base: true, Time: time.Unix(1795316400, 0).UTC(), Consistency: dr.CrashConsistent,
		Disks: []Disk{{Index: 1, ID: "vda", Size: 1 << 30}}, Tiles: []TileRef{{Disk: 1, Tile: 2, UID: "u", Gen: 1, N: 3, Size: 4}},
		Parts: []PartRef{{Attempt: 1, K: 2, Size: 3}}, VM: VMRecord{Name: "a", Config: map[string][]byte{"x": []byte("yz"), "e": {}}}}
}

func FuzzCommit(f *testing.F) {
	h := Header{Kind: KindCut, Gen: 3, N: 42}
	good, err := encodeCommit(hostileCommit(), h, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	run, rh := hostileCommit(), Header{Kind: KindRun, Machine: "0f8fad5b-d9cb-469f-a165-70867728950e", Gen: 3, N: 42, UID: "u", Seed: true}
	run.Parts, run.Seed, run.Run = nil, true, &RunInfo{Hash: Hash{1}, Cuts: 9, Made: run.Time}
	run.Segments = []SegmentRef{{Class: ClassCut, Gen: 3, N: 42, Size: 1, Hash: Hash{1}}, {Class: ClassData, Gen: 1, N: 2, K: 3, UID: "x", Size: 4, Hash: Hash{5}}}
	run.Group = &Group{ID: "g", Members: []dr.MachineID{rh.Machine}}
	if good, err = encodeCommit(run, rh, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	for _, doc := range []string{"null", "{}", `{"parts":-1}`, `{"parts":9007199254740992,"tiles":1}`, `{"gen":3,"n":42,"config":[{"name":"a","size":-5}]}`} {
		f.Add(append(binary.LittleEndian.AppendUint32(nil, uint32(len(doc))), doc...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, h := range []Header{h, rh} {
			c, err := decodeCommit(b, h, nil)
			if err != nil {
				continue
			}
			again, err := encodeCommit(c, h, nil)
			if err != nil {
				t.Fatalf("a decoded commit does not encode: %v", err)
			}
			if _, err := decodeCommit(again, h, nil); err != nil {
				t.Fatalf("a commit does not survive a round trip: %v", err)
			}
		}
	})
}

func FuzzSection(f *testing.F) {
	enc, err := newZstd(1)
	if err != nil {
		f.Fatal(err)
	}
	for _, raw := range [][]byte{nil, []byte("abc"), make([]byte, 3<<20)} {
		p, err := packSection(raw, enc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if raw, err := unpackSection(p, len(p)+sealOverhead); err == nil && len(raw) > sectionSlack+sectionRatio*(len(p)+sealOverhead) {
			t.Fatalf("%d bytes out of %d", len(raw), len(p))
		}
	})
}

func TestSectionPadding(t *testing.T) {
	enc, err := newZstd(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, sectionSlack - 1, sectionSlack, sectionSlack + 1, 1 << 20, 5<<20 + 3} {
		for _, fill := range []byte{0, 1} {
			raw := bytes.Repeat([]byte{fill}, n)
			p, err := packSection(raw, enc)
			if err != nil {
				t.Fatal(err)
			}
			got, err := unpackSection(p, len(p)+sealOverhead)
			if err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%d bytes: %v", n, err)
			}
			if n > 1<<20-1 && len(p) > n/8 {
				t.Errorf("%d equal bytes are packed into %d", n, len(p))
			}
		}
	}
}

// TestGoldenBytes makes the deterministic bytes of the golden segments again:
// what is stored today is what was stored when they were made.
func TestGoldenBytes(t *testing.T) {
	t.Parallel()
	key := EpochKey{}
	for i := range key {
		key[i] = byte(i * 7)
	}
	files, err := filepath.Glob("testdata/v1/*.bin")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d golden segments, %v", len(files), err)
	}
	for _, file := range files {
		obj, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		h, err := decodeHeader("", file, 0, obj[:headerSize])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(h.encode(h.frameLog2, h.check), obj[:headerSize]) {
			t.Errorf("%s: the header is now encoded as % x", file, h.encode(h.frameLog2, h.check))
		}
		f, err := decodeFooter("", file, int64(len(obj)), h.Kind, obj[len(obj)-footerSize:])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.encode(), obj[len(obj)-footerSize:]) {
			t.Errorf("%s: the footer is now encoded as % x", file, f.encode())
		}
		s, err := Open(context.Background(), Bytes(obj), h.Name(), allKeys(key))
		if err != nil {
			t.Fatal(err)
		}
		off := f.tail + int64(f.tableLen)
		section := func(purpose string, n uint32) []byte {
			aead, err := key.aead(h.Segment, purpose)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := aead.Open(nil, nil, obj[off:off+int64(n)], s.aad)
			if err != nil {
				t.Fatal(err)
			}
			off += int64(n)
			raw, err := unpackSection(plain, int(n))
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		if raw := section(purposeIndex, f.indexLen); !bytes.Equal(raw, encodeIndex(s.frames, s.extents, 1<<h.frameLog2)) {
			t.Errorf("%s: the index is now encoded otherwise", file)
		}
		if h.Kind.hasCommit() {
			raw := section(purposeCommit, f.commitLen)
			if again, err := encodeCommit(s.commit, h.Header, s.extents); err != nil || !bytes.Equal(raw, again) {
				t.Errorf("%s: the commit is now encoded as\n%s, want\n%s, %v", file, again, raw, err)
			}
		}
		if h.Kind.hasMap() {
			plain, err := s.openMap(context.Background(), "")
			if err != nil {
				t.Fatal(err)
			}
			stream, err := openMapStream(plain)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.fill(); err != nil {
				t.Fatal(err)
			}
			sizes, _ := s.commit.diskSizes()
			enc, again := mapEncoder{newMapState(len(s.commit.Segments), sizes)}, []byte(nil)
			for e := range s.Map(context.Background()) {
				again, _ = enc.append(again, e)
			}
			if !bytes.Equal(again, stream.b) {
				t.Errorf("%s: the map is now encoded as % x, want % x", file, again, stream.b)
			}
			stream.close()
		}
	}
}

type allKeys EpochKey

func (k allKeys) EpochKey(context.Context, dr.MachineID, uint32) (EpochKey, error) {
	return EpochKey(k), nil
}

func FuzzMap(f *testing.F) {
	sizes := map[uint16]int64{0: 1<<30 + 5, 7: MaxDisk}
	const segments = 3
	enc := mapEncoder{newMapState(segments, sizes)}
	var good []byte
	for _, e := range []MapExtent{
		{Off: 0, Len: Unit, Segment: 1, Frame: 5, FrameOff: Unit}, {Off: Unit, Len: Unit, Segment: 1, Frame: 5, FrameOff: 2 * Unit}, {Off: 5 * Unit, Len: Block, Segment: 2},
		{Off: 1 << 30, Len: 5, Zero: true}, {Disk: 7, Off: 1 << 40, Len: 1 << 41, Zero: true}, {Disk: 7, Off: 1 << 49, Len: Unit, Segment: 1, Frame: 4},
	} {
		var err error
		if good, err = enc.append(good, e); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(good, uint8(6))
	f.Add([]byte{extZero, 0, 1}, uint8(1))
	f.Add([]byte{extDisk | mapSegment | extPlaced, 7, 1, 1, 2, 3, 4}, uint8(1))
	f.Fuzz(func(t *testing.T, raw []byte, n uint8) {
		d, c := mapDecoder{newMapState(segments, sizes)}, &cursor{b: raw}
		enc, again := mapEncoder{newMapState(segments, sizes)}, []byte(nil)
		var got []MapExtent
		for range n {
			e := d.next(c)
			if c.err != nil {
				return
			}
			if i := len(got) - 1; i >= 0 && (got[i].Disk > e.Disk || got[i].Disk == e.Disk && got[i].End() > e.Off) {
				t.Fatalf("%+v follows %+v", e, got[i])
			}
			if e.Off < 0 || e.Off%Unit != 0 || e.Len <= 0 || e.End() > sizes[e.Disk] || e.Len%Unit != 0 && e.End() != sizes[e.Disk] ||
				!e.Zero && (e.Segment < 0 || e.Segment >= segments || e.Frame >= MaxFrames || int64(e.FrameOff)+e.Len > Block || e.FrameOff%Unit != 0) {
				t.Fatalf("extent %+v is not possible", e)
			}
			got = append(got, e)
			var err error
			if again, err = enc.append(again, e); err != nil {
				t.Fatalf("a decoded extent does not encode: %v", err)
			}
		}
		d, c = mapDecoder{newMapState(segments, sizes)}, &cursor{b: again}
		for i := range got {
			if e := d.next(c); c.err != nil || e != got[i] {
				t.Fatalf("extent %d does not survive a round trip: %+v, want %+v, %v", i, e, got[i], c.err)
			}
		}
		if len(c.b) != 0 {
			t.Fatalf("%d bytes are left", len(c.b))
		}
	})
}

// FuzzMapSection decodes the plaintext of a map section.
func FuzzMapSection(f *testing.F) {
	commit := hostileCommit()
	commit.Parts, commit.Segments = nil, []SegmentRef{{Class: ClassCut, Gen: 1, N: 1, Size: 1, Hash: Hash{1}}}
	claim := func(codec Codec, raw int, packed []byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(raw))
		b = append(b, byte(codec))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(packed)))
		return append(b, packed...)
	}
	enc, err := newZstd(1)
	if err != nil {
		f.Fatal(err)
	}
	raw := []byte{extZero | extDisk, 1, 0, 1, 0, 1, 3}
	f.Add(claim(CodecNone, len(raw), raw), uint32(2), int64(3*Unit), int64(Unit))
	f.Add(claim(CodecZstd, len(raw), enc.EncodeAll(raw, nil)), uint32(2), int64(3*Unit), int64(Unit))
	f.Fuzz(func(t *testing.T, plain []byte, n uint32, data, zero int64) {
		s := &Segment{commit: commit, footer: footer{extents: n, dataBytes: data, zeroBytes: zero}}
		var sum Counts
		count := uint32(0)
		err := s.eachExtent(context.Background(), plain, func(e MapExtent, err error) bool {
			if err != nil {
				t.Fatal("errors are returned")
			}
			count++
			if e.Zero {
				sum.ZeroBytes += e.Len
			} else {
				sum.DataBytes += e.Len
			}
			return true
		})
		if err == nil && (count != n || sum.DataBytes != data || sum.ZeroBytes != zero) {
			t.Fatalf("%d extents, %+v", count, sum)
		}
	})
}

// TestHostileRunCommits reads the commit of a run under headers that it does not belong to.
func TestHostileRunCommits(t *testing.T) {
	t.Parallel()
	h := Header{Kind: KindRun, Gen: 3, N: 42, UID: "u", From: 7}
	c := hostileCommit()
	c.Parts, c.Base, c.Prev = nil, false, Ref{Gen: 2, N: 7, Hash: Hash{7}}
	c.Run = &RunInfo{Hash: Hash{1}, Cuts: 35, Made: c.Time}
	good, err := encodeCommit(c, h, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeCommit(good, h, nil); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(h *Header){
		"a cut": func(h *Header) { h.Kind, h.From = KindCut, 0 }, "a map": func(h *Header) { h.Kind, h.From = KindMap, 0 }, "complete": func(h *Header) { h.From = 0 },
		"from elsewhere": func(h *Header) { h.From = 8 }, "a seed": func(h *Header) { h.Seed = true }, "another cut": func(h *Header) { h.N++ },
	} {
		other := h
		change(&other)
		if _, err := decodeCommit(good, other, nil); err == nil {
			t.Errorf("the commit of a run is taken for the one of %s", name)
		}
	}
	for name, change := range map[string]func(c *Commit){
		"base of a part": func(c *Commit) { c.Base = true }, "nothing before": func(c *Commit) { c.Prev = Ref{} }, "cut 0 before": func(c *Commit) { c.Prev.N = 0 },
		"parts": func(c *Commit) { c.Parts = hostileCommit().Parts }, "no run": func(c *Commit) { c.Run = nil }, "too many cuts": func(c *Commit) { c.Run = &RunInfo{Hash: Hash{1}, Cuts: 36, Made: c.Time} },
		"complete, cut 0 before": func(c *Commit) { c.Base, c.Prev.N = true, 0 },
	} {
		other := *c
		change(&other)
		for _, from := range []uint64{7, 0} {
			h := h
			h.From = from
			if _, err := encodeCommit(&other, h, nil); err == nil {
				t.Errorf("a run from %d with %s is written", from, name)
			}
		}
	}
}

// TestHostileMaps seals maps that no writer makes.
func TestHostileMaps(t *testing.T) {
	bomb := make([]byte, 200<<20)
	enc, err := newZstd(1)
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(bomb, nil)
	claim := func(codec Codec, raw uint32, packed []byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, raw)
		b = append(b, byte(codec))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(packed)))
		return append(b, packed...)
	}
	one := []byte{extZero | extDisk, 1, 0, 1} // 4 KiB of zeros on disk 1
	wide := []byte{extDisk, 1, 0, 1}          // data on disk 1 in segment 0, which does not exist
	for name, c := range map[string]struct {
		plain []byte
		f     footer
		good  bool
	}{
		"good":            {claim(CodecNone, 4, one), footer{extents: 1, zeroBytes: Unit}, true},
		"good packed":     {claim(CodecZstd, 4, enc.EncodeAll(one, nil)), footer{extents: 1, zeroBytes: Unit}, true},
		"bomb told":       {claim(CodecZstd, uint32(len(bomb)), packed), footer{extents: MaxExtents}, false},
		"bomb hidden":     {claim(CodecZstd, 4, packed), footer{extents: 1, zeroBytes: Unit}, false},
		"raw":             {claim(CodecNone, math.MaxUint32, one), footer{extents: 1, zeroBytes: Unit}, false},
		"raw short":       {claim(CodecNone, 3, one), footer{extents: 1, zeroBytes: Unit}, false},
		"raw long":        {claim(CodecNone, 5, one), footer{extents: 1, zeroBytes: Unit}, false},
		"packed length":   {append(claim(CodecNone, 4, one), 0), footer{extents: 1, zeroBytes: Unit}, false},
		"minlz":           {claim(CodecMinLZ, 4, one), footer{extents: 1, zeroBytes: Unit}, false},
		"empty section":   {[]byte{}, footer{}, false},
		"no extents":      {claim(CodecNone, 0, nil), footer{}, true},
		"fewer":           {claim(CodecNone, 4, one), footer{zeroBytes: Unit}, false},
		"more":            {claim(CodecNone, 4, one), footer{extents: 2, zeroBytes: Unit}, false},
		"zero sum":        {claim(CodecNone, 4, one), footer{extents: 1, zeroBytes: 2 * Unit}, false},
		"data sum":        {claim(CodecNone, 4, one), footer{extents: 1, zeroBytes: Unit, dataBytes: 1}, false},
		"no such segment": {claim(CodecNone, 4, wide), footer{extents: 1, dataBytes: Unit}, false},
		"flags":           {claim(CodecNone, 4, []byte{0x80 | extZero | extDisk, 1, 0, 1}), footer{extents: 1, zeroBytes: Unit}, false},
		"same disk":       {claim(CodecNone, 4, []byte{extZero | extDisk, 0, 0, 1}), footer{extents: 1, zeroBytes: Unit}, false},
		"no such disk":    {claim(CodecNone, 4, []byte{extZero | extDisk, 2, 0, 1}), footer{extents: 1, zeroBytes: Unit}, false},
		"endless varint":  {claim(CodecNone, 12, append([]byte{extZero | extDisk}, bytes.Repeat([]byte{0xff}, 11)...)), footer{extents: 1}, false},
		"cut zstd":        {claim(CodecZstd, 4, enc.EncodeAll(one, nil)[:8]), footer{extents: 1, zeroBytes: Unit}, false},
	} {
		t.Run(name, func(t *testing.T) {
			obj, name := forgeRun(t, c.plain, c.f)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s, err := Open(context.Background(), Bytes(obj), name, oneKey{})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			err = nil
			for e, eerr := range s.Map(context.Background()) {
				if err = eerr; err == nil && (e.Disk != 1 || !e.Zero || e.Off%Unit != 0 || e.End() > 1<<30) {
					t.Errorf("extent %+v", e)
				}
				n++
			}
			runtime.ReadMemStats(&after)
			if c.good != (err == nil) || err != nil && dr.CodeOf(err) != dr.CodeObjectCorrupt {
				t.Errorf("%d extents and then %v", n, err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
				t.Errorf("%d bytes were allocated for an object of %d", got, len(obj))
			}
			if verr := s.Verify(context.Background()); (verr == nil) != c.good {
				t.Errorf("Verify: %v", verr)
			}
		})
	}
}

// forgeRun seals a map of the caller's making into an otherwise right run.
func forgeRun(t *testing.T, plain []byte, f footer) ([]byte, ObjectName) {
	t.Helper()
	commit := hostileCommit()
	commit.Parts, commit.Tiles = nil, nil
	r, err := NewRunWriter(nil, RunConfig{
		Kind: KindRun, Machine: "0f8fad5b-d9cb-469f-a165-70867728950e", Key: EpochKey{1}, At: Ref{Gen: 3, N: 42, Hash: Hash{1}}, Commit: commit, Cuts: 1, Made: time.Unix(1, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.sections(plain)
	if err != nil {
		t.Fatal(err)
	}
	check, err := r.key.check(r.header.Segment)
	if err != nil {
		t.Fatal(err)
	}
	header := r.header.encode(maxFrameLog2, check)
	own := s.footer(headerSize, Counts{DataBytes: f.dataBytes, ZeroBytes: f.zeroBytes})
	own.extents, own.tagRoot = f.extents, blake3.Sum256(nil)
	tail, err := s.seal(r.key, r.header.Segment, header, own)
	if err != nil {
		t.Fatal(err)
	}
	return append(header, tail...), r.Name()
}

// TestHostileLengths claims much in few bytes, sealed with the right key.
func TestHostileLengths(t *testing.T) {
	bomb := make([]byte, 200<<20)
	enc, err := newZstd(1)
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(bomb, nil)
	claim := func(codec Codec, raw uint32, body []byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, raw)
		b = append(b, byte(codec))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
		return append(b, body...)
	}
	many := binary.AppendUvarint([]byte{0}, MaxExtents)
	for name, plain := range map[string][]byte{
		"bomb told":      claim(CodecZstd, uint32(len(bomb)), packed),
		"bomb hidden":    claim(CodecZstd, 100, packed),
		"raw":            claim(CodecNone, math.MaxUint32, nil),
		"minlz":          claim(CodecMinLZ, 1<<15, []byte{0, 0xff, 0xff, 0xff, 0x7f, 1}),
		"packed length":  append(claim(CodecNone, 1, nil)[:5], 0xff, 0xff, 0xff, 0xff),
		"codec":          claim(77, 1, []byte{1}),
		"frames":         claim(CodecNone, 5, binary.AppendUvarint(nil, MaxFrames)[:4]),
		"many extents":   claim(CodecNone, uint32(len(many)), many),
		"endless varint": claim(CodecNone, 11, bytes.Repeat([]byte{0xff}, 11)),
		"padding":        append(claim(CodecNone, 2, []byte{0, 0}), 1),
		"empty":          {},
	} {
		t.Run(name, func(t *testing.T) {
			obj, name := forge(t, plain)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Open(context.Background(), Bytes(obj), name, oneKey{})
			runtime.ReadMemStats(&after)
			if dr.CodeOf(err) != dr.CodeObjectCorrupt {
				t.Errorf("got %v", err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
				t.Errorf("%d bytes were allocated for an object of %d", got, len(obj))
			}
		})
	}
}

type oneKey struct{}

func (oneKey) EpochKey(context.Context, dr.MachineID, uint32) (EpochKey, error) {
	return EpochKey{1}, nil
}

// forge seals an index of the caller's making into an otherwise right part.
func forge(t *testing.T, index []byte) ([]byte, ObjectName) {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf, WriterConfig{Header: Header{Kind: KindPart, Machine: "0f8fad5b-d9cb-469f-a165-70867728950e", Gen: 1}, Key: EpochKey{1}})
	if err != nil {
		t.Fatal(err)
	}
	plain := sections{index: index}
	f := plain.footer(headerSize, Counts{})
	f.extents = MaxExtents
	tail, err := plain.seal(w.cfg.Key, w.cfg.Segment, w.header, f)
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(w.header), tail...), w.Name()
}
