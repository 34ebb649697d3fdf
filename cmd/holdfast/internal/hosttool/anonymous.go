package hosttool

import (
	"encoding/xml"
	"fmt"
	"html"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/cim/wsman"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// anonymous replaces what names things of the host's owner by made-up words,
// the same everywhere, so that what belongs together still does and the recording can be replayed.
func anonymous(list []wsman.Exchange, vms []dr.VM, info hypervisor.HostInfo) []wsman.Exchange {
	m := &mask{words: map[string]string{}, count: map[string]int{}}
	m.learn("HOST", info.Name)
	for _, vm := range vms {
		m.learn("vm", vm.Name)
		for _, n := range vm.NICs {
			m.learn("switch", n.Network)
		}
	}
	// First everything is looked at, so that a name is also known where it comes before the property that tells it.
	for _, x := range list {
		m.document(x.Request)
		m.document(x.Response)
	}
	m.prepare()
	out := make([]wsman.Exchange, len(list))
	for i, x := range list {
		out[i] = wsman.Exchange{Op: m.plain("", x.Op), Request: m.document(x.Request), Status: x.Status, Response: m.document(x.Response)}
	}
	return out
}

// mask knows what is private and by what it is replaced.
type mask struct {
	words map[string]string // private text in lower case → made-up text
	count map[string]int    // made-up texts by kind
	long  *regexp.Regexp    // finds private texts among others; nil while they are gathered
}

// learn gives a private text its replacement, once.
func (m *mask) learn(kind, text string) string {
	key := strings.ToLower(strings.TrimSpace(text))
	if key == "" || guid.MatchString(key) || strings.HasPrefix(key, "hf-") { // ours say nothing
		return text
	}
	if m.words[key] == "" {
		m.words[key] = m.fresh(kind)
		if _, domain, ok := strings.Cut(key, "."); ok && fqdn.MatchString(key) {
			m.learn("domain", domain)
		}
	}
	return m.words[key]
}

func (m *mask) fresh(kind string) string {
	m.count[kind]++
	return fmt.Sprintf("%s-%d", kind, m.count[kind])
}

// prepare ends the gathering.
func (m *mask) prepare() {
	var all []string
	for w := range m.words {
		if len(w) >= 3 && strings.Trim(w, "0123456789.") != "" && !slices.Contains(protocolWords, w) {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) }) // the longest first
	for i, w := range all {
		all[i] = regexp.QuoteMeta(w)
	}
	m.long = regexp.MustCompile(`(?i)` + strings.Join(append(all, `\x00`), "|"))
}

var (
	guid   = regexp.MustCompile(`^(?i)(microsoft:)?\{?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}?`)
	fqdn   = regexp.MustCompile(`^[\w-]+(\.[\w-]+)*\.[A-Za-z][\w-]+$`)
	ipv4   = regexp.MustCompile(`\b\d{1,3}(?:\.\d{1,3}){3}\b`)
	ipv6   = regexp.MustCompile(`[0-9A-Fa-f]*(?::[0-9A-Fa-f]*){2,}`)
	mac    = regexp.MustCompile(`^(?:[0-9A-Fa-f]{2}[-:]?){5}[0-9A-Fa-f]{2}$`)
	path   = regexp.MustCompile(`^(?:[A-Za-z]:\\|\\\\[^\\]+\\)`)
	object = regexp.MustCompile(`^\\\\[^\\]+\\(?i)root\\`)
	query  = regexp.MustCompile(`(?i)^\s*(select|associators|references)\s`)
	quote  = regexp.MustCompile(`'[^']*'|"[^"]*"`)
	attr   = regexp.MustCompile(`\sN(?:AME|ame)="([^"]*)"`)
	item   = regexp.MustCompile(`(?s)NAME="Name"[^>]*>\s*<VALUE>([^<]*)</VALUE>`)
)

// protocolWords may be names, too; as parts of longer texts they are left alone.
var protocolWords = []string{"microsoft", "true", "false", "root", "select", "from", "where", "null", "anonymous", "windows", "linux", "server"}

// named are the properties whose values are names that people gave, or say who they are.
var named = map[string]string{"elementname": "name", "csname": "HOST", "dnshostname": "HOST", "systemname": "HOST", "domain": "domain", "workgroup": "domain", "username": "user",
	"primaryownername": "user", "registereduser": "user", "startname": "user", "organization": "organization", "serialnumber": "serial", "chassisserialnumber": "serial",
	"baseboardserialnumber": "serial", "biosserialnumber": "serial", "chassisassettag": "serial", "label": "label", "friendlyname": "name", "volumename": "label",
	"testreplicaswitchname": "switch", "lastknownswitchname": "switch", "primaryhostsystem": "HOST", "recoveryhostsystem": "HOST",
	"primaryconnectionpoint": "HOST", "recoveryconnectionpoint": "HOST", "owner": "user", "owninguser": "user"}

// told are the facts of a guest (KVP) that are no secret.
var told = []string{"OSName", "OSVersion", "OSMajorVersion", "OSMinorVersion", "OSBuildNumber", "OSPlatformId", "OSVendor", "OSDistributionName", "OSDistributionData", "OSKernelVersion",
	"OSEditionId", "ProcessorArchitecture", "CSDVersion", "ServicePackMajor", "ServicePackMinor", "IntegrationServicesVersion", "ProductType", "SuiteMask"}

// document masks the texts of an XML document and leaves its tags as they are.
func (m *mask) document(s string) string {
	var b strings.Builder
	property, hidden := "", false
	if x := item.FindStringSubmatch(s); x != nil && strings.Contains(s, "Msvm_KvpExchangeDataItem") && strings.Count(s, "<INSTANCE") == 1 {
		hidden = !slices.Contains(told, x[1])
	}
	for s != "" {
		text, rest, tagged := strings.Cut(s, "<")
		if text != "" {
			b.WriteString(m.segment(property, hidden, text))
		}
		if !tagged {
			break
		}
		if raw, ok := strings.CutPrefix(rest, "![CDATA["); ok { // a text that is not escaped
			raw, s, _ = strings.Cut(raw, "]]>")
			b.WriteString(m.segment(property, hidden, html.EscapeString(raw)))
			continue
		}
		if comment, ok := strings.CutPrefix(rest, "!--"); ok { // left out
			_, s, _ = strings.Cut(comment, "-->")
			continue
		}
		tag, after, closed := strings.Cut(rest, ">")
		if !closed {
			break // no document, or one that was cut off: the rest is left out
		}
		b.WriteString("<" + tag + ">")
		s = after
		words := strings.Fields(tag)
		if len(words) == 0 || strings.HasPrefix(tag, "/") {
			continue
		}
		name := strings.TrimSuffix(words[0], "/")
		if _, local, ok := strings.Cut(name, ":"); ok {
			name = local
		}
		switch {
		case name == "VALUE" || name == "VALUE.ARRAY": // of the property that it is in
		case strings.HasPrefix(name, "PROPERTY") || name == "Selector":
			if x := attr.FindStringSubmatch(tag); x != nil {
				property = x[1]
			}
		default:
			property = name
		}
	}
	return b.String()
}

// segment masks the text of an element, which may hold a document in itself.
func (m *mask) segment(property string, hidden bool, escaped string) string {
	text := html.UnescapeString(escaped)
	var masked string
	switch {
	case strings.TrimSpace(text) == "":
		return escaped
	case strings.Contains(text, "<INSTANCE"):
		masked = m.document(text)
	case hidden && property == "Data":
		masked = m.learn("fact", text)
	default:
		masked = m.plain(property, text)
	}
	if masked == text {
		return escaped
	}
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(masked)) // a strings.Builder doesn't fail
	return b.String()
}

// plain masks a text.
func (m *mask) plain(property, text string) string {
	p := strings.ToLower(property)
	if kind := named[p]; kind != "" {
		if kind == "name" && strings.HasPrefix(text, "Microsoft:") {
			return text
		}
		return m.learn(kind, text)
	}
	switch {
	case p == "notes" || strings.Contains(p, "password") || strings.Contains(p, "secret") || strings.Contains(p, "thumbprint") || strings.Contains(p, "certificate") || p == "keyprotector":
		return "(removed)"
	case strings.HasPrefix(text, "http"):
		if strings.Contains(text, "://schemas.") || strings.Contains(text, "://www.w3.org") {
			return text
		}
		return "http://host.example.invalid:5985/wsman"
	case strings.HasPrefix(text, "Microsoft:Hyper-V:") || strings.Contains(p, "version") || guid.MatchString(text) && len(text) <= 38:
		return text
	case strings.Contains(p, "address") && mac.MatchString(text):
		if m.words[strings.ToLower(text)] == "" {
			m.count["mac"]++
			m.words[strings.ToLower(text)] = fmt.Sprintf("00155D%06X", m.count["mac"])
		}
		return m.words[strings.ToLower(text)]
	case object.MatchString(text): // \\HOST\root\namespace:Class.Key="value"
		host, rest, _ := strings.Cut(text[2:], `\`)
		return `\\` + m.parts(host) + `\` + m.quoted(rest)
	case query.MatchString(text): // nothing but what is quoted is a value
		return m.quoted(text)
	}
	if path.MatchString(text) {
		return m.path(text)
	}
	return m.parts(text)
}

// quoted masks what is between quotes.
func (m *mask) quoted(text string) string {
	return quote.ReplaceAllStringFunc(text, func(q string) string { return q[:1] + m.parts(q[1:len(q)-1]) + q[len(q)-1:] })
}

// path masks a path of the host, directory by directory.
func (m *mask) path(text string) string {
	parts := strings.Split(text, `\`)
	for i, part := range parts {
		if part == "" || strings.HasSuffix(part, ":") || strings.EqualFold(part, "ClusterStorage") || guid.MatchString(part) {
			continue
		}
		stem, ext := part, ""
		if x := strings.LastIndexByte(part, '.'); x > 0 && len(part)-x <= 6 {
			stem, ext = part[:x], part[x:]
		}
		parts[i] = m.learn("dir", stem) + ext
	}
	return strings.Join(parts, `\`)
}

// parts masks what is private in the middle of a text: whole words only.
func (m *mask) parts(text string) string {
	text = ipv4.ReplaceAllStringFunc(text, m.address)
	text = ipv6.ReplaceAllStringFunc(text, m.address)
	if m.long == nil {
		return text
	}
	var b strings.Builder
	last := 0
	for _, at := range m.long.FindAllStringIndex(text, -1) {
		if wordAt(text, at[0]-1) || wordAt(text, at[1]) {
			continue
		}
		b.WriteString(text[last:at[0]] + m.words[strings.ToLower(text[at[0]:at[1]])])
		last = at[1]
	}
	return b.String() + text[last:]
}

func wordAt(s string, i int) bool {
	if i < 0 || i >= len(s) {
		return false
	}
	c := s[i]
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// address masks an IP address; masks, and those that mean nothing, stay.
func (m *mask) address(text string) string {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.IsUnspecified() || strings.HasPrefix(text, "255.") || text == "::1" {
		return text
	}
	key := ip.String()
	if m.words[key] == "" {
		m.count["ip"]++
		if ip.Is4() {
			m.words[key] = fmt.Sprintf("192.0.2.%d", 1+m.count["ip"]%254)
		} else {
			m.words[key] = fmt.Sprintf("2001:db8::%x", m.count["ip"])
		}
	}
	return m.words[key]
}
