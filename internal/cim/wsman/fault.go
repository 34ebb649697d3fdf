package wsman

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"holdfast/internal/cim"
)

// codes maps status numbers of WMI ([MS-WMI] 2.2.11) and of Windows' WS-Management service ([MS-WSMV] and
// wsmerror.h of the Windows SDK).
var codes = map[uint32]cim.Code{
	0x80041002: cim.CodeNotFound,     // WBEM_E_NOT_FOUND
	0x80041003: cim.CodeAccessDenied, // WBEM_E_ACCESS_DENIED
	0x80041006: cim.CodeQuota,        // WBEM_E_OUT_OF_MEMORY
	0x80041008: cim.CodeNoMethod,     // WBEM_E_INVALID_PARAMETER
	0x8004100e: cim.CodeInvalidClass, // WBEM_E_INVALID_NAMESPACE
	0x80041010: cim.CodeInvalidClass, // WBEM_E_INVALID_CLASS
	0x80041015: cim.CodeUnavailable,  // WBEM_E_TRANSPORT_FAILURE
	0x80041017: cim.CodeInvalidQuery, // WBEM_E_INVALID_QUERY
	0x80041018: cim.CodeInvalidQuery, // WBEM_E_INVALID_QUERY_TYPE
	0x8004102e: cim.CodeNoMethod,     // WBEM_E_INVALID_METHOD
	0x8004102f: cim.CodeNoMethod,     // WBEM_E_INVALID_METHOD_PARAMETERS
	0x80041033: cim.CodeUnavailable,  // WBEM_E_SHUTTING_DOWN
	0x80041055: cim.CodeNoMethod,     // WBEM_E_METHOD_NOT_IMPLEMENTED
	0x80041056: cim.CodeNoMethod,     // WBEM_E_METHOD_DISABLED
	0x80041069: cim.CodeTimeout,      // WBEM_E_TIMED_OUT
	0x8004106c: cim.CodeQuota,        // WBEM_E_QUOTA_VIOLATION
	5:          cim.CodeAccessDenied, // ERROR_ACCESS_DENIED
	0x80070005: cim.CodeAccessDenied, // E_ACCESSDENIED
	0x80338000: cim.CodeNotFound,     // resource not found
	0x80338001: cim.CodeNoMethod,     // action is not known
	0x80338002: cim.CodeInvalidClass, // resource URI is not known
	0x80338007: cim.CodeTimeout,      // enumeration is closed
	0x8033801a: cim.CodeInvalidQuery, // filter cannot be processed
	0x8033801b: cim.CodeTimeout,      // enumeration context is not valid: it expired
	0x80338029: cim.CodeTimeout,      // operation timed out
	0x8033803b: cim.CodeInvalidClass, // resource URI is not valid
	0x8033803f: cim.CodeQuota,        // quota of the service
	0x80338048: cim.CodeQuota,        // answer larger than the client's envelope
	0x80338049: cim.CodeQuota,        // answer larger than the service's envelope
	0x803381a5: cim.CodeQuota,        // quota of shells
	0x803381a6: cim.CodeQuota,        // quota of concurrent operations
	0x803381a7: cim.CodeQuota,        // quota of users
	0x803381a8: cim.CodeQuota,        // quota of the system
}

var errUnsupported = errors.New("the server does not have this feature")

// subcodes maps fault subcodes ([DSP0226] 14.6) for servers that send no number.
var subcodes = map[string]cim.Code{
	"AccessDenied":                      cim.CodeAccessDenied,
	"ActionNotSupported":                cim.CodeNoMethod,
	"CannotProcessFilter":               cim.CodeInvalidQuery,
	"FilterDialectRequestedUnavailable": cim.CodeInvalidQuery,
	"Concurrency":                       cim.CodeQuota,
	"EncodingLimit":                     cim.CodeQuota,
	"QuotaLimit":                        cim.CodeQuota,
	"EndpointUnavailable":               cim.CodeUnavailable,
	"InvalidEnumerationContext":         cim.CodeTimeout,
	"InvalidParameter":                  cim.CodeNoMethod,
	"TimedOut":                          cim.CodeTimeout,
}

// parseFault converts a SOAP fault. A WMI status tells more than the service's own number, and that more than the subcode.
func parseFault(op string, fault *node) *cim.Error {
	e := &cim.Error{Op: op, Code: cim.CodeFailed}
	sub := fault.child("", "Code").child("", "Subcode").child("", "Value").trimmed()
	if i := strings.LastIndexByte(sub, ':'); i >= 0 {
		sub = sub[i+1:]
	}
	reason := fault.child("", "Reason").child("", "Text").trimmed()
	detail := fault.child("", "Detail")
	code, ok := subcodes[sub]
	switch detailURI := detail.child("", "FaultDetail").trimmed(); {
	case sub == "DestinationUnreachable" && strings.HasSuffix(detailURI, "/InvalidResourceURI"):
		code, ok = cim.CodeInvalidClass, true
	case sub == "DestinationUnreachable" && detailURI == "":
		code, ok = cim.CodeNotFound, true
	}
	if ok {
		e.Code = code
	}
	if sub == "UnsupportedFeature" {
		e.Err = errUnsupported
	}
	messages := []string{reason}
	for _, s := range collectStatus(detail) {
		if c, ok := codes[s.status]; ok {
			e.Code = c
			e.Status = s.status
		} else if e.Status == 0 {
			e.Status = s.status
		}
		messages = append(messages, s.text)
	}
	var parts []string
	for _, m := range messages {
		m = strings.Join(strings.Fields(m), " ")
		if m == "" || strings.Contains(strings.Join(parts, "\n"), m) {
			continue
		}
		parts = append(parts, clip(m))
	}
	e.Message = strings.Join(parts, " / ")
	if e.Message == "" {
		e.Message = "the server reports " + sub
	}
	return e
}

type status struct {
	status uint32
	text   string
}

// collectStatus gathers numbers and texts of a fault's detail, the most specific last: the WS-Man
// service's own, then nested ones of its provider, then WMI's.
func collectStatus(n *node) []status {
	if n == nil {
		return nil
	}
	var list []status
	var wmi []status
	var walk func(n *node)
	walk = func(n *node) {
		switch n.name.Local {
		case "WSManFault":
			if v, ok := n.attribute("", "Code"); ok {
				list = append(list, status{status: number(v), text: n.child("", "Message").trimmed()})
			}
		case "ProviderFault":
			list = append(list, status{text: n.trimmed()})
		case "__ExtendedStatus":
			wmi = append(wmi, status{status: number(n.child("", "StatusCode").trimmed()), text: n.child("", "Description").trimmed()})
		case "MSFT_WmiError":
			s := status{status: number(n.child("", "error_Code").trimmed()), text: n.child("", "Message").trimmed()}
			// MessageID reads "HRESULT 0x80041010".
			if id, ok := strings.CutPrefix(n.child("", "MessageID").trimmed(), "HRESULT "); ok && s.status == 0 {
				s.status = number(id)
			}
			wmi = append(wmi, s)
		}
		for _, k := range n.kids {
			walk(k)
		}
	}
	walk(n)
	return append(list, wmi...)
}

// number reads a status: decimal, negative decimal or hexadecimal.
func number(s string) uint32 {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseUint(s, 0, 32); err == nil {
		return uint32(n)
	}
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return uint32(int32(n))
	}
	return 0
}

// clip bounds what a server may put into our errors.
func clip(s string) string {
	const limit = 600
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// httpError is an answer without a SOAP body.
func httpError(op string, code int) *cim.Error {
	e := &cim.Error{Op: op, Code: cim.CodeProtocol, Message: fmt.Sprintf("HTTP %d %s", code, http.StatusText(code))}
	switch code {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		e.Code = cim.CodeUnauthorized
	case http.StatusForbidden:
		e.Code = cim.CodeAccessDenied
	case http.StatusRequestEntityTooLarge, http.StatusTooManyRequests:
		e.Code = cim.CodeQuota
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		e.Code = cim.CodeTimeout
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		e.Code = cim.CodeUnavailable
	}
	return e
}
