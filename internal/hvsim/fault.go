package hvsim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/model"
)

// Fault makes calls go wrong. All conditions must hold; of several faults that match, the first is used.
type Fault struct {
	Name   string // under which Fired counts it; "" = Method
	Host   string // name; "" = any
	Method string // of Invoke; Query, Get or Merge; "" = every method of Invoke
	Object string // part of what the call names: path, arguments, query, or the name or id of a VM among them
	Count  int    // how often at most; 0 = always
	Skip   int    // so many matching calls go well first
	// Probability that a matching call is hit; 0 counts as 1.
	Probability float64

	Delay    time.Duration // before anything else; with JobState, the job takes so long
	Return   uint32        // the method returns it; 0 = not set
	JobState uint16        // the method starts a job that ends so; 0 = not set
	JobError uint16
	JobText  string
	Err      cim.Code // the call fails as if the way to the host had; "" = not set
	After    bool     // what was asked for is done nevertheless
}

// UnmarshalJSON reads a fault; Delay is text such as "1.5s".
func (f *Fault) UnmarshalJSON(b []byte) error {
	type plain Fault
	v := struct {
		*plain
		Delay string
	}{plain: (*plain)(f)}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return err
	}
	if v.Delay == "" {
		return nil
	}
	d, err := time.ParseDuration(v.Delay)
	f.Delay = d
	return err
}

// ReadFaults reads a JSON array of faults.
func ReadFaults(r io.Reader) ([]Fault, error) {
	var list []Fault
	if err := json.NewDecoder(r).Decode(&list); err != nil {
		return nil, fmt.Errorf("hvsim: plan of faults: %w", err)
	}
	return list, nil
}

// plan is the present set of faults.
type plan struct {
	mu     sync.Mutex
	rng    *rand.Rand
	faults []*planned
	fired  map[string]int
}

type planned struct {
	Fault
	seen, done int
}

func newPlan(seed uint64) *plan {
	return &plan{rng: rand.New(rand.NewPCG(seed, 99)), fired: map[string]int{}}
}

// SetFaults replaces the plan and its counters.
func (s *Site) SetFaults(list ...Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.faults, s.faults.fired = nil, map[string]int{}
	for _, f := range list {
		s.faults.faults = append(s.faults.faults, &planned{Fault: f})
	}
}

// Fired tells how often each fault of the plan was used.
func (s *Site) Fired() map[string]int {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	m := map[string]int{}
	for k, n := range s.faults.fired {
		m[k] = n
	}
	return m
}

// match finds the fault that hits a call, nil if there is none.
func (p *plan) match(host, method, object string) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		special := method == "Query" || method == "Get" || method == "Merge"
		if f.Host != "" && !strings.EqualFold(f.Host, host) || f.Method == "" && special || f.Method != "" && !strings.EqualFold(f.Method, method) ||
			!strings.Contains(strings.ToLower(object), strings.ToLower(f.Object)) {
			continue
		}
		f.seen++
		if f.seen <= f.Skip || f.Count > 0 && f.done >= f.Count || f.Probability > 0 && p.rng.Float64() >= f.Probability {
			continue
		}
		f.done++
		name := f.Name
		if name == "" {
			name = f.Method
		}
		p.fired[name]++
		c := f.Fault
		return &c
	}
	return nil
}

// before waits and fails as the fault demands. A nil fault does nothing.
func (f *Fault) before(ctx context.Context, op string) error {
	if f == nil {
		return nil
	}
	if f.JobState == 0 {
		if err := sleep(ctx, f.Delay); err != nil {
			return &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "no answer in time", Err: err}
		}
	}
	if !f.After {
		return f.fail(op)
	}
	return nil
}

// after fails a call that was done.
func (f *Fault) after(op string) error {
	if f == nil || !f.After {
		return nil
	}
	return f.fail(op)
}

func (f *Fault) fail(op string) error {
	if f.Err == "" {
		return nil
	}
	return &cim.Error{Code: f.Err, Op: op, Message: "fault injected by the simulator's plan"}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// beforeMerge lets a fault with Method Merge delay a merge, or fail it: it is then tried again.
func (s *Site) beforeMerge(ctx context.Context, host string, vm model.State) error {
	f := s.faults.match(host, "Merge", vm.ID+" "+vm.Name)
	if f == nil {
		return nil
	}
	if err := sleep(ctx, f.Delay); err != nil {
		return err
	}
	if f.Err != "" || f.JobState != 0 {
		return fmt.Errorf("merge of VM %s: %w", vm.Name, model.ErrInUse)
	}
	return nil
}
