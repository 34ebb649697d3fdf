package s3_test

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/s3"
)

// canned answers every request in the same way.
func canned(t *testing.T, status int, header map[string]string, body string) *s3.Bucket {
	t.Helper()
	return newBucket(t, s3.Config{
		Bucket: "bucket", Region: "eu-test-1", Endpoint: "http://s3.test", PathStyle: true, AccessKeyID: "a", SecretAccessKey: "b",
		Attempts: 2, BaseDelay: time.Millisecond, MaxDelay: time.Millisecond,
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			h := make(http.Header)
			for name, value := range header {
				h.Set(name, value)
			}
			length := int64(len(body))
			if text := h.Get("Content-Length"); text != "" {
				var err error
				if length, err = strconv.ParseInt(text, 10, 64); err != nil {
					return nil, err
				}
			} else if length > 0 {
				h.Set("Content-Length", strconv.FormatInt(length, 10))
			}
			text := body
			if r.Method == http.MethodHead {
				text = ""
			}
			return &http.Response{Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
				Header: h, Body: io.NopCloser(strings.NewReader(text)), ContentLength: length, Request: r}, nil
		}),
	})
}

const listHead = `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><Prefix>v1/</Prefix>`

// TestOddListings: an answer that is no listing is never an empty one.
func TestOddListings(t *testing.T) {
	t.Parallel()
	entry := func(key string) string {
		return "<Contents><Key>" + key + "</Key><LastModified>2026-11-01T10:00:00.000Z</LastModified><Size>3</Size></Contents>"
	}
	for name, body := range map[string]string{
		"nothing":                 "",
		"web page":                "<html><body>hello</body></html>",
		"no truncation":           listHead + entry("v1/a") + "</ListBucketResult>",
		"cut off":                 listHead + "<IsTruncated>false</IsTruncated>" + entry("v1/a"),
		"goes on, nowhere":        listHead + "<IsTruncated>true</IsTruncated>" + entry("v1/a") + "</ListBucketResult>",
		"outside the prefix":      listHead + "<IsTruncated>false</IsTruncated>" + entry("v2/a") + "</ListBucketResult>",
		"out of order":            listHead + "<IsTruncated>false</IsTruncated>" + entry("v1/b") + entry("v1/a") + "</ListBucketResult>",
		"twice":                   listHead + "<IsTruncated>false</IsTruncated>" + entry("v1/a") + entry("v1/a") + "</ListBucketResult>",
		"without size":            listHead + "<IsTruncated>false</IsTruncated><Contents><Key>v1/a</Key></Contents></ListBucketResult>",
		"error with status 200":   "<Error><Code>InternalError</Code><Message>x</Message></Error>",
		"another kind of listing": `<ListAllMyBucketsResult><Owner/><Buckets/></ListAllMyBucketsResult>`,
	} {
		err := canned(t, 200, nil, body).List(t.Context(), "v1/", func(objstore.Info) error { return nil })
		if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The pattern itself is one that is taken.
	n := 0
	err := canned(t, 200, nil, listHead+"<IsTruncated>false</IsTruncated>"+entry("v1/a")+entry("v1/b")+"</ListBucketResult>").
		List(t.Context(), "v1/", func(objstore.Info) error { n++; return nil })
	if err != nil || n != 2 {
		t.Errorf("%d objects, %v", n, err)
	}
}

// TestOddObjects: an answer that is not about the object is no description and
// no part of it.
func TestOddObjects(t *testing.T) {
	t.Parallel()
	when := "Sun, 01 Nov 2026 10:00:00 GMT"
	for name, h := range map[string]map[string]string{
		"no ETag": {"Last-Modified": when},
		"no time": {"ETag": `"x"`},
	} {
		if _, err := canned(t, 200, h, "").Head(t.Context(), "v1/a"); !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("head, %s: %v", name, err)
		}
	}
	for name, tt := range map[string]struct {
		status int
		h      map[string]string
		body   string
	}{
		"no ETag":          {206, map[string]string{"Content-Range": "bytes 2-4/10"}, "234"},
		"no range":         {206, map[string]string{"ETag": `"x"`}, "234"},
		"whole object":     {200, map[string]string{"ETag": `"x"`}, "0123456789"},
		"another start":    {206, map[string]string{"ETag": `"x"`, "Content-Range": "bytes 1-3/10"}, "123"},
		"too much":         {206, map[string]string{"ETag": `"x"`, "Content-Range": "bytes 2-5/10"}, "2345"},
		"too little":       {206, map[string]string{"ETag": `"x"`, "Content-Range": "bytes 2-3/10"}, "23"},
		"length disagrees": {206, map[string]string{"ETag": `"x"`, "Content-Range": "bytes 2-4/10"}, "23"},
		"nonsense":         {206, map[string]string{"ETag": `"x"`, "Content-Range": "bytes 4-2/10"}, "234"},
	} {
		if body, err := canned(t, tt.status, tt.h, tt.body).Get(t.Context(), "v1/a", 2, 3); !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("get, %s: %v, %v", name, body, err)
		}
	}
	got, err := canned(t, 206, map[string]string{"ETag": `"x"`, "Content-Range": "bytes 2-4/10"}, "234").Get(t.Context(), "v1/a", 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(got); err != nil || string(data) != "234" {
		t.Errorf("%q, %v", data, err)
	}
	_ = got.Close()

	// A checksum of parts is not the SHA-256 of the object.
	for name, h := range map[string]map[string]string{
		"of parts": {"X-Amz-Checksum-Sha256": checksum([]byte("x")) + "-3", "X-Amz-Checksum-Type": "COMPOSITE"},
		"nonsense": {"X-Amz-Checksum-Sha256": "?"},
		"short":    {"X-Amz-Checksum-Sha256": "YWJj"},
	} {
		h["ETag"], h["Last-Modified"], h["Content-Length"] = `"x"`, when, "7"
		info, err := canned(t, 200, h, "").Head(t.Context(), "v1/a")
		if err != nil || info.SHA256 != [32]byte{} || info.Size != 7 {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}
