package armapitest

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"

	"holdfast/internal/armapi"
	"holdfast/internal/dr"
)

// Instance is a started HTTPS server around a Fake.
type Instance struct {
	Fake   *Fake
	URL    string
	Client *http.Client // trusts the server
	CA     []byte       // PEM
	Close  func()
}

// Start starts a server. Close it.
func Start(f *Fake, cfg armapi.Config) (*Instance, error) {
	cfg.Service = f
	if cfg.Now == nil {
		cfg.Now = f.now
	}
	api, err := armapi.New(cfg)
	if err != nil {
		return nil, err
	}
	srv := httptest.NewTLSServer(api)
	return &Instance{Fake: f, URL: srv.URL, Client: srv.Client(), Close: srv.Close,
		CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})}, nil
}

// NewServer starts a server for the time of a test.
func NewServer(t testing.TB, f *Fake, cfg armapi.Config) *Instance {
	t.Helper()
	in, err := Start(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	return in
}

// Token logs a caller of the given role in.
func (in *Instance) Token(t testing.TB, role dr.Role) string {
	t.Helper()
	token, _, err := in.Fake.IssueToken(t.Context(), string(role), Secret)
	if err != nil {
		t.Fatal(err)
	}
	return token
}
