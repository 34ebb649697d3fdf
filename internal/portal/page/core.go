package page

import (
	"bytes"
	"html/template"
	"net/http"
	"net/url"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
)

// Core is what all pages share. Safe for concurrent use.
type Core struct {
	Cfg       Config
	V         Vault
	assets    *assets
	templates map[string]*template.Template
	limit     *limiter
	streams   chan struct{} // one token per open event stream
}

// Request is a request of a signed-in user. Problem and Status are set when a
// page is shown again because the change that was asked for did not happen.
type Request struct {
	*http.Request
	Who     vault.Principal
	Problem *words.Problem
	Status  int
}

// Handler answers a request, or returns the error that is shown instead.
type Handler func(w http.ResponseWriter, r *Request) error

// Handle is a page that needs a signed-in user of at least a role.
func (c *Core) Handle(role dr.Role, h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		hr.Body = http.MaxBytesReader(w, hr.Body, 64<<10)
		r := &Request{Request: hr, Status: http.StatusOK}
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
		r.Who = who
		if err = Allow(who, role); err == nil {
			err = h(w, r)
		}
		if err != nil {
			c.fail(w, r, err)
		}
	})
}

// Allow refuses a user who lacks the role, with dr.KindForbidden.
func Allow(who vault.Principal, want dr.Role) error {
	if who.Role.Includes(want) {
		return nil
	}
	return dr.Errorf(dr.KindForbidden, "portal", "%s has the role %s; this needs the role %s", who.Name, who.Role, want).
		WithHint("Ask an owner of the vault for the role %s.", want)
}

func (c *Core) session(r *http.Request) (vault.Principal, error) {
	cookie, err := r.Cookie(c.cookieName())
	if err != nil || cookie.Value == "" {
		return vault.Principal{}, dr.Errorf(dr.KindUnauthenticated, "portal", "nobody is signed in")
	}
	return c.V.Session(r.Context(), cookie.Value)
}

// askSignIn sends people to the sign-in page and afterwards back.
func (c *Core) askSignIn(w http.ResponseWriter, r *http.Request) {
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

// View is what the frame around every page is made from; Body is the page's own.
type View struct {
	Title    string
	Kind     string // what the title names, e.g. "Protected item"
	Section  string // of the navigation
	Icon     string
	Crumbs   []Crumb
	Topics   string // what the page follows: "job item/ID …"; empty = it stays as it is
	Who      vault.Principal
	Vault    vault.Identity
	URL      string
	Problem  *words.Problem
	Started  *dr.Job // the job that the user has just started
	Body     any
	SignedIn bool
}

// Crumb is a step of the way to a page.
type Crumb struct{ Name, URL string }

// Can reports whether the user has at least a role.
func (v View) Can(role string) bool { return v.Who.Role.Includes(dr.Role(role)) }

// Why says why a control is off for the user; empty if it is not.
func (v View) Why(role string) string {
	if v.Can(role) {
		return ""
	}
	return "Needs the role " + role + "; you are " + string(v.Who.Role)
}

// Render writes a page. Nothing is sent before all of it has been made.
func (c *Core) Render(w http.ResponseWriter, r *Request, name string, v View) error {
	v.Who, v.Vault, v.Problem, v.SignedIn = r.Who, c.V.Identity(), r.Problem, r.Who.Name != ""
	if v.URL == "" {
		v.URL = r.URL.RequestURI()
	}
	if id := r.URL.Query().Get("job"); id != "" && r.Method == http.MethodGet {
		if j, err := c.V.Job(r.Context(), dr.JobID(id)); err == nil {
			v.Started = &j
		}
	}
	var b bytes.Buffer
	if err := c.templates[name].ExecuteTemplate(&b, "layout", v); err != nil {
		return dr.Errorf(dr.KindInternal, "portal.render", "make page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(r.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.Bytes()) // the browser has gone
	}
	return nil
}

// Again shows a page with what went wrong; the page is the one that the user
// came from.
func (c *Core) Again(w http.ResponseWriter, r *Request, err error, show Handler) error {
	if k := dr.KindOf(err); k == dr.KindInternal || k == dr.KindUnavailable {
		c.Cfg.Log.Warn("portal: operation failed", "path", r.URL.Path, "user", r.Who.Name, "err", err)
	}
	r.Problem, r.Status = words.ProblemOf(err), words.StatusOf(err)
	return show(w, r)
}

// fail shows an error as a page of its own.
func (c *Core) fail(w http.ResponseWriter, r *Request, err error) {
	if r.Context().Err() != nil {
		return // nobody reads it
	}
	if k := dr.KindOf(err); k == dr.KindInternal || k == dr.KindUnavailable {
		c.Cfg.Log.Warn("portal: page failed", "path", r.URL.Path, "user", r.Who.Name, "err", err)
	}
	if r.Header.Get("HX-Request") != "" {
		w.Header().Set("HX-Reswap", "none") // what is on the screen is better than an error page in its place
	}
	r.Problem, r.Status = nil, words.StatusOf(err)
	if err2 := c.Render(w, r, "error", View{Title: "Something went wrong", Icon: "warning", Body: words.ProblemOf(err)}); err2 != nil {
		c.Cfg.Log.Error("portal: error page failed", "err", err2)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
	}
}

// Missing answers for addresses that are no page.
func (c *Core) Missing(http.ResponseWriter, *Request) error {
	return dr.New(dr.KindNotFound, dr.CodeNotFound, "portal", "there is no such page").WithHint("Start from the overview.")
}

// Done sends the browser on after a change, to where its job is announced.
func (c *Core) Done(w http.ResponseWriter, r *Request, to string, job dr.JobID) error {
	if job != "" {
		to += "?job=" + url.QueryEscape(string(job))
	}
	http.Redirect(w, r.Request, to, http.StatusSeeOther)
	return nil
}

// Now is the portal's clock.
func (c *Core) Now() time.Time { return c.Cfg.Now() }
