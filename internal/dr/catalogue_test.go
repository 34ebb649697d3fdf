package dr_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/dr"
)

// actions are the verbs that a remedy may begin one of its clauses with: a remedy
// says what to do, not how things are.
var actions = regexp.MustCompile(`(?:^|[.;:,] (?:then |and |or )?)(?i:add|ask|check|choose|commit|correct|disable|download|enter|exclude|fail over|free|give|import|install|list|look|make|move|raise|register|release|remove|resynchronize|restart|restore|resume|run|see|shut|start|stop|try|upgrade|use|wait|write|enable|hold|acknowledge)\b`)

// TestCatalogueIsWhole enforces for every code what the documentation page promises.
func TestCatalogueIsWhole(t *testing.T) {
	t.Parallel()
	seen := map[dr.Code]bool{}
	for _, e := range dr.Catalogue() {
		if seen[e.Code] {
			t.Errorf("%s is there twice", e.Code)
		}
		seen[e.Code] = true
		if !regexp.MustCompile(`^[A-Z][A-Za-z]{4,40}$`).MatchString(string(e.Code)) {
			t.Errorf("%q is no code", e.Code)
		}
		for name, text := range map[string]string{"cause": e.Cause, "evidence": e.Evidence, "remedy": e.Remedy} {
			if len(text) < 10 || !strings.HasSuffix(text, ".") && !strings.HasSuffix(text, ".)") || strings.TrimSpace(text) != text {
				t.Errorf("%s: the %s is not a sentence: %q", e.Code, name, text)
			}
		}
		if e.Title == "" || strings.HasSuffix(e.Title, ".") || len(e.Title) > 60 {
			t.Errorf("%s: title %q", e.Code, e.Title)
		}
		if !actions.MatchString(e.Remedy) {
			t.Errorf("%s: the remedy names no action: %q", e.Code, e.Remedy)
		}
		if !slices.Contains(dr.Kinds(), e.Kind) {
			t.Errorf("%s: kind %d", e.Code, e.Kind)
		}
		colours := e.Severity == dr.HealthWarning || e.Severity == dr.HealthCritical
		switch e.Retry {
		case dr.RetryNone:
		case dr.Recoverable:
			if !colours {
				t.Errorf("%s stops replication for a while, but has severity %q", e.Code, e.Severity)
			}
		case dr.NonRecoverable:
			if e.Severity != dr.HealthCritical {
				t.Errorf("%s waits for an operator, but has severity %q", e.Code, e.Severity)
			}
		default:
			t.Errorf("%s: retry class %d", e.Code, e.Retry)
		}
		if !colours && e.Severity != "" && e.Severity != dr.HealthNormal {
			t.Errorf("%s: severity %q", e.Code, e.Severity)
		}
	}
}

// TestLookup: every entry is found, in tables that are ordered, without allocation.
func TestLookup(t *testing.T) {
	for _, g := range dr.Groups() {
		if g.Title == "" || g.Intro == "" || len(g.Entries) == 0 {
			t.Errorf("group %q is empty", g.Title)
		}
		if !slices.IsSortedFunc(g.Entries, func(a, b dr.Entry) int { return strings.Compare(string(a.Code), string(b.Code)) }) {
			t.Errorf("group %q is not ordered by code", g.Title)
		}
	}
	all := dr.Catalogue()
	for _, e := range all {
		if got, ok := dr.Lookup(e.Code); !ok || got != e {
			t.Errorf("Lookup(%s) = %+v, %v", e.Code, got, ok)
		}
	}
	for _, c := range []dr.Code{"", "A", "Nonsense", "zzz", all[0].Code + "x"} {
		if _, ok := dr.Lookup(c); ok {
			t.Errorf("Lookup(%q) found something", c)
		}
	}
	if n := testing.AllocsPerRun(100, func() { dr.Lookup(dr.CodeKeyMismatch); dr.Lookup("nothing") }); n != 0 {
		t.Errorf("Lookup allocates %v times", n)
	}
	// What callers get is theirs.
	all[0].Title = "changed"
	dr.Groups()[0].Entries[0].Title = "changed"
	if dr.Catalogue()[0].Title == "changed" {
		t.Error("the catalogue can be changed from outside")
	}
}

// TestEveryCodeIsInTheCatalogue reads the package's source: a constant of type
// Code without an entry would have neither cause nor remedy.
func TestEveryCodeIsInTheCatalogue(t *testing.T) {
	t.Parallel()
	f, err := parser.ParseFile(token.NewFileSet(), "catalogue.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := 0
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		lit, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		declared++
		if _, ok := dr.Lookup(dr.Code(text)); !ok {
			t.Errorf("%s (%q) is not in the catalogue", spec.Names[0].Name, text)
		}
		return true
	})
	if n := len(dr.Catalogue()); declared != n {
		t.Errorf("%d codes are declared, the catalogue has %d", declared, n)
	}
}

// TestErrorsPage: docs/errors.md is the catalogue. To write it anew:
// HOLDFAST_UPDATE=1 go test ./internal/dr -run TestErrorsPage
func TestErrorsPage(t *testing.T) {
	t.Parallel()
	const page = "../../docs/errors.md"
	want := dr.CatalogueMarkdown()
	if os.Getenv("HOLDFAST_UPDATE") != "" {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the catalogue says. Write it anew with\n\tHOLDFAST_UPDATE=1 go test ./internal/dr -run TestErrorsPage", page)
	}
	for _, e := range dr.Catalogue() {
		if !strings.Contains(want, "\n### "+string(e.Code)+"\n") {
			t.Errorf("%s has no section", e.Code)
		}
	}
}

// TestCodesThatOthersStore: these texts are in databases and in people's scripts.
func TestCodesThatOthersStore(t *testing.T) {
	t.Parallel()
	for _, c := range []dr.Code{"InitialReplicationNotComplete", "ReplicationCyclesMissed", "ReplicationLag", "ReplicationPaused", "ResynchronizationRequired", "FailoverNotReversed",
		"SourceHostNotConnected", "EnableProtectionFailed", "FailoverFailed", "ChangeTrackingLost", "GenerationFenced", "LooksEncrypted"} {
		if e, ok := dr.Lookup(c); !ok || e.Severity == "" {
			t.Errorf("%s is gone, or no reason of a health any more", c)
		}
	}
}
