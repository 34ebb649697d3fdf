package route

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// Env is what all calls of a server have in common.
type Env struct {
	Service           Service
	PublicURL         string // base of absolute links without a trailing slash; empty = of each request
	Now               func() time.Time
	RetryAfter        time.Duration // between polls of an operation
	PageSize          int
	DisconnectedAfter time.Duration // silence after which an agent shows as disconnected
}

// BaseURL is the base of absolute links in the answer to r.
func (e Env) BaseURL(r *http.Request) string {
	if e.PublicURL != "" {
		return e.PublicURL
	}
	if r.TLS == nil {
		return "http://" + r.Host
	}
	return "https://" + r.Host
}

// Call is one request on its way through the server.
type Call struct {
	IDs
	Env     *Env
	R       *http.Request
	Path    armwire.ResourceID // of the path, without action and operationresults
	Action  string             // of a POST, as written
	Result  dr.JobID           // of …/operationresults/{id}
	Who     vault.Principal
	Ident   vault.Identity
	Base    string // public URL without a trailing slash
	Version string // api-version
	Dir     *Directory
}

// NewCall makes the call of a request of a known caller.
func NewCall(e *Env, r *http.Request, who vault.Principal, version string) *Call {
	id := e.Service.Identity()
	c := &Call{Env: e, R: r, Who: who, Ident: id, Base: e.BaseURL(r), Version: version,
		IDs: IDs{armwire.VaultID{SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, Vault: id.Name}}}
	c.Dir = &Directory{c: c}
	return c
}

// Ctx is the request's context.
func (c *Call) Ctx() context.Context { return c.R.Context() }

// Svc is the vault.
func (c *Call) Svc() Service { return c.Env.Service }

// Now is the server's clock.
func (c *Call) Now() time.Time { return c.Env.Now() }

// InstanceType refuses a polymorphic input of a kind that is not served. No
// discriminator at all is fine: several clients leave it out.
func InstanceType(v armwire.Variant, served ...string) error {
	t := v.InstanceType()
	if t == "" {
		return nil
	}
	for _, s := range served {
		if strings.EqualFold(s, t) {
			return nil
		}
	}
	return dr.New(dr.KindUnsupported, CodeNotSupported, "armapi", "instanceType %q is not supported here; use %s", Clip(t), strings.Join(served, " or "))
}

// DecodeVariant fills out with a polymorphic input; what does not fit is the client's mistake.
func DecodeVariant(v armwire.Variant, out any) error {
	if err := v.Decode(out); err != nil {
		return dr.New(dr.KindInvalid, CodeInvalidBody, "armapi.body", "the provider-specific part of the request body is not valid: %s", jsonTrouble(err))
	}
	return nil
}

// NameIn returns the name of the resource of type t that a client refers to in
// a body: by id in this vault, or by its bare name.
func (c *Call) NameIn(field, ref, t string) (string, error) {
	if !strings.Contains(ref, "/") {
		if ref == "" {
			return "", dr.New(dr.KindInvalid, CodeInvalidBody, "armapi.body", "%s is missing", field)
		}
		return ref, nil
	}
	id, err := armwire.ParseID(ref)
	if err != nil {
		return "", dr.New(dr.KindInvalid, CodeInvalidBody, "armapi.body", "%s: %v", field, err)
	}
	if !strings.EqualFold(id.VaultID.String(), c.VaultID.String()) {
		return "", dr.New(dr.KindInvalid, CodeInvalidBody, "armapi.body", "%s %q belongs to another vault", field, Clip(ref))
	}
	name := id.NameOf(t)
	if name == "" || !strings.EqualFold(id.Segments[len(id.Segments)-1].Type, t) {
		return "", dr.New(dr.KindInvalid, CodeInvalidBody, "armapi.body", "%s %q is not the id of a %s resource", field, Clip(ref), t)
	}
	return name, nil
}

// Target describes a recovery site: ids and friendly names, the cloud's literal if there is none.
func (c *Call) Target(id dr.FabricID) (fabricID, containerID, name string, err error) {
	if id == "" {
		return armwire.Cloud, armwire.Cloud, armwire.Cloud, nil
	}
	f, err := c.Dir.Fabric(id)
	if err != nil || f.ID == "" {
		return "", "", "", err
	}
	return c.FabricID(f), c.ContainerID(f), f.Name, nil
}

// NameOf returns the name in the path of the segment of type t.
func (c *Call) NameOf(t string) string { return c.Path.NameOf(t) }

// Body decodes the request's JSON. No body at all is fine: v stays as it is.
func (c *Call) Body(v any) error {
	b, err := ReadBody(c.R)
	if err != nil || len(b) == 0 {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return dr.New(dr.KindInvalid, CodeInvalidBody, "armapi.body", "the request body is not valid: %s", jsonTrouble(err))
	}
	return nil
}

// Allow checks the caller's role.
func Allow(who vault.Principal, want dr.Role) error {
	if who.Role.Includes(want) {
		return nil
	}
	return dr.Errorf(dr.KindForbidden, "armapi", "%s has the role %s; this needs %s", who.Name, who.Role, want).
		WithHint("Ask an Owner of the vault for the role %s.", want)
}

// Fabric returns the fabric that the path names, and checks the container if the
// path names one: a site has exactly one, a VMM server one for each cloud and one
// for VMs in no cloud.
func (c *Call) Fabric() (dr.Fabric, error) {
	f, err := c.Svc().Fabric(c.Ctx(), c.NameOf(TFabrics))
	if err != nil {
		return f, err
	}
	if err := c.Dir.readPlaces(f); err != nil {
		return f, err
	}
	if name := c.NameOf(TContainers); name != "" && !strings.EqualFold(name, f.ContainerName()) {
		clouds, err := c.Dir.Clouds(f)
		if err != nil {
			return f, err
		}
		for _, x := range clouds {
			if strings.EqualFold(name, f.ContainerOf(x.ID)) {
				return f, nil
			}
		}
		if f.Type == dr.VMMSite {
			return f, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "VMM server %q has no cloud of the protection container %q", f.Name, Clip(name))
		}
		return f, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "site %q has no protection container %q; its only one is %q", f.Name, Clip(name), f.ContainerName())
	}
	return f, nil
}

// Connected reports whether an agent has been heard of lately.
func (c *Call) Connected(p dr.Provider) bool {
	return !p.Revoked && c.Now().Sub(p.LastSeen) < c.Env.DisconnectedAfter
}

// Removed answers a removal. DELETE of something that is gone is done.
func (c *Call) Removed(job dr.JobID, err error, target string) (Reply, error) {
	if err != nil && c.R.Method == http.MethodDelete && dr.KindOf(err) == dr.KindNotFound {
		return Reply{Status: http.StatusNoContent}, nil
	}
	return Started(job, err, target)
}
