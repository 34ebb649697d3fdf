package readiness

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// Status of a best-practice check.
type Status string

// The statuses.
const (
	Met        Status = "met"
	NotMet     Status = "notMet"
	NotChecked Status = "notChecked" // there is nothing to check yet, or nobody knows
)

// Practice is a best-practice rule and how the estate stands to it.
type Practice struct {
	Rule    string   `json:"rule"`
	Title   string   `json:"title"`
	Status  Status   `json:"status"`
	Detail  string   `json:"detail"`
	Objects []string `json:"objects,omitempty"` // that do not meet it, by name
	Remedy  string   `json:"remedy,omitempty"`
}

// Host is an agent's host as best practices see it.
type Host struct {
	Name        string
	Roles       []dr.AgentRole
	Connected   bool
	CertExpires time.Time // zero = not known
	Limited     bool      // its uploads have a bandwidth rule
}

// Item is a protected VM as best practices see it.
type Item struct {
	Name     string
	VM       dr.VM
	Policy   dr.Policy
	Initial  bool // initial replication has been completed
	Paused   bool
	Failover dr.Failover
	Test     dr.TestFailover
	LastTest time.Time
	Network  string // chosen for failover
	StaticIP bool   // a static address is set for the recovery VM
	Limited  bool   // its policy has a bandwidth rule
}

// Estate is what the checks look at.
type Estate struct {
	Hosts []Host
	Items []Item
	// Mapped: the site's networks have a mapping to the recovery site.
	Mapped bool
}

// testEvery is how often a drill should be run.
const testEvery = 31 * 24 * time.Hour

// Practices applies Hyper-V Replica's best-practice rules to an estate. The
// rules that Holdfast meets by its construction are listed too, with why.
func Practices(e Estate, now time.Time) []Practice {
	c := checker{e: e, now: now}
	c.hosts()
	c.guests()
	c.items()
	c.construction()
	return c.out
}

type checker struct {
	e   Estate
	now time.Time
	out []Practice
}

// judge adds a rule: objects that do not meet it, out of those it was applied to.
func (c *checker) judge(rule, title string, applied int, bad []string, met, notMet, remedy string) {
	p := Practice{Rule: rule, Title: title, Status: Met, Detail: met}
	switch {
	case len(bad) > 0:
		p.Status, p.Detail, p.Objects, p.Remedy = NotMet, fmt.Sprintf(notMet, len(bad), applied), bad, remedy
	case applied == 0:
		p.Status, p.Detail = NotChecked, "There is nothing that this applies to yet."
	}
	c.out = append(c.out, p)
}

func (c *checker) hosts() {
	recovery, sources, dated := 0, 0, 0
	var away, certs, unlimited []string
	for _, h := range c.e.Hosts {
		if slices.Contains(h.Roles, dr.RoleRecovery) && h.Connected {
			recovery++
		}
		if !h.Connected {
			away = append(away, h.Name)
		}
		if !h.CertExpires.IsZero() {
			dated++
			if h.CertExpires.Sub(c.now) < 7*24*time.Hour {
				certs = append(certs, h.Name)
			}
		}
		if slices.Contains(h.Roles, dr.RoleSource) {
			sources++
			if !h.Limited {
				unlimited = append(unlimited, h.Name)
			}
		}
	}
	p := Practice{Rule: "recovery-host", Title: "A recovery host accepts replicas", Status: Met, Detail: fmt.Sprintf("%d recovery hosts are connected.", recovery)}
	if recovery == 0 {
		p.Status, p.Detail, p.Remedy = NotMet, "No recovery host is connected: there is nowhere to fail over to.", "Register a host of the recovery site with 'holdfast agent register --role recovery'."
	}
	c.out = append(c.out, p)
	c.judge("agents-everywhere", "Every host, and every node of a cluster, has a connected agent", len(c.e.Hosts), away,
		"All registered hosts are connected.", "%d of %d hosts are not connected; a VM that moves there is not replicated.", "Start the agent on these hosts; 'holdfast agent doctor' says what keeps it away.")
	c.judge("certificates", "Every host has a valid certificate", dated, certs,
		"All agents have certificates that are good for a week at least.", "The certificates of %d of %d hosts end within a week; agents renew them when they reach the vault.", "Check that the agents can reach the vault.")
	if len(unlimited) > 0 && slices.ContainsFunc(c.e.Items, func(i Item) bool { return i.Limited }) {
		unlimited = nil // by policy instead
	}
	c.judge("throttle", "Replication has a bandwidth limit", sources, unlimited,
		"Uploads are limited per host or by policy.", "%d of %d source hosts send as fast as they can.", "Give 'holdfast agent run' --bandwidth or --bandwidth-hours, or set bandwidth rules in the policy.")
}

func (c *checker) guests() {
	var vss, tools, vhd, paging []string
	apps, static, disks := 0, 0, 0
	for _, i := range c.e.Items {
		if i.Policy.AppFrequency > 0 {
			apps++
			if i.VM.Facts.AppConsistent != "" {
				vss = append(vss, i.Name)
			}
		}
		if i.StaticIP {
			static++
			if g := i.VM.Facts.GuestTools; g != "" && g != "ok" {
				tools = append(tools, i.Name)
			}
		}
		for _, d := range i.VM.Disks {
			disks++
			if strings.EqualFold(d.Format, "vhd") {
				vhd = append(vhd, i.Name+"/"+d.ID)
			}
			if l := strings.ToLower(d.Path); strings.Contains(l, "pagefile") || strings.Contains(l, "paging") || strings.Contains(l, "swap") {
				paging = append(paging, i.Name+"/"+d.ID)
			}
		}
	}
	c.judge("vss", "Guests can make application-consistent points where the policy asks for them", apps, vss,
		"All guests can.", "%d of %d guests can't; their points are crash-consistent.", "Repair the guests' snapshot service, or set the policy's application-consistent frequency to 0.")
	c.judge("integration-services", "Guests have integration services before an address is set for failover", static, tools,
		"They have.", "%d of %d guests with a static address lack working integration services or guest agent; it can't be set.", "Install or start them in the guests.")
	c.judge("vhdx", "Disks with history are VHDX or qcow2", disks, vhd, "They are.", "%d of %d disks are VHDs.", "Convert them with Convert-VHD.")
	c.judge("paging-disks", "Disks that hold only paging files are excluded", disks, paging,
		"No disk looks like one by its name.", "%d of %d replicated disks look like paging disks by their names.", "Exclude them when enabling protection; the recovery VM gets an empty disk instead.")
}

func (c *checker) items() {
	var paused, untested, stale, window, open, tests, nets []string
	done := 0
	for _, i := range c.e.Items {
		if i.Paused {
			paused = append(paused, i.Name)
		}
		if i.Initial {
			done++
			switch {
			case i.LastTest.IsZero():
				untested = append(untested, i.Name)
			case c.now.Sub(i.LastTest) > testEvery:
				stale = append(stale, i.Name)
			}
		}
		if i.Policy.ResyncAuto == dr.ResyncNow || i.Policy.ResyncAuto != dr.ResyncManual && i.Policy.ResyncWindow.IsZero() {
			window = append(window, i.Name)
		}
		if i.Failover != dr.FailoverNone && i.Failover != dr.FailoverCommitted {
			open = append(open, i.Name)
		}
		if i.Test != dr.TestNone {
			tests = append(tests, i.Name)
		}
		if i.Network == "" && !c.e.Mapped {
			nets = append(nets, i.Name)
		}
	}
	n := len(c.e.Items)
	c.judge("paused", "No VM's replication is paused", n, paused, "None is.", "Replication of %d of %d VMs is paused: their recovery points grow old.", "Resume with 'holdfast item resume'.")
	c.judge("tested", "Every VM was tested after its initial replication", done, untested, "All were.", "%d of %d VMs have never been tested.", "Run 'holdfast item test-failover'.")
	c.judge("tested-monthly", "Every VM is tested once a month", done-len(untested), stale, "All were.", "The last test of %d of %d VMs is over a month old.", "Run 'holdfast item test-failover'.")
	c.judge("resync-window", "Resynchronization is kept off the peak hours", n, window, "All policies have a window.", "%d of %d VMs may be resynchronized at any hour.", "Set a resynchronization window in the policy (18:30–06:00 is the default).")
	c.judge("failover-network", "The network after failover is chosen", n, nets, "It is, by mapping or per VM.", "%d of %d VMs come up without connection.", "Create a network mapping, or set the VM's network.")
	c.judge("finish-failovers", "Failovers are committed or cancelled", n, open, "None is open.", "%d of %d VMs have a failover that is neither committed nor cancelled.", "Commit or cancel it.")
	c.judge("clean-tests", "Test failovers are cleaned up", n, tests, "None is left.", "%d of %d VMs have a test failover that was not cleaned up.", "Run 'holdfast item test-failover-cleanup'.")
}

// construction lists the rules that can't be broken here.
func (c *checker) construction() {
	for _, r := range [...][3]string{
		{"authorized-primaries", "Only authorized hosts replicate", "An agent registers with a key that expires after five days, then has a certificate of its own, which can be revoked."},
		{"trust-groups", "Primary hosts can't reach each other's replicas", "An agent can only create new objects of its own VMs: it can neither read, change nor list what is stored."},
		{"certificate-authentication", "Hosts authenticate by certificate", "All do; there is no other way."},
		{"compression", "Replication is compressed", "All that is shipped is compressed and sealed on the source host."},
	} {
		c.out = append(c.out, Practice{Rule: r[0], Title: r[1], Status: Met, Detail: r[2]})
	}
}
