//go:build unix

package rotation

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/keyfile"
)

// TestRotateBetweenStores rotates and drills with nothing but external key
// stores: two running copies of the sample program.
func TestRotateBetweenStores(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "keystore")
	if out, err := exec.Command("go", "build", "-o", program, "../testdata/keystore").CombinedOutput(); err != nil {
		t.Fatalf("build the sample: %v\n%s", err, out)
	}
	open := func(name string, key cut.VaultPrivateKey) cut.KeyOpener {
		text, err := key.Text()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		opener, err := keyfile.Open(t.Context(), "exec:"+program+" "+file, keyfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return opener
	}
	s, next := newSite(t, 1, 2), newKey(t)
	from, to := open("old", s.old), open("new", next)
	res, err := Rotate(t.Context(), s.bucket, from, to.(*keyfile.Store).Public(), Config{Prove: to})
	if err != nil || res.Sealed != 2 || !res.Changed() {
		t.Fatalf("%+v, %v", res, err)
	}
	s.opensAll(to)
	s.opensAll(next)
}
