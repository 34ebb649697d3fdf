//go:build unix

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/s3/s3test"
)

// pageCommands are the commands that docs/keys.md shows.
func pageCommands(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile("../../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^ {4}holdfast (.+)$`).FindAllStringSubmatch(string(raw), -1) {
		line, _, _ := strings.Cut(m[1], " #")
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

// TestKeysPage runs the commands of docs/keys.md as they stand there, in the
// vault's data directory, so that the page stays true.
func TestKeysPage(t *testing.T) {
	if testing.Short() {
		t.Skip("seals keys as people do")
	}
	commands := pageCommands(t)
	data := filepath.Join(t.TempDir(), "vault")
	must(t, "vault", "init", "--data", data, "--listen", "127.0.0.1:1", "--name", "contoso")
	t.Chdir(data)
	if err := os.WriteFile("pass", []byte("five words chosen at random"), 0o600); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, line := range commands {
		args := strings.Fields(line)
		if strings.Contains(line, "key seal") || strings.Contains(line, "key export") && !strings.Contains(line, "--shares") || strings.Contains(line, "key unseal") || strings.Contains(line, "escrow.txt") {
			args = append(args, "--passphrase-from", "file:pass")
		}
		if strings.Contains(line, "unseal") || strings.Contains(line, "combine") { // the page stands for a machine that has lost the file
			if err := os.Rename("vault.key", fmt.Sprintf("vault.key.%d", ran)); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(line, "combine") {
			for _, n := range []string{"1", "4", "5"} { // typed into files of their own
				raw, err := os.ReadFile("shares/share" + n + ".txt")
				if err == nil {
					err = os.WriteFile("share"+n+".txt", []byte(strings.ToLower(string(raw))), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if strings.Contains(line, "--data ") {
			args[len(args)-1] = data
		}
		got := cli(t, args...)
		if got.code != 0 {
			t.Fatalf("docs/keys.md: holdfast %s: %+v", line, got)
		}
		fits(t, got.out+got.err)
		if _, err := os.Stat("vault.key"); err != nil {
			t.Errorf("after %s there is no vault.key: %v", line, err)
		}
		ran++
	}
	if ran < 9 {
		t.Errorf("only %d commands were found on the page", ran)
	}
	for _, f := range []string{"escrow.txt", "shares/share1.txt"} {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if len(strings.TrimRight(line, "\n")) > 64 {
				t.Errorf("%s has a line of %d characters", f, len(line))
			}
		}
		if !strings.Contains(string(raw), "contoso") {
			t.Errorf("%s does not name the vault", f)
		}
	}
	// The vault has the rotated key, and starts with it.
	var cfg struct{ Key string }
	raw, err := os.ReadFile("config.json")
	if err == nil {
		err = json.Unmarshal(raw, &cfg)
	}
	if err != nil || filepath.Base(cfg.Key) != "next.key" {
		t.Errorf("config.json names the key %q (%v)", cfg.Key, err)
	}
	must(t, "vault", "reset-password", "--data", data)
}

func TestKeyCommands(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	at := func(name string) string { return filepath.Join(tmp, name) }
	text := must(t, "vault", "key", "new", "--out", at("k"), "-o", "json")
	documented(t, "vault key new", text)
	id := decode[struct{ KeyID string }](t, text).KeyID
	if info, err := os.Stat(at("k")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v (%v)", info.Mode(), err)
	}
	raw, err := os.ReadFile(at("k"))
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.TrimSpace(string(raw[strings.LastIndexByte(strings.TrimSpace(string(raw)), '\n')+1:]))
	for name, tc := range map[string]struct {
		args string
		kind dr.Kind
	}{
		"replace a file":           {"new --out " + at("k"), dr.KindConflict},
		"no passphrase":            {"seal --key " + at("k") + " --out " + at("s1"), dr.KindInvalid},
		"a passphrase in the open": {"seal --key " + at("k") + " --out " + at("s2") + " --passphrase-from hunter2hunter2", dr.KindInvalid},
		"a sheet and shares":       {"export --key " + at("k") + " --out " + at("s3") + " --out-dir " + tmp, dr.KindInvalid},
		"neither":                  {"export --key " + at("k"), dr.KindInvalid},
		"too few shares":           {"export --key " + at("k") + " --out-dir " + at("d1") + " --shares 2 --threshold 3", dr.KindInvalid},
		"a file that is no share":  {"combine --out " + at("c") + " " + at("k"), dr.KindCorrupt},
		"which store":              {"check --key " + at("k"), dr.KindInvalid},
	} {
		got := cli(t, append([]string{"vault", "key"}, strings.Fields(tc.args)...)...)
		if got.code == 0 || tc.kind != dr.KindCorrupt && got.code != console.ExitCode(tc.kind) {
			t.Errorf("%s: %+v", name, got)
		}
		if strings.Contains(got.out+got.err, secret) || strings.Contains(got.out+got.err, "hunter2") {
			t.Errorf("%s shows a secret", name)
		}
	}
	documented(t, "vault key export", must(t, "vault", "key", "export", "--key", at("k"), "--shares", "3", "--threshold", "2", "--out-dir", at("d"), "-o", "json"))
	if got := cli(t, "vault", "key", "export", "--key", at("k"), "--shares", "3", "--threshold", "2", "--out-dir", at("d")); got.code != console.ExitCode(dr.KindConflict) {
		t.Errorf("shares of two exports in one directory: %+v", got)
	}
	if got := cli(t, "vault", "key", "combine", "--out", at("back"), at("d/share2.txt")); got.code == 0 || !strings.Contains(got.err, "1 more") && !strings.Contains(got.err, "2") {
		t.Errorf("too few shares: %+v", got)
	}
	if got := decode[struct{ KeyID string }](t, must(t, "vault", "key", "combine", "--out", at("back"), at("d/share2.txt"), at("d/share3.txt"), "-o", "json")); got.KeyID != id {
		t.Errorf("the shares give the key %s, want %s", got.KeyID, id)
	}
}

func TestKeyCheckAndRotate(t *testing.T) {
	t.Parallel()
	r, dir, key := replica(t)
	tmp := t.TempDir()
	next, escrow, other := filepath.Join(tmp, "next"), filepath.Join(tmp, "escrow"), filepath.Join(tmp, "other")
	for _, k := range []string{next, escrow, other} {
		must(t, "vault", "key", "new", "--out", k)
	}
	check := func(k string) result {
		return cli(t, "vault", "key", "check", "--store", dir, "--key", k, "-o", "json")
	}
	if got := check(key); got.code != 0 {
		t.Errorf("%+v", got)
	}
	got := check(other)
	documented(t, "vault key check", got.out)
	if got.code != console.ExitCode(dr.KindForbidden) || !strings.Contains(got.out, `"ok": false`) {
		t.Errorf("another key opens everything: %+v", got)
	}
	fits(t, cli(t, "vault", "key", "check", "--store", dir, "--key", other).out)

	// A second key in escrow.
	text := must(t, "vault", "key", "rotate", "--store", dir, "--key", key, "--to", escrow, "--keep-key", "-o", "json")
	documented(t, "vault key rotate", text)
	if strings.Contains(text, `"changed": true`) || check(escrow).code != 0 {
		t.Errorf("%s", text)
	}
	must(t, "store", "ls", "--store", dir, "--key", key)
	if got := cli(t, "vault", "key", "rotate", "--store", dir, "--key", other, "--to", next); got.code == 0 {
		t.Errorf("rotated with a key that is not the vault's: %+v", got)
	}

	got = cli(t, "vault", "key", "rotate", "--store", dir, "--key", key, "--to", next)
	if got.code != 0 || !strings.Contains(got.err, "key check") || !strings.Contains(got.err, "--data") {
		t.Errorf("%+v", got)
	}
	if check(next).code != 0 || check(key).code != 0 {
		t.Error("after the rotation a key does not open everything")
	}
	must(t, "recover", "verify", "--store", dir, "--key", next)
	if err := r.Compare(t.Context(), r.Store(), r.Points[1]); err != nil {
		t.Error(err)
	}
	if got := cli(t, "store", "ls", "--store", dir, "--key", key); got.code != console.ExitCode(dr.KindForbidden) || !strings.Contains(got.err, "rotation") {
		t.Errorf("the old key after the rotation: %+v", got)
	}
	text = must(t, "vault", "key", "rotate", "--store", dir, "--key", key, "--to", next, "-o", "json")
	if !strings.Contains(text, `"sealed": 0`) {
		t.Errorf("a second rotation: %s", text)
	}
}

// clientOf trusts a vault's own authority.
func clientOf(t *testing.T, ca string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(ca)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("ca.pem: %v", err)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
}

// TestVaultRekeyed changes the key of a vault that has run, and starts it with a
// sealed key: its certificate, clients and users are as before.
func TestVaultRekeyed(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a real vault")
	}
	dir := t.TempDir()
	data, addr := filepath.Join(dir, "vault"), freeAddress(t)
	made := decode[initOutput](t, must(t, "vault", "init", "--data", data, "--listen", addr, "-o", "json"))
	t.Setenv("HOLDFAST_ENDPOINT", made.Endpoint)
	t.Setenv("XDG_CONFIG_HOME", dir)
	client := clientOf(t, made.CAFile)
	p := serveVault(t, data, client, "https://"+addr)
	must(t, "site", "create", "primary")

	pass, plain, next := filepath.Join(dir, "pass"), filepath.Join(dir, "plain"), filepath.Join(dir, "next.sealed")
	if err := os.WriteFile(pass, []byte("five words chosen at random"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "vault", "key", "new", "--out", plain)
	must(t, "vault", "key", "seal", "--key", plain, "--out", next, "--passphrase-from", "file:"+pass)
	rotate := []string{"vault", "key", "rotate", "--key", made.KeyFile, "--to", next, "--to-passphrase-from", "file:" + pass, "--data", data, "-o", "json"}
	if got := cli(t, rotate...); got.code != console.ExitCode(dr.KindUnavailable) || !strings.Contains(got.err, "Stop the vault") {
		t.Errorf("the key of a running vault was changed: %+v", got)
	}
	if code := p.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.log)
	}
	// The store has the new key already: the vault says so, and the command ends it.
	if got := cli(t, "vault", "serve", "--data", data); got.code == 0 {
		t.Errorf("it started with the old key: %+v", got)
	}
	for range 2 { // again, as after a crash
		if text := must(t, rotate...); !strings.Contains(text, `"switched": true`) {
			t.Errorf("%s", text)
		}
	}
	p = serveVault(t, data, client, "https://"+addr)
	if sites := must(t, "site", "list"); !strings.Contains(sites, "primary") {
		t.Errorf("after the rotation: %s", sites)
	}
	p.stop(t, syscall.SIGTERM)
	if strings.Contains(p.log.String(), "five words") {
		t.Error("the passphrase is in the log")
	}
	if got := cli(t, "vault", "serve", "--data", data, "--key", "exec:/bin/true"); got.code != console.ExitCode(dr.KindUnsupported) || !strings.Contains(got.err, "credential:") {
		t.Errorf("a vault with a key that a program keeps: %+v", got)
	}
	if got := cli(t, "vault", "serve", "--data", data, "--key", made.KeyFile); got.code == 0 {
		t.Errorf("it started with the old key: %+v", got)
	}
}

// TestVaultOnS3 makes and runs a vault whose store is a bucket.
func TestVaultOnS3(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a real vault")
	}
	at, srv := s3Store(t, "contoso")
	dir := t.TempDir()
	data, addr := filepath.Join(dir, "vault"), freeAddress(t)
	made := decode[initOutput](t, must(t, "vault", "init", "--data", data, "--listen", addr, "--store", at, "-o", "json"))
	if made.Store != at {
		t.Errorf("the store is %s, want %s", made.Store, at)
	}
	if _, err := os.Stat(filepath.Join(data, "store")); err == nil {
		t.Error("there is a store in the data directory too")
	}
	found := false
	for _, k := range srv.Keys() {
		found = found || k == "contoso/v1/vault.json"
	}
	if !found {
		t.Errorf("the bucket has %v", srv.Keys())
	}
	t.Setenv("HOLDFAST_ENDPOINT", made.Endpoint)
	t.Setenv("XDG_CONFIG_HOME", dir)
	client := clientOf(t, made.CAFile)
	p := serveVault(t, data, client, "https://"+addr)
	must(t, "site", "create", "primary")
	// The object endpoint for recovery hosts stands over the bucket.
	resp, err := client.Get("https://" + addr + "/store/v1/o/v1/vault.json")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("Holdfast-Store") != "1" {
		t.Errorf("without a ticket it answers %d", resp.StatusCode)
	}
	if code := p.stop(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.log)
	}
	if strings.Contains(p.log.String(), s3test.SecretKey) {
		t.Error("the credentials are in the log")
	}
	must(t, "recover", "--store", at, "--key", made.KeyFile)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if got := cli(t, "vault", "serve", "--data", data); got.code != console.ExitCode(dr.KindForbidden) || !strings.Contains(got.err, "config.json") {
		t.Errorf("without access to the bucket: %+v", got)
	}
	if got := cli(t, "vault", "init", "--data", filepath.Join(dir, "v2"), "--store", "s3://u:secretpass@b/p"); got.code != console.ExitCode(dr.KindInvalid) || strings.Contains(got.err, "secretpass") {
		t.Errorf("credentials in the address: %+v", got)
	}
}

// TestInitWithSealedKey takes a store over without leaving the key in the clear.
func TestInitWithSealedKey(t *testing.T) {
	if testing.Short() {
		t.Skip("seals keys as people do")
	}
	dir := t.TempDir()
	first := decode[initOutput](t, must(t, "vault", "init", "--data", filepath.Join(dir, "v1"), "--listen", "127.0.0.1:1", "-o", "json"))
	pass, sealed := filepath.Join(dir, "pass"), filepath.Join(dir, "sealed")
	if err := os.WriteFile(pass, []byte("five words chosen at random"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "vault", "key", "seal", "--key", first.KeyFile, "--out", sealed, "--passphrase-from", "file:"+pass)
	v2 := filepath.Join(dir, "v2")
	second := decode[initOutput](t, must(t, "vault", "init", "--data", v2, "--listen", "127.0.0.1:1", "--store", first.Store, "--key", sealed, "--passphrase-from", "file:"+pass, "-o", "json"))
	if second.KeyID != first.KeyID || second.KeyFile != sealed {
		t.Errorf("%+v", second)
	}
	if _, err := os.Stat(filepath.Join(v2, "vault.key")); err == nil {
		t.Error("a plain copy of the key was made")
	}
	must(t, "vault", "reset-password", "--data", v2)
}

// TestExternalKey works with a key that another program keeps, and finds out one that lies.
func TestExternalKey(t *testing.T) {
	t.Parallel()
	_, dir, key := replica(t)
	tmp := t.TempDir()
	keystore := filepath.Join(tmp, "keystore")
	tool(t, "go", "build", "-o", keystore, "../../internal/keyfile/testdata/keystore")
	source := "exec:" + keystore + " " + key
	must(t, "recover", "verify", "--store", dir, "--key", source)
	must(t, "vault", "key", "check", "--store", dir, "--key", source)
	next := filepath.Join(tmp, "next")
	must(t, "vault", "key", "new", "--out", next)

	// It says that it has the key, and opens every data key to something else.
	id := decode[[]struct{ KeyID string }](t, must(t, "vault", "key", "check", "--store", dir, "--key", key, "-o", "json"))[0].KeyID
	liar := filepath.Join(tmp, "liar")
	script := "#!/bin/sh\nread r\ncase \"$r\" in *'\"id\"'*) echo '{\"version\":1,\"keyId\":\"" + id + "\"}';;\n*) echo '{\"version\":1,\"epochKey\":\"" + strings.Repeat("QUJD", 10) + "QUI=\"}';; esac\n"
	if err := os.WriteFile(liar, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := cli(t, "vault", "key", "rotate", "--store", dir, "--key", "exec:"+liar, "--to", next); got.code == 0 || !strings.Contains(strings.Join(strings.Fields(got.out+got.err), ""), string(dr.CodeKeysLeft)) && got.code != console.ExitCode(dr.KindPrecondition) {
		t.Errorf("wrong data keys were sealed to the new key: %+v", got)
	}
	if got := cli(t, "vault", "key", "check", "--store", dir, "--key", next); got.code == 0 {
		t.Errorf("the new key opens something: %+v", got)
	}
	must(t, "store", "ls", "--store", dir, "--key", key)
	must(t, "vault", "key", "rotate", "--store", dir, "--key", source, "--to", next)
	must(t, "recover", "verify", "--store", dir, "--key", next)
}
