package soap

import (
	"bytes"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/cim"
)

// Escape writes text.
func Escape(b *bytes.Buffer, s string) { _ = xml.EscapeText(b, []byte(s)) } // a buffer doesn't fail

// Element writes an element with text; name has a prefix that the envelope declares.
func Element(b *bytes.Buffer, name, text string) {
	b.WriteString("<" + name + ">")
	Escape(b, text)
	b.WriteString("</" + name + ">")
}

// NewUUID returns a new name for a message or context.
func NewUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("uuid:%X-%X-%X-%X-%X", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// EnvelopeOpen declares the namespaces s, a, x, n and w, so that contents can be rendered before their envelope.
const EnvelopeOpen = `<s:Envelope xml:lang="en-US" xmlns:s="` + nsSOAP + `" xmlns:a="` + NSWSA + `" xmlns:x="` + NSTransfer +
	`" xmlns:n="` + NSEnum + `" xmlns:w="` + NSWSMan + `">`

// EnvelopeOverhead is more than what an envelope adds to its body.
const EnvelopeOverhead = 2048

// Envelope renders an answer: header holds more headers, relates is the request's message ID, perhaps empty.
func Envelope(action, header string, body []byte, relates string) []byte {
	var b bytes.Buffer
	b.Grow(len(body) + EnvelopeOverhead)
	b.WriteString(EnvelopeOpen + "<s:Header>")
	Element(&b, "a:Action", action)
	Element(&b, "a:MessageID", NewUUID())
	Element(&b, "a:To", uriAnonymous)
	if relates != "" {
		Element(&b, "a:RelatesTo", relates)
	}
	b.WriteString(header)
	b.WriteString("</s:Header><s:Body>")
	b.Write(body)
	b.WriteString("</s:Body></s:Envelope>")
	return b.Bytes()
}

func resourceURI(namespace, class string) string { return URIWMI + namespace + "/" + class }

// WriteInstance renders an instance as Windows does: properties in the order of
// their names without regard to case, the class as element and as xsi:type.
func WriteInstance(b *bytes.Buffer, in *cim.Instance, namespace string) {
	if in.Path.Namespace != "" {
		namespace = in.Path.Namespace
	}
	fmt.Fprintf(b, `<p:%s xmlns:xsi="%s" xmlns:p="`, in.Class, NSXSI)
	Escape(b, resourceURI(namespace, in.Class))
	fmt.Fprintf(b, `" xmlns:cim="%s" xsi:type="p:%s_Type">`, NSCommon, in.Class)
	WriteArgs(b, in.Args, "p:", "cim:", namespace)
	fmt.Fprintf(b, "</p:%s>", in.Class)
}

// WriteFragment renders the named properties alone, which is how Windows answers
// a query that does not select *: names have no namespace there.
func WriteFragment(b *bytes.Buffer, in *cim.Instance, names []string, namespace string) {
	fmt.Fprintf(b, `<w:XmlFragment xmlns:xsi="%s">`, NSXSI)
	var some cim.Args
	for _, p := range in.Args {
		if slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, p.Name) }) {
			some = append(some, p)
		}
	}
	WriteArgs(b, some, "", "", namespace)
	b.WriteString("</w:XmlFragment>")
}

// WriteArgs renders properties or parameters; prefix and common are those of their
// names and of the elements of datetimes, with colon or empty.
func WriteArgs(b *bytes.Buffer, args cim.Args, prefix, common, namespace string) {
	sorted := slices.Clone(args)
	slices.SortStableFunc(sorted, func(p, q cim.Property) int {
		return strings.Compare(strings.ToLower(p.Name), strings.ToLower(q.Name))
	})
	for _, p := range sorted {
		if strings.HasPrefix(p.Name, "__") || !IsName(p.Name) || p.Name == "*" {
			continue // system properties have no place in WS-Man
		}
		list, _ := cim.Elements(p.Value)
		if len(list) == 0 { // null, or an array without elements: the two can't be told apart here
			fmt.Fprintf(b, `<%s%s xsi:nil="true"/>`, prefix, p.Name)
		}
		for _, v := range list {
			b.WriteString("<" + prefix + p.Name + ">")
			writeValue(b, v, common, namespace)
			b.WriteString("</" + prefix + p.Name + ">")
		}
	}
}

func writeValue(b *bytes.Buffer, v cim.Value, common, namespace string) {
	switch v := v.(type) {
	case cim.Path:
		writeReference(b, v, namespace)
	case cim.DateTime:
		kind, text := XMLTime(v)
		Element(b, common+kind, text)
	default:
		Escape(b, cim.Args{{Name: "v", Value: v}}.String("v"))
	}
}

// XMLTime renders a CIM datetime as Windows does: a point in time or an interval
// in the forms of XML schema, anything else (with asterisks) as it is.
func XMLTime(d cim.DateTime) (element, text string) {
	s := string(d)
	digits := func(from, to int) string {
		t := strings.TrimLeft(s[from:to], "0")
		if t == "" {
			t = "0"
		}
		return t
	}
	fraction := func() string {
		f := strings.TrimRight(s[15:21], "0")
		if f != "" {
			f = "." + f
		}
		return f
	}
	if len(s) != 25 || s[14] != '.' || strings.Trim(s[:14]+s[15:21]+s[22:], "0123456789") != "" {
		return "CIM_DateTime", s
	}
	switch s[21] {
	case ':':
		return "Interval", fmt.Sprintf("P%sDT%sH%sM%s%sS", digits(0, 8), digits(8, 10), digits(10, 12), digits(12, 14), fraction())
	case '+', '-':
		if _, err := d.Time(); err != nil {
			return "CIM_DateTime", s
		}
		minutes := int(s[22]-'0')*100 + int(s[23]-'0')*10 + int(s[24]-'0')
		zone := "Z"
		if minutes != 0 {
			zone = fmt.Sprintf("%c%02d:%02d", s[21], minutes/60, minutes%60)
		}
		return "Datetime", fmt.Sprintf("%s-%s-%sT%s:%s:%s%s%s", s[:4], s[4:6], s[6:8], s[8:10], s[10:12], s[12:14], fraction(), zone)
	}
	return "CIM_DateTime", s
}

// writeReference renders what an endpoint reference holds.
func writeReference(b *bytes.Buffer, p cim.Path, namespace string) {
	if p.Namespace != "" {
		namespace = p.Namespace
	}
	Element(b, "a:Address", uriAnonymous)
	b.WriteString("<a:ReferenceParameters>")
	Element(b, "w:ResourceURI", resourceURI(namespace, p.Class))
	b.WriteString("<w:SelectorSet>")
	selector := func(name string) {
		b.WriteString(`<w:Selector Name="`)
		Escape(b, name)
		b.WriteString(`">`)
	}
	selector(selNamespace)
	Escape(b, namespace)
	b.WriteString("</w:Selector>")
	for _, k := range p.Keys {
		selector(k.Name)
		if ref, ok := referenceKey(k.Value); ok {
			b.WriteString("<a:EndpointReference>")
			writeReference(b, ref, namespace)
			b.WriteString("</a:EndpointReference>")
		} else {
			Escape(b, k.Value)
		}
		b.WriteString("</w:Selector>")
	}
	b.WriteString("</w:SelectorSet></a:ReferenceParameters>")
}

// referenceKey tells whether a key's value is an object path, as those of
// associations are: only a path with host and namespace is taken for one.
func referenceKey(s string) (cim.Path, bool) {
	if !strings.HasPrefix(s, `\\`) || !strings.Contains(s, `:`) {
		return cim.Path{}, false
	}
	p, err := cim.ParsePath(s)
	return p, err == nil && p.Namespace != "" && IsName(p.Class) && len(p.Keys) > 0
}

// WriteEPR renders a whole endpoint reference.
func WriteEPR(b *bytes.Buffer, p cim.Path, namespace string) {
	b.WriteString("<a:EndpointReference>")
	writeReference(b, p, namespace)
	b.WriteString("</a:EndpointReference>")
}
