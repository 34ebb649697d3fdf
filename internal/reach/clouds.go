package reach

import (
	"slices"
	"strings"

	"holdfast/internal/dr"
)

// Names of clouds, as the Azure SDK writes them.
const (
	Public     = "AzurePublic"
	Government = "AzureGovernment"
	China      = "AzureChina"
	Custom     = "custom" // Azure Stack Hub and the simulator: Config.Custom has the addresses
)

// Cloud holds the addresses of one Azure cloud. Those of the built-in clouds are
// of Microsoft's published lists of endpoints; the SDK's cloud package has the same authorities and managers.
type Cloud struct {
	Name            string
	ResourceManager string // host, or host:port
	Authority       string // host, or host:port
	// BlobSuffix is what follows an account's name, such as blob.core.windows.net; in
	// a custom cloud also an address with {account} in it, or empty if no account is used.
	BlobSuffix string
	// DiskHosts are patterns of the addresses that "Disks - Grant Access" of the
	// Azure REST API gives, and of managed boot diagnostics. Accounts in DNS zones
	// (ACCOUNT.zNN.blob.storage.azure.net) are documented for the public cloud only.
	DiskHosts []string
	// Signers are organizations of the roots from which this cloud's certificates
	// come ("Azure Certificate Authority details"); empty = anyone that the machine trusts.
	Signers []string
}

// azureSigners own the roots that Microsoft names for Azure.
var azureSigners = [...]string{"DigiCert", "Microsoft Corporation", "Baltimore", "D-Trust", "Entrust"}

// Clouds are the built-in clouds.
func Clouds() []Cloud {
	s := azureSigners[:]
	return []Cloud{
		{Public, "management.azure.com", "login.microsoftonline.com", "blob.core.windows.net", []string{"*.blob.storage.azure.net", "md-*.blob.core.windows.net"}, s},
		{Government, "management.usgovcloudapi.net", "login.microsoftonline.us", "blob.core.usgovcloudapi.net", []string{"md-*.blob.core.usgovcloudapi.net"}, s},
		{China, "management.chinacloudapi.cn", "login.chinacloudapi.cn", "blob.core.chinacloudapi.cn", []string{"md-*.blob.core.chinacloudapi.cn"}, s},
	}
}

// CloudNames are the values of Config.Cloud.
func CloudNames() []string {
	var names []string
	for _, c := range Clouds() {
		names = append(names, c.Name)
	}
	return append(names, Custom)
}

// cloud finds the cloud of a configuration; no name means the public one.
func (c Config) cloud() (Cloud, error) {
	name := c.Cloud
	if name == "" {
		name = Public
	}
	if strings.EqualFold(name, Custom) {
		x := c.Custom
		for _, f := range [][2]string{{"resource manager", x.ResourceManager}, {"authority", x.Authority}} {
			if f[1] == "" {
				return x, dr.Errorf(dr.KindInvalid, opEndpoints, "the custom cloud has no address of its %s", f[0])
			}
		}
		if x.DiskHosts == nil && x.BlobSuffix != "" {
			x.DiskHosts = []string{x.blob("*")}
		}
		x.Name = Custom
		return x, nil
	}
	all := Clouds()
	i := slices.IndexFunc(all, func(k Cloud) bool {
		return strings.EqualFold(k.Name, name) || strings.EqualFold(strings.TrimPrefix(k.Name, "Azure"), name)
	})
	if i < 0 {
		return Cloud{}, dr.Errorf(dr.KindInvalid, opEndpoints, "there is no cloud %q", name).WithHint("Known are %s.", strings.Join(CloudNames(), ", "))
	}
	return all[i], nil
}

// blob is the host of an account, with a port if there is one.
func (c Cloud) blob(account string) string {
	text := c.BlobSuffix
	if text == "" {
		return "" // refused as an address
	}
	if !strings.Contains(text, accountMark) {
		return account + "." + text
	}
	if _, rest, ok := strings.Cut(text, "://"); ok {
		text = rest
	}
	host, _, _ := strings.Cut(text, "/") // the account may be in the path
	return strings.ReplaceAll(host, accountMark, account)
}

// accountMark stands for an account's name.
const accountMark = "{account}"

// Counterpart is a row of the list that Azure Site Recovery's architecture wants
// open, and what takes its place here.
type Counterpart struct {
	Row        string `json:"row"`
	Commercial string `json:"commercial"`
	Government string `json:"government"`
	Purpose    string `json:"purpose"`
	Here       string `json:"here"` // what Holdfast uses for it
}

// SiteRecovery is the list of "Hyper-V to Azure disaster recovery architecture"
// (outbound URLs, commercial and government), for whoever has to change a firewall that was opened for it.
func SiteRecovery() []Counterpart {
	return []Counterpart{
		{"storage", "*.blob.core.windows.net", "*.blob.core.usgovcloudapi.net", "replicated data", "the one storage account of the store, by its name"},
		{"identity", "login.microsoftonline.com", "login.microsoftonline.us", "sign-in to the service", "only where a VM comes up in Azure; hosts sign in to the vault"},
		{"replication", "*.hypervrecoverymanager.windowsazure.com", "*.hypervrecoverymanager.windowsazure.com", "replication management", "the vault"},
		{"service bus", "*.servicebus.windows.net", "*.servicebus.usgovcloudapi.net", "commands and monitoring", "the vault, over the same connection"},
	}
}
