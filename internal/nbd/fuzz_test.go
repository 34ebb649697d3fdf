package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"
)

// script is a net.Conn which plays bytes, then ends, and takes whatever is
// written. It has no goroutines and never blocks, so a hang is the code's own.
type script struct {
	r *bytes.Reader
	// hold keeps the bytes back until something that looks like a request was
	// written: a reply cannot come before it.
	hold   bool
	ready  chan struct{}
	closed chan struct{}
}

func newScript(b []byte) *script {
	return &script{r: bytes.NewReader(b), ready: make(chan struct{}), closed: make(chan struct{})}
}

func (s *script) Read(p []byte) (int, error) {
	if s.hold {
		select {
		case <-s.ready:
		case <-s.closed:
			return 0, net.ErrClosed
		}
	}
	return s.r.Read(p)
}

func (s *script) Write(p []byte) (int, error) {
	if s.hold {
		select {
		case <-s.ready:
		default:
			close(s.ready)
		}
	}
	return len(p), nil
}

func (s *script) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}
func (s *script) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func FuzzClientNegotiation(f *testing.F) {
	f.Add(handshakeBytes(1<<20, "a:b"))
	f.Add(handshakeBytes(1 << 20))
	f.Add(handshakeBytes(1<<63, "a:b", "a:b"))
	f.Add([]byte("NBDMAGICIHAVEOPT\x00\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := ClientConfig{Contexts: []string{"a:b"}}
		n := &negotiator{rw: io.Discard, br: bufio.NewReader(bytes.NewReader(b)), cfg: cfg}
		ex, err := n.run()
		if err != nil {
			return
		}
		if ex.size < 0 || !ex.structured || len(ex.contextsOrder) != 1 || ex.contexts[ex.contextsOrder[0]] != "a:b" {
			t.Errorf("%+v", ex)
		}
		if ex.min == 0 || ex.max%ex.min != 0 || ex.max == 0 || ex.max > maxRequestBytes {
			t.Errorf("%+v", ex)
		}
	})
}

// FuzzClientReplies feeds replies to a read of 64 bytes at 100 (cookie 1), or
// to a block status of all. Whatever succeeds must be something the bytes said.
func FuzzClientReplies(f *testing.F) {
	seed := func(s string) { f.Add(unhex(f, s), false); f.Add(unhex(f, s), true) }
	seed("668e33ef 0001 0001 0000000000000001 00000048 0000000000000064" + string(bytes.Repeat([]byte("41"), 64)))
	seed("668e33ef 0000 0002 0000000000000001 0000000c 0000000000000064 00000020 668e33ef 0001 0002 0000000000000001 0000000c 0000000000000084 00000020")
	seed("668e33ef 0001 8002 0000000000000001 0000000e 0000001c 0000 0000000000000004")
	seed("668e33ef 0000 0005 0000000000000001 0000000c 00000001 00001000 00000003 668e33ef 0001 0005 0000000000000001 0000000c 00000002 10001000 00000001")
	seed("67446698 00000005 0000000000000001")
	f.Fuzz(func(t *testing.T, b []byte, status bool) {
		const size = 8192
		nc := newScript(b)
		nc.hold = true
		c := &Client{
			cfg: ClientConfig{MaxInFlight: 2}, nc: nc, br: bufio.NewReaderSize(nc, 4096),
			slots: make(chan struct{}, 2), wlock: make(chan struct{}, 1), pending: make(map[uint64]*call),
			dead: make(chan struct{}), readerDone: make(chan struct{}),
			export: negotiated{
				size: size, min: 1, pref: 4096, max: 1 << 20, structured: true,
				contexts: map[uint32]string{1: "a:b", 2: "c:d"}, contextsOrder: []uint32{1, 2},
			},
		}
		c.calls.New = func() any { return &call{done: make(chan error, 1)} }
		go c.readLoop()
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var err error
		if status {
			next := map[string]int64{}
			err = c.Extents(ctx, 0, size, func(name string, off, n int64, _ uint32) error {
				if off != next[name] || n <= 0 || off+n > size {
					t.Errorf("%s: extent [%d,+%d) after %d", name, off, n, next[name])
				}
				next[name] = off + n
				return nil
			})
			if err == nil && (next["a:b"] != size || next["c:d"] != size) {
				t.Errorf("ends at %v", next)
			}
		} else {
			p := bytes.Repeat([]byte{0xee}, 64)
			err = c.ReadAt(ctx, p, 100)
			if err == nil { // each byte was in a chunk, or in a hole
				for _, v := range p {
					if v != 0 && bytes.IndexByte(b, v) < 0 {
						t.Errorf("byte %#x came from nowhere", v)
					}
				}
			}
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("hung")
		}
	})
}

// FuzzServer feeds a whole session to a server. It must end, and not touch
// what it must not touch.
func FuzzServer(f *testing.F) {
	ready := []byte{0, 0, 0, 3}
	ready = appendOption(ready, optStructuredReply, nil)
	ready = appendOption(ready, optListMetaContext, appendMetaRequest(nil, "", nil))
	ready = appendOption(ready, optSetMetaContext, appendMetaRequest(nil, "", []string{ContextAllocation}))
	ready = appendOption(ready, optInfo, appendInfoRequest(nil, "", infoName, infoBlockSize))
	ready = appendOption(ready, optGo, appendInfoRequest(nil, ""))
	req := func(b []byte, r request, payload ...byte) []byte {
		h := make([]byte, requestSize)
		r.put(h)
		return append(append(bytes.Clone(b), h...), payload...)
	}
	f.Add(ready, true)
	for cmd := range command(9) {
		f.Add(req(ready, request{cmd: cmd, cookie: 1, off: 100, length: 4}, 1, 2, 3, 4), cmd%2 == 0)
		f.Add(req(ready, request{cmd: cmd, flags: 0xf, cookie: 1, off: 1 << 63, length: 1 << 31}), cmd%2 == 0)
	}
	f.Add(appendOption([]byte{0, 0, 0, 1}, optExportName, nil), true)
	f.Add(appendOption(appendOption([]byte{0, 0, 0, 3}, optList, nil), optAbort, nil), false)
	f.Fuzz(func(t *testing.T, b []byte, writable bool) {
		inner := newMemDevice(1 << 20)
		var dev Device = inner
		if !writable {
			dev = readOnly{inner}
		}
		s, err := NewServer(ServerConfig{Exports: ExportMap{"": dev}, MaxRequest: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		nc := newScript(b)
		c := &conn{
			srv: s, nc: nc, br: bufio.NewReaderSize(nc, 4096), log: slog.New(slog.DiscardHandler), ctx: ctx, cancel: cancel,
			slots: make(chan struct{}, 4), mem: semaphore.NewWeighted(s.cfg.MaxConnMemory),
		}
		c.run()
		if !writable && !bytes.Equal(inner.data, make([]byte, 1<<20)) {
			t.Error("a read-only device was changed")
		}
	})
}

// A length that no bytes follow costs no memory.
func TestClaimedLengthsCostNothing(t *testing.T) {
	be := binary.BigEndian
	claim := func(typ chunkType, n int) []byte {
		h := make([]byte, chunkHeaderSize)
		putChunkHeader(h, chunkFlagDone, typ, 1, n)
		return be.AppendUint32(h, 1)
	}
	for name, b := range map[string][]byte{
		"block status": claim(chunkBlockStatus, maxStatusBytes-4),
		"error":        claim(chunkError, maxErrorPayload),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := newClient(testContext(t), scripted(t, handshakeBytes(1<<40, "a:b"), b), ClientConfig{Contexts: []string{"a:b"}, MaxInFlight: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err = c.Extents(testContext(t), 0, 1<<40, func(string, int64, int64, uint32) error { return nil })
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrConnectionLost) {
				t.Error(err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes allocated", n)
			}
		})
	}
}
