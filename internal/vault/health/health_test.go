package health

import (
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// good is an item in perfect health, at every limit; each case spoils one thing.
func good() Input {
	return Input{Item: dr.ProtectedItem{VMName: "web1", Protection: dr.Protected, Failover: dr.FailoverNone, Active: dr.AtPrimary},
		Status: dr.ReplicationStatus{Phase: "delta", LastPoint: now.Add(-time.Hour), Cycles: 100, Missed: 20, Converging: dr.Converging},
		Stats:  Statistics{Start: now.Add(-3 * time.Hour), Success: 80, Miss: 20, Latency: 80 * 5 * time.Minute, MaxLatency: time.Hour}, Connected: true, Now: now}
}

// TestHyperVReplicasRules: one line for each rule and each limit of a rule.
func TestHyperVReplicasRules(t *testing.T) {
	t.Parallel()
	agentSays := func(c dr.Code) func(*Input) {
		return func(in *Input) {
			e, _ := dr.Lookup(c)
			in.Status.Err = &dr.HealthError{Code: c, Severity: Severity(c), Message: "m", Cause: e.Cause, Remedy: e.Remedy}
		}
	}
	for name, c := range map[string]struct {
		spoil func(*Input)
		want  dr.Health
		code  dr.Code
	}{
		"normal: every figure at its limit": {func(*Input) {}, dr.HealthNormal, ""},

		"critical: network":                         {agentSays(dr.CodeStoreUnreachable), dr.HealthCritical, dr.CodeStoreUnreachable},
		"critical: vault not reached":               {agentSays(dr.CodeVaultUnreachable), dr.HealthCritical, dr.CodeVaultUnreachable},
		"critical: storage at the source":           {agentSays(dr.CodeNoSpace), dr.HealthCritical, dr.CodeNoSpace},
		"critical: storage at the recovery side":    {agentSays(dr.CodeStoreFull), dr.HealthCritical, dr.CodeStoreFull},
		"critical: an error waits for an operator":  {agentSays(dr.CodeVMNotFound), dr.HealthCritical, dr.CodeVMNotFound},
		"critical: host not connected":              {func(in *Input) { in.Connected = false }, dr.HealthCritical, dr.CodeSourceDisconnected},
		"critical: resync needed":                   {func(in *Input) { in.Item.Resync = "broken tracker" }, dr.HealthCritical, dr.CodeResyncRequired},
		"critical: resync needed, reason as a code": {func(in *Input) { in.Status.ResyncReason = dr.CodeVMReverted }, dr.HealthCritical, dr.CodeResyncRequired},
		"critical: resync runs":                     {func(in *Input) { in.Item.Resync, in.Status.Phase = "x", "resync" }, dr.HealthCritical, dr.CodeResyncRequired},
		"critical: enabling failed":                 {func(in *Input) { in.Item.Protection = dr.EnableFailed; in.Connected = false }, dr.HealthCritical, dr.CodeEnableFailed},

		"warning: more than 20 % missed":              {func(in *Input) { in.Stats.Miss = 21 }, dr.HealthWarning, dr.CodeCyclesMissed},
		"warning: more than 20 % missed, no interval": {func(in *Input) { in.Stats = Statistics{}; in.Status.Missed = 21 }, dr.HealthWarning, dr.CodeCyclesMissed},
		"warning: nothing but misses":                 {func(in *Input) { in.Stats.Success, in.Stats.Miss, in.Stats.Latency = 0, 1, 0 }, dr.HealthWarning, dr.CodeCyclesMissed},
		"normal: 20 % missed, no interval":            {func(in *Input) { in.Stats = Statistics{} }, dr.HealthNormal, ""},
		"normal: a new interval forgets the misses": {func(in *Input) {
			in.Stats.Miss = 50
			in.Stats = in.Stats.At(Default(), now.Add(day))
			in.Stats.Sent(1, 0)
		}, dr.HealthNormal, ""},
		"normal: no cycle yet":                      {func(in *Input) { in.Stats, in.Status.Cycles, in.Status.Missed = Statistics{}, 0, 3 }, dr.HealthNormal, ""},
		"warning: more than an hour since the last": {func(in *Input) { in.Status.LastPoint = now.Add(-time.Hour - time.Second) }, dr.HealthWarning, dr.CodeReplicationLag},
		"warning: latency above five minutes":       {func(in *Input) { in.Stats.Latency += 80 * time.Second }, dr.HealthWarning, dr.CodeLatencyHigh},
		"warning: initial replication not complete": {func(in *Input) { in.Item.Protection = dr.InitialReplication; in.Status.LastPoint = time.Time{} }, dr.HealthWarning, dr.CodeInitialIncomplete},
		"warning: failed over, not reversed":        {func(in *Input) { in.Item.Active = dr.AtRecovery; in.Item.Failover = dr.FailoverCommitted }, dr.HealthWarning, dr.CodeFailoverNotReversed},
		"warning: failed over, source gone":         {func(in *Input) { in.Item.Active = dr.AtRecovery; in.Connected = false }, dr.HealthWarning, dr.CodeFailoverNotReversed},
		"warning: paused on the primary":            {func(in *Input) { in.Item.Paused = true }, dr.HealthWarning, dr.CodePaused},
		"warning: not converging":                   {func(in *Input) { in.Status.Converging = dr.NotConverging }, dr.HealthWarning, dr.CodeBandwidthLow},
		"normal: nothing to send":                   {func(in *Input) { in.Status.Converging = dr.BacklogIdle }, dr.HealthNormal, ""},
		"warning: the last failover failed":         {func(in *Input) { in.Item.Failover = dr.FailoverFailed }, dr.HealthWarning, dr.CodeFailoverFailed},
		"warning: an error that heals by itself":    {agentSays(dr.CodeBackupJobBusy), dr.HealthWarning, dr.CodeBackupJobBusy},
		"warning: an error of a newer agent":        {agentSays("FromTheFuture"), dr.HealthWarning, "FromTheFuture"},
		"normal: being enabled":                     {func(in *Input) { in.Item.Protection = dr.Enabling; in.Connected = false }, dr.HealthNormal, ""},
		"normal: being disabled":                    {func(in *Input) { in.Item.Protection = dr.Disabling; in.Item.Resync = "x" }, dr.HealthNormal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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
			if len(errs) != 1 || errs[0].Code != c.code || errs[0].Severity != c.want {
				t.Fatalf("reasons %+v, want %s", errs, c.code)
			}
			if _, known := dr.Lookup(c.code); known && (errs[0].Message == "" || errs[0].Cause == "" || errs[0].Remedy == "") {
				t.Errorf("the reason does not explain itself: %+v", errs[0])
			}
			if strings.Contains(errs[0].Message, "%!") {
				t.Errorf("message %q", errs[0].Message)
			}
		})
	}
}

func TestAllReasonsAreGiven(t *testing.T) {
	t.Parallel()
	in := good()
	in.Item.Paused, in.Item.Resync, in.Connected, in.Status.Converging = true, "x", false, dr.NotConverging
	if h, errs := Assess(in); h != dr.HealthCritical || len(errs) != 4 {
		t.Errorf("%s %+v", h, errs)
	}
}

// TestResyncIsExplained: why, and when it begins.
func TestResyncIsExplained(t *testing.T) {
	t.Parallel()
	win, err := dr.ParseWindow("18:30-06:00")
	if err != nil {
		t.Fatal(err)
	}
	replaced, _ := dr.Lookup(dr.CodeDiskReplaced)
	for name, c := range map[string]struct {
		set    func(*Input)
		cause  string
		remedy string // part
	}{
		"reason as text":  {func(in *Input) { in.Item.Resync = "the bitmap is gone" }, "the bitmap is gone. It begins by itself.", "Wait until"},
		"reason as code":  {func(in *Input) { in.Status.ResyncReason = dr.CodeDiskReplaced }, replaced.Title + ". It begins by itself.", "Wait until"},
		"both":            {func(in *Input) { in.Item.Resync, in.Status.ResyncReason = "vda is now /b.qcow2", dr.CodeDiskReplaced }, replaced.Title + ". vda is now /b.qcow2. It begins by itself.", "Wait until"},
		"a code as text":  {func(in *Input) { in.Item.Resync, in.Status.ResyncReason = "DiskReplaced", dr.CodeDiskReplaced }, replaced.Title + ". It begins by itself.", "Wait until"},
		"an unknown code": {func(in *Input) { in.Status.ResyncReason = "FromTheFuture" }, "The replica can no longer be brought up to date by tracked changes alone. It begins by itself.", "Wait until"},
		"in a window, as the agent says": {func(in *Input) {
			in.Item.Resync, in.Policy.ResyncWindow, in.Status.NextResync = "x", win, now.Add(6*time.Hour+30*time.Minute)
		}, "x. It waits for its window, which opens 2026-11-22 18:30 UTC.", "start it now with Resynchronize"},
		"in a window, the agent silent": {func(in *Input) { in.Item.Resync, in.Policy.ResyncWindow = "x", win }, "x. It begins in its window, 18:30-06:00.", "start it now with Resynchronize"},
		"by hand":                       {func(in *Input) { in.Item.Resync, in.Policy.ResyncAuto = "x", dr.ResyncManual }, "x. It waits for an operator, as the policy says.", "Start it with Resynchronize"},
		"at once":                       {func(in *Input) { in.Item.Resync, in.Policy.ResyncAuto, in.Policy.ResyncWindow = "x", dr.ResyncNow, win }, "x. It begins by itself.", "Wait until"},
		"runs": {func(in *Input) {
			in.Item.Resync, in.Status.Phase, in.Status.Percent, in.Policy.ResyncAuto = "x", "resync", 43, dr.ResyncManual
		}, "x.", "Recovery points stay usable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := good()
			c.set(&in)
			_, errs := Assess(in)
			if len(errs) != 1 || errs[0].Cause != c.cause || !strings.Contains(errs[0].Remedy, c.remedy) {
				t.Errorf("%+v\nwant cause %q, remedy with %q", errs, c.cause, c.remedy)
			}
		})
	}
}

func TestNotConvergingNamesTheRates(t *testing.T) {
	t.Parallel()
	in := good()
	in.Status.Converging, in.Status.BacklogRate, in.Status.ShipRate, in.Status.BacklogBytes = dr.NotConverging, 30<<20, 900, 5<<30+1<<29
	_, errs := Assess(in)
	if len(errs) != 1 || errs[0].Message != "web1 changes 30 MiB/s and 900 bytes/s can be sent: 5.5 GiB wait." {
		t.Errorf("%+v", errs)
	}
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 1024: "1 KiB", 1000 << 10: "0.977 MiB", 1 << 62: "4 EiB", 1<<63 - 1: "8 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
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

// TestSeverity: what is Critical by the rules although it is tried again.
func TestSeverity(t *testing.T) {
	t.Parallel()
	for _, c := range []dr.Code{dr.CodeStoreUnreachable, dr.CodeStoreFull, dr.CodeStoreReadOnly, dr.CodeSpoolFull, dr.CodeNoSpace, dr.CodeVaultUnreachable, dr.CodeHypervisorDown} {
		if !CannotSend(c) || Severity(c) != dr.HealthCritical {
			t.Errorf("%s", c)
		}
	}
	for _, c := range []dr.Code{dr.CodeBackupJobBusy, dr.CodeVMNotRunning, dr.CodeHypervisorTimeout, dr.CodeGuestAgentMissing, "FromTheFuture", ""} {
		if CannotSend(c) || Severity(c) != dr.HealthWarning {
			t.Errorf("%s", c)
		}
	}
	for _, e := range dr.Catalogue() {
		if e.Retry == dr.NonRecoverable && Severity(e.Code) != dr.HealthCritical {
			t.Errorf("%s waits for an operator and is not Critical", e.Code)
		}
	}
}
