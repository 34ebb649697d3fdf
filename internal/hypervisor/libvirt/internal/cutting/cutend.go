package cutting

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// operationBackup is virDomainJobOperation's number of a backup job.
const operationBackup = int32(golibvirt.DomainJobOperationStrBackup)

// job is what runs on a domain.
type job struct {
	open   bool
	backup bool
	socket string // of a pull backup
}

// currentJob asks what runs on a domain.
func (h *Cutter) currentJob(ctx context.Context, op string, dom golibvirt.Domain) (job, error) {
	var j job
	err := h.virt.Call(ctx, op, "ask for the job of VM "+dom.Name, func(c *virt.Conn) error {
		typ, params, err := c.DomainGetJobStats(dom, 0)
		if err != nil {
			return err
		}
		if golibvirt.DomainJobType(typ) == golibvirt.DomainJobNone {
			return nil
		}
		j.open = true
		for _, p := range params {
			if p.Field == "operation" {
				v, ok := p.Value.I.(int32)
				j.backup = ok && v == operationBackup
			}
		}
		if !j.backup {
			return nil
		}
		doc, err := c.DomainBackupGetXMLDesc(dom, 0)
		if virt.IsCode(err, golibvirt.ErrNoDomainBackup) {
			j = job{} // ended since
			return nil
		}
		if err != nil {
			return err
		}
		root, err := domxml.Parse([]byte(doc))
		if err != nil {
			return err
		}
		j.socket = root.At("server").Get("socket")
		return nil
	})
	if dr.CodeOf(err) == dr.CodeVMNotRunning || dr.CodeOf(err) == dr.CodeVMNotFound {
		return job{}, nil // without a process there is no job
	}
	return j, err
}

// endStaleJob ends a backup job that an earlier process of this product left
// open, and deletes leftovers in the directory. Jobs of others are refused.
func (h *Cutter) endStaleJob(ctx context.Context, op string, dom golibvirt.Domain) error {
	j, err := h.currentJob(ctx, op, dom)
	if err != nil {
		return err
	}
	own := filepath.Join(h.cfg.Dir, cutsDir) + string(filepath.Separator)
	switch {
	case !j.open:
	case !j.backup || !strings.HasPrefix(j.socket, own):
		return dr.New(dr.KindConflict, dr.CodeBackupJobBusy, "libvirt."+op, "another product's job is open on VM %s", dom.Name)
	default:
		h.cfg.Log.Info("ending a cut that an earlier process left open", "vm", dom.Name, "socket", j.socket)
		if err := h.abortJob(ctx, op, dom, j.socket); err != nil {
			return err
		}
		h.resumeStopped(ctx, op, dom)
	}
	return h.sweep(virt.ID(dom.UUID))
}

// endStaleJobs ends what an earlier process left open, so that its scratch
// files don't fill up until the next cut.
func (h *Cutter) endStaleJobs(ctx context.Context) {
	entries, err := os.ReadDir(filepath.Join(h.cfg.Dir, cutsDir))
	if err != nil || len(entries) == 0 {
		return
	}
	var doms []golibvirt.Domain
	if err := h.virt.Call(ctx, "Open", "list the VMs", func(c *virt.Conn) (err error) {
		doms, _, err = c.ConnectListAllDomains(1, 0)
		return err
	}); err != nil {
		h.cfg.Log.Warn("cuts that an earlier process left open can't be looked for; the next cut of each VM ends them", "err", err)
		return
	}
	for _, dom := range doms {
		id := virt.ID(dom.UUID)
		if !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), dirPrefix(id)) }) {
			continue
		}
		unlock, err := h.virt.Lock(ctx, "Open", id)
		if err != nil {
			return
		}
		if h.mine(id) == nil {
			err = h.endStaleJob(ctx, "Open", dom)
		}
		unlock()
		if err != nil {
			h.cfg.Log.Warn("a cut that an earlier process left open can't be ended; the next cut does", "vm", dom.Name, "err", err)
		}
	}
}

// resumeStopped resumes a VM that QEMU has paused because a write failed, for
// the end of a job gives the space back; QEMU repeats the write. If the VM's own
// disk is the one that is full, QEMU pauses it again.
func (h *Cutter) resumeStopped(ctx context.Context, op string, dom golibvirt.Domain) {
	err := h.virt.Call(ctx, op, "resume VM "+dom.Name, func(c *virt.Conn) error {
		s, reason, err := c.DomainGetState(dom, 0)
		if err != nil || golibvirt.DomainState(s) != golibvirt.DomainPaused || golibvirt.DomainPausedReason(reason) != golibvirt.DomainPausedIoerror {
			return err
		}
		h.cfg.Log.Warn("a VM was paused by a full disk during a cut and is resumed", "vm", dom.Name)
		return c.DomainResume(dom)
	})
	if err != nil && dr.CodeOf(err) != dr.CodeVMNotFound {
		h.cfg.Log.Error("a VM that may have been paused by full scratch space can't be resumed", "vm", dom.Name, "err", err)
	}
}

// sweep deletes the directories of cuts that no process has open. The VM's lock is held.
func (h *Cutter) sweep(id dr.VMID) error {
	keep := ""
	if c := h.mine(id); c != nil {
		keep = c.dir
	}
	entries, err := os.ReadDir(filepath.Join(h.cfg.Dir, cutsDir))
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "libvirt.BeginCut", "look for leftovers: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(h.cfg.Dir, cutsDir, e.Name())
		if strings.HasPrefix(e.Name(), dirPrefix(id)) && path != keep {
			if err := os.RemoveAll(path); err != nil {
				return dr.Errorf(dr.KindUnavailable, "libvirt.BeginCut", "delete leftovers of an earlier cut: %w", err)
			}
		}
	}
	return nil
}

// abortJob ends the backup job with the given socket and waits until it is gone.
// Idempotent; a job with another socket is left alone.
func (h *Cutter) abortJob(ctx context.Context, op string, dom golibvirt.Domain, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	asked := false
	for {
		j, err := h.currentJob(ctx, op, dom)
		if err != nil {
			return err
		}
		if !j.open || j.socket != socket {
			return nil
		}
		if !asked {
			err := h.virt.Call(ctx, op, "end the backup job of VM "+dom.Name, func(c *virt.Conn) error { return c.DomainAbortJob(dom) })
			switch {
			case err == nil:
				asked = true
			case dr.CodeOf(err) == dr.CodeVMNotRunning, dr.CodeOf(err) == dr.CodeVMNotFound:
				return nil
			case dr.KindOf(err) != dr.KindPrecondition: // "no job is active" is settled by asking again
				return err
			}
		}
		if err := virt.Sleep(ctx, 10*time.Millisecond); err != nil {
			return virt.Wrap(op, "end the backup job of VM "+dom.Name, err)
		}
	}
}

// janitor waits for a job whose begin had no known outcome and ends it.
func (c *cut) janitor(ctx context.Context) {
	// A call that the daemon still holds waits 30 s for the domain's lock; then it fails.
	const quiet = 90 * time.Second
	socket := filepath.Join(c.dir, socketName)
	var calm time.Time // since when the answer is "no such job"
	for {
		j, err := c.host.currentJob(ctx, "BeginCut", c.dom)
		switch {
		case err == nil && j.open && j.socket == socket:
			calm = time.Time{}
			err = errors.Join(c.host.abortJob(ctx, "BeginCut", c.dom, socket), c.deleteToken(ctx, "BeginCut"))
			if err == nil {
				c.host.cfg.Log.Info("ended a cut whose begin had timed out", "vm", c.dom.Name)
				c.removeDir()
				return
			}
			c.host.cfg.Log.Warn("a cut whose begin had timed out can't be ended yet", "vm", c.dom.Name, "err", err)
		case err == nil && calm.IsZero():
			calm = time.Now()
		case err == nil && time.Since(calm) > quiet:
			c.removeDir()
			return
		}
		if virt.Sleep(ctx, 500*time.Millisecond) != nil {
			return
		}
	}
}

// disconnect closes the NBD connections and stops the watchdog.
func (c *cut) disconnect() {
	c.stopOnce.Do(func() { close(c.stop) })
	c.mu.Lock()
	if c.broken == nil {
		c.broken = dr.Errorf(dr.KindPrecondition, "libvirt.Cut", "the cut of VM %s has ended", c.dom.Name)
	}
	c.mu.Unlock()
	for _, d := range c.disks {
		if d.client != nil {
			_ = d.client.Close() // nothing was written
		}
	}
}

// release ends the job and deletes socket and scratch files, and the token if asked to.
func (c *cut) release(ctx context.Context, op string, deleteToken bool) error {
	c.disconnect()
	if err := c.host.abortJob(ctx, op, c.dom, filepath.Join(c.dir, socketName)); err != nil {
		return err
	}
	if !c.paused {
		c.host.resumeStopped(ctx, op, c.dom)
	}
	c.removeDir()
	c.host.mu.Lock()
	if c.host.open[c.id] == c {
		delete(c.host.open, c.id)
	}
	c.host.mu.Unlock()
	if deleteToken {
		return c.deleteToken(ctx, op)
	}
	return nil
}

// deleteCheckpoint deletes a checkpoint of a running VM with its bitmaps.
//
// libvirt refuses if one of the images lacks its bitmap: QEMU writes new bitmaps
// into the images when it ends, so after a crash they may not be there, and a
// disk may have been replaced. Deleting the record alone would leave the other
// disks' bitmaps behind for ever, so the checkpoint is defined again without the disk.
func deleteCheckpoint(l *virt.Conn, cp golibvirt.DomainCheckpoint) error {
	for {
		err := l.DomainCheckpointDelete(cp, 0)
		if !virt.Answered(err) || !strings.Contains(err.Error(), "not found in backing chain") {
			return err
		}
		doc, xerr := l.DomainCheckpointGetXMLDesc(cp, 0)
		if xerr != nil {
			return xerr
		}
		root, xerr := domxml.Parse([]byte(doc))
		if xerr != nil {
			return errors.Join(err, xerr)
		}
		if !dropFromCheckpoint(root, err.Error()) {
			return l.DomainCheckpointDelete(cp, golibvirt.DomainCheckpointDeleteMetadataOnly)
		}
		if _, xerr = l.DomainCheckpointCreateXML(cp.Dom, root.String(), uint32(golibvirt.DomainCheckpointCreateRedefine)); xerr != nil {
			return errors.Join(err, xerr)
		}
	}
}

// dropFromCheckpoint takes the disk that libvirt's refusal "bitmap 'hf-x' not
// found in backing chain of 'vda'" names out of a checkpoint's document; false
// if it is not there, or the last one.
func dropFromCheckpoint(root *domxml.Node, refusal string) bool {
	_, rest, _ := strings.Cut(refusal, "not found in backing chain of '")
	id, _, _ := strings.Cut(rest, "'")
	dropped, left := false, 0
	for _, d := range root.At("disks").All("disk") {
		if d.Get("checkpoint") != "bitmap" {
			continue
		}
		if d.Get("name") != id {
			left++
			continue
		}
		d.Set("checkpoint", "no")
		d.Unset("bitmap")
		dropped = true
	}
	return dropped && left > 0
}

// deleteToken removes the cut's checkpoint. On a VM that is off that is not
// possible: then it stays, records nothing that is relied on, and goes with the next Forget.
func (c *cut) deleteToken(ctx context.Context, op string) error {
	err := c.host.virt.Call(ctx, op, fmt.Sprintf("delete checkpoint %s of VM %s", c.info.Token, c.dom.Name), func(l *virt.Conn) error {
		cp, err := l.DomainCheckpointLookupByName(c.dom, c.info.Token, 0)
		if err != nil {
			return err
		}
		return deleteCheckpoint(l, cp)
	})
	switch dr.CodeOf(err) {
	case dr.CodeTrackingLost, dr.CodeVMNotFound: // there is no such checkpoint, or VM
		return nil
	case dr.CodeVMNotRunning:
		c.host.cfg.Log.Debug("a checkpoint of a stopped VM stays until it is forgotten", "vm", c.dom.Name, "checkpoint", c.info.Token)
		return nil
	}
	return err
}

// End releases the frozen image.
func (c *cut) End(ctx context.Context) error {
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.ended || c.aborted {
		return nil
	}
	if err := c.release(ctx, "End", false); err != nil {
		return err
	}
	c.ended = true
	return nil
}

// Abort releases the frozen image and deletes the token.
func (c *cut) Abort(ctx context.Context) error {
	c.ending.Lock()
	defer c.ending.Unlock()
	if c.aborted {
		return nil
	}
	if !c.ended {
		if err := c.release(ctx, "Abort", false); err != nil {
			return err
		}
		c.ended = true
	}
	if err := c.deleteToken(ctx, "Abort"); err != nil {
		return err
	}
	c.aborted = true
	return nil
}

// Forget deletes checkpoints. Those of a VM that is off can only be deleted by
// taking their bitmaps out of the images; that locks the image for an instant,
// so it is done only when nothing is to be kept: the VM is no longer protected.
func (h *Cutter) Forget(ctx context.Context, id dr.VMID, keep []string) error {
	const op = "Forget"
	dom, err := h.virt.Find(ctx, op, id)
	if err != nil {
		return err
	}
	unlock, err := h.virt.Lock(ctx, op, id)
	if err != nil {
		return err
	}
	defer unlock()
	mine := h.mine(id)
	if mine == nil {
		if err := h.endStaleJob(ctx, op, dom); err != nil && dr.CodeOf(err) != dr.CodeBackupJobBusy {
			return err
		}
	}
	cps, err := h.checkpoints(ctx, op, dom)
	if err != nil {
		return err
	}
	s, err := h.virt.State(ctx, op, dom)
	if err != nil {
		return err
	}
	var errs []error
	for _, cp := range cps {
		if !strings.HasPrefix(cp.Name, tokenPrefix) || slices.Contains(keep, cp.Name) || (mine != nil && mine.info.Token == cp.Name) {
			continue
		}
		switch {
		case virt.Active(s):
			err = h.virt.Call(ctx, op, fmt.Sprintf("delete checkpoint %s of VM %s", cp.Name, dom.Name), func(c *virt.Conn) error { return deleteCheckpoint(c, cp) })
		case len(keep) == 0:
			err = h.forgetOffline(ctx, dom, cp)
		default:
			continue
		}
		if dr.CodeOf(err) != dr.CodeTrackingLost { // it was gone already
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (h *Cutter) checkpoints(ctx context.Context, op string, dom golibvirt.Domain) ([]golibvirt.DomainCheckpoint, error) {
	var cps []golibvirt.DomainCheckpoint
	err := h.virt.Call(ctx, op, "list the checkpoints of VM "+dom.Name, func(c *virt.Conn) (err error) {
		cps, _, err = c.DomainListAllCheckpoints(dom, 1, 0)
		return err
	})
	return cps, err
}

// forgetOffline removes the bitmaps of a checkpoint from the images of a VM
// that is off, then libvirt's record of it.
func (h *Cutter) forgetOffline(ctx context.Context, dom golibvirt.Domain, cp golibvirt.DomainCheckpoint) error {
	const op = "Forget"
	root, err := h.virt.Tree(ctx, op, dom, virt.Defined)
	if err != nil {
		return err
	}
	for _, d := range domxml.Read(root).Disks {
		if d.Format != "qcow2" || d.Path == "" {
			continue
		}
		out, err := h.virt.QEMUImg(ctx, "bitmap", "--remove", d.Path, cp.Name)
		if err != nil && !strings.Contains(out, "not found") {
			return dr.Errorf(dr.KindUnavailable, "libvirt."+op, "remove bitmap %s from disk %s of VM %s: %w", cp.Name, d.ID, dom.Name, err)
		}
	}
	return h.virt.Call(ctx, op, fmt.Sprintf("delete checkpoint %s of VM %s", cp.Name, dom.Name), func(c *virt.Conn) error {
		return c.DomainCheckpointDelete(cp, golibvirt.DomainCheckpointDeleteMetadataOnly)
	})
}
