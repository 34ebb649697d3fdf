package armclient

import (
	"context"
	"net/http"
	"net/url"

	"holdfast/internal/armwire"
)

// Size is a size of VM that a recovery site's cloud offers.
type Size = armwire.Resource[armwire.ComputeSize]

// Sizes lists the sizes that the recovery VM of an item can have, and those that it can't with the reason.
func (i ItemsClient) Sizes(ctx context.Context, item string) ([]Size, error) {
	return All[armwire.ComputeSize](ctx, i.c, item+"/targetComputeSizes")
}

// Update changes settings of an item; what is nil stays as it is.
func (i ItemsClient) Update(ctx context.Context, item string, in armwire.UpdateInput, d armwire.UpdateDetails) (*Operation, error) {
	d.InstanceType = armwire.HyperVReplicaAzure
	in.ProviderSpecificDetails = armwire.NewVariant(d)
	return i.c.Change(ctx, http.MethodPatch, item, armwire.Input[armwire.UpdateInput]{Properties: in})
}

// GuestCheck looks into the guest of a recovery point, "" = the latest, for a target, "" = the recovery site's kind.
func (i ItemsClient) GuestCheck(ctx context.Context, item, point, target string) (armwire.GuestCheck, error) {
	var out armwire.GuestCheck
	return out, i.c.Get(ctx, item+"/holdfast/guestCheck?recoveryPoint="+url.QueryEscape(point)+"&target="+url.QueryEscape(target), &out)
}
