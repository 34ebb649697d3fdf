package wsmand_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/hvsim/wsmand"
)

const (
	nsV2     = "root/virtualization/v2"
	wmi      = "http://schemas.microsoft.com/wbem/wsman/1/wmi/"
	allV2    = wmi + nsV2 + "/*"
	vmID     = "8C3A9B62-7E44-4B0E-9A55-6E0B5A2C1D01"
	jobID    = "0F2B6D11-8E0C-4D3A-B0B5-2A4C9D7E6F10"
	user     = "operator"
	password = "correct horse & <battery>"
)

// session is a small CIM repository that records what it is asked.
type session struct {
	mu      sync.Mutex
	classes map[string][]*cim.Instance
	answers map[string][]*cim.Instance // to other queries, in lower case
	queries []string
	invoked []invocation
	ended   int           // calls that are over
	block   chan struct{} // Invoke of Block waits for it or the context
}

type invocation struct {
	path   cim.Path
	method string
	in     cim.Args
}

func path(class string, keys ...string) cim.Path {
	p := cim.Path{Namespace: nsV2, Class: class}
	for i := 0; i < len(keys); i += 2 {
		p.Keys = append(p.Keys, cim.Key{Name: keys[i], Value: keys[i+1]})
	}
	return p
}

func vmPath() cim.Path {
	return path("Msvm_ComputerSystem", "CreationClassName", "Msvm_ComputerSystem", "Name", vmID)
}

func newSession() *session {
	vm := cim.NewInstance("Msvm_ComputerSystem", "Name", vmID, "CreationClassName", "Msvm_ComputerSystem", "ElementName", "web <01> & ü",
		"EnabledState", uint16(2), "OperationalStatus", []uint16{2, 32772}, "Caption", nil, "OnTimeInMilliseconds", uint64(123456789012),
		"TimeOfLastStateChange", cim.DateTime("20260102030405.250000+060"), "InstallDate", cim.DateTime("20260102030405.000000+000"),
		"Roles", []string{}, "__SERVER", "HVSIM")
	vm.Path = vmPath()
	host := cim.NewInstance("Msvm_ComputerSystem", "Name", "HVSIM", "CreationClassName", "Msvm_ComputerSystem", "ElementName", "HVSIM", "EnabledState", uint16(2))
	host.Path = path("Msvm_ComputerSystem", "CreationClassName", "Msvm_ComputerSystem", "Name", "HVSIM")
	settings := cim.NewInstance("Msvm_VirtualSystemSettingData", "InstanceID", "Microsoft:"+vmID, "SecureBootEnabled", true)
	settings.Path = path("Msvm_VirtualSystemSettingData", "InstanceID", "Microsoft:"+vmID)
	link := cim.NewInstance("Msvm_SettingsDefineState", "ManagedElement", vmPath(), "SettingData", settings.Path)
	link.Path = path("Msvm_SettingsDefineState", "ManagedElement", `\\HVSIM\root\virtualization\v2:`+vmPath().Relative(),
		"SettingData", `\\HVSIM\root\virtualization\v2:`+settings.Path.Relative())
	job := cim.NewInstance("Msvm_ConcreteJob", "InstanceID", jobID, "JobState", uint16(7), "PercentComplete", uint16(100), "ErrorCode", uint16(0),
		"TimeBeforeRemoval", cim.DateTime("00000000000500.000000:000"))
	job.Path = path("Msvm_ConcreteJob", "InstanceID", jobID)
	service := cim.NewInstance("Msvm_VirtualSystemSnapshotService", "Name", "vssm")
	service.Path = path("Msvm_VirtualSystemSnapshotService", "CreationClassName", "Msvm_VirtualSystemSnapshotService", "Name", "vssm",
		"SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", "HVSIM")
	s := &session{block: make(chan struct{}), classes: map[string][]*cim.Instance{
		"msvm_computersystem": {host, vm}, "msvm_concretejob": {job}, "msvm_virtualsystemsettingdata": {settings},
		"msvm_virtualsystemsnapshotservice": {service}, "msvm_settingsdefinestate": {link},
	}}
	nameless := *job
	nameless.Path = cim.Path{}
	s.answers = map[string][]*cim.Instance{
		strings.ToLower(cim.Associators(vmPath(), "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData")):   {settings},
		strings.ToLower("REFERENCES OF {" + vmPath().Relative() + "} WHERE ResultClass=Msvm_SettingsDefineState"): {link},
		"select * from msvm_concretejob where jobstate = 7":                                                       {&nameless},
		"select name, elementname from msvm_computersystem":                                                       {vm},
	}
	return s
}

var simple = regexp.MustCompile(`(?i)^select \* from (\w+)( where (.*))?$`)

func (s *session) Query(ctx context.Context, namespace, query string) ([]*cim.Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries = append(s.queries, namespace+" "+query)
	switch strings.ToLower(query) {
	case "select * from slow":
		<-ctx.Done()
		return nil, &cim.Error{Code: cim.CodeTimeout, Op: query, Err: ctx.Err()}
	case "select * from many":
		var list []*cim.Instance
		for i := range 2500 {
			list = append(list, cim.NewInstance("Many", "Index", uint32(i), "Text", strings.Repeat("x", 200)))
		}
		return list, nil
	case "select * from huge":
		return []*cim.Instance{cim.NewInstance("Huge", "Text", strings.Repeat("x", 600<<10))}, nil
	case "select * from denied":
		return nil, &cim.Error{Code: cim.CodeAccessDenied, Op: query, Message: "not yours"}
	case "select * from busy":
		return nil, &cim.Error{Code: cim.CodeQuota, Op: query, Message: "too busy"}
	case "select * from broken":
		return nil, &cim.Error{Code: cim.CodeFailed, Op: query, Message: "the provider broke", Status: 0x80041001}
	case "selekt":
		return nil, &cim.Error{Code: cim.CodeInvalidQuery, Op: query, Message: "column 1: not a query"}
	}
	if list, ok := s.answers[strings.ToLower(query)]; ok {
		return slices.Clone(list), nil
	}
	m := simple.FindStringSubmatch(query)
	if m == nil {
		return nil, nil
	}
	list, ok := s.classes[strings.ToLower(m[1])]
	if !ok {
		return nil, &cim.Error{Code: cim.CodeInvalidClass, Op: query, Message: "no class " + m[1]}
	}
	var out []*cim.Instance
	for _, in := range list {
		match := true
		for cond := range strings.SplitSeq(m[3], " AND ") {
			if name, v, ok := strings.Cut(cond, " = "); ok {
				have := in.String(name)
				if have == "" {
					have = in.Path.Key(name)
				}
				match = match && strings.EqualFold(have, strings.Trim(v, "'"))
			}
		}
		if match {
			out = append(out, in)
		}
	}
	return out, nil
}

func (s *session) Get(_ context.Context, p cim.Path) (*cim.Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, ok := s.classes[strings.ToLower(p.Class)]
	if !ok {
		return nil, &cim.Error{Code: cim.CodeInvalidClass, Op: "get " + p.String(), Message: "no class " + p.Class}
	}
	for _, in := range list {
		if in.Path.Same(p) {
			return in, nil
		}
	}
	return nil, &cim.Error{Code: cim.CodeNotFound, Op: "get " + p.String(), Message: "no such instance"}
}

func (s *session) Invoke(ctx context.Context, p cim.Path, method string, in cim.Args) (cim.Out, error) {
	s.mu.Lock()
	s.invoked = append(s.invoked, invocation{p, method, in})
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.ended++
		s.mu.Unlock()
	}()
	switch method {
	case "CreateSnapshot":
		return cim.Out{Return: 4096, Args: cim.Pairs("Job", path("Msvm_ConcreteJob", "InstanceID", jobID))}, nil
	case "Block":
		select {
		case <-s.block:
		case <-ctx.Done():
			return cim.Out{}, ctx.Err()
		}
	case "Lost":
		return cim.Out{}, &cim.Error{Code: cim.CodeNotFound, Op: method, Message: "the object is gone"}
	}
	return cim.Out{Return: 0, Args: cim.Pairs("Echo", in.Strings("Text"))}, nil
}

func (s *session) Put(_ context.Context, p cim.Path, in *cim.Instance) (*cim.Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.invoked = append(s.invoked, invocation{p, "Put", in.Args})
	out := cim.NewInstance(in.Class, "InstanceID", p.Key("InstanceID"))
	out.Path = p
	for _, a := range in.Args {
		out.Set(a.Name, a.Value)
	}
	return out, nil
}

func (s *session) Close() error { return nil }

func (s *session) last() invocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.invoked) == 0 {
		return invocation{}
	}
	return s.invoked[len(s.invoked)-1]
}

// readOnly hides Put.
type readOnly struct{ cim.Session }

func config(s cim.Session) wsmand.Config {
	return wsmand.Config{
		Session:  func(string) (cim.Session, error) { return s, nil },
		Schema:   wsmand.Tables(schema.Load()),
		Password: func(u, _ string) (string, bool) { return password, strings.EqualFold(u, user) || u == "other" },
		Basic:    true, AllowUnencrypted: true,
	}
}

func newServer(t *testing.T, cfg wsmand.Config) *wsmand.Server {
	t.Helper()
	s := wsmand.New(cfg)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// envelope builds a request; extra are more headers.
func envelope(action, resource, extra, body string) string {
	res := ""
	if resource != "" {
		res = `<w:ResourceURI s:mustUnderstand="true">` + resource + `</w:ResourceURI>`
	}
	return `<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"` +
		` xmlns:n="http://schemas.xmlsoap.org/ws/2004/09/enumeration" xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd" xmlns:b="http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd"` +
		` xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><s:Header>` +
		`<a:To>http://hvsim:5985/wsman</a:To>` + res +
		`<a:ReplyTo><a:Address s:mustUnderstand="true">http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>` +
		`<a:Action s:mustUnderstand="true">` + action + `</a:Action><a:MessageID>uuid:00000000-0000-0000-0000-000000000001</a:MessageID>` +
		`<w:Locale xml:lang="en-US" s:mustUnderstand="false"/><p:DataLocale xml:lang="en-US" s:mustUnderstand="false"/>` + extra +
		`</s:Header><s:Body>` + body + `</s:Body></s:Envelope>`
}

const (
	actEnumerate = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Enumerate"
	actPull      = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Pull"
	actRelease   = "http://schemas.xmlsoap.org/ws/2004/09/enumeration/Release"
	actGet       = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get"
	actPut       = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Put"
	identify     = `<i:Identify xmlns:i="http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"/>`
)

func selectors(pairs ...string) string {
	var b strings.Builder
	b.WriteString("<w:SelectorSet>")
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, `<w:Selector Name="%s">%s</w:Selector>`, pairs[i], pairs[i+1])
	}
	return b.String() + "</w:SelectorSet>"
}

func wql(q, more string) string {
	return `<n:Enumerate>` + more + `<w:Filter Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL">` + q + `</w:Filter></n:Enumerate>`
}

const optimized = `<w:OptimizeEnumeration/><w:MaxElements>100</w:MaxElements>`

// post sends an envelope as user by Basic, without network.
func post(t *testing.T, h http.Handler, as, body string) (int, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/wsman", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/soap+xml;charset=UTF-8")
	r.SetBasicAuth(as, password)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

var (
	answerID  = regexp.MustCompile(`<a:MessageID>uuid:[0-9A-F-]{36}</a:MessageID>`)
	contextID = regexp.MustCompile(`<n:EnumerationContext>(uuid:[0-9A-F-]{36})</n:EnumerationContext>`)
)

func contextOf(t *testing.T, body string) string {
	t.Helper()
	m := contextID.FindStringSubmatch(body)
	if m == nil {
		t.Fatalf("no enumeration context in %s", body)
	}
	return m[1]
}

func pull(id, more string) string {
	return `<n:Pull><n:EnumerationContext>` + id + `</n:EnumerationContext>` + more + `</n:Pull>`
}

// listen serves on a port of this machine and returns its address.
func listen(t *testing.T, s *wsmand.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve did not end after Close")
		}
	})
	return l.Addr().String()
}
