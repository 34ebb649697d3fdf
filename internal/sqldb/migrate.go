package sqldb

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

var setName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,30}$`)

// Migrate brings one named set of migrations up to date. Several sets live in
// one database; each keeps its own version table goose_<name>. The files are
// goose SQL files (NNNNN_title.sql) in the root of fsys or in its only
// directory, one text for both engines; each runs in a transaction of its own.
//
// Any number of replicas may call it at once on an empty database: a session
// lock on PostgreSQL and the file lock on SQLite let one work and the others
// wait. A database that a newer program has migrated is refused.
func (db *DB) Migrate(ctx context.Context, name string, fsys fs.FS) error {
	if !setName.MatchString(name) {
		return fmt.Errorf("migrate: %q is not a name of lower-case letters, digits and _", name)
	}
	db.migrate.Lock()
	defer db.migrate.Unlock()
	opts := []goose.ProviderOption{
		goose.WithTableName("goose_" + name),
		goose.WithDisableGlobalRegistry(true),
		goose.WithSlog(db.cfg.Log),
	}
	fsys, err := migrationDir(fsys)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", name, err)
	}
	kind := database.DialectSQLite3
	if db.dialect.Name() == enginePostgres {
		kind = database.DialectPostgres
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300), lock.WithUnlockTimeout(1, 30))
		if err != nil {
			return fmt.Errorf("migrate %s: %w", name, err)
		}
		opts = append(opts, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(kind, db.pool, fsys, opts...)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", name, err)
	}
	if _, err := p.Up(ctx); err != nil {
		return Classify(fmt.Errorf("migrate %s of %s: %w", name, db, err))
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return Classify(fmt.Errorf("migrate %s of %s: %w", name, db, err))
	}
	if have > want {
		return fmt.Errorf("migrate %s: %s has version %d, this program knows %d: start a program at least as new as the one that wrote it",
			name, db, have, want)
	}
	return nil
}

// migrationDir goes down into the only directory of an embedded tree.
func migrationDir(fsys fs.FS) (fs.FS, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, err
	}
	if len(entries) == 1 && entries[0].IsDir() {
		return fs.Sub(fsys, entries[0].Name())
	}
	return fsys, nil
}
