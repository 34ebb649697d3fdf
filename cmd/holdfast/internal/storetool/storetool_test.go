package storetool

import (
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

func TestParseTime(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 31, 20, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"18:00": time.Date(2026, 3, 31, 18, 0, 0, 0, time.Local), "21:30": time.Date(2026, 3, 30, 21, 30, 0, 0, time.Local), "2026-03-30": time.Date(2026, 3, 30, 0, 0, 0, 0, time.Local),
		"2026-03-30 06:00": time.Date(2026, 3, 30, 6, 0, 0, 0, time.Local), "2026-03-30T06:00:07": time.Date(2026, 3, 30, 6, 0, 7, 0, time.Local), "2026-03-30T06:00:00+02:00": time.Date(2026, 3, 30, 4, 0, 0, 0, time.UTC),
	} {
		if got, err := parseTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v (%v), want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"yesterday", "25:00", "2026-13-01", "31.03.2026"} {
		if _, err := parseTime(text, now); dr.KindOf(err) != dr.KindInvalid {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFileName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"domain.xml", "..", ".", "", "../../etc/passwd", "/etc/passwd", `C:\x`, "a\x00b", ".hidden", "nvram"} {
		got := fileName(name)
		if got == "" || strings.ContainsAny(got, "/\\:\x00") || strings.HasPrefix(got, ".") {
			t.Errorf("%q becomes %q", name, got)
		}
	}
	if fileName("domain.xml") != "domain.xml" {
		t.Error("a harmless name was changed")
	}
}

func TestVNC(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", ":1": "vnc=127.0.0.1:1", "2": "vnc=127.0.0.1:2", "0.0.0.0:3": "vnc=0.0.0.0:3", "[::1]:4": "vnc=[::1]:4"} {
		if got, err := vncDisplay(in); err != nil || got != want {
			t.Errorf("%q is %q (%v), want %q", in, got, err, want)
		}
	}
	for _, in := range []string{":", "x", "1,password=y", "host:", ":1,to=9"} {
		if got, err := vncDisplay(in); err == nil {
			t.Errorf("%q is %q", in, got)
		}
	}
}
