package capture

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// stateVersion of state.json.
//
//	1  2026-11-22  first version
const stateVersion = 1

// state is what a replicator remembers, state.json. It is written after the
// spool entry that it refers to is durable, and before anything that relies on it.
type state struct {
	Version int           `json:"version"`
	Machine dr.MachineID  `json:"machine"`
	Gen     dr.Generation `json:"gen"`

	Tip            cut.Ref   `json:"tip"`      // newest sealed cut: in the spool or committed
	TipToken       string    `json:"tipToken"` // tracking token of the tip; "" = tracking is lost
	Committed      cut.Ref   `json:"committed"`
	CommittedToken string    `json:"committedToken"`
	CommittedTime  time.Time `json:"committedTime,omitzero"`
	Attempt        uint32    `json:"attempt"` // of sealing, grows over the life of the replica

	Epoch   uint32    `json:"epoch"` // of the data key in use; 0 = none yet
	EpochAt time.Time `json:"epochAt,omitzero"`

	Disks   []cut.Disk `json:"disks"`   // every disk ever seen keeps its index
	Resync  string     `json:"resync"`  // reason of a resynchronization that is due
	Request string     `json:"request"` // last ResyncRequest carried out
	Initial *initial   `json:"initial,omitempty"`
}

// initial is the progress of the initial replication; the tiles are in initial.log.
type initial struct {
	Token string `json:"token"` // tiles logged in this era are as of this token or later
	Era   int    `json:"era"`   // grows when the token was lost: older tiles have to be compared
}

// nextN is the number of the next cut.
func (s *state) nextN() uint64 {
	if s.Tip.IsZero() {
		return 0
	}
	return s.Tip.N + 1
}

// index returns the stable index of a disk, adding it if it is new, and keeps its size.
func (s *state) index(id string, size int64) uint16 {
	for i := range s.Disks {
		if s.Disks[i].ID == id {
			s.Disks[i].Size = size
			return s.Disks[i].Index
		}
	}
	n := uint16(len(s.Disks))
	s.Disks = append(s.Disks, cut.Disk{Index: n, ID: id, Size: size})
	return n
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
	raw, err := os.ReadFile(r.path("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &state{Version: stateVersion, Machine: r.cfg.Machine}, nil
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, op, "read state: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, dr.Errorf(dr.KindCorrupt, op, "state %s is damaged: %w", r.path("state.json"), err)
	}
	if s.Version != stateVersion || s.Machine != r.cfg.Machine {
		return nil, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "state %s has version %d of machine %s, want %d of %s",
			r.path("state.json"), s.Version, s.Machine, stateVersion, r.cfg.Machine)
	}
	return s, nil
}

// save makes the state durable. The caller is the only one that changes it.
func (r *Replicator) save(s *state) error {
	raw, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return dr.Errorf(dr.KindInternal, "capture.save", "encode state: %w", err)
	}
	return replaceFile(r.path("state.json"), raw, 0o600)
}

// replaceFile replaces a file in one durable step.
func replaceFile(path string, raw []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err == nil {
		_, err = f.Write(raw)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return diskError("capture.save", path, err)
}

// diskError maps an error of the local file system.
func diskError(op, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case isNoSpace(err):
		return dr.New(dr.KindExhausted, dr.CodeNoSpace, op, "write %s: %w", path, err)
	}
	return dr.Errorf(dr.KindUnavailable, op, "write %s: %w", path, err)
}

// epochLife is how long a data key is used for new cuts.
const epochLife = 24 * time.Hour

// key returns the data key for new segments, making the next epoch when there
// is none, the generation changed, or the key is a day old. Epoch numbers carry
// the generation, so that two agents never make the same one. The caller is in change.
func (r *Replicator) key(s *state) (cut.EpochKey, error) {
	first := uint32(s.Gen) << 8
	if s.Epoch>>8 == uint32(s.Gen) && time.Since(s.EpochAt) < epochLife && time.Since(s.EpochAt) >= 0 {
		if k, err := r.readKey(s.Epoch); !errors.Is(err, fs.ErrNotExist) {
			return k, err
		}
	}
	next := max(s.Epoch+1, first)
	k := cut.NewEpochKey()
	wrap, err := cut.SealEpochKey(r.want.VaultKey, r.cfg.Machine, next, k)
	if err != nil {
		return cut.EpochKey{}, err
	}
	if err := replaceFile(r.path(wrapName(next)), wrap, 0o600); err != nil {
		return cut.EpochKey{}, err
	}
	if err := replaceFile(r.path(keyName(next)), k[:], 0o600); err != nil {
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
