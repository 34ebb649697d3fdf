package hvsim

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/wql"
)

// graph is a set of instances and the associations among them and to others.
type graph struct {
	host   string
	schema completer
	byKey  map[string]*cim.Instance
	byName map[string][]*cim.Instance // lower-case own class
	links  map[string][]wql.Link      // by identity of one end
	assoc  map[string][]*cim.Instance // lower-case class of the association
}

type completer interface{ Complete(*cim.Instance) }

func newGraph(host string, s completer) *graph {
	return &graph{host: host, schema: s, byKey: map[string]*cim.Instance{}, byName: map[string][]*cim.Instance{},
		links: map[string][]wql.Link{}, assoc: map[string][]*cim.Instance{}}
}

// add completes an instance and takes it in.
func (g *graph) add(in *cim.Instance) cim.Path {
	g.schema.Complete(in)
	g.byKey[identity(in.Path)] = in
	c := strings.ToLower(in.Class)
	g.byName[c] = append(g.byName[c], in)
	return in.Path
}

// link associates two objects. extra are further properties of the association.
func (g *graph) link(class, roleA string, a cim.Path, roleB string, b cim.Path, extra ...any) {
	in := cim.NewInstance(class, append([]any{roleA, a, roleB, b}, extra...)...)
	in.Path = cim.Path{Host: g.host, Namespace: a.Namespace, Class: class, Keys: []cim.Key{{Name: roleA, Value: a.String()}, {Name: roleB, Value: b.String()}}}
	g.schema.Complete(in)
	ka, kb := identity(a), identity(b)
	g.links[ka] = append(g.links[ka], wql.Link{Class: class, Role: roleA, OtherRole: roleB, Other: b, Instance: in})
	g.links[kb] = append(g.links[kb], wql.Link{Class: class, Role: roleB, OtherRole: roleA, Other: a, Instance: in})
	c := strings.ToLower(class)
	g.assoc[c] = append(g.assoc[c], in)
}

// identity is a form of a path that is the same for all ways to write it.
func identity(p cim.Path) string {
	keys := make([]string, len(p.Keys))
	for i, k := range p.Keys {
		keys[i] = strings.ToLower(k.Name + "\x01" + k.Value)
	}
	slices.Sort(keys)
	return strings.ToLower(p.Class) + "\x00" + strings.Join(keys, "\x00")
}

// repo is a Host as the query engine sees it.
type repo Host

var _ wql.Repository = (*repo)(nil)

// Instances implements wql.Repository.
func (r *repo) Instances(ctx context.Context, namespace, class string) ([]*cim.Instance, error) {
	h := (*Host)(r)
	space := strings.ReplaceAll(strings.Trim(namespace, `\/`), `\`, "/")
	var out []*cim.Instance
	isA := map[string]bool{}
	take := func(m map[string][]*cim.Instance) {
		for name, list := range m {
			ok, known := isA[name]
			if !known {
				c, found := h.site.schema.Class(space, name)
				ok = found && c.IsA(class)
				isA[name] = ok
			}
			if ok {
				for _, in := range list {
					if strings.EqualFold(in.Path.Namespace, space) {
						out = append(out, in)
					}
				}
			}
		}
	}
	graphs := []*graph{h.static(), h.jobGraph()}
	if strings.EqualFold(space, cluster) {
		graphs = append(graphs, h.groups())
	}
	for _, vm := range h.VMs() {
		graphs = append(graphs, h.graph(vm))
	}
	for _, g := range graphs {
		if err := ctx.Err(); err != nil {
			return nil, &cim.Error{Code: cim.CodeTimeout, Op: "query", Message: "no answer in time", Err: err}
		}
		take(g.byName)
		take(g.assoc)
	}
	return out, nil
}

// Get implements wql.Repository.
func (r *repo) Get(_ context.Context, path cim.Path) (*cim.Instance, error) {
	h := (*Host)(r)
	if path.Singleton && len(path.Keys) == 0 {
		for id, in := range h.static().byKey {
			if strings.HasPrefix(id, strings.ToLower(path.Class)+"\x00") {
				return in, nil
			}
		}
	}
	id := identity(path)
	for _, g := range h.around(path) {
		if in := g.byKey[id]; in != nil {
			return in, nil
		}
		for _, in := range g.assoc[strings.ToLower(path.Class)] {
			if identity(in.Path) == id {
				return in, nil
			}
		}
	}
	space := path.Namespace
	if space == "" {
		space = virt
	}
	c, ok := h.site.schema.Class(space, path.Class)
	if !ok {
		return nil, &cim.Error{Code: cim.CodeInvalidClass, Op: "get " + path.String(), Message: "Invalid class", Status: 0x80041010}
	}
	if len(path.Keys) != len(c.Keys()) && !path.Singleton {
		return nil, &cim.Error{Code: cim.CodeInvalidQuery, Op: "get " + path.String(), Message: "Invalid object path", Status: 0x8004103a}
	}
	// A path may name a superclass.
	for _, g := range h.around(path) {
		for name, list := range g.byName {
			if d, ok := h.site.schema.Class(space, name); !ok || !d.IsA(path.Class) {
				continue
			}
			for _, in := range list {
				p := in.Path
				p.Class = path.Class
				if identity(p) == id {
					return in, nil
				}
			}
		}
	}
	return nil, &cim.Error{Code: cim.CodeNotFound, Op: "get " + path.String(), Message: "Not found", Status: 0x80041002}
}

// Links implements wql.Repository.
func (r *repo) Links(_ context.Context, path cim.Path) ([]wql.Link, error) {
	var out []wql.Link
	id := identity(path)
	for _, g := range (*Host)(r).around(path) {
		out = append(out, g.links[id]...)
	}
	if strings.EqualFold(path.Class, "Msvm_VirtualEthernetSwitch") || strings.EqualFold(path.Class, "Msvm_ComputerSystem") && strings.EqualFold(path.Key("Name"), r.Conf.Name) {
		// objects of the host that objects of VMs are tied to
		for _, vm := range (*Host)(r).VMs() {
			out = append(out, (*Host)(r).graph(vm).links[id]...)
		}
	}
	return out, nil
}

var guids = regexp.MustCompile(`[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}`)

// around returns the graphs in which an object or its associations can be.
func (h *Host) around(path cim.Path) []*graph {
	out := []*graph{h.static()}
	var vms []*VM
	for _, k := range path.Keys {
		for _, id := range guids.FindAllString(k.Value, 8) {
			if vm := h.owner(id); vm != nil && !slices.Contains(vms, vm) {
				vms = append(vms, vm)
				out = append(out, h.graph(vm))
			}
		}
	}
	switch class := strings.ToLower(path.Class); {
	case strings.HasPrefix(class, "mscluster_"):
		out = append(out, h.groups())
	case class == "msvm_diskdrive", class == "msvm_systemdevice" && strings.Contains(strings.ToLower(path.String()), "msvm_diskdrive"): // its id is no VM's
		for _, vm := range h.VMs() {
			out = append(out, h.graph(vm))
		}
	}
	return append(out, h.jobGraph())
}

// owner finds the VM that an id belongs to: its own, or that of a checkpoint or reference point.
func (h *Host) owner(id string) *VM {
	return h.Owner(strings.ToUpper(id))
}

// graph returns the objects of a VM as they are now.
func (h *Host) graph(vm *VM) *graph {
	gen := vm.Generation()
	h.mu.Lock()
	if c, ok := h.cache[vm.ID()]; ok && c.gen == gen {
		h.mu.Unlock()
		return c.graph
	}
	h.mu.Unlock()
	st, gen := vm.Version()
	g := h.render(st, vm.Uptime())
	h.renders.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.cache) > 4096 {
		clear(h.cache) // ids of VMs that are gone
	}
	h.cache[vm.ID()] = cached{gen, g}
	return g
}

// static returns the host's own objects.
func (h *Host) static() *graph {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fixed == nil {
		h.fixed = h.renderHost()
	}
	return h.fixed
}
