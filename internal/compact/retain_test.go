package compact

import (
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/internal/dr"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func every(step time.Duration, n int) []dr.RecoveryPoint {
	var ps []dr.RecoveryPoint
	for i := range n {
		ps = append(ps, dr.RecoveryPoint{Gen: 1, N: uint64(i + 1), Time: noon.Add(-step * time.Duration(n-1-i)), Consistency: dr.CrashConsistent})
	}
	return ps
}

func kept(ps []dr.RecoveryPoint, why []string) []dr.RecoveryPoint {
	var out []dr.RecoveryPoint
	for i, w := range why {
		if w != "" {
			out = append(out, ps[i])
		}
	}
	return out
}

func count(why []string) map[string]int {
	m := map[string]int{}
	for _, w := range why {
		m[w]++
	}
	return m
}

func TestTiers(t *testing.T) {
	t.Parallel()
	ps := every(5*time.Minute, 12*24*40)
	got := count(Rules{Fine: 24 * time.Hour, Hourly: 72 * time.Hour, Daily: 30 * 24 * time.Hour}.Keep(ps, noon))
	// Newest + 24 h of 5 minutes; 48 h of hours plus those of the day that is not wholly beyond 72 h; days until 30.
	if got["newest"] != 1 || got["fine"] != 288 || got["hourly"] != 48+12 || got["daily"] != 27 {
		t.Errorf("kept %v", got)
	}
	if got := count(Rules{Fine: 2 * time.Hour}.Keep(ps, noon)); got["fine"] != 24 || got["newest"] != 1 || len(got) != 3 {
		t.Errorf("without tiers: kept %v", got)
	}
	if got := count(Rules{}.Keep(ps, noon)); got["newest"] != 1 || got[""] != len(ps)-1 {
		t.Errorf("retention 0: kept %v", got)
	}
}

func TestNothingExpiresWhileReplicationStandsStill(t *testing.T) {
	t.Parallel()
	ps := every(5*time.Minute, 100)
	r := Rules{Fine: 4 * time.Hour}
	at := kept(ps, r.Keep(ps, noon))
	later := kept(ps, r.Keep(ps, noon.Add(1000*time.Hour)))
	if len(at) != len(later) || len(at) != 49 {
		t.Errorf("kept %d, a thousand hours without a new point later %d", len(at), len(later))
	}
}

// One clock that jumps must not expire history.
func TestOneLyingClock(t *testing.T) {
	t.Parallel()
	r := Rules{Fine: 4 * time.Hour}
	ps := every(5*time.Minute, 100)
	ps[99].Time = noon.AddDate(1, 0, 0) // the agent's clock
	if got := len(kept(ps, r.Keep(ps, noon))); got < 48 {
		t.Errorf("an agent's clock in the future expired points: %d are left", got)
	}
	ps = every(5*time.Minute, 100)
	if got := len(kept(ps, r.Keep(ps, noon.AddDate(1, 0, 0)))); got != 49 {
		t.Errorf("a vault's clock in the future expired points: %d are left", got)
	}
}

func TestBestConsistencyOfAnHour(t *testing.T) {
	t.Parallel()
	ps := every(5*time.Minute, 12*10)
	ps[30].Consistency = dr.AppConsistent
	ps[32].Consistency = dr.FileSystemConsistent
	hour := ps[30].Time.Truncate(time.Hour)
	got := 0
	for _, p := range kept(ps, Rules{Fine: time.Hour, Hourly: 9 * time.Hour}.Keep(ps, noon)) {
		if p.Time.Truncate(time.Hour).Equal(hour) {
			got++
			if p.Consistency != dr.AppConsistent {
				t.Errorf("of the hour a %s-consistent point is kept", p.Consistency)
			}
		}
	}
	if got != 1 {
		t.Errorf("%d points of the hour are kept", got)
	}
}

func TestHeldPointsStay(t *testing.T) {
	t.Parallel()
	ps := every(time.Hour, 100)
	r := Rules{Fine: time.Hour, Held: map[string]string{ps[3].Name(): "before the migration"}}
	if why := r.Keep(ps, noon); why[3] != "before the migration" || why[4] != "" {
		t.Errorf("held: %q, neighbour: %q", why[3], why[4])
	}
}

// A choice once made stays: applying the rules while time passes never wants a
// point back, and applying them twice changes nothing.
func TestKeepIsStable(t *testing.T) {
	t.Parallel()
	seeds := uint64(20)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := Rules{Fine: time.Duration(1+rng.IntN(30)) * time.Hour}
		if rng.IntN(2) == 0 {
			r.Hourly = r.Fine + time.Duration(rng.IntN(60))*time.Hour
		}
		if rng.IntN(2) == 0 {
			r.Daily = max(r.Fine, r.Hourly) + time.Duration(rng.IntN(400))*time.Hour
		}
		var live []dr.RecoveryPoint
		now := noon
		hours := map[time.Time]bool{} // that ever had a point
		for n := range 1500 {
			now = now.Add(time.Duration(1+rng.IntN(60)) * time.Minute)
			c := []dr.Consistency{dr.CrashConsistent, dr.CrashConsistent, dr.FileSystemConsistent, dr.AppConsistent}[rng.IntN(4)]
			live = append(live, dr.RecoveryPoint{Gen: 1, N: uint64(n + 1), Time: now, Consistency: c})
			hours[now.Truncate(time.Hour)] = true
			live = kept(live, r.Keep(live, now))
			if again := kept(live, r.Keep(live, now)); len(again) != len(live) {
				t.Fatalf("seed %d: applied twice, %d points became %d", seed, len(live), len(again))
			}
			have := map[time.Time]bool{}
			for _, p := range live {
				have[p.Time.Truncate(time.Hour)] = true
			}
			for h := range hours {
				if age := now.Sub(h); age < max(r.Fine, r.Hourly)-time.Hour && !have[h] {
					t.Fatalf("seed %d: hour %s, %v old, has lost its points", seed, h, age)
				}
			}
		}
	}
}
