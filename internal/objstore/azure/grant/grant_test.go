package grant_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
	"go.uber.org/goleak"

	"holdfast/internal/objstore/azure/grant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const account, container = "contoso", "replicas"

var secret = []byte("the account's key, which is long")

func mac(key []byte, lines ...string) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(strings.Join(lines, "\n")))
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func shared(t *testing.T, c grant.Config) *grant.Signer {
	t.Helper()
	key, err := azblob.NewSharedKeyCredential(account, base64.StdEncoding.EncodeToString(secret))
	if err != nil {
		t.Fatal(err)
	}
	c.Container, c.Shared = container, key
	return grant.New(c)
}

func parse(t *testing.T, query string) url.Values {
	t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestSharedKey verifies signatures as "Create a service SAS" (version 2020-12-06
// and later) says, without the SDK.
func TestSharedKey(t *testing.T) {
	t.Parallel()
	until := time.Now().Add(time.Hour)
	for _, plain := range []bool{false, true} {
		s := shared(t, grant.Config{Plain: plain})
		protocol := "https"
		if plain {
			protocol = "https,http"
		}
		blob, err := s.Blob(t.Context(), "v1/m/a cut", until)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := s.Container(t.Context(), until)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct{ query, resource, sr string }{
			{blob, "/blob/contoso/replicas/v1/m/a cut", "b"},
			{whole, "/blob/contoso/replicas", "c"},
		} {
			q := parse(t, tt.query)
			se := until.UTC().Truncate(time.Second).Format("2006-01-02T15:04:05Z")
			if q.Get("sp") != "c" || q.Get("sr") != tt.sr || q.Get("se") != se || q.Get("spr") != protocol || q.Has("st") || q.Has("si") || q.Has("skoid") {
				t.Errorf("signed %v", q)
			}
			if want := mac(secret, "c", "", se, tt.resource, "", "", protocol, q.Get("sv"), tt.sr, "", "", "", "", "", "", ""); q.Get("sig") != want {
				t.Errorf("%s: the signature is %s, wanted %s", tt.sr, q.Get("sig"), want)
			}
		}
	}
}

// vault asks for user delegation keys, as the service would give them.
type vault struct {
	keys  atomic.Int64
	lives []time.Duration
	fail  atomic.Pointer[error]
	t     *testing.T
}

func (v *vault) fetch(ctx context.Context, start, expiry time.Time) (*service.UserDelegationCredential, error) {
	v.keys.Add(1)
	if err := v.fail.Load(); err != nil {
		return nil, *err
	}
	now := time.Now()
	if start.After(now) || !expiry.After(now) || expiry.Sub(start) > grant.MaxLife || start.Nanosecond() != 0 || expiry.Nanosecond() != 0 {
		v.t.Errorf("a key from %v to %v was asked for at %v", start, expiry, now)
	}
	v.lives = append(v.lives, expiry.Sub(now))
	return delegated(v.t, start, expiry), nil
}

// The key's owner, and the key itself.
const (
	oid = "66666666-7777-8888-9999-000000000000"
	tid = "11111111-2222-3333-4444-555555555555"
)

var delegationKey = []byte("a user delegation key of a while")

// TestDelegation verifies signatures as "Create a user delegation SAS" says for
// the newest versions, without the SDK.
func TestDelegation(t *testing.T) {
	t.Parallel()
	v := &vault{t: t}
	s := grant.New(grant.Config{Container: container, Fetch: v.fetch})
	until := time.Now().Add(time.Hour)
	blob, err := s.Blob(t.Context(), "v1/m/cut", until)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := s.Container(t.Context(), until)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ query, resource, sr string }{
		{blob, "/blob/contoso/replicas/v1/m/cut", "b"},
		{whole, "/blob/contoso/replicas", "c"},
	} {
		q := parse(t, tt.query)
		if q.Get("sp") != "c" || q.Get("sr") != tt.sr || q.Get("skoid") != oid || q.Get("sktid") != tid || q.Get("sks") != "b" || q.Get("spr") != "https" || q.Get("sv") < "2026-04-06" {
			t.Errorf("signed %v", q)
		}
		if q.Get("se") > q.Get("ske") {
			t.Errorf("the signature outlives its key: %s, %s", q.Get("se"), q.Get("ske"))
		}
		want := mac(delegationKey, "c", "", q.Get("se"), tt.resource, oid, tid, q.Get("skt"), q.Get("ske"), "b", q.Get("skv"),
			"", "", "", // authorized and unauthorized object, correlation
			"", "", // delegated user's tenant and object (2025-07-05)
			"", "https", q.Get("sv"), tt.sr, "", "",
			"", "", // signed headers and parameters (2026-04-06)
			"", "", "", "", "")
		if q.Get("sig") != want {
			t.Errorf("%s: the signature is %s, wanted %s", tt.sr, q.Get("sig"), want)
		}
	}
}

// TestLives is about how long signatures may live.
func TestLives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &vault{t: t}
		for name, s := range map[string]*grant.Signer{"shared": shared(t, grant.Config{}), "delegation": grant.New(grant.Config{Container: container, Fetch: v.fetch})} {
			for after, want := range map[time.Duration]error{-time.Second: grant.ErrOver, 0: grant.ErrOver, time.Second: nil, grant.MaxLife: nil, grant.MaxLife + time.Second: grant.ErrTooLong} {
				if _, err := s.Blob(t.Context(), "b", time.Now().Add(after)); !errors.Is(err, want) || want == nil && err != nil {
					t.Errorf("%s, %v: %v", name, after, err)
				}
			}
		}
	})
}

// TestKeysAreRenewed follows a signer over days: each signature's key outlives
// it, keys are renewed every hour and not oftener, and one for long-lived
// signatures is not used for the others.
func TestKeysAreRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &vault{t: t}
		s := grant.New(grant.Config{Container: container, Fetch: v.fetch})
		sign := func(life time.Duration) url.Values {
			t.Helper()
			query, err := s.Blob(t.Context(), "b", time.Now().Add(life))
			if err != nil {
				t.Fatal(err)
			}
			q := parse(t, query)
			if q.Get("se") > q.Get("ske") {
				t.Errorf("the signature outlives its key: %s, %s", q.Get("se"), q.Get("ske"))
			}
			return q
		}
		for range 48 * 6 { // two days, every 10 minutes
			sign(30 * time.Minute)
			time.Sleep(10 * time.Minute)
		}
		if n := v.keys.Load(); n != 48 {
			t.Errorf("%d keys in 48 hours", n)
		}
		before := v.keys.Load()
		long := sign(3 * 24 * time.Hour)
		for range 100 { // names for an outage, in bulk
			time.Sleep(time.Second)
			sign(3 * 24 * time.Hour)
		}
		if n := v.keys.Load() - before; n > 2 {
			t.Errorf("%d keys for 101 long-lived signatures", n)
		}
		if q := sign(30 * time.Minute); q.Get("ske") == long.Get("ske") {
			t.Error("a short-lived signature uses the long-lived key")
		}
	})
}

// TestEntraIsDown signs on with the key at hand while no other can be had, asks
// again from time to time, and stops when the key would not outlive a signature.
func TestEntraIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &vault{t: t}
		s := grant.New(grant.Config{Container: container, Fetch: v.fetch})
		sign := func() error {
			_, err := s.Blob(t.Context(), "b", time.Now().Add(30*time.Minute))
			return err
		}
		if err := sign(); err != nil {
			t.Fatal(err)
		}
		down := errors.New("Entra ID is down")
		v.fail.Store(&down)
		for range 5 * 60 { // five hours, every minute
			time.Sleep(time.Minute)
			if err := sign(); err != nil {
				t.Fatalf("after %d requests: %v", v.keys.Load(), err)
			}
		}
		if n := v.keys.Load(); n < 10 || n > 60 {
			t.Errorf("%d requests for keys in five hours", n)
		}
		time.Sleep(time.Hour)
		if err := sign(); !errors.Is(err, down) {
			t.Errorf("with a key that ends: %v", err)
		}
		v.fail.Store(nil)
		if err := sign(); err != nil {
			t.Errorf("when it is back: %v", err)
		}
	})
}

// TestOneFetch lets many sign at once: one asks for the key.
func TestOneFetch(t *testing.T) {
	t.Parallel()
	v := &vault{t: t}
	s := grant.New(grant.Config{Container: container, Fetch: v.fetch})
	until := time.Now().Add(time.Minute)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if _, err := s.Blob(t.Context(), "b", until); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if v.keys.Load() != 1 {
		t.Errorf("%d keys", v.keys.Load())
	}
	// Who waits for the key gives up with his context.
	block, asked := make(chan struct{}), make(chan struct{})
	s = grant.New(grant.Config{Container: container, Fetch: func(context.Context, time.Time, time.Time) (*service.UserDelegationCredential, error) {
		close(asked) // a second request would panic
		<-block
		return nil, errors.New("too late")
	}})
	all.Go(func() { _, _ = s.Blob(context.Background(), "b", until) }) // its outcome does not matter here
	<-asked
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Blob(brief, "b", until); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("signed without a key: %v", err)
	}
	close(block)
	all.Wait()
}
