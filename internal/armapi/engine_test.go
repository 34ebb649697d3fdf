package armapi_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

func (r *rig) itemID() dr.ItemID {
	r.t.Helper()
	id, _ := r.do("GET", item1, "").at("properties.holdfastItemId").(string)
	return dr.ItemID(id)
}

// TestPolicySettings: what the public policy lacks can be set, shown and changed
// alone, stays when a client does not know it, and is refused by its name when it is impossible.
func TestPolicySettings(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	put := func(settings string) string {
		return `{"properties":{"providerSpecificInput":{"instanceType":"HyperVReplicaAzure"` + settings + `}}}`
	}
	const path, details = "/replicationPolicies/gold", "properties.providerSpecificDetails."
	a := r.ok("PUT", path, put(``))
	if a.at(details+"holdfastResyncWindow") != dr.DefaultResyncWindow || a.at(details+"holdfastResyncMode") != "window" || a.at(details+"holdfastResyncThreshold") != 0.5 {
		t.Errorf("a new policy resynchronizes outside office hours: %s", a.Body)
	}
	all := `,"holdfastRetainHourlySeconds":172800,"holdfastRetainDailySeconds":2592000,"holdfastResyncMode":"manual","holdfastResyncWindow":"Sat-Sun 00:00-24:00","holdfastResyncThreshold":-1,` +
		`"holdfastInitialMode":"serial","holdfastInitialWindow":"22:00-04:00","holdfastInitialPriority":7,"holdfastCompression":"fast","holdfastBandwidth":[{"window":"Mon-Fri 08:00-18:00","bytesPerSecond":1048576},{"window":"","bytesPerSecond":0}]`
	a = r.ok("PUT", path, put(all))
	check := func(a answer, what string) {
		t.Helper()
		for name, want := range map[string]any{"holdfastRetainHourlySeconds": 172800.0, "holdfastRetainDailySeconds": 2592000.0, "holdfastResyncMode": "manual", "holdfastResyncThreshold": -1.0,
			"holdfastInitialMode": "serial", "holdfastInitialWindow": "22:00-04:00", "holdfastInitialPriority": 7.0, "holdfastCompression": "fast",
			"holdfastBandwidth.0.window": "Mon-Fri 08:00-18:00", "holdfastBandwidth.0.bytesPerSecond": 1048576.0, "holdfastBandwidth.1.bytesPerSecond": 0.0} {
			if got := a.at(details + name); got != want {
				t.Errorf("%s: %s is %v, want %v", what, name, got, want)
			}
		}
	}
	check(a, "put")
	check(r.ok("PUT", path, put(`,"replicationInterval":30`)), "put by a client that knows only the public settings")
	a = r.ok("PATCH", path, `{"properties":{"replicationProviderSettings":{"instanceType":"HyperVReplicaAzure","holdfastBandwidth":[],"holdfastResyncWindow":""}}}`)
	if b, _ := a.at(details + "holdfastBandwidth").([]any); len(b) != 0 || a.at(details+"holdfastResyncWindow") != "" || a.at(details+"holdfastCompression") != "fast" {
		t.Errorf("patch: %s", a.Body)
	}
	for _, tt := range []struct{ settings, names, code string }{
		{`"holdfastRetainHourlySeconds":60`, "hourly", "PolicyInvalid"},
		{`"holdfastRetainHourlySeconds":-1`, "-1", "PolicyInvalid"},
		{`"holdfastResyncMode":"sometimes"`, "resynchronization mode", "PolicyInvalid"},
		{`"holdfastResyncWindow":"25:00-26:00"`, "holdfastResyncWindow", "WindowInvalid"},
		{`"holdfastInitialWindow":"soon"`, "holdfastInitialWindow", "WindowInvalid"},
		{`"holdfastResyncThreshold":7`, "threshold", "PolicyInvalid"},
		{`"holdfastInitialMode":"random"`, "initial replication mode", "PolicyInvalid"},
		{`"holdfastInitialPriority":99`, "priority", "PolicyInvalid"},
		{`"holdfastInitialPriority":"high"`, "holdfastInitialPriority", "InvalidRequestContent"},
		{`"holdfastCompression":"gzip"`, "compression", "PolicyInvalid"},
		{`"holdfastBandwidth":[{"window":"x","bytesPerSecond":1}]`, "holdfastBandwidth[0].window", "WindowInvalid"},
		{`"holdfastBandwidth":[{"window":"","bytesPerSecond":1}]`, "bandwidth rule 1", "PolicyInvalid"},
	} {
		a := r.do("PATCH", path, `{"properties":{"replicationProviderSettings":{`+tt.settings+`}}}`)
		if msg, _ := a.at("error.message").(string); a.Code != 400 || !strings.Contains(msg, tt.names) || a.at("error.code") != tt.code {
			t.Errorf("%s: %d %s", tt.settings, a.Code, a.Body)
		}
	}
}

func TestPauseResumeRetry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	at := r.clk.now().Add(time.Hour).Format(time.RFC3339)
	a := r.want(r.do("POST", item1+"/holdfast/pause", fmt.Sprintf(`{"properties":{"reason":"storage move","resumeAt":%q}}`, at)), 200, "pause")
	if a.at("properties.holdfastPaused") != true || a.at("properties.holdfastPauseReason") != "storage move" || a.at("properties.holdfastResumeAt") != at {
		t.Errorf("paused: %s", a.Body)
	}
	if a := r.do("POST", item1+"/holdfast/retryNow", ""); a.Code != 409 || a.at("error.code") != string(dr.CodeOperationNotAllowed) {
		t.Errorf("retry of a paused item: %d %s", a.Code, a.Body)
	}
	a = r.want(r.do("POST", item1+"/HOLDFAST/Resume", ""), 200, "resume")
	if a.at("properties.holdfastPaused") != false || a.at("properties.holdfastPauseReason") != nil {
		t.Errorf("resumed: %s", a.Body)
	}
	r.want(r.do("POST", item1+"/holdfast/retryNow", ""), 200, "retry")
	r.want(r.do("POST", item1+"/holdfast/pause", `{"properties":{"resumeAt":"2001-01-01T00:00:00Z"}}`), 400, "a pause that ends in the past")
	r.want(r.do("POST", item1+"/holdfast/pause", `{"properties":{"resumeAt":"tomorrow"}}`), 400, "a time that is none")
	for _, verb := range []string{"pause", "resume"} {
		r.want(r.as(dr.RoleOperator, "POST", item1+"/holdfast/"+verb, ""), 403, verb+" by an operator")
	}
	r.want(r.do("POST", item1+"/holdfast/explode", ""), 400, "an operation that does not exist")
	events := r.want(r.do("GET", item1+"/holdfast/events", ""), 200, "events")
	if events.at("value.0.kind") != "retryNow" || events.at("value.0.by") == nil || events.at("value.2.text") != "paused: true storage move" {
		t.Errorf("events: %s", events.Body)
	}
}

func TestResyncIsShown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	if a := r.do("GET", item1, ""); a.at("properties.holdfastResync") != nil || a.at("properties.holdfastReplication.convergence") != "" {
		t.Errorf("a healthy item: %s", a.Body)
	}
	id, window := r.itemID(), r.clk.now().Add(15*time.Hour)
	r.fake.SetItem(id, func(it *dr.ProtectedItem) { it.Resync = "the host crashed" })
	r.fake.SetDetail(id, func(d *vault.Detail) {
		d.ResyncCode, d.ResyncText, d.NextResync = dr.CodeHostCrash, "the host crashed", window
		d.Attempt, d.SentBytes = 3, 77
	})
	a := r.do("GET", item1, "")
	for path, want := range map[string]any{"state": "waiting", "code": string(dr.CodeHostCrash), "reason": "the host crashed", "nextWindow": window.Format(time.RFC3339)} {
		if got := a.at("properties.holdfastResync." + path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if a.at("properties.holdfastReplication.attempt") != 3.0 || a.at("properties.holdfastReplication.sentBytes") != 77.0 {
		t.Errorf("replication: %s", a.Body)
	}
	res := r.want(r.do("POST", item1+"/repairReplication", `{"properties":{"holdfastFull":true}}`), 202, "full resynchronization")
	if a := r.do("GET", item1, ""); a.at("properties.holdfastResyncReason") != "asked for by owner@test, in full" {
		t.Errorf("full: %s", a.Body)
	}
	r.clk.add(2 * step)
	if a := r.follow(res.Header().Get("Location")); a.Code != 200 {
		t.Errorf("result: %d", a.Code)
	}
}

func TestDisks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.fake.SetItem(r.itemID(), func(it *dr.ProtectedItem) { it.Disks = []string{"vda"} })
	r.fake.SetDetail(r.itemID(), func(d *vault.Detail) { d.NewDisks = []string{"vdb"} })
	a := r.do("GET", item1, "")
	if a.at("properties.holdfastDisks.1.undecided") != true || a.at("properties.holdfastDisks.1.replicated") != false || a.at("properties.holdfastDisks.0.replicated") != true {
		t.Errorf("disks: %s", a.Body)
	}
	body := func(disks string) string {
		return `{"properties":{"providerSpecificDetails":{"instanceType":"HyperVReplicaAzure","holdfastDisks":[` + disks + `]}}}`
	}
	if a = r.ok("POST", item1+"/addDisks", body(`"vdb"`)); a.at("properties.holdfastDisks.1.replicated") != true {
		t.Errorf("added: %s", a.Body)
	}
	if a = r.ok("POST", item1+"/removeDisks", body(`"vda"`)); a.at("properties.holdfastDisks.0.replicated") != false {
		t.Errorf("removed: %s", a.Body)
	}
	for what, tt := range map[string]struct{ path, body string }{
		"the last disk": {"/removeDisks", body(`"vdb"`)}, "unknown": {"/addDisks", body(`"vdz"`)}, "none": {"/addDisks", body(``)},
		"of another kind of site": {"/addDisks", `{"properties":{"providerSpecificDetails":{"instanceType":"A2A"}}}`},
	} {
		r.want(r.do("POST", item1+tt.path, tt.body), 400, what)
	}
}

func TestPointsAreNamedAndHeld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	path, _ := r.do("GET", item1+"/recoveryPoints", "").at("value.0.id").(string)
	a := r.want(r.do("PATCH", path, `{"properties":{"holdfastName":"before the upgrade","holdfastHeld":true}}`), 200, "name")
	if a.at("properties.holdfastName") != "before the upgrade" || a.at("properties.holdfastHeld") != true {
		t.Errorf("named: %s", a.Body)
	}
	a = r.want(r.do("PATCH", path, `{"properties":{"holdfastHeld":false}}`), 200, "release")
	if a.at("properties.holdfastName") != "before the upgrade" || a.at("properties.holdfastHeld") != false {
		t.Errorf("what is not sent stays: %s", a.Body)
	}
	r.want(r.do("PATCH", item1+"/recoveryPoints/"+dr.PointName(9, 9), `{"properties":{"holdfastHeld":true}}`), 404, "a point that does not exist")
	r.want(r.do("PATCH", path, `{"properties":{"holdfastName":"`+strings.Repeat("x", 101)+`"}}`), 400, "a name that is too long")
	r.want(r.as(dr.RoleReader, "PATCH", path, `{}`), 403, "a reader")

	r.fake.SetDetail(r.itemID(), func(d *vault.Detail) {
		d.Anomaly = &vault.Anomaly{Since: dr.PointName(1, 0), Good: dr.PointName(1, 0), Why: "98 % of 3 GiB can't be compressed", Raised: r.clk.now()}
	})
	if a := r.do("GET", item1, ""); a.at("properties.holdfastAnomaly.why") == nil {
		t.Errorf("anomaly: %s", a.Body)
	}
	if a := r.do("GET", path, ""); a.at("properties.holdfastSuspect") != true {
		t.Errorf("suspect point: %s", a.Body)
	}
	if a := r.want(r.do("POST", item1+"/holdfast/acknowledgeAnomaly", ""), 200, "acknowledge"); a.at("properties.holdfastAnomaly") != nil {
		t.Errorf("acknowledged: %s", a.Body)
	}
}

func TestUpkeep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	r.clk.add(5 * time.Minute)
	a := r.want(r.do("GET", item1+"/holdfast/maintenance", ""), 200, "status")
	if a.at("passError.errorCode") != string(dr.CodeCompactorConflict) || a.at("passError.recommendedAction") == "" || a.at("passError.holdfastEvidence") == nil || a.at("damaged.0.text") == nil || a.at("nextScrub") == nil {
		t.Errorf("status: %s", a.Body)
	}
	a = r.want(r.do("GET", item1+"/holdfast/maintenancePlan", ""), 200, "plan")
	if a.at("expiring") != 1.0 || a.at("points.0.expires") != true || a.at("points.1.keptBy") != "fine" {
		t.Errorf("plan: %s", a.Body)
	}
	r.ok("POST", item1+"/holdfast/maintain", "")
	r.ok("POST", item1+"/holdfast/scrub", "")
	r.want(r.as(dr.RoleReader, "POST", item1+"/holdfast/scrub", ""), 403, "a reader")
}

func TestConsistencyGroups(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.protect()
	groups := r.vault() + "/holdfast/consistencyGroups"
	path := groups + "/Shop"
	if a := r.want(r.do("GET", groups, ""), 200, "none"); fmt.Sprint(a.at("value")) != "[]" {
		t.Errorf("groups: %s", a.Body)
	}
	r.want(r.do("GET", path, ""), 404, "a group that does not exist")
	a := r.want(r.do("PUT", path, fmt.Sprintf(`{"properties":{"items":[%q]}}`, r.vault()+item1)), 200, "create")
	if id, _ := a.at("id").(string); a.at("properties.itemIds.0") != r.vault()+item1 || a.at("name") != "Shop" || id != path {
		t.Errorf("created: %s", a.Body)
	}
	if it := r.do("GET", item1, ""); it.at("properties.holdfastGroupId") != a.at("properties.groupId") {
		t.Errorf("the item does not name its group: %s", it.Body)
	}
	points := r.want(r.do("GET", groups+"/SHOP/Points", ""), 200, "points")
	if points.at("value.0.complete") != true || points.at("value.0.points."+string(r.itemID())) == nil {
		t.Errorf("points: %s", points.Body)
	}
	r.want(r.do("PUT", path, `{"properties":{"items":["nobody"]}}`), 400, "an unknown member")
	if a := r.want(r.do("PUT", path, `{"properties":{"items":[]}}`), 200, "empty"); fmt.Sprint(a.at("properties.itemIds")) != "[]" {
		t.Errorf("emptied: %s", a.Body)
	}
	r.want(r.as(dr.RoleOperator, "DELETE", path, ""), 403, "an operator")
	r.want(r.do("DELETE", path, ""), 204, "delete")
	r.want(r.do("DELETE", path, ""), 204, "delete again")
}

func TestCatalogueAndSeeds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.want(r.do("GET", r.vault()+"/holdfast/errors", ""), 200, "catalogue")
	all, _ := a.at("value").([]any)
	if len(all) != len(dr.Catalogue()) {
		t.Errorf("%d entries, want %d", len(all), len(dr.Catalogue()))
	}
	for _, x := range all {
		for _, field := range []string{"code", "chapter", "title", "cause", "evidence", "remedy"} {
			if e, _ := x.(map[string]any); e[field] == "" || e[field] == nil {
				t.Errorf("%v has no %s", e["code"], field)
			}
		}
	}
	if a := r.want(r.do("GET", r.vault()+"/holdfast/seeds", ""), 200, "seeds"); a.at("value.0.vmName") != "web01" || a.at("value.0.disks.0.diskId") != "vda" {
		t.Errorf("seeds: %s", a.Body)
	}
	r.want(r.do("GET", r.vault()+"/holdfast/nothing", ""), 404, "an unknown type")
	jobs := r.do("GET", "/replicationJobs?$filter="+url.QueryEscape("JobName eq 'Scrub'"), "")
	r.want(jobs, 200, "jobs")
}
