package booting

import (
	"context"
	"slices"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
)

// isolatedSwitch is the private switch behind hypervisor.IsolatedNetwork. The
// adapter makes no switches: where an administrator has not made it, or has made it
// an external or internal one, adapters stay unconnected.
const isolatedSwitch = "holdfast-isolated"

// maxVLAN is the highest VLAN that a port can be in (IEEE 802.1Q).
const maxVLAN = 4094

// planPorts says what adapters a recovery VM gets, and what each is connected to.
// Its addresses are the captured ones in a real failover only: a test gets new ones of the host's own.
func (h *Booter) planPorts(ctx context.Context, m *machine, spec hypervisor.BootSpec) error {
	const op = "Boot"
	paths := map[string]cim.Path{"": {}}
	var switches []msvm.Switch
	nics := spec.Config.VM.NICs
	if len(nics) == 0 && len(spec.Adapters) == 0 && spec.Network != "" { // a name that is wrong shows all the same
		list, err := h.MS.Switches(ctx)
		if err != nil {
			return msvm.Wrap(op, "list the virtual switches", "", err)
		}
		_, err = h.switchFor(ctx, spec.Name, spec.Network, list)
		return err
	}
	for _, n := range nics {
		want := spec.NIC(n.MAC)
		if want.VLAN < 0 || want.VLAN > maxVLAN {
			return dr.Errorf(dr.KindInvalid, "hyperv."+op, "recovery VM %s: adapter %s can't be in VLAN %d", spec.Name, n.MAC, want.VLAN)
		}
		to, known := paths[want.Network]
		if !known {
			if switches == nil {
				list, err := h.MS.Switches(ctx)
				if err != nil {
					return msvm.Wrap(op, "list the virtual switches", "", err)
				}
				switches = append([]msvm.Switch{}, list...)
			}
			var err error
			if to, err = h.switchFor(ctx, spec.Name, want.Network, switches); err != nil {
				return err
			}
			paths[want.Network] = to
		}
		p := msvm.NewPort{Name: "Network Adapter", To: to, VLAN: want.VLAN}
		if spec.KeepUUID {
			p.MAC = bareMAC(n.MAC)
		}
		m.ports = append(m.ports, p)
	}
	return nil
}

// bareMAC renders an address as hosts want it; "" if it is none.
func bareMAC(s string) string {
	s = strings.ToUpper(strings.NewReplacer(":", "", "-", "", ".", "").Replace(s))
	if len(s) != 12 || strings.Trim(s, "0123456789ABCDEF") != "" {
		return ""
	}
	return s
}

// switchFor finds the switch behind a network's name. A zero path means that the adapter stays unconnected.
func (h *Booter) switchFor(ctx context.Context, vm, network string, list []msvm.Switch) (cim.Path, error) {
	const op = "Boot"
	name := network
	if network == hypervisor.IsolatedNetwork {
		name = isolatedSwitch
	}
	i := slices.IndexFunc(list, func(s msvm.Switch) bool { return s.Name == name })
	switch {
	case i >= 0 && network != hypervisor.IsolatedNetwork:
		return list[i].Path, nil
	case i >= 0:
		private, err := h.MS.Private(ctx, list[i])
		if err != nil {
			return cim.Path{}, msvm.Wrap(op, "ask what virtual switch "+name+" is connected to", "", err)
		}
		if private {
			return list[i].Path, nil
		}
		h.log.Warn("the switch for isolated recovery VMs is not a private one; adapters stay unconnected", "vm", vm, "switch", name)
		return cim.Path{}, nil
	case network == hypervisor.IsolatedNetwork:
		h.log.Info("the host has no private switch for isolated recovery VMs; adapters stay unconnected", "vm", vm, "switch", name)
		return cim.Path{}, nil
	}
	return cim.Path{}, dr.New(dr.KindNotFound, dr.CodeSwitchMissing, "hyperv."+op, "the host has no virtual switch %q for recovery VM %s", network, vm)
}
