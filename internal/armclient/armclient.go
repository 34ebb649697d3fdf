// Package armclient is a small typed client of the vault's REST API, for our own
// CLI, demo and tests.
//
// It logs in with client credentials and renews its token by itself, follows
// long-running operations by Azure-AsyncOperation and reports the job's progress
// meanwhile, reads lists to their last page, and turns error bodies back into
// *dr.Error with kind, code and hint. Safe for concurrent use. It never follows
// a link to another host: of links in answers only path and query are used, so
// the token goes nowhere else.
package armclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// MaxAnswer is the largest answer that is read, bytes.
const MaxAnswer = 64 << 20

// Config says which vault to talk to and as whom.
type Config struct {
	URL            string // https://host[:port]
	CAFile         string // PEM; empty = the system's
	TenantID       string
	ClientID       string
	ClientSecret   string
	Token          string // instead of the three above: a ready bearer token
	SubscriptionID string
	ResourceGroup  string
	Vault          string
	HTTP           *http.Client  // nil = one of its own with CAFile
	Timeout        time.Duration // of one request; 0 = 30 s
	PollInterval   time.Duration // between polls of an operation; 0 = what the server says
}

// Validate checks the configuration.
func (c Config) Validate() error {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		return dr.Errorf(dr.KindInvalid, "armclient.Config", "vault URL %q is not scheme://host[:port]", c.URL)
	case c.Token == "" && (c.TenantID == "" || c.ClientID == "" || c.ClientSecret == ""):
		return dr.Errorf(dr.KindInvalid, "armclient.Config", "neither a token nor tenant, client id and client secret are given")
	case c.SubscriptionID == "" || c.ResourceGroup == "" || c.Vault == "":
		return dr.Errorf(dr.KindInvalid, "armclient.Config", "subscription, resource group or vault name is missing")
	}
	return nil
}

// Client talks to one vault.
type Client struct {
	cfg  Config
	base string
	http *http.Client

	mu      sync.Mutex
	token   string
	renewAt time.Time
}

// New makes a Client. Besides reading CAFile it does no I/O.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	u, _ := url.Parse(cfg.URL) // checked by Validate
	c := &Client{cfg: cfg, base: u.Scheme + "://" + u.Host, http: cfg.HTTP, token: cfg.Token}
	if c.http != nil {
		return c, nil
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, dr.Errorf(dr.KindInvalid, "armclient.New", "read the vault's CA certificate: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, dr.Errorf(dr.KindInvalid, "armclient.New", "%s holds no PEM certificate", cfg.CAFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// Close releases idle connections.
func (c *Client) Close() error { c.http.CloseIdleConnections(); return nil }

// VaultID is the id below which everything of the vault is.
func (c *Client) VaultID() armwire.VaultID {
	return armwire.VaultID{SubscriptionID: c.cfg.SubscriptionID, ResourceGroup: c.cfg.ResourceGroup, Vault: c.cfg.Vault}
}

// ID is the id of a resource of the vault from type and name segments, which
// are escaped, so that no name can reach out of its segment.
func (c *Client) ID(segments ...string) string {
	escaped := make([]string, len(segments))
	for i, s := range segments {
		escaped[i] = segment(s)
	}
	v := c.VaultID()
	return armwire.VaultID{SubscriptionID: segment(v.SubscriptionID), ResourceGroup: segment(v.ResourceGroup), Vault: segment(v.Vault)}.ID(escaped...)
}

// segment escapes one path segment; "." and ".." would be taken for directions.
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// bearer returns a valid token, logging in if need be. fresh asks for a new one.
func (c *Client) bearer(ctx context.Context, fresh bool) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.Token != "" {
		return c.cfg.Token, nil
	}
	if c.token != "" && !fresh && time.Now().Before(c.renewAt) {
		return c.token, nil
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.cfg.ClientID}, "client_secret": {c.cfg.ClientSecret}, "scope": {c.base + "/.default"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/"+url.PathEscape(c.cfg.TenantID)+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", dr.Errorf(dr.KindInternal, "armclient.login", "make the login request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, _, body, err := c.exchange(req)
	if err != nil {
		return "", err
	}
	var tok struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &tok) // what is not JSON has no token and is reported below
	if status != http.StatusOK || tok.AccessToken == "" {
		if tok.Error == "" {
			return "", decodeError(status, body)
		}
		return "", dr.Errorf(dr.KindUnauthenticated, "armclient.login", "log in to %s as %s: %s", c.base, c.cfg.ClientID, tok.Description).
			WithHint("Check client id, client secret and tenant.")
	}
	c.token = tok.AccessToken
	c.renewAt = time.Now().Add(time.Duration(tok.ExpiresIn) * time.Second * 4 / 5)
	return c.token, nil
}

// exchange sends one request and reads the whole answer.
func (c *Client) exchange(req *http.Request) (int, http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(req.Context(), c.cfg.Timeout)
	defer cancel()
	resp, err := c.http.Do(req.WithContext(ctx))
	if err != nil {
		if req.Context().Err() != nil {
			return 0, nil, nil, req.Context().Err()
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the URL
		}
		return 0, nil, nil, dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "armclient", "%s %s of %s: %w", req.Method, req.URL.Path, c.base, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil || len(b) > MaxAnswer {
		return 0, nil, nil, dr.New(dr.KindUnavailable, dr.CodeVaultUnreachable, "armclient", "read the answer to %s %s: cut off after %d bytes", req.Method, req.URL.Path, len(b))
	}
	return resp.StatusCode, resp.Header, b, nil
}

// send sends a request with the token; once more with a new token after a 401.
func (c *Client) send(ctx context.Context, method, path string, in any) (int, http.Header, []byte, error) {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return 0, nil, nil, dr.Errorf(dr.KindInternal, "armclient", "encode the body of %s %s: %w", method, path, err)
		}
	}
	u := path
	if !strings.Contains(u, "api-version=") {
		sep := "?"
		if strings.Contains(u, "?") {
			sep = "&"
		}
		u += sep + "api-version=" + armwire.APIVersion
	}
	for fresh := false; ; fresh = true {
		token, err := c.bearer(ctx, fresh)
		if err != nil {
			return 0, nil, nil, err
		}
		req, err := http.NewRequestWithContext(ctx, method, c.base+u, bytes.NewReader(body))
		if err != nil {
			return 0, nil, nil, dr.Errorf(dr.KindInvalid, "armclient", "make the request %s %s: %w", method, path, err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		status, h, b, err := c.exchange(req)
		if err != nil || status != http.StatusUnauthorized || fresh || c.cfg.Token != "" {
			return status, h, b, err
		}
	}
}

// Get reads a resource by its id (or any escaped path of the server) into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	status, _, b, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return decodeError(status, b)
	}
	return decode(path, b, out)
}

// Bytes reads what is not JSON, or posts and reads it.
func (c *Client) Bytes(ctx context.Context, method, path string, in any) ([]byte, http.Header, error) {
	status, h, b, err := c.send(ctx, method, path, in)
	if err == nil && status != http.StatusOK {
		err = decodeError(status, b)
	}
	return b, h, err
}

// Change sends PUT, PATCH, POST or DELETE. The operation is done already if the
// server answered at once.
func (c *Client) Change(ctx context.Context, method, path string, in any) (*Operation, error) {
	status, h, b, err := c.send(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	switch status {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
		return &Operation{c: c, done: true, body: b}, nil
	case http.StatusAccepted:
	default:
		return nil, decodeError(status, b)
	}
	op := &Operation{c: c, wait: retryAfter(h)}
	for link, to := range map[string]*string{h.Get("Azure-AsyncOperation"): &op.status, h.Get("Location"): &op.result} {
		u, err := url.Parse(link)
		if err != nil || link == "" {
			return nil, dr.Errorf(dr.KindInternal, "armclient", "%s %s was accepted without saying where to ask about it", method, path)
		}
		*to = u.RequestURI()
	}
	p, _, _ := strings.Cut(op.status, "?")
	op.JobID = p[strings.LastIndexByte(p, '/')+1:]
	return op, nil
}

func retryAfter(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 1 {
		return time.Second
	}
	return time.Duration(min(n, 60)) * time.Second
}

// Operation is a change on its way.
type Operation struct {
	JobID string // empty if the change was done at once

	c      *Client
	status string
	result string
	wait   time.Duration
	done   bool
	body   []byte
}

// Wait polls until the operation has ended and decodes its result into out (nil:
// the result is not wanted). progress, if not nil, is called with the job after
// every poll. A failed operation is the job's error, a cancelled one has
// KindCanceled. Errors of single polls that can pass (KindUnavailable) are tried
// again until ctx ends.
func (o *Operation) Wait(ctx context.Context, out any, progress func(armwire.Job)) error {
	for !o.done {
		var st armwire.OperationStatus
		err := o.c.Get(ctx, o.status, &st)
		if err == nil && progress != nil {
			var job armwire.Resource[armwire.Job]
			if e := o.c.Get(ctx, o.c.ID("replicationJobs", o.JobID), &job); e == nil {
				progress(job.Properties)
			}
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("wait for job %s: %w", o.JobID, ctx.Err())
		case dr.KindOf(err) == dr.KindUnavailable && err != nil:
		case err != nil:
			return err
		case st.Status == armwire.OperationSucceeded:
			return o.fetch(ctx, out)
		case st.Status == armwire.OperationFailed || st.Status == armwire.OperationCanceled:
			return failure(o.JobID, st)
		}
		pause := o.wait
		if o.c.cfg.PollInterval > 0 {
			pause = o.c.cfg.PollInterval
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for job %s: %w", o.JobID, ctx.Err())
		case <-time.After(pause):
		}
	}
	if out == nil || len(o.body) == 0 {
		return nil
	}
	return decode("result", o.body, out)
}

// fetch reads the result of an operation that succeeded.
func (o *Operation) fetch(ctx context.Context, out any) error {
	status, _, b, err := o.c.send(ctx, http.MethodGet, o.result, nil)
	switch {
	case err != nil:
		return err
	case status == http.StatusOK:
		o.body = b
	case status != http.StatusNoContent:
		return decodeError(status, b)
	}
	o.done = true
	if out == nil || len(o.body) == 0 {
		return nil
	}
	return decode("result", o.body, out)
}

func failure(job string, st armwire.OperationStatus) error {
	e := armwire.Error{Code: "JobFailed", Message: "job " + job + " failed", Kind: dr.KindInternal.String()}
	if st.Error != nil {
		e = *st.Error
	}
	if st.Status == armwire.OperationCanceled {
		e.Kind = dr.KindCanceled.String()
	}
	return wireError(0, e)
}

func decode(what string, b []byte, out any) error {
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return dr.Errorf(dr.KindInternal, "armclient", "decode the answer to %s: %w", what, err)
	}
	return nil
}

// decodeError turns an error answer into *dr.Error.
func decodeError(status int, body []byte) error {
	var e armwire.ErrorBody
	if json.Unmarshal(body, &e) != nil || e.Error.Code == "" {
		e.Error = armwire.Error{Message: fmt.Sprintf("the server answered %d %s", status, http.StatusText(status))}
	}
	return wireError(status, e.Error)
}

// wireError rebuilds the error that the server had; the status decides only
// where the body does not say the kind (a proxy's answer).
func wireError(status int, e armwire.Error) error {
	kind, known := dr.ParseKind(e.Kind)
	if !known {
		switch {
		case status == http.StatusUnauthorized:
			kind = dr.KindUnauthenticated
		case status == http.StatusForbidden:
			kind = dr.KindForbidden
		case status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout || status == http.StatusTooManyRequests:
			kind = dr.KindUnavailable
		case status >= 400 && status < 500 && status != http.StatusNotFound: // a proxy's 404 does not mean that the object is absent
			kind = dr.KindInvalid
		}
	}
	return &dr.Error{Kind: kind, Code: dr.Code(e.Code), Op: "armclient", Message: e.Message, Hint: e.Hint}
}

// All reads every page of a list.
func All[P any](ctx context.Context, c *Client, path string) ([]armwire.Resource[P], error) {
	return pages[armwire.Resource[P]](ctx, c, path)
}

func pages[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	var all []T
	for {
		var l armwire.List[T]
		if err := c.Get(ctx, path, &l); err != nil {
			return nil, err
		}
		all = append(all, l.Value...)
		if l.NextLink == nil || *l.NextLink == "" {
			return all, nil
		}
		u, err := url.Parse(*l.NextLink)
		if err != nil || u.RequestURI() == path {
			return nil, dr.Errorf(dr.KindInternal, "armclient", "the list's next link is not usable")
		}
		path = u.RequestURI()
	}
}
