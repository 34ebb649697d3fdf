package main

import "github.com/spf13/cobra"

const endpointName = "endpoint.json"

type endpoint struct {
	URL            string `json:"url"`
	CAFile         string `json:"caFile"`
	TenantID       string `json:"tenantId"`
	ClientID       string `json:"clientId"`
	ClientSecret   string `json:"clientSecret"`
	SubscriptionID string `json:"subscriptionId"`
	ResourceGroup  string `json:"resourceGroup"`
	VaultName      string `json:"vaultName"`
}

func stub(n string) *cobra.Command             { return &cobra.Command{Use: n} }
func (a *app) itemCommand() *cobra.Command     { return stub("item") }
func (a *app) pointCommand() *cobra.Command    { return stub("point") }
func (a *app) jobCommand() *cobra.Command      { return stub("job") }
func (a *app) vmCommand() *cobra.Command       { return stub("vm") }
func (a *app) loginCommand() *cobra.Command    { return stub("login") }
func (a *app) siteCommand() *cobra.Command     { return stub("site") }
func (a *app) providerCommand() *cobra.Command { return stub("provider") }
func (a *app) policyCommand() *cobra.Command   { return stub("policy") }
func (a *app) mappingCommand() *cobra.Command  { return stub("mapping") }
func (a *app) storeCommand() *cobra.Command    { return stub("store") }
