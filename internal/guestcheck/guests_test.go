package guestcheck

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/ledger/guestimage"
	"holdfast/internal/readiness"
)

// unzip writes the unpacked file over the start of a disk.
func unzip(t testing.TB, name, disk string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	out := imagetest.Blank(t, 0)
	if err := os.WriteFile(out, b, 0o600); err != nil {
		t.Fatal(err)
	}
	imagetest.Put(t, disk, 0, out)
}

// TestRootOnLVM: /boot is a partition of its own, the root file system lies on a
// logical volume over two disks, as installers make it.
func TestRootOnLVM(t *testing.T) {
	t.Parallel()
	files := healthy(t)
	boot := map[string]string{}
	for n, b := range files {
		if rest, ok := strings.CutPrefix(n, "boot/"); ok {
			boot[rest] = strings.ReplaceAll(strings.ReplaceAll(b, "/boot/", "/"), "root=UUID="+rootUUID, "root=/dev/mapper/vg--x-root")
			delete(files, n)
		}
	}
	files["etc/fstab"] = "/dev/mapper/vg--x-root / ext4 defaults 0 1\nUUID=" + bootUUID + " /boot ext4 defaults 0 2\n/dev/sdc1 /also ext4 nofail 0 2\n"
	files["etc/udev/rules.d/70-persistent-net.rules"] = "NAME=\"eth0\"\n"
	root := imagetest.Ext(t, files, 24, "-t", "ext4", "-U", rootUUID)
	pv1, pv2 := imagetest.Blank(t, 32<<20), imagetest.Blank(t, 32<<20)
	unzip(t, "lvm/testdata/pv1.gz", pv1)
	unzip(t, "lvm/testdata/pv2.gz", pv2)
	imagetest.Put(t, pv1, 4<<20, imagetest.Get(t, root, 0, 12<<20))
	imagetest.Put(t, pv2, 2<<20, imagetest.Get(t, root, 12<<20, 12<<20))
	disk := imagetest.Blank(t, 64<<20)
	imagetest.Tool(t, "label: dos\nstart=2048, size=32768, type=83, bootable\nstart=40960, size=65536, type=8e\n", "sfdisk", "-q", disk)
	imagetest.Put(t, disk, 1<<20, imagetest.Ext(t, boot, 16, "-t", "ext4", "-U", bootUUID))
	imagetest.Put(t, disk, 20<<20, pv1)
	in := one(t, disk, 1)
	in.Disks = append(in.Disks, Source{ID: "sdb", Disk: openImage(t, pv2)})
	r := check(t, in)
	if r.Facts.Root != "vg-x:root" || r.Facts.Name != "Debian 12" || len(r.Facts.Kernels) != 1 {
		t.Errorf("%+v", r.Facts)
	}
	for id, want := range map[CheckID]string{CheckVolumes: "vg-x:wide", CheckFstab: "/also is mounted by the name", CheckFirmware: "no boot code", CheckNames: "70-persistent-net"} {
		if got := about(r, id); !strings.Contains(got, want) {
			t.Errorf("%s: %q", id, got)
		}
	}
	for _, id := range []CheckID{CheckDrivers, CheckRoot, CheckConsole, CheckNetwork} {
		if got := about(r, id); got != "" {
			t.Errorf("%s: %q", id, got)
		}
	}
	for _, f := range Plan(r) {
		if f.Refused == "" {
			t.Errorf("%+v", f)
		}
	}
	in.Disks = in.Disks[:1] // the second physical volume is excluded
	if r = check(t, in); !strings.Contains(about(r, CheckVolumes), "on none of the disks") || !strings.Contains(about(r, CheckFstab), "not checked") {
		t.Errorf("%+v", r.Findings)
	}
}

// TestManyKernels: work is bounded, and what is left out is said.
func TestManyKernels(t *testing.T) {
	t.Parallel()
	files := healthy(t)
	for k := range 20 {
		files[fmt.Sprintf("boot/vmlinuz-5.%d", k)] = "k"
		files[fmt.Sprintf("boot/config-5.%d", k)] = "CONFIG_HYPERV=y\nCONFIG_HYPERV_STORAGE=y\nCONFIG_HYPERV_NET=y\n"
	}
	r := check(t, one(t, biosDisk(t, files), 1))
	if got := about(r, CheckDrivers); len(r.Facts.Kernels) != maxKernels || r.Facts.Kernels[0].Version != "6.1.0-9-amd64" || r.Facts.Kernels[1].Version != "5.19" || !strings.Contains(got, "there are 21 kernels") {
		t.Errorf("%s, %+v", got, r.Facts.Kernels)
	}
}

// TestRootOnXFS: files are read, and nothing can be rewritten.
func TestRootOnXFS(t *testing.T) {
	t.Parallel()
	files := healthy(t)
	in := one(t, imagetest.XFS(t, files, "-m", "uuid="+rootUUID), 0)
	r := check(t, in)
	if r.Facts.Name != "Debian 12" || len(r.Facts.Kernels) != 1 || !strings.Contains(about(r, CheckVolumes), "log of the XFS") {
		t.Errorf("%+v", r)
	}
	for _, id := range []CheckID{CheckDrivers, CheckRoot, CheckFstab, CheckConsole, CheckNetwork} {
		if got := about(r, id); got != "" {
			t.Errorf("%s: %q", id, got)
		}
	}
	files["etc/fstab"] = "/dev/sda / xfs defaults 0 1\n"
	r = check(t, one(t, imagetest.XFS(t, files, "-m", "uuid="+rootUUID), 0))
	if fixes := Plan(r); len(fixes) != 1 || !strings.Contains(fixes[0].Refused, "only read") {
		t.Errorf("%+v", fixes)
	}
}

// TestFixOfAGuestThatWasRunning: the journal has a newer fstab than its place on
// the disk, and the boot loader's configuration lies on FAT.
func TestFixOfAGuestThatWasRunning(t *testing.T) {
	t.Parallel()
	files := healthy(t)
	delete(files, "boot/grub/grub.cfg")
	files["etc/fstab"] = "# the content before\n"
	part := imagetest.Ext(t, files, 38, "-t", "ext4", "-b", "4096", "-U", rootUUID)
	blocks := strings.Fields(imagetest.Tool(t, "", "debugfs", "-R", "blocks /etc/fstab", part))
	newer := imagetest.Blank(t, 0)
	text := "/dev/sda2 / ext4 defaults 0 1\n"
	if err := os.WriteFile(newer, []byte(text+strings.Repeat("\x00", 4096-len(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	imagetest.Tool(t, "set_inode_field /etc/fstab size 30\njo\njw -b "+blocks[len(blocks)-1]+" "+newer+"\njc\n", "debugfs", "-w", part)
	disk := imagetest.Blank(t, 64<<20)
	imagetest.Tool(t, "label: gpt\nstart=2048, size=32768, type="+layout.TypeESP+"\nstart=40960, size=77824, type=linux\n", "sfdisk", "-q", disk)
	imagetest.Put(t, disk, 1<<20, imagetest.FAT(t, map[string]string{"EFI/BOOT/BOOTX64.EFI": "MZ",
		"EFI/BOOT/syslinux.cfg": "DEFAULT linux\nLABEL linux\n  KERNEL /vmlinuz\n  APPEND root=UUID=" + rootUUID + " quiet\n", "vmlinuz": "k"}, 16))
	imagetest.Put(t, disk, 20<<20, part)
	in := one(t, disk, 2)
	r := check(t, in)
	if !strings.Contains(about(r, CheckFstab), "/ is mounted by the name /dev/sda2") || !strings.Contains(about(r, CheckConsole), "sda/1:/EFI/BOOT/syslinux.cfg") {
		t.Fatalf("%+v", r.Findings)
	}
	layer := NewOverlay(in.Disks[0].Disk)
	out, err := Apply(t.Context(), map[string]Layer{"sda": layer}, Plan(r))
	if err != nil || len(out) != 2 || slices.ContainsFunc(out, func(o Outcome) bool { return !o.Applied }) {
		t.Fatalf("%+v, %v", out, err)
	}
	in.Disks[0].Disk = layer
	if again := check(t, in); about(again, CheckFstab)+about(again, CheckConsole) != "" {
		t.Errorf("%+v", again.Findings)
	}
	repaired := imagetest.Copy(t, disk)
	f, err := os.OpenFile(repaired, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range layer.Pieces() {
		if _, err := f.WriteAt(p.Data, p.Off); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	p2 := imagetest.Get(t, repaired, 20<<20, 38<<20)
	imagetest.Tool(t, "", "e2fsck", "-fn", p2)
	if said := imagetest.Tool(t, "", "debugfs", "-R", "cat /etc/fstab", p2); !strings.Contains(said, "UUID="+rootUUID+" / ext4") {
		t.Errorf("%q", said)
	}
	p1 := imagetest.Get(t, repaired, 1<<20, 16<<20)
	imagetest.Tool(t, "", "fsck.fat", "-n", p1)
	if said := imagetest.Tool(t, "", "mtype", "-i", p1, "::/EFI/BOOT/syslinux.cfg"); !strings.Contains(said, "quiet console=tty0 console=ttyS0,115200n8\n") {
		t.Errorf("%q", said)
	}
}

// TestLedgerGuest looks at the guest that the project boots in its own tests.
func TestLedgerGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a guest")
	}
	t.Parallel()
	dir, err := guestimage.DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := guestimage.Build(t.Context(), guestimage.Config{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"kvm", "azure"} {
		for _, gen := range []int{1, 2} {
			in := one(t, img.Boot, gen)
			in.Target = target
			in.Disks = append(in.Disks, Source{ID: "sdb", Disk: openImage(t, img.Data)})
			r := check(t, in)
			if about(r, CheckFirmware) != "" || about(r, CheckConsole) != "" || slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == readiness.Blocks }) {
				t.Errorf("%s, generation %d: %+v", target, gen, r.Findings)
			}
			if len(r.Facts.Kernels) != 1 || len(r.Facts.Kernels[0].Drivers) != 3 {
				t.Errorf("%s: %+v, %s", target, r.Facts.Kernels, about(r, CheckDrivers))
			}
		}
	}
}
