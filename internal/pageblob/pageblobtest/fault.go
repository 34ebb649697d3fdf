// Package pageblobtest is for tests of what writes page blobs: Microsoft's emulator
// Azurite as a process, a transport that breaks requests by plan, and a disk in
// memory. It owns nothing that ships.
package pageblobtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
)

// Fault breaks one request, or all of them from one on.
type Fault struct {
	At     int64  // number of the request, from 1; 0 = none
	Sticky bool   // all later requests, too: the process is dead
	Lost   bool   // the service acts on the request and the answer is lost
	Status int    // answer with this status and Code instead; 0 = a broken connection
	Code   string // x-ms-error-code
	Header http.Header
	Match  func(*http.Request) bool // which requests count; nil = all
}

// Transport counts requests and breaks them by a Fault. It is safe for concurrent use.
type Transport struct {
	Base http.RoundTripper

	mu     sync.Mutex
	fault  Fault
	seen   int64 // since Break
	total  int64
	fired  int64
	broke  string // kind of the first request that the fault hit
	hook   func(*http.Request)
	labels map[string]int64
}

// ErrInjected is the error of a broken connection.
var ErrInjected = errors.New("injected: connection reset")

// Break arms f and begins to count requests from 1.
func (t *Transport) Break(f Fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fault, t.seen, t.fired, t.broke = f, 0, 0, ""
}

// Broke is the kind of the first request that was broken since Break: as in Kinds, and
// for pages whether it writes or clears ("PUT page update", "PUT page clear").
func (t *Transport) Broke() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.broke
}

// Hook sets what is called before each request; nil = nothing.
func (t *Transport) Hook(f func(*http.Request)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hook = f
}

// Fired is how often the fault was injected since Break.
func (t *Transport) Fired() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fired
}

// Seen is how many requests matched since Break.
func (t *Transport) Seen() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen
}

// Total is how many requests were made in all.
func (t *Transport) Total() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// Kinds is how many requests of each kind ("PUT page") were made in all.
func (t *Transport) Kinds() map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]int64{}
	for k, v := range t.labels {
		out[k] = v
	}
	return out
}

func label(r *http.Request) string {
	return r.Method + " " + r.URL.Query().Get("comp")
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	t.total++
	if t.labels == nil {
		t.labels = map[string]int64{}
	}
	t.labels[label(r)]++
	f, hook, fire := t.fault, t.hook, false
	if f.Match == nil || f.Match(r) {
		t.seen++
		if fire = f.At > 0 && (t.seen == f.At || f.Sticky && t.seen > f.At); fire {
			if t.fired++; t.fired == 1 {
				t.broke = label(r)
				for name, v := range r.Header { // the SDK does not write names in Go's way
					if strings.EqualFold(name, "x-ms-page-write") && len(v) == 1 {
						t.broke += " " + v[0]
					}
				}
			}
		}
		// A lost answer is lost once; what follows of a dead process is not even sent.
		f.Lost = f.Lost && t.seen == f.At
	}
	t.mu.Unlock()
	if hook != nil {
		hook(r)
	}
	if !fire {
		return t.Base.RoundTrip(r)
	}
	if f.Lost {
		a, err := t.Base.RoundTrip(r)
		if err == nil {
			_, _ = io.Copy(io.Discard, a.Body)
			_ = a.Body.Close()
		}
		return nil, ErrInjected
	}
	if r.Body != nil {
		_ = r.Body.Close()
	}
	if f.Status == 0 {
		return nil, ErrInjected
	}
	h := http.Header{"X-Ms-Error-Code": {f.Code}}
	for k, v := range f.Header {
		h[k] = v
	}
	return &http.Response{StatusCode: f.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Body: http.NoBody, Request: r}, nil
}

// Disk is a disk in memory as a source.
type Disk []byte

// Size implements pageblob.Source.
func (d Disk) Size() int64 { return int64(len(d)) }

// ReadAt implements pageblob.Source.
func (d Disk) ReadAt(_ context.Context, p []byte, off int64) error {
	if off+int64(len(p)) > int64(len(d)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, d[off:])
	return nil
}

const unit = 64 << 10

var zeroes [unit]byte

// Extents implements pageblob.Source: runs of 64 KiB that are zero are told, so that
// zeroes lie inside of data, too.
func (d Disk) Extents(_ context.Context, off, length int64, fn func(off, n int64, zero bool) error) error {
	for end := off + length; off < end; {
		n := min(unit-off%unit, end-off)
		if err := fn(off, n, bytes.Equal(d[off:off+n], zeroes[:n])); err != nil {
			return err
		}
		off += n
	}
	return nil
}
