package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"holdfast/bench/internal/rawhost"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/file"
	"holdfast/internal/store"
)

// replica is a VM under replication into a directory.
type replica struct {
	*vaultSide
	dir    string // of the bucket
	bucket *file.Bucket
	sink   *sink
	rep    *capture.Replicator
	assign capture.Assignment
	cuts   int
	cancel context.CancelFunc
	done   chan error
}

// vaultSide is what the vault knows of a machine.
type vaultSide struct {
	machine dr.MachineID
	key     cut.VaultPrivateKey
}

func newMachine(ctx context.Context, b objstore.Bucket) (*vaultSide, error) {
	key, err := cut.GenerateVaultKey()
	if err != nil {
		return nil, err
	}
	v := &vaultSide{machine: dr.MachineID(uuid.NewString()), key: key}
	return v, store.WriteGeneration(ctx, b, cut.GenInfo{Machine: v.machine, Gen: 1, Agent: "bench", Reason: "protect", Time: time.Now().UTC()})
}

// open opens the machine's recovery point n.
func (v *vaultSide) open(ctx context.Context, b objstore.Reader, n uint64) (*store.View, error) {
	return store.New(store.Config{Bucket: b, Keys: store.NewKeyring(b, v.key)}).OpenPoint(ctx, v.machine, 1, n)
}

// startReplica begins to replicate src below dir and returns when the initial replication is committed.
func startReplica(ctx context.Context, dir string, src capture.Source) (_ *replica, err error) {
	r := &replica{dir: filepath.Join(dir, "bucket"), done: make(chan error, 1)}
	if r.bucket, err = file.Open(ctx, file.Config{Dir: r.dir, Create: true}); err != nil {
		return nil, err
	}
	r.sink = &sink{b: r.bucket}
	ctx, cancel := context.WithCancel(ctx)
	r.cancel = cancel
	fail := func(err error) (*replica, error) {
		cancel()
		return nil, errors.Join(err, r.bucket.Close())
	}
	if r.vaultSide, err = newMachine(ctx, r.bucket); err != nil {
		return fail(err)
	}
	if r.rep, err = capture.New(capture.Config{Machine: r.machine, Dir: filepath.Join(dir, "agent"), Source: src, Sink: r.sink}); err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "agent"), 0o700); err != nil {
		return fail(err)
	}
	r.assign = capture.Assignment{VM: rawhost.VMID, Disks: []string{rawhost.DiskID}, Gen: 1, CopyFrequency: time.Hour, VaultKey: r.key.Public()}
	r.rep.Assign(r.assign)
	go func() { r.done <- r.rep.Run(ctx) }()
	ref, _, err := r.rep.AwaitInitial(ctx)
	if err == nil && ref.N != 0 {
		err = fmt.Errorf("the initial replication committed cut %d", ref.N)
	}
	if err != nil {
		return nil, errors.Join(err, r.stop())
	}
	r.cuts = 1
	return r, nil
}

// cycle makes one cut and waits until it is committed.
func (r *replica) cycle(ctx context.Context) (capture.Cycle, error) {
	ref, _, err := r.rep.Drain(ctx)
	if err != nil {
		return capture.Cycle{}, err
	}
	r.cuts++
	for _, c := range r.rep.Status().History {
		if c.Ref == ref {
			return c, nil
		}
	}
	return capture.Cycle{}, fmt.Errorf("cut %d is not in the history", ref.N)
}

// tip is the number of the newest cut.
func (r *replica) tip() uint64 { return uint64(r.cuts - 1) }

// stop ends the replication and waits for it; it may be called twice.
func (r *replica) stop() error {
	if r.cancel == nil {
		return nil
	}
	r.cancel()
	r.cancel = nil
	return errors.Join(<-r.done, r.bucket.Close())
}

func (b *runner) closeReplica() error {
	var err error
	if b.r != nil {
		err = b.r.stop()
	}
	if b.src != nil {
		err = errors.Join(err, b.src.Close())
	}
	b.r, b.src = nil, nil
	return err
}

// sink puts objects into a bucket and counts them.
type sink struct {
	b           objstore.Bucket
	puts, bytes atomic.Int64
}

// Put implements capture.Sink.
func (s *sink) Put(ctx context.Context, name string, body io.ReaderAt, size int64, sum [32]byte) error {
	if err := s.b.PutNew(ctx, name, io.NewSectionReader(body, 0, size), size, &sum); err != nil {
		return err // a conflict can't be: nothing is sent twice here
	}
	s.puts.Add(1)
	s.bytes.Add(size)
	return nil
}

// counting is a bucket that counts what is asked of it and answers late.
type counting struct {
	objstore.Reader
	delay              time.Duration
	gets, lists, bytes atomic.Int64
}

func (c *counting) wait(ctx context.Context) error {
	if c.delay == 0 {
		return nil
	}
	t := time.NewTimer(c.delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func (c *counting) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	c.gets.Add(1)
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	rc, err := c.Reader.Get(ctx, key, off, length)
	if err != nil {
		return nil, err
	}
	return &countedBody{rc, &c.bytes}, nil
}

func (c *counting) Head(ctx context.Context, key string) (objstore.Info, error) {
	c.gets.Add(1)
	if err := c.wait(ctx); err != nil {
		return objstore.Info{}, err
	}
	return c.Reader.Head(ctx, key)
}

func (c *counting) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	c.lists.Add(1)
	if err := c.wait(ctx); err != nil {
		return err
	}
	return c.Reader.List(ctx, prefix, fn)
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// tileSet writes tile images of a machine and the base cut that lists them, as an initial replication does.
type tileSet struct {
	*vaultSide
	b     objstore.Bucket
	epoch cut.EpochKey
	codec cut.Codec
	size  int64 // of the disk
	refs  []cut.TileRef
	bytes int64
}

func newTileSet(ctx context.Context, b objstore.Bucket, size int64, codec cut.Codec) (*tileSet, error) {
	m, err := newMachine(ctx, b)
	if err != nil {
		return nil, err
	}
	t := &tileSet{vaultSide: m, b: b, epoch: cut.NewEpochKey(), codec: codec, size: size}
	wrap, err := cut.SealEpochKey(m.key.Public(), m.machine, 1, t.epoch)
	if err != nil {
		return nil, err
	}
	return t, b.PutNew(ctx, cut.KeyObject(m.machine, 1), bytes.NewReader(wrap), int64(len(wrap)), nil)
}

func (t *tileSet) put(ctx context.Context, w *cut.Writer, buf *bytes.Buffer, c *cut.Commit) (cut.Sealed, error) {
	s, err := w.Close(c)
	if err != nil {
		return s, err
	}
	t.bytes += s.Size
	sum := [32]byte(s.SHA256)
	return s, t.b.PutNew(ctx, s.Name.Key(), bytes.NewReader(buf.Bytes()), s.Size, &sum)
}

// tile stores one tile image; fill writes its data. buf is reused.
func (t *tileSet) tile(ctx context.Context, tile uint32, buf *bytes.Buffer, fill func(w *cut.Writer, base int64) error) error {
	buf.Reset()
	w, err := cut.NewWriter(buf, cut.WriterConfig{
		Header: cut.Header{Kind: cut.KindTile, Machine: t.machine, Gen: 1, KeyEpoch: 1, Tile: tile}, Key: t.epoch, Codec: t.codec,
	})
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := fill(w, int64(tile)*cut.TileSize); err != nil {
		return err
	}
	s, err := t.put(ctx, w, buf, nil)
	if err != nil {
		return err
	}
	t.refs = append(t.refs, cut.TileRef{Tile: tile, UID: s.Name.UID, Gen: 1, Size: s.Size, BLAKE3: s.BLAKE3})
	return nil
}

// commit makes the tiles recovery point 0.
func (t *tileSet) commit(ctx context.Context) error {
	var buf bytes.Buffer
	w, err := cut.NewWriter(&buf, cut.WriterConfig{Header: cut.Header{Kind: cut.KindCut, Machine: t.machine, Gen: 1, KeyEpoch: 1}, Key: t.epoch, Codec: t.codec})
	if err != nil {
		return err
	}
	defer w.Abort()
	_, err = t.put(ctx, w, &buf, &cut.Commit{
		Gen: 1, Base: true, Time: time.Now().UTC(), Consistency: dr.CrashConsistent, Tiles: t.refs,
		Disks: []cut.Disk{{ID: rawhost.DiskID, Size: t.size}}, VM: cut.VMRecord{Name: "bench", UUID: rawhost.VMID, Generation: 1, CPUs: 2, MemoryMB: 1024},
	})
	return err
}
