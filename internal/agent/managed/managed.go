// Package managed is the agent's part on a VMM server: what VMM manages, as it is
// sent to the vault, and the host of a machine that has no hypervisor of its own.
package managed

import (
	"context"
	"os"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/vmm"
)

// Report is a snapshot on the wire.
func Report(s vmm.Snapshot) agentapi.VMMRequest {
	r := agentapi.VMMRequest{Version: agentapi.VMMVersion, Server: s.Server.Name, Product: s.Server.Product, Taken: s.Taken, Warnings: s.Warnings,
		Clouds: []agentapi.VMMCloud{}, Hosts: []agentapi.VMMHost{}, LogicalNetworks: []agentapi.VMMLogicalNetwork{}, Networks: []agentapi.VMMNetwork{},
		Storage: []agentapi.VMMStorage{}, VMs: []agentapi.VMMVM{}}
	for _, c := range s.Clouds {
		r.Clouds = append(r.Clouds, agentapi.VMMCloud(c))
	}
	for _, h := range s.Hosts {
		x := agentapi.VMMHost{ID: h.ID, Name: h.Name, Cluster: h.Cluster, OS: h.OS, HostGroup: h.HostGroup, Clouds: h.Clouds}
		for _, w := range h.Switches {
			x.Switches = append(x.Switches, agentapi.VMMSwitch(w))
		}
		r.Hosts = append(r.Hosts, x)
	}
	for _, n := range s.LogicalNetworks {
		x := agentapi.VMMLogicalNetwork{ID: n.ID, Name: n.Name, Description: n.Description, Virtualized: n.Virtualized, Isolated: n.Isolated}
		for _, d := range n.Definitions {
			y := agentapi.VMMDefinition{ID: d.ID, Name: d.Name, HostGroups: d.HostGroups}
			for _, v := range d.Subnets {
				y.Subnets = append(y.Subnets, agentapi.VMMSubnetVLAN(v))
			}
			x.Definitions = append(x.Definitions, y)
		}
		r.LogicalNetworks = append(r.LogicalNetworks, x)
	}
	for _, n := range s.VMNetworks {
		x := agentapi.VMMNetwork{ID: n.ID, Name: n.Name, LogicalNetwork: n.LogicalNetwork, Isolation: n.Isolation}
		for _, v := range n.Subnets {
			x.Subnets = append(x.Subnets, agentapi.VMMSubnet(v))
		}
		r.Networks = append(r.Networks, x)
	}
	for _, c := range s.StorageClassifications {
		r.Storage = append(r.Storage, agentapi.VMMStorage(c))
	}
	for _, v := range s.VMs {
		x := agentapi.VMMVM{ID: v.ID, VMMID: v.VMMID, Name: v.Name, Cloud: v.Cloud, Host: v.Host}
		for _, n := range v.Adapters {
			x.Adapters = append(x.Adapters, agentapi.VMMNIC(n))
		}
		r.VMs = append(r.VMs, x)
	}
	return r
}

// None is the host of a machine without a hypervisor: it has no VMs and no
// networks, and refuses everything else with dr.KindUnsupported.
type None struct{}

var _ hypervisor.Host = None{}

func refuse(op string) error {
	return dr.Errorf(dr.KindUnsupported, "managed."+op, "this agent serves a VMM server and has no hypervisor").
		WithHint("the hosts that VMM manages need agents of their own")
}

// Info tells the machine's name.
func (None) Info(context.Context) (hypervisor.HostInfo, error) {
	name, err := os.Hostname()
	if err != nil {
		return hypervisor.HostInfo{}, dr.Errorf(dr.KindInternal, "managed.Info", "ask for this machine's name: %w", err)
	}
	return hypervisor.HostInfo{Name: name, Hypervisor: "Virtual Machine Manager"}, nil
}

// Inventory is empty.
func (None) Inventory(context.Context) ([]dr.VM, error) { return nil, nil }

// Networks is empty.
func (None) Networks(context.Context) ([]hypervisor.Network, error) { return nil, nil }

// Config knows no VM.
func (None) Config(_ context.Context, vm dr.VMID) (hypervisor.VMConfig, error) {
	return hypervisor.VMConfig{}, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "managed.Config", "VM %s is not on this machine, which has no hypervisor", vm)
}

// Watch waits for the end of ctx: nothing happens here.
func (None) Watch(ctx context.Context, _ func(hypervisor.Event)) error {
	<-ctx.Done()
	return nil
}

// Close does nothing.
func (None) Close() error { return nil }

// The rest is refused.

func (None) BeginCut(context.Context, hypervisor.CutRequest) (hypervisor.Cut, error) {
	return nil, refuse("BeginCut")
}
func (None) Forget(context.Context, dr.VMID, []string) error { return refuse("Forget") }
func (None) State(context.Context, dr.VMID) (hypervisor.PowerState, error) {
	return "", refuse("State")
}
func (None) Start(context.Context, dr.VMID) error    { return refuse("Start") }
func (None) Shutdown(context.Context, dr.VMID) error { return refuse("Shutdown") }
func (None) Destroy(context.Context, dr.VMID) error  { return refuse("Destroy") }
func (None) Boot(context.Context, hypervisor.BootSpec) (dr.VMID, error) {
	return "", refuse("Boot")
}
func (None) MakeLocal(context.Context, dr.VMID, func(done, total int64)) error {
	return refuse("MakeLocal")
}
func (None) Remove(context.Context, dr.VMID, string) error { return refuse("Remove") }
func (None) Screenshot(context.Context, dr.VMID) ([]byte, error) {
	return nil, refuse("Screenshot")
}
func (None) SerialLog(context.Context, dr.VMID, int) ([]byte, error) {
	return nil, refuse("SerialLog")
}
