package azure

import (
	"testing"
	"time"
)

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 2-4/10", "bytes */10", "bytes 4-2/10", "bytes 0-9/*", "", "bytes -1-2/3", "bytes 0-9223372036854775807/9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, last, size, ok := parseContentRange(text)
		if ok && (first < 0 || last < first || last >= size) {
			t.Errorf("%q: %d-%d/%d", text, first, last, size)
		}
	})
}

func TestCeilSecond(t *testing.T) {
	t.Parallel()
	whole := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	for _, tt := range []struct{ in, want time.Time }{
		{whole, whole},
		{whole.Add(1), whole.Add(time.Second)},
		{whole.Add(-1).In(time.FixedZone("x", 3600)), whole},
	} {
		if got := ceilSecond(tt.in); !got.Equal(tt.want) || got.Nanosecond() != 0 {
			t.Errorf("%v: %v", tt.in, got)
		}
	}
}
