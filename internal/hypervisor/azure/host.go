package azure

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
)

// Host is a resource group of Azure as a host of recovery VMs. VMs that Boot was
// told to make in other groups (hypervisor.CloudTarget.ResourceGroup) belong to it too.
type Host struct {
	cfg  Config
	s    *arm.Session
	site arm.Config
	http *http.Client // for addresses that Azure signs
	own  *http.Transport

	// cutter makes the host a source of replication; nil: it is none.
	cutter source

	mu     sync.Mutex
	places map[dr.VMID]string       // VM → id of its resource, as last seen
	locks  map[string]chan struct{} // by "owner …", "name …", "vm …"
	groups map[string]string        // further resource groups in use, by lower-case name
	sizes  []arm.Size               // of the region
	asked  time.Time                // when sizes was
}

// source is what makes a host one to replicate from.
type source interface {
	BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error)
	Forget(ctx context.Context, vm dr.VMID, keep []string) error
}

var (
	_ hypervisor.Host  = (*Host)(nil)
	_ hypervisor.Pulse = (*Host)(nil)
)

// Open returns the host behind a session that is open. It asks Azure nothing.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	const op = "azure.Open"
	if err := cfg.Validate(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, op, "configuration: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, dr.Errorf(dr.KindCanceled, op, "open the Azure site: %w", err)
	}
	h := &Host{cfg: cfg.withDefaults(), s: cfg.Session, site: cfg.Session.Config(), places: map[dr.VMID]string{}, locks: map[string]chan struct{}{}, groups: map[string]string{}}
	if h.cfg.Transport == nil {
		h.cfg.Transport = cfg.Session.HTTP().Transport
	}
	if h.cfg.Transport == nil {
		h.own = http.DefaultTransport.(*http.Transport).Clone()
		h.cfg.Transport = h.own
	}
	h.http = &http.Client{Transport: h.cfg.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return h, nil
}

// Close gives up idle connections of the Host's own. What Azure was asked for goes
// on; calls that are under way end with their contexts. Idempotent.
func (h *Host) Close() error {
	if h.own != nil {
		h.own.CloseIdleConnections()
	}
	return nil
}

// BeginCut is refused (dr.KindUnsupported) while VMs in Azure can't be replicated.
func (h *Host) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	if h.cutter == nil {
		return nil, dr.Errorf(dr.KindUnsupported, "azure.BeginCut", "VM %s: VMs in Azure can't be replicated yet", req.VM)
	}
	return h.cutter.BeginCut(ctx, req)
}

// Forget has nothing to delete while VMs in Azure can't be replicated.
func (h *Host) Forget(ctx context.Context, vm dr.VMID, keep []string) error {
	if h.cutter == nil {
		return dr.Errorf(dr.KindUnsupported, "azure.Forget", "VM %s: VMs in Azure can't be replicated yet", vm)
	}
	return h.cutter.Forget(ctx, vm, keep)
}

// lock waits for the turn of key; the result ends it.
func (h *Host) lock(ctx context.Context, op, key string) (func(), error) {
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
			return nil, ended(op, "wait for another operation on "+key, ctx.Err())
		}
	}
}

// ended is the error of a context that is over.
func ended(op, what string, err error) error {
	return dr.Errorf(dr.KindOf(err), op, "%s: %w", what, err)
}

// place is a resource group.
type place struct{ subscription, group string }

func (p place) collection(kind string) string {
	return "/subscriptions/" + p.subscription + "/resourceGroups/" + p.group + "/providers/" + kind
}

func (p place) id(kind, name string) string { return p.collection(kind) + "/" + name }

// home is the site's own resource group.
func (h *Host) home() place { return place{h.site.Subscription, h.site.ResourceGroup} }

// get reads the resource with an id into out; false means that it does not exist.
func (h *Host) get(ctx context.Context, kind, id string, out any) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	err := h.s.Resource(ctx, id, arm.APIVersion(kind), out)
	if arm.IsAbsent(err) {
		return false, nil
	}
	return err == nil, err
}

// list reads all resources of a kind in a group.
func list[T any](ctx context.Context, h *Host, p place, kind string, each func(T)) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	return h.s.List(ctx, p.collection(kind), arm.APIVersion(kind), func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.List", "an element of the list of %s in resource group %s is not understood: %w", kind, p.group, err)
		}
		each(v)
		return nil
	})
}

// machine is a VM in Azure.
type machine struct {
	place place
	name  string
	armcompute.VirtualMachine
}

func machineOf(v armcompute.VirtualMachine) (machine, bool) {
	id, ok := arm.ParseID(str(v.ID))
	if !ok || v.Properties == nil || str(v.Properties.VMID) == "" {
		return machine{}, false
	}
	return machine{place{id.Subscription, id.Group}, id.Name, v}, true
}

// id is the VM's id for the product.
func (m machine) id() dr.VMID { return dr.VMID(strings.ToLower(str(m.Properties.VMID))) }

func (m machine) tag(name string) string { return tag(m.Tags, name) }

// resource is the id of the VM's resource.
func (m machine) resource() string { return m.place.id(arm.TypeVM, m.name) }

// machines lists the VMs of a group.
func (h *Host) machines(ctx context.Context, p place) ([]machine, error) {
	var all []machine
	err := list(ctx, h, p, arm.TypeVM, func(v armcompute.VirtualMachine) {
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
		h.places[m.id()] = m.resource()
	}
	return all, nil
}

// find looks a VM up: where it was last seen, in the site's group, then in the
// other groups that have recovery VMs. dr.CodeVMNotFound.
func (h *Host) find(ctx context.Context, op string, id dr.VMID) (machine, error) {
	id = dr.VMID(strings.ToLower(string(id)))
	h.mu.Lock()
	seen := h.places[id]
	h.mu.Unlock()
	if seen != "" {
		m, ok, err := h.machineAt(ctx, seen)
		if err != nil {
			return machine{}, h.say(op, "look for VM "+string(id), err)
		}
		if ok && m.id() == id {
			return m, nil
		}
	}
	places, err := h.allPlaces(ctx, arm.TagPurpose, arm.PurposeRecovery, arm.PurposeTest)
	if err != nil {
		return machine{}, h.say(op, "look for VM "+string(id), err)
	}
	for _, p := range places {
		all, err := h.machines(ctx, p)
		if err != nil {
			return machine{}, h.say(op, "look for VM "+string(id), err)
		}
		for _, m := range all {
			if m.id() == id {
				return m, nil
			}
		}
	}
	h.mu.Lock()
	delete(h.places, id)
	h.mu.Unlock()
	return machine{}, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "azure."+op, "there is no VM with id %s in resource group %s", id, h.site.ResourceGroup)
}

// machineAt reads the VM with a resource id.
func (h *Host) machineAt(ctx context.Context, id string) (machine, bool, error) {
	var v armcompute.VirtualMachine
	found, err := h.get(ctx, arm.TypeVM, id, &v)
	if err != nil || !found {
		return machine{}, false, err
	}
	m, ok := machineOf(v)
	if !ok {
		return machine{}, false, dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.Get", "%s: Azure's answer is not understood: it has no vmId", id)
	}
	return m, true, nil
}

// allPlaces is the site's group and the others that have something with one of the
// tags, by Azure's index of tags or because this process made something there. The index may lag behind.
func (h *Host) allPlaces(ctx context.Context, tagName string, values ...string) ([]place, error) {
	home := h.home()
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
		path := "/subscriptions/" + home.subscription + "/resources?$filter=" + url.QueryEscape(filter)
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
	delete(groups, strings.ToLower(home.group))
	out := []place{home}
	for _, g := range groups {
		out = append(out, place{home.subscription, g})
	}
	return out, nil
}

// say adds what was tried to an error of the session, which names the resource.
func (h *Host) say(op, what string, err error) error {
	if err == nil {
		return nil
	}
	e := dr.New(dr.KindOf(err), dr.CodeOf(err), "azure."+op, "%s: %w", what, err)
	e.Hint = dr.HintOf(err)
	return e
}

func str(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

// tag looks a tag up; Azure compares names of tags without case.
func tag(tags map[string]*string, name string) string {
	for k, v := range tags {
		if strings.EqualFold(k, name) {
			return str(v)
		}
	}
	return ""
}

func pointers(m map[string]string) map[string]*string {
	out := make(map[string]*string, len(m))
	for k, v := range m {
		out[k] = &v
	}
	return out
}
