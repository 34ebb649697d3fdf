package portal

import (
	"testing"

	"holdfast/internal/dr"
)

func TestNext(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		it     dr.ProtectedItem
		tone   string
		state  string
		next   string
		dialog string
	}{
		{dr.ProtectedItem{Protection: dr.Protected}, "warn", "Protected", "Test failover", "test-failover"},
		{dr.ProtectedItem{Protection: dr.Protected}, "good", "Protected", "", ""},
		{dr.ProtectedItem{Protection: dr.InitialReplication}, "idle", "Initial replication 0\u00a0%", "", ""},
		{dr.ProtectedItem{Protection: dr.EnableFailed, Health: dr.HealthCritical}, "idle", "Enabling failed", "See why", ""},
		{dr.ProtectedItem{Protection: dr.Protected, Test: dr.TestWaiting}, "warn", "Test failover: clean-up pending", "Clean up test", "cleanup-test"},
		{dr.ProtectedItem{Protection: dr.Protected, Failover: dr.FailoverCommitPending, Active: dr.AtRecovery}, "warn", "Failed over, commit pending", "Commit or cancel", "commit"},
		{dr.ProtectedItem{Protection: dr.Protected, Job: "1", Test: dr.TestRunning}, "warn", "Test failover in progress", "", ""},
		{dr.ProtectedItem{Protection: dr.Protected, Resync: "host crash", Health: dr.HealthCritical, Active: dr.AtPrimary}, "good", "Resynchronization required", "See the problem", ""},
	} {
		next, dialog, _ := nextOf(c.it, itemRow{DrillTone: c.tone})
		if state := stateOf(c.it, dr.ReplicationStatus{}).Text; state != c.state || next != c.next || dialog != c.dialog {
			t.Errorf("%+v: %q %q %q", c.it.Protection, state, next, dialog)
		}
	}
}
