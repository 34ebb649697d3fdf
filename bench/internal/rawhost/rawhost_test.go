package rawhost

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// unit is what a guest writes at least.
const unit = 4 << 10

// The source has the contract's meaning of a token, a changed range and a hole.
func TestSource(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "disk")
	const length = 5<<20 + 3*unit
	if err := CreateSparse(path, length); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Write(bytes.Repeat([]byte{1}, Grain), Grain); err != nil {
		t.Fatal(err)
	}
	begin := func(base, tag string) hypervisor.Cut {
		t.Helper()
		c, err := s.BeginCut(ctx, hypervisor.CutRequest{VM: VMID, Disks: []string{DiskID}, Base: base, Tag: tag})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	describe := func(c hypervisor.Cut) (out string) {
		t.Helper()
		err := c.Extents(ctx, DiskID, 0, length, func(r hypervisor.Range) error {
			out += fmt.Sprintf("%d+%d", r.Off/unit, r.Len/unit)
			if r.Changed {
				out += "c"
			}
			if r.Zero {
				out += "z"
			}
			out += " "
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	first := begin("", "1")
	if got := describe(first); got != "0+16cz 16+16c 32+1251cz" {
		t.Errorf("everything changed: %s", got)
	}
	if err := s.Write([]byte{2}, length-1); err != nil {
		t.Fatal(err)
	}
	second := begin(first.Info().Token, "2")
	if got := describe(second); got != "0+16z 16+16 32+1248z 1280+2cz 1282+1c" {
		t.Errorf("one change: %s", got)
	}
	if n := s.SinceLast(); n != 0 {
		t.Errorf("%d bytes changed since the last token", n)
	}
	if err := second.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if n := s.SinceLast(); n != 3*unit {
		t.Errorf("%d bytes changed since the first token", n)
	}
	s.LoseTracking()
	if _, err := s.BeginCut(ctx, hypervisor.CutRequest{Base: first.Info().Token}); dr.CodeOf(err) != dr.CodeTrackingLost {
		t.Errorf("a lost token: %v", err)
	}
}
