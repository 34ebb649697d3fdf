package page

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/words"
	"holdfast/internal/vault"
)

// Account is signing in and out.
type Account struct{ *Core }

func (c *Core) cookieName() string {
	if c.Cfg.InsecureCookie {
		return "holdfast-session"
	}
	return "__Host-holdfast-session"
}

func (c *Core) setCookie(w http.ResponseWriter, value string, age int) {
	http.SetCookie(w, &http.Cookie{Name: c.cookieName(), Value: value, Path: "/", MaxAge: age,
		Secure: !c.Cfg.InsecureCookie, HttpOnly: true, SameSite: http.SameSiteLaxMode})
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

// Form shows the sign-in page.
func (a Account) Form(w http.ResponseWriter, hr *http.Request) {
	r := &Request{Request: hr, Status: http.StatusOK}
	next := local(hr.URL.Query().Get("next"))
	if _, err := a.session(hr); err == nil {
		http.Redirect(w, hr, next, http.StatusSeeOther)
		return
	}
	if err := a.Render(w, r, "signin", View{Title: "Sign in", URL: "/portal/signin", Body: signInBody{Next: next}}); err != nil {
		a.fail(w, r, err)
	}
}

// SignIn checks the password and begins a session.
func (a Account) SignIn(w http.ResponseWriter, hr *http.Request) {
	hr.Body = http.MaxBytesReader(w, hr.Body, 16<<10)
	r := &Request{Request: hr, Status: http.StatusOK}
	user, next := strings.TrimSpace(hr.PostFormValue("user")), local(hr.PostFormValue("next"))
	var session string
	err := a.limit.allow(user)
	if err == nil {
		session, _, err = a.V.Login(hr.Context(), user, hr.PostFormValue("password"))
	}
	if err == nil {
		a.limit.succeeded(user)
		a.setCookie(w, session, int(vault.SessionLifetime/time.Second))
		http.Redirect(w, hr, next, http.StatusSeeOther)
		return
	}
	if k := dr.KindOf(err); k != dr.KindUnauthenticated && k != dr.KindExhausted {
		a.Cfg.Log.Warn("portal: sign-in failed", "err", err)
	}
	r.Problem, r.Status = words.ProblemOf(err), words.StatusOf(err)
	if err := a.Render(w, r, "signin", View{Title: "Sign in", URL: "/portal/signin", Body: signInBody{User: user, Next: next}}); err != nil {
		a.fail(w, r, err)
	}
}

// SignOut ends the session at the vault, then the cookie.
func (a Account) SignOut(w http.ResponseWriter, hr *http.Request) {
	if cookie, err := hr.Cookie(a.cookieName()); err == nil && cookie.Value != "" {
		if err := a.V.Logout(hr.Context(), cookie.Value); err != nil {
			a.fail(w, &Request{Request: hr}, err) // the session may still be good: say so
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

// Limits of signing in: after FreeAttempts failures in a row each further
// attempt as the same user has to wait for AttemptWait.
const (
	FreeAttempts  = 5
	AttemptWait   = 30 * time.Second
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
	if wait := AttemptWait - now.Sub(a.last); a.n >= FreeAttempts && wait > 0 {
		return dr.Errorf(dr.KindExhausted, "portal.signIn", "there were too many attempts to sign in as this user").
			WithHint("Wait %s, then try again.", words.Span(wait.Round(time.Second)))
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
