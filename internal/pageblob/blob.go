package pageblob

import (
	"bytes"
	"context"
	"crypto/md5"
	"io"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	azpage "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
)

// If is a condition of a request; the zero If is none.
type If struct {
	// Sequence is the sequence number that the blob must have; nil = any. It counts
	// for PutPages and ClearPages only.
	Sequence *int64
	// ETag is the state that the blob must be in, as Stat or a change returned it.
	ETag string
	// New demands that the blob does not exist. It counts for Create only.
	New bool
}

// Sequence is the condition that the blob has the sequence number n.
func Sequence(n int64) If { return If{Sequence: &n} }

func (f If) access() *blob.AccessConditions {
	m := &blob.ModifiedAccessConditions{}
	switch {
	case f.ETag != "":
		m.IfMatch = ptr(azcore.ETag(f.ETag))
	case f.New:
		m.IfNoneMatch = ptr(azcore.ETagAny)
	default:
		return nil
	}
	return &blob.AccessConditions{ModifiedAccessConditions: m}
}

func (f If) sequence() *azpage.SequenceNumberAccessConditions {
	if f.Sequence == nil {
		return nil
	}
	return &azpage.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: f.Sequence}
}

func ptr[T any](v T) *T { return &v }

// Stat is what a blob says about itself.
type Stat struct {
	Size     int64 // bytes, footer included
	Sequence int64
	ETag     string
	Metadata map[string]string // names in lower case
	Modified time.Time
}

// Stat asks for the blob's properties. Absent tells whether it does not exist.
func (c *Client) Stat(ctx context.Context) (Stat, error) {
	var s Stat
	err := c.do(ctx, "Stat", func(ctx context.Context) error {
		r, err := c.pb.GetProperties(ctx, nil)
		if err != nil {
			return err
		}
		if r.ContentLength == nil || r.ETag == nil {
			return c.odd("Stat", "no length or no ETag")
		}
		if r.BlobType != nil && *r.BlobType != blob.BlobTypePageBlob {
			return dr.New(dr.KindPrecondition, dr.CodeAzureNameTaken, "pageblob.Stat", "blob %s is not a page blob", c.name)
		}
		s = Stat{Size: *r.ContentLength, ETag: string(*r.ETag), Metadata: lower(r.Metadata)}
		if r.BlobSequenceNumber != nil {
			s.Sequence = *r.BlobSequenceNumber
		}
		if r.LastModified != nil {
			s.Modified = *r.LastModified
		}
		return nil
	})
	return s, err
}

// lower undoes what HTTP does to the names of metadata.
func lower(m map[string]*string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		if v != nil {
			out[strings.ToLower(k)] = *v
		}
	}
	return out
}

func metadata(m map[string]string) map[string]*string {
	out := make(map[string]*string, len(m))
	for k, v := range m {
		out[k] = ptr(v)
	}
	return out
}

// Create makes an empty page blob of size bytes (a multiple of Page). Without a
// condition it replaces one that exists. Changed tells that If.New did not hold; after a
// lost answer that may be the blob of this very call.
func (c *Client) Create(ctx context.Context, size, sequence int64, md map[string]string, cond If) (etag string, err error) {
	err = c.do(ctx, "Create", func(ctx context.Context) error {
		r, err := c.pb.Create(ctx, size, &azpage.CreateOptions{SequenceNumber: &sequence, Metadata: metadata(md), AccessConditions: cond.access()})
		return c.tagged("Create", r.ETag, &etag, err)
	})
	return etag, err
}

// tagged keeps the ETag of an answer.
func (c *Client) tagged(op string, got *azcore.ETag, etag *string, err error) error {
	if err != nil {
		return err
	}
	if got == nil {
		return c.odd(op, "no ETag")
	}
	*etag = string(*got)
	return nil
}

// checkPages tells whether [off, off+n) is whole pages.
func (c *Client) checkPages(op string, off, n int64) error {
	if off < 0 || n <= 0 || off%Page != 0 || n%Page != 0 {
		return dr.Errorf(dr.KindInvalid, "pageblob."+op, "%s of blob %s: %d bytes at %d are not whole pages of %d", op, c.name, n, off, Page)
	}
	return nil
}

// PutPages writes whole pages, at most MaxPut bytes. The service checks their MD5.
// Fenced tells that the condition on the sequence number did not hold; then nothing
// was written by this call.
func (c *Client) PutPages(ctx context.Context, p []byte, off int64, cond If) error {
	n := int64(len(p))
	if err := c.checkPages("PutPages", off, n); err != nil {
		return err
	}
	if n > MaxPut {
		return dr.Errorf(dr.KindInvalid, "pageblob.PutPages", "%d bytes are more than Put Page takes (%d)", n, MaxPut)
	}
	sum := md5.Sum(p)
	o := &azpage.UploadPagesOptions{TransactionalValidation: blob.TransferValidationTypeMD5(sum[:]), SequenceNumberAccessConditions: cond.sequence(), AccessConditions: cond.access()}
	return c.do(ctx, "PutPages", func(ctx context.Context) error {
		c.count.sent.Add(n)
		_, err := c.pb.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(p)), blob.HTTPRange{Offset: off, Count: n}, o)
		return err
	})
}

// ClearPages makes whole pages read as zeroes and frees them; a range of any length
// is one request.
func (c *Client) ClearPages(ctx context.Context, off, n int64, cond If) error {
	if err := c.checkPages("ClearPages", off, n); err != nil {
		return err
	}
	o := &azpage.ClearPagesOptions{SequenceNumberAccessConditions: cond.sequence(), AccessConditions: cond.access()}
	return c.do(ctx, "ClearPages", func(ctx context.Context) error {
		_, err := c.pb.ClearPages(ctx, blob.HTTPRange{Offset: off, Count: n}, o)
		return err
	})
}

// ReadAt fills p from the blob at off, footer included, or fails.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 {
		return dr.Errorf(dr.KindInvalid, "pageblob.ReadAt", "offset %d of blob %s is negative", off, c.name)
	}
	for len(p) > 0 {
		q := p[:min(len(p), MaxPut)]
		if err := c.readPiece(ctx, q, off); err != nil {
			return err
		}
		p, off = p[len(q):], off+int64(len(q))
	}
	return nil
}

// readPiece reads at most MaxPut bytes, for which the service gives an MD5.
func (c *Client) readPiece(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	o := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: n}, RangeGetContentMD5: ptr(true)}
	return c.do(ctx, "ReadAt", func(ctx context.Context) (err error) {
		r, err := c.pb.DownloadStream(ctx, o)
		if err != nil {
			return err
		}
		defer func() { _ = r.Body.Close() }() // read to its end, or given up
		if r.ContentLength != nil && *r.ContentLength != n {
			return c.odd("ReadAt", "another length than asked for")
		}
		got, err := io.ReadFull(r.Body, p)
		c.count.received.Add(int64(got))
		if err != nil {
			if err == io.EOF { //nolint:errorlint // ReadFull's own
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if sum := md5.Sum(p); len(r.ContentMD5) > 0 && !bytes.Equal(sum[:], r.ContentMD5) {
			return dr.New(dr.KindUnavailable, dr.CodeAzureUnreachable, "pageblob.ReadAt", "ReadAt of blob %s: the bytes at %d were damaged on the way", c.name, off)
		}
		return nil
	})
}

// Ranges lists the pages of [off, off+n) that were written and not cleared since;
// everything else reads as zeroes. n = 0 means up to the end. The service lists 10,000
// ranges at a time; all of them are held in memory, 16 bytes each, at worst one for each
// KiB (managed disks: 8 KiB). Whoever asks about a large disk does so piece by piece.
func (c *Client) Ranges(ctx context.Context, off, n int64) (extent.Set, error) {
	var list []extent.Extent
	err := c.eachRange(ctx, off, n, func(e extent.Extent) { list = append(list, e) })
	if err != nil {
		return nil, err
	}
	return clip(list, off, n), nil
}

// eachRange calls fn for what Ranges lists, in no order that is promised, and not
// clipped. It holds one answer of the service at a time.
func (c *Client) eachRange(ctx context.Context, off, n int64, fn func(extent.Extent)) error {
	return c.pages("Ranges", func(marker *string) (next *string, err error) {
		o := &azpage.GetPageRangesOptions{Range: blob.HTTPRange{Offset: off, Count: n}, Marker: marker}
		var page azpage.GetPageRangesResponse
		err = c.do(ctx, "Ranges", func(ctx context.Context) (err error) {
			page, err = c.pb.NewGetPageRangesPager(o).NextPage(ctx)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, r := range page.PageRange {
			if r == nil || !rangeOK(r.Start, r.End) {
				return nil, c.odd("Ranges", "a range without start or end")
			}
			fn(extent.Extent{Off: *r.Start, Len: *r.End - *r.Start + 1})
		}
		return page.NextMarker, nil
	})
}

func rangeOK(start, end *int64) bool {
	return start != nil && end != nil && *start >= 0 && *end >= *start && *end < 1<<62
}

// pages asks for one answer after the other until there is no marker of a next one. A list
// that does not go on is refused, not repeated for ever.
func (c *Client) pages(op string, ask func(marker *string) (next *string, err error)) error {
	var marker *string
	for {
		next, err := ask(marker)
		if err != nil {
			return err
		}
		if next == nil || *next == "" {
			return nil
		}
		if marker != nil && *marker == *next {
			return c.odd(op, "the list goes on where it began")
		}
		marker = next
	}
}

func clip(list []extent.Extent, off, n int64) extent.Set {
	s := extent.Normalize(list)
	if n > 0 {
		return s.Clip(extent.Extent{Off: off, Len: n})
	}
	return s.Clip(extent.Extent{Off: off, Len: 1<<62 - off})
}

// Diff lists which pages of [off, off+n) were written and which were cleared since a
// snapshot, n = 0 meaning up to the end. prev is the id of a snapshot of the
// same blob, or for a managed disk or its snapshot the whole address of the older one.
// The answer may name too much (see the package comment). Memory is as with Ranges.
func (c *Client) Diff(ctx context.Context, prev string, off, n int64) (changed, cleared extent.Set, err error) {
	var written, zeroed []extent.Extent
	err = c.pages("Diff", func(marker *string) (next *string, err error) {
		o := &azpage.GetPageRangesDiffOptions{Range: blob.HTTPRange{Offset: off, Count: n}, Marker: marker}
		if strings.Contains(prev, "://") {
			o.PrevSnapshotURL = &prev
		} else {
			o.PrevSnapshot = &prev
		}
		var page azpage.GetPageRangesDiffResponse
		err = c.do(ctx, "Diff", func(ctx context.Context) (err error) {
			page, err = c.pb.NewGetPageRangesDiffPager(o).NextPage(ctx)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, r := range page.PageRange {
			if r == nil || !rangeOK(r.Start, r.End) {
				return nil, c.odd("Diff", "a range without start or end")
			}
			written = append(written, extent.Extent{Off: *r.Start, Len: *r.End - *r.Start + 1})
		}
		for _, r := range page.ClearRange {
			if r == nil || !rangeOK(r.Start, r.End) {
				return nil, c.odd("Diff", "a range without start or end")
			}
			zeroed = append(zeroed, extent.Extent{Off: *r.Start, Len: *r.End - *r.Start + 1})
		}
		return page.NextMarker, nil
	})
	if err != nil {
		return nil, nil, err
	}
	return clip(written, off, n), clip(zeroed, off, n), nil
}

// Snapshot makes a snapshot that carries the metadata md (of the blob itself if md is
// empty) and returns its id. After a lost answer there may be two of them.
func (c *Client) Snapshot(ctx context.Context, md map[string]string, cond If) (id string, err error) {
	o := &blob.CreateSnapshotOptions{AccessConditions: cond.access()}
	if len(md) > 0 {
		o.Metadata = metadata(md)
	}
	err = c.do(ctx, "Snapshot", func(ctx context.Context) error {
		r, err := c.pb.CreateSnapshot(ctx, o)
		if err != nil {
			return err
		}
		if r.Snapshot == nil || *r.Snapshot == "" {
			return c.odd("Snapshot", "no id of a snapshot")
		}
		id = *r.Snapshot
		return nil
	})
	return id, err
}

// NextSequence makes the blob's sequence number larger by one, which fences every
// writer that demands an older one, and returns the new one and the blob's ETag. No two
// callers get the same number; a lost answer leaves a number out.
func (c *Client) NextSequence(ctx context.Context) (n int64, etag string, err error) {
	o := &azpage.UpdateSequenceNumberOptions{ActionType: ptr(azpage.SequenceNumberActionTypeIncrement)}
	err = c.do(ctx, "NextSequence", func(ctx context.Context) error {
		r, err := c.pb.UpdateSequenceNumber(ctx, o)
		if err == nil && r.BlobSequenceNumber == nil {
			return c.odd("NextSequence", "no sequence number")
		}
		if err == nil {
			n = *r.BlobSequenceNumber
		}
		return c.tagged("NextSequence", r.ETag, &etag, err)
	})
	return n, etag, err
}

// Resize changes the blob's size (a multiple of Page); what is beyond is dropped,
// what is new reads as zeroes.
func (c *Client) Resize(ctx context.Context, size int64, cond If) (etag string, err error) {
	err = c.do(ctx, "Resize", func(ctx context.Context) error {
		r, err := c.pb.Resize(ctx, size, &azpage.ResizeOptions{AccessConditions: cond.access()})
		return c.tagged("Resize", r.ETag, &etag, err)
	})
	return etag, err
}

// SetMetadata replaces all of the blob's metadata. With a condition on the ETag a
// repeated attempt after a lost answer is Changed: ask Stat whose metadata it has.
func (c *Client) SetMetadata(ctx context.Context, md map[string]string, cond If) (etag string, err error) {
	err = c.do(ctx, "SetMetadata", func(ctx context.Context) error {
		r, err := c.pb.SetMetadata(ctx, metadata(md), &blob.SetMetadataOptions{AccessConditions: cond.access()})
		return c.tagged("SetMetadata", r.ETag, &etag, err)
	})
	return etag, err
}

// Delete removes the blob and its snapshots, or the snapshot that c stands for. A
// blob that does not exist is no error.
func (c *Client) Delete(ctx context.Context) error {
	o := &blob.DeleteOptions{}
	if !strings.Contains(c.plain, "?snapshot=") {
		o.DeleteSnapshots = ptr(blob.DeleteSnapshotsOptionTypeInclude)
	}
	err := c.do(ctx, "Delete", func(ctx context.Context) error {
		_, err := c.pb.Delete(ctx, o)
		return err
	})
	if Absent(err) {
		return nil
	}
	return err
}
