package hypervisortest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// model is the suite's own knowledge of the guest's disks.
type model struct {
	f   *Fixture
	rng *rand.Rand
	now map[string][]byte
}

func newModel(t testing.TB, f *Fixture, seed uint64) *model {
	t.Helper()
	m := &model{f: f, rng: rand.New(rand.NewPCG(seed, 42)), now: map[string][]byte{}}
	cfg, err := f.Host.Config(f.limit(t), f.VM)
	ok(t, err)
	for _, d := range cfg.VM.Disks {
		for _, id := range f.Disks {
			if d.ID == id {
				m.now[id] = make([]byte, d.Size)
			}
		}
	}
	if len(m.now) != len(f.Disks) {
		t.Fatalf("the inventory shows disks %v, want all of %v", cfg.VM.Disks, f.Disks)
	}
	return m
}

// write changes both the guest and the model.
func (m *model) write(t testing.TB, disk string, off int64, p []byte) {
	t.Helper()
	m.f.Write(t, disk, off, p)
	copy(m.now[disk][off:], p)
}

// scribble makes n random writes on every disk.
func (m *model) scribble(t testing.TB, n int) {
	t.Helper()
	for _, id := range m.f.Disks {
		for range n {
			p := make([]byte, 512*(1+m.rng.IntN(32)))
			for i := range p {
				p[i] = byte(m.rng.Uint32())
			}
			off := m.rng.Int64N((int64(len(m.now[id]))-int64(len(p)))/512+1) * 512
			m.write(t, id, off, p)
		}
	}
}

// frozen copies the model: what a cut made now has to contain.
func (m *model) frozen() map[string][]byte {
	c := map[string][]byte{}
	for id, b := range m.now {
		c[id] = bytes.Clone(b)
	}
	return c
}

func (f *Fixture) begin(t testing.TB, base, tag string) hypervisor.Cut {
	t.Helper()
	c, err := f.Host.BeginCut(f.limit(t), hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: tag})
	ok(t, err)
	return c
}

// ranges reads all extents of a disk and checks their form.
func ranges(t testing.TB, ctx context.Context, c hypervisor.Cut, disk string) []hypervisor.Range {
	t.Helper()
	size := sizeOf(t, c, disk)
	var list []hypervisor.Range
	pos := int64(0)
	ok(t, c.Extents(ctx, disk, 0, size, func(r hypervisor.Range) error {
		if r.Off != pos || r.Len <= 0 || r.Off+r.Len > size {
			return fmt.Errorf("disk %s: range %d+%d follows %d in a disk of %d", disk, r.Off, r.Len, pos, size)
		}
		pos = r.Off + r.Len
		list = append(list, r)
		return nil
	}))
	if pos != size {
		t.Fatalf("disk %s: ranges end at %d of %d", disk, pos, size)
	}
	return list
}

func sizeOf(t testing.TB, c hypervisor.Cut, disk string) int64 {
	t.Helper()
	for _, d := range c.Info().Disks {
		if d.ID == disk {
			if d.Granularity <= 0 || d.Granularity&(d.Granularity-1) != 0 {
				t.Errorf("disk %s: granularity %d is not a power of two", disk, d.Granularity)
			}
			return d.Size
		}
	}
	t.Fatalf("the cut has no disk %s", disk)
	return 0
}

// replica is what a receiver of cuts would hold.
type replica map[string][]byte

// apply takes over the changed ranges of a cut and returns how many bytes they were.
func (r replica) apply(t testing.TB, ctx context.Context, c hypervisor.Cut) (changed int64) {
	t.Helper()
	for _, d := range c.Info().Disks {
		if grow := d.Size - int64(len(r[d.ID])); grow > 0 {
			r[d.ID] = append(r[d.ID], make([]byte, grow)...)
		}
		r[d.ID] = r[d.ID][:d.Size]
		if d.Whole { // as far as the receiver is concerned, what it has is wrong
			for i := range r[d.ID] {
				r[d.ID][i] = 0xee
			}
		}
		for _, x := range ranges(t, ctx, c, d.ID) {
			if !x.Changed {
				continue
			}
			changed += x.Len
			p := r[d.ID][x.Off : x.Off+x.Len]
			if x.Zero {
				clear(p)
				continue
			}
			ok(t, c.ReadAt(ctx, d.ID, p, x.Off))
		}
	}
	return changed
}

func (r replica) mustEqual(t testing.TB, want map[string][]byte, what string) {
	t.Helper()
	for id, w := range want {
		if !bytes.Equal(r[id], w) {
			i := 0
			for i < len(w) && i < len(r[id]) && r[id][i] == w[i] {
				i++
			}
			t.Fatalf("%s: disk %s (%d bytes, want %d) differs from the guest's at offset %d", what, id, len(r[id]), len(w), i)
		}
	}
}

func testFullCut(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 1)
	m.scribble(t, 8)
	want := m.frozen()
	c := f.begin(t, "", "full")
	if i := c.Info(); i.Incremental || i.Consistency != dr.CrashConsistent || i.Token == "" || i.Time.IsZero() || len(i.Disks) != len(f.Disks) {
		t.Errorf("info of a full cut: %+v", i)
	}
	m.scribble(t, 12) // while the cut is open: must not show in it
	whole := replica{}
	for _, id := range f.Disks {
		p := make([]byte, sizeOf(t, c, id))
		ok(t, c.ReadAt(ctx, id, p, 0))
		whole[id] = p
		for _, r := range ranges(t, ctx, c, id) {
			if !r.Changed {
				t.Errorf("disk %s: range %d+%d of a full cut is not changed", id, r.Off, r.Len)
			}
			if r.Zero && len(bytes.Trim(p[r.Off:r.Off+r.Len], "\x00")) > 0 {
				t.Errorf("disk %s: range %d+%d is not zero", id, r.Off, r.Len)
			}
		}
	}
	whole.mustEqual(t, want, "frozen image")
	r := replica{}
	r.apply(t, ctx, c)
	r.mustEqual(t, want, "replica of a full cut")
	wantKind(t, c.ReadAt(ctx, f.Disks[0], make([]byte, 512), sizeOf(t, c, f.Disks[0])), dr.KindInvalid)
	wantCode(t, c.ReadAt(ctx, "nodisk", make([]byte, 512), 0), dr.CodeNotFound)
	stop := fmt.Errorf("stop")
	if err := c.Extents(ctx, f.Disks[0], 0, 1<<20, func(hypervisor.Range) error { return stop }); err != stop {
		t.Errorf("an error of the callback came back as %v", err)
	}
	ok(t, c.End(ctx))
	ok(t, c.End(ctx))
	if err := c.ReadAt(ctx, f.Disks[0], make([]byte, 512), 0); err == nil {
		t.Error("a cut that has ended can be read")
	}
}

func testIncremental(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 2)
	m.scribble(t, 6)
	c := f.begin(t, "", "c0")
	r := replica{}
	r.apply(t, ctx, c)
	ok(t, c.End(ctx))
	base, first := c.Info().Token, c.Info().Token
	old := replica{}
	for id, b := range r {
		old[id] = bytes.Clone(b)
	}
	for n := 1; n <= 4; n++ {
		m.scribble(t, n-1) // the first one changes nothing
		want := m.frozen()
		c := f.begin(t, base, fmt.Sprintf("c%d", n))
		if !c.Info().Incremental {
			t.Error("the cut is not incremental")
		}
		whole(t, c)
		m.scribble(t, 2) // belongs to the next cut
		changed := r.apply(t, ctx, c)
		if n == 1 && changed != 0 {
			t.Errorf("nothing was written, but %d bytes changed", changed)
		}
		r.mustEqual(t, want, fmt.Sprintf("cut %d", n))
		ok(t, c.End(ctx))
		base = c.Info().Token
	}
	// An older token is still exact: several live at a time.
	want := m.frozen()
	c = f.begin(t, first, "late")
	old.apply(t, ctx, c)
	old.mustEqual(t, want, "cut since the first token")
	ok(t, c.End(ctx))
}

func testSomeDisks(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 3)
	m.scribble(t, 2)
	one := hypervisor.CutRequest{VM: f.VM, Disks: f.Disks[:1], Tag: "one"}
	c, err := f.Host.BeginCut(ctx, one)
	ok(t, err)
	r := replica{}
	r.apply(t, ctx, c)
	r.mustEqual(t, map[string][]byte{f.Disks[0]: m.now[f.Disks[0]]}, "cut of one disk")
	ok(t, c.End(ctx))
	m.scribble(t, 2)
	// A disk that the base does not cover has no history: all of it is changed.
	c = f.begin(t, c.Info().Token, "two")
	for _, x := range ranges(t, ctx, c, f.Disks[1]) {
		if !x.Changed {
			t.Errorf("range %d+%d of a disk without history is not changed", x.Off, x.Len)
		}
	}
	r.apply(t, ctx, c)
	r.mustEqual(t, m.now, "cut with a disk added")
	ok(t, c.End(ctx))
}

func testAbort(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 4)
	m.scribble(t, 3)
	c := f.begin(t, "", "a")
	r := replica{}
	r.apply(t, ctx, c)
	ok(t, c.End(ctx))
	base := c.Info().Token
	m.scribble(t, 3)
	failed := f.begin(t, base, "b")
	ok(t, failed.Abort(ctx))
	ok(t, failed.Abort(ctx))
	ok(t, failed.End(ctx))
	m.scribble(t, 3)
	_, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: failed.Info().Token, Tag: "x"})
	wantCode(t, err, dr.CodeTrackingLost)
	again := f.begin(t, base, "b") // the tag is free again
	r.apply(t, ctx, again)
	r.mustEqual(t, m.now, "cut after an aborted one")
	ok(t, again.End(ctx))
	ok(t, again.Abort(ctx)) // after End: the base is what counts again
	m.scribble(t, 1)
	c = f.begin(t, base, "c")
	r.apply(t, ctx, c)
	r.mustEqual(t, m.now, "cut after one that was aborted when it had ended")
	ok(t, c.End(ctx))
	if _, err = f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: "c"}); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("a tag in use: %v, want a conflict", err)
	}
}

func testTwoCuts(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 5)
	m.scribble(t, 2)
	c := f.begin(t, "", "a")
	_, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Tag: "b"})
	wantCode(t, err, dr.CodeBackupJobBusy)
	if f.Other != "" { // another VM is not concerned
		other, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.Other, Disks: f.Disks[:1], Tag: "a"})
		ok(t, err)
		ok(t, other.ReadAt(ctx, f.Disks[0], make([]byte, 512), 0))
		ok(t, other.Abort(ctx))
	}
	r := replica{}
	r.apply(t, ctx, c) // the refused one did no harm
	r.mustEqual(t, m.now, "first of two cuts")
	ok(t, c.End(ctx))

	// Calls at the same time: one at most gets the VM, nothing breaks.
	var wg sync.WaitGroup
	cuts := make(chan hypervisor.Cut, 4)
	for i := range 4 {
		wg.Go(func() {
			c, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Tag: fmt.Sprintf("p%d", i)})
			if err == nil {
				cuts <- c
			} else if dr.CodeOf(err) != dr.CodeBackupJobBusy {
				t.Errorf("parallel begin: %v", err)
			}
		})
	}
	wg.Wait()
	close(cuts)
	if len(cuts) != 1 {
		t.Errorf("%d of 4 parallel cuts were opened, want 1", len(cuts))
	}
	for c := range cuts {
		ok(t, c.Abort(ctx))
	}
}

func testForget(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 6)
	var tokens []string
	base := ""
	for i := range 3 {
		m.scribble(t, 1)
		c := f.begin(t, base, fmt.Sprintf("f%d", i))
		base = c.Info().Token
		tokens = append(tokens, base)
		ok(t, c.End(ctx))
	}
	exists := func() bool { return true }
	if f.ForeignToken != nil {
		exists = f.ForeignToken(t)
	}
	ok(t, f.Host.Forget(ctx, f.VM, tokens[1:2]))
	ok(t, f.Host.Forget(ctx, f.VM, tokens[1:2]))
	for _, gone := range []string{tokens[0], tokens[2]} {
		_, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: gone, Tag: "x"})
		wantCode(t, err, dr.CodeTrackingLost)
	}
	c := f.begin(t, tokens[1], "kept")
	ok(t, f.Host.Forget(ctx, f.VM, []string{tokens[1]})) // an open cut of this process is not stale
	ok(t, c.ReadAt(ctx, f.Disks[0], make([]byte, 512), 0))
	ok(t, c.Abort(ctx))
	ok(t, f.Host.Forget(ctx, f.VM, nil))
	if !exists() {
		t.Error("Forget deleted another product's token")
	}
	wantCode(t, f.Host.Forget(ctx, unknownVM, nil), dr.CodeVMNotFound)
}

func testStaleCut(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 7)
	m.scribble(t, 2)
	c := f.begin(t, "", "s0")
	r := replica{}
	r.apply(t, ctx, c)
	ok(t, c.End(ctx))
	base := c.Info().Token
	m.scribble(t, 2)
	stale := f.begin(t, base, "s1")
	next := f.Successor(t)
	m.scribble(t, 2)
	c, err := next.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: "s2"})
	ok(t, err)
	r.apply(t, ctx, c)
	r.mustEqual(t, m.now, "cut of a successor")
	if err := stale.ReadAt(ctx, f.Disks[0], make([]byte, 4096), 0); err == nil && !f.StaleReads {
		t.Error("the stale cut can still be read after it was ended")
	}
	ok(t, stale.Abort(ctx)) // of the old process, late: must not hurt the successor's cut
	p := make([]byte, 4096)
	ok(t, c.ReadAt(ctx, f.Disks[0], p, 0))
	ok(t, c.End(ctx))

	_ = f.beginOn(t, next, c.Info().Token, "s3")
	third := f.Successor(t)
	ok(t, third.Forget(ctx, f.VM, []string{c.Info().Token}))
	d := f.beginOn(t, third, c.Info().Token, "s3")
	r.apply(t, ctx, d)
	r.mustEqual(t, m.now, "cut after Forget ended a stale one")
	ok(t, d.End(ctx))
}

func (f *Fixture) beginOn(t testing.TB, h hypervisor.Host, base, tag string) hypervisor.Cut {
	t.Helper()
	c, err := h.BeginCut(f.limit(t), hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: tag})
	ok(t, err)
	return c
}

func testRefusals(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	for name, c := range map[string]struct {
		req  hypervisor.CutRequest
		code dr.Code
		kind dr.Kind
	}{
		"no disk":      {hypervisor.CutRequest{VM: f.VM, Tag: "t"}, dr.CodeNoDisks, dr.KindInvalid},
		"unknown disk": {hypervisor.CutRequest{VM: f.VM, Disks: []string{"nodisk"}, Tag: "t"}, dr.CodeNotFound, dr.KindNotFound},
		"twice":        {hypervisor.CutRequest{VM: f.VM, Disks: []string{f.Disks[0], f.Disks[0]}, Tag: "t"}, "", dr.KindInvalid},
		"no tag":       {hypervisor.CutRequest{VM: f.VM, Disks: f.Disks}, "", dr.KindInvalid},
		"bad tag":      {hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Tag: "a/../b"}, "", dr.KindInvalid},
		"unknown VM":   {hypervisor.CutRequest{VM: unknownVM, Disks: f.Disks, Tag: "t"}, dr.CodeVMNotFound, dr.KindNotFound},
		"no VM":        {hypervisor.CutRequest{VM: "x", Disks: f.Disks, Tag: "t"}, dr.CodeVMNotFound, dr.KindNotFound},
		"unknown base": {hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Tag: "t", Base: "hf-never"}, dr.CodeTrackingLost, dr.KindPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Host.BeginCut(ctx, c.req)
			wantKind(t, err, c.kind)
			wantCode(t, err, c.code)
		})
	}
	if f.Unreplicatable != "" {
		_, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: []string{f.Unreplicatable}, Tag: "t"})
		wantCode(t, err, dr.CodeDiskNotTrackable)
		cfg, err := f.Host.Config(ctx, f.VM)
		ok(t, err)
		for _, d := range cfg.VM.Disks {
			if (d.ID == f.Unreplicatable) != (d.Unreplicatable != "") {
				t.Errorf("disk %s: reason %q", d.ID, d.Unreplicatable)
			}
		}
	}
	c := f.begin(t, "", "fine") // refusals leave nothing behind
	ok(t, c.Abort(ctx))
}

func testPowerAndTokens(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 8)
	m.scribble(t, 2)
	c := f.begin(t, "", "p0")
	r := replica{}
	r.apply(t, ctx, c)
	ok(t, c.End(ctx))
	base := c.Info().Token

	m.scribble(t, 1)
	f.PowerOff(t)
	_, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: base, Tag: "off"})
	wantCode(t, err, dr.CodeVMNotRunning)
	ok(t, f.Host.Forget(ctx, f.VM, []string{base}))
	ok(t, f.Host.Start(ctx, f.VM))
	m.scribble(t, 1)
	c = f.begin(t, base, "p1") // an orderly stop keeps the tokens
	r.apply(t, ctx, c)
	r.mustEqual(t, m.now, "cut after stop and start")
	ok(t, c.End(ctx))
	base = c.Info().Token

	m.scribble(t, 1)
	if f.Pause != nil {
		f.Pause(t)
		c = f.begin(t, base, "p2")
		r.apply(t, ctx, c)
		r.mustEqual(t, m.now, "cut of a paused VM")
		ok(t, c.End(ctx))
		ok(t, f.Host.Start(ctx, f.VM))
	}

	// The VM stops while a cut is open: reads fail, nothing wrong is read, the base stays good.
	base = c.Info().Token
	m.scribble(t, 1)
	c = f.begin(t, base, "p3")
	f.PowerOff(t)
	if f.SurvivesStop {
		frozen := make([]byte, len(m.now[f.Disks[0]]))
		ok(t, c.ReadAt(ctx, f.Disks[0], frozen, 0))
		replica{f.Disks[0]: frozen}.mustEqual(t, map[string][]byte{f.Disks[0]: m.now[f.Disks[0]]}, "cut of a stopped VM")
	} else {
		if err := c.ReadAt(ctx, f.Disks[0], make([]byte, 4096), 0); err == nil {
			t.Error("a cut of a stopped VM can be read")
		}
		if err := c.Extents(ctx, f.Disks[0], 0, 1<<20, func(hypervisor.Range) error { return nil }); err == nil {
			t.Error("extents of a cut of a stopped VM")
		}
	}
	ok(t, c.Abort(ctx))
	ok(t, f.Host.Start(ctx, f.VM))
	c = f.begin(t, base, "p4")
	r.apply(t, ctx, c)
	r.mustEqual(t, m.now, "cut after one that broke")
	ok(t, c.End(ctx))

	f.Crash(t)
	ok(t, f.Host.Start(ctx, f.VM))
	if !f.KeepsOnCrash {
		_, err = f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Base: c.Info().Token, Tag: "p5"})
		wantCode(t, err, dr.CodeTrackingLost)
	}
	c = f.begin(t, "", "p6")
	base = c.Info().Token
	r = replica{}
	r.apply(t, ctx, c)
	ok(t, c.End(ctx))
	ok(t, f.Host.Forget(ctx, f.VM, []string{base})) // broken tokens go too
	f.onlyTracks(t, base)
	m = &model{f: f, rng: m.rng, now: r} // what the crash left is the truth now
	m.scribble(t, 2)
	want := m.frozen()
	c = f.begin(t, base, "p7")
	r2 := replica(m.frozen())
	r2.apply(t, ctx, c)
	r2.mustEqual(t, want, "cut after a crash")
	ok(t, c.End(ctx))
}

func testGrowAndTrim(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 9)
	m.scribble(t, 6)
	d := f.Disks[0]
	block := make([]byte, max(256<<10, f.TrimUnit))
	for i := range block {
		block[i] = 0xa5
	}
	at := max(1<<20, f.TrimUnit)
	m.write(t, d, at, block)
	c := f.begin(t, "", "g0")
	r := replica{}
	r.apply(t, ctx, c)
	ok(t, c.End(ctx))

	f.Trim(t, d, at, int64(len(block)))
	clear(m.now[d][at : at+int64(len(block))])
	c2 := f.begin(t, c.Info().Token, "g1")
	zero := int64(0)
	for _, x := range ranges(t, ctx, c2, d) {
		if x.Changed && x.Zero {
			zero += x.Len
		}
	}
	if zero < int64(len(block)) {
		t.Errorf("%d bytes of a discarded range of %d are reported as zero", zero, len(block))
	}
	r.apply(t, ctx, c2)
	r.mustEqual(t, m.now, "cut after a discard")
	ok(t, c2.End(ctx))

	old := int64(len(m.now[d]))
	f.Grow(t, d, old+3<<20)
	m.now[d] = append(m.now[d], make([]byte, 3<<20)...)
	m.write(t, d, old+1<<20, block[:256<<10])
	c3 := f.begin(t, c2.Info().Token, "g2")
	for _, x := range ranges(t, ctx, c3, d) {
		if x.Off+x.Len > old && !x.Changed {
			t.Errorf("range %d+%d of a disk that has grown from %d is not changed", x.Off, x.Len, old)
		}
	}
	whole(t, c3, map[bool][]string{true: {d}}[f.GrowIsWhole]...)
	r.apply(t, ctx, c3)
	r.mustEqual(t, m.now, "cut of a grown disk")
	ok(t, c3.End(ctx))
	m.write(t, d, old+2<<20, block[:512])
	c4 := f.begin(t, c3.Info().Token, "g3")
	if changed := r.apply(t, ctx, c4); changed > 1<<20 {
		t.Errorf("%d bytes changed after the growth was taken over", changed)
	}
	r.mustEqual(t, m.now, "second cut of a grown disk")
	ok(t, c4.End(ctx))
}

func testQuiesceFallsBack(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	c, err := f.Host.BeginCut(ctx, hypervisor.CutRequest{VM: f.VM, Disks: f.Disks, Tag: "q", Quiesce: true})
	ok(t, err)
	if i := c.Info(); i.Consistency != dr.CrashConsistent || i.Note == "" {
		t.Errorf("quiesce without a guest agent gave %q, note %q", i.Consistency, i.Note)
	}
	ok(t, c.Abort(ctx))
}

func testParallelReads(t *testing.T, f *Fixture) {
	ctx := f.limit(t)
	m := newModel(t, f, 10)
	m.scribble(t, 10)
	want := m.frozen()
	c := f.begin(t, "", "r")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 7))
			for range 40 {
				id := f.Disks[rng.IntN(len(f.Disks))]
				p := make([]byte, 1+rng.IntN(300<<10))
				off := rng.Int64N(int64(len(want[id]) - len(p)))
				if err := c.ReadAt(ctx, id, p, off); err != nil {
					t.Errorf("read %s at %d: %v", id, off, err)
				} else if !bytes.Equal(p, want[id][off:off+int64(len(p))]) {
					t.Errorf("read %s at %d+%d: wrong bytes", id, off, len(p))
				}
			}
		})
	}
	m.scribble(t, 10) // at the same time
	wg.Wait()
	ok(t, c.End(ctx))
}
