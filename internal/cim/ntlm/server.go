package ntlm

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"
)

// ServerConfig describes a server.
type ServerConfig struct {
	Computer    string // NetBIOS name
	Domain      string // NetBIOS name; empty = Computer
	DNSComputer string // may be empty
	DNSDomain   string // may be empty
	// Password returns a user's password; domain is what the client sent, perhaps empty. ok is false for an unknown user.
	Password func(user, domain string) (password string, ok bool)
	// ChannelBinding is that of the TLS connection. A client that sends one must send this one.
	ChannelBinding []byte
	RequireBinding bool             // refuse clients that send none
	RequireMIC     bool             // refuse clients that do not protect the three messages (curl is one)
	Now            func() time.Time // nil = time.Now
	Rand           io.Reader        // nil = crypto/rand
}

// Server is one sign-in from the server's side: Challenge, then Authenticate,
// then Session. It is not safe for concurrent use.
type Server struct {
	cfg                  ServerConfig
	flags                uint32
	nonce                [8]byte
	negotiate, challenge []byte
	done                 bool
	session              *Session
}

// NewServer returns a server that waits for the first message.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Domain == "" {
		cfg.Domain = cfg.Computer
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	return &Server{cfg: cfg}
}

// Challenge answers the client's first message.
func (s *Server) Challenge(negotiate []byte) ([]byte, error) {
	if s.challenge != nil {
		return nil, ErrState
	}
	asked, err := decodeNegotiate(negotiate)
	if err != nil {
		return nil, err
	}
	// Some clients leave out flagNTLM, which says nothing here: there is only NTLM.
	if asked&flagExtended == 0 {
		return nil, fmt.Errorf("%w: negotiate flags 0x%08x", ErrWeak, asked)
	}
	const optional = flagSign | flagSeal | flagAlwaysSign | flag128 | flag56 | flagKeyExchange | flagVersion | flagTarget
	flags := asked&optional | flagNTLM | flagExtended | flagTargetInfo
	var target []byte
	if asked&flagUnicode != 0 {
		flags |= flagUnicode
		target = utf16le(s.cfg.Domain)
	} else {
		flags |= flagOEM
		target = []byte(strings.ToUpper(s.cfg.Domain))
	}
	if strings.EqualFold(s.cfg.Domain, s.cfg.Computer) {
		flags |= flagTypeServer
	} else {
		flags |= flagTypeDomain
	}
	if _, err := io.ReadFull(s.cfg.Rand, s.nonce[:]); err != nil {
		return nil, fmt.Errorf("ntlm: random numbers: %w", err)
	}
	info := attributes{{avDomain, utf16le(s.cfg.Domain)}, {avComputer, utf16le(s.cfg.Computer)}}
	if s.cfg.DNSDomain != "" {
		info.set(avDNSDomain, utf16le(s.cfg.DNSDomain))
	}
	if s.cfg.DNSComputer != "" {
		info.set(avDNSComputer, utf16le(s.cfg.DNSComputer))
	}
	info.set(avTimestamp, binary.LittleEndian.AppendUint64(nil, fileTime(s.cfg.Now())))
	s.flags = flags
	s.negotiate = bytes.Clone(negotiate)
	s.challenge = challengeMessage{flags: flags, challenge: s.nonce, target: target, info: info}.encode()
	return bytes.Clone(s.challenge), nil
}

// Authenticate checks the client's last message and returns its user: domain\user,
// or the name alone when the client named no domain. ErrCredentials does not tell
// whether the user or the password is wrong. A server answers once, whatever the outcome.
func (s *Server) Authenticate(msg []byte) (user string, err error) {
	if s.challenge == nil || s.done {
		return "", ErrState
	}
	s.done = true
	a, err := decodeAuthenticate(msg)
	if err != nil {
		return "", err
	}
	if a.flags&flagAnonymous != 0 || len(a.user) == 0 || len(a.nt) == 0 {
		return "", fmt.Errorf("%w: anonymous", ErrCredentials)
	}
	// An NTLMv1 answer has 24 bytes; 16 bytes of proof and at least a blob's fixed part make one of version 2.
	if len(a.nt) < 16+32 {
		return "", fmt.Errorf("%w: answer of %d bytes", ErrWeak, len(a.nt))
	}
	given, blob := a.nt[:16], a.nt[16:]
	info, err := decodeBlob(blob)
	if err != nil {
		return "", err
	}
	name, domain := decodeText(a.user, s.flags), decodeText(a.domain, s.flags)
	password, known := s.cfg.Password(name, domain)
	key := ntowf(name, domain, password)
	want := proof(key, s.nonce[:], blob)
	if subtle.ConstantTimeCompare(want, given) != 1 || !known {
		return "", ErrCredentials
	}
	flags := s.flags & (a.flags | flagNTLM | flagTargetInfo)
	exported := hmacMD5(key, want)
	if flags&flagKeyExchange != 0 {
		if len(a.key) != 16 {
			return "", fmt.Errorf("%w: session key of %d bytes", ErrMessage, len(a.key))
		}
		exported = rc4Once(exported, a.key)
	}
	if err := s.checkMIC(msg, exported, info); err != nil {
		return "", err
	}
	if err := s.checkBinding(info); err != nil {
		return "", err
	}
	if flags&flagsSealing == flagsSealing {
		s.session = newSession(exported, true)
	}
	if domain != "" {
		return domain + `\` + name, nil
	}
	return name, nil
}

func (s *Server) checkMIC(msg, exported []byte, info attributes) error {
	v, _ := info.get(avFlags)
	if len(v) != 4 || binary.LittleEndian.Uint32(v)&avFlagsMIC == 0 {
		if s.cfg.RequireMIC {
			return fmt.Errorf("%w: the client protects no message integrity", ErrWeak)
		}
		return nil
	}
	if len(msg) < micEnd {
		return fmt.Errorf("%w: the integrity code is missing", ErrMessage)
	}
	bare := bytes.Clone(msg)
	clear(bare[micOffset:micEnd])
	if subtle.ConstantTimeCompare(hmacMD5(exported, s.negotiate, s.challenge, bare), msg[micOffset:micEnd]) != 1 {
		return fmt.Errorf("%w: of the sign-in", ErrSignature)
	}
	return nil
}

func (s *Server) checkBinding(info attributes) error {
	if len(s.cfg.ChannelBinding) == 0 {
		return nil
	}
	got, ok := info.get(avBinding)
	if !ok || bytes.Equal(got, make([]byte, 16)) {
		if s.cfg.RequireBinding {
			return fmt.Errorf("%w: the client sent no binding", ErrBinding)
		}
		return nil
	}
	if subtle.ConstantTimeCompare(got, bindingHash(s.cfg.ChannelBinding)) != 1 {
		return ErrBinding
	}
	return nil
}

// Session signs and seals what follows. It is nil before Authenticate has
// succeeded, and when the client did not ask for sealing with 128 bit and key exchange.
func (s *Server) Session() *Session { return s.session }
