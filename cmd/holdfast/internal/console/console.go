package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/dr"
)

// Console is where a command reads, prints and asks.
type Console struct {
	In       io.Reader
	Out, Err io.Writer
	Now      func() time.Time
	Width    int           // columns of tables
	Live     bool          // progress may be redrawn
	Ask      bool          // there is a person to ask
	Poll     time.Duration // between looks at a job; 0 = what the vault says
	// ReadSecret shows a question on the terminal and reads an answer that is not
	// shown; nil = there is no terminal.
	ReadSecret func(ctx context.Context, question string) ([]byte, error)

	JSON bool // --output json
	Yes  bool // --yes
}

// release is the version of a packaged build, set by the linker (packaging/windows/build.sh) and never written else.
var release string

// Version is that of the package, or what the build system recorded of this program.
func Version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

// Usage makes the error of a wrong command line.
func Usage(format string, args ...any) *dr.Error {
	return dr.Errorf(dr.KindInvalid, "holdfast", format, args...)
}

// Required names the flags without which a command makes no sense.
func Required(c *cobra.Command, flags ...string) {
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		for _, name := range flags {
			if f := c.Flags().Lookup(name); !f.Changed && f.Value.String() == "" {
				return Usage("--%s is missing", name).WithHint("See '%s --help'.", c.CommandPath())
			}
		}
		return run(c, args)
	}
}

// Confirm asks before something is destroyed. Without a person to ask, --yes is needed.
func (c *Console) Confirm(format string, args ...any) error {
	if c.Yes {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	if !c.Ask {
		return Usage("this needs a confirmation: %s", what).WithHint("Repeat the command with --yes.")
	}
	fmt.Fprintf(c.Err, "%s\nGo on? [y/N] ", what)
	var answer string
	_, _ = fmt.Fscanln(c.In, &answer) // anything but yes is no, also an end of input
	if s := strings.ToLower(answer); s != "y" && s != "yes" {
		return dr.Errorf(dr.KindCanceled, "holdfast", "nothing was done")
	}
	return nil
}

// ConfirmFlag adds --yes to a command that confirms.
func (c *Console) ConfirmFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVarP(&c.Yes, "yes", "y", false, "do not ask for confirmation")
	return cmd
}

// LogFlags are the flags for the log of a long-running process.
type LogFlags struct{ level, format string }

// Add adds the flags to a command.
func (l *LogFlags) Add(c *cobra.Command) {
	c.Flags().StringVar(&l.level, "log-level", "info", "least level that is logged: debug, info, warn or error")
	c.Flags().StringVar(&l.format, "log-format", "text", "form of log lines: text or json")
}

// Level is the least level that is logged.
func (l *LogFlags) Level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return 0, Usage("--log-level %q is none of debug, info, warn and error", l.level)
	}
	return level, nil
}

// Open makes the logger that the flags ask for.
func (l *LogFlags) Open(w io.Writer) (*slog.Logger, error) {
	level, err := l.Level()
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, Usage("--log-format %q is neither text nor json", l.format)
}

// Closing joins the error of a deferred Close to the command's.
func Closing(err *error, close func() error) { *err = errors.Join(*err, close()) }
