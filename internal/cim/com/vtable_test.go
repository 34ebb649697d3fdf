package com

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/winetest"
)

// TestLayout has a C compiler compare tables, types and codes with mingw-w64's headers.
func TestLayout(t *testing.T) {
	t.Parallel()
	var c strings.Builder
	c.WriteString("#define COBJMACROS\n#include <stddef.h>\n#include <windows.h>\n#include <oaidl.h>\n#include <wbemcli.h>\n")
	assert := func(expr string, want uint32) {
		fmt.Fprintf(&c, "_Static_assert((unsigned)(%s) == %du, \"%s\");\n", expr, want, expr)
	}
	for method, place := range map[string]uint32{
		"IUnknown.QueryInterface": unknownQuery, "IUnknown.AddRef": unknownAddRef, "IUnknown.Release": unknownRelease,
		"IWbemLocator.ConnectServer": locatorConnect, "IWbemServices.GetObject": servicesGetObject, "IWbemServices.ExecQuery": servicesExecQuery,
		"IWbemServices.ExecMethod": servicesExecMethod, "IEnumWbemClassObject.Next": enumNext, "IWbemClassObject.Get": classGet,
		"IWbemClassObject.Put": classPut, "IWbemClassObject.BeginEnumeration": classBegin, "IWbemClassObject.Next": classNext,
		"IWbemClassObject.EndEnumeration": classEnd, "IWbemClassObject.SpawnInstance": classSpawn, "IWbemClassObject.GetMethod": classGetMethod,
		"IErrorInfo.GetDescription": errorDescription,
	} {
		face, name, _ := strings.Cut(method, ".")
		assert(fmt.Sprintf("offsetof(%sVtbl, %s)", face, name), place*8)
	}
	for name, want := range map[string]uint32{
		"CIM_SINT16": cimSint16, "CIM_SINT32": cimSint32, "CIM_REAL32": cimReal32, "CIM_REAL64": cimReal64, "CIM_STRING": cimString,
		"CIM_BOOLEAN": cimBoolean, "CIM_OBJECT": cimObject, "CIM_SINT8": cimSint8, "CIM_UINT8": cimUint8, "CIM_UINT16": cimUint16,
		"CIM_UINT32": cimUint32, "CIM_SINT64": cimSint64, "CIM_UINT64": cimUint64, "CIM_DATETIME": cimDateTime, "CIM_REFERENCE": cimReference,
		"CIM_CHAR16": cimChar16, "CIM_FLAG_ARRAY": cimArray,
		"VT_EMPTY": vtEmpty, "VT_NULL": vtNull, "VT_I2": vtI2, "VT_I4": vtI4, "VT_R4": vtR4, "VT_R8": vtR8, "VT_BSTR": vtBSTR, "VT_BOOL": vtBool,
		"VT_UNKNOWN": vtUnknown, "VT_I1": vtI1, "VT_UI1": vtUI1, "VT_UI2": vtUI2, "VT_UI4": vtUI4, "VT_I8": vtI8, "VT_UI8": vtUI8,
		"VT_INT": vtInt, "VT_UINT": vtUint, "VT_ARRAY": vtArray, "sizeof(VARIANT)": 24, "offsetof(VARIANT, lVal)": 8,
		"WBEM_E_NOT_FOUND": wbemNotFound, "WBEM_E_ACCESS_DENIED": wbemAccessDenied, "WBEM_E_INVALID_NAMESPACE": wbemInvalidNamespace,
		"WBEM_E_INVALID_CLASS": wbemInvalidClass, "WBEM_E_TRANSPORT_FAILURE": wbemTransport, "WBEM_E_INVALID_QUERY": wbemInvalidQuery,
		"WBEM_E_INVALID_QUERY_TYPE": wbemInvalidQueryType, "WBEM_E_INVALID_METHOD": wbemInvalidMethod,
		"WBEM_E_INVALID_METHOD_PARAMETERS": wbemMethodParameters, "WBEM_E_CALL_CANCELLED": wbemCallCancelled,
		"WBEM_E_SHUTTING_DOWN": wbemShuttingDown, "WBEM_E_SERVER_TOO_BUSY": wbemTooBusy, "WBEM_E_METHOD_NOT_IMPLEMENTED": wbemNotImplemented,
		"WBEM_E_METHOD_DISABLED": wbemMethodDisabled, "WBEM_E_TIMED_OUT": wbemTimedOut, "WBEM_E_QUOTA_VIOLATION": wbemQuota,
		"WBEM_S_FALSE": statusFalse, "WBEM_S_TIMEDOUT": statusTimedOut, "WBEM_S_NO_MORE_DATA": statusNoMore,
		"E_ACCESSDENIED": eAccessDenied, "E_NOINTERFACE": eNoInterface, "HRESULT_FROM_WIN32(ERROR_LOGON_FAILURE)": eLogonFailure,
		"HRESULT_FROM_WIN32(RPC_S_SERVER_UNAVAILABLE)": rpcUnavailable, "HRESULT_FROM_WIN32(RPC_S_CALL_FAILED)": rpcCallFailed,
		"HRESULT_FROM_WIN32(RPC_S_CALL_FAILED_DNE)": rpcNotExecuted, "RPC_E_CALL_CANCELED": rpcCancelled, "RPC_E_SERVER_DIED": rpcServerDied,
		"RPC_E_SERVER_DIED_DNE": rpcServerDiedDNE, "RPC_E_DISCONNECTED": rpcDisconnected, "RPC_E_TOO_LATE": rpcTooLate,
		"WBEM_FLAG_RETURN_IMMEDIATELY": flagReturnImmediately, "WBEM_FLAG_FORWARD_ONLY": flagForwardOnly, "WBEM_FLAG_NONSYSTEM_ONLY": flagNonSystemOnly,
		"WBEM_FLAG_CONNECT_USE_MAX_WAIT": flagConnectMaxWait, "CLSCTX_INPROC_SERVER": contextInproc, "RPC_C_AUTHN_DEFAULT": authnDefaultService,
		"RPC_C_AUTHN_LEVEL_PKT_PRIVACY": authnPacketPrivacy, "RPC_C_AUTHN_LEVEL_DEFAULT": authnDefault, "RPC_C_IMP_LEVEL_IMPERSONATE": impersonate,
		"RPC_C_AUTHZ_DEFAULT": authnDefaultService, "COINIT_MULTITHREADED": apartmentMultithreaded,
	} {
		assert(name, want)
	}
	winetest.Compile(t, c.String(), filepath.Join(t.TempDir(), "x.o"), "-c")
	if text, err := winetest.TryCompile(t, c.String()+`_Static_assert(CIM_UINT8 == 18, "wrong");`, filepath.Join(t.TempDir(), "y.o"), "-c"); err == nil ||
		!strings.Contains(text, "wrong") {
		t.Errorf("a wrong constant was not refused: %v\n%s", err, text)
	}
}
