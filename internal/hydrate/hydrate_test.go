//go:build unix

package hydrate_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/nbd"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/file"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/store"
	"holdfast/internal/store/storetest"
)

// TestMain also is the serving process that the launcher tests start:
// TEST_BINARY serve DIR-OF-STORE MACHINE KEYFILE ROOT SERVING.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serveMain(os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]); err != nil {
			io.WriteString(os.Stderr, hydrate.ErrorLine(err)+"\n")
			os.Exit(1)
		}
		return
	}
	// Without this a child built with the race detector lingers for a second
	// after its work is done, and looks like a leak.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	goleak.VerifyTestMain(m)
}

func serveMain(dir, machine, keyFile, root, serving string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	raw, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	key, err := cut.ParseVaultPrivateKey(string(raw))
	if err != nil {
		return err
	}
	b, err := file.Open(ctx, file.Config{Dir: dir})
	if err != nil {
		return err
	}
	defer b.Close()
	s := store.New(store.Config{Bucket: b, Keys: store.NewKeyring(b, key)})
	v, err := s.OpenPoint(ctx, dr.MachineID(machine), 1, 1)
	if err != nil {
		return err
	}
	defer v.Close()
	return hydrate.Serve(ctx, hydrate.ServeConfig{Dir: filepath.Join(root, serving), View: v, Check: time.Minute})
}

func sample(t *testing.T, b objstore.Bucket) *storetest.Replica {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	r := storetest.New(t, b, 3<<20, 1<<20+512)
	p := make([]byte, 256<<10)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	r.Write(0, 0, p)
	r.Write(0, 2<<20, p[:8192])
	r.Base()
	r.Write(0, 64<<10, p[4096:12288])
	r.Write(1, 1<<20, p[:512])
	r.Cut()
	return r
}

func open(t *testing.T, r *storetest.Replica, b objstore.Reader, n int) *store.View {
	t.Helper()
	v, err := store.New(store.Config{Bucket: b, Keys: store.NewKeyring(r.Bucket, r.Private)}).OpenPoint(t.Context(), r.Machine, r.Points[n].Ref.Gen, r.Points[n].Ref.N)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hyd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestServeIsThePoint(t *testing.T) {
	t.Parallel()
	r := sample(t, mem.New())
	dir := shortDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- hydrate.Serve(ctx, hydrate.ServeConfig{Dir: dir, View: open(t, r, r.Bucket, 1), Check: time.Minute})
	}()
	for i, d := range r.Disks {
		var c *nbd.Client
		var err error
		for range 200 {
			if c, err = nbd.Dial(t.Context(), nbd.ClientConfig{Network: "unix", Address: filepath.Join(dir, hydrate.SocketName), Export: d.ID, Contexts: []string{nbd.ContextAllocation}}); err == nil {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, c.Size())
		if err := c.ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, r.Points[1].Flat[i]) {
			t.Errorf("disk %s differs", d.ID)
		}
		c.Close()
	}
	// Exactly one process serves a directory.
	if err := hydrate.Serve(t.Context(), hydrate.ServeConfig{Dir: dir, View: open(t, r, r.Bucket, 0)}); !errors.Is(err, hydrate.ErrServed) {
		t.Errorf("a second one: %v", err)
	}
	st, err := hydrate.ReadStatus(dir)
	if err != nil || !st.Verified || len(st.Exports) != 2 {
		t.Errorf("status %+v %v", st, err)
	}
	vm, disks, err := hydrate.ReadVM(dir)
	if err != nil || vm.Name != "vm" || string(vm.Config["domain.xml"]) != "<domain/>" || len(disks) != 2 {
		t.Errorf("vm %+v %v %v", vm, disks, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Damage that the check can find in time refuses the point.
func TestServeRefusesDamage(t *testing.T) {
	t.Parallel()
	r := sample(t, mem.New())
	v := open(t, r, r.Bucket, 1)
	name := cut.CutObject(r.Machine, 1, 1)
	r.Replace(name, func(b []byte) []byte { b[200] ^= 1; return b })
	err := hydrate.Serve(t.Context(), hydrate.ServeConfig{Dir: shortDir(t), View: v, Check: time.Minute})
	if dr.CodeOf(err) != dr.CodePointRefused || !strings.Contains(err.Error(), name) {
		t.Fatalf("got %v", err)
	}
}

// flaky fails reads while down.
type flaky struct {
	objstore.Bucket
	down   atomic.Bool
	failed atomic.Int64
}

func (f *flaky) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if f.down.Load() {
		f.failed.Add(1)
		return nil, &objstore.Error{Op: "get", Key: key, Kind: objstore.ErrUnavailable}
	}
	return f.Bucket.Get(ctx, key, off, n)
}

// An outage of the store stalls a guest's read and does not fail it.
func TestReadWaitsForTheStore(t *testing.T) {
	t.Parallel()
	r := sample(t, mem.New())
	f := &flaky{Bucket: r.Bucket}
	v := open(t, r, f, 1)
	d := hydrate.NewDevice(v, v.Disks()[0], hydrate.DeviceConfig{})
	f.down.Store(true)
	done := make(chan error, 1)
	buf := make([]byte, 4096)
	go func() { done <- d.ReadAt(t.Context(), buf, 2<<20) }()
	for f.failed.Load() < 2 {
		select {
		case err := <-done:
			t.Fatalf("the read ended during the outage: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	f.down.Store(false)
	if err := <-done; err != nil || !bytes.Equal(buf, r.Points[1].Flat[0][2<<20:2<<20+4096]) {
		t.Fatal(err)
	}
	// Patience has an end, and damage has none at all.
	f.down.Store(true)
	short := hydrate.NewDevice(v, v.Disks()[0], hydrate.DeviceConfig{Patience: time.Nanosecond})
	if err := short.ReadAt(t.Context(), buf, 0); dr.KindOf(err) != dr.KindUnavailable {
		t.Fatalf("got %v", err)
	}
}

func TestRestore(t *testing.T) {
	t.Parallel()
	r := sample(t, mem.New())
	v := open(t, r, r.Bucket, 1)
	for i, d := range v.Disks() {
		path := filepath.Join(t.TempDir(), d.ID+".raw")
		var last atomic.Int64
		if err := hydrate.Restore(t.Context(), v, d.ID, path, hydrate.RestoreOptions{Progress: func(done, total int64) { last.Store(max(last.Load(), done)) }}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, r.Points[1].Flat[i]) || last.Load() != d.Size {
			t.Fatalf("disk %s differs (%v)", d.ID, err)
		}
		if err := hydrate.Restore(t.Context(), v, d.ID, path, hydrate.RestoreOptions{}); dr.KindOf(err) != dr.KindConflict {
			t.Errorf("an existing file was overwritten: %v", err)
		}
	}
	// A failed restore leaves no file behind.
	f := &flaky{Bucket: r.Bucket}
	bad := open(t, r, f, 1)
	f.down.Store(true)
	path := filepath.Join(t.TempDir(), "x.raw")
	if err := hydrate.Restore(t.Context(), bad, "vda", path, hydrate.RestoreOptions{}); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a torn file was left: %v", err)
	}
}

func TestLauncher(t *testing.T) {
	t.Parallel()
	storeDir, root := t.TempDir(), shortDir(t)
	b, err := file.Open(t.Context(), file.Config{Dir: storeDir, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := sample(t, b)
	key := filepath.Join(t.TempDir(), "key")
	text, err := r.Private.Text()
	if err == nil {
		err = os.WriteFile(key, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := &hydrate.Launcher{Root: root, Argv: []string{self, "serve", storeDir, string(r.Machine), key, root}}
	st, err := l.Ensure(t.Context(), "s1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Stop(context.Background(), "s1") })
	if st.Point != dr.PointName(1, 1) || st.PID == os.Getpid() {
		t.Errorf("status %+v", st)
	}
	// A new launcher, as after a restart of the agent, finds the same process.
	again, err := (&hydrate.Launcher{Root: root, Argv: []string{"/nonexistent"}}).Ensure(t.Context(), "s1")
	if err != nil || again.PID != st.PID {
		t.Fatalf("found %+v, %v", again, err)
	}
	// A killed process is replaced.
	if err := syscall.Kill(st.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for syscall.Kill(st.PID, 0) == nil { // until it is dead and reaped: its threads don't all end at once
		time.Sleep(time.Millisecond)
	}
	next, err := l.Ensure(t.Context(), "s1")
	if err != nil || next.PID == st.PID {
		t.Fatalf("after the kill: %+v %v", next, err)
	}
	for range 2 {
		if err := l.Stop(t.Context(), "s1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(next.PID, 0); err == nil {
		// The process may be a zombie of this test for a moment; it must not serve.
		if _, ok := l.Running(t.Context(), "s1"); ok {
			t.Error("the process still serves")
		}
	}
	// The reason of a failed start is the process's own.
	name := cut.CutObject(r.Machine, 1, 1)
	r.Replace(name, func(b []byte) []byte { b[300] ^= 1; return b })
	if _, err := l.Ensure(t.Context(), "s2"); dr.CodeOf(err) != dr.CodePointRefused || !strings.Contains(err.Error(), name) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", "../x", ".", "a/b"} {
		if _, err := l.Ensure(t.Context(), bad); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("serving %q: %v", bad, err)
		}
	}
}

// Programs that we did not write read what we serve.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	r := sample(t, mem.New())
	dir := shortDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- hydrate.Serve(ctx, hydrate.ServeConfig{Dir: dir, View: open(t, r, r.Bucket, 1), Check: time.Minute})
	}()
	socket := filepath.Join(dir, hydrate.SocketName)
	for range 400 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	raw := filepath.Join(t.TempDir(), "flat.raw")
	if err := os.WriteFile(raw, r.Points[1].Flat[0], 0o600); err != nil {
		t.Fatal(err)
	}
	uri := "nbd+unix:///vda?socket=" + socket
	for _, argv := range [][]string{
		{"qemu-img", "compare", "-f", "raw", "-F", "raw", uri, raw},
		{"nbdinfo", "--map", uri},
		{"nbdcopy", uri, filepath.Join(t.TempDir(), "copy.raw")},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", argv, err, out)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
