package planner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
)

// Config of a profiling run.
type Config struct {
	Source   hypervisor.Source
	Path     string        // profile file; continued if it exists
	Interval time.Duration // of the cuts; replicate with the same copy frequency. At least 10 s
	Length   time.Duration // how long to profile; 0 = until ctx ends
	// Only names VMs (by id or name) to profile; none = all that can be tracked.
	Only []string
	// Skip names VMs that somebody else cuts, by id: those an agent of this host replicates.
	Skip map[dr.VMID]bool
	Log  *slog.Logger
	// Progress is called after each interval. May be nil.
	Progress func(Progress)
}

// Progress of a profiling run.
type Progress struct {
	Elapsed   time.Duration
	Intervals int
	VMs       int // measured in the last interval
	Failed    int // not measured in the last interval
	Changed   int64
}

// callLimit bounds one call of the hypervisor.
const callLimit = 5 * time.Minute

// target is a VM that is being profiled.
type target struct {
	source hypervisor.Source
	vm     dr.VM
	disks  []string
	cut    hypervisor.Cut // of the last interval, ended: its token is the base of the next
	at     time.Time
}

// Run profiles until Length has passed or ctx ends, which is no error. A VM that can't be cut in an
// interval is noted as such and tried again in the next.
func Run(ctx context.Context, cfg Config) error {
	const op = "planner.Profile"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Interval < 10*time.Second {
		return dr.Errorf(dr.KindInvalid, op, "an interval of %s is too short: 10 s at least", cfg.Interval)
	}
	info, err := cfg.Source.Info(ctx)
	if err != nil {
		return err
	}
	targets, err := choose(ctx, cfg)
	if err != nil {
		return err
	}
	w, err := openWriter(cfg.Path)
	if err != nil {
		return err
	}
	defer w.f.Close() // every append is synced
	if err := w.append(introduce(info, cfg.Interval, targets)...); err != nil {
		return err
	}
	defer func() { forget(ctx, targets, cfg.Log) }()
	began := time.Now()
	p := Progress{}
	tick := time.NewTicker(cfg.Interval)
	defer tick.Stop()
	for {
		var lines []record
		p.VMs, p.Failed = 0, 0
		for _, t := range targets {
			if ctx.Err() != nil {
				return nil
			}
			line, err := t.measure(ctx, p.Intervals)
			if err != nil {
				p.Failed++
				cfg.Log.Warn("the interval could not be measured", "vm", t.vm.Name, "err", err)
				lines = append(lines, record{Kind: "sample", Sample: &fileInterval{VM: string(t.vm.ID), At: time.Now().UTC(), Error: err.Error()}})
				continue
			}
			p.VMs++
			if line != nil {
				for _, n := range line.Changed {
					p.Changed += n
				}
				lines = append(lines, record{Kind: "sample", Sample: line})
			}
		}
		if err := w.append(lines...); err != nil {
			return err
		}
		p.Intervals, p.Elapsed = p.Intervals+1, time.Since(began)
		if cfg.Progress != nil {
			cfg.Progress(p)
		}
		if cfg.Length > 0 && p.Elapsed >= cfg.Length {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func choose(ctx context.Context, cfg Config) ([]*target, error) {
	vms, err := cfg.Source.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	var out []*target
	for _, vm := range vms {
		named := slices.ContainsFunc(cfg.Only, func(s string) bool { return strings.EqualFold(s, string(vm.ID)) || s == vm.Name })
		if len(cfg.Only) > 0 && !named {
			continue
		}
		if cfg.Skip[vm.ID] {
			cfg.Log.Info("VM is left out: the agent of this host replicates it", "vm", vm.Name)
			continue
		}
		t := &target{source: cfg.Source, vm: vm}
		for _, d := range vm.Disks {
			if d.Unreplicatable == "" && !d.Shared && !d.PassThru && d.Size > 0 {
				t.disks = append(t.disks, d.ID)
			}
		}
		if len(t.disks) > 0 {
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return nil, dr.Errorf(dr.KindNotFound, "planner.Profile", "none of the host's %d VMs is to be profiled, or none has a disk that can be tracked", len(vms))
	}
	return out, nil
}

func introduce(info hypervisor.HostInfo, interval time.Duration, targets []*target) []record {
	h := &fileHeader{Version: FileVersion, Host: info.Name, Hypervisor: info.Hypervisor, Started: time.Now().UTC(), Interval: interval.Seconds()}
	for _, v := range info.Volumes {
		h.Volumes = append(h.Volumes, fileVolume(v))
	}
	lines := []record{{Kind: "header", Header: h}}
	for _, t := range targets {
		vm := &fileVM{ID: string(t.vm.ID), Name: t.vm.Name}
		for _, d := range t.vm.Disks {
			if slices.Contains(t.disks, d.ID) {
				vm.Disks = append(vm.Disks, fileDisk{ID: d.ID, Path: d.Path, Size: d.Size, Allocated: d.Allocated})
			}
		}
		lines = append(lines, record{Kind: "vm", VM: vm})
	}
	return lines
}

// measure makes a cut since the last one and counts; the first only sets the base.
func (t *target) measure(ctx context.Context, n int) (*fileInterval, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	req := hypervisor.CutRequest{VM: t.vm.ID, Disks: t.disks, Tag: fmt.Sprintf("plan-%d-%d", time.Now().UnixNano(), n)}
	if t.cut != nil {
		req.Base = t.cut.Info().Token
	}
	cut, err := t.cutOrFresh(ctx, &req)
	if err != nil {
		return nil, err
	}
	info := cut.Info()
	line := &fileInterval{VM: string(t.vm.ID), At: info.Time.UTC(), Seconds: info.Time.Sub(t.at).Seconds(), Changed: map[string]int64{}}
	first := req.Base == ""
	for _, d := range info.Disks {
		if first || err != nil {
			break
		}
		if d.Whole {
			err = dr.New(dr.KindPrecondition, dr.CodeTrackingLost, "planner.Profile", "disk %s: %s", d.ID, d.Why)
			break
		}
		err = cut.Extents(ctx, d.ID, 0, d.Size, func(r hypervisor.Range) error {
			if r.Changed {
				line.Changed[d.ID] += r.Len
			}
			return nil
		})
	}
	if e := cut.End(ctx); e != nil {
		return nil, errors.Join(err, e, cut.Abort(ctx))
	}
	old := t.cut
	t.cut, t.at = cut, info.Time
	if old != nil {
		err = errors.Join(err, old.Abort(ctx)) // deletes its token
	}
	if err != nil {
		return nil, err
	}
	if first {
		return nil, nil
	}
	return line, nil
}

// cutOrFresh begins the cut, without base if the base is lost: the interval then only sets a new one.
func (t *target) cutOrFresh(ctx context.Context, req *hypervisor.CutRequest) (hypervisor.Cut, error) {
	cut, err := t.source.BeginCut(ctx, *req)
	if err != nil && req.Base != "" && dr.CodeOf(err) == dr.CodeTrackingLost {
		t.cut, req.Base = nil, ""
		req.Tag += "-f"
		return t.source.BeginCut(ctx, *req)
	}
	return cut, err
}

// forget deletes the tokens that are left.
func forget(ctx context.Context, targets []*target, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	for _, t := range targets {
		if t.cut == nil {
			continue
		}
		if err := t.cut.Abort(ctx); err != nil {
			log.Warn("a tracking token stays; 'holdfast agent cleanup' removes it", "vm", t.vm.Name, "err", err)
		}
	}
}
