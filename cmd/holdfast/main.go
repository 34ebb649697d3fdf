// Command holdfast is the whole product in one program: the vault, the agent
// on a host, the operator's commands over the vault's REST API, and the tools
// that read a store without any vault.
//
// It owns the wiring, the flags and what is printed; nothing else. Promises
// (docs/cli.md): data goes to standard output and everything else to standard
// error, --output json has documented fields, the exit code tells the class of
// an error, no secret is taken from or shown on a command line, and nothing is
// destroyed without a question or --yes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"holdfast/internal/dr"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now, width: minWidth}
	a.live = term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb"
	a.ask = a.live && term.IsTerminal(int(os.Stdin.Fd()))
	if w, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		a.width = max(w, minWidth)
	}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// app is what all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
	width    int  // columns of tables
	live     bool // progress may be redrawn
	ask      bool // there is a person to ask

	json bool // --output json
	yes  bool // --yes
}

// run executes a command line and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	return a.report(err)
}

func (a *app) root() *cobra.Command {
	output := "table"
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Site recovery for virtual machines",
		Long: "Holdfast replicates virtual machines into an object store and boots them elsewhere.\n\n" +
			"Exit codes tell the class of an error: see 'holdfast help exit-codes'.",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			a.json = output == "json"
			if !a.json && output != "table" {
				return usage("--output %q is neither table nor json", output)
			}
			return nil
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.PersistentFlags().StringVarP(&output, "output", "o", output, "what to print: table or json")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%v", err).WithHint("See '%s --help'.", c.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "daily", Title: "Protect and fail over:"}, &cobra.Group{ID: "setup", Title: "Set up:"}, &cobra.Group{ID: "tools", Title: "Without a vault:"})
	add := func(group string, cs ...*cobra.Command) {
		for _, c := range cs {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("daily", a.itemCommand(), a.pointCommand(), a.jobCommand(), a.vmCommand())
	add("setup", a.vaultCommand(), a.loginCommand(), a.siteCommand(), a.providerCommand(), a.policyCommand(), a.mappingCommand(), a.agentCommand())
	add("tools", a.storeCommand())
	root.AddCommand(a.versionCommand(), exitCodesTopic())
	checkArgs(root)
	return root
}

// checkArgs makes wrong words and numbers of arguments usage errors.
func checkArgs(c *cobra.Command) {
	if c.HasSubCommands() && c.Run == nil && c.RunE == nil {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			e := usage("%q is not a command of '%s'", args[0], c.CommandPath()).WithHint("See '%s --help'.", c.CommandPath())
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				e.Hint = "Did you mean: " + strings.Join(near, ", ") + "?"
			}
			return e
		}
	} else if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage("%v", err).WithHint("Usage: %s", c.UseLine())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		checkArgs(sub)
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		v := struct {
			Version  string `json:"version"`
			Go       string `json:"go"`
			Platform string `json:"platform"`
		}{version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
		if a.json {
			return a.printJSON(v)
		}
		_, err := fmt.Fprintf(a.out, "holdfast %s (%s, %s)\n", v.Version, v.Go, v.Platform)
		return err
	}}
}

// version is what the build system recorded.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// usage makes the error of a wrong command line.
func usage(format string, args ...any) *dr.Error {
	return dr.Errorf(dr.KindInvalid, "holdfast", format, args...)
}

// required names the flags without which a command makes no sense.
func required(c *cobra.Command, flags ...string) {
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		for _, name := range flags {
			if f := c.Flags().Lookup(name); !f.Changed && f.Value.String() == "" {
				return usage("--%s is missing", name).WithHint("See '%s --help'.", c.CommandPath())
			}
		}
		return run(c, args)
	}
}

// confirm asks before something is destroyed. Without a person to ask, --yes is needed.
func (a *app) confirm(format string, args ...any) error {
	if a.yes {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	if !a.ask {
		return usage("this needs a confirmation: %s", what).WithHint("Repeat the command with --yes.")
	}
	fmt.Fprintf(a.err, "%s\nGo on? [y/N] ", what)
	var answer string
	_, _ = fmt.Fscanln(a.in, &answer) // anything but yes is no, also an end of input
	if s := strings.ToLower(answer); s != "y" && s != "yes" {
		return dr.Errorf(dr.KindCanceled, "holdfast", "nothing was done")
	}
	return nil
}

// confirmFlag adds --yes to a command that confirms.
func (a *app) confirmFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&a.yes, "yes", "y", false, "do not ask for confirmation")
	return c
}

// logFlags adds flags for the log of a long-running process.
type logFlags struct{ level, format string }

func (l *logFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&l.level, "log-level", "info", "least level that is logged: debug, info, warn or error")
	c.Flags().StringVar(&l.format, "log-format", "text", "form of log lines: text or json")
}

func (l *logFlags) open(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, usage("--log-level %q is none of debug, info, warn and error", l.level)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, usage("--log-format %q is neither text nor json", l.format)
}

// closing joins the error of a deferred Close to the command's.
func closing(err *error, close func() error) { *err = errors.Join(*err, close()) }
