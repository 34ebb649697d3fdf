package warm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/pageblob"
	"holdfast/internal/pageblob/pageblobtest"
	"holdfast/internal/recovery/warm"
	"holdfast/internal/store/storetest"
	"holdfast/internal/vhd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// service is where page blobs are.
type service struct {
	container string
	access    pageblob.Config
	base      http.RoundTripper
	slow      bool
}

func emulator(t *testing.T) service {
	e := pageblobtest.StartAzurite(t)
	return service{e.Container, pageblob.Config{Key: e.Key}, e.Transport, true}
}

func simulator(t *testing.T) service {
	e := pageblobtest.StartSimulator(t)
	return service{e.Container, pageblob.Config{Key: e.Key}, e.Transport, false}
}

// both runs a test against Microsoft's emulator and the simulator.
func both(t *testing.T, f func(t *testing.T, svc service)) {
	t.Parallel()
	t.Run("simulator", func(t *testing.T) { f(t, simulator(t)) })
	t.Run("azurite", func(t *testing.T) {
		if testing.Short() {
			t.Skip("slow")
		}
		f(t, emulator(t))
	})
}

// world is a replica in a bucket and its warm copy in a container.
type world struct {
	*storetest.Replica
	t    *testing.T
	svc  service
	tr   *pageblobtest.Transport
	warm *warm.Replica
	rnd  *rand.Rand
}

func newWorld(t *testing.T, svc service, seed uint64, sizes ...int64) *world {
	t.Helper()
	w := &world{Replica: storetest.New(t, mem.New(), sizes...), t: t, svc: svc, rnd: rand.New(rand.NewPCG(seed, 5))}
	w.tr = &pageblobtest.Transport{Base: svc.base}
	w.warm = w.writer(w.tr, 3)
	return w
}

// writer is another process that applies to the same container.
func (w *world) writer(tr *pageblobtest.Transport, attempts int) *warm.Replica {
	w.t.Helper()
	return w.writerOf(tr, attempts, 3)
}

func (w *world) writerOf(tr *pageblobtest.Transport, attempts, workers int) *warm.Replica {
	w.t.Helper()
	a := w.svc.access
	a.Transport, a.Attempts, a.BaseDelay, a.MaxDelay = tr, attempts, time.Millisecond, 5*time.Millisecond
	r, err := warm.New(warm.Config{Container: w.svc.container, Access: a, Rate: -1, Requests: -1, Workers: workers})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = r.Close() })
	return r
}

// scribble changes disk i at random places, with zeroes among it.
func (w *world) scribble(i, times int) {
	size := int64(len(w.Flat[i]))
	for range times {
		units := (size + cut.Unit - 1) / cut.Unit
		off := w.rnd.Int64N(units) * cut.Unit
		n := min(size-off, (1+w.rnd.Int64N(20))*cut.Unit)
		p := make([]byte, n)
		if w.rnd.IntN(3) > 0 {
			w.fill(p)
			if n > 2*cut.Unit {
				clear(p[cut.Unit : 2*cut.Unit])
			}
		}
		w.Write(i, off, p)
	}
}

func (w *world) fill(p []byte) {
	for i := 0; i < len(p); i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], w.rnd.Uint64())
		copy(p[i:], word[:])
	}
}

func (w *world) scribbleAll(times int) {
	for i := range w.Flat {
		w.scribble(i, times)
	}
}

func (w *world) apply(r *warm.Replica, p storetest.Point) (warm.Result, error) {
	return r.Apply(w.t.Context(), w.Store(), w.Machine, p.Ref.Gen, p.Ref.N)
}

func (w *world) mustApply(p storetest.Point) warm.Result {
	w.t.Helper()
	res, err := w.apply(w.warm, p)
	if err != nil {
		w.t.Fatalf("apply %s: %v", dr.PointName(p.Ref.Gen, p.Ref.N), err)
	}
	w.check(p)
	return res
}

// blob reads a blob or snapshot by its address.
func (w *world) blob(url string) []byte {
	w.t.Helper()
	plain, snap, _ := strings.Cut(url, "?snapshot=")
	a := w.svc.access
	a.Transport = w.svc.base
	c, err := pageblob.Open(plain, a)
	if err == nil && snap != "" {
		snap = strings.NewReplacer("%3A", ":", "%3a", ":").Replace(snap)
		c, err = c.At(snap)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	st, err := c.Stat(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, st.Size)
	if err := c.ReadAt(w.t.Context(), b, 0); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// check compares all images of a point with the oracle, byte for byte.
func (w *world) check(p storetest.Point) {
	w.t.Helper()
	images, err := w.warm.Images(w.t.Context(), w.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(images) != len(p.Disks) {
		w.t.Fatalf("%d images of %d disks", len(images), len(p.Disks))
	}
	for i, d := range p.Disks {
		sameVHD(w.t, w.blob(images[d.ID]), p.Flat[i], d.ID+" at "+dr.PointName(p.Ref.Gen, p.Ref.N))
	}
}

// checkAll compares points that are offered: of many the last ones and some others.
func (w *world) checkAll() {
	w.t.Helper()
	points, err := w.warm.Points(w.t.Context(), w.Machine)
	if err != nil {
		w.t.Fatal(err)
	}
	most := 12
	if testing.Short() {
		most = 3
	}
	for k, p := range points {
		if left := len(points) - k; left > most/3 && w.rnd.IntN(len(points)) >= most {
			continue
		}
		i := slices.IndexFunc(w.Points, func(x storetest.Point) bool { return x.Ref == p.Ref })
		if i < 0 {
			w.t.Fatalf("point %s is offered and was never made", p.Name())
		}
		w.check(w.Points[i])
	}
}

func sameVHD(t *testing.T, b, flat []byte, what string) {
	t.Helper()
	f, err := vhd.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("%s: no VHD: %v", what, err)
	}
	if f.Size() != vhd.RoundAzure(int64(len(flat))) {
		t.Fatalf("%s: a VHD of %d bytes for a disk of %d", what, f.Size(), len(flat))
	}
	want := make([]byte, f.Size())
	copy(want, flat)
	if bytes.Equal(b[:len(want)], want) {
		return
	}
	for i := range want {
		if b[i] != want[i] {
			t.Fatalf("%s: differs at %d of %d", what, i, len(want))
		}
	}
}

// TestRandomCuts applies what comes, in order and out of order, with disks that come, go
// and grow, takeovers and new bases; each point equals the source and a cold restore.
func TestRandomCuts(t *testing.T) {
	both(t, randomCuts)
}

func randomCuts(t *testing.T, svc service) {
	rounds := 16
	if testing.Short() {
		rounds = 4
	} else if svc.slow {
		rounds = 12
	}
	w := newWorld(t, svc, 1, 2*mib+512*7, mib)
	w.scribbleAll(10)
	w.Base()
	var compared, incremental int
	for i := range rounds {
		switch w.rnd.IntN(12) {
		case 0:
			w.AddDisk(int64(1+w.rnd.IntN(3)) * mib)
		case 1:
			if len(w.Flat) > 1 {
				w.RemoveDisk(w.rnd.IntN(len(w.Flat)))
			}
		case 2, 3:
			d := w.rnd.IntN(len(w.Flat))
			w.GrowDisk(d, int64(len(w.Flat[d]))+int64(1+w.rnd.IntN(600))*4096)
		case 4:
			w.Cut()
			w.Takeover(max(0, len(w.Points)-1-w.rnd.IntN(3)))
		case 5:
			w.Base()
		}
		w.scribbleAll(w.rnd.IntN(6))
		p := w.Cut()
		if w.rnd.IntN(4) == 0 {
			continue // several cuts at once
		}
		if live := w.live(); w.rnd.IntN(6) == 0 {
			p = live[w.rnd.IntN(len(live))]
		}
		res := w.mustApply(p)
		if len(res.Compared) > 0 {
			compared++
		} else if !res.Unchanged {
			incremental++
		}
		if i%8 == 0 {
			again := w.mustApply(p)
			if !again.Unchanged || again.Requests > 2 || again.Bytes != 0 {
				t.Fatalf("the same point again: %+v", again)
			}
			w.cold(p)
		}
	}
	w.checkAll()
	t.Logf("%d incremental, %d compared, %d requests: %v", incremental, compared, w.tr.Total(), w.tr.Kinds())
	if incremental < rounds/4 || compared == 0 {
		t.Errorf("%d incremental applies of %d rounds, %d compared", incremental, rounds, compared)
	}
}

// live are the points that can be opened.
func (w *world) live() []storetest.Point {
	w.t.Helper()
	ch, err := w.Store().Chain(w.t.Context(), w.Machine)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []storetest.Point
	for _, c := range ch.Points {
		for _, p := range w.Points {
			if p.Ref == c.Ref {
				out = append(out, p)
			}
		}
	}
	return out
}

// cold compares the images with a restore to VHD files: equal but for the footer's id and time.
func (w *world) cold(p storetest.Point) {
	w.t.Helper()
	view, err := w.Store().OpenPoint(w.t.Context(), w.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		w.t.Fatal(err)
	}
	defer view.Close()
	images, err := w.warm.Images(w.t.Context(), w.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range p.Disks {
		path := filepath.Join(w.t.TempDir(), d.ID+".vhd")
		if err := hydrate.RestoreAs(w.t.Context(), view, d.ID, path, hydrate.FormatVHD, hydrate.RestoreOptions{}); err != nil {
			w.t.Fatal(err)
		}
		want, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		got := w.blob(images[d.ID])
		blank(want)
		blank(got)
		if !bytes.Equal(got, want) {
			w.t.Fatalf("disk %s: the warm image is not the cold restore", d.ID)
		}
	}
}

// blank takes out of a footer what may differ: time, checksum and id.
func blank(b []byte) {
	f := b[len(b)-vhd.FooterSize:]
	clear(f[24:28])
	clear(f[64:84])
}

// request is a kind of requests of an Apply.
type request struct {
	name    string
	match   func(*http.Request) bool
	most    int            // how many of them an Apply to two disks makes at least
	prepare func(w *world) // what makes Apply send them
}

func requests() []request {
	has := func(h http.Header, name, value string) bool {
		for k, v := range h { // the SDK does not write them in Go's way
			if strings.EqualFold(k, name) && len(v) == 1 && (value == "" || v[0] == value) {
				return true
			}
		}
		return false
	}
	comp := func(method, comp string, header ...string) func(r *http.Request) bool {
		return func(r *http.Request) bool {
			return r.Method == method && r.URL.Query().Get("comp") == comp && (len(header) == 0 || has(r.Header, header[0], header[1]))
		}
	}
	nothing := func(*world) {}
	spoil := func(w *world) { w.spoil(0) }
	return []request{
		{"list", comp("GET", "list"), 1, nothing},
		{"stat", comp("HEAD", ""), 4, nothing},
		{"create", comp("PUT", "", "x-ms-blob-type", "PageBlob"), 2, func(w *world) {
			if err := w.warm.Remove(w.t.Context(), w.Machine); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"sequence", comp("PUT", "properties", "x-ms-sequence-number-action", "increment"), 2, nothing},
		{"resize", comp("PUT", "properties", "x-ms-blob-content-length", ""), 1, func(w *world) { w.GrowDisk(0, int64(len(w.Flat[0]))+mib/2+4096) }},
		{"metadata", comp("PUT", "metadata"), 4, nothing},
		{"update", comp("PUT", "page", "x-ms-page-write", "update"), 2, nothing},
		{"clear", comp("PUT", "page", "x-ms-page-write", "clear"), 2, nothing},
		{"snapshot", comp("PUT", "snapshot"), 2, nothing},
		{"ranges", comp("GET", "pagelist"), 2, spoil},
		{"read", comp("GET", ""), 1, spoil},
	}
}

// spoil gives a blob the metadata of somebody else.
func (w *world) spoil(index int) {
	w.t.Helper()
	a := w.svc.access
	a.Transport = w.svc.base
	c, err := pageblob.Open(fmt.Sprintf("%s/warm/%s/%d.vhd", w.svc.container, w.Machine, index), a)
	if err == nil {
		_, err = c.SetMetadata(w.t.Context(), map[string]string{"a": "b"}, pageblob.If{})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// faults are what happens to a request: it does not arrive and nothing after it does, its
// answer does not and nothing after it does, or only this once.
func faults() map[string]pageblobtest.Fault {
	return map[string]pageblobtest.Fault{
		"killed before":    {Sticky: true},
		"killed after":     {Sticky: true, Lost: true},
		"answer lost once": {Lost: true},
		"busy once":        {Status: 503, Code: "ServerBusy"},
	}
}

// TestKill ends an Apply at requests of each kind, before it and between it and its answer,
// for good or only once, and at others anywhere. Whatever is offered then is right, and the
// next Apply completes the point.
func TestKill(t *testing.T) {
	both(t, kill)
}

func kill(t *testing.T, svc service) {
	// Every kind of request meets one, two or all of the kinds of faults.
	each, anywhere := 4, 2
	if testing.Short() {
		each, anywhere = 1, 0
	} else if svc.slow {
		each, anywhere = 1, 1
	}
	var w *world
	names := slices.Sorted(maps.Keys(faults()))
	for i, name := range names {
		if w == nil || !testing.Short() {
			w = newWorld(t, svc, uint64(20+i), mib, mib/2+512)
			w.scribbleAll(2)
			w.Base()
			w.mustApply(w.Points[0])
		}
		hits := map[string]int{}
		for j, q := range requests() {
			if (j+len(names)-i)%len(names) < each {
				q.prepare(w)
				hits[q.name] += w.broken(name, q.match, 1+w.rnd.IntN(q.most))
				if hits[q.name] == 0 {
					t.Errorf("%s met no request of kind %s", name, q.name)
				}
			}
		}
		for range anywhere {
			hits["anywhere"] += w.broken(name, func(*http.Request) bool { return true }, 1+w.rnd.IntN(24))
		}
		if hits["anywhere"] < anywhere/2 {
			t.Errorf("%s: only %d of %d requests were broken", name, hits["anywhere"], anywhere)
		}
		w.checkAll()
		t.Logf("%s: broken: %v", name, hits)
	}
}

// broken applies a new point while the at-th request that match takes is broken, then
// completes it. It returns how many requests were broken, at most one.
func (w *world) broken(name string, match func(*http.Request) bool, at int) int {
	w.t.Helper()
	w.scribbleAll(1)
	for i := range w.Flat { // some bytes that are not zero, so that there is an update
		p := make([]byte, cut.Unit)
		w.fill(p)
		w.Write(i, w.rnd.Int64N(int64(len(w.Flat[i]))/cut.Unit)*cut.Unit, p)
	}
	p := w.Cut()
	f, seen := faults()[name], 0
	f.At = 1
	f.Match = func(r *http.Request) bool {
		if seen < at && match(r) {
			seen++
			return seen == at
		}
		return seen == at // of a dead process nothing more comes
	}
	w.tr.Break(f)
	_, err := w.apply(w.warm, p)
	hit := w.tr.Fired()
	w.tr.Break(pageblobtest.Fault{})
	if hit == 0 {
		if err != nil {
			w.t.Fatalf("without a fault: %v", err)
		}
		return 0
	}
	if !f.Sticky && err != nil || f.Sticky && err == nil && !f.Lost {
		w.t.Fatalf("%s, request %d: Apply said %v", name, at, err)
	}
	// What is offered is right, also half-way.
	if err != nil {
		if _, ierr := w.warm.Images(w.t.Context(), w.Machine, p.Ref.Gen, p.Ref.N); ierr == nil {
			w.check(p)
		} else if dr.KindOf(ierr) != dr.KindNotFound {
			w.t.Fatal(ierr)
		}
		w.scribble(0, 1)
		if w.rnd.IntN(2) == 0 {
			p = w.Cut() // finished forward, to a later point
		}
	}
	w.mustApply(p)
	return 1
}

// TestThrottledAndGone: what the service says reaches the caller by its code, a busy one
// is waited for, and a container that is back is filled again.
func TestThrottledAndGone(t *testing.T) {
	t.Parallel()
	e := pageblobtest.StartSimulator(t)
	svc := service{e.Container, pageblob.Config{Key: e.Key}, e.Transport, false}
	w := newWorld(t, svc, 7, 2*mib)
	w.scribbleAll(4)
	w.Base()
	busy := e.Fault(pagestore.Fault{Operation: "PutPage", Times: 2, Status: 503, Code: "ServerBusy"})
	w.mustApply(w.Points[0])
	if busy.Fired() != 2 {
		t.Fatalf("the service was busy %d times", busy.Fired())
	}
	w.scribbleAll(3)
	p := w.Cut()
	gone := e.Fault(pagestore.Fault{Operation: "PutPage", Times: 1, Status: 409, Code: "ContainerBeingDeleted"})
	if _, err := w.apply(w.warm, p); dr.CodeOf(err) != dr.CodeAzureContainer || gone.Fired() != 1 {
		t.Fatalf("the container is being deleted: %v", err)
	}
	if _, err := e.Admin.Delete(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.apply(w.warm, p); dr.CodeOf(err) != dr.CodeAzureContainer {
		t.Fatalf("the container is gone: %v", err)
	}
	if _, err := w.warm.Images(t.Context(), w.Machine, p.Ref.Gen, p.Ref.N); dr.CodeOf(err) != dr.CodeAzureContainer {
		t.Fatalf("the container is gone: %v", err)
	}
	e.Advance(time.Minute) // a name is free again half a minute after
	if _, err := e.Admin.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if res := w.mustApply(p); len(res.Compared) != 1 {
		t.Fatalf("%+v", res)
	}
	// Foreign metadata, and a blob that somebody resized: compared as a whole, and right.
	a := svc.access
	a.Transport = svc.base
	c, err := pageblob.Open(e.Container+"/warm/"+string(w.Machine)+"/0.vhd", a)
	if err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []func() error{
		func() error {
			_, err := c.SetMetadata(t.Context(), map[string]string{"a": "b"}, pageblob.If{})
			return err
		},
		func() error { _, err := c.Resize(t.Context(), 512, pageblob.If{}); return err },
		func() error { return c.Delete(t.Context()) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		w.scribble(0, 2)
		if res := w.mustApply(w.Cut()); len(res.Compared) != 1 {
			t.Fatalf("%+v", res)
		}
	}
}

// TestZombieAfterRemove: a writer that sleeps while the replica is removed and made
// again changes nothing of the new one.
func TestZombieAfterRemove(t *testing.T) {
	t.Parallel()
	svc := simulator(t)
	w := newWorld(t, svc, 9, 2*mib)
	w.scribbleAll(6)
	w.Base()
	p1 := w.Points[0]
	w.scribbleAll(6)
	p2 := w.Cut()
	slow := &pageblobtest.Transport{Base: svc.base}
	zombie, puts := w.writerOf(slow, 2, 1), 0
	slow.Hook(func(r *http.Request) {
		if r.Method != http.MethodPut || r.URL.Query().Get("comp") != "page" {
			return
		}
		if puts++; puts != 2 {
			return
		}
		if err := w.warm.Remove(t.Context(), w.Machine); err != nil {
			t.Error(err)
		}
		w.mustApply(p2)
	})
	_, err := w.apply(zombie, p1)
	if dr.KindOf(err) != dr.KindFenced || puts < 2 {
		t.Errorf("after %d writes: %v", puts, err)
	}
	w.check(p2)
	st, err := w.warm.Status(t.Context(), w.Machine)
	if err != nil {
		t.Fatal(err)
	}
	sameVHD(t, w.blob(st.Disks[0].URL), p2.Flat[0], "the blob itself")
}

// TestFigures prints what a cut costs.
func TestFigures(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	t.Parallel()
	w := newWorld(t, simulator(t), 8, 2*mib, mib)
	w.scribbleAll(20)
	w.Base()
	res := w.mustApply(w.Points[0])
	t.Logf("first: %d bytes, %d requests", res.Bytes, res.Requests)
	for _, n := range []int{0, 1, 16, 64} {
		for range n {
			p := make([]byte, 4096)
			w.fill(p)
			w.Write(0, w.rnd.Int64N(2*mib/4096)*4096, p)
		}
		res := w.mustApply(w.Cut())
		t.Logf("%d blocks of 4 KiB: %d bytes, %d requests, %d cut", n, res.Bytes, res.Requests, res.Cuts)
		// The list, and per disk: find, number, read, mark, footer off, footer on, check, mark, snapshot.
		if most := int64(n + 2*10 + 3); res.Requests > most || res.Bytes > int64(n)*4096 || res.Cuts != 1 || len(res.Compared) != 0 {
			t.Errorf("%d blocks: %+v", n, res)
		}
	}
}

// TestTwoWriters lets a second writer take over at each request of a first one, which
// then changes nothing any more.
func TestTwoWriters(t *testing.T) {
	both(t, twoWriters)
}

func twoWriters(t *testing.T, svc service) {
	w := newWorld(t, svc, 3, mib)
	w.scribbleAll(6)
	w.Base()
	w.mustApply(w.Points[0])
	fenced, step, tried := 0, 3, 0
	if testing.Short() {
		step = 9
	} else if svc.slow {
		step = 7
	}
	for at := int64(1 + w.rnd.IntN(step)); at < 200; at += int64(1 + w.rnd.IntN(step)) {
		w.scribble(0, 3)
		p1 := w.Cut()
		w.scribble(0, 3)
		p2 := w.Cut()
		slow := &pageblobtest.Transport{Base: svc.base}
		first := w.writerOf(slow, 2, 1)
		count, overtaken := int64(0), false
		slow.Hook(func(*http.Request) {
			if count++; count != at {
				return
			}
			overtaken = true
			tried++
			if _, err := w.apply(w.warm, p2); err != nil {
				t.Errorf("the second writer at request %d: %v", at, err)
			}
		})
		// One request at a time, so that the hook is at a known place.
		_, err := first.Apply(t.Context(), w.Store(), w.Machine, p1.Ref.Gen, p1.Ref.N)
		switch {
		case !overtaken && err == nil:
			if fenced < 1 {
				t.Fatalf("only %d writers were fenced", fenced)
			}
			t.Logf("overtaken at %d of %d requests, %d fenced", tried, at-1, fenced)
			return
		case err == nil: // overtaken before it had taken its number, or after its last change
			w.check(p1)
		case dr.KindOf(err) == dr.KindFenced:
			fenced++
		default:
			t.Fatalf("overtaken at request %d: %v", at, err)
		}
		w.check(p2)
		if dr.KindOf(err) == dr.KindFenced {
			st, serr := w.warm.Status(t.Context(), w.Machine)
			if serr != nil || st.Disks[0].Point != dr.PointName(p2.Ref.Gen, p2.Ref.N) {
				t.Fatalf("after the fence: %+v, %v", st.Disks, serr)
			}
			sameVHD(t, w.blob(st.Disks[0].URL), p2.Flat[0], "the blob itself")
		}
	}
	t.Fatal("no end")
}

func TestPruneRemoveStatus(t *testing.T) {
	both(t, pruneRemoveStatus)
}

func pruneRemoveStatus(t *testing.T, svc service) {
	w := newWorld(t, svc, 4, mib, mib/2)
	ctx := t.Context()
	if ps, err := w.warm.Points(ctx, w.Machine); err != nil || len(ps) != 0 {
		t.Fatalf("%v, %v", ps, err)
	}
	if _, err := w.warm.Images(ctx, w.Machine, 1, 0); dr.KindOf(err) != dr.KindNotFound {
		t.Fatal(err)
	}
	w.scribbleAll(3)
	w.Base()
	w.mustApply(w.Points[0])
	for i := range 5 {
		if i == 3 {
			w.RemoveDisk(1)
		}
		w.scribble(0, 1)
		w.mustApply(w.Cut())
	}
	pin := dr.PointName(w.Points[0].Ref.Gen, w.Points[0].Ref.N)
	if n, err := w.warm.Prune(ctx, w.Machine, 2, pin); err != nil || n != 6 {
		t.Fatalf("pruned %d, %v", n, err) // points 1, 2 and 3 with two disks each
	}
	w.checkAll()
	st, err := w.warm.Status(ctx, w.Machine)
	if err != nil || len(st.Points) != 3 || len(st.Disks) != 2 {
		t.Fatalf("%+v, %v", st, err)
	}
	if n, err := w.warm.Prune(ctx, w.Machine, 1); err != nil || n != 3 {
		t.Fatalf("pruned %d, %v", n, err)
	}
	if st, err = w.warm.Status(ctx, w.Machine); err != nil || len(st.Points) != 1 || len(st.Disks) != 1 {
		t.Fatalf("the blob of a disk that is gone stays: %+v, %v", st, err)
	}
	if n, err := w.warm.Prune(ctx, w.Machine, 0); err != nil || n != 0 {
		t.Fatalf("pruned %d, %v", n, err)
	}
	w.mustApply(w.Cut())
	for range 2 {
		if err := w.warm.Remove(ctx, w.Machine); err != nil {
			t.Fatal(err)
		}
	}
	if st, err = w.warm.Status(ctx, w.Machine); err != nil || len(st.Points) != 0 || len(st.Disks) != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
}
