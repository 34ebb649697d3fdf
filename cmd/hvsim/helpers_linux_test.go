package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/cim"
	"holdfast/internal/cim/wsman"
)

// The tests run the program as a process, and clients that others wrote:
// pywinrm (Debian package python3-winrm, so Debian's own Python) and curl.
const (
	python = "/usr/bin/python3"
	space  = "root/virtualization/v2"
)

var program string // the built one

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "hvsim-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "hvsim")
		build := exec.Command("go", "build", "-o", program, ".")
		if raced {
			build = exec.Command("go", "build", "-race", "-o", program, ".")
		}
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// text collects what a process prints.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *text) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *text) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// sim is a running program.
type sim struct {
	t        testing.TB
	dir      string
	cmd      *exec.Cmd
	out, err text
	done     chan struct{}
	User     string
	Password string
	Hosts    []served
}

// launch starts the program in a process group of its own.
func launch(t testing.TB, dir string, args ...string) *sim {
	t.Helper()
	s := &sim{t: t, dir: dir, done: make(chan struct{}), cmd: exec.Command(program, append([]string{"--dir", dir}, args...)...)}
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.err
	s.cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(program)) // what guests leave that were killed goes at the end
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, s.cmd.Start())
	go func() {
		_ = s.cmd.Wait() // its state is asked for
		close(s.done)
	}()
	t.Cleanup(func() {
		s.kill()
		if strings.Contains(s.err.String(), "DATA RACE") {
			t.Error(s.err.String())
		}
	})
	return s
}

// start launches the program on free ports and waits until it serves.
func start(t testing.TB, dir string, args ...string) *sim {
	t.Helper()
	s := launch(t, dir, append([]string{"--listen", "127.0.0.1:0", "--json", "--merge-time", "100ms", "--job-time", "30ms"}, args...)...)
	s.wait("}\n")
	if err := json.Unmarshal([]byte(s.out.String()), s); err != nil || len(s.Hosts) == 0 {
		t.Fatalf("it printed %q: %v", s.out.String(), err)
	}
	return s
}

// wait waits until the program has printed something.
func (s *sim) wait(what string) {
	s.t.Helper()
	for end := time.Now().Add(90 * time.Second); !strings.Contains(s.out.String()+s.err.String(), what); time.Sleep(10 * time.Millisecond) {
		select {
		case <-s.done:
			if strings.Contains(s.out.String()+s.err.String(), what) {
				return
			}
			s.t.Fatalf("it ended as %v: %s", s.cmd.ProcessState, s.err.String())
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("it does not print %q: %s%s", what, s.out.String(), s.err.String())
		}
	}
}

// end ends the program by a signal and returns its exit code.
func (s *sim) end(sig syscall.Signal) int {
	s.t.Helper()
	must(s.t, s.cmd.Process.Signal(sig))
	return s.code()
}

func (s *sim) code() int {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(60 * time.Second):
		s.t.Fatalf("it does not end: %s", s.err.String())
	}
	return s.cmd.ProcessState.ExitCode()
}

// kill is kill -9 of the program and what it started.
func (s *sim) kill() {
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		s.t.Error(err)
	}
	<-s.done
}

func (s *sim) passwordFile() string { return filepath.Join(s.dir, "password") }

// foreign runs a client that others wrote.
func foreign(t testing.TB, dir, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "no_proxy=*", "OPENSSL_CONF=" + filepath.Join(dir, "openssl.cnf")}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errs.String())
	}
	return string(out), err
}

// drive runs tasks of testdata/drive.py.
func (s *sim) drive(tasks, vm string, how ...string) map[string]any {
	s.t.Helper()
	if len(how) == 0 {
		how = []string{"ntlm", "always", ""}
	}
	out, err := foreign(s.t, s.dir, python, "testdata/drive.py", tasks, s.Hosts[0].URL, how[0], how[1], how[2], "Administrator", s.passwordFile(), vm)
	if err != nil {
		s.t.Fatalf("drive.py %s: %v (is python3-winrm installed?)\n%s", tasks, err, s.err.String())
	}
	var got map[string]any
	must(s.t, json.Unmarshal([]byte(out), &got))
	return got
}

// session signs in with the product's own client.
func (s *sim) session(host int) cim.Session {
	s.t.Helper()
	c, err := wsman.New(wsman.Config{URL: s.Hosts[host].URL, User: s.User, Pin: s.Hosts[host].Pin, Password: func(context.Context) (string, error) { return s.Password, nil }})
	must(s.t, err)
	s.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return c
}

// vms returns id and power state of all VMs of a host by their names.
func (s *sim) vms(host int) map[string]string {
	s.t.Helper()
	list, err := s.session(host).Query(s.t.Context(), space, "SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER")
	must(s.t, err)
	m := map[string]string{}
	for _, in := range list {
		m[in.String("ElementName")] = in.String("Name") + " " + in.String("EnabledState")
	}
	if len(m) != len(list) {
		s.t.Errorf("%d VMs have %d names", len(list), len(m))
	}
	return m
}
