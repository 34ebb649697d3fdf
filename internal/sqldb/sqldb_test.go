package sqldb_test

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"holdfast/internal/sqldb"
	"holdfast/internal/sqldb/sqldbtest"
)

//go:embed testdata/*.sql
var files embed.FS

func TestMain(m *testing.M) {
	if url := os.Getenv("SQLDB_TEST_HOLD"); url != "" {
		hold(url)
		return
	}
	sqldbtest.Main(m)
}

// hold is a second process that opens the database and waits to be killed.
func hold(url string) {
	if _, err := sqldb.Open(context.Background(), sqldb.Config{URL: url}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("open")
	select {}
}

func migrate(t *testing.T, db *sqldb.DB) {
	t.Helper()
	if err := db.Migrate(t.Context(), "test", files); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, db *sqldb.DB) (n int) {
	t.Helper()
	if err := db.SQL().QueryRowContext(t.Context(), "select count(*) from thing").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOneTextOnBothEngines(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		migrate(t, db)
		when := time.Date(2026, 11, 22, 3, 0, 0, 123456000, time.UTC)
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			for range 2 {
				if _, err := tx.ExecContext(t.Context(), `insert into thing(id, at, body, doc, flag) values($1,$2,$3,$4,$5)
					on conflict (id) do update set doc = excluded.doc`, "a", sqldb.Micros(when), []byte{0, 1, 0xff}, `{"x":1}`, true); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var at int64
		var body []byte
		var doc string
		var flag bool
		if err := db.SQL().QueryRowContext(t.Context(), "select at, body, doc, flag from thing where id=$1 and $1<>$2", "a", "b").
			Scan(&at, &body, &doc, &flag); err != nil {
			t.Fatal(err)
		}
		if !sqldb.Time(at).Equal(when) || string(body) != "\x00\x01\xff" || doc != `{"x":1}` || !flag {
			t.Errorf("read %v %x %s %v", sqldb.Time(at), body, doc, flag)
		}
		var id string
		if err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			return tx.QueryRowContext(t.Context(), "select id from thing where at>$1 order by id limit 1"+db.Dialect().LockClause(), 0).Scan(&id)
		}); err != nil || id != "a" {
			t.Errorf("locked select: %q, %v", id, err)
		}
		now, err := db.Dialect().Now(t.Context(), db.SQL())
		if err != nil || time.Since(now).Abs() > 5*time.Second || now.Location() != time.UTC {
			t.Errorf("now = %v, %v", now, err)
		}
	})
}

func TestTxCommitsOrLeavesNothing(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		migrate(t, db)
		insert := func(tx *sql.Tx, id string) error {
			_, err := tx.ExecContext(t.Context(), "insert into thing(id) values($1)", id)
			return err
		}
		own := errors.New("own")
		if err := db.Tx(t.Context(), func(tx *sql.Tx) error { _ = insert(tx, "x"); return own }); err != own {
			t.Errorf("fn's error came back as %v", err)
		}
		func() {
			defer func() { _ = recover() }()
			_ = db.Tx(t.Context(), func(tx *sql.Tx) error { _ = insert(tx, "x"); panic("x") })
		}()
		ctx, cancel := context.WithCancel(t.Context())
		err := db.Tx(ctx, func(tx *sql.Tx) error { err := insert(tx, "x"); cancel(); return err })
		if !errors.Is(err, sqldb.ErrInfrastructure) || !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled transaction: %v", err)
		}
		if n := count(t, db); n != 0 {
			t.Errorf("%d rows after nothing was committed", n)
		}
		if err := db.Tx(t.Context(), func(tx *sql.Tx) error { return insert(tx, "x") }); err != nil {
			t.Fatal(err)
		}
		err = db.Tx(t.Context(), func(tx *sql.Tx) error { return insert(tx, "x") })
		if !sqldb.UniqueViolation(err) || errors.Is(err, sqldb.ErrInfrastructure) {
			t.Errorf("second insert: %v", err)
		}
		err = db.Tx(t.Context(), func(tx *sql.Tx) error { _, err := tx.Exec("selekt 1"); return err })
		if err == nil || errors.Is(err, sqldb.ErrInfrastructure) {
			t.Errorf("syntax error: %v", err)
		}
		err = db.View(t.Context(), func(tx *sql.Tx) error {
			return tx.QueryRow("select id from thing where id='nobody'").Scan(new(string))
		})
		if !errors.Is(err, sql.ErrNoRows) || errors.Is(err, sqldb.ErrInfrastructure) {
			t.Errorf("no rows: %v", err)
		}
	})
}

func TestManyWritersAllCommit(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		migrate(t, db)
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				for i := range 10 {
					err := db.Tx(t.Context(), func(tx *sql.Tx) error {
						_, err := tx.ExecContext(t.Context(), "insert into thing(id) values($1)", fmt.Sprint(w, "/", i))
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if n := count(t, db); n != 160 {
			t.Errorf("%d rows", n)
		}
	})
}

func TestSQLiteSettings(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t, sqldb.Config{URL: filepath.Join(t.TempDir(), "sub dir", "a?b#c%20.db")})
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		var got string
		if err := db.SQL().QueryRow("pragma " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %s", pragma, got, err, want)
		}
	}
	path := strings.TrimPrefix(db.String(), "sqlite:")
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("database file: %v, %v", fi, err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	url := "sqlite://" + filepath.Join(dir, "v.db")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "SQLDB_TEST_HOLD="+url)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, _ := out.Read(buf)
	if got := string(buf[:n]); got != "open\n" {
		t.Fatalf("the first process said %q", got)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{url, filepath.Join(link, "v.db")} {
		if _, err := sqldb.Open(t.Context(), sqldb.Config{URL: u}); !errors.Is(err, sqldb.ErrInUse) {
			t.Errorf("open %s while another process has it: %v", u, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	sqldbtest.Open(t, sqldb.Config{URL: url}) // the kernel freed the lock
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "mysql://x/y", "sqlite://host/x", "sqlite:", ":memory:", "sqlite:///x?mode=memory"} {
		if err := (sqldb.Config{URL: u}).Validate(); err == nil {
			t.Errorf("%q is accepted", u)
		}
	}
	for _, u := range []string{"sqlite:///x.db", "sqlite:x.db", "x.db", "postgres://h/db", "postgresql://h/db"} {
		if err := (sqldb.Config{URL: u}).Validate(); err != nil {
			t.Error(err)
		}
	}
	_, err := sqldb.Open(t.Context(), sqldb.Config{URL: "postgres://u:s3cret@127.0.0.1:1/db?connect_timeout=1"})
	if !errors.Is(err, sqldb.ErrInfrastructure) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("unreachable server: %v", err)
	}
	_, err = sqldb.Open(t.Context(), sqldb.Config{URL: "postgres://u:s3cret@h:port/db"})
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("bad URL: %v", err)
	}
}

func TestMigrateSetsCoexistAndNewerIsRefused(t *testing.T) {
	t.Parallel()
	set := func(table string, n int) fstest.MapFS {
		m := fstest.MapFS{}
		for i := 1; i <= n; i++ {
			m[fmt.Sprintf("%05d_x.sql", i)] = &fstest.MapFile{Data: fmt.Appendf(nil, "-- +goose Up\ncreate table %s%d (id text primary key);\n", table, i)}
		}
		return m
	}
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		for range 2 { // again is nothing
			for _, name := range []string{"a", "b"} {
				if err := db.Migrate(t.Context(), name, set(name, 2)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := db.Migrate(t.Context(), "b", set("b", 3)); err != nil {
			t.Fatal(err)
		}
		if err := db.Migrate(t.Context(), "b", set("b", 2)); err == nil || !strings.Contains(err.Error(), "version 3") {
			t.Errorf("a program older than the database: %v", err)
		}
		if err := db.Migrate(t.Context(), "Bad-Name", set("c", 1)); err == nil {
			t.Error("bad set name accepted")
		}
		bad := fstest.MapFS{"00001_x.sql": {Data: []byte("-- +goose Up\ncreate table half(id text);\ncreate nonsense;\n")}}
		if err := db.Migrate(t.Context(), "c", bad); err == nil {
			t.Error("broken migration passes")
		}
		if _, err := db.SQL().Exec("select * from half"); err == nil {
			t.Error("a broken migration left half of itself")
		}
	})
}

func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := sqldbtest.PostgresURL(t)
	var wg sync.WaitGroup
	for range 3 {
		db := sqldbtest.Open(t, sqldb.Config{URL: url})
		wg.Go(func() {
			if err := db.Migrate(t.Context(), "test", mustSub(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func mustSub(t *testing.T) fs.FS {
	sub, err := fs.Sub(files, "testdata")
	if err != nil {
		t.Error(err)
	}
	return sub
}

// await takes from l until key is there.
func await(t *testing.T, l *sqldb.Listener, key string) {
	t.Helper()
	for deadline := time.After(10 * time.Second); ; {
		select {
		case <-l.C():
			keys, all := l.Take()
			for _, k := range keys {
				if k == key {
					return
				}
			}
			if all && key == "*" {
				return
			}
		case <-deadline:
			t.Fatalf("no notification of %s", key)
		}
	}
}

func TestNotifyAfterCommitOnly(t *testing.T) {
	t.Parallel()
	sqldbtest.Each(t, func(t *testing.T, db *sqldb.DB) {
		l, other := db.Listen("job"), db.Listen("other")
		defer l.Close()
		defer other.Close()
		_ = db.Tx(t.Context(), func(tx *sql.Tx) error {
			db.NotifyTx(tx, "job", "never")
			return errors.New("no")
		})
		err := db.Tx(t.Context(), func(tx *sql.Tx) error {
			db.NotifyTx(tx, "job", "j1", "j2")
			select {
			case <-l.C():
				if keys, _ := l.Take(); len(keys) > 0 {
					t.Errorf("heard of %v before the commit", keys)
				}
			default:
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		await(t, l, "j1")
		if keys, _ := other.Take(); len(keys) > 0 {
			t.Errorf("the other topic heard %v", keys)
		}
	})
}

func TestNotifyBetweenReplicasAndAfterACrash(t *testing.T) {
	t.Parallel()
	c := sqldbtest.NewCluster(t, false)
	url := c.Database(t)
	a, b := sqldbtest.Open(t, sqldb.Config{URL: url}), sqldbtest.Open(t, sqldb.Config{URL: url})
	l := b.Listen("job")
	defer l.Close()
	await(t, l, "*") // listening
	a.Notify("job", "j1")
	await(t, l, "j1")
	var keys []string
	for i := range 3000 { // more than one message holds
		keys = append(keys, fmt.Sprintf("%04d-%s", i, strings.Repeat("k", 20)))
	}
	a.Notify("job", keys...)
	got := map[string]bool{}
	for deadline := time.After(10 * time.Second); len(got) < len(keys); {
		select {
		case <-l.C():
			ks, _ := l.Take()
			for _, k := range ks {
				got[k] = true
			}
		case <-deadline:
			t.Fatalf("%d of %d notifications", len(got), len(keys))
		}
	}
	if err := c.Crash(); err != nil {
		t.Fatal(err)
	}
	err := a.Tx(t.Context(), func(tx *sql.Tx) error { return nil })
	if !errors.Is(err, sqldb.ErrInfrastructure) {
		t.Errorf("transaction without a server: %v", err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, l, "*") // told that it may have missed something
	a.Notify("job", "j2")
	await(t, l, "j2")
}

func TestCrashInsideATransactionIsInfrastructure(t *testing.T) {
	t.Parallel()
	c := sqldbtest.NewCluster(t, false)
	db := sqldbtest.Open(t, sqldb.Config{URL: c.Database(t)})
	migrate(t, db)
	err := db.Tx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("insert into thing(id) values('x')"); err != nil {
			return err
		}
		if err := c.Crash(); err != nil {
			return err
		}
		_, err := tx.Exec("insert into thing(id) values('y')")
		return err
	})
	if !errors.Is(err, sqldb.ErrInfrastructure) {
		t.Errorf("server gone in a statement: %v", err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	err = db.Tx(t.Context(), func(tx *sql.Tx) error {
		_ = c.Crash()
		return nil
	})
	var infra *sqldb.InfraError
	if !errors.As(err, &infra) || !infra.Unknown {
		t.Errorf("server gone at the commit: %v", err)
	}
}

func TestFullDiskIsInfrastructure(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t, sqldb.Config{URL: sqldbtest.SQLiteURL(t), MaxConns: 1})
	migrate(t, db)
	if _, err := db.SQL().Exec("pragma max_page_count=1"); err != nil { // SQLite raises it to the present size
		t.Fatal(err)
	}
	insert := func(id string) error {
		return db.Tx(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec("insert into thing(id, body) values($1,$2)", id, make([]byte, 100_000))
			return err
		})
	}
	if err := insert("x"); !errors.Is(err, sqldb.ErrInfrastructure) || !strings.Contains(err.Error(), "full") {
		t.Errorf("insert into a full database: %v", err)
	}
	if _, err := db.SQL().Exec("pragma max_page_count=1000000"); err != nil {
		t.Fatal(err)
	}
	if err := insert("x"); err != nil {
		t.Error(err)
	}
}

func TestLockConflictIsInfrastructure(t *testing.T) {
	t.Parallel()
	db := sqldbtest.Open(t, sqldb.Config{URL: sqldbtest.PostgresURL(t)})
	migrate(t, db)
	for _, id := range []string{"a", "b"} {
		if _, err := db.SQL().Exec("insert into thing(id) values($1)", id); err != nil {
			t.Fatal(err)
		}
	}
	both := make(chan struct{}, 2)
	errs := make(chan error, 2)
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		go func() {
			errs <- db.Tx(t.Context(), func(tx *sql.Tx) error {
				for i, id := range order {
					if _, err := tx.Exec("update thing set at=1 where id=$1", id); err != nil {
						return err
					}
					if i == 0 {
						both <- struct{}{}
						for len(both) < 2 {
							time.Sleep(time.Millisecond)
						}
					}
				}
				return nil
			})
		}()
	}
	err := errors.Join(<-errs, <-errs)
	if !errors.Is(err, sqldb.ErrInfrastructure) {
		t.Errorf("deadlock: %v", err)
	}
}
