package vault

import (
	"fmt"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/job"
	"holdfast/internal/sqldb"
)

// What keeps replication from being handed back is waited for, also where an operator
// has to settle it; what is an answer, is not.
func TestNotAsked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"the store is away":           {dr.New(dr.KindUnavailable, dr.CodeStoreUnreachable, "x", "y"), true},
		"the store refuses the vault": {fmt.Errorf("open: %w", dr.New(dr.KindUnavailable, dr.CodeAzureSignIn, "x", "y")), true},
		"the store is full":           {dr.New(dr.KindExhausted, dr.CodeStoreFull, "x", "y"), true},
		"no such thing":               {dr.New(dr.KindNotFound, dr.CodeNotFound, "x", "y"), false},
		"fenced":                      {dr.New(dr.KindFenced, dr.CodeGenerationFenced, "x", "y"), false},
		"the database":                {fmt.Errorf("x: %w", sqldb.ErrInfrastructure), false},
		"said to be transient":        {&job.Error{Class: job.Transient, Err: dr.New(dr.KindNotFound, dr.CodeNotFound, "x", "y")}, true},
		"said to be permanent":        {&job.Error{Class: job.Permanent, Err: dr.New(dr.KindUnavailable, "", "x", "y")}, false},
	} {
		if got := notAsked(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
