package azsim_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"holdfast/internal/azsim"
	"holdfast/internal/vhd"
)

// TestRestorePoints copies a VM's disks at one moment, reads a copy, and makes a disk of it.
func TestRestorePoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	vm := must(w.simpleVM("vm"))(t)
	v, _ := w.VM(*vm.ID)
	content := bytes.Repeat([]byte{5}, 4096)
	if err := v.Machine.Disks[0].Device.WriteAt(t.Context(), content, 8192); err != nil {
		t.Fatal(err)
	}
	f := must(armcompute.NewClientFactory(azsim.DefaultSubscription, w.cred, w.options))(t)
	colls, points, diskPoints := f.NewRestorePointCollectionsClient(), f.NewRestorePointsClient(), f.NewDiskRestorePointClient()
	coll := armcompute.RestorePointCollection{Location: to.Ptr("westeurope"), Properties: &armcompute.RestorePointCollectionProperties{Source: &armcompute.RestorePointCollectionSourceProperties{ID: vm.ID}}}
	must(colls.CreateOrUpdate(w.ctx(), group, "coll", coll, nil))(t)
	pp, err := points.BeginCreate(w.ctx(), group, "coll", "p1", armcompute.RestorePoint{Properties: &armcompute.RestorePointProperties{ConsistencyMode: to.Ptr(armcompute.ConsistencyModeTypesCrashConsistent)}}, nil)
	point := must(wait(w.ctx(), pp, err))(t)
	if err := v.Machine.Disks[0].Device.WriteAt(t.Context(), make([]byte, 4096), 8192); err != nil {
		t.Fatal(err)
	}
	drp := *point.Properties.SourceMetadata.StorageProfile.OSDisk.DiskRestorePoint.ID
	name := drp[strings.LastIndex(drp, "/")+1:]
	ga, err := diskPoints.BeginGrantAccess(w.ctx(), group, "coll", "p1", name, armcompute.GrantAccessData{Access: to.Ptr(armcompute.AccessLevelRead), DurationInSeconds: to.Ptr(int32(600))}, nil)
	sas := must(wait(w.ctx(), ga, err))(t)
	if got := must(w.download(*sas.AccessSAS, 8192, 4096))(t); !bytes.Equal(got, content) {
		t.Error("the restore point does not have the content of its moment")
	}
	ra, err := diskPoints.BeginRevokeAccess(w.ctx(), group, "coll", "p1", name, nil)
	must(wait(w.ctx(), ra, err))(t)
	at := must(w.disk("back", func(d *armcompute.Disk) {
		d.Properties.DiskSizeGB = nil
		d.Properties.CreationData = &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionRestore), SourceResourceID: &drp}
	}))(t)
	dev := must(w.Pages().Device(w.Page(at)))(t)
	got := make([]byte, 4096)
	if err := dev.ReadAt(t.Context(), got, 8192); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the restored disk has other content (%v)", err)
	}
	cd, err := colls.BeginDelete(w.ctx(), group, "coll", nil)
	must(wait(w.ctx(), cd, err))(t)
	for _, r := range w.Resources() {
		if strings.Contains(r.Type, "estorePoint") {
			t.Errorf("left behind: %s", r.ID)
		}
	}
	if n := len(w.Pages().Names()); n != 2 {
		t.Errorf("%d contents are left, want those of two disks", n)
	}
}

// TestImport makes a disk of a page blob in a storage account.
func TestImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	key := w.AddStorageAccount(group, "store")
	cred := must(azblob.NewSharedKeyCredential("store", key))(t)
	base := w.URL() + "/storage/store/"
	svc := must(azblob.NewClientWithSharedKeyCredential(base, cred, &azblob.ClientOptions{ClientOptions: w.options.ClientOptions}))(t)
	must(svc.CreateContainer(w.ctx(), "vhds", nil))(t)
	const size = 20 << 20
	blob := must(pageblob.NewClientWithSharedKeyCredential(base+"vhds/os.vhd", cred, &pageblob.ClientOptions{ClientOptions: w.options.ClientOptions}))(t)
	must(blob.Create(w.ctx(), size+512, nil))(t)
	content := bytes.Repeat([]byte{9}, 1024)
	must(blob.UploadPages(w.ctx(), readSeekCloser{bytes.NewReader(content)}, httpRange(0, 1024), nil))(t)
	imp := func(d *armcompute.Disk) {
		d.Properties.DiskSizeGB = nil
		d.Properties.CreationData = &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionImport), SourceURI: to.Ptr(base + "vhds/os.vhd"),
			StorageAccountID: to.Ptr(id("Microsoft.Storage/storageAccounts", "store"))}
	}
	if _, err := w.disk("early", imp); code(t, err) != "InvalidVhd" {
		t.Errorf("a blob without footer: %v", err)
	}
	foot := must(vhd.EncodeFooter(vhd.Footer{Size: size, Time: time.Now(), Kind: vhd.Fixed}))(t)
	must(blob.UploadPages(w.ctx(), readSeekCloser{bytes.NewReader(foot)}, httpRange(size, 512), nil))(t)
	at := must(w.disk("d", imp))(t)
	if d := must(w.disks.Get(w.ctx(), group, "d", nil))(t); *d.Properties.DiskSizeBytes != size {
		t.Errorf("%d bytes", *d.Properties.DiskSizeBytes)
	}
	dev := must(w.Pages().Device(w.Page(at)))(t)
	got := make([]byte, 1024)
	if err := dev.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other content (%v)", err)
	}
}

// TestCatalogue reads sizes and usages, and what a VM changes in them.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	f := must(armcompute.NewClientFactory(azsim.DefaultSubscription, w.cred, w.options))(t)
	found := map[string]*armcompute.ResourceSKU{}
	pager := f.NewResourceSKUsClient().NewListPager(&armcompute.ResourceSKUsClientListOptions{Filter: to.Ptr("location eq 'westeurope'")})
	for pager.More() {
		for _, s := range must(pager.NextPage(w.ctx()))(t).Value {
			found[*s.Name] = s
		}
	}
	d4 := found["Standard_D4s_v5"]
	if d4 == nil || *d4.ResourceType != "virtualMachines" || len(d4.LocationInfo[0].Zones) != 3 || len(d4.Restrictions) != 0 {
		t.Fatalf("Standard_D4s_v5: %+v", d4)
	}
	caps := map[string]string{}
	for _, c := range d4.Capabilities {
		caps[*c.Name] = *c.Value
	}
	for k, v := range map[string]string{"vCPUs": "4", "MemoryGB": "16", "MaxDataDiskCount": "8", "MaxNetworkInterfaces": "2", "HyperVGenerations": "V1,V2", "PremiumIO": "True"} {
		if caps[k] != v {
			t.Errorf("%s is %q, want %q", k, caps[k], v)
		}
	}
	if r := found["Standard_D2s_v3"].Restrictions; len(r) != 1 || *r[0].ReasonCode != armcompute.ResourceSKURestrictionsReasonCodeNotAvailableForSubscription {
		t.Errorf("restrictions: %+v", r)
	}
	if len(found) < 12 || found["Premium_LRS"] == nil {
		t.Errorf("%d SKUs", len(found))
	}
	cores := func() int32 {
		t.Helper()
		pager := f.NewUsageClient().NewListPager("westeurope", nil)
		for pager.More() {
			for _, u := range must(pager.NextPage(w.ctx()))(t).Value {
				if *u.Name.Value == "cores" {
					return *u.CurrentValue
				}
			}
		}
		t.Fatal("no usage of cores")
		return 0
	}
	set := must(f.NewAvailabilitySetsClient().CreateOrUpdate(w.ctx(), group, "set", armcompute.AvailabilitySet{Location: to.Ptr("westeurope"), SKU: &armcompute.SKU{Name: to.Ptr("Aligned")}}, nil))(t)
	before := cores()
	vm := must(w.simpleVM("vm", func(v *armcompute.VirtualMachine) { v.Properties.AvailabilitySet = &armcompute.SubResource{ID: set.ID} }))(t)
	if n := cores() - before; n != 2 {
		t.Errorf("a VM of two cores counts %d", n)
	}
	_, err := f.NewAvailabilitySetsClient().Delete(w.ctx(), group, "set", nil)
	want(t, err, 409, "OperationNotAllowed")
	for _, at := range []string{*vm.ID, *set.ID} {
		if err := w.remove(at); err != nil {
			t.Error(err)
		}
	}
	if cores() != before {
		t.Error("cores of a VM that is gone count")
	}
	if got := must(f.NewVirtualMachineSizesClient().NewListPager("westeurope", nil).NextPage(w.ctx()))(t); len(got.Value) < 12 {
		t.Errorf("%d sizes", len(got.Value))
	}
}

// TestManagedIdentity asks as a program on a VM does.
func TestManagedIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	ask := func(path, header, value string) (int, string) {
		t.Helper()
		req := must(http.NewRequestWithContext(w.ctx(), http.MethodGet, w.URL()+path+"?api-version=2018-02-01&resource=https://management.azure.com/", nil))(t)
		if header != "" {
			req.Header.Set(header, value)
		}
		res := must(w.http.Do(req))(t)
		defer res.Body.Close()
		return res.StatusCode, string(must(io.ReadAll(res.Body))(t))
	}
	if status, body := ask("/metadata/identity/oauth2/token", "Metadata", "true"); status != 200 || !strings.Contains(body, `"expires_on"`) {
		t.Errorf("IMDS: %d %s", status, body)
	}
	if status, _ := ask("/metadata/identity/oauth2/token", "", ""); status != 400 {
		t.Errorf("IMDS without header: %d", status)
	}
	if status, _ := ask("/msi/token", "X-IDENTITY-HEADER", "x"); status != 200 {
		t.Errorf("app service: %d", status)
	}
	w.Directory().SetManagedIdentity(false)
	if status, body := ask("/metadata/identity/oauth2/token", "Metadata", "true"); status != 400 || !strings.Contains(body, "Identity not found") {
		t.Errorf("no identity: %d %s", status, body)
	}
}
