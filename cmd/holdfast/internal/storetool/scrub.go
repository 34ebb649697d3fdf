package storetool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/objstore"
	"holdfast/internal/store"
)

// machineBytes is what a machine's objects amount to.
func machineBytes(ctx context.Context, b objstore.Reader, m dr.MachineID) (total int64, err error) {
	err = b.List(ctx, cut.MachinePrefix(m), func(i objstore.Info) error { total += i.Size; return nil })
	return total, err
}

// scrubView is what a scrub has found about a machine.
type scrubView struct {
	Machine     string       `json:"machine"`
	VM          string       `json:"vm,omitempty"`
	OK          bool         `json:"ok"`
	Points      int          `json:"points"`
	Damaged     []damageView `json:"damaged"`
	WholeUpTo   string       `json:"wholeUpTo,omitempty"` // all points up to this one are good
	NewestGood  string       `json:"newestGood,omitempty"`
	Objects     int          `json:"objects"`
	Bytes       int64        `json:"bytes"`
	Orphans     []orphanView `json:"orphans"`
	OrphanBytes int64        `json:"orphanBytes"`
	Fenced      int          `json:"fencedCuts,omitempty"`
	Advice      []string     `json:"advice"`
	Error       string       `json:"error,omitempty"`
}

type damageView struct {
	Point   string `json:"point"`
	Problem string `json:"problem"`
}

// orphanView is an object that no history refers to.
type orphanView struct {
	Object string `json:"object"`
	Bytes  int64  `json:"bytes"`
}

func (a *app) scrubCommand() *cobra.Command {
	var f machineFlags
	c := &cobra.Command{Use: "scrub --store STORE --key KEY", Short: "Verify everything, and say what to do about damage", Args: cobra.NoArgs,
		Long: "Read and verify every object of every machine, find objects that nothing refers to, and say what to do.\n" +
			"Nothing is changed. The exit code is that of damaged bytes if a recovery point can't be trusted.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx := c.Context()
			o, err := f.Open(ctx, a.Console, storage.ReadOnly)
			if err != nil {
				return err
			}
			defer console.Closing(&err, o.Close)
			found, _, err := machines(ctx, o.Store, f.machine)
			if err != nil {
				return err
			}
			views := []scrubView{}
			bad := 0
			for _, m := range found {
				v, err := a.scrub(ctx, o, m)
				if err != nil {
					return err
				}
				if !v.OK {
					bad++
				}
				views = append(views, v)
			}
			if err := a.sayScrub(views); err != nil {
				return err
			}
			if bad > 0 {
				return dr.New(dr.KindCorrupt, dr.CodeStoreDamaged, "store.scrub", "%d of %d machines have damage", bad, len(views)).WithHint("Do what is advised above for each.")
			}
			return nil
		}}
	return f.add(c, "only this machine, by its id or its VM's name")
}

func (a *app) scrub(ctx context.Context, o *storage.Opened, m machineView) (scrubView, error) {
	v := scrubView{Machine: m.Machine, VM: m.VM, Damaged: []damageView{}, Orphans: []orphanView{}, Advice: []string{}}
	if m.Error != "" {
		v.Error = m.Error
		v.Advice = append(v.Advice, "This machine can't be read with this key. If the key is right, its sealed data keys are damaged: get them back from a copy of the store.")
		return v, nil
	}
	report, verdicts, _, err := a.verify(ctx, o, m)
	if err != nil {
		return v, err
	}
	v.Objects, v.Bytes, v.Points = report.Objects, report.Bytes, len(verdicts)
	whole := true
	for _, x := range verdicts { // oldest first
		if !x.OK {
			v.Damaged, whole = append(v.Damaged, damageView{x.Point, x.Problem}), false
			continue
		}
		v.NewestGood = x.Point
		if whole {
			v.WholeUpTo = x.Point
		}
	}
	v.OK = len(v.Damaged) == 0
	if v.Orphans, v.Fenced, err = orphans(ctx, o, dr.MachineID(m.Machine)); err != nil {
		return v, err
	}
	for _, x := range v.Orphans {
		v.OrphanBytes += x.Bytes
	}
	v.Advice = append(v.Advice, advice(v, m)...)
	return v, nil
}

// advice says what to do about what was found.
func advice(v scrubView, m machineView) (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !v.OK {
		switch {
		case v.NewestGood == "":
			add("No recovery point is whole. Get the damaged objects from a copy of the store ('holdfast store copy' brings over what is missing), or protect the VM again.")
		case v.WholeUpTo != "" && v.WholeUpTo != v.NewestGood:
			add("Points are whole up to %s, and again some up to %s. Don't fail over to the damaged ones.", v.WholeUpTo, v.NewestGood)
		default:
			add("The newest point that is whole is %s. Don't fail over to a later one.", v.NewestGood)
		}
		add("New good points: 'holdfast item resync %s' compares the source with the replica and sends what differs.", m.name())
		add("A copy of the store may have the damaged objects whole: keep it, and don't copy over it.")
		add("Look for the cause before you trust the place again: 'holdfast store validate'.")
	}
	if len(v.Orphans) > 0 {
		add("%d objects (%s) belong to no history: leftovers of failed attempts or of an initial replication that runs. Maintenance removes them after their grace; don't delete them by hand.",
			len(v.Orphans), console.Bytes(v.OrphanBytes))
	}
	return out
}

// orphans lists the objects of a machine that neither its history nor what has
// expired or was fenced refers to.
func orphans(ctx context.Context, o *storage.Opened, m dr.MachineID) (out []orphanView, fenced int, err error) {
	out = []orphanView{}
	objects := map[string]int64{}
	err = o.Bucket.List(ctx, cut.MachinePrefix(m), func(i objstore.Info) error {
		name, err := cut.ParseObject(i.Key)
		if err != nil {
			return nil // a later format's
		}
		switch name.Class {
		case cut.ClassPart, cut.ClassTile, cut.ClassData:
			objects[i.Key] = i.Size
		}
		return nil
	})
	if err != nil {
		return out, 0, store.ObjectError("store.scrub", cut.MachinePrefix(m), err)
	}
	chain, err := o.Store.Chain(ctx, m)
	if err != nil {
		return out, 0, err
	}
	use := func(c store.CutInfo) {
		for _, key := range c.References(m) {
			delete(objects, key)
		}
	}
	for _, c := range chain.Path {
		use(c)
	}
	for _, r := range chain.Refused { // what a damaged element refers to is unknown: what could be its own is not called an orphan
		for key := range objects {
			if name, err := cut.ParseObject(key); err == nil && name.Gen == r.Gen {
				delete(objects, key)
			}
		}
	}
	for _, c := range slices.Concat(chain.Dead, chain.Expired) {
		info, err := o.Store.ReadElement(ctx, m, c)
		switch {
		case err == nil:
			use(info)
		case dr.KindOf(err) != dr.KindCorrupt && dr.KindOf(err) != dr.KindUnsupported:
			return out, 0, err
		}
	}
	if err := ctx.Err(); err != nil {
		return out, 0, err
	}
	for key, size := range objects {
		out = append(out, orphanView{key, size})
	}
	slices.SortFunc(out, func(a, b orphanView) int { return cmp.Compare(a.Object, b.Object) })
	return out, len(chain.Dead), nil
}

// listed is how many orphans are shown to people.
const listed = 10

func (a *app) sayScrub(views []scrubView) error {
	if a.JSON {
		return a.PrintJSON(views)
	}
	if len(views) == 0 {
		a.Say("The store has no machines.")
	}
	for i, v := range views {
		if i > 0 {
			if _, err := fmt.Fprintln(a.Out); err != nil {
				return err
			}
		}
		state := "good"
		if !v.OK {
			state = fmt.Sprintf("DAMAGED: %d of %d points", len(v.Damaged), v.Points)
		}
		if v.Error != "" {
			state = "UNREADABLE: " + v.Error
		}
		var damage, left []string
		for _, d := range v.Damaged {
			damage = append(damage, d.Point+": "+d.Problem)
		}
		for _, x := range v.Orphans[:min(listed, len(v.Orphans))] {
			left = append(left, x.Object)
		}
		if n := len(v.Orphans) - listed; n > 0 {
			left = append(left, fmt.Sprintf("and %d more; --output json lists all", n))
		}
		err := a.Describe(v, console.F("machine", v.Machine), console.F("vm", v.VM), console.F("state", state), console.F("points", fmt.Sprint(v.Points)),
			console.F("read", fmt.Sprintf("%d objects, %s", v.Objects, console.Bytes(v.Bytes))), console.F("damaged", strings.Join(damage, "\n")),
			console.F("fenced cuts", count(v.Fenced)), console.F("orphans", strings.Join(left, "\n")), console.F("do", strings.Join(v.Advice, "\n")))
		if err != nil {
			return err
		}
	}
	return nil
}
