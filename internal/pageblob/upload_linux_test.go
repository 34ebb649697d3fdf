package pageblob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/dr"
	"holdfast/internal/extent"
	"holdfast/internal/pageblob"
	"holdfast/internal/pageblob/pageblobtest"
	"holdfast/internal/vhd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk is an empty managed disk of the simulator, for upload.
func disk(t *testing.T, s *pageblobtest.Simulator, name string, size int64, attempts int) (*pageblob.Client, *pageblobtest.Transport) {
	t.Helper()
	tr := &pageblobtest.Transport{Base: s.Transport}
	c, err := pageblob.Open(s.Upload(t, name, size), pageblob.Config{Transport: tr, Attempts: attempts, BaseDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, tr
}

func fast(o pageblob.Options) pageblob.Options {
	o.Rate, o.Requests = -1, -1
	return o
}

func TestManagedDisk(t *testing.T) {
	t.Parallel()
	s := pageblobtest.StartSimulator(t)
	ctx := t.Context()
	d := noise(2, 3*mib+1000)
	c, tr := disk(t, s, "d", 4*mib, 3)
	var last, total int64
	res, err := pageblob.Upload(ctx, c, d, fast(pageblob.Options{Fresh: true, Progress: func(done, all int64) {
		if done < last {
			t.Errorf("progress goes back from %d to %d", last, done)
		}
		last, total = done, all
	}}))
	if err != nil {
		t.Fatal(err)
	}
	if last != 4*mib || total != 4*mib || res.Written+res.Skipped != 4*mib || res.Cleared != 0 {
		t.Errorf("progress %d of %d, %+v", last, total, res)
	}
	var nonzero int64
	for i := 0; i < len(d); i += 4096 {
		if b := d[i:min(i+4096, len(d))]; !bytes.Equal(b, make([]byte, len(b))) {
			nonzero += 4096
		}
	}
	if res.Written != nonzero {
		t.Errorf("%d bytes were sent, %d are not zero", res.Written, nonzero)
	}
	sameDisk(t, c, d)
	if err := s.CheckFooter("d"); err != nil {
		t.Error(err)
	}
	// Again: nothing is sent.
	before := tr.Kinds()["PUT page"]
	if res, err = pageblob.Upload(ctx, c, d, fast(pageblob.Options{Resume: true})); err != nil || res.Written != 0 || res.Compared < nonzero || res.Compared > 4*mib {
		t.Errorf("%+v, %v", res, err)
	}
	if after := tr.Kinds()["PUT page"]; after != before {
		t.Errorf("%d writes to an equal disk", after-before)
	}
	if _, err = pageblob.Upload(ctx, c, d, fast(pageblob.Options{Fresh: true})); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("a used disk is taken for fresh: %v", err)
	}
	// Another disk over it, without and with comparison.
	for i, o := range []pageblob.Options{{}, {Resume: true}} {
		other := noise(uint64(10+i), 4*mib)
		if _, err := pageblob.Upload(ctx, c, other, fast(o)); err != nil {
			t.Fatal(err)
		}
		sameDisk(t, c, other)
		if err := pageblob.Verify(ctx, c, other, 0); err != nil {
			t.Fatal(err)
		}
		other[3*mib+5000]++
		if err := pageblob.Verify(ctx, c, other, 1); dr.KindOf(err) != dr.KindCorrupt {
			t.Errorf("a difference is not found: %v", err)
		}
		other[3*mib+5000]--
		d = other
	}
	// Some ranges only, zeroes among them.
	other := bytes.Clone(d)
	clear(other[mib : 2*mib])
	copy(other[3*mib:], noise(20, mib))
	only := extent.Set{{Off: mib, Len: mib}, {Off: 3 * mib, Len: mib}}
	if _, err := pageblob.Upload(ctx, c, pageblobtest.Disk(other), fast(pageblob.Options{Only: only})); err != nil {
		t.Fatal(err)
	}
	sameDisk(t, c, other)
	if _, err := pageblob.Upload(ctx, c, make(pageblobtest.Disk, 5*mib), fast(pageblob.Options{})); dr.CodeOf(err) != dr.CodeAzureDisk {
		t.Errorf("a disk that is too large: %v", err)
	}
}

// TestResume breaks requests of every kind; an image that is not complete has no footer, and
// a resumed upload completes it.
func TestResume(t *testing.T) {
	t.Parallel()
	s := pageblobtest.StartSimulator(t)
	step := 2
	if testing.Short() {
		step = 9
	}
	const size = mib + 512*1024
	d, old := noise(3, size), noise(4, size)
	for name, f := range map[string]pageblobtest.Fault{"before": {Sticky: true}, "after": {Sticky: true, Lost: true}} {
		r := rand.New(rand.NewPCG(7, uint64(len(name))))
		broken := map[string]int{}
		for at := int64(1); ; at += int64(1 + r.IntN(step)) {
			c, tr := disk(t, s, fmt.Sprint(name, at), 2*mib, 1)
			// Something else was there, complete.
			if _, err := pageblob.Upload(t.Context(), c, old, fast(pageblob.Options{})); err != nil {
				t.Fatal(err)
			}
			f.At = at
			tr.Break(f)
			_, err := pageblob.Upload(t.Context(), c, d, fast(pageblob.Options{Workers: 2}))
			hit, kind := tr.Fired(), tr.Broke()
			tr.Break(pageblobtest.Fault{})
			if hit == 0 {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			broken[kind]++
			b := download(t, c)
			if _, ferr := vhd.DecodeFooter(b[len(b)-512:]); ferr == nil && !bytes.Equal(b[:size], d) && !bytes.Equal(b[:size], old) {
				t.Fatalf("request %d: a valid VHD of neither disk", at)
			}
			if _, err := pageblob.Upload(t.Context(), c, d, fast(pageblob.Options{Resume: true})); err != nil {
				t.Fatal(err)
			}
			sameDisk(t, c, d)
		}
		t.Logf("%s: broken: %v", name, broken)
		for _, kind := range []string{"HEAD ", "GET pagelist", "PUT page update", "PUT page clear"} {
			if broken[kind] == 0 && !testing.Short() {
				t.Errorf("%s: no %q was broken", name, kind)
			}
		}
		if broken["PUT page update"] == 0 {
			t.Errorf("%s: no write was broken", name)
		}
	}
}

// TestDiff compares the difference to a snapshot with what was changed.
func TestDiff(t *testing.T) {
	t.Parallel()
	s := pageblobtest.StartSimulator(t)
	ctx := t.Context()
	c, err := pageblob.Open(s.Container+"/x.vhd", pageblob.Config{Key: s.Key, Transport: s.Transport})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(ctx, mib+512, 0, nil, pageblob.If{}); err != nil {
		t.Fatal(err)
	}
	if err := c.PutPages(ctx, bytes.Repeat([]byte{1}, 16384), 4096, pageblob.If{}); err != nil {
		t.Fatal(err)
	}
	id, err := c.Snapshot(ctx, nil, pageblob.If{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.PutPages(ctx, bytes.Repeat([]byte{2}, 512), 8192, pageblob.If{}), c.ClearPages(ctx, 12288, 1024, pageblob.If{})); err != nil {
		t.Fatal(err)
	}
	changed, cleared, err := c.Diff(ctx, id, 0, 0)
	if err != nil || !changed.Equal(extent.Set{{Off: 8192, Len: 512}}) || !cleared.Equal(extent.Set{{Off: 12288, Len: 1024}}) {
		t.Fatalf("%v %v %v", changed, cleared, err)
	}
	if got, err := c.Ranges(ctx, 8192, 8192); err != nil || !got.Equal(extent.Set{{Off: 8192, Len: 4096}, {Off: 13312, Len: 3072}}) {
		t.Fatalf("%v %v", got, err)
	}
}

// answer is a service that always says the same.
type answer struct {
	status int
	header http.Header
	asked  int
	err    error
}

func (a *answer) RoundTrip(r *http.Request) (*http.Response, error) {
	a.asked++
	if a.err != nil {
		return nil, a.err
	}
	h := a.header.Clone()
	return &http.Response{StatusCode: a.status, Header: h, Body: http.NoBody, Request: r}, nil
}

func TestErrors(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	date := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, x := range []struct {
		name   string
		status int
		code   string
		date   string
		kind   dr.Kind
		want   dr.Code
		asked  int
	}{
		{"ended", 403, "AuthenticationFailed", date(0), dr.KindForbidden, dr.CodeAzureSignature, 1},
		{"clock", 403, "AuthenticationFailed", date(20 * time.Minute), dr.KindPrecondition, dr.CodeAzureClock, 1},
		{"read-only address", 403, "AuthorizationPermissionMismatch", date(0), dr.KindForbidden, dr.CodeAzureSignature, 1},
		{"firewall", 403, "AuthorizationFailure", date(0), dr.KindForbidden, dr.CodeAzureFirewall, 1},
		{"network", 403, "NetworkAccessDenied", date(0), dr.KindForbidden, dr.CodeAzureFirewall, 1},
		{"container", 404, "ContainerNotFound", "", dr.KindNotFound, dr.CodeAzureContainer, 1},
		{"being deleted", 409, "ContainerBeingDeleted", "", dr.KindNotFound, dr.CodeAzureContainer, 1},
		{"blob", 404, "BlobNotFound", "", dr.KindNotFound, dr.CodeNotFound, 1},
		{"a proxy's 404", 404, "", "", dr.KindUnavailable, dr.CodeAzureUnreachable, 1},
		{"busy", 503, "ServerBusy", "", dr.KindExhausted, dr.CodeAzureThrottled, 3},
		{"too many", 429, "", "", dr.KindExhausted, dr.CodeAzureThrottled, 3},
		{"inside", 500, "InternalError", "", dr.KindUnavailable, dr.CodeAzureOperation, 3},
		{"login page", 302, "", "", dr.KindUnavailable, dr.CodeAzureUnreachable, 3},
		{"fenced", 412, "SequenceNumberConditionNotMet", "", dr.KindFenced, dr.CodeWarmReplica, 1},
		{"changed", 412, "ConditionNotMet", "", dr.KindConflict, "", 1},
		{"leased", 412, "LeaseIdMissing", "", dr.KindConflict, dr.CodeAzureLocked, 1},
		{"damaged", 400, "Md5Mismatch", "", dr.KindUnavailable, dr.CodeAzureUnreachable, 3},
		{"broken", 0, "", "", dr.KindUnavailable, dr.CodeAzureUnreachable, 3},
	} {
		t.Run(x.name, func(t *testing.T) {
			a := &answer{status: x.status, header: http.Header{"X-Ms-Error-Code": {x.code}}}
			if x.date != "" {
				a.header.Set("Date", x.date)
			}
			if x.status == 0 {
				a.err = errors.New("connection reset")
			}
			c, err := pageblob.Open("https://md-1.blob.storage.azure.net/x/abcd?sv=2021-12-02&se=2026-11-20T11%3A00%3A00Z&sp=rw&sig=TOPSECRET", pageblob.Config{
				Transport: a, Attempts: 3, BaseDelay: time.Millisecond, Now: func() time.Time { return now }})
			if err != nil {
				t.Fatal(err)
			}
			err = c.PutPages(t.Context(), make([]byte, 512), 0, pageblob.If{})
			if dr.KindOf(err) != x.kind || dr.CodeOf(err) != x.want || a.asked != x.asked {
				t.Errorf("kind %v, code %q after %d requests: %v", dr.KindOf(err), dr.CodeOf(err), a.asked, err)
			}
			if text := err.Error() + dr.HintOf(err) + c.Name() + c.URL(); strings.Contains(text, "SECRET") || strings.Contains(text, "sig=") {
				t.Errorf("the signature is shown: %s", text)
			}
			if x.name == "ended" && !strings.Contains(err.Error(), "ended at 2026-11-20T11:00:00Z") {
				t.Errorf("when the address ended is not told: %v", err)
			}
		})
	}
	for _, bad := range []string{"", "://", "http://example.com/a/b", "https://example.com", "https://u:SECRET@h/a/b"} {
		if _, err := pageblob.Open(bad, pageblob.Config{}); dr.CodeOf(err) != dr.CodeAzureConfiguration || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestRetryAfter waits as long as the service asks for, and no longer than the context.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &answer{status: 503, header: http.Header{"X-Ms-Error-Code": {"ServerBusy"}, "Retry-After": {"60"}}}
		c, err := pageblob.Open("https://a.blob.core.windows.net/c/b?sig=x", pageblob.Config{Transport: a, Attempts: 3})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := c.ClearPages(t.Context(), 0, 512, pageblob.If{}); dr.CodeOf(err) != dr.CodeAzureThrottled {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 2*time.Minute || took > 3*time.Minute || c.Count().Throttled == 0 {
			t.Errorf("three attempts took %v, %+v", took, c.Count())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		err = c.ClearPages(ctx, 0, 512, pageblob.If{})
		if took := time.Since(began); took > 2*time.Second || dr.KindOf(err) != dr.KindUnavailable && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline %v: %v", took, err)
		}
	})
}

// TestQemu lets qemu-img read what was uploaded.
func TestQemu(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatalf("qemu-img is needed (Debian: qemu-utils): %v", err)
	}
	s := pageblobtest.StartSimulator(t)
	d := noise(5, 5*mib)
	c, _ := disk(t, s, "q", 5*mib, 3)
	if _, err := pageblob.Upload(t.Context(), c, d, fast(pageblob.Options{})); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	vhdFile, raw := filepath.Join(dir, "x.vhd"), filepath.Join(dir, "x.raw")
	if err := errors.Join(os.WriteFile(vhdFile, download(t, c), 0o600), os.WriteFile(raw, d, 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool, "info", "--output=json", "-f", "vpc", vhdFile).CombinedOutput()
	if err != nil || !strings.Contains(strings.ReplaceAll(string(out), " ", ""), `"virtual-size":5242880`) {
		t.Errorf("info: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(ctx, tool, "compare", "-f", "vpc", "-F", "raw", vhdFile, raw).CombinedOutput(); err != nil {
		t.Errorf("compare: %v\n%s", err, out)
	}
}
