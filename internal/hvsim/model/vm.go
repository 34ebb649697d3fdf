package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Power is a VM's power state.
type Power string

// The power states.
const (
	On     Power = "running"
	Off    Power = "off"
	Paused Power = "paused"
	Saved  Power = "saved"
)

// What a guest's VSS (or fsfreeze) does when it is asked for an application consistent checkpoint.
const (
	VSSOk     = "ok"
	VSSFail   = "fail"
	VSSSlow   = "slow"
	VSSAbsent = "absent"
)

// Second elements of Msvm_ComputerSystem.OperationalStatus; 0 = idle.
const (
	Creating  uint16 = 32768
	Applying  uint16 = 32769
	Deleting  uint16 = 32770
	Merging   uint16 = 32772
	Migrating uint16 = 32774
)

// State is all that is known of a VM; it is what a restart of the program keeps.
type State struct {
	ID, Name, Host     string
	Planned            bool // imported, not realized yet (Msvm_PlannedComputerSystem)
	Generation         int
	Version            string
	CPUs               int
	MemoryMB           int64
	DynamicMemory      bool
	MinMB, MaxMB       int64
	Power              Power
	Status             uint16 // what is going on, see Creating and following
	Created            time.Time
	LastChange         time.Time // of the power state
	Dir                string    // of the configuration, a path of the host
	Notes              []string
	SecureBoot         bool
	SecureBootTemplate string
	TPM                bool
	UserSnapshotType   uint16
	Clustered          bool
	OS, OSVersion      string
	FQDN               string
	Heartbeat          uint16
	VSS                string
	NoShutdown         bool // the guest does not answer a request to shut down
	BIOSGUID           string
	AutoStart          uint16
	Controllers        []Controller
	Drives             []Drive
	Disks              []DiskState
	NICs               []NIC
	Checkpoints        []Checkpoint
	Points             []Point
	Last               string // checkpoint that the VM's state stems from
	Replication        Replication
}

// Controller is a disk controller.
type Controller struct {
	ID     string
	Type   string // SCSI or IDE
	Number int    // among those of its type
}

// Drive is a slot of a controller that has a drive in it.
type Drive struct {
	Controller string
	Slot       int
	DVD        bool
	Image      string // of a DVD
}

// NIC is a network adapter.
type NIC struct {
	ID        string
	Name      string
	MAC       string // twelve hexadecimal digits
	StaticMAC bool
	Legacy    bool   // emulated
	Switch    string // id; "" = not connected
	Connected bool   // a connection exists, even one to no switch
	VLAN      int    // 0 = none
	DHCP      bool
	IPs       []string
	Subnets   []string
	Gateways  []string
	DNS       []string
}

// Checkpoint is a saved moment of a VM.
type Checkpoint struct {
	ID, Name    string
	Recovery    bool
	Parent      string
	Created     time.Time
	Consistency uint8
	Disks       []FrozenDisk
	Generation  State // hardware at that time, without checkpoints and points
}

// FrozenDisk is a disk in a checkpoint or reference point.
type FrozenDisk struct {
	ID   string
	Path string // file that holds the moment, with its parents; "" in a reference point
	RCT  string // "" = not tracked
	Seq  uint64
}

// Point is a reference point.
type Point struct {
	ID, Name    string
	Log         bool // log based, otherwise by change tracking
	Consistency uint8
	Created     time.Time
	Disks       []FrozenDisk
	Logs        []Log // of a log based point: the changes up to it
}

// Log is a log file of a disk.
type Log struct{ Disk, Path string }

// Replication is the state of Hyper-V Replica's own relationship, as far as it is simulated.
type Replication struct {
	State, Health, Mode uint16
	Settings            string // embedded Msvm_ReplicationSettingData
	Since               time.Time
}

// VM is one virtual machine. Safe for concurrent use.
//
// Locks: op (one operation that changes files at a time), then io (guests' I/O
// shares it), then the site's mu (all state).
type VM struct {
	site    *Site
	id      string
	op      sync.Mutex
	io      sync.RWMutex
	host    *Host // under site.mu, like the following
	st      State
	disks   []*Disk
	gen     uint64
	changed time.Time
	merging bool
	gone    bool
	draft   bool // being made by AddVM: nothing of it is stored yet
	guest   Running
	started time.Time
}

//

// Errors of this package; others are failures of files.
var (
	ErrNotFound = errors.New("no such object")
	ErrState    = errors.New("not possible in the present state")
	ErrInvalid  = errors.New("invalid parameter")
	ErrInUse    = errors.New("The process cannot access the file because it is being used by another process. (0x80070020)")
	ErrMissing  = errors.New("not supported by this virtual machine")
)

// ID returns the VM's id in upper case.
func (vm *VM) ID() string { return vm.id }

// Host returns the host that has the VM now.
func (vm *VM) Host() *Host {
	vm.site.mu.RLock()
	defer vm.site.mu.RUnlock()
	return vm.host
}

// State returns a copy of the VM's state; its slices must not be changed.
func (vm *VM) State() State {
	st, _ := vm.Version()
	return st
}

// Version is State with a number that differs whenever the state does.
func (vm *VM) Version() (State, uint64) {
	vm.site.mu.RLock()
	defer vm.site.mu.RUnlock()
	return vm.st.clone(), vm.gen
}

// Generation is the number of Version alone.
func (vm *VM) Generation() uint64 {
	vm.site.mu.RLock()
	defer vm.site.mu.RUnlock()
	return vm.gen
}

// clone copies the slices that change in place.
func (st *State) clone() State {
	c := *st
	c.Notes, c.Controllers, c.Drives, c.NICs = slices.Clone(st.Notes), slices.Clone(st.Controllers), slices.Clone(st.Drives), slices.Clone(st.NICs)
	c.Checkpoints, c.Points, c.Disks = slices.Clone(st.Checkpoints), slices.Clone(st.Points), slices.Clone(st.Disks)
	for i := range c.Disks {
		c.Disks[i].Files = slices.Clone(c.Disks[i].Files)
	}
	return c
}

// change edits the state and makes the change durable. A failed edit changes nothing.
func (vm *VM) change(edit func(*State) error) error {
	vm.site.mu.Lock()
	defer vm.site.mu.Unlock()
	if vm.gone {
		return fmt.Errorf("VM %s was deleted: %w", vm.id, ErrNotFound)
	}
	st := vm.st.clone()
	if err := edit(&st); err != nil {
		return err
	}
	if !vm.draft {
		b, err := json.Marshal(st)
		if err != nil {
			return fmt.Errorf("hvsim: %w", err)
		}
		if err := replaceFile(vm.site.stateFile(vm.id), b); err != nil {
			return err
		}
	}
	vm.site.index(vm, &vm.st, &st)
	vm.st = st
	vm.gen++
	vm.changed = time.Now()
	return nil
}

// index brings the site's index of checkpoints and reference points up to date. The caller holds site.mu.
func (s *Site) index(vm *VM, was, now *State) {
	each := func(st *State, fn func(id string)) {
		for i := range st.Checkpoints {
			fn(st.Checkpoints[i].ID)
		}
		for i := range st.Points {
			fn(st.Points[i].ID)
		}
	}
	each(was, func(id string) { delete(s.owned, id) })
	each(now, func(id string) { s.owned[id] = vm })
}

// publish ends AddVM's work on a draft: from now on the VM survives a restart.
func (vm *VM) publish() error {
	vm.site.mu.Lock()
	vm.draft = false
	vm.site.mu.Unlock()
	return vm.Change(func(*State) error { return nil })
}

// Change edits the parts of a VM that are nothing but settings: name, notes, CPUs, memory, guest facts, network adapters.
func (vm *VM) Change(edit func(*State) error) error {
	if err := vm.change(edit); err != nil {
		return err
	}
	return vm.writeConfig()
}

// status sets what is going on; it fails if something is already.
func (vm *VM) begin(status uint16) error {
	return vm.change(func(st *State) error {
		if st.Status != 0 {
			return fmt.Errorf("VM %s is busy (operational status %d): %w", st.Name, st.Status, ErrState)
		}
		st.Status = status
		return nil
	})
}

// end clears what begin set.
func (vm *VM) end() {
	if err := vm.change(func(st *State) error { st.Status = 0; return nil }); err != nil && !errors.Is(err, ErrNotFound) {
		vm.site.log.Error("state of a VM can't be stored", "vm", vm.id, "error", err)
	}
}

// Busy runs a job's work under an operational status.
func (vm *VM) Busy(status uint16) (end func(), err error) {
	if err := vm.begin(status); err != nil {
		return nil, err
	}
	return sync.OnceFunc(vm.end), nil
}

// ConfigFile is the path of the VM's configuration file on the host.
func (st *State) ConfigFile() string {
	return st.Dir + `\Virtual Machines\` + st.ID + ".vmcx"
}

// writeConfig writes the configuration file: a placeholder with the simulator's own JSON in it.
func (vm *VM) writeConfig() error {
	vm.site.mu.RLock()
	draft := vm.draft
	vm.site.mu.RUnlock()
	if draft {
		return nil
	}
	st := vm.State()
	path, err := vm.Host().Local(st.ConfigFile())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("hvsim: %w", err)
	}
	st.Checkpoints, st.Points, st.Status = nil, nil, 0
	b, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		return fmt.Errorf("hvsim: %w", err)
	}
	return replaceFile(path, b)
}

// ReadConfig reads a configuration file that writeConfig wrote.
func (h *Host) ReadConfig(path string) (State, error) {
	var st State
	local, err := h.Local(path)
	if err != nil {
		return st, err
	}
	b, err := os.ReadFile(local)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("hvsim: %s is no configuration of a VM: %w", path, ErrInvalid)
	}
	return st, nil
}

// Power

// Start runs the VM, or resumes it when it is paused or saved.
func (vm *VM) Start(ctx context.Context) error {
	vm.op.Lock()
	defer vm.op.Unlock()
	st := vm.State()
	switch {
	case st.Planned:
		return fmt.Errorf("VM %s is planned only: %w", st.Name, ErrState)
	case st.Power == On:
		return nil
	case st.Power == Paused:
		if g := vm.running(); g != nil {
			if err := g.Resume(ctx); err != nil {
				return err
			}
		}
		return vm.setPower(On)
	}
	if err := vm.switchOn(ctx); err != nil {
		return err
	}
	return vm.setPower(On)
}

func (vm *VM) setPower(p Power) error {
	return vm.change(func(st *State) error { st.Power, st.LastChange = p, time.Now(); return nil })
}

func (vm *VM) running() Running {
	vm.site.mu.RLock()
	defer vm.site.mu.RUnlock()
	return vm.guest
}

// Uptime is how long the VM runs, 0 if it does not.
func (vm *VM) Uptime() time.Duration {
	vm.site.mu.RLock()
	defer vm.site.mu.RUnlock()
	if vm.st.Power != On && vm.st.Power != Paused || vm.started.IsZero() {
		return 0
	}
	return time.Since(vm.started)
}

// switchOn opens the disks and starts the guest.
func (vm *VM) switchOn(ctx context.Context) error {
	vm.io.Lock()
	err := vm.openDisks()
	vm.io.Unlock()
	if err != nil {
		return err
	}
	vm.site.mu.Lock()
	vm.started = time.Now()
	vm.site.mu.Unlock()
	if vm.site.cfg.Runner == nil {
		return nil
	}
	g, err := vm.site.cfg.Runner.Start(ctx, vm.run())
	if err != nil {
		vm.io.Lock()
		defer vm.io.Unlock()
		return errors.Join(fmt.Errorf("start the guest of VM %s: %w", vm.id, err), vm.closeDisks())
	}
	vm.site.mu.Lock()
	vm.guest = g
	vm.site.mu.Unlock()
	vm.site.wg.Go(func() { vm.watch(g) })
	return nil
}

// watch notices that a guest has ended by itself.
func (vm *VM) watch(g Running) {
	select {
	case <-g.Done():
	case <-vm.site.ctx.Done():
		return
	}
	vm.op.Lock()
	defer vm.op.Unlock()
	if vm.running() == g {
		if err := vm.switchOff(false); err != nil && !errors.Is(err, ErrNotFound) {
			vm.site.log.Error("VM that shut down can't be closed", "vm", vm.id, "error", err)
		}
	}
}

// run describes the VM to a Runner.
func (vm *VM) run() VMRun {
	st := vm.State()
	r := VMRun{ID: st.ID, Name: st.Name, Generation: st.Generation, CPUs: st.CPUs, MemoryMB: st.MemoryMB,
		Dir: filepath.Join(vm.site.cfg.Dir, "run", strings.ToLower(st.ID[:8])), Serial: vm.SerialFile()}
	for _, d := range st.Disks {
		x := RunDisk{ID: d.ID, Slot: d.Slot, Device: &device{disk: vm.Disk(d.ID), size: d.Size}}
		for _, c := range st.Controllers {
			if c.ID == d.Controller {
				x.Controller, x.Number = c.Type, c.Number
			}
		}
		r.Disks = append(r.Disks, x)
	}
	for _, n := range st.NICs {
		r.NICs = append(r.NICs, RunNIC{MAC: n.MAC, Switch: n.Switch})
	}
	return r
}

// SerialFile is the file on this machine that a guest's console is written to.
func (vm *VM) SerialFile() string {
	return filepath.Join(vm.site.cfg.Dir, "run", strings.ToLower(vm.id[:8]), "serial.log")
}

// Screenshot returns a PNG of the display of a VM that a Runner runs.
func (vm *VM) Screenshot(ctx context.Context) ([]byte, error) {
	g := vm.running()
	if g == nil {
		return nil, ErrMissing
	}
	return g.Screenshot(ctx)
}

// PowerOff cuts the VM's power. Idempotent.
func (vm *VM) PowerOff() error {
	vm.op.Lock()
	defer vm.op.Unlock()
	return vm.switchOff(false)
}

// Crash cuts the power of the VM as the end of its host would: change tracking suffers as configured.
func (vm *VM) Crash() error {
	vm.op.Lock()
	defer vm.op.Unlock()
	return vm.switchOff(true)
}

func (vm *VM) switchOff(crash bool) error {
	vm.site.mu.Lock()
	g := vm.guest
	vm.guest = nil
	vm.site.mu.Unlock()
	var errs []error
	if g != nil {
		errs = append(errs, g.Kill())
	}
	vm.io.Lock()
	defer vm.io.Unlock()
	if vm.State().Power == Off {
		return errors.Join(errs...)
	}
	errs = append(errs, vm.closeDisks())
	if crash {
		for _, d := range vm.all() {
			errs = append(errs, d.crash())
		}
	}
	return errors.Join(append(errs, vm.setPower(Off))...)
}

// Shutdown asks the guest to shut down. Without a Runner it is off when Shutdown returns,
// unless the guest does not answer.
func (vm *VM) Shutdown(ctx context.Context) error {
	st := vm.State()
	if st.Power != On {
		return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, ErrState)
	}
	if st.NoShutdown {
		return nil
	}
	if g := vm.running(); g != nil {
		return g.Powerdown(ctx)
	}
	return vm.PowerOff()
}

// Pause suspends a running VM.
func (vm *VM) Pause(ctx context.Context) error {
	vm.op.Lock()
	defer vm.op.Unlock()
	if st := vm.State(); st.Power != On {
		return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, ErrState)
	}
	if g := vm.running(); g != nil {
		if err := g.Pause(ctx); err != nil {
			return err
		}
	}
	return vm.setPower(Paused)
}

// Save stops the VM and keeps its memory (which the simulator does not have).
func (vm *VM) Save() error {
	vm.op.Lock()
	defer vm.op.Unlock()
	if st := vm.State(); st.Power != On && st.Power != Paused {
		return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, ErrState)
	}
	if err := vm.switchOff(false); err != nil {
		return err
	}
	return vm.setPower(Saved)
}

// suspend closes a VM's files because the program ends; its state stays what it is.
func (vm *VM) suspend() error {
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.site.mu.Lock()
	g := vm.guest
	vm.guest = nil
	vm.site.mu.Unlock()
	var errs []error
	if g != nil {
		errs = append(errs, g.Kill())
	}
	vm.io.Lock()
	defer vm.io.Unlock()
	for _, d := range vm.all() {
		errs = append(errs, d.abandonLog())
	}
	return errors.Join(append(errs, vm.closeDisks())...)
}

// Migrate moves the VM to another host of the site. Its files must be on a cluster volume.
func (vm *VM) Migrate(to *Host) error {
	vm.op.Lock()
	defer vm.op.Unlock()
	st := vm.State()
	paths := []string{st.Dir}
	for _, d := range st.Disks {
		paths = append(paths, d.Base, d.Leaf)
	}
	for _, p := range paths {
		if !strings.HasPrefix(strings.ToUpper(p), `C:\CLUSTERSTORAGE\`) {
			return fmt.Errorf("VM %s has %s on storage of its host alone: %w", st.Name, p, ErrState)
		}
	}
	return vm.change(func(st *State) error {
		if to == nil || to.site != vm.site {
			return fmt.Errorf("no such host in the site: %w", ErrNotFound)
		}
		st.Host, vm.host = to.Conf.Name, to
		for i, n := range st.NICs {
			if n.Switch != "" {
				st.NICs[i].Switch = to.sameSwitch(vm.site, n.Switch)
			}
		}
		return nil
	})
}

// sameSwitch finds the switch of this host with the name of another host's switch.
func (h *Host) sameSwitch(s *Site, id string) string {
	for _, o := range s.hosts {
		for _, sw := range o.Conf.Switches {
			if sw.ID != id {
				continue
			}
			for _, mine := range h.Conf.Switches {
				if strings.EqualFold(mine.Name, sw.Name) {
					return mine.ID
				}
			}
		}
	}
	return ""
}

// Delete removes the VM from its host. Its disks stay, its configuration and merged files go.
func (vm *VM) Delete() error {
	vm.op.Lock()
	defer vm.op.Unlock()
	st := vm.State()
	if st.Power != Off && st.Power != Saved {
		return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, ErrState)
	}
	var errs []error
	for _, d := range vm.all() {
		errs = append(errs, d.abandonLog(), d.removeTracker())
	}
	if path, err := vm.Host().Local(st.ConfigFile()); err == nil && !st.Planned {
		errs = append(errs, removeFile(path))
	}
	vm.site.mu.Lock()
	defer vm.site.mu.Unlock()
	vm.gone = true
	delete(vm.site.vms, vm.id)
	vm.site.index(vm, &vm.st, &State{})
	return errors.Join(append(errs, removeFile(vm.site.stateFile(vm.id)))...)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("hvsim: %w", err)
	}
	return nil
}

// Owner finds the VM that an id in upper case belongs to: its own, or that of a checkpoint or reference
// point; nil if there is none on this host.
func (h *Host) Owner(id string) *VM {
	h.site.mu.RLock()
	defer h.site.mu.RUnlock()
	vm := h.site.vms[id]
	if vm == nil {
		vm = h.site.owned[id]
	}
	if vm == nil || vm.host != h {
		return nil
	}
	return vm
}
