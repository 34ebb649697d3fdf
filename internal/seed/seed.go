// Package seed makes the beginning of a replica from images that are at hand, so
// that the first replication of a large VM ships the difference and not the disks:
// a backup, an older copy, or a disk that came by post.
//
// What it promises:
//
//   - The seed is what the images were when they were read, tile by tile; it is
//     part of the machine's history and never a recovery point, because nobody
//     knows which moment of the VM it shows.
//   - Either the whole seed is in the store or nothing that anybody could take for
//     one: its cut is written last, if absent.
//   - A run that was stopped, or killed at any moment, goes on in the next one with
//     what is in the store already.
//   - It needs the vault's public key only. The data key that it makes is in the
//     state directory (mode 0600) until the seed is complete, as it is on an agent.
package seed

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/capture/durable"
	"holdfast/internal/capture/fill"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

const op = "seed.Make"

// generation of a seed, and the number of its data key: epoch numbers carry the
// generation, as agents' do, so that nobody makes the same one again.
const (
	generation = dr.Generation(1)
	epochShift = 12
	epoch      = uint32(generation) << epochShift
)

// Disk is an image that a disk of the machine is to begin with.
type Disk struct {
	ID   string // as the hypervisor calls the VM's disk, such as vda
	Path string
	// Format of the image; empty = by the ending of its name, else raw.
	Format Format
}

// Config says what is made.
type Config struct {
	Bucket   objstore.Bucket
	VaultKey cut.VaultPublicKey // the data key is sealed to it
	Dir      string             // state directory, made if it is missing; one for each seed
	VM       string             // name of the VM, for people
	Disks    []Disk             // in the VM's order
	Parallel int                // tiles at a time, each up to 64 MiB of memory; 0 = 2
	Codec    cut.Codec
	Now      func() time.Time        // nil = time.Now
	Progress func(done, total int64) // bytes of the disks, called by one goroutine at a time; may be nil
	// Step is called at every labelled step of Steps; an error stops there as a
	// crash would. For tests; nil in production.
	Step func(label string) error
}

// Steps lists every label that Config.Step is called with.
func Steps() []string {
	return []string{"state", "key", "generation", "tile-stored", "tile-noted", "sealed", "committed"}
}

// Result is a seed in the store.
type Result struct {
	Machine dr.MachineID
	Ref     cut.Ref
	Disks   []cut.Disk
	Tiles   int   // images that are not all zero
	Stored  int64 // bytes of their objects
	Resumed bool  // an earlier run was gone on with
}

// Validate checks the configuration.
func (c Config) Validate() error {
	switch {
	case c.Bucket == nil || c.VaultKey.IsZero() || c.Dir == "":
		return dr.Errorf(dr.KindInvalid, op, "a seed needs a store, the vault's public key and a state directory")
	case c.VM == "":
		return dr.Errorf(dr.KindInvalid, op, "a seed needs the name of the VM")
	case len(c.Disks) == 0:
		return dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "a seed needs the image of one disk at least")
	case c.Parallel < 0 || c.Parallel > 64:
		return dr.Errorf(dr.KindInvalid, op, "%d tiles at a time are not within 1 and 64", c.Parallel)
	}
	seen := map[string]bool{}
	for _, d := range c.Disks {
		if d.ID == "" || d.Path == "" || seen[d.ID] {
			return dr.Errorf(dr.KindInvalid, op, "disk %q has no image, or is given twice", d.ID)
		}
		seen[d.ID] = true
	}
	return nil
}

// state is seed.json.
//
// History:
//
//	1  2026-11-22  first version
type state struct {
	Version int          `json:"version"`
	Machine dr.MachineID `json:"machine"`
	VM      string       `json:"vm"`
	KeyID   cut.KeyID    `json:"keyId"` // of the vault
	Key     string       `json:"key"`   // data key, base64: a secret until the seed is complete
	Disks   []diskState  `json:"disks"`
	Begun   time.Time    `json:"begun"`
}

type diskState struct {
	cut.Disk
	Path string `json:"path"`
}

const (
	stateVersion = 1
	stateName    = "seed.json"
)

// maker is one run of Make.
type maker struct {
	cfg    Config
	st     state
	key    cut.EpochKey
	images []image
	log    *fill.Log

	mu   sync.Mutex
	done int64
}

// Make makes a seed, or goes on with one that the state directory knows. When it
// has succeeded, the state directory is gone.
//
// Errors: an image that can't be read is dr.KindNotFound, dr.KindInvalid or
// dr.KindUnavailable and names the disk; an image whose size is not the one that
// was begun with is dr.CodeSeedMismatch; those of the store.
func Make(ctx context.Context, cfg Config) (_ Result, err error) {
	if err := cfg.Validate(); err != nil {
		return Result{}, err
	}
	cfg.Parallel = cmp.Or(cfg.Parallel, 2)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &maker{cfg: cfg}
	defer func() { err = errors.Join(err, m.close()) }()
	for _, d := range cfg.Disks {
		img, err := openImage(ctx, d)
		if err != nil {
			return Result{}, err
		}
		m.images = append(m.images, img)
	}
	resumed, err := m.begin()
	if err != nil {
		return Result{}, err
	}
	if err := m.open(ctx); err != nil {
		return Result{}, err
	}
	if err := m.tiles(ctx); err != nil {
		return Result{}, err
	}
	r, err := m.commit(ctx)
	if err != nil {
		return Result{}, err
	}
	r.Resumed = resumed
	if err := m.log.Close(); err != nil {
		return Result{}, durable.Error(op, cfg.Dir, err)
	}
	m.log = nil
	return r, durable.Error(op, cfg.Dir, os.RemoveAll(cfg.Dir)) // the data key with it
}

func (m *maker) close() error {
	var errs []error
	for _, img := range m.images {
		errs = append(errs, img.Close())
	}
	m.images = nil
	if m.log != nil {
		errs = append(errs, m.log.Close())
		m.log = nil
	}
	return errors.Join(errs...)
}

func (m *maker) step(label string) error {
	if m.cfg.Step != nil {
		return m.cfg.Step(label)
	}
	return nil
}

// begin loads the state of an earlier run, or makes a new one.
func (m *maker) begin() (resumed bool, err error) {
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return false, durable.Error(op, m.cfg.Dir, err)
	}
	path := filepath.Join(m.cfg.Dir, stateName)
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		m.key = cut.NewEpochKey()
		m.st = state{Version: stateVersion, Machine: dr.MachineID(uuid.NewString()), VM: m.cfg.VM, KeyID: m.cfg.VaultKey.KeyID(),
			Key: base64.StdEncoding.EncodeToString(m.key[:]), Begun: m.cfg.Now().UTC()}
		for i, d := range m.cfg.Disks {
			m.st.Disks = append(m.st.Disks, diskState{cut.Disk{Index: uint16(i), ID: d.ID, Size: m.images[i].Size()}, d.Path})
		}
		if raw, err = json.MarshalIndent(m.st, "", " "); err != nil {
			return false, dr.Errorf(dr.KindInternal, op, "encode state: %w", err)
		}
		if err := durable.Replace(path, raw, 0o600); err != nil {
			return false, err
		}
	case err != nil:
		return false, dr.Errorf(dr.KindUnavailable, op, "read the state of the seed: %w", err)
	default:
		resumed = true
		if err := m.load(path, raw); err != nil {
			return false, err
		}
	}
	if m.log, err = fill.Open(filepath.Join(m.cfg.Dir, "tiles")); err != nil {
		return false, err
	}
	return resumed, m.step("state")
}

// load checks that the state belongs to what is to be made now.
func (m *maker) load(path string, raw []byte) error {
	again := func(format string, args ...any) error {
		return dr.New(dr.KindConflict, dr.CodeSeedMismatch, op, format, args...).
			WithHint("Give what the seed was begun with, or delete the directory %s to begin a new seed.", m.cfg.Dir)
	}
	if err := json.Unmarshal(raw, &m.st); err != nil || m.st.Version != stateVersion {
		return dr.Errorf(dr.KindCorrupt, op, "%s is not the state of a seed, or of another version", path).WithHint("Delete the directory %s to begin a new seed.", m.cfg.Dir)
	}
	key, err := base64.StdEncoding.DecodeString(m.st.Key)
	if err != nil || len(key) != len(m.key) {
		return dr.Errorf(dr.KindCorrupt, op, "%s has no data key", path).WithHint("Delete the directory %s to begin a new seed.", m.cfg.Dir)
	}
	copy(m.key[:], key)
	switch {
	case m.st.KeyID != m.cfg.VaultKey.KeyID():
		return again("the seed was begun for a vault with the key %s, this one has %s", m.st.KeyID, m.cfg.VaultKey.KeyID())
	case m.st.VM != m.cfg.VM || len(m.st.Disks) != len(m.cfg.Disks):
		return again("the seed was begun for the VM %q with %d disks", m.st.VM, len(m.st.Disks))
	}
	for i, d := range m.st.Disks {
		if d.ID != m.cfg.Disks[i].ID || d.Size != m.images[i].Size() {
			return again("the seed was begun with the disk %s of %d bytes, now disk %s has %d", d.ID, d.Size, m.cfg.Disks[i].ID, m.images[i].Size())
		}
	}
	return nil
}

// open makes the sealed key and the generation known to the store.
func (m *maker) open(ctx context.Context) error {
	key := cut.KeyObject(m.st.Machine, epoch)
	_, err := m.cfg.Bucket.Head(ctx, key)
	if errors.Is(err, objstore.ErrNotExist) {
		var wrap []byte
		if wrap, err = cut.SealEpochKey(m.cfg.VaultKey, m.st.Machine, epoch, m.key); err == nil {
			err = m.put(ctx, key, wrap)
		}
	}
	if err != nil {
		return store.ObjectError(op, key, err)
	}
	if err := m.step("key"); err != nil {
		return err
	}
	err = store.WriteGeneration(ctx, m.cfg.Bucket, cut.GenInfo{Machine: m.st.Machine, Gen: generation, Agent: "seed", Reason: "seed", Time: m.st.Begun})
	if err != nil {
		return err
	}
	return m.step("generation")
}

func (m *maker) put(ctx context.Context, key string, raw []byte) error {
	sum := sha256.Sum256(raw)
	return m.cfg.Bucket.PutNew(ctx, key, bytes.NewReader(raw), int64(len(raw)), &sum)
}

type job struct {
	disk  cut.Disk
	img   image
	tile  uint32
	first int64
	size  int64
}

// tiles stores the images of all tiles that are not stored yet.
func (m *maker) tiles(ctx context.Context) error {
	var total int64
	var todo []job
	for i, d := range m.st.Disks {
		total += d.Size
		for off := int64(0); off < d.Size; off += cut.TileSize {
			j := job{d.Disk, m.images[i], uint32(off / cut.TileSize), off, min(cut.TileSize, d.Size-off)}
			if noted, _ := m.log.State(d.Index, j.tile, 0); noted {
				m.done += j.size
				continue
			}
			todo = append(todo, j)
		}
	}
	tell := func() {
		if m.cfg.Progress != nil {
			m.cfg.Progress(m.done, total)
		}
	}
	tell()
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(m.cfg.Parallel)
	for _, j := range todo {
		if ectx.Err() != nil {
			break
		}
		eg.Go(func() error {
			t, err := m.tile(ectx, j)
			if err != nil {
				return err
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if err := m.log.Note(t, !t.Zero); err != nil {
				return err
			}
			m.done += j.size
			tell()
			return m.step("tile-noted")
		})
	}
	return errors.Join(eg.Wait(), ctx.Err())
}

// readUnit is how much of an image is read at a time.
const readUnit = 4 << 20

// tile seals and stores the image of one tile.
func (m *maker) tile(ctx context.Context, j job) (fill.Tile, error) {
	t := fill.Tile{Disk: j.disk.Index, Tile: j.tile, Zero: true}
	ranges, err := dataRanges(ctx, j.img, j.first, j.size)
	if err != nil {
		return t, imageError(j.disk.ID, err)
	}
	if len(ranges) == 0 {
		return t, nil
	}
	var buf bytes.Buffer
	w, err := cut.NewWriter(&buf, cut.WriterConfig{
		Header: cut.Header{Kind: cut.KindTile, Machine: m.st.Machine, Gen: generation, KeyEpoch: epoch, Disk: j.disk.Index, Tile: j.tile}, Key: m.key, Codec: m.cfg.Codec,
	})
	if err != nil {
		return t, err
	}
	defer w.Abort()
	p := make([]byte, readUnit)
	for _, r := range ranges {
		for off := r.off; off < r.end; off += readUnit {
			p := p[:min(readUnit, r.end-off)]
			if err := j.img.ReadAt(ctx, p, off); err != nil {
				return t, imageError(j.disk.ID, err)
			}
			if err := w.Data(ctx, j.disk.Index, off, p); err != nil {
				return t, err
			}
		}
	}
	sealed, err := w.Close(nil)
	if err != nil || sealed.DataBytes == 0 {
		return t, err
	}
	if err := m.put(ctx, sealed.Name.Key(), buf.Bytes()); err != nil {
		return t, store.ObjectError(op, sealed.Name.Key(), err)
	}
	return fill.Tile{Disk: j.disk.Index, Tile: j.tile, UID: sealed.Name.UID, Gen: generation, Size: sealed.Size, BLAKE3: sealed.BLAKE3, Data: sealed.DataBytes}, m.step("tile-stored")
}

func imageError(disk string, err error) error {
	var known *dr.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	return dr.Errorf(dr.KindUnavailable, op, "read the image of disk %s: %w", disk, err).WithHint("See whether the image is damaged ('qemu-img check'), then run the command again: it goes on.")
}

// commit writes the cut that makes the tiles a seed. One that an earlier run has
// written counts: nobody else knows this machine.
func (m *maker) commit(ctx context.Context) (Result, error) {
	r := Result{Machine: m.st.Machine}
	c := &cut.Commit{Gen: generation, Time: m.cfg.Now().UTC(), Consistency: dr.CrashConsistent, Base: true, Seed: true, Note: "seed", VM: cut.VMRecord{Name: m.st.VM}}
	for _, d := range m.st.Disks {
		r.Disks = append(r.Disks, d.Disk)
		for ref := range m.log.Refs(d.Index) {
			c.Tiles = append(c.Tiles, ref)
			r.Stored += ref.Size
		}
		c.Stats.DataBytes += m.log.Data(d.Index)
	}
	slices.SortFunc(c.Tiles, func(a, b cut.TileRef) int { return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Tile, b.Tile)) })
	c.Disks, c.Stats.StoredBytes, r.Tiles = r.Disks, r.Stored, len(c.Tiles)
	var buf bytes.Buffer
	w, err := cut.NewWriter(&buf, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: m.st.Machine, Gen: generation, KeyEpoch: epoch, Seed: true}, Key: m.key})
	if err != nil {
		return r, err
	}
	defer w.Abort()
	sealed, err := w.Close(c)
	if err != nil {
		return r, err
	}
	if err := m.step("sealed"); err != nil {
		return r, err
	}
	r.Ref = c.Ref(sealed.ChainHash)
	switch err := m.put(ctx, sealed.Name.Key(), buf.Bytes()); {
	case errors.Is(err, objstore.ErrExists):
		st := store.New(store.Config{Bucket: m.cfg.Bucket, Keys: store.StaticKeys{epoch: m.key}})
		have, err := st.ReadCut(ctx, m.st.Machine, generation, 0)
		if err != nil {
			return r, err
		}
		r.Ref = have.Ref
	case err != nil:
		return r, store.ObjectError(op, sealed.Name.Key(), err)
	}
	return r, m.step("committed")
}
