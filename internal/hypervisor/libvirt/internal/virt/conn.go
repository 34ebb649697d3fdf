package virt

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// ModularSocket is the name of the socket of libvirt's separate QEMU daemon.
const ModularSocket = "virtqemud-sock"

const (
	networkSocket = "virtnetworkd-sock"
	maxIdle       = 4
	closeGrace    = 5 * time.Second
	dialTimeout   = 30 * time.Second // the daemon's first answer waits for its capability probe
)

// pool hands out connections to one daemon, one caller per connection.
type pool struct {
	sockets []string
	uri     string

	mu     sync.Mutex
	idle   []*Conn
	closed bool
}

// Conn is a connection to the daemon used by one caller at a time.
type Conn struct {
	*golibvirt.Libvirt
	raw net.Conn
}

// ErrClosed is the error of calls after Close.
var ErrClosed = errors.New("the connection to libvirt is closed")

// dialFunc lets a context govern go-libvirt's dialling.
type dialFunc func() (net.Conn, error)

func (f dialFunc) Dial() (net.Conn, error) { return f() }

// get returns an idle connection that is still alive, or a new one.
func (p *pool) get(ctx context.Context) (*Conn, error) {
	p.mu.Lock()
	for len(p.idle) > 0 && !p.closed {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if c.IsConnected() {
			p.mu.Unlock()
			return c, nil
		}
		_ = c.raw.Close() // it is dead already
	}
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	return p.dial(ctx)
}

func (p *pool) dial(ctx context.Context) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var errs []error
	for _, path := range p.sockets {
		var d net.Dialer
		raw, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c := &Conn{Libvirt: golibvirt.NewWithDialer(dialFunc(func() (net.Conn, error) { return raw, nil })), raw: raw}
		if err := c.Guard(ctx, func() error { return c.ConnectToURI(golibvirt.ConnectURI(p.uri)) }); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return c, nil
	}
	return nil, errors.Join(errs...)
}

// Guard runs fn and returns its error, or ctx's as soon as that ends; then the
// connection is closed, which ends fn too.
func (c *Conn) Guard(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	_ = c.raw.Close()
	select {
	case <-done: // go-libvirt's reader sees the closed socket and fails all calls
	case <-time.After(closeGrace): // should it not, the deadline counts more than one goroutine
	}
	return context.Cause(ctx)
}

// Close drops the connection.
func (c *Conn) Close() { _ = c.raw.Close() }

// put takes back a connection whose last call has returned.
func (p *pool) put(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && len(p.idle) < maxIdle && c.IsConnected() {
		p.idle = append(p.idle, c)
		return
	}
	_ = c.raw.Close()
}

// do runs fn with a connection for itself.
func (p *pool) do(ctx context.Context, fn func(*Conn) error) error {
	c, err := p.get(ctx)
	if err != nil {
		return err
	}
	err = c.Guard(ctx, func() error { return fn(c) })
	if err != nil && ctx.Err() != nil {
		_ = c.raw.Close()
		return err
	}
	p.put(c)
	return err
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		_ = c.raw.Close()
	}
	p.idle = nil
}

// networkPool is where network calls go: the same daemon, or with modular
// daemons the one for networks.
func networkPool(main *pool, socket string) *pool {
	if filepath.Base(socket) != ModularSocket {
		return main
	}
	uri := "network:///system"
	if main.uri == URISession {
		uri = "network:///session"
	}
	return &pool{sockets: []string{filepath.Join(filepath.Dir(socket), networkSocket)}, uri: uri}
}
