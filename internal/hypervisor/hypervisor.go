// Package hypervisor is the contract between Holdfast and the hosts whose
// virtual machines it protects or recovers: inventory, consistent cuts with
// changed ranges, power, and bringing a VM up from an NBD-served recovery point.
//
// The contract of a cut is "per disk: a frozen image to read and the ranges
// changed since a base token"; only how it begins and ends differs per
// platform. Adapters (hypervisor/libvirt, hypervisor/sim, later qmp and hyperv)
// are leaves: cmd wires them, and one conformance suite (hypervisortest) runs on each.
//
// Every call takes a context and returns by its deadline, even when the
// platform's own call hangs. All methods are safe for concurrent use; calls
// that change the same VM are serialised by the adapter. Errors are *dr.Error.
package hypervisor

import (
	"context"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// HostInfo describes a host.
type HostInfo struct {
	Name       string // host name
	Hypervisor string // product and version, e.g. "QEMU 7.2.22, libvirt 9.0.0"
	CPUs       int
	MemoryMB   int
	Volumes    []Volume // that hold VMs' disks; empty = not known
}

// Volume is a file system of a host.
type Volume struct {
	Path string // where it is mounted, as disk paths begin with it
	Size int64  // bytes
	Free int64
}

// Event is a hint that something about a VM changed; the receiver asks for the
// truth. VM is empty when the change is not bound to one VM (reconnected, networks).
type Event struct {
	VM   dr.VMID
	Kind string // defined, undefined, started, stopped, crashed, job, reconnected
}

// VMConfig is everything needed to define a VM again elsewhere.
type VMConfig struct {
	VM     dr.VM             // neutral description
	Native map[string][]byte // adapter's own: "libvirt.xml", "nvram"; may be empty on another platform
}

// Source is the protected side of a host.
type Source interface {
	Info(ctx context.Context) (HostInfo, error)
	// Inventory lists all VMs of the host, including those that can't be
	// protected (their disks say why).
	Inventory(ctx context.Context) ([]dr.VM, error)
	// Config returns the current configuration of a VM. dr.CodeVMNotFound if the host does not know it.
	Config(ctx context.Context, vm dr.VMID) (VMConfig, error)
	// Watch calls fn for every event and returns nil when ctx ends; it
	// reconnects by itself and then reports Kind "reconnected". fn must not block.
	Watch(ctx context.Context, fn func(Event)) error
	// BeginCut freezes all disks named in the request at one instant.
	BeginCut(ctx context.Context, req CutRequest) (Cut, error)
	// Forget deletes the tracking tokens of vm that Holdfast made
	// and are not in keep, and ends a stale cut that an earlier agent process
	// left open. It touches nothing of other products, and not a cut that this
	// process has open. Tokens of a VM that is off may stay until it runs, unless
	// keep is empty. Idempotent.
	Forget(ctx context.Context, vm dr.VMID, keep []string) error
}

// CutRequest asks for a cut.
type CutRequest struct {
	VM      dr.VMID
	Disks   []string // dr.Disk IDs, at least one
	Base    string   // token of the cut to take changes since; "" = everything counts as changed
	Tag     string   // makes the new token's name unique: letters, digits and hyphens
	Offline bool     // the VM may be off: the adapter makes its disks readable without running the guest (last delta of a planned failover)
	Quiesce bool     // ask the guest to freeze its file systems (bounded; falls back, see Cut.Consistency)
}

// Cut is a frozen instant of all disks of a VM. It holds platform resources
// (on KVM an open backup job) until End or Abort: keep it short.
//
// BeginCut's typed refusals: dr.CodeTrackingLost (the base token is missing, or
// of use for none of the disks: resynchronize with Base ""), dr.CodeVMNotRunning, dr.CodeVMNotFound,
// dr.CodeBackupJobBusy (another product's job, or a cut of the VM is open in
// this process), dr.CodeDiskNotTrackable, dr.CodeDiskShared,
// dr.CodeDiskPassThrough, dr.CodeScratchFull; dr.CodeAlreadyExists for a tag in
// use. A cut that an earlier process left open is ended first; its token stays,
// since the cut may have been read in full before that process died.
//
// A refused or failed BeginCut costs nothing: the base token stays good. After
// one whose outcome is unknown (deadline) the VM may be busy for a while.
// A disk whose history since the base is not known (added, replaced, reverted
// to a snapshot, shrunk, its tracking broken) is Changed as a whole, and says so
// (CutDisk.Whole), while the other disks of the cut stay incremental. A disk that
// has grown keeps its history; the new range is Changed. If the VM stops, or the
// adapter ends the cut to protect it (scratch space, age), ReadAt and Extents fail
// and Abort is due; a later cut since the same base is right. A VM that ran out of
// scratch space is running when the adapter has ended the cut.
type Cut interface {
	// Info does not change during the cut's life.
	Info() CutInfo
	// Extents reports [off, off+length) of a disk in ascending order, without
	// gaps or overlaps, clipped to the disk. Changed=false ranges equal the base's
	// content. Zero ranges read as zeroes. A range of unknown history is Changed.
	Extents(ctx context.Context, disk string, off, length int64, fn func(Range) error) error
	// ReadAt fills p from the frozen image. Parallel calls are pipelined.
	ReadAt(ctx context.Context, disk string, p []byte, off int64) error
	// End releases the frozen image and keeps the new token, so that the next
	// cut can take its changes since this one. Idempotent.
	End(ctx context.Context) error
	// Abort releases the frozen image and deletes the new token; the base token stays good. Idempotent, allowed after End.
	Abort(ctx context.Context) error
}

// CutInfo describes a cut.
type CutInfo struct {
	Token string    // pass as Base of the next request
	Time  time.Time // not after the instant of the cut
	Disks []CutDisk
	// Consistency is what was achieved for certain: above dr.CrashConsistent only
	// if the guest confirmed that it froze file systems, the instant of the cut
	// came within the freeze, and the guest confirmed the thaw in time.
	Consistency dr.Consistency
	Note        string        // why the consistency is lower than asked for, if it is
	Incremental bool          // Base was honoured for at least one disk
	Held        time.Duration // how long the guest was paused or its file systems frozen; 0 = not at all
}

// CutDisk is one disk of a cut.
type CutDisk struct {
	ID          string
	Size        int64 // bytes
	Granularity int64 // of change tracking, bytes
	// Whole: all of the disk is reported as Changed, because its history since the
	// base is not known. Always so in a cut without base. In an incremental one
	// the receiver compares the disk with what it has, as after a lost token.
	Whole bool
	Why   string // why an incremental cut has the disk as a whole; "" otherwise
}

// Range is a run of a disk with the same properties.
type Range struct {
	Off, Len int64
	Changed  bool
	Zero     bool
}

// PowerState of a VM.
type PowerState string

// The power states.
const (
	PowerOn     PowerState = "on"
	PowerOff    PowerState = "off"
	PowerPaused PowerState = "paused"
)

// Machines controls VMs of a host: power of any, life of those Holdfast made.
type Machines interface {
	State(ctx context.Context, vm dr.VMID) (PowerState, error)
	Start(ctx context.Context, vm dr.VMID) error
	// Shutdown asks the guest to shut down and waits until it is off or ctx
	// ends (dr.CodeShutdownTimeout). Idempotent on a VM that is off.
	Shutdown(ctx context.Context, vm dr.VMID) error
	// Destroy cuts the power. Idempotent.
	Destroy(ctx context.Context, vm dr.VMID) error
	// Boot defines and starts a recovery VM. Idempotent by spec.Name: a VM of
	// that name made by an earlier call with the same spec.Owner is returned as
	// it is, started if it is off. dr.CodeAlreadyExists if the name, the UUID to
	// be kept or a local image is somebody else's. A failed call leaves nothing behind.
	Boot(ctx context.Context, spec BootSpec) (dr.VMID, error)
	// MakeLocal copies what is still remote into the VM's own disks while it
	// runs, until nothing depends on the NBD sockets. Resumable: calling it again goes on.
	MakeLocal(ctx context.Context, vm dr.VMID, progress func(done, total int64)) error
	// Remove destroys and undefines a VM that Boot made (refuses others), with
	// its disk files and anything else Boot created. With vm empty it removes
	// whatever Boot made for the owner, also half-made things. Idempotent.
	Remove(ctx context.Context, vm dr.VMID, owner string) error
}

// BootSpec says how to bring a recovery VM up.
type BootSpec struct {
	Name     string // VM name at the recovery site, unique on the host
	Owner    string // stamped into the VM; Remove checks it
	Config   VMConfig
	Disks    []BootDisk
	CPUs     int // 0 = as captured
	MemoryMB int
	// KeepUUID: a real failover keeps UUID and MACs. A test failover gets a new
	// UUID, and new MACs where it could meet the original's.
	KeepUUID bool
	Network  string // "" = all NICs with link down; a network name; or IsolatedNetwork
	// Adapters, if not empty, says for each NIC by itself how it is connected, in
	// place of Network: see NIC.
	Adapters []BootNIC
	// Cloud is what a recovery VM of a cloud gets beyond that; hosts ignore it.
	Cloud CloudTarget
	// Progress is told how many bytes of all disks have been copied, where a boot copies. It may be nil, and does not block.
	Progress func(done, total int64)
}

// CloudTarget says what a recovery VM gets in a cloud. Empty fields are the site's defaults.
type CloudTarget struct {
	Size            string            // such as Standard_D4s_v5; "" = the smallest that fits
	ResourceGroup   string            // name or resource id
	AvailabilitySet string            // name or resource id
	Zone            string            // "1" to "3"; not together with AvailabilitySet
	ProximityGroup  string            // resource id
	DiskType        string            // Standard_LRS, StandardSSD_LRS, Premium_LRS, …
	LicenseType     string            // Windows_Server, RHEL_BYOS, …
	SecurityGroup   string            // resource id of a network security group for every adapter
	PublicIP        bool              // the primary adapter gets a public address
	Tags            map[string]string // beside Holdfast's own
}

// BootNIC is how one NIC of a recovery VM is connected.
type BootNIC struct {
	MAC     string // of the source VM's NIC, however it is written
	Network string // "" = link down; a network name
	VLAN    int    // access VLAN, 0 = untagged; hosts whose networks have no VLANs ignore it
	Subnet  string // of a cloud's network: by its name, else the first in order of names
	IP      string // static private address in a cloud's subnet; "" = the next free one
}

// NIC is how the NIC of the source VM with that address is connected. One that
// Adapters does not list is not.
func (s BootSpec) NIC(mac string) BootNIC {
	if len(s.Adapters) == 0 {
		return BootNIC{MAC: mac, Network: s.Network}
	}
	plain := strings.NewReplacer(":", "", "-", "", ".", "").Replace
	for _, a := range s.Adapters {
		if mac != "" && strings.EqualFold(plain(a.MAC), plain(mac)) {
			return a
		}
	}
	return BootNIC{MAC: mac}
}

// IsolatedNetwork as BootSpec.Network asks for a private network that reaches
// nobody but its members, which are all recovery VMs of the host that asked for
// it. Hosts that have no such thing (unprivileged libvirt) leave the link down.
const IsolatedNetwork = "holdfast:isolated"

// DefaultNetwork as a network asks a cloud for the network that its site names as the
// default; without one it is as "". Hosts are never asked for it.
const DefaultNetwork = "holdfast:default"

// BootDisk is one disk of a recovery VM: a read-only base served over NBD and
// a local copy-on-write image that Boot creates.
type BootDisk struct {
	ID     string
	Size   int64
	Socket string // unix socket of the NBD server, accessible to the hypervisor; "" = the disk starts empty
	Export string
	Path   string // local image to create (qcow2), absolute; must not exist
	// Image is a page blob (a snapshot of one, without signature) that holds the whole disk already, as a
	// fixed VHD: a cloud makes the disk from it and does not read Socket. Hosts ignore it.
	Image string
}

// Console looks at a running VM from outside.
type Console interface {
	// Screenshot returns a PNG of the VM's display.
	Screenshot(ctx context.Context, vm dr.VMID) ([]byte, error)
	// SerialLog returns what the guest wrote to its first serial port since Boot, at most max bytes from the end.
	SerialLog(ctx context.Context, vm dr.VMID, max int) ([]byte, error)
}

// Host is a host with everything.
type Host interface {
	Source
	Machines
	Console
	// Networks lists the networks that recovery VMs can be attached to.
	Networks(ctx context.Context) ([]Network, error)
	Close() error
}

// Network is a virtual network of a host.
type Network struct {
	Name     string
	Isolated bool // no way out: no forward mode
	Active   bool
}
