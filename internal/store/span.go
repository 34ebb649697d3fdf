package store

import (
	"context"
	"slices"
	"strings"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// Piece is a range of a disk that lies over the tile images of a View.
type Piece struct {
	Off, Len int64
	Object   int // index of Objects; -1 = the range is zero
	Frame    uint32
	FrameOff uint32
}

// Zero reports whether the piece is a range of zeroes.
func (p Piece) Zero() bool { return p.Object < 0 }

// ObjectInfo describes an object that a View uses.
type ObjectInfo struct {
	Name cut.ObjectName
	Size int64
	// Hash is the BLAKE3 of the object, or of a cut its chain hash.
	Hash cut.Hash
	// DataBytes is the plaintext that the object carries.
	DataBytes int64
}

// First is the oldest element that the View was opened from; Info the newest.
func (v *View) First() CutInfo { return v.first }

// Epoch is the key epoch of the newest element.
func (v *View) Epoch() uint32 { return v.epoch }

// Pieces calls fn for what lies over the tile images of a disk in [off, end), in
// order and clipped.
func (v *View) Pieces(disk uint16, off, end int64, fn func(Piece) error) error {
	d, err := v.diskByIndex(disk)
	if err != nil {
		return err
	}
	return d.ranges(off, end, func(r record) error { return fn(Piece{r.off, r.len, int(r.seg), r.frame, r.frameOff}) })
}

// Tiles lists the tile images in effect, in order of disk and tile.
func (v *View) Tiles() []cut.TileRef {
	var out []cut.TileRef
	for _, d := range v.disks {
		for tile, id := range d.tiles {
			o := v.objects[id]
			out = append(out, cut.TileRef{Disk: d.Index, Tile: tile, UID: o.name.UID, Gen: o.name.Gen, N: o.name.N, Size: o.size, BLAKE3: o.hash})
		}
	}
	slices.SortFunc(out, func(a, b cut.TileRef) int {
		if a.Disk != b.Disk {
			return int(a.Disk) - int(b.Disk)
		}
		return int(int64(a.Tile) - int64(b.Tile))
	})
	return out
}

// Object describes an object that pieces refer to, opening it if need be.
func (v *View) Object(ctx context.Context, i int) (ObjectInfo, error) {
	o := v.objects[i]
	seg, err := o.open(ctx, v)
	if err != nil {
		return ObjectInfo{}, err
	}
	info := ObjectInfo{Name: o.name, Size: o.size, Hash: o.hash, DataBytes: seg.DataBytes()}
	if o.name.Class == cut.ClassCut {
		info.Hash = seg.ChainHash()
	}
	return info, nil
}

// Piece returns the bytes of a piece. They must not be changed.
func (v *View) Piece(ctx context.Context, p Piece) ([]byte, error) {
	frame, err := v.frame(ctx, int32(p.Object), p.Frame)
	if err != nil {
		return nil, err
	}
	if int64(p.FrameOff)+p.Len > int64(len(frame)) {
		return nil, dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "store.View", "object %s: an extent reaches beyond frame %d", v.objects[p.Object].key, p.Frame)
	}
	return frame[p.FrameOff : int64(p.FrameOff)+p.Len], nil
}

// References lists the keys of everything that an element of a history names:
// its own object, parts, tile images and the segments that a run points to.
func (c CutInfo) References(m dr.MachineID) []string {
	keys := []string{c.Object(m).Key()}
	for _, p := range c.Commit.Parts {
		keys = append(keys, cut.PartName(m, c.Gen, c.N, p).Key())
	}
	for _, t := range c.Commit.Tiles {
		keys = append(keys, cut.TileName(m, t).Key())
	}
	for _, s := range c.Commit.Segments {
		keys = append(keys, cut.SegmentName(m, s).Key())
	}
	slices.SortFunc(keys, strings.Compare)
	return slices.Compact(keys)
}
