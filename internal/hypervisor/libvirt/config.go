package libvirt

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/hypervisor/libvirt/internal/cutting"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

// Config of a host connection. Zero durations and sizes mean their defaults.
type Config struct {
	// URI is "qemu:///system" (default) or "qemu:///session". Only local
	// daemons: the data sockets are on the same machine.
	URI string
	// Socket of the daemon; default: where libvirt puts it for the URI,
	// libvirtd first, then virtqemud.
	Socket string
	// Dir is the product directory, absolute and short: unix socket paths have
	// at most 107 bytes. It is created if missing. QEMU creates sockets in it,
	// so with qemu:///system it has to be writable by QEMUUser, and it must not
	// be on the guests' own file system if that can be avoided.
	Dir string
	// QEMUUser is who QEMU runs as under qemu:///system; default: the first of
	// libvirt-qemu, qemu that exists. Used only when the agent is root, to give it Dir.
	QEMUUser string
	// ScratchReserve is allocated per disk of an open cut (at most the disk's
	// size) and again whenever it is nearly used up; default 1 GiB.
	ScratchReserve int64
	// MaxCutAge ends a cut that is open that long; default 24 h.
	MaxCutAge time.Duration
	// CallTimeout bounds every call to libvirt, qemu-img and a cut's export that
	// has no earlier deadline; default 2 min, because a daemon that has to examine QEMU again takes that long to define a VM.
	CallTimeout time.Duration
	// AgentTimeout bounds a guest agent's answer; default 5 s.
	AgentTimeout time.Duration
	// FreezeLimit bounds how long a guest's file systems stay frozen; past it the
	// guest is thawed and the cut only crash-consistent; default 10 s.
	FreezeLimit time.Duration
	// GroupHold bounds how long the guests of a group cut stand still together;
	// past it they are released and the cut fails; default 5 s.
	GroupHold time.Duration
	// Accel is how recovery VMs run: "kvm", "tcg", or "" for KVM if the host
	// says it has it.
	Accel string
	Log   *slog.Logger // default: discard

	stage func(string) // cutting.Config.Stage
}

// maxSocketPath is the length limit of a unix socket address on Linux, without the final zero.
const maxSocketPath = 107

// Validate reports the first setting that can't be used.
func (c Config) Validate() error {
	switch {
	case c.URI != "" && c.URI != virt.URISystem && c.URI != virt.URISession:
		return fmt.Errorf("libvirt: URI %q is neither %s nor %s", c.URI, virt.URISystem, virt.URISession)
	case !filepath.IsAbs(c.Dir) || filepath.Clean(c.Dir) == string(filepath.Separator):
		return fmt.Errorf("libvirt: product directory %q is not an absolute path of its own", c.Dir)
	case len(cutting.SampleSocket(c.Dir)) > maxSocketPath:
		return fmt.Errorf("libvirt: product directory %q is too long for the paths of unix sockets (%d bytes at most)", c.Dir, maxSocketPath)
	case strings.ContainsAny(c.Dir, "\n\r\t,"):
		return fmt.Errorf("libvirt: product directory %q contains a character that QEMU does not take", c.Dir)
	case c.ScratchReserve < 0 || c.MaxCutAge < 0 || c.CallTimeout < 0 || c.AgentTimeout < 0 || c.FreezeLimit < 0 || c.GroupHold < 0:
		return errors.New("libvirt: negative limit")
	case c.Accel != "" && c.Accel != "kvm" && c.Accel != "tcg":
		return fmt.Errorf("libvirt: accelerator %q is neither kvm nor tcg", c.Accel)
	}
	return nil
}

const bootDir = "boot"

func (c Config) withDefaults() Config {
	if c.URI == "" {
		c.URI = virt.URISystem
	}
	if c.ScratchReserve == 0 {
		c.ScratchReserve = 1 << 30
	}
	c.ScratchReserve = max(c.ScratchReserve, 4<<20)
	if c.MaxCutAge == 0 {
		c.MaxCutAge = 24 * time.Hour
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = 2 * time.Minute
	}
	if c.AgentTimeout == 0 {
		c.AgentTimeout = 5 * time.Second
	}
	if c.FreezeLimit == 0 {
		c.FreezeLimit = 10 * time.Second
	}
	if c.GroupHold == 0 {
		c.GroupHold = 5 * time.Second
	}
	if c.stage == nil {
		c.stage = func(string) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Dir = filepath.Clean(c.Dir)
	return c
}

// sockets lists where the daemon may listen, best first.
func (c Config) sockets() []string {
	if c.Socket != "" {
		return []string{c.Socket}
	}
	var dirs []string
	if c.URI == virt.URISystem {
		dirs = []string{"/run/libvirt", "/var/run/libvirt"}
	} else {
		if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
			dirs = append(dirs, filepath.Join(d, "libvirt"))
		}
		if d, err := os.UserCacheDir(); err == nil {
			dirs = append(dirs, filepath.Join(d, "libvirt"))
		}
	}
	var list []string
	for _, d := range dirs {
		list = append(list, filepath.Join(d, "libvirt-sock"), filepath.Join(d, virt.ModularSocket))
	}
	return list
}
