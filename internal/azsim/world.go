package azsim

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
)

// Resource is one thing that exists.
type Resource struct {
	ID, Type, Name, Group string
	Tags                  map[string]string
	State                 string // provisioning state
}

// Resources lists everything that exists, resource groups, subnets, restore
// points and so on included, in order of their ids: to count orphans.
func (c *Cloud) Resources() []Resource {
	c.plane.Lock()
	defer c.plane.Unlock()
	var out []Resource
	for _, set := range []map[string]*plane.Resource{c.plane.Groups(), c.plane.All()} {
		for _, key := range slices.Sorted(maps.Keys(set)) {
			r := set[key]
			tags := map[string]string{}
			m, _ := r.Doc["tags"].(map[string]any)
			for k, v := range m {
				tags[k], _ = v.(string)
			}
			out = append(out, Resource{ID: r.ID, Type: strings.Replace(r.Kind.Name, "subscriptions/", "", 1), Name: r.Name, Group: r.Group,
				Tags: tags, State: wire.Str(r.Doc, "properties", "provisioningState")})
		}
	}
	return out
}

// AddGroup makes a resource group in the cloud's location, and returns its id.
func (c *Cloud) AddGroup(name string) string { return c.plane.AddGroup(name).ID }

// AddVNet makes a virtual network with subnets (name → CIDR) in a group, which
// it makes if need be, and returns its id. What Azure would refuse panics.
func (c *Cloud) AddVNet(group, name, cidr string, subnets map[string]string) string {
	list := []any{}
	for _, s := range slices.Sorted(maps.Keys(subnets)) {
		list = append(list, map[string]any{"name": s, "properties": map[string]any{"addressPrefix": subnets[s]}})
	}
	return c.add(group, "Microsoft.Network/virtualNetworks", name, map[string]any{"location": c.cfg.Location, "properties": map[string]any{
		"addressSpace": map[string]any{"addressPrefixes": []any{cidr}}, "subnets": list}}).ID
}

// AddStorageAccount makes a storage account, and returns its key (base64). Its
// data plane is at URL()+"/storage/"+name.
func (c *Cloud) AddStorageAccount(group, name string) string {
	r := c.add(group, "Microsoft.Storage/storageAccounts", name, map[string]any{"location": c.cfg.Location, "kind": "StorageV2",
		"sku": map[string]any{"name": "Standard_LRS", "tier": "Standard"}})
	c.plane.Lock()
	defer c.plane.Unlock()
	return r.State.(string) // of an account: its key
}

// Add makes a resource of any kind from a document, without request, operation
// or fault: the world as it was before the test. What Azure would refuse panics.
func (c *Cloud) Add(group, kind, name string, doc map[string]any) (id string) {
	return c.add(group, kind, name, doc).ID
}

func (c *Cloud) add(group, kind, name string, doc map[string]any) *plane.Resource {
	r, err := c.plane.Add(group, kind, name, doc)
	if err != nil {
		panic("azsim: " + kind + " " + name + ": " + err.Error())
	}
	return r
}

// AddLock puts a CanNotDelete lock on a scope: the id of a group or resource.
func (c *Cloud) AddLock(scope string) { c.plane.AddLock(scope) }

// RemoveLock takes it off.
func (c *Cloud) RemoveLock(scope string) { c.plane.RemoveLock(scope) }

// SetQuota sets the limit of a quota, by the name that usages list: "cores",
// "standardDSv5Family", "virtualMachines", "PublicIPAddresses" …
func (c *Cloud) SetQuota(name string, limit int) { c.plane.SetQuota(name, limit) }

// Restrict makes a size one that the subscription may not use; "" as the reason lifts it.
func (c *Cloud) Restrict(size, reason string) { c.compute.Restrict(size, reason) }

// SetProvider sets a resource provider's registration state, as "NotRegistered".
func (c *Cloud) SetProvider(namespace, state string) { c.plane.SetProvider(namespace, state) }

// Deny takes an action away from the client's role; * stands for anything, as
// in "Microsoft.Compute/disks/*".
func (c *Cloud) Deny(action string) { c.plane.Deny(action) }

// Allow gives back every action.
func (c *Cloud) Allow() { c.plane.Allow() }

// DenyPolicy adds a policy: it is asked for every resource to be written (the
// body is a copy), and refuses by returning the name of the policy's
// assignment. It is called with locks held and must not call the Cloud.
func (c *Cloud) DenyPolicy(policy func(kind string, body map[string]any) string) {
	c.plane.DenyPolicy(policy)
}

// VM finds a virtual machine by its resource id.
func (c *Cloud) VM(id string) (VM, bool) { return c.compute.VM(id) }

// Page is the name in the page store of a disk, snapshot or disk restore point; "" if there is none.
func (c *Cloud) Page(id string) string { return c.compute.Page(id) }

// storage is the resource provider Microsoft.Storage: accounts and their keys.
// What they hold is the page store's.
func (c *Cloud) storage() plane.Provider {
	put := func(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
		if q.Old == nil {
			r.State = c.pages.AddAccount(r.Name)
		}
		wire.Set(r.Doc, c.URL()+"/storage/"+r.Name+"/", "properties", "primaryEndpoints", "blob")
		return nil, nil
	}
	keys := func(_ *plane.Call, r *plane.Resource) (any, *wire.Error) {
		return map[string]any{"keys": []any{map[string]any{"keyName": "key1", "value": r.State, "permissions": "FULL"}}}, nil
	}
	gone := func(r *plane.Resource) {
		if err := c.pages.DeleteAccount(r.Name); err != nil {
			c.log.Error("remove a simulated storage account", "account", r.Name, "err", err)
		}
	}
	return plane.Provider{Namespace: "Microsoft.Storage", Kinds: []*plane.Kind{{Name: "Microsoft.Storage/storageAccounts", Pattern: accountName,
		Put: put, After: gone, Direct: map[string]func(*plane.Call, *plane.Resource) (any, *wire.Error){"listkeys": keys}}}}
}

var accountName = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
