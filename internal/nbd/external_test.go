//go:build unix

package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests of this file use programs that nobody here wrote. They fail where
// the programs are missing.

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryRun(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("this test needs %s: %v", name, err)
	}
	out, err := exec.CommandContext(testContext(t), name, args...).CombinedOutput()
	return string(out), err
}

// spawn runs a server program until the test ends and waits for its socket.
func spawn(t testing.TB, sock, name string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("this test needs %s: %v", name, err)
	}
	var log bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		// The file is there before anybody listens: only a connection tells.
		if nc, err := net.Dial("unix", sock); err == nil {
			nc.Close()
			return cmd
		}
		select {
		case <-exited:
			t.Fatalf("%s ended: %s", name, log.String())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen", name)
		}
	}
}

func scattered(size int64) *memDevice {
	dev := newMemDevice(size)
	dev.scatter(uint64(size), 30)
	return dev
}

func TestServerWithNbdinfo(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(64 << 20)
	dev.WriteAt(context.Background(), bytes.Repeat([]byte{1}, 100_000), 10<<20)
	srv := serveDevices(t, ExportMap{"vda": readOnly{dev}, "vdb": newMemDevice(1 << 20)})

	type export struct {
		Name     string   `json:"export-name"`
		Size     int64    `json:"export-size"`
		ReadOnly bool     `json:"is_read_only"`
		DF       bool     `json:"can_df"`
		Multi    bool     `json:"can_multi_conn"`
		Cache    bool     `json:"can_cache"`
		FUA      bool     `json:"can_fua"`
		Flush    bool     `json:"can_flush"`
		Trim     bool     `json:"can_trim"`
		Zero     bool     `json:"can_zero"`
		Contexts []string `json:"contexts"`
		Min      int64    `json:"block_size_minimum"`
		Pref     int64    `json:"block_size_preferred"`
		Max      int64    `json:"block_size_maximum"`
	}
	var got struct {
		Protocol   string   `json:"protocol"`
		Structured bool     `json:"structured"`
		Exports    []export `json:"exports"`
	}
	out := run(t, "nbdinfo", "--json", "--list", srv.uri(""))
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := []export{
		{Name: "vda", Size: 64 << 20, ReadOnly: true, DF: true, Multi: true, Cache: true, Contexts: []string{ContextAllocation}, Min: 1, Pref: 4096, Max: 32 << 20},
		{Name: "vdb", Size: 1 << 20, DF: true, Cache: true, FUA: true, Flush: true, Trim: true, Zero: true, Contexts: []string{ContextAllocation}, Min: 1, Pref: 4096, Max: 32 << 20},
	}
	if got.Protocol != "newstyle-fixed" || !got.Structured || !reflect.DeepEqual(got.Exports, want) {
		t.Errorf("nbdinfo says\n%s", out)
	}

	var m []struct{ Offset, Length, Type int64 }
	out = run(t, "nbdinfo", "--map", "--json", srv.uri("vda"))
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantMap := []struct{ Offset, Length, Type int64 }{{0, 10 << 20, 3}, {10 << 20, 102400, 0}, {10<<20 + 102400, 54<<20 - 102400, 3}}
	if !reflect.DeepEqual(m, wantMap) {
		t.Errorf("nbdinfo --map says %v", m)
	}
	if out, err := tryRun(t, "nbdinfo", srv.uri("nope")); err == nil || !strings.Contains(out, "No such file or directory") {
		t.Errorf("unknown export: %v %s", err, out)
	}
}

func TestServerCopiedByOthers(t *testing.T) {
	t.Parallel()
	dev := scattered(48<<20 + 512)
	srv := serveDevices(t, ExportMap{"disk": readOnly{dev}})
	dir := t.TempDir()
	want := filepath.Join(dir, "want")
	if err := os.WriteFile(want, dev.data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		do   func(out string)
	}{
		{"nbdcopy", func(out string) { run(t, "nbdcopy", srv.uri("disk"), out) }},
		{"nbdcopy one connection", func(out string) { run(t, "nbdcopy", "--connections=1", "--requests=64", srv.uri("disk"), out) }},
		{"nbdcopy synchronous", func(out string) { run(t, "nbdcopy", "--synchronous", srv.uri("disk"), out) }},
		{"nbdcopy without extents", func(out string) { run(t, "nbdcopy", "--no-extents", srv.uri("disk"), out) }},
		{"qemu-img convert", func(out string) { run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", srv.uri("disk"), out) }},
		{"qemu-img convert -W -m 8", func(out string) {
			run(t, "qemu-img", "convert", "-W", "-m", "8", "-f", "raw", "-O", "raw", srv.uri("disk"), out)
		}},
		{"qcow2 overlay", func(out string) {
			ov := out + ".qcow2"
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", srv.uri("disk"), ov)
			run(t, "qemu-io", "-c", "write -P 9 1M 64k", "-c", "write -P 0 1M 64k", ov) // copy on write of part of a cluster
			p := dev.data[1<<20:][:64<<10]
			f, err := os.CreateTemp(dir, "piece")
			if err != nil {
				t.Fatal(err)
			}
			f.Write(p)
			f.Close()
			run(t, "qemu-io", "-c", fmt.Sprintf("write -s %s 1M 64k", f.Name()), ov)
			run(t, "qemu-img", "convert", "-O", "raw", ov, out)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := filepath.Join(dir, strings.ReplaceAll(tc.name, " ", "_"))
			tc.do(out)
			run(t, "cmp", want, out)
			st, err := os.Stat(out)
			if err != nil {
				t.Fatal(err)
			}
			if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Blocks*512 > int64(len(dev.data))*3/4 {
				t.Errorf("holes were filled: %d bytes allocated", sys.Blocks*512)
			}
		})
	}
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", srv.uri("disk"), want)
	// And compare does notice.
	dev.WriteAt(context.Background(), []byte{dev.data[20<<20] ^ 1}, 20<<20)
	if _, err := tryRun(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", srv.uri("disk"), want); err == nil {
		t.Error("qemu-img compare did not see a difference")
	}
}

func TestServerWrittenByQemuIO(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(16 << 20)
	srv := serveDevices(t, ExportMap{"w": dev})
	run(t, "qemu-io", "-f", "raw", srv.uri("w"),
		"-c", "write -P 0xab 0 1M",
		"-c", "write -f -P 0xcd 1234944 512",
		"-c", "write -z 64k 64k",
		"-c", "write -z -u 256k 64k",
		"-c", "discard 512k 128k",
		"-c", "aio_write -P 0x11 4M 2M", "-c", "aio_write -P 0x22 6M 3M", "-c", "aio_flush",
		"-c", "flush",
		"-c", "read -P 0xab 0 64k", "-c", "read -P 0 64k 64k")
	want := make([]byte, dev.size)
	fill := func(off, n int, b byte) { copy(want[off:], bytes.Repeat([]byte{b}, n)) }
	fill(0, 1<<20, 0xab)
	fill(1234944, 512, 0xcd)
	fill(64<<10, 64<<10, 0)
	fill(256<<10, 64<<10, 0)
	fill(512<<10, 128<<10, 0)
	fill(4<<20, 2<<20, 0x11)
	fill(6<<20, 3<<20, 0x22)
	if !bytes.Equal(dev.snapshot(), want) {
		t.Fatal("device content differs")
	}
	if dev.flushes.Load() < 2 || !dev.allocated.Load() {
		t.Errorf("%d flushes, allocate %v", dev.flushes.Load(), dev.allocated.Load())
	}
	// Whole image in by nbdcopy, over content that must go.
	src := scattered(16 << 20)
	file := filepath.Join(t.TempDir(), "src")
	if err := os.WriteFile(file, src.data, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "nbdcopy", "--flush", file, srv.uri("w"))
	if !bytes.Equal(dev.snapshot(), src.data) {
		t.Fatal("content after nbdcopy differs")
	}
	// A read-only export refuses.
	ro := serveDevices(t, ExportMap{"": readOnly{newMemDevice(1 << 20)}})
	if out, err := tryRun(t, "qemu-io", "-f", "raw", ro.uri(""), "-c", "write 0 512"); err == nil && !strings.Contains(out, "rror") {
		t.Errorf("write to a read-only export: %s", out)
	}
}

func TestServerDeviceErrorSeenByQemuIO(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(4 << 20)
	dev.scatter(1, 50)
	dev.readHook = func(_ context.Context, off int64, n int) error {
		if off <= 1<<20 && 1<<20 < off+int64(n) {
			return errors.New("bad sector")
		}
		return nil
	}
	srv := serveDevices(t, ExportMap{"": readOnly{dev}})
	out, _ := tryRun(t, "qemu-io", "-r", "-f", "raw", srv.uri(""), "-c", "read 0 64k", "-c", "read 1M 64k", "-c", "read 2M 64k")
	if strings.Count(out, "read 65536/65536") != 2 || !strings.Contains(out, "Input/output error") {
		t.Errorf("qemu-io says\n%s", out)
	}
}

// dirtyImage makes a qcow2 with a bitmap b0 in which exactly two ranges are
// dirty, and some older content.
func dirtyImage(t *testing.T) string {
	t.Helper()
	img := filepath.Join(socketDir(t), "d.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", img, "64M")
	run(t, "qemu-io", "-c", "write -P 1 0 1M", "-c", "write -P 1 40M 64k", img)
	run(t, "qemu-img", "bitmap", "--add", "-g", "4096", img, "b0")
	run(t, "qemu-io", "-c", "write -P 2 512k 10000", "-c", "write -P 3 50M 4k", "-c", "write -z -u 40M 64k", img)
	return img
}

func TestClientReadsDirtyBitmapOfQemu(t *testing.T) {
	t.Parallel()
	img := dirtyImage(t)
	sock := filepath.Join(filepath.Dir(img), "s")
	spawn(t, sock, "qemu-nbd", "-r", "-t", "-e", "10", "-f", "qcow2", "-x", "vda", "-B", "b0", "-k", sock, img)
	bitmap := ContextDirtyPrefix + "b0"
	c := dialUnix(t, sock, "vda", ContextAllocation, bitmap)
	got := extentsOf(t, c, 0, c.Size())
	d := StateDirty
	wantDirty := []told{
		{0, 512 << 10, 0}, {512 << 10, 12288, d}, {512<<10 + 12288, 40<<20 - 512<<10 - 12288, 0},
		{40 << 20, 64 << 10, d}, {40<<20 + 64<<10, 10<<20 - 64<<10, 0}, {50 << 20, 4096, d}, {50<<20 + 4096, 14<<20 - 4096, 0},
	}
	if !reflect.DeepEqual(got[bitmap], wantDirty) {
		t.Errorf("dirty\n%v, want\n%v", got[bitmap], wantDirty)
	}
	hole := StateHole | StateZero
	wantAlloc := []told{{0, 1 << 20, 0}, {1 << 20, 49 << 20, hole}, {50 << 20, 64 << 10, 0}, {50<<20 + 64<<10, 14<<20 - 64<<10, hole}}
	// qemu may keep the zeroed cluster allocated: only "reads as zero" matters.
	var zero []told
	for _, e := range got[ContextAllocation] {
		e.Flags = e.Flags & StateZero / StateZero * hole
		if k := len(zero) - 1; k >= 0 && zero[k].Flags == e.Flags {
			zero[k].Len += e.Len
		} else {
			zero = append(zero, e)
		}
	}
	// The tail of the cluster at 50M is data or zero by qemu's choice.
	if len(zero) != 4 || !reflect.DeepEqual(zero[:2], wantAlloc[:2]) {
		t.Errorf("allocation\n%v, want\n%v", zero, wantAlloc)
	}
	// A part of it, unaligned.
	part := extentsOf(t, c, 512<<10+100, 20000)[bitmap]
	if want := []told{{512<<10 + 100, 12288 - 100, d}, {512<<10 + 12288, 20000 - 12288 + 100, 0}}; !reflect.DeepEqual(part, want) {
		t.Errorf("part %v, want %v", part, want)
	}
	// Content through our client is content through qemu-img.
	raw := filepath.Join(filepath.Dir(img), "raw")
	run(t, "qemu-img", "convert", "-U", "-O", "raw", img, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, c.Size())
	if err := c.ReadAt(testContext(t), p, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, want) {
		t.Error("content differs")
	}
	q := make([]byte, 70_001)
	if err := c.ReadAt(testContext(t), q, 511<<10+3); err != nil || !bytes.Equal(q, want[511<<10+3:][:70_001]) {
		t.Errorf("unaligned read: %v", err)
	}

	for name, tc := range map[string]struct {
		export, context string
		want            error
	}{
		"unknown bitmap": {"vda", ContextDirtyPrefix + "b1", ErrContextNotGranted},
		"unknown export": {"vdb", bitmap, ErrNoSuchExport},
		"bare export":    {"vdb", "", ErrNoSuchExport},
	} {
		cfg := ClientConfig{Network: "unix", Address: sock, Export: tc.export}
		if tc.context != "" {
			cfg.Contexts = []string{ContextAllocation, tc.context}
		}
		_, err := Dial(testContext(t), cfg)
		if !errors.Is(err, tc.want) || tc.want == ErrContextNotGranted && !strings.Contains(err.Error(), tc.context) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientWithNbdkitMemory(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		args []string
		sr   bool
	}{
		{"structured replies", nil, true},
		{"simple replies", []string{"--no-sr"}, false},
		{"blocks of 4096", []string{"--filter=blocksize-policy"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sock := filepath.Join(socketDir(t), "s")
			args := append([]string{"-f", "-U", sock}, tc.args...)
			args = append(args, "memory", "16M")
			align := int64(1)
			if strings.Contains(tc.name, "4096") {
				args = append(args, "blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=131072", "blocksize-error-policy=error")
				align = 4096
			}
			spawn(t, sock, "nbdkit", args...)
			ctx := testContext(t)
			if !tc.sr {
				_, err := Dial(ctx, ClientConfig{Network: "unix", Address: sock, Contexts: []string{ContextAllocation}})
				if !errors.Is(err, ErrContextNotGranted) {
					t.Errorf("context without structured replies: %v", err)
				}
			}
			var contexts []string
			if tc.sr {
				contexts = []string{ContextAllocation}
			}
			c := dialUnix(t, sock, "", contexts...)
			mirror := newMemDevice(16 << 20)
			data := scattered(1 << 20).data
			for _, off := range []int64{0, 3 << 20, 12<<20 + align} {
				if err := c.WriteAt(ctx, data, off); err != nil {
					t.Fatal(err)
				}
				mirror.WriteAt(ctx, data, off)
			}
			if err := errors.Join(c.WriteZeroes(ctx, 4096, 8192), c.Trim(ctx, 3<<20, 512<<10), c.Flush(ctx)); err != nil {
				t.Fatal(err)
			}
			mirror.WriteZeroes(ctx, 4096, 8192, false)
			mirror.WriteZeroes(ctx, 3<<20, 512<<10, false)
			if lo, _, _ := c.BlockSize(); int64(lo) != align {
				t.Errorf("minimum block %d, want %d", lo, align)
			}
			if align > 1 {
				if err := c.WriteAt(ctx, []byte("x"), 1); !errors.Is(err, ErrOutOfRange) {
					t.Errorf("unaligned write: %v", err)
				}
			}
			p := make([]byte, 16<<20)
			if err := c.ReadAt(ctx, p, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, mirror.data) {
				t.Fatal("content differs")
			}
			var wg sync.WaitGroup
			for i := range int64(32) {
				wg.Go(func() {
					off, n := i*300_007, 250_001+i
					q := make([]byte, n)
					if err := c.ReadAt(ctx, q, off); err != nil {
						t.Error(err)
					} else if !bytes.Equal(q, mirror.data[off:off+n]) {
						t.Errorf("read of %d at %d differs", n, off)
					}
				})
			}
			wg.Wait()
			if tc.sr {
				for _, e := range extentsOf(t, c, 0, 16<<20)[ContextAllocation] {
					if e.Flags&StateZero != 0 && !bytes.Equal(mirror.data[e.Off:e.Off+e.Len], make([]byte, e.Len)) {
						t.Errorf("extent %+v is not zero", e)
					}
				}
			}
		})
	}
}

// Two contexts where one is told in pieces, over 2^31 bytes per request.
func TestClientWithLargeSparseNbdkit(t *testing.T) {
	t.Parallel()
	sock := filepath.Join(socketDir(t), "s")
	spawn(t, sock, "nbdkit", "-f", "-U", sock, "memory", "1T")
	c := dialUnix(t, sock, "", ContextAllocation)
	ctx := testContext(t)
	if err := c.WriteAt(ctx, []byte("end"), 1<<40-3); err != nil {
		t.Fatal(err)
	}
	got := extentsOf(t, c, 0, 1<<40)[ContextAllocation]
	if len(got) != 2 || got[0].Flags != StateHole|StateZero || got[1].Flags != 0 || got[1].Len > 1<<20 {
		t.Errorf("%v", got)
	}
}

func TestClientWithNbdkitErrors(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	sock, flag := filepath.Join(dir, "s"), filepath.Join(dir, "fail")
	spawn(t, sock, "nbdkit", "-f", "-U", sock, "--filter=error", "memory", "16M", "error=EIO", "error-rate=100%", "error-file="+flag)
	c := dialUnix(t, sock, "", ContextAllocation)
	ctx := testContext(t)
	if err := c.ReadAt(ctx, make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"read":    c.ReadAt(ctx, make([]byte, 4096), 4096),
		"write":   c.WriteAt(ctx, make([]byte, 4096), 4096),
		"trim":    c.Trim(ctx, 0, 4096),
		"zeroes":  c.WriteZeroes(ctx, 0, 4096),
		"extents": c.Extents(ctx, 0, 16<<20, func(string, int64, int64, uint32) error { return nil }),
	} {
		if !errors.Is(err, EIO) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadAt(ctx, make([]byte, 4096), 0); err != nil {
		t.Errorf("connection did not survive: %v", err)
	}
}

func TestClientAndNbdkitKilledOrSlow(t *testing.T) {
	t.Parallel()
	sock := filepath.Join(socketDir(t), "s")
	cmd := spawn(t, sock, "nbdkit", "-f", "-U", sock, "--filter=delay", "memory", "16M", "rdelay=30")
	c := dialUnix(t, sock, "")
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.ReadAt(short, make([]byte, 4096), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hung read: %v", err)
	}
	if err := c.WriteAt(testContext(t), make([]byte, 4096), 0); err != nil {
		t.Errorf("write beside a hung read: %v", err)
	}
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() { errs <- c.ReadAt(testContext(t), make([]byte, 4096), 0) }()
	}
	waitFor(t, c, func() bool { return len(c.pending) == 5 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, ErrConnectionLost) {
			t.Errorf("%v", err)
		}
	}
	if _, err := net.Dial("unix", sock); err == nil {
		t.Error("nbdkit still lives")
	}
}
