package keyfile

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"runtime"
)

const redacted = "[redacted]"

// Secret holds bytes that never show themselves in text, JSON or logs, such as
// a passphrase. Copies of a Secret share their memory, so that Wipe reaches all
// of them. The zero Secret is empty. It is not safe to use while it is wiped.
type Secret struct{ box *secretBox }

type secretBox struct{ b []byte }

// NewSecret takes b over: the caller must not use it any more.
func NewSecret(b []byte) Secret { return Secret{&secretBox{b}} }

// Bytes returns the secret itself, not a copy: it reads as zeros after Wipe.
func (s Secret) Bytes() []byte {
	if s.box == nil {
		return nil
	}
	return s.box.b
}

// Len returns the number of bytes; 0 after Wipe.
func (s Secret) Len() int { return len(s.Bytes()) }

// Wipe overwrites the secret with zeros and forgets it. It may be called again.
func (s Secret) Wipe() {
	if s.box != nil {
		wipe(s.box.b)
		s.box.b = nil
	}
}

// String hides the secret.
func (Secret) String() string { return redacted }

// Format hides the secret under every verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// wipe overwrites b, also where the compiler sees that nobody reads it again.
func wipe(b []byte) {
	clear(b)
	runtime.KeepAlive(b)
}

// trimLine returns b without one line end, which editors and echo add.
func trimLine(b []byte) []byte {
	b = bytes.TrimSuffix(b, []byte("\n"))
	return bytes.TrimSuffix(b, []byte("\r"))
}
