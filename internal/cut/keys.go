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
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
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

// Layout of a sealed epoch key; see docs/store-format.md.
const (
	wrapMagic   = "HOLDFKEY"
	wrapVersion = 1
	wrapSuite   = 1 // HPKE base mode, MLKEM768-X25519, HKDF-SHA256, AES-256-GCM
	wrapFixed   = 52
	wrapPayload = 1120 + 32 + 16 // encapsulation, key, tag
	wrapSize    = wrapFixed + wrapPayload + 4
	wrapPurpose = "holdfast v1 epoch key"
)

var le = binary.LittleEndian

func crc(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// SealEpochKey seals an epoch key to the vault for one machine and epoch. The
// result is the content of KeyObject(machine, epoch).
func SealEpochKey(pub VaultPublicKey, machine dr.MachineID, epoch uint32, key EpochKey) ([]byte, error) {
	const op = "cut.SealEpochKey"
	id, ok := machineBytes(machine)
	if !ok {
		return nil, invalid(op, "machine id %q is not a lower-case UUID", machine)
	}
	if pub.k == nil {
		return nil, invalid(op, "there is no vault key to seal to")
	}
	w := make([]byte, wrapFixed, wrapSize)
	copy(w, wrapMagic)
	le.PutUint16(w[8:], wrapVersion)
	w[10] = wrapSuite
	le.PutUint32(w[12:], epoch)
	copy(w[16:], id[:])
	keyID := pub.KeyID()
	copy(w[32:], keyID[:])
	le.PutUint32(w[48:], wrapPayload)
	sealed, err := hpke.Seal(pub.k, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(w), key[:])
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "seal epoch key: %w", err)
	}
	if len(sealed) != wrapPayload {
		return nil, dr.Errorf(dr.KindInternal, op, "seal epoch key: got %d bytes, want %d", len(sealed), wrapPayload)
	}
	w = append(w, sealed...)
	return le.AppendUint32(w, crc(w)), nil
}

// wrapInfo binds the sealed key to the fields before it.
func wrapInfo(w []byte) []byte { return append([]byte(wrapPurpose), w[:wrapFixed]...) }

// OpenEpochKey opens the content of KeyObject(machine, epoch). A key sealed to
// another vault key is dr.CodeKeyMismatch; a damaged object, or one that
// belongs under another name, is dr.CodeObjectCorrupt.
func OpenEpochKey(priv VaultPrivateKey, machine dr.MachineID, epoch uint32, wrap []byte) (EpochKey, error) {
	const op = "cut.OpenEpochKey"
	name := KeyObject(machine, epoch)
	id, ok := machineBytes(machine)
	if !ok {
		return EpochKey{}, invalid(op, "machine id %q is not a lower-case UUID", machine)
	}
	if priv.k == nil {
		return EpochKey{}, invalid(op, "there is no vault private key to open %q with", name)
	}
	switch {
	case len(wrap) < wrapFixed+4:
		return EpochKey{}, corrupt(op, name, "sealed key", 0, "%d bytes are too few", len(wrap))
	case string(wrap[:8]) != wrapMagic:
		return EpochKey{}, corrupt(op, name, "magic", 0, "not a sealed key")
	case le.Uint32(wrap[len(wrap)-4:]) != crc(wrap[:len(wrap)-4]):
		return EpochKey{}, corrupt(op, name, "sealed key", int64(len(wrap)-4), "checksum does not match")
	case le.Uint16(wrap[8:]) != wrapVersion || wrap[10] != wrapSuite:
		return EpochKey{}, unsupported(op, name, "sealed key of version %d, suite %d; this program knows version %d, suite %d", le.Uint16(wrap[8:]), wrap[10], wrapVersion, wrapSuite)
	case len(wrap) != wrapSize || le.Uint32(wrap[48:]) != wrapPayload || wrap[11] != 0:
		return EpochKey{}, corrupt(op, name, "sealed key", 48, "%d bytes in all, want %d", len(wrap), wrapSize)
	case !bytes.Equal(wrap[16:32], id[:]) || le.Uint32(wrap[12:]) != epoch:
		return EpochKey{}, corrupt(op, name, "sealed key", 12, "it is the key of epoch %d of machine %s", le.Uint32(wrap[12:]), machineID([16]byte(wrap[16:32])))
	}
	if have := priv.KeyID(); KeyID(wrap[32:48]) != have {
		return EpochKey{}, dr.New(dr.KindForbidden, dr.CodeKeyMismatch, op, "object %q is sealed to vault key %s, the private key given is %s", name, KeyID(wrap[32:48]), have)
	}
	plain, err := hpke.Open(priv.k, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(wrap), wrap[wrapFixed:wrapFixed+wrapPayload])
	if err != nil || len(plain) != len(EpochKey{}) {
		return EpochKey{}, corrupt(op, name, "sealed key", wrapFixed, "it does not open with the vault key that it names")
	}
	return EpochKey(plain), nil
}
