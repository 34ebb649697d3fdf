package compact

import (
	"slices"
	"time"

	"holdfast/internal/dr"
)

// Rules say which recovery points are kept and when rewriting pays.
type Rules struct {
	Fine   time.Duration // every point younger than this is kept
	Hourly time.Duration // beyond Fine, one point of each hour (UTC) until this age; 0 = no such tier
	Daily  time.Duration // beyond that, one point of each day (UTC) until this age; 0 = no such tier
	// Held points are kept whatever their age: named by people, in use by a
	// failover, under legal hold. The value says why.
	Held map[string]string // dr.PointName → reason
	// MinLive is the share of an object's data that has to be in effect for the
	// object to be kept as it is when its cut expires; below, what is in effect is
	// rewritten (default 0.6).
	MinLive float64
	// Fold is the share of a tile that expired changes have to cover for a new
	// tile image to be written (default 0.5).
	Fold float64
}

// RulesOf are the rules that a policy asks for.
func RulesOf(p dr.Policy) Rules {
	return Rules{Fine: p.Retention, Hourly: p.RetainHourly, Daily: p.RetainDaily}
}

func (r Rules) withDefaults() Rules {
	if r.MinLive <= 0 {
		r.MinLive = 0.6
	}
	if r.Fold <= 0 {
		r.Fold = 0.5
	}
	return r
}

// Keep says for each point (oldest first) whether it is retained, and why.
// An empty reason means that it has expired.
//
// Ages are counted from the newest point, or from now if that is earlier: when
// replication stands still nothing expires, and one lying clock, the agent's or
// the vault's, can't expire anything early. Hours and days that are not wholly
// beyond the tier before them still belong to it. Of an hour or a day the best
// consistency is kept and of those the newest, so that a choice once made stays.
// The newest point is always kept.
func (r Rules) Keep(points []dr.RecoveryPoint, now time.Time) []string {
	why := make([]string, len(points))
	if len(points) == 0 {
		return why
	}
	last := len(points) - 1
	if t := points[last].Time; t.Before(now) {
		now = t
	}
	hourlyFrom, dailyFrom := now.Add(-r.Fine), now.Add(-max(r.Fine, r.Hourly))
	end := now.Add(-max(r.Fine, r.Hourly, r.Daily))
	hours, days := map[time.Time][]int{}, map[time.Time][]int{}
	for i, p := range points {
		hour, day := p.Time.UTC().Truncate(time.Hour), p.Time.UTC().Truncate(24*time.Hour)
		switch {
		case i == last:
			why[i] = "newest"
		case r.Held[p.Name()] != "":
			why[i] = r.Held[p.Name()]
		}
		switch {
		case r.Daily > max(r.Fine, r.Hourly) && !day.Add(24*time.Hour).After(dailyFrom):
			if !p.Time.Before(end) {
				days[day] = append(days[day], i)
			}
		case r.Hourly > r.Fine && !hour.Add(time.Hour).After(hourlyFrom):
			// An hour of a day that only partly lies beyond the hourly tier stays
			// hourly if there is a daily tier to hand it to.
			if !p.Time.Before(dailyFrom) || r.Daily > r.Hourly {
				hours[hour] = append(hours[hour], i)
			}
		case !p.Time.Before(hourlyFrom):
			why[i] = orReason(why[i], "fine")
		case r.Hourly > r.Fine || r.Daily > r.Fine:
			why[i] = orReason(why[i], "fine") // its hour or day is not wholly beyond the fine tier
		}
	}
	pick(points, hours, why, "hourly")
	pick(points, days, why, "daily")
	return why
}

func orReason(have, otherwise string) string {
	if have != "" {
		return have
	}
	return otherwise
}

func pick(points []dr.RecoveryPoint, buckets map[time.Time][]int, why []string, tier string) {
	for _, members := range buckets {
		best := slices.MaxFunc(members, func(a, b int) int {
			if d := rank(points[a].Consistency) - rank(points[b].Consistency); d != 0 {
				return d
			}
			return a - b
		})
		why[best] = orReason(why[best], tier)
	}
}

func rank(c dr.Consistency) int {
	switch c {
	case dr.AppConsistent:
		return 2
	case dr.FileSystemConsistent:
		return 1
	}
	return 0
}
