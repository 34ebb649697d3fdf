package item

import (
	"cmp"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// enableItem protects a VM. Asked again while the job runs, or when it is done,
// for the same VM and policy, it answers that job or the item.
func enableItem(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.EnableInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	p := in.Properties
	if err := route.InstanceType(p.ProviderSpecificDetails, armwire.HyperVReplicaAzure); err != nil {
		return route.Reply{}, err
	}
	var more armwire.EnableDetails
	if err := route.DecodeVariant(p.ProviderSpecificDetails, &more); err != nil {
		return route.Reply{}, err
	}
	if err := checkSize(more.CPUs, more.MemoryMB); err != nil {
		return route.Reply{}, err
	}
	f, err := c.Fabric()
	if err != nil {
		return route.Reply{}, err
	}
	policyName, err := c.NameIn("policyId", p.PolicyID, route.TPolicies)
	if err != nil {
		return route.Reply{}, err
	}
	vm := more.HVHostVMID
	if p.ProtectableItemID != "" {
		if vm, err = c.NameIn("protectableItemId", p.ProtectableItemID, route.TVMs); err != nil {
			return route.Reply{}, err
		}
		if id, err := armwire.ParseID(p.ProtectableItemID); err == nil && !strings.EqualFold(id.NameOf(route.TFabrics), f.Name) {
			return route.Reply{}, dr.New(dr.KindInvalid, route.CodeInvalidBody, "armapi.enable", "protectableItemId is of site %q, the path of site %q", id.NameOf(route.TFabrics), f.Name)
		}
	}
	r := vault.EnableRequest{Fabric: f.Name, Name: c.NameOf(route.TItems), VM: dr.VMID(strings.ToLower(cmp.Or(vm, c.NameOf(route.TItems)))), Policy: policyName,
		Disks: more.DisksToInclude, Settings: enableSettings(more), Seed: dr.MachineID(strings.ToLower(more.Seed)), By: c.Who.Name}
	for _, d := range more.DisksToIncludeForManagedDisks {
		r.Disks = append(r.Disks, d.DiskID)
	}
	policy, err := c.Svc().Policy(c.Ctx(), policyName)
	if err != nil {
		return route.Reply{}, route.Named(err, "policyId")
	}
	switch have, err := c.Svc().Item(c.Ctx(), f.ID, r.Name); {
	case err != nil && dr.KindOf(err) != dr.KindNotFound:
		return route.Reply{}, err
	case err == nil && have.Protection != dr.EnableFailed && have.Protection != dr.Disabling && have.VM == r.VM && have.Policy == policy.ID:
		if have.Protection != dr.Protected && have.Job != "" {
			return route.Started(have.Job, nil, c.ItemID(f, have.VM, have.Name))
		}
		return getItem(c)
	}
	job, err := c.Svc().Enable(c.Ctx(), r)
	return route.Started(job, err, c.ItemID(f, r.VM, r.Name))
}

func updateItem(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.UpdateInput]
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	if err := route.InstanceType(in.Properties.ProviderSpecificDetails, armwire.HyperVReplicaAzure); err != nil {
		return route.Reply{}, err
	}
	var more armwire.UpdateDetails
	if err := route.DecodeVariant(in.Properties.ProviderSpecificDetails, &more); err != nil {
		return route.Reply{}, err
	}
	f, it, err := item(c)
	if err != nil {
		return route.Reply{}, err
	}
	size := it.Settings
	applyUpdate(&size, in.Properties, more)
	if err := checkSize(size.CPUs, size.MemoryMB); err != nil {
		return route.Reply{}, err
	}
	job, err := c.Svc().Update(c.Ctx(), vault.UpdateRequest{Item: it.ID, By: c.Who.Name,
		Settings: func(s *dr.ItemSettings) { applyUpdate(s, in.Properties, more) }})
	return route.Started(job, err, c.ItemID(f, it.VM, it.Name))
}

// disableItem serves remove (POST) and purge (DELETE, also when the agent is gone).
func disableItem(c *route.Call) (route.Reply, error) {
	if c.R.Method == "POST" {
		var in armwire.Input[armwire.DisableInput]
		if err := c.Body(&in); err != nil {
			return route.Reply{}, err
		}
	}
	f, it, err := item(c)
	if err != nil {
		return c.Removed("", err, "")
	}
	job, err := c.Svc().Disable(c.Ctx(), it.ID, c.R.Method == "DELETE", c.Who.Name)
	return c.Removed(job, err, c.ItemID(f, it.VM, it.Name))
}
