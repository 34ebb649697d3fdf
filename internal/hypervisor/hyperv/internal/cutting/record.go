package cutting

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/hypervisor/hyperv/internal/records"
)

const (
	tokenDir = "tokens"
	holdDir  = "hold"
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

// store keeps records as files; each is replaced atomically and durable when a call returns.
type store struct{ dir string }

func (s store) vmDir(vm string) string { return filepath.Join(s.dir, tokenDir, vm) }

func (s store) path(vm, token string) string { return filepath.Join(s.vmDir(vm), token+".json") }

func (s store) put(r *tokenRecord) error {
	r.Version = recordVersion
	return records.Write(s.path(r.VM, r.Token), r)
}

// get returns fs.ErrNotExist for a token without record.
func (s store) get(vm, token string) (*tokenRecord, error) {
	name, ok := strings.CutPrefix(token, records.Prefix)
	if !ok || name == "" || strings.ContainsAny(name, `/\.:`) {
		return nil, fs.ErrNotExist
	}
	r := &tokenRecord{}
	if err := records.Read(s.path(vm, token), r); err != nil {
		return nil, err
	}
	if err := r.check(vm, token); err != nil {
		return nil, fmt.Errorf("%s: %w", s.path(vm, token), err)
	}
	return r, nil
}

// check refuses a record that is not what put writes for the token.
func (r *tokenRecord) check(vm, token string) error {
	switch {
	case r.Version != recordVersion:
		return fmt.Errorf("the record has version %d; known is %d", r.Version, recordVersion)
	case r.Token != token || r.VM != vm:
		return fmt.Errorf("the record is of token %q of VM %q", r.Token, r.VM)
	case !slices.Contains([]phase{phaseCreating, phaseOpen, phaseConverting, phaseEnded}, r.Phase):
		return fmt.Errorf("the record has the unknown phase %q", r.Phase)
	}
	for i, d := range r.Disks {
		if d.ID == "" || d.Size < 0 || slices.ContainsFunc(r.Disks[:i], func(o diskRecord) bool { return o.ID == d.ID }) {
			return fmt.Errorf("the record has a disk %q of %d bytes that can't be", d.ID, d.Size)
		}
	}
	return nil
}

func (s store) drop(r *tokenRecord) error { return records.Remove(s.path(r.VM, r.Token)) }

// tokens lists the records of a VM, oldest first.
func (s store) tokens(vm string) ([]*tokenRecord, error) {
	names, err := filepath.Glob(filepath.Join(s.vmDir(vm), records.Prefix+"*.json"))
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
