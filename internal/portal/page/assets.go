package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed static
var staticFiles embed.FS

// htmxSHA256 is the checksum of the vendored file dist/htmx.min.js of the npm
// package htmx.org 4.0.1.
const htmxSHA256 = "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130"

// assets serves the static files under names that hold their content's hash,
// so that browsers may keep them for ever.
type assets struct {
	byName map[string]string // plain name → hashed name
	files  map[string][]byte // by hashed name
}

func loadAssets() (*assets, error) {
	a := &assets{byName: map[string]string{}, files: map[string][]byte{}}
	list, err := fs.ReadDir(staticFiles, "static")
	if err != nil {
		return nil, fmt.Errorf("portal: list static files: %w", err)
	}
	for _, f := range list {
		b, err := staticFiles.ReadFile("static/" + f.Name())
		if err != nil {
			return nil, fmt.Errorf("portal: read static file: %w", err)
		}
		sum := sha256.Sum256(b)
		ext := path.Ext(f.Name())
		hashed := strings.TrimSuffix(f.Name(), ext) + "." + hex.EncodeToString(sum[:6]) + ext
		a.byName[f.Name()], a.files[hashed] = hashed, b
	}
	return a, nil
}

// url is the address of a static file; templates name files that exist (a test checks it).
func (a *assets) url(name string) string { return "/static/" + a.byName[name] }

// ServeHTTP serves a static file.
func (a *assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	b, ok := a.files[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	switch path.Ext(name) { // not left to the machine's MIME table
	case ".css":
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
	case ".js":
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	case ".svg":
		w.Header().Set("Content-Type", "image/svg+xml")
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}
