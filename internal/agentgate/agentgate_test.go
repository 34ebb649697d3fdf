package agentgate

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"holdfast/internal/agentapi"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/mem"
	"holdfast/internal/sqldb"
	"holdfast/internal/sqldb/sqldbtest"
	"holdfast/internal/vault"
)

func TestMain(m *testing.M) { sqldbtest.Main(m) }

// gate makes a gate over a started vault. The traffic of real agents over TLS
// is the vault's own tests; these are about what reaches the gate otherwise.
func gate(t *testing.T) *Gate {
	t.Helper()
	key, err := cut.GenerateVaultKey()
	if err != nil {
		t.Fatal(err)
	}
	db := sqldbtest.Open(t, sqldb.Config{URL: sqldbtest.SQLiteURL(t)})
	v, err := vault.New(vault.Config{DB: db, Bucket: mem.New(), VaultKey: key, PublicURL: "https://vault.example", PollWait: time.Second,
		Identity: vault.Identity{Name: "v", SubscriptionID: "s", ResourceGroup: "g"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	g, err := New(Config{Vault: v})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	g := gate(t)
	for name, c := range map[string]struct {
		method, path, body, protocol string
		status                       int
		kind                         dr.Kind
	}{
		"no certificate":        {"POST", agentapi.PathPoll, "{}", "", 401, dr.KindUnauthenticated},
		"no certificate, renew": {"POST", agentapi.PathRenew, "{}", "", 401, dr.KindUnauthenticated},
		"unknown path":          {"POST", "/agent/v1/nothing", "{}", "", 404, dr.KindNotFound},
		"method":                {"GET", agentapi.PathPoll, "", "", 400, dr.KindInvalid},
		"newer agent":           {"POST", agentapi.PathPoll, "{}", "999", 400, dr.KindUnsupported},
		"protocol is no number": {"POST", agentapi.PathPoll, "{}", "x", 400, dr.KindUnsupported},
		"no JSON":               {"POST", agentapi.PathEnroll, "nope", "1", 400, dr.KindInvalid},
		"too long":              {"POST", agentapi.PathEnroll, `{"host":"` + strings.Repeat("x", maxSmall) + `"}`, "1", 400, dr.KindInvalid},
		"bad request":           {"POST", agentapi.PathEnroll, `{"secret":"hfk_topsecret","csr":"x"}`, "1", 400, dr.KindInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			if c.protocol != "" {
				r.Header.Set(agentapi.ProtocolHeader, c.protocol)
			}
			w := httptest.NewRecorder()
			g.ServeHTTP(w, r)
			var e agentapi.ErrorBody
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
				t.Fatalf("status %d, body %q: %v", w.Code, w.Body, err)
			}
			if w.Code != c.status || e.Error.Kind != c.kind.String() || e.Error.Message == "" {
				t.Errorf("status %d, error %+v, want %d %v", w.Code, e.Error, c.status, c.kind)
			}
			if strings.Contains(w.Body.String(), "topsecret") {
				t.Error("the answer repeats a secret")
			}
		})
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	t.Parallel()
	g := gate(t)
	g.mux.HandleFunc("POST /agent/v1/panic", func(http.ResponseWriter, *http.Request) { panic("defect") })
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest("POST", "/agent/v1/panic", nil))
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "defect") {
		t.Errorf("status %d, body %s", w.Code, w.Body)
	}
}

func TestEveryKindHasAStatus(t *testing.T) {
	t.Parallel()
	for _, k := range dr.Kinds() {
		if s := status(k); s < 400 || s > 599 {
			t.Errorf("%v: %d", k, s)
		}
	}
	if status(dr.KindUnavailable) != http.StatusServiceUnavailable || status(dr.KindFenced) != http.StatusConflict {
		t.Error("a retryable kind must say so, and a final one must not")
	}
}
