package pageblob_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/pageblob"
	"holdfast/internal/pageblob/pageblobtest"
	"holdfast/internal/vhd"
)

// sparse is a large disk of which a few blocks are not zero.
type sparse struct {
	size   int64
	blocks map[int64][]byte // by offset, each inside of 64 KiB
}

func (s sparse) Size() int64 { return s.size }

func (s sparse) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	for at, b := range s.blocks {
		if at < off+int64(len(p)) && at+int64(len(b)) > off {
			if at >= off {
				copy(p[at-off:], b)
			} else {
				copy(p, b[off-at:])
			}
		}
	}
	return nil
}

func (s sparse) Extents(_ context.Context, off, length int64, fn func(off, n int64, zero bool) error) error {
	var data []extent.Extent
	for at, b := range s.blocks {
		data = append(data, extent.Extent{Off: at, Len: int64(len(b))})
	}
	whole := extent.Extent{Off: off, Len: length}
	set := extent.Normalize(data).AlignOut(64<<10, s.size).Clip(whole)
	for _, e := range set {
		if e.Off > off {
			if err := fn(off, e.Off-off, true); err != nil {
				return err
			}
		}
		if err := fn(e.Off, e.Len, false); err != nil {
			return err
		}
		off = e.End()
	}
	if off < whole.End() {
		return fn(off, whole.End()-off, true)
	}
	return nil
}

// TestLarge writes disks that no VHD file can hold: into page blobs of the simulator and
// of Azurite, and into a managed disk.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	t.Parallel()
	const size = int64(4095) << 30
	filled := func(b byte) []byte { return bytes.Repeat([]byte{b}, 8192) }
	d := sparse{size, map[int64][]byte{0: filled(1), 2040<<30 - 4096: filled(2), 3000<<30 + 12345*4096: filled(3), size - 8192: filled(4)}}
	in := func(e pageblobtest.Emulator) func(t *testing.T, size int64) *pageblob.Client {
		return func(t *testing.T, size int64) *pageblob.Client {
			c, err := pageblob.Open(e.Container+fmt.Sprintf("/%d.vhd", size), pageblob.Config{Key: e.Key, Transport: e.Transport})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Create(t.Context(), size+vhd.FooterSize, 0, nil, pageblob.If{}); err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	for _, x := range []struct {
		name  string
		sizes []int64 // of the blobs
		open  func(t *testing.T) func(t *testing.T, size int64) *pageblob.Client
	}{
		{"page blob", []int64{size, vhd.MaxPageBlob}, func(t *testing.T) func(*testing.T, int64) *pageblob.Client {
			s := pageblobtest.StartSimulator(t)
			return in(pageblobtest.Emulator{Container: s.Container, Key: s.Key, Transport: s.Transport})
		}},
		{"managed disk", []int64{size}, func(t *testing.T) func(*testing.T, int64) *pageblob.Client {
			s := pageblobtest.StartSimulator(t)
			return func(t *testing.T, size int64) *pageblob.Client {
				c, _ := disk(t, s, "large", size, 3)
				t.Cleanup(func() {
					if err := s.CheckFooter("large"); err != nil {
						t.Error(err)
					}
				})
				return c
			}
		}},
		{"azurite", []int64{size}, func(t *testing.T) func(*testing.T, int64) *pageblob.Client {
			return in(*pageblobtest.StartAzurite(t))
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			open := x.open(t)
			for _, size := range x.sizes {
				c := open(t, size)
				o := fast(pageblob.Options{Fresh: true, ID: [16]byte{9}})
				if size > d.size { // all of what lies behind the disk takes long to look through
					o.Fresh, o.Only = false, extent.Set{{Off: 0, Len: mib}, {Off: 2039 << 30, Len: 2 << 30}, {Off: 3000 << 30, Len: 1 << 30}, {Off: d.size - mib, Len: 3 * mib}, {Off: size - mib, Len: mib}}
				}
				res, err := pageblob.Upload(t.Context(), c, d, o)
				if err != nil || res.Written != 4*8192 {
					t.Fatalf("%d: %+v, %v", size, res, err)
				}
				t.Logf("%d: %+v", size, res)
				st, err := c.Stat(t.Context())
				if err != nil || st.Size != size+vhd.FooterSize {
					t.Fatalf("%+v, %v", st, err)
				}
				b := make([]byte, 8192+vhd.FooterSize)
				if err := c.ReadAt(t.Context(), b, size-8192); err != nil {
					t.Fatal(err)
				}
				f, err := vhd.DecodeFooter(b[8192:])
				if err != nil || f.Size != size || size == d.size && !bytes.Equal(b[:8192], filled(4)) {
					t.Errorf("the end of %d: %+v, %v", size, f, err)
				}
				have, err := c.Ranges(t.Context(), 0, 0)
				want := extent.Set{{Off: 0, Len: 8192}, {Off: 2040<<30 - 4096, Len: 8192}, {Off: 3000<<30 + 12345*4096, Len: 8192}, {Off: d.size - 8192, Len: 8192}, {Off: size, Len: 512}}
				if x.name == "managed disk" {
					want[4].Len = 512 // 4 KiB pages, cut off at the end
				}
				if err != nil || !have.Equal(extent.Normalize(want)) {
					t.Errorf("%d has %v, want %v, %v", size, have, want, err)
				}
				if err := pageblob.Verify(t.Context(), c, d, 1e-9); err != nil {
					t.Error(err)
				}
			}
		})
	}
	s := pageblobtest.StartSimulator(t)
	c, _ := disk(t, s, "toolarge", mib, 3)
	if _, err := pageblob.Upload(t.Context(), c, sparse{vhd.MaxFixed + mib, nil}, fast(pageblob.Options{})); dr.CodeOf(err) != dr.CodeAzureDisk {
		t.Errorf("a disk that is too large: %v", err)
	}
}

// TestManyRanges: the service lists 10,000 ranges at a time.
func TestManyRanges(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	t.Parallel()
	s := pageblobtest.StartSimulator(t)
	const count, size = 10_500, int64(10_500) * 8192 / mib * mib
	c, tr := disk(t, s, "many", size, 3)
	dev, err := s.Device("many")
	if err != nil {
		t.Fatal(err)
	}
	var want extent.Set
	for off := int64(0); off+4096 <= size; off += 8192 {
		b := make([]byte, 4096)
		binary.BigEndian.PutUint64(b, uint64(off)+1)
		if err := dev.WriteAt(t.Context(), b, off); err != nil {
			t.Fatal(err)
		}
		want = append(want, extent.Extent{Off: off, Len: 4096})
	}
	if len(want) < count*9/10 {
		t.Fatalf("only %d ranges", len(want))
	}
	got, err := c.Ranges(t.Context(), 0, 0)
	if asked := tr.Kinds()["GET pagelist"]; err != nil || !got.Equal(want) || asked != 2 {
		t.Fatalf("%d ranges of %d after %d requests, %v", len(got), len(want), asked, err)
	}
	from, n := want[5].Off+512, want[10_200].Off-want[5].Off
	if got, err = c.Ranges(t.Context(), from, n); err != nil || !got.Equal(want.Clip(extent.Extent{Off: from, Len: n})) {
		t.Fatalf("%d ranges of a part, %v", len(got), err)
	}
	// An upload that finds all of them: what is not the source's is cleared, the
	// rest is compared with few requests.
	d := make(pageblobtest.Disk, size)
	for _, e := range want {
		if e.Off%(3*8192) != 0 {
			binary.BigEndian.PutUint64(d[e.Off:], uint64(e.Off)+1)
		}
	}
	before := tr.Kinds()["GET "]
	res, err := pageblob.Upload(t.Context(), c, d, fast(pageblob.Options{Resume: true}))
	if err != nil || res.Written != 0 || res.Cleared == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if reads := tr.Kinds()["GET "] - before; reads > 2*size/pageblob.MaxPut {
		t.Errorf("%d ranges were compared by %d requests", len(want), reads)
	}
	if err := pageblob.Verify(t.Context(), c, d, 0.2); err != nil {
		t.Error(err)
	}
}

// TestThrottled uploads more than the service lets through at once.
func TestThrottled(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	t.Parallel()
	s := pageblobtest.StartSimulator(t)
	for name, l := range map[string]pagestore.Limits{"requests": {RequestsPerSecond: 6}, "bytes": {BytesPerSecond: mib / 2}} {
		d := noise(12, 4*mib)
		c, err := pageblob.Open(s.Upload(t, name, d.Size()), pageblob.Config{Transport: s.Transport, Attempts: 200, BaseDelay: 5 * time.Millisecond, MaxDelay: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		s.Limit(l)
		began := time.Now()
		res, err := pageblob.Upload(t.Context(), c, d, fast(pageblob.Options{Fresh: true, Workers: 16}))
		if err != nil {
			t.Fatal(err)
		}
		n := c.Count()
		t.Logf("%s: %v, %+v, %+v", name, time.Since(began), res, n)
		if n.Throttled == 0 {
			t.Errorf("%s: nothing was throttled", name)
		}
		s.Limit(pagestore.Limits{})
		sameDisk(t, c, d)
		// Who keeps to what is published is not throttled.
		s.Limit(pagestore.PublishedLimits())
		other := noise(13, 4*mib)
		if _, err := pageblob.Upload(t.Context(), c, other, pageblob.Options{Workers: 16}); err != nil {
			t.Fatal(err)
		}
		if n := c.Count().Throttled - n.Throttled; n > 0 {
			t.Errorf("%s: %d requests were throttled within the limits", name, n)
		}
		s.Limit(pagestore.Limits{})
		sameDisk(t, c, other)
	}
}
