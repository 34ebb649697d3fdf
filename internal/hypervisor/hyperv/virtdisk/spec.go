package virtdisk

import (
	"fmt"
	"io"
	"os"
	"strings"

	"holdfast/internal/hypervisor/hyperv"
)

// maxSize is the largest VHDX ([MS-VHDX] 2.6.2.2).
const maxSize = 64 << 40

// checkSpec refuses what CreateVirtualDisk would answer with a bare "invalid parameter".
func checkSpec(path string, spec hyperv.CreateDisk) error {
	switch {
	case !strings.HasSuffix(strings.ToLower(path), ".vhdx"):
		return fmt.Errorf("virtdisk: create %s: the name of a new disk ends in .vhdx", path)
	case spec.LogicalSector != 512 && spec.LogicalSector != 4096, spec.PhysicalSector != 512 && spec.PhysicalSector != 4096,
		spec.PhysicalSector < spec.LogicalSector:
		return fmt.Errorf("virtdisk: create %s: sectors of %d and %d bytes: %w", path, spec.LogicalSector, spec.PhysicalSector, hyperv.ErrUnsupported)
	case spec.Size < 3<<20 || spec.Size > maxSize || spec.Size%spec.LogicalSector != 0:
		return fmt.Errorf("virtdisk: create %s: a VHDX can't have %d bytes (3 MiB to 64 TiB in whole sectors): %w", path, spec.Size, hyperv.ErrUnsupported)
	}
	return nil
}

// readFile reads a whole file that is not larger than max.
func readFile(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("virtdisk: %s has more than %d bytes", path, max)
	}
	return data, nil
}
