package route

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Page renders one page of all: the elements after $skipToken, at most $top (or
// the server's page size) of them. Only the page's elements are rendered, so a
// list of ten thousand costs one page's look-ups. An element that has gone away
// while it was rendered (KindNotFound) is left out.
//
// The token names the last element of the page before and its position; when
// the element is gone meanwhile the position counts. So a list that changes
// while it is paged repeats or misses at most what has changed.
func Page[T, W any](c *Call, all []T, name func(T) string, render func(*Call, T) (W, error)) (Reply, error) {
	q := c.R.URL.Query()
	size := c.Env.PageSize
	for _, k := range []string{"$top", "$take"} {
		if v := QueryValue(q, k); v != "" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				return Reply{}, dr.New(dr.KindInvalid, CodeInvalidPage, "armapi.list", "%s must be a positive number, not %q", k, Clip(v))
			}
			size = min(n, size)
		}
	}
	start := 0
	if tok := cmp.Or(QueryValue(q, "$skipToken"), QueryValue(q, "skipToken")); tok != "" {
		pos, last, err := parsePageToken(tok)
		if err != nil {
			return Reply{}, err
		}
		start = min(pos, len(all))
		for i, x := range all {
			if name(x) == last {
				start = i + 1
				break
			}
		}
	}
	end := min(start+size, len(all))
	out := armwire.List[W]{Value: make([]W, 0, end-start)}
	for _, x := range all[start:end] {
		wire, err := render(c, x)
		if err != nil && dr.KindOf(err) == dr.KindNotFound {
			continue
		}
		if err != nil {
			return Reply{}, err
		}
		out.Value = append(out.Value, wire)
	}
	if end < len(all) {
		next := url.Values{}
		for k, vs := range q {
			if !strings.EqualFold(k, "$skipToken") && !strings.EqualFold(k, "skipToken") {
				next[k] = vs
			}
		}
		next.Set("$skipToken", pageToken(end, name(all[end-1])))
		link := c.Base + c.R.URL.EscapedPath() + "?" + next.Encode()
		out.NextLink = &link
	}
	return Reply{Status: http.StatusOK, Body: out}, nil
}

func pageToken(pos int, last string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d/%s", pos, last))
}

func parsePageToken(s string) (pos int, last string, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	p, last, ok := strings.Cut(string(b), "/")
	pos, perr := strconv.Atoi(p)
	if err != nil || !ok || perr != nil || pos < 0 {
		return 0, "", dr.New(dr.KindInvalid, CodeInvalidPage, "armapi.list", "the page token is not one of this server's; start the list again")
	}
	return pos, last, nil
}

// Term is one comparison of a $filter.
type Term struct {
	Field string // lower case
	Op    string // eq, ne, ge, gt, le, lt
	Value string
}

// ParseFilter reads the small part of OData that clients of this API send:
// comparisons of a field with a literal, joined by "and"; "or" is accepted
// between comparisons of the same field with eq, whose values are then joined
// (see oneOf). Parentheses around terms are ignored.
func ParseFilter(s string) ([]Term, error) {
	bad := func(why string) error {
		return dr.New(dr.KindInvalid, CodeInvalidFilter, "armapi.filter", "$filter %q: %s", Clip(s), why).
			WithHint("Write comparisons like: JobStatus eq 'Failed' and StartTime ge '2026-01-31T00:00:00Z'.")
	}
	toks, err := filterTokens(s)
	if err != nil {
		return nil, bad(err.Error())
	}
	var out []Term
	for i := 0; i < len(toks); {
		joiner := ""
		if i > 0 {
			joiner = strings.ToLower(toks[i])
			if joiner != "and" && joiner != "or" {
				return nil, bad("expected 'and' or 'or'")
			}
			i++
		}
		if i+3 > len(toks) {
			return nil, bad("expected: field operator 'value'")
		}
		t := Term{Field: strings.ToLower(toks[i]), Op: strings.ToLower(toks[i+1]), Value: unquote(toks[i+2])}
		i += 3
		switch t.Op {
		case "eq", "ne", "ge", "gt", "le", "lt":
		default:
			return nil, bad("unknown operator")
		}
		if joiner == "or" {
			prev := &out[len(out)-1]
			if prev.Field != t.Field || prev.Op != "eq" || t.Op != "eq" {
				return nil, bad("'or' is understood only between eq comparisons of one field")
			}
			prev.Value += "," + t.Value
			continue
		}
		out = append(out, t)
	}
	return out, nil
}

// filterTokens splits at white space and parentheses, keeping quoted literals
// (with their quotes, two quotes for one inside) whole.
func filterTokens(s string) ([]string, error) {
	var toks []string
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == ' ' || c == '\t' || c == '(' || c == ')':
			i++
		case c == '\'':
			j := i + 1
			for ; j < len(s); j++ {
				if s[j] == '\'' {
					if j+1 < len(s) && s[j+1] == '\'' {
						j++
						continue
					}
					break
				}
			}
			if j >= len(s) {
				return nil, fmt.Errorf("a quote is not closed")
			}
			toks = append(toks, s[i:j+1])
			i = j + 1
		default:
			j := i
			for j < len(s) && !strings.ContainsRune(" \t()'", rune(s[j])) {
				j++
			}
			toks = append(toks, s[i:j])
			i = j
		}
	}
	return toks, nil
}

func unquote(s string) string {
	if len(s) >= 2 && s[0] == '\'' {
		return strings.ReplaceAll(s[1:len(s)-1], "''", "'")
	}
	return s
}

// OneOf reports whether got equals one of the comma-separated values, without case.
func OneOf(values, got string) bool {
	for v := range strings.SplitSeq(values, ",") {
		if strings.EqualFold(strings.TrimSpace(v), got) {
			return true
		}
	}
	return false
}

// FilterTime accepts the ways in which clients write times.
func FilterTime(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.9999999", time.DateTime, time.DateOnly, "1/2/2006 3:04:05 PM"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, dr.New(dr.KindInvalid, CodeInvalidFilter, "armapi.filter", "%q in $filter is not a time (want RFC 3339)", Clip(s))
}

// Filtered keeps the elements of all for which every term of $filter holds;
// fields gives the comparable fields by lower-case name. Only eq and ne are known here.
func Filtered[T any](c *Call, all []T, fields map[string]func(T) string) ([]T, error) {
	terms, err := ParseFilter(QueryValue(c.R.URL.Query(), "$filter"))
	if err != nil {
		return nil, err
	}
	for _, t := range terms {
		get, ok := fields[t.Field]
		if !ok || (t.Op != "eq" && t.Op != "ne") {
			return nil, dr.New(dr.KindInvalid, CodeInvalidFilter, "armapi.filter", "$filter: field %q with operator %q is not understood for this list", Clip(t.Field), Clip(t.Op))
		}
		kept := make([]T, 0, len(all))
		for _, x := range all {
			if OneOf(t.Value, get(x)) == (t.Op == "eq") {
				kept = append(kept, x)
			}
		}
		all = kept
	}
	return all, nil
}

// QueryValue finds a query parameter without regard to the case of its name.
func QueryValue(q url.Values, name string) string {
	for k, vs := range q {
		if strings.EqualFold(k, name) && len(vs) > 0 {
			return vs[0]
		}
	}
	return ""
}
