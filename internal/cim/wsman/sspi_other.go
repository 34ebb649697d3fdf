//go:build !windows

package wsman

import "holdfast/internal/cim"

// ownIdentity exists on Windows only.
func ownIdentity(string, []byte) (Mechanism, error) {
	return nil, &cim.Error{Code: cim.CodeUnauthorized, Message: "only a process on Windows can sign in as itself: set a user and a password"}
}
