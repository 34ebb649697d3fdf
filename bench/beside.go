package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"holdfast/bench/internal/meter"
	"holdfast/bench/internal/peers"
	"holdfast/bench/internal/report"
	"holdfast/internal/ledger/sessionvirt"
)

// nobody is the user that a libvirt session belongs to if root runs the benchmark.
const nobody = 65534

// beside is what others need for the work that is measured.
type beside struct {
	copier      *peers.Copier
	first, next peers.Results // ours is under "holdfast"
	restored    peers.Results
	idleOthers  peers.Results
}

const ours = "holdfast"

// firstCopies lets others copy the disk as the initial replication found it.
func (b *runner) firstCopies(ctx context.Context) error {
	dir := filepath.Join(b.Dir, "peers")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	b.copier = &peers.Copier{Dir: dir, Disk: b.disk, Serve: func(ctx context.Context) (string, int, func() error, error) {
		s, err := b.startQemuNBD(ctx, b.disk, "raw")
		if err != nil {
			return "", 0, nil, err
		}
		return s.uri(), s.pid(), func() error { _, err := s.stop(); return err }, nil
	}}
	mine := b.first[ours]
	b.first = b.copier.First(ctx)
	b.first[ours] = mine
	a, err := b.machine(ctx)
	b.next, b.restored, b.idleOthers = peers.Results{}, peers.Results{}, peers.Results{}
	for _, p := range []struct {
		in   peers.Results
		cost peers.Cost
	}{{b.first, a.First}, {b.next, a.Next}, {b.restored, a.Restore}, {b.idleOthers, a.Idle}} {
		p.in[peers.Virtnbd] = p.cost.Result()
		if err != nil {
			p.in[peers.Virtnbd] = peers.Result{Err: err}
		}
	}
	b.compare("first copy", b.first, "stored", peers.Rsync, peers.Borg, peers.Virtnbd, peers.QemuImg, peers.Nbdcopy)
	return ctx.Err()
}

// machine measures virtnbdbackup in a process of its own, which is not root's.
func (b *runner) machine(ctx context.Context) (a peers.MachineAnswer, err error) {
	dir := filepath.Join(b.Dir, "machine")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return a, err
	}
	defer os.RemoveAll(dir)
	if os.Geteuid() == 0 { // nobody has to be able to read the disk
		if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chmod(b.Dir, 0o755), os.Chmod(b.disk, 0o644)); err != nil {
			return a, err
		}
	}
	cmd, err := childCommand(ctx, "virtnbdbackup", peers.MachineRequest{Dir: dir, Disk: b.disk, Places: b.places(b.Writes, rand.New(rand.NewPCG(b.Seed, 2)))})
	if err != nil {
		return a, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String())
		return a, fmt.Errorf("measure virtnbdbackup: %w: %s", err, text[max(0, len(text)-400):])
	}
	return a, json.Unmarshal(stdout.Bytes(), &a)
}

// dropRoot makes a child go on as a user that may have libvirt sessions. If it
// reports true, that has happened elsewhere and the child is done.
func dropRoot(ctx context.Context) (bool, error) {
	code, ran, err := sessionvirt.DropRoot(ctx, os.Args[1:])
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	return ran, err
}

// increments lets others bring their copies to what the delta cycle made of ours.
func (b *runner) increments(ctx context.Context) error {
	for name, r := range b.copier.Next(ctx) {
		b.next[name] = r
	}
	for name, r := range b.copier.Restore(ctx) {
		b.restored[name] = r
	}
	b.compare(fmt.Sprintf("copy after %d random writes of 4 KiB", b.Writes), b.next, "shipped", peers.Rsync, peers.Borg, peers.Virtnbd, peers.QemuImg, peers.Nbdcopy)
	return errors.Join(ctx.Err(), os.RemoveAll(b.copier.Dir))
}

// compare adds what one piece of work costs us and others.
func (b *runner) compare(work string, r peers.Results, bytes string, names ...string) {
	area := "others beside it: " + work
	with := func(v func(peers.Result) float64) report.Peers {
		var ps report.Peers
		for _, n := range names {
			if err := r[n].Err; err != nil {
				ps = ps.Without(n, err.Error())
			} else {
				ps = ps.And(n, v(r[n]))
			}
		}
		return ps
	}
	cpu := func(r peers.Result) float64 { return r.CPU.Seconds() }
	mib := func(r peers.Result) float64 { return report.MiB(r.Bytes) }
	wall := func(r peers.Result) float64 { return r.Wall.Seconds() }
	b.rep.Add(report.Figure{Area: area, Name: "CPU", Value: cpu(r[ours]), Unit: "cpu-s", Peers: with(cpu), Note: "all processes, the one that serves the disk included"})
	b.rep.Add(report.Figure{Area: area, Name: bytes, Value: mib(r[ours]), Unit: "MiB", Peers: with(mib), Note: "rsync: sent; qemu-img and nbdcopy: the whole copy, each time"})
	b.rep.Add(report.Figure{Area: area, Name: "time", Value: wall(r[ours]), Unit: "s", Wall: true, Peers: with(wall)})
}

// cost is a result of ours.
func cost(u meter.Usage, bytes int64) peers.Result { return peers.Result{Usage: u, Bytes: bytes} }
