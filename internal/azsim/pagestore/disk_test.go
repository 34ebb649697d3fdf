package pagestore_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/dr"
	"holdfast/internal/vhd"
)

func TestDiskUpload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.s.Create("d", 2*mib+512))
	if size, err := w.s.Size("d"); err != nil || size != 2*mib {
		t.Fatalf("size %d, %v", size, err)
	}
	cl := w.disk("d", true)
	if err := w.s.CheckFooter("d"); dr.KindOf(err) != dr.KindCorrupt {
		t.Fatalf("no footer yet: %v", err)
	}
	data := noise(seeded(1), 4096)
	w.put(cl, 8192, data)
	footer, err := vhd.EncodeFooter(vhd.Footer{Size: 2 * mib, Kind: vhd.Fixed})
	w.must(err)
	w.put(cl, 2*mib, footer)
	w.must(w.s.CheckFooter("d"))

	props, err := cl.GetProperties(w.ctx, nil)
	w.must(err)
	if *props.ContentLength != 2*mib+512 || *props.BlobType != blob.BlobTypePageBlob || *props.BlobSequenceNumber != 0 {
		t.Fatalf("properties %+v", props)
	}
	whole := w.get(cl, 0, 0)
	want := make([]byte, 2*mib+512)
	copy(want[8192:], data)
	copy(want[2*mib:], footer)
	if !bytes.Equal(whole, want) {
		t.Fatal("the disk does not read as it was written")
	}
	list, _ := w.ranges(cl, nil)
	if want := []pr{{8192, 4096, false}, {2 * mib, 512, false}}; !slices.Equal(list, want) {
		t.Fatalf("ranges %v, want %v", list, want)
	}
	dev, err := w.s.Device("d")
	w.must(err)
	got := make([]byte, 4096)
	w.must(dev.ReadAt(w.ctx, got, 8192))
	if dev.Size() != 2*mib || !bytes.Equal(got, data) {
		t.Fatal("the guest's disk is another one")
	}
	if err := dev.ReadAt(w.ctx, got, 2*mib-4095); err == nil {
		t.Fatal("the guest reads the footer")
	}

	w.must(w.s.Revoke("d"))
	_, err = cl.GetProperties(w.ctx, nil)
	w.refused(err, 403, "AuthenticationFailed")
	_, err = cl.UploadPages(w.ctx, body(data), blob.HTTPRange{Count: 4096}, nil)
	w.refused(err, 403, "AuthenticationFailed")
	if got := w.get(w.disk("d", false), 0, 0); !bytes.Equal(got, want) {
		t.Fatal("a refused request changed the disk")
	}
}

func TestDiskAccess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.s.Create("d", mib))
	w.must(w.s.Create("e", mib))
	p := noise(seeded(2), 512)
	reader := w.disk("d", false)
	_, err := reader.UploadPages(w.ctx, body(p), blob.HTTPRange{Count: 512}, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = reader.ClearPages(w.ctx, blob.HTTPRange{Count: 512}, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	for name, change := range map[string]func(string) string{
		"another disk":    func(u string) string { return strings.Replace(u, "/md/d/", "/md/e/", 1) },
		"more permission": func(u string) string { return strings.Replace(u, "sp=r", "sp=rw", 1) },
		"no signature":    func(u string) string { u, _, _ = strings.Cut(u, "?"); return u },
		"longer life":     func(u string) string { return strings.Replace(u, "se=20", "se=21", 1) },
		"no such disk":    func(u string) string { return strings.Replace(u, "/md/d/", "/md/x/", 1) },
	} {
		_, err := w.raw(w.open(change(w.address("d", false))), nil)
		if err == nil {
			t.Errorf("%s: was let in", name)
			continue
		}
		w.refused(err, 403, "AuthenticationFailed")
	}
	writer := w.disk("d", true)
	_, err = writer.Create(w.ctx, mib, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = writer.Delete(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	_, err = writer.CreateSnapshot(w.ctx, nil)
	w.refused(err, 403, "AuthorizationPermissionMismatch")
	w.put(writer, 0, p)
	w.clock.move(2 * time.Hour)
	_, err = writer.GetProperties(w.ctx, nil)
	w.refused(err, 403, "AuthenticationFailed")
}

func TestDiskRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, size := range []int64{0, 512, mib + 1, mib + 1024, -mib, mib - 512} {
		if err := w.s.Create("bad", size); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("size %d: %v", size, err)
		}
	}
	w.must(w.s.Create("d", mib))
	for _, name := range []string{"", "a/b", "a b"} {
		if err := w.s.Create(name, mib); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if err := w.s.Create("d", mib); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("taken: %v", err)
	}
	if err := w.s.Copy("d", "d"); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("taken: %v", err)
	}
	_, sizeErr := w.s.Size("x")
	_, grantErr := w.s.Grant("x", false, time.Now())
	_, devErr := w.s.Device("x")
	for _, err := range []error{sizeErr, grantErr, devErr, w.s.Copy("y", "x"), w.s.Delete("x"), w.s.Revoke("x"), w.s.CheckFooter("x"), w.s.Resize("x", mib)} {
		if dr.KindOf(err) != dr.KindNotFound {
			t.Errorf("missing: %v", err)
		}
	}
	w.must(w.s.CheckFooter("d")) // an empty disk has one
	w.must(w.s.Resize("d", 3*mib))
	w.must(w.s.CheckFooter("d"))
	if err := w.s.Resize("d", mib); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("shrunk: %v", err)
	}
	if got := w.get(w.disk("d", false), 0, 3*mib); !bytes.Equal(got, make([]byte, 3*mib)) {
		t.Error("the old footer is still there")
	}
	dev, err := w.s.Device("d")
	w.must(err)
	w.must(w.s.Delete("d"))
	if err := dev.ReadAt(w.ctx, make([]byte, 512), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a deleted disk reads: %v", err)
	}
	if names := w.s.Names(); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

func TestDeviceAndDiff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const size = 4 * mib
	w.must(w.s.Create("d", size))
	dev, err := w.s.Device("d")
	w.must(err)
	model := make([]byte, size)
	r := seeded(3)
	var old []byte
	for round := range 6 {
		for range 20 {
			n := 1 + r.Int64N(20000)
			off := r.Int64N(size - n)
			switch r.IntN(4) {
			case 0:
				w.must(dev.WriteZeroes(w.ctx, off, n, round%2 == 0))
				clear(model[off : off+n])
			case 1:
				w.must(dev.Trim(w.ctx, off, n))
				clear(model[off : off+n])
			default:
				p := noise(r, int(n))
				w.must(dev.WriteAt(w.ctx, p, off))
				copy(model[off:], p)
			}
		}
		w.must(dev.Flush(w.ctx))
		got := make([]byte, size)
		w.must(dev.ReadAt(w.ctx, got, 0))
		if !bytes.Equal(got, model) {
			t.Fatalf("round %d: the disk is not what was written", round)
		}
		name := "snap" + string(rune('0'+round))
		w.must(w.s.Copy(name, "d"))
		cl := w.disk(name, false)
		if got := w.get(cl, 0, size); !bytes.Equal(got, model) {
			t.Fatalf("round %d: the snapshot is not the disk", round)
		}
		if old != nil {
			prev := w.address("snap"+string(rune('0'+round-1)), false)
			for range 2 { // the second answer is remembered
				got, _ := w.ranges(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshotURL: &prev})
				if want := changed(old, model, 4096); !slices.Equal(pagesOf(got, 4096), want) {
					t.Fatalf("round %d: differing pages\n%v, want\n%v", round, pagesOf(got, 4096), want)
				}
				for _, ch := range got {
					if ch.cleared && !bytes.Equal(model[ch.off:ch.off+ch.n], make([]byte, ch.n)) {
						t.Fatalf("round %d: %v is told as cleared and is not zero", round, ch)
					}
				}
			}
		}
		old = bytes.Clone(model)
		exts, err := dev.Extents(w.ctx, 0, size)
		w.must(err)
		at := int64(0)
		for _, e := range exts {
			if e.Off != at || e.Zero && !bytes.Equal(model[e.Off:e.Off+e.Len], make([]byte, e.Len)) {
				t.Fatalf("extent %+v after %d", e, at)
			}
			at += e.Len
		}
		if at != size {
			t.Fatalf("extents end at %d", at)
		}
	}
	// Without a previous snapshot, with one that is signed wrongly, and paged.
	cl := w.disk("snap5", false)
	_, err = w.raw(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshotURL: ptr(w.url + "/md/snap0?sig=1")})
	w.refused(err, 403, "AuthenticationFailed")
	_, err = w.raw(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshot: ptr("2020-01-01T00:00:00.0000000Z")})
	w.refused(err, 400, "InvalidHeaderValue")
	prev := w.address("snap0", false)
	all, one := w.ranges(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshotURL: &prev})
	paged, many := w.ranges(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshotURL: &prev, MaxResults: ptr(int32(3))})
	if !slices.Equal(all, paged) || one != 1 || many != (len(all)+2)/3 {
		t.Errorf("paged by %d answers %v, at once %v", many, paged, all)
	}
	part, _ := w.ranges(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshotURL: &prev, Range: blob.HTTPRange{Offset: mib, Count: mib}})
	if !slices.Equal(pagesOf(part, 4096), slices.DeleteFunc(pagesOf(all, 4096), func(p int64) bool { return p < 256 || p >= 512 })) {
		t.Errorf("the part is %v of %v", part, all)
	}
}

// TestPartsOfPages writes less than a page where a page was cleared.
func TestPartsOfPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.s.Create("d", mib))
	dev, err := w.s.Device("d")
	w.must(err)
	model := make([]byte, 4096)
	data := noise(seeded(8), 4096)
	for i, step := range []struct {
		off, n int64
		trim   bool
	}{{0, 4096, false}, {0, 4096, true}, {700, 1, false}, {1500, 100, false}, {2000, 600, false}, {1510, 20, true}, {100, 1000, true}, {0, 4096, false}, {511, 514, true}, {513, 10, false}} {
		if step.trim {
			w.must(dev.Trim(w.ctx, step.off, step.n))
			clear(model[step.off : step.off+step.n])
		} else {
			w.must(dev.WriteAt(w.ctx, data[:step.n], step.off))
			copy(model[step.off:], data[:step.n])
		}
		got := make([]byte, 4096)
		w.must(dev.ReadAt(w.ctx, got, 0))
		if !bytes.Equal(got, model) {
			t.Fatalf("step %d: pages %v differ", i, changed(got, model, 512))
		}
		w.must(w.s.Copy("copy", "d"))
		if got := w.get(w.disk("copy", false), 0, 4096); !bytes.Equal(got, model) {
			t.Fatalf("step %d: the copy differs", i)
		}
		w.must(w.s.Delete("copy"))
	}
	if err := dev.WriteAt(w.ctx, data, mib-4095); err == nil {
		t.Error("wrote behind the end")
	}
	w.must(w.s.CheckFooter("d"))
}

func TestImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	box := w.box("vhds")
	cl := w.page(box, "a.vhd", mib+512)
	url := w.url + "/storage/acct/vhds/a.vhd"
	if err := w.s.Import("d", url); dr.KindOf(err) != dr.KindInvalid {
		t.Fatalf("without a footer: %v", err)
	}
	footer, err := vhd.EncodeFooter(vhd.Footer{Size: mib, Kind: vhd.Fixed})
	w.must(err)
	w.put(cl, mib, footer)
	data := noise(seeded(4), 512)
	w.put(cl, 512, data)
	snap, err := cl.CreateSnapshot(w.ctx, nil)
	w.must(err)
	w.put(cl, 512, make([]byte, 512))
	w.must(w.s.Import("d", url))
	w.must(w.s.Import("s", url+"?snapshot="+*snap.Snapshot))
	if got := w.get(w.disk("s", false), 512, 512); !bytes.Equal(got, data) {
		t.Error("the snapshot was not imported")
	}
	if got := w.get(w.disk("d", false), 512, 512); !bytes.Equal(got, make([]byte, 512)) {
		t.Error("the blob was not imported")
	}
	w.page(box, "odd.vhd", 1024)
	other := w.page(box, "other.vhd", 2*mib+512)
	w.put(other, 2*mib, footer)
	for path, kind := range map[string]dr.Kind{
		"/storage/acct/vhds/odd.vhd": dr.KindInvalid, "/storage/acct/vhds/other.vhd": dr.KindInvalid, "/storage/acct/vhds/none.vhd": dr.KindNotFound,
		"/storage/acct/none/a.vhd": dr.KindNotFound, "/storage/none/vhds/a.vhd": dr.KindNotFound, "/storage/acct/vhds": dr.KindInvalid, "/md/d": dr.KindInvalid,
	} {
		if err := w.s.Import("x", w.url+path); dr.KindOf(err) != kind {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := w.s.Import("d", url); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("taken: %v", err)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.s.Create("d", mib))
	cl := w.disk("d", true)
	p := noise(seeded(5), 512)
	one := w.s.Fault(pagestore.Fault{Operation: "PutPage", Skip: 1, Times: 1, Status: 503, Code: "ServerBusy", RetryAfter: 3 * time.Second})
	w.put(cl, 0, p)
	_, err := cl.UploadPages(w.ctx, body(p), blob.HTTPRange{Offset: 512, Count: 512}, nil)
	w.refused(err, 503, "ServerBusy")
	var re *azcore.ResponseError
	if errors.As(err, &re) && re.RawResponse.Header.Get("Retry-After") != "3" {
		t.Error("no Retry-After")
	}
	if one.Fired() != 1 || !bytes.Equal(w.get(cl, 512, 512), make([]byte, 512)) {
		t.Error("it was done though it failed")
	}
	w.put(cl, 1024, p)

	lost := w.s.Fault(pagestore.Fault{Method: "PUT", Times: 1, Cut: true})
	_, err = cl.UploadPages(w.ctx, body(p), blob.HTTPRange{Offset: 2048, Count: 512}, nil)
	if err == nil || errors.As(err, &re) && re.StatusCode != 503 {
		t.Fatalf("the answer was not lost: %v", err)
	}
	if lost.Fired() != 1 || !bytes.Equal(w.get(cl, 2048, 512), p) {
		t.Error("a lost answer was not acted on")
	}

	never := w.s.Fault(pagestore.Fault{Method: "PUT", Times: 1, Cut: true, Status: 500})
	if _, err = cl.UploadPages(w.ctx, body(p), blob.HTTPRange{Offset: 4096, Count: 512}, nil); err == nil {
		t.Fatal("it was answered")
	}
	if never.Fired() != 1 || !bytes.Equal(w.get(cl, 4096, 512), make([]byte, 512)) {
		t.Error("a lost request was acted on")
	}

	called := false
	slow := w.s.Fault(pagestore.Fault{Method: "HEAD", Do: func(*http.Request) { called = true }, Delay: time.Millisecond})
	_, err = cl.GetProperties(w.ctx, nil)
	w.must(err)
	slow.Remove()
	slow.Remove()
	_, err = cl.GetProperties(w.ctx, nil)
	w.must(err)
	if slow.Fired() != 1 || !called {
		t.Errorf("fired %d times, called %v", slow.Fired(), called)
	}
	n := w.s.Counts()["PutPage"]
	if n.Requests != 5 || n.Failed != 3 || n.In != 5*512 {
		t.Errorf("counted %+v", n)
	}
	if n := w.s.Counts()["GetBlob"]; n.Requests != 3 || n.Out != 3*512 {
		t.Errorf("counted %+v", n)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.s.Create("d", 16*mib))
	w.must(w.s.Create("e", 16*mib))
	d, e := w.disk("d", true), w.disk("e", true)
	// So little is given back that a slow machine does not change the outcome.
	w.s.Limit(pagestore.Limits{BytesPerSecond: 1, RetryAfter: time.Second})
	w.put(d, 0, noise(seeded(6), 4096)) // larger than a second's worth: passes alone
	_, err := d.UploadPages(w.ctx, body(make([]byte, 4096)), blob.HTTPRange{Count: 4096}, nil)
	w.refused(err, 503, "ServerBusy")
	w.put(e, 0, noise(seeded(6), 4096)) // each disk has its own
	w.s.Limit(pagestore.Limits{RequestsPerSecond: 1})
	busy := false
	for range 200 {
		if _, err := d.GetProperties(w.ctx, nil); err != nil {
			busy = true
		}
	}
	if !busy {
		t.Error("200 requests passed a limit of 1 in a second")
	}
	w.s.Limit(pagestore.Limits{})
	for range 20 {
		w.put(d, 0, make([]byte, 4096))
	}
	if l := pagestore.PublishedLimits(); l.BytesPerSecond != 60*mib || l.RequestsPerSecond != 500 {
		t.Errorf("published: %+v", l)
	}
}

// TestConcurrent lets a guest write while clients read and diff.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.s.Create("d", 4*mib))
	dev, err := w.s.Device("d")
	w.must(err)
	done := make(chan error, 1)
	go func() {
		p := make([]byte, 4096)
		for i := range 500 {
			for j := range p {
				p[j] = byte(i)
			}
			if err := dev.WriteAt(w.ctx, p, int64(i%16)*4096); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	cl := w.disk("d", true)
	for i := range 20 {
		p := w.get(cl, 0, 4096)
		if !bytes.Equal(p, bytes.Repeat(p[:1], 4096)) {
			t.Error("a write was seen in half")
		}
		name := "s" + string(rune('a'+i))
		w.must(w.s.Copy(name, "d"))
		prev := w.address(name, false)
		w.ranges(cl, &pageblob.GetPageRangesDiffOptions{PrevSnapshotURL: &prev})
		w.put(cl, 2*mib, p)
	}
	w.must(<-done)
}

func TestPlainRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must(w.s.Create("d", mib))
	u := w.address("d", true)
	for _, tt := range []struct {
		method, url string
		header      map[string]string
		body        int
		status      int
		code        string
	}{
		{"GET", w.url + "/", nil, 0, 400, "InvalidUri"},
		{"GET", w.url + "/md/", nil, 0, 400, "InvalidUri"},
		{"GET", w.url + "/storage/acct/c/b?comp=%zz", nil, 0, 400, "InvalidUri"},
		{"GET", w.url + "/storage/acct/c/b", nil, 0, 401, "NoAuthenticationInformation"},
		{"GET", w.url + "/storage/none/c/b", nil, 0, 404, "ResourceNotFound"},
		{"GET", w.url + "/storage/acct/c/b", map[string]string{"Authorization": "Basic abc"}, 0, 400, "InvalidAuthenticationInfo"},
		{"GET", w.url + "/storage/acct/c/b", map[string]string{"Authorization": "Bearer bad"}, 0, 401, "InvalidAuthenticationInfo"},
		{"GET", w.url + "/storage/acct/c/b", map[string]string{"Authorization": "Bearer good-token"}, 0, 404, "ContainerNotFound"},
		{"PATCH", u, nil, 0, 400, "UnsupportedQueryParameter"},
		{"GET", u, map[string]string{"x-ms-version": "new"}, 0, 400, "InvalidHeaderValue"},
		{"GET", u, map[string]string{"Range": "bytes=1048576-"}, 0, 206, ""},
		{"GET", u, map[string]string{"Range": "bytes=1049088-"}, 0, 416, "InvalidRange"},
		{"GET", u, map[string]string{"Range": "bytes=0-1,4-5"}, 0, 200, ""},
		{"GET", u, map[string]string{"If-Match": `"x"`}, 0, 412, "ConditionNotMet"},
		{"GET", u, map[string]string{"If-None-Match": "*"}, 0, 304, "ConditionNotMet"},
		{"GET", u, map[string]string{"x-ms-range-get-content-md5": "true"}, 0, 400, "InvalidHeaderValue"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "update", "Range": "bytes=1-512"}, 512, 416, "InvalidPageRange"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "update", "Range": "bytes=0-511"}, 1024, 400, "InvalidHeaderValue"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "update", "Range": "bytes=1049088-1049599"}, 512, 416, "InvalidPageRange"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "update", "Range": "bytes=0-4194815"}, 4194816, 413, "RequestBodyTooLarge"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "other", "Range": "bytes=0-511"}, 512, 400, "InvalidHeaderValue"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "update"}, 512, 400, "InvalidHeaderValue"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "clear", "Range": "bytes=0-511"}, 512, 400, "InvalidHeaderValue"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "update", "Range": "bytes=0-511", "x-ms-if-sequence-number-lt": "0"}, 512, 412, "SequenceNumberConditionNotMet"},
		{"PUT", u + "&comp=page", map[string]string{"x-ms-page-write": "update", "Range": "bytes=0-511", "Content-MD5": "AAAA"}, 512, 400, "InvalidMd5"},
		{"GET", u + "&comp=pagelist&maxresults=0", nil, 0, 400, "OutOfRangeQueryParameterValue"},
		{"GET", u + "&comp=pagelist&marker=x", nil, 0, 400, "InvalidQueryParameterValue"},
		{"GET", u + "&comp=pagelist", map[string]string{"Range": "bytes=1049088-1049599"}, 0, 416, "InvalidRange"},
	} {
		req, err := http.NewRequestWithContext(w.ctx, tt.method, tt.url, bytes.NewReader(make([]byte, tt.body)))
		w.must(err)
		for k, v := range tt.header {
			req.Header.Set(k, v)
		}
		out, err := w.http.Do(req)
		w.must(err)
		raw, err := io.ReadAll(out.Body)
		w.must(errors.Join(err, out.Body.Close()))
		if out.StatusCode != tt.status || out.Header.Get("x-ms-error-code") != tt.code {
			path, _, _ := strings.Cut(tt.url, "?")
			t.Errorf("%s %s %v: %d %s, want %d %s", tt.method, path, tt.header, out.StatusCode, out.Header.Get("x-ms-error-code"), tt.status, tt.code)
		}
		if out.Header.Get("x-ms-request-id") == "" || tt.code != "" && tt.status != 304 && !strings.Contains(string(raw), "<Code>"+tt.code+"</Code>") {
			t.Errorf("%s: the answer is %q", tt.code, raw)
		}
	}
	if got := w.get(w.disk("d", false), 0, mib); !bytes.Equal(got, make([]byte, mib)) {
		t.Error("a refused request changed the disk")
	}
}
