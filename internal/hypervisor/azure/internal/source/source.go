package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/pageblob"
)

// Config of a Source. All fields have to be set.
type Config struct {
	Session *arm.Session
	Log     *slog.Logger
	Pages   pageblob.Config // how frozen disks are read
	Owner   string          // whose tokens these are: others' are neither seen nor touched

	OperationTimeout time.Duration // of one long-running operation
	UndoTimeout      time.Duration // of taking back what failed
	Access           time.Duration // how long a signed address is good; it is renewed before its end
	Parallel         int           // disks at a time
	Now              func() time.Time

	// Find looks a VM up: dr.CodeVMNotFound.
	Find func(ctx context.Context, op string, vm dr.VMID) (Machine, error)
	// Groups are the resource groups in which a VM may have been that exists no more.
	Groups func(ctx context.Context) ([]string, error)
}

// Machine is a VM as Azure has it.
type Machine struct {
	ID       dr.VMID
	Name     string
	Group    string // resource group
	Resource string // id of the resource
	Running  bool
	Disks    []Disk
}

// Disk of a Machine.
type Disk struct {
	ID         string // dr.Disk.ID
	Resource   string // id of the managed disk; "" = it is none
	Unique     string // of this incarnation: another disk of the same name has another one
	Shared     bool
	WriteCache bool   // writes wait in the host's cache
	Problem    string // why it can't be cut
}

// Source cuts VMs. It is safe for concurrent use.
type Source struct {
	cfg Config

	mu     sync.Mutex
	open   map[string]string          // VM → restore point of the cut that is open or being begun
	turns  map[string]chan struct{}   // VM → held by the call that changes its restore points
	doomed map[string]map[string]bool // VM → restore points that could not be deleted
}

var _ hypervisor.Estimator = (*Source)(nil)

// New makes a Source; it asks nobody.
func New(cfg Config) *Source {
	return &Source{cfg: cfg, open: map[string]string{}, turns: map[string]chan struct{}{}, doomed: map[string]map[string]bool{}}
}

func key(vm dr.VMID) string { return strings.ToLower(string(vm)) }

// turn waits until no other call changes the restore points of a VM; the result ends it.
func (s *Source) turn(ctx context.Context, op, vm string) (func(), error) {
	for {
		s.mu.Lock()
		held := s.turns[vm]
		if held == nil {
			mine := make(chan struct{})
			s.turns[vm] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.turns, vm)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, dr.Errorf(dr.KindOf(ctx.Err()), "azure."+op, "wait for another operation on VM %s: %w", vm, ctx.Err())
		}
	}
}

// claim takes the VM for a cut; false if one is open.
func (s *Source) claim(vm, point string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[vm] != "" {
		return false
	}
	s.open[vm] = point
	return true
}

func (s *Source) release(vm, point string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[vm] == point {
		delete(s.open, vm)
	}
}

func (s *Source) opened(vm string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[vm]
}

// doom keeps in mind that a restore point of this process has to go.
func (s *Source) doom(vm, point string, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !is:
		delete(s.doomed[vm], point)
	case s.doomed[vm] == nil:
		s.doomed[vm] = map[string]bool{point: true}
	default:
		s.doomed[vm][point] = true
	}
}

func (s *Source) isDoomed(vm, point string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doomed[vm][point]
}

// collectionName is that of the VM's restore point collection.
func (s *Source) collectionName(vm string) string {
	sum := sha256.Sum256([]byte(s.cfg.Owner))
	return "holdfast-" + hex.EncodeToString(sum[:4]) + "-" + vm
}

// Forget deletes the restore points of vm that are not in keep, and ends a cut that
// an earlier process left open; see hypervisor.Source. It also does so for a VM that exists no more.
func (s *Source) Forget(ctx context.Context, vm dr.VMID, keep []string) error {
	const op = "Forget"
	id := key(vm)
	done, err := s.turn(ctx, op, id)
	if err != nil {
		return err
	}
	defer done()
	col, err := s.whereIs(ctx, op, vm)
	if err != nil || !col.exists {
		return err
	}
	here := s.opened(id)
	if col.open != "" && col.open != here {
		if err := s.endStale(ctx, col); err != nil {
			return err
		}
	}
	var errs []error
	for _, p := range col.points {
		if !strings.HasPrefix(p.name, tokenPrefix) || p.name == here || slices.Contains(keep, p.name) && !s.isDoomed(id, p.name) {
			continue
		}
		if err := s.deletePoint(ctx, col, p.name); err != nil {
			errs = append(errs, err)
			continue
		}
		s.doom(id, p.name, false)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.tidy(ctx, col, here)
}

// whereIs finds the collection of a VM, also of one that is gone.
func (s *Source) whereIs(ctx context.Context, op string, vm dr.VMID) (collection, error) {
	m, err := s.cfg.Find(ctx, op, vm)
	if err == nil {
		return s.read(ctx, m.Group, key(vm))
	}
	if dr.CodeOf(err) != dr.CodeVMNotFound {
		return collection{}, err
	}
	if !plausible(key(vm)) {
		return collection{}, err
	}
	groups, gerr := s.cfg.Groups(ctx)
	if gerr != nil {
		return collection{}, gerr
	}
	for _, g := range groups {
		col, cerr := s.read(ctx, g, key(vm))
		if cerr != nil {
			return collection{}, cerr
		}
		if col.exists {
			return col, nil
		}
	}
	return collection{}, err
}

// plausible keeps what is no VM's id out of addresses.
func plausible(vm string) bool {
	return len(vm) == 36 && strings.Trim(vm, "0123456789abcdef-") == ""
}
