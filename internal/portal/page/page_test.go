package page

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
)

func TestAssets(t *testing.T) {
	t.Parallel()
	a, err := loadAssets()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(a.files[a.byName["htmx-4.0.1.min.js"]])
	if hex.EncodeToString(sum[:]) != htmxSHA256 {
		t.Errorf("htmx is not the file of the package htmx.org 4.0.1: %x", sum)
	}
	css := string(a.files[a.byName["portal.css"]])
	if css == "" || strings.Contains(css, "url(") || strings.Contains(css, "@import") {
		t.Error("the style sheet is missing or loads something")
	}
}

func TestLocal(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"https://evil.example", "//evil.example", "/portal//evil", `/portal/\evil`, "/portalx", "javascript:alert(1)"} {
		if got := local(next); got != "/portal" {
			t.Errorf("next %q leads to %q", next, got)
		}
	}
	if got := local("/portal/items?q=a"); got != "/portal/items?q=a" {
		t.Errorf("a page of the portal became %q", got)
	}
}

func TestFraming(t *testing.T) {
	t.Parallel()
	if got := plain("a\nevent: x\r"); strings.ContainsAny(got, "\n\r") {
		t.Errorf("framing: %q", got)
	}
}
