// Package doctor is the step-by-step check behind 'holdfast azure doctor': whether a
// recovery site in Azure can work, from its configuration to one tiny round trip
// each with a blob and a managed disk. It also finds and removes what doctors and
// tests have left.
//
// Promises: a step that fails stops only what depends on it; nothing is left
// behind, also after an interruption; with ReadOnly nothing is made at all; every
// failure names a remedy; nothing secret gets into a finding.
package doctor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/google/uuid"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
)

// Finding is the result of one step of the doctor.
type Finding struct {
	Check  string  `json:"check"`
	Status string  `json:"status"` // one of the statuses
	Detail string  `json:"detail"`
	Remedy string  `json:"remedy,omitempty"`
	Code   dr.Code `json:"code,omitempty"` // of the catalogue, where an error has one
}

// The statuses of a Finding.
const (
	StatusOK      = "ok"
	StatusWarning = "warning"
	StatusFailed  = "failed"
	StatusSkipped = "skipped"
)

// The steps of the doctor, in their order.
const (
	CheckConfiguration = "configuration"
	CheckReach         = "reach"
	CheckClock         = "clock"
	CheckSignIn        = "sign-in"
	CheckSubscription  = "subscription"
	CheckProviders     = "providers"
	CheckGroup         = "resource group"
	CheckPermissions   = "permissions"
	CheckLocks         = "locks"
	CheckNetwork       = "network"
	CheckSizes         = "sizes"
	CheckQuota         = "quota"
	CheckLeftovers     = "leftovers"
	CheckStorage       = "storage"
	CheckDisk          = "managed disk"
	CheckCleanUp       = "clean-up"
)

// Options are what the doctor may do.
type Options struct {
	arm.Options
	ReadOnly bool // make nothing: leave out the round trips with a blob and a disk, and removing what earlier runs left
}

const (
	doctorLife  = 30 * time.Minute // after that what a doctor made is litter
	doctorClean = 5 * time.Minute  // for cleaning up, also after an interruption
	warnSkew    = time.Minute
)

// Run checks step by step whether the site can work: configuration, network,
// clock, sign-in, rights, room, and one tiny round trip each with a blob and a
// managed disk. A step that fails stops only what depends on it. It leaves nothing
// behind, also if ctx ends under way; what a killed doctor left, a later one
// removes after half an hour.
func Run(ctx context.Context, c arm.Config, o Options) []Finding {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.CallTimeout <= 0 {
		o.CallTimeout = time.Minute
	}
	d := &doctor{cfg: c, opts: o, run: newRun(), client: o.HTTP}
	d.all(ctx)
	return d.list
}

// newRun is the name of a run: it makes owner tags and names unique.
func newRun() string {
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails
	return "doctor-" + hex.EncodeToString(b)
}

type doctor struct {
	cfg    arm.Config
	opts   Options
	run    string
	client *http.Client
	s      *arm.Session
	list   []Finding
	dates  []dated
	keeps  bool // the identity may make disks, and not delete them
}

// dated is the Date of an answer.
type dated struct {
	host string
	skew time.Duration
}

// step is one step: what it is called, what must not have failed before, and what it does.
type step struct {
	check string
	after []string
	do    func(context.Context)
}

func (d *doctor) all(ctx context.Context) {
	began := []string{CheckConfiguration}
	signed := []string{CheckConfiguration, CheckSignIn}
	inGroup := []string{CheckConfiguration, CheckSignIn, CheckGroup}
	steps := []step{
		{CheckConfiguration, nil, d.configuration},
		{CheckReach, began, d.reach},
		{CheckClock, began, d.clock},
		{CheckSignIn, began, d.signIn},
		{CheckSubscription, signed, d.subscription},
		{CheckProviders, signed, d.providers},
		{CheckGroup, signed, d.resourceGroup},
		{CheckPermissions, inGroup, d.permissions},
		{CheckLocks, inGroup, d.locks},
		{CheckNetwork, inGroup, d.network},
		{CheckSizes, inGroup, d.sizes},
		{CheckQuota, inGroup, d.quota},
		{CheckLeftovers, inGroup, d.leftovers},
		{CheckStorage, began, d.storage},
		{CheckDisk, append(slices.Clone(inGroup), CheckLocks), d.disk}, // under a lock it could not be removed
		{CheckCleanUp, inGroup, d.cleanUp},
	}
	for _, s := range steps {
		switch failed := d.failedOf(s.after); {
		case ctx.Err() != nil && s.check != CheckCleanUp:
			d.add(s.check, StatusSkipped, "interrupted", "")
		case failed != "":
			d.add(s.check, StatusSkipped, failed+" failed", "")
		default:
			s.do(ctx)
		}
	}
	if d.s != nil {
		_ = d.s.Close() // gives up idle connections only
	}
}

// failedOf is the first of the checks that did not end well.
func (d *doctor) failedOf(checks []string) string {
	for _, f := range d.list {
		if slices.Contains(checks, f.Check) && (f.Status == StatusFailed || f.Status == StatusSkipped) {
			return f.Check
		}
	}
	return ""
}

func (d *doctor) add(check, status, detail, remedy string) {
	d.list = append(d.list, Finding{Check: check, Status: status, Detail: detail, Remedy: remedy})
}

// fail adds what an error says.
func (d *doctor) fail(check string, err error) {
	d.list = append(d.list, Finding{Check: check, Status: StatusFailed, Detail: strings.ReplaceAll(err.Error(), "\n", "; "), Remedy: remedy(err), Code: code(err)})
}

// remedy and code are those of the first of joined errors.
func remedy(err error) string { return dr.HintOf(firstOf(err)) }
func code(err error) dr.Code  { return dr.CodeOf(firstOf(err)) }
func firstOf(err error) error {
	var e *dr.Error
	if errors.As(err, &e) {
		return e
	}
	return err
}

// warn adds what an error says, where the site can work without.
func (d *doctor) warn(check string, err error) {
	d.fail(check, err)
	d.list[len(d.list)-1].Status = StatusWarning
}

func (d *doctor) configuration(context.Context) {
	s, err := arm.New(d.cfg, d.opts.Options)
	if err != nil {
		d.fail(CheckConfiguration, err)
		return
	}
	d.s, d.client = s, s.HTTP()
	kind := d.cfg.Credential.Kind
	if kind == "" {
		kind = arm.CredentialDefault
	}
	name := d.cfg.Cloud
	if name == "" {
		name = arm.AzurePublic
	}
	d.add(CheckConfiguration, StatusOK, fmt.Sprintf("cloud %s, subscription %s, resource group %s, credential %s", name, d.cfg.Subscription, d.cfg.ResourceGroup, kind), "")
}

// reach tries DNS, proxy, TLS and an answer of every address.
func (d *doctor) reach(ctx context.Context) {
	e := d.cfg.Endpoints()
	addresses := []string{e.Authority, e.ResourceManager}
	if d.cfg.StorageAccount != "" {
		addresses = append(addresses, e.Blob(d.cfg.StorageAccount))
	}
	seen := map[string]bool{}
	for _, a := range addresses {
		u, err := url.Parse(a)
		if err != nil || seen[u.Host] {
			continue
		}
		seen[u.Host] = true
		d.reachOne(ctx, u)
	}
}

func (d *doctor) reachOne(ctx context.Context, u *url.URL) {
	ctx, cancel := context.WithTimeout(ctx, d.opts.CallTimeout)
	defer cancel()
	via := ""
	proxy, err := d.proxyFor(u)
	switch {
	case err != nil:
		d.add(CheckReach, StatusFailed, "the proxy in the environment is no address", "Correct HTTPS_PROXY.")
		return
	case proxy != nil:
		via = " through the proxy " + proxy.Host
	case net.ParseIP(u.Hostname()) == nil: // behind a proxy this machine need not know the name
		if _, err := net.DefaultResolver.LookupHost(ctx, u.Hostname()); err != nil {
			d.fail(CheckReach, arm.Classify("azure.Doctor", "the name "+u.Hostname()+" can't be resolved", err))
			d.list[len(d.list)-1].Remedy = "Check this machine's DNS servers and the name; a storage account that does not exist has no name."
			return
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Scheme+"://"+u.Host+"/", nil)
	if err != nil {
		d.fail(CheckReach, arm.Classify("azure.Doctor", u.Host, err))
		return
	}
	client := *d.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		d.fail(CheckReach, arm.Classify("azure.Doctor", u.Host+via, err))
		return
	}
	took := time.Since(began)
	_ = resp.Body.Close() // nothing of it is needed
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		d.dates = append(d.dates, dated{u.Host, d.opts.Now().Add(-took / 2).Sub(date).Round(time.Second)})
	}
	if resp.StatusCode == http.StatusProxyAuthRequired {
		d.add(CheckReach, StatusFailed, u.Host+via+": the proxy wants a sign-in", "Put user and password into HTTPS_PROXY, or exempt Azure's addresses.")
		return
	}
	d.add(CheckReach, StatusOK, fmt.Sprintf("%s answers in %s%s", u.Host, took.Round(time.Millisecond), via), "")
}

// proxyFor is the proxy that the session's client uses for an address.
func (d *doctor) proxyFor(u *url.URL) (*url.URL, error) {
	t, ok := d.client.Transport.(*http.Transport)
	if !ok || t.Proxy == nil {
		return nil, nil
	}
	return t.Proxy(&http.Request{URL: u})
}

func (d *doctor) clock(context.Context) {
	if len(d.dates) == 0 {
		d.add(CheckClock, StatusSkipped, "nobody told the time", "")
		return
	}
	worst := slices.MaxFunc(d.dates, func(a, b dated) int { return int(a.skew.Abs() - b.skew.Abs()) })
	detail := "this machine's clock is right to the second"
	if worst.skew.Abs() > time.Second {
		detail = fmt.Sprintf("this machine's clock is %s, by the answer of %s", arm.SkewText(worst.skew), worst.host)
	}
	switch {
	case worst.skew.Abs() > arm.MaxSkew:
		entry, _ := dr.Lookup(dr.CodeAzureClock)
		d.list = append(d.list, Finding{CheckClock, StatusFailed, detail, entry.Remedy, dr.CodeAzureClock})
	case worst.skew.Abs() > warnSkew:
		d.add(CheckClock, StatusWarning, detail, "Check the time service (NTP) before it gets worse: Azure accepts up to "+arm.MaxSkew.String()+".")
	default:
		d.add(CheckClock, StatusOK, detail, "")
	}
}

func (d *doctor) signIn(ctx context.Context) {
	if err := d.s.SignIn(ctx); err != nil {
		d.fail(CheckSignIn, err)
		return
	}
	d.add(CheckSignIn, StatusOK, d.s.Who()+" is signed in", "")
}

func (d *doctor) subscription(ctx context.Context) {
	var sub struct {
		DisplayName string `json:"displayName"`
		State       string `json:"state"`
		TenantID    string `json:"tenantId"`
	}
	if err := d.s.Resource(ctx, "/subscriptions/"+d.cfg.Subscription, arm.SubscriptionsAPI, &sub); err != nil {
		d.fail(CheckSubscription, err)
		return
	}
	detail := fmt.Sprintf("%s (%s)", sub.DisplayName, sub.State)
	switch {
	case sub.State != "" && sub.State != "Enabled" && sub.State != "PastDue":
		d.add(CheckSubscription, StatusFailed, detail, "Enable the subscription in the portal (billing).")
	case isGUID(d.cfg.Tenant) && sub.TenantID != "" && !strings.EqualFold(sub.TenantID, d.cfg.Tenant):
		d.add(CheckSubscription, StatusFailed, detail+" belongs to tenant "+sub.TenantID, "Correct tenant or subscription in the configuration.")
	default:
		d.add(CheckSubscription, StatusOK, detail, "")
	}
}

func (d *doctor) providers(ctx context.Context) {
	names := []string{"Microsoft.Compute", "Microsoft.Network"}
	if d.cfg.StorageAccount != "" {
		names = append(names, "Microsoft.Storage")
	}
	for _, name := range names {
		var p struct {
			State string `json:"registrationState"`
		}
		err := d.s.Resource(ctx, "/subscriptions/"+d.cfg.Subscription+"/providers/"+name, arm.ResourcesAPI, &p)
		switch {
		case err != nil:
			d.fail(CheckProviders, err)
			return
		case !strings.EqualFold(p.State, "Registered"):
			d.list = append(d.list, Finding{CheckProviders, StatusFailed, name + " is " + p.State, "Run 'az provider register --namespace " + name + "' and wait some minutes.", dr.CodeAzureProvider})
			return
		}
	}
	d.add(CheckProviders, StatusOK, strings.Join(names, ", ")+" are registered", "")
}

func (d *doctor) resourceGroup(ctx context.Context) {
	g, err := d.s.Group(ctx)
	if err != nil {
		d.fail(CheckGroup, err)
		return
	}
	detail := d.cfg.ResourceGroup + " in " + g.Location
	if !strings.EqualFold(g.Location, d.s.Location()) {
		detail += "; VMs are made in " + d.s.Location()
	}
	d.add(CheckGroup, StatusOK, detail, "")
}

// cleanUp removes whatever of this run is left, and looks that nothing is. It works
// also after an interruption.
func (d *doctor) cleanUp(ctx context.Context) {
	if d.opts.ReadOnly {
		d.add(CheckCleanUp, StatusSkipped, "nothing was made", "")
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), doctorClean)
	defer cancel()
	left, err := d.s.ListByTag(ctx, arm.TagOwner, d.run)
	if err == nil && len(left) > 0 {
		if err = d.s.Remove(ctx, left); err == nil {
			left, err = d.s.ListByTag(ctx, arm.TagOwner, d.run)
		}
	}
	switch {
	case err != nil:
		d.fail(CheckCleanUp, err)
	case len(left) > 0:
		d.add(CheckCleanUp, StatusFailed, fmt.Sprintf("%d resources of this run are still there, first %s", len(left), left[0].ID), "Run 'holdfast azure cleanup' in half an hour.")
	default:
		d.add(CheckCleanUp, StatusOK, "nothing of this run is left in "+d.cfg.ResourceGroup, "")
	}
}

// responseCode is the service's code in an SDK error that is not classified yet.
func responseCode(err error) string {
	var r *azcore.ResponseError
	if errors.As(err, &r) {
		return r.ErrorCode
	}
	return ""
}

func isGUID(s string) bool { return uuid.Validate(s) == nil }

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
