package azure

import (
	"context"
	"encoding/json"
	"errors"
	"sort"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
)

// Remove deletes a recovery VM and everything that Boot made for it, and looks
// afterwards whether all of it is gone. See hypervisor.Machines. A VM that is
// gone already may have left something: what belongs to the owner and to no VM that exists goes too.
func (h *Host) Remove(ctx context.Context, id dr.VMID, owner string) error {
	const op = "Remove"
	if owner == "" {
		return dr.Errorf(dr.KindInvalid, "azure."+op, "no owner is named whose recovery VM is to be removed")
	}
	unlock, err := h.lock(ctx, op, "owner "+owner)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, h.cfg.UndoTimeout)
	defer cancel()
	which := func(string, bool) bool { return true }
	var also []place
	if id != "" {
		m, err := h.find(ctx, op, id)
		switch {
		case dr.CodeOf(err) == dr.CodeVMNotFound:
			which = func(_ string, exists bool) bool { return !exists }
		case err != nil:
			return err
		case m.tag(arm.TagOwner) != owner || m.tag(arm.TagVM) == "":
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "azure."+op, "%s was not made by %s and is left alone", m.resource(), owner)
		default:
			which = belongsTo(m.tag(arm.TagVM))
			also = append(also, m.place)
		}
	}
	if err := h.demolish(ctx, owner, which, also); err != nil {
		return h.say(op, "remove what was made for "+owner, err)
	}
	h.mu.Lock()
	delete(h.places, dr.VMID(lower(string(id))))
	h.mu.Unlock()
	return nil
}

// belongsTo chooses what was made for one VM, by the tag that names it.
func belongsTo(vm string) func(string, bool) bool {
	return func(of string, _ bool) bool { return strings.EqualFold(of, vm) }
}

func lower(s string) string { return strings.ToLower(s) }

// phases are the kinds that Boot makes, in the order in which they can be deleted:
// what uses another comes before it.
func phases() [][]string {
	return [][]string{{arm.TypeVM}, {arm.TypeNIC, arm.TypeDisk, arm.TypeSnapshot}, {arm.TypePublicIP, arm.TypeNetwork}, {arm.TypeSecurityGroup}}
}

// demolish deletes what was made for the owner's VMs that which chooses, until
// lists show nothing more. It goes on after a failure, and tries again what may yet succeed,
// until ctx ends: Azure keeps an adapter of a VM that it could not make for some minutes, for one.
// which is told the VM that a resource is for, and whether that VM exists.
func (h *Host) demolish(ctx context.Context, owner string, which func(vm string, exists bool) bool, also []place) error {
	var last error
	for pause := h.cfg.Poll; ; pause = min(2*pause, 15*h.cfg.Poll) {
		list, err := h.belongings(ctx, owner, which, also)
		switch {
		case err == nil && len(list) == 0:
			return nil
		case err == nil:
			err = h.deleteAll(ctx, list)
			if err == nil {
				pause = h.cfg.Poll
				continue // look whether that is true
			}
		case last == nil && ctx.Err() == nil && !passing(err):
			return err
		}
		if ctx.Err() == nil {
			last = err
		} else if last == nil {
			last = ended("Remove", "delete what was made for "+owner, ctx.Err())
		}
		if ctx.Err() != nil || !passing(err) || sleep(ctx, pause) != nil {
			return last
		}
	}
}

// passing reports whether trying again may help. A lock, a missing role, a policy and a wrong secret stay.
func passing(err error) bool {
	switch dr.CodeOf(err) {
	case dr.CodeAzureLocked, dr.CodeAzureRole, dr.CodeAzurePolicy, dr.CodeAzureSignIn, dr.CodeAzureClock, dr.CodeAzureNameTaken:
		return false
	}
	return true
}

// belongings lists what was made for the owner, in the site's group and where else
// something of it may be. The kinds' own lists count, which are never behind; Azure's
// index of tags says only in which groups to look.
func (h *Host) belongings(ctx context.Context, owner string, which func(string, bool) bool, also []place) ([]arm.Resource, error) {
	places, err := h.allPlaces(ctx, arm.TagOwner, owner)
	if err != nil {
		return nil, err
	}
	for _, p := range also {
		if !containsPlace(places, p) {
			places = append(places, p)
		}
	}
	var all []arm.Resource
	exists := map[string]bool{}
	for _, p := range places {
		for _, kinds := range phases() {
			for _, kind := range kinds {
				err := h.eachResource(ctx, p, kind, func(r arm.Resource) {
					if r.Tag(arm.TagOwner) != owner || r.Tag(arm.TagVM) == "" {
						return
					}
					all = append(all, r)
					if kind == arm.TypeVM {
						exists[lower(r.Tag(arm.TagVM))] = true
					}
				})
				if err != nil && !arm.IsAbsent(err) { // without its resource group there is nothing
					return nil, err
				}
			}
		}
	}
	var chosen []arm.Resource
	for _, r := range all {
		if vm := r.Tag(arm.TagVM); which(vm, exists[lower(vm)]) {
			chosen = append(chosen, r)
		}
	}
	return chosen, nil
}

func containsPlace(list []place, p place) bool {
	for _, q := range list {
		if strings.EqualFold(q.group, p.group) && strings.EqualFold(q.subscription, p.subscription) {
			return true
		}
	}
	return false
}

func (h *Host) eachResource(ctx context.Context, p place, kind string, each func(arm.Resource)) error {
	return list(ctx, h, p, kind, func(r arm.Resource) {
		r.Type = kind
		each(r)
	})
}

// deleteParallel is how many resources are deleted at a time.
const deleteParallel = 4

// deleteAll deletes resources phase by phase, and goes on after failures.
func (h *Host) deleteAll(ctx context.Context, list []arm.Resource) error {
	var errs []error
	for _, kinds := range phases() {
		var now []arm.Resource
		for _, r := range list {
			for _, k := range kinds {
				if r.Type == k {
					now = append(now, r)
				}
			}
		}
		sort.Slice(now, func(i, j int) bool { return now[i].ID < now[j].ID })
		failed := make([]error, len(now))
		_ = eachOf(ctx, len(now), deleteParallel, func(ctx context.Context, i int) error {
			failed[i] = h.s.Remove(ctx, now[i:i+1])
			return nil // the others go on; failed has it
		})
		errs = append(errs, failed...)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// subscription lists the resources of a kind of the whole subscription, with their properties.
func (h *Host) subscription(ctx context.Context, kind string, each func(vnet)) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	return h.s.List(ctx, "/subscriptions/"+h.site.Subscription+"/providers/"+kind, arm.APIVersion(kind), func(raw json.RawMessage) error {
		var v vnet
		if err := json.Unmarshal(raw, &v); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.List", "an element of the list of %s is not understood: %w", kind, err)
		}
		each(v)
		return nil
	})
}
