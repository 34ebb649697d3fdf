package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/report"
	"holdfast/internal/azsim"
	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/recovery/warm"
)

// warmed is what one point cost in one warm replica. held is from the commit of the cut to
// the return of Apply.
type warmed struct {
	warm.Result
	held time.Duration
}

func (a *azureBench) openWarm(s *azureService, prefix string, rate int64, requests int) *warm.Replica {
	w, err := warm.New(warm.Config{Container: s.container, Access: s.access(a.tb), Prefix: prefix, Rate: rate, Requests: requests})
	noErr(a.tb, err)
	a.tb.Cleanup(func() { _ = w.Close() })
	return w
}

func (a *azureBench) apply(w *warm.Replica) warmed {
	began := time.Now()
	res, err := w.Apply(a.ctx, a.r.Store(a.r.Bucket), a.r.Machine, a.r.Gen(), a.r.Tip())
	noErr(a.tb, err)
	return warmed{res, time.Since(began)}
}

// warmReplica brings three warm replicas, one after the other, to the same points: the
// simulator without and with the published limits, and Azurite.
func (a *azureBench) warmReplica() {
	type kind struct {
		area string
		w    *warm.Replica
		lim  bool
	}
	kinds := []kind{{"free", a.openWarm(a.sim, "warm", unlimited, unlimited), false}, {"paced", a.openWarm(a.sim, "paced", 0, 0), true}, {"azurite", a.openWarm(a.azurite, "warm", unlimited, unlimited), false}}
	if !a.size.Limits {
		kinds = slices.Delete(kinds, 1, 2)
	}
	changes := []struct {
		name string
		fn   func()
	}{
		{"first copy", func() {}},
		{"idle", func() {}},
		{fmt.Sprintf("%d scattered writes of 4 KiB", a.size.Scattered), func() {
			for range a.size.Scattered {
				a.write(a.src, a.rng.Int64N(a.size.Disk/unit)*unit, unit)
			}
		}},
		{report.Size(a.size.Sequential) + " in one piece", func() { a.write(a.src, a.size.Disk/2, a.size.Sequential) }},
	}
	got := map[string][]warmed{}
	for i, c := range changes {
		c.fn()
		if i > 0 {
			_, err := a.r.Cycle(a.ctx)
			noErr(a.tb, err)
		}
		for _, k := range kinds {
			if k.lim {
				a.cloud.Pages().Limit(pagestore.PublishedLimits())
			}
			got[k.area] = append(got[k.area], a.apply(k.w))
			a.cloud.Pages().Limit(pagestore.Limits{})
		}
	}
	for i, c := range changes {
		free, az := got["free"][i], got["azurite"][i]
		if i > 0 && (len(free.Compared) > 0 || len(az.Compared) > 0) {
			a.tb.Errorf("%s: the disk was compared as a whole", c.name)
		}
		var peers report.Peers
		if a.size.Limits {
			peers = report.Beside("at 60 MiB/s and 500 requests/s", got["paced"][i].held.Seconds())
		}
		a.warmFigures("warm replica, simulator", c.name, free, peers)
	}
	for i, c := range changes {
		a.warmFigures("warm replica, Azurite", c.name, got["azurite"][i], nil)
	}
}

func (a *azureBench) warmFigures(area, name string, w warmed, peers report.Peers) {
	a.add(report.Figure{Area: area, Name: name + ": requests", Value: float64(w.Requests), Unit: "requests"})
	a.add(report.Figure{Area: area, Name: name + ": pages sent", Value: report.MiB(w.Bytes), Unit: "MiB"})
	a.add(report.Figure{Area: area, Name: name + ": from commit to held", Value: w.held.Seconds(), Unit: "s", Wall: true, Peers: peers})
}

// failover is what Boot cost until the VM was running.
type failover struct {
	changing, asking, data, disk int
	sent, received               int64 // bytes of pages, through the uploading machine
	took                         time.Duration
}

// failovers makes a VM from the warm replica and from the served point.
func (a *azureBench) failovers() {
	dir := filepath.Join(a.dir, "site")
	noErr(a.tb, os.Mkdir(dir, 0o700))
	ca, secret := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "secret")
	noErr(a.tb, os.WriteFile(ca, a.sim.ca, 0o600))
	noErr(a.tb, os.WriteFile(secret, []byte(azsim.DefaultClientSecret), 0o600))
	url := a.cloud.URL()
	cfg := arm.Config{Version: 1, Cloud: arm.CustomCloud, Authority: url, ResourceManager: url, StorageSuffix: url + "/storage/{account}", CAFile: ca,
		Tenant: azsim.DefaultTenant, Subscription: azsim.DefaultSubscription, ResourceGroup: "dr", StorageAccount: a.sim.account, Container: "warm",
		Credential: arm.Credential{Kind: arm.CredentialSecret, ClientID: azsim.DefaultClientID, SecretFile: secret}}
	session, err := arm.Open(a.ctx, cfg, arm.Options{PollEvery: 100 * time.Millisecond})
	noErr(a.tb, err)
	defer session.Close()
	h, err := azure.Open(a.ctx, azure.Config{Session: session, Poll: 100 * time.Millisecond})
	noErr(a.tb, err)
	defer h.Close()
	w := a.openWarm(a.sim, "warm", unlimited, unlimited)
	images, err := w.Images(a.ctx, a.r.Machine, a.r.Gen(), a.r.Tip())
	noErr(a.tb, err)
	s := a.serving()
	defer func() { _, err := s.stop(); noErr(a.tb, err) }()
	disk := hypervisor.BootDisk{ID: rawhost.DiskID, Size: a.size.Disk, Socket: s.socket, Export: s.export, Path: "/unused"}
	cold := a.failover(h, "cold", disk)
	disk.Image = images[rawhost.DiskID]
	warm := a.failover(h, "warm", disk)

	const area = "preparing a failover, simulator"
	add := func(name, unit string, wall bool, note string, v func(failover) float64) {
		a.add(report.Figure{Area: area, Name: name, Value: v(warm), Unit: unit, Wall: wall, Peers: report.Beside("cold", v(cold)), Note: note})
	}
	add("with a warm replica: bytes sent", "MiB", false, "a VM with one disk and one adapter, until it is said to run", func(f failover) float64 { return report.MiB(f.sent) })
	add("bytes read back", "MiB", false, "", func(f failover) float64 { return report.MiB(f.received) })
	add("requests of pages", "requests", false, "", func(f failover) float64 { return float64(f.data) })
	add("calls of Resource Manager that change something", "calls", false, "", func(f failover) float64 { return float64(f.changing) })
	add("of them about the disk", "calls", false, "", func(f failover) float64 { return float64(f.disk) })
	add("calls of Resource Manager that ask", "calls", false, "looking and waiting; on Azure operations take longer and are asked for every second or two", func(f failover) float64 { return float64(f.asking) })
	add("time", "s", true, "the simulator copies inside; a disk from a snapshot takes Azure minutes, which is not known here", func(f failover) float64 { return f.took.Seconds() })
}

func (a *azureBench) failover(h *azure.Host, name string, disk hypervisor.BootDisk) (f failover) {
	spec := hypervisor.BootSpec{Name: name, Owner: "holdfast:" + name, Network: "prod", Disks: []hypervisor.BootDisk{disk}, Config: hypervisor.VMConfig{VM: dr.VM{
		ID: rawhost.VMID, Name: "app", Generation: 1, CPUs: 2, MemoryMB: 3000, OSType: "Linux", NICs: []dr.NIC{{ID: "n1", MAC: "00:15:5d:00:00:01"}}}}}
	bodies := func() (in, out int64) {
		for _, c := range a.cloud.Pages().Counts() {
			in, out = in+c.In, out+c.Out
		}
		return in, out
	}
	calls := len(a.cloud.Calls())
	in, out := bodies()
	began := time.Now()
	_, err := h.Boot(a.ctx, spec)
	noErr(a.tb, err)
	f.took = time.Since(began)
	i, o := bodies()
	f.sent, f.received = i-in, o-out
	for _, c := range a.cloud.Calls()[calls:] {
		switch {
		case strings.HasPrefix(c.Path, "/md/") || strings.HasPrefix(c.Path, "/storage/"):
			f.data++
		case strings.Contains(c.Path, "/oauth2/"):
		case c.Method == http.MethodGet || c.Method == http.MethodHead:
			f.asking++
		default:
			f.changing++
			if strings.Contains(strings.ToLower(c.Path), "/disks/") {
				f.disk++
			}
		}
	}
	return f
}
