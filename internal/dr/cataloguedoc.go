package dr

import (
	"fmt"
	"strings"
)

// CatalogueMarkdown renders the catalogue as the page docs/errors.md.
func CatalogueMarkdown() string {
	var b strings.Builder
	b.WriteString(`# Errors, and what to do about them

Every error and every reason of an item's health has a code. It stands in the API, in the portal, in the logs and in
'holdfast' output, with the cause and the remedy given here. This page is made from the program's own
catalogue (package ` + "`dr`" + `); do not edit it.

**Retry** says what replication does by itself. *Recoverable*: it tries again 1, 2, 4, 8 and 10 minutes after the first attempt, then
every 30 minutes, for ever; changes go on being tracked meanwhile. *Non-recoverable*: it stops and the item is Critical until somebody acts; "retry now"
or a change of the item's settings starts it again. *None*: replication is not concerned.

**Health** is the colour that the code gives an item while it is the matter: Warning or Critical; Normal is only told. A dash means that it is
the answer to a request, not a matter of health.

**Kind** is the class of the error for programs; it gives the HTTP status and the exit code.

`)
	for _, g := range Groups() {
		fmt.Fprintf(&b, "- [%s](#%s): ", g.Title, strings.ReplaceAll(strings.ToLower(g.Title), " ", "-"))
		for i, e := range g.Entries {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "[%s](#%s)", e.Code, strings.ToLower(string(e.Code)))
		}
		b.WriteByte('\n')
	}
	for _, g := range Groups() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", g.Title, g.Intro)
		for _, e := range g.Entries {
			health := string(e.Severity)
			if health == "" {
				health = "–"
			}
			fmt.Fprintf(&b, "\n### %s\n\n**%s**\n\n| retry | health | kind |\n|---|---|---|\n| %s | %s | %s |\n\n- Cause: %s\n- Evidence: %s\n- What to do: %s\n",
				e.Code, markdown(e.Title), e.Retry, health, e.Kind, markdown(e.Cause), markdown(e.Evidence), markdown(e.Remedy))
		}
	}
	return b.String()
}

// markdown keeps characters of a text from being taken for marks.
func markdown(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "<", "&lt;", "|", `\|`, "`", "\\`").Replace(s)
}
