package vault_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
	"holdfast/internal/vault"
	"holdfast/internal/vaultdb"
)

func (s *site) assignment() agentapi.Assignment {
	s.src.mu.Lock()
	defer s.src.mu.Unlock()
	return s.src.assigned[s.machine]
}

func (s *site) detail() vault.Detail {
	s.t.Helper()
	return must[vault.Detail](s.t)(s.vault().Detail(s.t.Context(), s.item))
}

func (s *site) hasEvent(kind, text string) bool {
	s.t.Helper()
	return slices.ContainsFunc(must[[]eventRow](s.t)(events(s.world, "")), func(e eventRow) bool { return e.Kind == kind && strings.Contains(e.Text, text) })
}

// reason finds a reason for the item's health.
func (s *site) reason(code dr.Code) (dr.HealthError, bool) {
	s.t.Helper()
	for _, e := range s.it().HealthErrors {
		if e.Code == code {
			return e, true
		}
	}
	return dr.HealthError{}, false
}

func (s *site) status(st agentapi.ItemStatus) {
	s.t.Helper()
	st.Machine, st.Generation = s.machine, uint32(s.it().Gen)
	if err := s.src.post(agentapi.PathStatus, agentapi.StatusRequest{Items: []agentapi.ItemStatus{st}}, nil); err != nil {
		s.t.Fatal(err)
	}
}

func parseWindow(t *testing.T, text string) dr.Window {
	t.Helper()
	return must[dr.Window](t)(dr.ParseWindow(text))
}

func TestPolicyReachesTheAgent(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		if a := s.assignment(); a.Resync.Mode != "now" || a.Bandwidth != nil || a.Seeded || a.Initial.Window != "" {
			t.Errorf("assignment of a plain policy: %+v", a)
		}
		p := dr.Policy{Name: "gold", CopyFrequency: 30 * time.Second, Retention: time.Hour, RetainHourly: 24 * time.Hour, ResyncWindow: parseWindow(t, "18:30-06:00"),
			ResyncThreshold: 0.25, InitialMode: dr.InitialSerial, InitialWindow: parseWindow(t, "22:00-04:00"), InitialPriority: 3, Compression: dr.CompressionFast,
			StartTime: "2026-12-01T22:00:00+01:00",
			Bandwidth: []dr.BandwidthRule{{Window: parseWindow(t, "Mon-Fri 08:00-18:00"), BytesPerSecond: 1 << 20}, {BytesPerSecond: 5 << 20}}}
		s.run(w.vault().SavePolicy(ctx, p, false, "test"))
		s.until("the new settings are assigned", func() bool { return s.assignment().Resync.Window != "" })
		a := s.assignment()
		if a.Resync != (agentapi.Resync{Mode: "window", Window: "18:30-06:00", Threshold: 0.25}) || a.Compression != "fast" || len(a.Bandwidth.Rules) != 2 ||
			a.Bandwidth.Rules[0] != (agentapi.BandwidthRule{Window: "Mon-Fri 08:00-18:00", BytesPerSecond: 1 << 20}) || a.Bandwidth.Group == "" ||
			!a.Initial.NotBefore.Equal(time.Date(2026, 12, 1, 21, 0, 0, 0, time.UTC)) || !a.Initial.Serial || a.Initial.Priority != 3 || a.Initial.Window != "22:00-04:00" {
			t.Errorf("assignment %+v, bandwidth %+v", a, a.Bandwidth)
		}
		for setting, change := range map[string]func(*dr.Policy){
			"daily retention": func(p *dr.Policy) { p.RetainDaily = time.Hour },
			"threshold":       func(p *dr.Policy) { p.ResyncThreshold = 2 },
			"compression":     func(p *dr.Policy) { p.Compression = "gzip" },
			"bandwidth rule":  func(p *dr.Policy) { p.Bandwidth = []dr.BandwidthRule{{BytesPerSecond: 1}} },
			"priority":        func(p *dr.Policy) { p.InitialPriority = 11 },
			"start time":      func(p *dr.Policy) { p.StartTime = "noon" },
		} {
			bad := p
			change(&bad)
			_, err := w.vault().SavePolicy(ctx, bad, false, "test")
			wantCode(t, err, dr.KindInvalid, dr.CodePolicyInvalid)
			if !strings.Contains(err.Error(), setting) {
				t.Errorf("the error does not name %q: %v", setting, err)
			}
		}
	})
}

func TestPauseResumeRetry(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		v := w.vault()
		err := v.Pause(ctx, s.item, vault.PauseRequest{Paused: true, ResumeAt: w.clock.now().Add(-time.Second)})
		wantCode(t, err, dr.KindInvalid, "")
		end := w.clock.now().Add(time.Hour).UTC().Truncate(time.Second)
		if err := v.Pause(ctx, s.item, vault.PauseRequest{Paused: true, Reason: "patch day", ResumeAt: end, By: "olga"}); err != nil {
			t.Fatal(err)
		}
		s.until("the pause is assigned", func() bool {
			a := s.assignment()
			return a.Paused && a.PauseReason == "patch day" && a.ResumeAt.Equal(end)
		})
		s.until("the pause is a reason", func() bool {
			e, ok := s.reason(dr.CodePaused)
			return ok && strings.Contains(e.Cause, "patch day") && s.healthOf(s.item) == dr.HealthWarning
		})
		wantCode(t, v.RetryNow(ctx, s.item, "olga"), dr.KindPrecondition, dr.CodeOperationNotAllowed)
		w.restart() // the end of a pause is no timer in memory
		if !s.it().Paused {
			t.Fatal("the pause ended early")
		}
		w.clock.add(time.Hour + time.Second)
		s.until("the pause ends by itself", func() bool { return !s.it().Paused && !s.assignment().Paused })
		if d := s.detail(); d.PauseReason != "" || !d.ResumeAt.IsZero() || !s.hasEvent("pause", "goes on") || !s.hasEvent("pause", "patch day") {
			t.Errorf("after the pause: %+v", d)
		}
		if err := w.vault().RetryNow(ctx, s.item, "olga"); err != nil {
			t.Fatal(err)
		}
		s.until("the retry is assigned", func() bool { return s.assignment().RetryNow != "" })
		s.status(agentapi.ItemStatus{Phase: "error", Error: &agentapi.Error{Kind: "precondition", Code: string(dr.CodeDiskShrunk), Message: "disk vda shrank"}, Since: w.clock.now(), Attempt: 2})
		s.until("a disk that shrank is critical", func() bool {
			e, ok := s.reason(dr.CodeDiskShrunk)
			return ok && e.Message == "disk vda shrank" && s.healthOf(s.item) == dr.HealthCritical
		})
	})
}

// TestResyncAxis follows a resynchronization that the agent needs, and one that
// the vault wants, over a restart.
func TestResyncAxis(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		opens := w.clock.now().Add(3 * time.Hour).UTC().Truncate(time.Second)
		s.status(agentapi.ItemStatus{Phase: "delta", Resync: "the bitmap is gone", ResyncCode: string(dr.CodeTrackingLost), NextResync: opens, DirtyRate: 10, ShipRate: 5,
			Verdict: "notConverging", BacklogSeconds: 7, NextInitial: opens, ConsistencyNote: "no agent", SentBytes: 9, Disks: []string{"vda"}})
		s.until("the agent's reason is critical", func() bool {
			e, ok := s.reason(dr.CodeResyncRequired)
			return ok && strings.Contains(e.Cause, "the bitmap is gone") && strings.Contains(e.Cause, opens.Format("15:04")) && s.healthOf(s.item) == dr.HealthCritical
		})
		st := must[dr.ReplicationStatus](t)(w.vault().Status(ctx, s.item))
		if st.ResyncReason != dr.CodeTrackingLost || !st.NextResync.Equal(opens) || st.Converging != dr.NotConverging || st.BacklogRate != 10 || st.ShipRate != 5 || st.BacklogSeconds != 7*time.Second {
			t.Errorf("status %+v", st)
		}
		if d := s.detail(); d.ResyncText != "the bitmap is gone" || !d.NextInitial.Equal(opens) || d.SentBytes != 9 || len(d.CutDisks) != 1 {
			t.Errorf("detail %+v", d)
		}
		s.status(agentapi.ItemStatus{Phase: "delta"})
		s.until("the reason is cleared", func() bool { return s.it().Resync == "" && s.healthOf(s.item) == dr.HealthNormal })

		// The policy says manual: what the vault wants waits for somebody.
		p := must[dr.Policy](t)(w.vault().Policy(ctx, "gold"))
		p.ResyncAuto = dr.ResyncManual
		s.run(w.vault().SavePolicy(ctx, p, false, "test"))
		want := vaultdb.Want{Code: dr.CodeLogSequence, Text: "cut 5 does not fit", Full: true}
		if err := w.vault().Want(ctx, s.item, want); err != nil {
			t.Fatal(err)
		}
		s.status(agentapi.ItemStatus{Phase: "delta"}) // the agent does not know of it
		if it := s.it(); it.Resync != want.Text {
			t.Errorf("the item shows %q", it.Resync)
		}
		w.restart()
		time.Sleep(200 * time.Millisecond)
		if s.assignment().ResyncRequest != "" {
			t.Error("a resynchronization began against the policy")
		}
		s.run(w.vault().ResyncWith(ctx, s.item, vault.ResyncOptions{Full: true}, "test"))
		s.until("the request is assigned", func() bool {
			a := s.assignment()
			return a.ResyncRequest != "" && a.Full == a.ResyncRequest && a.ResyncFull && a.ResyncReason == ""
		})
		w.clock.add(time.Second)
		s.newCut() // an ordinary one does not end it
		if s.it().Resync == "" {
			t.Error("an ordinary cut ended a resynchronization")
		}
		s.src.mu.Lock()
		s.src.shape = func(c *cut.Commit) { c.Resync, c.Base = true, true }
		s.src.mu.Unlock()
		s.newCut()
		if it := s.it(); it.Resync != "" || s.detail().ResyncCode != "" {
			t.Errorf("the resynchronization is done and the item shows %q, %+v", it.Resync, s.detail())
		}
		// By window: it is asked for when that opens.
		now := w.clock.now().Local()
		p.ResyncAuto, p.ResyncWindow = dr.ResyncInWindow, parseWindow(t, fmt.Sprintf("%s-%s", now.Add(2*time.Hour).Format("15:04"), now.Add(4*time.Hour).Format("15:04")))
		s.run(w.vault().SavePolicy(ctx, p, false, "test"))
		before := s.assignment().ResyncRequest
		if err := w.vault().Want(ctx, s.item, vaultdb.Want{Code: dr.CodeLogSequence, Text: "again"}); err != nil {
			t.Fatal(err)
		}
		if d := s.detail(); !d.NextResync.After(w.clock.now()) {
			t.Errorf("the window's opening is not shown: %+v", d)
		}
		time.Sleep(200 * time.Millisecond)
		if s.assignment().ResyncRequest != before {
			t.Error("a resynchronization began outside its window")
		}
		w.clock.add(2*time.Hour + time.Minute)
		s.until("it is asked for in the window", func() bool { return s.assignment().ResyncRequest != before })
		if a := s.assignment(); a.ResyncReason != string(dr.CodeLogSequence) || a.ResyncFull {
			t.Errorf("the request says %q, full %v", a.ResyncReason, a.ResyncFull)
		}
	})
}

func TestDigests(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		p := s.newCut()
		ref := agentapi.CutRef{Generation: p.Generation, N: p.N, Hash: p.Hash}
		ask := func(a *agent, change func(*agentapi.DigestRequest)) (out agentapi.DigestResponse, err error) {
			r := agentapi.DigestRequest{Machine: s.machine, Generation: 1, At: ref, Count: 16}
			if change != nil {
				change(&r)
			}
			return out, a.post(agentapi.PathDigests, r, &out)
		}
		got := must[agentapi.DigestResponse](t)(ask(s.src, nil))
		if len(got.Roots) != 16 || got.Roots[0].Zero || !got.Roots[1].Zero || len(got.Roots[0].Key) != 32 || len(got.Roots[0].Root) != 32 {
			t.Fatalf("roots %+v", got.Roots)
		}
		blocks := must[agentapi.DigestResponse](t)(ask(s.src, func(r *agentapi.DigestRequest) { r.Blocks = true }))
		sums := make([][16]byte, len(blocks.Blocks)/16)
		for i := range sums {
			copy(sums[i][:], blocks.Blocks[i*16:])
		}
		var key cut.DigestKey
		copy(key[:], blocks.Key)
		if root := key.Root(sums); len(sums) != 1024 || !bytes.Equal(root[:], got.Roots[0].Root) || !bytes.Equal(blocks.Key, got.Roots[0].Key) {
			t.Error("blocks and root of a tile do not fit together")
		}
		_, err := ask(s.dst, nil)
		wantCode(t, err, dr.KindFenced, dr.CodeGenerationFenced)
		_, err = ask(s.src, func(r *agentapi.DigestRequest) { r.Generation = 2 })
		wantCode(t, err, dr.KindFenced, dr.CodeGenerationFenced)
		_, err = ask(s.src, func(r *agentapi.DigestRequest) { r.Count = 257 })
		wantCode(t, err, dr.KindInvalid, "")
		_, err = ask(s.src, func(r *agentapi.DigestRequest) { r.Count = 0 })
		wantCode(t, err, dr.KindInvalid, "")
		_, err = ask(s.src, func(r *agentapi.DigestRequest) { r.At.Hash = strings.Repeat("0", 64) })
		wantCode(t, err, dr.KindConflict, dr.CodeObjectConflict)
		_, err = ask(s.src, func(r *agentapi.DigestRequest) { r.Disk = 7 })
		wantCode(t, err, dr.KindNotFound, dr.CodeNotFound)
		if _, err = ask(s.src, func(r *agentapi.DigestRequest) { r.At.N = 99 }); err == nil {
			t.Error("digests of a cut that does not exist")
		}
		leases := 0
		if err := w.bucket.List(ctx, cut.LeasePrefix(dr.MachineID(s.machine)), func(objstore.Info) error { leases++; return nil }); err != nil || leases == 0 {
			t.Errorf("%d leases while digests are read (%v)", leases, err)
		}
	})
}

// TestMaintenance: points expire as the policy says, what is named, held or
// served stays, and the catalogue follows.
func TestMaintenance(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		cutAfter := func(d time.Duration) dr.RecoveryPoint {
			t.Helper()
			w.clock.add(d)
			r := s.newCut()
			return dr.RecoveryPoint{Gen: dr.Generation(r.Generation), N: r.N}
		}
		for range 3 {
			cutAfter(time.Minute)
		}
		named, held := cutAfter(time.Minute), cutAfter(time.Minute)
		if err := w.vault().NamePoint(ctx, s.item, named.Name(), "before the upgrade", false, "olga"); err != nil {
			t.Fatal(err)
		}
		wantCode(t, w.vault().NamePoint(ctx, s.item, held.Name(), "Before the Upgrade", false, "olga"), dr.KindConflict, dr.CodeAlreadyExists)
		if err := w.vault().NamePoint(ctx, s.item, held.Name(), "", true, "olga"); err != nil {
			t.Fatal(err)
		}
		served := cutAfter(time.Minute)
		s.until("the recovery host is heard of again", func() bool {
			p, err := w.vault().Provider(ctx, "", dr.AgentID(s.dst.id))
			return err == nil && w.vault().Connected(p)
		})
		s.run(w.vault().StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindTestFailover, Point: served.Name(), By: "test"}))
		leases := 0
		if err := w.bucket.List(ctx, cut.LeasePrefix(dr.MachineID(s.machine)), func(objstore.Info) error { leases++; return nil }); err != nil || leases == 0 {
			t.Errorf("%d leases while a point is served (%v)", leases, err)
		}
		for range 4 {
			cutAfter(time.Minute)
		}
		w.clock.add(90 * time.Minute)
		// While replication stands still nothing expires.
		s.run(w.vault().Maintain(ctx, s.item, "test"))
		if got := len(s.points()); got != 11 {
			t.Fatalf("%d points, want 11", got)
		}
		newest := []string{cutAfter(0).Name(), cutAfter(time.Minute).Name()}
		plan := must[[]vault.Planned](t)(w.vault().PlanMaintenance(ctx, s.item))
		kept := map[string]string{}
		for _, p := range plan {
			if p.Keep != "" {
				kept[p.Point.Name()] = p.Keep
			}
		}
		if len(plan) != 13 || len(kept) != 5 || kept[named.Name()] != "named by olga" || kept[held.Name()] != "held by olga" || !strings.Contains(kept[served.Name()], "test failover") {
			t.Errorf("%d points, plan %v", len(plan), kept)
		}
		j := s.run(w.vault().Maintain(ctx, s.item, "test"))
		if j.Outcome["expired"] == "0" {
			t.Errorf("outcome %v", j.Outcome)
		}
		var names []string
		for _, p := range must[[]vault.PointDetail](t)(w.vault().PointDetails(ctx, s.item)) {
			names = append(names, p.Name())
			switch p.Name() {
			case named.Name():
				if p.Label != "before the upgrade" || p.Held || p.By != "olga" {
					t.Errorf("named point %+v", p)
				}
			case held.Name():
				if !p.Held {
					t.Errorf("held point %+v", p)
				}
			}
		}
		if want := []string{newest[1], newest[0], served.Name(), held.Name(), named.Name()}; !slices.Equal(names, want) {
			t.Errorf("points %v, want %v", names, want)
		}
		rows := must[[]vaultdb.Point](t)(vaultdb.Points(ctx, w.db.SQL(), dr.MachineID(s.machine), 0))
		if len(rows) >= 13 {
			t.Errorf("%d points are on the catalogue", len(rows))
		}
		// Every point that is kept opens, and one that has expired is refused by name.
		keys := store.NewKeyring(w.bucket, w.key)
		st := store.New(store.Config{Bucket: w.bucket, Keys: keys})
		for _, p := range s.points() {
			v, err := st.OpenPoint(ctx, p.Machine, p.Gen, p.N)
			if err != nil {
				t.Errorf("point %s: %v", p.Name(), err)
				continue
			}
			v.Close()
		}
		_, err := w.vault().StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindUnplannedFailover, Point: dr.PointName(1, 1)})
		wantCode(t, err, dr.KindNotFound, dr.CodeNotFound)
		up := must[vault.UpkeepStatus](t)(w.vault().UpkeepStatus(ctx, s.item))
		if up.LastPass.IsZero() || up.PassError != nil || up.Objects == 0 || up.Points != len(rows) || up.StoredBytes == 0 || up.PassAsked {
			t.Errorf("status %+v", up)
		}
		s.run(w.vault().CleanupTest(ctx, s.item, "", "test"))
		if err := w.vault().NamePoint(ctx, s.item, held.Name(), "", false, "olga"); err != nil {
			t.Fatal(err)
		}
		s.until("a pass is made because the holds changed", func() bool { return len(s.points()) == 3 && s.hasEvent("maintenance", "expired") })
	})
}

// TestScrub: damage is found, told, and asks for new good points.
func TestScrub(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		good := s.points()[0]
		bad := s.newCut()
		s.newCut()
		s.run(w.vault().Scrub(ctx, s.item, "test"))
		up := must[vault.UpkeepStatus](t)(w.vault().UpkeepStatus(ctx, s.item))
		if up.LastScrub.IsZero() || len(up.Damaged) != 0 || up.ScrubObjects != 3 || up.ScrubBytes == 0 {
			t.Fatalf("status %+v", up)
		}
		key := cut.CutObject(dr.MachineID(s.machine), dr.Generation(bad.Generation), bad.N)
		flip(t, w.bucket, key)
		j := s.run(w.vault().Scrub(ctx, s.item, "test"))
		if j.Outcome["damagedPoints"] != "2" {
			t.Errorf("outcome %v", j.Outcome)
		}
		up = must[vault.UpkeepStatus](t)(w.vault().UpkeepStatus(ctx, s.item))
		if len(up.Damaged) != 2 || up.Damaged[0].Point != dr.PointName(dr.Generation(bad.Generation), bad.N) || !strings.Contains(up.Damaged[0].Text, key) {
			t.Errorf("damage %+v", up.Damaged)
		}
		s.until("the damage is critical", func() bool {
			e, ok := s.reason(dr.CodeStoreDamaged)
			return ok && e.Severity == dr.HealthCritical && strings.Contains(e.Remedy, good.Name()) && strings.Contains(e.Remedy, "resynchronization")
		})
		s.until("everything is asked for again", func() bool { a := s.assignment(); return a.Full != "" && a.Full == a.ResyncRequest })
		if d := s.detail(); d.ResyncCode != dr.CodeStoreDamaged || !s.hasEvent("scrub", key) {
			t.Errorf("detail %+v", d)
		}
		// It comes: the newest point is whole, what can't be made good is only a warning.
		w.clock.add(time.Minute)
		s.src.mu.Lock()
		s.src.shape = func(c *cut.Commit) { c.Resync, c.Base = true, true }
		s.src.mu.Unlock()
		s.newCut()
		s.until("the resynchronization has made it good", func() bool {
			e, ok := s.reason(dr.CodeStoreDamaged)
			return ok && e.Severity == dr.HealthWarning && s.detail().ResyncCode == ""
		})
		w.clock.add(8 * 24 * time.Hour)
		s.until("a scrub is made every week", func() bool {
			up := must[vault.UpkeepStatus](t)(w.vault().UpkeepStatus(ctx, s.item))
			return w.clock.now().Sub(up.LastScrub) < time.Hour
		})
	})
}

// flip damages an object, which no bucket allows anybody but a test.
func flip(t *testing.T, b objstore.Bucket, key string) {
	t.Helper()
	raw := must[[]byte](t)(objstore.ReadAll(t.Context(), b, key, 1<<30))
	raw[len(raw)/2] ^= 1
	if err := b.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	if err := b.PutNew(t.Context(), key, bytes.NewReader(raw), int64(len(raw)), &sum); err != nil {
		t.Fatal(err)
	}
}

func TestAnomaly(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		share := 0.1
		s.src.mu.Lock()
		s.src.shape = func(c *cut.Commit) {
			c.Stats = cut.Stats{DirtyBytes: 200 << 20, DataBytes: 200 << 20, IncompressibleBytes: int64(share * (200 << 20))}
		}
		s.src.mu.Unlock()
		for range 60 {
			w.clock.add(30 * time.Minute)
			s.newCut()
		}
		good := s.points()[0]
		s.src.mu.Lock()
		share = 0.97
		s.src.mu.Unlock()
		first := s.newCut()
		for range 3 {
			w.clock.add(time.Minute)
			s.newCut()
		}
		a := must[*vault.Anomaly](t)(w.vault().Anomaly(ctx, s.item))
		if a == nil || a.Good != good.Name() || a.Since != dr.PointName(dr.Generation(first.Generation), first.N) {
			t.Fatalf("alarm %+v, want the last good point %s", a, good.Name())
		}
		s.until("the alarm is a reason", func() bool {
			e, ok := s.reason(dr.CodeAnomaly)
			return ok && e.Severity == dr.HealthWarning && strings.Contains(e.Message, good.Name())
		})
		for _, p := range must[[]vault.PointDetail](t)(w.vault().PointDetails(ctx, s.item)) {
			if p.Suspect != (p.N >= first.N) {
				t.Errorf("point %s: suspect %v", p.Name(), p.Suspect)
			}
		}
		// The last good point outlives its retention of an hour.
		w.clock.add(3 * time.Hour)
		s.newCut()
		if !slices.ContainsFunc(s.points(), func(p dr.RecoveryPoint) bool { return p.Name() == good.Name() }) {
			t.Error("the last good point has expired")
		}
		if err := w.vault().AcknowledgeAnomaly(ctx, s.item, "olga"); err != nil {
			t.Fatal(err)
		}
		wantCode(t, w.vault().AcknowledgeAnomaly(ctx, s.item, "olga"), dr.KindPrecondition, dr.CodeOperationNotAllowed)
		s.until("the alarm is over", func() bool { _, ok := s.reason(dr.CodeAnomaly); return !ok })
		for range 3 {
			s.newCut()
		}
		if a := must[*vault.Anomaly](t)(w.vault().Anomaly(ctx, s.item)); a != nil {
			t.Errorf("an accepted burst raises an alarm again: %+v", a)
		}
	})
}

// TestDrillChecksKeys: a key that no longer opens is found by a test failover,
// whatever is still in memory, and does not hold up a real one that does not need it.
func TestDrillChecksKeys(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		m := dr.MachineID(s.machine)
		foreign, err := cut.GenerateVaultKey()
		if err != nil {
			t.Fatal(err)
		}
		replace := func(epoch uint32) {
			wrap, err := cut.SealEpochKey(foreign.Public(), m, epoch, cut.NewEpochKey())
			if err != nil {
				t.Fatal(err)
			}
			key := cut.KeyObject(m, epoch)
			if err := w.bucket.Delete(ctx, key); err != nil {
				t.Fatal(err)
			}
			if err := w.bucket.PutNew(ctx, key, bytes.NewReader(wrap), int64(len(wrap)), nil); err != nil {
				t.Fatal(err)
			}
		}
		s.run(s.failover(dr.KindTestFailover)) // the keys are in memory
		s.run(w.vault().CleanupTest(ctx, s.item, "", "test"))
		replace(1<<12 + 7)
		j := s.expect(dr.JobFailed, fst(s.failover(dr.KindTestFailover)), nil)
		if j.Errors[0].Code != dr.CodeKeyMismatch || !strings.Contains(j.Errors[0].Message, w.key.KeyID().String()) {
			t.Errorf("errors %+v", j.Errors)
		}
		j = s.run(s.failover(dr.KindUnplannedFailover))
		if !strings.Contains(j.Outcome["keys"], w.key.KeyID().String()) {
			t.Errorf("outcome %v", j.Outcome)
		}
		s.run(w.vault().CancelFailover(ctx, s.item, "test"))
		replace(1 << 12)
		j = s.expect(dr.JobFailed, fst(w.vault().StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindUnplannedFailover, Point: dr.PointName(1, 0)})), nil)
		if !slices.ContainsFunc(j.Errors, func(e dr.JobError) bool { return e.Code == dr.CodeKeyMismatch }) {
			t.Errorf("errors %+v", j.Errors)
		}
	})
}

func TestStatistics(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		v := w.vault()
		if err := v.SetMonitoringInterval(ctx, vault.Interval{Length: 5 * time.Hour}, "olga"); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("an interval of five hours: %v", err)
		}
		iv := vault.Interval{Length: 7 * 24 * time.Hour}
		if err := v.SetMonitoringInterval(ctx, iv, "olga"); err != nil {
			t.Fatal(err)
		}
		s.status(agentapi.ItemStatus{Phase: "delta", Missed: 3})
		base := s.detail().Statistics
		s.newCut()
		s.newCut()
		s.status(agentapi.ItemStatus{Phase: "delta", Missed: 5})
		s.status(agentapi.ItemStatus{Phase: "delta", Missed: 5})
		s.status(agentapi.ItemStatus{Phase: "delta", Missed: 1, // the agent has restarted
			Error: &agentapi.Error{Kind: "unavailable", Code: string(dr.CodeStoreUnreachable), Message: "x"}, Since: w.clock.now()})
		st := s.detail().Statistics
		if st.Success != base.Success+2 || st.Miss != 3 || st.NetworkFailures != 1 || st.Failures != 0 || st.Bytes <= base.Bytes || st.MaxBytes == 0 || st.Puts != base.Puts+2 {
			t.Errorf("statistics %+v, before %+v", st, base)
		}
		if got := must[vault.Interval](t)(v.MonitoringInterval(ctx)); got != iv {
			t.Errorf("interval %+v", got)
		}
		w.clock.add(7 * 24 * time.Hour)
		if st := s.detail().Statistics; st.Success != 0 || st.Miss != 0 {
			t.Errorf("statistics of the next interval %+v", st)
		}
	})
}

// TestTwoVaultsMaintainOneStore: the second one stops and says so.
func TestTwoVaultsMaintainOneStore(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		for range 4 {
			w.clock.add(5 * time.Minute)
			s.newCut()
		}
		// A restored copy of this vault has just expired points in the same store.
		keys := store.NewKeyring(w.bucket, w.key)
		other := compact.New(compact.Config{Bucket: w.bucket, Store: store.New(store.Config{Bucket: w.bucket, Keys: keys}), Keys: keys, Compactor: "copy/elsewhere", BaseEvery: 1, Now: w.clock.now})
		if r := must[compact.Report](t)(other.Maintain(ctx, dr.MachineID(s.machine), compact.Rules{Fine: 8 * time.Minute})); r.Runs == 0 {
			t.Fatalf("the other vault did nothing: %+v", r)
		}
		w.clock.add(10 * time.Minute)
		s.newCut()
		j := s.expect(dr.JobFailed, fst(w.vault().Maintain(ctx, s.item, "test")), nil)
		if len(j.Errors) != 1 || j.Errors[0].Code != dr.CodeCompactorConflict {
			t.Errorf("errors %+v", j.Errors)
		}
		s.until("the conflict is critical", func() bool {
			e, ok := s.reason(dr.CodeCompactorConflict)
			return ok && e.Severity == dr.HealthCritical && e.Remedy != "" && s.healthOf(s.item) == dr.HealthCritical
		})
		up := must[vault.UpkeepStatus](t)(w.vault().UpkeepStatus(ctx, s.item))
		if up.PassError == nil || up.NextAttempt.IsZero() || !s.hasEvent("maintenance", "failed") {
			t.Errorf("status %+v", up)
		}
		w.clock.add(2 * time.Hour) // the other one is gone
		s.until("this vault takes over", func() bool {
			up := must[vault.UpkeepStatus](t)(w.vault().UpkeepStatus(ctx, s.item))
			_, ok := s.reason(dr.CodeCompactorConflict)
			return up.PassError == nil && !ok
		})
	})
}

// TestEngineStory is the transcript of what happens to a replication that is
// not failed over: it must be the same whenever the vault is restarted.
func TestEngineStory(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) { engineStory(t, w, func() {}) })
}

func TestEngineStoryWithRestarts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) { engineStory(t, w, w.restart) })
}

func engineStory(t *testing.T, w *world, between func()) {
	ctx := t.Context()
	s := scene(t, w)
	s.protect()
	tr := &transcript{s: s}
	step := func(what string, gen dr.Generation) {
		t.Helper()
		s.until(what+": settled", func() bool { it := s.it(); return it.Job == "" && it.Gen == gen && s.points()[0].Gen == gen })
		it, d := s.it(), s.detail()
		fmt.Fprintf(&tr.b, "%-34s gen=%d disks=%s excluded=%s paused=%v(%s) resync=%q code=%s\n", what, it.Gen, strings.Join(it.Disks, ","), strings.Join(d.Excluded, ","),
			it.Paused, d.PauseReason, it.Resync, d.ResyncCode)
		between()
	}
	v := func() *vault.Vault { return w.vault() }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	step("protected", 1)
	check(v().Pause(ctx, s.item, vault.PauseRequest{Paused: true, Reason: "patch day", By: "olga"}))
	step("paused", 1)
	check(v().Pause(ctx, s.item, vault.PauseRequest{By: "olga"}))
	step("resumed", 1)
	s.status(agentapi.ItemStatus{Phase: "delta", ResyncCode: string(dr.CodeHostCrash)})
	step("host crashed", 1)
	s.status(agentapi.ItemStatus{Phase: "resync", Resync: "tracker not closed", ResyncCode: string(dr.CodeHostCrash), Percent: 50})
	step("resynchronizing", 1)
	s.status(agentapi.ItemStatus{Phase: "delta", LastPoint: w.clock.now()})
	step("resynchronized", 1)
	s.run(v().ResyncWith(ctx, s.item, vault.ResyncOptions{Full: true}, "olga"))
	step("full resynchronization asked for", 1)
	s.status(agentapi.ItemStatus{Phase: "initialReplication"}) // from nothing, in a generation that has points
	step("agent lost its state", 2)
	asked := s.assignment().ResyncRequest
	s.src.mu.Lock()
	ch := s.src.chains[s.machine]
	ch.prev.N, ch.n = ch.prev.N+5, ch.n+6
	s.src.mu.Unlock()
	_, err := s.src.cut(s.machine, dr.CrashConsistent)
	wantCode(t, err, dr.KindConflict, dr.CodeObjectConflict)
	s.until("the vault wants a resynchronization", func() bool { d := s.detail(); return d.ResyncCode == dr.CodeLogSequence })
	s.until("a new generation", func() bool { return s.it().Gen == 3 })
	w.clock.add(time.Second)
	s.src.mu.Lock()
	s.src.shape = func(c *cut.Commit) { c.Resync = true }
	s.src.mu.Unlock()
	s.until("it is asked for and the new generation has begun", func() bool {
		return s.assignment().Generation == 3 && s.assignment().ResyncRequest != asked && s.points()[0].Gen == 3
	})
	w.clock.add(time.Second)
	if s.it().Resync != "" {
		s.newCut()
	}
	step("out of sequence, resynchronized", 3)
	vm := testVM()
	vm.ID, vm.Disks = vmUUID, append(vm.Disks, agentapi.Disk{ID: "vdb", Size: 1 << 30})
	s.src.addVM(vm)
	s.inventory(s.src)
	s.run(v().ChangeDisks(ctx, s.item, []string{"vda", "vdb"}, "olga"))
	step("disk added", 3)
	s.run(v().ChangeDisks(ctx, s.item, []string{"vda"}, "olga"))
	step("disk excluded", 3)
	tr.check("engine.txt")
}
