package reach

import (
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"

	"holdfast/internal/dr"
)

// ProxyFunc finds the proxy of a URL, nil for direct.
type ProxyFunc func(*url.URL) (*url.URL, error)

// ProxyRules are a proxy and what is reached without it.
type ProxyRules struct {
	URL string // http://[user:password@]host:port or https://…; "" = none
	// Bypass is as NO_PROXY has it, with commas between: names (with their
	// subdomains), .suffixes, addresses, networks (10.0.0.0/8), each with a port or not, and * for everything.
	Bypass string
}

// Func checks the rules. They are those of Go's HTTP client: this machine itself
// (localhost, 127.0.0.0/8, ::1) is never reached by a proxy. The error does not repeat the address.
func (r ProxyRules) Func() (ProxyFunc, error) {
	if r.URL != "" {
		u, err := url.Parse(r.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, dr.Errorf(dr.KindInvalid, "reach.Proxy", "the proxy is no address like http://host:port")
		}
	}
	return (&httpproxy.Config{HTTPProxy: r.URL, HTTPSProxy: r.URL, NoProxy: r.Bypass}).ProxyFunc(), nil
}

// FromEnvironment is what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say now.
func FromEnvironment() ProxyFunc { return httpproxy.FromEnvironment().ProxyFunc() }

// place is a proxy's address without user and password.
func place(u *url.URL) string { return u.Scheme + "://" + u.Host }

// schemes are the ways of signing in that a proxy's 407 offers, each once.
func schemes(h http.Header) []string {
	var list []string
	for _, line := range h.Values("Proxy-Authenticate") {
		for part := range strings.SplitSeq(line, ",") { // several may share a line; parameters have a = in their first word
			word, _, _ := strings.Cut(strings.TrimSpace(part), " ")
			if word == "" || strings.ContainsAny(word, "=\"") || len(word) > 20 {
				continue
			}
			known := false
			for _, s := range list {
				known = known || strings.EqualFold(s, word)
			}
			if !known && len(list) < 8 {
				list = append(list, word)
			}
		}
	}
	return list
}
