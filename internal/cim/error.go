package cim

import (
	"errors"
	"fmt"
)

// Code classifies what a server or the way to it answered.
type Code string

// The codes.
const (
	CodeNotFound     Code = "notFound"     // no such instance
	CodeInvalidClass Code = "invalidClass" // no such class or namespace
	CodeInvalidQuery Code = "invalidQuery" // WQL that the server does not take
	CodeNoMethod     Code = "noMethod"     // no such method, or parameters that it does not take
	CodeAccessDenied Code = "accessDenied" // signed in, but not allowed
	CodeUnauthorized Code = "unauthorized" // could not sign in
	CodeQuota        Code = "quota"        // the server's limits of shells, enumerations or envelope size: try again later
	CodeTimeout      Code = "timeout"      // the server or the context's deadline
	CodeUnavailable  Code = "unavailable"  // no connection, or it broke; the outcome of an Invoke is unknown
	CodeProtocol     Code = "protocol"     // an answer that is none of the protocol
	CodeFailed       Code = "failed"       // everything else that the server reports
)

// Error is a failed operation. Text never holds credentials.
type Error struct {
	Code    Code
	Op      string // what was tried, naming the object
	Status  uint32 // HRESULT, WBEM or WS-Man fault code; 0 = none
	Message string // the server's words, or what went wrong on the way
	Err     error  // cause, if any
}

func (e *Error) Error() string {
	s := e.Op + ": " + e.Message
	if e.Message == "" {
		s = e.Op + ": " + string(e.Code)
	}
	if e.Status != 0 {
		s += fmt.Sprintf(" (0x%08x)", e.Status)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of an error, "" if it is none of this package.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
