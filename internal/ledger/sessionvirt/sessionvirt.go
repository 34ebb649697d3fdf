// Package sessionvirt starts and stops private libvirt session daemons and
// ledger guests in them, for tests and the demo; the product does not import it.
//
// Each Instance is one libvirtd of its own with its own directories, so two of
// them are two sites on one machine. Nothing needs root; in fact root cannot
// have one, because libvirtd run by root is the machine's only system daemon.
// A program that may be started by root calls DropRoot first.
//
// It promises: Instance.Stop leaves no process and no file behind; if the
// owning process is killed instead, its libvirtd ends with it, and the next
// Start by the same user removes what its guests left. Processes are found by
// process id and the instance's directory in their command line, never by name alone.
//
// Facts used: Debian 12, libvirt 9.0, QEMU 7.2. Needed packages: libvirt-daemon,
// libvirt-daemon-driver-qemu, libvirt-clients, qemu-system-x86, ovmf for UEFI.
package sessionvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// ErrRoot is returned by Start to root; see DropRoot.
var ErrRoot = errors.New("libvirt session instances cannot be run by root")

// dirPrefix begins the names of the directories that Start makes itself.
const dirPrefix = "/tmp/hfv-"

// ownerFile holds the identity of the process that owns a directory.
const ownerFile = "owner"

// maxDir is the longest directory, in bytes, below which the deepest socket of
// libvirt ("/c/libvirt/qemu/channel/target/domain-99-NAME/org.qemu.guest_agent.0")
// stays under the 108 bytes of a unix socket address.
const maxDir = 26

// Instance is one running libvirtd in session mode. Its methods may be called from any goroutine.
type Instance struct {
	URI    string   // for virsh together with Env
	Socket string   // libvirtd's unix socket, for RPC clients
	Dir    string   // everything below it belongs to the instance; put disks and sockets of guests here
	Env    []string // complete environment for virsh and other libvirt clients

	daemon *daemon
	once   sync.Once
	stopE  error
}

// Start runs a libvirtd whose files are all below dir, which must not exist or
// be empty, and waits until it answers (a few seconds: it examines QEMU
// first). With an empty dir it makes a short one below /tmp. Stop removes dir in either case.
// ctx bounds the start only, not the life of the instance.
func Start(ctx context.Context, dir string) (*Instance, error) {
	if os.Geteuid() == 0 {
		return nil, fmt.Errorf("start libvirt session: %w", ErrRoot)
	}
	dir, err := prepare(dir)
	if err != nil {
		return nil, fmt.Errorf("start libvirt session: %w", err)
	}
	i := &Instance{URI: "qemu:///session", Dir: dir, Socket: filepath.Join(dir, "r/libvirt/libvirt-sock"), Env: environment(dir)}
	if i.daemon, err = startDaemon(i); err != nil {
		return nil, errors.Join(fmt.Errorf("start libvirt session: %w", err), os.RemoveAll(dir))
	}
	if err := i.waitReady(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start libvirt session in %s: %w%s", dir, err, i.daemonLog()), i.Stop())
	}
	return i, nil
}

func prepare(dir string) (string, error) {
	sweep(dirPrefix, clean)
	made := dir == ""
	if made {
		d, err := os.MkdirTemp(filepath.Dir(dirPrefix), filepath.Base(dirPrefix))
		if err != nil {
			return "", err
		}
		dir = d
	}
	if !filepath.IsAbs(dir) || len(dir) > maxDir {
		return "", fmt.Errorf("directory %q: want an absolute path of at most %d bytes, because unix socket addresses are short", dir, maxDir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if old, err := os.ReadDir(dir); err != nil || len(old) > 0 {
		return "", errors.Join(fmt.Errorf("directory %s is not empty", dir), err)
	}
	for _, sub := range []string{"r", "c/libvirt", "k", "h", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return "", err
		}
	}
	// QEMU opens the consoles itself: no second daemon (virtlogd) is needed.
	for name, text := range map[string]string{
		"c/libvirt/qemu.conf":     "stdio_handler = \"file\"\n",
		"c/libvirt/libvirtd.conf": "log_outputs = \"3:file:" + filepath.Join(dir, "libvirtd.log") + "\"\n",
		ownerFile:                 processIdentity(os.Getpid()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// environment keeps the caller's variables but for those that would lead to another libvirt.
func environment(dir string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if name == "HOME" || strings.HasPrefix(name, "XDG_") || strings.HasPrefix(name, "LIBVIRT_") || strings.HasPrefix(name, "VIRSH_") || name == "TMPDIR" {
			continue
		}
		env = append(env, kv)
	}
	return append(env, "HOME="+dir+"/h", "XDG_RUNTIME_DIR="+dir+"/r", "XDG_CONFIG_HOME="+dir+"/c", "XDG_CACHE_HOME="+dir+"/k",
		"XDG_DATA_HOME="+dir+"/d", "LIBVIRT_DEFAULT_URI=qemu:///session", "LC_ALL=C", "TMPDIR=/tmp")
}

func (i *Instance) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 120*time.Second)
	defer cancel()
	for {
		select {
		case <-i.daemon.done:
			return fmt.Errorf("libvirtd ended: %w", i.daemon.err)
		case <-ctx.Done():
			return fmt.Errorf("libvirtd did not make its socket: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
		if _, err := os.Stat(i.Socket); err == nil {
			break
		}
	}
	// Naming the socket keeps the client from ever starting a daemon of its own.
	_, err := i.Virsh(ctx, "version")
	return err
}

func (i *Instance) daemonLog() string {
	b, err := os.ReadFile(filepath.Join(i.Dir, "libvirtd.log"))
	if err != nil || len(b) == 0 {
		return ""
	}
	return "; its log: " + strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// Virsh runs virsh in this instance and returns its standard output.
func (i *Instance) Virsh(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", i.URI + "?socket=" + i.Socket}, args...)...)
	cmd.Env = i.Env
	cmd.WaitDelay = time.Second
	var out, errText bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errText
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("virsh %s: %s: %w", strings.Join(args, " "), strings.TrimSpace(errText.String()), errors.Join(ctx.Err(), err))
	}
	return out.String(), nil
}

// Stop ends libvirtd and every QEMU of the instance, hard, and removes the
// directory. It is idempotent and returns the first call's error.
func (i *Instance) Stop() error {
	i.once.Do(func() {
		i.daemon.stop()
		i.stopE = clean(i.Dir)
	})
	return i.stopE
}

// clean kills what runs in an instance's directory and removes it.
func clean(dir string) error {
	err := killAll(dir)
	if rm := os.RemoveAll(dir); rm != nil {
		err = errors.Join(err, fmt.Errorf("remove files of libvirt session: %w", rm))
	}
	return err
}

// sweep removes the directories prefix* whose owners were killed. Failures
// don't matter: the next start tries again.
func sweep(prefix string, remove func(dir string) error) {
	dirs, err := filepath.Glob(prefix + "*")
	if err != nil {
		return
	}
	for _, dir := range dirs {
		owner, err := os.ReadFile(filepath.Join(dir, ownerFile))
		if err != nil || len(owner) == 0 || isRunning(string(owner)) || !ownedByUs(dir) {
			continue // in use, just being made, or somebody else's
		}
		if err := remove(dir); err != nil {
			slog.Debug("removing what a killed process left failed", "dir", dir, "error", err)
		}
	}
}
