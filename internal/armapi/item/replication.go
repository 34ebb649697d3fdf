package item

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armapi/site"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// repairReplication resynchronizes now. The public operation has no body; ours
// may ask for everything to be sent again.
func repairReplication(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.RepairInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		return c.Svc().ResyncWith(c.Ctx(), it.ID, vault.ResyncOptions{Full: in.Properties.Full}, c.Who.Name)
	})
}

// resolveHealthErrors acknowledges nothing: health is computed anew from the
// facts, so an error goes away when its cause does. The answer shows what is left.
func resolveHealthErrors(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.ResolveHealthInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	return getItem(c)
}

// atOnce runs a change of an item that needs no job; the answer is the item after it.
func atOnce(do func(*route.Call, dr.ProtectedItem) error) func(*route.Call) (route.Reply, error) {
	return func(c *route.Call) (route.Reply, error) {
		return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) { return "", do(c, it) })
	}
}

func pause(c *route.Call, it dr.ProtectedItem) error {
	var in armwire.Input[armwire.PauseInput]
	if err := c.Body(&in); err != nil {
		return err
	}
	r := vault.PauseRequest{Paused: true, Reason: in.Properties.Reason, By: c.Who.Name}
	if t := in.Properties.ResumeAt; t != nil {
		r.ResumeAt = *t
	}
	return c.Svc().Pause(c.Ctx(), it.ID, r)
}

func resume(c *route.Call, it dr.ProtectedItem) error {
	return c.Svc().Pause(c.Ctx(), it.ID, vault.PauseRequest{By: c.Who.Name})
}

func retryNow(c *route.Call, it dr.ProtectedItem) error {
	return c.Svc().RetryNow(c.Ctx(), it.ID, c.Who.Name)
}

func acknowledgeAnomaly(c *route.Call, it dr.ProtectedItem) error {
	return c.Svc().AcknowledgeAnomaly(c.Ctx(), it.ID, c.Who.Name)
}

func addDisks(c *route.Call) (route.Reply, error) {
	return changeDisks(c, func(_ dr.ProtectedItem, have, named []string) ([]string, error) {
		return append(have, slices.DeleteFunc(named, func(d string) bool { return slices.Contains(have, d) })...), nil
	})
}

func removeDisks(c *route.Call) (route.Reply, error) {
	return changeDisks(c, func(it dr.ProtectedItem, have, named []string) ([]string, error) {
		left := slices.DeleteFunc(have, func(d string) bool { return slices.Contains(named, d) })
		if len(left) == 0 {
			return nil, dr.New(dr.KindInvalid, dr.CodeNoDisks, "armapi.removeDisks", "%s would have no replicated disk left", it.VMName).
				WithHint("To end its protection, disable it.")
		}
		return left, nil
	})
}

// changeDisks says which disks an item replicates from now on. The public
// operations addDisks and removeDisks have inputs for other kinds of sites only.
func changeDisks(c *route.Call, change func(it dr.ProtectedItem, have, named []string) ([]string, error)) (route.Reply, error) {
	var in armwire.Input[armwire.DisksInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	v := in.Properties.ProviderSpecificDetails
	if err := route.InstanceType(v, armwire.HyperVReplicaAzure); err != nil {
		return route.Reply{}, err
	}
	var more armwire.DisksDetails
	if err := route.DecodeVariant(v, &more); err != nil {
		return route.Reply{}, err
	}
	if len(more.Disks) == 0 {
		return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.disks", "providerSpecificDetails.holdfastDisks is missing: it lists the ids of disks, e.g. [\"vdb\"]")
	}
	return onItem(c, func(_ dr.Fabric, it dr.ProtectedItem) (dr.JobID, error) {
		vm, err := c.Svc().VM(c.Ctx(), it.Fabric, it.VM)
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return "", err
		}
		for _, d := range more.Disks {
			if !slices.ContainsFunc(vm.Disks, func(x dr.Disk) bool { return x.ID == d }) && !slices.Contains(it.Disks, d) {
				return "", dr.New(dr.KindInvalid, dr.CodeNotFound, "armapi.disks", "%s has no disk %q", it.VMName, route.Clip(d)).WithHint("Its disks are in holdfastDisks of the item.")
			}
		}
		disks, err := change(it, slices.Clone(it.Disks), more.Disks)
		if err != nil {
			return "", err
		}
		return c.Svc().ChangeDisks(c.Ctx(), it.ID, disks, c.Who.Name)
	})
}

// disks are the VM's disks, replicated or not, and replicated ones that its host
// no longer reports.
func disks(vm dr.VM, it dr.ProtectedItem, x vault.Detail) []armwire.Disk {
	out := make([]armwire.Disk, 0, len(vm.Disks))
	for _, d := range vm.Disks {
		out = append(out, armwire.Disk{ID: d.ID, Name: site.BaseName(d.Path), Bytes: d.Size, Boot: d.Boot, Unreplicatable: d.Unreplicatable,
			Excluded: slices.Contains(x.Excluded, d.ID), Undecided: slices.Contains(x.NewDisks, d.ID), Replicated: len(it.Disks) == 0 || slices.Contains(it.Disks, d.ID)})
	}
	for _, id := range it.Disks {
		if !slices.ContainsFunc(vm.Disks, func(d dr.Disk) bool { return d.ID == id }) {
			out = append(out, armwire.Disk{ID: id, Replicated: true})
		}
	}
	return out
}

// resync renders the resynchronization axis; nil if none is required.
//
//	the agent's phase is resync      running
//	it begins by itself (some time)  waiting; NextWindow says when, null = with the next cycle
//	the policy says manual           required
func resync(it dr.ProtectedItem, p dr.Policy, st dr.ReplicationStatus, d vault.Detail) *armwire.Resync {
	code := cmp.Or(d.ResyncCode, st.ResyncReason)
	if it.Resync == "" && code == "" {
		return nil
	}
	entry, _ := dr.Lookup(code)
	r := &armwire.Resync{State: armwire.ResyncWaiting, Code: string(code), Reason: cmp.Or(d.ResyncText, it.Resync, entry.Title), Remedy: entry.Remedy}
	switch {
	case st.Phase == "resync":
		r.State, r.Percent, r.BytesDone, r.BytesTotal, r.ETASeconds = armwire.ResyncRunning, st.Percent, st.BytesDone, st.BytesTotal, ceil(st.ETA)
	case !d.NextResync.IsZero():
		r.NextWindow = armwire.Time(d.NextResync)
	case p.ResyncAuto == dr.ResyncManual:
		r.State = armwire.ResyncRequired
	}
	return r
}

func ceil(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// rpoLag is the age of the newest recovery point that is complete in the store;
// nil where there is none, or where the VM runs at the recovery site.
func rpoLag(c *route.Call, it dr.ProtectedItem, s dr.ReplicationStatus) *int64 {
	if s.LastPoint.IsZero() || it.Active == dr.AtRecovery {
		return nil
	}
	lag := max(0, int64(c.Now().Sub(s.LastPoint)/time.Second))
	return &lag
}

func replication(c *route.Call, it dr.ProtectedItem, s dr.ReplicationStatus, d vault.Detail) armwire.Replication {
	r := armwire.Replication{
		Phase: s.Phase, ProgressPercent: s.Percent, BytesDone: s.BytesDone, BytesTotal: s.BytesTotal, ETASeconds: ceil(s.ETA),
		RPOLagSeconds: rpoLag(c, it, s), BacklogBytes: s.BacklogBytes, SpooledBytes: s.Spooled, MissedCycles: s.Missed, Cycles: s.Cycles,
		LastCut: armwire.Time(s.LastCut), LastPoint: armwire.Time(s.LastPoint), ReportedAt: armwire.Time(s.At),
		ChangeBytesPerSecond: s.BacklogRate, ShipBytesPerSecond: s.ShipRate, Convergence: string(s.Converging), BacklogSeconds: ceil(s.BacklogSeconds),
		SentBytes: d.SentBytes, NextInitial: armwire.Time(d.NextInitial), Attempt: d.Attempt, RetryAt: armwire.Time(d.RetryAt), ConsistencyNote: s.ConsistencyNote,
	}
	if s.Err != nil {
		r.Error, r.ErrorCode = s.Err.Message, string(s.Err.Code)
	}
	return r
}

func listEvents(c *route.Call) (route.Reply, error) {
	const most = 500
	_, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	es, err := c.Svc().Events(c.Ctx(), it.ID, most)
	if err != nil {
		return route.Reply{}, err
	}
	out := armwire.List[armwire.Event]{Value: make([]armwire.Event, 0, len(es))}
	for _, e := range es {
		out.Value = append(out.Value, armwire.Event{ID: e.ID, Time: armwire.Time(e.At), Kind: e.Kind, ItemID: string(e.Item), Agent: string(e.Agent), By: e.By, Audit: e.Audit, Text: strings.TrimSpace(e.Text)})
	}
	return route.OK(out)
}

func statistics(s vault.Statistics) armwire.Statistics {
	return armwire.Statistics{Since: armwire.Time(s.Start), Success: s.Success, Missed: s.Miss, Bytes: s.Bytes, MaxBytes: s.MaxBytes, AverageBytes: s.AverageBytes(),
		LatencySeconds: s.AverageLatency().Seconds(), MaxLatencySeconds: s.MaxLatency.Seconds(), NetworkFailures: s.NetworkFailures, Failures: s.Failures, AppFailures: s.AppConsistentFailures, Puts: s.Puts}
}
