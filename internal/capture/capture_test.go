package capture_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a VM, a store and the oracle: what the disks were at each token.
type world struct {
	t       testing.TB
	host    *sim.Host
	vm      *sim.VM
	bucket  *mem.Bucket
	priv    cut.VaultPrivateKey
	machine dr.MachineID
	dir     string
	disks   []string
	rng     *rand.Rand

	mu     sync.Mutex
	flat   map[string]map[string][]byte // token → disk → content
	puts   map[string]int               // object → how often sent in full
	putErr func(name string) error
	after  func(name string) error // a lost response
}

func newWorld(t testing.TB, seed uint64, sizes ...int64) *world {
	priv, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, host: sim.New(sim.Config{}), bucket: mem.New(), priv: priv, machine: dr.MachineID(uuid.NewString()), dir: filepath.Join(t.TempDir(), "r"),
		rng: rand.New(rand.NewPCG(seed, 99)), flat: map[string]map[string][]byte{}, puts: map[string]int{}}
	spec := sim.VMSpec{Name: "app"}
	for i, n := range sizes {
		id := "vd" + string(rune('a'+i))
		spec.Disks = append(spec.Disks, sim.DiskSpec{ID: id, Size: n})
		w.disks = append(w.disks, id)
	}
	w.vm = w.host.AddVM(spec)
	t.Cleanup(func() { w.host.Close() })
	return w
}

// BeginCut remembers the truth at the instant of the cut: nothing writes meanwhile.
func (w *world) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := w.host.BeginCut(ctx, req)
	if err != nil {
		return nil, err
	}
	flat := map[string][]byte{}
	for _, d := range req.Disks {
		b, err := w.vm.Content(d)
		if err != nil {
			w.t.Error(err)
		}
		flat[d] = b
	}
	w.flat[c.Info().Token] = flat
	return c, nil
}

func (w *world) Config(ctx context.Context, vm dr.VMID) (hypervisor.VMConfig, error) {
	return w.view().Config(ctx, vm)
}

func (w *world) Forget(ctx context.Context, vm dr.VMID, keep []string) error {
	return w.view().Forget(ctx, vm, keep)
}

func (w *world) view() *sim.Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.host
}

// Put is a sink with the contract's semantics over a bucket.
func (w *world) Put(ctx context.Context, name string, body io.ReaderAt, size int64, sum [32]byte) error {
	w.mu.Lock()
	putErr, after := w.putErr, w.after
	w.mu.Unlock()
	if putErr != nil {
		if err := putErr(name); err != nil {
			return err
		}
	}
	err := w.bucket.PutNew(ctx, name, io.NewSectionReader(body, 0, size), size, &sum)
	if errors.Is(err, objstore.ErrExists) {
		info, err := objstore.Digest(ctx, w.bucket, name)
		if err != nil {
			return err
		}
		if info.SHA256 != sum {
			return dr.New(dr.KindConflict, dr.CodeObjectConflict, "test.Put", "object %s exists with other content", name)
		}
		return nil
	}
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.puts[name]++
	w.mu.Unlock()
	if after != nil {
		return after(name)
	}
	return nil
}

func (w *world) write(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range n {
		d := w.disks[w.rng.IntN(len(w.disks))]
		size := w.vm.Size(d)
		off := w.rng.Int64N(size)
		p := make([]byte, min(1+w.rng.Int64N(20000), size-off))
		switch w.rng.IntN(4) {
		case 0: // zeroes
		case 1: // what is there already: tracked as changed, and the same
			if err := w.vm.Read(d, off, p); err != nil {
				w.t.Error(err)
			}
		default:
			for i := range p {
				p[i] = byte(w.rng.Uint32())
			}
		}
		var err error
		if w.rng.IntN(8) == 0 {
			err = w.vm.Trim(d, off, int64(len(p)))
		} else {
			err = w.vm.Write(d, off, p)
		}
		if err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) assignment() capture.Assignment {
	return capture.Assignment{VM: w.vm.ID(), Disks: w.disks, Gen: 1, CopyFrequency: time.Hour, VaultKey: w.priv.Public()}
}

type running struct {
	*capture.Replicator
	cancel context.CancelFunc
	done   chan error
}

func (w *world) start(a capture.Assignment, mod func(*capture.Config)) *running {
	w.t.Helper()
	w.mu.Lock()
	w.host = w.host.Restart() // a new agent process
	w.mu.Unlock()
	cfg := capture.Config{Machine: w.machine, Dir: w.dir, Source: w, Sink: w, PartSize: 1 << 20}
	if mod != nil {
		mod(&cfg)
	}
	r, err := capture.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	run := &running{Replicator: r, cancel: cancel, done: make(chan error, 1)}
	r.Assign(a)
	go func() { run.done <- r.Run(ctx) }()
	w.t.Cleanup(func() { cancel() })
	return run
}

func (r *running) stop(t testing.TB) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Fatalf("Run: %v", err)
	}
}

func (w *world) drain(r *running) cut.Ref {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	ref, _, err := r.Drain(ctx)
	if err != nil {
		w.t.Fatalf("drain: %v", err)
	}
	return ref
}

func (w *world) store() *store.Store {
	return store.New(store.Config{Bucket: w.bucket, Keys: store.NewKeyring(w.bucket, w.priv)})
}

// open writes the generation object that the vault would have written.
func (w *world) open(gen dr.Generation, base cut.Ref) {
	w.t.Helper()
	if err := store.WriteGeneration(w.t.Context(), w.bucket, cut.GenInfo{Machine: w.machine, Gen: gen, Base: base, Agent: "a", Reason: "test", Time: time.Unix(1e9, 0)}); err != nil {
		w.t.Fatal(err)
	}
}

// check compares every recovery point with the oracle and returns how many there are.
func (w *world) check() int {
	w.t.Helper()
	ctx := w.t.Context()
	s := w.store()
	chain, err := s.Chain(ctx, w.machine)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range chain.Refused {
		w.t.Errorf("cut %d is refused: %v", r.N, r.Err)
	}
	for _, p := range chain.Points {
		w.mu.Lock()
		flat := w.flat[p.Commit.Token]
		w.mu.Unlock()
		if flat == nil {
			w.t.Fatalf("cut %d has a token that the host never gave: %q", p.N, p.Commit.Token)
		}
		v, err := s.OpenPoint(ctx, w.machine, p.Gen, p.N)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, d := range v.Disks() {
			got := make([]byte, d.Size)
			if err := v.ReadAt(ctx, d.ID, got, 0); err != nil {
				w.t.Fatal(err)
			}
			if !bytes.Equal(got, flat[d.ID]) {
				for i := range got {
					if got[i] != flat[d.ID][i] {
						w.t.Fatalf("point %s: disk %s differs from the source at byte %d", dr.PointName(p.Gen, p.N), d.ID, i)
					}
				}
				w.t.Fatalf("point %s: disk %s has another size", dr.PointName(p.Gen, p.N), d.ID)
			}
		}
		v.Close()
	}
	return len(chain.Points)
}

func TestEveryCutIsTheSource(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		w := newWorld(t, seed, 5<<20, 1<<20+512)
		w.open(1, cut.Ref{})
		w.write(40)
		r := w.start(w.assignment(), nil)
		for range 15 {
			w.write(w.rng.IntN(12))
			w.drain(r)
		}
		r.stop(t)
		if n := w.check(); n != 15 && n != 16 {
			t.Errorf("%d points", n)
		}
		if n := len(w.vm.Tokens()); n > 2 {
			t.Errorf("%d tokens are left at the host: %v", n, w.vm.Tokens())
		}
	}
}

// Killed at every labelled step, first in the initial replication and then in
// a delta, it goes on with nothing lost and nothing that is committed sent again.
func TestCrashAtEveryStep(t *testing.T) {
	fired := map[string]int{}
	var mu sync.Mutex
	t.Cleanup(func() {
		for _, label := range capture.Steps() {
			if fired[label] == 0 {
				t.Errorf("step %q never fired", label)
			}
		}
	})
	for i, label := range capture.Steps() {
		for nth := 1; nth <= 2; nth++ {
			if nth > 1 && testing.Short() {
				continue
			}
			t.Run(fmt.Sprintf("%s-%d", label, nth), func(t *testing.T) {
				size := int64(2 << 20)
				if strings.HasPrefix(label, "initial.tile") {
					size = cut.TileSize + 1<<20 // more than one tile
				}
				w := newWorld(t, uint64(i*10+nth), size, 1<<20)
				w.open(1, cut.Ref{})
				w.write(60)
				count := 0
				crash := func(at string) error {
					mu.Lock()
					defer mu.Unlock()
					if at == label {
						if count++; count == nth {
							fired[label]++
							return errors.New("crash at " + label)
						}
					}
					return nil
				}
				for life := range 5 {
					step := crash
					if life > 2 {
						step = nil
					}
					r := w.start(w.assignment(), func(c *capture.Config) { c.Step = step; c.PartSize = 64 << 10 })
					w.live(r, 3)
				}
				if n := w.check(); n < 2 {
					t.Errorf("%d points", n)
				}
				for name, n := range w.puts {
					if n > 1 {
						t.Errorf("%s was sent %d times", name, n)
					}
				}
			})
		}
	}
}

// live makes cuts until the replicator dies at a step or has made n.
func (w *world) live(r *running, n int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range n {
			w.write(6)
			if _, _, err := r.Drain(ctx); err != nil {
				if ctx.Err() == nil {
					w.t.Logf("drain: %v", err)
				}
				return
			}
		}
	}()
	var err error
	select {
	case err = <-r.done:
		cancel()
		<-over
	case <-over:
		r.cancel()
		err = <-r.done
	}
	if err != nil && !strings.Contains(err.Error(), "crash at") {
		w.t.Errorf("Run: %v", err)
	}
}
