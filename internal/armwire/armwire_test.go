package armwire

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sampleKeyFile() KeyFile {
	return KeyFile{
		SubscriptionID: "5b5dc3a4-0c8b-4a8e-9d43-2f6c6c7c9a11", ResourceGroup: "Group-One", VaultName: "vault1", ResourceID: 4711, Location: "onprem", TenantID: "9e0c2d7c-5f55-4c1b-8d5e-3a3c39a9c1f0",
		SiteID: "0c6b7a52-4f53-4f0c-9a55-6f0b3f1d0a01", SiteName: `Berlin <A> & "B"`,
		Credential: Credential{Version: 1, VaultURL: "https://vault.example:8443", CAPin: strings.Repeat("ab", 32), KeyID: "key-1", Secret: "hfk_s3cret", Fabric: "0c6b7a52-4f53-4f0c-9a55-6f0b3f1d0a01",
			Expires: time.Date(2026, 11, 27, 3, 0, 0, 0, time.UTC)},
	}
}

func TestKeyFileGolden(t *testing.T) {
	t.Parallel()
	k := sampleKeyFile()
	got, err := k.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "keyfile.golden.xml")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("key file:\n%s\nwant\n%s", got, want)
	}
	back, err := DecodeKeyFile(want)
	if err != nil || !reflect.DeepEqual(back, k) {
		t.Errorf("decoded %+v, %v", back, err)
	}
}

// TestKeyFileOfOthers reads a file as another program writes it: other element
// order, prefixes, white space in the base64, unknown elements, no namespace.
func TestKeyFileOfOthers(t *testing.T) {
	t.Parallel()
	cert := base64.StdEncoding.EncodeToString(sampleKeyFile().Credential.Bytes())
	file := fmt.Sprintf(`<?xml version="1.0" encoding="utf-8"?><RSVaultAsrCreds xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><SiteName>s</SiteName><Extra><A/></Extra>
<Version>2.0</Version><ManagementCert>
%s
%s</ManagementCert><ChannelIntegrityKey></ChannelIntegrityKey><SiteId>x</SiteId></RSVaultAsrCreds>`, cert[:10], cert[10:])
	k, err := DecodeKeyFile([]byte(file))
	if err != nil || k.Credential.Secret != "hfk_s3cret" || k.SiteName != "s" {
		t.Errorf("%+v, %v", k, err)
	}
}

func TestKeyFileRefused(t *testing.T) {
	t.Parallel()
	good, err := sampleKeyFile().Encode()
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*Credential)) string {
		k := sampleKeyFile()
		f(&k.Credential)
		b, err := k.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	newer := base64.StdEncoding.EncodeToString([]byte(`{"holdfastCredential":2,"vaultUrl":"https://x","keyId":"a","secret":"b","fabricId":"c"}`))
	for name, file := range map[string]string{
		"empty": "", "no XML": "hello", "other root": "<Creds><Version>2.0</Version></Creds>", "old version": strings.Replace(string(good), "<Version>2.0<", "<Version>1.1<", 1),
		"cut": string(good[:len(good)/2]), "not base64": strings.Replace(string(good), "<ManagementCert>", "<ManagementCert>!", 1),
		"a real certificate": "<RSVaultAsrCreds><Version>2.0</Version><ManagementCert>MIIB</ManagementCert></RSVaultAsrCreds>",
		"newer":              "<RSVaultAsrCreds><Version>2.0</Version><ManagementCert>" + newer + "</ManagementCert></RSVaultAsrCreds>",
		"no secret":          change(func(c *Credential) { c.Secret = "" }), "no URL": change(func(c *Credential) { c.VaultURL = "vault" }), "no site": change(func(c *Credential) { c.Fabric = "" }),
		"huge": strings.Repeat(" ", MaxKeyFile) + string(good),
	} {
		if _, err := DecodeKeyFile([]byte(file)); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error tells the secret", name)
		}
	}
}

func TestCredentialIsNotPrinted(t *testing.T) {
	t.Parallel()
	c := sampleKeyFile().Credential
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "c", c)
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), b.String()} {
		if strings.Contains(s, "s3cret") {
			t.Errorf("the secret is in %q", s)
		}
	}
}

func FuzzDecodeKeyFile(f *testing.F) {
	b, err := sampleKeyFile().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("<RSVaultAsrCreds><Version>2.0</Version></RSVaultAsrCreds>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := DecodeKeyFile(b)
		if err != nil {
			return
		}
		if k.Credential.Secret == "" || k.Credential.KeyID == "" || k.Credential.VaultURL == "" {
			t.Fatalf("accepted without what a host needs: %+v", k)
		}
	})
}

func TestParseID(t *testing.T) {
	t.Parallel()
	v := VaultID{SubscriptionID: "s", ResourceGroup: "g", Vault: "v"}
	id, err := ParseID(strings.ToUpper(v.ID("replicationFabrics", "a%20b")) + "/")
	if err != nil || id.Types() != "replicationfabrics" || id.NameOf("ReplicationFabrics") != "A B" || !strings.EqualFold(id.VaultID.String(), v.String()) {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err := ParseID(v.ID("replicationFabrics")); err != nil || len(id.Segments) != 1 || id.Segments[0].Name != "" {
		t.Errorf("collection: %+v, %v", id, err)
	}
	for _, bad := range []string{"", "/", "/subscriptions/s", "/subscriptions/s/resourceGroups/g/providers/Other/vaults/v", v.String() + "//x", v.String() + "/%zz/x"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	if got := ResourceType("a", "1", "b", "2"); got != "Microsoft.RecoveryServices/vaults/a/b" {
		t.Errorf("type %s", got)
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(VaultID{"s", "g", "v"}.ID("replicationFabrics", "x", "recoveryPoints"))
	f.Add("/subscriptions/%2f/resourceGroups//providers")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if id.SubscriptionID == "" || id.ResourceGroup == "" || id.Vault == "" {
			t.Fatalf("%q: empty parts in %+v", s, id)
		}
		for i, seg := range id.Segments {
			if seg.Type == "" || (seg.Name == "" && i < len(id.Segments)-1) {
				t.Fatalf("%q: segment %d is empty: %+v", s, i, id)
			}
		}
	})
}

func TestVariant(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{`{"properties":{"providerSpecificInput":{"instanceType":"X","a":1}}}`: "X", `{"properties":{"providerSpecificInput":null}}`: "", `{"properties":{}}`: "", `{}`: "", `{"properties":{"providerSpecificInput":[1]}}`: ""} {
		var p Input[PolicyInput]
		if err := json.Unmarshal([]byte(in), &p); err != nil {
			t.Fatal(err)
		}
		if got := p.Properties.ProviderSpecificInput.InstanceType(); got != want {
			t.Errorf("%s: %q", in, got)
		}
	}
	b, err := json.Marshal(Input[PolicyInput]{Properties: PolicyInput{ProviderSpecificInput: NewVariant(PolicySettings{InstanceType: HyperVReplicaAzure})}})
	if err != nil || string(b) != `{"properties":{"providerSpecificInput":{"instanceType":"HyperVReplicaAzure"}}}` {
		t.Errorf("%s, %v", b, err)
	}
	if b, _ := json.Marshal(PolicyInput{}); string(b) != `{"providerSpecificInput":null}` {
		t.Errorf("%s", b)
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	if Time(time.Time{}) != nil {
		t.Error("the zero time is sent")
	}
	if got := Time(time.Date(2026, 1, 1, 1, 0, 0, 0, time.FixedZone("x", 3600))); got.Format(time.RFC3339) != "2026-01-01T00:00:00Z" {
		t.Errorf("%v", got)
	}
}

// TestSpelling pins the field names whose spelling surprises: clients compare
// them with case, and a wrong one reads as absent without an error.
func TestSpelling(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		v    any
		want []string
	}{
		{ReplicationDetails{OSDetails: &OSDetails{}, RecoveryAzureVMSize: "x", EnableRDPOnTargetOption: "x"}, []string{"azureVmDiskDetails", "recoveryAzureVmName", "recoveryAzureVMSize", "sourceVmRamSizeInMB", "sourceVmCpuCount", "oSDetails", "oSVersion", "enableRdpOnTargetOption", "vmNics"}},
		{NICDetails{IPConfigs: []IPConfigDetails{{}}}, []string{"nicId", "vMNetworkName", "isSeletedForFailover"}},
		{Provider{}, []string{"draIdentifier", "lastHeartBeat", "healthErrorDetails"}},
		{VMDetails{}, []string{"hasSharedVhd", "hasFibreChannelAdapter", "osDetails", "diskDetails"}},
		{HealthError{}, []string{"innerHealthErrors", "creationTimeUtc", "customerResolvability"}},
		{Fabric{}, []string{"bcdrState", "internalIdentifier", "kekState"}},
	} {
		b, err := json.Marshal(tt.v)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range tt.want {
			if !strings.Contains(string(b), `"`+name+`"`) && name != "lastHeartBeat" && name != "creationTimeUtc" {
				t.Errorf("%T lacks %s: %s", tt.v, name, b)
			}
		}
	}
}
