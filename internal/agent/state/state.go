// Package state owns the agent's state directory: its layout, its lock, and
// small versioned JSON files that are replaced durably and in one step. A crash
// at any moment leaves the file as it was or as it is to be.
package state

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"holdfast/internal/dr"
)

// Layout of the state directory. All of it belongs to the agent's user alone.
//
//	lock                        held while an agent runs
//	host-id                     identifies a host whose operating system has no id of its own
//	identity/identity.json      version 1: who this agent is, its key and certificate
//	identity/pending.json       version 1: the key of a registration that has not been answered
//	assignments.json            version 2: what to replicate, as the vault last said
//	journal/<hash>.json         version 1: the result of one command
//	replicas/<machine>/         package capture
//	ahead/<machine>.json        package upload: secrets of some hours
//	servings/<serving>/         package hydrate, unless a run directory is given
const (
	Identity    = "identity/identity.json"
	Pending     = "identity/pending.json"
	Assignments = "assignments.json"
	Journal     = "journal"
	Replicas    = "replicas"
	Ahead       = "ahead"

	lockName     = "lock"
	hostIDName   = "host-id"
	servingsName = "servings"
)

// maxSocketPath is what fits a unix socket's address everywhere, bytes.
const maxSocketPath = 100

// ServingRoot returns the directory for hydrate.Launcher.Root: below runDir, or
// below stateDir if that is empty. dr.KindInvalid if the socket of a serving,
// whose id is a UUID, would have too long a path for a unix socket.
func ServingRoot(stateDir, runDir string) (string, error) {
	root := filepath.Join(stateDir, servingsName)
	if runDir != "" {
		root = filepath.Join(runDir, servingsName)
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", dr.Errorf(dr.KindInvalid, "state.ServingRoot", "find %s: %w", root, err)
	}
	if n := len(root) + len("/00000000-0000-0000-0000-000000000000/nbd.sock"); n >= maxSocketPath {
		return "", dr.Errorf(dr.KindInvalid, "state.ServingRoot", "sockets below %s would have paths of %d characters, fewer than %d are possible", root, n, maxSocketPath).
			WithHint("Choose a run directory with a short path, e.g. /run/holdfast.")
	}
	return root, nil
}

// Save replaces a file durably and in one step; only its owner can read it.
func Save(path string, v any) error {
	const op = "state.Save"
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "encode %s: %w", path, err)
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(append(raw, '\n'))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	switch {
	case isFull(err):
		return dr.New(dr.KindExhausted, dr.CodeNoSpace, op, "write %s: %w", path, err)
	case err != nil:
		return dr.Errorf(dr.KindUnavailable, op, "write %s: %w", path, err)
	}
	return nil
}

// Header is embedded first in every file.
type Header struct {
	Version int `json:"version"`
}

// FileVersion returns the version in the file.
func (h Header) FileVersion() int { return h.Version }

// NewestVersion is the newest version of the file that this program knows.
func (h Header) NewestVersion() int { return version }

// AssignmentsHeader is the Header of assignments.json.
type AssignmentsHeader struct{ Header }

// NewestVersion is the newest version of the file that this program knows.
func (h AssignmentsHeader) NewestVersion() int { return assignmentsVersion }

const (
	// version of all files but assignments.json.
	//
	// History:
	//
	//	1  2026-11-22  first version
	version = 1
	// assignmentsVersion of assignments.json. Version 1 is read; what it lacks is empty.
	//
	// History:
	//
	//	1  2026-11-22  first version
	//	2  2026-11-22  generations and marks of machines; how initial replication,
	//	               resynchronization, bandwidth and groups are to be done
	assignmentsVersion = 2
)

// Current is the header of a file to be saved.
func Current() Header { return Header{version} }

// CurrentAssignments is the header of assignments.json to be saved.
func CurrentAssignments() AssignmentsHeader { return AssignmentsHeader{Header{assignmentsVersion}} }

// File is what Load fills in: a struct in which a Header is embedded.
type File interface {
	FileVersion() int
	NewestVersion() int
}

// Load reads what Save wrote. dr.KindNotFound only if the file is not there.
func Load(path string, v File) error {
	const op = "state.Load"
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return dr.Errorf(dr.KindNotFound, op, "there is no %s", path)
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "read %s: %w", path, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return dr.Errorf(dr.KindCorrupt, op, "read %s: %w", path, err)
	}
	switch n := v.FileVersion(); {
	case n > v.NewestVersion():
		return dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "%s has version %d, this program knows %d", path, n, v.NewestVersion())
	case n < 1:
		return dr.Errorf(dr.KindCorrupt, op, "%s has no version", path)
	}
	return nil
}

// Make makes the directories.
func Make(stateDir string) error {
	for _, d := range []string{"", filepath.Dir(Identity), Journal, Replicas} {
		if err := os.MkdirAll(filepath.Join(stateDir, d), 0o700); err != nil {
			return dr.Errorf(dr.KindUnavailable, "state.Open", "make directory: %w", err)
		}
	}
	return nil
}

// errLocked says that another process holds the state directory.
var errLocked = errors.New("another agent process uses it")

// Lock takes the directory for this process until unlock; dr.KindConflict if another one has it.
func Lock(stateDir string) (unlock func() error, err error) {
	unlock, err = lockFile(filepath.Join(stateDir, lockName))
	switch {
	case errors.Is(err, errLocked):
		return nil, dr.Errorf(dr.KindConflict, "state.Open", "lock state directory %s: %w", stateDir, err).
			WithHint("Stop the agent that runs with this state directory first.")
	case err != nil:
		return nil, dr.Errorf(dr.KindUnavailable, "state.Open", "lock state directory %s: %w", stateDir, err)
	}
	return unlock, nil
}

// MachineID identifies the host: the operating system's id, or one that is kept here.
func MachineID(stateDir string) (string, error) {
	if id := osMachineID(); id != "" {
		return id, nil
	}
	var f struct {
		Header
		ID string `json:"id"`
	}
	path := filepath.Join(stateDir, hostIDName)
	err := Load(path, &f)
	if dr.KindOf(err) == dr.KindNotFound {
		f.Header, f.ID = Current(), uuid.NewString()
		err = Save(path, &f)
	}
	return f.ID, err
}
