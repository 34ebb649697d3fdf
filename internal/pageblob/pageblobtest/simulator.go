package pageblobtest

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/azsim/pagestore"
)

// Simulator is a running simulator of the storage service with one container, and
// managed disks.
type Simulator struct {
	*pagestore.Store
	Base      string // address
	Container string // address
	Key       *azblob.SharedKeyCredential
	Transport *http.Transport
	Admin     *container.Client

	ahead atomic.Int64 // of the service's clock, nanoseconds
}

// Advance makes the service's clock run ahead by d more, as if d had passed for it.
func (s *Simulator) Advance(d time.Duration) { s.ahead.Add(int64(d)) }

// StartSimulator runs the simulator until the test ends.
func StartSimulator(t testing.TB) *Simulator {
	t.Helper()
	s := &Simulator{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	s.Transport.MaxIdleConnsPerHost = 32
	s.Transport.DisableCompression = true
	s.Store = pagestore.New(pagestore.Config{Dir: t.TempDir(), Base: func() string { return s.Base },
		Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }})
	server := httptest.NewServer(s.Handler())
	s.Base = server.URL
	t.Cleanup(func() {
		s.Transport.CloseIdleConnections()
		server.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	const account = "simulated"
	var err error
	if s.Key, err = azblob.NewSharedKeyCredential(account, s.AddAccount(account)); err != nil {
		t.Fatal(err)
	}
	s.Container = s.Base + "/" + account + "/disks"
	o := &container.ClientOptions{}
	o.Transport = &http.Client{Transport: s.Transport}
	o.Retry.MaxRetries = -1
	if s.Admin, err = container.NewClientWithSharedKeyCredential(s.Container, s.Key, o); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// Upload makes an empty managed disk of size bytes and returns the address to upload to.
func (s *Simulator) Upload(t testing.TB, name string, size int64) string {
	t.Helper()
	if err := s.Create(name, size+512); err != nil {
		t.Fatal(err)
	}
	query, err := s.Grant(name, true, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return s.Base + "/md/" + name + "?" + query
}
