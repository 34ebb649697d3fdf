package keyfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// cheap is the least work that is allowed: tests guess right.
var cheap = Cost{Time: 1, Memory: 8 << 10, Threads: 1}

const phrase = "orbit plank velvet seven"

func secret(s string) Secret { return NewSecret([]byte(s)) }

func newKey(t testing.TB) cut.VaultPrivateKey {
	t.Helper()
	key, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keyText(t testing.TB, key cut.VaultPrivateKey) string {
	t.Helper()
	text, err := key.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// goldenKey is the key in testdata: its files must open for ever.
func goldenKey(t testing.TB) cut.VaultPrivateKey {
	t.Helper()
	return must(t)(cut.ParseVaultPrivateKey(string(readFile(t, "testdata/plain.key"))))
}

func must(t testing.TB) func(cut.VaultPrivateKey, error) cut.VaultPrivateKey {
	return func(k cut.VaultPrivateKey, err error) cut.VaultPrivateKey {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantCode(t testing.TB, err error, kind dr.Kind, code dr.Code) {
	t.Helper()
	if err == nil || dr.CodeOf(err) != code || dr.KindOf(err) != kind {
		t.Fatalf("error %v (kind %v, code %q), want kind %v, code %q", err, dr.KindOf(err), dr.CodeOf(err), kind, code)
	}
}

func sealCheap(t testing.TB, key cut.VaultPrivateKey, cfg SealConfig) []byte {
	t.Helper()
	cfg.Cost = cheap
	text, err := Seal(key, secret(phrase), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSealUnseal(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	for _, paper := range []bool{false, true} {
		text := sealCheap(t, key, SealConfig{Vault: "Contoso  Vault\n1", Paper: paper})
		info, err := Inspect(text)
		if err != nil {
			t.Fatal(err)
		}
		if info.Vault != "Contoso Vault 1" || info.KeyID != key.KeyID() || info.Cost != cheap || info.PublicKey.IsZero() != paper {
			t.Errorf("info %+v", info)
		}
		if got := must(t)(Unseal(text, secret(phrase))); keyText(t, got) != keyText(t, key) {
			t.Error("another key came back")
		}
		_, err = Unseal(text, secret(phrase+"x"))
		wantCode(t, err, dr.KindUnauthenticated, dr.CodePassphraseWrong)
		_, err = Unseal(text, Secret{})
		wantCode(t, err, dr.KindUnauthenticated, dr.CodePassphraseWrong)
		checkLines(t, text)
	}
}

func checkLines(t *testing.T, text []byte) {
	t.Helper()
	for l := range bytes.Lines(text) {
		if n := utf8.RuneCount(bytes.TrimRight(l, "\n")); n > 64 {
			t.Errorf("line of %d characters: %s", n, l)
		}
	}
}

// TestTypedFromPaper: other case, other spacing, Windows line ends and notes do not matter.
func TestTypedFromPaper(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	text := string(sealCheap(t, key, SealConfig{Vault: "v", Paper: true}))
	var typed strings.Builder
	for l := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(l), ": ")
		if isBytes(name) {
			value = strings.ToLower(strings.ReplaceAll(value, " ", ""))
			value = strings.NewReplacer("o", "0", "i", "1").Replace(value)
			l = name + ":   " + value[:3] + " " + value[3:] + "\r\n\r\n # typed on Tuesday\r\n"
		}
		if name == "key" || name == checksum {
			l = name + ": " + strings.ToUpper(value) + "\n"
		}
		typed.WriteString(l)
	}
	if got := must(t)(Unseal([]byte(typed.String()), secret(phrase))); got.KeyID() != key.KeyID() {
		t.Error("another key came back")
	}
}

// TestDamageIsNotAWrongPassphrase changes every character of every line that counts.
func TestDamageIsNotAWrongPassphrase(t *testing.T) {
	t.Parallel()
	text := sealCheap(t, newKey(t), SealConfig{Vault: "v", Paper: true})
	start := bytes.Index(text, []byte(sealedWhat))
	for i := start; i < len(text); i++ {
		if text[i] == '\n' || text[i] == ' ' {
			continue
		}
		bad := bytes.Clone(text)
		bad[i] ^= 0x01
		if bytes.EqualFold(bad, text) {
			continue
		}
		_, err := Unseal(bad, secret(phrase))
		if code := dr.CodeOf(err); err == nil || code == dr.CodePassphraseWrong {
			t.Fatalf("character %d (%q → %q): %v", i, text[i], bad[i], err)
		} else if i > start+len(sealedWhat) && code != dr.CodeKeyFileDamaged {
			t.Fatalf("character %d (%q → %q): %v, code %q", i, text[i], bad[i], err, code)
		}
	}
	for cutAt := start + len(sealedWhat) + 1; cutAt < len(text)-1; cutAt++ {
		_, err := Unseal(text[:cutAt], secret(phrase))
		wantCode(t, err, dr.KindCorrupt, dr.CodeKeyFileDamaged)
	}
}

func TestTypingErrorNamesItsLine(t *testing.T) {
	t.Parallel()
	text := string(sealCheap(t, newKey(t), SealConfig{Paper: true}))
	lines := strings.SplitAfter(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "sealed: ") {
			c := "A"
			if l[10] == 'A' {
				c = "B"
			}
			lines[i] = l[:10] + c + l[11:]
			_, err := Inspect([]byte(strings.Join(lines, "")))
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("line %d,", i+1)) {
				t.Errorf("error %v does not name line %d", err, i+1)
			}
			return
		}
	}
	t.Fatal("no line of bytes")
}

// reseal gives an altered block a right checksum, as a hostile writer would.
func reseal(t testing.TB, text []byte, alter func(*block)) []byte {
	t.Helper()
	b, err := parseBlock(sealedWhat, text)
	if err != nil {
		t.Fatal(err)
	}
	alter(b)
	return b.seal()
}

func TestHostileSealedKey(t *testing.T) {
	t.Parallel()
	text := sealCheap(t, newKey(t), SealConfig{Vault: "v"})
	set := func(name, value string) func(*block) {
		return func(b *block) {
			for i := range b.lines {
				if b.lines[i].name == name {
					b.lines[i].value = value
				}
			}
		}
	}
	for _, c := range []struct {
		name  string
		alter func(*block)
		kind  dr.Kind
		code  dr.Code
	}{
		{"memory of 4 TiB", set("kdf", "argon2id time=1 memory=4294967295 threads=1"), dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"memory over 1 GiB", set("kdf", "argon2id time=1 memory=1048577 threads=1"), dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"21 passes", set("kdf", "argon2id time=21 memory=8192 threads=1"), dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"no passes", set("kdf", "argon2id time=0 memory=8192 threads=1"), dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"no threads", set("kdf", "argon2id time=1 memory=8192 threads=0"), dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"other derivation", set("kdf", "scrypt n=1"), dr.KindUnsupported, dr.CodeFormatUnsupported},
		{"other cipher", set("cipher", "rot13"), dr.KindUnsupported, dr.CodeFormatUnsupported},
		{"number in other spelling", set("kdf", "argon2id time=+1 memory=8192 threads=1"), dr.KindUnsupported, dr.CodeFormatUnsupported},
		{"more behind", set("kdf", "argon2id time=1 memory=8192 threads=1 x"), dr.KindUnsupported, dr.CodeFormatUnsupported},
		{"cheaper derivation", set("kdf", "argon2id time=2 memory=8192 threads=1"), dr.KindUnauthenticated, dr.CodePassphraseWrong},
		{"other vault name", set("vault", "w"), dr.KindUnauthenticated, dr.CodePassphraseWrong},
		{"other key id", set("key", strings.Repeat("0", 32)), dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"unknown field", func(b *block) { b.add("more", "x") }, dr.KindCorrupt, dr.CodeKeyFileDamaged},
		{"no salt", func(b *block) { b.lines = append(b.lines[:len(b.lines)-5], b.lines[len(b.lines)-4:]...) }, dr.KindCorrupt, dr.CodeKeyFileDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := Unseal(reseal(t, text, c.alter), secret(phrase))
			wantCode(t, err, c.kind, c.code)
		})
	}
}

// TestForeignKeyInside: what opens has to be the key that is named.
func TestForeignKeyInside(t *testing.T) {
	t.Parallel()
	a, b := newKey(t), newKey(t)
	raw, err := rawKey("test", a)
	if err != nil {
		t.Fatal(err)
	}
	blk := &block{what: sealedWhat}
	blk.add("key", b.KeyID().String())
	blk.add("kdf", fmt.Sprintf(kdfFormat, 1, 8<<10, 1))
	salt := make([]byte, saltSize)
	blk.addBytes("salt", salt)
	blk.add("cipher", sealedCipher)
	aead, _ := gcm(cheap.derive(secret(phrase), salt))
	blk.addBytes("sealed", aead.Seal(nil, nil, raw, blk.text()))
	_, err = Unseal(blk.seal(), secret(phrase))
	wantCode(t, err, dr.KindCorrupt, dr.CodeKeyFileDamaged)
}

func TestLaterVersion(t *testing.T) {
	t.Parallel()
	text := sealCheap(t, newKey(t), SealConfig{})
	_, err := Inspect(bytes.Replace(text, []byte("sealed-key-1"), []byte("sealed-key-2"), 1))
	wantCode(t, err, dr.KindUnsupported, dr.CodeFormatUnsupported)
	_, err = Inspect([]byte("something else"))
	wantCode(t, err, dr.KindInvalid, "")
	_, err = Inspect(bytes.Repeat([]byte("#"), maxBlock+1))
	wantCode(t, err, dr.KindInvalid, "")
}

func TestSealRefuses(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	for name, c := range map[string]struct {
		key  cut.VaultPrivateKey
		pass string
		cost Cost
	}{
		"no key":           {cut.VaultPrivateKey{}, phrase, cheap},
		"short passphrase": {key, "short", cheap},
		"long passphrase":  {key, strings.Repeat("x", maxPassphrase+1), cheap},
		"too cheap":        {key, phrase, Cost{Time: 1, Memory: 1024, Threads: 1}},
		"too dear":         {key, phrase, Cost{Time: 1, Memory: 2 << 20, Threads: 1}},
	} {
		if _, err := Seal(c.key, secret(c.pass), SealConfig{Cost: c.cost}); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := DefaultCost().Validate(); err != nil {
		t.Error(err)
	}
}

// TestGolden reads what version 1 wrote. HOLDFAST_UPDATE=1 writes it anew, which
// is right only before the first release of a version.
func TestGolden(t *testing.T) {
	t.Parallel()
	if os.Getenv("HOLDFAST_UPDATE") != "" {
		writeGolden(t)
	}
	key := goldenKey(t)
	for _, f := range []string{"sealed.key", "paper.key"} {
		text := readFile(t, filepath.Join("testdata", f))
		if got := must(t)(Unseal(text, secret(phrase))); got.KeyID() != key.KeyID() {
			t.Errorf("%s: another key", f)
		}
		info, err := Inspect(text)
		if err != nil || info.Vault != "Golden vault" {
			t.Errorf("%s: %+v, %v", f, info, err)
		}
	}
	var shares []Share
	for _, n := range []int{1, 2, 3} {
		text := readFile(t, fmt.Sprintf("testdata/share%d.key", n))
		s, err := ParseShare(text)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Text()
		if err != nil || !bytes.Equal(again, text) {
			t.Errorf("share %d is written differently now: %v\n%s", n, err, again)
		}
		shares = append(shares, s)
	}
	for _, two := range [][]Share{{shares[0], shares[1]}, {shares[2], shares[0]}, {shares[1], shares[2]}} {
		if got := must(t)(Combine(two)); keyText(t, got) != keyText(t, key) {
			t.Error("another key")
		}
	}
}

func writeGolden(t *testing.T) {
	key := newKey(t)
	files := map[string][]byte{
		"plain.key":  []byte(keyText(t, key)),
		"sealed.key": sealCheap(t, key, SealConfig{Vault: "Golden vault"}),
		"paper.key":  sealCheap(t, key, SealConfig{Vault: "Golden vault", Paper: true}),
	}
	shares, err := Split(key, "Golden vault", 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shares {
		text, err := s.Text()
		if err != nil {
			t.Fatal(err)
		}
		files[fmt.Sprintf("share%d.key", s.Number)] = text
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join("testdata", name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSecretsHide prints everything that holds a secret in every way.
func TestSecretsHide(t *testing.T) {
	t.Parallel()
	const mark = "hunter2-hunter2"
	sec := secret(mark)
	share := Share{Number: 1, Count: 3, Threshold: 2, value: secret(mark)}
	store := &Store{path: "/bin/x", args: []string{mark}}
	for _, v := range []any{sec, &sec, share, &share, store, *store, struct{ S Secret }{sec}, []Share{share}, base64Secret{sec}, storeAnswer{EpochKey: base64Secret{sec}}} {
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		js, err := json.Marshal(v)
		if err != nil {
			t.Errorf("%T: %v", v, err)
		}
		all := fmt.Sprintf("%v %+v %#v %s %q %x %d", v, v, v, v, v, v, v) + log.String() + string(js)
		if strings.Contains(all, mark) || strings.Contains(all, fmt.Sprintf("%x", mark)) || strings.Contains(all, "104 117 110") {
			t.Errorf("%T shows its secret: %s", v, all)
		}
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	b := []byte("abc")
	s := NewSecret(b)
	same := s
	s.Wipe()
	s.Wipe()
	if string(b) != "\x00\x00\x00" || same.Len() != 0 || (Secret{}).Len() != 0 {
		t.Error("not wiped")
	}
	(Secret{}).Wipe()
}

func TestPlainName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                       "",
		"  a \t b\n":             "a b",
		"a\x00b\xff":             "a?b?",
		strings.Repeat("ä", 50):  strings.Repeat("ä", 40),
		"#x":                     "#x",
		strings.Repeat("a ", 30): strings.TrimSpace(strings.Repeat("a ", 20)),
	} {
		if got := plainName(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestDecodeAsksOnce(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	text := sealCheap(t, key, SealConfig{Vault: "Contoso"})
	asked := 0
	pass := Prompt(func(_ context.Context, question string) ([]byte, error) {
		asked++
		if !strings.Contains(question, "Contoso") || !strings.Contains(question, key.KeyID().String()) {
			t.Errorf("question %q", question)
		}
		return []byte(phrase + "\n"), nil
	})
	must(t)(Decode(t.Context(), text, pass))
	_, err := Decode(t.Context(), text[:len(text)-5], pass)
	wantCode(t, err, dr.KindCorrupt, dr.CodeKeyFileDamaged)
	must(t)(Decode(t.Context(), []byte(keyText(t, key)), pass))
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	_, err = Decode(t.Context(), text, nil)
	wantCode(t, err, dr.KindUnauthenticated, dr.CodeKeySealed)
	_, err = Decode(t.Context(), text, Prompt(func(context.Context, string) ([]byte, error) { return nil, context.Canceled }))
	if !errors.Is(err, context.Canceled) || dr.KindOf(err) != dr.KindCanceled {
		t.Errorf("cancelled prompt: %v", err)
	}
	typo := strings.Replace(keyText(t, key), privateLabel, privateLabel+"x", 1)
	_, err = Decode(t.Context(), []byte(typo), nil)
	wantCode(t, err, dr.KindCorrupt, dr.CodeKeyFileDamaged)
	if strings.Contains(err.Error(), strings.TrimSpace(keyText(t, key)[len(keyText(t, key))-20:])) {
		t.Error("the error shows the key")
	}
}
