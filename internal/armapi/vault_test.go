package armapi_test

import (
	"holdfast/internal/armapi"
	"holdfast/internal/vault"
)

// The vault is what the API is made for.
var (
	_ armapi.Service     = (*vault.Vault)(nil)
	_ armapi.Screenshots = (*vault.Vault)(nil)
)
