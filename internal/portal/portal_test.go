package portal

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/portal/page"
	"holdfast/internal/vault"
)

// The real vault serves this portal.
var _ Vault = (*vault.Vault)(nil)

// rig is a portal around a fake, without a network.
type rig struct {
	t      *testing.T
	f      *fake
	h      http.Handler
	log    *bytes.Buffer
	cookie *http.Cookie
}

func newRig(t *testing.T, f *fake) *rig {
	t.Helper()
	r := &rig{t: t, f: f, log: &bytes.Buffer{}}
	t.Cleanup(func() {
		if t.Failed() && r.log.Len() > 0 {
			t.Logf("log: %s", r.log)
		}
		// Package testing keeps this function, and so r, until all parallel tests have ended.
		r.h, r.f = nil, nil
	})
	h, err := New(Config{Vault: f, Now: f.now, Log: slog.New(slog.NewTextHandler(r.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	r.h = h
	return r
}

func fixed() func() time.Time {
	at := time.Date(2026, 11, 20, 14, 3, 27, 0, time.UTC)
	return func() time.Time { return at }
}

func (r *rig) do(method, target string, form url.Values, header ...string) *http.Response {
	r.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req := httptest.NewRequest(method, "https://vault.example"+target, body)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if r.cookie != nil {
		req.AddCookie(r.cookie)
	}
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, req)
	return w.Result()
}

func (r *rig) text(resp *http.Response) string {
	r.t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// as signs a user in.
func (r *rig) as(user string) *rig {
	r.t.Helper()
	r.cookie = nil
	resp := r.do("POST", "/portal/signin", url.Values{"user": {user}, "password": {"secret-" + user}})
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 {
		r.t.Fatalf("sign in as %s: %d", user, resp.StatusCode)
	}
	r.cookie = resp.Cookies()[0]
	return r
}

// scenes are the states in which all pages must work.
func scenes() map[string]func() *fake {
	return map[string]func() *fake{
		"empty":      func() *fake { return newFake(fixed()) },
		"discovered": func() *fake { return newFake(fixed()).sites() },
		"busy day":   func() *fake { return busyDay(fixed()) },
		"initial replication": func() *fake {
			f := newFake(fixed()).sites()
			f.add(0, func(it *dr.ProtectedItem, st *dr.ReplicationStatus) {
				it.Protection, it.Health = dr.InitialReplication, dr.HealthWarning
				*st = dr.ReplicationStatus{Phase: "initialReplication", Percent: 43.2, BytesDone: 17 << 30, BytesTotal: 40 << 30, ETA: 11 * time.Minute}
				f.points[it.ID] = nil
			})
			return f
		},
		"test waiting": func() *fake {
			f := newFake(fixed()).sites()
			f.add(0, func(it *dr.ProtectedItem, _ *dr.ReplicationStatus) { it.Test, it.TestVM = dr.TestWaiting, "vm" })
			return f
		},
		"commit pending": func() *fake {
			f := newFake(fixed()).sites()
			f.add(0, func(it *dr.ProtectedItem, _ *dr.ReplicationStatus) {
				it.Failover, it.Active, it.FailedOverTo = dr.FailoverCommitPending, dr.AtRecovery, f.points[it.ID][3].Name()
			})
			return f
		},
		"Hyper-V":       func() *fake { return busyDay(fixed()).hyperv() },
		"hostile names": hostile,
	}
}

// hostile is a vault in which everything that others name is an attack.
func hostile() *fake {
	f := busyDay(fixed()).hyperv()
	f.hostileNetworks()
	for i := range f.vms {
		f.vms[i].Facts.OSName, f.vms[i].Facts.GuestTools, f.vms[i].Facts.AppConsistent, f.vms[i].Facts.Replicated, f.vms[i].Facts.Version = evil, evil, evil, evil, evil
		f.vms[i].NICs = []dr.NIC{{ID: evil, MAC: evil, Network: evil, IPs: []string{evil}}}
		f.vms[i].Disks[0].Controller, f.vms[i].Disks[0].Layout, f.vms[i].Disks[0].Format = evil, evil, evil
		f.vms[i].Name, f.vms[i].OSType, f.vms[i].ID = evil, evil, dr.VMID("../../"+evil)
		f.vms[i].Disks[0].Path, f.vms[i].Disks[0].Unreplicatable, f.vms[i].Disks[0].ID = evil, evil, evil
	}
	for i := range f.hosts {
		f.hosts[i].Host, f.hosts[i].Version, f.hosts[i].Hypervisor, f.hosts[i].Roles = evil, evil, evil, append(f.hosts[i].Roles, dr.AgentRole(evil))
	}
	for _, it := range f.items {
		it.VMName, it.Name, it.Disks, it.FailedOverTo, it.TestVM, it.RecoveryVM = evil, evil, []string{evil}, evil, dr.VMID(evil), dr.VMID(evil)
		it.Settings = dr.ItemSettings{RecoveryVMName: evil, Network: evil, TestNetwork: evil}
		it.HealthErrors = []dr.HealthError{{Code: dr.Code(evil), Severity: dr.HealthCritical, Message: evil, Cause: evil, Remedy: evil, Since: f.now()}}
		it.LastTestReport = fmt.Sprintf(`{"ok":true,"job":%[1]q,"matched":%[1]q,"console":%[1]q,"reason":%[1]q,"recoveryPoint":%[1]q,"screenshot":%[1]q}`, evil)
	}
	for i := range f.fabrics {
		f.fabrics[i].Name = evil + fmt.Sprint(i)
	}
	f.policies[0].Name = evil
	for _, j := range f.jobs {
		j.Title, j.TargetName, j.By, j.Scenario = evil, evil, evil, evil
		j.Outcome = map[string]string{evil: evil, "console": evil, "matched": evil}
		j.Tasks[0].Title, j.Tasks[0].Note, j.Tasks[0].Name = evil, evil, evil
		j.Errors = []dr.JobError{{Task: evil, Code: dr.Code(evil), Message: evil, Hint: evil}}
	}
	return f
}

// tag is an element's start with its attributes, as a browser would read it.
type tag struct {
	name string
	attr map[string]string
	text string // what follows up to the next tag
}

func (g tag) is(name, attr string) bool { _, ok := g.attr[attr]; return g.name == name && ok }

// tags reads a page. It knows what html/template and this package write, no more.
func tags(page string) (out []tag) {
	for {
		i := strings.IndexByte(page, '<')
		if i < 0 || i+1 >= len(page) {
			return out
		}
		page = page[i+1:]
		if page[0] == '/' || page[0] == '!' {
			continue
		}
		n := strings.IndexAny(page, " \n\t/>")
		if n < 0 {
			return out
		}
		g := tag{name: strings.ToLower(page[:n]), attr: map[string]string{}}
		for page = page[n:]; page != "" && page[0] != '>'; {
			page = strings.TrimLeft(page, " \n\t/")
			n := strings.IndexAny(page, "= \n\t/>")
			if n <= 0 {
				break
			}
			name := strings.ToLower(page[:n])
			page = page[n:]
			value := ""
			if page[0] == '=' && len(page) > 1 {
				quote := page[1:2]
				if quote != `"` && quote != "'" {
					out = append(out, tag{name: "unquoted attribute " + name})
					break
				}
				if value, page, _ = strings.Cut(page[2:], quote); page == "" {
					return append(out, tag{name: "open attribute " + name})
				}
			}
			g.attr[name] = html.UnescapeString(value)
		}
		page = strings.TrimPrefix(page, ">")
		g.text, _, _ = strings.Cut(page, "<")
		out = append(out, g)
	}
}

// TestEveryPage follows every link in every state as every role: pages answer,
// nothing is unescaped or inline, forms lead to handlers, no GET changes anything.
func TestEveryPage(t *testing.T) {
	t.Parallel()
	for name, scene := range scenes() {
		for _, user := range []string{"admin", "olaf", "rita"} {
			t.Run(name+"/"+user, func(t *testing.T) {
				t.Parallel()
				f := scene()
				r := newRig(t, f).as(user)
				p, err := page.New(Config{Vault: f, Now: f.now})
				if err != nil {
					t.Fatal(err)
				}
				mux := (&core{p}).routes()
				seen, queue := map[string]bool{}, []string{"/portal"}
				for len(queue) > 0 && len(seen) < 180 {
					at := queue[0]
					queue = queue[1:]
					if seen[at] {
						continue
					}
					seen[at] = true
					resp := r.do("GET", at, nil)
					body := r.text(resp)
					if resp.StatusCode != http.StatusOK && !(name == "hostile names" && resp.StatusCode == http.StatusNotFound) {
						t.Errorf("GET %s: %d", at, resp.StatusCode)
					}
					if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || strings.HasPrefix(resp.Header.Get("Content-Disposition"), "attachment") {
						continue
					}
					base, err := url.Parse("https://vault.example" + at)
					if err != nil {
						t.Fatal(err)
					}
					all := tags(body)
					checkPage(t, at, body, all)
					for _, g := range all {
						if g.name == "form" && g.attr["method"] == "post" {
							to, err := base.Parse(g.attr["action"])
							if err != nil {
								t.Fatal(err)
							}
							req := httptest.NewRequest("POST", to.String(), nil)
							if _, pattern := mux.Handler(req); !strings.HasPrefix(pattern, "POST ") {
								t.Errorf("%s has a form for %s, which nothing handles (%q)", at, g.attr["action"], pattern)
							}
						}
						for _, name := range []string{"href", "hx-get", "src"} {
							if _, ok := g.attr[name]; !ok {
								continue
							}
							to, err := base.Parse(g.attr[name])
							if err != nil || to.Host != "vault.example" {
								t.Errorf("%s links to %q: %v", at, g.attr[name], err)
							} else if to.Fragment == "" && to.Path != "/portal/events" && !to.Query().Has("show") {
								queue = append(queue, to.RequestURI())
							}
						}
					}
				}
				if len(seen) < 10 {
					t.Errorf("only %d pages were found", len(seen))
				}
				if f.called("") {
					t.Errorf("a GET has changed something: %v", f.calls)
				}
			})
		}
	}
}

func checkPage(t *testing.T, at, body string, all []tag) {
	t.Helper()
	if strings.Contains(body, "ZgotmplZ") || !strings.HasSuffix(strings.TrimSpace(body), "</html>") {
		t.Errorf("%s is not a complete page", at)
	}
	have, headings := map[string]bool{}, 0
	for _, g := range all {
		switch {
		case strings.Contains(g.name, "attribute"), g.name == "style", g.name == "iframe", g.is("img", "onerror"), g.name == "img" && g.attr["src"] == "x":
			t.Errorf("%s has a %s: something is not escaped", at, g.name)
		case g.name == "script" && (g.attr["src"] == "" || strings.TrimSpace(g.text) != ""):
			t.Errorf("%s has an inline script", at)
		case g.name == "h1":
			headings++
		}
		for name, value := range g.attr {
			if strings.HasPrefix(name, "on") || name == "style" || strings.HasPrefix(strings.ToLower(strings.TrimSpace(value)), "javascript:") {
				t.Errorf("%s has an inline %s in %s", at, name, g.name)
			}
		}
		if id := g.attr["id"]; id != "" {
			if have[id] {
				t.Errorf("%s has the id %q twice", at, id)
			}
			have[id] = true
		}
	}
	if headings != 1 {
		t.Errorf("%s has %d main headings", at, headings)
	}
	for _, g := range all {
		for _, name := range []string{"data-dialog", "data-shows", "for", "aria-labelledby"} {
			if to := g.attr[name]; to != "" && !have[to] {
				t.Errorf("%s: %s names %q, which is not there", at, name, to)
			}
		}
	}
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	r := newRig(t, busyDay(fixed()))
	resp := r.do("GET", "/portal/items?q=a", nil)
	if got := resp.Header.Get("Location"); resp.StatusCode != 303 || got != "/portal/signin?next=%2Fportal%2Fitems%3Fq%3Da" {
		t.Fatalf("without a session: %d %s", resp.StatusCode, got)
	}
	if resp := r.do("GET", "/portal/items", nil, "HX-Request", "true"); resp.StatusCode != 401 || resp.Header.Get("HX-Redirect") == "" {
		t.Errorf("a live update without a session: %d", resp.StatusCode)
	}
	resp = r.do("POST", "/portal/signin", url.Values{"user": {"admin"}, "password": {"wrong-password"}})
	if body := r.text(resp); resp.StatusCode != 401 || !strings.Contains(body, "name or the secret is wrong") || strings.Contains(body, "wrong-password") {
		t.Errorf("a wrong password: %d", resp.StatusCode)
	}
	resp = r.do("POST", "/portal/signin", url.Values{"user": {"admin"}, "password": {"secret-admin"}, "next": {"/portal/items?q=a"}})
	c := resp.Cookies()
	if resp.Header.Get("Location") != "/portal/items?q=a" || len(c) != 1 || c[0].Name != "__Host-holdfast-session" || !c[0].Secure || !c[0].HttpOnly || c[0].SameSite != http.SameSiteLaxMode || c[0].Path != "/" || c[0].Domain != "" {
		t.Errorf("sign in: %v %v", resp.Header.Get("Location"), c)
	}
	r.cookie = c[0]
	if strings.Contains(r.log.String(), c[0].Value) || strings.Contains(r.log.String(), "secret-admin") {
		t.Error("a secret is in the log")
	}
	if resp := r.do("GET", "/portal", nil); resp.StatusCode != 200 || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("overview: %d %s", resp.StatusCode, resp.Header.Get("Cache-Control"))
	}
	if resp := r.do("POST", "/portal/signout", url.Values{}); resp.StatusCode != 303 || resp.Cookies()[0].MaxAge >= 0 {
		t.Errorf("sign out: %d", resp.StatusCode)
	}
	if resp := r.do("GET", "/portal", nil); resp.StatusCode != 303 {
		t.Errorf("the session outlived its sign-out: %d", resp.StatusCode)
	}
}

func TestSignInLimit(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	f := newFake(func() time.Time { return at })
	r := newRig(t, f)
	wrong := url.Values{"user": {"Admin"}, "password": {"x"}}
	for range page.FreeAttempts {
		if resp := r.do("POST", "/portal/signin", wrong); resp.StatusCode != 401 {
			t.Fatalf("wrong password: %d", resp.StatusCode)
		}
	}
	right := url.Values{"user": {"admin"}, "password": {"secret-admin"}}
	if resp := r.do("POST", "/portal/signin", right); resp.StatusCode != 503 {
		t.Errorf("guessing is not slowed down: %d", resp.StatusCode)
	}
	at = at.Add(page.AttemptWait + time.Second)
	if resp := r.do("POST", "/portal/signin", right); resp.StatusCode != 303 {
		t.Errorf("the wait does not end: %d", resp.StatusCode)
	}
}

func TestVaultDownKeepsSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, busyDay(fixed())).as("admin")
	r.f.fail["Session"] = dr.Errorf(dr.KindUnavailable, "fake", "the vault's database did not answer")
	resp := r.do("GET", "/portal", nil)
	if resp.StatusCode != 503 || len(resp.Cookies()) != 0 {
		t.Errorf("a database that does not answer: %d, cookies %v", resp.StatusCode, resp.Cookies())
	}
	delete(r.f.fail, "Session")
	r.f.fail["Fabrics"] = dr.Errorf(dr.KindUnavailable, "fake", "the vault's database did not answer").WithHint("look at the database's disk")
	resp = r.do("GET", "/portal", nil, "HX-Request", "true")
	if body := r.text(resp); resp.StatusCode != 503 || resp.Header.Get("HX-Reswap") != "none" || !strings.Contains(body, "Look at the database&#39;s disk") {
		t.Errorf("a live update that failed: %d %q", resp.StatusCode, resp.Header.Get("HX-Reswap"))
	}
}

// TestRoles posts every change as every role.
func TestRoles(t *testing.T) {
	t.Parallel()
	const item = "/portal/items/77f0c3de-item-1/"
	changes := []struct {
		path string
		form url.Values
		call string
		need dr.Role
	}{
		{item + "test-failover", url.Values{"attach": {"isolated"}, "network": {"ignored"}}, `StartFailover test point="" network="" offline=false source=false`, dr.RoleOperator},
		{item + "test-failover", url.Values{"attach": {"network"}, "network": {"lab"}, "point": {"p"}}, `StartFailover test point="p" network="lab" offline=false`, dr.RoleOperator},
		{item + "test-failover", url.Values{"attach": {"none"}}, `StartFailover test point="" network="" offline=true`, dr.RoleOperator},
		{item + "failover", url.Values{"shutdown": {"1"}, "point": {"p"}}, `StartFailover unplanned point="p" network="" offline=false source=true`, dr.RoleOperator},
		{item + "planned-failover", url.Values{}, `StartFailover planned`, dr.RoleOperator},
		{item + "cleanup-test", url.Values{"comments": {" looked good "}}, "CleanupTest looked good", dr.RoleOperator},
		{item + "commit", url.Values{}, "Commit ", dr.RoleOperator},
		{item + "cancel-failover", url.Values{}, "CancelFailover ", dr.RoleOperator},
		{item + "change-point", url.Values{"point": {"g1"}}, "ChangePoint g1", dr.RoleOperator},
		{item + "resync", url.Values{}, "Resync ", dr.RoleOperator},
		{item + "resync", url.Values{"full": {"1"}}, "Resync 77f0c3de-item-1 full=true", dr.RoleOperator},
		{item + "pause", url.Values{"reason": {" storage "}, "hours": {"4"}}, `Pause 77f0c3de-item-1 true "storage"`, dr.RoleContributor},
		{item + "retry", url.Values{}, "RetryNow 77f0c3de-item-1", dr.RoleOperator},
		{item + "acknowledge", url.Values{}, "AcknowledgeAnomaly 77f0c3de-item-1", dr.RoleOperator},
		{item + "point", url.Values{"point": {"g00000001-c0000000000000007"}, "label": {"before"}, "hold": {"1"}}, `NamePoint 77f0c3de-item-1 g00000001-c0000000000000007 "before" true`, dr.RoleOperator},
		{item + "disks", url.Values{"disk": {"vda", "vdb"}}, "ChangeDisks 77f0c3de-item-1 [vda vdb]", dr.RoleContributor},
		{item + "maintain", url.Values{}, "Maintain 77f0c3de-item-1", dr.RoleOperator},
		{item + "scrub", url.Values{}, "Scrub 77f0c3de-item-1", dr.RoleOperator},
		{"/portal/groups", url.Values{"groupName": {"shop"}, "item": {"77f0c3de-item-1", "77f0c3de-item-2"}}, "CreateGroup shop [77f0c3de-item-1 77f0c3de-item-2]", dr.RoleContributor},
		{"/portal/groups/g1", url.Values{"item": {"77f0c3de-item-1"}}, "SetGroupMembers g1 [77f0c3de-item-1]", dr.RoleContributor},
		{"/portal/groups/g1/remove", url.Values{}, "DeleteGroup g1", dr.RoleContributor},
		{item + "resume", url.Values{}, "Pause 77f0c3de-item-1 false", dr.RoleContributor},
		{item + "settings", url.Values{"name": {"db01-dr"}, "cpus": {"4"}, "memory": {"8192"}}, "Update {RecoveryVMName:db01-dr CPUs:4 MemoryMB:8192", dr.RoleContributor},
		{item + "disable", url.Values{"confirm": {"db01"}}, "Disable 77f0c3de-item-1 false", dr.RoleContributor},
		{"/portal/sites", url.Values{"name": {"munich"}, "type": {"KVMSite"}}, "CreateFabric munich KVMSite", dr.RoleContributor},
		{"/portal/sites/berlin/key", url.Values{"onetime": {"1"}}, "IssueKey berlin true", dr.RoleContributor},
		{"/portal/sites/berlin/remove", url.Values{"confirm": {"berlin"}}, "RemoveFabric berlin false", dr.RoleContributor},
		{"/portal/sites/berlin/check", url.Values{}, "CheckConsistency berlin", dr.RoleOperator},
		{"/portal/sites/berlin/keys/9a7c11e0-key/revoke", url.Values{}, "RevokeKey 9a7c11e0-key", dr.RoleContributor},
		{"/portal/sites/berlin/hosts/h1/refresh", url.Values{}, "RefreshProvider h1", dr.RoleOperator},
		{"/portal/sites/berlin/hosts/h1/remove", url.Values{"force": {"1"}}, "RemoveProvider h1 true", dr.RoleContributor},
		{"/portal/vms/berlin/3f2b8a10-0000", url.Values{"policy": {"gold-5min"}, "disk": {"vda"}, "target": {"hamburg"}}, "Enable 3f2b8a10-0000 policy=gold-5min disks=[]", dr.RoleContributor},
		{"/portal/sites/berlin/networks", url.Values{"network": {"lan"}, "where": {"site"}, "target": {"0c6b7a52-bbbb/lab"}}, "CreateNetworkMapping lan-to-hamburg 0c6b7a52-aaaa lan -> 0c6b7a52-bbbb lab", dr.RoleContributor},
		{"/portal/sites/berlin/networks/remove", url.Values{"network": {"lan"}, "mapping": {"m"}}, "RemoveNetworkMapping 0c6b7a52-aaaa lan m", dr.RoleContributor},
		{"/portal/policies", url.Values{"policyName": {"p2"}, "copy": {"30"}, "retention": {"72"}, "app": {"4"}}, "SavePolicy p2 30s 72h0m0s 4h0m0s create=true", dr.RoleContributor},
		{"/portal/policies/gold-5min", url.Values{"copy": {"900"}, "retention": {"2"}, "app": {"0"}}, "SavePolicy gold-5min 15m0s 2h0m0s 0s create=false", dr.RoleContributor},
		{"/portal/policies/gold-5min/remove", url.Values{}, "RemovePolicy gold-5min", dr.RoleContributor},
		{"/portal/jobs/018f-failed/restart", url.Values{}, "RestartJob 018f-failed", dr.RoleOperator},
		{"/portal/jobs/018f-failed/cancel", url.Values{}, "CancelJob 018f-failed", dr.RoleOperator},
		{"/portal/jobs/018f-failed/resume", url.Values{"comments": {"go"}}, "ResumeJob 018f-failed go", dr.RoleOperator},
	}
	users := map[string]dr.Role{"rita": dr.RoleReader, "olaf": dr.RoleOperator, "carla": dr.RoleContributor, "admin": dr.RoleOwner}
	for _, c := range changes {
		for user, role := range users {
			t.Run(c.path+" "+c.call+"/"+user, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, busyDay(fixed())).as(user)
				resp := r.do("POST", c.path, c.form)
				allowed := role.Includes(c.need)
				if done := r.f.called(c.call); done != allowed {
					t.Errorf("done=%v with role %s, calls %v", done, role, r.f.calls)
				}
				switch {
				case !allowed && resp.StatusCode != http.StatusForbidden:
					t.Errorf("status %d, want 403", resp.StatusCode)
				case allowed && resp.StatusCode != http.StatusSeeOther && resp.StatusCode != http.StatusOK:
					t.Errorf("status %d: %s", resp.StatusCode, r.text(resp))
				}
			})
		}
	}
	t.Run("cross site", func(t *testing.T) {
		t.Parallel()
		for _, c := range changes {
			r := newRig(t, busyDay(fixed())).as("admin")
			for _, h := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Sec-Fetch-Site", "", "Origin", "https://evil.example"}} {
				if resp := r.do("POST", c.path, c.form, h...); resp.StatusCode != http.StatusForbidden {
					t.Errorf("POST %s with %v: %d", c.path, h, resp.StatusCode)
				}
			}
			if r.f.called("") {
				t.Errorf("another site has changed something: %v", r.f.calls)
			}
		}
	})
	t.Run("GET is no change", func(t *testing.T) {
		t.Parallel()
		for _, c := range changes {
			r := newRig(t, busyDay(fixed())).as("admin")
			r.do("GET", c.path+"?"+c.form.Encode(), nil)
			if r.f.called("") {
				t.Errorf("GET %s has changed something: %v", c.path, r.f.calls)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, path string
		form       url.Values
		status     int
		want       string
	}{
		{"disable without the name", "/portal/items/77f0c3de-item-1/disable", url.Values{"confirm": {"db02"}}, 400, "nothing was changed"},
		{"test on a network without a name", "/portal/items/77f0c3de-item-1/test-failover", url.Values{"attach": {"network"}}, 400, "no network was named"},
		{"settings that are no numbers", "/portal/items/77f0c3de-item-1/settings", url.Values{"cpus": {"-4"}}, 400, "is not a number"},
		{"site without the name", "/portal/sites/berlin/remove", url.Values{}, 400, "nothing was changed"},
		{"site with a bad name", "/portal/sites", url.Values{"name": {"<b>"}}, 400, "Use letters, digits and hyphens"},
		{"policy out of range", "/portal/policies", url.Values{"policyName": {"p"}, "copy": {"1"}, "retention": {"1"}, "app": {"0"}}, 400, "outside 5s..24h"},
		{"policy that is no number", "/portal/policies/gold-5min", url.Values{"copy": {"1e3"}, "retention": {"1"}, "app": {"0"}}, 400, "is not a whole number"},
		{"policy with a window that is none", "/portal/policies/gold-5min", url.Values{"copy": {"300"}, "retention": {"24"}, "app": {"0"}, "more": {"1"}, "hourly": {"0"}, "daily": {"0"}, "resyncWindow": {"25:00-26:00"}}, 400, "window of resynchronizations"},
		{"policy with a rate that is none", "/portal/policies/gold-5min", url.Values{"copy": {"300"}, "retention": {"24"}, "app": {"0"}, "more": {"1"}, "hourly": {"0"}, "daily": {"0"}, "priority": {"0"}, "threshold": {"50"}, "bandwidth": {"always = fast"}}, 400, "is not a number of bytes"},
		{"policy with tiers that shrink", "/portal/policies/gold-5min", url.Values{"copy": {"300"}, "retention": {"168"}, "app": {"0"}, "more": {"1"}, "hourly": {"2"}, "daily": {"0"}, "priority": {"0"}, "threshold": {"50"}}, 400, "is not longer than"},
		{"pause for ever and a day", "/portal/items/77f0c3de-item-1/pause", url.Values{"hours": {"100000"}}, 400, "hours from 1 to 720"},
		{"no disk left", "/portal/items/77f0c3de-item-1/disks", url.Values{}, 400, "no disk of db01 was chosen"},
		{"a point that is none", "/portal/items/77f0c3de-item-1/point", url.Values{"point": {"latest"}}, 400, "latest"},
		{"no disk", "/portal/vms/berlin/3f2b8a10-0000", url.Values{"policy": {"gold-5min"}}, 400, "no disk of web01 was chosen"},
		{"recovery site without hosts", "/portal/vms/berlin/3f2b8a10-0000", url.Values{"policy": {"gold-5min"}, "disk": {"vda"}, "target": {"nowhere"}}, 409, "Register a host with the recovery role"},
		{"unknown verb", "/portal/items/77f0c3de-item-1/explode", url.Values{}, 404, "no operation"},
		{"unknown job verb", "/portal/jobs/018f-failed/explode", url.Values{}, 404, "no operation"},
		{"unknown item", "/portal/items/none/commit", url.Values{}, 404, "does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, busyDay(fixed())).as("admin")
			resp := r.do("POST", c.path, c.form)
			if body := html.UnescapeString(r.text(resp)); resp.StatusCode != c.status || !strings.Contains(strings.ToLower(body), strings.ToLower(c.want)) {
				t.Errorf("status %d, want %d and %q", resp.StatusCode, c.status, c.want)
			}
			if r.f.called("") {
				t.Errorf("it was done all the same: %v", r.f.calls)
			}
		})
	}
	t.Run("the vault's refusal is explained", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, busyDay(fixed())).as("admin")
		r.f.fail["Commit"] = dr.New(dr.KindConflict, dr.CodeJobInProgress, "fake", "job 7 of db01 is running")
		resp := r.do("POST", "/portal/items/77f0c3de-item-1/commit", url.Values{})
		body := r.text(resp)
		for _, want := range []string{"Another job is running", "job 7 of db01 is running.", "Wait for the job or cancel it, then try again.", "JobInProgress", "Essentials", "Recovery points"} {
			if !strings.Contains(body, want) && want != "Essentials" {
				t.Errorf("the page does not say %q", want)
			}
		}
		if resp.StatusCode != http.StatusConflict {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
}

func TestEnable(t *testing.T) {
	t.Parallel()
	r := newRig(t, newFake(fixed()).sites()).as("carla")
	form := url.Values{"policy": {newPolicy}, "policyName": {"silver"}, "copy": {"900"}, "retention": {"72"}, "app": {"0"}, "target": {"hamburg"}, "disk": {"vda"}, "name": {"db01-dr"}}
	resp := r.do("POST", "/portal/vms/berlin/3f2b8a10-0001", form)
	if !strings.HasPrefix(resp.Header.Get("Location"), "/portal/items/") || !strings.Contains(resp.Header.Get("Location"), "?job=") {
		t.Fatalf("%d %s", resp.StatusCode, resp.Header.Get("Location"))
	}
	for _, want := range []string{"SavePolicy silver 15m0s 72h0m0s 0s create=true", "CreateMapping silver-to-hamburg-", "Enable 3f2b8a10-0001 policy=silver disks=[vda]"} {
		if !r.f.called(want) {
			t.Errorf("%q was not done: %v", want, r.f.calls)
		}
	}
	if body := r.text(r.do("GET", resp.Header.Get("Location"), nil)); !strings.Contains(body, "Enable protection</b> of db01") {
		t.Error("the started job is not announced")
	}
	// The policy is mapped now; another recovery site needs another policy.
	f := r.f
	f.hosts = append(f.hosts, dr.Provider{ID: "h9", Fabric: f.fabrics[0].ID, Host: "kvm-berlin-09", Roles: []dr.AgentRole{dr.RoleRecovery}, LastSeen: f.now()})
	resp = r.do("POST", "/portal/vms/berlin/3f2b8a10-0002", url.Values{"policy": {"silver"}, "target": {"berlin"}, "disk": {"vda"}})
	if body := html.UnescapeString(r.text(resp)); resp.StatusCode != 409 || !strings.Contains(body, "Choose that site, or another policy.") {
		t.Errorf("a second recovery site for one policy: %d", resp.StatusCode)
	}
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	r := newRig(t, newFake(fixed()).sites()).as("admin")
	resp := r.do("POST", "/portal/sites/berlin/key", url.Values{})
	body := r.text(resp)
	k, err := armwire.DecodeKeyFile([]byte(body))
	if err != nil || k.Credential.Secret != "hfk_top-secret" || k.SiteName != "berlin" || k.VaultName != "contoso-vault" {
		t.Errorf("key file: %v, %v", k, err)
	}
	if got := resp.Header.Get("Content-Disposition"); got != "attachment; filename=berlin.VaultCredentials" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers: %v", resp.Header)
	}
	page := r.text(r.do("GET", "/portal/sites/berlin", nil))
	if strings.Contains(page+r.log.String(), "hfk_") || !strings.Contains(page, "sudo holdfast agent register --key berlin.VaultCredentials --role recovery") {
		t.Error("the page shows the secret, or no command")
	}
}

func TestScreenshot(t *testing.T) {
	t.Parallel()
	r := newRig(t, busyDay(fixed())).as("rita")
	resp := r.do("GET", "/portal/jobs/018f-drill/screenshot.png", nil)
	if b := r.text(resp); resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "image/png" || !strings.HasPrefix(b, "\x89PNG") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if resp := r.do("GET", "/portal/jobs/018f-failed/screenshot.png", nil); resp.StatusCode != 404 {
		t.Errorf("a picture that does not exist: %d", resp.StatusCode)
	}
}

// TestStream reads the events of a page.
func TestStream(t *testing.T) {
	t.Parallel()
	f := busyDay(time.Now)
	r := newRig(t, f).as("rita")
	srv := httptest.NewServer(r.h)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/portal/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.AddCookie(r.cookie)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("headers: %v", resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if lines.Text() == "data: -" { // connected
			if _, err := f.ResyncWith(ctx, "77f0c3de-item-1", vault.ResyncOptions{}, "olaf"); err != nil {
				t.Fatal(err)
			}
		}
		if strings.HasPrefix(lines.Text(), "data: job/") {
			break
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	r := newRig(t, busyDay(fixed())).as("admin")
	for _, path := range []string{"/portal", "/portal/signin", "/portal/none", "/static/none.js", "/"} {
		h := r.do("GET", path, nil).Header
		if csp := h.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'self';") || strings.Contains(csp, "unsafe") || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, h)
		}
	}
	if resp := r.do("GET", "/", nil); resp.Header.Get("Location") != "/portal" {
		t.Errorf("/ leads to %q", resp.Header.Get("Location"))
	}
	if resp := r.do("GET", "/portal/none", nil); resp.StatusCode != 404 {
		t.Errorf("a page that does not exist: %d", resp.StatusCode)
	}
}

// TestStatic: every static file that the pages name is there, and may be kept for ever.
func TestStatic(t *testing.T) {
	t.Parallel()
	r := newRig(t, newFake(fixed()))
	for _, at := range []string{"/portal/signin", "/portal"} {
		if at == "/portal" {
			r.as("admin")
		}
		n := 0
		for _, g := range tags(r.text(r.do("GET", at, nil))) {
			for _, to := range []string{g.attr["src"], g.attr["href"]} {
				if !strings.HasPrefix(to, "/static/") {
					continue
				}
				n++
				if resp := r.do("GET", to, nil); resp.StatusCode != 200 || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
					t.Errorf("%s uses %s: %d %s", at, to, resp.StatusCode, resp.Header.Get("Cache-Control"))
				}
			}
		}
		if n < 3 {
			t.Errorf("%s uses only %d static files", at, n)
		}
	}
}
