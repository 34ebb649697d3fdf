package wsman

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/cim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const virt = "root/virtualization/v2"

func identity(string, *node, string) (int, string) {
	return 200, soap(`<i:IdentifyResponse xmlns:i="` + nsIdentity + `"><i:ProtocolVersion>` + nsWSMan + `</i:ProtocolVersion><i:ProductVendor>Microsoft Corporation</i:ProductVendor><i:ProductVersion>OS: 10.0.20348 SP: 0.0 Stack: 3.0</i:ProductVersion></i:IdentifyResponse>`)
}

func code(t *testing.T, err error, want cim.Code) {
	t.Helper()
	if cim.CodeOf(err) != want {
		t.Fatalf("error %v has code %q, want %q", err, cim.CodeOf(err), want)
	}
	if err != nil && strings.Contains(err.Error(), testPassword) {
		t.Fatalf("the password stands in %q", err)
	}
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		secure bool
		wrap   bool
		change func(*Config)
		want   cim.Code
		conns  int32 // 0 = any
	}{
		{name: "sealed over HTTP"},
		{name: "sealed, SPNEGO answers", wrap: true},
		{name: "NTLM over TLS with binding", secure: true},
		{name: "basic over TLS", secure: true, change: func(c *Config) { c.Auth = AuthBasic }},
		{name: "basic over HTTP when allowed", change: func(c *Config) { c.Auth, c.AllowPlain = AuthBasic, true }},
		{name: "wrong password", change: func(c *Config) { c.User = `CONTOSO\other` }, want: cim.CodeUnauthorized},
		{name: "wrong password, basic", secure: true, change: func(c *Config) { c.Auth, c.User = AuthBasic, "other" }, want: cim.CodeUnauthorized},
		{name: "no password", change: func(c *Config) {
			c.Password = func(context.Context) (string, error) { return "", errors.New("the vault is locked") }
		}, want: cim.CodeUnauthorized},
		{name: "own identity off Windows", change: func(c *Config) { c.Auth, c.User = AuthNegotiate, "" }, want: cim.CodeUnauthorized},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t, tt.secure, identity)
			f.wrap = tt.wrap
			s := f.session(tt.change)
			for range 3 {
				id, err := s.Identify(t.Context())
				code(t, err, tt.want)
				if err == nil && (id.Vendor != "Microsoft Corporation" || id.Protocol != nsWSMan || !strings.HasPrefix(id.Version, "OS: 10")) {
					t.Fatalf("Identify = %+v", id)
				}
			}
			if tt.want == "" && f.conns.Load() != 1 {
				t.Errorf("%d connections for three requests in a row, want 1", f.conns.Load())
			}
		})
	}
}

// TestRefusedPassword: a loop does not lock the account, and a corrected password is tried at once.
func TestRefusedPassword(t *testing.T) {
	t.Parallel()
	for _, auth := range []Auth{AuthNTLM, AuthBasic} {
		f := newFakeServer(t, true, identity)
		var tries atomic.Int32
		f.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if h := r.Header.Get("Authorization"); strings.HasPrefix(h, "Basic") || strings.HasPrefix(h, "Negotiate TlRMTVNTUAAD") { // NTLM's last message
				tries.Add(1)
			}
			return false
		}
		var mu sync.Mutex
		password, now := "wrong one", time.Now()
		set := func(p string, d time.Duration) { mu.Lock(); password, now = p, now.Add(d); mu.Unlock() }
		s := f.session(func(c *Config) {
			c.Auth = auth
			c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
			c.Password = func(context.Context) (string, error) { mu.Lock(); defer mu.Unlock(); return password, nil }
		})
		try := func(want cim.Code, count int32) {
			t.Helper()
			_, err := s.Identify(t.Context())
			code(t, err, want)
			if err != nil && strings.Contains(err.Error(), "wrong one") {
				t.Errorf("the password stands in %q", err)
			}
			if tries.Load() != count {
				t.Errorf("%s: %d tries, want %d", auth, tries.Load(), count)
			}
		}
		for range 5 {
			try(cim.CodeUnauthorized, 1)
		}
		set("wrong one", lockoutPause)
		try(cim.CodeUnauthorized, 2)
		set(testPassword, 0)
		try("", 3)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	pw := func(context.Context) (string, error) { return "p", nil }
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{URL: "http://h:5985/wsman", Auth: AuthBasic, User: "u", Password: pw}, "clear"},
		{Config{URL: "h:5985"}, "none like"},
		{Config{URL: "https://u:secret@h/wsman"}, "holds a user"},
		{Config{URL: "https://h/wsman", Auth: "digest", User: "u", Password: pw}, "unknown authentication"},
		{Config{URL: "https://h/wsman", Auth: AuthNTLM, User: "u"}, "needs a user"},
		{Config{URL: "https://h/wsman", User: "u", Password: pw, Pin: "abc"}, "pin"},
		{Config{URL: "https://h/wsman", User: "u", Password: pw, CAFile: "/does/not/exist"}, "exist"},
		{Config{URL: "https://h/wsman", User: "u", Password: pw, MaxEnvelope: 100}, "8192"},
		{Config{URL: "https://h/wsman", User: "u", Password: pw, Proxy: &url.URL{Scheme: "socks5", Host: "p"}}, "proxy"},
	} {
		_, err := New(tt.cfg)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%s): %v, want %q in it", tt.cfg.URL, err, tt.want)
		}
	}
}

func TestTLSTrust(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true, identity)
	sum := sha256.Sum256(f.Certificate().Raw)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   cim.Code
	}{
		"unknown issuer": {func(c *Config) { c.TLS = nil }, cim.CodeUnavailable},
		"own roots":      {func(c *Config) { c.TLS = nil; c.CAFile = ca }, ""},
		"pin":            {func(c *Config) { c.TLS = nil; c.Pin = fmt.Sprintf("%X", sum) }, ""},
		"other pin":      {func(c *Config) { c.Pin = strings.Repeat("00", 32) }, cim.CodeUnavailable},
	} {
		_, err := f.session(tt.change).Identify(t.Context())
		if cim.CodeOf(err) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true, identity)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tunnels atomic.Int32
	var wg sync.WaitGroup
	proxy := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "Basic cDpx" {
			w.WriteHeader(407)
			return
		}
		up, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		w.WriteHeader(200)
		down, _, _ := w.(http.Hijacker).Hijack()
		tunnels.Add(1)
		wg.Go(func() { defer down.Close(); _, _ = io.Copy(down, up) })
		wg.Go(func() { defer up.Close(); _, _ = io.Copy(up, down) })
	})}
	wg.Go(func() { _ = proxy.Serve(l) })
	t.Cleanup(func() { _ = proxy.Close(); f.CloseClientConnections(); wg.Wait() })
	u := &url.URL{Scheme: "http", Host: l.Addr().String(), User: url.UserPassword("p", "q")}
	if _, err := f.session(func(c *Config) { c.Proxy = u }).Identify(t.Context()); err != nil || tunnels.Load() != 1 {
		t.Errorf("through the proxy: %v, %d tunnels", err, tunnels.Load())
	}
	bad := *u
	bad.User = nil
	_, err = f.session(func(c *Config) { c.Proxy = &bad }).Identify(t.Context())
	code(t, err, cim.CodeUnauthorized)
}

// vmPage is an answer shaped as Windows' (after [MS-WSMV] 4.1.2), with what makes trouble: nil, an
// array, a datetime, an interval, a reference, an embedded object, a derived class and system properties.
func vmPage(kind, context, end string, names ...string) string {
	var items strings.Builder
	for _, n := range names {
		fmt.Fprintf(&items, `<w:Item><p:Msvm_ComputerSystem xmlns:p="%[1]s/Msvm_ComputerSystem" xmlns:cim="%[3]s" xsi:type="p:Msvm_ComputerSystem_Type">
<p:__SERVER>HV01</p:__SERVER><p:Caption>Virtual Machine</p:Caption><p:CreationClassName>Msvm_ComputerSystem</p:CreationClassName><p:EnabledState>2</p:EnabledState>
<p:InstallDate><cim:Datetime>2026-11-22T10:00:00.5Z</cim:Datetime></p:InstallDate><p:OnTime><cim:Interval>P1DT2H3M4.5S</cim:Interval></p:OnTime>
<p:Name>%[2]s</p:Name><p:OperationalStatus>2</p:OperationalStatus><p:OperationalStatus>32772</p:OperationalStatus><p:Owner xsi:nil="true"/><p:Empty></p:Empty>
<p:Host><a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address><a:ReferenceParameters><w:ResourceURI>%[1]s/Msvm_HostComputer</w:ResourceURI><w:SelectorSet><w:Selector Name="__cimnamespace">root/virtualization/v2</w:Selector><w:Selector Name="Name">HV01</w:Selector></w:SelectorSet></a:ReferenceParameters></p:Host>
<p:Inner xsi:type="p:Msvm_Inner_Type"><p:A>1</p:A></p:Inner></p:Msvm_ComputerSystem>
<a:EndpointReference><a:Address>x</a:Address><a:ReferenceParameters><w:ResourceURI>%[1]s/Msvm_ComputerSystem</w:ResourceURI><w:SelectorSet><w:Selector Name="__cimnamespace">root/virtualization/v2</w:Selector><w:Selector Name="CreationClassName">Msvm_ComputerSystem</w:Selector><w:Selector Name="Name">%[2]s</w:Selector></w:SelectorSet></a:ReferenceParameters></a:EndpointReference></w:Item>`,
			wmiPrefix+virt, n, nsCIM)
	}
	if kind == "Enumerate" {
		return soap(`<n:EnumerateResponse><n:EnumerationContext>` + context + `</n:EnumerationContext><w:Items>` + items.String() + `</w:Items>` + end + `</n:EnumerateResponse>`)
	}
	return soap(`<n:PullResponse><n:EnumerationContext>` + context + `</n:EnumerationContext><n:Items>` + items.String() + `</n:Items>` + end + `</n:PullResponse>`)
}

func TestQueryPages(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, false, func(action string, env *node, raw string) (int, string) {
		body := env.child(nsSOAP, "Body")
		switch action {
		case actionEnumerate:
			filter := body.child(nsEnum, "Enumerate").child(nsWSMan, "Filter")
			if d, _ := filter.attribute("", "Dialect"); d != dialectWQL || filter.text != "SELECT * FROM Msvm_ComputerSystem WHERE Name <> 'a&b'" {
				t.Errorf("filter %q of dialect %q", filter.text, d)
			}
			if u := env.child(nsSOAP, "Header").child(nsWSMan, "ResourceURI").text; u != wmiPrefix+virt+"/*" {
				t.Errorf("resource %q", u)
			}
			return 200, vmPage("Enumerate", "uuid:1", "", "vm1", "vm2")
		case actionPull:
			switch c := body.child(nsEnum, "Pull").child(nsEnum, "EnumerationContext").text; c {
			case "uuid:1":
				return 200, vmPage("Pull", "uuid:2", "", "vm3")
			case "uuid:2":
				return 200, vmPage("Pull", "", "<n:EndOfSequence/>", "vm4")
			default:
				t.Errorf("context %q", c)
			}
		}
		return 500, ""
	})
	list, err := f.session(nil).Query(t.Context(), virt, "SELECT * FROM Msvm_ComputerSystem WHERE Name <> 'a&b'")
	if err != nil || len(list) != 4 {
		t.Fatalf("%d instances, %v", len(list), err)
	}
	in := list[2]
	if want := `\\.\root\virtualization\v2:Msvm_ComputerSystem.CreationClassName="Msvm_ComputerSystem",Name="vm3"`; in.Path.String() != want {
		t.Errorf("path %s, want %s", in.Path, want)
	}
	want := cim.Pairs("Caption", "Virtual Machine", "CreationClassName", "Msvm_ComputerSystem", "EnabledState", "2",
		"InstallDate", "2026-11-22T10:00:00.5Z", "OnTime", "00000001020304.500000:000", "Name", "vm3", "OperationalStatus", []string{"2", "32772"},
		"Owner", nil, "Empty", "", "Host", cim.Path{Namespace: virt, Class: "Msvm_HostComputer", Keys: []cim.Key{{Name: "Name", Value: "HV01"}}},
		"Inner", cim.NewInstance("Msvm_Inner", "A", "1"))
	if !reflect.DeepEqual(in.Args, want) {
		t.Errorf("properties\n%#v, want\n%#v", in.Args, want)
	}
	if _, ok := in.Lookup("Absent"); ok {
		t.Error("a property that is absent is there")
	}
	if v, ok := in.Lookup("Owner"); v != nil || !ok {
		t.Error("a property that is null is absent")
	}
	if f.actions() != "Enumerate Pull Pull" {
		t.Errorf("actions %s", f.actions())
	}
}

// TestQueryWithoutReferences: a server that knows no references is asked for plain instances, from then on at once.
func TestQueryWithoutReferences(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, false, func(_ string, env *node, raw string) (int, string) {
		if strings.Contains(raw, "EnumerationMode") {
			return 500, soap(`<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>w:UnsupportedFeature</s:Value></s:Subcode></s:Code><s:Reason><s:Text>no</s:Text></s:Reason></s:Fault>`)
		}
		return 200, soap(`<n:EnumerateResponse><w:Items><p:Msvm_X xmlns:p="u"><p:InstanceID>Microsoft:1\2</p:InstanceID></p:Msvm_X><p:Msvm_D xmlns:p="u"><p:CreationClassName>Msvm_D</p:CreationClassName><p:DeviceID>d</p:DeviceID><p:Name>n</p:Name><p:SystemCreationClassName>S</p:SystemCreationClassName><p:SystemName>v</p:SystemName></p:Msvm_D><p:None xmlns:p="u"/></w:Items><w:EndOfSequence/></n:EnumerateResponse>`)
	})
	s := f.session(nil)
	for range 2 {
		list, err := s.Query(t.Context(), virt, "SELECT * FROM Msvm_X")
		if err != nil || len(list) != 3 {
			t.Fatal(list, err)
		}
		if got := list[0].Path.Relative(); got != `Msvm_X.InstanceID="Microsoft:1\\2"` {
			t.Error(got)
		}
		if got := list[1].Path.Relative(); got != `Msvm_D.CreationClassName="Msvm_D",DeviceID="d",SystemCreationClassName="S",SystemName="v"` {
			t.Error(got)
		}
		if !list[2].Path.IsZero() {
			t.Error(list[2].Path)
		}
	}
	if f.actions() != "Enumerate Enumerate Enumerate" {
		t.Error(f.actions())
	}
}

// TestReferencesAfterFailure: a failure that may pass costs no references later, and a projection asks for none.
func TestReferencesAfterFailure(t *testing.T) {
	t.Parallel()
	var asked []bool
	f := newFakeServer(t, false, func(_ string, env *node, raw string) (int, string) {
		refs := strings.Contains(raw, "EnumerationMode")
		if asked = append(asked, refs); len(asked) == 1 {
			return 500, soap(`<s:Fault><s:Reason><s:Text>now not</s:Text></s:Reason></s:Fault>`)
		}
		return 200, soap(`<n:EnumerateResponse><w:EndOfSequence/></n:EnumerateResponse>`)
	})
	s := f.session(nil)
	for _, q := range []string{"SELECT * FROM A", "select * from A", "SELECT a, b FROM A", "ASSOCIATORS OF {A}"} {
		if _, err := s.Query(t.Context(), virt, q); err != nil {
			t.Fatal(err)
		}
	}
	if want := []bool{true, false, true, false, true}; !reflect.DeepEqual(asked, want) {
		t.Errorf("asked for references: %v, want %v", asked, want)
	}
}

func TestReleaseAfterBadPage(t *testing.T) {
	t.Parallel()
	released := make(chan string, 1)
	f := newFakeServer(t, false, func(action string, env *node, raw string) (int, string) {
		switch action {
		case actionEnumerate:
			return 200, vmPage("Enumerate", "uuid:7", "", "vm1")
		case actionPull:
			return 200, soap(`<n:Nonsense/>`)
		}
		released <- env.child(nsSOAP, "Body").child(nsEnum, "Release").child(nsEnum, "EnumerationContext").trimmed()
		return 200, soap("")
	})
	_, err := f.session(nil).Query(t.Context(), virt, "SELECT * FROM X")
	code(t, err, cim.CodeProtocol)
	if got := <-released; got != "uuid:7" {
		t.Errorf("released %q", got)
	}
}

func TestInvoke(t *testing.T) {
	t.Parallel()
	var body string
	f := newFakeServer(t, false, func(action string, env *node, raw string) (int, string) {
		head := env.child(nsSOAP, "Header")
		if action != wmiPrefix+virt+"/Msvm_VirtualSystemSnapshotService/CreateSnapshot" || head.child(nsWSMan, "SelectorSet").kids[0].text != "vssd" {
			t.Errorf("action %s, selectors %v", action, head.child(nsWSMan, "SelectorSet"))
		}
		_, body, _ = strings.Cut(raw, "<s:Body>")
		body, _, _ = strings.Cut(body, "</s:Body>")
		job := `<a:Address>x</a:Address><a:ReferenceParameters><w:ResourceURI>` + wmiPrefix + virt + `/Msvm_ConcreteJob</w:ResourceURI><w:SelectorSet><w:Selector Name="InstanceID">J1</w:Selector><w:Selector Name="__cimnamespace">root/virtualization/v2</w:Selector></w:SelectorSet></a:ReferenceParameters>`
		if strings.Contains(raw, "nested") { // as servers other than Windows do
			job = `<a:EndpointReference>` + job + `</a:EndpointReference>`
		}
		return 200, soap(`<p:CreateSnapshot_OUTPUT xmlns:p="u"><p:Job>` + job + `</p:Job><p:ResultingSnapshot xsi:nil="true"/><p:ReturnValue>4096</p:ReturnValue></p:CreateSnapshot_OUTPUT>`)
	})
	s := f.session(nil)
	path := cim.Path{Namespace: virt, Class: "Msvm_VirtualSystemSnapshotService", Keys: []cim.Key{{Name: "Name", Value: "vssd"}}}
	vm := cim.Path{Class: "Msvm_ComputerSystem", Keys: []cim.Key{{Name: "Name", Value: `a<b`}}}
	out, err := s.Invoke(t.Context(), path, "CreateSnapshot", cim.Pairs(
		"AffectedSystem", vm, "SnapshotSettings", cim.NewInstance("Msvm_S", "ConsistencyLevel", uint8(1)), "SnapshotType", uint16(32768),
		"Nothing", nil, "List", []string{"x", "y"}, "None", []string{}, "Flag", true, "At", cim.DateTime("20261122100000.000000+060"), "For", cim.DateTime("00000001020304.500000:000")))
	if err != nil {
		t.Fatal(err)
	}
	want := `<p:CreateSnapshot_INPUT xmlns:p="` + wmiPrefix + virt + `/Msvm_VirtualSystemSnapshotService">` +
		`<p:AffectedSystem><a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address><a:ReferenceParameters><w:ResourceURI>` + wmiPrefix + virt + `/Msvm_ComputerSystem</w:ResourceURI><w:SelectorSet><w:Selector Name="__cimnamespace">root/virtualization/v2</w:Selector><w:Selector Name="Name">a&lt;b</w:Selector></w:SelectorSet></a:ReferenceParameters></p:AffectedSystem>` +
		`<p:SnapshotSettings>&lt;INSTANCE CLASSNAME=&#34;Msvm_S&#34;&gt;&lt;PROPERTY NAME=&#34;ConsistencyLevel&#34; TYPE=&#34;uint8&#34;&gt;&lt;VALUE&gt;1&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;/INSTANCE&gt;</p:SnapshotSettings>` +
		`<p:SnapshotType>32768</p:SnapshotType><p:Nothing xsi:nil="true"/><p:List>x</p:List><p:List>y</p:List><p:Flag>true</p:Flag>` +
		`<p:At><cim:Datetime>2026-11-22T09:00:00Z</cim:Datetime></p:At><p:For><cim:Interval>P1DT2H3M4.500000S</cim:Interval></p:For></p:CreateSnapshot_INPUT>`
	if body != want {
		t.Errorf("body\n%s, want\n%s", body, want)
	}
	job, ok := out.Ref("Job")
	if out.Return != 4096 || !ok || job.Key("InstanceID") != "J1" || job.Namespace != virt || !out.Null("ResultingSnapshot") {
		t.Errorf("out %+v", out)
	}
	out, err = s.Invoke(t.Context(), path, "CreateSnapshot", cim.Pairs("A", "nested"))
	if job, ok := out.Ref("Job"); err != nil || !ok || job.Key("InstanceID") != "J1" {
		t.Errorf("nested: %+v, %v", out, err)
	}
	for _, bad := range []cim.Args{cim.Pairs("A", "x\x00y"), cim.Pairs("A", "\xff"), cim.Pairs("A><", "x"), cim.Pairs("A", struct{}{}), cim.Pairs("A", cim.Path{})} {
		n := f.requests.Load()
		_, err := s.Invoke(t.Context(), path, "CreateSnapshot", bad)
		code(t, err, cim.CodeNoMethod)
		if f.requests.Load() != n {
			t.Errorf("%v was sent", bad)
		}
	}
}

func TestGetAndSelectors(t *testing.T) {
	t.Parallel()
	inner := cim.Path{Namespace: virt, Class: "B", Keys: []cim.Key{{Name: "InstanceID", Value: `x\y`}}}
	f := newFakeServer(t, false, func(action string, env *node, raw string) (int, string) {
		set := env.child(nsSOAP, "Header").child(nsWSMan, "SelectorSet")
		p, ok := reference(set.kids[1], "")
		if action != actionGet || set.kids[0].text != ` a"\b ` || !ok || !p.Same(inner) {
			t.Errorf("%s %+v %v", action, set, p)
		}
		return 200, soap(`<p:A xmlns:p="u"><p:Antecedent><a:EndpointReference><a:ReferenceParameters><w:ResourceURI>` + wmiPrefix + virt + `/C</w:ResourceURI><w:SelectorSet><w:Selector Name="K"><a:EndpointReference><a:ReferenceParameters><w:ResourceURI>` + wmiPrefix + virt + `/D</w:ResourceURI><w:SelectorSet><w:Selector Name="L">v</w:Selector></w:SelectorSet></a:ReferenceParameters></a:EndpointReference></w:Selector></w:SelectorSet></a:ReferenceParameters></a:EndpointReference></p:Antecedent></p:A>`)
	})
	path := cim.Path{Namespace: virt, Class: "A", Keys: []cim.Key{{Name: "K", Value: ` a"\b `}, {Name: "R", Value: inner.String()}}}
	in, err := f.session(nil).Get(t.Context(), path)
	if err != nil || !in.Path.Same(path) {
		t.Fatal(in, err)
	}
	ref, ok := in.Ref("Antecedent")
	if !ok || ref.Key("K") != `\\.\root\virtualization\v2:D.L="v"` {
		t.Errorf("%+v", ref)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	sub := func(ns, v string, detail string) string {
		return `<s:Fault xmlns:x="` + ns + `"><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>x:` + v + `</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang="en-US">reason</s:Text></s:Reason><s:Detail>` + detail + `</s:Detail></s:Fault>`
	}
	wsf := func(c, inner string) string {
		return `<f:WSManFault xmlns:f="http://schemas.microsoft.com/wbem/wsman/1/wsmanfault" Code="` + c + `" Machine="HV01"><f:Message>` + inner + `</f:Message></f:WSManFault>`
	}
	ext := func(c string) string {
		return `<f:ProviderFault provider="WMI Provider" path="WsmWmiPl.dll"><f:ExtendedError><p:__ExtendedStatus xmlns:p="u"><p:Description>inner words</p:Description><p:StatusCode>` + c + `</p:StatusCode></p:__ExtendedStatus></f:ExtendedError></f:ProviderFault>`
	}
	for name, tt := range map[string]struct {
		fault  string
		want   cim.Code
		status uint32
		text   string
	}{
		"bad filter":           {sub(nsEnum, "CannotProcessFilter", wsf("2150858778", "cannot process the filter")), cim.CodeInvalidQuery, 0x8033801a, "cannot process the filter"},
		"bad class in filter":  {sub(nsEnum, "CannotProcessFilter", wsf("2150858778", ext("2147749904"))), cim.CodeInvalidClass, 0x80041010, "inner words"},
		"not found":            {sub(nsWSMan, "DestinationUnreachable", wsf("2150858752", "x")), cim.CodeNotFound, 0x80338000, ""},
		"not found, bare":      {sub(nsAddress, "DestinationUnreachable", ""), cim.CodeNotFound, 0, ""},
		"bad resource":         {sub(nsAddress, "DestinationUnreachable", "<w:FaultDetail>http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/InvalidResourceURI</w:FaultDetail>"), cim.CodeInvalidClass, 0, ""},
		"selectors are wrong":  {sub(nsWSMan, "InvalidSelectors", "<w:FaultDetail>http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/UnexpectedSelectors</w:FaultDetail>"), cim.CodeFailed, 0, ""},
		"quota of operations":  {sub(nsWSMan, "InternalError", wsf("2150859174", "quota")), cim.CodeQuota, 0x803381a6, "quota"},
		"envelope":             {sub(nsWSMan, "EncodingLimit", ""), cim.CodeQuota, 0, ""},
		"timeout":              {sub(nsWSMan, "TimedOut", wsf("2150858793", "t")), cim.CodeTimeout, 0x80338029, ""},
		"denied":               {sub(nsWSMan, "AccessDenied", wsf("5", "Access is denied.")), cim.CodeAccessDenied, 5, "Access is denied."},
		"wmi error":            {sub(nsWSMan, "InternalError", `<p:MSFT_WmiError xmlns:p="u"><p:error_Code>0</p:error_Code><p:MessageID>HRESULT 0x80041002</p:MessageID><p:Message>Not found</p:Message></p:MSFT_WmiError>`), cim.CodeNotFound, 0x80041002, "Not found"},
		"no such method":       {sub(nsAddress, "ActionNotSupported", ""), cim.CodeNoMethod, 0, ""},
		"unknown":              {sub("u", "Whatever", wsf("-2147217405", "")), cim.CodeAccessDenied, 0x80041003, ""},
		"unknown number":       {sub("u", "Whatever", wsf("77", "")), cim.CodeFailed, 77, "reason"},
		"nothing but an error": {`<s:Fault/>`, cim.CodeFailed, 0, "the server reports"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t, false, func(string, *node, string) (int, string) { return 500, soap(tt.fault) })
			_, err := f.session(nil).Get(t.Context(), cim.Path{Namespace: virt, Class: "X"})
			code(t, err, tt.want)
			var e *cim.Error
			if !errors.As(err, &e) || e.Status != tt.status || !strings.Contains(e.Message, tt.text) {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestHTTPErrors(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]cim.Code{403: cim.CodeAccessDenied, 404: cim.CodeProtocol, 500: cim.CodeProtocol, 503: cim.CodeUnavailable, 413: cim.CodeQuota} {
		for _, sealed := range []bool{true, false} {
			f := newFakeServer(t, false, func(string, *node, string) (int, string) { return status, "<html>no</html>" })
			if !sealed {
				f.before = func(w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("Authorization") != "" {
						return false
					}
					w.WriteHeader(status)
					_, _ = io.WriteString(w, soap(`<s:Fault/>`))
					return true
				}
			}
			_, err := f.session(nil).Identify(t.Context())
			if cim.CodeOf(err) != want || strings.Contains(err.Error(), "reports") {
				t.Errorf("HTTP %d, sealed %v: %v, want %s", status, sealed, err, want)
			}
		}
	}
}

// TestHostileAnswers: none of them is taken for an answer, whatever the way to it.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	good := soap(`<p:X xmlns:p="u"><p:A>1</p:A></p:X>`)
	for name, tt := range map[string]struct {
		body string
		want cim.Code
	}{
		"good":           {good, ""},
		"entities":       {`<!DOCTYPE x [<!ENTITY a "b">]>` + good, cim.CodeProtocol},
		"unknown entity": {strings.Replace(good, ">1<", ">&a;<", 1), cim.CodeProtocol},
		"deep":           {soap(strings.Repeat("<x>", 500) + strings.Repeat("</x>", 500)), cim.CodeProtocol},
		"cut off":        {good[:len(good)-20], cim.CodeProtocol},
		"two documents":  {good + good, cim.CodeProtocol},
		"empty":          {"", cim.CodeProtocol},
		"other SOAP":     {strings.Replace(good, "2003/05", "2001/12", 1), cim.CodeProtocol},
		"other message":  {strings.Replace(good, "MESSAGEID", "uuid:other", 1), cim.CodeProtocol},
		"too large":      {soap(`<p:X xmlns:p="u">` + strings.Repeat("x", 5*512000) + `</p:X>`), cim.CodeQuota},
		"two instances":  {soap(`<X/><Y/>`), cim.CodeProtocol},
		"UTF-16":         {"\xff\xfe" + strings.Join(strings.Split(soap("<X/>"), ""), "\x00") + "\x00", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.HasPrefix(name, "UTF-16") {
				tt.body = strings.Replace(tt.body, strings.Join(strings.Split("MESSAGEID", ""), "\x00"), "", 1)
				tt.body = strings.Replace(tt.body, "\x00\x00", "\x00", 1)
			}
			f := newFakeServer(t, false, func(string, *node, string) (int, string) { return 200, tt.body })
			_, err := f.session(nil).Get(t.Context(), cim.Path{Namespace: virt, Class: "X"})
			code(t, err, tt.want)
		})
	}
}

// TestSealedAnswers: an answer over HTTP counts only when it is sealed and whole.
func TestSealedAnswers(t *testing.T) {
	t.Parallel()
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b = bytes.Clone(b); b[(len(b)+at)%len(b)] ^= 1; return b }
	}
	for name, mangle := range map[string]func([]byte) []byte{
		"sealed bytes changed": flip(-40),
		"terminator missing":   func(b []byte) []byte { return b[:len(b)-10] },
		"empty":                func([]byte) []byte { return nil },
		"length changed":       func(b []byte) []byte { return bytes.Replace(b, []byte("Length="), []byte("Length=1"), 1) },
		"length missing":       func(b []byte) []byte { return bytes.Replace(b, []byte("Length="), nil, 1) },
		"huge signature": func(b []byte) []byte {
			return bytes.Replace(b, []byte("\x10\x00\x00\x00\x01"), []byte("\x10\xff\xff\xff\x01"), 1)
		},
		"repeated": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t, false, identity)
			var first []byte
			f.mangle = mangle
			if name == "repeated" {
				f.mangle = func(b []byte) []byte {
					if first == nil {
						first = bytes.Clone(b)
					}
					return first
				}
			}
			s := f.session(nil)
			_, err := s.Identify(t.Context())
			if name == "repeated" {
				code(t, err, "")
				_, err = s.Identify(t.Context())
			}
			code(t, err, cim.CodeProtocol)
			f.mangle = nil
			_, err = s.Identify(t.Context())
			code(t, err, "")
		})
	}
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		f := newFakeServer(t, false, identity)
		f.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") != "" {
				return false
			}
			w.Header().Set("Content-Type", plainType)
			_, body := identity("", nil, "")
			_, _ = io.WriteString(w, body)
			return true
		}
		_, err := f.session(nil).Identify(t.Context())
		code(t, err, cim.CodeProtocol)
	})
}

// TestIdleConnectionBreaks: what may be sent twice is, a method call is not unless the server cannot have seen it.
func TestIdleConnectionBreaks(t *testing.T) {
	t.Parallel()
	path := cim.Path{Namespace: virt, Class: "X"}
	for _, secure := range []bool{false, true} {
		for _, unseen := range []bool{false, true} {
			t.Run(fmt.Sprintf("tls %v, unseen %v", secure, unseen), func(t *testing.T) {
				t.Parallel()
				var calls, drop atomic.Int32
				f := newFakeServer(t, secure, func(action string, _ *node, _ string) (int, string) {
					if drop.CompareAndSwap(1, 0) {
						panic(http.ErrAbortHandler)
					}
					if strings.HasSuffix(action, "/M") {
						calls.Add(1)
						return 200, soap(`<p:M_OUTPUT xmlns:p="u"><p:ReturnValue>0</p:ReturnValue></p:M_OUTPUT>`)
					}
					return 200, soap(`<p:X xmlns:p="u"/>`)
				})
				s := f.session(nil)
				breakIdle := func() {
					if _, err := s.Get(t.Context(), path); err != nil {
						t.Fatal(err)
					}
					if unseen {
						f.CloseClientConnections()
					} else {
						drop.Store(1)
					}
				}
				breakIdle()
				if _, err := s.Get(t.Context(), path); err != nil {
					t.Errorf("get on a broken connection: %v", err)
				}
				breakIdle()
				_, err := s.Invoke(t.Context(), path, "M", nil)
				if unseen {
					if err != nil || calls.Load() != 1 {
						t.Errorf("invoke that was never seen: %v, %d calls", err, calls.Load())
					}
				} else {
					code(t, err, cim.CodeUnavailable)
					if !strings.Contains(err.Error(), "not known") || drop.Load() != 0 {
						t.Errorf("%v; fault fired: %v", err, drop.Load() == 0)
					}
				}
			})
		}
	}
}

// TestForgottenSignIn: a server that no longer knows a connection gets a new one, also for a method call.
func TestForgottenSignIn(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, false, func(string, *node, string) (int, string) {
		return 200, soap(`<p:M_OUTPUT xmlns:p="u"><p:ReturnValue>0</p:ReturnValue></p:M_OUTPUT>`)
	})
	var forget atomic.Bool
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if forget.CompareAndSwap(true, false) {
			w.WriteHeader(401)
			return true
		}
		return false
	}
	s := f.session(nil)
	for range 2 {
		if _, err := s.Invoke(t.Context(), cim.Path{Namespace: virt, Class: "X"}, "M", nil); err != nil {
			t.Fatal(err)
		}
		forget.Store(true)
	}
	if f.signIns.Load() != 2 {
		t.Errorf("%d sign-ins", f.signIns.Load())
	}
}

func TestPoolBound(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int32
	f := newFakeServer(t, false, func(string, *node, string) (int, string) {
		n := now.Add(1)
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		time.Sleep(2 * time.Millisecond)
		now.Add(-1)
		return 200, soap(`<X/>`)
	})
	s := f.session(func(c *Config) { c.Connections = 3 })
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if _, err := s.Get(t.Context(), cim.Path{Namespace: virt, Class: "X"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 || f.conns.Load() > 3 {
		t.Errorf("%d requests at once on %d connections, want 3 at most", most.Load(), f.conns.Load())
	}
}

// TestSilentServers: whatever the server leaves out, a call ends by its deadline.
func TestSilentServers(t *testing.T) {
	t.Parallel()
	for name, behave := range map[string]func(net.Conn){
		"accepts and is silent": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		"endless head": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, "X: "+strings.Repeat("y", 1000)+"\r\n"); err != nil {
					return
				}
			}
		},
		"interim answers": func(c net.Conn) {
			_, _ = io.WriteString(c, strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 100))
			_, _ = io.Copy(io.Discard, c)
		},
		"closes":     func(net.Conn) {},
		"is no HTTP": func(c net.Conn) { _, _ = bufio.NewReader(c).ReadString('\n'); _, _ = io.WriteString(c, "220 mail\r\n") },
		"endless tokens": func(c net.Conn) {
			for {
				if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 401 No\r\nWWW-Authenticate: Negotiate AAAA\r\nContent-Length: 0\r\n\r\n")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					wg.Go(func() { defer c.Close(); behave(c) })
				}
			})
			s, err := New(Config{URL: "http://" + l.Addr().String() + "/wsman", Auth: AuthNTLM, User: testUser, DialTimeout: 200 * time.Millisecond,
				Password: func(context.Context) (string, error) { return testPassword, nil }})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, err = s.Identify(t.Context())
			if c := cim.CodeOf(err); c == "" || time.Since(start) > 5*time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			l.Close()
			wg.Wait()
		})
	}
}

func TestDeadlinesAndClose(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	f := newFakeServer(t, false, func(string, *node, string) (int, string) {
		entered <- struct{}{}
		<-leave
		return 200, soap(`<X/>`)
	})
	t.Cleanup(func() { close(leave) }) // before the server is closed
	s := f.session(nil)
	path := cim.Path{Namespace: virt, Class: "X"}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := s.Get(ctx, path)
	code(t, err, cim.CodeTimeout)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	<-entered
	done := make(chan error)
	go func() {
		_, err := s.Get(context.Background(), path)
		done <- err
	}()
	<-entered
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	code(t, <-done, cim.CodeUnavailable)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(t.Context(), path)
	code(t, err, cim.CodeUnavailable)
}

func TestLimitsOfResults(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		page func() string
		want cim.Code
	}{
		"endless":       {func() string { return vmPage("Enumerate", "c", "", "vm") }, cim.CodeQuota},
		"endless empty": {func() string { return vmPage("Enumerate", "c", "") }, cim.CodeProtocol},
		"no context":    {func() string { return vmPage("Enumerate", "", "", "vm") }, cim.CodeProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t, false, func(string, *node, string) (int, string) { return 200, tt.page() })
			_, err := f.session(func(c *Config) { c.MaxResult = 100000 }).Query(t.Context(), virt, "SELECT * FROM X")
			code(t, err, tt.want)
		})
	}
	f := newFakeServer(t, false, identity)
	s := f.session(func(c *Config) { c.MaxEnvelope = 8192 })
	_, err := s.Invoke(t.Context(), cim.Path{Namespace: virt, Class: "X"}, "M", cim.Pairs("A", strings.Repeat("x", 9000)))
	code(t, err, cim.CodeQuota)
	if f.requests.Load() != 0 {
		t.Error("a message beyond the limit was sent")
	}
}

func TestAnonymousIdentify(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, false, identity)
	s := f.session(func(c *Config) { c.User = `CONTOSO\nobody` })
	if id, err := s.IdentifyAnonymous(t.Context()); err != nil || id.Vendor == "" {
		t.Error(id, err)
	}
	_, err := s.Identify(t.Context())
	code(t, err, cim.CodeUnauthorized)
}

func TestNothingSentWhereSealingIsMissing(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, false, identity)
	s := f.session(func(c *Config) {
		c.Mechanism = func(context.Context, string, []byte) (Mechanism, error) { return &weakMechanism{}, nil }
	})
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.ContentLength != 0 {
			t.Error("a body was sent in the clear")
		}
		return true
	}
	_, err := s.Identify(t.Context())
	code(t, err, cim.CodeProtocol)
}

type weakMechanism struct{ Mechanism }

func (*weakMechanism) Step([]byte) ([]byte, bool, error) { return []byte("x"), true, nil }
func (*weakMechanism) CanSeal() bool                     { return false }
func (*weakMechanism) Close() error                      { return nil }

func TestRecordAndReplay(t *testing.T) {
	t.Parallel()
	jobs := 0
	f := newFakeServer(t, false, func(action string, env *node, raw string) (int, string) {
		switch action {
		case actionEnumerate:
			return 200, vmPage("Enumerate", "uuid:1", "", "vm1")
		case actionPull:
			return 200, vmPage("Pull", "", "<n:EndOfSequence/>", "vm2")
		}
		jobs++
		return 200, soap(fmt.Sprintf(`<p:J xmlns:p="u"><p:N>%d</p:N></p:J>`, jobs))
	})
	var b bytes.Buffer
	rec := NewJSONRecorder(&b)
	drive := func(s *Session) (got []string) {
		list, err := s.Query(t.Context(), virt, "SELECT * FROM X")
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range list {
			got = append(got, in.Path.String())
		}
		for range 3 {
			in, err := s.Get(t.Context(), cim.Path{Namespace: virt, Class: "J", Keys: []cim.Key{{Name: "InstanceID", Value: "1"}}})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, in.String("N"))
		}
		return got
	}
	want := drive(f.session(func(c *Config) { c.Recorder = rec }))
	if rec.Err() != nil || strings.Contains(b.String(), "NTLM") || strings.Contains(b.String(), "Negotiate ") || strings.Contains(b.String(), testPassword) {
		t.Fatalf("%v; recording %s", rec.Err(), b.String())
	}
	list, err := ReadExchanges(&b)
	if err != nil || len(list) != 5 {
		t.Fatal(len(list), err)
	}
	s, err := Replay(list)
	if err != nil {
		t.Fatal(err)
	}
	if got := drive(s); !reflect.DeepEqual(got, want) {
		t.Errorf("replayed %v, recorded %v", got, want)
	}
	_, err = s.Get(t.Context(), cim.Path{Namespace: virt, Class: "Other"})
	code(t, err, cim.CodeUnavailable)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestInterval(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"P0DT0H0M5S": "00000000000005.000000:000", "P10D": "00000010000000.000000:000", "PT36H0.000001S": "00000001120000.000001:000",
		"P1Y": "P1Y", "x": "x", "P-1D": "P-1D", "PT9999999999999H": "PT9999999999999H",
	} {
		if got := interval(in); got != want {
			t.Errorf("interval(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(vmPage("Enumerate", "c", "", "vm")))
	f.Add([]byte(soap(`<p:M_OUTPUT xmlns:p="u"><p:Job><a:ReferenceParameters/></p:Job><p:ReturnValue>0</p:ReturnValue></p:M_OUTPUT>`)))
	f.Add([]byte(soap(`<s:Fault><s:Detail><WSManFault Code="1"/></s:Detail></s:Fault>`)))
	f.Add([]byte("\xff\xfe<\x00a\x00/\x00>\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		body, err := openAnswer("x", raw, 200, "")
		if err != nil {
			if cim.CodeOf(err) == "" {
				t.Fatal(err)
			}
			return
		}
		if p, err := parsePage(body, virt); err == nil && !p.end && p.context == "" {
			t.Fatal("an enumeration without end or context")
		}
		_, _ = parseOutput(body, "M", virt)
		for _, k := range body.kids {
			in := instance(k, virt)
			for _, a := range in.Args {
				if ref, ok := a.Value.(cim.Path); ok && ref.IsZero() {
					t.Fatal("a reference to nothing")
				}
			}
		}
	})
}

type echo struct{ Mechanism }

func (echo) Unseal(sealed, _ []byte) ([]byte, error) { return sealed, nil }
func (echo) Seal(p []byte) ([]byte, []byte, error)   { return p, []byte("0123456789abcdef"), nil }

func FuzzSealed(f *testing.F) {
	b, err := sealBody(echo{}, []byte("<x/>"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.Replace(b, []byte("--Encrypted Boundary--"), []byte("-- Encrypted Boundary--"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := unsealBody(echo{}, b)
		if err == nil && len(plain) > len(b) {
			t.Fatal("more comes out than went in")
		}
	})
}

func FuzzToken(f *testing.F) {
	b, err := wrapToken([]byte("NTLMSSP\x00xyz"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("NTLMSSP\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if inner, _, err := unwrapToken(b); err == nil && len(inner) > len(b) {
			t.Fatal("more comes out than went in")
		}
	})
}
