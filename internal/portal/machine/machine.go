// Package machine is what the portal says of a discovered VM: whether it can be
// protected and why not, what its host tells of it, and its disks with the way
// out for those that can't be replicated.
//
// It promises that what nobody knows is called not known instead of being passed
// off as good, and that whatever keeps a VM or a disk from replication comes with
// what to do. The rules are those of package readiness that hold for any target.
package machine

import (
	"cmp"
	"fmt"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/words"
	"holdfast/internal/readiness"
)

// Row is a discovered VM with what is in the way of its protection.
type Row struct {
	dr.VM
	Site  dr.Fabric
	Host  dr.Provider
	Item  dr.ItemID // protected as; empty = it is not
	State words.Pill
	Stops []Reason // it can't be protected
	Notes []Reason // it can, but one should know
}

// Reason is one thing that is in the way, and what to do about it.
type Reason struct{ Text, WayOut string }

// Ready reports that replication can be enabled.
func (v Row) Ready() bool { return v.Item == "" && len(v.Stops) == 0 }

// Size is the sum of the disks, bytes.
func (v Row) Size() (n int64) {
	for _, d := range v.Disks {
		n += d.Size
	}
	return n
}

// Usable reports whether a disk can be replicated.
func Usable(d dr.Disk) bool { return !d.Shared && !d.PassThru && d.Unreplicatable == "" }

// findings applies the rules that hold whatever the target is.
func findings(vm dr.VM, site dr.FabricType) []readiness.Finding {
	return readiness.CheckVM(vm, readiness.Profile{}, site == dr.KVMSite)
}

// Judge looks for what the discovery already shows; the prerequisites check of
// the job looks again on the host. connected tells of the VM's host.
func Judge(vm dr.VM, e *estate.Estate, connected func(dr.Provider) bool) Row {
	r := Row{VM: vm, Site: e.Fabric[vm.Fabric], Host: e.Host[vm.Agent]}
	for _, it := range e.Items {
		if it.Fabric == vm.Fabric && it.VM == vm.ID && it.Protection != dr.EnableFailed {
			r.Item = it.ID
		}
	}
	switch {
	case vm.Gone:
		r.Stops = append(r.Stops, Reason{"Its host does not report it any more.", "Start discovery again, or ignore it if it was deleted."})
	case r.Host.ID == "":
		r.Stops = append(r.Stops, Reason{"Its host is not registered any more.", "Register the host again."})
	case !r.Host.HasRole(dr.RoleSource):
		r.Stops = append(r.Stops, Reason{fmt.Sprintf("Host %s is not registered with the source role.", r.Host.Host), "Register it again with --role source."})
	}
	usable := 0
	for _, d := range vm.Disks {
		if Usable(d) {
			usable++
		}
	}
	for _, f := range findings(vm, r.Site.Type) {
		x := Reason{words.Advice(f.Reason), words.Sentence(f.WayOut)}
		switch {
		case f.Rule == "no-disk" || f.Rule == "off":
		case f.Severity != readiness.Blocks:
			if f.Severity == readiness.Warns && f.Code == "" { // what concerns the points alone is on the VM's page
				r.Notes = append(r.Notes, x)
			}
		case f.Object != "": // the rest of the VM can be protected
			r.Notes = append(r.Notes, x)
		default:
			r.Stops = append(r.Stops, x)
		}
	}
	if usable == 0 {
		r.Stops = append(r.Stops, Reason{"It has no disk that can be replicated.", ""})
	}
	if r.Host.ID != "" && !connected(r.Host) {
		r.Notes = append(r.Notes, Reason{fmt.Sprintf("Host %s is not connected now.", r.Host.Host), ""})
	}
	if !vm.Running {
		r.Notes = append(r.Notes, Reason{"It is shut off; replication begins when it runs.", ""})
	}
	switch {
	case r.Item != "":
		r.State = pill("idle", "Protected")
		r.State.Icon = "ok"
	case len(r.Stops) > 0:
		r.State = pill("bad", "Not ready")
	case len(r.Notes) > 0:
		r.State = pill("warn", "Ready with notes")
	default:
		r.State = pill("good", "Ready")
	}
	return r
}

func pill(tone, text string) words.Pill {
	return words.Pill{Tone: tone, Icon: words.ToneIcon(tone), Text: text}
}

// Fact is one line of what is known of a VM.
type Fact struct {
	Name  string
	State *words.Pill // before the text; nil = none
	Text  string
	Sub   string // beside or below it
}

// Disk is a disk with why it can't be replicated; Problem is empty if it can.
type Disk struct {
	dr.Disk
	Problem, WayOut string
}

// Facts are what the host tells of a VM.
type Facts struct {
	List  []Fact
	Disks []Disk
	NICs  []dr.NIC
}

// Describe says what is known of a VM of a site. cloud is the name of its VMM
// cloud, empty if it is in none.
func Describe(vm dr.VM, site dr.FabricType, cloud string) Facts {
	found := findings(vm, site)
	out := Facts{NICs: vm.NICs, List: list(vm, site, cloud, found)}
	for _, d := range vm.Disks {
		x := Disk{Disk: d}
		if i := slices.IndexFunc(found, func(f readiness.Finding) bool { return f.Object == d.ID && f.Severity == readiness.Blocks }); i >= 0 {
			x.Problem, x.WayOut = words.Advice(found[i].Reason), words.Sentence(found[i].WayOut)
		}
		out.Disks = append(out.Disks, x)
	}
	return out
}

func list(vm dr.VM, site dr.FabricType, cloud string, found []readiness.Finding) []Fact {
	f := vm.Facts
	f.Cloud = ""                // VMM tells it, not the agent
	told := f != (dr.VMFacts{}) // else the agent says nothing of the kind
	kvm := site == dr.KVMSite
	version, tools := "Configuration version", "Integration services"
	if kvm {
		version, tools = "Machine type", "Guest agent"
	}
	out := []Fact{system(vm), plain(version, f.Version), generation(vm, told), guest(tools, f.GuestTools), consistency(vm, told, found)}
	n := Fact{Name: "Checkpoints", Text: "None"}
	switch {
	case !told:
		n = unknown(n.Name)
	case f.Checkpoints > 0:
		n.Text, n.Sub = fmt.Sprint(f.Checkpoints), "the replica has the current state, not them"
	}
	out = append(out, n)
	if f.Clustered { // not every agent tells
		out = append(out, Fact{Name: "Clustered", Text: "Yes", Sub: "a role of a failover cluster: it may move by itself"})
	}
	if site == dr.VMMSite {
		out = append(out, Fact{Name: "Cloud", Text: cmp.Or(cloud, "In no cloud")})
	}
	memory := Fact{Name: "Machine", Text: fmt.Sprintf("%d vCPU, %d MiB", vm.CPUs, vm.MemoryMB)}
	if f.DynamicMemory {
		memory.Sub = "dynamic memory"
	}
	out = append(out, memory)
	if f.Replicated != "" {
		state := pill("bad", "Replicated by "+f.Replicated)
		out = append(out, Fact{Name: "Other replication", State: &state, Sub: "remove it first: two of them disturb each other"})
	}
	return out
}

func unknown(name string) Fact { return Fact{Name: name, Sub: "not known"} }

func plain(name, text string) Fact {
	if text == "" {
		return unknown(name)
	}
	return Fact{Name: name, Text: text}
}

func system(vm dr.VM) Fact {
	x := plain("Operating system", cmp.Or(vm.Facts.OSName, vm.OSType))
	if vm.Facts.OSVersion != "" {
		x.Sub = vm.Facts.OSVersion
	}
	return x
}

func generation(vm dr.VM, told bool) Fact {
	x := Fact{Name: "Generation", Text: fmt.Sprint(vm.Generation)}
	switch {
	case vm.Generation == 0:
		return unknown(x.Name)
	case vm.Generation == 1:
		x.Sub = "BIOS, no secure boot"
	case vm.Facts.SecureBoot:
		x.Sub = "UEFI, secure boot on"
	case told:
		x.Sub = "UEFI, secure boot off"
	default:
		x.Sub = "UEFI"
	}
	return x
}

// guest is the state of the services in the guest: ok, degraded, absent or the host's own word.
func guest(name, state string) Fact {
	var p words.Pill
	switch state {
	case "":
		return unknown(name)
	case "ok":
		p = pill("good", "OK")
	case "absent":
		p = pill("warn", "Absent")
	case "degraded":
		p = pill("warn", "Degraded")
	default:
		p = pill("warn", state)
	}
	return Fact{Name: name, State: &p}
}

func consistency(vm dr.VM, told bool, found []readiness.Finding) Fact {
	x := Fact{Name: "App-consistent points"}
	switch {
	case vm.Facts.AppConsistent != "":
		p := pill("warn", "Not possible now")
		x.State, x.Text = &p, words.Advice(vm.Facts.AppConsistent)
		if i := slices.IndexFunc(found, func(y readiness.Finding) bool { return y.Rule == "app-consistent" }); i >= 0 {
			x.Sub = found[i].WayOut
		}
	case !vm.Running:
		x.Sub = "not known while it is off"
	case !told || vm.Facts.GuestTools == "absent":
		return unknown(x.Name)
	default:
		p := pill("good", "Possible")
		x.State = &p
	}
	return x
}

// Disk finds a disk by id; nil = the VM has it no more.
func (f Facts) Disk(id string) *Disk {
	if i := slices.IndexFunc(f.Disks, func(d Disk) bool { return d.ID == id }); i >= 0 {
		return &f.Disks[i]
	}
	return nil
}
