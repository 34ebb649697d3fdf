package soap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"holdfast/internal/cim"
)

// Kind is one row of the table that [DSP0226] 14.6 and the codes of
// Microsoft's wsmerror.h make together.
type Kind struct {
	Code     uint32 // of WSManFault
	Receiver bool   // s:Receiver instead of s:Sender
	Subcode  string // with prefix: w, a, n or x
	Detail   string // last part of the faultDetail URI, or empty
	Action   string
	Reason   string
}

const (
	actionWSMan    = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault"
	actionWSA      = NSWSA + "/fault"
	actionEnum     = NSEnum + "/fault"
	detailURI      = "http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/"
	servicePrefix  = "The WS-Management service cannot process the request. "
	codeMaxOpsUser = 2150859174
)

// The faults that this server sends.
var (
	faultVersion        = &Kind{2150858765, false, "s:VersionMismatch", "", actionWSA, "The SOAP version of the request is not supported."}
	faultMustUnderstand = &Kind{2150858768, false, "s:MustUnderstand", "", actionWSA, "The request has a header that must be understood, but is not."}
	faultHeaderRequired = &Kind{2150858769, false, "a:MessageInformationHeaderRequired", "", actionWSA, "A required header is missing."}
	faultInvalidHeader  = &Kind{2150858767, false, "a:InvalidMessageInformationHeader", "", actionWSA, "A header of the request is not valid."}
	faultInvalidTimeout = &Kind{2150858881, false, "a:InvalidMessageInformationHeader", "InvalidTimeout", actionWSMan, "The value of the timeout header is not valid."}
	FaultAction         = &Kind{2150858753, false, "a:ActionNotSupported", "", actionWSA, "The action is not supported by the service."}
	faultNotFound       = &Kind{2150858752, false, "a:DestinationUnreachable", "InvalidResourceURI", actionWSA,
		"The service cannot find the resource identified by the resource URI and selectors."}
	FaultInvalidResource = &Kind{2150858811, false, "a:DestinationUnreachable", "InvalidResourceURI", actionWSA, "The resource URI is not valid."}
	FaultEnumWQL         = &Kind{2150859003, false, "a:DestinationUnreachable", "InvalidResourceURI", actionWSA,
		"The resource URI of an enumeration with a WQL filter must end in the class *, and only such a one may."}
	faultDifferentNamespace = &Kind{2150859067, false, "w:InternalError", "", actionWSMan,
		"The resource URI and the __cimnamespace selector name different namespaces."}
	faultInvalidSelectors   = &Kind{2150858813, false, "w:InvalidSelectors", "", actionWSMan, "The request contains invalid selectors for the resource."}
	FaultMissingSelectors   = &Kind{2150858842, false, "w:InvalidSelectors", "InsufficientSelectors", actionWSMan, "The selectors do not suffice to name an instance."}
	FaultUnknownSelectors   = &Kind{2150858843, false, "w:InvalidSelectors", "UnexpectedSelectors", actionWSMan, "The request contains selectors that the resource does not have."}
	FaultSelectorType       = &Kind{2150858844, false, "w:InvalidSelectors", "TypeMismatch", actionWSMan, "The value of a selector has the wrong type."}
	FaultAmbiguousSelectors = &Kind{2150858846, false, "w:InvalidSelectors", "AmbiguousSelectors", actionWSMan, "The selectors match more than one instance."}
	faultDuplicateSelectors = &Kind{2150858847, false, "w:InvalidSelectors", "DuplicateSelectors", actionWSMan, "A selector is there more than once."}
	faultSelectorLimit      = &Kind{2150858826, false, "w:EncodingLimit", "SelectorLimit", actionWSMan, "There are too many selectors."}
	faultMinEnvelope        = &Kind{2150858878, false, "w:EncodingLimit", "MinimumEnvelopeLimit", actionWSMan, "The envelope size that was asked for is too small."}
	FaultTooLargeForClient  = &Kind{2150858824, false, "w:EncodingLimit", "MaxEnvelopeSizeExceeded", actionWSMan, "The response exceeds the maximum envelope size of the request."}
	FaultTooLargeForServer  = &Kind{2150858825, false, "w:EncodingLimit", "ServiceEnvelopeLimit", actionWSMan, "The envelope exceeds the limit of the service, MaxEnvelopeSizekb."}
	FaultCharset            = &Kind{2150858828, false, "w:EncodingLimit", "CharacterSet", actionWSMan, "The character set of the request is not supported or its text is damaged."}
	faultInvalidXML         = &Kind{2150858819, false, "w:SchemaValidationError", "", actionWSMan, "The request contains XML that is not valid."}
	FaultSchema             = &Kind{2150858817, false, "w:SchemaValidationError", "", actionWSMan, "The XML of the request does not match its schema."}
	FaultParameterName      = &Kind{2150858837, false, "w:InvalidParameter", "InvalidName", actionWSMan, "The operation has no parameter of that name."}
	FaultTypeMismatch       = &Kind{2150858836, false, "w:InvalidParameter", "TypeMismatch", actionWSMan, "A parameter's value does not have the parameter's type."}
	FaultValues             = &Kind{2150858838, false, "x:InvalidRepresentation", "InvalidValues", NSTransfer + "/fault", "The representation has values that are not valid."}
	faultAddressingMode     = &Kind{2150858870, false, "w:UnsupportedFeature", "AddressingMode", actionWSMan, "The addressing mode is not supported."}
	faultLocale             = &Kind{2150858887, false, "w:UnsupportedFeature", "Locale", actionWSMan, "The locale is not supported."}
	faultFragment           = &Kind{2150858871, false, "w:UnsupportedFeature", "FragmentLevelAccess", actionWSMan, "Fragment transfer is not supported."}
	FaultEnumMode           = &Kind{2150858886, false, "w:UnsupportedFeature", "EnumerationMode", actionWSMan, "The enumeration mode is not supported."}
	FaultPolymorphism       = &Kind{2150859063, false, "w:UnsupportedFeature", "", actionWSMan, "The polymorphism mode is not supported."}
	FaultDialect            = &Kind{2150858777, false, "n:FilterDialectRequestedUnavailable", "", actionEnum, "The filter dialect is not supported."}
	FaultFilter             = &Kind{2150858778, false, "n:CannotProcessFilter", "", actionEnum, "The data source could not process the filter. The filter might be missing or it might be invalid."}
	FaultContext            = &Kind{2150858779, true, "n:InvalidEnumerationContext", "", actionEnum, "The enumeration context is not valid: it ended, expired or never was."}
	FaultExpiration         = &Kind{2150858774, false, "n:InvalidExpirationTime", "", actionEnum, "The expiration time is not valid."}
	FaultPullParams         = &Kind{2150859181, false, "w:InvalidParameter", "", actionWSMan, "The pull names another resource than the enumeration."}
	FaultConcurrency        = &Kind{2150858758, false, "w:Concurrency", "", actionWSMan, "Another pull of the same enumeration is in progress."}
	faultAccessDenied       = &Kind{5, false, "w:AccessDenied", "", actionWSMan, "Access is denied."}
	faultQuota              = &Kind{2150858815, false, "w:QuotaLimit", "", actionWSMan, "A quota of the service was exceeded."}
	faultTimedOut           = &Kind{2150858793, true, "w:TimedOut", "", actionWSMan, "The operation did not complete within the time specified in OperationTimeout."}
	FaultInternal           = &Kind{2150858755, true, "w:InternalError", "", actionWSMan, "The provider of the resource failed."}
)

// Fault is a SOAP fault to be sent.
type Fault struct {
	*Kind
	Override uint32 // overrides that of the kind unless 0
	Message  string // what exactly is wrong
	provider bool   // the WMI provider's words: goes into a ProviderFault
	status   uint32 // HRESULT of the provider
	op       string // what the provider was asked for, for its extended status
	param    string // the query or path, likewise
	wmiError bool   // the detail is an MSFT_WmiError, as the quotas of users are

	// Way is set if it was not an operation that failed, but the way to what serves it: CodeUnavailable, CodeUnauthorized or
	// CodeProtocol. No fault says that; the server lets its own client's way fail likewise.
	Way cim.Code
}

// NewFault returns a fault of the server itself; message says what exactly is wrong.
func NewFault(k *Kind, message string) *Fault { return &Fault{Kind: k, Message: message} }

// Value is the code of WSManFault.
func (f *Fault) Value() uint32 {
	if f.Override != 0 {
		return f.Override
	}
	return f.Kind.Code
}

func (f *Fault) words() string {
	if f.Kind == faultAccessDenied {
		return f.Reason
	}
	s := servicePrefix + f.Reason
	if f.Message != "" && !f.provider {
		first, rest := f.Message[:1], f.Message[1:]
		s += " " + strings.ToUpper(first) + rest + "."
	}
	return s
}

// HRESULTs of WMI ([MS-WMI] 2.2.11).
const (
	wbemFailed        = 0x80041001
	wbemNotFound      = 0x80041002
	wbemAccessDenied  = 0x80041003
	wbemInvalidClass  = 0x80041010
	wbemInvalidQuery  = 0x80041017
	wbemInvalidMethod = 0x8004102e
	wbemQuota         = 0x8004106c
)

// SessionFault turns an error of the session into what Windows answers. filter
// tells that a query by filter failed: its faults are those of filters.
func SessionFault(err error, op, param string, filter bool) *Fault {
	f := &Fault{provider: true, op: op, param: param, Message: err.Error()}
	var ce *cim.Error
	if errors.As(err, &ce) {
		f.status = ce.Status
		if ce.Message != "" {
			f.Message = ce.Message
		}
	}
	status := uint32(0)
	code := cim.CodeOf(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded), code == cim.CodeTimeout:
		return NewFault(faultTimedOut, "")
	case code == cim.CodeNotFound:
		f.Kind, status = faultNotFound, wbemNotFound
	case code == cim.CodeInvalidClass && filter:
		f.Kind, status = FaultFilter, wbemInvalidClass
	case code == cim.CodeInvalidClass:
		f.Kind, status = faultNotFound, wbemInvalidClass
	case code == cim.CodeInvalidQuery:
		f.Kind, status = FaultFilter, wbemInvalidQuery
	case code == cim.CodeNoMethod:
		f.Kind, status = FaultAction, wbemInvalidMethod
	case code == cim.CodeAccessDenied, code == cim.CodeUnauthorized:
		f.Kind, status = faultAccessDenied, wbemAccessDenied
	case code == cim.CodeQuota:
		f.Kind, status, f.wmiError = faultQuota, wbemQuota, true
	default:
		f.Kind, status = FaultInternal, wbemFailed
	}
	if code == cim.CodeUnavailable || code == cim.CodeUnauthorized || code == cim.CodeProtocol {
		f.Way = code
	}
	if f.status == 0 {
		f.status = status
	}
	return f
}

// QuotaFault is what a user gets who has too many operations open.
func QuotaFault(limit int) *Fault {
	f := NewFault(faultQuota, fmt.Sprintf("this user is allowed a maximum number of %d concurrent operations, which has been exceeded", limit))
	f.Override, f.wmiError = codeMaxOpsUser, true
	return f
}

// Body renders the fault as the content of a body; machine is the computer that reports it.
func (f *Fault) Body(machine string) []byte {
	var b bytes.Buffer
	role, sub := "s:Sender", f.Subcode
	if f.Receiver {
		role = "s:Receiver"
	}
	b.WriteString("<s:Fault><s:Code>")
	if strings.HasPrefix(sub, "s:") {
		Element(&b, "s:Value", sub) // these two are codes of SOAP itself
	} else {
		Element(&b, "s:Value", role)
		b.WriteString("<s:Subcode>")
		Element(&b, "s:Value", sub)
		b.WriteString("</s:Subcode>")
	}
	b.WriteString(`</s:Code><s:Reason><s:Text xml:lang="en-US">`)
	Escape(&b, f.words())
	b.WriteString("</s:Text></s:Reason><s:Detail>")
	if f.Detail != "" {
		Element(&b, "w:FaultDetail", detailURI+f.Detail)
	}
	if f.wmiError {
		f.writeWMIError(&b)
	} else {
		f.writeWSManFault(&b, machine)
	}
	b.WriteString("</s:Detail></s:Fault>")
	return b.Bytes()
}

func (f *Fault) writeWSManFault(b *bytes.Buffer, machine string) {
	open := func(code uint32) {
		fmt.Fprintf(b, `<f:WSManFault xmlns:f="%s" Code="%d" Machine="`, nsFault, code)
		Escape(b, machine)
		b.WriteString(`"><f:Message>`)
	}
	open(f.Value())
	if !f.provider {
		Escape(b, f.words())
		b.WriteString("</f:Message></f:WSManFault>")
		return
	}
	b.WriteString(`<f:ProviderFault provider="WMI Provider" path="%systemroot%\system32\WsmWmiPl.dll">`)
	open(f.Value())
	Escape(b, f.words())
	b.WriteString("</f:Message></f:WSManFault><f:ExtendedError>")
	uri := URIWMI + "root/cimv2/__ExtendedStatus"
	fmt.Fprintf(b, `<p:__ExtendedStatus xmlns:xsi="%s" xmlns:p="%s" xmlns:cim="%s" xsi:type="p:__ExtendedStatus_Type">`, NSXSI, uri, NSCommon)
	Element(b, "p:Description", f.Message)
	Element(b, "p:Operation", f.op)
	Element(b, "p:ParameterInfo", f.param)
	Element(b, "p:ProviderName", "WinMgmt")
	Element(b, "p:StatusCode", fmt.Sprint(f.status))
	b.WriteString("</p:__ExtendedStatus></f:ExtendedError></f:ProviderFault></f:Message></f:WSManFault>")
}

// writeWMIError renders an MSFT_WmiError, the form of faults that come from the
// infrastructure below the providers.
func (f *Fault) writeWMIError(b *bytes.Buffer) {
	code := f.Value()
	text := f.words()
	if f.provider {
		text = f.Message
	}
	fmt.Fprintf(b, `<p:MSFT_WmiError xmlns:b="%s" xmlns:p="%sroot/cimv2/MSFT_WmiError" xmlns:cim="%s" xmlns:xsi="%s" b:IsCIM_Error="true" xsi:type="p:MSFT_WmiError_Type">`,
		NSBinding, URIWMI, NSCommon, NSXSI)
	number := func(name, kind string, v any) {
		fmt.Fprintf(b, `<p:%s xsi:type="cim:%s">%v</p:%s>`, name, kind, v, name)
	}
	null := func(name string) { fmt.Fprintf(b, `<p:%s xsi:nil="true"/>`, name) }
	number("CIMStatusCode", "cimUnsignedInt", 27) // server limits exceeded
	null("CIMStatusCodeDescription")
	null("ErrorSource")
	number("ErrorSourceFormat", "cimUnsignedShort", 0)
	number("ErrorType", "cimUnsignedShort", 0)
	Element(b, "p:Message", text)
	Element(b, "p:MessageID", fmt.Sprintf("HRESULT 0x%08x", code))
	null("OtherErrorSourceFormat")
	null("OtherErrorType")
	null("OwningEntity")
	number("PerceivedSeverity", "cimUnsignedShort", 0)
	number("ProbableCause", "cimUnsignedShort", 0)
	null("ProbableCauseDescription")
	number("error_Category", "cimUnsignedShort", 30)
	number("error_Code", "cimUnsignedInt", code)
	Element(b, "p:error_Type", "HRESULT")
	Element(b, "p:error_WindowsErrorMessage", text)
	b.WriteString("</p:MSFT_WmiError>")
}
