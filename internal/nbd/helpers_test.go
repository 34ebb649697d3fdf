package nbd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testPage = 4096

// memDevice is a sparse device in memory: pages which nobody wrote are holes.
type memDevice struct {
	size int64

	mu      sync.RWMutex
	data    []byte
	present []bool // by page

	flushes, reads, extentsAsked atomic.Int64
	allocated                    atomic.Bool // WriteZeroes was told to allocate

	readHook  func(ctx context.Context, off int64, n int) error // nil: none
	writeHook func(ctx context.Context, off int64, n int) error
}

var _ WritableDevice = (*memDevice)(nil)

func newMemDevice(size int64) *memDevice {
	return &memDevice{size: size, data: make([]byte, size), present: make([]bool, (size+testPage-1)/testPage)}
}

// scatter writes n random runs of random content.
func (d *memDevice) scatter(seed uint64, n int) {
	r := rand.New(rand.NewPCG(seed, 1))
	for range n {
		off := r.Int64N(d.size)
		p := make([]byte, min(r.Int64N(200_000)+1, d.size-off))
		var pattern [1021]byte // odd, so that no two pages are the same
		for i := range pattern {
			pattern[i] = byte(r.Uint32()) | 1
		}
		for q := p; len(q) > 0; {
			q = q[copy(q, pattern[:]):]
		}
		d.WriteAt(context.Background(), p, off)
	}
}

func (d *memDevice) Size() int64 { return d.size }

func (d *memDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.reads.Add(1)
	if d.readHook != nil {
		if err := d.readHook(ctx, off, len(p)); err != nil {
			return err
		}
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	copy(p, d.data[off:][:len(p)])
	return nil
}

func (d *memDevice) Extents(_ context.Context, off, length int64) ([]AllocationExtent, error) {
	d.extentsAsked.Add(1)
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out []AllocationExtent
	for page := off / testPage; page*testPage < off+length; page++ {
		hole := !d.present[page]
		n := min(testPage, d.size-page*testPage)
		if k := len(out) - 1; k >= 0 && out[k].Hole == hole {
			out[k].Len += n
		} else {
			out = append(out, AllocationExtent{Off: page * testPage, Len: n, Hole: hole, Zero: hole})
		}
	}
	return out, nil
}

func (d *memDevice) WriteAt(ctx context.Context, p []byte, off int64) error {
	if d.writeHook != nil {
		if err := d.writeHook(ctx, off, len(p)); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	for page := off / testPage; page*testPage < off+int64(len(p)); page++ {
		d.present[page] = true
	}
	return nil
}

func (d *memDevice) Flush(context.Context) error { d.flushes.Add(1); return nil }

func (d *memDevice) Trim(ctx context.Context, off, length int64) error {
	return d.WriteZeroes(ctx, off, length, false)
}

func (d *memDevice) WriteZeroes(_ context.Context, off, length int64, allocate bool) error {
	if allocate {
		d.allocated.Store(true)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off:][:length])
	for page := (off + testPage - 1) / testPage; (page+1)*testPage <= off+length && !allocate; page++ {
		d.present[page] = false
	}
	return nil
}

func (d *memDevice) snapshot() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return bytes.Clone(d.data)
}

// readOnly hides the writing half of a device.
type readOnly struct{ Device }

// socketDir is a directory short enough for unix sockets.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type testServer struct {
	*Server
	sock   string
	cancel context.CancelFunc
	served chan error
	log    *syncBuffer
}

// syncBuffer collects a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func startServer(t testing.TB, cfg ServerConfig) *testServer {
	t.Helper()
	ts := &testServer{served: make(chan error, 1), log: &syncBuffer{}}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(ts.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	if ts.Server, err = NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	ts.sock = filepath.Join(socketDir(t), "s")
	ln, err := net.Listen("unix", ts.sock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ts.cancel = cancel
	go func() { ts.served <- ts.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := ts.Close(); err != nil {
			t.Error(err)
		}
	})
	return ts
}

func serveDevices(t testing.TB, m ExportMap) *testServer {
	t.Helper()
	return startServer(t, ServerConfig{Exports: m})
}

func (ts *testServer) uri(export string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", export, ts.sock)
}

func (ts *testServer) dial(t testing.TB, export string, contexts ...string) *Client {
	t.Helper()
	return dialUnix(t, ts.sock, export, contexts...)
}

func dialUnix(t testing.TB, sock, export string, contexts ...string) *Client {
	t.Helper()
	c, err := Dial(testContext(t), ClientConfig{Network: "unix", Address: sock, Export: export, Contexts: contexts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// testContext ends long after every test that works.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// told is what Extents reports of one context, neighbours merged.
type told struct {
	Off, Len int64
	Flags    uint32
}

func extentsOf(t testing.TB, c *Client, off, length int64) map[string][]told {
	t.Helper()
	out := make(map[string][]told)
	err := c.Extents(testContext(t), off, length, func(name string, o, n int64, flags uint32) error {
		l := out[name]
		want := off
		if k := len(l) - 1; k >= 0 {
			want = l[k].Off + l[k].Len
		}
		if o != want || n <= 0 {
			t.Errorf("context %s: extent [%d,+%d) does not follow %d", name, o, n, want)
		}
		if k := len(l) - 1; k >= 0 && l[k].Flags == flags {
			l[k].Len += n
		} else {
			l = append(l, told{o, n, flags})
		}
		out[name] = l
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range out {
		if last := l[len(l)-1]; last.Off+last.Len != off+length {
			t.Errorf("context %s: ends at %d instead of %d", name, last.Off+last.Len, off+length)
		}
	}
	return out
}

// waitFor waits until cond, which may look at what c.mu guards, is true.
func waitFor(t testing.TB, c *Client, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		c.mu.Lock()
		ok := cond()
		c.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatal("the client does not get there")
}
