// Package virtdisk is the data plane on a Windows host: it satisfies
// hyperv.Disks with virtdisk.dll, which replays logs and follows chains of
// differencing disks as the host itself does.
//
// A disk is opened with OPEN_VIRTUAL_DISK version 2 and VIRTUAL_DISK_ACCESS_NONE,
// attached without a drive letter, and read and written at virtual offsets with
// overlapped requests on the handle. Hosts that refuse ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST
// get the disk attached as a physical drive without letter instead, which is kept
// offline while it is open for writing.
//
// It promises: every call returns by its context's deadline, even if the driver
// below hangs: the request is then cancelled (CancelIoEx) and what it holds is
// released when the driver lets go of it. A call that may not be cut short (open, attach,
// create) and is late undoes what it did. Closing a disk waits for its requests.
//
// The process needs the privilege SeManageVolumePrivilege (administrators and LocalSystem
// have it); it is enabled at the first use. On other platforms New fails.
//
// Not proved here: the behaviour of a real virtdisk.dll. What is checked are the
// layouts of its structures, its constants and the ways of failing.
//
// Sources: the published reference of virtdisk.h and of winioctl.h (Windows SDK).
package virtdisk
