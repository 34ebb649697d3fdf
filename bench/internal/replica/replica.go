// Package replica is a machine under replication for the benchmark: by a real
// capture.Replicator into a directory, or by writing the format itself where
// only what is stored matters. It promises stores as agents leave them.
package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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

// Replica is a VM under replication into a directory.
type Replica struct {
	*Vault
	Dir    string // of the bucket
	Bucket *file.Bucket
	Sink   *Sink
	rep    *capture.Replicator
	source capture.Source
	assign capture.Assignment
	Cuts   int // that were made
	tip    uint64
	cancel context.CancelFunc
	done   chan error
}

// Vault is what the vault knows of a machine.
type Vault struct {
	Machine dr.MachineID
	Key     cut.VaultPrivateKey
}

func newVault(ctx context.Context, b objstore.Bucket) (*Vault, error) {
	key, err := cut.GenerateVaultKey()
	if err != nil {
		return nil, err
	}
	v := &Vault{Machine: dr.MachineID(uuid.NewString()), Key: key}
	return v, store.WriteGeneration(ctx, b, cut.GenInfo{Machine: v.Machine, Gen: 1, Agent: "bench", Reason: "protect", Time: time.Now().UTC()})
}

// Store reads b with the vault's key.
func (v *Vault) Store(b objstore.Reader) *store.Store {
	return store.New(store.Config{Bucket: b, Keys: store.NewKeyring(b, v.Key)})
}

// Open opens the machine's recovery point n.
func (v *Vault) Open(ctx context.Context, b objstore.Reader, n uint64) (*store.View, error) {
	return v.Store(b).OpenPoint(ctx, v.Machine, 1, n)
}

// Start begins to replicate src below dir and returns when the initial replication is committed.
func Start(ctx context.Context, dir string, src capture.Source) (_ *Replica, err error) {
	r := &Replica{Dir: filepath.Join(dir, "bucket"), done: make(chan error, 1)}
	if r.Bucket, err = file.Open(ctx, file.Config{Dir: r.Dir, Create: true}); err != nil {
		return nil, err
	}
	r.Sink = &Sink{b: r.Bucket}
	ctx, cancel := context.WithCancel(ctx)
	r.cancel = cancel
	fail := func(err error) (*Replica, error) {
		cancel()
		return nil, errors.Join(err, r.Bucket.Close())
	}
	if r.Vault, err = newVault(ctx, r.Bucket); err != nil {
		return fail(err)
	}
	if r.rep, err = capture.New(capture.Config{Machine: r.Machine, Dir: filepath.Join(dir, "agent"), Source: src, Sink: r.Sink}); err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "agent"), 0o700); err != nil {
		return fail(err)
	}
	r.source = src
	r.assign = capture.Assignment{VM: rawhost.VMID, Disks: []string{rawhost.DiskID}, Gen: 1, CopyFrequency: time.Hour, VaultKey: r.Key.Public()}
	r.run(ctx)
	ref, _, err := r.rep.AwaitInitial(ctx)
	if err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	r.Cuts, r.tip = 1, ref.N
	return r, nil
}

func (r *Replica) run(ctx context.Context) {
	r.rep.Assign(r.assign)
	rep := r.rep
	go func() { r.done <- rep.Run(ctx) }()
}

// Reinstall goes on with an agent that has nothing of the old one's state, in a
// new generation: it has to compare the disk with what the vault's digests say of
// the newest point. The comparison begins with the next Cycle. dir is the agent's.
func (r *Replica) Reinstall(ctx context.Context, dir string, d capture.Digests) error {
	s := r.Store(r.Bucket)
	chain, err := s.Chain(ctx, r.Machine)
	if err != nil {
		return err
	}
	tip, ok := chain.Last()
	if !ok {
		return errors.New("the replica has no point to go on from")
	}
	r.cancel()
	r.cancel = nil
	if err := <-r.done; err != nil {
		return errors.Join(err, r.Bucket.Close())
	}
	ctx, r.cancel = context.WithCancel(ctx)
	close := func(err error) error { r.done <- nil; return errors.Join(err, r.Stop()) }
	r.assign.Gen, r.assign.Base, r.assign.BaseDisks = r.assign.Gen+1, tip.Ref, tip.Commit.Disks
	err = store.WriteGeneration(ctx, r.Bucket, cut.GenInfo{Machine: r.Machine, Gen: r.assign.Gen, Base: tip.Ref, Agent: "bench", Reason: "moved", Time: time.Now().UTC()})
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return close(err)
	}
	if r.rep, err = capture.New(capture.Config{Machine: r.Machine, Dir: dir, Source: r.source, Sink: r.Sink, Digests: d}); err != nil {
		return close(err)
	}
	r.run(ctx)
	return nil
}

// Resynchronized reports whether the agent that runs now has made a cut by comparing.
func (r *Replica) Resynchronized() bool {
	return slices.ContainsFunc(r.rep.Status().History, func(c capture.Cycle) bool { return c.Resync })
}

// Gen is the generation that writes now.
func (r *Replica) Gen() dr.Generation { return r.assign.Gen }

// Digests answers for the vault, from one point of a store.
type Digests struct {
	View *store.View
}

// Roots implements capture.Digests.
func (d Digests) Roots(ctx context.Context, at cut.Ref, disk uint16, first, count uint32) ([]capture.TileRoot, error) {
	if err := d.is(at); err != nil {
		return nil, err
	}
	all, err := d.View.TileRoots(ctx, disk, first, count)
	out := make([]capture.TileRoot, 0, len(all))
	for _, t := range all {
		out = append(out, capture.TileRoot{Tile: t.Tile, Zero: t.Zero, Key: t.Key, Root: t.Root})
	}
	return out, err
}

// Blocks implements capture.Digests.
func (d Digests) Blocks(ctx context.Context, at cut.Ref, disk uint16, tile uint32) (cut.DigestKey, [][16]byte, error) {
	if err := d.is(at); err != nil {
		return cut.DigestKey{}, nil, err
	}
	return d.View.TileBlocks(ctx, disk, tile)
}

func (d Digests) is(at cut.Ref) error {
	if have := d.View.Info().Ref; have != at {
		return fmt.Errorf("digests of cut %d were asked for, those of cut %d are at hand", at.N, have.N)
	}
	return nil
}

// Cycle makes one cut and waits until it is committed.
func (r *Replica) Cycle(ctx context.Context) (capture.Cycle, error) {
	ref, _, err := r.rep.Drain(ctx)
	if err != nil {
		return capture.Cycle{}, err
	}
	r.Cuts, r.tip = r.Cuts+1, ref.N
	for _, c := range r.rep.Status().History {
		if c.Ref == ref {
			return c, nil
		}
	}
	return capture.Cycle{}, fmt.Errorf("cut %d is not in the history", ref.N)
}

// Tip is the number of the newest cut.
func (r *Replica) Tip() uint64 { return r.tip }

// Stop ends the replication and waits for it; it may be called twice.
func (r *Replica) Stop() error {
	if r.cancel == nil {
		return nil
	}
	r.cancel()
	r.cancel = nil
	return errors.Join(<-r.done, r.Bucket.Close())
}

// Sink puts objects into a bucket and counts them.
type Sink struct {
	b           objstore.Bucket
	Puts, Bytes atomic.Int64
}

// Put implements capture.Sink.
func (s *Sink) Put(ctx context.Context, name string, body io.ReaderAt, size int64, sum [32]byte) error {
	if err := s.b.PutNew(ctx, name, io.NewSectionReader(body, 0, size), size, &sum); err != nil {
		return err // a conflict can't be: nothing is sent twice here
	}
	s.Puts.Add(1)
	s.Bytes.Add(size)
	return nil
}

// Counting is a bucket that counts what is asked of it and answers late.
type Counting struct {
	objstore.Reader
	Delay              time.Duration
	Gets, Lists, Bytes atomic.Int64
}

func (c *Counting) wait(ctx context.Context) error {
	if c.Delay == 0 {
		return nil
	}
	t := time.NewTimer(c.Delay)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func (c *Counting) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	c.Gets.Add(1)
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	rc, err := c.Reader.Get(ctx, key, off, length)
	if err != nil {
		return nil, err
	}
	return &countedBody{rc, &c.Bytes}, nil
}

func (c *Counting) Head(ctx context.Context, key string) (objstore.Info, error) {
	c.Gets.Add(1)
	if err := c.wait(ctx); err != nil {
		return objstore.Info{}, err
	}
	return c.Reader.Head(ctx, key)
}

func (c *Counting) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	c.Lists.Add(1)
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
