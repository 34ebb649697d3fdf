package libvirt_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/guesttest"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/libvirt"
	"holdfast/internal/ledger"
	"holdfast/internal/ledger/sessionvirt"
	"holdfast/internal/nbd"
)

// images is what a receiver of cuts keeps: a raw image per disk.
type images map[string]string

// apply writes the changed ranges of a cut into the images.
func (im images) apply(t testing.TB, c hypervisor.Cut) (changed int64) {
	t.Helper()
	ctx := t.Context()
	for _, d := range c.Info().Disks {
		f, err := os.OpenFile(im[d.ID], os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(d.Size); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256<<10)
		err = c.Extents(ctx, d.ID, 0, d.Size, func(r hypervisor.Range) error {
			if !r.Changed {
				return nil
			}
			changed += r.Len
			for off := r.Off; off < r.Off+r.Len; {
				p := buf[:min(int64(len(buf)), r.Off+r.Len-off)]
				if r.Zero {
					clear(p)
				} else if err := c.ReadAt(ctx, d.ID, p, off); err != nil {
					return err
				}
				if _, err := f.WriteAt(p, off); err != nil {
					return err
				}
				off += int64(len(p))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return changed
}

// verify checks a copy of the images offline.
func (im images) verify(t testing.TB) ledger.Verdict {
	t.Helper()
	v, err := ledger.VerifyImages(t.Context(), im["vda"], im["vdb"])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// serve exports the images by NBD, as the recovery point's server does.
func (im images) serve(t testing.TB, dir string) (socket string, stop func()) {
	t.Helper()
	exports := nbd.ExportMap{}
	for id, path := range im {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		exports[id] = &fileDevice{f: f, size: st.Size()}
	}
	s, err := nbd.NewServer(nbd.ServerConfig{Exports: exports})
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "rp.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ln) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = s.Close()
			if err := <-done; err != nil {
				t.Errorf("NBD server: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return socket, stop
}

type fileDevice struct {
	f    *os.File
	size int64
}

func (d *fileDevice) Size() int64 { return d.size }
func (d *fileDevice) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := d.f.ReadAt(p, off)
	return err
}
func (d *fileDevice) Extents(_ context.Context, off, n int64) ([]nbd.AllocationExtent, error) {
	return []nbd.AllocationExtent{{Off: off, Len: n}}, nil
}

// console reads the ledger's lines of a recovery VM.
func console(t testing.TB, h *libvirt.Host, id dr.VMID) ledger.Console {
	t.Helper()
	b, err := h.SerialLog(t.Context(), id, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ledger.ReadConsole(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func waitConsole(t testing.TB, h *libvirt.Host, id dr.VMID, what string, ok func(ledger.Console) bool) ledger.Console {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		c := console(t, h, id)
		if ok(c) {
			return c
		}
		if time.Now().After(end) {
			b, _ := h.SerialLog(t.Context(), id, 2000)
			t.Fatalf("the recovery VM does not show %s: %+v\n%s", what, c, b)
		}
	}
}

// TestLedger protects a running guest, loses it, and runs it elsewhere: what
// was acknowledged at the cut is there, nothing is torn, and once it is local
// it needs nobody. The second host is another libvirt.
func TestLedger(t *testing.T) {
	slow(t)
	for _, uefi := range []bool{false, true} {
		t.Run(fmt.Sprintf("uefi=%t", uefi), func(t *testing.T) {
			t.Parallel()
			testLedger(t, uefi)
		})
	}
}

func testLedger(t *testing.T, uefi bool) {
	primary, recovery := newBench(t), newBench(t)
	g := guesttest.StartGuest(t, primary.inst, "src", sessionvirt.GuestConfig{UEFI: uefi, Words: []string{"churn=20"}, Network: "user"})
	src := primary.open(t, filepath.Join(primary.inst.Dir, "hf"), nil)
	dst := recovery.open(t, filepath.Join(recovery.inst.Dir, "hf"), nil)
	vm := dr.VMID(g.UUID)
	im := images{"vda": filepath.Join(recovery.inst.Dir, "vda.raw"), "vdb": filepath.Join(recovery.inst.Dir, "vdb.raw")}
	base := ""
	var acked uint64
	for n := range 4 {
		g.WaitMore(20)
		acked = g.Acks()
		c, err := src.BeginCut(t.Context(), hypervisor.CutRequest{VM: vm, Disks: []string{"vda", "vdb"}, Base: base, Tag: fmt.Sprintf("n%d", n), Quiesce: n == 2})
		if err != nil {
			t.Fatal(err)
		}
		i := c.Info()
		changed := im.apply(t, c)
		if err := c.End(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("cut %d: %d bytes, %s %s", n, changed, i.Consistency, i.Note)
		base = i.Token
		v := im.verify(t)
		if err := v.Covers(acked); err != nil {
			t.Fatalf("cut %d: %v", n, err)
		}
		if n == 2 && (i.Consistency != dr.FileSystemConsistent || v.JournalReplayed) {
			t.Errorf("a quiesced cut is %s (%s), journal replayed %t", i.Consistency, i.Note, v.JournalReplayed)
		}
	}
	cfg, err := src.Config(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]int{false: 1, true: 2}[uefi]; cfg.VM.Generation != want || (len(cfg.Native["nvram"]) > 0) != uefi {
		t.Errorf("generation %d, %d bytes of firmware variables", cfg.VM.Generation, len(cfg.Native["nvram"]))
	}
	g.Kill()

	socket, stop := im.serve(t, recovery.inst.Dir)
	spec := hypervisor.BootSpec{Name: "src-recovered", Owner: "item-1", Config: cfg, KeepUUID: true, Network: "user"}
	for _, id := range []string{"vda", "vdb"} {
		st, err := os.Stat(im[id])
		if err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, hypervisor.BootDisk{ID: id, Size: st.Size(), Socket: socket, Export: id, Path: filepath.Join(recovery.inst.Dir, "local", id+".qcow2")})
	}
	id, err := dst.Boot(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if id != vm {
		t.Errorf("the recovery VM is %s, want the source's %s", id, vm)
	}
	c := waitConsole(t, dst, id, "its ledger", func(c ledger.Console) bool { return c.Boots > 0 })
	if !c.Order || !c.Chain || c.FoundA < acked {
		t.Errorf("the recovery VM found %+v, acknowledged were %d", c, acked)
	}
	if shot, err := dst.Screenshot(t.Context(), id); err != nil || !bytes.HasPrefix(shot, []byte("\x89PNG")) {
		t.Errorf("screenshot: %d bytes, %v", len(shot), err)
	}
	rcfg, err := dst.Config(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if len(rcfg.VM.NICs) != 1 || rcfg.VM.NICs[0].MAC != cfg.VM.NICs[0].MAC {
		t.Errorf("network cards %+v, want %+v", rcfg.VM.NICs, cfg.VM.NICs)
	}
	if err := dst.MakeLocal(t.Context(), id, nil); err != nil {
		t.Fatal(err)
	}
	stop()
	before := console(t, dst, id).BootAcked
	waitConsole(t, dst, id, "records after the server has gone", func(c ledger.Console) bool { return c.BootAcked > before+40 })

	// The recovery VM can be cut like any other: the way home.
	cut, err := dst.BeginCut(t.Context(), hypervisor.CutRequest{VM: id, Disks: []string{"vda", "vdb"}, Tag: "home"})
	if err != nil {
		t.Fatal(err)
	}
	back := images{"vda": im["vda"] + ".back", "vdb": im["vdb"] + ".back"}
	back.apply(t, cut)
	if err := cut.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := back.verify(t).Covers(before); err != nil {
		t.Errorf("cut of the recovery VM: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := dst.Shutdown(ctx, id); err != nil {
		t.Errorf("shut the recovery VM down: %v", err)
	}
	if err := dst.Remove(t.Context(), id, "item-1"); err != nil {
		t.Error(err)
	}
}

// TestHungGuestAgent: an agent that hangs neither delays a cut for long nor
// leaves its guest frozen when it wakes up and executes the freeze it was
// asked for long ago. A new process goes on where the old one stopped.
func TestHungGuestAgent(t *testing.T) {
	slow(t)
	b := newBench(t)
	g := guesttest.StartGuest(t, b.inst, "src", sessionvirt.GuestConfig{})
	dir := filepath.Join(b.inst.Dir, "hf")
	quick := func(c *libvirt.Config) { c.AgentTimeout = time.Second }
	h := b.open(t, dir, quick)
	vm := dr.VMID(g.UUID)
	pid := strings.TrimSpace(g.Exec("/bin/busybox", "pidof", "qemu-ga"))
	// It wakes up by itself: nobody could ask it to.
	g.Exec("/bin/busybox", "sh", "-c", fmt.Sprintf("(busybox sleep 1; busybox kill -STOP %s; busybox sleep 8; busybox kill -CONT %s) >/dev/null 2>&1 &", pid, pid))
	time.Sleep(2 * time.Second)
	began := time.Now()
	c, err := h.BeginCut(t.Context(), hypervisor.CutRequest{VM: vm, Disks: []string{"vda", "vdb"}, Tag: "q", Quiesce: true})
	if err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.Consistency != dr.CrashConsistent || i.Note == "" {
		t.Errorf("a cut with a hung agent is %s, note %q", i.Consistency, i.Note)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("a hung agent delayed the cut by %v", took)
	}
	if err := c.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(dir, "freezing", string(vm))
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the pending freeze is not recorded: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	h = b.open(t, dir, quick)
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if _, err := os.Stat(mark); os.IsNotExist(err) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the thaw was never confirmed")
		}
	}
	t.Logf("the guest saw %d freezes", g.Report().Freezes)
	g.WaitMore(20) // it writes: it is not frozen
	c, err = h.BeginCut(t.Context(), hypervisor.CutRequest{VM: vm, Disks: []string{"vda", "vdb"}, Tag: "q2", Quiesce: true})
	if err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.Consistency != dr.FileSystemConsistent {
		t.Errorf("a cut with an agent that woke up is %s: %s", i.Consistency, i.Note)
	}
	if err := c.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.WaitMore(20)
}
