package armclient

import (
	"context"
	"net/http"

	"holdfast/internal/armwire"
)

// Shorthands for the resources.
type (
	Network        = armwire.Resource[armwire.Network]
	NetworkMapping = armwire.Resource[armwire.NetworkMapping]
)

// Networks lists the networks of a site, of all sites for "".
func (c *Client) Networks(ctx context.Context, fabric string) ([]Network, error) {
	if fabric == "" {
		return All[armwire.Network](ctx, c, c.ID("replicationNetworks"))
	}
	return All[armwire.Network](ctx, c, c.ID("replicationFabrics", fabric, "replicationNetworks"))
}

// NetworkMappings lists the network mappings of all sites.
func (c *Client) NetworkMappings(ctx context.Context) ([]NetworkMapping, error) {
	return All[armwire.NetworkMapping](ctx, c, c.ID("replicationNetworkMappings"))
}

// CreateNetworkMapping maps a network, given by its id, to another one, given by its id.
func (c *Client) CreateNetworkMapping(ctx context.Context, network, name, target string) (*Operation, error) {
	in := armwire.NetworkMappingInput{RecoveryNetworkID: target}
	return c.Change(ctx, http.MethodPut, network+"/replicationNetworkMappings/"+segment(name), armwire.Input[armwire.NetworkMappingInput]{Properties: in})
}

// RemoveNetworkMapping removes a mapping by its id.
func (c *Client) RemoveNetworkMapping(ctx context.Context, id string) (*Operation, error) {
	return c.Change(ctx, http.MethodDelete, id, nil)
}
