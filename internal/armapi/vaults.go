package armapi

import (
	"crypto/sha1" //nolint:gosec // a thumbprint is SHA-1 by definition; nothing is protected by it
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// Names of the settings that this package keeps with the vault. Their values
// are JSON of the wire structs, version in the name.
const (
	settingTags         = "arm.v1.vaultTags"
	settingExtendedInfo = "arm.v1.extendedInformation"
)

// setting reads a document; false if it was never written.
func (c *call) setting(name string, v any) (bool, error) {
	s, err := c.svc().Setting(c.ctx(), name)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return false, err
	}
	if err != nil || s == "" {
		return false, nil
	}
	if err := json.Unmarshal([]byte(s), v); err != nil {
		return false, dr.Errorf(dr.KindCorrupt, "armapi.setting", "setting %s is not JSON", name)
	}
	return true, nil
}

func (c *call) setSetting(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return dr.Errorf(dr.KindInternal, "armapi.setting", "encode setting %s: %w", name, err)
	}
	return c.svc().SetSetting(c.ctx(), name, string(b))
}

func (c *call) vaultResource() (armwire.Vault, error) {
	tags := map[string]string{}
	if _, err := c.setting(settingTags, &tags); err != nil {
		return armwire.Vault{}, err
	}
	return armwire.Vault{
		ID: c.vaultID().String(), Name: c.ident.Name, Type: armwire.ResourceType(), Location: c.ident.Location, Tags: tags,
		SKU: armwire.SKU{Name: "RS0", Tier: "Standard"},
		Properties: armwire.VaultProperties{ProvisioningState: "Succeeded", PublicNetworkAccess: "Enabled",
			PrivateEndpointStateForBackup: "None", PrivateEndpointStateForSiteRecovery: "None"},
	}, nil
}

func getVault(c *call) (reply, error) {
	v, err := c.vaultResource()
	if err != nil {
		return reply{}, err
	}
	return ok(v)
}

// putVault "creates" the one vault, which exists; only its tags can change.
func putVault(c *call) (reply, error) {
	var in struct {
		Tags map[string]string `json:"tags"`
	}
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	if in.Tags != nil || c.r.Method == http.MethodPut {
		if in.Tags == nil {
			in.Tags = map[string]string{}
		}
		if err := c.setSetting(settingTags, in.Tags); err != nil {
			return reply{}, err
		}
	}
	return getVault(c)
}

// credential issues a registration key for a site and wraps it.
func (c *call) credential(fabric string, oneTime bool, validity time.Duration) (armwire.KeyFile, vault.RegistrationKey, error) {
	key, err := c.svc().IssueKey(c.ctx(), vault.KeyRequest{Fabric: fabric, OneTime: oneTime, Validity: validity, By: c.who.Name})
	if err != nil {
		return armwire.KeyFile{}, key, err
	}
	return armwire.KeyFile{
		SubscriptionID: c.ident.SubscriptionID, ResourceGroup: c.ident.ResourceGroup, VaultName: c.ident.Name, ResourceID: c.ident.ResourceID,
		Location: c.ident.Location, TenantID: c.ident.TenantID, SiteID: string(key.Fabric), SiteName: fabric,
		Credential: armwire.Credential{
			VaultURL: firstNonEmpty(key.VaultURL, c.base), CAPin: key.CAPin, KeyID: key.ID, Secret: key.Secret, Fabric: string(key.Fabric), Expires: key.Expires.UTC(),
		},
	}, key, nil
}

// validity checks a key's life time in hours.
func validity(hours int) (time.Duration, error) {
	if hours < 0 || hours > 5*24 {
		return 0, dr.Errorf(dr.KindInvalid, "armapi.key", "a registration key is valid for at most 120 hours, not %d", hours)
	}
	return time.Duration(hours) * time.Hour, nil
}

// putCertificate answers the request with which clients get what they write
// into a key file: the certificate in the answer is a registration key.
func putCertificate(c *call) (reply, error) {
	var in armwire.CertificateInput
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	life, err := validity(in.CertificateCreateOptions.ValidityInHours)
	if err != nil {
		return reply{}, err
	}
	site := in.Properties.Fabric
	if site == "" {
		fs, err := c.dir.allFabrics()
		if err != nil {
			return reply{}, err
		}
		if len(fs) != 1 {
			return reply{}, dr.Errorf(dr.KindInvalid, "armapi.certificate", "the vault has %d sites and the request does not say for which one the key is", len(fs)).
				WithHint("Add properties.holdfastFabric with the site's name, or POST /holdfast/v1/fabrics/{name}/registrationKeys.")
		}
		site = fs[0].Name
	}
	file, key, err := c.credential(site, false, life)
	if err != nil {
		return reply{}, err
	}
	cert := file.Credential.Bytes()
	sum := sha1.Sum(cert) //nolint:gosec // see the import
	name := c.name(tCerts)
	return ok(armwire.Resource[armwire.CertificateDetails]{
		ID: c.vaultID().ID(tCerts, name), Name: name, Type: armwire.ResourceType(tCerts, name),
		Properties: armwire.CertificateDetails{
			AuthType: "AzureActiveDirectory", AADAuthority: c.base, AADTenantID: c.ident.TenantID, AADAudience: c.base,
			ServicePrincipalClientID: key.ID, ServicePrincipalObjectID: key.ID, AzureManagementEndpointAudience: c.base,
			Certificate: cert, FriendlyName: name, Issuer: "CN=" + c.ident.Name, ResourceID: c.ident.ResourceID, Subject: name,
			Thumbprint: strings.ToUpper(hex.EncodeToString(sum[:])), ValidFrom: armwire.Time(key.Created), ValidTo: armwire.Time(key.Expires),
		},
	})
}

func extendedInfo(c *call, p armwire.ExtendedInfo) armwire.Resource[armwire.ExtendedInfo] {
	const name = "vaultExtendedInfo"
	return armwire.Resource[armwire.ExtendedInfo]{ID: c.vaultID().ID(tExtended, name), Name: name, Type: armwire.ResourceType(tExtended, name), Properties: p}
}

func getExtendedInfo(c *call) (reply, error) {
	var p armwire.ExtendedInfo
	found, err := c.setting(settingExtendedInfo, &p)
	if err != nil {
		return reply{}, err
	}
	if !found {
		return reply{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "the vault has no extended information yet; PUT it")
	}
	return ok(extendedInfo(c, p))
}

func putExtendedInfo(c *call) (reply, error) {
	var in armwire.Input[armwire.ExtendedInfo]
	if c.r.Method == http.MethodPatch {
		if _, err := c.setting(settingExtendedInfo, &in.Properties); err != nil {
			return reply{}, err
		}
	}
	if err := c.body(&in); err != nil {
		return reply{}, err
	}
	if err := c.setSetting(settingExtendedInfo, in.Properties); err != nil {
		return reply{}, err
	}
	return ok(extendedInfo(c, in.Properties))
}

// census is what the usage and health answers count.
type census struct {
	fabrics       []dr.Fabric
	providers     []dr.Provider
	items         []dr.ProtectedItem
	jobs          armwire.JobsSummary
	unhealthy     int32
	disconnected  int32
	itemsByHealth map[string]int32
}

func (c *call) census() (census, error) {
	var n census
	var err1, err2, err3 error
	n.fabrics, err1 = c.dir.allFabrics()
	n.providers, err2 = c.dir.allProviders()
	n.items, err3 = c.svc().Items(c.ctx(), "")
	if err := errors.Join(err1, err2, err3); err != nil {
		return n, firstError(err1, err2, err3)
	}
	jobs, err := c.svc().Jobs(c.ctx(), vault.JobFilter{States: []dr.JobState{dr.JobInProgress, dr.JobWaiting, dr.JobFailed, dr.JobNotStarted},
		Since: c.now().Add(-24 * time.Hour), Limit: maxJobs})
	if err != nil {
		return n, err
	}
	for _, j := range jobs {
		switch {
		case j.State == dr.JobFailed:
			n.jobs.FailedJobs++
		case j.State == dr.JobWaiting && j.CanResume:
			n.jobs.SuspendedJobs++
		default:
			n.jobs.InProgressJobs++
		}
	}
	n.itemsByHealth = map[string]int32{}
	for _, it := range n.items {
		n.itemsByHealth[health(it.Health)]++
		if it.Health != dr.HealthNormal {
			n.unhealthy++
		}
	}
	for _, p := range n.providers {
		if !c.connected(p) {
			n.disconnected++
		}
	}
	return n, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func getUsages(c *call) (reply, error) {
	n, err := c.census()
	if err != nil {
		return reply{}, err
	}
	usage := func(name, text string, v int) armwire.Usage {
		return armwire.Usage{Unit: "Count", CurrentValue: int64(v), Limit: -1, Name: armwire.UsageName{Value: name, LocalizedValue: text}}
	}
	return ok(armwire.List[armwire.Usage]{Value: []armwire.Usage{
		usage("ReplicationProtectedItems", "Protected items", len(n.items)),
		usage("ReplicationFabrics", "Sites", len(n.fabrics)),
		usage("ReplicationRecoveryServicesProviders", "Registered hosts", len(n.providers)),
	}})
}

func getReplicationUsages(c *call) (reply, error) {
	n, err := c.census()
	if err != nil {
		return reply{}, err
	}
	return ok(armwire.List[armwire.ReplicationUsage]{Value: []armwire.ReplicationUsage{{
		ProtectedItemCount: int32(len(n.items)), RegisteredServersCount: int32(len(n.providers)), JobsSummary: n.jobs,
		MonitoringSummary: armwire.MonitoringSummary{UnhealthyVMCount: n.unhealthy, UnhealthyProviderCount: n.disconnected,
			SupportedProviderCount: int32(len(n.providers))},
	}}})
}

func getVaultHealth(c *call) (reply, error) {
	n, err := c.census()
	if err != nil {
		return reply{}, err
	}
	issues := map[dr.Code]*armwire.HealthIssue{}
	order := []dr.Code{}
	for _, it := range n.items {
		for _, e := range it.HealthErrors {
			is := issues[e.Code]
			if is == nil {
				entry, _ := dr.Lookup(e.Code)
				severity := "Warning"
				if e.Severity == dr.HealthCritical {
					severity = "Error"
				}
				is = &armwire.HealthIssue{SummaryCode: string(e.Code), Category: "Replication", Severity: severity,
					SummaryMessage: firstNonEmpty(entry.Title, e.Message), AffectedResourceType: tItems}
				issues[e.Code], order = is, append(order, e.Code)
			}
			is.AffectedResourceCorrelationIDs = append(is.AffectedResourceCorrelationIDs, it.Name)
		}
	}
	summary := func(total int, by map[string]int32) armwire.HealthSummary {
		return armwire.HealthSummary{ResourceCount: int32(total), CategorizedResourceCounts: by, Issues: []armwire.HealthIssue{}}
	}
	v := armwire.VaultHealth{
		VaultErrors:          []armwire.HealthError{},
		ProtectedItemsHealth: summary(len(n.items), n.itemsByHealth),
		FabricsHealth:        summary(len(n.fabrics), map[string]int32{}),
		ContainersHealth:     summary(len(n.fabrics), map[string]int32{}),
	}
	for _, code := range order {
		v.ProtectedItemsHealth.Issues = append(v.ProtectedItemsHealth.Issues, *issues[code])
	}
	return ok(armwire.Resource[armwire.VaultHealth]{ID: c.vaultID().ID(tHealth, "default"), Name: "default", Type: armwire.ResourceType(tHealth, ""), Properties: v})
}
