package reach_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/reach"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hop is long enough for a machine that is busy, and short where a test waits for its end.
const hop = 20 * time.Second

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, organization string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: organization + " Root", Organization: []string{organization}}, NotBefore: time.Now().Add(-400 * 24 * time.Hour),
		NotAfter: time.Now().Add(400 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue makes a certificate that is good from one time to another.
func (a *authority) issue(t *testing.T, from, to time.Time, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, NotBefore: from, NotAfter: to, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) good(t *testing.T, names ...string) tls.Certificate {
	return a.issue(t, time.Now().Add(-24*time.Hour), time.Now().Add(90*24*time.Hour), names...)
}

// serve runs an HTTPS server and returns its port.
func serve(t *testing.T, cert tls.Certificate, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // what clients make it say is what tests are about
	s.StartTLS()
	t.Cleanup(s.Close)
	return port(t, s.Listener.Addr())
}

func port(t *testing.T, a net.Addr) int {
	t.Helper()
	return int(netip.MustParseAddrPort(a.String()).Port())
}

// azure answers as Azure's storage does to strangers.
func azure(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("X-Ms-Request-Id", "1")
	w.Header().Set("X-Ms-Error-Code", "InvalidQueryParameterValue")
	w.WriteHeader(http.StatusBadRequest)
}

// names is a resolver with a table; every name that it does not have does not exist.
type names map[string][]string

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	list, ok := n[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

// proxy is an HTTP proxy that answers CONNECT.
type proxy struct {
	to       string // where every tunnel leads, host:port
	user     string // user:password that it wants
	offers   []string
	status   int                          // answered instead
	squid    string                       // X-Squid-Error
	inspect  func(string) tls.Certificate // ends TLS itself
	cutAfter time.Duration                // of quiet
	blurt    bool

	asked, opened atomic.Int32
	mu            sync.Mutex
	conns         map[net.Conn]bool
	wg            sync.WaitGroup
}

// start runs the proxy until the test ends, and returns its URL.
func (p *proxy) start(t *testing.T) *url.URL {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.conns = map[net.Conn]bool{}
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.keep(c)
			p.wg.Go(func() { defer c.Close(); p.handle(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return &url.URL{Scheme: "http", Host: ln.Addr().String()}
}

func (p *proxy) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
}

func (p *proxy) handle(c net.Conn) {
	in := bufio.NewReader(c)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	p.asked.Add(1)
	say := func(status int, head string) {
		_, _ = io.WriteString(c, "HTTP/1.1 "+strconv.Itoa(status)+" "+http.StatusText(status)+"\r\n"+head+"Content-Length: 0\r\n\r\n")
	}
	req.Header["Authorization"] = req.Header["Proxy-Authorization"]
	user, pass, _ := req.BasicAuth()
	switch {
	case req.Method != http.MethodConnect:
		say(http.StatusMethodNotAllowed, "")
		return
	case p.user != "" && user+":"+pass != p.user:
		head := ""
		for _, o := range p.offers {
			head += "Proxy-Authenticate: " + o + "\r\n"
		}
		say(http.StatusProxyAuthRequired, head)
		return
	case p.status != 0:
		head := ""
		if p.squid != "" {
			head = "X-Squid-Error: " + p.squid + "\r\n"
		}
		say(p.status, head)
		return
	}
	up, err := net.Dial("tcp", p.to)
	if err != nil {
		say(http.StatusBadGateway, "")
		return
	}
	defer up.Close()
	p.keep(up)
	p.opened.Add(1)
	more := ""
	if p.blurt {
		more = "hello"
	}
	_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"+more)
	down := c
	if p.inspect != nil {
		host, _, _ := net.SplitHostPort(req.Host)
		inner := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{p.inspect(host)}})
		outer := tls.Client(up, &tls.Config{InsecureSkipVerify: true})
		down, up = inner, outer
	}
	quiet := func(x net.Conn) {
		if p.cutAfter > 0 {
			_ = x.SetReadDeadline(time.Now().Add(p.cutAfter))
		}
	}
	p.wg.Go(func() { defer down.Close(); pump(down, up, quiet) })
	pump(up, down, quiet)
}

func pump(to, from net.Conn, quiet func(net.Conn)) {
	b := make([]byte, 32<<10)
	for {
		quiet(from)
		n, err := from.Read(b)
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
}

// always takes one proxy, also for this machine, which Go's rules except.
func always(u *url.URL) reach.ProxyFunc { return func(*url.URL) (*url.URL, error) { return u, nil } }

// shows checks the hops: "name=status" of each, in order.
func shows(t *testing.T, r reach.Result, want string) {
	t.Helper()
	var got []string
	for _, h := range r.Hops {
		got = append(got, h.Name+"="+h.Status)
		if h.Detail == "" || (h.Status == reach.Failed || h.Status == reach.Warning) && h.Remedy == "" {
			t.Errorf("hop %+v says not enough", h)
		}
		for _, s := range []string{h.Detail, h.Remedy} {
			if strings.ContainsAny(s, "\r\n\x00") || strings.Contains(s, "geheim") {
				t.Errorf("hop %q holds what it must not", s)
			}
		}
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("hops %s\nwant %s\n%+v", s, want, r.Hops)
	}
}

// tells checks that the hop's texts hold all words.
func tells(t *testing.T, r reach.Result, name string, words ...string) {
	t.Helper()
	for _, h := range r.Hops {
		if h.Name == name {
			for _, w := range words {
				if !strings.Contains(h.Detail+" / "+h.Remedy, w) {
					t.Errorf("%s does not say %q: %s / %s", name, w, h.Detail, h.Remedy)
				}
			}
			return
		}
	}
	t.Errorf("there is no hop %s: %+v", name, r.Hops)
}

// resolverFunc answers with a private address, and does something then.
type resolverFunc func()

func (f resolverFunc) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	f()
	return []netip.Addr{netip.MustParseAddr("10.254.253.252")}, nil
}
