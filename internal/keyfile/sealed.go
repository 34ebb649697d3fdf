package keyfile

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/crypto/argon2"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
)

const (
	sealedWhat   = "holdfast-sealed-key-1"
	sealedCipher = "aes-256-gcm"
	kdfFormat    = "argon2id time=%d memory=%d threads=%d"
	saltSize     = 16
	sealedSize   = 12 + rawKeySize + 16 // nonce, key, tag

	minPassphrase = 12
	maxPassphrase = 1024
	maxVaultName  = 40 // characters
)

// Cost says how much work one guess of a passphrase is (Argon2id, RFC 9106). The
// zero Cost is DefaultCost.
type Cost struct {
	Time    uint32 // passes, 1..20
	Memory  uint32 // KiB, 8192..1048576
	Threads uint8  // 1..16
}

// DefaultCost takes 256 MiB of memory and one to three seconds on two cores.
func DefaultCost() Cost { return Cost{Time: 3, Memory: 256 << 10, Threads: 4} }

// Validate checks the ranges: they hold for what is read as well, so that a
// hostile file can't exhaust the machine.
func (c Cost) Validate() error {
	if c.Time < 1 || c.Time > 20 || c.Memory < 8<<10 || c.Memory > 1<<20 || c.Threads < 1 || c.Threads > 16 {
		return invalid("keyfile.Cost", "key derivation with time %d, memory %d KiB, threads %d: allowed are time 1..20, memory 8192..1048576, threads 1..16", c.Time, c.Memory, c.Threads)
	}
	return nil
}

// derive makes the key from a passphrase. It can't be interrupted.
func (c Cost) derive(pass Secret, salt []byte) []byte {
	return argon2.IDKey(pass.Bytes(), salt, c.Time, c.Memory, c.Threads, 32)
}

// Info is what a sealed key file tells without its passphrase. Nothing of it
// is proved before Unseal has opened the key.
type Info struct {
	Vault     string // name of the vault, may be empty
	KeyID     cut.KeyID
	PublicKey cut.VaultPublicKey // zero in the form for paper
	Cost      Cost
}

// SealConfig says how a key is sealed.
type SealConfig struct {
	Vault string // name of the vault, for people; shortened to 40 characters
	Cost  Cost
	// Paper leaves out the public key, 1.6 KB that nobody wants to type. Without
	// it the file can't be used to seal something to the vault.
	Paper bool
}

// Seal returns the text of a key sealed with a passphrase of 12..1024 bytes.
//
// Format, version 1 (see docs/keys.md; lines as described at block):
//
//	holdfast-sealed-key-1
//	vault: name, at most 40 characters                   (may be missing)
//	key: id of the key, 32 hexadecimal digits
//	public: text of the public key                       (may be missing)
//	kdf: argon2id time=T memory=KIB threads=P
//	salt: 16 random bytes
//	cipher: aes-256-gcm
//	sealed: nonce (12), the 32 bytes of the private key, tag (16)
//	checksum: 16 hexadecimal digits
//
// The AES-256-GCM key is Argon2id(passphrase, salt, T, KIB, P, 32 bytes); its
// additional data are the lines before the first "sealed", each with "\n".
// The checksum tells a damaged file from a wrong passphrase. Somebody who
// alters the file and makes the checksum right again is seen as a wrong passphrase.
func Seal(key cut.VaultPrivateKey, pass Secret, cfg SealConfig) ([]byte, error) {
	const op = "keyfile.Seal"
	if cfg.Cost == (Cost{}) {
		cfg.Cost = DefaultCost()
	}
	if err := errors.Join(cfg.Cost.Validate(), checkNewPassphrase(op, pass)); err != nil {
		return nil, err
	}
	raw, err := rawKey(op, key)
	if err != nil {
		return nil, err
	}
	defer wipe(raw)
	b := &block{what: sealedWhat}
	if name := plainName(cfg.Vault); name != "" {
		b.add("vault", name)
	}
	b.add("key", key.KeyID().String())
	if !cfg.Paper {
		b.addLong("public", key.Public().Text())
	}
	salt := make([]byte, saltSize)
	rand.Read(salt) // crypto/rand.Read never fails
	b.add("kdf", fmt.Sprintf(kdfFormat, cfg.Cost.Time, cfg.Cost.Memory, cfg.Cost.Threads))
	b.addBytes("salt", salt)
	b.add("cipher", sealedCipher)
	dk := cfg.Cost.derive(pass, salt)
	defer wipe(dk)
	aead, err := gcm(dk)
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, op, "make cipher: %w", err)
	}
	b.addBytes("sealed", aead.Seal(nil, nil, raw, b.text()))
	return b.seal("Holdfast vault private key, sealed with a passphrase.",
		"It opens every replica of its store. Keep it and the",
		"passphrase in different places, away from the store.",
		"To use it: holdfast vault key unseal"), nil
}

func gcm(key []byte) (cipher.AEAD, error) {
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(c)
}

// sealedKey is a parsed file.
type sealedKey struct {
	info   Info
	salt   []byte
	sealed []byte
	bound  []byte // additional data
}

// Inspect returns what a sealed key says of itself, without its passphrase.
func Inspect(text []byte) (Info, error) {
	k, err := parseSealed("keyfile.Inspect", text)
	return k.info, err
}

// Unseal opens a sealed key. A wrong passphrase is dr.CodePassphraseWrong; damage,
// or a key that is not the one the text names, dr.CodeKeyFileDamaged; a later
// version dr.CodeFormatUnsupported. It takes at most 1 GiB of memory.
func Unseal(text []byte, pass Secret) (cut.VaultPrivateKey, error) {
	const op = "keyfile.Unseal"
	k, err := parseSealed(op, text)
	if err != nil {
		return cut.VaultPrivateKey{}, err
	}
	return k.open(op, pass)
}

func (k sealedKey) open(op string, pass Secret) (cut.VaultPrivateKey, error) {
	if pass.Len() == 0 || pass.Len() > maxPassphrase {
		return cut.VaultPrivateKey{}, wrongPassphrase(op, k.info.KeyID)
	}
	dk := k.info.Cost.derive(pass, k.salt)
	defer wipe(dk)
	aead, err := gcm(dk)
	if err != nil {
		return cut.VaultPrivateKey{}, dr.Errorf(dr.KindInternal, op, "make cipher: %w", err)
	}
	raw, err := aead.Open(nil, nil, k.sealed, k.bound)
	if err != nil {
		return cut.VaultPrivateKey{}, wrongPassphrase(op, k.info.KeyID)
	}
	defer wipe(raw)
	return keyFromRaw(op, raw, k.info.KeyID, dr.CodeKeyFileDamaged, "the sealed key is not the key "+k.info.KeyID.String()+" that the file names")
}

func wrongPassphrase(op string, id cut.KeyID) error {
	return dr.New(dr.KindUnauthenticated, dr.CodePassphraseWrong, op, "the passphrase does not open the sealed key %s", id).
		WithHint("The file itself is whole. Check capitals, the keyboard's layout, and that this is the passphrase of this key.")
}

// fileProblem turns a problem of a block into an error of the catalogue.
func fileProblem(op, what string, code dr.Code, err error) error {
	var p *problem
	switch {
	case !errors.As(err, &p):
		return err
	case p.unsupported:
		return dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "%s: %s", what, p.text)
	case p.damaged:
		return dr.New(dr.KindCorrupt, code, op, "%s is damaged: %s", what, p.text).
			WithHint("If it was typed, compare the line with the paper. Otherwise use another copy.")
	}
	return invalid(op, "this is no %s: %s", what, p.text)
}

func parseSealed(op string, text []byte) (k sealedKey, err error) {
	fail := func(err error) (sealedKey, error) {
		return sealedKey{}, fileProblem(op, "sealed key", dr.CodeKeyFileDamaged, err)
	}
	b, err := parseBlock(sealedWhat, text)
	if err != nil {
		return fail(err)
	}
	for i, l := range b.lines {
		if l.name == "sealed" {
			k.bound = (&block{what: b.what, lines: b.lines[:i]}).text()
			break
		}
	}
	k.info.Vault = b.take("vault")
	id, public := b.take("key"), b.take("public")
	kdf := b.take("kdf")
	k.salt = b.takeBytes("salt")
	cipherName := b.take("cipher")
	k.sealed = b.takeBytes("sealed")
	if err := k.info.KeyID.UnmarshalText([]byte(id)); err != nil {
		return fail(damaged("it names no key"))
	}
	if public != "" {
		if k.info.PublicKey, err = cut.ParseVaultPublicKey(public); err != nil || k.info.PublicKey.KeyID() != k.info.KeyID {
			return fail(damaged("its public key is not the one it names"))
		}
	}
	c := &k.info.Cost
	if n, _ := fmt.Sscanf(kdf, kdfFormat, &c.Time, &c.Memory, &c.Threads); n != 3 || fmt.Sprintf(kdfFormat, c.Time, c.Memory, c.Threads) != kdf || cipherName != sealedCipher {
		return fail(&problem{unsupported: true, text: "it is sealed in a way that this program does not know"})
	}
	if err := c.Validate(); err != nil {
		return fail(damaged("its key derivation is outside the bounds: %v", err))
	}
	if len(k.salt) != saltSize || len(k.sealed) != sealedSize || len(b.lines) != 0 {
		return fail(damaged("its fields are not complete, or not in order"))
	}
	return k, nil
}

func checkNewPassphrase(op string, pass Secret) error {
	if n := pass.Len(); n < minPassphrase || n > maxPassphrase {
		return invalid(op, "the passphrase has %d bytes, want %d to %d", n, minPassphrase, maxPassphrase).
			WithHint("Use five or more words chosen at random, in plain letters, so that every keyboard can type them.")
	}
	return nil
}

// plainName makes a vault's name fit for one line of a block.
func plainName(name string) string {
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && !unicode.IsSpace(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(name, "?"))
	if r := []rune(strings.Join(strings.Fields(name), " ")); len(r) > maxVaultName {
		name = string(r[:maxVaultName])
	}
	return strings.Join(strings.Fields(name), " ")
}
