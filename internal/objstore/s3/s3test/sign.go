package s3test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm       = "AWS4-HMAC-SHA256"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	timeFormat      = "20060102T150405Z"
	maxSkew         = 15 * time.Minute
)

// authentic verifies Signature Version 4, in the header or in the query, and
// refuses the request if it does not hold.
func (s *Server) authentic(q *request) bool {
	a, query := authorization{}, q.URL.Query()
	presigned := query.Has("X-Amz-Signature")
	if presigned {
		a = authorization{
			algorithm: query.Get("X-Amz-Algorithm"), credential: query.Get("X-Amz-Credential"), date: query.Get("X-Amz-Date"),
			headers: query.Get("X-Amz-SignedHeaders"), signature: query.Get("X-Amz-Signature"), payload: unsignedPayload,
		}
		query.Del("X-Amz-Signature")
	} else {
		a = parseAuthorization(q.Header.Get("Authorization"))
		a.date, a.payload = q.Header.Get("X-Amz-Date"), q.Header.Get("X-Amz-Content-Sha256")
	}
	refuse := func(code, message string) bool {
		s.refuse(q, http.StatusForbidden, code, message)
		return false
	}
	scope := strings.Split(a.credential, "/")
	at, err := time.Parse(timeFormat, a.date)
	if a.algorithm != algorithm || len(scope) != 5 || err != nil || a.payload == "" || scope[1] != a.date[:8] || scope[3] != "s3" || scope[4] != "aws4_request" {
		return refuse("AccessDenied", "Access Denied: the request is not signed")
	}
	s.mu.Lock()
	now := s.now()
	s.mu.Unlock()
	switch {
	case scope[0] != AccessKey:
		return refuse("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
	case scope[2] != s.c.Region:
		s.refuse(q, http.StatusBadRequest, "AuthorizationHeaderMalformed", "The authorization header is malformed; the region '"+scope[2]+"' is wrong; expecting '"+s.c.Region+"'")
		return false
	case presigned && !within(query.Get("X-Amz-Expires"), at, now):
		return refuse("AccessDenied", "Request has expired")
	case now.Sub(at) > maxSkew && !presigned || at.Sub(now) > maxSkew:
		return refuse("RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
	}
	signed := strings.Split(a.headers, ";")
	if !slices.Contains(signed, "host") {
		return refuse("SignatureDoesNotMatch", "the host is not signed")
	}
	for name := range q.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return refuse("AccessDenied", "There were headers present in the request which were not signed: "+name)
		}
	}
	if hmac.Equal([]byte(a.signature), []byte(a.sign(q, signed, query))) {
		return true
	}
	return refuse("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.")
}

// within reports whether a presigned request is in its time.
func within(expires string, at, now time.Time) bool {
	n, err := strconv.Atoi(expires)
	return err == nil && n >= 1 && n <= 7*24*3600 && !now.After(at.Add(time.Duration(n)*time.Second))
}

type authorization struct {
	algorithm, credential, date, headers, signature, payload string
}

func parseAuthorization(text string) (a authorization) {
	a.algorithm, text, _ = strings.Cut(text, " ")
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			a.credential = value
		case "SignedHeaders":
			a.headers = value
		case "Signature":
			a.signature = value
		}
	}
	return a
}

// sign computes the signature that the request must have.
func (a authorization) sign(q *request, signed []string, query url.Values) string {
	var b strings.Builder
	b.WriteString(q.Method + "\n" + q.URL.EscapedPath() + "\n" + canonicalQuery(query) + "\n")
	for _, name := range signed {
		value := ""
		switch name {
		case "host":
			value = q.Host
		case "content-length":
			value = strconv.FormatInt(q.ContentLength, 10)
		default:
			value = strings.Join(strings.Fields(strings.Join(q.Header.Values(name), ",")), " ")
		}
		b.WriteString(name + ":" + value + "\n")
	}
	b.WriteString("\n" + strings.Join(signed, ";") + "\n" + a.payload)
	sum := sha256.Sum256([]byte(b.String()))
	scope := strings.Split(a.credential, "/")
	text := algorithm + "\n" + a.date + "\n" + strings.Join(scope[1:], "/") + "\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + SecretKey)
	for _, part := range scope[1:] {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, text))
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func canonicalQuery(query url.Values) string {
	var parts []string
	for name, values := range query {
		for _, value := range values {
			parts = append(parts, escape(name)+"="+escape(value))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "&")
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
