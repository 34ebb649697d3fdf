package azure_test

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newBucket(t *testing.T, c azure.Config) *azure.Bucket {
	t.Helper()
	b, err := azure.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func put(t *testing.T, b objstore.Bucket, key, data string) {
	t.Helper()
	if err := b.PutNew(t.Context(), key, strings.NewReader(data), int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func query(t *testing.T, text string) url.Values {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

// rawRequest sends what a program without scruples would send.
func rawRequest(t *testing.T, transport http.RoundTripper, method, url string, headers map[string]string, body []byte, change func(http.Header)) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		if !strings.EqualFold(name, "content-length") {
			req.Header.Set(name, value)
		}
	}
	if change != nil {
		change(req.Header)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}
