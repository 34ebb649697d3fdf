package grant

import (
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/objstore"
)

// SignedPrefix lets its holder create objects under a prefix. It is a secret
// until it expires: String and the slog value show no query.
type SignedPrefix struct {
	Base    string            // address of the store, ending in a slash; keys are appended
	Query   string            // the signature, without a question mark
	Prefix  string            // what keys begin with
	Headers map[string]string // to be sent exactly as given
	Expires time.Time
}

// Put returns the request that creates key with size bytes.
func (s SignedPrefix) Put(key string, size int64) (objstore.SignedURL, error) {
	if err := objstore.ValidateKey(key); err != nil {
		return objstore.SignedURL{}, err
	}
	if !strings.HasPrefix(key, s.Prefix) {
		return objstore.SignedURL{}, fmt.Errorf("%w: %q is not under %q", objstore.ErrInvalidKey, key, s.Prefix)
	}
	headers := map[string]string{"Content-Length": strconv.FormatInt(size, 10)}
	maps.Copy(headers, s.Headers)
	return objstore.SignedURL{URL: s.Base + key + "?" + s.Query, Headers: headers}, nil
}

// String shows where it points, without the signature.
func (s SignedPrefix) String() string { return s.Base + s.Prefix + "?(signed)" }

// GoString keeps %#v from printing the secret.
func (s SignedPrefix) GoString() string { return s.String() }

// LogValue keeps slog from printing the secret.
func (s SignedPrefix) LogValue() slog.Value { return slog.StringValue(s.String()) }
