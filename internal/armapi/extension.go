package armapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Screenshots is what a Service may offer beyond Service: the console pictures
// of failover jobs.
type Screenshots interface {
	// Screenshot returns a PNG, KindNotFound if the job has none.
	Screenshot(ctx context.Context, job dr.JobID) ([]byte, error)
}

// serveExtension answers /holdfast/v1/…, the part of the API that is the vault's own:
//
//	GET  health                                 no token; {"status":"ok"}
//	POST fabrics/{name}/registrationKeys        the key file (XML); Contributor
//	GET  items, items/{id or name}              summaries; Reader
//	GET  jobs/{id}/screenshot                   PNG; Reader
func (s *Server) serveExtension(w http.ResponseWriter, r *http.Request, parts []string) error {
	lower := strings.Split(strings.ToLower(strings.Join(parts, "\x00")), "\x00")[2:]
	if len(lower) == 1 && lower[0] == "health" && r.Method == http.MethodGet {
		writeJSON(w, http.StatusOK, map[string]any{"status": "ok", "version": s.cfg.Version, "time": s.cfg.Now().UTC()})
		return nil
	}
	who, err := s.authenticate(r)
	if err != nil {
		return err
	}
	c := s.newCall(r, who)
	is := func(method string, pattern ...string) bool {
		if r.Method != method || len(lower) != len(pattern) {
			return false
		}
		for i, p := range pattern {
			if p != "*" && p != lower[i] {
				return false
			}
		}
		return true
	}
	role, do := dr.RoleReader, (func() error)(nil)
	switch {
	case is(http.MethodPost, "fabrics", "*", "registrationkeys"):
		role, do = dr.RoleContributor, func() error { return c.issueKeyFile(w, parts[3]) }
	case is(http.MethodGet, "items"):
		do = func() error { return c.listSummaries(w) }
	case is(http.MethodGet, "items", "*"):
		do = func() error { return c.writeSummary(w, parts[3]) }
	case is(http.MethodGet, "jobs", "*", "screenshot"):
		do = func() error { return c.writeScreenshot(w, dr.JobID(lower[1])) }
	default:
		return dr.New(dr.KindNotFound, codeUnknownType, "armapi.extension", "%s %s does not exist", r.Method, clip(r.URL.Path))
	}
	if err := allow(who, role); err != nil {
		return err
	}
	return do()
}

// issueKeyFile answers with the file itself; its key id and expiry are in headers.
func (c *call) issueKeyFile(w http.ResponseWriter, fabric string) error {
	var in struct {
		OneTime       bool `json:"oneTime"`
		ValidityHours int  `json:"validityHours"`
	}
	if err := c.body(&in); err != nil {
		return err
	}
	life, err := validity(in.ValidityHours)
	if err != nil {
		return err
	}
	f, err := c.svc().Fabric(c.ctx(), fabric)
	if err != nil {
		return err
	}
	file, key, err := c.credential(f.Name, in.OneTime, life)
	if err != nil {
		return err
	}
	b, err := file.Encode()
	if err != nil {
		return dr.Errorf(dr.KindInternal, "armapi.issueKey", "make the key file of site %q: %w", f.Name, err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/xml; charset=utf-8")
	h.Set("Content-Disposition", "attachment; filename="+strconv.QuoteToASCII(file.FileName(c.now())))
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("Holdfast-Key-Id", key.ID)
	h.Set("Holdfast-Key-Expires", key.Expires.UTC().Format(time.RFC3339))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(b) // the client is gone; the key can be revoked by its id
	return nil
}

func (c *call) summary(it dr.ProtectedItem) (armwire.ItemSummary, error) {
	x, err := c.facts(it)
	if err != nil {
		return armwire.ItemSummary{}, err
	}
	points, err := c.svc().Points(c.ctx(), it.ID)
	if err != nil && dr.KindOf(err) != dr.KindNotFound {
		return armwire.ItemSummary{}, err
	}
	state, _ := protectionState(it.Protection, it.Failover)
	test, _ := testFailoverState(it.Test)
	s := armwire.ItemSummary{
		ID: string(it.ID), Name: it.Name, VMName: it.VMName, ResourceID: c.itemID(x.fabric, it.Name), ProtectionState: state, Health: health(it.Health),
		ActiveLocation: firstNonEmpty(string(it.Active), string(dr.AtPrimary)), TestFailoverState: test, AllowedOperations: x.allowed, CurrentJob: string(it.Job), ResyncReason: it.Resync,
		Replication: c.replication(it, x.status), Points: len(points), LastTest: armwire.Time(it.LastTest), LastTestReport: report(it.LastTestReport),
	}
	for _, e := range it.HealthErrors {
		s.HealthMessages = append(s.HealthMessages, e.Message)
	}
	for _, p := range points {
		s.StoredBytes += p.StoredBytes
	}
	if n := len(points); n > 0 {
		s.NewestPoint, s.OldestPoint, s.NewestPointTime = points[0].Name(), points[n-1].Name(), armwire.Time(points[0].Time)
	}
	return s, nil
}

func (c *call) listSummaries(w http.ResponseWriter) error {
	items, err := c.svc().Items(c.ctx(), "")
	if err != nil {
		return err
	}
	rep, err := page(c, items, func(it dr.ProtectedItem) string { return string(it.ID) }, c.summary)
	if err != nil {
		return err
	}
	return c.s.finish(w, c, rep)
}

// writeSummary finds an item by its id or, if that is unambiguous, by its name or its VM's name.
func (c *call) writeSummary(w http.ResponseWriter, ref string) error {
	items, err := c.svc().Items(c.ctx(), "")
	if err != nil {
		return err
	}
	var found []dr.ProtectedItem
	for _, it := range items {
		if strings.EqualFold(string(it.ID), ref) {
			found = []dr.ProtectedItem{it}
			break
		}
		if strings.EqualFold(it.Name, ref) || strings.EqualFold(it.VMName, ref) {
			found = append(found, it)
		}
	}
	switch len(found) {
	case 0:
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi.summary", "protected item %q does not exist", clip(ref))
	case 1:
	default:
		return dr.Errorf(dr.KindInvalid, "armapi.summary", "%d protected items are called %q; use the item's id", len(found), clip(ref))
	}
	s, err := c.summary(found[0])
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, s)
	return nil
}

func (c *call) writeScreenshot(w http.ResponseWriter, job dr.JobID) error {
	shots, ok := c.svc().(Screenshots)
	if !ok {
		return dr.Errorf(dr.KindUnsupported, "armapi.screenshot", "this vault keeps no screenshots")
	}
	png, err := shots.Screenshot(c.ctx(), job)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "image/png")
	w.Header().Set("Content-Length", strconv.Itoa(len(png)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(png) // the client is gone; there is nobody to tell
	return nil
}
