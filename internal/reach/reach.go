// Package reach knows which addresses a machine of Holdfast has to reach, and
// finds out, hop by hop, whether it does: name, proxy, connection, certificate, answer and clock; and how fast the store is.
//
// Endpoints are computed from a configuration, so that a firewall is opened for
// exactly what is used. Test takes the way that the agent's own HTTP client takes: the same proxy rules, Basic
// sign-in at the proxy, and trust in the vault's authority alone.
//
// It promises: the first hop that fails is named with what to do about it;
// everything ends within its deadline or as soon as the context does, and leaves no connection open; and
// no password, signature or query is in any result or error.
package reach

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/dr"
)

const opEndpoints = "reach.Endpoints"

// Protocols of an Endpoint.
const (
	HTTPS = "https"
	HTTP  = "http" // of the machine's own metadata service, or a store on the own machine
	UDP   = "udp"
)

// Names of endpoints. Stores are StoreName, and StoreName-2 and so on where there are several.
const (
	VaultName    = "vault"
	StoreName    = "store"
	ManagerName  = "arm"
	EntraName    = "entra"
	DisksName    = "disks"
	ReplicaName  = "replica"
	MetadataName = "identity"
	TimeName     = "time"
)

// Endpoint is an address that has to be reached, from here to there.
type Endpoint struct {
	Name      string         `json:"name"`
	Host      string         `json:"host"` // a name, an address, or a pattern with *
	Port      int            `json:"port"`
	Protocol  string         `json:"protocol"`
	Direction string         `json:"direction"` // always "outbound"
	Roles     []dr.AgentRole `json:"roles"`     // whose agents need it
	Purpose   string         `json:"purpose"`
	Breaks    string         `json:"breaks"`   // what does not work without it
	Required  bool           `json:"required"` // false: there is another way, which Breaks tells

	// Trust, if set, are the only authorities for it: the vault's own.
	Trust *x509.CertPool `json:"-"`
	// Signers are organizations whose roots are expected; others are told as interception.
	Signers []string `json:"-"`
	// Azure: answers carry x-ms-… headers, and the clock counts as Azure's.
	Azure bool `json:"-"`
	// Direct: never by a proxy.
	Direct bool `json:"-"`
	path   string
}

// Pattern reports whether the host stands for many names, which can't be tested.
func (e Endpoint) Pattern() bool { return strings.Contains(e.Host, "*") }

// Address is host:port.
func (e Endpoint) Address() string { return net.JoinHostPort(e.Host, strconv.Itoa(e.Port)) }

// Site is what a recovery agent whose host is a resource group in Azure needs.
type Site struct {
	StorageAccount  string // for warm replicas; may be empty
	ManagedIdentity bool   // signs in by the machine's metadata service
}

// Config is what endpoints are computed from.
type Config struct {
	Cloud    string // one of CloudNames; "" = Public
	Custom   Cloud  // for the cloud Custom
	VaultURL string // https URL; "" = not known, and a placeholder is listed
	// Stores are addresses as the vault has them: azure://container?account=…&endpoint=…,
	// s3://bucket?endpoint=…&region=…&path-style=…, a directory (which is reached by the vault), or an https URL.
	Stores []string
	Roles  []dr.AgentRole // empty = source
	Azure  *Site          // nil: not a recovery site in Azure

	VaultTrust *x509.CertPool // the vault's authority, if it is known
}

// vaultPlaceholder stands for a vault that is not known.
const vaultPlaceholder = "VAULT"

// Endpoints lists what has to be reached with a configuration, the vault first. An
// address that can't be read is dr.KindInvalid; its text, which may hold a secret, is not repeated.
func Endpoints(c Config) ([]Endpoint, error) {
	cloud, err := c.cloud()
	if err != nil {
		return nil, err
	}
	roles := c.Roles
	if len(roles) == 0 {
		roles = []dr.AgentRole{dr.RoleSource}
	}
	var list []Endpoint
	vault, err := c.vault(roles)
	if err != nil {
		return nil, err
	}
	list = append(list, vault)
	for _, text := range c.Stores {
		e, local, err := store(text, cloud)
		if err != nil {
			return nil, err
		}
		if local || !slices.Contains(roles, dr.RoleSource) || e.Address() == vault.Address() {
			continue
		}
		if n := countPrefix(list, StoreName); n > 0 {
			e.Name = fmt.Sprintf("%s-%d", StoreName, n+1)
		}
		list = append(list, e)
	}
	if c.Azure != nil {
		site, err := c.Azure.endpoints(cloud)
		if err != nil {
			return nil, err
		}
		list = append(list, site...)
	}
	list = append(list, Endpoint{Name: TimeName, Host: "time.windows.com", Port: 123, Protocol: UDP, Roles: slices.Clone(roles), Purpose: "time, unless the site has a time server of its own",
		Breaks: "certificates and signed addresses are refused once the clock is wrong; any other time server does"})
	for i := range list {
		list[i].Direction = "outbound"
	}
	return list, nil
}

func countPrefix(list []Endpoint, prefix string) (n int) {
	for _, e := range list {
		if strings.HasPrefix(e.Name, prefix) {
			n++
		}
	}
	return n
}

func (c Config) vault(roles []dr.AgentRole) (Endpoint, error) {
	e := Endpoint{Name: VaultName, Host: vaultPlaceholder, Port: 443, Protocol: HTTPS, Roles: slices.Clone(roles), Required: true, Trust: c.VaultTrust,
		Purpose: "registration, commands, state, signed addresses; recovery points are read through it",
		Breaks:  "no new recovery points, no failover from the vault; what runs goes on, and what was captured is kept"}
	if c.VaultURL == "" {
		return e, nil
	}
	u, err := url.Parse(c.VaultURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return e, dr.Errorf(dr.KindInvalid, opEndpoints, "the vault's address is no URL such as https://vault.example.org:8443, without user and password")
	}
	e.Host, e.Port, err = hostPort(u)
	return e, err
}

func hostPort(u *url.URL) (string, int, error) {
	host := strings.ToLower(u.Hostname())
	port := 443
	if u.Scheme == "http" {
		port = 80
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", 0, dr.Errorf(dr.KindInvalid, opEndpoints, "the address of %s has no port that exists", host)
		}
		port = int(n)
	}
	if host == "" || strings.ContainsAny(host, " /\\@") {
		return "", 0, dr.Errorf(dr.KindInvalid, opEndpoints, "an address has no host")
	}
	return host, port, nil
}

// fromHost makes an endpoint of "host" or "host:port".
func fromHost(e Endpoint, host string) (Endpoint, error) {
	u, err := url.Parse("https://" + host)
	if err != nil || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" {
		return e, dr.Errorf(dr.KindInvalid, opEndpoints, "the address of %s is no host or host:port", e.Name)
	}
	e.Host, e.Port, err = hostPort(u)
	e.Protocol = HTTPS
	return e, err
}

// store makes the endpoint of a store's address; local, if hosts reach it through the vault only.
func store(text string, cloud Cloud) (e Endpoint, local bool, err error) {
	e = Endpoint{Name: StoreName, Protocol: HTTPS, Roles: []dr.AgentRole{dr.RoleSource}, Required: true,
		Purpose: "replicated data, written through signed addresses",
		Breaks:  "nothing can be replicated; changes gather in the host's spool until it is full, then VMs are resynchronized"}
	bad := func(form string) error {
		return dr.Errorf(dr.KindInvalid, opEndpoints, "the store's address is not of the form %s, without key, signature and password", form)
	}
	scheme, _, isURL := strings.Cut(text, "://")
	if scheme = strings.ToLower(scheme); !isURL || scheme == "file" {
		return e, true, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.Host == "" {
		return e, false, bad("azure://container?account=NAME, s3://bucket?endpoint=URL or https://host")
	}
	q := u.Query()
	endpoint := q.Get("endpoint")
	switch scheme {
	case "azure":
		account := q.Get("account")
		if q.Get("auth") == "emulator" && endpoint == "" {
			endpoint = "http://127.0.0.1:10000"
		}
		if account == "" && endpoint == "" {
			return e, false, bad("azure://container?account=NAME")
		}
		e.Azure = true
		if endpoint == "" {
			e.Signers = cloud.Signers
			e, err = fromHost(e, cloud.blob(account))
			return e, false, err
		}
	case "s3":
		if endpoint == "" {
			return amazon(e, u.Hostname(), q)
		}
	case "https", "http":
		endpoint = u.Scheme + "://" + u.Host
	default:
		return e, false, dr.Errorf(dr.KindInvalid, opEndpoints, "there are no stores of the kind %.20q", scheme)
	}
	at, err := url.Parse(endpoint)
	if err != nil || at.Scheme != "https" && at.Scheme != "http" || at.User != nil {
		return e, false, bad("endpoint=https://host:port")
	}
	if at.Scheme == "http" {
		e.Protocol = HTTP
	}
	e.Host, e.Port, err = hostPort(at)
	if e.Azure && officialBlob(e.Host) {
		e.Signers = azureSigners[:]
	}
	if err == nil && scheme == "s3" && q.Get("path-style") != "true" && net.ParseIP(e.Host) == nil && e.Host != "localhost" {
		e.Host = strings.ToLower(u.Hostname()) + "." + e.Host // virtual-hosted style
	}
	return e, false, err
}

// amazonSigners own the roots that Amazon Trust Services names for AWS, and the older ones.
var amazonSigners = [...]string{"Amazon", "Starfield", "DigiCert", "Baltimore"}

// amazon is the endpoint of a bucket at AWS.
func amazon(e Endpoint, bucket string, q url.Values) (Endpoint, bool, error) {
	region, suffix := q.Get("region"), "amazonaws.com"
	if strings.HasPrefix(region, "cn-") {
		suffix += ".cn"
	}
	if region == "" {
		region = "*"
	}
	host := "s3." + region + "." + suffix
	if q.Get("path-style") != "true" {
		host = strings.ToLower(bucket) + "." + host
	}
	e.Host, e.Port, e.Signers = host, 443, amazonSigners[:]
	return e, false, nil
}

// officialBlob reports whether a host is a storage account's of a built-in cloud.
func officialBlob(host string) bool {
	for _, c := range Clouds() {
		if strings.HasSuffix(host, "."+c.BlobSuffix) {
			return true
		}
	}
	return strings.HasSuffix(host, ".blob.storage.azure.net")
}

// endpoints are those of a recovery site in Azure.
func (s *Site) endpoints(cloud Cloud) ([]Endpoint, error) {
	base := Endpoint{Roles: []dr.AgentRole{dr.RoleRecovery}, Required: true, Azure: true, Signers: cloud.Signers}
	row := func(name, host, purpose, breaks string) (Endpoint, error) {
		e := base
		e.Name, e.Purpose, e.Breaks = name, purpose, breaks
		return fromHost(e, host)
	}
	var list []Endpoint
	for _, r := range [][4]string{
		{ManagerName, cloud.ResourceManager, "makes and removes VMs, disks and network interfaces", "no failover to Azure, no test failover, no clean-up"},
		{EntraName, cloud.Authority, "sign-in to Azure", "nothing can be done in Azure: no failover there, no warm replica"},
	} {
		e, err := row(r[0], r[1], r[2], r[3])
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	for _, p := range cloud.DiskHosts {
		e, err := row(DisksName, p, "managed disks are filled and read here (names like md-….blob.…), and boot diagnostics fetched", "no failover to Azure without a warm replica; no screenshot as proof of a drill")
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	if s.StorageAccount != "" {
		e, err := row(ReplicaName, cloud.blob(s.StorageAccount), "page blobs of warm replicas", "warm replicas fall behind; a failover copies the disks instead and takes longer")
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	if s.ManagedIdentity {
		list = append(list, Endpoint{Name: MetadataName, Host: "169.254.169.254", Port: 80, Protocol: HTTP, Direct: true, Roles: base.Roles, Required: true, path: "/metadata/instance?api-version=2021-02-01",
			Purpose: "token of the managed identity, from the machine's own metadata service, never by a proxy", Breaks: "sign-in with the managed identity"})
	}
	return list, nil
}
