package wsman

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/internal/cim"
)

// Actions ([DSP0226] annexes A and B).
const (
	actionGet       = nsTransfer + "/Get"
	actionEnumerate = nsEnum + "/Enumerate"
	actionPull      = nsEnum + "/Pull"
	actionRelease   = nsEnum + "/Release"
)

// request is one message to the server.
type request struct {
	op       string // for errors: what is tried, naming the object
	action   string
	resource string
	path     cim.Path // its keys become selectors
	body     string
	unsafe   bool   // must not be sent twice
	anon     bool   // Identify without credentials
	context  string // of the enumeration that this message goes on with
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// envelope renders a request. The returned id is that of the message.
func (c *Config) envelope(r *request, timeout time.Duration) (body, id string, err error) {
	var b strings.Builder
	b.Grow(2048 + len(r.body))
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="` + nsSOAP + `"`)
	if r.action == "" { // Identify knows no addressing ([DSP0226] 11)
		b.WriteString(`><s:Header/><s:Body>` + r.body + `</s:Body></s:Envelope>`)
		return b.String(), "", nil
	}
	to, err1 := escape(c.URL)
	uri, err2 := escape(r.resource)
	locale, err3 := escape(c.Locale)
	action, err4 := escape(r.action)
	selectors, err5 := selectorsXML(r.path, 0)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return "", "", err
	}
	id = "uuid:" + newUUID()
	b.WriteString(` xmlns:a="` + nsAddress + `" xmlns:n="` + nsEnum + `" xmlns:w="` + nsWSMan + `" xmlns:xsi="` + nsXSI + `" xmlns:cim="` + nsCIM + `"><s:Header>`)
	fmt.Fprintf(&b, `<a:To>%s</a:To><w:ResourceURI s:mustUnderstand="true">%s</w:ResourceURI>`, to, uri)
	fmt.Fprintf(&b, `<a:ReplyTo><a:Address s:mustUnderstand="true">%s</a:Address></a:ReplyTo><a:Action s:mustUnderstand="true">%s</a:Action>`, anonymous, action)
	fmt.Fprintf(&b, `<w:MaxEnvelopeSize s:mustUnderstand="true">%d</w:MaxEnvelopeSize><a:MessageID>%s</a:MessageID>`, c.MaxEnvelope, id)
	fmt.Fprintf(&b, `<w:Locale xml:lang="%s" s:mustUnderstand="false"/>`, locale)
	fmt.Fprintf(&b, `<w:OperationTimeout>PT%d.%03dS</w:OperationTimeout>`, timeout/time.Second, timeout/time.Millisecond%1000)
	if selectors != "" {
		b.WriteString(`<w:SelectorSet>` + selectors + `</w:SelectorSet>`)
	}
	b.WriteString(`</s:Header><s:Body>` + r.body + `</s:Body></s:Envelope>`)
	return b.String(), id, nil
}

// Enumeration modes ([DSP0226] 8.7).
const modeBoth = `<w:EnumerationMode>EnumerateObjectAndEPR</w:EnumerationMode>`

func enumerateBody(wql string, elements int, refs bool) (string, error) {
	filter, err := escape(wql)
	if err != nil {
		return "", err
	}
	mode := ""
	if refs {
		mode = modeBoth
	}
	return fmt.Sprintf(`<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>%d</w:MaxElements>%s<w:Filter Dialect="%s">%s</w:Filter></n:Enumerate>`,
		elements, mode, dialectWQL, filter), nil
}

func pullBody(context string, elements int) (string, error) {
	context, err := escape(context)
	return fmt.Sprintf(`<n:Pull><n:EnumerationContext>%s</n:EnumerationContext><n:MaxElements>%d</n:MaxElements></n:Pull>`, context, elements), err
}

func releaseBody(context string) (string, error) {
	context, err := escape(context)
	return `<n:Release><n:EnumerationContext>` + context + `</n:EnumerationContext></n:Release>`, err
}

func invokeBody(uri, method string, in cim.Args, namespace string) (string, error) {
	if !isName(method) {
		return "", fmt.Errorf("%q cannot be a method's name", method)
	}
	uri, err := escape(uri)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<p:%s_INPUT xmlns:p="%s">`, method, uri)
	if err := writeArgs(&b, in, namespace); err != nil {
		return "", err
	}
	fmt.Fprintf(&b, `</p:%s_INPUT>`, method)
	return b.String(), nil
}

// page is one answer of an enumeration.
type page struct {
	context string
	end     bool
	items   []*cim.Instance
}

// parsePage reads the answer to Enumerate or Pull.
func parsePage(body *node, namespace string) (page, error) {
	resp := body.child(nsEnum, "EnumerateResponse")
	if resp == nil {
		resp = body.child(nsEnum, "PullResponse")
	}
	if resp == nil {
		return page{}, errors.New("the answer holds neither EnumerateResponse nor PullResponse")
	}
	var p page
	p.context = resp.child("", "EnumerationContext").trimmed()
	p.end = resp.child("", "EndOfSequence") != nil
	if items := resp.child("", "Items"); items != nil {
		for _, n := range items.kids {
			in, err := parseItem(n, namespace)
			if err != nil {
				return page{}, err
			}
			p.items = append(p.items, in)
		}
	}
	if !p.end && p.context == "" {
		return page{}, errors.New("the enumeration goes on but has no context")
	}
	return p, nil
}

// parseItem reads an instance, or a w:Item of an instance and its reference.
func parseItem(n *node, namespace string) (*cim.Instance, error) {
	if n.name.Local != "Item" || n.name.Space != nsWSMan {
		in := instance(n, namespace)
		in.Path = conventionalPath(in, namespace)
		return in, nil
	}
	var in *cim.Instance
	var ref *node
	for _, k := range n.kids {
		if k.name.Space == nsAddress && k.name.Local == "EndpointReference" {
			ref = k
		} else if in == nil {
			in = instance(k, namespace)
		}
	}
	if in == nil {
		return nil, errors.New("an item of the enumeration holds no instance")
	}
	if ref != nil {
		in.Path, _ = reference(ref, namespace)
	}
	if in.Path.IsZero() {
		in.Path = conventionalPath(in, namespace)
	}
	return in, nil
}

// parseOutput reads the answer to a method.
func parseOutput(body *node, method, namespace string) (cim.Out, error) {
	var n *node
	for _, k := range body.kids {
		if strings.EqualFold(k.name.Local, method+"_OUTPUT") {
			n = k
		}
	}
	if n == nil {
		return cim.Out{}, fmt.Errorf("the answer holds no %s_OUTPUT", method)
	}
	args := properties(n, namespace)
	ret, ok := args.Uint("ReturnValue")
	if !ok || ret > 1<<32-1 {
		return cim.Out{}, fmt.Errorf("the answer has no return value: %q", args.String("ReturnValue"))
	}
	out := cim.Out{Return: uint32(ret)}
	for _, a := range args {
		if !strings.EqualFold(a.Name, "ReturnValue") {
			out.Args = append(out.Args, a)
		}
	}
	return out, nil
}
