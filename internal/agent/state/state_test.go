package state_test

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/agent/state"
	"holdfast/internal/dr"
)

func TestVersions(t *testing.T) {
	t.Parallel()
	type plain struct {
		state.Header
		X int `json:"x"`
	}
	type assignments struct {
		state.AssignmentsHeader
		X int `json:"x"`
	}
	path := filepath.Join(t.TempDir(), "file.json")
	for name, c := range map[string]struct {
		text string
		into state.File
		kind dr.Kind
		ok   bool
	}{
		"Plain":             {`{"version":1,"x":3}`, &plain{}, 0, true},
		"PlainNewer":        {`{"version":2}`, &plain{}, dr.KindUnsupported, false},
		"Assignments1":      {`{"version":1,"x":3}`, &assignments{}, 0, true},
		"Assignments2":      {`{"version":2,"x":3}`, &assignments{}, 0, true},
		"AssignmentsNewer":  {`{"version":3}`, &assignments{}, dr.KindUnsupported, false},
		"AssignmentsNone":   {`{}`, &assignments{}, dr.KindCorrupt, false},
		"AssignmentsBroken": {`{"version":`, &assignments{}, dr.KindCorrupt, false},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := state.Load(path, c.into); (err == nil) != c.ok || !c.ok && dr.KindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is saved is read again, and says its version.
	if err := state.Save(path, &assignments{AssignmentsHeader: state.CurrentAssignments(), X: 7}); err != nil {
		t.Fatal(err)
	}
	var back assignments
	if err := state.Load(path, &back); err != nil || back.X != 7 || back.Version != 2 {
		t.Errorf("%+v %v", back, err)
	}
	if err := state.Load(path+".none", &back); dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("a file that is not there: %v", err)
	}
}
