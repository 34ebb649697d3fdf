// Package site looks at the resource groups that the Azure adapter works in: it finds
// VMs, remembers where they were seen, and gives each VM, name and owner its turn.
// It owns no resource and changes none. Nothing but "Azure said that it does not exist"
// means that something is absent.
package site

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
)

// Config of a Site. All fields have to be set.
type Config struct {
	Session          *arm.Session
	CallTimeout      time.Duration // of one question
	OperationTimeout time.Duration // of waiting until Azure is done with a VM
	Poll             time.Duration
}

// Site is the site's resource group and the others that have something of Holdfast's. It is
// safe for concurrent use.
type Site struct {
	cfg  Config
	s    *arm.Session
	site arm.Config

	mu     sync.Mutex
	places map[dr.VMID]string       // VM → id of its resource, as last seen
	locks  map[string]chan struct{} // by "owner …", "name …", "vm …"
	groups map[string]string        // further resource groups in use, by lower-case name
	sizes  []arm.Size               // of the region
	asked  time.Time                // when sizes was
}

// New makes a Site; it asks nobody.
func New(cfg Config) *Site {
	return &Site{cfg: cfg, s: cfg.Session, site: cfg.Session.Config(), places: map[dr.VMID]string{}, locks: map[string]chan struct{}{}, groups: map[string]string{}}
}

// Uses says that this process makes something in a group: Azure's index of tags may not know of it yet.
func (h *Site) Uses(group string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.groups[Lower(group)] = group
}

// Seen says where a VM is; an empty id, that it is gone.
func (h *Site) Seen(vm dr.VMID, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id == "" {
		delete(h.places, dr.VMID(Lower(string(vm))))
		return
	}
	h.places[vm] = id
}

// Lock waits for the turn of key; the result ends it.
func (h *Site) Lock(ctx context.Context, op, key string) (func(), error) {
	for {
		h.mu.Lock()
		held := h.locks[key]
		if held == nil {
			mine := make(chan struct{})
			h.locks[key] = mine
			h.mu.Unlock()
			return func() {
				h.mu.Lock()
				delete(h.locks, key)
				h.mu.Unlock()
				close(mine)
			}, nil
		}
		h.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, Ended(op, "wait for another operation on "+key, ctx.Err())
		}
	}
}

// Ended is the error of a context that is over.
func Ended(op, what string, err error) error {
	return dr.Errorf(dr.KindOf(err), op, "%s: %w", what, err)
}

// Place is a resource group.
type Place struct{ Subscription, Group string }

// Collection is where resources of a kind are.
func (p Place) Collection(kind string) string {
	return "/subscriptions/" + p.Subscription + "/resourceGroups/" + p.Group + "/providers/" + kind
}

// ID is that of a resource in the group.
func (p Place) ID(kind, name string) string { return p.Collection(kind) + "/" + name }

// Home is the site's own resource group.
func (h *Site) Home() Place { return Place{h.site.Subscription, h.site.ResourceGroup} }

// Get reads the resource with an id into out; false means that it does not exist.
func (h *Site) Get(ctx context.Context, kind, id string, out any) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	err := h.s.Resource(ctx, id, arm.APIVersion(kind), out)
	if arm.IsAbsent(err) {
		return false, nil
	}
	return err == nil, err
}

// List reads all resources of a kind in a group.
func List[T any](ctx context.Context, h *Site, p Place, kind string, each func(T)) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	return h.s.List(ctx, p.Collection(kind), arm.APIVersion(kind), func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.List", "an element of the list of %s in resource group %s is not understood: %w", kind, p.Group, err)
		}
		each(v)
		return nil
	})
}

// Machine is a VM in Azure.
type Machine struct {
	Place Place
	Name  string
	armcompute.VirtualMachine
}

func machineOf(v armcompute.VirtualMachine) (Machine, bool) {
	id, ok := arm.ParseID(Str(v.ID))
	if !ok || v.Properties == nil || Str(v.Properties.VMID) == "" {
		return Machine{}, false
	}
	return Machine{Place{id.Subscription, id.Group}, id.Name, v}, true
}

// Key is the VM's id for the product.
func (m Machine) Key() dr.VMID { return dr.VMID(strings.ToLower(Str(m.Properties.VMID))) }

// Tag is the value of a tag of the VM.
func (m Machine) Tag(name string) string { return Tag(m.Tags, name) }

// Resource is the id of the VM's resource.
func (m Machine) Resource() string { return m.Place.ID(arm.TypeVM, m.Name) }

// Machines lists the VMs of a group.
func (h *Site) Machines(ctx context.Context, p Place) ([]Machine, error) {
	var all []Machine
	err := List(ctx, h, p, arm.TypeVM, func(v armcompute.VirtualMachine) {
		if m, ok := machineOf(v); ok {
			all = append(all, m)
		}
	})
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range all {
		h.places[m.Key()] = m.Resource()
	}
	return all, nil
}

// Find looks a VM up: where it was last seen, in the site's group, then in the
// other groups that have recovery VMs. dr.CodeVMNotFound.
func (h *Site) Find(ctx context.Context, op string, id dr.VMID) (Machine, error) {
	id = dr.VMID(strings.ToLower(string(id)))
	h.mu.Lock()
	seen := h.places[id]
	h.mu.Unlock()
	if seen != "" {
		m, ok, err := h.MachineAt(ctx, seen)
		if err != nil {
			return Machine{}, h.Say(op, "look for VM "+string(id), err)
		}
		if ok && m.Key() == id {
			return m, nil
		}
	}
	places, err := h.AllPlaces(ctx, arm.TagPurpose, arm.PurposeRecovery, arm.PurposeTest)
	if err != nil {
		return Machine{}, h.Say(op, "look for VM "+string(id), err)
	}
	for _, p := range places {
		all, err := h.Machines(ctx, p)
		if err != nil {
			return Machine{}, h.Say(op, "look for VM "+string(id), err)
		}
		for _, m := range all {
			if m.Key() == id {
				return m, nil
			}
		}
	}
	h.mu.Lock()
	delete(h.places, id)
	h.mu.Unlock()
	return Machine{}, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "azure."+op, "there is no VM with id %s in resource group %s", id, h.site.ResourceGroup)
}

// MachineAt reads the VM with a resource id.
func (h *Site) MachineAt(ctx context.Context, id string) (Machine, bool, error) {
	var v armcompute.VirtualMachine
	found, err := h.Get(ctx, arm.TypeVM, id, &v)
	if err != nil || !found {
		return Machine{}, false, err
	}
	m, ok := machineOf(v)
	if !ok {
		return Machine{}, false, dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.Get", "%s: Azure's answer is not understood: it has no vmId", id)
	}
	return m, true, nil
}

// AllPlaces is the site's group and the others that have something with one of the
// tags, by Azure's index of tags or because this process made something there. The index may lag behind.
func (h *Site) AllPlaces(ctx context.Context, tagName string, values ...string) ([]Place, error) {
	home := h.Home()
	groups := map[string]string{}
	h.mu.Lock()
	for k, v := range h.groups {
		groups[k] = v
	}
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	for _, v := range values {
		// OData: an apostrophe in a literal is doubled.
		filter := "tagName eq '" + tagName + "' and tagValue eq '" + strings.ReplaceAll(v, "'", "''") + "'"
		path := "/subscriptions/" + home.Subscription + "/resources?$filter=" + url.QueryEscape(filter)
		err := h.s.List(ctx, path, arm.ResourcesAPI, func(raw json.RawMessage) error {
			var r arm.Resource
			if err := json.Unmarshal(raw, &r); err != nil {
				return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.List", "the list of resources with tag %s is not understood: %w", tagName, err)
			}
			if id, ok := arm.ParseID(r.ID); ok {
				groups[strings.ToLower(id.Group)] = id.Group
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	delete(groups, strings.ToLower(home.Group))
	out := []Place{home}
	for _, g := range groups {
		out = append(out, Place{home.Subscription, g})
	}
	return out, nil
}

// Say adds what was tried to an error of the session, which names the resource.
func (h *Site) Say(op, what string, err error) error {
	if err == nil {
		return nil
	}
	e := dr.New(dr.KindOf(err), dr.CodeOf(err), "azure."+op, "%s: %w", what, err)
	e.Hint = dr.HintOf(err)
	return e
}

// Str is what p points to, or empty.
func Str(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

// Tag looks a tag up; Azure compares names of tags without case.
func Tag(tags map[string]*string, name string) string {
	for k, v := range tags {
		if strings.EqualFold(k, name) {
			return Str(v)
		}
	}
	return ""
}

// Pointers makes tags of a map.
func Pointers(m map[string]string) map[string]*string {
	out := make(map[string]*string, len(m))
	for k, v := range m {
		out[k] = &v
	}
	return out
}

// Succeeded is the provisioning state of what is complete.
const Succeeded = "Succeeded"

// Settled reads a VM once nothing works on it any more.
func (h *Site) Settled(ctx context.Context, id string) (Machine, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.OperationTimeout)
	defer cancel()
	for pause := h.cfg.Poll; ; pause = min(2*pause, 10*h.cfg.Poll) {
		m, found, err := h.MachineAt(ctx, id)
		if err != nil || !found {
			return m, found, err
		}
		switch Str(m.Properties.ProvisioningState) {
		case "Creating", "Updating", "Deleting", "Migrating":
		default:
			return m, true, nil
		}
		if err := Sleep(ctx, pause); err != nil {
			return m, false, Ended("Get", "wait until Azure is done with "+id, err)
		}
	}
}

// Sleep waits, or returns the error of a context that is over.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// EachOf runs f for the numbers below n, at most limit at a time. The first error cancels the others.
func EachOf(ctx context.Context, n, limit int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	turn := make(chan struct{}, max(1, limit))
	errs := make([]error, n)
	var wg sync.WaitGroup
	var once sync.Once
	var cause error
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = f(ctx, i)
			}
			if errs[i] != nil {
				once.Do(func() { cause = errs[i] })
				cancel()
			}
		})
	}
	wg.Wait()
	return cause
}

// sizesFor is how long a list of VM sizes counts.
const sizesFor = time.Hour

// Sizes is the region's VM sizes, asked for at most once an hour.
func (h *Site) Sizes(ctx context.Context) ([]arm.Size, error) {
	h.mu.Lock()
	sizes, asked := h.sizes, h.asked
	h.mu.Unlock()
	if len(sizes) > 0 && time.Since(asked) < sizesFor {
		return sizes, nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	sizes, err := h.s.Sizes(ctx)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sizes, h.asked = sizes, time.Now()
	return sizes, nil
}

// Lower is s in lower case, as Azure compares names.
func Lower(s string) string { return strings.ToLower(s) }

// Passing reports whether trying again may help. A lock, a missing role, a policy and a wrong secret stay.
func Passing(err error) bool {
	switch dr.CodeOf(err) {
	case dr.CodeAzureLocked, dr.CodeAzureRole, dr.CodeAzurePolicy, dr.CodeAzureSignIn, dr.CodeAzureClock, dr.CodeAzureNameTaken:
		return false
	}
	return true
}

// First is the first value that is not empty.
func First(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
