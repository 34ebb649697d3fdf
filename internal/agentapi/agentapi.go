// Package agentapi is the contract between the vault and the agents: wire
// types of the outbound HTTPS channel, its paths and its version history.
//
// Agents connect outbound only. Everything is JSON over POST except object
// reads. An agent says who it is with its client certificate (mutual TLS),
// except for Enroll, which is authenticated by the registration key. Every
// request is idempotent: lost responses are answered by sending it again.
// Unknown fields are ignored on both sides.
package agentapi

import (
	"encoding/json"
	"time"
)

// Protocol is the version of this contract, sent by agents in ProtocolHeader.
//
// History:
//
//	1  2026-11-22  first version
//	1  2026-11-22  added, all optional: digests; of assignments how initial
//	               replication, resynchronization, bandwidth and groups are
//	               to be done; of status how it converges
//	1  2026-11-22  added, all optional: what a VMM server manages; of a boot
//	               how each adapter is connected
//	1  2026-11-23  added, all optional: of a boot what a cloud gives the VM; the
//	               sizes that a cloud offers; warm replicas
//	1  2026-11-23  added, all optional: URLs signed ahead, for when the vault is down
const Protocol = 1

// ProtocolHeader carries Protocol in decimal; VersionHeader the agent's build.
const (
	ProtocolHeader = "Holdfast-Agent-Protocol"
	VersionHeader  = "Holdfast-Agent-Version"
)

// The paths below the vault's base URL.
const (
	PathEnroll    = "/agent/v1/enroll"    // EnrollRequest → EnrollResponse; no client certificate yet
	PathRenew     = "/agent/v1/renew"     // RenewRequest → EnrollResponse
	PathPoll      = "/agent/v1/poll"      // PollRequest → PollResponse; held open up to Wait seconds
	PathReport    = "/agent/v1/report"    // ReportRequest → empty
	PathInventory = "/agent/v1/inventory" // InventoryRequest → empty
	PathVMM       = "/agent/v1/vmm"       // VMMRequest → empty; only agents with the role vmm
	PathStatus    = "/agent/v1/status"    // StatusRequest → empty
	PathUploads   = "/agent/v1/uploads"   // UploadRequest → UploadResponse
	PathHead      = "/agent/v1/head"      // HeadRequest → HeadResponse
	PathCommits   = "/agent/v1/commits"   // CommitRequest → CommitResponse
	PathPoints    = "/agent/v1/points"    // OpenPointRequest → OpenPointResponse
	PathDigests   = "/agent/v1/digests"   // DigestRequest → DigestResponse
	PathWarm      = "/agent/v1/warm"      // WarmRequest → WarmResponse; agents of a cloud
)

// Error is the body of every non-2xx answer, under the key "error".
type Error struct {
	Kind    string `json:"kind"` // dr.Kind.String()
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// ErrorBody is the envelope of Error.
type ErrorBody struct {
	Error Error `json:"error"`
}

// EnrollRequest registers a host with a registration key.
type EnrollRequest struct {
	KeyID      string   `json:"keyId"`
	Secret     string   `json:"secret"` // from the key file; never logged
	CSR        string   `json:"csr"`    // PEM, P-256
	Host       string   `json:"host"`
	MachineID  string   `json:"machineId"` // of the host's OS; the same host registering again replaces its old registration
	Roles      []string `json:"roles"`     // dr.AgentRole
	Version    string   `json:"version"`
	Hypervisor string   `json:"hypervisor"`
}

// EnrollResponse carries the agent's identity.
type EnrollResponse struct {
	AgentID     string    `json:"agentId"`
	FabricID    string    `json:"fabricId"`
	FabricName  string    `json:"fabricName"`
	Certificate string    `json:"certificate"` // PEM
	CA          string    `json:"ca"`          // PEM, the vault's
	NotAfter    time.Time `json:"notAfter"`
}

// RenewRequest asks for the next certificate with the current one.
type RenewRequest struct {
	CSR string `json:"csr"`
}

// PollRequest asks for work.
type PollRequest struct {
	Have        []string `json:"have,omitempty"`        // ids of commands being worked on
	Assignments string   `json:"assignments,omitempty"` // version of the assignments that the agent has
	WaitSeconds int      `json:"waitSeconds"`           // 0..25
}

// PollResponse is the work. Assignments is nil when unchanged.
type PollResponse struct {
	Commands           []Command    `json:"commands,omitempty"`
	Cancels            []string     `json:"cancels,omitempty"` // command ids to stop
	AssignmentsVersion string       `json:"assignmentsVersion"`
	Assignments        []Assignment `json:"assignments"` // complete list when the version changed
	ServerTime         time.Time    `json:"serverTime"`
	WantInventory      bool         `json:"wantInventory,omitempty"`
	StatusSeconds      int          `json:"statusSeconds,omitempty"` // how often to send status
}

// Assignment is one VM that this agent replicates. The agent keeps the list on
// disk and goes on while the vault is down.
type Assignment struct {
	Item                 string   `json:"item"`
	Machine              string   `json:"machine"`
	VM                   string   `json:"vm"`
	VMName               string   `json:"vmName"`
	Disks                []string `json:"disks"`
	Generation           uint32   `json:"generation"`
	Base                 *CutRef  `json:"base,omitempty"` // the chain goes on after this cut; nil = a fresh replica
	CopyFrequencySeconds int      `json:"copyFrequencySeconds"`
	AppFrequencySeconds  int      `json:"appFrequencySeconds,omitempty"`
	Paused               bool     `json:"paused,omitempty"`
	ResyncRequest        string   `json:"resyncRequest,omitempty"` // changes when an operator asks for a resynchronization
	VaultPublicKey       string   `json:"vaultPublicKey"`          // data keys are sealed to it
	Seeded               bool     `json:"seeded,omitempty"`        // Base is a seed: compare with it, the first cut is the first recovery point

	// BaseDisks are all disks that the history up to Base ever listed, for a host
	// that takes a replica over without local state; size 0 = not in Base any more.
	BaseDisks        []BaseDisk `json:"baseDisks,omitempty"`
	ResyncReason     string     `json:"resyncReason,omitempty"` // dr.Code why ResyncRequest was made; empty = an operator wants it now
	ResyncFull       bool       `json:"resyncFull,omitempty"`   // the next ResyncRequest sends everything again instead of comparing
	InitialCancelled bool       `json:"initialCancelled,omitempty"`

	PauseReason string     `json:"pauseReason,omitempty"`
	ResumeAt    time.Time  `json:"resumeAt,omitzero"`     // a pause ends by itself
	RetryNow    string     `json:"retryNow,omitempty"`    // changes when an operator wants what waits to be tried at once
	Full        string     `json:"full,omitempty"`        // changes when an operator wants everything to be sent again
	Group       *Group     `json:"group,omitempty"`       // consistency group whose members on this agent are cut at one instant
	Initial     Initial    `json:"initial,omitzero"`      // how the initial replication is made
	Resync      Resync     `json:"resync,omitzero"`       // when resynchronizations run
	Compression string     `json:"compression,omitempty"` // zstd (default), fast, none
	Bandwidth   *Bandwidth `json:"bandwidth,omitempty"`   // of all items of a policy on this agent together
}

// BaseDisk is a disk as the history knows it.
type BaseDisk struct {
	ID    string `json:"id"`
	Index uint16 `json:"index"`
	Size  int64  `json:"size"`
}

// Group is a consistency group.
type Group struct {
	ID      string   `json:"id"`
	Members []string `json:"members"` // machines, all replicated by this agent
}

// Initial says how an initial replication is made. Windows are texts of
// dr.Window: "18:30-06:00", "Mon-Fri 20:00-06:00, Sat-Sun 00:00-24:00".
type Initial struct {
	NotBefore time.Time `json:"notBefore,omitzero"`
	Window    string    `json:"window,omitempty"`
	Serial    bool      `json:"serial,omitempty"`   // one disk after the other
	Priority  int       `json:"priority,omitempty"` // -10..10, higher first
}

// Resync says when a resynchronization that is due may run.
type Resync struct {
	Mode      string  `json:"mode,omitempty"`      // window (default), now, manual
	Window    string  `json:"window,omitempty"`    // default 18:30-06:00
	Threshold float64 `json:"threshold,omitempty"` // share of the VM's disks that pending changes may reach; 0 = 0.5, below 0 = off
}

// Bandwidth limits uploads; the first rule whose window is open counts, none means no limit.
type Bandwidth struct {
	Group string          `json:"group"` // what shares the limit: the policy's id
	Rules []BandwidthRule `json:"rules"`
}

// BandwidthRule is a limit in a window.
type BandwidthRule struct {
	Window         string `json:"window,omitempty"` // empty = always
	BytesPerSecond int64  `json:"bytesPerSecond"`
}

// CutRef names a committed cut.
type CutRef struct {
	Generation uint32 `json:"generation"`
	N          uint64 `json:"n"`
	Hash       string `json:"hash"` // chain hash, hex
}

// Command is one thing to do, at least once; the agent keeps a journal of
// results by id so that a repeated command is answered, not repeated.
type Command struct {
	ID      string          `json:"id"`
	Kind    CommandKind     `json:"kind"`
	Payload json.RawMessage `json:"payload"`
}

// CommandKind names a command.
type CommandKind string

// The commands, with payload → result.
const (
	CmdCheckPrerequisites CommandKind = "checkPrerequisites" // VMPayload → PrerequisitesResult
	CmdStartReplication   CommandKind = "startReplication"   // MachinePayload → nothing: the assignment is known, tracking and initial replication have started
	CmdAwaitInitial       CommandKind = "awaitInitial"       // MachinePayload → PointResult: done when cut 0 is committed; reports percent meanwhile
	CmdStopReplication    CommandKind = "stopReplication"    // MachinePayload → nothing: tracking removed, spool and state deleted
	CmdShutdownVM         CommandKind = "shutdownVM"         // ShutdownPayload → nothing
	CmdStartVM            CommandKind = "startVM"            // VMPayload → nothing
	CmdDrain              CommandKind = "drain"              // MachinePayload → PointResult: one last cut after everything pending, committed
	CmdBootPoint          CommandKind = "bootPoint"          // BootPayload → BootResult
	CmdVerifyBoot         CommandKind = "verifyBoot"         // VerifyPayload → VerifyResult
	CmdMakeLocal          CommandKind = "makeLocal"          // VMPayload → nothing: reports percent meanwhile
	CmdRemoveVM           CommandKind = "removeVM"           // RemovePayload → nothing
	CmdPowerState         CommandKind = "powerState"         // VMPayload → PowerResult
	CmdRefreshInventory   CommandKind = "refreshInventory"   // nothing → nothing: inventory has been sent
)

// VMPayload names a VM and optionally disks.
type VMPayload struct {
	VM    string   `json:"vm"`
	Disks []string `json:"disks,omitempty"`
}

// MachinePayload names a replica.
type MachinePayload struct {
	Machine    string `json:"machine"`
	Generation uint32 `json:"generation"`
}

// ShutdownPayload asks for a clean shutdown, cutting the power after Timeout only if Force.
type ShutdownPayload struct {
	VM             string `json:"vm"`
	TimeoutSeconds int    `json:"timeoutSeconds"`
	Force          bool   `json:"force,omitempty"`
}

// PrerequisitesResult lists what stands in the way of protection; no finding of severity "error" means the VM can be protected.
type PrerequisitesResult struct {
	Findings []Finding `json:"findings"`
}

// Finding is one result of a check.
type Finding struct {
	Severity string `json:"severity"` // error, warning, info
	Code     string `json:"code"`
	Object   string `json:"object"` // disk or setting
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

// PointResult names a committed recovery point.
type PointResult struct {
	Generation uint32    `json:"generation"`
	N          uint64    `json:"n"`
	Hash       string    `json:"hash"`
	Time       time.Time `json:"time"`
}

// BootPayload brings a recovery point up as a VM.
type BootPayload struct {
	Machine    string `json:"machine"`
	Generation uint32 `json:"generation"`
	N          uint64 `json:"n"`
	Serving    string `json:"serving"` // id of the serving: the same id is the same recovery VM
	VMName     string `json:"vmName"`
	CPUs       int    `json:"cpus,omitempty"`
	MemoryMB   int    `json:"memoryMb,omitempty"`
	Network    string `json:"network,omitempty"` // "" = link down; a network; hypervisor.IsolatedNetwork
	KeepUUID   bool   `json:"keepUuid,omitempty"`

	// Adapters, if not empty, says how each adapter is connected, by a network
	// mapping; an adapter that is not listed is not connected. Agents that do not
	// know it connect all adapters to Network.
	Adapters []BootAdapter `json:"adapters,omitempty"`

	Cloud *CloudTarget `json:"cloud,omitempty"` // agents of hosts ignore it

	// Repair: what is served differs from the point by repairs for this target (OpenPointResponse.Repair),
	// so that nothing that holds the point itself may take its place.
	Repair string `json:"repair,omitempty"`
}

// CloudTarget is hypervisor.CloudTarget on the wire; empty fields are the agent's defaults.
type CloudTarget struct {
	Size            string            `json:"size,omitempty"`
	ResourceGroup   string            `json:"resourceGroup,omitempty"`
	AvailabilitySet string            `json:"availabilitySet,omitempty"`
	Zone            string            `json:"zone,omitempty"`
	ProximityGroup  string            `json:"proximityGroup,omitempty"`
	DiskType        string            `json:"diskType,omitempty"`
	License         string            `json:"license,omitempty"`
	SecurityGroup   string            `json:"securityGroup,omitempty"`
	PublicIP        bool              `json:"publicIp,omitempty"`
	Tags            map[string]string `json:"tags,omitempty"`
}

// BootAdapter is how one adapter of a recovery VM is connected.
type BootAdapter struct {
	MAC     string `json:"mac"`               // of the source VM's adapter
	ID      string `json:"id,omitempty"`      // as its host reported it
	Network string `json:"network,omitempty"` // of the recovery host; "" = link down
	Subnet  string `json:"subnet,omitempty"`  // name, for people and guests; the host needs VLAN only
	VLAN    int    `json:"vlan,omitempty"`    // access VLAN, 0 = untagged
	IP      string `json:"ip,omitempty"`      // static address in a cloud's subnet
}

// BootResult says what runs.
type BootResult struct {
	VM          string  `json:"vm"`
	PrepareSecs float64 `json:"prepareSecs"` // opening the point and serving it
	StartSecs   float64 `json:"startSecs"`   // define + start

	Repaired []string `json:"repaired,omitempty"` // what differs from the point, for people
}

// VerifyPayload says how a boot proves itself. Without a pattern the proof is that
// the VM still runs and its console shows output that has stopped being firmware.
type VerifyPayload struct {
	VM             string `json:"vm"`
	ConsolePattern string `json:"consolePattern,omitempty"` // RE2, on the serial console
	TimeoutSeconds int    `json:"timeoutSeconds"`
}

// VerifyResult is the proof.
type VerifyResult struct {
	OK         bool    `json:"ok"`
	Seconds    float64 `json:"seconds"` // from start to the sign of life
	Matched    string  `json:"matched,omitempty"`
	Console    string  `json:"console,omitempty"`    // tail
	Screenshot []byte  `json:"screenshot,omitempty"` // PNG
	Reason     string  `json:"reason,omitempty"`     // when not OK
}

// RemovePayload removes a recovery VM and its serving.
type RemovePayload struct {
	VM      string `json:"vm,omitempty"`
	Serving string `json:"serving"`
}

// PowerResult is a VM's power state; State is "absent" when the host does not know it.
type PowerResult struct {
	State string `json:"state"`
}

// ReportRequest reports on a command. State running may be sent any number of
// times; done and failed are final, and later reports are ignored.
type ReportRequest struct {
	ID      string          `json:"id"`
	State   string          `json:"state"` // running, done, failed, cancelled
	Percent float64         `json:"percent,omitempty"`
	Note    string          `json:"note,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// InventoryRequest is the complete list of a host's VMs and networks.
type InventoryRequest struct {
	Host       string    `json:"host"`
	Hypervisor string    `json:"hypervisor"`
	VMs        []VM      `json:"vms"`
	Networks   []Network `json:"networks,omitempty"`

	Sizes []ComputeSize `json:"sizes,omitempty"` // of VMs that a cloud offers
}

// ComputeSize is dr.ComputeSize on the wire.
type ComputeSize struct {
	Name        string `json:"name"`
	CPUs        int    `json:"cpus"`
	MemoryMB    int    `json:"memoryMb"`
	DataDisks   int    `json:"dataDisks"`
	NICs        int    `json:"nics"`
	Generations []int  `json:"generations,omitempty"`
	Premium     bool   `json:"premium,omitempty"`
	Problem     string `json:"problem,omitempty"` // why it can't be used
}

// WarmRequest says how far the warm replicas of an agent are.
type WarmRequest struct {
	Replicas []WarmStatus `json:"replicas,omitempty"`
}

// WarmStatus is one warm replica as the agent has it.
type WarmStatus struct {
	Item       string `json:"item"`
	Machine    string `json:"machine"`
	Generation uint32 `json:"generation,omitempty"` // of the point that it holds; 0 = none
	N          uint64 `json:"n,omitempty"`
	Busy       bool   `json:"busy,omitempty"`
	Bytes      int64  `json:"bytes,omitempty"` // written since the last report
	Requests   int64  `json:"requests,omitempty"`
	Error      *Error `json:"error,omitempty"`
}

// WarmResponse lists all warm replicas that the agent is to keep; what else it has of this vault is to be removed.
type WarmResponse struct {
	Replicas []WarmOrder `json:"replicas"`
}

// WarmOrder asks for a warm replica to be brought to a point.
type WarmOrder struct {
	Item       string `json:"item"`
	Machine    string `json:"machine"`
	Serving    string `json:"serving"` // under which the point may be opened
	Generation uint32 `json:"generation"`
	N          uint64 `json:"n"`
	Keep       int    `json:"keep,omitempty"` // how many points stay ready
}

// VM is a discovered VM.
type VM struct {
	ID         string  `json:"id"`
	Name       string  `json:"name"`
	Running    bool    `json:"running"`
	Generation int     `json:"generation"`
	CPUs       int     `json:"cpus"`
	MemoryMB   int     `json:"memoryMb"`
	OSType     string  `json:"osType,omitempty"`
	Disks      []Disk  `json:"disks"`
	NICs       []NIC   `json:"nics,omitempty"`
	Facts      VMFacts `json:"facts,omitzero"`
}

// VMFacts is what a host tells about a VM beyond what replication needs
// (dr.VMFacts); older agents send none.
type VMFacts struct {
	Version       string `json:"version,omitempty"`
	SecureBoot    bool   `json:"secureBoot,omitempty"`
	OSName        string `json:"osName,omitempty"`
	OSVersion     string `json:"osVersion,omitempty"`
	GuestTools    string `json:"guestTools,omitempty"`
	AppConsistent string `json:"appConsistent,omitempty"`
	Checkpoints   int    `json:"checkpoints,omitempty"`
	Clustered     bool   `json:"clustered,omitempty"`
	DynamicMemory bool   `json:"dynamicMemory,omitempty"`
	Replicated    string `json:"replicated,omitempty"`
	Cloud         string `json:"cloud,omitempty"`
}

// Disk of a VM.
type Disk struct {
	ID             string `json:"id"`
	Path           string `json:"path"`
	Format         string `json:"format"`
	Size           int64  `json:"size"`
	Boot           bool   `json:"boot,omitempty"`
	Shared         bool   `json:"shared,omitempty"`
	PassThru       bool   `json:"passThru,omitempty"`
	Unreplicatable string `json:"unreplicatable,omitempty"`
	Controller     string `json:"controller,omitempty"`
	Slot           int    `json:"slot,omitempty"`
	Layout         string `json:"layout,omitempty"`
	Sector         int    `json:"sector,omitempty"`
	Allocated      int64  `json:"allocated,omitempty"`
	Chain          int    `json:"chain,omitempty"`
}

// NIC of a VM.
type NIC struct {
	ID      string   `json:"id"`
	MAC     string   `json:"mac"`
	Network string   `json:"network,omitempty"`
	Type    string   `json:"type,omitempty"`
	IPs     []string `json:"ips,omitempty"`
	VLAN    int      `json:"vlan,omitempty"`
}

// Network of a host.
type Network struct {
	Name     string `json:"name"`
	Isolated bool   `json:"isolated"`
	Active   bool   `json:"active"`
}

// StatusRequest is the state of all replications of the agent.
type StatusRequest struct {
	Items []ItemStatus `json:"items"`
}

// ItemStatus is dr.ReplicationStatus on the wire.
type ItemStatus struct {
	Machine      string    `json:"machine"`
	Generation   uint32    `json:"generation"`
	Phase        string    `json:"phase"`
	Percent      float64   `json:"percent,omitempty"`
	BytesDone    int64     `json:"bytesDone,omitempty"`
	BytesTotal   int64     `json:"bytesTotal,omitempty"`
	ETASeconds   float64   `json:"etaSeconds,omitempty"`
	BacklogBytes int64     `json:"backlogBytes"`
	SpooledBytes int64     `json:"spooledBytes"`
	LastCut      time.Time `json:"lastCut,omitzero"`
	Cycles       int       `json:"cycles"`
	Missed       int       `json:"missed"`
	Resync       string    `json:"resync,omitempty"` // reason while one is required or runs
	Error        *Error    `json:"error,omitempty"`
	Since        time.Time `json:"since,omitzero"`    // of Error
	Attempt      int       `json:"attempt,omitempty"` // of what fails with Error
	RetryAt      time.Time `json:"retryAt,omitzero"`

	LastPoint       time.Time `json:"lastPoint,omitzero"`        // time of the newest committed cut
	DirtyRate       float64   `json:"dirtyRate,omitempty"`       // bytes/s that the guest changes
	ShipRate        float64   `json:"shipRate,omitempty"`        // bytes/s that are sent while sending
	Verdict         string    `json:"verdict,omitempty"`         // converging, notConverging, idle, unknown
	BacklogSeconds  float64   `json:"backlogSeconds,omitempty"`  // until the backlog is drained
	ResyncCode      string    `json:"resyncCode,omitempty"`      // dr.Code of the reason in Resync
	NextResync      time.Time `json:"nextResync,omitzero"`       // when its window opens
	NextInitial     time.Time `json:"nextInitial,omitzero"`      // when the initial replication begins or goes on
	ConsistencyNote string    `json:"consistencyNote,omitempty"` // why the last point is less consistent than asked for
	SentBytes       int64     `json:"sentBytes,omitempty"`       // since the process started
	Disks           []string  `json:"disks,omitempty"`           // of the newest cut
}

// UploadRequest asks for create-only URLs for exactly these objects.
type UploadRequest struct {
	Machine    string         `json:"machine"`
	Generation uint32         `json:"generation"`
	Objects    []UploadObject `json:"objects"`

	Ahead *AheadRequest `json:"ahead,omitempty"` // vaults that do not know it sign nothing ahead
}

// AheadRequest asks for create-only URLs of the writer's next cuts and sealed
// keys, to be used only while the vault does not answer.
type AheadRequest struct {
	Cut   uint64 `json:"cut"`   // number of the first cut
	Epoch uint32 `json:"epoch"` // of the first key
}

// AheadURL is for an object whose content is not known yet; a bearer secret of several hours.
type AheadURL struct {
	Name string `json:"name"`
	SignedURL
}

// UploadObject names an object to be created.
type UploadObject struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// UploadResponse carries one URL for each object, in order. A URL is a bearer
// secret: it must not be logged.
type UploadResponse struct {
	URLs  []SignedURL `json:"urls"`
	Ahead []AheadURL  `json:"ahead,omitempty"` // replaces what was given before; none if the store can't sign ahead
}

// SignedURL is where and how to PUT.
type SignedURL struct {
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers,omitempty"`
	Expires time.Time         `json:"expires"`
}

// HeadRequest asks whether objects are there, after a PUT whose outcome is unknown.
type HeadRequest struct {
	Machine    string   `json:"machine"`
	Generation uint32   `json:"generation"`
	Names      []string `json:"names"`
}

// HeadResponse answers in order; Exists false means "asked, and it is not there".
type HeadResponse struct {
	Objects []HeadObject `json:"objects"`
}

// HeadObject is what is stored.
type HeadObject struct {
	Exists bool   `json:"exists"`
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// CommitRequest announces a committed cut; the vault reads it from the store.
type CommitRequest struct {
	Machine    string `json:"machine"`
	Generation uint32 `json:"generation"`
	N          uint64 `json:"n"`
}

// CommitResponse confirms that the point is listed.
type CommitResponse struct {
	Point string `json:"point"`
}

// DigestRequest asks for the digests of stored tiles, by which a
// resynchronization finds the true differences. It is granted to the agent that
// holds the machine's current generation.
type DigestRequest struct {
	Machine    string `json:"machine"`
	Generation uint32 `json:"generation"`
	At         CutRef `json:"at"` // the committed cut to compare with
	Disk       uint16 `json:"disk"`
	First      uint32 `json:"first"`            // tile
	Count      uint32 `json:"count,omitempty"`  // of tiles; 1..256
	Blocks     bool   `json:"blocks,omitempty"` // the 1024 block digests of tile First instead of roots
}

// DigestResponse carries keys of digests: it is never logged or stored.
type DigestResponse struct {
	Roots  []TileRoot `json:"roots,omitempty"`
	Key    []byte     `json:"key,omitempty"`    // of Blocks, 32 bytes
	Blocks []byte     `json:"blocks,omitempty"` // 1024 digests of 16 bytes
}

// TileRoot is the digest of one tile; see cut.DigestKey.Root.
type TileRoot struct {
	Tile uint32 `json:"tile"`
	Zero bool   `json:"zero,omitempty"` // all zero; Key and Root are empty
	Key  []byte `json:"key,omitempty"`
	Root []byte `json:"root,omitempty"`
}

// OpenPointRequest asks for what it takes to read a recovery point. It is
// granted to the recovery agent that has been told to serve it, as long as the serving exists.
type OpenPointRequest struct {
	Serving string `json:"serving"`
}

// OpenPointResponse carries secrets: it is never logged or stored.
type OpenPointResponse struct {
	Machine    string            `json:"machine"`
	Generation uint32            `json:"generation"`
	N          uint64            `json:"n"`
	StoreURL   string            `json:"storeUrl"` // base of the object endpoint
	Ticket     string            `json:"ticket"`   // read ticket bound to the machine's prefix
	Expires    time.Time         `json:"expires"`
	Keys       map[string][]byte `json:"keys"` // epoch (decimal) → data key

	// Repair names a target (azure) for which the guest is to be repaired on a side layer while it is served.
	Repair string `json:"repair,omitempty"`
}
