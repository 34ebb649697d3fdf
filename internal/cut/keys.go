package cut

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/zeebo/blake3"

	"holdfast/internal/dr"
)

const redacted = "[redacted]"

// EpochKey is the secret under which all segments of one machine and epoch are
// sealed. An agent makes it, seals it to the vault and forgets it when the
// epoch ends. It never shows itself in text, logs or JSON.
type EpochKey [32]byte

// NewEpochKey returns a random key.
func NewEpochKey() EpochKey {
	var k EpochKey
	rand.Read(k[:]) // crypto/rand.Read never fails
	return k
}

// String hides the key.
func (EpochKey) String() string { return redacted }

// Format hides the key under every verb.
func (EpochKey) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText hides the key, so it can't be stored by accident either.
func (EpochKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON hides the key.
func (EpochKey) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Purposes of the keys that are derived from an epoch key for one segment.
// They are durable: changing one makes every stored object unreadable.
const (
	purposeData   = "holdfast v1 segment data"
	purposeIndex  = "holdfast v1 segment index"
	purposeCommit = "holdfast v1 segment commit"
	purposeDigest = "holdfast v1 segment digest"       // key of the block digests
	purposeTable  = "holdfast v1 segment digest table" // seals the table of them
	purposeMap    = "holdfast v1 segment map"
	purposeCheck  = "holdfast v1 segment key check"
)

// sub derives the segment's key for a purpose.
func (k EpochKey) sub(segment [16]byte, purpose string) ([]byte, error) {
	b, err := hkdf.Key(sha256.New, k[:], segment[:], purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive %s key: %w", purpose, err)
	}
	return b, nil
}

// aead returns the cipher for a purpose: AES-256-GCM with random nonces, whose
// output is nonce, ciphertext, tag.
func (k EpochKey) aead(segment [16]byte, purpose string) (cipher.AEAD, error) {
	sub, err := k.sub(segment, purpose)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(sub)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// check returns the value by which a header tells the right key from a wrong one.
func (k EpochKey) check(segment [16]byte) (c [8]byte, err error) {
	sub, err := k.sub(segment, purposeCheck)
	copy(c[:], sub)
	return c, err
}

// DigestKey makes the block digests of one tile image. It tells nothing about
// the segment's other keys, so an agent may be given it for a resynchronization.
// It is a secret like EpochKey; Bytes is the only way to see it.
type DigestKey [32]byte

// String hides the key.
func (DigestKey) String() string { return redacted }

// Format hides the key under every verb.
func (DigestKey) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText hides the key.
func (DigestKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Bytes returns the key itself, to be sent to the agent that scans.
func (k DigestKey) Bytes() []byte { return bytes.Clone(k[:]) }

func (k EpochKey) digestKey(segment [16]byte) (d DigestKey, err error) {
	sub, err := k.sub(segment, purposeDigest)
	copy(d[:], sub)
	return d, err
}

// Digester makes digests with one key and reuses its memory. It is for one goroutine.
type Digester struct {
	h   *blake3.Hasher
	pad []byte
}

// NewDigester returns a digester for k.
func (k DigestKey) NewDigester() *Digester {
	h, err := blake3.NewKeyed(k[:])
	if err != nil { // only for keys of another length than 32
		panic("cut: " + err.Error())
	}
	return &Digester{h: h}
}

// Sum returns the digest of a block of at most Block bytes: keyed BLAKE3, cut
// to 128 bits, of the block padded with zeros to Block bytes. A block of zeros
// has the digest of zeros by definition, so that it needs no entry.
func (d *Digester) Sum(block []byte) (sum [16]byte) {
	if isZero(block) {
		return sum
	}
	d.h.Reset()
	d.h.Write(block[:min(len(block), Block)])
	if short := Block - len(block); short > 0 {
		if d.pad == nil {
			d.pad = make([]byte, Block)
		}
		d.h.Write(d.pad[:short])
	}
	var full [32]byte
	d.h.Sum(full[:0])
	copy(sum[:], full[:])
	return sum
}

// Sum returns the digest of one block; see Digester.Sum, which is faster for many.
func (k DigestKey) Sum(block []byte) [16]byte { return k.NewDigester().Sum(block) }

// rootDomain comes before the digests of a tile, so that no block has the same input.
const rootDomain = "holdfast v1 tile digest root"

// Root sums up the digests of the blocks of a tile: keyed BLAKE3-256 of a fixed
// text and the 1024 digests in order, so that two sides find out with 32 bytes
// whether they have the same tile. Digests that are missing at the end count
// as those of blocks of zeros; more than 1024 are not looked at. A tile of
// zeros has the root of zeros under every key.
func (d *Digester) Root(digests [][16]byte) (root [32]byte) {
	var table [tileBlocks * digestSize]byte
	for i := range min(len(digests), tileBlocks) {
		copy(table[i*digestSize:], digests[i][:])
	}
	if isZero(table[:]) {
		return root
	}
	d.h.Reset()
	d.h.Write([]byte(rootDomain))
	d.h.Write(table[:])
	d.h.Sum(root[:0])
	return root
}

// Root sums up the digests of the blocks of a tile that were made with k; see Digester.Root.
func (k DigestKey) Root(digests [][16]byte) [32]byte { return k.NewDigester().Root(digests) }

// KeyID is the fingerprint of a vault key pair: the first 16 bytes of the
// SHA-256 of "holdfast v1 vault key" and the public key.
type KeyID [16]byte

// String returns 32 hexadecimal digits.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id KeyID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText accepts exactly 32 hexadecimal digits.
func (id *KeyID) UnmarshalText(b []byte) error {
	v, err := hex.DecodeString(string(b))
	if err != nil || len(v) != len(id) {
		return fmt.Errorf("%q is not a key fingerprint of 32 hexadecimal digits", b)
	}
	copy(id[:], v)
	return nil
}

// Text forms of the vault's keys: label, base64 of the key and of a checksum.
const (
	publicLabel  = "holdfast-vault-public-key-1:"
	privateLabel = "holdfast-vault-private-key-1:"
	labelStem    = "holdfast-vault-"
)

// VaultPublicKey seals epoch keys to the vault (HPKE with MLKEM768-X25519,
// HKDF-SHA256, AES-256-GCM). The zero value is no key.
type VaultPublicKey struct{ k hpke.PublicKey }

// VaultPrivateKey opens epoch keys. Whoever has it can read every replica;
// whoever loses it can't fail over. It never shows itself except by Text.
type VaultPrivateKey struct{ k hpke.PrivateKey }

// GenerateVaultKey makes a key pair.
func GenerateVaultKey() (VaultPrivateKey, error) {
	k, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return VaultPrivateKey{}, dr.Errorf(dr.KindInternal, "cut.GenerateVaultKey", "generate vault key: %w", err)
	}
	return VaultPrivateKey{k}, nil
}

// IsZero reports whether p is no key.
func (p VaultPublicKey) IsZero() bool { return p.k == nil }

// KeyID returns the pair's fingerprint.
func (p VaultPublicKey) KeyID() (id KeyID) {
	if p.k != nil {
		sum := sha256.Sum256(append([]byte("holdfast v1 vault key"), p.k.Bytes()...))
		copy(id[:], sum[:])
	}
	return id
}

// Text returns the key on one line of text, without a line end.
func (p VaultPublicKey) Text() string {
	if p.k == nil {
		return ""
	}
	return keyText(publicLabel, p.k.Bytes())
}

// String returns the fingerprint, not the key, which is long.
func (p VaultPublicKey) String() string { return "vault key " + p.KeyID().String() }

// IsZero reports whether p is no key.
func (p VaultPrivateKey) IsZero() bool { return p.k == nil }

// Public returns the public half.
func (p VaultPrivateKey) Public() VaultPublicKey {
	if p.k == nil {
		return VaultPublicKey{}
	}
	return VaultPublicKey{p.k.PublicKey()}
}

// KeyID returns the pair's fingerprint.
func (p VaultPrivateKey) KeyID() KeyID { return p.Public().KeyID() }

// Text returns the content of a private key file: comment lines and the key,
// for a file that only its owner can read, or paper in a safe.
func (p VaultPrivateKey) Text() (string, error) {
	if p.k == nil {
		return "", invalid("cut.VaultPrivateKey", "there is no vault key")
	}
	b, err := p.k.Bytes()
	if err != nil {
		return "", dr.Errorf(dr.KindInternal, "cut.VaultPrivateKey", "encode vault key: %w", err)
	}
	return "# Holdfast vault private key " + p.KeyID().String() + "\n" +
		"# It opens every replica of its store and nothing else can. Keep a copy away from the store.\n" +
		keyText(privateLabel, b) + "\n", nil
}

// String hides the key and shows the fingerprint.
func (p VaultPrivateKey) String() string {
	return "vault private key " + p.KeyID().String() + " " + redacted
}

// Format hides the key under every verb.
func (p VaultPrivateKey) Format(f fmt.State, _ rune) { io.WriteString(f, p.String()) }

// MarshalText hides the key; see Text.
func (p VaultPrivateKey) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// ParseVaultPublicKey parses VaultPublicKey.Text. Blank lines and lines that begin with # are skipped.
func ParseVaultPublicKey(text string) (VaultPublicKey, error) {
	const op = "cut.ParseVaultPublicKey"
	b, err := parseKeyText(op, publicLabel, text)
	if err != nil {
		return VaultPublicKey{}, err
	}
	k, err := hpke.MLKEM768X25519().NewPublicKey(b)
	if err != nil {
		return VaultPublicKey{}, dr.Errorf(dr.KindInvalid, op, "parse vault public key: %w", err)
	}
	return VaultPublicKey{k}, nil
}

// ParseVaultPrivateKey parses VaultPrivateKey.Text. The error never shows the text.
func ParseVaultPrivateKey(text string) (VaultPrivateKey, error) {
	const op = "cut.ParseVaultPrivateKey"
	b, err := parseKeyText(op, privateLabel, text)
	if err != nil {
		return VaultPrivateKey{}, err
	}
	k, err := hpke.MLKEM768X25519().NewPrivateKey(b)
	if err != nil {
		return VaultPrivateKey{}, dr.Errorf(dr.KindInvalid, op, "parse vault private key: %w", err)
	}
	return VaultPrivateKey{k}, nil
}

const keySum = 4 // bytes of SHA-256 behind the key, against typing errors

func keyText(label string, b []byte) string {
	sum := sha256.Sum256(append([]byte(label), b...))
	return label + base64.RawURLEncoding.EncodeToString(append(bytes.Clone(b), sum[:keySum]...))
}

func parseKeyText(op, label, text string) ([]byte, error) {
	var key string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case key != "":
			return nil, invalid(op, "the text holds more than one key")
		default:
			key = line
		}
	}
	b64, ok := strings.CutPrefix(key, label)
	switch {
	case ok:
	case strings.HasPrefix(key, labelStem):
		kind, _, _ := strings.Cut(key, ":")
		return nil, invalid(op, "the text is a %.40q, want a %q", kind, strings.TrimSuffix(label, ":"))
	default:
		return nil, invalid(op, "the text has no line that begins with %q", label)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(b64)
	if err != nil || len(b) <= keySum {
		return nil, invalid(op, "the key behind %q is incomplete or has a typing error", label)
	}
	b, sum := b[:len(b)-keySum], b[len(b)-keySum:]
	if want := sha256.Sum256(append([]byte(label), b...)); !bytes.Equal(sum, want[:keySum]) {
		return nil, invalid(op, "the checksum of the key behind %q does not match: it has a typing error", label)
	}
	return b, nil
}
