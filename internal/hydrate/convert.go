package hydrate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/nbd"
	"holdfast/internal/store"
	"holdfast/internal/vhd"
	"holdfast/internal/vhdx"
)

// Format is a kind of disk file that a point can be restored to.
type Format string

// The formats. All but qcow2 are written by this process; qcow2 by qemu-img, which
// reads the point over NBD from it.
const (
	FormatRaw   Format = "raw"
	FormatQcow2 Format = "qcow2"
	FormatVHD   Format = "vhd"  // fixed, as Azure wants it: the size is the disk's, rounded up to whole MiB
	FormatVHDX  Format = "vhdx" // dynamic
)

// Formats lists what ParseFormat accepts.
func Formats() []Format { return []Format{FormatRaw, FormatQcow2, FormatVHD, FormatVHDX} }

// ParseFormat accepts the names of the formats; "" is taken from the file name's ending, else raw.
func ParseFormat(s, path string) (Format, error) {
	if s == "" {
		s = strings.TrimPrefix(strings.ToLower(filepath.Ext(path)), ".")
		if !slices.Contains(Formats(), Format(s)) {
			return FormatRaw, nil
		}
	}
	if !slices.Contains(Formats(), Format(s)) {
		return "", dr.New(dr.KindInvalid, "", "hydrate.ParseFormat", "%q is no disk format: use raw, qcow2, vhd or vhdx", s)
	}
	return Format(s), nil
}

// RestoreAs is Restore for any format. The file appears under its name when it is
// complete and durable; a failure leaves nothing behind.
func RestoreAs(ctx context.Context, view *store.View, diskID, path string, format Format, opts RestoreOptions) (err error) {
	if format == FormatRaw {
		return Restore(ctx, view, diskID, path, opts)
	}
	const op = "hydrate.RestoreAs"
	if _, err := os.Lstat(path); err == nil {
		return dr.New(dr.KindConflict, dr.CodeAlreadyExists, op, "%s exists already", path)
	}
	disk, err := diskOf(view, diskID)
	if err != nil {
		return err
	}
	part := path + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return dr.Errorf(dr.KindUnavailable, op, "remove what an earlier attempt left: %w", err)
	}
	switch format {
	case FormatVHD:
		err = restoreVHD(ctx, view, disk, part, opts)
	case FormatVHDX:
		err = restoreVHDX(ctx, view, disk, part, opts)
	default:
		err = restoreQcow2(ctx, view, disk, part, opts)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	return publishFile(part, path)
}

// restoreVHD writes a raw image of whole MiB and a footer behind it.
func restoreVHD(ctx context.Context, view *store.View, disk store.DiskInfo, path string, opts RestoreOptions) (err error) {
	const op = "hydrate.RestoreAs"
	size := vhd.RoundAzure(disk.Size)
	if size > vhd.MaxSize {
		return dr.Errorf(dr.KindUnsupported, op, "disk %s has %d bytes, a VHD has at most %d", disk.ID, disk.Size, int64(vhd.MaxSize)).WithHint("Restore it to vhdx or raw.")
	}
	if err := Restore(ctx, view, disk.ID, path, opts); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "open %s: %w", path, err)
	}
	_, err = vhd.Create(f, vhd.Footer{Size: size})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return dr.New(dr.KindExhausted, dr.CodeNoSpace, op, "write the footer of %s: %w", path, err)
	}
	return nil
}

// restoreVHDX writes a dynamic VHDX.
func restoreVHDX(ctx context.Context, view *store.View, disk store.DiskInfo, path string, opts RestoreOptions) error {
	const op = "hydrate.RestoreAs"
	f, err := vhdx.Create(path, vhdx.CreateSpec{Size: disk.Size})
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return dr.New(dr.KindExhausted, dr.CodeNoSpace, op, "create %s: %w", path, err)
	}
	c, err := vhdx.OpenChain(path, vhdx.ChainOptions{Write: true})
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "open %s: %w", path, err)
	}
	if err := copyDisk(ctx, view, disk, target{c, path, nil}, opts); err != nil {
		return errors.Join(err, c.Close())
	}
	if err := errors.Join(c.Flush(), c.Close()); err != nil {
		return dr.New(dr.KindExhausted, dr.CodeNoSpace, op, "sync %s: %w", path, err)
	}
	return nil
}

// restoreQcow2 lets qemu-img read the point.
func restoreQcow2(ctx context.Context, view *store.View, disk store.DiskInfo, path string, opts RestoreOptions) (err error) {
	const op = "hydrate.RestoreAs"
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		return dr.New(dr.KindUnsupported, "", op, "qemu-img is needed to write qcow2 and is not installed").WithHint("Install qemu-utils, or restore to raw and convert elsewhere.")
	}
	dir, err := os.MkdirTemp("", "holdfast-restore-")
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, op, "make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	uri, stop, err := ServeLocal(ctx, view, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	return runConvert(ctx, tool, []string{"convert", "-p", "-f", "raw", "-O", "qcow2", "-W", "-m", "8", uri(disk.ID), path}, disk.Size, opts.Progress)
}

func diskOf(view *store.View, id string) (store.DiskInfo, error) {
	for _, d := range view.Disks() {
		if d.ID == id {
			return d, nil
		}
	}
	return store.DiskInfo{}, dr.New(dr.KindNotFound, dr.CodeNotFound, "hydrate.Restore", "the recovery point has no disk %q", id)
}

// runConvert runs qemu-img and reads the percentages that it prints.
func runConvert(ctx context.Context, tool string, args []string, size int64, progress func(done, total int64)) error {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.WaitDelay = 5 * time.Second
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return dr.Errorf(dr.KindUnavailable, "hydrate.RestoreAs", "start qemu-img: %w", err)
	}
	lines := bufio.NewScanner(out)
	lines.Split(scanPercent)
	for lines.Scan() {
		text, _, _ := strings.Cut(strings.TrimLeft(lines.Text(), " ("), "/")
		if p, err := strconv.ParseFloat(text, 64); err == nil && progress != nil {
			progress(int64(p/100*float64(size)), size)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return dr.New(dr.KindUnavailable, "", "hydrate.RestoreAs", "qemu-img: %s: %w", strings.TrimSpace(complaints.String()), err)
	}
	return nil
}

// scanPercent splits at the carriage returns by which qemu-img overwrites its progress.
func scanPercent(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// publishFile makes a finished file durable and gives it its name, which must be free.
func publishFile(part, path string) error {
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Link(part, path)
	}
	if errors.Is(err, os.ErrExist) {
		return errors.Join(dr.New(dr.KindConflict, dr.CodeAlreadyExists, "hydrate.RestoreAs", "%s exists already", path), os.Remove(part))
	}
	if err != nil {
		return errors.Join(dr.New(dr.KindExhausted, dr.CodeNoSpace, "hydrate.RestoreAs", "finish %s: %w", path, err), os.Remove(part))
	}
	return os.Remove(part)
}

// ServeLocal serves every disk of a view, read-only, over NBD on a unix socket in
// dir until stop is called. uri gives a disk's address as qemu and libnbd
// understand it.
func ServeLocal(ctx context.Context, view *store.View, dir string) (uri func(disk string) string, stop func() error, err error) {
	exports := nbd.ExportMap{}
	for _, d := range view.Disks() {
		exports[d.ID] = NewDevice(view, d, DeviceConfig{Patience: time.Minute})
	}
	socket := filepath.Join(dir, SocketName)
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, nil, dr.Errorf(dr.KindUnavailable, "hydrate.ServeLocal", "listen on %s: %w", socket, err)
	}
	server, err := nbd.NewServer(nbd.ServerConfig{Exports: exports, PreferredBlock: 64 << 10})
	if err != nil {
		return nil, nil, errors.Join(dr.Errorf(dr.KindInternal, "hydrate.ServeLocal", "make NBD server: %w", err), ln.Close())
	}
	sctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- server.Serve(sctx, ln) }()
	uri = func(disk string) string {
		return fmt.Sprintf("nbd+unix:///%s?socket=%s", url.PathEscape(disk), url.QueryEscape(socket))
	}
	stop = func() error {
		cancel()
		return errors.Join(<-done, server.Close(), os.RemoveAll(socket))
	}
	return uri, stop, nil
}
