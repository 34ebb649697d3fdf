package cim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Value is what a property or parameter holds:
//
//	nil                              null
//	bool, string, float32, float64
//	int8 … int64, uint8 … uint64
//	DateTime                         a CIM datetime or interval, as its 25 characters
//	Path                             a reference
//	*Instance                        an embedded object
//	a slice of one of these          an array
//
// WS-Man carries no types: what its driver reads is nil, string, Path,
// *Instance, []string or []Path. Read values with the methods of Instance and Args, which convert.
type Value any

// DateTime is yyyymmddHHMMSS.mmmmmmsUUU, or an interval ddddddddHHMMSS.mmmmmm:000 ([DSP0004] 5.2.4).
type DateTime string

// Time converts a point in time. WS-Man's XML form (2026-11-22T10:00:00Z) is accepted too.
func (d DateTime) Time() (time.Time, error) {
	s := string(d)
	if len(s) == 25 && s[14] == '.' && (s[21] == '+' || s[21] == '-') {
		t, err := time.Parse("20060102150405.000000", s[:21])
		if err == nil {
			var min int
			if min, err = strconv.Atoi(s[22:]); err == nil {
				if s[21] == '+' {
					min = -min
				}
				return t.Add(time.Duration(min) * time.Minute), nil
			}
		}
		return time.Time{}, fmt.Errorf("cim: datetime %q: %w", s, err)
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("cim: %q is no datetime", s)
	}
	return t, nil
}

// FormatTime renders a point in time in UTC with microseconds.
func FormatTime(t time.Time) DateTime {
	return DateTime(t.UTC().Format("20060102150405.000000") + "+000")
}

// Property is one property of an instance.
type Property struct {
	Name  string
	Value Value
}

// Args are named values: the properties of an instance, or a method's parameters.
// Order is kept; names are unique without regard to case.
type Args []Property

// Lookup returns a value and whether the name is there at all.
func (a Args) Lookup(name string) (Value, bool) {
	for _, p := range a {
		if strings.EqualFold(p.Name, name) {
			return p.Value, true
		}
	}
	return nil, false
}

// Set adds or replaces a value.
func (a *Args) Set(name string, v Value) {
	for i, p := range *a {
		if strings.EqualFold(p.Name, name) {
			(*a)[i].Value = v
			return
		}
	}
	*a = append(*a, Property{name, v})
}

// Null reports whether a value is null or missing.
func (a Args) Null(name string) bool { v, _ := a.Lookup(name); return v == nil }

// String returns a value as text, "" if it is null or missing. Of an array it is the first element.
func (a Args) String(name string) string {
	v, _ := a.Lookup(name)
	return text(v)
}

// Strings returns an array as text; a scalar is an array of one, null is nil.
func (a Args) Strings(name string) []string {
	v, _ := a.Lookup(name)
	return texts(v)
}

// Uint returns an unsigned number. ok is false if it is null, missing or none.
func (a Args) Uint(name string) (n uint64, ok bool) {
	v, _ := a.Lookup(name)
	if v == nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text(v)), 10, 64)
	return n, err == nil
}

// Uints returns an array of unsigned numbers; elements that are none make it fail.
func (a Args) Uints(name string) ([]uint64, error) {
	v, _ := a.Lookup(name)
	var list []uint64
	for _, s := range texts(v) {
		n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("cim: %s has element %q, which is no unsigned number", name, s)
		}
		list = append(list, n)
	}
	return list, nil
}

// Bool returns a boolean; ok is false if it is null, missing or none.
func (a Args) Bool(name string) (b, ok bool) {
	switch strings.ToLower(a.String(name)) {
	case "true", "1":
		return true, true
	case "false", "0":
		return false, true
	}
	return false, false
}

// Time returns a point in time; ok is false if it is null, missing or none.
func (a Args) Time(name string) (t time.Time, ok bool) {
	t, err := DateTime(a.String(name)).Time()
	return t, err == nil
}

// Ref returns a reference: a Path, or text that is one. ok is false if it is null, missing or none.
func (a Args) Ref(name string) (Path, bool) {
	v, _ := a.Lookup(name)
	switch v := v.(type) {
	case Path:
		return v, !v.IsZero()
	case []Path:
		if len(v) > 0 {
			return v[0], true
		}
	case string:
		if p, err := ParsePath(v); err == nil {
			return p, true
		}
	}
	return Path{}, false
}

// Refs returns an array of references; text elements must be paths.
func (a Args) Refs(name string) ([]Path, error) {
	v, _ := a.Lookup(name)
	switch v := v.(type) {
	case Path:
		return []Path{v}, nil
	case []Path:
		return slices.Clone(v), nil
	}
	var list []Path
	for _, s := range texts(v) {
		p, err := ParsePath(s)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// Instance is an object, or an embedded one (which has no path).
type Instance struct {
	Class string // its own class, which may be derived from the one asked for
	Path  Path   // zero if the server did not say
	Args         // properties
}

// NewInstance returns an instance with properties given as name, value, name, value …
func NewInstance(class string, pairs ...any) *Instance {
	return &Instance{Class: class, Args: Pairs(pairs...)}
}

// Pairs builds Args from name, value, name, value …; it panics on a programming error.
func Pairs(pairs ...any) Args {
	if len(pairs)%2 != 0 {
		panic("cim.Pairs: a name without value")
	}
	a := make(Args, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		a.Set(pairs[i].(string), pairs[i+1])
	}
	return a
}

func text(v Value) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case DateTime:
		return string(v)
	case Path:
		return v.String()
	case *Instance:
		s, _ := EncodeEmbedded(v)
		return s
	case float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64, int, uint:
		return fmt.Sprint(v)
	}
	if l := texts(v); len(l) > 0 {
		return l[0]
	}
	return ""
}

// Elements returns the elements of an array value, or the value itself as the
// only one; null has none. ok tells whether it is an array.
func Elements(v Value) (list []Value, ok bool) {
	switch v := v.(type) {
	case nil:
		return nil, false
	case []string:
		return boxed(v), true
	case []bool:
		return boxed(v), true
	case []int8:
		return boxed(v), true
	case []int16:
		return boxed(v), true
	case []int32:
		return boxed(v), true
	case []int64:
		return boxed(v), true
	case []uint8:
		return boxed(v), true
	case []uint16:
		return boxed(v), true
	case []uint32:
		return boxed(v), true
	case []uint64:
		return boxed(v), true
	case []float32:
		return boxed(v), true
	case []float64:
		return boxed(v), true
	case []DateTime:
		return boxed(v), true
	case []Path:
		return boxed(v), true
	case []*Instance:
		return boxed(v), true
	case []Value:
		return v, true
	}
	return []Value{v}, false
}

func boxed[T any](list []T) []Value {
	out := make([]Value, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

func texts(v Value) []string {
	if l, ok := v.([]string); ok {
		return slices.Clone(l)
	}
	list, _ := Elements(v)
	var out []string
	for _, e := range list {
		out = append(out, text(e))
	}
	return out
}
