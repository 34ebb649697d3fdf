package guestcheck

import (
	"path"
	"strings"

	"holdfast/internal/guestcheck/layout"
	"holdfast/internal/guestcheck/netconf"
	"holdfast/internal/readiness"
)

// system finds the operating system's volume.
func (c *checker) system() {
	unread := 0
	for _, v := range c.vols {
		if v.err != nil {
			unread++
		}
		if v.fs == nil || c.root != nil {
			continue
		}
		switch v.Content {
		case layout.FAT:
		case layout.NTFS:
			if c.exists(CheckSystem, v, "/Windows/System32/config/SYSTEM") {
				c.root, c.r.Facts.OS = v, "Windows"
			}
		default:
			if c.exists(CheckSystem, v, "/etc/fstab") || c.exists(CheckSystem, v, "/etc/os-release") || c.exists(CheckSystem, v, "/etc/inittab") {
				c.root, c.r.Facts.OS = v, "Linux"
			}
		}
	}
	if c.root == nil {
		if c.r.Facts.OS = known(c.in.OSType); c.r.Facts.OS == "" && len(c.vols) == 0 {
			c.skip(CheckSystem, "", "no volume was found")
			return
		}
		c.skip(CheckSystem, "", "no volume that can be read holds an operating system (%d volumes could not be read)", unread)
		return
	}
	c.ran(CheckSystem)
	c.r.Facts.Root = c.root.Name
	if c.r.Facts.OS == "Linux" {
		for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
			if s, ok := c.text(CheckSystem, c.root, name); ok {
				c.r.Facts.Name = netconf.ShellValue(s, "PRETTY_NAME")
				break
			}
		}
	}
	if want := known(c.in.OSType); want != "" && want != c.r.Facts.OS {
		c.found(CheckSystem, readiness.Notes, c.root.Name, "", "the source's host says %s, and the disk holds %s", want, c.r.Facts.OS)
	}
}

func known(os string) string {
	for _, n := range []string{"Linux", "Windows"} {
		if strings.EqualFold(os, n) {
			return n
		}
	}
	return ""
}

// bootSource is the disk that the VM starts from; -1 when that can't be told.
func (c *checker) bootSource() int {
	for k, s := range c.in.Disks {
		if s.Boot {
			return k
		}
	}
	if len(c.in.Disks) == 1 {
		return 0
	}
	for k, s := range c.in.Disks {
		t := c.r.Facts.Tables[s.ID]
		for _, p := range t.Partitions {
			if p.Active || p.Type == layout.TypeESP || p.Type == layout.TypeBIOSBoot {
				return k
			}
		}
	}
	if c.root != nil {
		return c.root.source
	}
	return -1
}

// firmware checks that the firmware of the VM's generation finds a loader.
func (c *checker) firmware() {
	k := c.bootSource()
	if k < 0 {
		c.skip(CheckFirmware, "", "it is not known which disk the VM boots from")
		return
	}
	id := c.in.Disks[k].ID
	c.r.Facts.BootDisk = id
	t, ok := c.r.Facts.Tables[id]
	switch {
	case !ok:
		c.skip(CheckFirmware, id, "the partition table can't be used")
	case c.in.Generation == 1:
		c.bios(k, t)
	case c.in.Generation == 2:
		c.uefi(k, t)
	default:
		c.skip(CheckFirmware, id, "the VM's generation is not known")
	}
}

func (c *checker) bios(k int, t layout.Table) {
	id := c.in.Disks[k].ID
	c.ran(CheckFirmware)
	b := make([]byte, 512)
	if _, err := c.devs[k].ReadAt(b, 0); err != nil {
		c.skip(CheckFirmware, id, "the first sector can't be read: %v", err)
		return
	}
	grub := strings.Contains(string(b[:440]), "GRUB")
	active, biosBoot, esp := false, false, false
	for _, p := range t.Partitions {
		active = active || p.Active
		biosBoot = biosBoot || p.Type == layout.TypeBIOSBoot
		esp = esp || p.Type == layout.TypeESP
	}
	switch {
	case !t.BootCode && esp:
		c.found(CheckFirmware, readiness.Blocks, id, "Recover the VM as generation 2.", "the disk is made for UEFI and has no boot code in its first sector, but the VM is of generation 1 (BIOS)")
	case !t.BootCode:
		c.found(CheckFirmware, readiness.Blocks, id, "Install the boot loader into the disk's first sector (grub-install, bootsect /mbr), or exclude the wrong boot disk.", "there is no boot code in the disk's first sector, which a VM of generation 1 (BIOS) starts from")
	case t.Kind == layout.MBR && !active && !grub:
		c.found(CheckFirmware, readiness.Blocks, id, "Mark the system partition active.", "no partition is marked active, so that the boot code in the first sector starts none")
	case t.Kind == layout.GPT && grub && !biosBoot:
		c.found(CheckFirmware, readiness.Warns, id, "Make a BIOS boot partition of 1 MiB and run grub-install.", "GRUB starts from a GPT without a BIOS boot partition, from places in a file system that may move")
	}
}

func (c *checker) uefi(k int, t layout.Table) {
	id := c.in.Disks[k].ID
	c.ran(CheckFirmware)
	var esps []*volume
	for _, p := range t.Partitions {
		if p.Type != layout.TypeESP && p.Type != layout.TypeMBRESP {
			continue
		}
		for _, v := range c.vols {
			if v.source == k && v.start == p.Start {
				esps = append(esps, v)
			}
		}
	}
	if len(esps) == 0 { // firmware looks into any FAT volume for the fallback path
		for _, v := range c.vols {
			if v.source == k && v.Content == layout.FAT {
				esps = append(esps, v)
			}
		}
	}
	if len(esps) == 0 {
		c.found(CheckFirmware, readiness.Blocks, id, "Recover the VM as generation 1, if the source starts it so.", "there is no EFI system partition, which a VM of generation 2 (UEFI) starts from")
		return
	}
	var loaders []string
	for _, v := range esps {
		if v.fs == nil {
			c.skip(CheckFirmware, v.Name, "the EFI system partition can't be read: %v", orText(v.err, "it has no FAT file system"))
			return
		}
		for _, dir := range c.list(CheckFirmware, v, "/EFI") {
			names, err := v.fs.ReadDir("/EFI/" + dir)
			if err != nil {
				continue // a file
			}
			for _, n := range names {
				if !strings.EqualFold(path.Ext(n), ".efi") {
					continue
				}
				if strings.EqualFold(dir, "BOOT") && (strings.EqualFold(n, "bootx64.efi") || strings.EqualFold(n, "bootaa64.efi")) {
					return
				}
				loaders = append(loaders, "/EFI/"+dir+"/"+n)
			}
		}
	}
	if len(loaders) > 0 {
		c.found(CheckFirmware, readiness.Warns, esps[0].Name, "Copy the loader to /EFI/BOOT/BOOTX64.EFI (grub-install --removable, bcdboot).", "no loader is at the fallback path /EFI/BOOT; the boot entry for %s is in the source's firmware and does not go along", loaders[0])
		return
	}
	c.found(CheckFirmware, readiness.Blocks, esps[0].Name, "Install the boot loader again in the guest (grub-install, bcdboot).", "the EFI system partition holds no boot loader")
}

func orText(err error, text string) string {
	if err != nil {
		return err.Error()
	}
	return text
}
