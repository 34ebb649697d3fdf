package pagestore

import (
	"net/http"
	"strings"
	"time"
)

// retained refuses a change of what a policy or a legal hold keeps. The caller
// holds mu.
func (s *Store) retained(b *blob) error {
	if b.hold {
		return refuse(409, "BlobImmutableDueToLegalHold", "This operation is not permitted as the blob is immutable due to a legal hold.")
	}
	if s.cfg.Now().Before(b.until) {
		return refuse(409, "BlobImmutableDueToPolicy", "This operation is not permitted as the blob is immutable due to a policy.")
	}
	return nil
}

func modeOf(b *blob) string {
	if b.locked {
		return "locked"
	}
	return "unlocked"
}

// policy reads the headers of a retention; until is zero if there is none.
func (c *call) policy() (until time.Time, locked bool, err error) {
	text, mode := c.r.Header.Get("x-ms-immutability-policy-until-date"), strings.ToLower(c.r.Header.Get("x-ms-immutability-policy-mode"))
	if text == "" && mode == "" {
		return time.Time{}, false, nil
	}
	until, err = http.ParseTime(text)
	if err != nil || !until.After(c.s.cfg.Now()) {
		return time.Time{}, false, refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-immutability-policy-until-date.")
	}
	if mode != "" && mode != "locked" && mode != "unlocked" {
		return time.Time{}, false, refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-immutability-policy-mode.")
	}
	return until, mode == "locked", nil
}

// worm refuses what an account without version-level immutability cannot do. The
// published tables do not name the code for it.
func worm(a *account) error {
	if a.settings.Immutable {
		return nil
	}
	return refuse(409, "InvalidOperation", "The account or container does not support version-level immutability.")
}

// retention gives a new blob the retention and hold that the request asks for. The
// caller holds mu.
func (c *call) retention(a *account, b *blob) error {
	until, locked, err := c.policy()
	if err != nil {
		return err
	}
	hold := strings.EqualFold(c.r.Header.Get("x-ms-legal-hold"), "true")
	if until.IsZero() && !hold {
		return nil
	}
	if err := worm(a); err != nil {
		return err
	}
	if err := c.need("i"); err != nil {
		return err
	}
	b.until, b.locked, b.hold = until, locked, hold
	return nil
}

// kept finds the state whose retention or hold is to be changed. The caller holds mu.
func (c *call) kept() (*blob, error) {
	a, _, _, err := c.hold()
	if err != nil {
		return nil, err
	}
	b := c.s.lookup(c.t, c.q)
	if b == nil {
		return nil, refuse(404, "BlobNotFound", "The specified blob does not exist.")
	}
	if err := worm(a); err != nil {
		return nil, err
	}
	return b, c.conditions(b)
}

func setImmutability(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b, err := c.kept()
	if err != nil {
		return err
	}
	until, locked, err := c.policy()
	switch {
	case err != nil:
		return err
	case until.IsZero():
		return refuse(400, "MissingRequiredHeader", "An HTTP header that's mandatory for this request is not specified: x-ms-immutability-policy-until-date.")
	case b.locked && (!locked || until.Before(b.until)):
		return refuse(409, "BlobImmutableDueToPolicy", "A locked policy can only be made longer.")
	}
	b.until, b.locked = until, locked
	c.w.Header().Set("x-ms-immutability-policy-until-date", until.UTC().Format(timeOfHeader))
	c.w.Header().Set("x-ms-immutability-policy-mode", modeOf(b))
	c.w.WriteHeader(http.StatusOK)
	return nil
}

func deleteImmutability(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b, err := c.kept()
	if err != nil {
		return err
	}
	if b.locked {
		return refuse(409, "ImmutabilityPolicyDeleteOnLockedPolicy", "A locked policy cannot be deleted.")
	}
	b.until = time.Time{}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

func setLegalHold(c *call) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	b, err := c.kept()
	if err != nil {
		return err
	}
	switch text := strings.ToLower(c.r.Header.Get("x-ms-legal-hold")); text {
	case "true", "false":
		b.hold = text == "true"
		c.w.Header().Set("x-ms-legal-hold", text)
	default:
		return refuse(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-legal-hold.")
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}
