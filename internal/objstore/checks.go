package objstore

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
)

// Checks returns the conformance checks of the contract, in the order in which
// they are best run: later ones rely on what earlier ones proved.
func Checks() []Check {
	return []Check{
		{Name: "round-trip", Run: checkRoundTrip},
		{Name: "ranges", Run: checkRanges},
		{Name: "not-exist", Run: checkNotExist},
		{Name: "key-grammar", Run: checkKeyGrammar},
		{Name: "create-only", Run: checkCreateOnly},
		{Name: "racing-writers", Run: checkRacingWriters},
		{Name: "never-partial", Run: checkNeverPartial},
		{Name: "wrong-size-or-digest", Run: checkMismatch},
		{Name: "broken-body", Run: checkBrokenBody},
		{Name: "cancelled-put", Run: checkCancelledPut},
		{Name: "cancelled-calls", Run: checkCancelledCalls},
		{Name: "list-order", Run: checkListOrder},
		{Name: "list-stop", Run: checkListStop},
		{Name: "delete", Run: checkDelete},
		{Name: "big-object", Slow: true, Run: checkBigObject},
		{Name: "many-keys", Slow: true, Run: checkManyKeys},
	}
}

func readRange(ctx context.Context, r Reader, key string, off, length int64) ([]byte, error) {
	body, err := r.Get(ctx, key, off, length)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(body)
	return data, errors.Join(err, body.Close())
}

func checkRoundTrip(ctx context.Context, b Bucket, prefix string) error {
	for i, size := range []int64{0, 1, 7, 4096, 65537, 1 << 20} {
		p := pattern{seed: uint64(i), size: size}
		data := p.bytes()
		sum := sha256.Sum256(data)
		key := fmt.Sprintf("%ssize-%d.seg", prefix, size)
		if err := b.PutNew(ctx, key, bytes.NewReader(data), size, &sum); err != nil {
			return err
		}
		info, err := b.Head(ctx, key)
		if err != nil {
			return err
		}
		if info.Key != key || info.Size != size || info.ModTime.IsZero() {
			return fmt.Errorf("head %q: got %+v, wanted size %d and a time", key, info, size)
		}
		if info.SHA256 != [32]byte{} && info.SHA256 != sum {
			return fmt.Errorf("head %q: recorded SHA-256 %x, content has %x", key, info.SHA256, sum)
		}
		if err := expectBytes(ctx, b, key, 0, -1, data); err != nil {
			return err
		}
		if info, err = Digest(ctx, b, key); err != nil || info.SHA256 != sum || info.Size != size {
			return fmt.Errorf("digest of %q: got %x, %d bytes, error %v; wanted %x", key, info.SHA256, info.Size, err, sum)
		}
		if got, err := ReadAll(ctx, b, key, size); err != nil || !bytes.Equal(got, data) {
			return fmt.Errorf("read all of %q: %d bytes, error %v", key, len(got), err)
		}
		if size > 0 {
			_, err := ReadAll(ctx, b, key, size-1)
			if err := expectKind("read all over the limit", err, ErrTooLarge); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkRanges(ctx context.Context, b Bucket, prefix string) error {
	const size = 100_000
	data := pattern{seed: 9, size: size}.bytes()
	key := prefix + "object.seg"
	if err := putBytes(ctx, b, key, data); err != nil {
		return err
	}
	for _, r := range []struct{ off, length, want int64 }{
		{0, -1, size}, {0, size, size}, {0, 1, 1}, {0, 0, 0}, {1, 0, 0},
		{size - 1, -1, 1}, {size - 1, 1, 1}, {size - 1, 2, 1}, {size, -1, 0}, {size, 0, 0}, {size, 5, 0},
		{size - 64, 64, 64}, {4096, 65536, 65536}, {0, size + 1, size}, {1, 1 << 62, size - 1}, {50_001, -9, size - 50_001},
	} {
		if err := expectBytes(ctx, b, key, r.off, r.length, data[r.off:r.off+r.want]); err != nil {
			return err
		}
	}
	for _, off := range []int64{size + 1, 1 << 62, -1, -size} {
		_, err := readRange(ctx, b, key, off, 1)
		if err := expectKind(fmt.Sprintf("get from %d of %d", off, size), err, ErrRange); err != nil {
			return err
		}
	}
	empty := prefix + "empty.seg"
	if err := putBytes(ctx, b, empty, nil); err != nil {
		return err
	}
	if err := expectBytes(ctx, b, empty, 0, 10, nil); err != nil {
		return err
	}
	_, err := readRange(ctx, b, empty, 1, 1)
	return expectKind("get from 1 of an empty object", err, ErrRange)
}

func checkNotExist(ctx context.Context, b Bucket, prefix string) error {
	if err := putBytes(ctx, b, prefix+"here", []byte("x")); err != nil {
		return err
	}
	for _, key := range []string{"not-here", "her", "here0", "no/such/folder/object", "here/below"} {
		if err := expectAbsent(ctx, b, prefix+key); err != nil {
			return err
		}
	}
	if err := putBytes(ctx, b, prefix+"folder/object", []byte("x")); err != nil {
		return err
	}
	// A folder is not an object.
	if err := expectAbsent(ctx, b, prefix+"folder"); err != nil {
		return err
	}
	if err := b.Delete(ctx, prefix+"folder"); err != nil {
		return fmt.Errorf("delete of what is only a folder: %w", err)
	}
	_, err := b.Head(ctx, prefix+"folder/object")
	return err
}

func checkKeyGrammar(ctx context.Context, b Bucket, prefix string) error {
	good := []string{"a", "0", "-", "_", "a-b_c.d", ".hidden", "a/b/c", "x..y", "a.cut", strings.Repeat("n", MaxSegment)}
	for _, key := range good {
		key = prefix + "good/" + key
		if len(key) > MaxKey {
			continue
		}
		if err := putBytes(ctx, b, key, []byte(key)); err != nil {
			return err
		}
		if err := expectBytes(ctx, b, key, 0, -1, []byte(key)); err != nil {
			return err
		}
		if err := b.Delete(ctx, key); err != nil {
			return err
		}
	}
	long := prefix + strings.Repeat("long/", MaxKey/5)
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a.", "A", "é", "a b", "a\x00b", "a\\b", "a:b", "a?b", "a%2fb", "nul", "a/com1.cut",
		strings.Repeat("n", MaxSegment+1), long + "x",
	} {
		err := putBytes(ctx, b, key, []byte("x"))
		_, headErr := b.Head(ctx, key)
		_, getErr := readRange(ctx, b, key, 0, -1)
		for op, err := range map[string]error{"put": err, "head": headErr, "get": getErr, "delete": b.Delete(ctx, key)} {
			if err := expectKind(fmt.Sprintf("%s of key %.40q", op, key), err, ErrInvalidKey); err != nil {
				return err
			}
		}
	}
	for _, bad := range []string{"/", "A", "a//", "../", "a/../", "a\n"} {
		_, err := listKeys(ctx, b, bad)
		if err := expectKind(fmt.Sprintf("list of prefix %q", bad), err, ErrInvalidKey); err != nil {
			return err
		}
	}
	return nil
}

func checkCreateOnly(ctx context.Context, b Bucket, prefix string) error {
	key, first := prefix+"cut/0000000000000001.cut", []byte("the first content")
	if err := putBytes(ctx, b, key, first); err != nil {
		return err
	}
	for _, again := range [][]byte{first, []byte("another, longer content"), nil} {
		if err := expectKind("second put", putBytes(ctx, b, key, again), ErrExists); err != nil {
			return err
		}
		if err := expectBytes(ctx, b, key, 0, -1, first); err != nil {
			return err
		}
	}
	return nil
}

func checkRacingWriters(ctx context.Context, b Bucket, prefix string) error {
	const rounds, writers = 20, 8
	for round := range rounds {
		key := fmt.Sprintf("%sround-%d/object", prefix, round)
		errs := make([]error, writers)
		err := parallel(writers, writers, func(i int) error {
			// Sizes differ too, so a mixture of two bodies shows.
			errs[i] = putBytes(ctx, b, key, pattern{seed: uint64(i) << 32, size: 20_000 + int64(i)}.bytes())
			return nil
		})
		if err != nil {
			return err
		}
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				return fmt.Errorf("writers %d and %d of %q both succeeded", winner, i, key)
			case err == nil:
				winner = i
			case !errors.Is(err, ErrExists):
				return fmt.Errorf("losing writer: %w", err)
			}
		}
		if winner < 0 {
			return fmt.Errorf("no writer of %q succeeded", key)
		}
		want := pattern{seed: uint64(winner) << 32, size: 20_000 + int64(winner)}.bytes()
		if err := expectBytes(ctx, b, key, 0, -1, want); err != nil {
			return fmt.Errorf("content is not the winner's: %w", err)
		}
		if keys, err := listKeys(ctx, b, key); err != nil || len(keys) != 1 {
			return fmt.Errorf("list %q: %q, error %v", key, keys, err)
		}
	}
	return nil
}

// checkNeverPartial reads all the time while objects are written slowly.
func checkNeverPartial(ctx context.Context, b Bucket, prefix string) error {
	for round := range 5 {
		key := fmt.Sprintf("%sround-%d", prefix, round)
		data := pattern{seed: uint64(round), size: 300_000}.bytes()
		done := make(chan error, 1)
		var reads sync.WaitGroup
		look := make(chan chan struct{})
		readErrs := make(chan error, 64)
		body := &stepReader{r: bytes.NewReader(data), n: 30_000, each: func(int64) error {
			// One look for each piece of the body, before the put gets more of it. A
			// store may make lookers wait for the put, so the body does not wait for ever.
			seen := make(chan struct{})
			patience := time.NewTimer(time.Second)
			defer patience.Stop()
			select {
			case look <- seen:
			case <-patience.C:
				return nil
			}
			select {
			case <-seen:
			case <-patience.C:
			}
			return nil
		}}
		reads.Go(func() {
			for seen := range look {
				if err := partialLook(ctx, b, key, data); err != nil {
					select {
					case readErrs <- err:
					default:
					}
				}
				close(seen)
			}
		})
		go func() { done <- b.PutNew(ctx, key, body, int64(len(data)), nil) }()
		err := <-done
		close(look)
		reads.Wait()
		close(readErrs)
		if err := errors.Join(err, <-readErrs); err != nil {
			return err
		}
		if err := expectBytes(ctx, b, key, 0, -1, data); err != nil {
			return err
		}
	}
	return nil
}

func partialLook(ctx context.Context, b Bucket, key string, data []byte) error {
	got, err := readRange(ctx, b, key, 0, -1)
	if err == nil && !bytes.Equal(got, data) {
		return fmt.Errorf("%q was readable with %d of %d bytes during its put", key, len(got), len(data))
	}
	if err != nil && !errors.Is(err, ErrNotExist) {
		return err
	}
	err = b.List(ctx, key, func(info Info) error {
		if info.Size != int64(len(data)) {
			return fmt.Errorf("%q was listed with %d of %d bytes during its put", key, info.Size, len(data))
		}
		return nil
	})
	return err
}

func checkMismatch(ctx context.Context, b Bucket, prefix string) error {
	data := pattern{seed: 3, size: 70_000}.bytes()
	sum := sha256.Sum256(data)
	wrong := sum
	wrong[31] ^= 1
	for i, c := range []struct {
		name string
		size int64
		sum  *[32]byte
	}{
		{"announced one byte more", 70_001, nil},
		{"announced one byte less", 69_999, nil},
		{"announced nothing", 0, nil},
		{"announced far more", 1 << 20, &sum},
		{"negative size", -1, nil},
		{"wrong digest", 70_000, &wrong},
		{"zero digest", 70_000, new([32]byte)},
	} {
		key := fmt.Sprintf("%scase-%d", prefix, i)
		err := b.PutNew(ctx, key, bytes.NewReader(data), c.size, c.sum)
		if err := expectKind(c.name, err, ErrMismatch); err != nil {
			return err
		}
		if err := expectAbsent(ctx, b, key); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		// The key is still free.
		if err := b.PutNew(ctx, key, bytes.NewReader(data), int64(len(data)), &sum); err != nil {
			return fmt.Errorf("put after %s: %w", c.name, err)
		}
	}
	return nil
}

// stepReader gives out n bytes at a time and calls each before every read.
type stepReader struct {
	r    io.Reader
	n    int
	pos  int64
	each func(pos int64) error
}

func (s *stepReader) Read(p []byte) (int, error) {
	if err := s.each(s.pos); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p[:min(len(p), s.n)])
	s.pos += int64(n)
	return n, err
}

func checkBrokenBody(ctx context.Context, b Bucket, prefix string) error {
	broken := errors.New("the disk of the source broke")
	data := pattern{seed: 4, size: 200_000}.bytes()
	for i, at := range []int64{0, 60_000, 200_000} {
		key := fmt.Sprintf("%sat-%d", prefix, i)
		body := &stepReader{r: bytes.NewReader(data), n: 20_000, each: func(pos int64) error {
			if pos >= at {
				return broken
			}
			return nil
		}}
		err := b.PutNew(ctx, key, body, int64(len(data)), nil)
		if err := expectKind("put of a broken body", err, broken); err != nil {
			return err
		}
		if err := expectAbsent(ctx, b, key); err != nil {
			return err
		}
	}
	return nil
}

func checkCancelledPut(ctx context.Context, b Bucket, prefix string) error {
	data := pattern{seed: 5, size: 500_000}.bytes()
	for i, at := range []int64{0, 100_000, 480_000} {
		key := fmt.Sprintf("%sat-%d", prefix, i)
		cancelled, cancel := context.WithCancel(ctx)
		body := &stepReader{r: bytes.NewReader(data), n: 20_000, each: func(pos int64) error {
			if pos >= at {
				cancel()
			}
			return nil
		}}
		err := b.PutNew(cancelled, key, body, int64(len(data)), nil)
		cancel()
		if err := expectKind("cancelled put", err, context.Canceled); err != nil {
			return err
		}
		if err := expectAbsent(ctx, b, key); err != nil {
			return err
		}
		if err := putBytes(ctx, b, key, data); err != nil {
			return fmt.Errorf("put after a cancelled one: %w", err)
		}
	}
	return nil
}

func checkCancelledCalls(ctx context.Context, b Bucket, prefix string) error {
	key := prefix + "object"
	data := pattern{seed: 6, size: 3 << 20}.bytes()
	if err := putBytes(ctx, b, key, data); err != nil {
		return err
	}
	cancelled, cancel := context.WithCancel(ctx)
	body, err := b.Get(cancelled, key, 0, -1)
	if err != nil {
		cancel()
		return err
	}
	cancel()
	_, err = io.ReadAll(body)
	if err := errors.Join(expectKind("read of a cancelled get", err, context.Canceled), body.Close()); err != nil {
		return err
	}
	_ = body.Close() // a second time: must not panic or block

	_, headErr := b.Head(cancelled, prefix+"absent")
	_, getErr := readRange(cancelled, b, prefix+"absent", 0, -1)
	_, listErr := listKeys(cancelled, b, prefix)
	for op, err := range map[string]error{
		"head": headErr, "get": getErr, "list": listErr,
		"put":    putBytes(cancelled, b, prefix+"absent", data),
		"delete": b.Delete(cancelled, key),
	} {
		if err := expectKind("cancelled "+op, err, context.Canceled); err != nil {
			return err
		}
	}
	if err := expectAbsent(ctx, b, prefix+"absent"); err != nil {
		return err
	}
	_, err = b.Head(ctx, key)
	return err
}

func checkListOrder(ctx context.Context, b Bucket, prefix string) error {
	// "-" and "." sort before "/", digits and letters after it: an order by
	// directories differs from the order by keys exactly here.
	names := []string{
		"a/b", "a-b", "a.b", "a0", "a/b-c/d", "a/b.c", "a/b0", "a_", "aa", "b", "cut/0000000000000001.cut",
		"cut/0000000000000002.cut", "cut/000000000000000a.cut", "cut-1", "z/y/x/w/v", "0",
	}
	// "a/b" is an object, so no other key may be below it.
	var all []string
	for i, name := range names {
		key := prefix + name
		if err := putBytes(ctx, b, key, make([]byte, i)); err != nil {
			return err
		}
		all = append(all, key)
		if keys, err := listKeys(ctx, b, prefix); err != nil || !slices.Contains(keys, key) {
			return fmt.Errorf("list after put does not show %q: %q, error %v", key, keys, err)
		}
	}
	slices.Sort(all)
	for _, p := range []string{"", "a", "a/", "a/b", "a/b-", "a-", "cut/", "cut/000000000000000", "cut/0000000000000002.cut", "z/y", "nothing", "nothing/", "a/b/"} {
		var want []string
		for _, key := range all {
			if strings.HasPrefix(key, prefix+p) {
				want = append(want, key)
			}
		}
		got, err := listKeys(ctx, b, prefix+p)
		if err != nil || !slices.Equal(got, want) {
			return fmt.Errorf("list %q: got %q, error %v; wanted %q", prefix+p, got, err, want)
		}
		for _, after := range append([]string{prefix + "a/", prefix + "a/b-zz", prefix + "zzz"}, all...) {
			var tail, got []string
			for _, key := range want {
				if key > after {
					tail = append(tail, key)
				}
			}
			err := ListAfter(ctx, b, prefix+p, after, func(info Info) error {
				got = append(got, info.Key)
				return nil
			})
			if err != nil || !slices.Equal(got, tail) {
				return fmt.Errorf("list %q after %q: got %q, error %v; wanted %q", prefix+p, after, got, err, tail)
			}
		}
	}
	return b.List(ctx, prefix, func(info Info) error {
		name := strings.TrimPrefix(info.Key, prefix)
		if want := int64(slices.Index(names, name)); info.Size != want || info.ModTime.IsZero() {
			return fmt.Errorf("list shows %+v, wanted size %d and a time", info, want)
		}
		return nil
	})
}

func checkListStop(ctx context.Context, b Bucket, prefix string) error {
	for i := range 5 {
		if err := putBytes(ctx, b, fmt.Sprintf("%s%d/object", prefix, i), nil); err != nil {
			return err
		}
	}
	enough, calls := errors.New("enough"), 0
	err := b.List(ctx, prefix, func(Info) error {
		calls++
		if calls == 2 {
			return enough
		}
		return nil
	})
	//nolint:errorlint // the contract says: returned as it is
	if err != enough || calls != 2 {
		return fmt.Errorf("stopped list: %d calls, error %v; wanted 2 and the error of the callback as it is", calls, err)
	}
	// The callback may use the bucket, also to delete what it is shown.
	err = b.List(ctx, prefix, func(info Info) error { return b.Delete(ctx, info.Key) })
	if err != nil {
		return err
	}
	if keys, err := listKeys(ctx, b, prefix); err != nil || len(keys) != 0 {
		return fmt.Errorf("list after deleting all: %q, error %v", keys, err)
	}
	return nil
}

func checkDelete(ctx context.Context, b Bucket, prefix string) error {
	key := prefix + "folder/object"
	for i := range 3 {
		if err := b.Delete(ctx, key); err != nil {
			return fmt.Errorf("delete of an absent object: %w", err)
		}
		data := pattern{seed: uint64(i), size: 1000 + int64(i)}.bytes()
		if err := putBytes(ctx, b, key, data); err != nil {
			return err
		}
		if err := putBytes(ctx, b, key+"-2", data); err != nil && i == 0 {
			return err
		}
		if err := expectBytes(ctx, b, key, 0, -1, data); err != nil {
			return err
		}
		if err := b.Delete(ctx, key); err != nil {
			return err
		}
		if err := expectAbsent(ctx, b, key); err != nil {
			return err
		}
		if _, err := b.Head(ctx, key+"-2"); err != nil {
			return fmt.Errorf("delete of %q took its neighbour: %w", key, err)
		}
	}
	return nil
}

func checkBigObject(ctx context.Context, b Bucket, prefix string) error {
	p := pattern{seed: 7, size: 40<<20 + 13}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(p, 0, p.size)); err != nil {
		return err
	}
	sum := [32]byte(h.Sum(nil))
	key := prefix + "object.seg"
	if err := b.PutNew(ctx, key, io.NewSectionReader(p, 0, p.size), p.size, &sum); err != nil {
		return err
	}
	info, err := Digest(ctx, b, key)
	if err != nil || info.Size != p.size || info.SHA256 != sum {
		return fmt.Errorf("digest: %d bytes, %x, error %v", info.Size, info.SHA256, err)
	}
	want := make([]byte, 64<<10)
	for _, off := range []int64{0, 1, 4<<20 - 5, 32 << 20, p.size - int64(len(want))} {
		if _, err := p.ReadAt(want, off); err != nil {
			return err
		}
		if err := expectBytes(ctx, b, key, off, int64(len(want)), want); err != nil {
			return err
		}
	}
	return nil
}

// checkManyKeys crosses the page size of every known store (1,000 and 5,000
// entries are usual; two pages of the smaller one must join without a gap).
func checkManyKeys(ctx context.Context, b Bucket, prefix string) error {
	const n = 2500
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("%s%02x/%016x.cut", prefix, i/500, i)
	}
	err := parallel(n, 16, func(i int) error { return putBytes(ctx, b, want[i], []byte{byte(i)}) })
	if err != nil {
		return err
	}
	for _, p := range []struct {
		prefix   string
		from, to int
	}{{"", 0, n}, {"01/", 500, 1000}, {"0", 0, n}, {"04/00000000000009", 2304, n}} {
		got, err := listKeys(ctx, b, prefix+p.prefix)
		if err != nil || !slices.Equal(got, want[p.from:p.to]) {
			return fmt.Errorf("list %q: %d keys, error %v; wanted %d", prefix+p.prefix, len(got), err, p.to-p.from)
		}
	}
	return nil
}
