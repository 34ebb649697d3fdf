// Package conformance drives a started vault with clients that nobody here
// wrote: the public Go SDK of the Site Recovery API, with its own credential
// class. It is a module of its own, so that the product does not depend on the SDK.
//
// Which vault: HOLDFAST_ENDPOINT_FILE names a JSON file with the fields
//
//	url             https://host:port of the vault
//	caFile          PEM file with the certificate (authority) of the vault; optional
//	tenantId        tenant of the token routes
//	clientId, clientSecret
//	subscriptionId, resourceGroup, vaultName
//
// Each field can also be given, or overridden, by an environment variable:
// HOLDFAST_URL, HOLDFAST_CA_FILE, HOLDFAST_TENANT_ID, HOLDFAST_CLIENT_ID,
// HOLDFAST_CLIENT_SECRET, HOLDFAST_SUBSCRIPTION_ID, HOLDFAST_RESOURCE_GROUP,
// HOLDFAST_VAULT_NAME. With none of them the tests start the in-memory vault of
// the main module (internal/armapi/armapitest/serve) and run against that.
//
// The contract tests run against any vault and leave nothing behind. TestStory
// runs against a given vault only with HOLDFAST_STORY=1. It needs two sites with
// connected agents: HOLDFAST_PRIMARY_FABRIC (default site-a) and
// HOLDFAST_RECOVERY_FABRIC (site-b), and a VM of the primary site,
// HOLDFAST_VM (web01), which is failed over for good.
// HOLDFAST_STORY_TIMEOUT (a duration, default 10m) limits each step.
package conformance
