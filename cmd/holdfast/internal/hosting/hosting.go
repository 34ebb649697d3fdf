// Package hosting knows the flags that say which hypervisor a host has and how
// to reach it, and opens it: KVM by libvirt, or Hyper-V by WS-Man or COM with its disks by
// virtdisk.dll or, for the simulator, in a directory, or a resource group of Azure. Only cmd wires adapters; this is where.
// It also knows what else a host's commands share: the way to VMM, the proxy, and where state and product directories are.
//
// It promises: no password on a command line or in an error; an address
// that would send one in the clear is refused before anything is sent; and commands that
// work beside the agent have product directories of their own.
package hosting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/internal/cim"
	"holdfast/internal/cim/com"
	"holdfast/internal/cim/wsman"
	"holdfast/internal/dr"
	"holdfast/internal/hypervisor"
	"holdfast/internal/hypervisor/hyperv"
	"holdfast/internal/hypervisor/hyperv/vhdxfiles"
	"holdfast/internal/hypervisor/hyperv/virtdisk"
	"holdfast/internal/hypervisor/libvirt"
)

// The --hyperv addresses of the host itself.
const (
	LocalHyperV = "local" // by WS-Man as this process, or by COM where WinRM is not to be had
	LocalCOM    = "com"

	localWSMan = "http://localhost:5985/wsman"
	localTry   = 15 * time.Second // for the first answer by WS-Man
)

// Flags say which hypervisor a host has.
type Flags struct {
	Libvirt, Socket string
	HyperV          string // "" = KVM
	User, Password  string // Password is a file
	CA, Pin         string
	Basic           bool
	Files           string // directory that stands for the drives of a simulated host
	Tracker         string
	Dir             string // product directory
	Azure           string // configuration file of a resource group; "" = a host with a hypervisor
}

// Add adds the flags to a command.
func (h *Flags) Add(c *cobra.Command) {
	f := c.Flags()
	def := ""
	if runtime.GOOS == "windows" {
		def = LocalHyperV
	}
	f.StringVar(&h.Libvirt, "libvirt", "qemu:///system", "libvirt URI: qemu:///system or qemu:///session")
	f.StringVar(&h.Socket, "libvirt-socket", "", "socket of the libvirt daemon (default: where it usually is)")
	f.StringVar(&h.HyperV, "hyperv", def, "Hyper-V host instead of libvirt: local, com, or its address such as https://host:5986/wsman")
	f.StringVar(&h.User, "hyperv-user", "", "user at the Hyper-V host (default on Windows: the agent's own account)")
	f.StringVar(&h.Password, "hyperv-password-file", "", "file with the user's password")
	f.StringVar(&h.CA, "hyperv-ca", "", "PEM file of the authority of the Hyper-V host's certificate")
	f.StringVar(&h.Pin, "hyperv-pin", "", "SHA-256 of the Hyper-V host's certificate, instead of an authority")
	f.BoolVar(&h.Basic, "hyperv-basic", false, "sign in with Basic instead of Negotiate (over HTTPS only)")
	f.StringVar(&h.Files, "hyperv-files", "", "directory that holds the drives of a simulated Hyper-V host")
	f.StringVar(&h.Tracker, "hyperv-tracker", "rct", "how changes are tracked: rct (hrl is refused so far)")
	f.StringVar(&h.Azure, "azure", "", "configuration file of an Azure resource group that VMs are recovered in, instead of a hypervisor")
	f.StringVar(&h.Dir, "dir", "", "directory for scratch files, sockets and recovery disks; the hypervisor must get there (default: STATE.vms)")
}

// IsHyperV reports whether the flags name a Hyper-V host.
func (h *Flags) IsHyperV() bool { return h.HyperV != "" }

// Image is how the names of recovery disks end.
func (h *Flags) Image() string {
	switch {
	case h.Azure != "":
		return ".vhd"
	case h.IsHyperV():
		return ".vhdx"
	}
	return ".qcow2"
}

// Open connects to the host's hypervisor; dir is the product directory.
func (h *Flags) Open(ctx context.Context, dir string, log *slog.Logger) (hypervisor.Host, error) {
	const op = "holdfast.host"
	if h.Azure != "" {
		return openAzure(ctx, h.Azure, log)
	}
	if !h.IsHyperV() {
		if runtime.GOOS != "linux" {
			return nil, dr.Errorf(dr.KindUnsupported, op, "KVM hosts are Linux hosts; this is %s. Name a Hyper-V host with --hyperv", runtime.GOOS)
		}
		return libvirt.Open(ctx, libvirt.Config{URI: h.Libvirt, Socket: h.Socket, Dir: dir, Log: log})
	}
	tracker := hyperv.TrackerRCT
	switch h.Tracker {
	case "", "rct":
	case "hrl":
		tracker = hyperv.TrackerHRL
	default:
		return nil, console.Usage("--hyperv-tracker %q is neither rct nor hrl", h.Tracker)
	}
	disks, err := h.disks()
	if err != nil {
		return nil, err
	}
	s, err := h.Session(ctx, nil)
	if err != nil {
		return nil, err
	}
	host, err := hyperv.Open(ctx, hyperv.Config{Session: s, Disks: disks, Dir: dir, Log: log, Tracker: tracker})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return host, nil
}

// Disks opens the data plane of the Hyper-V host.
func (h *Flags) disks() (hyperv.Disks, error) {
	if h.Files != "" {
		root, err := filepath.Abs(h.Files)
		if err != nil {
			return nil, console.Usage("--hyperv-files: %v", err)
		}
		return vhdxfiles.New(vhdxfiles.Config{Root: root}), nil
	}
	if runtime.GOOS != "windows" {
		return nil, dr.Errorf(dr.KindUnsupported, "holdfast.host", "disks of a Hyper-V host are read on the host itself: run the agent there. From here only a simulated host can be used, with --hyperv-files")
	}
	return virtdisk.New(virtdisk.Config{})
}

// Session connects to the management of the Hyper-V host. rec may be nil.
func (h *Flags) Session(ctx context.Context, rec wsman.Recorder) (cim.Session, error) {
	switch h.HyperV {
	case LocalHyperV:
		return local(ctx, func() (cim.Session, error) { return wsman.New(wsman.Config{URL: localWSMan, Recorder: rec}) }, openCOM)
	case LocalCOM:
		return openCOM(ctx)
	}
	u, err := url.Parse(h.HyperV)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, console.Usage("--hyperv is no address like https://host:5986/wsman, without user and password")
	}
	cfg := wsman.Config{URL: h.HyperV, User: h.User, CAFile: h.CA, Pin: h.Pin, Recorder: rec}
	if h.Basic {
		if u.Scheme != "https" {
			return nil, console.Usage("--hyperv-basic would send the password in the clear: use an https address")
		}
		cfg.Auth = wsman.AuthBasic
	}
	if h.User != "" {
		if h.Password == "" {
			return nil, console.Usage("--hyperv-user needs --hyperv-password-file")
		}
		cfg.Password = func(context.Context) (string, error) { return password(h.Password) }
		if _, err := cfg.Password(ctx); err != nil {
			return nil, err
		}
	} else if runtime.GOOS != "windows" {
		return nil, console.Usage("--hyperv needs --hyperv-user and --hyperv-password-file here")
	}
	s, err := wsman.New(cfg)
	if err != nil {
		return nil, console.Usage("--hyperv: %v", err)
	}
	return s, nil
}

// local prefers WS-Man, the way that is tested most, and takes COM where WinRM is
// off or lets this account not in.
func local(ctx context.Context, byWSMan func() (cim.Session, error), byCOM func(context.Context) (cim.Session, error)) (cim.Session, error) {
	s, err := byWSMan()
	if err == nil {
		try, cancel := context.WithTimeout(ctx, localTry)
		_, err = s.Query(try, "root/virtualization/v2", "SELECT * FROM Msvm_VirtualSystemManagementService")
		cancel()
		if err == nil {
			return s, nil
		}
		err = errors.Join(err, s.Close())
	}
	if ctx.Err() != nil {
		return nil, err
	}
	c, cerr := byCOM(ctx)
	if cerr != nil {
		return nil, errors.Join(cerr, fmt.Errorf("and by WS-Man: %w", err))
	}
	return c, nil
}

func openCOM(ctx context.Context) (cim.Session, error) {
	s, err := com.Open(ctx, com.Config{})
	if err != nil {
		return nil, dr.New(dr.KindUnavailable, dr.CodeHypervisorDown, "holdfast.host", "connect to the management of this host: %w", err)
	}
	return s, nil
}

// password reads the first line of a file that nobody else may read.
func password(path string) (string, error) {
	st, err := os.Stat(path)
	if err == nil && runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return "", dr.Errorf(dr.KindInvalid, "holdfast.host", "the password file %s can be read by others", path).
			WithHint("Run 'chmod 600 %s'.", path)
	}
	raw, err := console.ReadSmall(path)
	if err != nil {
		return "", console.ClassifyAs(err, "read the password file")
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}
