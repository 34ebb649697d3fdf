package cut

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"reflect"
	"runtime"
	"testing"
	"time"

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
	for _, doc := range []string{"null", "{}", `{"parts":-1}`, `{"parts":9007199254740992,"tiles":1}`, `{"gen":3,"n":42,"config":[{"name":"a","size":-5}]}`} {
		f.Add(append(binary.LittleEndian.AppendUint32(nil, uint32(len(doc))), doc...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCommit(b, h, nil)
		if err != nil {
			return
		}
		again, err := encodeCommit(c, h, nil)
		if err != nil {
			t.Fatalf("a decoded commit does not encode: %v", err)
		}
		if _, err := decodeCommit(again, h, nil); err != nil {
			t.Fatalf("a commit does not survive a round trip: %v", err)
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
	f := footer{tail: headerSize, indexLen: uint32(len(index) + sealOverhead), extents: MaxExtents}
	f.size = f.tail + int64(f.indexLen) + headerSize + footerSize
	tail, err := w.seal(sections{index: index}, f)
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(w.header), tail...), w.Name()
}
