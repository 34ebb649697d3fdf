package pagestore

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// dateSlack is how far a request's date may be from the service's clock.
const dateSlack = 15 * time.Minute

// access is what a request may do.
type access struct {
	owner   bool   // everything: key or token
	letters string // else the permissions of a SAS
}

func unauthenticated(why string) *problem {
	return refuse(403, "AuthenticationFailed", "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature. %s", why)
}

// authorize finds out what a request may do.
func (s *Store) authorize(r *http.Request, q url.Values, t target) (access, error) {
	if t.disk != "" {
		return s.authorizeDisk(q, t.disk)
	}
	s.mu.Lock()
	a := s.accounts[t.account]
	var key []byte
	var settings AccountSettings
	if a != nil {
		key, settings = a.key, a.settings
	}
	s.mu.Unlock()
	header := r.Header.Get("Authorization")
	scheme, rest, _ := strings.Cut(header, " ")
	switch {
	case a == nil: // of the real service there would be no such host
		return access{}, refuse(404, "ResourceNotFound", "There is no storage account %s.", t.account)
	case settings.Firewall:
		return access{}, refuse(403, "AuthorizationFailure", "This request is not authorized to perform this operation.")
	case scheme == "Bearer":
		return s.authorizeToken(rest)
	case settings.NoKeys && (scheme == "SharedKey" || q.Has("sig") && !q.Has("skoid")):
		return access{}, refuse(403, "KeyBasedAuthenticationNotPermitted", "Key based authentication is not permitted on this storage account.")
	case scheme == "SharedKey":
		return s.authorizeKey(r, q, t.account, key, rest)
	case header != "":
		return access{}, refuse(400, "InvalidAuthenticationInfo", "Authentication information is not given in the correct format. Check the value of Authorization header.")
	case q.Has("sig"):
		return s.authorizeSAS(r, q, t, key)
	}
	return access{}, refuse(401, "NoAuthenticationInformation", "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.")
}

func (s *Store) authorizeDisk(q url.Values, name string) (access, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.disks[name]
	if d == nil || !d.granted || q.Get("si") != strconv.Itoa(d.epoch) || !same(q.Get("sig"), s.diskSignature(d, q.Get("sp"), q.Get("se"))) {
		return access{}, unauthenticated("The signature is not one of this disk, or access to it was ended.")
	}
	end, err := time.Parse(time.RFC3339, q.Get("se"))
	if err != nil || !s.cfg.Now().Before(end) {
		return access{}, unauthenticated("Signed expiry time [" + q.Get("se") + "] must be after signed start time.")
	}
	return access{letters: q.Get("sp")}, nil
}

func (s *Store) authorizeToken(token string) (access, error) {
	if s.cfg.Token != nil {
		if _, _, ok := s.cfg.Token(strings.TrimSpace(token)); ok {
			return access{owner: true}, nil
		}
	}
	return access{}, refuse(401, "InvalidAuthenticationInfo", "Server failed to authenticate the request: the token is not valid.")
}

// authorizeKey verifies a signature by "Authorize with Shared Key". For the
// order of x-ms- headers the reference says "lexicographically"; the service and
// Microsoft's clients sort as for words, which passes over hyphens. Both orders are taken.
func (s *Store) authorizeKey(r *http.Request, q url.Values, name string, key []byte, rest string) (access, error) {
	who, sig, ok := strings.Cut(rest, ":")
	if !ok || who != name {
		return access{}, unauthenticated("The Authorization header names another account.")
	}
	date := r.Header.Get("x-ms-date")
	if date == "" {
		date = r.Header.Get("Date")
	}
	at, err := http.ParseTime(date)
	if err != nil || s.cfg.Now().Sub(at).Abs() > dateSlack {
		return access{}, unauthenticated("Request date header too old: '" + date + "'.")
	}
	for _, words := range [2]bool{true, false} {
		if same(sig, sign(key, sharedKeyString(r, q, name, words))) {
			return access{owner: true}, nil
		}
	}
	return access{}, unauthenticated("The MAC signature found in the HTTP request is not the same as any computed signature.")
}

// sharedKeyString is the string that Shared Key signs.
func sharedKeyString(r *http.Request, q url.Values, account string, words bool) string {
	h := r.Header
	length, date := "", h.Get("Date")
	if r.ContentLength > 0 {
		length = strconv.FormatInt(r.ContentLength, 10)
	}
	if h.Get("x-ms-date") != "" {
		date = ""
	}
	lines := []string{r.Method, h.Get("Content-Encoding"), h.Get("Content-Language"), length, h.Get("Content-MD5"), h.Get("Content-Type"), date,
		h.Get("If-Modified-Since"), h.Get("If-Match"), h.Get("If-None-Match"), h.Get("If-Unmodified-Since"), h.Get("Range")}
	var names []string
	for name := range h {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-ms-") {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if words {
			if n := strings.Compare(strings.ReplaceAll(a, "-", ""), strings.ReplaceAll(b, "-", "")); n != 0 {
				return n
			}
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		lines = append(lines, name+":"+strings.Join(h.Values(name), ","))
	}
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	resource := "/" + account + path
	params := map[string][]string{}
	for name, values := range q {
		name = strings.ToLower(name)
		params[name] = append(params[name], values...)
	}
	for _, name := range sortedKeys(params) {
		slices.Sort(params[name])
		resource += "\n" + name + ":" + strings.Join(params[name], ",")
	}
	return strings.Join(append(lines, resource), "\n")
}

func sign(key []byte, text string) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func same(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// sasTime reads the forms of times that a SAS may have.
func sasTime(text string) (time.Time, bool) {
	for _, layout := range [...]string{time.RFC3339, "2006-01-02T15:04Z", "2006-01-02"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// authorizeSAS verifies a service, user delegation or account SAS.
func (s *Store) authorizeSAS(r *http.Request, q url.Values, t target, key []byte) (access, error) {
	var text string
	switch {
	case q.Has("ss"):
		text = strings.Join([]string{t.account, q.Get("sp"), q.Get("ss"), q.Get("srt"), q.Get("st"), q.Get("se"), q.Get("sip"), q.Get("spr"), q.Get("sv"), q.Get("ses"), ""}, "\n")
	case q.Get("si") != "":
		return access{}, unauthenticated("Stored access policies are not known here.")
	case q.Has("skoid"):
		life := []string{q.Get("skoid"), q.Get("sktid"), q.Get("skt"), q.Get("ske"), q.Get("sks"), q.Get("skv")}
		begin, ok1 := sasTime(q.Get("skt"))
		end, ok2 := sasTime(q.Get("ske"))
		if now := s.cfg.Now(); !ok1 || !ok2 || now.Before(begin.Add(-dateSlack)) || !now.Before(end) {
			return access{}, unauthenticated("The user delegation key is not valid now.")
		}
		key = delegationKey(key, life)
		text = sasString(q, t, life)
	default:
		text = sasString(q, t, nil)
	}
	if text == "" || !same(q.Get("sig"), sign(key, text)) {
		return access{}, unauthenticated("Signature did not match.")
	}
	now := s.cfg.Now()
	if end, ok := sasTime(q.Get("se")); !ok || !now.Before(end) {
		return access{}, unauthenticated("Signature not valid in the specified time frame: it ended at " + q.Get("se") + ".")
	}
	if begin := q.Get("st"); begin != "" {
		if at, ok := sasTime(begin); !ok || now.Before(at) {
			return access{}, unauthenticated("Signature not valid in the specified time frame: it begins at " + begin + ".")
		}
	}
	if q.Get("spr") == "https" && r.TLS == nil {
		return access{}, refuse(403, "AuthorizationProtocolMismatch", "This request is not authorized to perform this operation using this protocol.")
	}
	if !q.Has("ss") {
		return access{letters: q.Get("sp")}, nil
	}
	kind := "s"
	if t.blob != "" {
		kind = "o"
	} else if t.container != "" {
		kind = "c"
	}
	if !strings.Contains(q.Get("ss"), "b") {
		return access{}, refuse(403, "AuthorizationServiceMismatch", "This request is not authorized to perform this operation using this service.")
	}
	if !strings.Contains(q.Get("srt"), kind) {
		return access{}, refuse(403, "AuthorizationResourceTypeMismatch", "This request is not authorized to perform this operation using this resource type.")
	}
	return access{letters: q.Get("sp")}, nil
}

// sasString is what a service SAS signs (version 2020-12-06 and later); with the
// six fields of its key what a user delegation SAS signs. Empty: no such form.
func sasString(q url.Values, t target, delegation []string) string {
	resource, stamp := "/blob/"+t.account+"/"+t.container, ""
	switch q.Get("sr") {
	case "c":
	case "b":
		resource += "/" + t.blob
	case "bs":
		resource, stamp = resource+"/"+t.blob, q.Get("snapshot")
	case "bv":
		resource, stamp = resource+"/"+t.blob, q.Get("versionid")
	default:
		return ""
	}
	fields := []string{q.Get("sp"), q.Get("st"), q.Get("se"), resource}
	sv := q.Get("sv")
	if delegation == nil {
		fields = append(fields, "") // stored access policy
	} else {
		fields = append(append(fields, delegation...), q.Get("saoid"), q.Get("suoid"), q.Get("scid"))
		if sv >= "2025-07-05" {
			fields = append(fields, q.Get("skdutid"), q.Get("sduoid"))
		}
	}
	fields = append(fields, q.Get("sip"), q.Get("spr"), sv, q.Get("sr"), stamp, q.Get("ses"))
	if delegation != nil && sv >= "2026-04-06" {
		fields = append(fields, "", "") // signed headers and parameters
	}
	return strings.Join(append(fields, q.Get("rscc"), q.Get("rscd"), q.Get("rsce"), q.Get("rscl"), q.Get("rsct")), "\n")
}

// delegationKey derives a user delegation key, so that none needs to be kept.
func delegationKey(accountKey []byte, life []string) []byte {
	h := hmac.New(sha256.New, accountKey)
	h.Write([]byte("user delegation\n" + strings.Join(life, "\n")))
	return h.Sum(nil)
}

// userDelegationKey answers Get User Delegation Key, which only a token may ask for.
func userDelegationKey(c *call) error {
	scheme, token, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	if scheme != "Bearer" || c.s.cfg.Token == nil {
		return refuse(403, "AuthenticationFailed", "A user delegation key is given only to who signs in with a token.")
	}
	oid, tid, _ := c.s.cfg.Token(strings.TrimSpace(token))
	var in struct{ Start, Expiry string }
	raw, err := io.ReadAll(io.LimitReader(c.r.Body, 64<<10))
	if err != nil {
		return err
	}
	if err := xml.Unmarshal(raw, &in); err != nil {
		return refuse(400, "InvalidXmlDocument", "XML specified is not syntactically valid.")
	}
	now := c.s.cfg.Now()
	begin, ok1 := sasTime(in.Start)
	end, ok2 := sasTime(in.Expiry)
	if in.Start == "" {
		begin, ok1 = now, true
	}
	if !ok1 || !ok2 || !end.After(begin) || end.Sub(now) > 7*24*time.Hour+dateSlack {
		return refuse(400, "InvalidXmlNodeValue", "The value for one of the XML nodes is not in the correct format: a key lives at most seven days.")
	}
	type key struct {
		XMLName       xml.Name `xml:"UserDelegationKey"`
		SignedOid     string
		SignedTid     string
		SignedStart   string
		SignedExpiry  string
		SignedService string
		SignedVersion string
		Value         string
	}
	out := key{SignedOid: oid, SignedTid: tid, SignedStart: begin.UTC().Format("2006-01-02T15:04:05Z"), SignedExpiry: end.UTC().Format("2006-01-02T15:04:05Z"),
		SignedService: "b", SignedVersion: c.r.Header.Get("x-ms-version")}
	c.s.mu.Lock()
	a := c.s.accounts[c.t.account]
	c.s.mu.Unlock()
	if a == nil {
		return refuse(404, "ResourceNotFound", "There is no storage account %s.", c.t.account)
	}
	out.Value = base64.StdEncoding.EncodeToString(delegationKey(a.key, []string{out.SignedOid, out.SignedTid, out.SignedStart, out.SignedExpiry, out.SignedService, out.SignedVersion}))
	c.xml(http.StatusOK, out)
	return nil
}
