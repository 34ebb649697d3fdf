package account

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armapi/site"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Names of the settings that this package keeps with the vault. Their values
// are JSON of the wire structs, version in the name.
const (
	settingTags         = "arm.v1.vaultTags"
	settingExtendedInfo = "arm.v1.extendedInformation"
)

// setting reads a document; false if it was never written.
func setting(c *route.Call, name string, v any) (bool, error) {
	s, err := c.Svc().Setting(c.Ctx(), name)
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

func setSetting(c *route.Call, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return dr.Errorf(dr.KindInternal, "armapi.setting", "encode setting %s: %w", name, err)
	}
	return c.Svc().SetSetting(c.Ctx(), name, string(b))
}

func vaultResource(c *route.Call) (armwire.Vault, error) {
	tags := map[string]string{}
	if _, err := setting(c, settingTags, &tags); err != nil {
		return armwire.Vault{}, err
	}
	return armwire.Vault{
		ID: c.VaultID.String(), Name: c.Ident.Name, Type: armwire.ResourceType(), Location: c.Ident.Location, Tags: tags,
		SKU: armwire.SKU{Name: "RS0", Tier: "Standard"},
		Properties: armwire.VaultProperties{ProvisioningState: "Succeeded", PublicNetworkAccess: "Enabled",
			PrivateEndpointStateForBackup: "None", PrivateEndpointStateForSiteRecovery: "None"},
	}, nil
}

func getVault(c *route.Call) (route.Reply, error) {
	v, err := vaultResource(c)
	if err != nil {
		return route.Reply{}, err
	}
	return route.OK(v)
}

// putVault "creates" the one vault, which exists; only its tags can change.
func putVault(c *route.Call) (route.Reply, error) {
	var in struct {
		Tags map[string]string `json:"tags"`
	}
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	if in.Tags != nil || c.R.Method == http.MethodPut {
		if in.Tags == nil {
			in.Tags = map[string]string{}
		}
		if err := setSetting(c, settingTags, in.Tags); err != nil {
			return route.Reply{}, err
		}
	}
	return getVault(c)
}

// putCertificate answers the request with which clients get what they write
// into a key file: the certificate in the answer is a registration key.
func putCertificate(c *route.Call) (route.Reply, error) {
	var in armwire.CertificateInput
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	life, err := site.Validity(in.CertificateCreateOptions.ValidityInHours)
	if err != nil {
		return route.Reply{}, err
	}
	fabric := in.Properties.Fabric
	if fabric == "" {
		fs, err := c.Dir.Fabrics()
		if err != nil {
			return route.Reply{}, err
		}
		if len(fs) != 1 {
			return route.Reply{}, dr.Errorf(dr.KindInvalid, "armapi.certificate", "the vault has %d sites and the request does not say for which one the key is", len(fs)).
				WithHint("Add properties.holdfastFabric with the site's name, or POST /holdfast/v1/fabrics/{name}/registrationKeys.")
		}
		fabric = fs[0].Name
	}
	file, key, err := site.Credential(c, fabric, false, life)
	if err != nil {
		return route.Reply{}, err
	}
	cert := file.Credential.Bytes()
	sum := sha1.Sum(cert) //nolint:gosec // see the import
	name := c.NameOf(route.TCerts)
	return route.OK(armwire.Resource[armwire.CertificateDetails]{
		ID: c.VaultID.ID(route.TCerts, name), Name: name, Type: armwire.ResourceType(route.TCerts, name),
		Properties: armwire.CertificateDetails{
			AuthType: "AzureActiveDirectory", AADAuthority: c.Base, AADTenantID: c.Ident.TenantID, AADAudience: c.Base,
			ServicePrincipalClientID: key.ID, ServicePrincipalObjectID: key.ID, AzureManagementEndpointAudience: c.Base,
			Certificate: cert, FriendlyName: name, Issuer: "CN=" + c.Ident.Name, ResourceID: c.Ident.ResourceID, Subject: name,
			Thumbprint: strings.ToUpper(hex.EncodeToString(sum[:])), ValidFrom: armwire.Time(key.Created), ValidTo: armwire.Time(key.Expires),
		},
	})
}

func extendedInfo(c *route.Call, p armwire.ExtendedInfo) armwire.Resource[armwire.ExtendedInfo] {
	const name = "vaultExtendedInfo"
	return armwire.Resource[armwire.ExtendedInfo]{ID: c.VaultID.ID(route.TExtended, name), Name: name, Type: armwire.ResourceType(route.TExtended, name), Properties: p}
}

func getExtendedInfo(c *route.Call) (route.Reply, error) {
	var p armwire.ExtendedInfo
	found, err := setting(c, settingExtendedInfo, &p)
	if err != nil {
		return route.Reply{}, err
	}
	if !found {
		return route.Reply{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "the vault has no extended information yet; PUT it")
	}
	return route.OK(extendedInfo(c, p))
}

func putExtendedInfo(c *route.Call) (route.Reply, error) {
	var in armwire.Input[armwire.ExtendedInfo]
	if c.R.Method == http.MethodPatch {
		if _, err := setting(c, settingExtendedInfo, &in.Properties); err != nil {
			return route.Reply{}, err
		}
	}
	if err := c.Body(&in); err != nil {
		return route.Reply{}, err
	}
	if err := setSetting(c, settingExtendedInfo, in.Properties); err != nil {
		return route.Reply{}, err
	}
	return route.OK(extendedInfo(c, in.Properties))
}
