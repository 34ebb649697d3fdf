package route

import (
	"slices"
	"testing"

	"holdfast/internal/dr"
)

// TestStatusOf is exhaustive: a new kind fails here until it has a status.
func TestStatusOf(t *testing.T) {
	t.Parallel()
	want := map[dr.Kind]int{
		dr.KindInternal: 500, dr.KindInvalid: 400, dr.KindNotFound: 404, dr.KindConflict: 409, dr.KindUnauthenticated: 401, dr.KindForbidden: 403, dr.KindFenced: 409,
		dr.KindPrecondition: 409, dr.KindUnsupported: 400, dr.KindUnavailable: 503, dr.KindExhausted: 429, dr.KindCorrupt: 500, dr.KindCanceled: 409,
	}
	for _, k := range dr.Kinds() {
		w, ok := want[k]
		if !ok {
			t.Errorf("kind %v has no agreed status", k)
			continue
		}
		if got := StatusOf(k); got != w {
			t.Errorf("%v: %d, want %d", k, got, w)
		}
		if codeOf(&dr.Error{Kind: k}) == "" {
			t.Errorf("%v has no code", k)
		}
	}
	if StatusOf(dr.Kind(200)) != 500 {
		t.Error("an unknown kind is not an internal error")
	}
}

func TestParseFilter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want []Term
		bad  bool
	}{
		{in: "", want: nil},
		{in: "JobStatus eq 'Failed'", want: []Term{{"jobstatus", "eq", "Failed"}}},
		{in: "(JobStatus eq 'Failed' or JobStatus eq 'InProgress') and StartTime ge 2026-01-01T00:00:00Z", want: []Term{{"jobstatus", "eq", "Failed,InProgress"}, {"starttime", "ge", "2026-01-01T00:00:00Z"}}},
		{in: "friendlyName EQ 'it''s and x'", want: []Term{{"friendlyname", "eq", "it's and x"}}},
		{in: "a eq", bad: true},
		{in: "a like 'x'", bad: true},
		{in: "a eq 'x' b eq 'y'", bad: true},
		{in: "a eq 'x' or b eq 'y'", bad: true},
		{in: "a eq 'x", bad: true},
		{in: "a eq 'x' and", bad: true},
		{in: "or a eq 'x'", bad: true},
	} {
		got, err := ParseFilter(tt.in)
		if (err != nil) != tt.bad || (!tt.bad && !slices.Equal(got, tt.want)) {
			t.Errorf("%q: %v, %v; want %v", tt.in, got, err, tt.want)
		}
		if err != nil && dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%q: kind %v", tt.in, dr.KindOf(err))
		}
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add("JobStatus eq 'Failed' and StartTime ge '2026-01-01T00:00:00Z'")
	f.Add("(a eq 'x''y' or a eq b)")
	f.Add("'")
	f.Fuzz(func(t *testing.T, s string) {
		terms, err := ParseFilter(s)
		if err != nil && dr.KindOf(err) != dr.KindInvalid {
			t.Fatalf("kind %v", dr.KindOf(err))
		}
		for _, x := range terms {
			if x.Field == "" || x.Op == "" {
				t.Fatalf("empty Term in %v", terms)
			}
		}
	})
}

func FuzzPageToken(f *testing.F) {
	f.Add(pageToken(200, "web01"))
	f.Add("")
	f.Add("!!")
	f.Fuzz(func(t *testing.T, s string) {
		pos, last, err := parsePageToken(s)
		if err != nil {
			return
		}
		if p, l, err := parsePageToken(pageToken(pos, last)); err != nil || p != pos || l != last {
			t.Fatalf("%d %q does not survive: %d %q %v", pos, last, p, l, err)
		}
	})
}
