package doctor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/arm/armtest"
	"holdfast/internal/hypervisor/azure/arm/doctor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(ctx context.Context, w *armtest.World, readOnly bool) []doctor.Finding {
	return doctor.Run(ctx, w.Site, doctor.Options{Options: w.Options, ReadOnly: readOnly})
}

func text(list []doctor.Finding) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\t%s\n", f.Check, f.Status, f.Detail, f.Remedy, f.Code)
	}
	return b.String()
}

func status(list []doctor.Finding, check string) (worst string) {
	order := []string{doctor.StatusOK, doctor.StatusWarning, doctor.StatusSkipped, doctor.StatusFailed}
	for _, f := range list {
		if f.Check == check && slices.Index(order, f.Status) >= slices.Index(order, worst) {
			worst = f.Status
		}
	}
	return worst
}

func ids(list []azsim.Resource) string {
	var b strings.Builder
	for _, r := range list {
		b.WriteString(r.ID + "\n")
	}
	return b.String()
}

// blobs lists what is in the container.
func blobs(t *testing.T, w *armtest.World) (out []string) {
	t.Helper()
	c, err := w.Open(t).Container()
	if err != nil {
		t.Fatal(err)
	}
	pager := c.NewListBlobsFlatPager(nil)
	for pager.More() {
		page, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range page.Segment.BlobItems {
			out = append(out, *b.Name)
		}
	}
	return out
}

func TestDoctorHealthy(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	w.Container(t)
	before := ids(w.Resources())
	list := run(t.Context(), w, false)
	for _, check := range []string{doctor.CheckConfiguration, doctor.CheckReach, doctor.CheckClock, doctor.CheckSignIn, doctor.CheckSubscription, doctor.CheckProviders, doctor.CheckGroup, doctor.CheckPermissions,
		doctor.CheckLocks, doctor.CheckNetwork, doctor.CheckSizes, doctor.CheckQuota, doctor.CheckLeftovers, doctor.CheckStorage, doctor.CheckDisk, doctor.CheckCleanUp} {
		if status(list, check) != doctor.StatusOK {
			t.Errorf("%s is not ok", check)
		}
	}
	if t.Failed() {
		t.Log("\n" + text(list))
	}
	if after := ids(w.Resources()); after != before || len(blobs(t, w)) != 0 || len(w.Pages().Names()) != 0 {
		t.Errorf("left: %s %v %v", after, blobs(t, w), w.Pages().Names())
	}
	made := 0
	for _, c := range w.Calls() {
		if c.Method == http.MethodPut && strings.Contains(strings.ToLower(c.Path), "/disks/") {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d disks were made", made)
	}
}

// TestDoctorReadOnly: it sends nothing that could change anything.
func TestDoctorReadOnly(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	n := len(w.Calls())
	list := run(t.Context(), w, true)
	for _, c := range w.Calls()[n:] {
		if c.Method != http.MethodGet && c.Method != http.MethodHead && !strings.HasSuffix(c.Path, "/token") {
			t.Errorf("%s %s", c.Method, c.Path)
		}
	}
	if status(list, doctor.CheckDisk) != doctor.StatusSkipped || status(list, doctor.CheckStorage) != doctor.StatusSkipped || status(list, doctor.CheckQuota) != doctor.StatusOK {
		t.Error(text(list))
	}
}

// TestDoctorDefects: each defect is found where it is, with a remedy, and nothing is left.
func TestDoctorDefects(t *testing.T) {
	t.Parallel()
	type defect struct {
		name   string
		break_ func(t *testing.T, w *armtest.World)
		check  string
		status string
		code   dr.Code
		detail string
		still  []string // checks that nevertheless are ok
		not    []string // checks that must be skipped for it
	}
	f := doctor.StatusFailed
	fault := func(x azsim.Fault) func(*testing.T, *armtest.World) {
		return func(t *testing.T, w *armtest.World) {
			hit := w.Fault(x)
			t.Cleanup(func() {
				if hit.Fired() == 0 {
					t.Error("the fault did not fire")
				}
			})
		}
	}
	for _, d := range []defect{
		{"configuration", func(_ *testing.T, w *armtest.World) { w.Site.Zone = "9" }, doctor.CheckConfiguration, f, dr.CodeAzureConfiguration, "zone", nil, []string{doctor.CheckReach, doctor.CheckSignIn, doctor.CheckDisk, doctor.CheckCleanUp}},
		{"unknown name", func(_ *testing.T, w *armtest.World) { w.Site.StorageSuffix = "blob.invalid" }, doctor.CheckReach, f, dr.CodeAzureUnreachable, "blob.invalid", []string{doctor.CheckSignIn, doctor.CheckDisk}, nil},
		{"clock behind", func(_ *testing.T, w *armtest.World) { w.SkewClock(20 * time.Minute) }, doctor.CheckClock, f, dr.CodeAzureClock, "behind Azure's", nil, nil},
		{"clock ahead", func(_ *testing.T, w *armtest.World) { w.SkewClock(-20 * time.Minute) }, doctor.CheckClock, f, dr.CodeAzureClock, "ahead of Azure's", nil, nil},
		{"clock a little off", func(_ *testing.T, w *armtest.World) { w.SkewClock(2 * time.Minute) }, doctor.CheckClock, doctor.StatusWarning, "", "behind", []string{doctor.CheckDisk, doctor.CheckStorage}, nil},
		{"expired secret", func(_ *testing.T, w *armtest.World) { w.Directory().ExpireSecret(true) }, doctor.CheckSignIn, f, dr.CodeAzureSignIn, "AADSTS7000222", []string{doctor.CheckClock}, []string{doctor.CheckGroup, doctor.CheckDisk}},
		{"wrong tenant", func(_ *testing.T, w *armtest.World) { w.Site.Tenant = "elsewhere.example" }, doctor.CheckSignIn, f, dr.CodeAzureSignIn, "AADSTS90002", nil, []string{doctor.CheckSubscription}},
		{"subscription", func(_ *testing.T, w *armtest.World) { w.Site.Subscription = "0a5e0000-0000-4000-8000-00000000cafe" }, doctor.CheckSubscription, f, dr.CodeAzureNotFound, "SubscriptionNotFound", []string{doctor.CheckSignIn}, []string{doctor.CheckDisk}},
		{"provider", func(_ *testing.T, w *armtest.World) { w.SetProvider("Microsoft.Network", "NotRegistered") }, doctor.CheckProviders, f, dr.CodeAzureProvider, "Microsoft.Network is NotRegistered", []string{doctor.CheckGroup}, nil},
		{"group", func(_ *testing.T, w *armtest.World) { w.Site.ResourceGroup = "nope" }, doctor.CheckGroup, f, dr.CodeAzureNotFound, "nope", []string{doctor.CheckSubscription}, []string{doctor.CheckPermissions, doctor.CheckDisk, doctor.CheckCleanUp}},
		{"no role for disks", func(_ *testing.T, w *armtest.World) { w.Deny("Microsoft.Compute/disks/write") }, doctor.CheckPermissions, f, dr.CodeAzureRole, "Microsoft.Compute/disks/write", []string{doctor.CheckNetwork, doctor.CheckCleanUp}, nil},
		{"no role for disks, seen at the disk", func(_ *testing.T, w *armtest.World) { w.Deny("Microsoft.Compute/disks/write") }, doctor.CheckDisk, f, dr.CodeAzureRole, "AuthorizationFailed", nil, nil},
		{"no role to delete", func(_ *testing.T, w *armtest.World) { w.Deny("Microsoft.Compute/disks/delete") }, doctor.CheckPermissions, f, dr.CodeAzureRole, "disks/delete", nil, []string{doctor.CheckDisk}},
		{"lock", func(_ *testing.T, w *armtest.World) {
			w.AddLock("/subscriptions/" + w.Site.Subscription + "/resourceGroups/dr")
		}, doctor.CheckLocks, f, dr.CodeAzureLocked, "CanNotDelete", []string{doctor.CheckSizes}, []string{doctor.CheckDisk}},
		{"network", func(_ *testing.T, w *armtest.World) { w.Site.Network, w.Site.Subnet = "nope", "" }, doctor.CheckNetwork, f, dr.CodeAzureNotFound, "nope", []string{doctor.CheckDisk}, nil},
		{"subnet", func(_ *testing.T, w *armtest.World) { w.Site.Subnet = "nope" }, doctor.CheckNetwork, f, dr.CodeAzureNotFound, "nope", nil, nil},
		{"security group", func(_ *testing.T, w *armtest.World) { w.Site.SecurityGroup = "nope" }, doctor.CheckNetwork, f, dr.CodeAzureNotFound, "nope", nil, nil},
		{"full subnet", func(t *testing.T, w *armtest.World) {
			w.Site.Subnet = "tiny"
			s := w.Open(t)
			for i := range 3 {
				id := w.Site.ID(arm.TypeNIC, fmt.Sprintf("nic%d", i))
				err := s.PutResource(t.Context(), id, arm.NetworkAPI, map[string]any{"location": azsim.DefaultLocation, "properties": map[string]any{"ipConfigurations": []any{map[string]any{
					"name": "ip", "properties": map[string]any{"subnet": map[string]any{"id": w.Site.ID(arm.TypeNetwork+"/subnets", "prod/tiny")}}}}}}, nil)
				if err != nil {
					t.Fatal(err)
				}
			}
		}, doctor.CheckNetwork, f, dr.CodeAzureSubnet, "tiny: 0 addresses free", nil, nil},
		{"network elsewhere", func(_ *testing.T, w *armtest.World) { w.Site.Location = "northeurope" }, doctor.CheckNetwork, f, "", "is in westeurope", nil, nil},
		{"size", func(_ *testing.T, w *armtest.World) { w.Site.Size = "Standard_Z99" }, doctor.CheckSizes, f, dr.CodeAzureSize, "Standard_Z99", []string{doctor.CheckNetwork}, nil},
		{"quota", func(_ *testing.T, w *armtest.World) { w.SetQuota("cores", 0) }, doctor.CheckQuota, f, dr.CodeAzureQuota, "cores", []string{doctor.CheckSizes}, nil},
		{"policy", func(_ *testing.T, w *armtest.World) {
			w.DenyPolicy(func(kind string, _ map[string]any) string {
				if strings.EqualFold(kind, arm.TypeDisk) {
					return "no-disks"
				}
				return ""
			})
		}, doctor.CheckDisk, f, dr.CodeAzurePolicy, "no-disks", []string{doctor.CheckStorage, doctor.CheckCleanUp}, nil},
		{"container", func(_ *testing.T, w *armtest.World) { w.Site.Container = "nothere" }, doctor.CheckStorage, f, dr.CodeAzureContainer, "nothere", []string{doctor.CheckDisk}, nil},
		{"wrong key", func(t *testing.T, w *armtest.World) { w.Site.StorageKeyFile = w.File(t, "badkey", []byte("d3Jvbmc=")) }, doctor.CheckStorage, f, dr.CodeAzureSignature, "AuthenticationFailed", []string{doctor.CheckDisk}, nil},
		{"storage firewall", fault(azsim.Fault{Method: "PUT", Path: "^/storage/", Status: 403, Code: "AuthorizationFailure", Times: -1}), doctor.CheckStorage, f, dr.CodeAzureFirewall, "network", []string{doctor.CheckDisk}, nil},
		{"disk's address", fault(azsim.Fault{Method: "PUT", Path: "^/md/", Status: 403, Code: "AuthenticationFailed", Times: -1}), doctor.CheckDisk, f, dr.CodeAzureSignature, "holdfast-doctor-", []string{doctor.CheckStorage, doctor.CheckCleanUp}, nil},
		{"failing operation", fault(azsim.Fault{Method: "PUT", Path: "/disks/", Operation: true, Code: "InternalServerError", Message: "An error occurred."}), doctor.CheckDisk, f, dr.CodeAzureOperation, "An error occurred.", []string{doctor.CheckCleanUp}, nil},
		{"throttling", fault(azsim.Fault{Method: "GET", Path: "/skus$", Status: 429, Code: "TooManyRequests", Times: -1}), doctor.CheckSizes, f, dr.CodeAzureThrottled, "", []string{doctor.CheckNetwork, doctor.CheckDisk}, nil},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			w := armtest.New(t)
			w.Container(t)
			d.break_(t, w)
			before := ids(w.Resources())
			list := run(t.Context(), w, false)
			found := slices.ContainsFunc(list, func(x doctor.Finding) bool {
				return x.Check == d.check && x.Status == d.status && x.Code == d.code && strings.Contains(x.Detail, d.detail) && x.Remedy != "" && !strings.Contains(x.Detail, "\n")
			})
			if !found {
				t.Errorf("not found:\n%s", text(list))
			}
			for _, c := range d.still {
				if status(list, c) != doctor.StatusOK {
					t.Errorf("%s is %s:\n%s", c, status(list, c), text(list))
				}
			}
			for _, c := range d.not {
				if status(list, c) != doctor.StatusSkipped {
					t.Errorf("%s is %s:\n%s", c, status(list, c), text(list))
				}
			}
			if after := ids(w.Resources()); after != before {
				t.Errorf("left:\n%s\nbefore:\n%s", after, before)
			}
			if s := text(list); strings.Contains(s, "sig=") || strings.Contains(s, "eyJ") || strings.Contains(s, w.Key) || strings.Contains(s, azsim.DefaultClientSecret) {
				t.Errorf("a secret is told:\n%s", s)
			}
		})
	}
}

// TestDoctorInterrupted: ended at any call, it leaves nothing; with any answer lost,
// it leaves nothing and still finds everything well.
func TestDoctorInterrupted(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("many runs")
	}
	w := armtest.New(t)
	w.Container(t)
	n := len(w.Calls())
	before := ids(w.Resources())
	run(t.Context(), w, false)
	calls := len(w.Calls()) - n
	if calls < 30 {
		t.Fatalf("only %d calls", calls)
	}
	for k := 1; k <= calls; k++ {
		ctx, cancel := context.WithCancel(t.Context())
		hit := w.Fault(azsim.Fault{Path: ".", Nth: k, Hook: cancel})
		list := run(ctx, w, false)
		hit.Remove()
		cancel()
		if err := w.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := ids(w.Resources()); after != before || len(blobs(t, w)) != 0 || hit.Fired() != 1 {
			t.Fatalf("interrupted at call %d (fired %d): left\n%s%v\n%s", k, hit.Fired(), after, blobs(t, w), text(list))
		}
		lost := w.Fault(azsim.Fault{Path: ".", Nth: k, Lost: true})
		list = run(t.Context(), w, false)
		lost.Remove()
		if after := ids(w.Resources()); after != before || len(blobs(t, w)) != 0 {
			t.Fatalf("answer %d lost: left\n%s\n%s", k, after, text(list))
		}
		if lost.Fired() == 0 {
			t.Errorf("answer %d was not lost", k)
		}
		for _, f := range list {
			if f.Status == doctor.StatusFailed && f.Check != doctor.CheckReach { // one try is all that reach has
				t.Errorf("answer %d lost: %s: %s", k, f.Check, f.Detail)
			}
		}
	}
}

// TestDoctorLitter: what a killed doctor left is removed when its time is over, and not before.
func TestDoctorLitter(t *testing.T) {
	t.Parallel()
	w := armtest.New(t)
	w.Container(t)
	s := w.Open(t)
	now := time.Now()
	tagged := func(name, purpose string, until time.Time) {
		body := map[string]any{"location": azsim.DefaultLocation, "properties": map[string]any{"securityRules": []any{}}}
		tags := map[string]string{arm.TagOwner: "doctor-0", arm.TagPurpose: purpose}
		if !until.IsZero() {
			tags[arm.TagUntil] = until.UTC().Format(time.RFC3339)
		}
		body["tags"] = tags
		if err := s.PutResource(t.Context(), w.Site.ID(arm.TypeSecurityGroup, name), arm.NetworkAPI, body, nil); err != nil {
			t.Fatal(err)
		}
	}
	tagged("over", arm.PurposeDoctor, now.Add(-time.Minute))
	tagged("running", arm.PurposeDoctor, now.Add(time.Hour))
	tagged("test", arm.PurposeTest, now.Add(-time.Minute))
	tagged("test-open", arm.PurposeTest, time.Time{})
	tagged("real", arm.PurposeRecovery, now.Add(-time.Minute))
	left, err := doctor.Leftovers(t.Context(), s, now)
	if err != nil || len(left) != 4 {
		t.Fatalf("%+v %v", left, err)
	}
	b, err := json.Marshal(left[0])
	if err != nil || !strings.Contains(string(b), `"over":`) {
		t.Errorf("%s %v", b, err)
	}
	list := run(t.Context(), w, false)
	if status(list, doctor.CheckLeftovers) != doctor.StatusWarning {
		t.Error(text(list))
	}
	all := ids(w.Resources())
	if strings.Contains(all, "/over\n") {
		t.Errorf("not removed: %s", all)
	}
	for _, name := range []string{"running", "test", "test-open", "real"} {
		if !strings.Contains(all, "/"+name+"\n") {
			t.Errorf("%s was removed", name)
		}
	}
}
