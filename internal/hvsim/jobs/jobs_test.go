package jobs_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/hvsim/jobs"
)

func store(t *testing.T) *jobs.Store {
	n := 0
	s := jobs.New(func() string { n++; return strconv.Itoa(n) })
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := store(t)
		for _, c := range []struct {
			err  error
			want uint16
		}{
			{nil, jobs.Completed},
			{errors.New("broken"), jobs.Exception},
			{&jobs.Failure{State: jobs.Warnings}, jobs.Warnings},
			{&jobs.Failure{Code: 5}, jobs.Exception},
		} {
			id, done := s.Start(jobs.Spec{Time: time.Second, Work: func(context.Context) ([]any, error) { return []any{1}, c.err }})
			if j, ok := s.Get(id); !ok || j.Done() || j.State != jobs.Running {
				t.Errorf("at once: %+v", j)
			}
			<-done
			if j, _ := s.Get(id); j.State != c.want || !j.Done() || len(j.Affected) != 1 {
				t.Errorf("%v: %+v", c.err, j)
			}
		}
		time.Sleep(jobs.Keep)
		if l := s.List(); len(l) != 0 {
			t.Errorf("five minutes later: %v", l)
		}
	})
}

func TestStopAndForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := store(t)
		ran := false
		work := func(context.Context) ([]any, error) { ran = true; return nil, nil }
		id, done := s.Start(jobs.Spec{Time: time.Hour, Work: work})
		called := 0
		s.OnEnd(id, func() { called++ })
		if !s.Stop(id, jobs.Killed) || s.Stop("none", jobs.Killed) {
			t.Error("stop")
		}
		<-done
		synctest.Wait()
		if j, _ := s.Get(id); j.State != jobs.Killed || ran || called != 1 || s.Stop(id, jobs.Killed) {
			t.Errorf("%+v %v %d", j, ran, called)
		}
		id, _ = s.Start(jobs.Spec{Time: time.Hour, Owner: "vm", Work: work})
		s.Forget("vm")
		if _, ok := s.Get(id); ok || ran {
			t.Error("a forgotten job is there")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		id, done = s.Start(jobs.Spec{Work: work})
		<-done
		if j, _ := s.Get(id); j.State != jobs.Terminated || ran {
			t.Errorf("after Close: %+v", j)
		}
	})
}
