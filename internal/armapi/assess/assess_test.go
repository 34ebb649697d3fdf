package assess_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"holdfast/internal/armapi"
	"holdfast/internal/armapi/armapitest"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/readiness"
)

// TestReadiness reads reports over HTTPS.
func TestReadiness(t *testing.T) {
	t.Parallel()
	f := armapitest.New(armapitest.Config{})
	in := armapitest.NewServer(t, f, armapi.Config{PublicURL: "https://vault.example"})
	id := f.Identity()
	get := func(path string) (int, readiness.Report) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", in.URL+"/subscriptions/"+id.SubscriptionID+"/resourceGroups/"+id.ResourceGroup+
			"/providers/Microsoft.RecoveryServices/vaults/"+id.Name+"/"+armwire.Extension+"/readiness/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		q := req.URL.Query()
		q.Set("api-version", "2025-08-01")
		req.URL.RawQuery = q.Encode()
		req.Header.Set("Authorization", "Bearer "+in.Token(t, dr.RoleReader))
		resp, err := in.Client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var r readiness.Report
		if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, r
	}
	for path, target := range map[string]string{"site-a": "azure", "site-a?target=kvm": "kvm", "SITE-A?target=HyperV": "hyperv"} {
		if code, r := get(path); code != 200 || r.Site != "site-a" || r.Target != target || len(r.VMs) == 0 || r.Ready+r.Blocked != len(r.VMs) || len(r.Practices) == 0 {
			t.Errorf("%s: %d %+v", path, code, r)
		}
	}
	for path, want := range map[string]int{"none": 404, "site-a?target=moon": 400} {
		if code, _ := get(path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
}
