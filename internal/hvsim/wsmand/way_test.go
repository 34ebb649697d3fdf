package wsmand_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"holdfast/internal/cim"
)

// lost is a session whose server can't be reached.
type lost struct {
	*session
	code cim.Code
}

func (l lost) Get(context.Context, cim.Path) (*cim.Instance, error) {
	return nil, &cim.Error{Code: l.code, Op: "get", Message: "lost"}
}

// TestLostSession: no fault says that the way to the session failed; the client's way fails likewise.
func TestLostSession(t *testing.T) {
	t.Parallel()
	for code, want := range map[cim.Code]string{cim.CodeUnavailable: "EOF", cim.CodeUnauthorized: "401", cim.CodeProtocol: "no envelope"} {
		cfg := config(lost{newSession(), code})
		cfg.Basic, cfg.AllowUnencrypted = true, true
		url := "http://" + listen(t, newServer(t, cfg)) + "/wsman"
		req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), "")))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(user, password)
		req.Header.Set("Content-Type", "application/soap+xml;charset=UTF-8")
		resp, err := http.DefaultClient.Do(req)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			b, err := io.ReadAll(resp.Body)
			if cerr := resp.Body.Close(); err != nil || cerr != nil {
				t.Error(err, cerr)
			}
			got = resp.Status + string(b)
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s", code, got)
		}
	}
}
