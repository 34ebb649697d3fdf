// Package warm keeps the disks of protected items ready in Azure page blobs: it
// applies each committed recovery point to them, so that a failover need not copy the
// disks first.
//
// Each disk is one blob PREFIX/MACHINE/INDEX.vhd, a fixed VHD, and each point that was
// reached is a set of snapshots, one per disk. Nothing else is kept: the state is in the
// metadata and the sequence numbers of the blobs.
//
// It promises:
//
//   - A point is offered (Points, Images) only if every disk that it has was brought
//     to it and snapshotted. Such a snapshot is exactly the disk at that point.
//   - Apply can be interrupted anywhere, also between a request and its answer. The next one
//     knows from the metadata between which points the blob is, and writes all of
//     what changed between these and its own.
//   - If that is unknown (no blob, a point of a fenced generation, one that was folded away,
//     a damaged element, foreign metadata) the whole disk is compared with what the
//     blob holds.
//   - Of two writers of one blob the later one wins: it has a greater sequence number, and
//     no request of the other one changes anything any more (dr.KindFenced).
//
// # The state of a blob
//
//	holdfast_warm     version of this format, 1
//	holdfast_machine  machine id
//	holdfast_disk     disk id, query-escaped
//	holdfast_state    at: the blob is at holdfast_low
//	                  applying: each block is as of some point from low to high
//	holdfast_low      point, or "none": nothing is known about the content
//	holdfast_high     point, only in applying
//	holdfast_size     bytes of the disk; what is beyond has to be written again
//	holdfast_set      indexes of the disks of the point that is applied: 0,1,3
//	holdfast_writer   random id of the Apply that wrote the metadata
//
// A point is the name of dr.PointName, a colon and the chain hash of its cut. A
// snapshot has holdfast_snapshot (the point), holdfast_time (of the cut, RFC 3339), and warm,
// machine, disk, size and set as above.
//
// An Apply takes the next sequence number (Set Blob Properties, increment), then reads the
// metadata, then replaces it on condition of the ETag, and from then on every Put Page
// demands the sequence number. The end is again a change of the metadata on
// condition of the ETag, and the snapshot is, too.
package warm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/pageblob"
	"holdfast/internal/vhd"
)

// Config says where the replicas are.
type Config struct {
	// Container is the address of an existing container; a signature in it needs
	// the permissions racwdl (read, add, create, write, delete, list).
	Container string
	Access    pageblob.Config // credentials, transport, patience
	Prefix    string          // of the blobs' names; "" = "warm"
	Log       *slog.Logger    // nil = discard

	Disks    int   // disks of a machine that are written at the same time; 0 = 4
	Workers  int   // parallel requests per disk; 0 = 8
	Rate     int64 // bytes/s per disk; 0 = 60 MiB/s, below 0 = unlimited
	Requests int   // requests/s per disk; 0 = 500, below 0 = unlimited

	Now func() time.Time // nil = time.Now
}

// Replica keeps machines warm in one container. It is safe for concurrent use, also
// by several processes.
type Replica struct {
	cfg   Config
	store *pageblob.Container
	log   *slog.Logger
}

// New checks cfg and does no I/O.
func New(cfg Config) (*Replica, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "warm"
	}
	if strings.Trim(cfg.Prefix, "/") != cfg.Prefix {
		return nil, dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, "warm.New", "prefix %q begins or ends with a slash", cfg.Prefix)
	}
	if cfg.Disks <= 0 {
		cfg.Disks = 4
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := pageblob.OpenContainer(cfg.Container, cfg.Access)
	if err != nil {
		return nil, err
	}
	return &Replica{cfg: cfg, store: s, log: cfg.Log}, nil
}

// Close lets idle connections go. It is idempotent and does not end an Apply: its
// context does.
func (r *Replica) Close() error { return r.store.Close() }

// The names of metadata.
const (
	keyVersion  = "holdfast_warm"
	keyMachine  = "holdfast_machine"
	keyDisk     = "holdfast_disk"
	keyState    = "holdfast_state"
	keyLow      = "holdfast_low"
	keyHigh     = "holdfast_high"
	keySize     = "holdfast_size"
	keySet      = "holdfast_set"
	keyWriter   = "holdfast_writer"
	keySnapshot = "holdfast_snapshot"
	keyTime     = "holdfast_time"

	version       = "1"
	stateAt       = "at"
	stateApplying = "applying"
	unknownPoint  = "none"
)

// folder is where a machine's blobs are.
func (r *Replica) folder(m dr.MachineID) string { return r.cfg.Prefix + "/" + string(m) + "/" }

func (r *Replica) blobName(m dr.MachineID, index uint16) string {
	return r.folder(m) + strconv.Itoa(int(index)) + ".vhd"
}

// indexOf is the inverse of blobName for a name inside the folder.
func indexOf(name string) (uint16, bool) {
	n, err := strconv.ParseUint(strings.TrimSuffix(name, ".vhd"), 10, 16)
	if err != nil || strconv.FormatUint(n, 10)+".vhd" != name {
		return 0, false
	}
	return uint16(n), true
}

func pointText(ref cut.Ref) string { return dr.PointName(ref.Gen, ref.N) + ":" + ref.Hash.String() }

// parsePoint returns false for what pointText does not make.
func parsePoint(s string) (cut.Ref, bool) {
	name, hash, _ := strings.Cut(s, ":")
	gen, n, err := dr.ParsePointName(name)
	if err != nil {
		return cut.Ref{}, false
	}
	ref := cut.Ref{Gen: gen, N: n}
	if ref.Hash.UnmarshalText([]byte(hash)) != nil || pointText(ref) != s {
		return cut.Ref{}, false
	}
	return ref, true
}

// state is what a blob's metadata says about its content.
type state struct {
	known     bool // low (and high) can be trusted
	applying  bool
	low, high cut.Ref // equal unless applying
	size      int64
	writer    string
}

// stateOf reads the metadata of a blob; whatever is not understood is unknown.
func stateOf(md map[string]string, m dr.MachineID) state {
	var s state
	s.applying = md[keyState] != stateAt
	s.writer = md[keyWriter]
	size, err := strconv.ParseInt(md[keySize], 10, 64)
	if err != nil || size <= 0 || md[keyVersion] != version || md[keyMachine] != string(m) {
		return s
	}
	s.size = size
	low, ok := parsePoint(md[keyLow])
	if !ok {
		return s
	}
	s.low, s.high = low, low
	if s.applying {
		if s.high, ok = parsePoint(md[keyHigh]); !ok || md[keyState] != stateApplying {
			return s
		}
	}
	s.known = true
	return s
}

// Point is a recovery point that all disks of a machine have been brought to.
type Point struct {
	Gen  dr.Generation
	N    uint64
	Time time.Time // of the cut
	Ref  cut.Ref
	// Disks are the snapshots by disk id.
	Disks map[string]Image
}

// Name is the point's name, as dr.PointName makes it.
func (p Point) Name() string { return dr.PointName(p.Gen, p.N) }

// Image is one disk at one point.
type Image struct {
	Index    uint16
	Size     int64  // bytes of the disk, without what whole MiB and the footer add
	Snapshot string // id of the snapshot
	URL      string // of the snapshot, without a signature
}

// DiskStatus is what is known of one blob.
type DiskStatus struct {
	Index     uint16
	ID        string
	URL       string
	Point     string // name of the point that it is at; empty while it is being changed or unknown
	Applying  bool
	From, To  string // while Applying: between which points it is; empty = unknown
	Size      int64  // bytes of the disk
	Sequence  int64
	Modified  time.Time
	Snapshots int
}

// Status is what is known of a machine's warm replica.
type Status struct {
	Disks  []DiskStatus
	Points []Point // complete, oldest first
}

// inventory is a machine's folder, sorted out.
type inventory struct {
	blobs     map[uint16]pageblob.Item
	snapshots []snapshot
	others    []pageblob.Item // of nobody known
}

type snapshot struct {
	pageblob.Item
	index uint16
	disk  string
	size  int64
	ref   cut.Ref
	time  time.Time
	set   string
	good  bool // a point of Apply; else of somebody else
}

func (r *Replica) list(ctx context.Context, m dr.MachineID) (*inventory, error) {
	if m == "" || strings.ContainsAny(string(m), "/\\?#%") {
		return nil, dr.New(dr.KindInvalid, "", "warm", "machine id %q can't be the name of a folder", m)
	}
	items, err := r.store.List(ctx, r.folder(m))
	if err != nil {
		return nil, err
	}
	inv := &inventory{blobs: map[uint16]pageblob.Item{}}
	for _, i := range items {
		index, ok := indexOf(strings.TrimPrefix(i.Name, r.folder(m)))
		switch {
		case !ok:
			inv.others = append(inv.others, i)
		case i.Snapshot == "":
			inv.blobs[index] = i
		default:
			inv.snapshots = append(inv.snapshots, snapshotOf(i, m, index))
		}
	}
	slices.SortStableFunc(inv.snapshots, func(a, b snapshot) int { return strings.Compare(a.Snapshot, b.Snapshot) })
	return inv, nil
}

func snapshotOf(i pageblob.Item, m dr.MachineID, index uint16) snapshot {
	s := snapshot{Item: i, index: index, set: i.Metadata[keySet]}
	var okDisk, okSize, okTime error
	s.disk, okDisk = url.QueryUnescape(i.Metadata[keyDisk])
	s.size, okSize = strconv.ParseInt(i.Metadata[keySize], 10, 64)
	s.time, okTime = time.Parse(time.RFC3339, i.Metadata[keyTime])
	ref, ok := parsePoint(i.Metadata[keySnapshot])
	s.ref = ref
	s.good = ok && errors.Join(okDisk, okSize, okTime) == nil && i.Metadata[keyVersion] == version && i.Metadata[keyMachine] == string(m) &&
		s.size > 0 && i.Size == vhd.RoundAzure(s.size)+vhd.FooterSize
	return s
}

// points groups the snapshots; a point counts if all disks of its set have one.
// Of two snapshots of one disk at one point the older one is used, so that the answer
// stays the same.
func (r *Replica) points(inv *inventory) []Point {
	type group struct {
		set  string
		p    Point
		have map[uint16]bool
	}
	groups := map[string]*group{}
	for _, s := range inv.snapshots {
		if !s.good {
			continue
		}
		key := pointText(s.ref) + " " + s.set
		g := groups[key]
		if g == nil {
			g = &group{set: s.set, p: Point{Gen: s.ref.Gen, N: s.ref.N, Ref: s.ref, Time: s.time, Disks: map[string]Image{}}, have: map[uint16]bool{}}
			groups[key] = g
		}
		if !g.have[s.index] {
			g.have[s.index] = true
			g.p.Disks[s.disk] = Image{Index: s.index, Size: s.size, Snapshot: s.Snapshot, URL: pageblob.SnapshotURL(r.store.Blob(s.Name).URL(), s.Snapshot)}
		}
	}
	var out []Point
	for _, g := range groups {
		if setText(slices.Collect(maps.Keys(g.have))) == g.set && len(g.p.Disks) == len(g.have) {
			out = append(out, g.p)
		}
	}
	slices.SortFunc(out, func(a, b Point) int { return comparePoints(a.Ref, b.Ref) })
	return out
}

// comparePoints orders by generation, then position: a takeover continues below what
// the fenced generation may have written.
func comparePoints(a, b cut.Ref) int {
	return cmp.Or(cmp.Compare(a.Gen, b.Gen), cmp.Compare(a.N, b.N), bytes.Compare(a.Hash[:], b.Hash[:]))
}

// setText names a set of disks.
func setText(indexes []uint16) string {
	slices.Sort(indexes)
	var b strings.Builder
	for i, x := range indexes {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(x)))
	}
	return b.String()
}

// Points lists the points that are complete, oldest first. None is no error.
func (r *Replica) Points(ctx context.Context, m dr.MachineID) ([]Point, error) {
	inv, err := r.list(ctx, m)
	if err != nil {
		return nil, err
	}
	return r.points(inv), nil
}

// Images returns the address, without a signature, of each disk's snapshot at a
// point, by disk id, for hypervisor.BootDisk. It is dr.KindNotFound if the replica does not
// have the point, complete,
// and dr.KindConflict if it has two of that name from different histories.
func (r *Replica) Images(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64) (map[string]string, error) {
	points, err := r.Points(ctx, m)
	if err != nil {
		return nil, err
	}
	var out map[string]string
	for _, p := range points {
		if p.Gen != gen || p.N != n {
			continue
		}
		if out != nil {
			return nil, dr.New(dr.KindConflict, dr.CodeWarmReplica, "warm.Images", "the warm replica of machine %s in %s has two different recovery points %s", m, r.store.Name(), p.Name()).
				WithHint("Remove the warm replica; the next point makes it anew. The disks are copied from the store meanwhile.")
		}
		out = map[string]string{}
		for id, i := range p.Disks {
			out[id] = i.URL
		}
	}
	if out != nil {
		return out, nil
	}
	return nil, dr.New(dr.KindNotFound, dr.CodeNoRecoveryPoint, "warm.Images", "the warm replica of machine %s in %s does not have recovery point %s", m, r.store.Name(), dr.PointName(gen, n)).
		WithHint("The disks are copied from the store instead, which takes longer.")
}

// Status tells what the replica holds.
func (r *Replica) Status(ctx context.Context, m dr.MachineID) (Status, error) {
	inv, err := r.list(ctx, m)
	if err != nil {
		return Status{}, err
	}
	s := Status{Points: r.points(inv)}
	for _, index := range slices.Sorted(maps.Keys(inv.blobs)) {
		b := inv.blobs[index]
		st := stateOf(b.Metadata, m)
		id, _ := url.QueryUnescape(b.Metadata[keyDisk]) // for people
		d := DiskStatus{Index: index, ID: id, URL: r.store.Blob(b.Name).URL(), Applying: st.applying, Size: st.size, Sequence: b.Sequence, Modified: b.Modified}
		switch {
		case st.known && st.applying:
			d.From, d.To = dr.PointName(st.low.Gen, st.low.N), dr.PointName(st.high.Gen, st.high.N)
		case st.known:
			d.Point = dr.PointName(st.low.Gen, st.low.N)
		}
		for _, x := range inv.snapshots {
			if x.index == index {
				d.Snapshots++
			}
		}
		s.Disks = append(s.Disks, d)
	}
	return s, nil
}

// Prune deletes the snapshots of all but the newest keep points (at least one), of
// points that never became complete and are older than the newest complete one, and the
// blobs of disks that no kept point has. Points whose names are pinned (those that are being
// booted) are kept beyond keep. Snapshots that others made are left alone. It returns how
// many snapshots it deleted. Idempotent. An Apply
// of a point newer than all complete ones is not disturbed.
func (r *Replica) Prune(ctx context.Context, m dr.MachineID, keep int, pinned ...string) (int, error) {
	inv, err := r.list(ctx, m)
	if err != nil {
		return 0, err
	}
	points := r.points(inv)
	if len(points) == 0 {
		return 0, nil
	}
	used := map[string]bool{} // index and snapshot
	current := map[uint16]bool{}
	for i, p := range points {
		if i < len(points)-max(1, keep) && !slices.Contains(pinned, p.Name()) {
			continue
		}
		for _, d := range p.Disks {
			used[fmt.Sprint(d.Index, " ", d.Snapshot)] = true
			current[d.Index] = true
		}
	}
	newest := points[len(points)-1].Ref
	left := map[uint16]int{}
	deleted := 0
	for _, s := range inv.snapshots {
		if !s.good || used[fmt.Sprint(s.index, " ", s.Snapshot)] || comparePoints(s.ref, newest) > 0 {
			left[s.index]++
			continue
		}
		c, err := r.store.Blob(s.Name).At(s.Snapshot)
		if err == nil {
			err = c.Delete(ctx)
		}
		if err != nil {
			return deleted, err
		}
		deleted++
	}
	for index, b := range inv.blobs {
		st := stateOf(b.Metadata, m)
		if current[index] || left[index] > 0 || !st.known || st.applying || comparePoints(st.low, newest) >= 0 {
			continue
		}
		if err := r.store.Blob(b.Name).Delete(ctx); err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// Remove deletes everything that the replica has of a machine. Idempotent. The caller
// has ended its Applies: one that runs fails.
func (r *Replica) Remove(ctx context.Context, m dr.MachineID) error {
	inv, err := r.list(ctx, m)
	if err != nil {
		return err
	}
	for _, b := range inv.blobs {
		if err := r.store.Blob(b.Name).Delete(ctx); err != nil {
			return err
		}
	}
	return nil
}
