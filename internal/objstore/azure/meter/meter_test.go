package meter_test

import (
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/objstore/azure/meter"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answer reads the request's body and answers with 10 bytes.
func answer(status int, code string) roundTripper {
	return func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
		}
		return &http.Response{StatusCode: status, Header: http.Header{"X-Ms-Error-Code": {code}}, Body: io.NopCloser(strings.NewReader("0123456789")), Request: r}, nil
	}
}

func send(t *testing.T, m *meter.Meter, method, url, body string) error {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.RoundTrip(r)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

const host = "contoso.blob.core.windows.net"

// TestClasses compares with the published table.
func TestClasses(t *testing.T) {
	t.Parallel()
	const base = "https://" + host
	writes, lists, reads, others, deletes := meter.Stats{Writes: 1}, meter.Stats{Lists: 1}, meter.Stats{Reads: 1}, meter.Stats{Others: 1}, meter.Stats{Deletes: 1}
	for _, tt := range []struct {
		what, method, url string
		want              meter.Stats
	}{
		{"Put Blob", "PUT", "/c/b", writes},
		{"Put Blob by a signed URL", "PUT", "/c/b?sv=1&sig=x", writes},
		{"Put Block", "PUT", "/c/b?comp=block&blockid=AA", writes},
		{"Put Block List", "PUT", "/c/b?comp=blocklist", writes},
		{"Put Page", "PUT", "/c/b?comp=page", writes},
		{"Set Blob Tier", "PUT", "/c/b?comp=tier", writes},
		{"Undelete Blob", "PUT", "/c/b?comp=undelete", writes},
		{"List Blobs", "GET", "/c?restype=container&comp=list", lists},
		{"List Containers", "GET", "/?comp=list", lists},
		{"Create Container", "PUT", "/c?restype=container", lists},
		{"Restore Container", "PUT", "/c?restype=container&comp=undelete", lists},
		{"Get Blob", "GET", "/c/b", reads},
		{"Get Page Ranges", "GET", "/c/b?comp=pagelist", reads},
		{"Get Blob Properties", "HEAD", "/c/b", others},
		{"Get Block List", "GET", "/c/b?comp=blocklist", others},
		{"Get Container Properties", "GET", "/c?restype=container", others},
		{"Get Account Information", "GET", "/c?restype=account&comp=properties", others},
		{"Get User Delegation Key", "POST", "/?restype=service&comp=userdelegationkey", others},
		{"Set Immutability Policy", "PUT", "/c/b?comp=immutabilityPolicies", others},
		{"Delete Immutability Policy", "DELETE", "/c/b?comp=immutabilityPolicies", others},
		{"Set Legal Hold", "PUT", "/c/b?comp=legalhold", others},
		{"Set Blob Metadata", "PUT", "/c/b?comp=metadata", others},
		{"Set Blob Properties", "PUT", "/c/b?comp=properties", others},
		{"Snapshot Blob", "PUT", "/c/b?comp=snapshot", others},
		{"Incremental Copy Blob", "PUT", "/c/b?comp=incrementalcopy", others},
		{"Acquire Blob Lease", "PUT", "/c/b?comp=lease", others},
		{"Delete Blob", "DELETE", "/c/b", deletes},
		{"Delete Container", "DELETE", "/c?restype=container", deletes},
	} {
		m := meter.New(host, answer(200, ""))
		if err := send(t, m, tt.method, base+tt.url, "abc"); err != nil {
			t.Fatal(err)
		}
		tt.want.BytesSent, tt.want.BytesReceived = 3, 10
		if got := m.Stats(); got != tt.want {
			t.Errorf("%s: %+v", tt.what, got)
		}
	}
}

// TestWhatIsBilled: failures are, except those of authentication.
func TestWhatIsBilled(t *testing.T) {
	t.Parallel()
	const url = "https://" + host + "/c/b"
	for _, tt := range []struct {
		next roundTripper
		url  string
		want meter.Stats
	}{
		{answer(409, "BlobAlreadyExists"), url, meter.Stats{Writes: 1}},
		{answer(403, "AuthorizationPermissionMismatch"), url, meter.Stats{Writes: 1}},
		{answer(403, "AuthenticationFailed"), url, meter.Stats{Unbilled: 1}},
		{answer(401, "NoAuthenticationInformation"), url, meter.Stats{Unbilled: 1}},
		{answer(503, "ServerBusy"), url, meter.Stats{Writes: 1, Throttled: 1}},
		{answer(429, ""), url, meter.Stats{Writes: 1, Throttled: 1}},
		{answer(200, ""), "https://login.microsoftonline.com/x", meter.Stats{}},
	} {
		m := meter.New(host, tt.next)
		if err := send(t, m, http.MethodPut, tt.url, ""); err != nil {
			t.Fatal(err)
		}
		got := m.Stats()
		got.BytesReceived = 0
		if got != tt.want {
			t.Errorf("%+v, wanted %+v", got, tt.want)
		}
	}
	m := meter.New(host, roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") }))
	if err := send(t, m, http.MethodPut, url, "abc"); err == nil || m.Stats() != (meter.Stats{Unbilled: 1}) {
		t.Errorf("%v, %+v", err, m.Stats())
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	m := meter.New(host, answer(200, ""))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if err := send(t, m, http.MethodPut, "https://"+host+"/c/b", "ab"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got := m.Stats(); got.Writes != 800 || got.BytesSent != 1600 || got.BytesReceived != 8000 {
		t.Errorf("%+v", got)
	}
}

func TestCost(t *testing.T) {
	t.Parallel()
	p := meter.Prices{Writes: 0.05, Lists: 0.06, Reads: 0.004, Others: 0.003, Egress: 0.08}
	s := meter.Stats{Writes: 10_000, Lists: 20_000, Reads: 30_000, Others: 40_000, Deletes: 1 << 40, Unbilled: 1 << 40, BytesReceived: 2 << 30, BytesSent: 1 << 50}
	b := meter.Cost(s, p)
	want := meter.Bill{Writes: 0.05, Lists: 0.12, Reads: 0.012, Others: 0.012, Egress: 0.16}
	if math.Abs(b.Total()-want.Total()) > 1e-9 || math.Abs(b.Writes-want.Writes) > 1e-9 || math.Abs(b.Egress-want.Egress) > 1e-9 {
		t.Errorf("%+v", b)
	}
	if s.Add(s).Sub(s) != s || s.Sub(s) != (meter.Stats{}) {
		t.Error("sums are wrong")
	}
}

// TestPlan has the numbers of the documentation.
func TestPlan(t *testing.T) {
	t.Parallel()
	for interval, cuts := range map[time.Duration]int64{30 * time.Second: 2880, 5 * time.Minute: 288, 15 * time.Minute: 96} {
		if got := meter.Plan(meter.Load{Interval: interval}); got.Writes != cuts || got.Reads != cuts || got.Others != cuts {
			t.Errorf("%v: %+v", interval, got)
		}
		got := meter.Plan(meter.Load{Interval: interval, Parts: 1.5, Folded: 100, Deleted: 50, Lists: 24, Bytes: 1000})
		want := meter.Stats{Writes: cuts*5/2 + 100, Reads: cuts*5/2 + 100, Others: cuts * 5 / 2, Lists: 24, Deletes: 50, BytesSent: cuts * 1000, BytesReceived: cuts * 1000}
		if got != want {
			t.Errorf("%v: %+v, wanted %+v", interval, got, want)
		}
	}
	if meter.Plan(meter.Load{}) != (meter.Stats{}) {
		t.Error("a plan without an interval")
	}
}
