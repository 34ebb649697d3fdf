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
)

const maxScreenshot = 64 << 20

// Screenshot fetches the picture of the first display.
func (h *Host) Screenshot(ctx context.Context, id dr.VMID) ([]byte, error) {
	const op = "Screenshot"
	dom, err := h.find(ctx, op, id)
	if err != nil {
		return nil, err
	}
	s, err := h.state(ctx, op, dom)
	if err != nil {
		return nil, err
	}
	if !active(s) {
		return nil, dr.New(dr.KindPrecondition, dr.CodeVMNotRunning, "libvirt."+op, "VM %s is not running", dom.Name)
	}
	var b limitedBuffer
	err = h.call(ctx, op, "take a screenshot of VM "+dom.Name, func(c *conn) error {
		_, err := c.DomainScreenshot(dom, &b, 0, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	img, err := toPNG(b.Bytes())
	if err != nil {
		return nil, dr.Errorf(dr.KindInternal, "libvirt."+op, "screenshot of VM %s: %w", dom.Name, err)
	}
	return img, nil
}

type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxScreenshot {
		return 0, errors.New("the picture is too large")
	}
	return b.Buffer.Write(p)
}

// toPNG takes what QEMU delivers: PNG, or PPM (P6) from older versions.
func toPNG(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\x89PNG\r\n\x1a\n")) {
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
	if depth != 255 || w <= 0 || h <= 0 || w > 1<<15 || h > 1<<15 {
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
	dom, err := h.find(ctx, op, id)
	if err != nil {
		return nil, err
	}
	root, err := h.domainTree(ctx, op, dom, 0)
	if err != nil {
		return nil, err
	}
	serial := root.at("devices", "serial")
	path := serial.at("source").attr("path")
	if serial.attr("type") != "file" || path == "" {
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
