package objstore

import (
	"fmt"
	"strings"
)

// MaxKey is the greatest length of a key in bytes; MaxSegment that of one
// segment, which is the limit of a file name nearly everywhere.
const (
	MaxKey     = 512
	MaxSegment = 255
)

// ValidateKey checks the key grammar, the part common to all stores and file
// systems: segments of [a-z0-9._-] joined by single slashes, none empty or
// ending in a dot (so neither "." nor ".."), none longer than MaxSegment, at
// most MaxKey bytes in all. Keys are lower-case so that they stay distinct on
// file systems that fold case; a segment does not end in a dot because Windows
// and Azure drop it; and the names that Windows keeps for devices are refused.
// The error wraps ErrInvalidKey.
func ValidateKey(key string) error {
	if key == "" {
		return keyError(key, "is empty")
	}
	if err := validateChars(key); err != nil {
		return err
	}
	for seg := range strings.SplitSeq(key, "/") {
		switch {
		case seg == "":
			return keyError(key, "has an empty segment")
		case len(seg) > MaxSegment:
			return keyError(key, fmt.Sprintf("has a segment longer than %d bytes", MaxSegment))
		case seg[len(seg)-1] == '.':
			return keyError(key, "has a segment ending in a dot")
		case isDevice(seg):
			return keyError(key, "has a segment that Windows keeps for a device")
		}
	}
	return nil
}

// ValidatePrefix checks the prefix of a listing: empty, or any leading part of
// some valid key. The error wraps ErrInvalidKey.
func ValidatePrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if err := validateChars(prefix); err != nil {
		return err
	}
	// All whole segments must be valid; what the open last one may become is
	// decided by one more character.
	if strings.HasSuffix(prefix, "/") {
		return ValidateKey(prefix[:len(prefix)-1])
	}
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		if i == 0 {
			return keyError(prefix, "has an empty segment")
		}
		if err := ValidateKey(prefix[:i]); err != nil {
			return err
		}
		if len(prefix)-i-1 > MaxSegment {
			return keyError(prefix, fmt.Sprintf("has a segment longer than %d bytes", MaxSegment))
		}
	} else if len(prefix) > MaxSegment {
		return keyError(prefix, fmt.Sprintf("has a segment longer than %d bytes", MaxSegment))
	}
	return nil
}

func validateChars(key string) error {
	if len(key) > MaxKey {
		return keyError(key, fmt.Sprintf("is longer than %d bytes", MaxKey))
	}
	for i := range len(key) {
		c := key[i]
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' || c == '/' {
			continue
		}
		return keyError(key, fmt.Sprintf("has the byte %q at %d; allowed are a-z 0-9 . _ - and /", c, i))
	}
	return nil
}

// isDevice reports names such as "nul" and "com1.cut", which open a device on
// Windows whatever the extension is.
func isDevice(seg string) bool {
	stem, _, _ := strings.Cut(seg, ".")
	switch stem {
	case "con", "prn", "aux", "nul":
		return true
	}
	return len(stem) == 4 && (stem[:3] == "com" || stem[:3] == "lpt") && stem[3] >= '0' && stem[3] <= '9'
}

func keyError(key, what string) error {
	if len(key) > 80 {
		key = key[:80] + "…"
	}
	return fmt.Errorf("%w: %q %s", ErrInvalidKey, key, what)
}
