package planner

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
)

// Options of a plan. Zero values are the defaults named.
type Options struct {
	RPO       time.Duration // 15 min
	Growth    float64       // 0.3 = 30 % more churn than measured; negative = none
	Ratio     float64       // bytes shipped per byte changed, 0.5: what compression leaves
	Bandwidth int64         // bytes a second that there are; 0 = what the plan recommends
	Batch     time.Duration // longest initial replication of a batch, 12 h
	Retention time.Duration // how long points are kept, 24 h
	// Prices in the currency of your choice; 0 = no cost is computed.
	PerGiBMonth float64 // stored
	Per10kPuts  float64
}

// Limits of the options.
const (
	minRPO   = 30 * time.Second
	maxRatio = 2
)

func (o *Options) defaults() error {
	o.RPO = cmp.Or(o.RPO, 15*time.Minute)
	o.Growth = cmp.Or(o.Growth, 0.3)
	o.Ratio = cmp.Or(o.Ratio, 0.5)
	o.Batch = cmp.Or(o.Batch, 12*time.Hour)
	o.Retention = cmp.Or(o.Retention, 24*time.Hour)
	o.Growth = max(o.Growth, 0)
	switch {
	case o.RPO < minRPO:
		return dr.Errorf(dr.KindInvalid, "planner", "a recovery point objective of %s is not possible: %s at least", o.RPO, minRPO)
	case o.Ratio <= 0 || o.Ratio > maxRatio:
		return dr.Errorf(dr.KindInvalid, "planner", "%v bytes shipped per byte changed is not between 0 and %d", o.Ratio, maxRatio)
	case o.Bandwidth < 0 || o.Batch < 0 || o.Retention < 0 || o.PerGiBMonth < 0 || o.Per10kPuts < 0:
		return dr.Errorf(dr.KindInvalid, "planner", "bandwidth, batch length, retention and prices can't be negative")
	}
	return nil
}

// Plan is the report. Bytes are bytes, rates bytes a second.
type Plan struct {
	Version   int           `json:"version"` // 1
	Hosts     []string      `json:"hosts"`
	From      time.Time     `json:"from"`
	To        time.Time     `json:"to"`
	Intervals int           `json:"intervals"`
	Interval  time.Duration `json:"intervalNanoseconds"`
	RPO       time.Duration `json:"rpoNanoseconds"`
	Growth    float64       `json:"growth"`
	Ratio     float64       `json:"ratio"`

	Reachable  bool          `json:"rpoReachable"`  // the measured copy frequency allows the objective at all
	Bandwidth  int64         `json:"bandwidth100"`  // holds the objective in every interval
	Bandwidth9 int64         `json:"bandwidth90"`   // in 90 % of them
	Mean       int64         `json:"bandwidthMean"` // less never catches up
	WhatIf     []WhatIf      `json:"whatIf"`
	Frequency  time.Duration `json:"copyFrequencyNanoseconds"` // recommended: half the objective at most

	VMs     []VMPlan     `json:"vms"`
	Batches []Batch      `json:"batches"`
	Rate    int64        `json:"initialBandwidth"` // that the batches are computed with
	Volumes []VolumePlan `json:"volumes"`
	Stored  int64        `json:"storedBytes"`
	Puts    int64        `json:"putsPerMonth"`
	Cost    float64      `json:"costPerMonth,omitempty"`
	Notes   []string     `json:"notes,omitempty"`
}

// WhatIf is what a bandwidth would do to the recovery point objective.
type WhatIf struct {
	Bandwidth  int64         `json:"bandwidth"`
	Violated   float64       `json:"violated"` // share of the intervals
	Worst      time.Duration `json:"worstNanoseconds"`
	Percentile time.Duration `json:"p90Nanoseconds"`
}

// VMPlan is the figures of a VM.
type VMPlan struct {
	ID      dr.VMID `json:"id"`
	Name    string  `json:"name"`
	Host    string  `json:"host"`
	Size    int64   `json:"sizeBytes"`
	Used    int64   `json:"usedBytes"` // allocated where known
	Changed int64   `json:"changedPerDay"`
	Peak    int64   `json:"peakPerInterval"`
	P95     int64   `json:"p95PerInterval"`
	Samples int     `json:"samples"`
	Errors  int     `json:"errors"`
	Error   string  `json:"lastError,omitempty"`
}

// Batch is VMs whose initial replication runs together.
type Batch struct {
	VMs   []string      `json:"vms"`
	Bytes int64         `json:"shippedBytes"`
	Rate  int64         `json:"bandwidth"` // left over by the deltas of earlier batches
	Takes time.Duration `json:"takesNanoseconds"`
	Over  bool          `json:"overTime,omitempty"` // one VM that takes longer than a batch may
}

// VolumePlan is the space that replication needs on a host's volume.
type VolumePlan struct {
	Host   string `json:"host"`
	Path   string `json:"path"`
	Free   int64  `json:"freeBytes"`
	Needed int64  `json:"neededBytes"`
	Enough bool   `json:"enough"`
}

// cutAt is what became due at one instant.
type cutAt struct {
	at     time.Time
	length time.Duration
	bytes  float64
}

// Make computes a plan from one profile per host.
func Make(profiles []Profile, o Options) (Plan, error) {
	if err := o.defaults(); err != nil {
		return Plan{}, err
	}
	p := Plan{Version: 1, RPO: o.RPO, Growth: o.Growth, Ratio: o.Ratio, VMs: []VMPlan{}, Batches: []Batch{}, Volumes: []VolumePlan{}}
	for _, x := range profiles {
		p.Hosts = append(p.Hosts, x.Host)
		p.Interval = max(p.Interval, x.Interval)
		if x.Torn {
			p.Notes = append(p.Notes, "The profile of "+x.Host+" ends in the middle of a line: the profiler was killed. What is before counts.")
		}
		for _, vm := range x.VMs {
			p.VMs = append(p.VMs, planVM(vm, x.Host))
		}
	}
	cuts := timeline(profiles, p.Interval, o)
	if len(cuts) == 0 {
		return p, dr.Errorf(dr.KindPrecondition, "planner", "the profiles hold no measured interval; profile for at least two intervals")
	}
	p.Intervals, p.From, p.To = len(cuts), cuts[0].at.Add(-cuts[0].length), cuts[len(cuts)-1].at
	if span := p.To.Sub(p.From); span < 7*24*time.Hour {
		p.Notes = append(p.Notes, "Measured for "+span.Round(time.Minute).String()+" only; a week shows the peaks of month ends and backups better, 31 days best.")
	}
	p.bandwidth(cuts, o)
	slices.SortStableFunc(p.VMs, func(a, b VMPlan) int { return cmp.Compare(b.Changed, a.Changed) })
	p.Rate = cmp.Or(o.Bandwidth, p.initialRate(o))
	p.batches(o)
	p.volumes(profiles, o)
	p.storage(o)
	return p, nil
}

func planVM(vm VM, host string) VMPlan {
	v := VMPlan{ID: vm.ID, Name: vm.Name, Host: host, Samples: len(vm.Samples), Errors: vm.Errors, Error: vm.Last}
	for _, d := range vm.Disks {
		v.Size += d.Size
		if d.Allocated > 0 {
			v.Used += min(d.Allocated, d.Size)
		} else {
			v.Used += d.Size
		}
	}
	var sizes []int64
	var total int64
	var length time.Duration
	for _, s := range vm.Samples {
		sizes = append(sizes, s.Changed)
		total += s.Changed
		length += s.Length
	}
	if len(sizes) > 0 {
		slices.Sort(sizes)
		v.Peak = sizes[len(sizes)-1]
		v.P95 = sizes[int(math.Ceil(float64(len(sizes))*0.95))-1]
		v.Changed = int64(float64(total) / length.Hours() * 24)
	}
	return v
}

// timeline adds up what all VMs have to ship in each interval.
func timeline(profiles []Profile, interval time.Duration, o Options) []cutAt {
	sum := map[int64]*cutAt{}
	for _, p := range profiles {
		for _, vm := range p.VMs {
			for _, s := range vm.Samples {
				slot := s.At.UnixNano() / int64(interval)
				c := sum[slot]
				if c == nil {
					c = &cutAt{at: time.Unix(0, (slot+1)*int64(interval)).UTC(), length: interval}
					sum[slot] = c
				}
				c.bytes += float64(s.Changed) * (1 + o.Growth) * o.Ratio
			}
		}
	}
	out := make([]cutAt, 0, len(sum))
	for _, c := range sum {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b cutAt) int { return a.at.Compare(b.at) })
	return out
}

// lags returns, per cut, how old the newest shipped cut is at the worst moment:
// just before this one has been shipped, at a bandwidth, first in first out.
func lags(cuts []cutAt, bandwidth float64) []time.Duration {
	out := make([]time.Duration, len(cuts))
	var done time.Duration // since the first cut, when the one before was shipped
	for k, c := range cuts {
		due := c.at.Sub(cuts[0].at)
		done = max(done, due) + time.Duration(c.bytes/bandwidth*float64(time.Second))
		out[k] = done - due + c.length
	}
	return out
}

// over returns the share of lags above the limit.
func over(list []time.Duration, limit time.Duration) float64 {
	n := 0
	for _, l := range list {
		if l > limit {
			n++
		}
	}
	return float64(n) / float64(len(list))
}

// needed finds the least bandwidth at which at most a share of the cuts misses the objective.
func needed(cuts []cutAt, rpo time.Duration, share float64) int64 {
	slack := rpo - cuts[0].length
	low, high := 0.0, 1.0
	for _, c := range cuts {
		high = max(high, c.bytes/slack.Seconds()) // ships each before the next one's objective
	}
	for over(lags(cuts, high), rpo) > share {
		high *= 2
	}
	for high-low > max(1, high/1e4) {
		if mid := (low + high) / 2; over(lags(cuts, mid), rpo) <= share {
			high = mid
		} else {
			low = mid
		}
	}
	return int64(math.Ceil(high))
}

func (p *Plan) bandwidth(cuts []cutAt, o Options) {
	var total float64
	for _, c := range cuts {
		total += c.bytes
	}
	p.Mean = int64(math.Ceil(total / (float64(len(cuts)) * p.Interval.Seconds())))
	p.Frequency = min(p.Interval, o.RPO/2)
	p.Reachable = o.RPO > p.Interval
	if p.Reachable {
		// A profile shorter than the objective could be shipped after its end: less than the mean never catches up.
		p.Bandwidth, p.Bandwidth9 = max(needed(cuts, o.RPO, 0), p.Mean), max(needed(cuts, o.RPO, 0.1), p.Mean)
	} else {
		p.Notes = append(p.Notes, "Cuts every "+p.Interval.String()+" can't meet an objective of "+o.RPO.String()+": replicate, and profile, at half the objective at most.")
		p.Bandwidth = p.Mean
	}
	rates := []int64{p.Bandwidth, p.Bandwidth9, p.Bandwidth / 2, p.Mean, o.Bandwidth}
	slices.Sort(rates)
	for _, b := range slices.Backward(slices.Compact(rates)) {
		if b <= 0 {
			continue
		}
		l := lags(cuts, float64(b))
		slices.Sort(l)
		p.WhatIf = append(p.WhatIf, WhatIf{Bandwidth: b, Violated: over(l, o.RPO), Worst: l[len(l)-1], Percentile: l[int(math.Ceil(float64(len(l))*0.9))-1]})
	}
}

// initialTime is how long all initial replications together may take where no bandwidth is given.
const initialTime = 7 * 24 * time.Hour

// initialRate is what replication needs anyway, or what brings all VMs over in a week.
func (p *Plan) initialRate(o Options) int64 {
	var total float64
	for _, vm := range p.VMs {
		total += float64(vm.Used) * o.Ratio
	}
	return max(p.Bandwidth, int64(math.Ceil(total/initialTime.Seconds())))
}

// batches packs the smallest VMs first: the most VMs are protected the soonest.
func (p *Plan) batches(o Options) {
	order := slices.Clone(p.VMs)
	slices.SortStableFunc(order, func(a, b VMPlan) int { return cmp.Compare(a.Used, b.Used) })
	var busy float64 // bytes a second that the deltas of earlier batches take
	var b Batch
	var deltas float64
	rate := func() float64 { return max(float64(p.Rate)-busy, float64(p.Rate)/10, 1) }
	flush := func() {
		if len(b.VMs) == 0 {
			return
		}
		b.Rate = int64(rate())
		b.Takes = time.Duration(float64(b.Bytes) / rate() * float64(time.Second))
		b.Over = b.Takes > o.Batch
		p.Batches = append(p.Batches, b)
		busy += deltas
		b, deltas = Batch{}, 0
	}
	for _, vm := range order {
		bytes := int64(float64(vm.Used) * o.Ratio)
		if float64(b.Bytes+bytes)/rate() > o.Batch.Seconds() {
			flush()
		}
		b.VMs, b.Bytes = append(b.VMs, vm.Name), b.Bytes+bytes
		deltas += float64(vm.Changed) / 86400 * (1 + o.Growth) * o.Ratio
	}
	flush()
}

// volumes adds what a cut holds back while it is open and is merged after it,
// and what gathers while the initial replication of its batch runs.
func (p *Plan) volumes(profiles []Profile, o Options) {
	takes := map[string]time.Duration{}
	for _, b := range p.Batches {
		for _, n := range b.VMs {
			takes[n] = b.Takes
		}
	}
	for _, x := range profiles {
		var list []VolumePlan
		for _, v := range x.Volumes {
			list = append(list, VolumePlan{Host: x.Host, Path: v.Path, Free: v.Free})
		}
		for _, vm := range x.VMs {
			var length time.Duration
			for _, s := range vm.Samples {
				length += s.Length
			}
			for _, d := range vm.Disks {
				i := volumeOf(list, d.Path)
				if i < 0 || length <= 0 {
					continue
				}
				during := int64(float64(d.Total) / length.Seconds() * takes[vm.Name].Seconds() * (1 + o.Growth))
				list[i].Needed += max(2*int64(float64(d.Peak)*(1+o.Growth)), min(during, d.Size))
			}
		}
		for i := range list {
			list[i].Enough = list[i].Free >= list[i].Needed
		}
		p.Volumes = append(p.Volumes, list...)
	}
}

// volumeOf finds the volume with the longest path that a disk's path begins with.
func volumeOf(list []VolumePlan, path string) int {
	best := -1
	for i, v := range list {
		if strings.HasPrefix(strings.ToLower(path), strings.ToLower(v.Path)) && (best < 0 || len(v.Path) > len(list[best].Path)) {
			best = i
		}
	}
	return best
}

func (p *Plan) storage(o Options) {
	const month = 30 * 24 * time.Hour
	for _, vm := range p.VMs {
		p.Stored += int64(float64(vm.Used)*o.Ratio + float64(vm.Changed)*(1+o.Growth)*o.Ratio*o.Retention.Hours()/24)
		p.Puts += int64(month / p.Frequency)
	}
	p.Cost = float64(p.Stored)/(1<<30)*o.PerGiBMonth + float64(p.Puts)/10000*o.Per10kPuts
}
