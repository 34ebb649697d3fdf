package msvm

import (
	"context"
	"fmt"
	"strings"

	"holdfast/internal/cim"
)

// HardDisk is Msvm_VirtualHardDiskSettingData.
type HardDisk struct {
	ID             string // VirtualDiskId, lower case without braces
	Format         string // vhd, vhdx, vhdset
	Layout         string // fixed, dynamic, differencing
	Size           int64
	Parent         string
	LogicalSector  int
	PhysicalSector int
}

// HardDisk reads the facts of a disk file (method GetVirtualHardDiskSettingData).
func (c *Client) HardDisk(ctx context.Context, path string) (HardDisk, error) {
	out, _, err := c.call(ctx, imageService, "GetVirtualHardDiskSettingData", cim.Pairs("Path", path))
	if err != nil {
		return HardDisk{}, err
	}
	in, err := cim.DecodeEmbedded(out.String("SettingData"))
	if err != nil {
		return HardDisk{}, &cim.Error{Code: cim.CodeProtocol, Op: "GetVirtualHardDiskSettingData of " + path, Err: err}
	}
	d := HardDisk{ID: strings.ToLower(strings.Trim(in.String("VirtualDiskId"), "{}")), Parent: in.String("ParentPath")}
	n, _ := in.Uint("Format")
	d.Format = map[uint64]string{2: "vhd", 3: "vhdx", 4: "vhdset"}[n]
	n, _ = in.Uint("Type")
	d.Layout = map[uint64]string{2: "fixed", 3: "dynamic", 4: "differencing"}[n]
	n, _ = in.Uint("MaxInternalSize")
	d.Size = int64(min(n, 1<<62))
	n, _ = in.Uint("LogicalSectorSize")
	d.LogicalSector = int(min(n, 1<<20))
	n, _ = in.Uint("PhysicalSectorSize")
	d.PhysicalSector = int(min(n, 1<<20))
	return d, nil
}

// FileSize returns what a disk file takes on its volume (method GetVirtualHardDiskState).
func (c *Client) FileSize(ctx context.Context, path string) (int64, error) {
	out, _, err := c.call(ctx, imageService, "GetVirtualHardDiskState", cim.Pairs("Path", path))
	if err != nil {
		return 0, err
	}
	in, err := cim.DecodeEmbedded(out.String("State"))
	if err != nil {
		return 0, &cim.Error{Code: cim.CodeProtocol, Op: "GetVirtualHardDiskState of " + path, Err: err}
	}
	n, _ := in.Uint("FileSize")
	return int64(min(n, 1<<62)), nil
}

// maxPage is the most that one call asks for. The reference demands less than the
// disk's size, so pages are also at most half of a disk.
const maxPage = 64 << 30

// VirtualDiskChanges calls fn with the ranges of a disk of size bytes that
// changed since the tracking id, ascending (method GetVirtualDiskChanges).
func (c *Client) VirtualDiskChanges(ctx context.Context, path, rctID string, size int64, fn func(off, n int64) error) error {
	page := min(maxPage, max((size/2+1<<20-1)&^(1<<20-1), 1<<20))
	service, err := c.service(ctx, imageService)
	if err != nil {
		return err
	}
	for pos := int64(0); pos < size; {
		n := min(page, size-pos)
		out, _, err := c.callOn(ctx, service, "GetVirtualDiskChanges", cim.Pairs("Path", path, "LimitId", rctID,
			"ByteOffset", uint64(pos), "ByteLength", uint64(n)))
		if err != nil {
			return err
		}
		bad := func(format string, args ...any) error {
			return &cim.Error{Code: cim.CodeProtocol, Op: fmt.Sprintf("GetVirtualDiskChanges of %s at %d", path, pos), Message: fmt.Sprintf(format, args...)}
		}
		offs, err := out.Uints("ChangedByteOffsets")
		if err != nil {
			return bad("%v", err)
		}
		lens, err := out.Uints("ChangedByteLengths")
		if err != nil {
			return bad("%v", err)
		}
		done, ok := out.Uint("ProcessedByteLength")
		if !ok || done == 0 || done > uint64(n) || len(offs) != len(lens) {
			return bad("%d offsets, %d lengths, %d of %d bytes processed", len(offs), len(lens), done, n)
		}
		end := uint64(pos) + done
		for i := range offs {
			if offs[i] > uint64(size) || lens[i] > uint64(size) {
				return bad("range %d+%d of a disk of %d", offs[i], lens[i], size)
			}
			if offs[i]+lens[i] > end { // granules reach beyond the window; nothing beyond the disk
				lens[i] = min(lens[i], uint64(size)-offs[i])
			}
			if err := fn(int64(offs[i]), int64(lens[i])); err != nil {
				return err
			}
		}
		pos = int64(end)
	}
	return nil
}
