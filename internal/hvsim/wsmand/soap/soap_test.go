package soap

import (
	"bytes"
	"testing"

	"holdfast/internal/cim"
)

func TestReferenceKeys(t *testing.T) {
	t.Parallel()
	inner := `\\HV1\root\virtualization\v2:Msvm_ComputerSystem.Name="A\\B"`
	var b bytes.Buffer
	b.WriteString(EnvelopeOpen)
	WriteEPR(&b, cim.Path{Class: "Msvm_Link", Keys: []cim.Key{{Name: "Left", Value: inner}, {Name: "Text", Value: `\\HV1\share`}}}, "root/virtualization/v2")
	b.WriteString("</s:Envelope>")
	root, err := ParseXML(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	p, f := ParseEPR(root, 0)
	if f != nil {
		t.Fatal(f.Message)
	}
	left, err := cim.ParsePath(p.Key("Left"))
	if err != nil || left.Key("Name") != `A\B` || left.Class != "Msvm_ComputerSystem" || left.Namespace != "root/virtualization/v2" {
		t.Errorf("%v %v", left, err)
	}
	if p.Key("Text") != `\\HV1\share` || p.Namespace != "root/virtualization/v2" {
		t.Errorf("%v", p)
	}
}
