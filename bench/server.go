package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"holdfast/internal/nbd"
)

// server is an NBD server in a process of its own.
type server struct {
	cmd    *exec.Cmd
	socket string
	export string
	ended  chan error
	dir    string
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// uri is the export's address for libnbd's tools.
func (s *server) uri() string { return "nbd+unix:///" + s.export + "?socket=" + s.socket }

// startServer starts cmd, which serves on socket, and waits for the socket. dir is removed at the end.
func startServer(cmd *exec.Cmd, dir, socket, export string) (*server, error) {
	s := &server{cmd: cmd, socket: socket, export: export, dir: dir, ended: make(chan error, 1)}
	var stderr tail
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	go func() { s.ended <- cmd.Wait() }()
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			return s, nil
		}
		select {
		case err := <-s.ended:
			os.RemoveAll(dir)
			return nil, fmt.Errorf("%s ended: %v: %s", filepath.Base(cmd.Path), err, stderr.String())
		default:
		}
		if time.Since(start) > 2*time.Minute {
			_, err := s.stop()
			return nil, fmt.Errorf("%s does not serve: %v: %s", filepath.Base(cmd.Path), err, stderr.String())
		}
	}
}

func (b *runner) startQemuNBD(ctx context.Context, path, format string) (*server, error) {
	dir, err := os.MkdirTemp("/tmp", "hfbench") // a socket's path is short
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.CommandContext(ctx, b.tool.qemuNBD, "-r", "-t", "-e", "8", "-f", format, "-k", socket, path)
	return startServer(cmd, dir, socket, "")
}

// dial connects; the socket may be there a moment before somebody listens.
func (s *server) dial(ctx context.Context) (*nbd.Client, error) {
	for try := 0; ; try++ {
		c, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: s.socket, Export: s.export})
		if err == nil || try == 500 {
			return c, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// stop ends the server and returns the CPU time of its whole life.
func (s *server) stop() (time.Duration, error) {
	defer os.RemoveAll(s.dir)
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		return 0, err
	}
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second):
		s.cmd.Process.Kill()
		<-s.ended
	}
	return s.cmd.ProcessState.UserTime() + s.cmd.ProcessState.SystemTime(), nil
}

// tail keeps the last bytes written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-2000):]
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
