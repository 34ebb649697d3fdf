package armapi

import (
	"net/http"
	"strings"

	"holdfast/internal/armapi/item"
	"holdfast/internal/armapi/jobs"
	"holdfast/internal/armapi/route"
	"holdfast/internal/armapi/site"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// serveExtension answers /holdfast/v1/…, the part of the API that is the vault's own:
//
//	GET  health                                 no token; {"status":"ok"}
//	POST fabrics/{name}/registrationKeys        the key file (XML); Contributor
//	GET  items, items/{id or name}              summaries; Reader
//	GET  jobs/{id}/screenshot                   PNG; Reader
func (s *Server) serveExtension(w http.ResponseWriter, r *http.Request, parts []string) error {
	lower := strings.Split(strings.ToLower(strings.Join(parts, "\x00")), "\x00")[2:]
	if len(lower) == 1 && lower[0] == "health" && r.Method == http.MethodGet {
		route.WriteJSON(w, http.StatusOK, map[string]any{"status": "ok", "version": s.cfg.Version, "time": s.cfg.Now().UTC()})
		return nil
	}
	who, err := s.authenticate(r)
	if err != nil {
		return err
	}
	c := route.NewCall(&s.env, r, who, armwire.APIVersion)
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
		role, do = dr.RoleContributor, func() error { return site.WriteKeyFile(c, w, parts[3]) }
	case is(http.MethodGet, "items"):
		do = func() error { return answer(w)(item.Summaries(c)) }
	case is(http.MethodGet, "items", "*"):
		do = func() error { return answer(w)(item.Summary(c, parts[3])) }
	case is(http.MethodGet, "jobs", "*", "screenshot"):
		do = func() error { return jobs.WriteScreenshot(c, w, dr.JobID(lower[1])) }
	default:
		return dr.New(dr.KindNotFound, route.CodeUnknownType, "armapi.extension", "%s %s does not exist", r.Method, route.Clip(r.URL.Path))
	}
	if err := route.Allow(who, role); err != nil {
		return err
	}
	return do()
}

// answer writes a reply that is no job.
func answer(w http.ResponseWriter) func(route.Reply, error) error {
	return func(rep route.Reply, err error) error {
		if err == nil {
			route.WriteJSON(w, rep.Status, rep.Body)
		}
		return err
	}
}
