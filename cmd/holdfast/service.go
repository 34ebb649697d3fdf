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
	"github.com/spf13/pflag"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/dr"
	"holdfast/internal/winservice"
)

// serviceName is that of the installer, too (packaging/windows/holdfast.wxs).
const serviceName = "HoldfastAgent"

// serviceWait bounds how long a command waits for the service to start or stop.
const serviceWait = 90 * time.Second

// serviceState is what 'agent service' prints.
type serviceState struct {
	Service  string `json:"service"`
	State    string `json:"state"`
	PID      uint32 `json:"pid,omitempty"`
	ExitCode uint32 `json:"exitCode"`
}

func (a *app) agentServiceCommand() *cobra.Command {
	c := &cobra.Command{Use: "service", Short: "The agent as a service of Windows",
		Long: "Control the agent as a service of Windows, as an administrator. The installer makes the service by itself.\n\n" +
			"On Linux the agent is a service of systemd, which runs 'holdfast agent run'."}
	var o runOptions
	install := &cobra.Command{Use: "install", Short: "Make the service, or change with which flags it runs the agent", Args: cobra.NoArgs,
		Long: "Make the service, or change the flags with which it runs the agent: it takes those of 'agent run'. The service\n" +
			"begins with Windows and is not started yet. Every user of this machine can read its flags."}
	o.add(install)
	var names []string
	install.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	install.RunE = func(c *cobra.Command, _ []string) error {
		if _, err := o.rules(); err != nil {
			return err
		}
		if _, err := o.logs.Level(); err != nil {
			return err
		}
		exe, err := os.Executable()
		if err != nil {
			return dr.Errorf(dr.KindInternal, "agent.service", "find this program: %w", err)
		}
		args, err := serviceArgs(c.Flags(), names)
		if err != nil {
			return err
		}
		return a.serviceDo(c.Context(), func(ctx context.Context) error {
			return winservice.Install(ctx, winservice.Config{Name: serviceName, Display: "Holdfast agent", Exe: exe, Args: args,
				Description: "Replicates virtual machines of this host to the vault's object store, and recovers them."})
		})
	}
	c.AddCommand(install)
	for _, x := range []struct {
		verb, short string
		do          func(ctx context.Context, name string) error
	}{
		{"remove", "Stop and delete the service; state and keys stay", winservice.Remove},
		{"start", "Start the service", winservice.Start},
		{"stop", "Stop the service; replication goes on when it is started again", winservice.Stop},
		{"status", "Show what the service does", func(context.Context, string) error { return nil }},
	} {
		c.AddCommand(&cobra.Command{Use: x.verb, Short: x.short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return a.serviceDo(c.Context(), func(ctx context.Context) error { return x.do(ctx, serviceName) })
		}})
	}
	return c
}

// serviceDo does something to the service and shows how it is then.
func (a *app) serviceDo(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, serviceWait)
	defer cancel()
	if err := do(ctx); err != nil {
		return onlyWindows(err)
	}
	st, err := winservice.Query(ctx, serviceName)
	if err != nil {
		return onlyWindows(err)
	}
	v := serviceState{serviceName, string(st.State), st.PID, st.ExitCode}
	fields := []console.Field{console.F("service", v.Service), console.F("state", v.State)}
	if v.PID != 0 {
		fields = append(fields, console.F("process", fmt.Sprint(v.PID)))
	}
	if v.ExitCode != 0 {
		fields = append(fields, console.F("last exit code", fmt.Sprint(v.ExitCode)))
	}
	return a.Describe(v, fields...)
}

// onlyWindows says what to do where there are no services of Windows.
func onlyWindows(err error) error {
	var e *dr.Error
	if dr.KindOf(err) != dr.KindUnsupported || !errors.As(err, &e) {
		return err
	}
	return dr.Errorf(dr.KindUnsupported, "agent.service", "services of Windows exist only on Windows").
		WithHint("Let systemd run 'holdfast agent run' here.")
}

// pathFlags name files, which a service can't look for in the directory where it was installed from.
var pathFlags = []string{"state", "dir", "run-dir", "hyperv-files", "hyperv-password-file", "hyperv-ca"}

// serviceArgs is the command line of a service that runs with the flags that were given.
func serviceArgs(flags *pflag.FlagSet, names []string) (args []string, err error) {
	args = []string{"agent", "run", "--service"}
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Changed || !slices.Contains(names, f.Name) {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			if slices.Contains(pathFlags, f.Name) && v != "" || f.Name == "vmm-powershell" && strings.ContainsAny(v, `/\`) {
				abs, aerr := filepath.Abs(v)
				if aerr != nil {
					err = errors.Join(err, console.Usage("--%s: %v", f.Name, aerr))
				}
				v = abs
			}
			args = append(args, "--"+f.Name+"="+v)
		}
	})
	return args, err
}

// agentAsService runs the agent for the service control manager; its log is the event log.
func (a *app) agentAsService(o runOptions) error {
	level, err := o.logs.Level()
	if err != nil {
		return err
	}
	handler, closeLog, err := winservice.EventLog(serviceName, level)
	if err != nil {
		return onlyWindows(err)
	}
	log := slog.New(handler)
	err = winservice.Run(winservice.RunConfig{Name: serviceName, Log: log}, func(ctx context.Context) error { return a.agentRun(ctx, o, log) })
	return errors.Join(err, closeLog())
}
