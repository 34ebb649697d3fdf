package cutting

import (
	"context"
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// scratch is the file that takes the old content of overwritten blocks of one disk.
type scratch struct {
	path      string
	allocated int64 // reserved on the host's file system
	most      int64 // it can't get larger
}

// watchEvery is how often the watchdog looks. A guest that writes 1 GiB/s gets
// 100 MiB further meanwhile, which a quarter of the default reserve covers.
const watchEvery = 100 * time.Millisecond

// makeScratch creates and allocates a file per disk. On failure everything is removed again.
func (c *cut) makeScratch(ctx context.Context) (err error) {
	if err := c.newDir(); err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.BeginCut", "make the directory of a cut: %w", err)
	}
	defer func() {
		if err != nil {
			c.removeDir()
		}
	}()
	for _, info := range c.info.Disks {
		s := scratch{path: c.scratchPath(info.ID)}
		if _, err := c.host.virt.QEMUImg(ctx, "create", "-q", "-f", "qcow2", s.path, strconv.FormatInt(info.Size, 10)); err != nil {
			return scratchError(ctx, c.dom.Name, err)
		}
		// Every cluster plus the tables that point to it, and a little.
		s.most = info.Size + info.Size/512 + 4<<20
		s.allocated = min(c.host.cfg.ScratchReserve, s.most)
		if err := s.reserve(s.allocated); err != nil {
			return scratchError(ctx, c.dom.Name, err)
		}
		c.disks[info.ID].scratch = s
	}
	return nil
}

func scratchError(ctx context.Context, vm string, err error) error {
	switch {
	case ctx.Err() != nil:
		return virt.Wrap("BeginCut", "make the scratch files for VM "+vm, context.Cause(ctx))
	case errors.Is(err, syscall.ENOSPC):
		return dr.New(dr.KindExhausted, dr.CodeScratchFull, "libvirt.BeginCut", "no space to reserve scratch files for VM %s: %w", vm, err)
	}
	return dr.Errorf(dr.KindUnavailable, "libvirt.BeginCut", "make the scratch files for VM %s: %w", vm, err)
}

func (s *scratch) reserve(n int64) error {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = virt.Allocate(f, n)
	return errors.Join(err, f.Close())
}

// check extends the reservation while the file system has room, and returns an
// error when the guest may soon run into its end.
func (s *scratch) check(step int64, freeSpace func(string) (int64, error)) error {
	st, err := os.Stat(s.path)
	if err != nil {
		return nil // the job is ending
	}
	if s.allocated >= s.most || st.Size() < s.allocated-step/4 {
		return nil
	}
	next := min(s.allocated+step, s.most)
	free, err := freeSpace(s.path)
	// As much again stays free: other scratch files and the guests' own disks may need it.
	if err == nil && free >= 2*(next-s.allocated) && s.reserve(next) == nil {
		s.allocated = next
		return nil
	}
	return dr.New(dr.KindExhausted, dr.CodeScratchFull, "libvirt.Cut", "the guest overwrote %d bytes during the cut and the space for scratch files is nearly used up; the cut was ended so that the VM can go on", st.Size())
}

// watch is the watchdog of an open cut. QEMU pauses the guest when scratch is
// full, so it ends the cut before that, and also a cut that is open for too long.
func (c *cut) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	deadline := time.Now().Add(c.host.cfg.MaxCutAge)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.stop:
			return
		case <-tick.C:
		}
		var reason error
		if time.Now().After(deadline) {
			reason = dr.New(dr.KindUnavailable, dr.CodeHypervisorTimeout, "libvirt.Cut", "the cut of VM %s was open for %v and was ended", c.dom.Name, c.host.cfg.MaxCutAge)
		}
		for id := range c.disks {
			if reason == nil {
				reason = c.disks[id].scratch.check(min(c.host.cfg.ScratchReserve, c.disks[id].scratch.most), virt.FreeSpace)
			}
		}
		if reason == nil {
			continue
		}
		c.host.cfg.Log.Warn("the watchdog ends a cut", "vm", c.dom.Name, "err", reason)
		c.mu.Lock()
		if c.broken == nil {
			c.broken = reason
		}
		c.mu.Unlock()
		for {
			err := c.release(ctx, "Cut", true)
			if err == nil || ctx.Err() != nil {
				return
			}
			c.host.cfg.Log.Error("the watchdog can't end a cut; the VM may be paused when scratch is full", "vm", c.dom.Name, "err", err)
			if virt.Sleep(ctx, time.Second) != nil {
				return
			}
		}
	}
}
