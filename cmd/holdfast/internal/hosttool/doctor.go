package hosttool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/hosting"
	"holdfast/internal/agent"
	"holdfast/internal/agent/channel"
	"holdfast/internal/cim/com"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// check is one look of the doctor.
type check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warning, failed, skipped
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// The statuses of a check.
const (
	ok      = "ok"
	warning = "warning"
	failed  = "failed"
	skipped = "skipped"
)

// Limits of the doctor.
const (
	doctorCall = 2 * time.Minute
	lowSpace   = 10 << 30
)

type doctor struct {
	app   *app
	flags hosting.Flags
	vmm   hosting.VMM
	proxy hosting.Proxy
	state string
	vm    string
	net   networkFlags
	list  []check
}

func (a *app) doctorCommand() *cobra.Command {
	d := doctor{app: a}
	c := &cobra.Command{
		Use: "doctor", Short: "Find out what keeps replication from working on this host", Args: cobra.NoArgs,
		Long: "Look after the connection to the hypervisor, its rights and services, the VMs, the space on the volumes and, on a\n" +
			"registered host, the way to the vault, hop by hop. --store and --azure add what they name to the way. With\n" +
			"--vm, one checkpoint of that VM is made, read and removed: do this once before protecting anything on a new host.",
		RunE: func(c *cobra.Command, _ []string) error { return d.run(c.Context()) },
	}
	d.flags.Add(c)
	d.vmm.Add(c)
	d.proxy.Add(c)
	d.net.add(c)
	c.Flags().StringVar(&d.state, "state", hosting.DefaultState(), "state directory of the agent, if the host is registered")
	c.Flags().StringVar(&d.vm, "vm", "", "make and remove one checkpoint of this VM, by name or id")
	return c
}

func (d *doctor) add(name, status, detail, remedy string) {
	d.list = append(d.list, check{name, status, detail, remedy})
}

// fallback is what to do where an error does not say it.
var fallback = map[string]string{
	"management": "Check the address, and that the host's management service (WinRM or WMI) runs.",
	"hypervisor": "Check that the hypervisor's service runs and that this account may manage it.",
	"inventory":  "Look into the log of the hypervisor's management service; try again when no VM is being moved or merged.",
	"checkpoint": "Look into the log of the hypervisor's management service; 'holdfast agent cleanup' removes what may be left.",
	"vmm":        "Check that VMM's console is installed here and that this account has a role in VMM.",
	"proxy":      "Name the proxy with --proxy, or --proxy none.",
	"network":    "Correct the flag or file that the message names.",
	"throughput": "See the hops of the store, and whether this machine may write there.",
	"vault":      "Read the message; if the registration can't be read, register the host again with a new key.",
}

// fail adds a check that failed, with the remedy of its error.
func (d *doctor) fail(name string, err error) {
	remedy := ""
	var e *dr.Error
	if errors.As(err, &e) {
		if entry, found := dr.Lookup(e.Code); found {
			remedy = entry.Remedy
		}
		if e.Hint != "" {
			remedy = e.Hint
		}
	}
	if remedy == "" {
		remedy = fallback[name]
	}
	d.add(name, failed, err.Error(), remedy)
}

func (d *doctor) run(ctx context.Context) (err error) {
	dir, err := hosting.Workshop(d.state, d.flags.Dir, "doctor")
	if err != nil {
		return err
	}
	reg, rerr := channel.LoadRegistration(d.state)
	if rerr != nil || slices.Contains(reg.Roles, dr.RoleSource) || slices.Contains(reg.Roles, dr.RoleRecovery) {
		d.host(ctx, dir)
	}
	if rerr == nil && slices.Contains(reg.Roles, dr.RoleVMM) {
		d.manager(ctx)
	}
	d.network(ctx, reg, rerr)
	if err := console.List(d.app.Console, d.list, "", console.Col("CHECK", func(c check) string { return c.Name }), console.Col("RESULT", func(c check) string { return c.Status }),
		console.Wide("DETAIL", func(c check) string { return c.Detail }), console.Wide("WHAT TO DO", func(c check) string { return console.Dash(c.Remedy) })); err != nil {
		return err
	}
	bad := 0
	for _, c := range d.list {
		if c.Status == failed {
			bad++
		}
	}
	if bad > 0 {
		return dr.Errorf(dr.KindPrecondition, "agent.doctor", "%d of %d checks failed", bad, len(d.list))
	}
	return nil
}

// host looks after everything between this process and the VMs.
func (d *doctor) host(ctx context.Context, dir string) {
	ctx, cancel := context.WithTimeout(ctx, 5*doctorCall)
	defer cancel()
	if d.flags.IsHyperV() && d.flags.Azure == "" { // on Windows Hyper-V is the default
		d.management(ctx)
	}
	h, err := d.flags.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		d.fail("hypervisor", err)
		return
	}
	defer h.Close() // looked at only
	info, err := h.Info(ctx)
	if err != nil {
		d.fail("hypervisor", err)
		return
	}
	d.add("hypervisor", ok, fmt.Sprintf("%s: %s, %d CPUs, %d MB", info.Name, info.Hypervisor, info.CPUs, info.MemoryMB), "")
	for _, v := range info.Volumes {
		switch {
		case v.Free < lowSpace:
			d.add("space", warning, fmt.Sprintf("%s has %s free of %s", v.Path, console.Bytes(v.Free), console.Bytes(v.Size)), "Free some: an open checkpoint grows by what its VM writes.")
		default:
			d.add("space", ok, fmt.Sprintf("%s has %s free of %s", v.Path, console.Bytes(v.Free), console.Bytes(v.Size)), "")
		}
	}
	vms, err := h.Inventory(ctx)
	if err != nil {
		d.fail("inventory", err)
		return
	}
	d.inventory(vms)
	d.checkpoint(ctx, h, vms)
}

// management looks after the services of a Hyper-V host.
func (d *doctor) management(ctx context.Context) {
	s, err := d.flags.Session(ctx, nil)
	if err != nil {
		d.fail("management", err)
		return
	}
	defer s.Close() // looked at only
	way := "COM"
	if _, ok := s.(*com.Session); !ok {
		way = "WS-Man"
	}
	system, err := s.Query(ctx, "root/cimv2", "SELECT Caption, Version FROM Win32_OperatingSystem")
	if err != nil {
		d.add("management", failed, way+": "+err.Error(), "On the host run 'winrm quickconfig'; check address, user, password file and that the account is in 'Remote Management Users'. On the host itself try --hyperv local.")
		return
	}
	detail := way
	if len(system) > 0 {
		detail += ": " + system[0].String("Caption") + " " + system[0].String("Version")
	}
	d.add("management", ok, detail, "")
	services, err := s.Query(ctx, "root/cimv2", "SELECT Name, State FROM Win32_Service WHERE Name='vmms'")
	switch {
	case err != nil:
		d.add("vmms", failed, err.Error(), "Give the account the right to query services (Remote Management Users is enough on the host itself).")
	case len(services) == 0:
		d.add("vmms", failed, "the host has no Hyper-V Virtual Machine Management service", "Install the Hyper-V role.")
	case services[0].String("State") != "Running":
		d.add("vmms", failed, "the Hyper-V Virtual Machine Management service is "+services[0].String("State"), "Start it: 'Start-Service vmms'.")
	default:
		d.add("vmms", ok, "running", "")
	}
	if _, err := s.Query(ctx, "root/virtualization/v2", "SELECT * FROM Msvm_VirtualSystemManagementService"); err != nil {
		d.add("rights", failed, err.Error(), "Add the account to 'Hyper-V Administrators', or run the agent as LocalSystem.")
	} else {
		d.add("rights", ok, "may manage VMs", "")
	}
}

func (d *doctor) inventory(vms []dr.VM) {
	var blocked, vss []string
	for _, vm := range vms {
		if slices.ContainsFunc(vm.Disks, func(k dr.Disk) bool { return k.Unreplicatable != "" || k.Shared || k.PassThru }) {
			blocked = append(blocked, vm.Name)
		}
		if vm.Running && vm.Facts.AppConsistent != "" {
			vss = append(vss, vm.Name+": "+vm.Facts.AppConsistent)
		}
	}
	d.add("inventory", ok, fmt.Sprintf("%d VMs", len(vms)), "")
	if len(blocked) > 0 {
		d.add("disks", warning, fmt.Sprintf("%d VMs have disks that can't be replicated: %s", len(blocked), strings.Join(blocked, ", ")), "'holdfast site check' tells why for each, and the way out.")
	} else {
		d.add("disks", ok, "all can be replicated", "")
	}
	if len(vss) > 0 {
		d.add("guest snapshots", warning, fmt.Sprintf("%d running guests can't make application-consistent points: %s", len(vss), strings.Join(vss, "; ")), "Repair integration services or guest agent there; crash-consistent points work without.")
	} else {
		d.add("guest snapshots", ok, "all running guests can be asked", "")
	}
}

// checkpoint makes, reads and removes one checkpoint of the chosen VM.
func (d *doctor) checkpoint(ctx context.Context, h hypervisor.Host, vms []dr.VM) {
	const name = "checkpoint"
	if d.vm == "" {
		d.add(name, skipped, "no VM was named", "Choose one with --vm; its checkpoint is made, read and removed.")
		return
	}
	i := slices.IndexFunc(vms, func(v dr.VM) bool { return strings.EqualFold(string(v.ID), d.vm) || v.Name == d.vm })
	if i < 0 {
		d.add(name, failed, fmt.Sprintf("the host has no VM %q", d.vm), "Name one of the host's VMs.")
		return
	}
	vm := vms[i]
	replicated, err := agent.ReplicatedVMs(d.state)
	if err != nil {
		d.fail(name, err)
		return
	}
	if replicated[vm.ID] {
		d.add(name, skipped, vm.Name+" is replicated by this host's agent, which must not be disturbed", "Choose a VM that is not protected.")
		return
	}
	var disks []string
	for _, k := range vm.Disks {
		if k.Unreplicatable == "" && !k.Shared && !k.PassThru {
			disks = append(disks, k.ID)
		}
	}
	if len(disks) == 0 {
		d.add(name, failed, vm.Name+" has no disk that can be tracked", "Choose another VM.")
		return
	}
	began := time.Now()
	cut, err := h.BeginCut(ctx, hypervisor.CutRequest{VM: vm.ID, Disks: disks, Tag: fmt.Sprintf("doctor-%d", began.Unix()), Quiesce: vm.Running && vm.Facts.AppConsistent == ""})
	if err != nil {
		d.fail(name, err)
		return
	}
	made := time.Since(began)
	p := make([]byte, 1<<20)
	for _, k := range cut.Info().Disks {
		if err == nil {
			err = cut.ReadAt(ctx, k.ID, p[:min(k.Size, int64(len(p)))], 0)
		}
	}
	info := cut.Info()
	if aerr := cut.Abort(context.WithoutCancel(ctx)); aerr != nil {
		d.fail(name, fmt.Errorf("the checkpoint of %s was made and could not be removed: %w", vm.Name, errors.Join(err, aerr)))
		return
	}
	if err != nil {
		d.fail(name, fmt.Errorf("the frozen disks of %s could not be read: %w", vm.Name, err))
		return
	}
	detail := fmt.Sprintf("%s: made in %s, %d disks read, removed; %s", vm.Name, made.Round(time.Millisecond), len(info.Disks), info.Consistency)
	if info.Note != "" {
		detail += " (" + info.Note + ")"
	}
	d.add(name, ok, detail, "")
}

// manager looks after the way to the VMM server.
func (d *doctor) manager(ctx context.Context) {
	const name = "vmm"
	v, err := d.vmm.Open()
	if err != nil {
		d.fail(name, err)
		return
	}
	s, err := v.Snapshot(ctx)
	if err != nil {
		d.fail(name, err)
		return
	}
	d.add(name, ok, fmt.Sprintf("%s %s: %d clouds, %d hosts, %d VM networks, %d VMs", s.Server.Name, s.Server.Product, len(s.Clouds), len(s.Hosts), len(s.VMNetworks), len(s.VMs)), "")
	if len(s.Warnings) > 0 {
		d.add(name, warning, "not listed: "+strings.Join(s.Warnings, "; "), "Give the agent's account a role in VMM that may see them.")
	}
}
