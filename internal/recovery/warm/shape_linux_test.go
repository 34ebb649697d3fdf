package warm_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/pageblob"
	"holdfast/internal/pageblob/pageblobtest"
	"holdfast/internal/recovery/warm"
	"holdfast/internal/store/storetest"
	"holdfast/internal/vhd"
)

// shrink makes disk i shorter, before anything is written for the next cut.
func (w *world) shrink(i int, size int64) {
	w.Disks = slices.Clone(w.Disks)
	w.Disks[i].Size = size
	w.Flat[i] = bytes.Clone(w.Flat[i][:size])
	if size%cut.Unit != 0 { // the unit at the new end has become shorter
		w.Write(i, size/cut.Unit*cut.Unit, bytes.Clone(w.Flat[i][size/cut.Unit*cut.Unit:]))
	}
}

// TestShrink: a disk that became smaller, by a cut or by a new base, step by step or at once with
// growing again, forward and back.
func TestShrink(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	both(t, shrink)
}

func shrink(t *testing.T, svc service) {
	w := newWorld(t, svc, 30, 4*mib)
	w.scribbleAll(8)
	w.Base()
	large := w.Points[0]
	w.mustApply(large)
	incremental := func(what string, p storetest.Point) {
		t.Helper()
		if res := w.mustApply(p); len(res.Compared) > 0 || res.Unchanged {
			t.Errorf("%s: %+v", what, res)
		}
	}
	w.shrink(0, 2*mib+512*3)
	w.scribble(0, 2)
	small := w.Cut()
	incremental("by a cut", small)
	// What is beyond is gone from the blob, not hidden: it reads as zeroes when the disk grows.
	w.GrowDisk(0, 3*mib+4096)
	w.Write(0, 2*mib, make([]byte, mib+4096)) // as the capture of a disk that grew sends it
	grown := w.Cut()
	incremental("grown again", grown)
	w.shrink(0, mib+512)
	w.Cut()
	w.GrowDisk(0, 3*mib)
	w.Write(0, mib, make([]byte, 2*mib))
	w.scribble(0, 2)
	incremental("both at once", w.Cut())
	for i, p := range []storetest.Point{small, grown} { // those have been made, and are left alone
		if res := w.mustApply(p); !res.Unchanged {
			t.Errorf("back %d: %+v", i, res)
		}
	}
	// Backwards over a change of size, without the snapshots.
	w.shrink(0, 2*mib)
	before := w.Cut()
	w.GrowDisk(0, 4*mib)
	w.Write(0, 2*mib, make([]byte, 2*mib))
	w.scribble(0, 4)
	incremental("forward", w.Cut())
	incremental("back to a smaller one", before)
	w.shrink(0, mib)
	w.Base()
	if res := w.mustApply(w.Points[len(w.Points)-1]); len(res.Compared) == 0 {
		t.Errorf("over a new base: %+v", res)
	}
	w.checkAll()
	// Ended at each request, half-way smaller; then forward, to a larger one again.
	step := 1
	if svc.slow {
		step = 4
	}
	resized := func(r *http.Request) bool { return r.Method == http.MethodPut && r.URL.Query().Get("comp") != "" }
	fired := 0
	for at, hit := 1, 1; hit > 0; at += step {
		w.GrowDisk(0, 3*mib)
		w.Write(0, int64(mib), make([]byte, 2*mib))
		w.scribble(0, 2)
		w.mustApply(w.Cut())
		w.shrink(0, mib)
		hit = w.broken([]string{"killed before", "killed after"}[at/step%2], resized, at)
		fired += hit
	}
	if fired < 8/step {
		t.Errorf("only %d requests were broken", fired)
	}
	t.Logf("%d requests broken", fired)
	w.checkAll()
}

// TestLimits applies to blobs that take less than is sent.
func TestLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	t.Parallel()
	e := pageblobtest.StartSimulator(t)
	svc := service{e.Container, pageblob.Config{Key: e.Key}, e.Transport, false}
	w := newWorld(t, svc, 31, 2*mib, mib)
	svc.access.Transport, svc.access.Attempts, svc.access.BaseDelay, svc.access.MaxDelay = w.tr, 300, 5*time.Millisecond, 50*time.Millisecond
	r, err := warm.New(warm.Config{Container: svc.container, Access: svc.access, Rate: -1, Requests: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	w.scribbleAll(8)
	w.Base()
	for name, l := range map[string]pagestore.Limits{"requests": {RequestsPerSecond: 15}, "bytes": {BytesPerSecond: 512 << 10}} {
		w.scribbleAll(10)
		for range 12 { // single blocks, each a request
			p := make([]byte, 4096)
			w.fill(p)
			w.Write(0, w.rnd.Int64N(2*mib/4096)*4096, p)
		}
		p := w.Base()
		e.Limit(l)
		before, failed := w.tr.Total(), e.Counts()["PutPage"].Failed
		res, err := w.apply(r, p)
		e.Limit(pagestore.Limits{})
		if err != nil {
			t.Fatalf("%s: %+v, %v", name, res, err)
		}
		throttled := e.Counts()["PutPage"].Failed - failed
		t.Logf("%s: %+v, %d requests, %d failed", name, res, w.tr.Total()-before, throttled)
		if throttled == 0 {
			t.Errorf("%s: nothing was throttled", name)
		}
		w.check(p)
	}
}

// largePoint writes a chain of one disk: an empty base and a cut with these blocks.
func largePoint(t *testing.T, w *world, size int64, blocks map[int64]byte) (base, full cut.Ref) {
	t.Helper()
	var prev cut.Ref
	refs := []cut.Ref{}
	for n := range uint64(2) {
		buf := &bytes.Buffer{}
		c := &cut.Commit{Gen: 1, N: n, Prev: prev, Time: time.Unix(1e9+int64(n), 0).UTC(), Consistency: dr.CrashConsistent, Base: n == 0,
			Disks: []cut.Disk{{Index: 0, ID: "vda", Size: size}}, VM: w.VM}
		cw, err := cut.NewWriter(buf, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: w.Machine, Gen: 1, N: n, KeyEpoch: 1}, Key: w.Key})
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			for _, off := range slices.Sorted(func(yield func(int64) bool) {
				for off := range blocks {
					if !yield(off) {
						return
					}
				}
			}) {
				if err := cw.Data(t.Context(), 0, off, bytes.Repeat([]byte{blocks[off]}, cut.Unit)); err != nil {
					t.Fatal(err)
				}
			}
		}
		s, err := cw.Close(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Bucket.PutNew(t.Context(), s.Name.Key(), bytes.NewReader(buf.Bytes()), int64(buf.Len()), nil); err != nil {
			t.Fatal(err)
		}
		prev = c.Ref(s.ChainHash)
		refs = append(refs, prev)
	}
	return refs[0], refs[1]
}

// TestLarge keeps a disk warm that no VHD file can hold.
func TestLarge(t *testing.T) {
	both(t, large)
}

func large(t *testing.T, svc service) {
	if testing.Short() {
		t.Skip("slow")
	}
	const size = int64(4095) << 30
	w := &world{Replica: storetest.New(t, mem.New(), mib), t: t, svc: svc}
	w.tr = &pageblobtest.Transport{Base: svc.base}
	w.warm = w.writer(w.tr, 3)
	blocks := map[int64]byte{4096: 1, 2040 << 30: 2, 3000<<30 + 77*4096: 3, size - 4096: 4}
	base, full := largePoint(t, w, size, blocks)
	for i, ref := range []cut.Ref{base, full} {
		res, err := w.warm.Apply(t.Context(), w.Store(), w.Machine, ref.Gen, ref.N)
		if err != nil || (len(res.Compared) > 0) != (i == 0) || res.Bytes != int64(i*len(blocks))*4096 {
			t.Fatalf("%+v, %v", res, err)
		}
		t.Logf("%+v", res)
	}
	st, err := w.warm.Status(t.Context(), w.Machine)
	if err != nil || len(st.Points) != 2 || st.Disks[0].Size != size {
		t.Fatalf("%+v, %v", st, err)
	}
	a := svc.access
	a.Transport = svc.base
	c, err := pageblob.Open(st.Disks[0].URL, a)
	if err == nil {
		c, err = c.At(st.Points[1].Disks["vda"].Snapshot)
	}
	if err != nil {
		t.Fatal(err)
	}
	for off, b := range blocks {
		p := make([]byte, 3*4096)
		if err := c.ReadAt(t.Context(), p[:min(3*4096, size+512-off+4096)], off-4096); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 3*4096)
		copy(want[4096:], bytes.Repeat([]byte{b}, 4096))
		if off == size-4096 {
			f, err := vhd.DecodeFooter(p[8192:])
			if err != nil || f.Size != size {
				t.Errorf("%+v, %v", f, err)
			}
			clear(p[8192:])
		}
		if !bytes.Equal(p, want) {
			t.Errorf("the image differs at %d", off)
		}
	}
	w = &world{Replica: storetest.New(t, mem.New(), mib), t: t, svc: svc}
	_, full = largePoint(t, w, vhd.MaxPageBlob+mib, blocks)
	if _, err := w.writer(&pageblobtest.Transport{Base: svc.base}, 3).Apply(t.Context(), w.Store(), w.Machine, full.Gen, full.N); dr.CodeOf(err) != dr.CodeAzureDisk || dr.KindOf(err) != dr.KindUnsupported {
		t.Error(fmt.Errorf("above what a page blob holds: %w", err))
	}
}
