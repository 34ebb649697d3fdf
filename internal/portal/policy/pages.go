// Package policy is the portal's pages of replication policies, and the form in
// which people enter one. What a form does not show stays as it is.
package policy

import (
	"net/http"
	"net/url"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/page"
)

// Pages are the replication policies.
type Pages struct{ *page.Core }

type policyRow struct {
	dr.Policy
	Items []dr.ProtectedItem
	Maps  []string // "site → recovery site"
}

type policiesBody struct {
	Rows []policyRow
	Ask  string
	Form Form
}

func (p Pages) rows(r *page.Request) ([]policyRow, error) {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return nil, err
	}
	maps, err := p.V.Mappings(r.Context(), "")
	if err != nil {
		return nil, err
	}
	out := make([]policyRow, len(e.Policies))
	for i, pol := range e.Policies {
		out[i].Policy = pol
		for _, it := range e.Items {
			if it.Policy == pol.ID {
				out[i].Items = append(out[i].Items, it)
			}
		}
		for _, m := range maps {
			if m.Policy != pol.ID {
				continue
			}
			to := e.Fabric[m.TargetFabric].Name
			if to == "" {
				to = "any recovery site"
			}
			out[i].Maps = append(out[i].Maps, e.Fabric[m.Fabric].Name+" → "+to)
		}
	}
	return out, nil
}

// List shows all of them.
func (p Pages) List(w http.ResponseWriter, r *page.Request) error {
	b := policiesBody{Ask: r.URL.Query().Get("ask"), Form: Default()}
	if r.Problem != nil {
		b.Ask, b.Form = "create", FormOf(r.PostFormValue)
	}
	var err error
	if b.Rows, err = p.rows(r); err != nil {
		return err
	}
	return p.Render(w, r, "policies", page.View{Title: "Replication policies", Kind: "How often, and how far back", Section: "policies", Icon: "policies",
		URL: "/portal/policies" + estate.Query(r), Topics: "site item", Body: b})
}

// Create makes one from a form.
func (p Pages) Create(w http.ResponseWriter, r *page.Request) error {
	pol, err := FormOf(r.PostFormValue).Policy(dr.Policy{})
	var job dr.JobID
	if err == nil {
		job, err = p.V.SavePolicy(r.Context(), pol, true, r.Who.Name)
	}
	if err != nil {
		return p.Again(w, r, err, p.List)
	}
	return p.Done(w, r, "/portal/policies", job)
}

type policyBody struct {
	policyRow
	Form Form
	Ask  string
}

// Show is the page of one.
func (p Pages) Show(w http.ResponseWriter, r *page.Request) error {
	pol, err := p.V.Policy(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	rows, err := p.rows(r)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(x policyRow) bool { return x.ID == pol.ID })
	if i < 0 {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "portal", "policy %q was removed", pol.Name)
	}
	b := policyBody{policyRow: rows[i], Ask: r.URL.Query().Get("ask"), Form: Shown(pol)}
	if r.Problem != nil && r.PostForm.Has("copy") {
		b.Form = FormOf(r.PostFormValue)
		b.Form.Name = pol.Name
	}
	b.Form.Open = true
	return p.Render(w, r, "policy", page.View{Title: pol.Name, Kind: "Replication policy", Section: "policies", Icon: "policies",
		Crumbs: []page.Crumb{{Name: "Replication policies", URL: "/portal/policies"}}, Body: b})
}

// Save changes one by a form.
func (p Pages) Save(w http.ResponseWriter, r *page.Request) error {
	old, err := p.V.Policy(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	form := FormOf(r.PostFormValue)
	form.Name = old.Name
	pol, err := form.Policy(old)
	var job dr.JobID
	if err == nil {
		job, err = p.V.SavePolicy(r.Context(), pol, false, r.Who.Name)
	}
	if err != nil {
		return p.Again(w, r, err, p.Show)
	}
	return p.Done(w, r, "/portal/policies/"+url.PathEscape(old.Name), job)
}

// Remove removes one.
func (p Pages) Remove(w http.ResponseWriter, r *page.Request) error {
	job, err := p.V.RemovePolicy(r.Context(), r.PathValue("name"), r.Who.Name)
	if err != nil {
		return p.Again(w, r, err, p.Show)
	}
	return p.Done(w, r, "/portal/policies", job)
}
