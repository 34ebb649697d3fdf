package policy

import (
	"cmp"
	"fmt"
	"time"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// What a policy is when a client leaves a field out (the public defaults;
// application-consistent points are off unless asked for).
const (
	defaultCopyFrequency = 5 * time.Minute
	defaultRetention     = 2 * time.Hour
)

func listPolicies(c *route.Call) (route.Reply, error) {
	ps, err := c.Dir.Policies()
	if err != nil {
		return route.Reply{}, err
	}
	return route.Page(c, ps, func(p dr.Policy) string { return p.Name }, policyResource)
}

func getPolicy(c *route.Call) (route.Reply, error) {
	p, err := c.Svc().Policy(c.Ctx(), c.NameOf(route.TPolicies))
	if err != nil {
		return route.Reply{}, err
	}
	r, _ := policyResource(c, p)
	return route.OK(r)
}

func policyResource(c *route.Call, p dr.Policy) (armwire.Resource[armwire.Policy], error) {
	var start *string
	if p.StartTime != "" {
		start = &p.StartTime
	}
	threshold, on := p.PendingLimit()
	if !on {
		threshold = -1
	}
	rules := make([]armwire.BandwidthRule, 0, len(p.Bandwidth))
	for _, r := range p.Bandwidth {
		rules = append(rules, armwire.BandwidthRule{Window: r.Window.String(), BytesPerSecond: r.BytesPerSecond})
	}
	return armwire.Resource[armwire.Policy]{
		ID: c.PolicyID(p), Name: p.Name, Type: armwire.ResourceType(route.TPolicies, p.Name),
		Properties: armwire.Policy{FriendlyName: p.Name, ProviderSpecificDetails: armwire.PolicyDetails{
			InstanceType: armwire.HyperVReplicaAzure, RecoveryPointHistoryHours: hours(p.Retention), AppConsistentFrequency: hours(p.AppFrequency),
			ReplicationInterval: int32(p.CopyFrequency / time.Second), OnlineReplicationStartTime: start, Encryption: "Disabled",
			ActiveStorageAccountID: p.Storage, RetentionSeconds: seconds(p.Retention), AppFrequencySeconds: seconds(p.AppFrequency),
			RetainHourlySeconds: seconds(p.RetainHourly), RetainDailySeconds: seconds(p.RetainDaily),
			ResyncMode: string(cmp.Or(p.ResyncAuto, dr.ResyncInWindow)), ResyncWindow: p.ResyncWindow.String(), ResyncThreshold: threshold,
			InitialMode: string(cmp.Or(p.InitialMode, dr.InitialParallel)), InitialWindow: p.InitialWindow.String(), InitialPriority: p.InitialPriority,
			Compression: string(cmp.Or(p.Compression, dr.CompressionZstd)), Bandwidth: rules,
		}},
	}, nil
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// hours rounds up, so that a short period does not show as none.
func hours(d time.Duration) int32 { return int32((d + time.Hour - 1) / time.Hour) }

// applyPolicy changes p by what the client sent.
func applyPolicy(p *dr.Policy, v armwire.Variant) error {
	if err := route.InstanceType(v, armwire.HyperVReplicaAzure); err != nil {
		return err
	}
	var in armwire.PolicySettings
	if err := route.DecodeVariant(v, &in); err != nil {
		return err
	}
	set := func(d *time.Duration, n int64, unit time.Duration) error {
		if n < 0 || n > int64(10*dr.MaxRetentionTier/unit) {
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
		{&p.RetainHourly, in.RetainHourlySeconds, time.Second},
		{&p.RetainDaily, in.RetainDailySeconds, time.Second},
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
	if err := applyWindows(p, in); err != nil {
		return err
	}
	return p.Validate()
}

// applyWindows changes what only this vault's policies have.
func applyWindows(p *dr.Policy, in armwire.PolicySettings) error {
	for _, f := range []struct {
		name string
		to   *dr.Window
		text *string
	}{{"holdfastResyncWindow", &p.ResyncWindow, in.ResyncWindow}, {"holdfastInitialWindow", &p.InitialWindow, in.InitialWindow}} {
		if f.text == nil {
			continue
		}
		w, err := dr.ParseWindow(*f.text)
		if err != nil {
			return setting(p.Name, f.name, err)
		}
		*f.to = w
	}
	if in.ResyncMode != nil {
		p.ResyncAuto = dr.ResyncMode(*in.ResyncMode)
	}
	if in.ResyncThreshold != nil {
		p.ResyncThreshold = *in.ResyncThreshold
	}
	if in.InitialMode != nil {
		p.InitialMode = dr.InitialMode(*in.InitialMode)
	}
	if in.InitialPriority != nil {
		p.InitialPriority = *in.InitialPriority
	}
	if in.Compression != nil {
		p.Compression = dr.Compression(*in.Compression)
	}
	if in.Bandwidth == nil {
		return nil
	}
	p.Bandwidth = nil
	for i, r := range *in.Bandwidth {
		w, err := dr.ParseWindow(r.Window)
		if err != nil {
			return setting(p.Name, fmt.Sprintf("holdfastBandwidth[%d].window", i), err)
		}
		p.Bandwidth = append(p.Bandwidth, dr.BandwidthRule{Window: w, BytesPerSecond: r.BytesPerSecond})
	}
	return nil
}

// setting says which setting of a policy a text was no window for.
func setting(policy, name string, err error) error {
	return dr.New(dr.KindInvalid, dr.CodeWindowInvalid, "armapi.policy", "policy %q: %s: %w", policy, name, err)
}

func wide(n *int32) *int64 {
	if n == nil {
		return nil
	}
	w := int64(*n)
	return &w
}

// putPolicy creates a policy, or brings an existing one to what the client says;
// settings that the public input does not have stay unless they are named.
func putPolicy(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.PolicyInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	want := dr.Policy{Name: c.NameOf(route.TPolicies)}
	have, err := c.Svc().Policy(c.Ctx(), want.Name)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return route.Reply{}, err
	}
	exists := err == nil
	if exists { // a client that knows only the public settings must not reset the others
		want = have
	} else if want.ResyncWindow, err = dr.ParseWindow(dr.DefaultResyncWindow); err != nil {
		return route.Reply{}, err
	}
	want.CopyFrequency, want.Retention, want.AppFrequency, want.StartTime, want.Storage = defaultCopyFrequency, defaultRetention, 0, "", ""
	if err := applyPolicy(&want, in.Properties.ProviderSpecificInput); err != nil {
		return route.Reply{}, err
	}
	if exists && want.Equal(have) {
		return getPolicy(c)
	}
	job, err := c.Svc().SavePolicy(c.Ctx(), want, !exists, c.Who.Name)
	return route.Started(job, err, c.PolicyID(want))
}

func patchPolicy(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.PolicyUpdate]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	p, err := c.Svc().Policy(c.Ctx(), c.NameOf(route.TPolicies))
	if err != nil {
		return route.Reply{}, err
	}
	if err := applyPolicy(&p, in.Properties.ReplicationProviderSettings); err != nil {
		return route.Reply{}, err
	}
	job, err := c.Svc().SavePolicy(c.Ctx(), p, false, c.Who.Name)
	return route.Started(job, err, c.PolicyID(p))
}

func removePolicy(c *route.Call) (route.Reply, error) {
	name := c.NameOf(route.TPolicies)
	job, err := c.Svc().RemovePolicy(c.Ctx(), name, c.Who.Name)
	return c.Removed(job, err, c.VaultID.ID(route.TPolicies, name))
}
