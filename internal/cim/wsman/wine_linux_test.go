package wsman

import (
	"testing"

	"holdfast/internal/winetest"
)

// TestUnderWine runs sspi_windows_test.go on Wine's security packages, and the client against a server of the
// same process, sealed and by TLS.
func TestUnderWine(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a Wine prefix")
	}
	t.Parallel()
	winetest.Run(t, ".", "-test.run=^(TestWindows.*|TestSignIn|TestInvoke|TestIdleConnectionBreaks)$", "-test.v")
}
