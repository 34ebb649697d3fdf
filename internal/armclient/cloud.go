package armclient

import (
	"context"
	"net/http"

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
