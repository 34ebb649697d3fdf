package storetool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"holdfast/cmd/holdfast/internal/console"
	"holdfast/cmd/holdfast/internal/storage"
	"holdfast/internal/dr"
	"holdfast/internal/hydrate"
	"holdfast/internal/nbd"
	"holdfast/internal/recovery/bare"
	"holdfast/internal/store"
)

// RecoverCommand is 'holdfast recover'.
func RecoverCommand(c *console.Console) *cobra.Command {
	a := &app{c}
	var f storage.Flags
	var all bool
	cmd := &cobra.Command{
		Use: "recover --store STORE --key KEY", Short: "Bring VMs back from a store when there is no vault", Args: cobra.NoArgs,
		Long: "Bring VMs back with the store and the vault's private key alone, on any machine. Without a further\n" +
			"word it lists the VMs and their newest recovery points. Nothing in the store is changed.\n\n" +
			"The variables HOLDFAST_STORE and HOLDFAST_KEY stand for --store and --key.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			o, err := f.Open(c.Context(), a.Console, storage.ReadOnly)
			if err != nil {
				return err
			}
			defer console.Closing(&err, o.Close)
			views, _, err := machines(c.Context(), o.Store, "")
			if err != nil {
				return err
			}
			return a.overview(views, all)
		},
	}
	f.Add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "list all recovery points, not only the newest five of each VM")
	cmd.AddCommand(a.recoverVerifyCommand(), a.recoverRestoreCommand(), a.recoverServeCommand(), a.recoverBootCommand())
	return cmd
}

// newestPoints is how many points of each VM the overview lists.
const newestPoints = 5

func (a *app) overview(views []machineView, all bool) error {
	if a.JSON {
		return a.listMachines(views)
	}
	if len(views) == 0 {
		a.Say("The store has no machines.")
		return nil
	}
	for i, m := range views {
		if i > 0 {
			fmt.Fprintln(a.Out)
		}
		most := newestPoints
		if all {
			most = len(m.Points)
		}
		if err := a.describeMachine(m, most); err != nil {
			return err
		}
		if left := len(m.Points) - most; left > 0 {
			a.Say("… and %d older ones, back to %s; --all lists them.", left, a.When(m.Points[0].Time))
		}
	}
	vm := views[0].name()
	for _, m := range views {
		if len(m.Points) > 0 {
			vm = m.name()
			break
		}
	}
	a.Say("\nWhat can be done next, with the same --store and --key:\n"+
		"  holdfast recover verify                  read every byte: are points good?\n"+
		"  holdfast recover restore VM --out DIR    write disks and configuration\n"+
		"  holdfast recover serve VM --socket PATH  look into the disks, without a copy\n"+
		"  holdfast recover boot VM                 start the VM here, on trial\n"+
		"VM is a name or a machine's id, such as %s.", vm)
	return nil
}

func (a *app) recoverVerifyCommand() *cobra.Command {
	var f machineFlags
	c := &cobra.Command{Use: "verify [VM]", Short: "Read and verify every byte of every recovery point", Args: cobra.MaximumNArgs(1), Long: verifyLong,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				f.machine = args[0]
			}
			return a.verifyAll(c.Context(), &f)
		}}
	f.Add(c)
	return c
}

// restoredView is what 'recover restore' has written.
type restoredView struct {
	Machine string         `json:"machine"`
	VM      string         `json:"vm"`
	Point   string         `json:"point"`
	Time    *time.Time     `json:"time"`
	Disks   []restoredDisk `json:"disks"`
	Files   []string       `json:"files"` // the VM's configuration
}

type restoredDisk struct {
	Disk   string `json:"disk"`
	Format string `json:"format"`
	File   string `json:"file"`
	Size   int64  `json:"sizeBytes"` // of the disk
}

func (a *app) recoverRestoreCommand() *cobra.Command {
	var f storage.Flags
	var p pointFlags
	var out, format string
	var disks []string
	c := &cobra.Command{Use: "restore VM --out DIR", Short: "Write a VM's disks and configuration to files", Args: cobra.ExactArgs(1),
		Long: "Write the disks of a recovery point and the VM's configuration files into a directory. Every byte is\n" +
			"verified on the way. No file is overwritten; a disk that can't be written whole is not there.",
		RunE: func(c *cobra.Command, args []string) (err error) {
			ctx := c.Context()
			kind, err := hydrate.ParseFormat(cmp.Or(format, string(hydrate.FormatRaw)), "")
			if err != nil {
				return err
			}
			o, err := f.Open(ctx, a.Console, storage.ReadOnly)
			if err != nil {
				return err
			}
			defer console.Closing(&err, o.Close)
			_, view, err := a.openPoint(ctx, o.Store, args[0], p)
			if err != nil {
				return err
			}
			defer console.Closing(&err, view.Close)
			v, err := a.restoreAll(ctx, view, out, kind, disks)
			if err != nil {
				return err
			}
			if a.JSON {
				return a.PrintJSON(v)
			}
			if err := a.Describe(v, console.F("vm", v.VM), console.F("point", v.Point), console.F("time", a.When(v.Time)), console.F("configuration", strings.Join(v.Files, "\n"))); err != nil {
				return err
			}
			return console.List(a.Console, v.Disks, "The point has no disks.", console.Col("DISK", func(d restoredDisk) string { return d.Disk }),
				console.Col("SIZE", func(d restoredDisk) string { return console.Bytes(d.Size) }), console.Wide("FILE", func(d restoredDisk) string { return d.File }))
		}}
	f.Add(c)
	p.add(c)
	c.Flags().StringVar(&out, "out", "", "directory for the files; made if it is missing")
	c.Flags().StringVar(&format, "format", "", "format of the disks: raw, qcow2, vhd or vhdx (default raw)")
	c.Flags().StringArrayVar(&disks, "disk", nil, "only this disk; may be repeated (default: all disks)")
	console.Required(c, "out")
	return c
}

func (a *app) restoreAll(ctx context.Context, view *store.View, dir string, format hydrate.Format, only []string) (restoredView, error) {
	at := view.Info()
	vm := view.VM()
	v := restoredView{Machine: string(view.Machine()), VM: vm.Name, Point: dr.PointName(at.Gen, at.N), Time: &at.Commit.Time, Disks: []restoredDisk{}, Files: []string{}}
	var have []string
	var todo []store.DiskInfo
	for _, d := range view.Disks() {
		have = append(have, d.ID)
		if len(only) == 0 || slices.Contains(only, d.ID) {
			todo = append(todo, d)
		}
	}
	for _, id := range only {
		if !slices.Contains(have, id) {
			return v, dr.New(dr.KindNotFound, dr.CodeNotFound, "recover.restore", "the VM has no disk %q", id).WithHint("It has %s.", strings.Join(have, ", "))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return v, console.ClassifyAs(err, "make the directory "+dir)
	}
	for i := range todo { // before anything is written
		path := filepath.Join(dir, fileName(todo[i].ID)+"."+string(format))
		if _, err := os.Lstat(path); err == nil {
			return v, dr.New(dr.KindConflict, dr.CodeAlreadyExists, "recover.restore", "%s exists already; nothing was written", path).
				WithHint("Choose another directory, or name the disks that are missing with --disk.")
		}
	}
	for _, name := range slices.Sorted(keysOf(vm.Config)) {
		path := filepath.Join(dir, fileName(name))
		text := vm.Config[name]
		if old, err := os.ReadFile(path); err == nil && string(old) == string(text) {
			v.Files = append(v.Files, path) // an earlier run wrote it
			continue
		}
		if err := console.CreateFile(path, func() ([]byte, error) { return text, nil }); err != nil {
			return v, err
		}
		v.Files = append(v.Files, path)
	}
	for _, d := range todo {
		path := filepath.Join(dir, fileName(d.ID)+"."+string(format))
		if err := a.restoreDisk(ctx, view, d.ID, path, format); err != nil {
			if len(v.Disks) > 0 && ctx.Err() == nil {
				a.Say("%d of %d disks are written; go on with --disk %s", len(v.Disks), len(todo), d.ID)
			}
			return v, err
		}
		v.Disks = append(v.Disks, restoredDisk{d.ID, string(format), path, d.Size})
	}
	return v, nil
}

func keysOf(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// fileName makes a name that others have chosen one within a directory.
func fileName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || strings.ContainsRune(`/\:*?"<>|`, r) {
			return '_'
		}
		return r
	}, name)
	if strings.Trim(name, ". ") == "" {
		return "_" + strings.Repeat("_", len(name))
	}
	return strings.TrimLeft(name, ".")
}

func (a *app) recoverServeCommand() *cobra.Command {
	var f storage.Flags
	var p pointFlags
	var socket string
	c := &cobra.Command{Use: "serve VM --socket PATH", Short: "Serve a VM's disks read-only over NBD until Ctrl-C", Args: cobra.ExactArgs(1),
		Long: "Serve the disks of a recovery point over NBD on a unix socket, read-only, until Ctrl-C or SIGTERM:\n" +
			"to copy single files, to look at a database, to convert a disk. Nothing is copied before it is read.",
		RunE: func(c *cobra.Command, args []string) (err error) {
			ctx := c.Context()
			o, err := f.Open(ctx, a.Console, storage.ReadOnly)
			if err != nil {
				return err
			}
			defer console.Closing(&err, o.Close)
			_, view, err := a.openPoint(ctx, o.Store, args[0], p)
			if err != nil {
				return err
			}
			defer console.Closing(&err, view.Close)
			return a.serve(ctx, view, socket)
		}}
	f.Add(c)
	p.add(c)
	c.Flags().StringVar(&socket, "socket", "", "unix socket to make")
	console.Required(c, "socket")
	return c
}

// servedView is what 'recover serve' says before it serves.
type servedView struct {
	Machine string       `json:"machine"`
	VM      string       `json:"vm"`
	Point   string       `json:"point"`
	Time    *time.Time   `json:"time"`
	Socket  string       `json:"socket"`
	Disks   []servedDisk `json:"disks"`
}

type servedDisk struct {
	Disk string `json:"disk"`
	Size int64  `json:"sizeBytes"`
	URI  string `json:"uri"`
}

const maxSocket = 100 // bytes: the limit of unix sockets, with room

func (a *app) serve(ctx context.Context, view *store.View, socket string) error {
	socket, err := filepath.Abs(socket)
	if err != nil || len(socket) > maxSocket {
		return console.Usage("the path of the socket %s is longer than %d bytes", socket, maxSocket)
	}
	if err := freeSocket(ctx, socket); err != nil {
		return err
	}
	at := view.Info()
	v := servedView{Machine: string(view.Machine()), VM: view.VM().Name, Point: dr.PointName(at.Gen, at.N), Time: &at.Commit.Time, Socket: socket}
	exports := nbd.ExportMap{}
	for _, d := range view.Disks() {
		exports[d.ID] = hydrate.NewDevice(view, d, hydrate.DeviceConfig{Patience: time.Minute, OnError: func(err error) { a.Say("reading disk %s: %v", d.ID, err) }})
		v.Disks = append(v.Disks, servedDisk{d.ID, d.Size, "nbd+unix:///" + url.PathEscape(d.ID) + "?socket=" + url.QueryEscape(socket)})
	}
	server, err := nbd.NewServer(nbd.ServerConfig{Exports: exports, PreferredBlock: 64 << 10})
	if err != nil {
		return dr.Errorf(dr.KindInternal, "recover.serve", "make NBD server: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return errors.Join(dr.Errorf(dr.KindUnavailable, "recover.serve", "listen on %s: %w", socket, err), server.Close())
	}
	if err := os.Chmod(socket, 0o600); err != nil { // the disks are nobody else's business
		return errors.Join(console.ClassifyAs(err, "keep others from the socket"), ln.Close(), server.Close())
	}
	if err := a.sayServed(v); err != nil {
		return errors.Join(err, ln.Close(), server.Close())
	}
	err = server.Serve(ctx, ln)
	if rerr := os.Remove(socket); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err = errors.Join(err, server.Close()); err != nil && ctx.Err() == nil {
		return dr.Errorf(dr.KindUnavailable, "recover.serve", "serve: %w", err)
	}
	a.Say("No longer serving. Nothing was changed.")
	return nil
}

// freeSocket removes a socket that nobody listens on any more; anything else in
// its place is a conflict.
func freeSocket(ctx context.Context, socket string) error {
	info, err := os.Lstat(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	taken := dr.New(dr.KindConflict, dr.CodeAlreadyExists, "recover.serve", "%s exists already", socket).WithHint("Choose another path for the socket.")
	if err != nil || info.Mode()&fs.ModeSocket == 0 {
		return taken
	}
	d := net.Dialer{Timeout: time.Second}
	if conn, err := d.DialContext(ctx, "unix", socket); err == nil {
		_ = conn.Close() // only looked whether somebody answers
		return taken
	}
	return os.Remove(socket)
}

func (a *app) sayServed(v servedView) error {
	if a.JSON {
		return a.PrintJSON(v)
	}
	if err := a.Describe(v, console.F("vm", v.VM), console.F("point", v.Point), console.F("time", a.When(v.Time))); err != nil {
		return err
	}
	for _, d := range v.Disks { // not in a table: an address that is wrapped can't be copied
		if _, err := fmt.Fprintf(a.Out, "%s  %s\n  %s\n", d.Disk, console.Bytes(d.Size), d.URI); err != nil {
			return err
		}
	}
	u := v.Disks[0].URI
	a.Say("\nRead-only, until Ctrl-C. For example:\n"+
		"  nbdinfo '%[1]s'\n  nbdcopy '%[1]s' disk.raw\n  qemu-img convert -f raw -O qcow2 '%[1]s' disk.qcow2\n"+
		"  guestfish --ro --format=raw -a '%[1]s' -i\n  nbdkit --filter=partition nbd uri='%[1]s' partition=1\n"+
		"  nbd-client -unix %[2]s -N %[3]s /dev/nbd0    (as root; then mount -o ro)", u, v.Socket, v.Disks[0].Disk)
	return nil
}

func (a *app) recoverBootCommand() *cobra.Command {
	var f storage.Flags
	var p pointFlags
	var memory console.Size
	var cpus int
	var vnc, dir, accel string
	c := &cobra.Command{Use: "boot VM", Short: "Start a VM here on trial, from a recovery point, without network", Args: cobra.ExactArgs(1),
		Long: "Start a VM from a recovery point with QEMU on this machine: no libvirt, no vault. Its first serial\n" +
			"port is on the terminal. It has no network, and what it writes goes to temporary files that are\n" +
			"removed at the end: neither the recovery point nor the source is changed. Ctrl-C switches it off.",
		RunE: func(c *cobra.Command, args []string) (err error) {
			ctx := c.Context()
			display, err := vncDisplay(vnc)
			if err != nil {
				return err
			}
			if accel != "" && accel != "kvm" && accel != "tcg" {
				return console.Usage("--accel %q is neither kvm nor tcg", accel)
			}
			if memory < 0 || memory > 0 && memory < 64<<20 || cpus < 0 {
				return console.Usage("--memory must be 64M at least, and --cpus positive")
			}
			o, err := f.Open(ctx, a.Console, storage.ReadOnly)
			if err != nil {
				return err
			}
			defer console.Closing(&err, o.Close)
			_, view, err := a.openPoint(ctx, o.Store, args[0], p)
			if err != nil {
				return err
			}
			defer console.Closing(&err, view.Close)
			return a.boot(ctx, view, bare.Config{View: view, Dir: dir, CPUs: cpus, MemoryMB: int(memory >> 20), Display: display, Accel: accel})
		}}
	f.Add(c)
	p.add(c)
	c.Flags().Var(&memory, "memory", "memory of the VM, such as 2G (default: as captured)")
	c.Flags().IntVar(&cpus, "cpus", 0, "processors of the VM (default: as captured)")
	c.Flags().StringVar(&accel, "accel", "", "kvm, or tcg: slow, and for hosts whose KVM lets guests hang (default: kvm where it runs guests)")
	c.Flags().StringVar(&vnc, "vnc", "", "show the screen by VNC on this display, such as :1 (port 5901 of this machine only)")
	c.Flags().StringVar(&dir, "dir", "", "existing directory for the VM's own changes; they stay there (default: a temporary one)")
	return c
}

// vncDisplay keeps a screen that needs no password on this machine, unless an address is given.
func vncDisplay(vnc string) (string, error) {
	if vnc == "" {
		return "", nil
	}
	host, display, ok := strings.Cut(vnc, ":")
	if !ok {
		host, display = "", vnc
	}
	if i := strings.LastIndexByte(vnc, ':'); strings.HasPrefix(vnc, "[") && i > 0 {
		host, display = vnc[:i], vnc[i+1:]
	}
	if display == "" || strings.Trim(display, "0123456789") != "" || strings.ContainsAny(host, ", ") {
		return "", console.Usage("--vnc %q is not a display such as :1", vnc)
	}
	return "vnc=" + cmp.Or(host, "127.0.0.1") + ":" + display, nil
}

func (a *app) boot(ctx context.Context, view *store.View, cfg bare.Config) error {
	at, vm := view.Info(), view.VM()
	point := dr.PointName(at.Gen, at.N)
	a.Say("Starting %s from %s of %s.\nThere is no network. The recovery point and the source are not changed;\nwhat the VM writes is %s. Ctrl-C switches it off.\n",
		vm.Name, point, a.When(&at.Commit.Time), map[bool]string{true: "forgotten at the end", false: "in " + cfg.Dir}[cfg.Dir == ""])
	cfg.Console, cfg.Input = a.Out, a.In
	if a.JSON {
		cfg.Console = a.Err
	}
	if in, ok := a.In.(*os.File); ok { // QEMU takes the terminal over, and may be killed
		if before, err := term.GetState(int(in.Fd())); err == nil {
			defer func() { _ = term.Restore(int(in.Fd()), before) }() // the terminal may be gone
		}
	}
	began := a.Now()
	err := bare.Boot(ctx, cfg)
	ended := "by the guest"
	if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err())) {
		err, ended = nil, "by Ctrl-C"
	}
	if err != nil {
		return err
	}
	a.Say("\n%s was switched off %s. Nothing was changed.", vm.Name, ended)
	if a.JSON {
		return a.PrintJSON(struct {
			Machine string  `json:"machine"`
			VM      string  `json:"vm"`
			Point   string  `json:"point"`
			Seconds float64 `json:"seconds"`
			Ended   string  `json:"ended"`
		}{string(view.Machine()), vm.Name, point, a.Now().Sub(began).Seconds(), map[string]string{"by the guest": "guest", "by Ctrl-C": "canceled"}[ended]})
	}
	return nil
}
