package holding

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Frost is what became of the wish to freeze a guest's file systems for a cut.
// If they are frozen, Finish thaws them, and a timer does so when the limit
// comes first.
type Frost struct {
	keeper *Keeper
	dom    golibvirt.Domain
	level  dr.Consistency
	note   string
	since  time.Time   // when the guest was asked to freeze; zero = never
	timer  *time.Timer // nil: not frozen

	once sync.Once
	thaw thawed // written once
}

// thawed is the outcome of a thaw that was asked for at the end of a freeze.
type thawed struct {
	early     bool // the limit came before the cut
	confirmed bool // by the guest
	count     int32
	at        time.Time
}

// Freeze asks the guest to freeze its file systems, for at most FreezeLimit.
// The intention is written down first: a guest agent may execute a freeze long
// after libvirt has given up on it.
func (k *Keeper) Freeze(ctx context.Context, dom golibvirt.Domain) *Frost {
	f := &Frost{keeper: k, dom: dom, level: dr.CrashConsistent}
	root, err := k.virt.Tree(ctx, "BeginCut", dom, virt.Live)
	if err != nil {
		f.note = "the guest agent could not be asked: " + err.Error()
		return f
	}
	if !domxml.AgentConnected(root) {
		f.note = "the guest agent is not connected"
		return f
	}
	if s, err := k.virt.State(ctx, "BeginCut", dom); err != nil || s != golibvirt.DomainRunning && s != golibvirt.DomainBlocked {
		f.note = "the VM is paused, so its guest agent can't answer"
		return f
	}
	k.mu.Lock()
	thawing := k.thaws[virt.ID(dom.UUID)]
	k.mu.Unlock()
	if thawing {
		f.note = "an earlier freeze is not confirmed as thawed yet"
		return f
	}
	if err := os.WriteFile(k.freezeMark(dom), []byte(dom.Name+"\n"), 0o640); err != nil {
		f.note = "the freeze could not be recorded: " + err.Error()
		return f
	}
	f.since = time.Now()
	var count int32
	err = k.virt.Call(ctx, "BeginCut", "freeze the file systems of VM "+dom.Name, func(c *virt.Conn) (err error) {
		if _, err := c.DomainAgentSetResponseTimeout(dom, k.agentSeconds(), 0); err != nil {
			return err
		}
		count, err = c.DomainFsfreeze(dom, nil, 0)
		return err
	})
	k.cfg.Stage("frozen")
	switch {
	case err != nil:
		f.note = "the guest did not freeze its file systems: " + err.Error()
	case count == 0:
		f.note = "the guest has no file system that can be frozen"
	default:
		f.level = dr.FileSystemConsistent
		if domxml.Read(root).OSType == "Windows" {
			f.level = dr.AppConsistent // the agent drives VSS
		}
		f.timer = time.AfterFunc(max(k.cfg.FreezeLimit-time.Since(f.since), 0), func() { f.end(true) })
		return f
	}
	// It may freeze yet: the cut does not wait for the answer.
	k.thawLater(dom)
	return f
}

// end thaws, once.
func (f *Frost) end(early bool) {
	f.once.Do(func() {
		n, ok := f.keeper.thawNow(f.dom)
		f.thaw = thawed{early: early, confirmed: ok, count: n, at: time.Now()}
	})
}

// Finish thaws after the instant of the cut and judges what was achieved; a nil
// Frost is that of a cut that nobody wanted to be frozen. held is how long the guest was, or may have been, frozen.
func (f *Frost) Finish() (level dr.Consistency, note string, held time.Duration) {
	if f == nil {
		return dr.CrashConsistent, "", 0
	}
	if f.timer == nil {
		return f.level, f.note, 0
	}
	f.end(false)
	f.timer.Stop()
	held = f.thaw.at.Sub(f.since)
	if note := f.thaw.lowers(held, f.keeper.cfg.FreezeLimit); note != "" {
		return dr.CrashConsistent, note, held
	}
	return f.level, "", held
}

// lowers says why a cut is only crash-consistent although the guest froze; "" if it is not.
func (t thawed) lowers(held, limit time.Duration) string {
	switch {
	case t.early:
		return "the guest was frozen for longer than " + limit.String() + " and was thawed before the cut"
	case !t.confirmed:
		return "the guest has not confirmed that its file systems are thawed; it is asked on"
	case held > limit:
		return "the guest thawed its file systems only after " + held.Round(time.Millisecond).String() + ", allowed are " + limit.String()
	case t.count == 0:
		return "the guest had thawed its file systems by itself before the cut"
	}
	return ""
}

func (k *Keeper) agentSeconds() int32 {
	return int32(max((k.cfg.AgentTimeout+time.Second-1)/time.Second, 1))
}

func (k *Keeper) freezeMark(dom golibvirt.Domain) string {
	return filepath.Join(k.cfg.Dir, freezeDir, string(virt.ID(dom.UUID)))
}

// thawNow thaws at once, and goes on in the background until the guest confirms.
// It returns how many file systems were thawed and whether that is confirmed.
func (k *Keeper) thawNow(dom golibvirt.Domain) (int32, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*k.cfg.AgentTimeout+2*time.Second)
	defer cancel()
	n, ok := k.tryThaw(ctx, dom)
	if !ok {
		k.thawLater(dom)
	}
	return n, ok
}

// thawLater asks a guest to thaw, again and again until it confirms: as long as
// that is missing its agent counts as hung, and it is not frozen again.
func (k *Keeper) thawLater(dom golibvirt.Domain) {
	id := virt.ID(dom.UUID)
	k.mu.Lock()
	running := k.thaws[id]
	k.thaws[id] = true
	k.mu.Unlock()
	if running {
		return
	}
	k.background(func(ctx context.Context) {
		defer func() {
			k.mu.Lock()
			delete(k.thaws, id)
			k.mu.Unlock()
		}()
		began := time.Now()
		for n := 0; ; n++ {
			try, cancel := context.WithTimeout(ctx, 2*k.cfg.AgentTimeout+2*time.Second)
			_, ok := k.tryThaw(try, dom)
			cancel()
			switch {
			case ok:
				k.cfg.Log.Info("a guest has confirmed that its file systems are thawed", "vm", dom.Name, "after", time.Since(began).Round(time.Millisecond))
				return
			case n%100 == 0: // about every ten minutes with a hung agent
				k.cfg.Log.Error("a guest has not confirmed that its file systems are thawed; asking on", "vm", dom.Name, "for", time.Since(began).Round(time.Second))
			}
			if virt.Sleep(ctx, 500*time.Millisecond) != nil {
				return
			}
		}
	})
}

// tryThaw asks once and lets the guest confirm. The agent executes commands in
// order, so a confirmed thaw comes after every freeze that was queued before. A
// VM that is off or gone is not frozen.
func (k *Keeper) tryThaw(ctx context.Context, dom golibvirt.Domain) (count int32, ok bool) {
	s, err := k.virt.State(ctx, "Thaw", dom)
	gone := dr.CodeOf(err) == dr.CodeVMNotFound || (err == nil && !virt.Active(s))
	if !gone {
		err = k.virt.Call(ctx, "Thaw", "thaw the file systems of VM "+dom.Name, func(c *virt.Conn) (err error) {
			if _, err := c.DomainAgentSetResponseTimeout(dom, k.agentSeconds(), 0); err != nil {
				return err
			}
			if count, err = c.DomainFsthaw(dom, nil, 0); err != nil {
				return err
			}
			out, err := c.QEMUDomainAgentCommand(dom, `{"execute":"guest-fsfreeze-status"}`, k.agentSeconds(), 0)
			if err != nil {
				return err
			}
			return saysThawed(out)
		})
		if msg := virt.Message(err); strings.Contains(msg, "agent is not connected") || strings.Contains(msg, "not available due to an error") {
			k.cfg.Log.Debug("thaw without libvirt", "vm", dom.Name, "err", err)
			count, err = k.thawDirectly(ctx, dom)
		}
		if err != nil {
			k.cfg.Log.Debug("thaw", "vm", dom.Name, "err", err)
			return count, false
		}
	}
	if err := os.Remove(k.freezeMark(dom)); err != nil && !errors.Is(err, os.ErrNotExist) {
		k.cfg.Log.Warn("the record of a freeze can't be deleted", "vm", dom.Name, "err", err)
	}
	return count, true
}

// saysThawed reads the answer to guest-fsfreeze-status (QEMU's
// qga/qapi-schema.json: a string, "frozen" or "thawed").
func saysThawed(out golibvirt.OptString) error {
	if len(out) == 0 {
		return errors.New("the guest agent gave no answer")
	}
	var ans struct {
		Return string `json:"return"`
	}
	if err := json.Unmarshal([]byte(out[0]), &ans); err != nil {
		return err
	}
	if ans.Return != "thawed" {
		return fmt.Errorf("the guest agent says %q", ans.Return)
	}
	return nil
}
