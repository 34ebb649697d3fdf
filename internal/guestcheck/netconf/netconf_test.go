package netconf

import "testing"

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		parse func(file, s string) []Iface
		text  string
		want  Iface
	}{
		{Netplan, "network:\n  ethernets:\n    ens3:\n      dhcp4: true\n", Iface{Name: "ens3", DHCP: true}},
		{Netplan, "network:\n  ethernets:\n    ens3:\n      addresses: [10.0.0.2/24]\n", Iface{Name: "ens3", Static: true}},
		{Ifcfg, "DEVICE=eth1\nBOOTPROTO=\"dhcp\"\nHWADDR=52:54:00:00:00:01\n", Iface{Name: "eth1", DHCP: true, MAC: true}},
		{Keyfile, "[connection]\ninterface-name=eth2\n[ipv4]\nmethod=manual\n", Iface{Name: "eth2", Static: true}},
		{Networkd, "[Match]\nName=en*\n[Network]\nDHCP=ipv4\n", Iface{Name: "en*", DHCP: true}},
		{Interfaces, "auto lo\niface lo inet loopback\niface eth0 inet static\n hwaddress 52:54:00:00:00:01\n", Iface{Name: "eth0", Static: true, MAC: true}},
	} {
		c.want.File = "f"
		if got := c.parse("f", c.text); len(got) != 1 || got[0] != c.want {
			t.Errorf("%q: %+v", c.text, got)
		}
	}
	if i := (Iface{File: "f", Static: true, MAC: true}); i.Label() != "the interface" || i.String() != ": static address, bound to a MAC address (f)" {
		t.Errorf("%s, %s", i.Label(), i)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("network:\n  ethernets:\n    ens3:\n      addresses: [10.0.0.2/24]\n")
	f.Add("[Match]\nName=en*\n")
	f.Add("hwaddress x\niface eth0 inet static\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range []func(file, s string) []Iface{Netplan, Ifcfg, Keyfile, Networkd, Interfaces} {
			p("f", s)
		}
	})
}
