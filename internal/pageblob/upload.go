package pageblob

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/vhd"
)

// Options of Upload. The zero Options write everything, whatever the blob holds.
type Options struct {
	Workers  int   // parallel requests; 0 = 8
	Rate     int64 // bytes/s of pages in both directions; 0 = 60 MiB/s, the target of a page blob; below 0 = unlimited
	Requests int   // requests/s; 0 = 500, the target of a page blob; below 0 = unlimited
	// Progress is told how many of the disk's bytes are done; calls are serialised.
	Progress func(done, total int64)

	// Resume compares what the blob holds with the source by 4 KiB blocks, and writes
	// what differs. Pages that the blob has are downloaded for it: from outside of
	// Azure that costs egress.
	Resume bool
	// Fresh says that nothing was ever written to the blob; a blob that has pages is
	// refused. It saves no request, but a mistake.
	Fresh bool
	// Only limits the work to these ranges of the disk: nothing else is read,
	// compared, cleared or verified. nil = the whole disk; an empty, non-nil set writes
	// the footer only.
	Only extent.Set

	// Sequence is the sequence number that the blob must have during all of it; nil =
	// any. See Fenced.
	Sequence *int64
	// ID is the VHD's unique id; zero is the one that the blob's footer has, else random.
	ID [16]byte
}

// Result says what an Upload did, also after an error.
type Result struct {
	Written  int64 // bytes of pages sent, without the footer
	Cleared  int64 // bytes cleared
	Skipped  int64 // bytes of the disk that needed no request of writing
	Compared int64 // bytes downloaded to be compared
	Requests int64 // all requests, repeated ones included
	Seconds  float64
}

// window is how much of the source is asked for its extents at once.
const window = 256 << 20

// maxClear bounds what one request clears.
const maxClear = 1 << 30

// Upload makes the blob a fixed VHD of the source: its bytes, zeroes up to the blob's
// size, and a footer, which is written last. The blob exists and has the size of
// the disk (whole MiB, not smaller than the source's) and a footer, as a managed disk that
// was created for upload does. It can be interrupted anywhere and repeated with
// Options.Resume.
func Upload(ctx context.Context, c *Client, src Source, o Options) (res Result, err error) {
	u := &upload{c: c, src: src, o: o, began: time.Now(), before: c.Count().Requests}
	err = u.run(ctx)
	res = Result{Written: u.written.Load(), Cleared: u.cleared.Load(), Compared: u.compared.Load(), Requests: c.Count().Requests - u.before, Seconds: time.Since(u.began).Seconds()}
	res.Skipped = max(0, u.done-res.Written-res.Cleared)
	return res, err
}

type upload struct {
	c      *Client
	src    Source
	o      Options
	disk   int64 // bytes of the blob without the footer
	want   extent.Set
	footer []byte
	keep   bool // the blob has that footer already
	bytes  *rate.Limiter
	calls  *rate.Limiter
	have   bitmap // blocks that the blob has pages in; nil = not known (Only)
	expect bitmap // blocks that it must have pages in afterwards; nil with Only
	began  time.Time
	before int64

	buffers sync.Pool

	mu       sync.Mutex
	sealed   bool // there may be a footer
	done     int64
	written  atomic.Int64
	cleared  atomic.Int64
	compared atomic.Int64
}

func (u *upload) run(ctx context.Context) error {
	if err := u.prepare(ctx); err != nil {
		return err
	}
	if err := u.copy(ctx); err != nil {
		return err
	}
	if u.expect != nil {
		if err := u.checkRanges(ctx); err != nil {
			return err
		}
	}
	if !u.sealed || u.o.Only != nil || !u.keep {
		if err := u.wait(ctx, 0); err != nil {
			return err
		}
		return u.c.PutPages(ctx, u.footer, u.disk, u.cond())
	}
	return nil
}

func (u *upload) cond() If { return If{Sequence: u.o.Sequence} }

// prepare checks sizes, and asks what the blob holds.
func (u *upload) prepare(ctx context.Context) error {
	const op = "pageblob.Upload"
	u.buffers.New = func() any { return &buffers{} }
	if u.o.Workers <= 0 {
		u.o.Workers = 8
	}
	u.bytes = limiter(u.o.Rate, 60*mib, MaxPut)
	u.calls = limiter(int64(u.o.Requests), 500, 50)
	st, err := u.c.Stat(ctx)
	if err != nil {
		return err
	}
	u.disk = st.Size - vhd.FooterSize
	if u.disk <= 0 || vhd.CheckAzureDisk(u.disk) != nil || u.disk < u.src.Size() {
		return dr.New(dr.KindPrecondition, dr.CodeAzureDisk, op, "blob %s has %d bytes; a disk of %d bytes needs %d and %d more for the footer, at most %d",
			u.c.name, st.Size, u.src.Size(), vhd.RoundAzure(u.src.Size()), vhd.FooterSize, vhd.MaxFixed)
	}
	u.want = extent.Set{{Off: 0, Len: u.disk}}
	u.sealed = true
	if u.o.Only != nil {
		u.want = u.o.Only.AlignOut(Block, u.disk)
	} else if err := u.ask(ctx); err != nil {
		return err
	}
	f := vhd.Footer{Size: u.disk, ID: u.o.ID, Time: u.c.cfg.Now()}
	if u.sealed && u.o.Only == nil {
		u.keepFooter(ctx, &f)
	}
	if u.footer == nil {
		if u.footer, err = vhd.EncodeFooter(f); err != nil {
			return dr.New(dr.KindUnsupported, dr.CodeAzureDisk, op, "the footer of blob %s can't be made: %w", u.c.name, err)
		}
	}
	return nil
}

// keepFooter takes over the footer that the blob has, if it is the right one.
// Otherwise it is to be replaced, which is never an error.
func (u *upload) keepFooter(ctx context.Context, f *vhd.Footer) {
	b := make([]byte, vhd.FooterSize)
	if err := u.c.ReadAt(ctx, b, u.disk); err != nil {
		return
	}
	old, err := vhd.DecodeFooter(b)
	switch {
	case err != nil || old.Kind != vhd.Fixed || old.Size != u.disk:
	case f.ID != [16]byte{} && f.ID != old.ID:
	case u.o.Resume:
		u.footer, u.keep = b, true
	default:
		f.ID = old.ID
	}
}

// ask fills the map of what the blob holds.
func (u *upload) ask(ctx context.Context) error {
	u.have, u.expect = newBitmap(u.disk), newBitmap(u.disk)
	u.sealed = false
	const step = 64 << 30 // bounds what one request makes the service look through
	for off := int64(0); off < u.disk; off += step {
		n := min(step, u.disk+vhd.FooterSize-off)
		if off+n == u.disk { // the footer belongs to the last step
			n += vhd.FooterSize
		}
		var first *extent.Extent
		err := u.c.eachRange(ctx, off, n, func(e extent.Extent) {
			if first == nil {
				first = &e
			}
			// What is listed beyond what was asked for belongs to another step.
			end := min(e.End(), off+n)
			e.Off = max(e.Off, off)
			u.sealed = u.sealed || end > u.disk
			u.have.set(e.Off, min(end, u.disk)-e.Off)
		})
		if err != nil {
			return err
		}
		if u.o.Fresh && first != nil {
			return dr.New(dr.KindConflict, dr.CodeAzureOperation, "pageblob.Upload", "blob %s was said to be empty and has pages at %v", u.c.name, *first)
		}
	}
	return nil
}

// limiter of n a second; 0 is the default, below 0 none.
func limiter(n, def int64, burst int) *rate.Limiter {
	switch {
	case n < 0:
		return rate.NewLimiter(rate.Inf, burst)
	case n == 0:
		n = def
	}
	return rate.NewLimiter(rate.Limit(n), burst)
}

// copy goes through the wanted ranges, window by window.
func (u *upload) copy(ctx context.Context) error {
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(u.o.Workers)
	err := func() error {
		for _, w := range u.want.SplitAligned(window) {
			data, err := u.dataOf(ectx, w)
			if err != nil {
				return err
			}
			for _, z := range (extent.Set{w}).Subtract(data) {
				eg.Go(func() error { return u.clear(ectx, z) })
			}
			for _, d := range data.SplitAligned(MaxPut) {
				eg.Go(func() error { return u.piece(ectx, d) })
			}
			if ectx.Err() != nil {
				return nil // eg has the reason
			}
		}
		return nil
	}()
	// What a worker says is the cause; the producer then only saw its context end.
	if werr := eg.Wait(); werr != nil {
		return werr
	}
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return u.c.canceled("Upload", context.Cause(ctx))
	}
	return nil
}

// dataOf returns what of w is not known to be zero, in whole blocks.
func (u *upload) dataOf(ctx context.Context, w extent.Extent) (extent.Set, error) {
	n := min(w.End(), u.src.Size()) - w.Off
	if n <= 0 {
		return nil, nil
	}
	var data []extent.Extent
	at := w.Off
	err := u.src.Extents(ctx, w.Off, n, func(off, n int64, zero bool) error {
		if off != at || n <= 0 {
			return dr.Errorf(dr.KindInternal, "pageblob.Upload", "the source of blob %s left out what is at %d", u.c.name, at)
		}
		at += n
		if !zero {
			data = append(data, extent.Extent{Off: off, Len: n})
		}
		return nil
	})
	if err == nil && at != w.Off+n {
		err = dr.Errorf(dr.KindInternal, "pageblob.Upload", "the source of blob %s left out what is at %d", u.c.name, at)
	}
	return extent.Normalize(data).AlignOut(Block, u.disk).Clip(w), err
}

// advance counts what is done.
func (u *upload) advance(n int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done += n
	if u.o.Progress != nil {
		u.o.Progress(u.done, u.want.Len())
	}
}

// clear makes a range zero where the blob may have pages.
func (u *upload) clear(ctx context.Context, z extent.Extent) error {
	for _, e := range (extent.Set{z}).SplitAligned(maxClear) {
		if err := u.clearRange(ctx, e); err != nil {
			return err
		}
	}
	u.advance(z.Len)
	return nil
}

func (u *upload) clearRange(ctx context.Context, e extent.Extent) error {
	if u.have != nil {
		var ok bool
		if e, ok = u.have.bounds(e); !ok {
			return nil
		}
	}
	if err := u.changing(ctx, 0); err != nil {
		return err
	}
	if err := u.c.ClearPages(ctx, e.Off, e.Len, u.cond()); err != nil {
		return err
	}
	u.cleared.Add(e.Len)
	return nil
}

// changing is called before each request that changes the disk and carries n bytes.
func (u *upload) changing(ctx context.Context, n int) error {
	if err := u.unseal(ctx); err != nil {
		return err
	}
	return u.wait(ctx, n)
}

func (u *upload) wait(ctx context.Context, n int) error {
	err := u.calls.Wait(ctx)
	if err == nil && n > 0 {
		err = u.bytes.WaitN(ctx, n)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		} else {
			err = context.DeadlineExceeded // the limiter saw that it would be too late
		}
		return u.c.canceled("Upload", err)
	}
	return nil
}

// unseal takes the footer away before the first change.
func (u *upload) unseal(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.sealed {
		return nil
	}
	if err := u.c.ClearPages(ctx, u.disk, vhd.FooterSize, u.cond()); err != nil {
		return err
	}
	u.sealed = false
	return nil
}

type buffers struct{ source, blob []byte }

// piece returns a buffer of n bytes, at most MaxPut.
func (b *buffers) piece(n int64) []byte {
	if int64(len(b.source)) < n {
		b.source = make([]byte, max(n, 64<<10))
	}
	return b.source[:n]
}

// piece copies d, which is whole blocks and at most MaxPut bytes.
func (u *upload) piece(ctx context.Context, d extent.Extent) error {
	if ctx.Err() != nil {
		return u.c.canceled("Upload", context.Cause(ctx))
	}
	b := u.buffers.Get().(*buffers)
	defer u.buffers.Put(b)
	p := b.piece(d.Len)
	n := max(0, min(d.Len, u.src.Size()-d.Off))
	clear(p[n:])
	if err := u.src.ReadAt(ctx, p[:n], d.Off); err != nil {
		return err
	}
	data, zero := splitZero(p, d.Off)
	if u.expect != nil {
		for _, e := range data {
			u.expect.set(e.Off, e.Len)
		}
	}
	for _, z := range zero {
		if err := u.clearRange(ctx, z); err != nil {
			return err
		}
	}
	if u.o.Resume && u.have != nil {
		var err error
		if data, err = u.differing(ctx, b, p, d.Off, data); err != nil {
			return err
		}
	}
	for _, e := range data {
		q := p[e.Off-d.Off : e.End()-d.Off]
		if err := u.changing(ctx, len(q)); err != nil {
			return err
		}
		if err := u.c.PutPages(ctx, q, e.Off, u.cond()); err != nil {
			return err
		}
		u.written.Add(e.Len)
	}
	u.advance(d.Len)
	return nil
}

var zeroBlock [Block]byte

// splitZero divides the blocks of p, which lies at off, by whether they are zero.
func splitZero(p []byte, off int64) (data, zero extent.Set) {
	add := func(s extent.Set, at, n int64) extent.Set {
		if k := len(s) - 1; k >= 0 && s[k].End() == at {
			s[k].Len += n
			return s
		}
		return append(s, extent.Extent{Off: at, Len: n})
	}
	for i := 0; i < len(p); i += Block {
		q := p[i:min(i+Block, len(p))]
		if bytes.Equal(q, zeroBlock[:len(q)]) {
			zero = add(zero, off+int64(i), int64(len(q)))
		} else {
			data = add(data, off+int64(i), int64(len(q)))
		}
	}
	return data, zero
}

// bridge is the largest gap that is read along instead of asking twice: what the
// targets of a page blob say one request is worth.
const bridge = 64 << 10

// joined closes the gaps of s that are not larger than bridge.
func joined(s extent.Set) extent.Set {
	var out extent.Set
	for _, e := range s {
		if k := len(out) - 1; k >= 0 && e.Off-out[k].End() <= bridge {
			out[k].Len = e.End() - out[k].Off
		} else {
			out = append(out, e)
		}
	}
	return out
}

// differing returns the blocks of data that the blob does not hold already. p lies at base.
func (u *upload) differing(ctx context.Context, b *buffers, p []byte, base int64, data extent.Set) (extent.Set, error) {
	var there extent.Set
	for _, e := range data {
		there = append(there, u.have.runs(e)...)
	}
	out := []extent.Extent(data.Subtract(there))
	for _, w := range joined(there) {
		if int64(len(b.blob)) < w.Len {
			b.blob = make([]byte, max(w.Len, 64<<10))
		}
		q := b.blob[:w.Len]
		if err := u.wait(ctx, len(q)); err != nil {
			return nil, err
		}
		if err := u.c.ReadAt(ctx, q, w.Off); err != nil {
			return nil, err
		}
		u.compared.Add(w.Len)
		for _, t := range there.Clip(w) {
			for off := t.Off; off < t.End(); off += Block {
				if !bytes.Equal(q[off-w.Off:][:Block], p[off-base:][:Block]) {
					out = append(out, extent.Extent{Off: off, Len: Block})
				}
			}
		}
	}
	return extent.Normalize(out), nil
}
