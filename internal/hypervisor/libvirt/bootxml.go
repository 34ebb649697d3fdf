package libvirt

import (
	"os"
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

// userNetwork is what unprivileged hosts have: the VM reaches out, nobody reaches in.
const userNetwork = "user"

// capabilities is what matters of a host for a recovery VM.
type capabilities struct {
	arches     map[string]map[string]bool // arch -> machine types
	kvm        map[string]bool            // arch -> hardware virtualisation
	nullNIC    bool                       // <interface type='null'> (libvirt 8.7)
	swtpm      bool
	privileged bool
}

func readCapabilities(root *node) capabilities {
	c := capabilities{arches: map[string]map[string]bool{}, kvm: map[string]bool{}}
	for _, g := range root.all("guest") {
		if g.at("os_type").trimmed() != "hvm" {
			continue
		}
		arch := g.at("arch")
		name := arch.attr("name")
		machines := map[string]bool{}
		collect := func(n *node) {
			for _, m := range n.all("machine") {
				machines[m.trimmed()] = true
			}
		}
		collect(arch)
		for _, d := range arch.all("domain") {
			collect(d)
			if d.attr("type") == "kvm" {
				c.kvm[name] = true
			}
		}
		c.arches[name] = machines
	}
	return c
}

// bootPlan is everything that the recovery domain's XML depends on.
type bootPlan struct {
	spec    hypervisor.BootSpec
	uuid    string
	dir     string // of the VM's own files
	nvram   string // file with the captured firmware variables; "" = none
	accel   string
	caps    capabilities
	netName string // network to attach to; "" = link down or nothing
	exists  func(path string) bool
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// domainXML turns the captured configuration into that of the recovery VM.
// What this function does not know is kept, what names things of the source
// host is removed.
func (p bootPlan) domainXML() (*node, error) {
	raw := p.spec.Config.Native[nativeXML]
	var root *node
	var err error
	if len(raw) > 0 {
		if root, err = parseTree(raw); err != nil {
			return nil, dr.Errorf(dr.KindInvalid, "libvirt.Boot", "captured configuration of VM %s: %w", p.spec.Name, err)
		}
		if root.name != "domain" || root.at("devices") == nil {
			return nil, dr.Errorf(dr.KindInvalid, "libvirt.Boot", "captured configuration of VM %s is not a domain", p.spec.Name)
		}
	} else {
		root = p.fresh()
	}
	arch := root.at("os", "type").attr("arch")
	machines := p.caps.arches[arch]
	if machines == nil {
		return nil, dr.Errorf(dr.KindUnsupported, "libvirt.Boot", "this host can't run %s VMs, so it can't run %s", arch, p.spec.Name).
			WithHint("choose a recovery host of the architecture %s", arch)
	}
	kvm := p.accel == "kvm" || (p.accel == "" && p.caps.kvm[arch])
	p.identity(root, kvm)
	p.firmware(root, machines)
	p.sizing(root)
	p.processor(root, kvm)
	p.devices(root)
	if err := p.disks(root); err != nil {
		return nil, err
	}
	p.interfaces(root)
	return root, nil
}

// fresh describes a VM that comes from another platform.
func (p bootPlan) fresh() *node {
	vm := p.spec.Config.VM
	os := el("os").with(el("type", "arch", "x86_64", "machine", "q35").withText("hvm"), el("boot", "dev", "hd"))
	if vm.Generation == 2 {
		os.set("firmware", "efi")
	}
	devices := el("devices")
	bus, model := "sata", "e1000e" // what every guest has drivers for
	if vm.OSType == "Linux" {
		bus, model = "virtio", "virtio"
	}
	for i, d := range p.spec.Disks {
		dev := d.ID
		if !targetName.MatchString(dev) || strings.HasPrefix(dev, "vd") != (bus == "virtio") {
			dev = map[string]string{"virtio": "vd", "sata": "sd"}[bus] + string(rune('a'+i))
		}
		devices.with(el("disk", "device", "disk", idMark, d.ID).with(el("target", "dev", dev, "bus", bus)))
	}
	for _, n := range vm.NICs {
		i := el("interface")
		if n.MAC != "" {
			i.with(el("mac", "address", n.MAC))
		}
		devices.with(i.with(el("model", "type", model)))
	}
	return el("domain").with(
		el("uuid").withText(string(vm.ID)), el("memory", "unit", "MiB").withText(strconv.Itoa(max(vm.MemoryMB, 64))),
		el("vcpu").withText(strconv.Itoa(max(vm.CPUs, 1))), os, el("features").with(el("acpi"), el("apic")),
		el("cpu", "mode", "host-model"), devices)
}

var targetName = regexp.MustCompile(`^(vd|sd|hd)[a-z]+$`)

// idMark carries a disk's id through fresh to disks; it never reaches libvirt.
const idMark = "holdfast-id"

// identity sets name, UUID, owner and life-cycle actions.
func (p bootPlan) identity(root *node, kvm bool) {
	root.unset("id", "type")
	root.set("type", "qemu")
	if kvm {
		root.set("type", "kvm")
	}
	root.replace("name", el("name").withText(p.spec.Name))
	root.replace("uuid", el("uuid").withText(p.uuid))
	if root.at("genid") != nil { // the guest has to notice that it went back in time
		root.replace("genid", el("genid"))
	}
	meta := root.at("metadata")
	if meta == nil {
		meta = el("metadata")
		root.with(meta)
	}
	meta.dropIf(func(n *node) bool {
		return strings.HasSuffix(n.name, ":recovery") && n.attr("xmlns:holdfast") == metadataNS
	})
	meta.with(el("holdfast:recovery", "xmlns:holdfast", metadataNS, "owner", p.spec.Owner, "source", string(p.spec.Config.VM.ID)))
	for _, s := range root.all("sysinfo") { // its UUID must be the domain's
		if sys := s.at("system"); sys != nil {
			sys.dropIf(func(n *node) bool { return n.attr("name") == "uuid" })
		}
	}
	root.replace("on_poweroff", el("on_poweroff").withText("destroy"))
	if !p.spec.KeepUUID { // a drill: keep a crashed guest for the screenshot
		root.replace("on_crash", el("on_crash").withText("preserve"))
	}
	root.drop("seclabel", "cputune", "numatune", "resource", "blkiotune", "iothreadids", "memtune", "qemu:commandline", "qemu:override", "launchSecurity", "bootloader", "bootloader_args")
	if mb := root.at("memoryBacking"); mb != nil {
		mb.drop("hugepages", "source", "access", "allocation", "nosharepages", "locked")
	}
}

// firmware maps machine type and boot files to what this host has.
func (p bootPlan) firmware(root *node, machines map[string]bool) {
	os := root.at("os")
	typ := os.at("type")
	if m := typ.attr("machine"); !machines[m] {
		typ.set("machine", canonicalMachine(m, machines))
	}
	for _, name := range []string{"kernel", "initrd", "dtb"} {
		if f := os.at(name); f != nil && !p.exists(f.trimmed()) {
			os.drop("kernel", "initrd", "dtb", "cmdline")
			break
		}
	}
	loader := os.at("loader")
	efi := os.attr("firmware") == "efi" || loader.attr("type") == "pflash"
	if !efi {
		if loader != nil && !p.exists(loader.trimmed()) {
			os.drop("loader")
		}
		return
	}
	sameLoader := loader != nil && loader.trimmed() != "" && p.exists(loader.trimmed())
	if !sameLoader {
		os.drop("loader")
		os.set("firmware", "efi")
	}
	template := os.at("nvram").attr("template")
	os.drop("nvram")
	nv := el("nvram").withText(filepath.Join(p.dir, "nvram.fd"))
	if sameLoader && os.attr("firmware") == "" && template != "" && p.exists(template) {
		nv.set("template", template)
	}
	os.with(nv)
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
func (p bootPlan) sizing(root *node) {
	if p.spec.CPUs > 0 {
		root.replace("vcpu", el("vcpu").withText(strconv.Itoa(p.spec.CPUs)))
		root.drop("vcpus")
		root.at("cpu").drop("topology", "numa")
	} else if v := root.at("vcpu"); v != nil {
		v.unset("cpuset", "placement")
	}
	if p.spec.MemoryMB > 0 {
		root.replace("memory", el("memory", "unit", "MiB").withText(strconv.Itoa(p.spec.MemoryMB)))
		root.drop("currentMemory", "maxMemory")
		root.at("cpu").drop("numa")
		root.at("devices").drop("memory")
	}
}

// processor adapts CPU, features and clock to the accelerator.
func (p bootPlan) processor(root *node, kvm bool) {
	if kvm {
		return
	}
	cpu := el("cpu", "mode", "maximum")
	if old := root.at("cpu"); old != nil {
		for _, k := range []string{"topology", "numa"} {
			if n := old.at(k); n != nil {
				cpu.with(n)
			}
		}
	}
	root.replace("cpu", cpu)
	root.at("features").drop("hyperv", "kvm", "pvspinlock", "ioapic", "vmport", "smm", "htm", "nested-hv")
	if root.at("os").attr("firmware") == "efi" || root.at("os", "loader").attr("secure") == "yes" {
		if l := root.at("os", "loader"); l.attr("secure") == "yes" && root.at("features") != nil {
			root.at("features").with(el("smm", "state", "on")) // secure boot needs it
		}
	}
	root.at("clock").dropIf(func(n *node) bool {
		return n.name == "timer" && slices.Contains([]string{"hypervclock", "kvmclock", "tsc", "armvtimer"}, n.attr("name"))
	})
}

// devices removes what belongs to the source host and sets up display and serial port.
func (p bootPlan) devices(root *node) {
	dev := root.at("devices")
	dev.drop("emulator", "hostdev", "redirdev", "smartcard", "filesystem", "shmem", "audio", "graphics", "serial", "console", "parallel", "vsock", "lease", "nvram", "crypto")
	dev.dropIf(func(n *node) bool {
		return n.name == "tpm" && (n.at("backend").attr("type") != "emulator" || !p.caps.swtpm) ||
			n.name == "channel" && (n.attr("type") != "unix" || n.at("target").attr("type") != "virtio") ||
			n.name == "rng" && n.at("backend").attr("model") == "egd" ||
			n.name == "input" && (n.attr("type") == "passthrough" || n.attr("type") == "evdev")
	})
	for _, ch := range dev.all("channel") {
		ch.drop("source")
	}
	for _, t := range dev.all("tpm") {
		t.at("backend").drop("encryption", "source")
	}
	for _, d := range dev.all("disk") { // media of removable drives are files of the source host
		if d.attr("device") == "cdrom" || d.attr("device") == "floppy" {
			d.drop("source", "backingStore", "mirror")
			d.set("type", "file")
		}
	}
	dev.with(el("serial", "type", "file").with(el("source", "path", p.serialPath(), "append", "on"), el("target", "port", "0")))
	dev.with(el("graphics", "type", "vnc").with(el("listen", "type", "socket", "socket", filepath.Join(p.dir, "vnc.sock"))))
	video := dev.at("video", "model")
	switch {
	case video == nil || video.attr("type") == "none":
		dev.replace("video", el("video").with(el("model", "type", "vga")))
	case !slices.Contains([]string{"vga", "virtio", "cirrus", "bochs", "ramfb"}, video.attr("type")):
		dev.replace("video", el("video").with(el("model", "type", "vga")))
	default:
		video.drop("acceleration")
	}
}

func (p bootPlan) serialPath() string { return filepath.Join(p.dir, "serial.log") }

// disks puts the overlays in the place of the captured disks; disks that are
// not part of the recovery point are left out.
func (p bootPlan) disks(root *node) error {
	dev := root.at("devices")
	want := map[string]hypervisor.BootDisk{}
	for _, d := range p.spec.Disks {
		want[d.ID] = d
	}
	placed := map[string]bool{}
	dev.dropIf(func(n *node) bool {
		if n.name != "disk" || n.attr("device") == "cdrom" || n.attr("device") == "floppy" {
			return false
		}
		id := n.attr(idMark)
		if id == "" {
			id = n.at("target").attr("dev")
		}
		d, ok := want[id]
		if !ok || placed[id] {
			return true
		}
		placed[id] = true
		n.unset(idMark, "model", "rawio", "sgio", "snapshot", "holdfast-id")
		n.set("type", "file")
		n.set("device", "disk")
		n.drop("driver", "auth", "source", "backingStore", "mirror", "shareable", "transient", "readonly", "encryption", "seclabel", "iotune")
		n.kids = append([]*node{el("driver", "name", "qemu", "type", "qcow2", "discard", "unmap"), el("source", "file", d.Path)}, n.kids...)
		return false
	})
	for _, d := range p.spec.Disks {
		if !placed[d.ID] {
			return dr.Errorf(dr.KindInvalid, "libvirt.Boot", "the captured configuration of VM %s has no disk %s", p.spec.Name, d.ID)
		}
	}
	return nil
}

// interfaces connects the adapters; only MAC, model and place are kept.
func (p bootPlan) interfaces(root *node) {
	keepMAC := p.spec.KeepUUID || p.spec.Network == "" || p.spec.Network == hypervisor.IsolatedNetwork
	for _, n := range root.at("devices").all("interface") {
		n.dropIf(func(k *node) bool {
			return !slices.Contains([]string{"mac", "model", "address", "boot", "rom", "mtu"}, k.name) || k.name == "mac" && !keepMAC
		})
		n.attrs = nil
		switch {
		case p.netName == userNetwork && !p.caps.privileged:
			n.set("type", "user")
		case p.netName != "":
			n.set("type", "network")
			n.with(el("source", "network", p.netName))
		default:
			n.set("type", "user")
			if p.caps.nullNIC {
				n.set("type", "null")
			}
			if p.spec.Network == "" || !p.caps.nullNIC {
				n.with(el("link", "state", "down"))
			}
		}
	}
}

func ownerOf(root *node) string {
	for _, n := range root.at("metadata").kidsOrNil() {
		if strings.HasSuffix(n.name, "recovery") {
			for _, a := range n.attrs {
				if strings.HasPrefix(a.name, "xmlns") && a.value == metadataNS {
					return n.attr("owner")
				}
			}
		}
	}
	return ""
}

func (n *node) kidsOrNil() []*node {
	if n == nil {
		return nil
	}
	return n.kids
}
