// Package objstore owns the bucket contract: an object store of immutable
// objects that are created once, read by range, listed and deleted.
//
// What it promises to the layers above:
//
//   - PutNew is create-if-absent and atomic. Among any number of writers of one
//     key exactly one wins; an object is visible complete or not at all, and it
//     is durable before PutNew returns nil. There is no overwrite and no
//     conditional update anywhere, because not every store has one.
//   - Only ErrNotExist means that an object is absent. A backend that could not
//     ask says ErrUnavailable, or anything else, but never ErrNotExist.
//   - List and Head see every object whose PutNew returned before they began.
//
// Backends are subpackages (file, mem, …), fault is a decorator for tests,
// httpstore serves a bucket by signed URLs. Check, Checks and Validate are the
// executable form of the contract; objstoretest runs them under go test.
package objstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Sentinels. Backends return them wrapped in *Error, which names the object.
var (
	// ErrNotExist: the store was asked and the object is not there.
	ErrNotExist = errors.New("object does not exist")
	// ErrExists: PutNew found the key taken. Nothing was written.
	ErrExists = errors.New("object exists already")
	// ErrMismatch: the body had another size or digest than announced. Nothing
	// was written (PutNew), or the stored object is not what it says (ReadAll,
	// Digest).
	ErrMismatch = errors.New("size or digest differs from what was announced")
	// ErrInvalidKey: the key or prefix is outside the grammar, or the key is
	// used as a folder by other keys and the backend cannot hold both.
	ErrInvalidKey = errors.New("invalid object key")
	// ErrRange: the range is negative or starts after the end of the object.
	ErrRange = errors.New("range is outside the object")
	// ErrTooLarge: the object is larger than the caller's limit.
	ErrTooLarge = errors.New("object is larger than the limit")
	// ErrReadOnly: the store refuses every write; an operator must act.
	ErrReadOnly = errors.New("object store is read-only")
	// ErrNoSpace: the store is full or over its quota. Nothing was written.
	ErrNoSpace = errors.New("no space left in the object store")
	// ErrDenied: the store refused these credentials for this operation.
	ErrDenied = errors.New("access to the object store denied")
	// ErrUnavailable: the store could not be asked, or did not answer properly.
	// After PutNew or Delete the outcome is unknown: ask with Head.
	ErrUnavailable = errors.New("object store is unavailable")
)

// Error is what the backends return: which object, what was tried, which
// sentinel (Kind) and the cause below it, if there is one. errors.Is and
// errors.As see both Kind and Err. It never holds a secret.
type Error struct {
	Op   string // verb: "put", "get", "head", "list", "delete", "open"
	Key  string // key or prefix; for "open" the place of the store
	Kind error  // one of the sentinels of this package, or nil
	Err  error  // cause or explanation, or nil
}

func (e *Error) Error() string {
	var b strings.Builder
	noun := "object"
	switch e.Op {
	case "list":
		noun = "objects under"
	case "open":
		noun = "object store"
	}
	fmt.Fprintf(&b, "%s %s %q", e.Op, noun, e.Key)
	if e.Kind != nil {
		b.WriteString(": " + e.Kind.Error())
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As both the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var list []error
	if e.Kind != nil {
		list = append(list, e.Kind)
	}
	if e.Err != nil {
		list = append(list, e.Err)
	}
	return list
}

// Info describes one object.
type Info struct {
	Key     string
	Size    int64     // bytes
	ModTime time.Time // when it became visible, by the store's clock; exact to a second at best
	SHA256  [32]byte  // zero if the backend has not recorded it; see Digest
}

// Reader is the read half of a bucket: all that a recovery needs.
// Implementations are safe for concurrent use.
type Reader interface {
	// Get returns the bytes [off, off+length) of an object, cut at its end;
	// length < 0 means up to the end. off equal to the size gives an empty body,
	// a larger or negative off gives ErrRange. The body never ends with io.EOF
	// before the promised bytes were delivered, and stops with ctx's error when
	// ctx ends. The caller closes it; Close may be called more than once.
	Get(ctx context.Context, key string, off, length int64) (io.ReadCloser, error)

	// Head describes an object.
	Head(ctx context.Context, key string) (Info, error)

	// List calls fn for each object whose key starts with prefix, in ascending
	// byte order of the keys. prefix is any leading part of a key and may be
	// empty. Objects created or deleted meanwhile may or may not appear. The
	// first error of fn ends the listing and is returned as it is. fn may use
	// the bucket.
	List(ctx context.Context, prefix string, fn func(Info) error) error
}

// Bucket is an object store. Implementations are safe for concurrent use by
// several goroutines and by several processes. A key must not be a folder of
// another ("a" beside "a/b"): backends may refuse the second with ErrInvalidKey.
type Bucket interface {
	Reader

	// PutNew creates an object of exactly size bytes from r. It fails with
	// ErrExists if the key is taken, and with ErrMismatch if r has fewer or more
	// bytes or, where sum is given, another SHA-256. On these errors, and on any
	// error other than ErrUnavailable and those of ctx, nothing became visible
	// by this call. r may be left partly read. A crash at any moment leaves
	// either nothing visible or the complete object.
	PutNew(ctx context.Context, key string, r io.Reader, size int64, sum *[32]byte) error

	// Delete removes an object. Deleting an absent object succeeds.
	Delete(ctx context.Context, key string) error
}

// AfterLister is an optional capability of a Reader: a listing that starts
// after a key, so that a long listing can be taken in pages.
type AfterLister interface {
	// ListAfter is List restricted to keys greater than after.
	ListAfter(ctx context.Context, prefix, after string, fn func(Info) error) error
}

// ListAfter lists the keys under prefix that are greater than after, using
// AfterLister where r has it and skipping otherwise.
func ListAfter(ctx context.Context, r Reader, prefix, after string, fn func(Info) error) error {
	if l, ok := r.(AfterLister); ok {
		return l.ListAfter(ctx, prefix, after, fn)
	}
	return r.List(ctx, prefix, func(info Info) error {
		if info.Key <= after {
			return nil
		}
		return fn(info)
	})
}

// Signer is an optional capability of a backend: URLs that allow the holder to
// create exactly one object and nothing else.
type Signer interface {
	// SignPut returns a request that creates key with exactly these bytes until
	// expires. The holder can neither read, overwrite nor delete with it.
	SignPut(ctx context.Context, key string, size int64, sum [32]byte, expires time.Time) (SignedURL, error)
}

// AheadSigner is an optional capability of a backend: create-only URLs for names
// whose contents are not known yet, so that a writer with names that are
// determined beforehand goes on while nobody is there who signs. As long as such
// URLs live, whoever has them can occupy those names with anything.
type AheadSigner interface {
	// SignAhead returns a request for each key, in order, that creates it until
	// the given time. The holder can neither read, overwrite nor delete.
	SignAhead(ctx context.Context, keys []string, until time.Time) ([]SignedURL, error)
}

// SignedURL is a PUT request that a Signer has authorised. The URL is a secret
// until it expires: String and the slog value show no query.
type SignedURL struct {
	URL     string            // with the signature in its query
	Headers map[string]string // to be sent exactly as given
}

// ReadAll returns the whole object, which must not be larger than limit bytes
// (ErrTooLarge otherwise).
func ReadAll(ctx context.Context, r Reader, key string, limit int64) ([]byte, error) {
	if limit < 0 {
		return nil, &Error{Op: "get", Key: key, Kind: ErrTooLarge, Err: fmt.Errorf("limit is %d bytes", limit)}
	}
	// One byte more than allowed tells "too large" without a Head. The sum
	// cannot overflow into "up to the end" unnoticed: that is what it then means.
	body, err := r.Get(ctx, key, 0, limit+1)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("read object %q: %w", key, err)
	}
	if int64(len(data)) > limit {
		return nil, &Error{Op: "get", Key: key, Kind: ErrTooLarge, Err: fmt.Errorf("limit is %d bytes", limit)}
	}
	return data, nil
}

// Digest returns the description of an object with its SHA-256 always filled
// in: the recorded one if the backend has it, otherwise by reading the object.
func Digest(ctx context.Context, r Reader, key string) (Info, error) {
	info, err := r.Head(ctx, key)
	if err != nil || info.SHA256 != [32]byte{} {
		return info, err
	}
	body, err := r.Get(ctx, key, 0, -1)
	if err != nil {
		return Info{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, body)
	if err := errors.Join(err, body.Close()); err != nil {
		return Info{}, fmt.Errorf("read object %q: %w", key, err)
	}
	if n != info.Size {
		return Info{}, &Error{Op: "get", Key: key, Kind: ErrMismatch, Err: fmt.Errorf("read %d bytes of %d", n, info.Size)}
	}
	h.Sum(info.SHA256[:0])
	return info, nil
}
