package com

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"holdfast/internal/cim"
)

// job is one call on a thread of the session.
type job struct {
	fn   func() error
	done chan error
}

// thread is an operating system's thread in the multithreaded apartment. It runs one job at a time.
type thread struct {
	id   uint32
	jobs chan *job

	mu      sync.Mutex
	current *job // so that a cancellation can't hit the next job
}

// threads is the pool. Threads stay until the pool ends, so that the apartment does.
type threads struct {
	lib   *libraries
	max   int
	slots chan struct{} // one per job that runs, hanging ones included

	mu     sync.Mutex
	idle   []*thread
	all    []*thread
	closed bool
	wg     sync.WaitGroup
}

func newThreads(lib *libraries, max int) *threads {
	return &threads{lib: lib, max: max, slots: make(chan struct{}, max)}
}

// run runs fn on a thread and returns by ctx. A job that is late is cancelled, and its thread comes back when it has ended.
func (p *threads) run(ctx context.Context, op string, fn func() error) error {
	if ctx.Err() != nil {
		return &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "not asked", Err: context.Cause(ctx)}
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return &cim.Error{Code: cim.CodeTimeout, Op: op, Message: fmt.Sprintf("not asked: %d calls to WMI have not come back", p.max), Err: context.Cause(ctx)}
	}
	t, err := p.take(op)
	if err != nil {
		<-p.slots
		return err
	}
	j := &job{fn: fn, done: make(chan error, 1)}
	t.jobs <- j
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
	}
	t.mu.Lock()
	if t.current == j && p.lib.cancelC.Find() == nil {
		_, _, _ = p.lib.cancelC.Call(uintptr(t.id), 0) // best effort: not every call can be cancelled
	}
	t.mu.Unlock()
	return &cim.Error{Code: cim.CodeTimeout, Op: op, Message: "no answer in time", Err: context.Cause(ctx)}
}

// take returns an idle thread or a new one.
func (p *threads) take(op string) (*thread, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, &cim.Error{Code: cim.CodeUnavailable, Op: op, Message: "the session is closed"}
	}
	if n := len(p.idle); n > 0 {
		t := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return t, nil
	}
	t := &thread{jobs: make(chan *job, 1)}
	ready := make(chan error, 1)
	p.wg.Go(func() { p.serve(t, ready) })
	if err := <-ready; err != nil {
		return nil, &cim.Error{Code: cim.CodeUnavailable, Op: op, Message: "enter COM", Err: err}
	}
	p.all = append(p.all, t)
	return t, nil
}

// serve is a thread's life.
func (p *threads) serve(t *thread, ready chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
	if r, _, _ := p.lib.initialize.Call(0, apartmentMultithreaded); failed(uint32(r)) {
		ready <- fmt.Errorf("CoInitializeEx: 0x%08x", uint32(r))
		return
	}
	defer func() { _, _, _ = p.lib.uninitialize.Call() }()
	t.id = windows.GetCurrentThreadId()
	if p.lib.enable.Find() == nil { // Wine lacks it; calls can't be cancelled then, that is all
		_, _, _ = p.lib.enable.Call(0)
	}
	ready <- nil
	for j := range t.jobs {
		t.mu.Lock()
		t.current = j
		t.mu.Unlock()
		err := j.fn()
		t.mu.Lock()
		t.current = nil
		t.mu.Unlock()
		p.mu.Lock()
		p.idle = append(p.idle, t)
		p.mu.Unlock()
		<-p.slots
		j.done <- err
	}
}

// end refuses new jobs, waits for those that run, runs last on one thread and ends all.
func (p *threads) end(limit time.Duration, last func()) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for i := range p.max { // all slots = no job runs
		select {
		case p.slots <- struct{}{}:
		case <-timeout.C:
			return &cim.Error{Code: cim.CodeTimeout, Op: "close the WMI session",
				Message: fmt.Sprintf("%d calls have not come back in %v", p.max-i, limit)}
		}
	}
	if len(p.all) > 0 {
		j := &job{fn: func() error { last(); return nil }, done: make(chan error, 1)}
		p.all[0].jobs <- j
		<-j.done
	}
	for _, t := range p.all {
		close(t.jobs)
	}
	p.wg.Wait()
	return nil
}

// fail makes an error of an HRESULT. It must run on the thread of the call, whose description it asks for.
func (l *libraries) fail(op string, status uint32) error {
	e := &cim.Error{Code: classify(status), Op: op, Status: status, Message: l.description()}
	if e.Message == "" {
		e.Message = windows.Errno(status).Error()
	}
	return e
}

// description is what the provider said about the failed call (IErrorInfo), "" if nothing.
func (l *libraries) description() string {
	var info *object
	if r, _, _ := l.errorInfo.Call(0, uintptr(unsafe.Pointer(&info))); uint32(r) != 0 || info == nil {
		return ""
	}
	defer info.release()
	var text *bstr
	if failed(info.call(errorDescription, uintptr(unsafe.Pointer(&text)))) {
		return ""
	}
	defer l.free(text)
	return text.String()
}

// broken reports whether an error means that the connection must be made anew.
func broken(err error) bool {
	var e *cim.Error
	return errors.As(err, &e) && e.Code == cim.CodeUnavailable && e.Status != 0
}
