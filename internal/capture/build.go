package capture

import (
	"context"
	"time"

	"holdfast/internal/capture/frozen"
	"holdfast/internal/capture/seal"
	"holdfast/internal/capture/spool"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// build is a cut being made from an image.
type build struct {
	*image
	s     *seal.Cut
	read  *frozen.Reader
	after position
	taken []cut.Disk // that were filled and join the chain
	dirty int64      // as the tracker says, bytes
	tiles int        // compared in this cut
	roots map[tileID]TileRoot
	meter *meter
	have  []uint64 // filter entries of the tile at hand
}

type tileID struct {
	disk uint16
	tile uint32
}

func (im *image) newBuild() (*build, error) {
	b := &build{image: im, meter: im.r.newMeter(), read: frozen.NewReader(im.c), after: position{Token: im.info.Token, Disks: append([]cut.Disk(nil), im.live...)}}
	if im.take {
		b.taken = im.fill
		b.after.Disks = append(b.after.Disks, im.fill...)
	}
	b.after.Scan = im.st.Tip.Scan.clone()
	seed := false
	if sc := b.after.Scan; sc != nil && sc.At.IsZero() && im.st.Tip.Ref == im.st.Committed.Ref {
		sc.At = im.st.Tip.Ref
	}
	if sc := b.after.Scan; sc != nil && !sc.Exact {
		// Whether this is the last cut of the comparison is settled now, because its first byte says so.
		left, _ := sc.left(im.live)
		if seed = left > max(cut.TileSize, min(finalScan, int64(im.r.cfg.HoldLimit/time.Second)*(4<<20))); !seed {
			b.until = time.Time{}
		}
	}
	var err error
	b.s, err = im.r.newSealer(im.a, seed)
	return b, err
}

// finalScan is how much a cut may still compare that must end the comparison, bytes.
const finalScan = 2 << 30

// readDisk takes from a disk of the chain what belongs into the cut.
func (b *build) readDisk(ctx context.Context, d cut.Disk) error {
	from, scanning := b.after.Scan.next(d.Index)
	to := from
	if scanning && b.scan {
		var err error
		if to, err = b.compare(ctx, d, from); err != nil {
			return err
		}
		b.after.Scan.Next[d.Index] = to
	}
	// Compared tiles are as of this image. Tiles that are still to be compared
	// take changes only while tracking is unbroken.
	first, last := int64(from)*cut.TileSize, min(int64(to)*cut.TileSize, d.Size)
	if err := b.delta(ctx, d, 0, min(first, d.Size)); err != nil {
		return err
	}
	if scanning && !b.after.Scan.Exact {
		return nil
	}
	return b.delta(ctx, d, last, d.Size)
}

// delta takes what changed in [off, end) of a disk.
func (b *build) delta(ctx context.Context, d cut.Disk, off, end int64) error {
	t := b.tables[d.Index]
	for ; off < end; off += frozen.Window {
		rs, err := frozen.Ranges(ctx, b.c, d.ID, off, min(frozen.Window, end-off), frozen.Changed)
		if err != nil {
			return err
		}
		for _, x := range rs {
			b.dirty += x.Len
		}
		err = b.read.Read(ctx, d.ID, frozen.Widen(rs, d.Size), func(off, n int64, p []byte) error {
			return b.s.Trim(ctx, t, d.Index, off, n, p)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// takeOver takes what changed of a disk since its tiles were sent.
func (b *build) takeOver(ctx context.Context, d cut.Disk) error {
	t := b.tables[d.Index]
	for off, n := range b.log.Changes(d.Index, d.Size) {
		for end := off + n; off < end; off += frozen.Window {
			rs, err := frozen.Ranges(ctx, b.c, d.ID, off, min(frozen.Window, end-off), frozen.All)
			if err != nil {
				return err
			}
			err = b.read.Read(ctx, d.ID, frozen.Widen(rs, d.Size), func(off, n int64, p []byte) error {
				b.dirty += n
				return b.s.Trim(ctx, t, d.Index, off, n, p)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// seal makes the cut an entry of the spool.
func (b *build) seal(config hypervisor.VMConfig, held time.Duration) (*spool.Entry, position, error) {
	st, info := &b.st, &b.info
	commit := &cut.Commit{
		Prev: st.Tip.Ref, Base: st.Tip.Ref.IsZero() || st.Tip.Scan != nil && st.Tip.Scan.Rebase, Time: info.Time.UTC(), Consistency: info.Consistency, Note: info.Note,
		Resync: b.tiles > 0 || st.Tip.Scan != nil && !st.Tip.Scan.Exact, Group: b.group, Disks: b.after.Disks,
		VM: cut.VMRecord{
			Name: config.VM.Name, UUID: string(config.VM.ID), Generation: config.VM.Generation, CPUs: config.VM.CPUs, MemoryMB: config.VM.MemoryMB,
			OSType: config.VM.OSType, NICs: nics(config.VM.NICs), Config: config.Native,
		},
		Stats: cut.Stats{DirtyBytes: b.dirty, Read: held, Freeze: info.Held},
	}
	for _, d := range b.taken {
		for ref := range b.log.Refs(d.Index) {
			if int64(ref.Tile)*cut.TileSize >= d.Size {
				continue
			}
			commit.Tiles = append(commit.Tiles, ref)
			commit.Stats.StoredBytes += ref.Size
		}
		commit.Stats.DirtyBytes += b.log.Data(d.Index)
	}
	if sc := b.after.Scan; sc != nil {
		sc.Rebase = false
		if left, _ := sc.left(b.after.Disks); left == 0 {
			b.after.Scan = nil
		}
	}
	marks := map[uint16]cut.Ref{}
	for _, d := range b.taken {
		marks[d.Index] = st.Fill.Mark
	}
	commit.Token = b.after.Token
	e, err := b.s.Finish(commit, seal.Result{Dirty: b.dirty, Held: held, Marks: marks, Step: b.r.step, After: func(ref cut.Ref) any {
		b.after.Ref = ref
		return b.after
	}})
	return e, b.after, err
}

// newSealer begins the next cut.
func (r *Replicator) newSealer(a Assignment, seed bool) (*seal.Cut, error) {
	cfg := seal.Config{Spool: r.spool, Codec: r.codec(a), PartSize: r.cfg.PartSize}
	err := r.change(func(st *state) (err error) {
		// Persisted before anything of this attempt can reach the store, so that
		// its parts never meet leftovers of an earlier one.
		st.Attempt++
		cfg.Key, err = r.key(st)
		cfg.Attempt = st.Attempt
		cfg.Header = cut.Header{Machine: r.cfg.Machine, Gen: st.Gen, N: st.nextN(), KeyEpoch: st.Epoch, Seed: seed}
		return err
	})
	if err != nil {
		return nil, err
	}
	return seal.New(cfg)
}

func (r *Replicator) codec(a Assignment) cut.Codec {
	if a.Codec != cut.CodecDefault {
		return a.Codec
	}
	return r.cfg.Codec
}

func nics(list []dr.NIC) (out []cut.NIC) {
	for _, n := range list {
		out = append(out, cut.NIC{MAC: n.MAC, Network: n.Network, VLAN: n.VLAN})
	}
	return out
}
