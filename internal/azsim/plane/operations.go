package plane

import (
	"context"
	"net/http"
	"time"

	"holdfast/internal/azsim/wire"
)

// operation is a long-running operation (Azure REST, "Asynchronous operations").
type operation struct {
	id, namespace string
	started       time.Time
	ended         time.Time
	polls         int
	over          bool
	result        any // of the Location address; nil = none
	err           *wire.Error
}

// Work is what an operation does once it is its turn; without the lock. Its
// result is what the Location address answers in the end.
type Work func(ctx context.Context) (result any, err *wire.Error)

// begin starts an operation on r, after those on r that were accepted before.
// The caller holds the lock.
func (c *Plane) begin(q *Call, r *Resource, do Work) *operation {
	o := &operation{id: NewGUID(), namespace: q.At.Namespace, started: c.Now()}
	if c.closed {
		o.over, o.err = true, wire.Errorf(http.StatusServiceUnavailable, "ServiceUnavailable", "The simulator is closed.")
		return o
	}
	c.operations[o.id] = o
	if c.running++; c.running == 1 {
		c.settled = make(chan struct{})
	}
	before, over := r.tail, make(chan struct{})
	r.tail = over
	fault := q.fault
	if fault != nil && !fault.Operation {
		fault = nil
	}
	if fault != nil {
		fault.Fire()
		q.fault = nil // the other operations of the request go well
	}
	remove := q.R.Method == http.MethodDelete
	c.work.Go(func() {
		defer close(over)
		result, err := c.perform(r, before, fault, remove, do)
		c.Lock()
		defer c.Unlock()
		o.over, o.result, o.err, o.ended = true, result, err, c.Now()
		if c.running--; c.running == 0 {
			close(c.settled)
			c.settled = nil
		}
	})
	return o
}

func (c *Plane) perform(r *Resource, before chan struct{}, fault *wire.Injected, remove bool, do Work) (any, *wire.Error) {
	if before != nil {
		<-before // ends with the cloud too
	}
	if c.cfg.Pace > 0 {
		t := time.NewTimer(c.cfg.Pace)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.ctx.Done():
		}
	}
	if c.ctx.Err() != nil {
		return nil, wire.Errorf(http.StatusServiceUnavailable, "OperationPreempted", "The simulator was closed.")
	}
	c.Lock()
	gone := r.gone
	c.Unlock()
	switch {
	case fault != nil:
		e := fault.Err()
		if e.Status < 400 {
			e.Status = http.StatusConflict
		}
		c.Lock()
		defer c.Unlock()
		if !gone {
			r.SetState("Failed")
		}
		return nil, e
	case gone && remove:
		return nil, nil
	case gone: // what was to be changed was deleted by an earlier operation
		return nil, wire.Errorf(http.StatusNotFound, "NotFound", "The resource %s was deleted meanwhile.", r.ID)
	}
	result, err := do(c.ctx)
	c.Lock()
	defer c.Unlock()
	if err != nil {
		r.SetState("Failed")
	} else if !r.gone {
		r.SetState("Succeeded")
	}
	return result, err
}

// accepted adds the headers of an accepted operation. The caller holds the lock.
func (c *Plane) accepted(q *Call, o *operation, reply wire.Reply) wire.Reply {
	if reply.Header == nil {
		reply.Header = http.Header{}
	}
	base := c.URL() + "/subscriptions/" + c.cfg.Subscription + "/providers/" + o.namespace + "/locations/" + c.cfg.Location
	version := "?api-version=" + q.Version
	reply.Header.Set("Azure-AsyncOperation", base+"/operations/"+o.id+version)
	if reply.Status == http.StatusAccepted {
		reply.Header.Set("Location", base+"/operationResults/"+o.id+version+"&monitor=true")
	}
	wire.SetRetryAfter(reply.Header, 0)
	return reply
}

// poll answers both addresses of an operation.
func (c *Plane) poll(id string, results bool) (wire.Reply, *wire.Error) {
	c.Lock()
	defer c.Unlock()
	o := c.operations[Lower(id)]
	if o == nil {
		return wire.Reply{}, wire.Errorf(http.StatusNotFound, "NotFound", "The entity was not found: operation '%s'.", id)
	}
	o.polls++
	over := o.over && o.polls > 1
	h := http.Header{}
	if !over {
		wire.SetRetryAfter(h, 0)
	}
	if results {
		switch {
		case !over:
			h.Set("Location", c.URL()+"/subscriptions/"+c.cfg.Subscription+"/providers/"+o.namespace+"/locations/"+c.cfg.Location+
				"/operationResults/"+o.id+"?api-version=2021-04-01&monitor=true")
			return wire.Reply{Status: http.StatusAccepted, Header: h}, nil
		case o.err != nil:
			return o.err.Reply(), nil
		case o.result == nil:
			return wire.Reply{Status: http.StatusNoContent, Header: h}, nil
		}
		return wire.Reply{Status: http.StatusOK, Header: h, Body: o.result}, nil
	}
	doc := map[string]any{"name": o.id, "status": "InProgress", "startTime": o.started.UTC().Format(time.RFC3339Nano)}
	if over {
		doc["status"], doc["endTime"] = "Succeeded", o.ended.UTC().Format(time.RFC3339Nano)
		if o.err != nil {
			doc["status"], doc["error"] = "Failed", o.err.Body()["error"]
		} else if o.result != nil {
			doc["properties"] = map[string]any{"output": o.result}
		}
	}
	return wire.Reply{Status: http.StatusOK, Header: h, Body: doc}, nil
}
