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
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // windows of policies may name a zone, and not every host has zone data

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"holdfast/cmd/holdfast/internal/azuretool"
	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/operate"
	"holdfast/cmd/holdfast/internal/planning"
	"holdfast/cmd/holdfast/internal/storetool"
	"holdfast/cmd/holdfast/internal/vaulthost"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	c := &console.Console{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now, Width: console.MinWidth}
	person := term.IsTerminal(int(os.Stderr.Fd()))
	c.Live = person && runtime.GOOS != "windows" && os.Getenv("TERM") != "dumb"
	c.Ask = person && term.IsTerminal(int(os.Stdin.Fd()))
	if c.Ask {
		c.ReadSecret = readSecret
	}
	if w, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		c.Width = max(w, console.MinWidth)
	}
	os.Exit(run(ctx, c, os.Args[1:]))
}

// readSecret asks on the terminal without echo. When ctx ends first, the terminal
// is as before and the reader is left behind, which ends with the process.
func readSecret(ctx context.Context, question string) ([]byte, error) {
	fd := int(os.Stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	fmt.Fprint(os.Stderr, question)
	type answer struct {
		text []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		got <- answer{text, err}
	}()
	select {
	case a := <-got:
		fmt.Fprintln(os.Stderr)
		return a.text, a.err
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr)
		return nil, errors.Join(ctx.Err(), term.Restore(fd, before))
	}
}

// run executes a command line and returns its exit code.
func run(ctx context.Context, c *console.Console, args []string) int {
	root := newRoot(c)
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		return c.Report(err)
	}
	return console.ExitOK
}

type app struct{ *console.Console }

func newRoot(c *console.Console) *cobra.Command {
	a := &app{c}
	output := "table"
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Site recovery for virtual machines",
		Long: "Holdfast replicates virtual machines into an object store and boots them elsewhere.\n\n" +
			"Exit codes tell the class of an error: see 'holdfast help exit-codes'.",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			c.JSON = output == "json"
			if !c.JSON && output != "table" {
				return console.Usage("--output %q is neither table nor json", output)
			}
			return nil
		},
	}
	root.SetIn(c.In)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	root.PersistentFlags().StringVarP(&output, "output", "o", output, "what to print: table or json")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return console.Usage("%v", err).WithHint("See '%s --help'.", c.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "daily", Title: "Protect and fail over:"}, &cobra.Group{ID: "setup", Title: "Set up:"}, &cobra.Group{ID: "tools", Title: "Without a vault:"})
	add := func(group string, cs ...*cobra.Command) {
		for _, c := range cs {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("daily", operate.Daily(c)...)
	add("setup", vaulthost.VaultCommand(c), a.agentCommand())
	add("setup", operate.Setup(c)...)
	add("setup", azuretool.Command(c))
	add("tools", storetool.StoreCommand(c), storetool.RecoverCommand(c))
	add("tools", planning.PlanCommand(c))
	add("tools", operate.Offline(c)...)
	root.AddCommand(a.versionCommand(), console.ExitCodesTopic())
	checkArgs(root)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages |", fmt.Sprintf("Flags.FlagUsagesWrapped %d |", console.MinWidth)))
	wrapHelp(root)
	return root
}

// wrapHelp sets the paragraphs of long help texts in lines that fit every
// terminal; lines that are set in stay as they are.
func wrapHelp(c *cobra.Command) {
	var out []string
	for p := range strings.SplitSeq(c.Long, "\n\n") {
		if !strings.Contains("\n"+p, "\n  ") {
			p = console.Wrap(strings.Join(strings.Fields(p), " "), console.MinWidth)
		}
		out = append(out, p)
	}
	c.Long = strings.Join(out, "\n\n")
	for _, sub := range c.Commands() {
		wrapHelp(sub)
	}
}

// checkArgs makes wrong words and numbers of arguments usage errors.
func checkArgs(c *cobra.Command) {
	if c.HasSubCommands() && c.Run == nil && c.RunE == nil {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			e := console.Usage("%q is not a command of '%s'", args[0], c.CommandPath()).WithHint("See '%s --help'.", c.CommandPath())
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				e.Hint = "Did you mean: " + strings.Join(near, ", ") + "?"
			}
			return e
		}
	} else if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return console.Usage("%v", err).WithHint("Usage: %s", c.UseLine())
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
		}{console.Version(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
		if a.JSON {
			return a.PrintJSON(v)
		}
		_, err := fmt.Fprintf(a.Out, "holdfast %s (%s, %s)\n", v.Version, v.Go, v.Platform)
		return err
	}}
}
