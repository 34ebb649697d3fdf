package azure

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"holdfast/internal/objstore"
)

const (
	// metaPut is the metadata that tells which call created the object. Azure
	// takes names that are identifiers only.
	metaPut = "holdfastput"

	// maxInMemory is how much of a body that cannot be read twice is kept in
	// memory; more goes to a temporary file.
	maxInMemory = 16 << 20

	// minRate is the slowest upload that is waited for, in bytes a second.
	minRate = 16 << 10
)

// PutNew creates an object; see objstore.Bucket. r is read twice or more if it
// is an io.Seeker, and otherwise kept in memory or, above 16 MiB, in a temporary
// file, because the digest goes before the body and attempts are repeated.
// Objects above MaxObject fail with ErrTooLarge.
func (b *Bucket) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	fail := func(kind, cause error) error {
		return &objstore.Error{Op: "put", Key: key, Kind: kind, Err: cause}
	}
	if err := objstore.ValidateKey(key); err != nil {
		return fail(nil, err)
	}
	if size < 0 {
		return fail(objstore.ErrMismatch, fmt.Errorf("announced size is %d", size))
	}
	if size > MaxObject {
		return fail(objstore.ErrTooLarge, fmt.Errorf("%d bytes; Azure takes %d in one request", size, int64(MaxObject)))
	}
	cl, err := b.beginWrite(ctx, "put", key)
	if err != nil {
		return err
	}
	src, err := prepare(ctx, r, size, sum)
	if err != nil {
		return fail(nil, err)
	}
	defer src.close()
	return b.put(ctx, cl, key, src)
}

// put makes the attempts and settles what a lost answer left open.
func (b *Bucket) put(ctx context.Context, cl *client, key string, src *source) error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	name := hex.EncodeToString(id[:])
	var until time.Time
	if b.c.RetainMode != "" && b.c.RetainFor > 0 {
		until = ceilSecond(time.Now().Add(b.c.RetainFor))
	}
	lost := false // an earlier attempt may have created the object
	return b.do(ctx, "put", key, func() *failure {
		f := b.putOnce(ctx, cl, key, src, name, until)
		if f != nil && f.kind == objstore.ErrExists && lost {
			f = b.settle(ctx, key, src, name)
		}
		if f == nil {
			return nil
		}
		if lost && f.kind != objstore.ErrExists && f.kind != objstore.ErrUnavailable {
			// Any other kind would say that nothing became visible.
			f.kind, f.err = objstore.ErrUnavailable, fmt.Errorf("the answer to an earlier attempt was lost, and then: %v", f.err)
		}
		lost = lost || f.lost
		return f
	})
}

func (b *Bucket) putOnce(ctx context.Context, cl *client, key string, src *source, name string, until time.Time) *failure {
	limit := 4*b.c.StallTimeout + time.Duration(src.size/minRate)*time.Second
	w := newWatch(ctx, b.c.StallTimeout, limit)
	defer w.stop()
	body := &sendBody{src: src, watch: w}
	o := createOnly(src.md5[:])
	o.Metadata = map[string]*string{metaPut: &name}
	if !until.IsZero() {
		mode := policyMode(b.c.RetainMode)
		o.ImmutabilityPolicyMode, o.ImmutabilityPolicyExpiryTime = &mode, &until
	}
	out, err := cl.blob(b.at(key)).Upload(w.ctx, body, o)
	if srcErr := body.finish(); srcErr != nil {
		return fatal(nil, fmt.Errorf("read body: %w", srcErr))
	}
	if f := b.judge(w, err); f != nil {
		if f.taken() {
			return &failure{kind: objstore.ErrExists, status: f.status, code: f.code}
		}
		return f
	}
	if out.ETag == nil || *out.ETag == "" {
		return odd("the put was answered without an ETag")
	}
	return nil
}

// createOnly are the conditions of every Put Blob of this package.
func createOnly(sum []byte) *blockblob.UploadOptions {
	all := azcore.ETagAny
	return &blockblob.UploadOptions{
		AccessConditions:        &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &all}},
		TransactionalValidation: blob.TransferValidationTypeMD5(sum),
	}
}

// taken reports an answer that only a blob that is there can cause. The service
// words a condition that was not met in more than one way, and may say first
// that the blob is kept.
func (f *failure) taken() bool {
	switch f.code {
	case "BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet", "UnauthorizedBlobOverwrite", "BlobImmutableDueToPolicy", codeLegalHold, "BlobArchived":
		return f.status == http.StatusConflict || f.status == http.StatusPreconditionFailed || f.status == http.StatusForbidden
	}
	return f.status == http.StatusPreconditionFailed && f.code == ""
}

// settle finds out whose object it is that an attempt met after the answer to an
// earlier one was lost.
func (b *Bucket) settle(ctx context.Context, key string, src *source, name string) *failure {
	out, f := b.headOnce(ctx, key)
	if f != nil {
		if f.kind == objstore.ErrNotExist {
			return again(errors.New("the object was there and is gone: something deletes under this key"))
		}
		if !f.retry {
			f = fatal(objstore.ErrUnavailable, fmt.Errorf("the answer to an earlier attempt was lost, and the object cannot be asked for: %v", f.err))
		}
		return f
	}
	// Header names come back in the case of net/http.
	for k, v := range out.Metadata {
		if strings.EqualFold(k, metaPut) && v != nil {
			if *v == name {
				return nil
			}
			return fatal(objstore.ErrExists, nil)
		}
	}
	// It came by a signed URL, or the metadata was lost: then it is this one if
	// it has this content, which is all that anybody can see.
	if *out.ContentLength != src.size {
		return fatal(objstore.ErrExists, nil)
	}
	info, err := objstore.Digest(ctx, b, key)
	if err != nil {
		return again(fmt.Errorf("compare the object with the body: %w", err))
	}
	if info.SHA256 != src.sum || info.Size != src.size {
		return fatal(objstore.ErrExists, nil)
	}
	return nil
}

// source is a body that can be read as often as needed, and its digests. The
// MD5 only guards the transfer; what an object is, its SHA-256 says.
type source struct {
	r     io.ReadSeeker
	start int64
	size  int64
	sum   [32]byte
	md5   [md5.Size]byte
	close func()
}

// prepare reads the body once, checks it against what was announced, and
// makes it repeatable.
func prepare(ctx context.Context, r io.Reader, size int64, sum *[32]byte) (_ *source, err error) {
	s := &source{size: size, close: func() {}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	h, transfer := sha256.New(), md5.New()
	var keep io.Writer = io.Discard
	var memory *bytes.Buffer
	if seeker, ok := r.(io.ReadSeeker); ok {
		// A pipe has the method too; then it fails.
		if start, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			s.r, s.start = seeker, start
		}
	}
	switch {
	case s.r != nil:
	case size <= maxInMemory:
		memory = new(bytes.Buffer)
		keep = memory
	default:
		f, err := os.CreateTemp("", "holdfast-put-*")
		if err != nil {
			return nil, fmt.Errorf("keep the body for repetition: %w", err)
		}
		s.r, keep = f, f
		_ = os.Remove(f.Name()) // where open files can be removed, a crash leaves nothing
		s.close = func() {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}
	n, err := io.Copy(io.MultiWriter(h, transfer, keep), io.LimitReader(ctxReader{ctx, r}, size))
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	if n < size {
		return nil, fmt.Errorf("%w: body has %d bytes, announced were %d", objstore.ErrMismatch, n, size)
	}
	if extra, err := io.CopyN(io.Discard, ctxReader{ctx, r}, 1); extra > 0 {
		return nil, fmt.Errorf("%w: body has more than the announced %d bytes", objstore.ErrMismatch, size)
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read body: %w", err)
	}
	h.Sum(s.sum[:0])
	transfer.Sum(s.md5[:0])
	if sum != nil && *sum != s.sum {
		return nil, fmt.Errorf("%w: body has SHA-256 %x, announced was %x", objstore.ErrMismatch, s.sum, *sum)
	}
	if memory != nil {
		s.r = bytes.NewReader(memory.Bytes())
	}
	return s, nil
}

// ctxReader stops a body when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// sendBody is the body of one attempt. The transport reads it on a goroutine of
// its own, which may live on after the attempt; finish makes sure that the
// source is not touched any more.
type sendBody struct {
	src   *source
	watch *watch

	mu   sync.Mutex
	pos  int64
	err  error // failure of the source itself
	over bool
}

var errAttemptOver = errors.New("the attempt is over")

func (s *sendBody) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return 0, errAttemptOver
	case s.pos == s.src.size:
		return 0, io.EOF
	}
	n, err := s.src.r.Read(p[:min(int64(len(p)), s.src.size-s.pos)])
	s.pos += int64(n)
	s.watch.moved()
	if errors.Is(err, io.EOF) && s.pos < s.src.size {
		err = fmt.Errorf("%w: the body became %d bytes shorter", objstore.ErrMismatch, s.src.size-s.pos)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
		return n, err
	}
	if s.pos == s.src.size {
		// What remains is buffered on the way, and the store has to commit.
		s.watch.sent()
	}
	return n, nil
}

// Seek serves the SDK, which asks for the size and goes to the start.
func (s *sendBody) Seek(offset int64, whence int) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, errAttemptOver
	}
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.src.size
	}
	if offset < 0 || offset > s.src.size {
		return 0, fmt.Errorf("seek to %d of %d", offset, s.src.size)
	}
	if _, err := s.src.r.Seek(s.src.start+offset, io.SeekStart); err != nil {
		s.err = err
		return 0, err
	}
	s.pos = offset
	return offset, nil
}

// finish ends the use of the source and returns how it failed, if it did.
func (s *sendBody) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return s.err
}

// ceilSecond rounds up to the store's resolution, so that a retention is never
// shorter than asked for.
func ceilSecond(t time.Time) time.Time {
	t = t.UTC()
	if c := t.Truncate(time.Second); !c.Equal(t) {
		return c.Add(time.Second)
	}
	return t
}

// Close serves the SDK; the source is closed by whoever prepared it.
func (s *sendBody) Close() error { return nil }
