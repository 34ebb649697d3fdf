package hydrate

import (
	"context"
	"slices"

	"holdfast/internal/nbd"
)

// Patch is a range of a disk that is served in place of the point's own bytes: a
// repair on a side layer. The replica is not touched.
type Patch struct {
	Off  int64
	Data []byte
}

// patched is a device with patches over it, which are ordered and do not overlap.
type patched struct {
	nbd.Device
	patches []Patch
}

// newPatched puts patches over a device; later ones win where they overlap.
func newPatched(d nbd.Device, patches []Patch) nbd.Device {
	if len(patches) == 0 {
		return d
	}
	sorted := slices.Clone(patches)
	slices.SortStableFunc(sorted, func(a, b Patch) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	return &patched{Device: d, patches: sorted}
}

// ReadAt implements nbd.Device.
func (d *patched) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.Device.ReadAt(ctx, p, off); err != nil {
		return err
	}
	for _, x := range d.patches {
		from, to := max(x.Off, off), min(x.Off+int64(len(x.Data)), off+int64(len(p)))
		if from < to {
			copy(p[from-off:to-off], x.Data[from-x.Off:])
		}
	}
	return nil
}

// Extents implements nbd.Device: what is patched is data, whatever the point has there.
func (d *patched) Extents(ctx context.Context, off, length int64) ([]nbd.AllocationExtent, error) {
	below, err := d.Device.Extents(ctx, off, length)
	if err != nil {
		return nil, err
	}
	var out []nbd.AllocationExtent
	for _, e := range below {
		end := e.Off + e.Len
		for pos := e.Off; pos < end; {
			piece := nbd.AllocationExtent{Off: pos, Len: end - pos, Hole: e.Hole, Zero: e.Zero}
			for _, x := range d.patches {
				switch stop := x.Off + int64(len(x.Data)); {
				case x.Off <= pos && pos < stop: // inside
					piece = nbd.AllocationExtent{Off: pos, Len: min(stop, end) - pos}
				case x.Off > pos && x.Off < pos+piece.Len: // before
					piece.Len = x.Off - pos
				}
			}
			out = append(out, piece)
			pos += piece.Len
		}
	}
	return out, nil
}
