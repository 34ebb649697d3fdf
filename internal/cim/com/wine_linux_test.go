package com

import (
	"testing"

	"holdfast/internal/cim"
	"holdfast/internal/winetest"
)

// TestUnderWine runs session_windows_test.go on Wine's WMI.
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
	if s, err := Open(t.Context(), Config{}); err == nil || s != nil || cim.CodeOf(err) != cim.CodeUnavailable {
		t.Errorf("Open = %v, %v", s, err)
	}
}
