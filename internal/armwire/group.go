package armwire

import "time"

// Group is properties of a consistency group (holdfast/consistencyGroups): items
// that are also cut at one common instant.
type Group struct {
	GroupID string   `json:"groupId"`
	Fabric  string   `json:"fabricId"`
	Items   []string `json:"itemIds"` // resource ids
}

// GroupInput creates a group or replaces its members.
type GroupInput struct {
	Items []string `json:"items"` // resource ids, or ids of items
}

// GroupPoint is an instant of a group.
type GroupPoint struct {
	Seq         uint64            `json:"seq"`
	Time        *time.Time        `json:"time"`        // of the latest member
	Consistency string            `json:"consistency"` // the weakest of the members
	Complete    bool              `json:"complete"`    // every member can be failed over to it
	Points      map[string]string `json:"points"`      // item id → recovery point name
	Missing     []string          `json:"missing"`     // item ids without a point of this instant
}
