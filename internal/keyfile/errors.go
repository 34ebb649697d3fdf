package keyfile

import "holdfast/internal/dr"

func invalid(op, format string, args ...any) *dr.Error {
	return dr.Errorf(dr.KindInvalid, op, format, args...)
}
