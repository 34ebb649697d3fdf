package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/report"
	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/hydrate"
	"holdfast/internal/nbd"
	"holdfast/internal/pageblob"
)

// uploadRequest is what an uploading process is told. Key is the emulator's.
type uploadRequest struct {
	Socket, Export string
	Address        string
	Account, Key   string // empty: the address is signed
	CA             []byte
	Rate           int64 // of pageblob.Options
	Requests       int
	Answer         string // file
}

// uploadAnswer is what it says at its end. Usage is of the upload alone, Peak of the process.
type uploadAnswer struct {
	Result    pageblob.Result
	Sent      int64
	Throttled int64
	CPU, Wall time.Duration
	Peak      int64
}

// uploadVariable names the file with the request of a process that uploads.
const uploadVariable = "HOLDFAST_BENCH_AZURE_UPLOAD"

// TestAzureUploadProcess is no test: it is the process that uploads, as the agent of
// the recovery site does, so that CPU time and memory are its own.
func TestAzureUploadProcess(t *testing.T) {
	path := os.Getenv(uploadVariable)
	if path == "" {
		return
	}
	raw, err := os.ReadFile(path)
	noErr(t, err)
	var q uploadRequest
	noErr(t, json.Unmarshal(raw, &q))
	a, err := uploadChild(t.Context(), q)
	noErr(t, err)
	raw, err = json.Marshal(a)
	noErr(t, err)
	noErr(t, os.WriteFile(q.Answer, raw, 0o600))
}

func uploadChild(ctx context.Context, q uploadRequest) (a uploadAnswer, err error) {
	src, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: q.Socket, Export: q.Export, Contexts: []string{nbd.ContextAllocation}})
	if err != nil {
		return a, err
	}
	defer src.Close()
	cfg := pageblob.Config{Transport: trusting(q.CA)}
	if q.Account != "" {
		if cfg.Key, err = blob.NewSharedKeyCredential(q.Account, q.Key); err != nil {
			return a, err
		}
	}
	c, err := pageblob.Open(q.Address, cfg)
	if err != nil {
		return a, err
	}
	defer c.Close()
	u, err := meter.Self(func() (err error) {
		a.Result, err = pageblob.Upload(ctx, c, pageblob.FromNBD(src), pageblob.Options{Rate: q.Rate, Requests: q.Requests})
		return err
	})
	if err != nil {
		return a, err
	}
	n := c.Count()
	a.CPU, a.Wall, a.Sent, a.Throttled = u.CPU, u.Wall, n.Sent, n.Throttled
	a.Peak, err = meter.PeakRSS()
	return a, err
}

// serving is the recovery point in a process of its own, as the agent serves it.
func (a *azureBench) serving() *server {
	dir, err := os.MkdirTemp("/tmp", "hfaz") // a socket's path is short
	noErr(a.tb, err)
	key, err := a.r.Key.Text()
	noErr(a.tb, err)
	cmd, err := childCommand(a.ctx, "serve", serveRequest{Bucket: a.r.Dir, Machine: a.r.Machine, Key: key, N: a.r.Tip(), Dir: dir})
	noErr(a.tb, err)
	s, err := startServer(cmd, dir, filepath.Join(dir, hydrate.SocketName), rawhost.DiskID)
	noErr(a.tb, err)
	return s
}

// peakOf is the most memory that a running process has had resident, bytes.
func peakOf(tb testing.TB, pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	noErr(tb, err)
	_, rest, _ := strings.Cut(string(raw), "VmHWM:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		tb.Fatalf("process %d has no VmHWM", pid)
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	noErr(tb, err)
	return n << 10
}

// uploaded is one hydrate: the uploading process, and the CPU time of the serving one.
type uploaded struct {
	uploadAnswer
	serve time.Duration
}

// upload fills the blob or disk at address from s.
func (a *azureBench) upload(s *server, svc *azureService, address string, signed bool, rate int64, requests int) uploaded {
	q := uploadRequest{Socket: s.socket, Export: s.export, Address: address, CA: svc.ca, Rate: rate, Requests: requests, Answer: filepath.Join(a.dir, "answer.json")}
	if !signed {
		q.Account, q.Key = svc.account, svc.key
	}
	raw, err := json.Marshal(q)
	noErr(a.tb, err)
	ask := filepath.Join(a.dir, "ask.json")
	noErr(a.tb, os.WriteFile(ask, raw, 0o600))
	exe, err := os.Executable()
	noErr(a.tb, err)
	before, err := meter.ProcessCPU(s.pid())
	noErr(a.tb, err)
	cmd := exec.CommandContext(a.ctx, exe, "-test.run", "^TestAzureUploadProcess$", "-test.timeout", "20m")
	cmd.Env = append(os.Environ(), uploadVariable+"="+ask)
	if out, err := cmd.CombinedOutput(); err != nil {
		a.tb.Fatalf("the uploading process failed: %v\n%s", err, out)
	}
	after, err := meter.ProcessCPU(s.pid())
	noErr(a.tb, err)
	raw, err = os.ReadFile(q.Answer)
	noErr(a.tb, err)
	noErr(a.tb, os.Remove(q.Answer))
	u := uploaded{serve: after - before}
	noErr(a.tb, json.Unmarshal(raw, &u.uploadAnswer))
	a.peak["uploading process"] = max(a.peak["uploading process"], u.Peak)
	return u
}

// same fails unless the blob is the recovery point, every byte.
func (a *azureBench) same(s *server, svc *azureService, address string, signed bool) {
	src, err := nbd.Dial(a.ctx, nbd.ClientConfig{Network: "unix", Address: s.socket, Export: s.export, Contexts: []string{nbd.ContextAllocation}})
	noErr(a.tb, err)
	defer src.Close()
	cfg := svc.access(a.tb)
	if signed {
		cfg.Key = nil
	}
	c, err := pageblob.Open(address, cfg)
	noErr(a.tb, err)
	defer c.Close()
	noErr(a.tb, pageblob.Verify(a.ctx, c, pageblob.FromNBD(src), 1))
}

// convert is what people have instead: the same served point to a raw file.
func (a *azureBench) convert(s *server) meter.Usage {
	out := filepath.Join(a.dir, "converted.raw")
	u, err := meter.Command(a.ctx, a.tool.qemuImg, "convert", "-m", "8", "-W", "-t", "writeback", "-f", "raw", "-O", "raw", s.uri(), out)
	noErr(a.tb, errors.Join(err, os.Remove(out)))
	return u
}

// unlimited as Options.Rate and Options.Requests.
const unlimited = -1

func (a *azureBench) hydrates() {
	s := a.serving()
	defer func() { _, err := s.stop(); noErr(a.tb, err) }()
	a.convert(s) // the first to read and to write pays for memory and caches
	raw := a.convert(s)
	blobU := a.upload(s, a.sim, a.pageBlob(a.sim, "cold.vhd"), false, unlimited, unlimited)
	a.same(s, a.sim, a.sim.container+"/cold.vhd", false)
	address := a.managedDisk("cold")
	diskU := a.upload(s, a.sim, address, true, unlimited, unlimited)
	a.same(s, a.sim, address, true)
	azU := a.upload(s, a.azurite, a.pageBlob(a.azurite, "cold.vhd"), false, unlimited, unlimited)
	a.same(s, a.azurite, a.azurite.container+"/cold.vhd", false)

	a.hydrated("hydrate into Azure, simulator", raw, diskU, "page blob", &blobU)
	a.hydrated("hydrate into Azure, Azurite", raw, azU, "", nil)
	if a.size.Limits {
		a.limited(s)
	}
	a.peak["serving process"] = peakOf(a.tb, s.pid())
	const area = "memory of a hydrate"
	for _, who := range []string{"uploading process", "serving process"} {
		a.add(report.Figure{Area: area, Name: "peak RSS, " + who, Value: report.MiB(a.peak[who]), Unit: "MiB", Goal: report.AtMost(256), Note: "mapped files count; the greatest of all uploads"})
	}
}

// hydrated files the figures of u, a managed disk where there are two, and of other beside it.
func (a *azureBench) hydrated(area string, raw meter.Usage, u uploaded, name string, other *uploaded) {
	add := func(what, unit string, wall bool, note string, v func(uploaded) float64, peers report.Peers) {
		if other != nil {
			peers = append(report.Beside(name, v(*other)), peers...)
		}
		a.add(report.Figure{Area: area, Name: what, Value: v(u), Unit: unit, Wall: wall, Peers: peers, Note: note})
	}
	note := ""
	if other != nil {
		note = "a managed disk by its upload address; nothing limits"
	}
	size := a.size.Disk
	add("throughput, disk", "MB/s", true, note, func(u uploaded) float64 { return report.MBps(size, u.Wall) }, report.Beside("qemu-img NBD→raw file", report.MBps(size, raw.Wall)))
	add("throughput, bytes written", "MB/s", true, "", func(u uploaded) float64 { return report.MBps(u.Result.Written, u.Wall) }, nil)
	add("time / qemu-img NBD→raw file", "×", true, "", func(u uploaded) float64 { return u.Wall.Seconds() / raw.Wall.Seconds() }, nil)
	add("bytes written / disk", "×", false, "", func(u uploaded) float64 { return float64(u.Result.Written) / float64(size) }, nil)
	add("requests", "requests", false, "", func(u uploaded) float64 { return float64(u.Result.Requests) }, nil)
	add("bytes of a request", "KiB", false, "", func(u uploaded) float64 { return float64(u.Result.Written) / 1024 / float64(u.Result.Requests) }, nil)
	add("requests each second", "requests/s", true, "", func(u uploaded) float64 { return float64(u.Result.Requests) / u.Wall.Seconds() }, nil)
	add("CPU of the uploading process", "cpu-s/GiB", false, "of disk; TLS, MD5, signatures; the emulator's is not in it", func(u uploaded) float64 { return report.PerGiB(u.CPU, size) },
		report.Beside("qemu-img NBD→raw file", report.PerGiB(raw.CPU, size)))
	add("CPU of the serving process", "cpu-s/GiB", false, "reads the cuts, decrypts, decompresses, verifies", func(u uploaded) float64 { return report.PerGiB(u.serve, size) }, nil)
}

// limited hydrates against the published limits of one page blob.
func (a *azureBench) limited(s *server) {
	pages := a.cloud.Pages()
	limits := pagestore.PublishedLimits()
	pages.Limit(limits)
	paced := a.upload(s, a.sim, a.managedDisk("paced"), true, 0, 0)
	pages.Limit(limits)
	wild := a.upload(s, a.sim, a.managedDisk("wild"), true, unlimited, unlimited)
	pages.Limit(pagestore.Limits{})
	const area = "hydrate at the published limits, simulator"
	share := func(u uploaded) float64 {
		return float64(u.Result.Written) / u.Wall.Seconds() / float64(limits.BytesPerSecond)
	}
	// Within one second's worth nothing is limited.
	goal := report.AtLeast(0.9)
	a.add(report.Figure{Area: area, Name: "bytes written each second / 60 MiB", Value: share(paced), Unit: "×", Goal: goal, Wall: true, Peers: report.Beside("without pacing of one's own", share(wild)),
		Note: "60 MiB/s and 500 requests/s for one disk; a burst of one second's worth passes, so it can be above 1"})
	a.add(report.Figure{Area: area, Name: "requests each second / 500", Value: float64(paced.Result.Requests) / paced.Wall.Seconds() / float64(limits.RequestsPerSecond), Unit: "×", Wall: true})
	a.add(report.Figure{Area: area, Name: "throughput, disk", Value: report.MBps(a.size.Disk, paced.Wall), Unit: "MB/s", Wall: true, Peers: report.Beside("without pacing of one's own", report.MBps(a.size.Disk, wild.Wall))})
	a.add(report.Figure{Area: area, Name: "answers 503", Value: float64(paced.Throttled), Unit: "answers", Peers: report.Beside("without pacing of one's own", float64(wild.Throttled))})
	a.add(report.Figure{Area: area, Name: "requests", Value: float64(paced.Result.Requests), Unit: "requests", Peers: report.Beside("without pacing of one's own", float64(wild.Result.Requests))})
}
