package keyfile

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const (
	shareWhat   = "holdfast-key-share-1"
	shareFormat = "%d of %d, threshold %d"
	setSize     = 8
	maxShares   = 255
)

// Share is one part of a split private key: Threshold of them give the key, and
// fewer tell nothing about it. It shows its value only by Text.
//
// Format, version 1 (lines as described at block):
//
//	holdfast-key-share-1
//	vault: name, at most 40 characters                   (may be missing)
//	key: id of the key, 32 hexadecimal digits
//	set: 16 random hexadecimal digits, the same in all shares of one export
//	share: X of N, threshold K                           (2 ≤ K ≤ N ≤ 255, 1 ≤ X ≤ N)
//	value: 32 bytes, the values at X; see shamir.go
//	checksum: 16 hexadecimal digits
type Share struct {
	Vault     string
	KeyID     cut.KeyID
	Set       string // tells apart exports of the same key
	Number    int    // 1..Count
	Count     int
	Threshold int

	value Secret
}

// String names the share and hides its value.
func (s Share) String() string {
	return fmt.Sprintf("share %d of %d (threshold %d) of vault key %s", s.Number, s.Count, s.Threshold, s.KeyID)
}

// Format hides the value under every verb.
func (s Share) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// MarshalText hides the value; see Text.
func (s Share) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue hides the value from slog.
func (s Share) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Wipe overwrites the value with zeros.
func (s Share) Wipe() { s.value.Wipe() }

// Text returns the share for a sheet of paper or a file: lines of at most 64
// characters, with what to do in the comments. It is a secret.
func (s Share) Text() ([]byte, error) {
	if s.value.Len() != rawKeySize {
		return nil, invalid("keyfile.Share", "there is no share to write down, or it was wiped")
	}
	b := &block{what: shareWhat}
	if s.Vault != "" {
		b.add("vault", s.Vault)
	}
	b.add("key", s.KeyID.String())
	b.add("set", s.Set)
	b.add("share", fmt.Sprintf(shareFormat, s.Number, s.Count, s.Threshold))
	b.addBytes("value", s.value.Bytes())
	return b.seal(
		fmt.Sprintf("Share %d of %d of a Holdfast vault's private key.", s.Number, s.Count),
		fmt.Sprintf("Any %d shares give the key; fewer tell nothing about it.", s.Threshold),
		"Keep the shares apart. To get the key back, type each share",
		"into a file of its own, then: holdfast vault key combine",
		"Capitals and spaces do not matter. In the value, O and I are",
		"letters: the digits 0 and 1 do not occur there."), nil
}

// Split makes n shares of a key, of which any k give it back: 2 ≤ k ≤ n ≤ 255.
// vault is the vault's name, for people. The caller wipes the shares.
func Split(key cut.VaultPrivateKey, vault string, n, k int) ([]Share, error) {
	const op = "keyfile.Split"
	if k < 2 || n < k || n > maxShares {
		return nil, invalid(op, "%d shares with threshold %d: the threshold is at least 2 and at most the number of shares, which is at most %d", n, k, maxShares)
	}
	raw, err := rawKey(op, key)
	if err != nil {
		return nil, err
	}
	defer wipe(raw)
	set := make([]byte, setSize)
	rand.Read(set) // crypto/rand.Read never fails
	shares := make([]Share, n)
	for i, v := range split(raw, n, k) {
		shares[i] = Share{Vault: plainName(vault), KeyID: key.KeyID(), Set: hex.EncodeToString(set), Number: i + 1, Count: n, Threshold: k, value: NewSecret(v)}
	}
	// What is written down now may be needed in ten years: prove that it works.
	for _, some := range [][]Share{shares[:k], shares[n-k:]} {
		if _, err := Combine(some); err != nil {
			return nil, dr.Errorf(dr.KindInternal, op, "the shares just made do not give the key back: %w", err)
		}
	}
	return shares, nil
}

// ParseShare parses Share.Text. A share that does not verify is
// dr.CodeKeyShareDamaged and says in which line. Errors do not show the value.
func ParseShare(text []byte) (Share, error) {
	const op = "keyfile.ParseShare"
	var s Share
	fail := func(err error) (Share, error) {
		return Share{}, fileProblem(op, "key share", dr.CodeKeyShareDamaged, err)
	}
	b, err := parseBlock(shareWhat, text)
	if err != nil {
		return fail(err)
	}
	s.Vault = b.take("vault")
	id, set, numbers := b.take("key"), b.take("set"), b.take("share")
	s.value = NewSecret(b.takeBytes("value"))
	if err := s.KeyID.UnmarshalText([]byte(id)); err != nil {
		return fail(damaged("it names no key"))
	}
	if raw, err := hex.DecodeString(set); err != nil || len(raw) != setSize || set != strings.ToLower(set) {
		return fail(damaged("it names no set"))
	}
	s.Set = set
	if n, _ := fmt.Sscanf(numbers, shareFormat, &s.Number, &s.Count, &s.Threshold); n != 3 || fmt.Sprintf(shareFormat, s.Number, s.Count, s.Threshold) != numbers ||
		s.Threshold < 2 || s.Count < s.Threshold || s.Count > maxShares || s.Number < 1 || s.Number > s.Count {
		return fail(damaged("its numbers are not those of a share"))
	}
	if s.value.Len() != rawKeySize || len(b.lines) != 0 {
		return fail(damaged("its fields are not complete, or not in order"))
	}
	return s, nil
}

// Combine gives the key back from at least Threshold shares of one export. All
// shares given have to fit: one too many that is wrong is an error that names it.
//
// Errors: dr.CodeKeySharesMixed (of different keys or exports), dr.CodeKeyShareRepeated,
// dr.CodeKeySharesTooFew, dr.CodeKeyShareWrong (each share is whole, yet together they
// do not give the key that they name).
func Combine(shares []Share) (cut.VaultPrivateKey, error) {
	const op = "keyfile.Combine"
	if err := checkSet(op, shares); err != nil {
		return cut.VaultPrivateKey{}, err
	}
	first := shares[0]
	k := first.Threshold
	key, err := recombine(op, shares[:k])
	if err != nil {
		return cut.VaultPrivateKey{}, nameWrong(op, shares, err)
	}
	xs, ys := points(shares[:k])
	for _, s := range shares[k:] {
		y := interpolate(xs, ys, byte(s.Number))
		same := bytes.Equal(y, s.value.Bytes())
		wipe(y)
		if !same {
			return cut.VaultPrivateKey{}, shareWrong(op, s)
		}
	}
	return key, nil
}

// checkSet checks what can be seen from outside.
func checkSet(op string, shares []Share) error {
	if len(shares) == 0 {
		return dr.New(dr.KindInvalid, dr.CodeKeySharesTooFew, op, "there are no shares")
	}
	first := shares[0]
	numbers := map[int]bool{}
	for i, s := range shares {
		switch {
		case s.value.Len() != rawKeySize || s.Threshold < 2 || s.Number < 1 || s.Number > maxShares:
			return dr.New(dr.KindInvalid, dr.CodeKeyShareDamaged, op, "share %d in the list is not a share, or was wiped", i+1)
		case s.KeyID != first.KeyID:
			return dr.New(dr.KindInvalid, dr.CodeKeySharesMixed, op, "%s and %s are of different keys", first, s).
				WithHint("Take shares of one key.")
		case s.Set != first.Set || s.Threshold != first.Threshold || s.Count != first.Count:
			return dr.New(dr.KindInvalid, dr.CodeKeySharesMixed, op, "%s is of export %s, %s of export %s", first, first.Set, s, s.Set).
				WithHint("The key was exported more than once. Take shares that name the same set.")
		case numbers[s.Number]:
			return dr.New(dr.KindInvalid, dr.CodeKeyShareRepeated, op, "%s was given twice", s).
				WithHint("Give each share once.")
		}
		numbers[s.Number] = true
	}
	if len(shares) < first.Threshold {
		return dr.New(dr.KindInvalid, dr.CodeKeySharesTooFew, op, "%d shares of key %s were given, its threshold is %d", len(shares), first.KeyID, first.Threshold).
			WithHint("Find %d more of the %d shares.", first.Threshold-len(shares), first.Count)
	}
	return nil
}

// nameWrong finds the one share that is wrong, if the others are enough to prove it.
func nameWrong(op string, shares []Share, err error) error {
	for i := range shares {
		others := slices.Delete(slices.Clone(shares), i, i+1)
		if len(others) < shares[0].Threshold {
			break
		}
		if _, e := recombine(op, others[:shares[0].Threshold]); e == nil {
			return shareWrong(op, shares[i])
		}
	}
	return err
}

func shareWrong(op string, s Share) error {
	return dr.New(dr.KindCorrupt, dr.CodeKeyShareWrong, op, "%s does not belong to the others: it is not what was exported", s).
		WithHint("Leave this share out and try again with the others. Find out who altered it.")
}

func recombine(op string, shares []Share) (cut.VaultPrivateKey, error) {
	xs, ys := points(shares)
	raw := interpolate(xs, ys, 0)
	defer wipe(raw)
	key, err := keyFromRaw(op, raw, shares[0].KeyID, dr.CodeKeyShareWrong, fmt.Sprintf("the shares together do not give the key %s that they name: at least one is not what was exported", shares[0].KeyID))
	if e, ok := err.(*dr.Error); ok {
		return key, e.WithHint("Try again with other shares; with one share more than the threshold the wrong one can be named.")
	}
	return key, err
}

func points(shares []Share) (xs []byte, ys [][]byte) {
	for _, s := range shares {
		xs, ys = append(xs, byte(s.Number)), append(ys, s.value.Bytes())
	}
	return xs, ys
}
