package guestcheck

import (
	"slices"
	"strings"

	"holdfast/internal/guestcheck/netconf"
	"holdfast/internal/readiness"
)

// network says how the guest gets its addresses. At the target adapters have
// new MAC addresses; in Azure addresses come by DHCP and the first adapter is eth0.
func (c *checker) network() {
	var all []netconf.Iface
	files := 0
	read := func(dir, suffix string, parse func(file, s string) []netconf.Iface) {
		for _, n := range c.list(CheckNetwork, c.root, dir) {
			if strings.HasSuffix(n, suffix) || suffix == "ifcfg-" && strings.HasPrefix(n, suffix) && n != "ifcfg-lo" {
				if s, ok := c.text(CheckNetwork, c.root, dir+"/"+n); ok {
					files++
					all = append(all, parse(dir+"/"+n, s)...)
				}
			}
		}
	}
	read("/etc/netplan", ".yaml", netconf.Netplan)
	read("/etc/sysconfig/network-scripts", "ifcfg-", netconf.Ifcfg)
	read("/etc/sysconfig/network", "ifcfg-", netconf.Ifcfg)
	read("/etc/NetworkManager/system-connections", ".nmconnection", netconf.Keyfile)
	read("/etc/systemd/network", ".network", netconf.Networkd)
	read("/etc/network/interfaces.d", "", netconf.Interfaces)
	if s, ok := c.text(CheckNetwork, c.root, "/etc/network/interfaces"); ok {
		files++
		all = append(all, netconf.Interfaces("/etc/network/interfaces", s)...)
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
		object := c.root.Name + ":" + i.File
		if i.Static && c.in.Target == "azure" {
			c.found(CheckNetwork, readiness.Warns, object, "Let the guest use DHCP and set the address at the recovery VM's adapter.", "%s has a static address in the guest; Azure hands addresses out by DHCP and passes no other", i.Label())
		} else if i.Static {
			c.found(CheckNetwork, readiness.Notes, object, "", "%s has a static address in the guest; it fits only a network with the same range", i.Label())
		}
		if i.MAC {
			c.found(CheckNetwork, readiness.Warns, object, "Match the interface by name or driver instead.", "%s is bound to the source's MAC address, and the adapter may get another", i.Label())
		}
		if c.in.Target == "azure" && !i.MAC && i.Name != "" && !hasAny(i.Name, "*", "eth", "en*") && hasAny(i.Name, "ens", "eno", "enp", "enx") {
			c.found(CheckNetwork, readiness.Warns, object, "Match the interface by driver, or boot with net.ifnames=0 and name it eth0.", "the configuration is for %s; in Azure the first adapter is called eth0", i.Name)
		}
	}
	if !slices.ContainsFunc(all, func(i netconf.Iface) bool { return i.DHCP || i.Static }) {
		c.found(CheckNetwork, readiness.Warns, c.root.Name, "Configure DHCP in the guest.", "no interface is configured with an address")
	}
}
