package capture

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"holdfast/internal/capture/durable"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/retry"
)

// stateVersion of state.json.
//
//	1  2026-11-22  first version
//	2  2026-11-22  positions instead of single fields; scan, fill, refused, retry
const stateVersion = 2

// state is what a replicator remembers, state.json. It is written after the
// spool entry that it refers to is durable, and before anything that relies on it.
type state struct {
	Version int           `json:"version"`
	Machine dr.MachineID  `json:"machine"`
	Gen     dr.Generation `json:"gen"`

	Tip           position  `json:"tip"` // newest sealed cut: in the spool or committed
	Committed     position  `json:"committed"`
	CommittedTime time.Time `json:"committedTime,omitzero"` // instant of Point
	Point         cut.Ref   `json:"point"`                  // newest committed recovery point, or a base that is one
	Attempt       uint32    `json:"attempt"`                // of sealing, grows over the life of the replica
	NextDisk      uint16    `json:"nextDisk"`               // index of the next disk that is new; indexes are never given twice

	Epoch   uint32    `json:"epoch"` // of the data key in use; 0 = none yet
	EpochAt time.Time `json:"epochAt,omitzero"`

	Request string             `json:"request"`           // last ResyncRequest carried out
	Fill    *filling           `json:"fill,omitempty"`    // disks that are not in the chain yet
	Refused map[string]refusal `json:"refused,omitempty"` // disks that are left out until an operator asks for a resynchronization
	LastApp time.Time          `json:"lastApp,omitzero"`  // newest cut that the guest was quiesced for

	Retry retry.State `json:"retry,omitzero"` // of cutting
	Ship  retry.State `json:"ship,omitzero"`  // of sending what is cut
}

// position is the chain as of one cut: what goes on from there.
type position struct {
	Ref   cut.Ref    `json:"ref"`
	Token string     `json:"token"` // tracking since the cut; "" = lost
	Disks []cut.Disk `json:"disks"` // of the cut
	Scan  *scan      `json:"scan,omitempty"`
}

// scan is a resynchronization that is due or runs: disks are compared with what
// the chain has, tile by tile, over as many cuts as it takes. A cut holds what
// differed in the tiles that it compared, and what changed since the cut before
// in those compared earlier.
type scan struct {
	Code   dr.Code   `json:"code"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Exact: tracking is unbroken, so changes of tiles that are still to be
	// compared go into the cuts too, and each is a recovery point. If not, all
	// cuts but the last are flagged as seeds.
	Exact bool `json:"exact"`
	Now   bool `json:"now,omitempty"`  // an operator wants it now, whatever the window
	Full  bool `json:"full,omitempty"` // send everything
	// Rebase: the next cut begins anew (cut.Commit.Base), so that nothing older is
	// needed any more: the answer to a damaged history. It goes with Full and not Exact.
	Rebase bool `json:"rebase,omitempty"`
	// At is the cut whose digests tell what the chain has in tiles that are still
	// to be compared and that the filter does not know; zero = to be chosen.
	At   cut.Ref           `json:"at"`
	Next map[uint16]uint32 `json:"next"` // disk → tile to be compared next
}

// left is how many bytes are still to be compared of disks.
func (s *scan) left(disks []cut.Disk) (left, total int64) {
	for _, d := range disks {
		if next, ok := s.Next[d.Index]; ok {
			total += d.Size
			left += max(d.Size-int64(next)*cut.TileSize, 0)
		}
	}
	return left, total
}

// next is the tile of a disk that is to be compared next, false if the disk is not to be compared.
func (s *scan) next(disk uint16) (uint32, bool) {
	if s == nil {
		return 0, false
	}
	n, ok := s.Next[disk]
	return n, ok
}

// clone returns an independent copy; nil stays nil.
func (s *scan) clone() *scan {
	if s == nil {
		return nil
	}
	n := *s
	n.Next = maps.Clone(s.Next)
	return &n
}

// refusal is a disk that can't go on.
type refusal struct {
	Code dr.Code `json:"code"`
	Why  string  `json:"why"`
}

// filling is the progress of disks that are sent as tile images; package fill has the tiles.
type filling struct {
	Mark  cut.Ref        `json:"mark"`  // the position of these disks' filters
	Disks []cut.Disk     `json:"disks"` // in order
	Eras  map[uint16]int `json:"eras"`  // grow when tracking was lost: older tiles have to be compared
	Token string         `json:"token"` // of the last round, while no disk is in the chain
	// Complete: all tiles of all disks are sent, so that the next cut takes the disks over.
	Complete bool `json:"complete"`
}

func (f *filling) has(index uint16) bool {
	return f != nil && slices.ContainsFunc(f.Disks, func(d cut.Disk) bool { return d.Index == index })
}

func (f *filling) clone() *filling {
	if f == nil {
		return nil
	}
	n := *f
	n.Disks, n.Eras = slices.Clone(f.Disks), maps.Clone(f.Eras)
	return &n
}

// copy returns an independent copy of the state.
func (s *state) copy() state {
	n := *s
	n.Tip, n.Committed = s.Tip.copy(), s.Committed.copy()
	n.Fill, n.Refused = s.Fill.clone(), maps.Clone(s.Refused)
	return n
}

func (p position) copy() position {
	p.Disks, p.Scan = slices.Clone(p.Disks), p.Scan.clone()
	return p
}

// nextN is the number of the next cut.
func (s *state) nextN() uint64 {
	if s.Tip.Ref.IsZero() {
		return 1 // not 0: a run that goes on from a point could not name it
	}
	return s.Tip.Ref.N + 1
}

// setTip makes p the chain's tip. Disks that it has are not being filled any more.
func (s *state) setTip(p position) {
	s.Tip = p
	if s.Fill == nil {
		return
	}
	s.Fill.Disks = slices.DeleteFunc(s.Fill.Disks, func(d cut.Disk) bool {
		return slices.ContainsFunc(p.Disks, func(x cut.Disk) bool { return x.Index == d.Index })
	})
	if len(s.Fill.Disks) == 0 {
		s.Fill = nil
	}
}

func (r *Replicator) path(name ...string) string {
	return filepath.Join(append([]string{r.cfg.Dir}, name...)...)
}

// load reads state.json, or starts afresh where there is none.
func (r *Replicator) load() (*state, error) {
	const op = "capture.load"
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, op, "make state directory: %w", err)
	}
	// Tiles that a killed process was writing are known to nobody.
	left, _ := filepath.Glob(filepath.Join(r.cfg.Dir, "tile-*.tmp"))
	for _, path := range left {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, durable.Error(op, path, err)
		}
	}
	raw, err := os.ReadFile(r.path("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &state{Version: stateVersion, Machine: r.cfg.Machine}, nil
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, op, "read state: %w", err)
	}
	var probe struct {
		Version int `json:"version"`
	}
	s := &state{}
	if err = json.Unmarshal(raw, &probe); err == nil {
		switch probe.Version {
		case 1:
			s, err = upgrade(raw)
		case stateVersion:
			err = json.Unmarshal(raw, s)
		}
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindCorrupt, op, "state %s is damaged: %w", r.path("state.json"), err)
	}
	if s.Version != stateVersion || s.Machine != r.cfg.Machine {
		return nil, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "state %s has version %d of machine %s, want %d of %s",
			r.path("state.json"), probe.Version, s.Machine, stateVersion, r.cfg.Machine)
	}
	return s, nil
}

// upgrade reads version 1. An initial replication that was not complete begins
// again, and spool entries of version 1 are captured again.
func upgrade(raw []byte) (*state, error) {
	var old struct {
		Machine        dr.MachineID  `json:"machine"`
		Gen            dr.Generation `json:"gen"`
		Committed      cut.Ref       `json:"committed"`
		CommittedToken string        `json:"committedToken"`
		CommittedTime  time.Time     `json:"committedTime"`
		Attempt        uint32        `json:"attempt"`
		Epoch          uint32        `json:"epoch"`
		EpochAt        time.Time     `json:"epochAt"`
		Disks          []cut.Disk    `json:"disks"`
		Request        string        `json:"request"`
	}
	if err := json.Unmarshal(raw, &old); err != nil {
		return nil, err
	}
	p := position{Ref: old.Committed, Token: old.CommittedToken, Disks: old.Disks}
	if p.Ref.IsZero() {
		p = position{}
	}
	return &state{
		Version: stateVersion, Machine: old.Machine, Gen: old.Gen, Tip: p, Committed: p.copy(), CommittedTime: old.CommittedTime, Point: old.Committed,
		Attempt: old.Attempt, NextDisk: uint16(len(old.Disks)), Epoch: old.Epoch, EpochAt: old.EpochAt, Request: old.Request,
	}, nil
}

// save makes the state durable. The caller is the only one that changes it.
func (r *Replicator) save(s *state) error {
	raw, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return dr.Errorf(dr.KindInternal, "capture.save", "encode state: %w", err)
	}
	return durable.Replace(r.path("state.json"), raw, 0o600)
}

// change changes the state durably; on an error the memory is as before.
func (r *Replicator) change(fn func(*state) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.state.copy()
	if err := fn(&next); err != nil {
		return err
	}
	if err := r.save(&next); err != nil {
		return err
	}
	*r.state = next
	return nil
}

// snapshot is a copy of the state.
func (r *Replicator) snapshot() state {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.copy()
}

// epochLife is how long a data key is used for new cuts, and epochShift how
// many of them a generation has: epoch numbers carry the generation, so that two
// agents never make the same one.
const (
	epochLife  = 24 * time.Hour
	epochShift = 12
)

// expired reports whether the data key in use must not be used any more.
func (s *state) expired() bool {
	age := time.Since(s.EpochAt)
	return s.Epoch>>epochShift != uint32(s.Gen) || age >= epochLife || age < 0
}

// key returns the data key for new segments, making the next epoch when there
// is none, the generation changed, or the key is a day old. The caller is in change.
func (r *Replicator) key(s *state) (cut.EpochKey, error) {
	next := max(s.Epoch+1, uint32(s.Gen)<<epochShift)
	// A generation of eleven years keeps its last key.
	if !s.expired() || next>>epochShift != uint32(s.Gen) {
		if k, err := r.readKey(s.Epoch); !errors.Is(err, fs.ErrNotExist) {
			return k, err
		}
	}
	k := cut.NewEpochKey()
	wrap, err := cut.SealEpochKey(r.want.VaultKey, r.cfg.Machine, next, k)
	if err != nil {
		return cut.EpochKey{}, err
	}
	if err := durable.Replace(r.path(wrapName(next)), wrap, 0o600); err != nil {
		return cut.EpochKey{}, err
	}
	if err := durable.Replace(r.path(keyName(next)), k[:], 0o600); err != nil {
		return cut.EpochKey{}, err
	}
	old := s.Epoch
	s.Epoch, s.EpochAt = next, time.Now().UTC()
	if err := r.save(s); err != nil {
		return cut.EpochKey{}, err
	}
	if old != 0 {
		// Forgotten: who takes this host over can't read what was sealed before.
		os.Remove(r.path(keyName(old)))
	}
	return k, nil
}

// forgetKey forgets a data key whose day is over, also when there is nothing to seal.
func (r *Replicator) forgetKey() {
	if st := r.snapshot(); st.Epoch != 0 && st.expired() {
		os.Remove(r.path(keyName(st.Epoch)))
	}
}

func wrapName(epoch uint32) string { return keyName(epoch) + ".wrap" }

func keyName(epoch uint32) string { return "key-" + strconv.FormatUint(uint64(epoch), 10) }

func (r *Replicator) readKey(epoch uint32) (cut.EpochKey, error) {
	var k cut.EpochKey
	raw, err := os.ReadFile(r.path(keyName(epoch)))
	if err != nil {
		return k, dr.Errorf(dr.KindUnavailable, "capture.key", "read data key of epoch %d: %w", epoch, err)
	}
	if len(raw) != len(k) {
		return k, dr.Errorf(dr.KindCorrupt, "capture.key", "data key of epoch %d has %d bytes", epoch, len(raw))
	}
	copy(k[:], raw)
	return k, nil
}
