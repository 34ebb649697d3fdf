package operate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// steering are the commands that steer a running replication.
func (a *app) steering() []*cobra.Command {
	all := []*cobra.Command{a.resyncCommand(), a.pauseCommand(), a.disksCommand(), a.maintainCommand(), a.eventsCommand()}
	for _, act := range []struct {
		verb, short string
		do          func(armclient.ReplicationClient, context.Context, string) (armclient.ProtectedItem, error)
	}{
		{"resume", "End a pause", armclient.ReplicationClient.Resume},
		{"retry", "Try at once what waits to be tried again", armclient.ReplicationClient.RetryNow},
		{"acknowledge", "Say that data which looks encrypted is as it should be", armclient.ReplicationClient.AcknowledgeAnomaly},
	} {
		all = append(all, &cobra.Command{Use: act.verb + " ITEM", Short: act.short, Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			if _, err := act.do(c.Replication(), ctx, s.ResourceID); err != nil {
				return err
			}
			return a.showItem(ctx, c, s.ID)
		})})
	}
	var wait waitFlag
	scrub := &cobra.Command{Use: "scrub ITEM", Short: "Verify everything that the store has of a VM now", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		s, err := c.Items().Summary(ctx, args[0])
		if err != nil {
			return err
		}
		op, err := c.Upkeep().Scrub(ctx, s.ResourceID)
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, wait)
	})}
	return append(all, wait.add(scrub))
}

func (a *app) resyncCommand() *cobra.Command {
	var full bool
	var wait waitFlag
	c := &cobra.Command{Use: "resync ITEM", Short: "Compare source and replica now and send what differs", Args: cobra.ExactArgs(1),
		Long: "Resynchronize a VM now, whatever its policy's window. Its disks are compared with the replica by digests, and\n" +
			"what differs is sent; recovery points stay, and new ones appear meanwhile. --full sends everything again, for when\n" +
			"the replica itself is damaged.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			op, err := c.Replication().Repair(ctx, s.ResourceID, full)
			if err != nil {
				return err
			}
			return a.finish(ctx, c, op, wait)
		})}
	c.Flags().BoolVar(&full, "full", false, "send everything again instead of only what differs")
	return wait.add(c)
}

func (a *app) pauseCommand() *cobra.Command {
	var reason, until string
	c := &cobra.Command{Use: "pause ITEM --reason TEXT", Short: "Pause the replication of a VM", Args: cobra.ExactArgs(1),
		Long: "Pause the replication of a VM. Changes are still tracked, and no recovery point is lost. The pause ends by\n" +
			"itself at --until, or with 'holdfast item resume'.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			at, err := console.ParseUntil(until, a.Now())
			if err != nil {
				return err
			}
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			if _, err := c.Replication().Pause(ctx, s.ResourceID, reason, at); err != nil {
				return err
			}
			return a.showItem(ctx, c, s.ID)
		})}
	c.Flags().StringVar(&reason, "reason", "", "why; shown to everybody")
	c.Flags().StringVar(&until, "until", "", `when it ends by itself: a time span such as 2h or 3d, "18:00", or "2026-03-31 18:00"`)
	console.Required(c, "reason")
	return c
}

func (a *app) disksCommand() *cobra.Command {
	var add, remove []string
	c := &cobra.Command{Use: "disks ITEM", Short: "Show which disks of a VM are replicated, and change it", Args: cobra.ExactArgs(1),
		Long: "Show the disks of a protected VM. --add replicates further ones, --remove leaves some out; the history of\n" +
			"the others goes on.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			for _, x := range []struct {
				disks []string
				do    func(armclient.ReplicationClient, context.Context, string, ...string) (*armclient.Operation, error)
			}{{add, armclient.ReplicationClient.AddDisks}, {remove, armclient.ReplicationClient.RemoveDisks}} {
				if len(x.disks) == 0 {
					continue
				}
				op, err := x.do(c.Replication(), ctx, s.ResourceID, x.disks...)
				if err != nil {
					return err
				}
				if err := op.Wait(ctx, nil, a.progress().update); err != nil {
					return err
				}
			}
			it, err := c.Items().Get(ctx, s.ResourceID)
			if err != nil {
				return err
			}
			return console.List(a.Console, it.Properties.Disks, "The host reports no disks.", console.Col("DISK", func(d armwire.Disk) string { return cmp.Or(d.Name, d.ID) }),
				console.Col("SIZE", func(d armwire.Disk) string { return console.Bytes(d.Bytes) }), console.Wide("REPLICATED", diskText))
		})}
	c.Flags().StringSliceVar(&add, "add", nil, "disks to replicate")
	c.Flags().StringSliceVar(&remove, "remove", nil, "disks to leave out")
	return c
}

func diskText(d armwire.Disk) string {
	switch {
	case d.Unreplicatable != "":
		return "can't be: " + d.Unreplicatable
	case d.Replicated && d.Bytes == 0:
		return "yes, and the host no longer has it"
	case d.Replicated:
		return "yes"
	case d.Undecided:
		return "NO: it is new; add it, or leave it out for good"
	case d.Excluded:
		return "no, left out"
	}
	return "no"
}

func (a *app) maintainCommand() *cobra.Command {
	var plan bool
	var wait waitFlag
	c := &cobra.Command{Use: "maintain ITEM", Short: "Let expired recovery points go now, or show which would", Args: cobra.ExactArgs(1),
		Long: "Make a maintenance pass over a VM's replica now: recovery points that the policy no longer keeps expire, and\n" +
			"their space comes back after a day. The vault does this by itself. --plan only shows what it would do.",
		RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
			s, err := c.Items().Summary(ctx, args[0])
			if err != nil {
				return err
			}
			if !plan {
				op, err := c.Upkeep().Maintain(ctx, s.ResourceID)
				if err != nil {
					return err
				}
				return a.finish(ctx, c, op, wait)
			}
			p, err := c.Upkeep().Plan(ctx, s.ResourceID)
			if err != nil {
				return err
			}
			if a.JSON {
				return a.PrintJSON(p)
			}
			a.Say("%d of %d recovery points would expire.", p.Expiring, len(p.Points))
			expiring := slices.DeleteFunc(p.Points, func(x armwire.PlannedPoint) bool { return !x.Expires })
			return console.List(a.Console, expiring, "Nothing would expire.", console.Col("WOULD EXPIRE", func(x armwire.PlannedPoint) string { return x.Name }),
				console.Wide("TIME", func(x armwire.PlannedPoint) string { return a.When(x.Time) }))
		})}
	c.Flags().BoolVar(&plan, "plan", false, "only show which points would expire")
	return wait.add(c)
}

func (a *app) eventsCommand() *cobra.Command {
	return &cobra.Command{Use: "events ITEM", Short: "What happened with a protected VM, newest first", Args: cobra.ExactArgs(1), RunE: a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		s, err := c.Items().Summary(ctx, args[0])
		if err != nil {
			return err
		}
		all, err := c.Replication().Events(ctx, s.ResourceID)
		if err != nil {
			return err
		}
		return console.List(a.Console, all, "Nothing happened yet.", console.Col("TIME", func(e armwire.Event) string {
			if e.Time == nil {
				return "-"
			}
			return e.Time.Local().Format("2006-01-02 15:04")
		}), console.Wide("BY", func(e armwire.Event) string { return console.Dash(cmp.Or(e.By, e.Agent)) }), console.Wide("WHAT", func(e armwire.Event) string { return e.Text }))
	})}
}

// itemView is what 'item show' prints: the summary, and what an operator wants to
// know beyond it.
type itemView struct {
	armwire.ItemSummary
	Paused      bool             `json:"paused"`
	PauseReason string           `json:"pauseReason,omitempty"`
	ResumeAt    *time.Time       `json:"resumeAt,omitempty"`
	Resync      *armwire.Resync  `json:"resync,omitempty"`
	Anomaly     *armwire.Anomaly `json:"anomaly,omitempty"`
	Disks       []armwire.Disk   `json:"disks"`
	Group       string           `json:"group,omitempty"`
	Upkeep      *armwire.Upkeep  `json:"upkeep,omitempty"`
}

func (a *app) showItem(ctx context.Context, c *armclient.Client, ref string) error {
	s, err := c.Items().Summary(ctx, ref)
	if err != nil {
		return err
	}
	it, err := c.Items().Get(ctx, s.ResourceID)
	if err != nil {
		return err
	}
	p := it.Properties
	v := itemView{ItemSummary: s, Paused: p.Paused, PauseReason: p.PauseReason, ResumeAt: p.ResumeAt, Resync: p.Resync, Anomaly: p.Anomaly, Disks: p.Disks, Group: p.Group}
	if v.Disks == nil {
		v.Disks = []armwire.Disk{}
	}
	up, err := c.Upkeep().Status(ctx, s.ResourceID)
	switch {
	case err == nil:
		v.Upkeep = &up
	case dr.KindOf(err) != dr.KindNotFound && dr.KindOf(err) != dr.KindUnsupported && dr.KindOf(err) != dr.KindPrecondition:
		return err
	}
	points := "none yet"
	if s.Points > 0 {
		points = fmt.Sprintf("%d, newest %s", s.Points, a.When(s.NewestPointTime))
	}
	test := s.TestFailoverState
	if s.LastTest != nil {
		test += ", last success " + a.When(s.LastTest)
	}
	r := s.Replication
	return a.Describe(v, console.F("vm", s.VMName), console.F("item", s.ID), console.F("state", stateText(s)), console.F("health", s.Health), console.F("because", strings.Join(s.HealthMessages, "; ")),
		console.F("paused", a.pauseText(v)), console.F("anomaly", anomalyText(v.Anomaly)), console.F("runs at", s.ActiveLocation), console.F("rpo lag", lagText(s)), console.F("backlog", backlogText(r)),
		console.F("phase", r.Phase), console.F("error", a.errorText(r)), console.F("resync", a.resyncText(v)), console.F("points", points), console.F("note", r.ConsistencyNote),
		console.F("stored", console.Bytes(s.StoredBytes)), console.F("upkeep", a.upkeepText(v.Upkeep)), console.F("disks", disksText(v.Disks)), console.F("group", v.Group),
		console.F("test failover", test), console.F("job", s.CurrentJob), console.F("possible", strings.Join(s.AllowedOperations, ", ")))
}

func (a *app) pauseText(v itemView) string {
	if !v.Paused {
		return ""
	}
	text := cmp.Or(v.PauseReason, "yes")
	if v.ResumeAt != nil {
		text += "; goes on " + a.When(v.ResumeAt)
	}
	return text
}

func anomalyText(x *armwire.Anomaly) string {
	if x == nil {
		return ""
	}
	text := "LOOKS ENCRYPTED since point " + x.Since
	if x.Good != "" {
		text += "; last good point " + x.Good + ", which is held"
	}
	return text + ". " + x.Why
}

// backlogText says how much is behind, and whether it gets less.
func backlogText(r armwire.Replication) string {
	text := console.Bytes(r.BacklogBytes)
	rates := ""
	if r.ChangeBytesPerSecond > 0 || r.ShipBytesPerSecond > 0 {
		rates = fmt.Sprintf(": the VM changes %s/s, %s/s can be sent", console.Bytes(r.ChangeBytesPerSecond), console.Bytes(r.ShipBytesPerSecond))
	}
	switch dr.Convergence(r.Convergence) {
	case dr.Converging:
		text += ", getting less" + rates
		if r.BacklogSeconds > 0 {
			text += ", drained in " + console.Short(console.Seconds(r.BacklogSeconds))
		}
	case dr.NotConverging:
		text += ", GROWING" + rates
	case dr.ConvergenceUnknown:
		text += ", too early to tell whether it gets less"
	}
	return text
}

func (a *app) errorText(r armwire.Replication) string {
	text := r.Error
	if r.ErrorCode != "" {
		text += " (" + r.ErrorCode + ")"
	}
	if r.RetryAt != nil {
		text += fmt.Sprintf("; attempt %d, next %s", r.Attempt, a.When(r.RetryAt))
	}
	if e, ok := dr.Lookup(dr.Code(r.ErrorCode)); ok && text != "" {
		text += "\n" + e.Remedy
	}
	return text
}

func (a *app) resyncText(v itemView) string {
	r := v.Resync
	if r == nil {
		return v.ResyncReason
	}
	text := cmp.Or(r.Reason, r.Code)
	switch r.State {
	case armwire.ResyncRunning:
		text += fmt.Sprintf("\nruns: %.0f%%, %s of %s", r.Percent, console.Bytes(r.BytesDone), console.Bytes(r.BytesTotal))
		if r.ETASeconds > 0 {
			text += ", " + console.Short(console.Seconds(r.ETASeconds)) + " left"
		}
	case armwire.ResyncWaiting:
		text += "\nbegins " + a.When(r.NextWindow) + "; now: holdfast item resync"
	default:
		text += "\nwaits for you: holdfast item resync " + v.VMName
	}
	return text
}

func (a *app) upkeepText(u *armwire.Upkeep) string {
	if u == nil {
		return ""
	}
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if u.LastPass != nil {
		add("last pass %s: %d points expired, %s freed", a.When(u.LastPass), u.ExpiredPoints, console.Bytes(u.FreedBytes))
	}
	if u.PassError != nil {
		add("FAILED: %s", u.PassError.ErrorMessage)
	}
	if u.LastScrub != nil {
		add("last scrub %s: %s verified", a.When(u.LastScrub), console.Bytes(u.ScrubBytes))
	} else {
		add("never scrubbed")
	}
	if n := len(u.Damaged); n > 0 {
		add("DAMAGED: %d points, the first is %s: %s", n, u.Damaged[0].Point, u.Damaged[0].Text)
	}
	return strings.Join(out, "\n")
}

// disksText names the disks that are not replicated.
func disksText(disks []armwire.Disk) string {
	var out []string
	for _, d := range disks {
		if !d.Replicated {
			out = append(out, cmp.Or(d.Name, d.ID)+": "+diskText(d))
		}
	}
	if len(disks) > 0 && len(out) == 0 {
		return fmt.Sprintf("all %d are replicated", len(disks))
	}
	return strings.Join(out, "\n")
}

// pointNameCommand is 'point name'.
func (a *app) pointNameCommand() *cobra.Command {
	var name string
	var hold bool
	c := &cobra.Command{Use: "name ITEM POINT", Short: "Name a recovery point, or hold it whatever its age", Args: cobra.ExactArgs(2),
		Long: "Give a recovery point a name (--name), so that people find it and retention keeps it, or hold it (--hold) until\n" +
			"--hold=false. An empty name takes the name away. POINT is a point's name, or latest.",
	}
	c.RunE = a.withClient(func(ctx context.Context, cl *armclient.Client, args []string) error {
		var u armwire.PointUpdate
		if c.Flags().Changed("name") {
			u.Name = &name
		}
		if c.Flags().Changed("hold") {
			u.Held = &hold
		}
		if u.Name == nil && u.Held == nil {
			return console.Usage("give --name, --hold or both")
		}
		s, err := cl.Items().Summary(ctx, args[0])
		if err != nil {
			return err
		}
		all, err := cl.Items().Points(ctx, s.ResourceID)
		if err != nil {
			return err
		}
		want := args[1]
		if strings.EqualFold(want, "latest") {
			want = s.NewestPoint
		}
		p, err := find(all, "recovery point", want, "holdfast point list "+args[0], func(p armclient.RecoveryPoint) bool { return p.Name == want || p.ID == want })
		if err != nil {
			return err
		}
		if p, err = cl.Replication().UpdatePoint(ctx, p.ID, u); err != nil {
			return err
		}
		v := pointView(p)
		held := "no"
		if v.Held {
			held = "yes"
		}
		return a.Describe(v, console.F("point", v.Name), console.F("name", v.Label), console.F("held", held), console.F("time", a.When(v.Time)))
	})
	c.Flags().StringVar(&name, "name", "", "what people call it")
	c.Flags().BoolVar(&hold, "hold", false, "keep it whatever retention says")
	return c
}

func pointView(p armclient.RecoveryPoint) PointView {
	q := p.Properties
	return PointView{Name: p.Name, Time: q.RecoveryPointTime, Consistency: q.Consistency, Resync: q.Resync, DirtyBytes: q.DirtyBytes, StoredBytes: q.StoredBytes,
		Label: q.Label, Held: q.Held, Keep: q.Keep, Note: q.Note, Suspect: q.Suspect}
}
