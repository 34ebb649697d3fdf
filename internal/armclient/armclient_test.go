package armclient_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/armapi"
	"holdfast/internal/armapi/armapitest"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

func start(t *testing.T, cfg armapi.Config) (*armclient.Client, *armapitest.Instance) {
	t.Helper()
	in := armapitest.NewServer(t, armapitest.New(armapitest.Config{Step: 5 * time.Millisecond}), cfg)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, in.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	id := in.Fake.Identity()
	c, err := armclient.New(armclient.Config{URL: in.URL, CAFile: ca, TenantID: id.TenantID, ClientID: "Owner", ClientSecret: armapitest.Secret,
		SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, Vault: id.Name, PollInterval: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, in
}

func do(t *testing.T, what string, out any) func(*armclient.Operation, error) {
	t.Helper()
	return func(op *armclient.Operation, err error) {
		t.Helper()
		if err == nil {
			err = op.Wait(t.Context(), out, nil)
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestStory(t *testing.T) {
	t.Parallel()
	c, _ := start(t, armapi.Config{PageSize: 1}) // every list has several pages
	ctx := t.Context()
	var f armclient.Fabric
	do(t, "create", &f)(c.CreateFabric(ctx, "new", dr.KVMSite))
	if f.Name != "new" || f.Properties.FabricType != "KVMSite" || f.Properties.CustomDetails.InstanceType != "HyperVSite" {
		t.Errorf("created %+v", f)
	}
	do(t, "remove", nil)(c.Remove(ctx, f.ID, false))
	if _, err := c.Fabric(ctx, "new"); dr.KindOf(err) != dr.KindNotFound || dr.CodeOf(err) != dr.CodeNotFound {
		t.Errorf("after removal: %v", err)
	}
	if fs := must[[]armclient.Fabric](t)(c.Fabrics(ctx)); len(fs) != 2 {
		t.Errorf("%d sites", len(fs))
	}
	if ps := must[[]armclient.Provider](t)(c.Providers(ctx)); len(ps) != 2 || ps[0].Properties.ConnectionStatus != "Connected" {
		t.Errorf("%+v", ps)
	}
	seconds := int32(30)
	do(t, "policy", nil)(c.SavePolicy(ctx, "gold", armwire.PolicySettings{ReplicationInterval: &seconds}))
	a, b := must[armclient.Container](t)(c.Container(ctx, "site-a")), must[armclient.Container](t)(c.Container(ctx, "site-b"))
	do(t, "mapping", nil)(c.CreateMapping(ctx, a.ID, "map", "gold", b.ID))
	vms := must[[]armclient.ProtectableItem](t)(c.ProtectableItems(ctx, a.ID))
	op := must[*armclient.Operation](t)(c.Items().Enable(ctx, a.ID, vms[0], "gold", armwire.EnableDetails{TargetAzureVMName: "x"}))
	var seen []float64
	var it armclient.ProtectedItem
	if err := op.Wait(ctx, &it, func(j armwire.Job) { seen = append(seen, j.ProgressPercent) }); err != nil {
		t.Fatal(err)
	}
	if len(seen) == 0 || seen[len(seen)-1] != 100 || it.Properties.ProtectionState != "Protected" {
		t.Errorf("progress %v, state %s", seen, it.Properties.ProtectionState)
	}
	points := must[[]armclient.RecoveryPoint](t)(c.Items().Points(ctx, it.ID))
	do(t, "test", &it)(c.Items().TestFailover(ctx, it.ID, points[0].ID, "", false))
	if it.Properties.TestFailoverState != "WaitingForCompletion" {
		t.Errorf("test: %s", it.Properties.TestFailoverState)
	}
	jobs := must[[]armclient.Job](t)(c.Jobs().List(ctx, "JobName eq 'TestFailover'"))
	if len(jobs) != 1 || jobs[0].Properties.CustomDetails.BootProof == nil {
		t.Fatalf("jobs %+v", jobs)
	}
	if png := must[[]byte](t)(c.Jobs().Screenshot(ctx, jobs[0].Name)); !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Error("no screenshot")
	}
	do(t, "cleanup", nil)(c.Items().CleanupTest(ctx, it.ID, "fine"))
	do(t, "unplanned", nil)(c.Items().UnplannedFailover(ctx, it.ID, "", true))
	do(t, "change point", nil)(c.Items().ChangePoint(ctx, it.ID, points[0].ID))
	do(t, "cancel", nil)(c.Items().Act(ctx, it.ID, "failoverCancel"))
	do(t, "planned", nil)(c.Items().PlannedFailover(ctx, it.ID))
	do(t, "commit", &it)(c.Items().Act(ctx, it.ID, "failoverCommit"))
	if s := must[armwire.ItemSummary](t)(c.Items().Summary(ctx, "web01")); s.ProtectionState != "FailoverCommitted" || s.ResourceID != it.ID {
		t.Errorf("summary %+v", s)
	}
	if all := must[[]armwire.ItemSummary](t)(c.Items().Summaries(ctx)); len(all) != 1 {
		t.Errorf("%d summaries", len(all))
	}
	key := must[[]byte](t)(c.RegistrationKey(ctx, "site-a", true, 1))
	if k, err := armwire.DecodeKeyFile(key); err != nil || k.SiteName != "site-a" {
		t.Errorf("%v", err)
	}
	do(t, "disable", nil)(c.Remove(ctx, it.ID, true))
}

func TestFailedAndCancelledOperations(t *testing.T) {
	t.Parallel()
	c, in := start(t, armapi.Config{})
	in.Fake.FailNext("CreateSite", dr.CodeStoreFull)
	op := must[*armclient.Operation](t)(c.CreateFabric(t.Context(), "x", dr.HyperVSite))
	err := op.Wait(t.Context(), nil, nil)
	if dr.CodeOf(err) != dr.CodeStoreFull || dr.KindOf(err) != dr.KindExhausted || dr.HintOf(err) == "" {
		t.Errorf("failed job: %v (%v, hint %q)", err, dr.KindOf(err), dr.HintOf(err))
	}
	slow := armapitest.NewServer(t, armapitest.New(armapitest.Config{Step: time.Hour}), armapi.Config{})
	id := slow.Fake.Identity()
	c2, err := armclient.New(armclient.Config{URL: slow.URL, HTTP: slow.Client, Token: slow.Token(t, dr.RoleOwner), SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, Vault: id.Name, PollInterval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	op = must[*armclient.Operation](t)(c2.CreateFabric(t.Context(), "x", dr.HyperVSite))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := op.Wait(ctx, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait with a deadline: %v", err)
	}
	if _, err := c2.Jobs().Do(t.Context(), op.JobID, "cancel", ""); err != nil {
		t.Fatal(err)
	}
	if err := op.Wait(t.Context(), nil, nil); dr.KindOf(err) != dr.KindCanceled {
		t.Errorf("cancelled job: %v", err)
	}
}

func TestErrorsOfTheServerComeBack(t *testing.T) {
	t.Parallel()
	c, _ := start(t, armapi.Config{})
	_, err := c.SavePolicy(t.Context(), "x", armwire.PolicySettings{ReplicationInterval: new(int32)})
	if dr.KindOf(err) != dr.KindInvalid || dr.CodeOf(err) != dr.CodePolicyInvalid {
		t.Errorf("%v", err)
	}
	_, err = c.Fabric(t.Context(), "site-a?x=../site-b")
	if dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("a name with a question mark: %v", err)
	}
	_, err = c.Fabric(t.Context(), "..")
	if dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("a name of two dots: %v", err)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	in := armapitest.NewServer(t, armapitest.New(armapitest.Config{}), armapi.Config{})
	id := in.Fake.Identity()
	cfg := armclient.Config{URL: in.URL, HTTP: in.Client, TenantID: id.TenantID, ClientID: "Owner", ClientSecret: "wr0ng-secret", SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, Vault: id.Name}
	c, err := armclient.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Fabrics(t.Context())
	if dr.KindOf(err) != dr.KindUnauthenticated || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("%v", err)
	}
	cfg.Token = "stale"
	if c, err = armclient.New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fabrics(t.Context()); dr.KindOf(err) != dr.KindUnauthenticated {
		t.Errorf("%v", err)
	}
}

// TestTokenIsRenewed lets the server forget the token once.
func TestTokenIsRenewed(t *testing.T) {
	t.Parallel()
	var logins, refused atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/token"):
			_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "t" + string('0'+rune(logins.Add(1))), "expires_in": 3600})
		case r.Header.Get("Authorization") == "Bearer t1":
			refused.Add(1)
			w.WriteHeader(401)
		default:
			_, _ = w.Write([]byte(`{"value":[],"nextLink":null}`))
		}
	}))
	t.Cleanup(srv.Close)
	c, err := armclient.New(armclient.Config{URL: srv.URL, TenantID: "t", ClientID: "c", ClientSecret: "s", SubscriptionID: "s", ResourceGroup: "g", Vault: "v"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fabrics(t.Context()); err != nil || logins.Load() != 2 || refused.Load() != 1 {
		t.Errorf("%v after %d logins and %d refusals", err, logins.Load(), refused.Load())
	}
}

// TestAnswersOfOthers feeds the client what proxies and broken servers say.
func TestAnswersOfOthers(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		status int
		body   string
		header map[string]string
		want   dr.Kind
	}{
		"proxy 404":         {404, "<html>not here</html>", nil, dr.KindInternal},
		"proxy 502":         {502, "<html>", nil, dr.KindUnavailable},
		"no JSON":           {200, "<html>", nil, dr.KindInternal},
		"redirect":          {302, "", map[string]string{"Location": "https://elsewhere.example/"}, dr.KindInternal},
		"endless next link": {200, `{"value":[],"nextLink":"https://elsewhere.example/same?api-version=1"}`, nil, dr.KindInternal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for k, v := range tt.header {
					w.Header().Set(k, v)
				}
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			}))
			t.Cleanup(srv.Close)
			c, err := armclient.New(armclient.Config{URL: srv.URL, Token: "t", SubscriptionID: "s", ResourceGroup: "g", Vault: "v"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Fabrics(t.Context())
			if err == nil || dr.KindOf(err) != tt.want {
				t.Errorf("%v (%v), want %v", err, dr.KindOf(err), tt.want)
			}
		})
	}
	c, err := armclient.New(armclient.Config{URL: "http://127.0.0.1:1", Token: "t", SubscriptionID: "s", ResourceGroup: "g", Vault: "v"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fabrics(t.Context()); dr.KindOf(err) != dr.KindUnavailable || dr.CodeOf(err) != dr.CodeVaultUnreachable {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]armclient.Config{
		"empty": {}, "no credentials": {URL: "https://x", SubscriptionID: "s", ResourceGroup: "g", Vault: "v"}, "no vault": {URL: "https://x", Token: "t"},
		"no CA file": {URL: "https://x", Token: "t", SubscriptionID: "s", ResourceGroup: "g", Vault: "v", CAFile: "/nonexistent"},
	} {
		if _, err := armclient.New(cfg); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
