package cut_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

func fixCRC(b []byte) {
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], crc32.MakeTable(crc32.Castagnoli)))
}

func check(obj []byte, name cut.ObjectName) error {
	s, err := cut.Open(context.Background(), cut.Bytes(obj), name, testKeys())
	if err != nil {
		return err
	}
	return s.Verify(context.Background())
}

// smallObjects are one segment of each kind with several frames, codecs and extents.
func smallObjects(t testing.TB) map[string]struct {
	obj  []byte
	name cut.ObjectName
} {
	t.Helper()
	out := map[string]struct {
		obj  []byte
		name cut.ObjectName
	}{}
	text := bytes.Repeat([]byte("all work and no play. "), 1000)
	noise := make([]byte, 100)
	for i := range noise {
		noise[i] = byte(i*i*31 + i)
	}
	fill := func(disk uint16, base int64) func(w *cut.Writer) error {
		return func(w *cut.Writer) error {
			return errors.Join(w.Data(context.Background(), disk, base, text[:2*cut.Unit]), w.Zero(disk, base+4*cut.Unit, cut.Unit),
				w.Data(context.Background(), disk, base+16*cut.Unit, text[:2*cut.Unit]), w.Data(context.Background(), disk, base+32*cut.Unit, noise))
		}
	}
	add := func(kind string, cfg cut.WriterConfig, commit *cut.Commit, f func(w *cut.Writer) error) {
		obj, s := build(t, cfg, commit, f)
		out[kind] = struct {
			obj  []byte
			name cut.ObjectName
		}{obj, s.Name}
	}
	commit := testCommit(cut.Disk{Index: 1, ID: "vda", Size: 32*cut.Unit + 100})
	commit.Tiles, commit.Parts = []cut.TileRef{{Disk: 1, UID: "x", Gen: 1, N: 1, Size: 1000}}, []cut.PartRef{{Attempt: 1, Size: 1000}}
	cfg := cutConfig()
	cfg.FrameLog2 = 12
	add("cut", cfg, commit, fill(1, 0))
	add("idle", cutConfig(), commit, nil)
	cfg = partConfig()
	cfg.Codec = cut.CodecMinLZ
	add("part", cfg, nil, fill(0, 0))
	add("tile", tileConfig(1, 2), nil, fill(1, 2*cut.TileSize))
	cfg = partConfig()
	cfg.Kind, cfg.Attempt, cfg.UID = cut.KindData, 0, "u1"
	add("data", cfg, nil, fill(0, 0))
	cfg = cutConfig()
	cfg.Seed, commit.Seed = true, true
	commit.Group = &cut.Group{ID: "g", Seq: 1, Members: []dr.MachineID{machine}}
	add("seed", cfg, commit, nil)
	for kind, cfg := range map[string]cut.RunConfig{"run": testRun(), "map": testMap()} {
		obj, s := buildRun(t, cfg, testExtents())
		out[kind] = struct {
			obj  []byte
			name cut.ObjectName
		}{obj, s.Name}
	}
	return out
}

// TestEveryBit flips a bit of every byte of small segments, and truncates and extends them at every length.
func TestEveryBit(t *testing.T) {
	t.Parallel()
	for kind, o := range smallObjects(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if err := check(o.obj, o.name); err != nil {
				t.Fatal(err)
			}
			bad := bytes.Clone(o.obj)
			for i := range bad {
				for bit := range 8 {
					bad[i] ^= 1 << bit
					err := check(bad, o.name)
					if dr.CodeOf(err) != dr.CodeObjectCorrupt || dr.KindOf(err) != dr.KindCorrupt || !strings.Contains(err.Error(), o.name.Key()) {
						t.Fatalf("bit %d of byte %d of %d: %v", bit, i, len(bad), err)
					}
					bad[i] ^= 1 << bit
				}
			}
			for n := range o.obj {
				if err := check(o.obj[:n], o.name); dr.CodeOf(err) != dr.CodeObjectCorrupt {
					t.Fatalf("cut to %d of %d bytes: %v", n, len(o.obj), err)
				}
			}
			for _, b := range [][]byte{append(bytes.Clone(o.obj), 0), append([]byte{0}, o.obj...), append(bytes.Clone(o.obj), o.obj...), make([]byte, len(o.obj))} {
				if err := check(b, o.name); dr.CodeOf(err) != dr.CodeObjectCorrupt {
					t.Errorf("%d instead of %d bytes: %v", len(b), len(o.obj), err)
				}
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	objs := smallObjects(t)
	for kind, o := range objs {
		wrong := map[string]cut.ObjectName{}
		for what, f := range map[string]func(n *cut.ObjectName){
			"gen": func(n *cut.ObjectName) { n.Gen++ }, "n": func(n *cut.ObjectName) { n.N++ }, "machine": func(n *cut.ObjectName) { n.Machine = "1" + n.Machine[1:] },
			"attempt": func(n *cut.ObjectName) { n.Attempt++ }, "k": func(n *cut.ObjectName) { n.K++ },
			"disk": func(n *cut.ObjectName) { n.Disk++ }, "tile": func(n *cut.ObjectName) { n.Tile++ }, "uid": func(n *cut.ObjectName) { n.UID += "0" },
			"from": func(n *cut.ObjectName) { n.From++ },
		} {
			n := o.name
			if f(&n); n.Key() != o.name.Key() {
				wrong[what] = n
			}
		}
		for other, x := range objs {
			if x.name != o.name {
				wrong["name of "+other] = x.name
			}
		}
		for what, n := range wrong {
			if err := check(o.obj, n); dr.CodeOf(err) != dr.CodeObjectCorrupt {
				t.Errorf("%s under a wrong name (%s): %v", kind, what, err)
			}
		}
		// Another key for the same epoch is told from damage; so is an epoch whose key is not known.
		if _, err := cut.Open(t.Context(), cut.Bytes(o.obj), o.name, keyring{5: cut.NewEpochKey()}); dr.CodeOf(err) != dr.CodeKeyMismatch {
			t.Errorf("%s with a wrong key: %v", kind, err)
		}
		if _, err := cut.Open(t.Context(), cut.Bytes(o.obj), o.name, keyring{6: testKey()}); dr.KindOf(errors.Unwrap(err)) != dr.KindNotFound {
			t.Errorf("%s without key: %v", kind, err)
		}
	}
	if _, err := cut.Open(t.Context(), cut.Bytes(objs["cut"].obj), cut.ObjectName{Class: cut.ClassVault}, testKeys()); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("vault.json as a segment: %v", err)
	}
}

// TestHeaderForged changes header and footer and makes their checksums right again.
func TestHeaderForged(t *testing.T) {
	t.Parallel()
	o := smallObjects(t)["cut"]
	front, copied, foot := 0, len(o.obj)-256, len(o.obj)-128
	for what, c := range map[string]struct {
		at   int
		code dr.Code
	}{
		"version": {8, dr.CodeFormatUnsupported}, "suite": {10, dr.CodeFormatUnsupported}, "features": {120, dr.CodeFormatUnsupported},
		"frame size": {11, dr.CodeObjectCorrupt}, "kind": {12, dr.CodeObjectCorrupt}, "reserved": {13, dr.CodeObjectCorrupt},
		"segment id": {32, dr.CodeKeyMismatch}, "n": {48, dr.CodeObjectCorrupt}, "key check": {112, dr.CodeKeyMismatch},
	} {
		b := bytes.Clone(o.obj)
		for _, h := range []int{front, copied} {
			b[h+c.at] ^= 2
			fixCRC(b[h : h+128])
		}
		if err := check(b, o.name); dr.CodeOf(err) != c.code {
			t.Errorf("header %s: %v", what, err)
		}
	}
	for i := range 124 {
		b := bytes.Clone(o.obj)
		b[foot+i] ^= 1
		fixCRC(b[foot:])
		if err := check(b, o.name); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Errorf("footer byte %d: %v", i, err)
		}
		b[foot+i] ^= 0xfe // large values
		fixCRC(b[foot:])
		if err := check(b, o.name); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Errorf("footer byte %d: %v", i, err)
		}
	}
}

// TestMovedFrames swaps frames of one length and puts in frames of another segment.
func TestMovedFrames(t *testing.T) {
	t.Parallel()
	p := make([]byte, 4*cut.Unit)
	for i := range p {
		p[i] = byte(i*i>>3 ^ i*131>>5)
	}
	cfg := partConfig()
	cfg.FrameLog2, cfg.Codec = 12, cut.CodecNone
	fill := func(w *cut.Writer) error { return w.Data(t.Context(), 0, 0, p) }
	obj, sealed := build(t, cfg, nil, fill)
	other, _ := build(t, cfg, nil, fill)
	s := open(t, obj, sealed.Name)
	a, b := s.Frames()[0], s.Frames()[1]
	swapped := bytes.Clone(obj)
	copy(swapped[a.Off:], obj[b.Off:b.Off+int64(b.CLen)])
	copy(swapped[b.Off:], obj[a.Off:a.Off+int64(a.CLen)])
	foreign := bytes.Clone(obj)
	copy(foreign[a.Off:], other[a.Off:a.Off+int64(a.CLen)])
	for what, x := range map[string][]byte{"swapped": swapped, "foreign": foreign} {
		s, err := cut.Open(t.Context(), cut.Bytes(x), sealed.Name, testKeys())
		if err != nil {
			t.Fatalf("%s: Open reads more than the tail: %v", what, err)
		}
		if err := s.Verify(t.Context()); dr.CodeOf(err) != dr.CodeObjectCorrupt || !strings.Contains(err.Error(), "frame 0") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.DecodeFrame(0, obj[b.Off:b.Off+int64(b.CLen)], nil); dr.CodeOf(err) != dr.CodeObjectCorrupt {
		t.Errorf("frame 1 as frame 0: %v", err)
	}
	for _, i := range []int{-1, 4} {
		if _, err := s.DecodeFrame(i, nil, nil); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("frame %d: %v", i, err)
		}
	}
	if got, err := s.ReadFrame(t.Context(), 3, nil); err != nil || !bytes.Equal(got, p[3*cut.Unit:]) {
		t.Errorf("ReadFrame: %v", err)
	}
}

var errNet = errors.New("connection reset")

// brokenSource fails or cuts reads short from a given read on.
type brokenSource struct {
	cut.Bytes
	good  int
	short bool
}

func (b *brokenSource) ReadRange(ctx context.Context, off, n int64) ([]byte, error) {
	if b.good--; b.good >= 0 {
		return b.Bytes.ReadRange(ctx, off, n)
	}
	if b.short {
		return b.Bytes.ReadRange(ctx, off, n-1)
	}
	return nil, dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "test", "get: %w", errNet)
}

func TestSourceErrors(t *testing.T) {
	t.Parallel()
	o := smallObjects(t)["cut"]
	for good := range 4 {
		for _, short := range []bool{false, true} {
			src := &brokenSource{Bytes: o.obj, good: good, short: short}
			s, err := cut.Open(t.Context(), src, o.name, testKeys())
			if err == nil {
				err = s.Verify(t.Context())
			}
			want := dr.CodeStoreUnreachable
			if short {
				want = dr.CodeObjectCorrupt
			}
			if good < 3 && dr.CodeOf(err) != want || good >= 3 && err != nil {
				t.Errorf("%d good reads, short %v: %v", good, short, err)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, o := range smallObjects(f) {
		f.Add(o.obj, o.name.Key())
	}
	f.Fuzz(func(t *testing.T, obj []byte, key string) {
		name, err := cut.ParseObject(key)
		if err != nil {
			return
		}
		// Let mutations come further than the checksums.
		if len(obj) > 256 {
			obj = bytes.Clone(obj)
			fixCRC(obj[len(obj)-256 : len(obj)-128])
			fixCRC(obj[len(obj)-128:])
		}
		s, err := cut.Open(t.Context(), cut.Bytes(obj), name, testKeys())
		if err != nil {
			if !errors.As(err, new(*dr.Error)) {
				t.Errorf("not a *dr.Error: %v", err)
			}
			return
		}
		for i, fr := range s.Frames() {
			_, _ = s.DecodeFrame(i, obj[fr.Off:fr.Off+int64(fr.CLen)], nil)
		}
		for e, err := range s.Map(t.Context()) {
			if err == nil && (e.Len <= 0 || !e.Zero && e.Segment >= len(s.Commit().Segments)) {
				t.Errorf("extent %+v", e)
			}
		}
		_ = s.Verify(t.Context())
		if !bytes.HasPrefix([]byte(s.Name().Key()), []byte("v1/m/")) {
			t.Error(fmt.Sprint(s.Name()))
		}
	})
}
