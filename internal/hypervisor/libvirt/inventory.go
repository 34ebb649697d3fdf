package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// maxNVRAM is far above the size of any firmware's variable store.
const maxNVRAM = 16 << 20

// Inventory lists all domains, running or not.
func (h *Host) Inventory(ctx context.Context) ([]dr.VM, error) {
	var doms []golibvirt.Domain
	err := h.virt.Call(ctx, "Inventory", "list the VMs", func(c *virt.Conn) (err error) {
		doms, _, err = c.ConnectListAllDomains(1, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	vms := make([]dr.VM, 0, len(doms))
	for _, dom := range doms {
		vm, err := h.describe(ctx, "Inventory", dom)
		if dr.CodeOf(err) == dr.CodeVMNotFound {
			continue // gone since the listing
		}
		if err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	slices.SortFunc(vms, func(a, b dr.VM) int { return strings.Compare(a.Name, b.Name) })
	return vms, nil
}

// describe reads one domain.
func (h *Host) describe(ctx context.Context, op string, dom golibvirt.Domain) (dr.VM, error) {
	s, err := h.virt.State(ctx, op, dom)
	if err != nil {
		return dr.VM{}, err
	}
	root, err := h.virt.Tree(ctx, op, dom, virt.Live)
	if err != nil {
		return dr.VM{}, err
	}
	vm := domxml.Read(root)
	vm.ID, vm.Running, vm.Seen = virt.ID(dom.UUID), virt.Active(s), time.Now()
	for i := range vm.Disks {
		if err := h.virt.Measure(ctx, op, dom, &vm.Disks[i]); err != nil {
			return dr.VM{}, err
		}
	}
	if vm.Running {
		h.addresses(ctx, dom, vm.NICs)
	}
	return vm, nil
}

// addresses adds what libvirt's own DHCP servers know; it never asks the guest.
func (h *Host) addresses(ctx context.Context, dom golibvirt.Domain, nics []dr.NIC) {
	if !slices.ContainsFunc(nics, func(n dr.NIC) bool { return n.Type == "network" }) {
		return
	}
	err := h.virt.Call(ctx, "Inventory", "read the addresses of VM "+dom.Name, func(c *virt.Conn) error {
		list, err := c.DomainInterfaceAddresses(dom, uint32(golibvirt.DomainInterfaceAddressesSrcLease), 0)
		for _, i := range list {
			for k := range nics {
				if len(i.Hwaddr) == 0 || !strings.EqualFold(nics[k].MAC, i.Hwaddr[0]) {
					continue
				}
				for _, a := range i.Addrs {
					nics[k].IPs = append(nics[k].IPs, a.Addr)
				}
			}
		}
		return err
	})
	if err != nil {
		h.log.Debug("no DHCP leases", "vm", dom.Name, "err", err)
	}
}

// Config returns what Boot needs at another host: the persistent definition in
// its migratable form (a transient domain's live one) and the NVRAM file.
func (h *Host) Config(ctx context.Context, id dr.VMID) (hypervisor.VMConfig, error) {
	dom, err := h.virt.Find(ctx, "Config", id)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	vm, err := h.describe(ctx, "Config", dom)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	root, err := h.virt.Tree(ctx, "Config", dom, virt.Capture)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	live, err := h.virt.Tree(ctx, "Config", dom, virt.Live)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	domxml.KeepFirmware(root, live)
	cfg := hypervisor.VMConfig{VM: vm, Native: map[string][]byte{domxml.NativeXML: []byte(root.String())}}
	if path := live.At("os", "nvram").Trimmed(); path != "" {
		b, err := readLimited(path, maxNVRAM)
		switch {
		case errors.Is(err, os.ErrNotExist): // never started
		case err != nil:
			h.log.Warn("the firmware variables of the VM can't be read; its replica starts with default ones", "vm", dom.Name, "path", path, "err", err)
		default:
			cfg.Native[domxml.NativeNVRAM] = b
		}
	}
	return cfg, nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, err
}

// Networks lists libvirt's networks; unprivileged hosts have only user-mode networking.
func (h *Host) Networks(ctx context.Context) ([]hypervisor.Network, error) {
	if h.virt.Session() {
		return []hypervisor.Network{{Name: domxml.UserNetwork, Active: true}}, nil
	}
	var list []hypervisor.Network
	err := h.virt.CallNetworks(ctx, "Networks", "list the networks", func(c *virt.Conn) error {
		nets, _, err := c.ConnectListAllNetworks(1, 0)
		if err != nil {
			return err
		}
		for _, n := range nets {
			on, err := c.NetworkIsActive(n)
			if virt.IsCode(err, golibvirt.ErrNoNetwork) {
				continue
			}
			if err != nil {
				return err
			}
			doc, err := c.NetworkGetXMLDesc(n, 0)
			if virt.IsCode(err, golibvirt.ErrNoNetwork) {
				continue
			}
			if err != nil {
				return err
			}
			root, err := domxml.Parse([]byte(doc))
			if err != nil {
				return err
			}
			list = append(list, hypervisor.Network{Name: n.Name, Active: on == 1, Isolated: root.At("forward") == nil})
		}
		return nil
	})
	return list, err
}
