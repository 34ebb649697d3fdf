package hyperv_test

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/wsman"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/schema"
	"holdfast/internal/hvsim/wsmand"
	"holdfast/internal/hypervisor/hypervisortest"
)

// TestConformanceWSMan runs the suite over HTTP, signed in and sealed by NTLM: the way to a real host.
func TestConformanceWSMan(t *testing.T) {
	if testing.Short() {
		t.Skip("slow")
	}
	hypervisortest.Run(t, func(t *testing.T) *hypervisortest.Fixture {
		r := newRig(t, func(c *hvsim.Config, _ *hvsim.VMSpec) { c.Inline = true })
		server := wsmand.New(wsmand.Config{Session: func(string) (cim.Session, error) { return deaf{r.sim}, nil }, Schema: wsmand.Tables(schema.Load()), Computer: "H1",
			Password: func(user, _ string) (string, bool) { return "Passw0rd", user == "agent" }})
		hs := httptest.NewUnstartedServer(server)
		hs.Config.ConnContext = server.ConnContext
		hs.Start()
		t.Cleanup(func() {
			must(t, server.Close())
			hs.Close()
		})
		r.wrap = func(cim.Session) cim.Session {
			s, err := wsman.New(wsman.Config{URL: hs.URL + "/wsman", User: "agent", Password: func(context.Context) (string, error) { return "Passw0rd", nil }})
			must(t, err)
			return s
		}
		r.cfg.VerifyEvery = 20 * time.Millisecond
		f := r.fixture(t)
		f.Held = false // fifty group cuts say nothing of the transport and take long; TestConformance has them
		return f
	})
}
