package operate

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/armclient"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
)

// policySettings are the flags that make and change a policy.
type policySettings struct {
	every, app                  time.Duration
	keep, hourly, daily         console.Duration
	resyncMode, resyncWindow    string
	initialWindow, initialStart string
	compression, threshold      string
	serial                      bool
	priority                    int
	bandwidth                   string
}

func (s *policySettings) add(c *cobra.Command) {
	f := c.Flags()
	s.keep = console.Duration(24 * time.Hour)
	f.DurationVar(&s.every, "every", 5*time.Minute, "how often changes are copied, from 5s to 24h")
	f.Var(&s.keep, "keep", "how long every recovery point is kept, such as 24h or 3d; 0 keeps only the latest")
	f.Var(&s.hourly, "hourly", "until which age one point of each hour is kept, such as 72h; 0 = none")
	f.Var(&s.daily, "daily", "until which age one point of each day is kept, such as 30d; 0 = none")
	f.DurationVar(&s.app, "app-every", 0, "how often a point is application-consistent; 0 is never")
	f.StringVar(&s.resyncMode, "resync-mode", "", "when a resynchronization begins by itself: window, now or manual")
	f.StringVar(&s.resyncWindow, "resync-window", "", `when it may begin, such as "18:30-06:00" or "Sat-Sun 00:00-24:00"`)
	f.StringVar(&s.threshold, "resync-threshold", "", "share of the disks' size whose pending change asks for one, such as 50%; off")
	f.StringVar(&s.initialWindow, "initial-window", "", "when the initial replication may send")
	f.StringVar(&s.initialStart, "initial-start", "", "when it may begin: date and time with zone, as in 2026-01-31T22:00:00+01:00")
	f.BoolVar(&s.serial, "serial", false, "initial replication: one disk after the other")
	f.IntVar(&s.priority, "priority", 0, "initial replication: -10 to 10, higher goes first")
	f.StringVar(&s.bandwidth, "bandwidth", "", `limits of all its VMs together, bytes a second: "Mon-Fri 08:00-18:00=5M,20M"; none`)
	f.StringVar(&s.compression, "compression", "", "zstd (small), fast (little CPU) or none")
}

// settings are what the flags that were given say; all of them when a policy is made.
func (s *policySettings) settings(c *cobra.Command, name string, all bool) (armwire.PolicySettings, error) {
	given := func(flag string) bool { return c.Flags().Changed(flag) }
	var out armwire.PolicySettings
	p := dr.Policy{Name: name, CopyFrequency: s.every, Retention: time.Duration(s.keep), AppFrequency: s.app, RetainHourly: time.Duration(s.hourly), RetainDaily: time.Duration(s.daily),
		StartTime: s.initialStart, ResyncAuto: dr.ResyncMode(s.resyncMode), InitialPriority: s.priority, Compression: dr.Compression(s.compression)}
	seconds := func(d time.Duration) *int64 { n := int64(d / time.Second); return &n }
	if all || given("every") {
		n := int32(s.every / time.Second)
		out.ReplicationInterval = &n
	}
	if all || given("keep") {
		out.RetentionSeconds = seconds(p.Retention)
	}
	if all || given("app-every") {
		out.AppFrequencySeconds = seconds(s.app)
	}
	if given("hourly") {
		out.RetainHourlySeconds = seconds(p.RetainHourly)
	}
	if given("daily") {
		out.RetainDailySeconds = seconds(p.RetainDaily)
	}
	for _, x := range []struct {
		flag string
		from *string
		to   **string
	}{{"resync-mode", &s.resyncMode, &out.ResyncMode}, {"resync-window", &s.resyncWindow, &out.ResyncWindow}, {"initial-window", &s.initialWindow, &out.InitialWindow},
		{"initial-start", &s.initialStart, &out.OnlineReplicationStartTime}, {"compression", &s.compression, &out.Compression}} {
		if given(x.flag) {
			*x.to = x.from
		}
	}
	if given("serial") {
		mode := string(dr.InitialParallel)
		if s.serial {
			mode = string(dr.InitialSerial)
		}
		out.InitialMode = &mode
	}
	if given("priority") {
		out.InitialPriority = &s.priority
	}
	if err := s.rest(given, &p, &out); err != nil {
		return out, err
	}
	if !all { // the vault judges it together with what stays
		return out, nil
	}
	return out, p.Validate()
}

// rest reads the settings that have a form of their own.
func (s *policySettings) rest(given func(string) bool, p *dr.Policy, out *armwire.PolicySettings) (err error) {
	for _, text := range []string{s.resyncWindow, s.initialWindow} {
		if text != "" {
			if _, err := dr.ParseWindow(text); err != nil {
				return err
			}
		}
	}
	if given("resync-threshold") {
		if p.ResyncThreshold, err = parseShare(s.threshold); err != nil {
			return err
		}
		out.ResyncThreshold = &p.ResyncThreshold
	}
	if given("bandwidth") {
		rules, err := parseBandwidth(s.bandwidth)
		if err != nil {
			return err
		}
		for _, r := range rules {
			var w dr.Window
			if r.Window != "" {
				if w, err = dr.ParseWindow(r.Window); err != nil {
					return err
				}
			}
			p.Bandwidth = append(p.Bandwidth, dr.BandwidthRule{Window: w, BytesPerSecond: r.BytesPerSecond})
		}
		out.Bandwidth = &rules
	}
	return nil
}

// parseShare reads 50%, 0.5 or off.
func parseShare(text string) (float64, error) {
	if text == "off" {
		return -1, nil
	}
	var v float64
	number, percent := strings.CutSuffix(text, "%")
	if n, err := fmt.Sscanf(number, "%g", &v); err != nil || n != 1 || v <= 0 {
		return 0, console.Usage("--resync-threshold %q is not a share such as 50%%, nor off", text)
	}
	if percent {
		v /= 100
	}
	return v, nil
}

// parseBandwidth reads rules like "Mon-Fri 08:00-18:00=5M,20M": a window and its
// limit, and at the end the limit for the rest of the time. Windows may have
// commas themselves.
func parseBandwidth(text string) ([]armwire.BandwidthRule, error) {
	rules := []armwire.BandwidthRule{}
	if text == "none" {
		return rules, nil
	}
	wrong := func(what string) error {
		return console.Usage("--bandwidth %q: %s", text, what).WithHint(`Write rules like "Mon-Fri 08:00-18:00=5M,20M": bytes a second in a window, then for the rest; unlimited is a limit too.`)
	}
	window := "" // begun, its limit still to come
	for piece := range strings.SplitSeq(text, ",") {
		piece = strings.TrimSpace(piece)
		head, limit, has := strings.Cut(piece, "=")
		if !has {
			n, err := parseRate(piece)
			if err != nil || window != "" {
				window = strings.TrimPrefix(window+", "+piece, ", ")
				continue
			}
			rules = append(rules, armwire.BandwidthRule{BytesPerSecond: n})
			continue
		}
		n, err := parseRate(strings.TrimSpace(limit))
		if err != nil {
			return nil, wrong(err.Error())
		}
		rules = append(rules, armwire.BandwidthRule{Window: strings.TrimPrefix(window+", "+strings.TrimSpace(head), ", "), BytesPerSecond: n})
		window = ""
	}
	if window != "" {
		return nil, wrong(fmt.Sprintf("%q has no limit", window))
	}
	return rules, nil
}

func parseRate(text string) (int64, error) {
	if text == "unlimited" {
		return 0, nil
	}
	var s console.Size
	if err := s.Set(strings.TrimSuffix(text, "/s")); err != nil {
		return 0, err
	}
	return int64(s), nil
}

// policyChanges are 'policy create' and 'policy update'.
func (a *app) policyChanges() []*cobra.Command {
	var made, changed policySettings
	var createWait, updateWait waitFlag
	create := &cobra.Command{Use: "create NAME", Short: "Create a policy", Args: cobra.ExactArgs(1)}
	create.RunE = a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		s, err := made.settings(create, args[0], true)
		if err != nil {
			return err
		}
		all, err := c.Policies(ctx)
		if err != nil {
			return err
		}
		for _, p := range all { // saving would change it
			if strings.EqualFold(p.Name, args[0]) {
				return dr.New(dr.KindConflict, dr.CodeAlreadyExists, "holdfast.policy", "there is a policy %q already", p.Name).WithHint("Change it with 'holdfast policy update %s'.", p.Name)
			}
		}
		op, err := c.SavePolicy(ctx, args[0], s)
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, createWait)
	})
	made.add(create)
	update := &cobra.Command{Use: "update NAME", Short: "Change settings of a policy", Args: cobra.ExactArgs(1),
		Long: "Change the settings that are given; the others stay. The hosts of its VMs hear of it within a minute."}
	update.RunE = a.withClient(func(ctx context.Context, c *armclient.Client, args []string) error {
		s, err := changed.settings(update, args[0], false)
		if err != nil {
			return err
		}
		all, err := c.Policies(ctx)
		if err != nil {
			return err
		}
		p, err := find(all, "policy", args[0], "holdfast policy list", func(p armclient.Policy) bool { return strings.EqualFold(p.Name, args[0]) })
		if err != nil {
			return err
		}
		s.InstanceType = armwire.HyperVReplicaAzure
		op, err := c.Change(ctx, http.MethodPatch, p.ID, armwire.Input[armwire.PolicyUpdate]{Properties: armwire.PolicyUpdate{ReplicationProviderSettings: armwire.NewVariant(s)}})
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, updateWait)
	})
	changed.add(update)
	return []*cobra.Command{createWait.add(create), updateWait.add(update)}
}
