package meter_test

import (
	"fmt"
	"time"

	"holdfast/internal/objstore/azure/meter"
)

// What the requests of one VM cost in a day, by the length of its cycle. The
// prices are made up (November 2026); a cut has one part on average, and folding
// writes 40 objects a day.
func ExamplePlan() {
	prices := meter.Prices{Writes: 0.05, Lists: 0.05, Reads: 0.004, Others: 0.004}
	for _, interval := range []time.Duration{30 * time.Second, 5 * time.Minute, 15 * time.Minute} {
		day := meter.Plan(meter.Load{Interval: interval, Parts: 1, Folded: 40, Lists: 24, Deleted: 200})
		fmt.Printf("%v: %d PUTs, %.4f a day\n", interval, day.Writes, meter.Cost(day, prices).Total())
	}
	// Output:
	// 30s: 5800 PUTs, 0.0337 a day
	// 5m0s: 616 PUTs, 0.0037 a day
	// 15m0s: 232 PUTs, 0.0014 a day
}
