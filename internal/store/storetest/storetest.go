// Package storetest writes replicas the way an agent does, beside a flat copy
// of every disk at every cut: the oracle that store, hydrate and recovery tests
// compare with. It owns nothing that ships.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

// Replica is one machine's replica under construction.
type Replica struct {
	T       testing.TB
	Bucket  objstore.Bucket
	Machine dr.MachineID
	Private cut.VaultPrivateKey
	Key     cut.EpochKey
	Gen     dr.Generation
	Disks   []cut.Disk
	Flat    [][]byte // the disks now
	VM      cut.VMRecord
	Points  []Point // committed, in order
	PartMax int     // bytes of data after which a part is begun; 0 = all in the cut
	next    uint64
	last    cut.Ref
	written []map[int64]int64 // disk → off → len changed since the last cut
	indexes uint16            // given out; an index is never used again
}

// Point is the oracle of one recovery point.
type Point struct {
	Ref   cut.Ref
	Flat  [][]byte
	Disks []cut.Disk
}

// New opens generation 1 of a new machine with zero-filled disks of the given sizes.
func New(t testing.TB, b objstore.Bucket, sizes ...int64) *Replica {
	t.Helper()
	priv, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	r := &Replica{T: t, Bucket: b, Machine: dr.MachineID(uuid.NewString()), Private: priv, Key: cut.NewEpochKey(), Gen: 1}
	r.VM = cut.VMRecord{Name: "vm", UUID: uuid.NewString(), Generation: 1, CPUs: 1, MemoryMB: 256, Config: map[string][]byte{"domain.xml": []byte("<domain/>")}}
	for i, size := range sizes {
		r.Disks = append(r.Disks, cut.Disk{Index: uint16(i), ID: "vd" + string(rune('a'+i)), Size: size})
		r.Flat = append(r.Flat, make([]byte, size))
		r.written = append(r.written, map[int64]int64{})
		r.indexes++
	}
	wrap, err := cut.SealEpochKey(priv.Public(), r.Machine, 1, r.Key)
	if err != nil {
		t.Fatal(err)
	}
	r.put(cut.KeyObject(r.Machine, 1), wrap)
	r.generation(1, cut.Ref{})
	return r
}

// Store reads what the replica wrote.
func (r *Replica) Store() *store.Store {
	return store.New(store.Config{Bucket: r.Bucket, Keys: store.NewKeyring(r.Bucket, r.Private)})
}

// Write changes a disk; off and len(p) are multiples of 4 KiB but at its end.
func (r *Replica) Write(disk int, off int64, p []byte) {
	copy(r.Flat[disk][off:], p)
	for o := off; o < off+int64(len(p)); o += cut.Unit {
		r.written[disk][o] = min(cut.Unit, r.Disks[disk].Size-o)
	}
}

// AddDisk gives the VM another disk of zeroes.
func (r *Replica) AddDisk(size int64) {
	r.Disks = append(slices.Clone(r.Disks), cut.Disk{Index: r.indexes, ID: fmt.Sprintf("vd%d", r.indexes), Size: size})
	r.indexes++
	r.Flat = append(r.Flat, make([]byte, size))
	r.written = append(r.written, map[int64]int64{})
}

// RemoveDisk takes a disk away.
func (r *Replica) RemoveDisk(i int) {
	r.Disks = slices.Delete(slices.Clone(r.Disks), i, i+1)
	r.Flat = slices.Delete(slices.Clone(r.Flat), i, i+1)
	r.written = slices.Delete(slices.Clone(r.written), i, i+1)
}

// GrowDisk makes a disk longer; the new space is zero.
func (r *Replica) GrowDisk(i int, size int64) {
	if last := r.Disks[i].Size / cut.Unit * cut.Unit; last != r.Disks[i].Size {
		r.written[i][last] = min(cut.Unit, size-last) // the unit at the old end has become longer
	}
	r.Disks = slices.Clone(r.Disks)
	r.Disks[i].Size = size
	r.Flat[i] = append(r.Flat[i], make([]byte, size-int64(len(r.Flat[i])))...)
}

// Takeover opens the next generation on top of point at (index into Points; -1 = the last).
func (r *Replica) Takeover(at int) {
	if at < 0 {
		at = len(r.Points) - 1
	}
	p := r.Points[at]
	r.Gen++
	r.last, r.next = p.Ref, p.Ref.N+1
	r.generation(r.Gen, p.Ref)
	r.Disks, r.Flat, r.written = p.Disks, nil, nil
	for i := range p.Flat {
		r.Flat = append(r.Flat, bytes.Clone(p.Flat[i]))
		r.written = append(r.written, map[int64]int64{})
	}
}

// Clone is a second writer in the same state: an agent that has not heard of a takeover.
func (r *Replica) Clone() *Replica {
	c := *r
	c.Flat, c.written, c.Points = nil, nil, slices.Clone(r.Points)
	for i := range r.Flat {
		c.Flat = append(c.Flat, bytes.Clone(r.Flat[i]))
		c.written = append(c.written, maps.Clone(r.written[i]))
	}
	return &c
}

func (r *Replica) generation(gen dr.Generation, base cut.Ref) {
	r.T.Helper()
	err := store.WriteGeneration(r.T.Context(), r.Bucket, cut.GenInfo{Machine: r.Machine, Gen: gen, Base: base, Agent: "agent", Reason: "test", Time: time.Unix(1e9, 0)})
	if err != nil {
		r.T.Fatal(err)
	}
}

// Base commits a cut that stands alone: tile images of all disks.
func (r *Replica) Base() Point { return r.commit(true) }

// Cut commits what was written since the last one.
func (r *Replica) Cut() Point { return r.commit(false) }

func (r *Replica) commit(base bool) Point {
	r.T.Helper()
	c := &cut.Commit{Gen: r.Gen, N: r.next, Prev: r.last, Time: time.Unix(1e9+int64(r.next), 0).UTC(), Consistency: dr.CrashConsistent, Base: base, Disks: r.Disks, VM: r.VM}
	w := r.writer(cut.Header{Kind: cut.KindCut, Machine: r.Machine, Gen: r.Gen, N: r.next, KeyEpoch: 1})
	seg := w
	data := 0
	for d, disk := range r.Disks {
		if base {
			c.Tiles = append(c.Tiles, r.tiles(disk, r.Flat[d])...)
		} else {
			for off := int64(0); off < disk.Size; off += cut.Unit {
				n, ok := r.written[d][off]
				if !ok {
					continue
				}
				if r.PartMax > 0 && data >= r.PartMax {
					if seg != w {
						c.Parts = append(c.Parts, r.part(seg))
					}
					seg = r.writer(cut.Header{Kind: cut.KindPart, Machine: r.Machine, Gen: r.Gen, N: r.next, KeyEpoch: 1, Attempt: 1, K: len(c.Parts)})
					data = 0
				}
				if err := seg.Data(r.T.Context(), disk.Index, off, r.Flat[d][off:off+n]); err != nil {
					r.T.Fatal(err)
				}
				data += int(n)
			}
		}
		clear(r.written[d])
	}
	if seg != w {
		c.Parts = append(c.Parts, r.part(seg))
	}
	sealed, raw := r.close(w, c)
	r.put(sealed.Name.Key(), raw)
	p := Point{Ref: c.Ref(sealed.ChainHash), Disks: r.Disks}
	for _, f := range r.Flat {
		p.Flat = append(p.Flat, bytes.Clone(f))
	}
	r.Points = append(r.Points, p)
	r.last, r.next = p.Ref, r.next+1
	return p
}

type bufWriter struct {
	*cut.Writer
	buf *bytes.Buffer
}

func (r *Replica) writer(h cut.Header) bufWriter {
	r.T.Helper()
	buf := &bytes.Buffer{}
	w, err := cut.NewWriter(buf, cut.WriterConfig{Header: h, Key: r.Key})
	if err != nil {
		r.T.Fatal(err)
	}
	return bufWriter{w, buf}
}

func (r *Replica) close(w bufWriter, c *cut.Commit) (cut.Sealed, []byte) {
	r.T.Helper()
	s, err := w.Close(c)
	if err != nil {
		r.T.Fatal(err)
	}
	return s, w.buf.Bytes()
}

func (r *Replica) part(w bufWriter) cut.PartRef {
	s, raw := r.close(w, nil)
	r.put(s.Name.Key(), raw)
	return cut.PartRef{Attempt: s.Name.Attempt, K: s.Name.K, Size: s.Size, BLAKE3: s.BLAKE3}
}

func (r *Replica) tiles(d cut.Disk, flat []byte) []cut.TileRef {
	var refs []cut.TileRef
	for off := int64(0); off < d.Size; off += cut.TileSize {
		body := flat[off:min(off+cut.TileSize, d.Size)]
		if len(bytes.Trim(body, "\x00")) == 0 {
			continue
		}
		w := r.writer(cut.Header{Kind: cut.KindTile, Machine: r.Machine, Gen: r.Gen, N: r.next, KeyEpoch: 1, Disk: d.Index, Tile: uint32(off / cut.TileSize)})
		if err := w.Data(r.T.Context(), d.Index, off, body); err != nil {
			r.T.Fatal(err)
		}
		s, raw := r.close(w, nil)
		r.put(s.Name.Key(), raw)
		refs = append(refs, cut.TileRef{Disk: d.Index, Tile: s.Name.Tile, UID: s.Name.UID, Gen: r.Gen, N: r.next, Size: s.Size, BLAKE3: s.BLAKE3})
	}
	return refs
}

func (r *Replica) put(key string, raw []byte) {
	r.T.Helper()
	sum := sha256.Sum256(raw)
	if err := r.Bucket.PutNew(r.T.Context(), key, bytes.NewReader(raw), int64(len(raw)), &sum); err != nil {
		r.T.Fatalf("put %s: %v", key, err)
	}
}

// Replace overwrites an object with other bytes, which no bucket allows
// anybody but a test: it stands for damage.
func (r *Replica) Replace(key string, change func([]byte) []byte) {
	r.T.Helper()
	ctx := context.Background()
	raw, err := objstore.ReadAll(ctx, r.Bucket, key, 1<<30)
	if err == nil {
		err = r.Bucket.Delete(ctx, key)
	}
	if err != nil {
		r.T.Fatal(err)
	}
	if raw = change(bytes.Clone(raw)); raw != nil {
		r.put(key, raw)
	}
}

// Keys lists all objects.
func (r *Replica) Keys() []string {
	r.T.Helper()
	var keys []string
	if err := r.Bucket.List(r.T.Context(), "", func(i objstore.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		r.T.Fatal(err)
	}
	return keys
}

// Compare opens a point and compares every disk with the oracle.
func (r *Replica) Compare(ctx context.Context, s *store.Store, p Point) error {
	v, err := s.OpenPoint(ctx, r.Machine, p.Ref.Gen, p.Ref.N)
	if err != nil {
		return err
	}
	defer v.Close()
	for i, d := range v.Disks() {
		got := make([]byte, d.Size)
		if err := v.ReadAt(ctx, d.ID, got, 0); err != nil {
			return err
		}
		if !bytes.Equal(got, p.Flat[i]) {
			return errors.New("disk " + d.ID + " differs from the source at cut " + dr.PointName(p.Ref.Gen, p.Ref.N))
		}
		off := int64(0)
		err := v.Extents(ctx, d.ID, 0, d.Size, func(o, n int64, zero bool) error {
			if o != off || n <= 0 {
				return errors.New("extents leave a gap")
			}
			if zero && len(bytes.Trim(p.Flat[i][o:o+n], "\x00")) != 0 {
				return errors.New("an extent is called zero and is not")
			}
			off = o + n
			return nil
		})
		if err != nil {
			return err
		}
		if off != d.Size {
			return errors.New("extents do not cover disk " + d.ID)
		}
	}
	return nil
}
