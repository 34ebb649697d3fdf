package rotation

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

const (
	maxSmall    = 64 << 10 // bytes of a sealed key or a description of the vault
	parallel    = 4        // epochs of a machine at a time
	maxParallel = 64
)

var errStop = errors.New("stop the listing")

// machines lists the ids of all machines in the store.
func machines(ctx context.Context, r objstore.Reader) ([]dr.MachineID, error) {
	var ids []dr.MachineID
	prefix := cut.MachinesPrefix()
	for after := prefix; ; {
		var found dr.MachineID
		err := objstore.ListAfter(ctx, r, prefix, after, func(i objstore.Info) error {
			after = i.Key
			if o, err := cut.ParseObject(i.Key); err == nil {
				found = o.Machine
				return errStop
			}
			return nil // not ours: ignored, as every reader does
		})
		if err != nil && !errors.Is(err, errStop) {
			return nil, storeError("rotation.machines", prefix, err)
		}
		if found == "" {
			return ids, nil
		}
		ids = append(ids, found)
		after = cut.MachinePrefix(found) + "~" // sorts after every key of the machine
	}
}

// epochWraps are the sealed keys of one epoch: the agent's and those sealed again.
type epochWraps struct {
	machine dr.MachineID
	epoch   uint32
	names   []cut.ObjectName
}

// listWraps lists the sealed keys of a machine by epoch.
func listWraps(ctx context.Context, r objstore.Reader, m dr.MachineID) ([]epochWraps, error) {
	byEpoch := map[uint32][]cut.ObjectName{}
	err := r.List(ctx, cut.KeyPrefix(m), func(i objstore.Info) error {
		if o, err := cut.ParseObject(i.Key); err == nil && o.Class == cut.ClassKey {
			byEpoch[o.Epoch] = append(byEpoch[o.Epoch], o)
		}
		return nil
	})
	if err != nil {
		return nil, storeError("rotation.listWraps", cut.KeyPrefix(m), err)
	}
	var all []epochWraps
	for _, e := range slices.Sorted(maps.Keys(byEpoch)) {
		all = append(all, epochWraps{m, e, byEpoch[e]})
	}
	return all, nil
}

// readWrap reads a sealed key and says to which vault key it is sealed.
func readWrap(ctx context.Context, r objstore.Reader, name cut.ObjectName) ([]byte, cut.KeyID, error) {
	b, err := objstore.ReadAll(ctx, r, name.Key(), maxSmall)
	if err != nil {
		return nil, cut.KeyID{}, storeError("rotation.readWrap", name.Key(), err)
	}
	id, err := cut.WrapKeyID(name, b)
	return b, id, err
}

// Problem is a sealed epoch key that a key does not open, and why.
type Problem struct {
	Machine dr.MachineID
	Epoch   uint32
	Object  string // the sealed key; the agent's own where none is sealed to the key
	Err     error
}

// ofObject reports whether the error is about the object and not about asking:
// the work goes on with the others.
func ofObject(err error) bool {
	switch dr.KindOf(err) {
	case dr.KindCorrupt, dr.KindUnsupported:
		return true
	case dr.KindForbidden:
		return dr.CodeOf(err) == dr.CodeKeyMismatch
	}
	return false
}

// notSealedTo is the problem of an epoch that has no sealed key for a key.
func (e epochWraps) notSealedTo(id cut.KeyID, have []cut.KeyID) error {
	return dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "rotation.open", "epoch %d of machine %s is not sealed to vault key %s, only to %v", e.epoch, e.machine, id, have).
		WithHint("Run the rotation again with one of the keys named, or use that key.")
}

// sealedTo returns the epoch's wraps that are sealed to id, and problems of those that
// can't be read as what they are. have are the other keys.
func (e epochWraps) sealedTo(ctx context.Context, r objstore.Reader, id cut.KeyID) (found []wrapped, bad []Problem, have []cut.KeyID, err error) {
	for _, name := range e.names {
		if name.KeyID != (cut.KeyID{}) && name.KeyID != id {
			have = append(have, name.KeyID)
			continue // its name says whose it is
		}
		b, to, err := readWrap(ctx, r, name)
		switch {
		case dr.KindOf(err) == dr.KindNotFound:
			continue // removed since it was listed
		case err != nil && !ofObject(err):
			return nil, nil, nil, err
		case err != nil:
			bad = append(bad, Problem{e.machine, e.epoch, name.Key(), err})
		case to == id:
			found = append(found, wrapped{name.Key(), b})
		default:
			have = append(have, to)
		}
	}
	return found, bad, have, nil
}

type wrapped struct {
	object string
	bytes  []byte
}

// open opens the epoch's key by one of its wraps that are sealed to the opener's
// key. Every one of those is opened, and all have to give the same key. opened
// says whether there is a key; problems name wraps that do not do what they should.
func (e epochWraps) open(ctx context.Context, r objstore.Reader, by cut.KeyOpener) (key cut.EpochKey, opened bool, bad []Problem, err error) {
	found, bad, have, err := e.sealedTo(ctx, r, by.ID())
	if err != nil {
		return key, false, nil, err
	}
	for _, w := range found {
		k, err := by.OpenEpochKey(ctx, e.machine, e.epoch, w.bytes)
		switch {
		case err != nil && !ofObject(err):
			return cut.EpochKey{}, false, nil, err
		case err != nil:
			bad = append(bad, Problem{e.machine, e.epoch, w.object, err})
		case opened && k != key:
			bad = append(bad, Problem{e.machine, e.epoch, w.object, dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "rotation.open", "object %q holds another key of epoch %d than its other objects", w.object, e.epoch)})
		default:
			key, opened = k, true
		}
	}
	if len(found)+len(bad) == 0 {
		bad = append(bad, Problem{e.machine, e.epoch, cut.KeyObject(e.machine, e.epoch), e.notSealedTo(by.ID(), have)})
	}
	return key, opened, bad, nil
}

// each calls fn for the epochs, n at a time, until one fails, and returns the
// first error. It has waited for all calls when it returns.
func each(ctx context.Context, epochs []epochWraps, n int, fn func(ctx context.Context, i int, e epochWraps) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wait sync.WaitGroup
	for range min(n, len(epochs)) {
		wait.Go(func() {
			for i := range next {
				if ctx.Err() != nil {
					continue
				}
				if err := fn(ctx, i, epochs[i]); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range epochs {
		next <- i
	}
	close(next)
	wait.Wait()
	return context.Cause(ctx)
}
