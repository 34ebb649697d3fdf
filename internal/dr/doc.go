// Package dr is Holdfast's vocabulary: identifiers, the nouns of disaster
// recovery (fabric, protected item, policy, recovery point, ...), the axes of
// state, windows of time, and the one error type with its catalogue, from which
// docs/errors.md is made.
//
// It owns the meaning of the words and nothing else: there is no I/O (but for the
// zone database, when a Window names a zone) and no behaviour beyond Validate,
// Parse, String and what a value says of itself. It imports only the standard
// library, and every other package may import it (floor 0).
package dr
