package pageblob_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/internal/pageblob"
	"holdfast/internal/pageblob/pageblobtest"
	"holdfast/internal/vhd"
)

const mib = 1 << 20

// noise is a disk with zeroes, text and random parts.
func noise(seed uint64, size int64) pageblobtest.Disk {
	r := rand.New(rand.NewPCG(seed, 1))
	d := make(pageblobtest.Disk, size)
	for off := int64(0); off < size; {
		n := min(size-off, int64(1+r.IntN(300))*1024)
		if r.IntN(3) == 0 {
			for i := off; i < off+n; i += 8 {
				var word [8]byte
				binary.LittleEndian.PutUint64(word[:], r.Uint64())
				copy(d[i:off+n], word[:])
			}
		}
		off += n
	}
	return d
}

func quick(tr *pageblobtest.Transport, e *pageblobtest.Emulator) pageblob.Config {
	return pageblob.Config{Key: e.Key, Transport: tr, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Attempts: 3}
}

func download(t *testing.T, c *pageblob.Client) []byte {
	t.Helper()
	st, err := c.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size)
	if err := c.ReadAt(t.Context(), b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func sameDisk(t *testing.T, c *pageblob.Client, d []byte) {
	t.Helper()
	b := download(t, c)
	f, err := vhd.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("the blob is no VHD: %v", err)
	}
	if f.Size() != vhd.RoundAzure(int64(len(d))) {
		t.Fatalf("the VHD has %d bytes, the disk %d", f.Size(), len(d))
	}
	if !bytes.Equal(b[:len(d)], d) || len(bytes.Trim(b[len(d):f.Size()], "\x00")) > 0 {
		t.Fatal("the blob's content is not the disk's")
	}
}

func TestAzurite(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: starts another program")
	}
	t.Parallel()
	e := pageblobtest.StartAzurite(t)
	tr := &pageblobtest.Transport{Base: e.Transport}
	ctx := context.Background()
	d := noise(1, 9*mib+12345*512)
	c, err := pageblob.Open(e.Container+"/a b/1.vhd", quick(tr, e))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stat(ctx); !pageblob.Absent(err) {
		t.Fatalf("a blob that does not exist: %v", err)
	}
	if _, err := c.Create(ctx, vhd.RoundAzure(d.Size())+512, 7, map[string]string{"holdfast_state": "new"}, pageblob.If{New: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, 512, 7, nil, pageblob.If{New: true}); !pageblob.Changed(err) {
		t.Fatalf("a second create: %v", err)
	}
	res, err := pageblob.Upload(ctx, c, d, pageblob.Options{Fresh: true, Rate: -1, Requests: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v %v", res, tr.Kinds())
	sameDisk(t, c, d)
	if err := pageblob.Verify(ctx, c, d, 1); err != nil {
		t.Fatal(err)
	}
	n, etag, err := c.NextSequence(ctx)
	if err != nil || n != 8 {
		t.Fatalf("sequence %d, %v", n, err)
	}
	st, err := c.Stat(ctx)
	if err != nil || st.ETag != etag || st.Sequence != 8 || st.Metadata["holdfast_state"] != "new" {
		t.Fatalf("%+v (ETag %s), %v", st, etag, err)
	}
	if err := c.PutPages(ctx, make([]byte, 512), 0, pageblob.Sequence(7)); !pageblob.Fenced(err) {
		t.Fatalf("an old writer: %v", err)
	}
	if err := c.ClearPages(ctx, 0, 512, pageblob.Sequence(7)); !pageblob.Fenced(err) {
		t.Fatalf("an old writer clears: %v", err)
	}
	if etag, err = c.SetMetadata(ctx, map[string]string{"holdfast_state": "at"}, pageblob.If{ETag: etag}); err != nil {
		t.Fatal(err)
	}
	if _, err = c.SetMetadata(ctx, map[string]string{"holdfast_state": "x"}, pageblob.If{ETag: st.ETag}); !pageblob.Changed(err) {
		t.Fatalf("metadata with an old ETag: %v", err)
	}
	id, err := c.Snapshot(ctx, map[string]string{"holdfast_point": "1/2"}, pageblob.If{ETag: etag})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Resize(ctx, vhd.RoundAzure(d.Size())+mib+512, pageblob.If{ETag: "\"0x1\""}); !pageblob.Changed(err) {
		t.Fatalf("resize with an old ETag: %v", err)
	}
	if _, err = c.Resize(ctx, vhd.RoundAzure(d.Size())+mib+512, pageblob.If{ETag: etag}); err != nil {
		t.Fatal(err)
	}
	old, err := c.At(id)
	if err != nil {
		t.Fatal(err)
	}
	sameDisk(t, old, d)
	if st, err := old.Stat(ctx); err != nil || st.Metadata["holdfast_point"] != "1/2" {
		t.Fatalf("%+v, %v", st, err)
	}
	if err := old.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Stat(ctx); !pageblob.Absent(err) {
		t.Fatalf("a deleted snapshot: %v", err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}
