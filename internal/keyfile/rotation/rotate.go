package rotation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// Config says how epoch keys are sealed again.
type Config struct {
	// Prove is the new key's private half, or a key store that has it. With it
	// every object that counts as sealed to the new key is opened and compared,
	// also those that were there before. Nil: what is there already is only checked from outside.
	Prove cut.KeyOpener
	// Verify, if set, proves that an epoch key is the right one before it is
	// sealed again, for instance by reading a segment. It matters where an external
	// key store opened the key: a private key at hand proves it by itself.
	Verify func(ctx context.Context, m dr.MachineID, epoch uint32, key cut.EpochKey) error
	// AcceptLeft changes the vault's key although some epoch keys can't be
	// sealed to it. Only the older keys will open those.
	AcceptLeft bool
	Progress   func(Progress) // called by one goroutine at a time; may be nil
	Parallel   int            // epochs at a time, 1..64; 0 = 4
	Time       time.Time      // for the description; zero = now
	Software   string         // version of Holdfast, for the description
}

// Validate checks the ranges.
func (c Config) Validate() error {
	if c.Parallel < 0 || c.Parallel > maxParallel {
		return invalid("rotation.Config", "%d epochs at a time: at most %d are allowed", c.Parallel, maxParallel)
	}
	return nil
}

// Progress is told after every machine.
type Progress struct {
	Pass           int // 1; 2 = what was sealed to the old key meanwhile
	Machine        dr.MachineID
	Done, Machines int // machines
	Sealed, Left   int // epochs so far in this pass
}

// Result is what was done.
type Result struct {
	From, To cut.KeyID
	Machines int
	Sealed   int       // epoch keys sealed again by this call
	Present  int       // epoch keys that were sealed to the new key already
	Left     []Problem // epoch keys that are not sealed to the new key, in order
	// Vault is the newest description of the vault after the call.
	Vault cut.VaultInfo
}

// Changed reports whether the vault's key is the new one.
func (r Result) Changed() bool { return r.Vault.KeyID == r.To }

// Rewrap seals every epoch key of every machine again to another public key, in
// objects of their own beside the old ones, and changes nothing else: the way
// to give a second key, kept in escrow, the power to open everything up to now.
// What the opener can't open is in Left and no error. It can be repeated at any
// time, and goes on where it was stopped.
func Rewrap(ctx context.Context, bucket objstore.Bucket, old cut.KeyOpener, to cut.VaultPublicKey, cfg Config) (Result, error) {
	const op = "rotation.Rewrap"
	res := Result{From: old.ID(), To: to.KeyID()}
	if err := checkRotation(op, old, to, &cfg); err != nil {
		return res, err
	}
	var err error
	if res.Vault, err = newestVault(ctx, bucket); err != nil {
		return res, err
	}
	err = rewrapAll(ctx, bucket, old, to, cfg, 1, &res)
	return res, err
}

// Rotate makes another key pair the vault's: it seals every epoch key again to
// the new public key, then writes the next description of the vault, and then seals
// again what agents have sealed to the old key meanwhile. Agents that have not
// heard of the new key yet go on sealing to the old one, so it is
// repeated until Left stays empty and all agents have the new key.
//
// It only creates objects. A crash, or an error, at any step leaves a store that
// the old key opens as before; the same call again goes on where it was stopped. The old
// key is needed until Check has proved the new one on every machine.
//
// Errors: dr.CodeKeysLeft, with the list in Result.Left: the vault's key was not
// changed, or was changed before; see AcceptLeft. dr.CodeKeyRotation: the old key
// is not the vault's, somebody else rotates to a third key, or the new key fails its
// proof. Anything else means that the store or the key store could not be asked.
func Rotate(ctx context.Context, bucket objstore.Bucket, old cut.KeyOpener, to cut.VaultPublicKey, cfg Config) (Result, error) {
	const op = "rotation.Rotate"
	res := Result{From: old.ID(), To: to.KeyID()}
	if err := checkRotation(op, old, to, &cfg); err != nil {
		return res, err
	}
	var err error
	if res.Vault, err = newestVault(ctx, bucket); err != nil {
		return res, err
	}
	if !res.Changed() && res.Vault.KeyID != res.From {
		return res, dr.New(dr.KindPrecondition, dr.CodeKeyRotation, op, "the vault's key is %s, not %s", res.Vault.KeyID, res.From).
			WithHint("Rotate from the vault's key. To seal what only an older key opens to the newest one, rotate from the older to the newest.")
	}
	if err := rewrapAll(ctx, bucket, old, to, cfg, 1, &res); err != nil {
		return res, err
	}
	if !res.Changed() {
		if len(res.Left) > 0 && !cfg.AcceptLeft {
			return res, left(op, res)
		}
		if res.Vault, err = describe(ctx, op, bucket, res.Vault, to, cfg); err != nil {
			return res, err
		}
		if err := rewrapAll(ctx, bucket, old, to, cfg, 2, &res); err != nil {
			return res, err
		}
	}
	if len(res.Left) > 0 && !cfg.AcceptLeft {
		return res, left(op, res)
	}
	return res, nil
}

func left(op string, res Result) error {
	return dr.New(dr.KindPrecondition, dr.CodeKeysLeft, op, "%d epoch keys are not sealed to vault key %s, first epoch %d of machine %s: %w", len(res.Left), res.To, res.Left[0].Epoch, res.Left[0].Machine, res.Left[0].Err).
		WithHint("Rotate again with the key that they are sealed to. What is damaged no key opens: accept that it is left, and resynchronize those machines.")
}

func checkRotation(op string, old cut.KeyOpener, to cut.VaultPublicKey, cfg *Config) error {
	switch {
	case to.IsZero():
		return invalid(op, "there is no new public key")
	case old.ID() == to.KeyID():
		return invalid(op, "the new key %s is the old one", old.ID())
	case cfg.Prove != nil && cfg.Prove.ID() != to.KeyID():
		return dr.New(dr.KindInvalid, dr.CodeKeyMismatch, op, "the key for the proof is %s, the new public key is %s", cfg.Prove.ID(), to.KeyID())
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = parallel
	}
	if cfg.Time.IsZero() {
		cfg.Time = time.Now()
	}
	return cfg.Validate()
}

// rewrapAll is one pass over all machines. Pass 2 counts what is new only, and lists anew what is left.
func rewrapAll(ctx context.Context, bucket objstore.Bucket, old cut.KeyOpener, to cut.VaultPublicKey, cfg Config, pass int, res *Result) error {
	ids, err := machines(ctx, bucket)
	if err != nil {
		return err
	}
	res.Machines, res.Left = len(ids), nil
	sealedBefore := res.Sealed
	for n, m := range ids {
		epochs, err := listWraps(ctx, bucket, m)
		if err != nil {
			return err
		}
		out := make([]outcome, len(epochs))
		err = each(ctx, epochs, cfg.Parallel, func(ctx context.Context, i int, e epochWraps) (err error) {
			out[i], err = rewrap(ctx, bucket, e, old, to, cfg)
			return err
		})
		for _, o := range out {
			switch {
			case len(o.problems) > 0:
				res.Left = append(res.Left, o.problems...)
			case o.sealed:
				res.Sealed++
			case o.present && pass == 1:
				res.Present++
			}
		}
		if err != nil {
			return err
		}
		if cfg.Progress != nil {
			cfg.Progress(Progress{Pass: pass, Machine: m, Done: n + 1, Machines: len(ids), Sealed: res.Sealed - sealedBefore, Left: len(res.Left)})
		}
	}
	return nil
}

// outcome is what became of one epoch.
type outcome struct {
	sealed, present bool
	problems        []Problem // why it is not sealed to the new key
}

// rewrap sees to it that one epoch is sealed to the new key.
func rewrap(ctx context.Context, bucket objstore.Bucket, e epochWraps, old cut.KeyOpener, to cut.VaultPublicKey, cfg Config) (outcome, error) {
	target := cut.ObjectName{Class: cut.ClassKey, Machine: e.machine, Epoch: e.epoch, KeyID: to.KeyID()}
	if slices.Contains(e.names, target) {
		_, _, err := readWrap(ctx, bucket, target)
		switch {
		case err != nil && ofObject(err): // nothing is ever replaced
			return outcome{problems: []Problem{e.inTheWay(target.Key(), err)}}, nil
		case err != nil:
			return outcome{}, err
		case cfg.Prove == nil:
			return outcome{present: true}, nil
		}
	}
	there, _, _, err := e.sealedTo(ctx, bucket, to.KeyID())
	if err != nil {
		return outcome{}, err
	}
	if len(there) > 0 && cfg.Prove == nil { // an agent that has the new key sealed it
		return outcome{present: true}, nil
	}
	key, opened, problems, err := e.open(ctx, bucket, old)
	defer clear(key[:])
	switch {
	case err != nil:
		return outcome{}, err
	case len(there) > 0:
		return prove(ctx, e, there, key, opened, cfg.Prove)
	case !opened:
		return outcome{problems: problems}, nil
	}
	if cfg.Verify != nil {
		if err := cfg.Verify(ctx, e.machine, e.epoch, key); err != nil {
			if ofObject(err) {
				return outcome{problems: []Problem{{e.machine, e.epoch, cut.KeyObject(e.machine, e.epoch), err}}}, nil
			}
			return outcome{}, err
		}
	}
	return sealTo(ctx, bucket, e, target, to, key, cfg.Prove)
}

// sealTo creates the epoch's object for the new key.
func sealTo(ctx context.Context, bucket objstore.Bucket, e epochWraps, target cut.ObjectName, to cut.VaultPublicKey, key cut.EpochKey, proof cut.KeyOpener) (outcome, error) {
	const op = "rotation.Rotate"
	wrap, err := cut.SealEpochKey(to, e.machine, e.epoch, key)
	if err != nil {
		return outcome{}, err
	}
	if proof != nil { // before it is stored, because it can't be replaced
		o, err := prove(ctx, e, []wrapped{{target.Key(), wrap}}, key, true, proof)
		if err != nil {
			return outcome{}, err
		}
		if len(o.problems) > 0 {
			return outcome{}, dr.New(dr.KindPrecondition, dr.CodeKeyRotation, op, "the new key %s does not open what was sealed to it just now: %w", to.KeyID(), o.problems[0].Err).
				WithHint("Do not use this key. Nothing was written for this epoch.")
		}
	}
	mine, err := create(ctx, bucket, target.Key(), wrap)
	if err != nil {
		return outcome{}, storeError(op, target.Key(), err)
	}
	if mine {
		return outcome{sealed: true}, nil
	}
	// Another one was there first, from a second rotation.
	b, _, err := readWrap(ctx, bucket, target)
	switch {
	case err != nil && ofObject(err):
		return outcome{problems: []Problem{e.inTheWay(target.Key(), err)}}, nil
	case err != nil:
		return outcome{}, err
	case proof != nil:
		return prove(ctx, e, []wrapped{{target.Key(), b}}, key, true, proof)
	}
	return outcome{present: true}, nil
}

// prove opens what is sealed to the new key. want is the epoch's key, if known.
func prove(ctx context.Context, e epochWraps, there []wrapped, want cut.EpochKey, known bool, by cut.KeyOpener) (outcome, error) {
	for _, w := range there {
		got, err := by.OpenEpochKey(ctx, e.machine, e.epoch, w.bytes)
		same := got == want
		clear(got[:])
		switch {
		case err != nil && !ofObject(err):
			return outcome{}, err
		case err == nil && known && !same:
			err = dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "rotation.Rotate", "object %q holds another key of epoch %d than the old key opens", w.object, e.epoch)
		}
		if err != nil {
			return outcome{problems: []Problem{e.inTheWay(w.object, err)}}, nil
		}
	}
	return outcome{present: true}, nil
}

// inTheWay is the problem of an object that keeps a right one from being made.
func (e epochWraps) inTheWay(object string, err error) Problem {
	if object != cut.KeyObject(e.machine, e.epoch) { // the agent's own may be the only one: no advice to delete it
		err = dr.New(dr.KindOf(err), dr.CodeOf(err), "rotation.Rotate", "object %q does not hold the epoch's key and is in the way: %w", object, err).
			WithHint("Find out who wrote it, delete the object by hand and rotate again. The other objects of the epoch stay.")
	}
	return Problem{e.machine, e.epoch, object, err}
}

// create creates an object; mine says whether it has these bytes. An outcome that
// is unknown is settled by reading it.
func create(ctx context.Context, bucket objstore.Bucket, object string, b []byte) (mine bool, err error) {
	sum := sha256.Sum256(b)
	err = bucket.PutNew(ctx, object, bytes.NewReader(b), int64(len(b)), &sum)
	if err == nil {
		return true, nil
	}
	if ctx.Err() != nil || !errors.Is(err, objstore.ErrExists) && !errors.Is(err, objstore.ErrUnavailable) {
		return false, err
	}
	have, rerr := objstore.ReadAll(ctx, bucket, object, maxSmall)
	switch {
	case errors.Is(rerr, objstore.ErrTooLarge):
		return false, nil
	case rerr != nil: // not there, or could not be asked: what the put said counts
		return false, err
	}
	return bytes.Equal(have, b), nil
}

// newestVault reads all descriptions of the vault.
func newestVault(ctx context.Context, r objstore.Reader) (cut.VaultInfo, error) {
	const op = "rotation.newestVault"
	names := []cut.ObjectName{{Class: cut.ClassVault}}
	err := r.List(ctx, cut.VaultKeysPrefix(), func(i objstore.Info) error {
		if o, err := cut.ParseObject(i.Key); err == nil && o.Class == cut.ClassVaultKey {
			names = append(names, o)
		}
		return nil
	})
	if err != nil {
		return cut.VaultInfo{}, storeError(op, cut.VaultKeysPrefix(), err)
	}
	var all []cut.VaultInfo
	for _, name := range names {
		b, err := objstore.ReadAll(ctx, r, name.Key(), maxSmall)
		if err != nil {
			return cut.VaultInfo{}, storeError(op, name.Key(), err)
		}
		v, err := cut.ParseVaultKey(name, b)
		if err != nil {
			return cut.VaultInfo{}, err
		}
		all = append(all, v)
	}
	return cut.NewestVault(all)
}

// describe writes the next description of the vault, unless it is there.
func describe(ctx context.Context, op string, bucket objstore.Bucket, last cut.VaultInfo, to cut.VaultPublicKey, cfg Config) (cut.VaultInfo, error) {
	next := last
	next.Seq, next.Previous = last.Seq+1, last.KeyID
	next.PublicKey, next.Created = to.Text(), cfg.Time.UTC()
	if cfg.Software != "" {
		next.Software = cfg.Software
	}
	b, err := next.Marshal()
	if err != nil {
		return last, err
	}
	if _, err := create(ctx, bucket, next.Object(), b); err != nil {
		return last, storeError(op, next.Object(), err)
	}
	newest, err := newestVault(ctx, bucket)
	if err != nil {
		return last, err
	}
	if newest.KeyID != to.KeyID() {
		return newest, dr.New(dr.KindConflict, dr.CodeKeyRotation, op, "somebody else has changed the vault's key to %s meanwhile", newest.KeyID).
			WithHint("Find out who rotates. Nothing is lost: the epoch keys are sealed to both new keys. Then rotate from the vault's key.")
	}
	return newest, nil
}
