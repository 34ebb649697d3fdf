package com

import "holdfast/internal/cim"

// HRESULTs that are told apart (wbemcli.h, winerror.h).
const (
	wbemNotFound         = 0x80041002
	wbemAccessDenied     = 0x80041003
	wbemInvalidNamespace = 0x8004100e
	wbemInvalidClass     = 0x80041010
	wbemTransport        = 0x80041015
	wbemInvalidQuery     = 0x80041017
	wbemInvalidQueryType = 0x80041018
	wbemInvalidMethod    = 0x8004102e
	wbemMethodParameters = 0x8004102f
	wbemCallCancelled    = 0x80041032
	wbemShuttingDown     = 0x80041033
	wbemTooBusy          = 0x80041045
	wbemNotImplemented   = 0x80041055
	wbemMethodDisabled   = 0x80041056
	wbemTimedOut         = 0x80041069
	wbemQuota            = 0x8004106c

	eAccessDenied    = 0x80070005
	eNoInterface     = 0x80004002
	eLogonFailure    = 0x8007052e
	rpcUnavailable   = 0x800706ba
	rpcCallFailed    = 0x800706be
	rpcNotExecuted   = 0x800706bf
	rpcCancelled     = 0x80010002
	rpcServerDied    = 0x80010007
	rpcServerDiedDNE = 0x80010012
	rpcDisconnected  = 0x80010108
	rpcTooLate       = 0x80010119

	statusFalse    = 1 // S_FALSE, WBEM_S_FALSE
	statusTimedOut = 0x40004
	statusNoMore   = 0x40005 // WBEM_S_NO_MORE_DATA
)

// classify finds the code that an HRESULT stands for.
func classify(status uint32) cim.Code {
	switch status {
	case wbemNotFound:
		return cim.CodeNotFound
	case wbemInvalidClass, wbemInvalidNamespace:
		return cim.CodeInvalidClass
	case wbemInvalidQuery, wbemInvalidQueryType:
		return cim.CodeInvalidQuery
	case wbemInvalidMethod, wbemMethodParameters, wbemNotImplemented, wbemMethodDisabled:
		return cim.CodeNoMethod
	case wbemAccessDenied, eAccessDenied:
		return cim.CodeAccessDenied
	case eLogonFailure:
		return cim.CodeUnauthorized
	case wbemQuota, wbemTooBusy:
		return cim.CodeQuota
	case wbemTimedOut, wbemCallCancelled, rpcCancelled:
		return cim.CodeTimeout
	case wbemTransport, wbemShuttingDown, rpcUnavailable, rpcCallFailed, rpcNotExecuted, rpcServerDied, rpcServerDiedDNE, rpcDisconnected:
		return cim.CodeUnavailable
	}
	return cim.CodeFailed
}

// failed reports whether an HRESULT is an error.
func failed(status uint32) bool { return status&0x80000000 != 0 }
