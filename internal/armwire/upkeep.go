package armwire

import "time"

// Upkeep says how a replica is looked after (GET …/holdfast/maintenance of an item).
type Upkeep struct {
	Points         int   `json:"points"`      // listed
	StoredBytes    int64 `json:"storedBytes"` // of them, as they were committed
	Objects        int   `json:"objects"`     // in the store, as the last pass found
	Bytes          int64 `json:"bytes"`       // of these
	PendingObjects int   `json:"pendingObjects"`

	LastPass      *time.Time   `json:"lastPass,omitempty"` // that succeeded
	ExpiredPoints int          `json:"expiredPoints"`      // by it
	FreedBytes    int64        `json:"freedBytes"`         // by it
	Note          string       `json:"note,omitempty"`     // why it did nothing
	PassError     *HealthError `json:"passError,omitempty"`
	NextAttempt   *time.Time   `json:"nextAttempt,omitempty"` // after passError
	PassAsked     bool         `json:"passAsked,omitempty"`

	LastScrub    *time.Time `json:"lastScrub,omitempty"` // that was complete
	ScrubObjects int        `json:"scrubObjects"`
	ScrubBytes   int64      `json:"scrubBytes"`
	Damaged      []Damage   `json:"damaged"`                // points that it found to be unusable
	ScrubError   string     `json:"scrubError,omitempty"`   // of the last attempt, if it failed
	ScrubRunning string     `json:"scrubRunning,omitempty"` // how far it is
	NextScrub    *time.Time `json:"nextScrub,omitempty"`
}

// Damage is a recovery point that a scrub found to be unusable.
type Damage struct {
	Point string     `json:"point"`
	Time  *time.Time `json:"time,omitempty"`
	Text  string     `json:"text"` // names the object
}

// MaintenancePlan is what a maintenance pass would do now, oldest point first.
type MaintenancePlan struct {
	Expiring int            `json:"expiring"`
	Points   []PlannedPoint `json:"points"`
}

// PlannedPoint is a recovery point in a plan.
type PlannedPoint struct {
	Name    string     `json:"name"`
	Time    *time.Time `json:"time"`
	Expires bool       `json:"expires"`
	Keep    string     `json:"keptBy,omitempty"` // why it stays
}

// Statistics are what Hyper-V Replica shows of one monitoring interval.
type Statistics struct {
	Since             *time.Time `json:"since,omitempty"` // beginning of the interval
	Success           int        `json:"successfulCycles"`
	Missed            int        `json:"missedCycles"`
	Bytes             int64      `json:"bytes"`
	AverageBytes      int64      `json:"averageBytes"` // of a cycle
	MaxBytes          int64      `json:"maxBytes"`
	LatencySeconds    float64    `json:"averageLatencySeconds"` // from cut to commit
	MaxLatencySeconds float64    `json:"maxLatencySeconds"`
	NetworkFailures   int        `json:"networkFailures"`
	Failures          int        `json:"failures"`
	AppFailures       int        `json:"appConsistentFailures"`
	Puts              int64      `json:"objectsCreated"` // which a store charges as writes
}

// Seed is a replica in the store that protection can begin with (GET …/holdfast/seeds).
type Seed struct {
	Machine string `json:"machine"` // its id
	VMName  string `json:"vmName"`  // as it was read when the seed was made
	Disks   []Disk `json:"disks"`
	Bytes   int64  `json:"bytes"` // stored
}
