package httpstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/internal/objstore"
)

// Outcome is what is known after an upload.
type Outcome int

const (
	// Undecided: the upload failed, or its answer was lost. The error tells
	// whether to try again.
	Undecided Outcome = iota
	// Created: the store confirmed that this request created the object.
	Created
	// MaybeExists: the store refused in the way in which it also refuses an
	// object that is there (403, 409, 412), for example after the answer to an
	// earlier attempt was lost. It is neither success nor failure: ask the vault
	// to look at the object.
	MaybeExists
)

func (o Outcome) String() string {
	switch o {
	case Created:
		return "created"
	case MaybeExists:
		return "maybe exists"
	}
	return "undecided"
}

// UploadError tells why an upload is Undecided. Its text holds no query.
type UploadError struct {
	Target     string        // URL without its query
	Status     int           // HTTP status, or 0 if there was no answer
	Code       string        // the store's own error code, if it sent one
	Retryable  bool          // the same request may succeed later
	RetryAfter time.Duration // the store's wish, or 0; at most an hour
	At         time.Time     // when it answered, by the store's clock; zero if it did not tell
	Err        error         // a sentinel of objstore, the context's error, or the cause
}

// causes are the stores' own codes for what an operator has to mend (Azure
// Storage REST "Blob service error codes"). AuthenticationFailed is also the
// answer to a URL that has ended.
var causes = map[string]objstore.Cause{
	"ContainerNotFound": objstore.CauseContainer, "ContainerBeingDeleted": objstore.CauseContainer, "ContainerDisabled": objstore.CauseContainer,
	"AuthorizationFailure": objstore.CauseFirewall, "AuthorizationSourceIPMismatch": objstore.CauseFirewall, "NetworkAccessDenied": objstore.CauseFirewall,
	"AuthenticationFailed": objstore.CauseKey, "InvalidAuthenticationInfo": objstore.CauseKey, "KeyBasedAuthenticationNotPermitted": objstore.CauseKey,
	"AuthorizationPermissionMismatch": objstore.CauseRole, "InsufficientAccountPermissions": objstore.CauseRole,
	"AccountIsDisabled": objstore.CauseAccount, "AccountBeingCreated": objstore.CauseAccount,
	"ServerBusy": objstore.CauseThrottled, "TooManyRequests": objstore.CauseThrottled,
}

// StoreCause serves objstore.CauseOf.
func (e *UploadError) StoreCause() objstore.Cause { return causes[e.Code] }

func (e *UploadError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "upload to %s", e.Target)
	if e.Status != 0 {
		fmt.Fprintf(&b, ": status %d", e.Status)
	}
	if e.Code != "" {
		fmt.Fprintf(&b, " (%s)", e.Code)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *UploadError) Unwrap() error { return e.Err }

// UploaderConfig configures an Uploader.
type UploaderConfig struct {
	Transport http.RoundTripper // decides on proxies and TLS; nil means http.DefaultTransport
	// StallTimeout ends an upload in which no byte moves, or no answer comes,
	// for so long. 0 means one minute.
	StallTimeout time.Duration
}

// Uploader sends objects to signed create-only URLs of any store. It makes one
// attempt per call and is safe for concurrent use.
type Uploader struct {
	client *http.Client
	stall  time.Duration
}

// NewUploader returns an Uploader; it does no I/O.
func NewUploader(c UploaderConfig) *Uploader {
	u := &Uploader{client: newClient(c.Transport), stall: c.StallTimeout}
	if u.stall <= 0 {
		u.stall = defaultStall
	}
	return u
}

// newClient returns a client that follows no redirect: a signed request goes to
// the host for which it was signed, or nowhere.
func newClient(rt http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     rt,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Put sends size bytes of body to a signed URL with the headers that came with
// it, and with Content-Length. If no header carries a digest of the body, one
// is computed and sent as Content-Digest. body is not read after Put has
// returned, so a read of it that hangs makes Put hang. The error is nil exactly if the
// outcome is Created or MaybeExists, and otherwise an *UploadError.
func (u *Uploader) Put(ctx context.Context, signedURL string, headers map[string]string, body io.ReaderAt, size int64) (Outcome, error) {
	outcome, _, err := u.PutExplained(ctx, signedURL, headers, body, size)
	return outcome, err
}

// PutExplained is Put, and with MaybeExists it returns in which words the store
// has refused: what to say if it turns out that the object is not there.
func (u *Uploader) PutExplained(ctx context.Context, signedURL string, headers map[string]string, body io.ReaderAt, size int64) (Outcome, *UploadError, error) {
	target := objstore.SignedURL{URL: signedURL}.String()
	fail := func(e UploadError) (Outcome, *UploadError, error) {
		e.Target = target
		return Undecided, nil, &e
	}
	req, err := newPut(signedURL, headers, body, size)
	if err != nil {
		return fail(UploadError{Err: err})
	}
	watched := newWatch(ctx, u.stall)
	defer watched.stop()
	src := &sourceBody{r: io.NewSectionReader(body, 0, size), left: size, watch: watched}
	req = req.WithContext(watched.ctx)
	if size > 0 {
		req.Body = src
	}
	watched.moved()
	resp, err := u.client.Do(req)
	srcErr := src.finish()
	if err != nil {
		if srcErr != nil {
			return fail(UploadError{Err: fmt.Errorf("read the body: %w", srcErr)})
		}
		if ctx.Err() != nil {
			return fail(UploadError{Err: ctx.Err()})
		}
		return fail(UploadError{Retryable: true, Err: fmt.Errorf("%w: %w", objstore.ErrUnavailable, watched.explain(err))})
	}
	defer resp.Body.Close()
	watched.moved()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10)) // only for the code in it
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
		// Every store names what it created; a login page of a network does not.
		if resp.Header.Get("ETag") != "" {
			return Created, nil, nil
		}
		return fail(UploadError{Status: resp.StatusCode, Retryable: true,
			Err: fmt.Errorf("%w: the answer has no ETag, it does not come from an object store; look for a proxy or a login page in between", objstore.ErrUnavailable)})
	case http.StatusForbidden, http.StatusConflict, http.StatusPreconditionFailed:
		why := refusal(resp, answer)
		why.Target, why.Err, why.Retryable = target, objstore.ErrDenied, true
		return MaybeExists, &why, nil
	}
	return fail(refusal(resp, answer))
}

func newPut(signedURL string, headers map[string]string, body io.ReaderAt, size int64) (*http.Request, error) {
	req, err := http.NewRequest(http.MethodPut, signedURL, nil)
	if err != nil {
		return nil, errors.New("the signed URL cannot be read") // err would show it
	}
	if size < 0 {
		return nil, fmt.Errorf("%w: size is %d", objstore.ErrMismatch, size)
	}
	digest := false
	for name, value := range headers {
		switch lower := strings.ToLower(name); {
		case lower == "host":
			req.Host = value
			continue
		case lower == "content-length":
			if value != strconv.FormatInt(size, 10) {
				return nil, fmt.Errorf("%w: %s bytes were signed, the body has %d", objstore.ErrMismatch, value, size)
			}
			continue
		case lower == "content-digest", lower == "content-md5", lower == "x-ms-content-crc64",
			strings.HasPrefix(lower, "x-amz-checksum-"), lower == "x-amz-content-sha256" && len(value) == 64:
			digest = true
		}
		req.Header.Set(name, value)
	}
	if !digest {
		h := sha256.New()
		if n, err := io.Copy(h, io.NewSectionReader(body, 0, size)); err != nil || n != size {
			return nil, fmt.Errorf("read the body: %d of %d bytes: %w", n, size, orMismatch(err))
		}
		req.Header.Set("Content-Digest", contentDigest([32]byte(h.Sum(nil))))
	}
	req.ContentLength = size
	return req, nil
}

func orMismatch(err error) error {
	if err == nil {
		return objstore.ErrMismatch
	}
	return err
}

var codeInXML = regexp.MustCompile(`<Code>([A-Za-z0-9]{1,64})</Code>`)

// refusal classifies an answer that is neither success nor "maybe". Of the
// answer's text only the error code is kept: stores quote signed strings.
func refusal(resp *http.Response, answer []byte) UploadError {
	e := UploadError{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Hour)}
	e.At, _ = http.ParseTime(resp.Header.Get("Date"))
	e.Code = word(resp.Header.Get(headerError))
	if e.Code == "" {
		e.Code = word(resp.Header.Get("X-Ms-Error-Code"))
	}
	if m := codeInXML.FindSubmatch(answer); e.Code == "" && m != nil {
		e.Code = string(m[1])
	}
	switch s := resp.StatusCode; {
	case s == http.StatusInsufficientStorage || e.Code == codeNoSpace:
		e.Err, e.Retryable = objstore.ErrNoSpace, true
	case e.Code == codeReadOnly:
		e.Err, e.Retryable = objstore.ErrReadOnly, true
	case s == http.StatusUnauthorized, s == http.StatusProxyAuthRequired:
		e.Err = objstore.ErrDenied
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s == http.StatusTooEarly, s >= 500,
		s >= 300 && s < 400, s == http.StatusNotFound, s >= 200 && s < 300, e.Code == codeBody:
		e.Err, e.Retryable = objstore.ErrUnavailable, true
	case e.Code == codeMismatch, e.Code == "BadDigest", e.Code == "Md5Mismatch", e.Code == "Crc64Mismatch":
		e.Err = objstore.ErrMismatch
	case s == http.StatusRequestEntityTooLarge:
		e.Err = objstore.ErrTooLarge
	default:
		e.Err = errors.New("the store does not accept the request")
	}
	return e
}

// word keeps a code only if it looks like one.
func word(s string) string {
	if len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return ""
	}
	return s
}

func retryAfter(h http.Header, limit time.Duration) time.Duration {
	text := h.Get("Retry-After")
	if text == "" {
		return 0
	}
	if s, err := strconv.ParseInt(text, 10, 64); err == nil {
		return min(time.Duration(max(0, min(s, math.MaxInt32)))*time.Second, limit)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, time.Until(at)), limit)
	}
	return 0
}

// sourceBody is the request body. The transport reads it on its own goroutine,
// which may live on after Do has returned; finish makes sure that the source is
// not touched any more.
type sourceBody struct {
	watch *watch

	mu   sync.Mutex
	r    io.Reader
	left int64
	err  error // failure of the source itself
	over bool
}

func (s *sourceBody) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return 0, errUploadOver
	}
	n, err := s.r.Read(p)
	s.watch.moved()
	s.left -= int64(n)
	if errors.Is(err, io.EOF) && s.left > 0 {
		err = fmt.Errorf("%w: the body is %d bytes short", objstore.ErrMismatch, s.left)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *sourceBody) Close() error { return nil }

var errUploadOver = errors.New("the upload is over")

// finish ends the use of the source and returns how it failed, if it did.
func (s *sourceBody) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return s.err
}

// watch cancels a request in which nothing moves for the stall time.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

func newWatch(ctx context.Context, stall time.Duration) *watch {
	w := &watch{stall: stall}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(stall, func() { w.cancel(fmt.Errorf("no byte moved for %v", stall)) })
	return w
}

func (w *watch) moved() { w.timer.Reset(w.stall) }

// pause stops the clock while it is the caller who takes his time.
func (w *watch) pause() { w.timer.Stop() }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain returns what to say about a transport error: the stall if that was
// the reason, and never the URL, which net/http puts into its errors.
func (w *watch) explain(err error) error {
	if cause := context.Cause(w.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	var e *url.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return noEOF(err)
}

// noEOF keeps io.EOF out of an error that must not look like a proper end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// emptyBody is the body of a range of no bytes.
func emptyBody() io.ReadCloser { return io.NopCloser(bytes.NewReader(nil)) }
