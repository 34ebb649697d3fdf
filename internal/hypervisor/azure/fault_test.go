package azure_test

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/internal/azsim"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure"
	"holdfast/internal/hypervisor/azure/arm"
)

// target is one call of a transcript, in a form that finds it again in another run.
type target struct {
	method, path string
	nth          int
	arm          bool // that changes something
}

func (t target) String() string { return fmt.Sprintf("%s %s #%d", t.method, t.path, t.nth) }

func (t target) fault() azsim.Fault { return azsim.Fault{Method: t.method, Path: t.path, Nth: t.nth} }

// targets lists the calls after the first n of the transcript, sign-in left out.
func (s *stage) targets(n int) []target {
	var out []target
	seen := map[string]int{}
	for _, c := range s.cloud.Calls()[n:] {
		low := strings.ToLower(c.Path)
		path := "^" + regexp.QuoteMeta(c.Path) + "$"
		switch {
		case strings.Contains(low, "/oauth2/"), strings.Contains(low, "openid-configuration"), strings.Contains(low, "/discovery/"):
			continue
		case strings.Contains(low, "/operations/"):
			path = "/operations/"
		case strings.Contains(low, "/operationresults/"):
			path = "/operationresults/"
		case strings.HasPrefix(low, "/md/"):
			path = "^/md/"
		}
		key := c.Method + path
		seen[key]++
		out = append(out, target{c.Method, path, seen[key], changing(c) && !strings.HasPrefix(low, "/md/")})
	}
	return out
}

// faultSpec is a recovery VM that needs every kind of resource.
func faultSpec(p *point, isolated bool) hypervisor.BootSpec {
	spec := p.spec("app")
	spec.Disks = append(spec.Disks, hypervisor.BootDisk{ID: "swap", Size: 1 << 30, Path: "/images/swap"})
	if isolated {
		spec.Network = hypervisor.IsolatedNetwork
		return spec
	}
	spec.Cloud.PublicIP = true
	return spec
}

// kinds are the ways in which a call can go wrong.
var kinds = []struct {
	name   string
	change func(*azsim.Fault)
	arm    bool // for calls that begin operations only
	passes bool // Boot gets over it
}{
	{name: "refused", change: func(f *azsim.Fault) { f.Status, f.Code = http.StatusForbidden, "AuthorizationFailed" }},
	{name: "always unavailable", change: func(f *azsim.Fault) {
		f.Status, f.Code, f.Times = http.StatusServiceUnavailable, "ServiceUnavailable", 40
	}},
	{name: "throttled", change: func(f *azsim.Fault) {
		f.Status, f.Code, f.RetryAfter = http.StatusTooManyRequests, "TooManyRequests", -1
	}, passes: true},
	{name: "answer lost", change: func(f *azsim.Fault) { f.Lost = true }},
	{name: "request lost", change: func(f *azsim.Fault) { f.Unsent = true }, passes: true},
	{name: "operation fails", change: func(f *azsim.Fault) { f.Operation, f.Code = true, "InternalExecutionError" }, arm: true},
}

// After a failure at any call Boot has made all of it, or nothing is left.
func TestBootFailsAtEachCall(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("slow")
	}
	for _, isolated := range []bool{false, true} {
		for _, k := range kinds {
			t.Run(fmt.Sprintf("%s, isolated %v", k.name, isolated), func(t *testing.T) {
				t.Parallel()
				s, p := newStage(t), newPoint(t, map[string]int{"vda": 21 * mib})
				before := s.resources()
				h := s.host()
				spec := faultSpec(p, isolated)
				n := len(s.cloud.Calls())
				id, err := h.Boot(t.Context(), spec)
				ok(t, err)
				list := s.targets(n)
				ok(t, h.Remove(t.Context(), id, spec.Owner))
				s.unchanged(t, before)
				fired := 0
				for i, c := range list {
					if k.passes && !c.arm && i%3 != 0 { // harmless ones: a sample of the questions
						continue
					}
					if k.arm && !c.arm || isolated && !strings.Contains(c.path, "Microsoft") {
						continue
					}
					f := c.fault()
					k.change(&f)
					in := s.cloud.Fault(f)
					id, err := h.Boot(t.Context(), spec)
					in.Remove()
					if in.Fired() > 0 {
						fired++
					}
					if err != nil {
						var e *dr.Error
						if !asError(err, &e) {
							t.Errorf("%s: %T is no *dr.Error: %v", c, err, err)
						}
						if k.passes && in.Fired() > 0 {
							t.Errorf("%s: Boot did not get over it: %v", c, err)
						}
						if k.name == "refused" && !strings.Contains(c.path, "/md/") && dr.CodeOf(err) != dr.CodeAzureRole {
							t.Errorf("%s: code %q of %v", c, dr.CodeOf(err), err)
						}
						s.unchanged(t, before)
					} else {
						s.sameContent(t, "app", p)
						ok(t, h.Remove(t.Context(), id, spec.Owner))
						s.unchanged(t, before)
					}
					if t.Failed() {
						t.Fatalf("at %s: %v", c, err)
					}
				}
				if least := map[bool]int{false: 15, true: 7}[k.arm || k.passes]; fired < least {
					t.Errorf("only %d faults fired, of %d calls", fired, len(list))
				}
			})
		}
	}
}

// After a failure at any call Remove has removed all of it, or says that it has not; called again, it has.
func TestRemoveFailsAtEachCall(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("slow")
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			s, p := newStage(t), newPoint(t, map[string]int{"vda": 21 * mib})
			before := s.resources()
			h := s.host(func(c *azure.Config, _ *arm.Options) { c.UndoTimeout = 30e9 })
			spec := faultSpec(p, true)
			spec.Disks = spec.Disks[1:] // empty: quick
			boot := func() dr.VMID {
				id, err := h.Boot(t.Context(), spec)
				ok(t, err)
				return id
			}
			id := boot()
			n := len(s.cloud.Calls())
			ok(t, h.Remove(t.Context(), id, spec.Owner))
			list := s.targets(n)
			fired := 0
			for _, c := range list {
				if k.arm && !c.arm {
					continue
				}
				id := boot()
				f := c.fault()
				k.change(&f)
				in := s.cloud.Fault(f)
				err := h.Remove(t.Context(), id, spec.Owner)
				in.Remove()
				if in.Fired() > 0 {
					fired++
				}
				if err != nil {
					if k.passes {
						t.Errorf("%s: Remove did not get over it: %v", c, err)
					}
					ok(t, h.Remove(t.Context(), id, spec.Owner))
				}
				s.unchanged(t, before)
				if t.Failed() {
					t.Fatalf("at %s: %v", c, err)
				}
			}
			if fired < 5 {
				t.Errorf("only %d faults fired, of %d calls", fired, len(list))
			}
		})
	}
}

// A process that dies at any request of Boot leaves nothing that Remove by another
// process does not find, and nothing that a Boot by another process can't go on from.
func TestCrashAtEachRequest(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("slow")
	}
	for _, isolated := range []bool{true, false} {
		t.Run(fmt.Sprintf("isolated %v", isolated), func(t *testing.T) {
			t.Parallel()
			s, p := newStage(t), newPoint(t, map[string]int{"vda": 21 * mib})
			before := s.resources()
			spec := faultSpec(p, isolated)
			next := s.host()
			for k := int64(1); ; k++ {
				dead := false
				{
					c := &cord{count: func(r *http.Request) bool { return !strings.Contains(r.URL.Path, "/oauth2/") }}
					h := s.host(func(ac *azure.Config, ao *arm.Options) { c.wrap(t, s, ac, ao) })
					c.after.Store(k)
					_, err := h.Boot(t.Context(), spec)
					if dead = c.cut.Load(); !dead {
						ok(t, err)
					}
				}
				ok(t, s.cloud.Settle(t.Context()))
				if k%2 == 0 || !dead {
					id, err := next.Boot(t.Context(), spec)
					if err != nil {
						t.Fatalf("Boot after a crash at request %d: %v", k, err)
					}
					s.sameContent(t, "app", p)
					ok(t, next.Remove(t.Context(), id, spec.Owner))
				} else {
					ok(t, next.Remove(t.Context(), "", spec.Owner))
				}
				s.unchanged(t, before)
				if t.Failed() {
					t.Fatalf("after a crash at request %d", k)
				}
				if !dead {
					if k < 30 {
						t.Errorf("Boot made only %d requests", k)
					}
					return
				}
			}
		})
	}
}

// A process that dies at any request of Remove is followed by one that removes the rest.
func TestCrashOfRemove(t *testing.T) {
	t.Parallel()
	s, p := newStage(t), newPoint(t, map[string]int{"vda": 21 * mib})
	before := s.resources()
	spec := faultSpec(p, true)
	spec.Disks = spec.Disks[1:]
	next := s.host()
	for k := int64(1); ; k++ {
		id, err := next.Boot(t.Context(), spec)
		ok(t, err)
		c := &cord{count: func(r *http.Request) bool { return !strings.Contains(r.URL.Path, "/oauth2/") }}
		h := s.host(func(ac *azure.Config, ao *arm.Options) {
			c.wrap(t, s, ac, ao)
			ac.UndoTimeout = time.Minute
		})
		c.after.Store(k)
		ctx, die := context.WithCancel(t.Context())
		c.died = die
		err = h.Remove(ctx, id, spec.Owner)
		die()
		if !c.cut.Load() {
			ok(t, err)
			s.unchanged(t, before)
			return
		}
		if k%2 == 0 {
			id = "" // the vault may know the id or not
		}
		ok(t, s.cloud.Settle(t.Context()))
		ok(t, next.Remove(t.Context(), id, spec.Owner))
		s.unchanged(t, before)
		if t.Failed() {
			t.Fatalf("after a crash at request %d", k)
		}
	}
}

func asError(err error, e **dr.Error) bool {
	for x := err; x != nil; {
		if d, is := x.(*dr.Error); is {
			*e = d
			return true
		}
		u, is := x.(interface{ Unwrap() error })
		if !is {
			return false
		}
		x = u.Unwrap()
	}
	return false
}

// Cancelled and late calls end as the contract says, and leave nothing.
func TestBootInTime(t *testing.T) {
	t.Parallel()
	s, p := newStage(t), twoDisks(t)
	before := s.resources()
	h := s.host()
	spec := p.spec("app")
	hung := make(chan struct{}) // not Fault.Delay: net/http does not notice that the client left while there is a body
	in := s.cloud.Fault(azsim.Fault{Method: "PUT", Path: "^/md/", Times: -1, Hook: func() { <-hung }})
	ctx, cancel := context.WithTimeout(t.Context(), 500e6)
	defer cancel()
	_, err := h.Boot(ctx, spec)
	if dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("past its deadline: %v (kind %v)", err, dr.KindOf(err))
	}
	close(hung)
	s.unchanged(t, before)
	cctx, stop := context.WithCancel(t.Context())
	in.Remove()
	again := make(chan struct{})
	in = s.cloud.Fault(azsim.Fault{Method: "PUT", Path: "^/md/", Times: -1, Hook: func() { stop(); <-again }})
	if _, err = h.Boot(cctx, spec); dr.KindOf(err) != dr.KindCanceled || in.Fired() == 0 {
		t.Errorf("cancelled: %v (kind %v)", err, dr.KindOf(err))
	}
	close(again)
	in.Remove()
	s.unchanged(t, before)
	for _, d := range p.devices {
		d.fails.Store(true)
	}
	_, err = h.Boot(t.Context(), spec)
	if dr.KindOf(err) != dr.KindUnavailable || !strings.Contains(err.Error(), "recovery point can't be read") {
		t.Errorf("a point that can't be read: %v (kind %v)", err, dr.KindOf(err))
	}
	s.unchanged(t, before)
	for _, d := range p.devices {
		d.fails.Store(false)
	}
	id, err := h.Boot(t.Context(), spec)
	ok(t, err)
	s.sameContent(t, "app", p)
	p.stop() // nothing depends on it any more
	ok(t, h.Remove(t.Context(), id, spec.Owner))
	s.unchanged(t, before)
}
