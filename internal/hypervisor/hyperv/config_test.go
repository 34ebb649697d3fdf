package hyperv

import (
	"strings"
	"testing"

	"holdfast/internal/cim"
)

type (
	nothing struct{ cim.Session }
	noDisks struct{ Disks }
)

func TestTrackerHRLRefused(t *testing.T) {
	t.Parallel()
	c := Config{Session: nothing{}, Disks: noDisks{}, Dir: t.TempDir(), Tracker: TrackerHRL}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "DataWriteGuid") {
		t.Errorf("%v", err)
	}
	c.Tracker = TrackerRCT
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
