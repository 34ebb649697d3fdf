package wsmand

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/ntlm"
	"holdfast/internal/hvsim/wsmand/negotiate"
	"holdfast/internal/hvsim/wsmand/soap"
)

// Paths of the service.
const (
	pathWSMan    = "/wsman"
	pathIdentify = "/wsman-anon/identify"
)

// reply is an answer before it is put into an envelope.
type reply struct {
	action string // empty: body is a whole envelope
	header string // more headers
	body   []byte
	fault  bool
}

const contentSOAP = "application/soap+xml;charset=UTF-8"

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		http.Error(w, "the service shuts down", http.StatusServiceUnavailable)
		return
	}
	s.ops.Add(1)
	s.mu.Unlock()
	defer s.ops.Done()

	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(s.cfg.Quotas.ReadTimeout)) // not all writers can
	path := strings.TrimSuffix(r.URL.Path, "/")
	switch {
	case !strings.EqualFold(path, pathWSMan) && !strings.EqualFold(path, pathIdentify):
		http.NotFound(w, r)
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST is possible here", http.StatusMethodNotAllowed)
		return
	}
	c, _ := r.Context().Value(connKey{}).(*conn)
	if c == nil {
		c = &conn{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	anonymous := strings.EqualFold(path, pathIdentify) || strings.EqualFold(r.Header.Get("WSMANIDENTIFY"), "unauthenticated")
	user := ""
	if !anonymous {
		var ok bool
		if user, ok = s.signIn(w, r, c); !ok {
			return
		}
	}
	m, ok := s.receive(w, r, c, anonymous)
	if !ok {
		return
	}
	_ = rc.SetReadDeadline(time.Time{}) // from here on a read tells that the client went away
	m.user = user
	s.answer(w, r, c, m)
}

// message is a request as it arrived.
type message struct {
	user   string
	text   []byte // UTF-8
	wide   bool   // it was UTF-16, and so is the answer
	sealed bool
	fault  *soap.Fault // the text can't be read
}

// receive reads a request's body. Unless ok, the answer is written.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, c *conn, anonymous bool) (m *message, ok bool) {
	limit := int64(s.cfg.Quotas.MaxEnvelopeKB) << 10
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit+4096)) // sealing adds some
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		s.log.Debug("request could not be read", "remote", r.RemoteAddr, "error", err)
		http.Error(w, "the request could not be read: "+err.Error(), status)
		return nil, false
	}
	if len(body) == 0 && !anonymous {
		w.WriteHeader(http.StatusOK) // clients sign in with an empty request first
		return nil, false
	}
	m = &message{}
	contentType := r.Header.Get("Content-Type")
	media, params, err := mime.ParseMediaType(contentType)
	if err == nil && strings.EqualFold(media, "multipart/encrypted") {
		if !strings.EqualFold(params["protocol"], negotiate.Protocol) {
			http.Error(w, "the message is sealed by a protocol that is not known here", http.StatusBadRequest)
			return nil, false
		}
		user := c.User()
		if body, contentType, err = c.Unseal(body); err != nil {
			s.log.Warn("sealed request refused", "remote", r.RemoteAddr, "user", user, "error", err)
			w.Header().Set("Connection", "close")
			http.Error(w, "the message could not be opened: "+err.Error(), http.StatusBadRequest)
			return nil, false
		}
		m.sealed = true
		media, params, err = mime.ParseMediaType(contentType)
	}
	if err != nil || !strings.EqualFold(media, "application/soap+xml") {
		http.Error(w, "the content type is not application/soap+xml", http.StatusUnsupportedMediaType)
		return nil, false
	}
	if !m.sealed && !anonymous && r.TLS == nil && !s.cfg.AllowUnencrypted {
		s.log.Warn("unencrypted request refused", "remote", r.RemoteAddr, "user", c.User())
		http.Error(w, "messages over HTTP must be encrypted", http.StatusInternalServerError)
		return nil, false
	}
	if int64(len(body)) > limit {
		m.fault = soap.NewFault(soap.FaultTooLargeForServer, fmt.Sprintf("the request has %d bytes, the limit is %d", len(body), limit))
		return m, true
	}
	charset := params["charset"]
	switch strings.ToLower(charset) {
	case "", "utf-8", "utf-16", "utf-16le", "utf-16be":
	default:
		m.fault = soap.NewFault(soap.FaultCharset, "the character set is "+charset)
		return m, true
	}
	m.wide = strings.HasPrefix(strings.ToLower(charset), "utf-16")
	if m.text, err = soap.DecodeText(body, charset); err != nil {
		m.fault = soap.NewFault(soap.FaultCharset, err.Error())
	}
	return m, true
}

// answer executes a request and writes what came of it.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, c *conn, m *message) {
	req, f := &soap.Request{}, m.fault
	if f == nil {
		req, f = soap.ParseEnvelope(m.text)
	}
	anonymous := m.user == ""
	if anonymous && !req.Identify {
		s.refuse(w, r, "")
		return
	}
	op, method := operation(req)
	s.log.Debug("request", "remote", r.RemoteAddr, "user", m.user, "operation", op, "resource", req.Resource, "method", method)
	broken := &Fault{}
	if f == nil && s.cfg.Fault != nil {
		if b := s.cfg.Fault(Call{Operation: op, Resource: req.Resource, Method: method, User: m.user}); b != nil {
			broken = b
		}
	}
	if broken.Delay > 0 {
		select {
		case <-time.After(broken.Delay):
		case <-r.Context().Done():
		case <-s.ctx.Done():
		}
	}
	switch {
	case broken.DropBefore:
		panic(http.ErrAbortHandler) // cuts the connection
	case broken.Status == http.StatusUnauthorized:
		c.Forget()
		s.refuse(w, r, "")
		return
	case broken.Status != 0:
		w.WriteHeader(broken.Status)
		return
	case broken.Quota:
		f = soap.QuotaFault(s.cfg.Quotas.MaxOperations)
	}
	var rep *reply
	if f == nil {
		rep, f = s.execute(r.Context(), m.user, req, op, method)
	}
	if broken.DropAfter {
		panic(http.ErrAbortHandler)
	}
	if f != nil {
		s.log.Debug("fault", "remote", r.RemoteAddr, "user", m.user, "operation", op, "resource", req.Resource, "method", method,
			"subcode", f.Subcode, "code", f.Value(), "text", f.Message)
		rep = &reply{action: f.Action, body: f.Body(s.cfg.Computer), fault: true}
		switch f.Way {
		case cim.CodeUnavailable:
			panic(http.ErrAbortHandler)
		case cim.CodeUnauthorized:
			c.Forget()
			s.refuse(w, r, "")
			return
		case cim.CodeProtocol:
			rep = &reply{body: []byte("This is no envelope.")}
		}
	}
	s.write(w, c, m, rep, req.MessageID, broken.Truncate)
}

// write sends an answer, sealed if the request was.
func (s *Server) write(w http.ResponseWriter, c *conn, m *message, rep *reply, relates string, truncate bool) {
	text := rep.body
	if rep.action != "" {
		text = soap.Envelope(rep.action, rep.header, rep.body, relates)
	}
	contentType := contentSOAP
	if m.wide {
		text, contentType = soap.EncodeUTF16(text), "application/soap+xml;charset=UTF-16"
	}
	if m.sealed {
		sealed, err := c.Seal(text, contentType)
		if err != nil {
			s.log.Warn("answer could not be sealed", "user", m.user, "error", err)
			panic(http.ErrAbortHandler)
		}
		text, contentType = sealed, negotiate.SealedType
	}
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(s.cfg.Quotas.ReadTimeout))
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }()
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	if rep.fault {
		w.WriteHeader(http.StatusInternalServerError)
	}
	if truncate {
		_, _ = w.Write(text[:len(text)/2])
		_ = rc.Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(text) // a client that went away asks again
}

// operation names what a request is about.
func operation(req *soap.Request) (op, method string) {
	switch req.Action {
	case soap.NSTransfer + "/Get":
		return "Get", ""
	case soap.NSTransfer + "/Put":
		return "Put", ""
	case soap.NSEnum + "/Enumerate":
		return "Enumerate", ""
	case soap.NSEnum + "/Pull":
		return "Pull", ""
	case soap.NSEnum + "/Release":
		return "Release", ""
	}
	if req.Identify {
		return "Identify", ""
	}
	if method, ok := invokeAction(req); ok {
		return "Invoke", method
	}
	return "", ""
}

// execute carries a request out.
func (s *Server) execute(ctx context.Context, user string, req *soap.Request, op, method string) (*reply, *soap.Fault) {
	switch op {
	case "Identify":
		return s.identify(user), nil
	case "":
		return nil, soap.NewFault(soap.FaultAction, "the action is "+clip(req.Action))
	}
	end, ok := s.begin(user)
	if !ok && op != "Release" && op != "Pull" { // what makes room must be possible
		return nil, soap.QuotaFault(s.cfg.Quotas.MaxOperations)
	}
	if ok {
		defer end()
	}
	timeout := s.cfg.Quotas.MaxTimeout
	if req.Timeout > 0 {
		timeout = min(timeout, req.Timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	c := &call{Server: s, user: user, req: req}
	switch op {
	case "Pull":
		return c.pull()
	case "Release":
		return c.release()
	}
	var err error
	if c.session, err = s.cfg.Session(user); err != nil {
		return nil, soap.SessionFault(err, "ConnectServer", req.Resource, false)
	}
	switch op {
	case "Get":
		return c.get(ctx)
	case "Put":
		return c.put(ctx)
	case "Enumerate":
		return c.enumerate(ctx)
	}
	return c.invoke(ctx, method)
}

// refuse asks for a sign-in. token is the answer to a step of one, with its scheme.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, token string) {
	if token != "" {
		w.Header().Set("WWW-Authenticate", token)
	} else {
		if r.Context().Value(connKey{}) != nil {
			w.Header().Add("WWW-Authenticate", "Negotiate")
		}
		if s.basicAllowed(r) {
			w.Header().Add("WWW-Authenticate", `Basic realm="WSMAN"`)
		}
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusUnauthorized)
}

func (s *Server) basicAllowed(r *http.Request) bool {
	return s.cfg.Basic && (r.TLS != nil || s.cfg.AllowUnencrypted)
}

// signIn returns the user of a request. Unless ok, the answer is written.
func (s *Server) signIn(w http.ResponseWriter, r *http.Request, c *conn) (user string, ok bool) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	rest = strings.TrimSpace(rest)
	switch strings.ToLower(scheme) {
	case "":
		if c.User() != "" {
			return c.User(), true
		}
	case "basic":
		if user, ok = s.basic(r); ok && s.basicAllowed(r) {
			return user, true
		}
		s.log.Warn("sign-in refused", "remote", r.RemoteAddr, "scheme", scheme)
	case "negotiate", "ntlm":
		data, err := base64.StdEncoding.DecodeString(rest)
		if err == nil && r.Context().Value(connKey{}) != nil {
			var token []byte
			if token, ok, err = c.Step(s.ntlmConfig(r), data); err == nil && ok {
				if token != nil {
					w.Header().Set("WWW-Authenticate", scheme+" "+base64.StdEncoding.EncodeToString(token))
				}
				return c.User(), true
			}
			if err == nil {
				s.drain(r)
				s.refuse(w, r, scheme+" "+base64.StdEncoding.EncodeToString(token))
				return "", false
			}
		}
		c.Forget()
		s.log.Warn("sign-in refused", "remote", r.RemoteAddr, "scheme", scheme, "error", err)
	}
	s.drain(r)
	s.refuse(w, r, "")
	return "", false
}

// drain reads a body of reasonable size, so that the connection stays usable for the next step.
func (s *Server) drain(r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, int64(s.cfg.Quotas.MaxEnvelopeKB)<<10)
}

func (s *Server) basic(r *http.Request) (user string, ok bool) {
	name, given, ok := r.BasicAuth()
	if !ok || name == "" {
		return "", false
	}
	domain := ""
	if d, n, found := strings.Cut(name, `\`); found {
		domain, name = d, n
	}
	want, known := s.cfg.Password(name, domain)
	if subtle.ConstantTimeCompare([]byte(want), []byte(given)) != 1 || !known {
		return "", false
	}
	if domain != "" {
		return domain + `\` + name, true
	}
	return name, true
}

func (s *Server) ntlmConfig(r *http.Request) ntlm.ServerConfig {
	cfg := ntlm.ServerConfig{Computer: s.cfg.Computer, Domain: s.cfg.Domain, Password: s.cfg.Password}
	if r.TLS != nil {
		cfg.ChannelBinding = s.binding
	}
	return cfg
}
