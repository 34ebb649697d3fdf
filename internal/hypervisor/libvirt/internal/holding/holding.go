// Package holding makes guests stand still for the instant of a cut, and sees
// to it that they go on: it freezes a guest's file systems through its agent, and
// suspends the guests of a group together.
//
// It owns the parts "freezing" and "held" of the product directory. What it is
// about to hold is written down there first; whatever fails, and in the next
// process too, it asks until libvirt says that the guest runs and the guest that
// it is thawed.
package holding

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Config of a Keeper; all fields are needed. They mean what the fields of
// libvirt.Config of the same names say.
type Config struct {
	Dir          string
	AgentTimeout time.Duration
	FreezeLimit  time.Duration
	GroupHold    time.Duration
	Log          *slog.Logger
	Stage        func(string) // called at the stages "frozen" and "held"
}

const (
	freezeDir = "freezing"
	holdDir   = "held"
)

// Dirs are the directories that must exist.
func Dirs(dir string) []string {
	return []string{filepath.Join(dir, freezeDir), filepath.Join(dir, holdDir)}
}

// Keeper knows which guests of a host are held. Its methods are safe for concurrent use.
type Keeper struct {
	cfg  Config
	virt *virt.Client

	ctx    context.Context // ends with Close; for background work only
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	thaws    map[dr.VMID]bool // a thaw loop runs
	releases map[dr.VMID]*releaser
	closed   bool
}

// Open makes a Keeper and sees to guests that an earlier process may have left:
// suspended ones are resumed before it returns, unless libvirt does not answer,
// frozen ones thawed in the background.
func Open(client *virt.Client, cfg Config) (*Keeper, error) {
	k := &Keeper{cfg: cfg, virt: client, thaws: map[dr.VMID]bool{}, releases: map[dr.VMID]*releaser{}}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	err := errors.Join(k.eachMark(holdDir, func(dom golibvirt.Domain) {
		k.cfg.Log.Warn("resuming a VM that an earlier process held for a group cut", "vm", dom.Name)
		k.resume(dom, false)
	}), k.eachMark(freezeDir, k.thawLater))
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// Close ends background work; what it has not achieved is left to the next
// Keeper. The caller has finished its holds. Idempotent.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.wg.Wait()
}

// background runs fn until it returns; its context ends with Close. False if the Keeper is closed.
func (k *Keeper) background(fn func(context.Context)) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	k.wg.Go(func() { fn(k.ctx) })
	return true
}

// eachMark calls fn for the VM of every mark in one of the directories.
func (k *Keeper) eachMark(dir string, fn func(golibvirt.Domain)) error {
	marks, err := os.ReadDir(filepath.Join(k.cfg.Dir, dir))
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.Open", "look for guests that an earlier process left: %w", err)
	}
	for _, m := range marks {
		if u, err := virt.ParseUUID(m.Name()); err == nil {
			fn(golibvirt.Domain{Name: m.Name(), UUID: u, ID: -1})
		}
	}
	return nil
}
