package planner

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

const minute = time.Minute

// profileOf makes a profile of one VM with these changed MiB per interval of five minutes.
func profileOf(mib ...int64) Profile {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	vm := VM{ID: "v", Name: "vm", Disks: []Disk{{ID: "a", Path: `D:\vm\a.vhdx`, Size: 100 << 30, Allocated: 40 << 30}}}
	for k, n := range mib {
		vm.Samples = append(vm.Samples, Sample{At: start.Add(time.Duration(k+1) * 5 * minute), Length: 5 * minute, Changed: n << 20})
		vm.Disks[0].Peak = max(vm.Disks[0].Peak, n<<20)
		vm.Disks[0].Total += n << 20
	}
	return Profile{Host: "h", Interval: 5 * minute, Started: start, VMs: []VM{vm}, Volumes: []Volume{{Path: `C:\`, Free: 1 << 40}, {Path: `D:\`, Free: 1 << 30}}}
}

var plainOptions = Options{Growth: -1, Ratio: 1, RPO: 15 * minute, Bandwidth: 0}

// TestBandwidthByHand: 600 MiB in one interval of five minutes has ten minutes
// until the point before it is fifteen minutes old: 1 MiB/s.
func TestBandwidthByHand(t *testing.T) {
	t.Parallel()
	changes := make([]int64, 20)
	changes[7] = 600
	p, err := Make([]Profile{profileOf(changes...)}, plainOptions)
	if err != nil {
		t.Fatal(err)
	}
	if d := p.Bandwidth - 1<<20; d < 0 || d > 1<<10 {
		t.Errorf("%d bytes a second for every interval, want 1 MiB", p.Bandwidth)
	}
	// Two of twenty may miss it: this one and the next, so that the third is shipped after twenty minutes.
	if d := p.Bandwidth9 - 1<<19; d < 0 || d > 1<<10 {
		t.Errorf("%d bytes a second for 90 %%", p.Bandwidth9)
	}
	if p.Mean != 600<<20/6000+1 && p.Mean != 600<<20/6000 {
		t.Errorf("mean %d", p.Mean)
	}
	if !p.Reachable || p.Intervals != 20 || p.Frequency != 5*minute || len(p.WhatIf) < 3 || p.WhatIf[0].Violated != 0 || p.WhatIf[0].Worst > 15*minute {
		t.Errorf("%+v", p)
	}
	half := p.WhatIf[slices.IndexFunc(p.WhatIf, func(w WhatIf) bool { return w.Bandwidth == p.Bandwidth/2 })]
	if half.Worst < 24*minute || half.Worst > 26*minute || half.Violated == 0 {
		t.Errorf("with half of it: %+v", half)
	}
}

// TestBandwidthHolds: what is recommended holds, and a little less does not.
func TestBandwidthHolds(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		changes := make([]int64, 5+rng.IntN(200))
		for k := range changes {
			changes[k] = rng.Int64N(1 + int64(rng.IntN(2000)))
		}
		changes[rng.IntN(len(changes))] += 100
		o := plainOptions
		if err := o.defaults(); err != nil {
			t.Fatal(err)
		}
		cuts := timeline([]Profile{profileOf(changes...)}, 5*minute, o)
		for _, share := range []float64{0, 0.1} {
			b := needed(cuts, o.RPO, share)
			if got := over(lags(cuts, float64(b)), o.RPO); got > share {
				t.Fatalf("%d bytes a second miss %v", b, got)
			}
			if got := over(lags(cuts, float64(b)*0.99), o.RPO); got <= share && b > 1000 {
				t.Fatalf("less than %d bytes a second would do", b)
			}
		}
	}
}

func TestPlanParts(t *testing.T) {
	t.Parallel()
	a := profileOf(10, 20, 30, 1000)
	b := profileOf(1, 1, 1, 1)
	b.Host, b.VMs[0].Name, b.VMs[0].ID, b.VMs[0].Disks[0].Allocated, b.Torn = "h2", "small", "w", 1<<30, true
	o := plainOptions
	o.Bandwidth, o.Batch, o.PerGiBMonth, o.Per10kPuts = 10<<20, 30*minute, 0.02, 0.05
	p, err := Make([]Profile{a, b}, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Batches) != 2 || p.Batches[0].VMs[0] != "small" || p.Batches[0].Over || !p.Batches[1].Over || p.Batches[1].Rate >= p.Batches[0].Rate {
		t.Errorf("batches %+v", p.Batches)
	}
	if len(p.Volumes) != 4 || p.Volumes[0].Needed != 0 || p.Volumes[1].Needed < 2*1000<<20 || p.Volumes[1].Enough || !p.Volumes[3].Enough {
		t.Errorf("volumes %+v", p.Volumes)
	}
	if p.Stored < 41<<30 || p.Puts != 2*8640 || p.Cost < 0.8 || len(p.Notes) < 2 || p.VMs[0].Name != "vm" || p.VMs[0].Peak != 1000<<20 || p.VMs[0].P95 != 1000<<20 {
		t.Errorf("%+v", p)
	}
	var j, c, h, x bytes.Buffer
	if err := errors.Join(p.WriteJSON(&j), p.WriteCSV(&c), p.WriteHTML(&h), p.WriteText(&x)); err != nil {
		t.Fatal(err)
	}
	var back Plan
	if err := json.Unmarshal(j.Bytes(), &back); err != nil || back.Version != 1 || back.Bandwidth != p.Bandwidth {
		t.Errorf("%v %+v", err, back)
	}
	if rows, err := csv.NewReader(&c).ReadAll(); err != nil || len(rows) != 3 {
		t.Errorf("%v %v", err, rows)
	}
	for _, line := range strings.Split(x.String(), "\n") {
		if len([]rune(line)) > 80 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{"rpo": {RPO: time.Second}, "ratio": {Ratio: 3}, "bandwidth": {Bandwidth: -1}} {
		if _, err := Make([]Profile{profileOf(1)}, o); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Make([]Profile{profileOf()}, Options{}); dr.KindOf(err) != dr.KindPrecondition {
		t.Error(err)
	}
	p, err := Make([]Profile{profileOf(1, 2)}, Options{RPO: 5 * minute})
	if err != nil || p.Reachable || len(p.Notes) < 2 || p.Frequency != 150*time.Second {
		t.Errorf("%v %+v", err, p)
	}
	for name, text := range map[string]string{
		"empty": "", "no header": `{"kind":"vm","vm":{"id":"x"}}`, "version": `{"kind":"header","header":{"version":2,"intervalSeconds":5}}`,
		"unknown VM": `{"kind":"header","header":{"version":1,"intervalSeconds":5}}` + "\n" + `{"kind":"sample","sample":{"vm":"x"}}`,
		"torn":       `{"kind":"header","header":{"version":1,"intervalSeconds":5}}` + "\n{\"ki\n" + `{"kind":"other"}`,
		"interval":   `{"kind":"header","header":{"version":1}}`,
	} {
		if _, err := Read(strings.NewReader(text)); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	p2, err := Read(strings.NewReader(`{"kind":"header","header":{"version":1,"intervalSeconds":5}}` + "\n{\"ki"))
	if err != nil || !p2.Torn {
		t.Errorf("%v %+v", err, p2)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"kind":"header","header":{"version":1,"intervalSeconds":5}}` + "\n" + `{"kind":"vm","vm":{"id":"x","disks":[{"id":"a","size":5}]}}` + "\n" +
		`{"kind":"sample","sample":{"vm":"x","at":"2026-11-22T10:00:00Z","seconds":5,"changed":{"a":7}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Read(bytes.NewReader(b))
		if err == nil {
			_, _ = Make([]Profile{p}, Options{})
		}
	})
}
