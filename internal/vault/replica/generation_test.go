package replica

import (
	"slices"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/vaultdb"
)

// TestMergeDisks: a number that was ever given is remembered.
func TestMergeDisks(t *testing.T) {
	t.Parallel()
	var have []vaultdb.Disk
	for _, now := range [][]cut.Disk{{{ID: "vda", Size: 1}}, {{ID: "vda", Size: 1}, {Index: 1, ID: "vdb", Size: 2}}, {{Index: 1, ID: "vdb", Size: 3}}} {
		have = MergeDisks(have, now)
	}
	if want := []vaultdb.Disk{{ID: "vda"}, {ID: "vdb", Index: 1, Size: 3}}; !slices.Equal(have, want) {
		t.Errorf("%+v, want %+v", have, want)
	}
}
