package virtdisk

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"

	"holdfast/internal/hypervisor/hyperv"
)

// library is virtdisk.dll. Functions are looked up when they are called: QueryChangesVirtualDisk
// is missing before Windows Server 2016.
type library struct {
	dll *windows.LazyDLL
}

func newLibrary() library { return library{windows.NewLazySystemDLL("virtdisk.dll")} }

// call calls a function that returns a Windows error code. The directive keeps
// what the arguments point to alive, and in its place, during the call.
//
//go:uintptrescapes
func (l library) call(path, name string, args ...uintptr) error {
	proc := l.dll.NewProc(name)
	if err := proc.Find(); err != nil {
		return &Error{Op: name, Path: path, Code: errNotSupported, System: errors.Join(hyperv.ErrUnsupported, err),
			Hint: "the function is there on Windows Server 2016 and newer"}
	}
	code, _, _ := proc.Call(args...)
	return failed(name, path, syscall.Errno(code))
}

// failed makes an error of a Windows code, nil of 0.
func failed(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var code syscall.Errno
	if !errors.As(err, &code) {
		return &Error{Op: op, Path: path, System: err}
	}
	if code == 0 {
		return nil
	}
	return &Error{Op: op, Path: path, Code: uint32(code), System: code, Hint: hint(uint32(code))}
}

func codeOf(err error) uint32 {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// open is OpenVirtualDisk version 2.
func (l library) open(path string, write bool) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, failed("OpenVirtualDisk", path, err)
	}
	var kind storageType
	params := openParameters{version: openVersion2, readOnly: 1}
	if write {
		params.readOnly = 0
	}
	var h windows.Handle
	err = l.call(path, "OpenVirtualDisk", uintptr(unsafe.Pointer(&kind)), uintptr(unsafe.Pointer(name)), accessNone, 0,
		uintptr(unsafe.Pointer(&params)), uintptr(unsafe.Pointer(&h)))
	return h, err
}

// create is CreateVirtualDisk version 2 of a VHDX.
func (l library) create(path string, spec hyperv.CreateDisk, id guid) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, failed("CreateVirtualDisk", path, err)
	}
	kind := storageType{deviceVHDX, vendorMicrosoft}
	params := createParameters{version: createVersion2, unique: id, maximumSize: uint64(spec.Size),
		sectorSize: uint32(spec.LogicalSector), physicalSector: uint32(spec.PhysicalSector)}
	var flags uintptr
	if spec.Fixed {
		flags = createFixed
	}
	var h windows.Handle
	err = l.call(path, "CreateVirtualDisk", uintptr(unsafe.Pointer(&kind)), uintptr(unsafe.Pointer(name)), accessNone, 0, flags, 0,
		uintptr(unsafe.Pointer(&params)), 0, uintptr(unsafe.Pointer(&h)))
	return h, err
}

// attach is AttachVirtualDisk. The disk is detached when its last handle is closed, so a dead process leaves none.
func (l library) attach(h windows.Handle, path string, flags uint32) error {
	params := attachParameters{version: attachVersion1}
	return l.call(path, "AttachVirtualDisk", uintptr(h), 0, uintptr(flags), 0, uintptr(unsafe.Pointer(&params)), 0)
}

func (l library) detach(h windows.Handle, path string) error {
	return l.call(path, "DetachVirtualDisk", uintptr(h), 0, 0)
}

// physicalPath is GetVirtualDiskPhysicalPath: \\.\PhysicalDriveN.
func (l library) physicalPath(h windows.Handle, path string) (string, error) {
	var buf [windows.MAX_PATH]uint16
	size := uint32(unsafe.Sizeof(buf))
	err := l.call(path, "GetVirtualDiskPhysicalPath", uintptr(h), uintptr(unsafe.Pointer(&size)), uintptr(unsafe.Pointer(&buf[0])))
	return windows.UTF16ToString(buf[:]), err
}

func (l library) getInfo(h windows.Handle, path string, info unsafe.Pointer, size uintptr) error {
	n := uint32(size)
	return l.call(path, "GetVirtualDiskInformation", uintptr(h), uintptr(unsafe.Pointer(&n)), uintptr(info), 0)
}

// info asks for all that the contract tells of a disk. Size and id must be had; the
// physical sector and change tracking may be unknown to older hosts or other formats.
func (l library) info(h windows.Handle, path string) (hyperv.DiskInfo, error) {
	var out hyperv.DiskInfo
	size := infoSize{version: getSize}
	if err := l.getInfo(h, path, unsafe.Pointer(&size), unsafe.Sizeof(size)); err != nil {
		return out, err
	}
	if size.virtualSize == 0 || size.virtualSize > 1<<46 || size.sectorSize != 512 && size.sectorSize != 4096 ||
		size.virtualSize%uint64(size.sectorSize) != 0 {
		return out, &Error{Op: "GetVirtualDiskInformation", Path: path, Code: errVHDFirst,
			System: errors.New("the system tells a size or sector size that no disk has")}
	}
	out.Size, out.LogicalSector, out.PhysicalSector = int64(size.virtualSize), int64(size.sectorSize), int64(size.sectorSize)
	id := infoID{version: getVirtualDiskID}
	if err := l.getInfo(h, path, unsafe.Pointer(&id), unsafe.Sizeof(id)); err != nil {
		return out, err
	}
	out.ID = id.id.String()
	sector := infoSector{version: getPhysicalSector}
	if l.getInfo(h, path, unsafe.Pointer(&sector), unsafe.Sizeof(sector)) == nil && sector.sector >= size.sectorSize {
		out.PhysicalSector = int64(sector.sector)
	}
	tracking := infoTracking{version: getTracking}
	if l.getInfo(h, path, unsafe.Pointer(&tracking), unsafe.Sizeof(tracking)) == nil {
		out.Tracking = hyperv.Tracking{Known: true, Enabled: tracking.enabled != 0, NewerChanges: tracking.newerChanges != 0,
			MostRecentID: windows.UTF16ToString(tracking.mostRecentID[:])}
	}
	return out, nil
}

func (l library) setID(h windows.Handle, path string, id guid) error {
	info := setID{version: setVirtualDiskID, id: id}
	return l.call(path, "SetVirtualDiskInformation", uintptr(h), uintptr(unsafe.Pointer(&info)))
}

// changes is one call of QueryChangesVirtualDisk: it returns the ranges found and how much of the window they stand for.
func (l library) changes(h windows.Handle, path, id string, off, n int64, buf []changeRange) ([]changeRange, int64, error) {
	name, err := windows.UTF16PtrFromString(id)
	if err != nil {
		return nil, 0, failed("QueryChangesVirtualDisk", path, err)
	}
	count, done := uint32(len(buf)), uint64(0)
	err = l.call(path, "QueryChangesVirtualDisk", uintptr(h), uintptr(unsafe.Pointer(name)), uintptr(off), uintptr(n), 0,
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&count)), uintptr(unsafe.Pointer(&done)))
	runtime.KeepAlive(name)
	if err != nil {
		return nil, 0, err
	}
	return buf[:min(int(count), len(buf))], int64(done), nil
}

// takeOffline keeps volume managers away from a physical drive until it is detached.
func takeOffline(h windows.Handle, path string) error {
	attr := diskAttributes{attributes: attributeOffline, mask: attributeOffline}
	attr.version = uint32(unsafe.Sizeof(attr))
	var n uint32
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return failed("CreateEvent", path, err)
	}
	defer windows.CloseHandle(event)
	ov := newOverlapped(event)
	err = windows.DeviceIoControl(h, ioctlSetDiskAttributes, (*byte)(unsafe.Pointer(&attr)), uint32(unsafe.Sizeof(attr)), nil, 0, &n, ov)
	if errors.Is(err, windows.ERROR_IO_PENDING) {
		err = windows.GetOverlappedResult(h, ov, &n, true)
	}
	return failed("IOCTL_DISK_SET_DISK_ATTRIBUTES", path, err)
}

// newOverlapped makes a request's state on the heap: the kernel writes to it after
// the call that starts the request, when a stack might have moved.
//
//go:noinline
func newOverlapped(event windows.Handle) *windows.Overlapped {
	return &windows.Overlapped{HEvent: event}
}

// enablePrivilege enables a privilege that the process's token holds. That it holds none shows when a call is refused.
func enablePrivilege(name string) error {
	var token windows.Token
	if err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ADJUST_PRIVILEGES|windows.TOKEN_QUERY, &token); err != nil {
		return err
	}
	defer token.Close()
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	p := windows.Tokenprivileges{PrivilegeCount: 1}
	p.Privileges[0].Attributes = windows.SE_PRIVILEGE_ENABLED
	if err := windows.LookupPrivilegeValue(nil, text, &p.Privileges[0].Luid); err != nil {
		return err
	}
	return windows.AdjustTokenPrivileges(token, false, &p, 0, nil, nil)
}
