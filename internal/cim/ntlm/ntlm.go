// Package ntlm owns NTLM version 2, both sides: the three messages that sign a
// user in and the signing and sealing of what follows ([MS-NLMP]). It moves no
// bytes: a caller carries the messages and the sealed data, in HTTP headers and
// multipart bodies for instance.
//
// It promises: only NTLMv2 with extended session security is spoken; NTLMv1 and
// LM answers are neither sent nor accepted, and no fallback exists. Sealing is
// 128 bit with key exchange or not there at all (Session is nil then). Every
// decoder takes hostile input. Passwords stand in no error.
package ntlm

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rc4"
	"errors"
	"strings"

	"golang.org/x/crypto/md4" //nolint:staticcheck // the protocol's own hash
)

var (
	// ErrCredentials tells that the other side did not prove that it knows the password.
	ErrCredentials = errors.New("ntlm: user name or password is wrong")
	// ErrBinding tells that the sign-in was made for another TLS connection: somebody stands between.
	ErrBinding = errors.New("ntlm: the sign-in is bound to another TLS connection")
	// ErrMessage tells that bytes are no valid message of this step.
	ErrMessage = errors.New("ntlm: malformed message")
	// ErrWeak tells that the other side does not speak NTLMv2 with extended session security.
	ErrWeak = errors.New("ntlm: the other side offers only weaker security than NTLMv2")
	// ErrSignature tells that a message was changed, repeated or left out on its way.
	// The session is unusable from then on.
	ErrSignature = errors.New("ntlm: signature does not match")
	// ErrState tells that a step was called out of order.
	ErrState = errors.New("ntlm: step out of order")
)

// Negotiate flags ([MS-NLMP] 2.2.2.5).
const (
	flagUnicode     = 0x00000001
	flagOEM         = 0x00000002
	flagTarget      = 0x00000004
	flagSign        = 0x00000010
	flagSeal        = 0x00000020
	flagNTLM        = 0x00000200
	flagAnonymous   = 0x00000800
	flagAlwaysSign  = 0x00008000
	flagTypeDomain  = 0x00010000
	flagTypeServer  = 0x00020000
	flagExtended    = 0x00080000
	flagTargetInfo  = 0x00800000
	flagVersion     = 0x02000000
	flag128         = 0x20000000
	flagKeyExchange = 0x40000000
	flag56          = 0x80000000

	flagsSealing = flagSign | flagSeal | flagExtended | flag128 | flagKeyExchange
)

func hmacMD5(key []byte, parts ...[]byte) []byte {
	h := hmac.New(md5.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// ntowf is NTOWFv2 ([MS-NLMP] 3.3.2): the key that stands for user, domain and password.
func ntowf(user, domain, password string) []byte {
	h := md4.New()
	h.Write(utf16le(password))
	return hmacMD5(h.Sum(nil), utf16le(strings.ToUpper(user)+domain))
}

// proof is NTProofStr for a blob: what proves the knowledge of the password.
func proof(key, serverChallenge, blob []byte) []byte { return hmacMD5(key, serverChallenge, blob) }

// rc4Once encrypts or decrypts with a fresh cipher.
func rc4Once(key, data []byte) []byte {
	out := make([]byte, len(data))
	c, err := rc4.NewCipher(key)
	if err != nil {
		panic("ntlm: RC4 key of impossible length") // keys here are always 16 bytes
	}
	c.XORKeyStream(out, data)
	return out
}
