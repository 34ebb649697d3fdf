// Package plane is the core of the simulated Azure Resource Manager: what all
// resource providers share. It owns the resources, their documents and resource
// groups, and does permissions, locks, policies, tags, quotas, lists and
// long-running operations; providers (packages network, compute) register their
// kinds of resources with it and decide about each of them.
//
// State is in memory. Everything is guarded by one lock: a Kind's functions are
// called with it held, an operation's Work without.
package plane

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/azsim/wire"
)

// Config describes a Plane. All fields are needed.
type Config struct {
	Subscription, Tenant, ClientID, ObjectID string
	Location                                 string
	URL                                      func() string    // base of all addresses, without a slash at its end
	Now                                      func() time.Time // the cloud's clock
	Check                                    func(authorization string) *wire.Error
	Pace                                     time.Duration // how long an operation takes at least
	Log                                      *slog.Logger
}

// Provider is a resource provider.
type Provider struct {
	Namespace string
	Kinds     []*Kind
	Quotas    func() []Quota                              // what is counted now, with default limits; may be nil
	Exceeded  func(q Quota, more int) *wire.Error         // words the refusal
	Regional  map[string]func() []any                     // lists at …/locations/L/NAME; names in lower case
	Lists     map[string]func(q *Call) (any, *wire.Error) // lists at /providers/NAMESPACE/NAME
}

// Quota is one counted thing.
type Quota struct {
	Name, Words string
	Used, Limit int
}

// Plane is the simulated Resource Manager. Its methods say whether their caller holds the
// lock; those which don't may be called by anybody.
type Plane struct {
	cfg       Config
	kinds     map[string]*Kind // by lower-case name
	providers []*Provider

	ctx    context.Context // of operations and guests; ended by Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	Sequence int // counts up; for names and addresses

	mu         sync.Mutex
	closed     bool
	groups     map[string]*Resource // by lower-case name
	resources  map[string]*Resource // by lower-case id
	operations map[string]*operation
	running    int               // operations not over
	settled    chan struct{}     // closed when running gets 0; nil if it is
	locks      []string          // scopes
	denied     []string          // patterns of actions
	registered map[string]string // registration state, by lower-case namespace
	policies   []func(kind string, body map[string]any) string
	quotas     map[string]int
}

// New makes a Plane without providers.
func New(cfg Config) *Plane {
	c := &Plane{cfg: cfg, kinds: map[string]*Kind{}, groups: map[string]*Resource{}, resources: map[string]*Resource{},
		operations: map[string]*operation{}, registered: map[string]string{}, quotas: map[string]int{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Register adds a provider, before the first request.
func (c *Plane) Register(p Provider) {
	c.providers = append(c.providers, &p)
	c.registered[Lower(p.Namespace)] = "Registered"
	for _, k := range p.Kinds {
		c.kinds[Lower(k.Name)] = k
	}
}

// Close ends operations and everything begun with Go, and waits. It is idempotent.
func (c *Plane) Close() {
	c.Lock()
	c.closed = true
	c.Unlock()
	c.cancel()
	c.work.Wait()
}

// Go runs f, which has to end with ctx, until Close. It is called by Work only.
func (c *Plane) Go(f func(ctx context.Context)) { c.work.Go(func() { f(c.ctx) }) }

// Lock takes the lock.
func (c *Plane) Lock() { c.mu.Lock() }

// Unlock gives it back.
func (c *Plane) Unlock() { c.mu.Unlock() }

// Now is the cloud's time.
func (c *Plane) Now() time.Time { return c.cfg.Now() }

// Stamp is the time as Resource Manager writes it.
func (c *Plane) Stamp() string { return c.Now().UTC().Format("2006-01-02T15:04:05.0000000Z") }

// URL is the base of all addresses.
func (c *Plane) URL() string { return c.cfg.URL() }

// Location is the only region.
func (c *Plane) Location() string { return c.cfg.Location }

// Log is where what nobody asked for is told.
func (c *Plane) Log() *slog.Logger { return c.cfg.Log }

// Kind finds a kind by its name; nil = there is none.
func (c *Plane) Kind(name string) *Kind { return c.kinds[Lower(name)] }

// All are the resources by lower-case id, not the groups. The caller holds the lock.
func (c *Plane) All() map[string]*Resource { return c.resources }

// Groups are the resource groups by lower-case name. The caller holds the lock.
func (c *Plane) Groups() map[string]*Resource { return c.groups }

// Insert adds a resource beside the one that is being written, as a subnet of
// a network. The caller holds the lock.
func (c *Plane) Insert(r *Resource) { c.resources[Lower(r.ID)] = r }

// Settle waits until no operation is under way.
func (c *Plane) Settle(ctx context.Context) error {
	for {
		c.Lock()
		wait := c.settled
		c.Unlock()
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// AddGroup makes a resource group in the cloud's location.
func (c *Plane) AddGroup(name string) *Resource {
	c.Lock()
	defer c.Unlock()
	return c.makeGroup(name, c.cfg.Location, nil)
}

// Add makes a resource from a document, without request, operation or policy.
func (c *Plane) Add(group, kind, name string, doc map[string]any) (*Resource, error) {
	c.Lock()
	defer c.Unlock()
	if c.groups[Lower(group)] == nil {
		c.makeGroup(group, c.cfg.Location, nil)
	}
	k := c.Kind(kind)
	if k == nil {
		return nil, fmt.Errorf("there is no kind %s", kind)
	}
	ns, typ, _ := strings.Cut(kind, "/")
	q := &Call{Version: "2024-01-01", At: Target{Group: group, Namespace: ns, Kind: k, Name: name}}
	q.At.ID = c.groups[Lower(group)].ID + "/providers/" + ns + "/" + typ + "/" + name
	r := &Resource{Kind: k, Group: c.groups[Lower(group)].Name, Name: name, ID: c.canonical(q), Doc: wire.Clone(doc)}
	r.Doc["id"], r.Doc["name"], r.Doc["type"] = r.ID, name, k.Name
	if r.Doc["properties"] == nil {
		r.Doc["properties"] = map[string]any{}
	}
	job, err := k.Put(q, r)
	if err == nil && job != nil {
		c.Unlock() // the work takes it
		_, err = job(c.ctx)
		c.Lock()
	}
	if err != nil {
		return nil, err
	}
	c.Insert(r)
	r.SetState("Succeeded")
	return r, nil
}

// AddLock puts a CanNotDelete lock on a scope: the id of a group or resource.
func (c *Plane) AddLock(scope string) {
	c.Lock()
	defer c.Unlock()
	c.locks = append(c.locks, scope)
}

// RemoveLock takes it off.
func (c *Plane) RemoveLock(scope string) {
	c.Lock()
	defer c.Unlock()
	c.locks = slices.DeleteFunc(c.locks, func(l string) bool { return strings.EqualFold(l, scope) })
}

// SetQuota sets the limit of a quota, by the name that usages list.
func (c *Plane) SetQuota(name string, limit int) {
	c.Lock()
	defer c.Unlock()
	c.quotas[Lower(name)] = limit
}

// SetProvider sets a provider's registration state.
func (c *Plane) SetProvider(namespace, state string) {
	c.Lock()
	defer c.Unlock()
	c.registered[Lower(namespace)] = state
}

// Deny takes an action away from the client's role; * stands for anything.
func (c *Plane) Deny(action string) {
	c.Lock()
	defer c.Unlock()
	c.denied = append(c.denied, action)
}

// Allow gives back every action.
func (c *Plane) Allow() {
	c.Lock()
	defer c.Unlock()
	c.denied = nil
}

// DenyPolicy adds a policy: it returns the name of the assignment that refuses, or "".
func (c *Plane) DenyPolicy(policy func(kind string, body map[string]any) string) {
	c.Lock()
	defer c.Unlock()
	c.policies = append(c.policies, policy)
}

// Lower is how names and ids are compared.
func Lower(s string) string { return strings.ToLower(s) }

// Value is the document of a list.
func Value(items ...any) map[string]any {
	if items == nil {
		items = []any{}
	}
	return map[string]any{"value": items}
}

// Ref is a reference to another resource.
func Ref(id string) map[string]any { return map[string]any{"id": id} }

// Within tells whether id is scope or lies below it.
func Within(id, scope string) bool {
	return strings.EqualFold(id, scope) || strings.HasPrefix(Lower(id), Lower(scope)+"/")
}

// TypNIC is the kind that two providers deal with.
const TypNIC = "Microsoft.Network/networkInterfaces"

// InvalidReference is the refusal of an id that names nothing.
func InvalidReference(id string, by *Resource) *wire.Error {
	return BadRequest("InvalidResourceReference", "Resource %s referenced by resource %s was not found. Please make sure that the referenced resource exists, and that both resources are in the same region.", id, by.ID)
}

// BadRequest is a refusal with status 400.
func BadRequest(code, format string, args ...any) *wire.Error {
	return wire.Errorf(http.StatusBadRequest, code, format, args...)
}

// Conflict is the refusal with which the compute provider says that a state forbids something.
func Conflict(format string, args ...any) *wire.Error {
	return wire.Errorf(http.StatusConflict, "OperationNotAllowed", format, args...)
}

// NewGUID makes a random GUID (version 4).
func NewGUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
