package cut_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/cut"
)

var update = flag.Bool("update", false, "write new golden objects of the current format version (only for a new version: stored objects never change)")

const golden = "testdata/v1"

var ctx = context.Background()

// describe renders everything that a reader gets out of a segment.
func describe(t *testing.T, s *cut.Segment, obj []byte) string {
	t.Helper()
	var b strings.Builder
	h := s.Header()
	fmt.Fprintf(&b, "name %s\nheader %+v\nsize %d chain %s data %d zero %d\n", s.Name(), h, s.Size(), s.ChainHash(), s.DataBytes(), s.ZeroBytes())
	for i, f := range s.Frames() {
		p, err := s.DecodeFrame(i, obj[f.Off:f.Off+int64(f.CLen)], nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "frame %d at %d: %d of %d bytes, %s: %q...\n", i, f.Off, f.CLen, f.RawLen, f.Codec, p[:min(40, len(p))])
	}
	for _, e := range s.Extents() {
		fmt.Fprintf(&b, "extent %+v\n", e)
	}
	zero := 0
	for i, d := range s.Digests() {
		if d == [16]byte{} {
			zero++
		} else {
			fmt.Fprintf(&b, "digest %d %x\n", i, d)
		}
	}
	fmt.Fprintf(&b, "zero digests %d\n", zero)
	if c := s.Commit(); c != nil {
		fmt.Fprintf(&b, "commit %+v\n", *c)
	}
	return b.String()
}

// goldenContent is the content of the ranges of the golden segments: text, noise, zeros and a short end.
func goldenContent() (text, noise, end []byte) {
	text = bytes.Repeat([]byte("In the beginning was the disk. "), 20*cut.Unit/31)[:19*cut.Unit]
	noise = make([]byte, 2*cut.Unit)
	x := uint32(1)
	for i := range noise {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	return text, noise, []byte("the end")
}

func goldenFill(disk uint16, base int64) func(w *cut.Writer) error {
	text, noise, end := goldenContent()
	return func(w *cut.Writer) error {
		return errors.Join(w.Data(ctx, disk, base+cut.Unit, text), w.Zero(disk, base+24*cut.Unit, 8*cut.Unit),
			w.Data(ctx, disk, base+32*cut.Unit, noise), w.Data(ctx, disk, base+100*cut.Unit, end))
	}
}

func goldenCommit() *cut.Commit {
	c := testCommit(cut.Disk{Index: 1, ID: "vda", Size: 100*cut.Unit + 7}, cut.Disk{Index: 2, ID: "vdb", Size: 1 << 40})
	c.Resync, c.Base = true, true
	c.Tiles = []cut.TileRef{{Disk: 1, Tile: 0, UID: "0011223344556677", Gen: 1, N: 1, Size: 12345, BLAKE3: cut.Hash{0xaa}}, {Disk: 2, Tile: 16383, UID: "x-1", Gen: 3, N: 42, Size: 99, BLAKE3: cut.Hash{0xbb}}}
	c.Parts = []cut.PartRef{{Attempt: 9, K: 1, Size: 777, BLAKE3: cut.Hash{0xcc}}, {Attempt: 9, K: 0, Size: 778, BLAKE3: cut.Hash{0xdd}}}
	return c
}

// goldenSegment is how a golden segment was made.
type goldenSegment struct {
	cfg    cut.WriterConfig
	commit *cut.Commit
	fill   func(w *cut.Writer) error
	base   int64
}

func goldenSegments() map[string]goldenSegment {
	minlz, plain := partConfig(), partConfig()
	minlz.Codec, plain.Codec, plain.FrameLog2 = cut.CodecMinLZ, cut.CodecNone, 13
	const tile = 5
	idle := testCommit(cut.Disk{Index: 0, ID: "vda", Size: 1 << 30})
	idle.Note, idle.Token, idle.VM.Config = "", "", nil
	return map[string]goldenSegment{
		"cut":   {cutConfig(), goldenCommit(), goldenFill(1, 0), 0},
		"idle":  {cutConfig(), idle, nil, 0},
		"minlz": {minlz, nil, goldenFill(1, 0), 0},
		"none":  {plain, nil, goldenFill(1, 0), 0},
		"tile":  {tileConfig(1, tile), nil, goldenFill(1, tile*cut.TileSize), tile * cut.TileSize},
	}
}

func TestGoldenSegments(t *testing.T) {
	t.Parallel()
	for name, g := range goldenSegments() {
		t.Run(name, func(t *testing.T) {
			file, text := filepath.Join(golden, name+".bin"), filepath.Join(golden, name+".txt")
			if *update {
				obj, sealed := build(t, g.cfg, g.commit, g.fill)
				put(t, file, obj)
				put(t, text, []byte(describe(t, open(t, obj, sealed.Name), obj)))
			}
			obj := get(t, file)
			s := open(t, obj, g.cfg.Name())
			if got, want := describe(t, s, obj), string(get(t, text)); got != want {
				t.Errorf("decoded\n%s\nwant\n%s", got, want)
			}
			if g.fill == nil {
				return
			}
			size := 100*cut.Unit + 7
			want, got := make([]byte, size), bytes.Repeat([]byte{0}, size)
			a, b, c := goldenContent()
			copy(want[cut.Unit:], a)
			copy(want[32*cut.Unit:], b)
			copy(want[100*cut.Unit:], c)
			for i, f := range s.Frames() {
				p, err := s.DecodeFrame(i, obj[f.Off:f.Off+int64(f.CLen)], nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range s.Extents() {
					if !e.Zero && e.Frame == uint32(i) {
						copy(got[e.Off-g.base:e.End()-g.base], p[e.FrameOff:])
					}
				}
			}
			if !bytes.Equal(got, want) {
				t.Error("the content differs")
			}
		})
	}
}

func TestGoldenRecords(t *testing.T) {
	t.Parallel()
	const epoch = 0x01020304
	gen := cut.GenInfo{Machine: machine, Gen: 4, Base: cut.Ref{Gen: 3, N: 99, Hash: cut.Hash{7}}, Agent: "a1", Reason: "takeover", Time: testTime}
	vault := cut.VaultInfo{VaultID: "4f1c", Name: "Leipzig", Created: testTime, Software: "1.0"}
	file := func(n string) string { return filepath.Join(golden, n) }
	if *update {
		priv, err := cut.GenerateVaultKey()
		if err != nil {
			t.Fatal(err)
		}
		text, _ := priv.Text()
		put(t, file("vault-private-key.txt"), []byte(text))
		vault.PublicKey = priv.Public().Text()
		v, err1 := vault.Marshal()
		g, err2 := gen.Marshal()
		w, err3 := cut.SealEpochKey(priv.Public(), machine, epoch, testKey())
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		put(t, file("vault.json"), v)
		put(t, file("generation.gen"), g)
		put(t, file("epoch.wrap"), w)
	}
	priv, err := cut.ParseVaultPrivateKey(string(get(t, file("vault-private-key.txt"))))
	if err != nil {
		t.Fatal(err)
	}
	if k, err := cut.OpenEpochKey(priv, machine, epoch, get(t, file("epoch.wrap"))); err != nil || k != testKey() {
		t.Errorf("sealed key: %v", err)
	}
	vault.PublicKey, vault.Version, vault.KeyID = priv.Public().Text(), 1, priv.KeyID()
	if v, err := cut.ParseVaultInfo(get(t, file("vault.json"))); err != nil || v != vault {
		t.Errorf("vault.json: %+v, %v", v, err)
	}
	gen.Version = 1
	if g, err := cut.ParseGenInfo(cut.ObjectName{Class: cut.ClassGeneration, Machine: machine, Gen: 4}, get(t, file("generation.gen"))); err != nil || g != gen {
		t.Errorf("generation: %+v, %v", g, err)
	}
	// What is written today is what was written then, where the bytes are determined.
	if b, _ := gen.Marshal(); !bytes.Equal(b, get(t, file("generation.gen"))) {
		t.Errorf("generation is now written as %s", b)
	}
	if b, _ := vault.Marshal(); !bytes.Equal(b, get(t, file("vault.json"))) {
		t.Errorf("vault.json is now written as %s", b)
	}
}

func put(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
