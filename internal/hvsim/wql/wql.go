// Package wql runs the query language of WMI on a repository of objects:
// SELECT with conditions, ASSOCIATORS OF and REFERENCES OF, as far as clients of
// Hyper-V use it ([MS-WMI] 2.2.1, and the public WQL reference of Windows).
//
// It promises: keywords, names and text are compared without case; classes of
// a query match what is derived from them; a query that a real server refuses (an
// unknown class or property, an array as operand, a wrong escape) is refused
// here with the code that it gives, and with the position; comparing with null is
// neither true nor false, so NOT does not make it true; ASSOCIATORS takes
// time linear in the number of links.
//
// Left out: events (WITHIN is parsed, but no event class is in the schema), GROUP
// BY, HAVING and qualifier conditions.
package wql

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/schema"
)

// Repository holds the objects that queries run on. Instances that it returns are not changed.
type Repository interface {
	// Instances returns all instances of a class and of those derived from it.
	Instances(ctx context.Context, namespace, class string) ([]*cim.Instance, error)
	// Get returns one instance; *cim.Error with CodeNotFound if there is none.
	Get(ctx context.Context, path cim.Path) (*cim.Instance, error)
	// Links returns all associations that an object takes part in.
	Links(ctx context.Context, path cim.Path) ([]Link, error)
}

// Link is one association as seen from one of its ends.
type Link struct {
	Class     string        // of the association
	Role      string        // the reference property that names this end
	OtherRole string        // the reference property that names the other end
	Other     cim.Path      // the other end
	Instance  *cim.Instance // the association itself; nil = made from the roles
}

// WBEM status codes of the errors ([MS-WMI] 2.2.11).
const (
	statusNotFound         = 0x80041002
	statusInvalidNamespace = 0x8004100E
	statusInvalidClass     = 0x80041010
	statusInvalidQuery     = 0x80041017
	statusUnparsable       = 0x80041058
)

// ClassOf returns the class that a SELECT reads, or the class of the object
// that ASSOCIATORS and REFERENCES start from.
func ClassOf(query string) (string, error) {
	q, err := Parse(query)
	if err != nil {
		return "", err
	}
	if q.Kind == Select {
		return q.Class, nil
	}
	return q.Of.Class, nil
}

// Run answers a query. server is what __SERVER stands for. Errors are *cim.Error:
// CodeInvalidQuery with a position, CodeInvalidClass for an unknown class or
// namespace, CodeNotFound if the object in braces does not exist, CodeTimeout
// when ctx ends; the repository's own pass through.
func Run(ctx context.Context, s *schema.Schema, repo Repository, server, namespace, query string) ([]*cim.Instance, error) {
	q, err := Parse(query)
	if err != nil {
		return nil, err
	}
	r := &run{schema: s, repo: repo, server: server, namespace: strings.Trim(strings.ReplaceAll(namespace, `\`, "/"), "/"), query: query}
	if !s.HasNamespace(r.namespace) {
		return nil, &cim.Error{Code: cim.CodeInvalidClass, Op: r.op(), Status: statusInvalidNamespace, Message: fmt.Sprintf("there is no namespace %q", namespace)}
	}
	switch q.Kind {
	case Associators:
		return r.associators(ctx, q)
	case References:
		return r.references(ctx, q)
	}
	return r.selects(ctx, q)
}

// run is one query being answered.
type run struct {
	schema            *schema.Schema
	repo              Repository
	server, namespace string
	query             string
}

func (r *run) op() string { return operation(r.query) }

// operation names a query in errors, cut to a length that a log can bear.
func operation(query string) string {
	if len(query) > 300 {
		query = query[:300] + "…"
	}
	return fmt.Sprintf("query %q", query)
}

func (r *run) class(name string) (*schema.Class, error) {
	c, ok := r.schema.Class(r.namespace, name)
	if !ok {
		return nil, &cim.Error{Code: cim.CodeInvalidClass, Op: r.op(), Status: statusInvalidClass,
			Message: fmt.Sprintf("namespace %s has no class %s", r.namespace, name)}
	}
	return c, nil
}

func (r *run) invalid(pos int, format string, args ...any) error {
	return &cim.Error{Code: cim.CodeInvalidQuery, Op: r.op(), Status: statusInvalidQuery,
		Message: fmt.Sprintf(format, args...) + fmt.Sprintf(" (at character %d)", pos+1)}
}

// alive turns the end of the context into an error.
func (r *run) alive(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return &cim.Error{Code: cim.CodeTimeout, Op: r.op(), Message: "the query was given up", Err: context.Cause(ctx)}
}

// selects runs SELECT.
func (r *run) selects(ctx context.Context, q *Query) ([]*cim.Instance, error) {
	class, err := r.class(q.Class)
	if err != nil {
		return nil, err
	}
	for _, col := range q.Columns {
		if _, ok := class.Property(col.Name); !ok && !isSystem(col.Name) {
			return nil, r.invalid(col.Pos, "class %s has no property %s", class.Name, col.Name)
		}
	}
	cond, err := r.bind(class, q.Where)
	if err != nil {
		return nil, err
	}
	all, err := r.repo.Instances(ctx, r.namespace, class.Name)
	if err != nil {
		return nil, err
	}
	var out []*cim.Instance
	for i, in := range all {
		if i%256 == 0 {
			if err := r.alive(ctx); err != nil {
				return nil, err
			}
		}
		if cond(in) != yes {
			continue
		}
		if q.Columns != nil {
			in = project(class, q.Columns, in)
		}
		out = append(out, in)
	}
	return out, nil
}

// project keeps the columns, in the order of the list, and then the keys.
// System properties (__PATH …) are part of the instance anyway.
func project(class *schema.Class, columns []Column, in *cim.Instance) *cim.Instance {
	out := &cim.Instance{Class: in.Class, Path: in.Path, Args: make(cim.Args, 0, len(columns)+len(class.Keys()))}
	for _, col := range columns {
		if p, ok := class.Property(col.Name); ok {
			v, _ := in.Lookup(p.Name)
			out.Set(p.Name, v)
		}
	}
	for _, k := range class.Keys() {
		if v, ok := in.Lookup(k); ok {
			out.Set(k, v)
		}
	}
	return out
}

// source reads the object in braces.
func (r *run) source(ctx context.Context, q *Query) (cim.Path, error) {
	path := q.Of
	if path.Namespace == "" {
		path.Namespace = r.namespace
	} else if !strings.EqualFold(path.Namespace, r.namespace) {
		return path, r.invalid(q.OfPos, "the object is of namespace %s, the query of %s", path.Namespace, r.namespace)
	}
	if _, err := r.class(path.Class); err != nil {
		return path, err
	}
	if len(path.Keys) == 0 && !path.Singleton {
		return path, r.invalid(q.OfPos, "the path names the class %s, no object of it", path.Class)
	}
	in, err := r.repo.Get(ctx, path)
	if err != nil {
		if cim.CodeOf(err) == cim.CodeNotFound {
			err = &cim.Error{Code: cim.CodeNotFound, Op: r.op(), Status: statusNotFound, Message: "there is no object " + path.Relative(), Err: err}
		}
		return path, err
	}
	if !in.Path.IsZero() {
		path = in.Path // of its own class, which is what links know it by
		if path.Namespace == "" {
			path.Namespace = r.namespace
		}
	}
	return path, nil
}

// known checks the classes of a WHERE clause.
func (r *run) known(names ...string) error {
	for _, n := range names {
		if n == "" {
			continue
		}
		if _, err := r.class(n); err != nil {
			return err
		}
	}
	return nil
}

// isA reports whether a class is the wanted one or derived from it; any is if nothing is wanted.
func (r *run) isA(class, want string) bool {
	if want == "" || strings.EqualFold(class, want) {
		return true
	}
	c, ok := r.schema.Class(r.namespace, class)
	return ok && c.IsA(want)
}

func roleIs(role, want string) bool { return want == "" || strings.EqualFold(role, want) }

// associators runs ASSOCIATORS OF.
func (r *run) associators(ctx context.Context, q *Query) ([]*cim.Instance, error) {
	if err := r.known(q.AssocClass, q.ResultClass); err != nil {
		return nil, err
	}
	from, err := r.source(ctx, q)
	if err != nil {
		return nil, err
	}
	links, err := r.repo.Links(ctx, from)
	if err != nil {
		return nil, err
	}
	var out []*cim.Instance
	seen := make(map[string]bool, len(links))
	for i, l := range links {
		if i%256 == 0 {
			if err := r.alive(ctx); err != nil {
				return nil, err
			}
		}
		if !r.isA(l.Class, q.AssocClass) || !roleIs(l.Role, q.Role) || !roleIs(l.OtherRole, q.ResultRole) {
			continue
		}
		// A path may be written with a superclass, so only unrelated classes are ruled out before the object is read.
		if !r.isA(l.Other.Class, q.ResultClass) && !r.isA(q.ResultClass, l.Other.Class) {
			continue
		}
		other := l.Other
		if other.Namespace == "" {
			other.Namespace = r.namespace
		}
		id := identity(other)
		if seen[id] {
			continue
		}
		seen[id] = true
		in, err := r.repo.Get(ctx, other)
		if cim.CodeOf(err) == cim.CodeNotFound {
			continue // it went while the query ran
		}
		if err != nil {
			return nil, err
		}
		if r.isA(in.Class, q.ResultClass) {
			out = append(out, in)
		}
	}
	return r.shape(q, out), nil
}

// references runs REFERENCES OF.
func (r *run) references(ctx context.Context, q *Query) ([]*cim.Instance, error) {
	if err := r.known(q.ResultClass); err != nil {
		return nil, err
	}
	from, err := r.source(ctx, q)
	if err != nil {
		return nil, err
	}
	links, err := r.repo.Links(ctx, from)
	if err != nil {
		return nil, err
	}
	var out []*cim.Instance
	seen := make(map[string]bool, len(links))
	for i, l := range links {
		if i%256 == 0 {
			if err := r.alive(ctx); err != nil {
				return nil, err
			}
		}
		if !r.isA(l.Class, q.ResultClass) || !roleIs(l.Role, q.Role) {
			continue
		}
		in := l.Instance
		if in == nil {
			in = r.association(from, l)
		}
		// An object that is tied to itself is named by two links of one association.
		if id := identity(in.Path); !in.Path.IsZero() && seen[id] {
			continue
		} else {
			seen[id] = true
		}
		out = append(out, in)
	}
	return r.shape(q, out), nil
}

// association makes the instance of a link from its two ends.
func (r *run) association(from cim.Path, l Link) *cim.Instance {
	other := l.Other
	for _, p := range []*cim.Path{&from, &other} {
		if p.Namespace == "" {
			p.Namespace = r.namespace
		}
		if p.Host == "" || p.Host == "." {
			p.Host = r.server
		}
	}
	in := &cim.Instance{Class: l.Class}
	in.Path = cim.Path{Host: r.server, Namespace: r.namespace, Class: l.Class}
	in.Set(l.Role, from)
	in.Set(l.OtherRole, other)
	if c, ok := r.schema.Class(r.namespace, l.Class); ok {
		in.Class, in.Path.Class = c.Name, c.Name
		r.schema.Complete(in)
		for _, k := range c.Keys() {
			in.Path.Keys = append(in.Path.Keys, cim.Key{Name: k, Value: in.String(k)})
		}
	}
	return in
}

// shape does what ClassDefsOnly and KeysOnly ask for.
func (r *run) shape(q *Query, list []*cim.Instance) []*cim.Instance {
	switch {
	case q.ClassDefsOnly:
		var out []*cim.Instance
		seen := map[string]bool{}
		for _, in := range list {
			if id := strings.ToLower(in.Class); !seen[id] {
				seen[id] = true
				out = append(out, &cim.Instance{Class: in.Class, Path: cim.Path{Host: r.server, Namespace: r.namespace, Class: in.Class}})
			}
		}
		return out
	case q.KeysOnly:
		out := make([]*cim.Instance, len(list))
		for i, in := range list {
			out[i] = &cim.Instance{Class: in.Class, Path: in.Path}
			if c, ok := r.schema.Class(r.namespace, in.Class); ok {
				out[i] = project(c, nil, in)
			}
		}
		return out
	}
	return list
}

// identity is equal for two paths that name the same object.
func identity(p cim.Path) string {
	var b strings.Builder
	b.WriteString(strings.ToLower(p.Class))
	keys := make([]string, len(p.Keys))
	for i, k := range p.Keys {
		keys[i] = strings.ToLower(k.Name + "\x00" + k.Value)
	}
	if len(keys) > 1 {
		slices.Sort(keys)
	}
	for _, k := range keys {
		b.WriteString("\x01" + k)
	}
	return b.String()
}
