// Package vaultdb keeps the vault's state in the control plane's database: the
// nouns of package dr, the catalogue of recovery points, registration keys,
// access and the event log. It owns the tables of the migration set "vault"
// and the SQL on them, one text for SQLite and PostgreSQL.
//
// It promises:
//
//   - Every function works on the Querier it is given, so a change of state and
//     the job row that carries it out share one transaction.
//   - An absent row is a *dr.Error of dr.KindNotFound; a row that exists already
//     or is still used is dr.KindConflict. Errors of the database itself match
//     sqldb.ErrInfrastructure (through sqldb.DB.Tx) and are never either of these.
//   - What the catalogue says about recovery points is a cache of the store. It
//     may be emptied and filled again from there.
//   - Events are only ever added.
//
// Documents inside columns are JSON with a version; unknown versions are refused.
package vaultdb

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

//go:embed migrations/*.sql
var files embed.FS

// Migrate creates or upgrades the tables.
func Migrate(ctx context.Context, db *sqldb.DB) error {
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		return fmt.Errorf("open migrations: %w", err)
	}
	return db.Migrate(ctx, "vault", sub)
}

// Key is the form under which names are compared: without case.
func Key(name string) string { return strings.ToLower(name) }

func notFound(op, what, name string) error {
	return dr.New(dr.KindNotFound, dr.CodeNotFound, op, "%s %q does not exist", what, name)
}

func exists(op, what, name string) error {
	return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "%s %q exists already", what, name)
}

// fail classifies a database error and says what was tried.
func fail(verb string, err error) error {
	if err == nil {
		return nil
	}
	return sqldb.Classify(fmt.Errorf("%s: %w", verb, err))
}

// exec runs a statement that must change exactly one row to be a success.
func exec(ctx context.Context, q sqldb.Querier, verb, query string, args ...any) (int64, error) {
	res, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, fail(verb, err)
	}
	n, err := res.RowsAffected()
	return n, fail(verb, err)
}

// list scans every row of a query.
func list[T any](ctx context.Context, q sqldb.Querier, verb string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fail(verb, err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fail(verb, err)
		}
		out = append(out, v)
	}
	return out, fail(verb, rows.Err())
}

// one scans the only row of a query; absent says what it means that there is none.
func one[T any](ctx context.Context, q sqldb.Querier, verb string, absent error, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	v, err := scan(q.QueryRowContext(ctx, query, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return v, absent
	}
	return v, fail(verb, err)
}

type scanner interface{ Scan(dest ...any) error }

// doc is the envelope of every JSON document in a column.
type doc[T any] struct {
	V int `json:"v"`
	D T   `json:"d"`
}

const docVersion = 1

func encode[T any](v T) string {
	b, err := json.Marshal(doc[T]{docVersion, v})
	if err != nil { // only strings, numbers and slices of them go in
		panic("vaultdb: encode document: " + err.Error())
	}
	return string(b)
}

func decode[T any](s string) (v T, err error) {
	if s == "" {
		return v, nil
	}
	var d doc[T]
	if err := json.Unmarshal([]byte(s), &d); err != nil {
		return v, fmt.Errorf("decode document: %w", err)
	}
	if d.V != docVersion {
		return v, dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, "vaultdb.decode",
			"the database holds a document of version %d, this program knows %d", d.V, docVersion)
	}
	return d.D, nil
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

func us(d time.Duration) int64   { return d.Microseconds() }
func dur(us int64) time.Duration { return time.Duration(us) * time.Microsecond }

// Setting returns a named document; "" when it was never set.
func Setting(ctx context.Context, q sqldb.Querier, name string) (string, error) {
	var v string
	err := q.QueryRowContext(ctx, "select value from setting where name = $1", name).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return v, fail("read setting "+name, err)
}

// SetSetting stores a named document.
func SetSetting(ctx context.Context, q sqldb.Querier, name, value string) error {
	_, err := exec(ctx, q, "store setting "+name,
		"insert into setting (name, value) values ($1, $2) on conflict (name) do update set value = excluded.value", name, value)
	return err
}

// InitSetting stores a named document unless it is there, and returns what is stored then.
func InitSetting(ctx context.Context, q sqldb.Querier, name, value string) (string, error) {
	if _, err := exec(ctx, q, "store setting "+name,
		"insert into setting (name, value) values ($1, $2) on conflict (name) do nothing", name, value); err != nil {
		return "", err
	}
	return Setting(ctx, q, name)
}
