// Package replica is the vault's hold on the stored replicas: it issues the
// generations under which agents write, authorises and signs uploads, keeps
// the catalogue of recovery points equal to the store, and opens points for
// recovery agents.
//
// It promises that at most one generation of a machine may write at any time
// (see OpenGeneration), that only cuts which verify and continue the chain are
// listed, and that a point is opened only for the agent that serves it. Where the
// store leaves the retention of new objects to the vault, those of every listed
// cut are retained, sooner or later. What is signed for outages of the vault
// creates objects of the writer's own generation, one each, and nothing else.
package replica

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/sqldb"
	"holdfast/internal/store"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

const (
	maxUploads     = 1000             // objects in one request
	maxObject      = int64(256) << 20 // bytes; a tile image of incompressible data with its index is far below
	uploadLifetime = 30 * time.Minute
	ticketLifetime = time.Hour
)

// Tickets issues read tickets for everything under a prefix of the bucket
// (httpstore.Signer does).
type Tickets interface {
	Ticket(prefix string, expires time.Time) (string, error)
}

// Config of Replicas. Signer and Tickets may be nil; then nothing can be
// uploaded or opened.
type Config struct {
	State    *state.State
	Bucket   objstore.Bucket
	Signer   objstore.Signer
	Tickets  Tickets
	StoreURL string // base URL under which tickets are honoured
	Key      cut.VaultPrivateKey

	// Listed is called in the transaction that lists a point, with the locked
	// item; announced says that the writer has just told of it.
	Listed func(ctx context.Context, tx *sql.Tx, it *vaultdb.Item, c store.CutInfo, announced bool) error
	// OutOfSequence is called when the writer of an item has committed a cut that
	// does not continue its chain.
	OutOfSequence func(ctx context.Context, it vaultdb.Item, what error) error
}

// Replicas is the vault's hold on the stored replicas. It is safe for concurrent use.
type Replicas struct {
	cfg   Config
	st    *state.State
	store *store.Store
	keys  *store.Keyring

	mu     sync.Mutex
	full   time.Time // last complete reconciliation
	noted  time.Time // last warning that nothing can be signed ahead
	leases map[string]time.Time

	views  views
	retain retention
}

// New makes Replicas; it does no I/O.
func New(cfg Config) *Replicas {
	keys := store.NewKeyring(cfg.Bucket, cfg.Key)
	return &Replicas{cfg: cfg, st: cfg.State, keys: keys, store: store.New(store.Config{Bucket: cfg.Bucket, Keys: keys}),
		leases: map[string]time.Time{}, views: views{turns: make(chan struct{}, maxDigesting)}, retain: newRetention(cfg.Bucket)}
}

// Reader reads the replicas, with the vault's keys.
func (r *Replicas) Reader() *store.Store { return r.store }

// Keyring opens data keys, and keeps those that were opened.
func (r *Replicas) Keyring() *store.Keyring { return r.keys }

// Current picks the generation that the item says is the newest.
func Current(it vaultdb.Item, gens []vaultdb.Generation) (vaultdb.Generation, bool) {
	for _, g := range gens {
		if g.Gen == it.Gen {
			return g, true
		}
	}
	return vaultdb.Generation{}, false
}

// writer finds the item of a machine and checks that the agent holds the
// generation. Anything else is dr.CodeGenerationFenced.
func (r *Replicas) writer(ctx context.Context, agent dr.AgentID, machine string, gen uint32) (vaultdb.Item, error) {
	const op = "vault.writer"
	it, err := vaultdb.ItemByMachine(ctx, r.st.Q(), dr.MachineID(machine))
	if dr.KindOf(err) == dr.KindNotFound {
		return it, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "machine %s is not protected any more", machine)
	}
	if err != nil {
		return it, state.Outward(err)
	}
	gens, err := vaultdb.Generations(ctx, r.st.Q(), it.Machine)
	if err != nil {
		return it, state.Outward(err)
	}
	g, ok := Current(it, gens)
	switch {
	case !ok || g.Gen != dr.Generation(gen):
		return it, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "generation %d of %s was taken over by generation %d", gen, it.VMName, it.Gen)
	case !g.Written || g.Agent != agent:
		return it, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "generation %d of %s is not this agent's", gen, it.VMName)
	}
	return it, nil
}

// Uploads authorises and signs create-only URLs for objects of the agent's own generation.
func (r *Replicas) Uploads(ctx context.Context, agent dr.AgentID, req agentapi.UploadRequest) (agentapi.UploadResponse, error) {
	const op = "vault.Uploads"
	var out agentapi.UploadResponse
	it, err := r.writer(ctx, agent, req.Machine, req.Generation)
	if err != nil {
		return out, err
	}
	if r.cfg.Signer == nil {
		return out, dr.Errorf(dr.KindUnsupported, op, "this vault's store can't sign uploads")
	}
	if len(req.Objects) > maxUploads {
		return out, dr.Errorf(dr.KindInvalid, op, "%d objects in one request, at most %d are allowed", len(req.Objects), maxUploads)
	}
	expires := r.st.Now().Add(uploadLifetime)
	for _, o := range req.Objects {
		if err := ownObject(op, o.Name, req.Machine, req.Generation); err != nil {
			return out, err
		}
		var sum [32]byte
		b, err := hex.DecodeString(o.SHA256)
		if err != nil || len(b) != len(sum) || o.Size <= 0 || o.Size > maxObject {
			return out, dr.Errorf(dr.KindInvalid, op, "object %s: size %d or digest %q is not valid", o.Name, o.Size, o.SHA256)
		}
		copy(sum[:], b)
		u, err := r.cfg.Signer.SignPut(ctx, o.Name, o.Size, sum, expires)
		if err != nil {
			return out, refused(op, o.Name, err)
		}
		out.URLs = append(out.URLs, agentapi.SignedURL{URL: u.URL, Headers: u.Headers, Expires: expires})
	}
	out.Ahead = r.signAhead(ctx, it, req)
	return out, nil
}

// epochShift is how many low bits of a key epoch count keys within a
// generation; the bits above are the generation. So no agent can take the name
// of a key that another generation will need.
const epochShift = 12

// ownObject accepts what the writer of a generation may create: its cuts,
// parts and tile images, and the sealed keys of its epochs. What the vault writes
// (generations, runs, maps, data, plans, leases, keys that are sealed again)
// is refused like what is another's.
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
		if string(o.Machine) == machine && o.KeyID == (cut.KeyID{}) && o.Epoch>>epochShift == gen {
			return nil
		}
	}
	return dr.Errorf(dr.KindForbidden, op, "object %s is not the writer's of generation %d of machine %s", key, gen, machine)
}

// refused words what the store did not do for an agent.
func refused(op, key string, err error) error {
	e := store.Refusal(op, "object "+key, err)
	if e == nil {
		return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, op, "object %s: %w", key, err)
	}
	return waits(op, e)
}

// waits keeps the vault's own sign-in or role from stopping every item until
// somebody acts on each, as the catalogue has it for them: they are mended at one
// place, and then agents go on by themselves.
func waits(op string, err error) error {
	switch dr.CodeOf(err) {
	case dr.CodeAzureSignIn, dr.CodeAzureRole:
		return dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, op, "the vault can't use its store: %w", err).WithHint("%s", dr.HintOf(err))
	}
	return err
}

// Head says which objects are there. It also answers a writer that has been
// fenced meanwhile, about its own generation.
func (r *Replicas) Head(ctx context.Context, agent dr.AgentID, req agentapi.HeadRequest) (agentapi.HeadResponse, error) {
	const op = "vault.Head"
	var out agentapi.HeadResponse
	if len(req.Names) > maxUploads {
		return out, dr.Errorf(dr.KindInvalid, op, "%d names in one request, at most %d are allowed", len(req.Names), maxUploads)
	}
	gens, err := vaultdb.Generations(ctx, r.st.Q(), dr.MachineID(req.Machine))
	if err != nil {
		return out, state.Outward(err)
	}
	mine := false
	for _, g := range gens {
		mine = mine || g.Gen == dr.Generation(req.Generation) && g.Agent == agent
	}
	if !mine {
		return out, dr.New(dr.KindFenced, dr.CodeGenerationFenced, op, "generation %d of machine %s is not this agent's", req.Generation, req.Machine)
	}
	for _, name := range req.Names {
		if err := ownObject(op, name, req.Machine, req.Generation); err != nil {
			return out, err
		}
		info, err := objstore.Digest(ctx, r.cfg.Bucket, name)
		switch {
		case errors.Is(err, objstore.ErrNotExist):
			out.Objects = append(out.Objects, agentapi.HeadObject{})
		case err != nil:
			return out, refused(op, name, err)
		default:
			out.Objects = append(out.Objects, agentapi.HeadObject{Exists: true, Size: info.Size, SHA256: hex.EncodeToString(info.SHA256[:])})
		}
	}
	return out, nil
}

// CommitCut lists a cut that the agent says it has committed: it is read from the
// store, must verify and continue the chain. Announcing it again succeeds,
// also after a takeover, if the cut is on the live chain.
func (r *Replicas) CommitCut(ctx context.Context, agent dr.AgentID, req agentapi.CommitRequest) (agentapi.CommitResponse, error) {
	const op = "vault.CommitCut"
	m, gen := dr.MachineID(req.Machine), dr.Generation(req.Generation)
	out := agentapi.CommitResponse{Point: dr.PointName(gen, req.N)}
	_, err := vaultdb.PointByNumber(ctx, r.st.Q(), m, gen, req.N)
	if err == nil {
		return out, nil
	}
	if dr.KindOf(err) != dr.KindNotFound {
		return out, state.Outward(err)
	}
	it, err := r.writer(ctx, agent, req.Machine, req.Generation)
	if err != nil {
		return out, err
	}
	c, err := r.store.ReadCut(ctx, m, gen, req.N)
	if err != nil {
		return out, waits(op, err)
	}
	prev, err := vaultdb.LatestPoint(ctx, r.st.Q(), m, "")
	if err != nil && dr.CodeOf(err) != dr.CodeNoRecoveryPoint {
		return out, state.Outward(err)
	}
	if !continues(prev, err == nil, c) {
		// The vault may have missed some: look at what the store has.
		if err := r.reconcile(ctx, it, false, true); err != nil {
			return out, err
		}
	} else if err := r.list(ctx, it.ID, c, true); err != nil {
		return out, err
	}
	if _, err = vaultdb.PointByNumber(ctx, r.st.Q(), m, gen, req.N); dr.KindOf(err) == dr.KindNotFound {
		refused := dr.New(dr.KindConflict, dr.CodeObjectConflict, op, "cut %s of %s does not continue its chain: it builds on %s",
			out.Point, it.VMName, dr.PointName(c.Commit.Prev.Gen, c.Commit.Prev.N))
		if r.cfg.OutOfSequence != nil && !c.Commit.Seed {
			return out, errors.Join(refused, r.cfg.OutOfSequence(ctx, it, refused))
		}
		return out, refused
	}
	return out, state.Outward(err)
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
func (r *Replicas) list(ctx context.Context, item dr.ItemID, c store.CutInfo, announced bool) error {
	var m dr.MachineID
	err := r.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, item)
		if err != nil {
			return err
		}
		m = it.Machine
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
		news, err := vaultdb.InsertPoint(ctx, tx, pointOf(it.Machine, c))
		if err != nil || !news {
			return err
		}
		r.st.Changed(tx, "item", string(item))
		if err := r.owe(ctx, tx, item, c.Gen, c.N); err != nil {
			return err
		}
		if r.cfg.Listed != nil {
			if err := r.cfg.Listed(ctx, tx, &it, c, announced); err != nil {
				return err
			}
		}
		if it.Protection != dr.InitialReplication {
			return nil
		}
		it.Protection = dr.Protected
		return r.st.SaveItem(ctx, tx, it)
	})
	if err == nil && announced {
		r.retainSoon(ctx, item, m)
	}
	return err
}

// pointOf is the catalogue's row of a cut.
func pointOf(m dr.MachineID, c store.CutInfo) vaultdb.Point {
	p := vaultdb.Point{RecoveryPoint: c.Point(m), Hash: c.Ref.Hash.String()}
	p.Note = c.Commit.Note
	if g := c.Commit.Group; g != nil {
		p.Group, p.GroupSeq, p.GroupSize = dr.GroupID(g.ID), g.Seq, len(g.Members)
	}
	return p
}

// Reconcile makes an item's part of the catalogue what the store has. Full
// also removes points that are no longer there, or that retention has folded
// into later ones; otherwise only what comes after the newest listed point is looked at.
func (r *Replicas) Reconcile(ctx context.Context, it vaultdb.Item, full bool) error {
	return r.reconcile(ctx, it, full, false)
}

func (r *Replicas) reconcile(ctx context.Context, it vaultdb.Item, full, announced bool) error {
	limit := 1
	if full {
		limit = 0
	}
	points, err := vaultdb.Points(ctx, r.st.Q(), it.Machine, limit)
	if err != nil {
		return state.Outward(err)
	}
	listed := map[uint64]vaultdb.Point{}
	for _, p := range points {
		listed[p.N] = p
	}
	history, err := r.store.Names(ctx, it.Machine)
	if err != nil {
		return err
	}
	var prev vaultdb.Point
	have := false
	for _, name := range history.Path {
		if !full && len(points) > 0 && name.N < points[0].N {
			continue
		}
		if p, ok := listed[name.N]; ok && p.Gen == name.Gen {
			delete(listed, name.N)
			prev, have = p, true
			continue
		}
		c, err := r.store.ReadElement(ctx, it.Machine, name)
		switch k := dr.KindOf(err); {
		case err == nil && c.Commit.Seed: // part of the chain, and no recovery point
			prev, have = pointOf(it.Machine, c), true
			continue
		case err == nil && continues(prev, have, c), err == nil && c.Commit.Base:
		case err == nil, k == dr.KindCorrupt, k == dr.KindUnsupported, k == dr.KindNotFound:
			r.st.Log.Warn("cut is not a recovery point", "vm", it.VMName, "machine", it.Machine, "cut", dr.PointName(name.Gen, name.N), "err", err)
			have = false
			continue
		default:
			return err
		}
		if err := r.list(ctx, it.ID, c, announced); err != nil {
			if dr.KindOf(err) == dr.KindFenced {
				continue
			}
			return err
		}
		prev, have = pointOf(it.Machine, c), true
	}
	if !full {
		return nil
	}
	folded := map[uint64]bool{}
	for _, c := range history.Expired {
		folded[c.N] = true
	}
	for _, p := range listed {
		if err := r.unlist(ctx, p, folded[p.N]); err != nil {
			return err
		}
	}
	return nil
}

// unlist removes a point from the catalogue if its cut really is gone or dead,
// or a run stands for it.
func (r *Replicas) unlist(ctx context.Context, p vaultdb.Point, folded bool) error {
	_, err := r.cfg.Bucket.Head(ctx, cut.CutObject(p.Machine, p.Gen, p.N))
	gone := folded || errors.Is(err, objstore.ErrNotExist)
	if err != nil && !gone {
		return refused("vault.reconcile", cut.CutObject(p.Machine, p.Gen, p.N), err)
	}
	return r.st.Tx(ctx, func(tx *sql.Tx) error {
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

// ReconcileAll runs over all items: completely at the start and every hour,
// otherwise for what is new.
func (r *Replicas) ReconcileAll(ctx context.Context) error {
	r.mu.Lock()
	full := r.st.Now().Sub(r.full) >= time.Hour
	r.mu.Unlock()
	items, err := vaultdb.Items(ctx, r.st.Q(), "")
	if err != nil {
		return state.Outward(err)
	}
	// In another order each time, so that a round that runs out of time leaves
	// out other items than the last one did.
	rand.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	var errs []error
	for _, it := range items {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if it.Protection == dr.Enabling || it.Protection == dr.EnableFailed {
			continue
		}
		if err := r.Reconcile(ctx, it, full); err != nil && dr.KindOf(err) != dr.KindNotFound {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && full {
		r.mu.Lock()
		r.full = r.st.Now()
		r.mu.Unlock()
	}
	return errors.Join(append(errs, r.retainAll(ctx))...)
}

// OpenPoint gives the recovery agent that was told to serve a point what it
// takes to read it, as long as the serving exists: a read ticket for the
// machine's objects and the data keys.
func (r *Replicas) OpenPoint(ctx context.Context, agent dr.AgentID, req agentapi.OpenPointRequest) (agentapi.OpenPointResponse, error) {
	const op = "vault.OpenPoint"
	s, err := vaultdb.ServingByID(ctx, r.st.Q(), req.Serving)
	if dr.KindOf(err) == dr.KindNotFound {
		var w vaultdb.Warm
		w, err = vaultdb.WarmByServing(ctx, r.st.Q(), req.Serving)
		s = vaultdb.Serving{ID: w.Serving, Item: w.Item, Machine: w.Machine, Gen: w.Gen, N: w.N, Agent: w.Agent, Kind: warmKind}
	}
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return agentapi.OpenPointResponse{}, state.Outward(err)
	}
	if err != nil || s.Agent != agent {
		return agentapi.OpenPointResponse{}, dr.Errorf(dr.KindForbidden, op, "serving %q is not, or no longer, this agent's", req.Serving)
	}
	if r.cfg.Tickets == nil {
		return agentapi.OpenPointResponse{}, dr.Errorf(dr.KindUnsupported, op, "this vault's store can't issue read tickets")
	}
	if !s.Local {
		if err := r.Lease(ctx, ServingLease(s)); err != nil {
			return agentapi.OpenPointResponse{}, err
		}
	}
	expires := r.st.Now().Add(ticketLifetime)
	ticket, err := r.cfg.Tickets.Ticket(cut.MachinePrefix(s.Machine), expires)
	if err != nil {
		return agentapi.OpenPointResponse{}, dr.Errorf(dr.KindInternal, op, "issue a read ticket for machine %s: %w", s.Machine, err)
	}
	epochs, err := r.store.Epochs(ctx, s.Machine)
	if err != nil {
		return agentapi.OpenPointResponse{}, err
	}
	repair, err := r.repairs(ctx, s)
	if err != nil {
		return agentapi.OpenPointResponse{}, err
	}
	out := agentapi.OpenPointResponse{Repair: repair, Machine: string(s.Machine), Generation: uint32(s.Gen), N: s.N, StoreURL: r.cfg.StoreURL,
		Ticket: ticket, Expires: expires, Keys: map[string][]byte{}}
	var bad error
	for _, e := range epochs {
		k, err := r.keys.EpochKey(ctx, s.Machine, e)
		if dr.CodeOf(err) == dr.CodeKeyMismatch || dr.KindOf(err) == dr.KindCorrupt {
			// The point may not need it; if it does, reading it says so.
			r.st.Log.Warn("a data key does not open", "machine", s.Machine, "epoch", e, "err", err)
			bad = err
			continue
		}
		if err != nil {
			return agentapi.OpenPointResponse{}, err
		}
		out.Keys[strconv.FormatUint(uint64(e), 10)] = k[:]
	}
	if len(out.Keys) == 0 && bad != nil {
		return agentapi.OpenPointResponse{}, bad
	}
	return out, nil
}

// repairs is the target for which the guest of a serving is to be repaired; "" = it is not.
func (r *Replicas) repairs(ctx context.Context, s vaultdb.Serving) (string, error) {
	if s.Kind == warmKind {
		return "", nil
	}
	it, err := vaultdb.ItemByID(ctx, r.st.Q(), s.Item)
	if err != nil {
		return "", state.Outward(err)
	}
	return Repairs(ctx, r.st.Q(), it)
}

// Repairs is the target for which an item's guest is to be repaired while a point of
// it is served; "" = it is not: nobody asked for it, or the recovery site is no cloud.
func Repairs(ctx context.Context, q sqldb.Querier, it vaultdb.Item) (string, error) {
	if !it.Settings.Cloud.Repair {
		return "", nil
	}
	f, err := vaultdb.Fabric(ctx, q, it.RecoveryFabric)
	if dr.KindOf(err) == dr.KindNotFound || err == nil && f.Type != dr.AzureSite {
		return "", nil
	}
	return "azure", state.Outward(err)
}

// warmKind is the kind of the servings of warm replicas, which are no failovers.
const warmKind dr.FailoverKind = "warm"

// Claim writes vault.json, or checks that the store is this vault's.
func (r *Replicas) Claim(ctx context.Context, name, software string) error {
	var id string
	err := r.st.Tx(ctx, func(tx *sql.Tx) (err error) {
		id, err = vaultdb.InitSetting(ctx, tx, "vaultId", state.NewID())
		return err
	})
	if err != nil {
		return err
	}
	// A store that outlived the database belongs to the holder of the private key.
	have, err := r.store.VaultInfo(ctx)
	switch {
	case err == nil && have.KeyID == r.cfg.Key.KeyID():
		if have.VaultID != id {
			r.st.Log.Warn("the store was made by an earlier database of this vault", "storeVault", have.VaultID, "vault", id)
		}
		return nil
	case err == nil:
		return dr.New(dr.KindConflict, dr.CodeKeyMismatch, "vault.Start", "the store belongs to vault %s with key %s, this vault has key %s",
			have.VaultID, have.KeyID, r.cfg.Key.KeyID())
	case dr.KindOf(err) != dr.KindNotFound:
		return err
	}
	return store.InitVault(ctx, r.cfg.Bucket, cut.VaultInfo{VaultID: id, Name: name,
		PublicKey: r.cfg.Key.Public().Text(), Created: r.st.Now(), Software: software})
}
