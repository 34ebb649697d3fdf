package azure

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"holdfast/internal/objstore"
	"holdfast/internal/objstore/attempt"
)

// probeCreateOnly is the object with which the package tries what the store
// does. It stays, so that a second Open needs one request.
const (
	probeFolder     = "probe/"
	probeCreateOnly = probeFolder + "create-only"
)

// ready proves once that the store is fit to be written to.
func (b *Bucket) ready(ctx context.Context, op, key string) error {
	if b.writable.Load() {
		return nil
	}
	if err := b.lock(ctx); err != nil {
		return &objstore.Error{Op: op, Key: key, Err: err}
	}
	defer b.unlock()
	if b.writable.Load() {
		return nil
	}
	cl, err := b.sdkLocked()
	if err != nil {
		return b.openError(ctx, op, key, err)
	}
	if err := b.flat(ctx, cl, op, key); err != nil {
		return err
	}
	// The first put creates the object, unless an earlier Open did.
	refused := false
	for n := 0; n < 2 && !refused; n++ {
		if err := b.do(ctx, op, key, func() (f *failure) {
			refused, f = b.probeOnce(ctx, cl)
			return f
		}); err != nil {
			return err
		}
	}
	if !refused {
		return &objstore.Error{Op: op, Key: key, Kind: objstore.ErrUnavailable, Err: fmt.Errorf(
			"the store ignores If-None-Match: it overwrote %q, which has to be refused, so recovery points could be overwritten", b.at(probeCreateOnly))}
	}
	if b.c.RetainMode != "" {
		if err := b.do(ctx, op, key, func() *failure { return b.probeImmutable(ctx, cl) }); err != nil {
			return err
		}
	}
	b.writable.Store(true)
	return nil
}

// flat refuses accounts with a hierarchical namespace. Whoever may not ask what
// kind of account it is meets the order of the listing instead.
func (b *Bucket) flat(ctx context.Context, cl *client, op, key string) error {
	return b.do(ctx, op, key, func() *failure {
		w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
		defer w.Stop()
		out, err := cl.container.GetAccountInfo(w.Ctx, nil)
		switch f := b.judge(w, err); {
		case f == nil && out.IsHierarchicalNamespaceEnabled != nil && *out.IsHierarchicalNamespaceEnabled:
			return fatal(objstore.ErrUnavailable, fmt.Errorf(
				"account %q has a hierarchical namespace, which shows folders as blobs: use an account without it", b.c.account()))
		case f != nil && f.retry:
			return f
		}
		return nil
	})
}

// probeOnce puts the probe object and reports whether the store refused it for
// being there.
func (b *Bucket) probeOnce(ctx context.Context, cl *client) (refused bool, f *failure) {
	text := []byte("Holdfast creates this object to see whether the store honours If-None-Match. It may be deleted.\n")
	sum := md5.Sum(text)
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.blob(b.at(probeCreateOnly)).Upload(w.Ctx, nopCloser{bytes.NewReader(text)}, createOnly(sum[:]))
	f = b.judge(w, err)
	switch {
	case f == nil && (out.ETag == nil || *out.ETag == ""):
		return false, odd("the put was answered without an ETag")
	case f == nil:
		return false, nil
	case f.taken():
		return true, nil
	}
	return false, f
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// probeImmutable sees whether the container can keep single blobs.
func (b *Bucket) probeImmutable(ctx context.Context, cl *client) *failure {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.container.GetProperties(w.Ctx, nil)
	if f := b.judge(w, err); f != nil {
		return f
	}
	if out.IsImmutableStorageWithVersioningEnabled == nil || !*out.IsImmutableStorageWithVersioningEnabled {
		return fatal(objstore.ErrUnavailable, fmt.Errorf(
			"%w: container %q has no version-level immutability, so no blob in it can be retained: use one that was created with it, or switch retention off",
			errors.ErrUnsupported, b.c.Container))
	}
	return nil
}

// probeDefault sees whether the container retains by itself whatever is created
// in it: it has version-level immutability and a policy of its own.
func (b *Bucket) probeDefault(ctx context.Context, cl *client) *failure {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	out, err := cl.container.GetProperties(w.Ctx, nil)
	if f := b.judge(w, err); f != nil {
		return f
	}
	if out.HasImmutabilityPolicy == nil || !*out.HasImmutabilityPolicy {
		return fatal(nil, fmt.Errorf(
			"%w: the holder of a signed URL cannot set a retention, and container %q has no default one: give it a default time-based retention policy, or set retain-signed=vault if the vault retains what it lists",
			errors.ErrUnsupported, b.c.Container))
	}
	return nil
}

// Delete removes an object and its snapshots; see objstore.Bucket, and the
// package comment on versioning. An object that is retained or on legal hold is
// ErrDenied, with the date in the message. With versioning the service itself
// would hide such an object; therefore Delete asks first if Config.RetainMode is
// set.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	cl, err := b.begin(ctx, "delete", key)
	if err != nil {
		return err
	}
	if b.c.ReadOnly {
		return &objstore.Error{Op: "delete", Key: key, Kind: objstore.ErrReadOnly, Err: errors.New("it was configured so")}
	}
	return b.do(ctx, "delete", key, func() *failure {
		if b.c.RetainMode != "" {
			out, f := b.headOnce(ctx, key)
			switch {
			case f != nil && f.kind == objstore.ErrNotExist:
				return nil
			case f != nil:
				return f
			}
			if err := kept(out); err != nil {
				return fatal(objstore.ErrDenied, err)
			}
		}
		f := b.deleteOnce(ctx, cl, key)
		switch {
		case f == nil || f.kind == objstore.ErrNotExist:
			return nil
		case f.kind == objstore.ErrDenied:
			// Perhaps for a reason that can be told.
			if out, no := b.headOnce(ctx, key); no == nil {
				if why := kept(out); why != nil {
					f.err = fmt.Errorf("%w: %w", why, f.err)
				}
			}
		}
		return f
	})
}

// deleteOnce deletes the snapshots, too: whoever may create a blob may take
// some, and could keep it from being deleted that way.
func (b *Bucket) deleteOnce(ctx context.Context, cl *client, key string) *failure {
	w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
	defer w.Stop()
	include := blob.DeleteSnapshotsOptionTypeInclude
	out, err := cl.blob(b.at(key)).Delete(w.Ctx, &blob.DeleteOptions{DeleteSnapshots: &include})
	if f := b.judge(w, err); f != nil {
		return f
	}
	if out.RequestID == nil {
		return odd("the deletion was answered by something else")
	}
	return nil
}

// kept says why an object cannot be deleted, if it is so.
func kept(out *blob.GetPropertiesResponse) error {
	if out.LegalHold != nil && *out.LegalHold {
		return because(objstore.CauseRetained, "the object is on legal hold")
	}
	if until := out.ImmutabilityPolicyExpiresOn; until != nil && until.After(time.Now()) {
		return because(objstore.CauseRetained, "the store keeps the object until %s", until.UTC().Format(time.RFC3339))
	}
	return nil
}

func policyMode(mode string) blob.ImmutabilityPolicySetting {
	if mode == Locked {
		return blob.ImmutabilityPolicySettingLocked
	}
	return blob.ImmutabilityPolicySettingUnlocked
}

// Retain makes the store keep an object; see objstore.Retainer. The mode is
// Config.RetainMode; a locked policy that the object has already stays locked.
// An account without version-level immutability is errors.ErrUnsupported, too.
func (b *Bucket) Retain(ctx context.Context, key string, until time.Time) error {
	fail := func(kind, err error) error {
		return &objstore.Error{Op: "retain", Key: key, Kind: kind, Err: err}
	}
	cl, err := b.begin(ctx, "retain", key)
	if err != nil {
		return err
	}
	if b.c.RetainMode == "" {
		return fail(nil, fmt.Errorf("%w: retention is switched off; add retain-mode=… to the store's address", errors.ErrUnsupported))
	}
	until = ceilSecond(until)
	if !until.After(time.Now()) {
		return fail(nil, fmt.Errorf("%s has passed already", until.Format(time.RFC3339)))
	}
	return b.do(ctx, "retain", key, func() *failure {
		out, f := b.headOnce(ctx, key)
		if f != nil {
			return f
		}
		mode, target := policyMode(b.c.RetainMode), until
		locked := out.ImmutabilityPolicyMode != nil && strings.EqualFold(string(*out.ImmutabilityPolicyMode), Locked)
		if locked {
			mode = blob.ImmutabilityPolicySettingLocked // it cannot be weakened, only extended
		}
		if has := out.ImmutabilityPolicyExpiresOn; has != nil && !has.Before(until) {
			if locked || mode == blob.ImmutabilityPolicySettingUnlocked {
				return nil
			}
			target = *has
		}
		w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
		defer w.Stop()
		_, err := cl.blob(b.at(key)).SetImmutabilityPolicy(w.Ctx, target, &blob.SetImmutabilityPolicyOptions{Mode: &mode})
		f = b.judge(w, err)
		if f != nil && f.kind == objstore.ErrDenied {
			// Perhaps somebody else was faster and asked for more.
			if now, no := b.headOnce(ctx, key); no == nil && now.ImmutabilityPolicyExpiresOn != nil && !now.ImmutabilityPolicyExpiresOn.Before(until) {
				return nil
			}
		}
		return f
	})
}

// RetainsNew implements objstore.NewRetainer.
func (b *Bucket) RetainsNew() bool { return b.c.RetainFor > 0 && b.c.RetainSigned == ByVault }

// RetainNew retains an object that came by a signed URL, for Config.RetainFor
// from now on: for whoever lists it, right after it was verified. It does nothing
// if no retention is configured, and otherwise behaves like Retain.
func (b *Bucket) RetainNew(ctx context.Context, key string) error {
	if b.c.RetainFor == 0 {
		return nil
	}
	return b.Retain(ctx, key, time.Now().Add(b.c.RetainFor))
}

// Hold puts an object on legal hold, or lifts it: while it lasts, nobody
// deletes the object, whatever its retention is. It fails with ErrNotExist,
// ErrDenied, ErrUnavailable (asking again is safe), and errors.ErrUnsupported if
// retention is switched off or the account has no version-level immutability.
func (b *Bucket) Hold(ctx context.Context, key string, on bool) error {
	cl, err := b.begin(ctx, "retain", key)
	if err != nil {
		return err
	}
	if b.c.RetainMode == "" {
		return &objstore.Error{Op: "retain", Key: key, Err: fmt.Errorf("%w: retention is switched off; add retain-mode=… to the store's address", errors.ErrUnsupported)}
	}
	return b.do(ctx, "retain", key, func() *failure {
		w := attempt.NewWatch(ctx, b.c.StallTimeout, 0)
		defer w.Stop()
		_, err := cl.blob(b.at(key)).SetLegalHold(w.Ctx, on, nil)
		return b.judge(w, err)
	})
}
