package console

import (
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/internal/dr"
)

func TestMeter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name       string
		live, json bool
		want       []string
		not        string
	}{
		{"lines", false, false, []string{"copy: 20.0 MiB of 100 MiB (20%), 1.00 MiB/s, 1m21s left\n"}, "\r"},
		{"a terminal", true, false, []string{"\r\x1b[Kcopy: 11.0 MiB of 100 MiB", "left\r\x1b[K"}, "\n"},
		{"json", false, true, nil, "copy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			at := now
			c, _, errs := newConsole()
			c.Now, c.Live, c.JSON = func() time.Time { return at }, tc.live, tc.json
			m := c.Meter("copy")
			for i := range 11 { // an earlier run did 10 MiB; a MiB a second
				m.Update(int64(10+i)<<20, 100<<20)
				at = at.Add(time.Second)
			}
			m.End()
			m.End()
			for _, w := range tc.want {
				if !strings.Contains(errs.String(), w) {
					t.Errorf("no %q in %q", w, errs)
				}
			}
			if strings.Contains(errs.String(), tc.not) {
				t.Errorf("%q in %q", tc.not, errs)
			}
		})
	}
	c, _, errs := newConsole()
	m := c.Meter("x")
	m.Update(5, 0)
	at := now
	c.Now = func() time.Time { at = at.Add(time.Minute); return at }
	m = c.Meter("verify")
	m.Update(0, 0)
	m.Update(1<<20, 0)
	if got := errs.String(); !strings.HasPrefix(got, "verify: 1.00 MiB, ") || strings.Contains(got, "left") {
		t.Errorf("an unknown total: %q", got)
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"90s": 90 * time.Second, "24h": 24 * time.Hour, "30d": 30 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "1d12h": 36 * time.Hour, "1w2d3h": 219 * time.Hour, "0": 0, "0s": 0} {
		var d Duration
		if err := d.Set(text); err != nil || time.Duration(d) != want {
			t.Errorf("%q is %v (%v), want %v", text, time.Duration(d), err, want)
		}
	}
	for _, text := range []string{"", "soon", "-1h", "d", "1.5d", "99999999d", "1d-2h", "5", "1h1d"} {
		var d Duration
		if err := d.Set(text); err == nil {
			t.Errorf("%q was taken for %v", text, time.Duration(d))
		}
	}
}

func TestParseUntil(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 31, 20, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"": {}, "2h": now.Add(2 * time.Hour), "3d": now.Add(72 * time.Hour), "18:00": time.Date(2026, 4, 1, 18, 0, 0, 0, time.Local), "21:30": time.Date(2026, 3, 31, 21, 30, 0, 0, time.Local),
		"2026-04-02 06:00": time.Date(2026, 4, 2, 6, 0, 0, 0, time.Local), "2026-04-02T06:00:00Z": time.Date(2026, 4, 2, 6, 0, 0, 0, time.UTC),
	} {
		if got, err := ParseUntil(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v (%v), want %v", text, got, err, want)
		}
	}
	if _, err := ParseUntil("tomorrow", now); dr.KindOf(err) != dr.KindInvalid {
		t.Errorf("%v", err)
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	c, _, _ := newConsole()
	if _, err := c.Secret(t.Context(), "?"); dr.CodeOf(err) != dr.CodeKeySealed {
		t.Errorf("nobody to ask: %v", err)
	}
	var e *dr.Error
	_, err := c.Secret(t.Context(), "?")
	if !errors.As(err, &e) || !strings.Contains(e.Hint, "--passphrase-from") {
		t.Errorf("no way out: %v", err)
	}
}
