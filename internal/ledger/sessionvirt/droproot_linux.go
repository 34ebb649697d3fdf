package sessionvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// nobody is the user that DropRoot becomes.
const nobody = 65534

// workPrefix begins the names of the directories with the program's copy and its TMPDIR.
const workPrefix = "/tmp/hfr-"

// DropRoot makes the program run as user nobody (65534) if root started it,
// since root cannot have libvirt sessions. It runs a copy of the program with
// args (normally os.Args[1:]), the same working directory, standard streams
// and environment, but for HOME, TMPDIR and HOLDFAST_CACHE (see below), passes
// signals on, and waits. If ran is true the caller ends with code at once; if
// it is false the caller is not root and simply goes on. Should this
// process be killed, the copy is killed with it.
//
// The cache is /var/tmp/holdfast-cache-65534 and stays, so that later runs
// find the guest image and Go's build cache; TMPDIR is removed at the end.
// Call it first in main: nothing may have been opened yet. Files that
// the program shall read must be readable by everybody.
func DropRoot(ctx context.Context, args []string) (code int, ran bool, err error) {
	if os.Geteuid() != 0 {
		return 0, false, nil
	}
	code, err = runAsNobody(ctx, args)
	if err != nil {
		return 1, true, fmt.Errorf("run as user %d instead of root: %w", nobody, err)
	}
	return code, true, nil
}

func runAsNobody(ctx context.Context, args []string) (code int, err error) {
	// The death signal below is tied to this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sweep(workPrefix, os.RemoveAll)
	cache := "/var/tmp/holdfast-cache-" + strconv.Itoa(nobody)
	if err := ownDir(cache); err != nil {
		return 0, err
	}
	if err := ownDir(filepath.Join(cache, "home")); err != nil {
		return 0, err
	}
	work, err := os.MkdirTemp(filepath.Dir(workPrefix), filepath.Base(workPrefix))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	tmp := filepath.Join(work, "tmp")
	if err := os.WriteFile(filepath.Join(work, ownerFile), []byte(processIdentity(os.Getpid())), 0o600); err != nil {
		return 0, err
	}
	if err := errors.Join(os.Chmod(work, 0o755), ownDir(tmp)); err != nil {
		return 0, err
	}
	// The program may lie where only root can look (go test puts it into a private directory).
	prog := filepath.Join(work, filepath.Base(os.Args[0]))
	if err := copyProgram(prog); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, prog, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = nobodyEnv(filepath.Join(cache, "home"), tmp, cache)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, // and no supplementary groups
		Setpgid:    true,                                          // signals reach it once, through us
		Pdeathsig:  syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				cmd.Process.Signal(s)
			case <-ended:
				return
			}
		}
	}()
	var exit *exec.ExitError
	err = cmd.Wait()
	if errors.As(err, &exit) {
		if code := exit.ExitCode(); code >= 0 {
			return code, nil
		}
		ws, _ := exit.Sys().(syscall.WaitStatus)
		return 128 + int(ws.Signal()), nil
	}
	return 0, err
}

// ownDir makes a directory that belongs to nobody and refuses one that somebody else planted.
func ownDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err == nil {
		return os.Chown(dir, nobody, nobody)
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || sys.Uid != nobody {
		return fmt.Errorf("%s is not a directory of user %d: remove it", dir, nobody)
	}
	return nil
}

func copyProgram(to string) (err error) {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o755), out.Close())
}

func nobodyEnv(home, tmp, cache string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "HOME", "TMPDIR", "HOLDFAST_CACHE", "GOCACHE", "GOPATH", "GOMODCACHE", "GOTMPDIR", "USER", "LOGNAME":
		default:
			if !strings.HasPrefix(name, "XDG_") {
				env = append(env, kv)
			}
		}
	}
	return append(env, "HOME="+home, "TMPDIR="+tmp, "HOLDFAST_CACHE="+cache, "USER=nobody", "LOGNAME=nobody")
}
