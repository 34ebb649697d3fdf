package capture

import (
	"context"
	"sync"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Group lets the Replicators of a consistency group cut at one instant. Their
// cycles meet at a barrier: when every member is there, one call of the host
// freezes all of them, and the cuts carry the instant (cut.Group). A member
// that does not come within Wait is not waited for: those that came are cut one
// by one, and there is no group instant that time. All methods are safe for concurrent use.
type Group struct {
	id   string
	src  hypervisor.GroupSource
	wait time.Duration

	mu      sync.Mutex
	members map[dr.MachineID]bool
	round   *groupRound // that is filling up
	seq     uint64
}

// DefaultGroupWait is how long a group's cycle waits for its slowest member.
const DefaultGroupWait = 30 * time.Second

// groupRound is one meeting.
type groupRound struct {
	here  map[dr.MachineID]hypervisor.CutRequest
	order []dr.MachineID
	cuts  map[dr.MachineID]hypervisor.Cut
	stamp *cut.Group
	done  chan struct{} // closed when cuts and stamp are final
}

// NewGroup makes a group without members. wait <= 0 is DefaultGroupWait.
func NewGroup(id string, source hypervisor.GroupSource, wait time.Duration) *Group {
	if wait <= 0 {
		wait = DefaultGroupWait
	}
	return &Group{id: id, src: source, wait: wait, members: map[dr.MachineID]bool{}}
}

// Join makes a machine a member: from now on group instants need it.
func (g *Group) Join(m dr.MachineID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members[m] = true
}

// Leave ends the membership of a machine.
func (g *Group) Leave(m dr.MachineID) {
	g.mu.Lock()
	delete(g.members, m)
	r := g.complete()
	g.mu.Unlock()
	if r != nil {
		g.freeze(context.Background(), r)
	}
}

// complete takes the round if nobody is missing. The caller holds mu.
func (g *Group) complete() *groupRound {
	r := g.round
	if r == nil {
		return nil
	}
	for m := range g.members {
		if _, ok := r.here[m]; !ok {
			return nil
		}
	}
	g.round = nil
	return r
}

// meet brings a member's request to the barrier. It returns the member's cut
// and the group's instant, or nil when the member has to cut by itself.
func (g *Group) meet(ctx context.Context, m dr.MachineID, req hypervisor.CutRequest) (hypervisor.Cut, *cut.Group) {
	g.mu.Lock()
	if !g.members[m] || len(g.members) < 2 {
		g.mu.Unlock()
		return nil, nil
	}
	if g.round == nil {
		g.round = &groupRound{here: map[dr.MachineID]hypervisor.CutRequest{}, done: make(chan struct{})}
	}
	r := g.round
	r.here[m] = req
	r.order = append(r.order, m)
	full := g.complete()
	g.mu.Unlock()
	if full != nil {
		g.freeze(ctx, full)
	}
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
		if g.give(r) {
			return nil, nil
		}
		<-r.done // being frozen at this moment
	case <-ctx.Done():
		if g.give(r) {
			return nil, nil
		}
		<-r.done
	}
	return r.cuts[m], r.stamp
}

// give ends a round that is not complete; false if it is complete already.
func (g *Group) give(r *groupRound) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-r.done:
		return len(r.cuts) == 0
	default:
	}
	if g.round != r {
		return false
	}
	g.round = nil
	close(r.done)
	return true
}

// freeze cuts all members of a complete round at once. When the host can't,
// every member cuts by itself and learns its own reason there.
func (g *Group) freeze(ctx context.Context, r *groupRound) {
	defer close(r.done)
	reqs := make([]hypervisor.CutRequest, len(r.order))
	for i, m := range r.order {
		reqs[i] = r.here[m]
	}
	// The member that came last may be stopped; the others must get their cuts.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.wait)
	defer cancel()
	cuts, err := g.src.BeginGroup(ctx, reqs)
	if err != nil || len(cuts) != len(reqs) {
		return
	}
	g.mu.Lock()
	// Milliseconds since 1970 grow over restarts of the agent too.
	g.seq = max(g.seq+1, uint64(time.Now().UnixMilli()))
	seq := g.seq
	g.mu.Unlock()
	r.cuts = map[dr.MachineID]hypervisor.Cut{}
	for i, m := range r.order {
		r.cuts[m] = cuts[i]
	}
	r.stamp = &cut.Group{ID: g.id, Seq: seq, Members: append([]dr.MachineID(nil), r.order...)}
}
