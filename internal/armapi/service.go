package armapi

import (
	"holdfast/internal/armapi/jobs"
	"holdfast/internal/armapi/route"
)

// Service is what the API needs from the vault; *vault.Vault satisfies it.
type Service = route.Service

// Screenshots is what a Service may offer beyond Service.
type Screenshots = jobs.Screenshots
