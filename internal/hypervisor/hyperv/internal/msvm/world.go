package msvm

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/cim"
)

// Depth says how much of the VMs World reads.
type Depth int

// The depths; each holds those before it.
const (
	Systems Depth = iota // Msvm_ComputerSystem only
	Storage              // settings, controllers, drives, disks
	All                  // processors, memory, adapters, guest
)

// World is what a host says of its VMs, read with a fixed number of queries
// (19 at most), however many there are, and joined here. It is no snapshot: the
// host goes on between the queries, and a VM without settings is left out.
type World struct {
	VMs      map[string]*VM // by id
	Switches []Switch
}

// VM is a VM with everything that was asked for.
type VM struct {
	System
	Settings    *Settings
	Checkpoints []*Settings // also those of backups
	Drives      []Drive
	Resources   []*cim.Instance // all settings of resources, for capture and definition
	Ports       []Port
	CPUs        int
	MemoryMB    int
	Dynamic     bool              // dynamic memory
	KVP         map[string]string // GuestIntrinsicExchangeItems
	VSS         Component
	Heartbeat   Component
	Shutdown    Component
}

// Component is an integration service of a VM.
type Component struct {
	Known   bool
	Enabled bool
	Status  uint64 // OperationalStatus[0]: 2 OK, 3 degraded, 7 non-recoverable, 12 no contact, 13 lost communication
	Path    cim.Path
}

// OK reports whether the service can be used.
func (c Component) OK() bool { return c.Known && c.Enabled && c.Status == 2 }

// Beats reports whether a heartbeat component hears from its guest. The reference calls 3
// (degraded) a service that works normally by an older version of the protocol.
func (c Component) Beats() bool { return c.Known && c.Enabled && (c.Status == 2 || c.Status == 3) }

// Text says what is wrong with the service; "" if nothing is.
func (c Component) Text() string {
	switch {
	case !c.Known:
		return "absent"
	case !c.Enabled:
		return "disabled"
	}
	switch c.Status {
	case 2:
		return ""
	case 3:
		return "degraded"
	case 7:
		return "non-recoverable error"
	case 12:
		return "no contact"
	case 13:
		return "lost communication"
	}
	return fmt.Sprintf("status %d", c.Status)
}

// Settings are Msvm_VirtualSystemSettingData: of a VM, or of a checkpoint.
type Settings struct {
	*cim.Instance
	ID         string // InstanceID
	VM         string // id of the VM
	Type       string // VirtualSystemType
	Name       string // ElementName
	Version    string
	Generation int
}

// Virtual system types.
const (
	typeRealized = "Microsoft:Hyper-V:System:Realized"
	typeRecovery = "Microsoft:Hyper-V:Snapshot:Recovery"
)

// Recovery reports whether the settings are a recovery checkpoint: a backup's, or one of ours.
func (s *Settings) Recovery() bool { return strings.EqualFold(s.Type, typeRecovery) }

// NoCheckpoints reports whether the VM's settings forbid checkpoints (UserSnapshotType 2).
func (s *Settings) NoCheckpoints() bool { n, ok := s.Uint("UserSnapshotType"); return ok && n == 2 }

func settingsOf(in *cim.Instance) *Settings {
	s := &Settings{Instance: in, ID: in.String("InstanceID"), VM: strings.ToLower(in.String("VirtualSystemIdentifier")),
		Type: in.String("VirtualSystemType"), Name: in.String("ElementName"), Version: in.String("Version"), Generation: 1}
	if strings.HasSuffix(in.String("VirtualSystemSubType"), ":2") {
		s.Generation = 2
	}
	return s
}

// Drive is a disk of a VM or checkpoint: the file, or the physical disk.
type Drive struct {
	Instance   string // InstanceID of the setting data
	Path       string // HostResource[0]
	Physical   bool   // pass-through
	Shared     bool   // PersistentReservationsSupported
	Controller string // scsi, ide
	Number     int    // of the controller among those of its kind
	Slot       int    // AddressOnParent
}

// Port is a network adapter.
type Port struct {
	ID        string // InstanceID
	Name      string
	MAC       string // 12 hex digits, upper case
	StaticMAC bool
	Legacy    bool   // emulated
	Switch    string // name; "" = not connected
	VLAN      int
	IPs       []string
}

// Switch is a virtual switch.
type Switch struct {
	Name string // ElementName
	Path cim.Path
}

// Load reads the VM with the id, or with "" all VMs. A VM that does not exist is not in the answer.
func (c *Client) Load(ctx context.Context, id string, depth Depth) (*World, error) {
	w := &World{VMs: map[string]*VM{}}
	where := " WHERE Name != __SERVER"
	if id != "" {
		where = " WHERE Name = " + cim.Quote(hostGUID(id))
	}
	list, err := c.query(ctx, "SELECT * FROM Msvm_ComputerSystem"+where)
	if err != nil {
		return nil, err
	}
	for _, in := range list {
		if s := systemOf(in); IsGUID(s.ID) {
			w.VMs[s.ID] = &VM{System: s}
		}
	}
	if len(w.VMs) == 0 || depth == Systems {
		return w, nil
	}
	if err := c.loadStorage(ctx, w, id); err != nil || depth == Storage {
		return w, err
	}
	return w, c.loadRest(ctx, w, id)
}

// each runs a query for a class, limited to one VM if id is given, and calls fn
// with the VM that an instance belongs to by its InstanceID.
func (c *Client) each(ctx context.Context, w *World, class, id string, fn func(*VM, *cim.Instance)) error {
	wql := "SELECT * FROM " + class
	if id != "" {
		wql += " WHERE InstanceID LIKE " + cim.Quote("Microsoft:"+hostGUID(id)+"%")
	}
	list, err := c.query(ctx, wql)
	if err != nil {
		return err
	}
	for _, in := range list {
		if vm := w.VMs[owner(in.String("InstanceID"))]; vm != nil {
			fn(vm, in)
		}
	}
	return nil
}

func (c *Client) loadStorage(ctx context.Context, w *World, id string) error {
	wql := "SELECT * FROM Msvm_VirtualSystemSettingData"
	if id != "" {
		wql += " WHERE VirtualSystemIdentifier = " + cim.Quote(hostGUID(id))
	}
	list, err := c.query(ctx, wql)
	if err != nil {
		return err
	}
	for _, in := range list {
		s := settingsOf(in)
		vm := w.VMs[s.VM]
		switch {
		case vm == nil:
		case strings.EqualFold(s.Type, typeRealized):
			vm.Settings = s
		case strings.HasPrefix(s.Type, "Microsoft:Hyper-V:Snapshot:"):
			vm.Checkpoints = append(vm.Checkpoints, s)
		}
	}
	for k, vm := range w.VMs {
		if vm.Settings == nil { // deleted meanwhile, or being made
			delete(w.VMs, k)
		}
	}
	for _, class := range []string{"Msvm_ResourceAllocationSettingData", "Msvm_StorageAllocationSettingData"} {
		if err := c.each(ctx, w, class, id, func(vm *VM, in *cim.Instance) { vm.Resources = append(vm.Resources, in) }); err != nil {
			return err
		}
	}
	for _, vm := range w.VMs {
		vm.Drives = drivesOf(vm.Resources)
	}
	return nil
}

// Resource types and subtypes of CIM_ResourceAllocationSettingData.
const (
	subDisk       = "Microsoft:Hyper-V:Virtual Hard Disk"
	subPhysical   = "Microsoft:Hyper-V:Physical Disk Drive"
	subDrive      = "Microsoft:Hyper-V:Synthetic Disk Drive"
	subSCSI       = "Microsoft:Hyper-V:Synthetic SCSI Controller"
	subIDE        = "Microsoft:Hyper-V:Emulated IDE Controller"
	subPort       = "Microsoft:Hyper-V:Synthetic Ethernet Port"
	subConnection = "Microsoft:Hyper-V:Ethernet Connection"
)

// keyOf is what references to a setting data by path and by id have in common.
func keyOf(ref string) string {
	if p, err := cim.ParsePath(ref); err == nil && p.Key("InstanceID") != "" {
		return strings.ToLower(p.Key("InstanceID"))
	}
	return strings.ToLower(ref)
}

// drivesOf joins disks with their drives and controllers.
func drivesOf(resources []*cim.Instance) []Drive {
	byID := map[string]*cim.Instance{}
	number := map[string]int{}
	kinds := map[string]int{}
	for _, r := range resources {
		byID[strings.ToLower(r.String("InstanceID"))] = r
		switch sub := r.String("ResourceSubType"); sub {
		case subSCSI, subIDE:
			number[strings.ToLower(r.String("InstanceID"))] = kinds[sub]
			kinds[sub]++
		}
	}
	var list []Drive
	for _, r := range resources {
		var d Drive
		drive := r
		switch r.String("ResourceSubType") {
		case subDisk:
			drive = byID[keyOf(r.String("Parent"))]
		case subPhysical:
			d.Physical = true
		default:
			continue
		}
		d.Instance, d.Path = r.String("InstanceID"), r.String("HostResource")
		d.Shared, _ = r.Bool("PersistentReservationsSupported")
		if drive != nil {
			d.Slot, _ = strconv.Atoi(drive.String("AddressOnParent")) // absent on hosts that don't say it
			parent := keyOf(drive.String("Parent"))
			if ctl := byID[parent]; ctl != nil {
				switch ctl.String("ResourceSubType") {
				case subSCSI:
					d.Controller = "scsi"
				case subIDE:
					d.Controller = "ide"
				}
				d.Number = number[parent]
				if n, err := strconv.Atoi(ctl.String("Address")); err == nil && d.Controller == "ide" {
					d.Number = n
				}
			}
		}
		list = append(list, d)
	}
	slices.SortStableFunc(list, func(a, b Drive) int {
		if a.Controller != b.Controller {
			return strings.Compare(a.Controller, b.Controller) // ide before scsi: firmware of generation 1 boots from there
		}
		if a.Number != b.Number {
			return a.Number - b.Number
		}
		return a.Slot - b.Slot
	})
	return list
}

func (c *Client) loadRest(ctx context.Context, w *World, id string) error {
	var err error
	each := func(class string, fn func(*VM, *cim.Instance)) {
		if err == nil {
			err = c.each(ctx, w, class, id, fn)
		}
	}
	keep := func(vm *VM, in *cim.Instance) { vm.Resources = append(vm.Resources, in) }
	each("Msvm_ProcessorSettingData", func(vm *VM, in *cim.Instance) {
		keep(vm, in)
		n, _ := in.Uint("VirtualQuantity")
		vm.CPUs = int(min(n, 1<<16))
	})
	each("Msvm_MemorySettingData", func(vm *VM, in *cim.Instance) {
		keep(vm, in)
		n, _ := in.Uint("VirtualQuantity")
		vm.MemoryMB = int(min(n, 1<<30)) // AllocationUnits is byte * 2^20
		vm.Dynamic, _ = in.Bool("DynamicMemoryEnabled")
	})
	if err != nil {
		return err
	}
	if w.Switches, err = c.Switches(ctx); err != nil {
		return err
	}
	if err := c.loadPorts(ctx, w, id); err != nil {
		return err
	}
	return c.loadGuest(ctx, w, id)
}

// Switches lists the host's virtual switches.
func (c *Client) Switches(ctx context.Context) ([]Switch, error) {
	list, err := c.query(ctx, "SELECT * FROM Msvm_VirtualEthernetSwitch")
	if err != nil {
		return nil, err
	}
	var out []Switch
	for _, in := range list {
		out = append(out, Switch{Name: in.String("ElementName"), Path: pathOf(in, "Msvm_VirtualEthernetSwitch", "Name")})
	}
	slices.SortFunc(out, func(a, b Switch) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Private reports whether a switch connects VMs only: neither a network card
// (Msvm_ExternalEthernetPort) nor the host itself has a port of it.
func (c *Client) Private(ctx context.Context, s Switch) (bool, error) {
	sets, err := c.query(ctx, cim.Associators(s.Path, "Msvm_SettingsDefineState", "Msvm_VirtualEthernetSwitchSettingData"))
	if err != nil || len(sets) == 0 {
		return false, err
	}
	for _, set := range sets {
		ports, err := c.query(ctx, cim.Associators(pathOf(set, "Msvm_VirtualEthernetSwitchSettingData", "InstanceID"), "Msvm_VirtualSystemSettingDataComponent", "Msvm_EthernetPortAllocationSettingData"))
		if err != nil || len(ports) > 0 {
			return false, err
		}
	}
	return true, nil
}

// loadPorts joins adapters, their connections and VLANs: the InstanceID of a
// connection begins with its port's, that of a VLAN with its connection's.
func (c *Client) loadPorts(ctx context.Context, w *World, id string) error {
	switches := map[string]string{}
	for _, s := range w.Switches {
		switches[strings.ToLower(s.Path.Key("Name"))] = s.Name
	}
	var err error
	each := func(class string, fn func(*VM, *cim.Instance)) {
		if err == nil {
			err = c.each(ctx, w, class, id, fn)
		}
	}
	port := func(legacy bool) func(*VM, *cim.Instance) {
		return func(vm *VM, in *cim.Instance) {
			vm.Resources = append(vm.Resources, in)
			static, _ := in.Bool("StaticMacAddress")
			vm.Ports = append(vm.Ports, Port{ID: in.String("InstanceID"), Name: in.String("ElementName"), MAC: strings.ToUpper(in.String("Address")), StaticMAC: static, Legacy: legacy})
		}
	}
	find := func(vm *VM, id string) *Port {
		for i := range vm.Ports {
			if p := &vm.Ports[i]; len(id) >= len(p.ID) && strings.EqualFold(id[:len(p.ID)], p.ID) {
				return p
			}
		}
		return nil
	}
	each("Msvm_SyntheticEthernetPortSettingData", port(false))
	each("Msvm_EmulatedEthernetPortSettingData", port(true))
	each("Msvm_EthernetPortAllocationSettingData", func(vm *VM, in *cim.Instance) {
		vm.Resources = append(vm.Resources, in)
		p := find(vm, in.String("InstanceID"))
		if q := find(vm, keyOf(in.String("Parent"))); p == nil {
			p = q
		}
		if p == nil {
			return
		}
		if n, ok := in.Uint("EnabledState"); ok && n == 3 {
			return
		}
		if ref, ok := in.Ref("HostResource"); ok {
			p.Switch = switches[strings.ToLower(ref.Key("Name"))]
		} else if len(in.Strings("HostResource")) > 0 {
			p.Switch = in.String("LastKnownSwitchName")
		}
	})
	each("Msvm_EthernetSwitchPortVlanSettingData", func(vm *VM, in *cim.Instance) {
		if mode, _ := in.Uint("OperationMode"); mode != 1 {
			return
		}
		if p := find(vm, in.String("InstanceID")); p != nil {
			n, _ := in.Uint("AccessVlanId")
			p.VLAN = int(min(n, 4095))
		}
	})
	if err != nil {
		return err
	}
	// Its InstanceID is Microsoft:GuestNetwork\VM\port.
	list, err := c.query(ctx, "SELECT * FROM Msvm_GuestNetworkAdapterConfiguration")
	if err != nil {
		return err
	}
	for _, in := range list {
		iid := strings.ToLower(in.String("InstanceID"))
		for _, vm := range w.VMs {
			if !strings.Contains(iid, vm.ID) {
				continue
			}
			for i := range vm.Ports {
				_, dev, _ := strings.Cut(strings.ToLower(vm.Ports[i].ID), `\`)
				if dev != "" && strings.Contains(iid, dev) {
					vm.Ports[i].IPs = in.Strings("IPAddresses")
				}
			}
		}
	}
	return nil
}

// loadGuest reads what the integration services know.
func (c *Client) loadGuest(ctx context.Context, w *World, id string) error {
	for class, fn := range map[string]func(*VM, *cim.Instance){
		"Msvm_VssComponent":       func(vm *VM, in *cim.Instance) { vm.VSS = componentOf(in) },
		"Msvm_HeartbeatComponent": func(vm *VM, in *cim.Instance) { vm.Heartbeat = componentOf(in) },
		"Msvm_KvpExchangeComponent": func(vm *VM, in *cim.Instance) {
			vm.KVP = map[string]string{}
			for _, s := range in.Strings("GuestIntrinsicExchangeItems") {
				if item, err := cim.DecodeEmbedded(s); err == nil { // one that is damaged is not known
					vm.KVP[item.String("Name")] = item.String("Data")
				}
			}
		},
	} {
		if err := c.components(ctx, w, class, id, fn); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) components(ctx context.Context, w *World, class, id string, fn func(*VM, *cim.Instance)) error {
	wql := "SELECT * FROM " + class
	if id != "" {
		wql += " WHERE SystemName = " + cim.Quote(hostGUID(id))
	}
	list, err := c.query(ctx, wql)
	if err != nil {
		return err
	}
	for _, in := range list {
		if vm := w.VMs[strings.ToLower(in.String("SystemName"))]; vm != nil {
			fn(vm, in)
		}
	}
	return nil
}

func componentOf(in *cim.Instance) Component {
	k := Component{Known: true, Enabled: true, Path: in.Path}
	if n, ok := in.Uint("EnabledState"); ok {
		k.Enabled = n == 2
	}
	if status, err := in.Uints("OperationalStatus"); err == nil && len(status) > 0 {
		k.Status = status[0]
	}
	return k
}

// Component reads one integration service of a VM.
func (c *Client) Component(ctx context.Context, id, class string) (Component, error) {
	w := &World{VMs: map[string]*VM{id: {}}}
	var k Component
	err := c.components(ctx, w, class, id, func(_ *VM, in *cim.Instance) { k = componentOf(in) })
	return k, err
}
