package guestcheck

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/guestcheck/imagetest"
	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/readiness"
)

// image is a raw disk image in a file.
type image struct {
	f    *os.File
	size int64
	fail func(off int64) error
}

func (i image) Size() int64 { return i.size }

func (i image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if i.fail != nil {
		if err := i.fail(off); err != nil {
			return err
		}
	}
	_, err := i.f.ReadAt(p, off)
	return err
}

func openImage(t testing.TB, name string) image {
	f, size := imagetest.Open(t, name)
	return image{f: f, size: size}
}

const (
	rootUUID = "11111111-1111-4111-8111-111111111111"
	bootUUID = "22222222-2222-4222-8222-222222222222"
)

// cpio makes an initramfs with modules, compressed.
func cpio(t testing.TB, modules []string, compress string) string {
	t.Helper()
	files := map[string]string{"init": "#!/bin/sh\n"}
	for _, m := range modules {
		files["usr/lib/modules/6.1.0-9-amd64/kernel/drivers/"+m+".ko"] = "elf"
	}
	out := imagetest.Blank(t, 0)
	imagetest.Tool(t, "", "sh", "-c", "cd '"+imagetest.Tree(t, files)+"' && find . | cpio --quiet -o -H newc | "+compress+" > "+out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// healthy is a Debian guest that would come up anywhere.
func healthy(t testing.TB) map[string]string {
	return map[string]string{
		"etc/os-release":                        "NAME=x\nPRETTY_NAME=\"Debian 12\"\n",
		"etc/fstab":                             "# comment\nUUID=" + rootUUID + " / ext4 defaults 0 1\nproc /proc proc defaults 0 0\n",
		"etc/network/interfaces":                "auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n",
		"usr/sbin/sshd":                         "elf",
		"usr/sbin/waagent":                      "#!/usr/bin/python3\n",
		"boot/vmlinuz-6.1.0-9-amd64":            "kernel",
		"boot/config-6.1.0-9-amd64":             "CONFIG_HYPERV=m\nCONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_NET=y\n",
		"boot/initrd.img-6.1.0-9-amd64":         cpio(t, []string{"hv_vmbus", "hv_storvsc"}, "zstd -q -c"),
		"lib/modules/6.1.0-9-amd64/modules.dep": "kernel/drivers/net/hyperv/hv_netvsc.ko: kernel/drivers/hv/hv_vmbus.ko\n",
		"boot/grub/grub.cfg": "set default=0\nmenuentry 'Debian' {\n\tlinux /boot/vmlinuz-6.1.0-9-amd64 root=UUID=" + rootUUID + " ro quiet console=tty0 console=ttyS0,115200n8\n\tinitrd /boot/initrd.img-6.1.0-9-amd64\n}\n" +
			"submenu 'more' {\nmenuentry 'Debian (recovery mode)' {\n\tlinux /boot/vmlinuz-6.1.0-9-amd64 root=/dev/sda1 single\n}\n}\n",
	}
}

// biosDisk is a disk of generation 1 with one partition.
func biosDisk(t testing.TB, files map[string]string, args ...string) string {
	t.Helper()
	disk := imagetest.Blank(t, 40<<20)
	imagetest.Tool(t, "label: dos\nstart=2048, type=83, bootable\n", "sfdisk", "-q", disk)
	imagetest.Put(t, disk, 1<<20, imagetest.Ext(t, files, 38, append([]string{"-t", "ext4", "-b", "4096", "-U", rootUUID}, args...)...))
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("\xeb\x63\x90 GRUB "), 0); err != nil {
		t.Fatal(err)
	}
	return disk
}

func check(t testing.TB, in Input) Report {
	t.Helper()
	r, err := Check(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var ids []CheckID
	for _, x := range r.Results {
		ids = append(ids, x.Check)
		bad := slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Check == x.Check && f.Severity != readiness.Notes })
		if bad != (x.Status == readiness.NotMet || x.Status == readiness.NotChecked) {
			t.Errorf("%s is %s, findings: %+v", x.Check, x.Status, r.Findings)
		}
	}
	if !slices.Equal(ids, Checks()) {
		t.Errorf("results of %q, want all checks", ids)
	}
	return r
}

func one(t testing.TB, name string, gen int) Input {
	return Input{Target: "azure", Generation: gen, OSType: "Linux", Disks: []Source{{ID: "sda", Disk: openImage(t, name), Boot: true}}}
}

// about returns the findings of a check as text.
func about(r Report, id CheckID) string {
	var b strings.Builder
	for _, f := range r.Findings {
		if f.Check == id {
			fmt.Fprintf(&b, "%s|%s|%s\n", f.Severity, f.Object, f.Reason)
		}
	}
	return b.String()
}

func TestHealthyGuestPasses(t *testing.T) {
	t.Parallel()
	disk := biosDisk(t, healthy(t))
	for _, target := range []string{"azure", "hyperv", "kvm"} {
		in := one(t, disk, 1)
		in.Target = target
		r := check(t, in)
		if len(r.Findings) > 0 || len(Plan(r)) > 0 {
			t.Errorf("%s: %+v", target, r.Findings)
		}
		if r.Facts.Name != "Debian 12" || r.Facts.OS != "Linux" || r.Facts.Root != "sda/1" || len(r.Facts.Kernels) != 1 || r.Facts.BootDisk != "sda" || r.Facts.BytesRead == 0 {
			t.Errorf("%+v", r.Facts)
		}
	}
}

// TestLinuxChecks breaks the healthy guest in one way at a time.
func TestLinuxChecks(t *testing.T) {
	t.Parallel()
	grub := healthy(t)["boot/grub/grub.cfg"]
	for _, c := range []struct {
		name   string
		files  map[string]string // "-" removes
		target string
		check  CheckID
		want   string // part of a finding
	}{
		{"fstab by name", map[string]string{"etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n"}, "", CheckFstab, "error|sda/1:/etc/fstab /|/ is mounted by the name /dev/sda1"},
		{"fstab of data by name", map[string]string{"etc/fstab": "UUID=" + rootUUID + " / ext4 x 0 1\n/dev/vdb1 /data ext4 defaults 0 1\n"}, "", CheckFstab, "warning|sda/1:/etc/fstab /data"},
		{"fstab by path", map[string]string{"etc/fstab": "/dev/disk/by-path/pci-0000:00:10.0-scsi-0:0:0:0-part1 / ext4 defaults 0 1\n"}, "", CheckFstab, "error|"},
		{"fstab names an excluded disk", map[string]string{"etc/fstab": "UUID=" + bootUUID + " /data ext4 defaults 0 1\n"}, "", CheckFstab, "none of the replicated disks"},
		{"no Hyper-V driver", map[string]string{"boot/initrd.img-6.1.0-9-amd64": cpio(t, []string{"virtio_blk"}, "gzip -c")}, "", CheckDrivers, "error|sda/1:/boot/vmlinuz-6.1.0-9-amd64|the driver for Hyper-V disks (hv_storvsc)"},
		{"no virtio driver", map[string]string{"boot/config-6.1.0-9-amd64": "CONFIG_VIRTIO_PCI=y\n"}, "kvm", CheckDrivers, "error|sda/1:/boot/vmlinuz-6.1.0-9-amd64|the driver for virtio disks (virtio_blk or virtio_scsi)"},
		{"no network driver", map[string]string{"lib/modules/6.1.0-9-amd64/modules.dep": "kernel/x.ko:\n"}, "", CheckDrivers, "warning|sda/1:/boot/vmlinuz-6.1.0-9-amd64|the driver for Hyper-V network"},
		{"damaged initramfs", map[string]string{"boot/initrd.img-6.1.0-9-amd64": "no archive"}, "", CheckDrivers, "not checked, because the initramfs can't be looked into"},
		{"no kernel", map[string]string{"boot/vmlinuz-6.1.0-9-amd64": "-"}, "", CheckDrivers, "not checked, because no kernel"},
		{"older kernel lacks it", map[string]string{"boot/vmlinuz-6.1.0-8-amd64": "k", "boot/config-6.1.0-8-amd64": "#\n"}, "", CheckDrivers, "warning|sda/1:/boot/vmlinuz-6.1.0-8-amd64|the driver for Hyper-V disks"},
		{"no console", map[string]string{"boot/grub/grub.cfg": strings.ReplaceAll(grub, "console=ttyS0,115200n8", "")}, "", CheckConsole, "warning|sda/1:/boot/grub/grub.cfg|"},
		{"no loader configuration", map[string]string{"boot/grub/grub.cfg": "-"}, "", CheckConsole, "not checked, because"},
		{"root by name", map[string]string{"boot/grub/grub.cfg": strings.Replace(grub, "root=UUID="+rootUUID, "root=/dev/vda1", 1)}, "", CheckRoot, "error|sda/1:/boot/grub/grub.cfg|the kernel is told root=/dev/vda1"},
		{"root is elsewhere", map[string]string{"boot/grub/grub.cfg": strings.Replace(grub, rootUUID, bootUUID, 1)}, "", CheckRoot, "error|"},
		{"BLS entry", map[string]string{"boot/grub/grub.cfg": "-", "boot/loader/entries/a.conf": "title x\nlinux /boot/vmlinuz-6.1.0-9-amd64\noptions root=/dev/sda1 ro\n"}, "", CheckRoot, "root=/dev/sda1"},
		{"static interfaces", map[string]string{"etc/network/interfaces": "iface eth0 inet static\n address 10.0.0.2/24\n"}, "", CheckNetwork, "eth0 has a static address"},
		{"static netplan", map[string]string{"etc/network/interfaces": "-", "etc/netplan/01.yaml": "network:\n  version: 2\n  ethernets:\n    ens3:\n      match:\n        macaddress: 52:54:00:00:00:01\n      addresses:\n        - 10.0.0.2/24\n      nameservers:\n        addresses: [1.1.1.1]\n"}, "", CheckNetwork, "ens3 has a static address"},
		{"netplan by MAC", map[string]string{"etc/network/interfaces": "-", "etc/netplan/01.yaml": "network:\n  ethernets:\n    ens3:\n      dhcp4: true\n      match:\n        macaddress: 52:54:00:00:00:01\n"}, "", CheckNetwork, "bound to the source's MAC"},
		{"netplan by name", map[string]string{"etc/network/interfaces": "-", "etc/netplan/01.yaml": "network:\n  ethernets:\n    enp1s0:\n      dhcp4: true\n      nameservers:\n        addresses: [1.1.1.1]\n"}, "", CheckNetwork, "configuration is for enp1s0"},
		{"ifcfg", map[string]string{"etc/network/interfaces": "-", "etc/sysconfig/network-scripts/ifcfg-eth0": "BOOTPROTO=none\nIPADDR=10.0.0.2\nHWADDR=52:54:00:00:00:01\n"}, "", CheckNetwork, "eth0 has a static address"},
		{"keyfile", map[string]string{"etc/network/interfaces": "-", "etc/NetworkManager/system-connections/a.nmconnection": "[connection]\ninterface-name=eth0\n[ipv4]\nmethod=manual\n"}, "", CheckNetwork, "static address"},
		{"networkd", map[string]string{"etc/network/interfaces": "-", "etc/systemd/network/a.network": "[Match]\nMACAddress=52:54:00:00:00:01\n[Network]\nDHCP=yes\n"}, "", CheckNetwork, "bound to the source's MAC"},
		{"no network", map[string]string{"etc/network/interfaces": "-"}, "", CheckNetwork, "not checked, because"},
		{"old MACs", map[string]string{"etc/udev/rules.d/70-persistent-net.rules": "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:12:34:56\", NAME=\"eth0\"\n"}, "", CheckNames, "warning|sda/1:/etc/udev/rules.d/70-persistent-net.rules"},
		{"no agent", map[string]string{"usr/sbin/waagent": "-"}, "", CheckAgent, "info|"},
		{"datasource", map[string]string{"etc/cloud/cloud.cfg": "x", "etc/cloud/cloud.cfg.d/90.cfg": "datasource_list: [ NoCloud, None ]\n"}, "", CheckAgent, "[ NoCloud, None ]"},
		{"no ssh", map[string]string{"usr/sbin/sshd": "-"}, "", CheckRemote, "info|"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			files := healthy(t)
			maps.Copy(files, c.files)
			maps.DeleteFunc(files, func(_, v string) bool { return v == "-" })
			in := one(t, biosDisk(t, files), 1)
			if c.target != "" {
				in.Target = c.target
			}
			r := check(t, in)
			if got := about(r, c.check); !strings.Contains(got, c.want) {
				t.Errorf("%s says %q, want %q", c.check, got, c.want)
			}
			for _, f := range r.Findings {
				if f.Check != c.check && !(f.Check == CheckRoot || f.Check == CheckConsole) {
					t.Errorf("also %+v", f)
				}
			}
		})
	}
}

func TestFirmware(t *testing.T) {
	t.Parallel()
	gpt := func(types ...string) string {
		disk := imagetest.Blank(t, 64<<20)
		script := "label: gpt\n"
		for _, x := range types {
			script += "size=16384, type=" + x + "\n"
		}
		imagetest.Tool(t, script, "sfdisk", "-q", disk)
		return disk
	}
	esp := func(files map[string]string) string {
		d := gpt(layout.TypeESP)
		imagetest.Put(t, d, 1<<20, imagetest.FAT(t, files, 8))
		return d
	}
	code := func(name, text string) string {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), 0); err != nil {
			t.Fatal(err)
		}
		return name
	}
	mbr := func(script string) string {
		d := imagetest.Blank(t, 8<<20)
		imagetest.Tool(t, "label: dos\n"+script, "sfdisk", "-q", d)
		return d
	}
	for _, c := range []struct {
		name, disk string
		gen        int
		want       string // "" = met
	}{
		{"fallback loader", esp(map[string]string{"EFI/BOOT/BOOTX64.EFI": "MZ"}), 2, ""},
		{"loader by entry", esp(map[string]string{"EFI/debian/shimx64.efi": "MZ"}), 2, "warning|sda/1|no loader is at the fallback path"},
		{"empty ESP", esp(map[string]string{"readme": "x"}), 2, "error|sda/1|the EFI system partition holds no boot loader"},
		{"ESP without file system", gpt(layout.TypeESP), 2, "not checked, because the EFI system partition can't be read"},
		{"no ESP", gpt("linux"), 2, "error|sda|there is no EFI system partition"},
		{"UEFI disk in generation 1", esp(map[string]string{"EFI/BOOT/BOOTX64.EFI": "MZ"}), 1, "made for UEFI"},
		{"active partition", code(mbr("type=83, bootable\n"), "\x33\xc0"), 1, ""},
		{"GRUB", code(mbr("type=83\n"), "\xeb\x63\x90 GRUB "), 1, ""},
		{"no active partition", code(mbr("type=83\n"), "\x33\xc0"), 1, "error|sda|no partition is marked active"},
		{"no boot code", mbr("type=83, bootable\n"), 1, "error|sda|there is no boot code"},
		{"GRUB on GPT", code(gpt(layout.TypeBIOSBoot, "linux"), "\xeb\x63\x90 GRUB "), 1, ""},
		{"GRUB on GPT without BIOS boot", code(gpt("linux"), "\xeb\x63\x90 GRUB "), 1, "warning|sda|GRUB starts from a GPT without"},
		{"generation unknown", mbr("type=83\n"), 0, "not checked, because the VM's generation is not known"},
	} {
		r := check(t, one(t, c.disk, c.gen))
		if got := about(r, CheckFirmware); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestVolumesThatAreNotRead(t *testing.T) {
	t.Parallel()
	write := func(off int64, sig string) string {
		d := imagetest.Blank(t, 8<<20)
		f, err := os.OpenFile(d, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(sig), off); err != nil {
			t.Fatal(err)
		}
		return d
	}
	dynamic := imagetest.Blank(t, 8<<20)
	imagetest.Tool(t, "label: dos\ntype=42\n", "sfdisk", "-q", dynamic)
	spaces := imagetest.Blank(t, 8<<20)
	imagetest.Tool(t, "label: gpt\ntype="+layout.TypeSpaces+"\n", "sfdisk", "-q", spaces)
	for name, c := range map[string]struct{ disk, want string }{
		"bitlocker": {write(3, "-FVE-FS-"), "encrypted (BitLocker)"}, "luks": {write(0, "LUKS\xba\xbe"), "encrypted (LUKS)"},
		"btrfs": {write(65600, "_BHRfS_M"), "type btrfs are not read"}, "dynamic": {dynamic, "dynamic disk"}, "spaces": {spaces, "Storage Spaces"},
		"damaged": {write(1024+0x38, "\x53\xef"), "damaged"},
	} {
		r := check(t, one(t, c.disk, 1))
		if got := about(r, CheckVolumes); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if !strings.Contains(about(r, CheckFstab)+about(r, CheckSystem), "not checked") {
			t.Errorf("%s passes silently: %+v", name, r.Findings)
		}
	}
}

func TestReadErrorsAreNotAbsence(t *testing.T) {
	t.Parallel()
	name := biosDisk(t, healthy(t))
	away := errors.New("the store is away")
	// Every page that is read fails once in a run of its own: no run may take a
	// file for absent, or a check for not met.
	pages := map[int64]bool{}
	watched := one(t, name, 1)
	watched.Disks[0].Disk = image{openImage(t, name).f, 40 << 20, func(off int64) error { pages[off/pageSize] = true; return nil }}
	base := check(t, watched)
	fired := 0
	for page := range pages {
		in := one(t, name, 1)
		hit := false
		in.Disks[0].Disk = image{openImage(t, name).f, 40 << 20, func(off int64) error {
			if off/pageSize == page {
				hit = true
				return away
			}
			return nil
		}}
		r := check(t, in)
		if !hit {
			continue
		}
		fired++
		unknown := slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.NotChecked && strings.Contains(f.Reason, away.Error()) })
		if !unknown {
			t.Errorf("page %d could not be read, and nothing says so: %+v", page, r.Findings)
		}
		for k, x := range r.Results {
			if b := base.Results[k].Status; x.Status == readiness.NotMet && b == readiness.Met {
				t.Errorf("page %d: %s was said not to be met: %+v", page, x.Check, r.Findings)
			}
		}
	}
	if fired < 5 {
		t.Errorf("only %d pages were read", fired)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Check(ctx, one(t, name, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	small := one(t, name, 1)
	small.MaxRead = 128 << 10
	if r := check(t, small); !strings.Contains(fmt.Sprint(r.Findings), errBudget.Error()) {
		t.Errorf("budget: %+v", r.Findings)
	}
}

func TestInput(t *testing.T) {
	t.Parallel()
	if _, err := Check(t.Context(), Input{Target: "azure"}); dr.KindOf(err) != dr.KindInvalid {
		t.Error(err)
	}
	if _, err := Check(t.Context(), Input{Target: "moon", Disks: []Source{{}}}); dr.KindOf(err) != dr.KindInvalid {
		t.Error(err)
	}
}

// TestFixes repairs a guest on a side layer and checks it again there.
func TestFixes(t *testing.T) {
	t.Parallel()
	files := healthy(t)
	files["etc/fstab"] = "# /dev/sda1 stays in a comment\n/dev/sda1\t/\text4\terrors=remount-ro 0 1\n"
	files["boot/grub/grub.cfg"] = strings.ReplaceAll(files["boot/grub/grub.cfg"], " console=tty0 console=ttyS0,115200n8", "")
	files["etc/udev/rules.d/70-persistent-net.rules"] = "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:12:34:56\", NAME=\"eth0\"\n"
	name := biosDisk(t, files)
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	in := one(t, name, 1)
	r := check(t, in)
	fixes := Plan(r)
	if len(fixes) != 3 || r.Worst() != readiness.Blocks {
		t.Fatalf("%d fixes: %+v", len(fixes), fixes)
	}
	layer := NewOverlay(in.Disks[0].Disk)
	out, err := Apply(t.Context(), map[string]Layer{"sda": layer}, fixes)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range out {
		if !o.Applied || len(o.Fix.Changes) == 0 {
			t.Errorf("%+v", o)
		}
	}
	in.Disks[0].Disk = layer
	if again := check(t, in); len(again.Findings) > 0 {
		t.Errorf("after the fixes: %+v", again.Findings)
	}
	// The layer over the image, as another program sees it.
	disk := imagetest.Copy(t, name)
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range layer.Pieces() {
		if _, err := f.WriteAt(p.Data, p.Off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	part := imagetest.Get(t, disk, 1<<20, 38<<20)
	imagetest.Tool(t, "", "e2fsck", "-fn", part)
	said := imagetest.Tool(t, "", "debugfs", "-R", "cat /etc/fstab", part)
	if !strings.Contains(said, "# /dev/sda1 stays in a comment\nUUID="+rootUUID+"\t/\text4\terrors=remount-ro 0 1\n") {
		t.Errorf("fstab: %q", said)
	}
	if said = imagetest.Tool(t, "", "debugfs", "-R", "cat /boot/grub/grub.cfg", part); strings.Count(said, "console=ttyS0,115200n8") != 2 {
		t.Errorf("grub.cfg: %q", said)
	}
	if after, err := os.ReadFile(name); err != nil || !slices.Equal(before, after) {
		t.Error("the replica was changed")
	}
	// A second time nothing fits any more, and nothing changes.
	pieces := len(layer.Pieces())
	if out, err = Apply(t.Context(), map[string]Layer{"sda": layer}, fixes); err != nil || out[0].Applied || !strings.Contains(out[0].Reason, "not what it was") || len(layer.Pieces()) != pieces {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestFixesThatAreRefused(t *testing.T) {
	t.Parallel()
	files := healthy(t)
	files["etc/fstab"] = "/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /data ext4 defaults 0 1\n#" + strings.Repeat("x", 4096-69) + "\n"
	in := one(t, biosDisk(t, files), 1)
	fixes := Plan(check(t, in))
	if len(fixes) != 2 || !strings.Contains(fixes[0].Refused, "do not fit") || !strings.Contains(fixes[1].Refused, "/dev/sdb1") {
		t.Fatalf("%+v", fixes)
	}
	layer := NewOverlay(in.Disks[0].Disk)
	out, err := Apply(t.Context(), map[string]Layer{"sda": layer}, append(fixes, Fix{Disk: "other"}))
	if err != nil || slices.ContainsFunc(out, func(o Outcome) bool { return o.Applied || o.Reason == "" }) || len(layer.Pieces()) > 0 {
		t.Errorf("%+v, %v", out, err)
	}
}

// brokenLayer fails to take writes.
type brokenLayer struct{ *Overlay }

func (brokenLayer) WriteAt(context.Context, []byte, int64) error { return errors.New("no room") }

func TestLayerThatFails(t *testing.T) {
	t.Parallel()
	files := healthy(t)
	files["etc/fstab"] = "/dev/sda1 / ext4 defaults 0 1\n"
	in := one(t, biosDisk(t, files), 1)
	_, err := Apply(t.Context(), map[string]Layer{"sda": brokenLayer{NewOverlay(in.Disks[0].Disk)}}, Plan(check(t, in)))
	if dr.KindOf(err) != dr.KindUnavailable || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
}

func TestOverlay(t *testing.T) {
	t.Parallel()
	img := imagetest.Blank(t, 10000)
	o := NewOverlay(openImage(t, img))
	ctx := t.Context()
	want := make([]byte, 10000)
	for _, w := range []struct{ off, n int }{{0, 10}, {4090, 20}, {9990, 10}, {100, 9000}, {4096, 4096}} {
		p := []byte(strings.Repeat(string(rune('a'+w.n%26)), w.n))
		copy(want[w.off:], p)
		if err := o.WriteAt(ctx, p, int64(w.off)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range [][2]int{{0, 10000}, {5, 4100}, {4095, 2}, {8191, 1809}, {9999, 1}} {
		p := make([]byte, r[1])
		if err := o.ReadAt(ctx, p, int64(r[0])); err != nil || !slices.Equal(p, want[r[0]:r[0]+r[1]]) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if err := o.WriteAt(ctx, make([]byte, 2), 9999); dr.KindOf(err) != dr.KindInvalid {
		t.Error(err)
	}
}
