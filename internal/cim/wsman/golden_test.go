package wsman

import (
	"reflect"
	"strings"
	"testing"

	"holdfast/internal/cim"
)

// The envelopes here are written after the shapes that [MS-WSMV] 4.1 and [DSP0226] publish, with prefixes,
// line breaks and headers as Windows uses them. The messages that fake servers of other tests send are tidier.

func windows(body string) string {
	return `<s:Envelope xml:lang="en-US" xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" xmlns:x="http://schemas.xmlsoap.org/ws/2004/09/transfer" xmlns:e="http://schemas.xmlsoap.org/ws/2004/08/eventing" xmlns:n="http://schemas.xmlsoap.org/ws/2004/09/enumeration" xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd" xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd">
<s:Header><a:Action>http://schemas.xmlsoap.org/ws/2004/09/transfer/GetResponse</a:Action><a:MessageID>uuid:3D8B4F7B-1DBE-4E10-AEF6-0E5C7B8B7E3C</a:MessageID>
<a:To>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:To><a:RelatesTo>uuid:AAAA</a:RelatesTo></s:Header>
<s:Body>` + body + `</s:Body></s:Envelope>`
}

func TestGoldenGet(t *testing.T) {
	t.Parallel()
	body, err := openAnswer("get", []byte(windows(`<p:Win32_Service xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/Win32_Service" xmlns:cim="http://schemas.dmtf.org/wbem/wscim/1/common" xsi:type="p:Win32_Service_Type" xml:lang="en-US">
  <p:AcceptPause>false</p:AcceptPause>
  <p:Caption>Windows Remote Management (WS-Management)</p:Caption>
  <p:InstallDate xsi:nil="true"></p:InstallDate>
  <p:ProcessId>1004</p:ProcessId>
  <p:PathName>C:\Windows\System32\svchost.exe -k "NetworkService" &amp;&lt;&#x65e5;</p:PathName>
  <p:Deps><![CDATA[<INSTANCE CLASSNAME="X"><PROPERTY NAME="A" TYPE="uint8"><VALUE>1</VALUE></PROPERTY></INSTANCE>]]></p:Deps>
  <p:Space> kept </p:Space>
</p:Win32_Service>`)), 200, "uuid:aaaa")
	if err != nil {
		t.Fatal(err)
	}
	got := instance(body.child("", "Win32_Service"), "root/cimv2")
	want := &cim.Instance{Class: "Win32_Service", Args: cim.Pairs("AcceptPause", "false", "Caption", "Windows Remote Management (WS-Management)", "InstallDate", nil,
		"ProcessId", "1004", "PathName", `C:\Windows\System32\svchost.exe -k "NetworkService" &<日`,
		"Deps", `<INSTANCE CLASSNAME="X"><PROPERTY NAME="A" TYPE="uint8"><VALUE>1</VALUE></PROPERTY></INSTANCE>`, "Space", " kept ")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %#v", got)
	}
	if in, err := cim.DecodeEmbedded(got.String("Deps")); err != nil || in.String("A") != "1" {
		t.Errorf("embedded: %v, %v", in, err)
	}
}

// TestGoldenPolymorphic: a query for a class returns instances of derived ones, each under its own name or with
// its own type, and references in both places that servers put them.
func TestGoldenPolymorphic(t *testing.T) {
	t.Parallel()
	body, err := openAnswer("enumerate", []byte(windows(`<n:EnumerateResponse><n:EnumerationContext></n:EnumerationContext><w:Items>
<p:CIM_Job xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/CIM_Job" xsi:type="p:Msvm_ConcreteJob_Type"><p:InstanceID>1</p:InstanceID></p:CIM_Job>
<p:Msvm_StorageJob xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_StorageJob"><p:InstanceID>2</p:InstanceID></p:Msvm_StorageJob>
<w:Item><p:Msvm_ConcreteJob xmlns:p="u"><p:InstanceID>3</p:InstanceID></p:Msvm_ConcreteJob><a:EndpointReference><a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address><a:ReferenceParameters><w:ResourceURI>http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_ConcreteJob</w:ResourceURI><w:SelectorSet><w:Selector Name="__cimnamespace">root/virtualization/v2</w:Selector><w:Selector Name="InstanceID">three</w:Selector></w:SelectorSet></a:ReferenceParameters></a:EndpointReference></w:Item>
</w:Items><w:EndOfSequence/></n:EnumerateResponse>`)), 200, "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePage(body, virt)
	if err != nil || !p.end {
		t.Fatal(p, err)
	}
	var got []string
	for _, in := range p.items {
		got = append(got, in.Path.Relative())
	}
	if want := []string{`Msvm_ConcreteJob.InstanceID="1"`, `Msvm_StorageJob.InstanceID="2"`, `Msvm_ConcreteJob.InstanceID="three"`}; !reflect.DeepEqual(got, want) {
		t.Errorf("paths %v, want %v", got, want)
	}
}

func TestGoldenInvoke(t *testing.T) {
	t.Parallel()
	body, err := openAnswer("invoke", []byte(windows(`<p:GetSummaryInformation_OUTPUT xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_VirtualSystemManagementService" xmlns:cim="http://schemas.dmtf.org/wbem/wscim/1/common">
<p:SummaryInformation xsi:type="p:Msvm_SummaryInformation_Type"><p:Name>a</p:Name><p:Notes xsi:nil="true"/></p:SummaryInformation>
<p:SummaryInformation xsi:type="p:Msvm_SummaryInformation_Type"><p:Name>b</p:Name></p:SummaryInformation>
<p:Refs><a:Address>x</a:Address><a:ReferenceParameters><w:ResourceURI>http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/A</w:ResourceURI><w:SelectorSet><w:Selector Name="K">1</w:Selector></w:SelectorSet></a:ReferenceParameters></p:Refs>
<p:Refs><a:EndpointReference><a:ReferenceParameters><w:ResourceURI>http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/A</w:ResourceURI><w:SelectorSet><w:Selector Name="K">2</w:Selector></w:SelectorSet></a:ReferenceParameters></a:EndpointReference></p:Refs>
<p:ReturnValue>0</p:ReturnValue></p:GetSummaryInformation_OUTPUT>`)), 200, "")
	if err != nil {
		t.Fatal(err)
	}
	out, err := parseOutput(body, "GetSummaryInformation", virt)
	if err != nil || out.Return != 0 {
		t.Fatal(out, err)
	}
	list, _ := out.Lookup("SummaryInformation")
	objects, ok := list.([]*cim.Instance)
	if !ok || len(objects) != 2 || objects[0].Class != "Msvm_SummaryInformation" || objects[1].String("Name") != "b" || !objects[0].Null("Notes") {
		t.Errorf("objects %#v", list)
	}
	if refs, err := out.Refs("Refs"); err != nil || len(refs) != 2 || refs[0].Key("K")+refs[1].Key("K") != "12" {
		t.Errorf("references %v, %v", refs, err)
	}
	for _, bad := range []string{`<p:M_OUTPUT xmlns:p="u"/>`, `<p:M_OUTPUT xmlns:p="u"><p:ReturnValue>x</p:ReturnValue></p:M_OUTPUT>`, `<p:M_OUTPUT xmlns:p="u"><p:ReturnValue>4294967296</p:ReturnValue></p:M_OUTPUT>`, `<p:N_OUTPUT xmlns:p="u"/>`} {
		body, err := openAnswer("invoke", []byte(windows(bad)), 200, "")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := parseOutput(body, "M", virt); err == nil {
			t.Errorf("%s is read as %+v: without a return value nothing has succeeded", bad, out)
		}
	}
}

func TestGoldenFaults(t *testing.T) {
	t.Parallel()
	quota := windows(`<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>w:InternalError</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang="en-US"></s:Text></s:Reason><s:Detail>
<p:MSFT_WmiError b:IsCIM_Error="true" xmlns:b="http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd" xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/MSFT_WmiError" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<p:CIMStatusCode>27</p:CIMStatusCode><p:CIMStatusCodeDescription xsi:nil="true"/><p:ErrorType>0</p:ErrorType><p:Message>Too many operations of this user.
</p:Message><p:MessageID>HRESULT 0x803381a6</p:MessageID><p:error_Category>30</p:error_Category><p:error_Code>2150859174</p:error_Code><p:error_Type>HRESULT</p:error_Type></p:MSFT_WmiError></s:Detail></s:Fault>`)
	provider := windows(`<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>n:CannotProcessFilter</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang="en-US">The data source could not process the filter. </s:Text></s:Reason><s:Detail>
<f:WSManFault xmlns:f="http://schemas.microsoft.com/wbem/wsman/1/wsmanfault" Code="2150858778" Machine="HV01.contoso.test"><f:Message><f:ProviderFault provider="WMI Provider" path="%systemroot%\system32\WsmWmiPl.dll"><f:WSManFault xmlns:f="http://schemas.microsoft.com/wbem/wsman/1/wsmanfault" Code="2150858778" Machine="hv01"><f:Message>The data source could not process the filter. </f:Message></f:WSManFault>
<f:ExtendedError><p:__ExtendedStatus xmlns:p="http://schemas.microsoft.com/wbem/wsman/1/wmi/root/cimv2/__ExtendedStatus" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><p:Description xsi:nil="true"/><p:Operation>ExecQuery</p:Operation><p:ParameterInfo>select * from Nothing</p:ParameterInfo><p:ProviderName>WinMgmt</p:ProviderName></p:__ExtendedStatus></f:ExtendedError></f:ProviderFault></f:Message></f:WSManFault></s:Detail></s:Fault>`)
	for _, tt := range []struct {
		raw    string
		code   cim.Code
		status uint32
		text   string
	}{
		{quota, cim.CodeQuota, 0x803381a6, "Too many operations of this user."},
		{provider, cim.CodeInvalidQuery, 0x8033801a, "The data source could not process the filter."},
	} {
		_, err := openAnswer("query X", []byte(tt.raw), 500, "")
		e, ok := err.(*cim.Error)
		if !ok || e.Code != tt.code || e.Status != tt.status || strings.Count(e.Message, tt.text) != 1 {
			t.Errorf("%+v", err)
		}
	}
}
