package cutting

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
	"holdfast/internal/hypervisor/libvirt/internal/holding"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
	"holdfast/internal/nbd"
)

// tokenPrefix marks Holdfast's checkpoints.
const tokenPrefix = "hf-"

// BeginCut starts a pull backup job.
func (h *Cutter) BeginCut(ctx context.Context, req hypervisor.CutRequest) (hypervisor.Cut, error) {
	const op = "BeginCut"
	if err := check(req); err != nil {
		return nil, err
	}
	ctx, leave, err := h.enter(ctx, op)
	if err != nil {
		return nil, err
	}
	defer leave()
	dom, err := h.virt.Find(ctx, op, req.VM)
	if err != nil {
		return nil, err
	}
	unlock, err := h.virt.Lock(ctx, op, req.VM)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, err := h.prepare(ctx, dom, req)
	if err != nil {
		return nil, err
	}
	var f *holding.Frost
	if req.Quiesce {
		f = h.keep.Freeze(ctx, dom)
	}
	c.info.Time = time.Now()
	err = c.start(ctx)
	c.info.Consistency, c.info.Note, c.info.Held = f.Finish()
	if err != nil {
		return nil, err
	}
	if err := c.connect(ctx); err != nil {
		return nil, c.giveUp(err)
	}
	if !h.register([]*cut{c}) {
		return nil, c.giveUp(virt.Wrap(op, "begin a cut of VM "+dom.Name, virt.ErrClosed))
	}
	return c, nil
}

// check refuses what no VM could be cut by.
func check(req hypervisor.CutRequest) error {
	const op = "libvirt.BeginCut"
	switch {
	case len(req.Disks) == 0:
		return dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "the request for a cut of VM %s names no disk", req.VM)
	case !hypervisor.ValidTag(req.Tag):
		return dr.Errorf(dr.KindInvalid, op, "%q is not a tag (letters, digits and hyphens)", req.Tag)
	}
	return nil
}

// register makes cuts this process's open ones, with a watchdog each; false if the Cutter is closed.
func (h *Cutter) register(cuts []*cut) bool {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		for _, c := range cuts {
			h.open[c.id] = c
		}
	}
	h.mu.Unlock()
	for _, c := range cuts {
		if !closed {
			h.background(c.watch)
		}
	}
	return !closed
}

// prepare checks the VM and its disks, ends a stale job and makes directory and scratch files.
func (h *Cutter) prepare(ctx context.Context, dom golibvirt.Domain, req hypervisor.CutRequest) (*cut, error) {
	const op = "BeginCut"
	s, err := h.virt.State(ctx, op, dom)
	if err != nil {
		return nil, err
	}
	if !virt.Active(s) || s == golibvirt.DomainShutdown || s == golibvirt.DomainCrashed {
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "libvirt."+op, "VM %s is not running", dom.Name)
	}
	if h.mine(req.VM) != nil {
		return nil, dr.New(dr.KindConflict, dr.CodeBackupJobBusy, "libvirt."+op, "a cut of VM %s is open already", dom.Name)
	}
	if err := h.endStaleJob(ctx, op, dom); err != nil {
		return nil, err
	}
	root, err := h.virt.Tree(ctx, op, dom, virt.Live)
	if err != nil {
		return nil, err
	}
	vm := domxml.Read(root)
	c := &cut{host: h, dom: dom, id: req.VM, stop: make(chan struct{}), disks: map[string]*cutDisk{}}
	c.info = hypervisor.CutInfo{Token: tokenPrefix + req.Tag, Consistency: dr.CrashConsistent, Incremental: req.Base != ""}
	c.paused = s == golibvirt.DomainPaused
	for _, id := range req.Disks {
		if err := c.addDisk(ctx, vm, id); err != nil {
			return nil, err
		}
	}
	for _, d := range vm.Disks {
		if c.disks[d.ID] == nil && !strings.HasPrefix(d.ID, domxml.HostDevice) {
			c.others = append(c.others, d.ID)
		}
	}
	for _, n := range root.At("devices").All("disk") { // cdrom and floppy drives have to be left out by name too
		if id := n.At("target").Get("dev"); id != "" && c.disks[id] == nil && !slices.Contains(c.others, id) {
			c.others = append(c.others, id)
		}
	}
	if req.Base != "" {
		if err := c.takeBase(ctx, req.Base); err != nil {
			return nil, err
		}
	}
	return c, c.makeScratch(ctx)
}

func (c *cut) addDisk(ctx context.Context, vm dr.VM, id string) error {
	const op = "libvirt.BeginCut"
	if c.disks[id] != nil {
		return dr.Errorf(dr.KindInvalid, op, "disk %s is named twice", id)
	}
	i := slices.IndexFunc(vm.Disks, func(d dr.Disk) bool { return d.ID == id })
	if i < 0 {
		return dr.New(dr.KindNotFound, dr.CodeNotFound, op, "VM %s has no disk %s", c.dom.Name, id)
	}
	d := vm.Disks[i]
	if err := c.host.virt.Measure(ctx, "BeginCut", c.dom, &d); err != nil {
		return err
	}
	if d.Unreplicatable != "" {
		code := dr.CodeDiskNotTrackable
		switch {
		case d.Shared:
			code = dr.CodeDiskShared
		case d.PassThru:
			code = dr.CodeDiskPassThrough
		}
		return dr.New(dr.KindUnsupported, code, op, "disk %s of VM %s can't be replicated: %s", id, c.dom.Name, d.Unreplicatable)
	}
	grain := int64(64 << 10) // QEMU: the cluster size within 4..64 KiB
	if q, err := virt.ReadQCOW2(d.Path); err == nil {
		grain = min(max(q.Cluster, 4<<10), 64<<10)
	}
	c.disks[id] = &cutDisk{size: d.Size}
	c.info.Disks = append(c.info.Disks, hypervisor.CutDisk{ID: id, Size: d.Size, Granularity: grain, Whole: true})
	return nil
}

// takeBase reads the base checkpoint: which disks it covers and how large they were.
func (c *cut) takeBase(ctx context.Context, name string) error {
	const op = "BeginCut"
	var doc string
	err := c.host.virt.Call(ctx, op, fmt.Sprintf("read checkpoint %s of VM %s", name, c.dom.Name), func(l *virt.Conn) error {
		cp, err := l.DomainCheckpointLookupByName(c.dom, name, 0)
		if err != nil {
			return err
		}
		doc, err = l.DomainCheckpointGetXMLDesc(cp, uint32(golibvirt.DomainCheckpointXMLNoDomain))
		return err
	})
	if err != nil {
		return err
	}
	root, err := domxml.Parse([]byte(doc))
	if err != nil {
		return dr.Errorf(dr.KindInternal, "libvirt."+op, "checkpoint %s of VM %s: %w", name, c.dom.Name, err)
	}
	sizes := parseSizes(root.At("description").Trimmed())
	c.baseName = name
	covered := map[string]bool{}
	for _, d := range root.At("disks").All("disk") {
		covered[d.Get("name")] = d.Get("checkpoint") == "bitmap"
	}
	for i := range c.info.Disks {
		info := &c.info.Disks[i]
		old, ok := sizes[info.ID]
		switch {
		case !covered[info.ID]:
			info.Why = "it was not in the cut before"
		case !ok: // e.g. written by another version
			info.Why = "its size at the cut before is not known"
		case old > info.Size:
			info.Why = shrunk(old, info.Size)
		default:
			cd := c.disks[info.ID]
			cd.tracked, cd.oldSize, info.Whole = true, old, false
		}
	}
	return c.wantTracked()
}

func shrunk(from, to int64) string {
	return fmt.Sprintf("it has shrunk from %d to %d bytes", from, to)
}

// wantTracked refuses a base that is of use for none of the disks.
func (c *cut) wantTracked() error {
	why := ""
	for _, d := range c.info.Disks {
		if c.disks[d.ID].tracked {
			return nil
		}
		why = "disk " + d.ID + ": " + d.Why
	}
	return dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "libvirt.BeginCut", "checkpoint %s of VM %s is of use for none of the disks: %s", c.baseName, c.dom.Name, why)
}

// lose makes a disk Whole.
func (c *cut) lose(id, why string) {
	c.disks[id].tracked = false
	for i := range c.info.Disks {
		if c.info.Disks[i].ID == id {
			c.info.Disks[i].Whole, c.info.Disks[i].Why = true, why
		}
	}
}

// The description of a checkpoint keeps the sizes of its disks, because a
// grown disk's new range reads as clean in its bitmap:
// "holdfast 1" followed by " disk=bytes" for each disk.
const sizesHeader = "holdfast 1"

func (c *cut) describeSizes() string {
	var b strings.Builder
	b.WriteString(sizesHeader)
	for _, d := range c.info.Disks {
		fmt.Fprintf(&b, " %s=%d", d.ID, d.Size)
	}
	return b.String()
}

// parseSizes reads what describeSizes wrote; nil if it was written by something else.
func parseSizes(s string) map[string]int64 {
	rest, ok := strings.CutPrefix(s, sizesHeader)
	if !ok || (rest != "" && rest[0] != ' ') {
		return nil
	}
	sizes := map[string]int64{}
	for _, f := range strings.Fields(rest) {
		id, v, ok := strings.Cut(f, "=")
		if n, err := strconv.ParseInt(v, 10, 64); ok && err == nil && n >= 0 {
			sizes[id] = n
		}
	}
	return sizes
}

// start starts the job. After an unknown outcome a janitor ends the job should
// it come into being. Disks whose bitmaps turn out to be broken become Whole.
func (c *cut) start(ctx context.Context) error {
	const op = "BeginCut"
	for {
		backup, checkpoint := c.documents()
		c.job = jobGone
		err := c.host.virt.Call(ctx, op, "begin a backup job of VM "+c.dom.Name, func(l *virt.Conn) error {
			return l.DomainBackupBegin(c.dom, backup, golibvirt.OptString{checkpoint}, golibvirt.DomainBackupBeginReuseExternal)
		})
		if err == nil {
			c.job = jobRuns
			return nil
		}
		if !virt.Answered(err) {
			c.host.background(c.janitor) // it owns the directory now
			return err
		}
		if id := lostDisk(err); c.disks[id] != nil && c.disks[id].tracked {
			c.lose(id, "its tracking was lost")
			if err = c.wantTracked(); err == nil {
				continue
			}
		}
		c.removeDir()
		return c.explain(ctx, err)
	}
}

// lostDisk reads which disk's bitmap libvirt can't use from its refusal
// "missing or broken bitmap 'hf-x' for disk 'vda'"; "" if it is about something else.
func lostDisk(err error) string {
	_, rest, _ := strings.Cut(virt.Message(err), "missing or broken bitmap")
	_, rest, _ = strings.Cut(rest, "for disk '")
	id, _, ok := strings.Cut(rest, "'")
	if !ok {
		return ""
	}
	return id
}

// explain refines the error of a refused job.
func (c *cut) explain(ctx context.Context, err error) error {
	const op = "libvirt.BeginCut"
	msg := virt.Message(err)
	switch {
	case dr.CodeOf(err) == dr.CodeTrackingLost, dr.CodeOf(err) == dr.CodeVMNotRunning:
		return err
	case strings.Contains(msg, "already exists") && strings.Contains(msg, c.info.Token):
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "VM %s has a tracking token %s already: %w", c.dom.Name, c.info.Token, err)
	case strings.Contains(msg, "backup job") || strings.Contains(msg, "another job"), strings.Contains(msg, "cannot acquire state change lock"):
		return dr.New(dr.KindConflict, dr.CodeBackupJobBusy, op, "VM %s is busy with another job: %w", c.dom.Name, err)
	case strings.Contains(msg, "No space left"):
		return dr.New(dr.KindExhausted, dr.CodeScratchFull, op, "begin a backup job of VM %s: %w", c.dom.Name, err)
	case strings.Contains(msg, "unsupported for storage type"):
		return dr.New(dr.KindUnsupported, dr.CodeDiskNotTrackable, op, "begin a backup job of VM %s: %w", c.dom.Name, err)
	}
	if s, serr := c.host.virt.State(ctx, "BeginCut", c.dom); serr == nil && !virt.Active(s) {
		return dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, op, "VM %s has stopped: %w", c.dom.Name, err)
	}
	return err
}

// documents renders the job's and the new checkpoint's XML. Every disk of the
// VM is named: libvirt takes those that are not as included.
func (c *cut) documents() (backup, checkpoint string) {
	b, cp := domxml.El("disks"), domxml.El("disks")
	for _, d := range c.info.Disks {
		n := domxml.El("disk", "name", d.ID, "backup", "yes", "type", "file", "exportname", d.ID)
		if c.baseName != "" {
			if c.disks[d.ID].tracked {
				n.Set("backupmode", "incremental")
				n.Set("incremental", c.baseName)
			} else {
				n.Set("backupmode", "full")
			}
		}
		b.With(n.With(domxml.El("driver", "type", "qcow2"), domxml.El("scratch", "file", c.scratchPath(d.ID))))
		cp.With(domxml.El("disk", "name", d.ID, "checkpoint", "bitmap"))
	}
	for _, id := range c.others {
		b.With(domxml.El("disk", "name", id, "backup", "no"))
		cp.With(domxml.El("disk", "name", id, "checkpoint", "no"))
	}
	job := domxml.El("domainbackup", "mode", "pull").With(domxml.El("server", "transport", "unix", "socket", filepath.Join(c.dir, socketName)), b)
	new := domxml.El("domaincheckpoint").With(domxml.El("name").WithText(c.info.Token), domxml.El("description").WithText(c.describeSizes()), cp)
	return job.String(), new.String()
}

// connect opens the NBD exports.
func (c *cut) connect(ctx context.Context) error {
	for i := range c.info.Disks {
		info := &c.info.Disks[i]
		d := c.disks[info.ID]
		contexts := []string{nbd.ContextAllocation}
		if d.tracked {
			d.bitmap = nbd.ContextDirtyPrefix + "backup-" + info.ID
			contexts = append(contexts, d.bitmap)
		}
		cl, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: filepath.Join(c.dir, socketName), Export: info.ID, Contexts: contexts})
		if err != nil {
			return dr.Errorf(dr.KindUnavailable, "libvirt.BeginCut", "open disk %s of VM %s: %w", info.ID, c.dom.Name, err)
		}
		d.client = cl
		d.size, info.Size = cl.Size(), cl.Size()
		if d.tracked && d.oldSize > d.size { // since prepare looked
			c.lose(info.ID, shrunk(d.oldSize, d.size))
		}
	}
	return nil
}

// giveUp undoes a job that has begun but can't be used.
func (c *cut) giveUp(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.host.cfg.CallTimeout)
	defer cancel()
	if err := c.release(ctx, "BeginCut", true); err != nil {
		c.host.cfg.Log.Warn("a cut that could not be used is still open; the next one ends it", "vm", c.dom.Name, "err", err)
		c.host.background(c.janitor)
	}
	return cause
}

// What is known about a cut's job.
const (
	jobNotAsked = iota
	jobGone     // refused, or a janitor's
	jobRuns
)

// cut is an open cut.
type cut struct {
	host     *Cutter
	paused   bool // the VM was paused before
	job      int
	dom      golibvirt.Domain
	id       dr.VMID
	dir      string // of socket and scratch files
	baseName string
	info     hypervisor.CutInfo
	disks    map[string]*cutDisk
	others   []string // disks left out of the job

	stopOnce sync.Once
	stop     chan struct{} // ends the watchdog

	ending  sync.Mutex // End and Abort take turns
	ended   bool       // guarded by ending
	aborted bool       // guarded by ending

	mu     sync.Mutex
	broken error // why the cut can't be read any more
}

type cutDisk struct {
	size    int64
	tracked bool  // the base covers it
	oldSize int64 // at the base
	bitmap  string
	client  *nbd.Client
	scratch scratch
}

// newDir makes the cut's own directory; its name tells the VM and is unique.
func (c *cut) newDir() error {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	dir := filepath.Join(c.host.cfg.Dir, cutsDir, dirPrefix(c.id)+hex.EncodeToString(b[:]))
	if err := c.host.virt.MakeDir(dir); err != nil {
		return err
	}
	c.dir = dir
	return nil
}

// dirPrefix begins the names of all cut directories of a VM.
func dirPrefix(id dr.VMID) string {
	s := strings.ReplaceAll(string(id), "-", "")
	return s[:min(12, len(s))] + "-"
}

func (c *cut) removeDir() {
	if c.dir == "" {
		return
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.host.cfg.Log.Warn("leftovers of a cut can't be deleted", "dir", c.dir, "err", err)
	}
}

func (c *cut) scratchPath(disk string) string { return filepath.Join(c.dir, disk+".scratch") }

func (c *cut) Info() hypervisor.CutInfo {
	i := c.info
	i.Disks = slices.Clone(i.Disks)
	return i
}
