package cim

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// Embedded instances travel as text: the XML of [DSP0201] (CIM DTD 2.0), of which
// WMI needs INSTANCE, PROPERTY, PROPERTY.ARRAY, VALUE and VALUE.ARRAY.

// EncodeEmbedded renders an instance as text. Null properties are left out: the
// server then takes its default. Types come from the Go types of the values, so
// an instance that was read without types is rendered with TYPE="string".
func EncodeEmbedded(in *Instance) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `<INSTANCE CLASSNAME="%s">`, escape(in.Class))
	for _, p := range in.Args {
		if p.Value == nil {
			continue
		}
		list, array := Elements(p.Value)
		kind, err := typeName(p.Value)
		if err != nil {
			return "", fmt.Errorf("cim: property %s of %s: %w", p.Name, in.Class, err)
		}
		if array {
			fmt.Fprintf(&b, `<PROPERTY.ARRAY NAME="%s" TYPE="%s"><VALUE.ARRAY>`, escape(p.Name), kind)
			for _, v := range list {
				b.WriteString("<VALUE>" + escape(upperBool(v)) + "</VALUE>")
			}
			b.WriteString("</VALUE.ARRAY></PROPERTY.ARRAY>")
			continue
		}
		fmt.Fprintf(&b, `<PROPERTY NAME="%s" TYPE="%s"><VALUE>%s</VALUE></PROPERTY>`, escape(p.Name), kind, escape(upperBool(p.Value)))
	}
	b.WriteString("</INSTANCE>")
	return b.String(), nil
}

// upperBool renders booleans as [DSP0201] does.
func upperBool(v Value) string {
	if b, ok := v.(bool); ok {
		return strings.ToUpper(strconv.FormatBool(b))
	}
	return text(v)
}

// typeName is the DTD's name of a Go value's type.
func typeName(v Value) (string, error) {
	switch v.(type) {
	case string, []string, Path, []Path, *Instance, []*Instance:
		return "string", nil
	case bool, []bool:
		return "boolean", nil
	case DateTime, []DateTime:
		return "datetime", nil
	case int8, []int8:
		return "sint8", nil
	case int16, []int16:
		return "sint16", nil
	case int32, []int32:
		return "sint32", nil
	case int64, []int64:
		return "sint64", nil
	case uint8, []uint8:
		return "uint8", nil
	case uint16, []uint16:
		return "uint16", nil
	case uint32, []uint32:
		return "uint32", nil
	case uint64, []uint64:
		return "uint64", nil
	case float32, []float32:
		return "real32", nil
	case float64, []float64:
		return "real64", nil
	}
	return "", fmt.Errorf("a %T has no CIM type", v)
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder doesn't fail
	return b.String()
}

// maxEmbedded bounds the nesting of elements that DecodeEmbedded follows.
const maxEmbedded = 64

type embeddedXML struct {
	Class string `xml:"CLASSNAME,attr"`
	Props []struct {
		XMLName xml.Name
		Name    string    `xml:"NAME,attr"`
		Type    string    `xml:"TYPE,attr"`
		Value   *string   `xml:"VALUE"`
		Array   *arrayXML `xml:"VALUE.ARRAY"`
	} `xml:",any"`
}

type arrayXML struct {
	Values []string `xml:"VALUE"`
}

// DecodeEmbedded reads an embedded instance. Values come with the types that the text declares;
// elements that are not properties (qualifiers, methods) are ignored.
func DecodeEmbedded(s string) (*Instance, error) {
	dec := xml.NewDecoder(strings.NewReader(s))
	for {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("cim: embedded instance of %d bytes: %w", len(s), err)
		}
		start, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Local != "INSTANCE" {
			if depth := dec.InputOffset(); depth > maxEmbedded<<10 {
				return nil, fmt.Errorf("cim: embedded text has no INSTANCE in its first %d bytes", depth)
			}
			continue // CIM, DECLARATION and the like around it
		}
		var x embeddedXML
		if err := dec.DecodeElement(&x, &start); err != nil {
			return nil, fmt.Errorf("cim: embedded instance: %w", err)
		}
		in := &Instance{Class: x.Class}
		for _, p := range x.Props {
			var v Value
			switch p.XMLName.Local {
			case "PROPERTY":
				if p.Value != nil {
					if v, err = scalar(p.Type, *p.Value); err != nil {
						return nil, fmt.Errorf("cim: property %s of %s: %w", p.Name, x.Class, err)
					}
				}
			case "PROPERTY.ARRAY":
				if p.Array != nil {
					if v, err = array(p.Type, p.Array.Values); err != nil {
						return nil, fmt.Errorf("cim: property %s of %s: %w", p.Name, x.Class, err)
					}
				}
			default:
				continue
			}
			in.Set(p.Name, v)
		}
		return in, nil
	}
}

// Parse converts text to a value of the CIM type name (boolean, uint32, string …).
func Parse(typ, s string) (Value, error) { return scalar(typ, s) }

// ParseArray converts texts to an array of the CIM type name.
func ParseArray(typ string, list []string) (Value, error) { return array(typ, list) }

// scalar converts by the type's name; a name that is none of CIM's is text.
func scalar(typ, s string) (Value, error) {
	num := strings.TrimSpace(s)
	switch strings.ToLower(typ) {
	case "boolean":
		return strconv.ParseBool(strings.ToLower(num))
	case "datetime":
		return DateTime(num), nil
	case "uint8":
		n, err := strconv.ParseUint(num, 10, 8)
		return uint8(n), err
	case "uint16":
		n, err := strconv.ParseUint(num, 10, 16)
		return uint16(n), err
	case "uint32":
		n, err := strconv.ParseUint(num, 10, 32)
		return uint32(n), err
	case "uint64":
		return strconv.ParseUint(num, 10, 64)
	case "sint8":
		n, err := strconv.ParseInt(num, 10, 8)
		return int8(n), err
	case "sint16":
		n, err := strconv.ParseInt(num, 10, 16)
		return int16(n), err
	case "sint32":
		n, err := strconv.ParseInt(num, 10, 32)
		return int32(n), err
	case "sint64":
		return strconv.ParseInt(num, 10, 64)
	case "real32":
		f, err := strconv.ParseFloat(num, 32)
		return float32(f), err
	case "real64":
		return strconv.ParseFloat(num, 64)
	}
	return s, nil
}

func array(typ string, list []string) (Value, error) {
	vals := make([]Value, len(list))
	for i, s := range list {
		v, err := scalar(typ, s)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		vals[i] = v
	}
	switch strings.ToLower(typ) {
	case "boolean":
		return unboxed[bool](vals), nil
	case "datetime":
		return unboxed[DateTime](vals), nil
	case "uint8":
		return unboxed[uint8](vals), nil
	case "uint16":
		return unboxed[uint16](vals), nil
	case "uint32":
		return unboxed[uint32](vals), nil
	case "uint64":
		return unboxed[uint64](vals), nil
	case "sint8":
		return unboxed[int8](vals), nil
	case "sint16":
		return unboxed[int16](vals), nil
	case "sint32":
		return unboxed[int32](vals), nil
	case "sint64":
		return unboxed[int64](vals), nil
	case "real32":
		return unboxed[float32](vals), nil
	case "real64":
		return unboxed[float64](vals), nil
	}
	return unboxed[string](vals), nil
}

func unboxed[T any](list []Value) []T {
	out := make([]T, len(list))
	for i, v := range list {
		out[i] = v.(T)
	}
	return out
}
