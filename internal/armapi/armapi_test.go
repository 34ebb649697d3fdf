package armapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/armapi"
	"holdfast/internal/armapi/armapitest"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

var update = flag.Bool("update", false, "rewrite golden files")

const step = time.Second

// clock is a hand-moved clock.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// rig is a server whose world stands still unless the test moves the clock.
type rig struct {
	t    *testing.T
	fake *armapitest.Fake
	srv  *armapi.Server
	clk  *clock
	auth map[dr.Role]string
	log  *bytes.Buffer
}

func newRig(t *testing.T, change ...func(*armapi.Config)) *rig {
	t.Helper()
	clk := &clock{t: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)}
	fake := armapitest.New(armapitest.Config{Now: clk.now, Step: step})
	var log bytes.Buffer
	cfg := armapi.Config{Service: fake, PublicURL: "https://vault.example", Now: clk.now, Log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, c := range change {
		c(&cfg)
	}
	srv, err := armapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, fake: fake, srv: srv, clk: clk, auth: map[dr.Role]string{}, log: &log}
	for _, role := range []dr.Role{dr.RoleReader, dr.RoleOperator, dr.RoleContributor, dr.RoleOwner} {
		token, _, err := fake.IssueToken(t.Context(), string(role), armapitest.Secret)
		if err != nil {
			t.Fatal(err)
		}
		r.auth[role] = token
	}
	return r
}

// answer is a response with its JSON decoded.
type answer struct {
	*httptest.ResponseRecorder
	json map[string]any
}

// at reads a path such as "properties.customDetails.instanceType" or "value.0.name".
func (a answer) at(path string) any {
	var v any = a.json
	for p := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[p]
		case []any:
			var i int
			if _, err := fmt.Sscan(p, &i); err != nil || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

const apiVersion = "2025-01-01"

func (r *rig) vault() string {
	id := r.fake.Identity()
	return armwire.VaultID{SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, Vault: id.Name}.String()
}

// raw sends a request as it is.
func (r *rig) raw(req *http.Request) answer {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.srv.ServeHTTP(w, req)
	a := answer{ResponseRecorder: w}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && bytes.HasPrefix(w.Body.Bytes(), []byte("{")) {
		if err := json.Unmarshal(w.Body.Bytes(), &a.json); err != nil {
			r.t.Fatalf("%s %s: body is no JSON: %v", req.Method, req.URL, err)
		}
	}
	return a
}

// as sends a request below the vault as a caller of the given role.
func (r *rig) as(role dr.Role, method, path, body string) answer {
	r.t.Helper()
	if !strings.HasPrefix(path, "/subscriptions") && !strings.HasPrefix(path, "/holdfast") {
		path = r.vault() + path
	}
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	if !strings.HasPrefix(path, "/holdfast") {
		path += sep + "api-version=" + apiVersion
	}
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+r.auth[role])
	return r.raw(req)
}

func (r *rig) do(method, path, body string) answer {
	r.t.Helper()
	return r.as(dr.RoleOwner, method, path, body)
}

func (r *rig) want(a answer, status int, what string) answer {
	r.t.Helper()
	if a.Code != status {
		r.t.Fatalf("%s: status %d, want %d: %s", what, a.Code, status, a.Body)
	}
	return a
}

// run sends a change, checks the 202 and its headers, lets the job end and
// returns the final answers of both kinds of polling.
func (r *rig) run(method, path, body string) (status, result answer) {
	r.t.Helper()
	a := r.want(r.do(method, path, body), 202, method+" "+path)
	for range 20 {
		status = r.follow(a.Header().Get("Azure-AsyncOperation"))
		if status.at("status") != "InProgress" {
			return status, r.follow(a.Header().Get("Location"))
		}
		if running := r.follow(a.Header().Get("Location")); running.Code != 202 || running.Header().Get("Location") == "" {
			r.t.Fatalf("result of a running job: %d, Location %q", running.Code, running.Header().Get("Location"))
		}
		r.clk.add(step)
	}
	r.t.Fatalf("%s %s: the job does not end", method, path)
	return
}

// ok runs a change that must succeed and returns the resource.
func (r *rig) ok(method, path, body string) answer {
	r.t.Helper()
	status, result := r.run(method, path, body)
	if status.at("status") != "Succeeded" {
		r.t.Fatalf("%s %s: %s", method, path, status.Body)
	}
	return result
}

func (r *rig) follow(link string) answer {
	r.t.Helper()
	u, err := url.Parse(link)
	if err != nil || u.Host != "vault.example" {
		r.t.Fatalf("link %q is not absolute on the public URL", link)
	}
	req := httptest.NewRequest("GET", u.RequestURI(), nil)
	req.Header.Set("Authorization", "Bearer "+r.auth[dr.RoleReader])
	return r.raw(req)
}

const (
	siteA = "/replicationFabrics/site-a"
	contA = siteA + "/replicationProtectionContainers/cloud_0c6b7a52-4f53-4f0c-9a55-6f0b3f1d0a01"
	contB = "/replicationFabrics/site-b/replicationProtectionContainers/cloud_0c6b7a52-4f53-4f0c-9a55-6f0b3f1d0a02"
	vm1   = "3f2b8a10-2222-4222-8222-000000000001"
	item1 = contA + "/replicationProtectedItems/" + vm1
)

// protect makes policy, mapping and the protected item web01.
func (r *rig) protect() {
	r.t.Helper()
	r.ok("PUT", "/replicationPolicies/gold", `{"properties":{"providerSpecificInput":{"instanceType":"HyperVReplicaAzure","recoveryPointHistoryDuration":24,"replicationInterval":30,"applicationConsistentSnapshotFrequencyInHours":1,"storageAccounts":["/subscriptions/x/resourceGroups/y/providers/Microsoft.Storage/storageAccounts/z"]}}}`)
	r.ok("PUT", contA+"/replicationProtectionContainerMappings/map", fmt.Sprintf(`{"properties":{"policyId":%q,"targetProtectionContainerId":%q,"providerSpecificInput":{}}}`, r.vault()+"/replicationPolicies/gold", r.vault()+contB))
	r.ok("PUT", item1, r.enableBody())
}

func (r *rig) enableBody() string {
	return fmt.Sprintf(`{"properties":{"policyId":%q,"protectableItemId":%q,"providerSpecificDetails":{"instanceType":"HyperVReplicaAzure","vmName":"web01","osType":"Linux","vhdId":"vda","targetAzureVmName":"web01-dr","targetAzureNetworkId":"/subscriptions/s/virtualNetworks/prod","targetVmSize":"Standard_B2s","useManagedDisks":"true","vaultLocation":"ignored"}}}`,
		r.vault()+"/replicationPolicies/GOLD", r.vault()+contA+"/replicationProtectableItems/"+strings.ToUpper(vm1))
}

func TestStory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	it := r.want(r.do("GET", item1, ""), 200, "item")
	if it.at("properties.protectionState") != "Protected" || it.at("properties.recoveryFabricFriendlyName") != "site-b" {
		t.Fatalf("after enabling: %s", it.Body)
	}
	if ops := fmt.Sprint(it.at("properties.allowedOperations")); ops != "[PlannedFailover UnplannedFailover TestFailover RepairReplication DisableProtection]" {
		t.Errorf("allowed operations %s", ops)
	}
	points := r.do("GET", item1+"/recoveryPoints", "")
	point, _ := points.at("value.0.id").(string)
	r.want(r.do("GET", point, ""), 200, "recovery point by its id")

	res := r.ok("POST", item1+"/testFailover", `{"properties":{"failoverDirection":"PrimaryToRecovery","networkType":"VmNetworkAsInput","networkId":"/subscriptions/s/virtualNetworks/lab","providerSpecificDetails":{"instanceType":"HyperVReplicaAzure"}}}`)
	if res.at("properties.testFailoverState") != "WaitingForCompletion" || res.at("properties.holdfastTestNetwork") != "lab" {
		t.Fatalf("the result of a POST is not the item after it: %s", res.Body)
	}
	res = r.ok("POST", item1+"/testFailoverCleanup", `{"properties":{"comments":"went well"}}`)
	if res.at("properties.testFailoverState") != "None" || res.at("properties.lastSuccessfulTestFailoverTime") == nil {
		t.Fatalf("after cleanup: %s", res.Body)
	}
	res = r.ok("POST", item1+"/unplannedFailover", `{"properties":{"sourceSiteOperations":"NotRequired","providerSpecificDetails":{"instanceType":"HyperVReplicaAzure","recoveryPointId":null}}}`)
	if res.at("properties.protectionState") != "FailoverCommitPending" || res.at("properties.activeLocation") != "Recovery" {
		t.Fatalf("after failover: %s", res.Body)
	}
	if res.at("properties.providerSpecificDetails.rpoInSeconds") != nil {
		t.Error("an item that runs at the recovery site shows an RPO")
	}
	r.ok("POST", item1+"/applyRecoveryPoint", fmt.Sprintf(`{"properties":{"recoveryPointId":%q,"providerSpecificDetails":{"instanceType":"HyperVReplicaAzure"}}}`, point))
	res = r.ok("POST", item1+"/failoverCommit", "")
	if res.at("properties.protectionState") != "FailoverCommitted" || res.at("properties.failoverRecoveryPointId") != point {
		t.Fatalf("after commit: %s", res.Body)
	}
	if gone := r.ok("POST", item1+"/remove", `{"properties":{"disableProtectionReason":"NotSpecified","replicationProviderInput":{"instanceType":"DisableProtectionProviderSpecificInput"}}}`); gone.Code != 204 {
		t.Errorf("result of remove: %d, want 204", gone.Code)
	}
	r.want(r.do("GET", item1, ""), 404, "removed item")
	r.want(r.do("DELETE", item1, ""), 204, "purge of what is gone")
}

func TestFailoverCancelAndRepair(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.ok("POST", item1+"/plannedFailover", `{"properties":{"providerSpecificDetails":{}}}`)
	if res := r.ok("POST", item1+"/failoverCancel", ""); res.at("properties.activeLocation") != "Primary" || res.at("properties.protectionState") != "Protected" {
		t.Errorf("after cancel: %s", res.Body)
	}
	r.ok("POST", item1+"/repairReplication", "")
	if res := r.ok("DELETE", item1, ""); res.Code != 204 {
		t.Errorf("purge: %d", res.Code)
	}
}

// TestLROHeaders holds the server to what each client was seen to need.
func TestLROHeaders(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.want(r.do("PUT", "/REPLICATIONFABRICS/New-Site", `{}`), 202, "create")
	loc, async := a.Header().Get("Location"), a.Header().Get("Azure-AsyncOperation")
	_, rest, _ := strings.Cut(loc, "operationresults/")
	job, _, found := strings.Cut(rest, "?")
	if !found || job == "" {
		t.Fatalf("no job id between operationresults/ and ? in %q", loc)
	}
	if want := "https://vault.example" + r.vault() + "/replicationFabrics/New-Site/operationresults/" + job + "?api-version=" + apiVersion; loc != want {
		t.Errorf("Location\n%s, want\n%s", loc, want)
	}
	if want := "https://vault.example" + r.vault() + "/replicationOperationStatus/" + job + "?api-version=" + apiVersion; async != want {
		t.Errorf("Azure-AsyncOperation\n%s, want\n%s", async, want)
	}
	if a.Header().Get("Retry-After") != "1" || a.Body.Len() != 0 {
		t.Errorf("Retry-After %q, body %q", a.Header().Get("Retry-After"), a.Body)
	}
	r.want(r.do("GET", "/replicationJobs/"+job, ""), 200, "the job under the operation's id")
	r.clk.add(step)
	if res := r.follow(loc); res.Code != 200 || res.at("name") != "New-Site" {
		t.Errorf("result: %d %s", res.Code, res.Body)
	}
	if again := r.do("PUT", "/replicationFabrics/new-site", `{"properties":{"customDetails":{"instanceType":"HyperVSite"}}}`); again.Code != 200 || again.at("name") != "New-Site" {
		t.Errorf("PUT again: %d %s", again.Code, again.Body)
	}
}

func TestFailedJob(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.fake.FailNext("TestFailover", dr.CodeBootNotVerified)
	status, result := r.run("POST", item1+"/testFailover", `{"properties":{}}`)
	if status.Code != 200 || status.at("status") != "Failed" || status.at("error.code") != string(dr.CodeBootNotVerified) || status.at("error.holdfastHint") == nil {
		t.Errorf("status: %s", status.Body)
	}
	if result.Code != 400 || result.at("error.code") != string(dr.CodeBootNotVerified) || result.Header().Get("x-ms-error-code") == "" {
		t.Errorf("result: %d %s", result.Code, result.Body)
	}
	jobs := r.do("GET", "/replicationJobs?$filter="+url.QueryEscape("JobStatus eq 'Failed' and JobName eq 'TestFailover'"), "")
	if jobs.at("value.0.properties.errors.0.serviceErrorDetails.recommendedAction") == nil || jobs.at("value.1") != nil {
		t.Errorf("failed jobs: %s", jobs.Body)
	}
	if res := r.ok("POST", item1+"/testFailoverCleanup", `{}`); res.at("properties.testFailoverState") != "None" {
		t.Errorf("after cleanup: %s", res.Body)
	}
}

func TestCancelledJob(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	a := r.want(r.do("POST", item1+"/repairReplication", ""), 202, "resync")
	_, rest, _ := strings.Cut(a.Header().Get("Location"), "operationresults/")
	job, _, _ := strings.Cut(rest, "?")
	if c := r.want(r.do("POST", "/replicationJobs/"+job+"/cancel", ""), 200, "cancel"); c.at("name") != job {
		t.Errorf("cancel answers %s", c.Body)
	}
	if s := r.follow(a.Header().Get("Azure-AsyncOperation")); s.at("status") != "Canceled" {
		t.Errorf("operation: %s, want Canceled with one l", s.Body)
	}
	if j := r.do("GET", "/replicationJobs/"+job, ""); j.at("properties.state") != "Cancelled" {
		t.Errorf("job: %s, want Cancelled with two l", j.Body)
	}
	r.want(r.do("POST", "/replicationJobs/"+job+"/cancel", ""), 409, "cancel twice")
	r.want(r.do("POST", "/replicationJobs/"+job+"/resume", `{"properties":{"comments":"x"}}`), 409, "resume")
	r.want(r.do("POST", "/replicationJobs/nope/restart", ""), 404, "restart of nothing")
}

func TestErrors(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	policy := "/replicationPolicies/p"
	for _, tt := range []struct {
		name, method, path, body string
		role                     dr.Role
		status                   int
		code                     string
	}{
		{"unknown fabric", "GET", "/replicationFabrics/nope", "", dr.RoleReader, 404, "ResourceNotFound"},
		{"other vault", "GET", strings.Replace(r.vault(), "vault1", "vault2", 1), "", dr.RoleReader, 404, "ResourceNotFound"},
		{"create other vault", "PUT", strings.Replace(r.vault(), "vault1", "vault2", 1), "{}", dr.RoleOwner, 400, "NotSupported"},
		{"other group", "GET", strings.Replace(r.vault(), "Group-One", "two", 1), "", dr.RoleReader, 404, "ResourceGroupNotFound"},
		{"other subscription", "GET", "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/x/providers/Microsoft.RecoveryServices/vaults/v", "", dr.RoleReader, 404, "SubscriptionNotFound"},
		{"reader may not create", "PUT", policy, "{}", dr.RoleReader, 403, "AuthorizationFailed"},
		{"operator may not create", "PUT", policy, "{}", dr.RoleOperator, 403, "AuthorizationFailed"},
		{"reader may not fail over", "POST", item1 + "/unplannedFailover", "{}", dr.RoleReader, 403, "AuthorizationFailed"},
		{"reader gets no shared key", "GET", "/extendedInformation/vaultExtendedInfo", "", dr.RoleReader, 403, "AuthorizationFailed"},
		{"malformed body", "PUT", policy, `{"properties":`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"wrong type", "PUT", policy, `{"properties":{"providerSpecificInput":{"replicationInterval":"often"}}}`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"array body", "PUT", policy, `[]`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"foreign instance type", "PUT", policy, `{"properties":{"providerSpecificInput":{"instanceType":"A2A"}}}`, dr.RoleOwner, 400, "NotSupported"},
		{"policy out of range", "PUT", policy, `{"properties":{"providerSpecificInput":{"replicationInterval":1}}}`, dr.RoleOwner, 400, "PolicyInvalid"},
		{"policy negative", "PUT", policy, `{"properties":{"providerSpecificInput":{"recoveryPointHistoryDuration":-1}}}`, dr.RoleOwner, 400, "PolicyInvalid"},
		{"policy in use", "DELETE", "/replicationPolicies/gold", "", dr.RoleOwner, 409, "PolicyInUse"},
		{"body too large", "PUT", policy, `{"x":"` + strings.Repeat("x", armapi.MaxBody) + `"}`, dr.RoleOwner, 400, "RequestContentTooLarge"},
		{"VMware fabric", "PUT", "/replicationFabrics/v", `{"properties":{"customDetails":{"instanceType":"VMwareV2"}}}`, dr.RoleOwner, 400, "NotSupported"},
		{"fabric not empty", "POST", siteA + "/remove", "", dr.RoleOwner, 409, "FabricNotEmpty"},
		{"wrong container", "GET", siteA + "/replicationProtectionContainers/cloud_x/replicationProtectableItems", "", dr.RoleReader, 404, "ResourceNotFound"},
		{"unknown type", "GET", "/wishes", "", dr.RoleReader, 404, "InvalidResourceType"},
		{"unsupported write", "PUT", "/replicationRecoveryPlans/p", "{}", dr.RoleOwner, 400, "NotSupported"},
		{"absent of an empty kind", "GET", "/replicationRecoveryPlans/p", "", dr.RoleReader, 404, "ResourceNotFound"},
		{"unsupported action", "POST", item1 + "/switchProvider", "{}", dr.RoleOwner, 400, "NotSupported"},
		{"reprotect", "POST", item1 + "/reProtect", `{"properties":{"failoverDirection":"PrimaryToRecovery"}}`, dr.RoleOwner, 400, "NotSupported"},
		{"failback", "POST", item1 + "/plannedFailover", `{"properties":{"failoverDirection":"RecoveryToPrimary","providerSpecificDetails":{"instanceType":"HyperVReplicaAzureFailback"}}}`, dr.RoleOwner, 400, "NotSupported"},
		{"wrong direction", "POST", item1 + "/plannedFailover", `{"properties":{"failoverDirection":"Up"}}`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"network missing", "POST", item1 + "/testFailover", `{"properties":{"networkType":"VmNetworkAsInput"}}`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"network type unknown", "POST", item1 + "/testFailover", `{"properties":{"networkType":"Pigeon"}}`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"not a point", "POST", item1 + "/unplannedFailover", `{"properties":{"providerSpecificDetails":{"recoveryPointId":"yesterday"}}}`, dr.RoleOwner, 400, "RecoveryPointNameInvalid"},
		{"point of another item", "POST", item1 + "/unplannedFailover", fmt.Sprintf(`{"properties":{"providerSpecificDetails":{"recoveryPointId":%q}}}`, r.vault()+contA+"/replicationProtectedItems/other/recoveryPoints/g00000001-c0000000000000000"), dr.RoleOwner, 400, "InvalidRequestContent"},
		{"point that is gone", "POST", item1 + "/unplannedFailover", `{"properties":{"providerSpecificDetails":{"recoveryPointId":"g00000001-c00000000000000ff"}}}`, dr.RoleOwner, 404, "ResourceNotFound"},
		{"commit without failover", "POST", item1 + "/failoverCommit", "", dr.RoleOwner, 409, "OperationNotAllowed"},
		{"policy of the body missing", "PUT", contA + "/replicationProtectedItems/x", `{"properties":{}}`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"policy of the body unknown", "PUT", contA + "/replicationProtectedItems/x", `{"properties":{"policyId":"nope"}}`, dr.RoleOwner, 400, "ResourceNotFound"},
		{"policy of another vault", "PUT", contA + "/replicationProtectedItems/x", `{"properties":{"policyId":"/subscriptions/a/resourceGroups/b/providers/Microsoft.RecoveryServices/vaults/c/replicationPolicies/gold"}}`, dr.RoleOwner, 400, "InvalidRequestContent"},
		{"VM protected already", "PUT", contA + "/replicationProtectedItems/other", r.enableBody(), dr.RoleOwner, 409, "ResourceExists"},
		{"target container unknown", "PUT", contA + "/replicationProtectionContainerMappings/m2", fmt.Sprintf(`{"properties":{"policyId":"gold","targetProtectionContainerId":%q}}`, r.vault()+"/replicationFabrics/x/replicationProtectionContainers/cloud_x"), dr.RoleOwner, 400, "ResourceNotFound"},
		{"mapping with another target", "PUT", contA + "/replicationProtectionContainerMappings/map", `{"properties":{"policyId":"gold","targetProtectionContainerId":"Microsoft Azure"}}`, dr.RoleOwner, 409, "ResourceExists"},
		{"certificate for nobody", "PUT", "/certificates/c", "", dr.RoleOwner, 400, "BadRequest"},
		{"key too long", "PUT", "/certificates/c", `{"certificateCreateOptions":{"validityInHours":121}}`, dr.RoleOwner, 400, "BadRequest"},
		{"bad filter", "GET", "/replicationJobs?$filter=Mood+eq+'good'", "", dr.RoleReader, 400, "InvalidFilter"},
		{"bad page token", "GET", "/replicationJobs?$skipToken=%21", "", dr.RoleReader, 400, "InvalidPageToken"},
		{"bad top", "GET", "/replicationJobs?$top=0", "", dr.RoleReader, 400, "InvalidPageToken"},
		{"empty segment", "GET", "/replicationFabrics//x", "", dr.RoleReader, 400, "InvalidPath"},
		{"extension", "GET", "/holdfast/v1/nothing", "", dr.RoleReader, 404, "InvalidResourceType"},
		{"key for readers", "POST", "/holdfast/v1/fabrics/site-a/registrationKeys", "", dr.RoleOperator, 403, "AuthorizationFailed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := r.as(tt.role, tt.method, tt.path, tt.body)
			if a.Code != tt.status || a.at("error.code") != tt.code {
				t.Fatalf("%d %s, want %d %s", a.Code, a.Body, tt.status, tt.code)
			}
			if msg, _ := a.at("error.message").(string); msg == "" {
				t.Error("no message")
			}
			if a.Header().Get("x-ms-error-code") != tt.code || a.Header().Get("x-ms-request-id") == "" {
				t.Errorf("headers %v", a.Header())
			}
		})
	}
}

func TestAPIVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for q, want := range map[string]string{
		"": "MissingApiVersionParameter", "?api-version=": "MissingApiVersionParameter", "?api-version=latest": "InvalidApiVersionParameter", "?api-version=2025-13-01": "InvalidApiVersionParameter",
		"?api-version=2016-08-10": "", "?api-version=2099-01-01": "", "?API-Version=2023-06-01-preview": "",
	} {
		req := httptest.NewRequest("GET", r.vault()+"/replicationFabrics"+q, nil)
		req.Header.Set("Authorization", "Bearer "+r.auth[dr.RoleReader])
		a := r.raw(req)
		if want == "" {
			r.want(a, 200, q)
		} else if a.Code != 400 || a.at("error.code") != want {
			t.Errorf("%q: %d %s, want %s", q, a.Code, a.Body, want)
		}
	}
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name, header := range map[string]string{"none": "", "unknown": "Bearer nope", "basic": "Basic eDp5", "empty": "Bearer "} {
		for _, path := range []string{r.vault() + "?api-version=2025-01-01", "/subscriptions?api-version=2020-01-01", "/holdfast/v1/items", "/tenants"} {
			req := httptest.NewRequest("GET", path, nil)
			if header != "" {
				req.Header.Set("Authorization", header)
			}
			a := r.raw(req)
			if a.Code != 401 || !strings.Contains(a.Header().Get("WWW-Authenticate"), `authorization_uri="https://vault.example/`+r.fake.Identity().TenantID+`"`) {
				t.Errorf("%s, %s: %d %q", name, path, a.Code, a.Header().Get("WWW-Authenticate"))
			}
		}
	}
	if a := r.raw(httptest.NewRequest("GET", "/holdfast/v1/health", nil)); a.Code != 200 || a.at("status") != "ok" {
		t.Errorf("health: %d %s", a.Code, a.Body)
	}
}

func TestTokenRoutes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tenant := r.fake.Identity().TenantID
	for _, path := range []string{"/" + tenant + "/v2.0/.well-known/openid-configuration", "/" + strings.ToUpper(tenant) + "/.well-known/openid-configuration", "/adfs/.well-known/openid-configuration"} {
		a := r.want(r.raw(httptest.NewRequest("GET", path, nil)), 200, path)
		if ep, _ := a.at("token_endpoint").(string); !strings.HasPrefix(ep, "https://vault.example/") || !strings.HasSuffix(ep, "/token") {
			t.Errorf("%s: %s", path, a.Body)
		}
	}
	post := func(path string, form url.Values, basic ...string) answer {
		req := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if basic != nil {
			req.SetBasicAuth(basic[0], basic[1])
		}
		return r.raw(req)
	}
	form := func(id, secret string) url.Values {
		return url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}, "scope": {"x/.default"}}
	}
	for _, path := range []string{"/" + tenant + "/oauth2/v2.0/token", "/" + tenant + "/oauth2/token", "/adfs/oauth2/token"} {
		a := r.want(post(path, form("Reader", armapitest.Secret)), 200, path)
		token, _ := a.at("access_token").(string)
		if a.at("token_type") != "Bearer" || a.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s", path, a.Body)
		}
		req := httptest.NewRequest("GET", "/subscriptions?api-version=2020-01-01", nil)
		req.Header.Set("Authorization", "bearer "+token)
		if a := r.raw(req); a.Code != 200 || a.at("value.0.subscriptionId") != r.fake.Identity().SubscriptionID {
			t.Errorf("token of %s: %d %s", path, a.Code, a.Body)
		}
	}
	path := "/" + tenant + "/oauth2/v2.0/token"
	if a := post(path, url.Values{"grant_type": {"client_credentials"}}, "Reader", armapitest.Secret); a.Code != 200 {
		t.Errorf("Basic: %d %s", a.Code, a.Body)
	}
	for name, tt := range map[string]struct {
		a      answer
		status int
		code   string
	}{
		"wrong secret":   {post(path, form("Reader", "wrong")), 401, "invalid_client"},
		"unknown client": {post(path, form("Nobody", armapitest.Secret)), 401, "invalid_client"},
		"password grant": {post(path, url.Values{"grant_type": {"password"}}), 400, "unsupported_grant_type"},
		"no client":      {post(path, url.Values{"grant_type": {"client_credentials"}}), 400, "invalid_request"},
		"secret in URL":  {post(path+"?client_id=Reader&client_secret="+armapitest.Secret, url.Values{"grant_type": {"client_credentials"}}), 400, "invalid_request"},
		"other tenant":   {post("/other/oauth2/v2.0/token", form("Reader", armapitest.Secret)), 400, "invalid_tenant"},
		"GET":            {r.raw(httptest.NewRequest("GET", path, nil)), 405, "invalid_request"},
	} {
		if tt.a.Code != tt.status || tt.a.at("error") != tt.code {
			t.Errorf("%s: %d %s, want %d %s", name, tt.a.Code, tt.a.Body, tt.status, tt.code)
		}
	}
	if strings.Contains(r.log.String(), armapitest.Secret) {
		t.Error("a secret is in the log")
	}
}

func TestMetadataAndScopes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.want(r.raw(httptest.NewRequest("GET", "/metadata/endpoints?api-version=2022-09-01", nil)), 200, "metadata")
	for _, k := range []string{"name", "resourceManager", "microsoftGraphResourceId", "authentication.loginEndpoint"} {
		if a.at(k) == nil {
			t.Errorf("metadata lacks %s: %s", k, a.Body)
		}
	}
	if b := r.raw(httptest.NewRequest("GET", "/metadata/endpoints?api-version=2019-05-01", nil)).Body.Bytes(); !bytes.HasPrefix(b, []byte("[")) {
		t.Errorf("2019-05-01 is no array: %s", b)
	}
	id := r.fake.Identity()
	for _, path := range []string{
		"/subscriptions/" + id.SubscriptionID, "/subscriptions/" + id.SubscriptionID + "/resourceGroups", "/subscriptions/" + id.SubscriptionID + "/resourcegroups/group-one",
		"/subscriptions/" + id.SubscriptionID + "/providers/Microsoft.RecoveryServices",
	} {
		r.want(r.do("GET", path, ""), 200, path)
	}
	for _, path := range []string{"/subscriptions/" + id.SubscriptionID + "/providers/microsoft.recoveryservices/Vaults", "/subscriptions/" + id.SubscriptionID + "/resourceGroups/GROUP-ONE/providers/Microsoft.RecoveryServices/vaults"} {
		if a := r.want(r.do("GET", path, ""), 200, path); a.at("value.0.name") != "vault1" || a.at("value.1") != nil {
			t.Errorf("%s: %s", path, a.Body)
		}
	}
	r.want(r.do("GET", "/subscriptions/other/resourceGroups", ""), 404, "other subscription")
	r.want(r.do("GET", "/subscriptions/"+id.SubscriptionID+"/oddities", ""), 404, "unknown scope")
}

func TestVaultTagsAndExtendedInfo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.want(r.do("PUT", "", `{"location":"onprem","sku":{"name":"RS0"},"tags":{"owner":"ops"},"properties":{}}`), 200, "create of what exists")
	r.want(r.do("PATCH", "", `{"properties":{}}`), 200, "patch without tags")
	if a := r.do("GET", "", ""); a.at("tags.owner") != "ops" || a.at("properties.provisioningState") != "Succeeded" {
		t.Errorf("vault: %s", a.Body)
	}
	const ext = "/extendedInformation/vaultExtendedInfo"
	r.want(r.do("GET", ext, ""), 404, "no extended information yet")
	r.want(r.do("PUT", ext, `{"properties":{"integrityKey":"a2V5","algorithm":"None"}}`), 200, "put")
	r.want(r.do("PATCH", ext, `{"properties":{"algorithm":"X"}}`), 200, "patch")
	if a := r.do("GET", ext, ""); a.at("properties.integrityKey") != "a2V5" || a.at("properties.algorithm") != "X" {
		t.Errorf("extended information: %s", a.Body)
	}
}

func TestRegistrationKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.want(r.do("POST", "/holdfast/v1/fabrics/SITE-A/registrationKeys", `{"oneTime":true,"validityHours":24}`), 200, "key file")
	k, err := armwire.DecodeKeyFile(a.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if k.SiteName != "site-a" || k.Credential.Secret != "hfk_"+armapitest.Secret || k.Credential.VaultURL != "https://vault.example" || k.SiteID != k.Credential.Fabric || k.VaultName != "vault1" {
		t.Errorf("key file %+v of site %s", k.Credential.Fabric, k.SiteName)
	}
	if a.Header().Get("Holdfast-Key-Id") != k.Credential.KeyID || !strings.Contains(a.Header().Get("Content-Disposition"), "site-a_vault1_") {
		t.Errorf("headers %v", a.Header())
	}
	c := r.want(r.do("PUT", "/certificates/CN=test", `{"properties":{"holdfastFabric":"site-b"},"certificateCreateOptions":{"validityInHours":48}}`), 200, "certificate")
	var cert armwire.Resource[armwire.CertificateDetails]
	if err := json.Unmarshal(c.Body.Bytes(), &cert); err != nil {
		t.Fatal(err)
	}
	cred, err := armwire.DecodeCredential(cert.Properties.Certificate)
	if err != nil || cert.Properties.AuthType != "AzureActiveDirectory" {
		t.Fatalf("%v: %s", err, c.Body)
	}
	if cred.Fabric != "0c6b7a52-4f53-4f0c-9a55-6f0b3f1d0a02" {
		t.Errorf("key is for %s", cred.Fabric)
	}
	if strings.Contains(r.log.String(), armapitest.Secret) {
		t.Error("a secret is in the log")
	}
	r.want(r.do("POST", "/holdfast/v1/fabrics/nope/registrationKeys", ""), 404, "no such site")
}

func TestExtensionItemsAndScreenshot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.clk.add(40 * time.Second)
	list := r.want(r.do("GET", "/holdfast/v1/items", ""), 200, "list")
	id, _ := list.at("value.0.id").(string)
	for _, ref := range []string{id, strings.ToUpper(id), vm1, "WEB01"} {
		a := r.want(r.do("GET", "/holdfast/v1/items/"+ref, ""), 200, ref)
		if a.at("replication.rpoLagSeconds") != 10.0 || a.at("replication.backlogBytes") != 4096.0 || a.at("points") != 2.0 {
			t.Errorf("%s: %s", ref, a.Body)
		}
	}
	r.want(r.do("GET", "/holdfast/v1/items/nope", ""), 404, "no such item")
	r.ok("POST", item1+"/testFailover", `{}`)
	jobs := r.do("GET", "/replicationJobs?$filter="+url.QueryEscape("JobName eq 'TestFailover'"), "")
	link, _ := jobs.at("value.0.properties.customDetails.holdfastScreenshotUrl").(string)
	if jobs.at("value.0.properties.customDetails.holdfastBootProof.verified") != true || jobs.at("value.0.properties.customDetails.instanceType") != "TestFailoverJobDetails" {
		t.Errorf("job: %s", jobs.Body)
	}
	if shot := r.follow(link); shot.Header().Get("Content-Type") != "image/png" || !bytes.HasPrefix(shot.Body.Bytes(), []byte("\x89PNG")) {
		t.Errorf("screenshot: %d %v", shot.Code, shot.Header())
	}
	r.want(r.do("GET", "/holdfast/v1/jobs/nope/screenshot", ""), 404, "no such screenshot")
}

func TestPagingAndFilters(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *armapi.Config) { c.PageSize = 2 })
	for i := range 3 {
		r.ok("PUT", fmt.Sprintf("/replicationPolicies/p%d", i), `{}`)
	}
	collect := func(path string) (names []string, pages int) {
		a := r.want(r.do("GET", path, ""), 200, path)
		for {
			pages++
			for _, v := range a.json["value"].([]any) {
				names = append(names, v.(map[string]any)["name"].(string))
			}
			next, _ := a.json["nextLink"].(string)
			if next == "" {
				if _, there := a.json["nextLink"]; !there {
					t.Error("nextLink is left out; it must be null")
				}
				return names, pages
			}
			a = r.want(r.follow(next), 200, next)
		}
	}
	if names, pages := collect("/replicationPolicies"); strings.Join(names, " ") != "p0 p1 p2" || pages != 2 {
		t.Errorf("%v on %d pages", names, pages)
	}
	if names, pages := collect("/replicationPolicies?$top=1"); len(names) != 3 || pages != 3 {
		t.Errorf("%v on %d pages", names, pages)
	}
	items := contA + "/replicationProtectableItems"
	if names, _ := collect(items + "?$filter=" + url.QueryEscape("FriendlyName eq 'DB01'")); len(names) != 1 || names[0] != "3f2b8a10-2222-4222-8222-000000000002" {
		t.Errorf("filtered: %v", names)
	}
	r.protect()
	if names, _ := collect(items + "?$filter=" + url.QueryEscape("ProtectionStatus ne 'Unprotected'")); len(names) != 1 || names[0] != vm1 {
		t.Errorf("protected: %v", names)
	}
	if names, _ := collect("/replicationProtectedItems?$filter=" + url.QueryEscape("FriendlyName eq 'web01' and ReplicationHealth eq 'Normal'")); len(names) != 1 {
		t.Errorf("items: %v", names)
	}
	all, _ := collect("/replicationJobs")
	since, _ := collect("/replicationJobs?$filter=" + url.QueryEscape("StartTime ge '"+r.clk.now().Add(-3*step).Format(time.RFC3339)+"' and JobStatus eq 'Succeeded'"))
	if len(since) == 0 || len(since) >= len(all) {
		t.Errorf("%d of %d jobs", len(since), len(all))
	}
}

func TestEmptyLists(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, path := range []string{"/replicationRecoveryPlans", "/replicationEvents", "/replicationNetworkMappings", siteA + "/replicationLogicalNetworks", "/replicationStorageClassifications", "/replicationStorageClassificationMappings", siteA + "/replicationStorageClassifications", "/replicationAlertSettings", "/replicationVaultSettings"} {
		if a := r.want(r.as(dr.RoleReader, "GET", path, ""), 200, path); len(a.json["value"].([]any)) != 0 {
			t.Errorf("%s: %s", path, a.Body)
		}
	}
	r.want(r.do("GET", "/replicationFabrics/nope/replicationNetworks", ""), 404, "list below something that does not exist")
	r.want(r.do("GET", "/replicationVaultHealth", ""), 200, "health")
	r.want(r.do("POST", "/replicationVaultHealth/default/refresh", ""), 200, "health refresh")
	for _, path := range []string{"/usages", "/replicationUsages"} {
		if a := r.want(r.do("GET", path, ""), 200, path); len(a.json["value"].([]any)) == 0 {
			t.Errorf("%s: %s", path, a.Body)
		}
	}
}

// TestRepeatedPut loses answers and sends the request again.
func TestRepeatedPut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.want(r.do("PUT", item1, r.enableBody()), 200, "enable when protected")
	r.want(r.do("PUT", contA+"/replicationProtectionContainerMappings/MAP", fmt.Sprintf(`{"properties":{"policyId":"gold","targetProtectionContainerId":%q}}`, r.vault()+contB)), 200, "mapping again")
	body := `{"properties":{"providerSpecificInput":{"replicationInterval":300}}}`
	r.ok("PUT", "/replicationPolicies/silver", body)
	r.want(r.do("PUT", "/replicationPolicies/Silver", body), 200, "policy again")
	if a := r.ok("PATCH", "/replicationPolicies/silver", `{"properties":{"replicationProviderSettings":{"holdfastRetentionSeconds":90}}}`); a.at("properties.providerSpecificDetails.holdfastRetentionSeconds") != 90.0 ||
		a.at("properties.providerSpecificDetails.recoveryPointHistoryDurationInHours") != 1.0 || a.at("properties.providerSpecificDetails.replicationInterval") != 300.0 {
		t.Errorf("patched: %s", a.Body)
	}
	r.ok("DELETE", "/replicationPolicies/silver", "")
	r.want(r.do("DELETE", "/replicationPolicies/silver", ""), 204, "delete again")

	body2 := strings.ReplaceAll(r.enableBody(), strings.ToUpper(vm1), "3f2b8a10-2222-4222-8222-000000000002")
	item2 := contA + "/replicationProtectedItems/db01"
	first := r.want(r.do("PUT", item2, body2), 202, "enable")
	again := r.want(r.do("PUT", item2, body2), 202, "enable while it runs")
	if first.Header().Get("Location") != again.Header().Get("Location") {
		t.Error("the repeated request is answered with another job")
	}
	if a := r.do("GET", item2, ""); a.at("properties.currentScenario.scenarioName") != "EnableDR" || a.at("properties.protectionState") != "EnablingProtection" {
		t.Errorf("while enabling: %s", a.Body)
	}
	r.clk.add(2*step + step/2)
	if a := r.do("GET", item2, ""); a.at("properties.protectionState") != "InitialReplicationInProgress" || a.at("properties.providerSpecificDetails.initialReplicationDetails.initialReplicationProgressPercentage") != "50" ||
		a.at("properties.holdfastReplication.etaSeconds") != 90.0 {
		t.Errorf("in initial replication: %s", a.Body)
	}
}

func TestUpdateItem(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	a := r.ok("PATCH", item1, `{"properties":{"recoveryAzureVMName":"new","selectedTfoAzureNetworkId":"lab","vmNics":[{"nicId":"52:54:00:00:00:01","selectionType":"SelectedByUser","ipConfigs":[{"isPrimary":true,"recoveryStaticIPAddress":"192.0.2.77","recoverySubnetName":"s1"}]}],"licenseType":"WindowsServer","providerSpecificDetails":{"instanceType":"HyperVReplicaAzure","holdfastCpus":4}}}`)
	for path, want := range map[string]any{"recoveryAzureVmName": "new", "licenseType": "WindowsServer", "recoveryAzureVMSize": "Standard_B2s", "vmNics.0.ipConfigs.0.recoveryStaticIPAddress": "192.0.2.77", "vmNics.0.selectionType": "SelectedByUser"} {
		if got := a.at("properties.providerSpecificDetails." + path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	r.want(r.do("PATCH", item1, `{"properties":{"providerSpecificDetails":{"holdfastCpus":-1}}}`), 400, "negative CPUs")
	// The test network of the settings is the default of test failovers.
	if res := r.ok("POST", item1+"/testFailover", `{}`); res.at("properties.holdfastTestNetwork") != "lab" {
		t.Errorf("test network: %v", res.at("properties.holdfastTestNetwork"))
	}
}

// TestVaultWithholds shows that the vault's word narrows the table's.
func TestVaultWithholds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.want(r.do("POST", item1+"/repairReplication", ""), 202, "resync")
	if a := r.do("GET", item1, ""); len(a.at("properties.allowedOperations").([]any)) != 0 {
		t.Errorf("while a job runs: %v", a.at("properties.allowedOperations"))
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	items, err := r.fake.Items(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	r.fake.SetItem(items[0].ID, func(it *dr.ProtectedItem) {
		it.Health = dr.HealthCritical
		it.HealthErrors = []dr.HealthError{{Code: dr.CodeStoreFull, Severity: dr.HealthCritical, Message: "bucket is full", Since: r.clk.now()}}
	})
	a := r.do("GET", item1, "")
	if a.at("properties.replicationHealth") != "Critical" || a.at("properties.healthErrors.0.errorLevel") != "Error" || a.at("properties.healthErrors.0.recommendedAction") == "" {
		t.Errorf("item: %s", a.Body)
	}
	h := r.do("GET", "/replicationVaultHealth", "")
	if h.at("properties.protectedItemsHealth.issues.0.summaryCode") != "StoreFull" || h.at("properties.protectedItemsHealth.categorizedResourceCounts.Critical") != 1.0 {
		t.Errorf("vault: %s", h.Body)
	}
	r.want(r.do("POST", item1+"/resolveHealthErrors", `{"properties":{"healthErrors":[{"healthErrorId":"x"}]}}`), 200, "resolve")
}

// broken is a service of which some calls fail.
type broken struct {
	armapi.Service
	err   error
	panic bool
}

func (b broken) Fabrics(context.Context) ([]dr.Fabric, error) {
	if b.panic {
		panic("a defect")
	}
	return nil, b.err
}

func (b broken) AllowedOperations(context.Context, dr.ItemID) ([]string, error) { return nil, b.err }

func TestCouldNotAskIsNotNotFound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err    error
		status int
	}{
		{dr.Errorf(dr.KindUnavailable, "x", "the database does not answer"), 503},
		{context.DeadlineExceeded, 503},
		{fmt.Errorf("something with a s3cret in it"), 500},
	} {
		var svc *broken
		r := newRig(t, func(c *armapi.Config) { svc = &broken{c.Service, tt.err, false}; c.Service = svc })
		a := r.do("GET", "/replicationFabrics", "")
		if a.Code != tt.status || strings.Contains(a.Body.String(), "s3cret") {
			t.Errorf("%v: %d %s", tt.err, a.Code, a.Body)
		}
		if (a.Header().Get("Retry-After") != "") != (tt.status == 503) {
			t.Errorf("%v: Retry-After %q", tt.err, a.Header().Get("Retry-After"))
		}
	}
}

func TestPanicIsAnswered(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *armapi.Config) { c.Service = broken{c.Service, nil, true} })
	a := r.do("GET", "/replicationFabrics", "")
	if a.Code != 500 || a.at("error.code") != "InternalServerError" || !strings.Contains(r.log.String(), "a defect") {
		t.Errorf("%d %s; log %s", a.Code, a.Body, r.log)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	req := httptest.NewRequest("GET", r.vault()+"?api-version=2025-01-01", nil)
	req.Header.Set("Authorization", "Bearer "+r.auth[dr.RoleReader])
	req.Header.Set("x-ms-client-request-id", "mine-1")
	req.Header.Set("x-ms-correlation-request-id", "corr-1")
	a := r.raw(req)
	if h := a.Header(); h.Get("x-ms-client-request-id") != "mine-1" || h.Get("x-ms-correlation-request-id") != "corr-1" || len(h.Get("x-ms-request-id")) != 36 {
		t.Errorf("headers %v", h)
	}
}

func TestLinksFollowTheRequestWithoutPublicURL(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *armapi.Config) { c.PublicURL = "" })
	req := httptest.NewRequest("PUT", "https://other.example:8443"+r.vault()+"/replicationFabrics/x?api-version=2025-01-01", strings.NewReader("{}"))
	req.Header.Set("Authorization", "Bearer "+r.auth[dr.RoleOwner])
	if loc := r.raw(req).Header().Get("Location"); !strings.HasPrefix(loc, "https://other.example:8443/subscriptions/") {
		t.Errorf("Location %q", loc)
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for path, want := range map[string]bool{
		"/subscriptions": true, "/Subscriptions/x/resourceGroups": true, "/tenants": true, "/metadata/endpoints": true, "/holdfast/v1/health": true, "/t/oauth2/v2.0/token": true, "/t/oauth2/token": true,
		"/t/v2.0/.well-known/openid-configuration": true, "/t/.well-known/openid-configuration": true, "/providers/Microsoft.RecoveryServices/operations": true,
		"/": false, "": false, "/portal": false, "/agent/v1/poll": false, "/store/o/x": false, "/metadata": false, "/holdfast": false, "/.well-known/openid-configuration": false, "/subscriptionsx": false,
	} {
		if got := r.srv.Match(path); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	svc := armapitest.New(armapitest.Config{})
	for name, cfg := range map[string]armapi.Config{
		"no service": {}, "relative URL": {Service: svc, PublicURL: "vault"}, "URL with a path": {Service: svc, PublicURL: "https://h/x"}, "negative": {Service: svc, PageSize: -1},
	} {
		if _, err := armapi.New(cfg); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGolden pins the shape of every kind of resource.
func TestGolden(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.clk.add(70 * time.Second)
	r.ok("POST", item1+"/testFailover", `{"properties":{"networkType":"NoNetworkAttachAsInput"}}`)
	r.clk.add(5 * time.Second)
	jobs := r.do("GET", "/replicationJobs?$filter="+url.QueryEscape("JobName eq 'TestFailover'"), "")
	for name, path := range map[string]string{
		"vault": "", "fabric": siteA, "provider": siteA + "/replicationRecoveryServicesProviders/7d3a1c11-1111-4111-8111-000000000001", "container": contA,
		"protectable-item": contA + "/replicationProtectableItems/" + vm1, "policy": "/replicationPolicies/gold", "mapping": contA + "/replicationProtectionContainerMappings/map",
		"protected-item": item1, "recovery-point": item1 + "/recoveryPoints/g00000001-c0000000000000001", "job": "/replicationJobs/" + fmt.Sprint(jobs.at("value.0.name")),
		"operation-status": "/replicationOperationStatus/" + fmt.Sprint(jobs.at("value.0.name")), "vault-health": "/replicationVaultHealth", "item-summary": "/holdfast/v1/items/web01",
		"error": "/replicationFabrics/nope",
	} {
		t.Run(name, func(t *testing.T) {
			a := r.do("GET", path, "")
			var buf bytes.Buffer
			if err := json.Indent(&buf, a.Body.Bytes(), "", "  "); err != nil {
				t.Fatal(err)
			}
			buf.WriteByte('\n')
			file := filepath.Join("testdata", name+".golden.json")
			if *update {
				if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf.Bytes(), want) {
				t.Errorf("differs from %s (rewrite with -update and look at the difference):\n%s", file, buf.String())
			}
		})
	}
}
