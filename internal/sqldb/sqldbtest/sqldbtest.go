// Package sqldbtest runs tests on both database engines: SQLite in a temporary
// directory and a PostgreSQL cluster that the test binary starts for itself. A
// missing PostgreSQL fails the test; it never skips.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { sqldbtest.Main(m) }
package sqldbtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/sqldb"
)

// shared is the one cluster of a test binary, started by the first test that
// needs it and stopped by Main.
var shared struct {
	sync.Mutex
	inMain  bool
	cluster *Cluster
	err     error
}

// Main runs the tests, stops the shared cluster and exits.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain with an end of its own; it returns the exit code.
func Run(m *testing.M) int {
	shared.Lock()
	shared.inMain = true
	shared.Unlock()
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster != nil {
		if err := shared.cluster.Remove(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the test's PostgreSQL:", err)
			code = max(code, 1)
		}
	}
	return code
}

// Each runs f as a parallel subtest on SQLite and on PostgreSQL, each time on an
// empty database that is closed and removed at the end.
func Each(t *testing.T, f func(t *testing.T, db *sqldb.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		f(t, Open(t, sqldb.Config{URL: SQLiteURL(t)}))
	})
	t.Run("postgres", func(t *testing.T) {
		if testing.Short() {
			t.Skip("the quick run is on SQLite; the full one is on both")
		}
		t.Parallel()
		f(t, Open(t, sqldb.Config{URL: PostgresURL(t)}))
	})
}

// Open opens a database and closes it at the end of the test.
func Open(t testing.TB, cfg sqldb.Config) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close %s: %v", db, err)
		}
	})
	return db
}

// SQLiteURL names a file that does not exist yet.
func SQLiteURL(t testing.TB) string {
	return "sqlite://" + filepath.Join(t.TempDir(), "vault.db")
}

// PostgresURL makes an empty database in the shared cluster (fsync off) and
// drops it at the end of the test.
func PostgresURL(t testing.TB) string {
	t.Helper()
	shared.Lock()
	if !shared.inMain {
		shared.Unlock()
		t.Fatal("sqldbtest: TestMain must call sqldbtest.Main, or the database server would outlive the tests")
	}
	if shared.cluster == nil && shared.err == nil {
		shared.cluster, shared.err = startCluster(false)
	}
	c, err := shared.cluster, shared.err
	shared.Unlock()
	if err != nil {
		t.Fatalf("start PostgreSQL for the tests: %v", err)
	}
	return c.Database(t)
}

// NewCluster starts a cluster for one test, which may stop and start it, and
// removes it at the end. fsync=true makes it as slow and as durable as a real one.
func NewCluster(t testing.TB, fsync bool) *Cluster {
	t.Helper()
	c, err := startCluster(fsync)
	if err != nil {
		t.Fatalf("start PostgreSQL for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Remove(); err != nil {
			t.Errorf("remove the cluster: %v", err)
		}
	})
	return c
}

// Database makes an empty database and returns its URL. It is dropped at the end
// of the test if the cluster still runs.
func (c *Cluster) Database(t testing.TB) string {
	t.Helper()
	name := "t" + strings.ToLower(rand.Text())[:16]
	if err := c.admin("create database " + name + " template template0"); err != nil {
		t.Fatalf("create the test's database: %v", err)
	}
	t.Cleanup(func() {
		if !c.Running() {
			return
		}
		if err := c.admin("drop database " + name + " with (force)"); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return c.url(name)
}

func (c *Cluster) url(database string) string {
	return "postgres:///" + database + "?" + url.Values{"host": {c.socketDir()}, "user": {"holdfast"}}.Encode()
}

func (c *Cluster) admin(statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	db, err := sqldb.Open(ctx, sqldb.Config{URL: c.url("postgres"), MaxConns: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.SQL().ExecContext(ctx, statement)
	return err
}
