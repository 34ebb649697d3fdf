package objstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Check is one promise of the bucket contract in executable form. Run uses only
// keys under prefix, which ends in a slash and holds nothing yet, and leaves
// behind what it created. It returns nil if the promise was kept.
type Check struct {
	Name string
	Slow bool // moves tens of megabytes or thousands of objects
	Run  func(ctx context.Context, b Bucket, prefix string) error
}

// CheckResult is the outcome of one Check.
type CheckResult struct {
	Name     string
	Err      error // nil if the promise was kept
	Duration time.Duration
}

// Validate runs all Checks on b, each under a fresh folder of prefix (empty, or
// ending in a slash), and deletes what they created. The results are complete
// also when checks failed; the error joins the failures of the checks and of
// the cleaning up, and is nil if b keeps the contract. It ends early with ctx.
// It moves about 120 MiB and 3,000 small objects.
func Validate(ctx context.Context, b Bucket, prefix string) ([]CheckResult, error) {
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		return nil, fmt.Errorf("validate bucket: %w: the prefix %q does not end in a slash", ErrInvalidKey, prefix)
	}
	if err := ValidatePrefix(prefix); err != nil {
		return nil, fmt.Errorf("validate bucket: %w", err)
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	folder := prefix + "validate-" + hex.EncodeToString(id[:]) + "/"

	var results []CheckResult
	var failures []error
	for _, c := range Checks() {
		if err := ctx.Err(); err != nil {
			failures = append(failures, err)
			break
		}
		start := time.Now()
		err := c.Run(ctx, b, folder+c.Name+"/")
		results = append(results, CheckResult{Name: c.Name, Err: err, Duration: time.Since(start)})
		if err != nil {
			failures = append(failures, fmt.Errorf("check %s: %w", c.Name, err))
		}
	}
	// What was created is deleted even if the run was cancelled.
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	if err := DeletePrefix(cleanup, b, folder); err != nil {
		failures = append(failures, fmt.Errorf("clean up %q: %w", folder, err))
	}
	return results, errors.Join(failures...)
}

// DeletePrefix deletes every object under prefix, which must not be empty.
func DeletePrefix(ctx context.Context, b Bucket, prefix string) error {
	if prefix == "" {
		return fmt.Errorf("%w: an empty prefix would delete the whole store", ErrInvalidKey)
	}
	keys, err := listKeys(ctx, b, prefix)
	if err != nil {
		return err
	}
	return parallel(len(keys), 8, func(i int) error { return b.Delete(ctx, keys[i]) })
}

func listKeys(ctx context.Context, r Reader, prefix string) ([]string, error) {
	var keys []string
	err := r.List(ctx, prefix, func(info Info) error {
		keys = append(keys, info.Key)
		return nil
	})
	return keys, err
}

// parallel calls f(0..n-1), at most width at once, and joins the errors.
func parallel(n, width int, f func(i int) error) error {
	errs := make(chan error, n)
	slots := make(chan struct{}, width)
	for i := range n {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			errs <- f(i)
		}()
	}
	var all []error
	for range n {
		if err := <-errs; err != nil {
			all = append(all, err)
		}
	}
	// A handful tells as much as thousands.
	if len(all) > 5 {
		all = append(all[:5:5], fmt.Errorf("and %d more errors", len(all)-5))
	}
	return errors.Join(all...)
}

// pattern is a body of any size that costs no memory: 8-byte words that depend
// on the seed and their position, so that any shift or mix-up shows.
type pattern struct {
	seed uint64
	size int64
}

func (p pattern) ReadAt(buf []byte, off int64) (int, error) {
	n := 0
	for n < len(buf) && off < p.size {
		x := (p.seed + uint64(off/8) + 1) * 0x9e3779b97f4a7c15
		x ^= x >> 29
		x *= 0xbf58476d1ce4e5b9
		x ^= x >> 32
		for b := off % 8; b < 8 && n < len(buf) && off < p.size; b++ {
			buf[n] = byte(x >> (8 * b))
			n++
			off++
		}
	}
	if n < len(buf) {
		return n, io.EOF
	}
	return n, nil
}

func (p pattern) bytes() []byte {
	buf := make([]byte, p.size)
	_, _ = p.ReadAt(buf, 0) // fills buf by construction
	return buf
}

// expectBytes reads a range of an object and compares it.
func expectBytes(ctx context.Context, r Reader, key string, off, length int64, want []byte) error {
	got, err := readRange(ctx, r, key, off, length)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		return fmt.Errorf("get %q from %d length %d: %d bytes, wanted %d; first difference at %d", key, off, length, len(got), len(want), at)
	}
	return nil
}

// expectAbsent checks that nothing of key can be seen.
func expectAbsent(ctx context.Context, r Reader, key string) error {
	if _, err := r.Head(ctx, key); !errors.Is(err, ErrNotExist) {
		return fmt.Errorf("head of absent %q: got %v, wanted ErrNotExist", key, err)
	}
	if _, err := readRange(ctx, r, key, 0, -1); !errors.Is(err, ErrNotExist) {
		return fmt.Errorf("get of absent %q: got %v, wanted ErrNotExist", key, err)
	}
	keys, err := listKeys(ctx, r, key)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k == key {
			return fmt.Errorf("list shows absent %q", key)
		}
	}
	return nil
}

func expectKind(what string, err, want error) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("%s: got error %v, wanted %v", what, err, want)
	}
	if !errors.Is(want, ErrNotExist) && errors.Is(err, ErrNotExist) {
		return fmt.Errorf("%s: error %v also claims absence", what, err)
	}
	return nil
}

func putBytes(ctx context.Context, b Bucket, key string, data []byte) error {
	return b.PutNew(ctx, key, bytes.NewReader(data), int64(len(data)), nil)
}
