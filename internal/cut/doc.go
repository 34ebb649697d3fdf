// Package cut owns Holdfast's durable format: the names of the objects in a
// store, the keys that protect them, and the bytes of segments (cuts, parts,
// tile images, and the runs, maps and data that retention makes of them) and of
// records (the vault's descriptions, generations, maintenance plans, leases).
//
// It promises that what it reads is what was written, under the name it was
// written for, or an error: every byte of a segment is covered by the
// verification, and a damaged, truncated, moved or foreign object is a
// *dr.Error with dr.KindCorrupt and dr.CodeObjectCorrupt naming the object, the
// section and the offset. Readers never panic on hostile input and never
// allocate more than a fixed multiple of the bytes that the object really has.
//
// The package does no I/O of its own: writers write to an io.Writer, readers
// read through a Source. It knows nothing of chains beyond one object; what
// makes a recovery point valid is decided by package store. The format, byte
// by byte, is written down in docs/store-format.md, whose history is the
// history of this package.
package cut
