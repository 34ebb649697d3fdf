package vault_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

func TestRegistrationKeys(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		v := w.vault()
		w.run(v.CreateFabric(ctx, "s", dr.KVMSite, "test"))
		issue := func(r vault.KeyRequest) vault.RegistrationKey {
			t.Helper()
			r.Fabric = "S"
			return must[vault.RegistrationKey](t)(v.IssueKey(ctx, r))
		}
		_, err := v.IssueKey(ctx, vault.KeyRequest{Fabric: "s", Validity: 6 * 24 * time.Hour})
		if dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("a key for six days: %v", err)
		}
		_, err = v.IssueKey(ctx, vault.KeyRequest{Fabric: "none"})
		wantCode(t, err, dr.KindNotFound, dr.CodeNotFound)

		many := issue(vault.KeyRequest{})
		a := w.newAgent("h1", many, "source")
		b := w.newAgent("h2", many, "recovery")
		if a.id == b.id {
			t.Fatal("two hosts, one id")
		}

		wrong := many
		wrong.Secret = "hfk_wrong"
		_, err = a.enroll(wrong)
		wantCode(t, err, dr.KindUnauthenticated, dr.CodeRegistrationKeyInvalid)
		wrong = many
		wrong.ID = "11111111-0000-0000-0000-000000000000"
		_, err = a.enroll(wrong)
		wantCode(t, err, dr.KindUnauthenticated, dr.CodeRegistrationKeyInvalid)

		once := issue(vault.KeyRequest{OneTime: true})
		c := &agent{t: t, w: w, host: "h3", roles: []string{"source"}}
		req := agentapi.EnrollRequest{KeyID: once.ID, Secret: once.Secret, CSR: c.csr(), Host: "h3", MachineID: "m3", Roles: c.roles}
		first := must[agentapi.EnrollResponse](t)(c.enrollWith(req, once.CAPin))
		again := must[agentapi.EnrollResponse](t)(c.enrollWith(req, once.CAPin)) // the answer was lost
		if first.AgentID != again.AgentID {
			t.Error("the repeated request made a second agent")
		}
		req.CSR = c.csr() // another key pair: somebody else with the same names
		_, err = c.enrollWith(req, once.CAPin)
		wantCode(t, err, dr.KindUnauthenticated, dr.CodeRegistrationKeyUsed)
		req.Host, req.MachineID = "h4", "m4"
		_, err = c.enrollWith(req, once.CAPin)
		wantCode(t, err, dr.KindUnauthenticated, dr.CodeRegistrationKeyUsed)

		revoked := issue(vault.KeyRequest{})
		if err := v.RevokeKey(ctx, revoked.ID, "test"); err != nil {
			t.Fatal(err)
		}
		_, err = a.enroll(revoked)
		wantCode(t, err, dr.KindUnauthenticated, dr.CodeRegistrationKeyRevoked)

		w.clock.add(5*24*time.Hour + time.Second)
		_, err = a.enroll(many)
		wantCode(t, err, dr.KindUnauthenticated, dr.CodeRegistrationKeyExpired)
		w.clock.add(-5*24*time.Hour - time.Second)

		keys := must[[]vault.RegistrationKey](t)(v.Keys(ctx, "s"))
		if len(keys) != 3 {
			t.Fatalf("%d keys, want 3", len(keys))
		}
		for _, k := range keys {
			if k.Secret != "" {
				t.Error("a secret was stored")
			}
		}
	})
}

func TestSameHostKeepsItsID(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		s.src.halt()
		old := s.src.withCert()
		key := must[vault.RegistrationKey](t)(w.vault().IssueKey(ctx, vault.KeyRequest{Fabric: "Primary"}))
		resp := must[agentapi.EnrollResponse](t)(s.src.enroll(key))
		if resp.AgentID != s.src.id {
			t.Fatalf("reinstalled agent got id %s, had %s", resp.AgentID, s.src.id)
		}
		err := old.post(agentapi.PathPoll, agentapi.PollRequest{}, nil)
		wantCode(t, err, dr.KindForbidden, dr.CodeAgentRevoked)
		// Its agent may have lost everything: the replica goes on in a new generation.
		last := s.points()[0]
		s.until("a new generation from the last point", func() bool {
			var poll agentapi.PollResponse
			if err := s.src.post(agentapi.PathPoll, agentapi.PollRequest{}, &poll); err != nil {
				t.Fatal(err)
			}
			return len(poll.Assignments) == 1 && poll.Assignments[0].Generation == 2 && poll.Assignments[0].Base != nil && poll.Assignments[0].Base.N == last.N
		})
		if got := s.points(); len(got) == 0 || got[0].Name() != last.Name() {
			t.Errorf("points after the reinstall: %v", got)
		}
	})
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		v := w.vault()
		w.run(v.CreateFabric(ctx, "s", dr.KVMSite, "test"))
		key := must[vault.RegistrationKey](t)(v.IssueKey(ctx, vault.KeyRequest{Fabric: "s"}))
		a := w.newAgent("h1", key, "source")
		poll := func(x *agent) error { return x.post(agentapi.PathPoll, agentapi.PollRequest{}, nil) }

		// Renewal: the old certificate stays good, in case the answer is lost.
		before := a.withCert()
		var resp agentapi.EnrollResponse
		if err := a.post(agentapi.PathRenew, agentapi.RenewRequest{CSR: a.csr()}, &resp); err != nil {
			t.Fatal(err)
		}
		a.useCert(resp)
		if err := errors.Join(poll(a), poll(before)); err != nil {
			t.Fatalf("after the renewal: %v", err)
		}

		// No certificate, and one that runs out.
		bare := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
		if err := post(bare, w.url()+agentapi.PathPoll, agentapi.PollRequest{}, nil); dr.KindOf(err) != dr.KindUnauthenticated {
			t.Errorf("without a certificate: %v", err)
		}
		w.clock.add(31 * 24 * time.Hour)
		if err := poll(a); dr.KindOf(err) != dr.KindUnauthenticated {
			t.Errorf("with an expired certificate: %v", err)
		}
		w.clock.add(-31 * 24 * time.Hour)

		w.run(v.RemoveProvider(ctx, "", dr.AgentID(a.id), false, "test"))
		wantCode(t, poll(a), dr.KindForbidden, dr.CodeAgentRevoked)
		if got := must[[]dr.Provider](t)(v.Providers(ctx, "")); len(got) != 0 {
			t.Errorf("providers after the removal: %v", got)
		}
		// Registered again it is a new agent.
		if resp := must[agentapi.EnrollResponse](t)(a.enroll(key)); resp.AgentID == a.id {
			t.Error("a removed agent came back under its id")
		}
	})
}

// TestFencing: after a takeover nothing of the old generation is authorised,
// and a cut that slips into the store by a URL signed before is no recovery point.
func TestFencing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		s.newCut()
		s.src.halt() // the host is cut off, its agent goes on with what it has
		last := s.points()[0]
		s.src.mu.Lock()
		ch := *s.src.chains[s.machine]
		s.src.mu.Unlock()

		// Signed before the takeover, used after it.
		stale, err := s.src.writeCutSigned(s.machine)
		if err != nil {
			t.Fatal(err)
		}
		w.until("the source counts as lost", func() bool { w.clock.add(time.Second); return w.healthOf(s.item) == dr.HealthCritical })
		w.until("the recovery host is heard of again", func() bool {
			p, err := w.vault().Provider(ctx, "", dr.AgentID(s.dst.id))
			return err == nil && w.vault().Connected(p)
		})
		s.run(s.failover(dr.KindUnplannedFailover))
		if err := stale.put(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.bucket.Head(ctx, cut.CutObject(dr.MachineID(s.machine), dr.Generation(ch.gen), ch.n)); err != nil {
			t.Fatalf("the stale cut is not in the store, so the test proves nothing: %v", err)
		}
		err = s.src.post(agentapi.PathCommits, agentapi.CommitRequest{Machine: s.machine, Generation: ch.gen, N: ch.n}, nil)
		wantCode(t, err, dr.KindFenced, dr.CodeGenerationFenced)
		_, err = s.src.writeCut(s.machine, dr.CrashConsistent)
		wantCode(t, err, dr.KindFenced, dr.CodeGenerationFenced)
		// What was listed before may be announced again; what is there may be asked.
		if err := s.src.post(agentapi.PathCommits, agentapi.CommitRequest{Machine: s.machine, Generation: uint32(last.Gen), N: last.N}, nil); err != nil {
			t.Errorf("a late repetition: %v", err)
		}
		var head agentapi.HeadResponse
		if err := s.src.post(agentapi.PathHead, agentapi.HeadRequest{Machine: s.machine, Generation: ch.gen,
			Names: []string{cut.CutObject(dr.MachineID(s.machine), dr.Generation(ch.gen), last.N)}}, &head); err != nil || !head.Objects[0].Exists {
			t.Errorf("head: %v %v", head, err)
		}
		w.restart() // and a complete reconciliation does not bring it in
		time.Sleep(300 * time.Millisecond)
		if got := s.points()[0]; got.Name() != last.Name() {
			t.Errorf("the newest point is %s, the takeover was at %s", got.Name(), last.Name())
		}
		var poll agentapi.PollResponse
		if err := s.src.post(agentapi.PathPoll, agentapi.PollRequest{}, &poll); err != nil || len(poll.Assignments) != 0 {
			t.Errorf("the fenced agent is assigned %v (%v)", poll.Assignments, err)
		}
	})
}

// TestUploadsAreConfined: only the writer's own objects are signed.
func TestUploadsAreConfined(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		s.protect()
		m, other := dr.MachineID(s.machine), dr.MachineID("99999999-0000-4000-8000-000000000000")
		sum := strings.Repeat("ab", 32)
		ask := func(a *agent, machine string, gen uint32, name string) error {
			return a.post(agentapi.PathUploads, agentapi.UploadRequest{Machine: machine, Generation: gen,
				Objects: []agentapi.UploadObject{{Name: name, Size: 10, SHA256: sum}}}, nil)
		}
		good := cut.CutObject(m, 1, 9)
		for _, mine := range []string{good, cut.PartObject(m, 1, 9, 0, 0), cut.TileObject(m, 1, 0, 0, 9, "u"), cut.KeyObject(m, 1<<12+5)} {
			if err := ask(s.src, s.machine, 1, mine); err != nil {
				t.Fatal(err)
			}
		}
		for name, err := range map[string]error{
			"another machine's object":   ask(s.src, s.machine, 1, cut.CutObject(other, 1, 9)),
			"another generation":         ask(s.src, s.machine, 1, cut.CutObject(m, 2, 9)),
			"another generation's key":   ask(s.src, s.machine, 1, cut.KeyObject(m, 2<<12)),
			"a key sealed again":         ask(s.src, s.machine, 1, cut.WrapObject(m, 1<<12, cut.KeyID{1})),
			"another machine's key":      ask(s.src, s.machine, 1, cut.KeyObject(other, 1<<12)),
			"a run":                      ask(s.src, s.machine, 1, cut.RunObject(m, 1, 9, 3, "u")),
			"a map":                      ask(s.src, s.machine, 1, cut.MapObject(m, 1, 9, "u")),
			"rewritten data":             ask(s.src, s.machine, 1, cut.DataObject(m, 1, 9, "u", 0)),
			"a plan":                     ask(s.src, s.machine, 1, cut.ManifestObject(m, 1)),
			"a lease":                    ask(s.src, s.machine, 1, cut.LeaseObject(m, 1<<40, "u")),
			"a description of the vault": ask(s.src, s.machine, 1, cut.VaultKeyObject(1)),
			"a generation object":        ask(s.src, s.machine, 1, cut.GenObject(m, 2)),
			"the vault's object":         ask(s.src, s.machine, 1, cut.VaultObject()),
			"no object of ours":          ask(s.src, s.machine, 1, "v1/m/x"),
			"a future generation":        ask(s.src, s.machine, 2, cut.CutObject(m, 2, 9)),
			"an unknown machine":         ask(s.src, string(other), 1, cut.CutObject(other, 1, 9)),
			"the recovery agent":         ask(s.dst, s.machine, 1, good),
		} {
			if k := dr.KindOf(err); err == nil || k == dr.KindInternal || k == dr.KindUnavailable {
				t.Errorf("%s: %v", name, err)
			}
		}
		// Points open for the agent that serves them, while it does.
		err := s.src.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: "x"}, nil)
		wantCode(t, err, dr.KindForbidden, "")
		s.run(s.failover(dr.KindTestFailover))
		var serving string
		s.dst.mu.Lock()
		for k := range s.dst.served {
			serving = k
		}
		s.dst.mu.Unlock()
		wantCode(t, s.src.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: serving}, nil), dr.KindForbidden, "")
		if err := s.dst.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: serving}, nil); err != nil {
			t.Errorf("the serving agent: %v", err)
		}
		s.run(s.vault().CleanupTest(t.Context(), s.item, "", "test"))
		wantCode(t, s.dst.post(agentapi.PathPoints, agentapi.OpenPointRequest{Serving: serving}, nil), dr.KindForbidden, "")
	})
}

// TestCatalogueFollowsTheStore: commits that the vault did not see appear, and
// a cut that does not continue the chain does not.
func TestCatalogueFollowsTheStore(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		for range 3 { // committed, never announced
			if _, err := s.src.writeCut(s.machine, dr.CrashConsistent); err != nil {
				t.Fatal(err)
			}
		}
		s.until("unannounced cuts are listed", func() bool { return len(s.points()) == 4 })

		// The catalogue is lost.
		if _, err := w.db.SQL().ExecContext(ctx, "delete from point"); err != nil {
			t.Fatal(err)
		}
		w.restart()
		s.until("the catalogue is filled again", func() bool { return len(s.points()) == 4 })

		// The newest cut is announced while two before it are unknown.
		for range 2 {
			if _, err := s.src.writeCut(s.machine, dr.CrashConsistent); err != nil {
				t.Fatal(err)
			}
		}
		s.newCut()
		if got := len(s.points()); got != 7 {
			t.Fatalf("%d points, want 7", got)
		}
		// A cut that skips one: its writer gets a new generation, which goes on from
		// the last good cut.
		good := s.points()[0]
		s.src.mu.Lock()
		ch := s.src.chains[s.machine]
		ch.prev.N, ch.n = ch.prev.N+5, ch.n+6
		s.src.mu.Unlock()
		_, err := s.src.cut(s.machine, dr.CrashConsistent)
		wantCode(t, err, dr.KindConflict, dr.CodeObjectConflict)
		s.until("replication goes on in a new generation", func() bool { return s.points()[0].Gen == 2 })
		if got := s.points(); len(got) != 8 || got[1].Name() != good.Name() {
			t.Errorf("points %v, want 8 with %s as the last but one", got, good.Name())
		}
		if d := must[vault.Detail](t)(s.vault().Detail(ctx, s.item)); d.ResyncCode != dr.CodeLogSequence {
			t.Errorf("the item does not say why a resynchronization is due: %+v", d)
		}
		// Somebody took the oldest object away.
		oldest := s.points()[7]
		if err := w.bucket.Delete(ctx, cut.CutObject(oldest.Machine, oldest.Gen, oldest.N)); err != nil {
			t.Fatal(err)
		}
		s.run(s.vault().CheckConsistency(ctx, "Primary", "test"))
		if got := len(s.points()); got != 7 {
			t.Errorf("%d points, want 7", got)
		}
	})
}

func TestSecondAgentReportsTheVM(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		key := must[vault.RegistrationKey](t)(w.vault().IssueKey(ctx, vault.KeyRequest{Fabric: "Primary"}))
		other := w.newAgent("src2", key, "source")
		vm := testVM()
		other.addVM(vm) // spelled in upper case, as some platforms do
		for range 2 {
			if err := other.sendInventory(); err != nil {
				t.Fatal(err)
			}
		}
		seen := 0
		for _, e := range must[[]eventRow](t)(events(w, "")) {
			if e.Kind == "vmSeenTwice" {
				seen++
			}
		}
		if got := must[dr.VM](t)(w.vault().VM(ctx, s.primary.ID, vmUUID)); string(got.Agent) != s.src.id || seen != 1 {
			t.Errorf("VM of agent %s (want %s), %d events", got.Agent, s.src.id, seen)
		}
		// The first agent is lost: the VM moves.
		s.src.halt()
		w.clock.add(time.Hour)
		if err := other.sendInventory(); err != nil {
			t.Fatal(err)
		}
		if got := must[dr.VM](t)(w.vault().VM(ctx, s.primary.ID, vmUUID)); string(got.Agent) != other.id {
			t.Errorf("VM stays with the lost agent")
		}
		// And a VM that is no longer reported is gone.
		other.mu.Lock()
		other.vms = map[string]*agentapi.VM{}
		other.mu.Unlock()
		if err := other.sendInventory(); err != nil {
			t.Fatal(err)
		}
		if got := must[dr.VM](t)(w.vault().VM(ctx, s.primary.ID, vmUUID)); !got.Gone {
			t.Error("the VM is not gone")
		}
	})
}

func TestLostRecoveryHostIsNoDeadEnd(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		s.dst.halt()
		w.clock.add(time.Hour)
		s.src.post(agentapi.PathPoll, agentapi.PollRequest{}, nil)
		j := s.expect(dr.JobFailed, fst(s.failover(dr.KindUnplannedFailover)), nil)
		if j.Errors[0].Code != dr.CodeRecoveryAgentDown {
			t.Errorf("errors %+v", j.Errors)
		}
		if it := s.it(); it.Failover != dr.FailoverFailed || it.Gen != 1 {
			t.Errorf("failover %s, generation %d", it.Failover, it.Gen)
		}
		// Another host of the site.
		key := must[vault.RegistrationKey](t)(w.vault().IssueKey(ctx, vault.KeyRequest{Fabric: "Recovery"}))
		second := w.newAgent("dst2", key, "recovery")
		second.loop()
		s.run(s.failover(dr.KindUnplannedFailover))
		if got := second.running(); len(got) != 1 {
			t.Errorf("the second host runs %v", got)
		}
	})
}

func TestAccess(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		v := w.vault()
		if w.boot.Password == "" || w.boot.ClientSecret == "" {
			t.Fatal("the first start made no credentials")
		}
		if _, again := v.TakeBootstrap(); again {
			t.Error("the credentials are shown twice")
		}
		token, secs, err := v.IssueToken(ctx, w.boot.ClientID, w.boot.ClientSecret)
		if err != nil || secs < 3600 || secs > 24*3600 {
			t.Fatalf("token for %d s: %v", secs, err)
		}
		if p := must[vault.Principal](t)(v.Authenticate(ctx, token)); p.Role != dr.RoleOwner {
			t.Errorf("principal %+v", p)
		}
		session, p, err := v.Login(ctx, "ADMIN", w.boot.Password)
		if err != nil || p.Name != "admin" {
			t.Fatalf("login: %+v %v", p, err)
		}
		must[vault.Principal](t)(v.Session(ctx, session))
		refused := func(what string, err error) {
			t.Helper()
			if dr.KindOf(err) != dr.KindUnauthenticated {
				t.Errorf("%s: %v", what, err)
			}
		}
		refused("a wrong secret", snd2(v.IssueToken(ctx, w.boot.ClientID, "wrong")))
		refused("a user as a client", snd2(v.IssueToken(ctx, "admin", w.boot.Password)))
		refused("a wrong password", err3(v.Login(ctx, "admin", "wrong")))
		refused("nobody", err3(v.Login(ctx, "nobody", w.boot.Password)))
		refused("a session as a token", snd(v.Authenticate(ctx, session)))
		refused("a token as a session", snd(v.Session(ctx, token)))
		if err := v.Logout(ctx, session); err != nil {
			t.Fatal(err)
		}
		refused("an ended session", snd(v.Session(ctx, session)))
		id, secret, err := v.CreateClient(ctx, dr.RoleReader, "admin")
		if err != nil {
			t.Fatal(err)
		}
		reader, _, err := v.IssueToken(ctx, id, secret)
		if err != nil {
			t.Fatal(err)
		}
		w.restart()
		v = w.vault()
		if p := must[vault.Principal](t)(v.Authenticate(ctx, reader)); p.Role != dr.RoleReader {
			t.Errorf("principal %+v", p)
		}
		if err := v.RemovePrincipal(ctx, id, "admin"); err != nil {
			t.Fatal(err)
		}
		refused("a removed client", snd(v.Authenticate(ctx, reader)))
		w.clock.add(5 * time.Hour)
		refused("an expired token", snd(v.Authenticate(ctx, token)))
		if err := v.SetSetting(ctx, "ext", "doc"); err != nil {
			t.Fatal(err)
		}
		if got := must[string](t)(v.Setting(ctx, "ext")); got != "doc" {
			t.Errorf("setting %q", got)
		}
		if got := must[string](t)(v.Setting(ctx, "../ca")); got != "" {
			t.Error("a setting of the vault can be read")
		}
	})
}

func snd2[A, B, C any](_ A, _ B, c C) C        { return c }
func err3[A, B any](_ A, _ B, err error) error { return err }

// TestPolicyAndSiteRules: names, uses, idempotent creation.
func TestPolicyAndSiteRules(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		s := scene(t, w)
		s.protect()
		v := w.vault()
		_, err := v.CreateFabric(ctx, "bad/name", dr.KVMSite, "test")
		wantCode(t, err, dr.KindInvalid, dr.CodeNameInvalid)
		_, err = v.CreateFabric(ctx, "PRIMARY", dr.KVMSite, "test")
		wantCode(t, err, dr.KindConflict, dr.CodeAlreadyExists)
		s.run(v.CreateFabric(ctx, "primary", dr.HyperVSite, "test"))
		_, err = v.RemoveFabric(ctx, "Primary", false, "test")
		wantCode(t, err, dr.KindConflict, dr.CodeFabricNotEmpty)
		_, err = v.SavePolicy(ctx, dr.Policy{Name: "x", CopyFrequency: time.Second}, true, "test")
		wantCode(t, err, dr.KindInvalid, dr.CodePolicyInvalid)
		_, err = v.RemovePolicy(ctx, "gold", "test")
		wantCode(t, err, dr.KindConflict, dr.CodePolicyInUse)
		_, err = v.RemoveMapping(ctx, s.primary.ID, "map1", "test")
		wantCode(t, err, dr.KindConflict, dr.CodePolicyInUse)
		_, err = v.RemoveProvider(ctx, s.primary.ID, dr.AgentID(s.src.id), false, "test")
		wantCode(t, err, dr.KindConflict, dr.CodeFabricNotEmpty)
		_, err = v.Enable(ctx, vault.EnableRequest{Fabric: "Primary", Name: "other", VM: vmUUID, Policy: "gold"})
		wantCode(t, err, dr.KindConflict, dr.CodeAlreadyExists)
		_, err = v.StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindTestFailover, Point: "nonsense"})
		wantCode(t, err, dr.KindInvalid, dr.CodePointNameInvalid)
		_, err = v.StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindTestFailover, Point: "LatestApplicationConsistent"})
		wantCode(t, err, dr.KindPrecondition, dr.CodeNoRecoveryPoint)
		_, err = v.Commit(ctx, s.item, "test")
		wantCode(t, err, dr.KindPrecondition, dr.CodeOperationNotAllowed)
		j := s.expect(dr.JobFailed, fst(v.StartFailover(ctx, vault.FailoverRequest{Item: s.item, Kind: dr.KindTestFailover, Network: "lan"})), nil)
		if j.Errors[0].Code != dr.CodeNetworkNotIsolated || s.it().Test != dr.TestNone {
			t.Errorf("a test on a production network: %+v, test %s", j.Errors, s.it().Test)
		}
		// The policy reaches the agent.
		s.run(v.SavePolicy(ctx, dr.Policy{Name: "GOLD", CopyFrequency: 5 * time.Minute}, false, "test"))
		s.until("new policy at the agent", func() bool {
			s.src.mu.Lock()
			defer s.src.mu.Unlock()
			return s.src.assigned[s.machine].CopyFrequencySeconds == 300
		})
		s.run(v.Resync(ctx, s.item, "test"))
		s.until("resync request at the agent", func() bool {
			s.src.mu.Lock()
			defer s.src.mu.Unlock()
			return s.src.assigned[s.machine].ResyncRequest != ""
		})
		s.run(v.RefreshProvider(ctx, s.primary.ID, dr.AgentID(s.src.id), "test"))
		s.run(v.Update(ctx, vault.UpdateRequest{Item: s.item, Settings: func(x *dr.ItemSettings) { x.RecoveryVMName = "renamed" }}))
		if s.it().Settings.RecoveryVMName != "renamed" {
			t.Error("the settings did not change")
		}
		s.run(v.RemoveFabric(ctx, "Primary", true, "test"))
	})
}

// TestStoreDownDuringFailover: nothing is lost while the store does not take
// the new generation, and everything goes on when it is back.
func TestStoreDownDuringFailover(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		s := scene(t, w)
		s.protect()
		w.faults.down.Store(true)
		id := ok(t, fst(s.failover(dr.KindUnplannedFailover)), nil)
		s.until("the failover has met the store's fault", func() bool { return w.faults.hits.Load() > 3 })
		if len(s.dst.running()) != 0 {
			t.Error("a VM was started before its generation was written")
		}
		s.restart()
		w.faults.down.Store(false)
		j := s.wait(id)
		switch j.State {
		case dr.JobSucceeded: // the store came back within the step's attempts
			if len(s.dst.running()) != 1 || s.it().Failover != dr.FailoverCommitPending {
				t.Errorf("running %v, %s", s.dst.running(), s.it().Failover)
			}
		case dr.JobFailed: // it did not; the source replicates again
			s.until("replication resumed", func() bool { return s.points()[0].Gen == s.it().Gen })
		default:
			t.Errorf("job %s", j.State)
		}
	})
}
