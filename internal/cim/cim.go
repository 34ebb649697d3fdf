// Package cim is what Holdfast knows of CIM, the object model that Windows
// management (WMI) speaks: object paths, instances with typed or untyped
// properties, embedded instances as text, return codes, jobs, and the one
// Session interface that all logic above is written against.
//
// Drivers are subpackages: wsman (HTTP, the path that is also tested against
// the simulator), com (on a Windows host itself). A simulator's object
// repository implements Session directly.
//
// It promises: a property that the server left out, one that is null and one
// that could not be converted are three different answers; an unknown property
// or class member is ignored; names are compared without case, as [DSP0004] demands.
package cim

import (
	"context"
	"fmt"
	"strings"
)

// Session talks to one CIM server. Methods are safe for concurrent use, return
// by the context's deadline even when the server hangs, and fail with *Error.
type Session interface {
	// Query runs a WQL query in a namespace such as root/virtualization/v2:
	// SELECT * FROM class [WHERE …], ASSOCIATORS OF {path} [WHERE …] or
	// REFERENCES OF {path} [WHERE …]. The answer is complete; its order is the
	// server's. No match is an empty result, an unknown class is CodeInvalidClass.
	Query(ctx context.Context, namespace, wql string) ([]*Instance, error)
	// Get reads one instance by its path. CodeNotFound if there is none.
	Get(ctx context.Context, path Path) (*Instance, error)
	// Invoke calls a method of an instance. A return value that tells of a
	// failure is not an error of Invoke: see Out.Check and Call.
	Invoke(ctx context.Context, path Path, method string, in Args) (Out, error)
	// Close releases the session. Idempotent.
	Close() error
}

// Path is an object path: \\HOST\root\virtualization\v2:Class.Key="value",…
type Path struct {
	Host      string // empty or "." = the server itself
	Namespace string // with slashes: root/virtualization/v2
	Class     string
	Keys      []Key // empty = the class, or its only instance when Singleton
	Singleton bool  // Class=@
}

// Key is one key property of a path.
type Key struct{ Name, Value string }

// Key returns the value of a key property, compared without case.
func (p Path) Key(name string) string {
	for _, k := range p.Keys {
		if strings.EqualFold(k.Name, name) {
			return k.Value
		}
	}
	return ""
}

// IsZero reports whether the path names nothing.
func (p Path) IsZero() bool { return p.Class == "" }

// Same reports whether two paths name the same object of one server: class and
// keys are compared without case, hosts are not compared.
func (p Path) Same(q Path) bool {
	if !strings.EqualFold(p.Class, q.Class) || len(p.Keys) != len(q.Keys) {
		return false
	}
	for _, k := range p.Keys {
		if !strings.EqualFold(q.Key(k.Name), k.Value) {
			return false
		}
	}
	return true
}

// String renders the path as WMI does, with backslashes and quotes of values doubled by a backslash.
func (p Path) String() string {
	var b strings.Builder
	if p.Namespace != "" {
		host := p.Host
		if host == "" {
			host = "."
		}
		fmt.Fprintf(&b, `\\%s\%s:`, host, strings.ReplaceAll(p.Namespace, "/", `\`))
	}
	b.WriteString(p.Relative())
	return b.String()
}

// Relative renders the path without host and namespace, as ASSOCIATORS OF {…} wants it.
func (p Path) Relative() string {
	if p.Singleton {
		return p.Class + "=@"
	}
	var b strings.Builder
	b.WriteString(p.Class)
	for i, k := range p.Keys {
		if i == 0 {
			b.WriteByte('.')
		} else {
			b.WriteByte(',')
		}
		v := strings.ReplaceAll(strings.ReplaceAll(k.Value, `\`, `\\`), `"`, `\"`)
		fmt.Fprintf(&b, `%s="%s"`, k.Name, v)
	}
	return b.String()
}

// ParsePath reads what String or a WMI server renders; forward slashes and
// values without or in single quotes are accepted too.
func ParsePath(s string) (Path, error) {
	var p Path
	rest := s
	if strings.HasPrefix(rest, `\\`) || strings.HasPrefix(rest, `//`) {
		head, tail, ok := strings.Cut(rest[2:], ":")
		if !ok {
			return p, fmt.Errorf("cim: object path %q names no class", s)
		}
		head = strings.ReplaceAll(head, `\`, "/")
		p.Host, p.Namespace, _ = strings.Cut(head, "/")
		rest = tail
	} else if head, tail, ok := strings.Cut(rest, ":"); ok && !strings.ContainsAny(head, `."=`) {
		p.Namespace, rest = strings.ReplaceAll(head, `\`, "/"), tail
	}
	i := strings.IndexAny(rest, ".=")
	if i < 0 {
		i = len(rest)
	}
	p.Class, rest = rest[:i], rest[i:]
	if p.Class == "" || strings.ContainsAny(p.Class, " \"'{}:,") {
		return Path{}, fmt.Errorf("cim: object path %q names no class", s)
	}
	if rest == "" {
		return p, nil
	}
	if rest == "=@" {
		p.Singleton = true
		return p, nil
	}
	rest = rest[1:]
	for {
		name, tail, ok := strings.Cut(rest, "=")
		if !ok || name == "" {
			return Path{}, fmt.Errorf("cim: object path %q has a key without value", s)
		}
		value, after, err := pathValue(tail)
		if err != nil {
			return Path{}, fmt.Errorf("cim: object path %q: %w", s, err)
		}
		p.Keys = append(p.Keys, Key{Name: strings.TrimSpace(name), Value: value})
		if after == "" {
			return p, nil
		}
		if after[0] != ',' {
			return Path{}, fmt.Errorf("cim: object path %q goes on after a key with %q", s, after)
		}
		rest = after[1:]
	}
}

// pathValue reads one key value and returns what follows it.
func pathValue(s string) (value, rest string, err error) {
	if s == "" {
		return "", "", fmt.Errorf("a key has no value")
	}
	q := s[0]
	if q != '"' && q != '\'' {
		if i := strings.IndexByte(s, ','); i >= 0 {
			return s[:i], s[i:], nil
		}
		return s, "", nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == q:
			return b.String(), s[i+1:], nil
		default:
			b.WriteByte(c)
		}
	}
	return "", "", fmt.Errorf("a key's value has no closing quote")
}

// Associators builds ASSOCIATORS OF {of} WHERE AssocClass=… ResultClass=…; empty classes are left out.
func Associators(of Path, assocClass, resultClass string) string {
	q := "ASSOCIATORS OF {" + of.Relative() + "}"
	if assocClass != "" || resultClass != "" {
		q += " WHERE"
	}
	if assocClass != "" {
		q += " AssocClass=" + assocClass
	}
	if resultClass != "" {
		q += " ResultClass=" + resultClass
	}
	return q
}

// Quote renders a WQL string literal.
func Quote(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", `\'`) + "'"
}
