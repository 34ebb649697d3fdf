// Package objstoretest runs the conformance checks of package objstore as
// tests, for the tests of every backend.
package objstoretest

import (
	"testing"

	"holdfast/internal/objstore"
)

// Run runs every check of objstore.Checks on a bucket of its own, made by open.
// open registers the cleaning up with t.Cleanup. -short leaves out slow checks.
func Run(t *testing.T, open func(t *testing.T) objstore.Bucket) {
	t.Helper()
	for _, c := range objstore.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if c.Slow && testing.Short() {
				t.Skip("slow check")
			}
			t.Parallel()
			if err := c.Run(t.Context(), open(t), "v1/check/"+c.Name+"/"); err != nil {
				t.Error(err)
			}
		})
	}
}
