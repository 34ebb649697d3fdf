package store

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"slices"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// TileDigest is the first level of the comparison by which a resynchronization
// finds the true differences: one hash for a tile of 64 MiB.
type TileDigest struct {
	Tile uint32
	Zero bool // the whole tile is zero; Key and Root are not set
	Key  cut.DigestKey
	Root [32]byte // Key.Root of the tile's block digests
}

// TileRoots returns the roots of the tiles [first, first+count) of a disk as of
// the point. Data is read only where changes lie over a tile image; everything
// else comes from the digests that were stored with the image. Tiles beyond the
// disk's end are left out.
func (v *View) TileRoots(ctx context.Context, disk uint16, first, count uint32) ([]TileDigest, error) {
	d, err := v.diskByIndex(disk)
	if err != nil {
		return nil, err
	}
	var out []TileDigest
	for t := int64(first); t < int64(first)+int64(count) && t*cut.TileSize < d.Size; t++ {
		key, sums, err := v.TileBlocks(ctx, disk, uint32(t))
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(sums, func(s [16]byte) bool { return s != [16]byte{} }) {
			out = append(out, TileDigest{Tile: uint32(t), Zero: true})
			continue
		}
		out = append(out, TileDigest{Tile: uint32(t), Key: key, Root: key.Root(sums)})
	}
	return out, nil
}

// TileBlocks returns the digests of the 1024 blocks of a tile as of the point
// and the key that they are made with; blocks of zeros and those beyond the
// disk's end have zero digests.
func (v *View) TileBlocks(ctx context.Context, disk uint16, tile uint32) (cut.DigestKey, [][16]byte, error) {
	d, err := v.diskByIndex(disk)
	if err != nil {
		return cut.DigestKey{}, nil, err
	}
	off := int64(tile) * cut.TileSize
	if off >= d.Size {
		return cut.DigestKey{}, nil, dr.New(dr.KindInvalid, "", "store.TileBlocks", "tile %d is beyond the end of disk %q", tile, d.ID)
	}
	var key cut.DigestKey
	sums := make([][16]byte, cut.TileSize/cut.Block)
	if id, ok := d.tiles[tile]; ok {
		seg, err := v.objects[id].open(ctx, v)
		if err != nil {
			return cut.DigestKey{}, nil, err
		}
		key = seg.DigestKey()
		copy(sums, seg.Digests())
	} else if key, err = v.digestKey(ctx, disk, tile); err != nil {
		return cut.DigestKey{}, nil, err
	}
	end := min(off+cut.TileSize, d.Size)
	changed := map[int64]bool{}
	err = d.ranges(off, end, func(r record) error {
		for b := (r.off - off) / cut.Block; b*cut.Block < r.end()-off; b++ {
			changed[b] = true
		}
		return nil
	})
	if err != nil {
		return cut.DigestKey{}, nil, err
	}
	digester := key.NewDigester()
	buf := make([]byte, cut.Block)
	for b := range int64(len(sums)) {
		if !changed[b] {
			continue
		}
		p := buf[:min(cut.Block, end-off-b*cut.Block)]
		if err := v.ReadAt(ctx, d.ID, p, off+b*cut.Block); err != nil {
			return cut.DigestKey{}, nil, err
		}
		sums[b] = digester.Sum(p)
	}
	return key, sums, nil
}

// digestKey makes the key for a tile that has no image. It is the same every
// time, and a guest can't know it.
func (v *View) digestKey(ctx context.Context, disk uint16, tile uint32) (key cut.DigestKey, err error) {
	epoch, err := v.store.cfg.Keys.EpochKey(ctx, v.machine, v.epoch)
	if err != nil {
		return key, err
	}
	raw, err := hkdf.Key(sha256.New, epoch[:], nil, fmt.Sprintf("holdfast v1 resync digest %d %d", disk, tile), len(key))
	if err != nil {
		return key, err
	}
	copy(key[:], raw)
	return key, nil
}

func (v *View) diskByIndex(index uint16) (*viewDisk, error) {
	for _, d := range v.disks {
		if d.Index == index {
			return d, nil
		}
	}
	return nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "store.View", "recovery point %s has no disk number %d", dr.PointName(v.info.Gen, v.info.N), index)
}
