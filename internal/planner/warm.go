package planner

import "time"

// WarmRates are what a cloud charges, in any currency: they change, so they are input.
type WarmRates struct {
	PageGiBMonth float64 // a GiB written in page blobs, with snapshots, a month
	Write10K     float64 // 10,000 writes of page blobs
	Read10K      float64 // 10,000 reads of the store's blobs
}

// WarmEstimate is what a warm replica costs and saves.
type WarmEstimate struct {
	Bytes        int64         // kept in page blobs: what the disks hold, and what the kept points differ by
	WritesPerDay float64       // requests
	Month        float64       // in the currency of the rates
	Cold         time.Duration // that copying the disks takes at a failover without it, at the rate of one page blob
	DiskBytes    int64
	ChangePerDay int64
	CyclesPerDay float64
}

const (
	// WarmPoints is how many points of an item stay ready, as snapshots.
	WarmPoints = 4
	// BlobRate is what a standard page blob takes, bytes a second (Azure's scalability targets).
	BlobRate = 60 << 20
	// writeSize is how much one request writes where changes are small and scattered, as with databases.
	writeSize = 64 << 10
)

// WarmCost estimates from the sizes of the disks (largest decides the cold failover, disks are
// copied at the same time), what they hold, what changes in a day, and the cycle.
func WarmCost(disks []int64, allocated, changePerDay int64, cycle time.Duration, r WarmRates) WarmEstimate {
	e := WarmEstimate{ChangePerDay: changePerDay}
	var largest int64
	for _, d := range disks {
		e.DiskBytes += d
		largest = max(largest, d)
	}
	if allocated <= 0 || allocated > e.DiskBytes {
		allocated = e.DiskBytes
	}
	if e.DiskBytes > 0 {
		e.Cold = time.Duration(float64(largest) * float64(allocated) / float64(e.DiskBytes) / BlobRate * float64(time.Second))
	}
	if cycle > 0 {
		e.CyclesPerDay = float64(24*time.Hour) / float64(cycle)
	}
	// Beside the data each cycle writes metadata of every disk and makes a snapshot.
	e.WritesPerDay = float64(changePerDay)/writeSize + e.CyclesPerDay*float64(2*len(disks))
	e.Bytes = allocated
	if e.CyclesPerDay > 0 {
		e.Bytes += int64(float64(changePerDay) / e.CyclesPerDay * WarmPoints)
	}
	e.Month = float64(e.Bytes)/(1<<30)*r.PageGiBMonth + e.WritesPerDay*30/1e4*r.Write10K
	return e
}
