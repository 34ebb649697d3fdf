// Package health says how well an item is replicated, by Hyper-V Replica's
// rules, and why. It is arithmetic over the vocabulary: no I/O, no state.
package health

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// The limits of Hyper-V Replica's rules. All are "more than".
const (
	MissedLimit  = 0.20            // share of cycles missed in the monitoring interval
	LagLimit     = time.Hour       // since the newest point
	LatencyLimit = 5 * time.Minute // from cut to commit, on average in the monitoring interval
)

// Severity is the health that an error of the agent gives its item: what the
// catalogue says of the code, Warning for a code that it does not know.
func Severity(c dr.Code) dr.Health {
	if e, ok := dr.Lookup(c); ok && e.Severity == dr.HealthCritical {
		return dr.HealthCritical
	}
	return dr.HealthWarning
}

// CannotSend reports the errors by which the primary can't send: Critical by
// Hyper-V Replica's rules even where they heal by themselves.
func CannotSend(c dr.Code) bool { return Severity(c) == dr.HealthCritical }

// Input is all that an item's health depends on.
type Input struct {
	Item      dr.ProtectedItem
	Policy    dr.Policy // of the item, for when a resynchronization begins
	Status    dr.ReplicationStatus
	Stats     Statistics // of the running monitoring interval; empty = Status.Missed and Cycles are all that is known
	Connected bool       // the source agent, or too early to tell
	LastSeen  time.Time
	Now       time.Time
}

// Assess applies Hyper-V Replica's rules:
//
//	Critical  the primary can't send: network, storage on either side, host not
//	          connected, an error that waits for an operator
//	          a resynchronization is needed or runs
//	          enabling protection failed
//	Warning   more than 20 % of the cycles missed in the monitoring interval
//	          more than an hour since the newest point
//	          latency above five minutes on average in the monitoring interval
//	          initial replication not complete
//	          failed over and not reversed
//	          paused on the primary
//	          the backlog does not get smaller (Holdfast's own rule)
//	          the last failover failed (own rule); other errors of the agent
//	Normal    otherwise
//
// "Paused on the replica" has no counterpart: nothing on the recovery side can
// refuse what the source sends. Each reason says why, so that health is never just a colour.
func Assess(in Input) (dr.Health, []dr.HealthError) {
	it, st := in.Item, in.Status
	var out []dr.HealthError
	add := func(code dr.Code, format string, args ...any) {
		out = append(out, reason(code, format, args...))
	}
	if it.Protection == dr.EnableFailed {
		add(dr.CodeEnableFailed, "Protection of %s could not be enabled.", it.VMName)
	}
	if it.Failover == dr.FailoverFailed {
		add(dr.CodeFailoverFailed, "The last failover of %s failed.", it.VMName)
	}
	switch {
	case it.Protection == dr.Disabling || it.Protection == dr.Enabling || it.Protection == dr.EnableFailed:
		return worst(out), out
	case it.Active == dr.AtRecovery:
		add(dr.CodeFailoverNotReversed, "%s is failed over and not reverse replicated.", it.VMName)
		return worst(out), out
	}
	if !in.Connected {
		add(dr.CodeSourceDisconnected, "The host of %s is not connected since %s.", it.VMName, in.LastSeen.Format("2006-01-02 15:04:05 MST"))
	}
	if it.Resync != "" || st.ResyncReason != "" {
		out = append(out, resync(in))
	}
	if st.Err != nil {
		out = append(out, *st.Err)
	}
	if it.Paused {
		add(dr.CodePaused, "Replication of %s is paused.", it.VMName)
	}
	if it.Protection == dr.InitialReplication {
		add(dr.CodeInitialIncomplete, "Initial replication of %s is not complete (%.0f %%).", it.VMName, st.Percent)
	} else if lag := in.Now.Sub(st.LastPoint); !st.LastPoint.IsZero() && lag > LagLimit {
		add(dr.CodeReplicationLag, "The newest recovery point of %s is %s old.", it.VMName, lag.Round(time.Minute))
	}
	if missed, cycles := in.cycles(); float64(missed) > MissedLimit*float64(cycles) {
		add(dr.CodeCyclesMissed, "%s missed %d of %d cycles in the monitoring interval.", it.VMName, missed, cycles)
	}
	if mean := in.Stats.AverageLatency(); mean > LatencyLimit {
		add(dr.CodeLatencyHigh, "Sending a cycle of %s took %s on average in the monitoring interval, %s at most.", it.VMName,
			mean.Round(time.Second), in.Stats.MaxLatency.Round(time.Second))
	}
	if st.Converging == dr.NotConverging {
		add(dr.CodeBandwidthLow, "%s changes %s/s and %s/s can be sent: %s wait.", it.VMName, size(st.BacklogRate), size(st.ShipRate), size(st.BacklogBytes))
	}
	return worst(out), out
}

// cycles returns the missed cycles and all of the monitoring interval.
func (in Input) cycles() (missed, all int) {
	if n := in.Stats.Success + in.Stats.Miss; n > 0 {
		return in.Stats.Miss, n
	}
	if in.Status.Cycles <= 0 {
		return 0, 0
	}
	return in.Status.Missed, in.Status.Cycles
}

// reason makes a reason of a catalogue entry.
func reason(code dr.Code, format string, args ...any) dr.HealthError {
	e, _ := dr.Lookup(code)
	return dr.HealthError{Code: code, Severity: e.Severity, Message: fmt.Sprintf(format, args...), Cause: e.Cause, Remedy: e.Remedy}
}

// resync explains why a resynchronization is needed and when it begins.
func resync(in Input) dr.HealthError {
	it, st := in.Item, in.Status
	out := reason(dr.CodeResyncRequired, "%s needs a resynchronization.", it.VMName)
	why, known := dr.Lookup(st.ResyncReason)
	var cause []string
	if known {
		cause = append(cause, why.Title+".")
	}
	if text := strings.TrimSpace(it.Resync); text != "" && text != why.Title && text != string(st.ResyncReason) {
		cause = append(cause, strings.TrimSuffix(text, ".")+".")
	}
	if len(cause) == 0 {
		cause = append(cause, out.Cause)
	}
	mode := in.Policy.ResyncAuto
	switch window := in.Policy.ResyncWindow; {
	case st.Phase == "resync":
		out.Message = fmt.Sprintf("%s is being resynchronized (%.0f %%).", it.VMName, st.Percent)
		out.Remedy = "Wait until it is complete. Recovery points stay usable meanwhile."
	case mode == dr.ResyncManual:
		cause = append(cause, "It waits for an operator, as the policy says.")
		out.Remedy = "Start it with Resynchronize."
	case st.NextResync.After(in.Now):
		cause = append(cause, fmt.Sprintf("It waits for its window, which opens %s.", st.NextResync.Format("2006-01-02 15:04 MST")))
	case mode != dr.ResyncNow && !window.IsZero():
		cause = append(cause, fmt.Sprintf("It begins in its window, %s.", window))
	default:
		cause = append(cause, "It begins by itself.")
		out.Remedy = "Wait until it is complete, or see the other reasons if it does not begin."
	}
	out.Cause = strings.Join(cause, " ")
	return out
}

// size is a number of bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 999.5 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.3g %ciB", f, units[i])
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
