package s3_test

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/s3"
)

// attackSigned is a holder of a signed URL who wants more than was granted.
func attackSigned(t *testing.T, b *s3.Bucket, transport http.RoundTripper) {
	t.Helper()
	ctx := t.Context()
	up := httpstore.NewUploader(httpstore.UploaderConfig{Transport: transport})
	client := &http.Client{Transport: transport}
	data, other := []byte("the sealed cut"), []byte("other contents")
	signed, err := b.SignPut(ctx, "v1/m/cut-1", int64(len(data)), sha256.Sum256(data), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, method, url string, body []byte, change func(http.Header)) {
		t.Helper()
		status := rawRequest(t, client, method, url, signed.Headers, body, change)
		if status/100 == 2 {
			t.Errorf("%s: status %d", what, status)
		}
		if _, err := b.Head(ctx, "v1/m/cut-1"); !errors.Is(err, objstore.ErrNotExist) {
			t.Fatalf("after %s: the object is there, or %v", what, err)
		}
	}
	keep := func(http.Header) {}
	refused("other bytes", http.MethodPut, signed.URL, other, keep)
	refused("other bytes with their checksum", http.MethodPut, signed.URL, other, func(h http.Header) {
		h.Set("X-Amz-Checksum-Sha256", checksum(other))
	})
	refused("no checksum", http.MethodPut, signed.URL, other, func(h http.Header) { h.Del("X-Amz-Checksum-Sha256") })
	refused("another length", http.MethodPut, signed.URL, append(data, '!'), keep)
	refused("no condition", http.MethodPut, signed.URL, data, func(h http.Header) { h.Del("If-None-Match") })
	refused("another condition", http.MethodPut, signed.URL, data, func(h http.Header) { h.Set("If-None-Match", `"x"`) })
	refused("an archive class, unsigned", http.MethodPut, signed.URL, data, func(h http.Header) { h.Set("X-Amz-Storage-Class", "GLACIER") })
	refused("a lock, unsigned", http.MethodPut, signed.URL, data, func(h http.Header) {
		h.Set("X-Amz-Object-Lock-Mode", s3.Compliance)
		h.Set("X-Amz-Object-Lock-Retain-Until-Date", time.Now().Add(1e5*time.Hour).UTC().Format(time.RFC3339))
	})
	refused("an archive class, in the query", http.MethodPut, signed.URL+"&x-amz-storage-class=GLACIER", data, keep)
	refused("GET", http.MethodGet, signed.URL, nil, keep)
	refused("DELETE", http.MethodDelete, signed.URL, nil, keep)
	refused("another key", http.MethodPut, otherKey(t, signed.URL), data, keep)
	if _, err := b.Head(ctx, "v1/m/cut-2"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("another key: %v", err)
	}

	if outcome, err := up.Put(ctx, signed.URL, signed.Headers, readerAt(data), int64(len(data))); err != nil || outcome != httpstore.Created {
		t.Fatalf("honest upload: %v, %v", outcome, err)
	}
	if outcome, err := up.Put(ctx, signed.URL, signed.Headers, readerAt(data), int64(len(data))); err != nil || outcome != httpstore.MaybeExists {
		t.Errorf("second upload: %v, %v", outcome, err)
	}
	for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodHead} {
		if status := rawRequest(t, client, method, signed.URL, signed.Headers, nil, keep); status/100 == 2 {
			t.Errorf("%s of the stored object: status %d", method, status)
		}
	}
	if got, err := objstore.ReadAll(ctx, b, "v1/m/cut-1", 100); err != nil || string(got) != string(data) {
		t.Errorf("stored: %q, %v", got, err)
	}
	if info, err := objstore.Digest(ctx, b, "v1/m/cut-1"); err != nil || info.SHA256 != sha256.Sum256(data) {
		t.Errorf("digest: %v", err)
	}
}

// attackRetained tries to shorten the life of retained objects. without is the
// same place, opened without retention.
func attackRetained(t *testing.T, b *s3.Bucket, without objstore.Bucket, transport http.RoundTripper) {
	t.Helper()
	ctx := t.Context()
	if err := b.Open(ctx); err != nil {
		t.Fatal(err)
	}
	put(t, b, "v1/cut", "contents")
	until := time.Now().Add(time.Hour)
	denied := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, objstore.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	denied("delete", b.Delete(ctx, "v1/cut"))
	if err := b.Retain(ctx, "v1/cut", until.Add(-30*time.Minute)); err != nil {
		t.Errorf("retention that is shorter than the present one: %v", err)
	}
	if err := b.Retain(ctx, "v1/cut", until.Add(24*time.Hour)); err != nil {
		t.Errorf("longer retention: %v", err)
	}
	err := b.Delete(ctx, "v1/cut")
	denied("delete after extending", err)
	if want := until.Add(24 * time.Hour).UTC().Format("2006-01-02"); err != nil && !contains(err.Error(), want) {
		t.Errorf("message without the date %s: %v", want, err)
	}
	if err := b.Retain(ctx, "v1/absent", until); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("retain what is absent: %v", err)
	}

	// By a signed URL, too.
	data := []byte("by a signed URL")
	signed, err := b.SignPut(ctx, "v1/signed", int64(len(data)), sha256.Sum256(data), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport}
	if status := rawRequest(t, client, http.MethodPut, signed.URL, signed.Headers, data, func(h http.Header) {
		h.Set("X-Amz-Object-Lock-Retain-Until-Date", time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
	}); status/100 == 2 {
		t.Errorf("a holder made the retention shorter")
	}
	up := httpstore.NewUploader(httpstore.UploaderConfig{Transport: transport})
	if outcome, err := up.Put(ctx, signed.URL, signed.Headers, readerAt(data), int64(len(data))); err != nil || outcome != httpstore.Created {
		t.Fatalf("upload: %v, %v", outcome, err)
	}
	denied("delete of what came by a signed URL", b.Delete(ctx, "v1/signed"))

	// A vault without the setting gets a delete marker, or a refusal with the date.
	switch err := without.Delete(ctx, "v1/signed"); {
	case err == nil:
		if _, err := b.Head(ctx, "v1/signed"); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("head behind a delete marker: %v", err)
		}
	default:
		denied("plain delete", err)
	}
}
