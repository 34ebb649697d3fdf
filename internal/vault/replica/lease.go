package replica

import (
	"context"
	"errors"
	"time"

	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/vaultdb"
)

// leaseLifetime is how long a reader's lease holds without being renewed. It
// outlives a vault that is restarted, and bounds what a vault that never comes
// back holds up.
const leaseLifetime = 2 * time.Hour

// Reader is somebody who reads a point.
type Reader struct {
	UID     string // the same for all renewals
	Machine dr.MachineID
	Gen     dr.Generation
	N       uint64
	Holder  string // for people
}

// ServingLease is the reader that a serving stands for.
func ServingLease(s vaultdb.Serving) Reader {
	return Reader{UID: s.ID, Machine: s.Machine, Gen: s.Gen, N: s.N, Holder: "serving " + s.ID + " (" + string(s.Kind) + ") on agent " + string(s.Agent)}
}

// WarmLease is the reader that a warm replica stands for.
func WarmLease(w vaultdb.Warm) Reader {
	return Reader{UID: w.Serving, Machine: w.Machine, Gen: w.Gen, N: w.N, Holder: "warm replica of item " + string(w.Item) + " on agent " + string(w.Agent)}
}

// Lease keeps what a point needs from being deleted, from now on for at least
// half of leaseLifetime. It costs nothing while the lease that this process
// made before lasts that long.
func (r *Replicas) Lease(ctx context.Context, reader Reader) error {
	now := r.st.Now()
	id := string(reader.Machine) + "/" + dr.PointName(reader.Gen, reader.N) + "/" + reader.UID
	r.mu.Lock()
	until := r.leases[id]
	r.mu.Unlock()
	if until.Sub(now) > leaseLifetime/2 {
		return nil
	}
	until = now.Add(leaseLifetime).Truncate(time.Second)
	err := compact.PutLease(ctx, r.cfg.Bucket, cut.Lease{Machine: reader.Machine, UID: reader.UID, Gen: reader.Gen, N: reader.N, Holder: reader.Holder, Time: now, Expires: until})
	switch k := dr.KindOf(err); {
	case err == nil, errors.Is(err, objstore.ErrExists): // another replica of the vault was as quick
	case k == dr.KindForbidden, k == dr.KindExhausted:
		// From a store that takes nothing nothing is deleted either: no plan can be
		// written. A recovery must not wait for it.
		r.st.Log.Warn("no lease could be put, reading goes on without", "machine", reader.Machine, "holder", reader.Holder, "err", err)
	default:
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, t := range r.leases {
		if t.Before(now) {
			delete(r.leases, k)
		}
	}
	r.leases[id] = until
	return nil
}

// RenewLeases keeps the points of all servings that still read the store, and
// of the views that digests are made from.
func (r *Replicas) RenewLeases(ctx context.Context) error {
	all, err := vaultdb.Servings(ctx, r.st.Q(), "")
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all {
		if !s.Local {
			errs = append(errs, r.Lease(ctx, ServingLease(s)))
		}
	}
	warm, err := vaultdb.Warms(ctx, r.st.Q())
	if err != nil {
		return err
	}
	for _, w := range warm {
		if w.Gen > 0 && (w.Gen != w.Held.Gen || w.N != w.Held.N) {
			errs = append(errs, r.Lease(ctx, WarmLease(w)))
		}
	}
	for _, x := range r.views.readers() {
		errs = append(errs, r.Lease(ctx, x))
	}
	return errors.Join(errs...)
}
