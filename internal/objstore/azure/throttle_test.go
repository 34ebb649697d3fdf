package azure_test

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
)

// script answers one request after the other, the last answer for ever.
type script struct {
	steps []step
	n     int
}

type step struct {
	status           int
	code, retryAfter string
	header           http.Header
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	at := s.steps[min(s.n, len(s.steps)-1)]
	s.n++
	h := http.Header{"X-Ms-Request-Id": {"r1"}, "Date": {time.Now().UTC().Format(http.TimeFormat)}}
	if at.code != "" {
		h.Set("X-Ms-Error-Code", at.code)
	}
	if at.retryAfter != "" {
		h.Set("Retry-After", at.retryAfter)
	}
	for k, v := range at.header {
		h[k] = v
	}
	return &http.Response{StatusCode: at.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

// TestThrottled measures how long calls wait, by the bubble's clock.
func TestThrottled(t *testing.T) {
	t.Parallel()
	good := step{status: 200, header: http.Header{"Etag": {`"0x1"`}, "Last-Modified": {"Mon, 23 Nov 2026 00:00:00 GMT"}, "Content-Length": {"5"}}}
	for _, tt := range []struct {
		name     string
		steps    []step
		kind     error
		cause    objstore.Cause
		requests int
		min, max time.Duration
	}{
		{"busy, then good", []step{{status: 503, code: "ServerBusy"}, {status: 503, code: "ServerBusy"}, good}, nil, "", 3, 300 * time.Millisecond, time.Second},
		{"waits as asked", []step{{status: 503, code: "ServerBusy", retryAfter: "7"}, good}, nil, "", 2, 7 * time.Second, 8 * time.Second},
		{"waits as asked for 429", []step{{status: 429, retryAfter: "3"}, {status: 429, retryAfter: "3"}, good}, nil, "", 3, 6 * time.Second, 7 * time.Second},
		{"but not for ever", []step{{status: 503, code: "ServerBusy", retryAfter: "3600"}, good}, nil, "", 2, 10 * time.Second, 11 * time.Second},
		{"busy for ever", []step{{status: 503, code: "ServerBusy"}}, objstore.ErrUnavailable, objstore.CauseThrottled, 6, time.Second, time.Minute},
		{"container goes", []step{{status: 409, code: "ContainerBeingDeleted"}}, objstore.ErrUnavailable, objstore.CauseContainer, 6, time.Second, time.Minute},
		{"container comes back", []step{{status: 409, code: "ContainerBeingDeleted"}, good}, nil, "", 2, 0, time.Second},
		{"container is gone", []step{{status: 404, code: "ContainerNotFound"}}, objstore.ErrUnavailable, objstore.CauseContainer, 1, 0, 0},
		{"firewall", []step{{status: 403, code: "AuthorizationFailure"}}, objstore.ErrDenied, objstore.CauseFirewall, 1, 0, 0},
		{"absent", []step{{status: 404, code: "BlobNotFound"}}, objstore.ErrNotExist, "", 1, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{steps: tt.steps}
				b := newBucket(t, azure.Config{Container: "replicas", Account: "contoso", AccountKey: base64.StdEncoding.EncodeToString([]byte("key")), Transport: s})
				begin := time.Now()
				_, err := b.Head(t.Context(), "v1/x")
				took := time.Since(begin)
				if !errors.Is(err, tt.kind) || tt.kind == nil && err != nil || objstore.CauseOf(err) != tt.cause {
					t.Errorf("%v (cause %q)", err, objstore.CauseOf(err))
				}
				if tt.kind != objstore.ErrNotExist && errors.Is(err, objstore.ErrNotExist) {
					t.Errorf("%v claims absence", err)
				}
				if s.n != tt.requests || took < tt.min || took > tt.max {
					t.Errorf("%d requests in %v", s.n, took)
				}
			})
		})
	}
}

// TestDeleteIsNoSuccess: what only looks like "not there" does not pass for a
// deletion.
func TestDeleteIsNoSuccess(t *testing.T) {
	t.Parallel()
	for _, at := range []step{{status: 404, code: "ContainerNotFound"}, {status: 409, code: "ContainerBeingDeleted"}, {status: 404}, {status: 404, code: "ResourceNotFound"}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBucket(t, azure.Config{Container: "replicas", Account: "contoso", AccountKey: base64.StdEncoding.EncodeToString([]byte("key")), Transport: &script{steps: []step{at}}})
			if err := b.Delete(t.Context(), "v1/x"); !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) {
				t.Errorf("%+v: %v", at, err)
			}
		})
	}
}
