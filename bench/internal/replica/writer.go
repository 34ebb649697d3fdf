package replica

import (
	"bytes"
	"context"
	"time"

	"holdfast/bench/internal/rawhost"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

// Writer writes the objects of a machine as an agent does: tile images, the base
// cut that lists them, and cuts.
type Writer struct {
	*Vault
	Bytes int64                    // stored so far
	Time  func(n uint64) time.Time // of cut n; nil = now

	b     objstore.Bucket
	epoch cut.EpochKey
	codec cut.Codec
	disks []cut.Disk
	refs  []cut.TileRef // of the next cut
	last  cut.Ref
	next  uint64
}

// NewWriter begins a machine with disks of the given sizes; the first is rawhost.DiskID.
func NewWriter(ctx context.Context, b objstore.Bucket, codec cut.Codec, sizes ...int64) (*Writer, error) {
	m, err := newVault(ctx, b)
	if err != nil {
		return nil, err
	}
	w := &Writer{Vault: m, b: b, epoch: cut.NewEpochKey(), codec: codec, next: 1}
	for i, size := range sizes {
		w.disks = append(w.disks, cut.Disk{ID: rawhost.DiskID[:2] + string(rune('a'+i)), Index: uint16(i), Size: size})
	}
	wrap, err := cut.SealEpochKey(m.Key.Public(), m.Machine, 1, w.epoch)
	if err != nil {
		return nil, err
	}
	return w, b.PutNew(ctx, cut.KeyObject(m.Machine, 1), bytes.NewReader(wrap), int64(len(wrap)), nil)
}

func (w *Writer) put(ctx context.Context, seg *cut.Writer, buf *bytes.Buffer, c *cut.Commit) (cut.Sealed, error) {
	s, err := seg.Close(c)
	if err != nil {
		return s, err
	}
	w.Bytes += s.Size
	sum := [32]byte(s.SHA256)
	return s, w.b.PutNew(ctx, s.Name.Key(), bytes.NewReader(buf.Bytes()), s.Size, &sum)
}

// Tile stores one tile image; fill writes its data, which begins at base. buf is reused.
func (w *Writer) Tile(ctx context.Context, disk uint16, tile uint32, buf *bytes.Buffer, fill func(seg *cut.Writer, base int64) error) error {
	buf.Reset()
	seg, err := cut.NewWriter(buf, cut.WriterConfig{
		Header: cut.Header{Kind: cut.KindTile, Machine: w.Machine, Gen: 1, N: w.next, KeyEpoch: 1, Disk: disk, Tile: tile}, Key: w.epoch, Codec: w.codec,
	})
	if err != nil {
		return err
	}
	defer seg.Abort()
	if err := fill(seg, int64(tile)*cut.TileSize); err != nil {
		return err
	}
	s, err := w.put(ctx, seg, buf, nil)
	if err != nil {
		return err
	}
	w.refs = append(w.refs, cut.TileRef{Disk: disk, Tile: tile, UID: s.Name.UID, Gen: 1, N: w.next, Size: s.Size, BLAKE3: s.BLAKE3})
	return nil
}

// Cut commits the tiles that were stored and what fill writes, if it is not nil,
// as the next recovery point. The first one is a base.
func (w *Writer) Cut(ctx context.Context, fill func(seg *cut.Writer) error) error {
	var buf bytes.Buffer
	seg, err := cut.NewWriter(&buf, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: w.Machine, Gen: 1, N: w.next, KeyEpoch: 1}, Key: w.epoch, Codec: w.codec})
	if err != nil {
		return err
	}
	defer seg.Abort()
	if fill != nil {
		if err := fill(seg); err != nil {
			return err
		}
	}
	at := time.Now().UTC()
	if w.Time != nil {
		at = w.Time(w.next)
	}
	c := &cut.Commit{
		Gen: 1, N: w.next, Prev: w.last, Base: w.last.IsZero(), Time: at, Consistency: dr.CrashConsistent, Tiles: w.refs,
		Disks: w.disks, VM: cut.VMRecord{Name: "bench", UUID: rawhost.VMID, Generation: 1, CPUs: 2, MemoryMB: 1024},
	}
	s, err := w.put(ctx, seg, &buf, c)
	if err != nil {
		return err
	}
	w.last, w.next, w.refs = c.Ref(s.ChainHash), w.next+1, nil
	return nil
}

// Tip is the number of the newest recovery point.
func (w *Writer) Tip() uint64 { return w.next - 1 }
