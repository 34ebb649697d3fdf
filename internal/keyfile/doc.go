// Package keyfile owns the places in which a vault's private key is kept, and
// the ways in and out: the plain file, the file sealed with a passphrase, the
// external key store, and the shares on paper. Package rotation, below it, owns
// what the key opens in a store.
//
// It promises that
//
//   - a wrong passphrase and a damaged file are two different errors;
//   - no input makes it use more than 1 GiB of memory or 20 passes over it;
//   - it never replaces or deletes a file;
//   - secrets never show themselves in errors, text, JSON or logs, and are
//     never taken from a command line.
//
// The text formats are written down at Seal and Share; docs/keys.md tells
// people what to keep where.
//
// What is wiped, and what is not: passphrases, shares and raw keys held in a
// Secret or on the way through this package are overwritten with zeros after
// use. Go does not let us wipe the rest: the text of a plain key file while it is
// parsed, the key inside cut.VaultPrivateKey, the working memory of Argon2id,
// environment variables, and copies that the runtime makes when it moves a
// stack. Memory is not locked either, so it may reach swap space or a core dump.
// Who can read the memory of the process can read the key.
package keyfile
