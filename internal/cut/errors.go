package cut

import (
	"fmt"

	"holdfast/internal/dr"
)

// corrupt reports damage of an object: which object, which of its sections and where.
func corrupt(op, object, section string, off int64, format string, args ...any) error {
	return dr.New(dr.KindCorrupt, dr.CodeObjectCorrupt, op, "object %q: %s at offset %d: %s", object, section, off, fmt.Sprintf(format, args...))
}

func unsupported(op, object, format string, args ...any) error {
	return dr.New(dr.KindUnsupported, dr.CodeFormatUnsupported, op, "object %q: %s", object, fmt.Sprintf(format, args...))
}

func invalid(op, format string, args ...any) error {
	return dr.Errorf(dr.KindInvalid, op, format, args...)
}
