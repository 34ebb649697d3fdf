// Package mem is an object store in memory, for tests and simulations. It keeps
// the whole contract of objstore except durability: it lives and dies with the
// process.
package mem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/objstore"
)

// Bucket is a store in memory. The zero value is empty and ready. It must not
// be copied after first use.
type Bucket struct {
	// Capacity is the greatest number of bytes of all objects together; a put
	// beyond it fails with ErrNoSpace. 0 means no limit. Set it before use.
	Capacity int64

	mu      sync.RWMutex
	used    int64
	objects map[string]object
}

type object struct {
	data []byte // never written to after it is stored
	info objstore.Info
}

var (
	_ objstore.Bucket      = (*Bucket)(nil)
	_ objstore.AfterLister = (*Bucket)(nil)
)

// New returns an empty store without a limit.
func New() *Bucket { return &Bucket{} }

// PutNew creates an object; see objstore.Bucket.
func (b *Bucket) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	fail := func(kind, cause error) error {
		return &objstore.Error{Op: "put", Key: key, Kind: kind, Err: cause}
	}
	if err := objstore.ValidateKey(key); err != nil {
		return fail(nil, err)
	}
	if size < 0 {
		return fail(objstore.ErrMismatch, fmt.Errorf("announced size is %d", size))
	}
	if err := b.admit(ctx, key, size); err != nil {
		return fail(nil, err)
	}
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(ctxReader{ctx, r}, size))
	if err != nil {
		return fail(nil, fmt.Errorf("read body: %w", err))
	}
	if n < size {
		return fail(objstore.ErrMismatch, fmt.Errorf("body has %d bytes, announced were %d", n, size))
	}
	if extra, err := io.CopyN(io.Discard, ctxReader{ctx, r}, 1); extra > 0 {
		return fail(objstore.ErrMismatch, fmt.Errorf("body has more than the announced %d bytes", size))
	} else if !errors.Is(err, io.EOF) {
		return fail(nil, fmt.Errorf("read body: %w", err))
	}
	digest := sha256.Sum256(buf.Bytes())
	if sum != nil && *sum != digest {
		return fail(objstore.ErrMismatch, fmt.Errorf("body has SHA-256 %x, announced was %x", digest, *sum))
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.admitLocked(ctx, key, size); err != nil {
		return fail(nil, err)
	}
	if b.objects == nil {
		b.objects = make(map[string]object)
	}
	b.used += size
	b.objects[key] = object{
		data: buf.Bytes(),
		info: objstore.Info{Key: key, Size: size, ModTime: time.Now(), SHA256: digest},
	}
	return nil
}

func (b *Bucket) admit(ctx context.Context, key string, size int64) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.admitLocked(ctx, key, size)
}

func (b *Bucket) admitLocked(ctx context.Context, key string, size int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, taken := b.objects[key]; taken {
		return objstore.ErrExists
	}
	if b.Capacity > 0 && size > b.Capacity-b.used {
		return fmt.Errorf("%w: %d of %d bytes are used, %d more were asked for", objstore.ErrNoSpace, b.used, b.Capacity, size)
	}
	return nil
}

func (b *Bucket) lookup(ctx context.Context, op, key string) (object, error) {
	if err := objstore.ValidateKey(key); err != nil {
		return object{}, &objstore.Error{Op: op, Key: key, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return object{}, &objstore.Error{Op: op, Key: key, Err: err}
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	o, ok := b.objects[key]
	if !ok {
		return object{}, &objstore.Error{Op: op, Key: key, Kind: objstore.ErrNotExist}
	}
	return o, nil
}

// Get reads a range; see objstore.Reader.
func (b *Bucket) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	o, err := b.lookup(ctx, "get", key)
	if err != nil {
		return nil, err
	}
	size := int64(len(o.data))
	if off < 0 || off > size {
		return nil, &objstore.Error{Op: "get", Key: key, Kind: objstore.ErrRange, Err: fmt.Errorf("offset %d of %d", off, size)}
	}
	if length < 0 || length > size-off {
		length = size - off
	}
	return io.NopCloser(ctxReader{ctx, bytes.NewReader(o.data[off : off+length])}), nil
}

// Head describes an object; see objstore.Reader.
func (b *Bucket) Head(ctx context.Context, key string) (objstore.Info, error) {
	o, err := b.lookup(ctx, "head", key)
	return o.info, err
}

// List lists a snapshot of the keys taken at its start; see objstore.Reader.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	return b.ListAfter(ctx, prefix, "", fn)
}

// ListAfter lists the keys greater than after; see objstore.AfterLister.
func (b *Bucket) ListAfter(ctx context.Context, prefix, after string, fn func(objstore.Info) error) error {
	if err := objstore.ValidatePrefix(prefix); err != nil {
		return &objstore.Error{Op: "list", Key: prefix, Err: err}
	}
	var found []objstore.Info
	b.mu.RLock()
	for key, o := range b.objects {
		if strings.HasPrefix(key, prefix) && key > after {
			found = append(found, o.info)
		}
	}
	b.mu.RUnlock()
	slices.SortFunc(found, func(x, y objstore.Info) int { return strings.Compare(x.Key, y.Key) })
	for _, info := range found {
		if err := ctx.Err(); err != nil {
			return &objstore.Error{Op: "list", Key: prefix, Err: err}
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return &objstore.Error{Op: "list", Key: prefix, Err: err}
	}
	return nil
}

// Delete removes an object; see objstore.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := objstore.ValidateKey(key); err != nil {
		return &objstore.Error{Op: "delete", Key: key, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return &objstore.Error{Op: "delete", Key: key, Err: err}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= int64(len(b.objects[key].data))
	delete(b.objects, key)
	return nil
}

// Used returns the number of bytes of all objects together.
func (b *Bucket) Used() int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.used
}

// ctxReader stops a body when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
