package console

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"

	"holdfast/internal/dr"
)

// How often progress is shown: redrawn on a terminal, a line elsewhere.
const (
	redraw = 200 * time.Millisecond
	retell = 10 * time.Second
)

// Meter shows how far a long work is: how much of how much, how fast, and when
// it will be done. It is safe for concurrent use; with --output json it is silent.
type Meter struct {
	c    *Console
	what string
	end  func(done, total int64) string // how amounts are shown

	mu    sync.Mutex
	begun time.Time
	first int64 // done at the first update: the rate does not count what an earlier run did
	shown time.Time
	live  bool // a line is on the terminal
	done  int64
	total int64
}

// Meter makes a meter of bytes.
func (c *Console) Meter(what string) *Meter {
	return &Meter{c: c, what: what, first: -1, end: func(done, total int64) string {
		if total <= 0 {
			return Bytes(done)
		}
		return Bytes(done) + " of " + Bytes(total)
	}}
}

// Update says how much is done of how much (0 = unknown). Values that go back are shown as they are.
func (m *Meter) Update(done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.c.Now()
	if m.first < 0 {
		m.first, m.begun, m.shown = done, now, now
	}
	m.done, m.total = done, total
	every := retell
	if m.c.Live {
		every = redraw
	}
	if now.Sub(m.shown) >= every {
		m.show(now)
	}
}

// End takes the line from the terminal, or leaves it as the last word.
func (m *Meter) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live {
		fmt.Fprint(m.c.Err, "\r\x1b[K")
		m.live = false
	}
}

func (m *Meter) show(now time.Time) {
	m.shown = now
	if m.c.JSON {
		return
	}
	line := m.line(now)
	if m.c.Live {
		fmt.Fprintf(m.c.Err, "\r\x1b[K%s", runewidth.Truncate(line, m.c.Width-1, "…"))
		m.live = true
		return
	}
	fmt.Fprintln(m.c.Err, line)
}

func (m *Meter) line(now time.Time) string {
	var b strings.Builder
	b.WriteString(m.what + ": " + m.end(m.done, m.total))
	if m.total > 0 {
		fmt.Fprintf(&b, " (%d%%)", m.done*100/m.total)
	}
	gone, did := now.Sub(m.begun), m.done-m.first
	if gone < time.Second || did <= 0 {
		return b.String()
	}
	rate := float64(did) / gone.Seconds()
	fmt.Fprintf(&b, ", %s/s", Bytes(int64(rate)))
	if left := m.total - m.done; m.total > 0 && left > 0 {
		if s := float64(left) / rate; s < 1e8 {
			b.WriteString(", " + Short(time.Duration(s)*time.Second+time.Second) + " left")
		}
	}
	return b.String()
}

// Secret asks a person for a passphrase, which is not shown. Without a person it
// is an error that says how else a passphrase can be given.
func (c *Console) Secret(ctx context.Context, question string) ([]byte, error) {
	if !c.Ask || c.ReadSecret == nil {
		return nil, dr.New(dr.KindInvalid, dr.CodeKeySealed, "holdfast", "the key is sealed and there is nobody to ask for its passphrase").
			WithHint("Say where the passphrase is with --passphrase-from file:PATH, env:NAME or credential:NAME.")
	}
	return c.ReadSecret(ctx, question)
}
