package cim

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPaths(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Path{
		`\\HV1\root\virtualization\v2:Msvm_ComputerSystem.CreationClassName="Msvm_ComputerSystem",Name="A-1"`: {Host: "HV1", Namespace: "root/virtualization/v2", Class: "Msvm_ComputerSystem",
			Keys: []Key{{"CreationClassName", "Msvm_ComputerSystem"}, {"Name", "A-1"}}},
		`Msvm_StorageAllocationSettingData.InstanceID="Microsoft:1\\2\\D"`: {Class: "Msvm_StorageAllocationSettingData", Keys: []Key{{"InstanceID", `Microsoft:1\2\D`}}},
		`root/cimv2:Win32_Process.Handle='5'`:                              {Namespace: "root/cimv2", Class: "Win32_Process", Keys: []Key{{"Handle", "5"}}},
		`//./root/cimv2:Win32_Process.Handle=5,X="a,\"b="`:                 {Host: ".", Namespace: "root/cimv2", Class: "Win32_Process", Keys: []Key{{"Handle", "5"}, {"X", `a,"b=`}}},
		`Msvm_VirtualSystemManagementService=@`:                            {Class: "Msvm_VirtualSystemManagementService", Singleton: true},
		`Win32_OperatingSystem`:                                            {Class: "Win32_OperatingSystem"},
	} {
		got, err := ParsePath(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v %v", text, got, err)
			continue
		}
		again, err := ParsePath(got.String())
		if err != nil || !again.Same(got) {
			t.Errorf("%s becomes %s: %v", text, got, err)
		}
	}
	for _, text := range []string{"", `\\host`, `\\host\root:`, `A.B`, `A.B="x`, `A.B=`, `A.="x"`, `A.B="x"y`, `A b.C="d"`, `::0`} {
		if p, err := ParsePath(text); err == nil {
			t.Errorf("%q: %+v", text, p)
		}
	}
	p, _ := ParsePath(`X.a="1",b="2"`)
	q, _ := ParsePath(`x.B="2",A="1"`)
	if !p.Same(q) || p.Same(Path{Class: "X"}) || p.Key("B") != "2" {
		t.Error("names are not compared without case")
	}
	if s := Associators(q, "Msvm_A", "Msvm_B"); s != `ASSOCIATORS OF {x.B="2",A="1"} WHERE AssocClass=Msvm_A ResultClass=Msvm_B` {
		t.Error(s)
	}
	if s := Quote(`it's C:\x`); s != `'it\'s C:\\x'` {
		t.Error(s)
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add(`\\h\root\v2:A.B="x\\\"y",C=5`)
	f.Add(`A=@`)
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			return
		}
		q, err := ParsePath(p.Relative())
		if err == nil && len(q.Keys) == len(p.Keys) && !q.Same(p) && !strings.ContainsAny(s, "=,.") {
			t.Errorf("%q: %+v, then %+v", s, p, q)
		}
	})
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	in := NewInstance("Msvm_X", "Text", `<a&b "c">`, "Yes", true, "Small", uint8(7), "Big", uint64(1<<63), "Minus", int32(-5), "None", nil, "List", []string{"x", ""},
		"Numbers", []uint16{1, 2}, "Ref", Path{Class: "A", Keys: []Key{{"k", `v\w`}}}, "When", FormatTime(time.Unix(0, 0)), "Real", 1.5, "Empty", []uint32{}, "Lines", "a\r\nb\tc")
	text, err := EncodeEmbedded(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := DecodeEmbedded(`<?xml version="1.0"?><CIM><DECLARATION>` + strings.Replace(text, "<PROPERTY", `<QUALIFIER NAME="x"><VALUE>TRUE</VALUE></QUALIFIER><PROPERTY`, 1) + `</DECLARATION></CIM>`)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := out.Lookup("None"); ok || out.Class != "Msvm_X" {
		t.Errorf("%+v", out)
	}
	for _, p := range in.Args {
		got, _ := out.Lookup(p.Name)
		want := p.Value
		if p.Name == "Ref" {
			want = `A.k="v\\w"`
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v, want %#v", p.Name, got, want)
		}
	}
	if r, ok := out.Ref("ref"); !ok || r.Key("k") != `v\w` {
		t.Errorf("%+v", r)
	}
	if _, err := EncodeEmbedded(NewInstance("X", "bad", struct{}{})); err == nil {
		t.Error("a struct has no CIM type")
	}
	for _, bad := range []string{"", "<INSTANCE", "<X/>", `<INSTANCE CLASSNAME="a"><PROPERTY NAME="b" TYPE="uint8"><VALUE>300</VALUE></PROPERTY></INSTANCE>`, `<INSTANCE CLASSNAME="a"><PROPERTY.ARRAY NAME="b" TYPE="boolean"><VALUE.ARRAY><VALUE>maybe</VALUE></VALUE.ARRAY></PROPERTY.ARRAY></INSTANCE>`} {
		if in, err := DecodeEmbedded(bad); err == nil {
			t.Errorf("%q: %+v", bad, in)
		}
	}
}

func FuzzDecodeEmbedded(f *testing.F) {
	text, _ := EncodeEmbedded(NewInstance("A", "b", []uint64{1, 2}, "c", "d"))
	f.Add(text)
	f.Add(`<INSTANCE CLASSNAME="a"><PROPERTY.ARRAY NAME="b" TYPE="uint00"><VALUE.ARRAY><VALUE>0</VALUE></VALUE.ARRAY></PROPERTY.ARRAY></INSTANCE>`)
	f.Fuzz(func(t *testing.T, s string) {
		in, err := DecodeEmbedded(s)
		if err != nil {
			return
		}
		if _, err := EncodeEmbedded(in); err != nil {
			t.Errorf("what was read can't be written: %v", err)
		}
	})
}

// TestValues reads the same properties as text, as WS-Man has them, and typed, as COM has them.
func TestValues(t *testing.T) {
	t.Parallel()
	typed := Pairs("N", uint16(12), "B", true, "S", "x", "L", []uint32{1, 2}, "T", FormatTime(time.Unix(1700000000, 5000)), "R", Path{Class: "A"}, "Z", nil)
	text := Pairs("n", "12", "b", "TRUE", "s", "x", "l", []string{"1", "2"}, "t", "2023-11-14T22:13:20.000005Z", "r", `A`, "z", nil)
	for name, a := range map[string]Args{"typed": typed, "text": text} {
		n, ok := a.Uint("N")
		b, ok2 := a.Bool("b")
		l, err := a.Uints("L")
		when, ok3 := a.Time("T")
		r, ok4 := a.Ref("R")
		if n != 12 || !ok || !b || !ok2 || err != nil || len(l) != 2 || l[1] != 2 || !ok3 || when.UnixMicro() != 1700000000000005 || !ok4 || r.Class != "A" || a.String("S") != "x" {
			t.Errorf("%s: %v %v %v %v %v %v", name, n, b, l, err, when, r)
		}
		if !a.Null("Z") || !a.Null("missing") || a.Null("S") || a.Strings("S")[0] != "x" || a.Strings("z") != nil {
			t.Errorf("%s: nulls", name)
		}
		if _, ok := a.Lookup("missing"); ok {
			t.Error("what is missing was found")
		}
		if _, ok := a.Uint("S"); ok {
			t.Error("text became a number")
		}
	}
	for text, want := range map[DateTime]string{"20260102030405.000000+060": "2026-01-02T02:04:05Z", "20260102030405.250000-090": "2026-01-02T04:34:05.25Z"} {
		got, err := text.Time()
		if err != nil || got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %s %v", text, got, err)
		}
	}
	if _, err := DateTime("00000001020304.000000:000").Time(); err == nil {
		t.Error("an interval is no point in time")
	}
}

// session answers Get with one job state after the other.
type session struct {
	Session
	states []any // uint16 or error
	gets   int
	out    Out
}

func (s *session) Get(context.Context, Path) (*Instance, error) {
	v := s.states[min(s.gets, len(s.states)-1)]
	s.gets++
	if err, ok := v.(error); ok {
		return nil, err
	}
	return NewInstance("Msvm_ConcreteJob", "JobState", v, "PercentComplete", uint16(50), "ErrorCode", uint16(32768), "ErrorDescription", "it broke"), nil
}

func (s *session) Invoke(context.Context, Path, string, Args) (Out, error) { return s.out, nil }

func TestWait(t *testing.T) {
	t.Parallel()
	gone, away, denied := &Error{Code: CodeNotFound}, &Error{Code: CodeUnavailable, Message: "reset"}, &Error{Code: CodeAccessDenied}
	job := Path{Class: "Msvm_ConcreteJob", Keys: []Key{{"InstanceID", "j"}}}
	for name, c := range map[string]struct {
		states []any
		check  func(j Job, err error) bool
	}{
		"completes":     {[]any{uint16(2), uint16(4), "7"}, func(j Job, err error) bool { return err == nil && j.Done() && !j.Warning }},
		"with warnings": {[]any{uint16(4), uint16(32768)}, func(j Job, err error) bool { return err == nil && j.Warning }},
		"fails": {[]any{uint16(4), uint16(10)}, func(_ Job, err error) bool {
			var e *JobError
			return errors.As(err, &e) && e.Job.ErrorCode == 32768 && strings.Contains(err.Error(), "it broke")
		}},
		"vanishes":      {[]any{uint16(4), gone}, func(_ Job, err error) bool { var e *JobLostError; return errors.As(err, &e) }},
		"network trips": {[]any{uint16(4), away, away, uint16(7)}, func(_ Job, err error) bool { return err == nil }},
		"denied":        {[]any{denied}, func(_ Job, err error) bool { return CodeOf(err) == CodeAccessDenied }},
		"never ends": {[]any{uint16(4)}, func(_ Job, err error) bool {
			return CodeOf(err) == CodeTimeout && errors.Is(err, context.DeadlineExceeded)
		}},
		"host is gone": {[]any{away}, func(_ Job, err error) bool {
			return CodeOf(err) == CodeUnavailable && errors.Is(err, context.DeadlineExceeded)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
				defer cancel()
				s := &session{states: c.states}
				j, err := Wait(ctx, s, "test", job, 0, nil)
				if !c.check(j, err) {
					t.Errorf("%+v %v", j, err)
				}
				if name == "never ends" && s.gets < 100 {
					t.Errorf("only %d looks in 20 minutes: a job that ends would be missed", s.gets)
				}
			})
		})
	}
}

func TestCall(t *testing.T) {
	t.Parallel()
	job := Path{Class: "Msvm_ConcreteJob", Keys: []Key{{"InstanceID", "j"}}}
	s := &session{states: []any{uint16(7)}, out: Out{Return: ReturnJobStarted, Args: Pairs("Job", job)}}
	if _, j, err := Call(t.Context(), s, Path{}, "M", nil, nil); err != nil || j == nil {
		t.Error(err)
	}
	s.out = Out{Return: ReturnJobStarted}
	if _, _, err := Call(t.Context(), s, Path{}, "M", nil, nil); CodeOf(err) != CodeProtocol {
		t.Error(err)
	}
	var e *ReturnError
	s.out = Out{Return: 32775}
	if _, _, err := Call(t.Context(), s, Path{}, "M", nil, nil); !errors.As(err, &e) || !strings.Contains(err.Error(), "invalid state") {
		t.Error(err)
	}
	s.out = Out{}
	if _, j, err := Call(t.Context(), s, Path{}, "M", nil, nil); err != nil || j != nil {
		t.Error(err)
	}
}
