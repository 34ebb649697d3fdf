package windows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"holdfast/internal/guestcheck/imagetest"
	"holdfast/internal/guestcheck/ntfs"
	"holdfast/internal/readiness"
)

// tree is a file system in memory; a content that is an error is what Open returns.
type tree map[string]any

func (f tree) Open(name string) (*io.SectionReader, error) {
	for n, b := range f {
		if !strings.EqualFold(n, name) {
			continue
		}
		if err, ok := b.(error); ok {
			return nil, err
		}
		return io.NewSectionReader(strings.NewReader(b.(string)), 0, int64(len(b.(string)))), nil
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// log is a Sink that keeps lines.
type log struct {
	lines []string
	ran   map[Area]bool
}

func (l *log) Ran(a Area) { l.ran[a] = true }
func (l *log) Found(a Area, sev readiness.Severity, object, wayOut, reason string) {
	l.lines = append(l.lines, fmt.Sprintf("%s|%s|%s|%s", a, sev, object, reason))
}
func (l *log) Skip(a Area, object, because string) {
	l.lines = append(l.lines, fmt.Sprintf("%s|not checked|%s|%s", a, object, because))
}

func service(name string, start int) string {
	return fmt.Sprintf("[\\ControlSet001\\Services\\%s]\n\"Start\"=dword:%08x\n\"ImagePath\"=%s\n\n", name, start, expand(`System32\drivers\`+name+`.sys`))
}

// expand writes a REG_EXPAND_SZ.
func expand(s string) string { return "hex(2):" + hexes(utf16le(s+"\x00")) }

func utf16le(s string) []byte {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r), byte(r>>8))
	}
	return b
}

func hexes(b []byte) string {
	var out []string
	for _, x := range b {
		out = append(out, fmt.Sprintf("%02x", x))
	}
	return strings.Join(out, ",")
}

const (
	iface    = `[\ControlSet001\Services\Tcpip\Parameters\Interfaces\{11111111-2222-3333-4444-555555555555}]`
	partUUID = "01234567-89ab-cdef-0123-456789abcdef"
)

func systemReg() string {
	s := "[\\Select]\n\"Current\"=dword:00000001\n\"Default\"=dword:00000001\n\n"
	for _, d := range []string{"vmbus", "storvsc", "storflt", "atapi", "intelide", "viostor"} {
		s += service(d, 0)
	}
	return s + service("netvsc", 3) + service("netkvm", 3) + service("Dhcp", 2) + service("RdAgent", 2) +
		iface + "\n\"EnableDHCP\"=dword:00000001\n\n" +
		"[\\ControlSet001\\Services\\partmgr\\Parameters]\n\"SanPolicy\"=dword:00000001\n\n" +
		"[\\ControlSet001\\Control\\Terminal Server]\n\"fDenyTSConnections\"=dword:00000000\n\n" +
		"[\\ControlSet001\\Control\\Session Manager]\n\"x\"=\"y\"\n\n" +
		"[\\ControlSet001\\Services\\SharedAccess\\Parameters\\FirewallPolicy\\StandardProfile]\n\"EnableFirewall\"=dword:00000001\n\n" +
		"[\\ControlSet001\\Services\\SharedAccess\\Parameters\\FirewallPolicy\\FirewallRules]\n\"RemoteDesktop-UserMode-In-TCP\"=\"v2.31|Action=Allow|Active=TRUE|Dir=In|Protocol=6|LPort=3389|App=svchost.exe|\"\n\n"
}

const softwareReg = "[\\Microsoft\\Windows NT\\CurrentVersion]\n\"ProductName\"=\"Windows Server 2022 Datacenter\"\n\"CurrentBuild\"=\"20348\"\n\"EditionID\"=\"ServerDatacenter\"\n\"InstallationType\"=\"Server\"\n\n" +
	"[\\Microsoft\\Windows\\CurrentVersion\\Component Based Servicing]\n\"x\"=\"y\"\n\n"

const entryGUID = "{22222222-0000-0000-0000-000000000001}"

// device is the element that names a partition.
func device(gpt bool, start uint64) []byte {
	b := make([]byte, 88)
	binary.LittleEndian.PutUint32(b[16:], 6)
	binary.LittleEndian.PutUint32(b[24:], 72)
	if gpt {
		copy(b[32:], "\x67\x45\x23\x01\xab\x89\xef\xcd\x01\x23\x45\x67\x89\xab\xcd\xef")
		return b
	}
	binary.LittleEndian.PutUint64(b[32:], start)
	b[52] = 1
	return b
}

func bcdReg(uefi bool) string {
	path := `\\Windows\\system32\\winload.exe`
	if uefi {
		path = `\\Windows\\system32\\winload.efi`
	}
	d := hexes(device(uefi, 1<<20))
	e := func(object, kind, value string) string {
		return "[\\Objects\\" + object + "\\Elements\\" + kind + "]\n\"Element\"=" + value + "\n\n"
	}
	return e(bootManager, elementDefault, `"`+entryGUID+`"`) + e(bootManager, elementBootEMS, "hex(3):01") + e(entryGUID, elementDevice, "hex(3):"+d) +
		e(entryGUID, elementSystem, "hex(3):"+d) + e(entryGUID, elementPath, `"`+path+`"`) + e(entryGUID, elementEMS, "hex(3):01")
}

var hives sync.Map // hives by what they are made of, made once

func hive(t testing.TB, reg string) string {
	if b, ok := hives.Load(reg); ok {
		return b.(string)
	}
	b := imagetest.Hive(t, reg)
	hives.Store(reg, b)
	return b
}

// guest is a healthy Windows guest, changed by replacements in its registry and boot store.
func guest(t testing.TB, target string, gen int, changes ...string) Input {
	t.Helper()
	r := strings.NewReplacer(changes...)
	files := tree{config + "SYSTEM": hive(t, r.Replace(systemReg())), config + "SOFTWARE": hive(t, r.Replace(softwareReg))}
	for _, d := range []string{"vmbus", "storvsc", "storflt", "atapi", "intelide", "viostor", "netvsc", "netkvm"} {
		files["/Windows/System32/drivers/"+d+".sys"] = "MZ"
	}
	in := Input{Target: target, Generation: gen, Disks: 1, Whole: true}
	in.System = Volume{Name: "sda/2", Files: files, OnBoot: true, Start: 1 << 20, PartUUID: partUUID}
	boot := Volume{Name: "sda/1", OnBoot: true, Start: 512, Active: gen == 1, ESP: gen == 2}
	name := "/Boot/BCD"
	if gen == 2 {
		name = "/EFI/Microsoft/Boot/BCD"
	}
	boot.Files = tree{name: hive(t, r.Replace(bcdReg(gen == 2)))}
	in.Volumes = []Volume{boot, in.System}
	return in
}

func inspect(in Input) (*log, Facts) {
	l := &log{ran: map[Area]bool{}}
	return l, Inspect(in, l)
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"azure", "hyperv", "kvm"} {
		for _, gen := range []int{1, 2} {
			l, facts := inspect(guest(t, target, gen))
			if len(l.lines) > 0 || facts.Name != "Windows Server 2022 Datacenter, build 20348 (ServerDatacenter)" || len(facts.Network) != 1 || !slices.Equal(facts.Agents, []string{"Azure VM agent"}) {
				t.Errorf("%s, generation %d: %+v\n%s", target, gen, facts, strings.Join(l.lines, "\n"))
			}
			for _, a := range Areas() {
				if !l.ran[a] {
					t.Errorf("%s did not run", a)
				}
			}
		}
	}
}

// TestFindings: each case breaks one thing of the healthy guest.
func TestFindings(t *testing.T) {
	t.Parallel()
	dword := func(name string, v int) string { return fmt.Sprintf("\"%s\"=dword:%08x", name, v) }
	start := func(name string, from, to int) []string { return []string{service(name, from), service(name, to)} }
	for _, c := range []struct {
		name    string
		target  string
		gen     int
		changes []string
		want    string // line
	}{
		{"vmbus late", "azure", 2, start("vmbus", 0, 3), "boot-drivers|error|sda/2:ControlSet001\\Services\\vmbus|the driver for Hyper-V's bus: vmbus is not started at boot (Start is 3)"},
		{"storvsc off", "hyperv", 1, start("storvsc", 0, 4), "storvsc is disabled; Windows would not find its disk"},
		{"storvsc absent", "azure", 1, []string{service("storvsc", 0), ""}, "boot-drivers|error|sda/2:ControlSet001\\Services\\storvsc|the driver for Hyper-V disks: storvsc is not installed"},
		{"storflt late", "azure", 1, start("storflt", 0, 3), "boot-drivers|warning|"},
		{"netvsc off", "azure", 1, start("netvsc", 3, 4), "boot-drivers|warning|sda/2:ControlSet001\\Services\\netvsc|the driver for Hyper-V network: netvsc is disabled; without it there is no network"},
		{"atapi late", "azure", 1, start("atapi", 0, 3), "boot-drivers|error|sda/2:ControlSet001\\Services\\atapi"},
		{"intelide late", "azure", 1, start("intelide", 0, 3), "boot-drivers|error|sda/2:ControlSet001\\Services\\intelide"},
		{"intelide, generation not known", "azure", 0, start("intelide", 0, 3), "boot-drivers|warning|sda/2:ControlSet001\\Services\\intelide"},
		{"no viostor", "kvm", 1, []string{service("viostor", 0), ""}, "boot-drivers|error|sda/2:ControlSet001\\Services\\viostor|the driver for virtio disks: viostor is not installed"},
		{"viostor late", "kvm", 2, start("viostor", 0, 3), "viostor is not started at boot"},
		{"no netkvm", "kvm", 1, []string{service("netkvm", 3), ""}, "boot-drivers|warning|"},
		{"file gone", "azure", 1, []string{expand(`System32\drivers\vmbus.sys`), expand(`\SystemRoot\System32\drivers\gone.sys`)}, "vmbus's file /Windows/System32/drivers/gone.sys is missing"},
		{"held back", "azure", 1, []string{"[\\Select]", "[\\ControlSet001\\Services\\storvsc\\StartOverride]\n\"0\"=dword:00000003\n\n[\\Select]"}, "boot-drivers|info|sda/2:ControlSet001\\Services\\storvsc\\StartOverride"},
		{"control set gone", "azure", 1, []string{dword("Default", 1), dword("Default", 7)}, "boot-drivers|not checked|"},
		{"2008", "azure", 1, []string{"20348", "6001"}, "operating-system|error|"},
		{"2008 R2", "azure", 1, []string{"20348", "7600"}, "operating-system|warning|"},
		{"2012", "hyperv", 1, []string{"20348", "9200"}, "operating-system|info|"},
		{"2008 R2 by UEFI", "hyperv", 2, []string{"20348", "7601"}, "does not start on a VM of generation 2"},
		{"no build", "azure", 1, []string{`"CurrentBuild"=`, `"x"=`}, "operating-system|not checked|"},
		{"static", "azure", 1, []string{iface + "\n" + dword("EnableDHCP", 1), iface + "\n" + dword("EnableDHCP", 0) + "\n\"IPAddress\"=hex(7):" + hexes(utf16le("10.0.0.9\x00\x00"))}, "network|warning|sda/2:ControlSet001\\Services\\Tcpip\\Parameters\\Interfaces\\{11111111-2222-3333-4444-555555555555}|the static address 10.0.0.9"},
		{"no interfaces", "azure", 1, []string{iface + "\n" + dword("EnableDHCP", 1), "[\\ControlSet001\\x]"}, "network|not checked|"},
		{"no DHCP client", "azure", 1, start("Dhcp", 2, 4), "network|warning|"},
		{"no DHCP client", "kvm", 1, start("Dhcp", 2, 4), "network|info|"},
		{"routes", "azure", 1, []string{"[\\Select]", "[\\ControlSet001\\Services\\Tcpip\\Parameters\\PersistentRoutes]\n\"10.1.0.0,255.255.0.0,10.0.0.1,1\"=\"\"\n\n[\\Select]"}, "1 persistent routes"},
		{"proxy", "azure", 1, []string{"[\\Microsoft\\Windows NT", "[\\Microsoft\\Windows\\CurrentVersion\\Internet Settings\\Connections]\n\"WinHttpSettings\"=hex(3):28,00,00,00,00,00,00,00,03,00,00,00\n\n[\\Microsoft\\Windows NT"}, "a proxy is set for services"},
		{"no agent", "azure", 1, []string{service("RdAgent", 2), ""}, "guest-agent|info|"},
		{"RDP off", "azure", 1, []string{dword("fDenyTSConnections", 0), dword("fDenyTSConnections", 1)}, "remote-access|info|sda/2:ControlSet001\\Control\\Terminal Server|Remote Desktop is off"},
		{"RDP port", "azure", 1, []string{"[\\Select]", "[\\ControlSet001\\Control\\Terminal Server\\WinStations\\RDP-Tcp]\n\"PortNumber\"=dword:00000d3e\n\n[\\Select]"}, "listens at port 3390"},
		{"RDP rule", "azure", 1, []string{"Active=TRUE", "Active=FALSE"}, "no rule of the registry lets Remote Desktop in (port 3389)"},
		{"SAN policy", "azure", 1, []string{dword("SanPolicy", 1), dword("SanPolicy", 3)}, "data-disks|info|sda/2:ControlSet001\\Services\\partmgr\\Parameters|the policy for new disks (SanPolicy) is OfflineShared"},
		{"updates", "azure", 1, []string{`Component Based Servicing]`, `Component Based Servicing\RebootPending]`}, "pending-updates|warning|"},
		{"renames", "azure", 1, []string{`Session Manager]`, "Session Manager]\n\"PendingFileRenameOperations\"=hex(7):" + hexes(utf16le("\\??\\C:\\a\x00\x00"))}, "PendingFileRenameOperations, 1 names"},
		{"no default entry", "azure", 1, []string{`Element"="` + entryGUID, `Element"="`}, "root-device|not checked|"},
		{"wrong default entry", "azure", 2, []string{`Element"="` + entryGUID, `Element"="{33333333-0000-0000-0000-000000000001}`}, "root-device|error|sda/1:/EFI/Microsoft/Boot/BCD|the boot store's default entry {33333333"},
		{"winload of BIOS", "azure", 2, []string{"winload.efi", "winload.exe"}, "which is for the other kind of firmware"},
		{"partition by GUID", "azure", 2, []string{hexes(device(true, 0)), hexes(append(device(true, 0)[:47], make([]byte, 41)...))}, "root-device|error|"},
		{"partition by offset", "azure", 1, []string{hexes(device(false, 1<<20)), hexes(device(false, 2<<20))}, "has the partition that the boot store starts Windows from: a partition at byte 2097152"},
		{"no EMS", "azure", 1, []string{elementBootEMS, "26000021"}, "serial-console|info|"},
	} {
		t.Run(c.name+" "+c.target, func(t *testing.T) {
			t.Parallel()
			l, _ := inspect(guest(t, c.target, c.gen, c.changes...))
			if !slices.ContainsFunc(l.lines, func(s string) bool { return strings.Contains(s, c.want) }) {
				t.Errorf("want %q:\n%s", c.want, strings.Join(l.lines, "\n"))
			}
		})
	}
}

// TestNotChecked: what can't be read never passes.
func TestNotChecked(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is broken")
	for _, c := range []struct {
		name  string
		spoil func(*Input)
		want  []string
	}{
		{"SYSTEM", func(in *Input) { in.System.Files.(tree)[config+"SYSTEM"] = broken }, []string{"boot-drivers|not", "network|not", "guest-agent|not", "remote-access|not", "data-disks|not", "pending-updates|not"}},
		{"SYSTEM is no hive", func(in *Input) { in.System.Files.(tree)[config+"SYSTEM"] = strings.Repeat("x", 9000) }, []string{"boot-drivers|not", "network|not"}},
		{"SOFTWARE", func(in *Input) { in.System.Files.(tree)[config+"SOFTWARE"] = broken }, []string{"operating-system|not", "pending-updates|not"}},
		{"driver", func(in *Input) { in.System.Files.(tree)["/Windows/System32/drivers/storvsc.sys"] = broken }, []string{"boot-drivers|not"}},
		{"boot store", func(in *Input) { in.Volumes[0].Files.(tree)["/Boot/BCD"] = broken }, []string{"boot-firmware|not", "root-device|not", "serial-console|not"}},
		{"boot volume", func(in *Input) { in.Volumes[0].Files, in.Volumes[0].Err = nil, broken }, []string{"boot-firmware|not checked|sda/1|the volume can't be read: the disk is broken", "root-device|not", "serial-console|not"}},
		{"no boot volume", func(in *Input) { in.Volumes[0].Active = false }, []string{"boot-firmware|not", "root-device|not"}},
		{"no boot store", func(in *Input) { in.Volumes[0].Files = tree{} }, []string{"boot-firmware|error", "root-device|not", "serial-console|not"}},
		{"partition in a table that is not read", func(in *Input) { in.Volumes[1].Start, in.Whole = 77, false }, []string{"root-device|not"}},
		{"data disks", func(in *Input) {
			in.Disks = 2
			in.System.Files.(tree)[config+"SYSTEM"] = hive(t, strings.Replace(systemReg(), "SanPolicy", "x", 1))
		}, []string{"data-disks|warning"}},
		{"hive in use", func(in *Input) {
			b := []byte(in.System.Files.(tree)[config+"SYSTEM"].(string))
			binary.LittleEndian.PutUint32(b[4:], binary.LittleEndian.Uint32(b[8:])+1)
			imagetest.SealHive(b)
			in.System.Files.(tree)[config+"SYSTEM"] = string(b)
		}, []string{"operating-system|info"}},
	} {
		in := guest(t, "azure", 1)
		c.spoil(&in)
		l, _ := inspect(in)
		for _, w := range c.want {
			if !slices.ContainsFunc(l.lines, func(s string) bool { return strings.HasPrefix(s, w) }) {
				t.Errorf("%s: want %q:\n%s", c.name, w, strings.Join(l.lines, "\n"))
			}
		}
	}
	in := guest(t, "azure", 1) // compressed by WOF: it is there
	name := "/Windows/System32/drivers/storvsc.sys"
	in.System.Files.(tree)[name] = &ntfs.ReparseError{Name: name, Tag: 0x80000017}
	if l, _ := inspect(in); len(l.lines) > 0 {
		t.Errorf("%q", l.lines)
	}
}

// FuzzStore reads damaged boot stores and registries.
func FuzzStore(f *testing.F) {
	store := hive(f, bcdReg(false))
	system := hive(f, systemReg())
	f.Add(uint32(36), uint32(0x80), uint32(5000), uint32(1<<31))
	f.Fuzz(func(t *testing.T, a, x, b, y uint32) {
		change := func(s string, at, v uint32) string {
			h := bytes.Clone([]byte(s))
			binary.LittleEndian.PutUint32(h[int(at)%(len(h)-4):], v)
			imagetest.SealHive(h)
			return string(h)
		}
		in := Input{Target: "azure", Generation: 1, Disks: 1}
		in.System = Volume{Files: tree{config + "SYSTEM": change(system, b, y)}}
		in.Volumes = []Volume{{Files: tree{"/Boot/BCD": change(store, a, x)}, OnBoot: true, Active: true}}
		inspect(in)
	})
}
