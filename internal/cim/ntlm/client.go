package ntlm

import (
	"bytes"
	"crypto"
	"crypto/md5"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"

	_ "crypto/sha256" // hashes of certificates
	_ "crypto/sha512"
)

// ClientConfig describes a sign-in.
type ClientConfig struct {
	User        string // name alone, or a principal name (user@domain) with an empty Domain
	Domain      string // NetBIOS or DNS name; empty = the server's own accounts
	Workstation string // this machine's name; may be empty
	Password    string
	// ChannelBinding ties the sign-in to a TLS connection: TLSServerEndPoint(its certificate). Empty without TLS.
	ChannelBinding []byte
	TargetName     string           // service principal name, HTTP/host; may be empty
	Now            func() time.Time // nil = time.Now
	Rand           io.Reader        // nil = crypto/rand
}

// Client is one sign-in from the client's side: Negotiate, then Authenticate, then Session.
// It is not safe for concurrent use.
type Client struct {
	cfg       ClientConfig
	flags     uint32
	negotiate []byte
	done      bool
	session   *Session
}

// NewClient returns a client that has sent nothing.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	return &Client{cfg: cfg}
}

// Negotiate returns the first message.
func (c *Client) Negotiate() ([]byte, error) {
	if c.negotiate != nil {
		return nil, ErrState
	}
	c.flags = flagUnicode | flagTarget | flagNTLM | flagAlwaysSign | flagsSealing | flagTargetInfo | flagVersion
	c.negotiate = encodeNegotiate(c.flags)
	return bytes.Clone(c.negotiate), nil
}

// Authenticate answers the server's challenge with the last message. ErrMessage
// and ErrWeak tell that the server is none that may be answered.
func (c *Client) Authenticate(challenge []byte) ([]byte, error) {
	if c.negotiate == nil || c.done {
		return nil, ErrState
	}
	ch, err := decodeChallenge(challenge)
	if err != nil {
		return nil, err
	}
	if ch.flags&flagNTLM == 0 || ch.flags&flagUnicode == 0 || ch.flags&flagExtended == 0 || ch.info == nil {
		return nil, fmt.Errorf("%w: challenge flags 0x%08x", ErrWeak, ch.flags)
	}
	var random [24]byte // client challenge, session key
	if _, err := io.ReadFull(c.cfg.Rand, random[:]); err != nil {
		return nil, fmt.Errorf("ntlm: random numbers: %w", err)
	}
	at := fileTime(c.cfg.Now())
	var lm []byte
	key := ntowf(c.cfg.User, c.cfg.Domain, c.cfg.Password)
	if ts, ok := ch.info.get(avTimestamp); ok {
		at = binary.LittleEndian.Uint64(ts)
		lm = make([]byte, 24)
	} else {
		lm = append(hmacMD5(key, ch.challenge[:], random[:8]), random[:8]...)
	}
	info := append(attributes(nil), ch.info...)
	flags := uint32(avFlagsMIC)
	if v, ok := info.get(avFlags); ok {
		flags |= binary.LittleEndian.Uint32(v)
	}
	info.set(avFlags, binary.LittleEndian.AppendUint32(nil, flags))
	info.set(avBinding, bindingHash(c.cfg.ChannelBinding))
	if c.cfg.TargetName != "" {
		info.set(avTargetName, utf16le(c.cfg.TargetName))
	}
	blob := encodeBlob(at, random[:8], info)
	nt := proof(key, ch.challenge[:], blob)
	base := hmacMD5(key, nt)

	c.flags &= ch.flags
	exported, encrypted := base, []byte(nil)
	if c.flags&flagKeyExchange != 0 {
		exported = bytes.Clone(random[8:])
		encrypted = rc4Once(base, exported)
	}
	msg := authenticateMessage{
		flags: c.flags, lm: lm, nt: append(nt, blob...), key: encrypted,
		domain: utf16le(c.cfg.Domain), user: utf16le(c.cfg.User), workstation: utf16le(strings.ToUpper(c.cfg.Workstation)),
	}.encode()
	if len(msg) > maxMessage {
		return nil, fmt.Errorf("%w: names are too long", ErrMessage)
	}
	copy(msg[micOffset:micEnd], hmacMD5(exported, c.negotiate, challenge, msg))
	if c.flags&flagsSealing == flagsSealing {
		c.session = newSession(exported, false)
	}
	c.done = true
	return msg, nil
}

// Session signs and seals what follows. It is nil before Authenticate, and when
// the server does not offer sealing with 128 bit and key exchange.
func (c *Client) Session() *Session { return c.session }

// TLSServerEndPoint is the channel binding of a connection whose server showed
// this certificate ([RFC 5929] 4.1).
func TLSServerEndPoint(cert *x509.Certificate) []byte {
	hash := crypto.SHA256 // also in place of MD5 and SHA-1
	switch cert.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		hash = crypto.SHA512
	}
	h := hash.New()
	h.Write(cert.Raw)
	return h.Sum([]byte("tls-server-end-point:"))
}

// bindingHash is the MD5 of a gss_channel_bindings_struct without addresses
// ([MS-NLMP] 3.1.5.1.2); without a binding it is zero.
func bindingHash(binding []byte) []byte {
	if len(binding) == 0 {
		return make([]byte, md5.Size)
	}
	b := make([]byte, 16, 20+len(binding))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(binding)))
	sum := md5.Sum(append(b, binding...))
	return sum[:]
}
