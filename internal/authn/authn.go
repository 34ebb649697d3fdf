// Package authn makes and checks the credentials of a vault: its certificate
// authority, the certificates of the server and the agents, passwords and
// random tokens. It does no I/O and stores nothing; callers keep what it returns.
//
// It promises that secrets are compared in constant time, that what is meant to
// be stored (hashes, sealed documents) can't be turned back into the secret
// without the vault's key, and that no secret appears in an error.
package authn

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"

	"holdfast/internal/dr"
)

// NewSecret returns a random secret of 256 bits behind a prefix that tells
// what it is for, e.g. "hft_".
func NewSecret(prefix string) string {
	var b [32]byte
	rand.Read(b[:]) // crypto/rand.Read never fails
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// HashSecret is the form in which a secret made by NewSecret is stored: hex SHA-256.
// It is not for passwords that people choose.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// SameSecret compares a secret with a stored HashSecret in constant time.
func SameSecret(secret, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(HashSecret(secret)), []byte(hash)) == 1
}

// argon2id's cost (RFC 9106, second recommended option).
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
	argonSalt    = 16
	argonKey     = 32
)

// Hasher hashes passwords with argon2id, a bounded number at a time, because
// each takes 64 MiB. It is safe for concurrent use.
type Hasher struct {
	slots chan struct{}
	time  uint32
	mem   uint32
}

// NewHasher allows parallel hashes at a time, at least 1.
func NewHasher(parallel int) *Hasher {
	return &Hasher{slots: make(chan struct{}, max(parallel, 1)), time: argonTime, mem: argonMemory}
}

func (h *Hasher) enter(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return dr.Errorf(dr.KindUnavailable, "authn.Hash", "wait for a free place to check a password: %w", ctx.Err())
	}
}

// Hash returns the stored form of a password.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	if err := h.enter(ctx); err != nil {
		return "", err
	}
	defer func() { <-h.slots }()
	salt := make([]byte, argonSalt)
	rand.Read(salt)
	key := argon2.IDKey([]byte(password), salt, h.time, h.mem, argonThreads, argonKey)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.mem, h.time, argonThreads, b64(salt), b64(key)), nil
}

// Verify reports whether a password belongs to a stored hash. An empty or
// unreadable hash takes as long as a good one and is never right, so that a
// caller does not tell by the time whether a user exists.
func (h *Hasher) Verify(ctx context.Context, password, stored string) (bool, error) {
	if err := h.enter(ctx); err != nil {
		return false, err
	}
	defer func() { <-h.slots }()
	p, ok := parseArgon(stored)
	if !ok {
		p = argonHash{mem: h.mem, time: h.time, threads: argonThreads, salt: make([]byte, argonSalt), key: make([]byte, argonKey)}
	}
	key := argon2.IDKey([]byte(password), p.salt, p.time, p.mem, p.threads, uint32(len(p.key)))
	return subtle.ConstantTimeCompare(key, p.key) == 1 && ok, nil
}

type argonHash struct {
	mem, time uint32
	threads   uint8
	salt, key []byte
}

func parseArgon(s string) (h argonHash, ok bool) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return h, false
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.mem, &h.time, &h.threads); err != nil || n != 3 {
		return h, false
	}
	var err1, err2 error
	h.salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
	h.key, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	// Bounds keep a damaged row from taking the vault's memory.
	good := err1 == nil && err2 == nil && len(h.salt) >= 8 && len(h.key) == argonKey &&
		h.mem >= 8 && h.mem <= 1<<20 && h.time >= 1 && h.time <= 16 && h.threads >= 1 && h.threads <= 64
	return h, good
}

// DeriveKey derives a key for one purpose from a secret of high entropy.
func DeriveKey(secret, purpose string) ([32]byte, error) {
	var k [32]byte
	b, err := hkdf.Key(sha256.New, []byte(secret), nil, "holdfast v1 "+purpose, len(k))
	if err != nil {
		return k, dr.Errorf(dr.KindInternal, "authn.DeriveKey", "derive the key for %s: %w", purpose, err)
	}
	copy(k[:], b)
	return k, nil
}

// Seal encrypts a small document for storage: AES-256-GCM with a random nonce, base64.
func Seal(key [32]byte, purpose, text string) (string, error) {
	aead, err := gcm(key)
	if err != nil {
		return "", err
	}
	return base64.RawStdEncoding.EncodeToString(aead.Seal(nil, nil, []byte(text), []byte(purpose))), nil
}

// Unseal is the inverse of Seal; dr.CodeKeyMismatch if the key or the text is another one.
func Unseal(key [32]byte, purpose, sealed string) (string, error) {
	aead, err := gcm(key)
	if err != nil {
		return "", err
	}
	b, err := base64.RawStdEncoding.DecodeString(sealed)
	if err == nil {
		b, err = aead.Open(nil, nil, b, []byte(purpose))
	}
	if err != nil {
		return "", dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "authn.Unseal", "the stored %s can't be opened with this vault key", purpose)
	}
	return string(b), nil
}

func gcm(key [32]byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, "authn.gcm", "make cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}
