package route

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// Codes of the API itself, which are not in the catalogue of dr because they say
// something about the request and not about replication.
const (
	CodeMissingAPIVersion dr.Code = "MissingApiVersionParameter"
	CodeInvalidAPIVersion dr.Code = "InvalidApiVersionParameter"
	CodeInvalidPath       dr.Code = "InvalidPath"
	CodeInvalidBody       dr.Code = "InvalidRequestContent"
	CodeBodyTooLarge      dr.Code = "RequestContentTooLarge"
	CodeInvalidFilter     dr.Code = "InvalidFilter"
	CodeInvalidPage       dr.Code = "InvalidPageToken"
	CodeNotSupported      dr.Code = "NotSupported"
	CodeUnknownType       dr.Code = "InvalidResourceType"
	CodeNoSubscription    dr.Code = "SubscriptionNotFound"
	CodeNoGroup           dr.Code = "ResourceGroupNotFound"
)

// MaxBody is how many bytes of a request body are read.
const MaxBody = 4 << 20

// StatusOf is the one table from kinds to HTTP statuses.
//
// 409 serves both "exists already" and "not in this state": the API's clients
// know no 412 without an ETag. Only 429 and 503 invite clients to try again by
// themselves.
func StatusOf(k dr.Kind) int {
	switch k {
	case dr.KindInvalid, dr.KindUnsupported:
		return http.StatusBadRequest
	case dr.KindUnauthenticated:
		return http.StatusUnauthorized
	case dr.KindForbidden:
		return http.StatusForbidden
	case dr.KindNotFound:
		return http.StatusNotFound
	case dr.KindConflict, dr.KindFenced, dr.KindPrecondition, dr.KindCanceled:
		return http.StatusConflict
	case dr.KindExhausted:
		return http.StatusTooManyRequests
	case dr.KindUnavailable:
		return http.StatusServiceUnavailable
	case dr.KindInternal, dr.KindCorrupt:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// codeOf is the API's error code: the catalogue's, else one for the kind.
func codeOf(err error) string {
	if c := dr.CodeOf(err); c != "" {
		return string(c)
	}
	switch dr.KindOf(err) {
	case dr.KindInvalid:
		return "BadRequest"
	case dr.KindNotFound:
		return string(dr.CodeNotFound)
	case dr.KindConflict:
		return "Conflict"
	case dr.KindUnauthenticated:
		return "AuthenticationFailed"
	case dr.KindForbidden:
		return "AuthorizationFailed"
	case dr.KindFenced:
		return string(dr.CodeGenerationFenced)
	case dr.KindPrecondition:
		return string(dr.CodeOperationNotAllowed)
	case dr.KindUnsupported:
		return string(CodeNotSupported)
	case dr.KindUnavailable:
		return "ServiceUnavailable"
	case dr.KindExhausted:
		return "ResourceExhausted"
	case dr.KindCorrupt:
		return string(dr.CodeObjectCorrupt)
	case dr.KindCanceled:
		return "OperationCanceled"
	}
	return "InternalServerError"
}

// wireError renders an error. Errors that are not the product's own may name
// anything, so their text stays in the log.
func wireError(err error) armwire.Error {
	msg := "the vault could not do this; its log has the details under the request's id"
	var own *dr.Error
	if errors.As(err, &own) {
		msg = own.Error()
	}
	e := armwire.Error{Code: codeOf(err), Message: msg, Kind: dr.KindOf(err).String(), Hint: dr.HintOf(err)}
	if e.Hint != "" {
		e.Details = []armwire.ErrorDetail{{Code: "RecommendedAction", Message: e.Hint}}
	}
	return e
}

// WriteError answers with an error in the API's shape.
func WriteError(w http.ResponseWriter, err error) {
	e := wireError(err)
	w.Header().Set("x-ms-error-code", e.Code)
	WriteJSON(w, StatusOf(dr.KindOf(err)), armwire.ErrorBody{Error: e})
}

// WriteJSON answers with a body.
func WriteJSON(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":{"code":"InternalServerError","message":"the answer could not be encoded"}}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client is gone; there is nobody to tell
}

// ReadBody reads the body of a request, at most MaxBody bytes.
func ReadBody(r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(r.Body)
	if err == nil {
		return b, nil
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, dr.New(dr.KindInvalid, CodeBodyTooLarge, "armapi.body", "the request body is larger than %d bytes", int64(MaxBody))
	}
	return nil, dr.New(dr.KindInvalid, CodeInvalidBody, "armapi.body", "the request body could not be read")
}

// jsonTrouble says what is wrong with a body, by field where that is known, and
// without repeating the body.
func jsonTrouble(err error) string {
	var typ *json.UnmarshalTypeError
	var syn *json.SyntaxError
	switch {
	case errors.As(err, &typ) && typ.Field != "":
		return fmt.Sprintf("field %s is a %s, which can't be a %s", typ.Field, typ.Value, typ.Type)
	case errors.As(err, &typ):
		return fmt.Sprintf("it is a %s where an object is expected", typ.Value)
	case errors.As(err, &syn):
		return fmt.Sprintf("no JSON at byte %d", syn.Offset)
	}
	return "no JSON"
}

// Named turns "not found" about something that a body refers to into a bad
// request: a 404 would say that the path does not exist.
func Named(err error, field string) error {
	if dr.KindOf(err) != dr.KindNotFound {
		return err
	}
	return dr.New(dr.KindInvalid, dr.CodeNotFound, "armapi.body", "%s: %w", field, err)
}

// Clip shortens what a client sent for an error's text.
func Clip(s string) string {
	const most = 100
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
