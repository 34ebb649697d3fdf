package libvirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// node is an XML element with its prefixes as written, so that what this
// package does not know about a domain is carried over unchanged.
type node struct {
	name  string // with prefix
	attrs []attr
	kids  []*node
	text  string // character data, joined
}

type attr struct{ name, value string }

const maxDepth = 64

// parseTree reads one XML document.
func parseTree(doc []byte) (*node, error) {
	dec := xml.NewDecoder(bytes.NewReader(doc))
	var root *node
	var stack []*node
	for {
		tok, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("parse XML: %w", err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			n := &node{name: rawName(t.Name)}
			for _, a := range t.Attr {
				n.attrs = append(n.attrs, attr{rawName(a.Name), a.Value})
			}
			switch {
			case len(stack) >= maxDepth:
				return nil, errors.New("parse XML: nested too deeply")
			case len(stack) > 0:
				top := stack[len(stack)-1]
				top.kids = append(top.kids, n)
			case root != nil:
				return nil, errors.New("parse XML: more than one root element")
			default:
				root = n
			}
			stack = append(stack, n)
		case xml.EndElement:
			if len(stack) == 0 || stack[len(stack)-1].name != rawName(t.Name) {
				return nil, fmt.Errorf("parse XML: unexpected </%s>", rawName(t.Name))
			}
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if len(stack) > 0 {
				stack[len(stack)-1].text += string(t)
			}
		}
	}
	if root == nil || len(stack) > 0 {
		return nil, fmt.Errorf("parse XML: %w", io.ErrUnexpectedEOF)
	}
	return root, nil
}

func rawName(n xml.Name) string {
	if n.Space != "" {
		return n.Space + ":" + n.Local
	}
	return n.Local
}

// String renders the element. White space between elements is dropped.
func (n *node) String() string {
	var b strings.Builder
	n.render(&b, "")
	return b.String()
}

func (n *node) render(b *strings.Builder, indent string) {
	b.WriteString(indent + "<" + n.name)
	for _, a := range n.attrs {
		b.WriteString(" " + a.name + "='" + escape(a.value) + "'")
	}
	text := strings.TrimSpace(n.text)
	switch {
	case len(n.kids) == 0 && text == "":
		b.WriteString("/>\n")
	case len(n.kids) == 0:
		b.WriteString(">" + escape(text) + "</" + n.name + ">\n")
	default:
		b.WriteString(">" + escape(text) + "\n")
		for _, k := range n.kids {
			k.render(b, indent+"  ")
		}
		b.WriteString(indent + "</" + n.name + ">\n")
	}
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

// el makes an element; kv are attribute names and values in turn.
func el(name string, kv ...string) *node {
	n := &node{name: name}
	for i := 0; i+1 < len(kv); i += 2 {
		n.attrs = append(n.attrs, attr{kv[i], kv[i+1]})
	}
	return n
}

// with adds children.
func (n *node) with(kids ...*node) *node {
	n.kids = append(n.kids, kids...)
	return n
}

// withText sets the character data.
func (n *node) withText(s string) *node {
	n.text = s
	return n
}

// at follows the path of first children; nil if it ends. A nil node has nothing.
func (n *node) at(path ...string) *node {
	for _, p := range path {
		if n == nil {
			return nil
		}
		var next *node
		for _, k := range n.kids {
			if k.name == p {
				next = k
				break
			}
		}
		n = next
	}
	return n
}

// all returns the children of a name.
func (n *node) all(name string) []*node {
	if n == nil {
		return nil
	}
	var list []*node
	for _, k := range n.kids {
		if k.name == name {
			list = append(list, k)
		}
	}
	return list
}

// attr returns an attribute's value, "" if it is not there.
func (n *node) attr(name string) string {
	if n != nil {
		for _, a := range n.attrs {
			if a.name == name {
				return a.value
			}
		}
	}
	return ""
}

// trimmed returns the character data without white space around it.
func (n *node) trimmed() string {
	if n == nil {
		return ""
	}
	return strings.TrimSpace(n.text)
}

// set sets an attribute.
func (n *node) set(name, value string) {
	for i, a := range n.attrs {
		if a.name == name {
			n.attrs[i].value = value
			return
		}
	}
	n.attrs = append(n.attrs, attr{name, value})
}

// unset removes attributes.
func (n *node) unset(names ...string) {
	keep := n.attrs[:0]
	for _, a := range n.attrs {
		if !slices.Contains(names, a.name) {
			keep = append(keep, a)
		}
	}
	n.attrs = keep
}

// drop removes the children of the given names.
func (n *node) drop(names ...string) {
	if n != nil {
		n.dropIf(func(k *node) bool { return slices.Contains(names, k.name) })
	}
}

func (n *node) dropIf(f func(*node) bool) {
	if n == nil {
		return
	}
	var keep []*node
	for _, k := range n.kids {
		if !f(k) {
			keep = append(keep, k)
		}
	}
	n.kids = keep
}

// replace puts kids where the first child of the name was, or at the end.
func (n *node) replace(name string, kids ...*node) {
	var out []*node
	placed := false
	for _, k := range n.kids {
		if k.name != name {
			out = append(out, k)
			continue
		}
		if !placed {
			out, placed = append(out, kids...), true
		}
	}
	if !placed {
		out = append(out, kids...)
	}
	n.kids = out
}
