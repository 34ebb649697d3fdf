package vaulthost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/operate"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/objstore"
	"holdfast/internal/objstore/file"
	"holdfast/internal/store"
)

// storeFlags name a store and the key that opens it.
type storeFlags struct{ dir, key, machine string }

func (s *storeFlags) add(c *cobra.Command, machine string) *cobra.Command {
	c.Flags().StringVar(&s.dir, "store", "", "directory of the store")
	c.Flags().StringVar(&s.key, "key", "", "file with the vault's private key (vault.key)")
	c.Flags().StringVar(&s.machine, "machine", "", machine)
	console.Required(c, "store", "key")
	return c
}

// open opens the store for reading only and checks that the key is its key.
func (s *storeFlags) open(ctx context.Context) (*store.Store, func() error, error) {
	key, err := readKey(s.key)
	if err != nil {
		return nil, nil, err
	}
	b, err := file.Open(ctx, file.Config{Dir: s.dir, ReadOnly: true})
	if err != nil {
		return nil, nil, notAStore(err, storeHint)
	}
	st := store.New(store.Config{Bucket: b, Keys: store.NewKeyring(b, key)})
	// A store that has lost vault.json is still readable: every machine's key says if it fits.
	if info, err := st.VaultInfo(ctx); err == nil && info.KeyID != key.KeyID() {
		return nil, nil, errors.Join(dr.New(dr.KindForbidden, dr.CodeKeyMismatch, "store.open", "%s is the key %s, the store belongs to the key %s", s.key, key.KeyID(), info.KeyID), b.Close())
	}
	return st, b.Close, nil
}

const storeHint = "Give the directory that holds bucket.json with --store; see whether its disk is mounted."

// notAStore explains why a directory can't be opened as a store.
func notAStore(err error, hint string) error {
	err = console.Classify(err)
	return &dr.Error{Kind: dr.KindOf(err), Code: dr.CodeOf(err), Op: "store.open", Message: err.Error(), Hint: hint}
}

// machineView is a replica as 'store ls' shows it.
type machineView struct {
	Machine string              `json:"machine"`
	VM      string              `json:"vm,omitempty"`
	Disks   []string            `json:"disks,omitempty"`
	Points  []operate.PointView `json:"points"`
	Refused []refusedView       `json:"refused,omitempty"`
	Fenced  int                 `json:"fencedCuts,omitempty"` // written by a stale generation; they are no recovery points
	Error   string              `json:"error,omitempty"`
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
	if last, ok := chain.Last(); ok {
		v.VM = last.Commit.VM.Name
		for _, d := range last.Commit.Disks {
			v.Disks = append(v.Disks, d.ID)
		}
	}
	return v, chain, nil
}

// machines reads the machines that --machine names, or all.
func (s *storeFlags) machines(ctx context.Context, st *store.Store) (views []machineView, chains []*store.Chain, err error) {
	ids, err := st.Machines(ctx)
	if err != nil {
		return nil, nil, err
	}
	if id := dr.MachineID(s.machine); slices.Contains(ids, id) {
		ids = []dr.MachineID{id}
	}
	for _, id := range ids {
		v, chain, err := readMachine(ctx, st, id)
		if err != nil {
			return nil, nil, err
		}
		if s.machine == "" || s.machine == v.Machine || s.machine == v.VM {
			views, chains = append(views, v), append(chains, chain)
		}
	}
	if s.machine != "" && len(views) == 0 {
		return nil, nil, dr.New(dr.KindNotFound, dr.CodeNotFound, "store.open", "the store has no machine or VM %q", s.machine).WithHint("See 'holdfast store ls'.")
	}
	return views, chains, nil
}

func (a *app) storeCommand() *cobra.Command {
	c := &cobra.Command{Use: "store", Short: "Read, check and restore from a store, with its directory and the vault's key only"}
	c.AddCommand(a.storeListCommand(), a.storeVerifyCommand(), a.storeRestoreCommand(), a.storeValidateCommand())
	return c
}

func (a *app) storeListCommand() *cobra.Command {
	var s storeFlags
	c := &cobra.Command{Use: "ls --store DIR --key FILE", Short: "List the machines and recovery points in a store", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) (err error) {
		st, done, err := s.open(c.Context())
		if err != nil {
			return err
		}
		defer console.Closing(&err, done)
		views, _, err := s.machines(c.Context(), st)
		if err != nil {
			return err
		}
		if a.JSON || s.machine == "" {
			return console.List(a.Console, views, "The store has no machines.",
				console.Col("MACHINE", func(m machineView) string { return m.Machine }), console.Wide("VM", func(m machineView) string { return console.Dash(m.VM) }),
				console.Col("POINTS", func(m machineView) string { return fmt.Sprint(len(m.Points)) }),
				console.Col("REFUSED", func(m machineView) string { return fmt.Sprint(len(m.Refused)) }),
				console.Wide("NEWEST", func(m machineView) string {
					if m.Error != "" {
						return m.Error
					}
					if n := len(m.Points); n > 0 {
						return a.When(m.Points[n-1].Time)
					}
					return "-"
				}))
		}
		for _, m := range views {
			if err := a.Describe(m, console.F("machine", m.Machine), console.F("vm", m.VM), console.F("disks", strings.Join(m.Disks, ", ")), console.F("error", m.Error)); err != nil {
				return err
			}
			if err := console.List(a.Console, m.Points, "There are no recovery points.", operate.PointColumns(a.Console)...); err != nil {
				return err
			}
			for _, r := range m.Refused {
				if err := a.Describe(r, console.F("refused", r.Point), console.F("because", r.Reason)); err != nil {
					return err
				}
			}
		}
		return nil
	}}
	return s.add(c, "only this machine, by its id or its VM's name, with all points")
}

func (a *app) storeVerifyCommand() *cobra.Command {
	var s storeFlags
	c := &cobra.Command{Use: "verify --store DIR --key FILE", Short: "Read and verify every byte of every recovery point", Args: cobra.NoArgs,
		Long: "Read every object that a recovery point needs and verify all of it. The exit code is that of damaged\n" +
			"bytes if a point can't be trusted; the objects are named.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx := c.Context()
			st, done, err := s.open(ctx)
			if err != nil {
				return err
			}
			defer console.Closing(&err, done)
			machines, _, err := s.machines(ctx, st)
			if err != nil {
				return err
			}
			var all []verdictView
			bad := 0
			for _, m := range machines {
				if m.Error != "" {
					all, bad = append(all, verdictView{Machine: m.Machine, VM: m.VM, Problem: m.Error}), bad+1
					continue
				}
				m, damaged, err := a.verify(ctx, st, m)
				if err != nil {
					return err
				}
				all, bad = append(all, m...), bad+damaged
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
				return dr.New(dr.KindCorrupt, dr.CodePointRefused, "store.verify", "%d of %d recovery points can't be trusted", bad, len(all))
			}
			return nil
		}}
	return s.add(c, "only this machine, by its id or its VM's name")
}

type verdictView struct {
	Machine string `json:"machine"`
	VM      string `json:"vm,omitempty"`
	Point   string `json:"point,omitempty"`
	OK      bool   `json:"ok"`
	Problem string `json:"problem,omitempty"`
}

func (a *app) verify(ctx context.Context, st *store.Store, m machineView) (all []verdictView, bad int, err error) {
	last := a.Now()
	report, err := st.Verify(ctx, dr.MachineID(m.Machine), func(objects int, bytes int64) {
		if now := a.Now(); now.Sub(last) > 5*time.Second {
			last = now
			a.Say("%s: %d objects, %s", m.Machine, objects, console.Bytes(bytes))
		}
	})
	if err != nil {
		return nil, 0, err
	}
	a.Say("%s: %d objects, %s read", m.Machine, report.Objects, console.Bytes(report.Bytes))
	for _, v := range report.Verdicts {
		x := verdictView{Machine: m.Machine, VM: m.VM, Point: v.Point.Name(), OK: v.Err == nil}
		if v.Err != nil {
			bad++
			x.Problem = v.Err.Error()
		}
		all = append(all, x)
	}
	return all, bad, nil
}

func (a *app) storeRestoreCommand() *cobra.Command {
	var s storeFlags
	var point, disk, out string
	c := &cobra.Command{Use: "restore --store DIR --key FILE --machine M --out FILE", Short: "Write a disk of a recovery point to a new raw file", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) (err error) {
		ctx := c.Context()
		st, done, err := s.open(ctx)
		if err != nil {
			return err
		}
		defer console.Closing(&err, done)
		views, chains, err := s.machines(ctx, st)
		if err != nil {
			return err
		}
		if len(views) > 1 {
			return console.Usage("%d machines belong to a VM %q", len(views), s.machine).WithHint("Give the machine's id; see 'holdfast store ls'.")
		}
		m := dr.MachineID(views[0].Machine)
		last, ok := chains[0].Last()
		gen, n := last.Gen, last.N
		if point != "" && point != "latest" {
			if gen, n, err = dr.ParsePointName(point); err != nil {
				return err
			}
		} else if !ok {
			return dr.New(dr.KindPrecondition, dr.CodeNoRecoveryPoint, "store.restore", "machine %s has no recovery point", m)
		}
		view, err := st.OpenPoint(ctx, m, gen, n)
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
		if err := hydrate.Restore(ctx, view, disk, out, hydrate.RestoreOptions{Progress: a.percent("restore")}); err != nil {
			return err
		}
		info, err := os.Stat(out)
		if err != nil {
			return console.ClassifyAs(err, "look at the restored disk")
		}
		v := struct {
			Machine string `json:"machine"`
			VM      string `json:"vm"`
			Point   string `json:"point"`
			Disk    string `json:"disk"`
			File    string `json:"file"`
			Size    int64  `json:"sizeBytes"`
		}{string(m), view.VM().Name, dr.PointName(gen, n), disk, out, info.Size()}
		return a.Describe(v, console.F("vm", v.VM), console.F("point", v.Point), console.F("disk", v.Disk), console.F("file", v.File), console.F("size", console.Bytes(v.Size)))
	}}
	c.Flags().StringVar(&point, "point", "", "recovery point (default: the latest)")
	c.Flags().StringVar(&disk, "disk", "", "disk of the VM, such as vda (default: the only one)")
	c.Flags().StringVar(&out, "out", "", "new file to write")
	s.add(c, "machine, by its id or its VM's name")
	console.Required(c, "machine", "out")
	return c
}

// percent reports bytes done in steps of ten percent.
func (a *app) percent(what string) func(done, total int64) {
	said := make(chan int64, 1) // the last step, held by whoever reports
	said <- 0
	return func(done, total int64) {
		step := <-said
		if total > 0 && done*10/total > step {
			step = done * 10 / total
			a.Say("%s: %d%% of %s", what, step*10, console.Bytes(total))
		}
		said <- step
	}
}

func (a *app) storeValidateCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{Use: "validate --store DIR", Short: "Check that a directory keeps the promises that a store needs", Args: cobra.NoArgs,
		Long: "Run the conformance checks of the object store contract on the store, beside its content. It writes\n" +
			"and deletes about 120 MiB. The store must exist; 'holdfast vault init' makes one.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			b, err := file.Open(c.Context(), file.Config{Dir: filepath.Clean(dir)})
			if err != nil {
				return notAStore(err, storeHint)
			}
			defer console.Closing(&err, b.Close)
			results, failed := objstore.Validate(c.Context(), b, "validate/")
			type view struct {
				Check   string  `json:"check"`
				OK      bool    `json:"ok"`
				Seconds float64 `json:"seconds"`
				Problem string  `json:"problem,omitempty"`
			}
			var views []view
			for _, r := range results {
				v := view{r.Name, r.Err == nil, r.Duration.Seconds(), ""}
				if r.Err != nil {
					v.Problem = r.Err.Error()
				}
				views = append(views, v)
			}
			if err := console.List(a.Console, views, "No check ran.", console.Wide("CHECK", func(v view) string { return v.Check }),
				console.Col("SECONDS", func(v view) string { return fmt.Sprintf("%.1f", v.Seconds) }),
				console.Wide("RESULT", func(v view) string {
					if v.OK {
						return "kept"
					}
					return "BROKEN: " + v.Problem
				})); err != nil {
				return err
			}
			if failed != nil && dr.KindOf(console.Classify(failed)) == dr.KindInternal {
				return dr.Errorf(dr.KindUnsupported, "store.validate", "%s can't be used as a store: %w", dir, failed)
			}
			return console.Classify(failed)
		}}
	c.Flags().StringVar(&dir, "store", "", "directory of the store")
	console.Required(c, "store")
	return c
}
