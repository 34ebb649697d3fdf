package portal

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// accountPages are signing in and out.
type accountPages struct{ *core }

func (c *core) cookieName() string {
	if c.cfg.InsecureCookie {
		return "holdfast-session"
	}
	return "__Host-holdfast-session"
}

func (c *core) setCookie(w http.ResponseWriter, value string, age int) {
	http.SetCookie(w, &http.Cookie{Name: c.cookieName(), Value: value, Path: "/", MaxAge: age,
		Secure: !c.cfg.InsecureCookie, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// signInBody is the form; the password is never sent back.
type signInBody struct{ User, Next string }

// local keeps redirects inside the portal.
func local(next string) string {
	if (next == "/portal" || strings.HasPrefix(next, "/portal/")) && !strings.ContainsAny(next, "\\\r\n") && !strings.Contains(next, "//") {
		return next
	}
	return "/portal"
}

func (a accountPages) form(w http.ResponseWriter, hr *http.Request) {
	r := &request{Request: hr, status: http.StatusOK}
	next := local(hr.URL.Query().Get("next"))
	if _, err := a.session(hr); err == nil {
		http.Redirect(w, hr, next, http.StatusSeeOther)
		return
	}
	if err := a.render(w, r, "signin", view{Title: "Sign in", URL: "/portal/signin", Body: signInBody{Next: next}}); err != nil {
		a.fail(w, r, err)
	}
}

func (a accountPages) signIn(w http.ResponseWriter, hr *http.Request) {
	hr.Body = http.MaxBytesReader(w, hr.Body, 16<<10)
	r := &request{Request: hr, status: http.StatusOK}
	user, next := strings.TrimSpace(hr.PostFormValue("user")), local(hr.PostFormValue("next"))
	var session string
	err := a.limit.allow(user)
	if err == nil {
		session, _, err = a.v.Login(hr.Context(), user, hr.PostFormValue("password"))
	}
	if err == nil {
		a.limit.succeeded(user)
		a.setCookie(w, session, int(vault.SessionLifetime/time.Second))
		http.Redirect(w, hr, next, http.StatusSeeOther)
		return
	}
	if k := dr.KindOf(err); k != dr.KindUnauthenticated && k != dr.KindExhausted {
		a.cfg.Log.Warn("portal: sign-in failed", "err", err)
	}
	r.problem, r.status = problemOf(err), statusOf(err)
	if err := a.render(w, r, "signin", view{Title: "Sign in", URL: "/portal/signin", Body: signInBody{User: user, Next: next}}); err != nil {
		a.fail(w, r, err)
	}
}

func (a accountPages) signOut(w http.ResponseWriter, hr *http.Request) {
	if cookie, err := hr.Cookie(a.cookieName()); err == nil && cookie.Value != "" {
		if err := a.v.Logout(hr.Context(), cookie.Value); err != nil {
			a.fail(w, &request{Request: hr}, err) // the session may still be good: say so
			return
		}
	}
	a.setCookie(w, "", -1)
	http.Redirect(w, hr, "/portal/signin", http.StatusSeeOther)
}

// limiter slows down guessing: after failures in a row a user's next attempts wait.
type limiter struct {
	now  func() time.Time
	mu   sync.Mutex
	seen map[string]attempts
}

type attempts struct {
	n    int
	last time.Time
}

const (
	freeAttempts  = 5
	attemptWait   = 30 * time.Second
	attemptForget = 15 * time.Minute
	maxAttempts   = 4096 // users remembered
)

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, seen: map[string]attempts{}}
}

// allow counts an attempt, or refuses it.
func (l *limiter) allow(user string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, user := l.now(), strings.ToLower(user)
	a := l.seen[user]
	if now.Sub(a.last) > attemptForget {
		a = attempts{}
	}
	if wait := attemptWait - now.Sub(a.last); a.n >= freeAttempts && wait > 0 {
		return dr.Errorf(dr.KindExhausted, "portal.signIn", "there were too many attempts to sign in as this user").
			WithHint("Wait %s, then try again.", span(wait.Round(time.Second)))
	}
	if len(l.seen) >= maxAttempts {
		clear(l.seen)
	}
	l.seen[user] = attempts{a.n + 1, now}
	return nil
}

func (l *limiter) succeeded(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.seen, strings.ToLower(user))
}
