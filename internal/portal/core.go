package portal

import (
	"bytes"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// core is what all pages share.
type core struct {
	cfg       Config
	v         Vault
	assets    *assets
	templates map[string]*template.Template
	limit     *limiter
	streams   chan struct{} // one token per open event stream
}

// request is a request of a signed-in user. problem and status are set when a
// page is shown again because the change that was asked for did not happen.
type request struct {
	*http.Request
	who     vault.Principal
	problem *problem
	status  int
}

type handler func(w http.ResponseWriter, r *request) error

// page is a page that needs a signed-in user of at least a role.
func (c *core) page(role dr.Role, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		hr.Body = http.MaxBytesReader(w, hr.Body, 64<<10)
		r := &request{Request: hr, status: http.StatusOK}
		who, err := c.session(hr)
		switch k := dr.KindOf(err); {
		case err == nil:
		case k == dr.KindUnauthenticated || k == dr.KindNotFound:
			c.askSignIn(w, hr)
			return
		default: // the session is not over because the vault can't be asked
			c.fail(w, r, err)
			return
		}
		r.who = who
		if err = allow(who, role); err == nil {
			err = h(w, r)
		}
		if err != nil {
			c.fail(w, r, err)
		}
	})
}

func allow(who vault.Principal, want dr.Role) error {
	if who.Role.Includes(want) {
		return nil
	}
	return dr.Errorf(dr.KindForbidden, "portal", "%s has the role %s; this needs the role %s", who.Name, who.Role, want).
		WithHint("Ask an owner of the vault for the role %s.", want)
}

func (c *core) session(r *http.Request) (vault.Principal, error) {
	cookie, err := r.Cookie(c.cookieName())
	if err != nil || cookie.Value == "" {
		return vault.Principal{}, dr.Errorf(dr.KindUnauthenticated, "portal", "nobody is signed in")
	}
	return c.v.Session(r.Context(), cookie.Value)
}

// askSignIn sends people to the sign-in page and afterwards back.
func (c *core) askSignIn(w http.ResponseWriter, r *http.Request) {
	to := "/portal/signin"
	if r.Method == http.MethodGet && r.URL.Path != "/portal" && r.URL.Path != "/portal/events" {
		to += "?next=" + url.QueryEscape(r.URL.RequestURI())
	}
	if r.Header.Get("HX-Request") != "" {
		w.Header().Set("HX-Redirect", to)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// view is what the frame around every page is made from; Body is the page's own.
type view struct {
	Title    string
	Kind     string // what the title names, e.g. "Protected item"
	Section  string // of the navigation
	Icon     string
	Crumbs   []crumb
	Topics   string // what the page follows: "job item/ID …"; empty = it stays as it is
	Who      vault.Principal
	Vault    vault.Identity
	URL      string
	Problem  *problem
	Started  *dr.Job // the job that the user has just started
	Body     any
	SignedIn bool
}

type crumb struct{ Name, URL string }

// Can reports whether the user has at least a role.
func (v view) Can(role string) bool { return v.Who.Role.Includes(dr.Role(role)) }

// Why says why a control is off for the user; empty if it is not.
func (v view) Why(role string) string {
	if v.Can(role) {
		return ""
	}
	return "Needs the role " + role + "; you are " + string(v.Who.Role)
}

// render writes a page. Nothing is sent before all of it has been made.
func (c *core) render(w http.ResponseWriter, r *request, name string, v view) error {
	v.Who, v.Vault, v.Problem, v.SignedIn = r.who, c.v.Identity(), r.problem, r.who.Name != ""
	if v.URL == "" {
		v.URL = r.URL.RequestURI()
	}
	if id := r.URL.Query().Get("job"); id != "" && r.Method == http.MethodGet {
		if j, err := c.v.Job(r.Context(), dr.JobID(id)); err == nil {
			v.Started = &j
		}
	}
	var b bytes.Buffer
	if err := c.templates[name].ExecuteTemplate(&b, "layout", v); err != nil {
		return dr.Errorf(dr.KindInternal, "portal.render", "make page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(r.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.Bytes()) // the browser has gone
	}
	return nil
}

// again shows a page with what went wrong; the page is the one that the user
// came from.
func (c *core) again(w http.ResponseWriter, r *request, err error, show handler) error {
	if k := dr.KindOf(err); k == dr.KindInternal || k == dr.KindUnavailable {
		c.cfg.Log.Warn("portal: operation failed", "path", r.URL.Path, "user", r.who.Name, "err", err)
	}
	r.problem, r.status = problemOf(err), statusOf(err)
	return show(w, r)
}

// fail shows an error as a page of its own.
func (c *core) fail(w http.ResponseWriter, r *request, err error) {
	if r.Context().Err() != nil {
		return // nobody reads it
	}
	if k := dr.KindOf(err); k == dr.KindInternal || k == dr.KindUnavailable {
		c.cfg.Log.Warn("portal: page failed", "path", r.URL.Path, "user", r.who.Name, "err", err)
	}
	if r.Header.Get("HX-Request") != "" {
		w.Header().Set("HX-Reswap", "none") // what is on the screen is better than an error page in its place
	}
	r.problem, r.status = nil, statusOf(err)
	if err2 := c.render(w, r, "error", view{Title: "Something went wrong", Icon: "warning", Body: problemOf(err)}); err2 != nil {
		c.cfg.Log.Error("portal: error page failed", "err", err2)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
	}
}

func (c *core) missing(http.ResponseWriter, *request) error {
	return dr.New(dr.KindNotFound, dr.CodeNotFound, "portal", "there is no such page").WithHint("Start from the overview.")
}

// done sends the browser on after a change, to where its job is announced.
func (c *core) done(w http.ResponseWriter, r *request, to string, job dr.JobID) error {
	if job != "" {
		to += "?job=" + url.QueryEscape(string(job))
	}
	http.Redirect(w, r.Request, to, http.StatusSeeOther)
	return nil
}

// problem is an error for people.
type problem struct {
	Title, Message, Cause, Remedy string
	Code                          dr.Code
}

var problemTitles = map[dr.Kind]string{
	dr.KindInternal: "Something went wrong", dr.KindInvalid: "Please check what was entered", dr.KindNotFound: "Not found", dr.KindConflict: "Not possible: conflict",
	dr.KindUnauthenticated: "Sign in failed", dr.KindForbidden: "Not allowed", dr.KindFenced: "Fenced", dr.KindPrecondition: "Not possible now",
	dr.KindUnsupported: "Not supported", dr.KindUnavailable: "The vault could not be asked", dr.KindExhausted: "Out of space or throttled", dr.KindCorrupt: "Damaged data", dr.KindCanceled: "Cancelled",
}

// problemOf explains an error by the catalogue.
func problemOf(err error) *problem {
	p := &problem{Title: problemTitles[dr.KindOf(err)], Message: sentence(err.Error()), Remedy: sentence(dr.HintOf(err)), Code: dr.CodeOf(err)}
	if e, ok := dr.Lookup(p.Code); ok {
		p.Title, p.Cause = e.Title, e.Cause
	}
	if p.Remedy == "" && dr.KindOf(err) == dr.KindInternal {
		p.Remedy = "Try again. If it stays, look into the vault's log."
	}
	return p
}

// explain makes a problem of an error that was stored.
func explain(code dr.Code, message, cause, remedy string) *problem {
	p := &problem{Title: "Error", Message: sentence(message), Cause: cause, Remedy: sentence(remedy), Code: code}
	e, ok := dr.Lookup(code)
	if !ok {
		return p
	}
	p.Title = e.Title
	if p.Cause == "" {
		p.Cause = e.Cause
	}
	if p.Remedy == "" {
		p.Remedy = e.Remedy
	}
	return p
}

// statusOf is the status of a page that shows an error.
func statusOf(err error) int {
	switch dr.KindOf(err) {
	case dr.KindInvalid:
		return http.StatusBadRequest
	case dr.KindNotFound:
		return http.StatusNotFound
	case dr.KindUnauthenticated:
		return http.StatusUnauthorized
	case dr.KindForbidden:
		return http.StatusForbidden
	case dr.KindConflict, dr.KindPrecondition, dr.KindFenced, dr.KindCanceled:
		return http.StatusConflict
	case dr.KindUnsupported:
		return http.StatusUnprocessableEntity
	case dr.KindUnavailable, dr.KindExhausted:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// sentence makes a sentence of an error text.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	if head := s[:1]; strings.ContainsAny(s[:min(len(s), 12)], " ") && head >= "a" && head <= "z" {
		s = strings.ToUpper(head) + s[1:]
	}
	if !strings.ContainsAny(s[len(s)-1:], ".!?)") {
		s += "."
	}
	return s
}

func (c *core) now() time.Time { return c.cfg.Now() }
