package hypervisor

import (
	"path/filepath"

	"holdfast/internal/dr"
)

// maxTag keeps token names within what every platform accepts.
const maxTag = 64

// ValidTag reports whether s can be the tag of a cut: 1 to 64 letters, digits and hyphens (ASCII).
func ValidTag(s string) bool {
	if s == "" || len(s) > maxTag {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// Validate checks what can be checked without the host; adapters call it first.
func (s BootSpec) Validate() error {
	const op = "hypervisor.Boot"
	switch {
	case s.Name == "":
		return dr.Errorf(dr.KindInvalid, op, "the recovery VM has no name")
	case s.Owner == "":
		return dr.Errorf(dr.KindInvalid, op, "recovery VM %s has no owner", s.Name)
	case len(s.Disks) == 0:
		return dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "recovery VM %s has no disk", s.Name)
	case s.CPUs < 0 || s.MemoryMB < 0:
		return dr.Errorf(dr.KindInvalid, op, "recovery VM %s: %d CPUs and %d MB are not possible", s.Name, s.CPUs, s.MemoryMB)
	}
	ids, paths := map[string]bool{}, map[string]bool{}
	for _, d := range s.Disks {
		switch {
		case d.ID == "" || ids[d.ID]:
			return dr.Errorf(dr.KindInvalid, op, "recovery VM %s: disk id %q is empty or used twice", s.Name, d.ID)
		case d.Size <= 0:
			return dr.Errorf(dr.KindInvalid, op, "recovery VM %s: disk %s has a size of %d bytes", s.Name, d.ID, d.Size)
		case !filepath.IsAbs(d.Path) || paths[d.Path]:
			return dr.Errorf(dr.KindInvalid, op, "recovery VM %s: disk %s: local image %q is not an absolute path of its own", s.Name, d.ID, d.Path)
		}
		ids[d.ID], paths[d.Path] = true, true
	}
	return nil
}
