package plane

import (
	"context"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/azsim/wire"
)

var groupKind = &Kind{Name: "Microsoft.Resources/subscriptions/resourceGroups"}

// permitted refuses an action that Deny took away.
func (c *Plane) permitted(q *Call, action string) *wire.Error {
	c.Lock()
	defer c.Unlock()
	for _, pattern := range c.denied {
		// "/" has no meaning in Azure's wildcards, but has in path.Match.
		flat := strings.NewReplacer("/", "\x00")
		if ok, _ := path.Match(flat.Replace(Lower(pattern)), flat.Replace(Lower(action))); ok {
			return wire.Errorf(http.StatusForbidden, "AuthorizationFailed",
				"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s' or the scope is invalid. If access was recently granted, please refresh your credentials.",
				c.cfg.ClientID, c.cfg.ObjectID, action, q.At.Path)
		}
	}
	return nil
}

// authorization answers locks and permissions of a scope.
func (c *Plane) authorization(q *Call, what, scope string) (wire.Reply, *wire.Error) {
	if q.R.Method != http.MethodGet {
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "SimulatorUnsupported", "The simulator lists %s, and does not change them.", what)
	}
	if err := c.permitted(q, "Microsoft.Authorization/"+what+"/read"); err != nil {
		return wire.Reply{}, err
	}
	c.Lock()
	defer c.Unlock()
	switch Lower(what) {
	case "permissions":
		not := []any{}
		for _, d := range c.denied {
			not = append(not, d)
		}
		return wire.OK(Value(map[string]any{"actions": []any{"*"}, "notActions": not, "dataActions": []any{}, "notDataActions": []any{}})), nil
	case "locks":
		items := []any{}
		for _, l := range c.locks {
			if Within(l, scope) || Within(scope, l) {
				items = append(items, map[string]any{"id": l + "/providers/Microsoft.Authorization/locks/simulated", "name": "simulated",
					"type": "Microsoft.Authorization/locks", "properties": map[string]any{"level": "CanNotDelete", "notes": ""}})
			}
		}
		return wire.OK(Value(items...)), nil
	}
	return wire.Reply{}, wire.Errorf(http.StatusNotFound, "SimulatorUnsupported", "The simulator has no Microsoft.Authorization/%s.", what)
}

// locked refuses a delete under a lock, or of something that has one. The caller holds the lock.
func (c *Plane) locked(id string) *wire.Error {
	for _, l := range c.locks {
		if Within(id, l) || Within(l, id) {
			return wire.Errorf(http.StatusConflict, "ScopeLocked", "The scope '%s' cannot perform delete operation because following scope(s) are locked: '%s'. Please remove the lock and try again.", id, l)
		}
	}
	return nil
}

var groupName = regexp.MustCompile(`^[\w().-]{0,89}[\w()-]$`)

// groupCall answers /subscriptions/…/resourceGroups[/NAME].
func (c *Plane) groupCall(q *Call, segs []string) (wire.Reply, *wire.Error) {
	verb := "read"
	switch q.R.Method {
	case http.MethodPut, http.MethodPatch:
		verb = "write"
	case http.MethodDelete:
		verb = "delete"
	}
	if err := c.permitted(q, "Microsoft.Resources/subscriptions/resourceGroups/"+verb); err != nil {
		return wire.Reply{}, err
	}
	c.Lock()
	defer c.Unlock()
	if len(segs) == 0 {
		match, err := parseFilter(q.R.URL.Query().Get("$filter"))
		if err != nil {
			return wire.Reply{}, err
		}
		items := []any{}
		for _, name := range slices.Sorted(maps.Keys(c.groups)) {
			if g := c.groups[name]; match(g) {
				items = append(items, c.Render(q, g))
			}
		}
		return wire.OK(Value(items...)), nil
	}
	name := segs[0]
	q.At.Group = name
	g := c.groups[Lower(name)]
	if q.R.Method == http.MethodPut {
		return c.putGroup(q, g, name)
	}
	if g == nil {
		return wire.Reply{}, noGroup(name)
	}
	switch q.R.Method {
	case http.MethodHead:
		return wire.Reply{Status: http.StatusNoContent}, nil
	case http.MethodGet:
		return wire.OK(c.Render(q, g)), nil
	case http.MethodPatch:
		if tags, ok := q.Body["tags"]; ok {
			if err := checkTags(tags); err != nil {
				return wire.Reply{}, err
			}
			g.Doc["tags"] = tags
		}
		return wire.OK(c.Render(q, g)), nil
	case http.MethodDelete:
		return c.removeGroup(q, g)
	}
	return wire.Reply{}, wire.Errorf(http.StatusMethodNotAllowed, "MethodNotAllowed", "The method %s is not known.", q.R.Method)
}

func (c *Plane) putGroup(q *Call, g *Resource, name string) (wire.Reply, *wire.Error) {
	loc := wire.Str(q.Body, "location")
	switch {
	case !groupName.MatchString(name):
		return wire.Reply{}, wire.Errorf(http.StatusBadRequest, "InvalidResourceGroup", "The provided resource group name '%s' has these invalid characters: '…'.", name)
	case loc == "":
		return wire.Reply{}, wire.Errorf(http.StatusBadRequest, "LocationRequired", "The location property is required for this definition.")
	case g != nil && !sameLocation(loc, wire.Str(g.Doc, "location")):
		return wire.Reply{}, wire.Errorf(http.StatusConflict, "InvalidResourceGroupLocation", "Invalid resource group location '%s'. The Resource group already exists in location '%s'.", loc, wire.Str(g.Doc, "location"))
	}
	if err := checkTags(q.Body["tags"]); err != nil {
		return wire.Reply{}, err
	}
	if err := c.policy(name, groupKind.Name, q.Body); err != nil {
		return wire.Reply{}, err
	}
	status := http.StatusOK
	if g == nil {
		status = http.StatusCreated
	}
	g = c.makeGroup(name, loc, q.Body["tags"])
	return wire.Reply{Status: status, Body: c.Render(q, g)}, nil
}

func (c *Plane) makeGroup(name, location string, tags any) *Resource {
	g := c.groups[Lower(name)]
	if g == nil {
		g = &Resource{Kind: groupKind, Group: name, Name: name, ID: "/subscriptions/" + c.cfg.Subscription + "/resourceGroups/" + name}
		c.groups[Lower(name)] = g
	}
	g.Doc = map[string]any{"id": g.ID, "name": g.Name, "type": "Microsoft.Resources/resourceGroups", "location": location,
		"properties": map[string]any{"provisioningState": "Succeeded"}}
	if tags != nil {
		g.Doc["tags"] = tags
	}
	return g
}

// removeGroup deletes everything in the group: VMs first, then what they held.
func (c *Plane) removeGroup(q *Call, g *Resource) (wire.Reply, *wire.Error) {
	if err := c.locked(g.ID); err != nil {
		return wire.Reply{}, err
	}
	g.SetState("Deleting")
	q.At.Namespace = "Microsoft.Resources"
	o := c.begin(q, g, func(ctx context.Context) (any, *wire.Error) {
		c.Lock()
		members := c.Children(g.ID)
		c.Unlock()
		for _, r := range members {
			if r.Kind.End != nil {
				r.Kind.End(ctx, r)
			}
		}
		c.Lock()
		defer c.Unlock()
		for _, r := range members {
			if r.Kind.End != nil { // holds others
				c.Drop(r)
			}
		}
		for _, r := range members {
			c.Drop(r)
		}
		delete(c.groups, Lower(g.Name))
		g.gone = true
		return nil, nil
	})
	reply := c.accepted(q, o, wire.Reply{Status: http.StatusAccepted})
	reply.Header.Del("Azure-AsyncOperation") // groups are told by Location alone
	return reply, nil
}

var filterTerm = regexp.MustCompile(`(?i)^(tagName|tagValue|resourceType|name|location|resourceGroup)\s+eq\s+'((?:[^']|'')*)'$`)
var filterAnd = regexp.MustCompile(`(?i)\s+and\s+`)

// parseFilter reads the $filter of "Resources - List": terms joined by "and".
func parseFilter(s string) (func(*Resource) bool, *wire.Error) {
	want := map[string]string{}
	if strings.TrimSpace(s) != "" {
		for _, term := range filterAnd.Split(strings.TrimSpace(s), -1) {
			m := filterTerm.FindStringSubmatch(term)
			if m == nil {
				return nil, wire.Errorf(http.StatusBadRequest, "InvalidFilterInQueryString", "Invalid $filter '%s' specified in the query string.", s)
			}
			want[Lower(m[1])] = strings.ReplaceAll(m[2], "''", "'")
		}
	}
	if _, ok := want["tagname"]; ok && want["resourcetype"] != "" {
		return nil, wire.Errorf(http.StatusBadRequest, "InvalidFilterInQueryString", "Filters on tags can't be combined with filters on the type: '%s'.", s)
	}
	return func(r *Resource) bool {
		if name, ok := want["tagname"]; ok {
			tags, _ := wire.Get(r.Doc, "tags").(map[string]any)
			tag, has := wire.Get(tags, name).(string)
			if value, ok := want["tagvalue"]; !has || ok && value != tag {
				return false
			}
		}
		for key, is := range map[string]string{"resourcetype": r.Kind.Name, "name": r.Name, "location": wire.Str(r.Doc, "location"), "resourcegroup": r.Group} {
			if w, ok := want[key]; ok && !strings.EqualFold(w, is) {
				return false
			}
		}
		return true
	}, nil
}

// listResources is "Resources - List" and "Resources - List By Resource Group":
// only top-level resources, without their properties.
func (c *Plane) listResources(q *Call) (wire.Reply, *wire.Error) {
	scope := "Microsoft.Resources/subscriptions/resources/read"
	if q.At.Group != "" {
		scope = "Microsoft.Resources/subscriptions/resourceGroups/resources/read"
	}
	if err := c.permitted(q, scope); err != nil {
		return wire.Reply{}, err
	}
	match, err := parseFilter(q.R.URL.Query().Get("$filter"))
	if err != nil {
		return wire.Reply{}, err
	}
	c.Lock()
	defer c.Unlock()
	if q.At.Group != "" && c.groups[Lower(q.At.Group)] == nil {
		return wire.Reply{}, noGroup(q.At.Group)
	}
	items := []any{}
	for _, key := range slices.Sorted(maps.Keys(c.resources)) {
		r := c.resources[key]
		if strings.Count(r.Kind.Name, "/") > 1 || q.At.Group != "" && !strings.EqualFold(q.At.Group, r.Group) || !match(r) {
			continue
		}
		doc := wire.Clone(r.Doc)
		state := wire.Str(doc, "properties", "provisioningState")
		delete(doc, "properties")
		if strings.Contains(Lower(q.R.URL.Query().Get("$expand")), "provisioningstate") {
			doc["provisioningState"] = state
		}
		items = append(items, doc)
	}
	return wire.OK(Value(items...)), nil
}

// providerCall answers /providers[/NAMESPACE[/register]].
func (c *Plane) providerCall(q *Call, segs []string) (wire.Reply, *wire.Error) {
	c.Lock()
	defer c.Unlock()
	doc := func(ns string) map[string]any {
		return map[string]any{"id": "/subscriptions/" + c.cfg.Subscription + "/providers/" + ns, "namespace": ns,
			"registrationState": c.registered[Lower(ns)], "registrationPolicy": "RegistrationRequired", "resourceTypes": []any{}}
	}
	if len(segs) == 0 {
		items := []any{}
		for _, p := range c.providers {
			items = append(items, doc(p.Namespace))
		}
		return wire.OK(Value(items...)), nil
	}
	p := c.provider(segs[0])
	if p == nil {
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "InvalidResourceNamespace", "The resource namespace '%s' is invalid.", segs[0])
	}
	if len(segs) == 2 && q.R.Method == http.MethodPost {
		c.registered[Lower(segs[0])] = "Registered"
	}
	return wire.OK(doc(p.Namespace)), nil
}

func (c *Plane) provider(namespace string) *Provider {
	for _, p := range c.providers {
		if strings.EqualFold(p.Namespace, namespace) {
			return p
		}
	}
	return nil
}

// regional answers …/locations/L/usages and a provider's own lists there.
func (c *Plane) regional(q *Call, what string) (wire.Reply, *wire.Error) {
	if err := c.permitted(q, q.At.Namespace+"/locations/"+what+"/read"); err != nil {
		return wire.Reply{}, err
	}
	c.Lock()
	defer c.Unlock()
	p := c.provider(q.At.Namespace)
	switch {
	case p == nil:
	case what == "usages" && p.Quotas != nil:
		items := []any{}
		for _, u := range c.count(p) {
			items = append(items, map[string]any{"unit": "Count", "currentValue": u.Used, "limit": u.Limit,
				"name": map[string]any{"value": u.Name, "localizedValue": u.Words}})
		}
		return wire.OK(Value(items...)), nil
	case p.Regional[what] != nil:
		return wire.OK(Value(p.Regional[what]()...)), nil
	}
	return wire.Reply{}, wire.Errorf(http.StatusNotFound, "SimulatorUnsupported", "The simulator has no %s of a location.", what)
}

// subscriptionList answers a provider's own list, as skus.
func (c *Plane) subscriptionList(q *Call, list func(*Call) (any, *wire.Error), name string) (wire.Reply, *wire.Error) {
	if err := c.permitted(q, q.At.Namespace+"/"+name+"/read"); err != nil {
		return wire.Reply{}, err
	}
	c.Lock()
	defer c.Unlock()
	body, err := list(q)
	if err != nil {
		return wire.Reply{}, err
	}
	return wire.OK(body), nil
}

// count is what a provider counts, with the limits that are set.
func (c *Plane) count(p *Provider) []Quota {
	all := p.Quotas()
	for i, u := range all {
		if limit, ok := c.quotas[Lower(u.Name)]; ok {
			all[i].Limit = limit
		}
	}
	return all
}

// NeedQuota refuses what would exceed a quota of a provider: need has how much
// more, by the quotas' names. The caller holds the lock.
func (c *Plane) NeedQuota(namespace string, need map[string]int) *wire.Error {
	p := c.provider(namespace)
	for _, u := range c.count(p) {
		if more := need[u.Name]; more > 0 && u.Used+more > u.Limit {
			return p.Exceeded(u, more)
		}
	}
	return nil
}
