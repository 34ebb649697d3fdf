package plane

import (
	"context"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast/internal/azsim/wire"
)

// Resource is anything with an id. All fields are guarded by the Plane's lock.
type Resource struct {
	Kind  *Kind
	Group string // name
	ID    string
	Name  string
	Doc   map[string]any // as GET answers it, but for what Kind.View adds

	Page  string    // the provider's: name in the page store
	Until time.Time // the provider's: end of the access granted; zero = none
	State any       // the provider's

	gone bool
	tail chan struct{} // closed when the last accepted operation is over; nil = none yet
}

// SetState sets the provisioning state.
func (r *Resource) SetState(state string) { wire.Set(r.Doc, state, "properties", "provisioningState") }

// Kind is a type of resource. Its functions run with the lock held; all but Put may be nil.
type Kind struct {
	Name string // "Microsoft.Compute/disks"
	// Sync: PUT answers at once; Plain: a delete does, too.
	Sync, Plain bool
	Status      int            // of what is accepted; 0 = 201 for a create and 200 for an update
	Pattern     *regexp.Regexp // of names; nil = the usual
	// Put checks a new document and takes what it refers to; it may complete
	// r.Doc. q.Old is nil for a create. The work may be nil.
	Put func(q *Call, r *Resource) (Work, *wire.Error)
	// Remove checks whether the resource may be deleted. Its work, which may be
	// nil, comes before the resource vanishes.
	Remove func(q *Call, r *Resource) (Work, *wire.Error)
	// End stops what runs behind a resource whose group is deleted, without the lock.
	End func(ctx context.Context, r *Resource)
	// After cleans up behind a resource that is gone.
	After   func(r *Resource)
	Actions map[string]func(q *Call, r *Resource) (Work, *wire.Error) // by lower-case name
	Direct  map[string]func(q *Call, r *Resource) (any, *wire.Error)  // actions that answer at once; also GET of a part
	View    func(q *Call, r *Resource, doc map[string]any)
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9_]([\w.-]{0,78}[\w])?$`)

// RefusePut is the Put of a kind that is made along with others only.
func RefusePut(q *Call, _ *Resource) (Work, *wire.Error) {
	return nil, wire.Errorf(http.StatusMethodNotAllowed, "MethodNotAllowed", "%s can't be made by itself.", q.At.Kind.Name)
}

// resourceCall answers …/providers/NAMESPACE/ plus segs: TYPE[/NAME[/TYPE/NAME]][/ACTION].
func (c *Plane) resourceCall(q *Call, segs []string) (wire.Reply, *wire.Error) {
	at := &q.At
	base := "/subscriptions/" + c.cfg.Subscription
	if at.Group != "" {
		base += "/resourceGroups/" + at.Group
	}
	at.ID = base + "/providers/" + at.Namespace
	typ := at.Namespace
	for len(segs) >= 2 {
		at.Kind = c.Kind(typ + "/" + segs[0])
		if at.Kind == nil {
			break
		}
		at.Parent = ""
		if at.Name != "" {
			at.Parent = at.ID
		}
		typ, at.Name, at.ID, segs = typ+"/"+segs[0], segs[1], at.ID+"/"+segs[0]+"/"+segs[1], segs[2:]
	}
	if len(segs) == 1 {
		if k := c.Kind(typ + "/" + segs[0]); k != nil {
			at.Kind = k
			if q.R.Method != http.MethodGet {
				return wire.Reply{}, wire.Errorf(http.StatusMethodNotAllowed, "MethodNotAllowed", "A collection takes only GET.")
			}
			if err := c.permitted(q, k.Name+"/read"); err != nil {
				return wire.Reply{}, err
			}
			return c.list(q)
		}
		at.Action, segs = segs[0], nil
	}
	if len(segs) != 0 || at.Name == "" {
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "InvalidResourceType",
			"The resource type could not be found in the namespace '%s' for api version '%s' (by the simulator: %s).", at.Namespace, q.Version, at.Path)
	}
	return c.oneResource(q)
}

func (c *Plane) oneResource(q *Call) (wire.Reply, *wire.Error) {
	k, verb := q.At.Kind, "read"
	switch {
	case q.At.Action != "":
		verb = q.At.Action + "/action"
		if q.R.Method == http.MethodGet {
			verb = q.At.Action + "/read"
		}
	case q.R.Method == http.MethodPut || q.R.Method == http.MethodPatch:
		verb = "write"
	case q.R.Method == http.MethodDelete:
		verb = "delete"
	}
	if err := c.permitted(q, k.Name+"/"+verb); err != nil {
		return wire.Reply{}, err
	}
	c.Lock()
	defer c.Unlock()
	if q.At.Group != "" && c.groups[Lower(q.At.Group)] == nil {
		return wire.Reply{}, noGroup(q.At.Group)
	}
	r := c.resources[Lower(q.At.ID)]
	if q.R.Method == http.MethodPut && q.At.Action == "" {
		return c.put(q, r)
	}
	if r == nil {
		if q.R.Method == http.MethodDelete {
			return wire.Reply{Status: http.StatusNoContent}, nil
		}
		return wire.Reply{}, notFound(q.At.ID, q.At.Kind, q.At.Name, q.At.Group)
	}
	switch {
	case q.At.Action != "":
		return c.act(q, r)
	case q.R.Method == http.MethodGet || q.R.Method == http.MethodHead:
		return wire.OK(c.Render(q, r)), nil
	case q.R.Method == http.MethodPatch:
		return c.patch(q, r)
	case q.R.Method == http.MethodDelete:
		return c.remove(q, r)
	}
	return wire.Reply{}, wire.Errorf(http.StatusMethodNotAllowed, "MethodNotAllowed", "The method %s is not known.", q.R.Method)
}

func noGroup(name string) *wire.Error {
	return wire.Errorf(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", name)
}

func notFound(id string, k *Kind, name, group string) *wire.Error {
	if strings.Count(k.Name, "/") > 1 {
		return wire.Errorf(http.StatusNotFound, "NotFound", "Resource %s not found.", id)
	}
	return wire.Errorf(http.StatusNotFound, "ResourceNotFound", "The Resource '%s/%s' under resource group '%s' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix", k.Name, name, group)
}

// Render is the document as GET answers it. The caller holds the lock.
func (c *Plane) Render(q *Call, r *Resource) map[string]any {
	doc := wire.Clone(r.Doc)
	if r.Kind.View != nil {
		r.Kind.View(q, r, doc)
	}
	return doc
}

// put creates or replaces; r is nil for a create. The caller holds the lock.
func (c *Plane) put(q *Call, r *Resource) (wire.Reply, *wire.Error) {
	if q.Body == nil {
		return wire.Reply{}, wire.Errorf(http.StatusBadRequest, "MissingRequestContent", "The request content was empty and cannot be deserialized.")
	}
	doc := wire.Clone(q.Body)
	if r == nil {
		pattern := q.At.Kind.Pattern
		if pattern == nil {
			pattern = plainName
		}
		if !pattern.MatchString(q.At.Name) {
			return wire.Reply{}, wire.Errorf(http.StatusBadRequest, "InvalidResourceName",
				"Resource name %s is invalid. The name can be up to 80 characters long. It must begin with a word character, and it must end with a word character or with '_'. The name may contain word characters or '.', '-', '_'.", q.At.Name)
		}
		r = &Resource{Kind: q.At.Kind, Group: q.At.Group, ID: c.canonical(q), Name: q.At.Name}
	} else {
		q.Old = r.Doc
	}
	return c.write(q, r, doc)
}

// canonical is the id in Azure's own spelling of types, with the case of the group as it was made.
func (c *Plane) canonical(q *Call) string {
	g := c.groups[Lower(q.At.Group)]
	id := g.ID + "/providers/"
	parts := strings.Split(q.At.Kind.Name, "/")
	id += parts[0]
	names := strings.Split(q.At.ID[strings.Index(Lower(q.At.ID), "/providers/")+len("/providers/"):], "/")
	for i, typ := range parts[1:] {
		id += "/" + typ + "/" + names[2*i+2]
	}
	return id
}

// patch is PATCH: tags are replaced, everything else is merged.
func (c *Plane) patch(q *Call, r *Resource) (wire.Reply, *wire.Error) {
	doc := wire.Clone(r.Doc)
	if _, ok := q.Body["tags"]; ok {
		delete(doc, "tags")
	}
	wire.Merge(doc, q.Body)
	q.Old = r.Doc
	return c.write(q, r, doc)
}

func (c *Plane) write(q *Call, r *Resource, doc map[string]any) (wire.Reply, *wire.Error) {
	if err := c.admit(q, r, doc); err != nil {
		return wire.Reply{}, err
	}
	old, create := q.Old, q.Old == nil
	for _, k := range []string{"id", "name", "type"} {
		delete(doc, k)
	}
	doc["id"], doc["name"], doc["type"] = r.ID, r.Name, r.Kind.Name
	if _, ok := doc["properties"].(map[string]any); !ok {
		doc["properties"] = map[string]any{}
	}
	r.Doc = doc
	job, err := r.Kind.Put(q, r)
	if err != nil {
		r.Doc = old
		return wire.Reply{}, err
	}
	c.resources[Lower(r.ID)] = r
	state := "Updating"
	if create {
		state = "Creating"
	}
	reply := wire.Reply{Status: http.StatusOK}
	if create {
		reply.Status = http.StatusCreated
	}
	if r.Kind.Status != 0 {
		reply.Status = r.Kind.Status
	}
	if r.Kind.Sync {
		r.SetState("Succeeded")
		reply.Body = c.Render(q, r)
		return reply, nil
	}
	r.SetState(state)
	reply.Body = c.Render(q, r)
	o := c.begin(q, r, func(ctx context.Context) (any, *wire.Error) {
		if job != nil {
			if _, err := job(ctx); err != nil {
				return nil, err
			}
		}
		c.Lock()
		defer c.Unlock()
		r.SetState("Succeeded")
		return c.Render(q, r), nil
	})
	return c.accepted(q, o, reply), nil
}

// admit has the checks that all kinds share.
func (c *Plane) admit(q *Call, r *Resource, doc map[string]any) *wire.Error {
	if ns := strings.Split(r.Kind.Name, "/")[0]; c.registered[Lower(ns)] != "Registered" {
		return wire.Errorf(http.StatusConflict, "MissingSubscriptionRegistration", "The subscription is not registered to use namespace '%s'. See https://aka.ms/rps-not-found for how to register subscriptions.", ns)
	}
	if strings.Count(r.Kind.Name, "/") == 1 {
		loc, _ := doc["location"].(string)
		was := wire.Str(q.Old, "location")
		switch {
		case loc == "":
			return wire.Errorf(http.StatusBadRequest, "LocationRequired", "The location property is required for this definition.")
		case was != "" && !sameLocation(was, loc):
			return wire.Errorf(http.StatusConflict, "InvalidResourceLocation", "The resource '%s' already exists in location '%s' in resource group '%s'. A resource with the same name cannot be created in location '%s'. Please select a new resource name.", r.Name, was, r.Group, loc)
		case !sameLocation(loc, c.cfg.Location):
			return wire.Errorf(http.StatusBadRequest, "LocationNotAvailableForResourceType", "The provided location '%s' is not available for resource type '%s'. List of available regions for the resource type is '%s'.", loc, r.Kind.Name, c.cfg.Location)
		}
		doc["location"] = c.cfg.Location
	} else if q.At.Parent != "" && c.resources[Lower(q.At.Parent)] == nil {
		return wire.Errorf(http.StatusNotFound, "ParentResourceNotFound", "Failed to perform '%s' on resource(s) of type '%s', because the parent resource '%s' could not be found.", "write", strings.TrimPrefix(r.Kind.Name, q.At.Namespace+"/"), q.At.Parent)
	}
	if err := checkTags(doc["tags"]); err != nil {
		return err
	}
	return c.policy(r.Name, r.Kind.Name, doc)
}

func (c *Plane) policy(name, kind string, doc map[string]any) *wire.Error {
	for _, p := range c.policies {
		if why := p(kind, wire.Clone(doc)); why != "" {
			return wire.Errorf(http.StatusForbidden, "RequestDisallowedByPolicy", "Resource '%s' was disallowed by policy. Policy identifiers: '[{\"policyAssignment\":{\"name\":\"%s\",\"id\":\"/subscriptions/%s/providers/Microsoft.Authorization/policyAssignments/simulated\"}}]'.", name, why, c.cfg.Subscription)
		}
	}
	return nil
}

func sameLocation(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, " ", ""), strings.ReplaceAll(b, " ", ""))
}

func checkTags(tags any) *wire.Error {
	m, ok := tags.(map[string]any)
	if tags != nil && !ok {
		return wire.Errorf(http.StatusBadRequest, "InvalidRequestContent", "The property 'tags' is not an object.")
	}
	if len(m) > 50 {
		return wire.Errorf(http.StatusBadRequest, "InvalidTags", "A resource can have at most 50 tags.")
	}
	for k, v := range m {
		s, ok := v.(string)
		switch {
		case k == "" || strings.ContainsAny(k, `<>%&\?/`):
			return wire.Errorf(http.StatusBadRequest, "InvalidTagNameCharacters", "The tag names '%s' have reserved characters '<,>,%%,&,\\,?,/' or control characters.", k)
		case !ok || len(k) > 512 || len(s) > 256:
			return wire.Errorf(http.StatusBadRequest, "InvalidTagValue", "The tag '%s' is too long (512 characters for names, 256 for values) or no text.", k)
		}
	}
	return nil
}

// act is an action on a resource, or the GET of a part of it.
func (c *Plane) act(q *Call, r *Resource) (wire.Reply, *wire.Error) {
	if f := r.Kind.Direct[Lower(q.At.Action)]; f != nil {
		body, err := f(q, r)
		if err != nil {
			return wire.Reply{}, err
		}
		return wire.OK(body), nil
	}
	f := r.Kind.Actions[Lower(q.At.Action)]
	if f == nil || q.R.Method != http.MethodPost {
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "SimulatorUnsupported", "The simulator has no %s of %s.", q.At.Action, r.Kind.Name)
	}
	job, err := f(q, r)
	if err != nil {
		return wire.Reply{}, err
	}
	return c.accepted(q, c.begin(q, r, job), wire.Reply{Status: http.StatusAccepted}), nil
}

func (c *Plane) remove(q *Call, r *Resource) (wire.Reply, *wire.Error) {
	if err := c.locked(r.ID); err != nil {
		return wire.Reply{}, err
	}
	var job Work
	if r.Kind.Remove != nil {
		var err *wire.Error
		if job, err = r.Kind.Remove(q, r); err != nil {
			return wire.Reply{}, err
		}
	}
	if r.Kind.Plain {
		c.Drop(r)
		return wire.Reply{Status: http.StatusOK}, nil
	}
	r.SetState("Deleting")
	o := c.begin(q, r, func(ctx context.Context) (any, *wire.Error) {
		if job != nil {
			if _, err := job(ctx); err != nil {
				return nil, err
			}
		}
		c.Lock()
		defer c.Unlock()
		c.Drop(r)
		return nil, nil
	})
	return c.accepted(q, o, wire.Reply{Status: http.StatusAccepted}), nil
}

// Drop makes a resource vanish, with its children. The caller holds the lock.
func (c *Plane) Drop(r *Resource) {
	if r.gone {
		return
	}
	r.gone = true
	delete(c.resources, Lower(r.ID))
	if r.Kind.After != nil {
		r.Kind.After(r)
	}
	for _, child := range c.Children(r.ID) {
		c.Drop(child)
	}
}

// Children are what lies below an id, in order of their ids. The caller holds the lock.
func (c *Plane) Children(id string) []*Resource {
	var out []*Resource
	for _, key := range slices.Sorted(maps.Keys(c.resources)) {
		if strings.HasPrefix(key, Lower(id)+"/") {
			out = append(out, c.resources[key])
		}
	}
	return out
}

// list is the GET of a collection, in a group, below a parent or everywhere.
func (c *Plane) list(q *Call) (wire.Reply, *wire.Error) {
	c.Lock()
	defer c.Unlock()
	if q.At.Group != "" && c.groups[Lower(q.At.Group)] == nil {
		return wire.Reply{}, noGroup(q.At.Group)
	}
	prefix := ""
	if q.At.Name != "" { // id is the parent's
		if c.resources[Lower(q.At.ID)] == nil {
			return wire.Reply{}, wire.Errorf(http.StatusNotFound, "ResourceNotFound", "The Resource '%s' was not found.", q.At.ID)
		}
		prefix = Lower(q.At.ID) + "/"
	}
	items := []any{}
	for _, key := range slices.Sorted(maps.Keys(c.resources)) {
		r := c.resources[key]
		if r.Kind.Name == q.At.Kind.Name && (q.At.Group == "" || strings.EqualFold(r.Group, q.At.Group)) && strings.HasPrefix(key, prefix) {
			items = append(items, c.Render(q, r))
		}
	}
	return wire.OK(Value(items...)), nil
}

// Find finds a resource of a kind by its id; nil = there is none. The caller holds the lock.
func (c *Plane) Find(id, kind string) *Resource {
	r := c.resources[Lower(id)]
	if r == nil || !strings.EqualFold(r.Kind.Name, kind) {
		return nil
	}
	return r
}
