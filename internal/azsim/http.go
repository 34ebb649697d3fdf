package azsim

import (
	"io"
	"net/http"
	"strings"
	"time"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
)

// Handler serves the whole cloud.
func (c *Cloud) Handler() http.Handler {
	pages := c.pages.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		done := c.calls.Begin(r)
		rec := &recorder{ResponseWriter: w}
		defer func() { done(rec.status) }()
		w.Header().Set("Date", c.now().UTC().Format(http.TimeFormat))
		fault := c.faults.Match(r)
		if fault != nil && !fault.Operation {
			fault.Fire()
			if fault.Delay > 0 {
				t := time.NewTimer(fault.Delay)
				defer t.Stop()
				select {
				case <-t.C:
				case <-r.Context().Done():
				}
			}
			if fault.Unsent {
				panic(http.ErrAbortHandler) // net/http cuts the connection, silently
			}
		}
		data := isData(r.URL.Path)
		if fault != nil && fault.Status != 0 && !fault.Operation {
			answerFault(rec, fault, data)
			return
		}
		if fault != nil && fault.Lost {
			rec.lost = true
		}
		if data {
			pages.ServeHTTP(rec, r)
		} else {
			c.control(r, fault).Write(rec)
		}
		if rec.lost {
			rec.status = 0
			panic(http.ErrAbortHandler)
		}
	})
}

func isData(path string) bool {
	return strings.HasPrefix(path, "/md/") || strings.HasPrefix(path, "/storage/")
}

// answerFault words a fault as the plane does: the data plane speaks XML.
func answerFault(w http.ResponseWriter, fault *wire.Injected, data bool) {
	e := fault.Err()
	if !data {
		e.Reply().Write(w)
		return
	}
	if e.RetryAfter > 0 {
		wire.SetRetryAfter(w.Header(), e.RetryAfter)
	}
	w.Header().Set("x-ms-error-code", e.Code)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(e.Status)
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>`+e.Code+`</Code><Message>`+e.Message+`</Message></Error>`)
}

// recorder notes the status, and swallows an answer that is to be lost.
type recorder struct {
	http.ResponseWriter
	status int
	lost   bool
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	if !w.lost {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.lost {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// control answers everything but the data plane.
func (c *Cloud) control(r *http.Request, fault *wire.Injected) wire.Reply {
	id := plane.NewGUID()
	reply, ok := c.dir.Serve(r)
	if !ok {
		if reply, ok = c.compute.BootData(r); !ok {
			var err *wire.Error
			if reply, err = c.plane.Serve(r, fault); err != nil {
				reply = err.Reply()
			}
		}
	}
	if reply.Header == nil {
		reply.Header = http.Header{}
	}
	correlation := r.Header.Get("x-ms-correlation-request-id")
	if correlation == "" {
		correlation = id
	}
	reply.Header.Set("x-ms-request-id", id)
	reply.Header.Set("x-ms-correlation-request-id", correlation)
	reply.Header.Set("x-ms-routing-request-id", strings.ToUpper(c.cfg.Location)+":"+id)
	if reply.Header.Get("x-ms-ratelimit-remaining-subscription-writes") == "" {
		reply.Header.Set("x-ms-ratelimit-remaining-subscription-writes", "1199")
	}
	return reply
}
