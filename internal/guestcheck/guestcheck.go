// Package guestcheck says from the disks of a recovery point what would keep
// the guest from booting, or from being reached, on another platform, and
// repairs what can be repaired safely on a side layer.
//
// It owns the checks, the report and the fix-ups; the subpackages own the
// formats they read. It promises: nothing is ever written to the disks that are
// looked at; a check that could not look says "not checked, because …" and
// never passes; hostile disks end in bounded time and memory; a fix is applied
// whole or not at all, and only where it fits into blocks the file has already.
// There are no fixes for Windows: its registry can't be changed safely from outside.
//
// Concurrency: Check and Apply use one goroutine and keep no state.
package guestcheck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/readiness"
)

// Disk is a disk of the recovery point. ReadAt fills p from off, which lies
// inside the disk, or fails.
type Disk interface {
	Size() int64 // bytes
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Source is a disk with what is known of it.
type Source struct {
	ID   string // as findings name it
	Disk Disk
	Boot bool // the VM boots from it; if no disk says so, the one with a boot loader counts
}

// Input is what is looked at.
type Input struct {
	Target     string // azure, hyperv or kvm
	Generation int    // 1 = BIOS, 2 = UEFI, 0 = not known
	OSType     string // Linux, Windows or empty, as the source's hypervisor says
	Disks      []Source
	MaxRead    int64 // bytes that may be read from all disks together; 0 = 4 GiB
}

// CheckID names a check; ids are stable.
type CheckID string

// The checks, in the order of a boot.
const (
	CheckTable    CheckID = "partition-table"
	CheckVolumes  CheckID = "volumes"
	CheckSystem   CheckID = "operating-system"
	CheckFirmware CheckID = "boot-firmware"
	CheckDrivers  CheckID = "boot-drivers"
	CheckRoot     CheckID = "root-device"
	CheckFstab    CheckID = "fstab"
	CheckConsole  CheckID = "serial-console"
	CheckNetwork  CheckID = "network"
	CheckNames    CheckID = "persistent-names"
	CheckAgent    CheckID = "guest-agent"
	CheckRemote   CheckID = "remote-access"
	CheckStorage  CheckID = "data-disks"
	CheckUpdates  CheckID = "pending-updates"
)

// Checks returns all checks.
func Checks() []CheckID {
	return []CheckID{CheckTable, CheckVolumes, CheckSystem, CheckFirmware, CheckDrivers, CheckRoot, CheckFstab, CheckConsole, CheckNetwork, CheckNames, CheckAgent, CheckRemote, CheckStorage, CheckUpdates}
}

// NotApplicable is the status of a check that means nothing for this guest.
const NotApplicable readiness.Status = "notApplicable"

// Result is how a check ended. Every check has one, whatever was found.
type Result struct {
	Check  CheckID          `json:"check"`
	Status readiness.Status `json:"status"` // met, notMet, notChecked or notApplicable
}

// Finding is one thing to know before the VM is started at the target.
type Finding struct {
	Check      CheckID            `json:"check"`
	Severity   readiness.Severity `json:"severity"`
	Object     string             `json:"object,omitempty"` // disk, partition or file
	Reason     string             `json:"reason"`
	WayOut     string             `json:"wayOut,omitempty"`
	NotChecked bool               `json:"notChecked,omitempty"` // nothing is known; Reason says why
}

// Volume is a partition, a logical volume or a whole disk with a file system.
type Volume struct {
	Name     string         `json:"name"` // disk/partition, such as sda/2
	Disk     string         `json:"disk"`
	Size     int64          `json:"size"` // bytes
	Content  layout.Content `json:"content,omitempty"`
	UUID     string         `json:"uuid,omitempty"`
	Label    string         `json:"label,omitempty"`
	PartUUID string         `json:"partUUID,omitempty"`
	Journal  bool           `json:"journal,omitempty"` // not unmounted cleanly: the journal counts
}

// Kernel is a Linux kernel that can be started.
type Kernel struct {
	Version   string   `json:"version"`
	Initramfs string   `json:"initramfs,omitempty"`
	Formats   []string `json:"formats,omitempty"` // compression of the initramfs's parts
	Drivers   []string `json:"drivers,omitempty"` // of those that targets need
}

// Facts is what was seen.
type Facts struct {
	OS        string                  `json:"os,omitempty"` // Linux, Windows or empty
	Name      string                  `json:"name,omitempty"`
	BootDisk  string                  `json:"bootDisk,omitempty"`
	Tables    map[string]layout.Table `json:"tables,omitempty"` // by disk
	Volumes   []Volume                `json:"volumes,omitempty"`
	Root      string                  `json:"root,omitempty"` // volume
	Kernels   []Kernel                `json:"kernels,omitempty"`
	Network   []string                `json:"network,omitempty"` // in words, one per interface
	Agents    []string                `json:"agents,omitempty"`
	BytesRead int64                   `json:"bytesRead"`
}

// Report is the outcome.
type Report struct {
	Target   string    `json:"target"`
	Facts    Facts     `json:"facts"`
	Results  []Result  `json:"results"`
	Findings []Finding `json:"findings"` // worst first
	fixes    []Fix
}

// Worst returns the severity of the worst finding, or "" when there is none.
func (r Report) Worst() readiness.Severity {
	if len(r.Findings) == 0 {
		return ""
	}
	return r.Findings[0].Severity
}

// fileSystem is what the format packages offer. Names count from the volume's
// root; an absent one is fs.ErrNotExist.
type fileSystem interface {
	Open(name string) (*io.SectionReader, error)
	ReadDir(name string) ([]string, error)
}

type volume struct {
	Volume
	logical bool // a logical volume: start means nothing
	source  int  // index of the disk
	start   int64
	dev     io.ReaderAt
	fs      fileSystem
	err     error // why fs is nil
}

// checker is one run of Check.
type checker struct {
	in      Input
	r       Report
	devs    []io.ReaderAt // by disk
	vols    []*volume
	root    *volume // of Linux, or with Windows on it
	seen    map[CheckID]readiness.Status
	entries []bootEntry
	tree    tree
}

const defaultMaxRead = 4 << 30

// Check looks at the disks. It fails when the input can't be used
// (KindInvalid) or ctx ends; what could not be read is in the report.
func Check(ctx context.Context, in Input) (Report, error) {
	profile, err := readiness.ProfileByName(in.Target)
	if err != nil {
		return Report{}, err
	}
	in.Target = profile.Name
	if len(in.Disks) == 0 {
		return Report{}, dr.Errorf(dr.KindInvalid, "guestcheck.Check", "the recovery point has no disks")
	}
	c := &checker{in: in, seen: map[CheckID]readiness.Status{}}
	c.r.Target = profile.Name
	c.r.Facts.Tables = map[string]layout.Table{}
	b := &budget{left: in.MaxRead}
	if b.left <= 0 {
		b.left = defaultMaxRead
	}
	all := b.left
	for k, s := range in.Disks {
		c.devs = append(c.devs, newDevice(ctx, s.Disk, b))
		c.disk(k, s, c.devs[k])
	}
	c.assemble()
	c.system()
	c.firmware()
	switch c.r.Facts.OS {
	case "Linux":
		c.linux()
	case "Windows":
		c.windows()
	}
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("check of the guest's disks: %w", err)
	}
	c.r.Facts.BytesRead = all - b.left
	c.finish()
	return c.r, nil
}

// finish gives every check a result and sorts the findings.
func (c *checker) finish() {
	for _, id := range Checks() {
		s, ok := c.seen[id]
		switch {
		case ok:
		case c.r.Facts.OS == "":
			c.skip(id, "", "no operating system was recognised that this check knows")
			s = readiness.NotChecked
		default:
			s = NotApplicable
		}
		c.r.Results = append(c.r.Results, Result{id, s})
	}
	for _, v := range c.vols {
		c.r.Facts.Volumes = append(c.r.Facts.Volumes, v.Volume)
	}
	rank := func(f Finding) int {
		return slices.Index([]readiness.Severity{readiness.Blocks, readiness.Warns, readiness.Notes}, f.Severity)
	}
	order := Checks()
	slices.SortStableFunc(c.r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(slices.Index(order, a.Check), slices.Index(order, b.Check)), cmp.Compare(a.Object, b.Object))
	})
	c.r.Findings = slices.Compact(c.r.Findings)
}

// ran says that a check could look; findings may follow or have been made.
func (c *checker) ran(id CheckID) {
	if _, ok := c.seen[id]; !ok {
		c.seen[id] = readiness.Met
	}
}

// found adds a finding. Notes leave the check met.
func (c *checker) found(id CheckID, sev readiness.Severity, object, wayOut, reason string, args ...any) {
	c.r.Findings = append(c.r.Findings, Finding{Check: id, Severity: sev, Object: object, Reason: fmt.Sprintf(reason, args...), WayOut: wayOut})
	if c.ran(id); sev != readiness.Notes {
		c.seen[id] = readiness.NotMet
	}
}

// skip says that something was not checked. A check that found something
// elsewhere stays not met.
func (c *checker) skip(id CheckID, object, because string, args ...any) {
	c.r.Findings = append(c.r.Findings, Finding{Check: id, Severity: readiness.Warns, Object: object, NotChecked: true,
		Reason: "not checked, because " + fmt.Sprintf(because, args...), WayOut: "Test failover shows it."})
	if c.seen[id] != readiness.NotMet {
		c.seen[id] = readiness.NotChecked
	}
}

// absent tells an absent name from one that could not be asked for, which is
// reported under the check.
func (c *checker) absent(id CheckID, v *volume, name string, err error) bool {
	if err == nil {
		return false
	}
	if !errors.Is(err, fs.ErrNotExist) {
		c.skip(id, v.Name+":"+name, "it can't be read: %v", err)
	}
	return true
}

const maxText = 4 << 20

// text reads a small file. ok is false when it is absent, or could not be read, which is reported.
func (c *checker) text(id CheckID, v *volume, name string) (string, bool) {
	if v == nil || v.fs == nil {
		return "", false
	}
	f, err := v.fs.Open(name)
	if c.absent(id, v, name, err) {
		return "", false
	}
	if f.Size() > maxText {
		c.skip(id, v.Name+":"+name, "it is larger than %d bytes", maxText)
		return "", false
	}
	b := make([]byte, f.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		c.skip(id, v.Name+":"+name, "it can't be read: %v", err)
		return "", false
	}
	return string(b), true
}

// list returns the names in a directory, ordered; nil when it is absent.
func (c *checker) list(id CheckID, v *volume, name string) []string {
	if v == nil || v.fs == nil {
		return nil
	}
	out, err := v.fs.ReadDir(name)
	if c.absent(id, v, name, err) {
		return nil
	}
	slices.Sort(out)
	return out
}

func (c *checker) exists(id CheckID, v *volume, name string) bool {
	if v == nil || v.fs == nil {
		return false
	}
	_, err := v.fs.Open(name)
	return !c.absent(id, v, name, err)
}

func hasAny(s string, subs ...string) bool {
	return slices.ContainsFunc(subs, func(x string) bool { return strings.Contains(s, x) })
}
