package conformance

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	armsr "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/recoveryservices/armrecoveryservicessiterecovery/v2"
)

func cleanupContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout())
	t.Cleanup(cancel)
	return ctx
}

func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// story carries what the steps share.
type story struct {
	client
	t         *testing.T
	began     time.Time
	fabric    string
	container string // name
	item      string // name
}

func (s *story) say(format string, args ...any) {
	s.t.Helper()
	s.t.Logf("%7.1fs  "+format, append([]any{time.Since(s.began).Seconds()}, args...)...)
}

// TestStory protects a VM, drills and fails over, by the SDK alone.
func TestStory(t *testing.T) {
	if !own && os.Getenv("HOLDFAST_STORY") != "1" {
		t.Skip("against a real vault only with HOLDFAST_STORY=1: it fails a VM over")
	}
	s := &story{client: newClient(t), t: t, began: time.Now(), fabric: env("HOLDFAST_PRIMARY_FABRIC", "site-a")}
	vm := s.discover()
	s.prepare()
	s.enable(vm)
	point := s.points()
	s.sizes()
	s.drill(point)
	s.failOver()
}

func (s *story) containerOf(fabric string) *armsr.ProtectionContainer {
	cs, _ := all(s.t, s.NewReplicationProtectionContainersClient().NewListByReplicationFabricsPager(target.ResourceGroup, target.VaultName, fabric, nil),
		func(p armsr.ReplicationProtectionContainersClientListByReplicationFabricsResponse) []*armsr.ProtectionContainer {
			return p.Value
		})
	if len(cs) != 1 {
		s.t.Fatalf("site %s has %d containers, want one", fabric, len(cs))
	}
	return cs[0]
}

func (s *story) discover() *armsr.ProtectableItem {
	ps, _ := all(s.t, s.NewReplicationRecoveryServicesProvidersClient().NewListPager(target.ResourceGroup, target.VaultName, nil),
		func(p armsr.ReplicationRecoveryServicesProvidersClientListResponse) []*armsr.RecoveryServicesProvider {
			return p.Value
		})
	for _, p := range ps {
		s.say("host %s of site %s: %s", val(p.Properties.FriendlyName), val(p.Properties.FabricFriendlyName), val(p.Properties.ConnectionStatus))
	}
	s.container = val(s.containerOf(s.fabric).Name)
	name := env("HOLDFAST_VM", "web01")
	vms, _ := all(s.t, s.NewReplicationProtectableItemsClient().NewListByReplicationProtectionContainersPager(target.ResourceGroup, target.VaultName, s.fabric, s.container, nil),
		func(p armsr.ReplicationProtectableItemsClientListByReplicationProtectionContainersResponse) []*armsr.ProtectableItem {
			return p.Value
		})
	for _, vm := range vms {
		if strings.EqualFold(val(vm.Properties.FriendlyName), name) {
			d, ok := vm.Properties.CustomDetails.(*armsr.HyperVVirtualMachineDetails)
			if !ok {
				s.t.Fatalf("details of the VM are %T", vm.Properties.CustomDetails)
			}
			s.say("VM %s is %s, %d disks, %s", name, val(vm.Name), len(d.DiskDetails), val(vm.Properties.ProtectionStatus))
			s.item = val(vm.Name)
			return vm
		}
	}
	s.t.Fatalf("VM %s is not among the %d of site %s", name, len(vms), s.fabric)
	return nil
}

const storyPolicy = "conformance-policy"

func (s *story) policyID() string {
	return "/subscriptions/" + target.SubscriptionID + "/resourceGroups/" + target.ResourceGroup + "/providers/Microsoft.RecoveryServices/vaults/" + target.VaultName + "/replicationPolicies/" + storyPolicy
}

func (s *story) prepare() {
	done[armsr.ReplicationPoliciesClientCreateResponse](s.t, "policy")(s.NewReplicationPoliciesClient().BeginCreate(s.t.Context(), target.ResourceGroup, target.VaultName, storyPolicy,
		armsr.CreatePolicyInput{Properties: &armsr.CreatePolicyInputProperties{ProviderSpecificInput: &armsr.HyperVReplicaAzurePolicyInput{InstanceType: to.Ptr("HyperVReplicaAzure"),
			RecoveryPointHistoryDuration: to.Ptr[int32](24), ReplicationInterval: to.Ptr[int32](30)}}}, nil))
	s.say("policy %s", storyPolicy)
	recovery := s.containerOf(env("HOLDFAST_RECOVERY_FABRIC", "site-b"))
	m := done[armsr.ReplicationProtectionContainerMappingsClientCreateResponse](s.t, "mapping")(s.NewReplicationProtectionContainerMappingsClient().BeginCreate(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, "conformance-map",
		armsr.CreateProtectionContainerMappingInput{Properties: &armsr.CreateProtectionContainerMappingInputProperties{PolicyID: to.Ptr(s.policyID()), TargetProtectionContainerID: recovery.ID,
			ProviderSpecificInput: &armsr.ReplicationProviderSpecificContainerMappingInput{InstanceType: to.Ptr("")}}}, nil))
	s.say("container mapped to %s: %s", val(m.Properties.TargetFabricFriendlyName), val(m.Properties.State))
}

func (s *story) get() armsr.ReplicationProtectedItem {
	r, err := s.NewReplicationProtectedItemsClient().Get(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.ReplicationProtectedItem
}

func (s *story) enable(vm *armsr.ProtectableItem) {
	it := done[armsr.ReplicationProtectedItemsClientCreateResponse](s.t, "enable protection")(s.NewReplicationProtectedItemsClient().BeginCreate(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item,
		armsr.EnableProtectionInput{Properties: &armsr.EnableProtectionInputProperties{PolicyID: to.Ptr(s.policyID()), ProtectableItemID: vm.ID,
			ProviderSpecificDetails: &armsr.HyperVReplicaAzureEnableProtectionInput{InstanceType: to.Ptr("HyperVReplicaAzure"), VMName: vm.Properties.FriendlyName, HvHostVMID: vm.Name, UseManagedDisks: to.Ptr("true")}}}, nil))
	s.say("protection enabled: %s", val(it.Properties.ProtectionState))
	for until := time.Now().Add(stepTimeout()); ; time.Sleep(time.Second) {
		p := s.get().Properties
		if val(p.ProtectionState) == "Protected" {
			d := p.ProviderSpecificDetails.(*armsr.HyperVReplicaAzureReplicationDetails)
			s.say("protected; RPO %d s, health %s, may %s", val(d.RpoInSeconds), val(p.ReplicationHealth), names(p.AllowedOperations))
			return
		}
		if time.Now().After(until) || val(p.ProtectionState) == "EnablingFailed" {
			s.t.Fatalf("not protected: %s (%s)", val(p.ProtectionState), val(p.ProtectionStateDescription))
		}
	}
}

func names(ps []*string) string {
	var b []string
	for _, p := range ps {
		b = append(b, val(p))
	}
	return strings.Join(b, ", ")
}

func (s *story) points() string {
	ps, pages := all(s.t, s.NewRecoveryPointsClient().NewListByReplicationProtectedItemsPager(target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item, nil),
		func(p armsr.RecoveryPointsClientListByReplicationProtectedItemsResponse) []*armsr.RecoveryPoint {
			return p.Value
		})
	if len(ps) == 0 {
		s.t.Fatal("a protected item has no recovery point")
	}
	s.say("%d recovery points on %d pages, newest %s of %v (%s)", len(ps), pages, val(ps[0].Name), val(ps[0].Properties.RecoveryPointTime).Format(time.TimeOnly), val(ps[0].Properties.RecoveryPointType))
	one, err := s.NewRecoveryPointsClient().Get(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item, val(ps[0].Name), nil)
	if err != nil || val(one.ID) != val(ps[0].ID) {
		s.t.Errorf("point %s: %v", val(ps[0].Name), err)
	}
	return val(ps[0].ID)
}

func (s *story) drill(point string) {
	c := s.NewReplicationProtectedItemsClient()
	it := done[armsr.ReplicationProtectedItemsClientTestFailoverResponse](s.t, "test failover")(c.BeginTestFailover(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item,
		armsr.TestFailoverInput{Properties: &armsr.TestFailoverInputProperties{FailoverDirection: to.Ptr("PrimaryToRecovery"), NetworkType: to.Ptr("NoNetworkAttachAsInput"),
			ProviderSpecificDetails: &armsr.HyperVReplicaAzureTestFailoverInput{InstanceType: to.Ptr("HyperVReplicaAzure"), RecoveryPointID: to.Ptr(point)}}}, nil))
	if it.Properties == nil || val(it.Properties.TestFailoverState) != "WaitingForCompletion" {
		s.t.Fatalf("the result of the test failover is not the item: %+v", it.ReplicationProtectedItem)
	}
	s.say("test failover: %s", val(it.Properties.TestFailoverStateDescription))
	jobs, _ := all(s.t, s.NewReplicationJobsClient().NewListPager(target.ResourceGroup, target.VaultName, &armsr.ReplicationJobsClientListOptions{Filter: to.Ptr("JobName eq 'TestFailover'")}),
		func(p armsr.ReplicationJobsClientListResponse) []*armsr.Job { return p.Value })
	if len(jobs) == 0 {
		s.t.Fatal("the test failover has no job")
	}
	job, err := s.NewReplicationJobsClient().Get(s.t.Context(), target.ResourceGroup, target.VaultName, val(jobs[0].Name), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, task := range job.Properties.Tasks {
		s.say("    %s: %s", val(task.FriendlyName), val(task.State))
	}
	if _, ok := job.Properties.CustomDetails.(*armsr.TestFailoverJobDetails); !ok {
		s.t.Errorf("details of the job are %T", job.Properties.CustomDetails)
	}
	s.checkAnswers(job.Job)
	it2 := done[armsr.ReplicationProtectedItemsClientTestFailoverCleanupResponse](s.t, "cleanup")(c.BeginTestFailoverCleanup(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item,
		armsr.TestFailoverCleanupInput{Properties: &armsr.TestFailoverCleanupInputProperties{Comments: to.Ptr("conformance")}}, nil))
	s.say("cleaned up: %s, last drill %v", val(it2.Properties.TestFailoverState), val(it2.Properties.LastSuccessfulTestFailoverTime).Format(time.DateTime))
}

// checkAnswers compares answers with what the SDK knows, field by field.
func (s *story) checkAnswers(job armsr.Job) {
	g, v := target.ResourceGroup, target.VaultName
	it := s.get()
	vm, err1 := s.NewReplicationProtectableItemsClient().Get(s.t.Context(), g, v, s.fabric, s.container, s.item, nil)
	fabric, err2 := s.NewReplicationFabricsClient().Get(s.t.Context(), g, v, s.fabric, nil)
	pol, err3 := s.NewReplicationPoliciesClient().Get(s.t.Context(), g, v, storyPolicy, nil)
	container, err4 := s.NewReplicationProtectionContainersClient().Get(s.t.Context(), g, v, s.fabric, s.container, nil)
	mapping, err5 := s.NewReplicationProtectionContainerMappingsClient().Get(s.t.Context(), g, v, s.fabric, s.container, "conformance-map", nil)
	ps, _ := all(s.t, s.NewReplicationRecoveryServicesProvidersClient().NewListByReplicationFabricsPager(g, v, s.fabric, nil),
		func(p armsr.ReplicationRecoveryServicesProvidersClientListByReplicationFabricsResponse) []*armsr.RecoveryServicesProvider {
			return p.Value
		})
	for _, err := range []error{err1, err2, err3, err4, err5} {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	provider, err := s.NewReplicationRecoveryServicesProvidersClient().Get(s.t.Context(), g, v, s.fabric, val(ps[0].Name), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	health, err := s.NewReplicationVaultHealthClient().Get(s.t.Context(), g, v, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for id, model := range map[string]any{val(it.ID): it, val(vm.ID): vm.ProtectableItem, val(fabric.ID): fabric.Fabric, val(pol.ID): pol.Policy, val(container.ID): container.ProtectionContainer,
		val(mapping.ID): mapping.ProtectionContainerMapping, val(job.ID): job, val(provider.ID): provider.RecoveryServicesProvider, strings.TrimSuffix(val(health.ID), "/default"): health.VaultHealthDetails} {
		for path, raw := range s.seen.bodies {
			if strings.EqualFold(path, id) {
				n++
				checkNames(s.t, id[strings.LastIndex(id, "/vaults/"):], raw, model)
			}
		}
	}
	if n != 9 {
		s.t.Errorf("%d of 9 answers could be compared", n)
	}
	s.say("%d answers are known to the SDK to the last field", n)
}

func (s *story) failOver() {
	c := s.NewReplicationProtectedItemsClient()
	it := done[armsr.ReplicationProtectedItemsClientUnplannedFailoverResponse](s.t, "unplanned failover")(c.BeginUnplannedFailover(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item,
		armsr.UnplannedFailoverInput{Properties: &armsr.UnplannedFailoverInputProperties{FailoverDirection: to.Ptr("PrimaryToRecovery"), SourceSiteOperations: to.Ptr("NotRequired"),
			ProviderSpecificDetails: &armsr.HyperVReplicaAzureUnplannedFailoverInput{InstanceType: to.Ptr("HyperVReplicaAzure")}}}, nil))
	if val(it.Properties.ActiveLocation) != "Recovery" {
		s.t.Fatalf("after failover: %s, %s", val(it.Properties.ActiveLocation), val(it.Properties.ProtectionState))
	}
	s.say("failed over: %s; may %s", val(it.Properties.ProtectionState), names(it.Properties.AllowedOperations))
	com := done[armsr.ReplicationProtectedItemsClientFailoverCommitResponse](s.t, "commit")(c.BeginFailoverCommit(s.t.Context(), target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item, nil))
	if val(com.Properties.ProtectionState) != "FailoverCommitted" {
		s.t.Errorf("after commit: %s", val(com.Properties.ProtectionState))
	}
	s.say("committed: %s", val(com.Properties.ProtectionStateDescription))
}

// sizes lists what the recovery VM could be: sizes of a cloud, none at a site of hosts.
func (s *story) sizes() {
	sizes, _ := all(s.t, s.NewTargetComputeSizesClient().NewListByReplicationProtectedItemsPager(target.ResourceGroup, target.VaultName, s.fabric, s.container, s.item, nil),
		func(p armsr.TargetComputeSizesClientListByReplicationProtectedItemsResponse) []*armsr.TargetComputeSize {
			return p.Value
		})
	for _, z := range sizes {
		p := z.Properties
		if val(p.Name) == "" || val(p.CPUCoresCount) <= 0 || val(p.MemoryInGB) <= 0 || len(p.HyperVGenerations) == 0 {
			s.t.Errorf("size %+v lacks something", *p)
		}
		why := "can be chosen"
		if len(p.Errors) > 0 {
			why = val(p.Errors[0].Message)
		}
		s.say("size %s, %d cores, %g GB: %s", val(p.Name), val(p.CPUCoresCount), val(p.MemoryInGB), why)
	}
}
