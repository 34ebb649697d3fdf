package reach_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/reach"
)

// lines are the addresses of endpoints: "name host:port/protocol".
func lines(list []reach.Endpoint) (out []string) {
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s %s/%s", e.Name, e.Address(), e.Protocol))
	}
	return out
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	const ntp = "time time.windows.com:123/udp"
	both := []dr.AgentRole{dr.RoleSource, dr.RoleRecovery}
	custom := reach.Cloud{ResourceManager: "127.0.0.1:8443", Authority: "127.0.0.1:8444", BlobSuffix: "blob.local.example"}
	path := reach.Cloud{ResourceManager: "127.0.0.1:8443", Authority: "127.0.0.1:8443", BlobSuffix: "https://127.0.0.1:8445/{account}"}
	for name, c := range map[string]struct {
		cfg  reach.Config
		want []string
	}{
		"nothing known":   {reach.Config{}, []string{"vault VAULT:443/https", ntp}},
		"vault and S3":    {reach.Config{VaultURL: "https://Vault.Example.org:8443/x", Stores: []string{"s3://cuts/a?region=eu-west-1"}}, []string{"vault vault.example.org:8443/https", "store cuts.s3.eu-west-1.amazonaws.com:443/https", ntp}},
		"S3 in China":     {reach.Config{Stores: []string{"s3://cuts?region=cn-north-1&path-style=true"}}, []string{"vault VAULT:443/https", "store s3.cn-north-1.amazonaws.com.cn:443/https", ntp}},
		"S3, no region":   {reach.Config{Stores: []string{"s3://cuts"}}, []string{"vault VAULT:443/https", "store cuts.s3.*.amazonaws.com:443/https", ntp}},
		"MinIO":           {reach.Config{Stores: []string{"s3://cuts?endpoint=https://minio.example.org:9000&path-style=true"}}, []string{"vault VAULT:443/https", "store minio.example.org:9000/https", ntp}},
		"S3, by bucket":   {reach.Config{Stores: []string{"s3://cuts?endpoint=https://s3.example.org"}}, []string{"vault VAULT:443/https", "store cuts.s3.example.org:443/https", ntp}},
		"the vault's own": {reach.Config{VaultURL: "https://v.example.org", Stores: []string{"/var/lib/store", "file:///srv", "https://v.example.org/store"}}, []string{"vault v.example.org:443/https", ntp}},
		"Azure store":     {reach.Config{Stores: []string{"azure://cuts/p?account=contoso"}}, []string{"vault VAULT:443/https", "store contoso.blob.core.windows.net:443/https", ntp}},
		"two stores": {reach.Config{Cloud: "AzureGovernment", Stores: []string{"azure://cuts?account=contoso", "azure://cuts?account=other&endpoint=https://other.blob.core.windows.net"}},
			[]string{"vault VAULT:443/https", "store contoso.blob.core.usgovcloudapi.net:443/https", "store-2 other.blob.core.windows.net:443/https", ntp}},
		"emulator":                    {reach.Config{Stores: []string{"azure://cuts?auth=emulator"}}, []string{"vault VAULT:443/https", "store 127.0.0.1:10000/http", ntp}},
		"recovery only":               {reach.Config{Roles: []dr.AgentRole{dr.RoleRecovery}, Stores: []string{"azure://cuts?account=contoso"}}, []string{"vault VAULT:443/https", ntp}},
		"recovery in Azure":           {reach.Config{Roles: both, Azure: &reach.Site{StorageAccount: "warm"}}, []string{"vault VAULT:443/https", "arm management.azure.com:443/https", "entra login.microsoftonline.com:443/https", "disks *.blob.storage.azure.net:443/https", "disks md-*.blob.core.windows.net:443/https", "replica warm.blob.core.windows.net:443/https", ntp}},
		"Government":                  {reach.Config{Cloud: "government", Azure: &reach.Site{ManagedIdentity: true}}, []string{"vault VAULT:443/https", "arm management.usgovcloudapi.net:443/https", "entra login.microsoftonline.us:443/https", "disks md-*.blob.core.usgovcloudapi.net:443/https", "identity 169.254.169.254:80/http", ntp}},
		"China":                       {reach.Config{Cloud: "AzureChina", Azure: &reach.Site{}}, []string{"vault VAULT:443/https", "arm management.chinacloudapi.cn:443/https", "entra login.chinacloudapi.cn:443/https", "disks md-*.blob.core.chinacloudapi.cn:443/https", ntp}},
		"custom":                      {reach.Config{Cloud: "custom", Custom: custom, Azure: &reach.Site{StorageAccount: "warm"}}, []string{"vault VAULT:443/https", "arm 127.0.0.1:8443/https", "entra 127.0.0.1:8444/https", "disks *.blob.local.example:443/https", "replica warm.blob.local.example:443/https", ntp}},
		"custom, account in the path": {reach.Config{Cloud: "custom", Custom: path, Azure: &reach.Site{StorageAccount: "warm"}}, []string{"vault VAULT:443/https", "arm 127.0.0.1:8443/https", "entra 127.0.0.1:8443/https", "disks 127.0.0.1:8445/https", "replica 127.0.0.1:8445/https", ntp}},
		"custom, no storage":          {reach.Config{Cloud: "custom", Custom: reach.Cloud{ResourceManager: "a.example", Authority: "b.example"}, Azure: &reach.Site{}}, []string{"vault VAULT:443/https", "arm a.example:443/https", "entra b.example:443/https", ntp}},
		"IPv6":                        {reach.Config{VaultURL: "https://[fd00::1]:8443"}, []string{"vault [fd00::1]:8443/https", ntp}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list, err := reach.Endpoints(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := lines(list); !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			for _, e := range list {
				if e.Direction != "outbound" || e.Purpose == "" || e.Breaks == "" || len(e.Roles) == 0 {
					t.Errorf("%+v says not enough", e)
				}
				if e.Protocol == reach.HTTPS && e.Port == 443 && strings.Contains(e.Host, "windows.net") && len(e.Signers) == 0 {
					t.Errorf("%s may be signed by anybody", e.Host)
				}
			}
		})
	}
	for name, cfg := range map[string]reach.Config{
		"http vault": {VaultURL: "http://v.example.org"}, "password": {VaultURL: "https://a:geheim@v.example.org"}, "port": {VaultURL: "https://v.example.org:0"},
		"control": {VaultURL: "https://v\x7f.example.org:geheim"}, "cloud": {Cloud: "AzureMoon"}, "custom without addresses": {Cloud: "custom"},
		"store": {Stores: []string{"ftp://geheim"}}, "store password": {Stores: []string{"s3://a:geheim@b"}}, "no account": {Stores: []string{"azure://cuts"}},
		"endpoint": {Stores: []string{"s3://b?endpoint=ftp://geheim"}}, "endpoint password": {Stores: []string{"s3://b?endpoint=https://a:geheim@h"}},
		"custom store": {Cloud: "custom", Custom: reach.Cloud{ResourceManager: "a", Authority: "b"}, Stores: []string{"azure://cuts?account=contoso"}},
		"manager":      {Cloud: "custom", Custom: reach.Cloud{ResourceManager: "a:geheim@x", Authority: "b", BlobSuffix: "c"}, Azure: &reach.Site{}},
	} {
		if list, err := reach.Endpoints(cfg); dr.KindOf(err) != dr.KindInvalid || strings.Contains(err.Error(), "geheim") || list != nil {
			t.Errorf("%s: %v, %v", name, lines(list), err)
		}
	}
}

// TestSiteRecovery: rows of a published list; the clouds know the hosts that both have.
func TestSiteRecovery(t *testing.T) {
	t.Parallel()
	rows := reach.SiteRecovery()
	if len(rows) != 4 {
		t.Fatalf("%d rows", len(rows))
	}
	for i, cloud := range reach.Clouds()[:2] {
		for _, r := range rows[:2] {
			host := []string{r.Commercial, r.Government}[i]
			if want := []string{"*." + cloud.BlobSuffix, cloud.Authority}; !slices.Contains(want, host) {
				t.Errorf("%s: %s is none of %v", cloud.Name, host, want)
			}
		}
	}
}

func FuzzEndpoints(f *testing.F) {
	for _, s := range []string{"azure://c?account=a", "s3://b?endpoint=https://h:1", "https://h/x?sig=geheim", "file:///x", "/x", "azure://c?account=%00&endpoint=https://[::1]:99999", "s3://b?region=.."} {
		f.Add(s, "https://v:8443")
	}
	f.Fuzz(func(t *testing.T, store, vault string) {
		list, err := reach.Endpoints(reach.Config{VaultURL: vault, Stores: []string{store}})
		if err != nil {
			if dr.KindOf(err) != dr.KindInvalid {
				t.Errorf("%v", err)
			}
			return
		}
		for _, e := range list {
			if e.Host == "" || e.Port < 1 || e.Port > 65535 || strings.ContainsAny(e.Host, " /\\@\r\n") {
				t.Errorf("endpoint %+v", e)
			}
		}
	})
}
