package arm

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm/refusal"
)

// Options are what the program, not the operator, decides about a session. The
// zero value is good for production.
type Options struct {
	Log  *slog.Logger // nil = none
	HTTP *http.Client // nil = one made by the configuration; decides on proxies and TLS

	CallTimeout      time.Duration // of one attempt of one request; 0 = 60 s
	OperationTimeout time.Duration // of one operation of Azure, with all its waiting; 0 = 30 min
	PollEvery        time.Duration // first wait between looks at an operation, growing to ten times that; 0 = 1 s
	Retries          int           // further attempts of a request that was throttled or lost; 0 = 6, negative = none
	RetryDelay       time.Duration // before the second attempt, where Azure names no time; 0 = 1 s
	MaxRetryDelay    time.Duration // the longest wait that Azure may ask for before the call fails; 0 = 2 min

	Now func() time.Time // nil = time.Now
}

func (o Options) filled() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&o.CallTimeout, time.Minute)
	set(&o.OperationTimeout, 30*time.Minute)
	set(&o.PollEvery, time.Second)
	set(&o.RetryDelay, time.Second)
	set(&o.MaxRetryDelay, 2*time.Minute)
	if o.Retries == 0 {
		o.Retries = 6
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Session is a signed-in way to one resource group. Its methods and clients may be
// used by many goroutines. Calls of the typed clients return the SDK's errors,
// which Classify translates; Wait does it by itself.
type Session struct {
	cfg      Config
	opts     Options
	location string
	cred     azcore.TokenCredential
	pipe     runtime.Pipeline
	endpoint string
	idle     func()
	closing  sync.Once

	Disks             *armcompute.DisksClient
	Snapshots         *armcompute.SnapshotsClient
	VMs               *armcompute.VirtualMachinesClient
	RestoreCollection *armcompute.RestorePointCollectionsClient
	RestorePoints     *armcompute.RestorePointsClient
	DiskRestorePoints *armcompute.DiskRestorePointClient
	SKUs              *armcompute.ResourceSKUsClient
	Usages            *armcompute.UsageClient
	AvailabilitySets  *armcompute.AvailabilitySetsClient
}

// moduleName is what Azure sees in User-Agent.
const (
	moduleName    = "holdfast"
	moduleVersion = "v1.0.0"
)

// New makes a session without asking anybody; Open also signs in. Files of secrets
// are read.
func New(c Config, o Options) (*Session, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Session{cfg: c, opts: o.filled(), location: c.Location, endpoint: c.Endpoints().ResourceManager, idle: func() {}}
	if s.opts.HTTP == nil {
		h, err := c.client()
		if err != nil {
			return nil, err
		}
		s.opts.HTTP, s.idle = h, h.CloseIdleConnections
	}
	var err error
	if s.cred, err = c.credential(s.ClientOptions()); err != nil {
		return nil, err
	}
	ao := &azarm.ClientOptions{ClientOptions: s.ClientOptions(), DisableRPRegistration: true}
	bad := func(err error) error { return configError("azure.Open", "the session can't be made: %w", err) }
	client, err := azarm.NewClient(moduleName, moduleVersion, s.cred, ao)
	if err != nil {
		return nil, bad(err)
	}
	s.pipe = client.Pipeline()
	f, err := armcompute.NewClientFactory(c.Subscription, s.cred, ao)
	if err != nil {
		return nil, bad(err)
	}
	s.Disks, s.Snapshots, s.VMs, s.AvailabilitySets = f.NewDisksClient(), f.NewSnapshotsClient(), f.NewVirtualMachinesClient(), f.NewAvailabilitySetsClient()
	s.RestoreCollection, s.RestorePoints, s.DiskRestorePoints = f.NewRestorePointCollectionsClient(), f.NewRestorePointsClient(), f.NewDiskRestorePointClient()
	s.SKUs, s.Usages = f.NewResourceSKUsClient(), f.NewUsageClient()
	return s, nil
}

// ClientOptions are those of every client of the session, and for further ones (of
// the data plane, for example): transport, retries, one log line for a call that
// has to wait, and a deadline of each attempt.
func (s *Session) ClientOptions() azcore.ClientOptions {
	o := azcore.ClientOptions{Cloud: s.cfg.cloud(), Transport: s.opts.HTTP}
	o.Retry = policy.RetryOptions{MaxRetries: int32(s.opts.Retries), TryTimeout: s.opts.CallTimeout, RetryDelay: s.opts.RetryDelay, MaxRetryDelay: s.opts.MaxRetryDelay} //nolint:gosec // a small number
	o.Telemetry.ApplicationID = moduleName
	o.PerCallPolicies = []policy.Policy{onePerCall{}}
	o.PerRetryPolicies = []policy.Policy{&waits{log: s.opts.Log}}
	return o
}

// Open signs in once and reads the resource group, from which the location comes
// where the configuration has none. Errors are those of Classify.
func Open(ctx context.Context, c Config, o Options) (*Session, error) {
	s, err := New(c, o)
	if err != nil {
		return nil, err
	}
	if err := s.SignIn(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	if _, err := s.Group(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// SignIn asks for a token for Resource Manager.
func (s *Session) SignIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.opts.CallTimeout)
	defer cancel()
	_, err := s.cred.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{s.cfg.Endpoints().Audience + "/.default"}})
	return Classify("azure.SignIn", s.Who(), err)
}

// Who names the identity in messages.
func (s *Session) Who() string {
	k := s.cfg.Credential
	text := "the identity (credential " + CredentialDefault + ")"
	if k.Kind != "" {
		text = "the identity (credential " + k.Kind + ")"
	}
	if k.ClientID != "" {
		text += " " + k.ClientID
	}
	if s.cfg.Tenant != "" {
		text += " of tenant " + s.cfg.Tenant
	}
	return text
}

// Group is what is read of the resource group.
type Group struct {
	ID       string            `json:"id"`
	Location string            `json:"location"`
	Tags     map[string]string `json:"tags"`
}

// GroupID is the id of the site's resource group.
func (s *Session) GroupID() string {
	return "/subscriptions/" + s.cfg.Subscription + "/resourceGroups/" + s.cfg.ResourceGroup
}

// Group reads the resource group, and takes the session's location from it if the
// configuration has none: Open calls it; after New it comes before all that needs a
// location, and before the session is shared.
func (s *Session) Group(ctx context.Context) (g Group, err error) {
	if err := s.Resource(ctx, s.GroupID(), ResourcesAPI, &g); err != nil {
		return g, err
	}
	if g.Location == "" {
		return g, dr.New(dr.KindUnavailable, dr.CodeAzureOperation, "azure.Open", "Azure's answer about the resource group %s names no location", s.cfg.ResourceGroup)
	}
	if s.location == "" {
		s.location = g.Location
	}
	return g, nil
}

// Close gives up idle connections of the session's own HTTP client.
func (s *Session) Close() error {
	s.closing.Do(s.idle)
	return nil
}

// Config is what the session was opened with.
func (s *Session) Config() Config { return s.cfg }

// Location is the region that everything is made in.
func (s *Session) Location() string { return s.location }

// Credential is for the data plane, with Endpoints.StorageAudience.
func (s *Session) Credential() azcore.TokenCredential { return s.cred }

// HTTP is the client that all requests go through.
func (s *Session) HTTP() *http.Client { return s.opts.HTTP }

// callKey finds what is kept about one call in its context.
type callKey struct{}

type callState struct{ told sync.Once }

// onePerCall marks the attempts of one call as such.
type onePerCall struct{}

func (onePerCall) Do(req *policy.Request) (*http.Response, error) {
	return req.Clone(context.WithValue(req.Raw().Context(), callKey{}, new(callState))).Next()
}

// waits tells once per call that Azure asked to wait, or that an attempt was lost.
// Queries are never logged: they may hold signatures.
type waits struct{ log *slog.Logger }

func (w *waits) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	state, _ := req.Raw().Context().Value(callKey{}).(*callState)
	if state == nil {
		return resp, err
	}
	u := req.Raw().URL
	switch {
	case err != nil && req.Raw().Context().Err() == nil:
		state.told.Do(func() {
			w.log.Warn("request to Azure got no answer", "method", req.Raw().Method, "host", u.Host, "path", u.Path, "error", refusal.Scrub(refusal.NetWords(err)))
		})
	case err == nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable):
		state.told.Do(func() {
			w.log.Warn("Azure asks to wait", "method", req.Raw().Method, "host", u.Host, "path", u.Path, "status", resp.StatusCode, "retryAfter", resp.Header.Get("Retry-After"))
		})
	}
	return resp, err
}
