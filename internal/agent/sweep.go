package agent

import (
	"context"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
)

// sweepLoop lets go of replicas that other hosts have taken over.
func (a *Agent) sweepLoop(ctx context.Context) {
	for sleep(ctx, a.cfg.every.sweep) == nil {
		if a.fresh.Load() { // a list from before the start may be old
			a.replicas.sweep(ctx, a.client)
		}
	}
}

// uploadGrants says whether a generation may still write; *channel.Client does.
type uploadGrants interface {
	Uploads(ctx context.Context, r agentapi.UploadRequest) (agentapi.UploadResponse, error)
}

// sweep removes replicas whose VM has left this host: the vault does not assign
// them to it any more, it refuses their generation (so nothing in the spool will
// ever be taken), and twice in a row, a sweep apart, the hypervisor did not know
// the VM. Not being able to ask is no answer. As long as the VM is here everything
// stays, also when another side has taken over: after a cancelled failover the
// replica goes on from it. A command of the vault, or another replica of the VM, ends it.
func (r *replicas) sweep(ctx context.Context, vault uploadGrants) {
	for machine, gen := range r.abandoned() {
		vm, absent := r.absent(ctx, machine)
		r.mu.Lock()
		twice := absent && r.gone[machine]
		if r.gone[machine] = absent; !absent {
			delete(r.gone, machine)
		}
		r.mu.Unlock()
		if !twice || !refused(ctx, vault, machine, gen) {
			continue
		}
		r.log.Info("the VM has left this host and its replica was taken over: what is left of it here is removed", "machine", machine, "vm", vm, "generation", gen)
		if err := r.remove(ctx, machine, gen); err != nil {
			r.log.Warn("a replica that was taken over is not removed; it is tried again", "machine", machine, "err", err, "hint", dr.HintOf(err))
		}
	}
}

// abandoned are the machines that have state here and are not assigned, with the
// generation that this host wrote last.
func (r *replicas) abandoned() map[string]uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]uint32{}
	for machine := range r.file.VMs {
		gen, known := r.file.Gens[machine]
		if known && r.live[machine] == nil && !r.listed(machine) {
			out[machine] = gen
		}
	}
	return out
}

// absent reports whether the hypervisor certainly does not know a machine's VM.
func (r *replicas) absent(ctx context.Context, machine string) (dr.VMID, bool) {
	r.mu.Lock()
	vm := dr.VMID(r.file.VMs[machine])
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := r.base.Source.Config(ctx, vm)
	return vm, dr.CodeOf(err) == dr.CodeVMNotFound
}

// refused reports whether the vault certainly takes nothing of a generation any
// more. The request names no objects: it only asks.
func refused(ctx context.Context, vault uploadGrants, machine string, gen uint32) bool {
	_, err := vault.Uploads(ctx, agentapi.UploadRequest{Machine: machine, Generation: gen})
	return dr.CodeOf(err) == dr.CodeGenerationFenced
}
