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
	"time"

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
		{Class: cut.ClassKey, Machine: machine, Epoch: 1, KeyID: cut.KeyID{0xab, 15: 1}},
		{Class: cut.ClassRun, Machine: machine, Gen: 2, N: 1<<64 - 1, From: 0xfedc, UID: "u-1"},
		{Class: cut.ClassRun, Machine: machine, Gen: 2, UID: "u"},
		{Class: cut.ClassMap, Machine: machine, Gen: 2, N: 3, UID: "0123456789abcdef"},
		{Class: cut.ClassData, Machine: machine, Gen: 2, N: 3, UID: "0123456789abcdef", K: 0xabcd},
		{Class: cut.ClassManifest, Machine: machine, Seq: 1<<64 - 1},
		{Class: cut.ClassLease, Machine: machine, Expires: 1<<63 - 1, UID: "u-1"},
		{Class: cut.ClassVaultKey, Seq: 0xffffffff},
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	m := "v1/m/" + string(machine)
	want := []string{"v1/vault.json", m + "/key/deadbeef.wrap", m + "/gen/00000001.gen", m + "/ffffffff/cut/ffffffffffffffff.cut",
		m + "/00000002/part/0000000000000003.00000004.ffff.seg", m + "/00000002/img/fffe/fffffffd.0000000000000003.0123-abc-z.seg",
		m + "/key/00000001.ab000000000000000000000000000001.wrap", m + "/00000002/run/ffffffffffffffff-000000000000fedc.u-1.run", m + "/00000002/run/0000000000000000-0000000000000000.u.run",
		m + "/00000002/map/0000000000000003.0123456789abcdef.map", m + "/00000002/data/0000000000000003.0123456789abcdef.abcd.seg",
		m + "/man/ffffffffffffffff.man", m + "/lease/7fffffffffffffff.u-1.lease", "v1/vault/ffffffff.json"}
	if len(want) != len(allNames()) {
		t.Fatal("a class is missing")
	}
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
		if n.Class != cut.ClassVault && n.Class != cut.ClassVaultKey && !strings.HasPrefix(n.Key(), cut.MachinePrefix(machine)) {
			t.Errorf("%q is outside the machine's prefix", n)
		}
	}
	for _, p := range []string{cut.KeyPrefix(machine), cut.GensPrefix(machine), cut.CutPrefix(machine, 0xffffffff), cut.PartPrefix(machine, 2), cut.TilePrefix(machine, 2),
		cut.RunPrefix(machine, 2), cut.MapPrefix(machine, 2), cut.DataPrefix(machine, 2), cut.ManifestPrefix(machine), cut.LeasePrefix(machine), cut.VaultKeysPrefix()} {
		if !slices.ContainsFunc(want, func(k string) bool { return strings.HasPrefix(k, p) }) {
			t.Errorf("no object has the prefix %q", p)
		}
	}
	good := want[4]
	for _, bad := range []string{"", "/", "v1", "v1/", "v1/m", "v2/vault.json", "v1/vault.json/", "/v1/vault.json", strings.ToUpper(good), good + "x", good + "/", "x" + good, good[1:],
		strings.Replace(good, "/part/", "/cut/", 1), strings.Replace(good, "/part/", "//part/", 1), strings.Replace(good, "ffff", "FFFF", 1), strings.Replace(good, "00000004", "+0000004", 1),
		strings.Replace(good, "00000004", "0x000004", 1), strings.Replace(good, "00000004", "000_0004", 1), strings.Replace(good, string(machine), "..", 1), strings.Replace(want[5], "0123-abc-z", "a.b", 1),
		strings.Replace(want[5], "0123-abc-z", "", 1), strings.Replace(want[5], "0123-abc-z", "-a", 1), strings.Replace(want[5], "0123-abc-z", strings.Repeat("a", 37), 1), m + "/00000001/l1/x.seg",
		m + "/key/00000001.00000000000000000000000000000000.wrap", m + "/key/00000001..wrap", m + "/key/00000001.AB000000000000000000000000000001.wrap", m + "/key/00000001.ab.wrap",
		m + "/00000002/run/0000000000000003-0000000000000003.u.run", m + "/00000002/run/0000000000000003-0000000000000004.u.run", m + "/00000002/run/0000000000000003.u.run",
		m + "/00000002/run/0000000000000003-0000000000000001..run", m + "/00000002/run/0000000000000003-0000000000000001.a.b.run", m + "/00000002/map/0000000000000003-0000000000000001.u.map",
		m + "/00000002/map/0000000000000003.map", m + "/00000002/data/0000000000000003.u.seg", m + "/00000002/data/0000000000000003.u.1.seg", m + "/00000002/data/0000000000000003.u.v.0001.seg",
		m + "/man/1.man", m + "/man/0000000000000001.x.man", m + "/lease/8000000000000000.u.lease", m + "/lease/0000000000000001.lease", m + "/lease/0000000000000001.-.lease",
		"v1/vault/00000000.json", "v1/vault/1.json", "v1/vault/00000001.json/x", "v1/vault/", m + "/run/0000000000000003-0000000000000001.u.run"} {
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

func TestVaultRotation(t *testing.T) {
	t.Parallel()
	var all []cut.VaultInfo
	for seq := range uint32(4) {
		priv, _ := cut.GenerateVaultKey()
		v := cut.VaultInfo{VaultID: "4f1c", Name: "Leipzig", PublicKey: priv.Public().Text(), Created: testTime, Software: "1.0", Seq: seq}
		if seq > 0 {
			v.Previous = all[seq-1].KeyID
		}
		b, err := v.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		v.Version, v.KeyID = 1, priv.KeyID()
		name, err := cut.ParseObject(v.Object())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := cut.ParseVaultKey(name, b); err != nil || got != v {
			t.Errorf("%+v, %v", got, err)
		}
		if bytes.Contains(b, []byte("previous")) != (seq > 0) || bytes.Contains(b, []byte(`"seq"`)) != (seq > 0) {
			t.Errorf("description %d is %s", seq, b)
		}
		for other := range uint64(4) {
			name := cut.ObjectName{Class: cut.ClassVaultKey, Seq: other}
			if other == 0 {
				name.Class = cut.ClassVault
			}
			if _, err := cut.ParseVaultKey(name, b); other != uint64(seq) && dr.CodeOf(err) != dr.CodeObjectCorrupt {
				t.Errorf("description %d as %d: %v", seq, other, err)
			}
		}
		if seq == 1 {
			damage(t, b, func(b []byte) error { return second(cut.ParseVaultKey(name, b)) })
		}
		all = append(all, v)
		for range 3 {
			if got, err := cut.NewestVault(all); err != nil || got != v {
				t.Errorf("newest of %d: %+v, %v", seq, got, err)
			}
			all = append(all[1:], all[0])
		}
		slices.SortFunc(all, func(a, b cut.VaultInfo) int { return int(a.Seq) - int(b.Seq) })
	}
	for i := range all { // the newest that is missing can't be known
		if _, err := cut.NewestVault(slices.Delete(slices.Clone(all), i, i+1)); i < 3 && (dr.CodeOf(err) != dr.CodeObjectMissing || !strings.Contains(err.Error(), all[i].Object())) {
			t.Errorf("without description %d: %v", i, err)
		}
	}
	for name, change := range map[string]func(v *cut.VaultInfo){
		"previous": func(v *cut.VaultInfo) { v.Previous[0]++ }, "vault": func(v *cut.VaultInfo) { v.VaultID = "x" }, "number": func(v *cut.VaultInfo) { v.Seq-- },
	} {
		bad := slices.Clone(all)
		change(&bad[2])
		if _, err := cut.NewestVault(bad); dr.KindOf(err) != dr.KindCorrupt {
			t.Errorf("other %s: %v", name, err)
		}
	}
	if _, err := cut.NewestVault(nil); dr.CodeOf(err) != dr.CodeObjectMissing {
		t.Errorf("none: %v", err)
	}
	for name, change := range map[string]func(v *cut.VaultInfo){
		"no previous":   func(v *cut.VaultInfo) { v.Previous = cut.KeyID{} },
		"itself":        func(v *cut.VaultInfo) { v.Previous = v.KeyID },
		"first of many": func(v *cut.VaultInfo) { v.Seq = 0 },
	} {
		bad := all[2]
		if change(&bad); second(bad.Marshal()) == nil {
			t.Errorf("%s: it was written", name)
		}
	}
	if _, err := cut.ParseVaultKey(cut.ObjectName{Class: cut.ClassGeneration, Machine: machine, Gen: 1}, nil); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("a generation object: %v", err)
	}
}

func TestRewrap(t *testing.T) {
	t.Parallel()
	old, _ := cut.GenerateVaultKey()
	next, _ := cut.GenerateVaultKey()
	key := cut.NewEpochKey()
	wrap, err := cut.SealEpochKey(old.Public(), machine, 7, key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := cut.RewrapEpochKey(t.Context(), old, next.Public(), machine, 7, wrap)
	if err != nil {
		t.Fatal(err)
	}
	var opener cut.KeyOpener = next
	if got, err := opener.OpenEpochKey(t.Context(), machine, 7, again); err != nil || got != key || opener.ID() != next.KeyID() {
		t.Errorf("the new key: %v", err)
	}
	if _, err := old.OpenEpochKey(t.Context(), machine, 7, again); dr.CodeOf(err) != dr.CodeKeyMismatch {
		t.Errorf("the old key: %v", err)
	}
	if got, err := old.OpenEpochKey(t.Context(), machine, 7, wrap); err != nil || got != key {
		t.Errorf("the old wrap: %v", err)
	}
	if _, err := cut.RewrapEpochKey(t.Context(), next, old.Public(), machine, 7, wrap); dr.CodeOf(err) != dr.CodeKeyMismatch {
		t.Errorf("rewrap with the wrong key: %v", err)
	}
	if _, err := cut.RewrapEpochKey(t.Context(), old, cut.VaultPublicKey{}, machine, 7, wrap); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("rewrap to no key: %v", err)
	}
	name := func(key string) cut.ObjectName {
		n, err := cut.ParseObject(key)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		key  string
		wrap []byte
		id   cut.KeyID
		code dr.Code
	}{
		{cut.KeyObject(machine, 7), wrap, old.KeyID(), ""},
		{cut.KeyObject(machine, 7), again, next.KeyID(), ""}, // an agent that knows the new key seals to it at once
		{cut.WrapObject(machine, 7, next.KeyID()), again, next.KeyID(), ""},
		{cut.WrapObject(machine, 7, next.KeyID()), wrap, cut.KeyID{}, dr.CodeObjectCorrupt},
		{cut.WrapObject(machine, 8, next.KeyID()), again, cut.KeyID{}, dr.CodeObjectCorrupt},
		{cut.WrapObject("1"+machine[1:], 7, next.KeyID()), again, cut.KeyID{}, dr.CodeObjectCorrupt},
	} {
		if id, err := cut.WrapKeyID(name(c.key), c.wrap); id != c.id || dr.CodeOf(err) != c.code {
			t.Errorf("%s: %s, %v", c.key, id, err)
		}
	}
	if _, err := cut.WrapKeyID(cut.ObjectName{Class: cut.ClassVault}, wrap); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("vault.json: %v", err)
	}
	damage(t, again, func(b []byte) error { return second(cut.WrapKeyID(name(cut.WrapObject(machine, 7, next.KeyID())), b)) })
}

func goldenLease() cut.Lease {
	return cut.Lease{Machine: machine, UID: "0123456789abcdef", Gen: 3, N: 42, Holder: "instant boot of web on kvm2", Time: testTime, Expires: testTime.Add(time.Hour).Truncate(time.Second)}
}

func TestLease(t *testing.T) {
	t.Parallel()
	l := goldenLease()
	b, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	l.Version = 1
	if got, err := cut.ParseLease(l.Name(), b); err != nil || got != l {
		t.Errorf("%+v, %v", got, err)
	}
	damage(t, b, func(b []byte) error { return second(cut.ParseLease(l.Name(), b)) })
	late := l
	late.Expires = late.Expires.Add(time.Nanosecond) // a lease never ends before its holder thinks
	if b, err = late.Marshal(); err != nil {
		t.Fatal(err)
	}
	if got, err := cut.ParseLease(late.Name(), b); err != nil || !got.Expires.Equal(l.Expires.Add(time.Second)) || late.Name().Expires != l.Name().Expires+1 {
		t.Errorf("rounded: %+v, %v", got, err)
	}
	for _, name := range []cut.ObjectName{l.Name(), {Class: cut.ClassLease, Machine: "1" + machine[1:], Expires: late.Name().Expires, UID: l.UID}, {Class: cut.ClassLease, Machine: machine, Expires: late.Name().Expires, UID: "x"}} {
		if _, err := cut.ParseLease(name, b); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Errorf("under the name %s: %v", name, err)
		}
	}
	if _, err := cut.ParseLease(cut.ObjectName{Class: cut.ClassManifest, Machine: machine, Seq: 1}, b); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("as a manifest: %v", err)
	}
	for i, f := range []func(l *cut.Lease){func(l *cut.Lease) { l.Machine = "x" }, func(l *cut.Lease) { l.Gen = 0 }, func(l *cut.Lease) { l.UID = "" },
		func(l *cut.Lease) { l.Expires = time.Time{} }, func(l *cut.Lease) { l.Expires = l.Time.Add(-1) }, func(l *cut.Lease) { l.Holder = strings.Repeat("x", 70_000) }} {
		bad := l
		if f(&bad); second(bad.Marshal()) == nil {
			t.Errorf("change %d was written", i)
		}
	}
}

func goldenManifest() cut.Manifest {
	ref := func(n uint64) cut.Ref { return cut.Ref{Gen: 3, N: n, Hash: cut.Hash{byte(n)}} }
	return cut.Manifest{
		Machine: machine, Seq: 9, Gen: 4, Tip: ref(99), Time: testTime, Software: "1.0", Keep: []cut.Ref{ref(50), ref(99)},
		Runs:   []cut.PlannedRun{{To: ref(50), UID: "u1"}, {From: ref(50), To: ref(98), UID: "u2"}, {To: ref(99), UID: "u3", Map: true}},
		Delete: []string{cut.CutObject(machine, 3, 49), cut.PartObject(machine, 3, 49, 1, 0), cut.RunObject(machine, 3, 40, 0, "u0"), cut.ManifestObject(machine, 1), cut.LeaseObject(machine, 5, "x")},
		After:  testTime.Add(24 * time.Hour), Detail: json.RawMessage(`{"version":1,"why":["a"]}`),
	}
}

func TestManifest(t *testing.T) {
	t.Parallel()
	m := goldenManifest()
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	m.Version = 1
	if got, err := cut.ParseManifest(m.Name(), b); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, %v", got, err)
	}
	damage(t, b, func(b []byte) error { return second(cut.ParseManifest(m.Name(), b)) })
	for _, name := range []cut.ObjectName{{Class: cut.ClassManifest, Machine: machine, Seq: 8}, {Class: cut.ClassManifest, Machine: "1" + machine[1:], Seq: 9}} {
		if _, err := cut.ParseManifest(name, b); dr.CodeOf(err) != dr.CodeObjectCorrupt {
			t.Errorf("under the name %s: %v", name, err)
		}
	}
	if _, err := cut.ParseManifest(goldenLease().Name(), b); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("as a lease: %v", err)
	}
	for name, f := range map[string]func(m *cut.Manifest){
		"machine": func(m *cut.Manifest) { m.Machine = "x" }, "gen": func(m *cut.Manifest) { m.Gen = 0 }, "time": func(m *cut.Manifest) { m.Time = time.Time{} },
		"after": func(m *cut.Manifest) { m.After = time.Time{} }, "uid": func(m *cut.Manifest) { m.Runs[0].UID = "" }, "to nothing": func(m *cut.Manifest) { m.Runs[0].To = cut.Ref{} },
		"from cut 0": func(m *cut.Manifest) { m.Runs[1].From.N = 0 }, "backwards": func(m *cut.Manifest) { m.Runs[1].From.N = 98 }, "map from": func(m *cut.Manifest) { m.Runs[1].Map = true },
		"newer gen": func(m *cut.Manifest) { m.Runs[1].To.Gen = 5 }, "other machine": func(m *cut.Manifest) { m.Delete[0] = cut.CutObject("1"+machine[1:], 3, 49) },
		"no object": func(m *cut.Manifest) { m.Delete[0] = "v1/m" }, "generation": func(m *cut.Manifest) { m.Delete[0] = cut.GenObject(machine, 1) },
		"sealed key": func(m *cut.Manifest) { m.Delete[0] = cut.KeyObject(machine, 1) }, "vault": func(m *cut.Manifest) { m.Delete[0] = cut.VaultObject() },
		"detail": func(m *cut.Manifest) { m.Detail = json.RawMessage(`{`) }, "size": func(m *cut.Manifest) { m.Software = strings.Repeat("x", cut.MaxManifest) },
	} {
		bad := goldenManifest()
		if f(&bad); second(bad.Marshal()) == nil {
			t.Errorf("%s: it was written", name)
		}
	}
	// What is checked when writing is checked when reading.
	hostile := bytes.Replace(b, []byte("/00000003/cut/0000000000000031.cut"), []byte("/gen/00000001.gen"), 1)
	if _, err := cut.ParseManifest(m.Name(), resum(hostile)); dr.CodeOf(err) != dr.CodeObjectCorrupt || !strings.Contains(err.Error(), "never deleted") {
		t.Errorf("a plan to delete a generation: %v", err)
	}
	// Plans are much longer than other records.
	for i := range 3_000 {
		m.Delete = append(m.Delete, cut.CutObject(machine, 3, uint64(1000+i)))
	}
	if b, err = m.Marshal(); err != nil || len(b) < 128<<10 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if got, err := cut.ParseManifest(m.Name(), b); err != nil || len(got.Delete) != len(m.Delete) {
		t.Error(err)
	}
	if _, err := cut.ParseManifest(m.Name(), append(b, make([]byte, cut.MaxManifest)...)); dr.CodeOf(err) != dr.CodeObjectCorrupt {
		t.Errorf("too long: %v", err)
	}
}

// resum makes the checksum of a record right again.
func resum(rec []byte) []byte {
	body := rec[len(`{"holdfast":`):bytes.LastIndex(rec, []byte(`,"sha256"`))]
	return fmt.Appendf(nil, "{\"holdfast\":%s,\"sha256\":\"%x\"}\n", body, sha256.Sum256(body))
}

func FuzzRecords(f *testing.F) {
	priv, _ := cut.GenerateVaultKey()
	v, _ := cut.VaultInfo{VaultID: "v", PublicKey: priv.Public().Text()}.Marshal()
	g, _ := cut.GenInfo{Machine: machine, Gen: 4}.Marshal()
	wrap, _ := cut.SealEpochKey(priv.Public(), machine, 7, testKey())
	text, _ := priv.Text()
	later, _ := cut.VaultInfo{VaultID: "v", PublicKey: priv.Public().Text(), Seq: 1, Previous: cut.KeyID{1}}.Marshal()
	lease, _ := goldenLease().Marshal()
	man, _ := goldenManifest().Marshal()
	for _, s := range [][]byte{v, g, wrap, []byte(text), []byte(priv.Public().Text()), later, lease, man} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.HasPrefix(b, []byte(`{"holdfast":`)) && bytes.Contains(b[12:], []byte(`,"sha256"`)) {
			b = resum(b) // let mutations come further than the checksum
		}
		if v, err := cut.ParseVaultKey(cut.ObjectName{Class: cut.ClassVaultKey, Seq: 1}, b); err == nil {
			if again, err := v.Marshal(); err != nil {
				t.Error(err)
			} else if _, err := cut.NewestVault([]cut.VaultInfo{v}); err == nil {
				t.Errorf("%s is the newest without vault.json", again)
			}
		}
		if l, err := cut.ParseLease(goldenLease().Name(), b); err == nil {
			if again, err := l.Marshal(); err != nil || second(cut.ParseLease(l.Name(), again)) != nil {
				t.Errorf("a lease does not survive a round trip: %v", err)
			}
		}
		if m, err := cut.ParseManifest(goldenManifest().Name(), b); err == nil {
			if again, err := m.Marshal(); err != nil || second(cut.ParseManifest(m.Name(), again)) != nil {
				t.Errorf("a manifest does not survive a round trip: %v", err)
			}
		}
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
