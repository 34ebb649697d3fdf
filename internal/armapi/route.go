package armapi

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Type segments of paths, spelled as they are sent out.
const (
	tFabrics    = "replicationFabrics"
	tProviders  = "replicationRecoveryServicesProviders"
	tContainers = "replicationProtectionContainers"
	tVMs        = "replicationProtectableItems"
	tItems      = "replicationProtectedItems"
	tPoints     = "recoveryPoints"
	tMappings   = "replicationProtectionContainerMappings"
	tPolicies   = "replicationPolicies"
	tJobs       = "replicationJobs"
	tOperations = "replicationOperationStatus"
	tResults    = "operationresults"
	tCerts      = "certificates"
	tExtended   = "extendedInformation"
	tHealth     = "replicationVaultHealth"
)

// reply is what a handler answers: a body with a status, or a job that carries
// the change out.
type reply struct {
	status int
	body   any
	job    dr.JobID
	target string // id of the resource that the job is about
}

func ok(body any) (reply, error) { return reply{status: http.StatusOK, body: body}, nil }

// started is the answer to a change: the job and what it changes.
func started(job dr.JobID, err error, target string) (reply, error) {
	return reply{job: job, target: target}, err
}

// route is one operation: who may do it, and how.
type route struct {
	role   dr.Role
	handle func(*call) (reply, error)
}

// routes is the table of operations: "VERB types" for a named resource,
// "VERB types[]" for a collection, "POST types:action" for an action; types in
// lower case. GET routes of named resources also answer operationresults.
func routes() map[string]route {
	const (
		read, operate, configure = dr.RoleReader, dr.RoleOperator, dr.RoleContributor
	)
	t := map[string]route{}
	add := func(verb string, role dr.Role, h func(*call) (reply, error), suffix string, types ...string) {
		t[verb+" "+strings.ToLower(strings.Join(types, "/")+suffix)] = route{role, h}
	}
	fabric, container := []string{tFabrics}, []string{tFabrics, tContainers}
	under := func(parent []string, t string) []string { return append(parent[:len(parent):len(parent)], t) }

	add("GET", read, getVault, "")
	add("PUT", configure, putVault, "")
	add("PATCH", configure, putVault, "")
	add("PUT", configure, putCertificate, "", tCerts)
	add("GET", operate, getExtendedInfo, "", tExtended) // it holds a key that readers have no use for
	add("PUT", configure, putExtendedInfo, "", tExtended)
	add("PATCH", configure, putExtendedInfo, "", tExtended)
	add("GET", read, getUsages, "[]", "usages")
	add("GET", read, getReplicationUsages, "[]", "replicationUsages")
	add("GET", read, getVaultHealth, "[]", tHealth)
	add("GET", read, getVaultHealth, "", tHealth)
	add("POST", operate, getVaultHealth, ":refresh", tHealth)

	add("GET", read, listFabrics, "[]", tFabrics)
	add("GET", read, getFabric, "", tFabrics)
	add("PUT", configure, putFabric, "", tFabrics)
	add("DELETE", configure, removeFabric, "", tFabrics)
	add("POST", configure, removeFabric, ":remove", tFabrics)
	add("POST", operate, checkConsistency, ":checkConsistency", tFabrics)

	providers := under(fabric, tProviders)
	add("GET", read, listProviders, "[]", tProviders)
	add("GET", read, listProviders, "[]", providers...)
	add("GET", read, getProvider, "", providers...)
	add("DELETE", configure, removeProvider, "", providers...)
	add("POST", configure, removeProvider, ":remove", providers...)
	add("POST", operate, refreshProvider, ":refreshProvider", providers...)

	vms := under(container, tVMs)
	add("GET", read, listContainers, "[]", tContainers)
	add("GET", read, listContainers, "[]", container...)
	add("GET", read, getContainer, "", container...)
	add("GET", read, listVMs, "[]", vms...)
	add("GET", read, getVM, "", vms...)

	add("GET", read, listPolicies, "[]", tPolicies)
	add("GET", read, getPolicy, "", tPolicies)
	add("PUT", configure, putPolicy, "", tPolicies)
	add("PATCH", configure, patchPolicy, "", tPolicies)
	add("DELETE", configure, removePolicy, "", tPolicies)

	mappings := under(container, tMappings)
	add("GET", read, listMappings, "[]", tMappings)
	add("GET", read, listMappings, "[]", mappings...)
	add("GET", read, getMapping, "", mappings...)
	add("PUT", configure, putMapping, "", mappings...)
	add("DELETE", configure, removeMapping, "", mappings...)
	add("POST", configure, removeMapping, ":remove", mappings...)

	items := under(container, tItems)
	add("GET", read, listItems, "[]", tItems)
	add("GET", read, listItems, "[]", items...)
	add("GET", read, getItem, "", items...)
	add("PUT", configure, enableItem, "", items...)
	add("PATCH", configure, updateItem, "", items...)
	add("DELETE", configure, disableItem, "", items...)
	add("POST", configure, disableItem, ":remove", items...)
	add("POST", operate, testFailover, ":testFailover", items...)
	add("POST", operate, cleanupTest, ":testFailoverCleanup", items...)
	add("POST", operate, plannedFailover, ":plannedFailover", items...)
	add("POST", operate, unplannedFailover, ":unplannedFailover", items...)
	add("POST", operate, commitFailover, ":failoverCommit", items...)
	add("POST", operate, cancelFailover, ":failoverCancel", items...)
	add("POST", operate, applyPoint, ":applyRecoveryPoint", items...)
	add("POST", operate, repairReplication, ":repairReplication", items...)
	add("POST", operate, resolveHealthErrors, ":resolveHealthErrors", items...)
	add("POST", operate, reprotect, ":reProtect", items...)
	points := under(items, tPoints)
	add("GET", read, listPoints, "[]", points...)
	add("GET", read, getPoint, "", points...)

	add("GET", read, listJobs, "[]", tJobs)
	add("GET", read, getJob, "", tJobs)
	add("POST", operate, cancelJob, ":cancel", tJobs)
	add("POST", operate, restartJob, ":restart", tJobs)
	add("POST", operate, resumeJob, ":resume", tJobs)
	add("GET", read, getOperation, "", tOperations)
	add("GET", read, getOperation, "", "operationStatus")
	return t
}

// emptyLists are collections which clients ask for and which this vault does not
// have; everything else whose name starts with "replication" is treated alike.
var emptyLists = map[string]bool{
	"migrationrecoverypoints": true, "clusterrecoverypoints": true, "targetcomputesizes": true,
	"privateendpointconnections": true, "privatelinkresources": true, "registeredidentities": true,
}

// knownType reports whether t is a type of the API, served or not.
func knownType(t string) bool {
	t = strings.ToLower(t)
	return strings.HasPrefix(t, "replication") || emptyLists[t]
}

// serveVault answers everything at and below …/vaults/{name}.
func (s *Server) serveVault(w http.ResponseWriter, c *call) error {
	id, err := armwire.ParseID(c.r.URL.EscapedPath())
	if err != nil {
		return dr.New(dr.KindNotFound, codeUnknownType, "armapi", "%v", err)
	}
	if err := c.checkVault(id); err != nil {
		return err
	}
	key := c.parse(id)
	rt, found := s.routes[key]
	if !found {
		rep, err := s.fallback(c)
		if err != nil {
			return err
		}
		return s.finish(w, c, rep)
	}
	if err := allow(c.who, rt.role); err != nil {
		return err
	}
	if c.result != "" {
		return s.operationResult(w, c, rt)
	}
	rep, err := rt.handle(c)
	if err != nil {
		return err
	}
	return s.finish(w, c, rep)
}

// checkVault refuses ids of another subscription, group or vault.
func (c *call) checkVault(id armwire.ResourceID) error {
	switch {
	case !strings.EqualFold(id.SubscriptionID, c.ident.SubscriptionID):
		return dr.New(dr.KindNotFound, codeNoSubscription, "armapi", "subscription %q does not exist here", clip(id.SubscriptionID))
	case !strings.EqualFold(id.ResourceGroup, c.ident.ResourceGroup):
		return dr.New(dr.KindNotFound, codeNoGroup, "armapi", "resource group %q does not exist here", clip(id.ResourceGroup))
	case !strings.EqualFold(id.Vault, c.ident.Name):
		if c.r.Method == http.MethodPut && len(id.Segments) == 0 {
			return dr.New(dr.KindUnsupported, codeNotSupported, "armapi", "vault %q can't be created: this endpoint serves exactly one vault, %q", clip(id.Vault), c.ident.Name)
		}
		return dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "vault %q does not exist here; this endpoint serves %q", clip(id.Vault), c.ident.Name)
	}
	return nil
}

// parse takes action and operationresults off the path and returns the route's key.
func (c *call) parse(id armwire.ResourceID) string {
	suffix := ""
	if n := len(id.Segments); n > 0 {
		last := id.Segments[n-1]
		switch {
		case last.Name != "" && strings.EqualFold(last.Type, tResults) && c.r.Method == http.MethodGet:
			c.result, id.Segments = dr.JobID(strings.ToLower(last.Name)), id.Segments[:n-1]
		case last.Name == "" && c.r.Method == http.MethodPost:
			c.action, id.Segments, suffix = last.Type, id.Segments[:n-1], ":"+strings.ToLower(last.Type)
		case last.Name == "":
			suffix = "[]"
		}
	}
	c.id = id
	return c.r.Method + " " + id.Types() + suffix
}

// fallback answers what the table does not have.
func (s *Server) fallback(c *call) (reply, error) {
	n := len(c.id.Segments)
	if n == 0 {
		return reply{}, dr.New(dr.KindUnsupported, codeNotSupported, "armapi", "%s of the vault is not supported", c.verb())
	}
	last := c.id.Segments[n-1]
	if !knownType(last.Type) && s.routes["GET "+c.id.Types()].handle == nil && s.routes["PUT "+c.id.Types()].handle == nil {
		return reply{}, dr.New(dr.KindNotFound, codeUnknownType, "armapi", "resource type %q does not exist", clip(c.id.Types()))
	}
	if err := s.parentExists(c); err != nil {
		return reply{}, err
	}
	switch {
	case c.r.Method == http.MethodGet && last.Name == "":
		if err := allow(c.who, dr.RoleReader); err != nil {
			return reply{}, err
		}
		return ok(armwire.List[struct{}]{Value: []struct{}{}})
	case c.r.Method == http.MethodGet:
		return reply{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "armapi", "%s %q does not exist", last.Type, clip(last.Name))
	}
	return reply{}, dr.New(dr.KindUnsupported, codeNotSupported, "armapi", "%s of %s is not supported by this vault", c.verb(), last.Type)
}

func (c *call) verb() string {
	if c.action != "" {
		return c.r.Method + " " + clip(c.action)
	}
	return c.r.Method
}

// parentExists makes sure that an empty list is not told of a parent that does not exist.
func (s *Server) parentExists(c *call) error {
	n := len(c.id.Segments)
	if n < 2 {
		return nil
	}
	parent := *c
	parent.id.Segments = c.id.Segments[:n-1]
	rt, ok := s.routes["GET "+parent.id.Types()]
	if !ok {
		return nil
	}
	_, err := rt.handle(&parent)
	return err
}

// finish writes a reply: a body, or 202 with both headers of a long-running operation.
func (s *Server) finish(w http.ResponseWriter, c *call, rep reply) error {
	switch {
	case rep.status == http.StatusNoContent:
		w.WriteHeader(rep.status)
	case rep.status != 0:
		writeJSON(w, rep.status, rep.body)
	case rep.job == "": // done at once, without a job
		return s.finishNow(w, c)
	default:
		s.accepted(w, c, rep.job, rep.target)
	}
	return nil
}

// finishNow answers a change that needed no job with the state after it.
func (s *Server) finishNow(w http.ResponseWriter, c *call) error {
	rt, found := s.routes["GET "+c.id.Types()]
	if !found || c.r.Method == http.MethodDelete || strings.EqualFold(c.action, "remove") {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	after := *c
	after.dir = &directory{c: &after}
	rep, err := rt.handle(&after)
	if err != nil {
		return err
	}
	return s.finish(w, c, rep)
}

// accepted sends 202. Clients differ in which of the two headers they poll, and
// one cuts the job id out of Location between "operationresults/" and "?".
func (s *Server) accepted(w http.ResponseWriter, c *call, job dr.JobID, target string) {
	query := "?api-version=" + c.version
	h := w.Header()
	h.Set("Location", c.base+escapeID(target)+"/"+tResults+"/"+string(job)+query)
	h.Set("Azure-AsyncOperation", c.base+escapeID(c.vaultID().ID(tOperations, string(job)))+query)
	s.retryAfter(h)
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
}

func (s *Server) retryAfter(h http.Header) {
	h.Set("Retry-After", strconv.Itoa(max(1, int(s.cfg.RetryAfter.Seconds()))))
}

// operationResult answers {resource}/operationresults/{job}: 202 while the job
// runs, then the resource, or 204 if it is gone. A failed job is always a 400
// with the job's error, never a status that makes clients try again.
func (s *Server) operationResult(w http.ResponseWriter, c *call, rt route) error {
	job, err := c.svc().Job(c.ctx(), c.result)
	if err != nil {
		return err
	}
	switch status, failure := operationState(job); status {
	case armwire.OperationInProgress:
		s.accepted(w, c, job.ID, c.pathID())
		return nil
	case armwire.OperationSucceeded:
	default:
		w.Header().Set("x-ms-error-code", failure.Code)
		writeJSON(w, http.StatusBadRequest, armwire.ErrorBody{Error: *failure})
		return nil
	}
	rep, err := rt.handle(c)
	if err != nil && dr.KindOf(err) == dr.KindNotFound {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if err != nil {
		return err
	}
	return s.finish(w, c, rep)
}

// pathID is the id of the path's resource, as the client wrote it.
func (c *call) pathID() string {
	segs := make([]string, 0, 2*len(c.id.Segments))
	for _, s := range c.id.Segments {
		segs = append(segs, s.Type)
		if s.Name != "" {
			segs = append(segs, s.Name)
		}
	}
	if len(segs) == 0 {
		return c.vaultID().String()
	}
	return c.vaultID().ID(segs...)
}

// escapeID escapes the segments of an id for a URL.
func escapeID(id string) string {
	return (&url.URL{Path: id}).EscapedPath()
}
