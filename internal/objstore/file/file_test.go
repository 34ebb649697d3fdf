package file

import (
	"testing"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/objstoretest"
)

func openNew(t *testing.T) *Bucket {
	t.Helper()
	return open(t, Config{Dir: t.TempDir() + "/bucket", Create: true})
}

func open(t *testing.T, c Config) *Bucket {
	t.Helper()
	b, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestConformance(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(t *testing.T) objstore.Bucket { return openNew(t) })
}
