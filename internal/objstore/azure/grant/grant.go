// Package grant signs for others: it makes the queries (shared access
// signatures) by which a host may create blobs in a container of Azure Blob
// Storage, and do nothing else.
//
// It promises that every signature it makes carries the permission create (sp=c)
// alone. The published rules (Azure Storage REST "Create a service SAS", "Create a
// user delegation SAS") say what that allows: to write a new blob, to take
// snapshots and to copy to a new blob what the holder may read from elsewhere; not
// to read, list, overwrite, delete, nor to set or lift a retention or a legal
// hold, for which there is the permission i. That one is never given: who has it
// can lift an unlocked policy, or lock what was written for longer than anybody
// wants to pay for.
//
// Signed is by the account's shared key, or by a user delegation key, which
// whoever is signed in by Entra ID asks the service for. Such a key is renewed
// every hour, so that signatures are good again an hour after a revocation
// (Revoke User Delegation Keys), and lives for six, so that signing goes on while
// Entra ID is down. Signatures for longer than that have a key of their own.
package grant

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
)

// MaxLife is the longest life of a user delegation key, and so of a signature.
// The service has no such bound for shared keys; here it is the same.
const MaxLife = 7 * 24 * time.Hour

const (
	// keyLife is how long a user delegation key is asked for: long enough to go on
	// signing while Entra ID is down.
	keyLife = 6 * time.Hour

	// renewAfter is when another key is asked for, and renewAgain when after that
	// has failed.
	renewAfter = time.Hour
	renewAgain = 5 * time.Minute

	// keyPast is how much earlier than now a key begins, for clocks that differ.
	keyPast = 10 * time.Minute
)

// Errors of a life that cannot be granted.
var (
	ErrOver    = errors.New("it would have expired before it was issued")
	ErrTooLong = fmt.Errorf("Azure signs for %v at most", MaxLife)
)

// Config says who signs for what. Exactly one of Shared and Fetch is given.
type Config struct {
	Container string
	Plain     bool // http is admitted, too: for an emulator on this machine

	Shared *azblob.SharedKeyCredential
	// Fetch asks the service for a user delegation key with this life, in whole
	// seconds (Get User Delegation Key). The SDK takes the account's name, which is
	// signed, from the address that it asked.
	Fetch func(ctx context.Context, start, expiry time.Time) (*service.UserDelegationCredential, error)
}

// Signer signs. It is safe for concurrent use.
type Signer struct {
	c    Config
	turn chan struct{} // holds one token: who has it may fetch a key
	// The keys for signatures up to keyLife, and for longer ones, so that a key
	// that lives for days does not become the one for everything.
	short, long atomic.Pointer[delegation]
}

// delegation is a user delegation key with its life.
type delegation struct {
	key     *service.UserDelegationCredential
	expires time.Time
	renew   time.Time // when another one is asked for
}

// New returns a Signer; it does no I/O.
func New(c Config) *Signer { return &Signer{c: c, turn: make(chan struct{}, 1)} }

// Blob signs the creation of one blob until expires (whole seconds count). The
// result is a secret. It fails with ErrOver, ErrTooLong, what Fetch returned, or
// the error of ctx.
func (s *Signer) Blob(ctx context.Context, name string, expires time.Time) (query string, err error) {
	return s.sign(ctx, sas.BlobSignatureValues{BlobName: name, Permissions: (&sas.BlobPermissions{Create: true}).String()}, expires)
}

// Container signs the creation of blobs of any name in the container.
func (s *Signer) Container(ctx context.Context, expires time.Time) (query string, err error) {
	return s.sign(ctx, sas.BlobSignatureValues{Permissions: (&sas.ContainerPermissions{Create: true}).String()}, expires)
}

func (s *Signer) sign(ctx context.Context, v sas.BlobSignatureValues, expires time.Time) (string, error) {
	expires = expires.UTC().Truncate(time.Second)
	switch lives := time.Until(expires); {
	case lives <= 0:
		return "", ErrOver
	case lives > MaxLife:
		return "", ErrTooLong
	}
	v.ContainerName = s.c.Container
	v.ExpiryTime = expires // and no start: clocks differ
	v.Protocol = sas.ProtocolHTTPS
	if s.c.Plain {
		v.Protocol = sas.ProtocolHTTPSandHTTP
	}
	var query sas.QueryParameters
	var err error
	if s.c.Shared != nil {
		query, err = v.SignWithSharedKey(s.c.Shared)
	} else {
		var d *delegation
		if d, err = s.delegation(ctx, expires); err != nil {
			return "", err
		}
		query, err = v.SignWithUserDelegation(d.key)
	}
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	return query.Encode(), nil
}

// delegation returns a user delegation key that lives until the given time at
// least: a signature dies with its key. One that is older than renewAfter is
// replaced if the service can be asked, and used on if it cannot.
func (s *Signer) delegation(ctx context.Context, until time.Time) (*delegation, error) {
	slot := &s.short
	if time.Until(until) > keyLife {
		slot = &s.long
	}
	if d := slot.Load(); d.lives(until) && time.Now().Before(d.renew) {
		return d, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.turn }()
	kept := slot.Load()
	if kept.lives(until) && time.Now().Before(kept.renew) {
		return kept, nil
	}
	now := time.Now().UTC().Truncate(time.Second)
	begin, end := now.Add(-keyPast), now.Add(keyLife)
	if end.Before(until) {
		// Whole hours, so that signatures made a little later need no other key.
		end = until.Truncate(time.Hour).Add(time.Hour)
		if last := now.Add(MaxLife); end.After(last) {
			end = last
		}
	}
	// The service counts seven days from the beginning of the key.
	if end.Sub(begin) > MaxLife {
		begin = end.Add(-MaxLife)
	}
	got, err := s.c.Fetch(ctx, begin, end)
	if err != nil {
		if ctx.Err() != nil || !kept.lives(until) {
			return nil, err
		}
		d := *kept
		d.renew = time.Now().Add(renewAgain)
		slot.Store(&d)
		return &d, nil
	}
	d := &delegation{key: got, expires: end, renew: now.Add(renewAfter)}
	slot.Store(d)
	return d, nil
}

func (d *delegation) lives(until time.Time) bool { return d != nil && !d.expires.Before(until) }
