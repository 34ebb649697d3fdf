package compute

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/sizes"
	"holdfast/internal/azsim/wire"
)

const typVM = "Microsoft.Compute/virtualMachines"

// Power states, as the codes of an instance view have them after "PowerState/".
const (
	starting     = "starting"
	running      = "running"
	stopping     = "stopping"
	stopped      = "stopped"
	deallocating = "deallocating"
	deallocated  = "deallocated"
)

// machine is what a VM has beside its document. Guarded by Cloud.mu.
type machine struct {
	id     string // vmId
	power  string
	guest  Running
	dir    string
	serial string
	starts int
}

// vmOf is a VM's state; nil for what is no VM.
func vmOf(r *plane.Resource) *machine {
	vm, _ := r.State.(*machine)
	return vm
}

// putMachine checks a VM, and attaches what it refers to.
func (c *Compute) putMachine(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	size, err := c.checkSize(q, r)
	if err != nil {
		return nil, err
	}
	disks, err := c.checkDisks(r, size)
	if err != nil {
		return nil, err
	}
	nics, err := c.checkInterfaces(r, size)
	if err != nil {
		return nil, err
	}
	if err := c.checkPlacement(q, r); err != nil {
		return nil, err
	}
	create := q.Old == nil
	if create {
		need := map[string]int{"cores": size.VCPUs, size.Family: size.VCPUs, "virtualMachines": 1}
		if err := c.NeedQuota("Microsoft.Compute", need); err != nil {
			return nil, err
		}
		id := plane.NewGUID()
		r.State = &machine{id: id, power: starting, dir: filepath.Join(c.cfg.Dir, "machines", id)}
		vmOf(r).serial = filepath.Join(vmOf(r).dir, "serial.log")
		wire.Set(r.Doc, c.Stamp(), "properties", "timeCreated")
	} else {
		wire.Set(r.Doc, wire.Get(q.Old, "properties", "timeCreated"), "properties", "timeCreated")
	}
	wire.Set(r.Doc, vmOf(r).id, "properties", "vmId")
	c.detach(r, disks, nics)
	for _, d := range disks {
		d.Doc["managedBy"] = r.ID
	}
	for i, n := range nics {
		wire.Set(n.Doc, plane.Ref(r.ID), "properties", "virtualMachine")
		wire.Set(n.Doc, i == 0, "properties", "primary")
		if wire.Str(n.Doc, "properties", "macAddress") == "" {
			c.Sequence++
			wire.Set(n.Doc, fmt.Sprintf("00-0D-3A-%02X-%02X-%02X", c.Sequence>>16&0xff, c.Sequence>>8&0xff, c.Sequence&0xff), "properties", "macAddress")
		}
	}
	if !create {
		return nil, nil
	}
	return func(ctx context.Context) (any, *wire.Error) { return nil, c.startGuest(ctx, r) }, nil
}

func (c *Compute) checkSize(q *plane.Call, r *plane.Resource) (sizes.Size, *wire.Error) {
	name := wire.Str(r.Doc, "properties", "hardwareProfile", "vmSize")
	size, ok := sizes.Find(name)
	if !ok {
		return size, plane.BadRequest("InvalidParameter", "The value %s provided for the VM size is not valid. The valid sizes in the current region are: Standard_A2_v2,Standard_B1s,…. Find out more on the valid VM sizes in each region at https://aka.ms/azure-regionservices.", name)
	}
	if reason := c.limited[plane.Lower(size.Name)]; size.Restricted != "" || reason != "" {
		return size, wire.Errorf(http.StatusConflict, "SkuNotAvailable", "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: %s' is currently not available in location '%s'. Please try another size or deploy to a different location or different zone. See https://aka.ms/azureskunotavailable for details.", size.Name, c.Location())
	}
	for _, z := range wire.List(r.Doc, "zones") {
		if s, _ := z.(string); !slices.Contains(size.Zones, s) {
			return size, wire.Errorf(http.StatusConflict, "SkuNotAvailable", "The requested size %s is not available in zone '%s' of location '%s'.", size.Name, s, c.Location())
		}
	}
	if q.Old != nil && !strings.EqualFold(name, wire.Str(q.Old, "properties", "hardwareProfile", "vmSize")) && vmOf(r).power != deallocated {
		return size, plane.Conflict("The size of VM %s can't be changed to %s by the simulator while it is allocated.", r.Name, name)
	}
	return size, nil
}

// checkDisks finds the disks of a VM's document: the OS disk first.
func (c *Compute) checkDisks(r *plane.Resource, size sizes.Size) ([]*plane.Resource, *wire.Error) {
	profile := wire.Get(r.Doc, "properties", "storageProfile")
	osDisk, _ := wire.Get(profile, "osDisk").(map[string]any)
	if wire.Get(profile, "imageReference") != nil || !strings.EqualFold(wire.Str(osDisk, "createOption"), "Attach") {
		return nil, wire.Errorf(http.StatusConflict, "SimulatorUnsupported", "The simulator makes VMs from attached OS disks only: images and OS disks with createOption '%s' are not simulated.", wire.Str(osDisk, "createOption"))
	}
	if wire.Get(r.Doc, "properties", "osProfile") != nil {
		return nil, plane.BadRequest("InvalidParameter", "Parameter 'osProfile' is not allowed.")
	}
	if wire.Str(osDisk, "osType") == "" {
		return nil, plane.BadRequest("InvalidParameter", "Required parameter 'osDisk.osType' is missing (null).")
	}
	data := wire.List(profile, "dataDisks")
	if len(data) > size.DataDisks {
		return nil, wire.Errorf(http.StatusConflict, "OperationNotAllowed", "The maximum number of data disks allowed to be attached to a VM of this size is %d.", size.DataDisks)
	}
	var out []*plane.Resource
	luns := map[int64]bool{}
	for i, entry := range append([]any{osDisk}, data...) {
		m, ok := entry.(map[string]any)
		if !ok {
			return nil, plane.BadRequest("InvalidParameter", "A disk of VM %s is no object.", r.Name)
		}
		if i > 0 {
			lun, ok := wire.Num(m, "lun")
			switch {
			case !ok || lun < 0 || lun > 63:
				return nil, plane.BadRequest("InvalidParameter", "Required parameter 'dataDisk.lun' is missing or out of range 0 to 63.")
			case luns[lun]:
				return nil, plane.BadRequest("InvalidParameter", "Parameter 'dataDisk.lun' %d is used more than once.", lun)
			case !strings.EqualFold(wire.Str(m, "createOption"), "Attach"):
				return nil, wire.Errorf(http.StatusConflict, "SimulatorUnsupported", "The simulator attaches data disks; createOption '%s' is not simulated.", wire.Str(m, "createOption"))
			}
			luns[lun] = true
		}
		id := wire.Str(m, "managedDisk", "id")
		d := c.Find(id, typDisk)
		if d == nil {
			return nil, wire.Errorf(http.StatusNotFound, "NotFound", "Disk %s is not found.", id)
		}
		if err := c.attachable(r, d, size); err != nil {
			return nil, err
		}
		if slices.Contains(out, d) {
			return nil, plane.Conflict("Disk %s is given more than once.", d.Name)
		}
		m["name"] = d.Name
		if gb, ok := wire.Num(d.Doc, "properties", "diskSizeGB"); ok {
			m["diskSizeGB"] = gb
		}
		wire.Set(m, wire.Str(d.Doc, "sku", "name"), "managedDisk", "storageAccountType")
		out = append(out, d)
	}
	gen := generation(out[0])
	if !strings.Contains(size.Generations, gen) {
		return nil, plane.BadRequest("BadRequest", "The selected VM size '%s' cannot boot Hypervisor Generation '%s'. If this was a Create operation please check that the Hypervisor Generation of the Image matches the Hypervisor Generation of the selected VM Size. If this was an Update operation please select a Hypervisor Generation '%s' VM Size. For more information, see https://aka.ms/azuregen2vm", size.Name, strings.TrimPrefix(gen, "V"), strings.TrimPrefix(gen, "V"))
	}
	return out, nil
}

// generation is V1 or V2, as the OS disk says.
func generation(osDisk *plane.Resource) string {
	if strings.EqualFold(wire.Str(osDisk.Doc, "properties", "hyperVGeneration"), "V2") {
		return "V2"
	}
	return "V1"
}

func (c *Compute) attachable(r, d *plane.Resource, size sizes.Size) *wire.Error {
	by, _ := d.Doc["managedBy"].(string)
	state := wire.Str(d.Doc, "properties", "diskState")
	zone := func(x *plane.Resource) string { return fmt.Sprint(wire.List(x.Doc, "zones")) }
	switch {
	case by != "" && !strings.EqualFold(by, r.ID):
		return wire.Errorf(http.StatusConflict, "ConflictingUserInput", "Disk '%s' cannot be attached as the disk is already owned by VM '%s'.", d.ID, by)
	case state == "ReadyToUpload" || state == "ActiveUpload" || state == "ActiveSAS":
		return plane.Conflict("Disk %s is in state %s and can't be attached to VM %s: end the access first.", d.Name, state, r.Name)
	case wire.Str(d.Doc, "properties", "provisioningState") != "Succeeded":
		return plane.Conflict("Disk %s is not provisioned: %s.", d.Name, wire.Str(d.Doc, "properties", "provisioningState"))
	case strings.HasPrefix(wire.Str(d.Doc, "sku", "name"), "Premium") && !size.Premium:
		return plane.BadRequest("InvalidParameter", "Requested operation cannot be performed because the VM size %s does not support the storage account type %s of disk '%s'. Consider updating the VM to a size that supports Premium storage.", size.Name, wire.Str(d.Doc, "sku", "name"), d.Name)
	case len(wire.List(d.Doc, "zones")) > 0 && zone(d) != zone(r), len(wire.List(r.Doc, "zones")) > 0 && len(wire.List(d.Doc, "zones")) == 0 && !strings.HasSuffix(wire.Str(d.Doc, "sku", "name"), "ZRS"):
		return plane.BadRequest("BadRequest", "Disk %s cannot be attached to the VM because it is not in zone %s as the VM %s (the disk: %s).", d.Name, zone(r), r.Name, zone(d))
	}
	return nil
}

// checkInterfaces finds the network interfaces of a VM's document, the primary one first.
func (c *Compute) checkInterfaces(r *plane.Resource, size sizes.Size) ([]*plane.Resource, *wire.Error) {
	list := wire.List(r.Doc, "properties", "networkProfile", "networkInterfaces")
	if len(list) == 0 {
		return nil, plane.BadRequest("InvalidParameter", "Required parameter 'networkProfile.networkInterfaces' is missing (null).")
	}
	if len(list) > size.NICs {
		return nil, plane.BadRequest("NetworkInterfaceCountExceeded", "The number of network interfaces for virtual machine %s exceeds the maximum allowed for the virtual machine size %s. The number of network interfaces is %d and the maximum allowed is %d.", r.Name, size.Name, len(list), size.NICs)
	}
	var out []*plane.Resource
	primary := 0
	vnet := ""
	for _, entry := range list {
		id := wire.Str(entry, "id")
		n := c.Find(id, plane.TypNIC)
		if n == nil {
			return nil, plane.InvalidReference(id, r)
		}
		by := wire.Str(n.Doc, "properties", "virtualMachine", "id")
		sub := wire.Str(wire.List(n.Doc, "properties", "ipConfigurations")[0], "properties", "subnet", "id")
		net, _, _ := strings.Cut(plane.Lower(sub), "/subnets/")
		switch state := wire.Str(n.Doc, "properties", "provisioningState"); {
		case by != "" && !strings.EqualFold(by, r.ID):
			return nil, plane.BadRequest("NicInUse", "Network Interface %s is used by existing resource %s. In order to attach it, it must be dissociated from the resource.", n.ID, by)
		case state != "Succeeded":
			e := wire.Errorf(http.StatusTooManyRequests, "RetryableError", "A retryable error occurred: resource %s is in provisioning state %s.", n.ID, state)
			e.RetryAfter = 0
			return nil, e
		case slices.Contains(out, n):
			return nil, plane.BadRequest("InvalidParameter", "Network interface %s is given more than once.", n.ID)
		case vnet != "" && vnet != net:
			return nil, plane.BadRequest("SubnetsNotInSameVnet", "Subnets of the network interfaces of virtual machine %s are not in the same Virtual Network.", r.Name)
		}
		vnet = net
		if wire.Bool(entry, "properties", "primary") {
			primary++
			out = slices.Insert(out, 0, n)
			continue
		}
		out = append(out, n)
	}
	if primary > 1 || primary == 0 && len(list) > 1 {
		return nil, plane.BadRequest("VirtualMachineMustHaveOneNetworkInterfaceAsPrimary", "Virtual machine %s must have one network interface set as the primary.", r.Name)
	}
	return out, nil
}

func (c *Compute) checkPlacement(q *plane.Call, r *plane.Resource) *wire.Error {
	set := wire.Str(r.Doc, "properties", "availabilitySet", "id")
	if set != "" && c.Find(set, "Microsoft.Compute/availabilitySets") == nil {
		return wire.Errorf(http.StatusNotFound, "NotFound", "The availability set %s was not found.", set)
	}
	if set != "" && len(wire.List(r.Doc, "zones")) > 0 {
		return plane.BadRequest("BadRequest", "Virtual machine %s can't have both an availability set and a zone.", r.Name)
	}
	if q.Old != nil && !strings.EqualFold(set, wire.Str(q.Old, "properties", "availabilitySet", "id")) {
		return plane.Conflict("Changing property 'availabilitySet.id' is not allowed.")
	}
	switch lt := wire.Str(r.Doc, "properties", "licenseType"); lt {
	case "", "None", "Windows_Server", "Windows_Client", "RHEL_BYOS", "SLES_BYOS":
	default:
		return plane.BadRequest("InvalidParameter", "The value '%s' of parameter 'licenseType' is invalid.", lt)
	}
	return nil
}

// detach lets go of what VM r holds and what is not in the lists.
func (c *Compute) detach(r *plane.Resource, disks, nics []*plane.Resource) {
	for _, x := range c.All() {
		if by, _ := x.Doc["managedBy"].(string); x.Kind.Name == typDisk && strings.EqualFold(by, r.ID) && by != "" && !slices.Contains(disks, x) {
			delete(x.Doc, "managedBy")
		}
		if x.Kind.Name == plane.TypNIC && strings.EqualFold(wire.Str(x.Doc, "properties", "virtualMachine", "id"), r.ID) && !slices.Contains(nics, x) {
			delete(x.Doc["properties"].(map[string]any), "virtualMachine")
		}
	}
}

// removeMachine ends the guest; then the VM lets go of disks and interfaces, and
// takes those with deleteOption Delete along.
func (c *Compute) removeMachine(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
	return func(ctx context.Context) (any, *wire.Error) {
		c.endGuest(ctx, r, true)
		c.Lock()
		defer c.Unlock()
		profile := wire.Get(r.Doc, "properties", "storageProfile")
		var along []string
		for _, d := range append([]any{wire.Get(profile, "osDisk")}, wire.List(profile, "dataDisks")...) {
			if strings.EqualFold(wire.Str(d, "deleteOption"), "Delete") {
				along = append(along, wire.Str(d, "managedDisk", "id"))
			}
		}
		for _, n := range wire.List(r.Doc, "properties", "networkProfile", "networkInterfaces") {
			if strings.EqualFold(wire.Str(n, "properties", "deleteOption"), "Delete") {
				along = append(along, wire.Str(n, "id"))
			}
		}
		c.detach(r, nil, nil)
		for _, id := range along {
			if x := c.All()[plane.Lower(id)]; x != nil {
				c.Drop(x)
			}
		}
		return nil, nil
	}, nil
}

func (c *Compute) viewMachine(q *plane.Call, r *plane.Resource, doc map[string]any) {
	if q.R == nil || q.R.Method != http.MethodGet {
		return
	}
	if e := plane.Lower(q.R.URL.Query().Get("$expand")); e == "instanceview" || plane.Lower(q.R.URL.Query().Get("statusOnly")) == "true" {
		wire.Set(doc, c.instanceView(r), "properties", "instanceView")
	}
}

func (c *Compute) instanceView(r *plane.Resource) map[string]any {
	now := c.Stamp()
	state := wire.Str(r.Doc, "properties", "provisioningState")
	statuses := []any{map[string]any{"code": "ProvisioningState/" + plane.Lower(state), "level": "Info", "displayStatus": "Provisioning " + plane.Lower(state), "time": now}}
	statuses = append(statuses, map[string]any{"code": "PowerState/" + vmOf(r).power, "level": "Info", "displayStatus": "VM " + vmOf(r).power})
	gen := "V1"
	if d := c.Find(wire.Str(r.Doc, "properties", "storageProfile", "osDisk", "managedDisk", "id"), typDisk); d != nil {
		gen = generation(d)
	}
	view := map[string]any{"statuses": statuses, "hyperVGeneration": gen, "computerName": r.Name}
	if c.diagnosed(r) {
		view["bootDiagnostics"] = map[string]any{}
	}
	if vmOf(r).power == running && c.cfg.Runner == nil {
		view["vmAgent"] = map[string]any{"vmAgentVersion": "Unknown", "statuses": []any{map[string]any{
			"code": "ProvisioningState/Unavailable", "level": "Warning", "displayStatus": "Not Ready", "message": "VM status blob is found but not yet populated.", "time": now}}}
	}
	return view
}

func (c *Compute) diagnosed(r *plane.Resource) bool {
	return wire.Bool(r.Doc, "properties", "diagnosticsProfile", "bootDiagnostics", "enabled")
}

func (c *Compute) machineQuestions() map[string]func(*plane.Call, *plane.Resource) (any, *wire.Error) {
	return map[string]func(*plane.Call, *plane.Resource) (any, *wire.Error){
		"instanceview": func(_ *plane.Call, r *plane.Resource) (any, *wire.Error) { return c.instanceView(r), nil },
		"vmsizes": func(_ *plane.Call, _ *plane.Resource) (any, *wire.Error) {
			return plane.Value(classicSizes()...), nil
		},
		"retrievebootdiagnosticsdata": c.bootDiagnostics,
	}
}

func (c *Compute) machineActions() map[string]func(*plane.Call, *plane.Resource) (plane.Work, *wire.Error) {
	return map[string]func(*plane.Call, *plane.Resource) (plane.Work, *wire.Error){
		"start": func(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
			if vmOf(r).power == deallocated {
				size, _ := sizes.Find(wire.Str(r.Doc, "properties", "hardwareProfile", "vmSize"))
				if err := c.NeedQuota("Microsoft.Compute", map[string]int{"cores": size.VCPUs, size.Family: size.VCPUs}); err != nil {
					return nil, err
				}
			}
			return func(ctx context.Context) (any, *wire.Error) { return nil, c.startGuest(ctx, r) }, nil
		},
		"restart": func(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
			return func(ctx context.Context) (any, *wire.Error) {
				c.power(r, stopping)
				c.endGuest(ctx, r, false)
				return nil, c.startGuest(ctx, r)
			}, nil
		},
		"poweroff": func(q *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
			hard := strings.EqualFold(q.R.URL.Query().Get("skipShutdown"), "true")
			return func(ctx context.Context) (any, *wire.Error) {
				if c.power(r, stopping) != deallocated {
					c.endGuest(ctx, r, hard)
					c.power(r, stopped)
				} else {
					c.power(r, deallocated)
				}
				return nil, nil
			}, nil
		},
		"deallocate": func(_ *plane.Call, r *plane.Resource) (plane.Work, *wire.Error) {
			return func(ctx context.Context) (any, *wire.Error) {
				c.power(r, deallocating)
				c.endGuest(ctx, r, false)
				c.power(r, deallocated)
				return nil, nil
			}, nil
		},
	}
}

// power sets the power state and returns what it was.
func (c *Compute) power(r *plane.Resource, to string) (was string) {
	c.Lock()
	defer c.Unlock()
	was, vmOf(r).power = vmOf(r).power, to
	return was
}

// startGuest starts the VM; one that runs stays as it is.
func (c *Compute) startGuest(ctx context.Context, r *plane.Resource) *wire.Error {
	c.Lock()
	if vmOf(r).guest != nil || vmOf(r).power == running {
		vmOf(r).power = running
		c.Unlock()
		return nil
	}
	vmOf(r).power = starting
	m, err := c.describe(r)
	if err == nil && c.cfg.Runner == nil {
		vmOf(r).power = running
		vmOf(r).starts++
	}
	c.Unlock()
	if err == nil && c.cfg.Runner == nil {
		return nil
	}
	var guest Running
	if err == nil {
		if err = os.MkdirAll(m.Dir, 0o700); err == nil {
			guest, err = c.cfg.Runner.Start(ctx, m)
		}
	}
	if err != nil {
		c.Log().Error("start a simulated VM", "id", r.ID, "err", err)
		c.power(r, stopped)
		return wire.Errorf(http.StatusConflict, "VMStartTimedOut", "VM '%s' did not start: %v", r.Name, err)
	}
	c.Lock()
	vmOf(r).guest, vmOf(r).power = guest, running
	vmOf(r).starts++
	c.Go(func(ctx context.Context) { c.watch(ctx, r, guest) })
	c.Unlock()
	return nil
}

// watch notes that a guest has ended, and kills it when the cloud closes.
func (c *Compute) watch(ctx context.Context, r *plane.Resource, guest Running) {
	select {
	case <-guest.Done():
	case <-ctx.Done():
		if err := guest.Kill(); err != nil {
			c.Log().Error("kill a simulated VM", "id", r.ID, "err", err)
		}
	}
	c.Lock()
	defer c.Unlock()
	if vmOf(r).guest == guest {
		vmOf(r).guest = nil
		if vmOf(r).power == running {
			vmOf(r).power = stopped
		}
	}
}

// endGuest shuts the guest down, or cuts its power: at once if hard, else after
// Config.Shutdown.
func (c *Compute) endGuest(ctx context.Context, r *plane.Resource, hard bool) {
	c.Lock()
	guest := vmOf(r).guest
	c.Unlock()
	if guest == nil {
		return
	}
	if !hard {
		bound, cancel := context.WithTimeout(ctx, c.cfg.Shutdown)
		if err := guest.Powerdown(bound); err == nil {
			select {
			case <-guest.Done():
			case <-bound.Done():
			}
		}
		cancel()
	}
	if err := guest.Kill(); err != nil {
		c.Log().Error("kill a simulated VM", "id", r.ID, "err", err)
	}
	c.Lock()
	defer c.Unlock()
	if vmOf(r).guest == guest {
		vmOf(r).guest = nil
	}
}

// cutPower ends the guest of a VM whose group is deleted.
func (c *Compute) cutPower(ctx context.Context, r *plane.Resource) { c.endGuest(ctx, r, true) }

// describe is the VM as a Runner sees it. The caller holds the lock.
func (c *Compute) describe(r *plane.Resource) (Machine, error) {
	size, _ := sizes.Find(wire.Str(r.Doc, "properties", "hardwareProfile", "vmSize"))
	m := Machine{ID: vmOf(r).id, Name: r.Name, Generation: 1, CPUs: size.VCPUs, MemoryMB: size.MemoryMB, Dir: vmOf(r).dir, Serial: vmOf(r).serial}
	profile := wire.Get(r.Doc, "properties", "storageProfile")
	data := slices.Clone(wire.List(profile, "dataDisks"))
	slices.SortFunc(data, func(a, b any) int {
		x, _ := wire.Num(a, "lun")
		y, _ := wire.Num(b, "lun")
		return int(x - y)
	})
	for i, entry := range append([]any{wire.Get(profile, "osDisk")}, data...) {
		d := c.Find(wire.Str(entry, "managedDisk", "id"), typDisk)
		if d == nil {
			return m, fmt.Errorf("disk %s is gone", wire.Str(entry, "managedDisk", "id"))
		}
		dev, err := c.pages.Device(d.Page)
		if err != nil {
			return m, err
		}
		lun, _ := wire.Num(entry, "lun")
		m.Disks = append(m.Disks, MachineDisk{Name: d.Name, LUN: int(lun), OS: i == 0, Device: dev})
		if i == 0 && generation(d) == "V2" {
			m.Generation = 2
		}
	}
	for _, n := range c.interfaces(r) {
		cfg := wire.List(n.Doc, "properties", "ipConfigurations")[0]
		nic := MachineNIC{Name: n.Name, MAC: strings.ReplaceAll(wire.Str(n.Doc, "properties", "macAddress"), "-", ""),
			Address: wire.Str(cfg, "properties", "privateIPAddress"), Subnet: wire.Str(cfg, "properties", "subnet", "id"), Primary: wire.Bool(n.Doc, "properties", "primary")}
		if nic.Primary {
			m.NICs = slices.Insert(m.NICs, 0, nic)
		} else {
			m.NICs = append(m.NICs, nic)
		}
	}
	return m, nil
}

func (c *Compute) interfaces(r *plane.Resource) []*plane.Resource {
	var out []*plane.Resource
	for _, entry := range wire.List(r.Doc, "properties", "networkProfile", "networkInterfaces") {
		if n := c.Find(wire.Str(entry, "id"), plane.TypNIC); n != nil {
			out = append(out, n)
		}
	}
	return out
}

// bootDiagnosticsLife is how long the addresses of boot diagnostics are good if
// the request does not say (Compute REST: 120 minutes).
const bootDiagnosticsLife = 120 * time.Minute
