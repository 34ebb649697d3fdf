package armwire

import "time"

// Vault is the vault resource; it has more than the common envelope.
type Vault struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	ETag       string            `json:"etag,omitempty"`
	Tags       map[string]string `json:"tags,omitempty"`
	SKU        SKU               `json:"sku"`
	Properties VaultProperties   `json:"properties"`
}

// SKU is always RS0, Standard.
type SKU struct {
	Name string `json:"name"`
	Tier string `json:"tier,omitempty"`
}

// VaultProperties is properties of a vault.
type VaultProperties struct {
	ProvisioningState                   string `json:"provisioningState"`
	PublicNetworkAccess                 string `json:"publicNetworkAccess"`
	PrivateEndpointStateForBackup       string `json:"privateEndpointStateForBackup"`
	PrivateEndpointStateForSiteRecovery string `json:"privateEndpointStateForSiteRecovery"`
}

// CertificateInput asks for vault credentials. Everything is optional.
type CertificateInput struct {
	Properties struct {
		AuthType    string `json:"authType,omitempty"`
		Certificate []byte `json:"certificate,omitempty"`
		Fabric      string `json:"holdfastFabric,omitempty"` // site for which the key is; needed if the vault has several
	} `json:"properties"`
	CertificateCreateOptions struct {
		ValidityInHours int `json:"validityInHours,omitempty"`
	} `json:"certificateCreateOptions"`
}

// CertificateDetails is properties of the answer to a certificate request.
// Certificate carries a Credential, ready to be the key file's ManagementCert.
type CertificateDetails struct {
	AuthType                        string     `json:"authType"` // AzureActiveDirectory
	AADAuthority                    string     `json:"aadAuthority"`
	AADTenantID                     string     `json:"aadTenantId"`
	AADAudience                     string     `json:"aadAudience"`
	ServicePrincipalClientID        string     `json:"servicePrincipalClientId"`
	ServicePrincipalObjectID        string     `json:"servicePrincipalObjectId"`
	AzureManagementEndpointAudience string     `json:"azureManagementEndpointAudience"`
	Certificate                     []byte     `json:"certificate"`
	FriendlyName                    string     `json:"friendlyName"`
	Issuer                          string     `json:"issuer"`
	ResourceID                      int64      `json:"resourceId"`
	Subject                         string     `json:"subject"`
	Thumbprint                      string     `json:"thumbprint"`
	ValidFrom                       *time.Time `json:"validFrom,omitempty"`
	ValidTo                         *time.Time `json:"validTo,omitempty"`
}

// ExtendedInfo is properties of the vault's extended information.
type ExtendedInfo struct {
	IntegrityKey            string `json:"integrityKey,omitempty"`
	EncryptionKey           string `json:"encryptionKey,omitempty"`
	EncryptionKeyThumbprint string `json:"encryptionKeyThumbprint,omitempty"`
	Algorithm               string `json:"algorithm,omitempty"`
}

// Usage is one counter of the vault.
type Usage struct {
	Unit         string    `json:"unit"`
	CurrentValue int64     `json:"currentValue"`
	Limit        int64     `json:"limit"`
	Name         UsageName `json:"name"`
}

// UsageName is the name of a Usage.
type UsageName struct {
	Value          string `json:"value"`
	LocalizedValue string `json:"localizedValue"`
}

// ReplicationUsage counts what the vault replicates.
type ReplicationUsage struct {
	ProtectedItemCount              int32             `json:"protectedItemCount"`
	RecoveryPlanCount               int32             `json:"recoveryPlanCount"`
	RegisteredServersCount          int32             `json:"registeredServersCount"`
	RecoveryServicesProviderAuthTyp int32             `json:"recoveryServicesProviderAuthType"`
	MonitoringSummary               MonitoringSummary `json:"monitoringSummary"`
	JobsSummary                     JobsSummary       `json:"jobsSummary"`
}

// MonitoringSummary counts what needs attention.
type MonitoringSummary struct {
	UnhealthyVMCount         int32 `json:"unHealthyVmCount"`
	UnhealthyProviderCount   int32 `json:"unHealthyProviderCount"`
	EventsCount              int32 `json:"eventsCount"`
	DeprecatedProviderCount  int32 `json:"deprecatedProviderCount"`
	SupportedProviderCount   int32 `json:"supportedProviderCount"`
	UnsupportedProviderCount int32 `json:"unsupportedProviderCount"`
}

// JobsSummary counts jobs by state.
type JobsSummary struct {
	FailedJobs     int32 `json:"failedJobs"`
	SuspendedJobs  int32 `json:"suspendedJobs"`
	InProgressJobs int32 `json:"inProgressJobs"`
}

// HealthSummary counts resources of one kind by health.
type HealthSummary struct {
	ResourceCount             int32            `json:"resourceCount"`
	CategorizedResourceCounts map[string]int32 `json:"categorizedResourceCounts"`
	Issues                    []HealthIssue    `json:"issues"`
}

// HealthIssue is one kind of trouble and whom it affects.
type HealthIssue struct {
	SummaryCode                    string   `json:"summaryCode"`
	Category                       string   `json:"category"`
	Severity                       string   `json:"severity"`
	SummaryMessage                 string   `json:"summaryMessage"`
	AffectedResourceType           string   `json:"affectedResourceType"`
	AffectedResourceCorrelationIDs []string `json:"affectedResourceCorrelationIds"`
}

// VaultHealth is properties of replicationVaultHealth.
type VaultHealth struct {
	VaultErrors          []HealthError `json:"vaultErrors"`
	ProtectedItemsHealth HealthSummary `json:"protectedItemsHealth"`
	FabricsHealth        HealthSummary `json:"fabricsHealth"`
	ContainersHealth     HealthSummary `json:"containersHealth"`
}
