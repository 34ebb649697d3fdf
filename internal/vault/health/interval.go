package health

import (
	"fmt"
	"time"

	"holdfast/internal/dr"
)

// Interval is the monitoring interval: statistics count from its beginning and
// are reset at its end. The zero Interval is Default.
type Interval struct {
	Length time.Duration // 1, 2, 3, 4, 6, 8, 12 or 24 hours, or 2 to 7 days
	Start  time.Duration // since midnight: one of the times at which an interval begins; [0, 24 h), whole minutes
}

// Default is Hyper-V Replica's: 12 hours from 09:00.
func Default() Interval { return Interval{Length: 12 * time.Hour, Start: 9 * time.Hour} }

const day = 24 * time.Hour

// Validate accepts the lengths that Hyper-V Replica knows.
func (iv Interval) Validate() error {
	if iv == (Interval{}) {
		return nil
	}
	fail := func(format string, args ...any) error {
		return dr.Errorf(dr.KindInvalid, "health.Interval", "monitoring interval: %s", fmt.Sprintf(format, args...)).
			WithHint("Choose a length of 1, 2, 3, 4, 6, 8, 12 or 24 hours or 2 to 7 days, and a start from 00:00 to 23:59.")
	}
	switch l := iv.Length; {
	case l <= 0 || l > 7*day:
		return fail("a length of %v is outside 1h..168h", l)
	case l > day && l%day != 0:
		return fail("a length of %v is not a number of days", l)
	case l <= day && (l%time.Hour != 0 || day%l != 0):
		return fail("a length of %v does not divide the day", l)
	case iv.Start < 0 || iv.Start >= day || iv.Start%time.Minute != 0:
		return fail("a start at %v is not a time of the day in minutes", iv.Start)
	}
	return nil
}

// Bounds returns the interval [from, to) that t lies in, by the clock on the
// wall of t's location: where clocks change an interval is an hour shorter or
// longer, and none lies in a missing hour. Intervals of several days count
// from a Monday, so all replicas of a vault agree on them without asking. iv
// must be valid.
func (iv Interval) Bounds(t time.Time) (from, to time.Time) {
	if iv == (Interval{}) {
		iv = Default()
	}
	monday := time.Date(1970, 1, 5, 0, 0, 0, 0, time.UTC)
	begin := func(k int64) time.Time {
		return dr.OnWall(monday, iv.Start+time.Duration(k)*iv.Length, t.Location())
	}
	_, offset := t.Zone()
	since := t.Add(time.Duration(offset)*time.Second).Sub(monday) - iv.Start // on the wall
	k := int64(since / iv.Length)
	if since%iv.Length < 0 {
		k--
	}
	// What the wall shows at t it may have shown before, past the next beginning.
	for from, to = begin(k), begin(k+1); !to.After(t); k++ {
		from, to = to, begin(k+2)
	}
	return from, to
}

// Statistics are what Hyper-V Replica shows of one monitoring interval.
type Statistics struct {
	Start time.Time // of the interval; zero = nothing counted yet

	Success  int   // cycles committed
	Miss     int   // cycles not sent within the copy frequency
	Bytes    int64 // sent by them
	MaxBytes int64 // of one cycle
	Puts     int64 // objects that they created: what a store charges as writes

	Latency    time.Duration // from cut to commit, all successful cycles together
	MaxLatency time.Duration

	NetworkFailures       int // errors of the way to the store or the vault
	Failures              int // other errors
	AppConsistentFailures int // points that should have been application-consistent and are not
}

// At returns the statistics to count on at now: s, or empty ones if the interval
// of s is not the one that now lies in.
func (s Statistics) At(iv Interval, now time.Time) Statistics {
	if from, _ := iv.Bounds(now); !s.Start.Equal(from) {
		return Statistics{Start: from}
	}
	return s
}

// Sent counts a committed cycle.
func (s *Statistics) Sent(bytes int64, latency time.Duration) {
	latency = max(latency, 0) // the clocks of two machines
	s.Success++
	s.Bytes += bytes
	s.MaxBytes = max(s.MaxBytes, bytes)
	s.Latency += latency
	s.MaxLatency = max(s.MaxLatency, latency)
}

// Failed counts an error.
func (s *Statistics) Failed(code dr.Code) {
	switch code {
	case dr.CodeStoreUnreachable, dr.CodeVaultUnreachable:
		s.NetworkFailures++
	default:
		s.Failures++
	}
}

// AverageBytes returns the mean size of a committed cycle, 0 without one.
func (s Statistics) AverageBytes() int64 {
	if s.Success == 0 {
		return 0
	}
	return s.Bytes / int64(s.Success)
}

// AverageLatency returns the mean time from cut to commit, 0 without a committed cycle.
func (s Statistics) AverageLatency() time.Duration {
	if s.Success == 0 {
		return 0
	}
	return s.Latency / time.Duration(s.Success)
}

// Grown returns by how much a counter has grown that begins at 0 with its process:
// what an agent reports of its cycles.
func Grown(before, now int) int {
	if now < before {
		return max(now, 0)
	}
	return now - before
}
