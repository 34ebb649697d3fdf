package schema

import (
	"strings"
	"testing"
	"time"

	"holdfast/internal/cim"
)

func class(t *testing.T, name string) *Class {
	t.Helper()
	c, ok := Load().Class(`ROOT\Virtualization\V2`, name)
	if !ok {
		t.Fatalf("there is no class %s", name)
	}
	return c
}

// TestClassesThatTheAdapterNeeds: each with its chain, keys and some properties as type name.
func TestClassesThatTheAdapterNeeds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, isA, keys, props string }{
		{"msvm_computersystem", "CIM_ManagedElement", "CreationClassName Name", "uint16[] OperationalStatus, uint16 EnabledState, string ElementName, datetime InstallDate, uint64 OnTimeInMilliseconds, uint16 ReplicationState"},
		{"Msvm_VirtualSystemSettingData", "CIM_SettingData", "InstanceID", "string VirtualSystemSubType, boolean SecureBootEnabled, string Version, string ConfigurationDataRoot, uint16 UserSnapshotType, string VirtualSystemIdentifier"},
		{"Msvm_StorageAllocationSettingData", "CIM_ResourceAllocationSettingData", "InstanceID", "string[] HostResource, uint16 ResourceType, string ResourceSubType, string Parent"},
		{"Msvm_ResourceAllocationSettingData", "CIM_ResourceAllocationSettingData", "InstanceID", "string AddressOnParent"},
		{"Msvm_SyntheticEthernetPortSettingData", "CIM_ResourceAllocationSettingData", "InstanceID", "string Address, boolean StaticMacAddress"},
		{"Msvm_EthernetPortAllocationSettingData", "CIM_SettingData", "InstanceID", "string[] HostResource, string TestReplicaSwitchName, string LastKnownSwitchName"},
		{"Msvm_EthernetSwitchPortVlanSettingData", "CIM_SettingData", "InstanceID", "uint16 AccessVlanId, uint32 OperationMode"},
		{"Msvm_GuestNetworkAdapterConfiguration", "Msvm_GuestNetworkAdapterConfiguration", "InstanceID", "string[] IPAddresses, boolean DHCPEnabled"},
		{"Msvm_ConcreteJob", "CIM_Job", "InstanceID", "uint16 JobState, uint16 PercentComplete, uint16 ErrorCode, string ErrorDescription, uint16 JobType, boolean Cancellable"},
		{"Msvm_StorageJob", "CIM_ConcreteJob", "InstanceID", "uint32 JobCompletionStatusCode, string Parent, string Child"},
		{"Msvm_VirtualSystemReferencePoint", "CIM_ManagedElement", "InstanceID", "string[] ResilientChangeTrackingIdentifiers, string[] VirtualDiskIdentifiers, string VirtualSystemIdentifier"},
		{"Msvm_VirtualSystemReferencePointExportJob", "CIM_ConcreteJob", "InstanceID", "string[] ExportedLogFilePaths"},
		{"Msvm_VirtualSystemSnapshotSettingData", "CIM_SettingData", "InstanceID", "uint8 ConsistencyLevel, boolean IgnoreNonSnapshottableDisks, uint8 GuestBackupType"},
		{"Msvm_VirtualHardDiskSettingData", "CIM_SettingData", "InstanceID", "string Path, uint64 MaxInternalSize, string VirtualDiskId, uint16 Type, uint32 LogicalSectorSize"},
		{"Msvm_VirtualSystemManagementService", "CIM_Service", "CreationClassName Name SystemCreationClassName SystemName", "boolean Started"},
		{"Msvm_ShutdownComponent", "CIM_LogicalDevice", "CreationClassName DeviceID SystemCreationClassName SystemName", "uint16[] OperationalStatus"},
		{"Msvm_KvpExchangeComponent", "CIM_LogicalDevice", "CreationClassName DeviceID SystemCreationClassName SystemName", "string[] GuestIntrinsicExchangeItems"},
		{"Msvm_VirtualEthernetSwitch", "CIM_ComputerSystem", "CreationClassName Name", "string ElementName"},
		{"Msvm_SettingsDefineState", "CIM_SettingsDefineState", "ManagedElement SettingData", "reference Msvm_ComputerSystem ManagedElement"},
		{"Msvm_VirtualSystemSettingDataComponent", "CIM_Component", "GroupComponent PartComponent", ""},
		{"Msvm_AffectedJobElement", "CIM_AffectedJobElement", "AffectedElement AffectingElement", ""},
		{"Msvm_SnapshotOfVirtualSystem", "CIM_Dependency", "Antecedent Dependent", ""},
		{"Msvm_MostCurrentSnapshotInBranch", "CIM_Dependency", "Antecedent Dependent", ""},
		{"Msvm_ReferencePointOfVirtualSystem", "CIM_Dependency", "Antecedent Dependent", ""},
		{"Msvm_SystemDevice", "CIM_Component", "GroupComponent PartComponent", ""},
		{"Msvm_ReplicationRelationship", "CIM_ManagedSystemElement", "InstanceID", "uint16 ReplicationState"},
		{"Msvm_Error", "CIM_Error", "", "string Message"},
	} {
		got := class(t, c.name)
		if !got.IsA(c.isA) || !got.IsA(strings.ToLower(c.isA)) {
			t.Errorf("%s is no %s: %v", got.Name, c.isA, got.Superclasses())
		}
		if k := strings.Join(got.Keys(), " "); k != c.keys {
			t.Errorf("keys of %s are %q, not %q", got.Name, k, c.keys)
		}
		for _, want := range strings.Split(c.props, ", ") {
			i := strings.LastIndexByte(want, ' ')
			if i < 0 {
				continue
			}
			p, ok := got.Property(want[i+1:])
			if typ := p.Type.String(); !ok || typ != want[:i] {
				t.Errorf("%s.%s is %q, not %q", got.Name, want[i+1:], typ, want[:i])
			}
		}
	}
	if a := class(t, "Msvm_SystemDevice"); !a.IsAssociation() || class(t, "Msvm_ComputerSystem").IsAssociation() {
		t.Error("associations are not told from objects")
	}
}

func TestMethods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ class, method, want string }{
		{"Msvm_VirtualSystemSnapshotService", "createsnapshot", "in reference CIM_ComputerSystem AffectedSystem, in string SnapshotSettings, in uint16 SnapshotType, in out reference CIM_VirtualSystemSettingData ResultingSnapshot, out reference CIM_ConcreteJob Job"},
		{"Msvm_VirtualSystemSnapshotService", "ConvertToReferencePoint", "in reference CIM_VirtualSystemSettingData AffectedSnapshot, in string ReferencePointSettings, in out reference Msvm_VirtualSystemReferencePoint ResultingReferencePoint, out reference CIM_ConcreteJob Job"},
		{"Msvm_ImageManagementService", "GetVirtualDiskChanges", "in string Path, in string LimitId, in string TargetSnapshotId, in uint64 ByteOffset, in uint64 ByteLength, out uint64 ProcessedByteLength, out uint64[] ChangedByteOffsets, out uint64[] ChangedByteLengths, out reference CIM_ConcreteJob Job"},
		{"Msvm_ComputerSystem", "RequestStateChange", "in uint16 RequestedState, out reference CIM_ConcreteJob Job, in datetime TimeoutPeriod"},
		{"Msvm_VirtualSystemManagementService", "GetSummaryInformation", "in reference CIM_VirtualSystemSettingData[] SettingData, in uint32[] RequestedInformation, out object Msvm_SummaryInformationBase[] SummaryInformation"},
		{"Msvm_ShutdownComponent", "InitiateShutdown", "in boolean Force, in string Reason"},
	} {
		m, ok := class(t, c.class).Method(c.method)
		if !ok {
			t.Errorf("%s has no method %s", c.class, c.method)
			continue
		}
		var list []string
		for _, p := range m.Parameters {
			s := ""
			if p.In {
				s += "in "
			}
			if p.Out {
				s += "out "
			}
			if p.Type.Name == String {
				p.Type.Class = ""
			}
			list = append(list, s+p.Type.String()+" "+p.Name)
		}
		if got := strings.Join(list, ", "); got != c.want {
			t.Errorf("%s.%s takes\n%s\nnot\n%s", c.class, c.method, got, c.want)
		}
	}
	if _, ok := class(t, "Msvm_DiskDrive").Method("SaveProperties"); !ok {
		t.Error("inherited methods are not found")
	}
	m, _ := class(t, "Msvm_VirtualSystemManagementService").Method("DefineSystem")
	if p, ok := m.Parameter("systemsettings"); !ok || p.Class == "" {
		t.Errorf("the class of embedded text is not known: %+v", p)
	}
}

func TestDerivedAndNamespaces(t *testing.T) {
	t.Parallel()
	s := Load()
	list := s.Derived(Virtualization, "cim_settingdata")
	seen := map[string]bool{}
	for _, c := range list {
		if !c.IsA("CIM_SettingData") || seen[c.Name] {
			t.Errorf("%s is derived wrongly or twice", c.Name)
		}
		seen[c.Name] = true
	}
	n := 0
	for _, c := range s.Classes(Virtualization) {
		if c.IsA("CIM_SettingData") {
			n++
		}
	}
	if list[0].Name != "CIM_SettingData" || n != len(list) || n < 50 {
		t.Errorf("%d derived, first %s, %d by search", len(list), list[0].Name, n)
	}
	if s.Derived(Virtualization, "Nothing") != nil || s.HasNamespace("root/none") || !s.HasNamespace(`\root\CIMV2`) {
		t.Error("unknown names are found")
	}
	for _, name := range []string{"Win32_OperatingSystem", "Win32_ComputerSystem", "Win32_LogicalDisk", "Win32_Volume", "Win32_Service"} {
		if c, ok := s.Class(CIMv2, name); !ok || len(c.Keys()) != 1 {
			t.Errorf("%s: %v", name, ok)
		}
	}
	for _, name := range []string{"MSCluster_Cluster", "MSCluster_Node", "MSCluster_ResourceGroup"} {
		if _, ok := s.Class(Cluster, name); !ok {
			t.Errorf("no %s", name)
		}
	}
	if n := len(s.Classes(Virtualization)); n < 429 {
		t.Errorf("only %d classes", n)
	}
}

func TestConform(t *testing.T) {
	t.Parallel()
	s := Load()
	path := cim.Path{Namespace: Virtualization, Class: "Msvm_ComputerSystem", Keys: []cim.Key{{Name: "Name", Value: "x"}, {Name: "CreationClassName", Value: "Msvm_ComputerSystem"}}}
	good := cim.NewInstance("Msvm_ComputerSystem", "name", "x", "OperationalStatus", []uint16{2}, "InstallDate", cim.FormatTime(testTime), "Roles", nil)
	good.Path = path
	if err := s.Conform(good); err != nil {
		t.Error(err)
	}
	job := cim.NewInstance("Msvm_AffectedJobElement", "AffectedElement", path)
	if err := s.Conform(job); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		name  string
		value cim.Value
		want  string
	}{
		{"Nothing", 1, "no property Nothing"},
		{"EnabledState", uint32(2), "a uint32 is no uint16"},
		{"EnabledState", 2, "a int is no uint16"},
		{"EnabledState", "2", "a string is no uint16"},
		{"OperationalStatus", uint16(2), "no uint16[]"},
		{"EnabledState", []uint16{2}, "no uint16"},
		{"OperationalStatus", []cim.Value{uint16(2)}, "no typed array"},
		{"InstallDate", "20260101100000.000000+000", "a string is no datetime"},
		{"InstallDate", cim.DateTime("2026-01-01T10:00:00Z"), "25 characters"},
		{"ElementName", true, "a bool is no string"},
	} {
		err := s.Conform(cim.NewInstance("Msvm_ComputerSystem", c.name, c.value))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%v: %v, not %q", c.name, c.value, err, c.want)
		}
	}
	for name, in := range map[string]*cim.Instance{
		"unknown":           cim.NewInstance("Msvm_Nothing"),
		"names no instance": cim.NewInstance("Msvm_AffectedJobElement", "AffectedElement", cim.Path{Class: "Msvm_ComputerSystem"}),
		"1 keys":            {Class: "Msvm_ComputerSystem", Path: cim.Path{Namespace: Virtualization, Class: "Msvm_ComputerSystem", Keys: path.Keys[:1]}},
		"is no key":         {Class: "Msvm_ComputerSystem", Path: cim.Path{Namespace: Virtualization, Class: "Msvm_ComputerSystem", Keys: []cim.Key{{Name: "Name"}, {Name: "ElementName"}}}},
		"path of class":     {Class: "Msvm_ComputerSystem", Path: cim.Path{Namespace: Virtualization, Class: "Msvm_ConcreteJob", Keys: path.Keys}},
		"no instance":       nil,
	} {
		if err := s.Conform(in); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m, _ := class(t, "Msvm_VirtualSystemSnapshotService").Method("CreateSnapshot")
	if err := s.ConformIn(m, cim.Pairs("AffectedSystem", path, "SnapshotType", uint16(32768), "ResultingSnapshot", nil)); err != nil {
		t.Error(err)
	}
	if s.ConformIn(m, cim.Pairs("Job", path)) == nil || s.ConformOut(m, cim.Pairs("SnapshotType", uint16(1))) == nil || s.ConformOut(m, cim.Pairs("Job", "x")) == nil {
		t.Error("wrong parameters conform")
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	s := Load()
	in := cim.NewInstance("Msvm_ComputerSystem", "Own", 1, "name", "x", "ElementName", "e")
	s.Complete(in)
	c := class(t, "Msvm_ComputerSystem")
	if len(in.Args) != len(c.AllProperties())+1 {
		t.Fatalf("%d properties", len(in.Args))
	}
	for i, p := range c.AllProperties() {
		if in.Args[i].Name != p.Name {
			t.Fatalf("property %d is %s, not %s", i, in.Args[i].Name, p.Name)
		}
	}
	if in.String("Name") != "x" || in.String("ElementName") != "e" || in.Args[len(in.Args)-1].Name != "Own" {
		t.Error("values were lost")
	}
	before := len(in.Args)
	if s.Complete(in); len(in.Args) != before {
		t.Error("completing twice changes the instance")
	}
}

// TestKeysAreInherited: a property that is declared again stays a key, at its first place.
func TestKeysAreInherited(t *testing.T) {
	t.Parallel()
	s, err := parse("N n\nC A\nP uint8 Z k\nP string B\nC D A\nP uint16 z\nP string C k")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := s.Class("n", "d")
	if k := strings.Join(c.Keys(), " "); k != "C z" {
		t.Errorf("keys are %q", k)
	}
	if p := c.AllProperties(); len(p) != 3 || p[0].Type.Name != "uint16" || p[1].Name != "B" {
		t.Errorf("properties are %v", p)
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	for table, want := range map[string]string{
		"X":                           "cannot stand here",
		"C A":                         "cannot stand here",
		"N n\nP string A":             "cannot stand here",
		"N n\nC A\nC a":               "twice",
		"N n\nC A B":                  "superclass B of A is missing",
		"N n\nC A B\nC B A":           "its own superclass",
		"N n\nC A\nP text B":          "unknown",
		"N n\nC A\nP ref B":           "needs a class",
		"N n\nC A\nP uint8:X B":       "has a class",
		"N n\nC A\nP string: B":       "empty class",
		"N n\nC A\nM m\nA up uint8 x": "no direction",
	} {
		if _, err := parse(table); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, not %q", table, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("N n\nC A\nP string B k\nM m\nA in ref:A[] x\nC D A\nP uint8 B")
	f.Add(builtinTable[:4000])
	f.Fuzz(func(_ *testing.T, table string) { _, _ = parse(table) })
}

var testTime = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
