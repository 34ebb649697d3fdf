// Package netconf reads how Linux guests configure their network: the few keys
// that tell DHCP, static addresses and ties to a MAC address, of netplan, ifcfg
// files, NetworkManager, systemd-networkd and /etc/network/interfaces.
//
// It promises: any text is read without failing; what is beyond it (anchors and
// flow style of YAML, scripts) is left out.
package netconf

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Iface is what a configuration file says of an interface.
type Iface struct {
	File   string
	Name   string // may be empty
	Static bool
	DHCP   bool
	MAC    bool // bound to a MAC address
}

func (i Iface) String() string {
	how := "no address"
	switch {
	case i.Static:
		how = "static address"
	case i.DHCP:
		how = "DHCP"
	}
	if i.MAC {
		how += ", bound to a MAC address"
	}
	return fmt.Sprintf("%s: %s (%s)", i.Name, how, i.File)
}

// Label is the interface's name, in words if it has none.
func (i Iface) Label() string {
	if i.Name == "" {
		return "the interface"
	}
	return i.Name
}

var yamlKey = regexp.MustCompile(`^(\s*)(?:- )?["']?([A-Za-z0-9_.*-]+)["']?:\s*(.*)$`)

// Netplan reads the few keys that matter, by indentation; anchors and flow
// style are beyond it.
func Netplan(file, s string) []Iface {
	var out []Iface
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
			out = append(out, Iface{File: file, Name: key})
		default:
			i := &out[len(out)-1]
			switch key {
			case "dhcp4", "dhcp6":
				i.DHCP = i.DHCP || hasAny(strings.ToLower(val), "true", "yes", "on")
			case "addresses":
				i.Static = i.Static || at == nameAt+2 || at == nameAt+4 && !strings.Contains(s, "nameservers")
			case "macaddress":
				i.MAC = true
			case "name":
				i.Name = strings.Trim(val, `"' `)
			}
		}
	}
	return out
}

// Ifcfg reads an ifcfg file of Red Hat or SUSE.
func Ifcfg(file, s string) []Iface {
	i := Iface{File: file, Name: ShellValue(s, "DEVICE")}
	if i.Name == "" {
		_, i.Name, _ = strings.Cut(file, "ifcfg-")
	}
	i.DHCP = strings.HasPrefix(strings.ToLower(ShellValue(s, "BOOTPROTO")), "dhcp")
	i.Static = !i.DHCP && (ShellValue(s, "IPADDR") != "" || ShellValue(s, "IPADDR0") != "")
	i.MAC = ShellValue(s, "HWADDR") != ""
	return []Iface{i}
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

// Keyfile reads a connection of NetworkManager.
func Keyfile(file, s string) []Iface {
	i := Iface{File: file}
	sections(s, func(section, key, val string) {
		switch section + "." + key {
		case "connection.interface-name":
			i.Name = val
		case "ipv4.method":
			i.Static, i.DHCP = val == "manual", val == "auto"
		case "ethernet.mac-address", "802-3-ethernet.mac-address":
			i.MAC = true
		}
	})
	return []Iface{i}
}

// Networkd reads a .network file of systemd.
func Networkd(file, s string) []Iface {
	i := Iface{File: file}
	sections(s, func(section, key, val string) {
		switch section + "." + key {
		case "match.name":
			i.Name = val
		case "match.macaddress", "match.permanentmacaddress":
			i.MAC = true
		case "network.address", "address.address":
			i.Static = true
		case "network.dhcp":
			i.DHCP = hasAny(strings.ToLower(val), "yes", "true", "ipv4", "both")
		}
	})
	return []Iface{i}
}

// Interfaces reads /etc/network/interfaces.
func Interfaces(file, s string) []Iface {
	var out []Iface
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 4 && f[0] == "iface" && f[1] != "lo" && f[2] == "inet":
			out = append(out, Iface{File: file, Name: f[1], Static: f[3] == "static", DHCP: f[3] == "dhcp"})
		case len(f) >= 2 && f[0] == "hwaddress" && len(out) > 0:
			out[len(out)-1].MAC = true
		}
	}
	return out
}

func hasAny(s string, subs ...string) bool {
	return slices.ContainsFunc(subs, func(x string) bool { return strings.Contains(s, x) })
}

// ShellValue returns NAME's value of lines NAME=value, without quotes.
func ShellValue(s, name string) string {
	for line := range strings.Lines(s) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}
