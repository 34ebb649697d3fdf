// Package domxml reads and writes libvirt's domain documents: what a domain is
// in neutral words, and the domain of a recovery VM made from a captured one.
//
// It is pure: no I/O, no libvirt. What it does not know of a document it
// carries over unchanged. Source of the formats: libvirt's "Domain XML format"
// and "Driver capabilities XML format".
package domxml
