package virtdisk

import (
	"errors"
	"fmt"

	"holdfast/internal/hypervisor/hyperv"
)

// widen returns the whole sectors that cover [off, off+n).
func widen(off, n, sector int64) (first, last int64) {
	return off - off%sector, (off + n + sector - 1) / sector * sector
}

// walkChanges asks query window by window until [off, off+n) is covered and hands
// the ranges on, clipped to the window. An answer that makes no progress, goes
// backwards or says more than was asked for is an error, never a gap.
func walkChanges(off, n int64, query func(off, n int64) (found []changeRange, processed int64, err error), fn func(off, n int64) error, path string) error {
	end := off + n
	last := off
	for off < end {
		found, processed, err := query(off, end-off)
		if err != nil {
			return err
		}
		if processed <= 0 || processed > end-off {
			return fmt.Errorf("virtdisk: %s: of %d bytes at %d the system looked at %d for changes: %w", path, end-off, off, processed,
				errors.Join(hyperv.ErrTrackingLost, errOddAnswer))
		}
		for _, r := range found {
			if r.length == 0 {
				continue
			}
			if r.offset > 1<<62 || r.length > 1<<62 {
				return fmt.Errorf("virtdisk: %s: change of %d bytes at %d: %w", path, r.length, r.offset, errors.Join(hyperv.ErrTrackingLost, errOddAnswer))
			}
			from, to := max(int64(r.offset), last), min(int64(r.offset+r.length), end)
			if int64(r.offset) < last && int64(r.offset+r.length) < last {
				return fmt.Errorf("virtdisk: %s: changes are not in order (%d after %d): %w", path, r.offset, last, errors.Join(hyperv.ErrTrackingLost, errOddAnswer))
			}
			if from >= to {
				continue
			}
			if err := fn(from, to-from); err != nil {
				return err
			}
			last = to
		}
		off += processed
	}
	return nil
}

// errOddAnswer marks answers of the system that contradict its reference.
var errOddAnswer = errors.New("the answer contradicts its reference")
