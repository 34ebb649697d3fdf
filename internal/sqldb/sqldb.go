// Package sqldb opens the control plane's database: one SQLite file inside the
// process, or a PostgreSQL server shared by several vault replicas. It owns the
// connection pool, transactions, the classification of database errors,
// migrations and change notification; it knows no table of anybody else.
//
// Promises:
//
//   - One SQL text runs on both engines. Parameters are $1, $2 …; times are
//     stored as bigint Unix microseconds, ids and JSON as text, bytes as bytea
//     (which SQLite accepts as a column type too).
//   - A transaction that returned nil is durable: SQLite runs in WAL mode with
//     synchronous=FULL, PostgreSQL as its administrator configured it.
//   - Two processes cannot open the same SQLite file: an advisory lock on
//     "<file>.lock" is held from Open to Close and freed by the kernel when the
//     process dies.
//   - Whatever is the database's fault and not the statement's (busy,
//     serialization, lost connection, full disk, expired deadline) is an
//     *InfraError and matches ErrInfrastructure. Callers never change their own
//     state because of one; they let go and try again.
//   - Notifications are sent after the commit, never inside the transaction, and
//     coalesced. They may get lost; whoever listens also polls.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Config says which database to open and how.
type Config struct {
	// URL is "sqlite:///abs/path.db", "sqlite:rel.db", a plain path, or
	// "postgres://…" / "postgresql://…" in libpq's URL form.
	URL string
	// MaxConns bounds the pool; 0 means 8. SQLite has one writer whatever the value.
	MaxConns int
	// TxTimeout bounds every transaction and migration step; 0 means 30 s.
	TxTimeout time.Duration
	// Clock replaces the host's clock on SQLite, for tests. PostgreSQL always
	// uses the database's clock.
	Clock func() time.Time
	// Log gets reconnects of the notification channel; nil discards.
	Log *slog.Logger
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	if c.URL == "" {
		return errors.New("sqldb: database URL is empty")
	}
	if c.MaxConns < 0 || c.TxTimeout < 0 {
		return errors.New("sqldb: MaxConns and TxTimeout must not be negative")
	}
	_, _, err := splitURL(c.URL)
	return err
}

// splitURL tells the engine and, for SQLite, the file path.
func splitURL(s string) (engine, path string, err error) {
	switch {
	case strings.HasPrefix(s, "postgres://"), strings.HasPrefix(s, "postgresql://"):
		return enginePostgres, "", nil
	case strings.HasPrefix(s, "sqlite://"):
		u, err := url.Parse(s)
		if err != nil || u.Host != "" || u.Path == "" || u.RawQuery != "" {
			return "", "", fmt.Errorf("sqldb: %q: write sqlite:///absolute/path.db", s)
		}
		return engineSQLite, u.Path, nil
	case strings.HasPrefix(s, "sqlite:"):
		if p := strings.TrimPrefix(s, "sqlite:"); p != "" {
			return engineSQLite, p, nil
		}
		return "", "", fmt.Errorf("sqldb: %q names no file", s)
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return "", "", fmt.Errorf("sqldb: unknown database scheme %q: use sqlite or postgres", scheme)
	}
	if s == ":memory:" {
		return "", "", errors.New("sqldb: an in-memory database is not durable: name a file")
	}
	return engineSQLite, s, nil
}

// DB is an open database. It is safe for concurrent use.
type DB struct {
	cfg     Config
	pool    *sql.DB
	dialect Dialect
	unlock  func() error
	writer  chan struct{} // SQLite: one writer at a time, in arrival order; nil on PostgreSQL
	migrate sync.Mutex
	hub     *hub

	txMu    sync.Mutex
	pending map[*sql.Tx][]note // notifications to send when the transaction commits

	closeOnce sync.Once
	closeErr  error
}

// Open opens the database and checks that it answers. The caller closes the DB.
// A SQLite file and its directory are created when missing.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 8
	}
	if cfg.TxTimeout == 0 {
		cfg.TxTimeout = 30 * time.Second
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	engine, path, err := splitURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	db := &DB{cfg: cfg, pending: map[*sql.Tx][]note{}}
	if engine == engineSQLite {
		err = db.openSQLite(path)
	} else {
		err = db.openPostgres()
	}
	if err != nil {
		return nil, err
	}
	db.pool.SetMaxOpenConns(cfg.MaxConns)
	db.pool.SetMaxIdleConns(cfg.MaxConns)
	ctx, cancel := context.WithTimeout(ctx, cfg.TxTimeout)
	defer cancel()
	if err := db.pool.PingContext(ctx); err != nil {
		return nil, errors.Join(Classify(fmt.Errorf("open %s: %w", db, err)), db.Close())
	}
	return db, nil
}

// String names the database without any credential.
func (db *DB) String() string {
	engine, path, _ := splitURL(db.cfg.URL)
	if engine == engineSQLite {
		return "sqlite:" + path
	}
	u, err := url.Parse(db.cfg.URL)
	if err != nil {
		return enginePostgres
	}
	return enginePostgres + "://" + u.Host + u.Path
}

// Close ends notification, closes the pool and frees the file lock. It waits
// for running statements and is idempotent.
func (db *DB) Close() error {
	db.closeOnce.Do(func() {
		if db.hub != nil {
			db.hub.close()
		}
		if db.pool != nil {
			db.closeErr = db.pool.Close()
		}
		if db.unlock != nil {
			db.closeErr = errors.Join(db.closeErr, db.unlock())
		}
	})
	return db.closeErr
}

// SQL returns the pool, for single reads. Errors that it returns are not
// classified; pass them through Classify. Writes belong in Tx.
func (db *DB) SQL() *sql.DB { return db.pool }

// Dialect returns what differs between the engines.
func (db *DB) Dialect() Dialect { return db.dialect }

// Tx runs fn in one read-write transaction and commits when fn returns nil. On
// SQLite the transaction takes the write lock at its start; on PostgreSQL it is
// READ COMMITTED, so take row locks first. It is bounded by Config.TxTimeout.
//
// fn is called exactly once or not at all. It must not call Tx itself (on
// SQLite that would wait for its own lock until the deadline) and must not
// talk to anything but the database. Errors of fn come back unchanged unless
// they are the database's: those are an *InfraError. After an InfraError with
// Unknown set the transaction may have been committed.
func (db *DB) Tx(ctx context.Context, fn func(*sql.Tx) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.TxTimeout)
	defer cancel()
	if db.writer != nil {
		select {
		case db.writer <- struct{}{}:
			defer func() { <-db.writer }()
		case <-ctx.Done():
			return &InfraError{Op: "begin", Err: fmt.Errorf("wait for the writer: %w", context.Cause(ctx))}
		}
	}
	tx, err := db.pool.BeginTx(ctx, nil)
	if err != nil {
		return &InfraError{Op: "begin", Err: err}
	}
	db.txMu.Lock()
	db.pending[tx] = nil
	db.txMu.Unlock()
	done := false
	defer func() { // also when fn panics
		db.txMu.Lock()
		notes := db.pending[tx]
		delete(db.pending, tx)
		db.txMu.Unlock()
		if !done {
			_ = tx.Rollback() // the error of fn or the panic is what matters
			return
		}
		db.hub.send(notes)
	}()
	if err := fn(tx); err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return &InfraError{Op: "transaction", Err: err}
		}
		return Classify(err)
	}
	if err := tx.Commit(); err != nil {
		var infra *InfraError
		if err = Classify(err); errors.As(err, &infra) || statementFault(err) {
			if infra != nil {
				infra.Op, infra.Unknown = "commit", true
			}
			return err
		}
		return &InfraError{Op: "commit", Err: err, Unknown: true}
	}
	done = true
	return nil
}

// View runs fn in a read-only transaction that sees one snapshot. It never
// waits for writers.
func (db *DB) View(ctx context.Context, fn func(*sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.TxTimeout)
	defer cancel()
	opts := &sql.TxOptions{ReadOnly: true}
	if db.dialect.Name() == enginePostgres {
		opts.Isolation = sql.LevelRepeatableRead
	}
	tx, err := db.pool.BeginTx(ctx, opts)
	if err != nil {
		return &InfraError{Op: "begin", Err: err}
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	return Classify(fn(tx))
}

// Querier is what *sql.DB, *sql.Tx and *sql.Conn have in common.
type Querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Micros converts a time to the stored form; the zero time is 0.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Time is the inverse of Micros; the result is in UTC.
func Time(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
