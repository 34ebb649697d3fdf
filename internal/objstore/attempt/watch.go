// Package attempt owns what one attempt of a request to an object store needs:
// a Watch that ends it when nothing moves, and a body that can be sent again.
//
// It promises that an attempt always ends, that a Source is what was announced
// (size and SHA-256), and that after Finish nobody touches it any more.
package attempt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"
)

// Watch ends an attempt in which nothing moves for the stall time, or which
// takes longer than its limit in all.
type Watch struct {
	Ctx    context.Context // of the attempt
	cancel context.CancelCauseFunc
	quiet  *time.Timer
	whole  *time.Timer
	stall  time.Duration
}

// NewWatch starts the clocks. limit 0 means four times the stall time, which is
// what a request without a body of size may take; below 0 there is none.
func NewWatch(ctx context.Context, stall, limit time.Duration) *Watch {
	w := &Watch{stall: stall}
	w.Ctx, w.cancel = context.WithCancelCause(ctx)
	w.quiet = time.AfterFunc(stall, func() { w.cancel(&timeoutError{"no byte moved", stall}) })
	if limit == 0 {
		limit = 4 * stall
	}
	if limit > 0 {
		w.whole = time.AfterFunc(limit, func() { w.cancel(&timeoutError{"the request was not done", limit}) })
	}
	return w
}

type timeoutError struct {
	what  string
	after time.Duration
}

func (e *timeoutError) Error() string { return fmt.Sprintf("%s for %v", e.what, e.after) }

// Moved tells that bytes have moved.
func (w *Watch) Moved() { w.quiet.Reset(w.stall) }

// Sent gives the store, and what is buffered on the way to it, more time for
// the answer to a body.
func (w *Watch) Sent() { w.quiet.Reset(4 * w.stall) }

// Pause stops the clock while it is the caller who takes his time.
func (w *Watch) Pause() { w.quiet.Stop() }

// Stop ends the attempt, and is idempotent.
func (w *Watch) Stop() {
	w.quiet.Stop()
	if w.whole != nil {
		w.whole.Stop()
	}
	w.cancel(nil)
}

// Explain returns what to say about an error without an answer: the timeout if
// that was the reason, and never a URL, which net/http puts into its errors.
func (w *Watch) Explain(err error) error {
	var late *timeoutError
	if errors.As(context.Cause(w.Ctx), &late) {
		return late
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF // io.EOF would look like a proper end
	}
	return err
}
