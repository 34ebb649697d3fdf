// Package booting makes recovery VMs in Azure: it plans them by reading only, checks names,
// sizes and quotas, and then makes network, disks and VM. The comment of package azure says how.
//
// What it makes carries the owner's tags; it changes nothing else. A Boot that failed
// has what it made demolished.
package booting

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/site"
)

// Config of a Booter. See azure.Config for what has the same name.
type Config struct {
	Session   *arm.Session
	Site      *site.Site
	Log       *slog.Logger
	Transport http.RoundTripper // for disks

	CallTimeout, OperationTimeout, UndoTimeout, RetryDelay time.Duration

	Parallel, Workers, Requests int
	Rate                        int64
	Progress                    func(name string, done, total int64) // may be nil

	// Start starts a VM unless it runs.
	Start func(ctx context.Context, op string, m site.Machine) error
	// Demolish deletes what was made for one VM of an owner.
	Demolish func(ctx context.Context, owner, vm string, at site.Place) error
}

// Booter makes recovery VMs. It is safe for concurrent use.
type Booter struct {
	cfg  Config
	s    *arm.Session
	site arm.Config
	az   *site.Site
}

// New makes a Booter; it asks nobody.
func New(cfg Config) *Booter {
	return &Booter{cfg: cfg, s: cfg.Session, site: cfg.Session.Config(), az: cfg.Site}
}
