package wsmand

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/wsmand/soap"
)

// Schema gives the types that WS-Man leaves out. Names are compared without case.
// It is asked concurrently.
type Schema interface {
	// Class returns the class's own spelling and the names of its keys; a
	// class without keys is a singleton or abstract.
	Class(namespace, class string) (name string, keys []string, ok bool)
	// Property returns a property as a parameter.
	Property(namespace, class, property string) (Param, bool)
	// Method returns the method's own spelling and its parameters without the return value.
	Method(namespace, class, method string) (name string, params []Param, ok bool)
}

// Param is a parameter of a method, or a property.
type Param struct {
	Name    string
	Type    string // boolean, string, datetime, uint8 … sint64, real32, real64, reference; others are text
	Array   bool
	In, Out bool
}

const typeReference = "reference"

// call is one request on its way through the session.
type call struct {
	*Server
	session cim.Session
	user    string
	req     *soap.Request
}

// target is the object that the request names.
func (c *call) target(ctx context.Context) (cim.Path, *soap.Fault) {
	namespace, class, f := soap.SplitResource(c.req.Resource, c.req.Namespace)
	if f != nil {
		return cim.Path{}, f
	}
	if class == "*" {
		return cim.Path{}, soap.NewFault(soap.FaultInvalidResource, "the resource names no class")
	}
	path := cim.Path{Namespace: namespace, Class: class, Keys: soap.AtHost(c.req.Selectors, c.cfg.Computer)}
	if c.cfg.Schema == nil {
		return path, nil
	}
	name, keys, ok := c.cfg.Schema.Class(namespace, class)
	if !ok {
		return path, nil // the session knows, or says so
	}
	path.Class = name
	if len(keys) == 0 {
		path.Singleton = len(path.Keys) == 0
		return path, nil
	}
	have := 0
	for _, k := range path.Keys {
		if !containsFold(keys, k.Name) {
			return path, soap.NewFault(soap.FaultUnknownSelectors, fmt.Sprintf("class %s has no key %s", name, k.Name))
		}
		have++
	}
	if have == 0 || have == len(keys) {
		return path, nil
	}
	// WMI takes an incomplete path if it names one instance: clients of Hyper-V
	// select its services by their CreationClassName alone.
	query, f := c.whereQuery(namespace, name, path.Keys)
	if f != nil {
		return path, f
	}
	list, err := c.session.Query(ctx, namespace, query)
	switch {
	case err != nil:
		return path, soap.SessionFault(err, "ExecQuery", query, false)
	case len(list) == 0:
		return path, soap.SessionFault(&cim.Error{Code: cim.CodeNotFound, Message: "no instance has these keys"}, "GetObject", path.String(), false)
	case len(list) > 1:
		return path, soap.NewFault(soap.FaultAmbiguousSelectors, fmt.Sprintf("%d instances of %s match", len(list), name))
	case list[0].Path.IsZero():
		return path, soap.NewFault(soap.FaultMissingSelectors, fmt.Sprintf("class %s has the keys %s", name, strings.Join(keys, ", ")))
	}
	return list[0].Path, nil
}

func containsFold(list []string, s string) bool {
	for _, e := range list {
		if strings.EqualFold(e, s) {
			return true
		}
	}
	return false
}

// keyed refuses a path without keys to a class that has some.
func (c *call) keyed(path cim.Path) *soap.Fault {
	if len(path.Keys) > 0 || path.Singleton || c.cfg.Schema == nil {
		return nil
	}
	_, keys, ok := c.cfg.Schema.Class(path.Namespace, path.Class)
	if !ok {
		return nil
	}
	f := soap.NewFault(soap.FaultMissingSelectors, fmt.Sprintf("class %s is no singleton, its keys are %s", path.Class, strings.Join(keys, ", ")))
	f.Override = 2150859002 // the URI contains no keys, but the class is not a singleton
	return f
}

func (c *call) get(ctx context.Context) (*reply, *soap.Fault) {
	path, f := c.target(ctx)
	if f == nil {
		f = c.keyed(path)
	}
	if f != nil {
		return nil, f
	}
	in, err := c.session.Get(ctx, path)
	if err != nil {
		return nil, soap.SessionFault(err, "GetObject", path.String(), false)
	}
	return c.instanceReply(soap.NSTransfer+"/GetResponse", in, path)
}

func (c *call) instanceReply(action string, in *cim.Instance, path cim.Path) (*reply, *soap.Fault) {
	var b bytes.Buffer
	soap.WriteInstance(&b, in, path.Namespace)
	return c.sized(&reply{action: action, body: b.Bytes()})
}

// sized refuses an answer that is larger than the client or the server allows.
func (c *call) sized(r *reply) (*reply, *soap.Fault) {
	size := len(r.body) + soap.EnvelopeOverhead
	if limit := c.cfg.Quotas.MaxEnvelopeKB << 10; size > limit {
		return nil, soap.NewFault(soap.FaultTooLargeForServer, fmt.Sprintf("the answer has %d bytes, the limit is %d", size, limit))
	}
	if c.req.MaxEnvelope > 0 && size > c.req.MaxEnvelope {
		return nil, soap.NewFault(soap.FaultTooLargeForClient, fmt.Sprintf("the answer has %d bytes, the limit is %d", size, c.req.MaxEnvelope))
	}
	return r, nil
}

func (c *call) put(ctx context.Context) (*reply, *soap.Fault) {
	putter, ok := c.session.(Putter)
	if !ok {
		return nil, soap.NewFault(soap.FaultAction, "instances can't be changed by Put")
	}
	path, f := c.target(ctx)
	if f == nil {
		f = c.keyed(path)
	}
	if f != nil {
		return nil, f
	}
	if c.req.Body == nil || !strings.EqualFold(c.req.Body.Local, path.Class) {
		return nil, soap.NewFault(soap.FaultSchema, "the body is no instance of "+path.Class)
	}
	in := &cim.Instance{Class: path.Class, Path: path}
	groups, f := grouped(c.req.Body.Kids)
	if f != nil {
		return nil, f
	}
	for _, group := range groups {
		name := group[0].Local
		p := Param{Name: name, Type: "string", Array: len(group) > 1}
		if c.cfg.Schema != nil {
			if _, _, known := c.cfg.Schema.Class(path.Namespace, path.Class); known {
				if p, ok = c.cfg.Schema.Property(path.Namespace, path.Class, name); !ok {
					return nil, soap.NewFault(soap.FaultValues, fmt.Sprintf("class %s has no property %s", path.Class, name))
				}
			}
		}
		v, f := value(p, group)
		if f != nil {
			return nil, f
		}
		in.Set(p.Name, c.atHost(v))
	}
	changed, err := putter.Put(ctx, path, in)
	if err != nil {
		return nil, soap.SessionFault(err, "PutInstance", path.String(), false)
	}
	if changed == nil {
		return &reply{action: soap.NSTransfer + "/PutResponse"}, nil
	}
	return c.instanceReply(soap.NSTransfer+"/PutResponse", changed, path)
}

// grouped collects elements of one name, in the order in which the names come first.
func grouped(list []*soap.Node) ([][]*soap.Node, *soap.Fault) {
	var out [][]*soap.Node
	index := map[string]int{}
	for _, n := range list {
		key := strings.ToLower(n.Local)
		i, ok := index[key]
		if !ok {
			i = len(out)
			index[key] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], n)
	}
	if len(out) > soap.MaxNames {
		return nil, soap.NewFault(soap.FaultSchema, fmt.Sprintf("there are more than %d names", soap.MaxNames))
	}
	return out, nil
}

// invokeAction tells whether an action is one of a method of the resource: <resource>/<method>.
func invokeAction(req *soap.Request) (method string, ok bool) {
	method, ok = soap.CutPrefixFold(req.Action, req.Resource+"/")
	return method, ok && req.Resource != "" && soap.IsName(method) && method != "*"
}

func (c *call) invoke(ctx context.Context, method string) (*reply, *soap.Fault) {
	path, f := c.target(ctx)
	if f != nil {
		return nil, f
	}
	var params []Param
	typed := false
	if c.cfg.Schema != nil {
		if name, list, ok := c.cfg.Schema.Method(path.Namespace, path.Class, method); ok {
			method, params, typed = name, list, true
		} else if _, _, known := c.cfg.Schema.Class(path.Namespace, path.Class); known {
			return nil, soap.SessionFault(&cim.Error{Code: cim.CodeNoMethod, Message: fmt.Sprintf("class %s has no method %s", path.Class, method)},
				"ExecMethod", path.String(), false)
		}
	}
	in, f := c.input(method, params, typed)
	if f != nil {
		return nil, f
	}
	out, err := c.session.Invoke(ctx, path, method, in)
	if err != nil {
		return nil, soap.SessionFault(err, "ExecMethod", path.String(), false)
	}
	result := append(cim.Args(nil), out.Args...)
	for _, p := range params {
		if _, there := result.Lookup(p.Name); p.Out && !there {
			result.Set(p.Name, nil)
		}
	}
	result.Set("ReturnValue", out.Return)
	var b bytes.Buffer
	// In the namespace that the client asked in, whatever class the instance has.
	fmt.Fprintf(&b, `<p:%s_OUTPUT xmlns:xsi="%s" xmlns:p="`, method, soap.NSXSI)
	soap.Escape(&b, c.req.Resource)
	fmt.Fprintf(&b, `" xmlns:cim="%s">`, soap.NSCommon)
	soap.WriteArgs(&b, result, "p:", "cim:", path.Namespace)
	fmt.Fprintf(&b, "</p:%s_OUTPUT>", method)
	return c.sized(&reply{action: c.req.Resource + "/" + method + "Response", body: b.Bytes()})
}

// input reads the arguments of a method.
func (c *call) input(method string, params []Param, typed bool) (cim.Args, *soap.Fault) {
	var in cim.Args
	if c.req.Body == nil {
		return in, nil
	}
	if !strings.EqualFold(c.req.Body.Local, method+"_INPUT") || !strings.EqualFold(c.req.Body.Space, c.req.Resource) {
		return nil, soap.NewFault(soap.FaultSchema, fmt.Sprintf("the body is not %s_INPUT of %s", method, c.req.Resource))
	}
	groups, f := grouped(c.req.Body.Kids)
	if f != nil {
		return nil, f
	}
	for _, group := range groups {
		name := group[0].Local
		p, ok := Param{Name: name, Type: "string", Array: len(group) > 1}, !typed
		for _, declared := range params {
			if strings.EqualFold(declared.Name, name) && declared.In {
				p, ok = declared, true
			}
		}
		if !ok {
			return nil, soap.NewFault(soap.FaultParameterName, fmt.Sprintf("method %s takes no parameter %s", method, name))
		}
		if !strings.EqualFold(group[0].Space, c.req.Body.Space) {
			return nil, soap.NewFault(soap.FaultSchema, fmt.Sprintf("parameter %s is not in the namespace of the resource", name))
		}
		v, f := value(p, group)
		if f != nil {
			return nil, f
		}
		in.Set(p.Name, c.atHost(v))
	}
	return in, nil
}

// atHost completes the keys of references.
func (c *call) atHost(v cim.Value) cim.Value {
	switch v := v.(type) {
	case cim.Path:
		v.Keys = soap.AtHost(v.Keys, c.cfg.Computer)
		return v
	case []cim.Path:
		for i := range v {
			v[i].Keys = soap.AtHost(v[i].Keys, c.cfg.Computer)
		}
	}
	return v
}

// value converts the elements of one parameter to its type.
func value(p Param, group []*soap.Node) (cim.Value, *soap.Fault) {
	if len(group) == 1 && group[0].Null() {
		return nil, nil
	}
	if !p.Array && len(group) > 1 {
		return nil, soap.NewFault(soap.FaultSchema, fmt.Sprintf("parameter %s is no array, but there %d times", p.Name, len(group)))
	}
	var texts []string
	var paths []cim.Path
	for _, n := range group {
		if n.Null() {
			return nil, soap.NewFault(soap.FaultTypeMismatch, fmt.Sprintf("array %s has an element that is null", p.Name))
		}
		isRef := n.Child(soap.NSWSA, "ReferenceParameters") != nil || n.Child(soap.NSWSA, "EndpointReference") != nil
		if p.Type == typeReference || isRef {
			if p.Type != typeReference && p.Type != "string" {
				return nil, soap.NewFault(soap.FaultTypeMismatch, fmt.Sprintf("parameter %s is %s, not a reference", p.Name, p.Type))
			}
			path, f := soap.ParseEPR(n, 0)
			if f != nil {
				return nil, f
			}
			if path.Class == "*" {
				return nil, soap.NewFault(soap.FaultTypeMismatch, fmt.Sprintf("the reference %s names no class", p.Name))
			}
			paths = append(paths, path)
			continue
		}
		text := n.Text
		if len(n.Kids) > 0 {
			inner := n.Kids[0]
			if p.Type != "datetime" || inner.Space != soap.NSCommon || len(n.Kids) > 1 || len(inner.Kids) > 0 {
				return nil, soap.NewFault(soap.FaultTypeMismatch, fmt.Sprintf("parameter %s holds elements; it is %s (an embedded instance travels as text)", p.Name, p.Type))
			}
			text = inner.Value()
		}
		texts = append(texts, text)
	}
	switch {
	case len(paths) > 0 && len(texts) > 0:
		return nil, soap.NewFault(soap.FaultTypeMismatch, fmt.Sprintf("array %s mixes references and text", p.Name))
	case len(paths) > 0 && p.Array:
		return paths, nil
	case len(paths) > 0:
		return paths[0], nil
	}
	return typedText(p, texts)
}

// typedText parses text by the type of a parameter.
func typedText(p Param, texts []string) (cim.Value, *soap.Fault) {
	if p.Type == "datetime" {
		for i, t := range texts {
			d, ok := cimTime(strings.TrimSpace(t))
			if !ok {
				return nil, soap.NewFault(soap.FaultTypeMismatch, fmt.Sprintf("parameter %s is no datetime: %q", p.Name, clip(t)))
			}
			texts[i] = string(d)
		}
	}
	var v cim.Value
	var err error
	if p.Array {
		v, err = cim.ParseArray(p.Type, texts)
	} else {
		v, err = cim.Parse(p.Type, texts[0])
	}
	if err != nil {
		return nil, soap.NewFault(soap.FaultTypeMismatch, fmt.Sprintf("parameter %s is no %s: %q", p.Name, p.Type, clip(texts[0])))
	}
	return v, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// cimTime reads a datetime as WS-Man has it, or CIM itself.
func cimTime(s string) (cim.DateTime, bool) {
	if len(s) == 25 && s[14] == '.' {
		return cim.DateTime(s), true
	}
	if t, err := cim.DateTime(s).Time(); err == nil {
		_, offset := t.Zone()
		sign := "+"
		if offset < 0 {
			sign = "-"
		}
		return cim.DateTime(t.Format("20060102150405.000000") + fmt.Sprintf("%s%03d", sign, max(offset, -offset)/60)), true
	}
	if d, err := soap.ParseDuration(s); err == nil {
		sec := int64(d.Seconds())
		return cim.DateTime(fmt.Sprintf("%08d%02d%02d%02d.%06d:000", sec/86400, sec/3600%24, sec/60%60, sec%60, d.Microseconds()%1e6)), true
	}
	return "", false
}

// identify tells who this is; without a sign-in it does not tell the version.
func (s *Server) identify(user string) *reply {
	version := s.cfg.Version
	if user == "" {
		version = "OS: 0.0.0 SP: 0.0 Stack: 3.0"
	}
	var b bytes.Buffer
	b.WriteString(soap.EnvelopeOpen + `<s:Header></s:Header><s:Body><wsmid:IdentifyResponse xmlns:wsmid="` + soap.NSIdentity + `">`)
	soap.Element(&b, "wsmid:ProtocolVersion", soap.NSWSMan)
	soap.Element(&b, "wsmid:ProductVendor", s.cfg.Vendor)
	soap.Element(&b, "wsmid:ProductVersion", version)
	b.WriteString("</wsmid:IdentifyResponse></s:Body></s:Envelope>")
	return &reply{body: b.Bytes()}
}
