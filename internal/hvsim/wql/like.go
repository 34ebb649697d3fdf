package wql

import (
	"strings"
	"unicode/utf8"
)

// like is a compiled pattern of LIKE: % any text, _ one character, [abc] or
// [a-c] or [a=c] one of a set, [^…] one outside of it. Without case.
type like []likeItem

type likeItem struct {
	any    bool // %
	one    bool // _
	negate bool
	set    []likeRange // nil and neither any nor one: never
	char   rune        // a plain character if set is nil
}

type likeRange struct{ lo, hi rune }

// compileLike reads a pattern. A bracket without its end is a plain character.
func compileLike(s string) like {
	var out like
	rs := []rune(strings.ToLower(s))
	for i := 0; i < len(rs); i++ {
		switch rs[i] {
		case '%':
			if n := len(out); n == 0 || !out[n-1].any { // %% is %
				out = append(out, likeItem{any: true})
			}
		case '_':
			out = append(out, likeItem{one: true})
		case '[':
			item, n := likeSet(rs[i+1:])
			if n < 0 {
				out = append(out, likeItem{char: '['})
				continue
			}
			i += n
			out = append(out, item)
		default:
			out = append(out, likeItem{char: rs[i]})
		}
	}
	return out
}

// likeSet reads a set behind its bracket; n is how many characters it took, -1 if it has no end.
func likeSet(rs []rune) (item likeItem, n int) {
	i := 0
	if i < len(rs) && rs[i] == '^' {
		item.negate = true
		i++
	}
	for first := i; i < len(rs); i++ {
		if rs[i] == ']' && i > first {
			return item, i + 1
		}
		r := likeRange{rs[i], rs[i]}
		if i+2 < len(rs) && (rs[i+1] == '-' || rs[i+1] == '=') && rs[i+2] != ']' {
			r.hi = rs[i+2]
			i += 2
		}
		item.set = append(item.set, r)
	}
	return item, -1
}

func (it likeItem) matches(r rune) bool {
	if it.one {
		return true
	}
	if it.set == nil {
		return it.char == r
	}
	for _, s := range it.set {
		if r >= s.lo && r <= s.hi {
			return !it.negate
		}
	}
	return it.negate
}

// match takes time of at most len(pattern) × len(s): only the last % is ever taken back.
func (p like) match(s string) bool {
	s = strings.ToLower(s)
	pi, si := 0, 0
	backP, backS := -1, 0
	for si < len(s) {
		r, n := utf8.DecodeRuneInString(s[si:])
		switch {
		case pi < len(p) && p[pi].any:
			backP, backS = pi, si
			pi++
		case pi < len(p) && p[pi].matches(r):
			pi++
			si += n
		case backP >= 0:
			_, m := utf8.DecodeRuneInString(s[backS:])
			backS += m
			pi, si = backP+1, backS
		default:
			return false
		}
	}
	for pi < len(p) && p[pi].any {
		pi++
	}
	return pi == len(p)
}
