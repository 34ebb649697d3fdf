package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the "sqlite" driver
)

const (
	engineSQLite   = "sqlite"
	enginePostgres = "postgres"
)

// Dialect is what callers must know about the engine behind one SQL text.
type Dialect interface {
	// Name is "sqlite" or "postgres".
	Name() string
	// LockClause is appended to a select that picks rows to work on: "for update
	// skip locked" on PostgreSQL, nothing on SQLite, where a transaction is alone.
	LockClause() string
	// Now returns the time that all replicas agree on: the database server's on
	// PostgreSQL, the host's on SQLite. It is read at the call, not frozen at the
	// start of the transaction.
	Now(ctx context.Context, q Querier) (time.Time, error)
}

type sqliteDialect struct{ clock func() time.Time }

func (sqliteDialect) Name() string       { return engineSQLite }
func (sqliteDialect) LockClause() string { return "" }
func (d sqliteDialect) Now(ctx context.Context, _ Querier) (time.Time, error) {
	if err := ctx.Err(); err != nil {
		return time.Time{}, &InfraError{Op: "now", Err: err}
	}
	return d.clock().UTC(), nil
}

type postgresDialect struct{}

func (postgresDialect) Name() string       { return enginePostgres }
func (postgresDialect) LockClause() string { return " for update skip locked" }
func (postgresDialect) Now(ctx context.Context, q Querier) (time.Time, error) {
	var us int64
	err := q.QueryRowContext(ctx, "select (extract(epoch from clock_timestamp())*1000000)::bigint").Scan(&us)
	if err != nil {
		return time.Time{}, Classify(fmt.Errorf("read the database's clock: %w", err))
	}
	return time.UnixMicro(us).UTC(), nil
}

// openSQLite locks the file against other processes, then opens it.
func (db *DB) openSQLite(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(abs), 0o700); err != nil {
		return fmt.Errorf("create the data directory: %w", err)
	}
	// One file must have one lock name, whatever way leads to its directory.
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	abs = filepath.Join(dir, filepath.Base(abs))
	unlock, err := lockFile(abs + ".lock")
	if err != nil {
		return fmt.Errorf("lock %s: %w", abs, err)
	}
	if f, err := os.OpenFile(abs, os.O_CREATE|os.O_RDWR, 0o600); err != nil { // SQLite would make it world-readable
		_ = unlock()
		return fmt.Errorf("open %s: %w", abs, err)
	} else {
		f.Close()
	}
	q := url.Values{}
	q.Set("_txlock", "immediate")
	for _, p := range []string{"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"} {
		q.Add("_pragma", p)
	}
	name := (&url.URL{Path: filepath.ToSlash(abs)}).EscapedPath()
	pool, err := sql.Open("sqlite", "file:"+name+"?"+q.Encode())
	if err != nil {
		_ = unlock()
		return fmt.Errorf("open %s: %w", abs, err)
	}
	db.pool, db.unlock = pool, unlock
	db.dialect = sqliteDialect{db.cfg.Clock}
	db.writer = make(chan struct{}, 1)
	db.hub = newHub(nil, nil, db.cfg.Log)
	return nil
}

// openPostgres prepares the pool; nothing is dialled yet.
func (db *DB) openPostgres() error {
	cfg, err := pgx.ParseConfig(db.cfg.URL)
	if err != nil {
		return fmt.Errorf("sqldb: database URL: %w", err) // the driver blanks the password
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	// A replica that stops inside a transaction must not keep its row locks for
	// ever: the others could not take over its jobs.
	setup := fmt.Sprintf("set idle_in_transaction_session_timeout = %d", db.cfg.TxTimeout.Milliseconds())
	db.pool = stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, setup)
		return err
	}))
	db.dialect = postgresDialect{}
	db.hub = newHub(db.pool, cfg, db.cfg.Log)
	return nil
}
