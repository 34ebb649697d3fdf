package httpstore

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore"
)

func fixedSigner(t testing.TB) *Signer {
	t.Helper()
	s, err := NewSigner(SignerConfig{BaseURL: "https://vault.example:8443/", Key: bytes.Repeat([]byte{1}, 32),
		Now: func() time.Time { return time.Unix(1_800_000_000, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestGolden pins the wire format, version 1. The signatures were computed with
// another implementation of HMAC (Python) from the text of the package comment.
func TestGolden(t *testing.T) {
	t.Parallel()
	s := fixedSigner(t)
	signed, err := s.SignPut(t.Context(), "v1/m/a/1/cut/0000000000000001.cut", 5, sha256.Sum256([]byte("hello")), time.Unix(1_800_000_060, 0))
	if err != nil {
		t.Fatal(err)
	}
	const wantURL = "https://vault.example:8443/store/v1/o/v1/m/a/1/cut/0000000000000001.cut?exp=1800000060" +
		"&sha256=2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824&sig=KPjTLvnwSBS-3wSiKx7HX9pIjXJtc3F8YcTMFjqj9EM&size=5&v=1"
	if signed.URL != wantURL {
		t.Errorf("URL\n%s\nwant\n%s", signed.URL, wantURL)
	}
	if got := signed.Headers["Content-Digest"]; got != "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:" {
		t.Errorf("Content-Digest %q", got)
	}
	ticket, err := s.Ticket("v1/m/a/", time.Unix(1_800_000_060, 0))
	if err != nil {
		t.Fatal(err)
	}
	const wantTicket = "aG9sZGZhc3QtcmVhZC12MQp2MS9tL2EvCjE4MDAwMDAwNjAK.3IJ57BXb-O5pcvB0oALisKguEiO4G-s6dTI2KXWyQjs"
	if ticket != wantTicket {
		t.Errorf("ticket %s, want %s", ticket, wantTicket)
	}
}

func FuzzVerifyPut(f *testing.F) {
	s := fixedSigner(f)
	signed, err := s.SignPut(f.Context(), "k/a", 5, [32]byte{1}, time.Unix(1_800_000_060, 0))
	if err != nil {
		f.Fatal(err)
	}
	_, query, _ := strings.Cut(signed.URL, "?")
	f.Add("k/a", query)
	f.Add("k/a", "v=1&exp=99999999999999999999&size=-1&sha256=00&sig=AA")
	f.Fuzz(func(t *testing.T, key, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		c, err := s.verifyPut(key, q)
		if err == nil && (key != "k/a" || c.size != 5 || c.sum != [32]byte{1} || c.expires != 1_800_000_060) {
			t.Errorf("accepted a forgery: %q %q", key, query)
		}
	})
}

func FuzzVerifyTicket(f *testing.F) {
	s := fixedSigner(f)
	good, err := s.Ticket("m/a/", time.Unix(1_800_000_060, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(".")
	f.Add(good[:40] + "\r" + good[40:]) // found by this fuzzer: one ticket in two spellings
	f.Add("aG9sZGZhc3QtcmVhZC12MQoKMQo.AAAA")
	// What is signed as something else is no ticket.
	f.Add(b64.EncodeToString([]byte("x\n\n9\n")) + "." + b64.EncodeToString(mac(s.keys[0], "x\n\n9\n")))
	f.Fuzz(func(t *testing.T, ticket string) {
		if prefix, err := s.verifyTicket(ticket); err == nil && (ticket != good || prefix != "m/a/") {
			t.Errorf("accepted a forgery: %q", ticket)
		}
	})
}

func FuzzParsePage(f *testing.F) {
	f.Add([]byte(`{"key":"a/b","size":1,"mtime":2}`+"\n"+`{"end":true}`+"\n"), "a/", "")
	f.Add([]byte(`{"key":"a","sha256":"00"}`+"\n"+`{"end":true,"next":"a"}`), "", "")
	f.Add([]byte(`{"key":"a/b"}`+"\n"), "a", "a/a")
	f.Fuzz(func(t *testing.T, data []byte, prefix, after string) {
		page, next, err := parsePage(data, prefix, after)
		if err != nil {
			return
		}
		last := after
		for _, info := range page {
			if info.Key <= last || !strings.HasPrefix(info.Key, prefix) || objstore.ValidateKey(info.Key) != nil || info.Size < 0 {
				t.Errorf("accepted %+v after %q under %q", info, last, prefix)
			}
			last = info.Key
		}
		if next != "" && (next != last || next <= after) {
			t.Errorf("next page after %q does not move on from %q", next, after)
		}
	})
}

func FuzzRanges(f *testing.F) {
	f.Add("bytes=0-1", int64(10))
	f.Add("bytes=-5", int64(3))
	f.Add("bytes=9223372036854775807-9223372036854775807", int64(1))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		off, length, status := parseRange(header, size)
		if status != http.StatusRequestedRangeNotSatisfiable && (off < 0 || length < 0 || off > size || length > size-off) {
			t.Errorf("%q of %d: %d+%d", header, size, off, length)
		}
		if status == http.StatusPartialContent && length == 0 {
			t.Errorf("%q of %d: empty partial answer", header, size)
		}
		if first, last, total, ok := parseContentRange(header); ok && first >= 0 && (last < first || last >= total) {
			t.Errorf("content range %q: %d-%d/%d", header, first, last, total)
		}
	})
}
