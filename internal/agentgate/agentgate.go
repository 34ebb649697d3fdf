// Package agentgate is the vault's side of the agent channel: the HTTP routes
// of package agentapi over a *vault.Vault.
//
// It promises that a request acts only for the agent whose client certificate
// the connection shows (checked against the vault's authority, against
// revocation and replacement, on every request), that bodies are bounded, that
// every refusal is an agentapi.ErrorBody, and that nothing of a body (keys,
// tickets, signed URLs) is logged. Identity comes from the TLS connection
// alone: the server needs the tls.Config of vault.TLSConfig, and TLS must not
// end at a proxy before it.
package agentgate

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"holdfast/internal/agentapi"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// Body limits, bytes. A verified boot carries a screenshot, a big host a long inventory.
const (
	maxBody  = 16 << 20
	maxSmall = 64 << 10 // before the caller is known
)

// Config of the gate.
type Config struct {
	Vault *vault.Vault
	Log   *slog.Logger // nil discards
}

// Gate is an http.Handler for all paths under /agent/v1/.
type Gate struct {
	vault *vault.Vault
	log   *slog.Logger
	mux   *http.ServeMux
}

// New makes the handler.
func New(cfg Config) (*Gate, error) {
	if cfg.Vault == nil {
		return nil, dr.Errorf(dr.KindInvalid, "agentgate.New", "the agent channel needs a vault")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gate{vault: cfg.Vault, log: cfg.Log, mux: http.NewServeMux()}
	v := cfg.Vault
	g.mux.HandleFunc("POST "+agentapi.PathEnroll, func(w http.ResponseWriter, r *http.Request) {
		serve(g, w, r, maxSmall, func(ctx context.Context, in agentapi.EnrollRequest) (agentapi.EnrollResponse, error) {
			return v.Enroll(ctx, in)
		})
	})
	g.mux.HandleFunc("POST "+agentapi.PathRenew, func(w http.ResponseWriter, r *http.Request) {
		agent, serial, err := g.caller(r)
		if err != nil {
			g.refuse(w, r, err)
			return
		}
		serve(g, w, r, maxSmall, func(ctx context.Context, in agentapi.RenewRequest) (agentapi.EnrollResponse, error) {
			return v.Renew(ctx, agent, serial, in)
		})
	})
	route(g, agentapi.PathPoll, v.Poll)
	route(g, agentapi.PathUploads, v.Uploads)
	route(g, agentapi.PathHead, v.Head)
	route(g, agentapi.PathCommits, v.CommitCut)
	route(g, agentapi.PathPoints, v.OpenPoint)
	route(g, agentapi.PathDigests, v.Digests)
	route(g, agentapi.PathWarm, v.Warm)
	route(g, agentapi.PathReport, nothing(v.Report))
	route(g, agentapi.PathInventory, nothing(v.Inventory))
	route(g, agentapi.PathVMM, nothing(v.ReportVMM))
	route(g, agentapi.PathStatus, nothing(v.ReportStatus))
	return g, nil
}

// empty is the answer of routes that have none.
type empty struct{}

func nothing[In any](f func(context.Context, dr.AgentID, In) error) func(context.Context, dr.AgentID, In) (empty, error) {
	return func(ctx context.Context, agent dr.AgentID, in In) (empty, error) { return empty{}, f(ctx, agent, in) }
}

// route serves a method of the vault to identified agents.
func route[In, Out any](g *Gate, path string, f func(context.Context, dr.AgentID, In) (Out, error)) {
	g.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		agent, _, err := g.caller(r)
		if err != nil {
			g.refuse(w, r, err)
			return
		}
		serve(g, w, r, maxBody, func(ctx context.Context, in In) (Out, error) { return f(ctx, agent, in) })
	})
}

// ServeHTTP implements http.Handler.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler {
			panic(p)
		}
		g.log.Error("agent request panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
		g.refuse(w, r, dr.Errorf(dr.KindInternal, "agentgate", "the vault failed on this request: see its log"))
	}()
	if h := r.Header.Get(agentapi.ProtocolHeader); h != "" {
		if n, err := strconv.Atoi(h); err != nil || n < 1 || n > agentapi.Protocol {
			g.refuse(w, r, dr.Errorf(dr.KindUnsupported, "agentgate", "the agent speaks version %q of the protocol, this vault versions up to %d", h, agentapi.Protocol).
				WithHint("upgrade the vault before its agents"))
			return
		}
	}
	if _, pattern := g.mux.Handler(r); pattern == "" {
		status := dr.KindNotFound
		text := "there is no " + r.URL.Path
		if strings.HasPrefix(r.URL.Path, "/agent/v1/") && r.Method != http.MethodPost {
			status, text = dr.KindInvalid, "use POST"
		}
		g.refuse(w, r, dr.Errorf(status, "agentgate", "%s", text))
		return
	}
	g.mux.ServeHTTP(w, r)
}

// caller is the agent whose certificate the connection shows.
func (g *Gate) caller(r *http.Request) (dr.AgentID, string, error) {
	var cert *x509.Certificate
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		cert = r.TLS.PeerCertificates[0]
	}
	p, serial, err := g.vault.AgentByCert(r.Context(), cert)
	return p.ID, serial, err
}

// serve decodes the body, calls f and encodes its answer.
func serve[In, Out any](g *Gate, w http.ResponseWriter, r *http.Request, limit int64, f func(context.Context, In) (Out, error)) {
	var in In
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		err = dr.Errorf(dr.KindInvalid, "agentgate", "the body has more than %d bytes", limit)
	case err != nil:
		err = dr.Errorf(dr.KindUnavailable, "agentgate", "read the body: %w", err)
	default:
		if err = json.Unmarshal(body, &in); err != nil {
			err = dr.Errorf(dr.KindInvalid, "agentgate", "the body is not the JSON of this request")
		}
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	out, err := f(r.Context(), in)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	g.answer(w, http.StatusOK, out)
}

func (g *Gate) answer(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		g.log.Error("encode an answer to an agent", "err", err)
		status, text = http.StatusInternalServerError, []byte(`{"error":{"kind":"internal","message":"the vault could not encode its answer"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // the agent asks again if it did not arrive
}

// refuse answers with the error. The kind in the body is what agents go by;
// the status is for what stands between.
func (g *Gate) refuse(w http.ResponseWriter, r *http.Request, err error) {
	kind := dr.KindOf(err)
	if r.Context().Err() == nil && (kind == dr.KindInternal || kind == dr.KindCorrupt) {
		g.log.Error("agent request failed", "path", r.URL.Path, "err", err)
	}
	if kind == dr.KindUnavailable {
		w.Header().Set("Retry-After", "2")
	}
	g.answer(w, status(kind), agentapi.ErrorBody{Error: agentapi.Error{Kind: kind.String(), Code: string(dr.CodeOf(err)), Message: err.Error(), Hint: dr.HintOf(err)}})
}

// status is the HTTP status of a kind on this channel.
func status(k dr.Kind) int {
	switch k {
	case dr.KindInvalid, dr.KindUnsupported:
		return http.StatusBadRequest
	case dr.KindUnauthenticated:
		return http.StatusUnauthorized
	case dr.KindForbidden:
		return http.StatusForbidden
	case dr.KindNotFound:
		return http.StatusNotFound
	case dr.KindConflict, dr.KindFenced, dr.KindPrecondition, dr.KindCanceled:
		return http.StatusConflict
	case dr.KindUnavailable, dr.KindExhausted:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
