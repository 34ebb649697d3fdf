package wql

import (
	"fmt"
	"strconv"
	"strings"
)

type tokenKind int

const (
	tokEnd tokenKind = iota
	tokName
	tokString
	tokNumber
	tokSign
)

type token struct {
	kind tokenKind
	text string // of a string: without quotes and escapes
	pos  int    // byte offset
}

// String names the token in messages.
func (t token) String() string {
	switch t.kind {
	case tokEnd:
		return "the end"
	case tokString:
		return "the text " + strconv.Quote(t.text)
	}
	return strconv.Quote(t.text)
}

// smallNumber reads an array index.
func smallNumber(t token) (int, bool) {
	if t.kind != tokNumber {
		return 0, false
	}
	n, err := strconv.ParseUint(t.text, 10, 16)
	return int(n), err == nil
}

type lexer struct {
	src string
	off int
}

func isLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}
func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (l *lexer) space() {
	for l.off < len(l.src) && strings.IndexByte(" \t\r\n", l.src[l.off]) >= 0 {
		l.off++
	}
}

// scan returns the next token.
func (l *lexer) scan() (token, error) {
	l.space()
	start := l.off
	if l.off == len(l.src) {
		return token{kind: tokEnd, pos: start}, nil
	}
	c := l.src[l.off]
	peek := func(i int) byte {
		if l.off+i < len(l.src) {
			return l.src[l.off+i]
		}
		return 0
	}
	switch {
	case isLetter(c):
		for l.off < len(l.src) && (isLetter(l.src[l.off]) || isDigit(l.src[l.off])) {
			l.off++
		}
		return token{tokName, l.src[start:l.off], start}, nil
	case isDigit(c), (c == '-' || c == '+' || c == '.') && isDigit(peek(1)), (c == '-' || c == '+') && peek(1) == '.' && isDigit(peek(2)):
		return l.number(start)
	case c == '\'' || c == '"':
		return l.text(start)
	}
	sign := l.src[start : start+1]
	switch {
	case c == '!' && peek(1) == '=', c == '<' && peek(1) == '>':
		l.off += 2
		return token{tokSign, "<>", start}, nil
	case c == '<' && peek(1) == '=', c == '>' && peek(1) == '=':
		sign = l.src[start : start+2]
	case strings.IndexByte("=<>(),.*[]", c) < 0:
		return token{pos: start}, &syntaxError{start, fmt.Sprintf("the character %q cannot stand here", c)}
	}
	l.off += len(sign)
	return token{tokSign, sign, start}, nil
}

// number reads an integer, a decimal fraction or 0x….
func (l *lexer) number(start int) (token, error) {
	for l.off < len(l.src) {
		c := l.src[l.off]
		exp := l.off > start && (l.src[l.off-1] == 'e' || l.src[l.off-1] == 'E') && !strings.HasPrefix(strings.ToLower(l.src[start:l.off]), "0x")
		if !isLetter(c) && !isDigit(c) && c != '.' && (c != '-' && c != '+' || l.off > start && !exp) {
			break
		}
		l.off++
	}
	t := token{tokNumber, l.src[start:l.off], start}
	if _, ok := parseNumber(t.text); !ok {
		return t, &syntaxError{start, fmt.Sprintf("%q is no number", t.text)}
	}
	return t, nil
}

// text reads a string literal. The backslash stands before quotes and before
// itself; before anything else it is an error, as a client that forgot to
// escape a path must not go unnoticed.
func (l *lexer) text(start int) (token, error) {
	quote := l.src[start]
	var b strings.Builder
	for i := start + 1; i < len(l.src); i++ {
		switch c := l.src[i]; c {
		case quote:
			l.off = i + 1
			return token{tokString, b.String(), start}, nil
		case '\\':
			i++
			if i == len(l.src) || strings.IndexByte(`\'"`, l.src[i]) < 0 {
				return token{pos: i - 1}, &syntaxError{i - 1, "a backslash in a text stands before a backslash or a quote only"}
			}
			b.WriteByte(l.src[i])
		default:
			b.WriteByte(c)
		}
	}
	return token{pos: start}, &syntaxError{start, "the text has no closing quote"}
}

// braces reads {…}; a brace inside quotes does not end it.
func (l *lexer) braces() (text string, pos int, err error) {
	l.space()
	start := l.off
	if start == len(l.src) || l.src[start] != '{' {
		return "", start, &syntaxError{start, "a path in braces is expected"}
	}
	var quote byte
	for i := start + 1; i < len(l.src); i++ {
		switch c := l.src[i]; {
		case quote != 0 && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '}':
			l.off = i + 1
			return strings.TrimSpace(l.src[start+1 : i]), start + 1, nil
		}
	}
	return "", start, &syntaxError{start, "the brace is not closed"}
}
