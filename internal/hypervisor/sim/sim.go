// Package sim is a hypervisor host in memory. It owns a world of VMs whose
// disks are byte-exact and sparse, and satisfies hypervisor.Host with the full
// semantics of the contract: several tracking tokens at once, copy-on-write
// frozen images, coarse change tracking, power states, crashes that break
// tracking, foreign and stale backup jobs, recovery VMs on NBD sockets.
//
// Tests drive the guest's side through VM (Write, Crash, Resize, ReplaceDisk,
// Revert, MoveTo, ...) and make the platform misbehave with Inject. Nothing is durable. All methods are safe
// for concurrent use.
package sim

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Config of a simulated host. The zero value is usable.
type Config struct {
	Name        string // host name; "sim"
	CPUs        int    // 4
	MemoryMB    int    // 16384
	Granularity int64  // of change tracking, bytes; 64 KiB
	Networks    []hypervisor.Network
	Now         func() time.Time // time.Now
	// Dial connects a recovery VM's disk to its base; nil = by NBD.
	Dial func(ctx context.Context, socket, export string) (Remote, error)
	// NoNBD lets Boot ignore the sockets: recovery disks are local and read as zeroes.
	NoNBD bool
	// OnBoot is called after Boot has started a VM and Start a defined one, e.g. to write its serial log.
	OnBoot func(*VM)
}

// Remote is the read-only base of a recovery VM's disk.
type Remote interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	Close() error
}

// world is what survives the agent: the platform itself.
type world struct {
	cfg    Config
	faults *faults

	boot sync.Mutex // held over Boot and Remove: one definition changes at a time

	mu       sync.Mutex
	vms      map[dr.VMID]*VM
	watchers map[*watcher]struct{}
}

// Host is one agent's view of a simulated host.
type Host struct {
	world  *world
	closed bool // guarded by world.mu
}

var (
	_ hypervisor.Host        = (*Host)(nil)
	_ hypervisor.GroupSource = (*Host)(nil)
	_ hypervisor.Estimator   = (*Host)(nil)
)

// New makes a host without VMs.
func New(cfg Config) *Host {
	if cfg.Name == "" {
		cfg.Name = "sim"
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 4
	}
	if cfg.MemoryMB == 0 {
		cfg.MemoryMB = 16384
	}
	if cfg.Granularity == 0 {
		cfg.Granularity = 64 << 10
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = dialNBD
	}
	if cfg.Networks == nil {
		cfg.Networks = []hypervisor.Network{{Name: "default", Active: true}, {Name: "lab", Isolated: true, Active: true}}
	}
	return &Host{world: &world{cfg: cfg, faults: &faults{}, vms: map[dr.VMID]*VM{}, watchers: map[*watcher]struct{}{}}}
}

// Restart returns the host as a new agent process finds it after the old one
// died: VMs, tokens and open cuts are there, the old agent's handles are not its own.
// The old Host goes on working until closed, as a zombie would.
func (h *Host) Restart() *Host { return &Host{world: h.world} }

// Close ends this view; the VMs go on. Idempotent.
func (h *Host) Close() error {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	h.closed = true
	return nil
}

// DiskSpec describes a disk to AddVM.
type DiskSpec struct {
	ID             string
	Size           int64
	Unreplicatable string
	Shared         bool
}

// VMSpec describes a VM to AddVM.
type VMSpec struct {
	ID       dr.VMID // random if empty
	Name     string
	Disks    []DiskSpec
	Off      bool // defined but not running
	UEFI     bool
	OSType   string
	CPUs     int // 1
	MemoryMB int // 256
	NICs     []dr.NIC
	Agent    dr.Consistency // what a quiesce reaches; "" = no guest agent
}

// AddVM defines a VM, running unless Off. Its disks read as zeroes and have
// no tracking history.
func (h *Host) AddVM(spec VMSpec) *VM {
	w := h.world
	if spec.ID == "" {
		spec.ID = newUUID()
	}
	if spec.Name == "" {
		spec.Name = "vm-" + string(spec.ID)[:8]
	}
	v := &VM{world: w, agent: spec.Agent, tokens: map[string]*token{}, info: dr.VM{
		ID: spec.ID, Name: spec.Name, Generation: 1, CPUs: max(spec.CPUs, 1), MemoryMB: max(spec.MemoryMB, 256), OSType: spec.OSType, NICs: slices.Clone(spec.NICs),
	}, power: hypervisor.PowerOn}
	if spec.UEFI {
		v.info.Generation = 2
	}
	if spec.Off {
		v.power = hypervisor.PowerOff
	}
	for i, d := range spec.Disks {
		attach(v, d, i == 0)
	}
	w.mu.Lock()
	w.vms[spec.ID] = v
	w.mu.Unlock()
	w.emit(spec.ID, "defined")
	return v
}

// RemoveVM makes the host forget a VM, as when somebody undefines it.
func (h *Host) RemoveVM(id dr.VMID) {
	if v := h.VM(id); v != nil {
		stop(v, hypervisor.PowerOff, false)
	}
	h.world.mu.Lock()
	delete(h.world.vms, id)
	h.world.mu.Unlock()
	h.world.emit(id, "undefined")
}

// VM returns the guest's side of a VM, nil if the host does not know it.
func (h *Host) VM(id dr.VMID) *VM {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	return h.world.vms[id]
}

func (w *world) find(op string, id dr.VMID) (*VM, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v := w.vms[id]; v != nil {
		return v, nil
	}
	return nil, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "sim."+op, "host %s does not know VM %s", w.cfg.Name, id)
}

// Info describes the host.
func (h *Host) Info(ctx context.Context) (hypervisor.HostInfo, error) {
	if _, err := h.enter(ctx, "Info", ""); err != nil {
		return hypervisor.HostInfo{}, err
	}
	c := h.world.cfg
	return hypervisor.HostInfo{Name: c.Name, Hypervisor: "simulator 1", CPUs: c.CPUs, MemoryMB: c.MemoryMB}, nil
}

// Inventory lists the VMs, sorted by name.
func (h *Host) Inventory(ctx context.Context) ([]dr.VM, error) {
	if _, err := h.enter(ctx, "Inventory", ""); err != nil {
		return nil, err
	}
	h.world.mu.Lock()
	vms := slices.Collect(maps.Values(h.world.vms))
	h.world.mu.Unlock()
	list := make([]dr.VM, 0, len(vms))
	for _, v := range vms {
		list = append(list, v.describe())
	}
	slices.SortFunc(list, func(a, b dr.VM) int {
		if a.Name != b.Name {
			if a.Name < b.Name {
				return -1
			}
			return 1
		}
		return 0
	})
	return list, nil
}

// Config returns a VM's description; the native part is JSON of the same.
func (h *Host) Config(ctx context.Context, id dr.VMID) (hypervisor.VMConfig, error) {
	if _, err := h.enter(ctx, "Config", id); err != nil {
		return hypervisor.VMConfig{}, err
	}
	v, err := h.world.find("Config", id)
	if err != nil {
		return hypervisor.VMConfig{}, err
	}
	d := v.describe()
	raw, err := json.Marshal(d)
	if err != nil {
		return hypervisor.VMConfig{}, dr.Errorf(dr.KindInternal, "sim.Config", "encode the configuration of %s: %w", id, err)
	}
	return hypervisor.VMConfig{VM: d, Native: map[string][]byte{"sim.json": raw}}, nil
}

// Networks lists the configured networks.
func (h *Host) Networks(ctx context.Context) ([]hypervisor.Network, error) {
	if _, err := h.enter(ctx, "Networks", ""); err != nil {
		return nil, err
	}
	return slices.Clone(h.world.cfg.Networks), nil
}

// watcher queues events for one Watch call.
type watcher struct {
	mu    sync.Mutex
	queue []hypervisor.Event
	wake  chan struct{}
}

func (w *world) emit(vm dr.VMID, kind string) {
	w.mu.Lock()
	ws := slices.Collect(maps.Keys(w.watchers))
	w.mu.Unlock()
	for _, x := range ws {
		x.mu.Lock()
		x.queue = append(x.queue, hypervisor.Event{VM: vm, Kind: kind})
		x.mu.Unlock()
		select {
		case x.wake <- struct{}{}:
		default:
		}
	}
}

// Reconnect makes every watcher see a "reconnected" event.
func (h *Host) Reconnect() { h.world.emit("", "reconnected") }

// Watch calls fn for every event until ctx ends.
func (h *Host) Watch(ctx context.Context, fn func(hypervisor.Event)) error {
	if _, err := h.enter(ctx, "Watch", ""); err != nil {
		return err
	}
	x := &watcher{wake: make(chan struct{}, 1)}
	h.world.mu.Lock()
	h.world.watchers[x] = struct{}{}
	h.world.mu.Unlock()
	defer func() {
		h.world.mu.Lock()
		delete(h.world.watchers, x)
		h.world.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-x.wake:
		}
		x.mu.Lock()
		q := x.queue
		x.queue = nil
		x.mu.Unlock()
		for _, e := range q {
			fn(e)
		}
	}
}

func newUUID() dr.VMID {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return dr.VMID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

func removeFiles(disks []*disk) error {
	for _, d := range disks {
		if err := os.Remove(d.path); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
