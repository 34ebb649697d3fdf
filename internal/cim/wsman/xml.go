package wsman

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Namespaces of the protocol ([DSP0226] annex, [MS-WSMV] 2.2.1).
const (
	nsSOAP     = "http://www.w3.org/2003/05/soap-envelope"
	nsAddress  = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
	nsEnum     = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
	nsTransfer = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
	nsWSMan    = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
	nsIdentity = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"
	nsCIM      = "http://schemas.dmtf.org/wbem/wscim/1/common"
	nsXSI      = "http://www.w3.org/2001/XMLSchema-instance"

	anonymous  = nsAddress + "/role/anonymous"
	wmiPrefix  = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"
	dialectWQL = "http://schemas.microsoft.com/wbem/wsman/1/WQL"
)

// maxDepth bounds the nesting of elements; real envelopes stay below 20.
const maxDepth = 64

// node is an element of an answer.
type node struct {
	name xml.Name
	attr []xml.Attr
	text string // character data right below the element
	kids []*node
}

// parseXML reads one document. A document type declaration is refused, so there are no entities to expand.
func parseXML(b []byte) (*node, error) {
	b, err := toUTF8(b)
	if err != nil {
		return nil, err
	}
	dec := xml.NewDecoder(bytes.NewReader(b))
	// The text is UTF-8 by now, whatever its declaration says.
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	var root *node
	var stack []*node
	var texts []*strings.Builder
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch t := tok.(type) {
		case xml.Directive:
			return nil, errors.New("a document type declaration is not allowed")
		case xml.StartElement:
			if len(stack) == maxDepth {
				return nil, fmt.Errorf("elements nest deeper than %d", maxDepth)
			}
			n := &node{name: t.Name, attr: t.Attr}
			if len(stack) == 0 {
				if root != nil {
					return nil, errors.New("a second root element")
				}
				root = n
			} else {
				top := stack[len(stack)-1]
				top.kids = append(top.kids, n)
			}
			stack, texts = append(stack, n), append(texts, &strings.Builder{})
		case xml.EndElement:
			last := len(stack) - 1
			stack[last].text = texts[last].String()
			stack, texts = stack[:last], texts[:last]
		case xml.CharData:
			if len(stack) > 0 {
				texts[len(texts)-1].Write(t)
			}
		}
	}
	if root == nil {
		return nil, errors.New("no root element")
	}
	return root, nil
}

// toUTF8 converts UTF-16 with a byte order mark, which servers may answer with.
func toUTF8(b []byte) ([]byte, error) {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(b, []byte{0xff, 0xfe}):
		order = binary.LittleEndian
	case bytes.HasPrefix(b, []byte{0xfe, 0xff}):
		order = binary.BigEndian
	default:
		return bytes.TrimPrefix(b, []byte{0xef, 0xbb, 0xbf}), nil
	}
	b = b[2:]
	if len(b)%2 != 0 {
		return nil, errors.New("UTF-16 text of odd length")
	}
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = order.Uint16(b[2*i:])
	}
	return []byte(string(utf16.Decode(u))), nil
}

// child returns the first child of a namespace and name; space "" takes any.
func (n *node) child(space, local string) *node {
	if n == nil {
		return nil
	}
	for _, k := range n.kids {
		if k.name.Local == local && (space == "" || k.name.Space == space) {
			return k
		}
	}
	return nil
}

// find returns the first descendant of that local name, in document order.
func (n *node) find(local string) *node {
	if n == nil {
		return nil
	}
	for _, k := range n.kids {
		if k.name.Local == local {
			return k
		}
		if d := k.find(local); d != nil {
			return d
		}
	}
	return nil
}

func (n *node) trimmed() string {
	if n == nil {
		return ""
	}
	return strings.TrimSpace(n.text)
}

func (n *node) attribute(space, local string) (string, bool) {
	if n == nil {
		return "", false
	}
	for _, a := range n.attr {
		if a.Name.Local == local && a.Name.Space == space {
			return a.Value, true
		}
	}
	return "", false
}

func (n *node) isNil() bool {
	v, _ := n.attribute(nsXSI, "nil")
	return v == "true" || v == "1"
}

// escape renders character data. It fails on characters that XML cannot carry, where a
// replacement would silently name something else.
func escape(s string) (string, error) {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return "", fmt.Errorf("text %.40q is not UTF-8", s)
			}
		}
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return "", fmt.Errorf("text %.40q holds character %U, which XML cannot carry", s, r)
		}
	}
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return "", err
	}
	return b.String(), nil
}
