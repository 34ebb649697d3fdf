package httpstore

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/objstore"
)

// Codes of the Holdfast-Error header.
const (
	codeNotExist    = "not-exist"
	codeExists      = "exists"
	codeSignature   = "bad-signature"
	codeExpired     = "expired"
	codeTicket      = "bad-ticket"
	codePrefix      = "outside-ticket"
	codeInvalidKey  = "invalid-key"
	codeMismatch    = "mismatch"
	codeLength      = "length-required"
	codeTooLarge    = "too-large"
	codeRange       = "range"
	codeReadOnly    = "read-only"
	codeNoSpace     = "no-space"
	codeUnavailable = "unavailable"
	codeTimeout     = "timeout"
	codeBody        = "broken-body"
	codeRoute       = "no-route"
	codeMethod      = "method"
	codeQuery       = "query"
)

const (
	defaultPage = 1000
	maxPage     = 10_000

	// maxDrain is how much of an unwanted but authentic body is read before the
	// refusal is sent, so that the client reads the refusal instead of a reset
	// connection. It is the size of the largest segment, twice over.
	maxDrain = 64 << 20

	defaultStall = time.Minute
)

// HandlerConfig configures a Handler.
type HandlerConfig struct {
	Bucket objstore.Bucket
	Signer *Signer
	Log    *slog.Logger // nil means no log; never gets a query or a ticket
	// StallTimeout ends a transfer in which no byte moves for so long. 0 means
	// one minute.
	StallTimeout time.Duration
}

// Validate checks the configuration.
func (c HandlerConfig) Validate() error {
	if c.Bucket == nil || c.Signer == nil {
		return errors.New("store handler: a bucket and a signer are needed")
	}
	if c.StallTimeout < 0 {
		return errors.New("store handler: the stall timeout is negative")
	}
	return nil
}

// Handler serves one bucket below /store/v1/. It keeps no state; several
// replicas over the same bucket and key are one store. A prefix of the base URL
// is stripped by whoever mounts it.
type Handler struct {
	bucket objstore.Bucket
	signer *Signer
	log    *slog.Logger
	stall  time.Duration
}

var _ http.Handler = (*Handler)(nil)

// NewHandler returns a Handler; it does no I/O.
func NewHandler(c HandlerConfig) (*Handler, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	h := &Handler{bucket: c.Bucket, signer: c.Signer, log: c.Log, stall: c.StallTimeout}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.stall == 0 {
		h.stall = defaultStall
	}
	return h, nil
}

// ServeHTTP answers a request of the wire format in the package comment.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(headerStore, "1")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path == listPath {
		if r.Method != http.MethodGet {
			h.refuseMethod(w, r, http.MethodGet)
			return
		}
		h.list(w, r)
		return
	}
	key, ok := strings.CutPrefix(r.URL.Path, objectPath)
	if !ok {
		h.refuse(w, r, http.StatusNotFound, codeRoute, errors.New("no such path in the object store"))
		return
	}
	switch r.Method {
	case http.MethodPut:
		h.put(w, r, key)
	case http.MethodGet, http.MethodHead:
		h.get(w, r, key)
	default:
		h.refuseMethod(w, r, "GET, HEAD, PUT")
	}
}

// refuse sends a refusal. Server faults are logged here, because nobody above
// sees them.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, status int, code string, err error) {
	level := slog.LevelDebug
	if status >= 500 && r.Context().Err() == nil { // who has left is not refused
		level = slog.LevelError
	}
	h.log.LogAttrs(r.Context(), level, "object store request refused", slog.String("method", r.Method),
		slog.String("path", r.URL.Path), slog.Int("status", status), slog.String("code", code), slog.Any("error", err))
	w.Header().Set(headerError, code)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := code
	if status < 500 {
		text = err.Error() // what is wrong inside is for the log, not for agents
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text+"\n")
	}
}

func (h *Handler) refuseMethod(w http.ResponseWriter, r *http.Request, allow string) {
	w.Header().Set("Allow", allow)
	h.refuse(w, r, http.StatusMethodNotAllowed, codeMethod, fmt.Errorf("method %s is not served here", r.Method))
}

// refuseStore sends the refusal for an error of the bucket.
func (h *Handler) refuseStore(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, objstore.ErrNotExist):
		h.refuse(w, r, http.StatusNotFound, codeNotExist, objstore.ErrNotExist)
	case errors.Is(err, objstore.ErrExists):
		h.refuse(w, r, http.StatusConflict, codeExists, objstore.ErrExists)
	case errors.Is(err, objstore.ErrInvalidKey):
		h.refuse(w, r, http.StatusBadRequest, codeInvalidKey, err)
	case errors.Is(err, objstore.ErrMismatch):
		h.refuse(w, r, http.StatusBadRequest, codeMismatch, err)
	case errors.Is(err, objstore.ErrNoSpace):
		h.refuse(w, r, http.StatusInsufficientStorage, codeNoSpace, err)
	case errors.Is(err, objstore.ErrReadOnly):
		w.Header().Set("Retry-After", "300")
		h.refuse(w, r, http.StatusServiceUnavailable, codeReadOnly, err)
	default:
		w.Header().Set("Retry-After", "10")
		h.refuse(w, r, http.StatusServiceUnavailable, codeUnavailable, err)
	}
}

func (h *Handler) put(w http.ResponseWriter, r *http.Request, key string) {
	claims, err := h.signer.verifyPut(key, r.URL.Query())
	body := &timedBody{r: r.Body, ctl: http.NewResponseController(w), stall: h.stall}
	defer body.release()
	switch {
	case errors.Is(err, ErrExpired):
		body.drain(min(claims.size, maxDrain))
		h.refuse(w, r, http.StatusForbidden, codeExpired, err)
		return
	case err != nil:
		h.refuse(w, r, http.StatusForbidden, codeSignature, err)
		return
	case r.ContentLength < 0:
		h.refuse(w, r, http.StatusLengthRequired, codeLength, errors.New("the request has no Content-Length"))
		return
	case r.ContentLength > claims.size:
		h.refuse(w, r, http.StatusRequestEntityTooLarge, codeTooLarge,
			fmt.Errorf("the request has %d bytes, %d were signed", r.ContentLength, claims.size))
		return
	case r.ContentLength < claims.size:
		h.refuse(w, r, http.StatusBadRequest, codeMismatch,
			fmt.Errorf("the request has %d bytes, %d were signed", r.ContentLength, claims.size))
		return
	case !digestAgrees(r.Header.Values("Content-Digest"), claims.sum):
		body.drain(min(claims.size, maxDrain))
		h.refuse(w, r, http.StatusBadRequest, codeMismatch, errors.New("the Content-Digest is not the signed one"))
		return
	}
	err = h.bucket.PutNew(r.Context(), key, body, claims.size, &claims.sum)
	if err == nil {
		w.Header().Set("ETag", `"`+hex.EncodeToString(claims.sum[:])+`"`)
		w.WriteHeader(http.StatusCreated)
		return
	}
	switch {
	case errors.Is(body.err, os.ErrDeadlineExceeded):
		h.refuse(w, r, http.StatusRequestTimeout, codeTimeout, fmt.Errorf("no byte arrived for %v", h.stall))
	case body.err != nil && !errors.Is(err, objstore.ErrMismatch):
		h.refuse(w, r, http.StatusBadRequest, codeBody, errors.New("the body ended early"))
	default:
		body.drain(maxDrain)
		h.refuseStore(w, r, err)
	}
}

// digestAgrees checks a Content-Digest, which may be missing or have other
// algorithms beside SHA-256: the signature binds the digest anyway.
func digestAgrees(values []string, sum [32]byte) bool {
	for _, v := range values {
		for member := range strings.SplitSeq(v, ",") {
			text, ok := strings.CutPrefix(strings.TrimSpace(member), "sha-256=:")
			if !ok {
				continue
			}
			got, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(text, ":"))
			if err != nil || !bytes.Equal(got, sum[:]) {
				return false
			}
		}
	}
	return true
}

// admit checks the read ticket for key or list prefix.
func (h *Handler) admit(w http.ResponseWriter, r *http.Request, key string) bool {
	prefix, err := h.signer.verifyTicket(r.Header.Get(headerTicket))
	if err != nil {
		h.refuse(w, r, http.StatusUnauthorized, codeTicket, fmt.Errorf("read ticket: %w", err))
		return false
	}
	if !strings.HasPrefix(key, prefix) {
		h.refuse(w, r, http.StatusForbidden, codePrefix, errors.New("the read ticket is for other objects"))
		return false
	}
	return true
}

func (h *Handler) get(w http.ResponseWriter, r *http.Request, key string) {
	if !h.admit(w, r, key) {
		return
	}
	info, err := h.bucket.Head(r.Context(), key)
	if err != nil {
		h.refuseStore(w, r, err)
		return
	}
	header := w.Header()
	header.Set("Accept-Ranges", "bytes")
	header.Set("Last-Modified", info.ModTime.UTC().Format(http.TimeFormat))
	if info.SHA256 != [32]byte{} {
		header.Set(headerSHA256, hex.EncodeToString(info.SHA256[:]))
	}
	off, length, status := parseRange(r.Header.Get("Range"), info.Size)
	if status == http.StatusRequestedRangeNotSatisfiable {
		header.Set("Content-Range", fmt.Sprintf("bytes */%d", info.Size))
		h.refuse(w, r, status, codeRange, objstore.ErrRange)
		return
	}
	var body io.ReadCloser
	if r.Method == http.MethodGet {
		if body, err = h.bucket.Get(r.Context(), key, off, length); err != nil {
			h.refuseStore(w, r, err)
			return
		}
		defer body.Close()
	}
	if status == http.StatusPartialContent {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+length-1, info.Size))
	}
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.FormatInt(length, 10))
	w.WriteHeader(status)
	if body == nil {
		return
	}
	if err := h.send(w, body, length); err != nil {
		h.log.LogAttrs(r.Context(), slog.LevelWarn, "object store answer broke off", slog.String("path", r.URL.Path), slog.Any("error", err))
		// The only way left to say that the answer is not complete.
		panic(http.ErrAbortHandler)
	}
}

// send copies the body with a fresh deadline for every piece.
func (h *Handler) send(w http.ResponseWriter, body io.Reader, length int64) error {
	ctl := http.NewResponseController(w)
	defer func() { _ = ctl.SetWriteDeadline(time.Time{}) }()
	buf := make([]byte, min(256<<10, max(length, 1)))
	for length > 0 {
		n, err := body.Read(buf[:min(int64(len(buf)), length)])
		if n > 0 {
			_ = ctl.SetWriteDeadline(time.Now().Add(h.stall)) // not every writer has deadlines
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			length -= int64(n)
		}
		if err != nil && length > 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// parseRange reads a Range header with a single range. Headers that it does not
// understand are ignored, as RFC 9110 wants. The status is 200, 206 or 416.
func parseRange(header string, size int64) (off, length int64, status int) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash || !digits(first) || !digits(last) || first == "" && last == "" {
		return 0, size, http.StatusOK
	}
	if first == "" { // the last n bytes
		n := min(number(last), size)
		if n == 0 {
			return 0, 0, http.StatusRequestedRangeNotSatisfiable
		}
		return size - n, n, http.StatusPartialContent
	}
	off = number(first)
	end := size - 1
	if last != "" {
		if number(last) < off {
			return 0, size, http.StatusOK
		}
		end = min(number(last), end)
	}
	if off >= size {
		return 0, 0, http.StatusRequestedRangeNotSatisfiable
	}
	return off, end - off + 1, http.StatusPartialContent
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

// number reads digits; what does not fit is as large as can be.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return math.MaxInt64
	}
	return n
}

// listLine is one line of a listing. A page is complete only with its last
// line, which has End set, and Next if there is another page after that key.
type listLine struct {
	Key    string `json:"key,omitempty"`
	Size   int64  `json:"size,omitempty"`
	MTime  int64  `json:"mtime,omitempty"` // Unix seconds
	SHA256 string `json:"sha256,omitempty"`
	End    bool   `json:"end,omitempty"`
	Next   string `json:"next,omitempty"`
}

var errPageFull = errors.New("page is full")

func (h *Handler) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	prefix, after := q.Get("prefix"), q.Get("after")
	if !h.admit(w, r, prefix) {
		return
	}
	limit := defaultPage
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			h.refuse(w, r, http.StatusBadRequest, codeQuery, errors.New("the limit is not a positive number"))
			return
		}
		limit = min(n, maxPage)
	}
	page, err := h.page(r.Context(), prefix, after, limit)
	if err != nil {
		h.refuseStore(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Content-Length", strconv.Itoa(len(page)))
	w.WriteHeader(http.StatusOK)
	if err := h.send(w, bytes.NewReader(page), int64(len(page))); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// page builds a whole page in memory (about 150 bytes per object), so that an
// error in the middle is still a proper refusal.
func (h *Handler) page(ctx context.Context, prefix, after string, limit int) ([]byte, error) {
	var page bytes.Buffer
	enc := json.NewEncoder(&page)
	end := listLine{End: true}
	n, last := 0, ""
	err := objstore.ListAfter(ctx, h.bucket, prefix, after, func(info objstore.Info) error {
		if n == limit {
			end.Next = last
			return errPageFull
		}
		n++
		last = info.Key
		line := listLine{Key: info.Key, Size: info.Size, MTime: info.ModTime.Unix()}
		if info.SHA256 != [32]byte{} {
			line.SHA256 = hex.EncodeToString(info.SHA256[:])
		}
		return enc.Encode(line)
	})
	if err != nil && !errors.Is(err, errPageFull) {
		return nil, err
	}
	if err := enc.Encode(end); err != nil {
		return nil, err
	}
	return page.Bytes(), nil
}

// timedBody is a request body with a deadline for every read. It remembers how
// it failed, because the bucket wraps that in its own words.
type timedBody struct {
	r     io.Reader
	ctl   *http.ResponseController
	stall time.Duration
	ended bool  // io.EOF was seen
	err   error // other than io.EOF
}

func (b *timedBody) Read(p []byte) (int, error) {
	_ = b.ctl.SetReadDeadline(time.Now().Add(b.stall)) // not every writer has deadlines
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		// With the body read, an old deadline would end the request while the
		// bucket is still syncing.
		b.ended = true
		_ = b.ctl.SetReadDeadline(time.Time{})
	} else if err != nil {
		b.err = err
	}
	return n, err
}

// release leaves a deadline for what the server itself still reads of a body
// that nobody wanted; the server clears it before the next request.
func (b *timedBody) release() {
	if !b.ended && b.err == nil {
		_ = b.ctl.SetReadDeadline(time.Now().Add(b.stall))
	}
}

func (b *timedBody) drain(limit int64) { _, _ = io.CopyN(io.Discard, b, limit) }
