package cut

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"holdfast/internal/dr"
)

// Geometry of the format, bytes.
const (
	Unit     = 4 << 10  // granularity of offsets and of zero elision
	Block    = 64 << 10 // digest block, and the greatest plaintext of a frame
	TileSize = 64 << 20 // disk range of one tile image; the last tile of a disk may be shorter
	// MaxDisk bounds every disk offset that a segment may carry.
	MaxDisk int64 = 1 << 50
	// MaxExtents and MaxFrames bound one segment; writers roll over to a new part long before.
	MaxExtents = 1 << 24
	MaxFrames  = 1 << 22
)

// Hash is a BLAKE3-256 or SHA-256 value. It prints and marshals as 64
// hexadecimal digits.
type Hash [32]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether the hash is all zero, which stands for "none".
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText accepts exactly 64 hexadecimal digits.
func (h *Hash) UnmarshalText(b []byte) error {
	var v Hash
	if len(b) != 2*len(v) {
		return fmt.Errorf("hash has %d characters, want %d", len(b), 2*len(v))
	}
	if _, err := hex.Decode(v[:], b); err != nil {
		return fmt.Errorf("parse hash: %w", err)
	}
	*h = v
	return nil
}

// Kind is the kind of a segment.
type Kind uint8

// The segment kinds; the numbers are durable.
const (
	KindCut  Kind = 1
	KindPart Kind = 2
	KindTile Kind = 3
	KindRun  Kind = 4 // what a run of expired cuts amounts to; see RunWriter
	KindMap  Kind = 5 // what all cuts up to one amount to; see RunWriter
	KindData Kind = 6 // data rewritten for runs; written like a part
)

// String returns the kind's name in messages.
func (k Kind) String() string {
	switch k {
	case KindCut:
		return "cut"
	case KindPart:
		return "part"
	case KindTile:
		return "tile"
	case KindRun:
		return "run"
	case KindMap:
		return "map"
	case KindData:
		return "data"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// hasMap reports whether segments of this kind have a map in place of frames.
func (k Kind) hasMap() bool { return k == KindRun || k == KindMap }

// hasCommit reports whether segments of this kind have a commit.
func (k Kind) hasCommit() bool { return k == KindCut || k.hasMap() }

// Codec compresses the frames of a segment; it is recorded for every frame.
type Codec uint8

// The codecs. CodecDefault is for WriterConfig only and never stored; the other numbers are durable.
const (
	CodecDefault Codec = 0 // CodecZstd
	CodecNone    Codec = 1
	CodecZstd    Codec = 2 // fastest level
	CodecMinLZ   Codec = 3 // less compression at a third of the CPU time
)

// String returns the codec's name in messages.
func (c Codec) String() string {
	switch c {
	case CodecDefault:
		return "default"
	case CodecNone:
		return "none"
	case CodecZstd:
		return "zstd"
	case CodecMinLZ:
		return "minlz"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// Header identifies a segment. It is stored at the front of the object and
// again in its tail, and everything in the object is bound to it.
type Header struct {
	Kind    Kind
	Machine dr.MachineID
	Gen     dr.Generation
	N       uint64   // number of the cut: its own, the one it is a part of, the one that a tile image is as of, or the one that a run or map reaches
	Segment [16]byte // random; NewWriter fills it in where it is zero
	// KeyEpoch is the epoch whose key protects the segment: any epoch of the
	// machine, not only the writer's own, so that a vault that rewrites data may
	// seal it under any epoch key that it can open.
	KeyEpoch uint32

	Attempt uint32 // KindPart
	K       int    // KindPart and KindData, 0..0xffff
	Disk    uint16 // KindTile
	Tile    uint32 // KindTile
	UID     string // KindTile, KindData, KindRun, KindMap; NewWriter fills it in where it is empty
	From    uint64 // KindRun: number of the position that it goes on from; 0 = complete
	Seed    bool   // KindCut, KindRun, KindMap: as Commit.Seed. Programs that do not know what it means refuse the segment
}

// Name is the only name under which the segment is valid.
func (h Header) Name() ObjectName {
	o := ObjectName{Machine: h.Machine, Gen: h.Gen, N: h.N}
	switch h.Kind {
	case KindCut:
		o.Class = ClassCut
	case KindPart:
		o.Class, o.Attempt, o.K = ClassPart, h.Attempt, h.K
	case KindTile:
		o.Class, o.Disk, o.Tile, o.UID = ClassTile, h.Disk, h.Tile, h.UID
	case KindRun:
		o.Class, o.From, o.UID = ClassRun, h.From, h.UID
	case KindMap:
		o.Class, o.UID = ClassMap, h.UID
	case KindData:
		o.Class, o.K, o.UID = ClassData, h.K, h.UID
	}
	return o
}

// Ref refers to a cut of the same machine. The zero Ref means "none".
type Ref struct {
	Gen  dr.Generation `json:"gen"`
	N    uint64        `json:"n"`
	Hash Hash          `json:"hash"` // the cut's chain hash
}

// IsZero reports whether r refers to nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// Disk describes one disk of the VM as of a cut.
type Disk struct {
	Index uint16 `json:"index"` // the number under which extents and tiles know the disk; unique in the machine, never reused for another disk
	ID    string `json:"id"`    // the hypervisor's stable id, see dr.Disk
	Size  int64  `json:"size"`  // virtual size, bytes
}

// TileRef refers to a tile image.
type TileRef struct {
	Disk   uint16
	Tile   uint32
	UID    string
	Gen    dr.Generation
	N      uint64
	Size   int64 // bytes of the object
	BLAKE3 Hash  // of the object
}

// PartRef refers to a part of the cut that carries it (same machine, generation and number).
type PartRef struct {
	Attempt uint32
	K       int
	Size    int64 // bytes of the object
	BLAKE3  Hash  // of the object
}

// SegmentRef refers to a segment that holds data of a run or map, of the same machine.
type SegmentRef struct {
	Class   Class // ClassCut, ClassPart or ClassData
	Gen     dr.Generation
	N       uint64
	Attempt uint32 // ClassPart
	K       int    // ClassPart and ClassData
	UID     string // ClassData
	Size    int64  // bytes of the object
	Hash    Hash   // BLAKE3 of the object; of a cut its chain hash
}

// RunInfo is what a run or map says about itself. Everything else in its
// commit is as in the cut that it reaches.
type RunInfo struct {
	Hash     Hash      `json:"hash"`               // chain hash of the cut that it reaches
	Cuts     uint64    `json:"cuts"`               // how many cuts it stands for, at least 1
	Made     time.Time `json:"made"`               // UTC
	Software string    `json:"software,omitempty"` // version of Holdfast that made it
}

// Group is the instant of a consistency group that a cut belongs to: the cuts
// of all members with the same ID and Seq show one moment.
type Group struct {
	ID      string         `json:"id"`
	Seq     uint64         `json:"seq"`     // grows with every instant of the group
	Members []dr.MachineID `json:"members"` // that were cut at this instant, the machine of the cut among them
}

// Stats are figures of the cycle, for people and for anomaly detection.
type Stats struct {
	DirtyBytes  int64         `json:"dirtyBytes"`  // reported as changed by the tracker
	DataBytes   int64         `json:"dataBytes"`   // plaintext carried in frames, parts and tiles included
	ZeroBytes   int64         `json:"zeroBytes"`   // carried as zero ranges
	StoredBytes int64         `json:"storedBytes"` // of parts and tiles; a cut can't know its own size
	Read        time.Duration `json:"readNanos"`   // from the freeze to the last byte read
	Freeze      time.Duration `json:"freezeNanos"` // that the guest was held

	ChangedBytes        int64 `json:"changedBytes,omitempty"`        // of DirtyBytes, what was really different, by 4 KiB
	RawFrames           int64 `json:"rawFrames,omitempty"`           // frames that compression did not shrink by 5 %; see Counts
	IncompressibleBytes int64 `json:"incompressibleBytes,omitempty"` // their plaintext
}

// VMRecord is what is needed to define the VM elsewhere.
type VMRecord struct {
	Name       string            `json:"name"`
	UUID       string            `json:"uuid"`
	Generation int               `json:"generation"` // 1 = BIOS, 2 = UEFI
	CPUs       int               `json:"cpus"`
	MemoryMB   int               `json:"memoryMB"`
	OSType     string            `json:"osType,omitempty"` // Linux or Windows: which devices the guest has drivers for; empty = not known
	NICs       []NIC             `json:"nics,omitempty"`
	Config     map[string][]byte `json:"-"` // the platform's own documents by name, e.g. "domain.xml", "nvram"
}

// NIC is a network adapter of the VM, for platforms that can't read Config.
type NIC struct {
	MAC     string `json:"mac"`
	Network string `json:"network,omitempty"` // that it was connected to, by the source's name
	VLAN    int    `json:"vlan,omitempty"`
}

// Commit is the content of a cut beyond its data: what makes it a recovery
// point. Runs and maps repeat the one of the cut that they reach, with other
// Prev, Base, Tiles, no Parts, and with Segments and Run.
type Commit struct {
	Gen         dr.Generation  `json:"gen"`
	N           uint64         `json:"n"`
	Prev        Ref            `json:"prev"` // the cut before; zero only at the machine's very first cut
	Time        time.Time      `json:"time"` // of the freeze, UTC
	Consistency dr.Consistency `json:"consistency"`
	Note        string         `json:"note,omitempty"`
	Resync      bool           `json:"resync,omitempty"` // made by a resynchronization
	Base        bool           `json:"base,omitempty"`   // a new complete base: readers need nothing older; what it does not list or carry is zero
	Seed        bool           `json:"seed,omitempty"`   // content of unknown age (offline seeding): part of the chain, never a recovery point
	Group       *Group         `json:"group,omitempty"`
	Run         *RunInfo       `json:"run,omitempty"` // of runs and maps only
	Disks       []Disk         `json:"disks"`
	Tiles       []TileRef      `json:"-"` // new tile images, each complete for its range as of the cut that listed it
	Parts       []PartRef      `json:"-"`
	Segments    []SegmentRef   `json:"-"`               // runs and maps: where their data is; MapExtent.Segment counts in it
	Token       string         `json:"token,omitempty"` // the source's change tracking token after this cut (bitmap, checkpoint or RCT id)
	Stats       Stats          `json:"stats"`
	VM          VMRecord       `json:"vm"`
}

// Ref returns the reference of the cut that carries c and has the chain hash h.
// If a run or map carries c, h does not matter: the result is the cut that it
// reaches, which is what the next cut's Prev names. See Segment.Ref.
func (c *Commit) Ref(h Hash) Ref {
	if c.Run != nil {
		h = c.Run.Hash
	}
	return Ref{Gen: c.Gen, N: c.N, Hash: h}
}

// Extent is a range of a disk that a segment defines.
type Extent struct {
	Disk     uint16
	Off, Len int64  // Off is a multiple of Unit; so is Len, except at the end of the disk
	Frame    uint32 // whose plaintext holds the range, unless Zero
	FrameOff uint32 // offset in that plaintext
	Zero     bool   // the range reads as zero and has no data
}

// End returns Off+Len.
func (e Extent) End() int64 { return e.Off + e.Len }

// Frame is one separately sealed unit of data.
type Frame struct {
	Off    int64  // in the object
	CLen   uint32 // stored bytes, nonce and tag included
	RawLen uint32 // plaintext bytes, at most 1<<FrameLog2
	Codec  Codec

	disk uint16 // of the extent at FrameOff 0: part of what the frame is bound to
	lba  int64
}

// Sealed describes a finished segment.
type Sealed struct {
	Name      ObjectName
	Size      int64
	SHA256    Hash // of the object
	BLAKE3    Hash // of the object
	ChainHash Hash // of the tail; what Ref.Hash of the next cut has to be. Of a run or map: of the cut that it reaches
	Frames    int
	Extents   int
	Counts
}

// Counts are figures of a segment's content.
type Counts struct {
	DataBytes int64 // plaintext carried; of a run or map: that its data extents cover
	ZeroBytes int64 // ranges found or declared zero
	// RawFrames is how many frames were compressed to more than 95 % of their
	// plaintext, IncompressibleBytes is how long that plaintext was: much of it
	// where there used to be little means encryption. Without compression
	// (CodecNone) nothing is counted.
	RawFrames           int64
	IncompressibleBytes int64
}

// Source reads one object.
type Source interface {
	// ReadRange returns exactly length bytes from off. It is only called for
	// ranges inside Size; fewer bytes count as a damaged object.
	ReadRange(ctx context.Context, off, length int64) ([]byte, error)
	// Size is the object's size in bytes.
	Size() int64
}

// Bytes is a Source over an object held in memory.
type Bytes []byte

// ReadRange returns a part of b, not a copy.
func (b Bytes) ReadRange(ctx context.Context, off, length int64) ([]byte, error) {
	if off < 0 || length < 0 || off > int64(len(b)) || length > int64(len(b))-off {
		return nil, fmt.Errorf("range %d+%d is outside the %d bytes", off, length, len(b))
	}
	return b[off : off+length : off+length], ctx.Err()
}

// Size returns len(b).
func (b Bytes) Size() int64 { return int64(len(b)) }

// Keyring finds epoch keys, usually by opening the machine's sealed keys.
type Keyring interface {
	EpochKey(ctx context.Context, m dr.MachineID, epoch uint32) (EpochKey, error)
}
