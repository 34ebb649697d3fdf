package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrInfrastructure is matched by every error that is the database's fault, not
// the statement's. Trying again later is right; changing state because of it is not.
var ErrInfrastructure = errors.New("database unavailable")

// InfraError is an infrastructure error with its cause.
type InfraError struct {
	Op      string // begin, statement, transaction, commit, …
	Unknown bool   // the commit may have happened
	Err     error
}

// Error renders "database unavailable: op: cause".
func (e *InfraError) Error() string {
	return ErrInfrastructure.Error() + ": " + e.Op + ": " + e.Err.Error()
}

// Unwrap makes both ErrInfrastructure and the cause visible to errors.Is.
func (e *InfraError) Unwrap() []error { return []error{ErrInfrastructure, e.Err} }

// Classify returns err as an *InfraError if it is the database's fault, and
// unchanged otherwise. nil and already classified errors pass.
func Classify(err error) error {
	if err == nil || errors.Is(err, ErrInfrastructure) || !infrastructure(err) {
		return err
	}
	return &InfraError{Op: "statement", Err: err}
}

// infrastructure decides by what the server or driver said. For errors with an
// SQL state or a result code everything is infrastructure that is not known to
// be the statement's fault; a list of the good ones would miss the next one.
func infrastructure(err error) bool {
	if errors.Is(err, sql.ErrNoRows) {
		return false
	}
	var pg *pgconn.PgError
	var lite *sqlite.Error
	if errors.As(err, &pg) || errors.As(err, &lite) {
		return !statementFault(err)
	}
	var connect *pgconn.ConnectError
	var netErr net.Error
	for _, known := range []error{driver.ErrBadConn, sql.ErrConnDone, sql.ErrTxDone, io.EOF, io.ErrUnexpectedEOF,
		net.ErrClosed, os.ErrDeadlineExceeded, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return true
		}
	}
	return errors.As(err, &connect) || errors.As(err, &netErr) || pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		err.Error() == "sql: database is closed"
}

// statementFault reports that the database refused this statement and would
// refuse it again.
func statementFault(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && len(pg.Code) == 5 {
		switch pg.Code[:2] {
		case "22", "23", "42", "21", "P0", "44", "2F", "38", "39", "34", "3B":
			return true
		case "0A": // also "cached plan must not change result type", after another replica's migration
			return !strings.Contains(pg.Message, "cached plan")
		}
		return false
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG,
			sqlite3.SQLITE_RANGE, sqlite3.SQLITE_MISUSE:
			return true
		}
	}
	return false
}

// UniqueViolation reports that err says a unique index or primary key has the
// value already. On PostgreSQL the transaction is dead after it; prefer
// "on conflict do nothing".
func UniqueViolation(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23505"
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return false
}

// ErrInUse says that another DB, in this process or another, has the SQLite file open.
var ErrInUse = errors.New("database is in use")
