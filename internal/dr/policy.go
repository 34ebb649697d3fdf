package dr

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"time"
)

// ResyncMode says when a resynchronization that has become necessary begins.
type ResyncMode string

// The modes. The empty mode is ResyncInWindow.
const (
	ResyncInWindow ResyncMode = "window" // by itself, when Policy.ResyncWindow is open
	ResyncNow      ResyncMode = "now"    // by itself, at once
	ResyncManual   ResyncMode = "manual" // when an operator asks for it
)

// InitialMode says how the disks of a VM are sent the first time.
type InitialMode string

// The modes. The empty mode is InitialParallel.
const (
	InitialParallel InitialMode = "parallel" // all disks together
	InitialSerial   InitialMode = "serial"   // one disk after the other, in the VM's order
)

// Compression says how hard the source tries to make data small.
type Compression string

// The choices. The empty one is CompressionZstd.
const (
	CompressionZstd Compression = "zstd" // small
	CompressionFast Compression = "fast" // little CPU on the host
	CompressionNone Compression = "none" // for data that is compressed or encrypted already
)

// BandwidthRule limits what the items of a policy send together while its window is open.
type BandwidthRule struct {
	Window         Window
	BytesPerSecond int64 // 0 = unlimited
}

// Policy is a replication policy. Zero values of everything from RetainHourly
// on are what policies were before these settings existed.
type Policy struct {
	ID            PolicyID
	Name          string
	CopyFrequency time.Duration // 30 s, 5 min, 15 min as ASR; anything >= 5 s
	Retention     time.Duration // how long every recovery point is kept; 0 = only the latest
	AppFrequency  time.Duration // application-consistent points; 0 = none
	StartTime     string        // of initial replication, RFC 3339 ("" = now)
	Storage       string        // storage account id as given by the client; names a target, not checked
	Created       time.Time

	// Tiers after Retention, as ages of a point: until RetainHourly one point
	// an hour is kept, until RetainDaily one a day. 0 = no such tier. Tiers that are set grow:
	// Retention < RetainHourly < RetainDaily.
	RetainHourly time.Duration
	RetainDaily  time.Duration

	ResyncAuto      ResyncMode
	ResyncWindow    Window  // for ResyncInWindow; the zero Window is always open
	ResyncThreshold float64 // share of the VM's total disk size that may be pending; 0 = DefaultResyncThreshold, negative = off

	InitialMode     InitialMode
	InitialWindow   Window // initial replication sends only while it is open
	InitialPriority int    // -10..10; higher goes first

	Compression Compression
	Bandwidth   []BandwidthRule // the first rule whose window is open applies; none = unlimited
}

// Policy limits and defaults.
const (
	MinCopyFrequency = 5 * time.Second
	MaxRetention     = 366 * 24 * time.Hour // of Retention, the fine window
	MaxRetentionTier = 10 * 366 * 24 * time.Hour

	DefaultResyncWindow    = "18:30-06:00" // outside office hours, as Hyper-V Replica
	DefaultResyncThreshold = 0.5
	MinResyncThreshold     = 0.05

	MaxInitialPriority = 10
	MinBandwidth       = 16 << 10 // bytes a second; less could not even keep a cycle alive
	MaxBandwidthRules  = 16
)

// Validate checks ranges. Every error is CodePolicyInvalid (CodeWindowInvalid
// for what can't be a window) and names the policy and the setting.
func (p Policy) Validate() error {
	if p.Name == "" {
		return New(KindInvalid, CodePolicyInvalid, "dr.Policy", "the policy has no name")
	}
	for _, check := range []func() string{p.checkTimes, p.checkTiers, p.checkResync, p.checkInitial, p.checkTransfer} {
		if trouble := check(); trouble != "" {
			return New(KindInvalid, CodePolicyInvalid, "dr.Policy", "policy %q: %s", p.Name, trouble)
		}
	}
	return nil
}

func (p Policy) checkTimes() string {
	switch {
	case p.CopyFrequency < MinCopyFrequency || p.CopyFrequency > 24*time.Hour:
		return fmt.Sprintf("copy frequency %v is outside 5s..24h", p.CopyFrequency)
	case p.Retention < 0 || p.Retention > MaxRetention:
		return fmt.Sprintf("retention %v is outside 0..%v", p.Retention, MaxRetention)
	case p.AppFrequency < 0 || p.AppFrequency > 24*time.Hour:
		return fmt.Sprintf("application-consistent frequency %v is outside 0..24h", p.AppFrequency)
	}
	if _, err := p.Start(); err != nil {
		return fmt.Sprintf("start time %q is not a date and time with zone as in 2026-01-31T22:00:00+01:00 (RFC 3339), nor empty", excerpt(p.StartTime))
	}
	return ""
}

// Start returns when initial replication may begin; the zero Time is "now".
func (p Policy) Start() (time.Time, error) {
	if p.StartTime == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, p.StartTime)
	if err != nil {
		return time.Time{}, New(KindInvalid, CodePolicyInvalid, "dr.Policy", "policy %q: start time %q is not in RFC 3339 form", p.Name, excerpt(p.StartTime))
	}
	return t, nil
}

func (p Policy) checkTiers() string {
	over := p.Retention
	name := "retention"
	for _, tier := range []struct {
		name string
		keep time.Duration
	}{{"hourly retention", p.RetainHourly}, {"daily retention", p.RetainDaily}} {
		switch {
		case tier.keep == 0:
			continue
		case tier.keep < 0 || tier.keep > MaxRetentionTier:
			return fmt.Sprintf("%s %v is outside 0..%v", tier.name, tier.keep, MaxRetentionTier)
		case tier.keep <= over:
			return fmt.Sprintf("%s %v is not longer than %s %v", tier.name, tier.keep, name, over)
		}
		over, name = tier.keep, tier.name
	}
	return ""
}

func (p Policy) checkResync() string {
	switch p.ResyncAuto {
	case "", ResyncInWindow, ResyncNow, ResyncManual:
	default:
		return fmt.Sprintf("resynchronization mode %q is none of window, now, manual", excerpt(string(p.ResyncAuto)))
	}
	if t := p.ResyncThreshold; math.IsNaN(t) || t > 1 || t > 0 && t < MinResyncThreshold {
		return fmt.Sprintf("resynchronization threshold %v is outside %v..1 (0 = the default of %v, negative = off)", t, MinResyncThreshold, DefaultResyncThreshold)
	}
	return ""
}

// PendingLimit returns the share of a VM's total disk size whose pending change
// asks for a resynchronization; false if the rule is off.
func (p Policy) PendingLimit() (float64, bool) {
	switch {
	case p.ResyncThreshold < 0:
		return 0, false
	case p.ResyncThreshold == 0:
		return DefaultResyncThreshold, true
	}
	return p.ResyncThreshold, true
}

func (p Policy) checkInitial() string {
	switch p.InitialMode {
	case "", InitialParallel, InitialSerial:
	default:
		return fmt.Sprintf("initial replication mode %q is neither parallel nor serial", excerpt(string(p.InitialMode)))
	}
	if p.InitialPriority < -MaxInitialPriority || p.InitialPriority > MaxInitialPriority {
		return fmt.Sprintf("initial replication priority %d is outside %d..%d", p.InitialPriority, -MaxInitialPriority, MaxInitialPriority)
	}
	return ""
}

func (p Policy) checkTransfer() string {
	switch p.Compression {
	case "", CompressionZstd, CompressionFast, CompressionNone:
	default:
		return fmt.Sprintf("compression %q is none of zstd, fast, none", excerpt(string(p.Compression)))
	}
	if len(p.Bandwidth) > MaxBandwidthRules {
		return fmt.Sprintf("%d bandwidth rules are more than %d", len(p.Bandwidth), MaxBandwidthRules)
	}
	for i, r := range p.Bandwidth {
		switch {
		case r.BytesPerSecond != 0 && r.BytesPerSecond < MinBandwidth:
			return fmt.Sprintf("bandwidth rule %d: %d bytes a second is less than %d (0 = unlimited)", i+1, r.BytesPerSecond, MinBandwidth)
		case r.Window.IsZero() && i < len(p.Bandwidth)-1:
			return fmt.Sprintf("bandwidth rule %d applies always, so the rules after it never would", i+1)
		}
	}
	return ""
}

// BandwidthAt returns the limit that holds at t (0 = unlimited) and until when
// it surely does; the zero Time is for ever.
func (p Policy) BandwidthAt(t time.Time) (bytesPerSecond int64, until time.Time) {
	sooner := func(at time.Time) {
		if at.After(t) && (until.IsZero() || at.Before(until)) {
			until = at
		}
	}
	for _, r := range p.Bandwidth {
		if r.Window.Contains(t) {
			sooner(r.Window.Closes(t))
			return r.BytesPerSecond, until
		}
		sooner(r.Window.Next(t))
	}
	return 0, until
}

// Equal reports whether two policies are the same in every field.
func (p Policy) Equal(o Policy) bool {
	a, b := p, o
	a.ResyncWindow, a.InitialWindow, a.Bandwidth, a.Created = Window{}, Window{}, nil, time.Time{}
	b.ResyncWindow, b.InitialWindow, b.Bandwidth, b.Created = Window{}, Window{}, nil, time.Time{}
	return reflect.DeepEqual(a, b) && p.Created.Equal(o.Created) && p.ResyncWindow.Equal(o.ResyncWindow) && p.InitialWindow.Equal(o.InitialWindow) &&
		slices.EqualFunc(p.Bandwidth, o.Bandwidth, func(x, y BandwidthRule) bool {
			return x.BytesPerSecond == y.BytesPerSecond && x.Window.Equal(y.Window)
		})
}
