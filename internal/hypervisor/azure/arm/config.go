// Package arm is the session with Azure Resource Manager that the Azure adapter
// works through: its configuration file, the clouds, signing in, calls that last
// long, waiting where Azure asks to wait, and the translation of what Azure and
// Entra ID refuse into the catalogue. It also chooses VM
// sizes. Package arm/doctor is the step-by-step check of a site.
//
// Promises: a call ends with its context or its own deadline; a request whose
// answer was lost is settled by reading what is there; "does not exist" is said
// only when Azure said so; no token, secret or signature gets into a log line or
// an error. Resources that Holdfast makes carry the owner tag, and nothing
// without it is ever changed or deleted here.
//
// Sources: Azure REST reference (Compute 2025-04-01, Network 2024-05-01,
// Resources 2021-04-01, Authorization 2022-04-01), Microsoft Entra ID error
// codes, and the Azure SDK for Go.
package arm

import (
	"bytes"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"

	"holdfast/internal/dr"
)

// ConfigVersion is the version of the configuration file that this program reads.
const ConfigVersion = 1

// The clouds of Config.Cloud.
const (
	AzurePublic     = "AzurePublic"
	AzureGovernment = "AzureGovernment"
	AzureChina      = "AzureChina"
	CustomCloud     = "custom"
)

// The kinds of Credential.
const (
	CredentialDefault     = "default"     // the SDK's search: environment, workload identity, managed identity, Azure CLI
	CredentialManaged     = "managed"     // the managed identity of the machine
	CredentialWorkload    = "workload"    // a federated token in a file (Kubernetes)
	CredentialSecret      = "secret"      // an application's client secret
	CredentialCertificate = "certificate" // an application's certificate with key
)

// The variables of the environment in which secrets are looked for where no file is named.
const (
	SecretVariable      = "AZURE_CLIENT_SECRET"
	CertificateVariable = "AZURE_CLIENT_CERTIFICATE_PATH"
	PasswordVariable    = "AZURE_CLIENT_CERTIFICATE_PASSWORD"
	TokenFileVariable   = "AZURE_FEDERATED_TOKEN_FILE"
	StorageKeyVariable  = "AZURE_STORAGE_KEY"
)

// Credential says how the site proves who it is. Secrets are read from files or
// from the environment and are never part of the configuration.
type Credential struct {
	Kind     string `json:"kind,omitempty"`     // one of the constants; "" = default
	ClientID string `json:"clientId,omitempty"` // of the application, or of a user-assigned managed identity

	SecretFile      string `json:"secretFile,omitempty"`      // the client secret, one line; else AZURE_CLIENT_SECRET
	CertificateFile string `json:"certificateFile,omitempty"` // PEM or PKCS #12 with certificate and key; else AZURE_CLIENT_CERTIFICATE_PATH
	PasswordFile    string `json:"passwordFile,omitempty"`    // the password of a PKCS #12 file; else AZURE_CLIENT_CERTIFICATE_PASSWORD
	SendChain       bool   `json:"sendChain,omitempty"`       // send the certificate's chain: subject name and issuer authentication
	TokenFile       string `json:"tokenFile,omitempty"`       // the federated token; else AZURE_FEDERATED_TOKEN_FILE
}

// Config is the configuration file of an Azure recovery site: JSON, version 1.
// Fields that it does not know are refused by name.
type Config struct {
	Version int    `json:"version"`         // 1
	Cloud   string `json:"cloud,omitempty"` // "" = AzurePublic

	// Only with the custom cloud (Azure Stack Hub, a simulator): where Entra ID and
	// Resource Manager are, what tokens are for (""= ResourceManager), and where
	// accounts' blobs are: a suffix ("blob.local.example"), or an address with
	// {account} in it. CAFile adds certificate authorities (PEM).
	Authority       string `json:"authority,omitempty"`
	ResourceManager string `json:"resourceManager,omitempty"`
	Audience        string `json:"audience,omitempty"`
	StorageSuffix   string `json:"storageSuffix,omitempty"`
	CAFile          string `json:"caFile,omitempty"`

	Tenant        string     `json:"tenant,omitempty"`   // directory (tenant) id or domain; may be empty for default and managed
	Subscription  string     `json:"subscription"`       // subscription id
	ResourceGroup string     `json:"resourceGroup"`      // where everything is made
	Location      string     `json:"location,omitempty"` // "" = that of the resource group
	Credential    Credential `json:"credential,omitzero"`

	// Network is the default virtual network of recovery VMs: an id, a name in
	// ResourceGroup, or "group/name". Subnet is a name in it; "" leaves the choice
	// to the rule of subnets.
	Network string `json:"network,omitempty"`
	Subnet  string `json:"subnet,omitempty"`
	// TestNetwork is the virtual network of test failovers, written as Network is;
	// "" = an isolated one is made for each test.
	TestNetwork string `json:"testNetwork,omitempty"`

	DiskType        string            `json:"diskType,omitempty"`        // of managed disks; "" = StandardSSD_LRS
	Size            string            `json:"size,omitempty"`            // of VMs; "" = the smallest that fits
	AvailabilitySet string            `json:"availabilitySet,omitempty"` // id or name; not together with Zone
	Zone            string            `json:"zone,omitempty"`            // "1", "2" or "3"
	LicenseType     string            `json:"licenseType,omitempty"`     // e.g. Windows_Server, RHEL_BYOS
	PublicIP        bool              `json:"publicIp,omitempty"`        // give the first adapter a public address
	SecurityGroup   string            `json:"securityGroup,omitempty"`   // id or name, for every adapter
	Tags            map[string]string `json:"tags,omitempty"`            // on everything that is made

	// Where warm replicas are kept. StorageKeyFile holds the account's shared key;
	// "" = AZURE_STORAGE_KEY if that is set, else Entra ID.
	StorageAccount string `json:"storageAccount,omitempty"`
	Container      string `json:"container,omitempty"`
	StorageKeyFile string `json:"storageKeyFile,omitempty"`
}

// DefaultDiskType is the type of managed disks where nothing is said.
const DefaultDiskType = "StandardSSD_LRS"

// DiskTypes are the managed disk types that recovery VMs can boot from.
func DiskTypes() []string {
	return []string{"Standard_LRS", "StandardSSD_LRS", "StandardSSD_ZRS", "Premium_LRS", "Premium_ZRS"}
}

const maxConfig = 1 << 20

// Load reads and checks a configuration file. Relative paths in it are relative to
// the file's directory.
func Load(path string) (Config, error) {
	const op = "azure.Load"
	f, err := os.Open(path)
	if err != nil {
		return Config{}, configError(op, "the Azure configuration %s can't be opened: %w", path, err)
	}
	defer f.Close() // read only
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, configError(op, "the Azure configuration %s can't be read: %w", path, err)
	}
	c, err := Parse(text)
	if err != nil {
		return Config{}, configError(op, "the Azure configuration %s can't be used: %w", path, err)
	}
	dir := filepath.Dir(path)
	for _, p := range []*string{&c.CAFile, &c.StorageKeyFile, &c.Credential.SecretFile, &c.Credential.CertificateFile, &c.Credential.PasswordFile, &c.Credential.TokenFile} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// Parse reads and checks the text of a configuration file.
func Parse(text []byte) (Config, error) {
	const op = "azure.Parse"
	var c Config
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, configError(op, "it is not the JSON that is expected: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Config{}, configError(op, "something follows the JSON object")
	}
	return c, c.Validate()
}

func configError(op, format string, args ...any) *dr.Error {
	return dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, op, format, args...)
}

var (
	uuidForm    = regexp.MustCompile(`^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$`)
	tenantForm  = regexp.MustCompile(`^[0-9A-Za-z.-]{1,253}$`)
	groupForm   = regexp.MustCompile(`^[\p{L}\p{N}_().-]{1,90}$`)
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?$`)
	regionForm  = regexp.MustCompile(`^[a-z0-9]{2,40}$`)
	sizeForm    = regexp.MustCompile(`^[A-Za-z0-9_-]{3,60}$`)
	accountForm = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	boxForm     = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)
	suffixForm  = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	badTagName  = `<>%&\?/`
)

// Limits of tags (Azure Resource Manager, "Use tags").
const (
	maxTags     = 50
	ownTags     = 6 // what Holdfast adds
	maxTagName  = 512
	maxTagValue = 256
)

// Validate says what is wrong with the configuration, naming the field. It opens
// no file and asks nobody.
func (c Config) Validate() error {
	const op = "azure.Validate"
	fail := func(field, format string, args ...any) error { return configError(op, field+" "+format, args...) }
	if c.Version != ConfigVersion {
		return fail("version", "is %d; this program reads version %d", c.Version, ConfigVersion)
	}
	if err := c.validateCloud(fail); err != nil {
		return err
	}
	if err := c.validateCredential(fail); err != nil {
		return err
	}
	for _, f := range []struct {
		name, value string
		form        *regexp.Regexp
		need        bool
		what        string
	}{
		{"tenant", c.Tenant, tenantForm, false, "a directory id or domain"},
		{"subscription", c.Subscription, uuidForm, true, "a subscription id (a GUID)"},
		{"resourceGroup", c.ResourceGroup, groupForm, true, "the name of a resource group"},
		{"location", c.Location, regionForm, false, "a region as Azure writes it, such as westeurope"},
		{"subnet", c.Subnet, nameForm, false, "the name of a subnet"},
		{"size", c.Size, sizeForm, false, "a VM size, such as Standard_D2s_v5"},
		{"storageAccount", c.StorageAccount, accountForm, false, "a storage account's name"},
		{"container", c.Container, boxForm, false, "a container's name"},
	} {
		switch {
		case f.value == "" && f.need:
			return fail(f.name, "is missing; it is %s", f.what)
		case f.value != "" && !f.form.MatchString(f.value):
			return fail(f.name, "%.100q is not %s", f.value, f.what)
		}
	}
	if strings.HasSuffix(c.ResourceGroup, ".") {
		return fail("resourceGroup", "%.100q ends in a dot", c.ResourceGroup)
	}
	return c.validatePlace(fail)
}

type failer func(field, format string, args ...any) error

func (c Config) validateCloud(fail failer) error {
	custom := []struct{ name, value string }{{"authority", c.Authority}, {"resourceManager", c.ResourceManager}, {"audience", c.Audience}, {"storageSuffix", c.StorageSuffix}}
	switch c.Cloud {
	case "", AzurePublic, AzureGovernment, AzureChina:
		for _, f := range custom {
			if f.value != "" {
				return fail(f.name, "is for the custom cloud only; set cloud to %q or leave it out", CustomCloud)
			}
		}
		return nil
	case CustomCloud:
	default:
		return fail("cloud", "%.40q is none of %s, %s, %s and %s", c.Cloud, AzurePublic, AzureGovernment, AzureChina, CustomCloud)
	}
	for _, f := range custom[:2] {
		u, err := url.Parse(f.value)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return fail(f.name, "must be an https:// address for the custom cloud")
		}
	}
	if s := c.StorageSuffix; strings.Contains(s, "{account}") {
		u, err := url.Parse(strings.ReplaceAll(s, "{account}", "account"))
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			return fail("storageSuffix", "must be an https:// address if it has {account} in it")
		}
	} else if s != "" && !suffixForm.MatchString(s) {
		return fail("storageSuffix", "%.100q is neither a domain nor an address with {account} in it", s)
	}
	if c.StorageAccount != "" && c.StorageSuffix == "" {
		return fail("storageSuffix", "is missing, and storageAccount is given")
	}
	return nil
}

func (c Config) validateCredential(fail failer) error {
	k := c.Credential
	needs := map[string]bool{}
	switch k.Kind {
	case "", CredentialDefault, CredentialManaged:
	case CredentialWorkload, CredentialSecret, CredentialCertificate:
		needs["tenant"], needs["credential.clientId"] = true, true
	default:
		return fail("credential.kind", "%.40q is none of %s", k.Kind,
			strings.Join([]string{CredentialDefault, CredentialManaged, CredentialWorkload, CredentialSecret, CredentialCertificate}, ", "))
	}
	if needs["tenant"] && c.Tenant == "" {
		return fail("tenant", "is missing; credential.kind %q needs it", k.Kind)
	}
	if needs["credential.clientId"] && k.ClientID == "" {
		return fail("credential.clientId", "is missing; credential.kind %q needs it", k.Kind)
	}
	if k.ClientID != "" && !uuidForm.MatchString(k.ClientID) {
		return fail("credential.clientId", "%.60q is not an application (client) id", k.ClientID)
	}
	for _, f := range []struct {
		name, value, kind string
	}{
		{"credential.secretFile", k.SecretFile, CredentialSecret}, {"credential.certificateFile", k.CertificateFile, CredentialCertificate},
		{"credential.passwordFile", k.PasswordFile, CredentialCertificate}, {"credential.tokenFile", k.TokenFile, CredentialWorkload},
	} {
		if f.value != "" && k.Kind != f.kind {
			return fail(f.name, "is for credential.kind %q, which is %q", f.kind, k.Kind)
		}
	}
	return nil
}

// validatePlace checks where VMs are put and what they carry.
func (c Config) validatePlace(fail failer) error {
	for _, f := range []struct{ name, value, kind string }{
		{"network", c.Network, TypeNetwork}, {"testNetwork", c.TestNetwork, TypeNetwork},
		{"securityGroup", c.SecurityGroup, TypeSecurityGroup}, {"availabilitySet", c.AvailabilitySet, TypeAvailabilitySet},
	} {
		if f.value == "" {
			continue
		}
		if _, err := c.Reference(f.kind, f.value); err != nil {
			return fail(f.name, "%.200q is neither a name, nor group/name, nor the id of a resource of type %s", f.value, f.kind)
		}
	}
	switch {
	case c.Subnet != "" && c.Network == "":
		return fail("subnet", "is given, and network is not")
	case c.AvailabilitySet != "" && c.Zone != "":
		return fail("zone", "and availabilitySet exclude each other in Azure")
	case c.Zone != "" && !slices.Contains([]string{"1", "2", "3"}, c.Zone):
		return fail("zone", "%.20q is none of 1, 2 and 3", c.Zone)
	case c.DiskType != "" && !slices.Contains(DiskTypes(), c.DiskType):
		return fail("diskType", "%.40q is none of %s", c.DiskType, strings.Join(DiskTypes(), ", "))
	case (c.StorageAccount == "") != (c.Container == ""):
		return fail("container", "and storageAccount belong together; one of them is missing")
	case c.StorageKeyFile != "" && c.StorageAccount == "":
		return fail("storageKeyFile", "is given, and storageAccount is not")
	case len(c.Tags) > maxTags-ownTags:
		return fail("tags", "are %d; Azure takes %d, and Holdfast needs %d of them", len(c.Tags), maxTags, ownTags)
	}
	for k, v := range c.Tags {
		if k == "" || len(k) > maxTagName || strings.ContainsAny(k, badTagName) || len(v) > maxTagValue {
			return fail("tags", "has %.60q, which Azure does not take: names of 1–%d bytes without %s, values up to %d bytes", k, maxTagName, badTagName, maxTagValue)
		}
		if strings.HasPrefix(strings.ToLower(k), tagPrefix) {
			return fail("tags", "has %.60q; names that begin with %q are Holdfast's own", k, tagPrefix)
		}
	}
	return nil
}

// Endpoints are the addresses of a cloud, https URLs without a slash at the end.
type Endpoints struct {
	Authority       string // Microsoft Entra ID
	ResourceManager string
	Audience        string // what tokens for ResourceManager are for
	StorageAudience string // what tokens for blobs are for
	storage         string // suffix or pattern of blob addresses
}

// Blob is the address of an account's blob service; "" if the cloud's is not known.
func (e Endpoints) Blob(account string) string {
	switch {
	case e.storage == "":
		return ""
	case strings.Contains(e.storage, "{account}"):
		return strings.TrimRight(strings.ReplaceAll(e.storage, "{account}", account), "/")
	}
	return "https://" + account + "." + e.storage
}

// Endpoints are the addresses of the configured cloud.
func (c Config) Endpoints() Endpoints {
	e := Endpoints{StorageAudience: "https://storage.azure.com"}
	switch c.Cloud {
	case CustomCloud:
		e.Authority, e.ResourceManager, e.Audience, e.storage = c.Authority, c.ResourceManager, c.Audience, c.StorageSuffix
		if e.Audience == "" {
			e.Audience = e.ResourceManager
		}
	case AzureGovernment:
		e.fill(cloud.AzureGovernment, "blob.core.usgovcloudapi.net")
	case AzureChina:
		e.fill(cloud.AzureChina, "blob.core.chinacloudapi.cn")
	default:
		e.fill(cloud.AzurePublic, "blob.core.windows.net")
	}
	e.Authority, e.ResourceManager, e.Audience = strings.TrimRight(e.Authority, "/"), strings.TrimRight(e.ResourceManager, "/"), strings.TrimRight(e.Audience, "/")
	return e
}

func (e *Endpoints) fill(c cloud.Configuration, storage string) {
	rm := c.Services[cloud.ResourceManager]
	e.Authority, e.ResourceManager, e.Audience, e.storage = c.ActiveDirectoryAuthorityHost, rm.Endpoint, rm.Audience, storage
}

// cloud is the SDK's description of the configured cloud.
func (c Config) cloud() cloud.Configuration {
	e := c.Endpoints()
	return cloud.Configuration{ActiveDirectoryAuthorityHost: e.Authority + "/",
		Services: map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {Endpoint: e.ResourceManager, Audience: e.Audience}}}
}
