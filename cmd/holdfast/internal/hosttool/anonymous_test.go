package hosttool

import (
	"html"
	"strings"
	"testing"

	"holdfast/internal/cim/wsman"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

func TestAnonymous(t *testing.T) {
	t.Parallel()
	list := []wsman.Exchange{
		{Op: "query VMs of HV9", Request: `<s:Header><a:To>http://hv9.corp.example:5985/wsman</a:To></s:Header><w:Filter>SELECT * FROM Msvm_ComputerSystem WHERE Name != 'HV9' AND ElementName='Name'</w:Filter>`,
			Response: `<p:ElementName>Name</p:ElementName><p:Caption>Virtual Machine</p:Caption><p:Notes>the boss's</p:Notes><p:Name>3F2504E0-4F89-41D3-9A0C-0305E82C3301</p:Name>` +
				`<p:HostResource>D:\Kunden\Meier &amp; Co\name.vhdx</p:HostResource><p:HostResource>\\HV9\root\virtualization\v2:Msvm_VirtualEthernetSwitch.Name="x"</p:HostResource>` +
				`<p:Description>VM of Meier &amp; Co on hv9, at 10.0.7.8, mask 255.255.255.0</p:Description><p:Version>10.0.20348.1</p:Version><p:Address>00155DAABBCC</p:Address>` +
				`<p:Organization><![CDATA[Meier <GmbH>]]></p:Organization><!-- made by Meier --><p:ResourceSubType>Microsoft:Hyper-V:Virtual Hard Disk</p:ResourceSubType>`},
		{Response: `<p:Items>&lt;INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem"&gt;&lt;PROPERTY NAME="Data" TYPE="string"&gt;&lt;VALUE&gt;name.corp.example&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;PROPERTY NAME="Name" TYPE="string"&gt;&lt;VALUE&gt;FullyQualifiedDomainName&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;/INSTANCE&gt;</p:Items>` +
			`<p:Items>&lt;INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem"&gt;&lt;PROPERTY NAME="Data" TYPE="string"&gt;&lt;VALUE&gt;Debian 12&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;PROPERTY NAME="Name" TYPE="string"&gt;&lt;VALUE&gt;OSName&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;/INSTANCE&gt;</p:Items><p:X>see db.corp.example</p:X>`},
	}
	got := anonymous(list, []dr.VM{{Name: "Name"}}, hypervisor.HostInfo{Name: "HV9"})
	text := ""
	for _, x := range got {
		text += x.Op + html.UnescapeString(html.UnescapeString(x.Request+x.Response))
	}
	for _, private := range []string{"hv9", "HV9", "Kunden", "Meier", "boss", "corp.example", "10.0.7.8", "AABBCC", "GmbH", ">Name<", "='Name'"} {
		if strings.Contains(text, private) {
			t.Errorf("%q is told:\n%s", private, text)
		}
	}
	for _, needed := range []string{"SELECT * FROM Msvm_ComputerSystem WHERE Name != 'HOST-1' AND ElementName='vm-1'", "<p:ElementName>vm-1</p:ElementName>", "3F2504E0-4F89-41D3-9A0C-0305E82C3301", `D:\`, ".vhdx<",
		`\\HOST-1\root\virtualization\v2:Msvm_VirtualEthernetSwitch.Name=`, "mask 255.255.255.0", "10.0.20348.1", "Microsoft:Hyper-V:Virtual Hard Disk", "Debian 12", `NAME="Name"`, "FullyQualifiedDomainName"} {
		if !strings.Contains(text, needed) {
			t.Errorf("%q is lost:\n%s", needed, text)
		}
	}
}

// FuzzAnonymous: whatever a host answers, a name is not told and nothing breaks.
func FuzzAnonymous(f *testing.F) {
	f.Add("<a><b>Zanzibar</b></a>", "<PROPERTY NAME=\"ElementName\"><VALUE>Zanzibar</VALUE></PROPERTY>")
	f.Add("<><![CDATA[Zanzibar]]>", "&lt;INSTANCE&gt;&lt;VALUE&gt;Zanzibar&lt;/VALUE&gt;&lt;/INSTANCE&gt;")
	f.Add("<", "C:\\Zanzibar\\x.vhdx")
	f.Fuzz(func(t *testing.T, request, response string) {
		out := anonymous([]wsman.Exchange{{Request: request, Response: response}}, []dr.VM{{Name: "Zanzibar"}}, hypervisor.HostInfo{})
		for _, s := range []string{out[0].Request, out[0].Response} {
			if strings.Contains(s, ">Zanzibar<") {
				t.Errorf("told: %q", s)
			}
		}
	})
}
