package dr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"holdfast/internal/dr"
)

func TestKindNamesRoundTrip(t *testing.T) {
	for _, k := range dr.Kinds() {
		if got, ok := dr.ParseKind(k.String()); !ok || got != k {
			t.Errorf("ParseKind(%q) = %v, %v", k.String(), got, ok)
		}
	}
	if _, ok := dr.ParseKind("nonsense"); ok {
		t.Error("an unknown kind parsed")
	}
}

func TestErrorChain(t *testing.T) {
	inner := dr.New(dr.KindExhausted, dr.CodeStoreFull, "file.PutNew", "put object %q: %w", "a/b", io.ErrShortWrite)
	outer := dr.Errorf(dr.KindUnavailable, "upload.Ship", "ship cut %d: %w", 7, fmt.Errorf("wrapped: %w", inner))
	if got, want := outer.Error(), `ship cut 7: wrapped: put object "a/b": short write`; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if dr.KindOf(outer) != dr.KindUnavailable || dr.CodeOf(outer) != dr.CodeStoreFull || !errors.Is(outer, io.ErrShortWrite) {
		t.Errorf("kind %v code %v", dr.KindOf(outer), dr.CodeOf(outer))
	}
	if dr.HintOf(outer) == "" {
		t.Error("no hint although the code has a remedy")
	}
	if dr.KindOf(context.Canceled) != dr.KindCanceled || dr.KindOf(io.EOF) != dr.KindInternal {
		t.Error("kinds of foreign errors")
	}
}

func TestPointName(t *testing.T) {
	name := dr.PointName(3, 0x1f)
	if g, n, err := dr.ParsePointName(name); err != nil || g != 3 || n != 0x1f {
		t.Errorf("ParsePointName(%q) = %d %d %v", name, g, n, err)
	}
	for _, bad := range []string{"", "latest", name + "x", "g1-c2"} {
		if _, _, err := dr.ParsePointName(bad); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("ParsePointName(%q): %v", bad, err)
		}
	}
}
