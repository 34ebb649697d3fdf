package main

import (
	"context"
	"errors"

	"holdfast/bench/internal/guestboot"
	"holdfast/bench/internal/guestwrite"
	"holdfast/bench/internal/report"
)

// guestWrites measures what protection costs a guest's writes.
func (b *runner) guestWrites(ctx context.Context) error {
	r, err := guestwrite.Measure(ctx, b.Dir, b.Guest, b.Seed)
	if err != nil {
		return err
	}
	const area = "guest writes while protected"
	us := report.Micros
	b.rep.Add(report.Figure{Area: area, Name: "p50 with change tracking / without", Value: r.Ratio, Unit: "×", Goal: report.AtMost(1.02), Wall: true,
		Peers: report.Beside("with, µs", us(r.Tracked)).And("without, µs", us(r.Plain)), Note: "4 KiB, random, one at a time, through QEMU's block layer (qcow2, cache=none); median of seven pairs of rounds"})
	b.rep.Add(report.Figure{Area: area, Name: "p50 while a cut holds a frozen image / without", Value: r.FrozenRatio, Unit: "×", Wall: true,
		Peers: report.Beside("with, µs", us(r.Frozen)), Note: "the first write to each 64 KiB has to save what was there; a delta's cut holds it for well below a second"})
	return nil
}

// bootGuest measures an instant boot with a real guest, and what a slow store makes of it.
func (b *runner) bootGuest(ctx context.Context) error {
	if !b.Boots {
		return nil
	}
	r, err := guestboot.Measure(ctx, b.Dir)
	if errors.Is(err, guestboot.ErrNoGuest) && ctx.Err() == nil {
		b.rep.Add(report.Figure{Area: "instant boot of a guest", Name: "time at 20 ms per request / at none", Unit: "×", Goal: report.AtMost(1.25), Wall: true, NotAvailable: err.Error()})
		return nil
	}
	if err != nil {
		return err
	}
	area := "instant boot of a guest, emulated"
	if r.KVM {
		area = "instant boot of a guest, KVM"
	}
	b.rep.Add(report.Figure{Area: area, Name: "time at 20 ms per request / at none", Value: r.Slow.Took.Seconds() / r.Fast.Took.Seconds(), Unit: "×", Goal: report.AtMost(1.25), Wall: true,
		Peers: report.Beside("at 20 ms, s", r.Slow.Took.Seconds()).And("at none, s", r.Fast.Took.Seconds()), Note: "from opening the point until the ledger guest is up; the faster of two boots each, in turns"})
	b.rep.Add(report.Figure{Area: area, Name: "requests until it is up", Value: float64(r.Slow.Requests), Unit: "requests", Peers: report.Beside("read, MiB", report.MiB(r.Slow.Bytes)), Note: "the point is verified in the background meanwhile, which reads all of it"})
	return nil
}
