package wsmand

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/wsmand/soap"
)

// Filter dialects; they are compared without case, as Microsoft's own tools differ in it.
const (
	dialectWQL         = "http://schemas.microsoft.com/wbem/wsman/1/WQL"
	dialectSelector    = "http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter"
	dialectSelectorMS  = "http://schemas.microsoft.com/wbem/wsman/1/wsman/SelectorFilter"
	dialectAssociation = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"
)

// What an item holds.
type itemMode int

const (
	modeObject itemMode = iota
	modeEPR
	modeBoth
)

// enumeration is an open one.
type enumeration struct {
	id        string
	user      string // lower case
	resource  string
	namespace string
	mode      itemMode
	schema    Schema
	fragment  []string // selected names; nil = whole instances
	expires   time.Time
	timer     *time.Timer

	pulling sync.Mutex // held during a Pull
	items   []*cim.Instance
}

// page bounds one answer.
type page struct {
	elements int
	bytes    int
}

func (c *call) limit() int {
	limit := c.cfg.Quotas.MaxEnvelopeKB << 10
	if c.req.MaxEnvelope > 0 {
		limit = min(limit, c.req.MaxEnvelope)
	}
	return limit
}

// pageOf reads the limits that a Pull, or an optimised Enumerate, asks for.
func (c *call) pageOf(space string) (page, *soap.Fault) {
	p := page{elements: 1, bytes: c.limit() - soap.EnvelopeOverhead}
	if v := c.req.Body.Child(space, "MaxElements"); v != nil {
		n, err := strconv.ParseUint(v.Value(), 10, 31)
		if err != nil || n == 0 {
			return p, soap.NewFault(soap.FaultSchema, fmt.Sprintf("MaxElements is %q", v.Value()))
		}
		p.elements = min(int(n), c.cfg.Quotas.MaxItems)
	}
	if v := c.req.Body.Child(soap.NSEnum, "MaxCharacters"); v != nil {
		n, err := strconv.ParseUint(v.Value(), 10, 31)
		if err != nil || n == 0 {
			return p, soap.NewFault(soap.FaultSchema, fmt.Sprintf("MaxCharacters is %q", v.Value()))
		}
		p.bytes = min(p.bytes, int(n))
	}
	return p, nil
}

func (c *call) enumerate(ctx context.Context) (*reply, *soap.Fault) {
	if c.req.Body == nil || !c.req.Body.Is(soap.NSEnum, "Enumerate") {
		return nil, soap.NewFault(soap.FaultSchema, "the body is no Enumerate")
	}
	e, query, f := c.newEnumeration()
	if f != nil {
		return nil, f
	}
	optimize := c.req.Body.Child(soap.NSWSMan, "OptimizeEnumeration") != nil
	p, f := c.pageOf(soap.NSWSMan)
	if f != nil {
		return nil, f
	}
	filtered := c.req.Body.Child(soap.NSWSMan, "Filter") != nil || c.req.Body.Child(soap.NSEnum, "Filter") != nil
	var err error
	if e.items, err = c.session.Query(ctx, e.namespace, query); err != nil {
		return nil, soap.SessionFault(err, "ExecQuery", query, filtered)
	}
	r := &reply{action: soap.NSEnum + "/EnumerateResponse"}
	if c.req.Estimate {
		r.header = fmt.Sprintf("<w:TotalItemsCountEstimate>%d</w:TotalItemsCountEstimate>", len(e.items))
	}
	var items []byte
	if optimize {
		if items, f = e.next(p, c.req.MaxEnvelope); f != nil {
			return nil, f
		}
	}
	var b bytes.Buffer
	b.WriteString("<n:EnumerateResponse>")
	if optimize && len(e.items) == 0 {
		b.WriteString("<n:EnumerationContext></n:EnumerationContext>")
	} else {
		if f := c.keep(e); f != nil {
			return nil, f
		}
		soap.Element(&b, "n:EnumerationContext", e.id)
	}
	if optimize {
		b.WriteString("<w:Items>")
		b.Write(items)
		b.WriteString("</w:Items>")
		if len(e.items) == 0 {
			b.WriteString("<w:EndOfSequence/>")
		}
	}
	b.WriteString("</n:EnumerateResponse>")
	r.body = b.Bytes()
	return r, nil
}

// newEnumeration reads the parameters of an Enumerate.
func (c *call) newEnumeration() (*enumeration, string, *soap.Fault) {
	e := &enumeration{id: soap.NewUUID(), user: strings.ToLower(c.user), resource: c.req.Resource, schema: c.cfg.Schema}
	if v := c.req.Body.Child(soap.NSEnum, "Expires"); v != nil {
		d, err := soap.ParseDuration(v.Value())
		if err != nil {
			var t time.Time
			if t, err = time.Parse(time.RFC3339Nano, v.Value()); err == nil {
				d = time.Until(t)
			}
		}
		if err != nil || d <= 0 {
			return nil, "", soap.NewFault(soap.FaultExpiration, fmt.Sprintf("Expires is %q", v.Value()))
		}
		e.expires = time.Now().Add(d)
	}
	if v := c.req.Body.Child(soap.NSWSMan, "EnumerationMode"); v != nil {
		switch v.Value() {
		case "EnumerateObject":
		case "EnumerateEPR":
			e.mode = modeEPR
		case "EnumerateObjectAndEPR":
			e.mode = modeBoth
		default:
			return nil, "", soap.NewFault(soap.FaultEnumMode, fmt.Sprintf("the mode %q is not known", v.Value()))
		}
	}
	if v := c.req.Body.Child(soap.NSBinding, "PolymorphismMode"); v != nil && v.Value() != "IncludeSubClassProperties" {
		// Windows has this one mode only (IWSManSession::Enumerate, remarks).
		return nil, "", soap.NewFault(soap.FaultPolymorphism, fmt.Sprintf("the mode is %q", v.Value()))
	}
	namespace, class, f := soap.SplitResource(c.req.Resource, c.req.Namespace)
	if f != nil {
		return nil, "", f
	}
	e.namespace = namespace
	filter := c.req.Body.Child(soap.NSWSMan, "Filter")
	if filter == nil {
		filter = c.req.Body.Child(soap.NSEnum, "Filter")
	}
	if filter == nil {
		if class == "*" {
			return nil, "", soap.NewFault(soap.FaultEnumWQL, "the filter is missing")
		}
		if len(c.req.Selectors) > 0 {
			return nil, "", soap.NewFault(soap.FaultUnknownSelectors, "an enumeration takes no selectors")
		}
		return e, "SELECT * FROM " + class, nil
	}
	query, f := c.filterQuery(filter, namespace, class)
	if f != nil {
		return nil, "", f
	}
	e.fragment = selected(query)
	for _, kind := range filter.Kids { // only a filter of associations has these
		for _, k := range kind.Kids {
			if k.Is(soap.NSBinding, "IncludeResultProperty") {
				e.fragment = append(e.fragment, k.Value())
			}
		}
	}
	return e, query, nil
}

// filterQuery turns a filter of any dialect into WQL.
func (c *call) filterQuery(filter *soap.Node, namespace, class string) (string, *soap.Fault) {
	switch dialect := filter.Attr("", "Dialect"); {
	case strings.EqualFold(dialect, dialectWQL):
		if class != "*" {
			return "", soap.NewFault(soap.FaultEnumWQL, "the class is "+class)
		}
		if filter.Value() == "" {
			return "", soap.NewFault(soap.FaultFilter, "the query is empty")
		}
		return filter.Value(), nil
	case strings.EqualFold(dialect, dialectSelector), strings.EqualFold(dialect, dialectSelectorMS):
		set := filter.Child(soap.NSWSMan, "SelectorSet")
		if set == nil || class == "*" {
			return "", soap.NewFault(soap.FaultFilter, "a selector filter needs a class and a set of selectors")
		}
		keys, _, f := soap.Selectors(set, 0)
		if f != nil {
			return "", f
		}
		return c.whereQuery(namespace, class, keys)
	case strings.EqualFold(dialect, dialectAssociation):
		return associationQuery(filter, c.cfg.Computer)
	default:
		return "", soap.NewFault(soap.FaultDialect, fmt.Sprintf("the dialect is %q", dialect))
	}
}

// whereQuery selects the instances of a class whose properties have these values.
func (c *call) whereQuery(namespace, class string, keys []cim.Key) (string, *soap.Fault) {
	q := "SELECT * FROM " + class
	for i, k := range keys {
		word, literal := " AND ", cim.Quote(k.Value)
		if i == 0 {
			word = " WHERE "
		}
		if c.cfg.Schema != nil {
			if p, ok := c.cfg.Schema.Property(namespace, class, k.Name); ok && p.Type != "string" && p.Type != "datetime" && p.Type != typeReference {
				v, err := cim.Parse(p.Type, k.Value)
				if err != nil {
					return "", soap.NewFault(soap.FaultSelectorType, fmt.Sprintf("selector %s is no %s: %q", k.Name, p.Type, clip(k.Value)))
				}
				literal = cim.Args{{Name: "v", Value: v}}.String("v") // a number or TRUE or FALSE
			}
		}
		q += word + k.Name + " = " + literal
	}
	return q, nil
}

// associationQuery turns a filter of [DSP0227] 8.4.4 into ASSOCIATORS OF or REFERENCES OF.
func associationQuery(filter *soap.Node, computer string) (string, *soap.Fault) {
	what, verb := filter.Child(soap.NSBinding, "AssociatedInstances"), "ASSOCIATORS"
	if what == nil {
		what, verb = filter.Child(soap.NSBinding, "AssociationInstances"), "REFERENCES"
	}
	if what == nil {
		return "", soap.NewFault(soap.FaultFilter, "the filter names neither AssociatedInstances nor AssociationInstances")
	}
	object := what.Child(soap.NSBinding, "Object")
	if object == nil {
		return "", soap.NewFault(soap.FaultFilter, "the filter names no Object")
	}
	path, f := soap.ParseEPR(object, 0)
	if f != nil {
		return "", soap.NewFault(soap.FaultFilter, "the Object is no endpoint reference")
	}
	words := []struct{ element, word string }{
		{"AssociationClassName", "AssocClass"}, {"ResultClassName", "ResultClass"}, {"Role", "Role"}, {"ResultRole", "ResultRole"},
	}
	path.Keys = soap.AtHost(path.Keys, computer)
	q, where := verb+" OF {"+path.Relative()+"}", " WHERE"
	for _, w := range words {
		v := what.Child(soap.NSBinding, w.element).Value()
		if v == "" {
			continue
		}
		if !soap.IsName(v) || v == "*" {
			return "", soap.NewFault(soap.FaultFilter, fmt.Sprintf("%s is %q", w.element, v))
		}
		if verb == "REFERENCES" && (w.word == "AssocClass" || w.word == "ResultRole") {
			return "", soap.NewFault(soap.FaultFilter, w.element+" has no place in AssociationInstances")
		}
		q += where + " " + w.word + "=" + v
		where = ""
	}
	return q, nil
}

var projection = regexp.MustCompile(`(?is)^\s*select\s+(.*?)\s+from\s`)

// selected returns the property names of a query that does not select everything.
func selected(query string) []string {
	m := projection.FindStringSubmatch(query)
	if m == nil {
		return nil
	}
	var names []string
	for _, n := range strings.Split(m[1], ",") {
		if n = strings.TrimSpace(n); n == "*" {
			return nil
		}
		names = append(names, n)
	}
	return names
}

// path names an instance; a session that does not say it leaves it to the keys.
func (e *enumeration) path(in *cim.Instance) cim.Path {
	if !in.Path.IsZero() || e.schema == nil {
		return in.Path
	}
	p := cim.Path{Namespace: e.namespace, Class: in.Class}
	_, keys, _ := e.schema.Class(e.namespace, in.Class)
	for _, k := range keys {
		if v, _ := in.Lookup(k); v != nil {
			p.Keys = append(p.Keys, cim.Key{Name: k, Value: in.String(k)})
		}
	}
	return p
}

// render writes one item.
func (e *enumeration) render(b *bytes.Buffer, in *cim.Instance) {
	if e.mode == modeEPR {
		soap.WriteEPR(b, e.path(in), e.namespace)
		return
	}
	if e.mode == modeBoth {
		b.WriteString("<w:Item>")
	}
	if e.fragment != nil {
		soap.WriteFragment(b, in, e.fragment, e.namespace)
	} else {
		soap.WriteInstance(b, in, e.namespace)
	}
	if e.mode == modeBoth {
		soap.WriteEPR(b, e.path(in), e.namespace)
		b.WriteString("</w:Item>")
	}
}

// next takes as many items as fit into a page, one at least.
func (e *enumeration) next(p page, asked int) ([]byte, *soap.Fault) {
	var b bytes.Buffer
	n := 0
	for n < len(e.items) && n < p.elements {
		before := b.Len()
		e.render(&b, e.items[n])
		if b.Len() > p.bytes {
			if n == 0 {
				kind := soap.FaultTooLargeForServer
				if asked > 0 && p.bytes <= asked {
					kind = soap.FaultTooLargeForClient
				}
				return nil, soap.NewFault(kind, fmt.Sprintf("one item of class %s has %d bytes", e.items[0].Class, b.Len()))
			}
			b.Truncate(before)
			break
		}
		n++
	}
	clear(e.items[:n])
	e.items = e.items[n:]
	return b.Bytes(), nil
}

// keep opens the enumeration for Pull.
func (s *Server) keep(e *enumeration) *soap.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return soap.NewFault(soap.FaultInternal, "the service shuts down")
	}
	if limit := s.cfg.Quotas.MaxEnumerations; s.enumsOf(e.user) >= limit {
		return soap.QuotaFault(limit)
	}
	e.timer = time.AfterFunc(e.idle(s.cfg.Quotas.EnumerationTimeout), func() { s.drop(e) })
	s.enums[e.id] = e
	return nil
}

// idle is how long the enumeration may wait for its next Pull.
func (e *enumeration) idle(limit time.Duration) time.Duration {
	if e.expires.IsZero() {
		return limit
	}
	return max(0, min(limit, time.Until(e.expires)))
}

func (s *Server) drop(e *enumeration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.timer.Stop()
	delete(s.enums, e.id)
}

// open finds a user's enumeration; another user's is as absent as none.
func (c *call) open() (*enumeration, *soap.Fault) {
	id := c.req.Body.Child(soap.NSEnum, "EnumerationContext").Value()
	c.mu.Lock()
	e := c.enums[id]
	c.mu.Unlock()
	if e == nil || e.user != strings.ToLower(c.user) {
		return nil, soap.NewFault(soap.FaultContext, "")
	}
	if !strings.EqualFold(e.resource, c.req.Resource) {
		return nil, soap.NewFault(soap.FaultPullParams, "the enumeration is of "+e.resource)
	}
	if !e.pulling.TryLock() {
		return nil, soap.NewFault(soap.FaultConcurrency, "")
	}
	return e, nil
}

func (c *call) pull() (*reply, *soap.Fault) {
	if c.req.Body == nil || !c.req.Body.Is(soap.NSEnum, "Pull") {
		return nil, soap.NewFault(soap.FaultSchema, "the body is no Pull")
	}
	p, f := c.pageOf(soap.NSEnum)
	if f != nil {
		return nil, f
	}
	e, f := c.open()
	if f != nil {
		return nil, f
	}
	defer e.pulling.Unlock()
	if !e.timer.Reset(math.MaxInt64) { // it fired while the Pull arrived
		e.timer.Stop()
		return nil, soap.NewFault(soap.FaultContext, "")
	}
	items, f := e.next(p, c.req.MaxEnvelope)
	if f != nil {
		e.timer.Reset(e.idle(c.cfg.Quotas.EnumerationTimeout))
		return nil, f
	}
	var b bytes.Buffer
	b.WriteString("<n:PullResponse>")
	if len(e.items) > 0 {
		soap.Element(&b, "n:EnumerationContext", e.id)
	}
	b.WriteString("<n:Items>")
	b.Write(items)
	b.WriteString("</n:Items>")
	if len(e.items) == 0 {
		b.WriteString("<n:EndOfSequence/>")
		c.drop(e)
	} else {
		e.timer.Reset(e.idle(c.cfg.Quotas.EnumerationTimeout))
	}
	b.WriteString("</n:PullResponse>")
	return &reply{action: soap.NSEnum + "/PullResponse", body: b.Bytes()}, nil
}

func (c *call) release() (*reply, *soap.Fault) {
	if c.req.Body == nil || !c.req.Body.Is(soap.NSEnum, "Release") {
		return nil, soap.NewFault(soap.FaultSchema, "the body is no Release")
	}
	e, f := c.open()
	if f != nil {
		return nil, f
	}
	defer e.pulling.Unlock()
	c.drop(e)
	return &reply{action: soap.NSEnum + "/ReleaseResponse"}, nil
}
