package report

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestGoals(t *testing.T) {
	t.Parallel()
	r := &Report{}
	r.Add(Figure{Name: "a", Value: 5, Goal: AtMost(5)})
	r.Add(Figure{Name: "b", Value: 5.1, Goal: AtMost(5)})
	r.Add(Figure{Name: "c", Value: 2, Goal: AtLeast(2)})
	r.Add(Figure{Name: "d", Value: 1.9, Goal: AtLeast(2), Wall: true})
	r.Add(Figure{Name: "e", Value: 1})
	names := func(fs []Figure) (s string) {
		for _, f := range fs {
			s += f.Name
		}
		return s
	}
	if got := names(r.Missed(true)); got != "bd" {
		t.Errorf("missed %q", got)
	}
	// Wall-clock time never decides.
	if got := names(r.Missed(false)); got != "b" {
		t.Errorf("missed and deciding %q", got)
	}
	for v, want := range map[float64]string{0: "0", 4: "4", 4.126: "4.13", 0.0123: "0.012", 0.25: "0.250", 42.26: "42.3", 1234.5: "1234"} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) = %s, want %s", v, got, want)
		}
	}
}

// The table keeps its width, and names what could not be measured.
func TestTable(t *testing.T) {
	t.Parallel()
	r := &Report{Row: "delta"}
	r.Add(Figure{Area: "delta", Name: "shipped", Value: 16.2, Unit: "MiB", Goal: AtMost(17), Peers: Beside("one", 1).And("two", 2).Without("three", strings.Repeat("it is not there ", 20))})
	r.Add(Figure{Area: "delta", Name: "gone", Unit: "s", Goal: AtMost(1), NotAvailable: "nobody knows"})
	var out strings.Builder
	if err := r.Table(&out); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	for _, want := range []string{"delta [delta]", "shipped", "16.2 MiB", "goal ≤ 17", "one 1 · two 2", "three: not available: it is", "nobody knows", "1 of 2 goals met", "delta: gone"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	for l := range strings.Lines(got) {
		if n := utf8.RuneCountInString(strings.TrimRight(l, "\n")); n > 120 {
			t.Errorf("%d columns: %s", n, l)
		}
	}
}
