package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// result is demo-report.json; fields may be added.
type result struct {
	Version int           `json:"version"` // 1
	OK      bool          `json:"ok"`
	Ledger  ledgerResult  `json:"ledger"`
	RPO     float64       `json:"rpoSeconds"` // instant of the kill − instant of the recovery point
	RTO     float64       `json:"rtoSeconds"` // failover asked for → boot verified
	Initial initialResult `json:"initial"`
	Cycles  []cycle       `json:"cycles"`
	Took    float64       `json:"seconds"`

	killed       time.Time
	initialDirty int64
}

type ledgerResult struct {
	LastAcked uint64 `json:"lastAcked"`
	Recovered uint64 `json:"recovered"`
	OrderOK   bool   `json:"orderOk"`
	ChainOK   bool   `json:"chainOk"`
}

type initialResult struct {
	Bytes   int64   `json:"bytes"` // stored
	Seconds float64 `json:"seconds"`
}

type cycle struct {
	Dirty   int64   `json:"dirtyBytes"`
	Shipped int64   `json:"shippedBytes"`
	Seconds float64 `json:"seconds"` // from the cut's instant until it was listed
}

func (d *demo) writeReport() error {
	d.result.Version = 1
	d.result.Took = time.Since(d.out.start).Seconds()
	raw, err := json.MarshalIndent(d.result, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(d.report, append(raw, '\n'), 0o644)
}

// finish prints the table and where to go on.
func (d *demo) finish() error {
	r := &d.result
	var dirty, shipped int64
	for _, c := range r.Cycles {
		dirty += c.Dirty
		shipped += c.Shipped
	}
	d.out.heading("Result")
	row := func(name, format string, args ...any) { d.out.line("%-34s %s", name, fmt.Sprintf(format, args...)) }
	row("RPO (kill − recovery point)", "%.1f s", r.RPO)
	row("RTO (request → boot verified)", "%.1f s", r.RTO)
	row("initial replication", "%s of disk → %s stored in %.1f s", size(r.initialDirty), size(r.Initial.Bytes), r.Initial.Seconds)
	row("delta cycles", "%d: dirty %s → shipped %s", len(r.Cycles), size(dirty), size(shipped))
	row("ledger", "%d acknowledged, %d recovered", r.Ledger.LastAcked, r.Ledger.Recovered)
	row("ledger verdict", "order %s, chain %s", verdict(r.Ledger.OrderOK), verdict(r.Ledger.ChainOK))
	row("whole story", "%.0f s", time.Since(d.out.start).Seconds())
	if !d.once {
		d.out.line("")
		d.out.line("The vault stays up; the recovered VM runs at the recovery site.")
		d.out.line("Portal    %s   (its certificate is the vault's own)", d.cred.Portal)
		d.out.line("Login     %s / %s", d.cred.User, d.cred.Password)
		d.out.line("CLI       HOLDFAST_ENDPOINT=%s %s item list", d.cred.Endpoint, d.bin)
		d.out.line("Ctrl-C ends everything and removes it.")
	}
	return d.writeReport()
}

// watcher notes when which record was seen acknowledged: what the outside
// world may rely on.
type watcher struct {
	mu   sync.Mutex
	seen []ack
	quit chan struct{}
	once sync.Once
	done chan struct{}
}

type ack struct {
	at time.Time
	n  uint64
}

func watchAcks(g machine) *watcher {
	w := &watcher{quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		t := time.NewTicker(50 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-w.quit:
				return
			case <-t.C:
				if n, err := g.Acked(); err == nil {
					w.note(n)
				}
			}
		}
	}()
	return w
}

func (w *watcher) note(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := len(w.seen); k == 0 || w.seen[k-1].n < n {
		w.seen = append(w.seen, ack{time.Now(), n})
	}
}

// ackedAt is the newest record that was seen acknowledged before t.
func (w *watcher) ackedAt(t time.Time) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var n uint64
	for _, a := range w.seen {
		if a.at.Before(t) {
			n = a.n
		}
	}
	return n
}

func (w *watcher) last() (uint64, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) == 0 {
		return 0, time.Time{}
	}
	a := w.seen[len(w.seen)-1]
	return a.n, a.at
}

func (w *watcher) stop() {
	if w == nil {
		return
	}
	w.once.Do(func() { close(w.quit) })
	<-w.done
}
