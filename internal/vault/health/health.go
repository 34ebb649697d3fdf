// Package health says how well an item is replicated, by Hyper-V Replica's
// rules, and why. It is arithmetic over the vocabulary: no I/O, no state.
package health

import (
	"fmt"
	"slices"
	"time"

	"holdfast/internal/dr"
)

// Limits of Hyper-V Replica's health rules.
const (
	missedWarning = 0.20      // share of cycles missed in the monitoring interval
	lagWarning    = time.Hour // since the last send
)

// Codes of the reasons for a health other than Normal that are no error of an agent.
const (
	healthIRRunning    dr.Code = "InitialReplicationNotComplete"
	healthMissed       dr.Code = "ReplicationCyclesMissed"
	healthLag          dr.Code = "ReplicationLag"
	healthPaused       dr.Code = "ReplicationPaused"
	healthResync       dr.Code = "ResynchronizationRequired"
	healthNotReversed  dr.Code = "FailoverNotReversed"
	healthDisconnected dr.Code = "SourceHostNotConnected"
	healthEnableFailed dr.Code = "EnableProtectionFailed"
	healthUnproved     dr.Code = "FailoverFailed"
)

// CannotSend reports the errors by which the primary can't send: Critical by
// Hyper-V Replica's rules even where they heal by themselves.
func CannotSend(c dr.Code) bool {
	return slices.Contains([]dr.Code{dr.CodeStoreUnreachable, dr.CodeStoreFull, dr.CodeStoreReadOnly, dr.CodeSpoolFull, dr.CodeNoSpace,
		dr.CodeVaultUnreachable, dr.CodeHypervisorDown}, c)
}

// Input is all that an item's health depends on.
type Input struct {
	Item      dr.ProtectedItem
	Status    dr.ReplicationStatus
	Connected bool // the source agent, or too early to tell
	LastSeen  time.Time
	Now       time.Time
}

// Assess applies Hyper-V Replica's rules:
//
//	Critical  the primary can't send (network, storage, host not connected), a
//	          resynchronization is needed, or enabling failed
//	Warning   more than 20 % of the cycles missed in the monitoring interval; more
//	          than an hour since the last send; initial replication not complete; failed
//	          over and not reversed; paused on the primary; other errors
//	Normal    otherwise
//
// Each reason says why, so that health is never just a colour.
func Assess(in Input) (dr.Health, []dr.HealthError) {
	it, st := in.Item, in.Status
	var out []dr.HealthError
	add := func(code dr.Code, sev dr.Health, cause, remedy, format string, args ...any) {
		out = append(out, dr.HealthError{Code: code, Severity: sev, Message: fmt.Sprintf(format, args...), Cause: cause, Remedy: remedy})
	}
	if it.Protection == dr.EnableFailed {
		add(healthEnableFailed, dr.HealthCritical, "The job that enables protection has failed.", "See the job's error, then enable protection again or disable it.",
			"Protection of %s could not be enabled.", it.VMName)
	}
	if it.Failover == dr.FailoverFailed {
		add(healthUnproved, dr.HealthWarning, "The last failover failed and was undone.", "See the job's error; the failover may be repeated.", "The last failover of %s failed.", it.VMName)
	}
	switch {
	case it.Protection == dr.Disabling || it.Protection == dr.Enabling || it.Protection == dr.EnableFailed:
		return worst(out), out
	case it.Active == dr.AtRecovery:
		add(healthNotReversed, dr.HealthWarning, "The VM runs at the recovery site and is not replicated back.", "Commit or cancel the failover; afterwards protect the VM at its new place.",
			"%s is failed over and not reverse replicated.", it.VMName)
		return worst(out), out
	}
	if !in.Connected {
		add(healthDisconnected, dr.HealthCritical, "The agent of the source host has not been heard of.", "Start the agent; check the network from the host to the vault.",
			"The host of %s is not connected since %s.", it.VMName, in.LastSeen.Format("2006-01-02 15:04:05 MST"))
	}
	if it.Resync != "" {
		add(healthResync, dr.HealthCritical, it.Resync, "It runs by itself in its window, or start it now with Resynchronize.", "%s needs a resynchronization.", it.VMName)
	}
	if st.Err != nil {
		out = append(out, *st.Err)
	}
	if it.Paused {
		add(healthPaused, dr.HealthWarning, "Somebody paused the replication.", "Resume it.", "Replication of %s is paused.", it.VMName)
	}
	if it.Protection == dr.InitialReplication {
		add(healthIRRunning, dr.HealthWarning, "The disks are being sent for the first time.", "Wait until the initial replication is complete.",
			"Initial replication of %s is not complete (%.0f %%).", it.VMName, st.Percent)
	} else if lag := in.Now.Sub(st.LastPoint); !st.LastPoint.IsZero() && lag > lagWarning {
		add(healthLag, dr.HealthWarning, "Nothing has been sent for more than an hour.", "See the other reasons and the agent's state.",
			"The newest recovery point of %s is %s old.", it.VMName, lag.Round(time.Minute))
	}
	if st.Cycles > 0 && float64(st.Missed) > missedWarning*float64(st.Cycles) {
		add(healthMissed, dr.HealthWarning, "Changes could not be sent within the copy frequency.", "Give replication more bandwidth or choose a lower copy frequency.",
			"%s missed %d of %d cycles in the monitoring interval.", it.VMName, st.Missed, st.Cycles)
	}
	return worst(out), out
}

func worst(errs []dr.HealthError) dr.Health {
	h := dr.HealthNormal
	for _, e := range errs {
		switch {
		case e.Severity == dr.HealthCritical:
			return dr.HealthCritical
		case e.Severity == dr.HealthWarning:
			h = dr.HealthWarning
		}
	}
	return h
}

// FirstReason is the end of a sentence about a change of health.
func FirstReason(errs []dr.HealthError) string {
	if len(errs) == 0 {
		return ""
	}
	return ": " + errs[0].Message
}

// KeepSince keeps the time at which a reason was seen first.
func KeepSince(errs, old []dr.HealthError, now time.Time) {
	for i := range errs {
		if errs[i].Since.IsZero() {
			errs[i].Since = now
		}
		for _, o := range old {
			if o.Code == errs[i].Code && !o.Since.IsZero() {
				errs[i].Since = o.Since
			}
		}
	}
}

// SameReasons compares what people act on; figures in the message may go on changing
// without a write per item and round.
func SameReasons(a, b []dr.HealthError) bool {
	return slices.EqualFunc(a, b, func(x, y dr.HealthError) bool {
		return x.Code == y.Code && x.Severity == y.Severity && x.Cause == y.Cause
	})
}
