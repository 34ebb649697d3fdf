package keyfile

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

// The text of a private key, as docs/store-format.md has it: a label, and
// base64url of the key and of the first 4 bytes of SHA-256(label, key).
const (
	privateLabel = "holdfast-vault-private-key-1:"
	rawKeySize   = 32
	rawKeySum    = 4
)

// rawKey returns the 32 bytes from which a private key is made. The caller wipes them.
func rawKey(op string, key cut.VaultPrivateKey) ([]byte, error) {
	text, err := key.Text()
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(text) {
		b64, ok := strings.CutPrefix(strings.TrimSpace(l), privateLabel)
		if !ok {
			continue
		}
		raw, err := base64.RawURLEncoding.DecodeString(b64)
		if err == nil && len(raw) == rawKeySize+rawKeySum {
			return raw[:rawKeySize:rawKeySize], nil
		}
	}
	return nil, dr.Errorf(dr.KindInternal, op, "the vault's private key is of a kind that this program can't take apart")
}

// keyFromRaw makes the private key again and proves that it is the one named.
// A key of another name is a *dr.Error with the code wrong.
func keyFromRaw(op string, raw []byte, want cut.KeyID, wrong dr.Code, wrongText string) (cut.VaultPrivateKey, error) {
	fail := func() (cut.VaultPrivateKey, error) {
		return cut.VaultPrivateKey{}, dr.New(dr.KindCorrupt, wrong, op, "%s", wrongText)
	}
	if len(raw) != rawKeySize {
		return fail()
	}
	sum := sha256.Sum256(append([]byte(privateLabel), raw...))
	b := append(append(make([]byte, 0, rawKeySize+rawKeySum), raw...), sum[:rawKeySum]...)
	defer wipe(b)
	key, err := cut.ParseVaultPrivateKey(privateLabel + base64.RawURLEncoding.EncodeToString(b))
	if err != nil || key.KeyID() != want {
		return fail()
	}
	return key, nil
}
