package site

import (
	"cmp"
	"net/http"
	"strconv"
	"time"

	"holdfast/internal/armapi/route"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

// WriteKeyFile answers with the file itself; its key id and expiry are in headers.
func WriteKeyFile(c *route.Call, w http.ResponseWriter, fabric string) error {
	var in struct {
		OneTime       bool `json:"oneTime"`
		ValidityHours int  `json:"validityHours"`
	}
	if err := c.Body(&in); err != nil {
		return err
	}
	life, err := Validity(in.ValidityHours)
	if err != nil {
		return err
	}
	f, err := c.Svc().Fabric(c.Ctx(), fabric)
	if err != nil {
		return err
	}
	file, key, err := Credential(c, f.Name, in.OneTime, life)
	if err != nil {
		return err
	}
	b, err := file.Encode()
	if err != nil {
		return dr.Errorf(dr.KindInternal, "armapi.issueKey", "make the key file of site %q: %w", f.Name, err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/xml; charset=utf-8")
	h.Set("Content-Disposition", "attachment; filename="+strconv.QuoteToASCII(file.FileName(c.Now())))
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("Holdfast-Key-Id", key.ID)
	h.Set("Holdfast-Key-Expires", key.Expires.UTC().Format(time.RFC3339))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(b) // the client is gone; the key can be revoked by its id
	return nil
}

// Credential issues a registration key for a site and wraps it.
func Credential(c *route.Call, fabric string, oneTime bool, validity time.Duration) (armwire.KeyFile, vault.RegistrationKey, error) {
	key, err := c.Svc().IssueKey(c.Ctx(), vault.KeyRequest{Fabric: fabric, OneTime: oneTime, Validity: validity, By: c.Who.Name})
	if err != nil {
		return armwire.KeyFile{}, key, err
	}
	return armwire.KeyFile{
		SubscriptionID: c.Ident.SubscriptionID, ResourceGroup: c.Ident.ResourceGroup, VaultName: c.Ident.Name, ResourceID: c.Ident.ResourceID,
		Location: c.Ident.Location, TenantID: c.Ident.TenantID, SiteID: string(key.Fabric), SiteName: fabric,
		Credential: armwire.Credential{
			VaultURL: cmp.Or(key.VaultURL, c.Base), CAPin: key.CAPin, KeyID: key.ID, Secret: key.Secret, Fabric: string(key.Fabric), Expires: key.Expires.UTC(),
		},
	}, key, nil
}

// Validity checks a key's life time in hours.
func Validity(hours int) (time.Duration, error) {
	if hours < 0 || hours > 5*24 {
		return 0, dr.Errorf(dr.KindInvalid, "armapi.key", "a registration key is valid for at most 120 hours, not %d", hours)
	}
	return time.Duration(hours) * time.Hour, nil
}
