package vault_test

import (
	"holdfast/internal/armapi"
	"holdfast/internal/portal"
	"holdfast/internal/vault"
)

// The vault is what its doors need.
var (
	_ armapi.Service = (*vault.Vault)(nil)
	_ portal.Vault   = (*vault.Vault)(nil)
)
