package main

import (
	"context"
	"fmt"
	"time"

	"holdfast/bench/internal/model"
	"holdfast/bench/internal/report"
)

// opening measures how a long history makes opening its newest point slower, and what maintenance does about it.
func (b *runner) opening(ctx context.Context) error {
	o, err := model.Open(ctx, b.Many, b.Seed)
	if err != nil {
		return err
	}
	area := fmt.Sprintf("open the newest of %d cuts", b.Many)
	with := func(v func(model.Opened) float64, few, plain model.Opened) report.Peers {
		return report.Beside("before maintenance", v(plain)).And("a point of 10 cuts", v(few))
	}
	requests := func(o model.Opened) float64 { return float64(o.Requests) }
	kib := func(o model.Opened) float64 { return float64(o.Bytes) / 1024 }
	cpu := func(o model.Opened) float64 { return o.CPU.Seconds() * 1000 }
	wall := func(o model.Opened) float64 { return o.Wall.Seconds() * 1000 }
	most := &report.Goal{Limit: 150, From: "a checkpoint every 64 elements, and the history's own objects"}
	b.rep.Add(report.Figure{Area: area, Name: "requests, with checkpoint", Value: requests(o.Checkpoint), Unit: "requests", Goal: most, Peers: with(requests, o.Few, o.Plain)})
	b.rep.Add(report.Figure{Area: area, Name: "read, with checkpoint", Value: kib(o.Checkpoint), Unit: "KiB", Peers: with(kib, o.Few, o.Plain)})
	b.rep.Add(report.Figure{Area: area, Name: "CPU, with checkpoint", Value: cpu(o.Checkpoint), Unit: "cpu-ms", Peers: with(cpu, o.Few, o.Plain)})
	b.rep.Add(report.Figure{Area: area, Name: "time, with checkpoint", Value: wall(o.Checkpoint), Unit: "ms", Wall: true, Peers: with(wall, o.Few, o.Plain)})
	b.rep.Add(report.Figure{Area: area, Name: "time at 20 ms per request, with checkpoint", Value: wall(o.CheckpointSlow), Unit: "ms", Wall: true, Peers: with(wall, o.FewSlow, o.PlainSlow)})
	b.rep.Add(report.Figure{Area: area, Name: "CPU of the maintenance that writes it", Value: o.Maintain.CPU.Seconds(), Unit: "cpu-s"})
	return nil
}

// retention measures what it costs to keep a store within its retention.
func (b *runner) retention(ctx context.Context) error {
	k, err := model.Retain(ctx, b.Model, b.Cycles, b.Seed)
	if err != nil {
		return err
	}
	area := fmt.Sprintf("retention, %s of 5-minute cycles on a disk of %s", days(b.Cycles), report.Size(b.Model))
	disk := float64(k.Disk)
	b.rep.Add(report.Figure{Area: area, Name: "stored in all / shipped by cuts", Value: 1 + float64(k.Rewrote)/float64(k.Shipped), Unit: "×", Goal: report.AtMost(2.8),
		Peers: report.Beside("shipped, MiB", report.MiB(k.Shipped)).And("written by maintenance, MiB", report.MiB(k.Rewrote)),
		Note:  "write amplification; 1/1024 of the disk written in each cycle, 90 % of it to a tenth of the disk; all points of a day, then one an hour, one a day; maintenance every hour"})
	b.rep.Add(report.Figure{Area: area, Name: "store, greatest size / data on the disk", Value: float64(k.Most) / disk, Unit: "×",
		Peers: report.Beside("at the end", float64(k.Last)/disk).And("without maintenance", 1+float64(k.Shipped)/disk)})
	b.rep.Add(report.Figure{Area: area, Name: "points at the end", Value: float64(k.Points), Unit: "points", Peers: report.Beside("cuts made", float64(k.Cycles+1)).And("compared byte by byte", float64(k.Compared))})
	b.rep.Add(report.Figure{Area: area, Name: "CPU of maintenance for each GiB shipped", Value: report.PerGiB(k.CPU, k.Shipped), Unit: "cpu-s/GiB"})
	return nil
}

func days(cycles int) string {
	return report.Number(float64(cycles)*5/60/24) + " days"
}

// extentMap measures the memory of a large disk's map.
func (b *runner) extentMap(ctx context.Context) error {
	m, err := model.ExtentMap(ctx, b.Dir, b.Map, b.Seed)
	if err != nil {
		return err
	}
	area := fmt.Sprintf("extent map of %d extents", b.Map)
	b.rep.Add(report.Figure{Area: area, Name: "memory for each extent", Value: m.Memory, Unit: "bytes", Goal: report.AtMost(0.25), Peers: report.Beside("in its temporary file", m.File), Note: "as recovery points with 24 bytes an extent in memory had it before"})
	b.rep.Add(report.Figure{Area: area, Name: "CPU to build it from one layer", Value: m.Build.CPU.Seconds() * 1e6 / float64(b.Map), Unit: "cpu-µs/extent"})
	b.rep.Add(report.Figure{Area: area, Name: "look-up at a random place", Value: float64(m.Find) / float64(time.Microsecond), Unit: "µs", Wall: true})
	return nil
}
