package records

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/dr"
)

func TestStamp(t *testing.T) {
	t.Parallel()
	mine := StampOf("HOST1", "0123abcd")
	moved, doctor := StampOf("host2", "fedc9876"), StampOf("host1", "fedc9876")
	renamed := Stamp{moved.Host, mine.Dir}
	for name, want := range map[string]struct{ is, owned bool }{
		mine.Name("hf-a"): {true, true}, renamed.Name("hf-a"): {true, true}, mine.Name("hf-b"): {false, true}, moved.Name("hf-a"): {false, true}, doctor.Name("hf-a"): {false, false},
		"hf-a": {}, "hf-a@": {}, "hf-a@x.y": {}, "Other": {}, "other@" + strings.TrimPrefix(mine.Name(""), "@"): {}, mine.Name("hf-a") + "0": {}, "": {},
	} {
		if is, owned := mine.Is(name, "hf-a"), mine.Owned(name); is != want.is || owned != want.owned {
			t.Errorf("%q: is %v, owned %v", name, is, owned)
		}
	}
}

// TestDirectoryID: it stays, and a damaged one is not replaced.
func TestDirectoryID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, lock, err := Directory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Directory(dir); dr.KindOf(err) != dr.KindConflict {
		t.Errorf("a locked directory: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	b, lock, err := Directory(dir)
	if err != nil || a != b {
		t.Errorf("%s, then %s, %v", a, b, err)
	}
	if err := errors.Join(lock.Close(), os.WriteFile(filepath.Join(dir, "owner.json"), []byte(`{"version":1,"id":"../"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Directory(dir); dr.KindOf(err) != dr.KindUnavailable {
		t.Errorf("a damaged id: %v", err)
	}
}
