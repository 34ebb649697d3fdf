package sessionvirt

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// daemon is libvirtd in the foreground.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{} // closed after it ended
	err  error         // valid after done
}

func startDaemon(i *Instance) (*daemon, error) {
	path, err := find("libvirtd")
	if err != nil {
		return nil, err
	}
	d := &daemon{done: make(chan struct{})}
	d.cmd = exec.Command(path, "--config", filepath.Join(i.Dir, "c/libvirt/libvirtd.conf"), "--pid-file", filepath.Join(i.Dir, "r/libvirtd.pid"))
	d.cmd.Env = i.Env
	d.cmd.Dir = i.Dir
	// A process group of its own: Ctrl-C reaches us, and we stop it in order.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	started := make(chan error)
	go func() {
		// The death signal is tied to the thread that started the child, so that thread has to stay.
		runtime.LockOSThread()
		err := d.cmd.Start()
		started <- err
		if err == nil {
			d.err = d.cmd.Wait()
			close(d.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start libvirtd: %w", err)
	}
	return d, nil
}

// stop ends the daemon and waits for it.
func (d *daemon) stop() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
		return
	case <-time.After(5 * time.Second):
	}
	d.cmd.Process.Kill()
	<-d.done
}

// find looks for a program in PATH and in the system directories, which ordinary users often lack in PATH.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("find program %s (the package comment of sessionvirt lists the packages): %w", name, err)
}

// processIdentity is "PID START", which no later process repeats before the next reboot; "" if there is no such process.
func processIdentity(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name in parentheses may hold anything; the start time is field 22.
	rest := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(rest) < 20 {
		return ""
	}
	return fmt.Sprintf("%d %s", pid, rest[19])
}

func isRunning(identity string) bool {
	word, _, _ := strings.Cut(identity, " ")
	pid, err := strconv.Atoi(word)
	return err == nil && processIdentity(pid) == identity
}

// processes lists the running processes of this user whose command line
// satisfies match, which gets the arguments joined by spaces.
func processes(match func(cmdline string) bool) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(b) == 0 || !match(strings.ReplaceAll(string(b), "\x00", " ")) {
			continue
		}
		if !ownedByUs(filepath.Join("/proc", e.Name())) {
			continue
		}
		pids = append(pids, pid)
	}
	return pids
}

// isQEMU says whether a command line is a QEMU that works below dir. libvirt
// puts the path of the guest's monitor socket into it.
func isQEMU(cmdline, dir string) bool {
	prog, _, _ := strings.Cut(cmdline, " ")
	return strings.HasPrefix(filepath.Base(prog), "qemu-system-") && strings.Contains(cmdline, dir+"/")
}

// killAll kills libvirtd and the QEMUs that work below dir and waits until they are gone.
func killAll(dir string) error {
	return kill(func(c string) bool {
		prog, _, _ := strings.Cut(c, " ")
		return isQEMU(c, dir) || filepath.Base(prog) == "libvirtd" && strings.Contains(c, dir+"/")
	})
}

// kill sends SIGKILL to the matching processes until none is left, at most ten seconds.
func kill(match func(cmdline string) bool) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pids := processes(match)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v did not end within 10 s after SIGKILL", pids)
		}
	}
}

// ownedByUs says that path is no symbolic link and belongs to this user.
func ownedByUs(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode()&os.ModeSymlink != 0 {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Uid == uint32(os.Geteuid())
}
