package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"holdfast/bench/internal/rawhost"
	"holdfast/bench/internal/report"
	"holdfast/internal/capture"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore/azure"
	"holdfast/internal/objstore/azure/azuritetest"
	azmeter "holdfast/internal/objstore/azure/meter"
	"holdfast/internal/store"
)

// examplePrices are examples, no price list: look up yours. Written down 2026-11-23, per 10,000
// requests of a hot tier; readers are in the account's region.
func examplePrices() azmeter.Prices {
	return azmeter.Prices{Writes: 0.05, Lists: 0.05, Reads: 0.004, Others: 0.004}
}

// sent are the cut's objects as the agent puts them. The benchmark puts them with the vault's
// own client, which counts: the agent's signed address costs the same one Put Blob.
type sent struct{ b *azure.Bucket }

func (s sent) Put(ctx context.Context, name string, body io.ReaderAt, size int64, sum [32]byte) error {
	return s.b.PutNew(ctx, name, io.NewSectionReader(body, 0, size), size, &sum)
}

// day is what some cycles of one interval cost.
type day struct {
	interval       time.Duration
	cycles         int
	agent, vault   azmeter.Stats
	parts          int           // that the cuts list
	bytes          int64         // of the cuts and their parts
	scrub          azmeter.Stats // of reading everything once
	scrubbed       int           // objects
	stored         int64         // bytes of them
	perDay, expect azmeter.Stats
}

// days replicates into the Azure store on Azurite in cycles as three intervals make them, and
// compares what they ask for with what meter.Plan predicts.
func (a *azureBench) days() {
	b, err := azure.New(azure.Config{Container: "cuts", Account: a.azurite.account, AccountKey: a.azurite.key, Endpoint: a.azurite.container[:len(a.azurite.container)-len("/warm")], Transport: a.azurite.transport})
	noErr(a.tb, err)
	a.newContainer("cuts")
	noErr(a.tb, b.Open(a.ctx))
	defer b.Close()
	var days []day
	for _, interval := range []time.Duration{30 * time.Second, 5 * time.Minute, 15 * time.Minute} {
		days = append(days, a.day(b, interval))
	}
	const area = "requests of a VM in a day, Azurite"
	note := fmt.Sprintf("the guest writes %s each second, no place twice in a cycle; %d cycles measured", report.Size(a.size.Churn), a.size.Cycles)
	for _, d := range days {
		name := fmt.Sprintf("%v cycles: ", d.interval)
		a.add(report.Figure{Area: area, Name: name + "PUTs", Value: float64(d.perDay.Writes), Unit: "PUTs/day", Peers: report.Beside("meter.Plan", float64(d.expect.Writes)).And("shipped, GiB", float64(d.perDay.BytesSent)/(1<<30)), Note: note})
		note = ""
		a.add(report.Figure{Area: area, Name: name + "PUTs / plan", Value: float64(d.perDay.Writes) / float64(d.expect.Writes), Unit: "×", Goal: report.AtMost(1.05)})
		a.add(report.Figure{Area: area, Name: name + "reads of the vault, at commit", Value: float64(d.perDay.Reads), Unit: "reads/day", Peers: report.Beside("meter.Plan", float64(d.expect.Reads))})
		a.add(report.Figure{Area: area, Name: name + "other requests of the vault, at commit", Value: float64(d.perDay.Others), Unit: "requests/day", Peers: report.Beside("meter.Plan", float64(d.expect.Others))})
		bill := azmeter.Cost(d.perDay, examplePrices())
		a.add(report.Figure{Area: area, Name: name + "requests at example prices", Value: bill.Total(), Unit: "/day", Peers: report.Beside("PUTs of it", bill.Writes).And("by meter.Plan", azmeter.Cost(d.expect, examplePrices()).Total())})
	}
	d := days[len(days)-1] // has the largest objects
	a.add(report.Figure{Area: area, Name: "a scrub: reads", Value: float64(d.scrub.Reads), Unit: "reads", Peers: report.Beside("objects", float64(d.scrubbed)).And("stored, MiB", report.MiB(d.stored)), Note: "of the measured cuts with 15 minutes each"})
	a.add(report.Figure{Area: area, Name: "a scrub: bytes received / stored", Value: float64(d.scrub.BytesReceived) / float64(d.stored), Unit: "×"})
}

func (a *azureBench) newContainer(name string) {
	s := azuritetest.Server{Endpoint: a.azurite.container[:len(a.azurite.container)-len("/warm")], Account: a.azurite.account, Key: a.azurite.key, Transport: a.azurite.transport}
	noErr(a.tb, s.CreateContainer(a.ctx, name))
}

// day measures one interval with a machine of its own.
func (a *azureBench) day(b *azure.Bucket, interval time.Duration) (d day) {
	d.interval, d.cycles = interval, a.size.Cycles
	dir, err := os.MkdirTemp(a.dir, "day")
	noErr(a.tb, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "disk.raw")
	noErr(a.tb, rawhost.CreateSparse(path, a.size.Disk))
	src, err := rawhost.Open(path)
	noErr(a.tb, err)
	defer src.Close()
	key, err := cut.GenerateVaultKey()
	noErr(a.tb, err)
	m := dr.MachineID(uuid.NewString())
	noErr(a.tb, store.WriteGeneration(a.ctx, b, cut.GenInfo{Machine: m, Gen: 1, Agent: "bench", Reason: "protect", Time: time.Now().UTC()}))
	state := filepath.Join(dir, "agent")
	noErr(a.tb, os.Mkdir(state, 0o700))
	rep, err := capture.New(capture.Config{Machine: m, Dir: state, Source: src, Sink: sent{b}})
	noErr(a.tb, err)
	rep.Assign(capture.Assignment{VM: rawhost.VMID, Disks: []string{rawhost.DiskID}, Gen: 1, CopyFrequency: time.Hour, VaultKey: key.Public()})
	ctx, cancel := context.WithCancel(a.ctx)
	done := make(chan error, 1)
	go func() { done <- rep.Run(ctx) }()
	defer func() { cancel(); noErr(a.tb, <-done) }()
	_, _, err = rep.AwaitInitial(a.ctx)
	noErr(a.tb, err)
	// The vault's side, which lists each cut when the agent announces it.
	st := store.New(store.Config{Bucket: b, Keys: store.NewKeyring(b, key)})
	_, err = st.ReadCut(a.ctx, m, 1, 0)
	if err != nil {
		_, err = st.ReadCut(a.ctx, m, 1, 1)
	}
	noErr(a.tb, err)
	per := min(a.size.Churn*int64(interval/time.Second), a.size.Disk) &^ (unit - 1)
	for range d.cycles {
		a.write(src, a.rng.Int64N((a.size.Disk-per)/unit+1)*unit, per)
		before := b.Stats()
		ref, _, err := rep.Drain(a.ctx)
		noErr(a.tb, err)
		put := b.Stats()
		d.agent = d.agent.Add(put.Sub(before))
		c, err := st.ReadCut(a.ctx, m, 1, ref.N)
		noErr(a.tb, err)
		d.vault = d.vault.Add(b.Stats().Sub(put))
		d.parts += len(c.Commit.Parts)
		d.bytes += c.Size + c.Commit.Stats.StoredBytes
	}
	before := b.Stats()
	report, err := st.Verify(a.ctx, m, nil)
	noErr(a.tb, err)
	if !report.OK() {
		a.tb.Errorf("a point is damaged: %+v", report.Verdicts)
	}
	d.scrubbed, d.stored = report.Objects, report.Bytes
	d.scrub = b.Stats().Sub(before)
	cuts := float64(24*time.Hour) / float64(interval) / float64(d.cycles)
	up := func(n int64) int64 { return int64(float64(n)*cuts + 0.5) }
	all := d.agent.Add(d.vault)
	d.perDay = azmeter.Stats{Writes: up(all.Writes), Reads: up(all.Reads), Others: up(all.Others), Lists: up(all.Lists), BytesSent: up(all.BytesSent), BytesReceived: up(all.BytesReceived)}
	d.expect = azmeter.Plan(azmeter.Load{Interval: interval, Parts: float64(d.parts) / float64(d.cycles), Bytes: d.bytes / int64(d.cycles)})
	return d
}
