package words

import (
	"fmt"
	"regexp"
	"strings"

	"holdfast/internal/dr"
)

var guid = regexp.MustCompile(`^(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// DiskName is what people call a disk: its id, or the name of its file where the
// id is a GUID. Paths are those of the host, with either kind of slash.
func DiskName(d dr.Disk) string {
	if !guid.MatchString(d.ID) || d.Path == "" {
		return d.ID
	}
	return d.Path[strings.LastIndexAny(d.Path, `/\`)+1:]
}

// DiskDetail is how a disk is made, as far as it is known: controller and place,
// format and layout, sectors, length of the chain.
func DiskDetail(d dr.Disk) string {
	var out []string
	if d.Controller != "" {
		out = append(out, fmt.Sprintf("%s, slot %d", controller(d.Controller), d.Slot))
	}
	if f := strings.TrimSpace(strings.ToUpper(d.Format[:min(len(d.Format), 16)]) + " " + d.Layout); f != "" {
		if d.Format == "qcow2" || d.Format == "raw" {
			f = strings.TrimSpace(d.Format + " " + d.Layout)
		}
		out = append(out, f)
	}
	if d.Sector > 0 {
		out = append(out, fmt.Sprintf("%d-byte sectors", d.Sector))
	}
	if d.Chain > 1 {
		out = append(out, fmt.Sprintf("chain of %d files", d.Chain))
	}
	if d.Allocated > 0 {
		out = append(out, Bytes(d.Allocated)+" on the host")
	}
	return strings.Join(out, " · ")
}

func controller(c string) string {
	switch strings.ToLower(c) {
	case "scsi", "ide", "sata", "usb":
		return strings.ToUpper(c)
	case "nvme":
		return "NVMe"
	}
	return c
}

// Platform says what kind of hypervisor or server a host is: KVM, Hyper-V or
// VMM. What its agent tells counts more than the type of its site, since a site
// may recover on hosts of another kind.
func Platform(p dr.Provider, site dr.FabricType) string {
	told := strings.ToLower(p.Hypervisor)
	switch {
	case p.HasRole(dr.RoleVMM), strings.Contains(told, "virtual machine manager"):
		return "VMM"
	case site == dr.AzureSite, strings.HasPrefix(told, "azure"):
		return "Azure"
	case strings.Contains(told, "hyper-v"):
		return "Hyper-V"
	case strings.Contains(told, "qemu"), strings.Contains(told, "libvirt"), strings.Contains(told, "kvm"):
		return "KVM"
	case site == dr.KVMSite:
		return "KVM"
	}
	return "Hyper-V"
}

// HypervisorVersion is what a host tells of its hypervisor beside its platform.
func HypervisorVersion(p dr.Provider, site dr.FabricType) string {
	s := strings.TrimSpace(p.Hypervisor)
	if kind := Platform(p, site); len(s) >= len(kind) && strings.EqualFold(s[:len(kind)], kind) {
		s = strings.TrimLeft(s[len(kind):], ", ")
	}
	return s
}

// SiteType is the type of a site for people.
func SiteType(t dr.FabricType) string {
	switch t {
	case dr.KVMSite:
		return "KVM site"
	case dr.HyperVSite:
		return "Hyper-V site"
	case dr.VMMSite:
		return "VMM server"
	case dr.AzureSite:
		return "Azure resource group"
	}
	return string(t)
}

// FileName is a name that survives every shell and file system.
func FileName(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' {
			return c
		}
		return '_'
	}, s)
}
