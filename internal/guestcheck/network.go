package guestcheck

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/readiness"
)

// iface is what a configuration file says of an interface.
type iface struct {
	file   string
	name   string // may be empty
	static bool
	dhcp   bool
	mac    bool // bound to a MAC address
}

func (i iface) String() string {
	how := "no address"
	switch {
	case i.static:
		how = "static address"
	case i.dhcp:
		how = "DHCP"
	}
	if i.mac {
		how += ", bound to a MAC address"
	}
	return fmt.Sprintf("%s: %s (%s)", i.name, how, i.file)
}

// network says how the guest gets its addresses. At the target adapters have
// new MAC addresses; in Azure addresses come by DHCP and the first adapter is eth0.
func (c *checker) network() {
	var all []iface
	files := 0
	read := func(dir, suffix string, parse func(file, s string) []iface) {
		for _, n := range c.list(CheckNetwork, c.root, dir) {
			if strings.HasSuffix(n, suffix) || suffix == "ifcfg-" && strings.HasPrefix(n, suffix) && n != "ifcfg-lo" {
				if s, ok := c.text(CheckNetwork, c.root, dir+"/"+n); ok {
					files++
					all = append(all, parse(dir+"/"+n, s)...)
				}
			}
		}
	}
	read("/etc/netplan", ".yaml", parseNetplan)
	read("/etc/sysconfig/network-scripts", "ifcfg-", parseIfcfg)
	read("/etc/sysconfig/network", "ifcfg-", parseIfcfg)
	read("/etc/NetworkManager/system-connections", ".nmconnection", parseKeyfile)
	read("/etc/systemd/network", ".network", parseNetworkd)
	read("/etc/network/interfaces.d", "", parseInterfaces)
	if s, ok := c.text(CheckNetwork, c.root, "/etc/network/interfaces"); ok {
		files++
		all = append(all, parseInterfaces("/etc/network/interfaces", s)...)
	}
	if files == 0 {
		if c.seen[CheckNetwork] == "" && c.exists(CheckNetwork, c.root, "/usr/sbin/NetworkManager") {
			c.ran(CheckNetwork) // it makes DHCP connections by itself
			c.r.Facts.Network = append(c.r.Facts.Network, "NetworkManager's own default: DHCP")
			return
		}
		c.skip(CheckNetwork, c.root.Name, "no configuration of the network was found")
		return
	}
	c.ran(CheckNetwork)
	for _, i := range all {
		c.r.Facts.Network = append(c.r.Facts.Network, i.String())
		object := c.root.Name + ":" + i.file
		if i.static && c.in.Target == "azure" {
			c.found(CheckNetwork, readiness.Warns, object, "Let the guest use DHCP and set the address at the recovery VM's adapter.", "%s has a static address in the guest; Azure hands addresses out by DHCP and passes no other", label(i))
		} else if i.static {
			c.found(CheckNetwork, readiness.Notes, object, "", "%s has a static address in the guest; it fits only a network with the same range", label(i))
		}
		if i.mac {
			c.found(CheckNetwork, readiness.Warns, object, "Match the interface by name or driver instead.", "%s is bound to the source's MAC address, and the adapter may get another", label(i))
		}
		if c.in.Target == "azure" && !i.mac && i.name != "" && !hasAny(i.name, "*", "eth", "en*") && hasAny(i.name, "ens", "eno", "enp", "enx") {
			c.found(CheckNetwork, readiness.Warns, object, "Match the interface by driver, or boot with net.ifnames=0 and name it eth0.", "the configuration is for %s; in Azure the first adapter is called eth0", i.name)
		}
	}
	if !slices.ContainsFunc(all, func(i iface) bool { return i.dhcp || i.static }) {
		c.found(CheckNetwork, readiness.Warns, c.root.Name, "Configure DHCP in the guest.", "no interface is configured with an address")
	}
}

func label(i iface) string {
	if i.name == "" {
		return "the interface"
	}
	return i.name
}

var yamlKey = regexp.MustCompile(`^(\s*)(?:- )?["']?([A-Za-z0-9_.*-]+)["']?:\s*(.*)$`)

// parseNetplan reads the few keys that matter, by indentation; anchors and flow
// style are beyond it.
func parseNetplan(file, s string) []iface {
	var out []iface
	section, sectionAt, nameAt := "", -1, -1
	for line := range strings.Lines(s) {
		m := yamlKey.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if m == nil || strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		at, key, val := len(m[1]), m[2], m[3]
		switch {
		case slices.Contains([]string{"ethernets", "bonds", "bridges", "vlans", "wifis"}, key):
			section, sectionAt, nameAt = key, at, -1
		case section == "" || at <= sectionAt:
			section = ""
		case nameAt < 0 || at == nameAt:
			nameAt = at
			out = append(out, iface{file: file, name: key})
		default:
			i := &out[len(out)-1]
			switch key {
			case "dhcp4", "dhcp6":
				i.dhcp = i.dhcp || hasAny(strings.ToLower(val), "true", "yes", "on")
			case "addresses":
				i.static = i.static || at == nameAt+2 || at == nameAt+4 && !strings.Contains(s, "nameservers")
			case "macaddress":
				i.mac = true
			case "name":
				i.name = strings.Trim(val, `"' `)
			}
		}
	}
	return out
}

func parseIfcfg(file, s string) []iface {
	i := iface{file: file, name: shellValue(s, "DEVICE")}
	if i.name == "" {
		_, i.name, _ = strings.Cut(file, "ifcfg-")
	}
	i.dhcp = strings.HasPrefix(strings.ToLower(shellValue(s, "BOOTPROTO")), "dhcp")
	i.static = !i.dhcp && (shellValue(s, "IPADDR") != "" || shellValue(s, "IPADDR0") != "")
	i.mac = shellValue(s, "HWADDR") != ""
	return []iface{i}
}

// sections calls visit for each key of an INI-like file.
func sections(s string, visit func(section, key, val string)) {
	section := ""
	for line := range strings.Lines(s) {
		l := strings.TrimSpace(line)
		if strings.HasPrefix(l, "[") {
			section = strings.ToLower(strings.Trim(l, "[]"))
		} else if k, v, ok := strings.Cut(l, "="); ok && !strings.HasPrefix(l, "#") {
			visit(section, strings.ToLower(strings.TrimSpace(k)), strings.TrimSpace(v))
		}
	}
}

func parseKeyfile(file, s string) []iface {
	i := iface{file: file}
	sections(s, func(section, key, val string) {
		switch section + "." + key {
		case "connection.interface-name":
			i.name = val
		case "ipv4.method":
			i.static, i.dhcp = val == "manual", val == "auto"
		case "ethernet.mac-address", "802-3-ethernet.mac-address":
			i.mac = true
		}
	})
	return []iface{i}
}

func parseNetworkd(file, s string) []iface {
	i := iface{file: file}
	sections(s, func(section, key, val string) {
		switch section + "." + key {
		case "match.name":
			i.name = val
		case "match.macaddress", "match.permanentmacaddress":
			i.mac = true
		case "network.address", "address.address":
			i.static = true
		case "network.dhcp":
			i.dhcp = hasAny(strings.ToLower(val), "yes", "true", "ipv4", "both")
		}
	})
	return []iface{i}
}

func parseInterfaces(file, s string) []iface {
	var out []iface
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 4 && f[0] == "iface" && f[1] != "lo" && f[2] == "inet":
			out = append(out, iface{file: file, name: f[1], static: f[3] == "static", dhcp: f[3] == "dhcp"})
		case len(f) >= 3 && f[0] == "hwaddress" && len(out) > 0:
			out[len(out)-1].mac = true
		}
	}
	return out
}
