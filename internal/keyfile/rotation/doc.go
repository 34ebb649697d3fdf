// Package rotation owns the sealed epoch keys of a store as a whole: which vault
// key opens them. It changes the vault to another key pair, gives a second
// key the same power, and proves in a drill what a key opens.
//
// It promises that it only creates objects, never replaces or deletes one: what a key
// opened before a call it opens after it, also when the call crashed at any
// step; and that the same call again goes on where the last one stopped.
//
// Keys are any cut.KeyOpener: a private key, or an external key store of package
// keyfile. Epoch keys are wiped from the variables of this package after use, not
// from the stacks and ciphers that they went through, which Go does not let us reach.
package rotation
