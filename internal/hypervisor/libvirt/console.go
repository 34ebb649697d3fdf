package libvirt

import (
	"context"
	"errors"
	"io"
	"os"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/screen"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

const maxScreenshot = 64 << 20 // bytes

// Screenshot fetches the picture of the first display.
func (h *Host) Screenshot(ctx context.Context, id dr.VMID) ([]byte, error) {
	const op = "Screenshot"
	dom, err := h.virt.Find(ctx, op, id)
	if err != nil {
		return nil, err
	}
	s, err := h.virt.State(ctx, op, dom)
	if err != nil {
		return nil, err
	}
	if !virt.Active(s) {
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "libvirt."+op, "VM %s is not running", dom.Name)
	}
	raw, err := h.virt.Screenshot(ctx, dom, maxScreenshot)
	if err != nil {
		return nil, err
	}
	img, err := screen.ToPNG(raw)
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "libvirt."+op, "screenshot of VM %s: %w", dom.Name, err)
	}
	return img, nil
}

// SerialLog reads the end of the file that the first serial port writes to.
func (h *Host) SerialLog(ctx context.Context, id dr.VMID, limit int) ([]byte, error) {
	const op = "SerialLog"
	dom, err := h.virt.Find(ctx, op, id)
	if err != nil {
		return nil, err
	}
	root, err := h.virt.Tree(ctx, op, dom, virt.Live)
	if err != nil {
		return nil, err
	}
	serial := root.At("devices", "serial")
	path := serial.At("source").Get("path")
	if serial.Get("type") != "file" || path == "" {
		return nil, dr.Errorf(dr.KindUnsupported, "libvirt."+op, "the first serial port of VM %s does not write to a file", dom.Name)
	}
	b, err := tail(path, max(limit, 0))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing written yet
	}
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "libvirt."+op, "read the serial log of VM %s: %w", dom.Name, err)
	}
	return b, nil
}

func tail(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if over := st.Size() - int64(limit); over > 0 {
		if _, err := f.Seek(over, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, int64(limit)))
}
