// Package dr is Holdfast's vocabulary: identifiers, the nouns of disaster
// recovery (fabric, protected item, policy, recovery point, ...), the axes of
// state, and the one error type with its catalogue.
//
// It owns the meaning of the words and nothing else: there is no I/O and no
// behaviour beyond Validate, Parse and String. It imports only the standard
// library, and every other package may import it (floor 0).
package dr
