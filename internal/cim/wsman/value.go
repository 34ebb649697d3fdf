package wsman

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/cim"
)

// instance converts an element of an instance: children are its properties, an
// xsi:type or else the element's name is its class.
func instance(n *node, namespace string) *cim.Instance {
	in := &cim.Instance{Class: className(n)}
	in.Args = properties(n, namespace)
	return in
}

func className(n *node) string {
	class := n.name.Local
	if typ, ok := n.attribute(nsXSI, "type"); ok {
		if i := strings.LastIndexByte(typ, ':'); i >= 0 {
			typ = typ[i+1:]
		}
		if typ = strings.TrimSuffix(typ, "_Type"); typ != "" {
			class = typ
		}
	}
	return class
}

// properties groups children by name: one that occurs more than once is an array.
func properties(n *node, namespace string) cim.Args {
	var args cim.Args
	index := map[string]int{}
	var groups [][]*node
	for _, k := range n.kids {
		// System properties such as __SERVER and __PATH are WMI's view of the object, not part of it.
		if strings.HasPrefix(k.name.Local, "__") {
			continue
		}
		key := strings.ToLower(k.name.Local)
		i, ok := index[key]
		if !ok {
			i = len(groups)
			index[key] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], k)
	}
	for _, g := range groups {
		args = append(args, cim.Property{Name: g[0].name.Local, Value: value(g, namespace)})
	}
	return args
}

// value converts the elements of one property. A single one is a scalar, as an array of one cannot be told from it.
func value(list []*node, namespace string) cim.Value {
	if len(list) == 1 {
		return scalar(list[0], namespace)
	}
	var texts []string
	var paths []cim.Path
	var objects []*cim.Instance
	for _, n := range list {
		switch v := scalar(n, namespace).(type) {
		case string:
			texts = append(texts, v)
		case cim.Path:
			paths = append(paths, v)
		case *cim.Instance:
			objects = append(objects, v)
		}
	}
	// Elements of an array are never null and all of one kind ([DSP0230]); what breaks that is dropped
	// in favour of the first kind that occurs.
	switch {
	case len(texts) > 0:
		return texts
	case len(paths) > 0:
		return paths
	case len(objects) > 0:
		return objects
	}
	return nil
}

func scalar(n *node, namespace string) cim.Value {
	if n.isNil() {
		return nil
	}
	if len(n.kids) == 0 {
		return n.text
	}
	if p, ok := reference(n, namespace); ok {
		return p
	}
	if len(n.kids) == 1 && n.kids[0].name.Space == nsCIM {
		switch k := n.kids[0]; k.name.Local {
		case "Interval":
			return interval(k.trimmed())
		case "Datetime", "Date", "Time", "CIM_DateTime":
			return k.trimmed()
		}
	}
	return instance(n, namespace)
}

// reference reads an endpoint reference: Address and ReferenceParameters stand right below the
// element (Windows) or within an EndpointReference (others). ok is false if the element is none.
func reference(n *node, namespace string) (cim.Path, bool) {
	if n.name.Local != "EndpointReference" {
		if e := n.child("", "EndpointReference"); e != nil {
			n = e
		}
	}
	params := n.child("", "ReferenceParameters")
	if params == nil {
		return cim.Path{}, false
	}
	var p cim.Path
	p.Namespace, p.Class = splitResource(params.child("", "ResourceURI").trimmed())
	var named string
	if set := params.child("", "SelectorSet"); set != nil {
		for _, s := range set.kids {
			name, ok := s.attribute("", "Name")
			if !ok {
				continue
			}
			if strings.EqualFold(name, "__cimnamespace") {
				named = s.trimmed()
				continue
			}
			if strings.HasPrefix(name, "__") {
				continue
			}
			text := s.text
			if inner, ok := reference(s, namespace); ok {
				text = inner.String()
			}
			p.Keys = append(p.Keys, cim.Key{Name: name, Value: text})
		}
	}
	if p.Namespace == "" {
		p.Namespace = strings.ReplaceAll(named, `\`, "/")
	}
	if p.Namespace == "" {
		p.Namespace = namespace
	}
	p.Singleton = len(p.Keys) == 0 && p.Class != ""
	return p, p.Class != ""
}

// resource is the URI of a class in a namespace, as [MS-WSMV] builds those of WMI.
func resource(namespace, class string) string {
	return wmiPrefix + strings.Trim(strings.ReplaceAll(namespace, `\`, "/"), "/") + "/" + class
}

// splitResource returns namespace and class of a resource URI; one that is not WMI's has no namespace.
func splitResource(uri string) (namespace, class string) {
	uri, _, _ = strings.Cut(uri, "?")
	i := strings.LastIndexByte(uri, '/')
	if i < 0 {
		return "", uri
	}
	class = uri[i+1:]
	if len(uri) > len(wmiPrefix) && strings.EqualFold(uri[:len(wmiPrefix)], wmiPrefix) && i > len(wmiPrefix) {
		namespace = uri[len(wmiPrefix):i]
	}
	return namespace, class
}

// conventionalPath guesses the path of an instance whose server sent no reference with it, from
// the keys that the CIM schema gives to systems, services and devices, and to everything that has an InstanceID.
func conventionalPath(in *cim.Instance, namespace string) cim.Path {
	p := cim.Path{Namespace: namespace, Class: in.Class}
	add := func(name string) bool {
		v, ok := in.Lookup(name)
		if s, isText := v.(string); ok && isText {
			p.Keys = append(p.Keys, cim.Key{Name: name, Value: s})
			return true
		}
		return false
	}
	if add("CreationClassName") {
		if add("DeviceID") || add("Name") {
			add("SystemCreationClassName")
			add("SystemName")
			return p
		}
		p.Keys = nil
	}
	if add("InstanceID") {
		return p
	}
	return cim.Path{}
}

// writeArgs renders named values as children of a method's input; q is the prefix of the method's namespace.
func writeArgs(b *strings.Builder, args cim.Args, namespace string) error {
	for _, a := range args {
		if !isName(a.Name) {
			return fmt.Errorf("parameter %q has a name that cannot be sent", a.Name)
		}
		if a.Value == nil {
			fmt.Fprintf(b, `<p:%s xsi:nil="true"/>`, a.Name)
			continue
		}
		// An array without elements is no element at all ([DSP0230]).
		list, _ := cim.Elements(a.Value)
		for i, v := range list {
			s, err := content(v, namespace)
			if err != nil {
				return fmt.Errorf("parameter %s, element %d: %w", a.Name, i, err)
			}
			fmt.Fprintf(b, `<p:%s>%s</p:%s>`, a.Name, s, a.Name)
		}
	}
	return nil
}

// content renders one value.
func content(v cim.Value, namespace string) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", fmt.Errorf("arrays hold no nulls")
	case cim.Path:
		if v.IsZero() {
			return "", fmt.Errorf("the reference names nothing; send null instead")
		}
		return referenceXML(v, namespace, 0)
	case *cim.Instance:
		s, err := cim.EncodeEmbedded(v)
		if err != nil {
			return "", err
		}
		return escape(s)
	case cim.DateTime:
		return dateTimeXML(v)
	case string:
		return escape(v)
	case bool, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64, int, uint:
		return fmt.Sprint(v), nil
	}
	return "", fmt.Errorf("a %T cannot be sent", v)
}

// referenceXML renders the inside of an endpoint reference.
func referenceXML(p cim.Path, namespace string, depth int) (string, error) {
	if depth > 8 {
		return "", fmt.Errorf("references nest deeper than 8")
	}
	if p.Namespace == "" {
		p.Namespace = namespace
	}
	uri, err := escape(resource(p.Namespace, p.Class))
	if err != nil {
		return "", err
	}
	set, err := selectorsXML(p, depth)
	if err != nil {
		return "", err
	}
	ns, err := escape(strings.ReplaceAll(p.Namespace, `\`, "/"))
	if err != nil {
		return "", err
	}
	return `<a:Address>` + anonymous + `</a:Address><a:ReferenceParameters><w:ResourceURI>` + uri + `</w:ResourceURI>` +
		`<w:SelectorSet><w:Selector Name="__cimnamespace">` + ns + `</w:Selector>` + set + `</w:SelectorSet></a:ReferenceParameters>`, nil
}

// selectorsXML renders the keys of a path.
func selectorsXML(p cim.Path, depth int) (string, error) {
	var b strings.Builder
	for _, k := range p.Keys {
		name, err := escape(k.Name)
		if err != nil {
			return "", err
		}
		var text string
		// A key of an association is itself a reference; its text is a full path.
		if inner, perr := cim.ParsePath(k.Value); perr == nil && strings.HasPrefix(k.Value, `\\`) && len(inner.Keys) > 0 &&
			strings.HasPrefix(strings.ToLower(inner.Namespace), "root") {
			if text, err = referenceXML(inner, p.Namespace, depth+1); err == nil {
				text = `<a:EndpointReference>` + text + `</a:EndpointReference>`
			}
		} else {
			text, err = escape(k.Value)
		}
		if err != nil {
			return "", fmt.Errorf("key %s: %w", k.Name, err)
		}
		fmt.Fprintf(&b, `<w:Selector Name="%s">%s</w:Selector>`, name, text)
	}
	return b.String(), nil
}

// dateTimeXML renders a point in time or an interval as [DSP0230] does.
func dateTimeXML(d cim.DateTime) (string, error) {
	if s := string(d); len(s) == 25 && s[14] == '.' && s[21] == ':' {
		days, err1 := strconv.Atoi(s[:8])
		h, err2 := strconv.Atoi(s[8:10])
		m, err3 := strconv.Atoi(s[10:12])
		sec, err4 := strconv.Atoi(s[12:14])
		_, err5 := strconv.Atoi(s[15:21])
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil {
			return "", fmt.Errorf("%q is no interval", s)
		}
		return fmt.Sprintf("<cim:Interval>P%dDT%dH%dM%d.%sS</cim:Interval>", days, h, m, sec, s[15:21]), nil
	}
	t, err := d.Time()
	if err != nil {
		return "", err
	}
	return "<cim:Datetime>" + t.UTC().Format("2006-01-02T15:04:05.999999Z") + "</cim:Datetime>", nil
}

// interval converts an XML duration of days and smaller units to CIM's interval; other text stays as it is.
func interval(s string) string {
	rest, ok := strings.CutPrefix(s, "P")
	if !ok {
		return s
	}
	days, clock, _ := strings.Cut(rest, "T")
	var d time.Duration
	var n int
	if days != "" {
		var err error
		if n, err = strconv.Atoi(strings.TrimSuffix(days, "D")); err != nil || !strings.HasSuffix(days, "D") || n < 0 || n > 99999999 {
			return s
		}
	}
	if clock != "" {
		var err error
		// Go's durations have the same units in small letters.
		if d, err = time.ParseDuration(strings.ToLower(clock)); err != nil || d < 0 {
			return s
		}
	}
	n += int(d / (24 * time.Hour))
	d %= 24 * time.Hour
	return fmt.Sprintf("%08d%02d%02d%02d.%06d:000", n, d/time.Hour, d/time.Minute%60, d/time.Second%60, d/time.Microsecond%1000000)
}

// isName reports whether s can be an XML name without a colon: CIM identifiers are letters, digits and underscores.
func isName(s string) bool {
	for i, r := range s {
		switch {
		case r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r > 0x7f:
		case i > 0 && r >= '0' && r <= '9':
		default:
			return false
		}
	}
	return s != ""
}
