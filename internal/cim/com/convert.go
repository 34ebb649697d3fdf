package com

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"holdfast/internal/cim"
)

// CIM types (CIMTYPE_ENUMERATION) and the VARIANT types that carry them.
const (
	cimSint16    = 2
	cimSint32    = 3
	cimReal32    = 4
	cimReal64    = 5
	cimString    = 8
	cimBoolean   = 11
	cimObject    = 13
	cimSint8     = 16
	cimUint8     = 17
	cimUint16    = 18
	cimUint32    = 19
	cimSint64    = 20
	cimUint64    = 21
	cimDateTime  = 101
	cimReference = 102
	cimChar16    = 103
	cimArray     = 0x2000

	vtEmpty   = 0
	vtNull    = 1
	vtI2      = 2
	vtI4      = 3
	vtR4      = 4
	vtR8      = 5
	vtBSTR    = 8
	vtBool    = 11
	vtUnknown = 13
	vtI1      = 16
	vtUI1     = 17
	vtUI2     = 18
	vtUI4     = 19
	vtI8      = 20
	vtUI8     = 21
	vtInt     = 22
	vtUint    = 23
	vtArray   = 0x2000
)

// number describes the CIM types that are integers: the VARIANT type that carries
// them (64 bits travel as text) and their range.
type number struct {
	vt     uint16
	signed bool
	bits   int
}

func integer(typ int32) (number, bool) {
	switch typ {
	case cimSint8:
		return number{vtI2, true, 8}, true
	case cimUint8:
		return number{vtUI1, false, 8}, true
	case cimSint16:
		return number{vtI2, true, 16}, true
	case cimUint16:
		return number{vtI4, false, 16}, true
	case cimChar16:
		return number{vtI2, false, 16}, true
	case cimSint32:
		return number{vtI4, true, 32}, true
	case cimUint32:
		return number{vtI4, false, 32}, true
	case cimSint64:
		return number{vtBSTR, true, 64}, true
	case cimUint64:
		return number{vtBSTR, false, 64}, true
	}
	return number{}, false
}

// typeName is a CIM type's name in messages and for cim.Parse.
func typeName(typ int32) string {
	switch typ &^ cimArray {
	case cimSint8:
		return "sint8"
	case cimUint8:
		return "uint8"
	case cimSint16:
		return "sint16"
	case cimUint16, cimChar16:
		return "uint16"
	case cimSint32:
		return "sint32"
	case cimUint32:
		return "uint32"
	case cimSint64:
		return "sint64"
	case cimUint64:
		return "uint64"
	case cimReal32:
		return "real32"
	case cimReal64:
		return "real64"
	case cimBoolean:
		return "boolean"
	case cimDateTime:
		return "datetime"
	}
	return "string"
}

// coerce makes the value of a CIM type from what a VARIANT held: nil, an int64 or
// uint64, float64, bool, string or *cim.Instance, or a []any of these.
func coerce(typ int32, raw any) (cim.Value, error) {
	if raw == nil {
		return nil, nil
	}
	elem := typ &^ cimArray
	list, isList := raw.([]any)
	if isList != (typ&cimArray != 0) {
		return nil, fmt.Errorf("the server sent %T for the type %s (array %v)", raw, typeName(typ), typ&cimArray != 0)
	}
	if !isList {
		return coerceOne(elem, raw)
	}
	switch elem {
	case cimReference:
		return all[cim.Path](elem, list)
	case cimObject:
		return all[*cim.Instance](elem, list)
	case cimString:
		return all[string](elem, list)
	case cimBoolean:
		return all[bool](elem, list)
	case cimDateTime:
		return all[cim.DateTime](elem, list)
	case cimReal32:
		return all[float32](elem, list)
	case cimReal64:
		return all[float64](elem, list)
	case cimSint8:
		return all[int8](elem, list)
	case cimUint8:
		return all[uint8](elem, list)
	case cimSint16:
		return all[int16](elem, list)
	case cimUint16, cimChar16:
		return all[uint16](elem, list)
	case cimSint32:
		return all[int32](elem, list)
	case cimUint32:
		return all[uint32](elem, list)
	case cimSint64:
		return all[int64](elem, list)
	case cimUint64:
		return all[uint64](elem, list)
	}
	return nil, fmt.Errorf("the CIM type %d is not known", typ)
}

func all[T any](elem int32, list []any) (cim.Value, error) {
	out := make([]T, len(list))
	for i, raw := range list {
		if raw == nil {
			continue // an array has no nulls: an empty text is a null BSTR
		}
		v, err := coerceOne(elem, raw)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		out[i] = v.(T)
	}
	return out, nil
}

func coerceOne(typ int32, raw any) (cim.Value, error) {
	wrong := fmt.Errorf("the server sent the %T %v for the type %s", raw, raw, typeName(typ))
	if n, ok := integer(typ); ok {
		var text string
		switch v := raw.(type) {
		case int64:
			text = strconv.FormatInt(v, 10)
			if !n.signed && v < 0 { // a uint32 travels as VT_I4, a char16 as VT_I2
				text = strconv.FormatUint(uint64(v)&(1<<n.bits-1), 10)
			}
		case uint64:
			text = strconv.FormatUint(v, 10)
		case string:
			text = strings.TrimSpace(v)
		default:
			return nil, wrong
		}
		v, err := cim.Parse(typeName(typ), text)
		if err != nil {
			return nil, wrong
		}
		return v, nil
	}
	switch typ {
	case cimString, cimDateTime, cimReference:
		s, ok := raw.(string)
		if !ok {
			return nil, wrong
		}
		switch typ {
		case cimDateTime:
			return cim.DateTime(s), nil
		case cimReference:
			p, err := cim.ParsePath(s)
			return p, err
		}
		return s, nil
	case cimBoolean:
		if b, ok := raw.(bool); ok {
			return b, nil
		}
	case cimReal32:
		if f, ok := raw.(float64); ok {
			return float32(f), nil
		}
	case cimReal64:
		if f, ok := raw.(float64); ok {
			return f, nil
		}
	case cimObject:
		if in, ok := raw.(*cim.Instance); ok {
			return in, nil
		}
	}
	return nil, wrong
}

// element is what goes into a VARIANT or a SAFEARRAY's place.
type element struct {
	bits uint64        // numbers, booleans (VARIANT_BOOL) and floats
	text string        // VT_BSTR
	obj  *cim.Instance // VT_UNKNOWN
}

// prepare makes what a VARIANT of a CIM type holds: its type and its elements, which are
// one if the CIM type is no array. namespace completes references that name none.
func prepare(typ int32, v cim.Value, namespace string) (vt uint16, list []element, err error) {
	values, isList := cim.Elements(v)
	if isList && typ&cimArray == 0 {
		return 0, nil, fmt.Errorf("an array is given for one %s", typeName(typ))
	}
	elem := typ &^ cimArray
	if n, ok := integer(elem); ok {
		vt = n.vt
	} else {
		switch elem {
		case cimString, cimDateTime, cimReference:
			vt = vtBSTR
		case cimBoolean:
			vt = vtBool
		case cimReal32:
			vt = vtR4
		case cimReal64:
			vt = vtR8
		case cimObject:
			vt = vtUnknown
		default:
			return 0, nil, fmt.Errorf("the CIM type %d is not known", typ)
		}
	}
	for i, one := range values {
		e, err := prepareOne(elem, one, namespace)
		if err != nil {
			if isList {
				err = fmt.Errorf("element %d: %w", i, err)
			}
			return 0, nil, err
		}
		list = append(list, e)
	}
	if typ&cimArray != 0 {
		vt |= vtArray
	}
	return vt, list, nil
}

func prepareOne(typ int32, v cim.Value, namespace string) (element, error) {
	if v == nil {
		return element{}, fmt.Errorf("a null is given inside of an array of %s", typeName(typ))
	}
	text := cim.Args{{Name: "v", Value: v}}.String("v")
	if n, ok := integer(typ); ok {
		typed, err := cim.Parse(typeName(typ), text)
		if err != nil {
			return element{}, fmt.Errorf("%q is no %s", text, typeName(typ))
		}
		text = fmt.Sprint(typed)
		if n.bits == 64 {
			return element{text: text}, nil
		}
		i, err := strconv.ParseInt(text, 10, 64)
		return element{bits: uint64(i)}, err
	}
	switch typ {
	case cimBoolean:
		b, err := strconv.ParseBool(strings.ToLower(text))
		if err != nil {
			return element{}, fmt.Errorf("%q is no boolean", text)
		}
		if b {
			return element{bits: 0xffff}, nil // VARIANT_TRUE
		}
		return element{}, nil
	case cimReal32:
		f, err := strconv.ParseFloat(text, 32)
		return element{bits: uint64(math.Float32bits(float32(f)))}, err
	case cimReal64:
		f, err := strconv.ParseFloat(text, 64)
		return element{bits: math.Float64bits(f)}, err
	case cimObject:
		in, ok := v.(*cim.Instance)
		if !ok || in == nil {
			return element{}, fmt.Errorf("a %T is given for an object", v)
		}
		return element{obj: in}, nil
	case cimReference:
		if p, ok := v.(cim.Path); ok {
			if p.Namespace == "" {
				p.Namespace = namespace
			}
			return element{text: p.String()}, nil
		}
	case cimString:
		if in, ok := v.(*cim.Instance); ok { // an embedded instance travels as text
			s, err := cim.EncodeEmbedded(in)
			return element{text: s}, err
		}
	}
	return element{text: text}, nil
}
