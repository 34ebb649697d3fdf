package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// usage is what a piece of work cost.
type usage struct {
	CPU  time.Duration // user and system
	Wall time.Duration
}

// self measures fn in this process.
func self(fn func() error) (usage, error) {
	runtime.GC() // what came before is not fn's
	cpu, err := selfCPU()
	if err != nil {
		return usage{}, err
	}
	start := time.Now()
	if err := fn(); err != nil {
		return usage{}, err
	}
	u := usage{Wall: time.Since(start)}
	now, err := selfCPU()
	u.CPU = now - cpu
	return u, err
}

// command measures a program from its start to its end.
func command(ctx context.Context, name string, args ...string) (usage, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return usage{}, fmt.Errorf("run %s: %w: %s", filepath.Base(name), err, strings.TrimSpace(string(out)))
	}
	return usage{CPU: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), Wall: time.Since(start)}, nil
}

// tools are the programs that are compared with or needed.
type tools struct{ qemuImg, qemuNBD, nbdcopy, mkfs string }

func findTools() (tools, error) {
	var t tools
	var errs []error
	for name, p := range map[string]*string{"qemu-img": &t.qemuImg, "qemu-nbd": &t.qemuNBD, "nbdcopy": &t.nbdcopy, "mkfs.ext4": &t.mkfs} {
		path, err := exec.LookPath(name)
		if err != nil { // not in the path of ordinary users
			path = filepath.Join("/usr/sbin", name)
			if _, serr := os.Stat(path); serr != nil {
				errs = append(errs, fmt.Errorf("find %s: %w (scripts/packages.sh test installs it)", name, err))
			}
		}
		*p = path
	}
	return t, errors.Join(errs...)
}

// fileSize is the length of a file, bytes.
func fileSize(path string) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
