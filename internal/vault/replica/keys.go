package replica

import (
	"context"
	"errors"

	"holdfast/internal/dr"
	"holdfast/internal/store"
)

// CheckKeys opens the data keys that a point needs, anew from the store with
// the vault's private key: nothing that is only in memory counts. complete (a
// drill) opens the whole point and every key of the machine, and fails with
// dr.CodeKeyMismatch naming the key for any that does not open. Otherwise only
// the point's own key has to open, so that a real failover is not held up by
// a key that it may not need: the others are the second result, to be told.
func (r *Replicas) CheckKeys(ctx context.Context, m dr.MachineID, gen dr.Generation, n uint64, complete bool) (warn, err error) {
	const op = "vault.CheckKeys"
	fresh := store.NewKeyring(r.cfg.Bucket, r.cfg.Key)
	s := store.New(store.Config{Bucket: r.cfg.Bucket, Keys: fresh})
	name := func(err error) error {
		if dr.CodeOf(err) != dr.CodeKeyMismatch {
			return err
		}
		return dr.New(dr.KindOf(err), dr.CodeKeyMismatch, op, "recovery point %s of machine %s needs a data key that the vault's key %s does not open: %w",
			dr.PointName(gen, n), m, r.cfg.Key.KeyID(), err).
			WithHint("give the vault the private key that the replica was made for (see docs/keys.md), or recover with 'holdfast store' and that key")
	}
	if complete {
		v, err := s.OpenPoint(ctx, m, gen, n)
		if err != nil {
			return nil, name(err)
		}
		if err := v.Close(); err != nil {
			return nil, err
		}
	} else {
		h, err := s.Names(ctx, m)
		if err != nil {
			return nil, err
		}
		for _, c := range h.Path {
			if c.Gen == gen && c.N == n {
				if _, err := s.ReadElement(ctx, m, c); err != nil {
					return nil, name(err)
				}
			}
		}
	}
	epochs, err := s.Epochs(ctx, m)
	if err != nil {
		return nil, err
	}
	var bad []error
	for _, e := range epochs {
		if _, err := fresh.EpochKey(ctx, m, e); err != nil {
			if k := dr.KindOf(err); k == dr.KindUnavailable || ctx.Err() != nil {
				return nil, err
			}
			bad = append(bad, name(err))
		}
	}
	if complete {
		return nil, errors.Join(bad...)
	}
	return errors.Join(bad...), nil
}
