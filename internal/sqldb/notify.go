package sqldb

import (
	"context"
	"crypto/rand"
	"database/sql"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	coalesce   = 10 * time.Millisecond // collect notifications this long before sending
	pgChannel  = "holdfast"
	maxPayload = 7000 // bytes; PostgreSQL refuses 8000
	maxKeys    = 4096 // remembered per listener before it is told "everything"
)

// note is one notification: something about key changed under topic.
type note struct{ topic, key string }

// Notify tells the listeners of topic, in this process and on PostgreSQL in all
// others, that the object key changed. Topics and keys hold no line breaks. It
// never blocks and never fails: a notification may get lost, and several may
// arrive as one.
func (db *DB) Notify(topic string, keys ...string) { db.hub.send(notes(topic, keys)) }

// NotifyTx is Notify after the commit of tx, and nothing if it does not commit.
// tx must come from DB.Tx; for any other transaction it notifies at once.
func (db *DB) NotifyTx(tx *sql.Tx, topic string, keys ...string) {
	db.txMu.Lock()
	queued, ok := db.pending[tx]
	if ok {
		db.pending[tx] = append(queued, notes(topic, keys)...)
	}
	db.txMu.Unlock()
	if !ok {
		db.hub.send(notes(topic, keys))
	}
}

func notes(topic string, keys []string) []note {
	ns := make([]note, len(keys))
	for i, k := range keys {
		ns[i] = note{topic, k}
	}
	return ns
}

// Listen subscribes to a topic. The caller closes the listener.
func (db *DB) Listen(topic string) *Listener { return db.hub.listen(topic) }

// Listener collects the keys that changed under one topic.
type Listener struct {
	hub   *hub
	topic string
	wake  chan struct{}

	mu   sync.Mutex
	keys map[string]struct{}
	all  bool
}

// C is readable when Take has something. One receiver per listener.
func (l *Listener) C() <-chan struct{} { return l.wake }

// Take returns the keys that changed since the last call. all means that
// notifications may have been lost: look at everything.
func (l *Listener) Take() (keys []string, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.keys {
		keys = append(keys, k)
	}
	all = l.all
	l.keys, l.all = nil, false
	return keys, all
}

// Close ends the subscription.
func (l *Listener) Close() {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	delete(l.hub.listeners[l.topic], l)
}

func (l *Listener) add(key string, all bool) {
	l.mu.Lock()
	switch {
	case all || len(l.keys) >= maxKeys:
		l.keys, l.all = nil, true
	case l.all:
	default:
		if l.keys == nil {
			l.keys = map[string]struct{}{}
		}
		l.keys[key] = struct{}{}
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// hub fans notifications out in the process and, with a pool, over PostgreSQL.
// It owns at most two goroutines (sender, receiver), which end with close.
type hub struct {
	pool *sql.DB // nil on SQLite
	cfg  *pgx.ConnConfig
	log  *slog.Logger
	self string // tells our own notifications from others'

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	listeners map[string]map[*Listener]struct{}
	receiving bool
	queue     map[note]struct{}
	kick      chan struct{}
}

func newHub(pool *sql.DB, cfg *pgx.ConnConfig, log *slog.Logger) *hub {
	h := &hub{pool: pool, cfg: cfg, log: log, self: rand.Text()[:8],
		listeners: map[string]map[*Listener]struct{}{}, queue: map[note]struct{}{}, kick: make(chan struct{}, 1)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if pool != nil {
		h.wg.Go(h.sender)
	}
	return h
}

func (h *hub) close() {
	h.cancel()
	h.wg.Wait()
}

func (h *hub) listen(topic string) *Listener {
	l := &Listener{hub: h, topic: topic, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners[topic] == nil {
		h.listeners[topic] = map[*Listener]struct{}{}
	}
	h.listeners[topic][l] = struct{}{}
	if h.pool != nil && !h.receiving && h.ctx.Err() == nil {
		h.receiving = true
		h.wg.Go(h.receiver)
	}
	return l
}

// send delivers locally at once and queues for the other replicas.
func (h *hub) send(ns []note) {
	if len(ns) == 0 {
		return
	}
	h.mu.Lock()
	for _, n := range ns {
		h.deliver(n.topic, n.key, false)
		if h.pool != nil {
			h.queue[n] = struct{}{}
		}
	}
	h.mu.Unlock()
	if h.pool != nil {
		select {
		case h.kick <- struct{}{}:
		default:
		}
	}
}

// deliver is called with mu held.
func (h *hub) deliver(topic, key string, all bool) {
	for l := range h.listeners[topic] {
		l.add(key, all)
	}
}

// deliverAll tells every listener that it may have missed something.
func (h *hub) deliverAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for topic := range h.listeners {
		h.deliver(topic, "", true)
	}
}

// sender sends what has been collected for 10 ms in one statement, outside of
// the transactions that caused it: NOTIFY takes a lock over all commits.
func (h *hub) sender() {
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-h.kick:
		}
		select {
		case <-h.ctx.Done(): // send the rest before the end
		case <-time.After(coalesce):
		}
		h.mu.Lock()
		batch := h.queue
		h.queue = map[note]struct{}{}
		h.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), 5*time.Second)
		for _, p := range payloads(h.self, batch) {
			if _, err := h.pool.ExecContext(ctx, "select pg_notify($1, $2)", pgChannel, p); err != nil {
				h.log.Debug("notification lost", "err", err) // the pollers' net catches it
				break
			}
		}
		cancel()
	}
}

// payloads packs notes into texts: sender, then lines "topic\tkey".
func payloads(self string, batch map[note]struct{}) []string {
	var out []string
	var b strings.Builder
	flush := func() {
		if b.Len() > 0 {
			out = append(out, self+b.String())
			b.Reset()
		}
	}
	for n := range batch {
		line := "\n" + n.topic + "\t" + n.key
		if len(line) > maxPayload-len(self) {
			line = "\n" + n.topic + "\t" // too long to name: the topic as a whole
		}
		if b.Len()+len(line) > maxPayload-len(self) {
			flush()
		}
		b.WriteString(line)
	}
	flush()
	return out
}

func (h *hub) receiver() {
	for wait := time.Duration(0); ; {
		start := time.Now()
		err := h.receive()
		if h.ctx.Err() != nil {
			return
		}
		if time.Since(start) > 30*time.Second {
			wait = 0
		}
		wait = min(max(2*wait, 100*time.Millisecond), 5*time.Second)
		h.log.Warn("listening for notifications failed, falling back to polling meanwhile", "err", err, "retryIn", wait)
		select {
		case <-h.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// receive holds one connection of its own and returns when it breaks.
func (h *hub) receive() error {
	conn, err := pgx.ConnectConfig(h.ctx, h.cfg)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if _, err := conn.Exec(h.ctx, "listen "+pgChannel); err != nil {
		return err
	}
	h.deliverAll() // whatever was said before the listen is gone
	for {
		ctx, cancel := context.WithTimeout(h.ctx, 20*time.Second)
		n, err := conn.WaitForNotification(ctx)
		idle := err != nil && ctx.Err() != nil
		cancel()
		switch {
		case h.ctx.Err() != nil:
			return h.ctx.Err()
		case idle: // find a half-open connection
			ctx, cancel := context.WithTimeout(h.ctx, 5*time.Second)
			err := conn.Ping(ctx)
			cancel()
			if err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		from, lines, _ := strings.Cut(n.Payload, "\n")
		if from == h.self {
			continue
		}
		h.mu.Lock()
		for line := range strings.SplitSeq(lines, "\n") {
			if topic, key, ok := strings.Cut(line, "\t"); ok {
				h.deliver(topic, key, key == "")
			}
		}
		h.mu.Unlock()
	}
}
