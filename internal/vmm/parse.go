package vmm

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"holdfast/internal/dr"
)

// Parse reads the output of collect.ps1. Text before and after the JSON object (a
// profile's greetings, warnings of a module) is skipped. It refuses other versions
// than Version and objects that are cut off; unknown fields are ignored. What the
// script itself reports as its failure is returned as an error in its words.
func Parse(out []byte) (Snapshot, error) {
	const op = "vmm.Parse"
	obj, err := findObject(decodeText(out))
	if err != nil {
		return Snapshot{}, invalid(op, "%w: %s", err, excerpt(out))
	}
	var w wireSnapshot
	if err := json.Unmarshal(obj, &w); err != nil {
		return Snapshot{}, invalid(op, "the VMM script's output is not as expected: %w", err)
	}
	if w.Version != Version {
		return Snapshot{}, dr.New(dr.KindUnsupported, dr.CodeVMMOutput, op, "the VMM script wrote version %d, this program reads version %d", int(w.Version), Version)
	}
	if w.Error != nil {
		return Snapshot{}, scriptError(*w.Error)
	}
	return w.snapshot(), nil
}

func invalid(op, format string, args ...any) error {
	return dr.New(dr.KindCorrupt, dr.CodeVMMOutput, op, format, args...)
}

// scriptError turns what the script caught into an error that says what to do.
func scriptError(e wireError) error {
	const op = "vmm.Snapshot"
	msg := cmp.Or(string(e.Message), "no message")
	switch string(e.Stage) {
	case "module":
		return dr.New(dr.KindPrecondition, dr.CodeVMMModuleMissing, op, "the PowerShell module virtualmachinemanager can't be loaded: %s", msg)
	case "connect":
		return dr.New(dr.KindUnavailable, dr.CodeVMMUnreachable, op, "the VMM server can't be reached: %s", msg)
	}
	return dr.New(dr.KindUnavailable, dr.CodeVMMUnreachable, op, "VMM did not list its %s: %s", cmp.Or(string(e.Stage), "objects"), msg)
}

// excerpt is the printable begin of an output, for an error.
func excerpt(b []byte) string {
	const most = 200
	b = bytes.TrimSpace(decodeText(b[:min(len(b), 4*most)]))
	if len(b) == 0 {
		return "it wrote nothing"
	}
	return "it begins " + strconv.Quote(strings.ToValidUTF8(string(b[:min(len(b), most)]), "?"))
}

// decodeText takes a byte order mark off; UTF-16 (little endian), which Windows
// PowerShell writes to some pipes, becomes UTF-8.
func decodeText(b []byte) []byte {
	if rest, ok := bytes.CutPrefix(b, []byte("\xff\xfe")); ok {
		u := make([]uint16, len(rest)/2)
		for i := range u {
			u[i] = binary.LittleEndian.Uint16(rest[2*i:])
		}
		return []byte(string(utf16.Decode(u)))
	}
	return bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
}

// findObject finds the first JSON object at the begin of a line that has a version.
func findObject(b []byte) ([]byte, error) {
	const tries = 64 // a warning may begin with a brace too, but not hundreds of them
	err := errors.New("the VMM script wrote no JSON")
	for at, n := 0, 0; at < len(b) && n < tries; {
		line := bytes.TrimLeft(b[at:], " \t\r\n\ufeff")
		at = len(b) - len(line)
		if len(line) > 0 && line[0] == '{' {
			n++
			var raw json.RawMessage
			var head struct {
				Version json.RawMessage `json:"version"`
			}
			switch e := json.NewDecoder(bytes.NewReader(line)).Decode(&raw); {
			case e == nil && json.Unmarshal(raw, &head) == nil && head.Version != nil:
				return raw, nil
			case e != nil && strings.Contains(e.Error(), "unexpected EOF"):
				err = errors.New("the VMM script's JSON is cut off")
			}
		}
		end := bytes.IndexByte(line, '\n')
		if end < 0 {
			break
		}
		at += end + 1
	}
	return nil, err
}

// The wire forms accept what ConvertTo-Json makes of VMM's objects: a list of one
// element as that element, an empty one as null, a list that was wrapped with its
// count, numbers and booleans as texts, dates in two forms.

type list[T any] []T

func (l *list[T]) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	*l = nil
	switch {
	case string(b) == "null":
		return nil
	case b[0] == '[':
		var all []*T // elements may be null
		if err := json.Unmarshal(b, &all); err != nil {
			return err
		}
		for _, x := range all {
			if x != nil {
				*l = append(*l, *x)
			}
		}
		return nil
	case b[0] == '{':
		var wrapped map[string]json.RawMessage
		if err := json.Unmarshal(b, &wrapped); err != nil {
			return err
		}
		value, ok := wrapped["value"]
		if _, counted := wrapped["Count"]; ok && counted && len(wrapped) == 2 {
			var nested []T
			if err := json.Unmarshal(value, &nested); err != nil {
				return err
			}
			*l = nested
			return nil
		}
		if len(wrapped) == 0 { // what an empty list becomes
			return nil
		}
	}
	var one T
	if err := json.Unmarshal(b, &one); err != nil {
		return err
	}
	*l = list[T]{one}
	return nil
}

type text string

func (t *text) UnmarshalJSON(b []byte) error {
	*t = ""
	var s string
	switch {
	case string(b) == "null":
		return nil
	case b[0] == '{' || b[0] == '[':
		return fmt.Errorf("a text was expected, not %.20s", b)
	case b[0] != '"': // a number or a boolean
		*t = text(b)
		return nil
	}
	err := json.Unmarshal(b, &s)
	*t = text(strings.TrimSpace(s))
	return err
}

// id is a GUID: lower case, without braces.
type id string

func (i *id) UnmarshalJSON(b []byte) error {
	var t text
	err := t.UnmarshalJSON(b)
	*i = id(strings.ToLower(strings.Trim(string(t), "{}")))
	if *i == "00000000-0000-0000-0000-000000000000" {
		*i = ""
	}
	return err
}

type number int

func (n *number) UnmarshalJSON(b []byte) error {
	var t text
	if err := t.UnmarshalJSON(b); err != nil {
		return err
	}
	if t == "" {
		*n = 0
		return nil
	}
	v, err := strconv.ParseInt(string(t), 10, 32)
	if err != nil {
		return fmt.Errorf("a number was expected, not %.20q", string(t))
	}
	*n = number(v)
	return nil
}

type flag bool

func (f *flag) UnmarshalJSON(b []byte) error {
	var t text
	if err := t.UnmarshalJSON(b); err != nil {
		return err
	}
	switch strings.ToLower(string(t)) {
	case "", "0", "false":
		*f = false
	case "1", "true":
		*f = true
	default:
		return fmt.Errorf("a boolean was expected, not %.20q", string(t))
	}
	return nil
}

// stamp is a time: RFC 3339, or /Date(milliseconds)/ as Windows PowerShell writes
// it. One that can't be read is no time: nothing depends on it.
type stamp struct{ time.Time }

func (s *stamp) UnmarshalJSON(b []byte) error {
	s.Time = time.Time{}
	var t text
	if t.UnmarshalJSON(b) != nil {
		return nil
	}
	v := string(t)
	if ms, ok := strings.CutPrefix(v, "/Date("); ok {
		ms, _, _ = strings.Cut(ms, ")")
		if i := strings.LastIndexAny(ms, "+-"); i > 0 { // an offset says only how it was shown
			ms = ms[:i]
		}
		if n, err := strconv.ParseInt(ms, 10, 64); err == nil && n > -1<<46 && n < 1<<48 {
			s.Time = time.UnixMilli(n).UTC()
		}
		return nil
	}
	if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
		s.Time = at.UTC()
	}
	return nil
}

type wireError struct {
	Stage   text `json:"stage"`
	Message text `json:"message"`
}

type wireSnapshot struct {
	Version number     `json:"version"`
	Error   *wireError `json:"error"`
	Taken   stamp      `json:"taken"`
	Server  struct {
		Name    text `json:"name"`
		Product text `json:"product"`
	} `json:"server"`
	Clouds                 list[wireCloud]   `json:"clouds"`
	Hosts                  list[wireHost]    `json:"hosts"`
	LogicalNetworks        list[wireLogical] `json:"logicalNetworks"`
	VMNetworks             list[wireNetwork] `json:"vmNetworks"`
	StorageClassifications list[wireNamed]   `json:"storageClassifications"`
	VMs                    list[wireVM]      `json:"vms"`
	Warnings               list[text]        `json:"warnings"`
}

type wireNamed struct {
	ID   id   `json:"id"`
	Name text `json:"name"`
}

type wireCloud struct {
	wireNamed
	HostGroups list[text] `json:"hostGroups"`
}

type wireHost struct {
	wireNamed
	Cluster   text             `json:"cluster"`
	OS        text             `json:"os"`
	HostGroup text             `json:"hostGroup"`
	Switches  list[wireSwitch] `json:"switches"`
}

type wireSwitch struct {
	Name            text     `json:"name"`
	LogicalNetworks list[id] `json:"logicalNetworks"`
}

type wireLogical struct {
	wireNamed
	Description text                 `json:"description"`
	Virtualized flag                 `json:"virtualized"`
	Isolated    flag                 `json:"isolated"`
	Definitions list[wireDefinition] `json:"definitions"`
}

type wireDefinition struct {
	wireNamed
	Subnets list[struct {
		Subnet text   `json:"subnet"`
		VLAN   number `json:"vlan"`
	}] `json:"subnets"`
	HostGroups list[text] `json:"hostGroups"`
}

type wireNetwork struct {
	wireNamed
	LogicalNetwork id               `json:"logicalNetwork"`
	Isolation      text             `json:"isolation"`
	Subnets        list[wireSubnet] `json:"subnets"`
}

type wireSubnet struct {
	wireNamed
	CIDRs list[text] `json:"cidrs"`
	VLAN  number     `json:"vlan"`
}

type wireVM struct {
	ID       id            `json:"id"`
	VMMID    id            `json:"vmmId"`
	Name     text          `json:"name"`
	Cloud    id            `json:"cloud"`
	Host     text          `json:"host"`
	Adapters list[wireNIC] `json:"adapters"`
}

type wireNIC struct {
	ID        id     `json:"id"`
	MAC       text   `json:"mac"`
	VMNetwork id     `json:"vmNetwork"`
	VMSubnet  text   `json:"vmSubnet"`
	VLAN      number `json:"vlan"`
}

func strs[T ~string](in []T) []string {
	var out []string
	for _, s := range in {
		if s != "" {
			out = append(out, string(s))
		}
	}
	slices.Sort(out)
	return out
}

// normalMAC is VMM's and Hyper-V's address in the form with colons; a dynamic
// address that has not been given yet is all zero.
func normalMAC(s string) string {
	hex := strings.ToUpper(strings.NewReplacer(":", "", "-", "", ".", "").Replace(s))
	if len(hex) != 12 || strings.Trim(hex, "0123456789ABCDEF") != "" || hex == "000000000000" {
		return ""
	}
	parts := make([]string, 6)
	for i := range parts {
		parts[i] = hex[2*i : 2*i+2]
	}
	return strings.Join(parts, ":")
}

// NormalMAC brings a hardware address, however it is written, to the form with
// colons and upper case; "" if it is none.
func NormalMAC(s string) string { return normalMAC(s) }

// snapshot makes the domain's form. Objects without an id are left out: nothing
// could refer to them.
func (w wireSnapshot) snapshot() Snapshot {
	s := Snapshot{Version: int(w.Version), Server: Server{string(w.Server.Name), string(w.Server.Product)}, Taken: w.Taken.Time, Warnings: strs(w.Warnings)}
	for _, c := range w.Clouds {
		s.Clouds = append(s.Clouds, Cloud{string(c.ID), string(c.Name), strs(c.HostGroups)})
	}
	s.Clouds = sorted(s.Clouds, func(c Cloud) (string, string) { return c.Name, c.ID })
	for _, n := range w.LogicalNetworks {
		l := LogicalNetwork{ID: string(n.ID), Name: string(n.Name), Description: string(n.Description), Virtualized: bool(n.Virtualized), Isolated: bool(n.Isolated)}
		for _, d := range n.Definitions {
			x := Definition{ID: string(d.ID), Name: string(d.Name), HostGroups: strs(d.HostGroups)}
			for _, v := range d.Subnets {
				x.Subnets = append(x.Subnets, SubnetVLAN{string(v.Subnet), int(v.VLAN)})
			}
			l.Definitions = append(l.Definitions, x)
		}
		s.LogicalNetworks = append(s.LogicalNetworks, l)
	}
	s.LogicalNetworks = sorted(s.LogicalNetworks, func(n LogicalNetwork) (string, string) { return n.Name, n.ID })
	for _, n := range w.VMNetworks {
		x := VMNetwork{ID: string(n.ID), Name: string(n.Name), LogicalNetwork: string(n.LogicalNetwork), Isolation: string(n.Isolation)}
		for _, v := range n.Subnets {
			x.Subnets = append(x.Subnets, Subnet{ID: string(v.ID), Name: string(v.Name), CIDRs: strs(v.CIDRs), VLAN: int(v.VLAN)})
		}
		slices.SortStableFunc(x.Subnets, func(a, b Subnet) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
		s.VMNetworks = append(s.VMNetworks, x)
	}
	s.VMNetworks = sorted(s.VMNetworks, func(n VMNetwork) (string, string) { return n.Name, n.ID })
	for _, c := range w.StorageClassifications {
		s.StorageClassifications = append(s.StorageClassifications, StorageClassification{string(c.ID), string(c.Name)})
	}
	s.StorageClassifications = sorted(s.StorageClassifications, func(c StorageClassification) (string, string) { return c.Name, c.ID })
	for _, h := range w.Hosts {
		x := Host{ID: string(h.ID), Name: string(h.Name), Cluster: string(h.Cluster), OS: string(h.OS), HostGroup: string(h.HostGroup)}
		for _, sw := range h.Switches {
			x.Switches = append(x.Switches, Switch{string(sw.Name), strs(sw.LogicalNetworks)})
		}
		x.Clouds = cloudsOf(s.Clouds, x.HostGroup)
		s.Hosts = append(s.Hosts, x)
	}
	s.Hosts = sorted(s.Hosts, func(h Host) (string, string) { return h.Name, h.ID })
	for _, v := range w.VMs {
		x := VM{ID: string(v.ID), VMMID: string(v.VMMID), Name: string(v.Name), Cloud: string(v.Cloud), Host: string(v.Host)}
		for _, n := range v.Adapters {
			x.Adapters = append(x.Adapters, NIC{ID: string(n.ID), MAC: normalMAC(string(n.MAC)), VMNetwork: string(n.VMNetwork), VMSubnet: string(n.VMSubnet), VLAN: int(n.VLAN)})
		}
		s.VMs = append(s.VMs, x)
	}
	s.VMs = sorted(s.VMs, func(v VM) (string, string) { return v.Name, v.ID })
	return s
}

// cloudsOf lists the clouds over a host group: those that name it or one above it.
func cloudsOf(clouds []Cloud, group string) []string {
	var out []string
	for _, c := range clouds {
		if slices.ContainsFunc(c.HostGroups, func(g string) bool {
			return group != "" && (strings.EqualFold(g, group) || len(group) > len(g) && strings.EqualFold(group[:len(g)+1], g+`\`))
		}) {
			out = append(out, c.ID)
		}
	}
	return out
}

// sorted orders by name, then id, and drops what has no id or has the id of
// another element.
func sorted[T any](in []T, key func(T) (name, id string)) []T {
	slices.SortStableFunc(in, func(a, b T) int {
		an, ai := key(a)
		bn, bi := key(b)
		return cmp.Or(cmp.Compare(an, bn), cmp.Compare(ai, bi))
	})
	seen := map[string]bool{"": true}
	return slices.DeleteFunc(in, func(x T) bool {
		_, id := key(x)
		gone := seen[id]
		seen[id] = true
		return gone
	})
}
