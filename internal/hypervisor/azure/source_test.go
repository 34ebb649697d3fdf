package azure_test

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/azsim"
	"holdfast/internal/azsim/pagestore"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/hypervisortest"
	"holdfast/internal/nbd"
)

// app is a VM in Azure with two disks that read as zeroes, whose guest is the test.
type app struct {
	*stage
	h     *azure.Host
	arm   *arm.Session
	id    dr.VMID
	name  string
	disks map[string]string // disk → name of the managed disk
}

func (s *stage) session() *arm.Session {
	s.t.Helper()
	a, err := arm.Open(s.t.Context(), s.cfg, arm.Options{PollEvery: time.Millisecond, RetryDelay: time.Millisecond})
	ok(s.t, err)
	s.t.Cleanup(func() { ok(s.t, a.Close()) })
	return a
}

func (s *stage) guest(h *azure.Host, name string) *app {
	s.t.Helper()
	p := newPoint(s.t, map[string]int{"vda": 20 * mib, "vdb": 20 * mib})
	for _, d := range p.devices {
		clear(d.data)
	}
	id, err := h.Boot(s.t.Context(), p.spec(name))
	ok(s.t, err)
	p.stop()
	return &app{stage: s, h: h, arm: s.session(), id: id, name: name, disks: map[string]string{"vda": name + "-os", "vdb": name + "-data-0"}}
}

// device is what the guest sees of a disk.
func (g *app) device(t testing.TB, disk string) nbd.WritableDevice {
	t.Helper()
	v, found := g.cloud.VM(g.stage.id(arm.TypeVM, g.name))
	if !found {
		t.Fatalf("there is no VM %s", g.name)
	}
	for _, d := range v.Machine.Disks {
		if d.Name == g.disks[disk] {
			return d.Device
		}
	}
	t.Fatalf("VM %s has no disk %s", g.name, disk)
	return nil
}

func (g *app) write(t testing.TB, disk string, off int64, p []byte) {
	t.Helper()
	ok(t, g.device(t, disk).WriteAt(t.Context(), p, off))
}

// change changes the VM's resource.
func (g *app) change(t testing.TB, fn func(*armcompute.StorageProfile)) {
	t.Helper()
	r, err := g.arm.VMs.Get(t.Context(), "dr", g.name, nil)
	ok(t, err)
	fn(r.Properties.StorageProfile)
	p, err := g.arm.VMs.BeginCreateOrUpdate(t.Context(), "dr", g.name, armcompute.VirtualMachine{Location: r.Location, Tags: r.Tags, Properties: r.Properties}, nil)
	_, err = arm.Wait(t.Context(), g.arm, "test", g.name, p, err)
	ok(t, err)
}

// newDisk makes an empty managed disk of any size.
func (g *app) newDisk(t testing.TB, name, disk string, size int64) string {
	t.Helper()
	tags := map[string]any{}
	if disk != "" {
		tags = map[string]any{arm.TagOwner: "holdfast:" + g.name, "holdfast-disk": disk}
	}
	id := g.cloud.Add("dr", arm.TypeDisk, name, map[string]any{"location": "westeurope", "tags": tags, "properties": map[string]any{"diskSizeGB": 1, "hyperVGeneration": "V2", "osType": "Linux", "creationData": map[string]any{"createOption": "Empty"}}})
	ok(t, g.cloud.Pages().Delete(g.cloud.Page(id)))
	ok(t, g.cloud.Pages().Create(g.cloud.Page(id), size))
	return id
}

// points lists the restore points of the VM that are Holdfast's.
func (g *app) points() (out []string) {
	for _, r := range g.cloud.Resources() {
		if _, p, found := strings.Cut(r.ID, "/restorePoints/"); found && strings.Contains(r.ID, string(g.id)) && !strings.Contains(p, "/") && strings.HasPrefix(p, "hf-") {
			out = append(out, p)
		}
	}
	return out
}

// gate is a connection on which nothing passes while it is shut.
type gate struct {
	base http.RoundTripper
	mu   sync.Mutex
	shut chan struct{}
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut != nil {
		select {
		case <-shut:
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	return g.base.RoundTrip(r)
}

func (g *gate) close() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	shut := make(chan struct{})
	g.shut = shut
	return func() {
		g.mu.Lock()
		g.shut = nil
		g.mu.Unlock()
		close(shut)
	}
}

func sourceFixture(t *testing.T) *hypervisortest.Fixture {
	t.Parallel()
	s := newStage(t)
	c, door := &cord{}, &gate{}
	c.after.Store(-1)
	h := s.host(func(ac *azure.Config, ao *arm.Options) {
		c.wrap(t, s, ac, ao)
		door.base = c.base
		ao.HTTP, ac.Transport, ao.Retries, ac.UndoTimeout = &http.Client{Transport: door}, door, 2, 30*time.Second
	})
	g, other := s.guest(h, "app"), s.guest(h, "db")
	swaps := 0
	return &hypervisortest.Fixture{
		Host: h, VM: g.id, Disks: []string{"vda", "vdb"}, Other: other.id, Dir: t.TempDir(), NewDisk: "lun1",
		SurvivesStop: true, GrowIsWhole: true, KeepsOnCrash: true, StaleReads: true, BootCopies: true,
		Write:      g.write,
		WriteOther: func(t testing.TB, off int64, p []byte) { other.write(t, "vda", off, p) },
		Trim:       func(t testing.TB, disk string, off, n int64) { ok(t, g.device(t, disk).Trim(t.Context(), off, n)) },
		Grow: func(t testing.TB, disk string, size int64) {
			ok(t, s.cloud.Pages().Resize(s.cloud.Page(s.id(arm.TypeDisk, g.disks[disk])), size))
		},
		Crash:     func(t testing.TB) { ok(t, h.Destroy(t.Context(), g.id)) },
		PowerOff:  func(t testing.TB) { ok(t, h.Shutdown(t.Context(), g.id)) },
		Successor: func(t testing.TB) hypervisor.Host { return s.host() },
		Hang:      func(t testing.TB) func() { return door.close() },
		ForeignToken: func(t testing.TB) func() bool {
			id := s.cloud.Add("dr", arm.TypeRestoreCollection, "theirs", map[string]any{"location": "westeurope", "properties": map[string]any{"source": map[string]any{"id": s.id(arm.TypeVM, "app")}}})
			return func() bool { return slices.Contains(s.resources(), id) }
		},
		AddDisk: func(t testing.TB, disk string, size int64) {
			g.disks[disk] = "added"
			id := g.newDisk(t, "added", "", size)
			g.change(t, func(sp *armcompute.StorageProfile) {
				sp.DataDisks = append(sp.DataDisks, &armcompute.DataDisk{Lun: to.Ptr(int32(1)), CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), ManagedDisk: &armcompute.ManagedDiskParameters{ID: &id}})
			})
		},
		RemoveDisk: func(t testing.TB, disk string) {
			g.change(t, func(sp *armcompute.StorageProfile) { sp.DataDisks = sp.DataDisks[:1] })
		},
		Replace: func(t testing.TB, disk string, size int64) {
			swaps++
			name := "swap-" + string(rune('a'+swaps))
			g.disks[disk] = name
			id := g.newDisk(t, name, disk, size)
			ok(t, h.Shutdown(t.Context(), g.id))
			g.change(t, func(sp *armcompute.StorageProfile) {
				if disk == "vda" {
					sp.OSDisk.ManagedDisk = &armcompute.ManagedDiskParameters{ID: &id}
				} else {
					sp.DataDisks[0].ManagedDisk = &armcompute.ManagedDiskParameters{ID: &id}
				}
			})
			ok(t, h.Start(t.Context(), g.id))
		},
		Tracking: func(t testing.TB) []string { return g.points() },
	}
}

// A VM in Azure is a source by the same contract as any other.
func TestSourceConforms(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes more than 5 s")
	}
	hypervisortest.RunSource(t, sourceFixture)
}

func (g *app) begin(t testing.TB, base, tag string) hypervisor.Cut {
	t.Helper()
	c, err := g.h.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda", "vdb"}, Base: base, Tag: tag})
	ok(t, err)
	return c
}

// copied takes the changed ranges of a cut over into a replica.
func copied(t testing.TB, c hypervisor.Cut, disk string, replica []byte) (changed int64) {
	t.Helper()
	ok(t, c.Extents(t.Context(), disk, 0, int64(len(replica)), func(r hypervisor.Range) error {
		if !r.Changed {
			return nil
		}
		changed += r.Len
		return c.ReadAt(t.Context(), disk, replica[r.Off:r.Off+r.Len], r.Off)
	}))
	return changed
}

// Nothing stays in Azure when the last token is forgotten, and nothing but what is
// allocated and may have changed is read.
func TestSourceLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(), "app")
	before := s.resources()
	received := func() int64 { return s.cloud.Pages().Counts()["GetBlob"].Out }
	g.write(t, "vda", 5*mib, bytes.Repeat([]byte{7}, mib))
	c := g.begin(t, "", "a")
	replica := make([]byte, 20*mib)
	at := received()
	copied(t, c, "vda", replica)
	copied(t, c, "vdb", make([]byte, 20*mib))
	if n := received() - at; n != mib {
		t.Errorf("%d bytes were read of 40 MiB with one that is allocated (%v)", n, s.cloud.Pages().Counts())
	}
	ok(t, c.End(t.Context()))
	if p := g.points(); !slices.Equal(p, []string{"hf-a"}) {
		t.Errorf("the restore points are %v", p)
	}
	g.write(t, "vda", 9*mib, bytes.Repeat([]byte{9}, 8192))
	est, err := g.h.Estimate(t.Context(), g.id, "hf-a")
	ok(t, err)
	first, err := g.h.Estimate(t.Context(), g.id, "")
	ok(t, err)
	if est != 8192 || first != mib+8192 {
		t.Errorf("%d bytes are estimated of a delta of 8192, and %d of all", est, first)
	}
	c = g.begin(t, "hf-a", "b")
	at = received()
	if n := copied(t, c, "vda", replica); n != 8192 || received()-at != 8192 {
		t.Errorf("%d bytes changed and %d were read of 8192 that were written", n, received()-at)
	}
	ok(t, c.Abort(t.Context()))
	c = g.begin(t, "hf-a", "b")
	ok(t, c.End(t.Context()))
	ok(t, g.h.Forget(t.Context(), g.id, []string{"hf-b"}))
	if p := g.points(); !slices.Equal(p, []string{"hf-b"}) {
		t.Errorf("the restore points are %v", p)
	}
	ok(t, g.h.Forget(t.Context(), g.id, nil))
	s.unchanged(t, before)
	ok(t, g.begin(t, "", "c").Abort(t.Context())) // an aborted first cut neither
	s.unchanged(t, before)
	if strings.Contains(s.logged(), "sig=") {
		t.Error("a signature was logged")
	}
}

// The last delta of a VM that is off has the base of when it ran, and all disks at one instant.
func TestSourceOffline(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(), "app")
	g.write(t, "vda", mib, bytes.Repeat([]byte{1}, 4096))
	c := g.begin(t, "", "a")
	replica := make([]byte, 20*mib)
	copied(t, c, "vda", replica)
	ok(t, c.End(t.Context()))
	g.write(t, "vda", 3*mib, bytes.Repeat([]byte{2}, 4096))
	want := make([]byte, 20*mib)
	ok(t, g.device(t, "vda").ReadAt(t.Context(), want, 0))
	ok(t, g.h.Shutdown(t.Context(), g.id))
	c, err := g.h.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda", "vdb"}, Base: "hf-a", Tag: "last", Offline: true})
	ok(t, err)
	if n := copied(t, c, "vda", replica); n != 4096 || !bytes.Equal(replica, want) || !c.Info().Incremental {
		t.Errorf("%d bytes changed, right: %v, info %+v", n, bytes.Equal(replica, want), c.Info())
	}
	ok(t, c.End(t.Context()))
}

// Where Azure refuses to compare restore points, the disk is whole and right; where it can't be asked, the cut fails.
func TestSourceWithoutDifferences(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(), "app")
	ok(t, g.begin(t, "", "a").End(t.Context()))
	before := s.resources()
	g.write(t, "vda", 3*mib, bytes.Repeat([]byte{2}, 4096))
	in := s.cloud.Pages().Fault(pagestore.Fault{Operation: "GetPageRangesDiff", Status: 409, Code: "FeatureNotSupported", Times: 2})
	c := g.begin(t, "hf-a", "b")
	if in.Fired() != 2 {
		t.Errorf("the fault fired %d times", in.Fired())
	}
	for _, d := range c.Info().Disks {
		if !d.Whole || !strings.Contains(d.Why, "Azure does not tell") {
			t.Errorf("disk %+v", d)
		}
	}
	replica, want := bytes.Repeat([]byte{0xee}, 20*mib), make([]byte, 20*mib)
	copied(t, c, "vda", replica)
	ok(t, g.device(t, "vda").ReadAt(t.Context(), want, 0))
	if !bytes.Equal(replica, want) {
		t.Error("the replica of a whole disk is not the disk")
	}
	ok(t, c.Abort(t.Context()))
	s.unchanged(t, before)

	in = s.cloud.Pages().Fault(pagestore.Fault{Operation: "GetPageRangesDiff", Status: 403, Code: "AuthenticationFailed"})
	_, err := g.h.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda", "vdb"}, Base: "hf-a", Tag: "b"})
	wantCode(t, err, dr.CodeAzureSignature)
	if in.Fired() == 0 {
		t.Error("the fault did not fire")
	}
	in.Remove()
	s.unchanged(t, before)
	ok(t, g.begin(t, "hf-a", "b").Abort(t.Context()))
}

// Whatever call fails while a cut begins, nothing is left, and the next one is right.
func TestSourceFailures(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(func(_ *azure.Config, ao *arm.Options) { ao.Retries = -1 }), "app")
	g.write(t, "vda", mib, bytes.Repeat([]byte{1}, 4096))
	empty := s.resources()
	for _, base := range []string{"", "hf-a"} {
		if base != "" {
			ok(t, g.begin(t, "", "a").End(t.Context()))
		}
		before := s.resources()
		for _, f := range []azsim.Fault{
			{Method: "PUT", Path: "/restorePointCollections/[^/]+$", Status: 403, Code: "RequestDisallowedByPolicy"},
			{Method: "PATCH", Path: "/restorePointCollections/[^/]+$", Status: 403, Code: "AuthorizationFailed"},
			{Method: "PUT", Path: "/restorePoints/[^/]+$", Status: 409, Code: "OperationNotAllowed"},
			{Method: "PUT", Path: "/restorePoints/[^/]+$", Operation: true, Code: "InternalError"},
			{Method: "PUT", Path: "/restorePoints/[^/]+$", Lost: true},
			{Method: "GET", Path: "/restorePoints/[^/]+$", Status: 500},
			{Method: "POST", Path: "/begingetaccess$", Status: 500},
			{Method: "POST", Path: "/begingetaccess$", Operation: true, Code: "InternalError"},
			{Method: "HEAD", Path: "/md/", Status: 400, Code: "InvalidInput"},
			{Method: "GET", Path: "/md/", Query: "comp=pagelist", Status: 400, Code: "InvalidQueryParameterValue"},
		} {
			in := s.cloud.Fault(f)
			c, err := g.h.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda", "vdb"}, Base: base, Tag: "b"})
			fired := in.Fired()
			in.Remove()
			if fired == 0 {
				if f.Method == "PUT" && base != "" || f.Method == "PATCH" && base == "" { // the collection is there, or is not
					if err == nil {
						ok(t, c.Abort(t.Context()))
						continue
					}
				}
				t.Fatalf("%s %s did not fire (%v)", f.Method, f.Path, err)
			}
			if err == nil {
				ok(t, c.Abort(t.Context()))
				t.Errorf("%s %s %s, base %q: no error", f.Method, f.Path, f.Code, base)
			} else if strings.Contains(err.Error(), "sig=") {
				t.Errorf("a signature is in the error: %v", err)
			}
			s.unchanged(t, before)
		}
	}
	g.write(t, "vda", 2*mib, bytes.Repeat([]byte{1}, 4096))
	c := g.begin(t, "hf-a", "b")
	if n := copied(t, c, "vda", make([]byte, 20*mib)); n != 4096 {
		t.Errorf("%d bytes changed", n)
	}
	ok(t, c.End(t.Context()))
	ok(t, g.h.Forget(t.Context(), g.id, nil))
	s.unchanged(t, empty)
}

// A process that dies at any call leaves nothing that its successor does not end and forget.
func TestSourceProcessDies(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(), "app")
	empty := s.resources()
	for n := int64(1); ; n++ {
		c := &cord{count: changingRequest}
		c.after.Store(n)
		h := s.host(c.wrapOption(t, s))
		cut, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda", "vdb"}, Tag: "a"})
		if err == nil {
			_ = cut.End(t.Context())
		}
		alive := !c.cut.Load()
		ok(t, s.cloud.Settle(t.Context()))
		next := s.host()
		ok(t, next.Forget(t.Context(), g.id, []string{"hf-none"}))
		if err == nil { // it was no one's token
			_, err = next.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda"}, Base: "hf-a", Tag: "b"})
			wantCode(t, err, dr.CodeTrackingLost)
		}
		ok(t, next.Forget(t.Context(), g.id, nil))
		s.unchanged(t, empty)
		if alive {
			if n < 4 {
				t.Errorf("the process lived with %d changing calls", n)
			}
			return
		}
	}
}

func changingRequest(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead && !strings.Contains(r.URL.Path, "/oauth2/")
}

// A cut that could not be aborted at once is no base, its tag is free, and Forget deletes it even if it is to be kept.
func TestSourceAbortFails(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(func(_ *azure.Config, ao *arm.Options) { ao.Retries = -1 }), "app")
	before := s.resources()
	refuse := func(c hypervisor.Cut) {
		t.Helper()
		in := s.cloud.Fault(azsim.Fault{Method: "DELETE", Path: "/restorePoints/[^/]+$", Status: 403, Code: "AuthorizationFailed"})
		wantCode(t, c.Abort(t.Context()), dr.CodeAzureRole)
		if in.Fired() != 1 {
			t.Error("the fault did not fire")
		}
	}
	refuse(g.begin(t, "", "a"))
	_, err := g.h.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda"}, Base: "hf-a", Tag: "b"})
	wantCode(t, err, dr.CodeTrackingLost, "aborted")
	c := g.begin(t, "", "a")
	refuse(c)
	ok(t, c.Abort(t.Context())) // again
	s.unchanged(t, before)
	refuse(g.begin(t, "", "a"))
	ok(t, g.h.Forget(t.Context(), g.id, []string{"hf-a"}))
	s.unchanged(t, before)
}

// Two owners replicate one VM without seeing each other's tokens; a VM that is gone is forgotten all the same.
func TestSourceOwners(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(), "app")
	second := s.host(func(ac *azure.Config, _ *arm.Options) { ac.Owner = "second" })
	ok(t, g.begin(t, "", "a").End(t.Context()))
	c, err := second.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda"}, Tag: "a"})
	ok(t, err)
	ok(t, c.End(t.Context()))
	ok(t, second.Forget(t.Context(), g.id, nil))
	c = g.begin(t, "hf-a", "b")
	ok(t, c.End(t.Context()))
	ok(t, g.h.Remove(t.Context(), g.id, "holdfast:app"))
	ok(t, s.host().Forget(t.Context(), g.id, nil))
	if p := g.points(); len(p) > 0 {
		t.Errorf("restore points %v of a VM that is gone are left", p)
	}
	wantCode(t, s.host().Forget(t.Context(), g.id, nil), dr.CodeVMNotFound)
}

// The address that a cut is read at is renewed before it ends, for as long as the cut lives.
func TestSourceRenews(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	g := s.guest(s.host(func(ac *azure.Config, _ *arm.Options) { ac.Access, ac.Now = 2*time.Minute, now }), "app")
	want := bytes.Repeat([]byte{1}, 4*mib)
	g.write(t, "vda", 0, want)
	c := g.begin(t, "", "a")
	grants := func() (n int) {
		for _, c := range s.cloud.Calls() {
			if strings.HasSuffix(strings.ToLower(c.Path), "/begingetaccess") && strings.Contains(c.Path, "/restorePoints/hf-a/") {
				n++
			}
		}
		return n
	}
	first := grants()
	for i := range int64(4) {
		got := make([]byte, mib)
		ok(t, c.ReadAt(t.Context(), "vda", got, i*mib))
		if !bytes.Equal(got, want[:mib]) {
			t.Errorf("MiB %d is wrong", i)
		}
		if n := grants() - first; n != int(i) {
			t.Errorf("%d addresses after %d periods", n, i)
		}
		ahead.Add(int64(2*time.Minute + time.Second)) // the old one is over
		s.cloud.SkewClock(time.Duration(ahead.Load()))
	}
	ok(t, c.Abort(t.Context()))
	for _, d := range []time.Duration{time.Second, 48 * time.Hour, -1} {
		if (azure.Config{Session: g.arm, Access: d}).Validate() == nil {
			t.Errorf("addresses that are good for %v are taken", d)
		}
	}
}

// Disks that restore points can't hold are named as such, before anything is made.
func TestSourceRefusesDisks(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	g := s.guest(s.host(), "app")
	before := s.resources()
	id := s.cloud.Add("dr", arm.TypeDisk, "fast", map[string]any{"location": "westeurope", "sku": map[string]any{"name": "PremiumV2_LRS"}, "properties": map[string]any{"diskSizeGB": 1, "creationData": map[string]any{"createOption": "Empty"}}})
	g.change(t, func(sp *armcompute.StorageProfile) {
		sp.DataDisks = append(sp.DataDisks, &armcompute.DataDisk{Lun: to.Ptr(int32(5)), CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), ManagedDisk: &armcompute.ManagedDiskParameters{ID: &id}})
	})
	cfg, err := g.h.Config(t.Context(), g.id)
	ok(t, err)
	if d := cfg.VM.Disks[2]; d.ID != "lun5" || !strings.Contains(d.Unreplicatable, "PremiumV2_LRS") {
		t.Errorf("the disk is described as %+v", d)
	}
	_, err = g.h.BeginCut(t.Context(), hypervisor.CutRequest{VM: g.id, Disks: []string{"vda", "lun5"}, Tag: "a"})
	wantCode(t, err, dr.CodeDiskNotTrackable, "PremiumV2_LRS")
	c := g.begin(t, "", "a") // without it
	if n := c.Info().Note; !strings.Contains(n, "vda") || !strings.Contains(n, "write cache") {
		t.Errorf("the note about the OS disk's cache is %q", n)
	}
	ok(t, c.Abort(t.Context()))
	before = append(before, id)
	slices.Sort(before)
	now := s.resources()
	slices.Sort(now)
	if !slices.Equal(before, now) {
		t.Errorf("the resources are %v, were %v", now, before)
	}
}

func TestSizesAndQuota(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.cloud.Restrict("Standard_D4s_v5", "NotAvailableForSubscription")
	h := s.host()
	sizes, err := h.Sizes(t.Context())
	ok(t, err)
	i := slices.IndexFunc(sizes, func(z dr.ComputeSize) bool { return z.Name == "Standard_D4s_v5" })
	j := slices.IndexFunc(sizes, func(z dr.ComputeSize) bool { return z.Name == "Standard_D2s_v5" })
	if i < 0 || j < 0 || !strings.Contains(sizes[i].Problem, "NotAvailableForSubscription") || sizes[j].Problem != "" || sizes[j].CPUs != 2 || sizes[j].MemoryMB != 8192 || len(sizes[j].Generations) == 0 {
		t.Errorf("the sizes are %+v", sizes)
	}
	before := s.resources()
	s.cloud.SetQuota("cores", 1)
	calls := len(s.cloud.Calls())
	_, err = h.Boot(t.Context(), empty("vm1"))
	wantCode(t, err, dr.CodeAzureQuota, "cores")
	for _, c := range s.cloud.Calls()[calls:] {
		if c.Method == http.MethodPut {
			t.Errorf("%s was made in vain", c.Path)
		}
	}
	s.unchanged(t, before)
	s.cloud.SetQuota("cores", 100)
	in := s.cloud.Fault(azsim.Fault{Method: "GET", Path: "/usages$", Status: 403, Code: "AuthorizationFailed", Times: -1})
	id, err := h.Boot(t.Context(), empty("vm1")) // who may not ask is not kept from trying
	ok(t, err)
	if in.Fired() == 0 {
		t.Error("the fault did not fire")
	}
	ok(t, h.Remove(context.Background(), id, "o"))
}
