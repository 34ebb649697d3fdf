package upload_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/httpstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/pace"
	"holdfast/internal/upload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const machine = dr.MachineID("00000000-0000-4000-8000-000000000001")

var name = cut.CutObject(machine, 1, 7)

// vault is a fake vault over a bucket.
type vault struct {
	bucket objstore.Bucket
	signer *httpstore.Signer

	mu      sync.Mutex
	fenced  bool
	late    time.Duration // how old URLs are
	life    time.Duration // how long URLs live, if it is told
	fail    []error       // of the next Uploads
	batches []int         // sizes of the requests
	gens    []uint32
	hold    chan struct{} // if set, Uploads waits for it
	heads   int
}

func (v *vault) Uploads(ctx context.Context, r agentapi.UploadRequest) (agentapi.UploadResponse, error) {
	v.mu.Lock()
	v.batches = append(v.batches, len(r.Objects))
	v.gens = append(v.gens, r.Generation)
	hold, fenced, late := v.hold, v.fenced, v.late
	v.late = 0
	var err error
	if len(v.fail) > 0 {
		err, v.fail = v.fail[0], v.fail[1:]
	}
	v.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return agentapi.UploadResponse{}, ctx.Err()
		}
	}
	if err != nil {
		return agentapi.UploadResponse{}, err
	}
	if fenced {
		return agentapi.UploadResponse{}, dr.New(dr.KindFenced, dr.CodeGenerationFenced, "vault", "taken over")
	}
	var res agentapi.UploadResponse
	for _, o := range r.Objects {
		if strings.Contains(o.Name, "00bad") {
			return agentapi.UploadResponse{}, dr.Errorf(dr.KindForbidden, "vault", "object %s is not yours", o.Name)
		}
		sum, _ := hex.DecodeString(o.SHA256)
		signer := v.signer
		if late > 0 {
			signer = newSigner(v.signerBase(), func() time.Time { return time.Now().Add(-late) })
		}
		u, err := signer.SignPut(ctx, o.Name, o.Size, [32]byte(sum), time.Now().Add(time.Minute-late))
		if err != nil {
			return res, err
		}
		signed := agentapi.SignedURL{URL: u.URL, Headers: u.Headers}
		if v.life > 0 {
			signed.Expires = time.Now().Add(v.life)
		}
		res.URLs = append(res.URLs, signed)
	}
	return res, nil
}

func (v *vault) signerBase() string { return base }

func (v *vault) Head(ctx context.Context, r agentapi.HeadRequest) (agentapi.HeadResponse, error) {
	v.mu.Lock()
	v.heads++
	v.mu.Unlock()
	var res agentapi.HeadResponse
	for _, n := range r.Names {
		info, err := objstore.Digest(ctx, v.bucket, n)
		switch {
		case errors.Is(err, objstore.ErrNotExist):
			res.Objects = append(res.Objects, agentapi.HeadObject{})
		case err != nil:
			return res, dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "vault", "head: %w", err)
		default:
			res.Objects = append(res.Objects, agentapi.HeadObject{Exists: true, Size: info.Size, SHA256: hex.EncodeToString(info.SHA256[:])})
		}
	}
	return res, nil
}

// base is replaced by the transport below, so that no port is needed.
const base = "http://store.invalid"

var signKey = bytes.Repeat([]byte{7}, 32)

func newSigner(base string, now func() time.Time) *httpstore.Signer {
	s, err := httpstore.NewSigner(httpstore.SignerConfig{BaseURL: base, Key: signKey, Now: now})
	if err != nil {
		panic(err)
	}
	return s
}

// direct answers requests by a handler, without a network.
type direct struct{ h http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	in := r.Clone(r.Context())
	in.RequestURI = r.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	d.h.ServeHTTP(flusher{w}, in)
	return w.Result(), r.Context().Err()
}

// flusher accepts the deadlines that the handler sets.
type flusher struct{ *httptest.ResponseRecorder }

func (flusher) SetReadDeadline(time.Time) error  { return nil }
func (flusher) SetWriteDeadline(time.Time) error { return nil }

type env struct {
	*vault
	bucket *fault.Bucket
	logs   *bytes.Buffer
	u      *upload.Uploader
	sink   *upload.Sink
}

func setup(t *testing.T, change func(*upload.Config), faults ...fault.Fault) *env {
	t.Helper()
	b := fault.New(mem.New(), faults...)
	signer := newSigner(base, nil)
	h, err := httpstore.NewHandler(httpstore.HandlerConfig{Bucket: b, Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	e := &env{vault: &vault{bucket: b, signer: signer}, bucket: b, logs: &bytes.Buffer{}}
	cfg := upload.Config{Vault: e.vault, Transfer: httpstore.NewUploader(httpstore.UploaderConfig{Transport: direct{h}}),
		BaseDelay: time.Millisecond, MaxDelay: 4 * time.Millisecond, Log: slog.New(slog.NewTextHandler(e.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&cfg)
	}
	if e.u, err = upload.New(cfg); err != nil {
		t.Fatal(err)
	}
	e.sink = e.u.Sink(machine, 1)
	t.Cleanup(func() {
		if err := e.u.Close(); err != nil {
			t.Error(err)
		}
		if left := b.Unfired(); len(left) > 0 {
			t.Errorf("faults that did not fire: %v", left)
		}
		if s := e.logs.String(); strings.Contains(s, "sig=") {
			t.Errorf("the log shows a signature: %s", s)
		}
	})
	return e
}

func (e *env) put(t *testing.T, key string, data []byte) error {
	t.Helper()
	err := e.sink.Put(t.Context(), key, bytes.NewReader(data), int64(len(data)), sha256.Sum256(data))
	if err != nil && strings.Contains(err.Error(), "sig=") {
		t.Errorf("the error shows a signature: %v", err)
	}
	return err
}

func (e *env) want(t *testing.T, key string, data []byte) {
	t.Helper()
	got, err := objstore.ReadAll(t.Context(), e.bucket, key, 1<<20)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("object %s: %q, %v; want %q", key, got, err, data)
	}
}

func TestPut(t *testing.T) {
	t.Parallel()
	data := []byte("the sealed object")
	t.Run("Created", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		e.want(t, name, data)
		if s := e.u.Stats(); s.Objects != 1 || s.Bytes != int64(len(data)) || s.Retries != 0 || e.heads != 0 {
			t.Errorf("stats %+v, %d heads", s, e.heads)
		}
	})
	t.Run("AlreadyThere", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		for range 2 {
			if err := e.put(t, name, data); err != nil {
				t.Fatal(err)
			}
		}
		if e.heads != 1 {
			t.Errorf("%d heads, want 1", e.heads)
		}
	})
	t.Run("Conflict", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"the other object..", "the SEALED object"} {
			if err := e.put(t, name, []byte(other)); dr.CodeOf(err) != dr.CodeObjectConflict {
				t.Errorf("put of other bytes: %v", err)
			}
		}
		e.want(t, name, data)
	})
	t.Run("LostResponse", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil, fault.Fault{Op: fault.Put, Kind: fault.ErrorAfter})
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		if s := e.u.Stats(); s.Bytes != int64(len(data)) {
			t.Errorf("%d bytes were sent for one object of %d", s.Bytes, len(data))
		}
	})
	t.Run("StoreDownForAWhile", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil, fault.Fault{Op: fault.Put, Kind: fault.ErrorBefore, More: 2})
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		if s := e.u.Stats(); s.Retries != 3 {
			t.Errorf("%d retries, want 3", s.Retries)
		}
	})
	t.Run("HeadCannotBeAsked", func(t *testing.T) {
		t.Parallel()
		// The put is stored, its answer lost, and the first look fails: "could not ask" is not "absent".
		e := setup(t, nil, fault.Fault{Op: fault.Put, Kind: fault.ErrorAfter}, fault.Fault{Op: fault.Head, Kind: fault.ErrorBefore})
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		e.want(t, name, data)
	})
	t.Run("OldURL", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		e.late = 30 * time.Minute
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		if len(e.batches) != 2 || e.heads != 1 {
			t.Errorf("%d URL requests and %d heads, want 2 and 1", len(e.batches), e.heads)
		}
	})
	t.Run("Fenced", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		e.fenced = true
		if err := e.put(t, name, data); dr.CodeOf(err) != dr.CodeGenerationFenced {
			t.Errorf("put under a closed generation: %v", err)
		}
		if len(e.batches) != 1 {
			t.Errorf("asked %d times", len(e.batches))
		}
	})
	t.Run("FencedButThere", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		e.fenced = true
		if err := e.put(t, name, data); err != nil {
			t.Errorf("put of what was stored before the takeover: %v", err)
		}
	})
	t.Run("SpoolDamaged", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		err := e.sink.Put(t.Context(), name, strings.NewReader("damaged"), 7, sha256.Sum256(data))
		if dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Errorf("put of other bytes than announced: %v", err)
		}
	})
	t.Run("OfAnotherMachine", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		if err := e.put(t, cut.CutObject("00000000-0000-4000-8000-000000000002", 1, 1), data); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("put: %v", err)
		}
	})
	t.Run("KeysGoUnderTheCurrentGeneration", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		e.sink.SetGeneration(9)
		if err := e.put(t, cut.KeyObject(machine, 1), data); err != nil {
			t.Fatal(err)
		}
		if err := e.put(t, name, data); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(e.gens) != "[9 1]" {
			t.Errorf("generations %v, want [9 1]", e.gens)
		}
	})
}

func TestStoreErrorsAreTyped(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		code dr.Code
	}{
		{objstore.ErrNoSpace, dr.CodeStoreFull}, {objstore.ErrReadOnly, dr.CodeStoreReadOnly}, {objstore.ErrUnavailable, dr.CodeStoreUnreachable},
	} {
		t.Run(string(c.code), func(t *testing.T) {
			t.Parallel()
			e := setup(t, nil, fault.Fault{Op: fault.Put, Kind: fault.ErrorBefore, Err: c.err, More: -1})
			err := e.put(t, name, []byte("x"))
			if dr.CodeOf(err) != c.code {
				t.Errorf("error %v has code %q", err, dr.CodeOf(err))
			}
			if s := e.u.Stats(); s.Retries != 4 {
				t.Errorf("%d retries, want 4", s.Retries)
			}
		})
	}
}

func TestVaultDown(t *testing.T) {
	t.Parallel()
	down := dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "client", "no route")
	t.Run("ForAWhile", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		e.fail = []error{down, down}
		if err := e.put(t, name, []byte("x")); err != nil {
			t.Error(err)
		}
	})
	t.Run("ForLong", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		e.fail = []error{down, down, down, down, down, down}
		if err := e.put(t, name, []byte("x")); dr.CodeOf(err) != dr.CodeVaultUnreachable {
			t.Errorf("put: %v", err)
		}
	})
	t.Run("NotTheVault", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		e.fail = []error{dr.New(dr.KindUnauthenticated, dr.CodeVaultIdentity, "client", "another certificate")}
		err := e.put(t, name, []byte("x"))
		if dr.CodeOf(err) != dr.CodeVaultUnreachable || !strings.Contains(dr.HintOf(err), "inspects TLS") {
			t.Errorf("put: %v (%s), hint %q: it must be tried again later", err, dr.CodeOf(err), dr.HintOf(err))
		}
	})
	t.Run("Cancelled", func(t *testing.T) {
		t.Parallel()
		e := setup(t, nil)
		e.hold = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if err := e.sink.Put(ctx, name, strings.NewReader("x"), 1, sha256.Sum256([]byte("x"))); !errors.Is(err, context.Canceled) {
			t.Errorf("put: %v", err)
		}
	})
}

func TestBatches(t *testing.T) {
	t.Parallel()
	e := setup(t, func(c *upload.Config) { c.Parallel = 64 })
	e.hold = make(chan struct{})
	var wg sync.WaitGroup
	var refused atomic.Int32
	put := func(i int, bad bool) {
		wg.Go(func() {
			key := cut.PartObject(machine, 1, 3, 1, i)
			if bad {
				key = cut.PartObject(machine, 1, 3, 0xbad, i)
			}
			if err := e.put(t, key, []byte(key)); dr.KindOf(err) == dr.KindForbidden && bad {
				refused.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	put(0, false)
	for ; ; time.Sleep(time.Millisecond) {
		e.mu.Lock()
		n := len(e.batches)
		e.mu.Unlock()
		if n == 1 {
			break
		}
	}
	for i := 1; i < 40; i++ {
		put(i, i == 17)
	}
	time.Sleep(20 * time.Millisecond) // lets most of them queue; the assertion below does not need all
	close(e.hold)
	wg.Wait()
	if refused.Load() != 1 {
		t.Errorf("%d objects were refused, want 1", refused.Load())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	most := 0
	for _, n := range e.batches {
		most = max(most, n)
	}
	if most < 2 {
		t.Errorf("URL requests of sizes %v: nothing was batched", e.batches)
	}
}

// gate is a transfer that counts how many run.
type gate struct {
	mu        sync.Mutex
	now, most int
	pace      time.Duration
	read      bool
}

func (g *gate) Put(ctx context.Context, url string, _ map[string]string, body io.ReaderAt, size int64) (httpstore.Outcome, error) {
	g.mu.Lock()
	g.now++
	g.most = max(g.most, g.now)
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.now--
		g.mu.Unlock()
	}()
	if g.read {
		if _, err := io.Copy(io.Discard, io.NewSectionReader(body, 0, size)); err != nil {
			return httpstore.Undecided, &httpstore.UploadError{Err: err}
		}
	}
	time.Sleep(g.pace)
	return httpstore.Created, nil
}

func TestTilesLeaveRoomForCuts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &gate{pace: time.Minute}
		e := setup(t, func(c *upload.Config) { c.Parallel, c.Transfer = 4, g })
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				if err := e.put(t, cut.TileObject(machine, 1, 0, uint32(i), 0, cut.NewUID()), []byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if g.now != 2 {
			t.Errorf("%d tiles are being sent, want 2", g.now)
		}
		if err := e.put(t, name, []byte("x")); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > time.Minute {
			t.Errorf("the cut waited for tiles: %v", d)
		}
		wg.Wait()
		if d := time.Since(start); d != 6*time.Minute {
			t.Errorf("12 tiles, two at a time, took %v", d)
		}
	})
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := setup(t, func(c *upload.Config) { c.Bandwidth, c.Transfer = 1<<20, &gate{read: true} })
		data := make([]byte, 8<<20)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				if err := e.put(t, cut.CutObject(machine, 1, uint64(i)), data); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(start).Seconds(); d < 31 || d > 33 {
			t.Errorf("32 MiB at 1 MiB/s took %.1f s", d)
		}
	})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]upload.Config{
		"Empty":        {},
		"LowBandwidth": {Vault: &vault{}, Transfer: &gate{}, Bandwidth: 1000},
		"Two":          {Vault: &vault{}, Transfer: &gate{}, Bandwidth: 1 << 20, Limit: pace.NewLimiter(nil, nil)},
		"Negative":     {Vault: &vault{}, Transfer: &gate{}, Parallel: -1},
	} {
		if _, err := upload.New(c); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
