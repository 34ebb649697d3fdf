//go:build linux

package replica_test

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/azure/azuritetest"
	"holdfast/internal/retry"
)

// TestAzuriteRefuses is the part of TestStoreRefuses that Microsoft's emulator can show.
func TestAzuriteRefuses(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("installs and runs a server")
	}
	e := azuritetest.Start(t)
	e.NewContainer(t, "replicas")
	b := newBucket(t, azure.Config{Container: "replicas", Account: azuritetest.Account, Endpoint: e.Endpoint, AccountKey: azuritetest.Key, Prefix: "holdfast",
		Transport: e.Transport, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond})
	// The vault's clock goes behind, so that its URLs have ended soon after they were given.
	var mu sync.Mutex
	var behind time.Duration
	setBehind := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		behind = d
	}
	v := &asAgent{}
	v.replicas.Store(newRig(t, machine, func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(-behind)
	}).replicas(t, b, nil))
	var before func()
	sink := uploader(t, v, func(r *http.Request) (*http.Response, error) {
		if f := before; f != nil && r.Method == http.MethodPut {
			f()
		}
		return e.Transport.RoundTrip(r)
	}).Sink(machine, 1)
	data := []byte("the sealed cut")
	send := func(n uint64) error {
		return sink.Put(t.Context(), cut.CutObject(machine, 1, n), bytes.NewReader(data), int64(len(data)), sha256.Sum256(data))
	}
	stored := func(n uint64) {
		t.Helper()
		if got, err := objstore.ReadAll(t.Context(), b, cut.CutObject(machine, 1, n), 100); err != nil || !bytes.Equal(got, data) {
			t.Errorf("cut %d: %q, %v", n, got, err)
		}
	}
	refused := func(err error, want dr.Code, text string) {
		t.Helper()
		if dr.CodeOf(err) != want || retry.Classify(err) != retry.Recoverable || dr.HintOf(err) == "" || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "sig=") {
			t.Errorf("%v (code %q)", err, dr.CodeOf(err))
		}
	}
	if err := send(1); err != nil {
		t.Fatal(err)
	}
	stored(1)

	// The container is deleted under way.
	before = sync.OnceFunc(func() {
		if err := e.DeleteContainer(t.Context(), "replicas"); err != nil {
			t.Error(err)
		}
	})
	refused(send(2), dr.CodeAzureContainer, "replicas")
	if err := e.CreateContainer(t.Context(), "replicas"); err != nil {
		t.Fatal(err)
	}
	if err := send(2); err != nil {
		t.Error(err)
	}
	stored(2)

	// A URL ends between its issue and its use: another one is asked for.
	setBehind(30*time.Minute - 2*time.Second)
	ends := 0
	before = sync.OnceFunc(func() {
		ends++
		time.Sleep(3 * time.Second)
		setBehind(0)
	})
	if err := send(3); err != nil || ends != 1 {
		t.Errorf("%v, %d times", err, ends)
	}
	stored(3)

	// Every URL has ended as soon as it was given: the clock.
	setBehind(30*time.Minute - 2*time.Second)
	before = func() { time.Sleep(3 * time.Second) }
	refused(send(4), dr.CodeAzureClock, "past its end")
	setBehind(0)
	before = nil
	if err := send(4); err != nil {
		t.Error(err)
	}
	stored(4)
}
