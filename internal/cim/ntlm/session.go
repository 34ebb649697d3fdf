package ntlm

import (
	"crypto/md5"
	"crypto/rc4"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"math"
)

// SignatureBytes is the length of a signature.
const SignatureBytes = 16

// Session signs and seals after a sign-in ([MS-NLMP] 3.4), each direction with
// its own keys, RC4 state and sequence numbers. So messages must be unsealed in
// the order in which they were sealed. It is not safe for concurrent use.
type Session struct {
	out, in half
	broken  bool
}

type half struct {
	sign   []byte
	cipher *rc4.Cipher
	seq    uint32
}

func newHalf(key []byte, direction string) half {
	sum := func(what string) []byte {
		s := md5.Sum(append(append([]byte(nil), key...), "session key to "+direction+" "+what+" key magic constant\x00"...))
		return s[:]
	}
	c, err := rc4.NewCipher(sum("sealing"))
	if err != nil {
		panic("ntlm: RC4 key of impossible length")
	}
	return half{sign: sum("signing"), cipher: c}
}

func newSession(key []byte, server bool) *Session {
	s := &Session{out: newHalf(key, "client-to-server"), in: newHalf(key, "server-to-client")}
	if server {
		s.out, s.in = s.in, s.out
	}
	return s
}

// mac is the signature of a message; it advances the sequence and, by 8 bytes, the cipher.
func (h *half) mac(plain []byte) []byte {
	sig := binary.LittleEndian.AppendUint32(nil, 1)
	seq := binary.LittleEndian.AppendUint32(nil, h.seq)
	sum := hmacMD5(h.sign, seq, plain)[:8]
	h.cipher.XORKeyStream(sum, sum)
	h.seq++
	return append(append(sig, sum...), seq...)
}

func (s *Session) usable(h *half) error {
	if s.broken {
		return fmt.Errorf("%w: the session broke before", ErrSignature)
	}
	if h.seq == math.MaxUint32 {
		return fmt.Errorf("%w: sequence numbers are used up", ErrState)
	}
	return nil
}

// Seal encrypts and signs the next message to the other side.
func (s *Session) Seal(plain []byte) (sealed, signature []byte, err error) {
	if err := s.usable(&s.out); err != nil {
		return nil, nil, err
	}
	sealed = make([]byte, len(plain))
	s.out.cipher.XORKeyStream(sealed, plain)
	return sealed, s.out.mac(plain), nil
}

// Unseal decrypts and checks the next message of the other side.
func (s *Session) Unseal(sealed, signature []byte) ([]byte, error) {
	if err := s.usable(&s.in); err != nil {
		return nil, err
	}
	plain := make([]byte, len(sealed))
	s.in.cipher.XORKeyStream(plain, sealed)
	if err := s.check(plain, signature); err != nil {
		return nil, err
	}
	return plain, nil
}

// Sign signs the next message to the other side, which travels as it is.
func (s *Session) Sign(plain []byte) (signature []byte, err error) {
	if err := s.usable(&s.out); err != nil {
		return nil, err
	}
	return s.out.mac(plain), nil
}

// Verify checks the next message of the other side, which travelled as it is.
func (s *Session) Verify(plain, signature []byte) error {
	if err := s.usable(&s.in); err != nil {
		return err
	}
	return s.check(plain, signature)
}

func (s *Session) check(plain, signature []byte) error {
	if subtle.ConstantTimeCompare(s.in.mac(plain), signature) != 1 {
		s.broken = true
		return ErrSignature
	}
	return nil
}
