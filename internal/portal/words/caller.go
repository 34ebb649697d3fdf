package words

import "github.com/google/uuid"

// Caller names who asked for something: API clients have UUIDs for names,
// which nobody reads to the end.
func Caller(name string) string {
	if _, err := uuid.Parse(name); err == nil {
		return "API client " + name[:8]
	}
	return name
}
