package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const input = `{"classes": {
 "CIM_Base": {"super": null, "props": [{"name": "InstanceID", "type": "string"}, {"name": "Kind", "type": "unit16"}]},
 "Msvm_Job": {"super": "CIM_Base", "props": [{"name": "InstanceID", "type": "String"}, {"name": "Kind", "type": "uint16"}, {"name": "List", "type": "UINT32", "array": true}]},
 "Msvm_Tie": {"super": "", "props": [{"name": "A", "type": "CIM_Base", "ref": true}, {"name": "B", "type": "Msvm_Job", "ref": true}]},
 "SampleCode": {"super": "", "props": [{"name": "x", "type": "using"}]}},
 "methods": {"Msvm_Job.Do": {"params": [{"dir": "in", "type": "string", "name": "Text", "array": true}, {"dir": "in", "type": "CIM_Base", "ref": true, "name": "Thing"},
   {"dir": "out", "type": "Msvm_Job", "name": "Job"}, {"dir": "out", "type": "CIM_Base", "name": "Things", "array": true}],
  "text": "Text [in] An array of embedded instances of the Msvm_Job class. Thing [in, out] A thing. Job [out] A job."}}}`

const want = `C CIM_Base
P string InstanceID
P uint16 Kind
C Msvm_Job CIM_Base
P string InstanceID k
P uint32[] List
M Do
A in string:Msvm_Job[] Text
A io ref:CIM_Base Thing
A out ref:Msvm_Job Job
A out obj:CIM_Base[] Things
C Msvm_Tie
P ref:CIM_Base A k
P ref:Msvm_Job B k
`

func TestTable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.json"), filepath.Join(dir, "out.txt")
	if err := os.WriteFile(in, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(in, out); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil || string(got) != head+want {
		t.Errorf("%v\n%s", err, strings.TrimPrefix(string(got), head))
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		`{"classes": {"Msvm_A": {"props": [{"name": "x", "type": "text"}]}}}`,
		`{"classes": {"Msvm_A": {}}, "methods": {"Msvm_A.M": {"params": [{"name": "x", "type": "BSTR"}]}}}`,
		`{"methods": {"NoClass": {}}}`,
	} {
		var x extract
		if err := json.Unmarshal([]byte(bad), &x); err != nil {
			t.Fatal(err)
		}
		if _, err := x.table(); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	if run(filepath.Join(t.TempDir(), "none"), "") == nil {
		t.Error("a missing file is no error")
	}
}
