package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/bench/internal/image"
	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/replica"
	"holdfast/bench/internal/report"
	"holdfast/internal/azsim"
	"holdfast/internal/objstore/azure/azuritetest"
	"holdfast/internal/pageblob"
)

// The figures for Azure. No Azure is asked: all of them are of the simulator
// (azsim, in this process, by TLS) and of Microsoft's emulator Azurite (node, by
// TLS), on the same cores. They say what Holdfast asks for and what its own side
// costs; how fast Azure is, they can't say. What is measured: docs/performance.md,
// "Azure, on emulators".

// azureSizes of one run, in bytes where nothing else is said.
type azureSizes struct {
	Disk       int64 // of the VM
	Files      int64 // of the file system on it, 90 % full; the rest of the disk is holes
	Scattered  int   // writes of 4 KiB at random places
	Sequential int64 // one run of changes
	Churn      int64 // what the modelled guest writes in a second
	Cycles     int   // measured for each interval
	Limits     bool  // switch the published limits on; costs the time that they ask for
}

// BenchmarkAzure prints all figures:
//
//	go test ./bench -run '^$' -bench '^BenchmarkAzure$' -benchtime 1x -timeout 30m
func BenchmarkAzure(b *testing.B) {
	for b.Loop() {
		rep := azureFigures(b, azureSizes{Disk: 1 << 30, Files: 456 << 20, Scattered: 4096, Sequential: 256 << 20, Churn: 256 << 10, Cycles: 3, Limits: true})
		if err := rep.Table(os.Stdout); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAzureFigures takes every figure in small, so that none can rot, and checks what
// holds at any size.
func TestAzureFigures(t *testing.T) {
	if testing.Short() {
		t.Skip("takes many seconds on a busy machine")
	}
	rep := azureFigures(t, azureSizes{Disk: 64 << 20, Files: 28 << 20, Scattered: 40, Sequential: 4 << 20, Churn: 4 << 10, Cycles: 1, Limits: true})
	var areas []string
	for _, f := range rep.Figures {
		if len(areas) == 0 || areas[len(areas)-1] != f.Area {
			areas = append(areas, f.Area)
		}
		// An idle cut sends no page, a warm failover uploads nothing, and CPU time may be less than a tick.
		if math.IsNaN(f.Value) || math.IsInf(f.Value, 0) || f.Value < 0 || f.Unit == "" {
			t.Errorf("%s, %s: %v %q", f.Area, f.Name, f.Value, f.Unit)
		}
		if f.Met != nil && !*f.Met && !f.Wall {
			t.Errorf("%s, %s: %v %s misses its goal %v", f.Area, f.Name, f.Value, f.Unit, f.Goal)
		}
		t.Logf("%s | %s | %.4g %s | %v", f.Area, f.Name, f.Value, f.Unit, f.Peers)
	}
	want := []string{"hydrate into Azure, simulator", "hydrate into Azure, Azurite", "hydrate at the published limits, simulator", "memory of a hydrate",
		"warm replica, simulator", "warm replica, Azurite", "preparing a failover, simulator", "requests of a VM in a day, Azurite"}
	if !slices.Equal(areas, want) {
		t.Errorf("areas %q, want %q", areas, want)
	}
}

// azureBench carries what one figure leaves to the next.
type azureBench struct {
	tb   testing.TB
	ctx  context.Context
	size azureSizes
	rep  *report.Report
	tool tools
	dir  string
	disk string // the VM's
	src  *rawhost.Source
	r    *replica.Replica
	rng  *rand.Rand
	text []byte // what guests write: pieces of real files

	cloud   *azsim.Cloud
	sim     *azureService
	azurite *azureService
	peak    map[string]int64 // of processes, by what they did
}

// azureService is one emulator of the service.
type azureService struct {
	name      string
	container string // its address; page blobs go there
	account   string
	key       string // of the account, base64
	ca        []byte // PEM
	transport *http.Transport
}

func (s *azureService) access(tb testing.TB) pageblob.Config {
	key, err := blob.NewSharedKeyCredential(s.account, s.key)
	noErr(tb, err)
	return pageblob.Config{Key: key, Transport: s.transport}
}

func noErr(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// trusting is a transport that knows a certificate.
func trusting(ca []byte) *http.Transport {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.MaxIdleConnsPerHost, t.DisableCompression = nil, 32, true
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t
}

func newAzureBench(tb testing.TB, size azureSizes) *azureBench {
	a := &azureBench{tb: tb, ctx: tb.Context(), size: size, rng: rand.New(rand.NewPCG(1, 7)), peak: map[string]int64{}}
	var err error
	a.tool, err = findTools()
	noErr(tb, err)
	a.dir, err = os.MkdirTemp("/var/tmp", "holdfast-azbench-") // not /tmp, which may be memory
	noErr(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(a.dir) })
	noErr(tb, meter.EnoughSpace(a.dir, 10*size.Disk))
	return a
}

func azureFigures(tb testing.TB, size azureSizes) *report.Report {
	a := newAzureBench(tb, size)
	began := time.Now()
	a.rep = &report.Report{Format: report.Format, Version: version(), Date: began.UTC().Truncate(time.Second), Disk: size.Disk, Rows: []string{"azure"}, Row: "azure"}
	a.rep.Host = report.Host{Cores: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(), LoadBefore: meter.LoadAverage()}
	a.rep.Host.CPU, a.rep.Host.MemoryMiB = meter.Machine()
	for _, s := range []struct {
		name string
		fn   func()
	}{{"disk", a.makeDisk}, {"services", a.startServices}, {"hydrate", a.hydrates}, {"warm replica", a.warmReplica}, {"failover", a.failovers}, {"requests in a day", a.days}} {
		at := time.Now()
		s.fn()
		tb.Logf("%-18s %5.1f s, load average %.1f", s.name, time.Since(at).Seconds(), meter.LoadAverage()[0])
	}
	a.rep.Took, a.rep.Host.LoadAfter = time.Since(began).Seconds(), meter.LoadAverage()
	return a.rep
}

func (a *azureBench) add(f report.Figure) { a.rep.Add(f) }

// makeDisk makes the VM's disk and its replica: real files, 40 % of the disk, spread over it in
// pieces as file systems spread them.
func (a *azureBench) makeDisk() {
	files := filepath.Join(a.dir, "files.ext4")
	noErr(a.tb, image.Make(a.ctx, a.tool.mkfs, files, a.size.Files, 1))
	a.disk = filepath.Join(a.dir, "disk.raw")
	noErr(a.tb, rawhost.CreateSparse(a.disk, a.size.Disk))
	from, err := os.Open(files)
	noErr(a.tb, err)
	defer from.Close()
	to, err := os.OpenFile(a.disk, os.O_WRONLY, 0)
	noErr(a.tb, err)
	defer to.Close()
	const piece, grain = 4 << 20, 64 << 10
	n := a.size.Files / piece
	p, zero := make([]byte, grain), make([]byte, grain)
	for i := range n {
		at := i * (a.size.Disk / n) &^ (grain - 1)
		for off := int64(0); off < piece; off += grain {
			_, err := from.ReadAt(p, i*piece+off)
			noErr(a.tb, err)
			if bytes.Equal(p, zero) {
				continue
			}
			a.text = append(a.text, p...)
			_, err = to.WriteAt(p, at+off)
			noErr(a.tb, err)
		}
	}
	a.text = a.text[:min(len(a.text), 64<<20)]
	noErr(a.tb, os.Remove(files))
	a.src, err = rawhost.Open(a.disk)
	noErr(a.tb, err)
	a.tb.Cleanup(func() { _ = a.src.Close() })
	a.r, err = replica.Start(a.ctx, filepath.Join(a.dir, "replica"), a.src)
	noErr(a.tb, err)
	a.tb.Cleanup(func() {
		if err := a.r.Stop(); err != nil && !errors.Is(err, context.Canceled) {
			a.tb.Error(err)
		}
	})
}

// write is the guest's: n bytes of real files at off.
func (a *azureBench) write(src *rawhost.Source, off, n int64) {
	for n > 0 {
		k := min(n, 64<<10)
		from := a.rng.IntN(len(a.text)-int(k)) | 1 // never what is there already
		noErr(a.tb, src.Write(a.text[from:from+int(k)], off))
		off, n = off+k, n-k
	}
}

// startServices starts the simulator and Azurite, each with a container for page blobs.
func (a *azureBench) startServices() {
	dir := filepath.Join(a.dir, "cloud")
	noErr(a.tb, os.Mkdir(dir, 0o700))
	a.cloud = azsim.New(azsim.Config{Dir: dir})
	noErr(a.tb, a.cloud.Start(a.ctx))
	a.tb.Cleanup(func() { _ = a.cloud.Close() })
	a.cloud.AddVNet("dr", "prod", "10.1.0.0/16", map[string]string{"web": "10.1.1.0/24"})
	a.sim = &azureService{name: "simulator", account: "warmacct", key: a.cloud.AddStorageAccount("dr", "warmacct"), ca: a.cloud.CA()}
	a.sim.container = a.cloud.URL() + "/storage/warmacct/warm"
	e := azuritetest.StartTLS(a.tb)
	a.azurite = &azureService{name: "Azurite", account: e.Account, key: e.Key, ca: e.CA, container: e.Endpoint + "/warm"}
	for _, s := range []*azureService{a.sim, a.azurite} {
		s.transport = trusting(s.ca)
		a.tb.Cleanup(s.transport.CloseIdleConnections)
		key, err := azblob.NewSharedKeyCredential(s.account, s.key)
		noErr(a.tb, err)
		o := &container.ClientOptions{}
		o.Transport = &http.Client{Transport: s.transport}
		cc, err := container.NewClientWithSharedKeyCredential(s.container, key, o)
		noErr(a.tb, err)
		_, err = cc.Create(a.ctx, nil)
		noErr(a.tb, err)
	}
}

// pageBlob makes an empty page blob for the disk and returns its address.
func (a *azureBench) pageBlob(s *azureService, name string) string {
	c, err := pageblob.Open(s.container+"/"+name, s.access(a.tb))
	noErr(a.tb, err)
	defer c.Close()
	_, err = c.Create(a.ctx, a.size.Disk+512, 0, nil, pageblob.If{})
	noErr(a.tb, err)
	return c.URL()
}

// managedDisk makes a managed disk of the simulator and returns its upload address.
func (a *azureBench) managedDisk(name string) string {
	pages := a.cloud.Pages()
	noErr(a.tb, pages.Create(name, a.size.Disk+512))
	query, err := pages.Grant(name, true, time.Now().Add(time.Hour))
	noErr(a.tb, err)
	return fmt.Sprintf("%s/md/%s?%s", a.cloud.URL(), name, query)
}
