package hvsim

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/jobs"
	"holdfast/internal/hvsim/model"
)

// summary answers with the properties that were asked for; without SettingData with those of all VMs.
func summary(c *call) cim.Out {
	refs, err := c.in.Refs("SettingData")
	want, werr := c.in.Uints("RequestedInformation")
	if err != nil || werr != nil {
		return c.invalid()
	}
	var vms []*VM
	if len(refs) == 0 {
		vms = c.VMs()
	}
	for _, r := range refs {
		vm := c.owner(strings.TrimPrefix(r.Key("InstanceID"), "Microsoft:"))
		if vm == nil {
			return c.invalid()
		}
		vms = append(vms, vm)
	}
	infos := make([]*cim.Instance, 0, len(vms))
	for _, vm := range vms {
		st := vm.State()
		in := cim.NewInstance("Msvm_SummaryInformation", "InstanceID", "Microsoft:"+st.ID, "Name", st.ID)
		for _, code := range want {
			c.summarise(in, code, st, vm.Uptime())
		}
		infos = append(infos, in)
	}
	var out cim.Out
	out.Set("SummaryInformation", infos)
	return out
}

// summarise sets the property that a code of GetSummaryInformation's RequestedInformation asks for.
func (c *call) summarise(in *cim.Instance, code uint64, st model.State, up time.Duration) {
	on := st.Power == model.On
	switch code {
	case 0:
		in.Set("Name", st.ID)
	case 1:
		in.Set("ElementName", st.Name)
	case 2:
		in.Set("CreationTime", cim.FormatTime(st.Created))
	case 3:
		in.Set("Notes", strings.Join(st.Notes, "\n"))
	case 4:
		in.Set("NumberOfProcessors", uint16(st.CPUs))
	case 8:
		in.Set("AllocatedGPU", "")
	case 9:
		var names []string
		for _, n := range st.NICs {
			if sw, ok := c.Switch(n.Switch); ok && n.Switch != "" {
				names = append(names, sw.Name)
			}
		}
		in.Set("VirtualSwitchNames", list(names))
	case 10:
		in.Set("Version", st.Version)
	case 11:
		in.Set("Shielded", false)
	case 100:
		in.Set("EnabledState", enabled(st.Power))
	case 101:
		if on {
			in.Set("ProcessorLoad", uint16(crc(st.ID)%20))
		}
	case 103:
		if on {
			in.Set("MemoryUsage", uint64(st.MemoryMB))
		}
	case 104:
		if on {
			in.Set("Heartbeat", st.Heartbeat)
		}
	case 105:
		in.Set("UpTime", uint64(up/time.Millisecond))
	case 106:
		if on && st.OS != "" {
			in.Set("GuestOperatingSystem", st.OS)
		}
	case 107:
		refs := []cim.Path{}
		for _, cp := range st.Checkpoints {
			refs = append(refs, c.byID("Msvm_VirtualSystemSettingData", "Microsoft:"+cp.ID))
		}
		in.Set("Snapshots", refs)
	case 108:
		refs := []cim.Path{}
		for _, j := range c.jobs.List() {
			if j.Spec.Owner == st.ID && !j.Done() {
				refs = append(refs, c.jobPath(j))
			}
		}
		in.Set("AsynchronousTasks", refs)
	case 109:
		in.Set("HealthState", uint16(5))
	case 110:
		in.Set("OperationalStatus", status(st))
	case 111:
		in.Set("StatusDescriptions", []string{"Operating normally"})
	case 112:
		if on {
			in.Set("MemoryAvailable", int32(st.MemoryMB/2))
		}
	case 113:
		if on {
			in.Set("AvailableMemoryBuffer", int32(20))
		}
	case 114:
		in.Set("ReplicationMode", st.Replication.Mode)
	case 115:
		in.Set("ReplicationState", st.Replication.State)
	case 116:
		in.Set("ReplicationHealth", st.Replication.Health)
	case 117:
		in.Set("ApplicationHealth", uint16(2))
	case 118:
		in.Set("ReplicationStateEx", []uint16{st.Replication.State})
	case 119:
		in.Set("ReplicationHealthEx", []uint16{st.Replication.Health})
	case 120:
		in.Set("SwapFilesInUse", false)
	case 121:
		in.Set("IntegrationServicesVersionState", uint16(1))
	case 122:
		in.Set("ReplicationProviderId", []string{})
	case 123:
		in.Set("MemorySpansPhysicalNumaNodes", false)
	}
}

// Power

// vmState is Msvm_ComputerSystem.RequestStateChange: 2 start or resume, 3 turn off, 4 shut down,
// 6 save, 9 pause, 10 and 11 reset.
func vmState(c *call) cim.Out {
	vm := c.VM(c.path.Key("Name"))
	want, ok := c.in.Uint("RequestedState")
	if vm == nil { // the host itself
		return cim.Out{Return: c.family.unsupported}
	}
	power := vm.State().Power
	start := func(ctx context.Context) (result, error) { return result{}, vm.Start(ctx) }
	off := func(context.Context) (result, error) { return result{}, vm.PowerOff() }
	switch {
	case !ok:
		return c.invalid()
	case want == 2 && power == model.On, want == 3 && power == model.Off, (want == 4 || want == 6 || want == 9 || want == 10 || want == 11) && power == model.Off,
		want == 9 && power != model.On:
		return cim.Out{Return: c.family.state}
	}
	job := func(t uint16, do func(context.Context) (result, error)) cim.Out {
		return c.work(t, vm, c.path, do)
	}
	switch want {
	case 2:
		return job(12, start)
	case 3:
		return job(13, off)
	case 4:
		return job(16, func(ctx context.Context) (result, error) { return result{}, vm.Shutdown(ctx) })
	case 6:
		return job(14, func(context.Context) (result, error) { return result{}, vm.Save() })
	case 9:
		return job(26, func(ctx context.Context) (result, error) { return result{}, vm.Pause(ctx) })
	case 10, 11:
		return job(28, func(ctx context.Context) (result, error) {
			if err := vm.PowerOff(); err != nil {
				return result{}, err
			}
			return result{}, vm.Start(ctx)
		})
	}
	return c.invalid()
}

func shutdown(c *call) cim.Out {
	vm := c.VM(c.path.Key("SystemName"))
	if vm == nil {
		return c.invalid()
	}
	if vm.State().Power != model.On {
		return cim.Out{Return: c.family.state}
	}
	if err := vm.Shutdown(c.ctx); err != nil {
		return cim.Out{Return: c.code(err)}
	}
	return cim.Out{}
}

func jobState(c *call) cim.Out {
	want, _ := c.in.Uint("RequestedState")
	state := map[uint64]uint16{4: jobs.Terminated, 5: jobs.Killed}[want]
	if state == 0 {
		return c.invalid()
	}
	if !c.jobs.Stop(c.path.Key("InstanceID"), state) {
		return cim.Out{Return: c.family.state}
	}
	return cim.Out{}
}

func (c *call) errorText() (string, bool) {
	j, ok := c.jobs.Get(c.path.Key("InstanceID"))
	if !ok || j.Failure == nil {
		return "", false
	}
	in := cim.NewInstance("Msvm_Error", "ErrorType", uint16(4), "ErrorSource", c.jobPath(j).String(), "ErrorSourceFormat", uint16(2), "Message", j.Failure.Text,
		"MessageID", strconv.Itoa(int(j.Failure.Code)), "OwningEntity", "Hyper-V", "PerceivedSeverity", uint16(4), "ProbableCause", uint16(0), "CIMStatusCode", uint32(1))
	return settingText(in), true
}

func jobError(c *call) cim.Out {
	var out cim.Out
	if text, ok := c.errorText(); ok {
		out.Set("Error", text)
	}
	return out
}

func jobErrors(c *call) cim.Out {
	var out cim.Out
	if text, ok := c.errorText(); ok {
		out.Set("Errors", []string{text})
	}
	return out
}

// Definition

func defineSystem(c *call) cim.Out {
	set, ok := c.embedded("SystemSettings")
	resources, rok := c.embeddeds("ResourceSettings")
	if !ok || !rok {
		return c.invalid()
	}
	spec := model.VMSpec{Off: true}
	if set != nil {
		spec.Name = set.Args.String("ElementName")
		spec.Version = set.Args.String("Version")
		spec.Dir = strings.TrimRight(set.Args.String("ConfigurationDataRoot"), `\`)
		spec.Notes = strings.Join(set.Strings("Notes"), "\n")
		spec.Generation = 1 // as Windows has it when the settings do not say
		switch sub := set.Args.String("VirtualSystemSubType"); {
		case strings.EqualFold(sub, "Microsoft:Hyper-V:SubType:2"):
			spec.Generation = 2
		case sub != "" && !strings.EqualFold(sub, "Microsoft:Hyper-V:SubType:1"):
			return c.invalid()
		}
		if sb, ok := set.Bool("SecureBootEnabled"); ok {
			spec.NoSecureBoot = !sb
		}
		spec.SecureBootTemplate = set.Args.String("SecureBootTemplateId")
	} else {
		spec.Generation = 1
	}
	spec.CPUs, spec.MemoryMB = 1, 1024
	return c.work(1, nil, cim.Path{}, func(context.Context) (result, error) {
		vm, err := c.Define(spec)
		if err != nil {
			return result{}, err
		}
		if set != nil {
			if err := editSystem(vm, set); err != nil {
				return result{}, joinDelete(err, vm)
			}
		}
		for _, r := range resources {
			if _, err := c.addResource(vm, r); err != nil {
				return result{}, joinDelete(err, vm)
			}
		}
		return result{name: "ResultingSystem", refs: []cim.Path{c.vmPath(vm.State())}}, nil
	})
}

func joinDelete(err error, vm *VM) error {
	if derr := vm.Delete(); derr != nil {
		return fmt.Errorf("%w (and its removal: %w)", err, derr)
	}
	return err
}

func destroySystem(c *call) cim.Out {
	vm := c.vm("AffectedSystem")
	if vm == nil {
		return c.invalid()
	}
	if st := vm.State(); st.Power != model.Off && st.Power != model.Saved || st.Status != 0 && st.Status != model.Merging {
		return cim.Out{Return: c.family.state}
	}
	return c.work(3, vm, cim.Path{}, func(context.Context) (result, error) { return result{}, vm.Delete() })
}

// editSystem takes over what may be changed of a VM's settings.
func editSystem(vm *VM, set *cim.Instance) error {
	return vm.Change(func(st *model.State) error {
		if n := set.Args.String("ElementName"); n != "" {
			st.Name = n
		}
		if !set.Null("Notes") {
			st.Notes = set.Strings("Notes")
		}
		if t, ok := set.Uint("UserSnapshotType"); ok {
			st.UserSnapshotType = uint16(t)
		}
		if a, ok := set.Uint("AutomaticStartupAction"); ok {
			st.AutoStart = uint16(a)
		}
		sb, given := set.Bool("SecureBootEnabled")
		id := strings.ToUpper(strings.Trim(set.Args.String("BIOSGUID"), "{}"))
		if st.Power != model.Off && (given && sb != st.SecureBoot || id != "" && id != st.BIOSGUID) {
			return fmt.Errorf("VM %s is %s: %w", st.Name, st.Power, model.ErrState)
		}
		if given && st.Generation == 2 {
			st.SecureBoot = sb
		}
		if id != "" {
			st.BIOSGUID = id
		}
		if t := set.Args.String("SecureBootTemplateId"); t != "" {
			st.SecureBootTemplate = t
		}
		return nil
	})
}

// modifySystem changes the settings of a VM, or the name and notes of a checkpoint.
func modifySystem(c *call) cim.Out {
	set, ok := c.embedded("SystemSettings")
	if !ok || set == nil {
		return c.invalid()
	}
	id := strings.ToUpper(strings.TrimPrefix(set.Args.String("InstanceID"), "Microsoft:"))
	vm := c.owner(id)
	if vm == nil {
		return c.invalid()
	}
	return c.work(2, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		if id == vm.ID() {
			return result{}, editSystem(vm, set)
		}
		return result{}, vm.RenameCheckpoint(id, set.Args.String("ElementName"))
	})
}

func mergeSettings(c *call) cim.Out {
	set, ok := c.embedded("SettingData")
	if !ok || set == nil {
		return c.invalid()
	}
	on, given := set.Uint("EnabledState")
	if !given || on > 1 {
		return c.invalid()
	}
	c.SetMerging(on == 1)
	return cim.Out{}
}

func importSystem(c *call) cim.Out {
	path := c.in.String("SystemDefinitionFile")
	fresh, _ := c.in.Bool("GenerateNewSystemIdentifier")
	if path == "" {
		return c.invalid()
	}
	st, err := c.ReadConfig(path)
	if err != nil {
		return cim.Out{Return: c.code(err)}
	}
	return c.work(61, nil, cim.Path{}, func(context.Context) (result, error) {
		vm, err := c.Import(st, fresh)
		if err != nil {
			return result{}, err
		}
		return result{name: "ImportedSystem", refs: []cim.Path{c.vmPath(vm.State())}}, nil
	})
}

func validatePlanned(c *call) cim.Out {
	vm := c.vm("PlannedSystem")
	if vm == nil || !vm.State().Planned {
		return c.invalid()
	}
	return c.work(61, vm, c.vmPath(vm.State()), func(context.Context) (result, error) { return result{}, vm.Validate() })
}

func realizePlanned(c *call) cim.Out {
	vm := c.vm("PlannedSystem")
	if vm == nil || !vm.State().Planned {
		return c.invalid()
	}
	return c.work(61, vm, c.vmPath(vm.State()), func(context.Context) (result, error) {
		if err := vm.Realize(); err != nil {
			return result{}, err
		}
		return result{name: "ResultingSystem", refs: []cim.Path{c.vmPath(vm.State())}}, nil
	})
}

// migrate moves a VM. Its job is one of the source host, so it is not lost with the VM's other jobs.
func migrate(c *call) cim.Out {
	vm := c.vm("ComputerSystem")
	name, _, _ := strings.Cut(c.in.String("DestinationHost"), ".")
	to := c.site.Host(name)
	if vm == nil || to == nil || to == c.Host {
		return c.invalid()
	}
	return c.work(0, nil, c.vmPath(vm.State()), func(context.Context) (result, error) { return result{}, c.MigrateVM(vm, to) })
}

func thumbnail(c *call) cim.Out {
	ref, ok := c.in.Ref("TargetSystem")
	w, wok := c.in.Uint("WidthPixels")
	h, hok := c.in.Uint("HeightPixels")
	if !ok || !wok || !hok || w == 0 || h == 0 || w > 4096 || h > 4096 {
		return c.invalid()
	}
	vm := c.owner(strings.TrimPrefix(ref.Key("InstanceID"), "Microsoft:"))
	if vm == nil {
		return c.invalid()
	}
	shot, err := vm.Screenshot(c.ctx)
	if err != nil {
		return cim.Out{Return: c.code(err)}
	}
	img, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		return cim.Out{Return: c.family.failed}
	}
	b := img.Bounds()
	data := make([]uint8, 0, 2*w*h)
	for y := range int(h) {
		for x := range int(w) {
			r, g, bl, _ := img.At(b.Min.X+x*b.Dx()/int(w), b.Min.Y+y*b.Dy()/int(h)).RGBA()
			v := uint16(r>>11<<11 | g>>10<<5 | bl>>11) // RGB565, little endian
			data = append(data, byte(v), byte(v>>8))
		}
	}
	var out cim.Out
	out.Set("ImageData", data)
	return out
}
