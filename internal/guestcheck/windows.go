package guestcheck

import (
	"slices"

	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/guestcheck/ntfs"
	"holdfast/internal/guestcheck/windows"
	"holdfast/internal/readiness"
)

// windows runs the checks of Windows guests.
func (c *checker) windows() {
	c.dynamicDisk()
	if c.root == nil {
		for _, a := range windows.Areas() {
			if id := CheckID(a); id != CheckSystem && id != CheckFirmware {
				c.skip(id, "", "the volume of Windows was not found, or can't be read")
			}
		}
		return
	}
	in := windows.Input{Target: c.in.Target, Generation: c.in.Generation, Disks: len(c.in.Disks), Whole: len(c.r.Facts.Tables) == len(c.in.Disks)}
	boot := c.bootSource()
	esp := false
	for _, v := range c.vols {
		w := windows.Volume{Name: v.Name, Files: v.fs, Err: v.err, OnBoot: v.source == boot, Start: v.start, PartUUID: v.PartUUID}
		if v.fs == nil {
			w.Files = nil
		}
		for _, p := range c.r.Facts.Tables[c.in.Disks[v.source].ID].Partitions {
			if p.Start == v.start && !v.logical {
				w.Active, w.ESP = p.Active, p.Type == layout.TypeESP || p.Type == layout.TypeMBRESP
			}
		}
		esp = esp || w.ESP && w.OnBoot
		in.Volumes = append(in.Volumes, w)
		if v == c.root {
			in.System = w
		}
	}
	for k, v := range c.vols { // firmware looks into any FAT volume then
		if !esp && v.Content == layout.FAT {
			in.Volumes[k].ESP = true
		}
	}
	f := windows.Inspect(in, sink{c})
	c.r.Facts.Name, c.r.Facts.Network, c.r.Facts.Agents = f.Name, f.Network, f.Agents
}

// dynamicDisk: Azure does not start Windows from a dynamic disk.
func (c *checker) dynamicDisk() {
	if c.in.Target != "azure" {
		return
	}
	if k := c.bootSource(); k >= 0 && slices.ContainsFunc(c.r.Facts.Tables[c.in.Disks[k].ID].Partitions, func(p layout.Partition) bool {
		return p.Type == layout.TypeLDMData || p.Type == layout.TypeMBRLDM
	}) {
		c.found(CheckVolumes, readiness.Blocks, c.in.Disks[k].ID, "Convert the disk to a basic one at the source.", "Windows starts from a dynamic disk, which Azure does not support")
	}
}

// sink takes the findings of package windows.
type sink struct{ c *checker }

func (s sink) Ran(a windows.Area) { s.c.ran(CheckID(a)) }

func (s sink) Found(a windows.Area, sev readiness.Severity, object, wayOut, reason string) {
	s.c.found(CheckID(a), sev, object, wayOut, "%s", reason)
}

func (s sink) Skip(a windows.Area, object, because string) {
	s.c.skip(CheckID(a), object, "%s", because)
}

// openNTFS opens an NTFS volume and tells the state it was left in.
func (c *checker) openNTFS(v *volume) {
	f, err := ntfs.Open(v.dev, v.Size)
	if v.err = err; err != nil {
		return
	}
	v.fs, v.UUID, v.Label = f, f.UUID(), f.Label()
	log, err := f.Log()
	switch {
	case err != nil || log == ntfs.LogBad:
		c.skip(CheckVolumes, v.Name, "the state of the NTFS volume's journal can't be read: %v", orText(err, "its first pages are not understood"))
	case log == ntfs.LogOpen:
		v.Journal = true
		c.found(CheckVolumes, readiness.Notes, v.Name, "", "the journal of the NTFS volume is not replayed; files changed in the last seconds before the point may be seen as they were before")
	}
	if f.Dirty() {
		c.found(CheckVolumes, readiness.Warns, v.Name, "Run chkdsk at the source, then take the next recovery point.", "the NTFS volume is marked to be checked: Windows runs chkdsk when it starts, which can take long")
	}
	switch asleep, err := f.Hibernated(); {
	case err != nil:
		c.skip(CheckVolumes, v.Name+":/hiberfil.sys", "it can't be read: %v", err)
	case asleep:
		c.found(CheckVolumes, readiness.Warns, v.Name+":/hiberfil.sys", "Start the guest at the source once more; switch fast startup off (powercfg /h off) and shut it down, or replicate it while it runs.",
			"Windows was hibernated, or shut down with fast startup: at the target it would resume on other hardware, or discard what was not written")
	}
}
