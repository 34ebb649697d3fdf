package azsim_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"go.uber.org/goleak"

	"holdfast/internal/azsim"
	"holdfast/internal/vhd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	group  = "rg"
	netAPI = "2024-05-01"
)

// world is a cloud with Microsoft's clients for it.
type world struct {
	*azsim.Cloud
	t       *testing.T
	http    *http.Client
	options *arm.ClientOptions
	cred    azcore.TokenCredential
	disks   *armcompute.DisksClient
	snaps   *armcompute.SnapshotsClient
	vms     *armcompute.VirtualMachinesClient
	res     *armresources.Client
	groups  *armresources.ResourceGroupsClient
	subnet  string // id of a subnet 10.0.1.0/24
}

func newWorld(t *testing.T, cfg azsim.Config) *world {
	t.Helper()
	cfg.Dir = t.TempDir()
	c := azsim.New(cfg)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{Cloud: c, t: t}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.CA()) {
		t.Fatal("the CA is no PEM")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(tr.CloseIdleConnections)
	w.http = &http.Client{Transport: tr}
	w.options = &arm.ClientOptions{DisableRPRegistration: true, ClientOptions: policy.ClientOptions{
		Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: c.URL() + "/", Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
			cloud.ResourceManager: {Endpoint: c.URL(), Audience: c.URL()}}},
		Transport: w.http, Retry: policy.RetryOptions{MaxRetries: -1},
	}}
	w.cred = w.secret(azsim.DefaultTenant, azsim.DefaultClientID, azsim.DefaultClientSecret)
	c.AddGroup(group)
	vnet := c.AddVNet(group, "net", "10.0.0.0/16", map[string]string{"front": "10.0.1.0/24", "back": "10.0.2.0/29"})
	w.subnet = vnet + "/subnets/front"
	w.clients()
	return w
}

func (w *world) clients() {
	w.t.Helper()
	f, err := armcompute.NewClientFactory(azsim.DefaultSubscription, w.cred, w.options)
	if err != nil {
		w.t.Fatal(err)
	}
	w.disks, w.snaps, w.vms = f.NewDisksClient(), f.NewSnapshotsClient(), f.NewVirtualMachinesClient()
	r, err := armresources.NewClientFactory(azsim.DefaultSubscription, w.cred, w.options)
	if err != nil {
		w.t.Fatal(err)
	}
	w.res, w.groups = r.NewClient(), r.NewResourceGroupsClient()
}

func (w *world) secret(tenant, client, secret string) azcore.TokenCredential {
	w.t.Helper()
	cred, err := azidentity.NewClientSecretCredential(tenant, client, secret, &azidentity.ClientSecretCredentialOptions{
		ClientOptions: w.options.ClientOptions, DisableInstanceDiscovery: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return cred
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

// wait finishes a long-running operation.
func wait[T any](ctx context.Context, p *runtime.Poller[T], err error) (T, error) {
	if err != nil {
		var none T
		return none, err
	}
	return p.PollUntilDone(ctx, &runtime.PollUntilDoneOptions{Frequency: time.Millisecond})
}

// code is the error code of an answer of Azure, "" for nil.
func code(t *testing.T, err error) string {
	t.Helper()
	var re *azcore.ResponseError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &re):
		return re.ErrorCode
	}
	t.Fatalf("no answer of Azure: %v", err)
	return ""
}

func want(t *testing.T, err error, status int, errorCode string) {
	t.Helper()
	var re *azcore.ResponseError
	if !errors.As(err, &re) || re.ErrorCode != errorCode || status != 0 && re.StatusCode != status {
		t.Fatalf("got %v\nwant %d %s", err, status, errorCode)
	}
}

func id(typ, name string) string {
	return "/subscriptions/" + azsim.DefaultSubscription + "/resourceGroups/" + group + "/providers/" + typ + "/" + name
}

// put makes a resource through the generic client.
func (w *world) put(typ, name string, props map[string]any, more ...map[string]any) (string, error) {
	w.t.Helper()
	res := armresources.GenericResource{Location: to.Ptr("westeurope"), Properties: props}
	for _, m := range more {
		if s, ok := m["sku"].(string); ok {
			res.SKU = &armresources.SKU{Name: &s}
		}
	}
	at := id(typ, name)
	if strings.HasPrefix(typ, "/") {
		at = typ + "/" + name
	}
	p, err := w.res.BeginCreateOrUpdateByID(w.ctx(), at, netAPI, res, nil)
	_, err = wait(w.ctx(), p, err)
	return at, err
}

func (w *world) remove(at string) error {
	w.t.Helper()
	p, err := w.res.BeginDeleteByID(w.ctx(), at, netAPI, nil)
	_, err = wait(w.ctx(), p, err)
	return err
}

func nicProps(subnet, address string) map[string]any {
	cfg := map[string]any{"subnet": map[string]any{"id": subnet}}
	if address != "" {
		cfg["privateIPAddress"], cfg["privateIPAllocationMethod"] = address, "Static"
	}
	return map[string]any{"ipConfigurations": []any{map[string]any{"name": "ip", "properties": cfg}}}
}

// disk makes an empty disk.
func (w *world) disk(name string, mods ...func(*armcompute.Disk)) (string, error) {
	w.t.Helper()
	d := armcompute.Disk{Location: to.Ptr("westeurope"), SKU: &armcompute.DiskSKU{Name: to.Ptr(armcompute.DiskStorageAccountTypesStandardSSDLRS)},
		Properties: &armcompute.DiskProperties{CreationData: &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionEmpty)},
			DiskSizeGB: to.Ptr(int32(1)), OSType: to.Ptr(armcompute.OperatingSystemTypesLinux), HyperVGeneration: to.Ptr(armcompute.HyperVGenerationV2)}}
	for _, m := range mods {
		m(&d)
	}
	p, err := w.disks.BeginCreateOrUpdate(w.ctx(), group, name, d, nil)
	_, err = wait(w.ctx(), p, err)
	return id("Microsoft.Compute/disks", name), err
}

// vmSpec is a VM of an OS disk and a NIC.
func vmSpec(osDisk, nic string) armcompute.VirtualMachine {
	return armcompute.VirtualMachine{Location: to.Ptr("westeurope"), Properties: &armcompute.VirtualMachineProperties{
		HardwareProfile: &armcompute.HardwareProfile{VMSize: to.Ptr(armcompute.VirtualMachineSizeTypes("Standard_D2s_v5"))},
		StorageProfile: &armcompute.StorageProfile{OSDisk: &armcompute.OSDisk{CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach),
			OSType: to.Ptr(armcompute.OperatingSystemTypesLinux), ManagedDisk: &armcompute.ManagedDiskParameters{ID: &osDisk}}},
		NetworkProfile:     &armcompute.NetworkProfile{NetworkInterfaces: []*armcompute.NetworkInterfaceReference{{ID: &nic}}},
		DiagnosticsProfile: &armcompute.DiagnosticsProfile{BootDiagnostics: &armcompute.BootDiagnostics{Enabled: to.Ptr(true)}},
	}}
}

func (w *world) vm(name string, spec armcompute.VirtualMachine) (armcompute.VirtualMachine, error) {
	w.t.Helper()
	p, err := w.vms.BeginCreateOrUpdate(w.ctx(), group, name, spec, nil)
	res, err := wait(w.ctx(), p, err)
	return res.VirtualMachine, err
}

// simpleVM makes a VM with everything it needs; mods change it before.
func (w *world) simpleVM(name string, mods ...func(*armcompute.VirtualMachine)) (armcompute.VirtualMachine, error) {
	w.t.Helper()
	d, err := w.disk(name + "-os")
	if err != nil {
		return armcompute.VirtualMachine{}, err
	}
	n, err := w.put("Microsoft.Network/networkInterfaces", name+"-nic", nicProps(w.subnet, ""))
	if err != nil {
		return armcompute.VirtualMachine{}, err
	}
	spec := vmSpec(d, n)
	for _, m := range mods {
		m(&spec)
	}
	return w.vm(name, spec)
}

// must is must(f())(t): f's value, or the end of the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// access asks for a signed address of a disk.
func (w *world) access(disk string, level armcompute.AccessLevel) (string, error) {
	w.t.Helper()
	p, err := w.disks.BeginGrantAccess(w.ctx(), group, disk, armcompute.GrantAccessData{Access: &level, DurationInSeconds: to.Ptr(int32(3600))}, nil)
	res, err := wait(w.ctx(), p, err)
	if err != nil {
		return "", err
	}
	return *res.AccessSAS, nil
}

func (w *world) revoke(disk string) error {
	w.t.Helper()
	p, err := w.disks.BeginRevokeAccess(w.ctx(), group, disk, nil)
	_, err = wait(w.ctx(), p, err)
	return err
}

// pages is Microsoft's page blob client for a signed address.
func (w *world) pages(sas string) *pageblob.Client {
	w.t.Helper()
	c, err := pageblob.NewClientWithNoCredential(sas, &pageblob.ClientOptions{ClientOptions: w.options.ClientOptions})
	return must(c, err)(w.t)
}

// write puts whole pages.
func (w *world) write(sas string, off int64, p []byte) error {
	w.t.Helper()
	_, err := w.pages(sas).UploadPages(w.ctx(), readSeekCloser{bytes.NewReader(p)}, httpRange(off, int64(len(p))), nil)
	return err
}

// upload makes a disk by Upload whose content is p at offset 0.
func (w *world) upload(name string, size int64, p []byte) error {
	w.t.Helper()
	_, err := w.disk(name, func(d *armcompute.Disk) {
		d.Properties.DiskSizeGB = nil
		d.Properties.CreationData = &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionUpload), UploadSizeBytes: to.Ptr(size + 512)}
	})
	if err != nil {
		return err
	}
	sas, err := w.access(name, armcompute.AccessLevelWrite)
	if err != nil {
		return err
	}
	foot, err := vhd.EncodeFooter(vhd.Footer{Size: size, Time: time.Now(), Kind: vhd.Fixed})
	if err != nil {
		return err
	}
	if err := errors.Join(w.write(sas, 0, p), w.write(sas, size, foot)); err != nil {
		return err
	}
	return w.revoke(name)
}

func (w *world) download(sas string, off, n int64) ([]byte, error) {
	w.t.Helper()
	res, err := w.pages(sas).DownloadStream(w.ctx(), &pageblobDownload{Range: httpRange(off, n)})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}

type readSeekCloser struct{ *bytes.Reader }

func (readSeekCloser) Close() error { return nil }
