package domxml

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/dr"
)

// HostDevice begins the ids of disks that are devices of the host and no block device of the domain.
const HostDevice = "hostdev"

// Read translates a domain's XML into the neutral description.
func Read(root *Node) dr.VM {
	vm := dr.VM{ID: dr.VMID(strings.ToLower(root.At("uuid").Trimmed())), Name: root.At("name").Trimmed(), Generation: 1}
	loader := root.At("os", "loader")
	if root.At("os").Get("firmware") == "efi" || loader.Get("type") == "pflash" {
		vm.Generation = 2
	}
	vm.CPUs, _ = strconv.Atoi(root.At("vcpu").Trimmed())
	if n, err := strconv.Atoi(root.At("vcpu").Get("current")); err == nil {
		vm.CPUs = n
	}
	vm.MemoryMB = memoryMB(root.At("memory"))
	vm.OSType = osType(root)
	for _, d := range root.At("devices").All("disk") {
		if disk, ok := readDisk(d); ok {
			vm.Disks = append(vm.Disks, disk)
		}
	}
	for i, d := range root.At("devices").All("hostdev") {
		if d.Get("type") == "scsi" {
			vm.Disks = append(vm.Disks, dr.Disk{ID: fmt.Sprintf("%s%d", HostDevice, i), PassThru: true,
				Unreplicatable: "it is a SCSI device of the host handed to the VM: move the data to a qcow2 disk, or exclude it"})
		}
	}
	markBoot(root, vm.Disks)
	for _, n := range root.At("devices").All("interface") {
		vm.NICs = append(vm.NICs, readNIC(n))
	}
	return vm
}

func readNIC(n *Node) dr.NIC {
	src := n.At("source")
	nic := dr.NIC{MAC: strings.ToLower(n.At("mac").Get("address")), Type: n.Get("type")}
	nic.ID = nic.MAC
	for _, a := range []string{"network", "bridge", "dev"} {
		if v := src.Get(a); v != "" {
			nic.Network = v
			break
		}
	}
	return nic
}

// memoryMB reads libvirt's scaled integer, rounded up to MiB.
func memoryMB(n *Node) int {
	v, err := strconv.ParseInt(n.Trimmed(), 10, 64)
	if err != nil || v < 0 {
		return 0
	}
	unit := map[string]int64{"b": 1, "bytes": 1, "kb": 1000, "k": 1 << 10, "kib": 1 << 10, "mb": 1e6, "m": 1 << 20, "mib": 1 << 20,
		"gb": 1e9, "g": 1 << 30, "gib": 1 << 30, "tb": 1e12, "t": 1 << 40, "tib": 1 << 40}[strings.ToLower(n.Get("unit"))]
	if unit == 0 {
		unit = 1 << 10
	}
	if v > (1<<62)/unit {
		return 0
	}
	return int((v*unit + 1<<20 - 1) >> 20)
}

// osType guesses from what installers leave behind.
func osType(root *Node) string {
	var id string
	var walk func(*Node)
	walk = func(n *Node) {
		if strings.HasPrefix(n.Get("id"), "http") && strings.HasSuffix(n.Name, "os") {
			id = n.Get("id")
		}
		for _, k := range n.Kids {
			walk(k)
		}
	}
	if m := root.At("metadata"); m != nil {
		walk(m)
	}
	switch {
	case strings.Contains(id, "microsoft"):
		return "Windows"
	case id != "":
		return "Linux"
	case root.At("features", "hyperv") != nil:
		return "Windows"
	}
	return ""
}

// readDisk translates a <disk>; false for what holds no data of the VM.
func readDisk(n *Node) (dr.Disk, bool) {
	device := n.Get("device")
	if device == "cdrom" || device == "floppy" {
		return dr.Disk{}, false
	}
	src := n.At("source")
	d := dr.Disk{ID: n.At("target").Get("dev"), Format: n.At("driver").Get("type"), Shared: n.At("shareable") != nil}
	kind := n.Get("type")
	for _, a := range []string{"file", "dev", "dir", "name", "volume"} {
		if v := src.Get(a); v != "" {
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
	case n.At("transient") != nil:
		d.Unreplicatable = "it is transient, its changes are thrown away at shutdown: exclude it"
	case n.At("readonly") != nil:
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
func markBoot(root *Node, disks []dr.Disk) {
	best, bestOrder := 0, int(^uint(0)>>1)
	for _, n := range root.At("devices").All("disk") {
		order, err := strconv.Atoi(n.At("boot").Get("order"))
		if err != nil || order >= bestOrder {
			continue
		}
		if i := slices.IndexFunc(disks, func(d dr.Disk) bool { return d.ID == n.At("target").Get("dev") }); i >= 0 {
			best, bestOrder = i, order
		}
	}
	if best < len(disks) {
		disks[best].Boot = true
	}
}

// HasBacking reports whether a disk of a running domain still reads from another image.
func HasBacking(root *Node, disk string) bool {
	for _, d := range root.At("devices").All("disk") {
		if d.At("target").Get("dev") == disk {
			return d.At("backingStore").Get("type") != ""
		}
	}
	return false
}

// AgentConnected reports whether a guest agent has opened its channel.
func AgentConnected(root *Node) bool {
	ch := agentChannel(root)
	return ch.At("target").Get("state") == "connected"
}

// AgentSocket is the host's end of the guest agent's channel, "" if a running domain has none.
func AgentSocket(root *Node) string {
	ch := agentChannel(root)
	if ch.Get("type") != "unix" {
		return ""
	}
	return ch.At("source").Get("path")
}

func agentChannel(root *Node) *Node {
	for _, ch := range root.At("devices").All("channel") {
		if ch.At("target").Get("name") == "org.qemu.guest_agent.0" {
			return ch
		}
	}
	return nil
}
