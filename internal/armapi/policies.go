package armapi

import (
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// What a policy is when a client leaves a field out (the public defaults;
// application-consistent points are off unless asked for).
const (
	defaultCopyFrequency = 5 * time.Minute
	defaultRetention     = 2 * time.Hour
)

func listPolicies(c *call) (reply, error) {
	ps, err := c.dir.allPolicies()
	if err != nil {
		return reply{}, err
	}
	return page(c, ps, func(p dr.Policy) string { return p.Name }, c.policyResource)
}

func getPolicy(c *call) (reply, error) {
	p, err := c.svc().Policy(c.ctx(), c.name(tPolicies))
	if err != nil {
		return reply{}, err
	}
	r, _ := c.policyResource(p)
	return ok(r)
}

func (c *call) policyID(p dr.Policy) string { return c.vaultID().ID(tPolicies, p.Name) }

func (c *call) policyResource(p dr.Policy) (armwire.Resource[armwire.Policy], error) {
	var start *string
	if p.StartTime != "" {
		start = &p.StartTime
	}
	return armwire.Resource[armwire.Policy]{
		ID: c.policyID(p), Name: p.Name, Type: armwire.ResourceType(tPolicies, p.Name),
		Properties: armwire.Policy{FriendlyName: p.Name, ProviderSpecificDetails: armwire.PolicyDetails{
			InstanceType: armwire.HyperVReplicaAzure, RecoveryPointHistoryHours: hours(p.Retention), AppConsistentFrequency: hours(p.AppFrequency),
			ReplicationInterval: int32(p.CopyFrequency / time.Second), OnlineReplicationStartTime: start, Encryption: "Disabled",
			ActiveStorageAccountID: p.Storage, RetentionSeconds: int64(p.Retention / time.Second), AppFrequencySeconds: int64(p.AppFrequency / time.Second),
		}},
	}, nil
}

// hours rounds up, so that a short period does not show as none.
func hours(d time.Duration) int32 { return int32((d + time.Hour - 1) / time.Hour) }

// applyPolicy changes p by what the client sent.
func applyPolicy(p *dr.Policy, v armwire.Variant) error {
	if err := instanceType(v, armwire.HyperVReplicaAzure); err != nil {
		return err
	}
	var in armwire.PolicySettings
	if err := decodeVariant(v, &in); err != nil {
		return err
	}
	set := func(d *time.Duration, n int64, unit time.Duration) error {
		if n < 0 || n > int64(10*dr.MaxRetention/unit) {
			return dr.New(dr.KindInvalid, dr.CodePolicyInvalid, "armapi.policy", "policy %q: %d is outside the range of a period in %v", p.Name, n, unit)
		}
		*d = time.Duration(n) * unit
		return nil
	}
	for _, f := range []struct {
		to   *time.Duration
		n    *int64
		unit time.Duration
	}{
		{&p.Retention, wide(in.RecoveryPointHistoryDuration), time.Hour},
		{&p.AppFrequency, wide(in.AppConsistentFrequency), time.Hour},
		{&p.CopyFrequency, wide(in.ReplicationInterval), time.Second},
		{&p.Retention, in.RetentionSeconds, time.Second},
		{&p.AppFrequency, in.AppFrequencySeconds, time.Second},
	} {
		if f.n == nil {
			continue
		}
		if err := set(f.to, *f.n, f.unit); err != nil {
			return err
		}
	}
	if in.OnlineReplicationStartTime != nil {
		p.StartTime = *in.OnlineReplicationStartTime
	}
	if len(in.StorageAccounts) > 0 {
		p.Storage = in.StorageAccounts[0]
	}
	return p.Validate()
}

func wide(n *int32) *int64 {
	if n == nil {
		return nil
	}
	w := int64(*n)
	return &w
}

// putPolicy creates a policy, or brings an existing one to what the client says.
func putPolicy(c *call) (reply, error) {
	var in armwire.Input[armwire.PolicyInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	want := dr.Policy{Name: c.name(tPolicies), CopyFrequency: defaultCopyFrequency, Retention: defaultRetention}
	if err := applyPolicy(&want, in.Properties.ProviderSpecificInput); err != nil {
		return reply{}, err
	}
	have, err := c.svc().Policy(c.ctx(), want.Name)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return reply{}, err
	}
	exists := err == nil
	if exists {
		want.ID, want.Name, want.Created = have.ID, have.Name, have.Created
		if want.Equal(have) {
			return getPolicy(c)
		}
	}
	job, err := c.svc().SavePolicy(c.ctx(), want, !exists, c.who.Name)
	return started(job, err, c.policyID(want))
}

func patchPolicy(c *call) (reply, error) {
	var in armwire.Input[armwire.PolicyUpdate]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	p, err := c.svc().Policy(c.ctx(), c.name(tPolicies))
	if err != nil {
		return reply{}, err
	}
	if err := applyPolicy(&p, in.Properties.ReplicationProviderSettings); err != nil {
		return reply{}, err
	}
	job, err := c.svc().SavePolicy(c.ctx(), p, false, c.who.Name)
	return started(job, err, c.policyID(p))
}

func removePolicy(c *call) (reply, error) {
	name := c.name(tPolicies)
	job, err := c.svc().RemovePolicy(c.ctx(), name, c.who.Name)
	return c.removed(job, err, c.vaultID().ID(tPolicies, name))
}

// instanceType refuses a polymorphic input of a kind that is not served. No
// discriminator at all is fine: several clients leave it out.
func instanceType(v armwire.Variant, served ...string) error {
	t := v.InstanceType()
	if t == "" {
		return nil
	}
	for _, s := range served {
		if strings.EqualFold(s, t) {
			return nil
		}
	}
	return dr.New(dr.KindUnsupported, codeNotSupported, "armapi", "instanceType %q is not supported here; use %s", clip(t), strings.Join(served, " or "))
}

func decodeVariant(v armwire.Variant, out any) error {
	if err := v.Decode(out); err != nil {
		return dr.New(dr.KindInvalid, codeInvalidBody, "armapi.body", "the provider-specific part of the request body is not valid: %s", jsonTrouble(err))
	}
	return nil
}

// nameIn returns the name of the resource of type t that a client refers to in
// a body: by id in this vault, or by its bare name.
func (c *call) nameIn(field, ref, t string) (string, error) {
	if !strings.Contains(ref, "/") {
		if ref == "" {
			return "", dr.New(dr.KindInvalid, codeInvalidBody, "armapi.body", "%s is missing", field)
		}
		return ref, nil
	}
	id, err := armwire.ParseID(ref)
	if err != nil {
		return "", dr.New(dr.KindInvalid, codeInvalidBody, "armapi.body", "%s: %v", field, err)
	}
	if !strings.EqualFold(id.VaultID.String(), c.vaultID().String()) {
		return "", dr.New(dr.KindInvalid, codeInvalidBody, "armapi.body", "%s %q belongs to another vault", field, clip(ref))
	}
	name := id.NameOf(t)
	if name == "" || !strings.EqualFold(id.Segments[len(id.Segments)-1].Type, t) {
		return "", dr.New(dr.KindInvalid, codeInvalidBody, "armapi.body", "%s %q is not the id of a %s resource", field, clip(ref), t)
	}
	return name, nil
}

func listMappings(c *call) (reply, error) {
	var id dr.FabricID
	if c.name(tFabrics) != "" {
		f, err := c.fabric()
		if err != nil {
			return reply{}, err
		}
		id = f.ID
	}
	ms, err := c.svc().Mappings(c.ctx(), id)
	if err != nil {
		return reply{}, err
	}
	return page(c, ms, func(m dr.ContainerMapping) string { return string(m.Fabric) + "/" + m.Name }, c.mappingResource)
}

func getMapping(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	m, err := c.svc().Mapping(c.ctx(), f.ID, c.name(tMappings))
	if err != nil {
		return reply{}, err
	}
	r, err := c.mappingResource(m)
	if err != nil {
		return reply{}, err
	}
	return ok(r)
}

func (c *call) mappingID(f dr.Fabric, name string) string {
	return c.vaultID().ID(tFabrics, f.Name, tContainers, f.ContainerName(), tMappings, name)
}

// target describes a recovery site: ids and friendly names, the cloud's literal if there is none.
func (c *call) target(id dr.FabricID) (fabricID, containerID, name string, err error) {
	if id == "" {
		return armwire.Cloud, armwire.Cloud, armwire.Cloud, nil
	}
	f, err := c.dir.fabric(id)
	if err != nil || f.ID == "" {
		return "", "", "", err
	}
	return c.fabricID(f), c.containerID(f), f.Name, nil
}

func (c *call) mappingResource(m dr.ContainerMapping) (armwire.Resource[armwire.Mapping], error) {
	var out armwire.Resource[armwire.Mapping]
	f, err := c.dir.fabric(m.Fabric)
	if err != nil {
		return out, err
	}
	p, err := c.dir.policy(m.Policy)
	if err != nil {
		return out, err
	}
	_, container, name, err := c.target(m.TargetFabric)
	if err != nil {
		return out, err
	}
	out = armwire.Resource[armwire.Mapping]{
		ID: c.mappingID(f, m.Name), Name: m.Name, Type: armwire.ResourceType(tFabrics, "", tContainers, "", tMappings, ""),
		Properties: armwire.Mapping{
			TargetProtectionContainerID: container, TargetProtectionContainerFriendlyName: name, Health: string(dr.HealthNormal), HealthErrorDetails: []armwire.HealthError{},
			PolicyID: c.policyID(p), State: "Paired", SourceProtectionContainerFriendlyName: f.Name, SourceFabricFriendlyName: f.Name,
			TargetFabricFriendlyName: name, PolicyFriendlyName: p.Name,
		},
	}
	return out, nil
}

// putMapping associates a policy and a recovery site with a container.
func putMapping(c *call) (reply, error) {
	var in armwire.Input[armwire.MappingInput]
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	f, err := c.fabric()
	if err != nil {
		return reply{}, err
	}
	policyName, err := c.nameIn("policyId", in.Properties.PolicyID, tPolicies)
	if err != nil {
		return reply{}, err
	}
	p, err := c.svc().Policy(c.ctx(), policyName)
	if err != nil {
		return reply{}, named(err, "policyId")
	}
	m := dr.ContainerMapping{Name: c.name(tMappings), Fabric: f.ID, Policy: p.ID, Target: in.Properties.TargetProtectionContainerID}
	if t := m.Target; t != "" && !strings.EqualFold(t, armwire.Cloud) {
		container, err := c.nameIn("targetProtectionContainerId", t, tContainers)
		if err != nil {
			return reply{}, err
		}
		fs, err := c.dir.allFabrics()
		if err != nil {
			return reply{}, err
		}
		for _, x := range fs {
			if strings.EqualFold(x.ContainerName(), container) {
				m.TargetFabric = x.ID
			}
		}
		if m.TargetFabric == "" {
			return reply{}, dr.New(dr.KindInvalid, dr.CodeNotFound, "armapi.putMapping", "targetProtectionContainerId: protection container %q does not exist", clip(container))
		}
	}
	switch have, err := c.svc().Mapping(c.ctx(), f.ID, m.Name); {
	case err == nil && have.Policy == m.Policy && have.TargetFabric == m.TargetFabric:
		return getMapping(c)
	case err == nil:
		return reply{}, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "armapi.putMapping", "container mapping %q exists with another policy or target", have.Name)
	case dr.KindOf(err) != dr.KindNotFound:
		return reply{}, err
	}
	job, err := c.svc().CreateMapping(c.ctx(), m, c.who.Name)
	return started(job, err, c.mappingID(f, m.Name))
}

// named turns "not found" about something that a body refers to into a bad
// request: a 404 would say that the path does not exist.
func named(err error, field string) error {
	if dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	return dr.New(dr.KindInvalid, dr.CodeNotFound, "armapi.body", "%s: %w", field, err)
}

func removeMapping(c *call) (reply, error) {
	f, err := c.fabric()
	if err != nil {
		return c.removed("", err, "")
	}
	name := c.name(tMappings)
	job, err := c.svc().RemoveMapping(c.ctx(), f.ID, name, c.who.Name)
	return c.removed(job, err, c.mappingID(f, name))
}
