package azsim_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/azsim"
)

func emptyDisk() armcompute.Disk {
	return armcompute.Disk{Location: to.Ptr("westeurope"), Properties: &armcompute.DiskProperties{DiskSizeGB: to.Ptr(int32(1)),
		CreationData: &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionEmpty)}}}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	fired := func(i *azsim.Injected, n int) {
		t.Helper()
		if i.Fired() != n {
			t.Errorf("fired %d times, want %d", i.Fired(), n)
		}
	}
	throttle := w.Fault(azsim.Fault{Method: "PUT", Path: "/disks/", Status: 429, RetryAfter: 3 * time.Second})
	_, err := w.disk("a")
	want(t, err, 429, "TooManyRequests")
	fired(throttle, 1)

	lost := w.Fault(azsim.Fault{Method: "PUT", Path: "/disks/lost", Lost: true})
	if _, err := w.disks.BeginCreateOrUpdate(w.ctx(), group, "lost", emptyDisk(), nil); err == nil {
		t.Error("the answer was not lost")
	}
	fired(lost, 1)
	if err := w.Settle(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if d := must(w.disks.Get(w.ctx(), group, "lost", nil))(t); *d.Properties.ProvisioningState != "Succeeded" {
		t.Errorf("what was accepted did not happen: %s", *d.Properties.ProvisioningState)
	}

	unsent := w.Fault(azsim.Fault{Method: "PUT", Path: "/disks/unsent", Unsent: true})
	if _, err := w.disks.BeginCreateOrUpdate(w.ctx(), group, "unsent", emptyDisk(), nil); err == nil {
		t.Error("the connection was not cut")
	}
	fired(unsent, 1)
	_, err = w.disks.Get(w.ctx(), group, "unsent", nil)
	want(t, err, 404, "ResourceNotFound")

	second := w.Fault(azsim.Fault{Method: "DELETE", Path: "/disks/", Nth: 2, Operation: true, Code: "InternalOperationError", Message: "It broke."})
	for _, n := range []string{"x", "y"} {
		must(w.disk(n))(t)
	}
	if err := w.remove(id("Microsoft.Compute/disks", "x")); err != nil {
		t.Error(err)
	}
	want(t, w.remove(id("Microsoft.Compute/disks", "y")), 0, "InternalOperationError")
	fired(second, 1)
	if d := must(w.disks.Get(w.ctx(), group, "y", nil))(t); *d.Properties.ProvisioningState != "Failed" {
		t.Errorf("after a delete that failed: %s", *d.Properties.ProvisioningState)
	}

	alloc := w.Fault(azsim.Fault{Method: "PUT", Path: "/virtualMachines/", Operation: true, Code: "AllocationFailed", Message: "Allocation failed."})
	_, err = w.simpleVM("vm")
	want(t, err, 0, "AllocationFailed")
	fired(alloc, 1)
	if v, ok := w.VM(id("Microsoft.Compute/virtualMachines", "vm")); !ok || v.Starts != 0 {
		t.Errorf("after a create that failed: %v %+v", ok, v)
	}
	if err := w.remove(id("Microsoft.Compute/virtualMachines", "vm")); err != nil {
		t.Error(err)
	}

	must(w.disk("sas"))(t)
	sas := must(w.access("sas", armcompute.AccessLevelRead))(t)
	data := w.Fault(azsim.Fault{Method: "GET", Path: "^/md/", Status: 503, Code: "ServerBusy"})
	_, err = w.download(sas, 0, 512)
	want(t, err, 503, "ServerBusy")
	fired(data, 1)
	must(w.download(sas, 0, 512))(t)
	token := w.Fault(azsim.Fault{Path: "/oauth2/v2.0/token$", Status: 500, Times: -1})
	w.cred = w.secret(azsim.DefaultTenant, azsim.DefaultClientID, azsim.DefaultClientSecret)
	w.clients()
	if _, err := w.disks.Get(w.ctx(), group, "y", nil); err == nil || token.Fired() == 0 {
		t.Errorf("sign-in went well, fault fired %d times", token.Fired())
	}
	token.Remove()
	must(w.disks.Get(w.ctx(), group, "y", nil))(t)

	for _, c := range w.Calls() {
		if strings.Contains(c.Path, "sig=") || strings.Contains(c.Path, azsim.DefaultClientSecret) {
			t.Errorf("a secret is in the transcript: %v", c)
		}
	}
	calls := w.Calls()
	if i := slices.IndexFunc(calls, func(c azsim.Call) bool { return strings.HasSuffix(c.Path, "/disks/lost") && c.Method == "PUT" }); i < 0 || calls[i].Status != 0 || calls[i].APIVersion == "" {
		t.Errorf("the lost call is not in the transcript, or wrong: %d", i)
	}
}

// TestPolling looks at a long-running operation as it goes over the wire.
func TestPolling(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	token := must(w.cred.GetToken(w.ctx(), tokenOptions{Scopes: []string{w.URL() + "/.default"}}))(t)
	do := func(method, url, body string) (*http.Response, map[string]any) {
		t.Helper()
		req := must(http.NewRequestWithContext(w.ctx(), method, url, strings.NewReader(body)))(t)
		req.Header.Set("Authorization", "Bearer "+token.Token)
		res := must(w.http.Do(req))(t)
		defer res.Body.Close()
		raw := must(io.ReadAll(res.Body))(t)
		var doc map[string]any
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &doc); err != nil {
				t.Fatal(err)
			}
		}
		return res, doc
	}
	at := w.URL() + id("Microsoft.Compute/disks", "d") + "?api-version=2099-01-01"
	res, doc := do("PUT", at, `{"location":"West Europe","tags":{"a":"b"},"future":{"x":1},"properties":{"creationData":{"createOption":"Empty"},"diskSizeGB":1,"novel":true}}`)
	async, loc := res.Header.Get("Azure-AsyncOperation"), res.Header.Get("Location")
	if res.StatusCode != 202 || async == "" || loc == "" || res.Header.Get("Retry-After") != "0" || doc["properties"].(map[string]any)["provisioningState"] != "Creating" {
		t.Fatalf("PUT: %d %v %v", res.StatusCode, res.Header, doc)
	}
	if err := w.Settle(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if _, doc := do("GET", async, ""); doc["status"] != "InProgress" {
		t.Errorf("first poll: %v", doc)
	}
	if _, doc := do("GET", async, ""); doc["status"] != "Succeeded" || doc["endTime"] == nil {
		t.Errorf("second poll: %v", doc)
	}
	if res, doc := do("GET", loc, ""); res.StatusCode != 200 || doc["name"] != "d" {
		t.Errorf("result: %d %v", res.StatusCode, doc)
	}
	_, doc = do("GET", at, "")
	props := doc["properties"].(map[string]any)
	if doc["location"] != "westeurope" || doc["future"] == nil || props["novel"] != true || props["provisioningState"] != "Succeeded" || doc["type"] != "Microsoft.Compute/disks" {
		t.Errorf("document: %v", doc)
	}
	if res, _ := do("GET", strings.TrimSuffix(at, "?api-version=2099-01-01"), ""); res.StatusCode != 400 {
		t.Errorf("without api-version: %d", res.StatusCode)
	}
	if res, doc := do("GET", w.URL()+"/subscriptions/"+azsim.DefaultSubscription+"/resourceGroups/rg/providers/Microsoft.Authorization/permissions?api-version=2022-04-01", ""); res.StatusCode != 200 || len(doc["value"].([]any)) != 1 {
		t.Errorf("permissions: %v", doc)
	}
	w.AddLock(w.AddGroup(group))
	if _, doc := do("GET", w.URL()+"/subscriptions/"+azsim.DefaultSubscription+"/resourceGroups/rg/providers/Microsoft.Authorization/locks?api-version=2016-09-01", ""); len(doc["value"].([]any)) != 1 {
		t.Errorf("locks: %v", doc)
	}
	w.SkewClock(20 * time.Minute)
	res, _ = do("GET", at, "")
	if date := must(http.ParseTime(res.Header.Get("Date")))(t); time.Until(date) < 19*time.Minute {
		t.Errorf("Date is %v", date)
	}
	w.SkewClock(2 * time.Hour)
	if res, doc := do("GET", at, ""); res.StatusCode != 401 {
		t.Errorf("a token that is over: %d %v", res.StatusCode, doc)
	}
}

// guest is a Runner whose guests obey or don't.
type guest struct {
	mu   sync.Mutex
	deaf bool
	all  []*running
	fail error
}

type running struct {
	m      azsim.Machine
	deaf   bool
	done   chan struct{}
	once   sync.Once
	killed bool
}

func (g *guest) Start(_ context.Context, m azsim.Machine) (azsim.Running, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return nil, g.fail
	}
	r := &running{m: m, deaf: g.deaf, done: make(chan struct{})}
	g.all = append(g.all, r)
	return r, os.WriteFile(m.Serial, []byte("login: "), 0o600)
}

func (g *guest) last() *running {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all[len(g.all)-1]
}

func (r *running) Powerdown(context.Context) error {
	if !r.deaf {
		r.once.Do(func() { close(r.done) })
	}
	return nil
}
func (r *running) Screenshot(context.Context) ([]byte, error) { return []byte("\x89PNG picture"), nil }
func (r *running) Done() <-chan struct{}                      { return r.done }
func (r *running) Kill() error {
	r.once.Do(func() { r.killed = true; close(r.done) })
	return nil
}

func TestGuests(t *testing.T) {
	t.Parallel()
	g := &guest{}
	w := newWorld(t, azsim.Config{Runner: g, Shutdown: 50 * time.Millisecond})
	vm := must(w.simpleVM("vm"))(t)
	at := *vm.ID
	first := g.last()
	if first.m.ID != *vm.Properties.VMID || len(first.m.Disks) != 1 || !first.m.Disks[0].OS || len(first.m.NICs) != 1 || !first.m.NICs[0].Primary || len(first.m.NICs[0].MAC) != 12 {
		t.Errorf("machine: %+v", first.m)
	}
	if err := first.m.Disks[0].Device.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	get := func(url string) (int, string) {
		t.Helper()
		res := must(w.http.Get(url))(t)
		defer res.Body.Close()
		return res.StatusCode, string(must(io.ReadAll(res.Body))(t))
	}
	data := must(w.vms.RetrieveBootDiagnosticsData(w.ctx(), group, "vm", nil))(t)
	if status, body := get(*data.SerialConsoleLogBlobURI); status != 200 || body != "login: " {
		t.Errorf("serial log: %d %q", status, body)
	}
	if status, body := get(*data.ConsoleScreenshotBlobURI); status != 200 || body != "\x89PNG picture" {
		t.Errorf("screenshot: %d %q", status, body)
	}
	if status, _ := get(strings.Replace(*data.ConsoleScreenshotBlobURI, "sig=", "sig=x", 1)); status != 403 {
		t.Errorf("screenshot with a wrong signature: %d", status)
	}
	power := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			v, _ := w.VM(at)
			if v.Power == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("power is %s, want %s", v.Power, want)
			}
		}
	}
	first.once.Do(func() { close(first.done) }) // the guest shuts itself down
	power("stopped")
	start := func() {
		t.Helper()
		p, err := w.vms.BeginStart(w.ctx(), group, "vm", nil)
		must(wait(w.ctx(), p, err))(t)
		power("running")
	}
	start()
	p, err := w.vms.BeginPowerOff(w.ctx(), group, "vm", nil)
	must(wait(w.ctx(), p, err))(t)
	if power("stopped"); g.last().killed {
		t.Error("a guest that obeys was killed")
	}
	g.mu.Lock()
	g.deaf = true
	g.mu.Unlock()
	start()
	p, err = w.vms.BeginPowerOff(w.ctx(), group, "vm", nil)
	must(wait(w.ctx(), p, err))(t)
	if power("stopped"); !g.last().killed {
		t.Error("a guest that does not obey was not killed")
	}
	start()
	p, err = w.vms.BeginPowerOff(w.ctx(), group, "vm", &armcompute.VirtualMachinesClientBeginPowerOffOptions{SkipShutdown: to.Ptr(true)})
	must(wait(w.ctx(), p, err))(t)
	power("stopped")
	g.mu.Lock()
	g.fail = os.ErrPermission
	g.mu.Unlock()
	s, err := w.vms.BeginStart(w.ctx(), group, "vm", nil)
	_, err = wait(w.ctx(), s, err)
	want(t, err, 0, "VMStartTimedOut")
	g.mu.Lock()
	g.fail = nil
	g.mu.Unlock()
	start()
	last := g.last()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-last.done:
	default:
		t.Error("a guest outlived Close")
	}
}
