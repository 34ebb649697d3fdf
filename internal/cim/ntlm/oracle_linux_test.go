package ntlm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// script runs one of testdata's programs with Debian's Python, whose packages python3-ntlm-auth and
// python3-impacket are needed.
type script struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
	err *bytes.Buffer
}

func startScript(t *testing.T, name string, args ...string) *script {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second) // t.Context ends before the clean-up
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", append([]string{"testdata/" + name}, args...)...)
	s := &script{t: t, err: &bytes.Buffer{}}
	cmd.Stderr = s.err
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("Debian's python3 is needed: %v", err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, s.err)
		}
		cancel()
	})
	s.in, s.out = in, bufio.NewScanner(out)
	s.out.Buffer(nil, 1<<20)
	return s
}

func (s *script) say(format string, args ...any) {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.in, format+"\n", args...); err != nil {
		s.t.Fatalf("%v\n%s", err, s.err)
	}
}

func (s *script) hear() []byte {
	s.t.Helper()
	if !s.out.Scan() {
		s.t.Fatalf("the program ended (are python3-ntlm-auth and python3-impacket installed?)\n%s", s.err)
	}
	b, err := hex.DecodeString(s.out.Text())
	if err != nil {
		s.t.Fatalf("%q", s.out.Text())
	}
	return b
}

// converse seals and unseals messages in both directions.
func converse(t *testing.T, s *script, session *Session) {
	t.Helper()
	if session == nil {
		t.Fatal("no session")
	}
	for i := range 12 {
		plain := bytes.Repeat([]byte{byte(i), 0, 0xff}, 1+i*i*11)
		if i%2 == 0 {
			sealed, sig, err := session.Seal(plain)
			if err != nil {
				t.Fatal(err)
			}
			s.say("unseal %x%x", sig, sealed)
			if got := s.hear(); !bytes.Equal(got, plain) {
				t.Fatalf("message %d is opened as %.40x", i, got)
			}
			continue
		}
		s.say("seal %x", plain)
		b := s.hear()
		got, err := session.Unseal(b[SignatureBytes:], b[:SignatureBytes])
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("message %d: %v", i, err)
		}
	}
}

func TestIndependentClient(t *testing.T) {
	t.Parallel()
	for name, binding := range map[string]string{"plain": "", "bound": "tls-server-end-point:0123456789"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := serverConfig()
			cfg.RequireMIC = true
			cfg.ChannelBinding, cfg.RequireBinding = []byte(binding), binding != ""
			server := NewServer(cfg)
			s := startScript(t, "client.py", "backup", "s3cret ∞", "contoso", "ws1", hex.EncodeToString([]byte(binding)))
			ch, err := server.Challenge(s.hear())
			if err != nil {
				t.Fatal(err)
			}
			s.say("%x", ch)
			user, err := server.Authenticate(s.hear())
			if err != nil || !strings.EqualFold(user, `contoso\backup`) {
				t.Fatalf("Authenticate = %q, %v", user, err)
			}
			converse(t, s, server.Session())
		})
	}
}

func TestIndependentServer(t *testing.T) {
	t.Parallel()
	for _, stamp := range []string{"timestamp", ""} {
		t.Run("with "+stamp, func(t *testing.T) {
			t.Parallel()
			client := NewClient(clientConfig())
			s := startScript(t, "server.py", "Jürgen", "s3cret ∞", "contoso", stamp)
			neg, err := client.Negotiate()
			if err != nil {
				t.Fatal(err)
			}
			s.say("%x", neg)
			auth, err := client.Authenticate(s.hear())
			if err != nil {
				t.Fatal(err)
			}
			s.say("%x", auth)
			if !s.out.Scan() || s.out.Text() != "ok" {
				t.Fatalf("refused\n%s", s.err)
			}
			converse(t, s, client.Session())
		})
	}
}
