// Package readiness says whether VMs can be protected and recovered, and what
// an administrator should put right before the bad day: the support-matrix
// rules for each kind of target, per VM, and the best-practice checks of an estate.
//
// It owns the rules and the report; it asks nobody. What the caller does not
// know is left empty in the nouns of package dr, and then the rule says that it
// was not checked instead of passing.
//
// Sources: the support matrix for Hyper-V to Azure (as of December 2020, with
// the deployment planner's limits where they differ) and the Best Practices
// Analyzer's rules 37 to 54 for Hyper-V Replica.
package readiness

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// Severity of a finding.
type Severity string

// The severities, worst first.
const (
	Blocks Severity = "error"   // the VM can't be protected, or not be recovered at this target
	Warns  Severity = "warning" // it can, but something will be missing or worse than it could be
	Notes  Severity = "info"
)

func (s Severity) rank() int { return slices.Index([]Severity{Blocks, Warns, Notes}, s) }

// Finding is one rule that a VM does not meet.
type Finding struct {
	Rule     string   `json:"rule"` // stable id such as os-disk-size
	Severity Severity `json:"severity"`
	Object   string   `json:"object,omitempty"` // disk or adapter; empty = the VM
	Code     dr.Code  `json:"code,omitempty"`   // of the catalogue, where replication itself would refuse
	Reason   string   `json:"reason"`
	WayOut   string   `json:"wayOut"`
}

// Profile is the data of a target: what it can take. Zero limits are none.
type Profile struct {
	Name           string // azure, hyperv, kvm
	Title          string
	OSDiskGen1     int64 // bytes
	OSDiskGen2     int64
	DataDisk       int64
	DataDisks      int
	Name63         bool // the recovery VM's name follows Azure's rules
	NoGen2Linux    bool
	No4KLogical    bool
	StaticIPLinux  bool // a static address can be set in Linux guests
	OldGuests      bool // guests before Windows Server 2012 with UEFI run
	ForeignDrivers bool // the guest needs drivers of another hypervisor when it comes from Hyper-V or KVM respectively
}

// Profiles returns the targets that are known, Azure first.
func Profiles() []Profile {
	return []Profile{
		{Name: "azure", Title: "Microsoft Azure", OSDiskGen1: 2047 << 30, OSDiskGen2: 300 << 30, DataDisk: 4095 << 30, DataDisks: 16, Name63: true, NoGen2Linux: true, No4KLogical: true},
		{Name: "hyperv", Title: "Hyper-V hosts", OSDiskGen1: 2040 << 30, DataDisk: 64 << 40, DataDisks: 259, StaticIPLinux: true, OldGuests: true},
		{Name: "kvm", Title: "KVM hosts", StaticIPLinux: true, OldGuests: true, No4KLogical: false, ForeignDrivers: true},
	}
}

// ProfileByName finds a target.
func ProfileByName(name string) (Profile, error) {
	var names []string
	for _, p := range Profiles() {
		if strings.EqualFold(p.Name, name) {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, dr.Errorf(dr.KindInvalid, "readiness", "there is no target %q; choose one of %s", name, strings.Join(names, ", "))
}

var azureName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// CheckVM applies the rules of a target to a VM, worst findings first. kvm
// tells that the VM's host is a KVM host.
func CheckVM(vm dr.VM, p Profile, kvm bool) []Finding {
	var out []Finding
	add := func(rule string, sev Severity, object string, code dr.Code, reason, wayOut string, args ...any) {
		out = append(out, Finding{Rule: rule, Severity: sev, Object: object, Code: code, Reason: fmt.Sprintf(reason, args...), WayOut: wayOut})
	}
	checkDisks(vm, p, add)
	checkMachine(vm, p, kvm, add)
	slices.SortStableFunc(out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Object, b.Object))
	})
	return out
}

type adder func(rule string, sev Severity, object string, code dr.Code, reason, wayOut string, args ...any)

func checkDisks(vm dr.VM, p Profile, add adder) {
	boot, data := 0, 0
	for _, d := range vm.Disks {
		entry := func(c dr.Code) string { e, _ := dr.Lookup(c); return e.Remedy }
		switch {
		case d.PassThru:
			add("pass-through", Blocks, d.ID, dr.CodeDiskPassThrough, "disk %s is a physical device handed to the VM", entry(dr.CodeDiskPassThrough), d.Path)
		case d.Shared:
			add("shared-disk", Blocks, d.ID, dr.CodeDiskShared, "disk %s is shared with other VMs", entry(dr.CodeDiskShared), d.Path)
		case d.Unreplicatable != "" && strings.EqualFold(d.Format, "vhd"):
			add("vhd", Blocks, d.ID, dr.CodeDiskFormatVHD, "disk %s is a VHD, whose changes can't be tracked", entry(dr.CodeDiskFormatVHD), d.Path)
		case d.Unreplicatable != "":
			add("not-trackable", Blocks, d.ID, dr.CodeDiskNotTrackable, "changes of disk %[1]s can't be tracked: %[2]s", entry(dr.CodeDiskNotTrackable), d.Path, d.Unreplicatable)
		case d.Size <= 0:
			add("size-unknown", Blocks, d.ID, dr.CodeDiskNotTrackable, "the size of disk %s is not known; its file may be missing", "Look after the file on the host, or remove the disk from the VM.", d.Path)
		}
		if d.Boot {
			boot++
			limit, gen := p.OSDiskGen1, 1
			if vm.Generation == 2 && p.OSDiskGen2 > 0 {
				limit, gen = p.OSDiskGen2, 2
			}
			if limit > 0 && d.Size > limit {
				add("os-disk-size", Blocks, d.ID, "", "the OS disk has %s, a generation %d VM may have %s at this target",
					"Shrink the partition and the disk inside the guest, or move data to another disk.", size(d.Size), gen, size(limit))
			}
		} else {
			data++
			if p.DataDisk > 0 && d.Size > p.DataDisk {
				add("data-disk-size", Blocks, d.ID, "", "data disk %s has %s, the target takes %s", "Split the data over several disks, or exclude the disk.", d.ID, size(d.Size), size(p.DataDisk))
			}
		}
		if p.No4KLogical && d.Sector == 4096 {
			add("sector-4k", Blocks, d.ID, "", "disk %s has logical sectors of 4096 bytes", "Copy the disk to one with 512-byte logical sectors (4096 physical is fine).", d.ID)
		}
		if d.Chain > 8 {
			add("chain", Warns, d.ID, "", "disk %s is a chain of %d files; reading it costs more with each", "Remove checkpoints that nobody needs, and let the merge end.", d.ID, d.Chain)
		}
	}
	if len(vm.Disks) == 0 {
		add("no-disk", Blocks, "", dr.CodeNoDisks, "the VM has no disk", "Attach a disk, or leave the VM out.")
	}
	if len(vm.Disks) > 0 && boot != 1 {
		add("os-disk-count", Warns, "", "", "%d disks are marked as the one with the operating system, one is expected", "Choose the OS disk when enabling protection.", boot)
	}
	if p.DataDisks > 0 && data > p.DataDisks {
		add("data-disk-count", Blocks, "", "", "the VM has %d data disks, the target takes %d", "Join disks, or exclude some.", data, p.DataDisks)
	}
}

func checkMachine(vm dr.VM, p Profile, kvm bool, add adder) {
	f := vm.Facts
	if p.Name63 && !azureName.MatchString(vm.Name) {
		add("name", Warns, "", "", "the name %q is none that the target takes (1–63 letters, digits and hyphens)", "Give the recovery VM another name in the item's settings.", vm.Name)
	}
	if p.NoGen2Linux && vm.Generation == 2 && vm.OSType == "Linux" {
		add("gen2-linux", Warns, "", "", "Site Recovery refuses generation 2 VMs with Linux; Holdfast brings them up as generation 2 VMs",
			"Choose a size and image type of generation 2; run a test failover before relying on it.")
	}
	if !kvm && f.Version != "" && older(f.Version, 6, 2) {
		e, _ := dr.Lookup(dr.CodeConfigurationOld)
		add("version", Blocks, "", dr.CodeConfigurationOld, "the configuration has version %s, change tracking needs 6.2", e.Remedy, f.Version)
	}
	if f.Replicated != "" {
		add("replicated", Blocks, "", dr.CodeVMReplicated, "the VM is already replicated by %s", "Remove that replication first: two of them disturb each other's change tracking.", f.Replicated)
	}
	if f.AppConsistent != "" {
		add("app-consistent", Warns, "", dr.CodeVSSFailed, "application-consistent points can't be asked for: %s", "Repair the guest's snapshot service or guest agent; crash-consistent points work without.", f.AppConsistent)
	}
	if p.ForeignDrivers && !kvm {
		add("drivers", Notes, "", "", "the guest was installed for Hyper-V; the target shows it virtio or emulated SATA devices",
			"Linux: have virtio drivers in the initramfs. Windows: install the virtio drivers, or choose SATA. Run a test failover.")
	}
	if kvm && p.Name == "hyperv" {
		add("drivers", Notes, "", "", "the guest was installed for KVM; the target shows it Hyper-V devices", "Have the Hyper-V drivers (hv_storvsc, hv_netvsc) in the initramfs; run a test failover.")
	}
	ide, scsi := 0, 0
	for _, d := range vm.Disks {
		switch strings.ToLower(d.Controller) {
		case "ide":
			ide++
		case "scsi":
			scsi++
		}
	}
	if !kvm && ide > 0 && scsi == 0 && vm.Generation == 1 {
		add("ide-only", Notes, "", "", "all disks are on IDE controllers; backups of such VMs have failed without a SCSI controller", "Add an empty SCSI controller to the VM when it is off.")
	}
	if !vm.Running {
		add("off", Notes, "", dr.CodeVMNotRunning, "the VM is off", "Start it: its initial replication begins then.")
	}
	for _, n := range vm.NICs {
		if slices.ContainsFunc(n.IPs, func(ip string) bool {
			return strings.Contains(ip, ":") && !strings.HasPrefix(strings.ToLower(ip), "fe80")
		}) && p.Name == "azure" {
			add("ipv6", Notes, n.ID, "", "adapter %s has an IPv6 address, which is not carried to the target", "Plan with IPv4 for the recovered VM.", n.ID)
		}
	}
	if f.Checkpoints > 0 {
		add("checkpoints", Notes, "", "", "%d checkpoints exist; the replica has the current state, not them", "Remove checkpoints that nobody needs.", f.Checkpoints)
	}
}

// older compares a configuration version such as "9.0"; what is none is not older.
func older(v string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(v, "%d.%d", &a, &b); n == 0 {
		return false
	}
	return a < major || a == major && b < minor
}

func size(n int64) string {
	switch {
	case n >= 1<<40 && n%(1<<40) == 0:
		return fmt.Sprintf("%d TiB", n>>40)
	case n >= 1<<30:
		return fmt.Sprintf("%.4g GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.4g MiB", float64(n)/(1<<20))
}

// VMReport is the verdict on one VM.
type VMReport struct {
	ID       dr.VMID   `json:"id"`
	Name     string    `json:"name"`
	Host     string    `json:"host"`
	Disks    int       `json:"disks"`
	Size     int64     `json:"sizeBytes"`
	Ready    bool      `json:"ready"` // nothing blocks
	Findings []Finding `json:"findings"`
}

// Report is the dry run for a site.
type Report struct {
	Version   int        `json:"version"` // 1
	Site      string     `json:"site"`
	Target    string     `json:"target"`
	Taken     time.Time  `json:"taken"`
	Ready     int        `json:"ready"`
	Blocked   int        `json:"blocked"`
	VMs       []VMReport `json:"vms"`
	Practices []Practice `json:"practices,omitempty"`
}

// CheckSite applies the rules of a target to all VMs. hosts names the host of an agent.
func CheckSite(site string, vms []dr.VM, p Profile, kvm bool, hosts map[dr.AgentID]string, now time.Time) Report {
	r := Report{Version: 1, Site: site, Target: p.Name, Taken: now.UTC(), VMs: []VMReport{}}
	for _, vm := range vms {
		if vm.Gone {
			continue
		}
		v := VMReport{ID: vm.ID, Name: vm.Name, Host: hosts[vm.Agent], Disks: len(vm.Disks), Findings: CheckVM(vm, p, kvm)}
		for _, d := range vm.Disks {
			v.Size += d.Size
		}
		if v.Findings == nil {
			v.Findings = []Finding{}
		}
		v.Ready = !slices.ContainsFunc(v.Findings, func(f Finding) bool { return f.Severity == Blocks })
		if v.Ready {
			r.Ready++
		} else {
			r.Blocked++
		}
		r.VMs = append(r.VMs, v)
	}
	slices.SortStableFunc(r.VMs, func(a, b VMReport) int { return cmp.Compare(a.Name, b.Name) })
	return r
}
