package vault_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/vault"
)

func (s *site) inventory(a *agent) {
	s.t.Helper()
	if err := a.sendInventory(); err != nil {
		s.t.Fatal(err)
	}
}

func TestDisksChange(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		gen := s.it().Gen
		disks := func(ids ...string) {
			vm := testVM()
			vm.ID, vm.Disks = vmUUID, nil
			for _, id := range ids {
				vm.Disks = append(vm.Disks, agentapi.Disk{ID: id, Size: 1 << 30})
			}
			s.src.addVM(vm)
			s.inventory(s.src)
		}
		disks("vda", "vdb")
		s.until("a new disk is a warning", func() bool {
			e, ok := s.reason(dr.CodeDiskNotReplicated)
			return ok && strings.Contains(e.Message, "vdb") && e.Remedy != ""
		})
		if got := s.detail().NewDisks; !slices.Equal(got, []string{"vdb"}) {
			t.Errorf("new disks %v", got)
		}
		_, err := w.vault().ChangeDisks(ctx, s.item, []string{"vda", "vdz"}, "olga")
		wantCode(t, err, dr.KindInvalid, "")
		_, err = w.vault().ChangeDisks(ctx, s.item, nil, "olga")
		wantCode(t, err, dr.KindInvalid, dr.CodeNoDisks)
		s.run(w.vault().ChangeDisks(ctx, s.item, []string{"vda", "vdb"}, "olga"))
		s.until("the disk is assigned", func() bool { return slices.Equal(s.assignment().Disks, []string{"vda", "vdb"}) })
		s.until("nobody has to decide", func() bool { _, ok := s.reason(dr.CodeDiskNotReplicated); return !ok })
		s.run(w.vault().ChangeDisks(ctx, s.item, []string{"vda"}, "olga")) // vdb is excluded now
		s.inventory(s.src)
		time.Sleep(150 * time.Millisecond)
		if _, ok := s.reason(dr.CodeDiskNotReplicated); ok || !slices.Equal(s.detail().Excluded, []string{"vdb"}) {
			t.Errorf("an excluded disk is asked for again: %+v", s.detail())
		}
		s.run(w.vault().ChangeDisks(ctx, s.item, []string{"vda", "vdb"}, "olga"))
		// A disk that is gone at the host leaves with the second report.
		disks("vda")
		if got := s.it().Disks; len(got) != 2 {
			t.Errorf("one report was enough: %v", got)
		}
		s.inventory(s.src)
		if got := s.it().Disks; !slices.Equal(got, []string{"vda"}) || !s.hasEvent("disks", "gone at the host") {
			t.Errorf("disks %v", got)
		}
		disks("vdx") // all of them: that is another matter
		s.inventory(s.src)
		if got := s.it().Disks; !slices.Equal(got, []string{"vda"}) {
			t.Errorf("disks %v", got)
		}
		if s.it().Gen != gen {
			t.Error("a change of disks took a new generation")
		}
	})
}

// TestVMMoves: a VM that another host of the site runs is replicated from there,
// with its history.
func TestVMMoves(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		last := s.newCut()
		key := must[vault.RegistrationKey](t)(w.vault().IssueKey(ctx, vault.KeyRequest{Fabric: "Primary"}))
		other := w.newAgent("src2", key, "source")
		vm := testVM()
		vm.ID = vmUUID
		other.addVM(vm)
		other.loop()
		s.inventory(other)
		s.inventory(other) // both have it: a migration under way, or a copy
		if s.it().SourceAgent != dr.AgentID(s.src.id) {
			t.Fatal("the replica was given away while the source has the VM")
		}
		s.src.mu.Lock()
		s.src.vms = map[string]*agentapi.VM{}
		s.src.mu.Unlock()
		s.inventory(s.src)
		s.inventory(other)
		if s.it().SourceAgent != dr.AgentID(s.src.id) {
			t.Fatal("one report was enough")
		}
		s.inventory(other)
		s.until("the replication goes on at the other host", func() bool {
			it := s.it()
			p := s.points()
			return it.SourceAgent == dr.AgentID(other.id) && it.Gen == 2 && p[0].Gen == 2 && p[1].N == last.N
		})
		if _, err := s.src.writeCut(s.machine, dr.CrashConsistent); dr.CodeOf(err) != dr.CodeGenerationFenced {
			t.Errorf("the old host still writes: %v", err)
		}
		if !s.hasEvent("takeover", "src2") {
			t.Error("nothing tells of the move")
		}
		s.until("the job has ended", func() bool { return s.it().Job == "" })
	})
}

// TestStoreMoves: the store is copied to another place, the vault's
// configuration changed, and everything goes on there.
func TestStoreMoves(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		s.newCut()
		w.stop()
		moved, n := mem.New(), 0
		err := w.bucket.List(ctx, "", func(i objstore.Info) error {
			raw, err := objstore.ReadAll(ctx, w.bucket, i.Key, 1<<30)
			if err != nil {
				return err
			}
			n++
			return moved.PutNew(ctx, i.Key, bytes.NewReader(raw), int64(len(raw)), nil)
		})
		if err != nil || n == 0 {
			t.Fatalf("copied %d objects: %v", n, err)
		}
		old := w.bucket
		w.bucket, w.faults = moved, &faulty{Bucket: moved}
		w.start(w.url())
		s.newCut()
		s.until("the new place has the point", func() bool { return len(s.points()) == 3 })
		if it := s.it(); it.Gen != 1 || it.Resync != "" {
			t.Errorf("generation %d, resynchronization %q", it.Gen, it.Resync)
		}
		after := 0
		if err := old.List(ctx, "", func(objstore.Info) error { after++; return nil }); err != nil || after != n {
			t.Errorf("the old place has %d objects, had %d (%v)", after, n, err)
		}
		// A place of somebody else is refused.
		w.stop()
		foreign, err := cut.GenerateVaultKey()
		if err != nil {
			t.Fatal(err)
		}
		empty := mem.New()
		if err := store.InitVault(ctx, empty, cut.VaultInfo{VaultID: "other", PublicKey: foreign.Public().Text(), Created: w.clock.now()}); err != nil {
			t.Fatal(err)
		}
		if err := w.tryStart(empty); dr.CodeOf(err) != dr.CodeKeyMismatch {
			t.Errorf("another vault's store: %v", err)
		}
	})
}

func TestConsistencyGroups(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		v := w.vault()
		const second = "22222222-2222-3333-4444-555555555555"
		vm := testVM()
		vm.ID, vm.Name = second, "db1"
		s.src.addVM(vm)
		s.inventory(s.src)
		s.run(v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: second, VM: second, Policy: "gold", By: "test"}))
		db := must[dr.ProtectedItem](t)(v.Item(ctx, s.primary.ID, second))
		_, err := v.CreateGroup(ctx, "shop", nil, "olga")
		wantCode(t, err, dr.KindInvalid, "")
		g := must[dr.ConsistencyGroup](t)(v.CreateGroup(ctx, "shop", []dr.ItemID{s.item, db.ID}, "olga"))
		_, err = v.CreateGroup(ctx, "SHOP", []dr.ItemID{s.item}, "olga")
		wantCode(t, err, dr.KindConflict, dr.CodeAlreadyExists)
		_, err = v.CreateGroup(ctx, "other", []dr.ItemID{s.item}, "olga")
		wantCode(t, err, dr.KindConflict, dr.CodeAlreadyExists)
		s.until("the group is assigned", func() bool {
			a := s.assignment()
			return a.Group != nil && a.Group.ID == string(g.ID) && slices.Contains(a.Group.Members, s.machine) && slices.Contains(a.Group.Members, string(db.Machine))
		})
		members := []dr.MachineID{dr.MachineID(s.machine), db.Machine}
		stamp := func(seq uint64) {
			s.src.mu.Lock()
			defer s.src.mu.Unlock()
			s.src.shape = func(c *cut.Commit) { c.Group = &cut.Group{ID: string(g.ID), Seq: seq, Members: members} }
		}
		s.until("the second VM is replicated", func() bool { return len(must[[]dr.RecoveryPoint](t)(v.Points(ctx, db.ID))) > 0 })
		stamp(1)
		a := s.newCut()
		b := must[agentapi.PointResult](t)(s.src.cut(string(db.Machine), dr.CrashConsistent))
		stamp(2)
		s.newCut() // the other member was not ready
		ps := must[[]vault.GroupPoint](t)(v.GroupPoints(ctx, g.ID))
		if len(ps) != 2 || ps[0].Seq != 2 || ps[0].Complete || !slices.Equal(ps[0].Missing, []dr.ItemID{db.ID}) ||
			!ps[1].Complete || ps[1].Points[s.item].N != a.N || ps[1].Points[db.ID].N != b.N || ps[1].Cut != 2 {
			t.Errorf("instants %+v", ps)
		}
		// A VM of another host can't be a member.
		key := must[vault.RegistrationKey](t)(v.IssueKey(ctx, vault.KeyRequest{Fabric: "Primary"}))
		other := w.newAgent("src2", key, "source")
		vm.ID, vm.Name = "33333333-2222-3333-4444-555555555555", "far"
		other.addVM(vm)
		other.loop()
		s.inventory(other)
		s.run(v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: "far", VM: dr.VMID(vm.ID), Policy: "gold", By: "test"}))
		far := must[dr.ProtectedItem](t)(v.Item(ctx, s.primary.ID, "far"))
		err = v.SetGroupMembers(ctx, g.ID, []dr.ItemID{s.item, far.ID}, "olga")
		if dr.KindOf(err) != dr.KindInvalid || !strings.Contains(err.Error(), "src1") || !strings.Contains(err.Error(), "src2") {
			t.Errorf("members of two hosts: %v", err)
		}
		if err := v.SetGroupMembers(ctx, g.ID, []dr.ItemID{s.item}, "olga"); err != nil {
			t.Fatal(err)
		}
		// A site that is purged takes its groups along.
		left := must[dr.ConsistencyGroup](t)(v.CreateGroup(ctx, "left", []dr.ItemID{far.ID}, "olga"))
		if err := v.DeleteGroup(ctx, g.ID, "olga"); err != nil {
			t.Fatal(err)
		}
		s.until("the group is gone", func() bool { return s.assignment().Group == nil })
		if got := must[[]dr.ConsistencyGroup](t)(v.Groups(ctx)); len(got) != 1 || got[0].ID != left.ID {
			t.Errorf("groups %v", got)
		}
		s.until("no job is active", func() bool {
			jobs, err := v.Jobs(ctx, vault.JobFilter{States: []dr.JobState{dr.JobInProgress, dr.JobNotStarted}})
			return err == nil && len(jobs) == 0
		})
		s.run(v.RemoveFabric(ctx, "Primary", true, "test"))
	})
}

// TestSeed: protection begins with what was brought in offline.
func TestSeed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		v := w.vault()
		const machine = dr.MachineID("77777777-0000-4000-8000-000000000000")
		seed := writeSeed(t, w, machine, 1<<30)
		writeSeed(t, w, "88888888-0000-4000-8000-000000000000", 2<<30)
		s.run(v.SavePolicy(ctx, dr.Policy{Name: "gold", CopyFrequency: 30 * time.Second, Retention: time.Hour}, true, "test"))
		if got := must[[]vault.Seed](t)(v.Seeds(ctx)); len(got) != 2 || got[0].Machine != machine || got[0].VMName != "web1" {
			t.Errorf("seeds %+v", got)
		}
		enable := func(seed dr.MachineID) (dr.JobID, error) {
			return v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: vmUUID, VM: vmUUID, Policy: "gold", Seed: seed, By: "test"})
		}
		_, err := enable("99999999-0000-4000-8000-000000000000")
		wantCode(t, err, dr.KindInvalid, dr.CodeSeedMismatch)
		_, err = enable("88888888-0000-4000-8000-000000000000")
		wantCode(t, err, dr.KindInvalid, dr.CodeSeedMismatch)
		if !strings.Contains(err.Error(), `"vda"`) || !strings.Contains(err.Error(), fmt.Sprint(2<<30)) {
			t.Errorf("the error does not name disk and size: %v", err)
		}
		s.run(enable(machine))
		it := must[dr.ProtectedItem](t)(v.Item(ctx, s.primary.ID, vmUUID))
		s.item, s.machine = it.ID, string(machine)
		if it.Machine != machine {
			t.Fatalf("machine %s", it.Machine)
		}
		s.until("protected", func() bool { return s.it().Protection == dr.Protected })
		a := s.assignment()
		if len(a.BaseDisks) != 1 || a.BaseDisks[0] != (agentapi.BaseDisk{ID: "vda", Size: 1 << 30}) {
			t.Errorf("disks of the seed %+v", a.BaseDisks)
		}
		if !a.Seeded || a.Base == nil || a.Base.Hash != seed.Hash.String() || a.Generation != 2 {
			t.Errorf("assignment %+v", a)
		}
		ps := s.points()
		if len(ps) != 1 || ps[0].N != seed.N+1 || ps[0].Gen != 2 {
			t.Errorf("points %+v: the seed itself is none", ps)
		}
		s.run(v.CheckConsistency(ctx, "Primary", "test"))
		s.newCut()
		if n := len(s.points()); n != 2 {
			t.Errorf("%d points", n)
		}
		if !s.detail().Seeded {
			t.Error("nothing says that it was seeded")
		}
	})
}

// writeSeed writes what an offline seeding leaves in the store.
func writeSeed(t *testing.T, w *world, m dr.MachineID, size int64) cut.Ref {
	t.Helper()
	ctx := t.Context()
	put := func(key string, raw []byte) {
		t.Helper()
		if err := w.bucket.PutNew(ctx, key, bytes.NewReader(raw), int64(len(raw)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.WriteGeneration(ctx, w.bucket, cut.GenInfo{Machine: m, Gen: 1, Reason: "seed", Time: w.clock.now()}); err != nil {
		t.Fatal(err)
	}
	key := cut.NewEpochKey()
	wrap, err := cut.SealEpochKey(w.key.Public(), m, 1<<12, key)
	if err != nil {
		t.Fatal(err)
	}
	put(cut.KeyObject(m, 1<<12), wrap)
	var buf bytes.Buffer
	wr, err := cut.NewWriter(&buf, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: m, Gen: 1, KeyEpoch: 1 << 12, Seed: true}, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := wr.Data(ctx, 0, 0, bytes.Repeat([]byte{7}, cut.Unit)); err != nil {
		t.Fatal(err)
	}
	sealed, err := wr.Close(&cut.Commit{Gen: 1, Time: w.clock.now(), Consistency: dr.CrashConsistent, Base: true, Seed: true,
		Disks: []cut.Disk{{ID: "vda", Size: size}}, VM: cut.VMRecord{Name: "web1", UUID: vmUUID}})
	if err != nil {
		t.Fatal(err)
	}
	put(cut.CutObject(m, 1, 0), buf.Bytes())
	return cut.Ref{Gen: 1, Hash: sealed.ChainHash}
}
