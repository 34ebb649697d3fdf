package keyfile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

func TestField(t *testing.T) {
	t.Parallel()
	mul := func(a, b int) byte { // by the book: carry-less product, reduced
		p := 0
		for i := range 8 {
			if b>>i&1 == 1 {
				p ^= a << i
			}
		}
		for i := 14; i >= 8; i-- {
			if p>>i&1 == 1 {
				p ^= 0x11b << (i - 8)
			}
		}
		return byte(p)
	}
	for a := range 256 {
		for b := range 256 {
			if got, want := gfMul(byte(a), byte(b)), mul(a, b); got != want {
				t.Fatalf("%d·%d = %d, want %d", a, b, got, want)
			}
		}
		if a != 0 && gfMul(byte(a), gfInv(byte(a))) != 1 {
			t.Fatalf("inverse of %d", a)
		}
	}
	if gfInv(0) != 0 {
		t.Error("inverse of 0")
	}
}

// TestAnyThresholdSharesGiveTheKey tries every subset of 5 shares.
func TestAnyThresholdSharesGiveTheKey(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	for k := 2; k <= 5; k++ {
		shares, err := Split(key, "v", 5, k)
		if err != nil {
			t.Fatal(err)
		}
		for mask := range 1 << 5 {
			var some []Share
			for i := range 5 {
				if mask>>i&1 == 1 {
					some = append(some, shares[i])
				}
			}
			rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
			got, err := Combine(some)
			if len(some) < k {
				wantCode(t, err, dr.KindInvalid, dr.CodeKeySharesTooFew)
				continue
			}
			if err != nil || keyText(t, got) != keyText(t, key) {
				t.Fatalf("threshold %d, subset %05b: %v", k, mask, err)
			}
		}
	}
}

// TestFewerSharesTellNothing is exact: to any k-1 shares and any secret there is
// exactly one value of a further share. So every secret is as likely as it was before.
func TestFewerSharesTellNothing(t *testing.T) {
	t.Parallel()
	for _, k := range []int{2, 3, 4} {
		shares := split([]byte{0x5a}, 6, k)
		known, xs := shares[1:k], []byte{}
		for i := range known {
			xs = append(xs, byte(i+2))
		}
		seen := map[byte]bool{}
		for s := range 256 {
			further := interpolate(append([]byte{0}, xs...), append([][]byte{{byte(s)}}, known...), 6)[0]
			if seen[further] {
				t.Fatalf("threshold %d: the value %d fits two secrets", k, further)
			}
			seen[further] = true
			back := interpolate(append([]byte{6}, xs...), append([][]byte{{further}}, known...), 0)[0]
			if int(back) != s {
				t.Fatalf("threshold %d: secret %d comes back as %d", k, s, back)
			}
		}
	}
}

// TestSharesAreUniform: the values of a share, and the pairs of two of three
// needed shares, are spread evenly whatever the secret is (chi-squared test; the limits are
// eight standard deviations off).
func TestSharesAreUniform(t *testing.T) {
	t.Parallel()
	const rounds = 256 * 400
	for _, s := range []byte{0x00, 0xff} {
		counts, pairs := make([]float64, 256), make([]float64, 256)
		secret := bytes.Repeat([]byte{s}, 400)
		for range rounds / len(secret) {
			v := split(secret, 3, 3)
			for j := range secret {
				counts[v[0][j]]++
				pairs[v[0][j]&0xf0|v[1][j]>>4]++
			}
		}
		for name, c := range map[string][]float64{"one share": counts, "two shares": pairs} {
			chi := 0.0
			for _, n := range c {
				chi += (n - rounds/256) * (n - rounds/256) / (rounds / 256)
			}
			if chi < 75 || chi > 435 { // 255 degrees of freedom: 255 ± 22.6
				t.Errorf("secret %#x, %s: chi squared %.0f", s, name, chi)
			}
		}
	}
}

func textOf(t testing.TB, s Share) []byte {
	t.Helper()
	b, err := s.Text()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func splitKey(t testing.TB, key cut.VaultPrivateKey, n, k int) []Share {
	t.Helper()
	shares, err := Split(key, "Contoso", n, k)
	if err != nil {
		t.Fatal(err)
	}
	return shares
}

func TestShareText(t *testing.T) {
	t.Parallel()
	for _, s := range splitKey(t, newKey(t), 255, 200)[250:] {
		text := textOf(t, s)
		checkLines(t, text)
		got, err := ParseShare(bytes.ToUpper(text[bytes.Index(text, []byte("value:")):]))
		if err == nil {
			t.Errorf("half a share parses: %v", got)
		}
		if got, err = ParseShare(text); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.value.Bytes(), s.value.Bytes()) || got.String() != s.String() || got.Set != s.Set || got.Vault != "Contoso" {
			t.Errorf("%v came back as %v", s, got)
		}
	}
}

func TestDamagedShare(t *testing.T) {
	t.Parallel()
	text := textOf(t, splitKey(t, newKey(t), 3, 2)[0])
	start := bytes.Index(text, []byte(shareWhat)) + len(shareWhat) + 1
	for i := start; i < len(text); i++ {
		bad := bytes.Clone(text)
		bad[i] ^= 0x01
		if strings.EqualFold(strings.ReplaceAll(string(bad), " ", ""), strings.ReplaceAll(string(text), " ", "")) {
			continue
		}
		if s, err := ParseShare(bad); dr.CodeOf(err) != dr.CodeKeyShareDamaged {
			if err == nil && bytes.Equal(textOf(t, s), text) {
				continue // another way to write the same
			}
			t.Fatalf("character %d (%q → %q): %v", i, text[i], bad[i], err)
		}
	}
	for at := start; at < len(text)-1; at++ {
		_, err := ParseShare(text[:at])
		wantCode(t, err, dr.KindCorrupt, dr.CodeKeyShareDamaged)
	}
	_, err := ParseShare(bytes.Replace(text, []byte("share-1"), []byte("share-9"), 1))
	wantCode(t, err, dr.KindUnsupported, dr.CodeFormatUnsupported)
	_, err = ParseShare(readFile(t, "testdata/paper.key"))
	wantCode(t, err, dr.KindInvalid, "")
	for _, numbers := range []string{"0 of 3, threshold 2", "4 of 3, threshold 2", "1 of 3, threshold 4", "1 of 3, threshold 1", "1 of 256, threshold 2", "-1 of 3, threshold 2", "1 of 3", "+1 of 3, threshold 2"} {
		b, err := parseBlock(shareWhat, text)
		if err != nil {
			t.Fatal(err)
		}
		b.lines[3].value = numbers
		_, err = ParseShare(b.seal())
		wantCode(t, err, dr.KindCorrupt, dr.CodeKeyShareDamaged)
	}
}

func TestCombineNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	a, again, other := splitKey(t, key, 5, 3), splitKey(t, key, 5, 3), splitKey(t, newKey(t), 5, 3)
	forged := a[1]
	v := bytes.Clone(forged.value.Bytes())
	v[7] ^= 0x10
	forged.value = NewSecret(v)
	wiped := a[4]
	wiped.value = Secret{}
	for _, c := range []struct {
		name   string
		shares []Share
		kind   dr.Kind
		code   dr.Code
		names  string
	}{
		{"none", nil, dr.KindInvalid, dr.CodeKeySharesTooFew, ""},
		{"too few", a[:2], dr.KindInvalid, dr.CodeKeySharesTooFew, "threshold is 3"},
		{"of two keys", []Share{a[0], a[1], other[2]}, dr.KindInvalid, dr.CodeKeySharesMixed, "share 3"},
		{"of two exports", []Share{a[0], a[1], again[2]}, dr.KindInvalid, dr.CodeKeySharesMixed, "share 3"},
		{"one twice", []Share{a[0], a[1], a[0]}, dr.KindInvalid, dr.CodeKeyShareRepeated, "share 1"},
		{"one forged", []Share{a[0], forged, a[2]}, dr.KindCorrupt, dr.CodeKeyShareWrong, "at least one"},
		{"one forged of four", []Share{a[0], forged, a[2], a[3]}, dr.KindCorrupt, dr.CodeKeyShareWrong, "share 2"},
		{"forged one behind", []Share{a[0], a[2], a[3], forged}, dr.KindCorrupt, dr.CodeKeyShareWrong, "share 2"},
		{"wiped", []Share{a[0], a[2], wiped}, dr.KindInvalid, dr.CodeKeyShareDamaged, "share 3"},
		{"zero", []Share{{}}, dr.KindInvalid, dr.CodeKeyShareDamaged, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(c.shares)
			_, err := Combine(c.shares)
			wantCode(t, err, c.kind, c.code)
			if !strings.Contains(err.Error(), c.names) {
				t.Errorf("%v does not name %q", err, c.names)
			}
			for i := range before {
				if before[i].Number != c.shares[i].Number {
					t.Error("the list was changed")
				}
			}
		})
	}
	if _, err := wiped.Text(); err == nil {
		t.Error("a wiped share has a text")
	}
}

func TestSplitRefuses(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	for _, c := range [][2]int{{1, 1}, {3, 1}, {2, 3}, {256, 2}, {0, 0}, {-1, -1}} {
		if _, err := Split(key, "", c[0], c[1]); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%d shares, threshold %d: %v", c[0], c[1], err)
		}
	}
	if _, err := Split(cut.VaultPrivateKey{}, "", 3, 2); err == nil {
		t.Error("no key was split")
	}
}

func FuzzParseShare(f *testing.F) {
	for i := 1; i <= 3; i++ {
		f.Add(readFile(f, fmt.Sprintf("testdata/share%d.key", i)))
	}
	f.Add([]byte(shareWhat + "\nkey: x\nchecksum: 0\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseShare(text)
		if err != nil {
			return
		}
		again, err := ParseShare(textOf(t, s))
		if err != nil || again.String() != s.String() || again.Vault != s.Vault || !bytes.Equal(again.value.Bytes(), s.value.Bytes()) {
			t.Fatalf("%v comes back as %v, %v", s, again, err)
		}
	})
}

// FuzzShareFields gets past the checksum: fields are what an altered share could say.
func FuzzShareFields(f *testing.F) {
	f.Add("v", strings.Repeat("0", 32), strings.Repeat("0", 16), "1 of 2, threshold 2", bytes.Repeat([]byte{1}, 32))
	f.Fuzz(func(t *testing.T, vault, key, set, numbers string, value []byte) {
		b := &block{what: shareWhat}
		b.add("vault", vault)
		b.add("key", key)
		b.add("set", set)
		b.add("share", numbers)
		b.addBytes("value", value)
		s, err := ParseShare(b.seal())
		if err != nil {
			return
		}
		if s.Number < 1 || s.Number > s.Count || s.Threshold < 2 || s.Threshold > s.Count || s.value.Len() != rawKeySize {
			t.Fatalf("%v", s)
		}
		_, _ = Combine([]Share{s, s})
		_, _ = Combine([]Share{s})
	})
}

func FuzzInspect(f *testing.F) {
	f.Add(readFile(f, "testdata/sealed.key"))
	f.Add(readFile(f, "testdata/paper.key"))
	f.Fuzz(func(t *testing.T, text []byte) {
		info, err := Inspect(text)
		if err == nil && info.Cost.Validate() != nil {
			t.Fatalf("%+v", info)
		}
		if err == nil && !isSealed(text) {
			t.Fatal("a sealed key is not seen as one")
		}
	})
}

// FuzzSealedFields gets past the checksum.
func FuzzSealedFields(f *testing.F) {
	f.Add("v", strings.Repeat("0", 32), "", "argon2id time=1 memory=8192 threads=1", make([]byte, 16), "aes-256-gcm", make([]byte, 60))
	f.Fuzz(func(t *testing.T, vault, key, public, kdf string, salt []byte, cipher string, sealed []byte) {
		b := &block{what: sealedWhat}
		b.add("vault", vault)
		b.add("key", key)
		b.addLong("public", public)
		b.add("kdf", kdf)
		b.addBytes("salt", salt)
		b.add("cipher", cipher)
		b.addBytes("sealed", sealed)
		if k, err := parseSealed("fuzz", b.seal()); err == nil && (k.info.Cost.Validate() != nil || len(k.salt) != saltSize || len(k.sealed) != sealedSize) {
			t.Fatalf("%+v", k.info)
		}
	})
}
