package vmm

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf16"

	"holdfast/internal/dr"
)

//go:embed collect.ps1
var script string

// Defaults of PowerShellConfig.
const (
	DefaultTimeout = 5 * time.Minute
	DefaultLimit   = 64 << 20
)

// MaxCommandLine is how many characters a Windows command line may have.
const MaxCommandLine = 32767

// killWait is how long a killed program may keep its output open.
const killWait = 5 * time.Second

// PowerShellConfig configures a PowerShell.
type PowerShellConfig struct {
	Program string        // empty = powershell.exe, found on the path
	Server  string        // the VMM server's name; empty = this machine
	Timeout time.Duration // of one snapshot; 0 = DefaultTimeout
	Limit   int64         // bytes of output; 0 = DefaultLimit
}

// PowerShell is the Inventory of a VMM server by its PowerShell module. One
// program runs at a time. Nothing of what callers give gets into the script or
// the command line: the server's name is in the program's environment.
type PowerShell struct {
	cfg PowerShellConfig
	mu  sync.Mutex
}

var _ Inventory = (*PowerShell)(nil)

var serverName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?$`)

// NewPowerShell checks the configuration; it does no I/O.
func NewPowerShell(cfg PowerShellConfig) (*PowerShell, error) {
	const op = "vmm.NewPowerShell"
	if cfg.Server != "" && !serverName.MatchString(cfg.Server) {
		return nil, dr.Errorf(dr.KindInvalid, op, "%q is not the name of a server", cfg.Server)
	}
	if cfg.Timeout < 0 || cfg.Limit < 0 {
		return nil, dr.Errorf(dr.KindInvalid, op, "timeout or limit is negative")
	}
	if cfg.Program == "" {
		cfg.Program = "powershell.exe"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Limit == 0 {
		cfg.Limit = DefaultLimit
	}
	return &PowerShell{cfg: cfg}, nil
}

// arguments of the program: the script is carried as UTF-16 in base64, so that
// no quoting rule of any shell applies to it.
func arguments() []string {
	u := utf16.Encode([]rune(compact(script)))
	b := make([]byte, 2*len(u))
	for i, c := range u {
		binary.LittleEndian.PutUint16(b[2*i:], c)
	}
	return []string{"-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-EncodedCommand", base64.StdEncoding.EncodeToString(b)}
}

// compact takes comment lines, indentation and empty lines off, because the
// length of a command line is bounded. No text of the script spans lines.
func compact(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// capped keeps at most a number of bytes and says when there were more.
type capped struct {
	buf  bytes.Buffer
	left int64
	full func() // called once
}

func (c *capped) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		if c.full != nil {
			c.full()
			c.full = nil
		}
		c.buf.Write(p[:c.left])
		c.left = 0
		return len(p), nil
	}
	c.left -= int64(len(p))
	return c.buf.Write(p)
}

var errTooMuch = errors.New("it wrote too much")

// Snapshot runs the script once. dr.CodeVMMModuleMissing if the console's module
// is not installed, dr.CodeVMMUnreachable if the server does not answer in time or
// refuses, dr.CodeVMMOutput if what came back can't be used.
func (p *PowerShell) Snapshot(ctx context.Context) (Snapshot, error) {
	const op = "vmm.Snapshot"
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Snapshot{}, dr.New(dr.KindCanceled, "", op, "list what VMM manages: %w", context.Cause(ctx))
	}
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	run, cancel := context.WithTimeout(run, p.cfg.Timeout)
	defer cancel()
	stdout := capped{left: p.cfg.Limit, full: func() { stop(errTooMuch) }}
	stderr := capped{left: 64 << 10}
	cmd := exec.CommandContext(run, p.cfg.Program, arguments()...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, killWait
	cmd.Env = append(os.Environ(), "HOLDFAST_VMM_SERVER="+p.cfg.Server)
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return Snapshot{}, dr.New(dr.KindCanceled, "", op, "list what VMM manages: %w", context.Cause(ctx))
	case errors.Is(context.Cause(run), errTooMuch):
		return Snapshot{}, invalid(op, "the VMM script wrote more than %d bytes", p.cfg.Limit)
	case errors.Is(run.Err(), context.DeadlineExceeded):
		return Snapshot{}, dr.New(dr.KindUnavailable, dr.CodeVMMUnreachable, op, "VMM did not list its objects within %v", p.cfg.Timeout)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Snapshot{}, dr.New(dr.KindPrecondition, dr.CodeVMMModuleMissing, op, "run %s: %w", p.cfg.Program, err)
	}
	s, perr := Parse(stdout.buf.Bytes())
	if perr == nil && err == nil {
		return s, nil
	}
	if perr == nil || dr.CodeOf(perr) == dr.CodeVMMOutput && exit != nil { // it failed, and not in its own words
		return Snapshot{}, dr.New(dr.KindUnavailable, dr.CodeVMMUnreachable, op, "%s ended with %s: %s", p.cfg.Program, exit, errorText(stderr.buf.Bytes()))
	}
	return Snapshot{}, perr
}

// errorText is the begin of what the program wrote to its error output, which
// Windows PowerShell may have wrapped in XML.
func errorText(b []byte) string {
	text := strings.TrimSpace(string(decodeText(b)))
	if text == "" {
		return "it said nothing about why"
	}
	const most = 300
	if len(text) > most {
		text = text[:most] + "…"
	}
	return fmt.Sprintf("%q", strings.ToValidUTF8(text, "?"))
}
