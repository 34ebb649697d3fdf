package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// flags of DomainGetXMLDesc
const (
	xmlInactive   = golibvirt.DomainXMLInactive
	xmlMigratable = golibvirt.DomainXMLMigratable
)

// Native parts of a VMConfig.
const (
	nativeXML   = "libvirt.xml"
	nativeNVRAM = "nvram"
)

// maxNVRAM is far above the size of any firmware's variable store.
const maxNVRAM = 16 << 20

// Inventory lists all domains, running or not.
func (h *Host) Inventory(ctx context.Context) ([]dr.VM, error) {
	var doms []golibvirt.Domain
	err := h.call(ctx, "Inventory", "list the VMs", func(c *conn) (err error) {
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
	s, err := h.state(ctx, op, dom)
	if err != nil {
		return dr.VM{}, err
	}
	root, err := h.domainTree(ctx, op, dom, 0)
	if err != nil {
		return dr.VM{}, err
	}
	vm := readDomain(root)
	vm.ID, vm.Running, vm.Seen = vmID(dom.UUID), active(s), time.Now()
	for i := range vm.Disks {
		if vm.Disks[i].PassThru && vm.Disks[i].Path == "" {
			continue
		}
		if err := h.measure(ctx, op, dom, &vm.Disks[i]); err != nil {
			return dr.VM{}, err
		}
	}
	if vm.Running {
		h.addresses(ctx, dom, vm.NICs)
	}
	return vm, nil
}

// domainTree fetches and parses a domain's XML.
func (h *Host) domainTree(ctx context.Context, op string, dom golibvirt.Domain, flags golibvirt.DomainXMLFlags) (*node, error) {
	var doc string
	err := h.call(ctx, op, "read the configuration of VM "+dom.Name, func(c *conn) (err error) {
		doc, err = c.DomainGetXMLDesc(dom, flags)
		return err
	})
	if err != nil {
		return nil, err
	}
	root, err := parseTree([]byte(doc))
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, "libvirt."+op, "configuration of VM %s: %w", dom.Name, err)
	}
	return root, nil
}

// blockSize asks for a disk's virtual size.
func (h *Host) blockSize(ctx context.Context, op string, dom golibvirt.Domain, disk string) (int64, error) {
	var size int64
	err := h.call(ctx, op, fmt.Sprintf("measure disk %s of VM %s", disk, dom.Name), func(c *conn) error {
		_, capacity, _, err := c.DomainGetBlockInfo(dom, disk, 0)
		size = int64(capacity)
		return err
	})
	return size, err
}

// measure fills in a disk's virtual size and what its image's header says
// against tracking. A disk whose size libvirt can't tell can't be replicated.
func (h *Host) measure(ctx context.Context, op string, dom golibvirt.Domain, d *dr.Disk) error {
	size, err := h.blockSize(ctx, op, dom, d.ID)
	if err != nil && (!answered(err) || dr.CodeOf(err) == dr.CodeVMNotFound || dr.CodeOf(err) == dr.CodeHypervisorTimeout) {
		return err // could not ask
	}
	d.Size = size
	switch {
	case d.Unreplicatable != "":
	case err != nil:
		d.Unreplicatable = "its size can't be determined: " + err.Error()
	case d.Format == "qcow2":
		if v, _, err := qcow2Header(d.Path); err == nil && v < 3 {
			d.Unreplicatable = fmt.Sprintf("its qcow2 image has the old format version %d, which can't keep change tracking: shut the VM down and run 'qemu-img amend -o compat=1.1 %s'", v, d.Path)
		}
	}
	return nil
}

// qcow2Header reads version and cluster size. Format: QEMU's docs/interop/qcow2.txt,
// big-endian: 0 magic "QFI\xfb", 4 version, 20 cluster_bits.
func qcow2Header(path string) (formatVersion int, clusterSize int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var b [24]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return 0, 0, err
	}
	bits := binary.BigEndian.Uint32(b[20:])
	if string(b[:4]) != "QFI\xfb" || bits < 9 || bits > 21 {
		return 0, 0, errors.New("not a qcow2 image")
	}
	return int(binary.BigEndian.Uint32(b[4:])), 1 << bits, nil
}

// addresses adds what libvirt's own DHCP servers know; it never asks the guest.
func (h *Host) addresses(ctx context.Context, dom golibvirt.Domain, nics []dr.NIC) {
	if !slices.ContainsFunc(nics, func(n dr.NIC) bool { return n.Type == "network" }) {
		return
	}
	err := h.call(ctx, "Inventory", "read the addresses of VM "+dom.Name, func(c *conn) error {
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

// readDomain translates a domain's XML into the neutral description.
func readDomain(root *node) dr.VM {
	vm := dr.VM{ID: dr.VMID(strings.ToLower(root.at("uuid").trimmed())), Name: root.at("name").trimmed(), Generation: 1}
	loader := root.at("os", "loader")
	if root.at("os").attr("firmware") == "efi" || loader.attr("type") == "pflash" {
		vm.Generation = 2
	}
	vm.CPUs, _ = strconv.Atoi(root.at("vcpu").trimmed())
	if n, err := strconv.Atoi(root.at("vcpu").attr("current")); err == nil {
		vm.CPUs = n
	}
	vm.MemoryMB = memoryMB(root.at("memory"))
	vm.OSType = osType(root)
	for _, d := range root.at("devices").all("disk") {
		if disk, ok := readDisk(d); ok {
			vm.Disks = append(vm.Disks, disk)
		}
	}
	for i, d := range root.at("devices").all("hostdev") {
		if d.attr("type") == "scsi" {
			vm.Disks = append(vm.Disks, dr.Disk{ID: fmt.Sprintf("hostdev%d", i), PassThru: true,
				Unreplicatable: "it is a SCSI device of the host handed to the VM: move the data to a qcow2 disk, or exclude it"})
		}
	}
	markBoot(root, vm.Disks)
	for _, n := range root.at("devices").all("interface") {
		vm.NICs = append(vm.NICs, readNIC(n))
	}
	return vm
}

func readNIC(n *node) dr.NIC {
	src := n.at("source")
	nic := dr.NIC{MAC: strings.ToLower(n.at("mac").attr("address")), Type: n.attr("type")}
	nic.ID = nic.MAC
	for _, a := range []string{"network", "bridge", "dev"} {
		if v := src.attr(a); v != "" {
			nic.Network = v
			break
		}
	}
	return nic
}

// memoryMB reads libvirt's scaled integer, rounded up to MiB.
func memoryMB(n *node) int {
	v, err := strconv.ParseInt(n.trimmed(), 10, 64)
	if err != nil || v < 0 {
		return 0
	}
	unit := map[string]int64{"b": 1, "bytes": 1, "kb": 1000, "k": 1 << 10, "kib": 1 << 10, "mb": 1e6, "m": 1 << 20, "mib": 1 << 20,
		"gb": 1e9, "g": 1 << 30, "gib": 1 << 30, "tb": 1e12, "t": 1 << 40, "tib": 1 << 40}[strings.ToLower(n.attr("unit"))]
	if unit == 0 {
		unit = 1 << 10
	}
	if v > (1<<62)/unit {
		return 0
	}
	return int((v*unit + 1<<20 - 1) >> 20)
}

// osType guesses from what installers leave behind.
func osType(root *node) string {
	var id string
	var walk func(*node)
	walk = func(n *node) {
		if strings.HasPrefix(n.attr("id"), "http") && strings.HasSuffix(n.name, "os") {
			id = n.attr("id")
		}
		for _, k := range n.kids {
			walk(k)
		}
	}
	if m := root.at("metadata"); m != nil {
		walk(m)
	}
	switch {
	case strings.Contains(id, "microsoft"):
		return "Windows"
	case id != "":
		return "Linux"
	case root.at("features", "hyperv") != nil:
		return "Windows"
	}
	return ""
}

// readDisk translates a <disk>; false for what holds no data of the VM.
func readDisk(n *node) (dr.Disk, bool) {
	device := n.attr("device")
	if device == "cdrom" || device == "floppy" {
		return dr.Disk{}, false
	}
	src := n.at("source")
	d := dr.Disk{ID: n.at("target").attr("dev"), Format: n.at("driver").attr("type"), Shared: n.at("shareable") != nil}
	kind := n.attr("type")
	for _, a := range []string{"file", "dev", "dir", "name", "volume"} {
		if v := src.attr(a); v != "" {
			d.Path = v
			break
		}
	}
	if d.Format == "" {
		d.Format = "raw"
	}
	switch {
	case device == "lun":
		d.PassThru = true
		d.Unreplicatable = "it is a SCSI LUN handed to the VM: move the data to a qcow2 disk, or exclude it"
	case d.Shared:
		d.Unreplicatable = "it is shared with other VMs: exclude it, or replicate inside the guests"
	case n.at("transient") != nil:
		d.Unreplicatable = "it is transient, its changes are thrown away at shutdown: exclude it"
	case n.at("readonly") != nil:
		d.Unreplicatable = "it is attached read-only: exclude it, or attach it writable"
	case d.Path == "":
		d.Unreplicatable = "it has no image"
	case d.Format == "qcow2" && (kind == "file" || kind == "block" || kind == "network" || kind == "volume"):
	case kind == "block":
		d.PassThru = true
		d.Unreplicatable = fmt.Sprintf("it is the host's device %s with %s content, which has no change tracking: shut the VM down and move it to a qcow2 image with 'qemu-img convert -O qcow2'", d.Path, d.Format)
	default:
		d.Unreplicatable = fmt.Sprintf("its format %s has no persistent change tracking: shut the VM down and convert it with 'qemu-img convert -O qcow2 %s NEW.qcow2'", d.Format, d.Path)
	}
	return d, true
}

// markBoot finds the disk that the firmware starts from: the lowest boot
// order, else the first disk.
func markBoot(root *node, disks []dr.Disk) {
	best, bestOrder := 0, int(^uint(0)>>1)
	for _, n := range root.at("devices").all("disk") {
		order, err := strconv.Atoi(n.at("boot").attr("order"))
		if err != nil || order >= bestOrder {
			continue
		}
		if i := slices.IndexFunc(disks, func(d dr.Disk) bool { return d.ID == n.at("target").attr("dev") }); i >= 0 {
			best, bestOrder = i, order
		}
	}
	if best < len(disks) {
		disks[best].Boot = true
	}
}

// Config returns what Boot needs at another host: the persistent definition in
// its migratable form (a transient domain's live one) and the NVRAM file.
func (h *Host) Config(ctx context.Context, id dr.VMID) (hypervisor.VMConfig, error) {
	dom, err := h.find(ctx, "Config", id)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	vm, err := h.describe(ctx, "Config", dom)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	root, err := h.domainTree(ctx, "Config", dom, xmlInactive|xmlMigratable)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	cfg := hypervisor.VMConfig{VM: vm, Native: map[string][]byte{nativeXML: []byte(root.String())}}
	live, err := h.domainTree(ctx, "Config", dom, 0)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	if path := live.at("os", "nvram").trimmed(); path != "" {
		b, err := readLimited(path, maxNVRAM)
		switch {
		case errors.Is(err, os.ErrNotExist): // never started
		case err != nil:
			h.log.Warn("the firmware variables of the VM can't be read; its replica starts with default ones", "vm", dom.Name, "path", path, "err", err)
		default:
			cfg.Native[nativeNVRAM] = b
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
	if h.cfg.URI == uriSession {
		return []hypervisor.Network{{Name: userNetwork, Active: true}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	var list []hypervisor.Network
	err := h.nets.do(ctx, func(c *conn) error {
		nets, _, err := c.ConnectListAllNetworks(1, 0)
		if err != nil {
			return err
		}
		for _, n := range nets {
			on, err := c.NetworkIsActive(n)
			if isCode(err, golibvirt.ErrNoNetwork) {
				continue
			}
			if err != nil {
				return err
			}
			doc, err := c.NetworkGetXMLDesc(n, 0)
			if isCode(err, golibvirt.ErrNoNetwork) {
				continue
			}
			if err != nil {
				return err
			}
			root, err := parseTree([]byte(doc))
			if err != nil {
				return err
			}
			list = append(list, hypervisor.Network{Name: n.Name, Active: on == 1, Isolated: root.at("forward") == nil})
		}
		return nil
	})
	return list, wrap("Networks", "list the networks", err)
}
