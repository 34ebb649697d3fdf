package reach_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/reach"
)

const account = "contoso.blob.core.windows.net"

// blob is the endpoint of a storage account that a test server plays.
func blob(port int) reach.Endpoint {
	return reach.Endpoint{Name: reach.StoreName, Host: account, Port: port, Protocol: reach.HTTPS, Required: true, Azure: true, Signers: []string{"DigiCert", "Microsoft Corporation"}}
}

var here = names{account: {"127.0.0.1"}}

func TestAllWell(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "DigiCert Inc")
	r := reach.Test(t.Context(), blob(serve(t, ca.good(t, account), azure)), reach.Options{Resolver: here, Roots: ca.pool(), Hop: hop})
	shows(t, r, "name=warning connection=ok tls=ok answer=ok clock=ok") // the name leads to this machine itself
	tells(t, r, reach.HopTLS, "DigiCert Inc")
	tells(t, r, reach.HopAnswer, "status 400")
	if r.Err() != nil || r.Skew.Abs() > 5*time.Second {
		t.Errorf("%v, skew %s", r.Err(), r.Skew)
	}
	for _, h := range r.Hops {
		if h.Took < 0 || h.Name == reach.HopConnection && h.Took == 0 {
			t.Errorf("%s took %s", h.Name, h.Took)
		}
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t, "DigiCert Inc"), newAuthority(t, "Contoso Inspection")
	day := 24 * time.Hour
	now := time.Now()
	for name, c := range map[string]struct {
		cert   tls.Certificate
		trust  *authority // of the machine
		pinned *authority // the vault's
		want   string
		words  []string
	}{
		"good":                 {ca.good(t, account), ca, nil, "ok", []string{"DigiCert"}},
		"wrong name":           {ca.good(t, "login.example.org", "other.example.org"), ca, nil, "failed", []string{"login.example.org", account, "DNS"}},
		"expired":              {ca.issue(t, now.Add(-9*day), now.Add(-day), account), ca, nil, "failed", []string{"out of its time", "clock"}},
		"not yet":              {ca.issue(t, now.Add(day), now.Add(9*day), account), ca, nil, "failed", []string{"is good from", "clock"}},
		"soon":                 {ca.issue(t, now.Add(-day), now.Add(3*day), account), ca, nil, "warning", []string{"ends"}},
		"intercepted":          {other.good(t, account), ca, nil, "failed", []string{"intercepted", "Contoso Inspection", "Exempt"}},
		"intercepted, trusted": {other.good(t, account), other, nil, "warning", []string{"intercepted", "Contoso Inspection"}},
		"pinned":               {other.good(t, account), ca, other, "ok", []string{"Contoso"}},
		"not the pinned one":   {ca.good(t, account), ca, other, "failed", []string{"DigiCert Inc", "vault's authority"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			e := blob(serve(t, c.cert, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); azure(w, r) }))
			if c.pinned != nil {
				e.Name, e.Signers, e.Trust = reach.VaultName, nil, c.pinned.pool()
			}
			r := reach.Test(t.Context(), e, reach.Options{Resolver: here, Roots: c.trust.pool(), Hop: hop})
			want := "name=warning connection=ok tls=" + c.want
			if c.want != "failed" {
				want += " answer=ok clock=ok"
			}
			shows(t, r, want)
			tells(t, r, reach.HopTLS, c.words...)
			if (asked.Load() == 0) != (c.want == "failed") {
				t.Errorf("%d requests were sent", asked.Load())
			}
			switch {
			case c.want != "failed" && r.Err() != nil, c.want == "failed" && r.Err() == nil:
				t.Errorf("error %v", r.Err())
			case c.want == "failed" && c.pinned != nil && dr.CodeOf(r.Err()) != dr.CodeVaultIdentity:
				t.Errorf("code %s", dr.CodeOf(r.Err()))
			case c.want == "failed" && c.pinned == nil && (dr.CodeOf(r.Err()) != dr.CodeAzureUnreachable || dr.HintOf(r.Err()) != r.First(reach.Failed).Remedy):
				t.Errorf("code %s, hint %s", dr.CodeOf(r.Err()), dr.HintOf(r.Err()))
			}
		})
	}
}

// TestMachinesClock: the certificate is judged by the clock that the machine has.
func TestMachinesClock(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "DigiCert Inc")
	r := reach.Test(t.Context(), blob(serve(t, ca.good(t, account), azure)), reach.Options{Resolver: here, Roots: ca.pool(), Hop: hop, Now: func() time.Time { return time.Now().Add(-48 * time.Hour) }})
	shows(t, r, "name=warning connection=ok tls=failed")
	tells(t, r, reach.HopTLS, "this machine's clock says")
}

func TestClock(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "DigiCert Inc")
	for _, c := range []struct {
		off    time.Duration
		status string
		azure  bool
		code   dr.Code
	}{
		{0, "ok", true, ""}, {30 * time.Second, "ok", true, ""}, {2 * time.Minute, "warning", true, ""}, {-2 * time.Minute, "warning", true, ""},
		{20 * time.Minute, "failed", true, dr.CodeAzureClock}, {-20 * time.Minute, "failed", true, dr.CodeAzureClock}, {20 * time.Minute, "failed", false, ""},
	} {
		t.Run(fmt.Sprint(c.off, c.azure), func(t *testing.T) {
			t.Parallel()
			e := blob(serve(t, ca.good(t, account), azure))
			e.Azure = c.azure
			r := reach.Test(t.Context(), e, reach.Options{Resolver: here, Roots: ca.pool(), Hop: hop, Now: func() time.Time { return time.Now().Add(c.off) }})
			shows(t, r, "name=warning connection=ok tls=ok answer=ok clock="+c.status)
			if d := (r.Skew - c.off).Abs(); d > 10*time.Second {
				t.Errorf("skew %s", r.Skew)
			}
			if c.status != "ok" {
				tells(t, r, reach.HopClock, "differs by", "w32tm")
			}
			if dr.CodeOf(r.Err()) != c.code || (r.Err() != nil) != (c.status == "failed") {
				t.Errorf("error %v", r.Err())
			}
		})
	}
	t.Run("no date", func(t *testing.T) {
		t.Parallel()
		for _, date := range []string{"", "yesterday"} {
			e := blob(serve(t, ca.good(t, account), func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Date"] = []string{date}
				if date == "" {
					w.Header()["Date"] = nil
				}
				azure(w, r)
			}))
			r := reach.Test(t.Context(), e, reach.Options{Resolver: here, Roots: ca.pool(), Hop: hop})
			shows(t, r, "name=warning connection=ok tls=ok answer=ok clock=skipped")
		}
	})
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "DigiCert Inc")
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
		words  []string
	}{
		"login page":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }, "answer=warning clock=ok", []string{"not as Azure"}},
		"login wanted": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(511) }, "answer=failed clock=ok", []string{"browser"}},
		"storage firewall": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Ms-Error-Code", "AuthorizationFailure")
			w.WriteHeader(403)
		}, "answer=warning clock=ok", []string{"firewall", "private endpoint"}},
		"trouble": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Ms-Request-Id", "1")
			w.WriteHeader(503)
		}, "answer=warning clock=ok", []string{"503"}},
		"cut": {func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, "answer=failed", []string{"cut"}},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 200<<10))
			w.WriteHeader(200)
		}, "answer=failed", []string{"does not end"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := reach.Test(t.Context(), blob(serve(t, ca.good(t, account), c.answer)), reach.Options{Resolver: here, Roots: ca.pool(), Hop: hop})
			shows(t, r, "name=warning connection=ok tls=ok "+c.want)
			tells(t, r, reach.HopAnswer, c.words...)
		})
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "DigiCert Inc")
	p := serve(t, ca.good(t, account), azure)
	t.Run("does not exist", func(t *testing.T) {
		t.Parallel()
		r := reach.Test(t.Context(), blob(p), reach.Options{Resolver: names{}, Hop: hop})
		shows(t, r, "name=failed")
		tells(t, r, reach.HopName, account, "does not exist", "DNS")
		if dr.KindOf(r.Err()) != dr.KindUnavailable {
			t.Errorf("kind %s", dr.KindOf(r.Err()))
		}
	})
	t.Run("DNS is silent", func(t *testing.T) {
		t.Parallel()
		silent, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		// Go's resolver goes on for some seconds after its caller is gone: its connections are closed here.
		var mu sync.Mutex
		var conns []net.Conn
		over := false
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			over = true
			for _, c := range conns {
				_ = c.Close()
			}
		}()
		res := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if over {
				return nil, net.ErrClosed
			}
			c, err := (&net.Dialer{}).DialContext(ctx, "udp", silent.LocalAddr().String())
			if err == nil {
				conns = append(conns, c)
			}
			return c, err
		}}
		began := time.Now()
		r := reach.Test(t.Context(), blob(p), reach.Options{Resolver: res, Hop: 300 * time.Millisecond})
		shows(t, r, "name=failed")
		tells(t, r, reach.HopName, "DNS server does not answer")
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("it took %s", d)
		}
	})
	t.Run("private endpoint", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		res := resolverFunc(func() { cancel() })
		r := reach.Test(ctx, blob(p), reach.Options{Resolver: res, Hop: hop})
		if len(r.Hops) != 2 || !strings.Contains(r.Hops[0].Detail, "private endpoint") || r.Hops[1].Status != reach.Failed || !strings.Contains(r.Hops[1].Detail, "stopped") {
			t.Errorf("%+v", r.Hops)
		}
	})
	t.Run("second address", func(t *testing.T) {
		t.Parallel()
		// Nothing listens at 127.0.0.2 on that port.
		r := reach.Test(t.Context(), blob(p), reach.Options{Resolver: names{account: {"127.0.0.2", "127.0.0.1"}}, Roots: ca.pool(), Hop: hop})
		shows(t, r, "name=warning connection=warning tls=ok answer=ok clock=ok")
		tells(t, r, reach.HopConnection, "127.0.0.2", "refused")
	})
}

func TestConnections(t *testing.T) {
	t.Parallel()
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := port(t, ln.Addr())
		_ = ln.Close()
		r := reach.Test(t.Context(), blob(at), reach.Options{Resolver: here, Hop: hop})
		shows(t, r, "name=warning connection=failed")
		tells(t, r, reach.HopConnection, "refused", "Open outbound TCP", fmt.Sprintf("%s:%d", account, at))
	})
	for name, behave := range map[string]func(net.Conn){
		"silent": nil,
		"closes": func(c net.Conn) { _ = c.Close() },
		"speaks": func(c net.Conn) { _, _ = c.Write([]byte("220 mail.example.org ESMTP\r\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			accepted := make(chan net.Conn, 1)
			go func() {
				defer close(accepted)
				c, err := ln.Accept()
				if err != nil {
					return
				}
				if behave != nil {
					behave(c)
				}
				accepted <- c
			}()
			limit, words := hop, []string{"TLS"}
			if behave == nil {
				limit, words = 500*time.Millisecond, []string{"no answer in time"}
			}
			began := time.Now()
			r := reach.Test(t.Context(), blob(port(t, ln.Addr())), reach.Options{Resolver: here, Hop: limit})
			shows(t, r, "name=warning connection=ok tls=failed")
			tells(t, r, reach.HopTLS, words...)
			if d := time.Since(began); behave == nil && d > 15*time.Second {
				t.Errorf("it took %s", d)
			}
			_ = ln.Close()
			if c, ok := <-accepted; ok {
				_ = c.Close()
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		ca := newAuthority(t, "DigiCert Inc")
		began, release := make(chan struct{}), make(chan struct{})
		e := blob(serve(t, ca.good(t, account), func(http.ResponseWriter, *http.Request) { close(began); <-release }))
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { <-began; cancel(errors.New("the operator has seen enough")) }()
		r := reach.Test(ctx, e, reach.Options{Resolver: here, Roots: ca.pool(), Hop: time.Hour})
		close(release)
		shows(t, r, "name=warning connection=ok tls=ok answer=failed")
		tells(t, r, reach.HopAnswer, "seen enough")
	})
}

func TestIdle(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "DigiCert Inc")
	origin := fmt.Sprintf("127.0.0.1:%d", serve(t, ca.good(t, account), azure))
	const quiet = time.Second
	t.Run("stays", func(t *testing.T) {
		t.Parallel()
		p := &proxy{to: origin}
		r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(p.start(t)), Roots: ca.pool(), Hop: hop, Idle: quiet})
		shows(t, r, "proxy=ok tunnel=ok tls=ok answer=ok clock=ok idle=ok")
	})
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		if testing.Short() {
			t.Skip("waits 5 s for the proxy")
		}
		p := &proxy{to: origin, cutAfter: 5 * time.Second} // long enough for the first answer
		r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(p.start(t)), Roots: ca.pool(), Hop: hop, Idle: time.Minute})
		shows(t, r, "proxy=ok tunnel=ok tls=ok answer=ok clock=ok idle=warning")
		tells(t, r, reach.HopIdle, "cut after", "quiet connections")
		if r.Err() != nil {
			t.Error(r.Err())
		}
	})
}

func TestProxies(t *testing.T) {
	t.Parallel()
	ca, inspector := newAuthority(t, "DigiCert Inc"), newAuthority(t, "Contoso Inspection")
	origin := fmt.Sprintf("127.0.0.1:%d", serve(t, ca.good(t, account), azure))
	offers := []string{`Negotiate`, `NTLM`, `Basic realm="a proxy, of Contoso"`}
	for name, c := range map[string]struct {
		proxy  *proxy
		user   *url.Userinfo
		want   string
		at     string
		words  []string
		opened int32
	}{
		"plain":             {&proxy{to: origin}, nil, "proxy=ok tunnel=ok tls=ok answer=ok clock=ok", reach.HopProxy, []string{"the store is reached by http://127.0.0.1"}, 1},
		"sign-in":           {&proxy{to: origin, user: "anna:geheim@1", offers: offers}, url.UserPassword("anna", "geheim@1"), "proxy=ok tunnel=ok tls=ok answer=ok clock=ok", reach.HopTunnel, []string{"with sign-in"}, 1},
		"no sign-in":        {&proxy{to: origin, user: "anna:geheim@1", offers: offers}, nil, "proxy=ok tunnel=failed", reach.HopTunnel, []string{"407", "Negotiate, NTLM, Basic", "HTTPS_PROXY"}, 0},
		"wrong password":    {&proxy{to: origin, user: "anna:geheim@1", offers: offers}, url.UserPassword("anna", "geheim@2"), "proxy=ok tunnel=failed", reach.HopTunnel, []string{"refuses user and password", "%40"}, 0},
		"no Basic":          {&proxy{to: origin, user: "anna:geheim@1", offers: offers[:2]}, url.UserPassword("anna", "geheim@1x"), "proxy=ok tunnel=failed", reach.HopTunnel, []string{"Basic only", "Negotiate, NTLM", "relay"}, 0},
		"forbidden":         {&proxy{status: 403, squid: "ERR_ACCESS_DENIED 0"}, nil, "proxy=ok tunnel=failed", reach.HopTunnel, []string{"403", "ERR_ACCESS_DENIED", account + ":443"}, 0},
		"no DNS of its own": {&proxy{status: 503, squid: "ERR_DNS_FAIL 0"}, nil, "proxy=ok tunnel=failed", reach.HopTunnel, []string{"ERR_DNS_FAIL", "can't reach"}, 0},
		"target down":       {&proxy{to: "127.0.0.1:1"}, nil, "proxy=ok tunnel=failed", reach.HopTunnel, []string{"502"}, 0},
		"odd status":        {&proxy{status: 204}, nil, "proxy=ok tunnel=failed", reach.HopTunnel, []string{"204"}, 0},
		"blurts":            {&proxy{to: origin, blurt: true}, nil, "proxy=ok tunnel=failed", reach.HopTunnel, []string{"of its own"}, 1},
		"inspects": {&proxy{to: origin, inspect: func(host string) tls.Certificate { return inspector.good(t, host) }}, nil, "proxy=ok tunnel=ok tls=failed", reach.HopTLS,
			[]string{"intercepted", "Contoso Inspection Root"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := c.proxy.start(t)
			u.User = c.user
			r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(u), Roots: ca.pool(), Hop: hop, Resolver: names{}})
			shows(t, r, c.want)
			tells(t, r, c.at, c.words...)
			if c.proxy.asked.Load() != 1 || c.proxy.opened.Load() > c.opened || !strings.HasPrefix(r.Via, "http://127.0.0.1:") {
				t.Errorf("%d requests, %d tunnels, via %s", c.proxy.asked.Load(), c.proxy.opened.Load(), r.Via)
			}
			text, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range []string{string(text), fmt.Sprintf("%+v", r), fmt.Sprint(r.Err())} {
				if strings.Contains(s, "geheim") || strings.Contains(s, "YW5uYTpnZWhlaW") {
					t.Errorf("a password is in %s", s)
				}
			}
		})
	}
}

// TestOddProxies: what stands where a proxy should, and what does not go by one.
func TestOddProxies(t *testing.T) {
	t.Parallel()
	ca, inspector := newAuthority(t, "DigiCert Inc"), newAuthority(t, "Contoso Inspection")
	origin := fmt.Sprintf("127.0.0.1:%d", serve(t, ca.good(t, account), azure))
	t.Run("trusted inspection", func(t *testing.T) {
		t.Parallel()
		p := &proxy{to: origin, inspect: func(host string) tls.Certificate { return inspector.good(t, host) }}
		r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(p.start(t)), Roots: inspector.pool(), Hop: hop})
		shows(t, r, "proxy=ok tunnel=ok tls=warning answer=ok clock=ok")
		tells(t, r, reach.HopTLS, "intercepted", "Contoso Inspection")
	})
	t.Run("no such proxy", func(t *testing.T) {
		t.Parallel()
		u := &url.URL{Scheme: "http", Host: "proxy.holdfast.invalid:3128", User: url.UserPassword("anna", "geheim")}
		r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(u), Resolver: here, Hop: hop})
		shows(t, r, "proxy name=failed")
		tells(t, r, reach.HopProxyName, "proxy.holdfast.invalid")
	})
	t.Run("proxy is down", func(t *testing.T) {
		t.Parallel()
		u := &url.URL{Scheme: "http", Host: "127.0.0.1:1", User: url.UserPassword("anna", "geheim")}
		r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(u), Hop: hop})
		shows(t, r, "proxy=failed")
		tells(t, r, reach.HopProxy, "the proxy http://127.0.0.1:1", "refused")
	})
	t.Run("no HTTP proxy", func(t *testing.T) {
		t.Parallel()
		u, _ := url.Parse("http://" + origin) // speaks TLS
		r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(u), Hop: hop})
		shows(t, r, "proxy=ok tunnel=failed")
	})
	t.Run("by TLS", func(t *testing.T) {
		t.Parallel()
		front := newAuthority(t, "Contoso Proxies")
		p := serve(t, front.good(t, "127.0.0.1"), func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
		u := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", p)}
		r := reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(u), Roots: front.pool(), Hop: hop})
		shows(t, r, "proxy=ok tunnel=failed")
		r = reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(u), Roots: ca.pool(), Hop: hop})
		shows(t, r, "proxy=failed")
		tells(t, r, reach.HopProxy, "proxy's certificate")
	})
	t.Run("bad settings", func(t *testing.T) {
		t.Parallel()
		bad := func(*url.URL) (*url.URL, error) { return nil, errors.New("anna:geheim") }
		shows(t, reach.Test(t.Context(), blob(443), reach.Options{Proxy: bad}), "proxy=failed")
		socks := &url.URL{Scheme: "socks5", Host: "127.0.0.1:1", User: url.UserPassword("anna", "geheim")}
		shows(t, reach.Test(t.Context(), blob(443), reach.Options{Proxy: always(socks)}), "proxy=skipped")
	})
	t.Run("metadata goes direct", func(t *testing.T) {
		t.Parallel()
		p := &proxy{to: origin}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := port(t, ln.Addr())
		_ = ln.Close()
		e := reach.Endpoint{Name: reach.MetadataName, Host: "127.0.0.1", Port: at, Protocol: reach.HTTP, Direct: true}
		r := reach.Test(t.Context(), e, reach.Options{Proxy: always(p.start(t)), Hop: hop})
		shows(t, r, "connection=failed")
		tells(t, r, reach.HopConnection, "no VM in Azure")
		if p.asked.Load() != 0 {
			t.Error("the proxy was asked")
		}
	})
}

func TestProxyRules(t *testing.T) {
	t.Parallel()
	const via = "http://proxy.example.org:3128"
	for _, c := range []struct {
		bypass, url string
		direct      bool
	}{
		{"", "https://a.example.org/", false},
		{"", "https://localhost:8443/", true}, {"", "https://127.0.0.9/", true}, {"", "https://[::1]/", true},
		{"example.org", "https://example.org/", true}, {"example.org", "https://a.example.org/", true}, {"example.org", "https://badexample.org/", false},
		{".example.org", "https://a.example.org/", true}, {".example.org", "https://example.org/", false},
		{"a.example.org:8443", "https://a.example.org:8443/", true}, {"a.example.org:8443", "https://a.example.org/", false},
		{"10.0.0.0/8", "https://10.9.8.7/", true}, {"10.0.0.0/8", "https://11.9.8.7/", false}, {"fd00::/8", "https://[fd12::1]/", true},
		{"10.1.2.3, .corp.example", "https://vault.corp.example/", true}, {"10.1.2.3,.corp.example", "https://10.1.2.3/", true},
		{"*", "https://a.example.org/", true}, {"EXAMPLE.ORG", "https://a.Example.org/", true},
	} {
		f, err := reach.ProxyRules{URL: via, Bypass: c.bypass}.Func()
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f(u)
		if err != nil || (got == nil) != c.direct {
			t.Errorf("bypass %q, %s: %v, %v", c.bypass, c.url, got, err)
		}
	}
	for _, bad := range []string{"proxy:3128", "ftp://geheim@proxy", "http://", "http://anna:geheim@pro xy:1", "http://a:geheim%zz@x:1"} {
		if _, err := (reach.ProxyRules{URL: bad}).Func(); dr.KindOf(err) != dr.KindInvalid || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNotTested(t *testing.T) {
	t.Parallel()
	for _, e := range []reach.Endpoint{{Name: reach.DisksName, Host: "*.blob.storage.azure.net", Port: 443, Protocol: reach.HTTPS}, {Name: reach.TimeName, Host: "time.windows.com", Port: 123, Protocol: reach.UDP}} {
		shows(t, reach.Test(t.Context(), e, reach.Options{Resolver: names{}}), "name=skipped")
	}
}
