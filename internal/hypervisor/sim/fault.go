package sim

import (
	"context"
	"sync"
	"time"

	"holdfast/internal/dr"
)

// Fault makes calls of one method misbehave. Exactly one of Err, Hang and
// Delay is usual; with several, Delay comes first, then Hang, then Err.
//
// Method is the name of a method of hypervisor.Host ("BeginCut", "Boot", ...)
// or of a cut ("Cut.Extents", "Cut.ReadAt", "Cut.End", "Cut.Abort").
type Fault struct {
	Method string
	VM     dr.VMID       // only calls for this VM; "" = any
	After  int           // let that many matching calls pass first
	Times  int           // misbehave that often; 0 = until removed
	Err    error         // returned
	Hang   bool          // the platform does not answer: the call returns when its context ends
	Delay  time.Duration // the platform is slow
	Late   bool          // Err comes after the call has taken effect: a lost reply
}

// Injection is an armed fault.
type Injection struct {
	fault  Fault
	set    *faults
	seen   int
	fired  int
	closed bool
}

// Fired says how often the fault has struck.
func (i *Injection) Fired() int {
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	return i.fired
}

// Remove disarms the fault; calls that hang go on hanging until their contexts end.
func (i *Injection) Remove() {
	i.set.mu.Lock()
	defer i.set.mu.Unlock()
	i.closed = true
}

type faults struct {
	mu   sync.Mutex
	list []*Injection
}

// Inject arms a fault.
func (h *Host) Inject(f Fault) *Injection {
	set := h.world.faults
	set.mu.Lock()
	defer set.mu.Unlock()
	i := &Injection{fault: f, set: set}
	set.list = append(set.list, i)
	return i
}

// take returns the faults that strike this call.
func (s *faults) take(method string, vm dr.VMID) []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var hit []Fault
	for _, i := range s.list {
		if i.closed || i.fault.Method != method || (i.fault.VM != "" && i.fault.VM != vm) {
			continue
		}
		i.seen++
		if i.seen <= i.fault.After || (i.fault.Times > 0 && i.fired >= i.fault.Times) {
			continue
		}
		i.fired++
		hit = append(hit, i.fault)
	}
	return hit
}

// enter applies the faults of a call. The returned function is deferred with
// the call's error and replaces it where a reply is lost.
func (h *Host) enter(ctx context.Context, method string, vm dr.VMID) (func(*error), error) {
	leave := func(*error) {}
	if err := ctxErr(ctx, method); err != nil {
		return leave, err
	}
	h.world.mu.Lock()
	closed := h.closed
	h.world.mu.Unlock()
	if closed {
		return leave, dr.New(dr.KindUnavailable, dr.CodeHypervisorDown, "sim."+method, "host %s: the connection is closed", h.world.cfg.Name)
	}
	for _, f := range h.world.faults.take(method, vm) {
		if f.Delay > 0 {
			t := time.NewTimer(f.Delay)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return leave, ctxErr(ctx, method)
			}
		}
		if f.Hang {
			<-ctx.Done()
			return leave, ctxErr(ctx, method)
		}
		if f.Err != nil && !f.Late {
			return leave, f.Err
		}
		if f.Err != nil {
			late := f.Err
			leave = func(err *error) {
				if *err == nil {
					*err = late
				}
			}
		}
	}
	return leave, nil
}

func ctxErr(ctx context.Context, method string) error {
	switch ctx.Err() {
	case nil:
		return nil
	case context.DeadlineExceeded:
		return dr.New(dr.KindUnavailable, dr.CodeHypervisorTimeout, "sim."+method, "the hypervisor did not answer %s in time: %w", method, ctx.Err())
	}
	return dr.New(dr.KindCanceled, "", "sim."+method, "%s was cancelled: %w", method, context.Cause(ctx))
}
