package vault

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
	"holdfast/internal/vaultdb"
)

const (
	maxUploads     = 1000             // objects in one request
	maxObject      = int64(256) << 20 // bytes; a tile image of incompressible data with its index is far below
	uploadLifetime = 30 * time.Minute
	ticketLifetime = time.Hour
)

// writer finds the item of a machine and checks that the agent holds the
// generation. Anything else is dr.CodeGenerationFenced.
func (v *Vault) writer(ctx context.Context, agent dr.AgentID, machine string, gen uint32) (vaultdb.Item, error) {
	const op = "vault.writer"
	it, err := vaultdb.ItemByMachine(ctx, v.q(), dr.MachineID(machine))
	if dr.KindOf(err) == dr.KindNotFound {
		return it, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "machine %s is not protected any more", machine)
	}
	if err != nil {
		return it, outward(err)
	}
	gens, err := vaultdb.Generations(ctx, v.q(), it.Machine)
	if err != nil {
		return it, outward(err)
	}
	g, ok := current(it, gens)
	switch {
	case !ok || g.Gen != dr.Generation(gen):
		return it, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "generation %d of %s was taken over by generation %d", gen, it.VMName, it.Gen)
	case !g.Written || g.Agent != agent:
		return it, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "generation %d of %s is not this agent's", gen, it.VMName)
	}
	return it, nil
}

// Uploads authorises and signs create-only URLs for objects of the agent's own generation.
func (v *Vault) Uploads(ctx context.Context, agent dr.AgentID, r agentapi.UploadRequest) (agentapi.UploadResponse, error) {
	const op = "vault.Uploads"
	var out agentapi.UploadResponse
	if _, err := v.writer(ctx, agent, r.Machine, r.Generation); err != nil {
		return out, err
	}
	if v.cfg.Signer == nil {
		return out, dr.Errorf(dr.KindUnsupported, op, "this vault's store can't sign uploads")
	}
	if len(r.Objects) > maxUploads {
		return out, dr.Errorf(dr.KindInvalid, op, "%d objects in one request, at most %d are allowed", len(r.Objects), maxUploads)
	}
	expires := v.now().Add(uploadLifetime)
	for _, o := range r.Objects {
		if err := ownObject(op, o.Name, r.Machine, r.Generation); err != nil {
			return out, err
		}
		var sum [32]byte
		b, err := hex.DecodeString(o.SHA256)
		if err != nil || len(b) != len(sum) || o.Size <= 0 || o.Size > maxObject {
			return out, dr.Errorf(dr.KindInvalid, op, "object %s: size %d or digest %q is not valid", o.Name, o.Size, o.SHA256)
		}
		copy(sum[:], b)
		u, err := v.cfg.Signer.SignPut(ctx, o.Name, o.Size, sum, expires)
		if err != nil {
			return out, dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, op, "sign the upload of object %s: %w", o.Name, err)
		}
		out.URLs = append(out.URLs, agentapi.SignedURL{URL: u.URL, Headers: u.Headers, Expires: expires})
	}
	return out, nil
}

// ownObject accepts what the writer of a generation may create: its cuts,
// parts and tile images, and sealed keys of the machine.
func ownObject(op, key, machine string, gen uint32) error {
	o, err := cut.ParseObject(key)
	if err != nil {
		return err
	}
	switch o.Class {
	case cut.ClassCut, cut.ClassPart, cut.ClassTile:
		if string(o.Machine) == machine && o.Gen == dr.Generation(gen) {
			return nil
		}
	case cut.ClassKey:
		if string(o.Machine) == machine {
			return nil
		}
	}
	return dr.Errorf(dr.KindForbidden, op, "object %s is not the writer's of generation %d of machine %s", key, gen, machine)
}

// Head says which objects are there. It also answers a writer that has been
// fenced meanwhile, about its own generation.
func (v *Vault) Head(ctx context.Context, agent dr.AgentID, r agentapi.HeadRequest) (agentapi.HeadResponse, error) {
	const op = "vault.Head"
	var out agentapi.HeadResponse
	if len(r.Names) > maxUploads {
		return out, dr.Errorf(dr.KindInvalid, op, "%d names in one request, at most %d are allowed", len(r.Names), maxUploads)
	}
	gens, err := vaultdb.Generations(ctx, v.q(), dr.MachineID(r.Machine))
	if err != nil {
		return out, outward(err)
	}
	mine := false
	for _, g := range gens {
		mine = mine || g.Gen == dr.Generation(r.Generation) && g.Agent == agent
	}
	if !mine {
		return out, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "generation %d of machine %s is not this agent's", r.Generation, r.Machine)
	}
	for _, name := range r.Names {
		if err := ownObject(op, name, r.Machine, r.Generation); err != nil {
			return out, err
		}
		info, err := objstore.Digest(ctx, v.cfg.Bucket, name)
		switch {
		case errors.Is(err, objstore.ErrNotExist):
			out.Objects = append(out.Objects, agentapi.HeadObject{})
		case err != nil:
			return out, dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, op, "look for object %s: %w", name, err)
		default:
			out.Objects = append(out.Objects, agentapi.HeadObject{Exists: true, Size: info.Size, SHA256: hex.EncodeToString(info.SHA256[:])})
		}
	}
	return out, nil
}

// CommitCut lists a cut that the agent says it has committed: it is read from the
// store, must verify and continue the chain. Announcing it again succeeds,
// also after a takeover, if the cut is on the live chain.
func (v *Vault) CommitCut(ctx context.Context, agent dr.AgentID, r agentapi.CommitRequest) (agentapi.CommitResponse, error) {
	const op = "vault.CommitCut"
	m, gen := dr.MachineID(r.Machine), dr.Generation(r.Generation)
	out := agentapi.CommitResponse{Point: dr.PointName(gen, r.N)}
	_, err := vaultdb.PointByNumber(ctx, v.q(), m, gen, r.N)
	if err == nil {
		return out, nil
	}
	if dr.KindOf(err) != dr.KindNotFound {
		return out, outward(err)
	}
	it, err := v.writer(ctx, agent, r.Machine, r.Generation)
	if err != nil {
		return out, err
	}
	c, err := v.store.ReadCut(ctx, m, gen, r.N)
	if err != nil {
		return out, err
	}
	prev, err := vaultdb.LatestPoint(ctx, v.q(), m, "")
	if err != nil && dr.CodeOf(err) != dr.CodeNoRecoveryPoint {
		return out, outward(err)
	}
	if !continues(prev, err == nil, c) {
		// The vault may have missed some: look at what the store has.
		if err := v.reconcile(ctx, it, false); err != nil {
			return out, err
		}
	} else if err := v.list(ctx, it.ID, c); err != nil {
		return out, err
	}
	if _, err = vaultdb.PointByNumber(ctx, v.q(), m, gen, r.N); dr.KindOf(err) == dr.KindNotFound {
		return out, dr.New(dr.KindConflict, dr.CodeObjectConflict, op, "cut %s of %s does not continue its chain: it builds on %s",
			out.Point, it.VMName, dr.PointName(c.Commit.Prev.Gen, c.Commit.Prev.N))
	}
	return out, outward(err)
}

// continues reports whether c follows prev, the newest listed point. Where
// nothing (valid) comes before, only a base can start.
func continues(prev vaultdb.Point, have bool, c store.CutInfo) bool {
	if !have {
		return c.Commit.Base
	}
	p := c.Commit.Prev
	return p.Gen == prev.Gen && p.N == prev.N && p.Hash.String() == prev.Hash
}

// list puts a cut that continues the chain on the catalogue, unless its
// generation has been taken over at an earlier cut. The first one makes the
// item protected.
func (v *Vault) list(ctx context.Context, item dr.ItemID, c store.CutInfo) error {
	return v.tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, item)
		if err != nil {
			return err
		}
		gens, err := vaultdb.Generations(ctx, tx, it.Machine)
		if err != nil {
			return err
		}
		for _, g := range gens {
			if g.Gen > c.Gen && g.BaseGen != 0 && c.N > g.BaseN {
				return dr.New(dr.KindFenced, dr.CodeGenerationFenced, "vault.list", "cut %s of %s was written after generation %d had taken over at %s",
					dr.PointName(c.Gen, c.N), it.VMName, g.Gen, dr.PointName(g.BaseGen, g.BaseN))
			}
		}
		news, err := vaultdb.InsertPoint(ctx, tx, vaultdb.Point{RecoveryPoint: c.Point(it.Machine), Hash: c.Ref.Hash.String()})
		if err != nil || !news {
			return err
		}
		v.db.NotifyTx(tx, topicChange, "item/"+string(item))
		if it.Protection != dr.InitialReplication {
			return nil
		}
		it.Protection = dr.Protected
		return v.saveItem(ctx, tx, it)
	})
}

// reconcile makes an item's part of the catalogue what the store has. Full
// also removes points that are no longer there; otherwise only what comes
// after the newest listed point is looked at.
func (v *Vault) reconcile(ctx context.Context, it vaultdb.Item, full bool) error {
	limit := 1
	if full {
		limit = 0
	}
	points, err := vaultdb.Points(ctx, v.q(), it.Machine, limit)
	if err != nil {
		return outward(err)
	}
	listed := map[uint64]vaultdb.Point{}
	for _, p := range points {
		listed[p.N] = p
	}
	live, _, err := v.store.Names(ctx, it.Machine)
	if err != nil {
		return err
	}
	var prev vaultdb.Point
	have := false
	for _, name := range live {
		if !full && len(points) > 0 && name.N < points[0].N {
			continue
		}
		if p, ok := listed[name.N]; ok && p.Gen == name.Gen {
			delete(listed, name.N)
			prev, have = p, true
			continue
		}
		c, err := v.store.ReadCut(ctx, it.Machine, name.Gen, name.N)
		switch k := dr.KindOf(err); {
		case err == nil && continues(prev, have, c), err == nil && c.Commit.Base:
		case err == nil, k == dr.KindCorrupt, k == dr.KindUnsupported, k == dr.KindNotFound:
			v.log.Warn("cut is not a recovery point", "vm", it.VMName, "machine", it.Machine, "cut", dr.PointName(name.Gen, name.N), "err", err)
			have = false
			continue
		default:
			return err
		}
		if err := v.list(ctx, it.ID, c); err != nil {
			if dr.KindOf(err) == dr.KindFenced {
				continue
			}
			return err
		}
		prev, have = vaultdb.Point{RecoveryPoint: c.Point(it.Machine), Hash: c.Ref.Hash.String()}, true
	}
	if !full {
		return nil
	}
	for _, p := range listed {
		if err := v.unlist(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// unlist removes a point from the catalogue if its cut really is gone or dead.
func (v *Vault) unlist(ctx context.Context, p vaultdb.Point) error {
	_, err := v.cfg.Bucket.Head(ctx, cut.CutObject(p.Machine, p.Gen, p.N))
	gone := errors.Is(err, objstore.ErrNotExist)
	if err != nil && !gone {
		return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "vault.reconcile", "look for cut %s: %w", p.Name(), err)
	}
	return v.tx(ctx, func(tx *sql.Tx) error {
		gens, err := vaultdb.Generations(ctx, tx, p.Machine)
		if err != nil {
			return err
		}
		for _, g := range gens {
			gone = gone || g.Gen > p.Gen && g.Written && p.N > g.BaseN
		}
		if !gone {
			return nil // committed while the store was being listed
		}
		return vaultdb.DeletePoint(ctx, tx, p.Machine, p.Gen, p.N)
	})
}

// reconcileAll runs over all items: completely at the start and every hour,
// otherwise for what is new.
func (v *Vault) reconcileAll(ctx context.Context) error {
	v.mu.Lock()
	full := v.now().Sub(v.full) >= time.Hour
	v.mu.Unlock()
	items, err := vaultdb.Items(ctx, v.q(), "")
	if err != nil {
		return outward(err)
	}
	var errs []error
	for _, it := range items {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if it.Protection == dr.Enabling || it.Protection == dr.EnableFailed {
			continue
		}
		if err := v.reconcile(ctx, it, full); err != nil && dr.KindOf(err) != dr.KindNotFound {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && full {
		v.mu.Lock()
		v.full = v.now()
		v.mu.Unlock()
	}
	return errors.Join(errs...)
}

// OpenPoint gives the recovery agent that was told to serve a point what it
// takes to read it, as long as the serving exists: a read ticket for the
// machine's objects and the data keys.
func (v *Vault) OpenPoint(ctx context.Context, agent dr.AgentID, r agentapi.OpenPointRequest) (agentapi.OpenPointResponse, error) {
	const op = "vault.OpenPoint"
	s, err := vaultdb.ServingByID(ctx, v.q(), r.Serving)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return agentapi.OpenPointResponse{}, outward(err)
	}
	if err != nil || s.Agent != agent {
		return agentapi.OpenPointResponse{}, dr.Errorf(dr.KindForbidden, op, "serving %q is not, or no longer, this agent's", r.Serving)
	}
	if v.cfg.Tickets == nil {
		return agentapi.OpenPointResponse{}, dr.Errorf(dr.KindUnsupported, op, "this vault's store can't issue read tickets")
	}
	expires := v.now().Add(ticketLifetime)
	ticket, err := v.cfg.Tickets.Ticket(cut.MachinePrefix(s.Machine), expires)
	if err != nil {
		return agentapi.OpenPointResponse{}, dr.Errorf(dr.KindInternal, op, "issue a read ticket for machine %s: %w", s.Machine, err)
	}
	epochs, err := v.store.Epochs(ctx, s.Machine)
	if err != nil {
		return agentapi.OpenPointResponse{}, err
	}
	out := agentapi.OpenPointResponse{Machine: string(s.Machine), Generation: uint32(s.Gen), N: s.N, StoreURL: v.cfg.StoreURL,
		Ticket: ticket, Expires: expires, Keys: map[string][]byte{}}
	for _, e := range epochs {
		k, err := v.keys.EpochKey(ctx, s.Machine, e)
		if err != nil {
			return agentapi.OpenPointResponse{}, err
		}
		out.Keys[strconv.FormatUint(uint64(e), 10)] = k[:]
	}
	return out, nil
}
