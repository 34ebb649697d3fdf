package pagestore

import (
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"
)

// Fault says what goes wrong with which requests. Empty conditions match all.
type Fault struct {
	Method    string         // "PUT"
	Path      *regexp.Regexp // of the path, without the query
	Operation string         // name as in Counts, "PutPage"
	Skip      int            // how many that match pass unharmed first
	Times     int            // how often it fires; 0 = without end

	Do     func(*http.Request) // called first, e.g. to delete a container under way; may be nil
	Delay  time.Duration       // before anything is done; ends early if the client goes away
	Status int                 // answer this instead of acting; 0 = act
	Code   string              // x-ms-error-code with Status
	// RetryAfter with Status, in whole seconds; 0 = no such header.
	RetryAfter time.Duration
	// Cut breaks the connection instead of answering: after acting, or if Status
	// is set without acting. Go's HTTP client repeats a GET or HEAD by itself when
	// that happens on a connection it used before; Times counts those too.
	Cut bool
}

// Injected is a fault that was put in.
type Injected struct {
	all   *faults
	fault Fault
	seen  int
	fired int
}

// faults is the list of injected faults.
type faults struct {
	mu   sync.Mutex
	list []*Injected
}

// Fault puts a fault in. Of several that match, the one put in first fires.
func (s *Store) Fault(f Fault) *Injected {
	in := &Injected{all: &s.faults, fault: f}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.list = append(s.faults.list, in)
	return in
}

// Fired is how many requests it has hit so far.
func (in *Injected) Fired() int {
	in.all.mu.Lock()
	defer in.all.mu.Unlock()
	return in.fired
}

// Remove takes the fault out. It is idempotent.
func (in *Injected) Remove() {
	in.all.mu.Lock()
	defer in.all.mu.Unlock()
	in.all.list = slices.DeleteFunc(in.all.list, func(other *Injected) bool { return other == in })
}

// match finds the fault that hits a request, and counts it.
func (fs *faults) match(r *http.Request, operation string) (Fault, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, in := range fs.list {
		f := in.fault
		if f.Method != "" && f.Method != r.Method || f.Operation != "" && f.Operation != operation || f.Path != nil && !f.Path.MatchString(r.URL.Path) {
			continue
		}
		if in.seen++; in.seen <= f.Skip || f.Times > 0 && in.fired >= f.Times {
			continue
		}
		in.fired++
		return f, true
	}
	return Fault{}, false
}

// Count is what was asked of one operation.
type Count struct {
	Requests int64 // all, also those that failed
	Failed   int64 // answered with 400 or above, or not at all
	In, Out  int64 // bytes of bodies that were received and sent
}

// meter counts requests by operation.
type meter struct {
	mu     sync.Mutex
	counts map[string]Count
}

func (m *meter) add(operation string, c Count) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts == nil {
		m.counts = map[string]Count{}
	}
	sum := m.counts[operation]
	sum.Requests, sum.Failed, sum.In, sum.Out = sum.Requests+c.Requests, sum.Failed+c.Failed, sum.In+c.In, sum.Out+c.Out
	m.counts[operation] = sum
}

// Counts tells the requests and bytes so far by the operation's name in the REST
// reference without blanks: PutPage, GetBlob, GetPageRanges …
func (s *Store) Counts() map[string]Count {
	s.meter.mu.Lock()
	defer s.meter.mu.Unlock()
	out := make(map[string]Count, len(s.meter.counts))
	for op, c := range s.meter.counts {
		out[op] = c
	}
	return out
}

// Limits are what one blob or disk takes. Published for page blobs and standard
// disks: 60 MiB/s and 500 requests/s. What is above is answered with 503 ServerBusy.
type Limits struct {
	BytesPerSecond    int64         // 0 = no limit; up to one second's worth at once
	RequestsPerSecond int64         // 0 = no limit
	RetryAfter        time.Duration // sent in whole seconds if not 0
}

// PublishedLimits returns Azure's published limits of one page blob.
func PublishedLimits() Limits { return Limits{BytesPerSecond: 60 << 20, RequestsPerSecond: 500} }

// Limit switches throttling per blob on, or off with the zero value. It goes by
// the real clock.
func (s *Store) Limit(l Limits) {
	s.limiter.mu.Lock()
	defer s.limiter.mu.Unlock()
	s.limiter.limits, s.limiter.spent = l, map[string]*bucket{}
}

// bucket is what a blob may still have.
type bucket struct {
	bytes, requests float64
	at              time.Time
}

type limiter struct {
	mu     sync.Mutex
	limits Limits
	spent  map[string]*bucket
}

// take says whether a request of n bytes may pass. A body larger than what a
// second brings passes alone, when the blob was idle.
func (l *limiter) take(key string, requests, n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limits.BytesPerSecond == 0 && l.limits.RequestsPerSecond == 0 {
		return true
	}
	now := time.Now()
	full := bucket{float64(l.limits.BytesPerSecond), float64(l.limits.RequestsPerSecond), now}
	b := l.spent[key]
	if b == nil {
		b = &full
		l.spent[key] = b
	}
	passed := max(0, now.Sub(b.at).Seconds())
	b.bytes = min(full.bytes, b.bytes+passed*full.bytes)
	b.requests = min(full.requests, b.requests+passed*full.requests)
	b.at = now
	if full.requests > 0 && b.requests < float64(requests) || full.bytes > 0 && b.bytes < min(float64(n), full.bytes) {
		return false
	}
	b.bytes -= float64(n)
	b.requests -= float64(requests)
	return true
}
