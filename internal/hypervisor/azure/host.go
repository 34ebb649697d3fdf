package azure

import (
	"context"
	"net/http"
	"slices"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/hypervisor/azure/internal/booting"
	"holdfast/internal/hypervisor/azure/internal/site"
	"holdfast/internal/hypervisor/azure/internal/source"
)

// Host is a resource group of Azure as a host of recovery VMs. VMs that Boot was
// told to make in other groups (hypervisor.CloudTarget.ResourceGroup) belong to it too.
type Host struct {
	cfg  Config
	s    *arm.Session
	site arm.Config
	http *http.Client // for addresses that Azure signs
	own  *http.Transport

	az     *site.Site
	booter *booting.Booter
	cutter *source.Source
}

var (
	_ hypervisor.Host      = (*Host)(nil)
	_ hypervisor.Pulse     = (*Host)(nil)
	_ hypervisor.Sizer     = (*Host)(nil)
	_ hypervisor.Estimator = (*Host)(nil)
)

// Open returns the host behind a session that is open. It asks Azure nothing.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	const op = "azure.Open"
	if err := cfg.Validate(); err != nil {
		return nil, dr.Errorf(dr.KindInvalid, op, "configuration: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, dr.Errorf(dr.KindCanceled, op, "open the Azure site: %w", err)
	}
	h := &Host{cfg: cfg.withDefaults(), s: cfg.Session, site: cfg.Session.Config()}
	if h.cfg.Transport == nil {
		h.cfg.Transport = cfg.Session.HTTP().Transport
	}
	if h.cfg.Transport == nil {
		h.own = http.DefaultTransport.(*http.Transport).Clone()
		h.cfg.Transport = h.own
	}
	h.http = &http.Client{Transport: h.cfg.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c := h.cfg
	h.az = site.New(site.Config{Session: c.Session, CallTimeout: c.CallTimeout, OperationTimeout: c.OperationTimeout, Poll: c.Poll})
	h.booter = booting.New(booting.Config{Session: c.Session, Site: h.az, Log: c.Log, Transport: c.Transport, CallTimeout: c.CallTimeout, OperationTimeout: c.OperationTimeout,
		UndoTimeout: c.UndoTimeout, RetryDelay: c.RetryDelay, Parallel: c.Parallel, Workers: c.Workers, Requests: c.Requests, Rate: c.Rate, Progress: c.Progress, Start: h.start,
		Demolish: func(ctx context.Context, owner, vm string, at site.Place) error {
			return h.demolish(ctx, owner, belongsTo(vm), []site.Place{at})
		}})
	h.cutter = source.New(h.sourceConfig())
	return h, nil
}

// Close gives up idle connections of the Host's own. What Azure was asked for goes
// on; calls that are under way end with their contexts. Idempotent.
func (h *Host) Close() error {
	if h.own != nil {
		h.own.CloseIdleConnections()
	}
	return nil
}

// Boot makes and starts a recovery VM. It takes as long as its disks take to be
// copied: give it a context accordingly. See the package's comment, and
// hypervisor.Machines for the contract; a name that is somebody else's is dr.CodeAzureNameTaken.
func (h *Host) Boot(ctx context.Context, spec hypervisor.BootSpec) (dr.VMID, error) {
	return h.booter.Boot(ctx, spec)
}

// Networks lists the virtual networks of the region that the identity may see, the
// site's default first. Those that were made for isolated recovery VMs are left out.
func (h *Host) Networks(ctx context.Context) ([]hypervisor.Network, error) {
	return h.booter.Networks(ctx)
}

// Sizes lists the VM sizes of the region; those that can't be used say why.
func (h *Host) Sizes(ctx context.Context) ([]dr.ComputeSize, error) {
	sizes, err := h.az.Sizes(ctx)
	if err != nil {
		return nil, h.az.Say("Sizes", "list the VM sizes of "+h.s.Location(), err)
	}
	out := make([]dr.ComputeSize, 0, len(sizes))
	for _, z := range sizes {
		out = append(out, dr.ComputeSize{Name: z.Name, CPUs: z.VCPUs, MemoryMB: int(z.MemoryMB), DataDisks: z.MaxDisks, NICs: z.MaxNICs,
			Generations: slices.Clone(z.Generation), Premium: z.Premium, Problem: z.Unfit(arm.Need{Zone: h.site.Zone})})
	}
	return out, nil
}
