// Package upload sends sealed objects to the store: it asks the vault for
// create-only URLs, PUTs, and finds out what became of a PUT whose outcome is unknown.
//
// What it promises:
//
//   - Put returns nil only when the store has the object with exactly these
//     bytes: it said that it created it, or it was asked and answered with the same size and SHA-256.
//     Of the sealed key in use that is remembered over a restart, see Config.AheadDir.
//   - Nothing is ever overwritten, and nothing but the store's own answer counts as absent.
//   - URLs are bearer secrets: they are not logged, nor do they appear in errors.
//     Only those that the vault signs beforehand are kept, in Config.AheadDir; they
//     are used only while the vault does not answer.
//   - All machines of an agent share one bound on parallel transfers, and
//     initial replications can't take all of it.
//   - A body that a limit holds back is neither taken for one that has stalled,
//     nor does it outlive its URL.
package upload

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/pace"
)

// Vault is what an Uploader needs of the vault. Both calls are idempotent and
// answer dr.CodeGenerationFenced where the generation is not the caller's (any more).
type Vault interface {
	Uploads(ctx context.Context, r agentapi.UploadRequest) (agentapi.UploadResponse, error)
	Head(ctx context.Context, r agentapi.HeadRequest) (agentapi.HeadResponse, error)
}

// Transfer makes one attempt to PUT to a signed URL; *httpstore.Uploader is one.
// It reads body once, in order, and takes a short read without an error for
// what it is: there is more, but not yet. It has to hand on what it has got.
type Transfer interface {
	Put(ctx context.Context, signedURL string, headers map[string]string, body io.ReaderAt, size int64) (httpstore.Outcome, error)
}

// MinBandwidth is the lowest Config.Bandwidth, bytes/s: less than this is taken
// for a mistake in the unit.
const MinBandwidth = 64 << 10

// Config of an Uploader.
type Config struct {
	Vault    Vault
	Transfer Transfer
	// Limit bounds the uploads of all sinks that have none of their own; nil = unlimited.
	Limit Limit
	// Bandwidth is a Limit that never changes, bytes/s: 0 = none, otherwise at
	// least MinBandwidth, and Limit must be nil.
	Bandwidth int64
	// Parallel bounds concurrent transfers (default 8). Tile images get at most
	// half of them, so that deltas go on beside initial replications.
	Parallel int
	// AheadDir keeps the URLs that the vault signs for the next cuts, for when it
	// does not answer: secrets, in files of their owner only. Empty = none.
	AheadDir string
	// Attempts bounds the attempts of one Put (default 5): whoever calls it has a longer schedule.
	Attempts  int
	BaseDelay time.Duration // before the second attempt, doubling (default 500 ms)
	MaxDelay  time.Duration // the longest wait between attempts (default 15 s)
	Log       *slog.Logger
}

// Validate checks ranges.
func (c Config) Validate() error {
	const op = "upload.New"
	switch {
	case c.Vault == nil || c.Transfer == nil:
		return dr.Errorf(dr.KindInvalid, op, "vault and transfer must be set")
	case c.Bandwidth != 0 && c.Bandwidth < MinBandwidth:
		return dr.Errorf(dr.KindInvalid, op, "a bandwidth limit of %d bytes/s is below %d", c.Bandwidth, MinBandwidth)
	case c.Bandwidth != 0 && c.Limit != nil:
		return dr.Errorf(dr.KindInvalid, op, "both a limit and a bandwidth are set")
	case c.Parallel < 0 || c.Attempts < 0 || c.BaseDelay < 0 || c.MaxDelay < 0:
		return dr.Errorf(dr.KindInvalid, op, "a limit is negative")
	}
	return nil
}

// Uploader is shared by all replications of an agent. It is safe for concurrent use.
type Uploader struct {
	cfg     Config
	slots   chan struct{}
	tiles   chan struct{}
	batches batcher
	ahead   ahead

	objects, bytes, retries atomic.Int64
}

// New returns an Uploader; it does no I/O.
func New(cfg Config) (*Uploader, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 8
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 5
	}
	if cfg.BaseDelay == 0 {
		cfg.BaseDelay = 500 * time.Millisecond
	}
	if cfg.MaxDelay == 0 {
		cfg.MaxDelay = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Bandwidth > 0 {
		cfg.Limit = pace.NewLimiter(pace.Constant(cfg.Bandwidth), nil)
	}
	u := &Uploader{cfg: cfg, slots: make(chan struct{}, cfg.Parallel), tiles: make(chan struct{}, max(1, cfg.Parallel/2))}
	u.ahead.dir, u.ahead.log = cfg.AheadDir, cfg.Log
	u.batches.ask, u.batches.ahead = cfg.Vault.Uploads, u.ahead.keep
	u.batches.ctx, u.batches.stop = context.WithCancel(context.Background())
	return u, nil
}

// Close ends requests to the vault that are on their way and waits for them.
// Call it when no Put runs any more. Idempotent.
func (u *Uploader) Close() error {
	u.batches.stop()
	u.batches.running.Wait()
	return nil
}

// Stats are figures since the start of the process.
type Stats struct {
	Objects int64 // known to be in the store
	Bytes   int64 // read to be sent, repeated attempts included
	Retries int64 // attempts beyond the first
}

// Stats returns the figures of all sinks together.
func (u *Uploader) Stats() Stats {
	return Stats{Objects: u.objects.Load(), Bytes: u.bytes.Load(), Retries: u.retries.Load()}
}

// Sink stores the objects of one machine. It satisfies capture.Sink and is safe for concurrent use.
type Sink struct {
	u       *Uploader
	machine dr.MachineID
	gen     atomic.Uint32
	epoch   atomic.Uint32 // of the newest sealed key that was sent
	limit   atomic.Pointer[Limit]
	speed   speed
}

// Sink returns the sink of a machine whose current generation is gen.
func (u *Uploader) Sink(machine dr.MachineID, gen dr.Generation) *Sink {
	s := &Sink{u: u, machine: machine}
	s.SetGeneration(gen)
	return s
}

// SetGeneration says under which generation objects are sent whose names have
// none (sealed keys). The others go under the generation in their names.
func (s *Sink) SetGeneration(gen dr.Generation) { s.gen.Store(uint32(gen)) }

// SetLimit bounds this machine's uploads instead of Config.Limit (a limiter of
// an item holds those of its policy and the agent, too); nil: Config.Limit
// again. It counts for attempts that begin after it.
func (s *Sink) SetLimit(l Limit) {
	if l == nil {
		s.limit.Store(nil)
		return
	}
	s.limit.Store(&l)
}

func (s *Sink) currentLimit() Limit {
	if l := s.limit.Load(); l != nil {
		return *l
	}
	return s.u.cfg.Limit
}

// Put stores an object, create-only. It returns nil when the object is in the
// store with exactly these bytes, whoever put it there; dr.CodeObjectConflict
// when another one has its name; dr.CodeGenerationFenced when a newer generation
// has taken over. Other errors carry the catalogue's code; ctx's error is returned as it is.
func (s *Sink) Put(ctx context.Context, name string, body io.ReaderAt, size int64, sha256 [32]byte) error {
	const op = "upload.Put"
	o, err := cut.ParseObject(name)
	if err != nil {
		return err
	}
	if o.Machine != s.machine {
		return dr.Errorf(dr.KindInvalid, op, "object %s is not one of machine %s", name, s.machine)
	}
	gen := uint32(o.Gen)
	if o.Class == cut.ClassKey {
		gen = s.gen.Load()
		s.epoch.Store(o.Epoch)
	}
	release, err := s.u.slot(ctx, o.Class == cut.ClassTile)
	if err != nil {
		return err
	}
	defer release()
	p := put{u: s.u, limit: s.currentLimit, speed: &s.speed, machine: string(s.machine), gen: gen, name: name, body: body, size: size, sum: sha256}
	if o.Class == cut.ClassCut {
		p.ahead = s.u.ahead.wish(p.machine, gen, o.N, s.epoch.Load())
	}
	if err := p.run(ctx); err != nil {
		return err
	}
	if o.Class == cut.ClassKey {
		s.u.ahead.sent(p.machine, p.key())
	}
	s.u.objects.Add(1)
	return nil
}

// slot waits for a place among the parallel transfers.
func (u *Uploader) slot(ctx context.Context, tile bool) (release func(), err error) {
	take := func(ch chan struct{}) error {
		select {
		case ch <- struct{}{}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if tile {
		if err := take(u.tiles); err != nil {
			return nil, err
		}
	}
	if err := take(u.slots); err != nil {
		if tile {
			<-u.tiles
		}
		return nil, err
	}
	return func() {
		<-u.slots
		if tile {
			<-u.tiles
		}
	}, nil
}

// put is one object on its way.
type put struct {
	u       *Uploader
	limit   func() Limit
	speed   *speed // of the sink
	machine string
	gen     uint32
	name    string
	body    io.ReaderAt
	size    int64
	sum     [32]byte
	ahead   *agentapi.AheadRequest // goes along when a URL is asked for
}

func (p *put) key() sentKey { return sentKey{p.name, p.size, cut.Hash(p.sum).String()} }

// run repeats attempts until the outcome is known, is final, or the attempts are used up.
func (p *put) run(ctx context.Context) error {
	for n := 1; ; n++ {
		err := p.attempt(ctx)
		if ctx.Err() != nil && err != nil {
			return context.Cause(ctx)
		}
		var again *again
		if err == nil || !errors.As(err, &again) {
			return err
		}
		if n >= p.u.cfg.Attempts {
			return again.err
		}
		p.u.cfg.Log.Debug("upload is tried again", "object", p.name, "attempt", n, "err", again.err)
		p.u.retries.Add(1)
		if err := p.u.wait(ctx, n, again.after); err != nil {
			return err
		}
	}
}

// again marks an error that another attempt may mend.
type again struct {
	err   error
	after time.Duration // the other side's wish
}

func (a *again) Error() string { return a.err.Error() }
func (a *again) Unwrap() error { return a.err }

func (u *Uploader) wait(ctx context.Context, n int, after time.Duration) error {
	d := u.cfg.MaxDelay
	if n < 30 {
		d = min(u.cfg.BaseDelay<<(n-1), u.cfg.MaxDelay)
	}
	d = d/2 + rand.N(d/2+1)
	t := time.NewTimer(max(d, min(after, u.cfg.MaxDelay)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// attempt asks for a URL, PUTs, and looks where the outcome is not known.
func (p *put) attempt(ctx context.Context) error {
	body := &pacedBody{p: p, ctx: ctx, limit: p.limit(), piece: firstPiece}
	if err := body.begin(); err != nil {
		return dr.New(dr.KindUnavailable, "", "upload.Put", "wait for bandwidth for object %s: %w", p.name, err)
	}
	url, err := p.url(ctx, body)
	switch {
	case dr.CodeOf(err) == dr.CodeGenerationFenced:
		p.u.ahead.drop(p.machine, p.gen)
		// An earlier PUT, whose answer was lost, may have come before the takeover.
		if there, herr := p.look(ctx); herr == nil && there {
			return nil
		}
		return err
	case err != nil:
		if ctx.Err() == nil && vaultAway(err) && p.u.ahead.known(p.machine, p.key()) {
			return nil
		}
		signed, ok := p.alone(ctx, err)
		if !ok {
			return repeatable(err)
		}
		url = signed
	}
	got := time.Now()
	outcome, why, err := p.u.send(ctx, url, body, p.size)
	switch {
	case err == nil && outcome == httpstore.Created:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		err = p.failed(err)
		var retry *again
		if !errors.As(err, &retry) || !lost(err) {
			return err
		}
	}
	there, herr := p.look(ctx)
	switch {
	case herr != nil:
		return herr
	case there:
		return nil
	case err != nil:
		return err
	}
	// The store refused, and the object is not there: the URL was too old, or the
	// other writer's upload that it made way for was not completed.
	if said := p.refused(why, url, time.Since(got)); said != nil {
		return &again{err: said, after: why.RetryAfter}
	}
	return &again{err: dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "upload.Put",
		"object %s: the store refused the signed upload and does not have the object", p.name).
		WithHint("Compare the clocks of the store, the vault and this host if it happens again and again.")}
}

// url returns a URL that lives long enough for the body.
func (p *put) url(ctx context.Context, body *pacedBody) (agentapi.SignedURL, error) {
	for {
		url, err := p.u.batches.url(ctx, p.machine, p.gen, agentapi.UploadObject{Name: p.name, Size: p.size, SHA256: cut.Hash(p.sum).String()}, p.ahead)
		if err != nil || url.Expires.IsZero() {
			return url, err
		}
		ok, err := body.fits(time.Until(url.Expires))
		if ok {
			return url, nil
		}
		if err != nil {
			return url, dr.New(dr.KindUnavailable, "", "upload.Put", "wait for bandwidth for object %s: %w", p.name, err)
		}
	}
}

// lost reports whether the object may be there in spite of the error: no
// answer, or one that did not come from the store itself.
func lost(err error) bool {
	return !errors.Is(err, objstore.ErrNoSpace) && !errors.Is(err, objstore.ErrReadOnly)
}

// look asks the vault about the object. True: it is there with these bytes.
func (p *put) look(ctx context.Context) (bool, error) {
	const op = "upload.Put"
	res, err := p.u.cfg.Vault.Head(ctx, agentapi.HeadRequest{Machine: p.machine, Generation: p.gen, Names: []string{p.name}})
	if err != nil {
		return false, repeatable(err)
	}
	if len(res.Objects) != 1 {
		return false, dr.Errorf(dr.KindInternal, op, "look for object %s: the vault answered about %d objects", p.name, len(res.Objects))
	}
	h := res.Objects[0]
	switch {
	case !h.Exists:
		return false, nil
	case h.Size == p.size && h.SHA256 == cut.Hash(p.sum).String():
		return true, nil
	}
	return false, dr.New(dr.KindConflict, dr.CodeObjectConflict, op, "object %s exists with %d bytes and SHA-256 %.16s…, not with %d bytes and %.16s…",
		p.name, h.Size, h.SHA256, p.size, cut.Hash(p.sum).String())
}

// repeatable marks the vault's errors that another attempt may mend. A server
// that is not the vault, or does not know this agent, is trouble of the way
// there: it must not end a replication for good, as another DNS answer may mend it.
func repeatable(err error) error {
	switch dr.KindOf(err) {
	case dr.KindUnavailable, dr.KindExhausted:
		return &again{err: err}
	case dr.KindUnauthenticated:
		return dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "upload.Put", "ask the vault about an upload: %w", err).WithHint("%s", dr.HintOf(err))
	}
	return err
}

// failed maps a failed transfer to the catalogue.
func (p *put) failed(err error) error {
	const op = "upload.Put"
	store := func(kind dr.Kind, code dr.Code) *dr.Error {
		return dr.New(kind, code, op, "send object %s: %w", p.name, err)
	}
	var e *httpstore.UploadError
	if errors.As(err, &e) {
		if said := p.refused(e, agentapi.SignedURL{}, 0); said != nil {
			return &again{err: said, after: e.RetryAfter}
		}
	}
	switch {
	case errors.Is(err, objstore.ErrNoSpace):
		return &again{err: store(dr.KindExhausted, dr.CodeStoreFull)}
	case errors.Is(err, objstore.ErrReadOnly):
		return &again{err: store(dr.KindForbidden, dr.CodeStoreReadOnly)}
	case errors.Is(err, objstore.ErrDenied):
		return store(dr.KindUnavailable, dr.CodeStoreUnreachable).WithHint("A proxy on the way asks for a password, or refuses the connection to the store.")
	case errors.Is(err, objstore.ErrMismatch):
		return store(dr.KindCorrupt, dr.CodeObjectCorrupt).WithHint("The file in the spool is not what was sealed: check the disk of this host.")
	case errors.As(err, &e) && e.Retryable:
		return &again{err: store(dr.KindUnavailable, dr.CodeStoreUnreachable), after: e.RetryAfter}
	case errors.As(err, &e) && e.Status != 0:
		return store(dr.KindInternal, dr.CodeStoreUnreachable)
	}
	return store(dr.KindUnavailable, "") // the body could not be read here
}

// batcher asks for the URLs of objects that are wanted at the same time in one
// request: while one request of a machine is on its way, the next are collected.
type batcher struct {
	ask     func(ctx context.Context, r agentapi.UploadRequest) (agentapi.UploadResponse, error)
	ctx     context.Context // of the requests, which are made for several callers; ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup
	ahead   func(machine string, gen uint32, urls []agentapi.AheadURL) // takes what was signed beforehand

	mu      sync.Mutex
	waiting map[batchKey][]*wish
	busy    map[batchKey]bool
}

type batchKey struct {
	machine string
	gen     uint32
}

type wish struct {
	object agentapi.UploadObject
	ahead  *agentapi.AheadRequest
	done   chan struct{}
	url    agentapi.SignedURL
	err    error
}

// maxBatch bounds one request.
const maxBatch = 256

// askTimeout bounds a request that is made for several callers.
const askTimeout = time.Minute

func (b *batcher) url(ctx context.Context, machine string, gen uint32, o agentapi.UploadObject, more *agentapi.AheadRequest) (agentapi.SignedURL, error) {
	w := &wish{object: o, ahead: more, done: make(chan struct{})}
	key := batchKey{machine, gen}
	b.mu.Lock()
	if b.waiting == nil {
		b.waiting, b.busy = map[batchKey][]*wish{}, map[batchKey]bool{}
	}
	b.waiting[key] = append(b.waiting[key], w)
	lead := !b.busy[key]
	b.busy[key] = true
	b.mu.Unlock()
	if lead {
		// A goroutine, because the others' wishes must not end with this ctx.
		b.running.Go(func() { b.serve(key) })
	}
	select {
	case <-w.done:
		return w.url, w.err
	case <-ctx.Done():
		return agentapi.SignedURL{}, context.Cause(ctx)
	}
}

// serve asks until nobody waits.
func (b *batcher) serve(key batchKey) {
	for {
		b.mu.Lock()
		list := b.waiting[key]
		if len(list) == 0 {
			delete(b.busy, key)
			delete(b.waiting, key)
			b.mu.Unlock()
			return
		}
		list, b.waiting[key] = list[:min(len(list), maxBatch)], list[min(len(list), maxBatch):]
		b.mu.Unlock()
		b.fill(key, list)
		for _, w := range list {
			close(w.done)
		}
	}
}

// fill answers wishes with one request. A refusal that may be due to one of
// them is found out by asking for each alone.
func (b *batcher) fill(key batchKey, list []*wish) {
	ctx, cancel := context.WithTimeout(b.ctx, askTimeout)
	defer cancel()
	r := agentapi.UploadRequest{Machine: key.machine, Generation: key.gen}
	for _, w := range list {
		r.Objects = append(r.Objects, w.object)
		if w.ahead != nil {
			r.Ahead = w.ahead
		}
	}
	res, err := b.ask(ctx, r)
	if err == nil && len(res.URLs) != len(list) {
		err = dr.Errorf(dr.KindInternal, "upload.Put", "the vault answered %d upload requests with %d URLs", len(list), len(res.URLs))
	}
	if k := dr.KindOf(err); err != nil && len(list) > 1 && (k == dr.KindInvalid || k == dr.KindForbidden) {
		for _, w := range list {
			b.fill(key, []*wish{w})
		}
		return
	}
	if err == nil {
		b.ahead(key.machine, key.gen, res.Ahead)
	}
	for i, w := range list {
		if w.err = err; err == nil {
			w.url = res.URLs[i]
		}
	}
}
