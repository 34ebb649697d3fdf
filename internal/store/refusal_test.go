package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

type because struct{ cause objstore.Cause }

func (because) Error() string                { return "the account says no" }
func (b because) StoreCause() objstore.Cause { return b.cause }

// TestRefusals: why a store refuses becomes a code of the catalogue, and never an
// absence, whatever the store's own words are.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for cause, want := range map[objstore.Cause]struct {
		kind dr.Kind
		code dr.Code
	}{
		objstore.CauseClock:     {dr.KindUnavailable, dr.CodeAzureClock},
		objstore.CauseFirewall:  {dr.KindUnavailable, dr.CodeAzureFirewall},
		objstore.CauseRole:      {dr.KindForbidden, dr.CodeAzureRole},
		objstore.CauseSignIn:    {dr.KindUnavailable, dr.CodeAzureSignIn},
		objstore.CauseKey:       {dr.KindUnavailable, dr.CodeAzureSignature},
		objstore.CauseContainer: {dr.KindUnavailable, dr.CodeAzureContainer},
		objstore.CauseThrottled: {dr.KindUnavailable, dr.CodeAzureThrottled},
		objstore.CauseRetained:  {dr.KindForbidden, dr.CodeStoreUnreachable},
		objstore.CauseAccount:   {dr.KindForbidden, dr.CodeStoreUnreachable},
		"":                      {dr.KindForbidden, dr.CodeStoreUnreachable},
	} {
		err := store.ObjectError("test", "v1/x", fmt.Errorf("read: %w", &objstore.Error{Op: "get", Key: "v1/x", Kind: objstore.ErrDenied, Err: because{cause}}))
		if dr.KindOf(err) != want.kind || dr.CodeOf(err) != want.code || !errors.Is(err, objstore.ErrDenied) || objstore.CauseOf(err) != cause {
			t.Errorf("%q: %v, %s, %q", cause, err, dr.KindOf(err), dr.CodeOf(err))
		}
	}
	gone := store.ObjectError("test", "v1/x", &objstore.Error{Op: "get", Key: "v1/x", Kind: objstore.ErrNotExist})
	if dr.CodeOf(gone) != dr.CodeObjectMissing {
		t.Errorf("absent: %v", gone)
	}
	if err := store.ObjectError("test", "v1/x", fmt.Errorf("%w: %w", context.Canceled, because{objstore.CauseKey})); !errors.Is(err, context.Canceled) || dr.CodeOf(err) != "" {
		t.Errorf("cancelled: %v", err)
	}
	known := dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, "x", "damaged")
	if err := store.ObjectError("test", "v1/x", known); !errors.Is(err, known) {
		t.Errorf("known: %v", err)
	}
	if err := store.Refusal("test", "x", because{"something new"}); err != nil {
		t.Errorf("an unknown cause: %v", err)
	}
}
