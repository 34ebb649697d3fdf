// Package soap owns the messages of WS-Management as a server sees them: it reads
// envelopes of clients into a Request, and renders instances, endpoint
// references and faults in the shapes of Windows ([DSP0226], [MS-WSMV]).
//
// It promises: what is read is bounded in depth and number of elements and holds
// no entities; what is rendered is well-formed XML whatever the values hold; a
// fault carries the code, subcode and detail of the published tables.
package soap

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"holdfast/internal/cim"
)

// Namespaces of the protocol ([MS-WSMV] 2.2.1).
const (
	nsSOAP     = "http://www.w3.org/2003/05/soap-envelope"
	NSXSI      = "http://www.w3.org/2001/XMLSchema-instance"
	NSWSA      = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
	NSTransfer = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
	NSEnum     = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
	NSWSMan    = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
	nsMSWSMan  = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd"
	nsMSRoot   = "http://schemas.microsoft.com/wbem/wsman/1/"
	NSBinding  = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd"
	NSIdentity = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"
	nsFault    = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault"
	NSCommon   = "http://schemas.dmtf.org/wbem/wscim/1/common"

	uriAnonymous = NSWSA + "/role/anonymous"
	URIWMI       = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"
	URICIM       = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
	uriCIMAll    = "http://schemas.dmtf.org/wbem/wscim/1/*"

	selNamespace = "__cimnamespace"
)

// Limits of what one envelope may hold, beside its size.
const (
	maxDepth     = 48
	maxNodes     = 100_000
	maxSelectors = 64
	// MaxNames bounds the parameters of a method and the properties of an instance.
	MaxNames     = 1000
	maxMessageID = 1024
	minEnvelope  = 8192 // the least that a client may ask for ([DSP0226] R13.1-2)
)

// Node is one element.
type Node struct {
	Space, Local string
	attrs        []xml.Attr
	Text         string // all character data directly below it
	raw          []byte // the same while it is being read
	Kids         []*Node
}

// Is compares the name.
func (n *Node) Is(space, local string) bool { return n.Space == space && n.Local == local }

// Child returns the first child of that name, or nil.
func (n *Node) Child(space, local string) *Node {
	if n == nil {
		return nil
	}
	for _, k := range n.Kids {
		if k.Is(space, local) {
			return k
		}
	}
	return nil
}

// Attr returns an attribute, "" if it is not there.
func (n *Node) Attr(space, local string) string {
	for _, a := range n.attrs {
		if a.Name.Space == space && a.Name.Local == local {
			return a.Value
		}
	}
	return ""
}

// Value returns the text without spaces around it, "" of nil.
func (n *Node) Value() string {
	if n == nil {
		return ""
	}
	return strings.TrimSpace(n.Text)
}

func isTrue(s string) bool { return s == "true" || s == "1" }

// Null reports whether the element is xsi:nil.
func (n *Node) Null() bool { return isTrue(n.Attr(NSXSI, "nil")) }

// ParseXML reads one document of UTF-8. Document types, and so entities, are refused.
func ParseXML(data []byte) (*Node, error) {
	dec := xml.NewDecoder(bytes.NewReader(data))
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // it is UTF-8 by now
	var root *Node
	var stack []*Node
	count := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if count++; count > maxNodes || len(stack) >= maxDepth {
				return nil, fmt.Errorf("more than %d elements or %d levels", maxNodes, maxDepth)
			}
			n := &Node{Space: t.Name.Space, Local: t.Name.Local, attrs: t.Attr}
			if len(stack) > 0 {
				top := stack[len(stack)-1]
				top.Kids = append(top.Kids, n)
			} else if root != nil {
				return nil, errors.New("two root elements")
			} else {
				root = n
			}
			stack = append(stack, n)
		case xml.EndElement:
			top := stack[len(stack)-1]
			top.Text, top.raw = string(top.raw), nil
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if len(stack) > 0 {
				top := stack[len(stack)-1]
				top.raw = append(top.raw, t...)
			}
		case xml.Directive:
			return nil, errors.New("a document type is not allowed in SOAP")
		case xml.ProcInst:
			if t.Target != "xml" {
				return nil, errors.New("a processing instruction is not allowed in SOAP")
			}
		}
	}
	if root == nil {
		return nil, errors.New("no element")
	}
	return root, nil
}

// DecodeText turns the bytes of a message into UTF-8; charset is that of the
// content type, a byte order mark wins.
func DecodeText(data []byte, charset string) ([]byte, error) {
	wide := strings.HasPrefix(strings.ToLower(charset), "utf-16")
	var order binary.ByteOrder = binary.LittleEndian
	switch {
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		wide, data = true, data[2:]
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		wide, order, data = true, binary.BigEndian, data[2:]
	case bytes.HasPrefix(data, []byte{0xef, 0xbb, 0xbf}):
		wide, data = false, data[3:]
	case strings.EqualFold(charset, "utf-16be"):
		order = binary.BigEndian
	}
	if !wide {
		if !utf8.Valid(data) {
			return nil, errors.New("the text is not UTF-8")
		}
		return data, nil
	}
	if len(data)%2 != 0 {
		return nil, errors.New("UTF-16 of an odd number of bytes")
	}
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = order.Uint16(data[2*i:])
	}
	return []byte(string(utf16.Decode(units))), nil
}

// EncodeUTF16 renders UTF-8 as UTF-16, little endian with a byte order mark.
func EncodeUTF16(data []byte) []byte {
	out := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(string(data))) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// Request is an envelope of a client.
type Request struct {
	Action      string
	Resource    string
	MessageID   string
	Selectors   []cim.Key // without __cimnamespace; values of references are object paths
	Namespace   string    // of __cimnamespace, or empty
	MaxEnvelope int       // 0 = the client did not say
	Timeout     time.Duration
	Estimate    bool
	Identify    bool
	Body        *Node // first element of the body, or nil
}

// ParseEnvelope reads a request. It is returned with a fault too, as far
// as it was understood: the answer relates to its message ID.
func ParseEnvelope(data []byte) (*Request, *Fault) {
	req := &Request{}
	root, err := ParseXML(data)
	if err != nil {
		return req, NewFault(faultInvalidXML, err.Error())
	}
	if root.Local != "Envelope" {
		return req, NewFault(faultInvalidXML, "the root element is no SOAP envelope")
	}
	if root.Space != nsSOAP {
		return req, NewFault(faultVersion, "the envelope is not one of SOAP 1.2")
	}
	if body := root.Child(nsSOAP, "Body"); body != nil {
		if len(body.Kids) > 0 {
			req.Body = body.Kids[0]
		}
	} else {
		return req, NewFault(faultInvalidXML, "the envelope has no body")
	}
	if req.Body != nil && req.Body.Is(NSIdentity, "Identify") {
		req.Identify = true
		return req, nil // needs no header ([DSP0226] 11)
	}
	header := root.Child(nsSOAP, "Header")
	if header == nil {
		return req, NewFault(faultHeaderRequired, "the envelope has no header")
	}
	if id := header.Child(NSWSA, "MessageID").Value(); len(id) <= maxMessageID {
		req.MessageID = id // first: every fault relates to it
	} else {
		return req, NewFault(faultInvalidHeader, fmt.Sprintf("the message ID has %d bytes", len(id)))
	}
	seen := map[string]bool{}
	for _, h := range header.Kids {
		if h.Space == NSWSA || h.Space == NSWSMan {
			if key := h.Space + h.Local; seen[key] {
				return req, NewFault(faultInvalidHeader, "header "+h.Local+" is there twice")
			} else {
				seen[key] = true
			}
		}
		if f := req.header(h); f != nil {
			return req, f
		}
	}
	for name, v := range map[string]string{"Action": req.Action, "MessageID": req.MessageID, "To": header.Child(NSWSA, "To").Value()} {
		if v == "" {
			return req, NewFault(faultHeaderRequired, "header "+name+" is missing")
		}
	}
	return req, nil
}

// header takes one header into account.
func (req *Request) header(h *Node) *Fault {
	must := isTrue(h.Attr(nsSOAP, "mustUnderstand"))
	switch h.Space + " " + h.Local {
	case NSWSA + " Action":
		req.Action = h.Value()
	case NSWSA + " To", NSWSA + " MessageID", NSWSA + " From", NSWSA + " RelatesTo", NSWSMan + " OptionSet":
	case NSWSA + " ReplyTo", NSWSA + " FaultTo":
		if a := h.Child(NSWSA, "Address").Value(); a != uriAnonymous {
			return NewFault(faultAddressingMode, "answers go back over the same connection only, not to "+a)
		}
	case NSWSMan + " ResourceURI":
		req.Resource = h.Value()
	case NSWSMan + " SelectorSet":
		return req.selectorSet(h)
	case NSWSMan + " MaxEnvelopeSize":
		n, err := strconv.Atoi(h.Value())
		if err != nil || n < minEnvelope {
			return NewFault(faultMinEnvelope, fmt.Sprintf("MaxEnvelopeSize is %q, the least is %d", h.Value(), minEnvelope))
		}
		req.MaxEnvelope = n
	case NSWSMan + " OperationTimeout":
		d, err := ParseDuration(h.Value())
		if err != nil || d <= 0 {
			return NewFault(faultInvalidTimeout, fmt.Sprintf("OperationTimeout is %q", h.Value()))
		}
		req.Timeout = d
	case NSWSMan + " RequestTotalItemsCountEstimate":
		req.Estimate = true
	case NSWSMan + " Locale":
		if lang := h.Attr("http://www.w3.org/XML/1998/namespace", "lang"); must && !strings.HasPrefix(strings.ToLower(lang), "en") {
			return NewFault(faultLocale, "texts are in English, not in "+lang)
		}
	case NSWSMan + " FragmentTransfer":
		return NewFault(faultFragment, "fragments are not supported")
	default:
		if must && !strings.HasPrefix(h.Space, nsMSRoot) {
			return NewFault(faultMustUnderstand, "header "+h.Local+" of "+h.Space+" is not known")
		}
	}
	return nil
}

func (req *Request) selectorSet(set *Node) *Fault {
	keys, namespace, f := Selectors(set, 0)
	req.Selectors, req.Namespace = keys, namespace
	return f
}

// Selectors reads a SelectorSet; __cimnamespace is returned apart. depth is how
// deep in other references the set stands, 0 = in none.
func Selectors(set *Node, depth int) (keys []cim.Key, namespace string, f *Fault) {
	if len(set.Kids) > maxSelectors {
		return nil, "", NewFault(faultSelectorLimit, fmt.Sprintf("there are more than %d selectors", maxSelectors))
	}
	for _, s := range set.Kids {
		if !s.Is(NSWSMan, "Selector") {
			continue
		}
		name := s.Attr("", "Name")
		if !IsName(name) || name == "*" {
			return nil, "", NewFault(faultInvalidSelectors, "a selector has no name, or one that can't be a property's")
		}
		value := s.Text
		if ref := s.Child(NSWSA, "EndpointReference"); ref != nil {
			p, f := ParseEPR(ref, depth+1)
			if f != nil {
				return nil, "", f
			}
			value = p.String()
		} else if len(s.Kids) > 0 {
			return nil, "", NewFault(FaultSelectorType, "selector "+name+" is neither text nor a reference")
		}
		if strings.EqualFold(name, selNamespace) {
			namespace = strings.ReplaceAll(strings.TrimSpace(value), `\`, "/")
			continue
		}
		for _, k := range keys {
			if strings.EqualFold(k.Name, name) {
				return nil, "", NewFault(faultDuplicateSelectors, "selector "+name+" is there twice")
			}
		}
		keys = append(keys, cim.Key{Name: name, Value: value})
	}
	return keys, namespace, nil
}

// maxReference bounds how deep references nest in the keys of references.
const maxReference = 4

// ParseEPR reads an endpoint reference: address and parameters directly below n, or in an
// EndpointReference element below it.
func ParseEPR(n *Node, depth int) (cim.Path, *Fault) {
	if depth > maxReference {
		return cim.Path{}, NewFault(FaultSelectorType, "references nest too deep")
	}
	if inner := n.Child(NSWSA, "EndpointReference"); inner != nil {
		n = inner
	}
	params := n.Child(NSWSA, "ReferenceParameters")
	if params == nil {
		return cim.Path{}, NewFault(FaultTypeMismatch, n.Local+" is no endpoint reference")
	}
	var keys []cim.Key
	namespace := ""
	if set := params.Child(NSWSMan, "SelectorSet"); set != nil {
		var f *Fault
		if keys, namespace, f = Selectors(set, depth); f != nil {
			return cim.Path{}, f
		}
	}
	ns, class, f := SplitResource(params.Child(NSWSMan, "ResourceURI").Value(), namespace)
	if f != nil {
		return cim.Path{}, f
	}
	return cim.Path{Namespace: ns, Class: class, Keys: keys}, nil
}

// AtHost names the host in the keys that are references of this server: WMI spells
// their paths in full, endpoint references name no host.
func AtHost(keys []cim.Key, host string) []cim.Key {
	out := slices.Clone(keys)
	for i, k := range out {
		if ref, ok := referenceKey(k.Value); ok && ref.Host == "." {
			ref.Host, ref.Keys = host, AtHost(ref.Keys, host)
			out[i].Value = ref.String()
		}
	}
	return out
}

// SplitResource takes a resource URI apart; class is * for all classes. A WMI
// resource names its namespace itself, and __cimnamespace may only repeat it.
func SplitResource(uri, selector string) (namespace, class string, f *Fault) {
	if rest, ok := CutPrefixFold(uri, URIWMI); ok {
		i := strings.LastIndexByte(rest, '/')
		if i <= 0 || !IsName(rest[i+1:]) {
			return "", "", NewFault(FaultInvalidResource, fmt.Sprintf("resource %q names no namespace and class", uri))
		}
		namespace, class = rest[:i], rest[i+1:]
		if selector != "" && !strings.EqualFold(selector, namespace) {
			return "", "", NewFault(faultDifferentNamespace, fmt.Sprintf("the resource is in %s, __cimnamespace says %s", namespace, selector))
		}
		return namespace, class, nil
	}
	if selector == "" {
		selector = "root/cimv2"
	}
	if strings.EqualFold(uri, uriCIMAll) {
		return selector, "*", nil
	}
	if rest, ok := CutPrefixFold(uri, URICIM); ok && IsName(rest) {
		return selector, rest, nil
	}
	return "", "", NewFault(FaultInvalidResource, fmt.Sprintf("resource %q is none of this service", uri))
}

// CutPrefixFold is strings.CutPrefix without regard to case.
func CutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// IsName reports whether s can be the name of a class, method or property, or * for all.
func IsName(s string) bool {
	if s == "*" {
		return true
	}
	for i, c := range s {
		if c != '_' && !unicode.IsLetter(c) && (c < '0' || c > '9' || i == 0) {
			return false
		}
	}
	return s != ""
}

// ParseDuration reads an xs:duration of days, hours, minutes and seconds. Years and months have no fixed length and are refused.
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no duration", s)
	rest, ok := strings.CutPrefix(s, "P")
	if !ok || rest == "" || strings.HasSuffix(rest, "T") {
		return 0, bad
	}
	var total float64
	units := map[byte]float64{'D': 86400}
	for rest != "" {
		if rest[0] == 'T' {
			units = map[byte]float64{'H': 3600, 'M': 60, 'S': 1}
			rest = rest[1:]
			continue
		}
		i := strings.IndexFunc(rest, func(c rune) bool { return (c < '0' || c > '9') && c != '.' })
		if i <= 0 {
			return 0, bad
		}
		n, err := strconv.ParseFloat(rest[:i], 64)
		unit, known := units[rest[i]]
		if err != nil || !known {
			return 0, bad
		}
		delete(units, rest[i])
		total += n * unit
		rest = rest[i+1:]
	}
	if total > 1e9 {
		return 0, bad
	}
	return time.Duration(total * float64(time.Second)), nil
}
