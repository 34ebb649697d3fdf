package azure

import (
	"context"
	"errors"
	"sort"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// Remove deletes a recovery VM and everything that Boot made for it, and looks
// afterwards whether all of it is gone. See hypervisor.Machines. A VM that is
// gone already may have left something: what belongs to the owner and to no VM that exists goes too.
func (h *Host) Remove(ctx context.Context, id dr.VMID, owner string) error {
	const op = "Remove"
	if owner == "" {
		return dr.Errorf(dr.KindInvalid, "azure."+op, "no owner is named whose recovery VM is to be removed")
	}
	unlock, err := h.az.Lock(ctx, op, "owner "+owner)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, h.cfg.UndoTimeout)
	defer cancel()
	which := func(string, bool) bool { return true }
	var also []site.Place
	if id != "" {
		m, err := h.az.Find(ctx, op, id)
		switch {
		case dr.CodeOf(err) == dr.CodeVMNotFound:
			which = func(_ string, exists bool) bool { return !exists }
		case err != nil:
			return err
		case m.Tag(arm.TagOwner) != owner || m.Tag(arm.TagVM) == "":
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "azure."+op, "%s was not made by %s and is left alone", m.Resource(), owner)
		default:
			which = belongsTo(m.Tag(arm.TagVM))
			also = append(also, m.Place)
		}
	}
	if err := h.demolish(ctx, owner, which, also); err != nil {
		return h.az.Say(op, "remove what was made for "+owner, err)
	}
	h.az.Seen(id, "")
	return nil
}

// belongsTo chooses what was made for one VM, by the tag that names it.
func belongsTo(vm string) func(string, bool) bool {
	return func(of string, _ bool) bool { return strings.EqualFold(of, vm) }
}

// phases are the kinds that Boot makes, in the order in which they can be deleted:
// what uses another comes before it.
func phases() [][]string {
	return [][]string{{arm.TypeVM}, {arm.TypeNIC, arm.TypeDisk, arm.TypeSnapshot}, {arm.TypePublicIP, arm.TypeNetwork}, {arm.TypeSecurityGroup}}
}

// demolish deletes what was made for the owner's VMs that which chooses, until
// lists show nothing more. It goes on after a failure, and tries again what may yet succeed,
// until ctx ends: Azure keeps an adapter of a VM that it could not make for some minutes, for one.
// which is told the VM that a resource is for, and whether that VM exists.
func (h *Host) demolish(ctx context.Context, owner string, which func(vm string, exists bool) bool, also []site.Place) error {
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
		case last == nil && ctx.Err() == nil && !site.Passing(err):
			return err
		}
		if ctx.Err() == nil {
			last = err
		} else if last == nil {
			last = site.Ended("Remove", "delete what was made for "+owner, ctx.Err())
		}
		if ctx.Err() != nil || !site.Passing(err) || site.Sleep(ctx, pause) != nil {
			return last
		}
	}
}

// belongings lists what was made for the owner, in the site's group and where else
// something of it may be. The kinds' own lists count, which are never behind; Azure's
// index of tags says only in which groups to look.
func (h *Host) belongings(ctx context.Context, owner string, which func(string, bool) bool, also []site.Place) ([]arm.Resource, error) {
	places, err := h.az.AllPlaces(ctx, arm.TagOwner, owner)
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
						exists[site.Lower(r.Tag(arm.TagVM))] = true
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
		if vm := r.Tag(arm.TagVM); which(vm, exists[site.Lower(vm)]) {
			chosen = append(chosen, r)
		}
	}
	return chosen, nil
}

func containsPlace(list []site.Place, p site.Place) bool {
	for _, q := range list {
		if strings.EqualFold(q.Group, p.Group) && strings.EqualFold(q.Subscription, p.Subscription) {
			return true
		}
	}
	return false
}

func (h *Host) eachResource(ctx context.Context, p site.Place, kind string, each func(arm.Resource)) error {
	return site.List(ctx, h.az, p, kind, func(r arm.Resource) {
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
		_ = site.EachOf(ctx, len(now), deleteParallel, func(ctx context.Context, i int) error {
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
