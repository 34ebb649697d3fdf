package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// Form is a policy as people enter it.
type Form struct {
	Name                      string
	Copy, Retention, AppEvery string // seconds, hours, hours

	More                      bool   // the fields below are in the form
	Hourly, Daily             string // days; 0 = no such tier
	ResyncMode, ResyncWindow  string
	Threshold                 string // percent; 0 = off
	Start                     string // RFC 3339
	InitialMode, InitialOpens string
	Priority                  string
	Compression               string
	Open                      bool   // show all of it at once
	Bandwidth                 string // a rule a line: "Mon-Fri 08:00-18:00 = 5M"
}

// Default is what a new policy is proposed to be.
func Default() Form {
	f := Shown(dr.Policy{CopyFrequency: 5 * time.Minute, Retention: 24 * time.Hour, AppFrequency: time.Hour})
	f.Name, f.ResyncWindow = "5-minutes-24-hours", dr.DefaultResyncWindow
	return f
}

// Shown shows a policy.
func Shown(p dr.Policy) Form {
	number := func(d, unit time.Duration) string {
		return strconv.FormatFloat(float64(d)/float64(unit), 'f', -1, 64)
	}
	or := func(s, fallback string) string {
		if s == "" {
			return fallback
		}
		return s
	}
	f := Form{Name: p.Name, Copy: number(p.CopyFrequency, time.Second), Retention: number(p.Retention, time.Hour), AppEvery: number(p.AppFrequency, time.Hour),
		More: true, Hourly: number(p.RetainHourly, 24*time.Hour), Daily: number(p.RetainDaily, 24*time.Hour),
		ResyncMode: or(string(p.ResyncAuto), string(dr.ResyncInWindow)), ResyncWindow: p.ResyncWindow.String(), Threshold: "0", Start: p.StartTime,
		InitialMode: or(string(p.InitialMode), string(dr.InitialParallel)), InitialOpens: p.InitialWindow.String(), Priority: strconv.Itoa(p.InitialPriority),
		Compression: or(string(p.Compression), string(dr.CompressionZstd))}
	if t, on := p.PendingLimit(); on {
		f.Threshold = strconv.FormatFloat(math.Round(t*1000)/10, 'f', -1, 64)
	}
	for _, r := range p.Bandwidth {
		f.Bandwidth += or(r.Window.String(), "always") + " = " + rateText(r.BytesPerSecond) + "\n"
	}
	return f
}

// FormOf reads what was entered.
func FormOf(form func(string) string) Form {
	get := func(name string) string { return strings.TrimSpace(form(name)) }
	return Form{get("policyName"), get("copy"), get("retention"), get("app"), get("more") != "", get("hourly"), get("daily"), get("resyncMode"), get("resyncWindow"), get("threshold"),
		get("start"), get("initialMode"), get("initialWindow"), get("priority"), get("compression"), false, strings.ReplaceAll(get("bandwidth"), "\r", "")}
}

// wrong says what is not right about a field.
func wrong(format string, a ...any) error {
	return dr.New(dr.KindInvalid, dr.CodePolicyInvalid, "portal.policy", format, a...)
}

// Policy changes p to what was entered; what the form does not show stays.
func (f Form) Policy(p dr.Policy) (dr.Policy, error) {
	p.Name = f.Name
	type period struct {
		text, what string
		unit       time.Duration
		to         *time.Duration
	}
	periods := []period{
		{f.Copy, "copy frequency (seconds)", time.Second, &p.CopyFrequency},
		{f.Retention, "retention (hours)", time.Hour, &p.Retention},
		{f.AppEvery, "application-consistent frequency (hours)", time.Hour, &p.AppFrequency},
	}
	if f.More {
		periods = append(periods, period{f.Hourly, "age of hourly points (days)", 24 * time.Hour, &p.RetainHourly}, period{f.Daily, "age of daily points (days)", 24 * time.Hour, &p.RetainDaily})
	}
	for _, x := range periods {
		n, err := strconv.ParseFloat(x.text, 64)
		switch {
		case x.unit == time.Second && strings.Trim(x.text, "0123456789") != "":
			return p, wrong("the %s %q is not a whole number", x.what, x.text)
		case err != nil || strings.Trim(x.text, "0123456789.") != "" || n > 1e6:
			return p, wrong("the %s %q is not a number", x.what, x.text)
		}
		*x.to = time.Duration(n * float64(x.unit)).Round(time.Second)
	}
	if f.More {
		if err := f.more(&p); err != nil {
			return p, err
		}
	}
	return p, p.Validate()
}

// more changes what this vault's policies have beyond the public ones.
func (f Form) more(p *dr.Policy) (err error) {
	for _, w := range []struct {
		name, text string
		to         *dr.Window
	}{{"window of resynchronizations", f.ResyncWindow, &p.ResyncWindow}, {"window of initial replications", f.InitialOpens, &p.InitialWindow}} {
		if *w.to, err = dr.ParseWindow(w.text); err != nil {
			return dr.New(dr.KindInvalid, dr.CodeWindowInvalid, "portal.policy", "the %s: %w", w.name, err)
		}
	}
	p.ResyncAuto, p.InitialMode, p.Compression, p.StartTime = dr.ResyncMode(f.ResyncMode), dr.InitialMode(f.InitialMode), dr.Compression(f.Compression), f.Start
	if p.InitialPriority, err = strconv.Atoi(f.Priority); err != nil {
		return wrong("the priority %q is not a whole number", f.Priority)
	}
	share, err := strconv.ParseFloat(f.Threshold, 64)
	switch {
	case err != nil || math.IsNaN(share) || share < 0:
		return wrong("the threshold %q is not a percentage", f.Threshold)
	case share == 0:
		p.ResyncThreshold = -1
	default:
		p.ResyncThreshold = share / 100
	}
	p.Bandwidth = nil
	for line := range strings.Lines(f.Bandwidth) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		r, err := ruleOf(line)
		if err != nil {
			return err
		}
		p.Bandwidth = append(p.Bandwidth, r)
	}
	return nil
}

// ruleOf reads "WINDOW = RATE": a window or "always", and bytes a second with K, M or G, or "unlimited".
func ruleOf(line string) (r dr.BandwidthRule, err error) {
	window, rate, ok := strings.Cut(strings.TrimSpace(line), "=")
	window, rate = strings.TrimSpace(window), strings.TrimSpace(rate)
	if !ok {
		return r, wrong("the bandwidth rule %q is not of the form: Mon-Fri 08:00-18:00 = 5M", line)
	}
	if !strings.EqualFold(window, "always") {
		if r.Window, err = dr.ParseWindow(window); err != nil {
			return r, dr.New(dr.KindInvalid, dr.CodeWindowInvalid, "portal.policy", "the bandwidth rule %q: %w", strings.TrimSpace(line), err)
		}
	}
	if strings.EqualFold(rate, "unlimited") {
		return r, nil
	}
	number := strings.TrimRight(rate, "KkMmGg")
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	unit := map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[strings.ToUpper(rate[len(number):])]
	if err != nil || !(n > 0 && n*unit < 1<<50) || unit == 0 {
		return r, wrong("the rate %q is not a number of bytes a second with K, M or G, nor \"unlimited\"", rate)
	}
	r.BytesPerSecond = int64(n * unit)
	return r, nil
}

// rateText is the inverse of ruleOf's rates.
func rateText(n int64) string {
	switch {
	case n == 0:
		return "unlimited"
	case n%(1<<30) == 0:
		return fmt.Sprintf("%dG", n>>30)
	case n%(1<<20) == 0:
		return fmt.Sprintf("%dM", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%dK", n>>10)
	}
	return strconv.FormatInt(n, 10)
}
