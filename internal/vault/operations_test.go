package vault

import (
	"slices"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/vaultdb"
)

// TestAllowedNeverContradicts walks every combination of the axes and checks
// the rules that must hold whatever the table says.
func TestAllowedNeverContradicts(t *testing.T) {
	t.Parallel()
	n := 0
	for _, p := range []dr.Protection{dr.Enabling, dr.InitialReplication, dr.Protected, dr.Disabling, dr.EnableFailed} {
		for _, f := range []dr.Failover{dr.FailoverNone, dr.FailoverInProgress, dr.FailoverCommitPending, dr.FailoverCommitted, dr.FailoverCancelling, dr.FailoverFailed} {
			for _, test := range []dr.TestFailover{dr.TestNone, dr.TestRunning, dr.TestWaiting, dr.TestCleaning, dr.TestFailed} {
				for _, job := range []dr.JobID{"", "j"} {
					for _, fact := range []facts{{}, {points: true}, {leftover: true}, {points: true, leftover: true}} {
						n++
						it := vaultdb.Item{ProtectedItem: dr.ProtectedItem{Protection: p, Failover: f, Test: test, Job: job}}
						ops := allowed(it, fact)
						has := func(op Operation) bool { return slices.Contains(ops, op) }
						starts := has(OpTestFailover) || has(OpPlannedFailover) || has(OpUnplannedFailover) || has(OpRepairReplication)
						up := test == dr.TestWaiting || test == dr.TestFailed
						for rule, broken := range map[string]bool{
							"a busy item allows nothing":                        job != "" && len(ops) > 0,
							"no failover without a recovery point":              starts && !fact.points,
							"no failover of what is not protected":              starts && p != dr.Protected,
							"no failover beside another":                        starts && f != dr.FailoverNone && f != dr.FailoverFailed,
							"no second test VM":                                 has(OpTestFailover) && up,
							"a test VM can always be cleaned up":                job == "" && up != has(OpTestFailoverCleanup),
							"commit and change only while pending":              (has(OpCommit) || has(OpChangePit)) != (job == "" && f == dr.FailoverCommitPending),
							"cancel only what there is":                         has(OpCancelFailover) && f != dr.FailoverCommitPending && !fact.leftover,
							"a test VM is not forgotten by a disable":           has(OpDisableProtection) && up,
							"a pending failover is not forgotten by a disable":  has(OpDisableProtection) && f == dr.FailoverCommitPending,
							"on the bad day an idle protected item can go over": job == "" && p == dr.Protected && fact.points && f == dr.FailoverNone && !has(OpUnplannedFailover),
						} {
							if broken {
								t.Errorf("%s: protection %s failover %s test %s job %q %+v: %v", rule, p, f, test, job, fact, ops)
							}
						}
						for _, op := range ops {
							if err := check(it, fact, op); err != nil {
								t.Errorf("%s is listed and refused: %v", op, err)
							}
						}
					}
				}
			}
		}
	}
	if n != 5*6*5*2*4 {
		t.Errorf("%d combinations", n)
	}
}
