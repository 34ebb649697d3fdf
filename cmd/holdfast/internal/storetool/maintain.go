package storetool

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/compact"
	"holdfast/internal/dr"
)

// maintainView is what maintenance would do, or has done, for a machine.
type maintainView struct {
	Machine  string      `json:"machine"`
	VM       string      `json:"vm,omitempty"`
	Keep     []pointFate `json:"keep"`
	Expire   []pointFate `json:"expire"`
	Done     bool        `json:"done"`
	Expired  int         `json:"expiredPoints,omitempty"`
	Runs     int         `json:"runs,omitempty"`
	Tiles    int         `json:"tiles,omitempty"`
	Wrote    int64       `json:"wroteBytes,omitempty"`
	Pending  int         `json:"pendingObjects,omitempty"` // wait for their grace
	Deleted  int         `json:"deletedObjects,omitempty"`
	Freed    int64       `json:"freedBytes,omitempty"`
	Objects  int         `json:"objects,omitempty"` // before
	Bytes    int64       `json:"bytes,omitempty"`   // before
	NotReady string      `json:"notReady,omitempty"`
	Error    string      `json:"error,omitempty"`
}

type pointFate struct {
	Point string     `json:"point"`
	Time  *time.Time `json:"time"`
	Why   string     `json:"why,omitempty"` // it is kept
}

// retention are the flags of the rules.
type retention struct{ keep, hourly, daily console.Duration }

func (r *retention) rules() (compact.Rules, error) {
	fine, hourly, daily := time.Duration(r.keep), time.Duration(r.hourly), time.Duration(r.daily)
	switch {
	case hourly > 0 && hourly <= fine:
		return compact.Rules{}, console.Usage("--hourly %s must be longer than --keep %s", console.Short(hourly), console.Short(fine))
	case daily > 0 && daily <= max(fine, hourly):
		return compact.Rules{}, console.Usage("--daily %s must be longer than --keep and --hourly", console.Short(daily))
	}
	return compact.Rules{Fine: fine, Hourly: hourly, Daily: daily}, nil
}

func (a *app) maintainCommand() *cobra.Command {
	var f machineFlags
	var r retention
	var plan bool
	c := &cobra.Command{Use: "maintain --store STORE --key KEY --keep 24h", Short: "Let recovery points expire and give back their space, without a vault", Args: cobra.NoArgs,
		Long: "Expire recovery points by age, fold what they leave behind, and delete what nothing needs any more after\n" +
			"a grace of a day. A vault does this by itself: this command is for stores whose vault is gone. It does not\n" +
			"know which points the vault had named or held. --plan only shows which points would expire.\n\n" +
			"Ages count from the newest point of a VM: while replication stands still nothing expires.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			ctx := c.Context()
			if !c.Flags().Changed("keep") {
				return console.Usage("--keep is missing").WithHint("Say how long every recovery point is kept, such as --keep 24h.")
			}
			rules, err := r.rules()
			if err != nil {
				return err
			}
			mode := storage.Write
			if plan {
				mode = storage.ReadOnly
			}
			o, err := f.Open(ctx, a.Console, mode)
			if err != nil {
				return err
			}
			defer console.Closing(&err, o.Close)
			views, err := a.plan(ctx, o, f.machine, rules)
			if err != nil {
				return err
			}
			if !plan {
				return a.maintain(ctx, o, views, rules)
			}
			return a.sayPlan(views)
		}}
	f.add(c, "only this machine, by its id or its VM's name")
	c.Flags().Var(&r.keep, "keep", "how long every recovery point is kept, such as 24h or 3d")
	c.Flags().Var(&r.hourly, "hourly", "until which age one point of each hour is kept, such as 72h")
	c.Flags().Var(&r.daily, "daily", "until which age one point of each day is kept, such as 30d")
	c.Flags().BoolVar(&plan, "plan", false, "only show which points would expire")
	return a.ConfirmFlag(c)
}

func (a *app) plan(ctx context.Context, o *storage.Opened, want string, rules compact.Rules) ([]maintainView, error) {
	found, chains, err := machines(ctx, o.Store, want)
	if err != nil {
		return nil, err
	}
	views := []maintainView{}
	for i, m := range found {
		v := maintainView{Machine: m.Machine, VM: m.VM, Keep: []pointFate{}, Expire: []pointFate{}, Error: m.Error}
		var points []dr.RecoveryPoint
		for _, c := range chains[i].Points {
			points = append(points, c.Point(dr.MachineID(m.Machine)))
		}
		if n := len(chains[i].Refused); n > 0 {
			v.NotReady = fmt.Sprintf("%d cuts are damaged: nothing is deleted while there is damage", n)
		}
		for j, why := range rules.Keep(points, a.Now()) {
			fate := pointFate{points[j].Name(), &points[j].Time, why}
			if why == "" {
				v.Expire = append(v.Expire, fate)
			} else {
				v.Keep = append(v.Keep, fate)
			}
		}
		views = append(views, v)
	}
	return views, nil
}

func (a *app) sayPlan(views []maintainView) error {
	if a.JSON {
		return a.PrintJSON(views)
	}
	type row struct {
		vm string
		pointFate
	}
	var rows []row
	for _, v := range views {
		a.Say("%s: %d points stay, %d would expire%s", cmp.Or(v.VM, v.Machine), len(v.Keep), len(v.Expire), trouble(v))
		for _, p := range v.Expire {
			rows = append(rows, row{cmp.Or(v.VM, v.Machine), p})
		}
	}
	return console.List(a.Console, rows, "No recovery point would expire.", console.Wide("VM", func(r row) string { return r.vm }),
		console.Col("WOULD EXPIRE", func(r row) string { return r.Point }), console.Wide("TIME", func(r row) string { return a.When(r.Time) }))
}

func trouble(v maintainView) string {
	if s := cmp.Or(v.Error, v.NotReady); s != "" {
		return "; " + s
	}
	return ""
}

func (a *app) maintain(ctx context.Context, o *storage.Opened, views []maintainView, rules compact.Rules) error {
	expire, keep := 0, 0
	for _, v := range views {
		expire, keep = expire+len(v.Expire), keep+len(v.Keep)
	}
	if err := a.Confirm("%d recovery points of %d VMs will expire and can't be brought back; %d stay.\nA vault that still works on this store keeps other points, and knows which are held: use\n'holdfast item maintain' there. See --plan for the list.", expire, len(views), keep); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	c := compact.New(compact.Config{Bucket: o.Bucket, Store: o.Store, Keys: o.Keys, Compactor: "command line on " + host, Software: console.Version(),
		BaseEvery: 1}) // runs seldom, and people expect that what has expired is gone
	var failed []string
	var first error
	for i := range views {
		v := &views[i]
		if v.Error != "" {
			failed = append(failed, cmp.Or(v.VM, v.Machine))
			continue
		}
		a.Say("%s: at work", cmp.Or(v.VM, v.Machine))
		r, err := c.Maintain(ctx, dr.MachineID(v.Machine), rules)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.Error, failed = err.Error(), append(failed, cmp.Or(v.VM, v.Machine))
			if first == nil {
				first = err
			}
			continue
		}
		v.Done, v.NotReady = r.NotReady == "", r.NotReady
		v.Expired, v.Runs, v.Tiles, v.Wrote, v.Pending, v.Deleted, v.Freed, v.Objects, v.Bytes = r.Expired, r.Runs, r.Tiles, r.Wrote, r.Pending, r.Deleted, r.Freed, r.Objects, r.Bytes
	}
	if err := console.List(a.Console, views, "The store has no machines.", console.Wide("VM", func(v maintainView) string { return cmp.Or(v.VM, v.Machine) }),
		console.Col("POINTS", func(v maintainView) string { return fmt.Sprint(len(v.Keep)) }), console.Col("EXPIRED", func(v maintainView) string { return fmt.Sprint(v.Expired) }),
		console.Col("WROTE", func(v maintainView) string { return console.Bytes(v.Wrote) }), console.Col("FREED", func(v maintainView) string { return console.Bytes(v.Freed) }),
		console.Col("PENDING", func(v maintainView) string { return fmt.Sprint(v.Pending) }),
		console.Wide("NOTE", func(v maintainView) string { return console.Dash(cmp.Or(v.Error, v.NotReady)) })); err != nil {
		return err
	}
	if len(failed) > 0 {
		kind, hint := dr.KindCorrupt, "Run 'holdfast store scrub' to see what is damaged."
		if first != nil {
			kind, hint = dr.KindOf(first), dr.HintOf(first)
		}
		return dr.New(kind, dr.CodeOf(first), "store.maintain", "maintenance failed for %s", strings.Join(failed, ", ")).WithHint("%s", hint)
	}
	return nil
}
