package route

import (
	"net/http"
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Reply is what a handler answers: a body with a status, or a job that carries
// the change out.
type Reply struct {
	Status int
	Body   any
	Job    dr.JobID
	Target string // id of the resource that the job is about
}

// OK is the answer 200.
func OK(body any) (Reply, error) { return Reply{Status: http.StatusOK, Body: body}, nil }

// Started is the answer to a change: the job and what it changes.
func Started(job dr.JobID, err error, target string) (Reply, error) {
	return Reply{Job: job, Target: target}, err
}

// Route is one operation: who may do it, and how.
type Route struct {
	Role   dr.Role
	Handle func(*Call) (Reply, error)
}

// Table is the operations: "VERB types" for a named resource, "VERB types[]" for
// a collection, "POST types:action" for an action; types in lower case. GET
// routes of named resources also answer operationresults.
type Table map[string]Route

// Add adds an operation on the resource at a path of types; suffix is "", "[]" or
// ":action".
func (t Table) Add(verb string, role dr.Role, h func(*Call) (Reply, error), suffix string, types ...string) {
	t[verb+" "+strings.ToLower(strings.Join(types, "/")+suffix)] = Route{role, h}
}

// FabricPath is the path, in types, of what lies in a site.
func FabricPath(below ...string) []string { return append([]string{TFabrics}, below...) }

// ContainerPath is the path of what lies in a protection container.
func ContainerPath(below ...string) []string {
	return append([]string{TFabrics, TContainers}, below...)
}

// emptyLists are collections which clients ask for and which this vault does not
// have; everything else whose name starts with "replication" is treated alike.
var emptyLists = map[string]bool{
	"migrationrecoverypoints": true, "clusterrecoverypoints": true, "targetcomputesizes": true,
	"privateendpointconnections": true, "privatelinkresources": true, "registeredidentities": true,
}

// knownType reports whether t is a type of the API, served or not.
func knownType(t string) bool {
	t = strings.ToLower(t)
	return strings.HasPrefix(t, "replication") || emptyLists[t]
}

// Serve answers everything at and below …/vaults/{name}.
func (t Table) Serve(w http.ResponseWriter, c *Call) error {
	id, err := armwire.ParseID(c.R.URL.EscapedPath())
	if err != nil {
		return dr.New(dr.KindNotFound, CodeUnknownType, "armapi", "%v", err)
	}
	if err := c.CheckVault(id); err != nil {
		return err
	}
	key := c.parse(id)
	rt, found := t[key]
	if !found {
		rep, err := t.fallback(c)
		if err != nil {
			return err
		}
		return t.finish(w, c, rep)
	}
	if err := Allow(c.Who, rt.Role); err != nil {
		return err
	}
	if c.Result != "" {
		return t.operationResult(w, c, rt)
	}
	rep, err := rt.Handle(c)
	if err != nil {
		return err
	}
	return t.finish(w, c, rep)
}

// CheckVault refuses ids of another subscription, group or vault.
func (c *Call) CheckVault(id armwire.ResourceID) error {
	switch {
	case !strings.EqualFold(id.SubscriptionID, c.Ident.SubscriptionID):
		return dr.New(dr.KindNotFound, CodeNoSubscription, "armapi", "subscription %q does not exist here", Clip(id.SubscriptionID))
	case !strings.EqualFold(id.ResourceGroup, c.Ident.ResourceGroup):
		return dr.New(dr.KindNotFound, CodeNoGroup, "armapi", "resource group %q does not exist here", Clip(id.ResourceGroup))
	case !strings.EqualFold(id.Vault, c.Ident.Name):
		if c.R.Method == http.MethodPut && len(id.Segments) == 0 {
			return dr.New(dr.KindUnsupported, CodeNotSupported, "armapi", "vault %q can't be created: this endpoint serves exactly one vault, %q", Clip(id.Vault), c.Ident.Name)
		}
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "vault %q does not exist here; this endpoint serves %q", Clip(id.Vault), c.Ident.Name)
	}
	return nil
}

// parse takes action and operationresults off the path and returns the route's key.
func (c *Call) parse(id armwire.ResourceID) string {
	suffix := ""
	if n := len(id.Segments); n > 0 {
		last := id.Segments[n-1]
		switch {
		case last.Name != "" && strings.EqualFold(last.Type, TResults) && c.R.Method == http.MethodGet:
			c.Result, id.Segments = dr.JobID(strings.ToLower(last.Name)), id.Segments[:n-1]
		case last.Name == "" && c.R.Method == http.MethodPost:
			c.Action, id.Segments, suffix = last.Type, id.Segments[:n-1], ":"+strings.ToLower(last.Type)
		case last.Name == "":
			suffix = "[]"
		}
	}
	c.Path = id
	return c.R.Method + " " + id.Types() + suffix
}

// fallback answers what the table does not have.
func (t Table) fallback(c *Call) (Reply, error) {
	n := len(c.Path.Segments)
	if n == 0 {
		return Reply{}, dr.New(dr.KindUnsupported, CodeNotSupported, "armapi", "%s of the vault is not supported", c.verb())
	}
	last := c.Path.Segments[n-1]
	if !knownType(last.Type) && t["GET "+c.Path.Types()].Handle == nil && t["PUT "+c.Path.Types()].Handle == nil {
		return Reply{}, dr.New(dr.KindNotFound, CodeUnknownType, "armapi", "resource type %q does not exist", Clip(c.Path.Types()))
	}
	if err := t.parentExists(c); err != nil {
		return Reply{}, err
	}
	switch {
	case c.R.Method == http.MethodGet && last.Name == "":
		if err := Allow(c.Who, dr.RoleReader); err != nil {
			return Reply{}, err
		}
		return OK(armwire.List[struct{}]{Value: []struct{}{}})
	case c.R.Method == http.MethodGet:
		return Reply{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "%s %q does not exist", last.Type, Clip(last.Name))
	}
	return Reply{}, dr.New(dr.KindUnsupported, CodeNotSupported, "armapi", "%s of %s is not supported by this vault", c.verb(), last.Type)
}

func (c *Call) verb() string {
	if c.Action != "" {
		return c.R.Method + " " + Clip(c.Action)
	}
	return c.R.Method
}

// parentExists makes sure that an empty list is not told of a parent that does not exist.
func (t Table) parentExists(c *Call) error {
	n := len(c.Path.Segments)
	if n < 2 {
		return nil
	}
	parent := *c
	parent.Path.Segments = c.Path.Segments[:n-1]
	rt, ok := t["GET "+parent.Path.Types()]
	if !ok {
		return nil
	}
	_, err := rt.Handle(&parent)
	return err
}
