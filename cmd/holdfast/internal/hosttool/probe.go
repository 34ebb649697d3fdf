package hosttool

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/hosting"
	"holdfast/internal/cim"
	"holdfast/internal/cim/wsman"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
)

// probeCommand records what a real host answers, so that it can be replayed where there is none.
func (a *app) probeCommand() *cobra.Command {
	var host hosting.Flags
	var record, replay string
	c := &cobra.Command{
		Use: "probe --record FILE | --replay FILE", Short: "Record what a Hyper-V host answers, to send it to the developers", Args: cobra.NoArgs,
		Long: "Record what a Hyper-V host answers to the queries of the inventory. Only reads: nothing on the host is changed.\n" +
			"Names, addresses, paths and notes are replaced; look through the file before you send it.\n\n" +
			"--replay shows the inventory that such a file gives.",
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case (record == "") == (replay == ""):
				return console.Usage("name either --record or --replay")
			case replay != "":
				return a.replay(c.Context(), replay)
			case !host.IsHyperV() || host.HyperV == hosting.LocalHyperV:
				return console.Usage("recording goes over WS-Man: name the host's address with --hyperv, such as http://localhost:5985/wsman")
			}
			return a.record(c.Context(), host, record)
		},
	}
	host.Add(c)
	c.Flags().StringVar(&record, "record", "", "new file for the recording")
	c.Flags().StringVar(&replay, "replay", "", "recording to read")
	return c
}

// tape keeps exchanges in memory until they are made anonymous.
type tape struct {
	mu   sync.Mutex
	list []wsman.Exchange
}

func (t *tape) Record(x wsman.Exchange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, x)
}

// schemaClasses are read besides the inventory, to compare what a host has with the published reference.
var schemaClasses = [...]string{"Msvm_VirtualSystemManagementCapabilities", "Msvm_VirtualSystemSnapshotService", "Msvm_VirtualSystemReferencePointService", "Msvm_ReplicationService",
	"Msvm_VirtualSystemReferencePoint", "Msvm_ConcreteJob", "Msvm_VirtualSystemManagementServiceSettingData", "Msvm_ReplicationRelationship"}

func (a *app) record(ctx context.Context, flags hosting.Flags, path string) error {
	t := &tape{}
	s, err := flags.Session(ctx, t)
	if err != nil {
		return err
	}
	vms, info, err := inventory(ctx, s)
	if err != nil {
		return err
	}
	missing := 0
	for _, class := range schemaClasses {
		if _, err := s.Query(ctx, "root/virtualization/v2", "SELECT * FROM "+class); err != nil {
			a.Say("%s: %v", class, err)
			missing++
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	list := anonymous(t.list, vms, info)
	if err := console.CreateFile(path, func() ([]byte, error) {
		var b strings.Builder
		rec := wsman.NewJSONRecorder(&b)
		for _, x := range list {
			rec.Record(x)
		}
		return []byte(b.String()), rec.Err()
	}); err != nil {
		return err
	}
	a.Say("Look through the file before you send it: 'holdfast agent probe --replay %s' shows what it holds.", path)
	return a.Describe(map[string]any{"file": path, "exchanges": len(list), "vms": len(vms), "unanswered": missing},
		console.F("file", path), console.F("exchanges", fmt.Sprint(len(list))), console.F("VMs", fmt.Sprint(len(vms))))
}

// inventory reads what a Host reads at first, without opening anything on the host.
func inventory(ctx context.Context, s cim.Session) ([]dr.VM, hypervisor.HostInfo, error) {
	dir, err := os.MkdirTemp("", "holdfast-probe")
	if err != nil {
		return nil, hypervisor.HostInfo{}, console.ClassifyAs(err, "make a scratch directory")
	}
	defer os.RemoveAll(dir) // holds nothing
	h, err := hyperv.Open(ctx, hyperv.Config{Session: keep{s}, Disks: vhdxfiles.New(vhdxfiles.Config{Root: filepath.Join(dir, "drives")}), Dir: dir})
	if err != nil {
		return nil, hypervisor.HostInfo{}, err
	}
	defer h.Close()
	info, err := h.Info(ctx)
	if err != nil {
		return nil, info, err
	}
	vms, err := h.Inventory(ctx)
	return vms, info, err
}

// keep leaves the session open.
type keep struct{ cim.Session }

func (keep) Close() error { return nil }

func (a *app) replay(ctx context.Context, path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return console.ClassifyAs(err, "read the recording")
	}
	defer console.Closing(&err, f.Close)
	list, err := wsman.ReadExchanges(f)
	if err != nil {
		return dr.Errorf(dr.KindCorrupt, "agent.probe", "%s: %w", path, err)
	}
	s, err := wsman.Replay(list)
	if err != nil {
		return dr.Errorf(dr.KindCorrupt, "agent.probe", "%s: %w", path, err)
	}
	vms, info, err := inventory(ctx, s)
	if err != nil {
		return err
	}
	a.Say("Host %s, %s: %d VMs, %d recorded exchanges.", info.Name, info.Hypervisor, len(vms), len(list))
	return console.List(a.Console, vms, "The recording holds no VM.", console.Wide("VM", func(v dr.VM) string { return v.Name }),
		console.Col("GEN", func(v dr.VM) string { return fmt.Sprint(v.Generation) }), console.Col("VERSION", func(v dr.VM) string { return console.Dash(v.Facts.Version) }),
		console.Col("DISKS", func(v dr.VM) string { return fmt.Sprint(len(v.Disks)) }), console.Wide("OS", func(v dr.VM) string { return console.Dash(v.Facts.OSName) }))
}

var (
	notes    = regexp.MustCompile(`(?s)(<(\w+:)?Notes>)[^<]*(</(\w+:)?Notes>)`)
	ipv4     = regexp.MustCompile(`\b(?:\d{1,3}\.){3}\d{1,3}\b`)
	mac      = regexp.MustCompile(`(Address>)[0-9A-Fa-f]{12}<`)
	domain   = regexp.MustCompile(`(VALUE&gt;)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}(&lt;)`)
	password = regexp.MustCompile(`(?i)(password|secret|key)([^<]{0,40}>)[^<]+<`)
)

// anonymous replaces what names things of the host's owner by made-up words,
// the same everywhere, so that what belongs together still does.
func anonymous(list []wsman.Exchange, vms []dr.VM, info hypervisor.HostInfo) []wsman.Exchange {
	names := map[string]string{}
	add := func(real, made string) {
		if len(real) > 1 && names[real] == "" {
			names[real] = made
		}
	}
	add(strings.ToUpper(info.Name), "HOST-1")
	add(strings.ToLower(info.Name), "host-1")
	for i, vm := range vms {
		add(vm.Name, fmt.Sprintf("vm-%d", i+1))
		for k, d := range vm.Disks {
			p := strings.ReplaceAll(d.Path, "/", `\`)
			for n, part := range strings.Split(p, `\`) {
				if n == 0 || strings.EqualFold(part, "ClusterStorage") {
					continue
				}
				stem, ext := part, ""
				if x := strings.LastIndexByte(part, '.'); x > 0 {
					stem, ext = part[:x], part[x:]
				}
				add(stem+ext, fmt.Sprintf("p%d-%d-%d%s", i+1, k+1, n, ext))
			}
		}
		for k, n := range vm.NICs {
			add(n.Network, fmt.Sprintf("switch-%d-%d", i+1, k+1))
		}
	}
	order := make([]string, 0, len(names))
	for real := range names {
		order = append(order, real)
	}
	slices.SortFunc(order, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, real := range order {
		var esc strings.Builder
		_ = xml.EscapeText(&esc, []byte(real)) // a strings.Builder doesn't fail
		pairs = append(pairs, esc.String(), names[real])
		if esc.String() != real {
			pairs = append(pairs, real, names[real])
		}
	}
	r := strings.NewReplacer(pairs...)
	clean := func(s string) string {
		s = r.Replace(s)
		s = notes.ReplaceAllString(s, "$1(removed)$3")
		s = domain.ReplaceAllString(s, "${1}guest.example.invalid$2")
		s = password.ReplaceAllString(s, "$1$2(removed)<")
		s = ipv4.ReplaceAllStringFunc(s, func(ip string) string {
			if ip == "0.0.0.0" || strings.HasPrefix(ip, "255.") || strings.HasPrefix(ip, "10.0.") {
				return ip // masks, and versions such as 10.0.20348.1
			}
			return "192.0.2.1"
		})
		return mac.ReplaceAllString(s, "${1}00155D000001<")
	}
	out := make([]wsman.Exchange, len(list))
	for i, x := range list {
		out[i] = wsman.Exchange{Op: clean(x.Op), Request: clean(x.Request), Status: x.Status, Response: clean(x.Response)}
	}
	return out
}
