package ntlm

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPublishedVectors checks against the example of [MS-NLMP] 4.2.4: user User of Domain with
// Password, server challenge 0123456789abcdef, client challenge 8 × aa, session key 16 × 55, time 0.
func TestPublishedVectors(t *testing.T) {
	t.Parallel()
	key := ntowf("User", "Domain", "Password")
	want := func(what, hexWant string, got []byte) {
		t.Helper()
		if !bytes.Equal(got, unhex(t, hexWant)) {
			t.Errorf("%s = %x, published is %s", what, got, hexWant)
		}
	}
	want("NTOWFv2", "0c868a403bfd7a93a3001ef22ef02e3f", key)
	challenge := unhex(t, "0123456789abcdef")
	aa := bytes.Repeat([]byte{0xaa}, 8)
	info := attributes{{avDomain, utf16le("Domain")}, {avComputer, utf16le("Server")}}
	nt := proof(key, challenge, encodeBlob(0, aa, info))
	want("NTProofStr", "68cd0ab851e51c96aabc927bebef6a1c", nt)
	want("LMv2", "86c35097ac9cec102554764a57cccc19", hmacMD5(key, challenge, aa))
	base := hmacMD5(key, nt)
	want("SessionBaseKey", "8de40ccadbc14a82f15cb0ad0de95ca3", base)
	random := bytes.Repeat([]byte{0x55}, 16)
	want("EncryptedRandomSessionKey", "c5dad2544fc9799094ce1ce90bc9d03e", rc4Once(base, random))
	client, server := newSession(random, false), newSession(random, true)
	want("client signing key", "4788dc861b4782f35d43fd98fe1a2d39", client.out.sign)
	sealed, sig, err := client.Seal(utf16le("Plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	want("sealed data", "54e50165bf1936dc996020c1811b0f06fb5f", sealed)
	want("signature", "010000007fb38ec5c55d497600000000", sig)
	plain, err := server.Unseal(sealed, sig)
	if err != nil || !bytes.Equal(plain, utf16le("Plaintext")) {
		t.Errorf("Unseal = %x, %v", plain, err)
	}
}

func serverConfig() ServerConfig {
	return ServerConfig{Computer: "HV01", Domain: "CONTOSO", DNSComputer: "hv01.contoso.test", DNSDomain: "contoso.test",
		Password: func(user, _ string) (string, bool) {
			if strings.EqualFold(user, "jürgen") || user == "backup" { // a client of the tests knows no Unicode
				return "s3cret ∞", true
			}
			return "", false
		}}
}

func clientConfig() ClientConfig {
	return ClientConfig{User: "Jürgen", Domain: "contoso", Workstation: "ws1", Password: "s3cret ∞"}
}

func signIn(c *Client, s *Server) (string, error) {
	neg, err := c.Negotiate()
	if err != nil {
		return "", err
	}
	ch, err := s.Challenge(neg)
	if err != nil {
		return "", err
	}
	auth, err := c.Authenticate(ch)
	if err != nil {
		return "", err
	}
	return s.Authenticate(auth)
}

func TestSignInAndSeal(t *testing.T) {
	t.Parallel()
	cfg := serverConfig()
	cfg.RequireMIC = true
	c, s := NewClient(clientConfig()), NewServer(cfg)
	user, err := signIn(c, s)
	if err != nil || user != `contoso\Jürgen` {
		t.Fatalf("signIn = %q, %v", user, err)
	}
	for i := range 50 {
		plain := bytes.Repeat([]byte{byte(i)}, i*37)
		a, b := c.Session(), s.Session()
		if i%3 == 0 {
			a, b = b, a
		}
		if i%7 == 0 {
			sig, err := a.Sign(plain)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Verify(plain, sig); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			continue
		}
		sealed, sig, err := a.Seal(plain)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && bytes.Equal(sealed, plain) {
			t.Fatalf("message %d travels in the clear", i)
		}
		got, err := b.Unseal(sealed, sig)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("message %d: %v", i, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		client func(*ClientConfig)
		server func(*ServerConfig)
		want   error
	}{
		{"wrong password", func(c *ClientConfig) { c.Password = "x" }, nil, ErrCredentials},
		{"unknown user", func(c *ClientConfig) { c.User = "nobody"; c.Password = "" }, nil, ErrCredentials},
		{"no user", func(c *ClientConfig) { c.User = "" }, nil, ErrCredentials},
		{"other connection", func(c *ClientConfig) { c.ChannelBinding = []byte("a") }, func(s *ServerConfig) { s.ChannelBinding = []byte("b") }, ErrBinding},
		{"same connection", func(c *ClientConfig) { c.ChannelBinding = []byte("b") }, func(s *ServerConfig) { s.ChannelBinding = []byte("b"); s.RequireBinding = true }, nil},
		{"no binding", nil, func(s *ServerConfig) { s.ChannelBinding = []byte("b"); s.RequireBinding = true }, ErrBinding},
		{"no binding, tolerated", nil, func(s *ServerConfig) { s.ChannelBinding = []byte("b") }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cc, sc := clientConfig(), serverConfig()
			if tt.client != nil {
				tt.client(&cc)
			}
			if tt.server != nil {
				tt.server(&sc)
			}
			s := NewServer(sc)
			_, err := signIn(NewClient(cc), s)
			if !errors.Is(err, tt.want) {
				t.Fatalf("signIn: %v, want %v", err, tt.want)
			}
			if err != nil && s.Session() != nil {
				t.Error("a refused sign-in has a session")
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the password stands in %q", err)
			}
		})
	}
}

// TestTamperedSignIn changes each byte of the three messages in turn: none may
// yield a session at both ends that work together.
func TestTamperedSignIn(t *testing.T) {
	t.Parallel()
	fixed := func(b byte) io.Reader { return bytes.NewReader(bytes.Repeat([]byte{b}, 64)) }
	run := func(change func(kind int, msg []byte)) error {
		cc, sc := clientConfig(), serverConfig()
		cc.Rand, sc.Rand = fixed(1), fixed(2)
		now := func() time.Time { return time.Unix(1e9, 0) }
		cc.Now, sc.Now = now, now
		c, s := NewClient(cc), NewServer(sc)
		neg, err := c.Negotiate()
		if err != nil {
			return err
		}
		change(1, neg)
		ch, err := s.Challenge(neg)
		if err != nil {
			return err
		}
		change(2, ch)
		auth, err := c.Authenticate(ch)
		if err != nil {
			return err
		}
		change(3, auth)
		_, err = s.Authenticate(auth)
		return err
	}
	var sizes [4]int
	if err := run(func(kind int, msg []byte) { sizes[kind] = len(msg) }); err != nil {
		t.Fatal(err)
	}
	for kind := 1; kind <= 3; kind++ {
		for i := range sizes[kind] {
			err := run(func(k int, msg []byte) {
				if k == kind {
					msg[i] ^= 0x40
				}
			})
			if err == nil {
				t.Errorf("message %d with byte %d changed is accepted", kind, i)
			}
		}
	}
}

func TestTamperedSession(t *testing.T) {
	t.Parallel()
	key := bytes.Repeat([]byte{7}, 16)
	seal := func() (*Session, []byte, []byte) {
		sealed, sig, err := newSession(key, false).Seal([]byte("move the VM"))
		if err != nil {
			t.Fatal(err)
		}
		return newSession(key, true), sealed, sig
	}
	for i := range 11 + SignatureBytes {
		s, sealed, sig := seal()
		if i < len(sealed) {
			sealed[i] ^= 1
		} else {
			sig[i-len(sealed)] ^= 1
		}
		if _, err := s.Unseal(sealed, sig); !errors.Is(err, ErrSignature) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, _, err := s.Seal(nil); !errors.Is(err, ErrSignature) {
			t.Fatalf("a broken session goes on: %v", err)
		}
	}
	s, sealed, sig := seal()
	if _, err := s.Unseal(sealed, sig); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unseal(sealed, sig); !errors.Is(err, ErrSignature) {
		t.Fatalf("a repeated message: %v", err)
	}
	s, sealed, sig = seal()
	if _, err := s.Unseal(sealed, sig[:8]); !errors.Is(err, ErrSignature) {
		t.Fatalf("a short signature: %v", err)
	}
	s.broken = false
	s.out.seq = 1<<32 - 1
	if _, _, err := s.Seal(nil); !errors.Is(err, ErrState) {
		t.Fatalf("sequence numbers start again: %v", err)
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	c, s := NewClient(clientConfig()), NewServer(serverConfig())
	if _, err := c.Authenticate(nil); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	if _, err := s.Authenticate(nil); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	neg, _ := c.Negotiate()
	if _, err := c.Negotiate(); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	ch, _ := s.Challenge(neg)
	if _, err := s.Challenge(neg); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	auth, _ := c.Authenticate(ch)
	if _, err := c.Authenticate(ch); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	if _, err := s.Authenticate(auth); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authenticate(auth); !errors.Is(err, ErrState) {
		t.Error("the last message is accepted twice")
	}
}

// TestWeakPeers: a peer that leaves out what NTLMv2 needs is refused; one that leaves out sealing gets no session.
func TestWeakPeers(t *testing.T) {
	t.Parallel()
	for _, drop := range []uint32{flagExtended} {
		neg := encodeNegotiate((flagNTLM | flagsSealing | flagUnicode) &^ drop)
		if _, err := NewServer(serverConfig()).Challenge(neg); !errors.Is(err, ErrWeak) {
			t.Errorf("negotiate without 0x%x: %v", drop, err)
		}
	}
	for _, drop := range []uint32{flagNTLM, flagExtended, flagUnicode, flagTargetInfo} {
		c := NewClient(clientConfig())
		_, _ = c.Negotiate()
		ch := challengeMessage{flags: (flagNTLM | flagsSealing | flagUnicode | flagTargetInfo) &^ drop, info: attributes{}}.encode()
		if _, err := c.Authenticate(ch); !errors.Is(err, ErrWeak) {
			t.Errorf("challenge without 0x%x: %v", drop, err)
		}
	}
	for _, drop := range []uint32{flagSign, flagSeal, flag128, flagKeyExchange} {
		c, s := NewClient(clientConfig()), NewServer(serverConfig())
		neg, _ := c.Negotiate()
		binary.LittleEndian.PutUint32(neg[12:], binary.LittleEndian.Uint32(neg[12:])&^drop)
		c.negotiate = neg // both know of it: no tampering
		ch, err := s.Challenge(neg)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := c.Authenticate(ch)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(auth); err != nil {
			t.Errorf("without 0x%x: %v", drop, err)
		}
		if c.Session() != nil || s.Session() != nil {
			t.Errorf("without 0x%x there is a session", drop)
		}
	}
	// NTLMv1: 24 bytes of answer.
	c, s := NewClient(clientConfig()), NewServer(serverConfig())
	neg, _ := c.Negotiate()
	_, _ = s.Challenge(neg)
	v1 := authenticateMessage{flags: flagUnicode, lm: make([]byte, 24), nt: make([]byte, 24), user: utf16le("Jürgen")}.encode()
	if _, err := s.Authenticate(v1); !errors.Is(err, ErrWeak) {
		t.Errorf("NTLMv1: %v", err)
	}
}

func TestTLSServerEndPoint(t *testing.T) {
	t.Parallel()
	for alg, size := range map[x509.SignatureAlgorithm]int{x509.SHA1WithRSA: 32, x509.SHA256WithRSA: 32, x509.ECDSAWithSHA384: 48, x509.SHA512WithRSAPSS: 64, x509.PureEd25519: 32} {
		b := TLSServerEndPoint(&x509.Certificate{Raw: []byte("cert"), SignatureAlgorithm: alg})
		hash, ok := bytes.CutPrefix(b, []byte("tls-server-end-point:"))
		if !ok || len(hash) != size {
			t.Errorf("%v: %q has %d bytes of hash, want %d", alg, b, len(hash), size)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	s := NewServer(serverConfig())
	ch, err := s.Challenge(encodeNegotiate(flagNTLM | flagsSealing | flagUnicode))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ch)
	f.Add(ch[:50])
	f.Fuzz(func(t *testing.T, msg []byte) {
		c := NewClient(clientConfig())
		_, _ = c.Negotiate()
		_, err := c.Authenticate(msg)
		if err == nil {
			if _, err := decodeChallenge(msg); err != nil {
				t.Fatal("answered what it cannot read")
			}
		}
	})
}

func FuzzServer(f *testing.F) {
	c, s := NewClient(clientConfig()), NewServer(serverConfig())
	neg, _ := c.Negotiate()
	ch, err := s.Challenge(neg)
	if err != nil {
		f.Fatal(err)
	}
	auth, err := c.Authenticate(ch)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(neg, auth)
	f.Add(neg[:16], auth[:64])
	f.Fuzz(func(t *testing.T, neg, auth []byte) {
		s := NewServer(serverConfig())
		if _, err := s.Challenge(neg); err != nil {
			return
		}
		if user, err := s.Authenticate(auth); err == nil {
			t.Fatalf("a guess signed in as %s", user)
		}
	})
}
