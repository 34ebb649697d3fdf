package libvirt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"

	"holdfast/internal/dr"
	"holdfast/internal/hypervisor/libvirt/internal/virt"
)

const (
	maxScreenshot = 64 << 20 // bytes
	maxSide       = 1 << 13  // pixels
)

var errTooLarge = errors.New("not a picture of usable size")

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
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallTimeout)
	defer cancel()
	what := "take a screenshot of VM " + dom.Name
	c, err := h.virt.Dial(ctx) // of its own: go-libvirt and the daemon disagree on how a stream ends
	if err != nil {
		return nil, virt.Wrap(op, what, err)
	}
	defer c.Close()
	var b limitedBuffer
	err = c.Guard(ctx, func() error {
		_, err := c.DomainScreenshot(dom, &b, 0, 0)
		return err
	})
	// go-libvirt looks for the picture's type behind the stream, where it is not,
	// and fails. Whether the picture is whole is for its decoder to say.
	if err != nil && (virt.Answered(err) || ctx.Err() != nil || b.Len() == 0) {
		return nil, virt.Wrap(op, what, err)
	}
	img, err := toPNG(b.Bytes())
	if err != nil {
		return nil, dr.Errorf(dr.KindUnavailable, "libvirt."+op, "screenshot of VM %s: %w", dom.Name, err)
	}
	return img, nil
}

type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxScreenshot {
		return 0, errTooLarge
	}
	return b.Buffer.Write(p)
}

// toPNG takes what QEMU delivers: PNG, or PPM (P6) from older versions.
func toPNG(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\x89PNG\r\n\x1a\n")) {
		if !bytes.HasSuffix(b, []byte("IEND\xaeB`\x82")) {
			return nil, fmt.Errorf("PNG: %w", io.ErrUnexpectedEOF)
		}
		return b, nil
	}
	img, err := decodePPM(b)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// decodePPM reads binary PPM: "P6 width height 255", one white space, RGB bytes.
func decodePPM(b []byte) (image.Image, error) {
	r := bufio.NewReader(bytes.NewReader(b))
	var w, h, depth int
	if _, err := fmt.Fscanf(r, "P6\n%d %d\n%d\n", &w, &h, &depth); err != nil {
		return nil, fmt.Errorf("neither PNG nor PPM: %w", err)
	}
	if depth != 255 || w <= 0 || h <= 0 || w > maxSide || h > maxSide {
		return nil, fmt.Errorf("PPM of %d x %d with maximum %d", w, h, depth)
	}
	if 3*w*h > len(b) { // before anything of that size is allocated
		return nil, io.ErrUnexpectedEOF
	}
	pix := make([]byte, 3*w)
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		if _, err := io.ReadFull(r, pix); err != nil {
			return nil, err
		}
		for x := range w {
			img.SetRGBA(x, y, color.RGBA{pix[3*x], pix[3*x+1], pix[3*x+2], 0xff})
		}
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
