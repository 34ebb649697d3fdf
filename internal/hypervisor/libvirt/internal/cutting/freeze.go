package cutting

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// freeze asks the guest to freeze its file systems. The caller thaws if the
// level is above crash-consistent; in all other cases freeze has seen to it.
// The intention is written down first: a guest agent may execute a freeze long
// after libvirt has given up on it.
func (h *Cutter) freeze(ctx context.Context, dom golibvirt.Domain) (dr.Consistency, string) {
	root, err := h.virt.Tree(ctx, "BeginCut", dom, virt.Live)
	if err != nil {
		return dr.CrashConsistent, "the guest agent could not be asked: " + err.Error()
	}
	if !domxml.AgentConnected(root) {
		return dr.CrashConsistent, "the guest agent is not connected"
	}
	if s, err := h.virt.State(ctx, "BeginCut", dom); err != nil || s != golibvirt.DomainRunning && s != golibvirt.DomainBlocked {
		return dr.CrashConsistent, "the VM is paused, so its guest agent can't answer"
	}
	h.mu.Lock()
	thawing := h.thaws[virt.ID(dom.UUID)]
	h.mu.Unlock()
	if thawing {
		return dr.CrashConsistent, "an earlier freeze is not confirmed as thawed yet"
	}
	if err := os.WriteFile(h.freezeMark(dom), []byte(dom.Name+"\n"), 0o640); err != nil {
		return dr.CrashConsistent, "the freeze could not be recorded: " + err.Error()
	}
	err = h.virt.Call(ctx, "BeginCut", "freeze the file systems of VM "+dom.Name, func(c *virt.Conn) error {
		if _, err := c.DomainAgentSetResponseTimeout(dom, h.agentSeconds(), 0); err != nil {
			return err
		}
		_, err := c.DomainFsfreeze(dom, nil, 0)
		return err
	})
	if err == nil {
		if domxml.Read(root).OSType == "Windows" {
			return dr.AppConsistent, "" // the agent drives VSS
		}
		return dr.FileSystemConsistent, ""
	}
	h.thaw(dom)
	return dr.CrashConsistent, "the guest did not freeze its file systems: " + err.Error()
}

func (h *Cutter) agentSeconds() int32 {
	return int32(max((h.cfg.AgentTimeout+time.Second-1)/time.Second, 1))
}

func (h *Cutter) freezeMark(dom golibvirt.Domain) string {
	return filepath.Join(h.cfg.Dir, freezeDir, string(virt.ID(dom.UUID)))
}

// thaw thaws at once, and goes on in the background until the guest confirms.
func (h *Cutter) thaw(dom golibvirt.Domain) {
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.AgentTimeout+2*time.Second)
	defer cancel()
	if h.tryThaw(ctx, dom) {
		return
	}
	id := virt.ID(dom.UUID)
	h.mu.Lock()
	running := h.thaws[id]
	h.thaws[id] = true
	h.mu.Unlock()
	if running {
		return
	}
	h.cfg.Log.Warn("a guest has not confirmed that its file systems are thawed; asking on", "vm", dom.Name)
	h.background(func(ctx context.Context) {
		defer func() {
			h.mu.Lock()
			delete(h.thaws, id)
			h.mu.Unlock()
		}()
		for {
			if virt.Sleep(ctx, 2*time.Second) != nil {
				return
			}
			try, cancel := context.WithTimeout(ctx, h.cfg.AgentTimeout+2*time.Second)
			ok := h.tryThaw(try, dom)
			cancel()
			if ok {
				h.cfg.Log.Info("a guest has confirmed that its file systems are thawed", "vm", dom.Name)
				return
			}
		}
	})
}

// tryThaw asks once. The agent executes commands in order, so a confirmed thaw
// comes after every freeze that was queued before. A VM that is off, gone or
// has no agent is not frozen.
func (h *Cutter) tryThaw(ctx context.Context, dom golibvirt.Domain) bool {
	s, err := h.virt.State(ctx, "Thaw", dom)
	gone := dr.CodeOf(err) == dr.CodeVMNotFound || (err == nil && !virt.Active(s))
	if !gone {
		err = h.virt.Call(ctx, "Thaw", "thaw the file systems of VM "+dom.Name, func(c *virt.Conn) error {
			if _, err := c.DomainAgentSetResponseTimeout(dom, h.agentSeconds(), 0); err != nil {
				return err
			}
			_, err := c.DomainFsthaw(dom, nil, 0)
			return err
		})
		if err != nil {
			h.cfg.Log.Debug("thaw", "vm", dom.Name, "err", err)
			return false
		}
	}
	if err := os.Remove(h.freezeMark(dom)); err != nil && !errors.Is(err, os.ErrNotExist) {
		h.cfg.Log.Warn("the record of a freeze can't be deleted", "vm", dom.Name, "err", err)
	}
	return true
}

// resumeThaws thaws guests that an earlier process had begun to freeze.
func (h *Cutter) resumeThaws() error {
	marks, err := os.ReadDir(filepath.Join(h.cfg.Dir, freezeDir))
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.Open", "look for frozen guests: %w", err)
	}
	for _, m := range marks {
		u, err := virt.ParseUUID(m.Name())
		if err != nil {
			continue
		}
		dom := golibvirt.Domain{Name: m.Name(), UUID: u, ID: -1}
		h.background(func(context.Context) { h.thaw(dom) })
	}
	return nil
}
