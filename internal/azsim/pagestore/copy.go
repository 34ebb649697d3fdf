package pagestore

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// source is what a copy reads, held so that it stays while it is read.
type source struct {
	s    *Store
	t    target
	url  *url.URL
	size int64
	img  *image
	data *content
	blob *blob // of an account
}

// source finds the blob at x-ms-copy-source and checks that it may be read: by its
// own SAS, by x-ms-copy-source-authorization, or, if sameAccount, because who asks
// may do everything in the account.
func (c *call) source(sameAccount bool) (*source, error) {
	unverified := func(status int, why string) error {
		return refuse(status, "CannotVerifyCopySource", "The copy source cannot be read: %s", why)
	}
	u, err := url.Parse(c.r.Header.Get("x-ms-copy-source"))
	if err != nil || u.Host == "" || len(u.String()) > 2048 {
		return nil, refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-copy-source.")
	}
	t, err := c.s.target(u.Host, u.Path)
	if err != nil || t.disk == "" && t.blob == "" {
		return nil, unverified(404, "its address names no blob of this storage.")
	}
	q := u.Query()
	trusted := sameAccount && c.may.owner && t.account == c.t.account && !q.Has("sig")
	if !trusted {
		ask := &http.Request{Method: http.MethodGet, URL: u, TLS: c.r.TLS, Header: http.Header{}}
		ask.Header.Set("Authorization", c.r.Header.Get("x-ms-copy-source-authorization"))
		may, err := c.s.authorize(ask, q, t)
		if err != nil {
			if p, ok := err.(*problem); ok {
				return nil, unverified(p.status, p.message)
			}
			return nil, err
		}
		if !may.owner && !strings.Contains(may.letters, "r") {
			return nil, unverified(403, "its signature does not allow reading.")
		}
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	var b *blob
	if t.disk != "" {
		b, err = c.s.diskState(t.disk)
	} else if b = c.s.lookup(t, q); b == nil {
		err = unverified(404, "the specified blob does not exist.")
	}
	if err != nil {
		return nil, err
	}
	src := &source{s: c.s, t: t, url: u, size: b.size(), img: b.img, data: b.data, blob: b}
	if src.data != nil {
		src.data.refs++
	}
	return src, nil
}

func (src *source) close() {
	if src.data == nil {
		return
	}
	src.s.mu.Lock()
	defer src.s.mu.Unlock()
	_ = (&blob{data: src.data}).drop() // content that stays behind goes with Close
}

func (src *source) readAt(p []byte, off int64) error {
	if src.img != nil {
		return src.img.readAt(p, off)
	}
	if src.data.path == "" {
		copy(p, src.data.data[off:])
		return nil
	}
	f, err := os.Open(src.data.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	_, err = io.ReadFull(io.NewSectionReader(f, off, int64(len(p))), p)
	return err
}

// plain is the source's address without its signature.
func (src *source) plain() string {
	u := *src.url
	q := url.Values{}
	for _, name := range [...]string{"snapshot", "versionid"} {
		if v := src.url.Query().Get(name); v != "" {
			q.Set(name, v)
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// copyBlob does Copy Blob, Copy Blob From URL and Put Blob From URL. All are done
// when they are answered, so that nothing is ever pending.
func copyBlob(c *call) error {
	src, err := c.source(true)
	if err != nil {
		return err
	}
	defer src.close()
	fromURL := c.r.Header.Get("x-ms-blob-type") != ""
	if fromURL && src.data == nil {
		return refuse(409, "InvalidSourceBlobType", "This simulator makes block blobs from block blobs only.")
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b := &blob{data: src.data, headers: src.blob.headers, meta: src.blob.meta, sequence: src.blob.sequence}
	if meta := c.metadata(); len(meta) > 0 {
		b.meta = meta
	}
	if src.img != nil {
		path, err := c.s.file()
		if err != nil {
			return err
		}
		if b.img, err = src.img.clone(path); err != nil {
			return err
		}
	} else {
		b.data.refs++
	}
	if !fromURL {
		b.copyID, b.copySource = c.id, src.plain()
	}
	if err := c.install(b); err != nil {
		_ = b.drop() // the refusal is what counts
		return err
	}
	if fromURL {
		c.w.WriteHeader(http.StatusCreated)
		return nil
	}
	c.w.Header().Set("x-ms-copy-id", b.copyID)
	c.w.Header().Set("x-ms-copy-status", "success")
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

// copyIncremental brings an incremental copy to a later snapshot of its source. The
// copy gets a snapshot by it; its differences are those of the source.
func copyIncremental(c *call) error {
	src, err := c.source(true)
	if err != nil {
		return err
	}
	defer src.close()
	stamp := src.url.Query().Get("snapshot")
	switch {
	case src.img == nil:
		return refuse(409, "InvalidSourceBlobType", "The copy source blob type is invalid for this operation.")
	case stamp == "" || src.t.blob == "":
		return refuse(409, "IncrementalCopySourceMustBeSnapshot", "The source of an incremental copy must be a snapshot of a page blob.")
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	a, box, e, err := c.hold()
	if err != nil {
		return err
	}
	from := c.s.accounts[src.t.account].containers[src.t.container].blobs[src.t.blob]
	var old *blob
	if e != nil {
		old = e.base
	}
	if err := c.conditions(old); err != nil {
		return err
	}
	name := fmt.Sprintf("/%s/%s/%s", src.t.account, src.t.container, src.t.blob)
	switch {
	case from == nil || byStamp(from.snaps, stamp) != src.blob:
		return refuse(404, "CannotVerifyCopySource", "The source snapshot was deleted meanwhile.")
	case old != nil && (!old.incremental || old.copySource != name):
		return refuse(409, "IncrementalCopyBlobMismatch", "The specified source blob is different than the copy source of the existing incremental copy blob.")
	case old != nil && stamp <= old.copied:
		return refuse(409, "IncrementalCopyOfEarlierSnapshotNotAllowed", "The specified snapshot is not later than the last that was copied.")
	case a.settings.Versioning:
		return refuse(409, "OperationNotAllowedOnIncrementalCopyBlob", "Accounts with versions have no incremental copies.")
	}
	path, err := c.s.file()
	if err != nil {
		return err
	}
	img, err := src.img.clone(path)
	if err != nil {
		return err
	}
	img.touched = img.allocated()
	if old != nil {
		if old.sourceLife == src.blob.life {
			img.touched = from.touchedAfter(old.copied, src.blob)
		} else {
			had := old.img.allocated()
			img.touched.add(&had)
		}
	}
	if e == nil {
		e = &entry{}
		box.blobs[c.t.blob] = e
	}
	b := &blob{img: img, incremental: true, life: e.life, meta: c.metadata(), sequence: src.blob.sequence, copyID: c.id, copySource: name, copied: stamp, sourceLife: src.blob.life}
	c.s.touch(b)
	b.created = b.modified
	if old != nil {
		b.created = old.created
		_ = old.drop() // content that stays behind goes with Close
	}
	e.base = b
	snap, err := c.s.snapshot(e)
	if err != nil {
		return err
	}
	b.copySnapshot, snap.copySnapshot = snap.stamp, ""
	describe(c.w.Header(), b)
	c.w.Header().Set("x-ms-copy-id", b.copyID)
	c.w.Header().Set("x-ms-copy-status", "pending")
	c.w.WriteHeader(http.StatusAccepted)
	return nil
}

func snapshotBlob(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	_, _, e, err := c.hold()
	if err != nil {
		return err
	}
	if e == nil || e.base == nil {
		return refuse(404, "BlobNotFound", "The specified blob does not exist.")
	}
	if err := c.conditions(e.base); err != nil {
		return err
	}
	if e.base.incremental {
		return refuse(409, "OperationNotAllowedOnIncrementalCopyBlob", "The specified operation is not allowed on an incremental copy blob.")
	}
	snap, err := c.s.snapshot(e)
	if err != nil {
		return err
	}
	if meta := c.metadata(); len(meta) > 0 {
		snap.meta = meta
	}
	describe(c.w.Header(), snap)
	c.w.Header().Set("x-ms-snapshot", snap.stamp)
	c.w.WriteHeader(http.StatusCreated)
	return nil
}

// snapshot adds a snapshot of the base as it is now. The caller holds mu.
func (s *Store) snapshot(e *entry) (*blob, error) {
	snap := *e.base
	snap.meta, snap.headers = maps.Clone(snap.meta), maps.Clone(snap.headers)
	snap.until, snap.locked, snap.hold, snap.touched = time.Time{}, false, false, pageSet{}
	if snap.img != nil {
		path, err := s.file()
		if err != nil {
			return nil, err
		}
		if snap.img, err = e.base.img.clone(path); err != nil {
			return nil, err
		}
		snap.touched = e.base.img.takeTouched()
	} else {
		snap.data.refs++
	}
	snap.stamp = s.nextStamp()
	e.snaps = append(e.snaps, &snap)
	return &snap, nil
}
