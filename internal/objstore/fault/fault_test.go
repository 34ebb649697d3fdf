package fault_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/fault"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/objstore/objstoretest"
)

func TestConformanceWithoutFaults(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Bucket { return fault.New(mem.New()) })
}

var content = []byte("0123456789")

func put(ctx context.Context, b objstore.Bucket, key string) error {
	return b.PutNew(ctx, key, bytes.NewReader(content), int64(len(content)), nil)
}

func setUp(t *testing.T, f ...fault.Fault) (*fault.Bucket, *mem.Bucket) {
	t.Helper()
	inner := mem.New()
	for _, key := range []string{"a/1", "a/2"} {
		if err := put(t.Context(), inner, key); err != nil {
			t.Fatal(err)
		}
	}
	return fault.New(inner, f...), inner
}

func stored(t *testing.T, b objstore.Reader, key string) string {
	t.Helper()
	data, err := objstore.ReadAll(t.Context(), b, key, 100)
	if errors.Is(err, objstore.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		return "error"
	}
	return string(data)
}

func TestPut(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		f    fault.Fault
		err  error
		want string
	}{
		{"error before", fault.Fault{Kind: fault.ErrorBefore}, objstore.ErrUnavailable, "absent"},
		{"own error before", fault.Fault{Kind: fault.ErrorBefore, Err: objstore.ErrNoSpace}, objstore.ErrNoSpace, "absent"},
		{"lost response", fault.Fault{Kind: fault.ErrorAfter}, objstore.ErrUnavailable, "0123456789"},
		{"cut", fault.Fault{Kind: fault.Cut, At: 4}, objstore.ErrUnavailable, "absent"},
		{"cut at the end", fault.Fault{Kind: fault.Cut, At: 10}, objstore.ErrUnavailable, "absent"},
		{"torn", fault.Fault{Kind: fault.Torn, At: 4}, nil, "0123"},
		{"flip", fault.Fault{Kind: fault.Flip, At: 3}, nil, "0122456789"},
		{"call", fault.Fault{Kind: fault.Call, Func: func(context.Context, fault.Op, string) error { return io.ErrClosedPipe }}, io.ErrClosedPipe, "absent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.f.Op, tt.f.Key = fault.Put, "b/*"
			b, inner := setUp(t, tt.f)
			if err := put(t.Context(), b, "c"); err != nil {
				t.Fatalf("put of another key: %v", err)
			}
			if got := len(b.Unfired()); got != 1 {
				t.Fatalf("%d unfired faults before the call", got)
			}
			err := put(t.Context(), b, "b/1")
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if got := stored(t, inner, "b/1"); got != tt.want {
				t.Errorf("stored %q, want %q", got, tt.want)
			}
			if err := put(t.Context(), b, "b/2"); err != nil {
				t.Errorf("the fault fired twice: %v", err)
			}
			b.Verify(t)
		})
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		f    fault.Fault
		want string
	}{
		{"error before", fault.Fault{Kind: fault.ErrorBefore}, "error"},
		{"error after", fault.Fault{Kind: fault.ErrorAfter}, "error"},
		{"cut", fault.Fault{Kind: fault.Cut, At: 4}, "error"},
		{"cut behind the end", fault.Fault{Kind: fault.Cut, At: 40}, "error"},
		{"flip", fault.Fault{Kind: fault.Flip, At: 9}, "0123456788"},
		{"said to be absent", fault.Fault{Kind: fault.ErrorBefore, Err: objstore.ErrNotExist}, "absent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.f.Op = fault.Get
			tt.f.Nth = 2
			b, _ := setUp(t, tt.f)
			for i, want := range []string{"0123456789", tt.want, "0123456789"} {
				if got := stored(t, b, "a/1"); got != want {
					t.Errorf("read %d: %q, want %q", i+1, got, want)
				}
			}
			b.Verify(t)
		})
	}
	t.Run("flip in a range", func(t *testing.T) {
		b, _ := setUp(t, fault.Fault{Op: fault.Get, Kind: fault.Flip, At: 3, More: -1})
		body, err := b.Get(t.Context(), "a/1", 2, 4)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); err != nil || string(got) != "2245" {
			t.Errorf("%q, %v", got, err)
		}
		b.Verify(t)
	})
}

func TestListHeadDelete(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	list := func(b objstore.Reader) (n int, err error) {
		err = b.List(ctx, "a/", func(objstore.Info) error { n++; return nil })
		return n, err
	}
	b, inner := setUp(t,
		fault.Fault{Op: fault.List, Kind: fault.Cut, At: 1},
		fault.Fault{Op: fault.List, Kind: fault.Cut, At: 9, Nth: 2},
		fault.Fault{Op: fault.List, Key: "a/", Kind: fault.ErrorAfter, Nth: 3},
		fault.Fault{Op: fault.Head, Kind: fault.ErrorAfter, More: 1},
		fault.Fault{Op: fault.Delete, Kind: fault.ErrorAfter},
		fault.Fault{Op: fault.Delete, Kind: fault.ErrorBefore, Nth: 2},
	)
	for i, want := range []int{1, 2, 2} {
		if n, err := list(b); n != want || !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("list %d: %d entries, %v", i+1, n, err)
		}
	}
	if n, err := list(b); n != 2 || err != nil {
		t.Errorf("list without fault: %d, %v", n, err)
	}
	for i, want := range []error{objstore.ErrUnavailable, objstore.ErrUnavailable, nil} {
		if _, err := b.Head(ctx, "a/1"); !errors.Is(err, want) {
			t.Errorf("head %d: %v", i+1, err)
		}
	}
	if err := b.Delete(ctx, "a/1"); !errors.Is(err, objstore.ErrUnavailable) || stored(t, inner, "a/1") != "absent" {
		t.Errorf("lost answer of a delete: %v", err)
	}
	if err := b.Delete(ctx, "a/2"); !errors.Is(err, objstore.ErrUnavailable) || stored(t, inner, "a/2") == "absent" {
		t.Errorf("failed delete: %v", err)
	}
	b.Verify(t)
	if c := b.Counts(); c[fault.List] != 4 || c[fault.Head] != 3 || c[fault.Delete] != 2 || c[fault.Put] != 0 {
		t.Errorf("counts %v", c)
	}
}

func TestDelayEndsWithContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := setUp(t, fault.Fault{Kind: fault.Delay, Wait: time.Hour, More: -1})
		start := time.Now()
		if _, err := b.Head(t.Context(), "a/1"); err != nil || time.Since(start) != time.Hour {
			t.Errorf("delayed head: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start = time.Now()
		if err := put(ctx, b, "new"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("delayed put: %v after %v", err, time.Since(start))
		}
	})
}

type recorder struct{ failures int }

func (*recorder) Helper()                 {}
func (r *recorder) Errorf(string, ...any) { r.failures++ }

func TestVerifyTellsUnfired(t *testing.T) {
	t.Parallel()
	b, _ := setUp(t,
		fault.Fault{Op: fault.Get, Key: "x*", Kind: fault.ErrorBefore},
		fault.Fault{Op: fault.Get, Kind: fault.Flip, At: 99},
		fault.Fault{Op: fault.Put, Key: "a/1", Kind: fault.Torn, At: 1},
		fault.Fault{Op: fault.Get, Kind: fault.Delay})
	if got := stored(t, b, "a/1"); got != string(content) {
		t.Error(got)
	}
	// The object exists, so the lie was never told.
	if err := put(t.Context(), b, "a/1"); !errors.Is(err, objstore.ErrExists) {
		t.Error(err)
	}
	var r recorder
	if b.Verify(&r); r.failures != 3 {
		t.Errorf("%d faults reported as unfired, want 3: %v", r.failures, b.Unfired())
	}
	b.Clear()
	if len(b.Unfired()) != 0 {
		t.Error("faults left after Clear")
	}
	defer func() {
		if recover() == nil {
			t.Error("a fault without a kind was armed")
		}
	}()
	b.Add(fault.Fault{Op: fault.Get})
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, key string
		want         bool
	}{
		{"", "anything", true}, {"*", "a/b", true}, {"a", "a", true}, {"a", "ab", false}, {"a*", "a", true}, {"*/cut/*.cut", "v1/m/x/1/cut/0.cut", true},
		{"*/cut/*.cut", "v1/m/x/1/part/0.cut", false}, {"*a*b", "xaxxbxab", true}, {"*a*b", "xaxxbxa", false}, {"a**", "a", true},
	} {
		b, _ := setUp(t, fault.Fault{Key: tt.pattern, Kind: fault.ErrorBefore})
		_, err := b.Head(t.Context(), tt.key)
		if got := errors.Is(err, objstore.ErrUnavailable); got != tt.want {
			t.Errorf("pattern %q matches %q: %v", tt.pattern, tt.key, got)
		}
	}
}
