package arm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/dr"
)

const (
	testSub    = "11111111-2222-3333-4444-555555555555"
	testClient = "99999999-2222-3333-4444-555555555555"
)

func minimal() Config {
	return Config{Version: 1, Tenant: "contoso.onmicrosoft.com", Subscription: testSub, ResourceGroup: "dr"}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := minimal().Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*Config){
		"version":         func(c *Config) { c.Version = 2 },
		"cloud":           func(c *Config) { c.Cloud = "azurepublic" },
		"authority":       func(c *Config) { c.Authority = "https://login.example" },
		"resourceManager": func(c *Config) { c.Cloud, c.Authority, c.ResourceManager = CustomCloud, "https://a", "http://b" },
		"storageSuffix": func(c *Config) {
			c.Cloud, c.Authority, c.ResourceManager, c.StorageSuffix = CustomCloud, "https://a", "https://b", "http://x/{account}"
		},
		"tenant":               func(c *Config) { c.Tenant = "a/b" },
		"subscription":         func(c *Config) { c.Subscription = "prod" },
		"resourceGroup":        func(c *Config) { c.ResourceGroup = "a/b" },
		"resourceGroup ":       func(c *Config) { c.ResourceGroup = "dot." },
		"location":             func(c *Config) { c.Location = "West Europe" },
		"credential.kind":      func(c *Config) { c.Credential.Kind = "password" },
		"credential.clientId":  func(c *Config) { c.Credential.Kind = CredentialSecret },
		"credential.clientId ": func(c *Config) { c.Credential = Credential{Kind: CredentialManaged, ClientID: "me"} },
		"tenant ": func(c *Config) {
			c.Tenant, c.Credential = "", Credential{Kind: CredentialWorkload, ClientID: testClient}
		},
		"credential.secretFile":      func(c *Config) { c.Credential = Credential{Kind: CredentialManaged, SecretFile: "/x"} },
		"credential.certificateFile": func(c *Config) { c.Credential.CertificateFile = "/x" },
		"network":                    func(c *Config) { c.Network = "a/b/c" },
		"network ": func(c *Config) {
			c.Network = "/subscriptions/x/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n"
		},
		"testNetwork":    func(c *Config) { c.TestNetwork = "../x" },
		"securityGroup":  func(c *Config) { c.SecurityGroup = "?" },
		"subnet":         func(c *Config) { c.Subnet = "s" },
		"zone":           func(c *Config) { c.Zone = "4" },
		"zone ":          func(c *Config) { c.Zone, c.AvailabilitySet = "1", "as" },
		"diskType":       func(c *Config) { c.DiskType = "UltraSSD_LRS" },
		"size":           func(c *Config) { c.Size = "D2 v5" },
		"container":      func(c *Config) { c.StorageAccount = "acc" },
		"storageAccount": func(c *Config) { c.StorageAccount, c.Container = "Acc!", "box" },
		"storageKeyFile": func(c *Config) { c.StorageKeyFile = "/k" },
		"tags":           func(c *Config) { c.Tags = map[string]string{"a/b": "c"} },
		"tags ":          func(c *Config) { c.Tags = map[string]string{"Holdfast-Owner": "me"} },
	} {
		c := minimal()
		change(&c)
		err := c.Validate()
		if dr.CodeOf(err) != dr.CodeAzureConfiguration || !strings.HasPrefix(err.Error(), strings.TrimSpace(field)+" ") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(text string) string {
		p := filepath.Join(dir, "azure.json")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := `{"version":1,"tenant":"t.example","subscription":"` + testSub + `","resourceGroup":"dr","credential":{"kind":"secret","clientId":"` + testClient + `","secretFile":"s.txt"}}`
	c, err := Load(write(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Credential.SecretFile != filepath.Join(dir, "s.txt") {
		t.Errorf("relative path became %q", c.Credential.SecretFile)
	}
	for name, text := range map[string]string{
		"unknown field":   strings.Replace(good, `"version":1`, `"version":1,"regoin":"x"`, 1),
		"a secret inline": strings.Replace(good, `"secretFile":"s.txt"`, `"secret":"hunter2"`, 1),
		"two objects":     good + good, "no JSON": "version: 1", "empty": "",
	} {
		_, err := Load(write(text))
		if dr.CodeOf(err) != dr.CodeAzureConfiguration || dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if name == "unknown field" && !strings.Contains(err.Error(), "regoin") {
			t.Errorf("the field is not named: %v", err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the secret is told: %v", err)
		}
	}
	if _, err := Load(filepath.Join(dir, "none")); dr.CodeOf(err) != dr.CodeAzureConfiguration {
		t.Errorf("missing file: %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ cloud, authority, manager, blob string }{
		{"", "https://login.microsoftonline.com", "https://management.azure.com", "https://acc.blob.core.windows.net"},
		{AzureGovernment, "https://login.microsoftonline.us", "https://management.usgovcloudapi.net", "https://acc.blob.core.usgovcloudapi.net"},
		{AzureChina, "https://login.chinacloudapi.cn", "https://management.chinacloudapi.cn", "https://acc.blob.core.chinacloudapi.cn"},
	} {
		e := Config{Cloud: x.cloud}.Endpoints()
		if e.Authority != x.authority || e.ResourceManager != x.manager || e.Blob("acc") != x.blob || e.Audience == "" {
			t.Errorf("%s: %+v %s", x.cloud, e, e.Blob("acc"))
		}
	}
	e := Config{Cloud: CustomCloud, Authority: "https://a/", ResourceManager: "https://b/", StorageSuffix: "https://c/storage/{account}"}.Endpoints()
	if e.Authority != "https://a" || e.Audience != "https://b" || e.Blob("acc") != "https://c/storage/acc" {
		t.Errorf("custom: %+v", e)
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	c := minimal()
	id := c.ID(TypeNetwork, "prod")
	for ref, want := range map[string]string{"prod": id, "dr/prod": id, id: id, "hub/prod": strings.Replace(id, "/dr/", "/hub/", 1)} {
		if got, err := c.Reference(TypeNetwork, ref); err != nil || got != want {
			t.Errorf("%s: %s %v", ref, got, err)
		}
	}
	sub := ID{testSub, "dr", TypeNetwork + "/subnets", "prod/web"}
	if p, ok := ParseID(sub.String()); !ok || p != sub || !strings.HasSuffix(sub.String(), "/virtualNetworks/prod/subnets/web") {
		t.Errorf("%s is read as %+v", sub, p)
	}
	if !SameID(id, strings.ToUpper(id)) || SameID(id, id+"x") {
		t.Error("SameID")
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(minimal().ID(TypeVM, "web"))
	f.Add("/subscriptions/a/resourceGroups/b/providers/c/d/e/f/g")
	f.Add("//////////")
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := ParseID(s); ok && !SameID(id.String(), s) {
			t.Errorf("%q became %q", s, id)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"subscription":"` + testSub + `","resourceGroup":"dr"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := Parse(text); err == nil && c.Validate() != nil {
			t.Error("read, and not valid")
		}
	})
}
