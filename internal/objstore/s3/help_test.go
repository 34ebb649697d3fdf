package s3_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"holdfast/internal/objstore"
)

func put(t *testing.T, b objstore.Bucket, key, data string) {
	t.Helper()
	if err := b.PutNew(t.Context(), key, strings.NewReader(data), int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
}

func checksum(data []byte) string {
	sum := sha256.Sum256(data)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func readerAt(data []byte) io.ReaderAt { return bytes.NewReader(data) }

func contains(text, part string) bool { return strings.Contains(text, part) }

// otherKey points a signed URL at a neighbour of its object.
func otherKey(t *testing.T, url string) string {
	t.Helper()
	other := strings.Replace(url, "cut-1", "cut-2", 1)
	if other == url {
		t.Fatalf("the URL does not name the key")
	}
	return other
}

// rawRequest sends what a program without scruples would send.
func rawRequest(t *testing.T, client *http.Client, method, url string, headers map[string]string, body []byte, change func(http.Header)) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		switch strings.ToLower(name) {
		case "host", "content-length":
		default:
			req.Header.Set(name, value)
		}
	}
	change(req.Header)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func sha(data []byte) [32]byte { return sha256.Sum256(data) }

func readDir(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	return len(entries), err
}
