package wsman_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/wsman"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/hvsim/wsmand"
)

// These tests drive the simulator's WS-Man server, which was written from the same published protocol but
// without a look at this client.

const (
	space    = "root/virtualization/v2"
	user     = `CONTOSO\backup`
	password = "pass:wörd"
)

// backend is a small repository behind the server.
type backend struct {
	mu      sync.Mutex
	invoked []cim.Args
	calls   atomic.Int32
}

func key(class string, pairs ...string) cim.Path {
	p := cim.Path{Namespace: space, Class: class}
	for i := 0; i < len(pairs); i += 2 {
		p.Keys = append(p.Keys, cim.Key{Name: pairs[i], Value: pairs[i+1]})
	}
	return p
}

var (
	vmPath  = key("Msvm_ComputerSystem", "CreationClassName", "Msvm_ComputerSystem", "Name", "vm-1")
	service = key("Msvm_VirtualSystemSnapshotService", "SystemCreationClassName", "Msvm_ComputerSystem", "SystemName", "HV01",
		"CreationClassName", "Msvm_VirtualSystemSnapshotService", "Name", "vssm")
	jobPath = key("Msvm_ConcreteJob", "InstanceID", `{1}\2`)
)

func vm() *cim.Instance {
	in := cim.NewInstance("Msvm_ComputerSystem", "CreationClassName", "Msvm_ComputerSystem", "Name", "vm-1", "ElementName", "  <web> & \"ü\"\n 日本 ",
		"EnabledState", uint16(2), "OperationalStatus", []uint16{2, 32772}, "Caption", nil, "Description", "", "OnTimeInMilliseconds", uint64(1<<63),
		"TimeOfLastStateChange", cim.DateTime("20260102030405.250000+060"))
	in.Path = vmPath
	return in
}

func (b *backend) Query(_ context.Context, _, wql string) ([]*cim.Instance, error) {
	class := strings.Fields(wql)[3]
	switch {
	case strings.HasPrefix(wql, "ASSOCIATORS OF {"+vmPath.Relative()+"}"), class == "Msvm_ComputerSystem":
		return []*cim.Instance{vm()}, nil
	case class == "Msvm_ConcreteJob":
		var list []*cim.Instance
		for i := range 3000 {
			in := cim.NewInstance(class, "InstanceID", fmt.Sprint(i), "ElapsedTime", cim.DateTime("00000001020304.500000:000"), "Caption", strings.Repeat("x", 300))
			in.Path = key(class, "InstanceID", fmt.Sprint(i))
			list = append(list, in)
		}
		return list, nil
	case class == "Msvm_SettingsDefineState":
		in := cim.NewInstance(class, "ManagedElement", vmPath, "SettingData", key("Msvm_VirtualSystemSettingData", "InstanceID", `Microsoft:1\2`))
		in.Path = key(class, "ManagedElement", vmPath.String(), "SettingData", key("Msvm_VirtualSystemSettingData", "InstanceID", `Microsoft:1\2`).String())
		return []*cim.Instance{in}, nil
	case class == "Msvm_StorageJob":
		return []*cim.Instance{cim.NewInstance(class, "InstanceID", "1", "Caption", strings.Repeat("x", 600<<10))}, nil
	case class == "Msvm_DiskDrive":
		return nil, nil
	case class == "Msvm_Keyboard":
		return nil, &cim.Error{Code: cim.CodeAccessDenied, Op: wql, Message: "not yours"}
	case class == "Msvm_Processor":
		return nil, &cim.Error{Code: cim.CodeQuota, Op: wql, Message: "too busy"}
	case class == "selects":
		return nil, &cim.Error{Code: cim.CodeInvalidQuery, Op: wql, Message: "not a query"}
	}
	return nil, &cim.Error{Code: cim.CodeInvalidClass, Op: wql, Message: "no class " + class}
}

func (b *backend) Get(_ context.Context, p cim.Path) (*cim.Instance, error) {
	switch {
	case p.Class == "Msvm_Nothing":
		return nil, &cim.Error{Code: cim.CodeInvalidClass, Op: "get", Message: "no such class"}
	case p.Same(vmPath):
		return vm(), nil
	case p.Same(service):
		in := cim.NewInstance(p.Class, "Name", "vssm")
		in.Path = service
		return in, nil
	case p.Same(jobPath):
		in := cim.NewInstance(p.Class, "InstanceID", jobPath.Key("InstanceID"), "JobState", uint16(7), "PercentComplete", uint16(100))
		in.Path = jobPath
		return in, nil
	}
	return nil, &cim.Error{Code: cim.CodeNotFound, Op: "get", Message: "no such instance"}
}

func (b *backend) Invoke(_ context.Context, p cim.Path, method string, in cim.Args) (cim.Out, error) {
	b.calls.Add(1)
	b.mu.Lock()
	b.invoked = append(b.invoked, in)
	b.mu.Unlock()
	return cim.Out{Return: 4096, Args: cim.Pairs("Job", jobPath, "ResultingSnapshot", nil)}, nil
}

func (b *backend) Close() error { return nil }

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, pool
}

// connect starts a server on the backend and returns a client of it.
func connect(t *testing.T, b *backend, secure bool, server func(*wsmand.Config), client func(*wsman.Config)) *wsman.Session {
	t.Helper()
	conf := wsmand.Config{
		Session: func(string) (cim.Session, error) { return b, nil }, Schema: wsmand.Tables(schema.Load()), Computer: "HV01", Domain: "CONTOSO",
		Password: func(u, d string) (string, bool) {
			return password, u == "backup" && d == "CONTOSO" || u == user
		},
	}
	cfg := wsman.Config{User: user, Password: func(context.Context) (string, error) { return password, nil }}
	scheme := "http"
	if secure {
		scheme = "https"
		cert, pool := certificate(t)
		conf.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		cfg.TLS = &tls.Config{RootCAs: pool}
	}
	if server != nil {
		server(&conf)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.URL = scheme + "://" + l.Addr().String() + "/wsman"
	if client != nil {
		client(&cfg)
	}
	srv := wsmand.New(conf)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	s, err := wsman.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestServerEveryWay(t *testing.T) {
	t.Parallel()
	basic := func(c *wsmand.Config) { c.Basic = true }
	for name, tt := range map[string]struct {
		secure bool
		server func(*wsmand.Config)
		client func(*wsman.Config)
	}{
		"NTLM sealed":    {},
		"NTLM over TLS":  {secure: true},
		"basic over TLS": {secure: true, server: basic, client: func(c *wsman.Config) { c.Auth = wsman.AuthBasic }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &backend{}
			s := connect(t, b, tt.secure, tt.server, tt.client)
			id, err := s.Identify(t.Context())
			if err != nil || id.Vendor == "" {
				t.Fatal(id, err)
			}
			list, err := s.Query(t.Context(), space, "SELECT * FROM Msvm_ComputerSystem")
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			sameVM(t, list[0])
			in, err := s.Get(t.Context(), vmPath)
			if err != nil {
				t.Fatal(err)
			}
			sameVM(t, in)
			list, err = s.Query(t.Context(), space, cim.Associators(vmPath, "Msvm_SettingsDefineState", "Msvm_ComputerSystem"))
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			out, job, err := cim.Call(t.Context(), s, service, "CreateSnapshot", cim.Pairs("AffectedSystem", vmPath,
				"SnapshotSettings", cim.NewInstance("Msvm_VirtualSystemSnapshotSettingData", "ConsistencyLevel", uint8(1), "Notes", []string{"a", "b<c"}),
				"SnapshotType", uint16(32768), "ResultingSnapshot", nil), nil)
			if err != nil || job == nil || !job.Path.Same(jobPath) || !out.Null("ResultingSnapshot") {
				t.Fatalf("%+v %+v %v", out, job, err)
			}
			got := b.invoked[0]
			if p, ok := got.Ref("AffectedSystem"); !ok || !p.Same(vmPath) || p.Namespace != space {
				t.Errorf("the server got the reference %+v", p)
			}
			emb, err := cim.DecodeEmbedded(got.String("SnapshotSettings"))
			if err != nil || emb.Class != "Msvm_VirtualSystemSnapshotSettingData" || !reflect.DeepEqual(emb.Strings("Notes"), []string{"a", "b<c"}) {
				t.Errorf("the server got the object %+v, %v", emb, err)
			}
			if n, ok := got.Uint("SnapshotType"); !ok || n != 32768 {
				t.Errorf("the server got %+v", got)
			}
		})
	}
}

func sameVM(t *testing.T, got *cim.Instance) {
	t.Helper()
	want := vm()
	if got.Class != want.Class || !got.Path.Same(want.Path) || got.Path.Namespace != space {
		t.Errorf("%s at %s", got.Class, got.Path)
	}
	for _, name := range []string{"Name", "ElementName", "Description", "EnabledState", "OnTimeInMilliseconds"} {
		if got.String(name) != want.String(name) {
			t.Errorf("%s = %q, want %q", name, got.String(name), want.String(name))
		}
	}
	if n, err := got.Uints("OperationalStatus"); err != nil || !reflect.DeepEqual(n, []uint64{2, 32772}) {
		t.Errorf("OperationalStatus = %v, %v", n, err)
	}
	if v, ok := got.Lookup("Caption"); v != nil || !ok {
		t.Errorf("Caption = %v, %v; want null", v, ok)
	}
	if v, ok := got.Lookup("Description"); v != "" || !ok {
		t.Errorf("Description = %v, %v; want the empty text", v, ok)
	}
	when, _ := want.Time("TimeOfLastStateChange")
	if at, ok := got.Time("TimeOfLastStateChange"); !ok || !at.Equal(when) {
		t.Errorf("TimeOfLastStateChange = %v, %v, want %v", at, got.String("TimeOfLastStateChange"), when)
	}
}

func TestServerPagesAndReferences(t *testing.T) {
	t.Parallel()
	s := connect(t, &backend{}, false, nil, nil)
	list, err := s.Query(t.Context(), space, "SELECT * FROM Msvm_ConcreteJob")
	if err != nil || len(list) != 3000 {
		t.Fatalf("%d instances, %v", len(list), err)
	}
	for i, in := range list {
		if in.Path.Key("InstanceID") != fmt.Sprint(i) || in.String("ElapsedTime") != "00000001020304.500000:000" {
			t.Fatalf("instance %d is %s, %s", i, in.Path, in.String("ElapsedTime"))
		}
	}
	list, err = s.Query(t.Context(), space, "SELECT * FROM Msvm_SettingsDefineState")
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if p, ok := list[0].Ref("SettingData"); !ok || p.Key("InstanceID") != `Microsoft:1\2` {
		t.Errorf("%+v", p)
	}
	if p, err := cim.ParsePath(list[0].Path.Key("ManagedElement")); err != nil || !p.Same(vmPath) {
		t.Errorf("%+v %v", list[0].Path, err)
	}
	if list, err = s.Query(t.Context(), space, "SELECT * FROM Msvm_DiskDrive"); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}

func TestServerErrors(t *testing.T) {
	t.Parallel()
	s := connect(t, &backend{}, false, nil, nil)
	query := func(q string) func() error {
		return func() error { _, err := s.Query(t.Context(), space, q); return err }
	}
	get := func(p cim.Path) func() error {
		return func() error { _, err := s.Get(t.Context(), p); return err }
	}
	invoke := func(method string, args cim.Args) func() error {
		return func() error { _, err := s.Invoke(t.Context(), service, method, args); return err }
	}
	for name, tt := range map[string]struct {
		do   func() error
		want cim.Code
	}{
		"no class, query":  {query("SELECT * FROM Msvm_Nothing"), cim.CodeInvalidClass},
		"no query":         {query("this is no selects"), cim.CodeInvalidQuery},
		"denied":           {query("SELECT * FROM Msvm_Keyboard"), cim.CodeAccessDenied},
		"quota":            {query("SELECT * FROM Msvm_Processor"), cim.CodeQuota},
		"too large":        {query("SELECT * FROM Msvm_StorageJob"), cim.CodeQuota},
		"no instance":      {get(key("Msvm_ComputerSystem", "CreationClassName", "Msvm_ComputerSystem", "Name", "no")), cim.CodeNotFound},
		"no class, get":    {get(key("Msvm_Nothing", "A", "b")), cim.CodeInvalidClass},
		"no method":        {invoke("Nothing", nil), cim.CodeNoMethod},
		"no parameter":     {invoke("CreateSnapshot", cim.Pairs("Nothing", "x")), cim.CodeNoMethod},
		"wrong type":       {invoke("CreateSnapshot", cim.Pairs("SnapshotType", "x")), cim.CodeNoMethod},
		"wrong key":        {get(key("Msvm_ComputerSystem", "Bogus", "x")), cim.CodeFailed},
		"wrong namespace":  {func() error { _, err := s.Query(t.Context(), "root/nothing", "SELECT * FROM Msvm_Nothing"); return err }, cim.CodeInvalidClass},
		"right once again": {get(vmPath), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.do(); cim.CodeOf(err) != tt.want {
				t.Errorf("%v, want code %q", err, tt.want)
			}
		})
	}
	bad := connect(t, &backend{}, false, nil, func(c *wsman.Config) {
		c.Password = func(context.Context) (string, error) { return "wrong", nil }
	})
	if _, err := bad.Identify(t.Context()); cim.CodeOf(err) != cim.CodeUnauthorized || strings.Contains(err.Error(), "wrong (") {
		t.Error(err)
	}
	if _, err := bad.IdentifyAnonymous(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestServerFaultPlan(t *testing.T) {
	t.Parallel()
	call := func(s *wsman.Session) error {
		_, err := s.Invoke(t.Context(), service, "CreateSnapshot", cim.Pairs("SnapshotType", uint16(2)))
		return err
	}
	get := func(s *wsman.Session) error { _, err := s.Get(t.Context(), vmPath); return err }
	for name, tt := range map[string]struct {
		fault wsmand.Fault
		do    func(*wsman.Session) error
		want  cim.Code
		calls int32
	}{
		"get, connection cut":           {wsmand.Fault{DropBefore: true}, get, "", 0},
		"get, cut after":                {wsmand.Fault{DropAfter: true}, get, "", 0},
		"get, truncated":                {wsmand.Fault{Truncate: true}, get, "", 0},
		"call, cut before":              {wsmand.Fault{DropBefore: true}, call, cim.CodeUnavailable, 0},
		"call, cut after: never twice":  {wsmand.Fault{DropAfter: true}, call, cim.CodeUnavailable, 1},
		"call, truncated: never twice":  {wsmand.Fault{Truncate: true}, call, cim.CodeUnavailable, 1},
		"call, signed out: once":        {wsmand.Fault{Status: 401}, call, "", 1},
		"call, service unavailable":     {wsmand.Fault{Status: 503}, call, cim.CodeUnavailable, 0},
		"call, quota":                   {wsmand.Fault{Quota: true}, call, cim.CodeQuota, 0},
		"call, slower than the timeout": {wsmand.Fault{Delay: time.Minute}, call, cim.CodeTimeout, -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &backend{}
			var fired, armed atomic.Int32
			s := connect(t, b, false, func(c *wsmand.Config) {
				c.Fault = func(wsmand.Call) *wsmand.Fault {
					if armed.Load() == 1 && fired.CompareAndSwap(0, 1) {
						return &tt.fault
					}
					return nil
				}
			}, func(c *wsman.Config) {
				if tt.fault.Delay > 0 {
					c.Timeout = 50 * time.Millisecond
				}
			})
			if err := get(s); err != nil { // a connection that has been used
				t.Fatal(err)
			}
			armed.Store(1)
			if err := tt.do(s); cim.CodeOf(err) != tt.want {
				t.Errorf("%v, want code %q", err, tt.want)
			}
			if fired.Load() != 1 {
				t.Error("the fault did not fire")
			}
			if tt.calls >= 0 && b.calls.Load() != tt.calls { // a server may notice late that the client is gone
				t.Errorf("the method ran %d times, want %d", b.calls.Load(), tt.calls)
			}
			if err := get(s); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestServerConcurrent(t *testing.T) {
	t.Parallel()
	s := connect(t, &backend{}, false, nil, nil)
	var wg sync.WaitGroup
	for range 24 {
		wg.Go(func() {
			for range 5 {
				in, err := s.Get(t.Context(), vmPath)
				if err != nil {
					t.Error(err)
					return
				}
				if in.String("Name") != "vm-1" {
					t.Error("somebody else's answer")
				}
			}
		})
	}
	wg.Wait()
}
