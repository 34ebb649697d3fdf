package hosttool

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/agent/channel"
	"holdfast/internal/agent/state"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/s3/s3test"
)

// newApp prints to the buffer.
func newApp(asJSON bool) (*app, *bytes.Buffer) {
	out := &bytes.Buffer{}
	return &app{&console.Console{Out: out, Err: out, Now: time.Now, Width: console.MinWidth, JSON: asJSON}}, out
}

// urls runs 'agent urls'.
func urls(t *testing.T, asJSON bool, args ...string) (string, error) {
	t.Helper()
	a, out := newApp(asJSON)
	c := a.urlsCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// registration makes the state directory of an agent.
func registration(t *testing.T, vault string, ca []byte, roles ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := state.Make(dir); err != nil {
		t.Fatal(err)
	}
	id := &channel.Identity{Header: state.Current(), AgentID: "a", VaultURL: vault, Roles: roles, CA: string(ca), NotAfter: time.Now().Add(90 * 24 * time.Hour)}
	if err := state.Save(filepath.Join(dir, state.Identity), id); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "azure.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const site = `{"version":1,"subscription":"11111111-2222-3333-4444-555555555555","resourceGroup":"dr"%s}`

func TestURLs(t *testing.T) {
	t.Parallel()
	none := filepath.Join(t.TempDir(), "none")
	known := registration(t, "https://vault.example.org:8443", nil, "source", "recovery")
	gov := write(t, fmt.Sprintf(site, `,"cloud":"AzureGovernment","storageAccount":"warm","container":"replicas","credential":{"kind":"managed"}`))
	own := write(t, fmt.Sprintf(site, `,"cloud":"custom","authority":"https://login.local.example:8444","resourceManager":"https://arm.local.example:8443","storageSuffix":"https://blobs.local.example:8445/{account}","storageAccount":"warm","container":"replicas"`))
	const ntp = "time.windows.com:123/udp"
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"registered":       {[]string{"--state", known}, []string{"vault.example.org:8443", ntp}},
		"with a store":     {[]string{"--state", known, "--store", "azure://cuts?account=contoso"}, []string{"vault.example.org:8443", "contoso.blob.core.windows.net:443", ntp}},
		"another vault":    {[]string{"--state", known, "--vault", "https://v.example.org"}, []string{"v.example.org:443", ntp}},
		"Government":       {[]string{"--state", known, "--azure", gov}, []string{"vault.example.org:8443", "management.usgovcloudapi.net:443", "login.microsoftonline.us:443", "md-*.blob.core.usgovcloudapi.net:443", "warm.blob.core.usgovcloudapi.net:443", "169.254.169.254:80/http", ntp}},
		"custom":           {[]string{"--state", known, "--azure", own}, []string{"vault.example.org:8443", "arm.local.example:8443", "login.local.example:8444", "blobs.local.example:8445", "blobs.local.example:8445", ntp}},
		"from flags":       {[]string{"--vault", "https://v.example.org", "--store", "s3://cuts?region=eu-west-1", "--role", "source"}, []string{"v.example.org:443", "cuts.s3.eu-west-1.amazonaws.com:443", ntp}},
		"recovery only":    {[]string{"--vault", "https://v.example.org", "--store", "s3://cuts?region=eu-west-1", "--role", "recovery"}, []string{"v.example.org:443", ntp}},
		"a cloud's suffix": {[]string{"--vault", "https://v.example.org", "--cloud", "AzureChina", "--store", "azure://cuts?account=contoso", "--role", "source"}, []string{"v.example.org:443", "contoso.blob.core.chinacloudapi.cn:443", ntp}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := urls(t, false, append(slices.Clone(c.args), "--plain")...)
			if got := strings.Fields(out); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v\ngot  %q\nwant %q", err, got, c.want)
			}
			table, err := urls(t, false, c.args...)
			if err != nil {
				t.Error(err)
			}
			for line := range strings.Lines(table) {
				if len([]rune(strings.TrimRight(line, "\n"))) > console.MinWidth {
					t.Errorf("a line is too long: %q", line)
				}
			}
			for _, w := range c.want {
				if !strings.Contains(table, w) {
					t.Errorf("the table does not have %s:\n%s", w, table)
				}
			}
			text, err := urls(t, true, c.args...)
			var rows []urlRow
			if err != nil || json.Unmarshal([]byte(text), &rows) != nil || len(rows) != len(c.want) || rows[0].Direction != "outbound" || !rows[0].Required {
				t.Errorf("%v: %s", err, text)
			}
		})
	}
	broken := t.TempDir()
	if err := state.Make(broken); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, state.Identity), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		kind dr.Kind
	}{
		"a broken state":         {[]string{"--state", broken}, dr.KindCorrupt},
		"no such state":          {[]string{"--state", none}, dr.KindPrecondition},
		"a key in the store":     {[]string{"--state", known, "--store", "azure://cuts?account=a&sig=geheim"}, dr.KindInvalid},
		"a password":             {[]string{"--state", known, "--vault", "https://a:geheim@v.example.org"}, dr.KindInvalid},
		"a role":                 {[]string{"--state", known, "--role", "boss"}, dr.KindInvalid},
		"a cloud":                {[]string{"--state", known, "--cloud", "AzureMoon"}, dr.KindInvalid},
		"two clouds":             {[]string{"--state", known, "--cloud", "AzurePublic", "--azure", gov}, dr.KindInvalid},
		"two clouds, by default": {[]string{"--state", known, "--cloud", "AzureChina", "--azure", write(t, fmt.Sprintf(site, ""))}, dr.KindInvalid},
		"no recovery":            {[]string{"--state", known, "--role", "source", "--azure", gov}, dr.KindInvalid},
		"no configuration":       {[]string{"--state", known, "--azure", none}, dr.KindInvalid},
	} {
		if out, err := urls(t, false, c.args...); dr.KindOf(err) != c.kind || out != "" || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %s %v", name, out, err)
		}
	}
}

func TestURLsOfSiteRecovery(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{"": "*.servicebus.windows.net", "--cloud=AzureGovernment": "*.servicebus.usgovcloudapi.net"} {
		out, err := urls(t, false, append([]string{"--asr"}, strings.Fields(args)...)...)
		if err != nil || !strings.Contains(out, want) || strings.Count(out, "servicebus") != 1 {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// doctorOf is a doctor of the network of a registered host.
func doctorOf(t *testing.T, dir string) *doctor {
	t.Helper()
	a, _ := newApp(false)
	return &doctor{app: a, state: dir}
}

func (d *doctor) look(t *testing.T) {
	t.Helper()
	reg, err := channel.LoadRegistration(d.state)
	d.network(t.Context(), reg, err)
	for _, c := range d.list {
		if strings.Contains(fmt.Sprint(c), "geheim") {
			t.Errorf("a secret is told: %+v", c)
		}
		if c.Status == failed && c.Remedy == "" {
			t.Errorf("no remedy: %+v", c)
		}
	}
}

// summary is "name=status" of all checks.
func (d *doctor) summary() string {
	var list []string
	for _, c := range d.list {
		list = append(list, c.Name+"="+c.Status)
	}
	return strings.Join(list, ", ")
}

// vaultServer is an HTTPS server, its address and its certificate, which is its own authority.
func vaultServer(t *testing.T) (string, []byte) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	return s.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func noProxies(t *testing.T) {
	t.Helper()
	for _, n := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"} {
		t.Setenv(n, "")
	}
}

func TestDoctorsNetwork(t *testing.T) { // sets the environment
	noProxies(t)
	vault, ca := vaultServer(t)
	const well = "vault connection=ok, vault tls=ok, vault=ok, clock=ok, certificate=ok"

	d := doctorOf(t, registration(t, vault, ca, "source"))
	if d.look(t); d.summary() != well || !strings.Contains(d.list[2].Detail, " answers in ") || strings.Contains(d.list[2].Detail, "ms) (") {
		t.Errorf("%+v", d.list)
	}

	d = doctorOf(t, registration(t, vault, nil, "source"))
	if d.look(t); d.summary() != "vault connection=ok, vault tls=failed, certificate=ok" || !strings.Contains(d.list[1].Detail, "vault's authority") {
		t.Errorf("a vault that is not the one: %+v", d.list)
	}

	d = doctorOf(t, registration(t, vault, ca, "source"))
	d.app.Now = func() time.Time { return time.Now().Add(20 * time.Minute) }
	if d.look(t); d.summary() != strings.Replace(well, "clock=ok", "clock=failed", 1) {
		t.Errorf("20 minutes off: %+v", d.list)
	}

	d = doctorOf(t, filepath.Join(t.TempDir(), "none"))
	d.net.throughput = true
	if d.look(t); d.summary() != "vault=skipped, throughput=skipped" {
		t.Errorf("not registered: %+v", d.list)
	}

	d = doctorOf(t, filepath.Join(t.TempDir(), "none"))
	d.net.way.stores = []string{"azure://cuts?account=contoso&sig=geheim"}
	if d.look(t); d.summary() != "network=failed" {
		t.Errorf("a signature in the store's address: %+v", d.list)
	}

	d = doctorOf(t, filepath.Join(t.TempDir(), "none"))
	d.flags.Azure = write(t, fmt.Sprintf(site, `,"cloud":"custom","authority":"`+vault+`","resourceManager":"`+vault+`","caFile":"ca.pem"`))
	if err := os.WriteFile(filepath.Join(filepath.Dir(d.flags.Azure), "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	if d.look(t); d.summary() != "vault=skipped, arm connection=ok, arm tls=ok, arm answer=warning, arm clock=ok, entra connection=ok, entra tls=ok, entra answer=warning, entra clock=ok" {
		t.Errorf("a recovery site: %s\n%+v", d.summary(), d.list)
	}

	t.Setenv("HTTPS_PROXY", "http://anna:geheim@pro xy:1")
	d = doctorOf(t, registration(t, "https://vault.holdfast.invalid", ca, "source"))
	if d.look(t); d.summary() != "proxy=failed" {
		t.Errorf("a proxy that is no address: %+v", d.list)
	}
}

// TestDoctorsProxy: a proxy that wants another password than the environment's.
func TestDoctorsProxy(t *testing.T) { // sets the environment
	noProxies(t)
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pass, ok := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth(); !ok || pass != "geheim" {
			t.Errorf("the proxy is shown %q", r.Header)
		}
		w.Header().Set("Proxy-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusProxyAuthRequired)
	}))
	t.Cleanup(p.Close)
	at := p.Listener.Addr().(*net.TCPAddr)
	t.Setenv("HTTPS_PROXY", fmt.Sprintf("http://anna:geheim@%s", at))
	d := doctorOf(t, registration(t, "https://vault.holdfast.invalid", nil, "source"))
	if d.look(t); d.summary() != "proxy=ok, vault tunnel=failed, certificate=ok" || !strings.Contains(d.list[0].Detail, "the vault is reached by http://127.0.0.1") {
		t.Errorf("%+v", d.list)
	}
}

func TestDoctorsThroughput(t *testing.T) { // sets the environment
	noProxies(t)
	srv := s3test.Start(t, s3test.Config{})
	for k, v := range map[string]string{"AWS_ACCESS_KEY_ID": s3test.AccessKey, "AWS_SECRET_ACCESS_KEY": s3test.SecretKey, "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(k, v)
	}
	at := fmt.Sprintf("s3://%s/p?endpoint=%s&region=%s&path-style=true", srv.Bucket(), srv.URL(), srv.Region())
	measure := func(rate int64) check {
		d := doctorOf(t, filepath.Join(t.TempDir(), "none"))
		d.net = networkFlags{way: wayFlags{stores: []string{at}}, throughput: true, rate: console.Size(rate), object: 1 << 20}
		d.look(t)
		i := slices.IndexFunc(d.list, func(c check) bool { return c.Name == "throughput" })
		if i != len(d.list)-1 || !strings.Contains(d.summary(), "store answer=ok") {
			t.Fatalf("%+v", d.list)
		}
		return d.list[i]
	}
	puts := srv.Count(s3test.PutObject)
	if c := measure(1); c.Status != ok || !strings.Contains(c.Detail, "MB/s down") || srv.Count(s3test.PutObject) < puts+4 {
		t.Errorf("%+v, %d objects", c, srv.Count(s3test.PutObject)-puts)
	}
	if c := measure(1 << 50); c.Status != failed {
		t.Errorf("a line that is too slow: %+v", c)
	}
	srv.Deny(s3test.GetObject, true)
	if c := measure(0); c.Status != failed || !strings.Contains(c.Detail, "reading back") {
		t.Errorf("no read: %+v", c)
	}
	if keys := srv.Keys(); slices.ContainsFunc(keys, func(k string) bool { return strings.Contains(k, "doctor/") }) {
		t.Errorf("left: %v", keys)
	}
}
