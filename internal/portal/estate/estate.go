// Package estate is what many pages of the portal need to name things, and how
// they show long lists: in pages that keep the address's other parameters.
package estate

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/portal/page"
)

// Estate is what many pages need to name things.
type Estate struct {
	Fabrics  []dr.Fabric
	Hosts    []dr.Provider
	Policies []dr.Policy
	Items    []dr.ProtectedItem

	Fabric map[dr.FabricID]dr.Fabric // by id; a zero value for what is gone
	Host   map[dr.AgentID]dr.Provider
	Policy map[dr.PolicyID]dr.Policy
}

// Load reads the estate: sorted by name, without removed hosts.
func Load(ctx context.Context, v page.Vault) (*Estate, error) {
	e := &Estate{Fabric: map[dr.FabricID]dr.Fabric{}, Host: map[dr.AgentID]dr.Provider{}, Policy: map[dr.PolicyID]dr.Policy{}}
	var err error
	if e.Fabrics, err = v.Fabrics(ctx); err != nil {
		return nil, err
	}
	if e.Hosts, err = v.Providers(ctx, ""); err != nil {
		return nil, err
	}
	if e.Policies, err = v.Policies(ctx); err != nil {
		return nil, err
	}
	if e.Items, err = v.Items(ctx, ""); err != nil {
		return nil, err
	}
	e.Hosts = slices.DeleteFunc(e.Hosts, func(p dr.Provider) bool { return p.Revoked })
	slices.SortFunc(e.Fabrics, func(a, b dr.Fabric) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(e.Policies, func(a, b dr.Policy) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(e.Items, func(a, b dr.ProtectedItem) int {
		return strings.Compare(strings.ToLower(a.VMName), strings.ToLower(b.VMName))
	})
	slices.SortFunc(e.Hosts, func(a, b dr.Provider) int { return strings.Compare(a.Host, b.Host) })
	for _, f := range e.Fabrics {
		e.Fabric[f.ID] = f
	}
	for _, h := range e.Hosts {
		e.Host[h.ID] = h
	}
	for _, p := range e.Policies {
		e.Policy[p.ID] = p
	}
	return e, nil
}

// PageSize is how many rows a long list shows at once.
const PageSize = 50

// Pages is where a long list stands.
type Pages struct {
	Page, Last int
	Prev, Next string // addresses; empty at the ends
}

// Paged cuts a list and links its neighbours, keeping the other parameters.
func Paged[T any](r *page.Request, list []T, size int) ([]T, Pages) {
	q := r.URL.Query()
	p := Pages{Page: 1, Last: max((len(list)+size-1)/size, 1)}
	if n, err := strconv.Atoi(q.Get("page")); err == nil {
		p.Page = n
	}
	p.Page = min(max(p.Page, 1), p.Last)
	link := func(n int) string {
		q.Set("page", strconv.Itoa(n))
		return r.URL.Path + "?" + q.Encode()
	}
	if p.Page > 1 {
		p.Prev = link(p.Page - 1)
	}
	if p.Page < p.Last {
		p.Next = link(p.Page + 1)
	}
	return list[(p.Page-1)*size : min(p.Page*size, len(list))], p
}

// Query is the query of a GET, so that a live page stays where it is.
func Query(r *page.Request) string {
	q := r.URL.Query()
	q.Del("ask") // a dialog is asked for once
	q.Del("point")
	if r.Method != http.MethodGet || len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}
