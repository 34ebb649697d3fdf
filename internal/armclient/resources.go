package armclient

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Shorthands for the resources.
type (
	Fabric          = armwire.Resource[armwire.Fabric]
	Provider        = armwire.Resource[armwire.Provider]
	Container       = armwire.Resource[armwire.Container]
	ProtectableItem = armwire.Resource[armwire.ProtectableItem]
	Policy          = armwire.Resource[armwire.Policy]
	Mapping         = armwire.Resource[armwire.Mapping]
	ProtectedItem   = armwire.Resource[armwire.ProtectedItem]
	RecoveryPoint   = armwire.Resource[armwire.RecoveryPoint]
	Job             = armwire.Resource[armwire.Job]
)

func one[P any](ctx context.Context, c *Client, path string) (armwire.Resource[P], error) {
	var r armwire.Resource[P]
	return r, c.Get(ctx, path, &r)
}

// Fabrics lists the sites.
func (c *Client) Fabrics(ctx context.Context) ([]Fabric, error) {
	return All[armwire.Fabric](ctx, c, c.ID("replicationFabrics"))
}

// Fabric reads a site.
func (c *Client) Fabric(ctx context.Context, name string) (Fabric, error) {
	return one[armwire.Fabric](ctx, c, c.ID("replicationFabrics", name))
}

// CreateFabric creates a site of the given type.
func (c *Client) CreateFabric(ctx context.Context, name string, t dr.FabricType) (*Operation, error) {
	return c.Change(ctx, http.MethodPut, c.ID("replicationFabrics", name), armwire.Input[armwire.FabricInput]{Properties: armwire.FabricInput{FabricType: string(t)}})
}

// Remove removes a resource by its id; purge also when hosts or agents are gone.
func (c *Client) Remove(ctx context.Context, id string, purge bool) (*Operation, error) {
	if purge {
		return c.Change(ctx, http.MethodDelete, id, nil)
	}
	return c.Change(ctx, http.MethodPost, id+"/remove", struct{}{})
}

// Providers lists the registered hosts of all sites.
func (c *Client) Providers(ctx context.Context) ([]Provider, error) {
	return All[armwire.Provider](ctx, c, c.ID("replicationRecoveryServicesProviders"))
}

// Containers lists the protection containers of a site: one, or those of a VMM server's clouds.
func (c *Client) Containers(ctx context.Context, fabric string) ([]Container, error) {
	return All[armwire.Container](ctx, c, c.ID("replicationFabrics", fabric, "replicationProtectionContainers"))
}

// Container returns the one protection container of a site, or, for "SITE/CLOUD",
// the one of a VMM cloud.
func (c *Client) Container(ctx context.Context, ref string) (Container, error) {
	const op = "armclient.Container"
	fabric, cloud, named := strings.Cut(ref, "/")
	cs, err := c.Containers(ctx, fabric)
	if err != nil {
		return Container{}, err
	}
	if !named && len(cs) == 1 {
		return cs[0], nil
	}
	var names []string
	for _, x := range cs {
		if named && strings.EqualFold(x.Properties.FriendlyName, cloud) {
			return x, nil
		}
		names = append(names, fabric+"/"+x.Properties.FriendlyName)
	}
	if named {
		return Container{}, dr.New(dr.KindNotFound, dr.CodeNotFound, op, "site %q has no cloud %q", fabric, cloud).WithHint("it has: %s", strings.Join(names, ", "))
	}
	return Container{}, dr.Errorf(dr.KindInvalid, op, "site %q has %d clouds: say which", fabric, len(cs)).WithHint("name one of: %s", strings.Join(names, ", "))
}

// ProtectableItems lists the VMs of a container, given by its id.
func (c *Client) ProtectableItems(ctx context.Context, container string) ([]ProtectableItem, error) {
	return All[armwire.ProtectableItem](ctx, c, container+"/replicationProtectableItems")
}

// Policies lists the policies.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	return All[armwire.Policy](ctx, c, c.ID("replicationPolicies"))
}

// SavePolicy creates a policy or changes it to what s says.
func (c *Client) SavePolicy(ctx context.Context, name string, s armwire.PolicySettings) (*Operation, error) {
	s.InstanceType = armwire.HyperVReplicaAzure
	return c.Change(ctx, http.MethodPut, c.ID("replicationPolicies", name), armwire.Input[armwire.PolicyInput]{Properties: armwire.PolicyInput{ProviderSpecificInput: armwire.NewVariant(s)}})
}

// RemovePolicy removes a policy.
func (c *Client) RemovePolicy(ctx context.Context, name string) (*Operation, error) {
	return c.Change(ctx, http.MethodDelete, c.ID("replicationPolicies", name), nil)
}

// Mappings lists the container mappings of all sites.
func (c *Client) Mappings(ctx context.Context) ([]Mapping, error) {
	return All[armwire.Mapping](ctx, c, c.ID("replicationProtectionContainerMappings"))
}

// CreateMapping associates a policy and a target container (by its id, or
// armwire.Cloud) with a container.
func (c *Client) CreateMapping(ctx context.Context, container, name, policy, target string) (*Operation, error) {
	in := armwire.MappingInput{PolicyID: c.ID("replicationPolicies", policy), TargetProtectionContainerID: target}
	return c.Change(ctx, http.MethodPut, container+"/replicationProtectionContainerMappings/"+segment(name), armwire.Input[armwire.MappingInput]{Properties: in})
}

// Items is the client's part about protected items.
func (c *Client) Items() ItemsClient { return ItemsClient{c} }

// ItemsClient works with protected items, which are given by their resource ids.
type ItemsClient struct{ c *Client }

// List lists the protected items of all sites.
func (i ItemsClient) List(ctx context.Context) ([]ProtectedItem, error) {
	return All[armwire.ProtectedItem](ctx, i.c, i.c.ID("replicationProtectedItems"))
}

// Get reads a protected item.
func (i ItemsClient) Get(ctx context.Context, id string) (ProtectedItem, error) {
	return one[armwire.ProtectedItem](ctx, i.c, id)
}

// Enable protects a VM. The item is named like the VM's id, by custom.
func (i ItemsClient) Enable(ctx context.Context, container string, vm ProtectableItem, policy string, d armwire.EnableDetails) (*Operation, error) {
	d.InstanceType, d.VMName = armwire.HyperVReplicaAzure, vm.Properties.FriendlyName
	in := armwire.EnableInput{PolicyID: i.c.ID("replicationPolicies", policy), ProtectableItemID: vm.ID, ProviderSpecificDetails: armwire.NewVariant(d)}
	return i.c.Change(ctx, http.MethodPut, container+"/replicationProtectedItems/"+segment(vm.Name), armwire.Input[armwire.EnableInput]{Properties: in})
}

// Points lists an item's recovery points, newest first.
func (i ItemsClient) Points(ctx context.Context, item string) ([]RecoveryPoint, error) {
	return All[armwire.RecoveryPoint](ctx, i.c, item+"/recoveryPoints")
}

// point is the provider-specific part with a recovery point; "" = latest.
func point(id string) armwire.Variant {
	d := armwire.FailoverDetails{InstanceType: armwire.HyperVReplicaAzure}
	if id != "" {
		d.RecoveryPointID = &id
	}
	return armwire.NewVariant(d)
}

// TestFailover starts a test failover. Without network and not disconnected it is an isolated one.
func (i ItemsClient) TestFailover(ctx context.Context, item, recoveryPoint, network string, disconnected bool) (*Operation, error) {
	in := armwire.TestFailoverInput{FailoverDirection: armwire.PrimaryToRecovery, ProviderSpecificDetails: point(recoveryPoint)}
	switch {
	case disconnected:
		in.NetworkType = armwire.NoNetworkAsInput
	case network != "":
		in.NetworkType, in.NetworkID = armwire.NetworkAsInput, network
	}
	return i.c.Change(ctx, http.MethodPost, item+"/testFailover", armwire.Input[armwire.TestFailoverInput]{Properties: in})
}

// CleanupTest ends a test failover.
func (i ItemsClient) CleanupTest(ctx context.Context, item, comments string) (*Operation, error) {
	return i.c.Change(ctx, http.MethodPost, item+"/testFailoverCleanup", armwire.Input[armwire.CleanupInput]{Properties: armwire.CleanupInput{Comments: comments}})
}

// PlannedFailover shuts the source down, sends the last changes and fails over.
func (i ItemsClient) PlannedFailover(ctx context.Context, item string) (*Operation, error) {
	in := armwire.FailoverInput{FailoverDirection: armwire.PrimaryToRecovery, ProviderSpecificDetails: point("")}
	return i.c.Change(ctx, http.MethodPost, item+"/plannedFailover", armwire.Input[armwire.FailoverInput]{Properties: in})
}

// UnplannedFailover fails over to a recovery point; with sourceAction the source
// is shut down first if it can be reached.
func (i ItemsClient) UnplannedFailover(ctx context.Context, item, recoveryPoint string, sourceAction bool) (*Operation, error) {
	in := armwire.FailoverInput{FailoverDirection: armwire.PrimaryToRecovery, SourceSiteOperations: "NotRequired", ProviderSpecificDetails: point(recoveryPoint)}
	if sourceAction {
		in.SourceSiteOperations = "Required"
	}
	return i.c.Change(ctx, http.MethodPost, item+"/unplannedFailover", armwire.Input[armwire.FailoverInput]{Properties: in})
}

// ChangePoint changes the recovery point of a failover that awaits its commit.
func (i ItemsClient) ChangePoint(ctx context.Context, item, recoveryPoint string) (*Operation, error) {
	in := armwire.ApplyPointInput{RecoveryPointID: &recoveryPoint, ProviderSpecificDetails: point("")}
	return i.c.Change(ctx, http.MethodPost, item+"/applyRecoveryPoint", armwire.Input[armwire.ApplyPointInput]{Properties: in})
}

// Act runs an operation without input: failoverCommit, failoverCancel or repairReplication.
func (i ItemsClient) Act(ctx context.Context, item, action string) (*Operation, error) {
	return i.c.Change(ctx, http.MethodPost, item+"/"+action, nil)
}

// Jobs is the client's part about jobs and the vault's own extension.
func (c *Client) Jobs() JobsClient { return JobsClient{c} }

// JobsClient reads and steers jobs.
type JobsClient struct{ c *Client }

// List lists jobs, newest first; filter is a $filter expression or empty.
func (j JobsClient) List(ctx context.Context, filter string) ([]Job, error) {
	path := j.c.ID("replicationJobs")
	if filter != "" {
		path += "?$filter=" + url.QueryEscape(filter)
	}
	return All[armwire.Job](ctx, j.c, path)
}

// Get reads a job.
func (j JobsClient) Get(ctx context.Context, id string) (Job, error) {
	return one[armwire.Job](ctx, j.c, j.c.ID("replicationJobs", id))
}

// Do cancels, restarts or resumes a job; comments are kept with resume.
func (j JobsClient) Do(ctx context.Context, id, action, comments string) (Job, error) {
	op, err := j.c.Change(ctx, http.MethodPost, j.c.ID("replicationJobs", id)+"/"+action, armwire.Input[armwire.ResumeInput]{Properties: armwire.ResumeInput{Comments: comments}})
	if err != nil {
		return Job{}, err
	}
	var job Job
	return job, op.Wait(ctx, &job, nil)
}

// Screenshot returns the console picture of a failover job, a PNG.
func (j JobsClient) Screenshot(ctx context.Context, id string) ([]byte, error) {
	b, _, err := j.c.Bytes(ctx, http.MethodGet, "/holdfast/v1/jobs/"+segment(id)+"/screenshot", nil)
	return b, err
}

// RegistrationKey issues a key for a site and returns its key file (XML).
func (c *Client) RegistrationKey(ctx context.Context, fabric string, oneTime bool, validityHours int) ([]byte, error) {
	b, _, err := c.Bytes(ctx, http.MethodPost, "/holdfast/v1/fabrics/"+segment(fabric)+"/registrationKeys", map[string]any{"oneTime": oneTime, "validityHours": validityHours})
	return b, err
}

// Summary is a protected item in short, by its id, its name or its VM's name.
func (i ItemsClient) Summary(ctx context.Context, ref string) (armwire.ItemSummary, error) {
	var s armwire.ItemSummary
	return s, i.c.Get(ctx, "/holdfast/v1/items/"+segment(ref), &s)
}

// Summaries are all protected items in short.
func (i ItemsClient) Summaries(ctx context.Context) ([]armwire.ItemSummary, error) {
	return pages[armwire.ItemSummary](ctx, i.c, "/holdfast/v1/items")
}
