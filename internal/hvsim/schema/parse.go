package schema

import (
	_ "embed"
	"fmt"
	"sort"
	"strings"
)

//go:embed hyperv.txt
var hypervTable string

//go:embed builtin.txt
var builtinTable string

// parse reads tables. A table is text of one fact per line, fields separated by
// one space; # begins a comment line:
//
//	N namespace              the classes that follow belong to it
//	C name [super]           a class
//	P type name [k]          a property of it; k = key
//	M name                   a method of it
//	A in|out|io type name    a parameter of the method
//
// A type is a name of CIM, ref:Class, obj:Class or string:Class (text that
// holds an instance), and [] behind it for an array.
func parse(tables ...string) (*Schema, error) {
	s := &Schema{spaces: map[string]map[string]*Class{}, names: map[string]string{}}
	for n, table := range tables {
		if err := s.read(table); err != nil {
			return nil, fmt.Errorf("table %d, %w", n, err)
		}
	}
	for ns, classes := range s.spaces {
		for _, c := range classes {
			if c.Super == "" {
				continue
			}
			if c.super = classes[strings.ToLower(c.Super)]; c.super == nil {
				return nil, fmt.Errorf("%s: superclass %s of %s is missing", s.names[ns], c.Super, c.Name)
			}
			c.super.derived = append(c.super.derived, c)
		}
		for _, c := range classes {
			sort.Slice(c.derived, func(i, j int) bool { return c.derived[i].Name < c.derived[j].Name })
			if err := c.resolve(0); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// read adds one table.
func (s *Schema) read(table string) error {
	var space string
	var class *Class
	for i, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		var err error
		switch {
		case f[0] == "N" && len(f) == 2:
			space = f[1]
			class = nil
			if s.spaces[normal(space)] == nil {
				s.spaces[normal(space)], s.names[normal(space)] = map[string]*Class{}, space
			}
		case f[0] == "C" && (len(f) == 2 || len(f) == 3) && space != "":
			class = &Class{Namespace: space, Name: f[1]}
			if len(f) == 3 {
				class.Super = f[2]
			}
			key := strings.ToLower(class.Name)
			if s.spaces[normal(space)][key] != nil {
				err = fmt.Errorf("class %s stands there twice", class.Name)
			}
			s.spaces[normal(space)][key] = class
		case f[0] == "P" && (len(f) == 3 || len(f) == 4 && f[3] == "k") && class != nil:
			p := Property{Name: f[2], Key: len(f) == 4}
			p.Type, err = parseType(f[1])
			class.Properties = append(class.Properties, p)
		case f[0] == "M" && len(f) == 2 && class != nil:
			class.Methods = append(class.Methods, Method{Name: f[1]})
		case f[0] == "A" && len(f) == 4 && class != nil && len(class.Methods) > 0:
			p := Parameter{Name: f[3], In: f[1] == "in" || f[1] == "io", Out: f[1] == "out" || f[1] == "io"}
			if !p.In && !p.Out {
				err = fmt.Errorf("parameter %s has no direction", p.Name)
			} else {
				p.Type, err = parseType(f[2])
			}
			m := &class.Methods[len(class.Methods)-1]
			m.Parameters = append(m.Parameters, p)
		default:
			err = fmt.Errorf("%q cannot stand here", line)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return nil
}

// parseType reads the type of a property or parameter.
func parseType(s string) (Type, error) {
	var t Type
	s, t.Array = strings.CutSuffix(s, "[]")
	name, class, has := strings.Cut(s, ":")
	t.Name, t.Class = name, class
	switch name {
	case "ref":
		t.Name = Reference
	case "obj":
		t.Name = Object
	case String:
		if has == (class == "") {
			return t, fmt.Errorf("type %q has an empty class", s)
		}
		return t, nil
	case Boolean, DateTime, "uint8", "uint16", "uint32", "uint64", "sint8", "sint16", "sint32", "sint64", "real32", "real64":
		if has {
			return t, fmt.Errorf("type %q has a class", s)
		}
		return t, nil
	default:
		return t, fmt.Errorf("type %q is unknown", s)
	}
	if class == "" {
		return t, fmt.Errorf("type %q needs a class", s)
	}
	return t, nil
}

// resolve fills what a class inherits.
func (c *Class) resolve(depth int) error {
	if c.index != nil {
		return nil
	}
	if depth > 32 {
		return fmt.Errorf("class %s is its own superclass", c.Name)
	}
	index := map[string]int{}
	if c.super != nil {
		if err := c.super.resolve(depth + 1); err != nil {
			return err
		}
		c.all = append(c.all, c.super.all...)
		for name, i := range c.super.index {
			index[name] = i
		}
	}
	for _, p := range c.Properties {
		key := strings.ToLower(p.Name)
		if i, ok := index[key]; ok {
			p.Key = p.Key || c.all[i].Key
			c.all[i] = p
			continue
		}
		index[key] = len(c.all)
		c.all = append(c.all, p)
	}
	for _, p := range c.all {
		if p.Key {
			c.keys = append(c.keys, p.Name)
		}
	}
	// WMI's own object paths name the keys in alphabetical order.
	sort.Strings(c.keys)
	c.index = index
	return nil
}
