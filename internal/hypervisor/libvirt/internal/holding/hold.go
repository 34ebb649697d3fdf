package holding

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// A group cut needs one instant on several QEMU processes, so their guests are
// suspended together, the backup jobs begun, and all resumed. Freezing file
// systems would not do: it holds neither raw disks nor what a guest answers from
// memory. Which VMs are held is written down first, and every way out,
// that of the next process included, ends with asking libvirt until it says that they run.

// lateCall is how long libvirt may take to execute a call after its client has
// gone: calls wait up to 30 s for a domain's lock.
const lateCall = 35 * time.Second

// Hold is a set of guests that stand still together.
type Hold struct {
	keeper *Keeper
	doms   []golibvirt.Domain
	since  time.Time
	timer  *time.Timer

	mu      sync.Mutex
	held    map[golibvirt.UUID]bool // suspended by us; true = for certain
	expired bool
	ended   time.Time

	once sync.Once
}

// Hold suspends the guests that run. On an error all are released.
func (k *Keeper) Hold(ctx context.Context, doms []golibvirt.Domain) (*Hold, error) {
	g := &Hold{keeper: k, doms: doms, since: time.Now(), held: map[golibvirt.UUID]bool{}}
	g.timer = time.AfterFunc(k.cfg.GroupHold, func() {
		g.mu.Lock()
		g.expired = true
		g.mu.Unlock()
		g.Release()
	})
	errs := make([]error, len(doms))
	var wg sync.WaitGroup
	for i, dom := range doms {
		wg.Go(func() { errs[i] = g.suspend(ctx, dom) })
	}
	wg.Wait()
	k.cfg.Stage("held")
	if err := errors.Join(errs...); err != nil {
		g.Release()
		return nil, err
	}
	return g, nil
}

func (k *Keeper) holdMark(dom golibvirt.Domain) string {
	return filepath.Join(k.cfg.Dir, holdDir, string(virt.ID(dom.UUID)))
}

// suspend stops one guest, unless somebody else has.
func (g *Hold) suspend(ctx context.Context, dom golibvirt.Domain) (err error) {
	const op = "BeginGroup"
	k := g.keeper
	late, noted := k.stopRelease(virt.ID(dom.UUID)), false
	defer func() {
		if late && !noted { // this hold does not take over
			k.releaseLater(dom)
		}
	}()
	s, err := k.virt.State(ctx, op, dom)
	if err != nil {
		return err
	}
	if s != golibvirt.DomainRunning && s != golibvirt.DomainBlocked && !late {
		return nil
	}
	if err := os.WriteFile(k.holdMark(dom), []byte(dom.Name+"\n"), 0o640); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "write down that VM %s is held: %w", dom.Name, err)
	}
	if noted = g.note(dom, false); !noted {
		if !late {
			k.unmarkHold(dom)
		}
		return g.late()
	}
	err = k.virt.Call(ctx, op, "suspend VM "+dom.Name, func(c *virt.Conn) error { return c.DomainSuspend(dom) })
	if err == nil || virt.Answered(err) {
		g.note(dom, !late)
	}
	return err
}

// note remembers that a guest is, or may be, suspended; false if the hold is over.
func (g *Hold) note(dom golibvirt.Domain, certain bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.expired {
		return false
	}
	g.held[dom.UUID] = certain
	return true
}

func (g *Hold) late() error {
	return dr.New(dr.KindUnavailable, dr.CodeHypervisorTimeout, "libvirt.BeginGroup", "the cuts of %d VMs did not begin within %v; the VMs were released", len(g.doms), g.keeper.cfg.GroupHold)
}

// Intact returns an error if the guests have not all stood still until now.
func (g *Hold) Intact(ctx context.Context) error {
	const op = "libvirt.BeginGroup"
	for _, dom := range g.doms {
		s, err := g.keeper.virt.State(ctx, "BeginGroup", dom)
		if err != nil {
			return err
		}
		g.mu.Lock()
		expired := g.expired
		g.mu.Unlock()
		if expired {
			return g.late()
		}
		if s == golibvirt.DomainRunning || s == golibvirt.DomainBlocked {
			return dr.New(dr.KindConflict, "", op, "VM %s was resumed while the group was held", dom.Name)
		}
	}
	return nil
}

// Release resumes what was suspended, once, and returns how long it stood still.
func (g *Hold) Release() time.Duration {
	g.timer.Stop()
	g.once.Do(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		var wg sync.WaitGroup
		for _, dom := range g.doms {
			if certain, ok := g.held[dom.UUID]; ok {
				wg.Go(func() { g.keeper.resume(dom, certain) })
			}
		}
		wg.Wait()
		g.ended = time.Now()
	})
	return g.ended.Sub(g.since)
}

// resume resumes a guest, at once where that is possible, and goes on in the
// background until it runs. If it is not certain that a call to suspend it is
// not still pending, it is watched until none can be.
func (k *Keeper) resume(dom golibvirt.Domain, certain bool) {
	ctx, cancel := context.WithTimeout(context.Background(), k.cfg.GroupHold) // also while the Keeper closes
	defer cancel()
	done := k.tryResume(ctx, dom)
	if done && certain {
		k.unmarkHold(dom)
		return
	}
	k.releaseLater(dom)
}

// tryResume asks once; true if the guest runs, is off, or is gone.
func (k *Keeper) tryResume(ctx context.Context, dom golibvirt.Domain) bool {
	s, err := k.virt.State(ctx, "Release", dom)
	if err == nil && s == golibvirt.DomainPaused {
		err = k.virt.Call(ctx, "Release", "resume VM "+dom.Name, func(c *virt.Conn) error { return c.DomainResume(dom) })
		if err == nil {
			s, err = k.virt.State(ctx, "Release", dom)
		}
	}
	if err != nil && dr.CodeOf(err) != dr.CodeVMNotFound {
		k.cfg.Log.Error("a VM that was held for a group cut can't be resumed yet", "vm", dom.Name, "err", err)
		return false
	}
	return err != nil || s != golibvirt.DomainPaused
}

func (k *Keeper) unmarkHold(dom golibvirt.Domain) {
	if err := os.Remove(k.holdMark(dom)); err != nil && !errors.Is(err, os.ErrNotExist) {
		k.cfg.Log.Warn("the record of a hold can't be deleted", "vm", dom.Name, "err", err)
	}
}

// releaser is a background loop that resumes a guest.
type releaser struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// releaseLater resumes a guest whenever it finds it suspended, until no call to
// suspend it can be pending. A new hold of the guest takes over from it.
func (k *Keeper) releaseLater(dom golibvirt.Domain) {
	id := virt.ID(dom.UUID)
	r := &releaser{done: make(chan struct{})}
	var own context.Context
	own, r.cancel = context.WithCancel(k.ctx)
	k.mu.Lock()
	already := k.releases[id] != nil
	if !already {
		k.releases[id] = r
	}
	k.mu.Unlock()
	if already {
		r.cancel()
		return
	}
	began := k.background(func(context.Context) {
		defer close(r.done)
		defer r.cancel()
		calm := time.Now()
		for {
			try, cancel := context.WithTimeout(own, k.cfg.GroupHold)
			s, err := k.virt.State(try, "Release", dom)
			if err != nil || s == golibvirt.DomainPaused {
				calm = time.Now()
			}
			off := dr.CodeOf(err) == dr.CodeVMNotFound || err == nil && s == golibvirt.DomainShutoff
			ok := off || k.tryResume(try, dom)
			cancel()
			if off || ok && time.Since(calm) > lateCall {
				k.unmarkHold(dom)
				k.mu.Lock()
				if k.releases[id] == r {
					delete(k.releases, id)
				}
				k.mu.Unlock()
				return
			}
			if virt.Sleep(own, 100*time.Millisecond) != nil {
				return
			}
		}
	})
	if !began {
		r.cancel()
		close(r.done)
	}
}

// StartsPaused says that a guest that is off is about to be started paused, so
// that what an earlier process held of it is no reason to resume it.
func (k *Keeper) StartsPaused(dom golibvirt.Domain) {
	if k.stopRelease(virt.ID(dom.UUID)) {
		k.unmarkHold(dom)
	}
}

// stopRelease ends the loop above and reports whether there was one: then the
// guest's next release has to watch on.
func (k *Keeper) stopRelease(id dr.VMID) bool {
	k.mu.Lock()
	r := k.releases[id]
	delete(k.releases, id)
	k.mu.Unlock()
	if r == nil {
		return false
	}
	r.cancel()
	<-r.done
	return true
}
