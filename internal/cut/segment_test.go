package cut_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const machine dr.MachineID = "0f8fad5b-d9cb-469f-a165-70867728950e"

var testTime = time.Date(2026, 11, 22, 3, 0, 0, 123456789, time.UTC)

// testKey is a fixed key, so that golden objects can be opened.
func testKey() (k cut.EpochKey) {
	for i := range k {
		k[i] = byte(i * 7)
	}
	return k
}

// keyring knows the keys of one machine.
type keyring map[uint32]cut.EpochKey

func (r keyring) EpochKey(_ context.Context, m dr.MachineID, epoch uint32) (cut.EpochKey, error) {
	k, ok := r[epoch]
	if !ok || m != machine {
		return k, dr.Errorf(dr.KindNotFound, "keyring", "no key for epoch %d of %s", epoch, m)
	}
	return k, nil
}

func testKeys() keyring { return keyring{5: testKey()} }

func testCommit(disks ...cut.Disk) *cut.Commit {
	return &cut.Commit{
		Gen: 3, N: 42, Prev: cut.Ref{Gen: 2, N: 41, Hash: cut.Hash{1, 2, 3}}, Time: testTime, Consistency: dr.AppConsistent,
		Note: "nightly", Disks: disks, Token: "holdfast-42",
		Stats: cut.Stats{DirtyBytes: 1 << 20, DataBytes: 5, ZeroBytes: 6, StoredBytes: 7, Read: time.Second, Freeze: 12 * time.Millisecond},
		VM: cut.VMRecord{Name: "web <1> & ü", UUID: "7d444840-9dc0-11d1-b245-5ffdce74fad2", Generation: 2, CPUs: 4, MemoryMB: 8192,
			Config: map[string][]byte{"domain.xml": []byte("<domain type='kvm'/>"), "nvram": {0, 255, 0, 1}}},
	}
}

func cutConfig() cut.WriterConfig {
	return cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: machine, Gen: 3, N: 42, KeyEpoch: 5}, Key: testKey()}
}

func partConfig() cut.WriterConfig {
	c := cutConfig()
	c.Kind, c.Attempt, c.K = cut.KindPart, 9, 2
	return c
}

func tileConfig(disk uint16, tile uint32) cut.WriterConfig {
	c := cutConfig()
	c.Kind, c.Disk, c.Tile, c.UID = cut.KindTile, disk, tile, "u1"
	return c
}

// build writes a segment into memory.
func build(t testing.TB, cfg cut.WriterConfig, commit *cut.Commit, fill func(w *cut.Writer) error) ([]byte, cut.Sealed) {
	t.Helper()
	var buf bytes.Buffer
	w, err := cut.NewWriter(&buf, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if fill != nil {
		if err := fill(w); err != nil {
			t.Fatal(err)
		}
	}
	bound := w.Stored()
	s, err := w.Close(commit)
	if err != nil {
		t.Fatal(err)
	}
	if s.Size != int64(buf.Len()) {
		t.Fatalf("sealed size %d, wrote %d", s.Size, buf.Len())
	}
	if commit == nil && s.Size > bound {
		t.Errorf("Stored said %d, the object has %d", bound, s.Size)
	}
	return buf.Bytes(), s
}

func open(t testing.TB, obj []byte, name cut.ObjectName) *cut.Segment {
	t.Helper()
	s, err := cut.Open(context.Background(), cut.Bytes(obj), name, testKeys())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s
}

// apply writes the content of a segment over disks.
func apply(t testing.TB, s *cut.Segment, obj []byte, disks map[uint16][]byte) {
	t.Helper()
	var dst []byte
	plain := map[uint32][]byte{}
	for i, f := range s.Frames() {
		var err error
		if dst, err = s.DecodeFrame(i, obj[f.Off:f.Off+int64(f.CLen)], dst); err != nil {
			t.Fatal(err)
		}
		plain[uint32(i)] = bytes.Clone(dst)
	}
	for _, e := range s.Extents() {
		d := disks[e.Disk][e.Off:e.End()]
		if e.Zero {
			clear(d)
		} else {
			copy(d, plain[e.Frame][e.FrameOff:])
		}
	}
}

// content fills p with zeros, text or noise, unit by unit.
func content(r *rand.Rand, p []byte) {
	for len(p) > 0 {
		u := p[:min(len(p), cut.Unit)]
		switch r.IntN(4) {
		case 0:
			clear(u)
		case 1:
			for i := range u {
				u[i] = byte(r.Uint32())
			}
		default:
			copy(u, bytes.Repeat(fmt.Appendf(nil, "line %d of text\n", r.IntN(1000)), 512))
		}
		p = p[len(u):]
	}
}

// TestRandomExtents checks random cuts and parts against a model: ranges in
// any order, runs of zeros, several disks, disks that end between units.
func TestRandomExtents(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 7))
			disks := []cut.Disk{{Index: 0, ID: "vda", Size: 3<<20 + int64(r.IntN(4096))}, {Index: 7, ID: "vdb", Size: 700 << 10}, {Index: 900, ID: "vdc", Size: 1 + int64(r.IntN(9000))}}
			cfg, commit := partConfig(), (*cut.Commit)(nil)
			if seed%2 == 0 {
				cfg, commit = cutConfig(), testCommit(disks...)
			}
			cfg.Workers, cfg.Codec, cfg.FrameLog2 = 1+r.IntN(3), cut.Codec(r.IntN(4)), 12+r.IntN(5)
			want, got := map[uint16][]byte{}, map[uint16][]byte{}
			var given int64
			obj, sealed := build(t, cfg, commit, func(w *cut.Writer) error {
				for _, d := range disks {
					want[d.Index] = make([]byte, d.Size)
					content(r, want[d.Index])
					got[d.Index] = bytes.Clone(want[d.Index])
					var err error
					given, err = writeSome(r, w, d, want[d.Index], got[d.Index], given)
					if err != nil {
						return err
					}
				}
				return nil
			})
			s := open(t, obj, sealed.Name)
			apply(t, s, obj, got)
			for _, d := range disks {
				if !bytes.Equal(got[d.Index], want[d.Index]) {
					t.Errorf("disk %d differs after the round trip", d.Index)
				}
			}
			if sealed.DataBytes+sealed.ZeroBytes != given || s.DataBytes() != sealed.DataBytes || s.ZeroBytes() != sealed.ZeroBytes {
				t.Errorf("given %d bytes, sealed %+v", given, sealed)
			}
			if s.ChainHash() != sealed.ChainHash || len(s.Frames()) != sealed.Frames || len(s.Extents()) != sealed.Extents || s.Size() != sealed.Size {
				t.Errorf("opened %d frames, %d extents; sealed %+v", len(s.Frames()), len(s.Extents()), sealed)
			}
			if !reflect.DeepEqual(s.Commit(), commit) {
				t.Errorf("commit\n%+v, want\n%+v", s.Commit(), commit)
			}
			if s.Header().Name() != sealed.Name {
				t.Errorf("name %v, want %v", s.Header().Name(), sealed.Name)
			}
		})
	}
}

// writeSome writes random ranges of a disk that do not overlap, in random
// order, and damages what they cover in got, so that only the segment can repair it.
func writeSome(r *rand.Rand, w *cut.Writer, d cut.Disk, want, got []byte, given int64) (int64, error) {
	type rng struct{ off, n int64 }
	var ranges []rng
	for off := int64(0); off < d.Size; {
		n := min(int64(1+r.IntN(40))*cut.Unit, d.Size-off)
		if r.IntN(2) == 0 {
			ranges = append(ranges, rng{off, n})
		}
		off += n
	}
	if r.IntN(2) == 0 {
		r.Shuffle(len(ranges), func(i, j int) { ranges[i], ranges[j] = ranges[j], ranges[i] })
	}
	for _, x := range ranges {
		p := bytes.Clone(want[x.off : x.off+x.n])
		for i := range got[x.off : x.off+x.n] {
			got[x.off+int64(i)] = 0xA5
		}
		given += x.n
		var err error
		if r.IntN(5) == 0 {
			clear(want[x.off : x.off+x.n])
			err = w.Zero(d.Index, x.off, x.n)
		} else {
			err = w.Data(context.Background(), d.Index, x.off, p)
			clear(p) // the writer must not have kept it
		}
		if err != nil {
			return given, err
		}
	}
	return given, nil
}

func TestTile(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 3))
			size := cut.TileSize
			if seed%2 == 1 {
				size = 5*cut.Block + r.IntN(2*cut.Block) // the last tile of a disk
			}
			img := make([]byte, size)
			for range 20 { // mostly zero
				at := r.IntN(size/cut.Unit) * cut.Unit
				content(r, img[at:min(size, at+r.IntN(3*cut.Block))])
			}
			const tile = 3
			base := int64(tile) * cut.TileSize
			obj, sealed := build(t, tileConfig(4, tile), nil, func(w *cut.Writer) error {
				for off := 0; off < size; {
					n := min((1+r.IntN(50))*cut.Unit, size-off)
					if isZero := bytes.Count(img[off:off+n], []byte{0}) == n; isZero && r.IntN(2) == 0 {
						if r.IntN(2) == 0 {
							if err := w.Zero(4, base+int64(off), int64(n)); err != nil {
								return err
							}
						}
					} else if err := w.Data(context.Background(), 4, base+int64(off), img[off:off+n]); err != nil {
						return err
					}
					off += n
				}
				return nil
			})
			s := open(t, obj, sealed.Name)
			got := make([]byte, size)
			for i, f := range s.Frames() {
				p, err := s.DecodeFrame(i, obj[f.Off:f.Off+int64(f.CLen)], nil)
				if err != nil {
					t.Fatal(err)
				}
				copy(got[s.Extents()[i].Off-base:], p)
			}
			if !bytes.Equal(got, img) {
				t.Error("the tile differs after the round trip")
			}
			if len(s.Digests()) != cut.TileSize/cut.Block {
				t.Fatalf("%d digests", len(s.Digests()))
			}
			for i, d := range s.Digests() {
				lo, hi := min(size, i*cut.Block), min(size, (i+1)*cut.Block)
				if want := s.DigestKey().Sum(img[lo:hi]); want != d {
					t.Errorf("block %d: digest %x, want %x", i, d, want)
				}
			}
		})
	}
}

func TestTileRefuses(t *testing.T) {
	t.Parallel()
	one := bytes.Repeat([]byte{1}, cut.Unit)
	for name, f := range map[string]func(w *cut.Writer) error{
		"other disk":  func(w *cut.Writer) error { return w.Data(t.Context(), 1, cut.TileSize, one) },
		"before":      func(w *cut.Writer) error { return w.Data(t.Context(), 0, 0, one) },
		"behind":      func(w *cut.Writer) error { return w.Data(t.Context(), 0, 2*cut.TileSize-cut.Unit, append(one, one...)) },
		"zero behind": func(w *cut.Writer) error { return w.Zero(0, 2*cut.TileSize, cut.Unit) },
		"backwards": func(w *cut.Writer) error {
			return errors.Join(w.Data(t.Context(), 0, cut.TileSize+cut.Unit, one), w.Data(t.Context(), 0, cut.TileSize, one))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := cut.NewWriter(io.Discard, tileConfig(0, 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := f(w); dr.KindOf(errors.Unwrap(err)) != dr.KindInvalid && dr.KindOf(err) != dr.KindInvalid {
				t.Errorf("got %v", err)
			}
			if _, err := w.Close(nil); err == nil {
				t.Error("Close forgot the error")
			}
		})
	}
}

func TestWriterRefuses(t *testing.T) {
	t.Parallel()
	one := bytes.Repeat([]byte{1}, 2*cut.Unit)
	disk := cut.Disk{Index: 0, ID: "vda", Size: 1 << 20}
	for name, c := range map[string]struct {
		fill   func(w *cut.Writer) error
		change func(c *cut.Commit)
		text   string
	}{
		"unaligned": {fill: func(w *cut.Writer) error { return w.Data(t.Context(), 0, 512, one) }, text: "multiple"},
		"negative":  {fill: func(w *cut.Writer) error { return w.Data(t.Context(), 0, -cut.Unit, one) }, text: "outside"},
		"huge":      {fill: func(w *cut.Writer) error { return w.Zero(0, cut.MaxDisk, cut.Unit) }, text: "outside"},
		"overflow":  {fill: func(w *cut.Writer) error { return w.Zero(0, cut.Unit, 1<<63-1) }, text: "outside"},
		"overlap": {fill: func(w *cut.Writer) error {
			return errors.Join(w.Data(t.Context(), 0, 0, one), w.Data(t.Context(), 0, cut.Unit, one))
		}, text: "overlap"},
		"overlap zero": {fill: func(w *cut.Writer) error {
			return errors.Join(w.Zero(0, cut.Unit, cut.Unit), w.Data(t.Context(), 0, 0, one))
		}, text: "overlap"},
		"beyond disk":    {fill: func(w *cut.Writer) error { return w.Data(t.Context(), 0, 1<<20-cut.Unit, one) }, text: "does not fit"},
		"unknown disk":   {fill: func(w *cut.Writer) error { return w.Data(t.Context(), 1, 0, one) }, text: "does not fit"},
		"short inside":   {fill: func(w *cut.Writer) error { return w.Data(t.Context(), 0, 0, one[:100]) }, text: "does not fit"},
		"other cut":      {change: func(c *cut.Commit) { c.N++ }, text: "commit of cut 43"},
		"no time":        {change: func(c *cut.Commit) { c.Time = time.Time{} }, text: "no time"},
		"no past":        {change: func(c *cut.Commit) { c.Prev = cut.Ref{} }, text: "complete base"},
		"future prev":    {change: func(c *cut.Commit) { c.Prev.N = 42 }, text: "can't come before"},
		"newer prev":     {change: func(c *cut.Commit) { c.Prev.Gen = 4 }, text: "can't come before"},
		"prev unhashed":  {change: func(c *cut.Commit) { c.Prev.Hash = cut.Hash{} }, text: "can't come before"},
		"consistency":    {change: func(c *cut.Commit) { c.Consistency = "hope" }, text: "consistency"},
		"disk twice":     {change: func(c *cut.Commit) { c.Disks = append(c.Disks, disk) }, text: "twice"},
		"disk size":      {change: func(c *cut.Commit) { c.Disks[0].Size = 0 }, text: "size"},
		"tile twice":     {change: func(c *cut.Commit) { c.Tiles = []cut.TileRef{tileRef, tileRef} }, text: "twice"},
		"tile beyond":    {change: func(c *cut.Commit) { c.Tiles = []cut.TileRef{{Tile: 1, UID: "a", Gen: 1, Size: 1000}} }, text: "outside"},
		"tile uid":       {change: func(c *cut.Commit) { c.Tiles = []cut.TileRef{{UID: "A", Gen: 1, Size: 1000}} }, text: "impossible"},
		"part twice":     {change: func(c *cut.Commit) { c.Parts = []cut.PartRef{{Size: 1000}, {Size: 1000}} }, text: "twice"},
		"part number":    {change: func(c *cut.Commit) { c.Parts = []cut.PartRef{{K: 0x10000, Size: 1000}} }, text: "impossible"},
		"text":           {change: func(c *cut.Commit) { c.VM.Name = "\xff" }, text: "UTF-8"},
		"missing commit": {change: func(c *cut.Commit) { *c = cut.Commit{} }, text: "commit of cut 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, err := cut.NewWriter(io.Discard, cutConfig())
			if err != nil {
				t.Fatal(err)
			}
			if c.fill != nil {
				c.fill(w)
			}
			commit := testCommit(disk)
			if c.change != nil {
				c.change(commit)
			}
			_, err = w.Close(commit)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want something with %q", err, c.text)
			}
			if _, again := w.Close(commit); again != err {
				t.Errorf("the second Close says %v", again)
			}
		})
	}
	w, _ := cut.NewWriter(io.Discard, cutConfig())
	if _, err := w.Close(nil); err == nil {
		t.Error("a cut without commit was closed")
	}
	w, _ = cut.NewWriter(io.Discard, partConfig())
	if _, err := w.Close(testCommit()); err == nil {
		t.Error("a part with commit was closed")
	}
}

var tileRef = cut.TileRef{UID: "0123456789abcdef", Gen: 2, N: 7, Size: 1000, BLAKE3: cut.Hash{9}}

func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(c *cut.WriterConfig){
		"machine":   func(c *cut.WriterConfig) { c.Machine = "0F8FAD5B-D9CB-469F-A165-70867728950E" },
		"no gen":    func(c *cut.WriterConfig) { c.Gen = 0 },
		"kind":      func(c *cut.WriterConfig) { c.Kind = 9 },
		"k":         func(c *cut.WriterConfig) { c.Kind, c.K = cut.KindPart, 1<<16 },
		"stray":     func(c *cut.WriterConfig) { c.Attempt = 1 },
		"stray uid": func(c *cut.WriterConfig) { c.UID = "a" },
		"uid":       func(c *cut.WriterConfig) { c.Kind, c.UID = cut.KindTile, "../a" },
		"tile":      func(c *cut.WriterConfig) { c.Kind, c.Tile = cut.KindTile, 1<<31 },
		"codec":     func(c *cut.WriterConfig) { c.Codec = 4 },
		"workers":   func(c *cut.WriterConfig) { c.Workers = 65 },
		"frame":     func(c *cut.WriterConfig) { c.FrameLog2 = 17 },
		"tileframe": func(c *cut.WriterConfig) { c.Kind, c.FrameLog2 = cut.KindTile, 12 },
		"key":       func(c *cut.WriterConfig) { c.Key = cut.EpochKey{} },
	} {
		c := cutConfig()
		f(&c)
		if _, err := cut.NewWriter(io.Discard, c); dr.KindOf(err) != dr.KindInvalid || err == nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// failAfter fails once n bytes were written.
type failAfter struct{ n int }

var errDisk = errors.New("no space")

func (f *failAfter) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

func TestWriterFailuresLeaveNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	noise := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	for _, n := range []int{0, 100, 200, 70_000, 1 << 20, 4 << 20} {
		w, err := cut.NewWriter(&failAfter{n}, partConfig())
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < int64(len(noise)) && err == nil; off += 1 << 20 {
			err = w.Data(t.Context(), 0, off, noise[off:off+1<<20])
		}
		if _, cerr := w.Close(nil); !errors.Is(cerr, errDisk) || err != nil && !errors.Is(err, errDisk) {
			t.Errorf("limit %d: Data %v, Close %v", n, err, cerr)
		}
	}
	// A destination that hangs: the context ends the wait, and what the writer owns ends with it.
	pr, pw := io.Pipe()
	w, _ := cut.NewWriter(pw, partConfig())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := w.Data(ctx, 0, 0, noise); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Data: %v", err)
	}
	pr.CloseWithError(errDisk)
	w.Abort()
	if _, err := w.Close(nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	w, _ = cut.NewWriter(io.Discard, partConfig())
	if err := w.Data(t.Context(), 0, 0, noise); err != nil {
		t.Error(err)
	}
	w.Abort()
	w.Abort()
	if _, err := w.Close(nil); err == nil {
		t.Error("Close after Abort succeeded")
	}
	if err := w.Data(t.Context(), 0, 0, noise); err == nil {
		t.Error("Data after Abort succeeded")
	}
}

// countingSource counts reads.
type countingSource struct {
	cut.Bytes
	reads int
	bytes int64
}

func (c *countingSource) ReadRange(ctx context.Context, off, n int64) ([]byte, error) {
	c.reads++
	c.bytes += n
	return c.Bytes.ReadRange(ctx, off, n)
}

func TestOpenReadsTheTailOnly(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{2}).Read(noise)
	obj, sealed := build(t, partConfig(), nil, func(w *cut.Writer) error { return w.Data(t.Context(), 0, 0, noise) })
	src := &countingSource{Bytes: obj}
	if _, err := cut.Open(t.Context(), src, sealed.Name, testKeys()); err != nil || src.reads != 1 || src.bytes != cut.TailGuess {
		t.Errorf("%d reads of %d bytes, %v", src.reads, src.bytes, err)
	}
	// A tail larger than the guess takes two reads.
	r := rand.New(rand.NewPCG(1, 1))
	obj, sealed = build(t, partConfig(), nil, func(w *cut.Writer) error {
		for off := int64(0); w.Extents() < 60_000; off += int64(2+r.IntN(1<<20)) * cut.Unit {
			if err := w.Zero(0, off, int64(1+r.IntN(200))*cut.Unit); err != nil {
				return err
			}
			off += 200 * cut.Unit
		}
		return nil
	})
	src = &countingSource{Bytes: obj}
	if s, err := cut.Open(t.Context(), src, sealed.Name, testKeys()); err != nil || src.reads != 2 || src.bytes > int64(len(obj)) || len(s.Extents()) != 60_000 {
		t.Errorf("%d reads of %d bytes, %v", src.reads, src.bytes, err)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	xml := strings.Builder{}
	for i := 0; xml.Len() < 5<<10; i++ {
		fmt.Fprintf(&xml, "<address type='pci' domain='0x0000' bus='0x%02x' slot='0x%02x' function='0x0'/><alias name='dev%x'/>\n", i, i*7%32, i*i*i)
	}
	disks := []cut.Disk{{Index: 0, ID: "vda", Size: 1 << 40}, {Index: 1, ID: "vdb", Size: 1 << 41}}
	commit := testCommit(disks...)
	commit.VM.Config = map[string][]byte{"domain.xml": []byte(xml.String())}
	obj, _ := build(t, cutConfig(), commit, nil)
	t.Logf("idle cut: %d bytes", len(obj))
	if len(obj) > 16<<10 {
		t.Errorf("an idle cut has %d bytes", len(obj))
	}
	r := rand.New(rand.NewPCG(4, 4))
	noise := make([]byte, cut.Unit)
	fill := func(w *cut.Writer) error {
		for _, u := range r.Perm(1 << 22)[:4096] {
			for i := range noise {
				noise[i] = byte(r.Uint32())
			}
			if err := w.Data(t.Context(), uint16(u&1), int64(u)*cut.Unit, noise); err != nil {
				return err
			}
		}
		return nil
	}
	obj, sealed := build(t, cutConfig(), commit, fill)
	t.Logf("4096 random blocks: %d bytes, %.2f bytes/extent over the data", len(obj), float64(len(obj)-16<<20)/4096)
	if len(obj) > 17<<20 || sealed.Frames != 256 {
		t.Errorf("4096 random blocks make %d bytes, %d frames", len(obj), sealed.Frames)
	}
	open(t, obj, sealed.Name)
}

// TestBigCommit is the first cut of a large disk: many tiles, a regular
// pattern of extents that compresses far better than readers accept without padding.
func TestBigCommit(t *testing.T) {
	t.Parallel()
	commit := testCommit(cut.Disk{Index: 2, ID: "vda", Size: 1 << 40})
	commit.Base, commit.Prev = true, cut.Ref{}
	for i := range uint32(16384) {
		commit.Tiles = append(commit.Tiles, cut.TileRef{Disk: 2, Tile: 16383 - i, UID: cut.NewUID(), Gen: 3, N: 1, Size: 9999, BLAKE3: cut.Hash{byte(i), byte(i >> 8), 1}})
	}
	for k := range 300 {
		commit.Parts = append(commit.Parts, cut.PartRef{Attempt: 1, K: k, Size: 1 << 25, BLAKE3: cut.Hash{byte(k)}})
	}
	obj, sealed := build(t, cutConfig(), commit, func(w *cut.Writer) error {
		for i := range int64(200_000) {
			if err := w.Zero(2, i*2*cut.Unit, cut.Unit); err != nil {
				return err
			}
		}
		return nil
	})
	s := open(t, obj, sealed.Name)
	if len(s.Extents()) != 200_000 || len(s.Commit().Tiles) != 16384 || len(s.Commit().Parts) != 300 {
		t.Errorf("%d extents, %d tiles, %d parts", len(s.Extents()), len(s.Commit().Tiles), len(s.Commit().Parts))
	}
	for i, tl := range s.Commit().Tiles {
		if tl.Tile != uint32(i) || tl != commit.Tiles[16383-i] {
			t.Fatalf("tile %d is %+v", i, tl)
		}
	}
	t.Logf("%d bytes", len(obj))
}

func TestSecretsStayHidden(t *testing.T) {
	t.Parallel()
	k := testKey()
	priv, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	text, _ := priv.Text()
	secret := text[strings.LastIndex(text, ":")+1:][:20]
	var buf bytes.Buffer
	w, _ := cut.NewWriter(&buf, partConfig())
	defer w.Abort()
	obj, sealed := build(t, tileConfig(0, 0), nil, nil)
	s := open(t, obj, sealed.Name)
	dk := s.DigestKey()
	for _, v := range []any{k, &k, struct{ K cut.EpochKey }{k}, partConfig(), w, s, dk, priv, &priv, struct{ P cut.VaultPrivateKey }{priv}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			out := fmt.Sprintf(verb, v)
			for _, bad := range []string{"7 14 21", "070e15", "0x7, 0xe, 0x15", "0x07", secret, fmt.Sprintf("%x", dk.Bytes()), fmt.Sprint(dk.Bytes()[:4])[1:8]} {
				if strings.Contains(out, bad) {
					t.Errorf("%T with %s shows %q", v, verb, out)
				}
			}
		}
	}
}

// TestLongData gives more in one call than the writer takes at once.
func TestLongData(t *testing.T) {
	t.Parallel()
	p := make([]byte, 2*cut.TileSize+3*cut.Unit+5)
	for i := 0; i < len(p); i += 1 << 20 {
		p[i] = 1
	}
	obj, sealed := build(t, partConfig(), nil, func(w *cut.Writer) error { return w.Data(t.Context(), 3, cut.Unit, p) })
	got := make([]byte, cut.Unit+len(p))
	apply(t, open(t, obj, sealed.Name), obj, map[uint16][]byte{3: got})
	if !bytes.Equal(got[cut.Unit:], p) {
		t.Error("the content differs")
	}
}
