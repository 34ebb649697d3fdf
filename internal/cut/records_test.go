package cut_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"reflect"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
)

func allNames() []cut.ObjectName {
	return []cut.ObjectName{
		{Class: cut.ClassVault},
		{Class: cut.ClassKey, Machine: machine, Epoch: 0xdeadbeef},
		{Class: cut.ClassGeneration, Machine: machine, Gen: 1},
		{Class: cut.ClassCut, Machine: machine, Gen: 0xffffffff, N: 1<<64 - 1},
		{Class: cut.ClassPart, Machine: machine, Gen: 2, N: 3, Attempt: 4, K: 0xffff},
		{Class: cut.ClassTile, Machine: machine, Gen: 2, N: 3, Disk: 0xfffe, Tile: 0xfffffffd, UID: "0123-abc-z"},
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	m := "v1/m/" + string(machine)
	want := []string{"v1/vault.json", m + "/key/deadbeef.wrap", m + "/gen/00000001.gen", m + "/ffffffff/cut/ffffffffffffffff.cut",
		m + "/00000002/part/0000000000000003.00000004.ffff.seg", m + "/00000002/img/fffe/fffffffd.0000000000000003.0123-abc-z.seg"}
	for i, n := range allNames() {
		if n.Key() != want[i] {
			t.Errorf("key %q, want %q", n.Key(), want[i])
		}
		if got, err := cut.ParseObject(n.Key()); err != nil || got != n {
			t.Errorf("ParseObject(%q) = %+v, %v", n.Key(), got, err)
		}
		if err := objstore.ValidateKey(n.Key()); err != nil {
			t.Errorf("no store takes it: %v", err)
		}
		if n.Class != cut.ClassVault && !strings.HasPrefix(n.Key(), cut.MachinePrefix(machine)) {
			t.Errorf("%q is outside the machine's prefix", n)
		}
	}
	for _, p := range []string{cut.KeyPrefix(machine), cut.GensPrefix(machine), cut.CutPrefix(machine, 0xffffffff), cut.PartPrefix(machine, 2), cut.TilePrefix(machine, 2)} {
		if !slices.ContainsFunc(want, func(k string) bool { return strings.HasPrefix(k, p) }) {
			t.Errorf("no object has the prefix %q", p)
		}
	}
	good := want[4]
	for _, bad := range []string{"", "/", "v1", "v1/", "v1/m", "v2/vault.json", "v1/vault.json/", "/v1/vault.json", strings.ToUpper(good), good + "x", good + "/", "x" + good, good[1:],
		strings.Replace(good, "/part/", "/cut/", 1), strings.Replace(good, "/part/", "//part/", 1), strings.Replace(good, "ffff", "FFFF", 1), strings.Replace(good, "00000004", "+0000004", 1),
		strings.Replace(good, "00000004", "0x000004", 1), strings.Replace(good, "00000004", "000_0004", 1), strings.Replace(good, string(machine), "..", 1), strings.Replace(want[5], "0123-abc-z", "a.b", 1),
		strings.Replace(want[5], "0123-abc-z", "", 1), strings.Replace(want[5], "0123-abc-z", "-a", 1), strings.Replace(want[5], "0123-abc-z", strings.Repeat("a", 37), 1), m + "/00000001/l1/x.seg"} {
		if n, err := cut.ParseObject(bad); err == nil || dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("ParseObject(%q) = %+v, %v", bad, n, err)
		}
	}
	if a, b := cut.NewUID(), cut.NewUID(); a == b || len(a) != 16 {
		t.Errorf("uids %q %q", a, b)
	}
}

func FuzzParseObject(f *testing.F) {
	for _, n := range allNames() {
		f.Add(n.Key())
	}
	f.Fuzz(func(t *testing.T, key string) {
		if n, err := cut.ParseObject(key); err == nil && (n.Key() != key || objstore.ValidateKey(key) != nil) {
			t.Errorf("%q parsed as %+v", key, n)
		}
	})
}

func TestEpochKeySeal(t *testing.T) {
	t.Parallel()
	priv, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	other, _ := cut.GenerateVaultKey()
	key := cut.NewEpochKey()
	wrap, err := cut.SealEpochKey(priv.Public(), machine, 7, key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := cut.OpenEpochKey(priv, machine, 7, wrap); err != nil || got != key {
		t.Fatalf("open: %v", err)
	}
	if bytes.Contains(wrap, key[:8]) {
		t.Error("the key is in the clear")
	}
	if _, err := cut.OpenEpochKey(other, machine, 7, wrap); dr.CodeOf(err) != dr.CodeKeyMismatch || !strings.Contains(err.Error(), priv.KeyID().String()) {
		t.Errorf("other vault key: %v", err)
	}
	if _, err := cut.OpenEpochKey(priv, machine, 8, wrap); dr.CodeOf(err) != dr.CodeObjectCorrupt {
		t.Errorf("other epoch: %v", err)
	}
	if _, err := cut.OpenEpochKey(priv, "1"+machine[1:], 7, wrap); dr.CodeOf(err) != dr.CodeObjectCorrupt {
		t.Errorf("other machine: %v", err)
	}
	for i := range wrap {
		bad := bytes.Clone(wrap)
		bad[i] ^= 1 << (i % 8)
		if _, err := cut.OpenEpochKey(priv, machine, 7, bad); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := cut.OpenEpochKey(other, machine, 7, bad); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Fatalf("byte %d with another key: damage is taken for a wrong key: %v", i, err)
		}
		if _, err := cut.OpenEpochKey(priv, machine, 7, wrap[:i]); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	for name, err := range map[string]error{
		"no public key":  second(cut.SealEpochKey(cut.VaultPublicKey{}, machine, 7, key)),
		"machine":        second(cut.SealEpochKey(priv.Public(), "x", 7, key)),
		"no private key": second(cut.OpenEpochKey(cut.VaultPrivateKey{}, machine, 7, wrap)),
		"open machine":   second(cut.OpenEpochKey(priv, "x", 7, wrap)),
	} {
		if err == nil || dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestVaultKeyText(t *testing.T) {
	t.Parallel()
	priv, _ := cut.GenerateVaultKey()
	text, err := priv.Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{text, "\r\n" + strings.ReplaceAll(text, "\n", "\r\n\r\n"), "  " + strings.Split(text, "\n")[2] + "\t"} {
		got, err := cut.ParseVaultPrivateKey(s)
		if err != nil || got.KeyID() != priv.KeyID() {
			t.Errorf("private key: %v", err)
		}
	}
	pub, err := cut.ParseVaultPublicKey(priv.Public().Text())
	if err != nil || pub.KeyID() != priv.KeyID() || priv.KeyID() == (cut.KeyID{}) {
		t.Errorf("public key: %v", err)
	}
	line := strings.Split(text, "\n")[2]
	for i := range line {
		bad := []byte(line)
		if bad[i]++; bad[i] == '#' {
			continue
		}
		_, err := cut.ParseVaultPrivateKey(string(bad))
		if err == nil {
			t.Errorf("a private key with a typing error at %d was taken", i)
		} else if strings.Contains(err.Error(), line[40:60]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	for _, bad := range []string{"", "# only\n", text + text, priv.Public().Text(), "holdfast-vault-private-key-1:", "holdfast-vault-private-key-2:AAAA", line[:len(line)-4]} {
		if _, err := cut.ParseVaultPrivateKey(bad); err == nil || dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%.30q: %v", bad, err)
		}
	}
	if _, err := cut.ParseVaultPublicKey(text); err == nil || strings.Contains(err.Error(), line[40:60]) {
		t.Errorf("private as public key: %v", err)
	}
	if b, err := json.Marshal(map[string]any{"k": priv, "e": testKey()}); err != nil || !strings.Contains(string(b), "redacted") || strings.Contains(string(b), line[40:60]) {
		t.Errorf("JSON: %s %v", b, err)
	}
}

func TestVaultInfo(t *testing.T) {
	t.Parallel()
	priv, _ := cut.GenerateVaultKey()
	v := cut.VaultInfo{VaultID: "4f1c", Name: "Leipzig", PublicKey: priv.Public().Text(), Created: testTime, Software: "1.0"}
	b, err := v.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) {
		t.Error("vault.json is not JSON")
	}
	v.Version, v.KeyID = 1, priv.KeyID()
	if got, err := cut.ParseVaultInfo(b); err != nil || got != v {
		t.Errorf("%+v, %v", got, err)
	}
	damage(t, b, func(b []byte) error { return second(cut.ParseVaultInfo(b)) })
	if _, err := (cut.VaultInfo{VaultID: "x"}).Marshal(); err == nil {
		t.Error("a vault without key was written")
	}
}

func TestGenInfo(t *testing.T) {
	t.Parallel()
	name := cut.ObjectName{Class: cut.ClassGeneration, Machine: machine, Gen: 4}
	g := cut.GenInfo{Machine: machine, Gen: 4, Base: cut.Ref{Gen: 3, N: 99, Hash: cut.Hash{7}}, Agent: "a1", Reason: "takeover", Time: testTime}
	b, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	g.Version = 1
	if got, err := cut.ParseGenInfo(name, b); err != nil || got != g {
		t.Errorf("%+v, %v", got, err)
	}
	damage(t, b, func(b []byte) error { return second(cut.ParseGenInfo(name, b)) })
	name.Gen++
	if _, err := cut.ParseGenInfo(name, b); dr.CodeOf(err) != dr.CodeObjectCorrupt {
		t.Errorf("wrong name: %v", err)
	}
	for _, f := range []func(g *cut.GenInfo){func(g *cut.GenInfo) { g.Gen = 0 }, func(g *cut.GenInfo) { g.Machine = "" }, func(g *cut.GenInfo) { g.Base.Gen = 4 }, func(g *cut.GenInfo) { g.Reason = strings.Repeat("x", 70000) }} {
		bad := g
		if f(&bad); second(bad.Marshal()) == nil {
			t.Errorf("%.200v was written", fmt.Sprint(bad))
		}
	}
}

// damage flips every bit and cuts at every length.
func damage(t *testing.T, b []byte, parse func([]byte) error) {
	t.Helper()
	for i := range b {
		for bit := range 8 {
			bad := bytes.Clone(b)
			bad[i] ^= 1 << bit
			if err := parse(bad); dr.CodeOf(err) != dr.CodeObjectCorrupt {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
		if err := parse(b[:i]); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
}

func FuzzRecords(f *testing.F) {
	priv, _ := cut.GenerateVaultKey()
	v, _ := cut.VaultInfo{VaultID: "v", PublicKey: priv.Public().Text()}.Marshal()
	g, _ := cut.GenInfo{Machine: machine, Gen: 4}.Marshal()
	wrap, _ := cut.SealEpochKey(priv.Public(), machine, 7, testKey())
	text, _ := priv.Text()
	for _, s := range [][]byte{v, g, wrap, []byte(text), []byte(priv.Public().Text())} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := cut.ParseVaultInfo(b); err == nil {
			again, err := v.Marshal()
			if err != nil {
				t.Error(err)
			} else if got, err := cut.ParseVaultInfo(again); err != nil || !reflect.DeepEqual(got.KeyID, v.KeyID) {
				t.Error(err)
			}
		}
		_, _ = cut.ParseGenInfo(cut.ObjectName{Class: cut.ClassGeneration, Machine: machine, Gen: 4}, b)
		_, _ = cut.OpenEpochKey(priv, machine, 7, b)
		_, _ = cut.ParseVaultPublicKey(string(b))
		_, _ = cut.ParseVaultPrivateKey(string(b))
	})
}

// TestOtherVersions checks that whole objects of another version are told from damaged ones.
func TestOtherVersions(t *testing.T) {
	t.Parallel()
	priv, _ := cut.GenerateVaultKey()
	for _, at := range []int{8, 9, 10} {
		wrap, _ := cut.SealEpochKey(priv.Public(), machine, 7, testKey())
		wrap[at]++
		body := wrap[:len(wrap)-4]
		binary.LittleEndian.PutUint32(wrap[len(body):], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
		if _, err := cut.OpenEpochKey(priv, machine, 7, wrap); dr.CodeOf(err) != dr.CodeFormatUnsupported {
			t.Errorf("sealed key, byte %d: %v", at, err)
		}
	}
	for body, code := range map[string]dr.Code{
		`{"version":2,"machine":5}`: dr.CodeFormatUnsupported, `{}`: dr.CodeFormatUnsupported, `{"version":"1"}`: dr.CodeObjectCorrupt,
		`{"version":1,"machine":5}`: dr.CodeObjectCorrupt, `{"version":1}`: dr.CodeObjectCorrupt, `[]`: dr.CodeObjectCorrupt,
	} {
		rec := fmt.Appendf(nil, "{\"holdfast\":%s,\"sha256\":\"%x\"}\n", body, sha256.Sum256([]byte(body)))
		if _, err := cut.ParseGenInfo(cut.ObjectName{Class: cut.ClassGeneration, Machine: machine, Gen: 4}, rec); dr.CodeOf(err) != code {
			t.Errorf("generation %s: %v", body, err)
		}
		if _, err := cut.ParseVaultInfo(rec); dr.CodeOf(err) != code {
			t.Errorf("vault.json %s: %v", body, err)
		}
	}
}
