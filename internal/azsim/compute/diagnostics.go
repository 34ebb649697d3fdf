package compute

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/azsim/plane"
	"holdfast/internal/azsim/wire"
)

// bootDiagnostics is "Virtual Machines - Retrieve Boot Diagnostics Data": two
// signed addresses, of the screen and of the serial log.
func (c *Compute) bootDiagnostics(q *plane.Call, r *plane.Resource) (any, *wire.Error) {
	if !c.diagnosed(r) {
		return nil, plane.Conflict("Boot diagnostics are not enabled for VM %s.", r.Name)
	}
	life := bootDiagnosticsLife
	if s := q.R.URL.Query().Get("sasUriExpirationTimeInMinutes"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 1440 {
			return nil, plane.BadRequest("InvalidParameter", "The value '%s' of parameter 'sasUriExpirationTimeInMinutes' is out of range 1 to 1440.", s)
		}
		life = time.Duration(n) * time.Minute
	}
	until := c.Now().Add(life).Unix()
	address := func(what string) string {
		path := "/bootdiagnostics/" + vmOf(r).id + "/" + what
		return c.URL() + path + "?se=" + strconv.FormatInt(until, 10) + "&sig=" + url.QueryEscape(c.sign(path, until))
	}
	return map[string]any{"consoleScreenshotBlobUri": address("screenshot"), "serialConsoleLogBlobUri": address("serial.log")}, nil
}

func (c *Compute) sign(path string, until int64) string {
	h := hmac.New(sha256.New, []byte(c.cfg.Secret))
	h.Write([]byte(path + "\n" + strconv.FormatInt(until, 10)))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// BootData answers the addresses that bootDiagnostics gave; ok is false for
// other paths.
func (c *Compute) BootData(r *http.Request) (reply wire.Reply, ok bool) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/bootdiagnostics/")
	if !ok {
		return wire.Reply{}, false
	}
	until, _ := strconv.ParseInt(r.URL.Query().Get("se"), 10, 64) // 0 has ended
	if !hmac.Equal([]byte(c.sign(r.URL.Path, until)), []byte(r.URL.Query().Get("sig"))) || c.Now().Unix() >= until {
		return storageError(http.StatusForbidden, "AuthenticationFailed"), true
	}
	id, what, _ := strings.Cut(rest, "/")
	c.Lock()
	var guest Running
	serial := ""
	for _, x := range c.All() {
		if vmOf(x) != nil && vmOf(x).id == id {
			guest, serial = vmOf(x).guest, vmOf(x).serial
		}
	}
	c.Unlock()
	switch {
	case serial == "":
	case what == "serial.log":
		raw, err := os.ReadFile(serial)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return wire.Reply{Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/plain"}}, Body: raw}, true
		}
		return storageError(http.StatusInternalServerError, "InternalError"), true
	case what == "screenshot" && guest != nil:
		png, err := guest.Screenshot(r.Context())
		if err != nil {
			c.Log().Error("screenshot of a simulated VM", "id", id, "err", err)
			return storageError(http.StatusInternalServerError, "InternalError"), true
		}
		return wire.Reply{Status: http.StatusOK, Header: http.Header{"Content-Type": {"image/png"}}, Body: png}, true
	}
	return storageError(http.StatusNotFound, "BlobNotFound"), true
}

func storageError(status int, code string) wire.Reply {
	return wire.Reply{Status: status, Header: http.Header{"X-Ms-Error-Code": {code}, "Content-Type": {"application/xml"}},
		Body: []byte(`<?xml version="1.0" encoding="utf-8"?><Error><Code>` + code + `</Code></Error>`)}
}
