// Package windows says from a Windows guest's files what would keep it from
// booting, or from being reached, on another platform: its registry (SYSTEM and
// SOFTWARE) and its boot store (BCD).
//
// It owns the checks of Windows guests; package guestcheck finds the volumes and
// makes the report. It promises: what can't be read is said to be not checked,
// and never passes. There are no fixes for Windows: a registry that was in use
// can't be changed safely without Windows. The names of drivers and services are
// those of Microsoft's "Prepare a Windows VHD to upload to Azure", of the drivers
// that Azure Site Recovery asks for (error 170010), and of the virtio drivers.
package windows

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"holdfast/internal/guestcheck/ntfs"
	"holdfast/internal/guestcheck/regf"
	"holdfast/internal/readiness"
)

// Area is what a finding is about: a check of package guestcheck.
type Area string

// The areas.
const (
	System   Area = "operating-system"
	Firmware Area = "boot-firmware"
	Drivers  Area = "boot-drivers"
	Root     Area = "root-device"
	Console  Area = "serial-console"
	Network  Area = "network"
	Agent    Area = "guest-agent"
	Remote   Area = "remote-access"
	Storage  Area = "data-disks"
	Updates  Area = "pending-updates"
)

// Areas returns all areas.
func Areas() []Area {
	return []Area{System, Firmware, Drivers, Root, Console, Network, Agent, Remote, Storage, Updates}
}

// Sink takes what is found.
type Sink interface {
	Ran(Area) // the check could look
	Found(a Area, sev readiness.Severity, object, wayOut, reason string)
	Skip(a Area, object, because string) // it could not
}

// Files is a file system. Names are separated by slashes; an absent one is fs.ErrNotExist.
type Files interface {
	Open(name string) (*io.SectionReader, error)
}

// Volume is a volume of the guest.
type Volume struct {
	Name     string
	Files    Files // nil if it can't be read; Err says why
	Err      error
	OnBoot   bool   // it is on the disk that the VM boots from
	Active   bool   // marked active in the MBR
	ESP      bool   // the EFI system partition, or what takes its place
	Start    int64  // bytes, on its disk
	PartUUID string // GPT, lower case
}

// Input is what is looked at.
type Input struct {
	Target     string // azure, hyperv or kvm
	Generation int    // 1 = BIOS, 2 = UEFI, 0 = not known
	System     Volume // with \Windows
	Volumes    []Volume
	Whole      bool // all disks' partition tables could be read
	Disks      int
}

// Facts is what was seen.
type Facts struct {
	Name    string   // product and build
	Network []string // in words, one per interface
	Agents  []string
}

// inspection is one run.
type inspection struct {
	in       Input
	out      Sink
	facts    Facts
	system   *regf.Hive
	software *regf.Hive
	set      string // the control set
	build    int
}

const config = "/Windows/System32/config/"

// Inspect looks at a Windows guest.
func Inspect(in Input, out Sink) Facts {
	i := &inspection{in: in, out: out}
	i.system = i.hive("SYSTEM", Drivers, Network, Agent, Remote, Storage, Updates)
	i.software = i.hive("SOFTWARE", System, Updates)
	if i.software != nil {
		i.version()
		i.servicing()
	}
	if i.system != nil && i.controlSet() {
		i.drivers()
		i.network()
		i.agents()
		i.remote()
		i.storage()
		i.renames()
	}
	i.bootStore()
	return i.facts
}

func (i *inspection) found(a Area, sev readiness.Severity, object, wayOut, reason string, args ...any) {
	i.out.Found(a, sev, i.in.System.Name+":"+object, wayOut, fmt.Sprintf(reason, args...))
}

// hive opens a hive; the areas are not checked without it.
func (i *inspection) hive(name string, areas ...Area) *regf.Hive {
	f, err := i.in.System.Files.Open(config + name)
	var h *regf.Hive
	if err == nil {
		h, err = regf.Open(f, f.Size())
	}
	if err != nil {
		for _, a := range areas {
			i.out.Skip(a, i.in.System.Name+":"+config+name, fmt.Sprintf("the registry hive %s can't be read: %v", name, err))
		}
		return nil
	}
	if h.Dirty() {
		i.found(System, readiness.Notes, config+name, "", "the registry hive %s was in use; its transaction logs are not replayed, so that the newest changes may be missing here", name)
	}
	return h
}

// answer is whether a question to the registry could be answered.
type answer int

const (
	unknown answer = iota // it was reported
	absent
	have
)

func (i *inspection) told(a Area, object string, err error) answer {
	switch {
	case err == nil:
		return have
	case errors.Is(err, fs.ErrNotExist):
		return absent
	}
	i.out.Skip(a, i.in.System.Name+":"+object, fmt.Sprintf("the registry can't be read there: %v", err))
	return unknown
}

func (i *inspection) key(a Area, h *regf.Hive, path string) (regf.Key, answer) {
	k, err := h.Key(path)
	return k, i.told(a, path, err)
}

func (i *inspection) value(a Area, h *regf.Hive, path, name string) (regf.Value, answer) {
	k, is := i.key(a, h, path)
	if is != have {
		return regf.Value{}, is
	}
	v, err := k.Value(name)
	return v, i.told(a, path, err)
}

// number asks for a number; a value of another type counts as absent.
func (i *inspection) number(a Area, h *regf.Hive, path, name string) (uint64, answer) {
	v, is := i.value(a, h, path, name)
	n, ok := v.Uint()
	if is == have && !ok {
		is = absent
	}
	return n, is
}

// controlSet finds the control set that the next start takes.
func (i *inspection) controlSet() bool {
	n, is := i.number(Drivers, i.system, "Select", "Default")
	if is == absent {
		n, is = i.number(Drivers, i.system, "Select", "Current")
	}
	why := "the registry does not say which control set Windows starts with"
	if is == have {
		i.set = fmt.Sprintf("ControlSet%03d", n)
		if _, err := i.system.Key(i.set); err == nil {
			return true
		}
		why = "the registry's control set " + i.set + " can't be found"
	}
	for _, a := range []Area{Drivers, Network, Agent, Remote, Storage, Updates} {
		i.out.Skip(a, i.in.System.Name+":"+config+"SYSTEM", why)
	}
	return false
}

func (i *inspection) service(name string) string { return i.set + `\Services\` + name }

const currentVersion = `Microsoft\Windows NT\CurrentVersion`

// version says which Windows it is, and what is too old for the target.
func (i *inspection) version() {
	k, is := i.key(System, i.software, currentVersion)
	if is == unknown {
		return
	}
	text := func(name string) string {
		if is != have {
			return ""
		}
		v, err := k.Value(name)
		i.told(System, currentVersion, err)
		return v.Text()
	}
	product, build, kind := text("ProductName"), text("CurrentBuild"), text("InstallationType")
	if build == "" {
		build = text("CurrentBuildNumber")
	}
	if _, err := fmt.Sscanf(build, "%d", &i.build); err != nil {
		i.out.Skip(System, i.in.System.Name+":"+currentVersion, "the registry does not say which build of Windows it is")
		return
	}
	if i.build >= 22000 && kind == "Client" {
		product = strings.Replace(product, "Windows 10", "Windows 11", 1) // as Windows 11 itself still says there
	}
	i.facts.Name = strings.TrimSpace(fmt.Sprintf("%s, build %d", product, i.build))
	if e := text("EditionID"); e != "" {
		i.facts.Name += " (" + e + ")"
	}
	i.out.Ran(System)
	hv := i.in.Target != "kvm"
	switch {
	case hv && i.build < 6002:
		i.found(System, readiness.Blocks, currentVersion, "Move the workload to a later Windows.", "%s is older than Windows Server 2008 SP2, which is the oldest that Hyper-V's integration services and Azure know", i.facts.Name)
	case i.in.Target == "azure" && i.build < 7601:
		i.found(System, readiness.Warns, currentVersion, "Move the workload to a later Windows, or recover it on a Hyper-V host.", "%s is older than Windows Server 2008 R2 SP1, the oldest that runs in Azure without further measures", i.facts.Name)
	case i.build < 14393:
		i.found(System, readiness.Notes, currentVersion, "", "%s is out of Microsoft's regular support", i.facts.Name)
	}
	if i.in.Generation == 2 && hv && i.build < 9200 {
		i.found(System, readiness.Blocks, currentVersion, "Recover the VM as generation 1, if the source starts it so.", "%s does not start on a VM of generation 2; Windows 8 and Windows Server 2012 are the first that do", i.facts.Name)
	}
}

// servicing looks for updates that wait for a restart.
func (i *inspection) servicing() {
	for _, c := range [][2]string{
		{`Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending`, "installed updates or features wait for a restart"},
		{`Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired`, "Windows Update waits for a restart"},
	} {
		_, is := i.key(Updates, i.software, c[0])
		if is != unknown {
			i.out.Ran(Updates)
		}
		if is == have {
			i.found(Updates, readiness.Warns, c[0], "Restart the guest at the source, then take the next recovery point.", "%s: the first start at the target goes on with it, takes longer, and may fail with it", c[1])
		}
	}
}

func (i *inspection) renames() {
	path := i.set + `\Control\Session Manager`
	v, is := i.value(Updates, i.system, path, "PendingFileRenameOperations")
	if n := len(v.Strings()); is == have && n > 0 {
		i.found(Updates, readiness.Warns, path, "Restart the guest at the source, then take the next recovery point.", "files are to be replaced at the next start (PendingFileRenameOperations, %d names)", n)
	}
}

// exists tells whether a file is there. What is not followed, such as one that
// is compressed by WOF, is there.
func (i *inspection) exists(a Area, name string) answer {
	_, err := i.in.System.Files.Open(name)
	if r := (*ntfs.ReparseError)(nil); errors.As(err, &r) && r.Name == name {
		return have
	}
	return i.told(a, name, err)
}
