package portal

import (
	"cmp"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/portal/estate"
	"holdfast/internal/portal/network"
	"holdfast/internal/portal/page"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
)

// sitePages are the sites with their hosts and keys.
type sitePages struct{ *core }

type siteRow struct {
	dr.Fabric
	Sources, Targets, Off, VMs, Items int
	LastSeen                          time.Time
	Hypervisors                       []string // of its hosts, each once: "KVM QEMU 7.2.22, libvirt 9.0.0"
}

// TypeName is the type for people.
func (s siteRow) TypeName() string { return words.SiteType(s.Type) }

type sitesBody struct {
	Rows []siteRow
	Ask  string
	Name string // as entered
}

func (p sitePages) list(w http.ResponseWriter, r *page.Request) error {
	e, err := estate.Load(r.Context(), p.V)
	if err != nil {
		return err
	}
	b := sitesBody{Ask: r.URL.Query().Get("ask")}
	if r.Problem != nil {
		b.Ask, b.Name = "add", r.PostFormValue("name")
	}
	for _, f := range e.Fabrics {
		row, err := p.siteRow(r, e, f)
		if err != nil {
			return err
		}
		b.Rows = append(b.Rows, row)
	}
	return p.Render(w, r, "sites", page.View{Title: "Sites", Kind: "Infrastructure", Section: "sites", Icon: "sites", URL: "/portal/sites" + estate.Query(r), Topics: "site", Body: b})
}

func (p sitePages) siteRow(r *page.Request, e *estate.Estate, f dr.Fabric) (siteRow, error) {
	row := siteRow{Fabric: f}
	for _, h := range e.Hosts {
		if h.Fabric != f.ID {
			continue
		}
		if h.HasRole(dr.RoleSource) {
			row.Sources++
		}
		if h.HasRole(dr.RoleRecovery) {
			row.Targets++
		}
		if !p.V.Connected(h) {
			row.Off++
		}
		if h.LastSeen.After(row.LastSeen) {
			row.LastSeen = h.LastSeen
		}
		if s := strings.TrimSpace(words.Platform(h, f.Type) + " " + words.HypervisorVersion(h, f.Type)); !slices.Contains(row.Hypervisors, s) {
			row.Hypervisors = append(row.Hypervisors, s)
		}
	}
	for _, it := range e.Items {
		if it.Fabric == f.ID {
			row.Items++
		}
	}
	vms, err := p.V.VMs(r.Context(), f.ID)
	row.VMs = len(vms)
	return row, err
}

func (p sitePages) add(w http.ResponseWriter, r *page.Request) error {
	name := strings.TrimSpace(r.PostFormValue("name"))
	job, err := p.V.CreateFabric(r.Context(), name, dr.FabricType(r.PostFormValue("type")), r.Who.Name)
	if err != nil {
		return p.Again(w, r, err, p.list)
	}
	return p.Done(w, r, "/portal/sites/"+url.PathEscape(name), job)
}

// hostRow is a registered host.
type hostRow struct {
	dr.Provider
	Connected    bool
	Platform     string // KVM, Hyper-V or VMM
	Hypervisor   string // its version; hides the provider's longer one
	VMs, Sources int    // discovered VMs, items that it replicates
}

type siteBody struct {
	siteRow
	Hosts    []hostRow
	VMM      *network.Server // nil = not the site of a VMM server
	Keys     []keyRow
	Install  string
	Windows  bool // its hosts are Windows hosts
	Commands []registerCommand
	Ask      string
	KeyFile  string // customary name, for the commands
}

type registerCommand struct{ Role, Text, Command string }

type keyRow struct {
	vault.RegistrationKey
	State words.Pill
	Live  bool
}

func (p sitePages) show(w http.ResponseWriter, r *page.Request) error {
	ctx := r.Context()
	f, err := p.V.Fabric(ctx, r.PathValue("site"))
	if err != nil {
		return err
	}
	e, err := estate.Load(ctx, p.V)
	if err != nil {
		return err
	}
	b := siteBody{Ask: r.URL.Query().Get("ask"), Install: p.Cfg.InstallCommand, KeyFile: keyFileName(f)}
	if b.siteRow, err = p.siteRow(r, e, f); err != nil {
		return err
	}
	vms, err := p.V.VMs(ctx, f.ID)
	if err != nil {
		return err
	}
	for _, h := range e.Hosts {
		if h.Fabric != f.ID {
			continue
		}
		row := hostRow{Provider: h, Connected: p.V.Connected(h), Platform: words.Platform(h, f.Type), Hypervisor: words.HypervisorVersion(h, f.Type)}
		for _, vm := range vms {
			if vm.Agent == h.ID {
				row.VMs++
			}
		}
		for _, it := range e.Items {
			if it.SourceAgent == h.ID {
				row.Sources++
			}
		}
		b.Hosts = append(b.Hosts, row)
	}
	keys, err := p.V.Keys(ctx, f.Name)
	if err != nil {
		return err
	}
	slices.SortFunc(keys, func(x, y vault.RegistrationKey) int { return cmp.Compare(y.Created.UnixMicro(), x.Created.UnixMicro()) })
	for _, k := range keys {
		b.Keys = append(b.Keys, p.keyRow(k))
	}
	if b.Windows = f.Type == dr.HyperVSite || f.Type == dr.VMMSite; b.Windows {
		b.Install = ""
	}
	if f.Type == dr.VMMSite {
		s, err := p.V.VMM(ctx, f.ID)
		if err != nil {
			return err
		}
		b.VMM = network.ServerOf(f, s, vms)
	}
	for _, c := range []registerCommand{{Role: string(dr.RoleSource), Text: "Hosts whose VMs shall be protected"}, {Role: string(dr.RoleRecovery), Text: "Hosts that run the VMs after a failover"},
		{Role: string(dr.RoleVMM), Text: "The VMM server, which tells of clouds and networks"}} {
		if c.Role == string(dr.RoleVMM) && f.Type != dr.VMMSite || c.Role == string(dr.RoleSource) && f.Type == dr.AzureSite {
			continue
		}
		if f.Type == dr.AzureSite {
			c.Text = "A machine that may manage the resource group: in Azure, or anywhere with a way to it"
		}
		c.Command = p.Cfg.RegisterCommand(b.KeyFile, dr.AgentRole(c.Role))
		if b.Windows {
			c.Command = strings.TrimPrefix(c.Command, "sudo ")
		}
		b.Commands = append(b.Commands, c)
	}
	return p.Render(w, r, "site", page.View{Title: f.Name, Kind: words.SiteType(f.Type), Section: "sites", Icon: "sites", Crumbs: []page.Crumb{{Name: "Sites", URL: "/portal/sites"}},
		URL: "/portal/sites/" + url.PathEscape(f.Name) + estate.Query(r), Topics: "site", Body: b})
}

func (p sitePages) keyRow(k vault.RegistrationKey) keyRow {
	row := keyRow{RegistrationKey: k, State: words.Pill{Tone: "good", Icon: "ok", Text: "Valid"}, Live: true}
	switch {
	case k.Revoked:
		row.State, row.Live = words.Pill{Tone: "idle", Icon: "dot", Text: "Revoked"}, false
	case !p.Now().Before(k.Expires):
		row.State, row.Live = words.Pill{Tone: "idle", Icon: "dot", Text: "Expired"}, false
	case k.OneTime && k.Uses > 0:
		row.State, row.Live = words.Pill{Tone: "idle", Icon: "dot", Text: "Used"}, false
	}
	return row
}

// keyFileName is a short name that survives every shell.
func keyFileName(f dr.Fabric) string { return words.FileName(f.Name) + ".VaultCredentials" }

// key issues a registration key and sends it as a file. It is the only place
// where the secret appears.
func (p sitePages) key(w http.ResponseWriter, r *page.Request) error {
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return err
	}
	k, err := p.V.IssueKey(r.Context(), vault.KeyRequest{Fabric: f.Name, OneTime: r.PostFormValue("onetime") != "", By: r.Who.Name})
	if err != nil {
		return p.Again(w, r, err, p.show)
	}
	id := p.V.Identity()
	file, err := armwire.KeyFile{SubscriptionID: id.SubscriptionID, ResourceGroup: id.ResourceGroup, VaultName: id.Name, ResourceID: id.ResourceID,
		Location: id.Location, TenantID: id.TenantID, SiteID: string(f.ID), SiteName: f.Name,
		Credential: armwire.Credential{VaultURL: k.VaultURL, CAPin: k.CAPin, KeyID: k.ID, Secret: k.Secret, Fabric: string(k.Fabric), Expires: k.Expires.UTC()}}.Encode()
	if err != nil {
		return dr.Errorf(dr.KindInternal, "portal.key", "make the key file: %w", err)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": keyFileName(f)}))
	_, _ = w.Write(file) // the browser has gone: the key is listed and can be revoked
	return nil
}

func (p sitePages) remove(w http.ResponseWriter, r *page.Request) error {
	name := r.PathValue("site")
	if r.PostFormValue("confirm") != name {
		return p.Again(w, r, dr.Errorf(dr.KindInvalid, "portal.removeSite", "the name entered is not %q: nothing was changed", name).
			WithHint("Type the site's name exactly to confirm."), p.show)
	}
	job, err := p.V.RemoveFabric(r.Context(), name, r.PostFormValue("force") != "", r.Who.Name)
	if err != nil {
		return p.Again(w, r, err, p.show)
	}
	return p.Done(w, r, "/portal/sites", job)
}

func (p sitePages) check(w http.ResponseWriter, r *page.Request) error {
	job, err := p.V.CheckConsistency(r.Context(), r.PathValue("site"), r.Who.Name)
	if err != nil {
		return p.Again(w, r, err, p.show)
	}
	return p.Done(w, r, "/portal/jobs/"+url.PathEscape(string(job)), "")
}

func (p sitePages) revoke(w http.ResponseWriter, r *page.Request) error {
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return err
	}
	if err := p.V.RevokeKey(r.Context(), r.PathValue("key"), r.Who.Name); err != nil {
		return p.Again(w, r, err, p.show)
	}
	return p.Done(w, r, "/portal/sites/"+url.PathEscape(f.Name), "")
}

// host does something with a host of the site.
func (p sitePages) host(w http.ResponseWriter, r *page.Request, do func(f dr.Fabric, id dr.AgentID) (dr.JobID, error)) error {
	f, err := p.V.Fabric(r.Context(), r.PathValue("site"))
	if err != nil {
		return err
	}
	job, err := do(f, dr.AgentID(r.PathValue("host")))
	if err != nil {
		return p.Again(w, r, err, p.show)
	}
	return p.Done(w, r, "/portal/sites/"+url.PathEscape(f.Name), job)
}

func (p sitePages) refresh(w http.ResponseWriter, r *page.Request) error {
	return p.host(w, r, func(f dr.Fabric, id dr.AgentID) (dr.JobID, error) {
		return p.V.RefreshProvider(r.Context(), f.ID, id, r.Who.Name)
	})
}

func (p sitePages) removeHost(w http.ResponseWriter, r *page.Request) error {
	return p.host(w, r, func(f dr.Fabric, id dr.AgentID) (dr.JobID, error) {
		return p.V.RemoveProvider(r.Context(), f.ID, id, r.PostFormValue("force") != "", r.Who.Name)
	})
}
