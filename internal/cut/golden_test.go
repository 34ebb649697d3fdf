package cut_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

var update = flag.Bool("update", false, "write golden objects that are missing (those that are there never change: neither do stored objects)")

const golden = "testdata/v1"

var ctx = context.Background()

// describe renders everything that a reader gets out of a segment.
func describe(t *testing.T, s *cut.Segment, obj []byte) string {
	t.Helper()
	var b strings.Builder
	h := s.Header()
	fmt.Fprintf(&b, "name %s\nheader %+v\nsize %d chain %s data %d zero %d\n", s.Name(), firstHeader(h), s.Size(), s.ChainHash(), s.DataBytes(), s.ZeroBytes())
	if h.From != 0 || h.Seed {
		fmt.Fprintf(&b, "from %d seed %v\n", h.From, h.Seed)
	}
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
		fmt.Fprintf(&b, "commit %+v\n", firstCommit(c))
		if c.VM.OSType != "" || c.VM.NICs != nil {
			fmt.Fprintf(&b, "os %s nics %+v\n", c.VM.OSType, c.VM.NICs)
		}
		if c.Seed || c.Group != nil {
			fmt.Fprintf(&b, "seed %v group %+v\n", c.Seed, *c.Group)
		}
		if x := c.Stats; x.ChangedBytes != 0 || x.RawFrames != 0 || x.IncompressibleBytes != 0 {
			fmt.Fprintf(&b, "changed %d raw frames %d incompressible %d\n", x.ChangedBytes, x.RawFrames, x.IncompressibleBytes)
		}
		if c.Run != nil {
			fmt.Fprintf(&b, "run %+v\nreaches %+v\n", *c.Run, s.Ref())
		}
		for _, r := range c.Segments {
			fmt.Fprintf(&b, "segment %+v\n", r)
		}
	}
	if h.Kind == cut.KindRun || h.Kind == cut.KindMap {
		for e, err := range s.Map(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "map extent %+v\n", e)
		}
	}
	return b.String()
}

// firstHeader, firstCommit and the types in them have the fields that there
// were when the first golden texts were written, so that these need not change.
type goldenHeader struct {
	Kind     cut.Kind
	Machine  dr.MachineID
	Gen      dr.Generation
	N        uint64
	Segment  [16]byte
	KeyEpoch uint32
	Attempt  uint32
	K        int
	Disk     uint16
	Tile     uint32
	UID      string
}

func firstHeader(h cut.Header) goldenHeader {
	return goldenHeader{h.Kind, h.Machine, h.Gen, h.N, h.Segment, h.KeyEpoch, h.Attempt, h.K, h.Disk, h.Tile, h.UID}
}

type goldenStats struct {
	DirtyBytes, DataBytes, ZeroBytes, StoredBytes int64
	Read, Freeze                                  time.Duration
}

type goldenVM struct {
	Name, UUID                 string
	Generation, CPUs, MemoryMB int
	Config                     map[string][]byte
}

type goldenCommitText struct {
	Gen         dr.Generation
	N           uint64
	Prev        cut.Ref
	Time        time.Time
	Consistency dr.Consistency
	Note        string
	Resync      bool
	Base        bool
	Disks       []cut.Disk
	Tiles       []cut.TileRef
	Parts       []cut.PartRef
	Token       string
	Stats       goldenStats
	VM          goldenVM
}

func firstCommit(c *cut.Commit) goldenCommitText {
	return goldenCommitText{
		c.Gen, c.N, c.Prev, c.Time, c.Consistency, c.Note, c.Resync, c.Base, c.Disks, c.Tiles, c.Parts, c.Token,
		goldenStats{c.Stats.DirtyBytes, c.Stats.DataBytes, c.Stats.ZeroBytes, c.Stats.StoredBytes, c.Stats.Read, c.Stats.Freeze},
		goldenVM{c.VM.Name, c.VM.UUID, c.VM.Generation, c.VM.CPUs, c.VM.MemoryMB, c.VM.Config},
	}
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
	data, seed := partConfig(), cutConfig()
	data.Kind, data.Attempt, data.UID, seed.Seed = cut.KindData, 0, "0123456789abcdef", true
	first := goldenCommit()
	first.Seed, first.Prev, first.Tiles, first.Parts = true, cut.Ref{}, nil, nil
	first.Group = &cut.Group{ID: "erp", Seq: 7, Members: []dr.MachineID{"00000000-d9cb-469f-a165-70867728950e", machine}}
	first.Stats.ChangedBytes, first.Stats.RawFrames, first.Stats.IncompressibleBytes = 90_000, 1, 8192
	const tile = 5
	idle := testCommit(cut.Disk{Index: 0, ID: "vda", Size: 1 << 30})
	idle.Note, idle.Token, idle.VM.Config = "", "", nil
	machine2 := testCommit(cut.Disk{Index: 0, ID: "vda", Size: 1 << 30})
	machine2.VM.OSType, machine2.VM.NICs = "Linux", []cut.NIC{{MAC: "00:15:5d:00:00:01", Network: "External", VLAN: 7}, {MAC: "00:15:5d:00:00:02"}}
	return map[string]goldenSegment{
		"vm":    {cutConfig(), machine2, nil, 0},
		"cut":   {cutConfig(), goldenCommit(), goldenFill(1, 0), 0},
		"idle":  {cutConfig(), idle, nil, 0},
		"minlz": {minlz, nil, goldenFill(1, 0), 0},
		"none":  {plain, nil, goldenFill(1, 0), 0},
		"tile":  {tileConfig(1, tile), nil, goldenFill(1, tile*cut.TileSize), tile * cut.TileSize},
		"data":  {data, nil, goldenFill(1, 0), 0},
		"seed":  {seed, first, goldenFill(1, 0), 0},
	}
}

// TestGoldenRuns reads the golden run and map.
func TestGoldenRuns(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]cut.RunConfig{"run": testRun(), "map": testMap()} {
		file, text := filepath.Join(golden, name+".bin"), filepath.Join(golden, name+".txt")
		if *update {
			obj, sealed := buildRun(t, cfg, testExtents())
			put(t, file, obj)
			put(t, text, []byte(describe(t, open(t, obj, sealed.Name), obj)))
		}
		w, err := cut.NewRunWriter(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		obj := get(t, file)
		s := open(t, obj, w.Name())
		if got, want := describe(t, s, obj), string(get(t, text)); got != want {
			t.Errorf("decoded\n%s\nwant\n%s", got, want)
		}
		if got := mapOf(t, s); !slices.Equal(got, testExtents()) {
			t.Errorf("%s: extents %+v", name, got)
		}
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
		if priv, err = cut.ParseVaultPrivateKey(string(get(t, file("vault-private-key.txt")))); err != nil {
			t.Fatal(err)
		}
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

// TestGoldenMaintenance reads the records that retention and rotation write.
func TestGoldenMaintenance(t *testing.T) {
	t.Parallel()
	const epoch = 0x01020304
	file := func(n string) string { return filepath.Join(golden, n) }
	old, err := cut.ParseVaultPrivateKey(string(get(t, file("vault-private-key.txt"))))
	if err != nil {
		t.Fatal(err)
	}
	vault := cut.VaultInfo{VaultID: "4f1c", Name: "Leipzig", Created: testTime, Software: "1.1", Seq: 1, Previous: old.KeyID()}
	lease, man := goldenLease(), goldenManifest()
	if *update {
		priv, err := cut.GenerateVaultKey()
		if err != nil {
			t.Fatal(err)
		}
		text, _ := priv.Text()
		put(t, file("vault-private-key-1.txt"), []byte(text))
		if priv, err = cut.ParseVaultPrivateKey(string(get(t, file("vault-private-key-1.txt")))); err != nil {
			t.Fatal(err)
		}
		vault.PublicKey = priv.Public().Text()
		v, err1 := vault.Marshal()
		l, err2 := lease.Marshal()
		m, err3 := man.Marshal()
		w, err4 := cut.RewrapEpochKey(ctx, old, priv.Public(), machine, epoch, get(t, file("epoch.wrap")))
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
		put(t, file("vault-00000001.json"), v)
		put(t, file("reader.lease"), l)
		put(t, file("plan.man"), m)
		put(t, file("epoch-again.wrap"), w)
	}
	priv, err := cut.ParseVaultPrivateKey(string(get(t, file("vault-private-key-1.txt"))))
	if err != nil {
		t.Fatal(err)
	}
	vault.PublicKey, vault.Version, vault.KeyID, lease.Version, man.Version = priv.Public().Text(), 1, priv.KeyID(), 1, 1
	if v, err := cut.ParseVaultKey(cut.ObjectName{Class: cut.ClassVaultKey, Seq: 1}, get(t, file("vault-00000001.json"))); err != nil || v != vault {
		t.Errorf("later description: %+v, %v", v, err)
	}
	first, err := cut.ParseVaultInfo(get(t, file("vault.json")))
	if v, err2 := cut.NewestVault([]cut.VaultInfo{vault, first}); err != nil || err2 != nil || v != vault {
		t.Errorf("newest description: %+v, %v, %v", v, err, err2)
	}
	if l, err := cut.ParseLease(lease.Name(), get(t, file("reader.lease"))); err != nil || l != lease {
		t.Errorf("lease: %+v, %v", l, err)
	}
	if m, err := cut.ParseManifest(man.Name(), get(t, file("plan.man"))); err != nil || !reflect.DeepEqual(m, man) {
		t.Errorf("manifest: %+v, %v", m, err)
	}
	again := get(t, file("epoch-again.wrap"))
	if k, err := priv.OpenEpochKey(ctx, machine, epoch, again); err != nil || k != testKey() {
		t.Errorf("key sealed again: %v", err)
	}
	if id, err := cut.WrapKeyID(cut.ObjectName{Class: cut.ClassKey, Machine: machine, Epoch: epoch, KeyID: priv.KeyID()}, again); err != nil || id != priv.KeyID() {
		t.Errorf("key sealed again: %s, %v", id, err)
	}
	for name, b := range map[string]func() ([]byte, error){"vault-00000001.json": vault.Marshal, "reader.lease": lease.Marshal, "plan.man": man.Marshal} {
		if b, err := b(); err != nil || !bytes.Equal(b, get(t, file(name))) {
			t.Errorf("%s is now written as %s, %v", name, b, err)
		}
	}
}

func put(t *testing.T, file string, b []byte) {
	t.Helper()
	if _, err := os.Stat(file); err == nil {
		return
	}
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
