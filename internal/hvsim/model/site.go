// Package model is what the simulated Hyper-V hosts are, without the management
// interface in front of them: machines with their hardware, power, checkpoints
// and reference points, on real VHDX chains in a directory whose changes are tracked.
//
// It promises: the state of every VM survives a restart of the program, at every
// moment (each change replaces one file); a write of a guest is tracked before it is
// done; after a restart that lost marks every earlier tracking id is unknown. It
// does not promise durability against a power cut of the machine that runs it.
package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/nbd"
)

// What a crash does to change tracking (Config.CrashRCT).
const (
	CrashLosesRCT = "lost"  // the ids are unknown afterwards
	CrashNewer    = "newer" // the ids are known, but the tracking says that changes are missing: queries fail
	CrashKeepsRCT = "kept"
)

// Config describes a site.
type Config struct {
	Dir         string // everything is below it
	Hosts       []HostConfig
	Log         *slog.Logger // nil = none
	Seed        uint64       // of ids
	Granularity int64        // of change tracking in bytes, a power of two; 0 = 32 KiB
	JobTime     time.Duration
	MergeTime   time.Duration // how long the merge of a checkpoint takes at least
	VSSTime     time.Duration // extra time of a slow VSS; 0 = 5 s
	// Inline makes methods that may answer at once do so: 0 and the result in the
	// out parameter. Otherwise they start a job, and the out parameter is null.
	Inline   bool
	CrashRCT string // "" = CrashLosesRCT
	Runner   Runner // nil = VMs "run" without a guest
}

// HostConfig describes a host.
type HostConfig struct {
	Name     string
	CPUs     int   // 0 = 16
	MemoryMB int64 // 0 = 65536
	OS       string
	Version  string   // of Windows, "" = 10.0.20348
	Switches []Switch // nil = one external switch "External"
}

// Switch is a virtual switch.
type Switch struct {
	ID, Name string
	Kind     string // external, internal or private
}

// Runner runs guests for real.
type Runner interface {
	// Start starts a VM and returns once it runs. ctx bounds the start only.
	Start(ctx context.Context, run VMRun) (Running, error)
}

// Running is a guest that a Runner started.
type Running interface {
	Powerdown(ctx context.Context) error // asks the guest to shut down; Done tells when it has
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Screenshot(ctx context.Context) (png []byte, err error)
	Done() <-chan struct{} // closed when the guest has ended, in whatever way
	Kill() error           // cuts the power and waits until the guest has ended; idempotent
}

// VMRun is what a Runner needs to know of a VM.
type VMRun struct {
	ID, Name   string
	Generation int
	CPUs       int
	MemoryMB   int64
	Dir        string // for sockets, logs and the like
	Serial     string // file for the console of the first serial port
	Disks      []RunDisk
	NICs       []RunNIC
}

// RunDisk is a disk of a VMRun. What is written to Device is the guest's own writing.
type RunDisk struct {
	ID         string
	Controller string // SCSI or IDE
	Number     int    // of the controller among those of its kind
	Slot       int
	Device     nbd.WritableDevice
}

// RunNIC is a network adapter of a VMRun.
type RunNIC struct {
	MAC    string // twelve hexadecimal digits
	Switch string // "" = not connected
}

// Site is a set of hosts that share cluster volumes. Safe for concurrent use.
type Site struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // merges and watchers of guests

	mu    sync.RWMutex // all state of hosts and VMs
	hosts []*Host
	vms   map[string]*VM // by upper-case id
	owned map[string]*VM // by upper-case id of their checkpoints and reference points
	rng   *rand.Rand
	open  bool

	// BeforeMerge is called before the files of a VM's deleted checkpoint are merged; the merge waits for it and is tried
	// again when it fails. Set it before Open.
	BeforeMerge func(ctx context.Context, host string, vm State) error
}

// Host is one host.
type Host struct {
	site *Site
	Conf HostConfig
	dir  string

	noMerge bool // ModifyDiskMergeSettings
	booted  time.Time
}

// New returns a site that is not open yet.
func New(cfg Config) (*Site, error) {
	if cfg.Dir == "" || len(cfg.Hosts) == 0 {
		return nil, errors.New("hvsim: a site needs a directory and at least one host")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Granularity == 0 {
		cfg.Granularity = 32 << 10
	}
	if cfg.Granularity < 512 || cfg.Granularity&(cfg.Granularity-1) != 0 {
		return nil, fmt.Errorf("hvsim: granularity %d is no power of two of at least 512", cfg.Granularity)
	}
	if cfg.VSSTime == 0 {
		cfg.VSSTime = 5 * time.Second
	}
	if cfg.CrashRCT == "" {
		cfg.CrashRCT = CrashLosesRCT
	}
	s := &Site{cfg: cfg, log: cfg.Log, vms: map[string]*VM{}, owned: map[string]*VM{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	seen := map[string]bool{}
	for _, h := range cfg.Hosts {
		if h.Name == "" || strings.ContainsAny(h.Name, `/\.:`) || seen[strings.ToUpper(h.Name)] {
			return nil, fmt.Errorf("hvsim: host name %q is empty, used twice or no NetBIOS name", h.Name)
		}
		seen[strings.ToUpper(h.Name)] = true
		if h.CPUs == 0 {
			h.CPUs = 16
		}
		if h.MemoryMB == 0 {
			h.MemoryMB = 65536
		}
		if h.OS == "" {
			h.OS = "Microsoft Windows Server 2022 Datacenter"
		}
		if h.Version == "" {
			h.Version = "10.0.20348"
		}
		if h.Switches == nil {
			h.Switches = []Switch{{Name: "External", Kind: "external"}}
		}
		h.Switches = slices.Clone(h.Switches)
		s.hosts = append(s.hosts, &Host{site: s, Conf: h, dir: filepath.Join(cfg.Dir, h.Name)})
	}
	return s, nil
}

// Open makes the directories, reads what an earlier program left and goes on with it.
func (s *Site) Open(ctx context.Context) error {
	shared := filepath.Join(s.cfg.Dir, "shared", "Volume1")
	state := filepath.Join(s.cfg.Dir, "state")
	for _, d := range []string{shared, state} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("hvsim: %w", err)
		}
	}
	run, err := s.count(filepath.Join(s.cfg.Dir, "runs"))
	if err != nil {
		return err
	}
	s.rng = rand.New(rand.NewPCG(s.cfg.Seed, run))
	for i, h := range s.hosts {
		h.booted = time.Now()
		link := filepath.Join(h.dir, "C", "ClusterStorage", "Volume1")
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return fmt.Errorf("hvsim: %w", err)
		}
		if err := os.Symlink(filepath.Join("..", "..", "..", "shared", "Volume1"), link); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("hvsim: %w", err)
		}
		fixed := rand.New(rand.NewPCG(s.cfg.Seed, 1<<40+uint64(i))) // the same in every run
		for k := range h.Conf.Switches {
			if h.Conf.Switches[k].ID == "" {
				h.Conf.Switches[k].ID = guid(fixed)
			}
		}
	}
	s.open = true
	files, err := filepath.Glob(filepath.Join(state, "*.json"))
	if err != nil {
		return fmt.Errorf("hvsim: %w", err)
	}
	for _, f := range files {
		if err := s.load(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// count increments the number in a file.
func (s *Site) count(path string) (uint64, error) {
	var n uint64
	b, err := os.ReadFile(path)
	if err == nil {
		_, err = fmt.Sscan(string(b), &n)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("hvsim: read %s: %w", path, err)
	}
	return n + 1, replaceFile(path, fmt.Appendf(nil, "%d\n", n+1))
}

// Close ends guests and merges, saves change tracking and closes all disks. Idempotent.
func (s *Site) Close() error {
	s.cancel()
	s.wg.Wait()
	var errs []error
	for _, vm := range s.all() {
		errs = append(errs, vm.suspend())
	}
	s.mu.Lock()
	s.open = false
	s.mu.Unlock()
	return errors.Join(errs...)
}

func (s *Site) all() []*VM {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*VM, 0, len(s.vms))
	for _, vm := range s.vms {
		list = append(list, vm)
	}
	slices.SortFunc(list, func(a, b *VM) int { return strings.Compare(a.id, b.id) })
	return list
}

// Host finds a host by its name, nil if there is none.
func (s *Site) Host(name string) *Host {
	for _, h := range s.hosts {
		if strings.EqualFold(h.Conf.Name, name) {
			return h
		}
	}
	return nil
}

// Settings returns the configuration as it is in force.
func (s *Site) Settings() Config { return s.cfg }

// NewGUID returns a new id in upper case.
func (s *Site) NewGUID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return guid(s.rng)
}

func guid(r *rand.Rand) string {
	a, b := r.Uint64(), r.Uint64()
	return fmt.Sprintf("%08X-%04X-4%03X-%04X-%012X", uint32(a>>32), uint16(a>>16), a&0xfff, 0x8000|b>>50, b&0xffffffffffff)
}

// Site returns the host's site.
func (h *Host) Site() *Site { return h.site }

// Booted is when the host was started.
func (h *Host) Booted() time.Time { return h.booted }

// Local turns a path of the host into one of this machine: C:\x becomes <root>/C/x.
func (h *Host) Local(path string) (string, error) {
	p := strings.TrimPrefix(strings.ReplaceAll(path, "/", `\`), `\\?\`)
	if len(p) < 3 || p[1] != ':' || p[2] != '\\' {
		return "", fmt.Errorf("hvsim: %q is no absolute path of the host: %w", path, os.ErrInvalid)
	}
	parts := strings.Split(p[3:], `\`)
	if slices.Contains(parts, "..") || strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("hvsim: %q leaves its volume: %w", path, os.ErrInvalid)
	}
	return filepath.Join(append([]string{h.dir, strings.ToUpper(p[:1])}, parts...)...), nil
}

// Path is the inverse of Local.
func (h *Host) Path(local string) (string, error) {
	rel, err := filepath.Rel(h.dir, local)
	if err != nil || strings.HasPrefix(rel, "..") {
		return "", fmt.Errorf("hvsim: %s is not below the host's directory %s", local, h.dir)
	}
	drive, rest, _ := strings.Cut(filepath.ToSlash(rel), "/")
	return drive + `:\` + strings.ReplaceAll(rest, "/", `\`), nil
}

// Dir is the directory that stands for the host's volumes.
func (h *Host) Dir() string { return h.dir }

// VMs lists the host's VMs in the order of their names.
func (h *Host) VMs() []*VM {
	h.site.mu.RLock()
	defer h.site.mu.RUnlock()
	var list []*VM
	for _, vm := range h.site.vms {
		if vm.host == h {
			list = append(list, vm)
		}
	}
	slices.SortFunc(list, func(a, b *VM) int {
		return strings.Compare(a.st.Name+"\x00"+a.id, b.st.Name+"\x00"+b.id)
	})
	return list
}

// VM finds a VM by its id, or by its name if that is unique; nil if there is none.
func (h *Host) VM(idOrName string) *VM {
	h.site.mu.RLock()
	defer h.site.mu.RUnlock()
	if vm := h.site.vms[strings.ToUpper(idOrName)]; vm != nil && vm.host == h {
		return vm
	}
	var found *VM
	for _, vm := range h.site.vms {
		if vm.host == h && strings.EqualFold(vm.st.Name, idOrName) {
			if found != nil {
				return nil
			}
			found = vm
		}
	}
	return found
}

// SetMerging switches merges of all VMs of the host on and off (Msvm_DiskMergeSettingData).
func (h *Host) SetMerging(on bool) {
	h.site.mu.Lock()
	h.noMerge = !on
	h.site.mu.Unlock()
	if on {
		for _, vm := range h.VMs() {
			if err := vm.merge(); err != nil {
				h.site.log.Warn("merge does not begin", "vm", vm.id, "error", err)
			}
		}
	}
}

// Crash cuts the power of all running VMs of the host, as its own end would.
func (h *Host) Crash() error {
	var errs []error
	for _, vm := range h.VMs() {
		if vm.State().Power != Off {
			errs = append(errs, vm.Crash())
		}
	}
	return errors.Join(errs...)
}

// replaceFile replaces a file in one step.
func replaceFile(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return fmt.Errorf("hvsim: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("hvsim: %w", err)
	}
	return nil
}

func (s *Site) stateFile(id string) string {
	return filepath.Join(s.cfg.Dir, "state", strings.ToLower(id)+".json")
}

// load takes over a VM that an earlier program left.
func (s *Site) load(ctx context.Context, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("hvsim: %w", err)
	}
	var st State
	if err := json.Unmarshal(b, &st); err != nil {
		return fmt.Errorf("hvsim: %s: %w", path, err)
	}
	h := s.Host(st.Host)
	if h == nil {
		return fmt.Errorf("hvsim: %s is of host %s, which the site does not have", path, st.Host)
	}
	st.Status = 0
	vm := &VM{site: s, host: h, id: st.ID, st: st, changed: time.Now()}
	for i := range st.Disks {
		vm.disks = append(vm.disks, &Disk{vm: vm, ID: st.Disks[i].ID})
	}
	s.mu.Lock()
	s.vms[st.ID] = vm
	s.index(vm, &State{}, &vm.st)
	s.mu.Unlock()
	if err := vm.settle(ctx); err != nil {
		return fmt.Errorf("hvsim: take over VM %s: %w", st.Name, err)
	}
	if st.Power == On || st.Power == Paused {
		if err := vm.switchOn(ctx); err != nil {
			s.log.Error("VM does not come up again", "vm", st.Name, "error", err)
			return vm.change(func(st *State) error { st.Power = Off; return nil })
		}
		if st.Power == Paused {
			return vm.change(func(st *State) error { st.Power = Paused; return nil })
		}
	}
	return nil
}
