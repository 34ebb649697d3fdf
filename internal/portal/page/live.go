package page

import (
	"fmt"
	"net/http"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/vault"
)

const (
	maxStreams  = 500                    // open event streams of this process
	streamPause = 250 * time.Millisecond // at most this often something is sent
	streamPing  = 15 * time.Second
	streamWrite = 10 * time.Second
)

// Stream tells a page what has changed, as server-sent events "change" with
// the data "kind/id". The page reads itself again; nothing else is in the
// stream, so a lost event costs a few seconds and never a wrong picture.
func (c *Core) Stream(w http.ResponseWriter, r *Request) error {
	select {
	case c.streams <- struct{}{}:
		defer func() { <-c.streams }()
	default:
		w.Header().Set("Retry-After", "10") // the page polls meanwhile
		return dr.Errorf(dr.KindExhausted, "portal.events", "too many pages are open")
	}
	ctx := r.Context()
	changes := c.V.Subscribe(ctx)
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	send := func(text string) bool {
		// A server without write deadlines has none to move. It is lifted again
		// afterwards: HTTP/2 resets a stream whose deadline passes while it is idle.
		_ = rc.SetWriteDeadline(time.Now().Add(streamWrite))
		defer func() { _ = rc.SetWriteDeadline(time.Time{}) }()
		if _, err := fmt.Fprint(w, text); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	if !send("retry: 3000\n\nevent: hello\ndata: -\n\n") {
		return nil
	}
	ping := time.NewTicker(streamPing)
	defer ping.Stop()
	pending := map[vault.Change]bool{}
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case ch, ok := <-changes:
			if !ok {
				return nil
			}
			if pending[ch] = true; due == nil {
				due = time.After(streamPause)
			}
		case <-due:
			due = nil
			text := ""
			for ch := range pending {
				text += "event: change\ndata: " + plain(ch.Kind) + "/" + plain(ch.ID) + "\n\n"
			}
			clear(pending)
			if !send(text) {
				return nil
			}
		case <-ping.C:
			// Signing out, or the end of the session, ends the stream.
			if _, err := c.session(r.Request); err != nil && dr.KindOf(err) != dr.KindUnavailable || !send(": ping\n\n") {
				return nil
			}
		}
	}
}

// plain keeps line ends out of the stream's framing.
func plain(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] < ' ' {
			b[i] = '_'
		}
	}
	return string(b)
}
