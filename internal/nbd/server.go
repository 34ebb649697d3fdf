package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// ServerConfig says what a Server exports. The zero values of the limits mean
// their defaults.
type ServerConfig struct {
	Exports Exports
	Log     *slog.Logger // default: discarded
	// MaxRequest bounds the payload of one read or write in bytes; clients are
	// told. Default and most: 32 MiB. At least 64 KiB.
	MaxRequest int
	// PreferredBlock is told to clients as the best size of a request; a power
	// of two from 512 to MaxRequest. Default 4096.
	PreferredBlock int
	// MaxInFlight bounds the requests of one connection that are executed in
	// parallel; default 16.
	MaxInFlight int
	// MaxConnMemory bounds the payload buffers of one connection in bytes, and is
	// raised to MaxRequest; default 32 MiB.
	MaxConnMemory int64
	// MaxConns bounds the connections; more are closed at once. Default 128.
	MaxConns int
	// HandshakeTimeout bounds the negotiation; default 30 s. After it a client
	// may be silent for as long as it likes.
	HandshakeTimeout time.Duration
}

// Validate reports the first setting that cannot be used.
func (cfg ServerConfig) Validate() error {
	cfg = cfg.withDefaults()
	switch {
	case cfg.Exports == nil:
		return errors.New("nbd server: exports are required")
	case cfg.MaxRequest < 64<<10 || cfg.MaxRequest > maxRequestBytes:
		return fmt.Errorf("nbd server: maximum request of %d bytes is not within 64 KiB to 32 MiB", cfg.MaxRequest)
	case cfg.PreferredBlock < 512 || cfg.PreferredBlock > cfg.MaxRequest || cfg.PreferredBlock&(cfg.PreferredBlock-1) != 0:
		return fmt.Errorf("nbd server: preferred block of %d bytes is not a power of two within 512 and the maximum request", cfg.PreferredBlock)
	case cfg.MaxInFlight < 0 || cfg.MaxConnMemory < 0 || cfg.MaxConns < 0 || cfg.HandshakeTimeout < 0:
		return errors.New("nbd server: negative limit")
	}
	return nil
}

func (cfg ServerConfig) withDefaults() ServerConfig {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.MaxRequest, maxRequestBytes)
	def(&cfg.PreferredBlock, 4096)
	def(&cfg.MaxInFlight, 16)
	def(&cfg.MaxConns, 128)
	if cfg.MaxConnMemory == 0 {
		cfg.MaxConnMemory = 32 << 20
	}
	cfg.MaxConnMemory = max(cfg.MaxConnMemory, int64(cfg.MaxRequest))
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 30 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// Server serves devices to NBD clients. Its methods are safe for concurrent use.
type Server struct {
	cfg     ServerConfig
	buffers bufferPool
	conns   chan struct{} // one token per connection

	stop     context.Context // done once Close was called
	stopNow  context.CancelFunc
	mu       sync.Mutex
	closed   bool           // guarded by mu
	serving  sync.WaitGroup // Serve calls; Add under mu while !closed
	connSeen uint64         // guarded by mu: numbers connections in the log
}

// NewServer checks cfg and does no I/O.
func NewServer(cfg ServerConfig) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg.withDefaults()}
	s.conns = make(chan struct{}, s.cfg.MaxConns)
	s.stop, s.stopNow = context.WithCancel(context.Background())
	return s, nil
}

// Serve accepts connections from ln, which it closes, and serves them until
// ctx is done or Close is called; both drop the connections, wait for running
// device calls, and make it return nil. If the caller closes ln instead, Serve
// takes no more connections, serves the present ones to their end and returns
// nil. It may be called for several listeners.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("serve nbd on %s: %w", ln.Addr(), ErrClosed)
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stop, cancel)()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	log := s.cfg.Log.With("listener", ln.Addr().String())
	var pause time.Duration
	for ctx.Err() == nil {
		nc, err := ln.Accept()
		switch {
		case err == nil:
		case errors.Is(err, net.ErrClosed):
			return nil
		default:
			// Out of file descriptors, or the like: it passes, and connected
			// guests must not suffer from it.
			if pause == 0 {
				log.Error("accept nbd connection; trying again", "error", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		select {
		case s.conns <- struct{}{}:
		default:
			log.Warn("nbd connection refused: too many", "limit", s.cfg.MaxConns)
			nc.Close()
			continue
		}
		s.mu.Lock()
		s.connSeen++
		clog := log.With("conn", s.connSeen)
		s.mu.Unlock()
		wg.Go(func() {
			defer func() { <-s.conns }()
			s.serveConn(ctx, nc, clog)
		})
	}
	return nil
}

// Close stops every Serve and waits for them. It is idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stopNow()
	s.serving.Wait()
	return nil
}

// serveConn owns nc.
func (s *Server) serveConn(serve context.Context, nc net.Conn, log *slog.Logger) {
	ctx, cancel := context.WithCancel(serve)
	defer cancel()
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	c := &conn{
		srv: s, nc: nc, br: bufio.NewReaderSize(nc, 32<<10), log: log,
		ctx: ctx, cancel: cancel,
		slots: make(chan struct{}, s.cfg.MaxInFlight),
		mem:   semaphore.NewWeighted(s.cfg.MaxConnMemory),
	}
	err := c.run()
	switch {
	case serve.Err() != nil:
		log.Debug("nbd connection dropped: stopping", "export", c.export)
	case err == nil:
		log.Debug("nbd connection ended", "export", c.export)
	case errors.Is(err, io.EOF):
		log.Debug("nbd client hung up", "export", c.export)
	default:
		log.Warn("nbd connection dropped", "export", c.export, "error", err)
	}
}
