package pagestore

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// drained is how much of a refused request's body is still read, so that the
// client sees the answer and not a broken connection.
const drained = 64 << 20

// problem is an answer that refuses, by the service's table of error codes.
type problem struct {
	status  int
	code    string
	message string
	retry   time.Duration
}

func (p *problem) Error() string { return p.code + ": " + p.message }

func refuse(status int, code, format string, args ...any) *problem {
	return &problem{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// call is one request on its way.
type call struct {
	s  *Store
	w  http.ResponseWriter
	r  *http.Request
	q  url.Values
	id string
	t  target
	op *operation // nil: not known

	may access
	key string // for limits
}

// operation is an entry of the service's contract.
type operation struct {
	name string
	// need has the letters of SAS permissions one of which suffices; empty: not by a
	// SAS of a blob or container.
	need string
	disk bool // also of managed disks
	run  func(*call) error
}

// answer counts what is sent, and throws it away if the connection is to be cut.
type answer struct {
	http.ResponseWriter
	status int
	sent   int64
	lost   bool
	own    http.Header
}

func (a *answer) Header() http.Header {
	if a.lost {
		return a.own
	}
	return a.ResponseWriter.Header()
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
		if !a.lost {
			a.ResponseWriter.WriteHeader(status)
		}
	}
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	a.sent += int64(len(p))
	if a.lost {
		return len(p), nil
	}
	return a.ResponseWriter.Write(p)
}

// counted counts what of a body was read.
type counted struct {
	io.ReadCloser
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	return n, err
}

func (s *Store) serve(w http.ResponseWriter, r *http.Request) {
	out := &answer{ResponseWriter: w, own: http.Header{}}
	body := &counted{ReadCloser: r.Body}
	r.Body = body
	c := &call{s: s, w: out, r: r, id: requestID()}
	q, err := url.ParseQuery(r.URL.RawQuery)
	c.q = q
	if err == nil {
		c.t, err = s.target(r.Host, r.URL.Path)
	}
	c.op = classify(c)
	name := "Unknown"
	if c.op != nil {
		name = c.op.name
	}
	f, hit := s.faults.match(r, name)
	out.lost = hit && f.Cut
	aborted := true // until the end is reached: operations abort by a panic
	defer func() {
		n := Count{Requests: 1, In: body.n, Out: out.sent}
		if aborted || out.lost || out.status >= 400 {
			n.Failed = 1
		}
		s.meter.add(name, n)
	}()
	h := out.Header()
	h.Set("Server", "Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0")
	h.Set("x-ms-request-id", c.id)
	if v := r.Header.Get("x-ms-version"); v != "" {
		h.Set("x-ms-version", v)
	}
	h.Set("Date", s.cfg.Now().UTC().Format(http.TimeFormat))
	if id := r.Header.Get("x-ms-client-request-id"); id != "" && len(id) <= 1024 {
		h.Set("x-ms-client-request-id", id)
	}
	switch {
	case err != nil:
		c.fail(refuse(400, "InvalidUri", "The requested URI does not represent any resource on the server."))
	case hit && !pause(r, f):
		out.lost = true
	case hit && f.Status != 0:
		c.fail(&problem{f.Status, f.Code, "This failure was injected.", f.RetryAfter})
	default:
		if err := c.handle(); err != nil {
			c.fail(err)
		}
	}
	if out.status >= 400 {
		_, _ = io.Copy(io.Discard, io.LimitReader(body, drained))
	}
	if out.lost {
		panic(http.ErrAbortHandler) // how net/http is told to break the connection
	}
	aborted = false
}

// pause does what a fault does before anything else; false if the client went away.
func pause(r *http.Request, f Fault) bool {
	if f.Do != nil {
		f.Do(r)
	}
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return false
		}
	}
	return true
}

// handle checks what goes for all operations, and runs the one that is asked for.
func (c *call) handle() error {
	if v := c.r.Header.Get("x-ms-version"); v != "" {
		if _, err := time.Parse("2006-01-02", v); err != nil {
			return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-version.")
		}
	}
	c.key = strings.Join([]string{c.t.disk, c.t.account, c.t.container, c.t.blob}, "/")
	if c.t.disk != "" || c.t.blob != "" {
		if err := c.charge(1, max(0, c.r.ContentLength)); err != nil {
			return err
		}
	}
	may, err := c.s.authorize(c.r, c.q, c.t)
	if err != nil {
		return err
	}
	c.may = may
	if c.op == nil {
		return refuse(400, "UnsupportedQueryParameter", "This simulator does not know the operation that %s with these parameters asks for.", c.r.Method)
	}
	if c.t.disk != "" && !c.op.disk {
		return refuse(403, "AuthorizationPermissionMismatch", "A managed disk's address does not allow %s.", c.op.name)
	}
	if err := c.need(c.op.need); err != nil {
		return err
	}
	return c.op.run(c)
}

// need asks for one of the permissions.
func (c *call) need(letters string) error {
	switch {
	case c.may.owner, letters != "" && strings.ContainsAny(c.may.letters, letters):
		return nil
	case letters == "":
		return refuse(403, "AuthorizationFailure", "This request is not authorized to perform this operation.")
	}
	return refuse(403, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission.")
}

// charge throttles.
func (c *call) charge(requests, n int64) error {
	if c.s.limiter.take(c.key, requests, n) {
		return nil
	}
	c.s.limiter.mu.Lock()
	retry := c.s.limiter.limits.RetryAfter
	c.s.limiter.mu.Unlock()
	return &problem{503, "ServerBusy", "The server is busy: the blob is over its limit of requests or bytes per second.", retry}
}

// fail answers with an error, if nothing was answered yet.
func (c *call) fail(err error) {
	var p *problem
	if !errors.As(err, &p) {
		c.s.cfg.Log.Error("the simulated storage failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
		p = refuse(500, "InternalError", "The server encountered an internal error. Please retry the request.")
	}
	h := c.w.Header()
	if p.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int(max(1, p.retry/time.Second))))
	}
	if p.code != "" {
		h.Set("x-ms-error-code", p.code)
	}
	if c.r.Method == http.MethodHead || p.status == http.StatusNotModified {
		c.w.WriteHeader(p.status)
		return
	}
	type body struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}
	c.xml(p.status, body{Code: p.code, Message: fmt.Sprintf("%s\nRequestId:%s\nTime:%s", p.message, c.id, c.s.cfg.Now().UTC().Format(stampLayout))})
}

// xml answers with a document.
func (c *call) xml(status int, doc any) {
	raw, err := xml.Marshal(doc)
	if err != nil { // a defect: the documents are our own
		c.s.cfg.Log.Error("an answer cannot be encoded", "path", c.r.URL.Path, "err", err)
		status, raw = http.StatusInternalServerError, nil
	}
	raw = append([]byte(xml.Header), raw...)
	c.w.Header().Set("Content-Type", "application/xml")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(raw)
}

func requestID() string {
	var raw [16]byte
	rand.Read(raw[:])
	s := hex.EncodeToString(raw[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// classify finds the operation by method, path and query; nil if there is none.
func classify(c *call) *operation {
	key := c.r.Method + " "
	switch {
	case c.t.disk != "" || c.t.blob != "":
		key += "blob"
	case c.t.container != "":
		key += "container"
	default:
		key += "service"
	}
	if restype := c.q.Get("restype"); restype != "" && c.t.blob == "" {
		key += " " + restype
	}
	comp := c.q.Get("comp")
	if comp != "" {
		key += " " + comp
	}
	h := c.r.Header
	switch key {
	case "PUT blob":
		switch {
		case h.Get("x-ms-copy-source") != "" && strings.EqualFold(h.Get("x-ms-blob-type"), "BlockBlob"):
			key += " fromurl"
		case h.Get("x-ms-copy-source") != "":
			key += " copy"
		}
	case "PUT blob page":
		switch {
		case h.Get("x-ms-copy-source") != "":
			key += " fromurl"
		case strings.EqualFold(h.Get("x-ms-page-write"), "clear"):
			key += " clear"
		}
	case "GET blob pagelist":
		if c.q.Has("prevsnapshot") || h.Get("x-ms-previous-snapshot-url") != "" {
			key += " diff"
		}
	}
	return operations(key)
}

// operations is the table of what the simulator knows.
func operations(key string) *operation {
	switch key {
	case "GET blob":
		return &operation{"GetBlob", "r", true, getBlob}
	case "HEAD blob":
		return &operation{"GetBlobProperties", "r", true, headBlob}
	case "PUT blob":
		return &operation{"PutBlob", "cw", false, putBlob}
	case "PUT blob copy", "PUT blob fromurl":
		return &operation{"CopyBlob", "cw", false, copyBlob}
	case "PUT blob incrementalcopy":
		return &operation{"IncrementalCopyBlob", "w", false, copyIncremental}
	case "DELETE blob":
		return &operation{"DeleteBlob", "dx", false, deleteBlob}
	case "PUT blob page":
		return &operation{"PutPage", "w", true, putPage}
	case "PUT blob page clear":
		return &operation{"ClearPage", "w", true, clearPage}
	case "PUT blob page fromurl":
		return &operation{"PutPageFromURL", "w", true, putPageFromURL}
	case "GET blob pagelist":
		return &operation{"GetPageRanges", "r", true, getPageRanges}
	case "GET blob pagelist diff":
		return &operation{"GetPageRangesDiff", "r", true, getPageRangesDiff}
	case "PUT blob properties":
		return &operation{"SetBlobProperties", "w", false, setProperties}
	case "PUT blob metadata":
		return &operation{"SetBlobMetadata", "w", false, setMetadata}
	case "GET blob metadata", "HEAD blob metadata":
		return &operation{"GetBlobMetadata", "r", true, headBlob}
	case "PUT blob snapshot":
		return &operation{"SnapshotBlob", "cw", false, snapshotBlob}
	case "PUT blob immutabilityPolicies":
		return &operation{"SetBlobImmutabilityPolicy", "i", false, setImmutability}
	case "DELETE blob immutabilityPolicies":
		return &operation{"DeleteBlobImmutabilityPolicy", "i", false, deleteImmutability}
	case "PUT blob legalhold":
		return &operation{"SetBlobLegalHold", "i", false, setLegalHold}
	case "PUT container container":
		return &operation{"CreateContainer", "", false, createContainer}
	case "DELETE container container":
		return &operation{"DeleteContainer", "", false, deleteContainer}
	case "GET container container", "HEAD container container", "GET container container metadata":
		return &operation{"GetContainerProperties", "", false, getContainer}
	case "PUT container container metadata":
		return &operation{"SetContainerMetadata", "", false, setContainerMetadata}
	case "GET container container list":
		return &operation{"ListBlobs", "l", false, listBlobs}
	case "GET service list":
		return &operation{"ListContainers", "", false, listContainers}
	case "POST service service userdelegationkey":
		return &operation{"GetUserDelegationKey", "", false, userDelegationKey}
	case "GET service account properties", "HEAD service account properties", "GET container account properties", "HEAD container account properties",
		"GET blob properties", "HEAD blob properties":
		return &operation{"GetAccountInformation", "r", false, accountInformation}
	}
	return nil
}

// accountInformation answers with the kind of the account.
func accountInformation(c *call) error {
	h := c.w.Header()
	h.Set("x-ms-sku-name", "Standard_LRS")
	h.Set("x-ms-account-kind", "StorageV2")
	h.Set("x-ms-is-hns-enabled", "false")
	c.w.WriteHeader(http.StatusOK)
	return nil
}
