package wire

import (
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is something that shall go wrong with certain requests. What is zero
// does not count: a Fault without Method and Path meets every request.
type Fault struct {
	Method string
	Path   string // regular expression for the path, without regard to case
	Query  string // regular expression for the query, e.g. "comp=page"
	Nth    int    // the first matching request that it meets, from 1; 0 = 1
	Times  int    // how many from there; 0 = one, < 0 = all

	Delay      time.Duration // before anything else; ends early with the request
	Status     int           // answer this instead of acting
	Code       string        // of the answer, or of the failing operation
	Message    string
	RetryAfter time.Duration // of an answer with Status; < 0 = no header
	Lost       bool          // act, then cut the connection instead of answering
	Unsent     bool          // cut the connection instead of acting
	Operation  bool          // accept, and end the long-running operation as Failed with Code and Message; what starts none is not met
	Hook       func()        // called when the fault fires, before it acts
}

// Injected is a fault in force.
type Injected struct {
	Fault
	path, query *regexp.Regexp
	seen, fired atomic.Int64
	removed     atomic.Bool
}

// Fired tells how many requests the fault met.
func (i *Injected) Fired() int { return int(i.fired.Load()) }

// Remove ends the fault. It may be called more than once.
func (i *Injected) Remove() { i.removed.Store(true) }

// Fire counts, and calls the hook.
func (i *Injected) Fire() {
	i.fired.Add(1)
	if i.Hook != nil {
		i.Hook()
	}
}

// Err is the fault's error, with defaults for what it does not say.
func (i *Injected) Err() *Error {
	e := &Error{Status: i.Status, Code: i.Code, Message: i.Message, RetryAfter: i.RetryAfter}
	if e.Status == 0 {
		e.Status = http.StatusInternalServerError
	}
	if e.Code == "" {
		e.Code = "InternalServerError"
		if e.Status == http.StatusTooManyRequests {
			e.Code = "TooManyRequests"
		}
	}
	if e.Message == "" {
		e.Message = "The simulator was told to fail this request."
	}
	return e
}

// Faults are the faults in force. The zero value is ready; safe for concurrent use.
type Faults struct {
	mu  sync.Mutex
	all []*Injected
}

// Add puts a fault in force. A Path or Query that is no regular expression panics.
func (f *Faults) Add(fault Fault) *Injected {
	i := &Injected{Fault: fault, path: regexp.MustCompile("(?i)" + fault.Path), query: regexp.MustCompile("(?i)" + fault.Query)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, i)
	return i
}

// Match finds the first fault that meets the request, or nil. All faults count
// the request.
func (f *Faults) Match(r *http.Request) *Injected {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hit *Injected
	for _, i := range f.all {
		if i.removed.Load() || i.Method != "" && !strings.EqualFold(i.Method, r.Method) ||
			!i.path.MatchString(r.URL.Path) || !i.query.MatchString(r.URL.RawQuery) {
			continue
		}
		n := int(i.seen.Add(1))
		first, times := max(1, i.Nth), i.Times
		if times == 0 {
			times = 1
		}
		if hit == nil && n >= first && (times < 0 || n < first+times) {
			hit = i
		}
	}
	return hit
}

// Call is one request as the simulator saw it. Nothing secret is in it: of the
// query only the API version and "comp" are kept.
type Call struct {
	Method, Path string
	APIVersion   string // of ARM; of the data plane the header x-ms-version
	Comp         string // query parameter comp of the data plane
	Status       int    // what was answered; 0 = the connection was cut
}

// Transcript records calls in the order in which they arrived. The zero value is ready; safe for
// concurrent use.
type Transcript struct {
	mu    sync.Mutex
	calls []Call
}

// Begin records a call; the function it returns records the status.
func (t *Transcript) Begin(r *http.Request) func(status int) {
	q := r.URL.Query()
	call := Call{Method: r.Method, Path: r.URL.Path, APIVersion: q.Get("api-version"), Comp: q.Get("comp")}
	if call.APIVersion == "" {
		call.APIVersion = r.Header.Get("x-ms-version")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := len(t.calls)
	t.calls = append(t.calls, call)
	return func(status int) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.calls[at].Status = status
	}
}

// Calls is a copy of what was recorded.
func (t *Transcript) Calls() []Call {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Call(nil), t.calls...)
}
