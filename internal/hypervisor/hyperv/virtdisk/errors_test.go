package virtdisk

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/hypervisor/hyperv"
)

// TestErrorsAreTold proves that each code becomes the contract's error and keeps the system's.
func TestErrorsAreTold(t *testing.T) {
	t.Parallel()
	system := errors.New("the system's words")
	for code, want := range map[uint32]error{2: fs.ErrNotExist, 3: fs.ErrNotExist, 5: fs.ErrPermission, 1314: fs.ErrPermission, 32: hyperv.ErrInUse,
		33: hyperv.ErrInUse, 80: fs.ErrExist, 183: fs.ErrExist, 50: hyperv.ErrUnsupported, 0xc03a0002: hyperv.ErrDamaged, 0xc03a000d: hyperv.ErrDamaged,
		0xc03a000e: hyperv.ErrDamaged, 0xc03a0019: hyperv.ErrDamaged, 0xc03a0016: fs.ErrPermission, 0xc03a001e: hyperv.ErrInUse,
		0xc03a0022: hyperv.ErrTrackingLost, 0xc03a0029: hyperv.ErrTrackingLost, 0xc03a002a: hyperv.ErrTrackingLost, 0xc03a0014: hyperv.ErrUnsupported} {
		err := error(&Error{Op: "OpenVirtualDisk", Path: `C:\a.vhdx`, Code: code, System: system})
		if !errors.Is(err, want) || !errors.Is(err, system) || !strings.Contains(err.Error(), `C:\a.vhdx`) {
			t.Errorf("0x%x: %v is not %v", code, err, want)
		}
		for _, other := range []error{fs.ErrNotExist, fs.ErrPermission, fs.ErrExist, hyperv.ErrInUse, hyperv.ErrDamaged, hyperv.ErrTrackingLost, hyperv.ErrUnsupported} {
			if other != want && errors.Is(err, other) {
				t.Errorf("0x%x is %v too", code, other)
			}
		}
	}
	if got := classify(87); got != nil {
		t.Errorf("an invalid parameter is %v", got)
	}
	if h := (&Error{Op: "AttachVirtualDisk", Code: 1314, Hint: hint(1314)}).Error(); !strings.Contains(h, "SeManageVolumePrivilege") {
		t.Errorf("no hint: %s", h)
	}
}

func TestGUID(t *testing.T) {
	t.Parallel()
	const s = "ec984aec-a0f9-47e9-901f-71415a66345b"
	if vendorMicrosoft.String() != s {
		t.Errorf("String: %s", vendorMicrosoft)
	}
	for _, in := range []string{s, "{" + strings.ToUpper(s) + "}"} {
		if g, err := parseGUID(in); err != nil || g != vendorMicrosoft {
			t.Errorf("%s: %v, %v", in, g, err)
		}
	}
	for _, in := range []string{"", "x", s[1:], s + "0", strings.Replace(s, "-", "0", 1), strings.Replace(s, "e", "g", 1), "{}"} {
		if g, err := parseGUID(in); err == nil {
			t.Errorf("%q is %v", in, g)
		}
	}
}

func TestSpec(t *testing.T) {
	t.Parallel()
	good := hyperv.CreateDisk{Size: 1 << 30, LogicalSector: 512, PhysicalSector: 4096}
	if err := checkSpec(`C:\a.VHDX`, good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*hyperv.CreateDisk){
		"small": func(s *hyperv.CreateDisk) { s.Size = 1 << 20 }, "large": func(s *hyperv.CreateDisk) { s.Size = maxSize + 512 },
		"odd": func(s *hyperv.CreateDisk) { s.Size++ }, "sector": func(s *hyperv.CreateDisk) { s.LogicalSector = 520 },
		"sectors": func(s *hyperv.CreateDisk) { s.LogicalSector, s.PhysicalSector = 4096, 512 },
	} {
		bad := good
		change(&bad)
		if err := checkSpec(`C:\a.vhdx`, bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := checkSpec(`C:\a.vhd`, good); err == nil {
		t.Error("a VHD was taken")
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	if _, err := readFile(filepath.Join(t.TempDir(), "none"), 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}
