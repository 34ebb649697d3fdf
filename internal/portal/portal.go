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
	"net/http"

	"holdfast/internal/dr"
	"holdfast/internal/portal/group"
	"holdfast/internal/portal/network"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/policy"
	"holdfast/internal/portal/report"
)

// Vault is what the portal needs of the vault; *vault.Vault satisfies it.
type Vault = page.Vault

// Config configures the portal. Vault is required.
type Config = page.Config

// core is what the pages share beside their frame.
type core struct{ *page.Core }

// statuses is what a vault may offer to answer for all items at once; without
// it the portal asks item by item.
type statuses interface {
	Statuses(ctx context.Context) (map[dr.ItemID]dr.ReplicationStatus, error)
}

// New makes the portal's handler for "/", "/portal/…" and "/static/…". It does no I/O.
func New(cfg Config) (http.Handler, error) {
	p, err := page.New(cfg)
	if err != nil {
		return nil, err
	}
	c := &core{p}
	return page.Headers(http.NewCrossOriginProtection().Handler(c.routes())), nil
}

// routes is the table of pages: who may use them, and how.
func (c *core) routes() *http.ServeMux {
	mux := http.NewServeMux()
	account, over, site, vm := page.Account{Core: c.Core}, overviewPages{c}, sitePages{c}, vmPages{c}
	item, jobs, store := itemPages{c}, jobPages{c}, storePages{c}
	policies, groups := policy.Pages{Core: c.Core}, group.Pages{Core: c.Core}
	reports, networks := report.Pages{Core: c.Core}, network.Pages{Core: c.Core}
	const read, operate, configure = dr.RoleReader, dr.RoleOperator, dr.RoleContributor

	mux.Handle("GET /static/{name}", c.Static())
	mux.Handle("GET /favicon.ico", http.RedirectHandler(c.Favicon(), http.StatusFound))
	mux.Handle("GET /{$}", http.RedirectHandler("/portal", http.StatusSeeOther))
	mux.HandleFunc("GET /portal/signin", account.Form)
	mux.HandleFunc("POST /portal/signin", account.SignIn)
	mux.HandleFunc("POST /portal/signout", account.SignOut)
	for pattern, p := range map[string]struct {
		role dr.Role
		h    page.Handler
	}{
		"GET /portal":        {read, over.show},
		"GET /portal/events": {read, c.Stream},

		"GET /portal/sites":                              {read, site.list},
		"POST /portal/sites":                             {configure, site.add},
		"GET /portal/sites/{site}":                       {read, site.show},
		"POST /portal/sites/{site}/key":                  {configure, site.key},
		"POST /portal/sites/{site}/remove":               {configure, site.remove},
		"POST /portal/sites/{site}/check":                {operate, site.check},
		"POST /portal/sites/{site}/keys/{key}/revoke":    {configure, site.revoke},
		"POST /portal/sites/{site}/hosts/{host}/refresh": {operate, site.refresh},
		"POST /portal/sites/{site}/hosts/{host}/remove":  {configure, site.removeHost},

		"GET /portal/sites/{site}/readiness":          {read, reports.Show},
		"GET /portal/sites/{site}/readiness/{format}": {read, reports.Download},
		"GET /portal/sites/{site}/networks":           {read, networks.Show},
		"POST /portal/sites/{site}/networks":          {configure, networks.Create},
		"POST /portal/sites/{site}/networks/remove":   {configure, networks.Remove},

		"GET /portal/vms":                    {read, vm.list},
		"GET /portal/vms/{site}/{vm}/enable": {configure, vm.form},
		"POST /portal/vms/{site}/{vm}":       {configure, vm.enable},

		"GET /portal/items":              {read, item.list},
		"GET /portal/items/{id}":         {read, item.show},
		"POST /portal/items/{id}/{verb}": {operate, item.act}, // some verbs need more

		"GET /portal/items/{id}/events": {read, item.events},

		"GET /portal/groups":              {read, groups.List},
		"POST /portal/groups":             {configure, groups.Create},
		"GET /portal/groups/{id}":         {read, groups.Show},
		"POST /portal/groups/{id}":        {configure, groups.Save},
		"POST /portal/groups/{id}/remove": {configure, groups.Remove},

		"GET /portal/store": {read, store.show},

		"GET /portal/policies":                {read, policies.List},
		"POST /portal/policies":               {configure, policies.Create},
		"GET /portal/policies/{name}":         {read, policies.Show},
		"POST /portal/policies/{name}":        {configure, policies.Save},
		"POST /portal/policies/{name}/remove": {configure, policies.Remove},

		"GET /portal/jobs":                     {read, jobs.list},
		"GET /portal/jobs/{id}":                {read, jobs.show},
		"GET /portal/jobs/{id}/screenshot.png": {read, jobs.screenshot},
		"POST /portal/jobs/{id}/{verb}":        {operate, jobs.act},

		"GET /portal/": {read, c.Missing},
	} {
		mux.Handle(pattern, c.Handle(p.role, p.h))
	}
	return mux
}
