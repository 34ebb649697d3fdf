// Package virt asks and tells libvirt: connections with deadlines, errors in
// the product's words, and the questions about domains that several parts of
// the adapter have.
//
// libvirt's calls know neither contexts nor deadlines. Here each call has a
// connection for itself; when its deadline passes, the connection is closed
// and the call is left to the daemon, which may still execute it.
package virt

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/domxml"
)

// The daemons' URIs.
const (
	URISystem  = "qemu:///system"
	URISession = "qemu:///session"
)

// Config of a Client; all fields are needed but QEMUUser.
type Config struct {
	URI         string
	Sockets     []string      // where the daemon may listen, best first
	CallTimeout time.Duration // of calls without an earlier deadline
	QEMUUser    string        // who QEMU runs as under URISystem; "" = the usual names
}

// Client is a host's libvirt. All methods are safe for concurrent use.
type Client struct {
	cfg  Config
	main *pool
	nets *pool // network calls

	mu    sync.Mutex
	locks map[dr.VMID]chan struct{} // one token each
}

// Open connects, so that a daemon that is not there is noticed.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	c := &Client{cfg: cfg, main: &pool{sockets: cfg.Sockets, uri: cfg.URI}, locks: map[dr.VMID]chan struct{}{}}
	conn, err := c.main.dial(ctx)
	if err != nil {
		return nil, Wrap("Open", "connect to "+cfg.URI, err)
	}
	c.nets = networkPool(c.main, conn.raw.RemoteAddr().String())
	c.main.put(conn)
	return c, nil
}

// Close drops the connections that are idle; those in use end with their calls. Idempotent.
func (c *Client) Close() {
	c.main.close()
	if c.nets != c.main {
		c.nets.close()
	}
}

// Session reports whether the daemon is an unprivileged one.
func (c *Client) Session() bool { return c.cfg.URI == URISession }

// Dial returns a connection that the caller closes, for streams and events.
func (c *Client) Dial(ctx context.Context) (*Conn, error) { return c.main.dial(ctx) }

// Call runs fn with a connection for itself and a deadline. op and what, which
// names object and action, are for the error.
func (c *Client) Call(ctx context.Context, op, what string, fn func(*Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	return Wrap(op, what, c.main.do(ctx, fn))
}

// CallNetworks is Call for the daemon that knows the networks.
func (c *Client) CallNetworks(ctx context.Context, op, what string, fn func(*Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	return Wrap(op, what, c.nets.do(ctx, fn))
}

// Lock takes a VM's turn; calls that change the same VM are one after the
// other. The returned function gives it back.
func (c *Client) Lock(ctx context.Context, op string, id dr.VMID) (func(), error) {
	c.mu.Lock()
	l := c.locks[id]
	if l == nil {
		l = make(chan struct{}, 1)
		c.locks[id] = l
	}
	c.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, Wrap(op, fmt.Sprintf("wait for another operation on VM %s", id), context.Cause(ctx))
	}
}

// Find looks a domain up by its UUID.
func (c *Client) Find(ctx context.Context, op string, id dr.VMID) (golibvirt.Domain, error) {
	var dom golibvirt.Domain
	u, err := ParseUUID(string(id))
	if err != nil {
		return dom, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "libvirt."+op, "%q is not the id of a VM: %w", string(id), err)
	}
	err = c.Call(ctx, op, fmt.Sprintf("look up VM %s", id), func(l *Conn) (err error) {
		dom, err = l.DomainLookupByUUID(u)
		return err
	})
	return dom, err
}

// State asks for a domain's state.
func (c *Client) State(ctx context.Context, op string, dom golibvirt.Domain) (golibvirt.DomainState, error) {
	var s int32
	err := c.Call(ctx, op, "ask for the state of VM "+dom.Name, func(l *Conn) (err error) {
		s, _, err = l.DomainGetState(dom, 0)
		return err
	})
	return golibvirt.DomainState(s), err
}

// StartingUp reports whether a domain is paused because its start is still under
// way. QEMU may have opened the disks by then, but does not end orderly yet: a
// signal would lose its bitmaps.
func (c *Client) StartingUp(ctx context.Context, op string, dom golibvirt.Domain) (bool, error) {
	var s, reason int32
	err := c.Call(ctx, op, "ask for the state of VM "+dom.Name, func(l *Conn) (err error) {
		s, reason, err = l.DomainGetState(dom, 0)
		return err
	})
	return golibvirt.DomainState(s) == golibvirt.DomainPaused && golibvirt.DomainPausedReason(reason) == golibvirt.DomainPausedStartingUp, err
}

// Active reports whether a domain in this state has a QEMU process.
func Active(s golibvirt.DomainState) bool { return s != golibvirt.DomainShutoff }

// The forms of Tree.
const (
	Live    golibvirt.DomainXMLFlags = 0                                                           // what runs; of a domain that is off, its definition
	Defined                          = golibvirt.DomainXMLInactive                                 // what runs after the next start
	Capture                          = golibvirt.DomainXMLInactive | golibvirt.DomainXMLMigratable // the same, for another host
)

// Tree fetches and parses a domain's document.
func (c *Client) Tree(ctx context.Context, op string, dom golibvirt.Domain, form golibvirt.DomainXMLFlags) (*domxml.Node, error) {
	var doc string
	err := c.Call(ctx, op, "read the configuration of VM "+dom.Name, func(l *Conn) (err error) {
		doc, err = l.DomainGetXMLDesc(dom, form)
		return err
	})
	if err != nil {
		return nil, err
	}
	root, err := domxml.Parse([]byte(doc))
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, "libvirt."+op, "configuration of VM %s: %w", dom.Name, err)
	}
	return root, nil
}

// Measure fills in a disk's virtual size and what its image's header says
// against tracking. A disk whose size libvirt can't tell can't be replicated;
// the error is for when it could not be asked.
//
// The header is read directly where that is possible. Besides being cheaper,
// it leaves QEMU alone: QEMU 7.2 crashes when it is asked for its block nodes,
// which is what libvirt does for a size, while a block pull is ending.
func (c *Client) Measure(ctx context.Context, op string, dom golibvirt.Domain, d *dr.Disk) error {
	if strings.HasPrefix(d.ID, domxml.HostDevice) {
		return nil
	}
	if d.Format == "qcow2" {
		if h, err := ReadQCOW2(d.Path); err == nil {
			d.Size = h.Size
			if h.Version < 3 && d.Unreplicatable == "" {
				d.Unreplicatable = fmt.Sprintf("its qcow2 image has the old format version %d, which can't keep change tracking: shut the VM down and run 'qemu-img amend -o compat=1.1 %s'", h.Version, d.Path)
			}
			return nil
		}
	}
	if st, err := os.Stat(d.Path); d.Format == "raw" && err == nil && st.Mode().IsRegular() {
		d.Size = st.Size()
		return nil
	}
	err := c.Call(ctx, op, fmt.Sprintf("measure disk %s of VM %s", d.ID, dom.Name), func(l *Conn) error {
		_, capacity, _, err := l.DomainGetBlockInfo(dom, d.ID, 0)
		d.Size = int64(capacity)
		return err
	})
	if err != nil && (!Answered(err) || dr.CodeOf(err) == dr.CodeVMNotFound || dr.CodeOf(err) == dr.CodeHypervisorTimeout) {
		return err
	}
	if err != nil && d.Unreplicatable == "" {
		d.Unreplicatable = "its size can't be determined: " + err.Error()
	}
	return nil
}

// QCOW2 is what a qcow2 image says about itself.
type QCOW2 struct {
	Version int
	Cluster int64 // bytes
	Size    int64 // virtual, bytes
}

// ReadQCOW2 reads an image's header. Format: QEMU's docs/interop/qcow2.txt,
// big-endian: 0 magic "QFI\xfb", 4 version, 20 cluster_bits, 24 size.
func ReadQCOW2(path string) (QCOW2, error) {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() && st.Mode()&os.ModeDevice == 0 {
		err = errors.New("not a file") // opening a pipe would wait
	}
	if err != nil {
		return QCOW2{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return QCOW2{}, err
	}
	defer f.Close()
	var b [32]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return QCOW2{}, err
	}
	bits, size := binary.BigEndian.Uint32(b[20:]), binary.BigEndian.Uint64(b[24:])
	if string(b[:4]) != "QFI\xfb" || bits < 9 || bits > 21 || size > math.MaxInt64 {
		return QCOW2{}, errors.New("not a qcow2 image")
	}
	return QCOW2{Version: int(binary.BigEndian.Uint32(b[4:])), Cluster: 1 << bits, Size: int64(size)}, nil
}

// QEMUImg runs qemu-img and returns what it said.
func (c *Client) QEMUImg(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.CallTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			return string(out), context.Cause(ctx)
		}
		return string(out), fmt.Errorf("qemu-img %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// MakeDir creates a directory that QEMU can write to.
func (c *Client) MakeDir(path string) error {
	if err := os.Mkdir(path, 0o750); err != nil {
		return err
	}
	return Give(c.cfg.URI, c.cfg.QEMUUser, path)
}

// Give hands a directory to the user that QEMU runs as, if that is another one.
func Give(uri, qemuUser, path string) error {
	uid, gid, err := qemuOwner(uri, qemuUser)
	if err != nil || uid < 0 {
		return err
	}
	return os.Chown(path, uid, gid)
}

// ParseUUID reads the usual form, in either case.
func ParseUUID(s string) (golibvirt.UUID, error) {
	var u golibvirt.UUID
	digits := strings.ReplaceAll(s, "-", "")
	b, err := hex.DecodeString(digits)
	if len(s) != 36 || len(b) != len(u) || err != nil {
		return u, errors.New("not a UUID")
	}
	copy(u[:], b)
	return u, nil
}

// ID formats a UUID as a VM's id.
func ID(u golibvirt.UUID) dr.VMID {
	return dr.VMID(fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
}

// Sleep waits, or returns ctx's cause.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
