package keyfile

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

func write(t testing.TB, mode os.FileMode, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "k")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenFiles(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	plain, sealed := []byte(keyText(t, key)), sealCheap(t, key, SealConfig{})
	right := Prompt(func(context.Context, string) ([]byte, error) { return []byte(phrase), nil })
	for _, c := range []struct {
		name string
		path string
		pass Passphrase
		kind dr.Kind
		code dr.Code
	}{
		{"plain", write(t, 0o600, plain), nil, 0, ""},
		{"plain, read-only", write(t, 0o400, plain), nil, 0, ""},
		{"plain, group reads", write(t, 0o640, plain), nil, dr.KindForbidden, dr.CodeKeyFileExposed},
		{"plain, all read", write(t, 0o604, plain), nil, dr.KindForbidden, dr.CodeKeyFileExposed},
		{"sealed", write(t, 0o600, sealed), right, 0, ""},
		{"sealed, all read", write(t, 0o644, sealed), right, 0, ""},
		{"sealed, nobody to ask", write(t, 0o600, sealed), nil, dr.KindUnauthenticated, dr.CodeKeySealed},
		{"sealed, wrong passphrase", write(t, 0o600, sealed), PassphraseFile(write(t, 0o600, []byte("not this one\n"))), dr.KindUnauthenticated, dr.CodePassphraseWrong},
		{"sealed, passphrase in a file", write(t, 0o600, sealed), PassphraseFile(write(t, 0o600, []byte(phrase+"\r\n"))), 0, ""},
		{"sealed, passphrase file exposed", write(t, 0o600, sealed), PassphraseFile(write(t, 0o644, []byte(phrase))), dr.KindForbidden, dr.CodeKeyFileExposed},
		{"sealed, passphrase of two lines", write(t, 0o600, sealed), PassphraseFile(write(t, 0o600, []byte("a\nb\n"))), dr.KindInvalid, ""},
		{"sealed, passphrase file empty", write(t, 0o600, sealed), PassphraseFile(write(t, 0o600, []byte("\n"))), dr.KindInvalid, ""},
		{"sealed, passphrase file missing", write(t, 0o600, sealed), PassphraseFile("/nowhere/at/all"), dr.KindNotFound, ""},
		{"sealed, variable missing", write(t, 0o600, sealed), PassphraseEnv("HOLDFAST_TEST_NOT_SET"), dr.KindInvalid, dr.CodeKeySealed},
		{"cut short", write(t, 0o600, sealed[:len(sealed)-30]), right, dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"missing", "/nowhere/at/all", nil, dr.KindNotFound, ""},
		{"folder", t.TempDir(), nil, dr.KindInvalid, ""},
		{"public key", write(t, 0o600, []byte(key.Public().Text())), nil, dr.KindInvalid, ""},
		{"huge", write(t, 0o600, make([]byte, maxKeyFile+1)), nil, dr.KindInvalid, ""},
		{"credential without systemd", "credential:x", nil, dr.KindPrecondition, ""},
		{"program", "exec:/bin/true", nil, dr.KindUnsupported, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.code == dr.CodeKeyFileExposed && runtime.GOOS == "windows" {
				t.Skip("modes say nothing on Windows")
			}
			got, err := Load(t.Context(), c.path, Options{Passphrase: c.pass})
			if c.kind != 0 {
				wantCode(t, err, c.kind, c.code)
				if c.code == dr.CodeKeyFileExposed && !strings.Contains(dr.HintOf(err), "chmod 600 ") {
					t.Errorf("hint %q", dr.HintOf(err))
				}
				return
			}
			if must(t)(got, err).KeyID() != key.KeyID() {
				t.Error("another key")
			}
			opener, err := Open(t.Context(), c.path, Options{Passphrase: c.pass})
			if err != nil || opener.ID() != key.KeyID() {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func TestEnvironment(t *testing.T) { // not parallel: it sets variables
	key := newKey(t)
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	t.Setenv("HOLDFAST_TEST_PASS", phrase)
	for name, text := range map[string][]byte{"plain": []byte(keyText(t, key)), "sealed": sealCheap(t, key, SealConfig{}), "pass": []byte(phrase + "\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o440); err != nil { // systemd's access lists look like this
			t.Fatal(err)
		}
	}
	for _, place := range []string{"env:HOLDFAST_TEST_PASS", "credential:pass"} {
		pass, err := ParsePassphrase(place, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, source := range []string{"credential:plain", "credential:sealed"} {
			if got := must(t)(Load(t.Context(), source, Options{Passphrase: pass})); got.KeyID() != key.KeyID() {
				t.Error("another key")
			}
		}
	}
	_, err := Load(t.Context(), "credential:none", Options{})
	wantCode(t, err, dr.KindNotFound, "")
	if !strings.Contains(dr.HintOf(err), "LoadCredential=none:") {
		t.Errorf("hint %q", dr.HintOf(err))
	}
	_, err = Load(t.Context(), "credential:../pass", Options{})
	wantCode(t, err, dr.KindInvalid, "")
}

func TestParsePassphrase(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"", "prompt", "file:/x", "env:NAME", "credential:a.b-c"} {
		if p, err := ParsePassphrase(ok, nil); err != nil || p == nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	p, _ := ParsePassphrase("", nil)
	_, err := p(t.Context(), "Passphrase of key x: ")
	wantCode(t, err, dr.KindUnauthenticated, dr.CodeKeySealed)
	for _, bad := range []string{"hunter2", "pass:hunter2", "env:hunter2 plank", "env:", "file:", "credential:../hunter2", "Prompt:hunter2"} {
		_, err := ParsePassphrase(bad, nil)
		wantCode(t, err, dr.KindInvalid, "")
		if strings.Contains(err.Error()+dr.HintOf(err), "hunter2") {
			t.Errorf("the error repeats what may be the passphrase: %v", err)
		}
	}
}

func TestWriteNew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.key")
	if err := WriteNew(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	err := WriteNew(path, []byte("two"))
	wantCode(t, err, dr.KindConflict, dr.CodeAlreadyExists)
	if got := readFile(t, path); !bytes.Equal(got, []byte("one")) {
		t.Errorf("holds %q", got)
	}
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	err = WriteNew(filepath.Join(dir, "none", "x"), nil)
	wantCode(t, err, dr.KindNotFound, "")
	// A link that leads nowhere is a name that is taken.
	if err := os.Symlink(filepath.Join(dir, "target"), filepath.Join(dir, "link")); err == nil {
		err = WriteNew(filepath.Join(dir, "link"), []byte("x"))
		wantCode(t, err, dr.KindConflict, dr.CodeAlreadyExists)
	}
}

func FuzzDecode(f *testing.F) {
	for _, n := range []string{"plain.key", "sealed.key", "paper.key", "share1.key"} {
		f.Add(readFile(f, filepath.Join("testdata", n)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		// Nobody to ask: the derivation, which is slow on purpose, is not reached.
		if key, err := Decode(t.Context(), text, nil); err == nil && key.IsZero() {
			t.Fatal("no key and no error")
		}
	})
}

var _ cut.KeyOpener = (*Store)(nil)
