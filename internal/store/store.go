// Package store reads and verifies replicas: it turns the immutable objects of
// package cut in a bucket into recovery points, and a recovery point into the
// disks of a VM.
//
// What it promises:
//
//   - A recovery point is listed only if its cut and every cut it builds on
//     verify (chain of hashes, generation rules of docs/store-format.md). A
//     damaged or missing cut makes the points after it refused, with the
//     object's name, and leaves the older ones usable.
//   - What a View reads is exactly the source at that cut, or an error that
//     names the damaged object; never other bytes.
//   - Only the store and the epoch keys are needed; there is no database.
//
// It never writes except for the two objects that open a chain: vault.json
// and generation objects, both create-if-absent.
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// Config of a Store.
type Config struct {
	Bucket objstore.Reader // the read half is enough for everything but InitVault and WriteGeneration
	Keys   cut.Keyring     // opens segments; may be nil for listing machines only
	// FrameCache is how many bytes of decoded frames a View keeps (default 48 MiB).
	FrameCache int64
	// ChunkCache is how many bytes of stored ranges a View keeps (default 32 MiB).
	ChunkCache int64
	// ChunkSize is the unit of reading from the bucket, bytes (default 256 KiB). A
	// store behind a network wants 1 MiB.
	ChunkSize int64
	// TempDir is where large extent maps are kept while a View is open (default os.TempDir).
	TempDir string
	// MapMemory bounds what the maps of a View take in memory while they are made, bytes (default 64 MiB).
	MapMemory int64
	// Parallel bounds concurrent reads of the bucket (default 16).
	Parallel int
}

// Store reads replicas. It is safe for concurrent use and holds no resources.
type Store struct {
	cfg Config
}

// New returns a Store; it does no I/O.
func New(cfg Config) *Store {
	if cfg.FrameCache <= 0 {
		cfg.FrameCache = 48 << 20
	}
	if cfg.ChunkCache <= 0 {
		cfg.ChunkCache = 32 << 20
	}
	if cfg.ChunkSize <= 0 {
		cfg.ChunkSize = 256 << 10
	}
	if cfg.MapMemory <= 0 {
		cfg.MapMemory = 64 << 20
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 16
	}
	return &Store{cfg: cfg}
}

// maxSmall bounds the objects that are read whole without knowing their size.
const maxSmall = 1 << 20

// storeError maps a bucket's error to the domain. Absence is damage here: the
// caller knows that the object has to be there.
func storeError(op, key string, err error) error {
	var known *dr.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, objstore.ErrNotExist):
		return dr.New(dr.KindCorrupt, dr.CodeObjectMissing, op, "object %s is missing: %w", key, err)
	case refusals[objstore.CauseOf(err)].code != "":
		return Refusal(op, "object "+key, err)
	case errors.Is(err, objstore.ErrRange), errors.Is(err, objstore.ErrTooLarge), errors.Is(err, objstore.ErrMismatch):
		return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, op, "object %s has another size than it should: %w", key, err)
	case errors.Is(err, objstore.ErrReadOnly):
		return dr.New(dr.KindForbidden, dr.CodeStoreReadOnly, op, "object %s: %w", key, err)
	case errors.Is(err, objstore.ErrNoSpace):
		return dr.New(dr.KindExhausted, dr.CodeStoreFull, op, "object %s: %w", key, err)
	case errors.Is(err, objstore.ErrDenied):
		return dr.New(dr.KindForbidden, dr.CodeStoreUnreachable, op, "object %s: %w", key, err)
	}
	return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, op, "object %s: %w", key, err)
}

// refusals are the catalogue's words for why a store refuses. None of them says
// that anything is absent, not even that the container is: whoever asked for an
// object has not been answered. Only the missing role is "forbidden", because what
// does not need it goes on.
var refusals = map[objstore.Cause]struct {
	kind dr.Kind
	code dr.Code
}{
	objstore.CauseClock:     {dr.KindUnavailable, dr.CodeAzureClock},
	objstore.CauseFirewall:  {dr.KindUnavailable, dr.CodeAzureFirewall},
	objstore.CauseRole:      {dr.KindForbidden, dr.CodeAzureRole},
	objstore.CauseSignIn:    {dr.KindUnavailable, dr.CodeAzureSignIn},
	objstore.CauseKey:       {dr.KindUnavailable, dr.CodeAzureSignature},
	objstore.CauseContainer: {dr.KindUnavailable, dr.CodeAzureContainer},
	objstore.CauseThrottled: {dr.KindUnavailable, dr.CodeAzureThrottled},
}

// Refusal maps a refusal of the store whose cause is known and in the catalogue
// (objstore.CauseOf) to the domain's error; nil for any other error. what is
// whatever was asked for.
func Refusal(op, what string, err error) *dr.Error {
	r := refusals[objstore.CauseOf(err)]
	if r.code == "" {
		return nil
	}
	return dr.New(r.kind, r.code, op, "%s: %w", what, err)
}

// source is cut.Source over one object whose size is known.
type source struct {
	bucket objstore.Reader
	key    string
	size   int64
}

func (s *source) Size() int64 { return s.size }

func (s *source) ReadRange(ctx context.Context, off, length int64) ([]byte, error) {
	p := make([]byte, length)
	if err := readRange(ctx, s.bucket, s.key, p, off); err != nil {
		return nil, err
	}
	return p, nil
}

// readRange fills p from the object, or fails; fewer bytes are damage.
func readRange(ctx context.Context, b objstore.Reader, key string, p []byte, off int64) error {
	body, err := b.Get(ctx, key, off, int64(len(p)))
	if err != nil {
		return storeError("store.Read", key, err)
	}
	_, err = io.ReadFull(body, p)
	if err = errors.Join(err, body.Close()); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.Read", "object %s ends before byte %d", key, off+int64(len(p)))
		}
		return storeError("store.Read", key, err)
	}
	return nil
}

// ObjectError maps what a bucket says of an object that has to be there to the
// domain's errors; nil stays nil.
func ObjectError(op, key string, err error) error { return storeError(op, key, err) }

func (s *Store) readSmall(ctx context.Context, key string) ([]byte, error) {
	b, err := objstore.ReadAll(ctx, s.cfg.Bucket, key, maxSmall)
	return b, storeError("store.Read", key, err)
}

// VaultInfo reads whose store it is: vault.json, or the newest of the
// descriptions that rotations of the vault's key have added. A store without
// vault.json is dr.KindNotFound.
func (s *Store) VaultInfo(ctx context.Context) (cut.VaultInfo, error) {
	b, err := objstore.ReadAll(ctx, s.cfg.Bucket, cut.VaultObject(), maxSmall)
	if errors.Is(err, objstore.ErrNotExist) {
		return cut.VaultInfo{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "store.VaultInfo", "there is no %s: this is not a Holdfast store, or an empty one", cut.VaultObject())
	}
	if err != nil {
		return cut.VaultInfo{}, storeError("store.VaultInfo", cut.VaultObject(), err)
	}
	first, err := cut.ParseVaultInfo(b)
	if err != nil {
		return cut.VaultInfo{}, err
	}
	all := []cut.VaultInfo{first}
	err = s.cfg.Bucket.List(ctx, cut.VaultKeysPrefix(), func(i objstore.Info) error {
		name, err := cut.ParseObject(i.Key)
		if err != nil || name.Class != cut.ClassVaultKey {
			return nil
		}
		raw, err := s.readSmall(ctx, i.Key)
		if err != nil {
			return err
		}
		later, err := cut.ParseVaultKey(name, raw)
		all = append(all, later)
		return err
	})
	if err != nil {
		return cut.VaultInfo{}, storeError("store.VaultInfo", cut.VaultKeysPrefix(), err)
	}
	return cut.NewestVault(all)
}

// InitVault writes vault.json, or checks that the one there has the same vault
// id and key: two vaults never share a store.
func InitVault(ctx context.Context, b objstore.Bucket, info cut.VaultInfo) error {
	raw, err := info.Marshal()
	if err != nil {
		return err
	}
	err = putNew(ctx, b, cut.VaultObject(), raw)
	if !errors.Is(err, objstore.ErrExists) {
		return storeError("store.InitVault", cut.VaultObject(), err)
	}
	have, err := New(Config{Bucket: b}).VaultInfo(ctx)
	if err != nil {
		return err
	}
	if have.VaultID != info.VaultID || have.KeyID != info.KeyID {
		return dr.New(dr.KindConflict, dr.CodeKeyMismatch, "store.InitVault", "the store belongs to vault %s with key %s, not to vault %s with key %s",
			have.VaultID, have.KeyID, info.VaultID, info.KeyID)
	}
	return nil
}

// WriteGeneration creates a generation object before the generation is handed
// to an agent. Writing the same one again succeeds; another one under the same
// number is dr.CodeObjectConflict.
func WriteGeneration(ctx context.Context, b objstore.Bucket, g cut.GenInfo) error {
	raw, err := g.Marshal()
	if err != nil {
		return err
	}
	key := cut.GenObject(g.Machine, g.Gen)
	err = putNew(ctx, b, key, raw)
	if errors.Is(err, objstore.ErrExists) {
		have, rerr := objstore.ReadAll(ctx, b, key, maxSmall)
		if rerr != nil {
			return storeError("store.WriteGeneration", key, rerr)
		}
		if !bytes.Equal(have, raw) {
			return dr.New(dr.KindConflict, dr.CodeObjectConflict, "store.WriteGeneration", "generation %d of machine %s was opened already, with other content", g.Gen, g.Machine)
		}
		return nil
	}
	return storeError("store.WriteGeneration", key, err)
}

func putNew(ctx context.Context, b objstore.Bucket, key string, raw []byte) error {
	sum := sha256.Sum256(raw)
	return b.PutNew(ctx, key, bytes.NewReader(raw), int64(len(raw)), &sum)
}

// errStop ends a listing early.
var errStop = errors.New("stop listing")

// Machines lists the ids of all replicas, in order.
func (s *Store) Machines(ctx context.Context) ([]dr.MachineID, error) {
	var ids []dr.MachineID
	prefix := cut.MachinesPrefix()
	after := prefix
	for {
		var found dr.MachineID
		err := objstore.ListAfter(ctx, s.cfg.Bucket, prefix, after, func(i objstore.Info) error {
			after = i.Key
			if o, err := cut.ParseObject(i.Key); err == nil {
				found = o.Machine
				return errStop
			}
			return nil // not ours: ignored, as every reader does
		})
		if err != nil && !errors.Is(err, errStop) {
			return nil, storeError("store.Machines", prefix, err)
		}
		if found == "" {
			return ids, nil
		}
		ids = append(ids, found)
		after = cut.MachinePrefix(found) + "~" // sorts after every key of the machine
	}
}

// Keyring opens epoch keys with the vault's private key, or with whatever holds
// it, reading the sealed keys from the bucket and keeping the opened ones in memory.
type Keyring struct {
	bucket objstore.Reader
	opener cut.KeyOpener

	mu   sync.Mutex
	open map[string]cut.EpochKey
}

// NewKeyring returns a Keyring; it does no I/O.
func NewKeyring(b objstore.Reader, opener cut.KeyOpener) *Keyring {
	return &Keyring{bucket: b, opener: opener, open: map[string]cut.EpochKey{}}
}

// EpochKey implements cut.Keyring. It takes the key as the agent sealed it, and
// if that is sealed to another vault key the copy that a rotation has sealed to
// this one. A wrong private key is dr.CodeKeyMismatch.
func (k *Keyring) EpochKey(ctx context.Context, m dr.MachineID, epoch uint32) (cut.EpochKey, error) {
	name := cut.KeyObject(m, epoch)
	k.mu.Lock()
	key, ok := k.open[name]
	k.mu.Unlock()
	if ok {
		return key, nil
	}
	key, err := k.read(ctx, m, epoch, name)
	if err != nil {
		again, rerr := k.read(ctx, m, epoch, cut.WrapObject(m, epoch, k.opener.ID()))
		switch {
		case rerr == nil:
			key = again
		case dr.CodeOf(rerr) == dr.CodeObjectMissing:
			return cut.EpochKey{}, err // there is no copy for this key: the first answer counts
		default:
			return cut.EpochKey{}, errors.Join(err, rerr)
		}
	}
	k.mu.Lock()
	k.open[name] = key
	k.mu.Unlock()
	return key, nil
}

func (k *Keyring) read(ctx context.Context, m dr.MachineID, epoch uint32, name string) (cut.EpochKey, error) {
	wrap, err := objstore.ReadAll(ctx, k.bucket, name, maxSmall)
	if err != nil {
		return cut.EpochKey{}, storeError("store.EpochKey", name, err)
	}
	return k.opener.OpenEpochKey(ctx, m, epoch, wrap)
}

// Epochs lists the epochs whose sealed keys the machine has.
func (s *Store) Epochs(ctx context.Context, m dr.MachineID) ([]uint32, error) {
	var epochs []uint32
	err := s.cfg.Bucket.List(ctx, cut.KeyPrefix(m), func(i objstore.Info) error {
		if o, err := cut.ParseObject(i.Key); err == nil && o.Class == cut.ClassKey {
			epochs = append(epochs, o.Epoch)
		}
		return nil
	})
	slices.Sort(epochs)
	epochs = slices.Compact(epochs) // one that was sealed again counts once
	return epochs, storeError("store.Epochs", cut.KeyPrefix(m), err)
}

// StaticKeys is a cut.Keyring of known keys of one machine, by epoch.
type StaticKeys map[uint32]cut.EpochKey

// EpochKey implements cut.Keyring.
func (k StaticKeys) EpochKey(_ context.Context, m dr.MachineID, epoch uint32) (cut.EpochKey, error) {
	if key, ok := k[epoch]; ok {
		return key, nil
	}
	return cut.EpochKey{}, dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "store.EpochKey", "%s", fmt.Sprintf("no key for epoch %d of machine %s", epoch, m))
}
