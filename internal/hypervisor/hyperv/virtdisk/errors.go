package virtdisk

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"holdfast/internal/hypervisor/hyperv"
)

// Codes of winerror.h that are told apart.
const (
	errInvalidFunction  = 1
	errFileNotFound     = 2
	errPathNotFound     = 3
	errAccessDenied     = 5
	errSharingViolation = 32
	errLockViolation    = 33
	errNotSupported     = 50
	errFileExists       = 80
	errInvalidParameter = 87
	errBadPathname      = 161
	errBusy             = 170
	errAlreadyExists    = 183
	errPrivilege        = 1314
	errFileCorrupt      = 1392

	// FACILITY_VIRTUALIZATION's codes of disks are 0xC03A0001 and up.
	errVHDFirst            = 0xc03a0001
	errVHDProviderMissing  = 0xc03a0014
	errVHDParentAccess     = 0xc03a0016
	errVHDLimitation       = 0xc03a001a
	errVHDInvalidType      = 0xc03a001b
	errVHDSectorSize       = 0xc03a001d
	errVHDOwned            = 0xc03a001e
	errVHDOnline           = 0xc03a001f
	errCTLogNotInitialized = 0xc03a0020
	errCTLogSize           = 0xc03a0021
	errCTLogChangedOffline = 0xc03a0022
	errCTLogState          = 0xc03a0023
	errCTLogInconsistent   = 0xc03a0024
	errVHDTrackingID       = 0xc03a0029
	errVHDTrackingOff      = 0xc03a002a
	errVHDTrackingMissing  = 0xc03a0030
)

// classify finds the error of the contract that a Windows code stands for, nil if there is none.
func classify(code uint32) error {
	switch code {
	case errFileNotFound, errPathNotFound:
		return fs.ErrNotExist
	case errAccessDenied, errPrivilege, errVHDParentAccess:
		return fs.ErrPermission
	case errFileExists, errAlreadyExists:
		return fs.ErrExist
	case errSharingViolation, errLockViolation, errBusy, errVHDOwned, errVHDOnline:
		return hyperv.ErrInUse
	case errCTLogNotInitialized, errCTLogSize, errCTLogChangedOffline, errCTLogState, errCTLogInconsistent,
		errVHDTrackingID, errVHDTrackingOff, errVHDTrackingMissing:
		return hyperv.ErrTrackingLost
	case errNotSupported, errVHDProviderMissing, errVHDLimitation, errVHDInvalidType, errVHDSectorSize:
		return hyperv.ErrUnsupported
	case errFileCorrupt:
		return hyperv.ErrDamaged
	}
	if code >= errVHDFirst && code < errVHDProviderMissing || code > errVHDProviderMissing && code < errVHDLimitation {
		return hyperv.ErrDamaged // footers, headers, block tables, parents that don't fit
	}
	return nil
}

// Error is a refused call on a disk file. It wraps the error of the hyperv contract, where one fits, and the system's.
type Error struct {
	Op     string // the function, e.g. OpenVirtualDisk
	Path   string
	Code   uint32 // Windows error code
	Hint   string // what to do, where the code alone tells too little
	System error  // the system's words
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %v (0x%x)", e.Op, e.Path, e.System, e.Code)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap returns the contract's error and the system's.
func (e *Error) Unwrap() []error {
	list := []error{}
	if c := classify(e.Code); c != nil {
		list = append(list, c)
	}
	if e.System != nil {
		list = append(list, e.System)
	}
	return list
}

// hint adds what the operator can do to codes that don't say.
func hint(code uint32) string {
	switch code {
	case errPrivilege:
		return "the agent's account lacks the right \"Perform volume maintenance tasks\" (SeManageVolumePrivilege)"
	case errAccessDenied:
		return "run the agent as LocalSystem or an administrator"
	}
	return ""
}

// String renders a GUID as the contract wants ids: lower case, without braces.
func (g guid) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%02x%02x-%x", g.a, g.b, g.c, g.d[0], g.d[1], g.d[2:])
}

// parseGUID reads what String renders, with or without braces.
func parseGUID(s string) (guid, error) {
	var g guid
	t := strings.TrimSuffix(strings.TrimPrefix(s, "{"), "}")
	parts := strings.Split(t, "-")
	if len(t) != 36 || len(parts) != 5 || len(parts[0]) != 8 || len(parts[1]) != 4 || len(parts[2]) != 4 || len(parts[3]) != 4 {
		return g, fmt.Errorf("virtdisk: %q is no GUID", s)
	}
	nums := make([]uint64, 5)
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 16, 64)
		if err != nil {
			return g, fmt.Errorf("virtdisk: %q is no GUID", s)
		}
		nums[i] = n
	}
	g.a, g.b, g.c = uint32(nums[0]), uint16(nums[1]), uint16(nums[2])
	g.d[0], g.d[1] = byte(nums[3]>>8), byte(nums[3])
	for i := range 6 {
		g.d[2+i] = byte(nums[4] >> (40 - 8*i))
	}
	return g, nil
}
