package libvirt

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Host is a connection to a libvirt host.
type Host struct {
	cfg  Config
	log  *slog.Logger
	main *pool
	nets *pool // network calls

	ctx    context.Context // ends with Close; for background work only
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	locks  map[dr.VMID]chan struct{} // one token each: calls that change a VM take turns
	open   map[dr.VMID]*cut
	thaws  map[dr.VMID]bool // a thaw loop runs
	closed bool
}

var _ hypervisor.Host = (*Host)(nil)

// Open connects to the host, prepares the product directory, and thaws guests
// that an earlier process may have left frozen (in the background).
func Open(ctx context.Context, cfg Config) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, "libvirt.Open", "configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	if err := prepareDir(cfg); err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "libvirt.Open", "prepare directory %s: %w", cfg.Dir, err)
	}
	h := &Host{cfg: cfg, log: cfg.Log, locks: map[dr.VMID]chan struct{}{}, open: map[dr.VMID]*cut{}, thaws: map[dr.VMID]bool{}}
	h.main = &pool{sockets: cfg.sockets(), uri: cfg.URI}
	c, err := h.main.dial(ctx)
	if err != nil {
		return nil, wrap("Open", "connect to "+cfg.URI, err)
	}
	h.nets = networkPool(h.main, c.raw.RemoteAddr().String())
	h.main.put(c)
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if err := h.resumeThaws(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// closeTimeout bounds what Close does about open cuts.
const closeTimeout = 15 * time.Second

// Close ends the backup jobs of open cuts, whose tokens stay, then background
// work and connections. Idempotent.
func (h *Host) Close() error {
	h.mu.Lock()
	already := h.closed
	h.closed = true
	cuts := slices.Collect(maps.Values(h.open))
	h.mu.Unlock()
	var errs []error
	if !already {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		for _, c := range cuts {
			errs = append(errs, c.End(ctx))
		}
	}
	h.cancel()
	h.wg.Wait()
	h.main.close()
	if h.nets != h.main {
		h.nets.close()
	}
	return errors.Join(errs...)
}

// background runs fn until it returns; its context ends with Close.
func (h *Host) background(fn func(context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		fn(h.ctx)
	}()
}

// call runs fn with a connection for itself and a deadline. what names object and action for the error.
func (h *Host) call(ctx context.Context, op, what string, fn func(*conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	return wrap(op, what, h.main.do(ctx, fn))
}

// lock takes the VM's turn; the returned function gives it back.
func (h *Host) lock(ctx context.Context, op string, id dr.VMID) (func(), error) {
	h.mu.Lock()
	l := h.locks[id]
	if l == nil {
		l = make(chan struct{}, 1)
		h.locks[id] = l
	}
	h.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, wrap(op, fmt.Sprintf("wait for another operation on VM %s", id), context.Cause(ctx))
	}
}

// find looks a domain up by its UUID.
func (h *Host) find(ctx context.Context, op string, id dr.VMID) (golibvirt.Domain, error) {
	var dom golibvirt.Domain
	u, err := parseUUID(string(id))
	if err != nil {
		return dom, dr.New(dr.KindNotFound, dr.CodeVMNotFound, "libvirt."+op, "%q is not the id of a VM: %w", string(id), err)
	}
	err = h.call(ctx, op, fmt.Sprintf("look up VM %s", id), func(c *conn) (err error) {
		dom, err = c.DomainLookupByUUID(u)
		return err
	})
	return dom, err
}

// state asks for the domain's state number.
func (h *Host) state(ctx context.Context, op string, dom golibvirt.Domain) (golibvirt.DomainState, error) {
	var s int32
	err := h.call(ctx, op, "ask for the state of VM "+dom.Name, func(c *conn) (err error) {
		s, _, err = c.DomainGetState(dom, 0)
		return err
	})
	return golibvirt.DomainState(s), err
}

// active reports whether the domain has a QEMU process.
func active(s golibvirt.DomainState) bool { return s != golibvirt.DomainShutoff }

// Info describes the host.
func (h *Host) Info(ctx context.Context) (hypervisor.HostInfo, error) {
	var i hypervisor.HostInfo
	err := h.call(ctx, "Info", "describe the host", func(c *conn) error {
		name, err := c.ConnectGetHostname()
		if err != nil {
			return err
		}
		_, mem, cpus, _, _, _, _, _, err := c.NodeGetInfo()
		if err != nil {
			return err
		}
		qemu, err := c.ConnectGetVersion()
		if err != nil {
			return err
		}
		lv, err := c.ConnectGetLibVersion()
		if err != nil {
			return err
		}
		i = hypervisor.HostInfo{Name: name, Hypervisor: fmt.Sprintf("QEMU %s, libvirt %s", version(qemu), version(lv)), CPUs: int(cpus), MemoryMB: int(mem >> 10)}
		return nil
	})
	return i, err
}

func version(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000) }

// prepareDir creates the product directory and its parts.
func prepareDir(cfg Config) error {
	uid, gid, err := qemuOwner(cfg)
	if err != nil {
		return err
	}
	for _, d := range []string{cfg.Dir, filepath.Join(cfg.Dir, cutsDir), filepath.Join(cfg.Dir, bootDir), filepath.Join(cfg.Dir, freezeDir)} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return err
		}
		if uid >= 0 {
			if err := os.Chown(d, uid, gid); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeDir creates a directory that QEMU can write to.
func (h *Host) makeDir(path string) error {
	uid, gid, err := qemuOwner(h.cfg)
	if err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o750); err != nil {
		return err
	}
	if uid >= 0 {
		return os.Chown(path, uid, gid)
	}
	return nil
}

func parseUUID(s string) (golibvirt.UUID, error) {
	var u golibvirt.UUID
	digits := strings.ReplaceAll(s, "-", "")
	if len(s) != 36 || len(digits) != 32 {
		return u, errors.New("not a UUID")
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return u, errors.New("not a UUID")
	}
	copy(u[:], b)
	return u, nil
}

func vmID(u golibvirt.UUID) dr.VMID {
	return dr.VMID(fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
}

// sleep waits, or returns ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
