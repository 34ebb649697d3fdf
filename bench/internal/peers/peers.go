// Package peers does a disk's first copy, its copy after some writes and its
// restore with the tools that people have instead of Holdfast, and measures them
// in the same way: CPU of all their processes, bytes stored or sent, wall-clock time.
//
// It promises that everything is durable when the clock stops, that what can be
// read back was compared with the disk, and that a tool which could not be
// measured says why (Result.Err).
package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"holdfast/bench/internal/meter"
)

// Names of what is compared.
const (
	Rsync   = "rsync --inplace"
	Borg    = "borg, 64 KiB chunks, zstd"
	Virtnbd = "virtnbdbackup"
	QemuImg = "qemu-img convert -c zstd"
	Nbdcopy = "nbdcopy"
	Compare = "qemu-img compare"
)

// Result is what one piece of work cost.
type Result struct {
	meter.Usage
	Bytes int64 // stored, or sent where nothing is stored
	Err   error // why it could not be measured
}

// Results are by the name of the tool.
type Results map[string]Result

// Copier keeps copies of one disk below Dir, which it may use alone.
type Copier struct {
	Dir  string
	Disk string // a raw file
	// Serve makes the disk readable by NBD and returns its address, the process that serves and what ends it.
	Serve func(context.Context) (uri string, pid int, stop func() error, err error)
}

// First copies the disk by each tool.
func (c *Copier) First(ctx context.Context) Results {
	return Results{
		Rsync:   c.rsync(ctx, "--sparse"),
		Borg:    c.borg(ctx, "first"),
		QemuImg: c.qemuImg(ctx),
		Nbdcopy: c.nbdcopy(ctx),
	}
}

// Next brings the copies to what the disk is now. qemu-img and nbdcopy know no
// difference: they copy everything again.
func (c *Copier) Next(ctx context.Context) Results {
	r := Results{
		Rsync:   c.rsync(ctx, "--no-whole-file"),
		Borg:    c.borg(ctx, "next"),
		QemuImg: c.qemuImg(ctx),
		Nbdcopy: c.nbdcopy(ctx),
	}
	if r[Rsync].Err == nil {
		if err := c.same(ctx, c.at("rsync.raw")); err != nil {
			r[Rsync] = Result{Err: err}
		}
	}
	r[Compare] = c.compare(ctx)
	return r
}

// Restore reads the newest copy back from the tools that store one in a form of their own.
func (c *Copier) Restore(ctx context.Context) Results {
	return Results{Borg: c.borgRestore(ctx)}
}

func (c *Copier) at(name string) string { return filepath.Join(c.Dir, name) }

func (c *Copier) qemuImg(ctx context.Context) (r Result) {
	out := c.at("all.qcow2")
	r.Usage, r.Err = meter.Command(ctx, "qemu-img", "convert", "-c", "-m", "16", "-W", "-t", "writeback", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", c.Disk, out)
	return r.stored(out, os.Remove)
}

func (c *Copier) nbdcopy(ctx context.Context) (r Result) {
	uri, pid, stop, err := c.Serve(ctx)
	if err != nil {
		return Result{Err: err}
	}
	defer stop()
	before, err := meter.ProcessCPU(pid)
	if err != nil {
		return Result{Err: err}
	}
	out := c.at("nbdcopy.raw")
	if r.Usage, r.Err = meter.Command(ctx, "nbdcopy", "--flush", uri, out); r.Err != nil {
		return r
	}
	after, err := meter.ProcessCPU(pid)
	r.CPU, r.Err = r.CPU+after-before, err
	return r.stored(out, os.Remove)
}

// compare is the price of finding out by reading both sides: the copy that rsync made is equal.
func (c *Copier) compare(ctx context.Context) (r Result) {
	r.Usage, r.Err = meter.Command(ctx, "qemu-img", "compare", "-f", "raw", "-F", "raw", c.Disk, c.at("rsync.raw"))
	return r
}

var sentBytes = regexp.MustCompile(`Total bytes sent: ([\d,]+)`)

func (c *Copier) rsync(ctx context.Context, mode string) (r Result) {
	if err := installed("rsync"); err != nil {
		return Result{Err: err}
	}
	var out string
	r.Usage, out, r.Err = command(ctx, c.Dir, nil, "rsync", "--inplace", "--fsync", "--ignore-times", "--stats", mode, c.Disk, c.at("rsync.raw"))
	if r.Err != nil {
		return r
	}
	m := sentBytes.FindStringSubmatch(out)
	if m == nil {
		return Result{Err: fmt.Errorf("rsync does not say what it sent: %s", out)}
	}
	r.Bytes, r.Err = strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
	return r
}

func (c *Copier) borgEnv() []string {
	return append(os.Environ(), "BORG_BASE_DIR="+c.at("borg-home"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes")
}

// borg stores an archive without encryption, in fixed chunks of the size that a block tracker of QEMU has.
func (c *Copier) borg(ctx context.Context, archive string) (r Result) {
	if err := installed("borg"); err != nil {
		return Result{Err: err}
	}
	repo := c.at("borg")
	if _, err := os.Stat(repo); errors.Is(err, fs.ErrNotExist) {
		if _, _, err := command(ctx, c.Dir, c.borgEnv(), "borg", "init", "-e", "none", repo); err != nil {
			return Result{Err: err}
		}
	}
	before, err := treeSize(repo)
	if err != nil {
		return Result{Err: err}
	}
	start := time.Now()
	r.Usage, _, r.Err = command(ctx, filepath.Dir(c.Disk), c.borgEnv(), "borg", "create", "--sparse", "--chunker-params", "fixed,65536", "-C", "zstd,1", repo+"::"+archive, filepath.Base(c.Disk))
	if r.Err == nil {
		r.Err = syncTree(repo)
	}
	r.Wall = time.Since(start)
	if r.Err != nil {
		return r
	}
	after, err := treeSize(repo)
	r.Bytes, r.Err = after-before, err
	return r
}

func (c *Copier) borgRestore(ctx context.Context) (r Result) {
	if err := installed("borg"); err != nil {
		return Result{Err: err}
	}
	dir := c.at("extracted")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Result{Err: err}
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	r.Usage, _, r.Err = command(ctx, dir, c.borgEnv(), "borg", "extract", "--sparse", c.at("borg")+"::next")
	if r.Err == nil {
		r.Err = syncTree(dir)
	}
	r.Wall = time.Since(start)
	if r.Err == nil {
		r.Err = c.same(ctx, filepath.Join(dir, filepath.Base(c.Disk)))
	}
	return r
}

// same compares a raw copy with the disk.
func (c *Copier) same(ctx context.Context, path string) error {
	_, err := meter.Command(ctx, "qemu-img", "compare", "-f", "raw", "-F", "raw", c.Disk, path)
	return err
}

// stored sets Bytes to what path occupies and removes it.
func (r Result) stored(path string, remove func(string) error) Result {
	if r.Err != nil {
		return r
	}
	if r.Bytes, r.Err = treeSize(path); r.Err == nil {
		r.Err = remove(path)
	}
	return r
}

func installed(program string) error {
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("%s is not installed (scripts/packages.sh bench installs it where Debian has it)", program)
	}
	return nil
}

// command measures a program with its children and returns what it printed.
func command(ctx context.Context, dir string, env []string, name string, args ...string) (meter.Usage, string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(out.String())
		return meter.Usage{}, "", fmt.Errorf("run %s: %w: %s", name, err, text[max(0, len(text)-400):])
	}
	return meter.Usage{CPU: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), Wall: time.Since(start)}, out.String(), nil
}

// treeSize is what the files below path occupy, bytes.
func treeSize(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		n += meter.Allocated(st) // sparse files count for what they hold
		return nil
	})
	return n, err
}

// syncTree makes every file below path durable.
func syncTree(path string) error {
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
