package vaultdb

import (
	"context"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// Principal is somebody who may call the API.
type Principal struct {
	Name    string // user name, or client id
	Kind    string // user or client
	Role    dr.Role
	Hash    string // of the password (argon2id) or client secret (SHA-256)
	Created time.Time
}

// The kinds of principals.
const (
	KindUser   = "user"
	KindClient = "client"
)

// SavePrincipal adds or replaces a principal.
func SavePrincipal(ctx context.Context, q sqldb.Querier, p Principal) error {
	_, err := exec(ctx, q, "store principal "+p.Name, `insert into principal (name, kind, role, hash, created) values ($1, $2, $3, $4, $5)
		on conflict (name) do update set kind = excluded.kind, role = excluded.role, hash = excluded.hash`,
		Key(p.Name), p.Kind, p.Role, p.Hash, sqldb.Micros(p.Created))
	return err
}

// PrincipalByName finds a principal by its name, without case.
func PrincipalByName(ctx context.Context, q sqldb.Querier, name string) (Principal, error) {
	return one(ctx, q, "read principal", notFound("vaultdb.PrincipalByName", "principal", name), scanPrincipal,
		"select name, kind, role, hash, created from principal where name = $1", Key(name))
}

// Principals lists everybody.
func Principals(ctx context.Context, q sqldb.Querier) ([]Principal, error) {
	return list(ctx, q, "list principals", scanPrincipal, "select name, kind, role, hash, created from principal order by name")
}

func scanPrincipal(s scanner) (p Principal, err error) {
	var created int64
	err = s.Scan(&p.Name, &p.Kind, &p.Role, &p.Hash, &created)
	p.Created = sqldb.Time(created)
	return p, err
}

// DeletePrincipal removes a principal and its tokens.
func DeletePrincipal(ctx context.Context, q sqldb.Querier, name string) error {
	if err := DeleteTokensOf(ctx, q, name); err != nil {
		return err
	}
	n, err := exec(ctx, q, "remove principal "+name, "delete from principal where name = $1", Key(name))
	if err == nil && n == 0 {
		return notFound("vaultdb.DeletePrincipal", "principal", name)
	}
	return err
}

// Token is a bearer token or a session: the hash of its secret only.
type Token struct {
	Hash      string // SHA-256, hex
	Principal string
	Kind      string // token or session
	Created   time.Time
	Expires   time.Time
}

// The kinds of tokens.
const (
	KindToken   = "token"
	KindSession = "session"
)

// InsertToken adds a token and removes expired ones.
func InsertToken(ctx context.Context, q sqldb.Querier, t Token) error {
	if _, err := exec(ctx, q, "remove expired tokens", "delete from token where expires <= $1", sqldb.Micros(t.Created)); err != nil {
		return err
	}
	_, err := exec(ctx, q, "store token", "insert into token (hash, principal, kind, created, expires) values ($1, $2, $3, $4, $5)",
		t.Hash, Key(t.Principal), t.Kind, sqldb.Micros(t.Created), sqldb.Micros(t.Expires))
	return err
}

// TokenPrincipal finds who holds an unexpired token.
func TokenPrincipal(ctx context.Context, q sqldb.Querier, hash, kind string, now time.Time) (Principal, error) {
	return one(ctx, q, "read token", dr.Errorf(dr.KindUnauthenticated, "vaultdb.TokenPrincipal", "the %s is unknown or has expired", kind), scanPrincipal,
		`select p.name, p.kind, p.role, p.hash, p.created from token t join principal p on p.name = t.principal
		where t.hash = $1 and t.kind = $2 and t.expires > $3`, hash, kind, sqldb.Micros(now))
}

// DeleteToken removes a token; removing an absent one succeeds.
func DeleteToken(ctx context.Context, q sqldb.Querier, hash string) error {
	_, err := exec(ctx, q, "remove token", "delete from token where hash = $1", hash)
	return err
}

// DeleteTokensOf ends everything that a principal holds.
func DeleteTokensOf(ctx context.Context, q sqldb.Querier, principal string) error {
	_, err := exec(ctx, q, "remove tokens", "delete from token where principal = $1", Key(principal))
	return err
}

// Event is an entry of the log: what happened to what, and who did it.
type Event struct {
	ID    string // sorts by time
	At    time.Time
	Kind  string // e.g. "failover", "vmSeenTwice"
	Item  dr.ItemID
	Agent dr.AgentID
	By    string
	Audit bool // somebody did something that has consequences
	Text  string
}

// AddEvent appends to the log.
func AddEvent(ctx context.Context, q sqldb.Querier, e Event) error {
	_, err := exec(ctx, q, "log event", "insert into event (id, at, kind, item, agent, by_who, audit, text) values ($1, $2, $3, $4, $5, $6, $7, $8)",
		e.ID, sqldb.Micros(e.At), e.Kind, e.Item, e.Agent, e.By, flag(e.Audit), e.Text)
	return err
}

// Events returns the newest events, of an item unless that is "", newest first.
func Events(ctx context.Context, q sqldb.Querier, item dr.ItemID, limit int) ([]Event, error) {
	return list(ctx, q, "list events", func(s scanner) (e Event, err error) {
		var at int64
		var audit int
		err = s.Scan(&e.ID, &at, &e.Kind, &e.Item, &e.Agent, &e.By, &audit, &e.Text)
		e.At, e.Audit = sqldb.Time(at), audit != 0
		return e, err
	}, `select id, at, kind, item, agent, by_who, audit, text from event where $1 = '' or item = $1 order by id desc limit $2`,
		string(item), max(limit, 1))
}
