// Package journal keeps the final report of each command that an agent has
// carried out, so that a repeated command is answered, not repeated.
//
// It promises that an entry is whole after a crash at any moment, and that what
// is kept is bounded in age and number.
package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
)

// Limits. A command is repeated within minutes, days after a restored vault.
const (
	maxAge     = 7 * 24 * time.Hour
	maxEntries = 2000
	pruneAfter = 200 // entries between two clean-ups
)

// Journal is the directory of reports. It is safe for concurrent use.
type Journal struct {
	dir string

	mu      sync.Mutex
	written int
}

// New returns the Journal in a directory that exists; it does no I/O.
func New(dir string) *Journal { return &Journal{dir: dir} }

type entry struct {
	state.Header
	Kind   agentapi.CommandKind   `json:"kind,omitempty"`
	At     time.Time              `json:"at"`
	Report agentapi.ReportRequest `json:"report"`
}

// path hides the id, which is the vault's and may hold any character.
func (j *Journal) path(id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(j.dir, hex.EncodeToString(sum[:16])+".json")
}

// Find returns the final report of a command; dr.KindNotFound if it was not finished here.
func (j *Journal) Find(id string) (agentapi.ReportRequest, error) {
	var e entry
	if err := state.Load(j.path(id), &e); err != nil {
		return agentapi.ReportRequest{}, err
	}
	return e.Report, nil
}

// Put keeps the final report of a command durably.
func (j *Journal) Put(kind agentapi.CommandKind, r agentapi.ReportRequest) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := state.Save(j.path(r.ID), &entry{Header: state.Current(), Kind: kind, At: time.Now().UTC(), Report: r}); err != nil {
		return err
	}
	if j.written++; j.written%pruneAfter == 0 {
		return j.Prune()
	}
	return nil
}

// Prune removes old entries and, beyond the number that is kept, the oldest.
func (j *Journal) Prune() error {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "agent.journal", "list the journal: %w", err)
	}
	type file struct {
		name string
		at   time.Time
	}
	var files []file
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			files = append(files, file{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) }) // newest first
	var errs []error
	for i, f := range files {
		if i >= maxEntries || time.Since(f.at) > maxAge {
			errs = append(errs, os.Remove(filepath.Join(j.dir, f.name)))
		}
	}
	return errors.Join(errs...)
}
