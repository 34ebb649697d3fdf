//go:build linux

package azure_test

import (
	"net/http"
	"testing"
	"time"

	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/azure/azuritetest"
)

const (
	account    = azuritetest.Account
	accountKey = azuritetest.Key
)

// emulator is a running Azurite with a container "replicas".
type emulator struct {
	*azuritetest.Server
	endpoint  string
	transport *http.Transport
}

// startAzurite runs the emulator until the test ends. With secure it speaks TLS
// and takes sign-ins by Entra ID.
func startAzurite(t *testing.T, secure bool) *emulator {
	t.Helper()
	s := azuritetest.StartWith(t, azuritetest.Options{TLS: secure})
	s.NewContainer(t, "replicas")
	return &emulator{Server: s, endpoint: s.Endpoint, transport: s.Transport}
}

// settings are those for the emulator: quick, so that faults cost little.
func (e *emulator) settings() azure.Config {
	return azure.Config{
		Container: "replicas", Account: account, Endpoint: e.endpoint, AccountKey: accountKey, Prefix: "Team_A/holdfast", Transport: e.transport,
		BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond,
	}
}
