package windows

import (
	"fmt"
	"strings"

	"holdfast/internal/readiness"
)

// network says how Windows gets its addresses. They are tied to an adapter: at
// the target there is a new one, which knows nothing of them.
func (i *inspection) network() {
	path := i.service(`Tcpip\Parameters\Interfaces`)
	k, is := i.key(Network, i.system, path)
	if is == absent {
		i.out.Skip(Network, i.in.System.Name+":"+path, "no interfaces are in the registry")
	}
	if is != have {
		return
	}
	all, err := k.Subkeys()
	if i.told(Network, path, err) != have {
		return
	}
	i.out.Ran(Network)
	for _, s := range all {
		object := path + `\` + s.Name()
		dhcp, is := i.number(Network, i.system, object, "EnableDHCP")
		if is != have || dhcp != 0 {
			if is == have {
				i.facts.Network = append(i.facts.Network, s.Name()+": DHCP")
			}
			continue
		}
		v, is := i.value(Network, i.system, object, "IPAddress")
		var static []string
		for _, a := range v.Strings() {
			if a != "0.0.0.0" {
				static = append(static, a)
			}
		}
		if is != have || len(static) == 0 {
			continue
		}
		i.facts.Network = append(i.facts.Network, fmt.Sprintf("%s: static address %s", s.Name(), strings.Join(static, ", ")))
		i.found(Network, readiness.Warns, object, "Let the guest use DHCP, and set the address at the recovery VM's adapter.",
			"the static address %s is tied to the source's adapter: at the target Windows sees a new one, which uses DHCP, and the name servers and the gateway set here are gone", strings.Join(static, ", "))
	}
	i.dhcp()
	i.routes()
}

func (i *inspection) dhcp() {
	n, is := i.number(Network, i.system, i.service("Dhcp"), "Start")
	if is == unknown || is == have && n == startAuto {
		return
	}
	sev := readiness.Notes
	if i.in.Target == "azure" {
		sev = readiness.Warns
	}
	i.found(Network, sev, i.service("Dhcp"), "Set the service DHCP Client to start by itself (sc config Dhcp start= auto).", "the DHCP client is not started by itself: the new adapter at the target gets no address")
}

func (i *inspection) routes() {
	path := i.service(`Tcpip\Parameters\PersistentRoutes`)
	if k, is := i.key(Network, i.system, path); is == have {
		vs, err := k.Values()
		if i.told(Network, path, err); len(vs) > 0 {
			i.found(Network, readiness.Notes, path, "", "there are %d persistent routes, which may not fit the target's network", len(vs))
		}
	}
	if i.software == nil {
		return
	}
	path = `Microsoft\Windows\CurrentVersion\Internet Settings\Connections`
	v, is := i.value(Network, i.software, path, "WinHttpSettings")
	if is == have && len(v.Data) > 8 && v.Data[8]&2 != 0 { // flags: 2 = a proxy is named
		i.found(Network, readiness.Notes, path, "", "a proxy is set for services (netsh winhttp), which may not be reached from the target's network")
	}
}

// agents looks for the programs of platforms.
func (i *inspection) agents() {
	i.out.Ran(Agent)
	azure := unknown
	for _, s := range [][2]string{{"WindowsAzureGuestAgent", "Azure VM agent"}, {"RdAgent", "Azure VM agent"}, {"QEMU-GA", "QEMU guest agent"}} {
		_, is := i.key(Agent, i.system, i.service(s[0]))
		if is == have && (len(i.facts.Agents) == 0 || i.facts.Agents[0] != s[1]) {
			i.facts.Agents = append(i.facts.Agents, s[1])
		}
		if s[1] == "Azure VM agent" {
			azure = max(azure, is)
		}
	}
	if i.in.Target == "azure" && azure == absent {
		i.found(Agent, readiness.Notes, i.set+`\Services`, "Install the Azure VM agent if extensions, password reset or run-command are wanted there.", "the Azure VM agent is not installed; the VM runs without it")
	}
}

const rdpPort = 3389

// remote says whether Remote Desktop lets anybody in.
func (i *inspection) remote() {
	path := i.set + `\Control\Terminal Server`
	deny, is := i.number(Remote, i.system, path, "fDenyTSConnections")
	if is == unknown {
		return
	}
	i.out.Ran(Remote)
	if is == absent || deny != 0 {
		i.found(Remote, readiness.Notes, path, "Allow Remote Desktop at the source, or have another way in.", "Remote Desktop is off")
		return
	}
	port := uint64(rdpPort)
	if n, is := i.number(Remote, i.system, path+`\WinStations\RDP-Tcp`, "PortNumber"); is == have && n != rdpPort {
		port = n
		i.found(Remote, readiness.Notes, path+`\WinStations\RDP-Tcp`, "", "Remote Desktop listens at port %d", n)
	}
	i.firewall(port)
}

func (i *inspection) firewall(port uint64) {
	path := i.service(`SharedAccess\Parameters\FirewallPolicy`)
	on := false
	for _, p := range []string{"StandardProfile", "PublicProfile", "DomainProfile"} {
		n, is := i.number(Remote, i.system, path+`\`+p, "EnableFirewall")
		if is == unknown {
			return
		}
		on = on || is == have && n != 0
	}
	k, is := i.key(Remote, i.system, path+`\FirewallRules`)
	if !on || is == unknown {
		return
	}
	if is == have {
		vs, err := k.Values()
		if i.told(Remote, path, err) != have {
			return
		}
		for _, v := range vs {
			rule := "|" + strings.ToLower(v.Text()) + "|"
			if strings.Contains(rule, "|action=allow|") && strings.Contains(rule, "|active=true|") && strings.Contains(rule, "|dir=in|") && strings.Contains(rule, fmt.Sprintf("|lport=%d|", port)) {
				return
			}
		}
	}
	i.found(Remote, readiness.Notes, path, "Enable the rules of the group Remote Desktop at the source.", "Windows Firewall is on, and no rule of the registry lets Remote Desktop in (port %d); a group policy may", port)
}
