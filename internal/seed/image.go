package seed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/cut"
	"holdfast/internal/dr"
	"holdfast/internal/nbd"
)

// Format is a kind of disk image.
type Format string

// The formats. Raw images are read by this package, the others by qemu-nbd.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
	VHD   Format = "vhd"
	VHDX  Format = "vhdx"
)

// Formats lists them.
func Formats() []Format { return []Format{Raw, Qcow2, VHD, VHDX} }

// ParseDisk reads ID=[FORMAT:]PATH.
func ParseDisk(text string) (Disk, error) {
	id, path, ok := strings.Cut(text, "=")
	if !ok || id == "" || path == "" {
		return Disk{}, dr.Errorf(dr.KindInvalid, op, "%q is not of the form vda=IMAGE or vda=FORMAT:IMAGE", text)
	}
	d := Disk{ID: id, Path: path}
	if f, rest, ok := strings.Cut(path, ":"); ok && slices.Contains(Formats(), Format(f)) {
		d.Format, d.Path = Format(f), rest
	}
	return d, nil
}

// image is an opened disk image, read-only.
type image interface {
	Size() int64
	// Data calls fn for the ranges within [off, off+n) that may hold anything but
	// zeroes, in order and without overlap.
	Data(ctx context.Context, off, n int64, fn func(off, n int64) error) error
	ReadAt(ctx context.Context, p []byte, off int64) error
	Close() error
}

// formatOf decides how an image is read. A raw image is never looked into by
// QEMU: its content belongs to the guest, who could make it look like an image that
// refers to other files of this machine.
func formatOf(d Disk) (Format, error) {
	f, known := d.Format, d.Format != ""
	if !known {
		f = Format(strings.TrimPrefix(strings.ToLower(filepath.Ext(d.Path)), "."))
		if known = slices.Contains(Formats(), f); !known {
			f = Raw
		}
	}
	if !slices.Contains(Formats(), f) {
		return "", dr.Errorf(dr.KindInvalid, op, "%q is no format of disk images", f).WithHint("Use raw, qcow2, vhd or vhdx.")
	}
	if known {
		return f, nil
	}
	head := make([]byte, 8)
	file, err := os.Open(d.Path)
	if err != nil {
		return "", openError(d, err)
	}
	defer file.Close()
	_, _ = io.ReadFull(file, head) // a shorter image looks like none of them
	for magic, looks := range map[string]Format{"QFI\xfb": Qcow2, "conectix": VHD, "vhdxfile": VHDX} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return "", dr.Errorf(dr.KindInvalid, op, "the image %s of disk %s looks like %s, and its name does not say so", d.Path, d.ID, looks).
				WithHint("Give %s=%s:%s, or %s=raw:%s if it is raw.", d.ID, looks, d.Path, d.ID, d.Path)
		}
	}
	return f, nil
}

func openError(d Disk, err error) error {
	kind := dr.KindUnavailable
	switch {
	case errors.Is(err, os.ErrNotExist):
		kind = dr.KindNotFound
	case errors.Is(err, os.ErrPermission):
		kind = dr.KindForbidden
	}
	return dr.Errorf(kind, op, "open the image of disk %s: %w", d.ID, err)
}

func openImage(ctx context.Context, d Disk) (image, error) {
	f, err := formatOf(d)
	if err != nil {
		return nil, err
	}
	var img image
	if f == Raw {
		img, err = openRaw(d)
	} else {
		img, err = openQEMU(ctx, d, f)
	}
	if err != nil {
		return nil, err
	}
	if img.Size() <= 0 || img.Size() > cut.MaxDisk {
		return nil, errors.Join(dr.Errorf(dr.KindInvalid, op, "the image %s of disk %s has the size %d", d.Path, d.ID, img.Size()), img.Close())
	}
	return img, nil
}

// raw is a raw image, or a block device.
type raw struct {
	f    *os.File
	size int64
}

func openRaw(d Disk) (image, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, openError(d, err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		return nil, errors.Join(dr.Errorf(dr.KindInvalid, op, "the image %s of disk %s is a directory", d.Path, d.ID), f.Close())
	}
	size, serr := f.Seek(0, io.SeekEnd) // also of block devices
	if err = errors.Join(err, serr); err != nil {
		return nil, errors.Join(openError(d, err), f.Close())
	}
	return &raw{f, size}, nil
}

func (r *raw) Size() int64  { return r.size }
func (r *raw) Close() error { return r.f.Close() }

func (r *raw) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := r.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return fmt.Errorf("%s at %d: %w", r.f.Name(), off, err)
}

func (r *raw) Data(_ context.Context, off, n int64, fn func(off, n int64) error) error {
	return dataOf(r.f, off, n, fn)
}

// qemu is an image that qemu-nbd reads. The process ends with the only connection
// to it, also when this process is killed.
type qemu struct {
	*nbd.Client
	cmd  *exec.Cmd
	dir  string
	done chan error
	errs *bytes.Buffer
}

// openTimeout bounds how long qemu-nbd may take to open an image.
const openTimeout = 30 * time.Second

func openQEMU(ctx context.Context, d Disk, f Format) (image, error) {
	tool, err := exec.LookPath("qemu-nbd")
	if err != nil {
		return nil, dr.Errorf(dr.KindUnsupported, op, "qemu-nbd is needed to read %s images and is not installed", f).WithHint("Install qemu-utils, or convert the image to raw first.")
	}
	if _, err := os.Stat(d.Path); err != nil {
		return nil, openError(d, err)
	}
	path, err := filepath.Abs(d.Path)
	if err != nil {
		return nil, openError(d, err)
	}
	dir, err := os.MkdirTemp("", "holdfast-seed-")
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, op, "make directory: %w", err)
	}
	options := "driver=" + string(f)
	if f == VHD {
		options = "driver=vpc,force_size_calc=current_size" // as Hyper-V and Azure understand it
	}
	socket := filepath.Join(dir, "s")
	q := &qemu{dir: dir, done: make(chan error, 1), errs: &bytes.Buffer{}}
	q.cmd = exec.Command(tool, "--read-only", "--socket", socket, "--export-name", "", "--image-opts", options+",file.driver=file,file.filename="+strings.ReplaceAll(path, ",", ",,"))
	q.cmd.Stderr = q.errs
	q.cmd.WaitDelay = time.Second
	if err := q.cmd.Start(); err != nil {
		return nil, errors.Join(dr.Errorf(dr.KindUnavailable, op, "start qemu-nbd: %w", err), os.RemoveAll(dir))
	}
	go func() { q.done <- q.cmd.Wait() }() // ends with the process, see Close
	if q.Client, err = q.connect(ctx, socket); err != nil {
		_ = q.cmd.Process.Kill() // may have ended already
		<-q.done
		text := strings.TrimSpace(strings.ReplaceAll(q.errs.String(), "qemu-nbd: ", ""))
		if text == "" || ctx.Err() != nil {
			text = err.Error()
		}
		return nil, errors.Join(dr.Errorf(dr.KindInvalid, op, "open the image %s of disk %s as %s: %s", d.Path, d.ID, f, text).
			WithHint("An image that a running VM uses can't be read; give a copy. See also 'qemu-img info'."), os.RemoveAll(dir))
	}
	return q, nil
}

// connect waits until qemu-nbd answers.
func (q *qemu) connect(ctx context.Context, socket string) (*nbd.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			// The socket is there a moment before anybody listens, and refuses then.
			c, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: socket, Contexts: []string{nbd.ContextAllocation}})
			if err == nil || ctx.Err() != nil {
				return c, err
			}
		}
		select {
		case err := <-q.done:
			q.done <- err
			return nil, errors.New("qemu-nbd ended")
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func (q *qemu) Data(ctx context.Context, off, n int64, fn func(off, n int64) error) error {
	return q.Extents(ctx, off, n, func(_ string, off, n int64, flags uint32) error {
		if flags&nbd.StateZero != 0 {
			return nil
		}
		return fn(off, n)
	})
}

func (q *qemu) Close() error {
	err := q.Client.Close()
	select { // it ends with its connection
	case <-q.done:
	case <-time.After(5 * time.Second):
		_ = q.cmd.Process.Kill()
		<-q.done
	}
	return errors.Join(err, os.RemoveAll(q.dir))
}

type span struct{ off, end int64 }

// dataRanges lists what may hold data in a range that begins at a multiple of
// cut.Unit, in whole units but at its end, joined.
func dataRanges(ctx context.Context, img image, off, n int64) ([]span, error) {
	var out []span
	end := off + n
	err := img.Data(ctx, off, n, func(o, n int64) error {
		s := span{max(o/cut.Unit*cut.Unit, off), min((o+n+cut.Unit-1)/cut.Unit*cut.Unit, end)}
		if s.off >= s.end {
			return nil
		}
		if len(out) > 0 && out[len(out)-1].end >= s.off {
			out[len(out)-1].end = max(out[len(out)-1].end, s.end)
			return nil
		}
		out = append(out, s)
		return nil
	})
	return out, err
}
