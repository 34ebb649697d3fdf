package arm

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDocumentedRoles: the roles in docs/azure.md have exactly the actions that are used.
func TestDocumentedRoles(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../../docs/azure.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2][]string{
		"Holdfast Recovery Site": {slices.Concat(Actions(), ImportActions()), DataActions()},
		"Holdfast Region Reader": {SubscriptionActions(), nil},
	}
	configs := 0
	for block := range strings.SplitSeq(string(text), "```json\n") {
		block, _, _ = strings.Cut(block, "```")
		var role struct {
			Name                 string
			Actions, DataActions []string
		}
		if json.Unmarshal([]byte(block), &role) != nil {
			continue
		}
		w, ok := want[role.Name]
		if !ok {
			if _, err := Parse([]byte(block)); err != nil {
				t.Errorf("the example is refused: %v", err)
			}
			configs++
			continue
		}
		delete(want, role.Name)
		if !slices.Equal(role.Actions, w[0]) || !slices.Equal(role.DataActions, w[1]) {
			t.Errorf("%s has %q and %q, expected %q and %q", role.Name, role.Actions, role.DataActions, w[0], w[1])
		}
	}
	if len(want) > 0 || configs != 1 {
		t.Errorf("not found: %v; %d examples", want, configs)
	}
}
