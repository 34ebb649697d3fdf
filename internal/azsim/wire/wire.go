// Package wire has what every part of the simulated Azure needs to talk HTTP:
// answers and errors in Azure Resource Manager's shape, access to JSON
// documents, injected faults and the transcript of calls.
package wire

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Error is a refusal as Azure Resource Manager words it (Azure REST, "Common
// error response"): {"error":{"code":…,"message":…}}.
type Error struct {
	Status        int
	Code, Message string
	RetryAfter    time.Duration // < 0 = no header
	Header        http.Header   // further headers, may be nil
}

// Error renders "code: message".
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Errorf makes an Error without Retry-After.
func Errorf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...), RetryAfter: -1}
}

// Body is the document of the error.
func (e *Error) Body() map[string]any {
	return map[string]any{"error": map[string]any{"code": e.Code, "message": e.Message}}
}

// Reply is an answer before it is written.
type Reply struct {
	Status int
	Header http.Header
	Body   any // encoded as JSON; []byte goes out as it is; nil = no body
}

// OK is an answer with a body.
func OK(body any) Reply { return Reply{Status: http.StatusOK, Body: body} }

// Reply is the answer that says the error.
func (e *Error) Reply() Reply {
	h := http.Header{}
	for k, v := range e.Header {
		h[k] = v
	}
	if e.RetryAfter >= 0 {
		SetRetryAfter(h, e.RetryAfter)
	}
	if e.Status == http.StatusTooManyRequests {
		h.Set("x-ms-ratelimit-remaining-subscription-writes", "0")
		h.Set("x-ms-ratelimit-remaining-resource", "Microsoft.Compute/HighCostGet3Min;0")
	}
	return Reply{Status: e.Status, Header: h, Body: e.Body()}
}

// SetRetryAfter tells the client when to come back: Retry-After has whole
// seconds, and x-ms-retry-after-ms, which Microsoft's clients prefer, the exact
// time (at least a millisecond: 0 counts as "not said").
func SetRetryAfter(h http.Header, d time.Duration) {
	h.Set("Retry-After", strconv.Itoa(int(d/time.Second)))
	h.Set("x-ms-retry-after-ms", strconv.FormatInt(max(1, d.Milliseconds()), 10))
}

// Write writes the answer.
func (r Reply) Write(w http.ResponseWriter) {
	for k, v := range r.Header {
		w.Header()[k] = v
	}
	raw, ok := r.Body.([]byte)
	if !ok && r.Body != nil {
		raw, _ = json.Marshal(r.Body) // documents are made of what JSON decoded
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(r.Status)
	_, _ = w.Write(raw)
}

// Get walks into a document; nil if there is nothing. Names are compared
// without regard to case, as Azure does.
func Get(doc any, path ...string) any {
	for _, p := range path {
		m, ok := doc.(map[string]any)
		if !ok {
			return nil
		}
		v, ok := m[p]
		if !ok {
			for k, x := range m {
				if strings.EqualFold(k, p) {
					v = x
					break
				}
			}
		}
		doc = v
	}
	return doc
}

// Str is Get of a string, "" if there is none.
func Str(doc any, path ...string) string {
	s, _ := Get(doc, path...).(string)
	return s
}

// Num is Get of a number.
func Num(doc any, path ...string) (int64, bool) {
	switch n := Get(doc, path...).(type) {
	case float64:
		return int64(n), true
	case json.Number:
		i, err := n.Int64()
		return i, err == nil
	case int:
		return int64(n), true
	case int64:
		return n, true
	case string: // some clients send numbers as text
		i, err := strconv.ParseInt(n, 10, 64)
		return i, err == nil
	}
	return 0, false
}

// Bool is Get of a boolean, false if there is none.
func Bool(doc any, path ...string) bool {
	b, _ := Get(doc, path...).(bool)
	return b
}

// List is Get of an array, nil if there is none.
func List(doc any, path ...string) []any {
	l, _ := Get(doc, path...).([]any)
	return l
}

// Set sets a value, making the objects on the way.
func Set(doc map[string]any, v any, path ...string) {
	for _, p := range path[:len(path)-1] {
		m, ok := doc[p].(map[string]any)
		if !ok {
			m = map[string]any{}
			doc[p] = m
		}
		doc = m
	}
	doc[path[len(path)-1]] = v
}

// Clone is a deep copy by way of JSON; numbers become float64.
func Clone(doc map[string]any) map[string]any {
	raw, err := json.Marshal(doc)
	if err != nil {
		panic("azsim: document can't be encoded: " + err.Error()) // documents are made of what JSON decoded
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		panic("azsim: document can't be decoded: " + err.Error())
	}
	return out
}

// Merge applies a merge patch (RFC 7396) to doc.
func Merge(doc, patch map[string]any) {
	for k, v := range patch {
		if v == nil {
			delete(doc, k)
			continue
		}
		sub, ok := v.(map[string]any)
		old, was := doc[k].(map[string]any)
		if ok && was {
			Merge(old, sub)
			continue
		}
		doc[k] = v
	}
}
