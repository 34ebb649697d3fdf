package domxml

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// metadataNS names Holdfast's metadata element in a domain:
// <holdfast:recovery xmlns:holdfast="urn:holdfast:libvirt:1" owner="…"/>
const metadataNS = "urn:holdfast:libvirt:1"

// Native parts of a hypervisor.VMConfig.
const (
	NativeXML   = "libvirt.xml"
	NativeNVRAM = "nvram"
)

// UserNetwork as a network name is what unprivileged hosts have: the VM reaches out, nobody reaches in.
const UserNetwork = "user"

// Capabilities is what matters of a host for a recovery VM.
type Capabilities struct {
	arches     map[string]map[string]bool // arch -> machine types
	kvm        map[string]bool            // arch -> hardware virtualisation
	SWTPM      bool                       // a software TPM can be had
	Privileged bool                       // qemu:///system
}

// ReadCapabilities translates the host's capabilities document.
func ReadCapabilities(root *Node) Capabilities {
	c := Capabilities{arches: map[string]map[string]bool{}, kvm: map[string]bool{}}
	for _, g := range root.All("guest") {
		if g.At("os_type").Trimmed() != "hvm" {
			continue
		}
		arch := g.At("arch")
		name := arch.Get("name")
		machines := map[string]bool{}
		collect := func(n *Node) {
			for _, m := range n.All("machine") {
				machines[m.Trimmed()] = true
			}
		}
		collect(arch)
		for _, d := range arch.All("domain") {
			collect(d)
			if d.Get("type") == "kvm" {
				c.kvm[name] = true
			}
		}
		c.arches[name] = machines
	}
	return c
}

// Plan is everything that the recovery domain's XML depends on.
type Plan struct {
	Spec    hypervisor.BootSpec
	UUID    string
	Dir     string // of the VM's own files: serial log, NVRAM, VNC socket
	Accel   string // "kvm", "tcg", or "" for KVM if the host has it
	Caps    Capabilities
	Network string // libvirt network, or UserNetwork; "" = link down
	// Attach has the same for the networks of Spec.Adapters.
	Attach map[string]string
	Exists func(path string) bool // of files on this host
}

// NVRAMPath is where the firmware's variables of the recovery VM are.
func (p Plan) NVRAMPath() string { return filepath.Join(p.Dir, "nvram.fd") }

// SerialPath is what the first serial port writes to.
func (p Plan) SerialPath() string { return filepath.Join(p.Dir, "serial.log") }

// Domain turns the captured configuration into that of the recovery VM.
// What this function does not know is kept, what names things of the source
// host is removed.
func (p Plan) Domain() (*Node, error) {
	raw := p.Spec.Config.Native[NativeXML]
	var root *Node
	var err error
	if len(raw) > 0 {
		if root, err = Parse(raw); err != nil {
			return nil, dr.Errorf(dr.KindInvalid, "libvirt.Boot", "captured configuration of VM %s: %w", p.Spec.Name, err)
		}
		if root.Name != "domain" || root.At("devices") == nil {
			return nil, dr.Errorf(dr.KindInvalid, "libvirt.Boot", "captured configuration of VM %s is not a domain", p.Spec.Name)
		}
	} else {
		root = p.fresh()
	}
	arch := root.At("os", "type").Get("arch")
	machines := p.Caps.arches[arch]
	if machines == nil {
		return nil, dr.Errorf(dr.KindUnsupported, "libvirt.Boot", "this host can't run %s VMs, so it can't run %s", arch, p.Spec.Name).
			WithHint("choose a recovery host of the architecture %s", arch)
	}
	kvm := p.Accel == "kvm" || (p.Accel == "" && p.Caps.kvm[arch])
	p.identity(root, kvm)
	p.firmware(root, machines)
	p.sizing(root)
	p.processor(root, kvm)
	if root.At("os", "loader").Get("secure") == "yes" && root.At("features") != nil && root.At("features", "smm") == nil {
		root.At("features").With(El("smm", "state", "on")) // secure boot needs it
	}
	p.devices(root)
	if err := p.disks(root); err != nil {
		return nil, err
	}
	p.interfaces(root)
	return root, nil
}

// fresh describes a VM that comes from another platform.
func (p Plan) fresh() *Node {
	vm := p.Spec.Config.VM
	os := El("os").With(El("type", "arch", "x86_64", "machine", "q35").WithText("hvm"), El("boot", "dev", "hd"))
	if vm.Generation == 2 {
		os.Set("firmware", "efi")
	}
	devices := El("devices")
	bus, model := "sata", "e1000e" // what every guest has drivers for
	if vm.OSType == "Linux" {
		bus, model = "virtio", "virtio"
	}
	for i, d := range p.Spec.Disks {
		dev := d.ID
		if !targetName.MatchString(dev) || strings.HasPrefix(dev, "vd") != (bus == "virtio") {
			dev = map[string]string{"virtio": "vd", "sata": "sd"}[bus] + string(rune('a'+i))
		}
		devices.With(El("disk", "device", "disk", idMark, d.ID).With(El("target", "dev", dev, "bus", bus)))
	}
	for _, n := range vm.NICs {
		i := El("interface")
		if n.MAC != "" {
			i.With(El("mac", "address", n.MAC))
		}
		devices.With(i.With(El("model", "type", model)))
	}
	return El("domain").With(
		El("uuid").WithText(string(vm.ID)), El("memory", "unit", "MiB").WithText(strconv.Itoa(max(vm.MemoryMB, 64))),
		El("vcpu").WithText(strconv.Itoa(max(vm.CPUs, 1))), os, El("features").With(El("acpi"), El("apic")),
		El("cpu", "mode", "host-model"), devices)
}

var targetName = regexp.MustCompile(`^(vd|sd|hd)[a-z]+$`)

// idMark carries a disk's id through fresh to disks; it never reaches libvirt.
const idMark = "holdfast-id"

// identity sets name, UUID, owner and life-cycle actions.
func (p Plan) identity(root *Node, kvm bool) {
	root.Unset("id", "type")
	root.Set("type", "qemu")
	if kvm {
		root.Set("type", "kvm")
	}
	root.Replace("name", El("name").WithText(p.Spec.Name))
	root.Replace("uuid", El("uuid").WithText(p.UUID))
	if root.At("genid") != nil { // the guest has to notice that it went back in time
		root.Replace("genid", El("genid"))
	}
	meta := root.At("metadata")
	if meta == nil {
		meta = El("metadata")
		root.With(meta)
	}
	meta.DropIf(func(n *Node) bool {
		return strings.HasSuffix(n.Name, ":recovery") && n.Get("xmlns:holdfast") == metadataNS
	})
	meta.With(El("holdfast:recovery", "xmlns:holdfast", metadataNS, "owner", p.Spec.Owner, "source", string(p.Spec.Config.VM.ID)))
	for _, s := range root.All("sysinfo") { // its UUID must be the domain's
		if sys := s.At("system"); sys != nil {
			sys.DropIf(func(n *Node) bool { return n.Get("name") == "uuid" })
		}
	}
	root.Replace("on_poweroff", El("on_poweroff").WithText("destroy"))
	if !p.Spec.KeepUUID { // a drill: keep a crashed guest for the screenshot
		root.Replace("on_crash", El("on_crash").WithText("preserve"))
	}
	root.Drop("seclabel", "cputune", "numatune", "resource", "blkiotune", "iothreadids", "memtune", "qemu:commandline", "qemu:override", "launchSecurity", "bootloader", "bootloader_args")
	if mb := root.At("memoryBacking"); mb != nil {
		mb.Drop("hugepages", "source", "access", "allocation", "nosharepages", "locked")
	}
}

// firmware maps machine type and boot files to what this host has.
func (p Plan) firmware(root *Node, machines map[string]bool) {
	os := root.At("os")
	typ := os.At("type")
	if m := typ.Get("machine"); !machines[m] {
		typ.Set("machine", canonicalMachine(m, machines))
	}
	for _, name := range []string{"kernel", "initrd", "dtb"} {
		if f := os.At(name); f != nil && !p.Exists(f.Trimmed()) {
			os.Drop("kernel", "initrd", "dtb", "cmdline")
			break
		}
	}
	loader := os.At("loader")
	efi := os.Get("firmware") == "efi" || loader.Get("type") == "pflash"
	if !efi {
		if loader != nil && !p.Exists(loader.Trimmed()) {
			os.Drop("loader")
		}
		return
	}
	template := os.At("nvram").Get("template")
	os.Drop("nvram")
	nv := El("nvram").WithText(p.NVRAMPath())
	if loader.Trimmed() != "" && p.Exists(loader.Trimmed()) {
		// The very same firmware: its variables fit. libvirt must not choose another one.
		os.Unset("firmware")
		os.Drop("firmware")
		if template != "" && p.Exists(template) {
			nv.Set("template", template)
		}
	} else {
		os.Drop("loader")
		os.Set("firmware", "efi")
	}
	os.With(nv)
}

// KeepFirmware adds to a captured definition which firmware libvirt had
// chosen for the running VM, for the variables of one don't fit another.
func KeepFirmware(captured, live *Node) {
	os := captured.At("os")
	loader := live.At("os", "loader")
	if os == nil || os.At("loader") != nil || loader == nil {
		return
	}
	os.With(loader)
	if nv := live.At("os", "nvram"); nv != nil && os.At("nvram") == nil {
		os.With(nv)
	}
}

// canonicalMachine finds the unversioned type of the same family.
func canonicalMachine(m string, have map[string]bool) string {
	for _, f := range []struct{ part, name string }{{"q35", "q35"}, {"i440fx", "pc"}, {"pc-", "pc"}, {"virt", "virt"}, {"s390", "s390-ccw-virtio"}, {"pseries", "pseries"}} {
		if strings.Contains(m, f.part) && have[f.name] {
			return f.name
		}
	}
	return m
}

// sizing applies other numbers of CPUs and memory than the captured ones.
func (p Plan) sizing(root *Node) {
	if p.Spec.CPUs > 0 {
		root.Replace("vcpu", El("vcpu").WithText(strconv.Itoa(p.Spec.CPUs)))
		root.Drop("vcpus")
		root.At("cpu").Drop("topology", "numa")
	} else if v := root.At("vcpu"); v != nil {
		v.Unset("cpuset", "placement")
	}
	if p.Spec.MemoryMB > 0 {
		root.Replace("memory", El("memory", "unit", "MiB").WithText(strconv.Itoa(p.Spec.MemoryMB)))
		root.Drop("currentMemory", "maxMemory")
		root.At("cpu").Drop("numa")
		root.At("devices").Drop("memory")
	}
}

// processor adapts CPU, features and clock to the accelerator.
func (p Plan) processor(root *Node, kvm bool) {
	if kvm {
		return
	}
	cpu := El("cpu", "mode", "maximum")
	if old := root.At("cpu"); old != nil {
		for _, k := range []string{"topology", "numa"} {
			if n := old.At(k); n != nil {
				cpu.With(n)
			}
		}
	}
	root.Replace("cpu", cpu)
	root.At("features").Drop("hyperv", "kvm", "pvspinlock", "ioapic", "vmport", "htm", "nested-hv")
	root.At("clock").DropIf(func(n *Node) bool {
		return n.Name == "timer" && slices.Contains([]string{"hypervclock", "kvmclock", "tsc", "armvtimer"}, n.Get("name"))
	})
}

// devices removes what belongs to the source host and sets up display and serial port.
func (p Plan) devices(root *Node) {
	dev := root.At("devices")
	dev.Drop("emulator", "hostdev", "redirdev", "smartcard", "filesystem", "shmem", "audio", "graphics", "serial", "console", "parallel", "vsock", "lease", "nvram", "crypto")
	dev.DropIf(func(n *Node) bool {
		return n.Name == "tpm" && (n.At("backend").Get("type") != "emulator" || !p.Caps.SWTPM) ||
			n.Name == "channel" && (n.Get("type") != "unix" || n.At("target").Get("type") != "virtio") ||
			n.Name == "rng" && n.At("backend").Get("model") == "egd" ||
			n.Name == "input" && (n.Get("type") == "passthrough" || n.Get("type") == "evdev")
	})
	for _, ch := range dev.All("channel") {
		ch.Drop("source")
	}
	for _, t := range dev.All("tpm") {
		t.At("backend").Drop("encryption", "source")
	}
	for _, d := range dev.All("disk") { // media of removable drives are files of the source host
		if d.Get("device") == "cdrom" || d.Get("device") == "floppy" {
			d.Drop("source", "backingStore", "mirror")
			d.Set("type", "file")
		}
	}
	dev.With(El("serial", "type", "file").With(El("source", "path", p.SerialPath(), "append", "on"), El("target", "port", "0")))
	dev.With(El("graphics", "type", "vnc").With(El("listen", "type", "socket", "socket", filepath.Join(p.Dir, "vnc.sock"))))
	video := dev.At("video", "model")
	switch {
	case video == nil || video.Get("type") == "none":
		dev.Replace("video", El("video").With(El("model", "type", "vga")))
	case !slices.Contains([]string{"vga", "virtio", "cirrus", "bochs", "ramfb"}, video.Get("type")):
		dev.Replace("video", El("video").With(El("model", "type", "vga")))
	default:
		video.Drop("acceleration")
	}
}

// disks puts the overlays in the place of the captured disks; disks that are
// not part of the recovery point are left out.
func (p Plan) disks(root *Node) error {
	dev := root.At("devices")
	want := map[string]hypervisor.BootDisk{}
	for _, d := range p.Spec.Disks {
		want[d.ID] = d
	}
	placed := map[string]bool{}
	dev.DropIf(func(n *Node) bool {
		if n.Name != "disk" || n.Get("device") == "cdrom" || n.Get("device") == "floppy" {
			return false
		}
		id := n.Get(idMark)
		if id == "" {
			id = n.At("target").Get("dev")
		}
		d, ok := want[id]
		if !ok || placed[id] {
			return true
		}
		placed[id] = true
		n.Unset(idMark, "model", "rawio", "sgio", "snapshot", "holdfast-id")
		n.Set("type", "file")
		n.Set("device", "disk")
		n.Drop("driver", "auth", "source", "backingStore", "mirror", "shareable", "transient", "readonly", "encryption", "seclabel", "iotune")
		n.Kids = append([]*Node{El("driver", "name", "qemu", "type", "qcow2", "discard", "unmap"), El("source", "file", d.Path)}, n.Kids...)
		return false
	})
	for _, d := range p.Spec.Disks {
		if !placed[d.ID] {
			return dr.Errorf(dr.KindInvalid, "libvirt.Boot", "the captured configuration of VM %s has no disk %s", p.Spec.Name, d.ID)
		}
	}
	return nil
}

// interfaces connects the adapters; only MAC, model and place are kept.
func (p Plan) interfaces(root *Node) {
	keepMAC := p.Spec.KeepUUID || p.Spec.Network == "" || p.Spec.Network == hypervisor.IsolatedNetwork
	for _, n := range root.At("devices").All("interface") {
		network := p.Network
		if len(p.Spec.Adapters) > 0 {
			network = p.Attach[p.Spec.NIC(n.At("mac").Get("address")).Network]
		}
		n.DropIf(func(k *Node) bool {
			return !slices.Contains([]string{"mac", "model", "address", "boot", "rom", "mtu"}, k.Name) || k.Name == "mac" && !keepMAC
		})
		n.Attrs = nil
		switch {
		case network == UserNetwork && !p.Caps.Privileged:
			n.Set("type", "user")
		case network != "":
			n.Set("type", "network")
			n.With(El("source", "network", network))
		default:
			// Not type 'null', which looks made for this: it crashes the daemon of libvirt 9.0.
			n.Set("type", "user")
			n.With(El("link", "state", "down"))
		}
	}
}

// OwnerOf returns who made a recovery VM; "" if Boot did not make it.
func OwnerOf(root *Node) string {
	meta := root.At("metadata")
	if meta == nil {
		return ""
	}
	for _, n := range meta.Kids {
		if strings.HasSuffix(n.Name, "recovery") {
			for _, a := range n.Attrs {
				if strings.HasPrefix(a.Name, "xmlns") && a.Value == metadataNS {
					return n.Get("owner")
				}
			}
		}
	}
	return ""
}
