package winservice

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
)

// Proxy is the machine's proxy as Windows keeps it. The zero value is none.
type Proxy struct {
	HTTP, HTTPS string   // URLs; "" = direct
	Bypass      []string // hosts with * as a wildcard; <local> = names without dot
}

// parseProxy reads the settings of WinHTTP and of Internet Explorer: "host:port", or
// "http=host:port;https=host:port", and a list of exceptions, with semicolons or blanks between.
func parseProxy(servers, bypass string) (Proxy, error) {
	var p Proxy
	split := func(s string) []string {
		return strings.FieldsFunc(s, func(r rune) bool { return r == ';' || r == ' ' || r == '\t' || r == '\r' || r == '\n' })
	}
	for _, s := range split(servers) {
		scheme, host, ok := strings.Cut(s, "=")
		if !ok {
			scheme, host = "", s
		}
		scheme = strings.ToLower(scheme)
		if scheme != "" && scheme != "http" && scheme != "https" {
			continue // ftp, socks
		}
		if !strings.Contains(host, "://") {
			host = "http://" + host
		}
		u, err := url.Parse(host)
		if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
			return Proxy{}, fmt.Errorf("the machine's proxy settings have a server that is no host and port")
		}
		addr := u.Scheme + "://" + u.Host
		if scheme != "https" && p.HTTP == "" {
			p.HTTP = addr
		}
		if scheme != "http" && p.HTTPS == "" {
			p.HTTPS = addr
		}
	}
	p.Bypass = split(strings.ToLower(bypass))
	return p, nil
}

// For returns the proxy of a URL, nil for direct.
func (p Proxy) For(u *url.URL) (*url.URL, error) {
	addr := p.HTTPS
	if u.Scheme == "http" {
		addr = p.HTTP
	}
	if addr == "" || p.bypassed(u) {
		return nil, nil
	}
	return url.Parse(addr)
}

// Func is For in the form that http.Transport takes.
func (p Proxy) Func() func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) { return p.For(r.URL) }
}

func (p Proxy) bypassed(u *url.URL) bool {
	host := strings.ToLower(u.Hostname())
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err == nil && ip.IsLoopback() {
		return true
	}
	for _, b := range p.Bypass {
		if b == "<local>" {
			if !strings.Contains(host, ".") && err != nil {
				return true
			}
			continue
		}
		if scheme, rest, ok := strings.Cut(b, "://"); ok {
			if scheme != u.Scheme {
				continue
			}
			b = rest
		}
		name := host
		if strings.Contains(b, ":") && u.Port() != "" && err != nil {
			name += ":" + u.Port()
		}
		if ok, _ := path.Match(b, name); ok { // a pattern that is none matches nothing
			return true
		}
	}
	return false
}
