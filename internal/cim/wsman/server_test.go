package wsman

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"holdfast/internal/cim/ntlm"
)

const (
	testUser     = `CONTOSO\backup`
	testPassword = "pass:wörd"
)

// fakeServer is a WS-Man server as small as the tests allow: NTLM with sealing over HTTP, NTLM or Basic over TLS.
type fakeServer struct {
	*httptest.Server
	t      *testing.T
	answer func(action string, envelope *node, raw string) (status int, body string)

	conns, requests, signIns atomic.Int32
	wrap                     bool // answers NTLM in SPNEGO
	mangle                   func(sealed []byte) []byte
	binding                  []byte
	before                   func(w http.ResponseWriter, r *http.Request) bool // true = it has answered

	mu   sync.Mutex
	seen []string // actions
}

type fakeConn struct {
	mu     sync.Mutex
	server *ntlm.Server
	user   string
}

type connKey struct{}

func newFakeServer(t *testing.T, secure bool, answer func(action string, envelope *node, raw string) (int, string)) *fakeServer {
	t.Helper()
	f := &fakeServer{t: t, answer: answer}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		f.conns.Add(1)
		return context.WithValue(ctx, connKey{}, &fakeConn{})
	}
	if secure {
		f.StartTLS()
		f.binding = ntlm.TLSServerEndPoint(f.Certificate())
	} else {
		f.Start()
	}
	t.Cleanup(f.Server.Close)
	return f
}

func (f *fakeServer) config() Config {
	c := Config{URL: f.URL + "/wsman", Auth: AuthNTLM, User: testUser,
		Password: func(context.Context) (string, error) { return testPassword, nil }}
	if t, ok := f.Client().Transport.(*http.Transport); ok && f.TLS != nil {
		c.TLS = t.TLSClientConfig
	}
	return c
}

func (f *fakeServer) session(change func(*Config)) *Session {
	f.t.Helper()
	cfg := f.config()
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (f *fakeServer) actions() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.seen, " ")
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.requests.Add(1)
	if f.before != nil && f.before(w, r) {
		return
	}
	c := r.Context().Value(connKey{}).(*fakeConn)
	c.mu.Lock()
	defer c.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.Header.Get("WSMANIDENTIFY") == "unauthenticated" {
		f.respond(w, nil, body)
		return
	}
	auth := r.Header.Get("Authorization")
	if user, password, ok := r.BasicAuth(); ok {
		if user != testUser || password != testPassword {
			w.WriteHeader(401)
			return
		}
		f.respond(w, nil, body)
		return
	}
	if token, ok := strings.CutPrefix(auth, "Negotiate "); ok {
		f.signIn(w, c, token)
		return
	}
	if c.user == "" {
		w.Header().Set("WWW-Authenticate", `Negotiate, Basic realm="WSMAN"`)
		w.WriteHeader(401)
		return
	}
	if f.TLS != nil {
		f.respond(w, nil, body)
		return
	}
	m := regexp.MustCompile(`(?s)^--Encrypted Boundary\r\n\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n\tOriginalContent: type=application/soap\+xml;charset=UTF-8;Length=(\d+)\r\n--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n(.*)--Encrypted Boundary--\r\n$`).FindSubmatch(body)
	if m == nil {
		f.t.Errorf("a request over HTTP is not sealed: %.200q", body)
		w.WriteHeader(400)
		return
	}
	data := m[2]
	n := binary.LittleEndian.Uint32(data)
	plain, err := c.server.Session().Unseal(data[4+n:], data[4:4+n])
	if err != nil || fmt.Sprint(len(plain)) != string(m[1]) {
		f.t.Errorf("unseal: %v, %d bytes, announced %s", err, len(plain), m[1])
		w.WriteHeader(400)
		return
	}
	f.respond(w, c.server.Session(), plain)
}

func (f *fakeServer) signIn(w http.ResponseWriter, c *fakeConn, token string) {
	in, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		w.WriteHeader(400)
		return
	}
	if inner, wrapped, err := unwrapToken(in); err == nil && wrapped {
		in = inner
	}
	if len(in) > 8 && in[8] == 1 {
		c.user = ""
		c.server = ntlm.NewServer(ntlm.ServerConfig{Computer: "HV01", Domain: "CONTOSO", ChannelBinding: f.binding, RequireBinding: f.binding != nil, RequireMIC: true,
			Password: func(user, domain string) (string, bool) { return testPassword, domain+`\`+user == testUser }})
		out, err := c.server.Challenge(in)
		if err != nil {
			f.t.Error(err)
		}
		if f.wrap {
			if out, err = wrapToken(out); err != nil {
				f.t.Error(err)
			}
		}
		w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(out))
		w.WriteHeader(401)
		return
	}
	user, err := c.server.Authenticate(in)
	if err != nil {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(401)
		return
	}
	f.signIns.Add(1)
	c.user = user
}

func (f *fakeServer) respond(w http.ResponseWriter, s *ntlm.Session, raw []byte) {
	root, err := parseXML(raw)
	if err != nil {
		f.t.Errorf("the request is no XML: %v", err)
		w.WriteHeader(400)
		return
	}
	head := root.child(nsSOAP, "Header")
	action := head.child(nsAddress, "Action").trimmed()
	f.mu.Lock()
	f.seen = append(f.seen, action[strings.LastIndexByte(action, '/')+1:])
	f.mu.Unlock()
	status, body := f.answer(action, root, string(raw))
	body = strings.ReplaceAll(body, "MESSAGEID", head.child(nsAddress, "MessageID").trimmed())
	out := []byte(body)
	w.Header().Set("Content-Type", plainType)
	if s != nil {
		sealed, signature, err := s.Seal(out)
		if err != nil {
			f.t.Error(err)
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "--Encrypted Boundary\r\n\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=%d\r\n--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n", len(out))
		b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(signature))))
		b.Write(signature)
		b.Write(sealed)
		b.WriteString("--Encrypted Boundary--\r\n")
		w.Header().Set("Content-Type", sealedType)
		if out = b.Bytes(); f.mangle != nil {
			out = f.mangle(out)
		}
	}
	w.WriteHeader(status)
	_, _ = w.Write(out)
}

// soap wraps a body as a server does.
func soap(body string) string {
	return `<s:Envelope xml:lang="en-US" xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd" xmlns:n="http://schemas.xmlsoap.org/ws/2004/09/enumeration" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` +
		`<s:Header><a:Action>x</a:Action><a:RelatesTo>MESSAGEID</a:RelatesTo></s:Header><s:Body>` + body + `</s:Body></s:Envelope>`
}
