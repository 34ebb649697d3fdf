// Package hvsim simulates Hyper-V hosts for programs that manage them: what
// vcsim is to vSphere. A host implements cim.Session in process; package wsmand
// serves it to programs that were written by others.
//
// Hosts, VMs and disks are those of package model: real VHDX and AVHDX chains in a
// directory, with change tracking driven by the guests' writes. This package is the
// management interface in front of them, as Microsoft publishes it for
// root\virtualization\v2: classes and associations, methods with their two families of
// return values, jobs that take time, and a plan of faults.
//
// It promises: every instance conforms to the published schema; a method that
// started a job has done nothing that its job does not report; state survives a
// restart of the program, jobs do not. It never ran beside a real Hyper-V host: where the
// reference is silent its behaviour is a guess, and the comments say so.
package hvsim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/jobs"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/hvsim/wql"
)

// The parts of a site's description are those of package model.
type (
	Config     = model.Config
	HostConfig = model.HostConfig
	Switch     = model.Switch
	VMSpec     = model.VMSpec
	DiskSpec   = model.DiskSpec
	NICSpec    = model.NICSpec
	VM         = model.VM
	Disk       = model.Disk
	DiskKind   = model.DiskKind
	Runner     = model.Runner
)

const (
	virt    = schema.Virtualization
	cimv2   = schema.CIMv2
	cluster = schema.Cluster
)

// Site is a set of hosts. Safe for concurrent use.
type Site struct {
	*model.Site
	schema *schema.Schema
	hosts  []*Host
	faults *plan
}

// Host is one host: a cim.Session, and by its model.Host the control of what is on it.
type Host struct {
	*model.Host
	site *Site
	jobs *jobs.Store

	mu    sync.Mutex
	hang  chan struct{} // non-nil while the host does not answer
	cache map[string]cached
	fixed *graph

	renders atomic.Int64 // VMs that were rendered: the work behind queries
}

var _ cim.Session = (*Host)(nil)

type cached struct {
	gen   uint64
	graph *graph
}

// New returns a site that is not open yet.
func New(cfg Config) (*Site, error) {
	m, err := model.New(cfg)
	if err != nil {
		return nil, err
	}
	s := &Site{Site: m, schema: schema.Load(), faults: newPlan(cfg.Seed)}
	for _, h := range cfg.Hosts {
		s.hosts = append(s.hosts, &Host{Host: m.Host(h.Name), site: s, jobs: jobs.New(m.NewGUID), cache: map[string]cached{}})
	}
	m.BeforeMerge = s.beforeMerge
	return s, nil
}

// Host finds a host by its name, nil if there is none.
func (s *Site) Host(name string) *Host {
	for _, h := range s.hosts {
		if strings.EqualFold(h.Conf.Name, name) {
			return h
		}
	}
	return nil
}

// Hosts returns all hosts.
func (s *Site) Hosts() []*Host { return s.hosts }

// Close ends all jobs, guests and merges and closes all disks. Idempotent.
func (s *Site) Close() error {
	var errs []error
	for _, h := range s.hosts {
		errs = append(errs, h.jobs.Close())
	}
	return errors.Join(append(errs, s.Site.Close())...)
}

// Close does nothing: a Host as a Session is closed with its Site.
func (h *Host) Close() error { return nil }

// Hang makes the host stop answering until release is called.
func (h *Host) Hang() (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hang != nil {
		return func() {}
	}
	c := make(chan struct{})
	h.hang = c
	return sync.OnceFunc(func() {
		h.mu.Lock()
		h.hang = nil
		h.mu.Unlock()
		close(c)
	})
}

// answering waits while the host hangs.
func (h *Host) answering(ctx context.Context, op string) error {
	h.mu.Lock()
	c := h.hang
	h.mu.Unlock()
	if c != nil {
		select {
		case <-c:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "no answer in time", Err: context.Cause(ctx)}
	}
	return nil
}

// Query implements cim.Session.
func (h *Host) Query(ctx context.Context, namespace, query string) ([]*cim.Instance, error) {
	if err := h.answering(ctx, "query"); err != nil {
		return nil, err
	}
	f := h.site.faults.match(h.Conf.Name, "Query", query)
	if err := f.before(ctx, "query "+query); err != nil {
		return nil, err
	}
	list, err := wql.Run(ctx, h.site.schema, (*repo)(h), h.Conf.Name, namespace, query)
	if err != nil {
		return nil, err
	}
	for i, in := range list {
		list[i] = copyOf(in)
	}
	return list, f.after("query " + query)
}

// Get implements cim.Session.
func (h *Host) Get(ctx context.Context, path cim.Path) (*cim.Instance, error) {
	if err := h.answering(ctx, "get"); err != nil {
		return nil, err
	}
	f := h.site.faults.match(h.Conf.Name, "Get", path.String())
	if err := f.before(ctx, "get "+path.String()); err != nil {
		return nil, err
	}
	in, err := (*repo)(h).Get(ctx, path)
	if err != nil {
		return nil, err
	}
	return copyOf(in), f.after("get " + path.String())
}

// copyOf keeps callers from changing what is cached.
func copyOf(in *cim.Instance) *cim.Instance {
	c := *in
	c.Args = append(cim.Args(nil), in.Args...)
	c.Path.Keys = append([]cim.Key(nil), in.Path.Keys...)
	return &c
}

// ForeignReferencePoint makes a reference point of another product and returns
// its InstanceID and a function that tells whether it is still there.
func (h *Host) ForeignReferencePoint(vm *VM) (id string, exists func() bool, err error) {
	p, err := vm.NewPoint("Other Backup", false, 2)
	if err != nil {
		return "", nil, err
	}
	return "Microsoft:" + p.ID, func() bool {
		st := vm.State()
		_, ok := st.Point(p.ID)
		return ok
	}, nil
}

// UserCheckpoint makes a checkpoint as the administrator would and returns its id.
func (h *Host) UserCheckpoint(ctx context.Context, vm *VM, name string) (string, error) {
	end, err := vm.Busy(model.Creating)
	if err != nil {
		return "", err
	}
	defer end()
	cp, err := vm.Checkpoint(ctx, model.NewCheckpoint{Name: name, Consistency: 2, SkipUnfreezable: true})
	return cp.ID, err
}

// MigrateVM moves a VM to another host of the site: its jobs on this host are lost, checkpoints and reference points go along.
func (h *Host) MigrateVM(vm *VM, to *Host) error {
	if to == nil || to == h {
		return fmt.Errorf("VM %s can't be migrated: no other host of the site is named: %w", vm.ID(), model.ErrInvalid)
	}
	h.jobs.Forget(vm.ID())
	return vm.Migrate(to.Host)
}
