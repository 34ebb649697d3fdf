package azure_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	keyFile := filepath.Join(t.TempDir(), "key")
	for _, tt := range []struct {
		text string
		want azure.Config
	}{
		{"azure://vault-1?account=contoso", azure.Config{Container: "vault-1", Account: "contoso"}},
		{"azure://replicas/Site_A/x/?account=contoso", azure.Config{Container: "replicas", Prefix: "Site_A/x/", Account: "contoso"}},
		{"azure://replicas?account=contoso&endpoint=https://contoso.blob.core.usgovcloudapi.net&auth=entra",
			azure.Config{Container: "replicas", Account: "contoso", Endpoint: "https://contoso.blob.core.usgovcloudapi.net", Auth: azure.AuthEntra}},
		{"azure://replicas?account=contoso&endpoint=https://10.0.0.1:10000/contoso", azure.Config{Container: "replicas", Account: "contoso", Endpoint: "https://10.0.0.1:10000/contoso"}},
		{"azure://replicas?auth=emulator", azure.Config{Container: "replicas", Auth: azure.AuthEmulator}},
		{"azure://replicas?account=contoso&retain-mode=locked&retain-for=720h", azure.Config{Container: "replicas", Account: "contoso", RetainMode: azure.Locked, RetainFor: 720 * time.Hour}},
		{"azure://replicas?account=contoso&retain-mode=locked&retain-for=720h&retain-signed=Vault", azure.Config{Container: "replicas", Account: "contoso", RetainMode: azure.Locked, RetainFor: 720 * time.Hour, RetainSigned: azure.ByVault}},
		{"azure://inbox?account=contoso&dedicated=true", azure.Config{Container: "inbox", Account: "contoso", Dedicated: true}},
		{"azure://replicas?account=contoso&read-only=1&auth=anonymous", azure.Config{Container: "replicas", Account: "contoso", ReadOnly: true, Auth: azure.AuthAnonymous}},
		{"azure://replicas?account=contoso&key-file=" + url.QueryEscape(keyFile), azure.Config{Container: "replicas", Account: "contoso", KeyFile: keyFile}},
	} {
		got, err := azure.ParseURL(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v", tt.text, got, err)
		}
	}
	for _, text := range []string{
		"", "azure://", "azure:replicas", "https://replicas?account=contoso", "azure:///x?account=contoso", "azure://replicas", "azure://replicas?account=", "azure://ab?account=contoso",
		"azure://Replicas?account=contoso", "azure://re--plicas?account=contoso", "azure://-replicas?account=contoso", "azure://replicas:90?account=contoso", "azure://" + strings.Repeat("r", 64) + "?account=contoso",
		"azure://replicas?account=Contoso", "azure://replicas?account=co", "azure://replicas?account=con-toso", "azure://replicas#f?account=contoso", "azure://replicas//a?account=contoso",
		"azure://replicas//?account=contoso", "azure://replicas/a/../b?account=contoso", "azure://replicas/a./b?account=contoso", "azure://replicas/a%20b?account=contoso",
		"azure://replicas/" + strings.Repeat("p/", 200) + "?account=contoso", "azure://replicas/" + strings.Repeat("p", 600) + "?account=contoso",
		"azure://replicas?account=contoso&what=1", "azure://replicas?account=contoso&account=contoso", "azure://replicas?account=contoso&read-only=maybe",
		"azure://replicas?account=contoso&retain-for=1h", "azure://replicas?account=contoso&retain-mode=governance", "azure://replicas?account=contoso&retain-mode=locked&retain-for=30",
		"azure://replicas?account=contoso&retain-mode=locked&retain-for=-1h", "azure://replicas?account=contoso&retain-mode=locked&read-only=1",
		"azure://replicas?account=contoso&endpoint=contoso:9000", "azure://replicas?account=contoso&endpoint=ftp://x", "azure://replicas?account=contoso&endpoint=https://x/other",
		"azure://replicas?account=contoso&endpoint=http://contoso.blob.core.windows.net", "azure://replicas?account=contoso&endpoint=https://x?q", "azure://replicas?account=contoso&%zz",
		"azure://replicas?auth=emulator&endpoint=https://example.com", "azure://replicas?account=contoso&auth=magic", "azure://replicas?account=contoso&auth=entra&key-file=/k",
		"azure://replicas?account=contoso&key-file=k", "azure://replicas?account=contoso&retain-signed=vault", "azure://replicas?account=contoso&retain-mode=locked&retain-signed=vault",
		"azure://replicas?account=contoso&retain-mode=locked&retain-for=1h&retain-signed=host", "azure://inbox/p?account=contoso&dedicated=true", "azure://inbox?account=contoso&dedicated=perhaps",
	} {
		if c, err := azure.ParseURL(text); err == nil {
			t.Errorf("%q was taken: %+v", text, c)
		}
	}
}

// TestSecretsAreNotShown looks for a secret wherever it could leak.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"azure://contoso:hunter2@replicas", "azure://hunter2@replicas?account=contoso", "azure://replicas?account=contoso&endpoint=https://u:hunter2@x", "azure://a:hunter2@replicas/%zz",
		"azure://replicas?account=contoso&key=hunter2", "azure://replicas?account=contoso&sig=hunter2", "azure://replicas?account=contoso&endpoint=https://x%3Fsig=hunter2",
	} {
		if _, err := azure.ParseURL(text); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
	c := azure.Config{Container: "replicas", Prefix: "p", Account: "contoso", AccountKey: "hunter2"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("open", "store", c)
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), log.String()} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "azure://replicas/p at contoso.blob.core.windows.net") {
			t.Errorf("shown as %s", text)
		}
	}
}

// TestKeys looks at where a shared key comes from; what a call says shows which
// was found.
func TestKeys(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, []byte("not base64!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const bad = "the base64 text"
	base := azure.Config{Container: "replicas", Account: "contoso", Auth: azure.AuthKey}
	for name, tt := range map[string]struct {
		env    map[string]string
		change func(*azure.Config)
		want   string
	}{
		"none":            {nil, func(*azure.Config) {}, "no shared key is at hand"},
		"environment":     {map[string]string{azure.KeyVariable: "not base64!"}, func(*azure.Config) {}, bad},
		"file by name":    {map[string]string{azure.KeyFileVariable: file}, func(*azure.Config) {}, bad},
		"another account": {map[string]string{azure.KeyVariable: "not base64!", azure.AccountVariable: "fabrikam"}, func(*azure.Config) {}, "no shared key is at hand"},
		"this account":    {map[string]string{azure.KeyVariable: "not base64!", azure.AccountVariable: "contoso"}, func(*azure.Config) {}, bad},
		"file":            {nil, func(c *azure.Config) { c.KeyFile = file }, bad},
		"empty file":      {nil, func(c *azure.Config) { c.KeyFile = empty }, "is empty"},
		"missing file":    {nil, func(c *azure.Config) { c.KeyFile = filepath.Join(dir, "none") }, "read the shared key"},
		"directory":       {nil, func(c *azure.Config) { c.KeyFile = dir }, "not a file"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{azure.KeyVariable, azure.KeyFileVariable, azure.AccountVariable} {
				t.Setenv(v, tt.env[v])
			}
			c := base
			tt.change(&c)
			b, err := azure.New(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = b.Head(t.Context(), "v1/x"); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "not base64!") {
				t.Errorf("%v", err)
			}
		})
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"azure://replicas/p?account=contoso&endpoint=https://h:1", "azure://u:p@replicas", "azure://replicas?account=contoso&retain-mode=locked&retain-for=1h", "azure://replicas?auth=emulator", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := azure.ParseURL(text)
		if err != nil {
			return
		}
		if c.Validate() != nil || c.AccountKey != "" {
			t.Errorf("%q gave %+v", text, c)
		}
		if u, err := url.Parse(text); err != nil || u.User != nil {
			t.Errorf("%q was taken with credentials", text)
		}
	})
}

// TestNobodyToSignIn has neither a key nor an identity.
func TestNobodyToSignIn(t *testing.T) {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AZURE_") || strings.HasPrefix(name, "IDENTITY_") || strings.HasPrefix(name, "MSI_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("PATH", t.TempDir()) // no az
	b, err := azure.New(azure.Config{Container: "replicas", Account: "contoso", Attempts: 1, Transport: nowhere{}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Head(t.Context(), "v1/x")
	if !errors.Is(err, objstore.ErrUnavailable) || errors.Is(err, objstore.ErrNotExist) || !strings.Contains(err.Error(), azure.KeyVariable) || len(err.Error()) > 700 {
		t.Errorf("%v", err)
	}
}

type nowhere struct{}

func (nowhere) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return nil, errors.New("no route to host")
}
