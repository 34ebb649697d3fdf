package azure

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"holdfast/internal/objstore"
)

// Ways of proving who asks (Config.Auth).
const (
	AuthKey       = "key"       // the account's shared key
	AuthEntra     = "entra"     // Microsoft Entra ID: environment, workload or managed identity, Azure CLI
	AuthEmulator  = "emulator"  // Azurite's published account and key
	AuthAnonymous = "anonymous" // nothing at all: for reading public containers
)

// Modes of retention (version-level immutability). An unlocked policy may be
// shortened or lifted by whoever has the right; a locked one nobody lifts before
// its date, the owner of the account included.
const (
	Unlocked = "unlocked"
	Locked   = "locked"
)

// Who retains what comes by signed URLs. The holder of such a URL cannot: the
// permission that would let him set a retention (i) also lets him lift it.
const (
	// ByContainer: the container has a default time-based retention policy
	// (version-level), which counts for every blob from its creation on. SignPut
	// sees that there is one; how long it is only Azure Resource Manager tells.
	ByContainer = "container"
	// ByVault: whoever lists the objects calls RetainNew for each. Until then they
	// are not kept.
	ByVault = "vault"
)

// The variables of the environment in which a shared key is looked for.
const (
	KeyVariable     = "AZURE_STORAGE_KEY"
	KeyFileVariable = "AZURE_STORAGE_KEY_FILE"
	AccountVariable = "AZURE_STORAGE_ACCOUNT"
)

// Azurite's account, which its documentation publishes. It protects nothing.
const (
	emulatorAccount  = "devstoreaccount1"
	emulatorKey      = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
	emulatorEndpoint = "http://127.0.0.1:10000/" + emulatorAccount
)

// Config says where the container is and how to behave towards it.
type Config struct {
	Container string
	Prefix    string // folder inside the container, without a leading slash; empty for none
	Account   string // name of the storage account
	// Endpoint is the address of the account's blob service where it is not
	// https://ACCOUNT.blob.core.windows.net: that of a sovereign cloud
	// (https://ACCOUNT.blob.core.usgovcloudapi.net), or https://host[:port]/ACCOUNT.
	// Plain http is taken for the own machine only.
	Endpoint string

	// Auth is empty or one of the constants. If it is empty, a shared key is used
	// if there is one, here or in the environment, and Entra ID otherwise.
	Auth       string
	AccountKey string // base64; a secret
	KeyFile    string // a file with the shared key
	// Credential is used for AuthEntra instead of the SDK's usual search.
	Credential azcore.TokenCredential

	// ReadOnly makes every write fail with ErrReadOnly, and Open write nothing:
	// for a recovery with credentials that can only read.
	ReadOnly bool

	// RetainMode is empty (no retention), Unlocked or Locked, and RetainFor how
	// long each object that PutNew creates is kept at least. The container must
	// have version-level immutability, which Open checks.
	RetainMode string
	RetainFor  time.Duration
	// RetainSigned says who sees to it that objects which come by signed URLs are
	// kept for RetainFor, too: ByContainer (or empty) or ByVault.
	RetainSigned string

	// Dedicated says that the container holds the objects of one writer only, so
	// that SignPrefix may sign for the container as a whole. Prefix must be empty.
	Dedicated bool

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

	// maxPrefix leaves room for the longest key within a blob name's 1,024 characters.
	maxPrefix = 1024 - objstore.MaxKey - 1

	// maxSegments is how many path segments a blob name may have, and keySegments
	// how many of them stay for keys.
	maxSegments = 254
	keySegments = 128
)

var (
	accountName   = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9])*$`)
	prefixGroup   = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)
)

// Validate checks the configuration.
func (c Config) Validate() error {
	fail := func(format string, args ...any) error { return fmt.Errorf("azure store: "+format, args...) }
	if !containerName.MatchString(c.Container) || len(c.Container) < 3 || len(c.Container) > 63 {
		return fail("%.80q is not the name of a container", c.Container)
	}
	if c.Account == "" && c.Auth != AuthEmulator {
		return fail("the name of the storage account is missing; add account=NAME to the store's address")
	}
	if c.Account != "" && !accountName.MatchString(c.Account) {
		return fail("%.80q is not the name of a storage account", c.Account)
	}
	if p := strings.TrimSuffix(c.Prefix, "/"); p != "" {
		if !prefixGroup.MatchString(p) || len(p) > maxPrefix || strings.Count(p, "/") >= maxSegments-keySegments {
			return fail("prefix %.80q must be segments of A-Z a-z 0-9 . _ - joined by single slashes, of %d bytes at most", p, maxPrefix)
		}
		for seg := range strings.SplitSeq(p, "/") {
			if strings.HasSuffix(seg, ".") {
				return fail("prefix %.80q has a segment that ends in a dot, which Azure drops", p)
			}
		}
	} else if c.Prefix != "" {
		return fail("prefix %q is only a slash", c.Prefix)
	}
	if err := c.validateEndpoint(fail); err != nil {
		return err
	}
	return c.validateLimits(fail)
}

func (c Config) validateEndpoint(fail func(string, ...any) error) error {
	if c.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fail("the endpoint must be https://host[:port] or https://host[:port]/ACCOUNT, without user and query")
	}
	if p := strings.Trim(u.Path, "/"); p != "" && p != c.account() {
		return fail("the path of the endpoint can only be the account's name, %q", c.account())
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return fail("the endpoint %s has no TLS; http is taken for this machine itself only", u.Host)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c Config) validateLimits(fail func(string, ...any) error) error {
	switch c.Auth {
	case "", AuthKey, AuthEntra, AuthEmulator, AuthAnonymous:
	default:
		return fail("auth %.20q is not known; known are %s, %s, %s and %s", c.Auth, AuthKey, AuthEntra, AuthEmulator, AuthAnonymous)
	}
	keyed := c.AccountKey != "" || c.KeyFile != ""
	if c.KeyFile != "" && !filepath.IsAbs(c.KeyFile) {
		return fail("the key file %.80q must be given with its whole path", c.KeyFile)
	}
	if keyed && c.Auth != "" && c.Auth != AuthKey || c.AccountKey != "" && c.KeyFile != "" {
		return fail("more than one way of proving who asks is given")
	}
	if c.Auth == AuthEmulator && !loopback(c.endpointURL().Hostname()) {
		return fail("the emulator's key is public; it is used on this machine itself only")
	}
	switch c.RetainMode {
	case "":
		if c.RetainFor != 0 {
			return fail("a retention time needs a retention mode, %s or %s", Unlocked, Locked)
		}
	case Unlocked, Locked:
		if c.ReadOnly {
			return fail("a read-only store has no retention to set")
		}
	default:
		return fail("retention mode %.20q is not known; known are %s and %s", c.RetainMode, Unlocked, Locked)
	}
	switch c.RetainSigned {
	case "":
	case ByContainer, ByVault:
		if c.RetainFor == 0 {
			return fail("who retains what was uploaded matters only with a retention time")
		}
	default:
		return fail("retain-signed %.20q is not known; known are %s and %s", c.RetainSigned, ByContainer, ByVault)
	}
	if c.Dedicated && c.Prefix != "" {
		return fail("a dedicated container has no prefix: the writer may create blobs anywhere in it")
	}
	if c.RetainFor < 0 || c.StallTimeout < 0 || c.Attempts < 0 || c.BaseDelay < 0 || c.MaxDelay < 0 {
		return fail("a limit is negative")
	}
	return nil
}

// account is the name of the account that is asked.
func (c Config) account() string {
	if c.Account == "" && c.Auth == AuthEmulator {
		return emulatorAccount
	}
	return c.Account
}

// endpointURL is the address of the account's blob service, with no slash at
// its end. The configuration is valid.
func (c Config) endpointURL() *url.URL {
	text := c.Endpoint
	switch {
	case text == "" && c.Auth == AuthEmulator:
		text = emulatorEndpoint
	case text == "":
		text = "https://" + c.Account + ".blob.core.windows.net"
	}
	u, err := url.Parse(text)
	if err != nil {
		return &url.URL{}
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	return u
}

// plain reports whether the endpoint has no TLS, which is an emulator on this
// machine.
func (c Config) plain() bool { return c.endpointURL().Scheme == "http" }

// String shows what the store is called, and no secret.
func (c Config) String() string {
	s := "azure://" + c.Container
	if p := strings.TrimSuffix(c.Prefix, "/"); p != "" {
		s += "/" + p
	}
	return s + " at " + c.endpointURL().Host
}

// GoString keeps %#v from printing the secret.
func (c Config) GoString() string { return c.String() }

// LogValue keeps slog from printing the secret.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ParseURL reads the address of a store:
//
//	azure://container/prefix?account=NAME&endpoint=https://NAME.blob.core.usgovcloudapi.net
//
// with the further parameters auth (key, entra, emulator or anonymous), key-file
// (a file with the shared key), read-only (true or false), retain-mode (unlocked
// or locked), retain-for (a time such as 720h), retain-signed (container or vault)
// and dedicated (true or false). An address never holds
// credentials: one that does is refused, and not repeated in the error. The
// result is validated.
func ParseURL(text string) (Config, error) {
	u, err := url.Parse(text)
	if err != nil {
		// The parser's error shows the address, which may hold a password.
		return Config{}, errors.New("azure store: the address cannot be read; wanted is azure://container/prefix?account=NAME")
	}
	if u.User != nil {
		return Config{}, errors.New("azure store: the address holds credentials; set " + KeyVariable + ", name a file with key-file=…, or sign in by Entra ID")
	}
	if u.Scheme != "azure" || u.Host == "" || u.Fragment != "" || u.Opaque != "" {
		return Config{}, errors.New("azure store: wanted is an address such as azure://container/prefix?account=NAME")
	}
	c := Config{Container: u.Host, Prefix: strings.TrimPrefix(u.Path, "/")}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, errors.New("azure store: the parameters of the address cannot be read")
	}
	for _, secret := range []string{"sig", "key", "account-key", "sas"} {
		if q.Has(secret) {
			return Config{}, errors.New("azure store: the address holds a key or a signature; set " + KeyVariable + ", name a file with key-file=…, or sign in by Entra ID")
		}
	}
	for name, values := range q {
		if len(values) != 1 {
			return Config{}, fmt.Errorf("azure store: parameter %.40q is given %d times", name, len(values))
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
	switch name {
	case "account":
		c.Account = value
	case "endpoint":
		c.Endpoint = value
	case "auth":
		c.Auth = value
	case "key-file":
		c.KeyFile = value
	case "read-only":
		c.ReadOnly, err = strconv.ParseBool(value)
	case "retain-mode":
		c.RetainMode = strings.ToLower(value)
	case "retain-for":
		c.RetainFor, err = time.ParseDuration(value)
	case "retain-signed":
		c.RetainSigned = strings.ToLower(value)
	case "dedicated":
		c.Dedicated, err = strconv.ParseBool(value)
	default:
		return fmt.Errorf("azure store: parameter %.40q is not known", name)
	}
	if err != nil {
		return fmt.Errorf("azure store: parameter %q has a value that cannot be read", name)
	}
	return nil
}

// findKey returns the shared key, or nothing if Entra ID is to be asked.
func (c Config) findKey() (string, error) {
	switch c.Auth {
	case AuthEmulator:
		return emulatorKey, nil
	case AuthEntra, AuthAnonymous:
		return "", nil
	}
	key, file := c.AccountKey, c.KeyFile
	if key == "" && file == "" && c.Credential == nil {
		// A key for another account would only be refused, and say nothing of why.
		if a := os.Getenv(AccountVariable); a == "" || a == c.Account {
			key, file = os.Getenv(KeyVariable), os.Getenv(KeyFileVariable)
		}
	}
	if key == "" && file != "" {
		info, err := os.Stat(file)
		if err != nil {
			return "", fmt.Errorf("read the shared key: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() > 4096 {
			return "", fmt.Errorf("read the shared key: %s is not a file of a few bytes", file)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read the shared key: %w", err)
		}
		if key = strings.TrimSpace(string(text)); key == "" {
			return "", fmt.Errorf("read the shared key: %s is empty", file)
		}
	}
	if key == "" && c.Auth == AuthKey {
		return "", fmt.Errorf("no shared key is at hand: set %s or %s, or name a file with key-file=… in the store's address", KeyVariable, KeyFileVariable)
	}
	return key, nil
}
