package capture

import (
	"math/rand/v2"
	"time"

	"holdfast/internal/dr"
)

// retryAt is when to try again after the failures-th failure (1 = the first
// attempt has just failed): 1, 2, 4, 8 and 10 minutes after the first attempt,
// then every 30 minutes for ever. jitter in [0, 1) moves an attempt by up to a
// tenth of the pause before it, so that a thousand agents do not come at once.
func retryAt(first time.Time, failures int, jitter float64) time.Time {
	steps := [...]time.Duration{0, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute}
	at := func(n int) time.Duration {
		if n < len(steps) {
			return steps[n]
		}
		return steps[len(steps)-1] + time.Duration(n-len(steps)+1)*30*time.Minute
	}
	n := max(failures, 1)
	pause := at(n) - at(n-1)
	return first.Add(at(n) + time.Duration(jitter*0.1*float64(pause)))
}

func jitter() float64 { return rand.Float64() }

// permanent reports whether an error waits for an operator instead of being tried again.
func permanent(err error) bool {
	if entry, ok := dr.Lookup(dr.CodeOf(err)); ok {
		return entry.Retry == dr.NonRecoverable
	}
	switch dr.KindOf(err) {
	case dr.KindUnauthenticated, dr.KindForbidden, dr.KindFenced, dr.KindInvalid, dr.KindUnsupported:
		return true
	}
	return false
}
