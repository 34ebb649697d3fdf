package cut

import "bytes"

// isZero reports whether p holds only zeros.
func isZero(p []byte) bool {
	// A slice is all zero iff its first byte is and it equals itself shifted by one.
	// The comparison is vectorised and needs no page of zeros.
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
