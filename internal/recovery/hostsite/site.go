// Package hostsite brings recovery points up as VMs on a host of a recovery
// site. A serving process exports the point over NBD. On a KVM host the VM boots
// at once on local copy-on-write disks above it and becomes fully local while it
// runs; a Hyper-V host copies the point into VHDX files first.
//
// What it promises:
//
//   - Boot is idempotent by its serving id, and Remove undoes it completely after any crash at any step:
//     what is about to be made is recorded before it is made.
//   - A VM that Site did not make is never changed or removed.
//   - Nothing here needs the vault once the serving process has opened the point.
package hostsite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image"
	"image/png"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/hypervisor"
)

// Host is what a Site needs of a hypervisor.
type Host interface {
	hypervisor.Machines
	hypervisor.Console
}

// Servings start and stop serving processes; *hydrate.Launcher is one.
type Servings interface {
	Ensure(ctx context.Context, serving string) (hydrate.Status, error)
	Stop(ctx context.Context, serving string) error
	Dir(serving string) string
	Socket(serving string) string
}

// Config of a Site.
type Config struct {
	Host     Host
	Servings Servings
	Dir      string // records and disk images; QEMU must be able to read it
	Image    string // how the names of disk images end: .qcow2 (default), .vhdx
	// Images finds the disks of the point of a serving in a warm replica, which it may
	// bring to the point first: by disk id the address that hypervisor.BootDisk.Image
	// wants. Nil or empty means that there are none. It may be nil.
	Images func(ctx context.Context, p agentapi.BootPayload) (map[string]string, error)
	Every  time.Duration // between looks at a VM that is verified; 0 = 250 ms
	Log    *slog.Logger
}

// Site runs recovery VMs on this host. It is safe for concurrent use; calls
// for one serving wait for each other.
type Site struct {
	cfg Config

	mu    sync.Mutex
	locks map[string]*sync.Mutex
}

// New returns a Site; it does no I/O.
func New(cfg Config) *Site {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Image == "" {
		cfg.Image = ".qcow2"
	}
	if cfg.Every <= 0 {
		cfg.Every = 250 * time.Millisecond
	}
	return &Site{cfg: cfg, locks: map[string]*sync.Mutex{}}
}

// record is what a Site keeps of a recovery VM, durable before the VM is made.
type record struct {
	Version    int       `json:"version"` // 1
	Serving    string    `json:"serving"`
	Machine    string    `json:"machine"`
	Generation uint32    `json:"generation"`
	N          uint64    `json:"n"`
	VMName     string    `json:"vmName"`
	VM         string    `json:"vm,omitempty"` // once defined
	Local      bool      `json:"local"`        // nothing depends on the serving any more
	Created    time.Time `json:"created"`
}

func owner(serving string) string { return "holdfast:" + serving }

func (s *Site) lock(serving string) func() {
	s.mu.Lock()
	m := s.locks[serving]
	if m == nil {
		m = &sync.Mutex{}
		s.locks[serving] = m
	}
	s.mu.Unlock()
	m.Lock()
	return m.Unlock
}

func (s *Site) recordPath(serving string) string {
	return filepath.Join(s.cfg.Dir, "records", serving+".json")
}

func (s *Site) imageDir(serving string) string { return filepath.Join(s.cfg.Dir, "vm", serving) }

// Boot serves the point and starts a VM on it. progress may be nil; it is called
// while disks are copied, on platforms that copy them before the VM starts.
func (s *Site) Boot(ctx context.Context, p agentapi.BootPayload, progress func(done, total int64)) (agentapi.BootResult, error) {
	const op = "hostsite.Boot"
	if p.Serving == "" || p.Serving != filepath.Base(p.Serving) || p.VMName == "" {
		return agentapi.BootResult{}, dr.Errorf(dr.KindInvalid, op, "boot of serving %q as VM %q: both need a name", p.Serving, p.VMName)
	}
	defer s.lock(p.Serving)()
	rec, err := s.load(p.Serving)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return agentapi.BootResult{}, err
	}
	if err != nil {
		rec = record{Version: 1, Serving: p.Serving, Machine: p.Machine, Generation: p.Generation, N: p.N, VMName: p.VMName, Created: time.Now().UTC()}
		if err := s.save(rec); err != nil {
			return agentapi.BootResult{}, err
		}
	}
	if rec.Machine != p.Machine || rec.Generation != p.Generation || rec.N != p.N {
		return agentapi.BootResult{}, dr.Errorf(dr.KindConflict, op, "serving %s is of %s at %s", p.Serving, rec.Machine, dr.PointName(dr.Generation(rec.Generation), rec.N))
	}
	start := time.Now()
	if rec.Local {
		return s.startLocal(ctx, rec)
	}
	served, err := s.cfg.Servings.Ensure(ctx, p.Serving)
	if err != nil {
		return agentapi.BootResult{}, err
	}
	vm, disks, err := hydrate.ReadVM(s.cfg.Servings.Dir(p.Serving))
	if err != nil {
		return agentapi.BootResult{}, err
	}
	spec := s.bootSpec(p, vm, disks)
	spec.Progress = progress
	if err := s.ready(ctx, p, &spec); err != nil {
		return agentapi.BootResult{}, err
	}
	if err := os.MkdirAll(s.imageDir(p.Serving), 0o755); err != nil {
		return agentapi.BootResult{}, dr.Errorf(dr.KindUnavailable, op, "make image directory: %w", err)
	}
	prepared := time.Since(start)
	id, err := s.cfg.Host.Boot(ctx, spec)
	if err != nil {
		return agentapi.BootResult{}, err
	}
	rec.VM = string(id)
	if err := s.save(rec); err != nil {
		return agentapi.BootResult{}, err
	}
	s.cfg.Log.Info("recovery VM started", "vm", p.VMName, "serving", p.Serving, "prepare", prepared, "start", time.Since(start)-prepared)
	return agentapi.BootResult{VM: string(id), PrepareSecs: prepared.Seconds(), StartSecs: (time.Since(start) - prepared).Seconds(), Repaired: served.Repaired}, nil
}

// startLocal answers a repeated Boot of a VM that no longer needs its serving.
func (s *Site) startLocal(ctx context.Context, rec record) (agentapi.BootResult, error) {
	start := time.Now()
	state, err := s.cfg.Host.State(ctx, dr.VMID(rec.VM))
	if err == nil && state == hypervisor.PowerOff {
		err = s.cfg.Host.Start(ctx, dr.VMID(rec.VM))
	}
	if err != nil {
		return agentapi.BootResult{}, err
	}
	return agentapi.BootResult{VM: rec.VM, StartSecs: time.Since(start).Seconds()}, nil
}

func (s *Site) bootSpec(p agentapi.BootPayload, vm cut.VMRecord, disks []hydrate.Export) hypervisor.BootSpec {
	spec := hypervisor.BootSpec{
		Name: p.VMName, Owner: owner(p.Serving), CPUs: p.CPUs, MemoryMB: p.MemoryMB, KeepUUID: p.KeepUUID, Network: p.Network, Adapters: adapters(p.Adapters),
		Config: hypervisor.VMConfig{
			VM:     dr.VM{ID: dr.VMID(vm.UUID), Name: vm.Name, Generation: vm.Generation, CPUs: vm.CPUs, MemoryMB: vm.MemoryMB, OSType: vm.OSType},
			Native: vm.Config,
		},
	}
	if c := p.Cloud; c != nil {
		spec.Cloud = hypervisor.CloudTarget{Size: c.Size, ResourceGroup: c.ResourceGroup, AvailabilitySet: c.AvailabilitySet, Zone: c.Zone, ProximityGroup: c.ProximityGroup,
			DiskType: c.DiskType, LicenseType: c.License, SecurityGroup: c.SecurityGroup, PublicIP: c.PublicIP, Tags: c.Tags}
	}
	for _, n := range vm.NICs {
		spec.Config.VM.NICs = append(spec.Config.VM.NICs, dr.NIC{ID: n.MAC, MAC: n.MAC, Network: n.Network, VLAN: n.VLAN})
	}
	for _, d := range disks {
		spec.Disks = append(spec.Disks, hypervisor.BootDisk{
			ID: d.Name, Size: d.Size, Socket: s.cfg.Servings.Socket(p.Serving), Export: d.Name, Path: filepath.Join(s.imageDir(p.Serving), d.Name+s.cfg.Image),
		})
	}
	return spec
}

// ready has the disks made from a warm replica, if it holds every disk of this very
// point. Not being able to ask costs time only: then the point itself is copied.
func (s *Site) ready(ctx context.Context, p agentapi.BootPayload, spec *hypervisor.BootSpec) error {
	if s.cfg.Images == nil || p.Repair != "" {
		return nil
	}
	images, err := s.cfg.Images(ctx, p)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		s.cfg.Log.Warn("the warm replica can't be used, the disks are copied", "machine", p.Machine, "err", err)
		return nil
	}
	for _, d := range spec.Disks {
		if images[d.ID] == "" {
			return nil
		}
	}
	for i := range spec.Disks {
		spec.Disks[i].Image = images[spec.Disks[i].ID]
	}
	return nil
}

// firmware matches console lines that prove nothing about the guest.
var firmware = regexp.MustCompile(`(?i)^(SeaBIOS|iPXE|Booting from|Boot failed|No bootable|BdsDxe|SYSLINUX|GRUB|Machine UUID|Press F|\s*$)`)

// Verify watches the VM until it has given a sign of life: the pattern on the
// serial console or, without one, console output of something that is not
// firmware. Where the host has no serial console, the guest's pulse counts instead
// (hypervisor.Pulse), and a pattern can't be looked for. OK false with a reason is a result; an error means that the host could not be asked.
func (s *Site) Verify(ctx context.Context, p agentapi.VerifyPayload) (agentapi.VerifyResult, error) {
	alive := func(console string) (string, bool) {
		for line := range strings.Lines(console) {
			line = strings.TrimSpace(line)
			if line != "" && !firmware.MatchString(line) {
				return line, true
			}
		}
		return "", false
	}
	if p.ConsolePattern != "" {
		re, err := regexp.Compile(p.ConsolePattern)
		if err != nil {
			return agentapi.VerifyResult{}, dr.Errorf(dr.KindInvalid, "hostsite.Verify", "console pattern %q: %w", p.ConsolePattern, err)
		}
		alive = func(console string) (string, bool) {
			m := re.FindString(console)
			return m, m != ""
		}
	}
	timeout := time.Duration(p.TimeoutSeconds) * time.Second
	if timeout <= 0 {
		timeout = 2 * time.Minute
	}
	start := time.Now()
	var res agentapi.VerifyResult
	for {
		state, err := s.cfg.Host.State(ctx, dr.VMID(p.VM))
		if err != nil {
			return res, err
		}
		console, err := s.cfg.Host.SerialLog(ctx, dr.VMID(p.VM), 64<<10)
		blind := dr.KindOf(err) == dr.KindUnsupported
		if err != nil && !blind {
			return res, err
		}
		res.Console = tail(printable(console), 4000)
		res.Seconds = time.Since(start).Seconds()
		if blind {
			if res.Matched, res.OK, err = s.pulse(ctx, p); err != nil {
				return res, err
			}
		} else {
			res.Matched, res.OK = alive(printable(console))
		}
		if res.OK && state == hypervisor.PowerOn {
			break
		}
		res.OK = false
		if state != hypervisor.PowerOn {
			res.Reason = "the VM is " + string(state)
			break
		}
		if time.Since(start) > timeout {
			res.Reason = "no sign of life on the console within " + timeout.String()
			if blind {
				res.Reason = "no sign of life from the guest's integration services within " + timeout.String()
			}
			break
		}
		select {
		case <-ctx.Done():
			return res, context.Cause(ctx)
		case <-time.After(s.cfg.Every):
		}
	}
	if shot, err := s.cfg.Host.Screenshot(ctx, dr.VMID(p.VM)); err == nil {
		res.Screenshot = shrink(shot)
	} else {
		s.cfg.Log.Warn("no console screenshot", "vm", p.VM, "err", err)
	}
	return res, nil
}

// pulse asks for the guest's sign of life where there is no console to read.
func (s *Site) pulse(ctx context.Context, p agentapi.VerifyPayload) (string, bool, error) {
	h, ok := s.cfg.Host.(hypervisor.Pulse)
	if !ok || p.ConsolePattern != "" {
		return "", false, dr.New(dr.KindUnsupported, dr.CodeBootNotVerified, "hostsite.Verify", "VM %s has no serial console that could be watched", p.VM)
	}
	return h.Pulse(ctx, dr.VMID(p.VM))
}

func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || (r >= ' ' && r != 0x7f && r != 0xfffd) {
			return r
		}
		return -1
	}, string(b))
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	if _, after, ok := strings.Cut(s, "\n"); ok {
		return after
	}
	return s
}

// shrink halves a screenshot until it fits a report.
func shrink(shot []byte) []byte {
	const limit = 512 << 10
	for len(shot) > limit {
		src, err := png.Decode(bytes.NewReader(shot))
		if err != nil {
			return nil
		}
		b := src.Bounds()
		if b.Dx() < 64 {
			return nil
		}
		dst := image.NewRGBA(image.Rect(0, 0, b.Dx()/2, b.Dy()/2))
		for y := range b.Dy() / 2 {
			for x := range b.Dx() / 2 {
				dst.Set(x, y, src.At(b.Min.X+2*x, b.Min.Y+2*y))
			}
		}
		var out bytes.Buffer
		if err := png.Encode(&out, dst); err != nil {
			return nil
		}
		shot = out.Bytes()
	}
	return shot
}

// MakeLocal copies what the VM still reads from the serving into its own disks
// while it runs, and then ends the serving. Calling it again goes on.
func (s *Site) MakeLocal(ctx context.Context, p agentapi.VMPayload, progress func(done, total int64)) error {
	rec, err := s.byVM(p.VM)
	if err != nil {
		return err
	}
	defer s.lock(rec.Serving)()
	if rec, err = s.load(rec.Serving); err != nil {
		return err
	}
	if !rec.Local {
		if err := s.cfg.Host.MakeLocal(ctx, dr.VMID(p.VM), progress); err != nil {
			return err
		}
		rec.Local = true
		if err := s.save(rec); err != nil {
			return err
		}
	}
	return s.cfg.Servings.Stop(ctx, rec.Serving)
}

// Remove destroys the VM that Boot made for the serving, its disks and its serving process.
func (s *Site) Remove(ctx context.Context, p agentapi.RemovePayload) error {
	const op = "hostsite.Remove"
	if p.Serving == "" || p.Serving != filepath.Base(p.Serving) {
		return dr.Errorf(dr.KindInvalid, op, "%q is not the id of a serving", p.Serving)
	}
	defer s.lock(p.Serving)()
	rec, err := s.load(p.Serving)
	if dr.KindOf(err) == dr.KindNotFound {
		return s.cfg.Servings.Stop(ctx, p.Serving) // nothing was made, or all was removed
	}
	if err != nil {
		return err
	}
	// Without an id Boot may have died after the VM was made and before its id
	// was recorded: the owner's stamp finds it.
	if err := s.cfg.Host.Remove(ctx, dr.VMID(rec.VM), owner(rec.Serving)); err != nil && dr.CodeOf(err) != dr.CodeVMNotFound {
		return err
	}
	if err := s.cfg.Servings.Stop(ctx, rec.Serving); err != nil {
		return err
	}
	if err := os.RemoveAll(s.imageDir(rec.Serving)); err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "remove disk images: %w", err)
	}
	if err := os.Remove(s.recordPath(rec.Serving)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return dr.Errorf(dr.KindUnavailable, op, "remove record: %w", err)
	}
	return nil
}

// State tells a VM's power state; a VM that the host does not know is "absent".
func (s *Site) State(ctx context.Context, p agentapi.VMPayload) (agentapi.PowerResult, error) {
	state, err := s.cfg.Host.State(ctx, dr.VMID(p.VM))
	if dr.CodeOf(err) == dr.CodeVMNotFound {
		return agentapi.PowerResult{State: "absent"}, nil
	}
	return agentapi.PowerResult{State: string(state)}, err
}

func (s *Site) save(rec record) error {
	const op = "hostsite.save"
	path := s.recordPath(rec.Serving)
	raw, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return dr.Errorf(dr.KindInternal, op, "encode record: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "make directory: %w", err)
	}
	f, err := os.Create(path + ".new")
	if err == nil {
		_, err = f.Write(append(raw, '\n'))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "write record %s: %w", path, err)
	}
	return nil
}

func (s *Site) load(serving string) (record, error) {
	const op = "hostsite.load"
	var rec record
	raw, err := os.ReadFile(s.recordPath(serving))
	if errors.Is(err, os.ErrNotExist) {
		return rec, dr.Errorf(dr.KindNotFound, op, "there is no recovery VM of serving %s here", serving)
	}
	if err == nil {
		err = json.Unmarshal(raw, &rec)
	}
	if err != nil {
		return rec, dr.Errorf(dr.KindUnavailable, op, "read record of serving %s: %w", serving, err)
	}
	return rec, nil
}

// byVM finds the record of a VM.
func (s *Site) byVM(vm string) (record, error) {
	const op = "hostsite.byVM"
	entries, err := os.ReadDir(filepath.Join(s.cfg.Dir, "records"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return record{}, dr.Errorf(dr.KindUnavailable, op, "list records: %w", err)
	}
	for _, e := range entries {
		serving, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		rec, err := s.load(serving)
		if err != nil {
			return record{}, err
		}
		if rec.VM == vm {
			return rec, nil
		}
	}
	return record{}, dr.New(dr.KindNotFound, dr.CodeVMNotFound, op, "VM %s is no recovery VM of this host", vm)
}

// adapters is how the mappings of the vault connect each adapter.
func adapters(in []agentapi.BootAdapter) (out []hypervisor.BootNIC) {
	for _, a := range in {
		out = append(out, hypervisor.BootNIC{MAC: a.MAC, Network: a.Network, VLAN: a.VLAN, Subnet: a.Subnet, IP: a.IP})
	}
	return out
}
