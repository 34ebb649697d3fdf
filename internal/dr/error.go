package dr

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind classifies an Error for machines. Each kind maps to one HTTP status
// (package armapi) and one exit code (cmd/holdfast); nothing else maps it.
type Kind uint8

// The kinds. KindNotFound means "asked, and it does not exist"; a question
// that could not be asked is KindUnavailable, never KindNotFound.
const (
	KindInternal        Kind = iota // a defect of Holdfast or an unclassified failure
	KindInvalid                     // the request or the input is malformed
	KindNotFound                    // the named object does not exist
	KindConflict                    // the object exists already or changed meanwhile
	KindUnauthenticated             // who are you
	KindForbidden                   // you may not
	KindFenced                      // a newer generation has taken over
	KindPrecondition                // the object's state does not allow it
	KindUnsupported                 // this site or VM can't do it
	KindUnavailable                 // could not ask: network, host down, timeout
	KindExhausted                   // disk full, memory, throttled, quota
	KindCorrupt                     // stored bytes do not verify
	KindCanceled                    // somebody cancelled
	kindEnd
)

var kindNames = [...]string{"internal", "invalid", "notFound", "conflict", "unauthenticated", "forbidden", "fenced",
	"precondition", "unsupported", "unavailable", "exhausted", "corrupt", "canceled"}

// String returns the kind's stable name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind is the inverse of String. Unknown names are KindInternal, false.
func ParseKind(s string) (Kind, bool) {
	for i, n := range kindNames {
		if n == s {
			return Kind(i), true
		}
	}
	return KindInternal, false
}

// Kinds returns all kinds, for exhaustive tables.
func Kinds() []Kind {
	ks := make([]Kind, kindEnd)
	for i := range ks {
		ks[i] = Kind(i)
	}
	return ks
}

// Error is the error type of everything above floor 0.
//
// Message says what was tried on which object and what happened; Hint says
// what the operator can do now. Code names an entry of the catalogue, whose
// cause and remedy are used where Hint is empty. None of the texts carries a secret.
type Error struct {
	Kind    Kind
	Code    Code   // catalogue entry; empty where none fits
	Op      string // operation, e.g. "capture.Begin"
	Message string
	Hint    string
	Err     error // cause, may be nil
}

// Error renders "message: cause".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Message != "" {
		b.WriteString(e.Message)
	} else {
		b.WriteString(e.Kind.String())
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error whose message is formatted; a trailing %w operand
// becomes the cause and is not repeated in the message.
func Errorf(kind Kind, op, format string, args ...any) *Error {
	return New(kind, "", op, format, args...)
}

// New makes an Error with a catalogue code.
func New(kind Kind, code Code, op, format string, args ...any) *Error {
	e := &Error{Kind: kind, Code: code, Op: op}
	if f, ok := strings.CutSuffix(format, ": %w"); ok && len(args) > 0 {
		if cause, ok := args[len(args)-1].(error); ok {
			e.Err, format, args = cause, f, args[:len(args)-1]
		}
	}
	e.Message = fmt.Sprintf(format, args...)
	return e
}

// WithHint returns e with the hint set.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// KindOf returns the kind of the outermost *Error in err's chain; context
// cancellation is KindCanceled, an expired deadline KindUnavailable, and
// anything else KindInternal.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled):
		return KindCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return KindUnavailable
	}
	return KindInternal
}

// CodeOf returns the first non-empty catalogue code in err's chain.
func CodeOf(err error) Code {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Code != "" {
			return e.Code
		}
		err = e.Err
	}
	return ""
}

// HintOf returns the first non-empty hint in err's chain, else the remedy of
// its catalogue code, else "".
func HintOf(err error) string {
	for x := err; x != nil; {
		var e *Error
		if !errors.As(x, &e) {
			break
		}
		if e.Hint != "" {
			return e.Hint
		}
		x = e.Err
	}
	if entry, ok := Lookup(CodeOf(err)); ok {
		return entry.Remedy
	}
	return ""
}
