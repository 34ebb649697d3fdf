// Package shape follows what happens to protected VMs and their hosts: disks
// that come, go, or are chosen anew, VMs that move to another host, and
// agents that are installed again.
//
// It promises that the list of replicated disks changes only when somebody says
// so, or when a host has reported twice that a disk is gone; that a VM is taken
// over by another host's agent only when that one has reported it running twice
// and the old host has said that it no longer has it, or was removed from the vault; and that either keeps the
// history: the next cut goes on from the last good one.
package shape

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vault/work"
	"holdfast/internal/vaultdb"
)

const (
	docMove = "move"
	// JobMove is the kind of the job that gives a replica to its (new) source agent.
	JobMove = "MoveReplication"
)

// moveDoc is the durable form of a move that is being made sure of.
type moveDoc struct {
	Lacks bool       `json:"lacks,omitempty"` // the source host no longer has the VM
	Agent dr.AgentID `json:"agent,omitempty"` // reports it running
	Times int        `json:"times,omitempty"`
}

// Watcher follows shapes. It is safe for concurrent use.
type Watcher struct {
	st   *state.State
	jobs *work.Board
}

// New makes a Watcher; it does no I/O.
func New(st *state.State, jobs *work.Board) *Watcher { return &Watcher{st: st, jobs: jobs} }

// Choose checks a choice of a VM's disks; none means all.
func Choose(op string, vm dr.VM, want []string) ([]string, error) {
	var ids []string
	for _, d := range vm.Disks {
		if len(want) == 0 || slices.Contains(want, d.ID) {
			ids = append(ids, d.ID)
		}
	}
	for _, id := range want {
		if !slices.Contains(ids, id) {
			return nil, dr.Errorf(dr.KindInvalid, op, "%s has no disk %q", vm.Name, id)
		}
	}
	if len(ids) == 0 {
		return nil, dr.New(dr.KindUnsupported, dr.CodeNoDisks, op, "%s has no disk", vm.Name)
	}
	return ids, nil
}

// Others lists a VM's disks that are not chosen.
func Others(vm dr.VM, chosen []string) []string {
	var out []string
	for _, d := range vm.Disks {
		if !slices.Contains(chosen, d.ID) {
			out = append(out, d.ID)
		}
	}
	return out
}

// ChangeDisks replaces the list of an item's replicated disks; all others that
// the VM has now are excluded. The next cut has the new list: an added disk is sent
// whole, a removed one stays in older points. The history goes on. It applies at once.
func (w *Watcher) ChangeDisks(ctx context.Context, id dr.ItemID, disks []string, by string) (dr.JobID, error) {
	const op = "vault.ChangeDisks"
	row, err := vaultdb.ItemByID(ctx, w.st.Q(), id)
	if err != nil {
		return "", state.Outward(err)
	}
	if len(disks) == 0 {
		return "", dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "%s has to keep at least one replicated disk", row.VMName).WithHint("disable protection to stop replicating the VM")
	}
	return w.jobs.Quick(ctx, work.Quick{Kind: "ChangeDisks", TargetType: "ProtectionEntity", Target: row.VMName, TargetID: string(id), Item: id, By: by, Audit: true}, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, id)
		if err != nil {
			return err
		}
		vm, err := vaultdb.VM(ctx, tx, it.Fabric, it.VM)
		if err != nil {
			return err
		}
		chosen, err := Choose(op, vm, disks)
		if err != nil {
			return err
		}
		for _, d := range vm.Disks {
			if d.Unreplicatable != "" && slices.Contains(chosen, d.ID) && !slices.Contains(it.Disks, d.ID) {
				return dr.New(dr.KindPrecondition, dr.CodeDiskNotTrackable, op, "disk %s of %s can't be replicated: %s", d.ID, vm.Name, d.Unreplicatable)
			}
		}
		if err := w.note(ctx, tx, it, by, added(it.Disks, chosen), added(chosen, it.Disks)); err != nil {
			return err
		}
		it.Disks, it.More.Excluded, it.More.Missing, it.More.Shaped = chosen, Others(vm, chosen), nil, true
		return w.st.SaveItem(ctx, tx, it)
	})
}

// added lists what b has and a has not.
func added(a, b []string) []string {
	var out []string
	for _, x := range b {
		if !slices.Contains(a, x) {
			out = append(out, x)
		}
	}
	return out
}

func (w *Watcher) note(ctx context.Context, tx *sql.Tx, it vaultdb.Item, by string, more, fewer []string) error {
	var parts []string
	if len(more) > 0 {
		parts = append(parts, "replicates disk "+strings.Join(more, ", ")+" from now on")
	}
	if len(fewer) > 0 {
		parts = append(parts, "no longer replicates disk "+strings.Join(fewer, ", "))
	}
	if len(parts) == 0 {
		return nil
	}
	return w.st.Note(ctx, tx, vaultdb.Event{Kind: "disks", Item: it.ID, By: by, Audit: true}, "%s %s", it.VMName, strings.Join(parts, " and "))
}

// Seen looks at a host's inventory, after it was stored, for what it means to
// protected items.
func (w *Watcher) Seen(ctx context.Context, agent dr.AgentID, r agentapi.InventoryRequest) error {
	p, err := vaultdb.ProviderByID(ctx, w.st.Q(), agent)
	if err != nil {
		return state.Outward(err)
	}
	items, err := vaultdb.Items(ctx, w.st.Q(), p.Fabric)
	if err != nil {
		return state.Outward(err)
	}
	here := map[dr.VMID]agentapi.VM{}
	for _, vm := range r.VMs {
		here[dr.VMID(vaultdb.Key(vm.ID))] = vm
	}
	var errs []error
	for _, it := range items {
		vm, has := here[it.VM]
		switch {
		case it.Active != dr.AtPrimary || it.Protection != dr.Protected && it.Protection != dr.InitialReplication:
		case it.SourceAgent == agent && has:
			errs = append(errs, w.atHome(ctx, it, vm))
		case it.SourceAgent == agent:
			errs = append(errs, w.lacking(ctx, it))
		case has && vm.Running && p.HasRole(dr.RoleSource):
			errs = append(errs, w.elsewhere(ctx, it, p.Provider))
		}
	}
	return errors.Join(errs...)
}

// atHome looks at the disks of a VM that is where it was.
func (w *Watcher) atHome(ctx context.Context, it vaultdb.Item, vm agentapi.VM) error {
	if err := w.forgetMove(ctx, it); err != nil {
		return err
	}
	now := dr.VM{Disks: make([]dr.Disk, len(vm.Disks))}
	for i, d := range vm.Disks {
		now.Disks[i].ID = d.ID
	}
	missing := func(it vaultdb.Item) (gone []string) {
		for _, id := range it.Disks {
			if !slices.ContainsFunc(now.Disks, func(d dr.Disk) bool { return d.ID == id }) {
				gone = append(gone, id)
			}
		}
		return gone
	}
	if it.More.Shaped && slices.Equal(missing(it), it.More.Missing) && len(it.More.Missing) == 0 || len(now.Disks) == 0 {
		return nil
	}
	return w.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, it.ID)
		if err != nil {
			return err
		}
		if !it.More.Shaped { // enabled before anybody kept note of it: what is not replicated is meant not to be
			it.More.Shaped, it.More.Excluded = true, Others(now, it.Disks)
		}
		gone := missing(it)
		var twice []string
		for _, id := range gone {
			if slices.Contains(it.More.Missing, id) {
				twice = append(twice, id)
			}
		}
		left := added(twice, it.Disks)
		if len(twice) > 0 && len(left) > 0 {
			it.Disks = left
			if err := w.st.Note(ctx, tx, vaultdb.Event{Kind: "disks", Item: it.ID, By: "vault"}, "disk %s of %s is gone at the host and no longer replicated; older recovery points keep it",
				strings.Join(twice, ", "), it.VMName); err != nil {
				return err
			}
			gone = added(twice, gone)
		}
		it.More.Missing = gone
		return w.st.SaveItem(ctx, tx, it)
	})
}

func (w *Watcher) forgetMove(ctx context.Context, it vaultdb.Item) error {
	d, err := vaultdb.Doc[moveDoc](ctx, w.st.Q(), it.ID, docMove)
	if err != nil || d == (moveDoc{}) {
		return state.Outward(err)
	}
	return w.saveMove(ctx, it, moveDoc{})
}

func (w *Watcher) saveMove(ctx context.Context, it vaultdb.Item, d moveDoc) error {
	return w.st.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := vaultdb.LockItem(ctx, tx, it.ID); err != nil {
			return err
		}
		return vaultdb.SaveDoc(ctx, tx, it.ID, docMove, d, w.st.Now())
	})
}

// lacking notes that the source host no longer has the VM.
func (w *Watcher) lacking(ctx context.Context, it vaultdb.Item) error {
	d, err := vaultdb.Doc[moveDoc](ctx, w.st.Q(), it.ID, docMove)
	if err != nil || d.Lacks {
		return state.Outward(err)
	}
	d.Lacks = true
	return w.saveMove(ctx, it, d)
}

// elsewhere counts the reports of a host that runs a VM which its source host
// no longer has; with the second one the replica is given to it.
func (w *Watcher) elsewhere(ctx context.Context, it vaultdb.Item, host dr.Provider) error {
	d, err := vaultdb.Doc[moveDoc](ctx, w.st.Q(), it.ID, docMove)
	if err != nil {
		return state.Outward(err)
	}
	if !d.Lacks { // a host that was removed from the vault can't say so any more
		src, err := vaultdb.ProviderByID(ctx, w.st.Q(), it.SourceAgent)
		if err != nil && dr.KindOf(err) != dr.KindNotFound {
			return state.Outward(err)
		}
		if d.Lacks = err != nil || src.Revoked; !d.Lacks {
			return nil
		}
	}
	if d.Agent != host.ID {
		d.Agent, d.Times = host.ID, 0
	}
	if d.Times++; d.Times < 2 {
		return w.saveMove(ctx, it, d)
	}
	_, err = w.Move(ctx, it.ID, host.ID, fmt.Sprintf("%s moved to host %s", it.VMName, host.Host), "vault")
	if dr.CodeOf(err) == dr.CodeJobInProgress || dr.KindOf(err) == dr.KindPrecondition {
		return nil // the next inventory tries again
	}
	return err
}

// Move gives an item's replica to an agent of its site, which may be the one
// that has it already, in a new generation that goes on from the last good cut.
func (w *Watcher) Move(ctx context.Context, id dr.ItemID, agent dr.AgentID, why, by string) (dr.JobID, error) {
	const op = "vault.Move"
	jobID := state.Ordered()
	err := w.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.ItemByID(ctx, tx, id)
		if err != nil {
			return err
		}
		p, err := vaultdb.ProviderByID(ctx, tx, agent)
		if err != nil {
			return err
		}
		if p.Fabric != it.Fabric || p.Revoked || !p.HasRole(dr.RoleSource) {
			return dr.Errorf(dr.KindInvalid, op, "host %s can't replicate %s: it is in another site, was removed, or does not have the source role", p.Host, it.VMName)
		}
		if err := w.jobs.SubmitItem(ctx, tx, jobID, JobMove, work.LockOf(id), it, MoveInput{Item: id, Agent: agent}, by); err != nil {
			return err
		}
		if it, err = vaultdb.LockItem(ctx, tx, id); err != nil {
			return err
		}
		quiet := it.Failover == dr.FailoverNone || it.Failover == dr.FailoverFailed
		if it.Job != "" || it.Active != dr.AtPrimary || !quiet || it.Protection != dr.Protected && it.Protection != dr.InitialReplication {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, op, "the replication of %s can't be taken over now: protection %s, failover %s", it.VMName, it.Protection, it.Failover)
		}
		it.Job, it.More.Reopen = dr.JobID(jobID), ""
		if err := w.st.SaveItem(ctx, tx, it); err != nil {
			return err
		}
		if err := vaultdb.SaveDoc(ctx, tx, id, docMove, moveDoc{}, w.st.Now()); err != nil {
			return err
		}
		return w.st.Note(ctx, tx, vaultdb.Event{Kind: "takeover", Item: id, Agent: agent, By: by, Audit: true}, "host %s takes over the replication of %s (%s): job %s; recovery points stay", p.Host, it.VMName, why, jobID)
	})
	if err != nil {
		return "", err
	}
	return dr.JobID(jobID), nil
}

// MoveInput is the input of the job of Move.
type MoveInput struct {
	Item  dr.ItemID  `json:"item"`
	Agent dr.AgentID `json:"agent"`
}

// Reopen notes that an item's own agent needs a new generation, because it has
// lost its state or the chain; Due carries it out.
func (w *Watcher) Reopen(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, why string) error {
	if it.Gen == 0 || it.Active != dr.AtPrimary {
		return nil
	}
	it.More.Reopen = why
	return w.st.SaveItem(ctx, tx, *it)
}

// Due carries out what Reopen has noted, as soon as no other job of the item runs.
func (w *Watcher) Due(ctx context.Context, it vaultdb.Item) error {
	if it.More.Reopen == "" || it.Job != "" {
		return nil
	}
	_, err := w.Move(ctx, it.ID, it.SourceAgent, it.More.Reopen, "vault")
	if dr.CodeOf(err) == dr.CodeJobInProgress || dr.KindOf(err) == dr.KindPrecondition {
		return nil
	}
	return err
}

// Registered is called when a host has registered again: its agent may have
// lost everything, so each of its replicas goes on in a new generation. What the
// agent finds to be the same is not sent again.
func (w *Watcher) Registered(ctx context.Context, agent dr.AgentID) error {
	items, err := vaultdb.ItemsOfSource(ctx, w.st.Q(), agent)
	if err != nil {
		return state.Outward(err)
	}
	var errs []error
	for _, it := range items {
		err := w.st.Tx(ctx, func(tx *sql.Tx) error {
			var err error
			if it, err = vaultdb.LockItem(ctx, tx, it.ID); err != nil {
				return err
			}
			return w.Reopen(ctx, tx, &it, "its host registered again")
		})
		if err == nil {
			err = w.Due(ctx, it)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// NewDisks lists the disks that a VM has and that nobody has decided about.
func NewDisks(it vaultdb.Item, vm dr.VM) []string {
	if !it.More.Shaped {
		return nil
	}
	var out []string
	for _, id := range Others(vm, it.Disks) {
		if !slices.Contains(it.More.Excluded, id) {
			out = append(out, id)
		}
	}
	return out
}

// Reasons returns what shapes add to the reasons for an item's health.
func Reasons(it vaultdb.Item, vm dr.VM) []dr.HealthError {
	disks := NewDisks(it, vm)
	if len(disks) == 0 || vm.Gone || it.Active != dr.AtPrimary {
		return nil
	}
	return []dr.HealthError{{Code: dr.CodeDiskNotReplicated, Severity: dr.HealthWarning,
		Message: fmt.Sprintf("%s has got disk %s, which is not replicated.", it.VMName, strings.Join(disks, ", ")),
		Cause:   "A disk was added to the VM after protection was enabled: " + strings.Join(disks, ", ") + ".",
		Remedy:  "Add the disk to the replicated disks, or exclude it there."}}
}
