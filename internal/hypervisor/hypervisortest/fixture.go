// Package hypervisortest is the conformance suite of the hypervisor contract.
// Every adapter runs it against its platform; what it demands is the contract.
//
// The suite is the only writer of the fixture's guest, so it always knows what
// every byte of every disk has to be: after each cut, a replica built from the
// changed ranges alone must equal the guest's disks at the instant of the cut.
package hypervisortest

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/nbd"
)

// Fixture is a host with one running VM, made anew for each test of the suite.
type Fixture struct {
	Host hypervisor.Host
	// VM is running, its disks read as zeroes and nobody but the suite writes to
	// them. It has no guest agent, and its guest ignores shutdown requests.
	VM    dr.VMID
	Disks []string // at least two; sizes are multiples of 1 MiB, at least 4 MiB
	Other dr.VMID  // another running VM with a disk of the same name as Disks[0]
	Dir   string   // short directory for sockets and images that the platform can use
	// Limit is how long one call of a healthy platform may take at most.
	Limit time.Duration

	// Write stores bytes as the guest would; offsets and lengths are multiples of 512.
	Write func(t testing.TB, disk string, off int64, p []byte)
	// Trim discards a range aligned to 64 KiB.
	Trim func(t testing.TB, disk string, off, n int64)
	// Grow enlarges a disk of the running VM.
	Grow func(t testing.TB, disk string, size int64)
	// Pause suspends the VM; nil: the platform can't, and PowerPaused is never seen.
	Pause func(t testing.TB)
	// Crash kills the VM as a power cut of the host would, and leaves it off.
	Crash func(t testing.TB)
	// PowerOff ends the VM in an orderly way, without the adapter.
	PowerOff func(t testing.TB)
	// Successor returns the host as a new agent process finds it while the old one's handles are lost.
	Successor func(t testing.TB) hypervisor.Host
	// ForeignToken makes a tracking token of another product; the result says whether it is still there.
	ForeignToken func(t testing.TB) (exists func() bool)
	// Hang makes the platform stop answering until release is called.
	Hang func(t testing.TB) (release func())
	// Content returns the whole content of a disk of a VM that is off.
	Content func(t testing.TB, vm dr.VMID, disk, path string) []byte
	// Unreplicatable names a disk of VM that can't be tracked; "" if there is none.
	Unreplicatable string

	// WriteOther is Write for the first disk of Other.
	WriteOther func(t testing.TB, off int64, p []byte)
	// Held: Write and WriteOther are a guest's own writes, which wait while it is held for a group cut.
	Held bool
	// AddDisk attaches an empty disk to the running VM.
	AddDisk func(t testing.TB, disk string, size int64)
	// RemoveDisk detaches a disk. Like Replace it may stop the VM in an orderly way and start it again.
	RemoveDisk func(t testing.TB, disk string)
	// Replace puts another, empty image under a disk's name.
	Replace func(t testing.TB, disk string, size int64)
	// Shrink makes a disk smaller.
	Shrink func(t testing.TB, disk string, size int64)
	// NewDisk is the id that AddDisk is called with; "" = "vdd".
	NewDisk string

	// What a platform honestly does in another way than KVM. None of it weakens
	// what a replica has to be equal to.
	SurvivesStop bool   // an open cut stays readable, and right, when the VM stops
	KeepsOnCrash bool   // tokens stay good when the VM is cut off: tracking is not the host's, but the storage's
	StaleReads   bool   // a stale cut may still be read, and is right, after it was ended: its image can't change
	GrowIsWhole  bool   // a disk that has grown loses its history
	BootCopies   bool   // Boot copies the disks before the VM starts; nothing is left for MakeLocal
	NoConsole    bool   // no screenshots and no serial log: dr.KindUnsupported
	Image        string // extension of local images; "" = ".qcow2"
	TrimUnit     int64  // what a discard has to cover to show as zeroes; 0 = 64 KiB

	// Tracking lists Holdfast's tracking tokens that the running VM still has in whatever form, also broken ones.
	Tracking func(t testing.TB) []string
}

// limit bounds a call by what a healthy platform needs.
func (f *Fixture) limit(t testing.TB) context.Context {
	t.Helper()
	d := f.Limit
	if d == 0 {
		d = 60 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func (f *Fixture) image() string {
	if f.Image == "" {
		return ".qcow2"
	}
	return f.Image
}

// wantCode fails unless err has the code.
func wantCode(t testing.TB, err error, code dr.Code) {
	t.Helper()
	if err == nil || dr.CodeOf(err) != code {
		t.Fatalf("error %v (code %q), want code %q", err, dr.CodeOf(err), code)
	}
}

func wantKind(t testing.TB, err error, kind dr.Kind) {
	t.Helper()
	var e *dr.Error
	if err == nil || dr.KindOf(err) != kind || !errors.As(err, &e) {
		t.Fatalf("error %v (kind %v), want a *dr.Error of kind %v", err, dr.KindOf(err), kind)
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (kind %v, code %q)", err, dr.KindOf(err), dr.CodeOf(err))
	}
}

// memoryDevice serves a byte slice by NBD. Once told to fail it answers reads with errors.
type memoryDevice struct {
	data []byte

	mu    sync.Mutex
	fails bool
	slow  time.Duration
	reads int
}

func (d *memoryDevice) Size() int64 { return int64(len(d.data)) }

func (d *memoryDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.mu.Lock()
	d.reads++
	fails, slow := d.fails, d.slow
	d.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fails {
		return errors.New("the recovery point can't be read")
	}
	copy(p, d.data[off:])
	return nil
}

func (d *memoryDevice) Extents(_ context.Context, off, length int64) ([]nbd.AllocationExtent, error) {
	return []nbd.AllocationExtent{{Off: off, Len: length}}, nil
}

func (d *memoryDevice) set(fails bool, slow time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails, d.slow = fails, slow
}

// serve exports devices on a unix socket until the returned function is called.
func serve(t testing.TB, dir string, devices map[string]*memoryDevice) (socket string, stop func()) {
	t.Helper()
	exports := nbd.ExportMap{}
	for n, d := range devices {
		exports[n] = d
	}
	s, err := nbd.NewServer(nbd.ServerConfig{Exports: exports})
	ok(t, err)
	socket = filepath.Join(dir, "rp.sock")
	ln, err := net.Listen("unix", socket)
	ok(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ln) }()
	for name := range devices { // a server that answers is one that can be stopped
		c, err := nbd.Dial(t.Context(), nbd.ClientConfig{Network: "unix", Address: socket, Export: name})
		ok(t, err)
		ok(t, c.Close())
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			if err := errors.Join(s.Close(), <-done); err != nil {
				t.Errorf("stop the NBD server: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return socket, stop
}
