package pageblob

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	azpage "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"holdfast/internal/dr"
)

// Config says how to ask. The zero Config is right for addresses with a signature.
type Config struct {
	// Key or Token prove who asks where the address has no signature of its own.
	// Both are secret.
	Key   *blob.SharedKeyCredential
	Token azcore.TokenCredential
	// Transport decides on proxies and TLS; nil is one like http.DefaultTransport.
	Transport http.RoundTripper

	Timeout   time.Duration // bounds one attempt of one request; 0 = 2 minutes
	Attempts  int           // before a request fails; 0 = 8
	BaseDelay time.Duration // before the second attempt, doubling, with jitter; 0 = 300 ms
	// MaxDelay is the longest wait between attempts that the package chooses; 0 = 30 s.
	// What the service asks for by Retry-After is waited for up to five minutes.
	MaxDelay time.Duration
	Now      func() time.Time // compared with the service's clock; nil = time.Now
}

const maxRetryAfter = 5 * time.Minute

// Client asks about one page blob, one snapshot of one, or one managed disk. It is
// safe for concurrent use.
type Client struct {
	pb      *azpage.Client
	cfg     Config
	name    string // host and path, without the query
	plain   string // the address without the query
	auth    authKind
	end     time.Time // of the signature; zero = unknown
	count   *counters
	release func()
}

type counters struct{ requests, sent, received, throttled atomic.Int64 }

// Count says what a Client and those derived from it have asked so far.
type Count struct {
	Requests  int64 // attempts included
	Sent      int64 // bytes of pages
	Received  int64 // bytes of content
	Throttled int64 // answers 429 and 503
}

type authKind uint8

const (
	authSigned authKind = iota
	authKey
	authToken
)

// Open returns a Client for the address of a blob: of a page blob in an account, or
// the address that a managed disk grants for upload or export. It does no I/O. The address's
// query (a signature) is a secret and is kept out of everything that is shown.
// Plain http is taken for the own machine only.
func Open(address string, cfg Config) (*Client, error) {
	const op = "pageblob.Open"
	c, err := prepare(op, address, cfg)
	if err != nil {
		return nil, err
	}
	o := &azpage.ClientOptions{}
	o.Transport, o.Telemetry.Disabled = c.http(), true
	o.Retry = policy.RetryOptions{MaxRetries: -1} // do repeats
	o.InsecureAllowCredentialWithHTTP = strings.HasPrefix(address, "http:")
	switch c.auth {
	case authKey:
		c.pb, err = azpage.NewClientWithSharedKeyCredential(address, c.cfg.Key, o)
	case authToken:
		c.pb, err = azpage.NewClient(address, c.cfg.Token, o)
	case authSigned:
		c.pb, err = azpage.NewClientWithNoCredential(address, o)
	}
	if err != nil {
		return nil, dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, op, "the credentials for blob %s can't be used", c.name)
	}
	return c, nil
}

// prepare makes a Client that has no blob yet.
func prepare(op, address string, cfg Config) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") == "" || u.User != nil {
		return nil, dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, op, "the address can't be used: it has to look like https://account.blob.core.windows.net/container/name")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !ownMachine(u.Hostname())) {
		return nil, dr.New(dr.KindInvalid, dr.CodeAzureConfiguration, op, "the address of %s%s has to begin with https", u.Host, u.Path)
	}
	c := &Client{cfg: cfg.defaults(), name: u.Host + u.Path, plain: u.Scheme + "://" + u.Host + u.EscapedPath(), count: &counters{}, release: func() {}}
	c.end, _ = time.Parse(time.RFC3339, u.Query().Get("se")) // zero: it does not tell
	switch {
	case cfg.Key != nil:
		c.auth = authKey
	case cfg.Token != nil:
		c.auth = authToken
	}
	if cfg.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 32
		t.DisableCompression = true
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		c.cfg.Transport, c.release = t, t.CloseIdleConnections
	}
	return c, nil
}

func (c *Client) http() *http.Client {
	return &http.Client{Transport: c.cfg.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (cfg Config) defaults() Config {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 2 * time.Minute
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = 8
	}
	if cfg.BaseDelay <= 0 {
		cfg.BaseDelay = 300 * time.Millisecond
	}
	if cfg.MaxDelay <= 0 {
		cfg.MaxDelay = 30 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return cfg
}

func ownMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Name is the blob's host and path, for messages.
func (c *Client) Name() string { return c.name }

// URL is the blob's address without a signature. A snapshot's has its time.
func (c *Client) URL() string { return c.plain }

// Count returns what was asked so far.
func (c *Client) Count() Count {
	return Count{c.count.requests.Load(), c.count.sent.Load(), c.count.received.Load(), c.count.throttled.Load()}
}

// Close lets idle connections go, if the transport is the Client's own. It is
// idempotent.
func (c *Client) Close() error {
	c.release()
	return nil
}

// At returns a Client for a snapshot of the blob, which shares the connections and
// counts of c; it need not be closed. id is what Snapshot returned.
func (c *Client) At(id string) (*Client, error) {
	pb, err := c.pb.WithSnapshot(id)
	if err != nil {
		return nil, dr.New(dr.KindInvalid, "", "pageblob.At", "snapshot %.60q of blob %s can't be asked for", id, c.name)
	}
	d := *c
	d.pb, d.release = pb, func() {}
	d.name = c.name + " snapshot " + id
	d.plain = SnapshotURL(c.plain, id)
	return &d, nil
}

// SnapshotURL is the address of a snapshot of the blob at plain.
func SnapshotURL(plain, id string) string { return plain + "?snapshot=" + url.QueryEscape(id) }

// do makes attempts until one succeeds, fails for good, or the attempts or the
// context are at their end. attempt reports what the SDK returned.
func (c *Client) do(ctx context.Context, op string, attempt func(ctx context.Context) error) error {
	for n := 1; ; n++ {
		if err := context.Cause(ctx); err != nil {
			return c.canceled(op, err)
		}
		actx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
		c.count.requests.Add(1)
		err := attempt(actx)
		f := c.judge(op, actx, err)
		cancel()
		switch {
		case f == nil:
			return nil
		case ctx.Err() != nil:
			return c.canceled(op, context.Cause(ctx))
		case !f.retry:
			return f.err
		case n >= c.cfg.Attempts:
			f.err.Message += attemptsText(n)
			return f.err
		}
		if f.throttled {
			c.count.throttled.Add(1)
		}
		if err := c.wait(ctx, n, f.after); err != nil {
			// What was wrong says more than that the time was up.
			return errors.Join(c.canceled(op, err), f.err)
		}
	}
}

// wait sleeps before attempt n+1: exponential with jitter, or as long as the
// service asks for.
func (c *Client) wait(ctx context.Context, n int, after time.Duration) error {
	delay := c.cfg.MaxDelay
	if n < 20 {
		delay = min(c.cfg.BaseDelay<<(n-1), c.cfg.MaxDelay)
	}
	delay = delay/2 + rand.N(delay/2+1)
	timer := time.NewTimer(max(delay, min(after, maxRetryAfter)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
