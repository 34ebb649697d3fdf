package winservice

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"unicode/utf8"
)

// Event ids, which EventCreate.exe's messages know (1 to 1000).
const (
	eventInfo    = 1
	eventWarning = 2
	eventError   = 3
)

// maxEvent bounds an event's text in bytes; Windows takes 31,839 characters.
const maxEvent = 30000

// sink is the event log.
type sink interface {
	Info(id uint32, text string) error
	Warning(id uint32, text string) error
	Error(id uint32, text string) error
}

// handler writes records to the event log: the message, and one line per attribute.
type handler struct {
	sink   sink
	level  slog.Leveler
	prefix string // of groups
	attrs  []string
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	lines := append([]string{r.Message}, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		lines = appendAttr(lines, h.prefix, a)
		return true
	})
	text := strings.ReplaceAll(strings.Join(lines, "\r\n"), "\x00", "?")
	if len(text) > maxEvent {
		cut := maxEvent
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "…"
	}
	switch {
	case r.Level >= slog.LevelError:
		return h.sink.Error(eventError, text)
	case r.Level >= slog.LevelWarn:
		return h.sink.Warning(eventWarning, text)
	}
	return h.sink.Info(eventInfo, text)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		c.attrs = appendAttr(c.attrs, h.prefix, a)
	}
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	if name != "" {
		c.prefix += name + "."
	}
	return &c
}

func appendAttr(lines []string, prefix string, a slog.Attr) []string {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return lines
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			lines = appendAttr(lines, prefix, inner)
		}
		return lines
	}
	return append(lines, fmt.Sprintf("%s%s: %v", prefix, a.Key, v.Any()))
}
