package mem_test

import (
	"errors"
	"strings"
	"testing"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/objstore/objstoretest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Bucket { return mem.New() })
}

func TestCapacity(t *testing.T) {
	t.Parallel()
	b := &mem.Bucket{Capacity: 10}
	ctx := t.Context()
	put := func(key string, n int) error {
		return b.PutNew(ctx, key, strings.NewReader(strings.Repeat("x", n)), int64(n), nil)
	}
	if err := put("a", 6); err != nil {
		t.Fatal(err)
	}
	if err := put("b", 5); !errors.Is(err, objstore.ErrNoSpace) {
		t.Errorf("put beyond the capacity: %v", err)
	}
	if err := b.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(put("b", 5), put("c", 5)); err != nil {
		t.Error(err)
	}
	if b.Used() != 10 {
		t.Errorf("Used = %d, want 10", b.Used())
	}
}
