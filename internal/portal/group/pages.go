// Package group is the portal's pages of consistency groups: who is in them, and
// the instants that their members have in common.
package group

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/page"
	"holdfast/internal/vault"
)

// Pages are the consistency groups.
type Pages struct{ *page.Core }

type groupRow struct {
	dr.ConsistencyGroup
	Members []dr.ProtectedItem
	Host    string
	Newest  *vault.GroupPoint // newest complete instant; nil = none yet
}

// candidate is an item that a group may have.
type candidate struct {
	dr.ProtectedItem
	Host   string
	Member bool
	Other  string // the group that it is in already; "" = none
}

type groupsBody struct {
	Rows       []groupRow
	Candidates []candidate
	Ask, Name  string
}

type groupBody struct {
	groupRow
	Candidates []candidate
	Points     []vault.GroupPoint
	Complete   int
	Ask        string
	Pages      estate.Pages
	names      map[dr.ItemID]string
}

// VM is the name of a member's VM.
func (b groupBody) VM(id dr.ItemID) string { return b.names[id] }

func (p Pages) rows(ctx context.Context, e *estate.Estate) ([]groupRow, error) {
	gs, err := p.V.Groups(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]groupRow, len(gs))
	for i, g := range gs {
		out[i].ConsistencyGroup = g
		for _, it := range e.Items {
			if slices.Contains(g.Items, it.ID) {
				out[i].Members, out[i].Host = append(out[i].Members, it), e.Host[it.SourceAgent].Host
			}
		}
		points, err := p.V.GroupPoints(ctx, g.ID)
		if err != nil {
			return nil, err
		}
		if j := slices.IndexFunc(points, func(x vault.GroupPoint) bool { return x.Complete }); j >= 0 {
			out[i].Newest = &points[j]
		}
	}
	return out, nil
}

// candidates are the items that can be members of group g, "" = of a new one.
func candidates(e *estate.Estate, rows []groupRow, g dr.GroupID) []candidate {
	var out []candidate
	for _, it := range e.Items {
		c := candidate{ProtectedItem: it, Host: e.Host[it.SourceAgent].Host}
		for _, r := range rows {
			switch {
			case !slices.Contains(r.Items, it.ID):
			case r.ID == g:
				c.Member = true
			default:
				c.Other = r.Name
			}
		}
		out = append(out, c)
	}
	return out
}

// List shows all of them.
func (p Pages) List(w http.ResponseWriter, r *page.Request) error {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return err
	}
	b := groupsBody{Ask: r.URL.Query().Get("ask")}
	if r.Problem != nil {
		b.Ask, b.Name = "create", r.PostFormValue("groupName")
	}
	if b.Rows, err = p.rows(r.Context(), e); err != nil {
		return err
	}
	b.Candidates = candidates(e, b.Rows, "")
	return p.Render(w, r, "groups", page.View{Title: "Consistency groups", Kind: "VMs that recover to one common instant", Section: "groups", Icon: "groups",
		URL: "/portal/groups" + estate.Query(r), Topics: "item", Body: b})
}

func chosen(r *page.Request) []dr.ItemID {
	var out []dr.ItemID
	for _, id := range r.PostForm["item"] {
		out = append(out, dr.ItemID(id))
	}
	return out
}

// Create makes one from a form.
func (p Pages) Create(w http.ResponseWriter, r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return dr.Errorf(dr.KindInvalid, "portal", "the form could not be read")
	}
	g, err := p.V.CreateGroup(r.Context(), strings.TrimSpace(r.PostForm.Get("groupName")), chosen(r), r.Who.Name)
	if err != nil {
		return p.Again(w, r, err, p.List)
	}
	return p.Done(w, r, "/portal/groups/"+string(g.ID), "")
}

// Show is the page of one.
func (p Pages) Show(w http.ResponseWriter, r *page.Request) error {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return err
	}
	rows, err := p.rows(r.Context(), e)
	if err != nil {
		return err
	}
	id := dr.GroupID(r.PathValue("id"))
	i := slices.IndexFunc(rows, func(g groupRow) bool { return g.ID == id })
	if i < 0 {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "portal", "there is no such consistency group")
	}
	b := groupBody{groupRow: rows[i], Candidates: candidates(e, rows, id), Ask: r.URL.Query().Get("ask"), names: map[dr.ItemID]string{}}
	for _, it := range e.Items {
		b.names[it.ID] = it.VMName
	}
	points, err := p.V.GroupPoints(r.Context(), id)
	if err != nil {
		return err
	}
	for _, x := range points {
		if x.Complete {
			b.Complete++
		}
	}
	b.Points, b.Pages = estate.Paged(r, points, 20)
	return p.Render(w, r, "group", page.View{Title: b.Name, Kind: "Consistency group", Section: "groups", Icon: "groups",
		Crumbs: []page.Crumb{{Name: "Consistency groups", URL: "/portal/groups"}}, URL: "/portal/groups/" + string(id) + estate.Query(r), Topics: "item", Body: b})
}

// Save changes one by a form.
func (p Pages) Save(w http.ResponseWriter, r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return dr.Errorf(dr.KindInvalid, "portal", "the form could not be read")
	}
	id := dr.GroupID(r.PathValue("id"))
	if err := p.V.SetGroupMembers(r.Context(), id, chosen(r), r.Who.Name); err != nil {
		return p.Again(w, r, err, p.Show)
	}
	return p.Done(w, r, "/portal/groups/"+string(id), "")
}

// Remove removes one.
func (p Pages) Remove(w http.ResponseWriter, r *page.Request) error {
	if err := p.V.DeleteGroup(r.Context(), dr.GroupID(r.PathValue("id")), r.Who.Name); err != nil {
		return p.Again(w, r, err, p.Show)
	}
	return p.Done(w, r, "/portal/groups", "")
}
