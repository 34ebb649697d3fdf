package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/agent/assignment"
	"holdfast/internal/agent/state"
	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/pace"
	"holdfast/internal/store"
	"holdfast/internal/upload"
)

// flaky is a vault and its store without a network, for virtual time.
type flaky struct {
	bucket  objstore.Bucket
	down    atomic.Bool
	asked   atomic.Int64 // while it was down
	commits atomic.Int64
}

func (f *flaky) away() error {
	if !f.down.Load() {
		return nil
	}
	f.asked.Add(1)
	return dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "vault", "no route")
}

func (f *flaky) Uploads(ctx context.Context, r agentapi.UploadRequest) (out agentapi.UploadResponse, err error) {
	if err := f.away(); err != nil {
		return out, err
	}
	for _, o := range r.Objects {
		out.URLs = append(out.URLs, agentapi.SignedURL{URL: o.Name, Expires: time.Now().Add(time.Hour)})
	}
	return out, nil
}

func (f *flaky) Head(ctx context.Context, r agentapi.HeadRequest) (out agentapi.HeadResponse, err error) {
	if err := f.away(); err != nil {
		return out, err
	}
	for _, n := range r.Names {
		info, err := objstore.Digest(ctx, f.bucket, n)
		if errors.Is(err, objstore.ErrNotExist) {
			out.Objects = append(out.Objects, agentapi.HeadObject{})
			continue
		}
		if err != nil {
			return out, err
		}
		out.Objects = append(out.Objects, agentapi.HeadObject{Exists: true, Size: info.Size, SHA256: hex.EncodeToString(info.SHA256[:])})
	}
	return out, nil
}

func (f *flaky) Put(ctx context.Context, name string, _ map[string]string, body io.ReaderAt, size int64) (httpstore.Outcome, error) {
	if err := f.away(); err != nil {
		return httpstore.Undecided, err
	}
	switch err := f.bucket.PutNew(ctx, name, io.NewSectionReader(body, 0, size), size, nil); {
	case errors.Is(err, objstore.ErrExists):
		return httpstore.MaybeExists, nil
	case err != nil:
		return httpstore.Undecided, err
	}
	return httpstore.Created, nil
}

func (f *flaky) Commit(ctx context.Context, r agentapi.CommitRequest) (agentapi.CommitResponse, error) {
	if err := f.away(); err != nil {
		return agentapi.CommitResponse{}, err
	}
	f.commits.Add(1)
	return agentapi.CommitResponse{}, nil
}

func (f *flaky) Digests(context.Context, agentapi.DigestRequest) (agentapi.DigestResponse, error) {
	return agentapi.DigestResponse{}, dr.Errorf(dr.KindUnavailable, "vault", "no digests here")
}

// The vault and the store are away for an hour: the agent goes on cutting, says
// what is wrong and since when, does not hammer, and afterwards every cut of the hour
// arrives, by the schedule or at once when an operator asks.
func TestVaultDownForAnHour(t *testing.T) {
	t.Parallel()
	for name, operator := range map[string]bool{"BySchedule": false, "ByOperator": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) { outage(t, dir, operator) })
		})
	}
}

func outage(t *testing.T, dir string, operator bool) {
	if err := state.Make(dir); err != nil {
		t.Fatal(err)
	}
	host := sim.New(sim.Config{NoNBD: true})
	vm := host.AddVM(sim.VMSpec{Name: "db", Disks: []sim.DiskSpec{{ID: "vda", Size: 4 << 20}}})
	write := func(n int) {
		t.Helper()
		p := make([]byte, 4096)
		p[0], p[1] = byte(n), byte(n>>8)
		if err := vm.Write("vda", int64(n)*4096, p); err != nil {
			t.Fatal(err)
		}
	}
	f := &flaky{bucket: mem.New()}
	up, err := upload.New(upload.Config{Vault: f, Transfer: f})
	if err != nil {
		t.Fatal(err)
	}
	limit := pace.NewLimiter(nil, nil)
	r := &replicas{dir: dir, make: func(c capture.Config) (replicator, error) { return capture.New(c) }, up: up, commits: f, digests: f,
		log: slog.New(slog.DiscardHandler), restart: time.Second, limits: assignment.NewLimits(limit), groups: assignment.NewGroups(host),
		base: capture.Config{Source: host, Turns: &pace.Turns{}}}
	ctx, cancel := context.WithCancel(t.Context())
	if err := r.open(ctx, "agent-1"); err != nil {
		t.Fatal(err)
	}
	private, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.WriteGeneration(t.Context(), f.bucket, cut.GenInfo{Machine: machineA, Gen: 1, Agent: "agent-1", Reason: "test", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	a := agentapi.Assignment{Machine: machineA, VM: string(vm.ID()), VMName: "db", Disks: []string{"vda"}, Generation: 1, CopyFrequencySeconds: 60, VaultPublicKey: private.Public().Text()}
	r.apply("1", []agentapi.Assignment{a})
	write(1)
	time.Sleep(10 * time.Minute)
	if s := r.status()[0]; s.Phase != "delta" || s.Error != nil || s.LastPoint.IsZero() || time.Since(s.LastPoint) > 2*time.Minute || s.SentBytes == 0 {
		t.Fatalf("before: %+v", s)
	}
	committed := f.commits.Load()

	f.down.Store(true)
	began := time.Now()
	for n := range 60 {
		write(10 + n)
		time.Sleep(time.Minute)
	}
	s := r.status()[0]
	switch {
	case s.Error == nil || s.Error.Code != string(dr.CodeVaultUnreachable) || s.Error.Hint == "":
		t.Errorf("error %+v", s.Error)
	case s.Since.Before(began) || time.Since(s.Since) < 50*time.Minute:
		t.Errorf("since %v, it began %v", s.Since, began)
	case s.Attempt < 5 || s.Attempt > 20 || s.RetryAt.IsZero():
		t.Errorf("attempt %d, next %v", s.Attempt, s.RetryAt)
	case s.SpooledBytes == 0 || s.BacklogBytes == 0:
		t.Errorf("%d bytes in the spool, %d behind", s.SpooledBytes, s.BacklogBytes)
	case s.LastPoint.After(began.Add(time.Minute)):
		t.Errorf("a point at %v", s.LastPoint)
	}
	// 60 cuts wait for one: attempts are those of one cut and one notice.
	if n := f.asked.Load(); n > 400 {
		t.Errorf("the vault was asked %d times in an hour", n)
	}

	f.down.Store(false)
	patience := 31 * time.Minute // the schedule's longest pause
	if operator {
		a.RetryNow = "now"
		r.apply("2", []agentapi.Assignment{a})
		patience = 2 * time.Minute
	}
	time.Sleep(patience)
	if s = r.status()[0]; s.Error != nil || s.SpooledBytes > 64<<10 || time.Since(s.LastPoint) > 2*time.Minute {
		t.Errorf("afterwards: %+v %+v", s, s.Error)
	}
	if n := f.commits.Load() - committed; n < 60 || s.Missed < 55 {
		t.Errorf("%d points of the hour, %d cycles missed", n, s.Missed)
	}
	cancel()
	r.wg.Wait()
	if err := up.Close(); err != nil {
		t.Error(err)
	}
	st := store.New(store.Config{Bucket: f.bucket, Keys: store.NewKeyring(f.bucket, private)})
	rep, err := st.Verify(t.Context(), machineA, nil)
	if err != nil || !rep.OK() {
		t.Fatalf("the store: %v %v", rep, err)
	}
	chain, err := st.Chain(t.Context(), machineA)
	if err != nil {
		t.Fatal(err)
	}
	last, _ := chain.Last()
	view, err := st.OpenPoint(t.Context(), machineA, last.Ref.Gen, last.Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	b := make([]byte, 4096)
	for n := range 60 {
		if err := view.ReadAt(t.Context(), "vda", b, int64(10+n)*4096); err != nil || b[0] != byte(10+n) {
			t.Fatalf("what was written in minute %d is not in the last point: %v", n, err)
		}
	}
}
