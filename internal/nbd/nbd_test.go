package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestReadsMatchTheDevice(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(8<<20 + 777)
	dev.scatter(1, 12)
	srv := serveDevices(t, ExportMap{"vda": readOnly{dev}})
	c := srv.dial(t, "vda")
	if c.Size() != dev.size {
		t.Fatalf("size %d, want %d", c.Size(), dev.size)
	}
	if f := c.Flags(); f != FlagHasFlags|FlagReadOnly|FlagCanMultiConn|FlagSendCache|FlagSendDF {
		t.Errorf("flags %#x", f)
	}
	if lo, pref, hi := c.BlockSize(); lo != 1 || pref != 4096 || hi != 32<<20 {
		t.Errorf("block sizes %d %d %d", lo, pref, hi)
	}
	for _, n := range []int64{0, 1, 511, 4096, minHole - 1, minHole, 100_001, readPiece, readPiece + 1, 3 << 20, dev.size} {
		for _, off := range []int64{0, 1, 4096, 333_333, dev.size - n} {
			if off+n > dev.size {
				continue
			}
			p := bytes.Repeat([]byte{0xaa}, int(n)) // stale bytes must be seen
			if err := c.ReadAt(testContext(t), p, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, dev.data[off:off+n]) {
				t.Fatalf("read of %d at %d differs", n, off)
			}
		}
	}
}

// Holes are not read from the device and not sent as bytes.
func TestHolesStayHoles(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(16 << 20)
	dev.WriteAt(context.Background(), bytes.Repeat([]byte{7}, 5000), 9<<20)
	dev.readHook = func(_ context.Context, off int64, n int) error {
		if off < 9<<20 || off+int64(n) > 9<<20+8192 {
			return fmt.Errorf("hole [%d,+%d) was read", off, n)
		}
		return nil
	}
	c := serveDevices(t, ExportMap{"": readOnly{dev}}).dial(t, "")
	p := bytes.Repeat([]byte{0xaa}, 16<<20)
	if err := c.ReadAt(testContext(t), p, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, dev.data) {
		t.Fatal("content differs")
	}
}

func TestConcurrentReadsAndWrites(t *testing.T) {
	t.Parallel()
	const region = 256 << 10
	dev := newMemDevice(8 * region)
	c := serveDevices(t, ExportMap{"": dev}).dial(t, "")
	var wg sync.WaitGroup
	for g := range int64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 2))
			mirror := make([]byte, region)
			for i := range 150 {
				n := r.IntN(60_000) + 1
				off := r.IntN(region - n)
				if i%3 == 0 {
					for k := range n {
						mirror[off+k] = byte(r.Uint32())
					}
					if err := c.WriteAt(testContext(t), mirror[off:off+n], g*region+int64(off)); err != nil {
						t.Error(err)
						return
					}
				}
				p := make([]byte, n)
				if err := c.ReadAt(testContext(t), p, g*region+int64(off)); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(p, mirror[off:off+n]) {
					t.Errorf("region %d: read of %d at %d differs", g, n, off)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestRepliesInAnyOrder(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	dev.scatter(3, 3)
	release := make(chan struct{})
	entered := make(chan struct{})
	dev.readHook = func(_ context.Context, off int64, _ int) error {
		if off == 0 {
			close(entered)
			<-release
		}
		return nil
	}
	c := serveDevices(t, ExportMap{"": dev}).dial(t, "")
	first := make(chan error, 1)
	slow := make([]byte, 4096)
	go func() { first <- c.ReadAt(testContext(t), slow, 0) }()
	<-entered
	p := make([]byte, 4096)
	if err := c.ReadAt(testContext(t), p, 4096); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-first:
		t.Fatalf("held read returned %v", err)
	default:
	}
	close(release)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(slow, dev.data[:4096]) || !bytes.Equal(p, dev.data[4096:8192]) {
		t.Fatal("content differs")
	}
}

func TestWritableDevice(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	c := serveDevices(t, ExportMap{"": dev}).dial(t, "", ContextAllocation)
	ctx := testContext(t)
	data := bytes.Repeat([]byte("abcdefgh"), 40_000)
	steps := []error{
		c.WriteAt(ctx, data, 4096),
		c.Flush(ctx),
		c.WriteZeroes(ctx, 8192, 8192),
		c.Trim(ctx, 65536, 4096),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, dev.size)
	copy(want[4096:], data)
	clear(want[8192:16384])
	clear(want[65536 : 65536+4096])
	if !bytes.Equal(dev.snapshot(), want) {
		t.Fatal("device content differs")
	}
	if dev.flushes.Load() != 1 {
		t.Errorf("%d flushes, want 1", dev.flushes.Load())
	}
	hole := StateHole | StateZero
	got := extentsOf(t, c, 0, dev.size)[ContextAllocation]
	end := (4096 + int64(len(data)) + 4095) &^ 4095
	wantExt := []told{{0, 4096, hole}, {4096, 4096, 0}, {8192, 8192, hole}, {16384, 65536 - 16384, 0}, {65536, 4096, hole}, {65536 + 4096, end - 65536 - 4096, 0}, {end, dev.size - end, hole}}
	if !reflect.DeepEqual(got, wantExt) {
		t.Errorf("extents %v\nwant %v", got, wantExt)
	}
	// FUA and NO_HOLE reach the device.
	if err := c.do(ctx, cmdWrite, cmdFlagFUA, 0, 3, nil, []byte("xyz"), nil); err != nil {
		t.Fatal(err)
	}
	if dev.flushes.Load() != 2 {
		t.Error("a write with FUA did not flush")
	}
	if err := c.do(ctx, cmdWriteZeroes, cmdFlagNoHole, 0, 4096, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if !dev.allocated.Load() {
		t.Error("a write of zeroes with NO_HOLE did not ask the device to allocate")
	}
	if err := c.do(ctx, cmdCache, 0, 0, 1<<20, nil, nil, nil); err != nil {
		t.Error(err)
	}
	if dev.reads.Load() == 0 {
		t.Error("cache did not read the device")
	}
}

func TestReadOnlyDeviceRefusesChanges(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	c := serveDevices(t, ExportMap{"": readOnly{dev}}).dial(t, "")
	ctx := testContext(t)
	// Our client does not even ask; the server must refuse those that do.
	if err := c.WriteAt(ctx, []byte("x"), 0); !errors.Is(err, EPERM) {
		t.Errorf("client: %v", err)
	}
	for _, cmd := range []command{cmdWrite, cmdTrim, cmdWriteZeroes} {
		var payload []byte
		if cmd == cmdWrite {
			payload = make([]byte, 4096)
		}
		var remote *RemoteError
		if err := c.do(ctx, cmd, 0, 0, 4096, nil, payload, nil); !errors.As(err, &remote) || remote.Errno != EPERM {
			t.Errorf("server: %v: %v", cmd, err)
		}
	}
	if err := c.do(ctx, cmdFlush, 0, 0, 0, nil, nil, nil); err != nil {
		t.Errorf("flush, which has nothing to do: %v", err)
	}
	for _, cmd := range []command{cmdFlush, cmdRead, cmdCache} {
		if err := c.do(ctx, cmd, cmdFlagFUA, 0, 1, make([]byte, 1), nil, nil); !errors.Is(err, EINVAL) {
			t.Errorf("%v with FUA: %v", cmd, err)
		}
	}
	if err := c.ReadAt(ctx, make([]byte, 10), 0); err != nil {
		t.Errorf("connection did not survive: %v", err)
	}
}

func TestServerRefusesBadRequests(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	srv := startServer(t, ServerConfig{Exports: ExportMap{"": dev}, MaxRequest: 64 << 10})
	c := srv.dial(t, "", ContextAllocation)
	plain := srv.dial(t, "")
	for _, tc := range []struct {
		name   string
		c      *Client
		cmd    command
		flags  uint16
		off    int64
		length uint32
		want   Errno
	}{
		{"read beyond the end", c, cmdRead, 0, 1<<20 - 10, 11, EINVAL},
		{"read far beyond the end", c, cmdRead, 0, -1, 11, EINVAL},
		{"read too long", c, cmdRead, 0, 0, 64<<10 + 1, EINVAL},
		{"read nothing", c, cmdRead, 0, 0, 0, EINVAL},
		{"read with a write's flag", c, cmdRead, cmdFlagNoHole, 0, 1, EINVAL},
		{"write beyond the end", c, cmdWrite, 0, 1<<20 - 1, 2, ENOSPC},
		{"write too long", c, cmdWrite, 0, 0, 64<<10 + 1, EINVAL},
		{"write with unknown flag", c, cmdWrite, 1 << 9, 0, 2, EINVAL},
		{"zeroes beyond the end", c, cmdWriteZeroes, 0, 1 << 20, 1, ENOSPC},
		{"fast zeroes", c, cmdWriteZeroes, 1 << 4, 0, 1, EINVAL},
		{"trim beyond the end", c, cmdTrim, 0, 1, 1 << 20, EINVAL},
		{"block status beyond the end", c, cmdBlockStatus, 0, 0, 1<<20 + 1, EINVAL},
		{"block status without a context", plain, cmdBlockStatus, 0, 0, 1, EINVAL},
		{"unknown command", c, command(99), 0, 0, 1, EINVAL},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var payload, buf []byte
			if tc.cmd == cmdWrite {
				payload = make([]byte, tc.length)
			}
			if tc.cmd == cmdRead {
				buf = make([]byte, tc.length)
			}
			err := tc.c.do(testContext(t), tc.cmd, tc.flags, tc.off, tc.length, buf, payload, nil)
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if err := tc.c.ReadAt(testContext(t), make([]byte, 512), 0); err != nil {
				t.Fatalf("connection did not survive: %v", err)
			}
		})
	}
	if dev.flushes.Load() != 0 || !bytes.Equal(dev.snapshot(), make([]byte, 1<<20)) {
		t.Error("a refused request changed the device")
	}
}

func TestDeviceErrorIsTheRequestsError(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		want Errno
	}{
		{errors.New("https://store/secret?sig=abc is down"), EIO},
		{fmt.Errorf("write: %w", syscall.ENOSPC), ENOSPC},
		{fmt.Errorf("write: %w", ENOMEM), ENOMEM},
		{errors.ErrUnsupported, ENOTSUP},
	} {
		t.Run(tc.want.Error(), func(t *testing.T) {
			t.Parallel()
			dev := newMemDevice(4 << 20)
			dev.scatter(1, 100)
			const bad = 2<<20 + 512
			hook := func(_ context.Context, off int64, n int) error {
				if off <= bad && bad < off+int64(n) {
					return tc.err
				}
				return nil
			}
			dev.readHook, dev.writeHook = hook, hook
			srv := serveDevices(t, ExportMap{"": dev})
			c := srv.dial(t, "")
			ctx := testContext(t)
			for _, n := range []int64{512, 3 << 20} {
				err := c.ReadAt(ctx, make([]byte, n), bad/n*n)
				var remote *RemoteError
				if !errors.As(err, &remote) || remote.Errno != tc.want {
					t.Fatalf("read: %v", err)
				}
				if strings.Contains(err.Error(), "sig=") {
					t.Error("the device's error text was sent to the client")
				}
			}
			if err := c.WriteAt(ctx, []byte("x"), bad); !errors.Is(err, tc.want) {
				t.Fatalf("write: %v", err)
			}
			if err := c.ReadAt(ctx, make([]byte, 512), 0); err != nil {
				t.Fatalf("connection did not survive: %v", err)
			}
			for range 20 {
				c.ReadAt(ctx, make([]byte, 1), bad)
			}
			if n := strings.Count(srv.log.String(), "nbd request failed"); n != 5 { // failures 1 2 4 8 16
				t.Errorf("%d log lines for 23 failures, want 5", n)
			}
		})
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	outage := errors.New("store not reachable")
	srv := startServer(t, ServerConfig{Exports: ExportFunc(func(_ context.Context, name string) (Device, error) {
		switch name {
		case "vda":
			return readOnly{newMemDevice(4096)}, nil
		case "broken":
			return nil, outage
		}
		return nil, ErrNoSuchExport
	})})
	dial := func(export string, contexts ...string) error {
		c, err := Dial(testContext(t), ClientConfig{Network: "unix", Address: srv.sock, Export: export, Contexts: contexts})
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := dial("vda", ContextAllocation); err != nil {
		t.Error(err)
	}
	for _, contexts := range [][]string{nil, {ContextAllocation}} {
		if err := dial("nope", contexts...); !errors.Is(err, ErrNoSuchExport) {
			t.Errorf("unknown export: %v", err)
		}
		if err := dial("broken", contexts...); err == nil || errors.Is(err, ErrNoSuchExport) {
			t.Errorf("an outage must not read as absence: %v", err)
		}
	}
	err := dial("vda", ContextAllocation, "qemu:dirty-bitmap:b0")
	if !errors.Is(err, ErrContextNotGranted) || !strings.Contains(err.Error(), "qemu:dirty-bitmap:b0") {
		t.Errorf("refused context: %v", err)
	}
	if _, err := Dial(testContext(t), ClientConfig{Network: "unix", Address: srv.sock + "x"}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no socket: %v", err)
	}
	for name, cfg := range map[string]ClientConfig{
		"no address":    {Network: "unix"},
		"bad context":   {Network: "unix", Address: "x", Contexts: []string{"allocation"}},
		"same context":  {Network: "unix", Address: "x", Contexts: []string{"a:b", "a:b"}},
		"long name":     {Network: "unix", Address: "x", Export: strings.Repeat("x", 5000)},
		"negative":      {Network: "unix", Address: "x", MaxInFlight: -1},
		"many contexts": {Network: "unix", Address: "x", Contexts: strings.Fields("a:1 a:2 a:3 a:4 a:5 a:6 a:7 a:8 a:9")},
	} {
		if err := cfg.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDialObeysContextAndTimeout(t *testing.T) {
	t.Parallel()
	sock := filepath.Join(socketDir(t), "mute")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() { // accepts and says nothing
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { nc.Close() })
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := Dial(ctx, ClientConfig{Network: "unix", Address: sock}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := Dial(context.Background(), ClientConfig{Network: "unix", Address: sock, HandshakeTimeout: 50 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timed out: %v", err)
	}
}

func TestClientChecksRanges(t *testing.T) {
	t.Parallel()
	c := serveDevices(t, ExportMap{"": newMemDevice(8192)}).dial(t, "", ContextAllocation)
	ctx := testContext(t)
	none := func(string, int64, int64, uint32) error { return nil }
	for name, err := range map[string]error{
		"read behind":    c.ReadAt(ctx, make([]byte, 2), 8191),
		"read negative":  c.ReadAt(ctx, make([]byte, 2), -1),
		"read overflow":  c.ReadAt(ctx, make([]byte, 2), 1<<63-1),
		"write behind":   c.WriteAt(ctx, make([]byte, 2), 8191),
		"trim negative":  c.Trim(ctx, 0, -1),
		"zeroes behind":  c.WriteZeroes(ctx, 8192, 1),
		"extents behind": c.Extents(ctx, 0, 8193, none),
	} {
		if !errors.Is(err, ErrOutOfRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Extents(ctx, 8192, 0, none); err != nil {
		t.Errorf("empty range: %v", err)
	}
}

// A cancelled read returns at once, its late reply does no harm, and the
// connection goes on.
func TestCancelHungRead(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	dev.scatter(5, 5)
	release := make(chan struct{})
	dev.readHook = func(ctx context.Context, off int64, _ int) error {
		if off == 0 {
			<-release
		}
		return nil
	}
	c := serveDevices(t, ExportMap{"": dev}).dial(t, "")
	ctx, cancel := context.WithCancel(context.Background())
	p := bytes.Repeat([]byte{0xaa}, 8192)
	got := make(chan error, 1)
	go func() { got <- c.ReadAt(ctx, p, 0) }()
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	q := make([]byte, 4096)
	if err := c.ReadAt(testContext(t), q, 4096); err != nil {
		t.Fatal(err)
	}
	close(release)
	waitFor(t, c, func() bool { return len(c.pending) == 0 }) // the late reply was consumed
	if !bytes.Equal(p, bytes.Repeat([]byte{0xaa}, 8192)) {
		t.Error("the late reply was written into a buffer that had been given back")
	}
	if !bytes.Equal(q, dev.data[4096:8192]) {
		t.Error("content differs")
	}
}

// A server that never answers holds no more than MaxInFlight requests, and
// waiting for a place obeys the context.
func TestHungServerBoundsInFlight(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	dev.readHook = func(ctx context.Context, _ int64, _ int) error { <-ctx.Done(); return ctx.Err() }
	srv := serveDevices(t, ExportMap{"": dev})
	c, err := Dial(testContext(t), ClientConfig{Network: "unix", Address: srv.sock, MaxInFlight: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 10 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		if err := c.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.pending); n != 3 {
		t.Errorf("%d requests pending, want 3", n)
	}
}

func TestServerCrashFailsAllPending(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	const n = 8
	var entered sync.WaitGroup
	entered.Add(n)
	dev.readHook = func(ctx context.Context, _ int64, _ int) error {
		entered.Done()
		<-ctx.Done()
		return errors.New("cancelled device")
	}
	srv := serveDevices(t, ExportMap{"vda": dev})
	c := srv.dial(t, "vda")
	errs := make(chan error, n)
	for i := range int64(n) {
		go func() { errs <- c.ReadAt(testContext(t), make([]byte, 4096), i*4096) }()
	}
	entered.Wait()
	srv.Close()
	for range n {
		err := <-errs
		// Never an I/O error of the device: a guest would see that.
		if !errors.Is(err, ErrConnectionLost) || errors.Is(err, EIO) || !strings.Contains(err.Error(), `export "vda"`) {
			t.Errorf("%v", err)
		}
	}
	<-c.Done()
	if err := c.ReadAt(testContext(t), make([]byte, 1), 0); !errors.Is(err, ErrConnectionLost) {
		t.Errorf("later read: %v", err)
	}
	if err := <-srv.served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestClientClose(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	entered := make(chan struct{})
	gone := make(chan struct{})
	dev.readHook = func(ctx context.Context, _ int64, _ int) error {
		close(entered)
		<-gone
		return nil
	}
	c := serveDevices(t, ExportMap{"": dev}).dial(t, "")
	got := make(chan error, 1)
	go func() { got <- c.ReadAt(testContext(t), make([]byte, 4096), 0) }()
	<-entered
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	close(gone)
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("pending read: %v", err)
	}
	if err := c.Flush(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("later flush: %v", err)
	}
}

// A client that vanishes ends the device calls made for it.
func TestClientGoneCancelsDeviceCalls(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	entered, ended := make(chan struct{}), make(chan struct{})
	dev.readHook = func(ctx context.Context, _ int64, _ int) error {
		close(entered)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	c := serveDevices(t, ExportMap{"": dev}).dial(t, "")
	go c.ReadAt(testContext(t), make([]byte, 4096), 0)
	<-entered
	c.nc.Close() // no goodbye
	<-ended
}

func TestServeStops(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"context", "close"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			srv := serveDevices(t, ExportMap{"": newMemDevice(4096)})
			c := srv.dial(t, "")
			half, err := net.Dial("unix", srv.sock) // hangs in negotiation
			if err != nil {
				t.Fatal(err)
			}
			defer half.Close()
			if how == "context" {
				srv.cancel()
			} else if err := srv.Close(); err != nil {
				t.Error(err)
			}
			if err := <-srv.served; err != nil {
				t.Errorf("Serve: %v", err)
			}
			<-c.Done()
			if _, err := net.Dial("unix", srv.sock); err == nil {
				t.Error("still listening")
			}
		})
	}
	t.Run("after close", func(t *testing.T) {
		t.Parallel()
		srv := serveDevices(t, ExportMap{"": newMemDevice(4096)})
		srv.Close()
		ln, err := net.Listen("unix", filepath.Join(socketDir(t), "s"))
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.Serve(context.Background(), ln); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
	})
	t.Run("closed listener lets connections end", func(t *testing.T) {
		t.Parallel()
		s, err := NewServer(ServerConfig{Exports: ExportMap{"": newMemDevice(4096)}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ln, err := net.Listen("unix", filepath.Join(socketDir(t), "s"))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background(), ln) }()
		c := dialUnix(t, ln.Addr().String(), "")
		ln.Close()
		if err := c.ReadAt(testContext(t), make([]byte, 10), 0); err != nil {
			t.Error(err)
		}
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	srv := startServer(t, ServerConfig{Exports: ExportMap{"": newMemDevice(4096)}, MaxConns: 1})
	c := srv.dial(t, "")
	if _, err := Dial(testContext(t), ClientConfig{Network: "unix", Address: srv.sock}); err == nil {
		t.Fatal("a second connection was taken")
	}
	if err := c.ReadAt(testContext(t), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
}

// In-flight requests and buffer memory of one connection are bounded.
func TestServerBoundsParallelism(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		inFlight int
		memory   int64
		want     int
	}{
		{"by count", 4, 64 << 20, 4},
		{"by memory", 16, 192 << 10, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dev := newMemDevice(4 << 20)
			dev.scatter(1, 200)
			entered := make(chan struct{}, 100)
			release := make(chan struct{})
			dev.readHook = func(context.Context, int64, int) error {
				entered <- struct{}{}
				<-release
				return nil
			}
			srv := startServer(t, ServerConfig{Exports: ExportMap{"": dev}, MaxRequest: 64 << 10, MaxInFlight: tc.inFlight, MaxConnMemory: tc.memory})
			c := srv.dial(t, "")
			var wg sync.WaitGroup
			for i := range int64(12) {
				wg.Go(func() {
					if err := c.ReadAt(testContext(t), make([]byte, 64<<10), i*64<<10); err != nil {
						t.Error(err)
					}
				})
			}
			for range tc.want {
				<-entered
			}
			select {
			case <-entered:
				t.Errorf("more than %d requests run at the same time", tc.want)
			case <-time.After(50 * time.Millisecond):
			}
			close(release)
			wg.Wait()
		})
	}
}

func TestServerConfigValidate(t *testing.T) {
	t.Parallel()
	m := ExportMap{}
	for name, cfg := range map[string]ServerConfig{
		"no exports":       {},
		"small request":    {Exports: m, MaxRequest: 4096},
		"big request":      {Exports: m, MaxRequest: 64 << 20},
		"odd block":        {Exports: m, PreferredBlock: 5000},
		"negative":         {Exports: m, MaxConns: -1},
		"negative timeout": {Exports: m, HandshakeTimeout: -1},
	} {
		if _, err := NewServer(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestExportMapDefault(t *testing.T) {
	t.Parallel()
	a, b := newMemDevice(1), newMemDevice(2)
	for _, tc := range []struct {
		m    ExportMap
		name string
		want Device
	}{
		{ExportMap{"a": a}, "", a},
		{ExportMap{"a": a, "b": b}, "", nil},
		{ExportMap{"a": a, "": b}, "", b},
		{ExportMap{"a": a, "b": b}, "b", b},
		{ExportMap{"a": a}, "b", nil},
	} {
		dev, err := tc.m.Open(context.Background(), tc.name)
		if dev != tc.want || (tc.want == nil) != errors.Is(err, ErrNoSuchExport) {
			t.Errorf("%v %q: %v %v", tc.m.Names(), tc.name, dev, err)
		}
	}
}

// badExtents answers Extents with what it was given.
type badExtents struct {
	Device
	exts []AllocationExtent
	err  error
}

func (d badExtents) Extents(context.Context, int64, int64) ([]AllocationExtent, error) {
	return d.exts, d.err
}

// A device that answers Extents wrongly, or not, must not get zeroes invented:
// block status fails and reads read.
func TestWrongExtentsOfADevice(t *testing.T) {
	t.Parallel()
	dev := newMemDevice(1 << 20)
	for i := range dev.data {
		dev.data[i] = byte(i>>8) | 1
	}
	for name, bad := range map[string]badExtents{
		"error":         {err: errors.New("map not readable")},
		"none":          {},
		"empty":         {exts: []AllocationExtent{{0, 0, true, true}}},
		"starts behind": {exts: []AllocationExtent{{4096, 1 << 20, true, true}}},
		"gap":           {exts: []AllocationExtent{{0, 4096, true, true}, {8192, 1 << 20, true, true}}},
		"overlap":       {exts: []AllocationExtent{{0, 8192, true, true}, {4096, 1 << 20, true, true}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad.Device = readOnly{dev}
			c := serveDevices(t, ExportMap{"": bad}).dial(t, "", ContextAllocation)
			p := make([]byte, 1<<20)
			if err := c.ReadAt(testContext(t), p, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, dev.data) {
				t.Fatal("content differs")
			}
			err := c.Extents(testContext(t), 0, 1<<20, func(string, int64, int64, uint32) error { return nil })
			if !errors.Is(err, EIO) {
				t.Errorf("block status: %v", err)
			}
		})
	}
}

func TestExtentsOfLargeDetailedDevice(t *testing.T) {
	t.Parallel()
	// 6 GiB: more than one request of the client, more than one question to
	// the device, and in one place more extents than fit into a reply.
	const size = 6<<30 + 512
	dev := &bigDevice{size: size, detailFrom: 5 << 30, detailTo: 5<<30 + 100<<20}
	c := serveDevices(t, ExportMap{"": dev}).dial(t, "", ContextAllocation)
	got := extentsOf(t, c, 0, size)[ContextAllocation]
	if want := 2*(100<<20)/8192 + 1; len(got) != want {
		t.Fatalf("%d extents, want %d", len(got), want)
	}
	for _, e := range got {
		if hole := e.Flags == StateHole|StateZero; hole != dev.hole(e.Off) || hole != dev.hole(e.Off+e.Len-1) {
			t.Fatalf("extent %+v is wrong", e)
		}
	}
	part := extentsOf(t, c, 5<<30+4096, 3)[ContextAllocation]
	if !reflect.DeepEqual(part, []told{{5<<30 + 4096, 3, 0}}) {
		t.Errorf("small range: %v", part)
	}
	stop := errors.New("enough")
	if err := c.Extents(testContext(t), 0, size, func(string, int64, int64, uint32) error { return stop }); err != stop {
		t.Errorf("callback's error: %v", err)
	}
	// REQ_ONE: one extent.
	var status map[uint32][]statusExtent
	if err := c.do(testContext(t), cmdBlockStatus, cmdFlagReqOne, 0, 1<<31, nil, nil, &status); err != nil {
		t.Fatal(err)
	}
	if want := map[uint32][]statusExtent{allocationID: {{1 << 31, 3}}}; !reflect.DeepEqual(status, want) {
		t.Errorf("REQ_ONE: %v", status)
	}
}

// bigDevice is a hole with a part where every second 4 KiB are data.
type bigDevice struct{ size, detailFrom, detailTo int64 }

func (d *bigDevice) Size() int64 { return d.size }
func (d *bigDevice) hole(off int64) bool {
	return off < d.detailFrom || off >= d.detailTo || off/4096%2 == 0
}
func (d *bigDevice) ReadAt(context.Context, []byte, int64) error { return io.ErrUnexpectedEOF }
func (d *bigDevice) Extents(_ context.Context, off, length int64) ([]AllocationExtent, error) {
	var out []AllocationExtent
	for pos := off; pos < off+length; {
		end := pos/4096*4096 + 4096
		switch {
		case pos < d.detailFrom:
			end = d.detailFrom
		case pos >= d.detailTo:
			end = d.size
		}
		out = append(out, AllocationExtent{Off: pos, Len: end - pos, Hole: d.hole(pos), Zero: d.hole(pos)})
		pos = end
	}
	return out, nil
}
