package dr_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

func policy() dr.Policy {
	return dr.Policy{Name: "gold", CopyFrequency: 5 * time.Minute, Retention: 2 * time.Hour}
}

func TestPolicyValidate(t *testing.T) {
	t.Parallel()
	const hour, day = time.Hour, 24 * time.Hour
	for name, c := range map[string]struct {
		change func(*dr.Policy)
		want   string // part of the message; empty = valid
	}{
		"as before":               {func(*dr.Policy) {}, ""},
		"no name":                 {func(p *dr.Policy) { p.Name = "" }, "no name"},
		"copy frequency":          {func(p *dr.Policy) { p.CopyFrequency = 4 * time.Second }, "copy frequency 4s"},
		"copy frequency, long":    {func(p *dr.Policy) { p.CopyFrequency = 25 * hour }, "copy frequency"},
		"retention":               {func(p *dr.Policy) { p.Retention = -1 }, "retention"},
		"retention, long":         {func(p *dr.Policy) { p.Retention = 367 * day }, "retention"},
		"application":             {func(p *dr.Policy) { p.AppFrequency = -1 }, "application-consistent"},
		"start":                   {func(p *dr.Policy) { p.StartTime = "2026-11-22T22:00:00+01:00" }, ""},
		"start, in words":         {func(p *dr.Policy) { p.StartTime = "22:00" }, `start time "22:00"`},
		"start, no zone":          {func(p *dr.Policy) { p.StartTime = "2026-11-22T22:00:00" }, "start time"},
		"tiers":                   {func(p *dr.Policy) { p.RetainHourly, p.RetainDaily = day, 30*day }, ""},
		"daily only":              {func(p *dr.Policy) { p.RetainDaily = 30 * day }, ""},
		"tiers over latest only":  {func(p *dr.Policy) { p.Retention, p.RetainHourly = 0, day }, ""},
		"hourly within fine":      {func(p *dr.Policy) { p.RetainHourly = 2 * hour }, "hourly retention 2h0m0s is not longer than retention 2h0m0s"},
		"daily within hourly":     {func(p *dr.Policy) { p.RetainHourly, p.RetainDaily = day, day }, "daily retention 24h0m0s is not longer than hourly retention"},
		"daily within fine":       {func(p *dr.Policy) { p.RetainDaily = hour }, "daily retention 1h0m0s is not longer than retention"},
		"hourly, negative":        {func(p *dr.Policy) { p.RetainHourly = -1 }, "hourly retention"},
		"daily, for ever":         {func(p *dr.Policy) { p.RetainDaily = 11 * 366 * day }, "daily retention"},
		"resync by hand":          {func(p *dr.Policy) { p.ResyncAuto = dr.ResyncManual }, ""},
		"resync mode":             {func(p *dr.Policy) { p.ResyncAuto = "never" }, `resynchronization mode "never"`},
		"threshold off":           {func(p *dr.Policy) { p.ResyncThreshold = -1 }, ""},
		"threshold, least":        {func(p *dr.Policy) { p.ResyncThreshold = 0.05 }, ""},
		"threshold, most":         {func(p *dr.Policy) { p.ResyncThreshold = 1 }, ""},
		"threshold, low":          {func(p *dr.Policy) { p.ResyncThreshold = 0.049 }, "threshold"},
		"threshold, in per cent":  {func(p *dr.Policy) { p.ResyncThreshold = 50 }, "threshold"},
		"threshold, not a number": {func(p *dr.Policy) { p.ResyncThreshold = math.NaN() }, "threshold"},
		"serial":                  {func(p *dr.Policy) { p.InitialMode, p.InitialPriority = dr.InitialSerial, -10 }, ""},
		"initial mode":            {func(p *dr.Policy) { p.InitialMode = "both" }, "initial replication mode"},
		"priority":                {func(p *dr.Policy) { p.InitialPriority = 11 }, "priority 11"},
		"priority, low":           {func(p *dr.Policy) { p.InitialPriority = -11 }, "priority -11"},
		"compression":             {func(p *dr.Policy) { p.Compression = "zip" }, `compression "zip"`},
		"no compression":          {func(p *dr.Policy) { p.Compression = dr.CompressionNone }, ""},
		"bandwidth": {func(p *dr.Policy) {
			p.Bandwidth = []dr.BandwidthRule{{Window: window(t, "Mon-Fri 08:00-18:00"), BytesPerSecond: 1 << 20}, {BytesPerSecond: 10 << 20}}
		}, ""},
		"bandwidth, tiny":     {func(p *dr.Policy) { p.Bandwidth = []dr.BandwidthRule{{BytesPerSecond: 100}} }, "bandwidth rule 1: 100"},
		"bandwidth, negative": {func(p *dr.Policy) { p.Bandwidth = []dr.BandwidthRule{{BytesPerSecond: -1}} }, "bandwidth rule 1"},
		"bandwidth, hidden": {func(p *dr.Policy) {
			p.Bandwidth = []dr.BandwidthRule{{BytesPerSecond: 1 << 20}, {Window: window(t, "08:00-18:00"), BytesPerSecond: 1 << 20}}
		}, "bandwidth rule 1 applies always"},
		"bandwidth, many": {func(p *dr.Policy) { p.Bandwidth = make([]dr.BandwidthRule, 17) }, "17 bandwidth rules"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := policy()
			c.change(&p)
			err := p.Validate()
			switch {
			case c.want == "":
				if err != nil {
					t.Error(err)
				}
			case dr.CodeOf(err) != dr.CodePolicyInvalid || dr.KindOf(err) != dr.KindInvalid:
				t.Errorf("%v, want an invalid policy", err)
			case !strings.Contains(err.Error(), c.want) || p.Name != "" && !strings.Contains(err.Error(), `"gold"`):
				t.Errorf("%q does not name the policy and %q", err, c.want)
			}
		})
	}
}

func TestPolicyDefaults(t *testing.T) {
	t.Parallel()
	var p dr.Policy
	if share, on := p.PendingLimit(); !on || share != 0.5 {
		t.Errorf("threshold %v %v", share, on)
	}
	p.ResyncThreshold = -1
	if _, on := p.PendingLimit(); on {
		t.Error("a negative threshold is not off")
	}
	p.ResyncThreshold = 0.25
	if share, on := p.PendingLimit(); !on || share != 0.25 {
		t.Errorf("threshold %v %v", share, on)
	}
	if at, err := p.Start(); err != nil || !at.IsZero() {
		t.Errorf("start %v %v", at, err)
	}
	p.StartTime = "2026-11-22T22:00:00+01:00"
	if at, err := p.Start(); err != nil || !at.Equal(time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC)) {
		t.Errorf("start %v %v", at, err)
	}
	if w := window(t, dr.DefaultResyncWindow); w.String() != dr.DefaultResyncWindow {
		t.Errorf("the default window is %q", w)
	}
}

func TestBandwidthAt(t *testing.T) {
	t.Parallel()
	at := func(text string) time.Time {
		v, err := time.Parse("2006-01-02 15:04", "2026-11-"+text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	p := policy()
	if n, until := p.BandwidthAt(at("23 12:00")); n != 0 || !until.IsZero() {
		t.Errorf("without rules: %d until %s", n, until)
	}
	p.Bandwidth = []dr.BandwidthRule{
		{Window: window(t, "12:00-13:00 UTC")}, // lunch: unlimited
		{Window: window(t, "Mon-Fri 08:00-18:00 UTC"), BytesPerSecond: 1 << 20},
		{Window: window(t, "22:00-23:00 UTC"), BytesPerSecond: 5 << 20},
	}
	for _, c := range []struct {
		at    string
		limit int64
		until string
	}{
		{"23 07:00", 0, "23 08:00"},
		{"23 08:00", 1 << 20, "23 12:00"}, // the rule before it takes over
		{"23 12:30", 0, "23 13:00"},
		{"23 13:00", 1 << 20, "23 18:00"},
		{"23 18:00", 0, "23 22:00"},
		{"23 22:30", 5 << 20, "23 23:00"},
	} {
		if n, until := p.BandwidthAt(at(c.at)); n != c.limit || !until.Equal(at(c.until)) {
			t.Errorf("at %s: %d until %s, want %d until %s", c.at, n, until, c.limit, c.until)
		}
	}
	p.Bandwidth = []dr.BandwidthRule{{BytesPerSecond: 1 << 20}}
	if n, until := p.BandwidthAt(at("23 12:00")); n != 1<<20 || !until.IsZero() {
		t.Errorf("always: %d until %s", n, until)
	}
}

func TestPolicyEqual(t *testing.T) {
	t.Parallel()
	full := func() dr.Policy {
		p := policy()
		p.ResyncWindow = window(t, "18:30-06:00 Europe/Berlin")
		p.Bandwidth = []dr.BandwidthRule{{Window: window(t, "08:00-18:00"), BytesPerSecond: 1 << 20}}
		p.Created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		return p
	}
	a, b := full(), full()
	b.Created = b.Created.In(time.FixedZone("x", 3600))
	if !a.Equal(b) {
		t.Error("the same policy is different")
	}
	for name, change := range map[string]func(*dr.Policy){
		"name": func(p *dr.Policy) { p.Name = "x" }, "tier": func(p *dr.Policy) { p.RetainDaily = 1 }, "window": func(p *dr.Policy) { p.ResyncWindow = dr.Window{} },
		"initial window": func(p *dr.Policy) { p.InitialWindow = window(t, "1:00-2:00") }, "rate": func(p *dr.Policy) { p.Bandwidth[0].BytesPerSecond++ },
		"rules": func(p *dr.Policy) { p.Bandwidth = nil }, "created": func(p *dr.Policy) { p.Created = time.Time{} },
	} {
		c := full()
		change(&c)
		if a.Equal(c) || c.Equal(a) {
			t.Errorf("%s: a changed policy is equal", name)
		}
	}
}
