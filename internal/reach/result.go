package reach

import (
	"time"

	"holdfast/internal/dr"
)

// Statuses of a hop and of a speed.
const (
	OK      = "ok"
	Warning = "warning"
	Failed  = "failed"
	Skipped = "skipped"
)

// Names of hops, in their order. With a proxy the first two are those of the
// proxy, and the proxy finds the endpoint's name.
const (
	HopName       = "name"       // the name becomes addresses
	HopConnection = "connection" // TCP
	HopProxyName  = "proxy name"
	HopProxy      = "proxy"  // TCP, and TLS for a proxy that has it
	HopTunnel     = "tunnel" // the proxy answers CONNECT
	HopTLS        = "tls"    // handshake and certificate
	HopAnswer     = "answer" // HTTP
	HopClock      = "clock"  // by the answer's Date header
	HopIdle       = "idle"   // a connection that is quiet stays
)

// Hop is one step of the way. Its texts hold no secret.
type Hop struct {
	Name   string        `json:"name"`
	Status string        `json:"status"`
	Detail string        `json:"detail"`
	Remedy string        `json:"remedy,omitempty"`
	Took   time.Duration `json:"took"`
}

// Result of Test. After a hop that failed there is no other, but for the clock and
// the idle connection, which end nothing.
type Result struct {
	Endpoint Endpoint      `json:"endpoint"`
	Via      string        `json:"via,omitempty"` // proxy, without user and password
	Hops     []Hop         `json:"hops"`
	Skew     time.Duration `json:"skew,omitempty"` // how far this machine's clock is ahead, to about a second
}

// First is the first hop with a status, or nil.
func (r Result) First(status string) *Hop {
	for i := range r.Hops {
		if r.Hops[i].Status == status {
			return &r.Hops[i]
		}
	}
	return nil
}

// Err is the failure as an error of the catalogue, nil if no hop failed.
func (r Result) Err() error {
	h := r.First(Failed)
	if h == nil {
		return nil
	}
	kind, code := dr.KindUnavailable, dr.CodeAzureUnreachable
	switch {
	case h.Name == HopClock:
		kind, code = dr.KindPrecondition, ""
		if r.Endpoint.Azure {
			code = dr.CodeAzureClock
		}
	case r.Endpoint.Name == VaultName && h.Name == HopTLS && r.Endpoint.Trust != nil:
		kind, code = dr.KindUnauthenticated, dr.CodeVaultIdentity
	case r.Endpoint.Name == VaultName:
		code = dr.CodeVaultUnreachable
	case !r.Endpoint.Azure && r.Endpoint.Name != MetadataName:
		code = dr.CodeStoreUnreachable
	}
	e := dr.New(kind, code, "reach.Test", "reach %s: %s: %s", r.Endpoint.Address(), h.Name, h.Detail)
	if h.Remedy != "" {
		e = e.WithHint("%s", h.Remedy)
	}
	return e
}
