package hvsim

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/model"
)

// The InstanceIDs of resources are made in objects.go:
//
//	Microsoft:<vm>\<controller>\<number>            controller
//	Microsoft:<vm>\<controller>\<number>\<slot>\D   drive
//	Microsoft:<vm>\<controller>\<number>\<slot>\L   disk in it
//	Microsoft:<vm>\<adapter>                        network adapter
//	Microsoft:<vm>\<adapter>\C                      its connection
type resourceID struct {
	vm, device string
	slot       int
	leaf       string // D, L, C or ""
}

func parseResource(id string) (r resourceID) {
	parts := strings.Split(strings.TrimPrefix(id, "Microsoft:"), `\`)
	r.slot = -1
	r.vm = strings.ToUpper(parts[0])
	if len(parts) > 1 {
		r.device = strings.ToUpper(parts[1])
	}
	if len(parts) == 3 && strings.EqualFold(parts[2], "C") {
		r.leaf = "C"
	}
	if len(parts) == 5 {
		if n, err := strconv.Atoi(parts[3]); err == nil {
			r.slot, r.leaf = n, strings.ToUpper(parts[4])
		}
	}
	return r
}

// parent reads the reference in a resource's Parent.
func parent(in *cim.Instance) (resourceID, error) {
	p, err := cim.ParsePath(in.Args.String("Parent"))
	if err != nil {
		return resourceID{}, fmt.Errorf("parent %q: %w", in.Args.String("Parent"), model.ErrInvalid)
	}
	return parseResource(p.Key("InstanceID")), nil
}

func addResources(c *call) cim.Out {
	ref, ok := c.in.Ref("AffectedConfiguration")
	settings, sok := c.embeddeds("ResourceSettings")
	vm := c.VM(strings.TrimPrefix(ref.Key("InstanceID"), "Microsoft:"))
	if !ok || !sok || vm == nil || len(settings) == 0 {
		return c.invalid()
	}
	return c.work(30, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		r := result{name: "ResultingResourceSettings", list: true}
		for _, s := range settings {
			p, err := c.addResource(vm, s)
			if err != nil {
				return r, err
			}
			r.refs = append(r.refs, p)
		}
		return r, nil
	})
}

// addResource adds what an embedded resource describes and returns its path.
func (c *call) addResource(vm *VM, in *cim.Instance) (cim.Path, error) {
	pre := "Microsoft:" + vm.ID() + `\`
	sub := strings.TrimPrefix(in.Args.String("ResourceSubType"), "Microsoft:Hyper-V:")
	switch strings.ToLower(sub) {
	case "synthetic scsi controller":
		ctl, err := vm.AddController()
		return c.byID("Msvm_ResourceAllocationSettingData", fmt.Sprintf(`%s%s\%d`, pre, ctl.ID, ctl.Number)), err
	case "synthetic disk drive", "synthetic dvd drive":
		up, err := parent(in)
		if err != nil || up.vm != vm.ID() {
			return cim.Path{}, fmt.Errorf("drive without controller of the VM: %w", model.ErrInvalid)
		}
		slot := -1
		if s := in.Args.String("AddressOnParent"); s != "" {
			if slot, err = strconv.Atoi(s); err != nil || slot < 0 {
				return cim.Path{}, fmt.Errorf("slot %q: %w", s, model.ErrInvalid)
			}
		}
		slot, err = vm.AddDrive(up.device, slot, strings.EqualFold(sub, "synthetic dvd drive"))
		if err != nil {
			return cim.Path{}, err
		}
		return c.byID("Msvm_ResourceAllocationSettingData", pre+driveID(vm.State(), model.Drive{Controller: up.device, Slot: slot})+`\D`), nil
	case "virtual hard disk", "virtual cd/dvd disk":
		up, err := parent(in)
		files := in.Strings("HostResource")
		if err != nil || up.vm != vm.ID() || up.leaf != "D" || len(files) != 1 {
			return cim.Path{}, fmt.Errorf("disk without drive or file: %w", model.ErrInvalid)
		}
		if strings.EqualFold(sub, "virtual hard disk") {
			_, err = vm.Attach(up.device, up.slot, files[0], "", "")
		} else {
			err = vm.InsertImage(up.device, up.slot, files[0])
		}
		return c.byID("Msvm_StorageAllocationSettingData", pre+driveID(vm.State(), model.Drive{Controller: up.device, Slot: up.slot})+`\L`), err
	case "synthetic ethernet port", "emulated ethernet port":
		static, _ := in.Bool("StaticMacAddress")
		legacy := strings.EqualFold(sub, "emulated ethernet port")
		n, err := vm.AddNIC(model.NICSpec{Name: in.Args.String("ElementName"), MAC: in.Args.String("Address"), DynamicMAC: !static, Unconnected: true, Legacy: legacy, DHCP: true})
		class := "Msvm_SyntheticEthernetPortSettingData"
		if legacy {
			class = "Msvm_EmulatedEthernetPortSettingData"
		}
		return c.byID(class, pre+n.ID), err
	case "ethernet connection":
		up, err := parent(in)
		if err != nil || up.vm != vm.ID() {
			return cim.Path{}, fmt.Errorf("connection without adapter of the VM: %w", model.ErrInvalid)
		}
		return c.byID("Msvm_EthernetPortAllocationSettingData", pre+up.device+`\C`), c.connect(vm, up.device, in)
	}
	return cim.Path{}, fmt.Errorf("resource %q: %w", in.Args.String("ResourceSubType"), model.ErrMissing)
}

// connect ties an adapter to the switch that a connection names, or to none.
func (c *call) connect(vm *VM, nic string, in *cim.Instance) error {
	id := ""
	if res := in.Strings("HostResource"); len(res) > 0 && res[0] != "" {
		p, err := cim.ParsePath(res[0])
		if err != nil {
			return fmt.Errorf("switch %q: %w", res[0], model.ErrInvalid)
		}
		sw, ok := c.Switch(p.Key("Name"))
		if !ok {
			return fmt.Errorf("switch %q: %w", res[0], model.ErrInvalid)
		}
		id = sw.ID
	}
	if e, ok := in.Uint("EnabledState"); ok && e == 3 {
		id = ""
	}
	return editNIC(vm, nic, func(n *model.NIC) { n.Switch, n.Connected = id, true })
}

func editNIC(vm *VM, nic string, edit func(*model.NIC)) error {
	return vm.Change(func(st *model.State) error {
		for i := range st.NICs {
			if strings.EqualFold(st.NICs[i].ID, nic) {
				edit(&st.NICs[i])
				return nil
			}
		}
		return fmt.Errorf("network adapter %s of VM %s: %w", nic, st.Name, model.ErrNotFound)
	})
}

func modifyResources(c *call) cim.Out {
	settings, ok := c.embeddeds("ResourceSettings")
	if !ok || len(settings) == 0 {
		return c.invalid()
	}
	var vm *VM
	for _, s := range settings {
		v := c.VM(parseResource(s.Args.String("InstanceID")).vm)
		if v == nil || vm != nil && v != vm {
			return c.invalid()
		}
		vm = v
	}
	return c.work(31, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		r := result{name: "ResultingResourceSettings", list: true}
		for _, s := range settings {
			if err := c.modifyResource(vm, s); err != nil {
				return r, err
			}
			r.refs = append(r.refs, c.byID(s.Class, s.Args.String("InstanceID")))
		}
		return r, nil
	})
}

func (c *call) modifyResource(vm *VM, in *cim.Instance) error {
	id := parseResource(in.Args.String("InstanceID"))
	n, given := in.Uint("VirtualQuantity")
	switch strings.ToLower(in.Class) {
	case "msvm_processorsettingdata":
		return vm.Change(func(st *model.State) error {
			if given && int(n) != st.CPUs {
				if st.Power != model.Off {
					return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, model.ErrState)
				}
				if n < 1 || n > 1024 {
					return fmt.Errorf("%d processors: %w", n, model.ErrInvalid)
				}
				st.CPUs = int(n)
			}
			return nil
		})
	case "msvm_memorysettingdata":
		return vm.Change(func(st *model.State) error {
			dynamic, dok := in.Bool("DynamicMemoryEnabled")
			if (given && int64(n) != st.MemoryMB || dok && dynamic != st.DynamicMemory) && st.Power != model.Off {
				return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, model.ErrState)
			}
			if given {
				if n < 32 || n%2 != 0 {
					return fmt.Errorf("%d MB of memory: %w", n, model.ErrInvalid)
				}
				st.MemoryMB = int64(n)
			}
			if dok {
				st.DynamicMemory = dynamic
			}
			st.MinMB, st.MaxMB = st.MemoryMB, st.MemoryMB
			if v, ok := in.Uint("Reservation"); ok && st.DynamicMemory {
				st.MinMB = int64(v)
			}
			if v, ok := in.Uint("Limit"); ok && st.DynamicMemory {
				st.MaxMB = int64(v)
			}
			return nil
		})
	case "msvm_syntheticethernetportsettingdata", "msvm_emulatedethernetportsettingdata":
		return editNIC(vm, id.device, func(nic *model.NIC) {
			if a := in.Args.String("Address"); a != "" {
				nic.MAC = strings.ToUpper(a)
			}
			if s, ok := in.Bool("StaticMacAddress"); ok {
				nic.StaticMAC = s
			}
			if name := in.Args.String("ElementName"); name != "" {
				nic.Name = name
			}
		})
	case "msvm_ethernetportallocationsettingdata":
		return c.connect(vm, id.device, in)
	case "msvm_storageallocationsettingdata":
		files := in.Strings("HostResource")
		if len(files) != 1 || id.leaf != "L" {
			return fmt.Errorf("disk without file: %w", model.ErrInvalid)
		}
		return vm.Rewire(id.device, id.slot, files[0])
	}
	return fmt.Errorf("resource of class %s: %w", in.Class, model.ErrMissing)
}

func removeResources(c *call) cim.Out {
	refs, err := c.in.Refs("ResourceSettings")
	if err != nil || len(refs) == 0 {
		return c.invalid()
	}
	var vm *VM
	for _, r := range refs {
		v := c.VM(parseResource(r.Key("InstanceID")).vm)
		if v == nil || vm != nil && v != vm {
			return c.invalid()
		}
		vm = v
	}
	return c.work(32, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		for _, r := range refs {
			id := parseResource(r.Key("InstanceID"))
			if err := removeResource(vm, id); err != nil {
				return result{}, err
			}
		}
		return result{}, nil
	})
}

func removeResource(vm *VM, id resourceID) error {
	st := vm.State()
	switch id.leaf {
	case "L":
		if ds := disk(st, model.Drive{Controller: id.device, Slot: id.slot}); ds != nil {
			return vm.RemoveDisk(ds.ID, false)
		}
		return vm.InsertImage(id.device, id.slot, "")
	case "C":
		return editNIC(vm, id.device, func(n *model.NIC) { n.Switch, n.Connected = "", false })
	}
	return vm.RemoveDevice(id.device, id.slot)
}

// Features of connections: only the VLAN.

func addFeatures(c *call) cim.Out {
	ref, ok := c.in.Ref("AffectedConfiguration")
	set, sok := c.embeddeds("FeatureSettings")
	id := parseResource(ref.Key("InstanceID"))
	vm := c.VM(id.vm)
	if !ok || !sok || vm == nil || id.leaf != "C" || len(set) == 0 {
		return c.invalid()
	}
	return c.vlan(vm, id, set)
}

func modifyFeatures(c *call) cim.Out {
	set, ok := c.embeddeds("FeatureSettings")
	if !ok || len(set) == 0 {
		return c.invalid()
	}
	id := parseResource(set[0].Args.String("InstanceID"))
	vm := c.VM(id.vm)
	if vm == nil {
		return c.invalid()
	}
	return c.vlan(vm, id, set)
}

func (c *call) vlan(vm *VM, id resourceID, set []*cim.Instance) cim.Out {
	for _, s := range set {
		if !strings.EqualFold(s.Class, "Msvm_EthernetSwitchPortVlanSettingData") {
			return cim.Out{Return: c.family.unsupported}
		}
		if v, ok := s.Uint("AccessVlanId"); !ok || v > 4094 {
			return c.invalid()
		}
	}
	return c.work(30, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		v, _ := set[len(set)-1].Uint("AccessVlanId")
		r := result{name: "ResultingFeatureSettings", list: true, refs: []cim.Path{c.byID("Msvm_EthernetSwitchPortVlanSettingData", "Microsoft:"+vm.ID()+`\`+id.device+`\C\8\`+vlanID)}}
		return r, editNIC(vm, id.device, func(n *model.NIC) { n.VLAN = int(v) })
	})
}

func removeFeatures(c *call) cim.Out {
	refs, err := c.in.Refs("FeatureSettings")
	if err != nil || len(refs) == 0 {
		return c.invalid()
	}
	id := parseResource(refs[0].Key("InstanceID"))
	vm := c.VM(id.vm)
	if vm == nil {
		return c.invalid()
	}
	return c.work(32, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		return result{}, editNIC(vm, id.device, func(n *model.NIC) { n.VLAN = 0 })
	})
}

// setGuestNetwork needs a guest that runs and answers, as the key-value exchange does.
func setGuestNetwork(c *call) cim.Out {
	vm := c.vm("ComputerSystem")
	set, ok := c.embeddeds("NetworkConfiguration")
	if vm == nil || !ok || len(set) == 0 {
		return c.invalid()
	}
	if vm.State().Power != model.On {
		return cim.Out{Return: c.family.state}
	}
	return c.work(2, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		for _, s := range set {
			parts := strings.Split(s.Args.String("InstanceID"), `\`)
			dhcp, _ := s.Bool("DHCPEnabled")
			if err := editNIC(vm, parts[len(parts)-1], func(n *model.NIC) {
				n.DHCP, n.IPs, n.Subnets = dhcp, s.Strings("IPAddresses"), s.Strings("Subnets")
				n.Gateways, n.DNS = s.Strings("DefaultGateways"), s.Strings("DNSServers")
			}); err != nil {
				return result{}, err
			}
		}
		return result{}, nil
	})
}
