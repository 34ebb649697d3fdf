// Package storage finds what a command works on: the store behind an address and
// the private key behind a name, wherever either is kept. It is the only place
// that knows the kinds of stores.
//
// It promises that an address never carries credentials, that a store opened for
// reading is never written to, and that errors say what to look at.
package storage

import (
	"context"
	"errors"
	"io"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/file"
	"holdfast/internal/objstore/s3"
	"holdfast/internal/store"
)

// Forms are the kinds of addresses, for help texts.
const Forms = "directory, file:///directory, s3://bucket/prefix?endpoint=…&region=…&path-style=true or azure://container/prefix?account=…&endpoint=…"

// Mode says what a store is opened for.
type Mode int

// The modes.
const (
	ReadOnly Mode = iota // nothing is written
	Write                // it must be there
	Create               // a directory is made into a store if it is new or empty
)

// Bucket is an open store.
type Bucket interface {
	objstore.Bucket
	io.Closer
}

// Address is where a store is.
type Address struct {
	text  string // a directory (absolute), or an s3:// or azure:// URL
	s3    *s3.Config
	azure *azure.Config
}

// Parse reads the address of a store: a directory, relative to base if it is not
// absolute, file:///DIR, or s3://BUCKET/PREFIX or azure://CONTAINER/PREFIX with
// parameters. It does no I/O.
func Parse(text, base string) (Address, error) {
	scheme, rest, isURL := strings.Cut(text, "://")
	switch {
	case text == "":
		return Address{}, console.Usage("the address of the store is empty")
	case !isURL:
		if !filepath.IsAbs(text) {
			text = filepath.Join(base, text)
		}
		dir, err := filepath.Abs(text)
		if err != nil {
			return Address{}, console.Usage("the store %s: %v", text, err)
		}
		return Address{text: dir}, nil
	case strings.EqualFold(scheme, "file"):
		u, err := url.Parse(text)
		if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path == "" || u.Host != "" && u.Host != "localhost" {
			return Address{}, console.Usage("the store's address is not of the form file:///directory")
		}
		dir := u.Path
		if runtime.GOOS == "windows" {
			dir = strings.TrimPrefix(dir, "/")
		}
		return Address{text: filepath.Clean(filepath.FromSlash(dir))}, nil
	case strings.EqualFold(scheme, "s3"):
		c, err := s3.ParseURL("s3://" + rest)
		if err != nil {
			return Address{}, console.Usage("%v", err).WithHint("Credentials come from the environment (AWS_ACCESS_KEY_ID, …), the shared configuration files or the machine's role.")
		}
		return Address{text: "s3://" + rest, s3: &c}, nil
	case strings.EqualFold(scheme, "azure"):
		c, err := azure.ParseURL("azure://" + rest)
		if err != nil {
			return Address{}, console.Usage("%v", err).WithHint("Credentials come from the environment (%s, %s), from key-file=… or from Entra ID.", azure.KeyVariable, azure.KeyFileVariable)
		}
		return Address{text: "azure://" + rest, azure: &c}, nil
	}
	return Address{}, console.Usage("there are no stores of the kind %q", scheme).WithHint("Give a %s.", Forms)
}

// String is the address as it can be given again. It holds no secret.
func (a Address) String() string { return a.text }

// Local is the directory of the store, or false if it is somewhere else.
func (a Address) Local() (string, bool) { return a.text, a.s3 == nil && a.azure == nil }

// Open opens the store. The error says what to look at.
func (a Address) Open(ctx context.Context, mode Mode) (Bucket, error) {
	switch {
	case a.azure != nil:
		return a.openAzure(ctx, mode)
	case a.s3 == nil:
		b, err := file.Open(ctx, file.Config{Dir: a.text, Create: mode == Create, ReadOnly: mode == ReadOnly})
		if err != nil {
			hint := "Give the directory that holds bucket.json; see whether its disk is mounted."
			if mode == Create {
				hint = "Choose a new or empty directory for the store, on a disk that is mounted."
			}
			return nil, explain(err, hint)
		}
		return b, nil
	}
	c := *a.s3
	if mode == ReadOnly && !c.ReadOnly {
		c.ReadOnly, c.RetainMode, c.RetainFor = true, "", 0 // retention is set by writers
	}
	b, err := s3.New(c)
	if err != nil {
		return nil, console.Usage("%v", err)
	}
	if err := b.Open(ctx); err != nil {
		return nil, explain(errors.Join(err, b.Close()), "See whether bucket, region and endpoint are right, and whether credentials are at hand: "+
			"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role.")
	}
	return b, nil
}

func (a Address) openAzure(ctx context.Context, mode Mode) (Bucket, error) {
	c := *a.azure
	if mode == ReadOnly && !c.ReadOnly {
		c.ReadOnly, c.RetainMode, c.RetainFor = true, "", 0 // retention is set by writers
	}
	b, err := azure.New(c)
	if err != nil {
		return nil, console.Usage("%v", err)
	}
	if err := b.Open(ctx); err != nil {
		return nil, explain(errors.Join(err, b.Close()), "See whether account, container and endpoint are right, and whether credentials are at hand: "+
			azure.KeyVariable+", "+azure.KeyFileVariable+", or signing in by Entra ID (AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_CLIENT_SECRET, a managed identity, az login).")
	}
	return b, nil
}

// explain gives the errors of opening a store a kind and a way out.
func explain(err error, hint string) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	err = console.Classify(err)
	kind := dr.KindOf(err)
	if kind == dr.KindInternal {
		kind = dr.KindUnavailable
	}
	return &dr.Error{Kind: kind, Code: dr.CodeOf(err), Op: "store.open", Message: err.Error(), Hint: hint}
}

// remoteChunk is the unit of reading from a store behind a network.
const remoteChunk = 1 << 20

// Store reads the replicas of an open bucket of this address.
func (a Address) Store(b objstore.Reader, key cut.KeyOpener) (*store.Store, cut.Keyring) {
	cfg := store.Config{Bucket: b}
	var ring cut.Keyring
	if key != nil {
		ring = store.NewKeyring(b, key)
		cfg.Keys = ring
	}
	if _, local := a.Local(); !local {
		cfg.ChunkSize = remoteChunk
	}
	return store.New(cfg), ring
}

// CheckKey reports whose store it is, and an error if it is another vault's. A
// store that has lost its description passes: every machine's data key says
// whether the key fits.
func CheckKey(ctx context.Context, st *store.Store, key cut.KeyOpener, name string) (cut.VaultInfo, error) {
	info, err := st.VaultInfo(ctx)
	switch {
	case err != nil && dr.KindOf(err) == dr.KindNotFound, err != nil && dr.KindOf(err) == dr.KindCorrupt:
		return cut.VaultInfo{}, nil
	case err != nil:
		return cut.VaultInfo{}, err
	case info.KeyID != key.ID():
		return info, dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "store.open", "%s is the key %s, the store belongs to the vault %q with the key %s", name, key.ID(), info.Name, info.KeyID).
			WithHint("Give a copy of the key %s. After a rotation that is the new key.", info.KeyID)
	}
	return info, nil
}
