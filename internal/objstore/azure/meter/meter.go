// Package meter counts what a program asks of Azure Blob Storage in the classes
// in which Microsoft bills it, and turns the counts into money by prices that
// the caller gives.
//
// It promises cheap counting (atomic counters, no lock) of every request that
// passes the Meter, attempts that were repeated included, because each of them
// is billed. What other programs ask, agents with signed URLs among them, it
// does not see: Plan predicts that.
//
// Source of the classes: "Map each REST operation to a price" (Azure Blob
// Storage documentation), column general-purpose v2. Requests that fail to
// authenticate are not billed, other failures are.
package meter

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Stats are counts of requests by billing class, and bytes. The zero value is
// "nothing yet"; two of them can be added and subtracted.
type Stats struct {
	Writes  int64 // Put Blob, Put Block, Put Page, copies, Set Blob Tier
	Lists   int64 // List Blobs, List Containers, Create Container
	Reads   int64 // Get Blob, Get Page Ranges
	Others  int64 // properties, metadata, snapshots, policies, leases, keys for signing
	Deletes int64 // free

	Unbilled  int64 // refused before the identity was known, or never answered
	Throttled int64 // answered 429 or 503; they are in their class, too

	BytesSent     int64 // bodies of requests; free of charge into Azure
	BytesReceived int64 // bodies of answers; what leaves the region is billed
}

// Add returns the sum.
func (s Stats) Add(o Stats) Stats { return s.combine(o, 1) }

// Sub returns what came on top of o.
func (s Stats) Sub(o Stats) Stats { return s.combine(o, -1) }

func (s Stats) combine(o Stats, sign int64) Stats {
	return Stats{
		Writes: s.Writes + sign*o.Writes, Lists: s.Lists + sign*o.Lists, Reads: s.Reads + sign*o.Reads, Others: s.Others + sign*o.Others,
		Deletes: s.Deletes + sign*o.Deletes, Unbilled: s.Unbilled + sign*o.Unbilled, Throttled: s.Throttled + sign*o.Throttled,
		BytesSent: s.BytesSent + sign*o.BytesSent, BytesReceived: s.BytesReceived + sign*o.BytesReceived,
	}
}

// class is what a request is billed as.
type class int

const (
	write class = iota
	list
	read
	other
	free
	unbilled
	classes
)

// Meter is an http.RoundTripper that counts what goes through it. It is safe
// for concurrent use.
type Meter struct {
	host      string
	next      http.RoundTripper
	count     [classes]atomic.Int64
	throttled atomic.Int64
	sent      atomic.Int64
	received  atomic.Int64
}

// New counts the requests to host (with the port, if there is one in the
// address) in front of next. What goes elsewhere, such as signing in, passes
// uncounted.
func New(host string, next http.RoundTripper) *Meter { return &Meter{host: host, next: next} }

// Stats returns what was counted so far. Bytes of bodies that are still under
// way count as they move.
func (m *Meter) Stats() Stats {
	return Stats{
		Writes: m.count[write].Load(), Lists: m.count[list].Load(), Reads: m.count[read].Load(), Others: m.count[other].Load(),
		Deletes: m.count[free].Load(), Unbilled: m.count[unbilled].Load(), Throttled: m.throttled.Load(),
		BytesSent: m.sent.Load(), BytesReceived: m.received.Load(),
	}
}

// RoundTrip sends the request and counts it.
func (m *Meter) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != m.host {
		return m.next.RoundTrip(r)
	}
	c := classify(r.Method, r.URL)
	if r.Body != nil && r.Body != http.NoBody {
		// A RoundTripper must not alter the request it was given.
		copied := *r
		copied.Body = &counted{ReadCloser: r.Body, n: &m.sent}
		r = &copied
	}
	resp, err := m.next.RoundTrip(r)
	if err != nil {
		m.count[unbilled].Add(1)
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		m.throttled.Add(1)
	case http.StatusUnauthorized, http.StatusForbidden:
		switch header(resp.Header, "x-ms-error-code") {
		case "AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation":
			c = unbilled
		}
	}
	m.count[c].Add(1)
	if resp.Body != nil && resp.Body != http.NoBody {
		resp.Body = &counted{ReadCloser: resp.Body, n: &m.received}
	}
	return resp, nil
}

// CloseIdleConnections serves http.Client.
func (m *Meter) CloseIdleConnections() {
	if c, ok := m.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// header finds a header whose name may have been written in lower case.
func header(h http.Header, name string) string {
	if v := h.Get(name); v != "" {
		return v
	}
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// classify finds the class by the method and the parameters. What it does not
// know is a write, the dearest class, if it can change something.
func classify(method string, u *url.URL) class {
	q := u.Query()
	comp, restype := strings.ToLower(q.Get("comp")), strings.ToLower(q.Get("restype"))
	switch {
	case method == http.MethodDelete && comp == "":
		return free
	case method == http.MethodDelete:
		return other // Delete Immutability Policy
	case comp == "list", comp == "blobs":
		return list // List Blobs, List Containers, Find Blobs by Tags
	case restype == "container" && method == http.MethodPut && (comp == "" || comp == "undelete"):
		return list
	case restype != "":
		return other // properties, access policies, leases and keys of container and account
	}
	switch comp {
	case "metadata", "properties", "tags", "lease", "legalhold", "immutabilitypolicies", "expiry", "copy", "snapshot", "incrementalcopy", "batch":
		return other
	case "blocklist":
		if method == http.MethodGet {
			return other
		}
	case "query":
		return read
	}
	switch method {
	case http.MethodGet:
		return read // Get Blob, Get Page Ranges
	case http.MethodHead, http.MethodOptions:
		return other
	}
	return write // Put Blob, Put Block, Put Page, copies; Set Blob Tier, of which raising the tier is only a read
}

// counted counts the bytes of a body.
type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// Prices are what the caller pays, in any one currency: per 10,000 requests,
// and per GiB that leaves the region. They differ by region, tier, redundancy
// and contract, and change; take them from the account's price list. Example
// (made up, not a price list): Writes 0.05, Lists 0.05, Reads 0.004, Others
// 0.004, Egress 0.08.
type Prices struct {
	Writes, Lists, Reads, Others float64 // per 10,000
	Egress                       float64 // per GiB; 0 for readers in the account's own region
}

// Bill is what Stats cost.
type Bill struct {
	Writes, Lists, Reads, Others, Egress float64
}

// Total is the sum.
func (b Bill) Total() float64 { return b.Writes + b.Lists + b.Reads + b.Others + b.Egress }

// Cost prices the counts: each class by the 10,000, what was received by the
// GiB. Capacity is not in it. All of BytesReceived counts as egress, so for a
// vault in the account's region Egress must be 0.
func Cost(s Stats, p Prices) Bill {
	const per = 10_000
	return Bill{
		Writes: float64(s.Writes) * p.Writes / per, Lists: float64(s.Lists) * p.Lists / per,
		Reads: float64(s.Reads) * p.Reads / per, Others: float64(s.Others) * p.Others / per,
		Egress: float64(s.BytesReceived) * p.Egress / (1 << 30),
	}
}

// Load says how one VM is replicated, as far as requests depend on it.
type Load struct {
	Interval time.Duration // of the cycle; above 0
	Parts    float64       // objects of a cut besides the cut itself, on average; 0 if it all fits into one
	Folded   float64       // objects that folding and merging write in a day
	Deleted  float64       // objects that retention deletes in a day
	Lists    float64       // listings in a day, of the vault for this VM
	Bytes    int64         // of an average cut with its parts
}

// Plan predicts the requests of one VM in a day, without repetitions:
//
//	cuts    = 24 h / Interval
//	writes  = cuts × (1 + Parts) + Folded
//	reads   = cuts × (1 + Parts) + Folded   (the vault verifies each object once, folding reads what it replaces)
//	others  = cuts × (1 + Parts)            (Get Blob Properties before a read)
//	lists   = Lists, deletes = Deleted (free)
//
// So a cycle of 30 seconds makes 2,880 cuts a day, one of 5 minutes 288 and one
// of 15 minutes 96, and as many writes as long as a cut fits into one object.
func Plan(l Load) Stats {
	if l.Interval <= 0 {
		return Stats{}
	}
	cuts := float64(24*time.Hour) / float64(l.Interval)
	objects := cuts * (1 + l.Parts)
	return Stats{
		Writes: round(objects + l.Folded), Reads: round(objects + l.Folded), Others: round(objects), Lists: round(l.Lists), Deletes: round(l.Deleted),
		BytesSent: round(cuts * float64(l.Bytes)), BytesReceived: round(cuts * float64(l.Bytes)),
	}
}

func round(f float64) int64 { return int64(f + 0.5) }
