package objstore

import "errors"

// Cause says in one word why a store did not do what it was asked for, where
// the sentinel (ErrDenied, ErrUnavailable) tells what follows from it but not
// what an operator has to mend. Backends that know the cause put an error with
// the method StoreCause into the chain; see CauseOf.
type Cause string

// The causes. An empty one is not known.
const (
	CauseClock     Cause = "clock"     // the clocks of this machine and of the store differ too much
	CauseFirewall  Cause = "firewall"  // the store admits no requests from this network
	CauseRole      Cause = "role"      // signed in, but without the right to do this
	CauseSignIn    Cause = "sign-in"   // the identity was refused, or its token ended
	CauseKey       Cause = "key"       // the store's key is wrong, was changed, or keys are switched off
	CauseContainer Cause = "container" // the container or bucket is missing or being deleted
	CauseAccount   Cause = "account"   // the account is disabled or not there yet
	CauseThrottled Cause = "throttled" // too many requests, or the store is overloaded
	CauseRetained  Cause = "retained"  // the store keeps the object until a date, or on hold
	CauseArchived  Cause = "archived"  // the object is in a tier that cannot be read at once
)

// CauseOf returns the cause in the chain of err, or an empty one.
func CauseOf(err error) Cause {
	var c interface{ StoreCause() Cause }
	if errors.As(err, &c) {
		return c.StoreCause()
	}
	return ""
}
