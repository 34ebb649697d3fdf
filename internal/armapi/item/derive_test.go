package item

import (
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
)

var (
	allProtection = []dr.Protection{dr.Enabling, dr.InitialReplication, dr.Protected, dr.Disabling, dr.EnableFailed}
	allFailover   = []dr.Failover{dr.FailoverNone, dr.FailoverInProgress, dr.FailoverCommitPending, dr.FailoverCommitted, dr.FailoverCancelling, dr.FailoverFailed}
	allTest       = []dr.TestFailover{dr.TestNone, dr.TestRunning, dr.TestWaiting, dr.TestCleaning, dr.TestFailed}
)

// TestProtectionStateTable spells out every combination of the two axes.
func TestProtectionStateTable(t *testing.T) {
	t.Parallel()
	// Columns: none, inProgress, commitPending, committed, cancelling, failed.
	const inProgress, pending, committed, cancelling = "FailoverInProgress", "FailoverCommitPending", "FailoverCommitted", "CancelFailoverInProgress"
	table := map[dr.Protection][6]string{
		dr.Enabling:           {"EnablingProtection", inProgress, pending, committed, cancelling, "EnablingProtection"},
		dr.InitialReplication: {"InitialReplicationInProgress", inProgress, pending, committed, cancelling, "InitialReplicationInProgress"},
		dr.Protected:          {"Protected", inProgress, pending, committed, cancelling, "Protected"},
		dr.Disabling:          {"DisablingProtection", "DisablingProtection", "DisablingProtection", "DisablingProtection", "DisablingProtection", "DisablingProtection"},
		dr.EnableFailed:       {"EnablingFailed", inProgress, pending, committed, cancelling, "EnablingFailed"},
	}
	for _, p := range allProtection {
		for i, f := range allFailover {
			got, description := protectionState(p, f)
			if got != table[p][i] {
				t.Errorf("%s, %s: %s, want %s", p, f, got, table[p][i])
			}
			if description == "" {
				t.Errorf("%s, %s: no description", p, f)
			}
		}
	}
	if got, _ := protectionState("new axis value", dr.FailoverNone); got != "Unknown" {
		t.Errorf("unknown axis value: %s", got)
	}
}

func TestTestFailoverStateTable(t *testing.T) {
	t.Parallel()
	want := map[dr.TestFailover]string{dr.TestNone: "None", dr.TestRunning: "InProgress", dr.TestWaiting: "WaitingForCompletion", dr.TestCleaning: "MarkedForDeletion", dr.TestFailed: "Failed", "": "None"}
	for in, w := range want {
		if got, _ := testFailoverState(in); got != w {
			t.Errorf("%q: %s, want %s", in, got, w)
		}
	}
}

// TestAllowedOperationsTable checks all 150 combinations against the documented
// lines, written here a second time and independently as short codes.
func TestAllowedOperationsTable(t *testing.T) {
	t.Parallel()
	short := map[string]string{opPlanned: "p", opUnplanned: "u", opTest: "t", opCleanup: "c", opCommit: "C", opCancel: "x", opChange: "P", opRepair: "r", opDisable: "d"}
	want := func(p dr.Protection, f dr.Failover, x dr.TestFailover) string {
		end := ""
		if f == dr.FailoverFailed && p != dr.Disabling {
			end = "x"
		}
		if x == dr.TestWaiting || x == dr.TestFailed {
			end += "c"
		}
		if p == dr.Disabling {
			return "d" + end
		}
		switch f {
		case dr.FailoverInProgress:
			return "x" + end
		case dr.FailoverCancelling:
			return end
		case dr.FailoverCommitPending:
			return "CPxd" + end
		case dr.FailoverCommitted:
			return "d" + end
		}
		if p != dr.Protected {
			return "d" + end
		}
		return map[dr.TestFailover]string{dr.TestNone: "putrd", dr.TestRunning: "pu", dr.TestCleaning: "pu", dr.TestWaiting: "purd", dr.TestFailed: "purd"}[x] + end
	}
	n := 0
	for _, p := range allProtection {
		for _, f := range allFailover {
			for _, x := range allTest {
				n++
				var got strings.Builder
				for _, op := range AllowedOperations(p, f, x) {
					got.WriteString(short[op])
				}
				if got.String() != want(p, f, x) {
					t.Errorf("%s, %s, %s: %q, want %q", p, f, x, got.String(), want(p, f, x))
				}
			}
		}
	}
	if n != 150 {
		t.Errorf("%d combinations", n)
	}
}

// TestOperationsNeverContradict checks rules that must hold whatever the table says.
func TestOperationsNeverContradict(t *testing.T) {
	t.Parallel()
	for _, p := range allProtection {
		for _, f := range allFailover {
			for _, x := range allTest {
				ops := AllowedOperations(p, f, x)
				has := func(op string) bool { return slices.Contains(ops, op) }
				if has(opTest) && x != dr.TestNone {
					t.Errorf("%s, %s, %s: a second test failover is allowed", p, f, x)
				}
				if (has(opUnplanned) || has(opPlanned) || has(opTest)) && p != dr.Protected {
					t.Errorf("%s, %s, %s: a failover without a recovery point is allowed", p, f, x)
				}
				if has(opCommit) != (f == dr.FailoverCommitPending && p != dr.Disabling) {
					t.Errorf("%s, %s, %s: commit is %v", p, f, x, has(opCommit))
				}
				if p == dr.Protected && (f == dr.FailoverNone || f == dr.FailoverFailed) && !has(opUnplanned) {
					t.Errorf("%s, %s, %s: the unplanned failover is withheld from a protected item", p, f, x)
				}
			}
		}
	}
}

func TestShownOperations(t *testing.T) {
	t.Parallel()
	it := dr.ProtectedItem{Protection: dr.Protected, Failover: dr.FailoverNone, Test: dr.TestNone}
	got := shownOperations(it, []string{opTest, opCommit, "Unheard"})
	if !slices.Equal(got, []string{opTest}) {
		t.Errorf("shown %v, want what both allow", got)
	}
	if got := shownOperations(it, nil); got == nil || len(got) != 0 {
		t.Errorf("shown %v, want an empty list that is not null", got)
	}
}

func TestSettingsRoundTrip(t *testing.T) {
	t.Parallel()
	in := targetSettings{VMSize: "size", NetworkID: "/x/net", Tags: map[string]string{"a": "b"}}
	got := readSettings(in.encode())
	if got.VMSize != "size" || got.NetworkID != "/x/net" || got.Tags["a"] != "b" || got.Version != targetSettingsVersion {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"", "not json", `{"v":99,"vmSize":"x"}`} {
		if got := readSettings(bad); got.VMSize != "" || got.Version != targetSettingsVersion {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
