package arm

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"holdfast/internal/dr"
)

// Usage is one quota of the region and how much of it is used.
type Usage struct {
	Name  string `json:"name"`  // cores, standardDSv5Family, virtualMachines, NetworkInterfaces …
	Label string `json:"label"` // for people
	Used  int64  `json:"used"`
	Limit int64  `json:"limit"` // negative = none
}

// Free is what is left, never negative.
func (u Usage) Free() int64 {
	if u.Limit < 0 {
		return 1 << 40
	}
	return max(u.Limit-u.Used, 0)
}

// Quotas lists the quotas of compute and network in the session's location.
func (s *Session) Quotas(ctx context.Context) ([]Usage, error) {
	const op = "azure.Quotas"
	var out []Usage
	pager := s.Usages.NewListPager(s.location, nil)
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, Classify(op, "the quotas of compute in "+s.location, err)
		}
		for _, u := range page.Value {
			if u != nil && u.Name != nil {
				out = append(out, Usage{deref(u.Name.Value), deref(u.Name.LocalizedValue), int64(deref(u.CurrentValue)), deref(u.Limit)})
			}
		}
	}
	path := "/subscriptions/" + s.cfg.Subscription + "/providers/Microsoft.Network/locations/" + s.location + "/usages"
	err := s.List(ctx, path, NetworkAPI, func(raw json.RawMessage) error {
		var u struct {
			Name struct {
				Value string `json:"value"`
				Label string `json:"localizedValue"`
			} `json:"name"`
			Used  int64 `json:"currentValue"`
			Limit int64 `json:"limit"`
		}
		if err := json.Unmarshal(raw, &u); err != nil {
			return dr.New(dr.KindUnavailable, dr.CodeAzureOperation, op, "the quotas of the network in %s are not understood: %w", s.location, err)
		}
		out = append(out, Usage{u.Name.Value, u.Name.Label, u.Used, u.Limit})
		return nil
	})
	return out, err
}

// Room says which quota does not suffice for one more VM of a size with so many
// network adapters; nil if all do. Quotas that are not listed are not checked:
// Azure has the last word.
func Room(quotas []Usage, z Size, nics int) error {
	for _, n := range []struct {
		name string
		need int64
	}{{"cores", int64(z.Cores)}, {z.Family, int64(z.Cores)}, {"virtualMachines", 1}, {"NetworkInterfaces", int64(nics)}} {
		i := slices.IndexFunc(quotas, func(u Usage) bool { return n.name != "" && strings.EqualFold(u.Name, n.name) })
		if i >= 0 && quotas[i].Free() < n.need {
			return dr.New(dr.KindExhausted, dr.CodeAzureQuota, "azure.Room", "the quota %s has %d of %d left, and a VM of size %s needs %d",
				quotas[i].Name, quotas[i].Free(), quotas[i].Limit, z.Name, n.need)
		}
	}
	return nil
}
