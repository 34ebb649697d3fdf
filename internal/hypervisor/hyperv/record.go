package hyperv

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// phase is how far a cut has come. Each is written down before what it announces is done.
type phase string

const (
	phaseCreating   phase = "creating"   // a checkpoint named after the token may exist
	phaseOpen       phase = "open"       // it exists and may have been read in full
	phaseConverting phase = "converting" // it is being turned into a reference point
	phaseEnded      phase = "ended"      // the reference point exists
)

// tokenRecord is what the adapter knows of a token. Stored as
// tokens/<VM>/<token>.json. Without its record a token is lost, never guessed.
type tokenRecord struct {
	Version    int          `json:"version"` // 1
	VM         string       `json:"vm"`
	Token      string       `json:"token"`
	Phase      phase        `json:"phase"`
	Checkpoint string       `json:"checkpoint,omitempty"` // InstanceID
	Known      []string     `json:"known,omitempty"`      // reference points that were there before the conversion
	Point      string       `json:"point,omitempty"`      // InstanceID of the reference point
	Direct     bool         `json:"direct,omitempty"`     // read from idle files: there never is a reference point
	Disks      []diskRecord `json:"disks,omitempty"`      // that the cut covers
	Made       time.Time    `json:"made"`                 // not after the instant of the cut
}

type diskRecord struct {
	ID       string `json:"id"`                 // virtual disk id
	Instance string `json:"instance,omitempty"` // InstanceID of the VM's setting data
	Size     int64  `json:"size"`
	Recent   string `json:"recent,omitempty"` // tracking id of the frozen state, if the file told it
}

func (r *tokenRecord) disk(id string) (diskRecord, bool) {
	i := slices.IndexFunc(r.Disks, func(d diskRecord) bool { return d.ID == id })
	if i < 0 {
		return diskRecord{}, false
	}
	return r.Disks[i], true
}

const recordVersion = 1

// tokenPrefix begins the names of everything that Holdfast makes on a host.
const tokenPrefix = "hf-"

const (
	tokenDir = "tokens"
	bootDir  = "boot"
	holdDir  = "hold"
)

// store keeps records as files; each is replaced atomically and durable when a call returns.
type store struct{ dir string }

func (s store) vmDir(vm string) string { return filepath.Join(s.dir, tokenDir, vm) }

func (s store) path(vm, token string) string { return filepath.Join(s.vmDir(vm), token+".json") }

func (s store) put(r *tokenRecord) error {
	r.Version = recordVersion
	return writeJSON(s.path(r.VM, r.Token), r)
}

// get returns fs.ErrNotExist for a token without record.
func (s store) get(vm, token string) (*tokenRecord, error) {
	name, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok || name == "" || strings.ContainsAny(name, `/\.:`) {
		return nil, fs.ErrNotExist
	}
	r := &tokenRecord{}
	if err := readJSON(s.path(vm, token), r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion || r.Token != token || r.VM != vm {
		return nil, fmt.Errorf("%s has version %d of token %s; known is version %d", s.path(vm, token), r.Version, r.Token, recordVersion)
	}
	return r, nil
}

func (s store) drop(r *tokenRecord) error { return removeFile(s.path(r.VM, r.Token)) }

// tokens lists the records of a VM, oldest first.
func (s store) tokens(vm string) ([]*tokenRecord, error) {
	names, err := filepath.Glob(filepath.Join(s.vmDir(vm), tokenPrefix+"*.json"))
	if err != nil {
		return nil, err
	}
	var list []*tokenRecord
	for _, n := range names {
		r, err := s.get(vm, strings.TrimSuffix(filepath.Base(n), ".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	slices.SortStableFunc(list, func(a, b *tokenRecord) int { return a.Made.Compare(b.Made) })
	return list, nil
}

// vms lists the VMs that have records.
func (s store) vms() ([]string, error) {
	list, err := os.ReadDir(filepath.Join(s.dir, tokenDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out, err
}

// maxRecord bounds what is read of a record.
const maxRecord = 1 << 20

func readJSON(path string, v any) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Size() > maxRecord {
		return fmt.Errorf("%s has %d bytes, which is no record", path, st.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, removeFile(f.Name()))
	}
	return syncDir(dir)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
