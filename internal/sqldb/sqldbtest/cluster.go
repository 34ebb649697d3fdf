package sqldbtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"sync"
	"syscall"
	"time"
)

// Cluster is a PostgreSQL server of the test's own, reachable over a Unix socket
// in its own directory only. It ends with the test binary, also if that is killed.
type Cluster struct {
	bin   string
	dir   string
	fsync bool
	attr  *syscall.SysProcAttr

	mu  sync.Mutex
	cmd *exec.Cmd
	end chan struct{} // closed when the server has exited
	log bytes.Buffer
}

// findBin looks for the server's programs: PATH, then Debian's directories.
func findBin() (string, error) {
	if p, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(p), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return "", errors.New("no PostgreSQL server found in PATH or /usr/lib/postgresql: install the package postgresql")
	}
	sort.Strings(found)
	return filepath.Dir(found[len(found)-1]), nil
}

func startCluster(fsync bool) (*Cluster, error) {
	bin, err := findBin()
	if err != nil {
		return nil, err
	}
	// The socket's path must stay below 108 bytes, so no test name in it.
	dir, err := os.MkdirTemp("", "hfpg")
	if err != nil {
		return nil, err
	}
	c := &Cluster{bin: bin, dir: dir, fsync: fsync}
	if err = c.create(); err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, errors.Join(err, c.Remove())
	}
	return c, nil
}

func (c *Cluster) create() (err error) {
	if c.attr, err = serverAttr(c.dir); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(c.bin, "initdb"), "-D", filepath.Join(c.dir, "data"), "-U", "holdfast",
		"--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
	cmd.Dir, cmd.SysProcAttr = c.dir, c.attr
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

func (c *Cluster) socketDir() string { return c.dir }

// Running reports whether the server process lives.
func (c *Cluster) Running() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cmd != nil
}

// Start starts the stopped server and waits until it answers, which includes
// crash recovery.
func (c *Cluster) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd != nil {
		return errors.New("the cluster runs already")
	}
	onoff := map[bool]string{true: "on", false: "off"}[c.fsync]
	cmd := exec.Command(filepath.Join(c.bin, "postgres"), "-D", filepath.Join(c.dir, "data"), "-k", c.dir,
		"-c", "listen_addresses=", "-c", "fsync="+onoff, "-c", "full_page_writes="+onoff, "-c", "synchronous_commit="+onoff,
		"-c", "max_connections=200", "-c", "shared_buffers=16MB", "-c", "autovacuum=on", "-c", "deadlock_timeout=200ms")
	cmd.Dir, cmd.SysProcAttr = c.dir, c.attr
	c.log.Reset()
	cmd.Stdout, cmd.Stderr = &c.log, &c.log
	started, end := make(chan error), make(chan struct{})
	go func() { // the thread that starts the server must live as long as it: the parent-death signal is per thread
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(end)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its exit code after an immediate stop is of no interest
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	c.cmd, c.end = cmd, end
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-end:
			c.cmd = nil
			return fmt.Errorf("postgres ended at its start: %s", c.log.String())
		default:
		}
		err := c.admin("select 1")
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("postgres does not answer: %w", err)
		}
	}
}

// Crash stops the server in mode immediate: no checkpoint, every connection cut.
func (c *Cluster) Crash() error { return c.signal(syscall.SIGQUIT) }

// Stop ends the server in order.
func (c *Cluster) Stop() error { return c.signal(syscall.SIGINT) }

func (c *Cluster) signal(s syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd == nil {
		return nil
	}
	if err := c.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.end:
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.end
		return errors.New("postgres did not stop within 30 s and was killed")
	}
	c.cmd = nil
	return nil
}

// Remove stops the server and deletes its files.
func (c *Cluster) Remove() error {
	return errors.Join(c.Crash(), os.RemoveAll(c.dir))
}
