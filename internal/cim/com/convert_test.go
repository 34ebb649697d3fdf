package com

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"holdfast/internal/cim"
)

// TestCoerce proves that each CIM type is read from each form in which COM sends it.
func TestCoerce(t *testing.T) {
	t.Parallel()
	obj := cim.NewInstance("A", "B", "c")
	for _, c := range []struct {
		typ  int32
		raw  any
		want cim.Value
	}{
		{cimUint32, nil, nil}, {cimSint8, int64(-3), int8(-3)}, {cimUint8, uint64(255), uint8(255)}, {cimSint16, int64(-300), int16(-300)},
		{cimUint16, int64(65535), uint16(65535)}, {cimUint16, int64(-1), uint16(65535)}, {cimSint32, int64(-1), int32(-1)},
		{cimUint32, int64(-1), uint32(math.MaxUint32)}, {cimUint32, uint64(7), uint32(7)}, {cimSint64, "-9", int64(-9)},
		{cimUint64, "18446744073709551615", uint64(math.MaxUint64)}, {cimUint64, int64(-1), uint64(math.MaxUint64)},
		{cimChar16, int64(-1), uint16(65535)}, {cimReal32, 1.5, float32(1.5)}, {cimReal64, 2.5, 2.5}, {cimBoolean, true, true},
		{cimString, "", ""}, {cimString, "x", "x"}, {cimDateTime, "20261122100000.000000+000", cim.DateTime("20261122100000.000000+000")},
		{cimReference, `\\H\root\v2:A.K="1"`, cim.Path{Host: "H", Namespace: "root/v2", Class: "A", Keys: []cim.Key{{Name: "K", Value: "1"}}}},
		{cimObject, obj, obj}, {cimString | cimArray, []any{"a", nil, "b"}, []string{"a", "", "b"}}, {cimUint16 | cimArray, []any{int64(2), int64(-1)}, []uint16{2, 65535}},
		{cimUint64 | cimArray, []any{"1", "2"}, []uint64{1, 2}}, {cimString | cimArray, []any{}, []string{}}, {cimObject | cimArray, []any{obj}, []*cim.Instance{obj}},
		{cimUint8 | cimArray, []any{uint64(1)}, []uint8{1}}, {cimBoolean | cimArray, []any{true, false}, []bool{true, false}},
		{cimReference | cimArray, []any{"A=@"}, []cim.Path{{Class: "A", Singleton: true}}},
	} {
		got, err := coerce(c.typ, c.raw)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("coerce(%d, %v) = %T %v, %v; want %T %v", c.typ, c.raw, got, got, err, c.want, c.want)
		}
	}
	for _, c := range []struct {
		typ int32
		raw any
	}{{cimUint8, int64(256)}, {cimSint8, int64(200)}, {cimUint32, "x"}, {cimUint32, true}, {cimBoolean, "true"}, {cimString, int64(1)}, {cimReference, ""},
		{cimObject, "x"}, {cimReal32, int64(1)}, {cimString, []any{"x"}}, {cimString | cimArray, "x"}, {999, "x"}, {999 | cimArray, []any{"x"}},
		{cimUint16 | cimArray, []any{"x"}}} {
		if got, err := coerce(c.typ, c.raw); err == nil {
			t.Errorf("coerce(%d, %v) = %v", c.typ, c.raw, got)
		}
	}
}

// TestPrepare proves that values go into the VARIANT type that WMI wants, and that what doesn't fit is refused, not cut.
func TestPrepare(t *testing.T) {
	t.Parallel()
	path := cim.Path{Class: "A", Keys: []cim.Key{{Name: "K", Value: `a\b`}}}
	for _, c := range []struct {
		typ  int32
		v    cim.Value
		vt   uint16
		want []element
	}{
		{cimUint16, uint16(65535), vtI4, []element{{bits: 65535}}}, {cimUint16, "7", vtI4, []element{{bits: 7}}}, {cimUint8, 200, vtUI1, []element{{bits: 200}}},
		{cimSint16, int16(-2), vtI2, []element{{bits: math.MaxUint64 - 1}}}, {cimUint32, uint32(math.MaxUint32), vtI4, []element{{bits: math.MaxUint32}}},
		{cimUint64, uint64(math.MaxUint64), vtBSTR, []element{{text: "18446744073709551615"}}}, {cimSint64, int64(-1), vtBSTR, []element{{text: "-1"}}},
		{cimBoolean, true, vtBool, []element{{bits: 0xffff}}}, {cimBoolean, "FALSE", vtBool, []element{{}}}, {cimString, "x", vtBSTR, []element{{text: "x"}}},
		{cimReference, path, vtBSTR, []element{{text: `\\.\root\v2:A.K="a\\b"`}}}, {cimReference, "A=@", vtBSTR, []element{{text: "A=@"}}},
		{cimReal32, float32(1.5), vtR4, []element{{bits: uint64(math.Float32bits(1.5))}}}, {cimReal64, 2.5, vtR8, []element{{bits: math.Float64bits(2.5)}}},
		{cimUint16 | cimArray, []uint16{1, 2}, vtI4 | vtArray, []element{{bits: 1}, {bits: 2}}}, {cimUint16 | cimArray, uint16(1), vtI4 | vtArray, []element{{bits: 1}}},
		{cimString | cimArray, []string{}, vtBSTR | vtArray, nil}, {cimReference | cimArray, []cim.Path{path}, vtBSTR | vtArray, []element{{text: `\\.\root\v2:A.K="a\\b"`}}},
	} {
		vt, list, err := prepare(c.typ, c.v, "root/v2")
		if err != nil || vt != c.vt || !reflect.DeepEqual(list, c.want) {
			t.Errorf("prepare(%d, %v) = %d %v, %v; want %d %v", c.typ, c.v, vt, list, err, c.vt, c.want)
		}
	}
	// An embedded instance for a text parameter is text; for an object it is an object.
	in := cim.NewInstance("Msvm_X", "ConsistencyLevel", uint8(1))
	if _, list, err := prepare(cimString, in, ""); err != nil || !strings.HasPrefix(list[0].text, `<INSTANCE CLASSNAME="Msvm_X">`) {
		t.Errorf("embedded as text: %v, %v", list, err)
	}
	if vt, list, err := prepare(cimObject, in, ""); err != nil || vt != vtUnknown || list[0].obj != in {
		t.Errorf("embedded as object: %v, %v", list, err)
	}
	for _, c := range []struct {
		typ int32
		v   cim.Value
	}{{cimUint8, 256}, {cimUint16, -1}, {cimUint32, "x"}, {cimBoolean, "maybe"}, {cimString, []string{"a", "b"}}, {cimObject, "x"}, {999, "x"},
		{cimUint16 | cimArray, []uint32{1, 70000}}, {cimString | cimArray, []cim.Value{"a", nil}}, {cimReal64, "x"}} {
		if vt, list, err := prepare(c.typ, c.v, ""); err == nil {
			t.Errorf("prepare(%d, %v) = %d, %v", c.typ, c.v, vt, list)
		}
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for status, want := range map[uint32]cim.Code{0x80041002: cim.CodeNotFound, 0x80041003: cim.CodeAccessDenied, 0x80070005: cim.CodeAccessDenied,
		0x80041010: cim.CodeInvalidClass, 0x8004100e: cim.CodeInvalidClass, 0x80041017: cim.CodeInvalidQuery, 0x8004102e: cim.CodeNoMethod,
		0x800706ba: cim.CodeUnavailable, 0x80010108: cim.CodeUnavailable, 0x8004106c: cim.CodeQuota, 0x80010002: cim.CodeTimeout,
		0x8007052e: cim.CodeUnauthorized, 0x80041001: cim.CodeFailed, 0x80004005: cim.CodeFailed} {
		if got := classify(status); got != want {
			t.Errorf("0x%08x is %s, want %s", status, got, want)
		}
	}
}

// FuzzRoundTrip: what prepare takes for a type, coerce gives back as the same value.
func FuzzRoundTrip(f *testing.F) {
	f.Add(int32(cimUint16), "65535")
	f.Add(int32(cimSint64), "-1")
	f.Add(int32(cimString), "text")
	f.Add(int32(cimBoolean), "true")
	f.Fuzz(func(t *testing.T, typ int32, s string) {
		_, list, err := prepare(typ, s, "")
		if err != nil || typ&cimArray != 0 || len(list) != 1 {
			return
		}
		n, isInt := integer(typ)
		var raw any = list[0].text
		switch {
		case isInt && n.bits < 64:
			raw = int64(list[0].bits)
		case typ == cimBoolean:
			raw = list[0].bits != 0
		case typ == cimReal32:
			raw = float64(math.Float32frombits(uint32(list[0].bits)))
		case typ == cimReal64:
			raw = math.Float64frombits(list[0].bits)
		}
		v, err := coerce(typ, raw)
		if err != nil {
			if typ == cimReference {
				return // prepare hands texts on; the server judges them
			}
			t.Fatalf("type %d, %q: %v", typ, s, err)
		}
		if _, again, err := prepare(typ, v, ""); err != nil || typ != cimReference && again[0] != list[0] {
			t.Fatalf("type %d, %q: %v then %v, %v", typ, s, list[0], again, err)
		}
	})
}
