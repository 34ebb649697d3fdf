package s3test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Kind is a way in which a request goes wrong.
type Kind int

// The kinds.
const (
	Refuse      Kind = iota // answers Status and Code and does nothing
	DropRequest             // closes the connection and does nothing
	LoseAnswer              // does it, and closes the connection
	StallAnswer             // does nothing and never answers
	CutBody                 // closes the connection after At bytes of the body
	StallBody               // stops after At bytes of the body
	Portal                  // does nothing and answers 200 with a web page
	BareStatus              // does nothing and answers Status as a proxy would, without S3's code
)

// Fault spoils requests.
type Fault struct {
	Op    string
	Key   string // what the key must contain; empty for all
	Skip  int    // requests to be spared first
	Times int    // requests to be spoiled; 0 means one, -1 all
	Kind  Kind
	At    int

	Status int
	Code   string
	Header map[string]string
}

type armed struct {
	Fault
	fired int
}

// Inject arms faults. The test fails if one has not fired in the end.
func (s *Server) Inject(t testing.TB, faults ...Fault) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		if f.Times == 0 {
			f.Times = 1
		}
		a := &armed{Fault: f}
		s.faults = append(s.faults, a)
		t.Cleanup(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if a.fired == 0 || a.Times > 0 && a.fired < a.Times {
				t.Errorf("fault %+v fired %d times", a.Fault, a.fired)
			}
		})
	}
}

// take returns the fault for a request. The caller holds the lock.
func (s *Server) take(q *request) *armed {
	for _, a := range s.faults {
		if a.Op != q.op || !strings.Contains(q.key, a.Key) || a.Times > 0 && a.fired == a.Times {
			continue
		}
		if a.Skip > 0 {
			a.Skip--
			continue
		}
		a.fired++
		return a
	}
	return nil
}

// before spoils a request that is not to be carried out, and reports that it did.
func (s *Server) before(q *request, a *armed) bool {
	for name, value := range a.Header {
		q.w.Header().Set(name, value)
	}
	switch a.Kind {
	case Refuse:
		s.refuse(q, a.Status, a.Code, "injected by a test")
	case DropRequest:
		panic(http.ErrAbortHandler)
	case StallAnswer:
		_, _ = io.Copy(io.Discard, q.Body) // only then the server notices a client that leaves
		<-q.Context().Done()
		panic(http.ErrAbortHandler)
	case Portal:
		q.w.Header().Del("X-Amz-Request-Id")
		q.w.Header().Set("Content-Type", "text/html")
		if q.Method != http.MethodHead {
			_, _ = fmt.Fprint(q.w, "<html><body>Please accept the terms of the hotel</body></html>")
		}
	case BareStatus:
		q.w.Header().Del("X-Amz-Request-Id")
		q.w.WriteHeader(a.Status)
	default:
		return false
	}
	return true
}

// after spoils the answer to a request that is carried out. What it returns runs
// when that is done.
func (s *Server) after(q *request, a *armed) func() {
	switch a.Kind {
	case LoseAnswer:
		q.w = httptest.NewRecorder()
		return func() { panic(http.ErrAbortHandler) }
	case CutBody, StallBody:
		q.w = &spoiledWriter{ResponseWriter: q.w, q: q, left: a.At, stall: a.Kind == StallBody}
	}
	return func() {}
}

// spoiledWriter ends a body early.
type spoiledWriter struct {
	http.ResponseWriter
	q     *request
	left  int
	stall bool
}

func (w *spoiledWriter) Write(p []byte) (int, error) {
	if len(p) < w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.left])
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	if w.stall {
		<-w.q.Context().Done()
	}
	panic(http.ErrAbortHandler)
}
