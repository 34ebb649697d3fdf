package sim

import (
	"context"

	"holdfast/internal/nbd"
)

// dialNBD connects to an export of a unix socket.
func dialNBD(ctx context.Context, socket, export string) (Remote, error) {
	c, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: socket, Export: export})
	if err != nil {
		return nil, err
	}
	return c, nil
}
