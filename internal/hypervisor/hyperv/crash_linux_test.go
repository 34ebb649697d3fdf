package hyperv_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv"
)

// dying is a session of a process that dies after some calls: from then on
// nothing reaches the host any more. With answered false, the last call takes
// effect, but its answer is lost.
type dying struct {
	cim.Session
	answered bool

	mu    sync.Mutex
	calls int
	limit int
}

func (d *dying) step() (pass, lose bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	return d.calls <= d.limit, d.calls == d.limit && !d.answered
}

func (d *dying) dead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls >= d.limit
}

var errDead = &cim.Error{Code: cim.CodeUnavailable, Op: "call", Message: "the process is dead"}

func (d *dying) Query(ctx context.Context, ns, wql string) ([]*cim.Instance, error) {
	pass, lose := d.step()
	if !pass {
		return nil, errDead
	}
	list, err := d.Session.Query(ctx, ns, wql)
	if lose {
		return nil, errDead
	}
	return list, err
}

func (d *dying) Get(ctx context.Context, p cim.Path) (*cim.Instance, error) {
	pass, lose := d.step()
	if !pass {
		return nil, errDead
	}
	in, err := d.Session.Get(ctx, p)
	if lose {
		return nil, errDead
	}
	return in, err
}

func (d *dying) Invoke(ctx context.Context, p cim.Path, method string, in cim.Args) (cim.Out, error) {
	pass, lose := d.step()
	if !pass {
		return cim.Out{}, errDead
	}
	out, err := d.Session.Invoke(ctx, p, method, in)
	if lose {
		return cim.Out{}, errDead
	}
	return out, err
}

// replica is what a receiver of cuts holds.
type replica map[string][]byte

func (r replica) apply(ctx context.Context, c hypervisor.Cut) error {
	for _, d := range c.Info().Disks {
		if int64(len(r[d.ID])) != d.Size {
			r[d.ID] = append(r[d.ID], make([]byte, d.Size)...)[:d.Size]
		}
		if d.Whole {
			for i := range r[d.ID] {
				r[d.ID][i] = 0xee
			}
		}
		if err := c.Extents(ctx, d.ID, 0, d.Size, func(x hypervisor.Range) error {
			p := r[d.ID][x.Off : x.Off+x.Len]
			switch {
			case !x.Changed:
				return nil
			case x.Zero:
				clear(p)
				return nil
			}
			return c.ReadAt(ctx, d.ID, p, x.Off)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (r replica) equal(t testing.TB, vm *model.VM, what string) {
	t.Helper()
	for id, b := range r {
		want, err := vm.Disk(id).Content()
		must(t, err)
		if !bytes.Equal(b, want) {
			t.Fatalf("%s: disk %s is not the guest's", what, id)
		}
	}
}

func scribble(t testing.TB, vm *model.VM, rng *rand.Rand) {
	t.Helper()
	for _, id := range []string{diskA, diskB} {
		for range 3 {
			p := make([]byte, 512*(1+rng.IntN(16)))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			off := rng.Int64N(4<<20/512) * 512
			eventually(t, func() error { return vm.Disk(id).Write(off, p) })
		}
	}
}

func (r *rig) request(base, tag string) hypervisor.CutRequest {
	return hypervisor.CutRequest{VM: r.id(), Disks: []string{diskA, diskB}, Base: base, Tag: tag}
}

// TestDiesAfterAnyCall: an agent dies after each call of a cycle in turn, with and
// without having heard the last answer. Its successor's cut is right, and nothing is left over.
func TestDiesAfterAnyCall(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("slow")
	}
	for _, c := range []struct {
		name             string
		inline, answered bool
	}{{"answered", true, true}, {"answer lost", true, false}, {"job", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(cfg *hvsim.Config, _ *hvsim.VMSpec) { cfg.Inline = c.inline })
			rng := rand.New(rand.NewPCG(3, 4))
			ctx := t.Context()
			rep := replica{}
			base := ""
			cycle := func(h *hyperv.Host, tag string) (token string, err error) {
				cut, err := h.BeginCut(ctx, r.request(base, tag))
				if err != nil {
					return "", err
				}
				copyOf := replica{}
				for id, b := range rep {
					copyOf[id] = bytes.Clone(b)
				}
				if err := copyOf.apply(ctx, cut); err != nil {
					return "", err
				}
				rep = copyOf
				token = cut.Info().Token
				if err := cut.End(ctx); err != nil {
					return token, err
				}
				return token, h.Forget(ctx, r.id(), []string{token})
			}
			step := 1
			if !c.inline {
				step = 7 // more calls, and a dead one in a wait takes its time
			}
			for n := 1; ; n += step {
				scribble(t, r.vm, rng)
				d := &dying{Session: r.sim, answered: c.answered, limit: n}
				cfg := r.cfg
				cfg.Session, cfg.JobTimeout = d, 200*time.Millisecond // a job that can't be asked for is asked for again until then
				victim, err := hyperv.Open(ctx, cfg)
				if err == nil {
					var token string
					if token, err = cycle(victim, fmt.Sprintf("v%d", n)); token != "" {
						base = token // the receiver has committed it
					}
				}
				if err == nil && !d.dead() {
					if n < 20 {
						t.Errorf("a cycle took %d calls", n)
					}
					must(t, victim.Close())
					break
				}
				if err == nil && c.answered {
					must(t, victim.Close())
				}
				r.killed(victim)
				scribble(t, r.vm, rng)
				heir := r.open(t)
				token, err := cycle(heir, fmt.Sprintf("h%d", n))
				if err != nil {
					t.Fatalf("after a death at call %d: %v (code %s)", n, err, dr.CodeOf(err))
				}
				base = token
				rep.equal(t, r.vm, fmt.Sprintf("cut after a death at call %d", n))
				if got := r.points(); len(got) != 1 || got[0] != base {
					t.Fatalf("after a death at call %d the host has reference points %v, want %s", n, got, base)
				}
				for _, cp := range r.vm.State().Checkpoints {
					t.Fatalf("after a death at call %d the host has checkpoint %s", n, cp.Name)
				}
				must(t, heir.Close())
				if victim != nil {
					_ = victim.Close() // its files are what a dead process would leave to the kernel
				}
			}
		})
	}
}

// TestBootDiesAfterAnyCall is the same for a recovery VM.
func TestBootDiesAfterAnyCall(t *testing.T) {
	t.Parallel()
	for _, answered := range []bool{true, false} {
		t.Run(fmt.Sprint(answered), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(cfg *hvsim.Config, _ *hvsim.VMSpec) { cfg.Inline = true })
			ctx := t.Context()
			h := r.open(t)
			cfg, err := h.Config(ctx, r.id())
			must(t, err)
			path := filepath.Join(r.dir, "H1", "C", "rec", "a.vhdx")
			spec := hypervisor.BootSpec{Name: "rec", Owner: "me", Config: cfg, Disks: []hypervisor.BootDisk{{ID: diskA, Size: 4 << 20, Path: path}}}
			before := len(r.sim.VMs())
			for n := 1; ; n++ {
				d := &dying{Session: r.sim, answered: answered, limit: n}
				vcfg := r.cfg
				vcfg.Session = d
				r.killed(r.hosts...)
				victim, err := hyperv.Open(ctx, vcfg)
				if err == nil {
					_, err = victim.Boot(ctx, spec)
				}
				if err == nil && !d.dead() {
					r.killed(victim)
					must(t, r.open(t).Remove(ctx, "", "me"))
					must(t, victim.Close())
					break
				}
				r.killed(victim)
				h := r.open(t)
				if n%2 == 0 { // Boot goes on where the dead one stopped
					id, err := h.Boot(ctx, spec)
					must(t, err)
					s, err := h.State(ctx, id)
					must(t, err)
					if s != hypervisor.PowerOn {
						t.Errorf("after a death at call %d the VM is %s", n, s)
					}
				}
				must(t, h.Remove(ctx, "", "me"))
				if got := len(r.sim.VMs()); got != before {
					t.Fatalf("after a death at call %d the host has %d VMs, want %d", n, got, before)
				}
				if _, err := os.Stat(path); !os.IsNotExist(err) {
					t.Fatalf("after a death at call %d a disk is left: %v", n, err)
				}
				if victim != nil {
					_ = victim.Close() // dead
				}
			}
		})
	}
}
