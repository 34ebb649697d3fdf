package objstore

import (
	"log/slog"
	"net/url"
)

// String shows where the URL points, without its query, which is the secret.
func (u SignedURL) String() string {
	parsed, err := url.Parse(u.URL)
	if err != nil {
		return "(unreadable signed URL)"
	}
	parsed.User = nil
	parsed.RawQuery = ""
	parsed.Fragment = ""
	return parsed.String() + "?(signed)"
}

// GoString keeps %#v from printing the secret.
func (u SignedURL) GoString() string { return u.String() }

// LogValue keeps slog from printing the secret.
func (u SignedURL) LogValue() slog.Value { return slog.StringValue(u.String()) }
