package pagestore

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxRanges is how many ranges one answer has at most.
const maxRanges = 10000

// pageRange reads the range that pages are written to. It must be whole pages.
func pageRange(h http.Header) (off, n int64, err error) {
	off, end, ok := byteRange(h)
	if !ok || end < 0 {
		return 0, 0, refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: Range.")
	}
	if off%pageSize != 0 || end%pageSize != 0 {
		return 0, 0, refuse(416, "InvalidPageRange", "The page range specified is invalid: it is not aligned to 512 bytes.")
	}
	return off, end - off, nil
}

// pages finds what pages are to be written to, and checks conditions and range.
// The caller holds mu.
func (c *call) pages(off, n int64) (*blob, error) {
	var b *blob
	var err error
	if c.t.disk != "" {
		if b, err = c.s.diskState(c.t.disk); err == nil {
			err = c.conditions(b)
		}
	} else {
		var e *entry
		if _, e, err = c.base(); err == nil {
			b = e.base
		}
	}
	if err != nil {
		return nil, err
	}
	if b.img == nil {
		return nil, refuse(409, "InvalidBlobType", "The blob type is invalid for this operation.")
	}
	if b.incremental {
		return nil, refuse(409, "OperationNotAllowedOnIncrementalCopyBlob", "The specified operation is not allowed on an incremental copy blob.")
	}
	if err := c.sequence(b.sequence); err != nil {
		return nil, err
	}
	if off > b.size()-n {
		return nil, refuse(416, "InvalidPageRange", "The page range specified is invalid: it ends after the blob.")
	}
	return b, nil
}

// sequence checks the x-ms-if-sequence-number- conditions.
func (c *call) sequence(now int64) error {
	for _, cond := range [...]string{"le", "lt", "eq"} {
		text := c.r.Header.Get("x-ms-if-sequence-number-" + cond)
		if text == "" {
			continue
		}
		want, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-if-sequence-number-%s.", cond)
		}
		if cond == "le" && now > want || cond == "lt" && now >= want || cond == "eq" && now != want {
			return refuse(412, "SequenceNumberConditionNotMet", "The sequence number condition specified was not met.")
		}
	}
	return nil
}

// written ends a write of pages. The caller holds mu.
func (c *call) written(b *blob, s *sums) error {
	if c.t.disk != "" {
		var err error
		if b, err = c.s.diskState(c.t.disk); err != nil {
			return err
		}
	} else {
		c.s.touch(b)
	}
	describe(c.w.Header(), b)
	if s != nil {
		c.w.Header().Set("x-ms-content-crc64", s.crcText())
		if s.md5 != nil {
			c.w.Header().Set("Content-MD5", s.md5Text())
		}
	}
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

func putPage(c *call) error {
	if kind := c.r.Header.Get("x-ms-page-write"); !strings.EqualFold(kind, "update") {
		return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-page-write.")
	}
	if c.r.Header.Get("x-ms-structured-body") != "" {
		return refuse(400, "UnsupportedHeader", "This simulator does not know structured bodies.")
	}
	off, n, err := pageRange(c.r.Header)
	switch {
	case err != nil:
		return err
	case n > maxPutPage:
		return refuse(413, "RequestBodyTooLarge", "The size of the request body exceeds the maximum size permitted, 4 MiB.")
	case c.r.ContentLength != n:
		return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: Content-Length is not that of the range.")
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(c.r.Body, p); err != nil {
		return refuse(400, "InvalidInput", "The body ended before its %d bytes.", n)
	}
	s := newSums(c.r.Header.Get("Content-MD5") != "")
	s.write(p)
	if err := s.verify(c.r.Header); err != nil {
		return err
	}
	return c.store(p, off, &s)
}

func (c *call) store(p []byte, off int64, s *sums) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b, err := c.pages(off, int64(len(p)))
	if err != nil {
		return err
	}
	if err := b.img.writeAt(p, off); err != nil {
		return err
	}
	return c.written(b, s)
}

func clearPage(c *call) error {
	off, n, err := pageRange(c.r.Header)
	if err != nil {
		return err
	}
	if c.r.ContentLength > 0 {
		return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: Content-Length must be 0.")
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b, err := c.pages(off, n)
	if err != nil {
		return err
	}
	if err := b.img.clearAt(off, n); err != nil {
		return err
	}
	return c.written(b, nil)
}

func putPageFromURL(c *call) error {
	off, n, err := pageRange(c.r.Header)
	if err != nil {
		return err
	}
	from, end, ok := byteRange(http.Header{"Range": {c.r.Header.Get("x-ms-source-range")}})
	switch {
	case !ok || end < 0 || end-from != n || c.r.ContentLength > 0:
		return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-source-range.")
	case n > maxPutPage:
		return refuse(413, "RequestBodyTooLarge", "The size of the range exceeds the maximum size permitted, 4 MiB.")
	case !strings.EqualFold(c.r.Header.Get("x-ms-page-write"), "update"):
		return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-page-write.")
	}
	src, err := c.source(false)
	if err != nil {
		return err
	}
	defer src.close()
	p := make([]byte, n)
	if from > src.size-n {
		return refuse(416, "InvalidRange", "The range specified is invalid for the current size of the source.")
	}
	if err := src.readAt(p, from); err != nil {
		return err
	}
	promised := http.Header{}
	promised.Set("Content-MD5", c.r.Header.Get("x-ms-source-content-md5"))
	promised.Set("x-ms-content-crc64", c.r.Header.Get("x-ms-source-content-crc64"))
	s := newSums(true)
	s.write(p)
	if err := s.verify(promised); err != nil {
		return err
	}
	return c.store(p, off, &s)
}

// rangeXML is a range with both ends inside, as the service writes it.
type rangeXML struct {
	XMLName xml.Name
	Start   int64
	End     int64
}

// rangesXML is the answer to both questions for ranges.
type rangesXML struct {
	XMLName    xml.Name `xml:"PageList"`
	Ranges     []rangeXML
	NextMarker string `xml:",omitempty"`
}

func getPageRanges(c *call) error {
	b, err := c.ranged()
	if err != nil {
		return err
	}
	window, most, err := c.window(b.size())
	if err != nil {
		return err
	}
	unit := int64(1)
	if c.t.disk != "" {
		unit = managedPages
	}
	var list []change
	for _, sp := range coarse(b.img.spans(window.from/unit*unit, window.to), unit) {
		list = append(list, change{span: sp})
	}
	return c.list(b, list, window, most)
}

// ranged finds the page blob whose ranges are asked for, and sets its headers. What
// it returns is a copy.
func (c *call) ranged() (*blob, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b, err := c.state()
	if err != nil {
		return nil, err
	}
	if err := c.conditions(b); err != nil {
		return nil, err
	}
	if b.img == nil {
		return nil, refuse(409, "InvalidBlobType", "The blob type is invalid for this operation.")
	}
	if b.incremental && b.stamp == "" {
		return nil, refuse(409, "OperationNotAllowedOnIncrementalCopyBlob", "The specified operation is not allowed on an incremental copy blob.")
	}
	describe(c.w.Header(), b)
	found := *b
	return &found, nil
}

// window is which pages are asked for, by range and marker, and how many ranges
// one answer may have.
func (c *call) window(size int64) (w span, most int, err error) {
	w = span{0, (size + pageSize - 1) / pageSize}
	if off, end, ok := byteRange(c.r.Header); ok {
		if off >= size {
			return w, 0, refuse(416, "InvalidRange", "The range specified is invalid for the current size of the resource.")
		}
		w.from = off / pageSize
		if end >= 0 && end < size {
			w.to = (end + pageSize - 1) / pageSize
		}
	}
	most = maxRanges
	if text := c.q.Get("maxresults"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return w, 0, refuse(400, "OutOfRangeQueryParameterValue", "One of the query parameters specified in the request URI is outside the permissible range: maxresults.")
		}
		most = min(most, n)
	}
	if text := c.q.Get("marker"); text != "" {
		at, err := strconv.ParseInt(text, 10, 64)
		if err != nil || at < 0 || at%pageSize != 0 {
			return w, 0, refuse(400, "InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid: marker.")
		}
		w.from = max(w.from, at/pageSize)
	}
	return w, most, nil
}

// list answers with the ranges that lie in the window.
func (c *call) list(b *blob, all []change, w span, most int) error {
	size := b.size()
	var out rangesXML
	for _, ch := range all {
		from, to := max(ch.from, w.from), min(ch.to, w.to)
		if from >= to {
			continue
		}
		if len(out.Ranges) == most {
			out.NextMarker = strconv.FormatInt(from*pageSize, 10)
			break
		}
		name := "PageRange"
		if ch.cleared {
			name = "ClearRange"
		}
		out.Ranges = append(out.Ranges, rangeXML{xml.Name{Local: name}, from * pageSize, min(to*pageSize, size) - 1})
	}
	c.w.Header().Set("x-ms-blob-content-length", strconv.FormatInt(size, 10))
	c.xml(http.StatusOK, out)
	return nil
}

func getPageRangesDiff(c *call) error {
	b, err := c.ranged()
	if err != nil {
		return err
	}
	window, most, err := c.window(b.size())
	if err != nil {
		return err
	}
	var list []change
	if c.t.disk != "" {
		list, err = c.managedDiff()
	} else {
		list, err = c.blobDiff()
	}
	if err != nil {
		return err
	}
	return c.list(b, list, window, most)
}

// managedDiff compares a disk or snapshot with the one at x-ms-previous-snapshot-url.
func (c *call) managedDiff() ([]change, error) {
	text := c.r.Header.Get("x-ms-previous-snapshot-url")
	u, err := url.Parse(text)
	if text == "" || err != nil {
		return nil, refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: managed disks name the snapshot before by x-ms-previous-snapshot-url.")
	}
	t, err := c.s.target(u.Host, u.Path)
	if err != nil || t.disk == "" {
		return nil, refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-previous-snapshot-url.")
	}
	if _, err := c.s.authorizeDisk(u.Query(), t.disk); err != nil {
		return nil, err
	}
	c.s.mu.Lock()
	older, newer := c.s.disks[t.disk], c.s.disks[c.t.disk]
	if older == nil || newer == nil {
		c.s.mu.Unlock()
		return nil, refuse(409, "PreviousSnapshotNotFound", "The previous snapshot is not found.")
	}
	known := newer.diffs[older.img]
	c.s.mu.Unlock()
	was, is := older.img.changes(), newer.img.changes()
	if known.newer == is+1 && known.older == was+1 {
		return known.changes, nil
	}
	changes, err := compareImages(older.img, newer.img)
	if err != nil {
		return nil, err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if newer.diffs == nil {
		newer.diffs = map[*image]comparison{}
	}
	newer.diffs[older.img] = comparison{was + 1, is + 1, changes} // 0 stands for none
	return changes, nil
}

// blobDiff compares a page blob or a snapshot of it with an earlier snapshot.
func (c *call) blobDiff() ([]change, error) {
	if c.r.Header.Get("x-ms-previous-snapshot-url") != "" {
		return nil, refuse(400, "UnsupportedHeader", "x-ms-previous-snapshot-url is for managed disks.")
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	_, _, e, err := c.hold()
	b := c.s.lookup(c.t, c.q)
	if err != nil || b == nil {
		return nil, errors.Join(err, refuse(404, "BlobNotFound", "The specified blob does not exist."))
	}
	older := byStamp(e.snaps, c.q.Get("prevsnapshot"))
	switch {
	case c.q.Has("versionid"):
		return nil, refuse(400, "UnsupportedQueryParameter", "Versions have no differences.")
	case older == nil:
		return nil, refuse(409, "PreviousSnapshotNotFound", "The previous snapshot is not found.")
	case b != e.base && older.stamp > b.stamp:
		return nil, refuse(400, "PreviousSnapshotCannotBeNewer", "The prevsnapshot query parameter value cannot be newer than the snapshot's.")
	case older.life != b.life:
		return nil, refuse(409, "BlobOverwritten", "The blob has been recreated since the previous snapshot was taken.")
	}
	touched := e.touchedAfter(older.stamp, b)
	return trackedChanges(&touched, older.img, b.img), nil
}

// touchedAfter are the pages that were written or cleared between a snapshot and a
// later state. The caller holds the store's mu.
func (e *entry) touchedAfter(stamp string, b *blob) pageSet {
	var out pageSet
	for _, snap := range e.snaps {
		if snap.stamp > stamp && (b == e.base || snap.stamp <= b.stamp) {
			out.add(&snap.touched)
		}
	}
	if b == e.base {
		b.img.mu.RLock()
		defer b.img.mu.RUnlock()
		out.add(&b.img.touched)
	}
	return out
}
