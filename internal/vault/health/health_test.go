package health

import (
	"testing"
	"time"

	"holdfast/internal/dr"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// good is an item in perfect health; each case spoils one thing.
func good() Input {
	return Input{Item: dr.ProtectedItem{VMName: "web1", Protection: dr.Protected, Failover: dr.FailoverNone, Active: dr.AtPrimary},
		Status: dr.ReplicationStatus{Phase: "delta", LastPoint: now.Add(-time.Minute), Cycles: 100, Missed: 20}, Connected: true, Now: now}
}

func TestHyperVReplicasRules(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*Input)
		want  dr.Health
		code  dr.Code
	}{
		"20 % missed is normal":     {func(*Input) {}, dr.HealthNormal, ""},
		"more than 20 % missed":     {func(in *Input) { in.Status.Missed = 21 }, dr.HealthWarning, healthMissed},
		"an hour since the last":    {func(in *Input) { in.Status.LastPoint = now.Add(-time.Hour) }, dr.HealthNormal, ""},
		"more than an hour":         {func(in *Input) { in.Status.LastPoint = now.Add(-time.Hour - time.Second) }, dr.HealthWarning, healthLag},
		"initial replication":       {func(in *Input) { in.Item.Protection = dr.InitialReplication; in.Status.LastPoint = time.Time{} }, dr.HealthWarning, healthIRRunning},
		"paused on the primary":     {func(in *Input) { in.Item.Paused = true }, dr.HealthWarning, healthPaused},
		"failed over, not reversed": {func(in *Input) { in.Item.Active = dr.AtRecovery; in.Item.Failover = dr.FailoverCommitted }, dr.HealthWarning, healthNotReversed},
		"a failover failed":         {func(in *Input) { in.Item.Failover = dr.FailoverFailed }, dr.HealthWarning, healthUnproved},
		"resync required":           {func(in *Input) { in.Item.Resync = "broken tracker" }, dr.HealthCritical, healthResync},
		"host not connected":        {func(in *Input) { in.Connected = false }, dr.HealthCritical, healthDisconnected},
		"enabling failed":           {func(in *Input) { in.Item.Protection = dr.EnableFailed; in.Connected = false }, dr.HealthCritical, healthEnableFailed},
		"being enabled":             {func(in *Input) { in.Item.Protection = dr.Enabling; in.Connected = false }, dr.HealthNormal, ""},
		"the agent's error": {func(in *Input) {
			in.Status.Err = &dr.HealthError{Code: dr.CodeStoreFull, Severity: dr.HealthCritical}
		}, dr.HealthCritical, dr.CodeStoreFull},
		"failed over, source gone": {func(in *Input) { in.Item.Active = dr.AtRecovery; in.Connected = false }, dr.HealthWarning, healthNotReversed},
	} {
		t.Run(name, func(t *testing.T) {
			in := good()
			c.spoil(&in)
			h, errs := Assess(in)
			if h != c.want {
				t.Fatalf("health %s, want %s: %+v", h, c.want, errs)
			}
			if c.code == "" {
				if len(errs) != 0 {
					t.Fatalf("reasons %+v, want none", errs)
				}
				return
			}
			if len(errs) != 1 || errs[0].Code != c.code {
				t.Fatalf("reasons %+v, want %s", errs, c.code)
			}
			if c.code != dr.CodeStoreFull && (errs[0].Message == "" || errs[0].Cause == "" || errs[0].Remedy == "") {
				t.Errorf("the reason does not explain itself: %+v", errs[0])
			}
		})
	}
}

func TestReasonsKeepTheirTime(t *testing.T) {
	t.Parallel()
	old := []dr.HealthError{{Code: "A", Since: now.Add(-time.Hour)}}
	errs := []dr.HealthError{{Code: "A", Message: "other figures"}, {Code: "B"}}
	KeepSince(errs, old, now)
	if !errs[0].Since.Equal(now.Add(-time.Hour)) || !errs[1].Since.Equal(now) {
		t.Errorf("since %v and %v", errs[0].Since, errs[1].Since)
	}
	if !SameReasons(errs[:1], old) || SameReasons(errs, old) {
		t.Error("SameReasons")
	}
}

func TestCannotSendIsCritical(t *testing.T) {
	t.Parallel()
	if !CannotSend(dr.CodeStoreUnreachable) || CannotSend(dr.CodeBackupJobBusy) {
		t.Error("CannotSend")
	}
}
