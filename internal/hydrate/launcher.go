package hydrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/nbd"
)

// Launcher starts serving processes and finds those that run. It holds nothing
// in memory: a new Launcher after a restart of the agent sees the same world.
type Launcher struct {
	// Root holds one directory for each serving, named by its id.
	Root string
	// Argv is the command line that serves: it gets the serving's id as last
	// argument. No secret belongs in it.
	Argv []string
	// Wait bounds how long a start may take; 0 = 60 s.
	Wait time.Duration
}

// Dir is the directory of a serving.
func (l *Launcher) Dir(serving string) string { return filepath.Join(l.Root, serving) }

// Socket is the path of a serving's NBD socket.
func (l *Launcher) Socket(serving string) string { return filepath.Join(l.Dir(serving), SocketName) }

// Ensure returns the status of the serving's process, starting it, detached
// from this process, if none runs. It returns once the first export answers;
// if the process ends before that, the error carries the end of its log.
func (l *Launcher) Ensure(ctx context.Context, serving string) (Status, error) {
	if serving == "" || serving != filepath.Base(serving) || serving[0] == '.' {
		return Status{}, dr.Errorf(dr.KindInvalid, "hydrate.Ensure", "%q is not the id of a serving", serving)
	}
	if st, ok := l.running(ctx, serving); ok {
		return st, nil
	}
	dir := l.Dir(serving)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Status{}, dr.Errorf(dr.KindUnavailable, "hydrate.Ensure", "make directory: %w", err)
	}
	logFile, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return Status{}, dr.Errorf(dr.KindUnavailable, "hydrate.Ensure", "open log: %w", err)
	}
	defer logFile.Close()
	start, err := logFile.Seek(0, 2)
	if err != nil {
		return Status{}, dr.Errorf(dr.KindUnavailable, "hydrate.Ensure", "open log: %w", err)
	}
	cmd := exec.Command(l.Argv[0], append(l.Argv[1:len(l.Argv):len(l.Argv)], serving)...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return Status{}, dr.Errorf(dr.KindInternal, "hydrate.Ensure", "start the serving process: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps the child; ends with it

	wait := l.Wait
	if wait <= 0 {
		wait = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		select {
		case err := <-ended:
			if st, ok := l.running(ctx, serving); ok {
				return st, nil // another caller's process won
			}
			return Status{}, servingEnded(dir, start, err)
		case <-ctx.Done():
			return Status{}, dr.Errorf(dr.KindUnavailable, "hydrate.Ensure", "the serving process did not answer in time: %w", ctx.Err()).
				WithHint("See %s.", filepath.Join(dir, logName))
		case <-time.After(20 * time.Millisecond):
			if st, ok := l.running(ctx, serving); ok {
				return st, nil
			}
		}
	}
}

// ErrorPrefix marks the line in which a serving process says why it ended:
// "holdfast-serve-error KIND CODE MESSAGE", so that the agent can report the real reason.
const ErrorPrefix = "holdfast-serve-error "

// ErrorLine renders the last word of a serving process.
func ErrorLine(err error) string {
	code := dr.CodeOf(err)
	if code == "" {
		code = "-"
	}
	return fmt.Sprintf("%s%s %s %s", ErrorPrefix, dr.KindOf(err), code, strings.ReplaceAll(err.Error(), "\n", "; "))
}

// servingEnded makes the error of a serving process that ended at its start.
func servingEnded(dir string, from int64, err error) error {
	raw, _ := os.ReadFile(filepath.Join(dir, logName))
	if int64(len(raw)) > from {
		raw = raw[from:]
	}
	for line := range strings.Lines(string(raw)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), ErrorPrefix)
		f := strings.SplitN(rest, " ", 3)
		if !ok || len(f) != 3 {
			continue
		}
		kind, _ := dr.ParseKind(f[0])
		code := dr.Code(f[1])
		if code == "-" {
			code = ""
		}
		return dr.New(kind, code, "hydrate.Ensure", "%s", f[2])
	}
	text := strings.TrimSpace(string(raw[max(0, len(raw)-500):]))
	return dr.Errorf(dr.KindInternal, "hydrate.Ensure", "the serving process ended (%v): %s", err, text)
}

// running tells whether a process answers on the serving's socket.
func (l *Launcher) running(ctx context.Context, serving string) (Status, bool) {
	st, err := ReadStatus(l.Dir(serving))
	if err != nil || len(st.Exports) == 0 {
		return st, false
	}
	c, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: l.Socket(serving), Export: st.Exports[0].Name, HandshakeTimeout: 10 * time.Second})
	if err != nil {
		return st, false
	}
	return st, c.Close() == nil
}

// Running reports whether the serving's process answers.
func (l *Launcher) Running(ctx context.Context, serving string) (Status, bool) {
	return l.running(ctx, serving)
}

// Stop ends the serving's process, if any, and removes its directory. The
// process is known by the lock that it holds: a pid that was reused is never signalled. Idempotent.
func (l *Launcher) Stop(ctx context.Context, serving string) error {
	dir := l.Dir(serving)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for sent := false; ; {
		unlock, err := lockFile(filepath.Join(dir, lockName))
		if err == nil {
			unlock()
			if err := os.RemoveAll(dir); err != nil {
				return dr.Errorf(dr.KindUnavailable, "hydrate.Stop", "remove %s: %w", dir, err)
			}
			return nil
		}
		if !errors.Is(err, ErrServed) {
			return err
		}
		if st, err := ReadStatus(dir); err == nil && !sent {
			if err := terminate(st.PID); err != nil {
				return dr.Errorf(dr.KindUnavailable, "hydrate.Stop", "end process %d: %w", st.PID, err)
			}
			sent = true
		}
		select {
		case <-ctx.Done():
			return dr.Errorf(dr.KindUnavailable, "hydrate.Stop", "the serving process of %s does not end: %w", serving, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
