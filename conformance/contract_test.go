package conformance

import (
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	armrs "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/recoveryservices/armrecoveryservices"
	armsr "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/recoveryservices/armrecoveryservicessiterecovery/v2"
)

func wantError(t *testing.T, what string, err error, status int, code string) {
	t.Helper()
	var re *azcore.ResponseError
	if !errors.As(err, &re) || re.StatusCode != status || (code != "" && re.ErrorCode != code) {
		t.Errorf("%s: %v; want %d %s", what, err, status, code)
	}
}

func TestVault(t *testing.T) {
	c := newClient(t)
	v, err := c.vaults.NewVaultsClient().Get(t.Context(), strings.ToUpper(target.ResourceGroup), strings.ToUpper(target.VaultName), nil)
	if err != nil {
		t.Fatal(err)
	}
	if val(v.Name) != target.VaultName || val(v.Type) != "Microsoft.RecoveryServices/vaults" || val(v.Properties.ProvisioningState) != "Succeeded" || !strings.HasPrefix(val(v.ID), "/subscriptions/") {
		t.Errorf("vault %v %v %v", val(v.Name), val(v.Type), val(v.ID))
	}
	byGroup, _ := all(t, c.vaults.NewVaultsClient().NewListByResourceGroupPager(target.ResourceGroup, nil), func(p armrs.VaultsClientListByResourceGroupResponse) []*armrs.Vault { return p.Value })
	bySub, _ := all(t, c.vaults.NewVaultsClient().NewListBySubscriptionIDPager(nil), func(p armrs.VaultsClientListBySubscriptionIDResponse) []*armrs.Vault { return p.Value })
	if len(byGroup) != 1 || len(bySub) != 1 {
		t.Errorf("%d vaults in the group, %d in the subscription", len(byGroup), len(bySub))
	}
	made := done[armrs.VaultsClientCreateOrUpdateResponse](t, "create the vault that exists")(c.vaults.NewVaultsClient().BeginCreateOrUpdate(t.Context(), target.ResourceGroup, target.VaultName,
		armrs.Vault{Location: v.Location, SKU: v.SKU, Properties: &armrs.VaultProperties{}, Tags: v.Tags}, nil))
	if val(made.Name) != target.VaultName {
		t.Errorf("created %v", val(made.Name))
	}
}

func TestFabricLifecycle(t *testing.T) {
	c := newClient(t).NewReplicationFabricsClient()
	name := unique("Conf-Site")
	made := done[armsr.ReplicationFabricsClientCreateResponse](t, "create")(c.BeginCreate(t.Context(), target.ResourceGroup, target.VaultName, name, armsr.FabricCreationInput{Properties: &armsr.FabricCreationInputProperties{}}, nil))
	if val(made.Name) != name || made.Properties == nil || val(made.Properties.InternalIdentifier) == "" {
		t.Fatalf("created %+v", made.Fabric)
	}
	if _, ok := made.Properties.CustomDetails.(*armsr.HyperVSiteDetails); !ok {
		t.Errorf("details are %T", made.Properties.CustomDetails)
	}
	got, err := c.Get(t.Context(), target.ResourceGroup, target.VaultName, strings.ToUpper(name), nil)
	if err != nil || val(got.Name) != name {
		t.Errorf("get with another casing: %v, %v", val(got.Name), err)
	}
	fs, _ := all(t, c.NewListPager(target.ResourceGroup, target.VaultName, nil), func(p armsr.ReplicationFabricsClientListResponse) []*armsr.Fabric { return p.Value })
	n := 0
	for _, f := range fs {
		if val(f.Name) == name {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the list has the site %d times", n)
	}
	cs, _ := all(t, newClient(t).NewReplicationProtectionContainersClient().NewListByReplicationFabricsPager(target.ResourceGroup, target.VaultName, name, nil),
		func(p armsr.ReplicationProtectionContainersClientListByReplicationFabricsResponse) []*armsr.ProtectionContainer {
			return p.Value
		})
	if len(cs) != 1 || val(cs[0].Name) != "cloud_"+val(made.Properties.InternalIdentifier) {
		t.Errorf("%d containers", len(cs))
	}
	done[armsr.ReplicationFabricsClientDeleteResponse](t, "remove")(c.BeginDelete(t.Context(), target.ResourceGroup, target.VaultName, strings.ToLower(name), nil))
	_, err = c.Get(t.Context(), target.ResourceGroup, target.VaultName, name, nil)
	wantError(t, "get after removal", err, 404, "")
	done[armsr.ReplicationFabricsClientPurgeResponse](t, "purge of what is gone")(c.BeginPurge(t.Context(), target.ResourceGroup, target.VaultName, name, nil))
}

func TestPolicyLifecycle(t *testing.T) {
	c := newClient(t).NewReplicationPoliciesClient()
	name := unique("conf-policy")
	in := armsr.CreatePolicyInput{Properties: &armsr.CreatePolicyInputProperties{ProviderSpecificInput: &armsr.HyperVReplicaAzurePolicyInput{
		InstanceType: to.Ptr("HyperVReplicaAzure"), RecoveryPointHistoryDuration: to.Ptr[int32](6), ReplicationInterval: to.Ptr[int32](300), ApplicationConsistentSnapshotFrequencyInHours: to.Ptr[int32](1),
		StorageAccounts: []*string{to.Ptr("/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a")}}}}
	details := func(p *armsr.PolicyProperties) *armsr.HyperVReplicaAzurePolicyDetails {
		d, ok := p.ProviderSpecificDetails.(*armsr.HyperVReplicaAzurePolicyDetails)
		if !ok {
			t.Fatalf("details are %T", p.ProviderSpecificDetails)
		}
		return d
	}
	made := done[armsr.ReplicationPoliciesClientCreateResponse](t, "create")(c.BeginCreate(t.Context(), target.ResourceGroup, target.VaultName, name, in, nil))
	if d := details(made.Properties); val(d.RecoveryPointHistoryDurationInHours) != 6 || val(d.ReplicationInterval) != 300 || val(d.ApplicationConsistentSnapshotFrequencyInHours) != 1 || !strings.HasSuffix(val(d.ActiveStorageAccountID), "/a") {
		t.Errorf("created %+v", d)
	}
	changed := done[armsr.ReplicationPoliciesClientUpdateResponse](t, "update")(c.BeginUpdate(t.Context(), target.ResourceGroup, target.VaultName, name, armsr.UpdatePolicyInput{Properties: &armsr.UpdatePolicyInputProperties{
		ReplicationProviderSettings: &armsr.HyperVReplicaAzurePolicyInput{InstanceType: to.Ptr("HyperVReplicaAzure"), ReplicationInterval: to.Ptr[int32](30)}}}, nil))
	if d := details(changed.Properties); val(d.ReplicationInterval) != 30 || val(d.RecoveryPointHistoryDurationInHours) != 6 {
		t.Errorf("updated %+v", d)
	}
	done[armsr.ReplicationPoliciesClientDeleteResponse](t, "delete")(c.BeginDelete(t.Context(), target.ResourceGroup, target.VaultName, name, nil))
	_, err := c.Get(t.Context(), target.ResourceGroup, target.VaultName, name, nil)
	wantError(t, "get after delete", err, 404, "")
}

func TestErrors(t *testing.T) {
	c := newClient(t)
	_, err := c.NewReplicationPoliciesClient().BeginCreate(t.Context(), target.ResourceGroup, target.VaultName, "bad", armsr.CreatePolicyInput{Properties: &armsr.CreatePolicyInputProperties{
		ProviderSpecificInput: &armsr.HyperVReplicaAzurePolicyInput{InstanceType: to.Ptr("HyperVReplicaAzure"), ReplicationInterval: to.Ptr[int32](1)}}}, nil)
	wantError(t, "policy out of range", err, 400, "PolicyInvalid")
	_, err = c.NewReplicationPoliciesClient().BeginCreate(t.Context(), target.ResourceGroup, target.VaultName, "bad", armsr.CreatePolicyInput{Properties: &armsr.CreatePolicyInputProperties{
		ProviderSpecificInput: &armsr.A2APolicyCreationInput{InstanceType: to.Ptr("A2A"), MultiVMSyncStatus: to.Ptr(armsr.SetMultiVMSyncStatusEnable)}}}, nil)
	wantError(t, "foreign policy", err, 400, "NotSupported")
	_, err = c.NewReplicationFabricsClient().Get(t.Context(), target.ResourceGroup, target.VaultName, "no-such-site", nil)
	wantError(t, "absent fabric", err, 404, "")
	_, err = c.NewReplicationFabricsClient().Get(t.Context(), target.ResourceGroup, "no-such-vault", "x", nil)
	wantError(t, "absent vault", err, 404, "")
	_, err = c.NewReplicationJobsClient().Get(t.Context(), target.ResourceGroup, target.VaultName, "00000000-0000-0000-0000-000000000000", nil)
	wantError(t, "absent job", err, 404, "")

	if _, err := credential(t, "wrong").GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{target.URL + "/.default"}}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("log-in with a wrong secret: %v", err)
	}
	hc := httpClient(t)
	base := target.URL + "/subscriptions/" + target.SubscriptionID + "/resourceGroups/" + target.ResourceGroup + "/providers/Microsoft.RecoveryServices/vaults/" + target.VaultName
	for path, token := range map[string]string{base + "?api-version=2025-01-01": "", base + "/replicationFabrics?api-version=2025-01-01": "Bearer nonsense"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", token)
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("token %q: %d", token, resp.StatusCode)
		}
	}
	tok, err := credential(t, target.ClientSecret).GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{target.URL + "/.default"}})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+tok.Token)
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var body struct{ Error struct{ Code string } }
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != 400 || body.Error.Code != "MissingApiVersionParameter" {
		t.Errorf("without api-version: %d %+v %v", resp.StatusCode, body, err)
	}
}

// TestPaging lists jobs, of which there are several after the tests above, page by page.
func TestPaging(t *testing.T) {
	c := newClient(t)
	for range 3 {
		name := unique("conf-page")
		pc := c.NewReplicationPoliciesClient()
		done[armsr.ReplicationPoliciesClientCreateResponse](t, "create")(pc.BeginCreate(t.Context(), target.ResourceGroup, target.VaultName, name, armsr.CreatePolicyInput{Properties: &armsr.CreatePolicyInputProperties{
			ProviderSpecificInput: &armsr.HyperVReplicaAzurePolicyInput{InstanceType: to.Ptr("HyperVReplicaAzure")}}}, nil))
		t.Cleanup(func() {
			p, err := pc.BeginDelete(cleanupContext(t), target.ResourceGroup, target.VaultName, name, nil)
			if err == nil {
				_, err = p.PollUntilDone(cleanupContext(t), nil)
			}
			if err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		})
	}
	jobs, pages := all(t, c.NewReplicationJobsClient().NewListPager(target.ResourceGroup, target.VaultName, nil), func(p armsr.ReplicationJobsClientListResponse) []*armsr.Job { return p.Value })
	seen := map[string]bool{}
	for _, j := range jobs {
		if seen[val(j.Name)] {
			t.Errorf("job %s is listed twice", val(j.Name))
		}
		seen[val(j.Name)] = true
	}
	if len(jobs) < 3 || (own && pages < 2) {
		t.Errorf("%d jobs on %d pages", len(jobs), pages)
	}
	filtered, _ := all(t, c.NewReplicationJobsClient().NewListPager(target.ResourceGroup, target.VaultName, &armsr.ReplicationJobsClientListOptions{Filter: to.Ptr("JobName eq 'AddProtectionProfile' and JobStatus eq 'Succeeded'")}),
		func(p armsr.ReplicationJobsClientListResponse) []*armsr.Job { return p.Value })
	if len(filtered) < 3 {
		t.Errorf("%d jobs created policies", len(filtered))
	}
	for _, j := range filtered {
		if val(j.Properties.ScenarioName) != "AddProtectionProfile" || val(j.Properties.State) != "Succeeded" {
			t.Errorf("filter let %s %s through", val(j.Properties.ScenarioName), val(j.Properties.State))
		}
	}
}

// TestEmptyKinds asks for what the vault does not have.
func TestEmptyKinds(t *testing.T) {
	c := newClient(t)
	plans, _ := all(t, c.NewReplicationRecoveryPlansClient().NewListPager(target.ResourceGroup, target.VaultName, nil), func(p armsr.ReplicationRecoveryPlansClientListResponse) []*armsr.RecoveryPlan { return p.Value })
	events, _ := all(t, c.NewReplicationEventsClient().NewListPager(target.ResourceGroup, target.VaultName, nil), func(p armsr.ReplicationEventsClientListResponse) []*armsr.Event { return p.Value })
	networks, _ := all(t, c.NewReplicationNetworksClient().NewListPager(target.ResourceGroup, target.VaultName, nil), func(p armsr.ReplicationNetworksClientListResponse) []*armsr.Network { return p.Value })
	t.Logf("%d plans, %d events, %d networks", len(plans), len(events), len(networks))
	if _, err := c.NewReplicationVaultHealthClient().Get(t.Context(), target.ResourceGroup, target.VaultName, nil); err != nil {
		t.Error(err)
	}
	usages, _ := all(t, c.vaults.NewReplicationUsagesClient().NewListPager(target.ResourceGroup, target.VaultName, nil), func(p armrs.ReplicationUsagesClientListResponse) []*armrs.ReplicationUsage { return p.Value })
	if len(usages) != 1 {
		t.Errorf("%d usages", len(usages))
	}
}

// checkNames compares an answer with what the SDK made of it: a field that the
// SDK does not know by exactly that name has vanished. Ours (holdfast…) may.
func checkNames(t *testing.T, path string, raw []byte, model any) {
	t.Helper()
	b, err := json.Marshal(model)
	if err != nil {
		t.Fatal(err)
	}
	var sent, known any
	if err := errors.Join(json.Unmarshal(raw, &sent), json.Unmarshal(b, &known)); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	compare(t, path, "", sent, known)
}

func compare(t *testing.T, path, at string, sent, known any) {
	t.Helper()
	switch s := sent.(type) {
	case map[string]any:
		k, ok := known.(map[string]any)
		if !ok {
			t.Errorf("%s: %s is an object here and %T in the SDK", path, at, known)
			return
		}
		for name, v := range s {
			if strings.HasPrefix(name, "holdfast") || v == nil {
				continue
			}
			if _, there := k[name]; !there {
				t.Errorf("%s: the SDK does not know %s.%s", path, at, name)
				continue
			}
			compare(t, path, at+"."+name, v, k[name])
		}
	case []any:
		k, ok := known.([]any)
		if !ok || len(k) != len(s) {
			t.Errorf("%s: %s is another list in the SDK", path, at)
			return
		}
		for i := range s {
			compare(t, path, at+"[]", s[i], k[i])
		}
	default:
		if !reflect.DeepEqual(sent, known) && !strings.HasSuffix(strings.ToLower(at), "time") {
			t.Errorf("%s: %s is %v here and %v in the SDK", path, at, sent, known)
		}
	}
}
