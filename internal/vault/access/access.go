// Package access is who may call a vault: users with passwords, API clients
// with secrets, and the tokens and sessions that these are exchanged for.
//
// It promises that only hashes are stored, that a wrong name takes as long as a
// wrong password, and that at most two passwords are hashed at a time.
package access

import (
	"context"
	"database/sql"
	"sync"
	"time"

	"github.com/google/uuid"

	"holdfast/internal/authn"
	"holdfast/internal/dr"
	"holdfast/internal/vault/state"
	"holdfast/internal/vaultdb"
)

// Lifetimes of what a sign-in gives.
const (
	TokenLifetime   = 4 * time.Hour
	SessionLifetime = 12 * time.Hour
)

// AdminName is the user that the first start makes.
const AdminName = "admin"

// Principal is an authenticated caller.
type Principal struct {
	Name string
	Role dr.Role
}

// Access checks callers. It is safe for concurrent use.
type Access struct {
	st     *state.State
	hasher *authn.Hasher

	mu        sync.Mutex
	bootstrap *Bootstrap
}

// New makes an Access; it does no I/O.
func New(st *state.State) *Access { return &Access{st: st, hasher: authn.NewHasher(2)} }

// Bootstrap is what the very first start made: shown once, stored as hashes only.
type Bootstrap struct {
	User, Password         string
	ClientID, ClientSecret string
}

// TakeBootstrap returns the first credentials once, in the process that made
// them. A caller that loses them uses ResetPassword and CreateClient.
func (a *Access) TakeBootstrap() (Bootstrap, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bootstrap == nil {
		return Bootstrap{}, false
	}
	b := *a.bootstrap
	a.bootstrap = nil
	return b, true
}

// Open makes the first owner and an API client, if there is nobody yet.
func (a *Access) Open(ctx context.Context) error {
	all, err := vaultdb.Principals(ctx, a.st.Q())
	if err != nil || len(all) > 0 {
		return state.Outward(err)
	}
	b := Bootstrap{User: AdminName, Password: authn.NewSecret("")[:20], ClientID: uuid.NewString(), ClientSecret: authn.NewSecret("hfs_")}
	hash, err := a.hasher.Hash(ctx, b.Password)
	if err != nil {
		return err
	}
	made := false
	err = a.st.Tx(ctx, func(tx *sql.Tx) error {
		made = false
		// One of several replicas that start together does it.
		first := uuid.NewString()
		if won, err := vaultdb.InitSetting(ctx, tx, "bootstrap", first); err != nil || won != first {
			return err
		}
		made = true
		for _, p := range []vaultdb.Principal{
			{Name: b.User, Kind: vaultdb.KindUser, Role: dr.RoleOwner, Hash: hash, Created: a.st.Now()},
			{Name: b.ClientID, Kind: vaultdb.KindClient, Role: dr.RoleOwner, Hash: authn.HashSecret(b.ClientSecret), Created: a.st.Now()},
		} {
			if err := vaultdb.SavePrincipal(ctx, tx, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && made {
		a.mu.Lock()
		a.bootstrap = &b
		a.mu.Unlock()
	}
	return err
}

// ResetPassword gives a user a new random password and ends its sessions; the
// user is made, as owner, if it does not exist. For the machine's administrator.
func (a *Access) ResetPassword(ctx context.Context, user string) (password string, err error) {
	password = authn.NewSecret("")[:20]
	return password, a.SaveUser(ctx, user, password, "", "local administrator")
}

// SaveUser makes a user or changes its password and role; role "" keeps the
// role, or makes an owner. Its sessions end.
func (a *Access) SaveUser(ctx context.Context, user, password string, role dr.Role, by string) error {
	if user == "" || len(password) < 12 {
		return dr.Errorf(dr.KindInvalid, "vault.SaveUser", "a user needs a name and a password of at least 12 characters")
	}
	hash, err := a.hasher.Hash(ctx, password)
	if err != nil {
		return err
	}
	return a.st.Tx(ctx, func(tx *sql.Tx) error {
		p := vaultdb.Principal{Name: user, Kind: vaultdb.KindUser, Role: role, Hash: hash, Created: a.st.Now()}
		if role == "" {
			p.Role = dr.RoleOwner
			if old, err := vaultdb.PrincipalByName(ctx, tx, user); err == nil {
				p.Role = old.Role
			} else if dr.KindOf(err) != dr.KindNotFound {
				return err
			}
		}
		if err := vaultdb.SavePrincipal(ctx, tx, p); err != nil {
			return err
		}
		if err := vaultdb.DeleteTokensOf(ctx, tx, user); err != nil {
			return err
		}
		return a.st.Note(ctx, tx, vaultdb.Event{Kind: "access", By: by, Audit: true}, "user %s was given a password and the role %s", user, p.Role)
	})
}

// CreateClient makes an API client of a role and returns its secret, once.
func (a *Access) CreateClient(ctx context.Context, role dr.Role, by string) (clientID, secret string, err error) {
	if !role.Includes(dr.RoleReader) {
		return "", "", dr.Errorf(dr.KindInvalid, "vault.CreateClient", "%q is not a role", role)
	}
	clientID, secret = uuid.NewString(), authn.NewSecret("hfs_")
	err = a.st.Tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.SavePrincipal(ctx, tx, vaultdb.Principal{Name: clientID, Kind: vaultdb.KindClient, Role: role,
			Hash: authn.HashSecret(secret), Created: a.st.Now()}); err != nil {
			return err
		}
		return a.st.Note(ctx, tx, vaultdb.Event{Kind: "access", By: by, Audit: true}, "API client %s of role %s was made", clientID, role)
	})
	return clientID, secret, err
}

// RemovePrincipal removes a user or client and everything it holds.
func (a *Access) RemovePrincipal(ctx context.Context, name, by string) error {
	return a.st.Tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.DeletePrincipal(ctx, tx, name); err != nil {
			return err
		}
		return a.st.Note(ctx, tx, vaultdb.Event{Kind: "access", By: by, Audit: true}, "%s was removed", name)
	})
}

var errSignIn = dr.Errorf(dr.KindUnauthenticated, "vault.SignIn", "the name or the secret is wrong")

// IssueToken is the client-credentials grant; expiresIn is in seconds.
func (a *Access) IssueToken(ctx context.Context, clientID, secret string) (token string, expiresIn int, err error) {
	p, err := vaultdb.PrincipalByName(ctx, a.st.Q(), clientID)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return "", 0, state.Outward(err)
	}
	if !authn.SameSecret(secret, p.Hash) || err != nil || p.Kind != vaultdb.KindClient {
		return "", 0, errSignIn
	}
	token = authn.NewSecret("hft_")
	return token, int(TokenLifetime / time.Second), a.keepToken(ctx, token, p, vaultdb.KindToken, TokenLifetime)
}

func (a *Access) keepToken(ctx context.Context, token string, p vaultdb.Principal, kind string, life time.Duration) error {
	now := a.st.Now()
	return a.st.Tx(ctx, func(tx *sql.Tx) error {
		return vaultdb.InsertToken(ctx, tx, vaultdb.Token{Hash: authn.HashSecret(token), Principal: p.Name, Kind: kind, Created: now, Expires: now.Add(life)})
	})
}

// Login signs a user in at the portal and returns a session token, a secret.
// Passwords are checked two at a time.
func (a *Access) Login(ctx context.Context, user, password string) (session string, p Principal, err error) {
	row, err := vaultdb.PrincipalByName(ctx, a.st.Q(), user)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return "", Principal{}, state.Outward(err)
	}
	if row.Kind != vaultdb.KindUser {
		row = vaultdb.Principal{} // takes as long as a real one
	}
	ok, err := a.hasher.Verify(ctx, password, row.Hash)
	if err != nil {
		return "", Principal{}, err
	}
	if !ok {
		a.st.Log.Info("sign-in refused", "user", user)
		return "", Principal{}, errSignIn
	}
	session = authn.NewSecret("hfp_")
	return session, Principal{Name: row.Name, Role: row.Role}, a.keepToken(ctx, session, row, vaultdb.KindSession, SessionLifetime)
}

// Session checks a session token of the portal.
func (a *Access) Session(ctx context.Context, session string) (Principal, error) {
	p, err := vaultdb.TokenPrincipal(ctx, a.st.Q(), authn.HashSecret(session), vaultdb.KindSession, a.st.Now())
	return Principal{Name: p.Name, Role: p.Role}, state.Outward(err)
}

// Logout ends a session or a token; ending an unknown one succeeds.
func (a *Access) Logout(ctx context.Context, token string) error {
	return a.st.Tx(ctx, func(tx *sql.Tx) error { return vaultdb.DeleteToken(ctx, tx, authn.HashSecret(token)) })
}

// Authenticate checks a bearer token of the API.
func (a *Access) Authenticate(ctx context.Context, bearer string) (Principal, error) {
	p, err := vaultdb.TokenPrincipal(ctx, a.st.Q(), authn.HashSecret(bearer), vaultdb.KindToken, a.st.Now())
	return Principal{Name: p.Name, Role: p.Role}, state.Outward(err)
}
