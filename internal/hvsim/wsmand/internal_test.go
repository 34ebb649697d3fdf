package wsmand

import (
	"bytes"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim/wsmand/soap"
)

func FuzzEnvelope(f *testing.F) {
	files, err := filepath.Glob("testdata/golden/*.xml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(soap.EnvelopeOpen + `<s:Header><a:Action>` + soap.NSEnum + `/Enumerate</a:Action><a:To>x</a:To><a:MessageID>y</a:MessageID><w:ResourceURI>` + soap.URIWMI + `root/a/*</w:ResourceURI>` +
		`<w:SelectorSet><w:Selector Name="A"><a:EndpointReference><a:ReferenceParameters><w:ResourceURI>` + soap.URICIM + `C</w:ResourceURI></a:ReferenceParameters></a:EndpointReference></w:Selector></w:SelectorSet>` +
		`<w:OperationTimeout>PT1.5S</w:OperationTimeout></s:Header><s:Body><n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>3</w:MaxElements><w:Filter Dialect="` + dialectWQL + `">select A, B from C</w:Filter></n:Enumerate></s:Body></s:Envelope>`))
	s := New(Config{})
	f.Cleanup(func() { _ = s.Close() })
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := soap.DecodeText(data, "")
		if err != nil {
			return
		}
		req, fl := soap.ParseEnvelope(text)
		c := &call{Server: s, user: "u", req: req}
		if fl == nil {
			op, method := operation(req)
			if op == "Enumerate" {
				_, _, fl = c.newEnumeration()
				if fl == nil {
					_, fl = c.pageOf(soap.NSWSMan)
				}
			}
			if op == "Invoke" && method == "" {
				t.Error("a method without name")
			}
			if req.Body != nil {
				groups, _ := grouped(req.Body.Kids)
				for _, group := range groups {
					_, _ = value(Param{Name: "p", Type: "datetime", Array: true}, group)
					_, _ = value(Param{Name: "p", Type: typeReference}, group)
				}
			}
		}
		if fl != nil { // whatever it says must be XML
			wellFormed(t, soap.Envelope(fl.Action, "", fl.Body("H"), req.MessageID))
		}
	})
}

func wellFormed(t *testing.T, data []byte) {
	t.Helper()
	dec := xml.NewDecoder(bytes.NewReader(data))
	for {
		if _, err := dec.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("%v: %q", err, data)
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ cim, element, text, back string }{
		{"20130309030625.000000+000", "Datetime", "2013-03-09T03:06:25Z", "20130309030625.000000+000"},
		{"20130404124025.524200-300", "Datetime", "2013-04-04T12:40:25.5242-05:00", "20130404124025.524200-300"},
		{"20130404124025.000001+330", "Datetime", "2013-04-04T12:40:25.000001+05:30", "20130404124025.000001+330"},
		{"00000000000500.000000:000", "Interval", "P0DT0H5M0S", "00000000000500.000000:000"},
		{"00000012132436.500000:000", "Interval", "P12DT13H24M36.5S", "00000012132436.500000:000"},
		{"********030625.000000+000", "CIM_DateTime", "********030625.000000+000", "********030625.000000+000"},
		{"20139999030625.000000+000", "CIM_DateTime", "20139999030625.000000+000", "20139999030625.000000+000"},
	} {
		element, text := soap.XMLTime(cim.DateTime(c.cim))
		if element != c.element || text != c.text {
			t.Errorf("%s: %s %s", c.cim, element, text)
		}
		if back, ok := cimTime(text); !ok || string(back) != c.back {
			t.Errorf("%s: back as %s %v", text, back, ok)
		}
	}
	for _, s := range []string{"", "P", "PT", "P1", "P1Y", "PT1D", "P1M", "1S", "PT1M2M", "PT-1S", "PT99999999999999H", "yesterday", "P1DT"} {
		if d, err := soap.ParseDuration(s); err == nil {
			t.Errorf("%q is %v", s, d)
		}
	}
}
