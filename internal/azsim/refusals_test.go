package azsim_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/resources/armresources"

	"holdfast/internal/azsim"
)

func TestNetworkRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	const nics, ips, nsgs, vnets = "Microsoft.Network/networkInterfaces", "Microsoft.Network/publicIPAddresses", "Microsoft.Network/networkSecurityGroups", "Microsoft.Network/virtualNetworks"
	if _, err := w.put(nics, "a", nicProps(w.subnet, "10.0.1.10")); err != nil {
		t.Fatal(err)
	}
	back := strings.Replace(w.subnet, "front", "back", 1) // a /29: three addresses
	for _, n := range []string{"b1", "b2", "b3"} {
		if _, err := w.put(nics, n, nicProps(back, "")); err != nil {
			t.Fatal(err)
		}
	}
	rule := func(prio int) map[string]any {
		return map[string]any{"name": "r" + string(rune('a'+prio%26)), "properties": map[string]any{"priority": prio, "direction": "Inbound", "access": "Deny", "protocol": "*",
			"sourceAddressPrefix": "*", "destinationAddressPrefix": "*", "sourcePortRange": "*", "destinationPortRange": "*"}}
	}
	standard := map[string]any{"sku": "Standard"}
	for _, c := range []struct {
		name, typ, code string
		props, more     map[string]any
	}{
		{"taken address", nics, "PrivateIPAddressIsAllocated", nicProps(w.subnet, "10.0.1.10"), nil},
		{"address elsewhere", nics, "PrivateIPAddressNotInSubnet", nicProps(w.subnet, "10.0.2.10"), nil},
		{"first four", nics, "PrivateIPAddressInReservedRange", nicProps(w.subnet, "10.0.1.3"), nil},
		{"last", nics, "PrivateIPAddressInReservedRange", nicProps(w.subnet, "10.0.1.255"), nil},
		{"no room", nics, "SubnetIsFull", nicProps(back, ""), nil},
		{"no such subnet", nics, "InvalidResourceReference", nicProps(w.subnet+"x", ""), nil},
		{"no configuration", nics, "NetworkInterfaceMustHaveAtLeastOneIpConfiguration", map[string]any{}, nil},
		{"no such group", nics, "InvalidResourceReference", map[string]any{"networkSecurityGroup": map[string]any{"id": id(nsgs, "none")}, "ipConfigurations": nicProps(w.subnet, "")["ipConfigurations"]}, nil},
		{"dynamic standard address", ips, "StandardSkuPublicIPAddressesMustBeStatic", map[string]any{"publicIPAllocationMethod": "Dynamic"}, standard},
		{"priority", nsgs, "SecurityRuleInvalidPriority", map[string]any{"securityRules": []any{rule(99)}}, nil},
		{"same priority", nsgs, "SecurityRuleConflict", map[string]any{"securityRules": []any{rule(100), rule(100)}}, nil},
		{"prefix", vnets, "InvalidAddressPrefixFormat", map[string]any{"addressSpace": map[string]any{"addressPrefixes": []any{"10.0.0.0"}}}, nil},
		{"subnet outside", vnets, "NetcfgSubnetRangeOutsideVnet", map[string]any{"addressSpace": map[string]any{"addressPrefixes": []any{"10.9.0.0/24"}},
			"subnets": []any{map[string]any{"name": "s", "properties": map[string]any{"addressPrefix": "10.8.0.0/24"}}}}, nil},
	} {
		if _, err := w.put(c.typ, "bad", c.props, c.more); code(t, err) != c.code {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	if _, err := w.put(strings.TrimSuffix(w.subnet, "/front"), "", nil); err == nil {
		t.Error("a path without a name was taken")
	}
	if _, err := w.put(strings.TrimSuffix(w.subnet, "/front"), "over", map[string]any{"addressPrefix": "10.0.1.128/25"}); code(t, err) != "NetcfgSubnetRangesOverlap" {
		t.Errorf("overlap: %v", err)
	}
	w.SetQuota("PublicIPAddresses", 1)
	ip := must(w.put(ips, "ip", map[string]any{"publicIPAllocationMethod": "Static"}, standard))(t)
	_, err := w.put(ips, "ip2", map[string]any{"publicIPAllocationMethod": "Static"}, standard)
	want(t, err, 400, "PublicIPCountLimitReached")
	nsg := must(w.put(nsgs, "nsg", map[string]any{"securityRules": []any{rule(100)}}))(t)
	props := nicProps(w.subnet, "")
	props["networkSecurityGroup"] = map[string]any{"id": nsg}
	props["ipConfigurations"].([]any)[0].(map[string]any)["properties"].(map[string]any)["publicIPAddress"] = map[string]any{"id": ip}
	nic := must(w.put(nics, "full", props))(t)
	want(t, w.remove(nsg), 400, "InUseNetworkSecurityGroupCannotBeDeleted")
	want(t, w.remove(ip), 400, "PublicIPAddressCannotBeDeleted")
	props2 := nicProps(w.subnet, "")
	props2["ipConfigurations"].([]any)[0].(map[string]any)["properties"].(map[string]any)["publicIPAddress"] = map[string]any{"id": ip}
	if _, err := w.put(nics, "full2", props2); code(t, err) != "PublicIPAddressInUse" {
		t.Errorf("public address of another: %v", err)
	}
	for _, at := range []string{nic, nsg, ip} {
		if err := w.remove(at); err != nil {
			t.Error(err)
		}
	}
}

func TestMachineRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	if _, err := w.simpleVM("good"); err != nil {
		t.Fatal(err)
	}
	osDisk := must(w.disk("os"))(t)
	nic := must(w.put("Microsoft.Network/networkInterfaces", "nic", nicProps(w.subnet, "")))(t)
	var more []string
	for _, n := range []string{"n2", "n3"} {
		more = append(more, must(w.put("Microsoft.Network/networkInterfaces", n, nicProps(w.subnet, "")))(t))
	}
	premium := must(w.disk("premium", func(d *armcompute.Disk) { d.SKU.Name = to.Ptr(armcompute.DiskStorageAccountTypesPremiumLRS) }))(t)
	zonal := must(w.disk("zonal", func(d *armcompute.Disk) { d.Zones = []*string{to.Ptr("1")} }))(t)
	waiting := must(w.disk("waiting", func(d *armcompute.Disk) {
		d.Properties.DiskSizeGB = nil
		d.Properties.CreationData = &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionUpload), UploadSizeBytes: to.Ptr(int64(20<<20 + 512))}
	}))(t)
	type spec = armcompute.VirtualMachine
	size := func(name string) func(*spec) {
		return func(s *spec) { s.Properties.HardwareProfile.VMSize = to.Ptr(armcompute.VirtualMachineSizeTypes(name)) }
	}
	data := func(ids ...string) func(*spec) {
		return func(s *spec) {
			for i, d := range ids {
				s.Properties.StorageProfile.DataDisks = append(s.Properties.StorageProfile.DataDisks, &armcompute.DataDisk{Lun: to.Ptr(int32(i)),
					CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), ManagedDisk: &armcompute.ManagedDiskParameters{ID: &d}})
			}
		}
	}
	for _, c := range []struct {
		name, code string
		mod        func(*spec)
	}{
		{"unknown size", "InvalidParameter", size("Standard_Z9")},
		{"restricted size", "SkuNotAvailable", size("Standard_D2s_v3")},
		{"generation", "BadRequest", size("Standard_A2_v2")},
		{"no such disk", "NotFound", func(s *spec) { s.Properties.StorageProfile.OSDisk.ManagedDisk.ID = to.Ptr(osDisk + "x") }},
		{"attached disk", "ConflictingUserInput", func(s *spec) {
			s.Properties.StorageProfile.OSDisk.ManagedDisk.ID = to.Ptr(id("Microsoft.Compute/disks", "good-os"))
		}},
		{"disk waits for upload", "OperationNotAllowed", data(waiting)},
		{"disk of a zone", "BadRequest", data(zonal)},
		{"same disk twice", "OperationNotAllowed", data(premium, premium)},
		{"too many disks", "OperationNotAllowed", data("a", "b", "c", "d", "e")},
		{"osProfile beside attached disk", "InvalidParameter", func(s *spec) { s.Properties.OSProfile = &armcompute.OSProfile{ComputerName: to.Ptr("x")} }},
		{"no type of OS", "InvalidParameter", func(s *spec) { s.Properties.StorageProfile.OSDisk.OSType = nil }},
		{"no interface", "InvalidParameter", func(s *spec) { s.Properties.NetworkProfile.NetworkInterfaces = nil }},
		{"interface of another", "NicInUse", func(s *spec) {
			s.Properties.NetworkProfile.NetworkInterfaces[0].ID = to.Ptr(id("Microsoft.Network/networkInterfaces", "good-nic"))
		}},
		{"no primary", "VirtualMachineMustHaveOneNetworkInterfaceAsPrimary", func(s *spec) {
			s.Properties.NetworkProfile.NetworkInterfaces = append(s.Properties.NetworkProfile.NetworkInterfaces, &armcompute.NetworkInterfaceReference{ID: &more[0]})
		}},
		{"too many interfaces", "NetworkInterfaceCountExceeded", func(s *spec) {
			for i := range more {
				s.Properties.NetworkProfile.NetworkInterfaces = append(s.Properties.NetworkProfile.NetworkInterfaces, &armcompute.NetworkInterfaceReference{ID: &more[i]})
			}
		}},
		{"no such set", "NotFound", func(s *spec) {
			s.Properties.AvailabilitySet = &armcompute.SubResource{ID: to.Ptr(id("Microsoft.Compute/availabilitySets", "x"))}
		}},
		{"licence", "InvalidParameter", func(s *spec) { s.Properties.LicenseType = to.Ptr("Mine") }},
		{"image", "SimulatorUnsupported", func(s *spec) {
			s.Properties.StorageProfile.ImageReference = &armcompute.ImageReference{Offer: to.Ptr("x")}
		}},
		{"region", "LocationNotAvailableForResourceType", func(s *spec) { s.Location = to.Ptr("eastus") }},
	} {
		s := vmSpec(osDisk, nic)
		c.mod(&s)
		if _, err := w.vm("bad", s); code(t, err) != c.code {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	if _, err := w.vm("bad_name", vmSpec(osDisk, nic)); code(t, err) != "InvalidResourceName" {
		t.Errorf("name: %v", err)
	}
	w.SetQuota("cores", 3)
	_, err := w.vm("bad", vmSpec(osDisk, nic))
	want(t, err, 409, "OperationNotAllowed")
	if !strings.Contains(err.Error(), "Current Limit: 3, Current Usage: 2, Additional Required: 2, (Minimum) New Limit Required: 4") {
		t.Errorf("quota says %v", err)
	}
	w.SetQuota("cores", 100)
	w.SetQuota("standardDSv5Family", 2)
	if _, err = w.vm("bad", vmSpec(osDisk, nic)); !strings.Contains(err.Error(), "standardDSv5Family Cores quota") {
		t.Errorf("quota of the family: %v", err)
	}
	w.SetQuota("standardDSv5Family", 100)
	w.Restrict("Standard_D2s_v5", "QuotaId")
	if _, err = w.vm("bad", vmSpec(osDisk, nic)); code(t, err) != "SkuNotAvailable" {
		t.Errorf("restricted: %v", err)
	}
	w.Restrict("Standard_D2s_v5", "")
	if _, err := w.vm("late", vmSpec(osDisk, nic)); err != nil { // nothing of the refusals stuck
		t.Error(err)
	}
}

func TestRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	_, err := w.disks.Get(w.ctx(), "nogroup", "d", nil)
	want(t, err, 404, "ResourceGroupNotFound")
	_, err = w.disks.Get(w.ctx(), group, "d", nil)
	want(t, err, 404, "ResourceNotFound")
	other, err := armcompute.NewDisksClient("0a5e0000-0000-4000-8000-00000000ffff", w.cred, w.options)
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Get(w.ctx(), group, "d", nil)
	want(t, err, 404, "SubscriptionNotFound")

	d := must(w.disk("d"))(t)
	w.AddLock(d)
	want(t, w.remove(d), 409, "ScopeLocked")
	_, err = w.groups.BeginDelete(w.ctx(), group, nil)
	want(t, err, 409, "ScopeLocked")
	w.RemoveLock(d)

	w.Deny("Microsoft.Compute/disks/delete")
	w.Deny("Microsoft.Network/*")
	err = w.remove(d)
	want(t, err, 403, "AuthorizationFailed")
	if !strings.Contains(err.Error(), "action 'Microsoft.Compute/disks/delete' over scope '"+d) {
		t.Errorf("the refusal says %v", err)
	}
	_, err = w.put("Microsoft.Network/networkInterfaces", "n", nicProps(w.subnet, ""))
	want(t, err, 403, "AuthorizationFailed")
	w.Allow()

	w.SetProvider("Microsoft.Compute", "NotRegistered")
	_, err = w.disk("e")
	want(t, err, 409, "MissingSubscriptionRegistration")
	w.SetProvider("Microsoft.Compute", "Registered")
	w.DenyPolicy(func(kind string, body map[string]any) string {
		if tags, _ := body["tags"].(map[string]any); kind == "Microsoft.Compute/disks" && tags["cost"] == nil {
			return "require-cost-tag"
		}
		return ""
	})
	_, err = w.disk("e")
	want(t, err, 403, "RequestDisallowedByPolicy")
	if _, err = w.disk("e", func(d *armcompute.Disk) { d.Tags = map[string]*string{"cost": to.Ptr("1")} }); err != nil {
		t.Error(err)
	}
	_, err = w.disk("f", func(d *armcompute.Disk) { d.Tags = map[string]*string{"a/b": to.Ptr("1")} })
	want(t, err, 400, "InvalidTagNameCharacters")

	w.Directory().RevokeTokens()
	_, err = w.disks.Get(w.ctx(), group, "d", nil)
	want(t, err, 401, "InvalidAuthenticationToken")
	res, err := w.http.Get(w.URL() + "/subscriptions?api-version=2022-12-01")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized || !strings.Contains(res.Header.Get("WWW-Authenticate"), azsim.DefaultTenant) || res.Header.Get("x-ms-request-id") == "" {
		t.Errorf("without token: %d %v", res.StatusCode, res.Header)
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	if _, err := w.groups.CreateOrUpdate(w.ctx(), "other", armresources.ResourceGroup{Location: to.Ptr("westeurope"), Tags: map[string]*string{"a": to.Ptr("b")}}, nil); err != nil {
		t.Fatal(err)
	}
	tag := func(v string) func(*armcompute.Disk) {
		return func(d *armcompute.Disk) { d.Tags = map[string]*string{"holdfast-owner": &v} }
	}
	for _, n := range []string{"a", "b"} {
		if _, err := w.disk(n, tag("me")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.disk("c", tag("you")); err != nil {
		t.Fatal(err)
	}
	list := func(filter string) (names []string) {
		t.Helper()
		pager := w.res.NewListByResourceGroupPager(group, &armresources.ClientListByResourceGroupOptions{Filter: &filter})
		for pager.More() {
			page := must(pager.NextPage(w.ctx()))(t)
			for _, r := range page.Value {
				names = append(names, *r.Name)
			}
		}
		return names
	}
	for filter, expect := range map[string]string{
		"tagName eq 'holdfast-owner' and tagValue eq 'me'": "a b",
		"tagName eq 'Holdfast-Owner'":                      "a b c",
		"tagName eq 'none'":                                "",
		"resourceType eq 'Microsoft.Compute/disks'":        "a b c",
		"name eq 'net'":                                    "net",
	} {
		if got := strings.Join(list(filter), " "); got != expect {
			t.Errorf("%s: %q, want %q", filter, got, expect)
		}
	}
	bad := w.res.NewListByResourceGroupPager(group, &armresources.ClientListByResourceGroupOptions{Filter: to.Ptr("tagName like 'x'")})
	_, err := bad.NextPage(w.ctx())
	want(t, err, 400, "InvalidFilterInQueryString")

	if _, err := w.simpleVM("vm"); err != nil {
		t.Fatal(err)
	}
	p, err := w.groups.BeginDelete(w.ctx(), group, nil)
	must(wait(w.ctx(), p, err))(t)
	if left := w.Resources(); len(left) != 1 || left[0].Name != "other" {
		t.Errorf("after the group: %v", types(left))
	}
	if names := w.Pages().Names(); len(names) != 0 {
		t.Errorf("content left behind: %v", names)
	}
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azsim.Config{})
	try := func(cred interface {
		GetToken(ctx ctxType, o tokenOptions) (accessToken, error)
	}) string {
		_, err := cred.GetToken(w.ctx(), tokenOptions{Scopes: []string{w.URL() + "/.default"}})
		if err == nil {
			return ""
		}
		i := strings.Index(err.Error(), "AADSTS")
		if i < 0 {
			return err.Error()
		}
		return strings.TrimRight(err.Error()[i:i+13], ": ")
	}
	const tenant, client, secret = azsim.DefaultTenant, azsim.DefaultClientID, azsim.DefaultClientSecret
	strange := "0a5e0000-0000-4000-8000-00000000ffff"
	for _, c := range []struct{ name, tenant, client, secret, code string }{
		{"good", tenant, client, secret, ""},
		{"secret", tenant, client, "wrong", "AADSTS7000215"},
		{"client", tenant, strange, secret, "AADSTS700016"},
		{"tenant", strange, client, secret, "AADSTS90002"},
	} {
		if got := try(w.secret(c.tenant, c.client, c.secret)); got != c.code {
			t.Errorf("%s: %q, want %q", c.name, got, c.code)
		}
	}
	w.Directory().ExpireSecret(true)
	if got := try(w.secret(tenant, client, secret)); got != "AADSTS7000222" {
		t.Errorf("expired secret: %s", got)
	}
	certs, key := certificate(t)
	cert, err := azidentity.NewClientCertificateCredential(tenant, client, certs, key, &azidentity.ClientCertificateCredentialOptions{ClientOptions: w.options.ClientOptions, DisableInstanceDiscovery: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := try(cert); got != "" {
		t.Errorf("certificate: %s", got)
	}
	federated := func(subject string) *azidentity.ClientAssertionCredential {
		c, err := azidentity.NewClientAssertionCredential(tenant, client, func(ctxType) (string, error) { return fakeJWT(subject), nil },
			&azidentity.ClientAssertionCredentialOptions{ClientOptions: w.options.ClientOptions, DisableInstanceDiscovery: true})
		return must(c, err)(t)
	}
	w.Directory().SetFederatedSubject("system:serviceaccount:holdfast:agent")
	if got := try(federated("system:serviceaccount:holdfast:agent")); got != "" {
		t.Errorf("federated: %s", got)
	}
	if got := try(federated("somebody")); got != "AADSTS700213" {
		t.Errorf("federated, wrong subject: %s", got)
	}
}
