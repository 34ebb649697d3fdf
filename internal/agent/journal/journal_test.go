package journal

import (
	"fmt"
	"os"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
)

func TestPrune(t *testing.T) {
	t.Parallel()
	j := New(t.TempDir())
	for i := range maxEntries + pruneAfter {
		if i > 20 { // only their number matters
			if err := os.WriteFile(j.path(fmt.Sprint(i)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := j.Put("x", agentapi.ReportRequest{ID: fmt.Sprint(i), State: "done"}); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-8 * 24 * time.Hour)
		if i == 7 {
			if err := os.Chtimes(j.path("7"), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := j.Prune(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(j.dir)
	if err != nil || len(entries) > maxEntries {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if _, err := j.Find("7"); dr.KindOf(err) != dr.KindNotFound {
		t.Errorf("an old entry stays: %v", err)
	}
}
