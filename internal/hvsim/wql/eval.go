package wql

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/schema"
)

// truth is the answer of a condition: null operands make it unknown.
type truth int8

const (
	no truth = iota
	unknown
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// condition is an expression bound to a class.
type condition func(*cim.Instance) truth

// bind checks an expression against a class and makes it ready to run.
func (r *run) bind(class *schema.Class, e Expr) (condition, error) {
	switch e := e.(type) {
	case nil:
		return func(*cim.Instance) truth { return yes }, nil
	case *And:
		return r.bindBoth(class, e.X, e.Y, func(a, b truth) truth { return min(a, b) }, no)
	case *Or:
		return r.bindBoth(class, e.X, e.Y, func(a, b truth) truth { return max(a, b) }, yes)
	case *Not:
		x, err := r.bind(class, e.X)
		return func(in *cim.Instance) truth { return yes - x(in) }, err
	case *IsNull:
		get, _, err := r.bindOperand(class, e.X, true)
		return func(in *cim.Instance) truth { return truthOf((get(in) == nil) != e.Negate) }, err
	case *Compare:
		if e.Op == "ISA" {
			return r.bindISA(class, e)
		}
		return r.bindCompare(class, e)
	}
	panic("wql: an expression of unknown type")
}

// bindBoth ties two conditions; stop is the answer of the first that settles it.
func (r *run) bindBoth(class *schema.Class, x, y Expr, tie func(a, b truth) truth, stop truth) (condition, error) {
	a, err := r.bind(class, x)
	if err != nil {
		return nil, err
	}
	b, err := r.bind(class, y)
	return func(in *cim.Instance) truth {
		v := a(in)
		if v == stop {
			return v
		}
		return tie(v, b(in))
	}, err
}

// getter reads an operand of an instance; nil = null.
type getter func(*cim.Instance) cim.Value

// noType is the type of literals and of properties of embedded objects, whose class is known only when they are read.
var noType = schema.Type{}

// bindOperand makes an operand readable. whole allows an array without index.
func (r *run) bindOperand(class *schema.Class, o Operand, whole bool) (getter, schema.Type, error) {
	if o.Names == nil {
		return func(*cim.Instance) cim.Value { return o.Literal }, noType, nil
	}
	first := o.Names[0]
	if isSystem(first) {
		if len(o.Names) > 1 || o.Index >= 0 {
			return nil, noType, r.invalid(o.Pos, "%s has no parts", first)
		}
		return func(in *cim.Instance) cim.Value { return r.system(in, first) }, schema.Type{Name: schema.String}, nil
	}
	p, ok := class.Property(first)
	if !ok {
		return nil, noType, r.invalid(o.Pos, "class %s has no property %s", class.Name, first)
	}
	if len(o.Names) > 1 {
		if p.Array || p.Type.Name != schema.Object && (p.Type.Name != schema.String || p.Class == "") {
			return nil, noType, r.invalid(o.Pos, "%s is no embedded object", first)
		}
		return func(in *cim.Instance) cim.Value { return element(dig(in, o.Names), o.Index) }, noType, nil
	}
	if p.Array && o.Index < 0 && !whole {
		return nil, noType, r.invalid(o.Pos, "%s is an array: name one element, as %s[0]", first, first)
	}
	if !p.Array && o.Index >= 0 {
		return nil, noType, r.invalid(o.Pos, "%s is no array", first)
	}
	get := func(in *cim.Instance) cim.Value {
		v, _ := in.Lookup(p.Name)
		return element(v, o.Index)
	}
	t := p.Type
	t.Array = false
	return get, t, nil
}

// element takes one element of an array; one that isn't there is null.
func element(v cim.Value, index int) cim.Value {
	if index < 0 {
		return v
	}
	list, _ := cim.Elements(v)
	if index >= len(list) {
		return nil
	}
	return list[index]
}

// dig reads a property of an embedded object.
func dig(in *cim.Instance, names []string) cim.Value {
	for i, n := range names {
		v, _ := in.Lookup(n)
		if i == len(names)-1 {
			return v
		}
		switch e := v.(type) {
		case *cim.Instance:
			in = e
		case string:
			d, err := cim.DecodeEmbedded(e)
			if err != nil {
				return nil
			}
			in = d
		default:
			return nil
		}
		if in == nil {
			return nil
		}
	}
	return nil
}

// The system properties that every object has.
var systemNames = []string{"__CLASS", "__SERVER", "__PATH", "__RELPATH", "__NAMESPACE", "__SUPERCLASS", "__DYNASTY"}

func isSystem(name string) bool {
	return slices.ContainsFunc(systemNames, func(s string) bool { return strings.EqualFold(s, name) })
}

// system reads a system property.
func (r *run) system(in *cim.Instance, name string) cim.Value {
	path := in.Path
	path.Host, path.Namespace = r.server, r.namespace
	var up []string
	if c, ok := r.schema.Class(r.namespace, in.Class); ok {
		up = c.Superclasses()
	}
	switch strings.ToUpper(name) {
	case "__CLASS":
		return in.Class
	case "__SERVER":
		return r.server
	case "__NAMESPACE":
		return strings.ReplaceAll(r.namespace, "/", `\`)
	case "__PATH":
		return path.String()
	case "__RELPATH":
		return path.Relative()
	case "__SUPERCLASS":
		if len(up) == 0 {
			return nil
		}
		return up[0]
	}
	if len(up) == 0 { // __DYNASTY
		return in.Class
	}
	return up[len(up)-1]
}

// bindISA makes "__THIS ISA 'Class'" or "Embedded ISA 'Class'" ready.
func (r *run) bindISA(class *schema.Class, e *Compare) (condition, error) {
	want, ok := e.Y.Literal.(string)
	if !ok && e.Y.Names != nil && len(e.Y.Names) == 1 && e.Y.Index < 0 {
		want, ok = e.Y.Names[0], true
	}
	if !ok || e.X.Names == nil {
		return nil, r.invalid(e.Pos, "ISA stands between an object and the name of a class")
	}
	if len(e.X.Names) == 1 && (strings.EqualFold(e.X.Names[0], "__THIS") || strings.EqualFold(e.X.Names[0], "__CLASS")) {
		return func(in *cim.Instance) truth { return truthOf(r.isA(in.Class, want)) }, nil
	}
	get, _, err := r.bindOperand(class, e.X, false)
	return func(in *cim.Instance) truth {
		switch v := get(in).(type) {
		case *cim.Instance:
			return truthOf(v != nil && r.isA(v.Class, want))
		case cim.Path:
			return truthOf(r.isA(v.Class, want))
		case string:
			if d, err := cim.DecodeEmbedded(v); err == nil {
				return truthOf(r.isA(d.Class, want))
			}
			return no
		}
		return unknown
	}, err
}

// bindCompare makes a comparison ready; a literal that cannot be of the
// property's type is an error of the query.
func (r *run) bindCompare(class *schema.Class, e *Compare) (condition, error) {
	x, tx, err := r.bindOperand(class, e.X, false)
	if err != nil {
		return nil, err
	}
	y, ty, err := r.bindOperand(class, e.Y, false)
	if err != nil {
		return nil, err
	}
	if e.X.Names == nil && e.Y.Names == nil {
		return nil, r.invalid(e.Pos, "two values are compared: one side must be a property")
	}
	for _, side := range []struct {
		t   schema.Type
		lit Operand
	}{{tx, e.Y}, {ty, e.X}} {
		if side.lit.Names == nil && side.t != noType && !fits(side.t, side.lit.Literal, e.Op) {
			return nil, r.invalid(side.lit.Pos, "the value is no %s", side.t.Name)
		}
	}
	t := tx
	if t == noType {
		t = ty
	}
	if e.Op == "LIKE" {
		lit, ok := e.Y.Literal.(string)
		if !ok || t.Name != schema.String && t.Name != schema.DateTime && t.Name != schema.Reference && t != noType {
			return nil, r.invalid(e.Pos, "LIKE stands between a property that is text and a pattern")
		}
		pattern := compileLike(lit)
		return func(in *cim.Instance) truth {
			v := x(in)
			if v == nil {
				return unknown
			}
			return truthOf(pattern.match(plain(v)))
		}, nil
	}
	test := tests[e.Op]
	if t.Name == schema.Reference && test.ordered || t.Name == schema.Object {
		return nil, r.invalid(e.Pos, "a %s cannot be compared by %s", t.Name, e.Op)
	}
	return func(in *cim.Instance) truth {
		a, b := x(in), y(in)
		if a == nil || b == nil {
			return unknown
		}
		c, ok := compare(t, a, b)
		if !ok {
			return unknown
		}
		return truthOf(test.holds(c))
	}, nil
}

var tests = map[string]struct {
	ordered bool
	holds   func(int) bool
}{
	"=":  {false, func(c int) bool { return c == 0 }},
	"<>": {false, func(c int) bool { return c != 0 }},
	"<":  {true, func(c int) bool { return c < 0 }},
	">":  {true, func(c int) bool { return c > 0 }},
	"<=": {true, func(c int) bool { return c <= 0 }},
	">=": {true, func(c int) bool { return c >= 0 }},
}

// fits reports whether a literal can stand beside a property of a type. WMI
// takes numbers in quotes, and 0 and 1 for booleans.
func fits(t schema.Type, lit any, op string) bool {
	if op == "LIKE" {
		_, ok := lit.(string)
		return ok
	}
	switch {
	case t.Name == schema.Boolean:
		_, ok := truthValue(lit)
		return ok
	case isNumeric(t.Name):
		_, ok := numberOf(lit)
		return ok
	}
	_, isText := lit.(string)
	if t.Name == schema.String {
		_, isBool := lit.(bool)
		return !isBool
	}
	return isText
}

func isNumeric(name string) bool {
	return strings.HasPrefix(name, "uint") || strings.HasPrefix(name, "sint") || strings.HasPrefix(name, "real")
}

// compare orders two values as a type orders them; ok is false if they cannot be compared.
func compare(t schema.Type, a, b cim.Value) (c int, ok bool) {
	switch {
	case t.Name == schema.Boolean:
		x, ok1 := truthValue(a)
		y, ok2 := truthValue(b)
		return cmp.Compare(number(x), number(y)), ok1 && ok2
	case isNumeric(t.Name) || t == noType:
		x, ok1 := numberOf(a)
		y, ok2 := numberOf(b)
		if ok1 && ok2 {
			return x.compare(y), true
		}
		if t != noType {
			return 0, false
		}
	case t.Name == schema.DateTime:
		x, err1 := cim.DateTime(plain(a)).Time()
		y, err2 := cim.DateTime(plain(b)).Time()
		if err1 == nil && err2 == nil {
			return x.Compare(y), true
		}
	case t.Name == schema.Reference:
		x, err1 := cim.ParsePath(plain(a))
		y, err2 := cim.ParsePath(plain(b))
		if err1 != nil || err2 != nil {
			return 0, false
		}
		return number(!x.Same(y)), true
	}
	return cmp.Compare(strings.ToLower(plain(a)), strings.ToLower(plain(b))), true
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// plain renders a value or literal as text.
func plain(v cim.Value) string {
	if n, ok := v.(Number); ok {
		return string(n)
	}
	return cim.Args{{Name: "v", Value: v}}.String("v")
}

func truthValue(v any) (b, ok bool) {
	switch v := v.(type) {
	case bool:
		return v, true
	case string, Number:
		switch strings.ToLower(plain(v)) {
		case "true", "1", "-1":
			return true, true
		case "false", "0":
			return false, true
		}
	}
	return false, false
}

// num is a number: exact as long as it is whole and its magnitude fits in 64 bits.
type num struct {
	neg  bool
	mag  uint64
	real bool
	f    float64
}

func (n num) float() float64 {
	switch {
	case n.real:
		return n.f
	case n.neg:
		return -float64(n.mag)
	}
	return float64(n.mag)
}

func (n num) compare(m num) int {
	if n.real || m.real {
		return cmp.Compare(n.float(), m.float())
	}
	switch {
	case n.neg && m.neg:
		return cmp.Compare(m.mag, n.mag)
	case n.neg != m.neg:
		return cmp.Compare(number(m.neg), number(n.neg))
	}
	return cmp.Compare(n.mag, m.mag)
}

func whole(v int64) num {
	if v < 0 {
		return num{neg: true, mag: -uint64(v)}
	}
	return num{mag: uint64(v)}
}

// numberOf converts a value or literal; text must be a number.
func numberOf(v any) (num, bool) {
	switch v := v.(type) {
	case uint8:
		return num{mag: uint64(v)}, true
	case uint16:
		return num{mag: uint64(v)}, true
	case uint32:
		return num{mag: uint64(v)}, true
	case uint64:
		return num{mag: v}, true
	case int8:
		return whole(int64(v)), true
	case int16:
		return whole(int64(v)), true
	case int32:
		return whole(int64(v)), true
	case int64:
		return whole(v), true
	case float32:
		return num{real: true, f: float64(v)}, true
	case float64:
		return num{real: true, f: v}, true
	case string:
		return parseNumber(strings.TrimSpace(v))
	case Number:
		return parseNumber(string(v))
	}
	return num{}, false
}

// parseNumber reads a decimal integer, one in hexadecimal with 0x, or a fraction.
func parseNumber(s string) (num, bool) {
	neg := strings.HasPrefix(s, "-")
	digits := strings.TrimPrefix(strings.TrimPrefix(s, "+"), "-")
	if digits == "" || len(s)-len(digits) > 1 || !isDigit(digits[0]) && digits[0] != '.' || strings.Contains(digits, "_") {
		return num{}, false
	}
	base := 10
	if hex, ok := strings.CutPrefix(strings.ToLower(digits), "0x"); ok {
		digits, base = hex, 16
	}
	if mag, err := strconv.ParseUint(digits, base, 64); err == nil {
		return num{neg: neg && mag != 0, mag: mag}, true
	}
	if base == 16 {
		return num{}, false
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return num{}, false
	}
	if neg {
		f = -f
	}
	return num{real: true, f: f}, true
}
