package upload_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/upload"
)

// outage is a vault that may be away, and a store that is not, without a network.
type outage struct {
	bucket objstore.Bucket
	down   atomic.Bool
	fenced atomic.Bool
	count  int           // cuts signed ahead
	life   time.Duration // of what is signed ahead
	asked  atomic.Int64  // requests to sign ahead
	puts   atomic.Int64
	ahead  atomic.Int64 // puts by what was signed ahead
	late   atomic.Int64 // puts that the store refused
}

var errAway = dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "vault", "no route")

func (f *outage) Uploads(_ context.Context, r agentapi.UploadRequest) (out agentapi.UploadResponse, err error) {
	switch {
	case f.down.Load():
		return out, errAway
	case f.fenced.Load():
		return out, dr.New(dr.KindFenced, dr.CodeGenerationFenced, "vault", "taken over")
	}
	for _, o := range r.Objects {
		out.URLs = append(out.URLs, agentapi.SignedURL{URL: o.Name + "?sig=now", Expires: time.Now().Add(time.Hour)})
	}
	if r.Ahead == nil || f.count == 0 {
		return out, nil
	}
	f.asked.Add(1)
	until := time.Now().Add(f.life)
	sign := func(name string) {
		out.Ahead = append(out.Ahead, agentapi.AheadURL{Name: name, SignedURL: agentapi.SignedURL{URL: name + "?sig=ahead-" + until.Format(time.RFC3339), Expires: until}})
	}
	for n := range f.count {
		sign(cut.CutObject(dr.MachineID(r.Machine), dr.Generation(r.Generation), r.Ahead.Cut+uint64(n)))
	}
	sign(cut.KeyObject(dr.MachineID(r.Machine), r.Ahead.Epoch))
	return out, nil
}

func (f *outage) Head(ctx context.Context, r agentapi.HeadRequest) (out agentapi.HeadResponse, err error) {
	if f.down.Load() {
		return out, errAway
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

func (f *outage) Put(ctx context.Context, url string, _ map[string]string, body io.ReaderAt, size int64) (httpstore.Outcome, error) {
	f.puts.Add(1)
	name, sig, _ := strings.Cut(url, "?sig=")
	if at, ok := strings.CutPrefix(sig, "ahead-"); ok {
		f.ahead.Add(1)
		if until, err := time.Parse(time.RFC3339, at); err != nil || time.Now().After(until) {
			f.late.Add(1)
			return httpstore.MaybeExists, nil
		}
	}
	switch err := f.bucket.PutNew(ctx, name, io.NewSectionReader(body, 0, size), size, nil); {
	case errors.Is(err, objstore.ErrExists):
		return httpstore.MaybeExists, nil
	case err != nil:
		return httpstore.Undecided, err
	}
	return httpstore.Created, nil
}

func (f *outage) uploader(t *testing.T, dir string, logs io.Writer) *upload.Uploader {
	t.Helper()
	u, err := upload.New(upload.Config{Vault: f, Transfer: f, AheadDir: dir, Log: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestVaultAwayForAnHour: only the vault is away, not the store. With URLs for the
// next cuts the recovery points go on arriving in time; without them, or past
// their end, the cuts wait in the spool as ever. Nothing is lost either way.
func TestVaultAwayForAnHour(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		count int
		life  time.Duration
		flow  bool // the cuts of the outage arrive during it
	}{
		"SignedAhead": {480, 8 * time.Hour, true},
		"NotSigned":   {0, 0, false},
		"TooShort":    {480, 10 * time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			f := &outage{bucket: mem.New(), count: c.count, life: c.life}
			private, err := cut.GenerateVaultKey()
			if err != nil {
				t.Fatal(err)
			}
			var least uint64
			synctest.Test(t, func(t *testing.T) { least = awayForAnHour(t, dir, f, private, c.flow) })
			points, err := store.New(store.Config{Bucket: f.bucket, Keys: store.NewKeyring(f.bucket, private)}).Chain(t.Context(), machine)
			if err != nil || len(points.Refused) > 0 || uint64(len(points.Points)) < least {
				t.Errorf("%d points, wanted %d; refused %v, %v", len(points.Points), least, points.Refused, err)
			}
		})
	}
}

func awayForAnHour(t *testing.T, dir string, f *outage, private cut.VaultPrivateKey, flow bool) (least uint64) {
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
	var logs bytes.Buffer
	u := f.uploader(t, filepath.Join(dir, "ahead"), &logs)
	if err := store.WriteGeneration(t.Context(), f.bucket, cut.GenInfo{Machine: machine, Gen: 1, Agent: "agent-1", Reason: "test", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	rep, err := capture.New(capture.Config{Machine: machine, Dir: filepath.Join(dir, "replica"), Source: host, Sink: u.Sink(machine, 1), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	rep.Assign(capture.Assignment{VM: vm.ID(), Disks: []string{"vda"}, Gen: 1, CopyFrequency: time.Minute, VaultKey: private.Public()})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- rep.Run(ctx) }()
	write(1)
	time.Sleep(10 * time.Minute)
	committed := rep.Status().Committed.N
	if committed == 0 {
		t.Fatalf("before: %+v", rep.Status())
	}
	asked := f.asked.Load()
	if flow && uint64(asked) > committed/2+1 {
		t.Errorf("asked to sign ahead %d times for %d cuts", asked, committed)
	}

	f.down.Store(true)
	var worst time.Duration
	for n := range 60 {
		write(10 + n)
		time.Sleep(time.Minute)
		worst = max(worst, time.Since(rep.Status().LastCut))
	}
	arrived := rep.Status().Committed.N - committed
	switch {
	case flow && (arrived < 55 || worst > 5*time.Minute):
		t.Errorf("%d cuts arrived, %v behind at worst", arrived, worst)
	case !flow && arrived > 12:
		t.Errorf("%d cuts arrived", arrived)
	}
	f.down.Store(false)
	time.Sleep(45 * time.Minute)
	if s := rep.Status(); s.Committed.N < committed+60 {
		t.Errorf("afterwards: %+v", s)
	}
	if strings.Contains(logs.String(), "sig=") {
		t.Error("the log shows a signature")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	return committed + 60
}

// TestSignedAhead looks at the file: who can read it, what is in it after a restart, a
// takeover, its end, and damage.
func TestSignedAhead(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ahead")
	file := filepath.Join(dir, string(machine)+".json")
	f := &outage{bucket: mem.New(), count: 10, life: time.Hour}
	var logs bytes.Buffer
	var u *upload.Uploader
	var sink *upload.Sink
	restart := func() {
		t.Helper()
		if u != nil {
			if err := u.Close(); err != nil {
				t.Error(err)
			}
		}
		u = f.uploader(t, dir, &logs)
		sink = u.Sink(machine, 1)
	}
	defer func() { _ = u.Close() }()
	send := func(ctx context.Context, name string) error {
		data := []byte(name)
		return sink.Put(ctx, name, bytes.NewReader(data), int64(len(data)), sha256.Sum256(data))
	}
	expect := func(what, name string, ok bool) {
		t.Helper()
		ctx := t.Context()
		if !ok { // no need to wait for all attempts
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
		}
		err := send(ctx, name)
		if (err == nil) != ok {
			t.Errorf("%s: %v", what, err)
		}
		_, herr := f.bucket.Head(t.Context(), name)
		if (herr == nil) != ok || err != nil && strings.Contains(err.Error(), "sig=") {
			t.Errorf("%s: %v, in the store: %v", what, err, herr)
		}
	}
	at := func(n uint64) string { return cut.CutObject(machine, 1, n) }
	restart()
	key := func(n uint32) string { return cut.KeyObject(machine, 1<<12+n) }
	expect("the first key", key(0), true)
	expect("the first cut", at(1), true)
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	for n := uint64(2); n <= 5; n++ {
		expect("more cuts", at(n), true)
	}
	if n := f.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	expect("the cut with which less than half is left", at(6), true)
	if n := f.asked.Load(); n != 2 || f.ahead.Load() != 0 {
		t.Errorf("asked %d times; %d puts by addresses for an outage, with the vault there", n, f.ahead.Load())
	}
	f.down.Store(true)
	restart()
	expect("a cut, from the file", at(7), true)
	puts := f.puts.Load()
	expect("the key in use, that was sent before the restart", key(0), true)
	if f.puts.Load() != puts {
		t.Error("the key was sent again")
	}
	other := []byte("another key")
	if err := sink.Put(t.Context(), key(0), bytes.NewReader(other), int64(len(other)), sha256.Sum256(other)); dr.CodeOf(err) != dr.CodeVaultUnreachable {
		t.Errorf("another key of the same name: %v", err)
	}
	expect("the next key", key(1), true)
	restart()
	puts = f.puts.Load()
	expect("the next key, after another restart", key(1), true)
	if f.puts.Load() != puts {
		t.Error("the key was sent again")
	}
	expect("a part", cut.PartObject(machine, 1, 8, 77, 0), false)
	expect("another generation's cut", cut.CutObject(machine, 2, 8), false)
	expect("a cut that was not signed", at(17), false)
	if f.ahead.Load() != 2 {
		t.Errorf("%d puts", f.ahead.Load())
	}

	// Taken over: what was signed is forgotten.
	f.down.Store(false)
	f.fenced.Store(true)
	if err := send(t.Context(), at(8)); dr.CodeOf(err) != dr.CodeGenerationFenced {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	f.down.Store(true)
	expect("after the takeover", at(9), false)

	// Damage costs the use, no more.
	f.down.Store(false)
	f.fenced.Store(false)
	expect("as before", at(10), true)
	if err := os.WriteFile(file, []byte(`{"version":1,"urls":{"x":{"url":"https://x/?sig=secret"`), 0o600); err != nil {
		t.Fatal(err)
	}
	f.down.Store(true)
	restart()
	expect("damaged", at(11), false)
	f.down.Store(false)
	expect("damaged, the vault is back", at(11), true)
	if strings.Contains(logs.String(), "sig=") {
		t.Errorf("the log shows a signature:\n%s", logs.String())
	}
}
