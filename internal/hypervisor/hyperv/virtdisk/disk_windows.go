package virtdisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"holdfast/internal/hypervisor/hyperv"
)

// slotSize is the longest request to the system.
const slotSize = 1 << 20

// disk is an open and attached disk.
type disk struct {
	disks    *Disks
	path     string
	write    bool
	info     hyperv.DiskInfo
	handle   windows.Handle // of virtdisk.dll
	io       windows.Handle // reads and writes; the same, or a physical drive
	attached bool

	slots  chan *slot
	narrow sync.Mutex // writes that don't cover whole sectors

	mu       sync.Mutex
	busy     sync.WaitGroup // requests that the system has
	closing  bool
	closed   chan struct{}
	closeErr error
}

var (
	_ hyperv.Disk         = (*disk)(nil)
	_ hyperv.ChangeReader = (*disk)(nil)
)

// slot is the memory and state of one request. It belongs to the goroutine that waits for the system, also
// after the caller has gone.
type slot struct {
	buf   []byte // aligned to a page, as unbuffered requests demand
	ov    *windows.Overlapped
	moved uint32
}

func (k *disk) makeSlots(n int) error {
	k.slots = make(chan *slot, n)
	for range n {
		event, err := windows.CreateEvent(nil, 1, 0, nil)
		if err != nil {
			return failed("CreateEvent", k.path, err)
		}
		raw := make([]byte, slotSize+4096)
		skip := -int(uintptr(unsafe.Pointer(&raw[0]))) & 4095
		k.slots <- &slot{buf: raw[skip : skip+slotSize], ov: newOverlapped(event)}
	}
	return nil
}

// attach makes the disk readable. Hosts that know no disk without a local host get a physical drive without letter.
func (k *disk) attach() error {
	mode := uint32(attachReadOnly)
	if k.write {
		mode = 0
	}
	lib := k.disks.lib
	err := lib.attach(k.handle, k.path, mode|attachNoLocalHost)
	if err == nil {
		k.attached = true
		return nil
	}
	switch codeOf(err) {
	case errInvalidParameter, errNotSupported, errInvalidFunction:
	default:
		return err
	}
	if second := lib.attach(k.handle, k.path, mode|attachNoDriveLetter); second != nil {
		return errors.Join(err, second)
	}
	k.attached = true
	drive, err := lib.physicalPath(k.handle, k.path)
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(drive)
	if err != nil {
		return err
	}
	access := uint32(windows.GENERIC_READ)
	if k.write {
		access |= windows.GENERIC_WRITE
	}
	h, err := windows.CreateFile(name, access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_OVERLAPPED|windows.FILE_FLAG_NO_BUFFERING, 0)
	if err != nil {
		return failed("CreateFile "+drive, k.path, err)
	}
	k.io = h
	if k.write {
		return takeOffline(h, k.path)
	}
	return nil
}

// Info describes the disk as it was when it was opened.
func (k *disk) Info() hyperv.DiskInfo { return k.info }

// ReadAt reads; offsets and lengths need not be whole sectors.
func (k *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return k.pieces(p, off, func(part []byte, at int64) error {
		first, last := widen(at, int64(len(part)), k.info.LogicalSector)
		s, err := k.take(ctx)
		if err != nil {
			return err
		}
		return k.transfer(ctx, s, false, first, int(last-first), func() { copy(part, s.buf[at-first:]) })
	})
}

// WriteAt writes. Sectors that are covered in part are read first, one such write at a time.
func (k *disk) WriteAt(ctx context.Context, p []byte, off int64) error {
	if !k.write {
		return &Error{Op: "WriteFile", Path: k.path, Code: errAccessDenied, System: windows.ERROR_ACCESS_DENIED, Hint: "the disk was opened read-only"}
	}
	return k.pieces(p, off, func(part []byte, at int64) error {
		first, last := widen(at, int64(len(part)), k.info.LogicalSector)
		if first == at && last == at+int64(len(part)) {
			s, err := k.take(ctx)
			if err != nil {
				return err
			}
			copy(s.buf, part)
			return k.transfer(ctx, s, true, first, len(part), nil)
		}
		k.narrow.Lock() // held for two requests that return by ctx
		defer k.narrow.Unlock()
		whole := make([]byte, last-first)
		if err := k.ReadAt(ctx, whole, first); err != nil {
			return err
		}
		copy(whole[at-first:], part)
		s, err := k.take(ctx)
		if err != nil {
			return err
		}
		copy(s.buf, whole)
		return k.transfer(ctx, s, true, first, len(whole), nil)
	})
}

// pieces cuts a range so that each piece, widened to sectors, fits a slot.
func (k *disk) pieces(p []byte, off int64, fn func(part []byte, at int64) error) error {
	if off < 0 || off > k.info.Size || int64(len(p)) > k.info.Size-off {
		return fmt.Errorf("virtdisk: %s: %d bytes at %d lie outside of %d: %w", k.path, len(p), off, k.info.Size, io.ErrUnexpectedEOF)
	}
	for len(p) > 0 {
		n := min(int64(len(p)), slotSize-off%slotSize) // pieces end at multiples of the slot's size
		if err := fn(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// take waits for a free slot.
func (k *disk) take(ctx context.Context) (*slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("virtdisk: %s: %w", k.path, context.Cause(ctx))
	}
	select {
	case s := <-k.slots:
		return s, nil
	case <-k.closed:
		return nil, fmt.Errorf("virtdisk: %s is closed", k.path)
	case <-ctx.Done():
		return nil, fmt.Errorf("virtdisk: %s: no request could be started in time: %w", k.path, context.Cause(ctx))
	}
}

// begin counts a request of the system, unless the disk is being closed.
func (k *disk) begin() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return fmt.Errorf("virtdisk: %s is closed", k.path)
	}
	k.busy.Add(1)
	return nil
}

// transfer reads into or writes from a slot and returns by ctx. A goroutine owns the
// slot until the system is done with it; use is called with the bytes read, by the caller.
func (k *disk) transfer(ctx context.Context, s *slot, write bool, off int64, n int, use func()) error {
	if err := k.begin(); err != nil {
		k.slots <- s
		return err
	}
	done := make(chan error, 1)
	taken := make(chan struct{})
	go func() {
		defer k.busy.Done()
		err := k.request(s, write, off, n)
		done <- err
		<-taken // the caller has copied, or gone
		k.slots <- s
	}()
	defer close(taken)
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = windows.CancelIoEx(k.io, s.ov) // not found = it is just done
		return fmt.Errorf("virtdisk: %s: request of %d bytes at %d cancelled: %w", k.path, n, off, context.Cause(ctx))
	}
	if err == nil && use != nil {
		use()
	}
	return err
}

// request runs one overlapped request to its end.
func (k *disk) request(s *slot, write bool, off int64, n int) error {
	event := s.ov.HEvent
	*s.ov = windows.Overlapped{HEvent: event, Offset: uint32(off), OffsetHigh: uint32(off >> 32)}
	if err := windows.ResetEvent(event); err != nil {
		return failed("ResetEvent", k.path, err)
	}
	op, start := "ReadFile", windows.ReadFile
	if write {
		op, start = "WriteFile", windows.WriteFile
	}
	err := start(k.io, s.buf[:n], &s.moved, s.ov)
	if err == nil || errors.Is(err, windows.ERROR_IO_PENDING) {
		err = windows.GetOverlappedResult(k.io, s.ov, &s.moved, true)
	}
	if err != nil {
		return failed(fmt.Sprintf("%s of %d bytes at %d of", op, n, off), k.path, err)
	}
	if int(s.moved) != n {
		return fmt.Errorf("virtdisk: %s of %d bytes at %d of %s moved %d: %w", op, n, off, k.path, s.moved, io.ErrUnexpectedEOF)
	}
	return nil
}

// run runs a call on the handle that can't be cut short, and returns by ctx.
func (k *disk) run(ctx context.Context, what string, fn func() error) error {
	if err := k.begin(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer k.busy.Done()
		done <- fn()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("virtdisk: %s of %s: no answer in time: %w", what, k.path, context.Cause(ctx))
	}
}

// Extents reports the whole range as data: virtdisk.dll tells no map of what is allocated.
func (k *disk) Extents(ctx context.Context, off, n int64, fn func(off, n int64, zero bool) error) error {
	if off < 0 || n < 0 || n > k.info.Size-off {
		return fmt.Errorf("virtdisk: %s: [%d, +%d) lies outside of %d: %w", k.path, off, n, k.info.Size, io.ErrUnexpectedEOF)
	}
	if n == 0 {
		return ctx.Err()
	}
	return fn(off, n, false)
}

// Changes asks for the ranges written since a tracking id (QueryChangesVirtualDisk), window by window.
func (k *disk) Changes(ctx context.Context, rctID string, off, n int64, fn func(off, n int64) error) error {
	if rctID == "" || strings.ContainsRune(rctID, 0) {
		return fmt.Errorf("virtdisk: %s: %q is no tracking id: %w", k.path, rctID, hyperv.ErrTrackingLost)
	}
	if off < 0 || n < 0 || n > k.info.Size-off {
		return fmt.Errorf("virtdisk: %s: [%d, +%d) lies outside of %d: %w", k.path, off, n, k.info.Size, io.ErrUnexpectedEOF)
	}
	return walkChanges(off, n, func(at, left int64) ([]changeRange, int64, error) {
		var found []changeRange
		var done int64
		err := k.run(ctx, "QueryChangesVirtualDisk", func() (err error) {
			buf := make([]changeRange, 4096)
			got, processed, err := k.disks.lib.changes(k.handle, k.path, rctID, at, left, buf)
			found, done = got, processed
			return err
		})
		if err != nil {
			return nil, 0, err // found and done still belong to a call that hangs
		}
		return found, done, nil
	}, fn, k.path)
}

// Flush makes what was written durable.
func (k *disk) Flush(ctx context.Context) error {
	if !k.write {
		return ctx.Err()
	}
	return k.run(ctx, "flush", func() error { return failed("FlushFileBuffers", k.path, windows.FlushFileBuffers(k.io)) })
}

// Close cancels requests that are open, waits for them, flushes, detaches and closes.
// If a request hangs longer than Config.CloseTimeout it says so; the disk is closed when the request has ended.
func (k *disk) Close() error {
	k.mu.Lock()
	first := !k.closing
	k.closing = true
	k.mu.Unlock()
	if first {
		_ = windows.CancelIoEx(k.io, nil) // none open is no failure
		go func() {
			k.busy.Wait()
			var flush error
			if k.write {
				flush = failed("FlushFileBuffers", k.path, windows.FlushFileBuffers(k.io))
			}
			k.closeErr = errors.Join(flush, k.release())
			close(k.closed)
		}()
	}
	select {
	case <-k.closed:
		if first {
			return k.closeErr
		}
		return nil
	case <-time.After(k.disks.cfg.CloseTimeout):
		return fmt.Errorf("virtdisk: %s still has a request that hangs %v after it was cancelled", k.path, k.disks.cfg.CloseTimeout)
	}
}

// release gives back what open took. No request is open.
func (k *disk) release() error {
	var errs []error
	if k.io != k.handle {
		errs = append(errs, failed("CloseHandle", k.path, windows.CloseHandle(k.io)))
	}
	if k.attached {
		errs = append(errs, k.disks.lib.detach(k.handle, k.path))
	}
	errs = append(errs, failed("CloseHandle", k.path, windows.CloseHandle(k.handle)))
	for k.slots != nil {
		select {
		case s := <-k.slots:
			errs = append(errs, failed("CloseHandle", k.path, windows.CloseHandle(s.ov.HEvent)))
			continue
		default:
		}
		break
	}
	return errors.Join(errs...)
}
