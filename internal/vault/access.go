package vault

import (
	"context"
	"database/sql"
	"time"

	"github.com/google/uuid"

	"holdfast/internal/authn"
	"holdfast/internal/dr"
	"holdfast/internal/vaultdb"
)

// Lifetimes of what a sign-in gives.
const (
	TokenLifetime   = 4 * time.Hour
	SessionLifetime = 12 * time.Hour
)

// AdminName is the user that the first start makes.
const AdminName = "admin"

// Bootstrap is what the very first start made: shown once, stored as hashes only.
type Bootstrap struct {
	User, Password         string
	ClientID, ClientSecret string
}

// TakeBootstrap returns the first credentials once, in the process that made
// them. A caller that loses them uses ResetPassword and CreateClient.
func (v *Vault) TakeBootstrap() (Bootstrap, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bootstrap == nil {
		return Bootstrap{}, false
	}
	b := *v.bootstrap
	v.bootstrap = nil
	return b, true
}

// bootstrapAccess makes the first owner and an API client, if there is nobody yet.
func (v *Vault) bootstrapAccess(ctx context.Context) error {
	all, err := vaultdb.Principals(ctx, v.q())
	if err != nil || len(all) > 0 {
		return outward(err)
	}
	b := Bootstrap{User: AdminName, Password: authn.NewSecret("")[:20], ClientID: uuid.NewString(), ClientSecret: authn.NewSecret("hfs_")}
	hash, err := v.hasher.Hash(ctx, b.Password)
	if err != nil {
		return err
	}
	made := false
	err = v.tx(ctx, func(tx *sql.Tx) error {
		made = false
		// One of several replicas that start together does it.
		first := uuid.NewString()
		if won, err := vaultdb.InitSetting(ctx, tx, "bootstrap", first); err != nil || won != first {
			return err
		}
		made = true
		for _, p := range []vaultdb.Principal{
			{Name: b.User, Kind: vaultdb.KindUser, Role: dr.RoleOwner, Hash: hash, Created: v.now()},
			{Name: b.ClientID, Kind: vaultdb.KindClient, Role: dr.RoleOwner, Hash: authn.HashSecret(b.ClientSecret), Created: v.now()},
		} {
			if err := vaultdb.SavePrincipal(ctx, tx, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && made {
		v.mu.Lock()
		v.bootstrap = &b
		v.mu.Unlock()
	}
	return err
}

// ResetPassword gives a user a new random password and ends its sessions; the
// user is made, as owner, if it does not exist. For the machine's administrator.
func (v *Vault) ResetPassword(ctx context.Context, user string) (password string, err error) {
	password = authn.NewSecret("")[:20]
	return password, v.SaveUser(ctx, user, password, "", "local administrator")
}

// SaveUser makes a user or changes its password and role; role "" keeps the
// role, or makes an owner. Its sessions end.
func (v *Vault) SaveUser(ctx context.Context, user, password string, role dr.Role, by string) error {
	if user == "" || len(password) < 12 {
		return dr.Errorf(dr.KindInvalid, "vault.SaveUser", "a user needs a name and a password of at least 12 characters")
	}
	hash, err := v.hasher.Hash(ctx, password)
	if err != nil {
		return err
	}
	return v.tx(ctx, func(tx *sql.Tx) error {
		p := vaultdb.Principal{Name: user, Kind: vaultdb.KindUser, Role: role, Hash: hash, Created: v.now()}
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
		return v.note(ctx, tx, vaultdb.Event{Kind: "access", By: by, Audit: true}, "user %s was given a password and the role %s", user, p.Role)
	})
}

// CreateClient makes an API client of a role and returns its secret, once.
func (v *Vault) CreateClient(ctx context.Context, role dr.Role, by string) (clientID, secret string, err error) {
	if !role.Includes(dr.RoleReader) {
		return "", "", dr.Errorf(dr.KindInvalid, "vault.CreateClient", "%q is not a role", role)
	}
	clientID, secret = uuid.NewString(), authn.NewSecret("hfs_")
	err = v.tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.SavePrincipal(ctx, tx, vaultdb.Principal{Name: clientID, Kind: vaultdb.KindClient, Role: role,
			Hash: authn.HashSecret(secret), Created: v.now()}); err != nil {
			return err
		}
		return v.note(ctx, tx, vaultdb.Event{Kind: "access", By: by, Audit: true}, "API client %s of role %s was made", clientID, role)
	})
	return clientID, secret, err
}

// RemovePrincipal removes a user or client and everything it holds.
func (v *Vault) RemovePrincipal(ctx context.Context, name, by string) error {
	return v.tx(ctx, func(tx *sql.Tx) error {
		if err := vaultdb.DeletePrincipal(ctx, tx, name); err != nil {
			return err
		}
		return v.note(ctx, tx, vaultdb.Event{Kind: "access", By: by, Audit: true}, "%s was removed", name)
	})
}

var errSignIn = dr.Errorf(dr.KindUnauthenticated, "vault.SignIn", "the name or the secret is wrong")

// IssueToken is the client-credentials grant; expiresIn is in seconds.
func (v *Vault) IssueToken(ctx context.Context, clientID, secret string) (token string, expiresIn int, err error) {
	p, err := vaultdb.PrincipalByName(ctx, v.q(), clientID)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return "", 0, outward(err)
	}
	if !authn.SameSecret(secret, p.Hash) || err != nil || p.Kind != vaultdb.KindClient {
		return "", 0, errSignIn
	}
	token = authn.NewSecret("hft_")
	return token, int(TokenLifetime / time.Second), v.keepToken(ctx, token, p, vaultdb.KindToken, TokenLifetime)
}

func (v *Vault) keepToken(ctx context.Context, token string, p vaultdb.Principal, kind string, life time.Duration) error {
	now := v.now()
	return v.tx(ctx, func(tx *sql.Tx) error {
		return vaultdb.InsertToken(ctx, tx, vaultdb.Token{Hash: authn.HashSecret(token), Principal: p.Name, Kind: kind, Created: now, Expires: now.Add(life)})
	})
}

// Login signs a user in at the portal and returns a session token, a secret.
// Passwords are checked two at a time.
func (v *Vault) Login(ctx context.Context, user, password string) (session string, p Principal, err error) {
	row, err := vaultdb.PrincipalByName(ctx, v.q(), user)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return "", Principal{}, outward(err)
	}
	if row.Kind != vaultdb.KindUser {
		row = vaultdb.Principal{} // takes as long as a real one
	}
	ok, err := v.hasher.Verify(ctx, password, row.Hash)
	if err != nil {
		return "", Principal{}, err
	}
	if !ok {
		v.log.Info("sign-in refused", "user", user)
		return "", Principal{}, errSignIn
	}
	session = authn.NewSecret("hfp_")
	return session, Principal{Name: row.Name, Role: row.Role}, v.keepToken(ctx, session, row, vaultdb.KindSession, SessionLifetime)
}

// Session checks a session token of the portal.
func (v *Vault) Session(ctx context.Context, session string) (Principal, error) {
	p, err := vaultdb.TokenPrincipal(ctx, v.q(), authn.HashSecret(session), vaultdb.KindSession, v.now())
	return Principal{Name: p.Name, Role: p.Role}, outward(err)
}

// Logout ends a session or a token; ending an unknown one succeeds.
func (v *Vault) Logout(ctx context.Context, token string) error {
	return v.tx(ctx, func(tx *sql.Tx) error { return vaultdb.DeleteToken(ctx, tx, authn.HashSecret(token)) })
}

// Authenticate checks a bearer token of the API.
func (v *Vault) Authenticate(ctx context.Context, bearer string) (Principal, error) {
	p, err := vaultdb.TokenPrincipal(ctx, v.q(), authn.HashSecret(bearer), vaultdb.KindToken, v.now())
	return Principal{Name: p.Name, Role: p.Role}, outward(err)
}

// Setting returns a named document of an API caller; "" if there is none.
func (v *Vault) Setting(ctx context.Context, name string) (string, error) {
	return get(vaultdb.Setting(ctx, v.q(), settingUser+name))
}

// SetSetting stores a named document of an API caller, at most 256 KiB.
func (v *Vault) SetSetting(ctx context.Context, name, value string) error {
	if name == "" || len(name) > 200 || len(value) > 256<<10 {
		return dr.Errorf(dr.KindInvalid, "vault.SetSetting", "the setting's name or value is empty or too long")
	}
	return v.tx(ctx, func(tx *sql.Tx) error { return vaultdb.SetSetting(ctx, tx, settingUser+name, value) })
}
