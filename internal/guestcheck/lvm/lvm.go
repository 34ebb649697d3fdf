// Package lvm finds the logical volumes of Linux LVM2 on physical volumes and
// reads those that are linear. It owns the label, the metadata areas and their
// text as LVM2 writes them (lvm2 source, "lib/format_text/layout.h"; the text is
// what vgcfgbackup shows).
//
// It promises: hostile metadata ends in an error, in bounded time and memory;
// a volume that is not linear, or lacks a physical volume, says so.
package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ErrCorrupt says that a label or the metadata can't be used.
var ErrCorrupt = errors.New("LVM metadata is damaged")

// PV is a physical volume with the metadata of its group.
type PV struct {
	UUID  string
	dev   io.ReaderAt
	group node
	name  string // of the group
	seq   int64
}

// LV is a logical volume.
type LV struct {
	Group, Name string
	UUID        string
	Size        int64 // bytes
	Dev         io.ReaderAt
	Err         error // why Dev is nil
}

const (
	maxText     = 8 << 20
	maxDepth    = 8
	maxSegments = 1 << 16
)

// Open reads a physical volume's label and metadata.
func Open(dev io.ReaderAt, size int64) (PV, error) {
	b := make([]byte, 2048)
	if err := read(dev, b, 0); err != nil {
		return PV{}, err
	}
	le := binary.LittleEndian
	for k := range 4 {
		s := b[512*k : 512*k+512]
		if string(s[:8]) != "LABELONE" || string(s[24:32]) != "LVM2 001" {
			continue
		}
		at := int(le.Uint32(s[20:]))
		if le.Uint32(s[16:]) != crc(s[20:]) || at < 32 || at > 512-40 {
			return PV{}, fmt.Errorf("%w: label", ErrCorrupt)
		}
		p := PV{UUID: dashed(string(s[at : at+32])), dev: dev}
		areas := s[at+40:]
		list := 0 // data areas, then metadata areas; each list ends with zeros
		for ; len(areas) >= 16 && list < 2; areas = areas[16:] {
			off, n := le.Uint64(areas), le.Uint64(areas[8:])
			if off == 0 {
				list++
				continue
			}
			if list == 1 {
				return p, p.metadata(int64(off), int64(n), size)
			}
		}
		return p, nil // its metadata is on other physical volumes
	}
	return PV{}, fmt.Errorf("%w: no label", ErrCorrupt)
}

// crc is the CRC-32 that LVM uses, with its own start value and no inversion at the end.
func crc(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

func dashed(u string) string {
	if len(u) != 32 {
		return u
	}
	return strings.Join([]string{u[:6], u[6:10], u[10:14], u[14:18], u[18:22], u[22:26], u[26:]}, "-")
}

func (p *PV) metadata(off, n, size int64) error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }
	if off < 0 || n < 1024 || off > size-n && off > size-512 {
		return bad("place of the metadata area")
	}
	h := make([]byte, 512)
	if err := read(p.dev, h, off); err != nil {
		return err
	}
	le := binary.LittleEndian
	if le.Uint32(h) != crc(h[4:]) || string(h[4:20]) != " LVM2 x[5A%r0N*>" {
		return bad("header of the metadata area")
	}
	area := int64(le.Uint64(h[32:]))
	at, length := int64(le.Uint64(h[40:])), int64(le.Uint64(h[48:]))
	if at == 0 {
		return nil // no group yet
	}
	if area <= 512 || at < 512 || at >= area || length <= 0 || length > min(maxText, area-512) {
		return bad("place of the metadata")
	}
	text := make([]byte, length)
	first := min(length, area-at)
	if err := read(p.dev, text[:first], off+at); err != nil {
		return err
	}
	if err := read(p.dev, text[first:], off+512); err != nil { // it goes on at the area's start
		return err
	}
	if crc(text) != le.Uint32(h[56:]) {
		return bad("checksum of the metadata")
	}
	root, err := parse(string(text))
	if err != nil {
		return err
	}
	for name, v := range root {
		if g, ok := v.(node); ok {
			p.group, p.name, p.seq = g, name, g.int("seqno")
		}
	}
	if p.group == nil {
		return bad("no group in the metadata")
	}
	return nil
}

// Assemble returns the logical volumes of all groups, by name. Of a group's
// metadata the newest counts.
func Assemble(pvs []PV) []LV {
	newest, byUUID := map[string]PV{}, map[string]PV{}
	for _, p := range pvs {
		byUUID[p.UUID] = p
		if id := p.group.str("id"); p.group != nil && (newest[id].group == nil || newest[id].seq < p.seq) {
			newest[id] = p
		}
	}
	var out []LV
	for _, p := range newest {
		lvs, _ := p.group["logical_volumes"].(node)
		for name, v := range lvs {
			n, ok := v.(node)
			if !ok || !slices.Contains(n.list("status"), "VISIBLE") {
				continue
			}
			lv := LV{Group: p.name, Name: name, UUID: n.str("id")}
			m, err := p.mapping(n, byUUID)
			if lv.Err = err; err == nil {
				lv.Dev, lv.Size = m, m.size()
			}
			out = append(out, lv)
		}
	}
	slices.SortFunc(out, func(a, b LV) int { return strings.Compare(a.Group+"\x00"+a.Name, b.Group+"\x00"+b.Name) })
	return out
}

type segment struct {
	start, size int64 // in the logical volume
	dev         io.ReaderAt
	at          int64
}

type mapping []segment

func (m mapping) size() int64 {
	if len(m) == 0 {
		return 0
	}
	return m[len(m)-1].start + m[len(m)-1].size
}

// ReadAt reads the logical volume.
func (m mapping) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		k := slices.IndexFunc(m, func(s segment) bool { return off+int64(n) >= s.start && off+int64(n) < s.start+s.size })
		if k < 0 {
			return n, io.EOF
		}
		in := off + int64(n) - m[k].start
		room := min(int64(len(p)-n), m[k].size-in)
		if err := read(m[k].dev, p[n:n+int(room)], m[k].at+in); err != nil {
			return n, err
		}
		n += int(room)
	}
	return n, nil
}

func (p PV) mapping(lv node, byUUID map[string]PV) (mapping, error) {
	extent := p.group.int("extent_size") * 512
	pvs, _ := p.group["physical_volumes"].(node)
	count := lv.int("segment_count")
	if extent <= 0 || extent > 16<<30 || count < 1 || count > maxSegments {
		return nil, fmt.Errorf("%w: extents", ErrCorrupt)
	}
	var out mapping
	for k := range count {
		s, ok := lv["segment"+strconv.FormatInt(k+1, 10)].(node)
		if !ok {
			return nil, fmt.Errorf("%w: segment %d is missing", ErrCorrupt, k+1)
		}
		stripes := s.list("stripes")
		if s.str("type") != "striped" || s.int("stripe_count") != 1 || len(stripes) != 2 {
			return nil, fmt.Errorf("it is not linear (%s)", s.str("type"))
		}
		pv, _ := pvs[stripes[0]].(node)
		have, ok := byUUID[pv.str("id")]
		if !ok {
			return nil, fmt.Errorf("its physical volume %s is on none of the disks", stripes[0])
		}
		first, err := strconv.ParseInt(stripes[1], 10, 40)
		start, n := s.int("start_extent")*extent, s.int("extent_count")*extent
		if err != nil || n <= 0 || n > 1<<55 || start != out.size() || first < 0 || pv.int("pe_start") < 0 {
			return nil, fmt.Errorf("%w: segment %d", ErrCorrupt, k+1)
		}
		out = append(out, segment{start, n, have.dev, pv.int("pe_start")*512 + first*extent})
	}
	return out, nil
}

// node is a section of the text: values are node, string (numbers too) or []string.
type node map[string]any

func (n node) str(key string) string {
	s, _ := n[key].(string)
	return s
}

// int returns a number below 2^46, else -1.
func (n node) int(key string) int64 {
	v, err := strconv.ParseInt(n.str(key), 10, 64)
	if err != nil || v < 0 || v > 1<<46 {
		return -1
	}
	return v
}

func (n node) list(key string) []string {
	l, _ := n[key].([]string)
	return l
}

type parser struct{ s string }

func parse(s string) (node, error) {
	p := &parser{strings.TrimRight(s, "\x00")}
	return p.section(0)
}

// token returns the next word, quoted text (with its first quote) or mark.
func (p *parser) token() string {
	for {
		p.s = strings.TrimLeft(p.s, " \t\r\n,")
		if !strings.HasPrefix(p.s, "#") {
			break
		}
		_, p.s, _ = strings.Cut(p.s, "\n")
	}
	if p.s == "" {
		return ""
	}
	n := 1
	switch {
	case p.s[0] == '"':
		for n < len(p.s) && p.s[n] != '"' {
			if p.s[n] == '\\' {
				n++
			}
			n++
		}
		n = min(n, len(p.s))
		t := p.s[:n]
		p.s = p.s[min(n+1, len(p.s)):]
		return t
	case !strings.ContainsRune("{}[]=", rune(p.s[0])):
		if n = strings.IndexAny(p.s, " \t\r\n,{}[]=#\""); n < 0 {
			n = len(p.s)
		}
	}
	t := p.s[:n]
	p.s = p.s[n:]
	return t
}

func (p *parser) section(depth int) (node, error) {
	out := node{}
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: too deep", ErrCorrupt)
	}
	for {
		key := p.token()
		if key == "" && depth == 0 || key == "}" && depth > 0 {
			return out, nil
		}
		switch mark := p.token(); {
		case mark == "{":
			sub, err := p.section(depth + 1)
			if err != nil {
				return nil, err
			}
			out[key] = sub
		case mark == "=":
			v := p.token()
			if v != "[" {
				out[key] = strings.TrimPrefix(v, `"`)
				continue
			}
			list := []string{}
			for v = p.token(); v != "]"; v = p.token() {
				if v == "" {
					return nil, fmt.Errorf("%w: list without end", ErrCorrupt)
				}
				list = append(list, strings.TrimPrefix(v, `"`))
			}
			out[key] = list
		default:
			return nil, fmt.Errorf("%w: %.20q after %.20q", ErrCorrupt, mark, key)
		}
	}
}

func read(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
