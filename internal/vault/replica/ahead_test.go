package replica_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
	"holdfast/internal/upload"
	"holdfast/internal/vault/replica"
	"holdfast/internal/vaultdb"
)

// remote is the vault over a line that may be cut.
type remote struct {
	asAgent
	down atomic.Bool

	mu    sync.Mutex
	ahead [][]agentapi.AheadURL
}

var errAway = dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "vault", "no route")

func (v *remote) Uploads(ctx context.Context, r agentapi.UploadRequest) (agentapi.UploadResponse, error) {
	if v.down.Load() {
		return agentapi.UploadResponse{}, errAway
	}
	out, err := v.asAgent.Uploads(ctx, r)
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(out.Ahead) > 0 {
		v.ahead = append(v.ahead, out.Ahead)
	}
	return out, err
}

func (v *remote) Head(ctx context.Context, r agentapi.HeadRequest) (agentapi.HeadResponse, error) {
	if v.down.Load() {
		return agentapi.HeadResponse{}, errAway
	}
	return v.asAgent.Head(ctx, r)
}

// TestCutsWhileTheVaultIsAway: cuts are committed by what the vault has signed
// beforehand, are listed in order when it is back, and what a fenced agent has
// written that way is not listed.
func TestCutsWhileTheVaultIsAway(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newAccount(t)
	b := newBucket(t, s.settings(true)) // signs by a user delegation key
	spool := mem.New()                  // what the agent has at its host
	rep := storetest.New(t, spool, 1<<20)
	r := newRig(t, rep.Machine, time.Now)
	x := r.replicas(t, b, func(c *replica.Config) { c.Key = rep.Private })
	v := &remote{}
	v.replicas.Store(x)
	dir := t.TempDir()
	start := func() *upload.Sink {
		u, err := upload.New(upload.Config{Vault: v, Transfer: httpstore.NewUploader(httpstore.UploaderConfig{Transport: s.transport}), AheadDir: dir,
			Attempts: 2, BaseDelay: time.Millisecond, MaxDelay: 4 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := u.Close(); err != nil {
				t.Error(err)
			}
		})
		return u.Sink(rep.Machine, 1)
	}
	sink := start()
	sent := map[string]bool{}
	// send ships what is new in the spool, the cuts at last, as an agent does.
	send := func() error {
		t.Helper()
		for _, cuts := range []bool{false, true} {
			for _, key := range rep.Keys() {
				o, err := cut.ParseObject(key)
				if err != nil || sent[key] || cuts != (o.Class == cut.ClassCut) {
					continue
				}
				raw, err := objstore.ReadAll(ctx, spool, key, 64<<20)
				if err != nil {
					t.Fatal(err)
				}
				if o.Class == cut.ClassKey || o.Class == cut.ClassGeneration { // not as an agent names or writes them
					err = b.PutNew(ctx, key, bytes.NewReader(raw), int64(len(raw)), nil)
				} else {
					err = sink.Put(ctx, key, bytes.NewReader(raw), int64(len(raw)), sha256.Sum256(raw))
				}
				if err != nil {
					return err
				}
				sent[key] = true
			}
		}
		return nil
	}
	next := func() storetest.Point {
		rep.Write(0, int64(len(rep.Points)%200)*cut.Unit, bytes.Repeat([]byte{byte(len(rep.Points))}, cut.Unit))
		return rep.Cut()
	}
	check := func(what string, want int) {
		t.Helper()
		have, err := vaultdb.Points(ctx, r.st.Q(), rep.Machine, 0)
		if err != nil || len(have) != want {
			t.Fatalf("%s: %d points, wanted %d: %v", what, len(have), want, err)
		}
		for i, p := range have { // newest first
			if n := have[len(have)-1].N + uint64(len(have)-1-i); p.N != n || p.Gen != 1 {
				t.Errorf("%s: point %d is %s", what, i, p.Name())
			}
		}
	}
	rep.Write(0, 0, bytes.Repeat([]byte("x"), cut.Unit))
	base := rep.Base()
	if err := send(); err != nil {
		t.Fatal(err)
	}
	if _, err := x.CommitCut(ctx, agent, agentapi.CommitRequest{Machine: string(rep.Machine), Generation: 1, N: base.Ref.N}); err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	if len(v.ahead) != 1 || len(v.ahead[0]) != 8*12+2 { // a cut every five minutes for eight hours, and keys
		t.Fatalf("%d times signed ahead", len(v.ahead))
	}
	given := v.ahead[0]
	v.mu.Unlock()
	for _, u := range given {
		o, err := cut.ParseObject(u.Name)
		if err != nil || o.Machine != rep.Machine || o.Class == cut.ClassCut && (o.Gen != 1 || o.N <= base.Ref.N) || o.Class == cut.ClassKey && o.Epoch>>12 != 1 || o.Class != cut.ClassCut && o.Class != cut.ClassKey {
			t.Errorf("signed ahead: %s", u.Name)
		}
		if left := time.Until(u.Expires); left > 8*time.Hour || left < 7*time.Hour {
			t.Errorf("%v left", left)
		}
	}

	v.down.Store(true)
	for i := range 12 {
		next()
		if err := send(); err != nil {
			t.Fatalf("cut %d of the outage: %v", i, err)
		}
		if i == 6 {
			sink = start() // the agent is restarted
		}
	}
	check("while the vault is away", 1)
	v.down.Store(false)
	if err := x.ReconcileAll(ctx); err != nil {
		t.Fatal(err)
	}
	check("when it is back", 13)
	got, err := x.Reader().Chain(ctx, rep.Machine)
	if err != nil || len(got.Points) != 13 {
		t.Fatalf("%v", err)
	}
	if err := rep.Compare(ctx, x.Reader(), rep.Points[12]); err != nil {
		t.Error(err)
	}
	// Promise 4: what was signed creates one object once, and does no more.
	used, raw := given[0], []byte("other bytes")
	other := strings.NewReplacer("00000001/cut", "00000002/cut", "00000001%2Fcut", "00000002%2Fcut").Replace(given[40].URL)
	if other == given[40].URL {
		t.Fatal("the name of a signed URL is not where it was expected")
	}
	for what, c := range map[string]struct {
		method, url string
	}{
		"overwrite": {http.MethodPut, used.URL}, "read": {http.MethodGet, used.URL}, "delete": {http.MethodDelete, used.URL},
		"another name": {http.MethodPut, other},
	} {
		req, err := http.NewRequestWithContext(ctx, c.method, c.url, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		for k, h := range used.Headers {
			req.Header.Set(k, h)
		}
		resp, err := (&http.Client{Transport: s.transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode/100 == 2 {
			t.Errorf("%s: status %d", what, resp.StatusCode)
		}
	}

	// Taken over while the agent does not reach the vault: it writes into its dead generation.
	v.down.Store(true)
	last := rep.Points[len(rep.Points)-1]
	gen := vaultdb.Generation{Machine: rep.Machine, Gen: 2, Agent: "agent-2", Reason: "failover", Created: r.st.Now(), BaseGen: 1, BaseN: last.Ref.N, BaseHash: last.Ref.Hash.String(), Written: true}
	if err := r.st.Tx(ctx, func(tx *sql.Tx) error {
		it, err := vaultdb.LockItem(ctx, tx, "i1")
		if err != nil {
			return err
		}
		it.Gen = 2
		return errors.Join(vaultdb.SaveGeneration(ctx, tx, gen), vaultdb.UpdateItem(ctx, tx, it))
	}); err != nil {
		t.Fatal(err)
	}
	if err := store.WriteGeneration(ctx, b, cut.GenInfo{Machine: rep.Machine, Gen: 2, Agent: "agent-2", Reason: "failover", Time: gen.Created, Base: last.Ref}); err != nil {
		t.Fatal(err)
	}
	dead := next()
	if err := send(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Head(ctx, cut.CutObject(rep.Machine, 1, dead.Ref.N)); err != nil {
		t.Fatal(err)
	}
	if err := x.ReconcileAll(ctx); err != nil {
		t.Fatal(err)
	}
	check("after the takeover", 13)
	v.down.Store(false)
	if _, err := x.CommitCut(ctx, agent, agentapi.CommitRequest{Machine: string(rep.Machine), Generation: 1, N: dead.Ref.N}); dr.CodeOf(err) != dr.CodeGenerationFenced {
		t.Errorf("announced: %v", err)
	}
	next()
	if err := send(); dr.CodeOf(err) != dr.CodeGenerationFenced {
		t.Errorf("%v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	v.down.Store(true)
	if err := send(); dr.CodeOf(err) != dr.CodeVaultUnreachable {
		t.Errorf("%v", err)
	}
	check("at the end", 13)
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

// TestNothingSignedAhead: a store that the vault serves signs nothing for
// outages, and a request that asks for another generation's keys gets nothing.
func TestNothingSignedAhead(t *testing.T) {
	t.Parallel()
	served, err := httpstore.NewSigner(httpstore.SignerConfig{BaseURL: "http://vault.invalid", Key: bytes.Repeat([]byte{7}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := any(served).(objstore.AheadSigner); ok {
		t.Error("a store that is away with the vault signs for outages")
	}
	s := newAccount(t)
	b := newBucket(t, s.settings(false))
	r := newRig(t, machine, time.Now)
	ask := func(signer objstore.Signer, more *agentapi.AheadRequest, who dr.AgentID) (agentapi.UploadResponse, error) {
		x := r.replicas(t, b, func(c *replica.Config) { c.Signer = signer })
		return x.Uploads(t.Context(), who, agentapi.UploadRequest{Machine: string(machine), Generation: 1, Ahead: more,
			Objects: []agentapi.UploadObject{{Name: cut.CutObject(machine, 1, 1), Size: 1, SHA256: strings.Repeat("0", 64)}}})
	}
	good := &agentapi.AheadRequest{Cut: 2, Epoch: 1 << 12}
	for name, c := range map[string]struct {
		signer objstore.Signer
		more   *agentapi.AheadRequest
		want   int
	}{
		"asked":              {b, good, 98},
		"not asked":          {b, nil, 0},
		"by the vault":       {served, good, 0},
		"another generation": {b, &agentapi.AheadRequest{Cut: 2, Epoch: 2 << 12}, 0},
		"the last key":       {b, &agentapi.AheadRequest{Cut: 2, Epoch: 2<<12 - 1}, 97},
		"numbers that wrap":  {b, &agentapi.AheadRequest{Cut: 1<<64 - 5, Epoch: 1 << 12}, 0},
	} {
		if out, err := ask(c.signer, c.more, agent); err != nil || len(out.URLs) != 1 || len(out.Ahead) != c.want {
			t.Errorf("%s: %d URLs, %d ahead, %v", name, len(out.URLs), len(out.Ahead), err)
		}
	}
	if out, err := ask(b, good, "agent-2"); dr.CodeOf(err) != dr.CodeGenerationFenced || len(out.Ahead) > 0 {
		t.Errorf("%d, %v", len(out.Ahead), err)
	}
}
