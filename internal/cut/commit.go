package cut

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"holdfast/internal/dr"
)

// The commit section is a JSON document and the tables that would be wasteful in JSON:
//
//	document length u32 | document | parts | tiles | segments | configuration files
//
// where the document says how many of each follow.
const (
	partEntry    = 4 + 2 + 8 + 32                 // attempt, k, size, BLAKE3
	tileEntryMin = 2 + 4 + 4 + 8 + 8 + 32 + 1     // disk, tile, gen, n, size, BLAKE3, uid length
	segEntryMin  = 1 + 4 + 8 + 4 + 2 + 8 + 32 + 1 // kind, gen, n, attempt, k, size, hash, uid length
)

type commitDoc struct {
	*Commit
	PartCount int         `json:"parts"`
	TileCount int         `json:"tiles"`
	SegCount  int         `json:"segments,omitempty"`
	Files     []configDoc `json:"config,omitempty"`
}

type configDoc struct {
	Name string `json:"name"`
	Size int    `json:"size"`
}

// check says what is wrong with a commit of the given segment. Tiles must be sorted.
func (c *Commit) check(h Header, ext []Extent) error {
	switch {
	case c.Gen != h.Gen || c.N != h.N:
		return fmt.Errorf("it is the commit of cut %d of generation %d", c.N, c.Gen)
	case c.Time.IsZero():
		return fmt.Errorf("it has no time")
	case c.Prev.IsZero() && !c.Base:
		return fmt.Errorf("it has neither a cut before it nor a complete base")
	case !c.Prev.IsZero() && (c.Prev.Gen == 0 || c.Prev.Gen > c.Gen || c.Prev.N >= c.N || c.Prev.Hash.IsZero()):
		return fmt.Errorf("cut %d of generation %d can't come before it", c.Prev.N, c.Prev.Gen)
	}
	if _, err := dr.ParseConsistency(string(c.Consistency)); err != nil {
		return err
	}
	sizes, err := c.diskSizes()
	if err != nil {
		return err
	}
	for i, t := range c.Tiles {
		size, ok := sizes[t.Disk]
		switch {
		case !ok || int64(t.Tile)*TileSize >= size:
			return fmt.Errorf("tile %d of disk %d is outside the VM's disks", t.Tile, t.Disk)
		case i > 0 && compareTiles(c.Tiles[i-1], t) >= 0:
			return fmt.Errorf("tile %d of disk %d is listed twice or out of order", t.Tile, t.Disk)
		case !validUID(t.UID) || t.Gen == 0 || t.Gen > c.Gen || t.N > c.N || t.Size <= 0:
			return fmt.Errorf("tile %d of disk %d has an impossible reference", t.Tile, t.Disk)
		}
	}
	seen := make(map[[2]uint32]bool, len(c.Parts))
	for _, p := range c.Parts {
		k := [2]uint32{p.Attempt, uint32(p.K)}
		if p.K < 0 || p.K > 0xffff || p.Size <= 0 || seen[k] {
			return fmt.Errorf("part %d of attempt %d is impossible or listed twice", p.K, p.Attempt)
		}
		seen[k] = true
	}
	for _, e := range ext {
		size, ok := sizes[e.Disk]
		if !ok || e.End() > size || e.Len%Unit != 0 && e.End() != size {
			return fmt.Errorf("range %d+%d of disk %d does not fit the VM's disks", e.Off, e.Len, e.Disk)
		}
	}
	if err := c.checkRun(h); err != nil {
		return err
	}
	if c.Seed != h.Seed {
		return fmt.Errorf("that it is a seed must be said in its header as well as in the commit")
	}
	if c.Group != nil {
		if err := c.Group.check(h.Machine); err != nil {
			return err
		}
	}
	return c.checkText()
}

// checkRun says what is wrong with what a run or map has beyond the cut that it reaches.
func (c *Commit) checkRun(h Header) error {
	if !h.Kind.hasMap() {
		if c.Run != nil || len(c.Segments) != 0 {
			return fmt.Errorf("only runs and maps refer to segments and to the cut that they reach")
		}
		return nil
	}
	switch r := c.Run; {
	case r == nil || r.Hash.IsZero() || r.Made.IsZero():
		return fmt.Errorf("it does not say which cut it reaches and when it was made")
	case c.Base != c.Prev.IsZero() || c.Base != (h.From == 0) || c.Prev.N != h.From:
		return fmt.Errorf("it goes on from cut %d, its name says %d: either both are 0 and it is a base, or none is", c.Prev.N, h.From)
	case r.Cuts == 0 || r.Cuts-1 > c.N-h.From || h.From != 0 && r.Cuts > c.N-h.From:
		return fmt.Errorf("%d cuts do not fit between cut %d and cut %d", r.Cuts, h.From, c.N)
	case len(c.Parts) != 0:
		return fmt.Errorf("it has parts: they belong in the table of segments")
	}
	seen := make(map[ObjectName]bool, len(c.Segments))
	for i, s := range c.Segments {
		sh := s.header()
		sh.Machine = h.Machine
		name := sh.Name()
		switch {
		case sh.Kind == 0 || sh.problem() != "":
			return fmt.Errorf("segment %d is an impossible reference to a %s", i, s.Class)
		case s.Gen > c.Gen || s.N > c.N || s.Class != ClassData && s.N <= h.From && h.From != 0:
			return fmt.Errorf("segment %d is of cut %d of generation %d, which is outside", i, s.N, s.Gen)
		case s.Size <= 0 || s.Hash.IsZero() || seen[name]:
			return fmt.Errorf("segment %d has no size or hash or is listed twice", i)
		}
		seen[name] = true
	}
	return nil
}

// header returns the header fields of the segment that s refers to; its kind is 0 if the class is not possible.
func (s SegmentRef) header() Header {
	h := Header{Gen: s.Gen, N: s.N, Attempt: s.Attempt, K: s.K, UID: s.UID}
	switch s.Class {
	case ClassCut:
		h.Kind = KindCut
	case ClassPart:
		h.Kind = KindPart
	case ClassData:
		h.Kind = KindData
	}
	return h
}

func (g *Group) check(own dr.MachineID) error {
	if g.ID == "" {
		return fmt.Errorf("its group has no id")
	}
	seen := make(map[dr.MachineID]bool, len(g.Members))
	for _, m := range g.Members {
		if _, ok := machineBytes(m); !ok || seen[m] {
			return fmt.Errorf("member %q of group %q is not a lower-case UUID or listed twice", m, g.ID)
		}
		seen[m] = true
	}
	if !seen[own] {
		return fmt.Errorf("machine %s is not a member of group %q", own, g.ID)
	}
	return nil
}

func (c *Commit) diskSizes() (map[uint16]int64, error) {
	sizes := make(map[uint16]int64, len(c.Disks))
	ids := make(map[string]bool, len(c.Disks))
	for _, d := range c.Disks {
		if _, dup := sizes[d.Index]; dup || ids[d.ID] || d.ID == "" {
			return nil, fmt.Errorf("disk %d (%q) is listed twice or has no id", d.Index, d.ID)
		}
		if d.Size <= 0 || d.Size > MaxDisk {
			return nil, fmt.Errorf("disk %d (%q) has the size %d", d.Index, d.ID, d.Size)
		}
		sizes[d.Index], ids[d.ID] = d.Size, true
	}
	return sizes, nil
}

// checkText refuses text that JSON would change silently.
func (c *Commit) checkText() error {
	text := []string{c.Note, c.Token, c.VM.Name, c.VM.UUID, c.VM.OSType}
	for _, n := range c.VM.NICs {
		text = append(text, n.MAC, n.Network)
	}
	if c.Group != nil {
		text = append(text, c.Group.ID)
	}
	if c.Run != nil {
		text = append(text, c.Run.Software)
	}
	for _, d := range c.Disks {
		text = append(text, d.ID)
	}
	for name := range c.VM.Config {
		text = append(text, name)
	}
	for _, s := range text {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%q is not UTF-8", s)
		}
	}
	return nil
}

func compareTiles(a, b TileRef) int {
	return cmp.Or(cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.Tile, b.Tile))
}

// encodeCommit checks and encodes a commit. It does not change c.
func encodeCommit(c *Commit, h Header, ext []Extent) ([]byte, error) {
	own := *c
	own.Time = own.Time.UTC()
	own.Tiles = slices.SortedFunc(slices.Values(c.Tiles), compareTiles)
	if c.Run != nil {
		run := *c.Run
		run.Made = run.Made.UTC()
		own.Run = &run
	}
	if err := own.check(h, ext); err != nil {
		return nil, err
	}
	doc := commitDoc{Commit: &own, PartCount: len(own.Parts), TileCount: len(own.Tiles), SegCount: len(own.Segments)}
	names := slices.Sorted(maps.Keys(own.VM.Config))
	for _, n := range names {
		doc.Files = append(doc.Files, configDoc{n, len(own.VM.Config[n])})
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	b := make([]byte, 0, 4+len(text)+len(own.Parts)*partEntry+len(own.Tiles)*(tileEntryMin+MaxUID)+len(own.Segments)*(segEntryMin+MaxUID))
	b = le.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	for _, p := range own.Parts {
		b = le.AppendUint32(b, p.Attempt)
		b = le.AppendUint16(b, uint16(p.K))
		b = le.AppendUint64(b, uint64(p.Size))
		b = append(b, p.BLAKE3[:]...)
	}
	for _, t := range own.Tiles {
		b = le.AppendUint16(b, t.Disk)
		b = le.AppendUint32(b, t.Tile)
		b = le.AppendUint32(b, uint32(t.Gen))
		b = le.AppendUint64(b, t.N)
		b = le.AppendUint64(b, uint64(t.Size))
		b = append(b, t.BLAKE3[:]...)
		b = append(b, byte(len(t.UID)))
		b = append(b, t.UID...)
	}
	for _, s := range own.Segments {
		b = append(b, byte(s.header().Kind))
		b = le.AppendUint32(b, uint32(s.Gen))
		b = le.AppendUint64(b, s.N)
		b = le.AppendUint32(b, s.Attempt)
		b = le.AppendUint16(b, uint16(s.K))
		b = le.AppendUint64(b, uint64(s.Size))
		b = append(b, s.Hash[:]...)
		b = append(b, byte(len(s.UID)))
		b = append(b, s.UID...)
	}
	for _, n := range names {
		b = append(b, own.VM.Config[n]...)
	}
	return b, nil
}

// decodeCommit parses and checks a commit section.
func decodeCommit(b []byte, h Header, ext []Extent) (*Commit, error) {
	if len(b) < 4 || uint64(le.Uint32(b)) > uint64(len(b)-4) {
		return nil, fmt.Errorf("its document is cut short")
	}
	text, rest := b[4:4+le.Uint32(b)], b[4+le.Uint32(b):]
	c := &Commit{}
	doc := commitDoc{Commit: c}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if doc.Commit != c { // a document that is null
		return nil, fmt.Errorf("its document is empty")
	}
	if doc.PartCount < 0 || doc.TileCount < 0 || doc.SegCount < 0 || doc.PartCount > len(rest)/partEntry ||
		doc.TileCount > len(rest)/tileEntryMin || doc.SegCount > len(rest)/segEntryMin {
		return nil, fmt.Errorf("%d parts, %d tiles and %d segments do not fit", doc.PartCount, doc.TileCount, doc.SegCount)
	}
	rest, err := decodeTables(c, doc, rest)
	if err != nil {
		return nil, err
	}
	for _, f := range doc.Files {
		if _, dup := c.VM.Config[f.Name]; dup || f.Size < 0 || f.Size > len(rest) {
			return nil, fmt.Errorf("configuration file %q is listed twice or cut short", f.Name)
		}
		if c.VM.Config == nil {
			c.VM.Config = make(map[string][]byte)
		}
		c.VM.Config[f.Name] = bytes.Clone(rest[:f.Size])
		rest = rest[f.Size:]
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%d bytes follow its last table", len(rest))
	}
	return c, c.check(h, ext)
}

// decodeTables reads the parts, tiles and segments and returns what follows them.
func decodeTables(c *Commit, doc commitDoc, rest []byte) ([]byte, error) {
	if doc.PartCount*partEntry > len(rest) {
		return nil, fmt.Errorf("its parts are cut short")
	}
	for range doc.PartCount {
		c.Parts = append(c.Parts, PartRef{
			Attempt: le.Uint32(rest), K: int(le.Uint16(rest[4:])), Size: int64(le.Uint64(rest[6:])), BLAKE3: Hash(rest[14:46]),
		})
		rest = rest[partEntry:]
	}
	for range doc.TileCount {
		if len(rest) < tileEntryMin || len(rest) < tileEntryMin+int(rest[tileEntryMin-1]) {
			return nil, fmt.Errorf("its tiles are cut short")
		}
		n := tileEntryMin + int(rest[tileEntryMin-1])
		c.Tiles = append(c.Tiles, TileRef{
			Disk: le.Uint16(rest), Tile: le.Uint32(rest[2:]), Gen: dr.Generation(le.Uint32(rest[6:])), N: le.Uint64(rest[10:]),
			Size: int64(le.Uint64(rest[18:])), BLAKE3: Hash(rest[26:58]), UID: string(rest[tileEntryMin:n]),
		})
		rest = rest[n:]
	}
	for range doc.SegCount {
		if len(rest) < segEntryMin || len(rest) < segEntryMin+int(rest[segEntryMin-1]) {
			return nil, fmt.Errorf("its segments are cut short")
		}
		n := segEntryMin + int(rest[segEntryMin-1])
		c.Segments = append(c.Segments, SegmentRef{
			Class: Header{Kind: Kind(rest[0])}.Name().Class, Gen: dr.Generation(le.Uint32(rest[1:])), N: le.Uint64(rest[5:]), Attempt: le.Uint32(rest[13:]),
			K: int(le.Uint16(rest[17:])), Size: int64(le.Uint64(rest[19:])), Hash: Hash(rest[27:59]), UID: string(rest[segEntryMin:n]),
		})
		rest = rest[n:]
	}
	return rest, nil
}
