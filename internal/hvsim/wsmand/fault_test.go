package wsmand_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf16"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/wsmand"
)

func TestFaults(t *testing.T) {
	t.Parallel()
	vm := wmi + nsV2 + "/Msvm_ComputerSystem"
	job := wmi + nsV2 + "/Msvm_ConcreteJob"
	service := wmi + nsV2 + "/Msvm_VirtualSystemSnapshotService"
	create := func(params string) string {
		return `<c:CreateSnapshot_INPUT xmlns:c="` + service + `">` + params + `</c:CreateSnapshot_INPUT>`
	}
	cases := []struct {
		name, action, resource, extra, body string
		subcode                             string
		code                                uint32
		has                                 string
	}{
		{"unknown action", "urn:nothing", vm, "", "", "a:ActionNotSupported", 2150858753, ""},
		{"create shell", "http://schemas.xmlsoap.org/ws/2004/09/transfer/Create", "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/cmd", "", "", "a:ActionNotSupported", 2150858753, ""},
		{"unknown method", job + "/Explode", job, selectors("InstanceID", jobID), "", "a:ActionNotSupported", 2150858753, "2147749934"},
		{"method of the provider fails", wmi + nsV2 + "/Own/Lost", wmi + nsV2 + "/Own", "", "", "a:DestinationUnreachable", 2150858752, "the object is gone"},
		{"unknown class, get", actGet, wmi + nsV2 + "/Nothing", selectors("A", "b"), "", "a:DestinationUnreachable", 2150858752, "2147749904"},
		{"unknown class, enumerate", actEnumerate, wmi + nsV2 + "/Nothing", "", "<n:Enumerate/>", "a:DestinationUnreachable", 2150858752, "2147749904"},
		{"unknown class, query", actEnumerate, allV2, "", wql("SELECT * FROM Nothing", ""), "n:CannotProcessFilter", 2150858778, "2147749904"},
		{"no query", actEnumerate, allV2, "", "<n:Enumerate/>", "a:DestinationUnreachable", 2150859003, ""},
		{"query in a class", actEnumerate, vm, "", wql("SELECT * FROM Msvm_ConcreteJob", ""), "a:DestinationUnreachable", 2150859003, ""},
		{"empty query", actEnumerate, allV2, "", wql(" ", ""), "n:CannotProcessFilter", 2150858778, ""},
		{"dialect", actEnumerate, allV2, "", `<n:Enumerate><w:Filter Dialect="urn:cql">x</w:Filter></n:Enumerate>`, "n:FilterDialectRequestedUnavailable", 2150858777, ""},
		{"association without object", actEnumerate, allV2, "", `<n:Enumerate><w:Filter Dialect="http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"><b:AssociatedInstances/></w:Filter></n:Enumerate>`, "n:CannotProcessFilter", 2150858778, ""},
		{"injected class", actEnumerate, allV2, "", `<n:Enumerate><w:Filter Dialect="http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"><b:AssociatedInstances>` + vmEPR("<b:Object>", "</b:Object>") +
			`<b:ResultClassName>X Role=Y</b:ResultClassName></b:AssociatedInstances></w:Filter></n:Enumerate>`, "n:CannotProcessFilter", 2150858778, ""},
		{"mode", actEnumerate, vm, "", `<n:Enumerate><w:EnumerationMode>EnumerateAll</w:EnumerationMode></n:Enumerate>`, "w:UnsupportedFeature", 2150858886, "faultDetail/EnumerationMode"},
		{"polymorphism", actEnumerate, vm, "", `<n:Enumerate><b:PolymorphismMode>ExcludeSubClassProperties</b:PolymorphismMode></n:Enumerate>`, "w:UnsupportedFeature", 2150859063, ""},
		{"expires", actEnumerate, vm, "", `<n:Enumerate><n:Expires>soon</n:Expires></n:Enumerate>`, "n:InvalidExpirationTime", 2150858774, ""},
		{"max elements", actEnumerate, vm, "", `<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>0</w:MaxElements></n:Enumerate>`, "w:SchemaValidationError", 2150858817, ""},
		{"pull without enumeration", actPull, vm, "", pull("uuid:no", ""), "n:InvalidEnumerationContext", 2150858779, "s:Receiver"},
		{"release without enumeration", actRelease, vm, "", `<n:Release><n:EnumerationContext>x</n:EnumerationContext></n:Release>`, "n:InvalidEnumerationContext", 2150858779, ""},
		{"wrong body", actPull, vm, "", `<n:Release/>`, "w:SchemaValidationError", 2150858817, ""},
		{"not found", actGet, job, selectors("InstanceID", "none"), "", "a:DestinationUnreachable", 2150858752, "2147749890"},
		{"no selectors", actGet, job, "", "", "w:InvalidSelectors", 2150859002, "faultDetail/InsufficientSelectors"},
		{"unknown selector", actGet, job, selectors("InstanceID", jobID, "Foo", "1"), "", "w:InvalidSelectors", 2150858843, "faultDetail/UnexpectedSelectors"},
		{"duplicate selector", actGet, job, selectors("InstanceID", jobID, "instanceid", jobID), "", "w:InvalidSelectors", 2150858847, "faultDetail/DuplicateSelectors"},
		{"ambiguous selectors", actGet, vm, selectors("CreationClassName", "Msvm_ComputerSystem"), "", "w:InvalidSelectors", 2150858846, "faultDetail/AmbiguousSelectors"},
		{"nameless selector", actGet, job, "<w:SelectorSet><w:Selector>x</w:Selector></w:SelectorSet>", "", "w:InvalidSelectors", 2150858813, ""},
		{"two namespaces", actGet, job, selectors("InstanceID", jobID, "__cimnamespace", "root/cimv2"), "", "w:InternalError", 2150859067, ""},
		{"foreign resource", actGet, "http://schemas.microsoft.com/wbem/wsman/1/config", "", "", "a:DestinationUnreachable", 2150858811, ""},
		{"parameter name", service + "/CreateSnapshot", service, "", create("<c:Nonsense>1</c:Nonsense>"), "w:InvalidParameter", 2150858837, "faultDetail/InvalidName"},
		{"out parameter", service + "/CreateSnapshot", service, "", create("<c:Job>1</c:Job>"), "w:InvalidParameter", 2150858837, ""},
		{"parameter range", service + "/CreateSnapshot", service, "", create("<c:SnapshotType>65536</c:SnapshotType>"), "w:InvalidParameter", 2150858836, "faultDetail/TypeMismatch"},
		{"text for reference", service + "/CreateSnapshot", service, "", create("<c:AffectedSystem>Msvm_ComputerSystem</c:AffectedSystem>"), "w:InvalidParameter", 2150858836, ""},
		{"elements for text", service + "/CreateSnapshot", service, "", create("<c:SnapshotSettings><INSTANCE/></c:SnapshotSettings>"), "w:InvalidParameter", 2150858836, ""},
		{"parameter twice", service + "/CreateSnapshot", service, "", create("<c:SnapshotType>2</c:SnapshotType><c:SnapshotType>2</c:SnapshotType>"), "w:SchemaValidationError", 2150858817, ""},
		{"parameter namespace", service + "/CreateSnapshot", service, "", create("<SnapshotType>2</SnapshotType>"), "w:SchemaValidationError", 2150858817, ""},
		{"input namespace", service + "/CreateSnapshot", service, "", `<CreateSnapshot_INPUT/>`, "w:SchemaValidationError", 2150858817, ""},
		{"envelope minimum", actGet, job, "<w:MaxEnvelopeSize>8191</w:MaxEnvelopeSize>", "", "w:EncodingLimit", 2150858878, "faultDetail/MinimumEnvelopeLimit"},
		{"timeout header", actGet, job, "<w:OperationTimeout>60</w:OperationTimeout>", "", "a:InvalidMessageInformationHeader", 2150858881, "faultDetail/InvalidTimeout"},
		{"fragment", actGet, job, "<w:FragmentTransfer>x</w:FragmentTransfer>", "", "w:UnsupportedFeature", 2150858871, ""},
		{"selector type", actEnumerate, job, "", `<n:Enumerate><w:Filter Dialect="http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter">` + selectors("JobState", "seven") + `</w:Filter></n:Enumerate>`,
			"w:InvalidSelectors", 2150858844, "faultDetail/TypeMismatch"},
		{"many parameters", wmi + nsV2 + "/Own/Echo", wmi + nsV2 + "/Own", "", `<c:Echo_INPUT xmlns:c="` + wmi + nsV2 + `/Own">` + manyNames(2000) + `</c:Echo_INPUT>`, "w:SchemaValidationError", 2150858817, ""},
		{"header twice", actGet, job, "<a:MessageID>uuid:2</a:MessageID>", "", "a:InvalidMessageInformationHeader", 2150858767, ""},
		{"faults elsewhere", actGet, job, "<a:FaultTo><a:Address>http://evil/</a:Address></a:FaultTo>", "", "w:UnsupportedFeature", 2150858870, "faultDetail/AddressingMode"},
		{"denied", actEnumerate, allV2, "", wql("SELECT * FROM Denied", ""), "w:AccessDenied", 5, "Access is denied."},
		{"provider", actEnumerate, allV2, "", wql("SELECT * FROM Broken", ""), "w:InternalError", 2150858755, "the provider broke"},
		{"slow", actEnumerate, allV2, "<w:OperationTimeout>PT0.050S</w:OperationTimeout>", wql("SELECT * FROM Slow", ""), "w:TimedOut", 2150858793, "s:Receiver"},
		{"slow method", wmi + nsV2 + "/Own/Block", wmi + nsV2 + "/Own", "<w:OperationTimeout>PT0.050S</w:OperationTimeout>", "", "w:TimedOut", 2150858793, ""},
		{"large item, client's limit", actEnumerate, allV2, "<w:MaxEnvelopeSize>153600</w:MaxEnvelopeSize>", wql("SELECT * FROM Huge", optimized), "w:EncodingLimit", 2150858824, ""},
		{"large item, server's limit", actEnumerate, allV2, "", wql("SELECT * FROM Huge", optimized), "w:EncodingLimit", 2150858825, ""},
		{"put of nothing", actPut, job, selectors("InstanceID", jobID), "", "w:SchemaValidationError", 2150858817, ""},
		{"put of an unknown property", actPut, job, selectors("InstanceID", jobID), `<c:Msvm_ConcreteJob xmlns:c="x"><c:Foo>1</c:Foo></c:Msvm_ConcreteJob>`, "x:InvalidRepresentation", 2150858838, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t, config(newSession()))
			status, body := post(t, srv, user, envelope(c.action, c.resource, c.extra, c.body))
			if status != http.StatusInternalServerError {
				t.Errorf("status %d", status)
			}
			if !strings.Contains(body, "<s:Subcode><s:Value>"+c.subcode+"</s:Value>") {
				t.Errorf("subcode is not %s", c.subcode)
			}
			if !strings.Contains(body, fmt.Sprintf(` Code="%d"`, c.code)) {
				t.Errorf("code is not %d", c.code)
			}
			if !strings.Contains(body, c.has) {
				t.Errorf("lacks %q", c.has)
			}
			if t.Failed() {
				t.Log(body)
			}
		})
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "<c:P%d/>", i)
	}
	return b.String()
}

func TestMalformedEnvelopes(t *testing.T) {
	t.Parallel()
	good := envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), "")
	for name, c := range map[string]struct{ body, code string }{
		"empty element":   {"<a/>", "2150858819"},
		"no XML":          {"hello", "2150858819"},
		"cut":             {good[:len(good)/2], "2150858819"},
		"soap 1.1":        {strings.ReplaceAll(good, "http://www.w3.org/2003/05/soap-envelope", "http://schemas.xmlsoap.org/soap/envelope/"), "2150858765"},
		"doctype":         {`<!DOCTYPE x [<!ENTITY e "boom">]>` + strings.TrimPrefix(good, `<?xml version="1.0" encoding="UTF-8"?>`), "2150858819"},
		"entity":          {strings.Replace(good, jobID, "&e;", 1), "2150858819"},
		"deep":            {strings.Replace(good, "<s:Body>", "<s:Body>"+strings.Repeat("<x>", 100), 1), "2150858819"},
		"no body":         {`<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"/>`, "2150858819"},
		"no header":       {`<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"><s:Body/></s:Envelope>`, "2150858769"},
		"no message ID":   {strings.Replace(good, "MessageID", "From", 2), "2150858769"},
		"long message ID": {strings.Replace(good, "uuid:0000", "uuid:"+strings.Repeat("0", 2000), 1), "2150858767"},
		"not UTF-8":       {strings.Replace(good, jobID, "\xff\xfe", 1), "2150858828"},
		"many selectors":  {strings.Replace(good, "<w:SelectorSet>", "<w:SelectorSet>"+strings.Repeat("<w:Selector/>", 70), 1), "2150858826"},
		"deep reference": {strings.Replace(good, jobID, strings.Repeat("<a:EndpointReference><a:ReferenceParameters><w:SelectorSet><w:Selector Name=\"x\">", 8)+
			strings.Repeat("</w:Selector></w:SelectorSet></a:ReferenceParameters></a:EndpointReference>", 8), 1), "2150858844"},
	} {
		srv := newServer(t, config(newSession()))
		if status, body := post(t, srv, user, c.body); status != 500 || !strings.Contains(body, `Code="`+c.code+`"`) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

func TestPutNeedsAPutter(t *testing.T) {
	t.Parallel()
	srv := newServer(t, config(readOnly{newSession()}))
	status, body := post(t, srv, user, envelope(actPut, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), `<c:Msvm_ConcreteJob xmlns:c="x"/>`))
	if status != 500 || !strings.Contains(body, "a:ActionNotSupported") {
		t.Errorf("%d %s", status, body)
	}
}

func TestPaging(t *testing.T) {
	t.Parallel()
	srv := newServer(t, config(newSession()))
	const limit = 64 << 10
	small := fmt.Sprintf("<w:MaxEnvelopeSize>%d</w:MaxEnvelopeSize>", limit)
	_, body := post(t, srv, user, envelope(actEnumerate, allV2, small, wql("SELECT * FROM Many", "<w:OptimizeEnumeration/><w:MaxElements>32000</w:MaxElements>")))
	seen, pages := 0, 0
	for {
		pages++
		if len(body) > limit {
			t.Fatalf("page %d has %d bytes", pages, len(body))
		}
		for strings.Contains(body, fmt.Sprintf("<p:Index>%d</p:Index>", seen)) {
			seen++
		}
		if strings.Contains(body, "EndOfSequence/>") {
			break
		}
		more := "<n:MaxElements>32000</n:MaxElements>"
		if pages == 2 {
			more = "<n:MaxCharacters>20000</n:MaxCharacters>" + more
		}
		status := 0
		status, body = post(t, srv, user, envelope(actPull, allV2, small, pull(contextOf(t, body), more)))
		if status != 200 {
			t.Fatal(body)
		}
		if pages == 2 && len(body) > 22000 {
			t.Errorf("MaxCharacters ignored: %d", len(body))
		}
	}
	if seen != 2500 || pages < 8 {
		t.Errorf("%d items on %d pages", seen, pages)
	}
}

func TestEnumerationsBelongToTheirUser(t *testing.T) {
	t.Parallel()
	srv := newServer(t, config(newSession()))
	vm := wmi + nsV2 + "/Msvm_ComputerSystem"
	_, body := post(t, srv, user, envelope(actEnumerate, vm, "", "<n:Enumerate/>"))
	id := contextOf(t, body)
	if _, body := post(t, srv, "other", envelope(actPull, vm, "", pull(id, ""))); !strings.Contains(body, "InvalidEnumerationContext") {
		t.Errorf("another user pulls: %s", body)
	}
	release := `<n:Release><n:EnumerationContext>` + id + `</n:EnumerationContext></n:Release>`
	if _, body := post(t, srv, "other", envelope(actRelease, vm, "", release)); !strings.Contains(body, "InvalidEnumerationContext") {
		t.Errorf("another user releases: %s", body)
	}
	if _, body := post(t, srv, user, envelope(actPull, vm+"x", "", pull(id, ""))); !strings.Contains(body, "2150859181") {
		t.Errorf("another resource: %s", body)
	}
	// MaxElements is 1 unless said otherwise ([DSP0226] 8.4).
	if _, body := post(t, srv, strings.ToUpper(user), envelope(actPull, vm, "", pull(id, ""))); strings.Count(body, "<p:Name>") != 1 || strings.Contains(body, "EndOfSequence") {
		t.Errorf("first pull: %s", body)
	}
	if status, body := post(t, srv, user, envelope(actRelease, vm, "", release)); status != 200 || !strings.Contains(body, "ReleaseResponse") {
		t.Errorf("release: %s", body)
	}
	if _, body := post(t, srv, user, envelope(actPull, vm, "", pull(id, ""))); !strings.Contains(body, "InvalidEnumerationContext") {
		t.Errorf("pull after release: %s", body)
	}
}

func TestEnumerationsExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newSession())
		cfg.Quotas.EnumerationTimeout = time.Minute
		srv := wsmand.New(cfg)
		vm := wmi + nsV2 + "/Msvm_ComputerSystem"
		enumerate := func(more string) string {
			_, body := post(t, srv, user, envelope(actEnumerate, allV2, "", wql("SELECT * FROM Many", more)))
			return contextOf(t, body)
		}
		alive := func(id string) bool {
			_, body := post(t, srv, user, envelope(actPull, allV2, "", pull(id, "")))
			return strings.Contains(body, "PullResponse")
		}
		idle, fixed := enumerate(""), enumerate("<n:Expires>PT90S</n:Expires>")
		for range 5 {
			time.Sleep(40 * time.Second)
			if !alive(idle) {
				t.Error("a Pull did not prolong the enumeration")
			}
			if want := time.Since(start(t)) < 90*time.Second; alive(fixed) != want {
				t.Errorf("the fixed enumeration is not as alive (%v) as it should be", want)
			}
		}
		time.Sleep(61 * time.Second)
		if alive(idle) {
			t.Error("the enumeration outlived its timeout")
		}
		_ = vm
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
}

// start is when a bubble's clock starts.
func start(*testing.T) time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

func TestQuotas(t *testing.T) {
	t.Parallel()
	s := newSession()
	cfg := config(s)
	cfg.Quotas.MaxOperations, cfg.Quotas.MaxEnumerations = 4, 2
	srv := newServer(t, cfg)
	vm := wmi + nsV2 + "/Msvm_ComputerSystem"
	_, first := post(t, srv, user, envelope(actEnumerate, vm, "", "<n:Enumerate/>"))
	if status, body := post(t, srv, user, envelope(actEnumerate, vm, "", "<n:Enumerate/>")); status != 200 {
		t.Fatal(body)
	}
	if _, body := post(t, srv, user, envelope(actEnumerate, vm, "", "<n:Enumerate/>")); !strings.Contains(body, "<p:error_Code xsi:type=\"cim:cimUnsignedInt\">2150859174</p:error_Code>") || !strings.Contains(body, "w:QuotaLimit") {
		t.Errorf("third enumeration: %s", body)
	}
	if status, body := post(t, srv, "other", envelope(actEnumerate, vm, "", "<n:Enumerate/>")); status != 200 {
		t.Errorf("another user: %s", body)
	}
	// Two enumerations and two calls in progress are four operations.
	block := envelope(wmi+nsV2+"/Own/Block", wmi+nsV2+"/Own", "", "")
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { post(t, srv, user, block) })
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := len(s.invoked)
		s.mu.Unlock()
		if n == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the calls did not arrive")
		}
	}
	if _, body := post(t, srv, user, envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), "")); !strings.Contains(body, "maximum number of 4") {
		t.Errorf("fifth operation: %s", body)
	}
	// What makes room is possible all the same.
	if status, body := post(t, srv, user, envelope(actPull, vm, "", pull(contextOf(t, first), "<n:MaxElements>9</n:MaxElements>"))); status != 200 {
		t.Errorf("pull: %s", body)
	}
	close(s.block)
	wg.Wait()
	if status, body := post(t, srv, user, envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), "")); status != 200 {
		t.Errorf("afterwards: %s", body)
	}
}

func TestCloseEndsOperations(t *testing.T) {
	t.Parallel()
	s := newSession()
	srv := wsmand.New(config(s))
	done := make(chan string, 1)
	go func() {
		_, body := post(t, srv, user, envelope(wmi+nsV2+"/Own/Block", wmi+nsV2+"/Own", "", ""))
		done <- body
	}()
	for deadline := time.Now().Add(10 * time.Second); s.last().method == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the call did not arrive")
		}
	}
	if err := errors.Join(srv.Close(), srv.Close()); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	if s.ended != 1 {
		t.Error("Close returned before the operation ended")
	}
	s.mu.Unlock()
	if body := <-done; !strings.Contains(body, "s:Fault") {
		t.Error(body)
	}
	if status, _ := post(t, srv, user, envelope("", "", "", identify)); status != http.StatusServiceUnavailable {
		t.Errorf("after Close: %d", status)
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	id := envelope("", "", "", identify)
	utf16le := func(s string) string {
		var b []byte
		for _, u := range utf16.Encode([]rune(s)) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return string(b)
	}
	wide := strings.Replace(envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", "ä"), ""), `encoding="UTF-8"`, `encoding="UTF-16"`, 1)
	cases := []struct {
		name, method, path, contentType, body string
		change                                func(*wsmand.Config, *http.Request)
		status                                int
		has                                   string
	}{
		{"identify", "POST", "/wsman", "application/soap+xml;charset=UTF-8", id, nil, 200, "Stack: 3.0"},
		{"path with slash", "POST", "/wsman/", "application/soap+xml; charset=utf-8", id, nil, 200, "10.0.20348"},
		{"anonymous", "POST", "/wsman", "application/soap+xml", id, func(_ *wsmand.Config, r *http.Request) {
			r.Header.Del("Authorization")
			r.Header.Set("WSMANIDENTIFY", "unauthenticated")
		}, 200, "OS: 0.0.0"},
		{"anonymous path", "POST", "/wsman-anon/identify", "application/soap+xml", id, func(_ *wsmand.Config, r *http.Request) { r.Header.Del("Authorization") }, 200, "OS: 0.0.0"},
		{"anonymous over plain HTTP", "POST", "/wsman-anon/identify", "application/soap+xml", id, func(c *wsmand.Config, r *http.Request) { c.AllowUnencrypted = false }, 200, "OS: 0.0.0"},
		{"anonymous get", "POST", "/wsman-anon/identify", "application/soap+xml", envelope(actGet, wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID), ""), nil, 401, ""},
		{"no sign-in", "POST", "/wsman", "application/soap+xml", id, func(_ *wsmand.Config, r *http.Request) { r.Header.Del("Authorization") }, 401, ""},
		{"wrong password", "POST", "/wsman", "application/soap+xml", id, func(_ *wsmand.Config, r *http.Request) { r.SetBasicAuth(user, "x") }, 401, ""},
		{"unknown user", "POST", "/wsman", "application/soap+xml", id, func(_ *wsmand.Config, r *http.Request) { r.SetBasicAuth("who", password) }, 401, ""},
		{"basic off", "POST", "/wsman", "application/soap+xml", id, func(c *wsmand.Config, _ *http.Request) { c.Basic = false }, 401, ""},
		{"basic over plain HTTP", "POST", "/wsman", "application/soap+xml", id, func(c *wsmand.Config, _ *http.Request) { c.AllowUnencrypted = false }, 401, ""},
		{"negotiate without connection", "POST", "/wsman", "application/soap+xml", id, func(_ *wsmand.Config, r *http.Request) {
			r.Header.Set("Authorization", "Negotiate TlRMTVNTUAABAAAA")
		}, 401, ""},
		{"other path", "POST", "/", "application/soap+xml", id, nil, 404, ""},
		{"other method", "GET", "/wsman", "application/soap+xml", "", nil, 405, ""},
		{"no content type", "POST", "/wsman", "", id, nil, 415, ""},
		{"other content type", "POST", "/wsman", "text/xml", id, nil, 415, ""},
		{"sealed without session", "POST", "/wsman", `multipart/encrypted;protocol="application/HTTP-SPNEGO-session-encrypted";boundary="Encrypted Boundary"`, id, nil, 400, ""},
		{"empty", "POST", "/wsman", "", "", nil, 200, ""},
		{"charset", "POST", "/wsman", "application/soap+xml;charset=latin1", id, nil, 500, "faultDetail/CharacterSet"},
		{"too large for the quota", "POST", "/wsman", "application/soap+xml", id + strings.Repeat(" ", 500<<10), nil, 500, "faultDetail/ServiceEnvelopeLimit"},
		{"far too large", "POST", "/wsman", "application/soap+xml", id + strings.Repeat(" ", 600<<10), nil, 413, ""},
		{"UTF-16", "POST", "/wsman", "application/soap+xml;charset=UTF-16", utf16le(wide), nil, 500, utf16le(`InstanceID=&#34;ä&#34;`)},
		{"UTF-16 big endian", "POST", "/wsman", "application/soap+xml;charset=UTF-16", "\xfe\xff" + swap(utf16le(wide)), nil, 500, utf16le(`InstanceID=&#34;ä&#34;`)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := config(newSession())
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			r.Header.Set("Content-Type", c.contentType)
			r.SetBasicAuth(user, password)
			if c.change != nil {
				c.change(&cfg, r)
			}
			w := httptest.NewRecorder()
			newServer(t, cfg).ServeHTTP(w, r)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.has) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			offers := strings.Join(w.Header().Values("WWW-Authenticate"), ",")
			if basic := cfg.Basic && cfg.AllowUnencrypted; (w.Code == 401 && basic) != strings.Contains(offers, "Basic") {
				t.Errorf("offered: %q", offers)
			}
		})
	}
}

func swap(s string) string {
	b := []byte(s)
	for i := 0; i+1 < len(b); i += 2 {
		b[i], b[i+1] = b[i+1], b[i]
	}
	return string(b)
}

func TestFaultPlan(t *testing.T) {
	t.Parallel()
	s := newSession()
	cfg := config(s)
	var mu sync.Mutex
	var calls []wsmand.Call
	var plan *wsmand.Fault
	cfg.Fault = func(c wsmand.Call) *wsmand.Fault {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, c)
		return plan
	}
	srv := newServer(t, cfg)
	addr := listen(t, srv)
	res := wmi + nsV2 + "/Own"
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	try := func(ctx context.Context, f *wsmand.Fault) (int, string, error) {
		mu.Lock()
		plan = f
		mu.Unlock()
		r, _ := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/wsman", strings.NewReader(envelope(res+"/Echo", res, "", `<c:Echo_INPUT xmlns:c="`+res+`"><c:Text>hello</c:Text></c:Echo_INPUT>`)))
		r.Header.Set("Content-Type", "application/soap+xml;charset=UTF-8")
		r.SetBasicAuth(user, password)
		a, err := client.Do(r)
		if err != nil {
			return 0, "", err
		}
		defer a.Body.Close()
		b, err := io.ReadAll(a.Body)
		return a.StatusCode, string(b), err
	}
	executed := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.invoked)
	}
	ctx := t.Context()
	if code, body, err := try(ctx, nil); code != 200 || err != nil || !strings.Contains(body, "<p:Echo>hello</p:Echo>") {
		t.Fatal(code, body, err)
	}
	if calls[0] != (wsmand.Call{Operation: "Invoke", Resource: res, Method: "Echo", User: user}) {
		t.Errorf("call %+v", calls[0])
	}
	if _, _, err := try(ctx, &wsmand.Fault{DropBefore: true}); err == nil || executed() != 1 {
		t.Errorf("drop before: %v, executed %d", err, executed())
	}
	if code, _, err := try(ctx, &wsmand.Fault{Status: 503}); code != 503 || err != nil || executed() != 1 {
		t.Errorf("503: %d %v", code, err)
	}
	if code, _, err := try(ctx, &wsmand.Fault{Status: 401}); code != 401 || err != nil || executed() != 1 {
		t.Errorf("401: %d %v", code, err)
	}
	if code, body, err := try(ctx, &wsmand.Fault{Quota: true}); code != 500 || err != nil || executed() != 1 || !strings.Contains(body, "2150859174") {
		t.Errorf("quota: %d %v %s", code, err, body)
	}
	if _, _, err := try(ctx, &wsmand.Fault{DropAfter: true}); err == nil || executed() != 2 {
		t.Errorf("drop after: %v, executed %d", err, executed())
	}
	if code, body, err := try(ctx, &wsmand.Fault{Truncate: true}); code != 200 || err == nil || executed() != 3 || body == "" {
		t.Errorf("truncate: %d %q %v", code, body, err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, _, err := try(short, &wsmand.Fault{Delay: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delay: %v", err)
	}
	if _, body, err := try(ctx, &wsmand.Fault{Delay: 5 * time.Millisecond}); err != nil || !strings.Contains(body, "hello") {
		t.Errorf("short delay: %v", err)
	}
}

func TestSlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	cfg := config(newSession())
	cfg.Quotas.ReadTimeout = 100 * time.Millisecond
	addr := listen(t, newServer(t, cfg))
	pr, pw := io.Pipe()
	defer pw.Close()
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr+"/wsman", pr)
	r.Header.Set("Content-Type", "application/soap+xml")
	r.SetBasicAuth(user, password)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
	a, err := client.Do(r)
	if err == nil {
		a.Body.Close()
		if a.StatusCode != 400 {
			t.Errorf("status %d", a.StatusCode)
		}
	} else if e := (interface{ Timeout() bool })(nil); errors.As(err, &e) && e.Timeout() {
		t.Error("the server kept the connection")
	}
}

func TestNilSchema(t *testing.T) {
	t.Parallel()
	s := newSession()
	cfg := config(s)
	cfg.Schema = nil
	srv := newServer(t, cfg)
	res := wmi + nsV2 + "/Msvm_ComputerSystem"
	body := `<c:Do_INPUT xmlns:c="` + res + `"><c:A>1</c:A><c:B>1</c:B><c:B>2</c:B>` + vmEPR("<c:C>", "</c:C>") + `<c:D xsi:nil="true"/></c:Do_INPUT>`
	if status, answer := post(t, srv, user, envelope(res+"/Do", res, selectors("Name", vmID), body)); status != 200 {
		t.Fatal(answer)
	}
	in := s.last().in
	a, _ := in.Lookup("A")
	d, there := in.Lookup("D")
	ref, _ := in.Ref("C")
	if a != "1" || len(in.Strings("B")) != 2 || !ref.Same(vmPath()) || d != nil || !there {
		t.Errorf("got %v", in)
	}
	var _ cim.Session = s
}
