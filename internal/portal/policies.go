package portal

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"holdfast/internal/dr"
)

// policyPages are the replication policies.
type policyPages struct{ *core }

type policyRow struct {
	dr.Policy
	Items []dr.ProtectedItem
	Maps  []string // "site → recovery site"
}

type policiesBody struct {
	Rows []policyRow
	Ask  string
	Form policyForm
}

func (p policyPages) rows(r *request) ([]policyRow, error) {
	e, err := p.estate(r.Context())
	if err != nil {
		return nil, err
	}
	maps, err := p.v.Mappings(r.Context(), "")
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
			to := e.fabric[m.TargetFabric].Name
			if to == "" {
				to = "any recovery site"
			}
			out[i].Maps = append(out[i].Maps, e.fabric[m.Fabric].Name+" → "+to)
		}
	}
	return out, nil
}

func (p policyPages) list(w http.ResponseWriter, r *request) error {
	b := policiesBody{Ask: r.URL.Query().Get("ask"), Form: defaultPolicy()}
	if r.problem != nil {
		b.Ask, b.Form = "create", policyFormOf(r.PostFormValue)
	}
	var err error
	if b.Rows, err = p.rows(r); err != nil {
		return err
	}
	return p.render(w, r, "policies", view{Title: "Replication policies", Kind: "How often, and how far back", Section: "policies", Icon: "policies",
		URL: "/portal/policies" + query(r), Topics: "site item", Body: b})
}

func (p policyPages) create(w http.ResponseWriter, r *request) error {
	pol, err := policyFormOf(r.PostFormValue).policy()
	var job dr.JobID
	if err == nil {
		job, err = p.v.SavePolicy(r.Context(), pol, true, r.who.Name)
	}
	if err != nil {
		return p.again(w, r, err, p.list)
	}
	return p.done(w, r, "/portal/policies", job)
}

type policyBody struct {
	policyRow
	Form policyForm
	Ask  string
}

func (p policyPages) show(w http.ResponseWriter, r *request) error {
	pol, err := p.v.Policy(r.Context(), r.PathValue("name"))
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
	b := policyBody{policyRow: rows[i], Ask: r.URL.Query().Get("ask"), Form: policyForm{Name: pol.Name, Copy: strconv.FormatInt(int64(pol.CopyFrequency/time.Second), 10),
		Retention: strconv.FormatInt(int64(pol.Retention/time.Hour), 10), AppEvery: strconv.FormatInt(int64(pol.AppFrequency/time.Hour), 10)}}
	if r.problem != nil && r.PostForm.Has("copy") {
		b.Form = policyFormOf(r.PostFormValue)
		b.Form.Name = pol.Name
	}
	return p.render(w, r, "policy", view{Title: pol.Name, Kind: "Replication policy", Section: "policies", Icon: "policies",
		Crumbs: []crumb{{"Replication policies", "/portal/policies"}}, Body: b})
}

func (p policyPages) save(w http.ResponseWriter, r *request) error {
	old, err := p.v.Policy(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	pol, err := policyForm{old.Name, r.PostFormValue("copy"), r.PostFormValue("retention"), r.PostFormValue("app")}.policy()
	var job dr.JobID
	if err == nil {
		// What the form does not show stays as it is.
		old.CopyFrequency, old.Retention, old.AppFrequency = pol.CopyFrequency, pol.Retention, pol.AppFrequency
		job, err = p.v.SavePolicy(r.Context(), old, false, r.who.Name)
	}
	if err != nil {
		return p.again(w, r, err, p.show)
	}
	return p.done(w, r, "/portal/policies/"+url.PathEscape(old.Name), job)
}

func (p policyPages) remove(w http.ResponseWriter, r *request) error {
	job, err := p.v.RemovePolicy(r.Context(), r.PathValue("name"), r.who.Name)
	if err != nil {
		return p.again(w, r, err, p.show)
	}
	return p.done(w, r, "/portal/policies", job)
}
