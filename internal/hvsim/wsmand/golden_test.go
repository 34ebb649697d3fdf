package wsmand_test

import (
	"encoding/xml"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/cim"
)

var update = flag.Bool("update", false, "write the golden answers anew")

// golden compares an answer with testdata/golden/<name>.xml, IDs apart.
func golden(t *testing.T, name, got string) {
	t.Helper()
	dec := xml.NewDecoder(strings.NewReader(got))
	for {
		if _, err := dec.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%s: no XML: %v\n%s", name, err, got)
		}
	}
	got = answerID.ReplaceAllString(got, "<a:MessageID>uuid:ANSWER</a:MessageID>")
	got = contextID.ReplaceAllString(got, "<n:EnumerationContext>uuid:CONTEXT</n:EnumerationContext>")
	got = strings.ReplaceAll(got, "><", ">\n<") + "\n"
	file := filepath.Join("testdata", "golden", name+".xml")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func vmEPR(open, end string) string {
	return open + `<a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address><a:ReferenceParameters><w:ResourceURI>` + wmi + nsV2 +
		`/Msvm_ComputerSystem</w:ResourceURI>` + selectors("__cimnamespace", nsV2, "CreationClassName", "Msvm_ComputerSystem", "Name", vmID) +
		`</a:ReferenceParameters>` + end
}

// snapshotInput is what a client of Hyper-V sends to make a recovery checkpoint.
func snapshotInput() string {
	return `<c:CreateSnapshot_INPUT xmlns:c="` + wmi + nsV2 + `/Msvm_VirtualSystemSnapshotService">` + vmEPR("<c:AffectedSystem>", "</c:AffectedSystem>") +
		`<c:SnapshotSettings><![CDATA[<INSTANCE CLASSNAME="Msvm_VirtualSystemSnapshotSettingData"><PROPERTY NAME="ConsistencyLevel" TYPE="uint8"><VALUE>1</VALUE></PROPERTY></INSTANCE>]]></c:SnapshotSettings>` +
		`<c:SnapshotType>32768</c:SnapshotType></c:CreateSnapshot_INPUT>`
}

func TestGolden(t *testing.T) {
	t.Parallel()
	service := wmi + nsV2 + "/Msvm_VirtualSystemSnapshotService"
	settings := wmi + nsV2 + "/Msvm_VirtualSystemSettingData"
	byID := selectors("InstanceID", "Microsoft:"+vmID)
	assoc := func(kind, rest string) string {
		return `<n:Enumerate>` + optimized + `<w:Filter Dialect="http://schemas.dmtf.org/wbem/wsman/1/cimbinding/AssociationFilter"><b:` + kind + `>` +
			vmEPR("<b:Object>", "</b:Object>") + rest + `</b:` + kind + `></w:Filter></n:Enumerate>`
	}
	cases := []struct{ name, action, resource, extra, body string }{
		{"identify", "", "", "", identify},
		{"enumerate", actEnumerate, wmi + nsV2 + "/Msvm_ComputerSystem", "<w:RequestTotalItemsCountEstimate/>", `<n:Enumerate/>`},
		{"enumerate-optimized", actEnumerate, wmi + nsV2 + "/Msvm_ComputerSystem", "", `<n:Enumerate>` + optimized + `</n:Enumerate>`},
		{"enumerate-first-page", actEnumerate, allV2, "", wql("SELECT * FROM Msvm_ComputerSystem", "<w:OptimizeEnumeration/>")},
		{"enumerate-none", actEnumerate, allV2, "", wql("SELECT * FROM Msvm_ComputerSystem WHERE Name = 'x'", optimized)},
		{"enumerate-epr", actEnumerate, allV2, "", wql("SELECT * FROM Msvm_ComputerSystem", optimized+`<w:EnumerationMode>EnumerateEPR</w:EnumerationMode>`)},
		{"enumerate-both", actEnumerate, allV2, "", wql("SELECT * FROM Msvm_ConcreteJob", optimized+`<w:EnumerationMode>EnumerateObjectAndEPR</w:EnumerationMode>`)},
		{"enumerate-epr-from-keys", actEnumerate, allV2, "", wql("SELECT * FROM Msvm_ConcreteJob WHERE JobState = 7", optimized+`<w:EnumerationMode>EnumerateEPR</w:EnumerationMode>`)},
		{"enumerate-fragment", actEnumerate, allV2, "", wql("SELECT Name, ElementName FROM Msvm_ComputerSystem", optimized)},
		{"enumerate-selector-filter", actEnumerate, wmi + nsV2 + "/Msvm_ConcreteJob", "", `<n:Enumerate>` + optimized +
			`<w:Filter Dialect="http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter">` + selectors("InstanceID", jobID) + `</w:Filter></n:Enumerate>`},
		{"associators", actEnumerate, allV2, "", wql(cim.Associators(vmPath(), "Msvm_SettingsDefineState", "Msvm_VirtualSystemSettingData"), optimized)},
		{"associated-instances", actEnumerate, allV2, "", assoc("AssociatedInstances",
			`<b:AssociationClassName>Msvm_SettingsDefineState</b:AssociationClassName><b:ResultClassName>Msvm_VirtualSystemSettingData</b:ResultClassName>`)},
		{"association-instances", actEnumerate, allV2, "", assoc("AssociationInstances", `<b:ResultClassName>Msvm_SettingsDefineState</b:ResultClassName>`)},
		{"associated-properties", actEnumerate, allV2, "", assoc("AssociatedInstances", `<b:AssociationClassName>Msvm_SettingsDefineState</b:AssociationClassName>`+
			`<b:ResultClassName>Msvm_VirtualSystemSettingData</b:ResultClassName><b:IncludeResultProperty>SecureBootEnabled</b:IncludeResultProperty>`)},
		{"enumerate-selector-number", actEnumerate, wmi + nsV2 + "/Msvm_ConcreteJob", "", `<n:Enumerate>` + optimized +
			`<w:Filter Dialect="http://schemas.microsoft.com/wbem/wsman/1/wsman/SelectorFilter">` + selectors("JobState", "7") + `</w:Filter></n:Enumerate>`},
		{"get", actGet, wmi + nsV2 + "/Msvm_ComputerSystem", selectors("creationclassname", "Msvm_ComputerSystem", "NAME", vmID, "__cimnamespace", nsV2), ""},
		{"get-association", actGet, wmi + nsV2 + "/Msvm_SettingsDefineState", selectors("ManagedElement", vmEPR("<a:EndpointReference>", "</a:EndpointReference>"),
			"SettingData", "<a:EndpointReference><a:ReferenceParameters><w:ResourceURI>"+settings+"</w:ResourceURI>"+byID+"</a:ReferenceParameters></a:EndpointReference>"), ""},
		{"get-dmtf-uri", actGet, "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/Msvm_ConcreteJob", selectors("__cimnamespace", nsV2, "InstanceID", jobID), ""},
		{"put", actPut, settings, byID, `<c:Msvm_VirtualSystemSettingData xmlns:c="` + settings + `"><c:ElementName>new</c:ElementName><c:SecureBootEnabled>false</c:SecureBootEnabled>` +
			`<c:Notes>one</c:Notes><c:Notes>two</c:Notes><c:Caption xsi:nil="true"/></c:Msvm_VirtualSystemSettingData>`},
		{"invoke-job", service + "/CreateSnapshot", service, selectors("CreationClassName", "Msvm_VirtualSystemSnapshotService"), snapshotInput()},
		{"fault-not-found", actGet, wmi + nsV2 + "/Msvm_ConcreteJob", selectors("InstanceID", "none"), ""},
		{"fault-filter", actEnumerate, allV2, "", wql("SELEKT", "")},
		{"fault-quota", actEnumerate, allV2, "", wql("SELECT * FROM Busy", "")},
		{"fault-selectors", actGet, wmi + nsV2 + "/Msvm_ConcreteJob", selectors("Nonsense", "none"), ""},
		{"fault-must-understand", actGet, wmi + nsV2 + "/Msvm_ConcreteJob", `<z:New xmlns:z="urn:z" s:mustUnderstand="true"/>`, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			srv := newServer(t, config(newSession()))
			status, body := post(t, srv, user, envelope(c.action, c.resource, c.extra, c.body))
			if fault := strings.HasPrefix(c.name, "fault-"); fault != (status == 500) || !fault && status != 200 {
				t.Errorf("status %d", status)
			}
			golden(t, c.name, body)
		})
	}
}

func TestInvokeArguments(t *testing.T) {
	t.Parallel()
	s := newSession()
	srv := newServer(t, config(s))
	service := wmi + nsV2 + "/Msvm_VirtualSystemSnapshotService"
	status, body := post(t, srv, user, envelope(service+"/CreateSnapshot", service, selectors("CreationClassName", "Msvm_VirtualSystemSnapshotService"), snapshotInput()))
	if status != 200 {
		t.Fatal(body)
	}
	got := s.last()
	if got.method != "CreateSnapshot" || got.path.Key("Name") != "vssm" {
		t.Errorf("called %s of %s", got.method, got.path)
	}
	if p, ok := got.in.Ref("AffectedSystem"); !ok || !p.Same(vmPath()) || p.Namespace != nsV2 {
		t.Errorf("AffectedSystem is %v", p)
	}
	if v, _ := got.in.Lookup("SnapshotType"); v != uint16(32768) {
		t.Errorf("SnapshotType is %T %v", v, v)
	}
	in, err := cim.DecodeEmbedded(got.in.String("SnapshotSettings"))
	if err != nil || in.Class != "Msvm_VirtualSystemSnapshotSettingData" {
		t.Errorf("SnapshotSettings: %v", err)
	}
	status, body = post(t, srv, user, envelope(wmi+nsV2+"/Msvm_ConcreteJob/RequestStateChange", wmi+nsV2+"/Msvm_ConcreteJob", selectors("InstanceID", jobID),
		`<c:RequestStateChange_INPUT xmlns:c="`+wmi+nsV2+`/Msvm_ConcreteJob"><c:RequestedState>4</c:RequestedState><c:TimeoutPeriod><d:Interval xmlns:d="http://schemas.dmtf.org/wbem/wscim/1/common">PT1M30S</d:Interval></c:TimeoutPeriod></c:RequestStateChange_INPUT>`))
	if status != 200 {
		t.Fatal(body)
	}
	if v, _ := s.last().in.Lookup("TimeoutPeriod"); v != cim.DateTime("00000000000130.000000:000") {
		t.Errorf("TimeoutPeriod is %v", v)
	}
	images := wmi + nsV2 + "/Msvm_ImageManagementService"
	_, body = post(t, srv, user, envelope(images+"/GetVirtualHardDiskState", images, "", `<c:GetVirtualHardDiskState_INPUT xmlns:c="`+images+`"><c:Path> a\b </c:Path></c:GetVirtualHardDiskState_INPUT>`))
	if got := s.last().in.String("Path"); got != ` a\b ` {
		t.Errorf("text lost its spaces: %q in %s", got, body)
	}
}
