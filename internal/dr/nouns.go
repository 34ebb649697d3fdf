package dr

import (
	"fmt"
	"time"
)

// Identifiers are opaque strings, mostly lower-case UUIDs. They are types so
// that one is not taken for another.
type (
	FabricID  string // UUID; the fabric's internal identifier
	AgentID   string // UUID of a registered provider/agent
	VMID      string // the hypervisor's UUID of a VM, lower case
	ItemID    string // UUID of a protected item (Holdfast's, not the API name)
	PolicyID  string // UUID
	MachineID string // UUID under which the store keeps a VM's replica; a new one each time protection is enabled
	JobID     string // UUID; also the id of the API's long-running operation
)

// Generation numbers the writers of one machine's replica. Every takeover by
// another agent, resynchronization onto a new base, failover or reversal gets the next one.
type Generation uint32

// FabricType is the kind of site a fabric is.
type FabricType string

// The fabric types.
const (
	HyperVSite FabricType = "HyperVSite" // also how KVM sites show in the REST API
	KVMSite    FabricType = "KVMSite"
	VMMSite    FabricType = "VMM"
	AzureSite  FabricType = "Azure" // a resource group in which VMs are recovered
)

// Fabric is a site that is managed as one.
type Fabric struct {
	ID      FabricID
	Name    string // unique in the vault, compared without case
	Type    FabricType
	Created time.Time
}

// ContainerName is the name of the one protection container of a site without
// VMM; of a VMM server it is the container of VMs that are in no cloud.
func (f Fabric) ContainerName() string { return "cloud_" + string(f.ID) }

// ContainerOf is the name of the container of the VMs of a VMM cloud.
func (f Fabric) ContainerOf(cloud string) string {
	if cloud == "" || f.Type != VMMSite {
		return f.ContainerName()
	}
	return "cloud_" + cloud
}

// Provider is a registered agent of a fabric.
type Provider struct {
	ID         AgentID
	Fabric     FabricID
	Host       string // host name as the agent reported it
	Roles      []AgentRole
	Version    string // of the agent
	Hypervisor string // e.g. "QEMU 7.2.22, libvirt 9.0.0"
	Registered time.Time
	LastSeen   time.Time // last heartbeat
	Revoked    bool
}

// HasRole reports whether the provider has role r.
func (p Provider) HasRole(r AgentRole) bool {
	for _, x := range p.Roles {
		if x == r {
			return true
		}
	}
	return false
}

// Disk is one disk of a VM as discovered.
type Disk struct {
	ID             string // stable within the VM: the target name (vda) on KVM, VirtualDiskId on Hyper-V
	Path           string // file or device on the host
	Format         string // qcow2, raw, vhdx, ...
	Size           int64  // virtual size, bytes
	Boot           bool   // holds the operating system
	Shared         bool
	PassThru       bool   // physical disk or LUN handed to the VM
	Unreplicatable string // non-empty: why its changes can't be tracked; makes the prerequisites check fail
	Controller     string // scsi, ide, virtio, sata, nvme, …; empty = not known
	Slot           int    // place on its controller
	Layout         string // fixed, dynamic, differencing; empty = not known or not a matter of the format
	Sector         int    // logical sector size, bytes; 0 = not known
	Allocated      int64  // what it takes on the host, all files of its chain, bytes; 0 = not known
	Chain          int    // number of files that it is made of; 0 = not known
}

// NIC is one network adapter of a VM.
type NIC struct {
	ID      string // stable within the VM (MAC where nothing better exists)
	MAC     string
	Network string // libvirt network or switch name; empty for user-mode or none
	Type    string // network, bridge, user, ...
	IPs     []string
	VLAN    int // access VLAN, 0 = untagged
}

// VM is a discovered virtual machine (protectable item).
type VM struct {
	ID         VMID
	Name       string
	Fabric     FabricID
	Agent      AgentID // agent of the host that it was last seen on
	Running    bool
	Generation int // 1 = BIOS, 2 = UEFI
	CPUs       int
	MemoryMB   int
	OSType     string // Linux, Windows or empty
	Disks      []Disk
	NICs       []NIC
	Facts      VMFacts
	Seen       time.Time
	Gone       bool // no longer reported by its host
}

// VMFacts is what a host tells about a VM beyond what replication needs, for
// reports and prerequisites. Empty and zero mean "not known" or "no".
type VMFacts struct {
	Version       string // of the configuration: "9.0" on Hyper-V, the machine type on KVM
	SecureBoot    bool
	OSName        string // as the guest tells it: "Windows Server 2022 Datacenter"
	OSVersion     string
	GuestTools    string // state of integration services or guest agent: ok, degraded, absent, …
	AppConsistent string // why application-consistent points can't be asked for now; empty = they can
	Checkpoints   int    // that its users have made
	Clustered     bool   // a role of a failover cluster: it may move by itself
	DynamicMemory bool
	Replicated    string // another replication that it is under: "Hyper-V Replica"
	Cloud         string // id of its VMM cloud
}

// ContainerMapping associates a policy with a protection container and names
// where its items are recovered.
type ContainerMapping struct {
	Name         string
	Fabric       FabricID // source
	Container    string   // name of the source container, lower case; empty = all of the fabric
	Policy       PolicyID
	Target       string   // target container id as the client gave it ("Microsoft Azure" or a container of a recovery fabric)
	TargetFabric FabricID // resolved recovery fabric; empty if the target is the cloud
	Created      time.Time
}

// ProtectedItem is a VM under replication. Its state is on independent axes.
type ProtectedItem struct {
	ID      ItemID
	Name    string // API name, unique in its container, compared without case; by custom the VM's UUID
	Fabric  FabricID
	VM      VMID
	VMName  string
	Policy  PolicyID
	Machine MachineID
	Gen     Generation // the current writer generation

	SourceAgent    AgentID // replicates it
	RecoveryFabric FabricID
	RecoveryAgent  AgentID  // runs its recovery VM, once chosen
	Disks          []string // replicated disk ids

	Protection   Protection
	Failover     Failover
	Test         TestFailover
	Active       Location
	Resync       string // reason why a resynchronization is required or runs; empty = none
	Paused       bool
	Job          JobID  // the current job, if any
	FailedOverTo string // recovery point of the pending or committed failover
	RecoveryVM   VMID   // VM at the recovery site after failover
	TestVM       VMID
	TestNetwork  string

	Health         Health
	HealthErrors   []HealthError
	Settings       ItemSettings
	Created        time.Time
	LastTest       time.Time // last successful test failover (brought up and cleaned up)
	LastFailover   time.Time
	LastTestReport string // JSON of the last drill: boot proof, screenshot reference
}

// ItemSettings are the recovery VM's settings, kept as the client gave them.
type ItemSettings struct {
	RecoveryVMName string
	CPUs, MemoryMB int    // 0 = as the source
	Network        string // network of the recovery site for real failovers
	TestNetwork    string
	Raw            string // provider-specific JSON as last sent, for a faithful echo
	Cloud          CloudSettings
}

// CloudSettings are what a recovery VM gets in a cloud. Empty fields are the recovery site's defaults.
type CloudSettings struct {
	Size            string
	ResourceGroup   string // name or resource id, as all that name a resource
	AvailabilitySet string
	Zone            string
	ProximityGroup  string
	DiskType        string
	License         string
	SecurityGroup   string
	PublicIP        bool
	Tags            map[string]string
	NICs            []CloudNIC // those that somebody has set
	Warm            bool       // the disks are kept ready: see WarmReplica
	Repair          bool       // what would keep the guest from booting is repaired on a side layer, where that is safe
}

// CloudNIC is what somebody wants of one adapter of the recovery VM.
type CloudNIC struct {
	ID         string // of the source VM's adapter, as its host reports it
	Unused     bool   // the recovery VM does not get it
	Primary    bool
	Subnet, IP string // of real failovers; IP "" = the next free address
	TestSubnet string // of test failovers
	TestIP     string
}

// ComputeSize is a size of VM that a cloud offers.
type ComputeSize struct {
	Name        string
	CPUs        int
	MemoryMB    int
	DataDisks   int   // at most
	NICs        int   // at most
	Generations []int // 1, 2
	Premium     bool  // takes premium disks
	Problem     string
}

// WarmReplica is how ready the disks of an item are kept in a cloud.
type WarmReplica struct {
	Gen      Generation // of the point that they hold
	N        uint64
	Time     time.Time // of the point; zero = none is held yet
	At       time.Time // when the agent said it
	Bytes    int64     // written since it was begun
	Requests int64
	Busy     bool
	Problem  string // why it is not brought further; empty = it is
}

// ReplicationStatus is what the source agent last said about an item.
type ReplicationStatus struct {
	Phase        string  // waiting, initialReplication, delta, resync, paused, stopped, error
	Percent      float64 // of initial replication or resync
	BytesDone    int64   // of the phase
	BytesTotal   int64
	ETA          time.Duration // 0 = unknown
	BacklogBytes int64         // changed and not yet committed
	Spooled      int64         // bytes in the local spool
	LastCut      time.Time
	LastPoint    time.Time // time of the newest committed recovery point
	Missed       int       // cycles missed in the monitoring interval
	Cycles       int
	Err          *HealthError
	At           time.Time // when the agent said it

	BacklogRate    int64         // bytes a second that the guest changes, averaged over recent cycles
	ShipRate       int64         // bytes a second that reach the store while there is something to send
	Converging     Convergence   // whether the backlog gets smaller
	BacklogSeconds time.Duration // until the backlog is drained at these rates; 0 = nothing to drain or unknown
	ResyncReason   Code          // why a resynchronization is required or runs; empty = none
	NextResync     time.Time     // when it begins by itself; zero = at once, or not by itself (ResyncManual)

	ConsistencyNote string // why the newest point is less consistent than the policy asks for; empty = it is not
}

// Convergence is the verdict on an item's backlog.
type Convergence string

// The verdicts. The empty one is ConvergenceUnknown: an agent that does not say.
const (
	Converging         Convergence = "converging"    // the store gets more than the guest changes
	NotConverging      Convergence = "notConverging" // the guest changes more than can be sent
	BacklogIdle        Convergence = "idle"          // nothing to send
	ConvergenceUnknown Convergence = "unknown"       // too few cycles to tell
)

// GroupID is the UUID of a consistency group.
type GroupID string

// ConsistencyGroup is a set of protected items that are also cut at one common
// instant, so that they can be failed over together to it.
type ConsistencyGroup struct {
	ID     GroupID
	Name   string // unique in the vault, compared without case
	Fabric FabricID
	Items  []ItemID
}

// HealthError is one reason for a health other than Normal.
type HealthError struct {
	Code     Code
	Severity Health
	Message  string
	Cause    string
	Remedy   string
	Since    time.Time
}

// RecoveryPoint is a position in a machine's chain of cuts that can be failed over to.
type RecoveryPoint struct {
	Machine     MachineID
	Gen         Generation
	N           uint64 // cut number, strictly increasing over generations
	Time        time.Time
	Consistency Consistency
	Resync      bool   // made by a resynchronization
	DirtyBytes  int64  // changed bytes at the source in this cycle
	DataBytes   int64  // plaintext bytes carried
	StoredBytes int64  // of the cut and its parts (tiles too for the first)
	Note        string // what people should know of it, e.g. why it is only crash-consistent; mostly empty
}

// Name is the point's API name, unique for the machine: generation and cut number.
func (p RecoveryPoint) Name() string { return PointName(p.Gen, p.N) }

// PointName formats a recovery point name: "g00000001-c0000000000000007".
func PointName(g Generation, n uint64) string { return fmt.Sprintf("g%08x-c%016x", uint32(g), n) }

// ParsePointName is the inverse of PointName.
func ParsePointName(s string) (Generation, uint64, error) {
	var g uint32
	var n uint64
	if _, err := fmt.Sscanf(s, "g%08x-c%016x", &g, &n); err != nil || PointName(Generation(g), n) != s {
		return 0, 0, New(KindInvalid, CodePointNameInvalid, "dr.ParsePointName", "%q is not the name of a recovery point (want g%%08x-c%%016x)", s)
	}
	return Generation(g), n, nil
}
