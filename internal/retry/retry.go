// Package retry owns when replication tries again after an error: the schedule
// of DESIGN §4 as a state machine without clock, goroutine or chance of its own.
//
// Recoverable errors are tried again 1, 2, 4, 8 and 10 minutes after the first
// attempt of the failing spell and then every 30 minutes, for ever. The first
// attempt counts from when its failure was known, so that a copy which fails after
// forty minutes is tried again a minute later. Non-recoverable errors are not
// tried again before an operator acts (RetryNow: also for a changed assignment).
//
// What holds whatever errors come and whatever the clock does:
//
//   - an error of another code, or of the other class, does not begin a new spell: the
//     schedule stays anchored at the first attempt. Only success or RetryNow ends it;
//   - at least MinPause lies between a failure and the next attempt. A slot of the
//     schedule that is nearer, or has passed during a long attempt, is left out;
//   - jitter makes a pause longer by a tenth at most, never shorter;
//   - a clock that jumps ahead makes one attempt due at once, after which the
//     schedule goes on as if the time had passed;
//   - a clock that jumps back moves the whole schedule back with it (the time
//     between is taken as not passed), as soon as the state sees it: an attempt
//     is late by one pause at most, never by the jump.
package retry

import (
	"bytes"
	"encoding/json"
	"math"
	"time"

	"holdfast/internal/dr"
)

// Class says what is done about the present error.
type Class string

// The classes.
const (
	Healthy        Class = ""               // no error
	Recoverable    Class = "recoverable"    // tried again by itself
	NonRecoverable Class = "nonRecoverable" // waits for an operator
)

const (
	// MinPause is the least time between a failure and the next attempt.
	MinPause = 30 * time.Second
	// MaxPause is the longest, jitter included.
	MaxPause = (every + MinPause) * 11 / 10

	every   = 30 * time.Minute
	version = 1
)

// Classify says what an error means for replication: what the catalogue says of
// its code, and for errors without a code of the catalogue what follows from the
// kind. When in doubt an error is recoverable: trying again in vain is better than
// not replicating. Nil is Healthy.
func Classify(err error) Class {
	if err == nil {
		return Healthy
	}
	if entry, ok := dr.Lookup(dr.CodeOf(err)); ok {
		if entry.Retry == dr.NonRecoverable {
			return NonRecoverable
		}
		return Recoverable
	}
	switch dr.KindOf(err) {
	case dr.KindUnauthenticated, dr.KindForbidden, dr.KindFenced, dr.KindInvalid, dr.KindUnsupported:
		return NonRecoverable
	}
	return Recoverable
}

// Decision is what follows from a failure.
type Decision struct {
	Class   Class
	Attempt int       // attempts of the spell that have failed, 1 after the first
	At      time.Time // of the next attempt; zero = not before an operator acts
}

// State is the position in the schedule. The zero State is healthy. It is not
// safe for concurrent use; its JSON form survives restarts. All times are kept
// without a monotonic reading: the clock on the wall decides.
type State struct {
	class   Class
	code    dr.Code
	attempt int
	since   time.Time // the trouble began; survives RetryNow
	anchor  time.Time // end of the spell's first attempt
	next    time.Time // zero unless an attempt is planned
	seen    time.Time // latest time given, to notice a clock that goes back
}

// Class returns the class of the present error. After RetryNow it is still that of
// the last error, until the attempt has ended.
func (s *State) Class() Class { return s.class }

// Code returns the catalogue code of the present error, empty if it has none.
func (s *State) Code() dr.Code { return s.code }

// Attempt returns how many attempts of the spell have failed.
func (s *State) Attempt() int { return s.attempt }

// Since returns when the present trouble began, over all attempts and acts of
// operators; zero = healthy.
func (s *State) Since() time.Time { return s.since }

// Next returns when the next attempt is due: the zero Time if there is no error, or if an
// operator has to act first (Class tells which).
func (s *State) Next() time.Time { return s.next }

// Failed notes that an attempt has failed at now and plans the next one. jitter
// in [0, 1] is drawn by the caller. A nil error is taken as one of unknown kind.
func (s *State) Failed(now time.Time, err error, jitter float64) Decision {
	class := Classify(err)
	if err == nil {
		class = Recoverable
	}
	return s.failed(now, class, dr.CodeOf(err), jitter)
}

func (s *State) failed(now time.Time, class Class, code dr.Code, jitter float64) Decision {
	now = s.observe(now)
	if s.since.IsZero() {
		s.since = now
	}
	if s.anchor.IsZero() {
		s.anchor, s.attempt = now, 0
	}
	if s.attempt < math.MaxInt32 {
		s.attempt++
	}
	s.class, s.code, s.next = class, code, time.Time{}
	if class == Recoverable {
		pause := pauseAfter(now.Sub(s.anchor))
		s.next = now.Add(pause + spread(pause, jitter))
	}
	return Decision{Class: class, Attempt: s.attempt, At: s.next}
}

// pauseAfter returns how long after an attempt that failed so long after the
// anchor the next slot of the schedule is, leaving out what is too near.
func pauseAfter(elapsed time.Duration) time.Duration {
	const last = 10 * time.Minute
	for _, slot := range [...]time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, last} {
		if pause := slot - elapsed; pause >= MinPause {
			return pause
		}
	}
	pause := every - (elapsed-last)%every // also right a little before the last slot, where the remainder is negative
	if pause < MinPause {
		pause += every
	}
	return pause
}

// spread is at most a tenth of the pause.
func spread(pause time.Duration, jitter float64) time.Duration {
	if !(jitter > 0) { // NaN too
		return 0
	}
	return time.Duration(min(jitter, 1) * float64(pause) / 10)
}

// Succeeded notes that an attempt has succeeded: the state is healthy.
func (s *State) Succeeded() { *s = State{} }

// RetryNow notes an operator's act, or a changed assignment: an attempt is due
// at now, whatever the class, and it is the first of a new spell. Without an error nothing changes.
func (s *State) RetryNow(now time.Time) {
	if s.class == Healthy {
		return
	}
	s.next = s.observe(now)
	s.anchor, s.attempt = time.Time{}, 0
}

// Wait returns how long the next attempt has to wait from now on (0 = it is due; also when
// healthy), and false if it waits for an operator. It is never longer than
// MaxPause. A caller that sleeps asks again when it wakes.
func (s *State) Wait(now time.Time) (time.Duration, bool) {
	if s.class == Healthy {
		return 0, true
	}
	now = s.observe(now)
	if s.next.IsZero() {
		return 0, false
	}
	return max(s.next.Sub(now), 0), true
}

// observe follows the clock. If it went back, everything that is planned and
// remembered goes back with it.
func (s *State) observe(now time.Time) time.Time {
	now = now.Round(0).UTC()
	if now.Before(s.seen) {
		for _, t := range [...]*time.Time{&s.since, &s.anchor, &s.next} {
			if !t.IsZero() {
				*t = now.Add(t.Sub(s.seen))
			}
		}
	}
	s.seen = now
	return now
}

// record is the JSON form of State.
type record struct {
	Version int       `json:"version"`
	Class   Class     `json:"class,omitempty"`
	Code    dr.Code   `json:"code,omitempty"`
	Attempt int       `json:"attempt,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Anchor  time.Time `json:"anchor,omitzero"`
	Next    time.Time `json:"next,omitzero"`
	Seen    time.Time `json:"seen,omitzero"`
}

// MarshalJSON implements json.Marshaler. It fails only for years JSON can't hold.
func (s State) MarshalJSON() ([]byte, error) {
	return json.Marshal(record{Version: version, Class: s.class, Code: s.code, Attempt: s.attempt, Since: s.since, Anchor: s.anchor, Next: s.next, Seen: s.seen})
}

// UnmarshalJSON implements json.Unmarshaler. A version that it does not know is
// CodeFormatUnsupported, a record that no State writes is KindCorrupt; the state
// is unchanged then, and a caller loses nothing by going on with the zero State.
func (s *State) UnmarshalJSON(text []byte) error {
	const op = "retry.State"
	if bytes.Equal(text, []byte("null")) {
		return nil
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return dr.Errorf(dr.KindCorrupt, op, "read the state of a retry schedule: %w", err)
	}
	if r.Version != version {
		return dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "the retry schedule has version %d, this program knows %d", r.Version, version)
	}
	got := State{class: r.Class, code: r.Code, attempt: r.Attempt, since: r.Since.UTC(), anchor: r.Anchor.UTC(), next: r.Next.UTC(), seen: r.Seen.UTC()}
	if trouble := got.check(); trouble != "" {
		return dr.Errorf(dr.KindCorrupt, op, "the state of a retry schedule is damaged: %s", trouble)
	}
	*s = got
	return nil
}

// check says what no State of this package looks like.
func (s *State) check() string {
	switch s.class {
	case Healthy:
		if *s != (State{}) {
			return "healthy, with an error's details"
		}
		return ""
	case Recoverable, NonRecoverable:
	default:
		return "unknown class"
	}
	switch {
	case s.since.IsZero() || s.seen.IsZero():
		return "an error without its time"
	case s.since.After(s.seen) || s.anchor.After(s.seen):
		return "an error in the future"
	case s.attempt < 0 || s.attempt > math.MaxInt32 || (s.attempt == 0) != s.anchor.IsZero():
		return "attempts that do not fit"
	case s.class == Recoverable && s.next.IsZero():
		return "a recoverable error that is never tried again"
	case s.next.Sub(s.seen) > MaxPause:
		return "a pause longer than the schedule has"
	}
	return ""
}
