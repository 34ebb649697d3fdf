package virtdisk

import (
	"testing"

	"holdfast/internal/winetest"
)

// TestUnderWine runs the tests of disks_windows_test.go. Wine's virtdisk.dll is a
// stub: what they prove is that calls are made, refused and told.
func TestUnderWine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 seconds")
	}
	t.Parallel()
	winetest.Run(t, ".", "-test.run=^TestWindows")
}

// TestOnlyOnWindows: cmd can import the package everywhere.
func TestOnlyOnWindows(t *testing.T) {
	t.Parallel()
	if d, err := New(Config{}); err == nil || d != nil {
		t.Errorf("New = %v, %v", d, err)
	}
}
