package account

import (
	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
)

// listSeeds are the replicas in the store that protection can begin with.
func listSeeds(c *route.Call) (route.Reply, error) {
	seeds, err := c.Svc().Seeds(c.Ctx())
	if err != nil {
		return route.Reply{}, err
	}
	out := armwire.List[armwire.Seed]{Value: make([]armwire.Seed, 0, len(seeds))}
	for _, s := range seeds {
		w := armwire.Seed{Machine: string(s.Machine), VMName: s.VMName, Bytes: s.Bytes, Disks: make([]armwire.Disk, 0, len(s.Disks))}
		for _, d := range s.Disks {
			w.Disks = append(w.Disks, armwire.Disk{ID: d.ID, Bytes: d.Size, Boot: d.Boot, Replicated: true})
		}
		out.Value = append(out.Value, w)
	}
	return route.OK(out)
}
