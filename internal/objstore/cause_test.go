package objstore_test

import (
	"errors"
	"fmt"
	"testing"

	"holdfast/internal/objstore"
)

type caused struct{ error }

func (caused) StoreCause() objstore.Cause { return objstore.CauseClock }

func TestCauseOf(t *testing.T) {
	t.Parallel()
	deep := &objstore.Error{Op: "get", Key: "k", Kind: objstore.ErrDenied, Err: fmt.Errorf("asked: %w", caused{errors.New("403")})}
	for _, tt := range []struct {
		err  error
		want objstore.Cause
	}{{nil, ""}, {errors.New("x"), ""}, {deep, objstore.CauseClock}, {errors.Join(errors.New("x"), deep), objstore.CauseClock}} {
		if got := objstore.CauseOf(tt.err); got != tt.want {
			t.Errorf("%v: %q", tt.err, got)
		}
	}
}
