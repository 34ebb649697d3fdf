package agent

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// Everything that capture says reaches the vault.
func TestStatusIsComplete(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	a, _ := r.start()
	r.vault.assign(r.assignment(machineA, "vm-1", 3))
	eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
	at := func(n int) time.Time { return time.Date(2026, 11, 22, 0, n, 0, 0, time.UTC) }
	x := reps.last()
	x.sent(4711)
	x.set(capture.Status{
		Phase: capture.PhaseResync, Gen: 3, Percent: 1, BytesDone: 2, BytesTotal: 3, ETA: 4 * time.Second, Backlog: 5, Spooled: 6, Committed: cut.Ref{Gen: 3}, LastCut: at(7),
		Cycles: 8, Missed: 9, Resync: "ten", Err: dr.New(dr.KindExhausted, dr.CodeSpoolFull, "x", "full"), Since: at(11), RetryAt: at(12), Attempt: 13,
		BacklogSeconds: 14 * time.Second, DirtyRate: 15, ShipRate: 16, Converging: dr.NotConverging, ResyncReason: dr.CodeTrackingLost, NextResync: at(17), NextInitial: at(18),
		ConsistencyNote: "nineteen", Problem: dr.New(dr.KindPrecondition, dr.CodeDiskShrunk, "x", "shrunk"),
	})
	want := agentapi.ItemStatus{
		Machine: machineA, Generation: 3, Phase: "resync", Percent: 1, BytesDone: 2, BytesTotal: 3, ETASeconds: 4, BacklogBytes: 5, SpooledBytes: 6, LastCut: at(7), LastPoint: at(7),
		Cycles: 8, Missed: 9, Resync: "ten", Since: at(11), RetryAt: at(12), Attempt: 13, BacklogSeconds: 14, DirtyRate: 15, ShipRate: 16, Verdict: "notConverging",
		ResyncCode: string(dr.CodeTrackingLost), NextResync: at(17), NextInitial: at(18), ConsistencyNote: "nineteen", SentBytes: 4711,
	}
	got := a.Status()[0]
	if got.Error == nil || got.Error.Code != string(dr.CodeSpoolFull) {
		t.Errorf("error %+v", got.Error)
	}
	got.Error = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("status:\n got %+v\nwant %+v", got, want)
	}
	for i, v := 0, reflect.ValueOf(want); i < v.NumField(); i++ {
		if n := v.Type().Field(i).Name; v.Field(i).IsZero() && n != "Error" && n != "Disks" {
			t.Errorf("the test does not cover %s", n)
		}
	}
	// Without an error that stops it, what a part of it lacks is the error.
	x.set(capture.Status{Phase: capture.PhaseDelta, Problem: dr.New(dr.KindPrecondition, dr.CodeDiskShrunk, "x", "shrunk")})
	s := a.Status()[0]
	if s.Error == nil || s.Error.Code != string(dr.CodeDiskShrunk) || s.Since.IsZero() || s.Phase != "delta" {
		t.Errorf("a problem: %+v %+v", s, s.Error)
	}
	time.Sleep(time.Millisecond)
	if again := a.Status()[0]; !again.Since.Equal(s.Since) {
		t.Errorf("it began at %v and at %v", s.Since, again.Since)
	}
	x.set(capture.Status{Phase: capture.PhaseDelta})
	if s := a.Status()[0]; s.Error != nil || !s.Since.IsZero() {
		t.Errorf("solved: %+v", s)
	}
}

// sent stores something as a replicator does.
func (r *fakeReplicator) sent(n int64) { r.cfg.Sink.(counted).n.Add(n) }

// A VM that joins or leaves a group gets another replicator; commands that wait
// for the first one go on with the next.
func TestGroupChangesWhileCommandsWait(t *testing.T) {
	t.Parallel()
	r, _, reps := withSite(t)
	reps.ends = true
	a, _ := r.start()
	x := r.assignment(machineA, "vm-1", 1)
	r.vault.assign(x)
	eventually(t, "replication", func() bool { return reps.count(machineA) == 1 })
	first := reps.last()
	if first.cfg.Group != nil || first.cfg.Turns == nil || first.cfg.Digests == nil {
		t.Errorf("configuration %+v", first.cfg)
	}
	p := agentapi.MachinePayload{Machine: machineA, Generation: 1}
	r.vault.command("await", agentapi.CmdAwaitInitial, p)
	eventually(t, "it waits", func() bool {
		r.vault.mu.Lock()
		defer r.vault.mu.Unlock()
		return len(r.vault.reports["await"]) > 0
	})
	x.Group = &agentapi.Group{ID: "g", Members: []string{machineA}}
	r.vault.assign(x)
	eventually(t, "another replicator", func() bool { return reps.last() != first && reps.count(machineA) == 1 })
	if reps.last().cfg.Group == nil {
		t.Error("it has no group")
	}
	if got := reps.last().assigned(); len(got) != 1 || got[0].VM != "vm-1" {
		t.Errorf("assigned %+v", got)
	}
	close(reps.initial)
	var pt agentapi.PointResult
	if f := r.vault.final("await"); f.State != stateDone || json.Unmarshal(f.Result, &pt) != nil || pt.N != 3 {
		t.Errorf("await: %+v %+v", f, f.Error)
	}
	reps.mu.Lock()
	if reps.most != 1 {
		t.Errorf("%d replicators of one machine ran at once", reps.most)
	}
	reps.mu.Unlock()
	// Another member does not make a third one.
	second := reps.last()
	x.Group = &agentapi.Group{ID: "g", Members: []string{machineA, machineB}}
	r.vault.assign(x, r.assignment(machineB, "vm-2", 1))
	eventually(t, "the other VM", func() bool { return reps.count(machineB) == 1 })
	if len(second.assigned()) != 2 || reps.count(machineA) != 1 {
		t.Errorf("assigned %d times", len(second.assigned()))
	}
	x.Group = nil
	r.vault.assign(x)
	eventually(t, "a replicator without a group", func() bool { l := reps.last(); return l.cfg.Machine == machineA && l != second && l.cfg.Group == nil })
	if s := a.Status(); len(s) != 1 {
		t.Errorf("status %+v", s)
	}
}
