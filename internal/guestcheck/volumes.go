package guestcheck

import (
	"fmt"
	"io"
	"strings"

	"holdfast/internal/guestcheck/ext4"
	"holdfast/internal/guestcheck/fat"
	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/guestcheck/lvm"
	"holdfast/internal/guestcheck/xfs"
	"holdfast/internal/readiness"
)

// disk reads a disk's partition table and opens what its volumes hold.
func (c *checker) disk(index int, s Source, dev io.ReaderAt) {
	size := s.Disk.Size()
	t, err := layout.Read(dev, size)
	if err != nil {
		c.skip(CheckTable, s.ID, "the partition table can't be used: %v", err)
		return
	}
	c.ran(CheckTable)
	c.r.Facts.Tables[s.ID] = t
	for _, n := range t.Notes {
		c.found(CheckTable, readiness.Warns, s.ID, "Repair the table in the guest, with 'sgdisk --verify' or Windows' Disk Management, before the bad day.", "%s", n)
	}
	if t.Sector == 4096 && c.in.Target == "azure" {
		c.found(CheckTable, readiness.Blocks, s.ID, "Migrate the guest to a disk with sectors of 512 bytes.", "the partition table counts in sectors of 4,096 bytes, and Azure's disks have 512")
	}
	if t.Kind == layout.None {
		c.volume(index, s.ID, Volume{Name: s.ID, Disk: s.ID, Size: size}, 0, dev, "")
	}
	ldm := false
	for _, p := range t.Partitions {
		name := fmt.Sprintf("%s/%d", s.ID, p.Index)
		switch p.Type {
		case layout.TypeLDMData, layout.TypeLDMMetadata, layout.TypeMBRLDM:
			ldm = true
		case layout.TypeSpaces:
			c.skip(CheckVolumes, name, "the disk belongs to a Storage Spaces pool, which is not read")
			continue
		}
		c.volume(index, name, Volume{Name: name, Disk: s.ID, Size: p.Size, PartUUID: p.UUID}, p.Start, section(dev, p.Start, p.Size), p.Type)
	}
	if ldm {
		c.found(CheckVolumes, readiness.Warns, s.ID, "Convert the disk to a basic one if it is the one that Windows boots from.", "it is a dynamic disk (LDM), whose volumes are not all read")
	}
}

// volume recognises and opens a volume.
func (c *checker) volume(index int, name string, facts Volume, start int64, dev io.ReaderAt, kind string) {
	c.ran(CheckVolumes)
	v := &volume{Volume: facts, source: index, start: start, dev: dev}
	c.vols = append(c.vols, v)
	var err error
	if v.Content, err = layout.Identify(dev, facts.Size); err != nil {
		v.err = err
		c.skip(CheckVolumes, name, "its first sectors can't be read: %v", err)
		return
	}
	switch v.Content {
	case layout.LUKS:
		v.err = fmt.Errorf("it is encrypted (LUKS)")
		c.found(CheckVolumes, readiness.Warns, name, "Have the passphrase at hand for the target's serial console, or unlock by network (Tang).", "the volume is encrypted (LUKS): it asks for its passphrase at boot, and a TPM's key does not go along")
		c.skip(CheckVolumes, name, "it is encrypted (LUKS)")
	case layout.BitLocker:
		v.err = fmt.Errorf("it is encrypted (BitLocker)")
		c.found(CheckVolumes, readiness.Warns, name, "Have the recovery key at hand, or suspend BitLocker before a planned failover.", "the volume is encrypted (BitLocker): a TPM's key does not go along, Windows asks for the recovery key")
		c.skip(CheckVolumes, name, "it is encrypted (BitLocker)")
	case layout.Swap:
		v.UUID, _ = layout.SwapUUID(dev) // only for fstab entries that name it
	case layout.LVM: // assemble reads it
	case layout.Unknown:
		if kind != layout.TypeBIOSBoot && kind != "" {
			v.err = fmt.Errorf("its content is not recognised")
		}
	default:
		c.open(v)
		if v.err != nil {
			c.skip(CheckVolumes, name, "%v", v.err)
		}
	}
}

// open opens the file system of a volume that has one.
func (c *checker) open(v *volume) {
	switch v.Content {
	case layout.Ext:
		f, err := ext4.Open(v.dev, v.Size)
		if v.err = err; err == nil {
			v.fs, v.UUID, v.Label, v.Journal = f, f.UUID(), f.Label(), f.Dirty()
		}
	case layout.FAT:
		f, err := fat.Open(v.dev, v.Size)
		if v.err = err; err == nil {
			v.fs, v.UUID, v.Label = f, f.UUID(), f.Label()
		}
	case layout.XFS:
		f, err := xfs.Open(v.dev, v.Size)
		if v.err = err; err == nil {
			v.fs, v.UUID, v.Label = f, f.UUID(), f.Label()
			c.found(CheckVolumes, readiness.Notes, v.Name, "", "the log of the XFS file system is not replayed; files changed in the last seconds before the point may be seen as they were before")
		}
	case layout.NTFS:
		c.openNTFS(v)
	default:
		v.err = fmt.Errorf("file systems of type %s are not read", v.Content)
	}
}

// assemble makes logical volumes out of physical volumes.
func (c *checker) assemble() {
	var pvs []lvm.PV
	var under []*volume
	for _, v := range c.vols {
		if v.Content != layout.LVM {
			continue
		}
		pv, err := lvm.Open(v.dev, v.Size)
		if err != nil {
			v.err = err
			c.skip(CheckVolumes, v.Name, "the logical volumes (LVM) on it can't be read: %v", err)
			continue
		}
		v.UUID = pv.UUID
		pvs, under = append(pvs, pv), append(under, v)
	}
	lvs := lvm.Assemble(pvs)
	for _, lv := range lvs {
		v := &volume{Volume: Volume{Name: lv.Group + ":" + lv.Name, Disk: under[0].Disk, Size: lv.Size}, source: under[0].source, dev: lv.Dev, logical: true}
		c.vols = append(c.vols, v)
		if v.err = lv.Err; v.err == nil {
			v.Content, v.err = layout.Identify(v.dev, v.Size)
		}
		switch {
		case v.err != nil:
		case v.Content == layout.Swap:
			v.UUID, _ = layout.SwapUUID(v.dev) // only for fstab entries that name it
		case v.Content == layout.Unknown:
			v.err = fmt.Errorf("its content is not recognised")
			continue
		default:
			c.open(v)
		}
		if v.err != nil {
			c.skip(CheckVolumes, v.Name, "the logical volume can't be read: %v", v.err)
		}
	}
	if len(pvs) > 0 && len(lvs) == 0 {
		c.skip(CheckVolumes, under[0].Name, "there are physical volumes (LVM), and no logical volume was found on them")
	}
}

// tree finds files in the root file system and what is mounted in it.
type tree struct {
	mounts []mount // longest first
}

type mount struct {
	at string
	v  *volume
}

// find returns the volume that a path lies on and its name there.
func (t tree) find(name string) (*volume, string) {
	for _, m := range t.mounts {
		if m.at == "/" {
			return m.v, name
		}
		if rest, ok := strings.CutPrefix(name, m.at); ok && (rest == "" || rest[0] == '/') {
			return m.v, "/" + strings.TrimPrefix(rest, "/")
		}
	}
	return nil, name
}
