package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

// Head describes an object; see objstore.Reader. SHA256 stays zero, because
// the service records none.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.Info, error) {
	if _, err := b.begin(ctx, "head", key); err != nil {
		return objstore.Info{}, err
	}
	var out *blob.GetPropertiesResponse
	err := b.do(ctx, "head", key, func() (f *failure) {
		out, f = b.headOnce(ctx, key)
		return f
	})
	if err != nil {
		return objstore.Info{}, err
	}
	return objstore.Info{Key: key, Size: *out.ContentLength, ModTime: *out.LastModified}, nil
}

// headOnce asks once. ContentLength and LastModified of its answer are not nil.
func (b *Bucket) headOnce(ctx context.Context, key string) (*blob.GetPropertiesResponse, *failure) {
	cl, err := b.sdk(ctx)
	if err != nil {
		return nil, fatal(objstore.ErrUnavailable, err)
	}
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.blob(b.at(key)).GetProperties(w.Ctx, nil)
	if f := b.judge(w, err); f != nil {
		return nil, f
	}
	if out.ETag == nil || *out.ETag == "" || out.LastModified == nil || out.ContentLength == nil || *out.ContentLength < 0 {
		return nil, odd("the object was described without ETag, time or size")
	}
	return &out, nil
}

// Get reads a range; see objstore.Reader. A body that breaks or stalls is
// continued where it broke, as long as there is progress in between.
func (b *Bucket) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	fail := func(kind, cause error) error {
		return &objstore.Error{Op: "get", Key: key, Kind: kind, Err: cause}
	}
	if err := objstore.ValidateKey(key); err != nil {
		return nil, fail(nil, err)
	}
	if off < 0 {
		return nil, fail(objstore.ErrRange, fmt.Errorf("offset %d", off))
	}
	cl, err := b.begin(ctx, "get", key)
	if err != nil {
		return nil, err
	}
	r := &body{b: b, cl: cl, ctx: ctx, key: key, off: off, end: math.MaxInt64}
	if length >= 0 && length <= math.MaxInt64-off {
		r.end = off + length
	}
	if length == 0 {
		r.nothing = true // HTTP has no range of no bytes
	}
	if err := b.do(ctx, "get", key, r.open); err != nil {
		return nil, err
	}
	if r.nothing {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	return r, nil
}

// body is a range that is being read.
type body struct {
	b        *Bucket
	cl       *client
	ctx      context.Context
	key      string
	off, end int64  // what is still to be read; end is exact once etag is known
	etag     string // of the object that is being read
	nothing  bool   // there are no bytes in the range

	current io.ReadCloser
	watch   *attempt.Watch
	broken  int // attempts since the last progress
	closed  bool
}

// open asks for [off, end) once.
func (r *body) open() *failure {
	if r.nothing {
		return r.checkRange()
	}
	in := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: r.off}}
	ranged := r.off > 0 || r.end != math.MaxInt64
	if r.end != math.MaxInt64 {
		in.Range.Count = r.end - r.off
	}
	if r.etag != "" {
		// The rest of the same object, or nothing.
		same := azcore.ETag(r.etag)
		in.AccessConditions = &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &same}}
	}
	w := attempt.NewWatch(r.ctx, r.b.c.StallTimeout, -1) // the caller may read slowly
	out, err := r.cl.blob(r.b.at(r.key)).DownloadStream(w.Ctx, in)
	if f := r.b.judge(w, err); f != nil {
		w.Stop()
		switch {
		case f.status == http.StatusRequestedRangeNotSatisfiable && r.etag == "":
			r.nothing = true
			if f = r.checkRange(); f != nil {
				r.nothing = false
			}
		case f.status == http.StatusPreconditionFailed:
			f = fatal(objstore.ErrUnavailable, errors.New("the object was replaced while it was read; read it anew"))
		}
		return f
	}
	w.Pause()
	if ranged && r.etag == "" && out.ContentLength != nil && *out.ContentLength == 0 {
		// Azure refuses a range without bytes with 416; the emulator answers it.
		_ = out.Body.Close()
		w.Stop()
		r.nothing = true
		f := r.checkRange()
		r.nothing = f == nil
		return f
	}
	first, end := int64(0), int64(-1)
	if out.ContentLength != nil {
		end = *out.ContentLength
	}
	if out.ContentRange != nil {
		var last, size int64
		var ok bool
		first, last, size, ok = parseContentRange(*out.ContentRange)
		if !ok || last+1 != min(r.end, size) || last+1-first != end {
			first = -1
		}
		end = last + 1
	}
	if out.ETag == nil || *out.ETag == "" || out.ContentLength == nil || first != r.off || ranged != (out.ContentRange != nil) || r.etag != "" && end != r.end {
		_ = out.Body.Close()
		w.Stop()
		return odd("another range was answered than asked for")
	}
	r.etag, r.end, r.current, r.watch = string(*out.ETag), end, out.Body, w
	return nil
}

// checkRange decides between an empty range and one outside the object.
func (r *body) checkRange() *failure {
	out, f := r.b.headOnce(r.ctx, r.key)
	switch {
	case f != nil:
		return f
	case r.off > *out.ContentLength:
		return fatal(objstore.ErrRange, fmt.Errorf("offset %d of %d", r.off, *out.ContentLength))
	case r.off < *out.ContentLength && r.end > r.off:
		return again(fmt.Errorf("the range from %d was refused, but the object has %d bytes", r.off, *out.ContentLength))
	}
	return nil
}

func (r *body) fail(kind, err error) error {
	return &objstore.Error{Op: "get", Key: r.key, Kind: kind, Err: err}
}

func (r *body) Read(p []byte) (int, error) {
	for {
		switch {
		case r.closed:
			return 0, r.fail(nil, errors.New("read after close"))
		case r.ctx.Err() != nil:
			return 0, r.fail(nil, r.ctx.Err())
		case r.off == r.end:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		if r.current == nil {
			if err := r.b.do(r.ctx, "get", r.key, r.open); err != nil {
				return 0, err
			}
		}
		r.watch.Moved()
		n, err := r.current.Read(p[:min(int64(len(p)), r.end-r.off)])
		r.watch.Pause()
		r.off += int64(n)
		if n > 0 {
			r.broken = 0
			if r.off == r.end && err == nil {
				// The transport reuses the connection only after its EOF.
				r.watch.Moved()
				_, _ = io.CopyN(io.Discard, r.current, 1)
			}
			if r.off == r.end || err != nil {
				r.drop()
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		err = r.watch.Explain(err)
		r.drop()
		if r.ctx.Err() != nil {
			continue
		}
		if r.broken++; r.broken >= r.b.c.Attempts {
			return 0, r.fail(objstore.ErrUnavailable, fmt.Errorf("the body broke off at %d: %w", r.off, err))
		}
		if err := r.b.wait(r.ctx, r.broken, 0); err != nil {
			return 0, r.fail(nil, err)
		}
	}
}

func (r *body) drop() {
	if r.current != nil {
		_ = r.current.Close()
		r.watch.Stop()
		r.current = nil
	}
}

// Close ends the request; it is idempotent.
func (r *body) Close() error {
	r.closed = true
	r.drop()
	return nil
}

// parseContentRange reads "bytes first-last/size".
func parseContentRange(text string) (first, last, size int64, ok bool) {
	spec, found := strings.CutPrefix(text, "bytes ")
	span, total, slash := strings.Cut(spec, "/")
	from, to, dash := strings.Cut(span, "-")
	size, err1 := strconv.ParseInt(total, 10, 64)
	first, err2 := strconv.ParseInt(from, 10, 64)
	last, err3 := strconv.ParseInt(to, 10, 64)
	if !found || !slash || !dash || errors.Join(err1, err2, err3) != nil || first < 0 || last < first || last >= size {
		return 0, 0, 0, false
	}
	return first, last, size, true
}

// List lists the objects under prefix; see objstore.Reader.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	return b.ListAfter(ctx, prefix, "", fn)
}

// ListAfter lists the keys greater than after; see objstore.AfterLister. A page
// is checked completely before the first of its objects is shown.
func (b *Bucket) ListAfter(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	fail := func(kind, err error) error {
		return &objstore.Error{Op: "list", Key: prefix, Kind: kind, Err: err}
	}
	if err := objstore.ValidatePrefix(prefix); err != nil {
		return fail(nil, err)
	}
	if err := ctx.Err(); err != nil {
		return fail(nil, err)
	}
	cl, err := b.sdk(ctx)
	if err != nil {
		return b.openError(ctx, "list", prefix, err)
	}
	under := b.at(prefix)
	in := &container.ListBlobsFlatOptions{Prefix: &under}
	if strings.HasPrefix(after, prefix) && after > prefix {
		// A store that does not know it begins at the prefix, and what comes too
		// early is left out below.
		from := b.at(after)
		in.StartFrom = &from
	}
	last := ""
	for {
		var p *page
		err := b.do(ctx, "list", prefix, func() (f *failure) {
			p, f = b.pageOnce(ctx, cl, in, prefix, last)
			if f != nil && f.status == http.StatusBadRequest && in.StartFrom != nil && in.Marker == nil {
				in.StartFrom, f.retry = nil, true
			}
			return f
		})
		if err != nil {
			return err
		}
		for _, info := range p.objects {
			if info.Key <= after {
				continue
			}
			if err := ctx.Err(); err != nil {
				return fail(nil, err)
			}
			if err := fn(info); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return fail(nil, err)
		}
		if p.next == "" {
			return nil
		}
		if in.Marker != nil && *in.Marker == p.next {
			return fail(objstore.ErrUnavailable, errors.New("the listing does not get on: the store repeats a page"))
		}
		in.Marker, last = &p.next, p.last
	}
}

// page is what is ours of a page of a listing.
type page struct {
	objects []objstore.Info
	next    string // where the listing goes on; empty at its end
	last    string // the last name shown so far
}

// pageOnce asks for a page and checks that it can be one: of this prefix, in
// order. Names that are not keys are those of other programs.
func (b *Bucket) pageOnce(ctx context.Context, cl *client, in *container.ListBlobsFlatOptions, prefix, last string) (*page, *failure) {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.container.NewListBlobsFlatPager(in).NextPage(w.Ctx)
	if f := b.judge(w, err); f != nil {
		return nil, f
	}
	if out.ContainerName == nil && out.ServiceEndpoint == nil || out.Segment == nil {
		// A web page of a proxy parses as a listing of nothing.
		return nil, odd("a listing was asked for and something else answered")
	}
	p := &page{last: last}
	if out.NextMarker != nil {
		p.next = *out.NextMarker
	}
	for _, o := range out.Segment.BlobItems {
		if o == nil || o.Name == nil {
			return nil, odd("the listing shows a blob without a name")
		}
		key, ours := strings.CutPrefix(*o.Name, b.prefix)
		if !ours || !strings.HasPrefix(key, prefix) {
			return nil, again(fmt.Errorf("the listing shows %.200q, which is not under the prefix", *o.Name))
		}
		if key <= p.last && p.last != "" {
			return nil, again(fmt.Errorf("the listing shows %.200q after %.200q: this account does not list in order (perhaps it has a hierarchical namespace) and cannot be used", key, p.last))
		}
		p.last = key
		if objstore.ValidateKey(key) != nil {
			continue
		}
		if o.Properties == nil || o.Properties.ContentLength == nil || *o.Properties.ContentLength < 0 || o.Properties.LastModified == nil {
			return nil, again(fmt.Errorf("the listing shows %q without size or time", key))
		}
		p.objects = append(p.objects, objstore.Info{Key: key, Size: *o.Properties.ContentLength, ModTime: *o.Properties.LastModified})
	}
	return p, nil
}
