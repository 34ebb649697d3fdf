package portal

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/machine"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/policy"
	"holdfast/internal/vault"
	"holdfast/internal/vmm"
)

// vmPages are the VMs that were discovered and can be protected.
type vmPages struct{ *core }

type vmsBody struct {
	Rows        []machine.Row
	Total       int
	Query, Site string
	All         bool
	Estate      *estate.Estate
	Pages       estate.Pages
}

func (p vmPages) list(w http.ResponseWriter, r *page.Request) error {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	b := vmsBody{Query: strings.TrimSpace(q.Get("q")), Site: q.Get("site"), All: q.Get("all") != "", Estate: e}
	for _, f := range e.Fabrics {
		if b.Site != "" && f.Name != b.Site {
			continue
		}
		vms, err := p.V.VMs(r.Context(), f.ID)
		if err != nil {
			return err
		}
		for _, vm := range vms {
			row := machine.Judge(vm, e, p.V.Connected)
			b.Total++
			if (b.All || row.Item == "") && (b.Query == "" || strings.Contains(strings.ToLower(vm.Name), strings.ToLower(b.Query))) {
				b.Rows = append(b.Rows, row)
			}
		}
	}
	slices.SortStableFunc(b.Rows, func(x, y machine.Row) int { return cmp.Compare(strings.ToLower(x.Name), strings.ToLower(y.Name)) })
	b.Rows, b.Pages = estate.Paged(r, b.Rows, estate.PageSize)
	return p.Render(w, r, "vms", page.View{Title: "Replicable VMs", Kind: "Discovered on registered hosts", Section: "vms", Icon: "vms", Topics: "site item", Body: b})
}

// enableForm is what the form of a VM shows and returns.
type enableForm struct {
	machine.Row
	Facts    machine.Facts
	Policies []dr.Policy
	Targets  []dr.Fabric // sites with a recovery host
	Policy   string
	Target   string // fabric name; empty = found by the vault
	Disks    map[string]bool
	New      policy.Form // of a new policy
	RecName  string
	Networks []string
	Network  string
}

// newPolicy is the choice that makes a policy on the way.
const newPolicy = "+new"

func (p vmPages) prepare(r *page.Request) (*estate.Estate, enableForm, error) {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return nil, enableForm{}, err
	}
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return nil, enableForm{}, err
	}
	vm, err := p.V.VM(r.Context(), f.ID, dr.VMID(r.PathValue("vm")))
	if err != nil {
		return nil, enableForm{}, err
	}
	b := enableForm{Row: machine.Judge(vm, e, p.V.Connected), Policies: e.Policies, Disks: map[string]bool{}, New: policy.Default()}
	if b.Facts, err = p.facts(r.Context(), f, vm); err != nil {
		return nil, enableForm{}, err
	}
	for _, t := range e.Fabrics {
		if slices.ContainsFunc(e.Hosts, func(h dr.Provider) bool {
			return h.Fabric == t.ID && h.HasRole(dr.RoleRecovery) && h.ID != vm.Agent
		}) {
			b.Targets = append(b.Targets, t)
		}
	}
	for _, d := range vm.Disks {
		b.Disks[d.ID] = machine.Usable(d)
	}
	return e, b, nil
}

func (p vmPages) form(w http.ResponseWriter, r *page.Request) error {
	_, b, err := p.prepare(r)
	if err != nil {
		return err
	}
	b.Policy = newPolicy
	if len(b.Policies) > 0 {
		b.Policy = b.Policies[0].Name
	}
	for _, t := range b.Targets { // another site first
		if b.Target == "" || t.ID != b.VM.Fabric {
			b.Target = t.Name
		}
	}
	if r.Problem != nil { // keep what was entered
		b.Policy, b.Target, b.RecName, b.Network = r.PostForm.Get("policy"), r.PostForm.Get("target"), r.PostForm.Get("name"), r.PostForm.Get("network")
		b.New = policy.FormOf(r.PostForm.Get)
		for id := range b.Disks {
			b.Disks[id] = slices.Contains(r.PostForm["disk"], id)
		}
	}
	return p.Render(w, r, "enable", page.View{Title: "Enable replication", Kind: b.Name, Section: "vms", Icon: "vms", Crumbs: []page.Crumb{{Name: "Replicable VMs", URL: "/portal/vms"}}, Body: b})
}

func (p vmPages) enable(w http.ResponseWriter, r *page.Request) error {
	if err := r.ParseForm(); err != nil {
		return dr.Errorf(dr.KindInvalid, "portal.enable", "the form could not be read")
	}
	job, err := p.enableVM(r)
	if err != nil {
		return p.Again(w, r, err, p.form)
	}
	to := "/portal/jobs/" + url.PathEscape(string(job))
	if j, err := p.V.Job(r.Context(), job); err == nil && j.Item != "" {
		return p.Done(w, r, "/portal/items/"+url.PathEscape(string(j.Item)), job)
	}
	return p.Done(w, r, to, "")
}

// enableVM makes the policy and the mapping where they are missing, then
// starts protection. Each part may be repeated.
func (p vmPages) enableVM(r *page.Request) (dr.JobID, error) {
	const op = "portal.enable"
	ctx := r.Context()
	e, b, err := p.prepare(r)
	if err != nil {
		return "", err
	}
	disks := r.PostForm["disk"]
	if len(disks) == 0 {
		return "", dr.New(dr.KindInvalid, dr.CodeNoDisks, op, "no disk of %s was chosen", b.Name).WithHint("Choose at least the disk with the operating system.")
	}
	name := r.PostForm.Get("policy")
	if name == newPolicy {
		pol, err := policy.FormOf(r.PostForm.Get).Policy(dr.Policy{})
		if err != nil {
			return "", err
		}
		if _, err := p.V.SavePolicy(ctx, pol, true, r.Who.Name); err != nil {
			return "", err
		}
		name = pol.Name
	}
	pol, err := p.V.Policy(ctx, name)
	if err != nil {
		return "", err
	}
	if target := r.PostForm.Get("target"); target != "" {
		i := slices.IndexFunc(b.Targets, func(f dr.Fabric) bool { return f.Name == target })
		if i < 0 {
			return "", dr.New(dr.KindPrecondition, dr.CodeNoRecoverySite, op, "site %q has no host with the recovery role", target)
		}
		if err := p.mapTo(r, e, b.Site, pol, b.Targets[i]); err != nil {
			return "", err
		}
	}
	if len(disks) == len(b.VM.Disks) {
		disks = nil // all, as the API says it
	}
	return p.V.Enable(ctx, vault.EnableRequest{Fabric: b.Site.Name, Name: string(b.VM.ID), VM: b.VM.ID, Policy: pol.Name, Disks: disks, By: r.Who.Name,
		Settings: dr.ItemSettings{RecoveryVMName: strings.TrimSpace(r.PostForm.Get("name")), Network: strings.TrimSpace(r.PostForm.Get("network"))}})
}

// mapTo makes sure that the policy lets the site's VMs recover at target.
func (p vmPages) mapTo(r *page.Request, e *estate.Estate, site dr.Fabric, pol dr.Policy, target dr.Fabric) error {
	maps, err := p.V.Mappings(r.Context(), site.ID)
	if err != nil {
		return err
	}
	for _, m := range maps {
		switch {
		case m.Policy != pol.ID || m.TargetFabric == "":
		case m.TargetFabric == target.ID:
			return nil
		default:
			return dr.Errorf(dr.KindConflict, "portal.enable", "by policy %q the VMs of site %q recover at site %q", pol.Name, site.Name, e.Fabric[m.TargetFabric].Name).
				WithHint("Choose that site, or another policy.")
		}
	}
	id := p.V.Identity()
	clip := func(s string) string { return strings.Trim(s[:min(len(s), 20)], "._ -") }
	_, err = p.V.CreateMapping(r.Context(), dr.ContainerMapping{Fabric: site.ID, Policy: pol.ID,
		Name: clip(pol.Name) + "-to-" + clip(target.Name) + "-" + clip(string(pol.ID))[:min(len(clip(string(pol.ID))), 8)],
		Target: fmt.Sprintf("/subscriptions/%s/resourceGroups/%s/providers/Microsoft.RecoveryServices/vaults/%s/replicationFabrics/%s/replicationProtectionContainers/%s",
			id.SubscriptionID, id.ResourceGroup, id.Name, target.Name, target.ContainerName())}, r.Who.Name)
	return err
}

// facts describes a VM of a site, with the name of its cloud.
func (c *core) facts(ctx context.Context, f dr.Fabric, vm dr.VM) (machine.Facts, error) {
	cloud := vm.Facts.Cloud
	if cloud != "" && f.Type == dr.VMMSite {
		s, err := c.V.VMM(ctx, f.ID)
		if err != nil {
			return machine.Facts{}, err
		}
		if i := slices.IndexFunc(s.Clouds, func(x vmm.Cloud) bool { return x.ID == cloud }); i >= 0 {
			cloud = s.Clouds[i].Name
		}
	}
	return machine.Describe(vm, f.Type, cloud), nil
}
