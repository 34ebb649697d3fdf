package plane

import (
	"encoding/json"
	"holdfast/internal/azsim/wire"
	"io"
	"net/http"
	"path"
	"strings"
)

// Call is one request to Resource Manager.
type Call struct {
	R       *http.Request // nil = Plane.Add
	Body    map[string]any
	At      Target
	Version string         // of the API
	Old     map[string]any // PUT and PATCH: the document before; nil = create
	fault   *wire.Injected // not yet used up; nil = none
}

// Target is what a path names.
type Target struct {
	Path      string
	Group     string // "" = subscription
	Namespace string // as the path has it
	Kind      *Kind
	ID        string // of the resource, or of the parent of a collection; as the path has it
	Parent    string // id of the parent resource, "" = top level
	Name      string
	Action    string // last segment of a POST; also of a path without a resource
}

const maxBody = 4 << 20 // Resource Manager's own limit of a request

// Serve answers Resource Manager's requests.
func (c *Plane) Serve(r *http.Request, fault *wire.Injected) (wire.Reply, *wire.Error) {
	if err := c.cfg.Check(r.Header.Get("Authorization")); err != nil {
		return wire.Reply{}, err
	}
	q := &Call{R: r, Version: r.URL.Query().Get("api-version"), fault: fault}
	if q.Version == "" {
		return wire.Reply{}, wire.Errorf(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return wire.Reply{}, wire.Errorf(http.StatusBadRequest, "InvalidRequestContent", "The request content could not be read.")
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &q.Body); err != nil {
			return wire.Reply{}, wire.Errorf(http.StatusBadRequest, "InvalidRequestContent", "The request content was invalid and could not be deserialized: '%v'.", err)
		}
	}
	segs := strings.Split(strings.Trim(path.Clean(r.URL.Path), "/"), "/")
	if !strings.EqualFold(segs[0], "subscriptions") {
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "NotFound", "No resource is at %s.", r.URL.Path)
	}
	if len(segs) == 1 {
		return wire.OK(Value(c.subscription())), nil
	}
	if !strings.EqualFold(segs[1], c.cfg.Subscription) {
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "SubscriptionNotFound", "The subscription '%s' could not be found.", segs[1])
	}
	return c.route(q, segs[2:])
}

func (c *Plane) subscription() any {
	return map[string]any{"id": "/subscriptions/" + c.cfg.Subscription, "subscriptionId": c.cfg.Subscription, "tenantId": c.cfg.Tenant,
		"displayName": "Simulated subscription", "state": "Enabled", "subscriptionPolicies": map[string]any{"quotaId": "EnterpriseAgreement_2014-09-01", "spendingLimit": "Off"}}
}

// route finds what the rest of a path, after the subscription, names.
func (c *Plane) route(q *Call, segs []string) (wire.Reply, *wire.Error) {
	q.At.Path = q.R.URL.Path
	if i := len(segs) - 2; i >= 1 && strings.EqualFold(segs[i], "Microsoft.Authorization") {
		return c.authorization(q, segs[len(segs)-1], "/subscriptions/"+c.cfg.Subscription+"/"+strings.Join(segs[:i-1], "/"))
	}
	if len(segs) == 0 {
		return wire.OK(c.subscription()), nil
	}
	if strings.EqualFold(segs[0], "resourcegroups") {
		if len(segs) <= 2 {
			return c.groupCall(q, segs[1:])
		}
		q.At.Group, segs = segs[1], segs[2:]
	}
	switch {
	case strings.EqualFold(segs[0], "resources") && len(segs) == 1:
		return c.listResources(q)
	case !strings.EqualFold(segs[0], "providers"):
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "NotFound", "No resource is at %s.", q.At.Path)
	case q.At.Group == "" && (len(segs) <= 2 || len(segs) == 3 && strings.EqualFold(segs[2], "register")):
		return c.providerCall(q, segs[1:])
	}
	q.At.Namespace, segs = segs[1], segs[2:]
	if q.At.Group == "" && strings.EqualFold(segs[0], "locations") && len(segs) >= 3 {
		switch Lower(segs[2]) {
		case "operations", "operationresults":
			if len(segs) == 4 {
				return c.poll(segs[3], strings.EqualFold(segs[2], "operationResults"))
			}
		default:
			return c.regional(q, Lower(segs[2]))
		}
	}
	if p := c.provider(q.At.Namespace); p != nil && q.At.Group == "" && len(segs) == 1 && p.Lists[Lower(segs[0])] != nil {
		return c.subscriptionList(q, p.Lists[Lower(segs[0])], segs[0])
	}
	return c.resourceCall(q, segs)
}
