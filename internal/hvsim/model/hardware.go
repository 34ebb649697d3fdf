package model

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast/internal/hvsim/rct"
	"holdfast/internal/vhdx"
)

// VMSpec describes a VM to make. Zero fields take the defaults of a new VM on a Windows host.
type VMSpec struct {
	Name               string
	ID                 string // GUID, "" = new
	Generation         int    // 1 or 2; 0 = 2
	Version            string // "" = 10.0
	CPUs               int    // 0 = 2
	MemoryMB           int64  // 0 = 2048
	DynamicMemory      bool
	MinMB, MaxMB       int64
	Dir                string // on the host; "" = a directory of its own
	Disks              []DiskSpec
	NICs               []NICSpec
	OS, OSVersion      string // as the guest tells by KVP; "" = the guest tells nothing
	FQDN               string
	Heartbeat          uint16 // 0 = 2 OK
	VSS                string // "" = VSSOk
	NoShutdown         bool
	NoSecureBoot       bool // of generation 2
	SecureBootTemplate string
	TPM                bool
	Clustered          bool
	Notes              string
	UserSnapshotType   uint16 // 0 = 3, production with fallback
	Off                bool   // not started
}

// DiskSpec describes a disk to make.
type DiskSpec struct {
	ID            string   // VirtualDiskId, "" = new
	Name          string   // of the file without extension; "" = disk<n>
	Path          string   // on the host; "" = in the VM's directory. An existing file is taken as it is.
	Kind          DiskKind // "" = Dynamic
	Size          int64
	Controller    string // SCSI or IDE; "" = SCSI, IDE for the first disk of generation 1
	Number        int    // of the controller
	Slot          int    // -1 = the first free one; 0 = 0 if free, otherwise the first free one
	Parent        string // of a Child
	BlockSize     int64
	LogicalSector int
}

// NICSpec describes a network adapter.
type NICSpec struct {
	Name, MAC   string // MAC: twelve hexadecimal digits, "" = new
	Switch      string // name; "" = not connected
	VLAN        int
	Legacy      bool
	DHCP        bool
	IPs         []string
	Subnets     []string
	Gateways    []string
	DNS         []string
	DynamicMAC  bool
	Unconnected bool
}

var guidForm = regexp.MustCompile(`^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}$`)

// AddVM makes a VM with new disks and starts it unless the spec says otherwise. The VM survives a restart of
// the program once AddVM has returned.
func (h *Host) AddVM(ctx context.Context, spec VMSpec) (*VM, error) {
	vm, err := h.define(spec, true)
	if err != nil {
		return nil, err
	}
	for i, d := range spec.Disks {
		if d.Name == "" {
			d.Name = fmt.Sprintf("disk%d", i)
		}
		if d.Controller == "" && i == 0 && vm.State().Generation == 1 {
			d.Controller = "IDE"
		}
		if _, err := vm.AddDisk(d); err != nil {
			return nil, errors.Join(err, vm.Delete())
		}
	}
	for _, n := range spec.NICs {
		if _, err := vm.AddNIC(n); err != nil {
			return nil, errors.Join(err, vm.Delete())
		}
	}
	if !spec.Off {
		if err := vm.Start(ctx); err != nil {
			return nil, errors.Join(err, vm.publish())
		}
	}
	return vm, vm.publish()
}

// Define makes a VM without disks and network adapters, as Msvm_VirtualSystemManagementService.DefineSystem does.
func (h *Host) Define(spec VMSpec) (*VM, error) { return h.define(spec, false) }

func (h *Host) define(spec VMSpec, draft bool) (*VM, error) {
	s := h.site
	id := strings.ToUpper(strings.Trim(spec.ID, "{}"))
	if id == "" {
		id = s.NewGUID()
	}
	if !guidForm.MatchString(id) || strings.ContainsAny(spec.Name, "\x00\n") {
		return nil, fmt.Errorf("VM %q with id %q: %w", spec.Name, spec.ID, ErrInvalid)
	}
	now := time.Now()
	st := State{ID: id, Name: spec.Name, Host: h.Conf.Name, Generation: spec.Generation, Version: spec.Version, CPUs: spec.CPUs, MemoryMB: spec.MemoryMB,
		DynamicMemory: spec.DynamicMemory, MinMB: spec.MinMB, MaxMB: spec.MaxMB, Power: Off, Created: now, LastChange: now, Dir: spec.Dir,
		SecureBootTemplate: spec.SecureBootTemplate, TPM: spec.TPM, UserSnapshotType: spec.UserSnapshotType, Clustered: spec.Clustered,
		OS: spec.OS, OSVersion: spec.OSVersion, FQDN: spec.FQDN, Heartbeat: spec.Heartbeat, VSS: spec.VSS, NoShutdown: spec.NoShutdown,
		BIOSGUID: s.NewGUID(), AutoStart: 3}
	if st.Name == "" {
		st.Name = "New Virtual Machine"
	}
	if spec.Notes != "" {
		st.Notes = []string{spec.Notes}
	}
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&st.MemoryMB, 2048)
	def(&st.MinMB, st.MemoryMB)
	def(&st.MaxMB, st.MemoryMB)
	if st.Generation == 0 {
		st.Generation = 2
	}
	if st.Version == "" {
		st.Version = "10.0"
	}
	st.CPUs = max(st.CPUs, 1)
	if spec.CPUs == 0 {
		st.CPUs = 2
	}
	if st.UserSnapshotType == 0 {
		st.UserSnapshotType = 3
	}
	if st.Heartbeat == 0 {
		st.Heartbeat = 2
	}
	if st.VSS == "" {
		st.VSS = VSSOk
	}
	st.SecureBoot = st.Generation == 2 && !spec.NoSecureBoot
	if st.SecureBoot && st.SecureBootTemplate == "" {
		st.SecureBootTemplate = "1734C6E8-3154-4DDA-BA5F-A874CC483422" // Microsoft Windows
	}
	if st.Dir == "" {
		root := `C:\VMs\`
		if st.Clustered {
			root = `C:\ClusterStorage\Volume1\`
		}
		st.Dir = root + fileName(st.Name)
		if local, err := h.Local(st.Dir); err != nil {
			return nil, err
		} else if _, err := os.Stat(local); err == nil {
			st.Dir += "_" + id[:8]
		}
	}
	if st.Generation == 1 {
		for n := range 2 {
			st.Controllers = append(st.Controllers, Controller{ID: "83F8638B-8DCA-4152-9EDA-2CA8B33039B4", Type: "IDE", Number: n})
		}
		st.Controllers[1].ID = "83F8638B-8DCA-4152-9EDA-2CA8B33039B5"
	}
	vm := &VM{site: s, host: h, id: id, changed: now, draft: draft}
	s.mu.Lock()
	if !s.open {
		s.mu.Unlock()
		return nil, fmt.Errorf("the site is not open: %w", ErrState)
	}
	if s.vms[id] != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("a VM with id %s exists: %w", id, ErrInvalid)
	}
	s.vms[id] = vm
	s.mu.Unlock()
	if err := vm.change(func(v *State) error { *v = st; return nil }); err != nil {
		return nil, err
	}
	return vm, vm.writeConfig()
}

// fileName makes a name of a VM fit for a file.
func fileName(name string) string {
	s := strings.Map(func(r rune) rune {
		if r < 32 || strings.ContainsRune(`<>:"/\|?*`, r) {
			return '_'
		}
		return r
	}, name)
	return strings.TrimRight(s, ". ")
}

// AddController adds a SCSI controller and returns it.
func (vm *VM) AddController() (Controller, error) {
	c := Controller{ID: vm.site.NewGUID(), Type: "SCSI"}
	return c, vm.Change(func(st *State) error {
		for _, o := range st.Controllers {
			if o.Type == "SCSI" {
				c.Number++
			}
		}
		if c.Number >= 4 {
			return fmt.Errorf("VM %s has four SCSI controllers: %w", st.Name, ErrInvalid)
		}
		st.Controllers = append(st.Controllers, c)
		return nil
	})
}

// controller finds or makes the controller that a spec asks for.
func (vm *VM) controller(kind string, number int) (Controller, error) {
	for {
		st := vm.State()
		for _, c := range st.Controllers {
			if c.Type == kind && c.Number == number {
				return c, nil
			}
		}
		if kind != "SCSI" {
			return Controller{}, fmt.Errorf("VM %s has no %s controller %d: %w", st.Name, kind, number, ErrInvalid)
		}
		if _, err := vm.AddController(); err != nil {
			return Controller{}, err
		}
	}
}

// slots of a controller.
func (c Controller) slots() int {
	if c.Type == "IDE" {
		return 2
	}
	return 64
}

// AddDrive puts a drive into a slot (-1 = the first free one) and returns the slot.
func (vm *VM) AddDrive(controller string, slot int, dvd bool) (int, error) {
	err := vm.Change(func(st *State) error {
		i := slices.IndexFunc(st.Controllers, func(c Controller) bool { return strings.EqualFold(c.ID, controller) })
		if i < 0 {
			return fmt.Errorf("controller %s of VM %s: %w", controller, st.Name, ErrNotFound)
		}
		c := st.Controllers[i]
		if c.Type == "IDE" && st.Power != Off {
			return fmt.Errorf("VM %s is %s, IDE drives can't be added: %w", st.Name, st.Power, ErrState)
		}
		taken := func(n int) bool {
			return slices.ContainsFunc(st.Drives, func(d Drive) bool { return d.Controller == c.ID && d.Slot == n })
		}
		if slot < 0 {
			for slot = 0; taken(slot); slot++ {
			}
		}
		if slot >= c.slots() || taken(slot) {
			return fmt.Errorf("slot %d of %s controller %d of VM %s does not exist or is taken: %w", slot, c.Type, c.Number, st.Name, ErrInvalid)
		}
		st.Drives = append(st.Drives, Drive{Controller: c.ID, Slot: slot, DVD: dvd})
		return nil
	})
	return slot, err
}

// AddDisk makes a disk, with its drive, and attaches it. SCSI disks can be added while the VM runs.
func (vm *VM) AddDisk(spec DiskSpec) (*Disk, error) {
	if spec.Kind == "" {
		spec.Kind = Dynamic
	}
	if spec.Controller == "" {
		spec.Controller = "SCSI"
	}
	if spec.Path == "" {
		spec.Path = vm.State().Dir + `\Virtual Hard Disks\` + spec.Name + map[DiskKind]string{VHD: ".vhd", Shared: ".vhds", PassThrough: ".raw"}[spec.Kind]
		if !strings.HasSuffix(spec.Path, ".vhd") && !strings.HasSuffix(spec.Path, ".vhds") && !strings.HasSuffix(spec.Path, ".raw") {
			spec.Path += ".vhdx"
		}
	}
	c, err := vm.controller(spec.Controller, spec.Number)
	if err != nil {
		return nil, err
	}
	made, err := vm.Host().makeDisk(spec)
	if err != nil {
		return nil, err
	}
	slot := spec.Slot
	if st := vm.State(); slot == 0 && slices.ContainsFunc(st.Drives, func(d Drive) bool { return d.Controller == c.ID && d.Slot == 0 }) {
		slot = -1
	}
	if slot, err = vm.AddDrive(c.ID, slot, false); err == nil {
		var d *Disk
		if d, err = vm.Attach(c.ID, slot, spec.Path, spec.Kind, spec.ID); err == nil {
			return d, nil
		}
	}
	if made {
		if local, lerr := vm.Host().Local(spec.Path); lerr == nil {
			err = errors.Join(err, removeFile(local))
		}
	}
	return nil, err
}

// makeDisk makes a disk's file unless it is there.
func (h *Host) makeDisk(spec DiskSpec) (made bool, err error) {
	local, err := h.Local(spec.Path)
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(local); err == nil {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(local), 0o755); err != nil {
		return false, fmt.Errorf("hvsim: %w", err)
	}
	switch spec.Kind {
	case VHD, PassThrough, Shared:
		f, err := os.OpenFile(local, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return false, fmt.Errorf("hvsim: %w", err)
		}
		size := spec.Size
		if spec.Kind == VHD {
			_, err = f.WriteAt(vhdFooter(spec.Size), spec.Size)
			size += 512
		}
		return true, errors.Join(err, f.Truncate(size), f.Close())
	}
	cs := vhdx.CreateSpec{Size: spec.Size, BlockSize: spec.BlockSize, LogicalSector: spec.LogicalSector, Fixed: spec.Kind == Fixed, NoSync: true}
	if spec.ID != "" {
		if cs.ID, err = vhdx.ParseGUID(spec.ID); err != nil {
			return false, fmt.Errorf("disk id %q: %w", spec.ID, ErrInvalid)
		}
	}
	var f *vhdx.File
	if spec.Kind == Child {
		parent, perr := h.Local(spec.Parent)
		if perr != nil {
			return false, perr
		}
		rel, rerr := filepath.Rel(filepath.Dir(local), parent)
		if rerr != nil {
			return false, rerr
		}
		cs.Parent = &vhdx.Locator{Absolute: spec.Parent, Relative: strings.ReplaceAll(rel, "/", `\`)}
		f, err = vhdx.CreateChild(local, parent, cs)
	} else {
		f, err = vhdx.Create(local, cs)
	}
	if err != nil {
		return false, fmt.Errorf("create %s: %w", spec.Path, err)
	}
	return true, f.Close()
}

// CreateImage makes a disk file for nobody, as Msvm_ImageManagementService.CreateVirtualHardDisk does.
func (h *Host) CreateImage(spec DiskSpec) error {
	local, err := h.Local(spec.Path)
	if err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if _, err := os.Stat(local); err == nil {
		return fmt.Errorf("the file %s exists (0x80070050): %w", spec.Path, os.ErrExist)
	}
	_, err = h.makeDisk(spec)
	return err
}

// Attach puts a disk's file into a drive. kind "" finds out what the file is; id is used for files that have none.
func (vm *VM) Attach(controller string, slot int, path string, kind DiskKind, id string) (*Disk, error) {
	vm.op.Lock()
	defer vm.op.Unlock()
	h := vm.Host()
	if owner, ds := h.FindFile(path); owner != nil && ds.Kind != Shared && owner.State().Power != Off {
		return nil, fmt.Errorf("%s is in use by VM %s: %w", path, owner.id, ErrInUse)
	}
	img, err := h.Image(path)
	if err != nil {
		return nil, err
	}
	if kind == "" || kind == Dynamic || kind == Fixed || kind == Child {
		kind = img.Kind
	}
	if img.ID == "" {
		if img.ID = strings.ToUpper(id); img.ID == "" {
			img.ID = vm.site.NewGUID()
		}
	}
	ds := DiskState{ID: img.ID, Kind: kind, Controller: controller, Slot: slot, Size: img.Size, Base: path, Leaf: path, Files: []File{{Path: path}}}
	if ds.Snapshotable() {
		ds.DataGUID = img.DataGUID
	}
	d := &Disk{vm: vm, ID: ds.ID}
	err = vm.change(func(st *State) error {
		if st.Disk(ds.ID) != nil {
			return fmt.Errorf("VM %s has a disk with id %s: %w", st.Name, ds.ID, ErrInvalid)
		}
		if !slices.ContainsFunc(st.Drives, func(d Drive) bool { return d.Controller == controller && d.Slot == slot && !d.DVD }) {
			return fmt.Errorf("VM %s has no drive in slot %d: %w", st.Name, slot, ErrNotFound)
		}
		if slices.ContainsFunc(st.Disks, func(d DiskState) bool { return d.Controller == controller && d.Slot == slot }) {
			return fmt.Errorf("the drive in slot %d of VM %s has a disk: %w", slot, st.Name, ErrInvalid)
		}
		st.Disks = append(st.Disks, ds)
		vm.disks = append(vm.disks, d)
		return nil
	})
	if err != nil {
		return nil, err
	}
	vm.io.Lock()
	defer vm.io.Unlock()
	if err := d.loadTracker(); err != nil {
		return nil, err
	}
	if p := vm.State().Power; p == On || p == Paused {
		if err := d.open(); err != nil {
			return nil, err
		}
	}
	return d, vm.writeConfig()
}

// FindFile finds the VM of the site whose disk has a file; nil if there is none.
func (h *Host) FindFile(path string) (*VM, DiskState) {
	h.site.mu.RLock()
	defer h.site.mu.RUnlock()
	for _, vm := range h.site.vms {
		if vm.host != h {
			continue
		}
		for i := range vm.st.Disks {
			if f := vm.st.Disks[i].file(path); f != nil {
				return vm, vm.st.Disks[i]
			}
		}
	}
	return nil, DiskState{}
}

// RemoveDisk detaches a disk and its drive; the file stays. It must have no checkpoints.
func (vm *VM) RemoveDisk(id string, withDrive bool) error {
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.io.Lock()
	defer vm.io.Unlock()
	d := vm.Disk(id)
	if d == nil {
		return fmt.Errorf("disk %s of VM %s: %w", id, vm.id, ErrNotFound)
	}
	if err := d.close(); err != nil {
		return err
	}
	return errors.Join(vm.change(func(st *State) error {
		ds := st.Disk(id)
		if withDrive {
			st.Drives = slices.DeleteFunc(st.Drives, func(x Drive) bool { return x.Controller == ds.Controller && x.Slot == ds.Slot })
		}
		st.Disks = slices.DeleteFunc(st.Disks, func(x DiskState) bool { return strings.EqualFold(x.ID, id) })
		vm.disks = slices.DeleteFunc(slices.Clone(vm.disks), func(x *Disk) bool { return x == d })
		return nil
	}), d.removeTracker(), vm.writeConfig())
}

// Resize gives the disk another size, as the host's administrator would; tracking loses its points. A
// disk with checkpoints is refused. Growing works while the VM runs; shrinking cuts the end off.
func (d *Disk) Resize(size int64) error {
	return d.rebuild(func(ds DiskState, local string) error {
		if size >= ds.Size {
			return vhdx.Resize(local, size)
		}
		return d.copyTo(ds, local, size, ds.ID)
	})
}

// Replace puts another, empty image under the disk's name, with the same VirtualDiskId, as a restored backup has.
func (d *Disk) Replace(size int64) error {
	return d.rebuild(func(ds DiskState, local string) error { return d.copyTo(ds, local, size, "") })
}

// rebuild changes the disk's only file while nobody has it open.
func (d *Disk) rebuild(fn func(ds DiskState, local string) error) error {
	vm := d.vm
	vm.op.Lock()
	defer vm.op.Unlock()
	vm.io.Lock()
	defer vm.io.Unlock()
	ds := d.State()
	if !ds.Snapshotable() {
		return fmt.Errorf("disk %s is %s: %w", d.ID, ds.Kind, ErrMissing)
	}
	if len(ds.Files) != 1 {
		return fmt.Errorf("disk %s has checkpoints: %w", d.ID, ErrState)
	}
	local, err := vm.Host().Local(ds.Leaf)
	if err != nil {
		return err
	}
	wasOpen := d.vol != nil
	if err := d.close(); err != nil {
		return err
	}
	err = fn(ds, local)
	if err == nil {
		err = d.resized()
	}
	if wasOpen {
		err = errors.Join(err, d.open())
	}
	return err
}

// resized takes over what the file says after a change.
func (d *Disk) resized() error {
	img, err := d.vm.Host().Image(d.State().Leaf)
	if err != nil {
		return err
	}
	return errors.Join(d.abandonLog(), d.trk.Resize(img.Size), d.edit(func(ds *DiskState) { ds.Size, ds.DataGUID = img.Size, img.DataGUID }))
}

// copyTo replaces a file by a new one with the same id; with keep it holds the beginning of the old content.
func (d *Disk) copyTo(ds DiskState, local string, size int64, keep string) error {
	id, err := vhdx.ParseGUID(ds.ID)
	if err != nil {
		return err
	}
	tmp := local + ".new"
	f, err := vhdx.Create(tmp, vhdx.CreateSpec{Size: size, ID: id, NoSync: true})
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if keep != "" {
		if err := copyDisk(tmp, local, size); err != nil {
			return errors.Join(err, removeFile(tmp))
		}
	}
	return os.Rename(tmp, local)
}

func copyDisk(to, from string, n int64) (err error) {
	src, err := vhdx.OpenChain(from, vhdx.ChainOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := vhdx.OpenChain(to, vhdx.ChainOptions{Write: true, NoSync: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	p := make([]byte, 1<<20)
	for off := int64(0); off < n; off += int64(len(p)) {
		p = p[:min(int64(len(p)), n-off)]
		if _, err := src.ReadAt(p, off); err != nil {
			return err
		}
		if _, err := dst.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}

// AddNIC adds a network adapter.
func (vm *VM) AddNIC(spec NICSpec) (NIC, error) {
	n := NIC{ID: vm.site.NewGUID(), Name: spec.Name, MAC: strings.ToUpper(strings.NewReplacer(":", "", "-", "").Replace(spec.MAC)), StaticMAC: spec.MAC != "" && !spec.DynamicMAC, Legacy: spec.Legacy,
		Connected: !spec.Unconnected, VLAN: spec.VLAN, DHCP: spec.DHCP, IPs: spec.IPs, Subnets: spec.Subnets, Gateways: spec.Gateways, DNS: spec.DNS}
	if n.MAC == "" {
		g := vm.site.NewGUID()
		n.MAC = "00155D" + g[len(g)-6:]
	}
	if n.Name == "" {
		n.Name = "Network Adapter"
	}
	if spec.Switch != "" {
		sw, ok := vm.Host().Switch(spec.Switch)
		if !ok {
			return n, fmt.Errorf("switch %q of host %s: %w", spec.Switch, vm.Host().Conf.Name, ErrNotFound)
		}
		n.Switch = sw.ID
	}
	return n, vm.Change(func(st *State) error { st.NICs = append(st.NICs, n); return nil })
}

// Switch finds a switch by its name or id.
func (h *Host) Switch(nameOrID string) (Switch, bool) {
	for _, s := range h.Conf.Switches {
		if strings.EqualFold(s.Name, nameOrID) || strings.EqualFold(s.ID, nameOrID) {
			return s, true
		}
	}
	return Switch{}, false
}

// Image is what a disk file says about itself.
type Image struct {
	Kind                          DiskKind
	ID                            string // upper case, "" if the format has none
	Size, FileSize                int64
	BlockSize                     int64
	LogicalSector, PhysicalSector int
	Parent                        string // path on the host
	ParentID                      string
	DataGUID                      string
}

// Image reads a disk file of the host.
func (h *Host) Image(path string) (Image, error) {
	local, err := h.Local(path)
	if err != nil {
		return Image{}, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	fi, err := os.Stat(local)
	if err != nil {
		return Image{}, err
	}
	img := Image{Size: fi.Size(), FileSize: fi.Size(), LogicalSector: 512, PhysicalSector: 512}
	switch ext := strings.ToLower(filepath.Ext(local)); ext {
	case ".vhd":
		img.Kind, img.Size = VHD, fi.Size()-512
		return img, nil
	case ".vhds":
		img.Kind = Shared
		return img, nil
	case ".raw":
		img.Kind = PassThrough
		return img, nil
	}
	f, err := vhdx.Open(local, vhdx.OpenOptions{})
	if err != nil {
		return Image{}, err
	}
	in, err := f.Info()
	if err != nil {
		return Image{}, errors.Join(err, f.Close())
	}
	img = Image{Kind: Dynamic, ID: strings.ToUpper(in.ID.String()), Size: in.Size, FileSize: in.FileSize, BlockSize: in.BlockSize,
		LogicalSector: in.LogicalSector, PhysicalSector: in.PhysicalSector, DataGUID: in.DataWrite.String()}
	switch in.Layout {
	case vhdx.Fixed:
		img.Kind = Fixed
	case vhdx.Differencing:
		img.Kind = Child
		img.ParentID = in.Parent.Linkage.String()
		if p, err := h.resolve(local, in.Parent); err == nil {
			if img.Parent, err = h.Path(p); err != nil {
				img.Parent = in.Parent.Absolute
			}
		}
	}
	return img, f.Close()
}

// vhdFooter is the footer of a fixed VHD, as far as programs look at it: cookie, version, sizes, type and checksum.
func vhdFooter(size int64) []byte {
	b := make([]byte, 512)
	copy(b, "conectix")
	be := binary.BigEndian
	be.PutUint32(b[8:], 2)
	be.PutUint32(b[12:], 0x10000)
	be.PutUint64(b[16:], ^uint64(0))
	copy(b[28:], "win ")
	be.PutUint32(b[32:], 0xa0000)
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], uint64(size))
	be.PutUint64(b[48:], uint64(size))
	be.PutUint32(b[60:], 2)
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	be.PutUint32(b[64:], ^sum)
	return b
}

// ErrRCT is the failure of a query of changes that can't be answered.
var ErrRCT = rct.ErrUnknown

// ResizeImage enlarges a disk file of nobody.
func (h *Host) ResizeImage(path string, size int64) error {
	local, err := h.Local(path)
	if err != nil {
		return err
	}
	return vhdx.Resize(local, size)
}

// SetVSS sets how the guest answers to a request for an application consistent checkpoint.
func (vm *VM) SetVSS(mode string) error {
	return vm.change(func(st *State) error { st.VSS = mode; return nil })
}
