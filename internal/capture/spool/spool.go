// Package spool is the bounded local directory of sealed cuts on their way to
// the store. An entry is complete or absent, whatever crashes: it is built under
// a temporary name, synced and renamed; its removal begins with the file that makes it one.
package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"holdfast/internal/capture/durable"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const op = "capture.spool"

// Spool is one machine's spool. Its methods are safe for concurrent use.
type Spool struct {
	dir   string
	limit int64
	used  atomic.Int64
}

// New returns a spool in a directory, which Open makes. limit bounds the bytes of objects in it.
func New(dir string, limit int64) *Spool { return &Spool{dir: dir, limit: limit} }

// entryVersion of entry.json.
//
//	1  2026-11-22  first version
//	2  2026-11-22  after, seed; entries of version 1 are dropped and captured again
const entryVersion = 2

// Entry is one sealed cut.
type Entry struct {
	Version int             `json:"version"`
	Ref     cut.Ref         `json:"ref"`
	Prev    cut.Ref         `json:"prev"`
	Epoch   uint32          `json:"epoch"`
	Time    time.Time       `json:"time"`
	Objects []Object        `json:"objects"` // in the order of sending; the cut is last
	Dirty   int64           `json:"dirty"`
	CutNS   int64           `json:"cutNs"`
	Resync  bool            `json:"resync"`
	Seed    bool            `json:"seed,omitempty"` // no recovery point
	Updates bool            `json:"updates"`        // the entry has filter.upd
	After   json.RawMessage `json:"after"`          // the owner's state once the entry is in the chain
	// Marks are disks whose filters come to this entry not from Prev but from a position of their own.
	Marks map[uint16]cut.Ref `json:"marks,omitempty"`

	dir string
}

// Object is a file of an entry.
type Object struct {
	Name   string   `json:"name"` // in the store
	File   string   `json:"file"` // in the entry
	Size   int64    `json:"size"`
	SHA256 cut.Hash `json:"sha256"`
}

const (
	entryFile  = "entry.json"
	tempPrefix = ".tmp-"
)

// Bytes is the size of the entry's objects.
func (e *Entry) Bytes() int64 {
	var n int64
	for _, o := range e.Objects {
		n += o.Size
	}
	return n
}

// Open opens an object's file for reading.
func (e *Entry) Open(o Object) (*os.File, error) {
	f, err := os.Open(filepath.Join(e.dir, o.File))
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, op, "open spooled object: %w", err)
	}
	return f, nil
}

// Open makes the directory if need be, lists the entries in the order of their
// cuts and removes what a crash left half made.
func (s *Spool) Open() ([]*Entry, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, durable.Error(op, s.dir, err)
	}
	entries, err := s.list(func(path string) error { return durable.Error(op, path, os.RemoveAll(path)) })
	var used int64
	for _, e := range entries {
		used += e.Bytes()
	}
	s.used.Store(used)
	return entries, err
}

// List reads the entries that are there now, in their order; a torn one, or one
// that is being removed, is left out.
func (s *Spool) List() ([]*Entry, error) { return s.list(func(string) error { return nil }) }

func (s *Spool) list(torn func(string) error) ([]*Entry, error) {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, op, "list spool: %w", err)
	}
	var entries []*Entry
	for _, n := range names {
		path := filepath.Join(s.dir, n.Name())
		e, err := read(path)
		if errors.Is(err, errTorn) {
			err = torn(path)
		}
		if err != nil {
			return nil, err
		}
		if e != nil {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *Entry) int {
		if c := int64(a.Ref.Gen) - int64(b.Ref.Gen); c != 0 {
			return int(c)
		}
		return int(int64(a.Ref.N) - int64(b.Ref.N))
	})
	return entries, nil
}

var errTorn = errors.New("the spool entry is not complete")

// read reads an entry. It is errTorn unless every file is there in full.
func read(path string) (*Entry, error) {
	if strings.HasPrefix(filepath.Base(path), tempPrefix) {
		return nil, errTorn
	}
	raw, err := os.ReadFile(filepath.Join(path, entryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errTorn
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, op, "read entry: %w", err)
	}
	e := &Entry{dir: path}
	if json.Unmarshal(raw, e) != nil || len(e.Objects) == 0 || e.Version < entryVersion {
		return nil, errTorn
	}
	if e.Version != entryVersion {
		return nil, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "spool entry %s has version %d, want %d", path, e.Version, entryVersion)
	}
	for _, o := range e.Objects {
		info, err := os.Stat(filepath.Join(path, filepath.Base(o.File)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, dr.Errorf(dr.KindUnavailable, op, "look at entry: %w", err)
		}
		if err != nil || info.Size() != o.Size {
			return nil, errTorn
		}
	}
	return e, nil
}

// Size is the bytes of objects in the spool.
func (s *Spool) Size() int64 { return s.used.Load() }

// Limit is the bound that was given to New.
func (s *Spool) Limit() int64 { return s.limit }

// Full reports whether no further cut may be begun.
func (s *Spool) Full() bool { return s.used.Load() >= s.limit }

// Draft makes an empty directory that is to become an entry.
func (s *Spool) Draft() (string, error) {
	dir, err := os.MkdirTemp(s.dir, tempPrefix)
	return dir, durable.Error(op, s.dir, err)
}

// Add makes a filled draft an entry: its objects are synced already; the entry
// file is synced, then the draft is renamed. step is called at the labels
// spool.written and spool.renamed.
func (s *Spool) Add(draft string, e *Entry, step func(string) error) error {
	e.Version = entryVersion
	raw, err := json.MarshalIndent(e, "", " ")
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "encode entry: %w", err)
	}
	if err := durable.Replace(filepath.Join(draft, entryFile), raw, 0o600); err != nil {
		return err
	}
	if err := step("spool.written"); err != nil {
		return err
	}
	path := filepath.Join(s.dir, fmt.Sprintf("%08x-%016x", uint32(e.Ref.Gen), e.Ref.N))
	if err := os.RemoveAll(path); err != nil { // of an attempt that the state does not know
		return durable.Error(op, path, err)
	}
	if err := os.Rename(draft, path); err != nil {
		return durable.Error(op, path, err)
	}
	if err := durable.SyncDir(s.dir); err != nil {
		return durable.Error(op, s.dir, err)
	}
	e.dir = path
	s.used.Add(e.Bytes())
	return step("spool.renamed")
}

// Remove deletes an entry. Idempotent.
func (s *Spool) Remove(e *Entry) error {
	// The entry file goes first: what is left without it is torn, and cleaned up at the next start.
	if err := os.Remove(filepath.Join(e.dir, entryFile)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return durable.Error(op, e.dir, err)
	}
	s.used.Add(-e.Bytes())
	return durable.Error(op, e.dir, os.RemoveAll(e.dir))
}
