package words

import (
	"net/http"
	"strings"

	"holdfast/internal/dr"
)

// Problem is an error for people.
type Problem struct {
	Title, Message, Cause, Evidence, Remedy string // Evidence says how it shows in general; Message what was seen
	Code                                    dr.Code
}

var problemTitles = map[dr.Kind]string{
	dr.KindInternal: "Something went wrong", dr.KindInvalid: "Please check what was entered", dr.KindNotFound: "Not found", dr.KindConflict: "Not possible: conflict",
	dr.KindUnauthenticated: "Sign in failed", dr.KindForbidden: "Not allowed", dr.KindFenced: "Fenced", dr.KindPrecondition: "Not possible now",
	dr.KindUnsupported: "Not supported", dr.KindUnavailable: "The vault could not be asked", dr.KindExhausted: "Out of space or throttled", dr.KindCorrupt: "Damaged data", dr.KindCanceled: "Cancelled",
}

// ProblemOf explains an error by the catalogue.
func ProblemOf(err error) *Problem {
	p := &Problem{Title: problemTitles[dr.KindOf(err)], Message: Sentence(err.Error()), Remedy: Advice(dr.HintOf(err)), Code: dr.CodeOf(err)}
	if e, ok := dr.Lookup(p.Code); ok {
		p.Title, p.Cause, p.Evidence = e.Title, e.Cause, e.Evidence
	}
	if p.Remedy == "" && dr.KindOf(err) == dr.KindInternal {
		p.Remedy = "Try again. If it stays, look into the vault's log."
	}
	return p
}

// Explain makes a problem of an error that was stored.
func Explain(code dr.Code, message, cause, remedy string) *Problem {
	p := &Problem{Title: "Error", Message: Sentence(message), Cause: cause, Remedy: Advice(remedy), Code: code}
	e, ok := dr.Lookup(code)
	if !ok {
		return p
	}
	p.Title, p.Evidence = e.Title, e.Evidence
	if p.Cause == "" {
		p.Cause = e.Cause
	}
	if p.Remedy == "" {
		p.Remedy = e.Remedy
	}
	return p
}

// StatusOf is the status of a page that shows an error.
func StatusOf(err error) int {
	switch dr.KindOf(err) {
	case dr.KindInvalid:
		return http.StatusBadRequest
	case dr.KindNotFound:
		return http.StatusNotFound
	case dr.KindUnauthenticated:
		return http.StatusUnauthorized
	case dr.KindForbidden:
		return http.StatusForbidden
	case dr.KindConflict, dr.KindPrecondition, dr.KindFenced, dr.KindCanceled:
		return http.StatusConflict
	case dr.KindUnsupported:
		return http.StatusUnprocessableEntity
	case dr.KindUnavailable, dr.KindExhausted:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Sentence ends a text as a sentence. It begins as it was: the first word may
// be the name of a VM.
func Sentence(s string) string {
	s = strings.TrimSpace(s)
	if s != "" && !strings.ContainsAny(s[len(s)-1:], ".!?)") {
		s += "."
	}
	return s
}

// Advice is a hint as a sentence; hints begin with what to do.
func Advice(s string) string {
	if s = Sentence(s); s != "" && s[0] >= 'a' && s[0] <= 'z' {
		s = string(s[0]-'a'+'A') + s[1:]
	}
	return s
}
