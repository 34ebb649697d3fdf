// Package storetool is what can be done with a store and the vault's key alone:
// 'holdfast store' and 'holdfast recover'. There need be no vault, no database
// and no network but the way to the store.
//
// It promises that reading commands write nothing to the store, that no file is
// overwritten, and that what is restored is verified byte by byte or not there.
package storetool

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/operate"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/store"
)

type app struct{ *console.Console }

// StoreCommand is 'holdfast store'.
func StoreCommand(c *console.Console) *cobra.Command {
	a := &app{c}
	cmd := &cobra.Command{Use: "store", Short: "Read, check, copy and keep a store, with its address and the vault's key only"}
	cmd.AddCommand(a.listCommand(), a.verifyCommand(), a.scrubCommand(), a.restoreDiskCommand(), a.validateCommand(), a.copyCommand(), a.maintainCommand(), a.seedCommand())
	return cmd
}

// machineFlags are a store, its key and perhaps a machine.
type machineFlags struct {
	storage.Flags
	machine string
}

func (f *machineFlags) add(c *cobra.Command, machine string) *cobra.Command {
	f.Add(c)
	c.Flags().StringVar(&f.machine, "machine", "", machine)
	return c
}

// machineView is a replica as 'store ls' shows it.
type machineView struct {
	Machine string              `json:"machine"`
	VM      string              `json:"vm,omitempty"`
	Disks   []string            `json:"disks,omitempty"`
	Points  []operate.PointView `json:"points"`
	Refused []refusedView       `json:"refused,omitempty"`
	Fenced  int                 `json:"fencedCuts,omitempty"` // written by a stale generation; they are no recovery points
	Seed    bool                `json:"seed,omitempty"`       // there is nothing but a seed yet
	Error   string              `json:"error,omitempty"`
}

func (m machineView) name() string {
	if m.VM != "" {
		return m.VM
	}
	return m.Machine
}

type refusedView struct {
	Point  string `json:"point"`
	Reason string `json:"reason"`
}

// readMachine tells what the store has of a machine. Damage, and a key that does
// not fit, are what it tells; that the store could not be asked is an error.
func readMachine(ctx context.Context, st *store.Store, m dr.MachineID) (machineView, *store.Chain, error) {
	v := machineView{Machine: string(m), Points: []operate.PointView{}}
	chain, err := st.Chain(ctx, m)
	if err != nil {
		switch dr.KindOf(err) {
		case dr.KindCorrupt, dr.KindForbidden, dr.KindUnsupported:
			v.Error = err.Error()
			return v, &store.Chain{}, nil
		}
		return v, nil, err
	}
	for _, c := range chain.Points {
		p := c.Point(m)
		v.Points = append(v.Points, operate.PointView{Name: p.Name(), Time: &p.Time, Consistency: string(p.Consistency), Resync: p.Resync,
			DirtyBytes: p.DirtyBytes, StoredBytes: p.StoredBytes})
	}
	for _, r := range chain.Refused {
		v.Refused = append(v.Refused, refusedView{dr.PointName(r.Gen, r.N), r.Err.Error()})
	}
	v.Fenced = len(chain.Dead)
	if n := len(chain.Path); n > 0 {
		last := chain.Path[n-1]
		v.VM, v.Seed = last.Commit.VM.Name, last.Commit.Seed && len(chain.Points) == 0
		for _, d := range last.Commit.Disks {
			v.Disks = append(v.Disks, d.ID)
		}
	}
	return v, chain, nil
}

// machines reads the machines that are wanted by id or VM's name, or all.
func machines(ctx context.Context, st *store.Store, want string) (views []machineView, chains []*store.Chain, err error) {
	ids, err := st.Machines(ctx)
	if err != nil {
		return nil, nil, err
	}
	if id := dr.MachineID(want); slices.Contains(ids, id) {
		ids = []dr.MachineID{id}
	}
	var names []string
	for _, id := range ids {
		v, chain, err := readMachine(ctx, st, id)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, v.name())
		if want == "" || want == v.Machine || want == v.VM {
			views, chains = append(views, v), append(chains, chain)
		}
	}
	if want != "" && len(views) == 0 {
		e := dr.New(dr.KindNotFound, dr.CodeNotFound, "store.open", "the store has no machine or VM %q", want).WithHint("See 'holdfast store ls'.")
		if len(names) > 0 && len(names) <= 10 {
			e.Hint = "The store has: " + strings.Join(names, ", ") + "."
		}
		return nil, nil, e
	}
	return views, chains, nil
}

// oneMachine is machines for what has to be exactly one.
func oneMachine(ctx context.Context, st *store.Store, want string) (machineView, *store.Chain, error) {
	views, chains, err := machines(ctx, st, want)
	switch {
	case err != nil:
		return machineView{}, nil, err
	case len(views) == 0:
		return machineView{}, nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "store.open", "the store has no machines")
	case len(views) > 1:
		var ids []string
		for _, v := range views {
			ids = append(ids, v.Machine)
		}
		return machineView{}, nil, console.Usage("%d machines belong to a VM %q", len(views), want).WithHint("Give the machine's id: %s.", strings.Join(ids, ", "))
	case views[0].Error != "":
		return machineView{}, nil, dr.New(dr.KindCorrupt, "", "store.open", "machine %s can't be read: %s", views[0].Machine, views[0].Error)
	}
	return views[0], chains[0], nil
}

// pointFlags choose a recovery point.
type pointFlags struct{ point, before string }

func (p *pointFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&p.point, "point", "", "recovery point: its name, latest or latest-app (default: the latest)")
	c.Flags().StringVar(&p.before, "before", "", "the newest point that is not after this time, such as \"2026-03-31 18:00\" on this machine's clock")
}

// choose finds the point. now tells the day of a time that has none.
func (p *pointFlags) choose(chain *store.Chain, m machineView, now time.Time) (dr.Generation, uint64, error) {
	const op = "store.point"
	if p.point != "" && p.before != "" {
		return 0, 0, console.Usage("--point and --before exclude each other")
	}
	none := func(format string, args ...any) (dr.Generation, uint64, error) {
		e := dr.New(dr.KindNotFound, dr.CodeNoRecoveryPoint, op, format, args...)
		if n := len(m.Points); n > 0 {
			return 0, 0, e.WithHint("It has %d points, from %s (%s) to %s (%s).", n, m.Points[0].Name, m.Points[0].Time.Local().Format(time.DateTime),
				m.Points[n-1].Name, m.Points[n-1].Time.Local().Format(time.DateTime))
		}
		return 0, 0, e
	}
	pick := func(ok func(store.CutInfo) bool) (store.CutInfo, bool) {
		for _, c := range slices.Backward(chain.Points) {
			if ok(c) {
				return c, true
			}
		}
		return store.CutInfo{}, false
	}
	switch {
	case p.before != "":
		t, err := parseTime(p.before, now)
		if err != nil {
			return 0, 0, err
		}
		c, ok := pick(func(c store.CutInfo) bool { return !c.Commit.Time.After(t) })
		if !ok {
			return none("%s has no recovery point of %s or before", m.name(), t.Local().Format(time.DateTime))
		}
		return c.Gen, c.N, nil
	case p.point == "latest-app":
		c, ok := pick(func(c store.CutInfo) bool { return c.Commit.Consistency == dr.AppConsistent })
		if !ok {
			return none("%s has no application-consistent recovery point", m.name())
		}
		return c.Gen, c.N, nil
	case p.point == "" || p.point == "latest":
		last, ok := chain.Last()
		if !ok {
			if m.Seed {
				return 0, 0, dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, op, "%s has nothing but a seed: it was never compared with the VM", m.name())
			}
			return 0, 0, dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, op, "%s has no recovery point", m.name())
		}
		return last.Gen, last.N, nil
	}
	return dr.ParsePointName(p.point)
}

// parseTime reads a time as people write it, on this machine's clock.
func parseTime(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	if t, err := time.ParseInLocation("15:04", text, time.Local); err == nil {
		y, mo, d := now.Local().Date()
		at := time.Date(y, mo, d, t.Hour(), t.Minute(), 0, 0, time.Local)
		if at.After(now) {
			at = at.AddDate(0, 0, -1)
		}
		return at, nil
	}
	return time.Time{}, console.Usage("--before %q is not a time", text).WithHint(`Use "2026-03-31 18:00", "18:00" (the last one) or RFC 3339 with a zone.`)
}

// openPoint opens the point of a machine that the flags choose.
func (a *app) openPoint(ctx context.Context, st *store.Store, machine string, p pointFlags) (machineView, *store.View, error) {
	m, chain, err := oneMachine(ctx, st, machine)
	if err != nil {
		return m, nil, err
	}
	gen, n, err := p.choose(chain, m, a.Now())
	if err != nil {
		return m, nil, err
	}
	view, err := st.OpenPoint(ctx, dr.MachineID(m.Machine), gen, n)
	if err != nil && dr.CodeOf(err) == dr.CodePointRefused {
		e := dr.New(dr.KindOf(err), dr.CodeOf(err), "store.point", "%w", err).WithHint("No older point of %s is whole.", m.name())
		for _, c := range slices.Backward(chain.Points) {
			if c.N < n {
				e.Hint = fmt.Sprintf("An older point may be whole: try --point %s, or 'verify' to know.", dr.PointName(c.Gen, c.N))
				break
			}
		}
		err = e
	}
	return m, view, err
}

func (a *app) listCommand() *cobra.Command {
	var f machineFlags
	c := &cobra.Command{Use: "ls --store STORE --key KEY", Short: "List the machines and recovery points in a store", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) (err error) {
		o, err := f.Open(c.Context(), a.Console, storage.ReadOnly)
		if err != nil {
			return err
		}
		defer console.Closing(&err, o.Close)
		views, _, err := machines(c.Context(), o.Store, f.machine)
		if err != nil {
			return err
		}
		if a.JSON || f.machine == "" {
			return a.listMachines(views)
		}
		for _, m := range views {
			if err := a.describeMachine(m, len(m.Points)); err != nil {
				return err
			}
		}
		return nil
	}}
	return f.add(c, "only this machine, by its id or its VM's name, with all points")
}

func (a *app) listMachines(views []machineView) error {
	return console.List(a.Console, views, "The store has no machines.",
		console.Col("MACHINE", func(m machineView) string { return m.Machine }), console.Wide("VM", func(m machineView) string { return console.Dash(m.VM) }),
		console.Col("POINTS", func(m machineView) string { return fmt.Sprint(len(m.Points)) }),
		console.Col("REFUSED", func(m machineView) string { return fmt.Sprint(len(m.Refused)) }),
		console.Wide("NEWEST", func(m machineView) string {
			switch n := len(m.Points); {
			case m.Error != "":
				return m.Error
			case n > 0:
				return a.When(m.Points[n-1].Time)
			case m.Seed:
				return "a seed"
			}
			return "-"
		}))
}

// describeMachine prints a machine and its newest points.
func (a *app) describeMachine(m machineView, most int) error {
	if err := a.Describe(m, console.F("machine", m.Machine), console.F("vm", m.VM), console.F("disks", strings.Join(m.Disks, ", ")), console.F("error", m.Error)); err != nil {
		return err
	}
	empty := "There are no recovery points."
	if m.Seed {
		empty = "There is a seed, and no recovery point yet."
	}
	if err := console.List(a.Console, m.Points[max(0, len(m.Points)-most):], empty, operate.PointColumns(a.Console)...); err != nil {
		return err
	}
	for _, r := range m.Refused {
		if err := a.Describe(r, console.F("refused", r.Point), console.F("because", r.Reason)); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) verifyCommand() *cobra.Command {
	var f machineFlags
	c := &cobra.Command{Use: "verify --store STORE --key KEY", Short: "Read and verify every byte of every recovery point", Args: cobra.NoArgs, Long: verifyLong,
		RunE: func(c *cobra.Command, _ []string) error { return a.verifyAll(c.Context(), &f) }}
	return f.add(c, "only this machine, by its id or its VM's name")
}

const verifyLong = "Read every object that a recovery point needs and verify all of it. The exit code is that of damaged\n" +
	"bytes if a point can't be trusted; the objects are named."

func (a *app) verifyAll(ctx context.Context, f *machineFlags) (err error) {
	o, err := f.Open(ctx, a.Console, storage.ReadOnly)
	if err != nil {
		return err
	}
	defer console.Closing(&err, o.Close)
	views, _, err := machines(ctx, o.Store, f.machine)
	if err != nil {
		return err
	}
	var all []verdictView
	bad := 0
	for _, m := range views {
		if m.Error != "" {
			all, bad = append(all, verdictView{Machine: m.Machine, VM: m.VM, Problem: m.Error}), bad+1
			continue
		}
		_, verdicts, damaged, err := a.verify(ctx, o, m)
		if err != nil {
			return err
		}
		all, bad = append(all, verdicts...), bad+damaged
	}
	if err := console.List(a.Console, all, "The store has no recovery points.",
		console.Wide("VM", func(v verdictView) string { return console.Dash(v.VM) }), console.Col("POINT", func(v verdictView) string { return console.Dash(v.Point) }),
		console.Wide("VERDICT", func(v verdictView) string {
			if v.OK {
				return "good"
			}
			return "damaged: " + v.Problem
		})); err != nil {
		return err
	}
	if bad > 0 {
		return dr.New(dr.KindCorrupt, dr.CodePointRefused, "store.verify", "%d of %d recovery points can't be trusted", bad, len(all)).
			WithHint("Points that are called good are good. See 'holdfast store scrub' for what to do.")
	}
	return nil
}

type verdictView struct {
	Machine string `json:"machine"`
	VM      string `json:"vm,omitempty"`
	Point   string `json:"point,omitempty"`
	OK      bool   `json:"ok"`
	Problem string `json:"problem,omitempty"`
}

// verify reads everything of a machine, with progress.
func (a *app) verify(ctx context.Context, o *storage.Opened, m machineView) (report *store.Report, all []verdictView, bad int, err error) {
	var total int64
	id := dr.MachineID(m.Machine)
	if total, err = machineBytes(ctx, o.Bucket, id); err != nil {
		return nil, nil, 0, err
	}
	meter := a.Meter("verify " + m.name())
	report, err = o.Store.Verify(ctx, id, func(_ int, bytes int64) { meter.Update(bytes, total) })
	meter.End()
	if err != nil {
		return nil, nil, 0, err
	}
	a.Say("%s: %d objects, %s read", m.name(), report.Objects, console.Bytes(report.Bytes))
	for _, v := range report.Verdicts {
		x := verdictView{Machine: m.Machine, VM: m.VM, Point: v.Point.Name(), OK: v.Err == nil}
		if v.Err != nil {
			bad++
			x.Problem = v.Err.Error()
		}
		all = append(all, x)
	}
	return report, all, bad, nil
}

func (a *app) restoreDiskCommand() *cobra.Command {
	var f machineFlags
	var p pointFlags
	var disk, out, format string
	c := &cobra.Command{Use: "restore --store STORE --key KEY --machine M --out FILE", Short: "Write a disk of a recovery point to a new file", Args: cobra.NoArgs,
		Long: "Write one disk of a recovery point to a new file. 'holdfast recover restore' writes all disks and the\nVM's configuration.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx := c.Context()
			kind, err := hydrate.ParseFormat(format, out)
			if err != nil {
				return err
			}
			o, err := f.Open(ctx, a.Console, storage.ReadOnly)
			if err != nil {
				return err
			}
			defer console.Closing(&err, o.Close)
			_, view, err := a.openPoint(ctx, o.Store, f.machine, p)
			if err != nil {
				return err
			}
			defer console.Closing(&err, view.Close)
			var ids []string
			for _, d := range view.Disks() {
				ids = append(ids, d.ID)
			}
			if disk == "" && len(ids) == 1 {
				disk = ids[0]
			} else if disk == "" {
				return console.Usage("the VM has the disks %s", strings.Join(ids, ", ")).WithHint("Choose one with --disk.")
			}
			if err := a.restoreDisk(ctx, view, disk, out, kind); err != nil {
				return err
			}
			info, err := os.Stat(out)
			if err != nil {
				return console.ClassifyAs(err, "look at the restored disk")
			}
			at := view.Info()
			v := struct {
				Machine string `json:"machine"`
				VM      string `json:"vm"`
				Point   string `json:"point"`
				Disk    string `json:"disk"`
				Format  string `json:"format"`
				File    string `json:"file"`
				Size    int64  `json:"sizeBytes"`
			}{string(view.Machine()), view.VM().Name, dr.PointName(at.Gen, at.N), disk, string(kind), out, info.Size()}
			return a.Describe(v, console.F("vm", v.VM), console.F("point", v.Point), console.F("disk", v.Disk), console.F("file", v.File), console.F("size", console.Bytes(v.Size)))
		}}
	p.add(c)
	c.Flags().StringVar(&disk, "disk", "", "disk of the VM, such as vda (default: the only one)")
	c.Flags().StringVar(&out, "out", "", "new file to write")
	c.Flags().StringVar(&format, "format", "", "raw, qcow2, vhd or vhdx (default: by the file's name, else raw)")
	f.add(c, "machine, by its id or its VM's name")
	console.Required(c, "machine", "out")
	return c
}

// restoreDisk writes one disk, with progress.
func (a *app) restoreDisk(ctx context.Context, view *store.View, disk, path string, format hydrate.Format) error {
	meter := a.Meter("restore " + disk)
	defer meter.End()
	return hydrate.RestoreAs(ctx, view, disk, path, format, hydrate.RestoreOptions{Progress: meter.Update})
}
