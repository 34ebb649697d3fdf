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

func TestMain(m *testing.M) {
	warm()
	goleak.VerifyTestMain(m)
}

// warm makes the decoder that package cut shares, outside of any synctest bubble.
func warm() {
	var out bytes.Buffer
	h := cut.Header{Kind: cut.KindCut, Machine: dr.MachineID(uuid.NewString()), Gen: 1}
	key := cut.NewEpochKey()
	w, err := cut.NewWriter(&out, cut.WriterConfig{Header: h, Key: key})
	if err != nil {
		panic(err)
	}
	if _, err := w.Close(&cut.Commit{Gen: 1, Base: true, Time: time.Unix(1, 0), Consistency: dr.CrashConsistent, Note: strings.Repeat("x", 1000), Disks: []cut.Disk{{ID: "a", Size: 4096}}}); err != nil {
		panic(err)
	}
	if _, err := cut.Open(context.Background(), cut.Bytes(out.Bytes()), w.Name(), oneKey(key)); err != nil {
		panic(err)
	}
}

type oneKey cut.EpochKey

func (k oneKey) EpochKey(context.Context, dr.MachineID, uint32) (cut.EpochKey, error) {
	return cut.EpochKey(k), nil
}

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
	flat   map[string]map[string]image // token → disk → content
	last   map[string]image
	puts   map[string]int // object → how often sent in full
	putErr func(name string) error
	after  func(name string) error // a lost response
}

func newWorld(t testing.TB, seed uint64, sizes ...int64) *world {
	priv, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, host: sim.New(sim.Config{}), bucket: mem.New(), priv: priv, machine: dr.MachineID(uuid.NewString()), dir: filepath.Join(t.TempDir(), "r"),
		rng: rand.New(rand.NewPCG(seed, 99)), flat: map[string]map[string]image{}, last: map[string]image{}, puts: map[string]int{}}
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
	flat := map[string]image{}
	for _, d := range req.Disks {
		flat[d] = w.picture(d)
		w.last[d] = flat[d]
	}
	w.flat[c.Info().Token] = flat
	return c, nil
}

// image is the content of a disk: its size and the blocks of 64 KiB that are
// not zero, shared between images where they are the same.
type image struct {
	size   int64
	blocks map[int64]string
}

func (w *world) picture(disk string) image {
	x := image{size: w.vm.Size(disk), blocks: map[int64]string{}}
	old := w.last[disk]
	p := make([]byte, 1<<20)
	for off := int64(0); off < x.size; off += int64(len(p)) {
		q := p[:min(int64(len(p)), x.size-off)]
		if err := w.vm.Read(disk, off, q); err != nil {
			w.t.Error(err)
		}
		for at := 0; at < len(q); at += 64 << 10 {
			b := q[at:min(at+64<<10, len(q))]
			i := (off + int64(at)) / (64 << 10)
			switch {
			case old.blocks[i] == string(b):
				x.blocks[i] = old.blocks[i]
			case bytes.Count(b, []byte{0}) != len(b):
				x.blocks[i] = string(b)
			}
		}
	}
	return x
}

// differs returns the block at which a disk of a point is not the image, -1 if it is the same.
func (x image) differs(ctx context.Context, v *store.View, d store.DiskInfo) (int64, error) {
	if d.Size != x.size {
		return 0, fmt.Errorf("it has %d bytes, want %d", d.Size, x.size)
	}
	zero := string(make([]byte, 64<<10))
	p := make([]byte, 1<<20)
	for off := int64(0); off < d.Size; off += int64(len(p)) {
		q := p[:min(int64(len(p)), d.Size-off)]
		if err := v.ReadAt(ctx, d.ID, q, off); err != nil {
			return 0, err
		}
		for at := 0; at < len(q); at += 64 << 10 {
			b := q[at:min(at+64<<10, len(q))]
			want, ok := x.blocks[(off+int64(at))/(64<<10)]
			if !ok {
				want = zero[:len(b)]
			}
			if string(b) != want {
				return off + int64(at), nil
			}
		}
	}
	return -1, nil
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
			at, err := flat[d.ID].differs(ctx, v, d)
			if err != nil {
				w.t.Fatal(err)
			}
			if at >= 0 {
				w.t.Fatalf("point %s: disk %s differs from the source in the block at %d", dr.PointName(p.Gen, p.N), d.ID, at)
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
				t.Parallel()
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
					if label == "scan.tile" && life > 0 && life < 3 {
						w.vm.LoseTracking()
					}
					step := crash
					if life > 2 {
						step = nil
					}
					r := w.start(w.assignment(), func(c *capture.Config) { c.Step = step; c.PartSize = 16 << 10 })
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
