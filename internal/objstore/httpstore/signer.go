// Package httpstore serves a bucket over HTTP to holders of signed URLs and read
// tickets, and holds the clients for both. It is for the case in which the
// bucket is a directory of the vault's machine; Uploader also speaks to the
// signed URLs of other stores.
//
// Wire format, version 1 (2026). All paths are below the base URL:
//
//	PUT  /store/v1/o/{key}?v=1&exp={unix}&size={bytes}&sha256={hex}&sig={base64url}
//	GET  /store/v1/o/{key}            Holdfast-Read-Ticket: {ticket}, Range as in RFC 9110
//	HEAD /store/v1/o/{key}            Holdfast-Read-Ticket: {ticket}
//	GET  /store/v1/l?prefix=&after=&limit=   the same; JSON lines, see listLine
//
// sig is the HMAC-SHA256 of the lines "holdfast-put-v1", "PUT", key, size,
// sha256, exp, each ended by a newline. A ticket is base64url(claims) "."
// base64url(HMAC-SHA256(claims)), claims being the lines "holdfast-read-v1",
// prefix, exp. Both are accepted until exp plus Skew.
//
// Every answer of the handler carries "Holdfast-Store: 1", and every refusal a
// code in Holdfast-Error, so that a client never takes the 404 of some proxy
// for the absence of an object.
package httpstore

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/objstore"
)

const (
	objectPath = "/store/v1/o/"
	listPath   = "/store/v1/l"

	headerStore  = "Holdfast-Store"
	headerError  = "Holdfast-Error"
	headerTicket = "Holdfast-Read-Ticket"
	headerSHA256 = "Holdfast-Sha256"

	putVersion = "1"
	putDomain  = "holdfast-put-v1"
	readDomain = "holdfast-read-v1"

	// minKey is the size of the HMAC's output: a shorter key would be weaker.
	minKey = sha256.Size
)

// Skew is how long after its expiry a signature is still accepted, because the
// clocks of several vault replicas differ.
const Skew = 5 * time.Minute

// Reasons for which a signature or a ticket is refused.
var (
	ErrBadSignature = errors.New("signature is not valid")
	ErrExpired      = errors.New("signature has expired")
)

var b64 = base64.RawURLEncoding.Strict()

// decode64 accepts only what b64 itself writes: the decoder skips line breaks,
// which would give one signature many spellings.
func decode64(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, ErrBadSignature
	}
	return b64.DecodeString(text)
}

// SignerConfig configures a Signer.
type SignerConfig struct {
	BaseURL  string           // as clients reach the handler, without /store/v1; https, or http for tests
	Key      []byte           // secret, at least 32 random bytes, used for this one bucket only
	Previous [][]byte         // former keys that are still accepted but no longer used to sign
	Now      func() time.Time // nil means time.Now
}

// Validate checks the configuration.
func (c SignerConfig) Validate() error {
	u, err := url.Parse(c.BaseURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return errors.New("store signer: the base URL must be an absolute http or https URL without user, query and fragment")
	}
	for _, k := range append([][]byte{c.Key}, c.Previous...) {
		if len(k) < minKey {
			return fmt.Errorf("store signer: a key has %d bytes, %d are needed", len(k), minKey)
		}
	}
	return nil
}

// Signer makes and checks the signatures. It is safe for concurrent use.
type Signer struct {
	base string
	keys [][]byte // the first one signs
	now  func() time.Time
}

var _ objstore.Signer = (*Signer)(nil)

// NewSigner returns a Signer; it does no I/O.
func NewSigner(c SignerConfig) (*Signer, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Signer{base: strings.TrimSuffix(c.BaseURL, "/"), now: c.Now}
	if s.now == nil {
		s.now = time.Now
	}
	for _, k := range append([][]byte{c.Key}, c.Previous...) {
		s.keys = append(s.keys, append([]byte(nil), k...))
	}
	return s, nil
}

// SignPut returns the create-only PUT for exactly this object; see
// objstore.Signer. expires counts in whole seconds and must be in the future.
func (s *Signer) SignPut(_ context.Context, key string, size int64, sum [32]byte, expires time.Time) (objstore.SignedURL, error) {
	if err := objstore.ValidateKey(key); err != nil {
		return objstore.SignedURL{}, fmt.Errorf("sign put of object: %w", err)
	}
	if size < 0 {
		return objstore.SignedURL{}, fmt.Errorf("sign put of object %q: size is %d", key, size)
	}
	if !expires.After(s.now()) {
		return objstore.SignedURL{}, fmt.Errorf("sign put of object %q: %w before it was issued", key, ErrExpired)
	}
	c := putClaims{key: key, size: size, sum: sum, expires: expires.Unix()}
	q := url.Values{
		"v":      {putVersion},
		"exp":    {strconv.FormatInt(c.expires, 10)},
		"size":   {strconv.FormatInt(size, 10)},
		"sha256": {hex.EncodeToString(sum[:])},
		"sig":    {b64.EncodeToString(mac(s.keys[0], c.text()))},
	}
	return objstore.SignedURL{
		URL: s.base + objectPath + key + "?" + q.Encode(),
		Headers: map[string]string{
			"Content-Type":   "application/octet-stream",
			"Content-Digest": contentDigest(sum),
			"If-None-Match":  "*",
		},
	}, nil
}

// Ticket returns a read ticket for all objects under prefix: empty for the
// whole bucket, otherwise a folder ending in a slash, so that a ticket for
// "m/a/" says nothing about "m/ab/". The ticket is a secret until it expires.
func (s *Signer) Ticket(prefix string, expires time.Time) (string, error) {
	if err := objstore.ValidatePrefix(prefix); err != nil {
		return "", fmt.Errorf("issue read ticket: %w", err)
	}
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		return "", fmt.Errorf("issue read ticket: %w: the prefix %q does not end in a slash", objstore.ErrInvalidKey, prefix)
	}
	claims := ticketClaims(prefix, expires.Unix())
	return b64.EncodeToString([]byte(claims)) + "." + b64.EncodeToString(mac(s.keys[0], claims)), nil
}

// putClaims is what a PUT signature binds.
type putClaims struct {
	key     string
	size    int64
	sum     [32]byte
	expires int64
}

// text is the signed form. No field can hold a newline, so it is unambiguous.
func (c putClaims) text() string {
	return fmt.Sprintf("%s\nPUT\n%s\n%d\n%x\n%d\n", putDomain, c.key, c.size, c.sum, c.expires)
}

func ticketClaims(prefix string, expires int64) string {
	return fmt.Sprintf("%s\n%s\n%d\n", readDomain, prefix, expires)
}

// verifyPut checks the query of a PUT for key.
func (s *Signer) verifyPut(key string, q url.Values) (putClaims, error) {
	c := putClaims{key: key}
	for _, name := range []string{"v", "exp", "size", "sha256", "sig"} {
		if len(q[name]) != 1 {
			return c, ErrBadSignature
		}
	}
	var err error
	if q.Get("v") != putVersion {
		return c, ErrBadSignature
	}
	if c.expires, err = strconv.ParseInt(q.Get("exp"), 10, 64); err != nil {
		return c, ErrBadSignature
	}
	if c.size, err = strconv.ParseInt(q.Get("size"), 10, 64); err != nil || c.size < 0 {
		return c, ErrBadSignature
	}
	sum, err := hex.DecodeString(q.Get("sha256"))
	if err != nil || len(sum) != len(c.sum) {
		return c, ErrBadSignature
	}
	copy(c.sum[:], sum)
	sig, err := decode64(q.Get("sig"))
	if err != nil || !s.check(sig, c.text()) {
		return c, ErrBadSignature
	}
	return c, s.checkTime(c.expires)
}

// verifyTicket checks a ticket and returns its prefix.
func (s *Signer) verifyTicket(ticket string) (prefix string, err error) {
	encoded, sigText, ok := strings.Cut(ticket, ".")
	if !ok || len(ticket) > 2048 {
		return "", ErrBadSignature
	}
	claims, err := decode64(encoded)
	if err != nil {
		return "", ErrBadSignature
	}
	sig, err := decode64(sigText)
	if err != nil || !s.check(sig, string(claims)) {
		return "", ErrBadSignature
	}
	// Signed by us, but perhaps as something else: the domain line decides.
	lines := strings.Split(string(claims), "\n")
	if len(lines) != 4 || lines[0] != readDomain || lines[3] != "" {
		return "", ErrBadSignature
	}
	expires, err := strconv.ParseInt(lines[2], 10, 64)
	if err != nil {
		return "", ErrBadSignature
	}
	return lines[1], s.checkTime(expires)
}

func (s *Signer) checkTime(expires int64) error {
	if s.now().After(time.Unix(expires, 0).Add(Skew)) {
		return ErrExpired
	}
	return nil
}

// check compares in constant time with every accepted key.
func (s *Signer) check(sig []byte, text string) bool {
	ok := false
	for _, k := range s.keys {
		if hmac.Equal(sig, mac(k, text)) {
			ok = true
		}
	}
	return ok
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// contentDigest is the value of the Content-Digest header (RFC 9530).
func contentDigest(sum [32]byte) string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}
