package objstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"testing"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/mem"
)

func FuzzValidateKey(f *testing.F) {
	for _, s := range []string{"v1/m/a/1/cut/0000000000000001.cut", "a", "", "/", "a//b", "..", "a/../b", "A", "con", "com1.x", "a.", strings.Repeat("a/", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		err := objstore.ValidateKey(key)
		if err != nil {
			if !errors.Is(err, objstore.ErrInvalidKey) {
				t.Errorf("error %v is not ErrInvalidKey", err)
			}
			return
		}
		if key == "" || len(key) > objstore.MaxKey || strings.ToLower(key) != key || strings.ContainsAny(key, "\\:*?\"<>| \x00%") {
			t.Errorf("accepted %q", key)
		}
		for seg := range strings.SplitSeq(key, "/") {
			if seg == "" || seg == "." || seg == ".." || len(seg) > objstore.MaxSegment {
				t.Errorf("accepted %q", key)
			}
		}
		// Every leading part of a key is a prefix that can be listed, except
		// where it cuts a segment into the name of a device; a whole segment
		// before a slash is never one.
		for i := range key {
			if err := objstore.ValidatePrefix(key[:i]); err != nil {
				t.Errorf("prefix %q of %q: %v", key[:i], key, err)
			}
		}
	})
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	cause := errors.New("no answer in 30 s")
	err := error(&objstore.Error{Op: "put", Key: "a/b", Kind: objstore.ErrUnavailable, Err: cause})
	if got, want := err.Error(), `put object "a/b": object store is unavailable: no answer in 30 s`; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if !errors.Is(err, objstore.ErrUnavailable) || !errors.Is(err, cause) || errors.Is(err, objstore.ErrNotExist) {
		t.Error("errors.Is does not see kind and cause, and only these")
	}
}

func TestReadAllAndDigest(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	b := mem.New()
	if err := b.PutNew(ctx, "k", strings.NewReader("abc"), 3, nil); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]error{-1: objstore.ErrTooLarge, 0: objstore.ErrTooLarge, 2: objstore.ErrTooLarge, 3: nil, 4: nil, 1<<63 - 1: nil} {
		if got, err := objstore.ReadAll(ctx, b, "k", limit); !errors.Is(err, want) || err == nil && string(got) != "abc" {
			t.Errorf("limit %d: %q, %v", limit, got, err)
		}
	}
	// A body that breaks is an error of ReadAll and of Digest, never a short answer.
	f := fault.New(noDigest{b}, fault.Fault{Op: fault.Get, Kind: fault.Cut, At: 2, More: -1})
	if _, err := objstore.ReadAll(ctx, f, "k", 10); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("ReadAll of a broken body: %v", err)
	}
	if _, err := objstore.Digest(ctx, f, "k"); !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("Digest of a broken body: %v", err)
	}
	f.Verify(t)
}

// noDigest hides the recorded digest, as the file backend has none.
type noDigest struct{ objstore.Bucket }

func (n noDigest) Head(ctx context.Context, key string) (objstore.Info, error) {
	info, err := n.Bucket.Head(ctx, key)
	info.SHA256 = [32]byte{}
	return info, err
}

func TestValidateCleansUp(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs the slow checks")
	}
	ctx := t.Context()
	b := mem.New()
	if err := b.PutNew(ctx, "keep/me", strings.NewReader("x"), 1, nil); err != nil {
		t.Fatal(err)
	}
	results, err := objstore.Validate(ctx, b, "keep/")
	if err != nil || len(results) != len(objstore.Checks()) {
		t.Errorf("%d results, %v", len(results), err)
	}
	var keys []string
	if err := b.List(ctx, "", func(i objstore.Info) error { keys = append(keys, i.Key); return nil }); err != nil || len(keys) != 1 {
		t.Errorf("left behind: %q, %v", keys, err)
	}
	if _, err := objstore.Validate(ctx, b, "no-slash"); !errors.Is(err, objstore.ErrInvalidKey) {
		t.Errorf("prefix without a slash: %v", err)
	}
	if err := objstore.DeletePrefix(ctx, b, ""); !errors.Is(err, objstore.ErrInvalidKey) {
		t.Errorf("delete of everything: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := objstore.Validate(ended, b, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// liar is a bucket that breaks one promise.
type liar struct {
	objstore.Bucket
	put  func(ctx context.Context, b objstore.Bucket, key string, r io.Reader, size int64, sum *[32]byte) error
	get  func(ctx context.Context, b objstore.Bucket, key string, off, length int64) (io.ReadCloser, error)
	head func(ctx context.Context, b objstore.Bucket, key string) (objstore.Info, error)
	list func(ctx context.Context, b objstore.Bucket, prefix string, fn func(objstore.Info) error) error
	del  func(ctx context.Context, b objstore.Bucket, key string) error
}

func (l liar) PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error {
	if l.put != nil {
		return l.put(ctx, l.Bucket, key, r, size, sum)
	}
	return l.Bucket.PutNew(ctx, key, r, size, sum)
}

func (l liar) Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error) {
	if l.get != nil {
		return l.get(ctx, l.Bucket, key, off, length)
	}
	return l.Bucket.Get(ctx, key, off, length)
}

func (l liar) Head(ctx context.Context, key string) (objstore.Info, error) {
	if l.head != nil {
		return l.head(ctx, l.Bucket, key)
	}
	return l.Bucket.Head(ctx, key)
}

func (l liar) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	if l.list != nil {
		return l.list(ctx, l.Bucket, prefix, fn)
	}
	return l.Bucket.List(ctx, prefix, fn)
}

func (l liar) Delete(ctx context.Context, key string) error {
	if l.del != nil {
		return l.del(ctx, l.Bucket, key)
	}
	return l.Bucket.Delete(ctx, key)
}

// lie is a store that breaks a promise, and the checks that must notice.
type lie struct {
	checks string // space-separated
	l      liar
}

func writeLies() map[string]lie {
	overwrite := func(ctx context.Context, b objstore.Bucket, key string, r io.Reader, size int64, sum *[32]byte) error {
		if err := b.Delete(ctx, key); err != nil {
			return err
		}
		return b.PutNew(ctx, key, r, size, sum)
	}
	var slow sync.Mutex
	return map[string]lie{
		"overwrites": {"create-only racing-writers", liar{put: overwrite}},
		"trusts sizes and digests": {"wrong-size-or-digest", liar{put: func(ctx context.Context, b objstore.Bucket, key string, r io.Reader, _ int64, _ *[32]byte) error {
			data, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			return b.PutNew(ctx, key, bytes.NewReader(data), int64(len(data)), nil)
		}}},
		"keeps what it got of a broken body": {"broken-body cancelled-put", liar{put: func(ctx context.Context, b objstore.Bucket, key string, r io.Reader, size int64, sum *[32]byte) error {
			data, err := io.ReadAll(io.LimitReader(r, size+1))
			if err == nil && ctx.Err() == nil {
				return b.PutNew(ctx, key, bytes.NewReader(data), size, sum)
			}
			if putErr := b.PutNew(context.WithoutCancel(ctx), key, bytes.NewReader(data), int64(len(data)), nil); putErr != nil {
				return putErr
			}
			return errors.Join(err, ctx.Err())
		}}},
		"shows objects while they are written": {"never-partial", liar{put: func(ctx context.Context, b objstore.Bucket, key string, r io.Reader, size int64, sum *[32]byte) error {
			slow.Lock()
			defer slow.Unlock()
			half := make([]byte, size/2)
			if _, err := io.ReadFull(r, half); err != nil {
				return err
			}
			if err := b.PutNew(ctx, key, bytes.NewReader(half), size/2, nil); err != nil {
				return err
			}
			rest, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			return overwrite(ctx, b, key, io.MultiReader(bytes.NewReader(half), bytes.NewReader(rest)), size, sum)
		}}},
	}
}

func readLies() map[string]lie {
	return map[string]lie{
		"ignores ranges": {"ranges", liar{get: func(ctx context.Context, b objstore.Bucket, key string, _, _ int64) (io.ReadCloser, error) {
			return b.Get(ctx, key, 0, -1)
		}}},
		"says absent for every error": {"key-grammar cancelled-calls", liar{head: func(ctx context.Context, b objstore.Bucket, key string) (objstore.Info, error) {
			info, err := b.Head(ctx, key)
			if err != nil {
				err = objstore.ErrNotExist
			}
			return info, err
		}}},
		"says unavailable for absent": {"not-exist", liar{get: func(ctx context.Context, b objstore.Bucket, key string, off, length int64) (io.ReadCloser, error) {
			body, err := b.Get(ctx, key, off, length)
			if errors.Is(err, objstore.ErrNotExist) {
				err = objstore.ErrUnavailable
			}
			return body, err
		}}},
		"corrupts": {"round-trip", liar{get: func(ctx context.Context, b objstore.Bucket, key string, off, length int64) (io.ReadCloser, error) {
			return fault.New(b, fault.Fault{Op: fault.Get, Kind: fault.Flip, At: 4095}).Get(ctx, key, off, length)
		}}},
		"corrupts far behind": {"big-object", liar{get: func(ctx context.Context, b objstore.Bucket, key string, off, length int64) (io.ReadCloser, error) {
			return fault.New(b, fault.Fault{Op: fault.Get, Kind: fault.Flip, At: 32<<20 + 7}).Get(ctx, key, off, length)
		}}},
		"lists one page": {"many-keys", liar{list: func(ctx context.Context, b objstore.Bucket, prefix string, fn func(objstore.Info) error) error {
			n, full := 0, errors.New("full")
			err := b.List(ctx, prefix, func(i objstore.Info) error {
				if n++; n > 1000 {
					return full
				}
				return fn(i)
			})
			if errors.Is(err, full) {
				err = nil
			}
			return err
		}}},
		"lists in reverse": {"list-order", liar{list: func(ctx context.Context, b objstore.Bucket, prefix string, fn func(objstore.Info) error) error {
			var all []objstore.Info
			if err := b.List(ctx, prefix, func(i objstore.Info) error { all = append(all, i); return nil }); err != nil {
				return err
			}
			for i := len(all) - 1; i >= 0; i-- {
				if err := fn(all[i]); err != nil {
					return err
				}
			}
			return nil
		}}},
		"wraps the caller's error": {"list-stop", liar{list: func(ctx context.Context, b objstore.Bucket, prefix string, fn func(objstore.Info) error) error {
			if err := b.List(ctx, prefix, fn); err != nil {
				return fmt.Errorf("list: %w", err)
			}
			return nil
		}}},
		"complains about absent objects": {"delete", liar{del: func(ctx context.Context, b objstore.Bucket, key string) error {
			if _, err := b.Head(ctx, key); err != nil {
				return err
			}
			return b.Delete(ctx, key)
		}}},
		"does not delete": {"delete list-stop", liar{del: func(context.Context, objstore.Bucket, string) error { return nil }}},
	}
}

// TestChecksCanFail proves of each check that it catches the store that breaks
// its promise.
func TestChecksCanFail(t *testing.T) {
	t.Parallel()
	liars := writeLies()
	maps.Copy(liars, readLies())
	caught := make(map[string]bool)
	for name, tt := range liars {
		for _, want := range strings.Fields(tt.checks) {
			caught[want] = true
			for _, c := range objstore.Checks() {
				if c.Name != want || c.Slow && testing.Short() {
					continue
				}
				tt.l.Bucket = mem.New()
				if err := c.Run(t.Context(), tt.l, "x/"); err == nil {
					t.Errorf("check %s passes a store that %s", want, name)
				}
			}
		}
	}
	for _, c := range objstore.Checks() {
		if !caught[c.Name] {
			t.Errorf("no liar proves that check %s can fail", c.Name)
		}
	}
}
