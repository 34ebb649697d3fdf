package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/hvsim"
	"holdfast/internal/hvsim/guest"
	"holdfast/internal/hvsim/model"
	"holdfast/internal/hvsim/schema"
)

// Lines in the notes of VMs that this program made.
const (
	unfinished = "hvsim is making this VM"
	guestless  = "hvsim made this VM; it has no guest"
)

func noted(vm *hvsim.VM, line string) bool { return slices.Contains(vm.State().Notes, line) }

func openSite(ctx context.Context, o options, log *slog.Logger) (*hvsim.Site, error) {
	cfg := hvsim.Config{Dir: o.dir, Log: log, Seed: o.seed, JobTime: o.jobTime, MergeTime: o.mergeTime, Inline: o.inline}
	for i := range o.hosts {
		cfg.Hosts = append(cfg.Hosts, hvsim.HostConfig{Name: hostName(i)})
	}
	r := &runner{guests: guest.New(guest.Config{Accel: o.accel, Log: log}), ending: ctx.Done()}
	if o.run {
		cfg.Runner = r
	}
	site, err := hvsim.New(cfg)
	if err != nil {
		return nil, err
	}
	r.site = site
	if err := site.Open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("what is in %s can't be taken over; nothing of it was removed: %w", o.dir, err), site.Close())
	}
	return site, nil
}

// find returns the VM with a name, nil if no host has it.
func find(site *hvsim.Site, name string) *hvsim.VM {
	for _, h := range site.Hosts() {
		for _, vm := range h.VMs() {
			if strings.EqualFold(vm.State().Name, name) {
				return vm
			}
		}
	}
	return nil
}

// fill makes the VMs that are not there yet.
func fill(ctx context.Context, o options, site *hvsim.Site, errOut io.Writer) error {
	there := map[string]bool{}
	for _, h := range site.Hosts() {
		for _, vm := range h.VMs() {
			if noted(vm, unfinished) { // by a process that was killed
				if err := remove(h, vm); err != nil {
					return fmt.Errorf("remove VM %s, which is half made: %w", vm.State().Name, err)
				}
				continue
			}
			there[vm.State().Name] = true
		}
	}
	hosts := site.Hosts()
	shown := time.Now()
	for i := range o.vms {
		name := fmt.Sprintf("vm-%04d", i+1)
		if there[name] {
			continue
		}
		if time.Since(shown) > time.Second {
			shown = time.Now()
			fmt.Fprintf(errOut, "hvsim: %d of %d VMs made\n", i, o.vms)
		}
		spec := hvsim.VMSpec{Name: name, Generation: 1 + i%2, CPUs: 1 + i%4, MemoryMB: int64(1024 << (i % 4)), OS: "Windows Server 2022 Datacenter", OSVersion: "10.0.20348", FQDN: name + ".example.test",
			Disks: []hvsim.DiskSpec{{Name: "os", Size: 64 << 30}}, NICs: []hvsim.NICSpec{{Switch: "External", DHCP: true, IPs: []string{fmt.Sprintf("10.1.%d.%d", i/250, 2+i%250)}}}}
		if i%3 == 0 {
			spec.OS, spec.OSVersion = "Debian GNU/Linux", "12"
		}
		if i%4 == 0 {
			spec.Disks = append(spec.Disks, hvsim.DiskSpec{Name: "data", Size: 200 << 30})
		}
		if err := add(ctx, hosts[i%len(hosts)], spec, guestless); err != nil {
			return err
		}
	}
	for _, v := range o.images {
		if err := v.bring(ctx, site, errOut); err != nil {
			return fmt.Errorf("--vm %s: %w", v.spec.Name, err)
		}
	}
	return nil
}

// add makes a VM and starts it. A VM whose making was cut short is told by its notes.
func add(ctx context.Context, h *hvsim.Host, spec hvsim.VMSpec, notes ...string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("ended before all VMs were made; the same command goes on: %w", err)
	}
	spec.Off, spec.Notes = true, unfinished
	vm, err := h.AddVM(ctx, spec)
	if err == nil {
		err = vm.Change(func(st *model.State) error { st.Notes = append(notes, unfinished); return nil })
	}
	if err == nil {
		err = vm.Start(ctx)
	}
	if err == nil {
		err = vm.Change(func(st *model.State) error { st.Notes = notes; return nil })
	}
	if err != nil {
		return fmt.Errorf("make VM %s: %w", spec.Name, err)
	}
	return nil
}

// remove removes a VM that is half made with its directory.
func remove(h *hvsim.Host, vm *hvsim.VM) error {
	dir, err := h.Local(vm.State().Dir)
	if err != nil {
		return err
	}
	if err := errors.Join(vm.PowerOff(), vm.Delete()); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// runner runs the guests of VMs by QEMU. The VMs of --vms have nothing to boot: they only seem to run.
type runner struct {
	guests model.Runner
	site   *hvsim.Site
	ending <-chan struct{} // closed when the program ends
}

// Start implements model.Runner.
func (r *runner) Start(ctx context.Context, run model.VMRun) (model.Running, error) {
	for _, h := range r.site.Hosts() {
		if vm := h.VM(run.ID); vm != nil && noted(vm, guestless) {
			return newDummy(), nil
		}
	}
	g, err := r.guests.Start(ctx, run)
	if err != nil {
		return nil, err
	}
	w := &watched{Running: g, done: make(chan struct{})}
	go func() { // ends with the guest
		<-g.Done()
		select {
		case <-r.ending:
		case <-time.After(endTogether):
			close(w.done)
		}
	}()
	return w, nil
}

// endTogether is how long the end of a guest is held back. Ctrl-C ends QEMU, too: such a guest has
// not shut down, and runs again after a restart.
const endTogether = 300 * time.Millisecond

// watched is a guest whose end is told when it is clear that it ended by itself.
type watched struct {
	model.Running
	done chan struct{}
}

func (w *watched) Done() <-chan struct{} { return w.done }

// dummy is a guest that does nothing.
type dummy struct {
	done chan struct{}
	end  func()
}

func newDummy() *dummy {
	d := &dummy{done: make(chan struct{})}
	d.end = sync.OnceFunc(func() { close(d.done) })
	return d
}

func (d *dummy) Powerdown(context.Context) error            { d.end(); return nil }
func (d *dummy) Pause(context.Context) error                { return nil }
func (d *dummy) Resume(context.Context) error               { return nil }
func (d *dummy) Screenshot(context.Context) ([]byte, error) { return nil, model.ErrMissing }
func (d *dummy) Done() <-chan struct{}                      { return d.done }
func (d *dummy) Kill() error                                { d.end(); return nil }

// readPlan reads the plan of faults and refuses faults that could never be used.
func readPlan(o options) ([]hvsim.Fault, error) {
	if o.faults == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(o.faults)
	if err != nil {
		return nil, fmt.Errorf("read the plan of faults: %w", err)
	}
	list, err := hvsim.ReadFaults(bytes.NewReader(raw))
	if err == nil && !json.Valid(raw) { // it reads one value
		err = errors.New("something follows the array")
	}
	if err != nil {
		return nil, fmt.Errorf("the file %s: %w", o.faults, err)
	}
	for i, f := range list {
		if err := usable(f, o.hosts); err != nil {
			return nil, fmt.Errorf("the plan of faults %s, number %d: %w", o.faults, i+1, err)
		}
	}
	return list, nil
}

// codes are what a fault's Err can be.
var codes = []cim.Code{cim.CodeNotFound, cim.CodeInvalidClass, cim.CodeInvalidQuery, cim.CodeNoMethod, cim.CodeAccessDenied, cim.CodeUnauthorized, cim.CodeQuota, cim.CodeTimeout, cim.CodeUnavailable,
	cim.CodeProtocol, cim.CodeFailed}

func usable(f hvsim.Fault, hosts int) error {
	known := f.Host == ""
	for i := range hosts {
		known = known || strings.EqualFold(f.Host, hostName(i))
	}
	if !known {
		return fmt.Errorf("there is no host %s", f.Host)
	}
	special := slices.ContainsFunc([]string{"", "Query", "Get", "Merge"}, func(s string) bool { return strings.EqualFold(s, f.Method) })
	if !special && !slices.ContainsFunc(schema.Load().Classes(schema.Virtualization), func(c *schema.Class) bool { _, ok := c.Method(f.Method); return ok }) {
		return fmt.Errorf("no class has a method %s", f.Method)
	}
	switch {
	case f.Err != "" && !slices.Contains(codes, f.Err):
		return fmt.Errorf("Err can't be %q, but one of %v", f.Err, codes)
	case f.Count < 0 || f.Skip < 0 || f.Probability < 0 || f.Probability > 1 || f.Delay < 0:
		return errors.New("Count, Skip, Probability or Delay is out of range")
	case f.Err == "" && f.Return == 0 && f.JobState == 0 && f.Delay == 0:
		return errors.New("nothing goes wrong: it has neither Err, Return, JobState nor Delay")
	}
	return nil
}

// write lets VMs without guests change their disks.
func write(ctx context.Context, o options, site *hvsim.Site, log *slog.Logger) *sync.WaitGroup {
	var wg sync.WaitGroup
	if o.writeEvery <= 0 {
		return &wg
	}
	wg.Go(func() {
		tick := time.NewTicker(o.writeEvery)
		defer tick.Stop()
		writers := map[*hvsim.VM]interface{ Step(n int) error }{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for _, h := range site.Hosts() {
				for i, vm := range h.VMs() {
					if ctx.Err() != nil {
						return
					}
					if o.run && !noted(vm, guestless) {
						continue
					}
					w := writers[vm]
					if w == nil {
						w = vm.Workload(o.seed + uint64(i))
						writers[vm] = w
					}
					if err := w.Step(1); err != nil && ctx.Err() == nil && !errors.Is(err, model.ErrState) { // a VM that is off does not write
						log.Warn("a VM did not write", "vm", vm.ID(), "err", err)
					}
				}
			}
		}
	})
	return &wg
}
