package schema

import (
	"errors"
	"fmt"
	"strings"

	"holdfast/internal/cim"
)

// Conform checks an instance against its class: it exists, every property is
// one of it and holds a value of its type (nil always does), and the keys of
// its path, if it has one, are the class's. Embedded objects are checked too.
// All findings are joined in the error.
func (s *Schema) Conform(in *cim.Instance) error {
	if in == nil {
		return errors.New("schema: no instance")
	}
	c, ok := s.Find(in.Path.Namespace, in.Class)
	if !ok {
		return fmt.Errorf("schema: class %s of namespace %q is unknown", in.Class, in.Path.Namespace)
	}
	var errs []error
	seen := map[string]bool{}
	for _, p := range in.Args {
		want, ok := c.Property(p.Name)
		if !ok {
			errs = append(errs, fmt.Errorf("schema: %s has no property %s", c.Name, p.Name))
			continue
		}
		if seen[want.Name] {
			errs = append(errs, fmt.Errorf("schema: %s.%s is set twice", c.Name, want.Name))
		}
		seen[want.Name] = true
		if err := s.check(want.Type, p.Value); err != nil {
			errs = append(errs, fmt.Errorf("schema: %s.%s: %w", c.Name, want.Name, err))
		}
	}
	if !in.Path.IsZero() && !in.Path.Singleton {
		if err := checkPath(c, in.Path); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkPath checks the class and keys of an instance's path.
func checkPath(c *Class, p cim.Path) error {
	var errs []error
	if !c.IsA(p.Class) {
		errs = append(errs, fmt.Errorf("schema: an instance of %s has a path of class %s", c.Name, p.Class))
	}
	if len(p.Keys) != len(c.keys) {
		errs = append(errs, fmt.Errorf("schema: a path of %s has %d keys, not %d (%v)", c.Name, len(p.Keys), len(c.keys), c.keys))
	}
	for _, k := range p.Keys {
		if q, ok := c.Property(k.Name); !ok || !q.Key {
			errs = append(errs, fmt.Errorf("schema: %s is no key of %s", k.Name, c.Name))
		}
	}
	return errors.Join(errs...)
}

// ConformIn checks the parameters that a client sent to a method, and ConformOut what
// the method answers: names, directions and types.
func (s *Schema) ConformIn(m *Method, args cim.Args) error {
	return s.parameters(m, args, "in", func(p Parameter) bool { return p.In })
}

// ConformOut is described at ConformIn.
func (s *Schema) ConformOut(m *Method, args cim.Args) error {
	return s.parameters(m, args, "out", func(p Parameter) bool { return p.Out })
}

func (s *Schema) parameters(m *Method, args cim.Args, dir string, takes func(Parameter) bool) error {
	var errs []error
	for _, a := range args {
		p, ok := m.Parameter(a.Name)
		if !ok || !takes(p) {
			errs = append(errs, fmt.Errorf("schema: method %s has no %s parameter %s", m.Name, dir, a.Name))
			continue
		}
		if err := s.check(p.Type, a.Value); err != nil {
			errs = append(errs, fmt.Errorf("schema: parameter %s of %s: %w", p.Name, m.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Complete adds the properties that an instance lacks as null and brings all
// into the order of its class; properties that the class does not have stay behind them.
// An instance of an unknown class stays as it is.
func (s *Schema) Complete(in *cim.Instance) {
	c, ok := s.Find(in.Path.Namespace, in.Class)
	if !ok {
		return
	}
	out := make(cim.Args, len(c.all), max(len(c.all), len(in.Args)))
	for i, p := range c.all {
		out[i].Name = p.Name
	}
	filled := make([]bool, len(c.all))
	for _, p := range in.Args {
		if i, ok := c.index[strings.ToLower(p.Name)]; ok && !filled[i] {
			out[i].Value, filled[i] = p.Value, true
			continue
		} else if ok {
			continue // set twice: the first counts, as for Args.Lookup
		}
		out = append(out, p)
	}
	in.Args = out
}

// check compares a value's Go type with a CIM type.
func (s *Schema) check(t Type, v cim.Value) error {
	if v == nil {
		return nil
	}
	list, array := cim.Elements(v)
	if _, mixed := v.([]cim.Value); mixed {
		return fmt.Errorf("a %T is no typed array", v)
	}
	if array != t.Array {
		return fmt.Errorf("a %T is no %s", v, t)
	}
	for i, e := range list {
		if err := s.element(t, e); err != nil {
			if array {
				return fmt.Errorf("element %d: %w", i, err)
			}
			return err
		}
	}
	return nil
}

// element checks one value that is no array.
func (s *Schema) element(t Type, v cim.Value) error {
	ok := false
	switch v := v.(type) {
	case bool:
		ok = t.Name == Boolean
	case string:
		ok = t.Name == String
	case cim.DateTime:
		if t.Name == DateTime && !validDateTime(string(v)) {
			return fmt.Errorf("%q is no datetime of 25 characters", v)
		}
		ok = t.Name == DateTime
	case cim.Path:
		if t.Name == Reference && (v.IsZero() || len(v.Keys) == 0 && !v.Singleton) {
			return fmt.Errorf("the reference %q names no instance", v)
		}
		ok = t.Name == Reference
	case *cim.Instance:
		if t.Name == Object {
			return s.Conform(v)
		}
	case uint8:
		ok = t.Name == "uint8"
	case uint16:
		ok = t.Name == "uint16"
	case uint32:
		ok = t.Name == "uint32"
	case uint64:
		ok = t.Name == "uint64"
	case int8:
		ok = t.Name == "sint8"
	case int16:
		ok = t.Name == "sint16"
	case int32:
		ok = t.Name == "sint32"
	case int64:
		ok = t.Name == "sint64"
	case float32:
		ok = t.Name == "real32"
	case float64:
		ok = t.Name == "real64"
	}
	if !ok {
		return fmt.Errorf("a %T is no %s", v, t)
	}
	return nil
}

// validDateTime checks the form of [DSP0004] 5.2.4: a point in time or an interval.
func validDateTime(s string) bool {
	if len(s) != 25 || s[14] != '.' {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case i == 14:
		case i == 21:
			if c != '+' && c != '-' && c != ':' {
				return false
			}
		case c < '0' || c > '9':
			if c != '*' { // a digit that is not known
				return false
			}
		}
	}
	return s[21] != ':' || s[22:] == "000"
}
