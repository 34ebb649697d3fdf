package guestcheck

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/guestcheck/windows"
	"holdfast/internal/readiness"
)

// TestAreas: what package windows talks about are checks.
func TestAreas(t *testing.T) {
	t.Parallel()
	for _, a := range windows.Areas() {
		if !slices.Contains(Checks(), CheckID(a)) {
			t.Errorf("%s", a)
		}
	}
}

// windowsFiles is a small Windows: what the checks look at, and nothing of Microsoft's.
func windowsFiles(t testing.TB) map[string]string {
	t.Helper()
	system := "[\\Select]\n\"Default\"=dword:00000001\n\n[\\ControlSet001\\Services\\Tcpip\\Parameters\\Interfaces\\{1}]\n\"EnableDHCP\"=dword:00000001\n\n" +
		"[\\ControlSet001\\Services\\partmgr\\Parameters]\n\"SanPolicy\"=dword:00000001\n\n[\\ControlSet001\\Services\\RdAgent]\n\"Start\"=dword:00000002\n\n" +
		"[\\ControlSet001\\Services\\Dhcp]\n\"Start\"=dword:00000002\n\n[\\ControlSet001\\Control\\Terminal Server]\n\"fDenyTSConnections\"=dword:00000000\n\n"
	files := map[string]string{}
	for _, d := range []string{"vmbus", "storvsc", "storflt", "atapi", "intelide", "netvsc"} {
		system += fmt.Sprintf("[\\ControlSet001\\Services\\%s]\n\"Start\"=dword:00000000\n\n", d)
		files["Windows/System32/drivers/"+d+".sys"] = "MZ"
	}
	files["Windows/System32/config/SYSTEM"] = imagetest.Hive(t, system)
	files["Windows/System32/config/SOFTWARE"] = imagetest.Hive(t, "[\\Microsoft\\Windows NT\\CurrentVersion]\n\"ProductName\"=\"Windows Server 2022\"\n\"CurrentBuild\"=\"20348\"\n\n")
	return files
}

const windowsEntry = "{22222222-0000-0000-0000-000000000001}"

func windowsStore(t testing.TB) string {
	t.Helper()
	const m = "[\\Objects\\{9dea862c-5cdd-4e70-acc1-f32b344d4795}\\Elements\\"
	const e = "[\\Objects\\" + windowsEntry + "\\Elements\\"
	return imagetest.Hive(t, m+"23000003]\n\"Element\"=\""+windowsEntry+"\"\n\n"+m+"26000020]\n\"Element\"=hex(3):01\n\n"+e+"260000b0]\n\"Element\"=hex(3):01\n\n"+
		e+"11000001]\n\"Element\"=hex(3):00\n\n")
}

// windowsUEFI is a disk with an EFI system partition and Windows.
func windowsUEFI(t testing.TB, esp, files map[string]string) string {
	t.Helper()
	disk := imagetest.Blank(t, 64<<20)
	imagetest.Tool(t, "label: gpt\nstart=2048, size=32768, type="+layout.TypeESP+"\nstart=40960, size=77824, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7\n", "sfdisk", "-q", disk)
	imagetest.Put(t, disk, 1<<20, imagetest.FAT(t, esp, 16))
	imagetest.Put(t, disk, 20<<20, imagetest.NTFSTree(t, 38, files))
	return disk
}

func TestWindowsByUEFI(t *testing.T) {
	t.Parallel()
	esp := map[string]string{"EFI/BOOT/BOOTX64.EFI": "MZ", "EFI/Microsoft/Boot/BCD": windowsStore(t)}
	files := windowsFiles(t)
	in := one(t, windowsUEFI(t, esp, files), 2)
	in.OSType = "Windows"
	for _, target := range []string{"azure", "hyperv"} {
		in.Target = target
		r := check(t, in)
		if len(r.Findings) > 0 || r.Facts.OS != "Windows" || r.Facts.Name != "Windows Server 2022, build 20348" || r.Facts.Root != "sda/2" {
			t.Errorf("%s: %+v\n%+v", target, r.Findings, r.Facts)
		}
		for _, x := range r.Results {
			want := readiness.Met
			if slices.Contains([]CheckID{CheckFstab, CheckNames}, x.Check) {
				want = NotApplicable
			}
			if x.Status != want {
				t.Errorf("%s: %s is %s", target, x.Check, x.Status)
			}
		}
	}
	in.Target = "kvm"
	if got := about(check(t, in), CheckDrivers); !strings.Contains(got, "error|") || !strings.Contains(got, "viostor is not installed") {
		t.Errorf("%q", got)
	}
	delete(esp, "EFI/Microsoft/Boot/BCD")
	files["Windows/System32/config/SOFTWARE"] = "no hive at all"
	hiber := make([]byte, 8192)
	copy(hiber, "hibr")
	files["hiberfil.sys"] = string(hiber)
	in = one(t, windowsUEFI(t, esp, files), 2)
	r := check(t, in)
	for id, want := range map[CheckID]string{CheckFirmware: "there is no boot store", CheckSystem: "SOFTWARE can't be read", CheckVolumes: "Windows was hibernated", CheckRoot: "not checked, because"} {
		if got := about(r, id); !strings.Contains(got, want) {
			t.Errorf("%s: %q", id, got)
		}
	}
	if len(Plan(r)) != 0 {
		t.Errorf("fixes for Windows: %+v", Plan(r))
	}
}

// TestWindowsByBIOS: one partition, as old installations have it; then damage.
func TestWindowsByBIOS(t *testing.T) {
	t.Parallel()
	files := windowsFiles(t)
	files["Boot/BCD"] = windowsStore(t)
	disk := imagetest.Blank(t, 40<<20)
	imagetest.Tool(t, "label: dos\nstart=2048, type=7, bootable\n", "sfdisk", "-q", disk)
	imagetest.Put(t, disk, 1<<20, imagetest.NTFSTree(t, 38, files))
	put := func(off int64, b []byte) {
		f, err := os.OpenFile(disk, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	put(0, []byte{0xFA, 0x33, 0xC0}) // boot code
	in := one(t, disk, 1)
	in.OSType = "Windows"
	if r := check(t, in); len(r.Findings) > 0 || r.Facts.Root != "sda/1" || r.Facts.Volumes[0].UUID == "" {
		t.Errorf("%+v", r)
	}
	put(446+4, []byte{0x42}) // a dynamic disk
	if got := about(check(t, in), CheckVolumes); !strings.Contains(got, "error|sda|Windows starts from a dynamic disk") {
		t.Errorf("%q", got)
	}
	in.Target = "hyperv"
	if got := about(check(t, in), CheckVolumes); strings.Contains(got, "error|") {
		t.Errorf("%q", got)
	}
	put(1<<20+48, []byte{0xFF, 0xFF, 0xFF, 0x7F, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0x7F}) // the file table lies nowhere
	for _, os := range []string{"Windows", ""} {
		in.OSType = os
		r := check(t, in)
		for _, id := range []CheckID{CheckVolumes, CheckSystem, CheckDrivers, CheckNetwork, CheckRemote, CheckRoot, CheckStorage, CheckUpdates} {
			if !strings.Contains(about(r, id), "not checked, because") {
				t.Errorf("%q: %s: %q", os, id, about(r, id))
			}
		}
	}
}
