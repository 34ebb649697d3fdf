package pageblob

import (
	"bytes"
	"context"
	"math/bits"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/vhd"
)

// bitmap has a bit for each Block of a disk. Bits are set concurrently.
type bitmap []atomic.Uint64

func newBitmap(disk int64) bitmap { return make(bitmap, (disk/Block+63)/64) }

// set marks every block that [off, off+n) touches.
func (m bitmap) set(off, n int64) {
	if n <= 0 {
		return
	}
	first, last := off/Block, (off+n-1)/Block
	for i := first; i <= last; {
		bit := i % 64
		count := min(64-bit, last-i+1)
		m[i/64].Or((^uint64(0) >> (64 - count)) << bit)
		i += count
	}
}

func (m bitmap) has(block int64) bool { return m[block/64].Load()>>(block%64)&1 != 0 }

// next returns the first block from i on, below end, whose bit is on or not; else end.
func (m bitmap) next(i, end int64, on bool) int64 {
	for i < end {
		w := m[i/64].Load()
		if !on {
			w = ^w
		}
		if w >>= i % 64; w != 0 {
			return min(end, i+int64(bits.TrailingZeros64(w)))
		}
		i += 64 - i%64
	}
	return end
}

// runs returns the marked blocks of e, which is whole blocks.
func (m bitmap) runs(e extent.Extent) extent.Set {
	out, _ := m.firstRuns(e, 1<<62)
	return out
}

// firstRuns returns the first runs of marked blocks of e, at most most of them, and where
// it ended: at the last one's end, or if these are all at the end of e.
func (m bitmap) firstRuns(e extent.Extent, most int) (out extent.Set, ended int64) {
	end := e.End() / Block
	for i := m.next(e.Off/Block, end, true); i < end; {
		j := m.next(i, end, false)
		out = append(out, extent.Extent{Off: i * Block, Len: (j - i) * Block})
		if len(out) == most {
			return out, j * Block
		}
		i = m.next(j, end, true)
	}
	return out, e.End()
}

// bounds returns the range from the first to the last marked block of e.
func (m bitmap) bounds(e extent.Extent) (extent.Extent, bool) {
	end := e.End() / Block
	first := m.next(e.Off/Block, end, true)
	if first == end {
		return extent.Extent{}, false
	}
	last := end
	for !m.has(last - 1) {
		last--
	}
	return extent.Extent{Off: first * Block, Len: (last - first) * Block}, true
}

// checkRanges compares the page ranges that the service lists with what it must have.
// A missing page is damage. A service that lists more (coarser pages) is believed
// if what is there reads as zeroes.
func (u *upload) checkRanges(ctx context.Context) error {
	const op = "pageblob.Upload"
	// What bounds the memory, and what one request makes the service look through.
	const most, step = 1 << 18, 64 << 30
	for off := int64(0); off < u.disk; {
		w := extent.Extent{Off: off, Len: min(step, u.disk-off)}
		must, end := u.expect.firstRuns(w, most)
		w.Len = end - off
		off = end
		listed, err := u.c.Ranges(ctx, w.Off, w.Len)
		if err != nil {
			return err
		}
		if lost := must.Subtract(listed); len(lost) > 0 {
			return dr.New(dr.KindCorrupt, dr.CodeAzureOperation, op, "blob %s does not list pages that were written: %d bytes, the first at %d", u.c.name, lost.Len(), lost[0].Off).
				WithHint("Upload it again. If it stays, something else writes to the blob.")
		}
		buf := make([]byte, MaxPut)
		for _, e := range listed.Subtract(must).SplitAligned(MaxPut) {
			p := buf[:e.Len]
			if err := u.wait(ctx, len(p)); err != nil {
				return err
			}
			if err := u.c.ReadAt(ctx, p, e.Off); err != nil {
				return err
			}
			u.compared.Add(e.Len)
			if i := firstNonZero(p); i >= 0 {
				return dr.New(dr.KindCorrupt, dr.CodeAzureOperation, op, "blob %s has data at %d that the source does not have", u.c.name, e.Off+int64(i)).
					WithHint("Upload it again. If it stays, something else writes to the blob.")
			}
		}
	}
	return nil
}

func firstNonZero(p []byte) int {
	for i := 0; i < len(p); i += Block {
		q := p[i:min(i+Block, len(p))]
		if bytes.Equal(q, zeroBlock[:len(q)]) {
			continue
		}
		for j, b := range q {
			if b != 0 {
				return i + j
			}
		}
	}
	return -1
}

// Verify compares the blob with the source: the footer, and the share sample of
// the disk (0 < sample ≤ 1; else all of it) in pieces of 4 MiB that are spread
// evenly, the first and the last among them. Only pages that the blob lists are downloaded. A
// difference is dr.KindCorrupt and names the offset.
func Verify(ctx context.Context, c *Client, src Source, sample float64) error {
	const op = "pageblob.Verify"
	st, err := c.Stat(ctx)
	if err != nil {
		return err
	}
	disk := st.Size - vhd.FooterSize
	if disk < src.Size() {
		return dr.New(dr.KindCorrupt, dr.CodeAzureOperation, op, "blob %s has %d bytes, less than the disk's %d and a footer", c.name, st.Size, src.Size())
	}
	b := make([]byte, vhd.FooterSize)
	if err := c.ReadAt(ctx, b, disk); err != nil {
		return err
	}
	f, err := vhd.DecodeFooter(b)
	if err == nil && (f.Kind != vhd.Fixed || f.Size != disk) {
		err = vhd.ErrDamaged
	}
	if err != nil {
		return dr.New(dr.KindCorrupt, dr.CodeAzureOperation, op, "blob %s is not a complete VHD: %w", c.name, err)
	}
	units := (disk + MaxPut - 1) / MaxPut
	count := units
	if sample > 0 && sample < 1 {
		count = min(units, max(2, int64(float64(units)*sample+0.5)))
	}
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(4)
	for i := range count {
		unit := i
		if count < units {
			unit = i * (units - 1) / (count - 1)
		}
		eg.Go(func() error {
			off := unit * MaxPut
			return verifyUnit(ectx, c, src, off, min(MaxPut, disk-off))
		})
	}
	return eg.Wait()
}

func verifyUnit(ctx context.Context, c *Client, src Source, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return c.canceled("Verify", context.Cause(ctx))
	}
	want, got := make([]byte, n), make([]byte, n)
	if k := min(n, src.Size()-off); k > 0 {
		if err := src.ReadAt(ctx, want[:k], off); err != nil {
			return err
		}
	}
	there, err := c.Ranges(ctx, off, n)
	if err != nil {
		return err
	}
	for _, e := range joined(there) {
		if err := c.ReadAt(ctx, got[e.Off-off:e.End()-off], e.Off); err != nil {
			return err
		}
	}
	if bytes.Equal(want, got) {
		return nil
	}
	i := 0
	for want[i] == got[i] {
		i++
	}
	return dr.New(dr.KindCorrupt, dr.CodeAzureOperation, "pageblob.Verify", "blob %s differs from the source at %d", c.name, off+int64(i)).
		WithHint("Upload the disk again.")
}
