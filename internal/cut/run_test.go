package cut_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// testRun reaches the cut of testCommit from cut 17, over two disks and three segments.
func testRun() cut.RunConfig {
	c := testCommit(cut.Disk{Index: 1, ID: "vda", Size: 100*cut.Unit + 7}, cut.Disk{Index: 2, ID: "vdb", Size: 1 << 40})
	c.Parts = []cut.PartRef{{Attempt: 9, K: 1, Size: 777, BLAKE3: cut.Hash{0xcc}}} // of the cut, not of the run
	return cut.RunConfig{
		Kind: cut.KindRun, Machine: machine, KeyEpoch: 5, Key: testKey(), UID: "u1",
		At: cut.Ref{Gen: 3, N: 42, Hash: cut.Hash{0xee, 1}}, Commit: c, From: cut.Ref{Gen: 2, N: 17, Hash: cut.Hash{0xee, 2}},
		Tiles: []cut.TileRef{{Disk: 2, Tile: 16383, UID: "x-1", Gen: 3, N: 42, Size: 99, BLAKE3: cut.Hash{0xbb}}, {Disk: 1, UID: "0011223344556677", Gen: 1, N: 1, Size: 12345, BLAKE3: cut.Hash{0xaa}}},
		Segments: []cut.SegmentRef{
			{Class: cut.ClassCut, Gen: 2, N: 18, Size: 4096, Hash: cut.Hash{1}},
			{Class: cut.ClassPart, Gen: 3, N: 42, Attempt: 9, K: 1, Size: 777, Hash: cut.Hash{2}},
			{Class: cut.ClassData, Gen: 3, N: 40, UID: "0123456789abcdef", K: 65535, Size: 1 << 33, Hash: cut.Hash{3}},
		},
		Cuts: 25, Made: testTime.Add(time.Hour), Software: "1.0",
	}
}

func testMap() cut.RunConfig {
	c := testRun()
	c.Kind, c.From, c.Cuts, c.UID = cut.KindMap, cut.Ref{}, 43, "m1"
	return c
}

// testExtents uses every way to write an extent.
func testExtents() []cut.MapExtent {
	return []cut.MapExtent{
		{Disk: 1, Off: 0, Len: 4 * cut.Unit, Segment: 0, Frame: 0, FrameOff: 0},
		{Disk: 1, Off: 4 * cut.Unit, Len: 4 * cut.Unit, Segment: 0, Frame: 0, FrameOff: 4 * cut.Unit},
		{Disk: 1, Off: 8 * cut.Unit, Len: cut.Unit, Zero: true},
		{Disk: 1, Off: 16 * cut.Unit, Len: cut.Block, Segment: 2, Frame: 77, FrameOff: 0},
		{Disk: 1, Off: 32 * cut.Unit, Len: cut.Block, Segment: 2, Frame: 78, FrameOff: 0},
		{Disk: 1, Off: 48 * cut.Unit, Len: cut.Unit, Segment: 0, Frame: 0, FrameOff: 8 * cut.Unit},
		{Disk: 1, Off: 50 * cut.Unit, Len: cut.Unit, Segment: 1, Frame: 3, FrameOff: 15 * cut.Unit},
		{Disk: 1, Off: 51 * cut.Unit, Len: cut.Unit, Segment: 2, Frame: 2, FrameOff: cut.Unit},
		{Disk: 1, Off: 100 * cut.Unit, Len: 7, Segment: 2, Frame: 2, FrameOff: 2 * cut.Unit},
		{Disk: 2, Off: 1 << 30, Len: 1 << 38, Zero: true},
		{Disk: 2, Off: 1<<40 - cut.Unit, Len: cut.Unit, Segment: 1, Frame: cut.MaxFrames - 1, FrameOff: 0},
	}
}

// buildRun writes a run or map into memory.
func buildRun(t testing.TB, cfg cut.RunConfig, ext []cut.MapExtent) ([]byte, cut.Sealed) {
	t.Helper()
	var buf bytes.Buffer
	w, err := cut.NewRunWriter(&buf, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ext {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if buf.Len() != 0 {
		t.Error("something was written before Seal")
	}
	s, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.Seal(); err != nil || again != s {
		t.Errorf("the second Seal says %v", err)
	}
	if s.Size != int64(buf.Len()) || s.Extents != len(ext) || s.Name != w.Name() || w.Extents() != len(ext) {
		t.Errorf("sealed %+v, wrote %d bytes", s, buf.Len())
	}
	return buf.Bytes(), s
}

func mapOf(t testing.TB, s *cut.Segment) []cut.MapExtent {
	t.Helper()
	var out []cut.MapExtent
	for e, err := range s.Map(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func TestRun(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]cut.RunConfig{"run": testRun(), "map": testMap()} {
		obj, sealed := buildRun(t, cfg, testExtents())
		s := open(t, obj, sealed.Name)
		if got := mapOf(t, s); !slices.Equal(got, testExtents()) {
			t.Errorf("%s: extents\n%+v, want\n%+v", name, got, testExtents())
		}
		// What a reader takes for the position is the cut's hash, whichever way it asks.
		if s.Ref() != cfg.At || s.ChainHash() != cfg.At.Hash || sealed.ChainHash != cfg.At.Hash || s.Commit().Ref(cut.Hash{9}) != cfg.At || s.Commit().Ref(s.ChainHash()) != cfg.At {
			t.Errorf("%s: it is at %+v, want %+v", name, s.Ref(), cfg.At)
		}
		want := *cfg.Commit
		want.Prev, want.Base, want.Parts, want.Segments = cfg.From, cfg.From.IsZero(), nil, cfg.Segments
		want.Tiles = []cut.TileRef{cfg.Tiles[1], cfg.Tiles[0]}
		want.Run = &cut.RunInfo{Hash: cfg.At.Hash, Cuts: cfg.Cuts, Made: cfg.Made, Software: cfg.Software}
		if !reflect.DeepEqual(*s.Commit(), want) {
			t.Errorf("%s: commit\n%+v, want\n%+v", name, *s.Commit(), want)
		}
		if len(cfg.Commit.Parts) != 1 || cfg.Commit.Run != nil || cfg.Tiles[0].Disk != 2 {
			t.Errorf("%s: the caller's commit was changed", name)
		}
		if len(s.Frames()) != 0 || len(s.Extents()) != 0 || s.MapExtents() != 11 || s.DataBytes() != sealed.DataBytes || s.ZeroBytes() != 1<<38+cut.Unit || sealed.DataBytes != 4*2*cut.Unit+2*cut.Block+4*cut.Unit+7 {
			t.Errorf("%s: %d frames, %d extents, %d data, %d zero", name, len(s.Frames()), s.MapExtents(), s.DataBytes(), s.ZeroBytes())
		}
		for range s.Map(t.Context()) {
			break // the caller may stop at any time
		}
		// A run that reaches the same cut can be made of it, with the same position.
		again := cfg
		again.Commit, again.At, again.UID = s.Commit(), s.Ref(), "u2"
		obj, sealed = buildRun(t, again, nil)
		if s := open(t, obj, sealed.Name); s.Ref() != cfg.At || len(mapOf(t, s)) != 0 {
			t.Errorf("%s of a %s: %+v", name, name, s.Ref())
		}
	}
	obj, sealed := build(t, cutConfig(), testCommit(cut.Disk{Index: 1, ID: "vda", Size: 1}), nil)
	for _, err := range open(t, obj, sealed.Name).Map(t.Context()) {
		if dr.KindOf(err) != dr.KindInvalid || err == nil {
			t.Errorf("the map of a cut: %v", err)
		}
	}
}

// TestRandomMaps checks the map against the extents that went in.
func TestRandomMaps(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 11))
		cfg := testMap()
		cfg.Commit.Disks = []cut.Disk{{Index: 0, ID: "a", Size: 1 << 45}, {Index: 9, ID: "b", Size: 1<<32 + 5}, {Index: 0xffff, ID: "c", Size: cut.MaxDisk}}
		cfg.Tiles = nil
		cfg.Segments = nil
		for i := range 1 + r.IntN(300) {
			cfg.Segments = append(cfg.Segments, cut.SegmentRef{Class: cut.ClassData, Gen: 1, UID: "d", K: i, Size: 1, Hash: cut.Hash{1}})
		}
		next := map[int]cut.MapExtent{}
		var ext []cut.MapExtent
		for _, d := range cfg.Commit.Disks {
			off := int64(0)
			for range r.IntN(3000) {
				off += int64(r.IntN(3)) * int64(r.IntN(1<<uint(1+r.IntN(20)))) * cut.Unit
				e := cut.MapExtent{Disk: d.Index, Off: off, Len: int64(1+r.IntN(16)) * cut.Unit, Zero: r.IntN(4) == 0}
				if e.Zero {
					e.Len <<= r.IntN(20)
				} else {
					e.Segment = r.IntN(len(cfg.Segments))
					if p, ok := next[e.Segment]; ok && r.IntN(3) > 0 && p.FrameOff+uint32(e.Len) <= cut.Block {
						e.Frame, e.FrameOff = p.Frame, p.FrameOff
					} else {
						e.Frame, e.FrameOff = r.Uint32N(cut.MaxFrames), uint32(r.Int64N((cut.Block-e.Len)/cut.Unit+1)*cut.Unit)
					}
					next[e.Segment] = cut.MapExtent{Frame: e.Frame, FrameOff: e.FrameOff + uint32(e.Len)}
				}
				if e.End() > d.Size {
					break
				}
				ext = append(ext, e)
				off = e.End()
			}
			if n := d.Size % cut.Unit; n != 0 && r.IntN(2) == 0 && off <= d.Size-n {
				ext = append(ext, cut.MapExtent{Disk: d.Index, Off: d.Size - n, Len: n, Zero: r.IntN(2) == 0})
			}
		}
		obj, sealed := buildRun(t, cfg, ext)
		if got := mapOf(t, open(t, obj, sealed.Name)); !slices.Equal(got, ext) {
			t.Fatalf("seed %d: %d extents came back of %d", seed, len(got), len(ext))
		}
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(c *cut.RunConfig)
		text   string
	}{
		"kind":            {func(c *cut.RunConfig) { c.Kind = cut.KindCut }, "written by a Writer"},
		"other position":  {func(c *cut.RunConfig) { c.At.N++ }, "not the one of cut 43"},
		"no commit":       {func(c *cut.RunConfig) { c.Commit = nil }, "commit"},
		"object's hash":   {func(c *cut.RunConfig) { c.Commit.Run = &cut.RunInfo{Hash: cut.Hash{5}} }, "not the one"},
		"no hash":         {func(c *cut.RunConfig) { c.At.Hash = cut.Hash{} }, "which cut it reaches"},
		"not made":        {func(c *cut.RunConfig) { c.Made = time.Time{} }, "when it was made"},
		"key":             {func(c *cut.RunConfig) { c.Key = cut.EpochKey{} }, "no epoch key"},
		"machine":         {func(c *cut.RunConfig) { c.Machine = "x" }, "lower-case UUID"},
		"uid":             {func(c *cut.RunConfig) { c.UID = "U" }, "uid"},
		"from 0":          {func(c *cut.RunConfig) { c.From.N = 0 }, "can't go on from cut 0"},
		"from itself":     {func(c *cut.RunConfig) { c.From.N = 42 }, "ends before it begins"},
		"from nowhere":    {func(c *cut.RunConfig) { c.From.Hash = cut.Hash{} }, "can't come before"},
		"from the future": {func(c *cut.RunConfig) { c.From.Gen = 4 }, "can't come before"},
		"map from":        {func(c *cut.RunConfig) { c.Kind = cut.KindMap }, "only runs go on"},
		"no cuts":         {func(c *cut.RunConfig) { c.Cuts = 0 }, "do not fit between"},
		"many cuts":       {func(c *cut.RunConfig) { c.Cuts = 26 }, "do not fit between"},
		"all cuts":        {func(c *cut.RunConfig) { c.From, c.Cuts = cut.Ref{}, 44 }, "do not fit between"},
		"tile twice":      {func(c *cut.RunConfig) { c.Tiles[0] = c.Tiles[1] }, "twice"},
		"segment twice":   {func(c *cut.RunConfig) { c.Segments[0] = c.Segments[1] }, "twice"},
		"segment class":   {func(c *cut.RunConfig) { c.Segments[0].Class = cut.ClassTile }, "impossible reference"},
		"segment fields":  {func(c *cut.RunConfig) { c.Segments[0].K = 1 }, "impossible reference"},
		"segment uid":     {func(c *cut.RunConfig) { c.Segments[2].UID = "" }, "impossible reference"},
		"segment gen":     {func(c *cut.RunConfig) { c.Segments[0].Gen = 4 }, "outside"},
		"segment behind":  {func(c *cut.RunConfig) { c.Segments[0].N = 43 }, "outside"},
		"segment before":  {func(c *cut.RunConfig) { c.Segments[0].N = 17 }, "outside"},
		"segment size":    {func(c *cut.RunConfig) { c.Segments[0].Size = 0 }, "size or hash"},
		"segment hash":    {func(c *cut.RunConfig) { c.Segments[0].Hash = cut.Hash{} }, "size or hash"},
	} {
		cfg := testRun()
		c.change(&cfg)
		if _, err := cut.NewRunWriter(io.Discard, cfg); err == nil || dr.KindOf(err) != dr.KindInvalid || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want something with %q", name, err, c.text)
		}
	}
	cfg := testRun()
	cfg.From, cfg.Cuts = cut.Ref{}, 43 // complete: cuts 0 to 42
	if _, err := cut.NewRunWriter(io.Discard, cfg); err != nil {
		t.Errorf("a complete run: %v", err)
	}
	for _, k := range []cut.Kind{cut.KindRun, cut.KindMap} {
		w := cutConfig()
		w.Kind, w.UID = k, "u"
		if _, err := cut.NewWriter(io.Discard, w); err == nil || !strings.Contains(err.Error(), "RunWriter") {
			t.Errorf("a Writer for a %s: %v", k, err)
		}
	}
	// Neither fields of a run in a cut, nor a cut's parts in a run.
	for name, change := range map[string]func(c *cut.Commit){
		"run":      func(c *cut.Commit) { c.Run = &cut.RunInfo{Hash: cut.Hash{1}, Cuts: 1, Made: testTime} },
		"segments": func(c *cut.Commit) { c.Segments = testRun().Segments },
	} {
		w, _ := cut.NewWriter(io.Discard, cutConfig())
		c := testCommit(cut.Disk{ID: "a", Size: 1})
		change(c)
		if _, err := w.Close(c); err == nil || !strings.Contains(err.Error(), "only runs and maps") {
			t.Errorf("a cut with %s: %v", name, err)
		}
	}
}

func TestMapExtentRefused(t *testing.T) {
	t.Parallel()
	ok := cut.MapExtent{Disk: 1, Off: 10 * cut.Unit, Len: cut.Unit}
	for name, c := range map[string]struct {
		change func(e *cut.MapExtent)
		text   string
	}{
		"empty":        {func(e *cut.MapExtent) { e.Len = 0 }, "does not fit"},
		"negative":     {func(e *cut.MapExtent) { e.Len = -1 }, "does not fit"},
		"unaligned":    {func(e *cut.MapExtent) { e.Off += 512 }, "does not fit"},
		"short inside": {func(e *cut.MapExtent) { e.Len = 5 }, "does not fit"},
		"beyond":       {func(e *cut.MapExtent) { e.Off = 100 * cut.Unit }, "does not fit"},
		"overflow":     {func(e *cut.MapExtent) { e.Zero, e.Len = true, 1<<63-1 }, "does not fit"},
		"disk":         {func(e *cut.MapExtent) { e.Disk = 3 }, "does not fit"},
		"disk before":  {func(e *cut.MapExtent) { e.Disk = 0 }, "comes after"},
		"before":       {func(e *cut.MapExtent) { e.Off = 8 * cut.Unit }, "comes after"},
		"segment":      {func(e *cut.MapExtent) { e.Segment = 3 }, "does not exist"},
		"no segment":   {func(e *cut.MapExtent) { e.Segment = -1 }, "does not exist"},
		"frame":        {func(e *cut.MapExtent) { e.Frame = cut.MaxFrames }, "does not exist"},
		"long":         {func(e *cut.MapExtent) { e.Len = cut.Block + cut.Unit }, "not in one frame"},
		"behind frame": {func(e *cut.MapExtent) { e.FrameOff = cut.Block }, "not in one frame"},
		"far behind":   {func(e *cut.MapExtent) { e.FrameOff = 1<<32 - cut.Unit }, "not in one frame"},
		"within unit":  {func(e *cut.MapExtent) { e.FrameOff = 1 }, "not in one frame"},
		"placed zero":  {func(e *cut.MapExtent) { e.Zero, e.Frame = true, 1 }, "has a place"},
	} {
		var buf bytes.Buffer
		w, err := cut.NewRunWriter(&buf, testRun())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(cut.MapExtent{Disk: 1, Off: 8 * cut.Unit, Len: cut.Unit + cut.Unit, Zero: true}); err != nil {
			t.Fatal(err)
		}
		e := ok
		c.change(&e)
		err = w.Add(e)
		if err == nil || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), w.Name().Key()) {
			t.Errorf("%s: got %v, want something with %q", name, err, c.text)
		}
		if _, again := w.Seal(); again != err || buf.Len() != 0 {
			t.Errorf("%s: Seal says %v and wrote %d bytes", name, again, buf.Len())
		}
	}
	w, _ := cut.NewRunWriter(&failAfter{200}, testRun())
	if _, err := w.Seal(); !errors.Is(err, errDisk) {
		t.Errorf("a full disk: %v", err)
	}
	if err := w.Add(ok); !errors.Is(err, errDisk) {
		t.Errorf("Add after a full disk: %v", err)
	}
	w, _ = cut.NewRunWriter(io.Discard, testRun())
	if _, err := w.Seal(); err != nil {
		t.Error(err)
	}
	if err := w.Add(ok); err == nil {
		t.Error("Add after Seal succeeded")
	}
}

// scattered adds n extents of 4 KiB with gaps, spread over the segments, and returns how many there are.
func scattered(t testing.TB, w *cut.RunWriter, n, segments int) {
	t.Helper()
	r := rand.New(rand.NewPCG(5, 5))
	next := make([]uint32, segments)
	off := int64(0)
	for range n {
		s := r.IntN(segments)
		e := cut.MapExtent{Disk: 2, Off: off, Len: cut.Unit, Segment: s, Frame: next[s] / 16, FrameOff: next[s] % 16 * cut.Unit}
		next[s]++
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
		off += int64(1+r.IntN(12)) * cut.Unit
	}
}

// TestMapMemory writes and reads a large map and watches the memory.
func TestMapMemory(t *testing.T) {
	n := 3 << 20
	if testing.Short() {
		n = 1 << 19
	}
	cfg := testRun()
	cfg.From, cfg.Cuts = cut.Ref{}, 43
	cfg.Segments = nil
	for k := range 100 {
		cfg.Segments = append(cfg.Segments, cut.SegmentRef{Class: cut.ClassData, Gen: 1, N: 1, UID: "d", K: k, Size: 1, Hash: cut.Hash{1}})
	}
	var buf bytes.Buffer
	w, err := cut.NewRunWriter(&buf, cfg)
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	scattered(t, w, n, 100)
	if used := heap() - before; used > int64(n)*5+8<<20 {
		t.Errorf("the writer holds %d bytes for %d extents", used, n)
	}
	sealed, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d extents in %d bytes, %.2f each", n, sealed.Size, float64(sealed.Size)/float64(n))
	src := &countingSource{Bytes: buf.Bytes()}
	s, err := cut.Open(t.Context(), src, sealed.Name, testKeys())
	if err != nil || src.reads != 1 || src.bytes != cut.TailGuess {
		t.Fatalf("Open: %d reads of %d bytes, %v", src.reads, src.bytes, err)
	}
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	count := 0
	for _, err := range s.Map(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	runtime.ReadMemStats(&m1)
	if count != n || src.reads != 2 {
		t.Errorf("%d extents in %d reads", count, src.reads)
	}
	if got := int64(m1.TotalAlloc - m0.TotalAlloc); got > 2*sealed.Size+6<<20 {
		t.Errorf("%d bytes were allocated to read a map of %d bytes", got, sealed.Size)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMapReadErrors(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	w, err := cut.NewRunWriter(&buf, testRun())
	if err != nil {
		t.Fatal(err)
	}
	scattered(t, w, 200_000, 3)
	sealed, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	for _, short := range []bool{false, true} {
		src := &brokenSource{Bytes: buf.Bytes(), good: 1, short: short}
		s, err := cut.Open(t.Context(), src, sealed.Name, testKeys())
		if err != nil {
			t.Fatal(err)
		}
		want := dr.CodeStoreUnreachable
		if short {
			want = dr.CodeObjectCorrupt
		}
		got := 0
		for _, err := range s.Map(t.Context()) {
			if got++; dr.CodeOf(err) != want || !strings.Contains(err.Error(), sealed.Name.Key()) {
				t.Errorf("short %v: %v", short, err)
			}
		}
		if got != 1 {
			t.Errorf("short %v: %d times", short, got)
		}
	}
	bad := bytes.Clone(buf.Bytes())
	bad[1000] ^= 1
	s, err := cut.Open(t.Context(), cut.Bytes(bad), sealed.Name, testKeys())
	if err != nil {
		t.Fatalf("Open reads the map: %v", err)
	}
	for e, err := range s.Map(t.Context()) {
		if dr.CodeOf(err) != dr.CodeObjectCorrupt || e != (cut.MapExtent{}) {
			t.Errorf("a damaged map: %+v, %v", e, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s = open(t, buf.Bytes(), sealed.Name)
	n := 0
	var last error
	for _, err := range s.Map(ctx) {
		if n++; n == 50_000 {
			cancel()
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) || dr.CodeOf(last) == dr.CodeObjectCorrupt || n > 150_000 {
		t.Errorf("%d extents after the context ended at 50000: %v", n, last)
	}
}

// TestMapOfCuts makes a map of real cuts and data and reads a disk through it.
func TestMapOfCuts(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(8, 8))
	const size = 300*cut.Unit + 11
	disk := cut.Disk{Index: 4, ID: "vda", Size: size}
	want, got := make([]byte, size), make([]byte, size)
	cfg := testMap()
	cfg.Tiles, cfg.Segments, cfg.Commit.Disks, cfg.Commit.Tiles = nil, nil, []cut.Disk{disk}, nil
	type where struct {
		seg int
		e   cut.Extent
	}
	own := make([]*where, (size+cut.Unit-1)/cut.Unit)
	var segs []*cut.Segment
	for i := range 5 {
		wc, commit := cutConfig(), (*cut.Commit)(nil)
		wc.FrameLog2 = 13 + r.IntN(4)
		ref := cut.SegmentRef{Class: cut.ClassCut, Gen: 3, N: uint64(i)}
		if i == 4 {
			wc.Kind, wc.UID, wc.K = cut.KindData, "d", 3
			ref = cut.SegmentRef{Class: cut.ClassData, Gen: 3, N: 42, UID: "d", K: 3}
		} else {
			wc.N = uint64(i)
			commit = testCommit(disk)
			commit.N, commit.Prev, commit.Base = wc.N, cut.Ref{}, true
		}
		fresh := make([]byte, size)
		content(r, fresh)
		obj, sealed := build(t, wc, commit, func(w *cut.Writer) error {
			_, err := writeSome(r, w, disk, fresh, bytes.Clone(fresh), 0)
			return err
		})
		s := open(t, obj, sealed.Name)
		apply(t, s, obj, map[uint16][]byte{4: want})
		for _, e := range s.Extents() {
			for off := e.Off; off < e.End(); off += cut.Unit {
				u := e
				u.Off, u.Len = off, min(cut.Unit, e.End()-off)
				if !e.Zero {
					u.FrameOff += uint32(off - e.Off)
				}
				own[off/cut.Unit] = &where{i, u}
			}
		}
		ref.Size, ref.Hash = sealed.Size, s.ChainHash()
		if cut.SegmentName(machine, ref) != sealed.Name {
			t.Errorf("reference %+v to %s", ref, sealed.Name)
		}
		cfg.Segments = append(cfg.Segments, ref)
		segs = append(segs, s)
	}
	var ext []cut.MapExtent
	for _, o := range own {
		if o == nil {
			continue
		}
		e := cut.MapExtent{Disk: 4, Off: o.e.Off, Len: o.e.Len, Zero: o.e.Zero}
		if !e.Zero {
			e.Segment, e.Frame, e.FrameOff = o.seg, o.e.Frame, o.e.FrameOff
		}
		ext = append(ext, e)
	}
	obj, sealed := buildRun(t, cfg, ext)
	for _, e := range mapOf(t, open(t, obj, sealed.Name)) {
		if e.Zero {
			continue
		}
		if err := segs[e.Segment].CheckExtent(e); err != nil {
			t.Fatal(err)
		}
		for what, change := range map[string]func(e *cut.MapExtent){
			"frame": func(e *cut.MapExtent) { e.Frame++ }, "place": func(e *cut.MapExtent) { e.FrameOff += cut.Unit }, "disk": func(e *cut.MapExtent) { e.Disk++ },
			"offset": func(e *cut.MapExtent) { e.Off += cut.Unit }, "length": func(e *cut.MapExtent) { e.Len += cut.Block }, "zero": func(e *cut.MapExtent) { e.Zero = true },
		} {
			bad := e
			if change(&bad); dr.CodeOf(segs[e.Segment].CheckExtent(bad)) != dr.CodeObjectCorrupt {
				t.Errorf("another %s of %+v is taken", what, e)
			}
		}
		p, err := segs[e.Segment].ReadFrame(t.Context(), int(e.Frame), nil)
		if err != nil {
			t.Fatal(err)
		}
		copy(got[e.Off:e.End()], p[e.FrameOff:])
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk differs through the map")
	}
}

func TestSeed(t *testing.T) {
	t.Parallel()
	c := testCommit(cut.Disk{ID: "a", Size: 1})
	c.Seed = true
	cfg := cutConfig()
	cfg.Seed = true
	obj, sealed := build(t, cfg, c, nil)
	if s := open(t, obj, sealed.Name); !s.Commit().Seed || !s.Header().Seed {
		t.Error("it does not say that it is a seed")
	}
	for _, at := range []int{0, len(obj) - 256} {
		if obj[at+120] != 1 { // what refuses it to a reader that does not know seeds
			t.Errorf("the feature bits are %x", obj[at+120:at+124])
		}
	}
	// Header and commit must agree.
	for _, header := range []bool{false, true} {
		cfg, c := cutConfig(), testCommit(cut.Disk{ID: "a", Size: 1})
		cfg.Seed, c.Seed = header, !header
		w, _ := cut.NewWriter(io.Discard, cfg)
		if _, err := w.Close(c); err == nil || !strings.Contains(err.Error(), "seed") {
			t.Errorf("header %v: %v", header, err)
		}
	}
	p := partConfig()
	p.Seed = true
	if _, err := cut.NewWriter(io.Discard, p); err == nil {
		t.Error("a part can be a seed")
	}
	run := testRun()
	run.Commit.Seed = true
	obj, sealed = buildRun(t, run, nil)
	if s := open(t, obj, sealed.Name); !s.Header().Seed || !s.Commit().Seed || obj[120] != 1 {
		t.Error("a run that reaches a seed does not say so")
	}
}

func TestGroup(t *testing.T) {
	t.Parallel()
	const other dr.MachineID = "1f8fad5b-d9cb-469f-a165-70867728950e"
	for name, c := range map[string]struct {
		g    cut.Group
		text string
	}{
		"good":     {cut.Group{ID: "erp", Seq: 7, Members: []dr.MachineID{other, machine}}, ""},
		"no id":    {cut.Group{Members: []dr.MachineID{machine}}, "no id"},
		"text":     {cut.Group{ID: "\xff", Members: []dr.MachineID{machine}}, "UTF-8"},
		"not in":   {cut.Group{ID: "erp", Members: []dr.MachineID{other}}, "not a member"},
		"twice":    {cut.Group{ID: "erp", Members: []dr.MachineID{machine, machine}}, "twice"},
		"no uuid":  {cut.Group{ID: "erp", Members: []dr.MachineID{machine, "web"}}, "UUID"},
		"no names": {cut.Group{ID: "erp"}, "not a member"},
	} {
		var buf bytes.Buffer
		w, _ := cut.NewWriter(&buf, cutConfig())
		commit := testCommit(cut.Disk{ID: "a", Size: 1})
		commit.Group = &c.g
		sealed, err := w.Close(commit)
		switch {
		case c.text != "":
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: got %v, want something with %q", name, err, c.text)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		default:
			if s := open(t, buf.Bytes(), sealed.Name); !reflect.DeepEqual(s.Commit(), commit) {
				t.Errorf("%s: %+v", name, s.Commit().Group)
			}
		}
	}
}

// TestCounts checks what tells encryption from everyday writes.
func TestCounts(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 3*cut.Block)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	text := bytes.Repeat([]byte("all work and no play. "), 20_000)[:5*cut.Block]
	// A frame that shrinks by a little more or less than 5 %.
	less, more := bytes.Clone(noise[:cut.Block]), bytes.Clone(noise[:cut.Block])
	clear(less[:2*1024])
	clear(more[:3*1024])
	clear(more[cut.Unit:][:3*1024])
	for codec, want := range map[cut.Codec]cut.Counts{
		cut.CodecZstd:  {RawFrames: 4, IncompressibleBytes: 4 * cut.Block},
		cut.CodecMinLZ: {RawFrames: 4, IncompressibleBytes: 4 * cut.Block},
		cut.CodecNone:  {},
	} {
		cfg := partConfig()
		cfg.Codec = codec
		var buf bytes.Buffer
		w, err := cut.NewWriter(&buf, cfg)
		if err != nil {
			t.Fatal(err)
		}
		off := int64(0)
		for _, p := range [][]byte{noise, text, less, more} {
			if err := w.Data(t.Context(), 0, off, p); err != nil {
				t.Fatal(err)
			}
			off += int64(len(p))
		}
		want.DataBytes = off
		c, err := w.End()
		if err != nil || c != want {
			t.Errorf("%s: counted %+v, want %+v, %v", codec, c, want, err)
		}
		if again, err := w.End(); err != nil || again != c {
			t.Errorf("%s: the second End says %+v, %v", codec, again, err)
		}
		if err := w.Data(t.Context(), 0, off, text); err == nil {
			t.Errorf("%s: Data after End succeeded", codec)
		}
		s, err := w.Close(nil)
		if err == nil || s.Name != (cut.ObjectName{}) {
			t.Errorf("%s: an error of Data was forgotten", codec)
		}
	}
	obj, sealed := build(t, partConfig(), nil, func(w *cut.Writer) error { return w.Data(t.Context(), 0, 0, noise) })
	open(t, obj, sealed.Name)
	if sealed.RawFrames != 3 || sealed.IncompressibleBytes != int64(len(noise)) {
		t.Errorf("sealed %+v", sealed.Counts)
	}
	// The figures reach the commit through End.
	w, _ := cut.NewWriter(io.Discard, cutConfig())
	commit := testCommit(cut.Disk{ID: "a", Size: 1 << 30})
	err := w.Data(t.Context(), 0, 0, noise)
	c, err2 := w.End()
	commit.Stats.RawFrames, commit.Stats.IncompressibleBytes, commit.Stats.ChangedBytes = c.RawFrames, c.IncompressibleBytes, 5
	if _, err3 := w.Close(commit); errors.Join(err, err2, err3) != nil {
		t.Error(err, err2, err3)
	}
	// A writer that failed says so at End as well.
	w, _ = cut.NewWriter(&failAfter{100}, partConfig())
	_ = w.Data(t.Context(), 0, 0, noise)
	if _, err := w.End(); !errors.Is(err, errDisk) {
		t.Errorf("End after a full disk: %v", err)
	}
	w.Abort()
	if _, err := w.Close(nil); !errors.Is(err, errDisk) {
		t.Errorf("Close after a full disk: %v", err)
	}
}

func TestRoot(t *testing.T) {
	t.Parallel()
	k := cut.DigestKey{1, 2, 3}
	sums := make([][16]byte, 1024)
	for i := range sums {
		sums[i] = k.Sum(fmt.Appendf(nil, "block %d", i))
	}
	root := k.Root(sums)
	if root == [32]byte{} || root != k.NewDigester().Root(sums) {
		t.Error("the root is not a function of the digests")
	}
	seen := map[[32]byte]bool{root: true, {}: true}
	for i := range sums {
		for _, change := range []func(s [][16]byte){func(s [][16]byte) { s[i][i%16] ^= 1 }, func(s [][16]byte) { s[i] = [16]byte{} }} {
			s := slices.Clone(sums)
			change(s)
			r := k.Root(s)
			if seen[r] {
				t.Fatalf("the root does not depend on block %d", i)
			}
			seen[r] = true
		}
	}
	if (cut.DigestKey{9}).Root(sums) == root {
		t.Error("the root does not depend on the key")
	}
	if k.Root(make([][16]byte, 1024)) != [32]byte{} || k.Root(nil) != [32]byte{} {
		t.Error("a tile of zeros has another root than zeros")
	}
	short := slices.Clone(sums)
	clear(short[700:])
	if k.Root(short) != k.Root(sums[:700]) {
		t.Error("digests that are missing do not count as zeros")
	}
	// The order of 4 KiB more must not meet a block's digest: a block is 64 KiB, with another beginning.
	table := make([]byte, 0, 16*1024)
	for _, s := range sums {
		table = append(table, s[:]...)
	}
	if d := k.Sum(table); bytes.Equal(d[:], root[:16]) {
		t.Error("a root is a block's digest")
	}
}

func BenchmarkMap(b *testing.B) {
	const n = 4 << 20
	cfg := testRun()
	cfg.From, cfg.Cuts = cut.Ref{}, 43
	cfg.Segments = nil
	for k := range 288 {
		cfg.Segments = append(cfg.Segments, cut.SegmentRef{Class: cut.ClassData, Gen: 1, N: 1, UID: "d", K: k, Size: 1, Hash: cut.Hash{1}})
	}
	var buf bytes.Buffer
	var sealed cut.Sealed
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			buf.Reset()
			w, err := cut.NewRunWriter(&buf, cfg)
			if err != nil {
				b.Fatal(err)
			}
			scattered(b, w, n, 288)
			if sealed, err = w.Seal(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/extent")
		b.ReportMetric(float64(sealed.Size)/n, "B/extent")
	})
	b.Run("read", func(b *testing.B) {
		s := open(b, buf.Bytes(), sealed.Name)
		for b.Loop() {
			for _, err := range s.Map(b.Context()) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/extent")
	})
}
