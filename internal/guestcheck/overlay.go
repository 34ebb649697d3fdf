package guestcheck

import (
	"context"
	"maps"
	"slices"

	"holdfast/internal/dr"
)

// Layer is a disk of the recovery point with a side layer on top that takes writes.
type Layer interface {
	Disk
	WriteAt(ctx context.Context, p []byte, off int64) error
}

const (
	overlayPage = 4096
	overlayMax  = 256 << 20 // bytes kept in memory
)

// Overlay is a Layer in memory: what is written is kept, all else is read from
// the disk below, which is never written. It is for one goroutine.
type Overlay struct {
	below Disk
	pages map[int64][]byte
}

// NewOverlay makes an empty layer.
func NewOverlay(below Disk) *Overlay { return &Overlay{below: below, pages: map[int64][]byte{}} }

// Size is that of the disk below.
func (o *Overlay) Size() int64 { return o.below.Size() }

// ReadAt reads what was written, else the disk below.
func (o *Overlay) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := o.inside(p, off); err != nil || len(p) == 0 {
		return err
	}
	if err := o.below.ReadAt(ctx, p, off); err != nil {
		return err
	}
	for k := off / overlayPage; k <= (off+int64(len(p))-1)/overlayPage; k++ {
		if b, ok := o.pages[k]; ok {
			if at := k*overlayPage - off; at >= 0 {
				copy(p[at:], b)
			} else {
				copy(p, b[-at:])
			}
		}
	}
	return nil
}

// WriteAt keeps p. It fails outside of the disk and when memory for 256 MiB of changes is used.
func (o *Overlay) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := o.inside(p, off); err != nil {
		return err
	}
	for len(p) > 0 {
		k := off / overlayPage
		b, ok := o.pages[k]
		if !ok {
			if int64(len(o.pages))*overlayPage >= overlayMax {
				return dr.Errorf(dr.KindExhausted, "guestcheck.Overlay", "the side layer is full: %d bytes", overlayMax)
			}
			b = make([]byte, min(overlayPage, o.Size()-k*overlayPage))
			if err := o.below.ReadAt(ctx, b, k*overlayPage); err != nil {
				return err
			}
			o.pages[k] = b
		}
		n := copy(b[off%overlayPage:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (o *Overlay) inside(p []byte, off int64) error {
	if off < 0 || int64(len(p)) > o.Size()-off {
		return dr.Errorf(dr.KindInvalid, "guestcheck.Overlay", "%d bytes at %d lie outside of the disk of %d bytes", len(p), off, o.Size())
	}
	return nil
}

// Piece is a range of the disk that was written.
type Piece struct {
	Off  int64
	Data []byte // do not change
}

// Pieces returns what was written, whole pages of 4 KiB, by offset: what to
// write over a copy of the disk.
func (o *Overlay) Pieces() []Piece {
	var out []Piece
	for _, k := range slices.Sorted(maps.Keys(o.pages)) {
		out = append(out, Piece{k * overlayPage, o.pages[k]})
	}
	return out
}
