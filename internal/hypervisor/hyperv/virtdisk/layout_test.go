package virtdisk

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"holdfast/internal/winetest"
)

// TestLayout has a C compiler compare the structures and constants with
// mingw-w64's headers: it refuses to compile where they differ.
func TestLayout(t *testing.T) {
	t.Parallel()
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Fatal("the layouts are those of 64 bits")
	}
	var c strings.Builder
	c.WriteString(`#define _WIN32_WINNT 0x0A00
#define WINVER 0x0A00
#include <stddef.h>
#include <windows.h>
#include <winioctl.h>
#include <virtdisk.h>
`)
	// The structure as it is published; mingw-w64's header lacks PhysicalSectorSizeInBytes.
	c.WriteString(`
typedef struct {
	CREATE_VIRTUAL_DISK_VERSION Version;
	union {
		struct {
			GUID UniqueId;
			ULONGLONG MaximumSize;
			ULONG BlockSizeInBytes, SectorSizeInBytes, PhysicalSectorSizeInBytes;
			PCWSTR ParentPath, SourcePath;
			OPEN_VIRTUAL_DISK_FLAG OpenFlags;
			VIRTUAL_STORAGE_TYPE ParentVirtualStorageType, SourceVirtualStorageType;
			GUID ResiliencyGuid;
		} Version2;
	};
} CREATE;
typedef struct {
	DWORD Version;
	BOOLEAN Persist;
	BYTE Reserved1[3];
	DWORDLONG Attributes, AttributesMask;
	DWORD Reserved2[4];
} ATTRIBUTES; /* SET_DISK_ATTRIBUTES, not in mingw-w64 */
`)
	size := func(name string, want uintptr) {
		fmt.Fprintf(&c, "_Static_assert(sizeof(%s) == %d, \"size of %s\");\n", name, want, name)
	}
	at := func(name, field string, want uintptr) {
		fmt.Fprintf(&c, "_Static_assert(offsetof(%s, %s) == %d, \"%s.%s\");\n", name, field, want, name, field)
	}
	value := func(name string, want uint32) {
		fmt.Fprintf(&c, "_Static_assert((unsigned)(%s) == %du, \"%s\");\n", name, want, name)
	}
	size("GUID", unsafe.Sizeof(guid{}))
	size("VIRTUAL_STORAGE_TYPE", unsafe.Sizeof(storageType{}))
	at("VIRTUAL_STORAGE_TYPE", "VendorId", unsafe.Offsetof(storageType{}.vendor))
	// Newer headers have a longer Version3 of the open parameters; what counts is where Version2's fields lie.
	size("((OPEN_VIRTUAL_DISK_PARAMETERS*)0)->Version2", unsafe.Sizeof(openParameters{})-4)
	at("OPEN_VIRTUAL_DISK_PARAMETERS", "Version2.GetInfoOnly", unsafe.Offsetof(openParameters{}.getInfoOnly))
	at("OPEN_VIRTUAL_DISK_PARAMETERS", "Version2.ReadOnly", unsafe.Offsetof(openParameters{}.readOnly))
	at("OPEN_VIRTUAL_DISK_PARAMETERS", "Version2.ResiliencyGuid", unsafe.Offsetof(openParameters{}.resiliency))
	size("CREATE", unsafe.Sizeof(createParameters{}))
	var cp createParameters
	for field, want := range map[string]uintptr{"UniqueId": unsafe.Offsetof(cp.unique), "MaximumSize": unsafe.Offsetof(cp.maximumSize),
		"BlockSizeInBytes": unsafe.Offsetof(cp.blockSize), "SectorSizeInBytes": unsafe.Offsetof(cp.sectorSize),
		"PhysicalSectorSizeInBytes": unsafe.Offsetof(cp.physicalSector), "ParentPath": unsafe.Offsetof(cp.parentPath),
		"SourcePath": unsafe.Offsetof(cp.sourcePath), "OpenFlags": unsafe.Offsetof(cp.openFlags),
		"ParentVirtualStorageType": unsafe.Offsetof(cp.parentType), "SourceVirtualStorageType": unsafe.Offsetof(cp.sourceType),
		"ResiliencyGuid": unsafe.Offsetof(cp.resiliency)} {
		at("CREATE", "Version2."+field, want)
	}
	for _, field := range []string{"UniqueId", "MaximumSize", "BlockSizeInBytes", "SectorSizeInBytes"} { // what both agree about
		fmt.Fprintf(&c, "_Static_assert(offsetof(CREATE, Version2.%s) == offsetof(CREATE_VIRTUAL_DISK_PARAMETERS, Version2.%s), \"%s\");\n", field, field, field)
	}
	size("ATTACH_VIRTUAL_DISK_PARAMETERS", unsafe.Sizeof(attachParameters{}))
	size("GET_VIRTUAL_DISK_INFO", unsafe.Sizeof(infoSize{}))
	size("GET_VIRTUAL_DISK_INFO", unsafe.Sizeof(infoID{}))
	size("GET_VIRTUAL_DISK_INFO", unsafe.Sizeof(infoSector{}))
	at("GET_VIRTUAL_DISK_INFO", "Size.VirtualSize", unsafe.Offsetof(infoSize{}.virtualSize))
	at("GET_VIRTUAL_DISK_INFO", "Size.PhysicalSize", unsafe.Offsetof(infoSize{}.physicalSize))
	at("GET_VIRTUAL_DISK_INFO", "Size.BlockSize", unsafe.Offsetof(infoSize{}.blockSize))
	at("GET_VIRTUAL_DISK_INFO", "Size.SectorSize", unsafe.Offsetof(infoSize{}.sectorSize))
	at("GET_VIRTUAL_DISK_INFO", "VirtualDiskId", unsafe.Offsetof(infoID{}.id))
	at("GET_VIRTUAL_DISK_INFO", "VhdPhysicalSectorSize", unsafe.Offsetof(infoSector{}.sector))
	at("GET_VIRTUAL_DISK_INFO", "ChangeTrackingState.Enabled", unsafe.Offsetof(infoTracking{}.enabled))
	at("GET_VIRTUAL_DISK_INFO", "ChangeTrackingState.NewerChanges", unsafe.Offsetof(infoTracking{}.newerChanges))
	at("GET_VIRTUAL_DISK_INFO", "ChangeTrackingState.MostRecentId", unsafe.Offsetof(infoTracking{}.mostRecentID))
	size("SET_VIRTUAL_DISK_INFO", unsafe.Sizeof(setID{}))
	at("SET_VIRTUAL_DISK_INFO", "VirtualDiskId", unsafe.Offsetof(setID{}.id))
	size("QUERY_CHANGES_VIRTUAL_DISK_RANGE", unsafe.Sizeof(changeRange{}))
	at("QUERY_CHANGES_VIRTUAL_DISK_RANGE", "ByteLength", unsafe.Offsetof(changeRange{}.length))
	size("ATTRIBUTES", unsafe.Sizeof(diskAttributes{}))
	at("ATTRIBUTES", "Attributes", unsafe.Offsetof(diskAttributes{}.attributes))
	at("ATTRIBUTES", "AttributesMask", unsafe.Offsetof(diskAttributes{}.mask))
	for name, v := range constants {
		value(name, v)
	}
	value("CTL_CODE(IOCTL_DISK_BASE, 0x003d, METHOD_BUFFERED, FILE_READ_ACCESS | FILE_WRITE_ACCESS)", ioctlSetDiskAttributes)

	source := c.String()
	winetest.Compile(t, source, filepath.Join(t.TempDir(), "x.o"), "-c")
	// The check can fail.
	if text, err := winetest.TryCompile(t, source+`_Static_assert(sizeof(GUID) == 17, "wrong");`, filepath.Join(t.TempDir(), "y.o"), "-c"); err == nil ||
		!strings.Contains(text, "wrong") {
		t.Errorf("a wrong size was not refused: %v\n%s", err, text)
	}
}

var constants = map[string]uint32{
	"OPEN_VIRTUAL_DISK_VERSION_2": openVersion2, "CREATE_VIRTUAL_DISK_VERSION_2": createVersion2, "ATTACH_VIRTUAL_DISK_VERSION_1": attachVersion1,
	"VIRTUAL_DISK_ACCESS_NONE": accessNone, "CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION": createFixed,
	"ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY": attachReadOnly, "ATTACH_VIRTUAL_DISK_FLAG_NO_DRIVE_LETTER": attachNoDriveLetter,
	"ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST": attachNoLocalHost,
	"GET_VIRTUAL_DISK_INFO_SIZE":             getSize, "GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE": getPhysicalSector,
	"GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID": getVirtualDiskID, "GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE": getTracking,
	"SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID": setVirtualDiskID, "VIRTUAL_STORAGE_TYPE_DEVICE_VHDX": deviceVHDX,
	"ERROR_INVALID_FUNCTION": errInvalidFunction, "ERROR_FILE_NOT_FOUND": errFileNotFound, "ERROR_PATH_NOT_FOUND": errPathNotFound,
	"ERROR_ACCESS_DENIED": errAccessDenied, "ERROR_SHARING_VIOLATION": errSharingViolation, "ERROR_LOCK_VIOLATION": errLockViolation,
	"ERROR_NOT_SUPPORTED": errNotSupported, "ERROR_FILE_EXISTS": errFileExists, "ERROR_INVALID_PARAMETER": errInvalidParameter,
	"ERROR_BAD_PATHNAME": errBadPathname, "ERROR_BUSY": errBusy, "ERROR_ALREADY_EXISTS": errAlreadyExists,
	"ERROR_PRIVILEGE_NOT_HELD": errPrivilege, "ERROR_FILE_CORRUPT": errFileCorrupt,
}
