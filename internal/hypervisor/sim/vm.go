package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// remoteTimeout bounds a guest's read from a recovery point's NBD server.
const remoteTimeout = 10 * time.Second

// VM is the guest's side of a simulated VM: what happens inside and to it
// without the agent.
type VM struct {
	world *world

	mu     sync.Mutex
	info   dr.VM // without sizes and Running, which describe fills in
	power  hypervisor.PowerState
	disks  []*disk
	seq    uint64 // of the last write
	tokens map[string]*token
	job    *cut // open backup job
	alien  bool // a foreign product's job is open
	agent  dr.Consistency
	mode   AgentMode
	deaf   bool // ignores shutdown requests
	frozen bool // file systems are frozen
	serial []byte
	owner  string // made by Boot
	snaps  []map[string]*frozen
}

// token is a tracking token: what happened after seq is known.
type token struct {
	seq    uint64
	sizes  map[string]int64  // of the disks it covers
	lost   map[string]string // disks whose tracking was lost since, with the reason
	broken bool
	alien  bool // of another product
}

// covers says how large a disk was at the token; why is not empty if the token
// is of no use for it.
func (t *token) covers(d *disk) (size int64, why string) {
	size, ok := t.sizes[d.id]
	switch {
	case t.broken:
		why = "its tracking was lost"
	case t.lost[d.id] != "":
		why = t.lost[d.id]
	case !ok:
		why = "it was not in the cut before"
	}
	return size, why
}

// loseDisk makes every token useless for one disk; the lock is held.
func loseDisk(v *VM, id, why string) {
	for _, t := range v.tokens {
		if _, ok := t.sizes[id]; !ok {
			continue
		}
		if t.lost == nil {
			t.lost = map[string]string{}
		}
		t.lost[id] = why
	}
}

// ID returns the VM's id.
func (v *VM) ID() dr.VMID { return v.info.ID }

// Name returns the VM's name.
func (v *VM) Name() string { return v.info.Name }

func (v *VM) describe() dr.VM {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := v.info
	d.Running = v.power != hypervisor.PowerOff
	d.Seen = v.world.cfg.Now()
	d.NICs = slices.Clone(d.NICs)
	d.Disks = slices.Clone(d.Disks)
	for i, x := range v.disks {
		d.Disks[i].Size = x.size
	}
	return d
}

// findDisk returns a disk; the lock of its VM is held.
func findDisk(v *VM, id string) (*disk, error) {
	for _, d := range v.disks {
		if d.id == id {
			return d, nil
		}
	}
	return nil, fmt.Errorf("VM %s has no disk %q", v.info.Name, id)
}

// Write stores p on a disk, as the guest would. The VM need not run: then it
// is an edit from outside, which tracking does not see.
func (v *VM) Write(diskID string, off int64, p []byte) error {
	return modify(v, diskID, off, int64(len(p)), func(d *disk, seq uint64) { d.write(off, p, seq) })
}

// Trim discards a range: it reads as zeroes from now on.
func (v *VM) Trim(diskID string, off, n int64) error {
	return modify(v, diskID, off, n, func(d *disk, seq uint64) { d.trim(off, n, seq) })
}

func modify(v *VM, diskID string, off, n int64, change func(*disk, uint64)) error {
	for {
		v.mu.Lock()
		d, err := findDisk(v, diskID)
		if err == nil {
			err = d.check(off, int(n))
		}
		if err != nil {
			v.mu.Unlock()
			return err
		}
		need := d.missing(off, n, true)
		if len(need) == 0 {
			if v.power == hypervisor.PowerOff {
				change(d, untracked)
			} else {
				v.seq++
				change(d, v.seq)
			}
			v.mu.Unlock()
			return nil
		}
		v.mu.Unlock()
		if err := v.pull(context.Background(), d, need); err != nil {
			return err
		}
	}
}

// Read fills p from a disk's live content.
func (v *VM) Read(diskID string, off int64, p []byte) error {
	for {
		v.mu.Lock()
		d, err := findDisk(v, diskID)
		if err == nil {
			err = d.check(off, len(p))
		}
		if err != nil {
			v.mu.Unlock()
			return err
		}
		need := d.missing(off, int64(len(p)), false)
		if len(need) == 0 {
			copyPages(d.pages, p, off)
			v.mu.Unlock()
			return nil
		}
		v.mu.Unlock()
		if err := v.pull(context.Background(), d, need); err != nil {
			return err
		}
	}
}

// Content returns a copy of a disk's live content.
func (v *VM) Content(diskID string) ([]byte, error) {
	p := make([]byte, v.Size(diskID))
	return p, v.Read(diskID, 0, p)
}

// Size returns a disk's size, -1 if there is none of that name.
func (v *VM) Size(diskID string) int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	d, err := findDisk(v, diskID)
	if err != nil {
		return -1
	}
	return d.size
}

// pull fetches pages from the remote without holding the lock, then inserts
// those that are still absent: here and in an open frozen image, where absence
// means the same base.
func (v *VM) pull(ctx context.Context, d *disk, idx []int64) error {
	ctx, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	for _, i := range idx {
		v.mu.Lock()
		r, size := d.remote, d.size
		_, have := d.pages[i]
		v.mu.Unlock()
		if r == nil || have {
			continue
		}
		data, err := fetch(ctx, r, i, size)
		if err != nil {
			return err
		}
		v.mu.Lock()
		if _, ok := d.pages[i]; !ok {
			d.pages[i] = &page{data: data, epoch: -1} // may be shared with a frozen image: never written in place
		}
		if v.job != nil {
			if f := v.job.images[d.id]; f != nil && f.remote == r {
				if _, ok := f.pages[i]; !ok {
					f.pages[i] = &page{data: data, epoch: -1}
				}
			}
		}
		v.mu.Unlock()
	}
	return nil
}

// Crash is a power loss of the host or a killed hypervisor process: the VM is
// off, an open cut is gone and every token is broken.
func (v *VM) Crash() {
	stop(v, hypervisor.PowerOff, true)
	v.world.emit(v.info.ID, "crashed")
}

// LoseTracking breaks the tokens for the named disks, for all if none is named, while the VM goes on.
func (v *VM) LoseTracking(disks ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range disks {
		loseDisk(v, id, "its tracking was lost")
	}
	if len(disks) == 0 {
		for _, t := range v.tokens {
			t.broken = true
		}
	}
}

// PowerOff is an orderly shutdown from inside: tokens survive, an open cut does not.
func (v *VM) PowerOff() {
	stop(v, hypervisor.PowerOff, false)
	v.world.emit(v.info.ID, "stopped")
}

// stop ends the VM and its open cut; a crash breaks its tokens.
func stop(v *VM, to hypervisor.PowerState, crash bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.power = to
	v.frozen = false
	v.alien = false
	if v.job != nil {
		v.job.broken = true
		v.job = nil
	}
	if crash {
		for _, t := range v.tokens {
			t.broken = true
		}
	}
}

// PowerOn starts the VM if it is off.
func (v *VM) PowerOn() {
	v.mu.Lock()
	was := v.power
	v.power = hypervisor.PowerOn
	v.mu.Unlock()
	if was == hypervisor.PowerOff {
		v.world.emit(v.info.ID, "started")
		if f := v.world.cfg.OnBoot; f != nil {
			f(v)
		}
	}
}

// Pause suspends a running VM.
func (v *VM) Pause() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.power == hypervisor.PowerOn {
		v.power = hypervisor.PowerPaused
	}
}

// AgentMode is how a guest agent behaves.
type AgentMode int

// The behaviours.
const (
	AgentAnswers        AgentMode = iota
	AgentHangsOnFreeze            // the freeze is not confirmed in time
	AgentHangsOnThaw              // frozen until the mode is AgentAnswers again
	AgentFreezesNothing           // no file system can be frozen
)

// SetAgent says what a quiesce reaches ("" = no agent) and whether the agent hangs.
func (v *VM) SetAgent(level dr.Consistency, hangs bool) {
	mode := AgentAnswers
	if hangs {
		mode = AgentHangsOnFreeze
	}
	v.SetAgentMode(level, mode)
}

// SetAgentMode says what a quiesce reaches ("" = no agent) and how the agent behaves.
func (v *VM) SetAgentMode(level dr.Consistency, mode AgentMode) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.agent, v.mode = level, mode
	if mode == AgentAnswers {
		v.frozen = false // the adapter has gone on asking
	}
}

// Frozen reports whether the guest's file systems are frozen; outside BeginCut
// only while the agent hangs on a thaw.
func (v *VM) Frozen() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.frozen
}

// IgnoreShutdown makes the guest deaf to shutdown requests.
func (v *VM) IgnoreShutdown(deaf bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.deaf = deaf
}

// ForeignJob opens (true) or ends another product's backup job.
func (v *VM) ForeignJob(open bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.alien = open
}

// AddForeignToken makes a token of another product, which Forget must leave alone.
func (v *VM) AddForeignToken(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tokens[name] = &token{seq: v.seq, alien: true, sizes: map[string]int64{}}
}

// Tokens lists the names of all tracking tokens, sorted.
func (v *VM) Tokens() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	names := make([]string, 0, len(v.tokens))
	for n := range v.tokens {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// CutOpen reports whether a cut of Holdfast's is open.
func (v *VM) CutOpen() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.job != nil
}

// Print appends to the serial log.
func (v *VM) Print(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.serial = append(v.serial, s...)
}
