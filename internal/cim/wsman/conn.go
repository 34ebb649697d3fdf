package wsman

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/ntlm"
)

var (
	// errNotSent: the request did not reach the server whole, so the server did nothing.
	errNotSent = errors.New("the request could not be sent")
	// errBroken: the connection broke after the request was sent.
	errBroken = errors.New("the connection broke before the answer was complete")
	// errSignInAgain: the server does not take the connection as signed in, and did nothing.
	errSignInAgain = errors.New("the server asks to sign in again")
	errTooLarge    = errors.New("the answer is too large")
)

// conn is one connection, used by one goroutine at a time.
type conn struct {
	raw         net.Conn
	rw          net.Conn // raw, or TLS on it
	br          *bufio.Reader
	limit       *limited
	certificate *x509.Certificate // of the server; nil without TLS
	mech        Mechanism         // nil with Basic and without sign-in
	seal        bool
	header      string // Authorization of every request (Basic)
	tried       []byte // fingerprint of the password
	since       time.Time
	used        bool // has carried a request before
	last        bool // the server closes it
}

// limited fails when more is read than an answer may have.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLarge
	}
	if int64(len(b)) > l.left {
		b = b[:l.left]
	}
	n, err := l.r.Read(b)
	l.left -= int64(n)
	return n, err
}

func (c *conn) use(nc net.Conn) {
	c.rw = nc
	c.limit = &limited{r: nc, left: maxHandshake}
	c.br = bufio.NewReaderSize(c.limit, 32<<10)
}

// bind ends reads and writes when a context ends, not a moment earlier: so whoever sees them fail can
// tell a timeout by the context. release must be called; after it the context has no hold on the connection.
func (c *conn) bind(ctx context.Context) (release func()) {
	_ = c.raw.SetDeadline(time.Time{}) // a connection that is closed says so at the next read or write
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		_ = c.raw.SetDeadline(drop)
	})
	return func() {
		if !stop() {
			<-over
		}
	}
}

func (c *conn) close() {
	// The way it closes tells nothing any more: what it carried is complete or reported.
	_ = c.raw.Close()
	if c.mech != nil {
		_ = c.mech.Close()
		c.mech = nil
	}
}

// alive looks whether an idle connection was closed, or sent what nobody asked for.
func (c *conn) alive() bool {
	if c.br.Buffered() > 0 {
		return false
	}
	c.limit.left = 1
	if c.raw.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return false
	}
	_, err := c.br.Peek(1)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// answer is one HTTP response.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// post sends one HTTP request and reads the answer of at most limit bytes.
func (c *conn) post(p *pool, contentType, extra string, body []byte, limit int64) (*answer, error) {
	path := p.url.RequestURI()
	var b bytes.Buffer
	b.Grow(512 + len(body))
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Holdfast\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s%s\r\n",
		path, p.url.Host, contentType, len(body), c.header, extra)
	b.Write(body)
	// A request that is cut off is never carried out: its body is shorter than its announced length.
	if _, err := c.rw.Write(b.Bytes()); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	c.limit.left = limit
	for range 5 {
		resp, err := http.ReadResponse(c.br, &http.Request{Method: http.MethodPost})
		if err != nil {
			return nil, readError(err, limit)
		}
		if resp.StatusCode < 200 {
			continue
		}
		a := &answer{status: resp.StatusCode, header: resp.Header}
		a.body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, readError(err, limit)
		}
		c.last = c.last || resp.Close
		return a, nil
	}
	return nil, fmt.Errorf("%w: it sends nothing but interim answers", errBroken)
}

func readError(err error, limit int64) error {
	if errors.Is(err, errTooLarge) {
		return &cim.Error{Code: cim.CodeQuota, Message: fmt.Sprintf("the answer is larger than %d bytes", limit)}
	}
	return fmt.Errorf("%w: %w", errBroken, err)
}

// signIn proves to the server who we are.
func (c *conn) signIn(ctx context.Context, p *pool) error {
	defer c.bind(ctx)()
	if p.cfg.Auth == AuthBasic && p.cfg.Mechanism == nil {
		password, err := p.password(ctx, c)
		if err != nil {
			return err
		}
		c.header = "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(p.cfg.User+":"+password)) + "\r\n"
		return nil
	}
	var binding []byte
	if c.certificate != nil {
		binding = ntlm.TLSServerEndPoint(c.certificate)
	}
	refused := func(why string, err error) error {
		return &cim.Error{Code: cim.CodeUnauthorized, Message: "sign in as " + p.who() + " failed: " + why, Err: err}
	}
	mech, err := p.mechanism(ctx, c, binding)
	var known *cim.Error
	switch {
	case errors.As(err, &known):
		return err
	case err != nil:
		return refused("there is nothing to sign in with", err)
	}
	c.mech = mech
	token, done, err := mech.Step(nil)
	for round := 0; ; round++ {
		if err != nil {
			return refused("the tokens cannot be agreed on", err)
		}
		if round == 6 {
			return refused("the server asks for ever more tokens", nil)
		}
		a, err1 := c.post(p, plainType, "Authorization: Negotiate "+base64.StdEncoding.EncodeToString(token)+"\r\n", nil, maxHead)
		if err1 != nil {
			return err1
		}
		in, offered := challengeOf(a.header)
		switch {
		case a.status == http.StatusUnauthorized && done:
			p.remember(c)
			return refused("the server refuses the credentials", nil)
		case a.status == http.StatusUnauthorized && len(in) == 0:
			return refused("the server offers "+offered+", not Negotiate", nil)
		case a.status == http.StatusUnauthorized && c.last:
			return refused("the server closes the connection instead of going on", nil)
		case a.status == http.StatusUnauthorized:
			token, done, err = mech.Step(in)
			continue
		case a.status == http.StatusForbidden || a.status == http.StatusProxyAuthRequired || a.status == http.StatusServiceUnavailable || a.status == http.StatusNotFound:
			return httpError("", a.status)
		case !done && len(in) == 0:
			return &cim.Error{Code: cim.CodeProtocol, Message: fmt.Sprintf("HTTP %d in the middle of signing in", a.status)}
		case !done:
			if _, done, err = mech.Step(in); err == nil && !done {
				err = errors.New("it ends too early")
			}
			if err != nil {
				return refused("the tokens cannot be agreed on", err)
			}
		}
		break
	}
	// With TLS the channel is sealed already. Without, nothing may travel in the clear.
	if c.seal = p.tls == nil; c.seal && !mech.CanSeal() {
		return &cim.Error{Code: cim.CodeProtocol, Message: "the server does not offer to seal messages, and nothing is sent in the clear: use https"}
	}
	return nil
}

// challengeOf returns the server's Negotiate token and, for errors, the schemes that it offers.
func challengeOf(h http.Header) (token []byte, offered string) {
	var schemes []string
	for _, v := range h.Values("WWW-Authenticate") {
		for _, one := range strings.Split(v, ",") {
			scheme, param, _ := strings.Cut(strings.TrimSpace(one), " ")
			if strings.Contains(scheme, "=") {
				continue // a parameter of the scheme before
			}
			schemes = append(schemes, clip(scheme))
			if strings.EqualFold(scheme, "Negotiate") && token == nil {
				if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(param)); err == nil && len(b) > 0 {
					token = b
				}
			}
		}
	}
	if len(schemes) == 0 {
		return token, "nothing"
	}
	return token, strings.Join(schemes, ", ")
}

// roundTrip carries one envelope. Its errors wrap errNotSent, errBroken or errSignInAgain, or are final.
func (c *conn) roundTrip(ctx context.Context, p *pool, envelope string) (*answer, error) {
	defer c.bind(ctx)()
	body, contentType, extra := []byte(envelope), plainType, ""
	if c.mech == nil && c.header == "" {
		extra = "WSMANIDENTIFY: unauthenticated\r\n" // how [MS-WSMV] marks it
	}
	if c.seal {
		var err error
		if body, err = sealBody(c.mech, body); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotSent, err)
		}
		contentType = sealedType
	}
	a, err := c.post(p, contentType, extra, body, 4*int64(p.cfg.MaxEnvelope)+maxHead)
	if err != nil {
		return nil, err
	}
	if a.status == http.StatusUnauthorized {
		if c.header != "" {
			p.remember(c)
		}
		return nil, errSignInAgain
	}
	kind, params, _ := mime.ParseMediaType(a.header.Get("Content-Type"))
	if !c.seal {
		if strings.HasPrefix(strings.ToLower(params["charset"]), "utf-16") && len(a.body) > 1 && a.body[0] != 0xff && a.body[0] != 0xfe {
			a.body = append([]byte{0xff, 0xfe}, a.body...)
		}
		return a, nil
	}
	if kind != "multipart/encrypted" {
		if a.status == http.StatusOK {
			return nil, &cim.Error{Code: cim.CodeProtocol, Message: "the server's answer is not sealed and is not trusted"}
		}
		c.last = true
		a.body = nil // an unsealed body may come from anybody; its status alone is reported
		return a, nil
	}
	if a.body, err = unsealBody(c.mech, a.body); err != nil {
		return nil, &cim.Error{Code: cim.CodeProtocol, Message: "the server's answer cannot be unsealed", Err: err}
	}
	return a, nil
}
