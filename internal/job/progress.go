package job

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// setProgress remembers the newest value; flushProgress writes it.
func (r *run) setProgress(step int, pct float64, note string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step, r.pct, r.note, r.dirty = step, percent(pct), clean(note), true
}

// takeProgress returns the value to write, if there is a new one.
func (r *run) takeProgress() (step int, pct float64, note string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ok, r.dirty = r.dirty, false
	return r.step, r.pct, r.note, ok
}

// flushProgress writes the progress of all runs once a second. What cannot be
// written is dropped: the next value tells more.
func (e *Engine) flushProgress() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
		}
		for _, r := range e.snapshot() {
			step, pct, note, ok := r.takeProgress()
			if !ok {
				continue
			}
			ctx, cancel := context.WithTimeout(e.ctx, 2*time.Second)
			err := r.fenced(ctx, func(ctx context.Context, tx *sql.Tx, _ time.Time) error {
				_, err := tx.ExecContext(ctx, "update job_step set pct=$1, note=$2 where job=$3 and idx=$4 and state='running'", pct, note, r.id, step)
				if err != nil {
					return fmt.Errorf("write progress: %w", err)
				}
				e.changed(tx, r.id, false)
				return nil
			})
			cancel()
			if err != nil {
				e.log.Debug("progress not written", "job", r.id, "err", err)
			}
		}
	}
}
