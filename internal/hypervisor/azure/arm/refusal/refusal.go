// Package refusal says what a no of Azure means: it makes of the errors of Microsoft's
// SDK (Resource Manager, storage, Entra ID, the network) errors of the catalogue,
// in one line and without anything secret.
package refusal

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"holdfast/internal/dr"
)

// MaxSkew is how far this machine's clock may be from Azure's. Tokens are taken
// within five minutes of their times, shared-key signatures within fifteen.
const MaxSkew = 5 * time.Minute

// Refusal is what Azure said no with. It is the cause in the errors that Classify
// makes, shortened to one line and without anything secret; the SDK's error is
// behind it.
type Refusal struct {
	Status      int    // of the HTTP answer; 0 if there was none
	Code        string // Azure's or Entra ID's: "QuotaExceeded", "AADSTS7000222"
	Words       string // what Azure says for people
	Correlation string // for Microsoft's support
	err         error
}

// Error renders "QuotaExceeded (HTTP 409): words (correlation id …)".
func (r *Refusal) Error() string {
	code := r.Code
	if code == "" {
		code = "no error code"
	}
	text := code
	if r.Status != 0 {
		text += fmt.Sprintf(" (HTTP %d)", r.Status)
	}
	if r.Words != "" {
		text += ": " + r.Words
	}
	if r.Correlation != "" {
		text += " (correlation id " + r.Correlation + ")"
	}
	return text
}

// Unwrap returns the SDK's error. Its text has many lines; don't print it.
func (r *Refusal) Unwrap() error { return r.err }

// rule says what a code of Azure means. A rule with words is for messages that
// match only; the first rule that fits counts.
type rule struct {
	codes  []string
	words  *regexp.Regexp
	kind   dr.Kind
	code   dr.Code
	action string // what the message says, after the object
	hint   string // "" = the catalogue's
}

var (
	quotaWords   = regexp.MustCompile(`(?i)\bquota\b|exceed(ing|s)? (the )?(approved|maximum|limit)|core.{0,20}limit`)
	dataDisks    = regexp.MustCompile(`(?i)maximum number of data disks|too many data disks`)
	expiredWords = regexp.MustCompile(`(?i)not valid in the specified time frame|signature.{0,30}expired|SAS.{0,40}expired`)
	skewWords    = regexp.MustCompile(`(?i)request date header too old|not within its valid time range`)
)

// Rules for Azure Resource Manager and its providers ("Troubleshoot common Azure
// deployment errors", "Resolve errors …" of the compute and network documentation)
// and for storage ("Common REST API error codes", "Blob service error codes").
func rules() []rule {
	return []rule{
		{codes: []string{"AuthorizationFailed", "LinkedAuthorizationFailed", "AuthorizationPermissionMismatch", "InsufficientAccountPermissions"},
			kind: dr.KindForbidden, code: dr.CodeAzureRole, action: "the identity has no role that allows this"},
		{codes: []string{"KeyBasedAuthenticationNotPermitted"}, kind: dr.KindForbidden, code: dr.CodeAzureRole, action: "the storage account takes no shared key",
			hint: "Leave the key out of the configuration and give the identity the role 'Storage Blob Data Contributor', or allow shared keys on the account."},
		{codes: []string{"RequestDisallowedByPolicy", "RequestDisallowedByAzure"}, kind: dr.KindForbidden, code: dr.CodeAzurePolicy, action: "a policy forbids it"},
		{codes: []string{"OperationNotAllowed", "InvalidParameter"}, words: dataDisks, kind: dr.KindUnsupported, code: dr.CodeAzureDisk, action: "the size does not take that many disks"},
		{codes: []string{"QuotaExceeded", "ResourceQuotaExceeded", "SubscriptionQuotaExceeded", "PublicIPCountLimitReached", "NetworkInterfaceCountLimitReached",
			"VirtualNetworkCountLimitReached", "NetworkSecurityGroupCountLimitReached", "ResourceCountExceedsLimitDueToTemplate", "MaxStorageAccountsCountPerSubscriptionExceeded"},
			kind: dr.KindExhausted, code: dr.CodeAzureQuota, action: "the quota does not suffice"},
		{codes: []string{"OperationNotAllowed", "InvalidTemplateDeployment", "DeploymentFailed", "Conflict"}, words: quotaWords, kind: dr.KindExhausted, code: dr.CodeAzureQuota, action: "the quota does not suffice"},
		{codes: []string{"SkuNotAvailable", "VMSizeNotSupported", "NotAvailableForSubscription", "NetworkInterfaceCountExceeded", "NicCountExceededForVmSize", "VMSizeDoesntSupportPremiumStorage"},
			kind: dr.KindPrecondition, code: dr.CodeAzureSize, action: "the VM size can't be had, or does not fit"},
		{codes: []string{"AllocationFailed", "ZonalAllocationFailed", "OverconstrainedAllocationRequest", "OverconstrainedZonalAllocationRequest"},
			kind: dr.KindExhausted, code: dr.CodeAzureCapacity, action: "the region has no room for it now"},
		{codes: []string{"ScopeLocked"}, kind: dr.KindConflict, code: dr.CodeAzureLocked, action: "a lock forbids it"},
		{codes: []string{"SubnetIsFull", "SubnetWithoutFreeAddresses", "InsufficientSubnetSize"}, kind: dr.KindExhausted, code: dr.CodeAzureSubnet, action: "the subnet has no free address"},
		{codes: []string{"PrivateIPAddressIsAllocated", "PrivateIPAddressNotInSubnet", "PrivateIPAddressNotInAnySubnet", "PrivateIPAddressInReservedRange", "IPAddressIsAllocated", "PrivateIPAddressInUse"},
			kind: dr.KindConflict, code: dr.CodeAzureAddress, action: "the address can't be had"},
		{codes: []string{"MissingSubscriptionRegistration", "SubscriptionNotRegistered", "SubscriptionNotRegisteredForFeature"}, kind: dr.KindPrecondition, code: dr.CodeAzureProvider, action: "the resource provider is not registered"},
		{codes: []string{"ReadOnlyDisabledSubscription", "SubscriptionDisabled"}, kind: dr.KindPrecondition, code: dr.CodeAzureOperation, action: "the subscription is disabled",
			hint: "Enable the subscription again in the portal (billing), or choose another one."},
		{codes: []string{"SubscriptionNotFound", "InvalidSubscriptionId"}, kind: dr.KindNotFound, code: dr.CodeAzureNotFound, action: "the subscription is not there for this identity",
			hint: "Check subscription and tenant: an identity of another tenant does not see the subscription, nor does one without any role in it."},
		{codes: []string{"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"}, kind: dr.KindNotFound, code: dr.CodeAzureContainer, action: "the container is not there"},
		{codes: []string{"ResourceGroupBeingDeleted"}, kind: dr.KindPrecondition, code: dr.CodeAzureNotFound, action: "the resource group is being deleted"},
		{codes: []string{"ResourceGroupNotFound", "ResourceNotFound", "NotFound", "ParentResourceNotFound", "InvalidResourceReference", "ReferencedResourceNotFound", "BlobNotFound", "ResourceMovedOrNotFound"},
			kind: dr.KindNotFound, code: dr.CodeAzureNotFound, action: "Azure has no such resource"},
		{codes: []string{"AuthenticationFailed", "InvalidAuthenticationInfo"}, words: skewWords, kind: dr.KindPrecondition, code: dr.CodeAzureClock, action: "the time of the request is not accepted"},
		{codes: []string{"AuthenticationFailed", "InvalidAuthenticationInfo", "AccountIsDisabled"}, kind: dr.KindForbidden, code: dr.CodeAzureSignature, action: "the signature or token is refused"},
		{codes: []string{"AuthorizationFailure", "NetworkAccessDenied", "PublicAccessNotPermitted", "RequestForbiddenByFirewall", "AuthorizationSourceIPMismatch"},
			kind: dr.KindForbidden, code: dr.CodeAzureFirewall, action: "the storage account refuses this machine's network"},
		{codes: []string{"AuthorizationPermissionDenied", "AuthorizationProtocolMismatch", "AuthorizationServiceMismatch", "AuthorizationResourceTypeMismatch"},
			kind: dr.KindForbidden, code: dr.CodeAzureSignature, action: "the signed address does not allow this"},
		{codes: []string{"InvalidAuthenticationToken", "InvalidAuthenticationTokenTenant", "ExpiredAuthenticationToken", "AuthenticationFailedInvalidHeader"},
			kind: dr.KindUnauthenticated, code: dr.CodeAzureSignIn, action: "the token is not accepted"},
		{codes: []string{"TooManyRequests", "SubscriptionRequestsThrottled", "ServerBusy", "ServiceUnavailable", "OperationTimedOut", "ThrottledRequest"},
			kind: dr.KindExhausted, code: dr.CodeAzureThrottled, action: "Azure takes no more requests now"},
		{codes: []string{"DiskSizeTooLarge", "DiskSizeNotSupported", "StorageAccountTypeNotSupported", "DiskCountExceeded"}, kind: dr.KindUnsupported, code: dr.CodeAzureDisk, action: "Azure does not take the disk"},
	}
}

// signInRules are for codes of Microsoft Entra ID ("Microsoft Entra
// authentication and authorization error codes").
func signInRules() map[string]struct{ action, hint string } {
	type r = struct{ action, hint string }
	renew := "Make a new client secret for the application in Entra ID, and put it into the configured file: the file is read again by itself."
	return map[string]r{
		"AADSTS7000222": {"the client secret or certificate has expired", renew},
		"AADSTS7000215": {"the client secret is wrong", "Use the secret's value, not its id, in the configured file. " + renew},
		"AADSTS7000216": {"no secret or certificate was sent", renew},
		"AADSTS90002":   {"there is no such tenant in this cloud", "Correct tenant in the configuration; for Azure Government and China set cloud."},
		"AADSTS900021":  {"the tenant's id is not valid", "Correct tenant in the configuration."},
		"AADSTS900023":  {"the tenant's name is not valid", "Correct tenant in the configuration."},
		"AADSTS700016":  {"the tenant has no such application", "Correct credential.clientId or tenant in the configuration."},
		"AADSTS7000112": {"the application is disabled", "Enable the application (service principal) in Entra ID."},
		"AADSTS700027":  {"the certificate is not one of the application's, or has expired", "Upload the certificate of the configured file to the application in Entra ID."},
		"AADSTS700021":  {"no federated credential fits the token", "Check issuer, subject and audience of the application's federated credential."},
		"AADSTS700211":  {"no federated credential fits the token's issuer", "Check the issuer of the application's federated credential."},
		"AADSTS700213":  {"no federated credential fits the token's subject", "Check the subject of the application's federated credential."},
		"AADSTS70021":   {"no federated credential fits the token", "Check issuer, subject and audience of the application's federated credential."},
		"AADSTS500011":  {"the tenant does not know Resource Manager under this name", "Correct cloud (or audience) in the configuration."},
		"AADSTS53003":   {"a conditional access policy blocks the identity", "Exempt the identity from the policy, or sign in from a place that it allows."},
		"AADSTS50057":   {"the account is disabled", "Enable the identity in Entra ID."},
	}
}

// clockSignIn are Entra ID's codes for assertions that are not valid yet or any more.
func clockSignIn(code string) bool { return code == "AADSTS700024" || code == "AADSTS500133" }

var entraCode = regexp.MustCompile(`AADSTS\d{4,9}`)

// Classify makes of an error of the SDK (Resource Manager, storage, Entra ID, the
// network) a *dr.Error with a code of the catalogue, a one-line message that names
// object (a resource's id), and Azure's code, words and correlation id as its
// cause (a *Refusal). Errors that are classified already, and nil, stay as they are.
func Classify(op, object string, err error) error { return classify(op, object, err, time.Now()) }

func classify(op, object string, err error, now time.Time) error {
	if err == nil {
		return nil
	}
	if known := (*dr.Error)(nil); errors.As(err, &known) {
		return err
	}
	var response *azcore.ResponseError
	var signIn *azidentity.AuthenticationFailedError
	var required *azidentity.AuthenticationRequiredError
	switch {
	case errors.As(err, &signIn), errors.As(err, &required):
		return classifySignIn(op, object, err, signIn, now)
	case errors.As(err, &response):
		return classifyResponse(op, object, response, now)
	case strings.Contains(err.Error(), "CredentialUnavailable"), strings.Contains(err.Error(), "failed to acquire a token"), isUnavailableCredential(err):
		return signInError(op, object, "no credential could be used", &Refusal{Words: clip(Scrub(oneLine(err.Error()))), err: err},
			"Set credential in the configuration to what this machine has: a managed identity, a client secret or a certificate.")
	case errors.Is(err, context.Canceled):
		return &dr.Error{Kind: dr.KindCanceled, Op: op, Message: object + ": cancelled", Err: context.Canceled}
	}
	return classifyNetwork(op, object, err)
}

func isUnavailableCredential(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "ManagedIdentityCredential:") || strings.HasPrefix(text, "DefaultAzureCredential:") || strings.HasPrefix(text, "WorkloadIdentityCredential")
}

func signInError(op, object, what string, r *Refusal, hint string) error {
	return &dr.Error{Kind: dr.KindUnauthenticated, Code: dr.CodeAzureSignIn, Op: op, Message: fmt.Sprintf("signing in %s: %s", object, what), Hint: hint, Err: r}
}

func classifySignIn(op, object string, err error, failed *azidentity.AuthenticationFailedError, now time.Time) error {
	r := &Refusal{err: err}
	if failed == nil || failed.RawResponse == nil {
		words, _, _ := strings.Cut(oneLine(err.Error()), " To troubleshoot, visit")
		switch { // the library keeps the text of a network's error only
		case strings.Contains(words, "context canceled"):
			return &dr.Error{Kind: dr.KindCanceled, Op: op, Message: "signing in " + object + ": cancelled", Err: context.Canceled}
		case isNetwork(err) || netPhrases.MatchString(words):
			out := &dr.Error{Kind: dr.KindUnavailable, Code: dr.CodeAzureUnreachable, Op: op, Message: "signing in " + object + ": no answer", Err: &hidden{clip(Scrub(words)), err}}
			if strings.Contains(words, "x509:") || strings.Contains(words, "certificate") {
				out.Hint = hintInspected
			}
			return out
		}
		r.Words = clip(Scrub(words))
		r.Code = entraCode.FindString(r.Words)
		return signInError(op, object, "refused", r, "")
	}
	resp := failed.RawResponse
	r.Status, r.Correlation = resp.StatusCode, correlation(resp)
	var body struct {
		Error         string `json:"error"`
		Description   string `json:"error_description"`
		CorrelationID string `json:"correlation_id"`
	}
	payload, _ := runtime.Payload(resp) // what can't be read says nothing
	if json.Unmarshal(payload, &body) == nil {
		first, _, _ := strings.Cut(body.Description, " Trace ID:")
		first, _, _ = strings.Cut(first, "\r\n")
		r.Words, r.Code = clip(Scrub(oneLine(first))), entraCode.FindString(body.Description)
		if r.Code == "" {
			r.Code = Scrub(body.Error)
		}
		if body.CorrelationID != "" {
			r.Correlation = body.CorrelationID
		}
	}
	if r.Status == http.StatusTooManyRequests || r.Status >= 500 {
		return &dr.Error{Kind: dr.KindExhausted, Code: dr.CodeAzureThrottled, Op: op, Message: "signing in " + object + ": Entra ID takes no request now", Err: r}
	}
	if skew, off := skewed(resp, now); off || clockSignIn(r.Code) {
		return clockError(op, "signing in "+object, skew, r)
	}
	what := "Entra ID refuses the identity"
	hint := ""
	if s, ok := signInRules()[r.Code]; ok {
		what, hint = s.action, s.hint
	}
	return signInError(op, object, what, r, hint)
}

// skewed compares this machine's clock with the Date of an answer; positive = this
// machine's is ahead.
func skewed(resp *http.Response, now time.Time) (time.Duration, bool) {
	if resp == nil {
		return 0, false
	}
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, false
	}
	d := now.Sub(date).Round(time.Second)
	return d, d.Abs() > MaxSkew
}

func clockError(op, object string, skew time.Duration, r *Refusal) error {
	return dr.New(dr.KindPrecondition, dr.CodeAzureClock, op, "%s: refused, and this machine's clock is %s: %w", object, SkewText(skew), r)
}

// SkewText says how this machine's clock is; positive = ahead of Azure's.
func SkewText(d time.Duration) string {
	switch {
	case d > 0:
		return d.String() + " ahead of Azure's"
	case d < 0:
		return (-d).String() + " behind Azure's"
	}
	return "not what Azure expects"
}

func classifyResponse(op, object string, e *azcore.ResponseError, now time.Time) error {
	r := &Refusal{Status: e.StatusCode, Code: e.ErrorCode, err: e}
	if e.RawResponse != nil {
		r.Correlation = correlation(e.RawResponse)
		code, words := refusalBody(e.RawResponse)
		r.Words = clip(words)
		if r.Code == "" {
			r.Code = code
		}
	}
	if r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden && r.Code == "AuthenticationFailed" {
		if skew, off := skewed(e.RawResponse, now); off {
			return clockError(op, object, skew, r)
		}
	}
	out := &dr.Error{Op: op, Err: r}
	for _, x := range rules() {
		if slices.Contains(x.codes, r.Code) && (x.words == nil || x.words.MatchString(r.Words)) && (r.Code != "OperationNotAllowed" || r.Status != http.StatusTooManyRequests) {
			out.Kind, out.Code, out.Message, out.Hint = x.kind, x.code, object+": "+x.action, x.hint
			if x.code == dr.CodeAzureSignature && expiredWords.MatchString(r.Words) {
				out.Message = object + ": the signed address has ended"
			}
			return out
		}
	}
	switch {
	case r.Status == http.StatusTooManyRequests || r.Status == http.StatusServiceUnavailable:
		out.Kind, out.Code, out.Message = dr.KindExhausted, dr.CodeAzureThrottled, object+": Azure takes no more requests now"
		if d := RetryAfter(e.RawResponse); d > 0 {
			out.Message += fmt.Sprintf("; it asks to wait %s", d)
		}
	case r.Status == http.StatusUnauthorized:
		out.Kind, out.Code, out.Message = dr.KindUnauthenticated, dr.CodeAzureSignIn, object+": Azure does not take the token"
	case r.Status == http.StatusForbidden:
		out.Kind, out.Code, out.Message = dr.KindForbidden, dr.CodeAzureRole, object+": Azure forbids it"
	case r.Status == http.StatusNotFound:
		out.Kind, out.Code, out.Message = dr.KindUnavailable, dr.CodeAzureOperation, object+": the answer is 404 without a reason that says the resource is absent"
		if r.Code != "" { // some provider's own word for it, such as VMNotFound
			out.Kind, out.Code, out.Message = dr.KindNotFound, dr.CodeAzureNotFound, object+": Azure has no such resource"
		}
	case r.Status == http.StatusConflict, r.Status == http.StatusPreconditionFailed:
		out.Kind, out.Code, out.Message = dr.KindConflict, dr.CodeAzureOperation, object+": its state does not allow it now"
	case r.Status == http.StatusBadRequest:
		out.Kind, out.Code, out.Message = dr.KindInvalid, dr.CodeAzureOperation, object+": Azure does not take the request"
	default:
		out.Kind, out.Code, out.Message = dr.KindUnavailable, dr.CodeAzureOperation, object+": the operation failed in Azure"
	}
	return out
}

// IsAbsent tells that Azure said that the resource which was asked for does not
// exist. No other failure means that.
func IsAbsent(err error) bool {
	var r *Refusal
	if !errors.As(err, &r) || r.Status != http.StatusNotFound {
		return false
	}
	return dr.CodeOf(err) == dr.CodeAzureNotFound && r.Code != "SubscriptionNotFound" && r.Code != "InvalidSubscriptionId"
}

// Of is what Azure said, nil if the error does not come from an answer.
func Of(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	return nil
}

func correlation(resp *http.Response) string {
	for _, h := range []string{"x-ms-correlation-request-id", "x-ms-request-id", "client-request-id"} {
		if v := resp.Header.Get(h); v != "" && len(v) <= 100 {
			return Scrub(oneLine(v))
		}
	}
	return ""
}

// refusalBody takes code and words out of an error's body: ARM's JSON or storage's XML.
func refusalBody(resp *http.Response) (code, words string) {
	payload, err := runtime.Payload(resp)
	if err != nil || len(payload) == 0 {
		return "", ""
	}
	type inner struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Details []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"details"`
	}
	var a struct {
		inner
		Error *inner `json:"error"`
	}
	if json.Unmarshal(payload, &a) == nil {
		if a.Error != nil {
			a.inner = *a.Error
		}
		words = a.Message
		for _, d := range a.Details {
			if d.Message != "" && !strings.Contains(words, d.Message) {
				words += " " + d.Message
			}
		}
		return a.Code, Scrub(oneLine(words))
	}
	var x struct {
		Code    string
		Message string
		Detail  string `xml:"AuthenticationErrorDetail"`
	}
	if xml.Unmarshal(payload, &x) == nil {
		first, _, _ := strings.Cut(x.Message, "\n") // request id and time follow
		words = first
		if d := oneLine(x.Detail); expiredWords.MatchString(d) || skewWords.MatchString(d) { // others repeat the signature
			words += " " + d
		}
		return x.Code, Scrub(oneLine(words))
	}
	return "", ""
}

func isNetwork(err error) bool {
	var n net.Error
	var u *url.Error
	var dns *net.DNSError
	var opErr *net.OpError
	return errors.As(err, &n) || errors.As(err, &u) || errors.As(err, &dns) || errors.As(err, &opErr) || errors.Is(err, context.DeadlineExceeded)
}

func classifyNetwork(op, object string, err error) error {
	host := ""
	var u *url.Error
	if errors.As(err, &u) {
		if a, perr := url.Parse(u.URL); perr == nil {
			host = a.Host
		}
	}
	out := &dr.Error{Kind: dr.KindUnavailable, Code: dr.CodeAzureUnreachable, Op: op, Err: &hidden{Scrub(NetWords(err)), err}}
	out.Message = object + ": no answer"
	if host != "" {
		out.Message = object + ": no answer from " + host
	}
	var unknown x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		out.Hint = "Check this machine's clock first; if it is right, a proxy shows a certificate that has ended."
	case errors.As(err, &unknown), errors.As(err, &verify):
		out.Hint = hintInspected
	}
	return out
}

const hintInspected = "Something between this machine and Azure opens TLS (an inspecting proxy): exempt Azure's addresses there, or add its authority with caFile."

// netPhrases are words of net, net/http and crypto/x509 for a way that is not open.
var netPhrases = regexp.MustCompile(`dial tcp|no such host|connection (refused|reset)|i/o timeout|x509: |tls: |deadline exceeded|: EOF|unexpected EOF|proxyconnect|server misbehaving|network is unreachable`)

// hidden shows an error without the addresses in it, whose queries may hold a signature.
type hidden struct {
	text string
	err  error
}

func (h *hidden) Error() string { return h.text }
func (h *hidden) Unwrap() error { return h.err }

// NetWords is the text of a network error without the URL of *url.Error.
func NetWords(err error) string {
	var u *url.Error
	if errors.As(err, &u) && u.Err != nil {
		return NetWords(u.Err)
	}
	return clip(oneLine(err.Error()))
}

var (
	signatures = regexp.MustCompile(`(?i)\b(sig|skoid|client_secret|client_assertion|assertion|access_token|password)=[^&\s"']+`)
	tokens     = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}(\.[A-Za-z0-9_-]+)*`)
	bearers    = regexp.MustCompile(`(?i)\b(bearer|sharedkey)\s+[A-Za-z0-9._~+/:=-]+`)
)

// Scrub takes out what looks like a signature or token.
func Scrub(s string) string {
	s = signatures.ReplaceAllString(s, "$1=REDACTED")
	s = tokens.ReplaceAllString(s, "REDACTED")
	return bearers.ReplaceAllString(s, "$1 REDACTED")
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// clip bounds what a stranger's text may take in messages.
func clip(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + " …"
}

// RetryAfter is what Azure asks to wait, 0 if it does not say.
func RetryAfter(resp *http.Response) time.Duration {
	if resp == nil {
		return 0
	}
	text := resp.Header.Get("Retry-After")
	if d, err := time.ParseDuration(text + "s"); err == nil && d > 0 {
		return min(d, 10*time.Minute)
	}
	return 0
}
