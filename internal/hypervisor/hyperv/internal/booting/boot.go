package booting

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/cim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv/internal/msvm"
	"holdfast/internal/hypervisor/hyperv/internal/port"
	"holdfast/internal/hypervisor/hyperv/internal/records"
)

// Hyper-V can't start a VM from an NBD server: Boot copies the whole recovery
// point into VHDX files first, and MakeLocal has nothing to do after it.

// bootRecord remembers what Boot makes, before it makes it. Stored as
// boot/<digest of the name>.json.
type bootRecord struct {
	Version int      `json:"version"` // 1
	Name    string   `json:"name"`
	Owner   string   `json:"owner"`
	VM      string   `json:"vm,omitempty"` // once defined
	Files   []string `json:"files"`        // host paths
	Total   int64    `json:"total"`        // bytes of all disks
	Done    bool     `json:"done,omitempty"`
}

// notes stamps a recovery VM: demolish finds one whose id was not written down yet.
func (r bootRecord) notes() string { return "Holdfast recovery VM of " + r.Owner }

func (h *Booter) bootPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(h.cfg.Dir, bootDir, hex.EncodeToString(sum[:12])+".json")
}

func (h *Booter) bootRecords() ([]bootRecord, error) {
	list, err := filepath.Glob(filepath.Join(h.cfg.Dir, bootDir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []bootRecord
	for _, p := range list {
		var r bootRecord
		if err := records.Read(p, &r); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// Boot defines and starts a recovery VM on disks that it fills first, which takes
// its time: give it a context accordingly. The image of a disk is BootDisk.Path
// with the extension .vhdx.
func (h *Booter) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	const op = "Boot"
	if err := spec.Validate(); err != nil {
		return "", err
	}
	unlock, err := h.Lock(ctx, op, "name:"+spec.Name)
	if err != nil {
		return "", err
	}
	defer unlock()
	id, found, err := h.bootedBefore(ctx, spec)
	if err != nil || found {
		return id, err
	}
	m, err := h.machine(ctx, spec)
	if err != nil {
		return "", err
	}
	rec := bootRecord{Version: 1, Name: spec.Name, Owner: spec.Owner}
	for _, d := range m.disks {
		rec.Files = append(rec.Files, d.host)
		rec.Total += d.Size
	}
	m.Notes = rec.notes()
	if err := h.bring(ctx, m, &rec); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.CallTimeout)
		defer cancel()
		if uerr := h.demolish(undo, rec); uerr != nil {
			h.log.Warn("what was made of a recovery VM is left over; the next Boot or Remove deletes it", "vm", spec.Name, "err", uerr)
		}
		return "", err
	}
	return dr.VMID(rec.VM), nil
}

// bootedBefore finds the VM of an earlier call. What a call that died has left is deleted.
func (h *Booter) bootedBefore(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, bool, error) {
	const op = "Boot"
	var rec bootRecord
	err := records.Read(h.bootPath(spec.Name), &rec)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", false, dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the record of recovery VM %s: %w", spec.Name, err)
	case rec.Owner != spec.Owner:
		return "", false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "hyperv."+op, "recovery VM %s is %s's, not %s's", spec.Name, rec.Owner, spec.Owner)
	case rec.Done:
		vm, _, err := h.Load(ctx, op, dr.VMID(rec.VM), msvm.Systems)
		if err == nil {
			return dr.VMID(rec.VM), true, h.Host.Start(ctx, op, vm)
		}
		if dr.CodeOf(err) != dr.CodeVMNotFound {
			return "", false, err
		}
		fallthrough // deleted by somebody: begin again
	default:
		if err := h.demolish(ctx, rec); err != nil {
			return "", false, err
		}
	}
	all, err := h.MS.Summaries(ctx)
	if err != nil {
		return "", false, msvm.Wrap(op, "list the VMs", "", err)
	}
	for _, s := range all {
		if s.Name == spec.Name {
			return "", false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "hyperv."+op, "the host has a VM named %s that Holdfast did not make", spec.Name)
		}
		if spec.KeepUUID && strings.EqualFold(s.ID, string(spec.Config.VM.ID)) {
			return "", false, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "hyperv."+op, "the host has a VM with id %s already: %s", s.ID, s.Name)
		}
	}
	return "", false, nil
}

// machine is a recovery VM that is to be made.
type machine struct {
	msvm.Machine
	disks []bootDisk
	ports []msvm.NewPort

	progress func(done, total int64) // may be nil
}

type bootDisk struct {
	hypervisor.BootDisk
	host   string // path as the host knows it
	spec   port.CreateDisk
	onIDE  bool // the captured VM had it there
	slot   int
	number int
}

// machine plans a recovery VM and checks what can be checked.
func (h *Booter) machine(ctx context.Context, spec hypervisor.BootSpec) (*machine, error) {
	const op = "hyperv.Boot"
	v := spec.Config.VM
	m := &machine{Machine: msvm.Machine{Name: spec.Name, Generation: v.Generation, CPUs: v.CPUs, MemoryMB: v.MemoryMB}, progress: spec.Progress}
	if m.Generation != 2 {
		m.Generation = 1
	}
	if spec.CPUs > 0 {
		m.CPUs = spec.CPUs
	}
	if spec.MemoryMB > 0 {
		m.MemoryMB = spec.MemoryMB
	}
	m.MemoryMB = (m.MemoryMB + 1) &^ 1 // the host takes whole 2 MB
	off := false
	m.SecureBoot = &off // a guest of another platform has no keys of this one
	if text := spec.Config.Native[NativeSettings]; len(text) > 0 {
		in, err := cim.DecodeEmbedded(string(text))
		if err != nil {
			return nil, dr.Errorf(dr.KindInvalid, op, "captured settings of VM %s: %w", v.Name, err)
		}
		if b, ok := in.Bool("SecureBootEnabled"); ok {
			m.SecureBoot = &b
		}
		m.BootTemplate = in.String("SecureBootTemplateId")
		if spec.KeepUUID {
			m.BIOSGUID = in.String("BIOSGUID")
		}
	}
	if spec.KeepUUID {
		m.ID = string(v.ID)
		if m.BIOSGUID == "" && msvm.IsGUID(m.ID) {
			m.BIOSGUID = "{" + strings.ToUpper(m.ID) + "}"
		}
	}
	if err := h.planPorts(ctx, m, spec); err != nil {
		return nil, err
	}
	return m, h.planDisks(m, spec)
}

func (h *Booter) planDisks(m *machine, spec hypervisor.BootSpec) error {
	const op = "hyperv.Boot"
	captured := map[string]dr.Disk{}
	for _, d := range spec.Config.VM.Disks {
		captured[d.ID] = d
	}
	for _, d := range spec.Disks {
		local := strings.TrimSuffix(d.Path, filepath.Ext(d.Path)) + ".vhdx"
		for _, p := range []string{d.Path, local} {
			if _, err := os.Lstat(p); err == nil {
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "the local image %s exists and was not made for VM %s", p, spec.Name)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return dr.Errorf(dr.KindUnavailable, op, "look for the local image of disk %s: %w", d.ID, err)
			}
		}
		host, err := h.cfg.Disks.HostPath(local)
		if err != nil {
			return dr.Errorf(dr.KindInvalid, op, "the host can't reach the local image of disk %s: %w", d.ID, err)
		}
		c := captured[d.ID]
		b := bootDisk{BootDisk: d, host: host, onIDE: c.Controller == "ide", slot: c.Slot}
		b.spec = port.CreateDisk{Size: d.Size, LogicalSector: 512, PhysicalSector: 4096, Fixed: c.Layout == "fixed"}
		if c.Sector == 4096 {
			b.spec.LogicalSector = 4096
		}
		if b.spec.Size%b.spec.LogicalSector != 0 {
			b.spec.Size += b.spec.LogicalSector - b.spec.Size%b.spec.LogicalSector
		}
		m.disks = append(m.disks, b)
	}
	return nil
}

// bring makes the recovery VM; rec says at any time what there may be.
func (h *Booter) bring(ctx context.Context, m *machine, rec *bootRecord) error {
	const op = "Boot"
	put := func() error {
		if err := records.Write(h.bootPath(rec.Name), rec); err != nil {
			return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "write the record of recovery VM %s: %w", rec.Name, err)
		}
		return nil
	}
	if err := put(); err != nil {
		return err
	}
	var done int64
	for i, d := range m.disks {
		base := done
		if err := h.fill(ctx, m.disks[i], func(n int64) {
			if h.cfg.Progress != nil {
				h.cfg.Progress(rec.Name, base+n, rec.Total)
			}
			if m.progress != nil {
				m.progress(base+n, rec.Total)
			}
		}); err != nil {
			return err
		}
		done += d.Size
	}
	id, err := h.MS.DefineSystem(ctx, m.Machine)
	if err != nil {
		return msvm.Wrap(op, "define recovery VM "+rec.Name, "", err)
	}
	if rec.VM = id; id == "" {
		if rec.VM, err = h.defined(ctx, *rec); err != nil {
			return err
		}
	}
	if err := put(); err != nil {
		return err
	}
	vm, _, err := h.Load(ctx, op, dr.VMID(rec.VM), msvm.All)
	if err != nil {
		return err
	}
	if err := h.equip(ctx, m, vm); err != nil {
		return err
	}
	if err := h.Host.Start(ctx, op, vm); err != nil {
		return err
	}
	rec.Done = true
	return put()
}

// equip adds processors, memory, disks and adapters.
func (h *Booter) equip(ctx context.Context, m *machine, vm *msvm.VM) error {
	const op = "Boot"
	if err := h.MS.SetSize(ctx, vm, m.CPUs, m.MemoryMB); err != nil {
		return msvm.Wrap(op, "set processors and memory of recovery VM "+m.Name, "", err)
	}
	settings := vm.Settings.ID
	ide, places := vm.IDE(), placesOf(m)
	var scsi []cim.Path
	for i, d := range m.disks {
		p := places[i]
		controller := ide[p.controller%2]
		if !p.ide {
			for len(scsi) <= p.controller {
				c, err := h.MS.AddSCSI(ctx, settings)
				if err != nil {
					return msvm.Wrap(op, "add a SCSI controller to recovery VM "+m.Name, "", err)
				}
				scsi = append(scsi, c)
			}
			controller = scsi[p.controller]
		}
		if err := h.MS.AddDisk(ctx, settings, controller, p.slot, d.host); err != nil {
			return msvm.Wrap(op, "attach disk "+d.host+" to recovery VM "+m.Name, "", err)
		}
	}
	for _, p := range m.ports {
		if err := h.MS.AddPort(ctx, settings, p); err != nil {
			return msvm.Wrap(op, "add an adapter to recovery VM "+m.Name, "", err)
		}
	}
	return nil
}

type place struct {
	ide              bool
	controller, slot int
}

// ideSlots is what the two IDE controllers of generation 1 hold; one is left for a DVD drive.
var ideSlots = [...]place{{true, 0, 0}, {true, 0, 1}, {true, 1, 1}}

// scsiSlots is how many disks a SCSI controller holds.
const scsiSlots = 64

// placesOf puts the disks on controllers. Firmware of generation 1 boots from IDE only, so the first disk is
// there; the others are where they were, or on SCSI. The order of the disks is kept.
func placesOf(m *machine) []place {
	out := make([]place, len(m.disks))
	ide, scsi := 0, 0
	for i, d := range m.disks {
		if m.Generation == 1 && ide < len(ideSlots) && (i == 0 || d.onIDE) {
			out[i] = ideSlots[ide]
			ide++
			continue
		}
		out[i] = place{false, scsi / scsiSlots, scsi % scsiSlots}
		scsi++
	}
	return out
}

// defined finds a recovery VM by its stamp; "" if there is none.
func (h *Booter) defined(ctx context.Context, rec bootRecord) (string, error) {
	const op = "Boot"
	w, err := h.MS.Load(ctx, "", msvm.Systems)
	if err != nil {
		return "", msvm.Wrap(op, "look for recovery VM "+rec.Name, "", err)
	}
	for id, s := range w.VMs {
		if s.Name != rec.Name {
			continue
		}
		vm, err := h.MS.Load(ctx, id, msvm.Storage)
		if err != nil {
			return "", msvm.Wrap(op, "look for recovery VM "+rec.Name, "", err)
		}
		if v := vm.VMs[id]; v != nil && strings.Join(v.Settings.Strings("Notes"), "\n") == rec.notes() {
			return id, nil
		}
	}
	return "", nil
}

// demolish deletes whatever Boot made, the record last. Idempotent.
func (h *Booter) demolish(ctx context.Context, rec bootRecord) error {
	const op = "Remove"
	id := rec.VM
	if id == "" {
		var err error
		if id, err = h.defined(ctx, rec); err != nil {
			return err
		}
	}
	if id != "" {
		unlock, err := h.Lock(ctx, op, id)
		if err != nil {
			return err
		}
		defer unlock()
		vm, _, err := h.Load(ctx, op, dr.VMID(id), msvm.Systems)
		switch {
		case dr.CodeOf(err) == dr.CodeVMNotFound:
		case err != nil:
			return err
		default:
			if err := h.TurnOff(ctx, op, vm); err != nil {
				return err
			}
			if err := h.MS.DestroySystem(ctx, id); err != nil && !msvm.Missing(err) {
				return msvm.Wrap(op, "delete recovery VM "+rec.Name, "", err)
			}
		}
	}
	for _, f := range rec.Files {
		if err := h.cfg.Disks.Remove(ctx, f); err != nil {
			return port.Error(op, "delete disk "+f+" of recovery VM "+rec.Name, err)
		}
	}
	if err := records.Remove(h.bootPath(rec.Name)); err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "delete the record of recovery VM %s: %w", rec.Name, err)
	}
	return nil
}

// MakeLocal reports that everything is local: Boot has copied it.
func (h *Booter) MakeLocal(ctx context.Context, id dr.VMID, progress func(done, total int64)) error {
	const op = "MakeLocal"
	vm, _, err := h.Load(ctx, op, id, msvm.Systems)
	if err != nil {
		return err
	}
	list, err := h.bootRecords()
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the records of recovery VMs: %w", err)
	}
	for _, r := range list {
		if r.VM == vm.ID && progress != nil {
			progress(r.Total, r.Total)
		}
	}
	return nil
}

// Remove deletes a recovery VM with its disks.
func (h *Booter) Remove(ctx context.Context, id dr.VMID, owner string) error {
	const op = "Remove"
	list, err := h.bootRecords()
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hyperv."+op, "read the records of recovery VMs: %w", err)
	}
	want := strings.ToLower(string(id))
	found := false
	for _, r := range list {
		if id == "" && r.Owner != owner || id != "" && r.VM != want {
			continue
		}
		if r.Owner != owner {
			return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "hyperv."+op, "recovery VM %s was not made by %s and is left alone", r.Name, owner)
		}
		found = true
		if err := h.removeOne(ctx, op, r); err != nil {
			return err
		}
	}
	if found || id == "" {
		return nil
	}
	vm, _, err := h.Load(ctx, op, id, msvm.Systems)
	if dr.CodeOf(err) == dr.CodeVMNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return dr.New(dr.KindPrecondition, dr.CodeOperationNotAllowed, "hyperv."+op, "VM %s was not made by Holdfast and is left alone", vm.Name)
}

func (h *Booter) removeOne(ctx context.Context, op string, r bootRecord) error {
	unlock, err := h.Lock(ctx, op, "name:"+r.Name)
	if err != nil {
		return err
	}
	defer unlock()
	return h.demolish(ctx, r)
}
