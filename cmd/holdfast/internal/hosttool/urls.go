package hosttool

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/hosting"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/agent/channel"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/azure/arm"
	"holdfast/internal/reach"
)

// wayFlags say what a machine has to reach, beyond what its registration says.
type wayFlags struct {
	cloud  string
	azure  string // the doctor has it from hosting.Flags
	stores []string
}

func (w *wayFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&w.cloud, "cloud", "", "cloud of the store and of --azure: "+strings.Join(reach.CloudNames()[:3], ", ")+" (default: that of --azure, else AzurePublic)")
	c.Flags().StringArrayVar(&w.stores, "store", nil, "store that the vault uses, as in its configuration (s3://… or azure://…); may be repeated")
}

// config computes from the flags what reach needs; roots are the authorities of a custom cloud, nil for the system's.
func (w *wayFlags) config() (cfg reach.Config, roots *x509.CertPool, err error) {
	cfg.Cloud = w.cloud
	for _, s := range w.stores {
		a, err := storage.Parse(s, ".") // refuses keys and signatures
		if err != nil {
			return cfg, nil, err
		}
		cfg.Stores = append(cfg.Stores, a.String())
	}
	if w.azure == "" {
		return cfg, nil, nil
	}
	site, err := arm.Load(w.azure)
	if err != nil {
		return cfg, nil, err
	}
	cfg.Cloud = cmp.Or(site.Cloud, arm.AzurePublic)
	if w.cloud != "" && !strings.EqualFold(w.cloud, cfg.Cloud) {
		return cfg, nil, console.Usage("--cloud is %s, %s says %s", w.cloud, w.azure, cfg.Cloud)
	}
	if site.Cloud == arm.CustomCloud {
		cfg.Custom = reach.Cloud{ResourceManager: hostOf(site.ResourceManager), Authority: hostOf(site.Authority), BlobSuffix: site.StorageSuffix}
	}
	cfg.Azure = &reach.Site{StorageAccount: site.StorageAccount, ManagedIdentity: site.Credential.Kind == arm.CredentialManaged}
	if site.CAFile != "" {
		if roots, err = authorities(site.CAFile); err != nil {
			return cfg, nil, err
		}
	}
	return cfg, roots, nil
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

// authorities are those of the system and of a file.
func authorities(file string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	raw, err := console.ReadSmall(file)
	if err != nil {
		return nil, console.ClassifyAs(err, "read the file of authorities")
	}
	if !pool.AppendCertsFromPEM(raw) {
		return nil, console.Usage("%s holds no certificate in PEM form", file)
	}
	return pool, nil
}

// urlRow is an endpoint as it is printed.
type urlRow struct {
	Name      string         `json:"name"`
	Host      string         `json:"host"`
	Port      int            `json:"port"`
	Protocol  string         `json:"protocol"`
	Direction string         `json:"direction"`
	Roles     []dr.AgentRole `json:"roles"`
	Purpose   string         `json:"purpose"`
	Breaks    string         `json:"breaks"`
	Required  bool           `json:"required"`
}

func (a *app) urlsCommand() *cobra.Command {
	var way wayFlags
	var state, vault string
	var roles []string
	var plain, asr bool
	c := &cobra.Command{
		Use: "urls", Short: "List the addresses that this host has to reach", Args: cobra.NoArgs,
		Long: "List what a firewall or proxy has to let out for this host, computed from its registration and the flags.\n" +
			"Nothing is sent; nothing ever has to be let in. Without a registration name the vault with --vault.\n" +
			"'holdfast agent doctor' tries each address.",
		RunE: func(c *cobra.Command, _ []string) error {
			if asr {
				return a.siteRecovery(way.cloud)
			}
			cfg, _, err := way.config()
			if err != nil {
				return err
			}
			cfg.VaultURL = vault
			if err := registered(&cfg, state, c.Flags().Changed("state"), roles); err != nil {
				return err
			}
			list, err := reach.Endpoints(cfg)
			if err != nil {
				return err
			}
			return a.printURLs(list, plain)
		},
	}
	way.add(c)
	f := c.Flags()
	f.StringVar(&way.azure, "azure", "", "configuration file of an Azure resource group that VMs are recovered in")
	f.StringVar(&state, "state", hosting.DefaultState(), "state directory of the agent, if the host is registered")
	f.StringVar(&vault, "vault", "", "address of the vault (default: that of the registration)")
	f.StringSliceVar(&roles, "role", nil, "what the host is for: source, recovery or vmm (default: as registered, else source; with --azure also recovery)")
	f.BoolVar(&plain, "plain", false, "only host:port, one on each line")
	f.BoolVar(&asr, "asr", false, "what Azure Site Recovery wants open instead, and what takes its place here")
	return c
}

func (a *app) printURLs(list []reach.Endpoint, plain bool) error {
	if plain && !a.JSON {
		for _, e := range list {
			if _, err := fmt.Fprintln(a.Out, line(e.Host, e.Port, e.Protocol)); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([]urlRow, len(list))
	for i, e := range list {
		rows[i] = urlRow{e.Name, e.Host, e.Port, e.Protocol, e.Direction, e.Roles, e.Purpose, e.Breaks, e.Required}
	}
	return console.List(a.Console, rows, "", console.Col("ADDRESS", func(r urlRow) string { return line(r.Host, r.Port, r.Protocol) }),
		console.Wide("FOR", func(r urlRow) string { return r.Purpose + ". Without it: " + r.Breaks + "." }))
}

// line is an address as firewalls take it: host:port, and the protocol if it is not HTTPS.
func line(host string, port int, protocol string) string {
	at := net.JoinHostPort(host, strconv.Itoa(port))
	if protocol != reach.HTTPS {
		at += "/" + protocol
	}
	return at
}

// siteRecovery prints what Azure Site Recovery wants open, of one cloud; JSON has both.
func (a *app) siteRecovery(cloud string) error {
	head, address := "COMMERCIAL", func(r reach.Counterpart) string { return r.Commercial }
	if strings.HasSuffix(strings.ToLower(cloud), "government") {
		head, address = "GOVERNMENT", func(r reach.Counterpart) string { return r.Government }
	}
	return console.List(a.Console, reach.SiteRecovery(), "", console.Col("FOR", func(r reach.Counterpart) string { return r.Row }), console.Col(head, address),
		console.Wide("HERE", func(r reach.Counterpart) string { return r.Here }))
}

// registered adds what the agent's state knows. A state that was named has to be there,
// and one that can't be read is an error unless flags say what is needed.
func registered(cfg *reach.Config, state string, named bool, words []string) error {
	id, err := channel.Load(state)
	switch {
	case err == nil:
		reg := id.Registration()
		cfg.Roles = reg.Roles
		if cfg.VaultURL == "" {
			cfg.VaultURL, cfg.VaultTrust = reg.VaultURL, pinned(id.CA)
		}
	case named, cfg.VaultURL == "" && dr.KindOf(err) != dr.KindPrecondition:
		return err
	}
	if len(words) > 0 {
		cfg.Roles = nil
		for _, w := range words {
			r := dr.AgentRole(strings.TrimSpace(w))
			if r != dr.RoleSource && r != dr.RoleRecovery && r != dr.RoleVMM {
				return console.Usage("--role %q is none of source, recovery and vmm", w)
			}
			cfg.Roles = append(cfg.Roles, r)
		}
	} else if len(cfg.Roles) == 0 {
		cfg.Roles = []dr.AgentRole{dr.RoleSource}
		if cfg.Azure != nil {
			cfg.Roles = append(cfg.Roles, dr.RoleRecovery)
		}
	}
	if cfg.Azure != nil && !slices.Contains(cfg.Roles, dr.RoleRecovery) {
		return console.Usage("--azure is for a host with the role recovery")
	}
	return nil
}

// pinned is the vault's authority; an empty pool, which trusts nobody, if it can't be read.
func pinned(pem string) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(pem))
	return pool
}
