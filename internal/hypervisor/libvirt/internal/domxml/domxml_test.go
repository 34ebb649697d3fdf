package domxml

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// captured resembles what management tools define, with one thing of
// everything that has to be understood or removed.
const captured = `<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; co</name>
  <uuid>6F3C1D5E-0000-4000-8000-00000000ABCD</uuid>
  <genid>11111111-2222-4333-8444-555555555555</genid>
  <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"><libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo></metadata>
  <memory unit='KiB'>2097153</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' cpuset='4-7' current='2'>4</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='4'/></cputune>
  <sysinfo type='smbios'><system><entry name='uuid'>6f3c1d5e-0000-4000-8000-00000000abcd</entry><entry name='serial'>S1</entry></system></sysinfo>
  <os><type arch='x86_64' machine='pc-q35-9.2'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/edk2/code.fd</loader>
    <nvram template='/usr/share/edk2/vars.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram><boot dev='hd'/></os>
  <features><acpi/><apic/><hyperv mode='custom'><relaxed state='on'/></hyperv><vmport state='off'/></features>
  <cpu mode='host-passthrough' check='none' migratable='on'><topology sockets='1' dies='1' cores='4' threads='1'/></cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='kvmclock' present='yes'/></clock>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/libexec/qemu-kvm</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native' iothread='1'/><source file='/img/data.qcow2'/><target dev='vdb' bus='virtio'/><serial>DATA</serial><address type='pci' slot='0x05'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='qcow2'/><source dev='/dev/vg/root'/><target dev='vda' bus='virtio'/><boot order='1'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/sdx'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/img/raw.img'/><target dev='vdd' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/img/shared.qcow2'/><target dev='vde' bus='virtio'/><shareable/></disk>
    <disk type='block' device='lun'><source dev='/dev/sdy'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/install.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:AA:BB:01'/><source bridge='br0'/><target dev='vnet3'/><model type='virtio'/><bandwidth/><address type='pci' slot='0x03'/></interface>
    <interface type='network'><mac address='52:54:00:aa:bb:02'/><source network='default' portgroup='x'/><model type='e1000e'/></interface>
    <serial type='pty'><target port='0'/></serial><console type='pty'/>
    <channel type='unix'><source mode='bind' path='/x'/><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <graphics type='spice' port='5900'/><video><model type='qxl' ram='65536'/></video>
    <hostdev mode='subsystem' type='pci'/><hostdev mode='subsystem' type='scsi'/><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <filesystem type='mount'/><memballoon model='virtio'/>
  </devices>
  <seclabel type='dynamic' model='selinux'/>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>`

func parse(t *testing.T, s string) *Node {
	t.Helper()
	n, err := Parse([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRead(t *testing.T) {
	t.Parallel()
	vm := Read(parse(t, captured))
	if vm.Name != "web & co" || vm.ID != "6f3c1d5e-0000-4000-8000-00000000abcd" || vm.Generation != 2 || vm.CPUs != 2 || vm.MemoryMB != 2049 || vm.OSType != "Linux" {
		t.Errorf("%+v", vm)
	}
	type want struct {
		boot, shared, passThru, bad bool
		path                        string
	}
	for id, w := range map[string]want{
		"vdb": {path: "/img/data.qcow2"}, "vda": {boot: true, path: "/dev/vg/root"}, "vdc": {passThru: true, bad: true, path: "/dev/sdx"},
		"vdd": {bad: true, path: "/img/raw.img"}, "vde": {shared: true, bad: true, path: "/img/shared.qcow2"}, "sda": {passThru: true, bad: true, path: "/dev/sdy"},
		"hostdev1": {passThru: true, bad: true},
	} {
		i := slices.IndexFunc(vm.Disks, func(d dr.Disk) bool { return d.ID == id })
		if i < 0 {
			t.Errorf("disk %s is missing", id)
			continue
		}
		d := vm.Disks[i]
		if got := (want{d.Boot, d.Shared, d.PassThru, d.Unreplicatable != "", d.Path}); got != w {
			t.Errorf("disk %s: %+v (%s), want %+v", id, got, d.Unreplicatable, w)
		}
	}
	if len(vm.Disks) != 7 {
		t.Errorf("%d disks, want 7: drives for media hold nothing of the VM", len(vm.Disks))
	}
	if want := []dr.NIC{{ID: "52:54:00:aa:bb:01", MAC: "52:54:00:aa:bb:01", Network: "br0", Type: "bridge"}, {ID: "52:54:00:aa:bb:02", MAC: "52:54:00:aa:bb:02", Network: "default", Type: "network"}}; !reflect.DeepEqual(vm.NICs, want) {
		t.Errorf("NICs %+v", vm.NICs)
	}
	if !AgentConnected(parse(t, captured)) || OwnerOf(parse(t, captured)) != "" {
		t.Error("guest agent or owner misread")
	}
}

func TestMemoryAndOS(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int{"<memory>1048576</memory>": 1024, "<memory unit='GiB'>3</memory>": 3072, "<memory unit='bytes'>1</memory>": 1, "<memory unit='MiB'>-5</memory>": 0, "<memory unit='TiB'>99999999999999</memory>": 0, "<memory>x</memory>": 0} {
		if got := memoryMB(parse(t, s)); got != want {
			t.Errorf("%s: %d MB, want %d", s, got, want)
		}
	}
	for s, want := range map[string]string{
		"<domain><features><hyperv/></features></domain>": "Windows",
		"<domain/>": "",
		"<domain><metadata><a:b><a:os id='http://microsoft.com/win/2k22'/></a:b></metadata></domain>": "Windows",
	} {
		if got := osType(parse(t, s)); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

const caps = `<capabilities><guest><os_type>hvm</os_type><arch name='x86_64'><machine canonical='pc-i440fx-7.2'>pc</machine><machine>pc-i440fx-7.2</machine><machine canonical='pc-q35-7.2'>q35</machine>
<domain type='qemu'/><domain type='kvm'><machine>pc-q35-7.2</machine></domain></arch></guest></capabilities>`

func bootPlan(t *testing.T) Plan {
	return Plan{UUID: "00000000-1111-4222-8333-444444444444", Dir: "/hf/boot/x", Accel: "tcg", Caps: ReadCapabilities(parse(t, caps)),
		Exists: func(string) bool { return false },
		Spec: hypervisor.BootSpec{Name: "web-r", Owner: "item-9", Config: hypervisor.VMConfig{VM: Read(parse(t, captured)), Native: map[string][]byte{NativeXML: []byte(captured)}},
			Disks: []hypervisor.BootDisk{{ID: "vda", Path: "/l/a"}, {ID: "vdb", Path: "/l/b"}}}}
}

// TestRecoveryGolden keeps the whole document, so that every change is seen.
func TestRecoveryGolden(t *testing.T) {
	t.Parallel()
	root, err := bootPlan(t).Domain()
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "recovery.xml")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(root.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if root.String() != string(want) {
		t.Errorf("the recovery VM's document has changed (UPDATE_GOLDEN=1 accepts it):\n%s", root)
	}
}

func TestRecoveryRules(t *testing.T) {
	t.Parallel()
	make := func(t *testing.T, change func(*Plan)) *Node {
		t.Helper()
		p := bootPlan(t)
		change(&p)
		n, err := p.Domain()
		if err != nil {
			t.Fatal(err)
		}
		if s := n.String(); strings.Contains(s, "/img/") || strings.Contains(s, "br0") || strings.Contains(s, "hostdev") || strings.Contains(s, idMark) {
			t.Errorf("something of the source host is left:\n%s", s)
		}
		return n
	}
	t.Run("identity of a drill", func(t *testing.T) {
		n := make(t, func(*Plan) {})
		if n.At("uuid").Trimmed() != "00000000-1111-4222-8333-444444444444" || n.At("name").Trimmed() != "web-r" || OwnerOf(n) != "item-9" || n.At("genid").Trimmed() != "" || n.At("on_crash").Trimmed() != "preserve" {
			t.Error(n)
		}
		if n.Get("id") != "" || n.Get("type") != "qemu" {
			t.Error(n.Attrs)
		}
	})
	t.Run("links", func(t *testing.T) {
		for name, c := range map[string]struct {
			change  func(*Plan)
			typ     string
			down    bool
			keepMAC bool
		}{
			"none":          {func(*Plan) {}, "user", true, true},
			"network drill": {func(p *Plan) { p.Network, p.Spec.Network = "lan", "lan" }, "network", false, false},
			"network real":  {func(p *Plan) { p.Network, p.Spec.Network, p.Spec.KeepUUID = "lan", "lan", true }, "network", false, true},
			"isolated": {func(p *Plan) {
				p.Network, p.Spec.Network, p.Caps.Privileged = "holdfast-isolated", hypervisor.IsolatedNetwork, true
			}, "network", false, true},
			"isolated, unprivileged": {func(p *Plan) { p.Spec.Network = hypervisor.IsolatedNetwork }, "user", true, true},
			"user":                   {func(p *Plan) { p.Network, p.Spec.Network = UserNetwork, UserNetwork }, "user", false, false},
		} {
			for _, i := range make(t, c.change).At("devices").All("interface") {
				if i.Get("type") != c.typ || (i.At("link").Get("state") == "down") != c.down || (i.At("mac") != nil) != c.keepMAC || i.At("bandwidth") != nil || i.At("target") != nil {
					t.Errorf("%s: %s", name, i)
				}
			}
		}
	})
	t.Run("firmware", func(t *testing.T) {
		n := make(t, func(*Plan) {})
		if n.At("os").Get("firmware") != "efi" || n.At("os", "loader") != nil || n.At("os", "type").Get("machine") != "q35" {
			t.Errorf("firmware of another distribution: %s", n.At("os"))
		}
		n = make(t, func(p *Plan) { p.Exists = func(string) bool { return true } })
		if n.At("os", "loader").Trimmed() != "/usr/share/edk2/code.fd" || n.At("os", "nvram").Trimmed() != "/hf/boot/x/nvram.fd" {
			t.Errorf("the same firmware: %s", n.At("os"))
		}
	})
	t.Run("KVM", func(t *testing.T) {
		n := make(t, func(p *Plan) { p.Accel = "" })
		if n.Get("type") != "kvm" || n.At("cpu").Get("mode") != "host-passthrough" || n.At("features", "hyperv") == nil {
			t.Errorf("%s %s", n.Get("type"), n.At("cpu"))
		}
	})
	t.Run("size", func(t *testing.T) {
		n := make(t, func(p *Plan) { p.Spec.CPUs, p.Spec.MemoryMB = 3, 512 })
		if vm := Read(n); vm.CPUs != 3 || vm.MemoryMB != 512 || n.At("cpu", "topology") != nil || n.At("currentMemory") != nil {
			t.Errorf("%+v %s", vm, n.At("cpu"))
		}
	})
	t.Run("missing disk", func(t *testing.T) {
		p := bootPlan(t)
		p.Spec.Disks = append(p.Spec.Disks, hypervisor.BootDisk{ID: "vdz", Path: "/l/z"})
		if _, err := p.Domain(); dr.KindOf(err) != dr.KindInvalid {
			t.Error(err)
		}
	})
	t.Run("architecture", func(t *testing.T) {
		p := bootPlan(t)
		p.Spec.Config.Native[NativeXML] = []byte(strings.Replace(captured, "x86_64", "aarch64", 1))
		if _, err := p.Domain(); dr.KindOf(err) != dr.KindUnsupported {
			t.Error(err)
		}
	})
}

// TestFromAnotherPlatform: without a captured document the VM gets devices that its guest has drivers for.
func TestFromAnotherPlatform(t *testing.T) {
	t.Parallel()
	for osType, want := range map[string]string{"Windows": "sda=/l/a sdb=/l/b", "Linux": "vda=/l/a vdb=/l/b"} {
		p := bootPlan(t)
		p.Spec.Config.Native = nil
		p.Spec.Config.VM.OSType = osType
		p.Spec.Disks[0].ID, p.Spec.Disks[1].ID = "Microsoft:{1}", "Microsoft:{2}"
		n, err := p.Domain()
		if err != nil {
			t.Fatal(err)
		}
		var devs []string
		for _, d := range n.At("devices").All("disk") {
			devs = append(devs, d.At("target").Get("dev")+"="+d.At("source").Get("file"))
		}
		if strings.Join(devs, " ") != want || n.At("os").Get("firmware") != "efi" || strings.Contains(n.String(), idMark) {
			t.Errorf("%s: %v, %s", osType, devs, n.At("os"))
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(captured))
	f.Add([]byte(caps))
	f.Add([]byte("<a b='&lt;'>x<c/></a>"))
	f.Add([]byte("<a><b></a></b>"))
	f.Add([]byte("<x:a xmlns:x='y' x:z=''/>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Parse(b)
		if err != nil {
			return
		}
		Read(n)
		AgentConnected(n)
		OwnerOf(n)
		ReadCapabilities(n)
		again, err := Parse([]byte(n.String()))
		if err != nil {
			t.Fatalf("own document is not accepted: %v\n%s", err, n)
		}
		if again.String() != n.String() {
			t.Fatalf("not stable:\n%s\n%s", n, again)
		}
		p := Plan{Caps: Capabilities{arches: map[string]map[string]bool{"x86_64": {"pc": true}}}, Exists: func(string) bool { return false },
			Spec: hypervisor.BootSpec{Name: "n", Owner: "o", Config: hypervisor.VMConfig{Native: map[string][]byte{NativeXML: b}}}}
		if _, err := p.Domain(); err != nil && dr.KindOf(err) == dr.KindInternal {
			t.Fatal(err)
		}
	})
}
