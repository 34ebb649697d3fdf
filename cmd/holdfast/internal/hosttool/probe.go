package hosttool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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
			case !host.IsHyperV() || host.HyperV == hosting.LocalHyperV || host.HyperV == hosting.LocalCOM:
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

// replayed is a VM of a recording.
type replayed struct {
	Name       string `json:"name"`
	Generation int    `json:"generation"`
	Version    string `json:"version,omitempty"`
	Disks      int    `json:"disks"`
	OS         string `json:"os,omitempty"`
}

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
	var views []replayed
	for _, v := range vms {
		views = append(views, replayed{v.Name, v.Generation, v.Facts.Version, len(v.Disks), v.Facts.OSName})
	}
	return console.List(a.Console, views, "The recording holds no VM.", console.Wide("VM", func(v replayed) string { return v.Name }),
		console.Col("GEN", func(v replayed) string { return fmt.Sprint(v.Generation) }), console.Col("VERSION", func(v replayed) string { return console.Dash(v.Version) }),
		console.Col("DISKS", func(v replayed) string { return fmt.Sprint(v.Disks) }), console.Wide("OS", func(v replayed) string { return console.Dash(v.OS) }))
}
