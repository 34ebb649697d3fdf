package s3

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/objstore"
)

// Modes of retention (S3 Object Lock). Somebody with a special right may lift
// GOVERNANCE; COMPLIANCE nobody lifts before its date, the owner of the account
// included.
const (
	Governance = "GOVERNANCE"
	Compliance = "COMPLIANCE"
)

// Config says where the bucket is and how to behave towards it.
type Config struct {
	Bucket    string
	Prefix    string // folder inside the S3 bucket, without a leading slash; empty for none
	Endpoint  string // https://host[:port] of a store other than AWS, http for tests; empty means AWS
	Region    string // empty: the SDK's own choice, and us-east-1 where an endpoint is given
	PathStyle bool   // https://host/bucket/key and not https://bucket.host/key

	// AccessKeyID and its companions are fixed credentials. If they are empty,
	// and Anonymous is not set, the SDK looks for some in its usual places: the
	// environment, the shared configuration files, the role of the EC2 instance
	// or container.
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
	Anonymous       bool // no signatures at all: for reading public buckets

	// ReadOnly makes every write fail with ErrReadOnly, and Open write nothing:
	// for a recovery with credentials that can only read.
	ReadOnly bool

	// RetainMode is empty (no retention), Governance or Compliance, and
	// RetainFor how long each new object is kept at least. The bucket must have
	// Object Lock, which Open checks.
	RetainMode string
	RetainFor  time.Duration

	Transport http.RoundTripper // decides on proxies and TLS; nil means one like http.DefaultTransport

	StallTimeout time.Duration // ends an attempt in which no byte moves; 0 means 30 s
	Attempts     int           // attempts without progress before a call fails; 0 means 6
	BaseDelay    time.Duration // before the second attempt, doubling, with jitter; 0 means 200 ms
	MaxDelay     time.Duration // the longest wait between attempts; 0 means 10 s
}

const (
	defaultStall    = 30 * time.Second
	defaultAttempts = 6
	defaultBase     = 200 * time.Millisecond
	defaultMax      = 10 * time.Second

	// maxPrefix leaves room for the longest key within S3's 1,024 bytes.
	maxPrefix = 1024 - objstore.MaxKey - 1
)

var (
	bucketName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)
	prefixGroup = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)
)

// Validate checks the configuration.
func (c Config) Validate() error {
	fail := func(format string, args ...any) error { return fmt.Errorf("s3 store: "+format, args...) }
	if !bucketName.MatchString(c.Bucket) {
		return fail("%q is not the name of a bucket", c.Bucket)
	}
	if strings.HasSuffix(c.Bucket, "--x-s3") {
		return fail("bucket %q is a directory bucket, which cannot be listed in order; use a general purpose bucket", c.Bucket)
	}
	if p := strings.TrimSuffix(c.Prefix, "/"); p != "" {
		if !prefixGroup.MatchString(p) || len(p) > maxPrefix {
			return fail("prefix %.80q must be segments of A-Z a-z 0-9 . _ - joined by single slashes, of %d bytes at most", p, maxPrefix)
		}
		for seg := range strings.SplitSeq(p, "/") {
			if seg == "." || seg == ".." {
				return fail("prefix %.80q has a segment that is only dots", p)
			}
		}
	} else if c.Prefix != "" {
		return fail("prefix %q is only a slash", c.Prefix)
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil ||
			u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
			return fail("the endpoint must be https://host[:port] or http://host[:port], without user, path and query")
		}
	}
	if (c.AccessKeyID == "") != (c.SecretAccessKey == "") || c.AccessKeyID == "" && c.SessionToken != "" {
		return fail("an access key needs its identifier and its secret")
	}
	if c.Anonymous && c.AccessKeyID != "" {
		return fail("anonymous access and an access key exclude each other")
	}
	return c.validateLimits(fail)
}

func (c Config) validateLimits(fail func(string, ...any) error) error {
	switch c.RetainMode {
	case "":
		if c.RetainFor != 0 {
			return fail("a retention time needs a retention mode, %s or %s", Governance, Compliance)
		}
	case Governance, Compliance:
		if c.ReadOnly {
			return fail("a read-only store has no retention to set")
		}
	default:
		return fail("retention mode %.20q is not known; known are %s and %s", c.RetainMode, Governance, Compliance)
	}
	if c.RetainFor < 0 || c.StallTimeout < 0 || c.Attempts < 0 || c.BaseDelay < 0 || c.MaxDelay < 0 {
		return fail("a limit is negative")
	}
	return nil
}

// String shows what the store is called, and no secret.
func (c Config) String() string {
	s := "s3://" + c.Bucket
	if p := strings.TrimSuffix(c.Prefix, "/"); p != "" {
		s += "/" + p
	}
	if c.Endpoint != "" {
		if u, err := url.Parse(c.Endpoint); err == nil {
			s += " at " + u.Host
		}
	}
	return s
}

// GoString keeps %#v from printing the secret.
func (c Config) GoString() string { return c.String() }

// LogValue keeps slog from printing the secret.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ParseURL reads the address of a store:
//
//	s3://bucket/prefix?endpoint=https://host:port&region=eu-central-1&path-style=true
//
// with the further parameters read-only, anonymous (true or false), retain-mode
// (governance or compliance) and retain-for (a time such as 720h). An address
// never holds credentials: one that does is refused, and not repeated in the
// error. The result is validated.
func ParseURL(text string) (Config, error) {
	u, err := url.Parse(text)
	if err != nil {
		// The parser's error shows the address, which may hold a password.
		return Config{}, errors.New("s3 store: the address cannot be read; wanted is s3://bucket/prefix?region=…")
	}
	if u.User != nil {
		return Config{}, errors.New("s3 store: the address holds credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use the shared configuration files or a role")
	}
	if u.Scheme != "s3" || u.Host == "" || u.Fragment != "" || u.Opaque != "" {
		return Config{}, errors.New("s3 store: wanted is an address such as s3://bucket/prefix?region=eu-central-1")
	}
	c := Config{Bucket: u.Host, Prefix: strings.TrimPrefix(u.Path, "/")}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, errors.New("s3 store: the parameters of the address cannot be read")
	}
	for name, values := range q {
		if len(values) != 1 {
			return Config{}, fmt.Errorf("s3 store: parameter %.40q is given %d times", name, len(values))
		}
		if err := c.set(name, values[0]); err != nil {
			return Config{}, err
		}
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

func (c *Config) set(name, value string) (err error) {
	flag := func(to *bool) { *to, err = strconv.ParseBool(value) }
	switch name {
	case "endpoint":
		c.Endpoint = value
	case "region":
		c.Region = value
	case "path-style":
		flag(&c.PathStyle)
	case "read-only":
		flag(&c.ReadOnly)
	case "anonymous":
		flag(&c.Anonymous)
	case "retain-mode":
		c.RetainMode = strings.ToUpper(value)
	case "retain-for":
		c.RetainFor, err = time.ParseDuration(value)
	default:
		return fmt.Errorf("s3 store: parameter %.40q is not known", name)
	}
	if err != nil {
		return fmt.Errorf("s3 store: parameter %q has a value that cannot be read", name)
	}
	return nil
}
