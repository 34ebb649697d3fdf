package virtdisk

// The structures and constants of virtdisk.h and winioctl.h in the layout of 64-bit Windows. This file is built
// everywhere, so that layout_test.go can compare it with a C compiler's view.

// guid is a GUID: three little-endian numbers and eight bytes.
type guid struct {
	a    uint32
	b, c uint16
	d    [8]byte
}

// storageType is VIRTUAL_STORAGE_TYPE; zero = found out by the system.
type storageType struct {
	device uint32
	vendor guid
}

// openParameters is OPEN_VIRTUAL_DISK_PARAMETERS with Version2.
type openParameters struct {
	version     uint32
	getInfoOnly int32
	readOnly    int32
	resiliency  guid
}

// createParameters is CREATE_VIRTUAL_DISK_PARAMETERS with Version2. The published
// reference has PhysicalSectorSizeInBytes; the header of mingw-w64 lacks it.
type createParameters struct {
	version        uint32
	_              uint32
	unique         guid
	maximumSize    uint64
	blockSize      uint32
	sectorSize     uint32
	physicalSector uint32
	_              uint32
	parentPath     *uint16
	sourcePath     *uint16
	openFlags      uint32
	parentType     storageType
	sourceType     storageType
	resiliency     guid
	_              uint32
}

// attachParameters is ATTACH_VIRTUAL_DISK_PARAMETERS with Version1.
type attachParameters struct {
	version  uint32
	reserved uint32
}

// infoSize is GET_VIRTUAL_DISK_INFO with Size.
type infoSize struct {
	version      uint32
	_            uint32
	virtualSize  uint64
	physicalSize uint64
	blockSize    uint32
	sectorSize   uint32
}

// infoID is GET_VIRTUAL_DISK_INFO with VirtualDiskId.
type infoID struct {
	version uint32
	_       uint32
	id      guid
	_       [8]byte // the union is as long as Size
}

// infoSector is GET_VIRTUAL_DISK_INFO with VhdPhysicalSectorSize.
type infoSector struct {
	version uint32
	_       uint32
	sector  uint32
	_       [20]byte
}

// maxTrackingID bounds the text of a change tracking id, in UTF-16 units.
const maxTrackingID = 256

// infoTracking is GET_VIRTUAL_DISK_INFO with ChangeTrackingState, whose id is longer than declared.
type infoTracking struct {
	version      uint32
	_            uint32
	enabled      int32
	newerChanges int32
	mostRecentID [maxTrackingID]uint16
}

// setID is SET_VIRTUAL_DISK_INFO with VirtualDiskId.
type setID struct {
	version uint32
	_       uint32
	id      guid
	_       [8]byte
}

// changeRange is QUERY_CHANGES_VIRTUAL_DISK_RANGE.
type changeRange struct {
	offset, length, reserved uint64
}

// diskAttributes is SET_DISK_ATTRIBUTES.
type diskAttributes struct {
	version    uint32
	persist    byte
	_          [3]byte
	attributes uint64
	mask       uint64
	_          [4]uint32
}

const (
	openVersion2   = 2
	createVersion2 = 2
	attachVersion1 = 1

	accessNone = 0 // the only one that version 2 takes

	createFixed = 1 // CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION

	attachReadOnly      = 1
	attachNoDriveLetter = 2
	attachNoLocalHost   = 8

	getSize           = 1
	getPhysicalSector = 10
	getVirtualDiskID  = 14
	getTracking       = 15
	setVirtualDiskID  = 5

	deviceVHDX = 3

	ioctlSetDiskAttributes = 0x7c0f4
	attributeOffline       = 1
)

// vendorMicrosoft is VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT.
var vendorMicrosoft = guid{0xec984aec, 0xa0f9, 0x47e9, [8]byte{0x90, 0x1f, 0x71, 0x41, 0x5a, 0x66, 0x34, 0x5b}}
