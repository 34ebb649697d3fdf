package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"holdfast/bench/internal/manyitems"
	"holdfast/bench/internal/report"
)

// vault measures the API of a vault with many items whose agents report.
func (b *runner) vault(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.Dir, "vault")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r, err := manyitems.Measure(ctx, dir, b.Items, b.Asking, b.Seed)
	if err != nil {
		return err
	}
	area := fmt.Sprintf("vault with %d items at 5-minute cycles", b.Items)
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	b.rep.Add(report.Figure{Area: area, Name: "API read, p99", Value: ms(r.P99), Unit: "ms", Goal: report.AtMost(100), Wall: true,
		Peers: report.Beside("p50", ms(r.P50)).And("slowest", ms(r.Max)).And("requests", float64(r.Requests)), Note: "one item, or its recovery points; SQLite; one client that asks without pause"})
	b.rep.Add(report.Figure{Area: area, Name: "API read of a page of 200 items, p50", Value: ms(r.List), Unit: "ms", Goal: report.AtMost(100), Wall: true})
	b.rep.Add(report.Figure{Area: area, Name: "agents' reports late at most", Value: ms(r.Late), Unit: "ms", Wall: true,
		Peers: report.Beside("points listed meanwhile", float64(r.Commits)).And("states of items reported", float64(r.Statuses))})
	b.rep.Add(report.Figure{Area: area, Name: "cores in use", Value: r.CPU, Unit: "cores", Note: "the vault, its database and the client, in one process"})
	return nil
}
