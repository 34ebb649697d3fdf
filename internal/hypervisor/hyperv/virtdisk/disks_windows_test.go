package virtdisk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"holdfast/internal/hypervisor/hyperv"
)

// scratch is a directory; Wine can't always clean up after t.TempDir.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "virtdisk")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func newDisks(t *testing.T) *Disks {
	t.Helper()
	d, err := New(Config{CloseTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestWindowsRefusals: Wine's stub refuses every disk; the refusal must be told with function, file and code, and leave no file.
func TestWindowsRefusals(t *testing.T) {
	d := newDisks(t)
	path := filepath.Join(scratch(t), "new", "a.vhdx")
	_, err := d.Open(t.Context(), path, false)
	var e *Error
	if !errors.As(err, &e) || e.Op != "OpenVirtualDisk" || e.Path != path || e.Code == 0 {
		t.Errorf("open: %v", err)
	}
	// Wine's stub ends the program at CreateVirtualDisk itself: only what comes before it can be tried.
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = d.Create(t.Context(), path, hyperv.CreateDisk{Size: 1 << 30}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a file: %v", err)
	}
	if _, err = d.Open(t.Context(), `relative.vhdx`, false); err == nil {
		t.Error("a relative path was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = d.Open(ctx, path, false); !errors.Is(err, context.Canceled) {
		t.Errorf("open after the end: %v", err)
	}
	if _, _, err := d.lib.changes(1, path, "rct", 0, 1, make([]changeRange, 1)); !errors.Is(err, hyperv.ErrUnsupported) {
		t.Errorf("a function that this host lacks: %v", err)
	}
	if err := enablePrivilege("SeManageVolumePrivilege"); err != nil {
		t.Errorf("enable privilege: %v", err)
	}
}

// TestWindowsCodes compares the codes that mingw-w64's headers lack with those of x/sys, which are made from Microsoft's.
func TestWindowsCodes(t *testing.T) {
	for want, got := range map[error]uint32{
		windows.ERROR_VHD_DRIVE_FOOTER_MISSING: errVHDFirst, windows.ERROR_VIRTDISK_PROVIDER_NOT_FOUND: errVHDProviderMissing,
		windows.ERROR_VHD_PARENT_VHD_ACCESS_DENIED: errVHDParentAccess, windows.ERROR_VIRTUAL_DISK_LIMITATION: errVHDLimitation,
		windows.ERROR_VHD_INVALID_TYPE: errVHDInvalidType, windows.ERROR_VIRTDISK_UNSUPPORTED_DISK_SECTOR_SIZE: errVHDSectorSize,
		windows.ERROR_VIRTDISK_DISK_ALREADY_OWNED: errVHDOwned, windows.ERROR_VIRTDISK_DISK_ONLINE_AND_WRITABLE: errVHDOnline,
		windows.ERROR_CTLOG_TRACKING_NOT_INITIALIZED: errCTLogNotInitialized, windows.ERROR_CTLOG_LOGFILE_SIZE_EXCEEDED_MAXSIZE: errCTLogSize,
		windows.ERROR_CTLOG_VHD_CHANGED_OFFLINE: errCTLogChangedOffline, windows.ERROR_CTLOG_INVALID_TRACKING_STATE: errCTLogState,
		windows.ERROR_CTLOG_INCONSISTENT_TRACKING_FILE: errCTLogInconsistent, windows.ERROR_VHD_INVALID_CHANGE_TRACKING_ID: errVHDTrackingID,
		windows.ERROR_VHD_CHANGE_TRACKING_DISABLED: errVHDTrackingOff, windows.ERROR_VHD_MISSING_CHANGE_TRACKING_INFORMATION: errVHDTrackingMissing,
	} {
		if want != windows.Errno(got) {
			t.Errorf("0x%x is not %v", got, want)
		}
	}
}

func TestWindowsFiles(t *testing.T) {
	d := newDisks(t)
	path := filepath.Join(scratch(t), "a.vhdx")
	for _, suffix := range []string{"", ".rct", ".mrt"} {
		if err := os.WriteFile(path+suffix, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := d.ReadFile(t.Context(), path, 7); err != nil || string(b) != "content" {
		t.Errorf("ReadFile: %q, %v", b, err)
	}
	if _, err := d.ReadFile(t.Context(), path, 6); err == nil {
		t.Error("ReadFile took a file that is too long")
	}
	// A file that another program holds is in use, and nothing else.
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ, 0, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(t.Context(), path); !errors.Is(err, hyperv.ErrInUse) {
		t.Errorf("remove a file that is held: %v", err)
	}
	if err := windows.CloseHandle(h); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Remove(t.Context(), path); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	for _, suffix := range []string{"", ".rct", ".mrt"} {
		if _, err := os.Lstat(path + suffix); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", suffix, err)
		}
	}
	if p, err := d.HostPath(`C:\a\b`); err != nil || p != `C:\a\b` {
		t.Errorf("HostPath = %s, %v", p, err)
	}
}

// fileDisk stands an ordinary file, opened as virtdisk.dll's handles are (overlapped), in for an attached disk.
func fileDisk(t *testing.T, d *Disks, size, sector int64, write bool) (*disk, []byte) {
	t.Helper()
	path := filepath.Join(scratch(t), "disk.raw")
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i*7 + i>>9)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_OVERLAPPED, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := &disk{disks: d, path: path, write: write, handle: h, io: h, closed: make(chan struct{}),
		info: hyperv.DiskInfo{Size: size, LogicalSector: sector}}
	if err := k.makeSlots(3); err != nil {
		t.Fatal(err)
	}
	return k, content
}

// TestWindowsRequests runs overlapped requests of every alignment, in parallel.
func TestWindowsRequests(t *testing.T) {
	d := newDisks(t)
	const size = 3<<20 + 4096
	k, content := fileDisk(t, d, size, 4096, true)
	var wg sync.WaitGroup
	errs := make(chan error, 32)
	for i := range 16 {
		wg.Go(func() {
			off := int64(i * 137777)
			p := make([]byte, 600000+i*4097)
			if err := k.ReadAt(t.Context(), p, off); err != nil {
				errs <- err
			} else if !bytes.Equal(p, content[off:off+int64(len(p))]) {
				errs <- fmt.Errorf("content at %d differs", off)
			}
		})
	}
	wg.Wait()
	// Writes of neighbouring parts of one sector, and one over several slots.
	for i := range 16 {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(0xa0 + i)}, 100)
			if err := k.WriteAt(t.Context(), p, int64(8192+i*100)); err != nil {
				errs <- err
			}
		})
		copy(content[8192+i*100:], bytes.Repeat([]byte{byte(0xa0 + i)}, 100))
	}
	wg.Wait()
	long := bytes.Repeat([]byte("long"), 400000)
	if err := k.WriteAt(t.Context(), long, 1000001); err != nil {
		t.Error(err)
	}
	copy(content[1000001:], long)
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	all := make([]byte, size)
	if err := k.ReadAt(t.Context(), all, 0); err != nil || !bytes.Equal(all, content) {
		t.Errorf("what was written differs: %v", err)
	}
	for _, c := range [][2]int64{{-1, 1}, {size, 1}, {size - 1, 2}, {size + 1, 0}} {
		if err := k.ReadAt(t.Context(), make([]byte, c[1]), c[0]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read %v: %v", c, err)
		}
	}
	var told [][2]int64
	if err := k.Extents(t.Context(), 5, 100, func(off, n int64, zero bool) error {
		told = append(told, [2]int64{off, n})
		if zero {
			t.Error("a range of unknown content is zero")
		}
		return nil
	}); err != nil || len(told) != 1 || told[0] != [2]int64{5, 100} {
		t.Errorf("Extents: %v, %v", told, err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := k.ReadAt(t.Context(), make([]byte, 1), 0); err == nil {
		t.Error("a closed disk was read")
	}
	if b, err := os.ReadFile(k.path); err != nil || !bytes.Equal(b, content) {
		t.Errorf("the file after Close differs: %v", err)
	}
	readOnly, _ := fileDisk(t, d, 4096, 512, false)
	if err := readOnly.WriteAt(t.Context(), []byte("x"), 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("write to a read-only disk: %v", err)
	}
	if err := readOnly.Close(); err != nil {
		t.Error(err)
	}
}

// TestWindowsHang: a driver that does not answer (a pipe that nobody writes to) holds neither a reader nor Close beyond their deadlines.
func TestWindowsHang(t *testing.T) {
	d := newDisks(t)
	name, err := windows.UTF16PtrFromString(fmt.Sprintf(`\\.\pipe\holdfast-virtdisk-%d`, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateNamedPipe(name, windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED, windows.PIPE_TYPE_BYTE, 1, 4096, 4096, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := &disk{disks: d, path: "pipe", handle: h, io: h, closed: make(chan struct{}), info: hyperv.DiskInfo{Size: 1 << 20, LogicalSector: 512}}
	if err := k.makeSlots(1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := k.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ReadAt: %v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("ReadAt took %v", took)
	}
	// The slot comes back once the cancelled request has ended: another request gets it.
	ctx2, cancel2 := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel2()
	var n uint32
	if err := windows.WriteFile(client, bytes.Repeat([]byte("x"), 512), &n, nil); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	if err := k.ReadAt(ctx2, p, 0); err != nil || p[511] != 'x' {
		t.Errorf("ReadAt after a cancelled one: %v", err)
	}
	// Close ends a request that hangs.
	failed := make(chan error, 1)
	go func() { failed <- k.ReadAt(t.Context(), make([]byte, 512), 0) }()
	for len(k.slots) > 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond) // the request is with the system
	if err := k.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the request that Close cancelled succeeded")
	}
	if err := windows.CloseHandle(client); err != nil {
		t.Error(err)
	}
}

// TestWindowsLateCalls: a call that comes after its caller has gone is undone, and Close waits for it.
func TestWindowsLateCalls(t *testing.T) {
	d := newDisks(t)
	release, undone := make(chan struct{}), make(chan int, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := inTime(ctx, d, "open", "x", func() (int, error) { <-release; return 7, nil }, func(v int) { undone <- v })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("inTime: %v", err)
	}
	close(release)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	select {
	case v := <-undone:
		if v != 7 {
			t.Errorf("undone %d", v)
		}
	default:
		t.Error("Close did not wait until the late call was undone")
	}
	if _, err := inTime(t.Context(), d, "open", "x", func() (int, error) { return 0, nil }, nil); err == nil {
		t.Error("a call after Close was made")
	}
}
