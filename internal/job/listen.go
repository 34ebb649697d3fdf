package job

import (
	"context"
	"sync"
	"time"
)

// Topics of notification.
const (
	topicJob    = "job"        // key: job id; something about it changed
	topicReady  = "job-ready"  // something may be claimable, or earlier than thought
	topicAgent  = "job-agent"  // key: agent
	topicCancel = "job-cancel" // key: job id of a running job
)

// parked are the agents that wait in PollCommands.
type parked struct {
	mu    sync.Mutex
	polls map[string]map[chan struct{}]struct{}
	tells map[string]time.Time // command id → when its cancel was last told
}

func (p *parked) join(agent string) (woken <-chan struct{}, leave func()) {
	c := make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.polls[agent] == nil {
		p.polls[agent] = map[chan struct{}]struct{}{}
	}
	p.polls[agent][c] = struct{}{}
	return c, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.polls[agent], c)
		if len(p.polls[agent]) == 0 {
			delete(p.polls, agent)
		}
	}
}

func (p *parked) wake(agents []string, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := func(polls map[chan struct{}]struct{}) {
		for c := range polls {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
	if all {
		for _, polls := range p.polls {
			one(polls)
		}
		return
	}
	for _, a := range agents {
		one(p.polls[a])
	}
}

// anyNew reports that a cancel has not been told lately.
func (p *parked) anyNew(cancels []string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range cancels {
		if now.Sub(p.tells[id]) >= retell {
			return true
		}
	}
	return false
}

func (p *parked) told(cancels []string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, at := range p.tells {
		if now.Sub(at) >= retell {
			delete(p.tells, id)
		}
	}
	for _, id := range cancels {
		p.tells[id] = now
	}
}

// watch passes notifications on until the engine closes.
func (e *Engine) watch() {
	jobs, ready := e.db.Listen(topicJob), e.db.Listen(topicReady)
	agents, cancels := e.db.Listen(topicAgent), e.db.Listen(topicCancel)
	defer jobs.Close()
	defer ready.Close()
	defer agents.Close()
	defer cancels.Close()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-jobs.C():
			ids, all := jobs.Take()
			if all {
				ids = append(ids, "")
			}
			e.publish(ids)
		case <-ready.C():
			ready.Take()
			kick(e.claimKick)
		case <-agents.C():
			e.agents.wake(agents.Take())
		case <-cancels.C():
			cancels.Take()
			kick(e.beatKick)
		}
	}
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Subscribe returns a channel of the ids of jobs that changed, in this replica or
// another, until ctx ends; then it is closed. The empty id means that any job may
// have changed: notifications were lost, because the connection to the database
// was made anew. A reader that is more than 256 ids behind loses some, so it also
// looks for itself now and then. Ids come only between Start and Close.
func (e *Engine) Subscribe(ctx context.Context) <-chan string {
	c := make(chan string, 256)
	e.subMu.Lock()
	e.subs[c] = struct{}{}
	e.subMu.Unlock()
	stop := func() {
		e.subMu.Lock()
		defer e.subMu.Unlock()
		if _, ok := e.subs[c]; ok {
			delete(e.subs, c)
			close(c)
		}
	}
	context.AfterFunc(ctx, stop)
	context.AfterFunc(e.ctx, stop)
	return c
}

func (e *Engine) publish(ids []string) {
	e.subMu.Lock()
	defer e.subMu.Unlock()
	for c := range e.subs {
		for _, id := range ids {
			select {
			case c <- id:
			default:
			}
		}
	}
}
