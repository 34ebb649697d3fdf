package httpstore_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
)

type answering func(*http.Request) *http.Response

func (f answering) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close()
	}
	return f(r), nil
}

// TestPutExplained: with "maybe" comes in which words the store has refused, and
// when by its clock; other outcomes are those of Put.
func TestPutExplained(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		status int
		header string
		body   string
		out    httpstore.Outcome
		cause  objstore.Cause
	}{
		"firewall":           {403, "AuthorizationFailure", "", httpstore.MaybeExists, objstore.CauseFirewall},
		"firewall, in XML":   {403, "", "<?xml version=\"1.0\"?><Error><Code>NetworkAccessDenied</Code></Error>", httpstore.MaybeExists, objstore.CauseFirewall},
		"signature":          {403, "AuthenticationFailed", "", httpstore.MaybeExists, objstore.CauseKey},
		"there":              {409, "BlobAlreadyExists", "", httpstore.MaybeExists, ""},
		"being deleted":      {409, "ContainerBeingDeleted", "", httpstore.MaybeExists, objstore.CauseContainer},
		"no container":       {404, "ContainerNotFound", "", httpstore.Undecided, objstore.CauseContainer},
		"busy":               {503, "ServerBusy", "", httpstore.Undecided, objstore.CauseThrottled},
		"another store":      {403, "", "<Error><Code>AccessDenied</Code></Error>", httpstore.MaybeExists, ""},
		"created":            {201, "", "", httpstore.Created, ""},
		"not a code at all":  {403, "<script>", "", httpstore.MaybeExists, ""},
		"busy, another word": {503, "SlowDown", "", httpstore.Undecided, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := httpstore.NewUploader(httpstore.UploaderConfig{Transport: answering(func(r *http.Request) *http.Response {
				h := http.Header{"Date": {at.Format(http.TimeFormat)}, "X-Ms-Error-Code": {tt.header}}
				if tt.status == 201 {
					h.Set("ETag", `"1"`)
				}
				return &http.Response{StatusCode: tt.status, Header: h, Body: io.NopCloser(strings.NewReader(tt.body)), Request: r}
			})})
			out, why, err := u.PutExplained(t.Context(), "https://store.invalid/c/x?sig=secret", nil, bytes.NewReader([]byte("x")), 1)
			if out != tt.out || (why != nil) != (out == httpstore.MaybeExists) || (err != nil) != (out == httpstore.Undecided) {
				t.Fatalf("%v, %v, %v", out, why, err)
			}
			var e *httpstore.UploadError
			if why != nil {
				err = why
			}
			if err == nil {
				return
			}
			if !errors.As(err, &e) || !e.At.Equal(at) || e.Status != tt.status || objstore.CauseOf(err) != tt.cause || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v (cause %q, at %v)", err, objstore.CauseOf(err), e.At)
			}
		})
	}
}
