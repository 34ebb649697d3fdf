package armapi

import (
	"strings"
	"testing"
)

func TestEcho(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"abc-1": "abc-1", "a\nb": "", strings.Repeat("x", maxEcho+1): "", "é": ""} {
		if got := echo(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
