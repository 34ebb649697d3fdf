package s3test

import (
	"encoding/xml"
	"io"
	"net/http"
	"time"
)

// lockHeaders reads the retention that comes with a put.
func (s *Server) lockHeaders(q *request) (mode string, until time.Time, ok bool) {
	mode, date := q.Header.Get("X-Amz-Object-Lock-Mode"), q.Header.Get("X-Amz-Object-Lock-Retain-Until-Date")
	if mode == "" && date == "" {
		return "", time.Time{}, true
	}
	if s.c.IgnoreObjectLock {
		return "", time.Time{}, true
	}
	until, err := time.Parse(time.RFC3339, date)
	bad := func(status int, code, message string) (string, time.Time, bool) {
		s.refuse(q, status, code, message)
		return "", time.Time{}, false
	}
	s.mu.Lock()
	now := s.now()
	s.mu.Unlock()
	switch {
	case !s.c.ObjectLock:
		return bad(http.StatusBadRequest, "InvalidRequest", "Bucket is missing Object Lock Configuration")
	case q.Header.Get("X-Amz-Checksum-Sha256") == "" && q.Header.Get("Content-Md5") == "":
		return bad(http.StatusBadRequest, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters")
	case mode != "GOVERNANCE" && mode != "COMPLIANCE", err != nil:
		return bad(http.StatusBadRequest, "InvalidArgument", "Unknown wormMode directive, or a date that cannot be read")
	case !until.After(now):
		return bad(http.StatusBadRequest, "InvalidArgument", "The retain until date must be in the future!")
	}
	return mode, until, true
}

type lockConfigBody struct {
	XMLName           xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ObjectLockConfiguration"`
	ObjectLockEnabled string
}

func (s *Server) lockConfig(q *request) {
	if !s.c.ObjectLock {
		s.refuse(q, http.StatusNotFound, "ObjectLockConfigurationNotFoundError", "Object Lock configuration does not exist for this bucket")
		return
	}
	s.answerXML(q, lockConfigBody{ObjectLockEnabled: "Enabled"})
}

type retentionBody struct {
	XMLName         xml.Name `xml:"Retention"`
	Mode            string
	RetainUntilDate string
}

// putRetention sets or extends a retention. Making it weaker or shorter needs
// rights that these credentials do not have.
func (s *Server) putRetention(q *request) {
	data, err := io.ReadAll(io.LimitReader(q.Body, 1<<16))
	var body retentionBody
	if err != nil || xml.Unmarshal(data, &body) != nil {
		s.refuse(q, http.StatusBadRequest, "MalformedXML", "The XML you provided was not well-formed")
		return
	}
	if q.Header.Get("X-Amz-Checksum-Sha256") == "" && q.Header.Get("Content-Md5") == "" {
		s.refuse(q, http.StatusBadRequest, "InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
		return
	}
	if !s.digests(q, data) {
		return
	}
	until, err := time.Parse(time.RFC3339, body.RetainUntilDate)
	s.mu.Lock()
	v, now := s.current(q.key), s.now()
	var had version
	if v != nil {
		had = *v
	}
	refuse := func(status int, code, message string) {
		s.mu.Unlock()
		s.refuse(q, status, code, message)
	}
	switch {
	case !s.c.ObjectLock:
		refuse(http.StatusBadRequest, "InvalidRequest", "Bucket is missing Object Lock Configuration")
	case v == nil:
		refuse(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
	case err != nil || body.Mode != "GOVERNANCE" && body.Mode != "COMPLIANCE" || !until.After(now):
		refuse(http.StatusBadRequest, "InvalidArgument", "The retain until date must be in the future!")
	case had.until.After(now) && (until.Before(had.until) || had.mode == "COMPLIANCE" && body.Mode != "COMPLIANCE"):
		refuse(http.StatusForbidden, "AccessDenied", "Access Denied because object protected by object lock.")
	default:
		v.mode, v.until = body.Mode, until
		s.mu.Unlock()
		q.w.WriteHeader(http.StatusOK)
	}
}
