package s3

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

// Head describes an object; see objstore.Reader. SHA256 is what the store
// recorded when it checked the body, if it does.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.Info, error) {
	out, err := b.head(ctx, "head", key)
	if err != nil {
		return objstore.Info{}, err
	}
	info := objstore.Info{Key: key, Size: *out.ContentLength, ModTime: *out.LastModified}
	// A checksum of parts is no digest of the object; it has another length.
	if out.ChecksumType != types.ChecksumTypeComposite {
		if raw, err := base64.StdEncoding.DecodeString(aws.ToString(out.ChecksumSHA256)); err == nil && len(raw) == len(info.SHA256) {
			info.SHA256 = [32]byte(raw)
		}
	}
	return info, nil
}

func (b *Bucket) head(ctx context.Context, op, key string) (*sdk.HeadObjectOutput, error) {
	if _, err := b.begin(ctx, op, key); err != nil {
		return nil, err
	}
	var out *sdk.HeadObjectOutput
	err := b.do(ctx, op, key, func() (f *failure) {
		out, f = b.headOnce(ctx, key)
		return f
	})
	return out, err
}

// headOnce asks once. ContentLength and LastModified of its answer are not nil.
func (b *Bucket) headOnce(ctx context.Context, key string) (*sdk.HeadObjectOutput, *failure) {
	cl, err := b.sdk(ctx)
	if err != nil {
		return nil, fatal(objstore.ErrUnavailable, err)
	}
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.HeadObject(w.Ctx, &sdk.HeadObjectInput{
		Bucket: &b.c.Bucket, Key: b.at(key), ChecksumMode: types.ChecksumModeEnabled,
	})
	if f := b.judge(w, err); f != nil {
		if f.status/100 == 4 && !f.retry {
			f = b.askAgain(ctx, cl, key, f)
		}
		return nil, f
	}
	if aws.ToString(out.ETag) == "" || out.LastModified == nil {
		return nil, odd("the object was described without ETag or time")
	}
	if out.ContentLength == nil {
		out.ContentLength = aws.Int64(0)
	}
	return out, nil
}

// askAgain asks with GET what a HEAD was refused for, because an answer to HEAD
// has no body and so no code: a bucket that is missing, or a proxy that does
// not know the host, says 404 too, and credentials that have expired say 400.
func (b *Bucket) askAgain(ctx context.Context, cl *sdk.Client, key string, refused *failure) *failure {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.GetObject(w.Ctx, &sdk.GetObjectInput{Bucket: &b.c.Bucket, Key: b.at(key), Range: aws.String("bytes=0-0")})
	f := b.judge(w, err)
	switch {
	case f == nil:
		_ = out.Body.Close()
	case f.status != http.StatusRequestedRangeNotSatisfiable: // which an empty object answers
		return f
	}
	if refused.status == http.StatusNotFound {
		return again(errors.New("HEAD says that the object does not exist, and GET that it does"))
	}
	return refused
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
	cl       *sdk.Client
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
	in := &sdk.GetObjectInput{Bucket: &r.b.c.Bucket, Key: r.b.at(r.key)}
	ranged := r.off > 0 || r.end != math.MaxInt64
	if ranged {
		span := "bytes=" + strconv.FormatInt(r.off, 10) + "-"
		if r.end != math.MaxInt64 {
			span += strconv.FormatInt(r.end-1, 10)
		}
		in.Range = &span
	}
	if r.etag != "" {
		in.IfMatch = &r.etag // the rest of the same object, or nothing
	}
	w := attempt.NewWatch(r.ctx, r.b.c.StallTimeout, -1) // the caller may read slowly
	out, err := r.cl.GetObject(w.Ctx, in)
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
	first, end := int64(0), aws.ToInt64(out.ContentLength)
	if out.ContentRange != nil {
		var last, size int64
		var ok bool
		first, last, size, ok = parseContentRange(*out.ContentRange)
		if !ok || last+1 != min(r.end, size) || last+1-first != end {
			first = -1
		}
		end = last + 1
	}
	if aws.ToString(out.ETag) == "" || out.ContentLength == nil || first != r.off || ranged != (out.ContentRange != nil) || r.etag != "" && end != r.end {
		_ = out.Body.Close()
		w.Stop()
		return odd("another range was answered than asked for")
	}
	r.etag, r.end, r.current, r.watch = *out.ETag, end, out.Body, w
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
	in := &sdk.ListObjectsV2Input{Bucket: &b.c.Bucket, Prefix: b.at(prefix), EncodingType: types.EncodingTypeUrl}
	if after != "" {
		in.StartAfter = b.at(after)
	}
	for {
		var page []objstore.Info
		var next *string
		err := b.do(ctx, "list", prefix, func() *failure {
			w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
			defer w.Stop()
			out, err := cl.ListObjectsV2(w.Ctx, in)
			if f := b.judge(w, err); f != nil {
				return f
			}
			if page, err = b.page(out, prefix, after); err != nil {
				return again(err)
			}
			next = out.NextContinuationToken
			return nil
		})
		if err != nil {
			return err
		}
		for _, info := range page {
			if err := ctx.Err(); err != nil {
				return fail(nil, err)
			}
			if err := fn(info); err != nil {
				return err
			}
			after = info.Key
		}
		if err := ctx.Err(); err != nil {
			return fail(nil, err)
		}
		if next == nil {
			return nil
		}
		in.ContinuationToken, in.StartAfter = next, nil
	}
}

// page takes what is ours from a page of a listing and checks that it can be
// one: complete, of this prefix, in order. Names that are not keys are those of
// other programs.
func (b *Bucket) page(out *sdk.ListObjectsV2Output, prefix, after string) ([]objstore.Info, error) {
	if aws.ToString(out.Name) == "" || out.IsTruncated == nil {
		// A web page of a proxy parses as a listing of nothing.
		return nil, errors.New("the answer is no listing; look for a proxy or a login page in between")
	}
	if more := aws.ToString(out.NextContinuationToken) != ""; more != *out.IsTruncated {
		if !more {
			return nil, errors.New("the listing goes on, but the store does not say where")
		}
		out.NextContinuationToken = nil
	}
	var page []objstore.Info
	last := ""
	for _, o := range out.Contents {
		name := aws.ToString(o.Key)
		if out.EncodingType == types.EncodingTypeUrl {
			// A key of ours is the same encoded, except that some stores encode the slash.
			plain, err := url.PathUnescape(name)
			if err != nil {
				continue
			}
			name = plain
		}
		key, ours := strings.CutPrefix(name, b.prefix)
		if !ours || !strings.HasPrefix(key, prefix) {
			return nil, fmt.Errorf("the listing shows %.200q, which is not under the prefix", name)
		}
		if key <= last && last != "" {
			return nil, fmt.Errorf("the listing shows %.200q after %.200q: this store does not list in order and cannot be used", key, last)
		}
		last = key
		if key <= after || objstore.ValidateKey(key) != nil {
			continue
		}
		if o.Size == nil || *o.Size < 0 || o.LastModified == nil {
			return nil, fmt.Errorf("the listing shows %q without size or time", key)
		}
		page = append(page, objstore.Info{Key: key, Size: *o.Size, ModTime: *o.LastModified})
	}
	return page, nil
}
