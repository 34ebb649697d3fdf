package oracle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"holdfast/internal/capture"
	"holdfast/internal/compact"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/sim"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
)

var errKilled = errors.New("killed")

// world is a VM on a simulated host, its agent, a store, and the truth: what the
// disks were at each token.
type world struct {
	t       testing.TB
	host    *sim.Host
	vm      *sim.VM
	bucket  *mem.Bucket
	priv    cut.VaultPrivateKey
	machine dr.MachineID
	dir     string
	gen     dr.Generation
	base    cut.Ref
	known   []cut.Disk // every disk that the history ever listed
	rng     *rand.Rand
	saw     map[string]int

	mu    sync.Mutex
	flat  map[string]map[string][]byte   // token → disk → content
	sums  map[string]map[string][32]byte // in place of flat, if not nil
	fault func(name string) (before, after error)

	run    *capture.Replicator
	cancel context.CancelFunc
	done   chan error
	asked  int  // resynchronizations asked for
	full   bool // the last one sends everything again
}

func newWorld(t testing.TB, rng *rand.Rand, sizes ...int64) *world {
	t.Helper()
	priv, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, host: sim.New(sim.Config{}), bucket: mem.New(), priv: priv, machine: dr.MachineID(uuid.NewString()), dir: filepath.Join(t.TempDir(), "agent"),
		rng: rng, flat: map[string]map[string][]byte{}, saw: map[string]int{}}
	spec := sim.VMSpec{Name: "app"}
	for i, n := range sizes {
		spec.Disks = append(spec.Disks, sim.DiskSpec{ID: "vd" + string(rune('a'+i)), Size: n})
	}
	w.vm = w.host.AddVM(spec)
	t.Cleanup(func() { w.stop(); w.host.Close() })
	w.takeover("protect")
	return w
}

func (w *world) disks() []string {
	vms, err := w.host.Inventory(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for _, v := range vms {
		for _, d := range v.Disks {
			if v.ID == w.vm.ID() {
				ids = append(ids, d.ID)
			}
		}
	}
	return ids
}

// BeginCut remembers the truth at the instant of the cut: nothing writes meanwhile.
func (w *world) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := w.host.BeginCut(ctx, req)
	if err != nil {
		return nil, err
	}
	flat, sums := map[string][]byte{}, map[string][32]byte{}
	for _, d := range req.Disks {
		b, err := w.vm.Content(d)
		if err != nil {
			w.t.Error(err)
		}
		flat[d], sums[d] = b, sha256.Sum256(b)
	}
	if w.sums != nil {
		w.sums[c.Info().Token] = sums
	} else {
		w.flat[c.Info().Token] = flat
	}
	return c, nil
}

func (w *world) Config(ctx context.Context, vm dr.VMID) (hypervisor.VMConfig, error) {
	return w.host.Config(ctx, vm)
}

func (w *world) Forget(ctx context.Context, vm dr.VMID, keep []string) error {
	return w.host.Forget(ctx, vm, keep)
}

// Put is a sink with the contract's semantics, and faults.
func (w *world) Put(ctx context.Context, name string, body io.ReaderAt, size int64, sum [32]byte) error {
	w.mu.Lock()
	fault := w.fault
	w.mu.Unlock()
	var before, after error
	if fault != nil {
		if before, after = fault(name); before != nil {
			return before
		}
	}
	if o, err := cut.ParseObject(name); err == nil && o.Gen != 0 && o.Gen != w.gen {
		return dr.New(dr.KindFenced, dr.CodeGenerationFenced, "oracle.Put", "generation %d is fenced", o.Gen)
	}
	err := w.bucket.PutNew(ctx, name, io.NewSectionReader(body, 0, size), size, &sum)
	if errors.Is(err, objstore.ErrExists) {
		info, derr := objstore.Digest(ctx, w.bucket, name)
		if derr != nil {
			return derr
		}
		if info.SHA256 != sum {
			return dr.New(dr.KindConflict, dr.CodeObjectConflict, "oracle.Put", "object %s exists with other content", name)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	return after
}

func (w *world) store() *store.Store {
	return store.New(store.Config{Bucket: w.bucket, Keys: store.NewKeyring(w.bucket, w.priv)})
}

// Roots implements capture.Digests as the vault does.
func (w *world) Roots(ctx context.Context, at cut.Ref, disk uint16, first, count uint32) ([]capture.TileRoot, error) {
	v, err := w.store().OpenPosition(ctx, w.machine, at.Gen, at.N)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	w.mu.Lock()
	w.saw["digests"]++
	w.mu.Unlock()
	roots, err := v.TileRoots(ctx, disk, first, count)
	var out []capture.TileRoot
	for _, r := range roots {
		out = append(out, capture.TileRoot{Tile: r.Tile, Zero: r.Zero, Key: r.Key, Root: r.Root})
	}
	return out, err
}

func (w *world) Blocks(ctx context.Context, at cut.Ref, disk uint16, tile uint32) (cut.DigestKey, [][16]byte, error) {
	v, err := w.store().OpenPosition(ctx, w.machine, at.Gen, at.N)
	if err != nil {
		return cut.DigestKey{}, nil, err
	}
	defer v.Close()
	return v.TileBlocks(ctx, disk, tile)
}

// takeover opens the next generation on the newest point.
func (w *world) takeover(reason string) {
	w.t.Helper()
	w.gen++
	if chain := w.chain(); len(chain.Path) > 0 {
		w.base = chain.Path[len(chain.Path)-1].Ref
		w.known = nil
		for _, c := range slices.Backward(chain.Path) {
			for _, d := range c.Commit.Disks {
				if !slices.ContainsFunc(w.known, func(k cut.Disk) bool { return k.Index == d.Index }) {
					if c.Ref != w.base {
						d.Size = 0
					}
					w.known = append(w.known, d)
				}
			}
		}
	}
	err := store.WriteGeneration(context.Background(), w.bucket, cut.GenInfo{Machine: w.machine, Gen: w.gen, Base: w.base, Agent: "a", Reason: reason, Time: time.Now()})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) assignment() capture.Assignment {
	a := capture.Assignment{VM: w.vm.ID(), Disks: w.disks(), Gen: w.gen, Base: w.base, BaseDisks: w.known, CopyFrequency: time.Hour, VaultKey: w.priv.Public()}
	if w.asked > 0 {
		a.ResyncRequest, a.ResyncFull = fmt.Sprint(w.asked), w.full
	}
	return a
}

// start begins a new agent process.
func (w *world) start(step func(string) error) {
	w.t.Helper()
	w.host = w.host.Restart()
	r, err := capture.New(capture.Config{Machine: w.machine, Dir: w.dir, Source: w, Sink: w, Digests: w, PartSize: 256 << 10, Step: step})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.run, w.cancel, w.done = r, cancel, make(chan error, 1)
	r.Assign(w.assignment())
	go func(done chan error) { done <- r.Run(ctx) }(w.done)
}

// stop ends the process and returns what Run said.
func (w *world) stop() error {
	if w.run == nil {
		return nil
	}
	w.cancel()
	err := <-w.done
	w.run = nil
	return err
}

func (w *world) drain(ctx context.Context) error {
	_, _, err := w.run.Drain(ctx)
	return err
}

func (w *world) write(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := w.disks()
	for range n {
		d := ids[w.rng.IntN(len(ids))]
		size := w.vm.Size(d)
		off := w.rng.Int64N(size)
		p := make([]byte, min(1+w.rng.Int64N(20000), size-off))
		var err error
		switch w.rng.IntN(9) {
		case 0:
			err = w.vm.Trim(d, off, int64(len(p)))
		case 1, 2: // zeroes
			err = w.vm.Write(d, off, p)
		case 3, 4: // what is there already
			if err = w.vm.Read(d, off, p); err == nil {
				err = w.vm.Write(d, off, p)
			}
		default:
			for i := range p {
				p[i] = byte(w.rng.Uint32())
			}
			err = w.vm.Write(d, off, p)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) chain() *store.Chain {
	w.t.Helper()
	chain, err := w.store().Chain(context.Background(), w.machine)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range chain.Refused {
		w.t.Fatalf("cut %s is refused: %v", dr.PointName(r.Gen, r.N), r.Err)
	}
	return chain
}

// compactor makes passes with every clock in its way.
func (w *world) compactor(step func(string) error) *compact.Compactor {
	return compact.New(compact.Config{Bucket: w.bucket, Store: w.store(), Keys: store.NewKeyring(w.bucket, w.priv), Compactor: "vault", Grace: 1, LeftoverGrace: time.Hour,
		BaseEvery: 1 + w.rng.IntN(5), MapEvery: 1 + w.rng.IntN(6), SmallObject: 1 + w.rng.Int64N(100<<10), SegmentSize: 64 << 10, Step: step})
}

// check compares every listed point with the truth and returns how many there are.
func (w *world) check(what string) int {
	w.t.Helper()
	s := w.store()
	chain := w.chain()
	for _, p := range chain.Points {
		name := dr.PointName(p.Gen, p.N)
		w.mu.Lock()
		flat := w.flat[p.Commit.Token]
		w.mu.Unlock()
		if flat == nil {
			w.t.Fatalf("%s: point %s has a token that the host never gave: %q", what, name, p.Commit.Token)
		}
		v, err := s.OpenPoint(context.Background(), w.machine, p.Gen, p.N)
		if err != nil {
			w.t.Fatalf("%s: %v", what, err)
		}
		for _, d := range v.Disks() {
			got := make([]byte, d.Size)
			if err := v.ReadAt(context.Background(), d.ID, got, 0); err != nil {
				w.t.Fatalf("%s: point %s: %v", what, name, err)
			}
			if !bytes.Equal(got, flat[d.ID]) {
				at := slices.IndexFunc(got, func(byte) bool { return false })
				for i := range min(len(got), len(flat[d.ID])) {
					if got[i] != flat[d.ID][i] {
						at = i
						break
					}
				}
				w.t.Fatalf("%s: point %s: disk %s (%d bytes, source %d) differs at byte %d", what, name, d.ID, len(got), len(flat[d.ID]), at)
			}
		}
		if err := v.Close(); err != nil {
			w.t.Fatal(err)
		}
	}
	return len(chain.Points)
}
