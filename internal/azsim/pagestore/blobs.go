package pagestore

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxPageBlob  = int64(8) << 40    // bytes of a page blob
	maxPutBlob   = int64(5000) << 20 // bytes of a Put Blob
	maxPutPage   = int64(4) << 20    // bytes of a Put Page
	maxChecked   = int64(4) << 20    // bytes of a range whose checksum is asked for
	inMemory     = 256 << 10         // larger block blobs go into files
	crcPoly      = 0x9A6C9329AC4BC9B5
	typePage     = "PageBlob"
	typeBlock    = "BlockBlob"
	timeOfHeader = http.TimeFormat
)

// sums computes what a body's headers may promise.
type sums struct {
	md5 hash.Hash // nil if nobody asks for it: it is slow
	crc hash.Hash64
}

func newSums(withMD5 bool) sums {
	s := sums{crc: crc64.New(crc64.MakeTable(crcPoly))}
	if withMD5 {
		s.md5 = md5.New()
	}
	return s
}

func (s sums) write(p []byte) {
	if s.md5 != nil {
		s.md5.Write(p)
	}
	s.crc.Write(p)
}

func (s sums) md5Text() string { return base64.StdEncoding.EncodeToString(s.md5.Sum(nil)) }

func (s sums) crcText() string {
	return base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, s.crc.Sum64()))
}

// verify compares with Content-MD5 and x-ms-content-crc64.
func (s sums) verify(h http.Header) error {
	want5, want64 := h.Get("Content-MD5"), h.Get("x-ms-content-crc64")
	switch {
	case want5 != "" && want64 != "":
		return refuse(400, "InvalidHeaderValue", "Content-MD5 and x-ms-content-crc64 cannot both be given.")
	case want5 != "" && !validSum(want5, md5.Size):
		return refuse(400, "InvalidMd5", "The MD5 value specified in the request is invalid. MD5 value must be 128 bits and Base64-encoded.")
	case want5 != "" && want5 != s.md5Text():
		return refuse(400, "Md5Mismatch", "The MD5 value specified in the request did not match with the MD5 value calculated by the server.")
	case want64 != "" && want64 != s.crcText():
		return refuse(400, "Crc64Mismatch", "The CRC64 value specified in the request did not match with the CRC64 value calculated by the server.")
	}
	return nil
}

func validSum(text string, size int) bool {
	raw, err := base64.StdEncoding.DecodeString(text)
	return err == nil && len(raw) == size
}

// hold finds the container and what goes by the blob's name, which may be nil. The
// caller holds mu.
func (c *call) hold() (*account, *container, *entry, error) {
	a := c.s.accounts[c.t.account]
	if a == nil {
		return nil, nil, nil, refuse(404, "ResourceNotFound", "There is no storage account %s.", c.t.account)
	}
	box := a.containers[c.t.container]
	// The reference on Delete Container: all but its creation is answered with 404.
	if box == nil || !box.gone.IsZero() {
		return nil, nil, nil, refuse(404, "ContainerNotFound", "The specified container does not exist.")
	}
	return a, box, box.blobs[c.t.blob], nil
}

// state finds the disk, blob, snapshot or version that is asked for. The caller
// holds mu, and keeps it while it uses the fields.
func (c *call) state() (*blob, error) {
	if c.t.disk != "" {
		return c.s.diskState(c.t.disk)
	}
	if _, _, _, err := c.hold(); err != nil {
		return nil, err
	}
	b := c.s.lookup(c.t, c.q)
	if b == nil {
		return nil, refuse(404, "BlobNotFound", "The specified blob does not exist.")
	}
	return b, nil
}

// diskState shows a disk as a page blob. The caller holds mu.
func (s *Store) diskState(name string) (*blob, error) {
	d := s.disks[name]
	if d == nil {
		return nil, refuse(404, "BlobNotFound", "The specified blob does not exist.")
	}
	return &blob{img: d.img, etag: fmt.Sprintf(`"0x8D%014X"`, d.img.changes()), created: d.created, modified: d.created}, nil
}

// base finds the blob that a change is meant for, and refuses one that is retained.
// The caller holds mu.
func (c *call) base() (*account, *entry, error) {
	a, _, e, err := c.hold()
	if err != nil {
		return nil, nil, err
	}
	if c.q.Has("snapshot") || c.q.Has("versionid") {
		return nil, nil, refuse(400, "InvalidQueryParameterValue", "Snapshots and versions cannot be changed.")
	}
	if e == nil || e.base == nil {
		return nil, nil, refuse(404, "BlobNotFound", "The specified blob does not exist.")
	}
	if err := c.conditions(e.base); err != nil {
		return nil, nil, err
	}
	return a, e, c.s.retained(e.base)
}

// conditions checks If-Match and the like against a state; nil is one that does
// not exist.
func (c *call) conditions(b *blob) error {
	h := c.r.Header
	read := c.r.Method == http.MethodGet || c.r.Method == http.MethodHead
	failed := refuse(412, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
	if want := h.Get("If-Match"); want != "" && (b == nil || want != "*" && want != b.etag) {
		return failed
	}
	if b == nil {
		return nil
	}
	if text := h.Get("If-Unmodified-Since"); text != "" {
		at, err := http.ParseTime(text)
		if err != nil {
			return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: If-Unmodified-Since.")
		}
		if b.modified.Truncate(time.Second).After(at) {
			return failed
		}
	}
	if read {
		failed = refuse(304, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
	}
	if not := h.Get("If-None-Match"); not == "*" || not == b.etag {
		return failed
	}
	if text := h.Get("If-Modified-Since"); text != "" {
		at, err := http.ParseTime(text)
		if err != nil {
			return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: If-Modified-Since.")
		}
		if !b.modified.Truncate(time.Second).After(at) {
			return failed
		}
	}
	return nil
}

// touch gives a blob a new ETag. The caller holds mu.
func (s *Store) touch(b *blob) {
	s.etags++
	b.etag = fmt.Sprintf(`"0x8D%014X"`, s.etags)
	b.modified = s.cfg.Now().UTC()
}

// nextStamp is a new name of a snapshot or version, later than all before. The
// caller holds mu.
func (s *Store) nextStamp() string {
	now := s.cfg.Now().UTC().Truncate(100 * time.Nanosecond)
	if !now.After(s.stamp) {
		now = s.stamp.Add(100 * time.Nanosecond)
	}
	s.stamp = now
	return now.Format(stampLayout)
}

// describe sets the headers that all answers about a blob have. The caller holds mu.
func describe(h http.Header, b *blob) {
	h.Set("ETag", b.etag)
	h.Set("Last-Modified", b.modified.UTC().Format(timeOfHeader))
	h.Set("x-ms-request-server-encrypted", "true")
	if b.img != nil {
		h.Set("x-ms-blob-sequence-number", strconv.FormatInt(b.sequence, 10))
	}
}

// detail sets the headers that describe content. The caller holds mu.
func (c *call) detail(b *blob) {
	h := c.w.Header()
	describe(h, b)
	h.Set("Accept-Ranges", "bytes")
	h.Set("x-ms-creation-time", b.created.UTC().Format(timeOfHeader))
	h.Set("x-ms-lease-status", "unlocked")
	h.Set("x-ms-lease-state", "available")
	h.Set("x-ms-server-encrypted", "true")
	h.Set("x-ms-blob-type", typeOf(b))
	h.Set("Content-Type", "application/octet-stream")
	for name, value := range b.headers {
		h.Set(name, value)
	}
	for name, value := range b.meta {
		h.Set("x-ms-meta-"+name, value)
	}
	if b.data != nil {
		h.Set("x-ms-access-tier", "Hot")
		h.Set("x-ms-access-tier-inferred", "true")
	}
	if b.copyID != "" {
		h.Set("x-ms-copy-id", b.copyID)
		h.Set("x-ms-copy-source", b.copySource)
		h.Set("x-ms-copy-status", "success")
		h.Set("x-ms-copy-progress", fmt.Sprintf("%d/%d", b.size(), b.size()))
		h.Set("x-ms-copy-completion-time", b.modified.UTC().Format(timeOfHeader))
	}
	if b.incremental {
		h.Set("x-ms-incremental-copy", "true")
		h.Set("x-ms-copy-destination-snapshot", b.copySnapshot)
	}
	if !b.until.IsZero() {
		h.Set("x-ms-immutability-policy-until-date", b.until.UTC().Format(timeOfHeader))
		h.Set("x-ms-immutability-policy-mode", modeOf(b))
	}
	if b.hold {
		h.Set("x-ms-legal-hold", "true")
	}
	if a := c.s.accounts[c.t.account]; a != nil && a.settings.Versioning && b.stamp != "" && !c.q.Has("snapshot") {
		h.Set("x-ms-version-id", b.stamp)
		if !c.q.Has("versionid") {
			h.Set("x-ms-is-current-version", "true")
		}
	}
}

func typeOf(b *blob) string {
	if b.img != nil {
		return typePage
	}
	return typeBlock
}

func headBlob(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b, err := c.state()
	if err != nil {
		return err
	}
	if err := c.conditions(b); err != nil {
		return err
	}
	c.detail(b)
	if c.q.Get("comp") == "" {
		c.w.Header().Set("Content-Length", strconv.FormatInt(b.size(), 10))
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// byteRange reads x-ms-range or Range: "bytes=a-b" or "bytes=a-". ok is false if
// there is none, or one in another form, which HTTP says to ignore.
func byteRange(h http.Header) (off, end int64, ok bool) {
	text := h.Get("x-ms-range")
	if text == "" {
		text = h.Get("Range")
	}
	text, found := strings.CutPrefix(text, "bytes=")
	from, to, dash := strings.Cut(text, "-")
	off, err := strconv.ParseInt(from, 10, 64)
	if !found || !dash || err != nil || off < 0 {
		return 0, 0, false
	}
	if to == "" {
		return off, -1, true
	}
	last, err := strconv.ParseInt(to, 10, 64)
	if err != nil || last < off || last == 1<<63-1 {
		return 0, 0, false
	}
	return off, last + 1, true
}

func getBlob(c *call) error {
	c.s.mu.Lock()
	off, n, b, err := c.openRange()
	if err != nil {
		c.s.mu.Unlock()
		return err
	}
	img, data := b.img, b.data
	if data != nil {
		data.refs++ // it stays readable if the blob is overwritten meanwhile
	}
	c.s.mu.Unlock()
	if data != nil {
		defer func() {
			c.s.mu.Lock()
			defer c.s.mu.Unlock()
			_ = (&blob{data: data}).drop()
		}()
	}
	stream := func(w io.Writer) error {
		if img != nil {
			return img.stream(w, off, n)
		}
		return data.stream(w, off, n)
	}
	h := c.w.Header()
	_, _, ranged := byteRange(c.r.Header)
	want5, want64 := c.r.Header.Get("x-ms-range-get-content-md5") == "true", c.r.Header.Get("x-ms-range-get-content-crc64") == "true"
	if want5 || want64 {
		if !ranged || n > maxChecked || want5 && want64 {
			return refuse(400, "InvalidHeaderValue", "A checksum is given for a range of at most 4 MiB, and only one.")
		}
		var raw bytes.Buffer
		if err := stream(&raw); err != nil {
			return err
		}
		s := newSums(want5)
		s.write(raw.Bytes())
		if want5 {
			h.Set("Content-MD5", s.md5Text())
		} else {
			h.Set("x-ms-content-crc64", s.crcText())
		}
		stream = func(w io.Writer) error { _, err := w.Write(raw.Bytes()); return err }
	}
	if ranged {
		c.w.WriteHeader(http.StatusPartialContent)
	}
	if err := stream(c.w); err != nil {
		// The headers may be out: only a broken connection tells the client now.
		c.s.cfg.Log.Debug("an answer broke off", "path", c.r.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// openRange checks a Get Blob and sets its headers. The caller holds mu.
func (c *call) openRange() (off, n int64, b *blob, err error) {
	if b, err = c.state(); err != nil {
		return 0, 0, nil, err
	}
	if err := c.conditions(b); err != nil {
		return 0, 0, nil, err
	}
	if b.incremental && b.stamp == "" {
		return 0, 0, nil, refuse(409, "OperationNotAllowedOnIncrementalCopyBlob", "The specified operation is not allowed on an incremental copy blob: read one of its snapshots.")
	}
	size := b.size()
	off, end, ranged := byteRange(c.r.Header)
	if ranged && off >= size {
		return 0, 0, nil, refuse(416, "InvalidRange", "The range specified is invalid for the current size of the resource.")
	}
	if !ranged || end < 0 {
		end = size
	}
	end = min(end, size)
	if err := c.charge(0, end-off); err != nil {
		return 0, 0, nil, err
	}
	c.detail(b)
	h := c.w.Header()
	h.Set("Content-Length", strconv.FormatInt(end-off, 10))
	if ranged {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, size))
		if sum := h.Get("Content-MD5"); sum != "" {
			h.Set("x-ms-blob-content-md5", sum)
			h.Del("Content-MD5")
		}
	}
	return off, end - off, b, nil
}

func (d *content) stream(w io.Writer, off, n int64) error {
	if d.path == "" {
		_, err := w.Write(d.data[off : off+n])
		return err
	}
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	_, err = io.Copy(w, io.NewSectionReader(f, off, n))
	return err
}

// receive reads a body of a block blob.
func (c *call) receive() (_ *content, s sums, err error) {
	s = newSums(true)
	if c.r.ContentLength < 0 {
		return nil, s, refuse(411, "MissingContentLengthHeader", "Content-Length was not provided.")
	}
	if c.r.ContentLength > maxPutBlob {
		return nil, s, refuse(413, "RequestBodyTooLarge", "The size of the request body exceeds the maximum size permitted.")
	}
	d := &content{size: c.r.ContentLength, refs: 1}
	var w io.Writer
	if d.size <= inMemory {
		d.data = make([]byte, 0, d.size)
		w = writerFunc(func(p []byte) (int, error) { d.data = append(d.data, p...); return len(p), nil })
	} else {
		c.s.mu.Lock()
		d.path, err = c.s.file()
		c.s.mu.Unlock()
		if err != nil {
			return nil, s, err
		}
		f, err := os.OpenFile(d.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, s, err
		}
		defer func() {
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				err = errors.Join(err, os.Remove(d.path))
			}
		}()
		w = f
	}
	n, err := io.Copy(io.MultiWriter(w, writerFunc(func(p []byte) (int, error) { s.write(p); return len(p), nil })), c.r.Body)
	if err != nil || n != d.size {
		return nil, s, refuse(400, "InvalidInput", "The body ended after %d of %d bytes.", n, d.size)
	}
	return d, s, s.verify(c.r.Header)
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// contentHeaders are the properties that Put Blob and Set Blob Properties keep.
var contentHeaders = [...]string{"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-MD5", "Content-Type"}

func (c *call) properties() map[string]string {
	out := map[string]string{}
	for _, name := range contentHeaders {
		if v := c.r.Header.Get("x-ms-blob-" + name); v != "" {
			out[name] = v
		}
	}
	return out
}

// metadata are the request's x-ms-meta- headers, with names in small letters.
func (c *call) metadata() map[string]string {
	out := map[string]string{}
	for name, values := range c.r.Header {
		if key, ok := strings.CutPrefix(strings.ToLower(name), "x-ms-meta-"); ok && key != "" {
			out[key] = strings.Join(values, ",")
		}
	}
	return out
}

func putBlob(c *call) error {
	b := &blob{meta: c.metadata(), headers: c.properties()}
	h := c.r.Header
	var s sums
	switch kind := h.Get("x-ms-blob-type"); kind {
	case typeBlock:
		var err error
		if b.data, s, err = c.receive(); err != nil {
			return err
		}
		if b.headers["Content-Type"] == "" && h.Get("Content-Type") != "" {
			b.headers["Content-Type"] = h.Get("Content-Type")
		}
		if b.headers["Content-MD5"] == "" {
			b.headers["Content-MD5"] = s.md5Text()
		}
	case typePage:
		size, err := strconv.ParseInt(h.Get("x-ms-blob-content-length"), 10, 64)
		if err != nil || size < 0 || size%pageSize != 0 || size > maxPageBlob || c.r.ContentLength > 0 {
			return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-blob-content-length.")
		}
		if text := h.Get("x-ms-blob-sequence-number"); text != "" {
			if b.sequence, err = strconv.ParseInt(text, 10, 64); err != nil || b.sequence < 0 {
				return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-blob-sequence-number.")
			}
		}
		c.s.mu.Lock()
		path, err := c.s.file()
		c.s.mu.Unlock()
		if err != nil {
			return err
		}
		if b.img, err = newImage(path, size); err != nil {
			return err
		}
	case "":
		return refuse(400, "MissingRequiredHeader", "An HTTP header that's mandatory for this request is not specified: x-ms-blob-type.")
	default:
		return refuse(400, "InvalidHeaderValue", "This simulator has no blobs of type %s.", kind)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err := c.install(b); err != nil {
		return errors.Join(err, b.drop())
	}
	out := c.w.Header()
	if b.data != nil {
		out.Set("Content-MD5", s.md5Text())
		out.Set("x-ms-content-crc64", s.crcText())
	}
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// install makes b the blob of the request's name, by the request's conditions, and
// sets the headers of the answer. The caller holds mu; b is his again on an error.
func (c *call) install(b *blob) error {
	a, box, e, err := c.hold()
	if err != nil {
		return err
	}
	var old *blob
	if e != nil {
		old = e.base
	}
	if old != nil {
		// Before the conditions: who may only create learns no more than that.
		if c.need("w") != nil {
			return refuse(403, "UnauthorizedBlobOverwrite", "This request is not authorized to perform blob overwrites.")
		}
		if c.r.Header.Get("If-None-Match") == "*" {
			return refuse(409, "BlobAlreadyExists", "The specified blob already exists.")
		}
		if !a.settings.Versioning { // else what was there stays as a version
			if err := c.s.retained(old); err != nil {
				return err
			}
		}
	}
	if err := c.conditions(old); err != nil {
		return err
	}
	if err := c.retention(a, b); err != nil {
		return err
	}
	if e == nil {
		e = &entry{}
		box.blobs[c.t.blob] = e
	}
	e.life++
	b.life = e.life
	c.s.touch(b)
	b.created = b.modified
	if a.settings.Versioning {
		b.stamp = c.s.nextStamp()
		c.w.Header().Set("x-ms-version-id", b.stamp)
		if old != nil {
			c.s.keepVersion(e, old)
		}
	} else if old != nil {
		if err := old.drop(); err != nil {
			c.s.cfg.Log.Warn("content of an overwritten blob stays behind", "err", err)
		}
	}
	e.base = b
	describe(c.w.Header(), b)
	return nil
}

// keepVersion turns what was the base into a version. One that was made before the
// account had versions gets its name now. The caller holds mu.
func (s *Store) keepVersion(e *entry, old *blob) {
	if old.stamp == "" {
		old.stamp = s.nextStamp()
	}
	e.versions = append(e.versions, old)
	e.base = nil
}

func deleteBlob(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	a, box, e, err := c.hold()
	if err != nil {
		return err
	}
	b := c.s.lookup(c.t, c.q)
	if b == nil {
		return refuse(404, "BlobNotFound", "The specified blob does not exist.")
	}
	if err := c.conditions(b); err != nil {
		return err
	}
	snaps := c.r.Header.Get("x-ms-delete-snapshots")
	one := c.q.Has("snapshot") || c.q.Has("versionid")
	switch {
	case c.q.Has("versionid") && c.need("x") != nil:
		return c.need("x")
	case !c.q.Has("versionid") && c.need("d") != nil:
		return c.need("d")
	case one && snaps != "":
		return refuse(400, "InvalidQueryParameterValue", "x-ms-delete-snapshots is for the blob itself.")
	case c.q.Has("versionid") && b == e.base:
		return refuse(403, "OperationNotAllowedOnRootBlob", "The current version is deleted without naming it.")
	case snaps != "" && snaps != "only" && snaps != "include":
		return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-delete-snapshots.")
	case !one && len(e.snaps) > 0 && snaps == "":
		return refuse(409, "SnapshotsPresent", "This operation is not permitted because the blob has snapshots.")
	}
	doomed := []*blob{b}
	if snaps != "" {
		doomed = slices.Clone(e.snaps)
		if snaps == "include" {
			doomed = append(doomed, b)
		}
	}
	for _, d := range doomed {
		if err := c.s.retained(d); err != nil {
			return err
		}
	}
	for _, d := range doomed {
		if d == e.base && a.settings.Versioning {
			c.s.keepVersion(e, d)
			continue
		}
		e.forget(d)
		if err := d.drop(); err != nil {
			c.s.cfg.Log.Warn("content of a deleted blob stays behind", "err", err)
		}
	}
	if e.base == nil && len(e.snaps) == 0 && len(e.versions) == 0 {
		delete(box.blobs, c.t.blob)
	}
	c.w.Header().Set("x-ms-delete-type-permanent", "true")
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// forget takes a state out. What was touched before a snapshot is then touched
// before the one that follows it. The caller holds mu.
func (e *entry) forget(b *blob) {
	if e.base == b {
		e.base = nil
		return
	}
	e.versions = slices.DeleteFunc(e.versions, func(v *blob) bool { return v == b })
	i := slices.Index(e.snaps, b)
	if i < 0 {
		return
	}
	e.snaps = slices.Delete(e.snaps, i, i+1)
	switch {
	case i < len(e.snaps) && e.snaps[i].life == b.life:
		e.snaps[i].touched.add(&b.touched)
	case i == len(e.snaps) && e.base != nil && e.base.img != nil && e.base.life == b.life:
		e.base.img.addTouched(&b.touched)
	}
}

func setMetadata(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	a, e, err := c.base()
	if err != nil {
		return err
	}
	e.base.meta = c.metadata()
	c.s.touch(e.base)
	describe(c.w.Header(), e.base)
	if a.settings.Versioning {
		c.w.Header().Set("x-ms-version-id", e.base.stamp)
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

func setProperties(c *call) error {
	h := c.r.Header
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	_, e, err := c.base()
	if err != nil {
		return err
	}
	b := e.base
	size, action := h.Get("x-ms-blob-content-length"), h.Get("x-ms-sequence-number-action")
	if (size != "" || action != "") && b.img == nil {
		return refuse(409, "InvalidBlobType", "The blob type is invalid for this operation.")
	}
	sequence, err := nextSequence(b.sequence, action, h.Get("x-ms-blob-sequence-number"))
	if err != nil {
		return err
	}
	if size != "" {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil || n < 0 || n%pageSize != 0 || n > maxPageBlob {
			return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-blob-content-length.")
		}
		if err := b.img.resize(n); err != nil {
			return err
		}
	}
	b.sequence = sequence
	// One property that is set replaces them all; a new size alone leaves them.
	if set := c.properties(); len(set) > 0 || size == "" && action == "" {
		b.headers = set
	}
	c.s.touch(b)
	describe(c.w.Header(), b)
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// nextSequence is what x-ms-sequence-number-action makes of a sequence number.
func nextSequence(now int64, action, text string) (int64, error) {
	bad := refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-blob-sequence-number.")
	if action == "" || action == "increment" {
		if text != "" {
			return 0, bad
		}
		if action == "increment" {
			now++
		}
		return now, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil || n < 0:
		return 0, bad
	case action == "max":
		return max(now, n), nil
	case action == "update":
		return n, nil
	}
	return 0, refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-sequence-number-action.")
}
