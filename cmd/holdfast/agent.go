package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/hosting"
	"holdfast/cmd/holdfast/internal/hosttool"
	"holdfast/internal/agent"
	"holdfast/internal/agent/assignment"
	"holdfast/internal/agent/channel"
	"holdfast/internal/agentapi"
	"holdfast/internal/armwire"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/hypervisor"
	"holdfast/internal/pace"
	"holdfast/internal/recovery/hostsite"
	"holdfast/internal/store"
)

func (a *app) agentCommand() *cobra.Command {
	c := &cobra.Command{Use: "agent", Short: "Register a host and run its agent"}
	c.AddCommand(a.agentRegisterCommand(), a.agentRunCommand(), a.agentServePointCommand(), a.agentServiceCommand())
	c.AddCommand(hosttool.Commands(a.Console)...)
	return c
}

func (a *app) agentRegisterCommand() *cobra.Command {
	var key, state, host string
	var roles []string
	var proxy hosting.Proxy
	c := &cobra.Command{
		Use: "register --key FILE", Short: "Register this host with a vault", Args: cobra.NoArgs,
		Long: "Register this host with the vault that issued the registration key file. It may be repeated, for\n" +
			"example with a key of another site. Run it as root or administrator.\n\n" +
			"Roles: source replicates this host's VMs, recovery runs VMs from recovery points, vmm tells what a VMM\n" +
			"server manages (on that server or another machine that has VMM's console).",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), 2*time.Minute)
			defer cancel()
			cfg := agent.RegisterConfig{HostName: host, Version: console.Version(), Log: slog.New(slog.DiscardHandler)}
			var err error
			if cfg.StateDir, err = filepath.Abs(state); err != nil {
				return console.Usage("--state: %v", err)
			}
			if cfg.Roles, err = parseRoles(roles); err != nil {
				return err
			}
			if cfg.Key, err = readRegistrationKey(key, a.Now()); err != nil {
				return err
			}
			if _, err := proxy.Apply(cfg.Key.VaultURL); err != nil {
				return err
			}
			if err := hosting.Protect(cfg.StateDir); err != nil {
				return err
			}
			reg, err := agent.Register(ctx, cfg)
			if err != nil {
				return err
			}
			v := struct {
				Agent    string         `json:"agent"`
				Host     string         `json:"host"`
				Site     string         `json:"site"`
				Vault    string         `json:"vault"`
				Roles    []dr.AgentRole `json:"roles"`
				NotAfter time.Time      `json:"certificateExpires"`
			}{string(reg.AgentID), reg.Host, reg.FabricName, reg.VaultURL, reg.Roles, reg.NotAfter}
			if err := a.Describe(v, console.F("agent", v.Agent), console.F("host", v.Host), console.F("site", v.Site), console.F("vault", v.Vault), console.F("roles", strings.Join(roles, ","))); err != nil {
				return err
			}
			a.Say("\nThe host is registered. Next:\n  holdfast agent run --state %s", cfg.StateDir)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "registration key file of a site")
	f.StringVar(&state, "state", hosting.DefaultState(), "state directory of the agent")
	f.StringSliceVar(&roles, "role", []string{string(dr.RoleSource)}, "what this host is for: source, recovery or source,recovery; vmm for a VMM server")
	f.StringVar(&host, "host-name", "", "name shown in the vault (default: the system's)")
	proxy.Add(c)
	console.Required(c, "key", "state")
	return c
}

func parseRoles(words []string) (roles []dr.AgentRole, err error) {
	for _, w := range words {
		switch r := dr.AgentRole(strings.TrimSpace(w)); r {
		case dr.RoleSource, dr.RoleRecovery, dr.RoleVMM:
			roles = append(roles, r)
		default:
			return nil, console.Usage("--role %q is none of source, recovery and vmm", w)
		}
	}
	return roles, nil
}

// readRegistrationKey reads a key file. Its secret stays out of every text.
func readRegistrationKey(path string, now time.Time) (agent.RegistrationKey, error) {
	raw, err := console.ReadSmall(path)
	if err != nil {
		return agent.RegistrationKey{}, console.ClassifyAs(err, "read the registration key file")
	}
	f, err := armwire.DecodeKeyFile(raw)
	if err != nil {
		return agent.RegistrationKey{}, dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyInvalid, "agent.register", "%s: %w", path, err)
	}
	k := f.Credential
	if !k.Expires.IsZero() && now.Sub(k.Expires) > time.Hour { // the vault decides; a clock may be wrong
		return agent.RegistrationKey{}, dr.New(dr.KindUnauthenticated, dr.CodeRegistrationKeyExpired, "agent.register", "the registration key %s was good until %s", k.KeyID, k.Expires.Local().Format(time.DateTime))
	}
	return agent.RegistrationKey{VaultURL: k.VaultURL, CAPin: k.CAPin, KeyID: k.KeyID, Secret: k.Secret}, nil
}

// runOptions are the flags of agent run.
type runOptions struct {
	state, runDir    string
	host             hosting.Flags
	bandwidth, spool console.Size
	hours            []string
	turns            [3]int // cuts, transfers, scans
	logs             console.LogFlags
	vmm              hosting.VMM
	proxy            hosting.Proxy
}

func (a *app) agentRunCommand() *cobra.Command {
	var o runOptions
	var service bool
	c := &cobra.Command{
		Use: "run", Short: "Run this host's agent until SIGTERM or Ctrl-C", Args: cobra.NoArgs,
		Long: "Run the agent of a registered host. It calls the vault; nothing listens on the host. Recovery VMs\n" +
			"go on running when the agent stops.",
		RunE: func(c *cobra.Command, _ []string) error {
			if service {
				return a.agentAsService(o)
			}
			log, err := o.logs.Open(a.Err)
			if err != nil {
				return err
			}
			return a.agentRun(c.Context(), o, log)
		},
	}
	o.add(c)
	c.Flags().BoolVar(&service, "service", false, "run as the Windows service, which the service control manager starts")
	_ = c.Flags().MarkHidden("service") // fails only for a flag that is not there
	return c
}

// add adds the flags to a command.
func (o *runOptions) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.state, "state", hosting.DefaultState(), "state directory, as given to register")
	o.host.Add(c)
	o.vmm.Add(c)
	o.proxy.Add(c)
	f.StringVar(&o.runDir, "run-dir", "", "directory for the sockets of recovery points (default: as --dir)")
	f.Var(&o.bandwidth, "bandwidth", "limit of all uploads, bytes a second such as 20M (default: none)")
	f.StringArrayVar(&o.hours, "bandwidth-hours", nil, "another limit at some hours, such as \"Mon-Fri 08:00-18:00=5M\" (0 = none); may be repeated, the first that fits counts")
	f.IntVar(&o.turns[0], "cuts", 0, fmt.Sprintf("how many VMs may hold a frozen image at once (default: %d)", pace.DefaultSlots(pace.Cut)))
	f.IntVar(&o.turns[1], "transfers", 0, fmt.Sprintf("how many VMs may send at once (default: %d)", pace.DefaultSlots(pace.Transfer)))
	f.IntVar(&o.turns[2], "scans", 0, fmt.Sprintf("how many VMs may be read as a whole at once, for initial replication or resynchronization (default: %d)", pace.DefaultSlots(pace.Scan)))
	f.Var(&o.spool, "spool-limit", "limit of the spool of each VM, such as 8G (default: 4G)")
	o.logs.Add(c)
}

// rules are the limits of all uploads, and what else is a matter of flags alone.
func (o runOptions) rules() ([]dr.BandwidthRule, error) {
	for i, flag := range []string{"cuts", "transfers", "scans"} {
		if o.turns[i] < 0 {
			return nil, console.Usage("--%s %d is negative", flag, o.turns[i])
		}
	}
	rate := func(text string) (int64, error) {
		var s console.Size
		err := s.Set(text)
		return int64(s), err
	}
	rules, err := assignment.ParseRules(o.hours, rate, int64(o.bandwidth))
	if err != nil {
		return nil, console.Usage("--bandwidth, --bandwidth-hours: %v", err)
	}
	return rules, nil
}

// dirs are the directories that the flags name: of the state, of the product, and of sockets.
func (o runOptions) dirs() (state, dir, runDir string, err error) {
	if state, err = filepath.Abs(o.state); err != nil {
		return "", "", "", console.Usage("--state: %v", err)
	}
	if dir, err = hosting.ProductDir(state, o.host.Dir); err != nil {
		return "", "", "", err
	}
	runDir = dir
	if o.runDir != "" {
		if runDir, err = filepath.Abs(o.runDir); err != nil {
			return "", "", "", console.Usage("--run-dir: %v", err)
		}
	}
	return state, dir, runDir, nil
}

// agentRun runs the agent until ctx ends.
func (a *app) agentRun(ctx context.Context, o runOptions, log *slog.Logger) (err error) {
	rules, err := o.rules()
	if err != nil {
		return err
	}
	state, dir, runDir, err := o.dirs()
	if err != nil {
		return err
	}
	reg, err := channel.LoadRegistration(state)
	if err != nil {
		return err
	}
	lost, err := o.proxy.Apply(reg.VaultURL)
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		log.Warn("exceptions of the machine's proxy are not understood and not kept; name them with --no-proxy", "exceptions", strings.Join(lost, " "))
	}
	cfg := agent.Config{StateDir: state, RunDir: runDir, Version: console.Version(), SpoolLimit: int64(o.spool), Log: log,
		Cuts: o.turns[0], Transfers: o.turns[1], Scans: o.turns[2], Bandwidth: rules}
	if slices.Contains(reg.Roles, dr.RoleVMM) {
		if cfg.VMM, err = o.vmm.Open(); err != nil {
			return err
		}
	} else if o.vmm.Given() {
		return dr.Errorf(dr.KindPrecondition, "agent.run", "this host is not registered with the role vmm").
			WithHint("Register it with a key of a site of the type vmm: 'holdfast agent register --role vmm --key FILE'.")
	}
	recovers := slices.Contains(reg.Roles, dr.RoleRecovery)
	if recovers || slices.Contains(reg.Roles, dr.RoleSource) {
		var host hypervisor.Host
		if host, err = a.agentHost(ctx, o, &cfg, dir, recovers); err != nil {
			return err
		}
		defer console.Closing(&err, host.Close)
	}
	ag, err := agent.New(cfg)
	if err != nil {
		return err
	}
	if err := ag.Start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	log.Info("the agent is stopping")
	return ag.Close()
}

// azureLook is how often a VM in Azure is looked at while it boots: every look is some
// calls of the resource manager, which are limited for the whole subscription.
const azureLook = 3 * time.Second

// agentHost opens the host's hypervisor, and what recovers VMs on it.
func (a *app) agentHost(ctx context.Context, o runOptions, cfg *agent.Config, dir string, recovers bool) (host hypervisor.Host, err error) {
	root := ""
	if recovers {
		if root, err = agent.ServingRoot(cfg.StateDir, cfg.RunDir); err != nil {
			return nil, err
		}
	}
	if host, err = o.host.Open(ctx, dir, cfg.Log); err != nil {
		return nil, err
	}
	cfg.Host = host
	if !recovers {
		return host, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, errors.Join(dr.Errorf(dr.KindInternal, "agent.run", "find this program: %w", err), host.Close())
	}
	launcher := &hydrate.Launcher{Root: root, Argv: []string{self, "agent", "serve-point", "--state", cfg.StateDir, "--run-dir", cfg.RunDir}}
	site := hostsite.Config{Host: host, Servings: launcher, Dir: filepath.Join(dir, "recovery"), Image: o.host.Image(), Log: cfg.Log}
	if cloud, ok := host.(*hosting.Azure); ok {
		site.Every = azureLook
		w, err := cloud.Warm(ctx)
		if err != nil {
			return nil, errors.Join(err, host.Close())
		}
		if w != nil {
			cfg.Warm = w
			site.Images = func(ctx context.Context, p agentapi.BootPayload) (map[string]string, error) {
				return w.Images(ctx, p, func(ctx context.Context, serving string) (*store.Store, func() error, error) {
					point, err := agent.OpenPoint(ctx, cfg.StateDir, serving)
					if err != nil {
						return nil, nil, err
					}
					return point.Store(), point.Close, nil
				})
			}
		}
	}
	cfg.Recovery = hostsite.New(site)
	return host, nil
}

// agentServePointCommand is what hydrate.Launcher starts for each recovery
// point that a VM runs from. It is not for people.
func (a *app) agentServePointCommand() *cobra.Command {
	var state, runDir string
	c := &cobra.Command{
		Use: "serve-point SERVING", Short: "Serve a recovery point over NBD", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			root, err := agent.ServingRoot(state, runDir)
			if err == nil && (args[0] == "" || args[0] != filepath.Base(args[0]) || args[0][0] == '.') {
				err = console.Usage("%q is not the id of a serving", args[0])
			}
			if err != nil {
				return err
			}
			err = agent.ServePoint(c.Context(), state, args[0], filepath.Join(root, args[0]))
			if errors.Is(err, context.Canceled) && c.Context().Err() != nil {
				return nil // told to stop
			}
			return err
		},
	}
	c.Flags().StringVar(&state, "state", "", "state directory of the agent")
	c.Flags().StringVar(&runDir, "run-dir", "", "directory for sockets")
	console.Required(c, "state")
	return c
}
