package hosting

import (
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/winservice"
)

// noProxyAtAll is the --proxy that switches every proxy off.
const noProxyAtAll = "none"

// Proxy says how the vault and the store are reached.
type Proxy struct {
	URL    string // "" = that of the environment, on Windows else that of the machine
	Bypass string // hosts that are reached without it, as NO_PROXY has them
}

// Add adds the flags to a command.
func (p *Proxy) Add(c *cobra.Command) {
	c.Flags().StringVar(&p.URL, "proxy", "", "proxy on the way to the vault and the store: http://host:port, or none (default: HTTPS_PROXY; on Windows else the machine's)")
	c.Flags().StringVar(&p.Bypass, "no-proxy", "", "hosts that are reached without the proxy, with commas between (default: NO_PROXY)")
}

// Apply makes the choice that of this process and of those that it starts: by the
// environment, where Go's HTTP client looks, once and before its first request. vault is
// the vault's address. It returns exceptions of the machine's settings that can't be kept.
func (p *Proxy) Apply(vault string) (lost []string, err error) {
	set := map[string]string{}
	switch {
	case p.URL == noProxyAtAll:
		set["HTTPS_PROXY"], set["HTTP_PROXY"] = "", ""
	case p.URL != "":
		u, err := url.Parse(p.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return nil, console.Usage("--proxy is no address like http://host:port") // it may hold a password
		}
		if u.User != nil {
			return nil, console.Usage("--proxy holds a user or password, which everybody on this machine could read").
				WithHint("Set HTTPS_PROXY in the environment of the agent instead.")
		}
		set["HTTPS_PROXY"], set["HTTP_PROXY"] = p.URL, p.URL
	case runtime.GOOS == "windows" && env("HTTPS_PROXY") == "" && env("HTTP_PROXY") == "":
		machine, err := winservice.MachineProxy()
		if err != nil {
			return nil, err
		}
		if machine.HTTPS != "" || machine.HTTP != "" {
			set["HTTPS_PROXY"], set["HTTP_PROXY"] = machine.HTTPS, machine.HTTP
			var list []string
			if list, lost = exceptions(machine, vault); len(list) > 0 && env("NO_PROXY") == "" {
				set["NO_PROXY"] = strings.Join(list, ",")
			}
		}
	}
	if p.Bypass != "" {
		set["NO_PROXY"] = p.Bypass
	}
	for name, value := range set {
		for _, n := range []string{name, strings.ToLower(name)} {
			if err := os.Setenv(n, value); err != nil {
				return nil, console.ClassifyAs(err, "set "+n)
			}
		}
	}
	return lost, nil
}

// env is a variable that has two spellings.
func env(name string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return os.Getenv(strings.ToLower(name))
}

// exceptions writes the machine's exceptions as NO_PROXY has them. What has no
// such form is returned as lost; whether it means the vault is decided by Windows' own rules.
func exceptions(p winservice.Proxy, vault string) (list, lost []string) {
	if u, err := url.Parse(vault); err == nil && u.Host != "" {
		if via, err := p.For(u); err == nil && via == nil {
			list = append(list, u.Hostname())
		}
	}
	for _, b := range p.Bypass {
		if _, rest, ok := strings.Cut(b, "://"); ok {
			b = rest
		}
		name, wild := strings.CutPrefix(b, "*.")
		switch {
		case b == "*":
			list = append(list, "*")
		case !strings.ContainsAny(b, "*?<>"):
			list = append(list, b)
		case wild && !strings.ContainsAny(name, "*?"):
			list = append(list, "."+name)
		case network(b) != "":
			list = append(list, network(b))
		default:
			lost = append(lost, b)
		}
	}
	return list, lost
}

// network makes 10.0.0.0/8 of 10.* and the like; "" of anything else.
func network(b string) string {
	var octets []string
	stars := false
	for part := range strings.SplitSeq(b, ".") {
		if part == "*" {
			stars = true
			continue
		}
		if stars {
			return "" // a star in the middle
		}
		octets = append(octets, part)
	}
	bits := 8 * len(octets)
	if !stars || bits == 0 || bits > 24 {
		return ""
	}
	for len(octets) < 4 {
		octets = append(octets, "0")
	}
	addr, err := netip.ParseAddr(strings.Join(octets, "."))
	if err != nil {
		return ""
	}
	return addr.String() + "/" + strconv.Itoa(bits)
}
