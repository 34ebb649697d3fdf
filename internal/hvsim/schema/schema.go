// Package schema owns the tables of CIM classes that the Hyper-V simulator
// serves: names, superclasses, properties, methods and their parameters, for
// root/virtualization/v2, and the few classes of root/cimv2 and root/MSCluster
// that clients ask for.
//
// Provenance: hyperv.txt holds facts (names, types, directions) extracted from
// the public Hyper-V WMI provider (v2) reference of Microsoft (repository
// MicrosoftDocs/win32, folder desktop-src/HyperV_v2, licensed CC-BY-4.0,
// © Microsoft Corporation), changed by the extraction into tables: no
// descriptive text was kept, types were normalised, properties that a
// superclass already declares were left out, and keys, which that reference
// does not mark, were added by rule. It is written by gen and not edited.
// builtin.txt is written by hand, from the public class references of WMI's
// Win32 provider and of Failover Clustering.
//
// It promises: names are compared without case; a Schema never changes after
// Load and is safe for concurrent use; Conform finds every property of an
// instance that its class does not have, or has with another type.
package schema

import (
	"slices"
	"sort"
	"strings"
	"sync"
)

// The namespaces of the tables.
const (
	Virtualization = "root/virtualization/v2"
	CIMv2          = "root/cimv2"
	Cluster        = "root/MSCluster"
)

// The types of properties and parameters beside the numbers ("uint8" … "sint64", "real32", "real64").
const (
	Boolean   = "boolean"
	String    = "string"
	DateTime  = "datetime"
	Reference = "reference" // an object path; Class says to what
	Object    = "object"    // an embedded object that is not text; Class says of what
)

// Type is what a property or parameter holds.
type Type struct {
	Name  string // lower case: boolean, string, datetime, uint8 … sint64, real32, real64, reference, object
	Array bool
	// Class is the class of a reference or object. Of a string it is the class
	// whose instances the text holds, if the reference names one; else empty.
	Class string
}

// String renders the type for messages.
func (t Type) String() string {
	s := t.Name
	if t.Class != "" {
		s += " " + t.Class
	}
	if t.Array {
		s += "[]"
	}
	return s
}

// Property is one property of a class.
type Property struct {
	Name string
	Type
	Key bool
}

// Parameter is one parameter of a method. In and Out are both set for one that
// goes in and comes back changed. The return value, always uint32, is no parameter.
type Parameter struct {
	Name string
	Type
	In, Out bool
}

// Method is one method of a class.
type Method struct {
	Name       string
	Parameters []Parameter
}

// Parameter finds a parameter by its name.
func (m *Method) Parameter(name string) (Parameter, bool) {
	for _, p := range m.Parameters {
		if strings.EqualFold(p.Name, name) {
			return p, true
		}
	}
	return Parameter{}, false
}

// Class is one class. Its fields are read only.
type Class struct {
	Namespace  string // as in the constants
	Name       string
	Super      string     // the superclass's name, "" = none
	Properties []Property // that the class itself declares or redeclares
	Methods    []Method   // likewise

	super   *Class
	derived []*Class // direct ones, by name
	all     []Property
	keys    []string
	index   map[string]int // lower-case name → all
}

// IsA reports whether the class is the named one or derived from it.
func (c *Class) IsA(name string) bool {
	for ; c != nil; c = c.super {
		if strings.EqualFold(c.Name, name) {
			return true
		}
	}
	return false
}

// AllProperties returns the properties of the class, those of the topmost
// superclass first; a redeclared one stands at its first place with its last
// type. The caller must not change it.
func (c *Class) AllProperties() []Property { return c.all }

// Property finds a property, inherited or not.
func (c *Class) Property(name string) (Property, bool) {
	i, ok := c.index[strings.ToLower(name)]
	if !ok {
		return Property{}, false
	}
	return c.all[i], true
}

// Keys returns the names of the key properties in alphabetical order, in which
// WMI's object paths name them; none for a class whose
// instances are only embedded, for a singleton and for an abstract class above the keys.
// The caller must not change it.
func (c *Class) Keys() []string { return c.keys }

// Method finds a method, inherited or not.
func (c *Class) Method(name string) (*Method, bool) {
	for ; c != nil; c = c.super {
		for i := range c.Methods {
			if strings.EqualFold(c.Methods[i].Name, name) {
				return &c.Methods[i], true
			}
		}
	}
	return nil, false
}

// IsAssociation reports whether the class ties objects together: two or more of its keys are references.
func (c *Class) IsAssociation() bool {
	n := 0
	for _, p := range c.all {
		if p.Type.Name == Reference && p.Key {
			n++
		}
	}
	return n >= 2
}

// Superclasses returns the names of the superclasses, the nearest first.
func (c *Class) Superclasses() []string {
	var list []string
	for s := c.super; s != nil; s = s.super {
		list = append(list, s.Name)
	}
	return list
}

// Schema is the set of all classes.
type Schema struct {
	spaces map[string]map[string]*Class // lower-case namespace → lower-case class
	names  map[string]string            // lower-case namespace → its own spelling
}

// Load returns the schema; it is parsed once per process. It panics if the
// embedded tables are broken, which only a broken build can bring about.
func Load() *Schema { return load() }

var load = sync.OnceValue(func() *Schema {
	s, err := parse(hypervTable, builtinTable)
	if err != nil {
		panic("schema: embedded tables: " + err.Error())
	}
	return s
})

// normal brings a namespace to the form that the tables are keyed with.
func normal(namespace string) string {
	return strings.ToLower(strings.Trim(strings.ReplaceAll(namespace, `\`, "/"), "/"))
}

// HasNamespace reports whether there is a namespace of that name, written with either slash.
func (s *Schema) HasNamespace(namespace string) bool { return s.spaces[normal(namespace)] != nil }

// Class finds a class of a namespace, which may be written with either slash.
func (s *Schema) Class(namespace, name string) (*Class, bool) {
	c, ok := s.spaces[normal(namespace)][strings.ToLower(name)]
	return c, ok
}

// Find returns the class of an instance: by the namespace of its path, or, if
// it has none (embedded instances), in the first namespace that knows it.
func (s *Schema) Find(namespace, name string) (*Class, bool) {
	if namespace != "" {
		return s.Class(namespace, name)
	}
	for _, ns := range []string{Virtualization, CIMv2, Cluster} {
		if c, ok := s.Class(ns, name); ok {
			return c, true
		}
	}
	return nil, false
}

// Classes returns all classes of a namespace, by name.
func (s *Schema) Classes(namespace string) []*Class {
	var list []*Class
	for _, c := range s.spaces[normal(namespace)] {
		list = append(list, c)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// Derived returns a class and all classes derived from it, the class itself
// first, then depth first by name; nil if there is no such class.
func (s *Schema) Derived(namespace, name string) []*Class {
	c, ok := s.Class(namespace, name)
	if !ok {
		return nil
	}
	list := []*Class{c}
	for i := 0; i < len(list); i++ { // grows while it is walked
		list = slices.Insert(list, i+1, list[i].derived...)
	}
	return list
}
