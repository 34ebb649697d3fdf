// Package portal serves the vault's web pages.
//
// It owns what people see in a browser: server-rendered pages, their style and
// script, and the stream that keeps them up to date. It holds no state of its
// own: everything is read from the vault at each request and changed by the
// vault's operations.
//
// It promises:
//
//   - A GET never changes anything. Every change is a same-origin POST of a
//     signed-in user whose role allows it, checked here and not only hidden.
//   - Pages work without script; script adds live updates and dialogs. No
//     inline script or style exists, and the content security policy forbids it.
//   - Nothing that a host, a VM or a user has named reaches a page unescaped.
//   - Secrets (sessions, registration keys) are never logged, and pages that
//     may hold them are never cached.
package portal

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// What the portal needs of the vault, by noun. *vault.Vault satisfies all of them.

// Access is signing in and out.
type Access interface {
	Identity() vault.Identity
	Login(ctx context.Context, user, password string) (session string, p vault.Principal, err error)
	Session(ctx context.Context, session string) (vault.Principal, error)
	Logout(ctx context.Context, session string) error
}

// Sites are fabrics and what was discovered in them.
type Sites interface {
	CreateFabric(ctx context.Context, name string, t dr.FabricType, by string) (dr.JobID, error)
	Fabric(ctx context.Context, name string) (dr.Fabric, error)
	Fabrics(ctx context.Context) ([]dr.Fabric, error)
	RemoveFabric(ctx context.Context, name string, purge bool, by string) (dr.JobID, error)
	CheckConsistency(ctx context.Context, fabric, by string) (dr.JobID, error)
	VMs(ctx context.Context, f dr.FabricID) ([]dr.VM, error)
	VM(ctx context.Context, f dr.FabricID, vm dr.VMID) (dr.VM, error)
}

// Agents are the registered hosts and the keys by which they register.
type Agents interface {
	Providers(ctx context.Context, f dr.FabricID) ([]dr.Provider, error) // "" = all
	Connected(p dr.Provider) bool
	RemoveProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, purge bool, by string) (dr.JobID, error)
	RefreshProvider(ctx context.Context, f dr.FabricID, id dr.AgentID, by string) (dr.JobID, error)
	IssueKey(ctx context.Context, r vault.KeyRequest) (vault.RegistrationKey, error)
	Keys(ctx context.Context, fabric string) ([]vault.RegistrationKey, error) // without secrets
	RevokeKey(ctx context.Context, id, by string) error
}

// Policies are replication policies and where they let VMs recover.
type Policies interface {
	SavePolicy(ctx context.Context, p dr.Policy, create bool, by string) (dr.JobID, error)
	Policy(ctx context.Context, name string) (dr.Policy, error)
	Policies(ctx context.Context) ([]dr.Policy, error)
	RemovePolicy(ctx context.Context, name, by string) (dr.JobID, error)
	CreateMapping(ctx context.Context, m dr.ContainerMapping, by string) (dr.JobID, error)
	Mappings(ctx context.Context, f dr.FabricID) ([]dr.ContainerMapping, error)
}

// Items are protected items as they are.
type Items interface {
	ItemByID(ctx context.Context, id dr.ItemID) (dr.ProtectedItem, error)
	Items(ctx context.Context, f dr.FabricID) ([]dr.ProtectedItem, error) // "" = all
	Status(ctx context.Context, id dr.ItemID) (dr.ReplicationStatus, error)
	Points(ctx context.Context, id dr.ItemID) ([]dr.RecoveryPoint, error) // newest first
	AllowedOperations(ctx context.Context, id dr.ItemID) ([]string, error)
}

// Protections change how an item is protected.
type Protections interface {
	Enable(ctx context.Context, r vault.EnableRequest) (dr.JobID, error)
	Update(ctx context.Context, r vault.UpdateRequest) (dr.JobID, error)
	Disable(ctx context.Context, id dr.ItemID, purge bool, by string) (dr.JobID, error)
	Pause(ctx context.Context, id dr.ItemID, paused bool, by string) error
}

// Failovers are what an operator does with an item.
type Failovers interface {
	StartFailover(ctx context.Context, r vault.FailoverRequest) (dr.JobID, error)
	CleanupTest(ctx context.Context, id dr.ItemID, comments, by string) (dr.JobID, error)
	Commit(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	CancelFailover(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
	ChangePoint(ctx context.Context, id dr.ItemID, point, by string) (dr.JobID, error)
	Resync(ctx context.Context, id dr.ItemID, by string) (dr.JobID, error)
}

// Jobs are the Jobs page and what changes.
type Jobs interface {
	Job(ctx context.Context, id dr.JobID) (dr.Job, error)
	Jobs(ctx context.Context, f vault.JobFilter) ([]dr.Job, error) // newest first, without tasks
	CancelJob(ctx context.Context, id dr.JobID, by string) error
	RestartJob(ctx context.Context, id dr.JobID, by string) error
	ResumeJob(ctx context.Context, id dr.JobID, comments, by string) error
	Screenshot(ctx context.Context, id dr.JobID) ([]byte, error) // PNG
	Subscribe(ctx context.Context) <-chan vault.Change
}

// Vault is everything.
type Vault interface {
	Access
	Sites
	Agents
	Policies
	Items
	Protections
	Failovers
	Jobs
}

// statuses is what a vault may offer to answer for all items at once; without
// it the portal asks item by item.
type statuses interface {
	Statuses(ctx context.Context) (map[dr.ItemID]dr.ReplicationStatus, error)
}

// Config configures the portal. Vault is required.
type Config struct {
	Vault Vault
	Log   *slog.Logger     // nil = silent
	Now   func() time.Time // nil = time.Now

	// InsecureCookie lets sessions work over plain HTTP, for a vault behind a
	// proxy on the same machine or for development. The cookie then loses its
	// __Host- name and its Secure attribute.
	InsecureCookie bool

	// RegisterCommand is the shell command by which a host registers, shown on
	// the page of a site; nil = "sudo holdfast agent register …".
	RegisterCommand func(keyFile string, role dr.AgentRole) string
	// InstallCommand gets the program onto a host; empty = it is not shown.
	InstallCommand string
}

// New makes the portal's handler for "/", "/portal/…" and "/static/…". It does no I/O.
func New(cfg Config) (http.Handler, error) {
	if cfg.Vault == nil {
		return nil, errors.New("portal: the configuration has no vault")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.RegisterCommand == nil {
		cfg.RegisterCommand = func(file string, role dr.AgentRole) string {
			return "sudo holdfast agent register --key " + shellQuote(file) + " --role " + string(role)
		}
	}
	a, err := loadAssets()
	if err != nil {
		return nil, err
	}
	t, err := loadTemplates(a, cfg.Now)
	if err != nil {
		return nil, err
	}
	c := &core{cfg: cfg, v: cfg.Vault, assets: a, templates: t, limit: newLimiter(cfg.Now), streams: make(chan struct{}, maxStreams)}
	return headers(http.NewCrossOriginProtection().Handler(c.routes())), nil
}

// headers sets what every answer carries.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
		h.Set("Cache-Control", "no-store")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		next.ServeHTTP(w, r)
	})
}

// routes is the table of pages: who may use them, and how.
func (c *core) routes() *http.ServeMux {
	mux := http.NewServeMux()
	account, over, site, vm := accountPages{c}, overviewPages{c}, sitePages{c}, vmPages{c}
	item, policy, jobs := itemPages{c}, policyPages{c}, jobPages{c}
	const read, operate, configure = dr.RoleReader, dr.RoleOperator, dr.RoleContributor

	mux.Handle("GET /static/{name}", c.assets)
	mux.Handle("GET /favicon.ico", http.RedirectHandler(c.assets.url("favicon.svg"), http.StatusFound))
	mux.Handle("GET /{$}", http.RedirectHandler("/portal", http.StatusSeeOther))
	mux.HandleFunc("GET /portal/signin", account.form)
	mux.HandleFunc("POST /portal/signin", account.signIn)
	mux.HandleFunc("POST /portal/signout", account.signOut)
	for pattern, p := range map[string]struct {
		role dr.Role
		h    handler
	}{
		"GET /portal":        {read, over.show},
		"GET /portal/events": {read, c.stream},

		"GET /portal/sites":                              {read, site.list},
		"POST /portal/sites":                             {configure, site.add},
		"GET /portal/sites/{site}":                       {read, site.show},
		"POST /portal/sites/{site}/key":                  {configure, site.key},
		"POST /portal/sites/{site}/remove":               {configure, site.remove},
		"POST /portal/sites/{site}/check":                {operate, site.check},
		"POST /portal/sites/{site}/keys/{key}/revoke":    {configure, site.revoke},
		"POST /portal/sites/{site}/hosts/{host}/refresh": {operate, site.refresh},
		"POST /portal/sites/{site}/hosts/{host}/remove":  {configure, site.removeHost},

		"GET /portal/vms":                    {read, vm.list},
		"GET /portal/vms/{site}/{vm}/enable": {configure, vm.form},
		"POST /portal/vms/{site}/{vm}":       {configure, vm.enable},

		"GET /portal/items":              {read, item.list},
		"GET /portal/items/{id}":         {read, item.show},
		"POST /portal/items/{id}/{verb}": {operate, item.act}, // some verbs need more

		"GET /portal/policies":                {read, policy.list},
		"POST /portal/policies":               {configure, policy.create},
		"GET /portal/policies/{name}":         {read, policy.show},
		"POST /portal/policies/{name}":        {configure, policy.save},
		"POST /portal/policies/{name}/remove": {configure, policy.remove},

		"GET /portal/jobs":                     {read, jobs.list},
		"GET /portal/jobs/{id}":                {read, jobs.show},
		"GET /portal/jobs/{id}/screenshot.png": {read, jobs.screenshot},
		"POST /portal/jobs/{id}/{verb}":        {operate, jobs.act},

		"GET /portal/": {read, c.missing},
	} {
		mux.Handle(pattern, c.page(p.role, p.h))
	}
	return mux
}
