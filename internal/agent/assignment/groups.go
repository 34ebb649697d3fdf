package assignment

import (
	"sync"

	"holdfast/internal/agentapi"
	"holdfast/internal/capture"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Groups are the consistency groups of an agent. It is safe for concurrent use.
type Groups struct {
	source hypervisor.GroupSource // nil: this host can't

	mu   sync.Mutex
	byID map[string]*capture.Group
}

// NewGroups makes Groups of what a host offers: source may satisfy hypervisor.GroupSource.
func NewGroups(source any) *Groups {
	g, _ := source.(hypervisor.GroupSource)
	return &Groups{source: g, byID: map[string]*capture.Group{}}
}

// Of returns the group of an assignment, the same for all its members; nil if it
// has none. On a host that can't cut several VMs at one instant it is an error:
// the item goes on by itself, without points of the group.
func (g *Groups) Of(a agentapi.Assignment) (*capture.Group, error) {
	if a.Group == nil || a.Group.ID == "" {
		return nil, nil
	}
	if g.source == nil {
		return nil, dr.New(dr.KindUnsupported, dr.CodeGroupIncomplete, op,
			"VM %s belongs to a consistency group, but this host's hypervisor can't cut several VMs at one instant: its recovery points are its own", a.VMName).
			WithHint("Take the VM out of the group, or move all members to a host that can.")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.byID[a.Group.ID]
	if x == nil {
		x = capture.NewGroup(a.Group.ID, g.source, 0)
		g.byID[a.Group.ID] = x
	}
	return x, nil
}

// Keep forgets all groups but these.
func (g *Groups) Keep(ids map[string]bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.byID {
		if !ids[id] {
			delete(g.byID, id)
		}
	}
}
