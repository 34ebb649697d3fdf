// Package s3test is an S3 store in memory for tests, written to the published
// REST API of Amazon S3 (version 2006-03-01) and Signature Version 4, and to
// nothing else: it shares no code with the SDK or with package s3. It is strict
// where real stores are lenient: what it does not know is refused, every
// signature and digest is verified, and a header that S3 demands to be signed must
// be. It knows one bucket and these operations: PutObject, GetObject, HeadObject,
// DeleteObject, ListObjectsV2, GetObjectLockConfiguration, PutObjectRetention.
//
// It is a model, not S3: what is proved against it is that requests are as the
// reference demands and that answers as the reference describes them are
// understood.
package s3test

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Config describes the store.
type Config struct {
	Bucket     string // empty means "bucket"
	Region     string // empty means "eu-test-1"
	Versioned  bool
	ObjectLock bool // implies Versioned
	PageSize   int  // of listings; 0 means 1,000

	// Defects of stores that are like S3, but not quite.
	IgnoreIfNoneMatch  bool // overwrites
	RefuseIfNoneMatch  bool // 501 for conditional puts
	IgnoreChecksum     bool // neither verifies x-amz-checksum-sha256 nor reports it
	DropMetadata       bool
	IgnoreStartAfter   bool
	IgnoreRange        bool
	DenyLockedDelete   bool // 403 for the deletion of a locked object, where S3 leaves a marker
	ReverseOrder       bool // lists as directory buckets may
	IgnoreObjectLock   bool // takes lock headers, locks nothing, knows no configuration
	BareHead           bool // HEAD without checksum and lock
	EncodeSlashInLists bool
}

// Credentials that the store knows. They are worth nothing anywhere else.
const (
	AccessKey = "AKIDHOLDFASTTEST"
	SecretKey = "a secret that is not one"
)

// Operations, as the API reference calls them.
const (
	PutObject          = "PutObject"
	GetObject          = "GetObject"
	HeadObject         = "HeadObject"
	DeleteObject       = "DeleteObject"
	ListObjectsV2      = "ListObjectsV2"
	GetLockConfig      = "GetObjectLockConfiguration"
	PutObjectRetention = "PutObjectRetention"
)

// Server is a running store.
type Server struct {
	c    Config
	http *httptest.Server

	mu      sync.Mutex
	objects map[string][]*version // the last one is current
	faults  []*armed
	counts  map[string]int
	log     []string // refusals, for the message of a failed test
	ahead   time.Duration
	denied  map[string]bool
}

type version struct {
	id      string
	marker  bool // a delete marker
	data    []byte
	etag    string
	sum     string // base64, empty if it was not sent
	meta    http.Header
	modTime time.Time
	mode    string
	until   time.Time
}

// Start runs a store until the test ends.
func Start(t testing.TB, c Config) *Server {
	t.Helper()
	if c.Bucket == "" {
		c.Bucket = "bucket"
	}
	if c.Region == "" {
		c.Region = "eu-test-1"
	}
	if c.PageSize == 0 {
		c.PageSize = 1000
	}
	c.Versioned = c.Versioned || c.ObjectLock
	s := &Server{c: c, objects: make(map[string][]*version), counts: make(map[string]int), denied: make(map[string]bool)}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
		if t.Failed() {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, line := range s.log {
				t.Log("s3test: " + line)
			}
		}
	})
	return s
}

// URL is the endpoint, for path-style requests.
func (s *Server) URL() string { return s.http.URL }

// Region returns the only region in which requests may be signed.
func (s *Server) Region() string { return s.c.Region }

// Bucket returns the name of the only bucket.
func (s *Server) Bucket() string { return s.c.Bucket }

// Count returns how many requests for an operation came so far, refused ones
// included.
func (s *Server) Count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

// Versions returns how many versions of a key there are, delete markers included.
func (s *Server) Versions(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.objects[key])
}

// Keys returns all keys that have a current object.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key := range s.objects {
		if s.current(key) != nil {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Lock returns the retention of a key's current object.
func (s *Server) Lock(key string) (mode string, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.current(key); v != nil {
		return v.mode, v.until
	}
	return "", time.Time{}
}

// Set puts an object without a request, as another program would: an overwrite
// if need be.
func (s *Server) Set(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(key, s.newVersion(data))
}

// Deny makes every request for an operation end with 403 AccessDenied, as with
// credentials that lack the right, until it is allowed again.
func (s *Server) Deny(op string, deny bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[op] = deny
}

// SetClock moves the store's clock by a time ahead of the machine's.
func (s *Server) SetClock(ahead time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead = ahead
}

func (s *Server) now() time.Time { return time.Now().Add(s.ahead) }

// current returns the object that a plain request sees, or nil.
func (s *Server) current(key string) *version {
	all := s.objects[key]
	if len(all) == 0 || all[len(all)-1].marker {
		return nil
	}
	return all[len(all)-1]
}

func (s *Server) newVersion(data []byte) *version {
	sum := md5.Sum(data)
	return &version{id: rand.Text(), data: data, etag: `"` + hex.EncodeToString(sum[:]) + `"`, modTime: s.now().UTC()}
}

func (s *Server) add(key string, v *version) {
	if !s.c.Versioned {
		s.objects[key] = nil
	}
	s.objects[key] = append(s.objects[key], v)
}

// request is one request on its way through the store.
type request struct {
	*http.Request
	w   http.ResponseWriter
	op  string
	key string
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Amz-Request-Id", rand.Text()[:16])
	w.Header().Set("Server", "s3test")
	q := &request{Request: r, w: w}
	bucket, key := s.locate(r)
	q.key = key
	q.op = operation(r, key)

	s.mu.Lock()
	w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
	s.counts[q.op]++
	fault := s.take(q)
	denied := s.denied[q.op]
	s.mu.Unlock()

	if fault != nil {
		if s.before(q, fault) {
			return
		}
		defer s.after(q, fault)()
	}
	if !s.authentic(q) {
		return
	}
	switch {
	case bucket != s.c.Bucket:
		s.refuse(q, http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist")
	case denied:
		s.refuse(q, http.StatusForbidden, "AccessDenied", "Access Denied")
	case q.op == PutObject:
		s.put(q)
	case q.op == GetObject, q.op == HeadObject:
		s.get(q)
	case q.op == DeleteObject:
		s.delete(q)
	case q.op == ListObjectsV2:
		s.list(q)
	case q.op == GetLockConfig:
		s.lockConfig(q)
	case q.op == PutObjectRetention:
		s.putRetention(q)
	default:
		s.refuse(q, http.StatusNotImplemented, "NotImplemented", "this model does not know the operation")
	}
}

// locate finds bucket and key of path-style and virtual-hosted requests.
func (s *Server) locate(r *http.Request) (bucket, key string) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	if strings.HasPrefix(r.Host, s.c.Bucket+".") {
		return s.c.Bucket, path
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key
}

// operation names what is asked for; empty if it is not known. Parameters that
// the operation does not have make it unknown.
func operation(r *http.Request, key string) string {
	q := r.URL.Query()
	for name := range q {
		if name == "x-id" || strings.HasPrefix(name, "X-Amz-") {
			q.Del(name)
		}
	}
	only := func(names ...string) bool {
		for name := range q {
			if !slices.Contains(names, name) {
				return false
			}
		}
		return true
	}
	switch {
	case key == "" && r.Method == http.MethodGet && q.Get("list-type") == "2" &&
		only("list-type", "prefix", "start-after", "continuation-token", "max-keys", "encoding-type"):
		return ListObjectsV2
	case key == "" && r.Method == http.MethodGet && q.Has("object-lock") && only("object-lock"):
		return GetLockConfig
	case key == "":
		return ""
	case r.Method == http.MethodPut && q.Has("retention") && only("retention"):
		return PutObjectRetention
	case r.Method == http.MethodPut && only():
		return PutObject
	case r.Method == http.MethodGet && only():
		return GetObject
	case r.Method == http.MethodHead && only():
		return HeadObject
	case r.Method == http.MethodDelete && only():
		return DeleteObject
	}
	return ""
}

type errorBody struct {
	XMLName   xml.Name `xml:"Error"`
	Code      string
	Message   string
	RequestID string `xml:"RequestId"`
}

func (s *Server) refuse(q *request, status int, code, message string) {
	s.mu.Lock()
	s.log = append(s.log, fmt.Sprintf("%s %s (%s): %d %s: %s", q.Method, q.URL.Path, q.op, status, code, message))
	s.mu.Unlock()
	if q.Method == http.MethodHead {
		q.w.WriteHeader(status) // no body, so no code
		return
	}
	body, err := xml.Marshal(errorBody{Code: code, Message: message, RequestID: q.w.Header().Get("X-Amz-Request-Id")})
	if err != nil {
		panic(err)
	}
	q.w.Header().Set("Content-Type", "application/xml")
	q.w.WriteHeader(status)
	_, _ = q.w.Write(append([]byte(xml.Header), body...))
}

func (s *Server) put(q *request) {
	for name := range q.Header {
		if !knownPutHeader(name) {
			s.refuse(q, http.StatusNotImplemented, "NotImplemented", "A header you provided implies functionality that is not implemented: "+name)
			return
		}
	}
	condition := q.Header.Get("If-None-Match")
	switch {
	case condition != "" && (condition != "*" || s.c.RefuseIfNoneMatch):
		s.refuse(q, http.StatusNotImplemented, "NotImplemented", "A header you provided implies functionality that is not implemented")
		return
	case q.ContentLength < 0:
		s.refuse(q, http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header.")
		return
	case q.ContentLength > 5<<30:
		s.refuse(q, http.StatusBadRequest, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size.")
		return
	}
	conditional := condition == "*" && !s.c.IgnoreIfNoneMatch
	taken := func() bool { return conditional && s.current(q.key) != nil }
	s.mu.Lock()
	refused := taken()
	s.mu.Unlock()
	if refused {
		s.refuse(q, http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
		return
	}
	mode, until, ok := s.lockHeaders(q)
	if !ok {
		return
	}
	data, err := io.ReadAll(q.Body)
	if err != nil || int64(len(data)) != q.ContentLength {
		s.refuse(q, http.StatusBadRequest, "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header.")
		return
	}
	if !s.digests(q, data) {
		return
	}
	s.mu.Lock()
	if refused = taken(); !refused {
		v := s.newVersion(data)
		v.mode, v.until = mode, until
		if !s.c.IgnoreChecksum {
			v.sum = q.Header.Get("X-Amz-Checksum-Sha256")
		}
		v.meta = make(http.Header)
		for name, values := range q.Header {
			if strings.HasPrefix(name, "X-Amz-Meta-") && !s.c.DropMetadata {
				v.meta[name] = values
			}
		}
		s.add(q.key, v)
		s.describe(q, v, false)
	}
	s.mu.Unlock()
	if refused {
		s.refuse(q, http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
		return
	}
	q.w.WriteHeader(http.StatusOK)
}

func knownPutHeader(name string) bool {
	switch name {
	case "Authorization", "Content-Length", "Content-Type", "Expect", "If-None-Match", "User-Agent", "Accept-Encoding", "Content-Md5",
		"Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "X-Amz-Date", "X-Amz-Content-Sha256", "X-Amz-Checksum-Sha256", "X-Amz-Sdk-Checksum-Algorithm",
		"X-Amz-Security-Token", "X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date":
		return true
	}
	return strings.HasPrefix(name, "X-Amz-Meta-")
}

// digests verifies what the request says about its body.
func (s *Server) digests(q *request, data []byte) bool {
	sum := sha256.Sum256(data)
	if text := q.Header.Get("X-Amz-Content-Sha256"); text != "" && text != unsignedPayload && text != hex.EncodeToString(sum[:]) {
		s.refuse(q, http.StatusBadRequest, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
		return false
	}
	text := q.Header.Get("X-Amz-Checksum-Sha256")
	if text == "" || s.c.IgnoreChecksum {
		return true
	}
	if raw, err := base64.StdEncoding.DecodeString(text); err != nil || len(raw) != len(sum) {
		s.refuse(q, http.StatusBadRequest, "InvalidRequest", "Value for x-amz-checksum-sha256 header is invalid.")
		return false
	}
	if text != base64.StdEncoding.EncodeToString(sum[:]) {
		s.refuse(q, http.StatusBadRequest, "BadDigest", "The SHA256 you specified did not match the calculated checksum.")
		return false
	}
	return true
}

// describe sets the headers of an object; all for HEAD and GET, fewer for PUT.
// The caller holds the lock.
func (s *Server) describe(q *request, v *version, all bool) {
	h := q.w.Header()
	h.Set("ETag", v.etag)
	if s.c.Versioned {
		h.Set("X-Amz-Version-Id", v.id)
	}
	asked := q.Method == http.MethodPut || q.Header.Get("X-Amz-Checksum-Mode") == "ENABLED"
	if v.sum != "" && asked && q.Header.Get("Range") == "" && !(s.c.BareHead && all) {
		h.Set("X-Amz-Checksum-Sha256", v.sum)
		h.Set("X-Amz-Checksum-Type", "FULL_OBJECT")
	}
	if !all {
		return
	}
	h.Set("Last-Modified", v.modTime.Format(http.TimeFormat))
	h.Set("Accept-Ranges", "bytes")
	for name, values := range v.meta {
		h[name] = values
	}
	if v.mode != "" && !s.c.BareHead {
		h.Set("X-Amz-Object-Lock-Mode", v.mode)
		h.Set("X-Amz-Object-Lock-Retain-Until-Date", v.until.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
}

func (s *Server) get(q *request) {
	s.mu.Lock()
	v := s.current(q.key)
	if v == nil {
		if all := s.objects[q.key]; len(all) > 0 {
			q.w.Header().Set("X-Amz-Delete-Marker", "true")
		}
		s.mu.Unlock()
		s.refuse(q, http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
		return
	}
	if match := q.Header.Get("If-Match"); match != "" && match != v.etag {
		s.mu.Unlock()
		s.refuse(q, http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
		return
	}
	data, status := v.data, http.StatusOK
	if spec := q.Header.Get("Range"); spec != "" && !s.c.IgnoreRange {
		first, last, ok := parseRange(spec, int64(len(data)))
		if !ok {
			s.mu.Unlock()
			s.refuse(q, http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "The requested range is not satisfiable")
			return
		}
		q.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		data, status = data[first:last+1], http.StatusPartialContent
	}
	s.describe(q, v, true)
	s.mu.Unlock()
	q.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	q.w.WriteHeader(status)
	if q.Method == http.MethodGet {
		_, _ = io.Copy(q.w, bytes.NewReader(data))
	}
}

func parseRange(spec string, size int64) (first, last int64, ok bool) {
	from, to, dash := strings.Cut(strings.TrimPrefix(spec, "bytes="), "-")
	first, err := strconv.ParseInt(from, 10, 64)
	if !strings.HasPrefix(spec, "bytes=") || !dash || err != nil || first >= size {
		return 0, 0, false
	}
	last = size - 1
	if to != "" {
		n, err := strconv.ParseInt(to, 10, 64)
		if err != nil || n < first {
			return 0, 0, false
		}
		last = min(last, n)
	}
	return first, last, true
}

func (s *Server) delete(q *request) {
	s.mu.Lock()
	v := s.current(q.key)
	locked := v != nil && v.until.After(s.now())
	if locked && s.c.DenyLockedDelete {
		s.mu.Unlock()
		s.refuse(q, http.StatusForbidden, "AccessDenied", "Access Denied because object protected by object lock.")
		return
	}
	switch {
	case !s.c.Versioned:
		delete(s.objects, q.key)
	default:
		marker := &version{id: rand.Text(), marker: true, modTime: s.now()}
		s.add(q.key, marker)
		q.w.Header().Set("X-Amz-Delete-Marker", "true")
		q.w.Header().Set("X-Amz-Version-Id", marker.id)
	}
	s.mu.Unlock()
	q.w.WriteHeader(http.StatusNoContent)
}

type listBody struct {
	XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name                  string
	Prefix                string
	StartAfter            string `xml:",omitempty"`
	KeyCount              int
	MaxKeys               int
	EncodingType          string `xml:",omitempty"`
	IsTruncated           bool
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	Contents              []listEntry
}

type listEntry struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	StorageClass string
}

func (s *Server) list(q *request) {
	p := q.URL.Query()
	body := listBody{Name: s.c.Bucket, Prefix: p.Get("prefix"), MaxKeys: s.c.PageSize, EncodingType: p.Get("encoding-type")}
	if n, err := strconv.Atoi(p.Get("max-keys")); err == nil {
		body.MaxKeys = min(n, body.MaxKeys)
	}
	after := ""
	if !s.c.IgnoreStartAfter {
		after = p.Get("start-after")
		body.StartAfter = after
	}
	if token := p.Get("continuation-token"); token != "" {
		raw, err := hex.DecodeString(token)
		if err != nil {
			s.refuse(q, http.StatusBadRequest, "InvalidArgument", "The continuation token provided is incorrect")
			return
		}
		after, body.ContinuationToken = string(raw), token
	}
	encode := func(key string) string {
		if body.EncodingType != "url" {
			return key
		}
		key = strings.ReplaceAll(url.QueryEscape(key), "+", "%20")
		if !s.c.EncodeSlashInLists {
			key = strings.ReplaceAll(key, "%2F", "/")
		}
		return key
	}
	keys := s.Keys()
	if s.c.ReverseOrder {
		slices.Reverse(keys)
	}
	last := after
	s.mu.Lock()
	for _, key := range keys {
		v := s.current(key)
		if v == nil || !strings.HasPrefix(key, body.Prefix) || key <= after {
			continue
		}
		if len(body.Contents) == body.MaxKeys {
			body.IsTruncated = true
			body.NextContinuationToken = hex.EncodeToString([]byte(last))
			break
		}
		last = key
		body.Contents = append(body.Contents, listEntry{
			Key: encode(key), Size: len(v.data), ETag: v.etag, StorageClass: "STANDARD",
			LastModified: v.modTime.Format("2006-01-02T15:04:05.000Z"),
		})
	}
	s.mu.Unlock()
	body.Prefix, body.StartAfter, body.KeyCount = encode(body.Prefix), encode(body.StartAfter), len(body.Contents)
	s.answerXML(q, body)
}

func (s *Server) answerXML(q *request, body any) {
	data, err := xml.Marshal(body)
	if err != nil {
		panic(err)
	}
	q.w.Header().Set("Content-Type", "application/xml")
	_, _ = q.w.Write(append([]byte(xml.Header), data...))
}
