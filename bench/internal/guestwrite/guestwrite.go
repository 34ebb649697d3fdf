// Package guestwrite measures what a guest's writes cost in QEMU while the VM is
// protected: with a dirty bitmap on its disk, as libvirt's checkpoints have it,
// and while a cut holds a frozen image. The writes go through QEMU's block layer
// by NBD, one at a time, so that neither a guest's timer nor emulation hides the
// difference. It promises that plain and protected rounds alternate on the same disk.
package guestwrite

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/bench/internal/meter"
	"holdfast/internal/nbd"
)

// Result is latencies of a write of 4 KiB.
type Result struct {
	Plain, Tracked, Frozen time.Duration // p50, medians of the rounds
	Ratio, FrozenRatio     float64       // median of the ratios to the plain round beside it
}

const (
	diskSize = 256 << 20
	unit     = 4 << 10
	rounds   = 7 // each: plain, tracked, frozen
)

// Measure makes so many writes a round. dir is for a disk and a scratch file.
func Measure(ctx context.Context, dir string, writes int, seed uint64) (r Result, err error) {
	program, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		return r, fmt.Errorf("find QEMU's storage daemon: %w", err)
	}
	disk, scratch := filepath.Join(dir, "guest.qcow2"), filepath.Join(dir, "scratch.qcow2")
	defer os.Remove(disk)
	defer os.Remove(scratch)
	for _, f := range []string{disk, scratch} {
		if _, err := meter.Command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", f, fmt.Sprint(diskSize)); err != nil {
			return r, err
		}
	}
	run, err := os.MkdirTemp("/tmp", "hfbench") // a socket's path is short
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(run)
	file := func(node, path string) []string { // as libvirt has it with cache='none'
		return []string{"--blockdev", fmt.Sprintf("driver=file,node-name=%s-f,filename=%s,cache.direct=on,aio=threads", node, path),
			"--blockdev", fmt.Sprintf("driver=qcow2,node-name=%s,file=%s-f,discard=unmap", node, node)}
	}
	args := slices.Concat([]string{"--chardev", "socket,id=m,server=on,wait=off,path=" + filepath.Join(run, "qmp"), "--monitor", "chardev=m",
		"--nbd-server", "addr.type=unix,addr.path=" + filepath.Join(run, "nbd")}, file("disk", disk), file("scratch", scratch),
		[]string{"--export", "nbd,id=e,node-name=disk,name=disk,writable=on"})
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return r, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if err != nil && stderr.Len() > 0 {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
		}
	}()
	q, err := dialQMP(ctx, filepath.Join(run, "qmp"))
	if err != nil {
		return r, err
	}
	defer q.Close()
	c, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: filepath.Join(run, "nbd"), Export: "disk"})
	if err != nil {
		return r, err
	}
	defer c.Close()
	g := &guest{c: c, rng: rand.New(rand.NewPCG(seed, 10)), p: make([]byte, unit)}
	if err := g.fill(ctx); err != nil {
		return r, err
	}
	if _, err := g.p50(ctx, writes); err != nil {
		return r, err
	}
	return measure(ctx, g, q, writes)
}

func measure(ctx context.Context, g *guest, q *qmp, writes int) (r Result, err error) {
	var plain, tracked, frozen []time.Duration
	var ratio, frozenRatio []float64
	for range rounds {
		p, err := g.p50(ctx, writes)
		if err != nil {
			return r, err
		}
		if err := q.do("block-dirty-bitmap-add", map[string]any{"node": "disk", "name": "b", "granularity": 64 << 10}); err != nil {
			return r, err
		}
		t, err := g.p50(ctx, writes)
		if err != nil {
			return r, err
		}
		if err := q.do("blockdev-backup", map[string]any{"job-id": "j", "device": "disk", "target": "scratch", "sync": "none"}); err != nil {
			return r, err
		}
		f, err := g.p50(ctx, writes)
		if err != nil {
			return r, err
		}
		if err := errors.Join(q.do("job-cancel", map[string]any{"id": "j"}), q.concluded("j"), q.do("block-dirty-bitmap-remove", map[string]any{"node": "disk", "name": "b"})); err != nil {
			return r, err
		}
		plain, tracked, frozen = append(plain, p), append(tracked, t), append(frozen, f)
		ratio, frozenRatio = append(ratio, float64(t)/float64(p)), append(frozenRatio, float64(f)/float64(p))
	}
	return Result{Plain: median(plain), Tracked: median(tracked), Frozen: median(frozen), Ratio: median(ratio), FrozenRatio: median(frozenRatio)}, nil
}

func median[T int64 | float64 | time.Duration](v []T) T {
	slices.Sort(v)
	return v[len(v)/2]
}

type guest struct {
	c   *nbd.Client
	rng *rand.Rand
	p   []byte
}

// fill writes the whole disk, so that no later write has to allocate.
func (g *guest) fill(ctx context.Context) error {
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(g.rng.Uint32())
	}
	for off := int64(0); off < diskSize; off += int64(len(p)) {
		if err := g.c.WriteAt(ctx, p, off); err != nil {
			return err
		}
	}
	return g.c.Flush(ctx)
}

// p50 makes random writes of 4 KiB, one after the other.
func (g *guest) p50(ctx context.Context, n int) (time.Duration, error) {
	took := make([]time.Duration, 0, n)
	for range n {
		off := g.rng.Int64N(diskSize/unit) * unit
		start := time.Now()
		if err := g.c.WriteAt(ctx, g.p, off); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
	}
	return median(took), nil
}

// qmp speaks to QEMU's monitor.
type qmp struct {
	net.Conn
	in *bufio.Scanner
}

func dialQMP(ctx context.Context, path string) (*qmp, error) {
	for try := 0; ; try++ {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil && try < 500 && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reach QEMU's monitor: %w", err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Minute))
		q := &qmp{Conn: c, in: bufio.NewScanner(c)}
		if !q.in.Scan() { // its greeting
			return nil, errors.Join(errors.New("QEMU's monitor says nothing"), c.Close())
		}
		return q, q.do("qmp_capabilities", nil)
	}
}

// do runs a command. Events are passed over.
func (q *qmp) do(command string, arguments any) error {
	_, err := q.ask(command, arguments)
	return err
}

func (q *qmp) ask(command string, arguments any) (json.RawMessage, error) {
	m := map[string]any{"execute": command}
	if arguments != nil {
		m["arguments"] = arguments
	}
	if err := json.NewEncoder(q.Conn).Encode(m); err != nil {
		return nil, err
	}
	for q.in.Scan() {
		var a struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(q.in.Bytes(), &a); err != nil {
			return nil, err
		}
		if a.Error != nil {
			return nil, fmt.Errorf("%s: %s", command, a.Error.Desc)
		}
		if a.Return != nil {
			return a.Return, nil
		}
	}
	return nil, fmt.Errorf("%s: QEMU's monitor is gone: %w", command, q.in.Err())
}

// concluded waits until a job that was cancelled is gone.
func (q *qmp) concluded(id string) error {
	for range 2000 {
		raw, err := q.ask("query-jobs", nil)
		if err != nil {
			return err
		}
		if !strings.Contains(string(raw), `"`+id+`"`) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("job %s does not end", id)
}
