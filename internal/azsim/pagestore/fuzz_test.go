package pagestore_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast/internal/azsim/pagestore"
)

// FuzzRequest sends any request line and headers: nothing panics but on purpose,
// nobody gets in without a signature, and all answers have a status.
func FuzzRequest(f *testing.F) {
	s := pagestore.New(pagestore.Config{Dir: f.TempDir()})
	if err := s.Create("d", mib); err != nil {
		f.Fatal(err)
	}
	s.AddAccount("acct")
	query, err := s.Grant("d", true, time.Now().Add(time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	signed, _ := url.ParseQuery(query)
	f.Add("GET", "/md/d", "sp=rw&sig=x&se=2030-01-01T00:00:00Z&si=0", "bytes=0-511", "", "update", "")
	f.Add("PUT", "/md/d", "comp=page", "bytes=0-", "", "clear", "")
	f.Add("PUT", "/storage/acct/c/b", "comp=page&sr=b&sv=2021-12-02&sig=x&se=2030-01-01&sp=w", "bytes=512-0", "", "update", "SharedKey acct:abc")
	f.Add("GET", "/acct/c/b", "comp=pagelist&prevsnapshot=2020-01-01T00:00:00.0000000Z&ss=b&srt=o&sig=x", "bytes=9223372036854775807-", "https://h/md/d?sig=1", "", "Bearer x")
	f.Add("GET", "/storage/acct/c", "restype=container&comp=list&marker=%00&sr=c&skoid=a&skt=2020-01-01&ske=2030-01-01", "bytes=-5", "", "", "SharedKey acct")
	f.Add("DELETE", "//storage//", "snapshot=&versionid=", "x", "::", "", "SharedKey :")
	f.Fuzz(func(t *testing.T, method, path, rawQuery, ranges, source, write, authorization string) {
		for _, r := range method {
			if r <= ' ' || r > '~' {
				return
			}
		}
		r := httptest.NewRequest("GET", "https://127.0.0.1/", strings.NewReader("body"))
		r.Method, r.URL = method, &url.URL{Scheme: "https", Host: "127.0.0.1", Path: path, RawQuery: rawQuery}
		for name, value := range map[string]string{"x-ms-range": ranges, "x-ms-copy-source": source, "x-ms-previous-snapshot-url": source, "x-ms-page-write": write, "Authorization": authorization, "x-ms-date": time.Now().UTC().Format(http.TimeFormat)} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		q, _ := url.ParseQuery(rawQuery)
		if w.Code < 400 && q.Get("sig") != signed.Get("sig") {
			t.Fatalf("%s %s?%s: %d without a signature", method, path, rawQuery, w.Code)
		}
		// The same with a good signature, so that what is behind it is reached.
		r = httptest.NewRequest("GET", "https://127.0.0.1/", strings.NewReader("body"))
		for k, v := range signed {
			q[k] = v
		}
		r.Method, r.URL = method, &url.URL{Scheme: "https", Host: "127.0.0.1", Path: "/md/d", RawQuery: q.Encode()}
		for name, value := range map[string]string{"Range": ranges, "x-ms-previous-snapshot-url": source, "x-ms-copy-source": source, "x-ms-page-write": write} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w = httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%s ?%s %q: %d %s", method, q.Encode(), ranges, w.Code, w.Body)
		}
	})
}
