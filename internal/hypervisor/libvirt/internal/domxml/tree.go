package domxml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Node is an XML element with its prefixes as written, so that what this
// package does not know about a domain is carried over unchanged.
type Node struct {
	Name  string // with prefix
	Attrs []Attr
	Kids  []*Node
	Text  string // character data, joined
}

// Attr is an attribute, its name with prefix.
type Attr struct{ Name, Value string }

const maxDepth = 64

// Parse reads one XML document.
func Parse(doc []byte) (*Node, error) {
	dec := xml.NewDecoder(bytes.NewReader(doc))
	var root *Node
	var stack []*Node
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
			n := &Node{Name: rawName(t.Name)}
			for _, a := range t.Attr {
				n.Attrs = append(n.Attrs, Attr{rawName(a.Name), a.Value})
			}
			switch {
			case len(stack) >= maxDepth:
				return nil, errors.New("parse XML: nested too deeply")
			case len(stack) > 0:
				top := stack[len(stack)-1]
				top.Kids = append(top.Kids, n)
			case root != nil:
				return nil, errors.New("parse XML: more than one root element")
			default:
				root = n
			}
			stack = append(stack, n)
		case xml.EndElement:
			if len(stack) == 0 || stack[len(stack)-1].Name != rawName(t.Name) {
				return nil, fmt.Errorf("parse XML: unexpected </%s>", rawName(t.Name))
			}
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if len(stack) > 0 {
				stack[len(stack)-1].Text += string(t)
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
func (n *Node) String() string {
	var b strings.Builder
	n.render(&b, "")
	return b.String()
}

func (n *Node) render(b *strings.Builder, indent string) {
	b.WriteString(indent + "<" + n.Name)
	for _, a := range n.Attrs {
		b.WriteString(" " + a.Name + "='" + escape(a.Value) + "'")
	}
	text := strings.TrimSpace(n.Text)
	switch {
	case len(n.Kids) == 0 && text == "":
		b.WriteString("/>\n")
	case len(n.Kids) == 0:
		b.WriteString(">" + escape(text) + "</" + n.Name + ">\n")
	default:
		b.WriteString(">" + escape(text) + "\n")
		for _, k := range n.Kids {
			k.render(b, indent+"  ")
		}
		b.WriteString(indent + "</" + n.Name + ">\n")
	}
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

// El makes an element; kv are attribute names and values in turn.
func El(name string, kv ...string) *Node {
	n := &Node{Name: name}
	for i := 0; i+1 < len(kv); i += 2 {
		n.Attrs = append(n.Attrs, Attr{kv[i], kv[i+1]})
	}
	return n
}

// With adds children.
func (n *Node) With(kids ...*Node) *Node {
	n.Kids = append(n.Kids, kids...)
	return n
}

// WithText sets the character data.
func (n *Node) WithText(s string) *Node {
	n.Text = s
	return n
}

// At follows the path of first children; nil if it ends. A nil node has nothing.
func (n *Node) At(path ...string) *Node {
	for _, p := range path {
		if n == nil {
			return nil
		}
		var next *Node
		for _, k := range n.Kids {
			if k.Name == p {
				next = k
				break
			}
		}
		n = next
	}
	return n
}

// All returns the children of a name.
func (n *Node) All(name string) []*Node {
	if n == nil {
		return nil
	}
	var list []*Node
	for _, k := range n.Kids {
		if k.Name == name {
			list = append(list, k)
		}
	}
	return list
}

// Get returns an attribute's value, "" if it is not there.
func (n *Node) Get(name string) string {
	if n != nil {
		for _, a := range n.Attrs {
			if a.Name == name {
				return a.Value
			}
		}
	}
	return ""
}

// Trimmed returns the character data without white space around it.
func (n *Node) Trimmed() string {
	if n == nil {
		return ""
	}
	return strings.TrimSpace(n.Text)
}

// Set sets an attribute.
func (n *Node) Set(name, value string) {
	for i, a := range n.Attrs {
		if a.Name == name {
			n.Attrs[i].Value = value
			return
		}
	}
	n.Attrs = append(n.Attrs, Attr{name, value})
}

// Unset removes attributes.
func (n *Node) Unset(names ...string) {
	keep := n.Attrs[:0]
	for _, a := range n.Attrs {
		if !slices.Contains(names, a.Name) {
			keep = append(keep, a)
		}
	}
	n.Attrs = keep
}

// Drop removes the children of the given names.
func (n *Node) Drop(names ...string) {
	if n != nil {
		n.DropIf(func(k *Node) bool { return slices.Contains(names, k.Name) })
	}
}

// DropIf removes the children for which f is true.
func (n *Node) DropIf(f func(*Node) bool) {
	if n == nil {
		return
	}
	var keep []*Node
	for _, k := range n.Kids {
		if !f(k) {
			keep = append(keep, k)
		}
	}
	n.Kids = keep
}

// Replace puts kids where the first child of the name was, or at the end.
func (n *Node) Replace(name string, kids ...*Node) {
	var out []*Node
	placed := false
	for _, k := range n.Kids {
		if k.Name != name {
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
	n.Kids = out
}
