package pageblob_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"holdfast/internal/nbd"
	"holdfast/internal/pageblob"
	"holdfast/internal/pageblob/pageblobtest"
)

// export serves a disk in memory.
type export struct{ pageblobtest.Disk }

func (e export) Extents(ctx context.Context, off, length int64) (out []nbd.AllocationExtent, err error) {
	err = e.Disk.Extents(ctx, off, length, func(off, n int64, zero bool) error {
		out = append(out, nbd.AllocationExtent{Off: off, Len: n, Hole: zero, Zero: zero})
		return nil
	})
	return out, err
}

// TestFromNBD uploads what a server exports, whether it tells about zeroes or not.
func TestFromNBD(t *testing.T) {
	t.Parallel()
	d := noise(6, 3*mib)
	server, err := nbd.NewServer(nbd.ServerConfig{Exports: nbd.ExportMap{"d": export{d}}})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(context.Background(), ln) }()
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	s := pageblobtest.StartSimulator(t)
	for name, contexts := range map[string][]string{"with": {nbd.ContextAllocation}, "without": nil} {
		c, err := nbd.Dial(t.Context(), nbd.ClientConfig{Network: "unix", Address: socket, Export: "d", Contexts: contexts})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := disk(t, s, name, 3*mib, 3)
		_, err = pageblob.Upload(t.Context(), b, pageblob.FromNBD(c), fast(pageblob.Options{Fresh: true}))
		if cerr := c.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		sameDisk(t, b, d)
	}
}
