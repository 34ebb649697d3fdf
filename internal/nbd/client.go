package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// ClientConfig says which export to open. The zero values of the limits mean
// their defaults.
type ClientConfig struct {
	// Network and Address as in net.Dial: "unix" and a socket path, or "tcp"
	// and host:port.
	Network, Address string
	// Export is the name of the export; "" is the server's default export.
	Export string
	// Contexts are the metadata contexts that [Client.Extents] shall report,
	// e.g. [ContextAllocation]. Dial fails if any of them is refused.
	Contexts []string
	// HandshakeTimeout bounds connecting and negotiation together, besides
	// the context of Dial; default 30 s.
	HandshakeTimeout time.Duration
	// MaxInFlight bounds the requests that are under way at the same time,
	// cancelled ones whose reply is still owed included; default 64.
	MaxInFlight int
}

// Validate reports the first setting that cannot be used.
func (cfg ClientConfig) Validate() error {
	if cfg.Network == "" || cfg.Address == "" {
		return errors.New("nbd client: network and address are required")
	}
	if len(cfg.Export) > maxString {
		return fmt.Errorf("nbd client: export name has %d bytes, at most %d are possible", len(cfg.Export), maxString)
	}
	for i, name := range cfg.Contexts {
		if ns, leaf, ok := strings.Cut(name, ":"); !ok || ns == "" || leaf == "" || len(name) > maxString {
			return fmt.Errorf("nbd client: metadata context %.64q is not namespace:name", name)
		}
		if slices.Contains(cfg.Contexts[:i], name) {
			return fmt.Errorf("nbd client: metadata context %.64q is listed twice", name)
		}
	}
	if len(cfg.Contexts) > 8 {
		return fmt.Errorf("nbd client: %d metadata contexts, at most 8 are possible", len(cfg.Contexts))
	}
	if cfg.HandshakeTimeout < 0 || cfg.MaxInFlight < 0 {
		return errors.New("nbd client: negative limit")
	}
	return nil
}

// Client is one connection to one export. All methods are safe for concurrent
// use; requests are pipelined and may be answered in any order. A Client does
// not reconnect: after the connection is lost every call fails with
// [ErrConnectionLost] (or [ErrProtocol], if the server's bytes were the reason).
type Client struct {
	cfg    ClientConfig
	nc     net.Conn
	br     *bufio.Reader // owned by the reader goroutine after negotiation
	export negotiated

	slots chan struct{} // one token per request under way
	wlock chan struct{} // held to write to nc; a channel so that waiting obeys a context
	// wrote is set by the first request with a payload: from then on even a
	// header might not fit into the socket's buffer at once.
	wrote atomic.Bool

	cookie atomic.Uint64
	calls  sync.Pool // *call

	mu      sync.Mutex
	pending map[uint64]*call // guarded by mu
	cause   error            // guarded by mu: why the connection ended

	dead       chan struct{} // closed with cause set
	readerDone chan struct{}
	closeOnce  sync.Once
}

// negotiated is what the handshake agreed on.
type negotiated struct {
	size          int64
	flags         Flags
	min, pref     uint32
	max           uint32
	structured    bool
	contexts      map[uint32]string // by id
	contextsOrder []uint32          // in the order of ClientConfig.Contexts
}

// Dial connects and negotiates; ctx bounds that, not the life of the Client.
// Errors wrap [ErrNoSuchExport] only if the server said so, and
// [ErrContextNotGranted], naming the context, if a wanted one was refused.
func Dial(ctx context.Context, cfg ClientConfig) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 30 * time.Second
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 64
	}
	cfg.Contexts = slices.Clone(cfg.Contexts)
	ctx, cancel := context.WithTimeout(ctx, cfg.HandshakeTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, cfg.Network, cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to nbd export %q at %s:%s: %w", cfg.Export, cfg.Network, cfg.Address, err)
	}
	c, err := newClient(ctx, nc, cfg)
	if err != nil {
		return nil, fmt.Errorf("negotiate nbd export %q at %s:%s: %w", cfg.Export, cfg.Network, cfg.Address, err)
	}
	return c, nil
}

// newClient negotiates on nc and starts the reader. It owns nc.
func newClient(ctx context.Context, nc net.Conn, cfg ClientConfig) (*Client, error) {
	c := &Client{
		cfg: cfg, nc: nc, br: bufio.NewReaderSize(nc, 32<<10),
		slots: make(chan struct{}, cfg.MaxInFlight), wlock: make(chan struct{}, 1),
		pending: make(map[uint64]*call),
		dead:    make(chan struct{}), readerDone: make(chan struct{}),
	}
	c.calls.New = func() any { return &call{done: make(chan error, 1)} }
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	ex, err := (&negotiator{rw: nc, br: c.br, cfg: cfg}).run()
	if !stop() { // the deadline is, or is about to be, in force: the connection is spoilt
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		nc.Close()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("server hung up: %w", err)
		}
		return nil, err
	}
	c.export = ex
	go c.readLoop()
	return c, nil
}

// Size is the size of the export in bytes.
func (c *Client) Size() int64 { return c.export.size }

// Flags are the export's transmission flags.
func (c *Client) Flags() Flags { return c.export.flags }

// BlockSize is the server's minimum, preferred and maximum size of a request
// in bytes. ReadAt takes any size and alignment; the other operations must be
// aligned to the minimum.
func (c *Client) BlockSize() (minimum, preferred, maximum uint32) {
	return c.export.min, c.export.pref, c.export.max
}

// Done is closed when the connection is gone; Err then tells why.
func (c *Client) Done() <-chan struct{} { return c.dead }

// Err is nil while the connection is usable, and then the cause of its end.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// Close ends the connection. Pending requests fail with [ErrClosed]. It is
// idempotent, waits for the client's goroutine, and does not wait for the
// server longer than a moment.
func (c *Client) Close() error {
	c.closeOnce.Do(func() {
		// Saying goodbye is a courtesy which must not be able to hang.
		c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		t := time.NewTimer(time.Second)
		defer t.Stop()
		select {
		case c.wlock <- struct{}{}:
			c.nc.SetWriteDeadline(time.Now().Add(time.Second)) // the previous writer may have reset it
			var b [requestSize]byte
			request{cmd: cmdDisc, cookie: c.cookie.Add(1)}.put(b[:])
			c.nc.Write(b[:])
			<-c.wlock
		case <-c.dead:
		case <-t.C:
		}
		c.fail(ErrClosed)
	})
	<-c.readerDone
	return nil
}

// fail ends the connection. The reader goroutine notices and completes what
// is pending: only it knows which buffers are still being filled.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	c.cause = cause
	close(c.dead)
	c.nc.Close()
}

// describe puts the request into an error.
func (c *Client) describe(cmd command, off int64, length int64, err error) error {
	if cmd == cmdFlush {
		return fmt.Errorf("flush nbd export %q at %s: %w", c.cfg.Export, c.cfg.Address, err)
	}
	return fmt.Errorf("%v of %d bytes at %d of nbd export %q at %s: %w", cmd, length, off, c.cfg.Export, c.cfg.Address, err)
}

// RemoteError is a server's answer that a request failed. It unwraps to its
// [Errno].
type RemoteError struct {
	Errno   Errno
	Message string // of the server, may be empty
	Offset  int64  // where it failed, -1 if the server did not say
}

func (e *RemoteError) Error() string {
	s := "server replied " + e.Errno.Error()
	if e.Offset >= 0 {
		s += fmt.Sprintf(" at offset %d", e.Offset)
	}
	if e.Message != "" {
		s += fmt.Sprintf(": %q", e.Message)
	}
	return s
}

func (e *RemoteError) Unwrap() error { return e.Errno }
