package armwire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"time"
)

// CredentialVersion is the version of Credential.
//
// History:
//
//	1  2026-11-22  first version
const CredentialVersion = 1

// MaxKeyFile is the largest key file that is read, bytes.
const MaxKeyFile = 64 << 10

const keyFileNamespace = "http://schemas.datacontract.org/2004/07/Microsoft.Azure.Portal.RecoveryServices.Models.Common"

// Credential is what a host needs to register: where the vault is, how to
// recognize it, and the registration key. It travels as JSON, in base64, as the
// key file's ManagementCert and as the certificate of a certificate request: that
// is the one field which every writer of key files copies as it is, so files made
// by other programs work too. Secret must not be logged.
type Credential struct {
	Version  int       `json:"holdfastCredential"`
	VaultURL string    `json:"vaultUrl"`
	CAPin    string    `json:"caPin"` // SHA-256 of the vault CA's public key, hex
	KeyID    string    `json:"keyId"`
	Secret   string    `json:"secret"`
	Fabric   string    `json:"fabricId"` // the site that the key is bound to
	Expires  time.Time `json:"expires"`
}

// String keeps the secret out of texts.
func (c Credential) String() string { return "registration key " + c.KeyID }

// LogValue keeps the secret out of logs.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// GoString keeps the secret out of %#v.
func (c Credential) GoString() string { return c.String() }

// Bytes encodes the credential.
func (c Credential) Bytes() []byte {
	c.Version = CredentialVersion
	b, err := json.Marshal(c)
	if err != nil {
		panic("armwire: encode credential: " + err.Error()) // only if Expires has a year that RFC 3339 can't hold
	}
	return b
}

// DecodeCredential is the inverse of Bytes and checks every field.
func DecodeCredential(b []byte) (Credential, error) {
	var c Credential
	if err := json.Unmarshal(b, &c); err != nil || c.Version == 0 {
		return Credential{}, fmt.Errorf("decode registration credential: it was not issued by a Holdfast vault")
	}
	if c.Version > CredentialVersion {
		return Credential{}, fmt.Errorf("decode registration credential: version %d is newer than this program knows (%d); upgrade it", c.Version, CredentialVersion)
	}
	u, err := url.Parse(c.VaultURL)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		return Credential{}, fmt.Errorf("decode registration credential: the vault's address is not a URL")
	case c.KeyID == "" || c.Secret == "":
		return Credential{}, fmt.Errorf("decode registration credential: the key's id or secret is missing")
	case c.Fabric == "":
		return Credential{}, fmt.Errorf("decode registration credential: the site's id is missing")
	}
	return c, nil
}

// KeyFile is the registration key file of a site, in the public shape
// (root element RSVaultAsrCreds, version 2.0).
type KeyFile struct {
	SubscriptionID string
	ResourceGroup  string
	VaultName      string
	ResourceID     int64
	Location       string
	TenantID       string
	ClientID       string // empty: hosts do not log in to a directory
	SiteID         string
	SiteName       string
	Credential     Credential
}

// FileName returns the customary name: site, vault and time.
func (k KeyFile) FileName(now time.Time) string {
	clean := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r < ' ' || strings.ContainsRune(`/\:*?"<>|`, r) {
				return '_'
			}
			return r
		}, s)
	}
	return clean(k.SiteName) + "_" + clean(k.VaultName) + "_" + now.UTC().Format("2006-01-02T15-04-05") + ".VaultCredentials"
}

type keyFileXML struct {
	XMLName             xml.Name        `xml:"RSVaultAsrCreds"`
	Namespace           string          `xml:"xmlns,attr"`
	VaultDetails        vaultDetailsXML `xml:"VaultDetails"`
	ManagementCert      string          `xml:"ManagementCert"`
	Version             string          `xml:"Version"`
	AADDetails          aadDetailsXML   `xml:"AadDetails"`
	ChannelIntegrityKey string          `xml:"ChannelIntegrityKey"`
	SiteID              string          `xml:"SiteId"`
	SiteName            string          `xml:"SiteName"`
	PrivateEndpoint     string          `xml:"PrivateEndpointStateForSiteRecovery"`
}

type vaultDetailsXML struct {
	SubscriptionID    string `xml:"SubscriptionId"`
	ResourceGroup     string `xml:"ResourceGroup"`
	ResourceName      string `xml:"ResourceName"`
	ResourceID        int64  `xml:"ResourceId"`
	Location          string `xml:"Location"`
	ResourceType      string `xml:"ResourceType"`
	ProviderNamespace string `xml:"ProviderNamespace"`
}

type aadDetailsXML struct {
	Authority             string `xml:"AadAuthority"`
	TenantID              string `xml:"AadTenantId"`
	ClientID              string `xml:"ServicePrincipalClientId"`
	VaultAudience         string `xml:"AadVaultAudience"`
	ARMManagementEndpoint string `xml:"ArmManagementEndpoint"`
}

// Encode writes the file.
func (k KeyFile) Encode() ([]byte, error) {
	x := keyFileXML{
		Namespace: keyFileNamespace,
		VaultDetails: vaultDetailsXML{
			SubscriptionID: k.SubscriptionID, ResourceGroup: k.ResourceGroup, ResourceName: k.VaultName, ResourceID: k.ResourceID,
			Location: k.Location, ResourceType: "Vaults", ProviderNamespace: Namespace,
		},
		ManagementCert: base64.StdEncoding.EncodeToString(k.Credential.Bytes()),
		Version:        "2.0",
		AADDetails: aadDetailsXML{
			Authority: k.Credential.VaultURL, TenantID: k.TenantID, ClientID: k.ClientID,
			VaultAudience:         fmt.Sprintf("https://RecoveryServiceVault/%s/%s/%d", k.Location, k.VaultName, k.ResourceID),
			ARMManagementEndpoint: k.Credential.VaultURL,
		},
		SiteID: k.SiteID, SiteName: k.SiteName, PrivateEndpoint: "None",
	}
	b, err := xml.MarshalIndent(x, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode key file: %w", err)
	}
	return append(append([]byte(xml.Header), b...), '\n'), nil
}

// DecodeKeyFile reads a key file, ours or one that another program built from
// the answer to a certificate request. Namespaces, element order and unknown
// elements do not matter. Errors never contain the file's text.
func DecodeKeyFile(b []byte) (KeyFile, error) {
	if len(b) > MaxKeyFile {
		return KeyFile{}, fmt.Errorf("decode key file: it is larger than %d bytes", MaxKeyFile)
	}
	var x struct {
		XMLName        xml.Name
		VaultDetails   vaultDetailsXML `xml:"VaultDetails"`
		ManagementCert string          `xml:"ManagementCert"`
		Version        string          `xml:"Version"`
		AADDetails     aadDetailsXML   `xml:"AadDetails"`
		SiteID         string          `xml:"SiteId"`
		SiteName       string          `xml:"SiteName"`
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	if err := d.Decode(&x); err != nil {
		return KeyFile{}, fmt.Errorf("decode key file: it is not well-formed XML")
	}
	if x.XMLName.Local != "RSVaultAsrCreds" {
		return KeyFile{}, fmt.Errorf("decode key file: the root element is not RSVaultAsrCreds; download the registration key of a site")
	}
	if !strings.HasPrefix(strings.TrimSpace(x.Version), "2.") {
		return KeyFile{}, fmt.Errorf("decode key file: version is not 2.x")
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(x.ManagementCert), ""))
	if err != nil {
		return KeyFile{}, fmt.Errorf("decode key file: ManagementCert is not base64; the file was altered")
	}
	c, err := DecodeCredential(raw)
	if err != nil {
		return KeyFile{}, fmt.Errorf("decode key file: %w", err)
	}
	return KeyFile{
		SubscriptionID: x.VaultDetails.SubscriptionID, ResourceGroup: x.VaultDetails.ResourceGroup, VaultName: x.VaultDetails.ResourceName,
		ResourceID: x.VaultDetails.ResourceID, Location: x.VaultDetails.Location, TenantID: x.AADDetails.TenantID, ClientID: x.AADDetails.ClientID,
		SiteID: x.SiteID, SiteName: x.SiteName, Credential: c,
	}, nil
}
