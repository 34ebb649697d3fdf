package msvm

import (
	"context"
	"fmt"
	"strings"

	"holdfast/internal/cim"
)

// Machine is what a VM is defined from.
type Machine struct {
	Name, Notes  string
	Generation   int
	ID           string // wanted; hosts are free to choose another one
	BIOSGUID     string // what the guest sees as its machine id; "" = a new one
	SecureBoot   *bool  // generation 2
	BootTemplate string // SecureBootTemplateId
	CPUs         int
	MemoryMB     int
	Root         string // directory of the configuration, "" = the host's default
}

// DefineSystem defines a VM without disks and adapters and returns its id.
func (c *Client) DefineSystem(ctx context.Context, m Machine) (string, error) {
	in := cim.NewInstance("Msvm_VirtualSystemSettingData", "ElementName", m.Name, "Notes", []string{m.Notes},
		"VirtualSystemSubType", fmt.Sprintf("Microsoft:Hyper-V:SubType:%d", max(m.Generation, 1)),
		"AutomaticStartupAction", uint16(2), "UserSnapshotType", uint16(3))
	if m.ID != "" {
		in.Set("VirtualSystemIdentifier", hostGUID(m.ID))
	}
	if m.BIOSGUID != "" {
		in.Set("BIOSGUID", m.BIOSGUID)
	}
	if m.Root != "" {
		in.Set("ConfigurationDataRoot", m.Root)
	}
	if m.Generation == 2 && m.SecureBoot != nil {
		in.Set("SecureBootEnabled", *m.SecureBoot)
		if m.BootTemplate != "" {
			in.Set("SecureBootTemplateId", m.BootTemplate)
		}
	}
	text, err := cim.EncodeEmbedded(in)
	if err != nil {
		return "", err
	}
	out, job, err := c.call(ctx, managementService, "DefineSystem", cim.Pairs("SystemSettings", text))
	if err != nil {
		return "", err
	}
	path, err := c.affected(ctx, out, job, "ResultingSystem", "Msvm_ComputerSystem")
	return strings.ToLower(path.Key("Name")), err
}

// DestroySystem removes a VM that is off, without its disks.
func (c *Client) DestroySystem(ctx context.Context, vm string) error {
	_, _, err := c.call(ctx, managementService, "DestroySystem", cim.Pairs("AffectedSystem", systemPath(vm)))
	return err
}

// addResource adds one resource to a VM's settings and returns its path.
func (c *Client) addResource(ctx context.Context, settings string, in *cim.Instance) (cim.Path, error) {
	text, err := cim.EncodeEmbedded(in)
	if err != nil {
		return cim.Path{}, err
	}
	out, job, err := c.call(ctx, managementService, "AddResourceSettings", cim.Pairs("AffectedConfiguration", SettingsPath(settings), "ResourceSettings", []string{text}))
	if err != nil {
		return cim.Path{}, err
	}
	refs, err := out.Refs("ResultingResourceSettings")
	if err != nil {
		return cim.Path{}, err
	}
	if len(refs) == 0 && job != nil {
		list, err := c.query(ctx, cim.Associators(job.Path, "Msvm_AffectedJobElement", ""))
		if err != nil {
			return cim.Path{}, err
		}
		for _, r := range list {
			if strings.EqualFold(r.String("ResourceSubType"), in.String("ResourceSubType")) {
				refs = append(refs, pathOf(r, r.Class, "InstanceID"))
			}
		}
	}
	if len(refs) == 0 {
		return cim.Path{}, &cim.Error{Code: cim.CodeProtocol, Op: "AddResourceSettings", Message: "the host does not say what it has added"}
	}
	if refs[0].Namespace == "" {
		refs[0].Namespace = Namespace
	}
	return refs[0], nil
}

// AddSCSI adds a SCSI controller and returns its path.
func (c *Client) AddSCSI(ctx context.Context, settings string) (cim.Path, error) {
	return c.addResource(ctx, settings, cim.NewInstance("Msvm_ResourceAllocationSettingData", "ResourceType", uint16(6), "ResourceSubType", subSCSI))
}

// IDE returns the paths of a VM's IDE controllers, which generation 1 has from the start, in the order of their addresses.
func (vm *VM) IDE() [2]cim.Path {
	var out [2]cim.Path
	for _, r := range vm.Resources {
		if r.String("ResourceSubType") == subIDE {
			i := 0
			if r.String("Address") == "1" {
				i = 1
			}
			out[i] = pathOf(r, "Msvm_ResourceAllocationSettingData", "InstanceID")
		}
	}
	return out
}

// AddDisk attaches a disk file to a slot of a controller: first the drive, then the disk in it.
func (c *Client) AddDisk(ctx context.Context, settings string, controller cim.Path, slot int, file string) error {
	drive, err := c.addResource(ctx, settings, cim.NewInstance("Msvm_ResourceAllocationSettingData", "ResourceType", uint16(17),
		"ResourceSubType", subDrive, "Parent", controller.String(), "AddressOnParent", fmt.Sprint(slot)))
	if err != nil {
		return err
	}
	_, err = c.addResource(ctx, settings, cim.NewInstance("Msvm_StorageAllocationSettingData", "ResourceType", uint16(31),
		"ResourceSubType", subDisk, "Parent", drive.String(), "HostResource", []string{file}))
	return err
}

// NewPort is a synthetic adapter that is to be made.
type NewPort struct {
	Name string
	MAC  string   // 12 hex digits; "" = the host chooses one
	To   cim.Path // of the switch; zero = not connected
	VLAN int      // access VLAN, 0 = untagged
}

// AddPort adds a synthetic adapter, its connection, and the VLAN of that (method AddFeatureSettings of
// Msvm_VirtualSystemManagementService).
func (c *Client) AddPort(ctx context.Context, settings string, p NewPort) error {
	in := cim.NewInstance("Msvm_SyntheticEthernetPortSettingData", "ElementName", p.Name, "ResourceType", uint16(10), "ResourceSubType", subPort,
		"VirtualSystemIdentifiers", []string{"{" + newGUID() + "}"})
	if p.MAC != "" {
		in.Set("StaticMacAddress", true)
		in.Set("Address", p.MAC)
	}
	port, err := c.addResource(ctx, settings, in)
	if err != nil || p.To.IsZero() {
		return err
	}
	con := cim.NewInstance("Msvm_EthernetPortAllocationSettingData", "ElementName", p.Name, "ResourceType", uint16(33),
		"ResourceSubType", subConnection, "Parent", port.String(), "HostResource", []string{p.To.String()})
	connection, err := c.addResource(ctx, settings, con)
	if err != nil || p.VLAN == 0 {
		return err
	}
	text, err := cim.EncodeEmbedded(cim.NewInstance("Msvm_EthernetSwitchPortVlanSettingData", "OperationMode", uint32(1), "AccessVlanId", uint16(p.VLAN)))
	if err != nil {
		return err
	}
	_, _, err = c.call(ctx, managementService, "AddFeatureSettings", cim.Pairs("AffectedConfiguration", connection, "FeatureSettings", []string{text}))
	return err
}

// SetSize sets processors and memory of a VM that was loaded with All; 0 leaves a value.
func (c *Client) SetSize(ctx context.Context, vm *VM, cpus, memoryMB int) error {
	var list []string
	for _, r := range vm.Resources {
		var in *cim.Instance
		switch {
		case strings.EqualFold(r.Class, "Msvm_ProcessorSettingData") && cpus > 0:
			in = cim.NewInstance(r.Class, "InstanceID", r.String("InstanceID"), "VirtualQuantity", uint64(cpus))
		case strings.EqualFold(r.Class, "Msvm_MemorySettingData") && memoryMB > 0:
			in = cim.NewInstance(r.Class, "InstanceID", r.String("InstanceID"), "VirtualQuantity", uint64(memoryMB),
				"Reservation", uint64(memoryMB), "Limit", uint64(memoryMB), "DynamicMemoryEnabled", false)
		default:
			continue
		}
		text, err := cim.EncodeEmbedded(in)
		if err != nil {
			return err
		}
		list = append(list, text)
	}
	if len(list) == 0 {
		return nil
	}
	_, _, err := c.call(ctx, managementService, "ModifyResourceSettings", cim.Pairs("ResourceSettings", list))
	return err
}

// GuestAddress is Msvm_GuestNetworkAdapterConfiguration: what an adapter's address in the guest shall be.
type GuestAddress struct {
	DHCP                        bool
	IPs, Masks, Gateways, Names []string
}

// SetGuestAddress gives the guest a static configuration of an adapter (method
// SetGuestNetworkAdapterConfiguration); integration services have to run in the guest.
func (c *Client) SetGuestAddress(ctx context.Context, vm string, port Port, a GuestAddress) error {
	list, err := c.query(ctx, cim.Associators(instancePath("Msvm_SyntheticEthernetPortSettingData", port.ID), "Msvm_SettingDataComponent", "Msvm_GuestNetworkAdapterConfiguration"))
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return &cim.Error{Code: cim.CodeNotFound, Op: "guest configuration of adapter " + port.ID, Message: fmt.Sprintf("the host has %d of it", len(list))}
	}
	in := cim.NewInstance("Msvm_GuestNetworkAdapterConfiguration", "InstanceID", list[0].String("InstanceID"), "DHCPEnabled", a.DHCP, "ProtocolIFType", uint16(4096),
		"IPAddresses", append([]string{}, a.IPs...), "Subnets", append([]string{}, a.Masks...), "DefaultGateways", append([]string{}, a.Gateways...), "DNSServers", append([]string{}, a.Names...))
	text, err := cim.EncodeEmbedded(in)
	if err != nil {
		return err
	}
	_, _, err = c.call(ctx, managementService, "SetGuestNetworkAdapterConfiguration", cim.Pairs("ComputerSystem", systemPath(vm), "NetworkConfiguration", []string{text}))
	return err
}
