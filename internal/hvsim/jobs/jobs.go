// Package jobs keeps the asynchronous operations of a simulated host: each runs
// in its own goroutine, takes time, can be stopped, and stays to be asked for
// five minutes after its end (Msvm_ConcreteJob.TimeBeforeRemoval).
package jobs

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Keep is how long a job that has ended can be asked for.
const Keep = 5 * time.Minute

// States of CIM_ConcreteJob.JobState.
const (
	Running    uint16 = 4
	Stopping   uint16 = 6
	Completed  uint16 = 7
	Terminated uint16 = 8
	Killed     uint16 = 9
	Exception  uint16 = 10
	Warnings   uint16 = 32768
)

// Failure is how a job's work says why it failed.
type Failure struct {
	State  uint16 // 0 = Exception
	Code   uint16 // Msvm_ConcreteJob.ErrorCode
	Status uint32 // HRESULT, 0 = none
	Text   string
}

func (f *Failure) Error() string { return f.Text }

// Spec describes a job.
type Spec struct {
	Class   string // Msvm_ConcreteJob or a class derived from it
	Caption string
	Type    uint16        // JobType
	Owner   string        // whom it is about: a VM's id; jobs of an owner can be dropped together
	Time    time.Duration // before the work is done
	// Work is done at the end of Time. A *Failure says how the job ends; any other error is
	// an Exception. It may return what the job affected, as the caller's own values.
	Work func(ctx context.Context) (affected []any, err error)
	Data any // the caller's
}

// Job is the state of a job at one moment.
type Job struct {
	ID       string
	Spec     Spec
	State    uint16
	Percent  uint16
	Started  time.Time
	Ended    time.Time // zero while it runs
	Failure  *Failure
	Affected []any
}

// Done reports whether the job has ended.
func (j Job) Done() bool { return !j.Ended.IsZero() }

// Store is the set of jobs of one host. The zero value is not usable.
type Store struct {
	mu     sync.Mutex
	newID  func() string
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	jobs   map[string]*entry
	order  []string
}

type entry struct {
	Job
	cancel context.CancelFunc
	end    uint16 // state that a stop was asked for
	done   chan struct{}
}

// New returns an empty store; newID names jobs.
func New(newID func() string) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	return &Store{newID: newID, ctx: ctx, cancel: cancel, jobs: map[string]*entry{}}
}

// Close stops all jobs and waits for them. Idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// errStopped is the cause of a job's end by request or by Close.
var errStopped = errors.New("the job was stopped")

// Start begins a job and returns its id and a channel that is closed at its end.
func (s *Store) Start(spec Spec) (string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep()
	ctx, cancel := context.WithCancel(s.ctx)
	e := &entry{Job: Job{ID: s.newID(), Spec: spec, State: Running, Started: time.Now()}, cancel: cancel, end: Terminated, done: make(chan struct{})}
	s.jobs[e.ID] = e
	s.order = append(s.order, e.ID)
	if s.ctx.Err() != nil { // closed: a job that was never run
		cancel()
		e.State, e.Ended, e.Failure = Terminated, e.Started, &Failure{State: Terminated, Code: 32768, Text: "The service is stopping."}
		close(e.done)
		return e.ID, e.done
	}
	s.wg.Go(func() { s.run(ctx, e) })
	return e.ID, e.done
}

func (s *Store) run(ctx context.Context, e *entry) {
	defer close(e.done)
	defer e.cancel()
	var affected []any
	err := error(errStopped)
	timer := time.NewTimer(e.Spec.Time)
	select {
	case <-ctx.Done():
		timer.Stop()
	case <-timer.C:
		affected, err = nil, nil
		if e.Spec.Work != nil {
			affected, err = e.Spec.Work(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Ended, e.Affected = time.Now(), affected
	var f *Failure
	switch {
	case err == nil:
		e.State, e.Percent = Completed, 100
	case errors.As(err, &f):
		e.Failure, e.State = f, f.State
		if f.State == 0 {
			e.State = Exception
		}
		if e.State == Warnings {
			e.Percent = 100
		}
	case ctx.Err() != nil:
		e.State, e.Failure = e.end, &Failure{State: e.end, Code: 32768, Text: "The operation was cancelled."}
	default:
		e.State, e.Failure = Exception, &Failure{State: Exception, Code: 32768, Text: err.Error()}
	}
}

// sweep removes jobs that ended long ago.
func (s *Store) sweep() {
	keep := s.order[:0]
	for _, id := range s.order {
		if e := s.jobs[id]; e != nil {
			if e.Done() && time.Since(e.Ended) >= Keep {
				delete(s.jobs, id)
				continue
			}
			keep = append(keep, id)
		}
	}
	s.order = keep
}

// Get returns a job, if the store still has it.
func (s *Store) Get(id string) (Job, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep()
	e, ok := s.jobs[id]
	if !ok {
		return Job{}, false
	}
	return e.now(), true
}

func (e *entry) now() Job {
	j := e.Job
	if !j.Done() && j.Spec.Time > 0 {
		j.Percent = uint16(min(99, int64(time.Since(j.Started))*100/int64(j.Spec.Time)))
	}
	return j
}

// List returns all jobs in the order of their start.
func (s *Store) List() []Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep()
	list := make([]Job, 0, len(s.order))
	for _, id := range s.order {
		list = append(list, s.jobs[id].now())
	}
	return list
}

// Stop asks a running job to end in the given state (Terminated or Killed). It reports
// false if there is no such job or it has ended.
func (s *Store) Stop(id string, state uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.jobs[id]
	if !ok || e.Done() {
		return false
	}
	e.end, e.State = state, Stopping
	e.cancel()
	return true
}

// Forget removes all jobs of an owner at once, as if the host had never had
// them; those that run are stopped. It waits until their work is over.
func (s *Store) Forget(owner string) {
	s.mu.Lock()
	var wait []*entry
	for id, e := range s.jobs {
		if e.Spec.Owner == owner {
			e.cancel()
			wait = append(wait, e)
			delete(s.jobs, id)
		}
	}
	s.mu.Unlock()
	for _, e := range wait {
		<-e.done
	}
}

// OnEnd calls fn once the job has ended, at once if it has or is not known.
func (s *Store) OnEnd(id string, fn func()) {
	s.mu.Lock()
	e, ok := s.jobs[id]
	s.mu.Unlock()
	if !ok {
		fn()
		return
	}
	select {
	case <-e.done:
		fn()
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ctx.Err() != nil {
			return
		}
		s.wg.Go(func() { <-e.done; fn() })
	}
}
