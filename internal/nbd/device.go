package nbd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// Device is what a server exports, read-only. Its methods are called
// concurrently, from all connections; they return promptly once ctx is done.
// Ranges are never negative, never empty and never reach beyond Size.
//
// An error of a method becomes the error of that one request: an [Errno] in
// its chain is sent as it is, "no space" as ENOSPC, anything else as EIO. The
// text of an error is logged and never sent.
type Device interface {
	// Size is the device's size in bytes; it never changes.
	Size() int64
	// ReadAt fills p with the content at off, or fails.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Extents describes allocation from off on: ascending, without gaps, the
	// first one containing off. It may stop before off+length, after at least one
	// extent, and the last extent may reach beyond it. Where nothing better is
	// known it is one extent that is neither hole nor zero.
	Extents(ctx context.Context, off, length int64) ([]AllocationExtent, error)
}

// AllocationExtent is a stretch of a device whose bytes have the same state.
type AllocationExtent struct {
	Off, Len int64
	Hole     bool // nothing is allocated for it
	Zero     bool // it reads as zeroes: a promise, clients skip it
}

// WritableDevice is a Device which can be changed.
type WritableDevice interface {
	Device
	// WriteAt writes all of p at off, or fails. p is not retained.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Flush makes every write, trim and zeroing that returned before it durable.
	Flush(ctx context.Context) error
	// Trim drops content that is not needed any more; doing nothing is right.
	Trim(ctx context.Context, off, length int64) error
	// WriteZeroes makes the range read as zeroes. With allocate it must not
	// become a hole.
	WriteZeroes(ctx context.Context, off, length int64, allocate bool) error
}

// Exports tells a Server what it exports. Its methods are called concurrently,
// Open several times per connection; the server does not close devices.
type Exports interface {
	// Names lists the exports for clients that ask; nil refuses to list.
	Names() []string
	// Open finds an export. An error that wraps [ErrNoSuchExport] says that it
	// does not exist, any other that this could not be found out.
	Open(ctx context.Context, name string) (Device, error)
}

// ExportMap is a fixed set of exports. The name "", the protocol's default
// export, also finds the only export of a map with one entry.
type ExportMap map[string]Device

var _ Exports = ExportMap(nil)

// Names lists the exports in alphabetical order.
func (m ExportMap) Names() []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Open finds an export by its name.
func (m ExportMap) Open(_ context.Context, name string) (Device, error) {
	if dev, ok := m[name]; ok {
		return dev, nil
	}
	if name == "" && len(m) == 1 {
		for _, dev := range m {
			return dev, nil
		}
	}
	return nil, fmt.Errorf("open export %.64q: %w", name, ErrNoSuchExport)
}

// ExportFunc finds exports by name and does not list them.
type ExportFunc func(ctx context.Context, name string) (Device, error)

var _ Exports = ExportFunc(nil)

// Names refuses to list.
func (f ExportFunc) Names() []string { return nil }

// Open calls f.
func (f ExportFunc) Open(ctx context.Context, name string) (Device, error) { return f(ctx, name) }

// errnoOf chooses the protocol's code for a device's error.
func errnoOf(err error) Errno {
	var e Errno
	switch {
	case errors.As(err, &e) && e != 0:
		return e
	case errors.Is(err, syscall.ENOSPC):
		return ENOSPC
	case errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	}
	return EIO
}

// maxExtentsAsked bounds the length of one question to Device.Extents, so that
// a device with much detail does not have to answer for gigabytes at once.
const maxExtentsAsked = 256 << 20

// allocation asks dev about [off, off+length) and returns its answer clipped
// to the range, with equal neighbours merged. It covers the range from off on
// without gaps, the whole of it unless it reached limit extents.
func allocation(ctx context.Context, dev Device, off, length int64, limit int) ([]AllocationExtent, error) {
	var out []AllocationExtent
	end := off + length
	for pos := off; pos < end; {
		got, err := dev.Extents(ctx, pos, min(end-pos, maxExtentsAsked))
		if err != nil {
			return nil, err
		}
		if len(got) == 0 {
			return nil, fmt.Errorf("device told no extents at %d", pos)
		}
		for i, e := range got {
			if e.Len <= 0 || e.Off > pos || e.Off+e.Len <= pos || i > 0 && e.Off != pos {
				return nil, fmt.Errorf("device told extent [%d,+%d) where one at %d must follow", e.Off, e.Len, pos)
			}
			e.Len = min(e.Off+e.Len, end) - pos
			e.Off = pos
			if k := len(out) - 1; k >= 0 && out[k].Hole == e.Hole && out[k].Zero == e.Zero {
				out[k].Len += e.Len
			} else if len(out) == limit {
				return out, nil
			} else {
				out = append(out, e)
			}
			if pos += e.Len; pos == end {
				break
			}
		}
	}
	return out, nil
}
