package reach

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Limits of Test.
const (
	defaultHop   = 10 * time.Second
	maxAddresses = 4 // of a name, that are tried
	maxHeader    = 64 << 10

	// Azure refuses requests whose signature is 15 minutes off ("Authorize with Shared Key").
	skewWarns = time.Minute
	skewFails = 5 * time.Minute
)

// Resolver finds addresses; net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Options of Test. The zero value takes no proxy and the system's DNS and authorities.
type Options struct {
	Proxy    ProxyFunc // nil = none
	Resolver Resolver
	Roots    *x509.CertPool   // nil = the system's
	Hop      time.Duration    // longest time of a hop, Idle apart; 0 = 10 s
	Idle     time.Duration    // how long to leave the connection quiet; 0 = not at all
	Now      func() time.Time // this machine's clock; nil = time.Now
}

// Test walks the way to an endpoint and tells of each hop. It makes one connection
// and one request without any credential (two with Idle). It lasts as many Hops as there are
// hops at most, and ends early with ctx. It is safe for concurrent use.
func Test(ctx context.Context, e Endpoint, o Options) Result {
	o.Hop = cmp.Or(o.Hop, defaultHop)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	p := &probe{e: e, o: o, res: Result{Endpoint: e}}
	defer p.close()
	switch {
	case e.Host == vaultPlaceholder:
		p.skip("the vault's address is not known", "Register the host, or name the vault with --vault.")
	case e.Pattern():
		p.skip("a pattern stands for many names", "'holdfast azure doctor' makes a small disk and reaches it.")
	case e.Protocol == UDP:
		p.skip("not asked; the clock is compared with the answers of the others", "")
	default:
		p.walk(ctx)
	}
	return p.res
}

// probe is a test under way.
type probe struct {
	e     Endpoint
	o     Options
	res   Result
	conn  net.Conn
	quota *quota
	in    *bufio.Reader // over quota, over conn
	late  []Hop         // found by a step, told behind it
}

func (p *probe) close() {
	if p.conn != nil {
		_ = p.conn.Close() // nothing is pending
	}
}

func (p *probe) skip(detail, remedy string) {
	p.res.Hops = append(p.res.Hops, Hop{Name: HopName, Status: Skipped, Detail: detail, Remedy: remedy})
}

// hop runs a step within its deadline, and reports whether to go on.
func (p *probe) hop(ctx context.Context, name string, limit time.Duration, step func(ctx context.Context) verdict) bool {
	hctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	v := step(hctx)
	if ctx.Err() != nil && v.status == Failed {
		v = verdict{Failed, "the test was stopped: " + context.Cause(ctx).Error(), "Try again."}
	}
	p.res.Hops = append(p.res.Hops, Hop{Name: name, Status: v.status, Detail: v.detail, Remedy: v.remedy, Took: time.Since(began)})
	p.res.Hops = append(p.res.Hops, p.late...)
	p.late = nil
	return v.status != Failed
}

// io makes the connection end with ctx, until stop.
func (p *probe) io(ctx context.Context) (stop func()) {
	if d, ok := ctx.Deadline(); ok {
		_ = p.conn.SetDeadline(d) // one that is closed fails at the next byte
	}
	conn := p.conn
	end := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { end() }
}

func (p *probe) walk(ctx context.Context) {
	via, err := p.proxy()
	switch {
	case err != nil:
		p.hop(ctx, HopProxy, p.o.Hop, func(context.Context) verdict {
			return verdict{Failed, "the proxy's settings can't be used", "Name the proxy with --proxy, or --proxy none."} // they may hold a password
		})
		return
	case via != nil && via.Scheme != "http" && via.Scheme != "https":
		p.res.Via = place(via)
		p.res.Hops = append(p.res.Hops, Hop{Name: HopProxy, Status: Skipped, Detail: "the way goes by " + place(via) + ", a kind of proxy that is not tested here"})
		return
	case via != nil:
		p.res.Via = place(via)
		if !p.connect(ctx, HopProxyName, HopProxy, via.Hostname(), proxyPort(via), via) || !p.hop(ctx, HopTunnel, p.o.Hop, func(ctx context.Context) verdict { return p.tunnel(ctx, via) }) {
			return
		}
	case !p.connect(ctx, HopName, HopConnection, p.e.Host, fmt.Sprint(p.e.Port), nil):
		return
	}
	if p.e.Protocol == HTTPS && !p.hop(ctx, HopTLS, p.o.Hop, p.handshake) {
		return
	}
	if !p.hop(ctx, HopAnswer, p.o.Hop, p.answer) {
		return
	}
	if p.o.Idle > 0 && p.e.path == "" {
		p.hop(ctx, HopIdle, p.o.Idle+p.o.Hop, p.idle)
	}
}

// proxy is the proxy of the way, nil for none. Plain HTTP is only used to this machine itself.
func (p *probe) proxy() (*url.URL, error) {
	if p.o.Proxy == nil || p.e.Direct || p.e.Protocol == HTTP {
		return nil, nil
	}
	return p.o.Proxy(&url.URL{Scheme: p.e.Protocol, Host: p.e.Address(), Path: "/"})
}

func proxyPort(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}

// connect resolves and connects to the endpoint, or to the proxy on the way.
func (p *probe) connect(ctx context.Context, nameHop, connHop, host, port string, via *url.URL) bool {
	var addrs []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{ip}
	} else if !p.hop(ctx, nameHop, p.o.Hop, func(ctx context.Context) (v verdict) {
		addrs, v = p.resolve(ctx, host, via)
		return v
	}) {
		return false
	}
	return p.hop(ctx, connHop, p.o.Hop, func(ctx context.Context) verdict { return p.dial(ctx, addrs, host, port, via) })
}

func (p *probe) resolve(ctx context.Context, host string, via *url.URL) ([]netip.Addr, verdict) {
	addrs, err := p.o.Resolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	addrs = slices.Compact(addrs)
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	}
	if err != nil {
		remedy := "Check this machine's DNS servers, and the address."
		if via == nil && p.e.Azure {
			remedy = "Check this machine's DNS servers, and the name. If the network has no DNS for the internet, name a proxy with --proxy."
		}
		return nil, verdict{Failed, fmt.Sprintf("the name %s can't be resolved: %s", shorten(host), because(err)), remedy}
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() }) // IPv4 first: more networks route it
	var list []string
	sunk, private := false, false
	for _, a := range addrs {
		sunk = sunk || a.IsUnspecified() || a.IsLoopback()
		private = private || inside(a)
		if len(list) < maxAddresses {
			list = append(list, a.String())
		}
	}
	detail := strings.Join(list, ", ")
	if len(addrs) > len(list) {
		detail += ", …"
	}
	switch {
	case via != nil || !officialBlob(p.e.Host) && !slices.Contains(officialHosts(), p.e.Host):
	case sunk:
		return addrs, verdict{Warning, detail + ": this is this machine itself, not Azure", "A DNS filter or the hosts file hides the name: allow it there."}
	case private:
		detail += ": private, as of a private endpoint"
	}
	return addrs, verdict{OK, detail, ""}
}

func officialHosts() (list []string) {
	for _, c := range Clouds() {
		list = append(list, c.ResourceManager, c.Authority)
	}
	return list
}

// shared is the address space of carriers (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

func inside(a netip.Addr) bool { return a.IsPrivate() || a.IsLinkLocalUnicast() || shared.Contains(a) }

// dial connects to the first address that takes the connection.
func (p *probe) dial(ctx context.Context, addrs []netip.Addr, host, port string, via *url.URL) verdict {
	var firstErr error
	var firstAddr netip.Addr
	addrs = addrs[:min(len(addrs), maxAddresses)]
	for i, a := range addrs {
		dctx, cancel := context.WithTimeout(ctx, p.o.Hop/time.Duration(len(addrs))) // one that is silent must not take the time of the others
		conn, err := (&net.Dialer{}).DialContext(dctx, "tcp", net.JoinHostPort(a.String(), port))
		cancel()
		if err != nil {
			if i == 0 {
				firstErr, firstAddr = err, a
			}
			continue
		}
		p.use(conn)
		if via != nil && via.Scheme == "https" {
			if v := p.proxyTLS(ctx, host); v.status == Failed {
				return v
			}
		}
		if firstErr != nil {
			return verdict{Warning, fmt.Sprintf("%s takes the connection, but %s: %s", a, firstAddr, because(firstErr)), "Some of its addresses can't be reached: have routes and firewall allow all of them."}
		}
		where := net.JoinHostPort(a.String(), port)
		if via != nil {
			return verdict{OK, fmt.Sprintf("the %s is reached by %s", p.e.Name, place(via)), ""}
		}
		return verdict{OK, where + " takes the connection", ""}
	}
	what, remedy := net.JoinHostPort(firstAddr.String(), port), fmt.Sprintf("Open outbound TCP from this machine to %s, or name the proxy with --proxy.", p.e.Address())
	switch {
	case via != nil:
		what, remedy = "the proxy "+place(via), "Check the proxy's address and that it runs; open outbound TCP to it."
	case p.e.Name == MetadataName:
		remedy = "This machine is no VM in Azure, or its firewall blocks 169.254.169.254: sign in with a certificate or secret, or allow it."
	case inside(firstAddr) && p.e.Azure:
		remedy = "The address is private: check VPN or ExpressRoute, its routes, and the private endpoint's state."
	}
	return verdict{Failed, what + ": " + because(firstErr), remedy}
}

// proxyTLS speaks TLS with a proxy that wants it.
func (p *probe) proxyTLS(ctx context.Context, host string) verdict {
	conn := tls.Client(p.conn, &tls.Config{ServerName: host, RootCAs: p.o.Roots, MinVersion: tls.VersionTLS12, Time: p.o.Now})
	if err := conn.HandshakeContext(ctx); err != nil {
		return verdict{Failed, "the proxy's certificate or TLS: " + because(err), "Install the authority of the proxy's certificate on this machine, or use the proxy's http port."}
	}
	p.use(conn)
	return verdict{status: OK}
}

// tunnel asks the proxy for a connection, as Go's HTTP client does.
func (p *probe) tunnel(ctx context.Context, via *url.URL) verdict {
	defer p.io(ctx)()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: p.e.Address()}, Host: p.e.Address(), Header: http.Header{"User-Agent": {"holdfast"}}}
	if u := via.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	resp, err := p.exchange(req)
	if err != nil {
		return verdict{Failed, "the proxy does not answer CONNECT: " + because(err), "Check that it is an HTTP proxy, on that port, and that it allows CONNECT."}
	}
	detail := fmt.Sprintf("the proxy answers %d", resp.StatusCode)
	if e := resp.Header.Get("X-Squid-Error"); e != "" {
		detail += " (" + shorten(e) + ")"
	}
	switch {
	case resp.StatusCode == http.StatusOK && p.in.Buffered() > 0:
		return verdict{Failed, "the proxy sends something of its own into the tunnel", "It is no plain HTTP proxy: look what answers there."}
	case resp.StatusCode == http.StatusOK && via.User != nil:
		return verdict{OK, "the proxy opens it, with sign-in", ""}
	case resp.StatusCode == http.StatusOK:
		return verdict{OK, "the proxy opens it", ""}
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return signIn(schemes(resp.Header), via.User != nil)
	case resp.StatusCode == http.StatusUnauthorized && via.User != nil:
		return verdict{Failed, detail + ": it refuses user and password", wrongPassword}
	case resp.StatusCode == http.StatusForbidden, resp.StatusCode == http.StatusMethodNotAllowed, resp.StatusCode == http.StatusUnauthorized:
		return verdict{Failed, detail + ": it does not allow " + p.e.Address(), "Allow CONNECT to " + p.e.Address() + " from this machine in the proxy's rules."}
	case resp.StatusCode >= 500:
		return verdict{Failed, fmt.Sprintf("%s: it can't reach %s itself", detail, p.e.Address()), "Check the proxy's DNS and the firewall between the proxy and the internet."}
	}
	return verdict{Failed, detail + " to CONNECT", "Check that it is an HTTP proxy, and its log."}
}

const wrongPassword = "Correct user and password in HTTPS_PROXY; special characters are written as %40 and the like."

// signIn explains a 407.
func signIn(offers []string, tried bool) verdict {
	list := strings.Join(offers, ", ")
	if list == "" {
		list = "no way that it names"
	}
	basic := slices.ContainsFunc(offers, func(s string) bool { return strings.EqualFold(s, "Basic") })
	switch {
	case !basic:
		return verdict{Failed, "the proxy wants a sign-in (407), and offers " + list + "; Holdfast signs in with Basic only",
			"Let the proxy pass this machine without sign-in, or offer Basic; else run a relay here that signs in for it."}
	case tried:
		return verdict{Failed, "the proxy refuses user and password (407); it offers " + list, wrongPassword}
	}
	return verdict{Failed, "the proxy wants a sign-in (407), and offers " + list, "Put http://user:password@host:port into HTTPS_PROXY of the agent's environment."}
}

// exchange sends a request and reads the head of the answer.
func (p *probe) exchange(req *http.Request) (*http.Response, error) {
	p.quota.left = maxHeader
	if err := req.Write(p.conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(p.in, req)
}

// use makes conn the way on.
func (p *probe) use(conn net.Conn) {
	p.conn, p.quota = conn, &quota{r: conn, left: maxHeader}
	p.in = bufio.NewReader(p.quota)
}

// quota bounds what a stranger makes this process read.
type quota struct {
	r    io.Reader
	left int
}

var errTooMuch = errors.New("the head of the answer does not end")

func (q *quota) Read(b []byte) (int, error) {
	if q.left <= 0 {
		return 0, errTooMuch
	}
	n, err := q.r.Read(b[:min(len(b), q.left)])
	q.left -= n
	return n, err
}

// handshake speaks TLS with the endpoint and judges what it shows.
func (p *probe) handshake(ctx context.Context) verdict {
	conn := tls.Client(p.conn, &tls.Config{ServerName: p.e.Host, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: true}) //nolint:gosec // judge verifies, to tell what is wrong; no secret is sent
	if err := conn.HandshakeContext(ctx); err != nil {
		return verdict{Failed, "TLS: " + because(err), "Something between here and the server ends TLS, or no TLS is spoken there: look at proxy, firewall and port. At least TLS 1.2 is needed."}
	}
	p.use(conn)
	return judge(p.e, conn.ConnectionState().PeerCertificates, p.o.Roots, p.o.Now())
}

// request is what the endpoint is asked.
func (p *probe) request() *http.Request {
	u := &url.URL{Scheme: p.e.Protocol, Host: p.e.Address(), Path: "/"}
	req := &http.Request{Method: http.MethodHead, URL: u, Host: p.e.Address(), Header: http.Header{"User-Agent": {"holdfast"}}}
	if p.e.Port == 443 {
		req.Host = p.e.Host
	}
	if p.e.path != "" {
		u.Path, u.RawQuery, _ = strings.Cut(p.e.path, "?")
		req.Method = http.MethodGet
		req.Header.Set("Metadata", "true")
	}
	return req
}

func (p *probe) answer(ctx context.Context) verdict {
	defer p.io(ctx)()
	began := p.o.Now()
	start := time.Now()
	resp, err := p.exchange(p.request())
	if err != nil {
		return verdict{Failed, "no HTTP answer: " + because(err), "Something between here and the server swallows requests: look at proxy and firewall."}
	}
	_ = resp.Body.Close() // the connection is not used after a body
	took := time.Since(start)
	defer p.clock(resp.Header.Get("Date"), began.Add(took/2))
	detail := fmt.Sprintf("%s answers in %s (status %d)", p.e.Address(), took.Round(time.Millisecond), resp.StatusCode)
	code := shorten(resp.Header.Get("X-Ms-Error-Code"))
	switch {
	case resp.StatusCode == http.StatusNetworkAuthenticationRequired:
		return verdict{Failed, detail + ": the network wants a sign-in by a browser", "Have this machine exempted from the network's login page."}
	case p.e.Azure && !microsoft(resp.Header):
		return verdict{Warning, detail + ", which is not as Azure answers", "A login page or a filter may answer in its place: look at proxy and firewall."}
	case code == "AuthorizationFailure" || code == "NetworkAccessDenied" || strings.HasPrefix(code, "NetworkSecurityPerimeter"):
		return verdict{Warning, detail + ": " + code + ", as of a storage firewall", "Add this machine's public address or network to the storage account's firewall, or use a private endpoint."}
	case resp.StatusCode >= 500:
		return verdict{Warning, detail, "It is reached, but has trouble: look at its log or the cloud's status page; try again."}
	}
	return verdict{OK, detail, ""}
}

func microsoft(h http.Header) bool {
	for name := range h {
		if strings.HasPrefix(name, "X-Ms-") {
			return true
		}
	}
	return false
}

// clock compares the clocks; it comes behind the answer in the list.
func (p *probe) clock(date string, now time.Time) {
	h := Hop{Name: HopClock}
	theirs, err := http.ParseTime(date)
	switch {
	case err != nil && date == "":
		h.Status, h.Detail = Skipped, "the answer has no date"
	case err != nil:
		h.Status, h.Detail = Skipped, "the answer's date can't be read"
	default:
		// The header has whole seconds: on average half a one is cut off.
		p.res.Skew = now.Sub(theirs.Add(500 * time.Millisecond)).Round(time.Second)
		h.Status, h.Detail = OK, fmt.Sprintf("differs by %s from %s", p.res.Skew, p.whose())
		if d := p.res.Skew.Abs(); d > skewWarns {
			h.Status, h.Remedy = Warning, "Set the clock: 'w32tm /resync' or systemd-timesyncd; check the time source of this machine and its hypervisor."
			h.Detail = fmt.Sprintf("this host's clock differs by %s from %s", p.res.Skew, p.whose())
			if d > skewFails {
				h.Status = Failed
			}
			if p.e.Azure {
				h.Detail += "; Azure refuses requests from 15 minutes on"
			}
		}
	}
	p.late = append(p.late, h)
}

func (p *probe) whose() string {
	if p.e.Azure {
		return "Azure's"
	}
	return "the " + p.e.Name + "'s"
}

// idle leaves the connection quiet and asks once more.
func (p *probe) idle(ctx context.Context) verdict {
	const remedy = "A proxy, firewall or NAT on the way drops quiet connections: let it keep them for 2 minutes at least."
	began := time.Now()
	stop := p.io(ctx)
	_ = p.conn.SetReadDeadline(began.Add(p.o.Idle)) // a closed connection fails at once
	if ctx.Err() != nil {
		_ = p.conn.SetDeadline(time.Unix(1, 0))
	}
	p.quota.left = maxHeader
	_, err := p.in.Peek(1)
	stop()
	var timeout net.Error
	switch {
	case ctx.Err() != nil:
		return verdict{Failed, because(ctx.Err()), ""}
	case err == nil:
		return verdict{Warning, "something was sent without being asked for", remedy}
	case !errors.As(err, &timeout) || !timeout.Timeout():
		return verdict{Warning, fmt.Sprintf("the connection is cut after %s of quiet", time.Since(began).Round(time.Second)), remedy}
	}
	defer p.io(ctx)()
	resp, err := p.exchange(p.request())
	if err != nil {
		return verdict{Warning, fmt.Sprintf("the connection is dead after %s of quiet: %s", p.o.Idle, because(err)), remedy}
	}
	_ = resp.Body.Close() // nobody uses the connection any more
	return verdict{OK, fmt.Sprintf("a connection that is quiet for %s stays", p.o.Idle), ""}
}

// because is the reason of a network error in plain words, without addresses that the caller names anyway.
func because(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var no syscall.Errno
	var timeout net.Error
	var alert tls.AlertError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "it does not exist"
	case errors.As(err, &dns) && dns.IsTimeout:
		return "the DNS server does not answer"
	case errors.As(err, &dns):
		return shorten(dns.Err)
	case errors.Is(err, context.Canceled):
		return "stopped"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time, as if packets were dropped"
	case errors.As(err, &alert):
		return "refused with the alert \"" + shorten(alert.Error()) + "\""
	case errors.As(err, &record):
		return "the answer is not TLS"
	case errors.As(err, &no) && (no == syscall.ECONNREFUSED || no == wsaRefused):
		return "the connection is refused"
	case errors.As(err, &no) && (no == syscall.ECONNRESET || no == wsaReset), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection is cut"
	case errors.As(err, &no):
		return shorten(no.Error())
	case errors.As(err, &op) && op.Err != nil:
		return shorten(op.Err.Error())
	}
	return shorten(err.Error())
}

// Windows reports these numbers, which package syscall has no names for.
const (
	wsaRefused = syscall.Errno(10061)
	wsaReset   = syscall.Errno(10054)
)
