package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hvsim/guest"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/ledger/sessionvirt"
	"holdfast/internal/objstore/azure/azuritetest"
)

// azureSite is a simulated subscription, whose VMs run in QEMU from the pages of their managed disks.
type azureSite struct {
	cloud  *azsim.Cloud
	config string // file
	dir    string
	run    string // short directory for sockets
	runner *azureRunner
}

const (
	azGroup   = "dr"
	azAccount = "warmaccount"
)

// azureRunner runs VMs of the simulated cloud by the runner of the simulated Hyper-V hosts.
type azureRunner struct {
	qemu *guest.Runner

	mu      sync.Mutex
	serials map[string]string // by lower-case id of the VM
}

func (r *azureRunner) Start(ctx context.Context, m azsim.Machine) (azsim.Running, error) {
	r.mu.Lock()
	r.serials[strings.ToLower(m.ID)] = m.Serial
	r.mu.Unlock()
	run := model.VMRun{ID: m.ID, Name: m.Name, Generation: m.Generation, CPUs: m.CPUs, MemoryMB: min(m.MemoryMB, 1024), Dir: m.Dir, Serial: m.Serial}
	for i, d := range m.Disks {
		x := model.RunDisk{ID: d.Name, Controller: "SCSI", Slot: i, Device: d.Device}
		if d.OS && m.Generation == 1 {
			x.Controller, x.Slot = "IDE", 0
		}
		run.Disks = append(run.Disks, x)
	}
	return r.qemu.Start(ctx, run)
}

// newAzureSite starts a cloud with a resource group, a virtual network and a storage account.
func newAzureSite(ctx context.Context, dir string, warm bool) (_ *azureSite, err error) {
	s := &azureSite{dir: filepath.Join(dir, "azure"), config: filepath.Join(dir, "azure.json")}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	if s.run, err = os.MkdirTemp("/tmp", "hfr-"); err != nil {
		return nil, err
	}
	accel := "tcg"
	if sessionvirt.KVMUsable(ctx) {
		accel = "kvm"
	}
	s.runner = &azureRunner{qemu: guest.New(guest.Config{Accel: accel}), serials: map[string]string{}}
	s.cloud = azsim.New(azsim.Config{Dir: s.dir, Runner: s.runner})
	if err := s.cloud.Start(ctx); err != nil {
		return nil, err
	}
	s.cloud.AddGroup(azGroup)
	s.cloud.AddVNet(azGroup, "production", "10.9.0.0/16", map[string]string{"default": "10.9.1.0/24"})
	key := s.cloud.AddStorageAccount(azGroup, azAccount)
	files := map[string]string{"ca.pem": string(s.cloud.CA()), "secret": azsim.DefaultClientSecret, "key": key}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, "azure-"+name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	conf := map[string]any{
		"version": 1, "cloud": "custom", "authority": s.cloud.URL(), "resourceManager": s.cloud.URL(), "storageSuffix": s.cloud.URL() + "/storage/{account}", "caFile": "azure-ca.pem",
		"tenant": azsim.DefaultTenant, "subscription": azsim.DefaultSubscription, "resourceGroup": azGroup, "network": "production",
		"credential": map[string]any{"kind": "secret", "clientId": azsim.DefaultClientID, "secretFile": "azure-secret"},
	}
	if warm {
		conf["storageAccount"], conf["container"], conf["storageKeyFile"] = azAccount, "warm", "azure-key"
	}
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	return s, os.WriteFile(s.config, text, 0o600)
}

func (*azureSite) kind() dr.FabricType { return dr.AzureSite }

func (s *azureSite) flags() []string {
	return []string{"--azure", s.config, "--dir", s.dir, "--run-dir", s.run}
}

func (s *azureSite) serial(_ context.Context, vm string) (string, error) {
	s.runner.mu.Lock()
	defer s.runner.mu.Unlock()
	if path := s.runner.serials[strings.ToLower(vm)]; path != "" {
		return path, nil
	}
	return "", fmt.Errorf("VM %s was never started", vm)
}

func (s *azureSite) stop() error {
	err := s.cloud.Close()
	if rerr := os.RemoveAll(s.run); err == nil {
		err = rerr
	}
	return err
}

// The architecture's own pair: a simulated Hyper-V host as the primary site, the
// store in Azure Blob Storage (Azurite), and Azure (simulated: its control plane, its
// disks, and guests that really run) as the recovery site, cold and with a warm replica.
func TestStoryToAzure(t *testing.T) {
	if testing.Short() {
		t.Skip("slow: boots real guests for minutes")
	}
	for _, warm := range []bool{false, true} {
		t.Run(map[bool]string{false: "cold", true: "warm"}[warm], func(t *testing.T) {
			blobs := azuritetest.Start(t)
			blobs.NewContainer(t, "vault")
			d := newDemo(t)
			d.hyperv = "primary"
			d.store = "azure://vault/demo?account=" + blobs.Account + "&endpoint=" + blobs.Endpoint + "&auth=emulator"
			var az *azureSite
			d.cloud = func(ctx context.Context, s *site) (err error) {
				az, err = newAzureSite(ctx, d.dir, warm)
				s.on = az
				return err
			}
			act := func(acts ...func(context.Context) error) {
				t.Helper()
				for _, act := range acts {
					if err := act(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			act(d.build, d.bringUp, d.register, d.protect)
			before := az.cloud.Resources()
			if warm {
				d.beginWarm(t)
			}
			act(d.replicate, d.drill)
			if after := az.cloud.Resources(); len(after) != len(before) {
				t.Errorf("the test failover left something: %d resources before, %d after: %+v", len(before), len(after), after)
			}
			act(d.disaster, d.prove, d.commit)
			t.Logf("RPO %.1f s, RTO %.1f s, ledger %+v", d.result.RPO, d.result.RTO, d.result.Ledger)
			uploads, managed := 0, 0
			for _, c := range az.cloud.Calls() {
				switch {
				case c.Method == "PUT" && strings.HasPrefix(c.Path, "/md/"):
					uploads++
				case strings.HasPrefix(c.Path, "/subscriptions/"):
					managed++
				}
			}
			if warm != (uploads == 0) {
				t.Errorf("warm replica: %v, requests that uploaded disks: %d", warm, uploads)
			}
			if managed > 1500 { // they are limited for the whole subscription
				t.Errorf("%d calls of the resource manager", managed)
			}
			kinds := map[string]int{}
			for _, c := range az.cloud.Calls() {
				kind := c.Method + " " + regexp.MustCompile(`^/subscriptions/[^/]+(/resourceGroups/[^/]+)?`).ReplaceAllString(c.Path, "")
				kinds[regexp.MustCompile(`[0-9a-f]{8}[-0-9a-z]*|ledger[-a-z0-9.]*`).ReplaceAllString(kind, "*")]++
			}
			for _, k := range slices.SortedFunc(maps.Keys(kinds), func(a, b string) int { return kinds[b] - kinds[a] })[:min(len(kinds), 12)] {
				t.Logf("%5d %s", kinds[k], k)
			}
		})
	}
}

// beginWarm switches the warm replica on and waits until it holds a point.
func (d *demo) beginWarm(t *testing.T) {
	t.Helper()
	on := true
	op, err := d.api.Items().Update(t.Context(), d.item, armwire.UpdateInput{}, armwire.UpdateDetails{WarmReplica: &on})
	d.must(t, "begin a warm replica", op, err)
	err = d.until(t.Context(), 3*time.Minute, "the warm replica to hold a point", func() (bool, error) {
		it, err := d.api.Items().Get(t.Context(), d.item)
		if err != nil || it.Properties.Warm == nil {
			return false, err
		}
		if p := it.Properties.Warm.Problem; p != "" {
			return false, fmt.Errorf("the warm replica: %s", p)
		}
		return it.Properties.Warm.Point != "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
