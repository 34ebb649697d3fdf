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
//	document length u32 | document | parts | tiles | configuration files
//
// where the document says how many of each follow.
const (
	partEntry    = 4 + 2 + 8 + 32             // attempt, k, size, BLAKE3
	tileEntryMin = 2 + 4 + 4 + 8 + 8 + 32 + 1 // disk, tile, gen, n, size, BLAKE3, uid length
)

type commitDoc struct {
	*Commit
	PartCount int         `json:"parts"`
	TileCount int         `json:"tiles"`
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
	return c.checkText()
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
	text := []string{c.Note, c.Token, c.VM.Name, c.VM.UUID}
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
	if err := own.check(h, ext); err != nil {
		return nil, err
	}
	doc := commitDoc{Commit: &own, PartCount: len(own.Parts), TileCount: len(own.Tiles)}
	names := slices.Sorted(maps.Keys(own.VM.Config))
	for _, n := range names {
		doc.Files = append(doc.Files, configDoc{n, len(own.VM.Config[n])})
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	b := make([]byte, 0, 4+len(text)+len(own.Parts)*partEntry+len(own.Tiles)*(tileEntryMin+MaxUID))
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
	if doc.PartCount < 0 || doc.TileCount < 0 || doc.PartCount > len(rest)/partEntry || doc.TileCount > len(rest)/tileEntryMin {
		return nil, fmt.Errorf("%d parts and %d tiles do not fit", doc.PartCount, doc.TileCount)
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

// decodeTables reads the parts and tiles and returns what follows them.
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
	return rest, nil
}
