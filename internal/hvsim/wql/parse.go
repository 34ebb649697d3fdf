package wql

import (
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/cim"
)

// Kind is the form of a query.
type Kind int

// The forms.
const (
	Select Kind = iota
	Associators
	References
)

// Query is a parsed query.
type Query struct {
	Kind Kind

	// SELECT
	Columns []Column // nil = all
	Class   string
	Within  string // polling interval of an event query, as written
	Where   Expr   // nil = all

	// ASSOCIATORS OF, REFERENCES OF
	Of                      cim.Path
	OfPos                   int
	AssocClass, ResultClass string
	Role, ResultRole        string
	ClassDefsOnly, KeysOnly bool
}

// Column is one name of a SELECT list.
type Column struct {
	Name string
	Pos  int
}

// Expr is a condition: *And, *Or, *Not, *Compare or *IsNull.
type Expr interface{ expr() }

// And, Or and Not tie conditions together.
type (
	And struct{ X, Y Expr }
	Or  struct{ X, Y Expr }
	Not struct{ X Expr }
)

// Compare is X Op Y; Op is one of = <> < > <= >= LIKE ISA.
type Compare struct {
	Op   string
	Pos  int
	X, Y Operand
}

// IsNull is X IS NULL, or with Negate X IS NOT NULL.
type IsNull struct {
	X      Operand
	Negate bool
}

func (*And) expr()     {}
func (*Or) expr()      {}
func (*Not) expr()     {}
func (*Compare) expr() {}
func (*IsNull) expr()  {}

// Operand is a property, possibly of an embedded object (A.B) and possibly one
// element of an array (A[0]), or a literal.
type Operand struct {
	Pos     int
	Names   []string // nil = a literal
	Index   int      // of the last name; -1 = none
	Literal any      // string, number (its text, as type Number), bool or nil
}

// Number is a numeric literal as written.
type Number string

// maxQuery and maxDepth keep hostile queries from costing much: WMI has limits
// of the same order.
const (
	maxQuery = 64 << 10
	maxDepth = 200
)

// Parse reads a query. Errors are *cim.Error with CodeInvalidQuery and the position.
func Parse(query string) (*Query, error) {
	if len(query) > maxQuery {
		return nil, &cim.Error{Code: cim.CodeInvalidQuery, Op: operation(query), Status: statusUnparsable,
			Message: fmt.Sprintf("the query has %d bytes, more than %d", len(query), maxQuery)}
	}
	p := &parser{lexer: lexer{src: query}}
	q, err := p.query()
	if err == nil {
		return q, nil
	}
	pos := p.tok.pos
	if e, ok := err.(*syntaxError); ok {
		pos = e.pos
	}
	return nil, &cim.Error{Code: cim.CodeInvalidQuery, Op: operation(query), Status: statusUnparsable,
		Message: fmt.Sprintf("%v (at character %d)", err, pos+1)}
}

type syntaxError struct {
	pos int
	msg string
}

func (e *syntaxError) Error() string { return e.msg }

type parser struct {
	lexer
	tok   token
	depth int
}

func (p *parser) next() (err error) {
	p.tok, err = p.scan()
	return err
}

func (p *parser) fail(format string, args ...any) error {
	return &syntaxError{p.tok.pos, fmt.Sprintf(format, args...)}
}

// word reports whether the token is a keyword.
func (p *parser) word(w string) bool {
	return p.tok.kind == tokName && strings.EqualFold(p.tok.text, w)
}

// want takes a keyword or a sign.
func (p *parser) want(s string) error {
	if p.word(s) || p.tok.kind == tokSign && p.tok.text == s {
		return p.next()
	}
	return p.fail("%s is expected, not %s", s, p.tok)
}

// name takes a name.
func (p *parser) name(what string) (string, error) {
	if p.tok.kind != tokName {
		return "", p.fail("%s is expected, not %s", what, p.tok)
	}
	s := p.tok.text
	return s, p.next()
}

func (p *parser) query() (*Query, error) {
	if err := p.next(); err != nil {
		return nil, err
	}
	q := &Query{}
	var err error
	switch {
	case p.word("SELECT"):
		err = p.selects(q)
	case p.word("ASSOCIATORS"):
		q.Kind = Associators
		err = p.objects(q)
	case p.word("REFERENCES"):
		q.Kind = References
		err = p.objects(q)
	default:
		err = p.fail("SELECT, ASSOCIATORS OF or REFERENCES OF is expected, not %s", p.tok)
	}
	if err != nil {
		return nil, err
	}
	if p.tok.kind != tokEnd {
		return nil, p.fail("the query goes on with %s", p.tok)
	}
	return q, nil
}

// selects reads SELECT * | a, b FROM class [WITHIN n] [WHERE condition].
func (p *parser) selects(q *Query) error {
	if err := p.next(); err != nil {
		return err
	}
	if p.tok.kind == tokSign && p.tok.text == "*" {
		if err := p.next(); err != nil {
			return err
		}
	} else {
		for {
			pos := p.tok.pos
			n, err := p.name("* or a property")
			if err != nil {
				return err
			}
			q.Columns = append(q.Columns, Column{n, pos})
			if p.tok.kind != tokSign || p.tok.text != "," {
				break
			}
			if err := p.next(); err != nil {
				return err
			}
		}
	}
	if err := p.want("FROM"); err != nil {
		return err
	}
	var err error
	if q.Class, err = p.name("a class"); err != nil {
		return err
	}
	if p.word("WITHIN") {
		if err := p.next(); err != nil {
			return err
		}
		if p.tok.kind != tokNumber {
			return p.fail("a number of seconds is expected, not %s", p.tok)
		}
		q.Within = p.tok.text
		if err := p.next(); err != nil {
			return err
		}
	}
	if !p.word("WHERE") {
		return nil
	}
	if err := p.next(); err != nil {
		return err
	}
	q.Where, err = p.or()
	return err
}

// objects reads ASSOCIATORS OF {path} [WHERE …] and REFERENCES OF {path} [WHERE …].
func (p *parser) objects(q *Query) error {
	if err := p.next(); err != nil {
		return err
	}
	if !p.word("OF") {
		return p.fail("OF is expected, not %s", p.tok)
	}
	text, pos, err := p.braces()
	if err != nil {
		return err
	}
	if q.Of, err = cim.ParsePath(text); err != nil {
		return &syntaxError{pos, err.Error()}
	}
	q.OfPos = pos
	if err := p.next(); err != nil {
		return err
	}
	if !p.word("WHERE") {
		return nil
	}
	if err := p.next(); err != nil {
		return err
	}
	if p.tok.kind == tokEnd {
		return p.fail("a condition is expected, not %s", p.tok)
	}
	var seen []string
	for p.tok.kind != tokEnd {
		pos := p.tok.pos
		word, err := p.name("AssocClass, ResultClass, Role, ResultRole, ClassDefsOnly or KeysOnly")
		if err != nil {
			return err
		}
		low := strings.ToLower(word)
		if slices.Contains(seen, low) {
			return &syntaxError{pos, word + " stands there twice"}
		}
		seen = append(seen, low)
		if err := p.clause(q, low, word, pos); err != nil {
			return err
		}
	}
	return nil
}

// clause reads what follows one word of an ASSOCIATORS' or REFERENCES' WHERE.
func (p *parser) clause(q *Query, low, word string, pos int) error {
	var to *string
	switch {
	case low == "classdefsonly":
		q.ClassDefsOnly = true
		return nil
	case low == "keysonly":
		q.KeysOnly = true
		return nil
	case low == "resultclass":
		to = &q.ResultClass
	case low == "role":
		to = &q.Role
	case low == "assocclass" && q.Kind == Associators:
		to = &q.AssocClass
	case low == "resultrole" && q.Kind == Associators:
		to = &q.ResultRole
	case low == "and":
		return &syntaxError{pos, "conditions of ASSOCIATORS OF and REFERENCES OF stand beside each other without AND"}
	case low == "requiredqualifier" || low == "requiredassocqualifier" || low == "schemaonly":
		return &syntaxError{pos, word + " is not supported"}
	default:
		return &syntaxError{pos, word + " is no condition of this query"}
	}
	if err := p.want("="); err != nil {
		return err
	}
	v, err := p.name("a name")
	*to = v
	return err
}

func (p *parser) or() (Expr, error) {
	x, err := p.and()
	for err == nil && p.word("OR") {
		var y Expr
		if err = p.next(); err == nil {
			if y, err = p.and(); err == nil {
				x = &Or{x, y}
			}
		}
	}
	return x, err
}

func (p *parser) and() (Expr, error) {
	x, err := p.not()
	for err == nil && p.word("AND") {
		var y Expr
		if err = p.next(); err == nil {
			if y, err = p.not(); err == nil {
				x = &And{x, y}
			}
		}
	}
	return x, err
}

func (p *parser) not() (Expr, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail("conditions are nested more than %d deep", maxDepth)
	}
	defer func() { p.depth-- }()
	switch {
	case p.word("NOT"):
		if err := p.next(); err != nil {
			return nil, err
		}
		x, err := p.not()
		return &Not{x}, err
	case p.tok.kind == tokSign && p.tok.text == "(":
		if err := p.next(); err != nil {
			return nil, err
		}
		x, err := p.or()
		if err != nil {
			return nil, err
		}
		return x, p.want(")")
	}
	return p.comparison()
}

// comparison reads one condition.
func (p *parser) comparison() (Expr, error) {
	x, err := p.operand()
	if err != nil {
		return nil, err
	}
	pos := p.tok.pos
	if p.word("IS") {
		if err := p.next(); err != nil {
			return nil, err
		}
		neg := p.word("NOT")
		if neg {
			if err := p.next(); err != nil {
				return nil, err
			}
		}
		return &IsNull{x, neg}, p.want("NULL")
	}
	negate := p.word("NOT")
	if negate {
		if err := p.next(); err != nil {
			return nil, err
		}
		if !p.word("LIKE") {
			return nil, p.fail("LIKE is expected, not %s", p.tok)
		}
	}
	var op string
	switch {
	case p.word("LIKE"), p.word("ISA"):
		op = strings.ToUpper(p.tok.text)
	case p.tok.kind == tokSign && slices.Contains([]string{"=", "<>", "<", ">", "<=", ">="}, p.tok.text):
		op = p.tok.text
	default:
		return nil, p.fail("a comparison is expected, not %s", p.tok)
	}
	if err := p.next(); err != nil {
		return nil, err
	}
	y, err := p.operand()
	if err != nil {
		return nil, err
	}
	// "property = NULL" is how older clients write IS NULL.
	null := func(o Operand) bool { return o.Names == nil && o.Literal == nil }
	if null(x) || null(y) {
		if null(x) {
			x, y = y, x
		}
		if null(x) || !null(y) || op != "=" && op != "<>" {
			return nil, &syntaxError{pos, "NULL can only be compared by = and <> with a property"}
		}
		return &IsNull{x, op == "<>"}, nil
	}
	var e Expr = &Compare{Op: op, Pos: pos, X: x, Y: y}
	if negate {
		e = &Not{e}
	}
	return e, nil
}

// operand reads a property or a literal.
func (p *parser) operand() (Operand, error) {
	o := Operand{Pos: p.tok.pos, Index: -1}
	switch {
	case p.tok.kind == tokString:
		o.Literal = p.tok.text
		return o, p.next()
	case p.tok.kind == tokNumber:
		o.Literal = Number(p.tok.text)
		return o, p.next()
	case p.word("TRUE"), p.word("FALSE"):
		o.Literal = p.word("TRUE")
		return o, p.next()
	case p.word("NULL"):
		return o, p.next()
	}
	for {
		n, err := p.name("a property or a value")
		if err != nil {
			return o, err
		}
		o.Names = append(o.Names, n)
		if p.tok.kind != tokSign || p.tok.text != "." {
			break
		}
		if err := p.next(); err != nil {
			return o, err
		}
	}
	if p.tok.kind != tokSign || p.tok.text != "[" {
		return o, nil
	}
	if err := p.next(); err != nil {
		return o, err
	}
	n, ok := smallNumber(p.tok)
	if !ok {
		return o, p.fail("the index of an array element is expected, not %s", p.tok)
	}
	o.Index = n
	if err := p.next(); err != nil {
		return o, err
	}
	return o, p.want("]")
}
