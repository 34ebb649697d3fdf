// Package page is what all pages of the portal share: the frame, the templates and
// static files, sessions and roles, errors, and the stream of changes.
//
// It promises that no page is shown without a session whose role allows it, that
// what is shown comes from html/template, and that answers carry the headers
// which keep scripts and styles of others out.
package page

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/portal/words"
)

// Config configures the portal. Vault is required.
type Config struct {
	Vault Vault
	Log   *slog.Logger     // nil = silent
	Now   func() time.Time // nil = time.Now

	// InsecureCookie lets sessions work over plain HTTP, for a vault behind a
	// proxy on the same machine or for development. The cookie then loses its
	// __Host- name and its Secure attribute.
	InsecureCookie bool

	// RegisterCommand is the shell command by which a host registers, shown on
	// the page of a site; nil = "sudo holdfast agent register …".
	RegisterCommand func(keyFile string, role dr.AgentRole) string
	// InstallCommand gets the program onto a host; empty = it is not shown.
	InstallCommand string
}

// New reads the templates and static files, which are part of the program.
func New(cfg Config) (*Core, error) {
	if cfg.Vault == nil {
		return nil, errors.New("portal: the configuration has no vault")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.RegisterCommand == nil {
		cfg.RegisterCommand = func(file string, role dr.AgentRole) string {
			return "sudo holdfast agent register --key " + words.ShellQuote(file) + " --role " + string(role)
		}
	}
	a, err := loadAssets()
	if err != nil {
		return nil, err
	}
	t, err := loadTemplates(a, cfg.Now)
	if err != nil {
		return nil, err
	}
	return &Core{Cfg: cfg, V: cfg.Vault, assets: a, templates: t, limit: newLimiter(cfg.Now), streams: make(chan struct{}, maxStreams)}, nil
}

// Static serves "GET /static/{name}".
func (c *Core) Static() http.Handler { return c.assets }

// Favicon is the address of the site's icon.
func (c *Core) Favicon() string { return c.assets.url("favicon.svg") }

// Headers sets what every answer carries.
func Headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
		h.Set("Cache-Control", "no-store")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		next.ServeHTTP(w, r)
	})
}
